"""NumPyro models as energies."""

import random
import warnings
from functools import partial

import model_families
import numpy as np
import pytest
import torch
from cases import slow
from samplers import JUDGED, SMALL_CONTROL, SMALL_MAP, START
from sklearn.exceptions import ConvergenceWarning
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

numpyro = pytest.importorskip("numpyro")

import jax  # noqa: E402
import numpyro.distributions as dist  # noqa: E402
from numpyro import handlers  # noqa: E402
from numpyro.infer import util  # noqa: E402
from numpyro.infer.reparam import LocScaleReparam  # noqa: E402

from skcds import ConsistentSamplerScratch, SelfConsistency  # noqa: E402
from skcds.adapters import from_numpyro  # noqa: E402
from skcds.adapters._jax import double_precision  # noqa: E402


def schools(y, sigma):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("schools", 8):
        z = numpyro.sample("z", dist.Normal())
        theta = numpyro.deterministic("theta", mu + tau * z)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def shapes(y=None):
    """Sites whose order is not that of the alphabet, with constraints that change the number of coordinates."""
    share = numpyro.sample("share", dist.Dirichlet(np.ones(3)))
    factor = numpyro.sample("factor", dist.LKJCholesky(3, 2.0))
    rate = numpyro.sample("rate", dist.Uniform(-1, 4))
    with numpyro.plate("two", 2), numpyro.plate("three", 3):
        angle = numpyro.sample("angle", dist.Normal())
    numpyro.factor("extra", -0.1 * rate**2)
    numpyro.sample("b", dist.Normal(share @ angle[:, 0] + factor[2, 0], rate + 1.5), obs=y)


def library(model, args, X):
    """NumPyro's own potential and its gradient at the rows of X, sites in the order of the alphabet as in its trees."""
    with double_precision():
        info = util.initialize_model(jax.random.PRNGKey(1), model, model_args=args)
        sites = [site for site in info.model_trace if site in info.param_info.z]
        start = {site: info.param_info.z[site] for site in sites}
        potential = partial(util.potential_energy, handlers.seed(model, 0), args, {})
        value_and_grad = jax.jit(jax.value_and_grad(potential))
        values, gradients = [], []
        for x in X:
            params, first = {}, 0
            for site, value in start.items():
                params[site], first = x[first : first + value.size].reshape(value.shape), first + value.size
            value, gradient = value_and_grad(params)
            values.append(float(value))
            gradients.append(np.concatenate([np.ravel(gradient[site]) for site in sites]))
    return np.array(values), np.array(gradients)


def test_eight_schools():
    energy = from_numpyro(schools, Y, sigma=SIGMA)
    assert energy.feature_names == SCHOOLS
    assert energy.constrained_names == ["mu", "tau", "z", "theta"]
    check_contract(energy)
    check_schools_density(energy)
    check_schools(energy, energy.constrain)


@pytest.mark.parametrize("model, args", [(schools, (Y, SIGMA)), *slow((shapes, (0.3,)))])
def test_the_library_s_own_potential(model, args):
    energy = from_numpyro(model, *args)
    check_contract(energy)
    X = points(10, energy.n_features)
    value, gradient = value_and_gradient(energy, X)
    expected, expected_gradient = library(model, args, X)
    np.testing.assert_allclose(value, expected, rtol=1e-10)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-9, atol=1e-9)


def test_the_log_jacobian_is_in_it():
    """The density of the parameters themselves is another, by the Jacobian alone."""
    energy, X = from_numpyro(schools, Y, SIGMA), points(5, 10)
    with double_precision():
        parameters = schools_parameters(X)
        parameters = [{"mu": parameters["mu"][i], "tau": parameters["tau"][i], "z": X[i, 2:]} for i in range(5)]
        bare = np.array([float(util.log_density(schools, (Y, SIGMA), {}, p)[0]) for p in parameters])
    np.testing.assert_allclose(-energy(X) - bare, X[:, 1], rtol=1e-9)
    assert not np.allclose(-energy(X), bare, rtol=1e-3)


