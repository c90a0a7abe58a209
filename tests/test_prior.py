"""A prior and a likelihood as an energy: every form of the prior, against a conjugate model."""

import concurrent.futures
import functools
import pickle
import warnings

import numpy as np
import pytest
import torch
from cases import slow
from samplers import make
from scipy import stats
from scipy.special import ndtri

from skcds import SamplerDisplay
from skcds.adapters import from_prior
from skcds.density.energy import Energy, InvalidEnergyError

LOG_2PI = np.log(2 * np.pi)
Y = np.array([[1.2, -0.3, 0.8, 1.9], [-2.0, -1.0, 0.5, -1.5]])  # four observations of each of two means
LOC, SCALE = np.array([1.0, -1.0]), np.array([2.0, 0.5])
N = Y.shape[1]
VARIANCE = 1 / (1 / SCALE**2 + N)
MEAN = VARIANCE * (LOC / SCALE**2 + Y.sum(1))
LOG_Z = sum(
    stats.multivariate_normal(np.full(N, m), np.eye(N) + s**2).logpdf(y) for m, s, y in zip(LOC, SCALE, Y, strict=True)
)
Z = 5.6  # standard errors: 2e-8 two-sided


def log_likelihood(x):  # (n, 2) to (n,), of arrays and tensors
    y = torch.as_tensor(Y).to(x) if isinstance(x, torch.Tensor) else Y
    return -0.5 * ((y - x[:, :, None]) ** 2).sum((1, 2)) - N * LOG_2PI


def in_numpy(x):
    assert isinstance(x, np.ndarray)
    return log_likelihood(x)


def of_point(x):
    assert x.shape == (2,) and isinstance(x, np.ndarray)
    return float(log_likelihood(x[None])[0])


def by_name(p):
    return log_likelihood(np.stack([p["a"], p["b"]], -1))


def log_prior(x):
    if isinstance(x, torch.Tensor):
        return torch.distributions.Normal(torch.as_tensor(LOC), torch.as_tensor(SCALE)).log_prob(x).sum(1)
    return (-0.5 * ((x - LOC) / SCALE) ** 2 - np.log(SCALE) - 0.5 * LOG_2PI).sum(-1)


def transform(u):
    if isinstance(u, torch.Tensor):
        return torch.as_tensor(LOC) + torch.as_tensor(SCALE) * torch.special.ndtri(u)
    return LOC + SCALE * ndtri(u)


NORMALS = [stats.norm(1, 2), stats.norm(-1, 0.5)]
FORMS = {  # arguments of `from_prior`, and whether there is a gradient
    "distributions": (({"a": NORMALS[0], "b": NORMALS[1]}, log_likelihood), {}, True),
    "distributions, arrays": ((NORMALS, in_numpy), {}, False),
    "distributions, cube": ((NORMALS, log_likelihood), {"coordinates": "cube"}, True),
    "distributions, dictionary": (({"a": NORMALS[0], "b": NORMALS[1]}, by_name), {"pass_dict": True}, False),
    "distributions, points": ((NORMALS, of_point), {"vectorize": False}, False),
    "transform": ((transform, log_likelihood, 2), {}, True),
    "transform, arrays": ((transform, in_numpy), {"feature_names": ["a", "b"]}, False),
    "transform, points": ((transform, of_point, 2), {"vectorize": False}, False),
    "log density": ((log_prior, log_likelihood, 2), {}, True),
    "log density, arrays": ((log_prior, in_numpy), {"bounds": [(-50, 50), None]}, False),
    "log density, points": ((log_prior, of_point, 2), {"vectorize": False}, False),
}  # fmt: skip
each_form = pytest.mark.parametrize("form", FORMS)


def made(form):
    args, options, _ = FORMS[form]
    return from_prior(*args, **options)


def coordinates(energy, n=20, seed=0):
    rng = np.random.default_rng(seed)
    u = rng.random((n, energy.n_features))
    return u if energy.to_parameters else LOC + SCALE * ndtri(u)


