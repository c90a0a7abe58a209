"""What a likelihood returns beside its value stands beside weighted draws."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from samplers import make
from scipy import stats

from skcds.adapters import from_numpy, from_prior
from skcds.density.energy import InvalidEnergyError

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
NAMES = ["chi2", "residuals"]
PRIOR = {"a": stats.norm(0, 3), "b": (-4, 4)}


def of_point(x):
    return -0.5 * (x**2).sum(), 2 * x[0], x - 1


def of_many(x):
    return -0.5 * (x**2).sum(1), 2 * x[:, 0], x - 1


def of_tensors(x):
    assert isinstance(x, torch.Tensor)
    return of_many(x)


def with_gradient(x):
    return -0.5 * (x**2).sum(), -x, 2 * x[0], x - 1


def by_name(p):
    return -0.5 * (p["a"] ** 2 + p["b"] ** 2), 2 * p["a"], np.stack([p["a"] - 1, p["b"] - 1], -1)


def transform(u):
    return 4 * u - 2


ENERGIES = {
    "point": lambda: from_numpy(of_point, 2, blobs=NAMES),
    "batch": lambda: from_numpy(of_many, 2, batched=True, blobs=NAMES),
    "gradient": lambda: from_numpy(with_gradient, 2, grad=True, blobs=NAMES),
    "processes": lambda: from_numpy(of_point, 2, blobs=NAMES, n_jobs=2),
    "prior": lambda: from_prior(PRIOR, by_name, pass_dict=True, blobs=NAMES),
    "prior, points": lambda: from_prior(PRIOR, of_point, vectorize=False, blobs=NAMES),
    "prior, tensors": lambda: from_prior(PRIOR, of_tensors, blobs=NAMES),
    "cube": lambda: from_prior(transform, of_many, 2, blobs=NAMES),
}


def parameters(energy, X):
    return energy.parameters(X) if hasattr(energy, "parameters") else X


def check(columns, x):
    assert list(columns) == ["chi2", "residuals[0]", "residuals[1]"]
    np.testing.assert_allclose(columns["chi2"], 2 * x[:, 0], rtol=1e-12)
    np.testing.assert_allclose(np.column_stack([columns[f"residuals[{j}]"] for j in (0, 1)]), x - 1, rtol=1e-12)


@pytest.mark.parametrize("form", ENERGIES)
def test_energies_are_those_without_and_blobs_are_at_hand(form):
    energy = ENERGIES[form]()
    X = np.random.default_rng(0).uniform(0.1, 0.9, (7, 2))
    value = energy(X)
    assert value.shape == (7,) and np.isfinite(value).all()
    x = parameters(energy, X)
    np.testing.assert_allclose(np.diff(value), np.diff(0.5 * (x**2).sum(1) - prior_of(energy, X)), rtol=1e-9)
    check(energy.blobs(X), x)
    check(pickle.loads(pickle.dumps(energy)).blobs(X), x)
    assert energy.blobs(X[:0]) == {}


def prior_of(energy, X):
    return energy.log_prior(X) if hasattr(energy, "log_prior") else 0.0


@pytest.mark.parametrize("form", ["point", "prior, tensors", "cube"])
def test_weighted_draws_have_them(form):
    pytest.importorskip("pandas")
    energy = ENERGIES[form]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler = make("ConsistentSamplerScratch", max_iter=1, n_features=2).fit(energy)
        W = sampler.sample_weighted(50, random_state=0)
    x, inside = parameters(energy, W.samples), np.isfinite(W.log_weights)
    check({name: column[inside] for name, column in W.derived.items() if name in energy.blobs(X=W.samples)}, x[inside])
    assert {"chi2", "residuals[1]"} <= set(W.to_frame())
    assert "chi2" not in sampler.sample(3, random_state=0, as_frame=True)  # which calls no energy


def test_points_that_were_weighed_are_not_asked_again():
    calls = []

    def counted(x):
        calls.append(1)
        return of_point(x)

    energy = from_numpy(counted, 2, blobs=NAMES)
    X = np.random.default_rng(0).standard_normal((5, 2))
    energy(X)
    check(energy.blobs(X), X)
    assert len(calls) == 5
    check(energy.blobs(X + 1), X + 1)
    assert len(calls) == 10


def test_outside_of_the_support_they_are_nan():
    def half(x):
        return (-x[0] - 0.5 * x[1] ** 2 if x[0] > 0 else -np.inf), x[0]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler = make("ConsistentSamplerScratch", max_iter=1, n_features=2).fit(from_numpy(half, 2, blobs=["x"]))
        W = sampler.sample_weighted(400, random_state=0)
    outside = ~np.isfinite(W.log_weights)
    assert 0 < outside.sum() < 400
    assert np.array_equal(np.isnan(W.derived["x"]), outside)
    np.testing.assert_array_equal(W.derived["x"][~outside], W.samples[~outside, 0])


@pytest.mark.parametrize(
    "function, blobs, error, message",
    [
        (of_point, ["chi2"], InvalidEnergyError, "tuple of 2.*chi2; got 3"),
        (lambda x: -0.5 * x @ x, NAMES, InvalidEnergyError, "tuple of 3"),
        (of_point, [], ValueError, "list of names"),
        (of_point, "chi2", ValueError, "list of names"),
        (of_point, ["a", "a"], ValueError, "each once"),
        (of_point, ["x[0]", "r"], ValueError, "name of a parameter"),
        (lambda x: (-0.5 * x @ x, "text"), ["r"], InvalidEnergyError, "has to be a number"),
    ],
)
def test_what_is_wrong_is_named(function, blobs, error, message):
    def tried():
        energy = from_numpy(function, 2, blobs=blobs)
        energy(np.ones((2, 2)))
        energy.blobs(np.ones((2, 2)))

    with pytest.raises(error, match=message):
        tried()


def test_a_derived_quantity_of_the_same_name_is_refused():
    sampler = make("ConsistentSamplerScratch", max_iter=1, n_features=2)
    with pytest.raises(ValueError, match="another column"):
        sampler.fit(ENERGIES["point"](), derived={"chi2": lambda x: x[:, 0]})
