"""The pilot: finds where the density is before any network is trained, by climbs and tempered Monte Carlo runs."""

__all__ = ["run_pilot"]

import contextlib
import math
import time

import torch
from torch import Tensor

from .._support.devices import generator_on, randn, to_numpy
from .._support.errors import Spent
from ..density.energy import Energy
from ..density.standardize import Standardization, StandardizedTarget
from ..train.budget import Budget
from .adaptive import explore
from .climb import Mode
from .laplace import laplace_standardization
from .modes import CLIMBS, FEW_CLIMBS, climbs_from, find_lost_modes, starting_points, survey
from .propriety import FEW_EVALS, check_directions, check_mass, first_look
from .race import MAX_RAISED, Entrant, Race
from .result import PilotResult
from .smc import FULL_COVARIANCE_MAX, moments
from .start import Start
from .store import Store, log_evidence, n_effective
from .tempered_run import GROWTH_MOVES, INFLATION, TemperedRun, heavy_tails, standardize

MOVES = {True: 10, False: 30}  # a temperature, with and without gradient
RACE_MOVES = 3  # at least
TIME_SHARE, EVALS_SHARE = 0.4, 0.6  # of the limits of a fit
FEW_EVALS_LEFT = 300_000  # with fewer, points are weighed and all kept (unmeasured, like the shares)
FRUGAL_TIME_SHARE, FRUGAL_EVALS_SHARE = 0.6, 0.9  # of the limits of a fit, then
FEWEST_EXPLORED = 500  # evaluations with which that is worth while
MOST_FEATURES_EXPLORED = 64  # in which mixtures and maps can be fitted to thousands of points
CHECKED_SHARE = 0.05  # of the evaluations left, kept for a look at whether the density is one
FEWEST_EFFECTIVE = 50  # points that particles are taken from, if need be by tempered weights
SURVEY_SHARE, MOST_CLIMBS = 0.15, 200  # of the evaluations left, for climbs of an exploration
CLIMB_SHARE = 0.1  # of the evaluations that the pilot may make, for climbs before the race, and after the last run
RACE_SHARE = 0.4  # of those left, for the race
RUN_SHARE = 0.5  # of those left after it, for the run with all particles; the rest makes more of them
OVERHEAD = 0.3  # rate of evaluations in runs, in units of that of the energy by itself, before it is measured
CLEAR_GAIN = 0.05  # nats of log Z by which a run with tamed tails has found what one without missed
MAX_TAMED_RUNS = 3
HIGH_INFLATION = 1.1  # in place of `INFLATION` around Laplace's approximation
LAPLACE_TEMPERATURES = 18  # of a run from there, as measured once on a log-Gaussian Cox process in 1600 dimensions
CLIMBS_BEFORE = 8  # climbs before the race
MANY_FEATURES, CLIMBS_THERE = 50, 2  # above which a climb costs hundreds of evaluations, and fewer are made
GAUGED_ROWS, GAUGED_SECONDS = (16, 1024), 0.05  # of calls that measure the rate, and of one after which none is larger
MIN_AFFORDABLE = 50  # particles of a run, however few evaluations are allowed
MAX_NUMBERS, MIN_PARTICLES = 5_000_000, 2000  # held by the draws of high dimension; particles moved there at least


