"""Targets against quadrature and closed forms, draws against exact laws, and spoilt draws that must be found out.

Statistical bounds hold for any seed: each states the probability at which it fails correct draws.
"""

import doctest
import pickle

import joblib
import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import cumulative_simpson, quad, simpson
from scipy.special import expit, logsumexp

from skcds import targets
from skcds.targets import (
    BayesianLogisticRegression,
    Funnel,
    Gaussian,
    GaussianMixture,
    ManyWell,
    ManyWellPairs,
    breast_cancer,
    gmm9,
    gmm40,
    mw52,
    mw54,
)

N = 40_000  # draws of every statistical test
ALPHA = 1e-6  # false alarms of a statistical test, over all its coordinates or modes
MEANS_3D = [[-3.0, 0.0, 1.0], [3.0, 2.0, -1.0], [0.0, -6.0, 0.0]]
MEAN, COV = np.array([1.0, -2.0, 0.5]), np.array([[2.0, 0.9, 0.0], [0.9, 1.0, -0.3], [0.0, -0.3, 0.5]])
X_SMALL = np.random.RandomState(0).normal(size=(20, 2)) * [1.0, 5.0] + [0.0, 3.0]
Y_SMALL = (X_SMALL[:, 0] + np.random.RandomState(1).normal(size=20) > 0).astype(int)

MAKERS = {
    "gmm9": gmm9,
    "gmm40": gmm40,
    "mixture": lambda: GaussianMixture(MEANS_3D, 0.7, weights=[2, 5, 3]),
    "gaussian": lambda: Gaussian(MEAN, COV),
    "funnel": Funnel,
    "mw54": mw54,
    "mw52": mw52,
    "deep wells": lambda: ManyWell(3, 2, 9.0),
    "mw32": ManyWellPairs,
    "logistic": lambda: BayesianLogisticRegression(X_SMALL, Y_SMALL),
    "breast_cancer": breast_cancer,
}
TARGETS = {name: make() for name, make in MAKERS.items()}
WITH_DRAWS = [name for name, target in TARGETS.items() if hasattr(target, "sample")]
WITH_MODES = [name for name, target in TARGETS.items() if hasattr(target, "modes")]


def energy(target, x):
    """Energies of an array of points, in float64."""
    return target(torch.tensor(np.asarray(x, dtype=float))).numpy()


def points(target, n=7, seed=0):
    """Normal points of scale 2, exact in float32."""
    return torch.tensor(2 * np.random.RandomState(seed).normal(size=(n, target.n_features)).astype(np.float32))


@pytest.mark.parametrize("name", MAKERS)
class TestEveryTarget:
    def test_energy(self, name):
        target = TARGETS[name]
        x = points(target)
        single, double = target(x), target(x.double())
        assert single.shape == double.shape == (7,)
        assert single.dtype == torch.float32 and double.dtype == torch.float64
        assert double.isfinite().all()
        torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(target(x.double()[2:3]), double[2:3])
        assert torch.equal(x, points(target))

    def test_gradient(self, name):
        target = TARGETS[name]
        x = points(target, 3).double().requires_grad_()
        assert torch.autograd.gradcheck(target, x, fast_mode=True)
        (gradient,) = torch.autograd.grad(target(x).sum(), x)
        per_row = torch.func.vmap(torch.func.grad(lambda row: target(row[None])[0]))(x.detach())
        torch.testing.assert_close(per_row, gradient)

    def test_persistence(self, name):
        target = TARGETS[name]
        copy = pickle.loads(pickle.dumps(target))
        x = points(target)
        assert torch.equal(copy(x), target(x))
        assert joblib.hash(copy) == joblib.hash(MAKERS[name]()) == joblib.hash(target)
        others = {joblib.hash(other) for key, other in TARGETS.items() if key != name}
        assert joblib.hash(target) not in others

    def test_repr(self, name):
        text = repr(TARGETS[name])
        assert text.startswith(type(TARGETS[name]).__name__ + "(") and text.endswith(")")
        assert len(text) < 120

    def test_convention(self, name):
        target = TARGETS[name]
        assert (target.log_evidence is None) == (target.log_evidence_se is None)
        assert (target.log_evidence is None) == (not hasattr(target, "sample"))
        assert hasattr(target, "modes") == hasattr(target, "mode_masses")

    def test_wrong_points(self, name):
        target = TARGETS[name]
        with pytest.raises(ValueError, match=rf"takes points of shape \(n, {target.n_features}\)"):
            target(torch.zeros(4, target.n_features + 1))
        with pytest.raises(ValueError, match="takes points of shape"):
            target(torch.zeros(target.n_features))
        with pytest.raises(ValueError, match=r"floating point; got torch\.int64"):
            target(torch.zeros(4, target.n_features, dtype=torch.int64))
        with pytest.raises(TypeError, match="takes a torch tensor; got ndarray"):
            target(np.zeros((4, target.n_features)))


