"""The noising process, its exact kernels on a grid, and the steps of the two generative equations.

Standardised coordinates throughout: ``x_t = a x_0 + s eps`` with ``a^2 + s^2 = 1``, indexed by the log signal-to-noise
ratio ``log_snr = log(a^2 / s^2)``. Grid index k = 0 is the prior end, k = N the target (a = 1, s = 0).
"""

__all__ = ["GRIDS", "BrownianGrid", "Grid", "OrnsteinUhlenbeckGrid", "heun_step", "noise_levels", "reverse_kernel"]

import copy
import math

import torch
from scipy.optimize import brentq
from torch import Tensor

from .._support.settings import CPU

LOG_SNR_MIN = -6.0  # prior end: the noised target differs from N(0, I) by a^2 = .0025 of its variance


def noise_levels(log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """Signal and noise amplitudes (a, s) at a log signal-to-noise ratio."""
    return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()


class Grid:
    """N + 1 noise levels, uniform in log signal-to-noise but for the last, which is free of noise.

    The chain on it is the time reversal of the noising process (DIS; Berner, Richter & Ullrich 2024).

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
    keep, gain : Tensor
        (N,), the mean of the generative step is ``keep x_k - gain eps``.
    """

    def __init__(self, n_steps: int, log_snr_max: float, log_snr_min: float = LOG_SNR_MIN):
        self._set(self._levels(n_steps, log_snr_max, log_snr_min))

    def _levels(self, n_steps: int, log_snr_max: float, log_snr_min: float) -> Tensor:
        return torch.linspace(log_snr_min, log_snr_max, n_steps, dtype=torch.float64, device=CPU)

    def _drift(self, b: Tensor, v: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`keep`, `gain`, and ``1 - b keep`` without cancellation, of the mean ``(x - v eps / s) / b``."""
        return 1 / b, v / (b * s), torch.zeros_like(b)

    def to(self, device: torch.device) -> "Grid":
        """The grid on a device."""
        moved = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(moved, name, value.to(device))
        return moved

    def tail(self, n_steps: int, size: int) -> "Grid":
        """The grid of the last `n_steps` steps of `size` steps of this one each."""
        part = copy.copy(self)
        part._set(self._log_snr[self.n_steps - n_steps * size :: size])
        return part

    def _set(self, log_snr: Tensor) -> None:
        self.n_steps, self._log_snr = len(log_snr), log_snr
        a, s = noise_levels(log_snr)
        a, s = torch.cat([a, a.new_ones(1)]), torch.cat([s, s.new_zeros(1)])
        b = a[:-1] / a[1:]
        v = (s[:-1] ** 2 - b**2 * s[1:] ** 2).clamp(min=1e-30)  # 1 - b^2 without cancellation
        self.log_snr, self.a, self.s, self.b, self.v = (t.float() for t in (log_snr, a, s, b, v))
        self.keep, self.gain, self.rest = (t.float() for t in self._drift(b, v, s[:-1]))
        self.v_tilde = (v * s[1:] ** 2 / s[:-1] ** 2).float()  # variance of x_{k+1} given x_k and x_0
        self.kappa = (v**2 / (b**2 * s[:-1] ** 2)).float()  # what the variance of eps given x_k adds to it


class OrnsteinUhlenbeckGrid(Grid):
    """Grid of the denoising diffusion sampler (DDS; Vargas, Grathwohl & Doucet 2023), of N + 1 levels.

    The reference is the stationary Ornstein-Uhlenbeck process. A step follows it exactly and adds the control by the
    exponential integrator: ``b x + 2 (1 - b) (x + S)`` with the score S, where the time reversal has
    ``b x + (1 - b^2) / b (x + S)``. Its variances fall from the prior to the target as the fourth power of a cosine.
    """

    OFFSET = 0.008  # of the cosine

    def _levels(self, n_steps, log_snr_max, log_snr_min):
        k = torch.arange(n_steps, dtype=torch.float64, device=CPU)
        shape = torch.cos(0.5 * math.pi * (k / n_steps + self.OFFSET) / (1 + self.OFFSET)) ** 4
        goal = -math.log1p(math.exp(-log_snr_min))  # log a^2 at the prior end
        largest = brentq(lambda v: float(torch.log1p(-v * shape).sum()) - goal, 0.0, 1.0, xtol=1e-14)
        log_a2 = torch.log1p(-largest * shape).flip(0).cumsum(0).flip(0)
        return log_a2 - torch.log(-torch.expm1(log_a2))

    def _drift(self, b, v, s):
        return 2 - b, 2 * (1 - b) / s, (1 - b) ** 2


class BrownianGrid(Grid):
    """Grid of the path integral sampler (PIS; Zhang & Chen 2022): equal steps of Brownian motion from a point.

    Brownian motion W_t from the origin, divided by sqrt(t), is an Ornstein-Uhlenbeck process in another time, with
    ``a^2 = t``: pinned at its end it has the noising kernels of `Grid`, and the Euler step of a controlled Brownian
    motion has its mean and variance. What differs are the levels, uniform in t. The motion is not controlled before the
    first of them, at t = a^2 of the prior end.
    """

    def _levels(self, n_steps, log_snr_max, log_snr_min):
        start = 1 / (1 + math.exp(-log_snr_min))
        k = torch.arange(n_steps, dtype=torch.float64, device=CPU)
        left = (1 - start) * (1 - k / n_steps)  # 1 - t
        return torch.log1p(-left) - torch.log(left)


GRIDS: dict[str, type[Grid]] = {"dis": Grid, "dds": OrnsteinUhlenbeckGrid, "pis": BrownianGrid}


def reverse_kernel(grid: Grid, k, x: Tensor, noise_hat: Tensor, noise_var: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and variance of the generative step from x_k to x_{k+1}.

    The mean is that of the grid: ``(x_k + v_k S) / b_k`` for the time reversal, with ``S = -noise_hat / s_k``.
    The variance is ``v_k`` where `noise_var` is None (the paper), else ``v~_k + kappa_k noise_var``: the variance of
    the true step, in which `noise_var` stands for that of eps given x_k (Bao et al. 2022, Nichol & Dhariwal 2021).

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
    keep, gain, v, v_tilde, kappa = (_column(t[k]) for t in (grid.keep, grid.gain, grid.v, grid.v_tilde, grid.kappa))
    mean = keep * x - gain * noise_hat
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
