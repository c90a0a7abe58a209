"""Names of features, data frames, ArviZ, and the score by which fits are compared."""

import subprocess
import sys
import types

import numpy as np
import pytest
from samplers import KINDS, LOG_Z, D, fitted, make, quadratic
from sklearn.model_selection import ParameterGrid

from skcds import ConsistentSamplerDistiller, Coupling, DiffusionSampler, WeightedSample

each_kind = pytest.mark.parametrize("kind", KINDS)
NAMES = ["mu", "log_tau", "theta[0]"]


def named(x):
    return quadratic(x)


named.feature_names = NAMES


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
class TestNames:
    @each_kind
    def test_default_is_scikit_learns(self, kind):
        assert fitted(kind).feature_names_out_.tolist() == ["x0", "x1", "x2"]

    @each_kind
    def test_parameter_comes_before_the_energy(self, kind):
        assert make(kind, max_iter=2).fit(named).feature_names_out_.tolist() == NAMES
        own = make(kind, max_iter=2, feature_names=["a", "b", "c"]).fit(named)
        assert own.feature_names_out_.tolist() == ["a", "b", "c"]
        assert own.sample_weighted(5).feature_names.tolist() == ["a", "b", "c"]

    @pytest.mark.parametrize("fit_teacher", [False, True])
    def test_student_has_the_teachers(self, fit_teacher):
        teacher = make("DiffusionSampler", max_iter=2, feature_names=NAMES)
        teacher = teacher.fit(quadratic) if fit_teacher else teacher
        student = ConsistentSamplerDistiller(teacher, max_iter=2, batch_size=64, network=Coupling(n_transforms=2)).fit(
            quadratic
        )
        assert student.feature_names_out_.tolist() == NAMES

    @pytest.mark.parametrize("names", [["a", "b"], ["a", "b", "b"], ["a", "b", 3], []])
    def test_wrong_names_are_errors(self, names):
        with pytest.raises(ValueError, match="feature_names has to be 3 different names"):
            make("DiffusionSampler", feature_names=names).fit(quadratic)


class TestFrame:
    @each_kind
    def test_has_the_draws(self, kind):
        pytest.importorskip("pandas")
        frame = fitted(kind).sample(20, random_state=0, as_frame=True)
        assert list(frame.columns) == ["x0", "x1", "x2"]
        assert np.array_equal(frame.to_numpy(), fitted(kind).sample(20, random_state=0))

    def test_of_weighted_draws_has_their_weights(self):
        pytest.importorskip("pandas")
        weighted = fitted(KINDS[1]).sample_weighted(20, random_state=0)
        frame = weighted.to_frame()
        assert np.array_equal(frame["log_weight"], weighted.log_weights) and frame.shape == (20, D + 1)

    def test_not_into_an_array(self):
        with pytest.raises(ValueError, match="choose one of them"):
            fitted(KINDS[1]).sample(2, out=np.empty((2, D)), as_frame=True)

    def test_without_the_library_says_what_to_install(self):
        code = (
            "import sys; sys.modules.update(dict.fromkeys(['pandas', 'arviz', 'getdist', 'anesthetic']))\n"
            "from skcds import WeightedSample\n"
            "weighted = WeightedSample([[1.0], [2.0]], [0.0, 0.0], True)\n"
            "for name in ('frame', 'arviz', 'getdist', 'anesthetic'):\n"
            "    try: getattr(weighted, 'to_' + name)()\n"
            "    except ImportError as error: print(error)"
        )
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert ended.stdout.count('pip install "skcds[') == 4


