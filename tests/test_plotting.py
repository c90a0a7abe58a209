import builtins
import copy
import functools
import pickle
import warnings

import numpy as np
import pytest
import torch
from cases import crossed, slow
from samplers import KINDS, fitted, make, quadratic
from scipy import stats
from sklearn.exceptions import NotFittedError

import skcds
from skcds import (
    ConsistentSamplerDistiller,
    ConsistentSamplerScratch,
    Control,
    DiffusionSampler,
    PathLoss,
    Pilot,
    WeightedSample,
)
from skcds.plotting import EvidenceDisplay, SamplerDisplay, TrainingDisplay
from skcds.plotting._evidence import _tail_counts
from skcds.plotting._grids import (
    effective_number,
    hdr_levels,
    pair_bins,
    smooth_histogram,
    weighted_quantile,
    window,
)
from skcds.plotting._style import number
from skcds.plotting._training import smoothed
from skcds.train.phases import PhaseRecord
from skcds.weights.importance import effective_sample_size, log_evidence, pareto_k

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


@pytest.fixture(autouse=True)
def _closed_figures():
    yield
    plt.close("all")


@functools.cache
def small(n_features):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make("ConsistentSamplerDistiller", n_features=n_features, max_iter=10).fit(quadratic)


def normal(n=4000, d=2, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def texts(display):
    """Everything in words that a reader of the figure sees."""
    display.figure_.canvas.draw()
    found = display.figure_.findobj(lambda artist: isinstance(artist, matplotlib.text.Text) and artist.get_visible())
    return [text for text in found if text.get_text().strip()]


# ---------------------------------------------------------------- numbers behind the pictures


@pytest.mark.parametrize("d", [1, 2])
def test_regions_of_a_gaussian_hold_the_stated_mass(d):
    side = np.linspace(-7, 7, 1401)
    squares = side**2 if d == 1 else side[:, None] ** 2 + side**2
    masses = [0.5, 0.8, 0.95, 0.99]
    levels = hdr_levels(np.exp(-0.5 * squares), masses)
    radii = -2 * np.log(levels)  # squared
    np.testing.assert_allclose(stats.chi2(d).cdf(radii), masses, atol=0.003)


def test_regions_of_two_modes_of_unequal_height():
    density = np.array([0.0, 4.0, 0.0, 3.0, 2.0, 1.0])
    assert hdr_levels(density, [0.3, 0.5, 0.69, 0.95]).tolist() == [4.0, 3.0, 3.0, 1.0]


def test_effective_number_of_draws():
    assert effective_number(7, None) == 7 and effective_number(4, np.full(4, 0.25)) == 4
    assert effective_number(4, np.array([0.5, 0.5, 0, 0])) == 2


def test_smooth_histogram_knows_of_nothing_beyond_its_edges():
    """In a corner the draws do not count for more than in the middle, as if they were there on both sides of it."""
    edges = [np.linspace(0, 1, 21)] * 2
    peaks = [smooth_histogram(np.full((100, 2), place), edges, None).max() for place in (0.01, 0.51)]
    assert peaks[0] == pytest.approx(peaks[1])


def test_smooth_histogram_keeps_the_mass_and_the_weights():
    xy, weights = normal(), np.full(4000, 1 / 4000)
    edges = [np.linspace(-8, 8, 41)] * 2
    plain = smooth_histogram(xy, edges, None)
    np.testing.assert_allclose(plain.sum(), 4000, rtol=1e-6)
    np.testing.assert_allclose(smooth_histogram(xy, edges, weights), plain / 4000)
    np.testing.assert_allclose(plain.sum(1).argmax(), 20, atol=2)


def test_narrow_modes_have_finer_bins():
    limits = [(-10.0, 10.0)] * 2
    wide = 3 * normal()
    narrow = 0.3 * normal() + np.random.default_rng(1).choice([-7, 0, 7], size=(4000, 2))
    assert pair_bins(narrow, limits, None, 14) > 1.5 * pair_bins(wide, limits, None, 14)


def test_weighted_quantile_of_repeated_draws():
    x, counts = np.arange(1.0, 6.0), np.array([1, 2, 3, 2, 1]) * 1000
    repeated = np.repeat(x, counts)
    levels = [0.05, 0.5, 0.95]
    weighted = weighted_quantile(x, levels, counts / counts.sum())
    np.testing.assert_allclose(weighted, np.quantile(repeated, levels), atol=0.51)
    assert weighted[1] == 3


def test_window_is_not_squashed_by_one_draw_and_shows_the_reference():
    x = normal(d=1)[:, 0]
    low, high = window([(np.r_[x, 1e6], None)], 0.0025, 0.25)
    assert -5 < low < x.min() + 0.5 and x.max() - 0.5 < high < 5
    assert window([(x, None), (x + 20, None)], 0.0025, 0.25)[1] > 22
    assert window([(np.full(10, 3.0), None)], 0.0025, 0.25) == (1.5, 4.5)


def test_numbers_in_captions():
    assert [number(x) for x in (-0.5, 1e-5, np.inf, -np.inf)] == ["−0.5", "1e−5", "∞", "−∞"]
    assert number(-55.2182, 3) == "−55.218"


# ---------------------------------------------------------------- SamplerDisplay


def test_one_feature_shows_draws_under_the_normalised_density():
    sampler = small(1)
    display = SamplerDisplay.from_estimator(sampler, n=500, random_state=0)
    np.testing.assert_array_equal(display.samples, sampler.sample(500, random_state=0))
    assert display.weights is None and display.log_evidence == sampler.log_evidence_
    (curve,) = display.contours_
    x, y = curve.get_data()
    np.testing.assert_allclose(np.log(y), -0.5 * (x - 1) ** 2 - sampler.log_evidence_, atol=1e-6)
    assert curve.get_label() == "exp(−energy) / Z" and display.ax_.get_xlabel() == "x0"


def test_histogram_is_that_of_numpy():
    X, weights = normal(d=1), np.random.default_rng(1).random(4000)
    display = SamplerDisplay.from_samples(X, sample_weight=weights, bins=20)
    heights, edges, _ = display.draws_[0].get_data()
    expected, _ = np.histogram(X[:, 0], edges, weights=weights)
    np.testing.assert_allclose(heights, expected / weights.sum() / np.diff(edges))
    assert len(heights) == 20


def test_log_weights_are_weights():
    X, weights = normal(), np.random.default_rng(1).random(4000)
    weights[:7] = 0
    with np.errstate(divide="ignore"):
        by_logs = SamplerDisplay.from_samples(X, log_weights=np.log(weights) - 500)
        W = WeightedSample(X, np.log(weights) + 30, True)
    np.testing.assert_allclose(by_logs.weights, weights / weights.sum())
    np.testing.assert_allclose(SamplerDisplay.from_samples(W).weights, weights / weights.sum())
    np.testing.assert_allclose(by_logs.draws_[0].get_sizes()[:7], 0)


def test_density_without_log_evidence_is_normalised_on_the_grid():
    display = SamplerDisplay.from_samples(normal(d=1) + 1, energy_fn=quadratic)
    x, y = display.contours_[0].get_data()
    np.testing.assert_allclose(y, stats.norm(1).pdf(x), rtol=0.01)


def test_contours_of_the_plane_are_those_of_the_energy():
    masses = [0.5, 0.8, 0.95]
    display = SamplerDisplay.from_estimator(small(2), n=2000, random_state=0, masses=masses)
    assert display.log_density.shape == (200, 200)
    lines = display.contours_[1]
    for path, mass in zip(lines.get_paths(), sorted(masses, reverse=True), strict=True):
        radius = np.linalg.norm(path.vertices - 1, axis=1)
        np.testing.assert_allclose(radius, np.sqrt(stats.chi2(2).ppf(mass)), rtol=0.03)
    labels = [text.get_text() for text in display.legend_.get_texts()]
    assert labels == ["draws", "50, 80, 95 % regions of the energy"]


def test_grid_stays_within_the_bounds():
    if "bounds" not in DiffusionSampler().get_params():
        pytest.skip("without bounds")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler = make("ConsistentSamplerDistiller", n_features=1, max_iter=5)
        sampler.set_params(bounds=(0, None), teacher__bounds=(0, None)).fit(lambda x: 2 * x[:, 0] - 2 * x[:, 0].log())
        display = SamplerDisplay.from_estimator(sampler, n=500, random_state=0)
    x, y = display.contours_[0].get_data()
    assert 0 < x.min() < 0.1
    np.testing.assert_allclose(y, np.exp(-2 * x) * x**2 / np.exp(sampler.log_evidence_), rtol=1e-5)


def test_contours_follow_the_order_of_the_features():
    def energy(x):
        return 0.5 * (x[:, 0] ** 2 + ((x[:, 1] - 5) / 0.1) ** 2)

    X = normal() * [1, 0.1] + [0, 5]
    display = SamplerDisplay.from_samples(X, energy_fn=energy, features=["b", "a"], feature_names=["a", "b"])
    assert display.ax_.get_xlabel() == "b"
    peak = np.unravel_index(display.log_density.argmax(), display.log_density.shape)
    np.testing.assert_allclose([axis[k] for axis, k in zip(display.grid, peak, strict=True)], [5, 0], atol=0.05)


def test_a_missing_mode_leaves_its_region_without_draws():
    def energy(x):
        return -torch.logsumexp(torch.stack([-2 * ((x - m) ** 2).sum(1) for m in (-3.0, 3.0)]), 0)

    one = 0.5 * normal() - 3
    display = SamplerDisplay.from_samples(one, energy_fn=energy, reference=np.r_[one, one + 6])
    assert display.log_density.max() < 0.01 and display.grid[0].max() > 3
    assert len(display.reference_) == 1 and display.reference.shape == (8000, 2)


def test_regions_end_at_the_support():
    def energy(x):
        return torch.where((x >= 0).all(1), x.sum(1), torch.inf)

    X = np.random.default_rng(0).exponential(size=(2000, 2))
    display = SamplerDisplay.from_samples(X, energy_fn=energy)
    outermost = display.contours_[1].get_paths()[0].vertices
    assert outermost.min() > -0.06
    assert np.isneginf(display.log_density).any()


def test_no_contours_where_the_energy_is_not_known():
    sampler = pickle.loads(pickle.dumps(make("ConsistentSamplerDistiller", n_features=2, max_iter=3)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler = pickle.loads(pickle.dumps(sampler.fit(lambda x: 0.5 * (x**2).sum(1))))
        display = SamplerDisplay.from_estimator(sampler, n=100, weighted="auto", random_state=0)
        assert display.contours_ == [] and display.weights is None
        display = SamplerDisplay.from_estimator(sampler, n=100, energy_fn=quadratic, grid_size=20, random_state=0)
    assert display.log_density.shape == (20, 20)


def test_many_draws_are_a_histogram():
    kinds = [type(SamplerDisplay.from_samples(normal(n)).draws_[0]).__name__ for n in (1000, 30_000)]
    assert kinds == ["PathCollection", "QuadMesh"]
    drawn = [SamplerDisplay.from_samples(normal(n), kind="scatter").draws_[0].get_rasterized() for n in (1000, 3000)]
    assert drawn == [False, True]  # thousands of points make a file of vectors slow
    mesh = SamplerDisplay.from_samples(normal(), kind="histogram", bins=30).draws_[0]
    assert mesh.get_array().sum() == pytest.approx(4000, abs=12)


@pytest.mark.parametrize("kind", KINDS)
def test_corner_plot_of_every_sampler(kind):
    sampler = fitted(kind)
    display = SamplerDisplay.from_estimator(sampler, n=400, weighted=True, reference="particles", random_state=0)
    assert display.axes_.shape == (3, 3) and display.ax_ is None
    assert [display.axes_[i, j] is None for i, j in [(0, 1), (1, 0)]] == [True, False]
    np.testing.assert_allclose(display.weights.sum(), 1)
    particles = getattr(sampler, "teacher_", sampler).particles_
    np.testing.assert_allclose(display.reference, particles)
    regions = [artist for artist in display.draws_ if type(artist).__name__ == "QuadContourSet"]
    assert len(regions) == 2 * 3 and all(paths.get_paths() for paths in regions)  # filled and with a line, in each pair
    assert len(display.reference_) == 3 + 3
    heights, edges, _ = display.axes_[1, 1].patches[0].get_data()
    expected, _ = np.histogram(display.samples[:, 1], edges, weights=display.weights)
    np.testing.assert_allclose(heights, expected / np.diff(edges))
    assert [text.get_text() for text in display.legend_.get_texts()] == ["weighted draws", "reference"]


def test_labels_of_eight_features_do_not_overlap():
    names = [f"a name of {['few', 'rather many'][j % 2]} words {j}" for j in range(8)]
    X = normal(500, 8) * np.logspace(-5, 6, 8) + np.r_[np.zeros(6), 1e7, 3]
    display = SamplerDisplay.from_samples(X, feature_names=names)
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts(display)]
    figure = display.figure_.bbox
    assert len(boxes) > 40
    for k, (text, box) in enumerate(boxes):
        assert figure.x0 <= box.x0 and box.x1 <= figure.x1 and figure.y0 <= box.y0 and box.y1 <= figure.y1, text
        for other, second in boxes[:k]:
            assert not box.overlaps(second), (text, other)


def test_first_eight_of_many_features_with_a_note():
    with pytest.warns(UserWarning, match="first 8 of 11"):
        display = SamplerDisplay.from_samples(normal(200, 11))
    assert display.samples.shape == (200, 8)
    assert display.legend_.get_title().get_text().startswith("8 of 11 features")
    display = SamplerDisplay.from_samples(normal(200, 11), features=["x10", -2, 0])
    assert display.feature_names.tolist() == ["x10", "x9", "x0"]
    np.testing.assert_array_equal(display.samples, normal(200, 11)[:, [10, 9, 0]])


def test_names_come_from_the_estimator_and_the_frame():
    class Frame:
        columns = ["length", "width"]

        def __array__(self, dtype=None, copy=None):
            return normal(50)

    assert SamplerDisplay.from_samples(Frame()).ax_.get_xlabel() == "length"
    sampler = small(2)
    names = getattr(sampler, "feature_names_out_", ["x0", "x1"])
    assert SamplerDisplay.from_estimator(sampler, n=50, grid_size=5).ax_.get_ylabel() == names[1]
    assert SamplerDisplay.from_estimator(sampler, n=50, grid_size=5, feature_names=["a", "b"]).ax_.get_ylabel() == "b"


def test_axes_given_are_used():
    figure, axes = plt.subplots(1, 2)
    display = SamplerDisplay.from_samples(normal(50), ax=axes[0])
    assert display.ax_ is axes[0] and display.figure_ is figure
    corner = SamplerDisplay.from_samples(normal(50, 3), ax=axes[1], label="one")
    assert corner.figure_ is figure and not axes[1].axison
    over = SamplerDisplay.from_samples(normal(50, 3, seed=1), ax=corner.axes_, color="C1", label="two")
    assert over.axes_ is corner.axes_
    assert [text.get_text() for text in over.legend_.get_texts()] == ["one", "two"]
    assert SamplerDisplay.from_samples(normal(50), kind="corner").axes_.shape == (2, 2)


def test_plot_again_and_of_a_bare_display():
    display = SamplerDisplay(normal(50))
    assert display.plot() is display and display.plot().ax_.get_xlabel() == "x0"


def test_draws_outside_the_support_need_not_be_finite():
    X = normal(50)
    X[3] = np.nan
    log_weights = np.zeros(50)
    with pytest.raises(ValueError, match="1 of 50 draws in X are not finite, the first in row 3"):
        SamplerDisplay.from_samples(X, log_weights=log_weights)
    log_weights[3] = -np.inf
    assert SamplerDisplay.from_samples(X, log_weights=log_weights).samples.shape == (49, 2)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"X": np.zeros(5)}, "X has to hold at least two draws"),
        ({"sample_weight": np.ones(3)}, r"sample_weight has to have one number a draw, shape \(50,\)"),
        ({"sample_weight": -np.ones(50)}, "not negative"),
        ({"sample_weight": np.ones(50), "log_weights": np.ones(50)}, "pass one of them"),
        ({"log_weights": np.full(50, -np.inf)}, "at least finite"),
        ({"reference": np.zeros((9, 3))}, "reference has 3 features, and the draws have 2"),
        ({"features": ["x7"]}, "names, or indices below 2; got 'x7'"),
        ({"features": [0, 0]}, "different features"),
        ({"feature_names": ["a"]}, "feature_names has to be 2 different names"),
        ({"kind": "pie"}, "kind has to be one of 'auto'"),
        ({"masses": [0.5, 95]}, "shares between 0 and 1"),
        ({"energy_fn": quadratic, "grid_size": 1}, "grid_size has to be at least 2"),
        ({"kind": "corner", "ax": np.full((3, 3), None)}, r"array of axes of shape \(2, 2\)"),
    ],
)
def test_wrong_arguments_are_told(arguments, message):
    with pytest.raises(ValueError, match=message):
        SamplerDisplay.from_samples(**{"X": normal(50), **arguments})


