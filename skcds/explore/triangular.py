"""The triangular map that makes a density a Gaussian in a Gaussian's place, found from scores at its own draws."""

__all__ = ["WORTH", "best_triangular"]

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .._support.devices import randn
from .._support.errors import Spent
from .._support.settings import FLOAT
from ..density.energy import Energy
from ..density.standardize import Standardization, StandardizedTarget
from ..density.triangular import (
    CURVATURE_OF_BEND,
    DEGREES,
    LARGEST_BEND,
    TriangularMap,
    features,
    n_pairs,
    n_triples,
    products_of,
)  # fmt: skip
from .laplace import is_better, log_weights_of, mirrored
from .stages import Triangular

PART_ROWS = 2048  # points at a time: the products of their features are many
LARGEST_MOMENT = 3.0  # of what is left of a score: it is 1 along a coordinate that is 1.4 times too wide, 0 in the end
LEAST_SIGNAL = 0.01  # of the variance of moments
LARGEST_GAIN = 0.5  # of a step: whole ones lead away from a Gaussian 15 % too wide
GAUGED = 256  # rows whose time is measured
WORTH = 0.1  # nats by which a map of many features, which takes long, has to be better


def best_triangular(
    energy: Energy, gaussian: Standardization, generator, by: Triangular | None = None, n_evals: float = torch.inf,
    seconds_left: Callable[[], float] | None = None,
) -> tuple[Standardization, bool]:  # fmt: skip
    """A Gaussian's coordinates behind a `TriangularMap`, if the bound of log Z is clearly better by it.

    The score of a density in coordinates in which it is standard normal is -z. What is left of it elsewhere, at draws
    of these coordinates, has a mean, a covariance with z and one with z z^T. They are the coefficients of the Hermite
    polynomials of degree 1 to 3 in the log density. The map that takes these away to first order has the same
    coefficients: a natural gradient of the bound. Steps along it, each with draws of its own and of which later ones
    are smaller, end where all of these moments vanish. A map of degree 3 is looked for behind it, with the moments of
    the cubic Hermite polynomials, too. These are d^4 / 24 numbers, of which each is a covariance with what is left of
    the score: their noise is smaller than their number suggests. How much of it there is decides about the first step.

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
    seconds_left : callable, optional
        Says how many there are. A map of many features is looked for if they are enough for half of the steps.

    Returns
    -------
    standardization : Standardization
        With the map, or the Gaussian as it was.
    better : bool
        Whether it is with the map.
    """
    by, d = Triangular() if by is None else by, energy.n_features
    wanted, fewest = (max(by.fewest_draws, int(draws * d * d)) for draws in (by.draws, by.draws_at_least))
    wanted = max(fewest, min(wanted, by.most_draws))
    affordable = (n_evals - 2 * by.n_compared) / max(by.n_steps, 1)
    if (
        d > by.max_features
        or not by.n_steps
        or affordable < fewest
        or not (gaussian.full or gaussian.skewed is not None)
    ):
        return gaussian, False
    beside_cubics = affordable - _evals_of_cubics(by, d) / by.n_steps  # which mend what few draws leave
    affordable = beside_cubics if beside_cubics >= fewest else affordable
    begun = energy.n_energy_evals
    walk = _Walk(energy, gaussian, generator, seconds_left or (lambda: math.inf))
    start, n = TriangularMap(d).to(energy.device), int(min(wanted, affordable))
    is_large = d > by.max_features_of_cubics
    if is_large:
        draws_in_time = n * walk.seconds_left() / walk.seconds_of_step(start, n)
        n = int(max(fewest, min(n, draws_in_time / by.n_steps)))
        if draws_in_time < n * by.n_steps / 2:
            return gaussian, False
    found, least = gaussian.with_triangular(walk(start, by.n_steps, n)), WORTH if is_large else 0.0
    if not is_better(energy, found, gaussian, by.n_compared, generator, least):
        return gaussian, False
    return _with_cubics(walk, found, by, n_evals - (energy.n_energy_evals - begun)), True


def _evals_of_cubics(by: Triangular, d: int) -> float:
    """The fewest that a map of degree 3 takes."""
    n_draws = max(by.fewest_draws, by.cubic_draws_at_least * d * d)
    return by.n_cubic_steps * n_draws + by.n_compared + 2 * by.n_compared_cubic if _may_be_cubic(by, d) else 0.0


def _may_be_cubic(by: Triangular, d: int) -> bool:
    return d <= by.max_features_of_cubics and by.n_cubic_steps > 0


