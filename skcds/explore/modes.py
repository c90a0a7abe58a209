"""Modes that the pilot's particles have lost, spikes above all: found by climbs, weighed by runs of their own."""

__all__ = [
    "Search",
    "Surveyed",
    "climbs_from",
    "find_lost_modes",
    "near_to",
    "radius_squared",
    "starting_points",
    "survey",
]

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .._support.devices import randn, randperm
from .._support.errors import Spent
from .._support.settings import CPU
from ..density.energy import Energy
from ..density.standardize import StandardizedTarget
from ..train.particles import spread_index
from .climb import NEAR, Mode, climb
from .descent import descend
from .few_evaluations import Survey
from .mode_stages import Climbs, LostModes
from .smc import Tempered, temper
from .stages import Tempering

LIKELY = 0.05  # chance of a mode that is not known yet, from which on modes may be missing


@dataclass(frozen=True)
class Search:
    """What a search for lost modes has come to.

    Attributes
    ----------
    x : Tensor
        Particles (n, d).
    log_evidence : float
        The estimate with the modes that were added.
    n_found : int
        How many were added.
    modes : list of Mode
        All that are known now.
    stopped : KeyboardInterrupt or None
        With what the user ended it.
    """

    x: Tensor
    log_evidence: float
    n_found: int
    modes: list[Mode]
    stopped: KeyboardInterrupt | None = None


