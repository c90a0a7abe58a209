"""The pilot: finds where the density is before any network is trained, by climbs and tempered Monte Carlo runs."""

__all__ = ["run_pilot"]

import contextlib
import math
import time

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from .._support.devices import generator_on, randn
from .._support.errors import Spent
from .._support.warnings import warn_user
from ..density.energy import Energy
from ..density.standardize import Standardization, StandardizedTarget
from ..train.budget import Budget
from ..train.particles import systematic_index
from .adaptive import explore
from .balance import balance
from .centring import non_centred
from .climb import Mode
from .evaluations import N_CLIMBS
from .mixture import TMixture, log_weights_of
from .modes import LIKELY, climbs_from, find_lost_modes, starting_points, survey
from .nested_laplace import Along
from .one_mode import OneMode
from .propriety import FEW_EVALS, check_directions, check_mass, first_look
from .race import MAX_RAISED, Entrant, Race
from .result import PilotResult
from .rounds import final_weights
from .separate import along_principal_axes
from .smc import MANY_FEATURES, moments
from .specifications import Pilot
from .start import Start
from .store import Store, log_evidence, n_effective
from .tempered_run import (
    TemperedRun,
    better_fit,
    better_standardization,
    heavy_tails,
    newly_heavy,
    standardization_of,
    standardize,
)

LINES = 25  # evaluations for approximations and comparisons of coordinates, in units of the draws of one comparison
OVERHEAD = 0.3  # rate of evaluations in runs, in units of that of the energy by itself, before it is measured
GAUGED_ROWS, GAUGED_SECONDS = (16, 1024), 0.05  # of calls that measure the rate, and of one after which none is larger