def log_integral(target, low, high, nodes=401):
    """Log of the integral of exp(-energy) over a square, by the trapezoidal rule."""
    v = np.linspace(low, high, nodes)
    grid = np.stack(np.meshgrid(v, v, indexing="ij"), -1).reshape(-1, 2)
    log_rho = np.concatenate([-energy(target, chunk) for chunk in np.array_split(grid, 50)])
    return logsumexp(log_rho) + 2 * np.log(v[1] - v[0])


def well_integral(energy_1d):
    return quad(lambda v: np.exp(-energy_1d(v)), -20, 20, points=[-10, -3, -2, 0, 2, 3, 10], limit=500, epsabs=0)[0]


class TestLogEvidence:
    @pytest.mark.parametrize(
        "target, half_width",
        [
            (gmm9(), 12),
            (gmm40(), 60),
            (GaussianMixture([[1.0, 0.0], [-2.0, 3.0]], 0.5, weights=[1, 9]), 9),
            (Gaussian([1.0, -1.0], [[2.0, 0.9], [0.9, 0.5]]), 14),
            (ManyWell(2, 1, 2.0), 9),
            (ManyWell(2, 2, 4.0), 5),
            (ManyWellPairs(1), 9),
        ],
        ids=repr,
    )
    def test_integral_over_the_plane(self, target, half_width):
        assert log_integral(target, -half_width, half_width) == pytest.approx(target.log_evidence, abs=1e-8)

    def test_funnel_over_the_plane(self):
        """Its two coordinates as (x0, exp(x0 / 2) z), with the Jacobian exp(x0 / 2)."""
        x0, z = (m.ravel() for m in np.meshgrid(np.linspace(-30, 30, 801), np.linspace(-9, 9, 401), indexing="ij"))
        log_rho = x0 / 2 - energy(Funnel(2), np.stack([x0, np.exp(x0 / 2) * z], 1))
        assert logsumexp(log_rho) + np.log(60 / 800 * 18 / 400) == pytest.approx(0, abs=1e-8)

    @pytest.mark.parametrize("delta", [0.1, 1.0, 2.0, 4.0, 6.9, 7.1, 9.0, 100.0])
    def test_double_well(self, delta):
        exact = np.log(well_integral(lambda v: (v**2 - delta) ** 2))
        assert ManyWell(1, 1, delta).log_evidence == pytest.approx(exact, abs=1e-7)
        expected = 3 * exact + np.log(2 * np.pi)
        assert ManyWell(5, 3, delta).log_evidence == pytest.approx(expected, abs=1e-6)

    def test_pair(self):
        exact = np.log(well_integral(lambda v: v**4 - 6 * v**2 - v / 2)) + 0.5 * np.log(2 * np.pi)
        assert ManyWellPairs(3).log_evidence == pytest.approx(3 * exact, abs=1e-7)

    @pytest.mark.parametrize("name, value", [("mw54", -0.54106), ("mw52", 42.81724), ("mw32", 164.69568)])
    def test_published_values(self, name, value):
        assert TARGETS[name].log_evidence == pytest.approx(value, abs=6e-6)