class TestDensity:
    @each_form
    def test_is_prior_times_likelihood(self, form):
        energy, (_, _, gradient) = made(form), FORMS[form]
        X = coordinates(energy)
        theta = transform(X) if energy.to_parameters else X
        prior = 0.0 if energy.to_parameters else log_prior(X)
        expected = -(prior + log_likelihood(theta))
        np.testing.assert_allclose(energy(X), expected, rtol=1e-9)
        x = torch.tensor(X, requires_grad=True)
        value = energy(x)
        assert value.dtype == torch.float64 and value.requires_grad == energy.has_gradient == gradient
        np.testing.assert_allclose(value.detach(), expected, rtol=1e-9)
        np.testing.assert_allclose(np.column_stack([*energy.constrain(X).values()]), theta, rtol=1e-9)
        np.testing.assert_allclose(energy.log_prior(X), np.broadcast_to(prior, len(X)), rtol=1e-9)
        judged = Energy(energy, 2, None, torch.Generator().manual_seed(0))
        assert judged.has_gradient == gradient and judged.framework == "torch"

    @pytest.mark.parametrize("form", [form for form in FORMS if FORMS[form][2]])
    def test_gradient(self, form):
        """As central differences, to 1e-6."""
        energy = made(form)
        X, step = coordinates(energy), 1e-5
        X = np.clip(X, 0.02, 0.98) if energy.to_parameters else X
        x = torch.tensor(X, requires_grad=True)
        (found,) = torch.autograd.grad(energy(x).sum(), x)
        steps = step * np.eye(2)
        expected = np.transpose([(energy(X + e) - energy(X - e)) / (2 * step) for e in steps])
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize(
        "one, slope",
        [
            (stats.beta(0.5, 3), lambda x: -0.5 / x - 2 / (1 - x)),
            (stats.gamma(3, scale=2), lambda x: 2 / x - 0.5),
            (stats.lognorm(0.7), lambda x: -(1 + np.log(x) / 0.49) / x),
            (stats.loguniform(1e-4, 1e4), lambda x: -1 / x),
            (stats.cauchy(3), lambda x: -2 * (x - 3) / (1 + (x - 3) ** 2)),
            (stats.uniform(-2, 1), np.zeros_like),
        ],
    )  # fmt: skip
    def test_gradient_of_any_distribution(self, one, slope):
        """In the bulk and close to the edges, to 1e-5."""
        energy = from_prior([one], lambda x: 0 * x[:, 0])
        x = one.ppf([0.001, 0.01, 0.3, 0.5, 0.9, 0.999])
        points = torch.tensor(x[:, None], requires_grad=True)
        (found,) = torch.autograd.grad(-energy(points).sum(), points)
        np.testing.assert_allclose(found[:, 0], slope(x), rtol=1e-5, atol=1e-5)

    def test_likelihood_sees_the_support_only(self):
        seen = []

        def spy(x):
            seen.append(x.copy())
            return in_numpy(x)

        energy = from_prior({"a": stats.halfnorm(), "b": stats.uniform()}, spy)
        assert energy(np.array([[1.0, 0.5], [-1.0, 0.5], [1.0, 2.0]]))[1:].tolist() == [np.inf, np.inf]
        assert all((x > 0).all() and (x[:, 1] < 1).all() for x in seen) and seen
        n_seen = len(seen)
        assert energy(np.array([[-1.0, 0.5]])).tolist() == [np.inf] and len(seen) == n_seen
        assert made("transform")(np.array([[0.5, 1.5]])).tolist() == [np.inf]

    def test_extreme_coordinates_are_finite(self):
        energy = from_prior(NORMALS, in_numpy, coordinates="cube")
        edges = np.array([[np.nextafter(0, 1), 0.5], [np.nextafter(1, 0), 0.5]])
        assert np.isfinite(energy(edges)).all()

    def test_bounds_names_and_start(self):
        energy = from_prior({"a": stats.norm(3, 2), "b": (0, 10), "c": stats.halfcauchy()}, by_name)
        assert energy.bounds == [(-np.inf, np.inf), (0, 10), (0, np.inf)]
        assert energy.feature_names == energy.parameter_names == energy.constrained_names == ["a", "b", "c"]
        assert energy.start.shape == (64, 3)
        np.testing.assert_allclose(energy.start.mean(0)[:2], [3, 5], atol=0.05)
        cube = made("transform, arrays")
        assert cube.feature_names == ["a (unit cube)", "b (unit cube)"] and cube.bounds == [(0, 1), (0, 1)]
        assert made("log density, arrays").bounds == [[-50, 50], [-np.inf, np.inf]]
        assert made("log density").bounds is None and made("log density").start is None

    def test_workers(self):
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            energy = from_prior(NORMALS, of_point, vectorize=False, pool=pool)
            assert energy.fewest_rows == 2
            X = coordinates(energy)
            np.testing.assert_array_equal(energy(X), made("distributions, points")(X))
            expected = energy(X)
            again = pickle.loads(pickle.dumps(energy))
        np.testing.assert_array_equal(again(X), expected)  # without the pool

    def test_likelihood_of_points_in_torch(self):
        energy = from_prior(NORMALS, lambda x: log_likelihood(torch.stack([x]))[0], vectorize=False)
        X = coordinates(energy)
        np.testing.assert_allclose(energy(X), made("distributions")(X))
        assert energy.has_gradient


