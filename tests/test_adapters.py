"""Energies from elsewhere: what all share, NumPy functions, and a stand-in for PyStan's posterior.

The eight schools, here, are what the tests of the other libraries compare with: a log density written in NumPy, and
posterior moments and evidence by quadrature over log tau, everything else being Gaussian given it.
"""

import functools
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from samplers import make
from scipy.special import logsumexp

import skcds.adapters
from skcds.adapters import from_jax, from_numpy, from_numpyro, from_pymc, from_stan
from skcds.density.energy import Energy, InvalidEnergyError

Y = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
SCHOOLS = [
    "mu",
    "tau (unconstrained)",
    *(f"z[{j}]" for j in range(8)),
]  # the unconstrained coordinates; that of tau is its logarithm
D = len(SCHOOLS)
LOG_2PI = np.log(2 * np.pi)
Z = 5.6  # standard errors: 2e-8 two-sided


# ------------------------------------------------------------------------------------------ eight schools, exactly
def schools_log_prob(x):
    """Log of prior times likelihood at (mu, log tau, z), (..., 10), with the log Jacobian of the logarithm.

    mu ~ N(0, 5), tau ~ HalfCauchy(5), z ~ N(0, 1), y ~ N(mu + tau z, sigma).
    """
    return schools_without_jacobian(x) + x[..., 1]


def schools_without_jacobian(x):
    """The same without the Jacobian, which every test has to tell from it."""
    mu, tau, z = x[..., 0], np.exp(x[..., 1]), x[..., 2:]
    residual = (Y - mu[..., None] - tau[..., None] * z) / SIGMA
    log_prob = -0.5 * ((mu / 5) ** 2 + (z**2).sum(-1) + (residual**2).sum(-1)) - 8.5 * LOG_2PI - np.log(SIGMA).sum()
    return log_prob - np.log(5) + np.log(2 / np.pi) - np.log(5) - np.log1p((tau / 5) ** 2)


def schools_gradient(x):
    mu, tau, z = x[..., 0], np.exp(x[..., 1]), x[..., 2:]
    pull = (Y - mu[..., None] - tau[..., None] * z) / SIGMA**2
    d_tau = (pull * z).sum(-1) * tau + 1 - 2 * (tau / 5) ** 2 / (1 + (tau / 5) ** 2)
    return np.concatenate([(pull.sum(-1) - mu / 25)[..., None], d_tau[..., None], tau[..., None] * pull - z], axis=-1)


def schools_moments(parameters):
    """Functions of the parameters, (n, 21), of which `schools_exactly` has the expectations."""
    mu, tau, theta = parameters["mu"], parameters["tau"], parameters["theta"]
    return np.column_stack([mu, mu**2, np.log(tau), np.log(tau) ** 2, tau, theta, theta**2])


@functools.cache
def schools_exactly(scale=5.0):
    """Log evidence and the expectations of `schools_moments`, by the trapezoidal rule over log tau."""
    tau = np.exp(np.linspace(-25, 15, 20_001))[:, None]
    v = SIGMA**2 + tau**2  # of y given mu and tau
    var_mu = 1 / (1 / 25 + (1 / v).sum(1))
    mu = var_mu * (Y / v).sum(1)
    log_p = 0.5 * (np.log(var_mu / 25) + mu**2 / var_mu - (Y**2 / v + np.log(v) + LOG_2PI).sum(1))
    t = tau[:, 0]
    log_p += np.log(2 / np.pi / scale) - np.log1p((t / scale) ** 2) + np.log(t) + np.log(40 / 20_000)
    weights = np.exp(log_p - logsumexp(log_p))
    shrink = tau**2 / v
    theta = mu[:, None] + shrink * (Y - mu[:, None])
    var_theta = shrink * SIGMA**2 + (1 - shrink) ** 2 * var_mu[:, None]
    values = [mu, mu**2 + var_mu, np.log(t), np.log(t) ** 2, t, theta, theta**2 + var_theta]
    return logsumexp(log_p), weights @ np.column_stack(values)


def schools_parameters(X):
    mu, tau = X[:, 0], np.exp(X[:, 1])
    return {"mu": mu, "tau": tau, "theta": mu[:, None] + tau[:, None] * X[:, 2:]}


