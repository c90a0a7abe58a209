"""Targets against quadrature and closed forms, draws against exact laws, and spoilt draws that must be found out.

Statistical bounds hold for any seed: each states the probability at which it fails correct draws.
"""

import doctest
import pickle
import sys

import joblib
import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import cumulative_simpson, quad, simpson, trapezoid
from scipy.special import expit, gammaln, logsumexp

from skcds.targets import (
    BayesianLogisticRegression,
    Funnel,
    Gaussian,
    GaussianMixture,
    ImageDensity,
    LogGaussianCoxProcess,
    ManyWell,
    ManyWellPairs,
    Phi4Lattice,
    breast_cancer,
    gmm9,
    gmm40,
    mixtures,
    mw52,
    mw54,
    picture_density,
    pictures,
    posteriors,
    wells,
)

N = 40_000  # draws of every statistical test
ALPHA = 1e-6  # false alarms of a statistical test, over all its coordinates or modes
MEANS_3D = [[-3.0, 0.0, 1.0], [3.0, 2.0, -1.0], [0.0, -6.0, 0.0]]
MEAN, COV = np.array([1.0, -2.0, 0.5]), np.array([[2.0, 0.9, 0.0], [0.9, 1.0, -0.3], [0.0, -0.3, 0.5]])
X_SMALL = np.random.RandomState(0).normal(size=(20, 2)) * [1.0, 5.0] + [0.0, 3.0]
Y_SMALL = (X_SMALL[:, 0] + np.random.RandomState(1).normal(size=20) > 0).astype(int)
PICTURE = np.random.RandomState(2).uniform(0, 255, (5, 7))
BLACK = np.array([[0, 0, 0, 3], [0, 0, 1, 0], [2, 0, 5, 1]])  # the square at the top left is black
PATTERN = np.random.RandomState(3).uniform(size=(30, 2)) ** 2

