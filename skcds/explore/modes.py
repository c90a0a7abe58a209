"""Modes that the pilot's particles have lost, spikes above all: found by climbs, weighed by runs of their own."""

__all__ = ["climbs_from", "find_lost_modes", "near_to", "radius_squared", "starting_points", "survey"]

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .._support.devices import randn, randperm
from .._support.errors import Spent
from .._support.settings import CPU
from ..density.energy import Energy
from ..density.standardize import StandardizedTarget
from .climb import NEAR, Mode, climb
from .descent import descend
from .smc import temper

MIN_SHARE = 0.01  # of the mass, that a mode has to have to be looked at
COVERED = 0.25  # of the particles that a mode should have, with which it is taken for known
WIDENING = 1.5  # of the Gaussian that the run of a mode starts from
RUN_PARTICLES = 500
CLEAR_FACTOR = 2.0  # by which the mass of a mode has to exceed what the particles have there
MIN_COUNT = 20  # particles that a lost mode makes a difference of at least
CLIMBS, FEW_CLIMBS = 24, 4
BATCH = 12  # descents at a time: more take fewer calls, and more of a small limit before the first has ended
FEWEST_CLIMBS = 96  # of a survey
CHANCE_OF_ANOTHER = 0.002  # that the next climb ends at a new mode, with which a survey ends
STARTING_SCALES = 0.0, 1.0, 1.0, 10.0, 3.0, 100.0, 30.0, 1.0  # of the points that climbs before any run start from
SURVEYED = 1.0, 3.0, 10.0, 30.0, 100.0  # distances of the points that it starts from
FAR_STARTS = 3.0  # widths of the particles that some climbs start from
WIDE_STARTS = 3.0, 10.0, 30.0, 10.0  # widths of the particles that four times as many climbs start from