def test_wrong_arguments_of_from_estimator():
    with pytest.raises(NotFittedError):
        SamplerDisplay.from_estimator(DiffusionSampler())
    with pytest.raises(ValueError, match="weighted has to be True, False or 'auto'"):
        SamplerDisplay.from_estimator(small(2), weighted="yes")
    with pytest.raises(ValueError, match="'particles' for those of the training; got 'mcmc'"):
        SamplerDisplay.from_estimator(small(2), n=50, reference="mcmc")


@pytest.mark.parametrize("make_display", [
    lambda: SamplerDisplay(normal(9)).plot(),
    lambda: SamplerDisplay.from_estimator(small(2)),
    lambda: TrainingDisplay([1.0, 2.0]).plot(),
    lambda: EvidenceDisplay.from_weights(np.zeros(9)),
])  # fmt: skip
def test_without_matplotlib_it_says_what_to_install(make_display, monkeypatch):
    small(2)
    importing = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return importing(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r'needs matplotlib: pip install "skcds\[plot\]"'):
        make_display()


# ---------------------------------------------------------------- TrainingDisplay


@pytest.mark.parametrize("kind", KINDS)
def test_losses_of_every_sampler(kind):
    sampler = fitted(kind)
    display = TrainingDisplay.from_estimator(sampler)
    np.testing.assert_array_equal(display.loss_curve, sampler.loss_curve_)
    assert sum(len(line.get_xdata()) for line in display.raw_) == sampler.n_iter_
    first, facts, *_ = display.caption_.splitlines()
    assert first == kind and facts.startswith("20 iterations · ")
    assert ("not converged" in facts) == (not sampler.converged_)
    assert f"{sampler.fit_time_:.3g} s" in facts or sampler.fit_time_ >= 10