class TestConstrain:
    def test_shapes_and_names(self):
        energy = from_numpyro(shapes, 0.3)
        names = [name.removesuffix(" (unconstrained)") for name in energy.feature_names]
        assert names[:6] == ["share[0]", "share[1]", "factor[0]", "factor[1]", "factor[2]", "rate"]
        assert names[6:] == [f"angle[{i}, {j}]" for i in range(3) for j in range(2)]
        X = points(70, energy.n_features)
        values = energy.constrain(X)
        assert {name: value.shape for name, value in values.items()} == {
            "share": (70, 3), "factor": (70, 3, 3), "rate": (70,), "angle": (70, 3, 2),
        }  # fmt: skip
        assert list(values) == energy.constrained_names
        np.testing.assert_allclose(values["share"].sum(1), 1)
        np.testing.assert_allclose((values["factor"] ** 2).sum(2), 1)
        np.testing.assert_allclose(values["rate"], -1 + 5 / (1 + np.exp(-X[:, 5])))
        np.testing.assert_array_equal(values["angle"].reshape(70, 6), X[:, 6:])

    def test_deterministic_sites(self):
        energy, X = from_numpyro(schools, Y, SIGMA), points(5, 10)
        values = energy.constrain(X)
        for name, expected in schools_parameters(X).items():
            np.testing.assert_allclose(values[name], expected, rtol=1e-12)
        assert energy.constrain(X[:0])["theta"].shape == (0, 8)
        with pytest.raises(ValueError, match="constrain takes points"):
            energy.constrain(X[:, 1:])


class TestModels:
    def test_handlers(self):
        def centred(sigma):
            mu, tau = numpyro.sample("mu", dist.Normal(0, 5)), numpyro.sample("tau", dist.HalfCauchy(5))
            with numpyro.plate("schools", 8):
                theta = numpyro.sample("theta", dist.Normal(mu, tau))
                numpyro.sample("y", dist.Normal(theta, sigma))

        model = handlers.reparam(centred, config={"theta": LocScaleReparam(0)})
        energy = from_numpyro(handlers.condition(model, {"y": Y}), SIGMA)
        check_schools_density(energy)
        X = points(5, 10)
        np.testing.assert_allclose(energy.constrain(X)["theta"], schools_parameters(X)["theta"], rtol=1e-12)

    def test_an_improper_prior(self):
        def model():
            x = numpyro.sample("x", dist.ImproperUniform(dist.constraints.positive, (), (2,)))
            numpyro.factor("likelihood", -x.sum())

        X = points(5, 2)
        np.testing.assert_allclose(from_numpyro(model)(X), np.exp(X).sum(1) - X.sum(1), rtol=1e-12)

    def test_random_states_stay(self):
        def random_states():
            return np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), random.getstate()

        before = random_states()
        energy = from_numpyro(schools, Y, SIGMA)
        energy.constrain(points(3, 10))
        assert before == random_states()
        assert from_numpyro(schools, Y, SIGMA)(points(3, 10)).tolist() == energy(points(3, 10)).tolist()

    def test_what_is_refused(self):
        def discrete():
            numpyro.sample("x", dist.Normal())
            numpyro.sample("k", dist.Bernoulli(0.5))

        def subsample():
            mu = numpyro.sample("mu", dist.Normal())
            with numpyro.plate("rows", 8, subsample_size=4) as rows:
                numpyro.sample("y", dist.Normal(mu, 1), obs=Y[rows])

        def observed():
            numpyro.sample("y", dist.Normal(), obs=1.0)

        with pytest.raises(ValueError, match=r"discrete has discrete latent sites, k, .*sum over them"):
            from_numpyro(discrete)
        with pytest.raises(ValueError, match=r"subsample in the plates rows, .*leave out subsample_size"):
            from_numpyro(subsample)
        with pytest.raises(ValueError, match="observed has no latent site"):
            from_numpyro(observed)
        with pytest.raises(TypeError, match="model has to be a function"):
            from_numpyro({"y": Y})