class TestDefinitions:
    """Energies against other implementations, at random points."""

    def test_mixture(self):
        target, x = TARGETS["mixture"], points(TARGETS["mixture"], 50).numpy()
        parts = [w * stats.multivariate_normal(m, 0.49).pdf(x) for w, m in zip((0.2, 0.5, 0.3), MEANS_3D, strict=True)]
        np.testing.assert_allclose(energy(target, x), -np.log(np.sum(parts, 0)), rtol=1e-10)

    def test_gaussian(self):
        target, x = TARGETS["gaussian"], points(TARGETS["gaussian"], 50).numpy()
        np.testing.assert_allclose(energy(target, x), -stats.multivariate_normal(MEAN, COV).logpdf(x), rtol=1e-10)

    def test_funnel(self):
        x = points(TARGETS["funnel"], 50).double().numpy()
        log_rho = stats.norm(0, 3).logpdf(x[:, 0]) + stats.norm(0, np.exp(x[:, :1] / 2)).logpdf(x[:, 1:]).sum(1)
        np.testing.assert_allclose(energy(TARGETS["funnel"], x), -log_rho, rtol=1e-10)

    def test_many_well(self):
        x = points(TARGETS["mw52"], 50).double().numpy()
        expected = ((x[:, :5] ** 2 - 2) ** 2).sum(1) + 0.5 * (x[:, 5:] ** 2).sum(1)
        np.testing.assert_allclose(energy(TARGETS["mw52"], x), expected, rtol=1e-10)

    def test_pairs(self):
        x = points(TARGETS["mw32"], 50).double().numpy()
        v1, v2 = x[:, 0::2], x[:, 1::2]
        expected = (v1**4 - 6 * v1**2 - v1 / 2 + v2**2 / 2).sum(1)
        np.testing.assert_allclose(energy(TARGETS["mw32"], x), expected, rtol=1e-10, atol=1e-9)

    def test_constants(self):
        assert gmm9().sd ** 2 == pytest.approx(0.3)
        assert sorted(map(tuple, gmm9().means)) == [(i, j) for i in (-5, 0, 5) for j in (-5, 0, 5)]
        assert gmm40().sd == pytest.approx(float(torch.nn.functional.softplus(torch.ones((), dtype=torch.float64))))
        assert gmm40().means.shape == (40, 2) and np.abs(gmm40().means).max() <= 40
        assert [t.n_features for t in (Funnel(), mw54(), mw52(), ManyWellPairs())] == [10, 5, 50, 32]
        np.testing.assert_allclose(ManyWellPairs().well_masses, [0.156, 0.844], atol=5e-4)


def well_uniforms(x, energy_1d):
    """Distribution function of a double well at x, by Simpson's rule."""
    v = np.linspace(-5, 5, 20_001)
    cdf = cumulative_simpson(np.exp(-energy_1d(v)), x=v, initial=0)
    return np.interp(x, v, cdf / cdf[-1])


def mixture_uniforms(X, target):
    return np.sum(
        [w * stats.norm.cdf(X, m, target.sd) for w, m in zip(target.mode_masses, target.means, strict=True)], 0
    )


def many_well_uniforms(X, target):
    m, delta = target.n_wells, target.delta
    return np.hstack([well_uniforms(X[:, :m], lambda v: (v**2 - delta) ** 2), stats.norm.cdf(X[:, m:])])


def pairs_uniforms(X, target):
    return np.hstack([well_uniforms(X[:, 0::2], lambda v: v**4 - 6 * v**2 - v / 2), stats.norm.cdf(X[:, 1::2])])


def gaussian_uniforms(X, target):
    values, vectors = np.linalg.eigh(COV)
    return stats.norm.cdf((X - MEAN) @ vectors / np.sqrt(values))


def funnel_uniforms(X, target):
    return stats.norm.cdf(np.hstack([X[:, :1] / 3, X[:, 1:] * np.exp(-X[:, :1] / 2)]))


UNIFORMS = {  # exact draws to standard uniforms, (n, d)
    GaussianMixture: mixture_uniforms,
    Gaussian: gaussian_uniforms,
    Funnel: funnel_uniforms,
    ManyWell: many_well_uniforms,
    ManyWellPairs: pairs_uniforms,
}


def right_marginals(X, target):
    """Kolmogorov distance of every coordinate from the uniform law, within the bound of Dvoretzky, Kiefer, Wolfowitz
    and Massart, which fails exact draws with a probability of at most ALPHA for any number of draws."""
    u = np.sort(UNIFORMS[type(target)](X, target), axis=0)
    ranks = np.arange(len(u) + 1)[:, None] / len(u)
    distance = np.maximum(ranks[1:] - u, u - ranks[:-1]).max(0)
    return (distance < np.sqrt(np.log(2 * len(distance) / ALPHA) / (2 * len(u)))).all()


def right_counts(counts, masses):
    """Exact binomial test of every count at ALPHA, Bonferroni corrected."""
    n = counts.sum()
    p = 2 * np.minimum(stats.binom.cdf(counts, n, masses), stats.binom.sf(counts - 1, n, masses))
    return (p > ALPHA / len(masses)).all()


def right_modes(X, target):
    return right_counts(np.bincount(target.modes(X), minlength=len(target.mode_masses)), target.mode_masses)


