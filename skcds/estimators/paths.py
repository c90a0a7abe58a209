"""Ends of simulated paths with exact weights as particles: how many the limits allow, and how they come in."""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable

from torch import Tensor

from .._support.devices import randn, to_numpy
from .._support.errors import Spent
from ..density.standardize import StandardizedTarget
from ..train.particles import Population, effective_share, spread_index
from ..train.plateau import Plateau
from ..weights.sample import WeightedSample

GAUGED = 64  # paths by which the time of a path is measured
GAUGE_SHARE = 0.02  # of a limit of time, for the evaluations of these
POPULATION_SHARE = 0.25  # of the evaluations left, for looking at all particles once
FEWEST_PARTICLES = 20
LARGEST_RESERVE = 0.25  # of a limit of time, for the judgement
JUDGEMENT_MARGIN = 1.3  # of the time that the judgement's paths should take
MAX_NUMBERS = 5_000_000  # held by the paths of the judgement
MIN_RESAMPLED_SHARE = 0.1  # normalised ESS of path weights that is good enough to resample their ends by
FEWEST_LOOKED_AT = 100  # paths that tell an effective share well enough to end a training by it
FEWEST_HELD_OUT = 100  # paths of the judgement, however little time is left
ASTRAY = 0.01  # of all paths, whose weights say no more of a chain than that they are low
RAISING = 4  # times as many evaluations a draw where the energy has raised, which takes halves of the rows to find


def gauge(run, n_steps: int) -> None:
    """Find the seconds that a path takes, where there is a limit of time."""
    budget = run.budget
    if budget.max_time is None:
        return
    start = time.perf_counter()
    n = int(min(GAUGED, max(4, GAUGE_SHARE * budget.max_time * run.energy.evals_per_second)))
    try:
        weighted_paths(run.model, run.target, n_steps, n, run.generator)
    except Spent:
        run.seconds_a_path = budget.max_time  # too slow for any path but those of the judgement
        return
    run.seconds_a_path = (time.perf_counter() - start) / n


def keep_time_for_paths(run) -> None:
    """Keep, of a limit of time, what a judgement by paths should take."""
    budget = run.budget
    if budget.max_time is not None and run.seconds_a_path < budget.max_time:
        judgement = JUDGEMENT_MARGIN * run.seconds_a_path * 2 * run.training.n_judged
        budget.time_reserve = min(budget.max_time * LARGEST_RESERVE, judgement)


def moves_share(run) -> float:
    """Share for moves of the particles, of the evaluations that are left after the pilot."""
    share = run.training.particles.moves_share
    return 0.5 * share if run.model.needs_score else share


def population_of(run, x: Tensor) -> Population:
    """A population of particles (n, d), or of as many of them as the limits allow to look at."""
    if POPULATION_SHARE * run.budget.energy_evals_left() >= FEWEST_PARTICLES:
        with contextlib.suppress(Spent):
            return Population(run.target, x[spread_index(len(x), n_looked_at(len(x), run), x.device)], run.generator)
    with run.budget.judgement():
        rows = spread_index(len(x), min(FEWEST_PARTICLES, len(x)), x.device)
        return Population(run.target, x[rows], run.generator)


def n_looked_at(n: int, run) -> int:
    """Of n particles those that the limits allow to look at once, or the fewest that there have to be."""
    affordable = POPULATION_SHARE * run.budget.energy_evals_left()
    return n if affordable >= n else min(n, max(FEWEST_PARTICLES, int(affordable)))


def affordable_paths(n: int, run) -> int:
    """At most n paths for an exchange of particles, as many as the time left allows; 0 where they are too few."""
    if run.budget.max_time is None or run.seconds_a_path == 0:
        return n
    by = run.training.particles
    n = min(n, int(by.paths_share * run.budget.seconds_left() / (2 * run.seconds_a_path)))
    return n if n >= by.fewest_paths else 0


def paths_to_exchange(n: int, run, n_steps: int) -> int:
    """At most n paths for an exchange of particles, as many as the limits allow; 0 where they are too few.

    A limit of evaluations would otherwise end the training with the exchange, which asks for more than there are.
    """
    n = affordable_paths(n, run)
    if run.budget.max_energy_evals is None:
        return n
    by, evals = run.training.particles, 2 * (1 + n_steps * run.model.needs_score)  # of a path, and of one back
    n = min(n, int(by.paths_share * run.budget.energy_evals_left() / evals))
    return n if n >= by.fewest_paths else 0


def weighted_paths(model, target, n_steps, n, generator):
    """Ends (n, d) of n trajectories and their log path weights (n,)."""

    def normal(k):
        return randn(generator, n, model.n_features)

    return model.simulate_weighted(normal(0), model.grid(n_steps), target, normal)


def exchange_paths(population, model, target, n_steps, z, log_weights, generator):
    """Let the ends (n, d) of trajectories with their log path weights (n,) take the places of particles."""

    def weigh(x):
        """Of paths with their distribution under the target, which end at particles x."""
        _, log_ratio = model.noise_back(x, model.grid(n_steps), target, lambda k: randn(generator, x.shape))
        return target.log_prob(x) + log_ratio

    population.exchange(z, log_weights, weigh)


