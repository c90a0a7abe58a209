"""Stan programs as energies, compiled by PyStan, which takes the better part of a minute the first time.

What needs no compiler is in ``test_adapters.py``, with a stand-in for PyStan's posterior.
"""

import functools

import numpy as np
import pytest
from test_adapters import (
    SCHOOLS,
    SIGMA,
    Y,
    check_contract,
    check_schools,
    check_schools_density,
    points,
    schools_parameters,
    value_and_gradient,
)

stan = pytest.importorskip("stan")

from skcds.adapters import _stan, from_stan  # noqa: E402

SCHOOLS_CODE = """
data { int<lower=0> J; vector[J] y; vector<lower=0>[J] sigma; }
parameters { real mu; real<lower=0> tau; vector[J] z; }
transformed parameters { vector[J] theta = mu + tau * z; }
model {
  target += normal_lpdf(mu | 0, 5) + cauchy_lpdf(tau | 0, 5) + log(2) + std_normal_lpdf(z);
  target += normal_lpdf(y | theta, sigma);
}
generated quantities { vector[J] y_new; for (j in 1:J) y_new[j] = normal_rng(theta[j], sigma[j]); }
"""
SHAPES_CODE = """
parameters {
  simplex[3] share; matrix[2, 3] m; array[2] vector[3] a; cholesky_factor_corr[3] L; ordered[2] o; real<lower=1> s;
}
transformed parameters { matrix[2, 2] t = m[, 1:2] * s; }
model {
  if (o[1] > 5) reject("too far");
  share ~ dirichlet([1, 2, 3]'); to_vector(m) ~ normal(0, 1); L ~ lkj_corr_cholesky(2); o ~ normal(0, 1);
  for (i in 1:2) a[i] ~ normal(i, 1);
  s ~ exponential(1);
}
"""


@functools.cache
def posterior(code=SCHOOLS_CODE):
    return stan.build(code, data={"J": 8, "y": Y.tolist(), "sigma": SIGMA.tolist()} if "data" in code else {})


def check_against_pystan(energy, posterior, n=5):
    """PyStan's own methods, with the Jacobian; without it is another density."""
    X = points(n, energy.n_features)
    value, gradient = value_and_gradient(energy, X)
    np.testing.assert_allclose(value, [-posterior.log_prob(x) for x in X.tolist()], rtol=1e-12)
    np.testing.assert_allclose(gradient, np.negative([posterior.grad_log_prob(x) for x in X.tolist()]), rtol=1e-12)
    assert not np.allclose(value, [-posterior.log_prob(x, adjust_transform=False) for x in X.tolist()], rtol=1e-3)


def test_eight_schools():
    energy = from_stan(posterior())
    assert energy.feature_names == SCHOOLS
    assert energy.constrained_names == ["mu", "tau", "z", "theta"]
    assert isinstance(energy._program, _stan._Direct)
    check_contract(energy)
    check_against_pystan(energy, posterior())
    check_schools_density(energy)


@pytest.mark.slow
def test_a_fit_to_eight_schools():
    energy = from_stan(posterior())
    check_schools(energy, energy.constrain)


def test_constrain():
    X = points(5, 10)
    values = from_stan(posterior()).constrain(X)
    for name, expected in schools_parameters(X).items():
        np.testing.assert_allclose(values[name], expected, rtol=1e-12)


def test_the_way_through_the_server(monkeypatch):
    direct = from_stan(posterior())
    monkeypatch.setattr(_stan, "_program", _stan._Server)
    energy, X = from_stan(posterior()), points(3, 10)
    assert energy.feature_names == direct.feature_names
    np.testing.assert_allclose(energy(X), direct(X), rtol=1e-12)
    np.testing.assert_allclose(energy.constrain(X)["theta"], direct.constrain(X)["theta"], rtol=1e-12)


def test_the_fit_is_refused():
    with pytest.raises(TypeError, match=r"what stan.build returns.*which has no log_prob"):
        from_stan(posterior().param_names)


@pytest.mark.slow
def test_shapes_and_names():
    energy = from_stan(posterior(SHAPES_CODE))
    check_contract(energy)
    check_against_pystan(energy, posterior(SHAPES_CODE))
    names = [name.removesuffix(" (unconstrained)") for name in energy.feature_names]
    assert names[:2] == ["share[0]", "share[1]"]
    assert names[2:8] == [f"m[{i}, {j}]" for j in range(3) for i in range(2)]
    assert names[8:14] == [f"a[{i}, {j}]" for i in range(2) for j in range(3)]
    assert names[17:] == ["o[0]", "o[1]", "s"]
    X = points(5, energy.n_features)
    values = energy.constrain(X)
    assert list(values) == energy.constrained_names == ["share", "m", "a", "L", "o", "s", "t"]
    np.testing.assert_allclose(values["share"].sum(1), 1)
    for name in ("m", "a"):
        columns = {entry: X[:, j] for j, entry in enumerate(names)}
        for index in np.ndindex(values[name].shape[1:]):
            np.testing.assert_allclose(values[name][(slice(None), *index)], columns[f"{name}[{index[0]}, {index[1]}]"])
    np.testing.assert_allclose((values["L"] ** 2).sum(2), 1)
    assert (np.triu(values["L"], 1) == 0).all()
    np.testing.assert_allclose(values["t"], values["m"][:, :, :2] * values["s"][:, None, None])
    X[0, names.index("o[0]")] = 6
    with pytest.warns(RuntimeWarning, match=r"Stan rejected a point.*too far"):
        assert np.isinf(energy(X)).tolist() == [True, False, False, False, False]