def obeys_stein(X, target):
    """E[x_i dE/dx_i] = 1 by partial integration: ties draws to the energy. Six standard errors of N draws: 50 normal
    means fail with probability 1e-7; skewness (at most that of a chi-square of one degree) leaves it below ALPHA."""
    x = torch.tensor(X, requires_grad=True)
    (gradient,) = torch.autograd.grad(target(x).sum(), x)
    values = X * gradient.numpy()
    return (np.abs(values.mean(0) - 1) < 6 * values.std(0) / np.sqrt(len(X))).all()


@pytest.fixture(scope="module")
def draws():
    return {name: TARGETS[name].sample(N, random_state=12) for name in WITH_DRAWS}


@pytest.mark.parametrize("name", WITH_DRAWS)
class TestDraws:
    def test_manners(self, name):
        target, state = TARGETS[name], np.random.get_state()[1].copy()
        X = target.sample(5, random_state=3)
        assert X.shape == (5, target.n_features) and X.dtype == np.float64
        np.testing.assert_array_equal(X, target.sample(5, random_state=np.random.RandomState(3)))
        assert not np.array_equal(X, target.sample(5, random_state=4))
        np.testing.assert_array_equal(state, np.random.get_state()[1])
        assert target.sample(0).shape == (0, target.n_features)

    def test_marginals(self, name, draws):
        assert right_marginals(draws[name], TARGETS[name])

    def test_stein(self, name, draws):
        assert obeys_stein(draws[name], TARGETS[name])

    def test_shifted_draws_fail(self, name, draws):
        spread = 3.0 if name == "funnel" else draws[name].std(0)
        assert not right_marginals(draws[name] + 0.2 * spread, TARGETS[name])

    def test_wide_draws_fail(self, name, draws):
        assert not right_marginals(1.2 * draws[name], TARGETS[name])
        assert not obeys_stein(1.2 * draws[name], TARGETS[name])


@pytest.mark.parametrize("name", WITH_MODES)
class TestModes:
    def test_masses(self, name, draws):
        target = TARGETS[name]
        labels = target.modes(draws[name])
        assert labels.shape == (N,) and labels.dtype.kind == "i"
        assert target.mode_masses.sum() == pytest.approx(1)
        assert right_modes(draws[name], target)

    def test_thinned_mode_fails(self, name, draws):
        """Half the draws of the heaviest mode are missing."""
        X = draws[name]
        heaviest = np.flatnonzero(TARGETS[name].modes(X) == TARGETS[name].mode_masses.argmax())
        assert not right_modes(np.delete(X, heaviest[::2], axis=0), TARGETS[name])

    def test_wrong_points(self, name):
        with pytest.raises(ValueError, match="takes points of shape"):
            TARGETS[name].modes(np.zeros((3, 1)))


class TestWells:
    def test_labels(self):
        X = [[1.0, -1.0, 1.0, 9.0], [-1.0, -1.0, -1.0, 9.0], [1.0, 1.0, 1.0, -9.0]]
        assert ManyWell(4, 3, 1.0).modes(X).tolist() == [5, 0, 7]
        assert ManyWellPairs(2).modes(X).tolist() == [3, 0, 3]

    def test_masses_are_products(self):
        target = ManyWellPairs(3)
        low, high = target.well_masses
        bits = [f"{label:03b}".count("1") for label in range(8)]
        np.testing.assert_allclose(target.mode_masses, [high**k * low ** (3 - k) for k in bits])

    def test_well_masses(self):
        v = np.linspace(-5, 5, 20_001)
        rho = np.exp(-(v**4 - 6 * v**2 - v / 2))
        exact = simpson(rho[v >= 0], x=v[v >= 0]) / simpson(rho, x=v)
        np.testing.assert_allclose(ManyWellPairs().well_masses, [1 - exact, exact], atol=1e-7)
        np.testing.assert_allclose(ManyWell(2, 1, 9.0).well_masses, 0.5, atol=1e-12)

    def test_each_well_of_mw32(self, draws):
        positive = (draws["mw32"][:, 0::2] > 0).sum(0)
        assert all(right_counts(np.array([N - k, k]), TARGETS["mw32"].well_masses) for k in positive)

    @pytest.mark.parametrize("delta", [0.5, 4.0, 9.0, 100.0])
    def test_quantiles(self, delta):
        """The draws are the quantiles of the uniforms they are made of, the ends of the unit interval included."""
        u = np.array([0.0, 1e-12, 1e-6, 0.01, 0.3, 0.4999, 0.5001, 0.77, 1 - 1e-6, 1 - 2**-53])
        x = ManyWell(1, 1, delta)._well_quantiles(u)
        assert np.isfinite(x).all() and (np.diff(x) > 0).all()
        total = well_integral(lambda v: (v**2 - delta) ** 2)
        low = np.sqrt(max(delta - 7, 0)) if delta > 7 else 0.0
        half = [quad(lambda v: np.exp(-((v**2 - delta) ** 2)), low, abs(b), epsabs=0, limit=200)[0] for b in x]
        np.testing.assert_allclose(0.5 + np.sign(x) * np.array(half) / total, u, atol=1e-7)

    def test_many_modes(self):
        target = ManyWell(40, 40, 4.0)
        assert target.modes(np.ones((1, 40))).tolist() == [2**40 - 1]
        with pytest.raises(ValueError, match="has 2\\^40 modes, too many to list"):
            target.mode_masses  # noqa: B018