@pytest.mark.slow
def test_arviz_has_the_model_s_parameters():
    arviz = pytest.importorskip("arviz")
    energy = from_numpyro(schools, Y, SIGMA)
    sampler = ConsistentSamplerScratch(
        n_steps=4,
        max_iter=5,
        random_state=0,
        start=START,
        network=SMALL_MAP,
        control=SMALL_CONTROL,
        objective=SelfConsistency(training=JUDGED),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        data = sampler.fit(energy).to_arviz(100, random_state=0)
    assert set(data.posterior.data_vars) == {"mu", "tau", "z", "theta"}
    assert (data.posterior["tau"] > 0).all() and data.posterior["theta"].shape == (4, 25, 8)
    assert "tau" in arviz.summary(data).index


def conjugate(y, k):
    mean = numpyro.sample("mean", dist.Normal(0, 2).expand([2]).to_event(1))
    rate = numpyro.sample("rate", dist.Gamma(2, 1))
    y = numpyro.sample("y", dist.Normal(model_families.DESIGN @ mean, 0.5).to_event(1), obs=y)
    with numpyro.plate("counts", 2):
        numpyro.sample("k", dist.Poisson(rate), obs=k)
    numpyro.deterministic("total", rate + y.sum())


@pytest.fixture(scope="module")
def family():
    return from_numpyro(conjugate, np.zeros(3, int), model_families.K).family()  # data of another type


class TestFamily:
    def test_energy(self, family):
        model_families.check_energy(family, partial(from_numpyro, conjugate))

    def test_simulation(self, family):
        model_families.check_simulation(family)

    def test_fit(self, family):
        model_families.check_fit(family)

    def test_conditioned_models(self, family):
        data = {"y": model_families.Y, "k": model_families.K}
        model = handlers.condition(lambda: conjugate(None, None), data)
        C, X = family.simulate(5, 0)
        np.testing.assert_allclose(from_numpyro(model).family()(X, C), family(X, C), rtol=1e-12)

    def test_a_support_that_depends_on_the_data(self):
        """x ~ U(0, 1), y ~ U(0, x): the density of the logit of x at y is that of the prior times 1 / x."""

        def model(y):
            x = numpyro.sample("x", dist.Uniform(0, 1))
            numpyro.sample("y", dist.Uniform(0, x), obs=y)

        family = from_numpyro(model, 0.1).family()
        C, X = family.simulate(500, 0)
        values = family.constrain(X, C)["x"]
        assert (C[:, 0] < values).all()
        np.testing.assert_allclose(family(X, C), -np.log1p(-values), rtol=1e-9, atol=1e-9)

    def test_what_is_refused(self, family):
        model_families.check_what_is_refused(family)

        def factor(y):
            x = numpyro.sample("x", dist.Normal())
            numpyro.factor("extra", -(x**4))
            numpyro.sample("y", dist.Normal(x, 1), obs=y)

        def scaled(y):
            with handlers.scale(scale=0.5):
                numpyro.sample("y", dist.Normal(numpyro.sample("x", dist.Normal()), 1), obs=y)

        def improper(y):
            x = numpyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))
            numpyro.sample("y", dist.Normal(x, 1), obs=y)

        def masked(y):
            with handlers.mask(mask=False):
                x = numpyro.sample("x", dist.Normal())
            numpyro.sample("y", dist.Normal(x, 1), obs=y)

        faults = [(factor, "factors: extra"), (scaled, "scaled sites: x, y"), (improper, "improper priors: x")]
        for model, fault in [*faults, (masked, "masked priors: x")]:
            other = from_numpyro(model, 1.0).family()
            assert other.context_names == ["y"]
            assert np.isfinite(other(np.zeros((2, 1)), np.array([[1.0], [2.0]]))).all()
            with pytest.raises(ValueError, match=f"cannot simulate draws of its posteriors, since it has {fault}"):
                other.simulate(10)
        with pytest.raises(ValueError, match="has no observed data to be a context"):
            from_numpyro(factor, None).family()