class TestArviz:
    @pytest.fixture
    def arviz(self):
        return pytest.importorskip("arviz")

    @each_kind
    def test_summary_runs(self, arviz, kind):
        summary = arviz.summary(fitted(kind).to_arviz(1000, random_state=0))
        assert list(summary.index) == ["x0", "x1", "x2"]

    def test_posterior_is_of_the_weights(self, arviz):
        """Draws of N(0, 1.5^2) weighted for N(0, 1): resampled they have its variance, to 6 standard errors (2e-9).

        The negative control is the draws without their weights.
        """
        z = np.random.RandomState(0).normal(size=(20_000, 1))
        x = 1.5 * z
        weighted = WeightedSample(x, 0.5 * (z**2 - x**2).sum(1), True, feature_names=["a"])
        right = float(np.var(weighted.to_arviz(random_state=0).posterior["a"]))
        assert abs(right - 1) < 6 * np.sqrt(2 / weighted.ess) + 6 * np.sqrt(2 / 20_000)
        plain = weighted.to_arviz(resample=False)
        assert float(np.var(plain.posterior["a"])) > 2
        assert np.array_equal(np.ravel(plain.sample_stats["log_weight"]), weighted.log_weights)

    def test_statistics_belong_to_the_draws(self, arviz):
        weighted = weighted_draws(log_likelihood=np.arange(4000.0))
        data = weighted.to_arviz(random_state=0)
        row = np.ravel(data.sample_stats["log_likelihood_sum"]).astype(int)  # which tells where a draw is from
        assert np.array_equal(np.ravel(data.posterior["a"]), weighted.samples[row, 0])
        assert np.array_equal(np.ravel(data.posterior["sum"]), weighted.derived["sum"][row])
        assert np.array_equal(np.ravel(data.sample_stats["lp"]), weighted.log_density[row])

    @pytest.mark.parametrize("n, shape", [(100, (4, 25)), (7, (1, 7)), (1, (1, 1))])
    def test_chains(self, arviz, n, shape):
        data = WeightedSample(np.zeros((n, 1)), np.zeros(n), True).to_arviz()
        assert data.posterior["x0"].shape == shape and data.posterior.attrs["ess"] == n


def weighted_draws(**details):
    """Draws of N(0, 1.5^2), weighted for correlated normals; the last has no weight."""
    rng = np.random.default_rng(0)
    x = 1.5 * rng.normal(size=(4000, 2))
    log_density = -0.5 * (x[:, 0] ** 2 + (x[:, 1] - 0.5 * x[:, 0] - 1) ** 2)
    log_density[-1] = -np.inf
    log_weights = log_density + 0.5 * ((x / 1.5) ** 2).sum(1)
    derived = {"sum": x.sum(1)}
    return WeightedSample(
        x, log_weights, True, feature_names=["a", "b c"], log_density=log_density, derived=derived, **details
    )


def moments_of(weighted):
    """Weighted means and covariances of features and derived quantities."""
    X = np.column_stack([weighted.samples, weighted.derived["sum"]])
    mean = weighted.weights @ X
    return mean, (weighted.weights[:, None] * (X - mean)).T @ (X - mean)


class TestPosterior:
    def test_weights_are_normalised(self):
        weighted = weighted_draws()
        X, log_weights, log_density = weighted.posterior()
        assert X is not weighted.samples and np.array_equal(X, weighted.samples)
        assert np.exp(log_weights).sum() == pytest.approx(1) and log_weights[-1] == -np.inf
        np.testing.assert_allclose(np.diff(log_weights[:-1]), np.diff(weighted.log_weights[:-1]), atol=1e-9)
        assert np.array_equal(log_density, weighted.log_density)
        assert weighted.evidence() == (weighted.log_evidence, weighted.log_evidence_se)

    def test_parameters_take_the_place_of_coordinates(self):
        weighted = weighted_draws(parameter_names=["sum"])
        assert np.array_equal(weighted.posterior()[0][:, 0], weighted.derived["sum"])

    def test_of_what_is_not_known(self):
        assert WeightedSample([[1.0], [2.0]], [0.0, 0.0], True).posterior()[2] is None


class TestGetDist:
    def test_is_given_what_is_there(self, monkeypatch):
        """With a stand-in for the library, which keeps what it is given."""
        monkeypatch.setitem(sys.modules, "getdist", types.SimpleNamespace(MCSamples=lambda **given: given))
        weighted = weighted_draws()
        given = weighted.to_getdist({"a": r"\alpha"}, label="draws")
        assert given["names"] == ["a", "b_c", "sum*"] and given["labels"] == [r"\alpha", "b c", "sum"]
        assert given["label"] == "draws" and given["samples"].shape == (3999, 3)
        np.testing.assert_array_equal(given["loglikes"], -weighted.log_density[:-1])
        np.testing.assert_array_equal(given["weights"], weighted.weights[:-1])

    def test_moments_are_those_of_the_weights(self):
        """To rounding; those of the draws without weights are far off."""
        pytest.importorskip("getdist")
        weighted = weighted_draws()
        found, (mean, covariance) = weighted.to_getdist(), moments_of(weighted)
        np.testing.assert_allclose(found.getMeans(), mean, atol=1e-9)
        np.testing.assert_allclose(found.getCov(), covariance, atol=1e-9)
        assert not np.allclose(
            found.getMeans(), weighted.samples.mean(0).tolist() + [weighted.derived["sum"].mean()], atol=0.1
        )
        assert [name.isDerived for name in found.paramNames.names] == [False, False, True]