def plain_energy(w, design, positive, prior_sd):
    """Energy (n,) of weights (n, d) in plain NumPy."""
    likelihood = expit(np.where(positive, 1, -1) * (w @ design.T))
    return -np.log(likelihood).sum(1) - stats.norm(0, prior_sd).logpdf(w).sum(1)


class TestLogisticRegression:
    X = np.column_stack([X_SMALL, np.full(20, 7.3)])  # with a constant column
    scaled = {
        None: X,
        "scale": np.column_stack([X_SMALL / X_SMALL.std(0), X[:, 2]]),
        "zscore": np.column_stack([(X_SMALL - X_SMALL.mean(0)) / X_SMALL.std(0), np.zeros(20)]),
    }

    @pytest.mark.parametrize("prior_sd", [1.0, 10.0])
    @pytest.mark.parametrize("intercept", [True, False])
    @pytest.mark.parametrize("standardize", [None, "scale", "zscore"])
    def test_energy(self, standardize, intercept, prior_sd):
        target = BayesianLogisticRegression(self.X, Y_SMALL, prior_sd, standardize=standardize, intercept=intercept)
        design = np.column_stack([np.ones(20), self.scaled[standardize]])[:, 0 if intercept else 1 :]
        np.testing.assert_allclose(target.design, design, atol=1e-12)
        w = 0.5 * np.random.RandomState(2).normal(size=(9, target.n_features))
        np.testing.assert_allclose(energy(target, w), plain_energy(w, design, Y_SMALL == 1, prior_sd), rtol=1e-10)

    @pytest.mark.parametrize("name", ["logistic", "breast_cancer"])
    def test_gradient_against_finite_differences(self, name):
        target = TARGETS[name]
        w = 0.3 * np.random.RandomState(3).normal(size=target.n_features)
        x = torch.tensor(w[None], requires_grad=True)
        (gradient,) = torch.autograd.grad(target(x).sum(), x)
        h = 1e-5 * np.eye(target.n_features)
        differences = (energy(target, w + h) - energy(target, w - h)) / 2e-5
        np.testing.assert_allclose(gradient[0], differences, rtol=1e-6, atol=1e-6)

    def test_integrates_to_the_marginal_likelihood(self):
        """Against the prior mean of the likelihood by Gauss-Hermite quadrature."""
        target = BayesianLogisticRegression(X_SMALL[:, :1], Y_SMALL, prior_sd=1.5)
        nodes, weights = np.polynomial.hermite_e.hermegauss(120)
        w = 1.5 * np.stack(np.meshgrid(nodes, nodes, indexing="ij"), -1).reshape(-1, 2)
        likelihood = expit(np.where(Y_SMALL, 1, -1) * (w @ target.design.T)).prod(1)
        exact = np.log(np.outer(weights, weights).ravel() @ likelihood / (2 * np.pi))
        assert log_integral(target, -15, 15, nodes=601) == pytest.approx(exact, abs=1e-6)

    def test_uninformative_data(self):
        """Columns that are constant carry nothing: every label has probability one half."""
        target = BayesianLogisticRegression(np.full((6, 2), 3.0), [0, 1] * 3, intercept=False)
        assert log_integral(target, -10, 10) == pytest.approx(-6 * np.log(2), abs=1e-8)

    @pytest.mark.parametrize("labels", [("no", "yes"), (-1, 1), (1.0, 2.0), (False, True)])
    def test_labels(self, labels):
        target = BayesianLogisticRegression(X_SMALL, np.array(labels)[Y_SMALL])
        assert joblib.hash(target) == joblib.hash(TARGETS["logistic"])

    def test_memory_order_of_the_data_does_not_matter(self):
        target = BayesianLogisticRegression(np.asfortranarray(X_SMALL), Y_SMALL)
        assert joblib.hash(target) == joblib.hash(TARGETS["logistic"])

    def test_data_are_copied(self):
        X = X_SMALL.copy()
        target = BayesianLogisticRegression(X, Y_SMALL, standardize=None, intercept=False)
        X[:] = 0
        np.testing.assert_array_equal(target.design, X_SMALL)

    def test_far_weights_are_finite(self):
        w = torch.tensor([[1e4, -1e4, 1e4]], requires_grad=True)
        value = TARGETS["logistic"](w).sum()
        value.backward()
        assert value.isfinite() and w.grad.isfinite().all()

    def test_breast_cancer(self):
        target = breast_cancer(prior_sd=2.0)
        assert target.design.shape == (569, 31) and target.n_features == 31
        np.testing.assert_array_equal(target.design[:, 0], 1)
        np.testing.assert_allclose(target.design[:, 1:].mean(0), 0, atol=1e-12)
        np.testing.assert_allclose(target.design[:, 1:].std(0), 1)
        assert (target.signs == 1).sum() == 357  # benign, label 1
        assert target.prior_sd == 2.0 and target.log_evidence is None