def _with_cubics(walk: "_Walk", found: Standardization, by: Triangular, n_evals: float) -> Standardization:
    """Coordinates with a map of degree 3, if evaluations are left for it and the bound gains by it."""
    energy, generator, d = walk.energy, walk.generator, walk.energy.n_features
    if not _may_be_cubic(by, d) or n_evals < _evals_of_cubics(by, d):
        return found
    affordable = (n_evals - by.n_compared - 2 * by.n_compared_cubic) / by.n_cubic_steps
    n = int(min(max(by.cubic_draws * d * d, by.fewest_draws), affordable))
    try:
        variance = float(log_weights_of(energy, found, mirrored(by.n_compared, energy, generator)).var())
    except Spent:
        return found
    if found.triangular is None or variance < 2 * by.least_gain:  # twice the nats that the bound is below log Z
        return found
    cubic = found.with_triangular(walk(found.triangular.of_degree(3), by.n_cubic_steps, n))
    return cubic if is_better(energy, cubic, found, by.n_compared_cubic, generator, by.least_gain) else found


class _Walk:
    """Steps to the triangular map around a Gaussian, as far as the limits allow."""

    def __init__(self, energy: Energy, gaussian: Standardization, generator, seconds_left: Callable[[], float]):
        self.energy, self.gaussian, self.generator, self.seconds_left = energy, gaussian, generator, seconds_left

    def seconds_of_step(self, triangular: TriangularMap, n_draws: int) -> float:
        """What a step will take, by the time of a few rows in these coordinates; without an evaluation."""
        at = self.gaussian.with_triangular(triangular)
        z = torch.zeros_like(triangular.location, dtype=FLOAT).expand(GAUGED, -1)
        start = time.perf_counter()
        _with_pairs(at.call_and_pull_back(z)[2](z.double()).float(), z)
        return n_draws * ((time.perf_counter() - start) / GAUGED + 1 / self.energy.evals_per_second)

    def __call__(self, triangular: TriangularMap, n_steps: int, n_draws: int) -> TriangularMap:
        """A map that is some steps further, each with new draws."""
        noise = None
        for k in range(n_steps):
            if self.seconds_left() <= 0:
                break
            at, n = self.gaussian.with_triangular(triangular), 2 * (n_draws // 2)
            try:
                moments = residual_moments(self.energy, at, n, self.generator, triangular.degree)
            except Spent:
                break
            if not moments.is_small():
                break
            noise = moments.noise if noise is None else noise
            triangular = stepped(triangular, moments, min(LARGEST_GAIN, 2 / (k + 2 + 2 * noise)))
        return triangular


@dataclass
class Moments:
    """Those of what is left of a score over standard normal draws, with Hermite polynomials of features.

    Attributes
    ----------
    mean, second, third : Tensor
        (d,), (d, d) and (d, d, d), with degrees 0 to 2, symmetric.
    fourth : Tensor or None
        (d, d (d + 1) (d + 2) / 6), with degree 3, in the order (c, b, a) of `n_triples`, not made symmetric.
    noise : float
        Ratio of the noise in `fourth`, made symmetric, to its signal, as sums of squares; from two halves of the draws.
    """

    mean: Tensor
    second: Tensor
    third: Tensor
    fourth: Tensor | None = None
    noise: float = 0.0

    def is_small(self) -> bool:
        """Whether the density is close enough to normal for a step to lead to it."""
        found = (moment for moment in (self.mean, self.second, self.third, self.fourth) if moment is not None)
        return all(float(moment.abs().max()) < LARGEST_MOMENT for moment in found)


def residual_moments(
    energy: Energy, standardization: Standardization, n: int, generator, degree: int = DEGREES[0]
) -> Moments:  # fmt: skip
    """Moments over n draws in pairs of mirror images; fourth ones for degree 3.

    What is left of scores is in float32, as precise as a mean over draws needs it.
    """
    z = randn(generator, n // 2, energy.n_features, dtype=torch.float64)
    z = torch.stack([z, -z], 1).flatten(0, 1).float()
    residual = StandardizedTarget(energy, standardization).log_prob_and_score(z)[1] + z
    d, p, mean = z.shape[1], features(z)[0], residual.mean(0)
    k, j = torch.tril_indices(d, d, device=z.device)
    third = z.new_zeros(d, d, d)
    third[:, k, j] = third[:, j, k] = _with_pairs(residual, p)
    third = third - mean[:, None, None] * torch.eye(d, dtype=z.dtype, device=z.device)
    second = residual.T @ z / n
    third = (third + third.permute(1, 2, 0) + third.permute(2, 0, 1)) / 3
    mean, second, third = mean.double(), second.double(), third.double()
    moments = Moments(mean, 0.5 * (second + second.T), third)
    if degree == DEGREES[0]:
        return moments
    halves = [_with_triples(r, q) for r, q in zip(residual.tensor_split(2), p.tensor_split(2), strict=True)]
    moments.fourth = (halves[0] + halves[1]) / 2
    signal, total = float((halves[0] * halves[1]).sum()), float(moments.fourth.square().sum())
    moments.noise = (total / max(signal, LEAST_SIGNAL * total) - 1) / 4  # symmetry leaves a fourth of it
    return moments


def _with_pairs(residual: Tensor, p: Tensor) -> Tensor:
    """Means (d, d (d + 1) / 2) of what is left of scores (n, d) with products of features (n, d)."""
    total = p.new_zeros(p.shape[1], n_pairs(p.shape[1]))
    for r, q in _parts(residual, p):
        total.addmm_(r, products_of(q).T)
    return total / len(p)


def _with_triples(residual: Tensor, p: Tensor) -> Tensor:
    """The same with Hermite polynomials of degree 3, (d, `n_triples`)."""
    d = p.shape[1]
    total, with_features = p.new_zeros(d, n_triples(d)), residual.T @ p
    for r, q in _parts(residual, p):
        products = products_of(q)
        for c in range(d):
            total[:, n_triples(c) : n_triples(c + 1)].addmm_(r * q[c], products[: n_pairs(c + 1)].T)
    for c in range(d):
        b, a = torch.tril_indices(c + 1, c + 1, device=p.device)
        raised, alone = total[:, n_triples(c) : n_triples(c + 1)], with_features[:, c : c + 1]
        raised -= (b == a) * alone + (b == c) * with_features[:, a] + (a == c) * with_features[:, b]
    return total / len(p)


def _parts(residual: Tensor, p: Tensor):
    """Some points at a time, with coordinates first."""
    for r, q in zip(residual.split(PART_ROWS), p.split(PART_ROWS), strict=True):
        yield r.T.contiguous(), q.T.contiguous()


def stepped(triangular: TriangularMap, moments: Moments, gain: float) -> TriangularMap:
    """A map that is a step along the moments further.

    Of a Hermite polynomial of degree 3 or 4 that part moves a coordinate in which it is the last one, once or twice.
    """
    found, second, third = copy.deepcopy(triangular), moments.second, moments.third
    found.location += gain * moments.mean
    found.regression += gain * second.tril(-1)
    found.log_scale += 0.5 * gain * second.diagonal()
    below = torch.ones_like(second).tril(-1)
    found.curvature += 0.5 * gain * third * below[:, :, None] * below[:, None, :]
    found.slope += 0.5 * gain * torch.einsum("iij->ij", third).tril(-1)
    bend = found.bend + gain * torch.einsum("iii->i", third) / (6 * CURVATURE_OF_BEND)
    found.bend = bend.clamp(-LARGEST_BEND, LARGEST_BEND)
    if moments.fourth is not None:
        _step_of_cubics(found, gain * moments.fourth.double())
    return found


def _step_of_cubics(found: TriangularMap, fourth: Tensor) -> None:
    """Add moments of degree 4 to a map's numbers, and take what Hermite polynomials have of lower degrees away."""
    d, place = len(found.location), fourth.device
    for c, cubic in enumerate(found.cubics()):
        b, a = torch.tril_indices(c + 1, c + 1, device=place)
        i, twice = torch.arange(c + 1, d, device=place)[:, None], b == c
        n_orders = 6.0 / (1 + (b == a) + twice + 3 * ((b == a) & twice))
        by = n_orders / 6 * _symmetric(fourth, i, torch.full_like(b, c), b, a)
        cubic += by
        found.regression[c + 1 :, : c + 1] -= by[:, n_pairs(c) :]
        found.regression[c + 1 :, c] -= by[:, b == a].sum(1) + by[:, -1]
    i, b, a = torch.meshgrid(*[torch.arange(d, device=place)] * 3, indexing="ij")
    before, spread = (b < i) & (a < i), torch.zeros_like(found.curvature)
    i, b, a = i[before], b[before], a[before]
    spread[before] = _symmetric(fourth, i, i, torch.maximum(a, b), torch.minimum(a, b)) / 4
    found.spread = spread if found.spread is None else found.spread + spread
    found.log_scale -= spread.diagonal(dim1=1, dim2=2).sum(1)


def _symmetric(fourth: Tensor, i: Tensor, c: Tensor, b: Tensor, a: Tensor) -> Tensor:
    """Mean of the moments with four coordinates, i >= c >= b >= a, over which of them is that of the score."""

    def of(one, last, middle, first):
        return fourth[one, n_triples(last) + n_pairs(middle) + first]

    return (of(i, c, b, a) + of(c, i, b, a) + of(b, i, c, a) + of(a, i, c, b)) / 4
