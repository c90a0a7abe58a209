"""Points that a fit has explored with, as weighted draws: they cost no evaluation, and are a sample of the density."""

import copy
import functools
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from samplers import KINDS, LOG_Z, D, make, quadratic
from scipy.stats import norm
from sklearn.exceptions import ConvergenceWarning, NotFittedError

import skcds
from skcds.adapters import from_prior
from skcds.density.bounds import Bounds
from skcds.explore.mixture import TMixture
from skcds.explore.store import Store
from skcds.explore.weighed import WeighedPoints

FEW = 2000  # evaluations


@functools.cache
def explored(kind="ConsistentSamplerScratch"):
    """A small fit to `quadratic` within few evaluations; do not change it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(kind, max_energy_evals=FEW, feature_names=["a", "b", "c"]).fit(quadratic)


def log_ramp(x):
    """Log density of 2 u on (0, 1), and of an exponential distribution beyond 2: log Z is 0."""
    return math.log(2) + x[:, 0].log() - (x[:, 1] - 2)


RAMP = Bounds.from_parameter([(0, 1), (2, None)], 2)


def ramp_store(n, seed):
    """Points from two proposals in unconstrained coordinates, half of them each."""
    generator, store = torch.Generator().manual_seed(seed), Store(2)
    for width in (1.0, 3.0):
        proposal = TMixture.of_widths(torch.zeros(2, dtype=torch.float64), [width])
        y = proposal.sample(n // 2, generator)
        x, log_det, _ = RAMP.call_and_pull_back(y)
        store.add(proposal, y, log_ramp(x) + log_det, torch.zeros_like(y))
    return store


def errors_in_ses(points):
    """Of the mean of u, which is 2 / 3, and of Z, which is 1, by the weights of points, in standard errors."""
    w = np.exp(points.log_weights)
    residuals = w * (points.x[:, 0] - 2 / 3) / w.mean(), w - 1
    return [r.mean() / (r.std() / math.sqrt(len(r))) for r in residuals]


class TestPoints:
    def test_are_a_sample_of_the_density(self):
        """Two comparisons at 6 standard errors: a false alarm has a chance below 1e-8 (normal), and an error of a tenth
        in the weights' mean is caught, as one standard error is below .015."""
        points = WeighedPoints.of(ramp_store(20_000, 0), RAMP)
        assert max(map(abs, errors_in_ses(points))) < 6
        inside = np.isfinite(points.log_density)  # others are too close to a bound for the map
        expected = log_ramp(torch.from_numpy(points.x[inside])).numpy()
        np.testing.assert_allclose(points.log_density[inside], expected, atol=1e-9)
        assert inside.mean() > 0.9

    def test_and_not_by_the_weights_of_one_proposal(self):  # negative control
        store = ramp_store(20_000, 0)
        store.origin[:] = 0
        assert max(map(abs, errors_in_ses(WeighedPoints.of(store, RAMP)))) > 6

    def test_of_no_exploration_are_none(self):
        assert WeighedPoints.of(Store(2), None) is None

    def test_where_the_density_is_zero(self):
        store, proposal = Store(2), TMixture.of_widths(torch.zeros(2, dtype=torch.float64), [1.0])
        x = proposal.sample(4, torch.Generator().manual_seed(0))
        store.add(proposal, x, torch.tensor([0.0, -math.inf, math.nan, 1.0]), torch.zeros_like(x))
        points = WeighedPoints.of(store, None)
        assert np.isneginf(points.log_weights).tolist() == np.isneginf(points.log_density).tolist()
        assert np.isneginf(points.log_weights).tolist() == [False, True, True, False]

    @pytest.mark.parametrize("name", ["log_weights", "log_density"])
    @pytest.mark.parametrize("values", [np.zeros(2), np.array([0.0, np.nan, 0.0]), np.array([0.0, np.inf, 0.0])])
    def test_of_wrong_values_are_refused(self, name, values):
        parts = {"log_weights": np.zeros(3), "log_density": np.zeros(3)} | {name: values}
        with pytest.raises(ValueError, match=f"{name} has to be one number below infinity for each of 3 points"):
            WeighedPoints(np.zeros((3, 1)), **parts)