def test_fit_time_may_be_absent():
    sampler = pickle.loads(pickle.dumps(fitted(KINDS[0])))
    assert TrainingDisplay.from_estimator(sampler).caption_.splitlines()[1].startswith("20 iterations · ")


def with_history(sampler, *phases):
    """An unfitted sampler that looks fitted, of phases (name, iterations, cycle)."""
    history = [PhaseRecord(*phase) for phase in phases]
    losses = [1.0] * sum(record.n_iter for record in history)
    sampler.__dict__.update(_model=None, loss_curve_=losses, history_=history)
    return sampler


def test_losses_of_different_kinds_have_lines_of_their_own():
    scratch = with_history(ConsistentSamplerScratch(2), ("self-consistency", 20, ["sampling", "map"]))
    scratch.loss_curve_ = [1.0, 9.0] * 10
    display = TrainingDisplay.from_estimator(scratch)
    assert [line.get_label() for line in display.smooth_] == ["sampling", "map"]
    np.testing.assert_array_equal(display.raw_[0].get_ydata(), np.ones(10))
    np.testing.assert_array_equal(display.raw_[1].get_xdata(), np.arange(2, 21, 2))
    student = with_history(
        ConsistentSamplerDistiller(), ("distillation", 9, ["distillation"]), ("reverse KL", 3, ["reverse KL"])
    )
    assert TrainingDisplay.from_estimator(student).kinds.tolist() == ["distillation"] * 9 + ["reverse KL"] * 3


