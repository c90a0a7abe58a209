"""The density of one-step draws: at the draws, over all of space, and for random maps, without a fit."""

import copy
import inspect

import joblib
import numpy as np
import pandas
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_samplers import random_sampler
from samplers import KINDS, ONE_STEP, fitted, quadratic
from scipy.stats import norm
from sklearn.exceptions import NotFittedError

from skcds import ConsistentSamplerDistiller, ConsistentSamplerScratch, DiffusionSampler
from skcds.estimators import densities
from skcds.models.maps import standard_normal_log_prob

each = pytest.mark.parametrize("kind", ONE_STEP)
BOUNDS = {"none": None, "box": [(-1.0, 2.0), (0.0, 1.0)], "half": [(0.0, None), (None, 1.0)]}
SEVERAL = {"n_steps": 4, "method": "map"}  # of draws from scratch


# ------------------------------------------------------------------------------------------------ at draws


@each
def test_it_is_what_the_weights_divide_by(kind):
    """log q = log rho - log w at the draws of a fit, to single precision."""
    sampler = fitted(kind)
    W = sampler.sample_weighted(2000, random_state=0)
    log_q = -quadratic(torch.from_numpy(W.samples)).numpy() - W.log_weights
    found = sampler.score_samples(W.samples)
    assert found.dtype == np.float64 and found.shape == (2000,)
    np.testing.assert_allclose(found, log_q, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Pareto k")
@pytest.mark.parametrize("steps", [{}, SEVERAL])
@pytest.mark.parametrize("bounds", BOUNDS)
def test_bounds_and_several_steps_are_in_it(bounds, steps):
    sampler = random_sampler("ConsistentSamplerScratch", 0, bounds=BOUNDS[bounds], tails=bounds == "none", strength=0.1)
    X, log_q = sampler.sample(3000, random_state=0, return_log_density=True, **steps)
    W = sampler.sample_weighted(3000, random_state=0, energy_fn=lambda x: (x**2).sum(1), **steps)
    assert np.array_equal(X, W.samples) and np.array_equal(X, sampler.sample(3000, random_state=0, **steps))
    np.testing.assert_allclose(log_q, -(X**2).sum(1) - W.log_weights, atol=1e-4)
    np.testing.assert_allclose(sampler.score_samples(X, **steps), log_q, atol=1e-4)


@each
def test_both_in_one_pass_however_they_are_asked_for(kind):
    """Batches, several workers, data frames and an array of the user's have the same draws and densities."""
    sampler, n = copy.copy(fitted(kind)), densities.CHUNK_ROWS + 100
    X, log_q = sampler.sample(n, random_state=0, return_log_density=True)
    assert log_q.shape == (n,) and np.array_equal(X, sampler.sample(n, random_state=0))
    batches = [*sampler.iter_samples(n, 3000, random_state=0, return_log_density=True)]
    assert np.array_equal(X, np.concatenate([batch for batch, _ in batches]))
    assert np.array_equal(log_q, np.concatenate([part for _, part in batches]))
    out = np.empty((n, 3))
    found, log_density = sampler.sample(n, random_state=0, return_log_density=True, out=out)
    assert found is out and np.array_equal(out, X) and np.array_equal(log_density, log_q)
    frame, log_density = sampler.sample(n, random_state=0, return_log_density=True, as_frame=True)
    assert np.array_equal(frame.to_numpy(), X) and np.array_equal(log_density, log_q)
    if kind == ONE_STEP[0]:
        with joblib.parallel_config("threading"):
            there = sampler.set_params(n_jobs=2).sample(n, random_state=0, return_log_density=True)
        np.testing.assert_allclose(there[1], log_q, atol=1e-4)  # another number of threads may sum in another order
    X, log_q = sampler.sample(0, return_log_density=True)
    assert X.shape == (0, 3) and log_q.shape == sampler.score_samples(X).shape == (0,)


# ---------------------------------------------------------------------------------------------- everywhere


def axis(bound, n=400, reach=9.0):
    """Points of one coordinate and their weights in an integral, evenly spread on a normal scale, by SciPy."""
    low, high = (None, None) if bound is None else bound
    y = np.linspace(-reach, reach, n)
    if low is None and high is None:
        return y, np.full(n, y[1] - y[0])
    slope = norm.pdf(y) * (y[1] - y[0])
    if low is not None and high is not None:
        return low + (high - low) * norm.cdf(y), (high - low) * slope
    odds, slope = np.exp(norm.logcdf(y) - norm.logcdf(-y)), slope / norm.cdf(-y) ** 2
    return (low + odds if high is None else high - odds), slope


def integral(density, bounds):
    """Over the plane, on a grid of 160 000 points."""
    (x, dx), (y, dy) = (axis(bound) for bound in (bounds or [None, None]))
    grid = np.stack(np.meshgrid(x, y, indexing="ij"), -1).reshape(-1, 2)
    return dx @ np.exp(density(grid)).reshape(len(x), len(y)) @ dy


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("kind, steps", [(ONE_STEP[0], {}), (ONE_STEP[1], SEVERAL)])
def test_it_integrates_to_one_in_the_users_coordinates(kind, steps, bounds):
    sampler = random_sampler(kind, 1, bounds=BOUNDS[bounds], tails=bounds == "none", strength=0.2)
    found = integral(lambda x: sampler.score_samples(x, **steps), BOUNDS[bounds])
    assert found == pytest.approx(1, abs=1e-3)


def test_the_integral_can_tell():
    """Negative controls: a density without the slope of the bounds, and one in standardised coordinates."""
    sampler = random_sampler(ONE_STEP[0], 1, bounds=BOUNDS["box"], strength=0.2)

    def in_the_latent_space(x):
        log_prob = sampler._inverse(sampler._map_steps())
        return log_prob(torch.from_numpy(sampler._standardize(x))).numpy()

    assert abs(integral(in_the_latent_space, BOUNDS["box"]) - 1) > 0.01
    assert abs(integral(lambda x: sampler.score_samples(x) + 0.01, BOUNDS["box"]) - 1) > 1e-3


@given(
    kind=st.sampled_from(ONE_STEP), seed=st.integers(0, 10**6), log_steps=st.integers(0, 3), tails=st.booleans(),
    bounds=st.lists(st.sampled_from([None, (0.0, 1.0), (-2.0, None), (None, 3.0)]), min_size=1, max_size=5),
)  # fmt: skip
def test_it_is_the_change_of_variables_for_any_map(kind, seed, log_steps, tails, bounds):
    """Of wild random maps, in double precision: draws in single precision do not tell their steep places apart."""
    d = len(bounds)
    sampler = random_sampler(kind, seed, d, bounds, tails, strength=0.3)
    steps = {} if kind == ONE_STEP[0] else {"n_steps": 2**log_steps, "method": "map"}
    step_map, normal = copy.deepcopy(sampler._model.map).double(), np.random.RandomState(seed)
    latent = torch.from_numpy(normal.uniform(-3, 3, (40, d)))
    z, log_q = latent, standard_normal_log_prob(latent)
    for level, to in sampler._map_steps(**steps):
        z, log_det = step_map.call_and_log_det(z, level.double(), None if to is None else to.double())
        log_q = log_q - log_det
    x = sampler._unstandardize(z)
    far = (np.abs(sampler._model.standardization(z).numpy()) > 6).any(1)  # bounds tell such points apart no more
    expected = sampler._in_users_coordinates(z, log_q)
    np.testing.assert_allclose(sampler.score_samples(x, **steps)[~far], expected[~far], rtol=1e-5, atol=1e-5)


@each
def test_rows_depend_on_no_others(kind, monkeypatch):
    X = np.random.RandomState(0).normal(size=(100, 3))
    together = fitted(kind).score_samples(X)
    alone = np.concatenate([fitted(kind).score_samples(row[None]) for row in X])
    np.testing.assert_allclose(together, alone, atol=1e-9)
    monkeypatch.setattr(densities, "CHUNK_ROWS", 7)  # memory does not grow with the rows
    np.testing.assert_allclose(together, fitted(kind).score_samples(X), atol=1e-9)


# --------------------------------------------------------------------------------------------------- input


def test_outside_on_the_bounds_and_at_infinity():
    sampler = random_sampler(ONE_STEP[1], 0, bounds=[(0.0, 1.0), None])
    X = [[0.5, 0.0], [0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [2.0, 0.0], [0.5, np.inf], [0.5, -np.inf], [0.5, 1e300]]
    found = sampler.score_samples(X)
    assert np.isfinite(found[0]) and (found[1:7] == -np.inf).all() and found[7] < -1e10


@each
def test_points_are_checked(kind):
    sampler, X = fitted(kind), np.ones((4, 3))
    with pytest.raises(ValueError, match="NaN in 1 of 4 rows, the first in row 2"):
        sampler.score_samples(np.where(np.arange(4)[:, None] == 2, np.nan, X))
    with pytest.raises(ValueError, match=r"X has 2 features, but ConsistentSampler.* is expecting 3"):
        sampler.score_samples(X[:, :2])
    with pytest.raises(ValueError, match="Expected 2D array"):
        sampler.score_samples(X[0])
    with pytest.raises(NotFittedError):
        type(sampler)().score_samples(X)


def test_columns_of_a_data_frame_go_by_name():
    sampler = copy.copy(fitted(ONE_STEP[0]))
    frame = sampler.sample_weighted(50, random_state=0).to_frame()  # with a column log_weight
    expected = sampler.score_samples(frame[["x0", "x1", "x2"]].to_numpy())
    assert np.array_equal(sampler.score_samples(frame[["log_weight", "x2", "x0", "x1"]]), expected)
    other = pandas.DataFrame(frame[["x0", "x1", "x2"]].to_numpy(), columns=["a", "b", "c"])
    assert np.array_equal(sampler.score_samples(other), expected)  # the sampler has no names of its own
    sampler.feature_names_out_ = np.array(["b", "c", "d"], dtype=object)
    with pytest.raises(ValueError, match=r"X has columns \['a', 'b', 'c'\], and .* features \['b', 'c', 'd'\]"):
        sampler.score_samples(other)


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    "kind, options, message",
    [
        (ONE_STEP[0], {"n_steps": 2}, "noised between two calls"),
        (ONE_STEP[1], {"n_steps": 4}, "take n_steps=1 or method='map'"),
        (ONE_STEP[1], {"n_steps": 4, "method": "chain"}, "have? no closed form|has no closed form"),
        (ONE_STEP[1], {"n_steps": 3}, "n_steps has to be one of 1, 2, 4, 8"),
    ],
)
def test_draws_without_a_closed_form_are_refused(kind, options, message):
    sampler = random_sampler(kind, 0)
    with pytest.raises(ValueError, match=message):
        sampler.score_samples(np.zeros((2, 2)), **options)
    with pytest.raises(ValueError, match=message):
        sampler.sample(2, return_log_density=True, **options)
    with pytest.raises(ValueError, match=message):
        sampler.iter_samples(2, return_log_density=True, **options)


@each
def test_residual_maps_and_polished_draws_are_refused(kind):
    residual = random_sampler(kind, 0, network="residual")
    for call in (lambda: residual.score_samples(np.zeros((2, 2))), lambda: residual.sample(2, return_log_density=True)):
        with pytest.raises(ValueError, match="a residual map has none: fit with network='coupling'"):
            call()
    with pytest.raises(ValueError, match="polish= moves them"):
        fitted(kind).sample(2, polish=3, return_log_density=True)


def test_the_many_step_sampler_names_those_that_have_a_density():
    with pytest.raises(AttributeError, match="ConsistentSamplerDistiller and ConsistentSamplerScratch have one"):
        DiffusionSampler().score_samples([[0.0]])
    assert not hasattr(DiffusionSampler(), "score_samples")
    assert hasattr(ConsistentSamplerScratch(), "score_samples") and hasattr(
        ConsistentSamplerDistiller(), "score_samples"
    )


# -------------------------------------------------------------------------------------- seeds of all calls


@pytest.mark.parametrize("kind", KINDS)
def test_a_generator_is_a_seed_wherever_there_is_one(kind):
    """A `numpy.random.Generator` gives the same draws when it is as new, and moves on."""
    sampler = fitted(kind)
    names = [name for name in dir(type(sampler)) if name[0] != "_" and hasattr(sampler, name) and name != "calibrate"]
    seeded = [name for name in names if "random_state" in inspect.signature(getattr(sampler, name)).parameters]
    assert {"sample", "sample_weighted", "iter_samples", "diagnose", "score", "to_arviz"} <= set(seeded)
    for name in seeded:
        method = getattr(sampler, name)
        seed, same = np.random.default_rng(0), np.random.default_rng(0)
        outcomes = [repr(draws(method(n=100, random_state=one))) for one in (seed, same, seed)]
        assert outcomes[0] == outcomes[1], name
        if name not in ("diagnose", "to_arviz"):  # what these print is rounded
            assert outcomes[0] != outcomes[2], name
        assert "numpy.random.Generator" in inspect.getdoc(method), name


def draws(value):
    return list(value) if inspect.isgenerator(value) else getattr(value, "samples", value)