def schools_errors(W, constrain, scale=5.0):
    """Of log evidence and 21 moments, in standard errors."""
    log_z, exact = schools_exactly(scale)
    mean, se = W.expectation(lambda x: schools_moments(constrain(x)), return_se=True)
    return np.concatenate([[(W.log_evidence - log_z) / W.log_evidence_se], (mean - exact) / se])


def check_schools(energy, constrain):
    """A small fit: its weighted draws agree with the quadrature, and do not where the density is a bit another.

    22 numbers within 5.6 standard errors: false alarms in 5e-7 of runs. The controls are a density without its log
    Jacobian and a prior of tau of half the scale.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler = make("DiffusionSampler", n_features=None, max_iter=60).fit(energy)
    assert sampler.feature_names_out_.tolist() == energy.feature_names
    W = sampler.sample_weighted(5000, random_state=1)
    assert W.pareto_k < 0.7 and W.ess > 1000  # so that standard errors hold
    assert np.abs(schools_errors(W, constrain)).max() < Z
    assert np.abs(schools_errors(W, constrain, scale=2.5)).max() > Z
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spoilt = sampler.sample_weighted(5000, random_state=1, energy_fn=lambda x: energy(x) + x[:, 1])
    assert np.abs(schools_errors(spoilt, constrain)).max() > Z


def check_schools_density(energy):
    """Values and gradients as in NumPy at random points; the density without the Jacobian is found out.

    To 1e-8 and not to rounding, since PyMC takes the logarithm of an integer in single precision, 6e-8 off.
    """
    X = points(50, D)
    value, gradient = value_and_gradient(energy, X)
    np.testing.assert_allclose(value, -schools_log_prob(X), rtol=1e-8)
    np.testing.assert_allclose(gradient, -schools_gradient(X), rtol=1e-9, atol=1e-9)
    assert not np.allclose(value, -schools_without_jacobian(X), rtol=1e-3)


# ------------------------------------------------------------------------------------------- what all adapters share
def points(n, d, seed=0):
    return np.random.RandomState(seed).randn(n, d)


def value_and_gradient(energy, X):
    x = torch.tensor(X, requires_grad=True)
    value = energy(x)
    return value.detach().numpy(), torch.autograd.grad(value.sum(), x)[0].numpy()


def check_contract(energy):
    """What an energy promises, whatever library it is from; its gradient by central differences, to 1e-6."""
    d = energy.n_features
    X = points(9, d)
    x = torch.tensor(X, requires_grad=True)
    value = energy(x)
    assert value.shape == (9,) and value.dtype == torch.float64 and value.requires_grad
    weights = torch.linspace(-1, 2, 9, dtype=torch.float64)
    (weighted,) = torch.autograd.grad((weights * value).sum(), x, create_graph=True)
    step = 1e-5
    differences = [(energy(X + step * e) - energy(X - step * e)) / (2 * step) for e in np.eye(d)]
    expected = weights.numpy()[:, None] * np.transpose(differences)
    np.testing.assert_allclose(weighted.detach(), expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(NotImplementedError, match="first derivative and no second"):
        torch.autograd.grad(weighted.sum(), x)

    with torch.no_grad():
        assert not energy(x).requires_grad and torch.equal(energy(x), value)
    assert not energy(x.detach()).requires_grad
    np.testing.assert_array_equal(energy(X), value.detach())  # an array for an array
    np.testing.assert_array_equal(X, points(9, d))  # and left as it was
    np.testing.assert_allclose(energy(X[:2]), energy(X)[:2], rtol=1e-12)
    assert torch.equal(energy(torch.tensor(X.T.copy()).T), value)  # strides do not matter
    single = torch.tensor(X, dtype=torch.float32, requires_grad=True)
    assert energy(single).dtype == torch.float64
    assert torch.autograd.grad(energy(single).sum(), single)[0].dtype == torch.float32
    assert energy(torch.empty(0, d)).shape == (0,)
    first = energy(x.detach())
    first += 1  # the caller's memory, not the library's
    assert torch.equal(energy(x.detach()), value)
    for wrong in (x[0], x[:, :-1], torch.zeros(3, d + 1)):
        with pytest.raises(ValueError, match=rf"shape \(n, {d}\)"):
            energy(wrong)

    assert len(energy.feature_names) == len(set(energy.feature_names)) == d
    assert energy.__name__ in repr(energy) and f"n_features={d}" in repr(energy)
    judged = Energy(energy, d, generator=torch.Generator().manual_seed(0))
    assert judged.framework == "torch" and judged.has_gradient and judged.dtype == torch.float64


class TestModule:
    def test_nothing_is_imported_before_it_is_needed(self):
        code = (
            "import sys, skcds.adapters; from skcds.adapters import from_numpyro; dir(skcds.adapters);"
            "known = {'jax', 'numpyro', 'pymc', 'pytensor', 'stan', 'httpstan'} & set(sys.modules);"
            "others = {m for m in sys.modules if m.startswith('skcds.adapters._')};"
            "wanted = {'skcds.adapters.' + m for m in ('_common', '_family', '_jax', '_numpyro')};"
            "sys.exit(f'{known} {others}' if known or others != wanted else 0)"
        )
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_names(self):
        assert set(skcds.adapters.__all__) <= set(dir(skcds.adapters))
        assert all(hasattr(skcds.adapters, name) for name in skcds.adapters.__all__)
        with pytest.raises(AttributeError, match="from_tensorflow"):
            _ = skcds.adapters.from_tensorflow

    @pytest.mark.parametrize(
        "adapter, args, module",
        [(from_jax, (np.sum, 2), "jax"), (from_numpyro, (np.sum,), "numpyro"), (from_pymc, (None,), "pymc")],
    )
    def test_what_is_missing_is_named(self, monkeypatch, adapter, args, module):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ImportError, match=rf'pip install "skcds\[{module}\]"'):
            adapter(*args)


# ------------------------------------------------------------------------------------------------------------- NumPy
def log_normal(x):
    return -0.5 * ((x - 1) ** 2).sum(-1)


MEMORY = np.empty(3)
VARIANTS = {
    "point": {"grad": lambda x: 1 - x},
    "batch": {"grad": lambda x: 1 - x, "batched": True},
    "point, pair": {"log_prob": lambda x: (log_normal(x), 1 - x), "grad": True},
    "batch, pair": {"log_prob": lambda x: (log_normal(x), 1 - x), "grad": True, "batched": True},
    "lists": {"log_prob": lambda x: float(log_normal(x)), "grad": lambda x: (1 - x).tolist()},
    "writes into its argument": {
        "log_prob": lambda x: (log_normal(x), x.fill(0.0))[0],
        "grad": lambda x: np.subtract(1, x, out=x),
        "batched": True,
    },
    "the same memory again and again": {"grad": lambda x: np.subtract(1, x, out=MEMORY)},
    "the same memory, pair": {"log_prob": lambda x: (log_normal(x), np.subtract(1, x, out=MEMORY)), "grad": True},
    "reversed": {"grad": lambda x: (1 - x[::-1])[::-1]},
}


class TestNumPy:
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_contract(self, variant):
        energy = from_numpy(**{"log_prob": log_normal, "n_features": 3, **VARIANTS[variant]})
        check_contract(energy)
        value, gradient = value_and_gradient(energy, points(20, 3))
        assert value == pytest.approx(-log_normal(points(20, 3)))
        assert gradient == pytest.approx(points(20, 3) - 1)

    @pytest.mark.parametrize("batched", [False, True])
    def test_without_a_gradient(self, batched):
        energy = from_numpy(log_normal, 3, batched=batched)
        judged = Energy(energy, 3)
        assert not judged.has_gradient and not energy.has_gradient
        assert judged.log_prob(torch.ones(2, 3)).tolist() == [0, 0]
        assert not energy(torch.ones(2, 3, requires_grad=True)).requires_grad

    def test_the_gradient_is_computed_where_it_is_needed(self):
        calls = []
        energy = from_numpy(log_normal, 3, grad=lambda x: calls.append(len(x)) or 1 - x, batched=True)
        x = torch.ones(5, 3, requires_grad=True)
        energy(x.detach())
        with torch.no_grad():
            energy(x)
        assert not calls
        energy(x).sum().backward()
        assert calls == [5]

    def test_outside_the_support(self):
        energy = from_numpy(lambda x: log_normal(x) if x[0] > 0 else -np.inf, 2, grad=lambda x: 1 - x)
        assert energy(np.array([[1.0, 1.0], [-1.0, 1.0]])).tolist() == [0.0, np.inf]

    def test_names(self):
        assert from_numpy(log_normal, 2).feature_names == ["x[0]", "x[1]"]
        assert from_numpy(log_normal, 2, feature_names=("a", "b")).feature_names == ["a", "b"]
        with pytest.raises(ValueError, match="feature_names has to be 2 names"):
            from_numpy(log_normal, 2, feature_names=["a"])
        with pytest.raises(ValueError, match="n_features has to be at least 1"):
            from_numpy(log_normal, 0)
        assert repr(from_numpy(log_normal, 2)) == "<energy of the NumPy function log_normal, n_features=2>"

    @pytest.mark.parametrize(
        "log_prob, options, message",
        [
            (lambda x: -(x**2), {}, r"log_prob has to be a real number .* \(3,\); got ndarray of shape \(3,\).*Sum"),
            (lambda x: log_normal(x)[..., None], {"batched": True}, r"shape \(4,\) .* shape \(4, 1\).*Drop the last"),
            (lambda x: -(x**2).sum(keepdims=True), {}, r"a real number .*shape \(1,\).* Drop the last axis"),
            (lambda x: -(x**2).sum(), {"batched": True}, r"one result for each row; pass batched=False"),
            (lambda x: None, {}, "got NoneType"),
            (lambda x: "low", {"batched": True}, "got str"),
            (lambda x: 1j, {}, "dtype complex128"),
            (lambda x: [[1.0], [2.0, 3.0]], {"batched": True}, "got list"),
            (lambda x: np.zeros(1 + (x[0] > 0)), {}, "a real number"),
            (log_normal, {"grad": True}, "has to return a pair"),
            (log_normal, {"grad": lambda x: x.sum()}, r"grad has to be an array of real numbers of shape \(3,\)"),
            (log_normal, {"grad": lambda x: x[:, :2], "batched": True}, r"shape \(4, 3\) .*got ndarray .*\(4, 2\)"),
            (lambda x: (log_normal(x), 0.0), {"grad": True}, r"the gradient has to be an array .*\(3,\)"),
        ],
    )  # fmt: skip
    def test_wrong_results(self, log_prob, options, message):
        energy = from_numpy(log_prob, 3, **options)
        with pytest.raises(InvalidEnergyError, match=message):
            energy(torch.tensor(points(4, 3), requires_grad=True))

    def test_errors_of_the_function(self):
        with pytest.raises(IndexError) as caught:
            from_numpy(lambda x: -x[:, 0], 3)(points(4, 3))
        assert sys.version_info < (3, 11) or "batched=True gives it a batch" in caught.value.__notes__[0]
        with pytest.raises(KeyError):
            from_numpy(log_normal, 3, grad=lambda x: {}["a"])(torch.ones(2, 3, requires_grad=True))

    def test_wrong_arguments(self):
        with pytest.raises(TypeError, match="log_prob has to be a function"):
            from_numpy(points(3, 3), 3)
        with pytest.raises(TypeError, match="grad has to be a function, True"):
            from_numpy(log_normal, 3, grad="yes")

    def test_eight_schools(self):
        energy = from_numpy(schools_log_prob, D, grad=schools_gradient, batched=True, feature_names=SCHOOLS)
        check_contract(energy)
        check_schools_density(energy)
        check_schools(energy, schools_parameters)

    def test_the_quadrature(self):
        """By weighting the prior, 22 numbers within 5.6 standard errors; half the scale of tau is found out."""
        rng = np.random.RandomState(0)
        n = 200_000
        X = np.column_stack([5 * rng.randn(n), np.log(5 * np.abs(rng.standard_cauchy(n))), rng.randn(n, 8)])
        theta = schools_parameters(X)["theta"]
        log_weights = (-0.5 * ((Y - theta) / SIGMA) ** 2 - np.log(SIGMA) - 0.5 * LOG_2PI).sum(1)
        W = skcds.WeightedSample(X, log_weights, is_bound=False)
        assert np.abs(schools_errors(W, schools_parameters)).max() < Z
        assert np.abs(schools_errors(W, schools_parameters, scale=2.5)).max() > Z


# -------------------------------------------------------------------------------------------------- a stand-in for Stan
class Posterior:
    """The attributes and methods of PyStan's model, for the eight schools and a simplex, without PyStan.

    Not compiled, and unknown to PyStan, so that the adapter takes the way through its public methods.
    """

    model_name = "models/stand-in"
    program_code = """
        data { int<lower=0> J; vector[J] y; vector[J] sigma; } // parameters { real mu; }
        parameters { real mu; real<lower=0> tau; /* { */ vector[J] z; simplex[3] p; }
        transformed parameters { vector[J] theta = mu + tau * z; }
        model { }
        generated quantities { real y_new = normal_rng(0, 1); }
    """
    data = {"J": 8, "y": Y.tolist(), "sigma": SIGMA.tolist()}
    param_names = ("mu", "tau", "z", "p", "theta", "y_new")
    dims = ([], [], [8], [3], [8], [])
    constrained_param_names = (
        "mu", "tau", *(f"z.{j + 1}" for j in range(8)), "p.1", "p.2", "p.3", *(f"theta.{j + 1}" for j in range(8)),
        "y_new",
    )  # fmt: skip

    def __init__(self):
        self.sizes = []

    def _check(self, unconstrained_parameters):
        assert isinstance(unconstrained_parameters, list)
        self.sizes.append(len(unconstrained_parameters))
        if len(unconstrained_parameters) != D + 2:
            message = "The number of parameters does not match the number of unconstrained parameters in the model."
            raise RuntimeError({"code": 400, "message": f"Error calling log_prob: `{message}`"})
        if unconstrained_parameters[0] > 100:
            raise RuntimeError({"code": 400, "message": "Error calling log_prob: `normal_lpdf: out of range`"})
        return np.array(unconstrained_parameters)

    def log_prob(self, unconstrained_parameters, adjust_transform=True):
        x = self._check(unconstrained_parameters)
        log_prob = schools_log_prob(x[:D]) if adjust_transform else schools_without_jacobian(x[:D])
        return float(log_prob - 0.5 * x[D:] @ x[D:])

    def grad_log_prob(self, unconstrained_parameters):
        x = self._check(unconstrained_parameters)
        return [*schools_gradient(x[:D]).tolist(), *(-x[D:]).tolist()]

    def constrain_pars(self, unconstrained_parameters, include_tparams=True, include_gqs=True):
        x = self._check(unconstrained_parameters)
        p = np.exp([*x[D:], 0.0])
        theta = (x[0] + np.exp(x[1]) * x[2:D]).tolist() if include_tparams else []
        return [x[0], np.exp(x[1]), *x[2:D], *(p / p.sum()), *theta, *([0.5] if include_gqs else [])]


class TestStanWithoutStan:
    def test_contract(self):
        energy = from_stan(Posterior())
        check_contract(energy)
        X = points(50, D + 2)
        expected = -schools_log_prob(X[:, :D]) + 0.5 * (X[:, D:] ** 2).sum(1)
        assert energy(X) == pytest.approx(expected)
        assert energy.feature_names == [*SCHOOLS, "p[0] (unconstrained)", "p[1] (unconstrained)"]

    def test_the_dimension_is_found_in_few_calls(self):
        posterior = Posterior()
        assert from_stan(posterior).n_features == D + 2
        assert posterior.sizes[:2] == [D + 3, D + 2]
        assert from_stan(Posterior(), n_features=D + 2).n_features == D + 2

    def test_constrain(self):
        X = points(5, D + 2)
        energy = from_stan(Posterior())
        values = energy.constrain(X)
        assert list(values) == energy.constrained_names == ["mu", "tau", "z", "p", "theta"]
        assert {name: value.shape for name, value in values.items()} == {
            "mu": (5,), "tau": (5,), "z": (5, 8), "p": (5, 3), "theta": (5, 8),
        }  # fmt: skip
        assert values["theta"] == pytest.approx(schools_parameters(X[:, :D])["theta"])
        assert energy.constrain(X[:0])["theta"].shape == (0, 8)
        with pytest.raises(ValueError, match="constrain takes points"):
            energy.constrain(X[0])

    def test_rejected_points(self):
        energy, x = from_stan(Posterior()), torch.zeros(2, D + 2, dtype=torch.float64)
        x[1, 0] = 101
        with pytest.warns(RuntimeWarning, match=r"Stan rejected a point.*out of range"):
            assert energy(x.requires_grad_())[1] == torch.inf
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert energy(x)[1] == torch.inf

    def test_errors(self, monkeypatch):
        with pytest.raises(TypeError, match=r"what stan.build returns.*got object, which has no log_prob"):
            from_stan(object())
        monkeypatch.setattr(Posterior, "dims", ([], [], [2], [3], [8], []))
        with pytest.raises(ValueError, match="pass their number"):
            from_stan(Posterior())
