"""Energies that take long: what a fit without limits may cost."""

import time
import warnings

import pytest
import torch
from samplers import KINDS, SHORT, D, make, quadratic

from skcds import ConsistentSamplerScratch, Pilot
from skcds.density.energy import Energy
from skcds.estimators.judgement import advice_by_cause
from skcds.estimators.slow import limit_slow
from skcds.specifications import Adaptive
from skcds.train.budget import Budget


class Slow:
    """`quadratic`, a row after the other, each of which takes its time; rows are counted."""

    def __init__(self, seconds):
        self.seconds, self.rows = seconds, 0

    def __call__(self, x):
        self.rows += len(x)
        time.sleep(self.seconds * len(x))
        return quadratic(x)


def limit(energy_fn, max_time=None, max_energy_evals=None, n_features=D, **params):
    """What the limit of a fit becomes."""
    budget = Budget(max_time, max_energy_evals)
    budget.energy = energy = Energy(energy_fn, n_features, generator=torch.Generator().manual_seed(0), monitor=budget)
    limit_slow(ConsistentSamplerScratch(**params), energy, budget)
    return budget.max_energy_evals


def test_a_fast_energy_has_no_limit():
    energy_fn = Slow(0)
    assert limit(energy_fn) is None
    assert energy_fn.rows < 3000


@pytest.mark.parametrize(("seconds", "expected"), [(7e-4, 100_000), (2e-3, 30_000), (8e-3, 10_000), (0.03, 10_000)])
def test_a_slow_energy_has_the_largest_limit_that_two_minutes_allow(seconds, expected):
    """Milliseconds amid their level, so that a machine a third slower finds the same."""
    energy_fn = Slow(seconds)
    assert limit(energy_fn) == expected
    assert energy_fn.rows < 1000


def test_limits_of_the_user_stay():
    assert limit(Slow(8e-3), max_energy_evals=700) == 700
    assert limit(Slow(8e-3), max_time=5.0, max_energy_evals=900) == 900


@pytest.mark.parametrize(("seconds", "max_time"), [(2e-3, 20.0), (5e-4, 60.0)])
def test_a_limit_of_time_is_one_of_evaluations(seconds, max_time):
    """Half of the time; calls on a busy machine take longer than they sleep."""
    assert 0.2 < limit(Slow(seconds), max_time=max_time) * seconds / max_time <= 0.5


def test_where_time_allows_for_very_few_or_for_many_there_is_none():
    assert limit(Slow(2e-2), max_time=5.0) is None
    assert limit(Slow(0), max_time=60.0) is None


def test_neither_from_the_prior_nor_in_many_dimensions():
    assert limit(Slow(8e-3), start="prior") is None
    assert limit(Slow(8e-3), n_features=65) is None


def test_the_seconds_are_a_parameter():
    hour = Pilot(adaptive=Adaptive(seconds=3600.0))
    assert limit(Slow(2e-3), start=hour) is None


@pytest.mark.parametrize(
    "kind",
    ["ConsistentSamplerScratch", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[:2])],
)
def test_fits_keep_to_it(kind):
    """The teacher that a student fits on the way included; two fits agree, whatever measuring the rate took."""
    start = Pilot((0.0, 2.0), n_particles=500, adaptive=Adaptive(**vars(SHORT) | {"levels": (600,)}))
    draws = []
    for seconds in (6e-4, 1.5e-3):
        energy_fn = Slow(seconds)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sampler = make(kind, start=start).fit(energy_fn)
        assert sampler.n_energy_evals_ == energy_fn.rows <= 600 + 700
        draws.append(sampler.sample(5, random_state=0))
    assert (draws[0] == draws[1]).all()


def test_a_limit_of_its_own_is_not_what_a_user_is_told_to_raise():
    for limits_itself, name in [(True, "max_time"), (False, "max_energy_evals")]:
        budget = Budget(60.0, None if limits_itself else 100)
        budget.energy = Energy(quadratic, D, generator=torch.Generator().manual_seed(0))
        if limits_itself:
            budget.limit_evals(100)
        budget.energy.n_energy_evals = 100
        assert f"when {name} was used up" in advice_by_cause(budget, 5, 10, "")