def run_pilot(
    energy: Energy, n_particles: int, generator, budget: Budget | None = None, start: Start | None = None,
    store: Store | None = None, pilot: Pilot | None = None, own_draws: bool = False,
) -> tuple[PilotResult, Tensor]:  # fmt: skip
    """Find location, scale and particles of a density from its energy alone.

    A first look refuses what is no density. Climbs from several points find modes and their scales. Short tempered
    runs from these and from Gaussians of scales 1 to 100 race; the run with all particles starts from a Gaussian twice
    as wide as the winner's particles. Where it ends with heavy tails it is repeated with these tamed (see
    `Standardization`), and the repetition kept if it finds more of the density, or if its particles look more Gaussian.
    Climbs from its particles look for modes that were lost on the way, which are added by their evidence. Regions of
    the particles get the masses that importance sampling tells, necks of funnels too (`balance`). Where the scale or
    the place of coordinates depends on one of them, what follows is in non-centred coordinates (`non_centred`). In more
    than 20 dimensions, with a gradient, the best Gaussian and a triangular map take the place of the particles' moments
    where they are better.

    Where coordinates have a single bound, the race is run again with the scales of the bijection from the first. So it
    is where coordinates are periodic, with their seams where the particles of the first are sparsest.

    Where few evaluations are allowed, and a store is given, there is no race and no tempering: points from adapted
    proposals are weighed (see `explore`), and particles resampled from these.

    In more than 256 dimensions, with a gradient, one run starts from the best Gaussian around a mode.

    Parameters
    ----------
    energy : Energy
        The density; the scales and seams of its bounds are set.
    n_particles : int
        Number of particles of the final run; at most so many as hold 5e6 numbers from Laplace's approximation.
    generator : torch.Generator
        Source of randomness.
    budget : Budget, optional
        Limits of the fit, of which the pilot takes a share: by fewer particles, fewer starting scales and no
        repetitions, and at the latest by ending with what it has. Ctrl-C does the same and is noted there.
    start : Start, optional
        Where the user says to begin.
    store : Store, optional
        Allows for an exploration by few evaluations, which it keeps; its ``chosen`` are the rows that particles are of.
    pilot : Pilot, optional
        What the stages go by; its `begin` and `n_particles` are not looked at.
    own_draws : bool, default=False
        Whether a map is trained on own draws after it, to which few evaluations in many dimensions are then left.

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
    run = _Pilot(energy, n_particles, generator, budget, start, Pilot() if pilot is None else pilot)
    run.own_draws = own_draws
    if store is not None and run.is_frugal():
        run.time_share, run.evals_share = run.shares_of_few()
        with budget.part(run.time_share, run.evals_share):
            found = run.explore(store)
        if found is not None:
            return found
        run.time_share, run.evals_share = run.by.time_share, run.by.evals_share
    with budget.part(run.time_share, run.evals_share):
        return run.run()


class _Pilot:
    """One run of the pilot: its steps, and what they leave for each other."""

    def __init__(
        self, energy: Energy, n_particles: int, generator, budget: Budget, start: Start | None, by: Pilot
    ):  # fmt: skip
        self.energy, self.n_particles, self.generator = energy, n_particles, generator
        self.budget, self.start, self.by = budget, start, by
        self.n_moves = by.tempering.n_moves if energy.has_gradient else by.tempering.n_moves_without
        self.is_high = energy.n_features > by.high_dimension.n_features
        self.begun, self.clock = energy.n_energy_evals, time.perf_counter()
        self.rate: float | None = None  # measured in the race
        self.modes: list[Mode] = []
        self.own_draws = False
        self.chance_of_another = 0.0
        self.one_mode = OneMode(self)
        self.time_share, self.evals_share = by.time_share, by.evals_share

    def left(self) -> float:
        """Evaluations that the pilot can still make within its shares of the limits."""
        budget, left = self.budget, self.evals_left()
        if budget.max_time is not None:
            rate = OVERHEAD * self.energy.evals_per_second if self.rate is None else self.rate
            left = min(left, rate * budget.seconds_left(self.time_share))
        return left

    def evals_left(self) -> float:
        """Evaluations that the pilot can still make within its share of their limit, whatever time there is."""
        budget = self.budget
        if budget.max_energy_evals is None:
            return math.inf
        share = self.evals_share * (budget.max_energy_evals - budget.evals_reserve)
        return max(0.0, share - self.energy.n_energy_evals)

    def run(self) -> tuple[PilotResult, Tensor]:
        self.budget.progress.phase("first look")
        try:
            self._gauge()
            first_look(self.energy, self.generator, few=self.left() < FEW_EVALS)
        except Spent:
            pass
        if self.is_high and self.energy.has_gradient and (found := self.one_mode.run()) is not None:
            return found
        if not self.is_high:
            self._climb()
            if (found := self.one_mode.run_if_all_climbs_end_there()) is not None:
                return found
        winner, stopped = self._race()
        if stopped is not None:
            return self._end_with(winner, stopped)
        run = self._final_run(winner)
        if run.stopped is not None:
            return self._end_with(winner, run.stopped)
        try:
            run = self._tame(run)
            check_mass(run.x, run.standardization, self.energy.bounds)
            check_directions(run.x, self._moments(run.x), run.target)
            self._look_for_lost_modes(run)
            self._balance(run)
            self._non_centre(run)
            self.one_mode.refine(run)
            run.grow(int(min(self.n_particles, self.left() / (1 + self.by.tempering.growth_moves * self.n_moves))))
        except (Spent, KeyboardInterrupt) as ended:
            self.note(ended)
        coordinates = run.standardized()
        if self.energy.n_features > MANY_FEATURES:
            coordinates = along_principal_axes(coordinates, run.x)
        return run.result(coordinates, winner.scale), run.x

    # ---------------------------------------------------------------- by few evaluations

    def is_frugal(self) -> bool:
        """Whether evaluations are few, and enough for points to be weighed."""
        by = self.by.adaptive
        limited = self.budget.max_energy_evals is not None and self.energy.n_features <= by.max_features
        return limited and by.fewest_evals <= self.left() <= by.max_evals

    def leaves_own_draws(self) -> bool:
        """Whether evaluations are better spent on the draws of a map in training than on an exploration."""
        return self.own_draws and self.energy.has_gradient and self.energy.n_features > self.by.adaptive.many_features

    def shares_of_few(self) -> tuple[float, float]:
        """Shares of the limits for an exploration by few evaluations."""
        by = self.by.adaptive
        return by.time_share, by.evals_before_own_draws if self.leaves_own_draws() else by.evals_share

    def explore(self, store: Store) -> tuple[PilotResult, Tensor] | None:
        """Particles from an exploration whose evaluations are all kept, or None where it found too little."""
        energy, budget, generator, by = self.energy, self.budget, self.generator, self.by.adaptive
        budget.progress.phase("first look")
        with contextlib.suppress(Spent):
            first_look(energy, generator, few=self.left() < FEW_EVALS)
        budget.progress.phase("climbs")
        with self.share(by.survey.share):
            self.modes = self._survey()
            self._cut_between_modes()
        if self.leaves_own_draws() and len(self.modes) < 2:
            found = self.one_mode.run(self.modes[0].x if self.modes else None)
            if found is not None:
                return self._with_a_neck(*found)
        budget.progress.phase("exploration")
        kept = by.checked_share * self.left()
        left, ended = lambda: self.left() - kept, lambda: budget.seconds_left(self.time_share) <= 0
        gaussian = None if self.start is None else self.start.gaussian
        stopped = explore(
            energy, store, self.modes, generator, left, ended, budget.progress, gaussian, by, self.by.tails,
            may_miss=self.chance_of_another > LIKELY,
        )  # fmt: skip
        log_weights = store.log_weights()
        if n_effective(log_weights) == 0:
            if isinstance(stopped, KeyboardInterrupt):
                raise stopped
            store.clear()
            return None
        if stopped is not None:
            self.note(stopped)
        store.chosen = store.particles(min(self.n_particles, 2 * len(store)), generator, by.fewest_effective)
        return self._result_of(store, kept)

    def _with_a_neck(self, result: PilotResult, x: Tensor) -> tuple[PilotResult, Tensor]:
        """A run's particles, or weighted draws of approximations along a coordinate where these find as much."""
        by, n_draws = self.by, int(min(self.by.balance.n_draws, self.by.balance.share * self.left()))
        if self.energy.n_features > by.centring.max_features or n_draws < by.balance.fewest_along:
            return result, x
        along = Along(self.energy, by.adaptive.nested)
        mixture = along.found(x, int(by.balance.along_draws * n_draws), self.generator, self.left)
        if mixture is None:
            return result, x
        y = mixture.sample(n_draws, self.generator)
        log_weights = log_weights_of(self.energy, mixture, y)
        log_z = log_evidence(log_weights)
        if n_effective(log_weights) < by.balance.least_ess * by.balance.fewest_along or not (
            log_z > result.log_evidence - by.balance.as_much
        ):
            return result, x
        x = y[systematic_index(log_weights, len(x), self.generator)]
        found = better_standardization(x, along.noncentred, by.tails, by.tempering.full_covariance)
        return PilotResult.of(found, log_z, result.starting_scale, result.n_temperatures), x

    def _result_of(self, store: Store, kept: float) -> tuple[PilotResult, Tensor]:
        """What the chosen points of a store say of the density, after a look at whether it is one."""
        x, energy = store.x[store.chosen], self.energy
        found = standardization_of(x, self.by.tails, self.by.tempering.full_covariance)
        if store.model is not None:  # what starts from the map is in its coordinates
            found = store.model.standardization
        check_mass(x, found, energy.bounds)
        target = StandardizedTarget(energy, found, energy.fast_dtype)
        check_directions(x, self._moments(x), target, kept)
        scale = float(found.matrix.diagonal().mean())
        result = PilotResult.of(found, log_evidence(final_weights(store)), scale, len(store.proposals))
        result.chance_of_another = self.chance_of_another
        return result, x

    def _survey(self) -> list[Mode]:
        """Modes to begin with, from where the user says, or from near and far."""
        if self.start is not None:
            return climbs_from(self.energy, self.start.points[:10], by=self.by.climbs)
        known = self.energy.known
        best = [] if known is None else climbs_from(self.energy, known.points(self.energy, N_CLIMBS), by=self.by.climbs)
        found = survey(self.energy, self.generator, self.by.adaptive.survey, self.by.climbs)
        self.chance_of_another = found.chance_of_another
        if self.chance_of_another > LIKELY:
            warn_user(
                f"{found.n_climbs} climbs ended at {len(found.modes)} modes, and another one would end at a new mode "
                f"with a chance of {self.chance_of_another:.0%}: modes may be missing. Raise max_energy_evals, or say "
                "where modes are by start= or evaluations=.",
                ConvergenceWarning,
            )
        return [*best, *(mode for mode in found.modes if not any(other.is_near(mode.x) for other in best))]

    def _cut_between_modes(self) -> None:
        """Seams of periodic coordinates far from the modes, which are climbed to again in the new coordinates.

        Where the user says to begin, they are far from there already.
        """
        bounds = self.energy.bounds
        if bounds is None or not bounds.periodic.any() or not self.modes or self.start is not None:
            return
        x = bounds(torch.stack([mode.x for mode in self.modes]))
        self.energy.bounds = bounds.cut_open(x)
        self.modes = climbs_from(self.energy, self.energy.bounds.inverse(x), by=self.by.climbs)

    # ---------------------------------------------------------------- the steps

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return moments(x, self.by.tempering.full_covariance)

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
        by = self.by.climbs
        n = by.n_before if self.energy.n_features <= by.many_features else by.n_there
        if self.one_mode.is_likely():
            n = self.by.high_dimension.n_climbs
        if self.start is None:
            points = starting_points(self.energy, self.generator, n, by)
        else:
            points = self.start.points[:n]
        self.budget.progress.phase("climbs")
        self.modes = self._climbs(points)

    def _climbs(self, points: Tensor) -> list[Mode]:
        """Climbs within a small share of the limits."""
        with self.share(self.by.climbs.share):
            return climbs_from(self.energy, points, by=self.by.climbs)

    def share(self, share: float):
        """A part of the limits: a share of what the pilot has left."""
        budget, n_evals, left = self.budget, share * self.left(), share * self.budget.seconds_left(self.time_share)
        evals = math.inf if budget.max_energy_evals is None else budget.max_energy_evals - budget.evals_reserve
        seconds = math.inf if budget.max_time is None else budget.max_time - budget.time_reserve
        return budget.part(
            (budget.elapsed() + left) / seconds if math.isfinite(seconds) else 1.0,
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
        by = self.by.race
        self.race_moves = max(by.fewest_moves, self.n_moves // 3)
        limit = by.share * self.left()
        race = Race(self.energy, self.race_moves, limit, self.generator, self.budget, by, self.by.tempering)
        winner = race.run(start, self.modes)
        winner.x, winner.cost = race.pooled(), race.cost()
        self.rate = race.evals_per_second
        return winner, race.stopped

    def _final_run(self, winner: Entrant) -> "TemperedRun":
        self.budget.progress.phase("tempering")
        by = self.by.tempering
        affordable = by.share * self.left() / (winner.cost * (1 + self.n_moves) / (1 + self.race_moves))
        n = int(min(self.n_particles, max(by.fewest_particles, affordable)))
        standardization = Standardization.from_moments(*self._moments(winner.x))
        return TemperedRun(
            self.energy, standardization, n, self.n_moves, self.generator, by.inflation, self.budget.progress, by=by
        )

    def _tame(self, run: "TemperedRun") -> "TemperedRun":
        """The run, or a repetition with tamed tails that found more, or as much of what looks more like a Gaussian."""
        by, of_tails, found_more = self.by.tempering, self.by.tails, True
        for _ in range(of_tails.max_runs):
            tails = heavy_tails(run.x, of_tails)
            if tails is None or not (found_more or newly_heavy(tails, run.tails)) or run.n_evals > self.left():
                break
            tamed = TemperedRun(
                self.energy, standardize(run.x, tails, by.full_covariance), len(run.x), self.n_moves, self.generator,
                by.inflation, self.budget.progress, MAX_RAISED, by,
            )  # fmt: skip
            if tamed.stopped is not None:
                self.note(tamed.stopped)
                break
            gain = tamed.log_evidence - run.log_evidence
            found_more, found_less = gain >= of_tails.clear_gain, gain < -of_tails.clear_loss
            better = better_fit(tamed.x, tamed.tails, run.tails) >= of_tails.better_fit
            if found_less or not (found_more or better):
                break
            run = tamed
        return run

    def _look_for_lost_modes(self, run: "TemperedRun") -> None:
        if self.is_high:
            return
        climbs = self.by.climbs
        n = climbs.n_after if self.energy.n_features <= climbs.many_features else climbs.n_there
        if self.left() < 200 * n * self.energy.n_features:
            n = climbs.few
        self.budget.progress.phase("lost modes")
        with self.share(self.by.lost_modes.share):
            found = find_lost_modes(
                self.energy, run.x, run.log_evidence, self.modes, n, self.n_moves, self.generator, self.by.lost_modes,
                climbs, self.by.tempering,
            )  # fmt: skip
        run.x, run.log_evidence, self.modes = found.x, found.log_evidence, found.modes
        if found.stopped is not None:
            raise found.stopped
        if found.n_found:
            run.settle()

    def _balance(self, run: "TemperedRun") -> None:
        """Give the regions of the particles their masses, where importance sampling tells them."""
        by = self.by.balance
        if self.energy.n_features <= by.max_features:
            n_draws = int(min(by.n_draws, 2 * len(run.x), by.share * self.left()))
            along = (
                self._along(run.x, int(by.along_draws * n_draws)) if by.along and n_draws >= by.fewest_draws else None
            )
            found = balance(self.energy, run.x, n_draws, self.generator, self.modes, by, along)
            if found is not None:
                run.x, run.log_evidence = found
                run.tame_what_came_in(self.by.tails)

    def _along(self, x: Tensor, n_draws: int) -> TMixture | None:
        """Laplace's approximations along coordinates that others depend on, each tried by so many draws."""
        if not self.energy.has_gradient:
            return None
        return Along(self.energy, self.by.adaptive.nested).found(x, n_draws, self.generator, self.left)

    def _non_centre(self, run: "TemperedRun") -> None:
        """Take non-centred coordinates where draws of a Gaussian are better in these."""
        by = self.by
        if 1 < self.energy.n_features <= by.centring.max_features:
            n_draws = int(min(LINES * by.centring.n_draws, by.centring.share * self.left()))
            found = non_centred(
                self.energy, run.x, n_draws, self.generator, by.centring, by.adaptive.nested, by.tails
            )  # fmt: skip
            if found is not None:
                run.non_centre(found, by.tails)

    def note(self, stopped: BaseException) -> None:
        self.budget.interrupted |= isinstance(stopped, KeyboardInterrupt)

    def _end_with(self, winner: Entrant, stopped: BaseException) -> tuple[PilotResult, Tensor]:
        """The race's particles, where the run with all of them was not to be had."""
        if isinstance(stopped, KeyboardInterrupt) and not winner.usable:
            raise stopped
        self.note(stopped)
        x = winner.x[winner.x.isfinite().all(1)]
        found = Standardization.from_moments(*self._moments(x))
        log_evidence = winner.log_evidence if winner.log_evidence > -math.inf else math.nan
        return PilotResult.of(found, log_evidence, winner.scale, 0), x