@pytest.mark.filterwarnings("ignore")
def test_a_phase_that_a_limit_ended_is_shown_as_it_ran(tmp_path):
    """Score matching that would have 200 iterations is ended by the evaluations, and the loss on paths follows."""
    sampler = DiffusionSampler(
        2, n_steps=4, batch_size=200, max_iter=400, max_energy_evals=20_000, random_state=0,
        start=Pilot(n_particles=100), network=Control(hidden_features=8, n_layers=1, langevin=True),
        loss=PathLoss(share=0.5, batch_size=20),
    )  # fmt: skip
    sampler.fit(quadratic)
    first, second = sampler.history_
    assert (first.name, second.name) == ("score matching", "log variance")
    assert 0 < first.n_iter < 200 and second.n_iter > 0 and first.n_iter + second.n_iter == sampler.n_iter_
    display = TrainingDisplay.from_estimator(sampler)
    assert [line.get_label() for line in display.smooth_] == ["score matching", "log variance"]
    assert len(display.raw_[0].get_xdata()) == first.n_iter and display.raw_[1].get_xdata()[0] == first.n_iter + 1
    sampler.set_params(loss__share=0.0, max_iter=3)  # what was fitted counts, not the parameters
    sampler.save(tmp_path / "a")
    for same in (skcds.load(tmp_path / "a"), pickle.loads(pickle.dumps(sampler))):
        assert same.history_ == sampler.history_
        np.testing.assert_array_equal(TrainingDisplay.from_estimator(same).kinds, display.kinds)


