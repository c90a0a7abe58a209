"""A race of short tempered runs from Gaussians of several widths and places: the one that finds most wins."""

__all__ = ["Entrant", "Race"]

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .._support.errors import InvalidEnergyError, Spent
from .._support.warnings import warn_user
from ..density.energy import Energy, example_of
from ..density.rounding import find_cut, rounding_noise
from ..density.standardize import Standardization, StandardizedTarget
from ..train.budget import Budget
from ..train.particles import Population
from . import stages
from .climb import Mode
from .smc import TemperedTarget, moments, temper
from .start import Start

MAX_SCALE, MIN_SCALE = 1e7, 1e-7
NOISE_ROWS, FEW_NOISE_ROWS = 64, 8  # particles at which rounding is looked for, half of them those of largest density
LARGEST_NOISE = 1.0  # nats that the energy may jump by between neighbouring points
MAX_RAISED = 0.1  # of a run's first particles, at which the function may raise: every one of them costs calls
FIRST_STEP = 1e-3  # of moves from points of the support, in units of ten times their spread, or about one


@dataclass(eq=False)
class Entrant:
    """A short run.

    Attributes
    ----------
    scale : float
        Standard deviation of the Gaussian that it started from; of one around a mode, the geometric mean.
    x : Tensor
        Its particles (n, d) in unconstrained coordinates.
    log_evidence : float
        Its estimate of log Z; ``-inf`` where it found nothing or was not finished.
    cost : float
        Evaluations for each particle.
    widest : bool
        Whether wider Gaussians at the same place may be tried.
    usable : bool
        Whether the particles have seen the density, if only at a high temperature.
    broad : bool
        Whether it started from a Gaussian around the origin.
    """

    scale: float
    x: Tensor
    log_evidence: float
    cost: float
    widest: bool = False
    usable: bool = True
    broad: bool = False