ERRORS = [
    (lambda: GaussianMixture([0.0, 1.0], 1.0), r"means has to be an array of finite numbers of shape \(any, any\)"),
    (lambda: GaussianMixture([[np.nan, 1.0]], 1.0), "means has to be an array of finite"),
    (lambda: GaussianMixture([[0.0]], 0), "sd has to be a positive number; got 0"),
    (lambda: GaussianMixture([[0.0]], np.nan), "sd has to be a positive number"),
    (lambda: GaussianMixture([[0.0], [1.0]], 1.0, [1.0]), r"weights .* of shape \(2,\); got shape \(1,\)"),
    (lambda: GaussianMixture([[0.0], [1.0]], 1.0, [1.0, 0.0]), "weights have to be positive; the smallest is 0"),
    (lambda: Gaussian([0.0, 0.0], np.eye(3)), r"cov .* of shape \(2, 2\); got shape \(3, 3\)"),
    (lambda: Gaussian([0.0, 0.0], [[1, 1], [0, 1]]), "cov has to be symmetric"),
    (lambda: Gaussian([0.0, 0.0], [[1, 2], [2, 1]]), "cov has to be positive definite"),
    (lambda: Funnel(1), "n_features has to be an integer of at least 2; got 1"),
    (lambda: ManyWell(3, 4, 1.0), "n_wells has to be at most n_features = 3"),
    (lambda: ManyWell(3.0, 2, 1.0), "n_features has to be an integer"),
    (lambda: ManyWell(3, 2, -1.0), "delta has to be a positive number"),
    (lambda: ManyWellPairs(63), "n_pairs has to be at most 62"),
    (lambda: BayesianLogisticRegression(X_SMALL, Y_SMALL, 0.0), "prior_sd has to be a positive number"),
    (lambda: BayesianLogisticRegression(X_SMALL, Y_SMALL, standardize="sd"), "standardize has to be one of"),
    (lambda: BayesianLogisticRegression(X_SMALL, np.arange(20) % 3), "exactly two classes; got 3: 0, 1, 2"),
    (lambda: BayesianLogisticRegression(X_SMALL, np.zeros(20)), "exactly two classes; got 1"),
    (lambda: BayesianLogisticRegression(X_SMALL, Y_SMALL[:-1]), "inconsistent numbers of samples"),
    (lambda: BayesianLogisticRegression(X_SMALL[:, 0], Y_SMALL), "Expected 2D array"),
    (lambda: BayesianLogisticRegression(X_SMALL, np.eye(20)), "y should be a 1d array"),
    (lambda: BayesianLogisticRegression(np.where(X_SMALL > 1, np.nan, X_SMALL), Y_SMALL), "contains NaN"),
    (lambda: BayesianLogisticRegression(X_SMALL, np.where(Y_SMALL, np.nan, 0.0)), "y contains NaN"),
]


@pytest.mark.parametrize("make, message", ERRORS)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_examples():
    results = doctest.testmod(targets)
    assert results.attempted > 20 and not results.failed