def test_first_losses_and_outliers_do_not_squash_the_rest():
    losses = 1 + 0.1 * np.random.default_rng(0).normal(size=1000)
    losses[:10] = 1e6
    losses[500] = 1e9
    losses[600] = np.nan
    display = TrainingDisplay(losses, converged=False, interrupted=True, n_rollbacks=1).plot()
    low, high = display.ax_.get_ylim()
    assert 0.5 < low < 0.8 and 1.2 < high < 1.5
    assert "losses outside the picture" in display.caption_
    assert display.caption_.splitlines()[1].startswith("interrupted · 1 rollback · ")
    assert np.abs(display.smooth_[0].get_ydata()[100:] - 1).max() < 0.1


def test_losses_that_fall_far_are_on_a_logarithmic_scale():
    losses = np.exp(-np.arange(1000) / 100)
    assert TrainingDisplay(losses).plot().ax_.get_yscale() == "log"
    assert TrainingDisplay(losses).plot(yscale="linear").ax_.get_yscale() == "linear"
    assert TrainingDisplay(losses - 0.1).plot().ax_.get_yscale() == "linear"


@pytest.mark.parametrize("losses", [[], [1.0], [np.nan, np.nan], [2.0, 2.0]])
def test_few_losses(losses):
    display = TrainingDisplay(losses).plot()
    assert display.caption_.startswith(f"{len(losses)} iterations")