def plateau_of_paths(run, n_steps: int, n_iter: int, tol: float) -> Plateau | None:
    """What ends a training of a chain early; None for a short one, or where its looks would cost too much.

    Only what has no room left ends it: the effective share of paths grows most when the learning rate falls.
    """
    by = dataclasses.replace(run.training.stopping, tol=tol, patience=n_iter)
    n_looks, evals_a_path = max(1, round(1 / by.look_every)), 1 + n_steps * run.model.needs_score
    n = min(by.n_paths, by.paths_share * run.budget.energy_evals_left() / (n_looks * evals_a_path))
    if n_iter < by.min_iter or n < min(by.n_paths, FEWEST_LOOKED_AT):
        return None

    def look(averaged) -> float:
        _, log_weights = weighted_paths(averaged, run.target, n_steps, int(n), run.generator)
        return effective_share(log_weights)

    return Plateau(look, by, run.budget.progress, start=0.0)


def first_ends(run, n_steps: int, n_particles: int) -> Population:
    """Ends of paths of the untrained chain as particles, as many as the limits allow."""
    n = affordable_paths(n_particles, run) or GAUGED
    evals_a_path = 1 + n_steps * run.model.needs_score
    n = int(min(n, max(2, POPULATION_SHARE * run.budget.energy_evals_left() / evals_a_path)))
    ends, _ = weighted_paths(run.model, run.target, n_steps, n, run.generator)
    return population_of(run, ends)


def renewals(run, n_steps: int, n_iter: int, on_particles: bool) -> dict[int, Callable]:
    """By the iterations at which they are due, what renews the particles of a fit; see `renew_particles`."""
    by = run.training.particles
    if n_iter < by.min_iter:
        return {}
    renew = functools.partial(renew_particles, run, n_steps, on_particles)
    return {int(share * n_iter): renew for share in (by.exchanges_of_map if on_particles else by.exchanges_from_prior)}


def renew_particles(run, n_steps: int, on_particles: bool, averaged) -> None:
    """Exchange particles for ends of a chain; without a pilot, resample the better of these and images of its map.

    Parameters
    ----------
    run : Run
        Its particles are renewed.
    n_steps : int
        Steps of the chain.
    on_particles : bool
        Whether training started from a pilot.
    averaged : ShortcutModel
        The model with averaged weights.
    """
    population, target, generator, n_paths = run.population, run.target, run.generator, run.training.particles.n_paths
    n = paths_to_exchange(min(n_paths, len(population)) if on_particles else n_paths, run, n_steps)
    if not n:
        return
    z, log_weights = weighted_paths(averaged, target, n_steps, n, generator)
    if on_particles:
        exchange_paths(population, averaged, target, n_steps, z, log_weights, generator)
        return
    if averaged.map.invertible:
        latent = randn(generator, n_paths, averaged.n_features)
        images = averaged.call_and_log_weight(latent, target)
        z, log_weights = max((z, log_weights), images, key=lambda draws: effective_share(draws[1]))
    population.correct(z, log_weights, min_share=0.0)


def judge_paths(run, n_steps: int) -> WeightedSample:
    """Evaluation paths of a run's chain; the untrained control is kept where training has clearly lowered the bound.

    Few particles in high dimension, or few iterations, can teach less than the standardisation knows. Particles are
    exchanged for ends of the paths, or are these where there are none.
    """
    by = run.training
    reported = StandardizedTarget.reported(run.energy, run.model.standardization)
    run.budget.progress.phase("judgement")
    with run.budget.judgement():
        z, log_weights = weighted_paths(run.model, reported, n_steps, _n_held_out(run, n_steps), run.generator)
        before = run.untrained.requires_grad_(False).eval()
        n_before = min(len(z), max(by.n_compared * len(z) // by.n_judged, 20))
        with contextlib.suppress(Spent):
            first, first_weights = weighted_paths(before, reported, n_steps, n_before, run.generator)
            if _bound(log_weights) + by.regression_margin < _bound(first_weights):
                run.model, z, log_weights = before, first, first_weights
        if run.population is not None:
            with contextlib.suppress(Spent):
                exchange_paths(
                    run.population, run.model, run.target, n_steps, z, log_weights, run.generator
                )  # fmt: skip
    if run.population is None:
        run.population = population_of(run, z)
        with contextlib.suppress(Spent):
            run.population.correct(z, log_weights, MIN_RESAMPLED_SHARE)
    return WeightedSample(to_numpy(run.model.standardization(z)), to_numpy(log_weights), True)


def _n_held_out(run, n_steps: int) -> int:
    evals = 1 + n_steps * run.model.needs_score
    by = run.training
    n = min(by.n_judged, max(by.n_compared, MAX_NUMBERS // run.model.n_features))
    n = by.n_compared if run.budget.interrupted else n
    evals_a_row = 2 * evals + 1 + evals * (by.n_compared / by.n_judged)
    evals_a_row *= RAISING if run.energy.n_raised else 1
    return max(run.budget.n_affordable(n, 2.2 * run.seconds_a_path, evals_a_row, FEWEST_HELD_OUT), 2)


def _bound(log_weights) -> float:
    """Mean log weight of what falls into the support, less the log of its share; ``-inf`` where nothing does.

    The lowest hundredth counts as the next one: a path in thousands that goes astray would decide for all.
    """
    lowest = log_weights.sort().values[int(ASTRAY * len(log_weights))]
    log_weights = log_weights.clamp(min=lowest)
    finite = log_weights.isfinite()
    share = float(finite.double().mean())
    return float(log_weights[finite].mean()) + math.log(share) if share else -math.inf
