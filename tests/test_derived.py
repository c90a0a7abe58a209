"""Derived quantities: functions of draws beside the features, and how they leave the process."""

import copy
import pickle
import warnings

import joblib
import numpy as np
import pytest
from samplers import D, make, quadratic

import skcds
from skcds import SamplerDisplay, WeightedSample
from skcds.estimators.derived import Derived

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def radius(x):
    assert isinstance(x, np.ndarray) and x.dtype == np.float64
    return np.sqrt((x**2).sum(1))


def squares(x):
    return x[:, :2] ** 2


DERIVED = {"r": radius, "square": squares, "positive": lambda x: x[:, 0] > 0}
COLUMNS = ["r", "square[0]", "square[1]", "positive"]


def small(kind="ConsistentSamplerScratch", **params):
    return make(kind, **{"max_iter": 1} | params)


@pytest.fixture(scope="module")
def sampler():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return small().fit(quadratic, derived=DERIVED)


def check_columns(frame, X):
    assert list(frame.columns)[D : D + 4] == COLUMNS
    np.testing.assert_array_equal(frame[COLUMNS], np.column_stack([radius(X), X[:, :2] ** 2, X[:, 0] > 0]))


class TestColumns:
    def test_frames_have_them_and_arrays_do_not(self, sampler):
        pytest.importorskip("pandas")
        X = sampler.sample(20, random_state=0)
        assert X.shape == (20, D)
        check_columns(sampler.sample(20, random_state=0, as_frame=True), X)
        assert sampler.sample(0, as_frame=True).shape == (0, D + 4)

    def test_weighted_draws_have_them(self, sampler):
        pytest.importorskip("pandas")
        W = sampler.sample_weighted(20, random_state=0)
        check_columns(W.to_frame(), W.samples)
        np.testing.assert_allclose(W.log_density, -quadratic(W.samples), rtol=1e-12)
        assert W.log_likelihood is None and W.posterior()[0].shape == (20, D)

    def test_arviz_has_them(self, sampler):
        pytest.importorskip("arviz")
        data = sampler.to_arviz(40, random_state=0)
        assert set(data.posterior.data_vars) == {"x0", "x1", "x2", *COLUMNS}
        X = np.column_stack([np.ravel(data.posterior[name]) for name in ("x0", "x1", "x2")])
        np.testing.assert_array_equal(np.ravel(data.posterior["r"]), radius(X))

    def test_display_shows_them(self, sampler):
        pytest.importorskip("matplotlib")
        options = {"n": 200, "random_state": 0, "reference": "particles"}
        display = SamplerDisplay.from_estimator(sampler, features=["x0", "r"], **options)
        assert display.samples.shape == (200, 2) and display.reference.shape[1] == 2 and display.log_density is None
        X = sampler.sample(200, random_state=0)
        np.testing.assert_array_equal(display.samples[:, 1], radius(X))
        assert SamplerDisplay.from_estimator(sampler, **options).axes_.shape == (7, 7)
        W = sampler.sample_weighted(200, random_state=0)
        assert SamplerDisplay.from_samples(W, features=["r"]).ax_.get_xlabel() == "r"

    def test_several_fits_and_a_fit_without(self):
        fitted = small("DiffusionSampler", n_init=2).fit(quadratic, derived={"r": radius})
        assert list(fitted.sample_weighted(5).derived) == ["r"]
        assert fitted.set_params(n_init=1).fit(quadratic).sample_weighted(5).derived is None

    def test_of_a_family(self):
        pytest.importorskip("pandas")
        sampler = small()
        contexts = np.random.default_rng(0).normal(size=(20, D))
        sampler.fit(lambda x, c: 0.5 * ((x - c) ** 2).sum(1), contexts=contexts, derived={"r": radius})
        for context in (contexts[0], contexts[:2]):
            frame = sampler.sample(5, context=context, as_frame=True)
            np.testing.assert_array_equal(frame["r"], radius(frame[["x0", "x1", "x2"]].to_numpy()))
            found = sampler.sample_weighted(5, context=context)
            for W in found if isinstance(found, list) else [found]:
                np.testing.assert_array_equal(W.derived["r"], radius(W.samples))


class TestFaults:
    @pytest.mark.parametrize(
        "derived, error, message",
        [
            ([radius], TypeError, "dictionary of functions by name; got list"),
            ({"r": 3}, TypeError, "functions of draws by name; got int"),
            ({3: radius}, TypeError, "functions of draws by name"),
            ({"x1": radius}, ValueError, "name of another column"),
            ({"log_weight": radius}, ValueError, "name of another column"),
            ({"r": lambda x: x.sum()}, ValueError, r"derived\['r'\] has to map 3 draws to numbers of shape \(3,\)"),
            ({"r": lambda x: x[None]}, ValueError, r"got shape \(1, 3, 3\)"),
            ({"r": lambda x: ["a"] * len(x)}, ValueError, "dtype"),
            ({"r": lambda x: x[:, :0]}, ValueError, r"got shape \(3, 0\)"),
            ({"r": lambda x: x["a"]}, IndexError, "valid indices"),
        ],
    )  # fmt: skip
    def test_are_named_before_the_training(self, derived, error, message):
        sampler = small(max_iter=10**6)
        with pytest.raises(error, match=message):
            sampler.fit(quadratic, derived=derived)
        assert not hasattr(sampler, "n_features_in_")

    def test_of_weighted_draws(self):
        for derived, message in [({"a": [1.0]}, "one number a draw"), ({"x0": [1.0, 2.0]}, "another column")]:
            with pytest.raises(ValueError, match=message):
                WeightedSample([[1.0], [2.0]], [0.0, 0.0], True, derived=derived)
        with pytest.raises(ValueError, match="not among the names"):
            WeightedSample([[1.0], [2.0]], [0.0, 0.0], True, parameter_names=["a"])
        with pytest.raises(ValueError, match="log_density has to have one number"):
            WeightedSample([[1.0], [2.0]], [0.0, 0.0], True, log_density=[1.0])


class TestLeaving:
    """A pickle carries functions that can be imported by name, a file none, and a copy all."""

    def test_pickle(self, sampler):
        again = pickle.loads(pickle.dumps(sampler))
        with pytest.warns(UserWarning, match="The derived quantities positive are left out"):
            W = again.sample_weighted(5, random_state=0, energy_fn=quadratic)
        assert list(W.derived) == COLUMNS[:3]
        twice = pickle.loads(pickle.dumps(again))
        assert twice._derived.lost == ("positive",) and list(twice._derived.functions) == ["r", "square"]
        assert joblib.hash(twice) == joblib.hash(again)

    def test_pickle_of_what_cannot_be_imported_any_more(self, sampler):
        state = sampler._derived.references()
        state["functions"]["r"] = ["nowhere", "radius"]
        assert Derived.from_references(state).lost == ("positive", "r")

    def test_file(self, sampler, tmp_path):
        sampler.save(tmp_path / "sampler")
        loaded = skcds.load(tmp_path / "sampler")
        assert loaded.sample_weighted(5, energy_fn=quadratic).derived is None

    @pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
    def test_copies(self, sampler, copied):
        assert list(copied(sampler).sample_weighted(5).derived) == COLUMNS