def run_pilot(
    energy: Energy, n_particles: int, generator, budget: Budget | None = None, start: Start | None = None,
    store: Store | None = None,
) -> tuple[PilotResult, Tensor]:  # fmt: skip
    """Find location, scale and particles of a density from its energy alone.

    A first look refuses what is no density. Climbs from several points find modes and their scales. Short tempered
    runs from these and from Gaussians of scales 1 to 100 race; the run with all particles starts from a Gaussian twice
    as wide as the winner's particles. Where it ends with heavy tails it is repeated with these tamed (see
    `Standardization`), and the repetition kept if it finds more of the density, or as much of a smoother one. Climbs
    from its particles look for modes that were lost on the way, which are added by their evidence.

    Where coordinates have a single bound, the race is run again with the scales of the bijection from the first. So it
    is where coordinates are periodic, with their seams where the particles of the first are sparsest.

    Where few evaluations are allowed, and a store is given, there is no race and no tempering: points from adapted
    proposals are weighed (see `explore`), and particles resampled from these.

    In more than `FULL_COVARIANCE_MAX` dimensions, with a gradient, one run starts from Laplace's approximation.

    Parameters
    ----------
    energy : Energy
        The density; the scales and seams of its bounds are set.
    n_particles : int
        Number of particles of the final run; at most `MAX_NUMBERS` / d of them from Laplace's approximation.
    generator : torch.Generator
        Source of randomness.
    budget : Budget, optional
        Limits of the fit, of which the pilot takes a share: by fewer particles, fewer starting scales and no
        repetitions, and at the latest by ending with what it has. Ctrl-C does the same and is noted there.
    start : Start, optional
        Where the user says to begin.
    store : Store, optional
        Allows for an exploration by few evaluations, which it keeps; its ``chosen`` are the rows that particles are of.

    Returns
    -------
    result : PilotResult
        What was found.
    x : Tensor
        Particles (n, d) that approximate the target, in unconstrained coordinates.

    Raises
    ------
    InvalidEnergyError
        When no point with positive density was found, or the density seems to have infinite mass.
    KeyboardInterrupt
        When the user interrupts before there is a particle.
    """
    budget = Budget(None, None, energy) if budget is None else budget
    pilot = _Pilot(energy, n_particles, generator, budget, start)
    if store is not None and pilot.is_frugal():
        pilot.time_share, pilot.evals_share = FRUGAL_TIME_SHARE, FRUGAL_EVALS_SHARE
        with budget.part(pilot.time_share, pilot.evals_share):
            found = pilot.explore(store)
        if found is not None:
            return found
        pilot.time_share, pilot.evals_share = TIME_SHARE, EVALS_SHARE
    with budget.part(pilot.time_share, pilot.evals_share):
        return pilot.run()