class Race:
    """Short tempered runs from 1 to 100 times N(0, I), from modes that were climbed to, or from where the user says.

    Too narrow a start misses mass, too wide a one loses it on the way; the run with the largest log Z wins. Runs whose
    particles are where the energy is mere rounding do not count.

    Parameters
    ----------
    energy : Energy
        The density.
    n_moves : int
        Moves at a temperature.
    limit : float
        Evaluations after which no other scale is tried, but the first two are.
    generator : torch.Generator
        Source of randomness.
    budget : Budget
        Its progress display is told.
    by : stages.Race, optional
        How many runs there are, and from where.
    tempering : stages.Tempering, optional
        How a run goes.

    Attributes
    ----------
    runs : list of Entrant
        What has run.
    stopped : BaseException or None
        What ended the race early.
    evals_per_second : float
        Rate of evaluations over the whole race.
    """

    def __init__(
        self, energy: Energy, n_moves: int, limit: float, generator, budget: Budget,
        by: stages.Race | None = None, tempering: stages.Tempering | None = None,
    ):  # fmt: skip
        self.by = by = stages.Race() if by is None else by
        self.tempering = stages.Tempering() if tempering is None else tempering
        self.energy, self.n_moves, self.limit, self.generator, self.budget = energy, n_moves, limit, generator, budget
        self.n_particles = int(min(by.n_particles, max(by.fewest_particles, limit / by.evals_a_particle)))
        self.min_hits = min(by.min_hits, max(2, self.n_particles // 10))
        self.start, self.clock = energy.n_energy_evals, time.perf_counter()
        self.identity = Standardization(energy.n_features, full=False).to(energy.device)
        self.runs: list[Entrant] = []
        self.stopped: BaseException | None = None
        self.max_raised = MAX_RAISED
        self.unsound: list[tuple[Tensor, float]] = []  # particles where the energy is rounding, and how much

    @property
    def spent(self) -> int:
        """Evaluations so far."""
        return self.energy.n_energy_evals - self.start

    @property
    def evals_per_second(self) -> float:
        """Rate of evaluations so far."""
        return self.spent / max(time.perf_counter() - self.clock, 1e-9)

    @property
    def best(self) -> Entrant:
        """The run with the largest log Z; of several without one, the first that has seen the density."""
        return max(self.runs, key=lambda run: (run.log_evidence, run.usable))

    def run(self, start: Start | None, modes: list[Mode]) -> Entrant:
        """Let the entrants run; the winner.

        Raises
        ------
        InvalidEnergyError
            When no run has found a point of positive density.
        """
        self._enter_modes(modes, self.limit if start is None else math.inf)
        if start is not None and start.gaussian is not None:
            for widening in self.by.inflations:
                self.enter(widening, start.gaussian)
        if start is None or (self.best_or_none is None and not self.stopped):
            self._enter_scales()
        if self.stopped is None and self.best.log_evidence == -math.inf:
            self._look_for_support(start)
        if self.stopped is None and self.best.log_evidence == -math.inf:
            raise InvalidEnergyError(
                "energy_fn was +inf or invalid at every point that the pilot tried, drawn from N(0, s^2 I) for s from "
                f"{MIN_SCALE:g} to {self.by.scales[-1]:g}, positive, ordered, in the simplex and in the unit cube; "
                "shift or scale the coordinates so that the density has mass near zero, or pass points of its support "
                "in start=."
            )
        return self.best

    @property
    def best_or_none(self) -> Entrant | None:
        """The best run that found anything."""
        return self.best if self.runs and self.best.log_evidence > -math.inf else None

    def pooled(self) -> Tensor:
        """Particles (n, d) of the winner, in many dimensions with those of the runs that found about as much.

        There a short run keeps but one of two modes in some coordinates, and which is chance: of several runs the log Z
        is largest where the heavier ones were kept.
        """
        x, d = self.best.x, self.energy.n_features
        if d <= self.by.one_winner or self.best.log_evidence == -math.inf:
            return x
        least = self.best.log_evidence - self.by.nats_a_feature * d
        return torch.cat([run.x for run in self.runs if run.usable and run.log_evidence >= least])

    def cost(self) -> float:
        """Evaluations that a particle of a run from the Gaussian of the pooled ones is expected to take."""
        if self.energy.n_features <= self.by.one_winner:
            return self.best.cost
        costs = [run.cost for run in self.runs if run.usable and run.broad]
        return self.by.cost_factor * min(costs, default=self.best.cost)

    def enter(
        self, scale: float, standardization: Standardization | None = None, n_particles: int | None = None
    ) -> None:
        """One run, from N(0, scale^2 I) in the coordinates of a standardisation."""
        if self.stopped is not None:
            return
        seen, standardization = self.spent, standardization or self.identity
        target = StandardizedTarget(self.energy, standardization, self.energy.fast_dtype)
        n = n_particles or self.n_particles
        found = temper(
            target, n, scale, self.n_moves, self.generator, self.min_hits, self.budget.progress, self.max_raised,
            self.by.max_temperatures if self.best_or_none is None else self.by.max_temperatures_beside, self.tempering,
        )  # fmt: skip
        self.stopped = found.stopped
        x = standardization(found.z)
        log_evidence = found.log_evidence
        try:
            if log_evidence > -math.inf and self.stopped is None and not self._is_sound(x):
                log_evidence = -math.inf
        except (Spent, KeyboardInterrupt) as stopped:
            self.stopped = stopped
        unit = 1.0 if standardization is self.identity else _geometric_mean(standardization)
        is_widest = standardization is self.identity and scale == max(self.by.scales)
        cost, usable = (self.spent - seen) / n, found.n_temperatures > 0
        broad = standardization is self.identity
        self.runs.append(Entrant(scale * unit, x, log_evidence, cost, is_widest, usable, broad))
        with self._stopping():
            self._cut_off()

    def _enter_modes(self, modes: list[Mode], limit: float) -> None:
        for mode in sorted(modes, key=lambda mode: -mode.log_mass)[: self.by.n_modes]:
            if self.spent < limit:
                self.enter(self.by.inflations[-1] if self.energy.n_features <= 10 else 1.5, mode.standardization)

    def _enter_scales(self) -> None:
        from_modes = self.best_or_none
        scales: list[Entrant] = []
        for scale in self.by.scales:
            if len(scales) < (2 if from_modes is None else 1) or self.spent < self.limit:
                self.enter(scale)
                scales.append(self.runs[-1])
        if self.stopped is not None:
            return
        if self.best.log_evidence == -math.inf and (self.n_particles < self.by.n_particles or self.energy.n_raised):
            self.n_particles, self.min_hits = (
                self.by.n_particles,
                self.by.min_hits,
            )  # without a hit a run costs one a particle
            self.max_raised = 1.0
            for scale in self.by.scales:
                self.enter(scale)
        self._widen()
        self._prefer_broad(from_modes)

    def _widen(self) -> None:
        """Go further out while the widest wins clearly."""
        while self.stopped is None and self.best.widest and self.best.scale < MAX_SCALE and self.spent < self.limit:
            widest = self.best
            others = [run.log_evidence for run in self.runs if run is not widest]
            if (
                not widest.log_evidence > self.by.clear_win + max(others, default=-math.inf)
                or widest.log_evidence == -math.inf
            ):
                return
            widest.widest = False
            self.enter(widest.scale * 10**0.5)
            self.runs[-1].widest = True

    def _prefer_broad(self, from_modes: Entrant | None) -> None:
        """A run from a mode has to win clearly over those from broad Gaussians, which see more of the space."""
        if from_modes is None:
            return
        broad = [run for run in self.runs if run not in self._of_modes(from_modes)]
        best = max(broad, key=lambda run: run.log_evidence, default=from_modes)
        if best is not from_modes and from_modes.log_evidence <= best.log_evidence + self.by.clear_win:
            for run in self._of_modes(from_modes):
                run.log_evidence = min(run.log_evidence, best.log_evidence - 1e-9)

    def _of_modes(self, from_modes: Entrant) -> list[Entrant]:
        return self.runs[: self.runs.index(from_modes) + 1]

    @contextlib.contextmanager
    def _stopping(self) -> Iterator[None]:
        """A limit or Ctrl-C inside the block ends the race with what there is."""
        try:
            yield
        except (Spent, KeyboardInterrupt) as stopped:
            self.stopped = stopped

    # ---------------------------------------------------------------- soundness, and support that Gaussians miss

    def _is_sound(self, x: Tensor) -> bool:
        """Whether the energy at particles (n, d) is more than rounding; single precision is given up if it is not."""
        few = self.limit < 20_000
        rows = FEW_NOISE_ROWS if few else NOISE_ROWS
        log_prob = self.energy.log_prob(x, self.energy.fast_dtype)
        top = x[log_prob.argsort(descending=True)[: rows // 2]]
        points = torch.cat([top, x[: rows // 2]])
        if not self.energy.check_fast_dtype(points):
            return False  # found in single precision alone; the next runs are in double
        noise = rounding_noise(self.energy, points, x.std(0), self.generator)
        if noise > LARGEST_NOISE:
            self.unsound.append((top, noise))
        return noise <= LARGEST_NOISE

    def _cut_off(self) -> None:
        """Leave out where the energy is rounding, seen from the particles of a sound run, and say so."""
        sound = self.best_or_none
        if sound is None or not self.unsound:
            return
        for bad, noise in self.unsound:
            cut = find_cut(self.energy, sound.x, bad, self.generator, LARGEST_NOISE)
            where = f"near x = {example_of(self._located(bad[:1])[0])}; what runs found there is left out"
            if cut is not None:
                j, threshold, above = cut
                where = f"where x[{j}] is {'above' if above else 'below'} {threshold:.4g}, which is left out"
                self.energy.cut(j, threshold, above)
            warn_user(
                f"energy_fn jumps by some {noise:.2g} nats between neighbouring points, by rounding, {where}. Keep the "
                "coordinates away from there by bounds= or a prior, compute the energy in a stabler way, or say where "
                "to begin by start=.",
                RuntimeWarning,
            )
        self.unsound = []

    def _located(self, x: Tensor) -> Tensor:
        return x if self.energy.bounds is None else self.energy.bounds(x)

    def _look_for_support(self, start: Start | None) -> None:
        """Runs from narrower Gaussians, and from around points of the support that were found in other ways."""
        scale = min(self.by.scales)
        while self.best.log_evidence == -math.inf and scale > MIN_SCALE and self.stopped is None:
            scale /= 10
            self.enter(scale)
        seeds = [seed for seed in (self.energy.valid, None if start is None else start.points) if seed is not None]
        points = torch.cat(seeds)
        if self.best.log_evidence == -math.inf and len(points) and self.stopped is None:
            with self._stopping():
                self._enter_support(points)

    def _enter_support(self, seeds: Tensor) -> None:
        """Runs from the Gaussian of particles that spread from points of the support while a flat density cools."""
        spread = 0.1 * seeds.abs().mean(0) + 1e-6
        spread = spread + 10 * seeds.std(0) if len(seeds) > 1 else spread + 1.0
        standardization = Standardization.from_moments(seeds.mean(0), spread**2)
        target = StandardizedTarget(self.energy, standardization)
        path = TemperedTarget(target, 1.0)
        z = standardization.inverse(seeds)[torch.arange(self.n_particles, device=seeds.device) % len(seeds)]
        step = FIRST_STEP
        for beta in self.by.annealing:
            path.beta = max(beta, 1e-9)
            for _ in range(10):
                before = path.standardization.inverse(z)
                population = Population(path, before, self.generator, step=min(step, 1.0), decades=2.0)
                population.move(self.n_moves)
                if torch.equal(population.x, before):  # no spread to go by: the support is narrower than the moves
                    loc, covariance = path.standardization.loc, path.standardization.covariance
                    path.standardization, step = Standardization.from_moments(loc, covariance / 100), FIRST_STEP
                else:
                    z, step = path.standardization(population.x), population.step
                    path.standardization = Standardization.from_moments(*moments(z, self.tempering.full_covariance))
        around = Standardization.from_moments(*moments(standardization(z), self.tempering.full_covariance))
        for widening in (1.0, 1.5):
            self.enter(widening, around)


def _geometric_mean(standardization: Standardization) -> float:
    diagonal = standardization.deviation
    return float(diagonal.log().mean().exp())
