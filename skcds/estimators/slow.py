"""Energies that take long: a fit without a limit of evaluations sets itself one."""

__all__ = ["limit_slow"]

import time

import torch

from .._support.devices import generator_on, randn
from .._support.errors import Spent
from ..density.energy import Energy
from ..explore.few_evaluations import Adaptive
from ..explore.specifications import Pilot
from ..train.budget import Budget

FIRST_ROWS, MOST_ROWS = 16, 1024  # of the calls that measure the rate of evaluations
LONG = 0.05  # seconds of a call, after which no larger one is tried


def limit_slow(sampler, energy: Energy, budget: Budget) -> int:
    """Limit the evaluations of a fit that has no such limit, where the energy is slow; how many that took to find out.

    The energy does not count these: their number depends on the clock, and what a fit makes of its limit must not.

    A fit without limits makes millions of evaluations, which are hours where one takes a millisecond. Some ten thousand
    are enough if all are kept (see `skcds.explore.adaptive`). The limit is the largest of ``levels`` of `Adaptive` that
    ``seconds`` are enough for, and the smallest one in any case: coarse steps, so that fits on one machine agree.

    Under a limit of time the evaluations are limited to what half of the time allows, if that is little.
    """
    start = sampler._specified("start")
    by = start.adaptive if isinstance(start, Pilot) else Adaptive()
    limited = budget.max_energy_evals is not None or not isinstance(start, Pilot | None)
    if limited or energy.n_features > by.max_features:
        return 0
    most, seconds = by.max_evals, by.seconds
    if budget.max_time is not None:
        most, seconds = by.most_timed, max(budget.training.energy_time * budget.seconds_left(), LONG)
    enough = most / seconds
    if energy.evals_per_second >= enough:
        return 0
    before = energy.n_energy_evals
    try:
        affordable = seconds * _rate(energy, enough)
    except Spent:
        affordable = 0.0
    if budget.max_time is None and affordable < most:
        budget.limit_evals(max([by.levels[0], *(level for level in by.levels if level <= affordable)]))
    elif by.fewest_timed <= affordable < most:
        budget.limit_evals(int(affordable))
    n_gauged, energy.n_energy_evals = energy.n_energy_evals - before, before
    return n_gauged


def _rate(energy: Energy, enough: float) -> float:
    """Evaluations a second in large calls, or in calls that are large enough to tell that it is `enough`.

    Every size is tried twice, since the first call of a size may compile.
    """
    generator, rows, rate = generator_on(energy.device, 0), FIRST_ROWS, 0.0
    while rows <= MOST_ROWS:
        seconds = 0.0
        for _ in range(2):
            points = randn(generator, rows, energy.n_features, dtype=torch.float64)
            begun = time.perf_counter()
            energy.log_prob(points)
            seconds = time.perf_counter() - begun
        rate = rows / max(seconds, 1e-9)
        if rate >= enough or seconds > LONG:
            break
        rows *= 4
    return rate
