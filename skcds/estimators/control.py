"""How the fit of a control of the generative chain starts, and what it leaves."""

import contextlib
import copy
import math
import numbers
import time

import torch
from sklearn.utils._param_validation import Interval

from .._support.devices import randint, to_numpy
from .._support.errors import Spent
from .._support.settings import CPU, FLOAT
from .._support.warnings import note
from ..density.bounds import Bounds
from ..density.standardize import Standardization, StandardizedTarget
from ..explore.pilot import run_pilot
from ..explore.result import PilotResult
from ..explore.specifications import Pilot
from ..explore.store import Explored, Store
from ..explore.tempered_run import finest_scale
from ..explore.weighed import WeighedPoints
from ..io.packing import built
from ..io.registry import key_of
from ..io.schema import Fitted
from ..models.networks import seeded
from ..models.specifications import Control
from ..train.objectives.specifications import PathLoss
from ..train.particles import CORRECTION_MOVES, Population, spread_index
from .comparison import start_from_marginals
from .paths import LARGEST_RESERVE, POPULATION_SHARE, n_looked_at, population_of
from .warm import check_continued, check_same_networks, serve, warn_of_a_cold_start

FINAL_NOISE = 1 / 3  # noise of the last level in units of the finest length scale
N_CHECKED = 500  # particles at which single precision is compared with double
TIMED = 64  # particles by which the time of their coordinates is measured
SLOW_ITERATION = 0.02  # seconds that an iteration's scores may take under a limit of time: about as its network


CONSTRAINTS: dict = {  # of the parameters of a sampler with a control
    "n_steps": [Interval(numbers.Integral, 2, None, closed="left")],
}
FITTED: dict = {
    "pilot_": "pilot or None",
    "particles_": "particles",
    "_particles_log_prob": "memory",
    "_particles_score": "memory",
    "_weighed": Fitted("weighed points or None", since=13, before=lambda sampler: None),
}