class TestOfAFit:
    @pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "DiffusionSampler"])
    def test_cost_no_evaluation(self, kind, monkeypatch):
        sampler = explored(kind)
        monkeypatch.setattr(sampler, "_energy", None)
        weighted = sampler.weighted_evaluations()
        assert 0.3 * FEW < len(weighted.samples) < FEW and weighted.n_energy_evals == 0 and not weighted.is_bound
        energies = quadratic(torch.from_numpy(weighted.samples)).numpy()
        np.testing.assert_allclose(weighted.log_density, -energies, atol=1e-9)
        assert list(weighted.to_frame().columns[:D]) == ["a", "b", "c"]

    def test_are_a_sample_of_the_density(self):
        """The standard errors are those of independent draws, which adapted proposals only come close to: 8 of them are
        allowed. They are .03, so that a log Z that is .3 off is caught, as that of half of the points missed is."""
        weighted = explored().weighted_evaluations()
        assert weighted.ess > 200
        assert abs(weighted.log_evidence - LOG_Z) < 8 * weighted.log_evidence_se
        means, ses = weighted.expectation(lambda x: x), 1 / math.sqrt(weighted.ess)
        assert (np.abs(np.asarray(means) - 1) < 8 * ses).all()

    def test_are_left_by_a_teacher(self):
        student = explored("ConsistentSamplerDistiller")
        own, of_teacher = (sampler.weighted_evaluations() for sampler in (student, student.teacher_))
        assert np.array_equal(own.log_weights, of_teacher.log_weights)

    def test_stay_with_it(self, tmp_path):
        sampler = explored()
        sampler.save(tmp_path / "a.skcds")
        others = skcds.load(tmp_path / "a.skcds"), pickle.loads(pickle.dumps(sampler)), copy.deepcopy(sampler)
        for other in others:
            for part in ("samples", "log_weights", "log_density"):
                expected = getattr(sampler.weighted_evaluations(), part)
                assert np.array_equal(getattr(other.weighted_evaluations(), part), expected)

    def test_stay_in_a_checkpoint(self, tmp_path):
        """A fit that goes on from its checkpoint does not explore again."""
        path, counts = tmp_path / "fit", []

        def energy(x):
            counts[-1] += len(x)
            return quadratic(x)

        found = []
        for max_iter in (20, 20):
            counts.append(0)
            sampler = make("ConsistentSamplerScratch", max_energy_evals=FEW, max_iter=max_iter)
            found.append(sampler.fit(energy, checkpoint=path).weighted_evaluations())
        assert counts[1] < 0.3 * counts[0]
        assert np.array_equal(found[0].samples, found[1].samples)
        assert np.array_equal(found[0].log_weights, found[1].log_weights)

    def test_warn_where_few_have_the_weight(self, monkeypatch):
        sampler = explored()
        points = sampler._weighed
        tail = np.random.default_rng(0).pareto(0.8, len(points.x))  # of an infinite mean
        heavy = WeighedPoints(points.x, np.log(tail), points.log_density)
        monkeypatch.setattr(sampler, "_weighed", heavy)
        with pytest.warns(ConvergenceWarning, match="Pareto k"):
            sampler.weighted_evaluations()

    def test_are_evaluations_for_another_fit(self):
        weighted = explored().weighted_evaluations()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            again = make("ConsistentSamplerScratch", max_energy_evals=FEW, max_iter=2)
            again.fit(quadratic, evaluations=(weighted.samples, -weighted.log_density))
        assert again.weighted_evaluations().ess > 200

    def test_of_a_prior_and_a_likelihood(self):
        energy = from_prior({"m": norm(1, 2)}, lambda x: -0.5 * (x[0] - 1) ** 2, vectorize=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sampler = make("ConsistentSamplerScratch", n_features=1, start=None, max_energy_evals=1000, max_iter=2)
            weighted = sampler.fit(energy).weighted_evaluations()
        m = weighted.to_frame()["m"].to_numpy()
        np.testing.assert_allclose(weighted.log_likelihood, -0.5 * (m - 1) ** 2, atol=1e-6)


class TestErrors:
    @pytest.mark.parametrize("kind", KINDS)
    def test_of_a_fit_that_tempered(self, kind):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sampler = make(kind, max_iter=1).fit(quadratic)
        with pytest.raises(ValueError, match=f"fit of {kind} has no evaluations with weights: .* Call sample_weighted"):
            sampler.weighted_evaluations()

    def test_before_a_fit(self):
        with pytest.raises(NotFittedError):
            make("ConsistentSamplerScratch").weighted_evaluations()
