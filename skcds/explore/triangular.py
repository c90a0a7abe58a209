"""The triangular map that makes a density a Gaussian in a Gaussian's place, found from scores at its own draws."""

__all__ = ["best_triangular"]

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from .._support.devices import randn
from .._support.errors import Spent
from ..density.energy import Energy
from ..density.standardize import Standardization, StandardizedTarget
from ..density.triangular import CURVATURE_OF_BEND, LARGEST_BEND, TriangularMap, features
from .laplace import is_better
from .stages import Triangular

PART_NUMBERS = 2**21  # in products of features, at a time
LARGEST_MOMENT = 3.0  # of what is left of a score: it is 1 along a coordinate that is 1.4 times too wide, 0 in the end
LARGEST_GAIN = 0.5  # of a step: whole ones lead away from a Gaussian 15 % too wide


def best_triangular(
    energy: Energy, gaussian: Standardization, generator, by: Triangular | None = None, n_evals: float = torch.inf,
    ended: Callable | None = None,
) -> tuple[Standardization, bool]:  # fmt: skip
    """A Gaussian's coordinates behind a `TriangularMap`, if the bound of log Z is clearly better by it.

    The score of a density in coordinates in which it is standard normal is -z. What is left of it elsewhere, at draws
    of these coordinates, has a mean, a covariance with z and one with z z^T. They are the coefficients of the Hermite
    polynomials of degree 1 to 3 in the log density. The map that takes these away to first order has the same
    coefficients: a natural gradient of the bound. Steps along it, each with draws of its own and of which later ones
    are smaller, end where all of these moments vanish.

    Parameters
    ----------
    energy : Energy
        The density; its gradient is needed.
    gaussian : Standardization
        The Gaussian, without a triangular map.
    generator : torch.Generator
        Source of randomness.
    by : Triangular, optional
        How many steps and draws there are, and for how many features.
    n_evals : float, optional
        Evaluations that may be used.
    ended : callable, optional
        Says whether the time is over.

    Returns
    -------
    standardization : Standardization
        With the map, or the Gaussian as it was.
    better : bool
        Whether it is with the map.
    """
    by, d = Triangular() if by is None else by, energy.n_features
    wanted, fewest = (max(by.fewest_draws, int(draws * d * d)) for draws in (by.draws, by.draws_at_least))
    affordable = (n_evals - 2 * by.n_compared) / max(by.n_steps, 1)
    if d > by.max_features or not by.n_steps or affordable < fewest or not gaussian.full:
        return gaussian, False
    n = 2 * (int(min(wanted, affordable)) // 2)
    triangular = TriangularMap(d).to(energy.device)
    for k in range(by.n_steps):
        if ended is not None and ended():
            break
        try:
            moments = residual_moments(energy, gaussian.with_triangular(triangular), n, generator)
        except Spent:
            break
        if not all(float(moment.abs().max()) < LARGEST_MOMENT for moment in moments):
            break
        triangular = stepped(triangular, *moments, gain=min(LARGEST_GAIN, 2 / (k + 2)))
    found = gaussian.with_triangular(triangular)
    better = is_better(energy, found, gaussian, by.n_compared, generator)
    return (found if better else gaussian), better


def residual_moments(
    energy: Energy, standardization: Standardization, n: int, generator
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Moments of ``r = score + z`` over n standard normal z and their features p, in pairs of mirror images.

    They are the mean (d,), that of r z^T, and that of r (p p^T - 1), made symmetric: (d, d) and (d, d, d).
    """
    z = randn(generator, n // 2, energy.n_features, dtype=torch.float64)
    z = torch.cat([z, -z])
    residual = StandardizedTarget(energy, standardization).log_prob_and_score(z)[1] + z
    d, p, mean = z.shape[1], features(z)[0], residual.mean(0)
    raised = z.new_zeros(d, d * d)
    size = max(1, PART_NUMBERS // d**2)
    for r, q in zip(residual.split(size), p.split(size), strict=True):
        raised += r.T @ (q[:, :, None] * q[:, None, :]).flatten(1)
    third = raised.view(d, d, d) / n - mean[:, None, None] * torch.eye(d, dtype=z.dtype, device=z.device)
    second = residual.T @ z / n
    third = (third + third.permute(1, 2, 0) + third.permute(2, 0, 1)) / 3
    return mean, 0.5 * (second + second.T), third


def stepped(triangular: TriangularMap, mean: Tensor, second: Tensor, third: Tensor, gain: float) -> TriangularMap:
    """A map that is a step along the moments further.

    Of a cubic Hermite polynomial that part moves a coordinate in which it is the last one.
    """
    found = copy.deepcopy(triangular)
    found.location += gain * mean
    found.regression += gain * second.tril(-1)
    found.log_scale += 0.5 * gain * second.diagonal()
    below = torch.ones_like(second).tril(-1)
    found.curvature += 0.5 * gain * third * below[:, :, None] * below[:, None, :]
    found.slope += 0.5 * gain * torch.einsum("iij->ij", third).tril(-1)
    bend = found.bend + gain * torch.einsum("iii->i", third) / (6 * CURVATURE_OF_BEND)
    found.bend = bend.clamp(-LARGEST_BEND, LARGEST_BEND)
    return found