class _Pilot:
    """One run of the pilot: its steps, and what they leave for each other."""

    def __init__(self, energy: Energy, n_particles: int, generator, budget: Budget, start: Start | None):
        self.energy, self.n_particles, self.generator = energy, n_particles, generator
        self.budget, self.start, self.n_moves = budget, start, MOVES[energy.has_gradient]
        self.begun, self.clock = energy.n_energy_evals, time.perf_counter()
        self.rate: float | None = None  # measured in the race
        self.modes: list[Mode] = []
        self.time_share, self.evals_share = TIME_SHARE, EVALS_SHARE

    def left(self) -> float:
        """Evaluations that the pilot can still make within its shares of the limits."""
        budget, left = self.budget, math.inf
        if budget.max_energy_evals is not None:
            share = self.evals_share * (budget.max_energy_evals - budget.evals_reserve)
            left = max(0.0, share - self.energy.n_energy_evals)
        if budget.max_time is not None:
            rate = OVERHEAD * self.energy.evals_per_second if self.rate is None else self.rate
            left = min(left, rate * budget.seconds_left(self.time_share))
        return left

    def run(self) -> tuple[PilotResult, Tensor]:
        self.budget.progress.phase("first look")
        try:
            self._gauge()
            first_look(self.energy, self.generator, few=self.left() < FEW_EVALS)
        except Spent:
            pass
        if self.energy.n_features > FULL_COVARIANCE_MAX and self.energy.has_gradient:
            found = self._in_high_dimension()
            if found is not None:
                return found
        if self.energy.n_features <= FULL_COVARIANCE_MAX:
            self._climb()
        winner, stopped = self._race()
        if stopped is not None:
            return self._end_with(winner, stopped)
        run = self._final_run(winner)
        if run.stopped is not None:
            return self._end_with(winner, run.stopped)
        try:
            run = self._tame(run)
            check_mass(run.x, run.standardization, self.energy.bounds)
            check_directions(run.x, moments(run.x), run.target)
            self._look_for_lost_modes(run)
            run.grow(int(min(self.n_particles, self.left() / (1 + GROWTH_MOVES * self.n_moves))))
        except (Spent, KeyboardInterrupt) as ended:
            self._note(ended)
        return run.result(standardize(run.x, run.tails), winner.scale), run.x

    # ---------------------------------------------------------------- by few evaluations

    def is_frugal(self) -> bool:
        """Whether evaluations are few, and enough for points to be weighed."""
        limited = self.budget.max_energy_evals is not None and self.energy.n_features <= MOST_FEATURES_EXPLORED
        return limited and FEWEST_EXPLORED <= self.left() <= FEW_EVALS_LEFT

    def explore(self, store: Store) -> tuple[PilotResult, Tensor] | None:
        """Particles from an exploration whose evaluations are all kept, or None where it found too little."""
        energy, budget, generator = self.energy, self.budget, self.generator
        budget.progress.phase("first look")
        with contextlib.suppress(Spent):
            first_look(energy, generator, few=self.left() < FEW_EVALS)
        budget.progress.phase("climbs")
        with self._share(SURVEY_SHARE):
            points = None if self.start is None else self.start.points
            self.modes = survey(energy, generator, MOST_CLIMBS) if points is None else climbs_from(energy, points[:10])
            self._cut_between_modes()
        budget.progress.phase("exploration")

        def ended():
            return budget.seconds_left(self.time_share) <= 0

        kept = CHECKED_SHARE * self.left()

        def left():
            return self.left() - kept

        gaussian = None if self.start is None else self.start.gaussian
        stopped = explore(energy, store, self.modes, generator, left, ended, budget.progress, gaussian)
        log_weights = store.log_weights()
        if n_effective(log_weights) == 0:
            if isinstance(stopped, KeyboardInterrupt):
                raise stopped
            store.clear()
            return None
        if stopped is not None:
            self._note(stopped)
        store.chosen = store.particles(min(self.n_particles, 2 * len(store)), generator, FEWEST_EFFECTIVE)
        x = store.x[store.chosen]
        tails = heavy_tails(x)
        identity = x.new_zeros(x.shape[1]), torch.full_like(x[0], torch.inf)
        found = standardize(x, identity if tails is None else tails)
        check_mass(x, found, energy.bounds)
        target = StandardizedTarget(energy, found, energy.fast_dtype)
        check_directions(x, moments(x), target, kept)
        loc, covariance, center, width = (to_numpy(t) for t in (found.loc, found.covariance, found.center, found.width))
        scale = float(found.matrix.diagonal().mean())
        return PilotResult(log_evidence(log_weights), scale, loc, covariance, center, width, len(store.proposals)), x

    def _cut_between_modes(self) -> None:
        """Seams of periodic coordinates far from the modes, which are climbed to again in the new coordinates.

        Where the user says to begin, they are far from there already.
        """
        bounds = self.energy.bounds
        if bounds is None or not bounds.periodic.any() or not self.modes or self.start is not None:
            return
        x = bounds(torch.stack([mode.x for mode in self.modes]))
        self.energy.bounds = bounds.cut_open(x)
        self.modes = climbs_from(self.energy, self.energy.bounds.inverse(x))

    # ---------------------------------------------------------------- the steps

    def _gauge(self) -> None:
        """Measure the rate of evaluations in large calls, if there is a limit of time to plan for."""
        if self.budget.max_time is None:
            return
        generator, rows = generator_on(self.generator.device, 0), GAUGED_ROWS[0]
        while rows <= GAUGED_ROWS[1] and 10 * rows < (self.budget.max_energy_evals or math.inf):
            start = time.perf_counter()
            self.energy.log_prob(randn(generator, rows, self.energy.n_features, dtype=torch.float64))
            if time.perf_counter() - start > GAUGED_SECONDS:
                return
            rows *= 4

    def _climb(self) -> None:
        """Modes that climbs from near and far, or from where the user says, end at."""
        n = CLIMBS_BEFORE if self.energy.n_features <= MANY_FEATURES else CLIMBS_THERE
        if self.start is None:
            points = starting_points(self.energy, self.generator, n)
        else:
            points = self.start.points[:n]
        self.budget.progress.phase("climbs")
        self.modes = self._climbs(points)

    def _climbs(self, points: Tensor) -> list[Mode]:
        """Climbs within a small share of the limits."""
        with self._share(CLIMB_SHARE):
            return climbs_from(self.energy, points)

    def _share(self, share: float):
        """A part of the limits: a share of what the pilot has left."""
        budget, n_evals = self.budget, share * self.left()
        evals = math.inf if budget.max_energy_evals is None else budget.max_energy_evals - budget.evals_reserve
        seconds = math.inf if budget.max_time is None else budget.max_time - budget.time_reserve
        return budget.part(
            (budget.elapsed() + share * self.time_share * seconds) / seconds if math.isfinite(seconds) else 1.0,
            (self.energy.n_energy_evals + n_evals) / evals if math.isfinite(evals) else 1.0,
        )

    def _race(self) -> tuple[Entrant, BaseException | None]:
        self.budget.progress.phase("race of starting scales")
        winner, stopped = self._race_once(self.start)
        bounds = self.energy.bounds
        if bounds is None or not bounds.adapts or stopped is not None:
            return winner, stopped
        inside = bounds(winner.x)
        self.energy.bounds, self.modes = bounds.centred(winner.x), []
        winner.x = self.energy.bounds.inverse(inside)
        again, stopped = self._race_once(None)
        return (again if stopped is None or again.log_evidence > -math.inf else winner), stopped

    def _race_once(self, start: Start | None) -> tuple[Entrant, BaseException | None]:
        self.race_moves = max(RACE_MOVES, self.n_moves // 3)
        race = Race(self.energy, self.race_moves, RACE_SHARE * self.left(), self.generator, self.budget)
        winner = race.run(start, self.modes)
        self.rate = race.evals_per_second
        return winner, race.stopped

    def _final_run(self, winner: Entrant) -> "TemperedRun":
        self.budget.progress.phase("tempering")
        affordable = RUN_SHARE * self.left() / (winner.cost * (1 + self.n_moves) / (1 + self.race_moves))
        n = int(min(self.n_particles, max(MIN_AFFORDABLE, affordable)))
        standardization = Standardization.from_moments(*moments(winner.x))
        return TemperedRun(
            self.energy, standardization, n, self.n_moves, self.generator, INFLATION, self.budget.progress
        )

    def _tame(self, run: "TemperedRun") -> "TemperedRun":
        """The run, or a repetition with tamed tails that found more, or as much of a smoother density."""
        for _ in range(MAX_TAMED_RUNS):
            tails = heavy_tails(run.x)
            if tails is None or run.n_evals > self.left():
                break
            tamed = TemperedRun(
                self.energy, standardize(run.x, tails), len(run.x), self.n_moves, self.generator, INFLATION,
                self.budget.progress, MAX_RAISED,
            )  # fmt: skip
            if tamed.stopped is not None:
                self._note(tamed.stopped)
                break
            gain = tamed.log_evidence - run.log_evidence
            if gain < -CLEAR_GAIN or (gain < CLEAR_GAIN and tamed.smoothness() < run.smoothness()):
                break
            run = tamed
            if gain < CLEAR_GAIN:
                break
        return run

    def _look_for_lost_modes(self, run: "TemperedRun") -> None:
        if self.energy.n_features > FULL_COVARIANCE_MAX:
            return
        n = CLIMBS if self.energy.n_features <= MANY_FEATURES else CLIMBS_THERE
        if self.left() < 200 * n * self.energy.n_features:
            n = FEW_CLIMBS
        self.budget.progress.phase("lost modes")
        run.x, run.log_evidence, n_found = find_lost_modes(
            self.energy, run.x, run.log_evidence, self.modes, n, self.n_moves, self.generator
        )
        if n_found:
            run.settle()

    # ---------------------------------------------------------------- ends

    def _note(self, stopped: BaseException) -> None:
        self.budget.interrupted |= isinstance(stopped, KeyboardInterrupt)

    def _end_with(self, winner: Entrant, stopped: BaseException) -> tuple[PilotResult, Tensor]:
        """The race's particles, where the run with all of them was not to be had."""
        if isinstance(stopped, KeyboardInterrupt) and not winner.usable:
            raise stopped
        self._note(stopped)
        x = winner.x[winner.x.isfinite().all(1)]
        found = Standardization.from_moments(*moments(x))
        loc, covariance, center, width = (to_numpy(t) for t in (found.loc, found.covariance, found.center, found.width))
        log_evidence = winner.log_evidence if winner.log_evidence > -math.inf else math.nan
        return PilotResult(log_evidence, winner.scale, loc, covariance, center, width, 0), x

    def _in_high_dimension(self) -> tuple[PilotResult, Tensor] | None:
        """A run from Laplace's approximation at the mode found from the origin, or None where there is none.

        Particles of short runs say too little about a covariance in hundreds of dimensions, and tempering from afar
        takes hundreds of temperatures. Other modes are found only by luck.
        """
        self.budget.progress.phase("Laplace's approximation")
        energy = self.energy
        standardization = laplace_standardization(energy, None if self.start is None else self.start.points[0])
        bounds = energy.bounds
        if standardization is not None and bounds is not None and bounds.periodic.any():
            mode = bounds(standardization.loc[None])
            energy.bounds = bounds.cut_open(mode)
            standardization = laplace_standardization(energy, energy.bounds.inverse(mode)[0])
        if standardization is None:
            energy.bounds = bounds
            return None
        n_particles = min(self.n_particles, max(MIN_PARTICLES, MAX_NUMBERS // energy.n_features))
        affordable = self.left() / (LAPLACE_TEMPERATURES * (1 + self.n_moves))
        n_particles = int(min(n_particles, max(MIN_AFFORDABLE, affordable)))
        self.budget.progress.phase("tempering")
        run = TemperedRun(
            energy, standardization, n_particles, self.n_moves, self.generator, HIGH_INFLATION, self.budget.progress
        )  # fmt: skip
        try:
            if run.stopped is not None:
                raise run.stopped
            check_directions(run.x, moments(run.x), run.target)
        except (Spent, KeyboardInterrupt) as stopped:
            self._note(stopped)
        return run.result(standardization, float(standardization.scale.diagonal().mean())), run.x