def test_smoothed_is_a_running_mean():
    x = np.arange(50.0)
    np.testing.assert_allclose(smoothed(x, 5)[3:-3], x[3:-3])
    np.testing.assert_array_equal(smoothed(x, 1), x)


@pytest.mark.parametrize("yscale", ["auto", "linear", "log"])
@pytest.mark.parametrize("losses", [
    -np.exp(-np.arange(200) / 20), np.linspace(5, -5, 200), np.linspace(5, 0, 200), np.zeros(200), np.full(200, 2.0),
    np.r_[np.ones(50), -np.ones(150)], np.r_[-np.ones(199), 3.0], np.r_[np.full(100, np.inf), -np.ones(100)],
    np.r_[1e300 * np.ones(100), 1e-300 * np.ones(100)], np.r_[-1e300, 1e300, np.ones(20)], np.full(30, -np.inf),
    [-1.0], [0.0], np.r_[np.ones(20), np.nan, -np.ones(20)],
])  # fmt: skip
def test_losses_of_any_sign_have_limits(losses, yscale):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        display = TrainingDisplay(losses).plot(yscale=yscale)
        display.figure_.canvas.draw()
    low, high = display.ax_.get_ylim()
    assert np.isfinite([low, high]).all() and low < high
    assert (display.ax_.get_yscale() == "log") <= (low > 0)


def test_log_scale_that_is_asked_for_leaves_negative_losses_out():
    losses = np.r_[np.full(150, 1.0), np.full(50, -1.0)]
    display = TrainingDisplay(losses).plot(yscale="log")
    assert display.ax_.get_yscale() == "log" and "50 losses outside the picture" in display.caption_
    assert TrainingDisplay(-np.ones(50)).plot(yscale="log").ax_.get_yscale() == "linear"


def test_wrong_arguments_of_training():
    with pytest.raises(ValueError, match="yscale has to be"):
        TrainingDisplay([1.0]).plot(yscale="cube")
    with pytest.raises(ValueError, match="smoothing has to be at least 1"):
        TrainingDisplay([1.0]).plot(smoothing=0)
    with pytest.raises(ValueError, match="kinds has to have one entry a loss"):
        TrainingDisplay([1.0], kinds=["a", "b"]).plot()
    with pytest.raises(ValueError, match=r"loss_curve has to have shape \(n_iter,\)"):
        TrainingDisplay([[1.0]]).plot()
    with pytest.raises(NotFittedError):
        TrainingDisplay.from_estimator(DiffusionSampler())


# ---------------------------------------------------------------- EvidenceDisplay


def test_evidence_is_that_of_the_weights():
    log_weights = np.random.default_rng(0).normal(-55, 0.5, size=5000)
    display = EvidenceDisplay.from_weights(log_weights, is_bound=True, pilot_log_evidence=-54.5)
    assert (display.log_evidence_, display.log_evidence_se_) == log_evidence(log_weights)
    assert display.pareto_k_ == pareto_k(log_weights) and display.elbo_ == log_weights.mean()
    assert display.ess_ == effective_sample_size(log_weights) / 5000
    counts, edges, _ = display.histogram_.get_data()
    np.testing.assert_array_equal(counts, np.histogram(log_weights - display.log_evidence_, edges)[0])
    assert counts.sum() == 5000
    assert display.tail_.get_data().values.sum() == np.ceil(3 * np.sqrt(5000))
    assert display.log_evidence_line_.get_xdata() == [0, 0]
    np.testing.assert_allclose(display.elbo_line_.get_xdata(), display.elbo_ - display.log_evidence_)
    np.testing.assert_allclose(display.pilot_line_.get_xdata(), -54.5 - display.log_evidence_)
    assert f"log Z = −{-display.log_evidence_:.4f} ± " in display.caption_
    assert "pilot −54.500" in display.caption_ and "a lower bound of log Z" in display.caption_


