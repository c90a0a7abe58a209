"""Modes that weighted draws have missed: found by fresh climbs, and weighed by importance sampling around each."""

__all__ = ["Missed", "find_missed"]

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .._support.devices import randint, randn
from .._support.errors import Spent
from .._support.warnings import muted
from ..density.energy import Energy
from ..train.budget import Budget
from .climb import Mode
from .modes import climbs_from, near_to, radius_squared

CLIMB_SHARE = 0.75  # of the evaluations, for climbs; the rest weighs what they find
BATCH, FEWEST_CLIMBS = 12, 96  # climbs at a time, and at least
MIN_SHARE = 0.01  # of the mass, that a mode has to have to be looked at
CHANCE_OF_ANOTHER = 5e-4  # that the next climb ends at a new mode, with which they end (see `survey`)
LOOKED_AT = 1000  # draws, for those of the largest density
WIDTHS = 3.0, 10.0, 30.0  # of starting points around the draws, in units of their spread
SCALES = 1.0, 10.0, 100.0  # of starting points around the origin
FEWEST_DRAWS, MOST_DRAWS = 100, 1000  # by which a mode is weighed
WIDENING = 1.2  # of the Gaussian that these come from
N_DEVIATIONS = 4.0  # standard errors that are put down to chance


@dataclass(frozen=True)
class Missed:
    """What climbs have found beside weighted draws.

    Attributes
    ----------
    share : float
        Of the mass: in modes that have clearly more of it than the draws say.
    excess : float
        The same, less what chance may do.
    x : Tensor or None
        Where most of it is, (d,) in unconstrained coordinates.
    n_climbs, n_modes : int
        Climbs that were made, and modes that they ended at.
    """

    share: float
    excess: float
    x: Tensor | None
    n_climbs: int
    n_modes: int


def find_missed(energy: Energy, x: Tensor, log_weights: Tensor, n_evals: int, generator) -> Missed:
    """Look for mass that draws do not have.

    Climbs start from the draws of the largest weights and densities, from some others, and from points near and far
    around them and around the origin. The mass of each mode that they end at, within an ellipsoid in which nearly all
    of its Gaussian approximation lies, is estimated from draws of that Gaussian. It is compared with what the weights
    of the draws say about the same ellipsoid.

    Parameters
    ----------
    energy : Energy
        The density. It is limited to `n_evals` further evaluations.
    x : Tensor
        Draws (n, d) in unconstrained coordinates.
    log_weights : Tensor
        Their log importance weights (n,), not all of them ``-inf``.
    n_evals : int
        How many evaluations may be made.
    generator : torch.Generator
        Source of randomness.

    Returns
    -------
    Missed
        What was found.
    """
    energy.monitor = Budget(None, energy.n_energy_evals + n_evals, energy)
    inside = (log_weights > -torch.inf) & x.isfinite().all(1)
    x, log_weights = x[inside], log_weights[inside]
    log_evidence = float(torch.logsumexp(log_weights, 0)) - math.log(len(inside))
    try:
        with muted(RuntimeWarning):  # of energies that are not finite where climbs go
            modes, n_climbs = _climb(energy, x, log_weights, int(CLIMB_SHARE * n_evals), generator)
        return _compared(energy, x, torch.softmax(log_weights, 0), log_evidence, modes, n_climbs, generator)
    finally:
        energy.release()


def _climb(energy: Energy, x: Tensor, log_weights: Tensor, n_evals: int, generator) -> tuple[list[Mode], int]:
    """Distinct modes, and the number of climbs, until another new mode is unlikely or the evaluations are used up."""
    modes: list[Mode] = []
    n_climbs, end = 0, energy.n_energy_evals + n_evals
    by_weight = _largest(log_weights)
    some = x[: max(1, min(LOOKED_AT, n_evals // 10))]
    by_density = _largest(energy.log_prob(some))
    while energy.n_energy_evals < end:
        before, k = energy.n_energy_evals, n_climbs // BATCH
        points = torch.cat(
            [
                x[by_weight[2 * k : 2 * k + 2]],
                x[by_density[2 * k : 2 * k + 2]],
                x[randint(generator, 0, len(x), (2,))],
                _around(x, k, generator),
            ]
        )
        modes += climbs_from(energy, points, modes)
        n_climbs, w = n_climbs + len(points), len(modes)
        unlikely = w * (w + 1) <= CHANCE_OF_ANOTHER * n_climbs * (n_climbs - 1)
        if energy.n_energy_evals == before or (n_climbs >= FEWEST_CLIMBS and unlikely):
            break
    return modes, n_climbs


def _largest(values: Tensor) -> Tensor:
    return values.argsort(descending=True)


def _around(x: Tensor, k: int, generator) -> Tensor:
    """Points (6, d) of batch k, at several distances from the draws and from the origin."""
    spread = x.std(0, unbiased=False)
    near = [x.mean(0) + width * spread * randn(generator, x.shape[1], dtype=x.dtype) for width in WIDTHS]
    scale = SCALES[k % len(SCALES)]
    far = [(scale + spread) * randn(generator, x.shape[1], dtype=x.dtype) for _ in range(3)]
    return torch.stack(near + far)


def _compared(
    energy: Energy, x: Tensor, weights: Tensor, log_evidence: float, modes: list[Mode], n_climbs: int, generator
) -> Missed:
    """The mass of modes against what the draws say."""
    worth = [mode for mode in modes if mode.log_mass > log_evidence + math.log(MIN_SHARE)]
    worth.sort(key=lambda mode: -mode.log_mass)
    found: list[tuple[float, float, Mode]] = []
    for k, mode in enumerate(worth):
        left = energy.monitor.max_energy_evals - energy.n_energy_evals
        n = int(min(MOST_DRAWS, left / (len(worth) - k)))
        if n < FEWEST_DRAWS:
            break
        try:
            mass, se = _mass_of(energy, mode, n, log_evidence, generator)
        except Spent:
            break
        near = near_to(mode, x)
        known, noise = float(weights[near].sum()), float(weights[near].square().sum().sqrt())
        lacking, chance = mass - known, N_DEVIATIONS * math.hypot(se, noise)
        if lacking > chance and not any(_overlap(mode, other) for *_, other in found):
            found.append((lacking, lacking - chance, mode))
    lacking, excess = sum(row[0] for row in found), sum(row[1] for row in found)
    where = max(found, key=lambda row: row[0])[2].x if found else None
    return Missed(lacking / (1 + lacking), excess / (1 + excess), where, n_climbs, len(modes))


def _overlap(mode: Mode, other: Mode) -> bool:
    return bool(near_to(mode, other.x[None]).any() or near_to(other, mode.x[None]).any())


def _mass_of(energy: Energy, mode: Mode, n: int, log_evidence: float, generator) -> tuple[float, float]:
    """Mass around a mode in units of the evidence, by n draws of its Gaussian, and the standard error."""
    d = energy.n_features
    z = WIDENING * randn(generator, n, d, dtype=torch.float64)
    log_q = -0.5 * (z / WIDENING).square().sum(1) - d * (0.5 * math.log(2 * math.pi) + math.log(WIDENING))
    log_prob = energy.log_prob(mode.standardization(z)) + mode.standardization.log_det(z)
    log_weights = torch.where(z.square().sum(1) <= radius_squared(d), log_prob - log_q - log_evidence, -torch.inf)
    w = log_weights.clamp(max=50.0).exp()
    return float(w.mean()), float(w.std()) / math.sqrt(n)
