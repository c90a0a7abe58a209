"""PyMC models as energies."""

import functools

import model_families
import numpy as np
import pytest
from cases import slow
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

pm = pytest.importorskip("pymc")

from skcds.adapters import from_pymc  # noqa: E402


def schools():
    with pm.Model() as model:
        mu, tau, z = pm.Normal("mu", 0, 5), pm.HalfCauchy("tau", 5), pm.Normal("z", 0, 1, shape=8)
        pm.Normal("y", pm.Deterministic("theta", mu + tau * z), SIGMA, observed=Y)
    return model


def shapes():
    """Transforms that change the number of coordinates, a matrix, a potential and a named model."""
    with pm.Model(name="m") as model:
        share = pm.Dirichlet("share", np.ones(3))
        rate = pm.Uniform("rate", -1, 4)
        angle = pm.MvNormal("angle", np.zeros(2), np.array([[1.0, 0.3], [0.3, 0.5]]), shape=(3, 2))
        pm.Potential("extra", -0.1 * rate**2)
        pm.Normal("y", share @ angle[:, 0], rate + 1.5, observed=0.3)
    return model


@functools.cache
def adapted(make, vectorize=True):
    return from_pymc(make(), vectorize=vectorize)


@pytest.mark.parametrize("make, vectorize", [(schools, True), (schools, False), (shapes, True), (shapes, False)])
def test_the_library_s_own_density(make, vectorize):
    """As ``logp_dlogp_function`` has it; without the Jacobian it is another."""
    energy, model = adapted(make, vectorize), make()
    assert energy.vectorize is vectorize
    check_contract(energy)
    function = model.logp_dlogp_function(ravel_inputs=True)
    function.set_extra_values({})
    X = points(10, energy.n_features)
    value, gradient = value_and_gradient(energy, X)
    expected, expected_gradient = zip(*(function(x) for x in X), strict=True)
    np.testing.assert_allclose(value, np.negative(expected), rtol=1e-10)
    np.testing.assert_allclose(gradient, np.negative(expected_gradient), rtol=1e-9, atol=1e-9)
    bare = model.compile_fn(model.logp(jacobian=False), inputs=model.value_vars, point_fn=False)
    first, arguments = 0, []
    for variable in model.value_vars:
        start = model.initial_point(random_seed=0)[variable.name]
        arguments.append(X[0, first : first + start.size].reshape(start.shape))
        first += start.size
    assert abs(value[0] + bare(*arguments)) > 1e-3


def test_eight_schools():
    energy = adapted(schools)
    assert energy.feature_names == SCHOOLS
    assert energy.constrained_names == ["mu", "tau", "z", "theta"]
    check_schools_density(energy)
    check_schools(energy, energy.constrain)


@pytest.mark.parametrize("vectorize", [True, False])
def test_constrain(vectorize):
    energy = adapted(shapes, vectorize)
    names = [name.removesuffix(" (unconstrained)") for name in energy.feature_names]
    assert names[:3] == ["m::share[0]", "m::share[1]", "m::rate"]
    assert names[3:] == [f"m::angle[{i}, {j}]" for i in range(3) for j in range(2)]
    X = points(1500, energy.n_features)
    values = energy.constrain(X)
    assert {name: value.shape for name, value in values.items()} == {
        "m::share": (1500, 3), "m::rate": (1500,), "m::angle": (1500, 3, 2),
    }  # fmt: skip
    np.testing.assert_allclose(values["m::share"].sum(1), 1)
    np.testing.assert_allclose(values["m::rate"], -1 + 5 / (1 + np.exp(-X[:, 2])))
    np.testing.assert_array_equal(values["m::angle"].reshape(1500, 6), X[:, 3:])
    assert energy.constrain(X[:0])["m::angle"].shape == (0, 3, 2)


def test_deterministic_variables():
    X = points(5, 10)
    values = adapted(schools).constrain(X)
    for name, expected in schools_parameters(X).items():
        np.testing.assert_allclose(values[name], expected, rtol=1e-12)


def test_what_is_refused():
    with pm.Model() as discrete:
        pm.Normal("x")
        pm.Poisson("k", 3)
    with pm.Model() as observed:
        pm.Normal("y", observed=1.0)
    with pm.Model() as random:
        pm.Normal("y", pm.Normal("mu"), observed=pm.Minibatch(Y, batch_size=4), total_size=8)
    with pytest.raises(ValueError, match=r"discrete free variables, k, .*sum over them"):
        from_pymc(discrete)
    with pytest.raises(ValueError, match="no free variable"):
        from_pymc(observed)
    with pytest.raises(ValueError, match=r"is random, as with pm.Minibatch"):
        from_pymc(random)
    with pytest.raises(TypeError, match=r"pymc.Model; got function"):
        from_pymc(schools)


def conjugate(y, k):
    with pm.Model() as model:
        mean, rate = pm.Normal("mean", 0, 2, shape=2), pm.Gamma("rate", 2, 1)
        y = pm.Normal("y", pm.math.dot(model_families.DESIGN, mean), 0.5, observed=y)
        pm.Poisson("k", rate, observed=k)
        pm.Deterministic("total", rate + y.sum())
    return model


@functools.cache
def family(vectorize=True):
    return from_pymc(conjugate(np.zeros(3, int), model_families.K), vectorize=vectorize).family()


class TestFamily:
    @pytest.mark.parametrize("vectorize", [True, *slow(False)])
    def test_energy(self, vectorize):
        model_families.check_energy(family(vectorize), lambda y, k: from_pymc(conjugate(y, k)))

    def test_simulation(self):
        model_families.check_simulation(family())

    def test_fit(self):
        model_families.check_fit(family())

    def test_what_is_refused(self):
        model_families.check_what_is_refused(family())
        with pm.Model() as potential:
            x = pm.Normal("x")
            pm.Potential("extra", -(x**4))
            pm.Normal("y", x, observed=pm.Data("data", [1.0, 2.0]))
        other = from_pymc(potential).family()
        assert other.context_names == ["y[0]", "y[1]"]
        expected = from_pymc(potential)(np.ones((1, 1)))
        np.testing.assert_allclose(other(np.ones((1, 1)), np.array([[1.0, 2.0]])), expected, rtol=1e-10)
        with pytest.raises(ValueError, match="cannot simulate draws of its posteriors, since it has potentials: extra"):
            other.simulate(10)
        with pm.Model() as flat:
            pm.Normal("y", pm.Flat("x"), observed=1.0)
        with pytest.raises(ValueError, match=r"one of its variables cannot be drawn .*flat"):
            from_pymc(flat).family().simulate(10)
        with pm.Model() as nothing:
            pm.Normal("x")
        with pytest.raises(ValueError, match="has no observed data to be a context"):
            from_pymc(nothing).family()
