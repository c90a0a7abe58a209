"""What the samplers share that learn a control of the generative chain: how it starts, how it is trained."""

import contextlib
import copy
import math
import numbers
import time
from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor

from ._base import MODELS, BaseSampler, positive_integer
from ._warm import check_same_networks, serve, warn_of_a_cold_start
from ._warnings import note
from .bounds import Bounds, same_bounds
from .devices import randint, randn, to_numpy
from .diffusion import DiffusionModel
from .errors import Spent
from .mcmc import CORRECTION_MOVES, Population
from .networks import seeded, without_draws
from .pilot import PilotResult, finest_scale, run_pilot
from .standardize import Standardization, StandardizedTarget

FINAL_NOISE = 1 / 3  # noise of the last level in units of the finest scale
PRIOR_INIT_SCALE = 0.1  # finest scale assumed without a pilot
REFRESHES = (0.25, 0.5, 0.75)  # of the iterations, at which particles are exchanged for ends of paths
MOVES_SHARE = 0.8  # of those that are left then, for moves of the particles; half of it where scores are read
HELD_OUT = 10_000  # paths that a fit is judged by
MIN_ITER_REFRESH = 200  # iterations of a fit for which the exchanges are worth their cost
GAUGED = 64  # paths by which the time of a path is measured
GAUGE_SHARE = 0.02  # of a limit of time, for the evaluations of these
PATHS_SHARE = 0.1  # of the seconds left, for an exchange of particles
FEWEST_PATHS = 200  # that an exchange is made with
POPULATION_SHARE = 0.25  # of the evaluations left, for looking at all particles once
FEWEST_PARTICLES = 20
N_CHECKED = 500  # particles at which single precision is compared with double
SLOW_ITERATION = 0.02  # seconds that an iteration's scores may take under a limit of time: about as its network
LARGEST_RESERVE = 0.25  # of a limit of time, for the judgement
JUDGEMENT_MARGIN = 1.3  # of the time that the judgement's paths should take