class ControlStart:
    """How the fit of a control begins: from a pilot, the prior, an earlier fit, or a checkpoint.

    Parameters
    ----------
    sampler : BaseSampler
        Its parameters and its earlier fit are read. It says which model it wants (`_build_model`), and of which
        networks (`_networks_wanted`, `_networks_found`).
    control : Control
        The network of the control.
    path_loss : PathLoss
        The loss on simulated trajectories.
    own_draws : bool, default=False
        Whether a map is trained on its own draws afterwards.
    """

    def __init__(self, sampler, control: Control, path_loss: PathLoss, own_draws: bool = False):
        self.sampler, self.control, self.path_loss, self.own_draws = sampler, control, path_loss, own_draws
        self.start = sampler._specified("start")
        self.with_pilot = isinstance(self.start, Pilot)

    def begin(self, run):
        """Pilot, untrained or earlier model, its target and particles, from the checkpoint if it has them."""
        stored = run.checkpoint.restore("start")
        if stored is not None:
            self._restart(stored, run)
            return
        self._start_anew(run)
        model, population = run.model, run.population
        run.checkpoint.watch(None if population is None else model.standardization(population.x))
        run.checkpoint.store(
            "start",
            {
                "pilot": run.pilot and run.pilot.state_dict(),
                "model": {"class": key_of(type(model)), "config": dict(model.config), "weights": model.state_dict()},
                "population": population and population.state_dict(),
                "bounds": run.energy.bounds and run.energy.bounds.choices,
                "explored": run.explored and run.explored.state_dict(),
                "weighed": run.weighed and run.weighed.state_dict(),
            },
        )

    def _restart(self, stored, run):
        """What `_start_anew` found for the fit that this one goes on with."""
        energy = run.energy
        run.pilot = PilotResult.restored(stored["pilot"]) if stored["pilot"] else None
        run.model = built(stored["model"]["class"], stored["model"]["config"])
        run.model.load_state_dict(stored["model"]["weights"])
        run.model.to(energy.device)
        if stored["explored"]:
            run.explored = Explored.restored(stored["explored"], energy.device)
        if stored["weighed"]:
            run.weighed = WeighedPoints.restored(stored["weighed"])
        if energy.bounds is not None:
            energy.bounds = energy.bounds.chosen(stored["bounds"])
        run.target = StandardizedTarget(energy, run.model.standardization, energy.fast_dtype)
        if stored["population"]:
            particles, *known = (part.to(energy.device) for part in stored["population"]["particles"])
            run.population = Population(run.target, particles, run.generator, known=tuple(known))  # not asked again
            run.population.load_state_dict(stored["population"])
        run.checkpoint.rewind("start")

    def _start_anew(self, run):
        if self.sampler.warm_start and hasattr(self.sampler, "_model") and self._continue(run):
            return
        if self.with_pilot:
            self._start_from_pilot(run)
        else:
            self._start_from_prior(run)

    def _start_from_pilot(self, run):
        sampler = self.sampler
        energy, budget = run.energy, run.budget
        few = not self.path_loss.share  # a loss on paths needs evaluations of its own
        store = Store(energy.n_features, energy.device) if few else None
        begin = sampler._find_start(energy.n_features, energy.bounds, energy.energy_fn)
        begin = begin and begin.to(energy.device)
        try:
            run.pilot, x = run_pilot(
                energy, self.start.n_particles, run.generator, budget, begin, store, self.start, self.own_draws
            )
        except Exception as error:
            note(error, "This happened in the pilot, before any training.")
            raise
        if store:
            run.explored = store.explored(self.start.adaptive.fewest_effective, energy.has_gradient)
            run.weighed = WeighedPoints.of(store, energy.bounds)
        standardization = run.pilot.standardization().to(energy.device)
        energy.check_fast_dtype(x[: int(min(N_CHECKED, 1 + POPULATION_SHARE * budget.energy_evals_left()))])
        run.target = StandardizedTarget(energy, standardization, energy.fast_dtype)
        z = standardization.inverse(x).float()
        if store:
            run.population = Population(
                run.target, z, run.generator, known=store.values_of(store.chosen, run.target, z)
            )
        else:
            run.population = population_of(run, z)
        grown = not store and self._grow(run)  # a pilot that ran out of time has left few
        if not grown and CORRECTION_MOVES * len(run.population) <= POPULATION_SHARE * budget.energy_evals_left():
            with contextlib.suppress(Spent):
                run.population.move(CORRECTION_MOVES)
        run.model = self._new_model(standardization, finest_scale(run.population), run)
        start_from_marginals(run, sampler._specified("network"))

    def _start_from_prior(self, run):
        energy = run.energy
        standardization = Standardization(energy.n_features, full=False).to(energy.device)
        width = torch.full((energy.n_features,), self.start.length_scale, dtype=FLOAT, device=energy.device)
        run.model = self._new_model(standardization, width, run)
        run.target = StandardizedTarget(energy, standardization, energy.fast_dtype)

    def _continue(self, run):
        """Start from the earlier fit; False where that is of no use to this energy."""
        energy = run.energy
        self._check_continued(energy)
        known = Bounds.from_fitted(self.sampler)
        energy.bounds = known and known.to(energy.device)
        run.model = copy.deepcopy(self.sampler._model).to(energy.device)
        run.target = StandardizedTarget(energy, run.model.standardization, energy.fast_dtype)
        x = torch.from_numpy(self.sampler.particles_)
        n = n_looked_at(min(len(x), self.start.n_particles), run)
        rows = spread_index(len(x), n, CPU)
        z = run.model.standardization.inverse(x[rows].to(energy.device)).float()
        run.population = population_of(run, z)
        old = getattr(self.sampler, "_particles_log_prob", None)  # which files do not hold
        if not serve(run.population, None if old is None else torch.from_numpy(old)[rows]):
            warn_of_a_cold_start(type(self.sampler).__name__)
            run.model = run.target = run.population = None
            return False
        run.pilot = self.sampler.pilot_
        if not self.with_pilot:
            run.population = None
        elif self.start.n_particles > len(x):
            self._grow(run)
        return True

    def _grow(self, run) -> bool:
        """As many particles as are asked for, if the limits allow: copies that moves part; whether that was done."""
        by = self.start.high_dimension
        n = min(self.start.n_particles, max(by.fewest_particles, by.max_numbers // run.energy.n_features))
        if not len(run.population) < n <= POPULATION_SHARE * run.budget.energy_evals_left() / (1 + CORRECTION_MOVES):
            return False
        seconds = (1 + CORRECTION_MOVES) * n * self._seconds_a_row(run)
        if seconds > POPULATION_SHARE * run.budget.seconds_left():
            return False
        rows = spread_index(len(run.population), n, run.population.x.device)
        with contextlib.suppress(Spent):
            run.population.replace(run.population.x[rows])
            run.population.move(CORRECTION_MOVES)
        return True

    def _seconds_a_row(self, run) -> float:
        """What the coordinates of a particle take, beside the energy; 0 where time has no limit."""
        if run.budget.max_time is None:
            return 0.0
        z, start = run.population.x[:TIMED], time.perf_counter()
        run.target.standardization.call_and_pull_back(z)[2](z.double())
        return (time.perf_counter() - start) / len(z)

    def _check_continued(self, energy):
        """Refuse a warm start from a fit in another dimension, with other bounds or other networks."""
        sampler = self.sampler
        check_continued(sampler, energy)
        if sampler._model.needs_score and not energy.has_gradient:
            raise ValueError(
                "warm_start=True goes on from a fit whose control reads the gradient of the energy, and this energy "
                "has none: pass grad_fn=, or set warm_start=False."
            )
        check_same_networks(sampler._networks_wanted(energy), sampler._networks_found(sampler._model.config))

    def reads_score(self, energy, budget) -> bool:
        """Whether the control reads the target's score; "auto" weighs what that takes against the limits."""
        sampler, n_judged = self.sampler, self.path_loss.training.n_judged
        max_energy_evals = budget.max_energy_evals
        if self.control.langevin != "auto" or not energy.has_gradient:
            return bool(self.control.langevin) and energy.has_gradient
        if self.with_pilot:
            paths = 3 * self.start.n_particles + 2 * n_judged  # exchanged, and looked at in the end
            per_iter, cost = (
                sampler.batch_size,
                sampler.max_iter * sampler.batch_size + paths * sampler.n_steps,
            )
        else:
            per_iter = self.path_loss.batch_size * sampler.n_steps
            cost = sampler.max_iter * per_iter
        if max_energy_evals is not None and max_energy_evals < 2 * cost:
            return False
        if sampler.max_time is None:
            return True
        rate = energy.evals_per_second
        return (
            per_iter / rate < SLOW_ITERATION
            and 2 * n_judged * sampler.n_steps / rate < LARGEST_RESERVE * sampler.max_time
        )

    def _new_model(self, standardization, width, run):
        log_snr_max = -2 * math.log(FINAL_NOISE * float(width.min()))
        reads_score = self.reads_score(run.energy, run.budget)
        with seeded(int(randint(run.generator, 0, 2**31 - 1))):
            explored = run.explored and run.explored.model
            model = self.sampler._build_model(standardization, log_snr_max, reads_score, explored)
        model.to(run.generator.device)
        model.standardization = standardization
        model.network.width = width
        return model


def found_by(run) -> dict:
    """Fitted attributes of the exploration and the particles (`FITTED`)."""
    return {
        "pilot_": run.pilot,
        "particles_": to_numpy(run.model.standardization(run.population.x)),
        "_particles_log_prob": to_numpy(run.population.log_prob),
        "_particles_score": to_numpy(run.population.score),
        "_weighed": run.weighed,
    }