class TestAnesthetic:
    def test_is_given_what_is_there(self, monkeypatch):
        """With a stand-in for the library, which keeps what it is given."""
        monkeypatch.setitem(sys.modules, "anesthetic", types.SimpleNamespace(Samples=lambda **given: given))
        weighted = weighted_draws(log_likelihood=np.zeros(4000))
        given = weighted.to_anesthetic({"a": "$x$"})
        assert given["columns"] == ["a", "b c", "sum"] and given["labels"] == ["$x$", "b c", "sum"]
        assert given["data"].shape == (4000, 3) and np.array_equal(given["weights"], weighted.weights)
        assert np.array_equal(given["logL"], np.zeros(4000))

    def test_moments_are_those_of_the_weights(self):
        """Means to rounding, covariances to the 1 / n that theirs are larger by; unweighted they are far off."""
        pytest.importorskip("anesthetic")
        weighted = weighted_draws()
        found, (mean, covariance) = weighted.to_anesthetic(), moments_of(weighted)
        np.testing.assert_allclose(np.asarray(found.mean()), mean, atol=1e-9)
        np.testing.assert_allclose(np.asarray(found.cov()), covariance, rtol=3 / weighted.ess, atol=1e-4)
        assert not np.allclose(weighted.samples.mean(0), mean[:2], atol=0.1)


class TestScore:
    @each_kind
    def test_is_the_bound_of_weighted_draws(self, kind):
        score = fitted(kind).score(n=500, random_state=3)
        assert score == fitted(kind).sample_weighted(500, random_state=3).elbo
        assert score == fitted(kind).score(quadratic, n=500, random_state=3)
        assert score < LOG_Z + 0.1

    @pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
    def test_picks_the_better_parameters(self):
        """Of one trained for one iteration and for a hundred, on two wells, whose bound then rises by some tenths."""
        from sklearn.base import clone

        def wells(x):
            return (x[:, 0] ** 2 - 2) ** 2 + 0.5 * (x[:, 1:] ** 2).sum(1)

        sampler = make("ConsistentSamplerScratch")
        fits = [clone(sampler).set_params(**p).fit(wells) for p in ParameterGrid({"max_iter": [1, 100]})]
        assert max(fits, key=lambda fit: fit.score(n=2000)).max_iter == 100


def test_pipeline_and_memory(tmp_path):
    """A fit in a pipeline, cached on disk between one run and the next."""
    from joblib import Memory
    from sklearn.pipeline import make_pipeline

    calls = []
    memory = Memory(tmp_path, verbose=0)

    def fit(sampler, energy_fn):
        calls.append(1)
        return sampler.fit(energy_fn)

    cached = memory.cache(fit)
    first = cached(make("DiffusionSampler", max_iter=2), quadratic)
    again = cached(make("DiffusionSampler", max_iter=2), quadratic)
    other = cached(make("DiffusionSampler", max_iter=3), quadratic)
    assert len(calls) == 2 and other.n_iter_ == 3
    assert np.array_equal(first.sample(5, random_state=0), again.sample(5, random_state=0))
    pipeline = make_pipeline(make("DiffusionSampler", max_iter=2)).fit(quadratic)
    assert np.array_equal(pipeline[-1].sample(5, random_state=0), first.sample(5, random_state=0))
    assert np.isfinite(pipeline.score(quadratic))


def test_frozen_teacher_is_not_fitted_again():
    from sklearn.frozen import FrozenEstimator

    teacher = fitted("DiffusionSampler")
    student = ConsistentSamplerDistiller(
        FrozenEstimator(teacher), max_iter=2, batch_size=64, network=Coupling(n_transforms=2)
    )
    assert student.fit(quadratic).teacher_ is teacher


@pytest.mark.parametrize("sampler", [DiffusionSampler(), ConsistentSamplerDistiller()])
def test_html_has_a_link_to_the_documentation(sampler):
    html = sampler._repr_html_()
    name = type(sampler).__name__
    assert f"api/{name}.html#skcds.{name}" in html