@pytest.mark.parametrize("k, word", [(0.2, "good"), (1.2, "unreliable")])
def test_caption_tells_k(k, word):
    u = (np.arange(20_000) + 0.5) / 20_000
    display = EvidenceDisplay.from_weights(-k * np.log(u))
    assert f"Pareto k {display.pareto_k_:.2f}: {word}" in display.caption_
    assert abs(display.pareto_k_ - k) < 0.1
    shown = next(text for text in texts(display) if "Pareto k" in text.get_text())
    assert (matplotlib.colors.to_hex(shown.get_color()) == "#d55e00") == (word == "unreliable")


def test_caption_tells_of_weights_without_a_tail_and_too_few():
    display = EvidenceDisplay.from_weights(np.zeros(1000))
    assert "no tail" in display.caption_ and display.tail_ is None and display.tail_fit_ is None
    assert "too few" in EvidenceDisplay.from_weights([0.0, 1.0, 2.0]).caption_


def test_draws_outside_the_support_are_counted_and_not_drawn():
    log_weights = np.random.default_rng(0).normal(size=1000)
    log_weights[:40] = -np.inf
    display = EvidenceDisplay.from_weights(log_weights, is_bound=True)
    assert "40 of 1000 draws outside the support" in display.caption_
    assert "ELBO −∞" in display.caption_ and display.elbo_line_ is None
    assert display.histogram_.get_data().values.sum() <= 960


def test_far_left_draws_are_counted():
    log_weights = np.random.default_rng(0).normal(size=2000)
    log_weights[:4] = -1e4
    display = EvidenceDisplay.from_weights(log_weights, is_bound=False)
    assert "4 of 2000 draws left of the picture" in display.caption_
    assert "mean log weight" in display.caption_ and "no bound" in display.caption_
    assert display.ax_.get_xlim()[0] > -10


@pytest.mark.parametrize("k", [-0.3, 0.0, 0.5, 1.2])
def test_tail_fit_counts_the_tail(k):
    excess = stats.genpareto(k, scale=2.0).ppf((np.arange(3000) + 0.5) / 3000)
    tail = np.log1p(excess)  # of weights above one
    edges = np.linspace(0, tail.max(), 400)
    at, counts = _tail_counts(tail, 0.0, k, edges)
    total = counts.sum() * (at[1] - at[0]) / (edges[1] - edges[0])
    assert abs(total - 3000) < 100
    observed = np.histogram(tail, edges)[0]
    at_middles = np.interp(0.5 * (edges[1:] + edges[:-1]), at, counts, right=0)
    large = observed > 20
    np.testing.assert_allclose(at_middles[large], observed[large], rtol=0.3)