class ControlledSampler(BaseSampler):
    """Samplers with a generative chain whose control is learned from the energy (see `DiffusionModel`)."""

    _parameter_constraints: dict = {
        **BaseSampler._parameter_constraints,
        "n_steps": [Interval(numbers.Integral, 2, None, closed="left")],
        "init": [StrOptions({"pilot", "prior"})],
        "variance": [StrOptions({"learned", "fixed"})],
        "langevin": ["boolean", StrOptions({"auto"})],
        "n_particles": [Interval(numbers.Integral, 100, None, closed="left")],
        "hidden_features": [positive_integer],
        "n_layers": [positive_integer],
        "path_batch_size": [Interval(numbers.Integral, 2, None, closed="left")],
    }

    def _start(self, energy, budget, generator):
        """What the pilot found or None, an untrained model or the earlier fit's, its target, its particles or None."""
        stored = budget.checkpoint.restore("start")
        if stored is not None:
            return self._restart(stored, energy, budget, generator)
        pilot, model, target, population = self._start_anew(energy, budget, generator)
        budget.checkpoint.watch(None if population is None else model.standardization(population.x))
        budget.checkpoint.store(
            "start",
            {
                "pilot": pilot and {name: _as_tensor(value) for name, value in vars(pilot).items()},
                "model": {"class": type(model).__name__, "config": dict(model.config), "weights": model.state_dict()},
                "population": population and population.state_dict(),
                "bounds_scale": energy.bounds and energy.bounds.scale,
            },
        )
        return pilot, model, target, population

    def _restart(self, stored, energy, budget, generator):
        """What `_start` gave to the fit that this one goes on with."""
        found: dict[str, Any] = {name: _as_array(value) for name, value in (stored["pilot"] or {}).items()}
        pilot = PilotResult(**found) if found else None
        with without_draws():
            model: Any = MODELS[stored["model"]["class"]](**stored["model"]["config"])
        model.load_state_dict(stored["model"]["weights"])
        model.to(energy.device)
        if energy.bounds is not None:
            energy.bounds.scale = stored["bounds_scale"].to(energy.device)
        target, population = StandardizedTarget(energy, model.standardization, energy.fast_dtype), None
        if stored["population"]:
            population = Population(target, stored["population"]["particles"][0].to(energy.device), generator)
            population.load_state_dict(stored["population"])
        budget.checkpoint.rewind("start")
        return pilot, model, target, population

    def _start_anew(self, energy, budget, generator):
        if self.warm_start and hasattr(self, "_model"):
            continued = self._continue(energy, budget, generator)
            if continued is not None:
                return continued
        if self.init == "pilot":
            return self._start_from_pilot(energy, budget, generator)
        return self._start_from_prior(energy, generator)

    def _start_from_pilot(self, energy, budget, generator):
        start = self._find_start(energy.n_features, energy.bounds)
        try:
            pilot, x = run_pilot(energy, self.n_particles, generator, budget, start and start.to(energy.device))
        except Exception as error:
            note(error, "This happened in the pilot, before any training.")
            raise
        standardization = pilot.standardization().to(energy.device)
        energy.check_fast_dtype(x[: int(min(N_CHECKED, 1 + POPULATION_SHARE * budget.energy_evals_left()))])
        target = StandardizedTarget(energy, standardization, energy.fast_dtype)
        population = population_of(target, standardization.inverse(x).float(), generator, budget)
        if CORRECTION_MOVES * len(population) <= POPULATION_SHARE * budget.energy_evals_left():
            population.move(CORRECTION_MOVES)
        model = self._new_model(standardization, finest_scale(population), self._reads_score(energy), generator)
        return pilot, model, target, population

    def _start_from_prior(self, energy, generator):
        standardization = Standardization(energy.n_features, full=False).to(energy.device)
        width = torch.full((energy.n_features,), PRIOR_INIT_SCALE, device=energy.device)
        model = self._new_model(standardization, width, self._reads_score(energy), generator)
        return None, model, StandardizedTarget(energy, standardization, energy.fast_dtype), None

    def _continue(self, energy, budget, generator):
        """What `_start_anew` gives from the earlier fit, or None where that is of no use to this energy."""
        self._check_continued(energy)
        known = Bounds.from_fitted(self)
        energy.bounds = known and known.to(energy.device)
        model = copy.deepcopy(self._model).to(energy.device)
        target = StandardizedTarget(energy, model.standardization, energy.fast_dtype)
        x = torch.from_numpy(self.particles_).to(energy.device)
        population = population_of(target, model.standardization.inverse(x).float(), generator, budget)
        old = getattr(self, "_particles_log_prob", None)  # which files do not hold
        if not serve(population, None if old is None else torch.from_numpy(old)):
            warn_of_a_cold_start(type(self).__name__)
            return None
        return self.pilot_, model, target, population if self.init == "pilot" else None

    def _check_continued(self, energy):
        """Refuse a warm start from a fit in another dimension, with other bounds or other networks."""
        if energy.n_features != self.n_features_in_:
            raise ValueError(
                f"warm_start=True goes on from a fit in {self.n_features_in_} dimensions, and the energy has "
                f"{energy.n_features}; set warm_start=False."
            )
        if not same_bounds(Bounds.from_fitted(self), energy.bounds):
            raise ValueError("warm_start=True goes on from a fit with other bounds; set warm_start=False.")
        if self._model.needs_score and not energy.has_gradient:
            raise ValueError(
                "warm_start=True goes on from a fit whose control reads the gradient of the energy, and this energy "
                "has none: pass grad_fn=, or set warm_start=False."
            )
        check_same_networks(self._networks_wanted(energy), self._networks_found(self._model.config))

    def _networks_wanted(self, energy) -> dict:
        """Parameters that decide the networks; None where the value leaves it open."""
        langevin = None if self.langevin == "auto" or not energy.has_gradient else bool(self.langevin)
        return {
            "hidden_features": self.hidden_features, "n_layers": self.n_layers, "variance": self.variance,
            "langevin": langevin,
        }  # fmt: skip

    def _networks_found(self, config: dict) -> dict:
        """Those of a model with this configuration."""
        return {
            "hidden_features": config["hidden"], "n_layers": config["n_layers"], "langevin": config["langevin"],
            "variance": "learned" if config["learned_variance"] else "fixed",
        }  # fmt: skip

    def _reads_score(self, energy) -> bool:
        """Whether the control reads the target's score; "auto" weighs what that takes against the limits."""
        if self.langevin != "auto" or not energy.has_gradient:
            return bool(self.langevin) and energy.has_gradient
        if self.init == "pilot":
            paths = 3 * self.n_particles + 2 * HELD_OUT  # exchanged, and looked at in the end
            per_iter, cost = self.batch_size, self.max_iter * self.batch_size + paths * self.n_steps
        else:
            per_iter = self.path_batch_size * self.n_steps
            cost = self.max_iter * per_iter
        if self.max_energy_evals is not None and self.max_energy_evals < 2 * cost:
            return False
        if self.max_time is None:
            return True
        rate = energy.evals_per_second
        return per_iter / rate < SLOW_ITERATION and 2 * HELD_OUT * self.n_steps / rate < LARGEST_RESERVE * self.max_time

    def _gauge(self, model, target, budget, generator) -> float:
        """Seconds that a path takes, 0 without a limit of time; what the judgement will take is kept of the limit."""
        if budget.max_time is None:
            return 0.0
        start = time.perf_counter()
        n = int(min(GAUGED, max(4, GAUGE_SHARE * budget.max_time * target.energy.evals_per_second)))
        try:
            weighted_paths(model, target, self.n_steps, n, generator)
        except Spent:
            return budget.max_time  # too slow for any path but those of the judgement
        seconds = (time.perf_counter() - start) / n
        budget.time_reserve = min(budget.max_time * LARGEST_RESERVE, JUDGEMENT_MARGIN * seconds * 2 * HELD_OUT)
        return seconds

    def _moves_share(self, model) -> float:
        """Share for moves of the particles, of the evaluations that are left after the pilot."""
        return 0.5 * MOVES_SHARE if model.needs_score else MOVES_SHARE

    def _new_model(self, standardization, width, reads_score, generator):
        log_snr_max = -2 * math.log(FINAL_NOISE * float(width.min()))
        with seeded(int(randint(generator, 0, 2**31 - 1))):
            model = self._build_model(standardization, log_snr_max, reads_score)
        model.to(generator.device)
        model.standardization = standardization
        model.network.width = width
        return model

    @abstractmethod
    def _build_model(self, standardization, log_snr_max, langevin) -> DiffusionModel:
        """An untrained model."""