@pytest.mark.parametrize(
    "args, options, error, message",
    [
        ((NORMALS, "f"), {}, TypeError, "log_likelihood has to be a function"),
        ((3, in_numpy), {}, TypeError, "prior has to be distributions"),
        (([], in_numpy), {}, ValueError, "holds no distribution"),
        (([3], in_numpy), {}, TypeError, r"prior\[0\] has to be a frozen distribution"),
        (([(1, 0)], in_numpy), {}, ValueError, r"low below high"),
        (([stats.norm([0, 1], 1)], in_numpy), {}, ValueError, "a distribution for each"),
        (([stats.norm(0, -1)], in_numpy), {}, ValueError, "no distribution"),
        ((NORMALS, in_numpy, 3), {}, ValueError, "of 2 parameters, and n_features of 3"),
        ((NORMALS, in_numpy), {"feature_names": ["a"]}, ValueError, "and feature_names of 1"),
        ((NORMALS, in_numpy), {"bounds": (0, 1)}, ValueError, "bounds belong to the log density"),
        ((NORMALS, in_numpy), {"coordinates": "x"}, ValueError, "coordinates has to be"),
        ((transform, in_numpy), {}, ValueError, "number of parameters is not known"),
        ((log_prior, in_numpy), {"bounds": (None, None)}, ValueError, "number of parameters is not known"),
        ((log_prior, in_numpy, 2), {"bounds": [(0, 1)] * 3}, ValueError, "bounds has to be.*2"),
        ((transform, in_numpy, 2), {"coordinates": "parameters"}, ValueError, "Of a prior transform"),
        ((log_prior, in_numpy, 2), {"coordinates": "cube"}, ValueError, "needs quantiles"),
        ((lambda u: u[:, :1], in_numpy, 2), {}, InvalidEnergyError, r"shape \(3, 1\)"),
        ((lambda u: np.zeros(5), of_point, 2), {"vectorize": False}, InvalidEnergyError, "vectorize=False"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(args, options, error, message):
    with pytest.raises(error, match=message):
        from_prior(*args, **options)


@pytest.mark.parametrize(
    "function, vectorize, message",
    [
        (lambda x: -(x**2), True, "log_likelihood has to return real numbers of shape"),
        (lambda x: np.exp(-(x**2)), True, "log_likelihood has to be an array of real numbers.*pass vectorize=False"),
        (lambda x: x, False, "log_likelihood has to be a real number.*pass vectorize=True"),
    ],
)
def test_wrong_shapes_of_a_likelihood_are_named(function, vectorize, message):
    energy = from_prior(NORMALS, function, vectorize=vectorize)
    with pytest.raises(InvalidEnergyError, match=message):
        energy(np.zeros((4, 2)))


def test_errors_of_tensors_and_of_arrays_are_both_told():
    def likelihood(x):
        raise TypeError("tensors") if isinstance(x, torch.Tensor) else ValueError("arrays")

    with pytest.raises(TypeError, match="tensors") as caught:
        from_prior(NORMALS, likelihood)(torch.zeros(4, 2))
    assert isinstance(caught.value.__cause__, ValueError)


# ------------------------------------------------------------------------------------------------ fits
FAST = ["distributions", "distributions, cube", "transform", "log density"]
SLOW = slow(*(form for form in FORMS if form not in FAST))


@functools.cache
def in_cube(kind):
    """A small fit to a transform of the unit cube; do not change it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler = make(kind, n_features=None, start=None, max_energy_evals=20_000)
        return sampler.fit(made("transform, arrays"), derived={"sum": total})


def total(x):
    return x.sum(1)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
class TestEvidence:
    @pytest.mark.parametrize("form", [*FAST, *SLOW])
    def test_is_that_of_the_conjugate_model(self, form):
        """Log Z and the means within 5.6 standard errors: false alarms in 6e-8 of runs.

        The controls are log Z without the normaliser of the prior, and the means of the prior.
        """
        sampler = make("DiffusionSampler", n_features=None, start=None, max_energy_evals=20_000)
        sampler.fit(made(form))
        W = sampler.sample_weighted(4000, random_state=1)
        X, log_weights, log_density = W.posterior()
        log_z, error = W.evidence()
        assert W.pareto_k < 0.7 and W.ess > 500  # so that standard errors hold
        assert abs(log_z - LOG_Z) < Z * error < abs(np.log(SCALE).sum() + LOG_2PI)
        w = np.exp(log_weights)
        errors = np.sqrt(w**2 @ (X - w @ X) ** 2)
        assert w.sum() == pytest.approx(1)
        assert (np.abs(w @ X - MEAN) < Z * errors).all() and not (np.abs(w @ X - LOC) < Z * errors).all()
        np.testing.assert_allclose(W.log_likelihood, log_likelihood(X), rtol=1e-9)
        np.testing.assert_allclose(log_density, -sampler._energy.energy_fn(W.samples), rtol=1e-9)

    def test_samplers_parameters_come_first(self):
        sampler = make("DiffusionSampler", n_features=None, bounds=(-9, 9), feature_names=["c", "d"])
        own = sampler.set_params(max_energy_evals=20_000).fit(made("log density, arrays"))
        assert own.bounds_.tolist() == [[-9, 9], [-9, 9]] and own.feature_names_out_.tolist() == ["c", "d"]

    @pytest.mark.parametrize("kind", ["ConsistentSamplerScratch", *slow("ConsistentSamplerDistiller")])
    def test_draws_in_the_cube_come_with_their_parameters(self, kind):
        sampler = in_cube(kind)
        assert sampler.bounds_.tolist() == [[0, 1], [0, 1]]
        assert sampler.feature_names_out_.tolist() == ["a (unit cube)", "b (unit cube)"]
        W = sampler.sample_weighted(200, random_state=0)
        np.testing.assert_allclose(W.posterior()[0], transform(W.samples))
        np.testing.assert_allclose(W.log_likelihood, log_likelihood(transform(W.samples)))
        frame = sampler.sample(200, random_state=0, as_frame=True)
        assert list(frame.columns)[2:] == ["a", "b", "sum"]
        np.testing.assert_allclose(frame[["a", "b"]], transform(W.samples), rtol=1e-5)
        again = pickle.loads(pickle.dumps(sampler)).sample_weighted(
            200, random_state=0, energy_fn=sampler._energy.energy_fn
        )
        np.testing.assert_allclose(again.posterior()[0], W.posterior()[0])

    def test_displays_show_the_parameters(self):
        pytest.importorskip("matplotlib")
        sampler = in_cube("ConsistentSamplerScratch")
        W = sampler.sample_weighted(200, random_state=0)
        for display in (SamplerDisplay.from_estimator(sampler, n=200), SamplerDisplay.from_samples(W)):
            assert display.feature_names.tolist() == ["a", "b", "sum"]

    def test_arviz_has_parameters_and_log_likelihood(self):
        pytest.importorskip("arviz")
        data = in_cube("ConsistentSamplerScratch").to_arviz(200, random_state=0)
        assert set(data.posterior.data_vars) == {"a", "b", "sum"}
        X = np.column_stack([np.ravel(data.posterior[name]) for name in "ab"])
        np.testing.assert_allclose(np.ravel(data.sample_stats["log_likelihood_sum"]), log_likelihood(X))
        np.testing.assert_allclose(np.ravel(data.sample_stats["lp"]), log_likelihood(X))  # uniform in the cube
        np.testing.assert_allclose(np.ravel(data.posterior["sum"]), X.sum(1))

    def test_start_of_the_prior_finds_what_is_far(self):
        """A likelihood that is flat but for a narrow peak at 500, within a prior that is as far and as wide."""
        energy = from_prior([stats.norm(500, 100)], lambda x: -0.5 * ((x[:, 0] - 480) / 5) ** 2)
        sampler = make("DiffusionSampler", n_features=None, start=None, max_energy_evals=20_000).fit(energy)
        W = sampler.sample_weighted(2000, random_state=0)
        exact = stats.norm(500, np.hypot(100, 5)).logpdf(480) + np.log(5) + 0.5 * LOG_2PI
        assert abs(W.log_evidence - exact) < Z * W.log_evidence_se < 1