def starting_points(energy: Energy, generator: torch.Generator, n: int, by: Climbs | None = None) -> Tensor:
    """Points (n, d) to climb from: near and far from the origin, some of the support, and the best of those known."""
    distances = (Climbs() if by is None else by).scales
    scales = torch.tensor(distances, dtype=torch.float64, device=CPU).to(energy.device)
    z = randn(generator, n, energy.n_features, dtype=torch.float64)
    points = scales[torch.arange(n, device=energy.device) % len(scales), None] * z
    rows = min(len(energy.valid), max(n // 2, 1))
    points[n - rows :] = energy.valid[:rows]
    if energy.known is not None:
        best = energy.known.points(energy, n // 2)
        points[: len(best)] = best
    return points


def climbs_from(energy: Energy, points: Tensor, known: Sequence[Mode] = (), by: Climbs | None = None) -> list[Mode]:
    """Distinct modes that climbs from points (n, d) end at; fewer where a limit is reached.

    Where there is a gradient, batches of points descend together, and only ends at which no mode is known yet are
    looked at one by one.
    """
    by = Climbs() if by is None else by
    modes: list[Mode] = []
    for batch in points.split(by.batch_size):
        try:
            ends = descend(energy, batch, by.max_steps) if energy.has_gradient and len(batch) > 1 else batch
            for end in ends:
                if not any(mode.is_near(end) for mode in (*known, *modes)):
                    mode = climb(energy, end, (*known, *modes), by)
                    if mode is not None and not any(_same(mode, other) for other in (*known, *modes)):
                        modes.append(mode)
        except Spent:
            break
    return modes


@dataclass(frozen=True)
class Surveyed:
    """What a survey has come to.

    Attributes
    ----------
    modes : list of Mode
        Distinct modes.
    n_climbs : int
        Climbs that it made.
    """

    modes: list[Mode]
    n_climbs: int

    @property
    def chance_of_another(self) -> float:
        """Estimated chance that another climb would end at a new mode (Boender & Rinnooy Kan 1987); 0 without modes."""
        w, n = len(self.modes), self.n_climbs
        return min(1.0, w * (w + 1) / max(n * (n - 1), 1))


def survey(energy: Energy, generator, by: Survey | None = None, climbs: Climbs | None = None) -> Surveyed:
    """Distinct modes that climbs end at, from points of many scales, around the origin and around modes found so far.

    Where all end at one mode, there are few. Where there are several, they go on until the estimated chance that the
    next climb ends at a new one is tiny. It is for climbs that end at all modes alike, and broad modes draw nearly all
    of them.
    """
    by, climbs = Survey() if by is None else by, Climbs() if climbs is None else climbs
    modes: list[Mode] = []
    n = 0
    while n < by.n_climbs and not _surveyed_enough(n, modes, by):
        before, numbers = energy.n_energy_evals, range(n, n + climbs.batch_size)
        modes += climbs_from(energy, _surveyed(energy, modes, numbers, by, generator), modes, climbs)
        n += climbs.batch_size
        if energy.n_energy_evals == before:  # nothing more is allowed
            break
    return Surveyed(modes, n)


def _surveyed_enough(n: int, modes: list[Mode], by: Survey) -> bool:
    if len(modes) < 2:
        return n >= (by.fewest_climbs if modes else 1)
    return Surveyed(modes, n).chance_of_another <= by.chance_of_another


def _surveyed(energy: Energy, modes: list[Mode], numbers: range, by: Survey, generator) -> Tensor:
    """Points (n, d) that the climbs of n numbers start from."""
    points, distances = [], by.distances
    for k in numbers:
        around = bool(modes) and k % (by.from_origin if len(modes) > 1 else 2) != 0
        x = torch.stack([mode.x for mode in modes]) if around else energy.valid.new_zeros(1, energy.n_features)
        width = by.widths[k // len(distances) % len(by.widths)]
        spread = distances[k // (1 + bool(modes)) % len(distances)] + width * x.std(0, unbiased=False)
        points.append(x.mean(0) + spread * randn(generator, energy.n_features, dtype=torch.float64))
    return torch.stack(points)


def find_lost_modes(
    energy: Energy, x: Tensor, log_evidence: float, modes: list[Mode], n_climbs: int, n_moves: int, generator,
    by: LostModes | None = None, climbs: Climbs | None = None, tempering: Tempering | None = None,
) -> Search:  # fmt: skip
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
        How many climbs may be tried, and four times as many from far around. If these are as many as `climbs` says,
        further ones go on until another mode is unlikely.
    n_moves : int
        Moves at a temperature of such a run.
    generator : torch.Generator
        Source of randomness.
    by : LostModes, optional
        Which modes are added.
    climbs : Climbs, optional
        Where climbs start from, and how they go.
    tempering : Tempering, optional
        How the runs go.

    Returns
    -------
    Search
        The particles, and what was found. It ends with what it has where a limit is reached, or the user wants it.
    """
    by, climbs = LostModes() if by is None else by, Climbs() if climbs is None else climbs
    found = 0
    try:
        around = _points_around(energy, x, n_climbs, climbs.far, generator)
    except Spent:
        return Search(x, log_evidence, 0, modes)
    points = torch.cat([around, _far_around(x, len(climbs.wide) * n_climbs, climbs.wide, generator)])
    listed = energy.n_features <= climbs.listed_features
    if not listed:
        known = len(modes)
        modes = [*modes, *climbs_from(energy, around, modes, climbs)]
        listed, points = len(modes) - known <= climbs.too_many * len(around), points[len(around) :]
    if listed:
        modes = [*modes, *climbs_from(energy, points, modes, climbs)]
    if listed and energy.has_gradient and n_climbs >= climbs.n_after:
        modes += _climb_further(energy, x, modes, len(points), climbs, generator)
    for mode in modes:
        if mode.log_mass < log_evidence + math.log(by.min_share):
            continue
        near = near_to(mode, x)
        share = min(1.0, math.exp(mode.log_mass - log_evidence))
        if float(near.double().mean()) >= by.covered * share:
            continue
        run = _run_from(energy, mode, n_moves, generator, by, tempering)
        merged = _weigh(mode, run, x, near, log_evidence, by, generator)
        if merged is not None:
            (x, log_evidence), found = merged, found + 1
        if run.stopped is not None:
            stopped = run.stopped if isinstance(run.stopped, KeyboardInterrupt) else None
            return Search(x, log_evidence, found, modes, stopped)
    return Search(x, log_evidence, found, modes)


def _climb_further(energy: Energy, x: Tensor, modes: list[Mode], n: int, by: Climbs, generator) -> list[Mode]:
    """Other modes, by climbs from around particles, after n climbs, until another mode is unlikely, or all are new.

    Half of them start from around the modes that are known: particles may have lost most of these.
    """
    found: list[Mode] = []
    many = by.set_params(batch_size=by.further_at_once)
    for k in range(0, by.n_further, many.batch_size):
        known = [*modes, *found]
        if Surveyed(known, n).chance_of_another <= by.chance_of_another:
            break
        around = torch.stack([mode.x for mode in known]) if len(known) > 1 and k // many.batch_size % 2 else x
        new = climbs_from(energy, _far_around(around, many.batch_size, by.wide, generator), known, many)
        found += new
        n += many.batch_size
        if len(new) > by.too_many * many.batch_size:
            break
    return found


def _run_from(energy: Energy, mode: Mode, n_moves: int, generator, by: LostModes, tempering: Tempering | None):
    """A run from the Gaussian of a mode."""
    target = StandardizedTarget(energy, mode.standardization)
    return temper(target, by.n_particles, by.inflation, n_moves, generator, by=tempering)


def _weigh(mode: Mode, run: Tempered, x: Tensor, near: Tensor, log_evidence: float, by: LostModes, generator):
    """Particles and log evidence with the mode that a run started from; None if it has no more than they know."""
    if run.log_evidence == -math.inf:
        return None
    inside = run.z.square().sum(1) <= radius_squared(x.shape[1])
    mass = math.exp(min(run.log_evidence - log_evidence, 700.0)) * float(inside.double().mean())
    known = float(near.double().mean())
    n = len(x)
    if mass < by.min_share or mass < by.clear_factor * known or (mass - known) * n / (1 + mass) < by.min_count:
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


def _points_around(energy: Energy, x: Tensor, n: int, width: float, generator) -> Tensor:
    """Particles, the best of them, and points around them, (n, d)."""
    tried = x[spread_index(len(x), min(50 * n, len(x)), x.device)]
    best = tried[energy.log_prob(tried).argsort(descending=True)[: n // 4]]
    some = x[randperm(generator, len(x))[: n // 2]]
    n_far = n - len(best) - len(some)
    far = x.mean(0) + width * x.std(0) * randn(generator, n_far, x.shape[1], dtype=torch.float64)
    return torch.cat([best, some, far])


def _far_around(x: Tensor, n: int, wide: tuple[float, ...], generator) -> Tensor:
    """Points (n, d) around particles, at several distances."""
    widths = torch.tensor(wide, dtype=torch.float64, device=CPU).to(x.device)
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