def test_evidence_of_a_sampler():
    sampler = small(2)
    display = EvidenceDisplay.from_estimator(sampler, n=1000, random_state=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weighted = sampler.sample_weighted(1000, random_state=3)
    np.testing.assert_array_equal(display.log_weights, weighted.log_weights)
    assert display.is_bound is True
    assert display.pilot_log_evidence == sampler.teacher_.pilot_.log_evidence
    again = EvidenceDisplay.from_weights(weighted)
    assert again.is_bound is True and again.log_evidence_ == display.log_evidence_


def test_evidence_on_a_linear_scale_in_axes_given():
    figure, ax = plt.subplots()
    display = EvidenceDisplay.from_weights(normal(300, 1)[:, 0], ax=ax, log=False, bins=10)
    assert display.ax_ is ax and display.figure_ is figure and ax.get_yscale() == "linear"
    assert ax.get_ylim()[0] == 0  # bars can be compared
    assert {side for side, spine in ax.spines.items() if spine.get_visible()} == {"left", "bottom"}
    assert len(display.histogram_.get_data().values) == 10


def test_wrong_arguments_of_evidence():
    with pytest.raises(ValueError, match="All 5 log weights are -inf"):
        EvidenceDisplay.from_weights(np.full(5, -np.inf))
    with pytest.raises(ValueError, match="NaN or"):
        EvidenceDisplay.from_weights([0.0, np.nan])
    with pytest.raises(NotFittedError):
        EvidenceDisplay.from_estimator(DiffusionSampler())


# ---------------------------------------------------------------- notes on fits that did not end well

FAULTS = {
    "converged": ({"converged_": False, "ess_": 0.0312}, "not converged: Pareto k above its limit, ESS / n 0.0312"),
    "trained": ({"n_iter_": 0, "converged_": True, "loss_curve_": [], "history_": []},
                "not trained: no iteration was done"),
    "interrupted": ({"interrupted_": True, "converged_": True}, "interrupted"),
    "both": ({"interrupted_": True, "converged_": False, "ess_": 0.5}, "not converged: Pareto k above its limit, "
             "ESS / n 0.5\ninterrupted"),
}  # fmt: skip
DISPLAYS = {
    "training": TrainingDisplay.from_estimator,
    "evidence": lambda estimator, **options: EvidenceDisplay.from_estimator(estimator, n=200, **options),
    "sampler": lambda estimator, **options: SamplerDisplay.from_estimator(estimator, n=100, grid_size=5, **options),
}


@pytest.mark.parametrize("display", DISPLAYS)
@pytest.mark.parametrize(
    "n_features, fault",
    crossed([*((2, fault) for fault in FAULTS), (1, "both"), (3, "both")], [1, 2, 3], FAULTS),
)
def test_a_fit_that_went_wrong_is_marked(display, n_features, fault):
    estimator = copy.copy(small(n_features))
    changes, note = FAULTS[fault]
    vars(estimator).update(changes)
    shown = DISPLAYS[display](estimator)
    assert shown.note_.get_text() == note and shown.note_.get_visible()
    assert note in [text.get_text() for text in texts(shown)]
    if shown.ax_ is None:  # above the first of several axes
        assert shown.note_.get_position()[1] >= 1 and shown.note_ not in shown.axes_[0, 0].texts
    else:  # in the upper left corner
        assert shown.note_ in shown.ax_.texts and max(abs(shown.note_.get_position() - np.array([0, 1]))) < 0.1
    assert shown.figure_.bbox.contains(*shown.note_.get_window_extent().min)
    assert shown.figure_.bbox.contains(*shown.note_.get_window_extent().max)


@pytest.mark.parametrize("display", DISPLAYS)
@pytest.mark.parametrize("n_features", [1, 2, 3])
def test_a_fit_that_went_well_is_not_marked(display, n_features):
    estimator = copy.copy(small(n_features))
    vars(estimator).update(converged_=True, interrupted_=False)
    assert DISPLAYS[display](estimator).note_ is None


# ---------------------------------------------------------------- particles within bounds


@pytest.mark.parametrize("kind, bounds", [
    *((kind, (100, 101)) for kind in KINDS),
    *((KINDS[0], bounds) for bounds in [(-1e6, 1e6), [(100, 101), (None, None)], [(100, None), (None, -100)]]),
    *slow(*((KINDS[0], bounds) for bounds in [(0, 1), (100, None), (None, -100), (None, None)])),
], ids=str)  # fmt: skip
def test_particles_are_shown_in_the_coordinates_of_the_draws(kind, bounds):
    """Between the bounds, and about where the draws are: within as much as ten deviations of these for any fit."""

    def energy(x):
        low = np.array([-np.inf if pair[0] is None else pair[0] for pair in pairs])
        high = np.array([np.inf if pair[1] is None else pair[1] for pair in pairs])
        middle = np.where(np.isfinite(low) & np.isfinite(high), 0.5 * low + 0.5 * high,
                          np.where(np.isfinite(low), low + 1, np.where(np.isfinite(high), high - 1, 0.0)))  # fmt: skip
        width = np.where(np.isfinite(high - low), np.minimum(0.2 * (high - low), 1e5), 0.5)
        return 0.5 * (((x - torch.from_numpy(middle)) / torch.from_numpy(width)) ** 2).sum(1)

    pairs = bounds if isinstance(bounds, list) else [bounds, bounds]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler = make(kind, start=None, n_features=2, max_iter=3)
        sampler.set_params(bounds=bounds).fit(lambda x: energy(x.double()))
        display = SamplerDisplay.from_estimator(sampler, n=300, reference="particles", grid_size=5, random_state=0)
    owner = getattr(sampler, "teacher_", sampler)
    assert display.reference.shape == owner.particles_.shape
    for j, (low, high) in enumerate(pairs):
        x, draws = display.reference[:, j], display.samples[:, j]
        assert (low is None or x.min() >= low) and (high is None or x.max() <= high)
        assert abs(x.mean() - draws.mean()) < 10 * draws.std() + 1e-12
        first, last = display.ax_.get_xlim() if j == 0 else display.ax_.get_ylim()
        assert last - first < 40 * draws.std()
    if bounds == (None, None):
        np.testing.assert_allclose(display.reference, owner.particles_)
