"""The noising process, its exact kernels on a grid, and the steps of the two generative equations.

Standardised coordinates throughout: ``x_t = a x_0 + s eps`` with ``a^2 + s^2 = 1``, indexed by the log signal-to-noise
ratio ``log_snr = log(a^2 / s^2)``. Grid index k = 0 is the prior end, k = N the target (a = 1, s = 0).
"""

__all__ = ["Grid", "heun_step", "noise_levels", "reverse_kernel"]

import copy

import torch
from torch import Tensor

LOG_SNR_MIN = -6.0  # prior end: the noised target differs from N(0, I) by a^2 = .0025 of its variance


def noise_levels(log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """Signal and noise amplitudes (a, s) at a log signal-to-noise ratio."""
    return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()


class Grid:
    """N + 1 noise levels, uniform in log signal-to-noise but for the last, which is free of noise.

    Parameters
    ----------
    n_steps : int
        Number of steps N.
    log_snr_max : float
        Log signal-to-noise ratio at index N - 1, the last level with noise.
    log_snr_min : float, optional
        Log signal-to-noise ratio at the prior end.

    Attributes
    ----------
    log_snr : Tensor
        (N,), the levels with noise, float32.
    a, s : Tensor
        (N + 1,), amplitudes of signal and noise.
    b, v : Tensor
        (N,), shrink ``a_k / a_{k+1}`` and variance ``1 - b^2`` of the noising step from k + 1 to k.
    """

    def __init__(self, n_steps: int, log_snr_max: float, log_snr_min: float = LOG_SNR_MIN):
        self._set(torch.linspace(log_snr_min, log_snr_max, n_steps, dtype=torch.float64))

    def tail(self, n_steps: int, size: int) -> "Grid":
        """The grid of the last `n_steps` steps of `size` steps of this one each."""
        part = copy.copy(self)
        part._set(self._log_snr[self.n_steps - n_steps * size :: size])
        return part

    def _set(self, log_snr: Tensor) -> None:
        self.n_steps, self._log_snr = len(log_snr), log_snr
        a, s = noise_levels(log_snr)
        a, s = torch.cat([a, torch.ones(1).double()]), torch.cat([s, torch.zeros(1).double()])
        b = a[:-1] / a[1:]
        v = (s[:-1] ** 2 - b**2 * s[1:] ** 2).clamp(min=1e-30)  # 1 - b^2 without cancellation
        self.log_snr, self.a, self.s, self.b, self.v = (t.float() for t in (log_snr, a, s, b, v))
        self.v_tilde = (v * s[1:] ** 2 / s[:-1] ** 2).float()  # variance of x_{k+1} given x_k and x_0
        self.kappa = (v**2 / (b**2 * s[:-1] ** 2)).float()  # what the variance of eps given x_k adds to it


def reverse_kernel(grid: Grid, k, x: Tensor, noise_hat: Tensor, noise_var: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and variance of the generative step from x_k to x_{k+1}.

    The mean is ``(x_k + v_k S) / b_k`` with the score ``S = -noise_hat / s_k``. The variance is ``v_k`` where
    `noise_var` is None (the paper), else ``v~_k + kappa_k noise_var``: the variance of the true step, in which
    `noise_var` stands for the variance of eps given x_k (Bao et al. 2022, Nichol & Dhariwal 2021).

    Parameters
    ----------
    grid : Grid
        Noise levels.
    k : int or LongTensor
        Index of the step, one for all rows or one a row (n,).
    x, noise_hat, noise_var : Tensor
        (n, d): the state, the estimate of eps given it, and of its variance.

    Returns
    -------
    mean, variance : Tensor
        (n, d) each.
    """
    b, v, s, v_tilde, kappa = (_column(t[k]) for t in (grid.b, grid.v, grid.s, grid.v_tilde, grid.kappa))
    mean = (x - v / s * noise_hat) / b
    variance = v.expand_as(x) if noise_var is None else v_tilde + kappa * noise_var
    return mean, variance


def heun_step(noise_fn, grid: Grid, k: int, x: Tensor) -> Tensor:
    """One step of the probability-flow ODE from index k to k + 1 by Heun's method (Karras et al. 2022).

    In the last step, to the target, eps at the far end is taken as 0: it is ``-s`` times the target's score there.

    Parameters
    ----------
    noise_fn : callable
        ``noise_fn(x, log_snr)``, the estimate of eps, (n, d).
    grid : Grid
        Noise levels.
    k : int
        Index of the step.
    x : Tensor
        (n, d), the state at index k.

    Returns
    -------
    Tensor
        (n, d), the state at index k + 1.
    """
    a, s, a_next, s_next = grid.a[k], grid.s[k], grid.a[k + 1], grid.s[k + 1]
    noise = noise_fn(x, grid.log_snr[k])
    y = a_next * (x - s * noise) / a + s_next * noise
    following = noise_fn(y, grid.log_snr[k + 1]) if k + 1 < grid.n_steps else 0.0
    # d x / d s in the coordinates x / a is eps; the average of both ends over the change of s / a
    return y + 0.5 * a_next * (s_next / a_next - s / a) * (following - noise)


def _column(value: Tensor) -> Tensor:
    return value[:, None] if value.ndim == 1 else value