def _as_tensor(value):
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def _as_array(value):
    return to_numpy(value) if isinstance(value, Tensor) else value


def population_of(target, x: Tensor, generator, budget) -> Population:
    """A population of particles (n, d), or of as many of them as the limits allow to look at."""
    affordable = POPULATION_SHARE * budget.energy_evals_left()
    if affordable < len(x):
        x = x[: max(FEWEST_PARTICLES, int(affordable))]
    with budget.judgement() if affordable < FEWEST_PARTICLES else contextlib.nullcontext():
        return Population(target, x, generator)


def affordable_paths(n: int, budget, seconds_a_path: float) -> int:
    """At most n paths for an exchange of particles, as many as the time left allows; 0 where they are too few."""
    if budget.max_time is None or seconds_a_path == 0:
        return n
    n = min(n, int(PATHS_SHARE * budget.seconds_left() / (2 * seconds_a_path)))
    return n if n >= FEWEST_PATHS else 0


def weighted_paths(model, target, n_steps, n, generator):
    """Ends (n, d) of n trajectories and their log path weights (n,)."""

    def normal(k):
        return randn(generator, n, model.n_features)

    return model.simulate_weighted(normal(0), model.grid(n_steps), target, normal)


def exchange_paths(population, model, target, n_steps, z, log_weights, generator):
    """Let the ends (n, d) of trajectories with their log path weights (n,) take the places of particles."""

    def weigh(x):
        """Of paths with their law under the target, which end at particles x."""
        _, log_ratio = model.noise_back(x, model.grid(n_steps), target, lambda k: randn(generator, x.shape))
        return target.log_prob(x) + log_ratio

    population.exchange(z, log_weights, weigh)