MAKERS = {
    "gmm9": gmm9,
    "gmm40": gmm40,
    "mixture": lambda: GaussianMixture(MEANS_3D, 0.7, weights=[2, 5, 3]),
    "gaussian": lambda: Gaussian(MEAN, COV),
    "funnel": Funnel,
    "image": lambda: ImageDensity(PICTURE, extent=9.0),
    "mw54": mw54,
    "mw52": mw52,
    "deep wells": lambda: ManyWell(3, 2, 9.0),
    "mw32": ManyWellPairs,
    "phi4": lambda: Phi4Lattice(3),
    "logistic": lambda: BayesianLogisticRegression(X_SMALL, Y_SMALL),
    "breast_cancer": breast_cancer,
    "lgcp": lambda: LogGaussianCoxProcess(PATTERN, n_grid=5),
    "lgcp, whitened": lambda: LogGaussianCoxProcess(PATTERN, n_grid=4, length_scale=0.3, whitened=True),
}
TARGETS = {name: make() for name, make in MAKERS.items()}
WITH_DRAWS = [name for name, target in TARGETS.items() if hasattr(target, "sample")]
WITHOUT_EDGES = [name for name in WITH_DRAWS if name != "image"]
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

    @pytest.mark.parametrize("n_pairs, value", [(32, 329.391), (64, 658.783)])
    def test_more_pairs(self, n_pairs, value):
        assert ManyWellPairs(n_pairs).log_evidence == pytest.approx(value, abs=6e-4)
        X = ManyWellPairs(n_pairs).sample(2000, 0)
        np.testing.assert_allclose(ManyWellPairs(n_pairs).sides(X).mean(0), 0.844, atol=0.04)


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

    def test_phi4(self):
        target, x = Phi4Lattice(3, 0.2, 0.4), points(TARGETS["phi4"], 20).double().numpy()
        phi = x.reshape(-1, 3, 3)
        expected = np.zeros(len(x))
        for i, j in np.ndindex(3, 3):
            site, right, below = phi[:, i, j], phi[:, i, (j + 1) % 3], phi[:, (i + 1) % 3, j]
            expected += (1 - 2 * 0.4) * site**2 + 0.4 * site**4 - 2 * 0.2 * site * (right + below)
        np.testing.assert_allclose(energy(target, x), expected, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(energy(target, -x), expected, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(target.magnetisation(x), x.sum(1) / 9)

    @pytest.mark.parametrize("n_sites", [2, 3, 4])
    def test_phi4_without_the_quartic_term(self, n_sites):
        target = Phi4Lattice(n_sites, 0.2, 0.0)
        matrix = torch.func.hessian(lambda x: target(x[None])[0])(torch.zeros(n_sites**2, dtype=torch.float64))
        log_z = 0.5 * (n_sites**2 * np.log(2 * np.pi) - torch.logdet(matrix).item())
        assert target.log_evidence == pytest.approx(log_z, abs=1e-10) and target.log_evidence_se == 0.0
        assert Phi4Lattice(n_sites).log_evidence is None

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


def image_uniforms(X, target):
    """The marginal densities are linear between pixels, so that Simpson's rule is exact."""
    side, density = spacing(target), target.density
    return np.stack([image_marginal(X[:, 0], density, side), image_marginal(X[:, 1], density.T, side)], 1)


def image_marginal(x, density, side):
    edges = side * (np.arange(len(density)) - (len(density) - 1) / 2)
    v = np.linspace(edges[0], edges[-1], 2000 * (len(density) - 1) + 1)
    cdf = cumulative_simpson(np.interp(v, edges, trapezoid(density, axis=1)), x=v, initial=0)
    return np.interp(x, v, cdf / cdf[-1])


UNIFORMS = {  # exact draws to standard uniforms, (n, d)
    GaussianMixture: mixture_uniforms,
    Gaussian: gaussian_uniforms,
    Funnel: funnel_uniforms,
    ImageDensity: image_uniforms,
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

    def test_shifted_draws_fail(self, name, draws):
        spread = 3.0 if name == "funnel" else draws[name].std(0)
        assert not right_marginals(draws[name] + 0.2 * spread, TARGETS[name])

    def test_wide_draws_fail(self, name, draws):
        assert not right_marginals(1.2 * draws[name], TARGETS[name])


@pytest.mark.parametrize("name", WITHOUT_EDGES)
class TestStein:
    def test_draws(self, name, draws):
        assert obeys_stein(draws[name], TARGETS[name])

    def test_wide_draws_fail(self, name, draws):
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


def spacing(target):
    """Distance of neighbouring pixels."""
    return 2 * target.extent / (target.n_columns - 1)


def midpoints(target, parts):
    """Centres of equal squares, `parts` to a side between neighbouring pixels, (n, 2), and the area of each."""
    sides = [(np.arange(parts * (m - 1)) + 0.5) / parts - (m - 1) / 2 for m in (target.n_columns, target.n_rows)]
    grid = spacing(target) * np.stack(np.meshgrid(*sides, indexing="ij"), -1).reshape(-1, 2)
    return grid, (spacing(target) / parts) ** 2


def tents(position, n):
    """Share of each of n pixels at a position in pixels, (len(position), n)."""
    shares = np.zeros((len(position), n))
    for i, p in enumerate(position):
        for k in range(n):
            shares[i, k] = max(0.0, 1.0 - abs(p - k)) if 0 <= p <= n - 1 else 0.0
    return shares


def brightness(picture, x, extent):
    """Interpolated pixels (n,), zero outside, of an upright picture."""
    rows, columns = picture.shape
    side = 2 * extent / (columns - 1)
    across, down = x[:, 0] / side + (columns - 1) / 2, (rows - 1) / 2 - x[:, 1] / side
    return np.einsum("nr,rc,nc->n", tents(down, rows), picture, tents(across, columns))


def right_quarters(X, target):
    """Chi-square test of the counts in the quarters of the squares between pixels. A bilinear function has its mean at
    the centre. False alarms: ALPHA, as far as the counts are normal (each is expected to be above 100)."""
    centres, area = midpoints(target, 2)
    expected = len(X) * area * np.exp(-energy(target, centres))
    shape = np.array([target.n_columns - 1, target.n_rows - 1]) * 2
    index = np.floor(2 * X / spacing(target) + shape / 2).astype(int)
    counts = np.bincount(np.ravel_multi_index(index.T, shape), minlength=len(centres))
    chi2 = ((counts - expected) ** 2 / expected).sum()
    return expected.min() > 100 and stats.chi2.sf(chi2, len(counts) - 1) > ALPHA


def in_squares(X, target, change):
    """Draws with their place (n, 2) in the square between pixels changed."""
    half = (np.array([target.n_columns, target.n_rows]) - 1) / 2
    position = X / spacing(target) + half
    corner = np.floor(position)
    return spacing(target) * (corner + change(position - corner) - half)


SPOILT = {
    "uniform in squares": lambda X, target: in_squares(X, target, lambda p: np.random.RandomState(0).rand(*p.shape)),
    "corners swapped": lambda X, target: in_squares(X, target, lambda p: 1 - p),
    "corners swapped across": lambda X, target: in_squares(X, target, lambda p: np.abs([1.0, 0.0] - p)),
    "upside down": lambda X, target: X * [1, -1],
    "left to right": lambda X, target: X * [-1, 1],
}


class TestImage:
    @pytest.mark.parametrize("picture, extent, floor", [(PICTURE, 9.0, 0.01), (PICTURE.T, 0.3, 0.5), (BLACK, 2.0, 0.0)])
    def test_energy(self, picture, extent, floor):
        target = ImageDensity(picture, extent=extent, floor=floor)
        x = 1.1 * extent * np.random.RandomState(0).uniform(-1, 1, (300, 2)) * [1, picture.shape[0] / picture.shape[1]]
        raised = picture + floor * picture.max()
        grid, area = midpoints(target, 2)
        expected = brightness(raised, x, extent) / (area * brightness(raised, grid, extent).sum())
        assert 10 < (expected == 0).sum() < 250
        np.testing.assert_allclose(np.exp(-energy(target, x)), expected, rtol=1e-10, atol=1e-14)

    @pytest.mark.parametrize("picture, floor", [(PICTURE, 0.0), (PICTURE, 0.2), (BLACK, 0.0), (np.eye(2), 0.01)])
    def test_log_evidence(self, picture, floor):
        """By the midpoint rule, which is exact for bilinear functions as the squares are aligned."""
        target = ImageDensity(picture, floor=floor)
        grid, area = midpoints(target, 10)
        assert np.log(area * np.exp(-energy(target, grid)).sum()) == pytest.approx(target.log_evidence, abs=1e-10)

    def test_gradient(self):
        target = TARGETS["image"]
        grid, _ = midpoints(target, 3)
        x = torch.tensor(grid, requires_grad=True)
        (gradient,) = torch.autograd.grad(target(x).sum(), x)
        for k, h in enumerate(1e-5 * np.eye(2)):
            difference = (energy(target, grid + h) - energy(target, grid - h)) / 2e-5
            np.testing.assert_allclose(gradient[:, k], difference, rtol=1e-6, atol=1e-8)

    def test_upright(self):
        density = ImageDensity([[1, 2, 3], [4, 5, 6]], extent=1.0, floor=0.0)
        corners = energy(density, [[-1, 0.5], [1, 0.5], [-1, -0.5], [1, -0.5]])
        np.testing.assert_allclose(np.exp(corners[0] - corners), [1, 3, 4, 6])
        np.testing.assert_allclose(density.density / density.density[0, 1], [[4, 1], [5, 2], [6, 3]])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("n_columns", [2, 3, 50, 106])
    def test_rim_is_inside(self, n_columns, dtype):
        for extent in (0.1, 0.7, 3.0, 4.0):
            target = ImageDensity(np.ones((n_columns, n_columns)), extent)
            rim = extent * torch.tensor([[-1, -1], [-1, 1], [1, -1], [1, 1], [1, 0.3]], dtype=dtype)
            torch.testing.assert_close(target(rim).double(), torch.full((5,), 2 * np.log(2 * extent)).double())
            assert (target(1.001 * rim) == torch.inf).all()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_outside(self, dtype):
        """Beyond the rectangle and in a black square, next to a point inside."""
        inf, nan = torch.inf, torch.nan
        x = [[0.6, -0.5], [5.0, 0.0], [0.0, 9e9], [inf, 0.0], [0.0, -inf], [inf, inf], [nan, 0.0], [-1.5, 0.5], [-2, 1]]
        x = torch.tensor(x, dtype=dtype, requires_grad=True)
        value = ImageDensity(BLACK, extent=2.0, floor=0.0)(x)
        (gradient,) = torch.autograd.grad(value.sum(), x)
        assert value[0].isfinite() and gradient[0].isfinite().all() and (gradient[0] != 0).all()
        assert (value[1:] == inf).all() and (gradient[1:] == 0).all()

    @pytest.mark.parametrize("floor", [0.01, 0.5])
    def test_floor_bounds_the_log_density(self, floor):
        target = ImageDensity(BLACK, floor=floor)
        values = energy(target, midpoints(target, 9)[0])
        assert np.isfinite(values).all() and np.ptp(values) <= np.log(1 + 1 / floor)

    def test_scale_and_data(self):
        """The unit of brightness does not matter, and the array is not held."""
        picture = PICTURE.copy()
        target = ImageDensity(picture, extent=9.0)
        picture[:] = 1
        assert joblib.hash(target) == joblib.hash(TARGETS["image"])
        np.testing.assert_allclose(ImageDensity(1e-300 * PICTURE, extent=9.0).density, target.density, rtol=1e-12)

    def test_draws(self, draws):
        assert right_quarters(draws["image"], TARGETS["image"])

    @pytest.mark.parametrize("spoil", SPOILT)
    def test_spoilt_draws_fail(self, draws, spoil):
        assert not right_quarters(SPOILT[spoil](draws["image"], TARGETS["image"]), TARGETS["image"])

    def test_draws_avoid_black(self):
        target = ImageDensity(BLACK, floor=0.0)
        assert np.isfinite(energy(target, target.sample(N, random_state=0))).all()

    def test_pictures(self):
        pytest.importorskip("PIL")
        assert joblib.hash(picture_density()) == joblib.hash(ImageDensity()) == joblib.hash(picture_density("flower"))
        assert repr(picture_density()) == "ImageDensity(n_rows=71, n_columns=106, extent=4, floor=0.01)"
        sky, bushes = np.split(picture_density("china").density.mean(0)[::-1], [35])
        assert sky.mean() > 1.5 * bushes.mean()
        target = picture_density()
        assert target.density[45:60, 30:50].mean() > 1.5 * target.density.mean()
        grid, area = midpoints(target, 1)
        assert area * np.exp(-energy(target, grid)).sum() == pytest.approx(1, abs=1e-10)
        assert np.isfinite(energy(target, target.sample(1000, random_state=0))).all()

    def test_without_pillow(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "PIL", None)
        with pytest.raises(ImportError, match="JPEG files, which Pillow reads: pip install pillow"):
            picture_density()


def cell(point, n_grid):
    return tuple(min(int(coordinate * n_grid), n_grid - 1) for coordinate in point)


def plain_cox(x, points, n_grid, variance, length_scale):
    """Energy (n,) of log intensities (n, d), and the prior's covariance (d, d), from the definition."""
    cells = [(i, j) for i in range(n_grid) for j in range(n_grid)]
    distances = np.array([[np.hypot(i - k, j - m) for k, m in cells] for i, j in cells])
    cov = variance * np.exp(-distances / (n_grid * length_scale))
    counts = np.array([sum(cell(point, n_grid) == c for point in points) for c in cells])
    mean = np.full(len(cells), np.log(len(points)) - variance / 2)
    poisson = stats.poisson.logpmf(counts, np.exp(x) / len(cells)) + gammaln(counts + 1) + counts * np.log(len(cells))
    return -stats.multivariate_normal(mean, cov).logpdf(x) - poisson.sum(1), cov


@pytest.mark.parametrize("settings", [(5, 1.91, 1 / 33), (4, 0.5, 0.3), (2, 3.0, 2.0)], ids=str)
class TestCoxProcessEnergy:
    def test_plain(self, settings):
        x = np.random.RandomState(0).normal(2.0, 1.5, (20, settings[0] ** 2))
        expected, _ = plain_cox(x, PATTERN, *settings)
        np.testing.assert_allclose(energy(LogGaussianCoxProcess(PATTERN, *settings), x), expected, rtol=1e-10)

    def test_whitened(self, settings):
        """The same posterior: the energies at corresponding points differ by the log determinant of the map."""
        target = LogGaussianCoxProcess(PATTERN, *settings, whitened=True)
        z = np.random.RandomState(1).normal(size=(20, settings[0] ** 2))
        expected, cov = plain_cox(target.log_intensity(z).reshape(z.shape), PATTERN, *settings)
        np.testing.assert_allclose(energy(target, z), expected - 0.5 * np.linalg.slogdet(cov)[1], rtol=1e-9)

    def test_log_intensity(self, settings):
        target = LogGaussianCoxProcess(PATTERN, *settings, whitened=True)
        root = target.log_intensity(np.eye(target.n_features)).reshape(-1, target.n_features).T - target.mean
        np.testing.assert_allclose(root @ root.T, plain_cox(root.T, PATTERN, *settings)[1], atol=1e-12)
        plain = LogGaussianCoxProcess(PATTERN, *settings)
        x = np.random.RandomState(1).normal(size=(3, target.n_features))
        np.testing.assert_array_equal(plain.log_intensity(x), x.reshape(3, settings[0], settings[0]))

    @pytest.mark.parametrize("whitened", [False, True])
    def test_gradient_against_finite_differences(self, settings, whitened):
        target = LogGaussianCoxProcess(PATTERN, *settings, whitened=whitened)
        w = np.random.RandomState(3).normal(size=target.n_features)
        x = torch.tensor(w[None], requires_grad=True)
        (gradient,) = torch.autograd.grad(target(x).sum(), x)
        h = 1e-5 * np.eye(target.n_features)
        differences = (energy(target, w + h) - energy(target, w - h)) / 2e-5
        np.testing.assert_allclose(gradient[0], differences, rtol=1e-6, atol=1e-6)


class TestCoxProcess:
    @pytest.mark.parametrize("whitened", [False, True])
    def test_log_evidence(self, whitened):
        """Of a single cell, against the prior mean of the likelihood by Gauss-Hermite quadrature."""
        target = LogGaussianCoxProcess(PATTERN[:4], n_grid=1, variance=0.8, whitened=whitened)
        nodes, weights = np.polynomial.hermite_e.hermegauss(100)
        x = np.log(4) - 0.4 + np.sqrt(0.8) * nodes
        exact = np.log(weights @ np.exp(4 * x - np.exp(x)) / np.sqrt(2 * np.pi))
        assert np.log(quad(lambda v: np.exp(-energy(target, [[v]])[0]), -8, 8)[0]) == pytest.approx(exact, abs=1e-8)

    def test_counts(self):
        """The first coordinate is the row; the edges of the square belong to the cells at the edge."""
        target = LogGaussianCoxProcess([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.4, 0.9], [0.1, 0.95]], n_grid=3)
        np.testing.assert_array_equal(target.counts, [[1, 0, 2], [0, 0, 1], [0, 0, 1]])
        assert target.mean == pytest.approx(np.log(5) - 1.91 / 2) and target.n_points == 5

    def test_points_are_copied(self):
        pattern = PATTERN.copy()
        target = LogGaussianCoxProcess(pattern, n_grid=5)
        pattern[:] = 0
        assert joblib.hash(target) == joblib.hash(TARGETS["lgcp"])

    def test_default(self):
        state = np.random.get_state()[1].copy()
        target, again = LogGaussianCoxProcess(), LogGaussianCoxProcess(whitened=True)
        np.testing.assert_array_equal(state, np.random.get_state()[1])
        assert target.n_features == 1600 and target.n_points == 126 == target.counts.sum()
        assert target.points.min() >= 0 and target.points.max() <= 1
        np.testing.assert_array_equal(target.points, again.points)
        assert target.mean == pytest.approx(np.log(126) - 0.955)
        x = torch.randn(4, 1600, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        for each in (target, again):
            torch.testing.assert_close(each(x.float()).double(), each(x), rtol=0, atol=5e-3)

    def test_synthetic_pattern_is_of_the_model(self):
        """The counts of 90 patterns, of one seed each, have the model's mean and variance (six standard errors)."""
        variance = 0.3
        with pytest.MonkeyPatch.context() as patch:
            patterns = []
            for seed in range(90):
                patch.setattr("skcds.targets.posteriors.PATTERN_SEED", seed)
                patterns.append(LogGaussianCoxProcess(n_grid=3, variance=variance).counts)
        counts = np.array(patterns)
        m = 126 / 9
        assert abs(counts.mean() - m) < 6 * counts.std() / np.sqrt(counts.size)
        spread = (counts - m) ** 2
        assert abs(spread.mean() - (m + m**2 * np.expm1(variance))) < 6 * spread.std() / np.sqrt(spread.size)

    @pytest.mark.parametrize("header, row_names", [("", False), ("x,y", False), ('"","data_x","data_y"', True)])
    @pytest.mark.parametrize("kind", [str, lambda path: path], ids=["str", "Path"])
    def test_file(self, tmp_path, header, row_names, kind):
        rows = [f'"{i}",{x!r},{y!r}' if row_names else f"{x!r},{y!r}" for i, (x, y) in enumerate(PATTERN.tolist())]
        path = tmp_path / "points.csv"
        path.write_text("\n".join([header, *rows] if header else rows) + "\n", encoding="utf-8")
        assert joblib.hash(LogGaussianCoxProcess(kind(path), n_grid=5)) == joblib.hash(TARGETS["lgcp"])

    @pytest.mark.parametrize("text, message", [("x,y\n", "shape"), ("a,b\nc,d\n", "finite"), ("1\n2\n", r"\(any, 2\)")])
    def test_wrong_file(self, tmp_path, text, message):
        (tmp_path / "points.csv").write_text(text)
        with pytest.raises(ValueError, match=message):
            LogGaussianCoxProcess(tmp_path / "points.csv")

    def test_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"path of a CSV file; there is no file '.*trees\.csv'"):
            LogGaussianCoxProcess(tmp_path / "trees.csv")

    @pytest.mark.parametrize("whitened", [False, True])
    def test_matrices_are_not_part_of_it(self, whitened):
        """Neither pickles nor hashes depend on what was evaluated."""
        target = LogGaussianCoxProcess(PATTERN, n_grid=10, whitened=whitened)
        before = joblib.hash(target)
        x = points(target)
        target(x), target(x.double())
        assert joblib.hash(target) == before
        assert len(pickle.dumps(target)) < 5000

    @pytest.mark.parametrize("whitened", [False, True])
    def test_first_call_without_autograd(self, whitened):
        def make():
            return LogGaussianCoxProcess(PATTERN, n_grid=3, whitened=whitened)

        x = torch.randn(3, 9, dtype=torch.float64, requires_grad=True)
        (expected,) = torch.autograd.grad(make()(x).sum(), x)
        target = make()
        with torch.inference_mode():
            target(x)
        assert torch.equal(torch.autograd.grad(target(x).sum(), x)[0], expected)
        target = make()
        torch.func.grad(lambda row: target(row[None])[0])(x[0].detach())
        assert torch.equal(torch.autograd.grad(target(x).sum(), x)[0], expected)

    @pytest.mark.parametrize("name", ["lgcp", "lgcp, whitened"])
    def test_far_points(self, name):
        x = torch.full((1, TARGETS[name].n_features), 1e4)
        assert TARGETS[name](x) == torch.inf and TARGETS[name](-x).isfinite()


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
    (lambda: ImageDensity(np.ones((3, 3, 3))), r"picture .* of shape \(any, any\); got shape \(3, 3, 3\)"),
    (lambda: ImageDensity([[1.0, np.nan], [1.0, 1.0]]), "picture has to be an array of finite numbers"),
    (lambda: ImageDensity(np.ones((1, 5))), r"picture has to have at least 2 by 2 pixels; got shape \(1, 5\)"),
    (lambda: ImageDensity([[1, 2], [3, -4]]), r"picture must not have negative pixels; the smallest is -4"),
    (lambda: ImageDensity(np.zeros((3, 3))), "picture has to have a pixel that is not black"),
    (lambda: ImageDensity(PICTURE, extent=0), "extent has to be a positive number; got 0"),
    (lambda: ImageDensity(PICTURE, floor=-0.1), "floor has to be a number of at least 0; got -0.1"),
    (lambda: picture_density("labrador"), r"name has to be one of \['flower', 'china'\]; got 'labrador'"),
    (lambda: LogGaussianCoxProcess(PATTERN.T), r"points .* of shape \(any, 2\); got shape \(2, 30\)"),
    (lambda: LogGaussianCoxProcess(np.zeros((0, 2))), "points has to be an array of finite numbers"),
    (lambda: LogGaussianCoxProcess([[0.5, np.nan]]), "points has to be an array of finite numbers"),
    (lambda: LogGaussianCoxProcess([[0.5, 1.2], [-0.1, 0]]), r"unit square; their coordinates go from -0\.1 to 1\.2"),
    (lambda: LogGaussianCoxProcess([[0.5, 0.2], [-0.1, 0]]), r"unit square; their coordinates go from -0\.1 to 0\.5"),
    (lambda: LogGaussianCoxProcess(PATTERN, n_grid=0), "n_grid has to be an integer of at least 1; got 0"),
    (lambda: LogGaussianCoxProcess(PATTERN, variance=0), "variance has to be a positive number; got 0"),
    (lambda: LogGaussianCoxProcess(PATTERN, length_scale=np.inf), "length_scale has to be a positive number"),
    (lambda: LogGaussianCoxProcess(PATTERN, 4, length_scale=1e30), r"length_scale = 1e\+30 is too long for a grid"),
    (lambda: ManyWell(3, 4, 1.0), "n_wells has to be at most n_features = 3"),
    (lambda: ManyWell(3.0, 2, 1.0), "n_features has to be an integer"),
    (lambda: ManyWell(3, 2, -1.0), "delta has to be a positive number"),
    (lambda: ManyWellPairs(0), "n_pairs has to be an integer of at least 1; got 0"),
    (lambda: ManyWellPairs(63).modes(np.zeros((1, 126))), "2\\^63 modes, too many for integers"),
    (lambda: Phi4Lattice(1), "n_sites has to be an integer of at least 2; got 1"),
    (lambda: Phi4Lattice(4, kappa=-1.0), "kappa has to be a number of at least 0"),
    (lambda: Phi4Lattice(4, lam=np.nan), "lam has to be a number of at least 0"),
    (lambda: Phi4Lattice(4, kappa=0.25, lam=0.0), "kappa has to be below 0.25 where lam is 0"),
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
    results = [doctest.testmod(part) for part in (mixtures, pictures, posteriors, wells)]
    assert sum(result.attempted for result in results) > 20 and not any(result.failed for result in results)