def starting_points(energy: Energy, generator: torch.Generator, n: int) -> Tensor:
    """Points (n, d) near and far from the origin, some of the support among them, for climbs before any run."""
    scales = torch.tensor([0.0, 1.0, 1.0, 10.0, 3.0, 100.0, 30.0, 1.0], dtype=torch.float64, device=CPU).to(
        energy.device
    )
    z = randn(generator, n, energy.n_features, dtype=torch.float64)
    points = scales[torch.arange(n, device=energy.device) % len(scales), None] * z
    rows = min(len(energy.valid), max(n // 2, 1))
    points[n - rows :] = energy.valid[:rows]
    return points


def climbs_from(energy: Energy, points: Tensor, known: Sequence[Mode] = ()) -> list[Mode]:
    """Distinct modes that climbs from points (n, d) end at; fewer where a limit is reached.

    Where there is a gradient, batches of points descend together, and only ends at which no mode is known yet are
    looked at one by one.
    """
    modes: list[Mode] = []
    for batch in points.split(BATCH):
        try:
            ends = descend(energy, batch) if energy.has_gradient and len(batch) > 1 else batch
            for end in ends:
                if not any(mode.is_near(end) for mode in (*known, *modes)):
                    mode = climb(energy, end, (*known, *modes))
                    if mode is not None and not any(_same(mode, other) for other in (*known, *modes)):
                        modes.append(mode)
        except Spent:
            break
    return modes


def survey(energy: Energy, generator, n_max: int) -> list[Mode]:
    """Distinct modes that climbs end at, from points of many scales, around the origin and around modes found so far.

    They go on until the chance that the next climb ends at a new mode is estimated at .002: after n climbs to w modes
    that is ``w (w + 1) / (n (n - 1))`` (Boender & Rinnooy Kan 1987).
    """
    modes: list[Mode] = []
    n = 0
    while n < n_max:
        before = energy.n_energy_evals
        modes += climbs_from(energy, _surveyed(energy, modes, n, generator), modes)
        n, w = n + BATCH, len(modes)
        if energy.n_energy_evals == before:  # nothing more is allowed
            break
        if n >= (FEWEST_CLIMBS if w else 1) and w * (w + 1) <= CHANCE_OF_ANOTHER * n * (n - 1):
            break
    return modes


def _surveyed(energy: Energy, modes: list[Mode], n: int, generator) -> Tensor:
    """Points (BATCH, d) to climb from after n climbs."""
    points = []
    for k in range(n, n + BATCH):
        around = bool(modes) and k % 2 == 0
        x = torch.stack([mode.x for mode in modes]) if around else energy.valid.new_zeros(1, energy.n_features)
        spread = SURVEYED[k // (1 + bool(modes)) % len(SURVEYED)] + x.std(0, unbiased=False)
        points.append(x.mean(0) + spread * randn(generator, energy.n_features, dtype=torch.float64))
    return torch.stack(points)


def find_lost_modes(
    energy: Energy, x: Tensor, log_evidence: float, modes: list[Mode], n_climbs: int, n_moves: int, generator
) -> tuple[Tensor, float, int]:
    """Particles with those of modes that they had lost, by evidence.

    Climbs from particles, from the best of them and from near and far around them end at modes. Where Laplace's
    approximation gives one a share of the mass that the particles do not have near it, a tempered run from there says
    how much there is, and the particles are shared out anew.

    Parameters
    ----------
    energy : Energy
        The density.
    x : Tensor
        Particles (n, d) in unconstrained coordinates.
    log_evidence : float
        Their estimate of log Z.
    modes : list of Mode
        Modes that are known already.
    n_climbs : int
        How many climbs may be tried, and four times as many from far around.
    n_moves : int
        Moves at a temperature of such a run.
    generator : torch.Generator
        Source of randomness.

    Returns
    -------
    x : Tensor
        Particles (n, d).
    log_evidence : float
        The estimate with the modes that were added.
    n_found : int
        How many were added.
    """
    found = 0
    points = torch.cat(
        [_points_around(energy, x, n_climbs, generator), _far_around(x, len(WIDE_STARTS) * n_climbs, generator)]
    )
    for mode in [*modes, *climbs_from(energy, points, modes)]:
        if mode.log_mass < log_evidence + math.log(MIN_SHARE):
            continue
        near = near_to(mode, x)
        share = min(1.0, math.exp(mode.log_mass - log_evidence))
        if float(near.double().mean()) >= COVERED * share:
            continue
        merged = _weigh(energy, mode, x, near, log_evidence, n_moves, generator)
        if merged is not None:
            (x, log_evidence), found = merged, found + 1
    return x, log_evidence, found


def _weigh(energy: Energy, mode: Mode, x: Tensor, near: Tensor, log_evidence: float, n_moves: int, generator):
    """Particles and log evidence with the mode, by a run from its Gaussian; None if it has no more than they know."""
    target = StandardizedTarget(energy, mode.standardization)
    run = temper(target, RUN_PARTICLES, WIDENING, n_moves, generator)
    if run.log_evidence == -math.inf:
        return None
    inside = run.z.square().sum(1) <= radius_squared(x.shape[1])
    mass = math.exp(min(run.log_evidence - log_evidence, 700.0)) * float(inside.double().mean())
    known = float(near.double().mean())
    n = len(x)
    if mass < MIN_SHARE or mass < CLEAR_FACTOR * known or (mass - known) * n / (1 + mass) < MIN_COUNT:
        return None
    rest = x[~near]
    n_new = n if not len(rest) else round(n * mass / (1 - known + mass))
    new = mode.standardization(run.z[inside])
    new = new[torch.arange(n_new, device=x.device) % len(new)]
    kept = rest[randperm(generator, len(rest))[: n - n_new]]
    if len(kept) < n - n_new:
        kept = rest[torch.arange(n - n_new, device=x.device) % len(rest)]
    total = log_evidence + math.log(1 - known + mass)
    return torch.cat([new, kept])[randperm(generator, n)], total


def _points_around(energy: Energy, x: Tensor, n: int, generator) -> Tensor:
    """Particles, the best of them, and points around them, (n, d)."""
    log_prob = energy.log_prob(x[: 50 * n])
    best = x[log_prob.argsort(descending=True)[: n // 4]]
    some = x[randperm(generator, len(x))[: n // 2]]
    n_far = n - len(best) - len(some)
    far = x.mean(0) + FAR_STARTS * x.std(0) * randn(generator, n_far, x.shape[1], dtype=torch.float64)
    return torch.cat([best, some, far])


def _far_around(x: Tensor, n: int, generator) -> Tensor:
    """Points (n, d) around particles, at several distances."""
    widths = torch.tensor(WIDE_STARTS, dtype=torch.float64, device=CPU).to(x.device)
    widths = widths[torch.arange(n, device=x.device) % len(widths), None]
    return x.mean(0) + widths * x.std(0) * randn(generator, n, x.shape[1], dtype=torch.float64)


def radius_squared(d: int) -> float:
    """Squared radius within which nearly all of N(0, I) is."""
    return d + 3 * math.sqrt(2 * d)


def near_to(mode: Mode, x: Tensor) -> Tensor:
    """Which of the points (n, d) are where nearly all of a mode's Gaussian approximation is, (n,)."""
    return mode.standardization.inverse(x).square().sum(1) <= radius_squared(x.shape[1])


def _same(mode: Mode, other: Mode) -> bool:
    return any(float(a.standardization.inverse(b.x[None]).norm()) < NEAR for a, b in ((mode, other), (other, mode)))
