"""Importance weights against closed forms, an independent implementation, and weights that must be found unreliable.

Statistical bounds hold for any seed: each states the probability at which it fails a correct implementation.
"""

import math
import pickle
import re
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.exceptions import ConvergenceWarning

from skcds.importance import (
    WeightedSample,
    effective_sample_size,
    log_evidence,
    log_mean_exp,
    pareto_k,
    pareto_k_limit,
    systematic_resample,
    total_variation,
    truncate_log_weights,
)
from skcds.weights.tail import Tail

Z = 5.5  # two-sided tail of the normal distribution: 4e-8; with the skewness of these statistics below 1e-6
ALPHA = 1e-6  # false alarms of the chi-square bounds


def gaussian(n, d=2, scale=1.2, seed=0):
    """Draws of N(0, scale^2 I) and log weights for the target N(0, I), whose log Z is 0."""
    z = np.random.default_rng(seed).normal(size=(n, d))
    return scale * z, 0.5 * (1 - scale**2) * (z**2).sum(1) + d * np.log(scale)


def moment(j, d=2, scale=1.2):
    """E[w^j] of the weights of `gaussian`."""
    return scale ** (d * j) * (1 + j * (scale**2 - 1)) ** (-d / 2)


# multiples of 1/64 and whole shifts: sums are exact in float64
exact_log_weights = st.lists(st.integers(-3200, 3200).map(lambda i: i / 64), min_size=1, max_size=200).map(np.array)
some_zero = st.lists(st.one_of(st.just(-np.inf), st.floats(-800, 800)), min_size=1, max_size=200).map(np.array)


def test_mean_excess_is_that_of_weights_and_their_tail():
    """Up to the cutoff; above c it is (scale + shape (c - cutoff)) / (1 - shape) times its share."""
    tail, weights = Tail(2.0, 0.1, 0.2, 0.5), np.array([0.5, 1.5, 2.0, 7.0])
    assert tail.excess_over(1.0, weights) == pytest.approx(np.mean([0, 0.5, 1, 1]) + 0.1 * 0.5 / 0.8)
    assert tail.excess_over(4.0, weights) == pytest.approx(0.1 * (1 + 0.2 * 2 / 0.5) ** -5 * (0.5 + 0.2 * 2) / 0.8)


class TestClosedForms:
    def test_moment_is_normalised(self):
        assert moment(1, 7, 1.3) == pytest.approx(1)

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("d, scale", [(1, 1.5), (2, 1.2), (8, 1.2), (3, 0.95)])
    def test_log_evidence(self, d, scale, seed):
        n = 20_000
        estimate, se = log_evidence(gaussian(n, d, scale, seed)[1])
        exact_se = np.sqrt((moment(2, d, scale) - 1) / n)
        assert abs(estimate) < Z * exact_se
        assert se == pytest.approx(exact_se, rel=0.1)  # its own relative error is below 1 % here

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("d, scale", [(1, 1.5), (2, 1.2), (8, 1.2), (3, 0.95)])
    def test_effective_sample_size(self, d, scale, seed):
        n = 20_000
        m = [moment(j, d, scale) for j in range(5)]
        gradient = np.array([2 / m[2], -1 / m[2] ** 2])  # of m1^2 / m2 in (m1, m2), at m1 = 1
        covariance = np.array([[m[2] - 1, m[3] - m[2]], [m[3] - m[2], m[4] - m[2] ** 2]])
        se = np.sqrt(gradient @ covariance @ gradient / n)
        assert abs(effective_sample_size(gaussian(n, d, scale, seed)[1]) / n - 1 / m[2]) < Z * se

    def test_elbo(self):
        d, scale, n = 5, 1.2, 20_000
        x, log_weights = gaussian(n, d, scale)
        sample = WeightedSample(x, log_weights, is_bound=True)
        exact = -d * (0.5 * (scale**2 - 1) - np.log(scale))  # minus the Kullback-Leibler divergence
        exact_se = 0.5 * (scale**2 - 1) * np.sqrt(2 * d / n)
        assert abs(sample.elbo - exact) < Z * exact_se
        assert sample.elbo_se == pytest.approx(exact_se, rel=0.1)
        assert sample.elbo < sample.log_evidence  # Jensen's inequality

    @pytest.mark.parametrize("truth", [0.2, 0.5, 0.9, 1.5])
    def test_pareto_k_of_pareto_weights(self, truth):
        # u ** -k has a generalised Pareto tail above any cutoff; efficient estimates have variance (1 + k)^2 / tail
        n, tail = 40_000, 600
        estimate = pareto_k(-truth * np.log(np.random.default_rng(0).uniform(size=n)))
        shrunk = (tail * truth + 5) / (tail + 10)
        assert abs(estimate - shrunk) < Z * (1 + truth) / np.sqrt(tail)

    def test_identity(self):
        log_weights = gaussian(500)[1]
        se = np.sqrt(1 / effective_sample_size(log_weights) - 1 / 500)
        assert log_evidence(log_weights)[1] == pytest.approx(se)


class TestCoverage:
    """The squared z-scores of independent replications sum to chi-square, about the truth: bias counts as well."""

    n_replications = 300
    bounds = stats.chi2.ppf([ALPHA / 2, 1 - ALPHA / 2], n_replications) / n_replications  # about .63 and 1.45

    def replicate(self, z_score):
        return np.mean([z_score(*gaussian(2000, d=3, seed=seed)) ** 2 for seed in range(self.n_replications)])

    def test_log_evidence(self):
        def z_score(_, log_weights):
            return np.divide(*log_evidence(log_weights))

        assert self.bounds[0] < self.replicate(z_score) < self.bounds[1]

    def test_expectation(self):
        def z_score(x, log_weights):
            sample = WeightedSample(x, log_weights, is_bound=True)
            mean, se = sample.expectation(lambda x: x[:, 0] ** 2, return_se=True)
            return (mean - 1) / se

        assert self.bounds[0] < self.replicate(z_score) < self.bounds[1]

    def test_a_shifted_log_evidence_is_found(self):  # negative control: 2 % off in Z
        def z_score(_, log_weights):
            estimate, se = log_evidence(log_weights + np.log(1.02))
            return estimate / se

        assert self.replicate(z_score) > self.bounds[1]


class TestParetoK:
    @pytest.mark.parametrize("n", [100, 400, 2500, 10_000])  # here ArviZ's floor and our ceil give the same tail
    @pytest.mark.parametrize("scale", [0.4, 0.6, 0.9, 1.5])
    def test_equals_arviz(self, n, scale):
        array_stats = pytest.importorskip("arviz_stats.base").array_stats
        log_weights = gaussian(n, 3, scale, seed=n)[1]
        # ArviZ (psislw of arviz_stats 0.8 too) takes log likelihoods, that is *negated* log weights
        assert pareto_k(log_weights) == pytest.approx(float(array_stats.psislw(-log_weights)[1]), abs=1e-9)
        assert abs(pareto_k(log_weights) - float(array_stats.psislw(log_weights)[1])) > 0.1

    def test_near_arviz_at_other_sizes(self):
        array_stats = pytest.importorskip("arviz_stats.base").array_stats
        log_weights = gaussian(1000, 3, 0.7)[1]
        assert pareto_k(log_weights) == pytest.approx(float(array_stats.psislw(-log_weights)[1]), abs=0.05)

    @pytest.mark.parametrize("seed", range(3))
    def test_half_the_scale_is_unreliable(self, seed):
        # asymptotically k = 1 - scale^2 = .75; at this d and n the estimate is 1.2 with a standard deviation of .08
        x, log_weights = gaussian(40_000, 20, 0.5, seed)
        sample = WeightedSample(x, log_weights, is_bound=True)
        assert sample.pareto_k > 0.7
        with pytest.warns(ConvergenceWarning, match=re.escape(f"Pareto k is {sample.pareto_k:.2f}, above 0.7")):
            sample.warn_if_unreliable()

    def test_wider_is_reliable(self):
        x, log_weights = gaussian(20_000, 4, 1.2)
        sample = WeightedSample(x, log_weights, is_bound=True)
        assert sample.pareto_k < 0  # bounded weights
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sample.warn_if_unreliable()

    @pytest.mark.parametrize("n", [21, 1000])
    def test_constant_weights_have_no_tail(self, n):
        assert pareto_k(np.full(n, 3.0)) == -np.inf
        assert pareto_k(3.0 + 1e-10 * np.arange(n)) == -np.inf

    @pytest.mark.parametrize("log_weights", [np.arange(20.0), np.arange(500) * 1000.0, np.full(50, -np.inf)])
    def test_too_few_weights_are_not_reliable(self, log_weights):
        assert pareto_k(log_weights) == np.inf
        x = np.zeros((len(log_weights), 1))
        with pytest.warns(ConvergenceWarning, match="too few distinct weights|weight zero"):
            WeightedSample(x, log_weights, is_bound=True).warn_if_unreliable()

    def test_exponential_limit(self):
        # 0/1 weights, few of them 1: all exceedances are equal and the fit's grid meets b = 0 exactly at this size
        log_weights = np.full(1112, -np.inf)
        log_weights[:100] = 0
        assert pareto_k(log_weights) < 0.7

    @given(some_zero)
    def test_is_never_nan(self, log_weights):
        assert not np.isnan(pareto_k(log_weights))


class TestSymmetries:
    @given(exact_log_weights, st.integers(-100_000, 100_000))
    def test_shift(self, log_weights, shift):
        estimate, se = log_evidence(log_weights)
        shifted, shifted_se = log_evidence(log_weights + shift)
        assert shifted == pytest.approx(estimate + shift, rel=1e-12, abs=1e-9)
        np.testing.assert_equal(shifted_se, se)  # NaN for one draw
        assert effective_sample_size(log_weights + shift) == effective_sample_size(log_weights)
        assert pareto_k(log_weights + shift) == pareto_k(log_weights)
        np.testing.assert_allclose(
            truncate_log_weights(log_weights + shift), truncate_log_weights(log_weights) + shift, rtol=1e-12, atol=1e-9
        )

    @given(exact_log_weights, st.randoms(use_true_random=False))
    def test_permutation(self, log_weights, random):
        permuted = np.array(random.sample(list(log_weights), len(log_weights)))
        np.testing.assert_allclose(log_evidence(permuted), log_evidence(log_weights), rtol=1e-9, atol=1e-9)
        assert effective_sample_size(permuted) == pytest.approx(effective_sample_size(log_weights))
        assert pareto_k(permuted) == pareto_k(log_weights)

    @given(some_zero.filter(lambda log_weights: np.isfinite(log_weights).any()))
    def test_bounds(self, log_weights):
        n = len(log_weights)
        assert 1 <= effective_sample_size(log_weights) <= (log_weights > -np.inf).sum() * (1 + 1e-12) <= n * (1 + 1e-12)
        estimate, se = log_evidence(log_weights)
        assert log_weights.max() - np.log(n) - 1e-9 <= estimate <= log_weights.max() + 1e-9
        assert n == 1 or 0 <= se <= 1

    def test_extreme_ess(self):
        assert effective_sample_size(np.full(7, 0.1)) == 7
        assert effective_sample_size([0, -1000, -np.inf]) == 1
        assert effective_sample_size([-5.0]) == 1
        for seed in range(20):  # rounding does not carry it past n
            assert effective_sample_size(1e-9 * np.random.default_rng(seed).uniform(size=10)) <= 10


class TestZeroWeights:
    def test_zero_weights_are_draws_outside_the_support(self):
        log_weights = np.array([0.0, -np.inf, 0.0, -np.inf])
        assert effective_sample_size(log_weights) == 2
        estimate, se = log_evidence(log_weights)
        assert estimate == pytest.approx(np.log(0.5))
        assert se == pytest.approx(0.5)  # a share of 1/2 from 4 draws: sqrt(.25 / 4) / .5
        sample = WeightedSample(np.arange(4.0)[:, None], log_weights, is_bound=True)
        assert sample.elbo == -np.inf and np.isnan(sample.elbo_se)
        assert set(sample.resample(100, random_state=0).ravel()) == {0, 2}

    def test_uniform_support(self):
        # log Z of the uniform density on [0, 1] from uniform draws of [0, 4]: binomial, z-bound as above
        x = np.random.default_rng(0).uniform(0, 4, size=(20_000, 1))
        log_weights = np.where(x[:, 0] < 1, np.log(4), -np.inf)
        assert abs(log_evidence(log_weights)[0]) < Z * np.sqrt(3 / 20_000)

    def test_their_values_do_not_count(self):
        sample = WeightedSample([[4.0], [np.nan]], [0, -np.inf], is_bound=True)
        assert sample.expectation(lambda x: np.log(x[:, 0]), return_se=True) == pytest.approx((np.log(4), 0))

    def test_all_zero(self):
        log_weights = np.full(3, -np.inf)
        assert log_mean_exp(log_weights) == -np.inf
        np.testing.assert_equal(truncate_log_weights(log_weights), log_weights)
        for function in (effective_sample_size, log_evidence, lambda w: systematic_resample(w, 2, np.random)):
            with pytest.raises(ValueError, match="All 3 log weights are -inf: no draw lies in the target's support"):
                function(log_weights)
        assert "every weight is zero" in repr(WeightedSample(np.zeros((3, 1)), log_weights, is_bound=True))

    @pytest.mark.parametrize("n", [1, 3, 5000])
    def test_all_zero_have_properties(self, n):
        sample = WeightedSample(np.zeros((n, 1)), np.full(n, -np.inf), is_bound=True)
        found = sample.ess, sample.log_evidence, sample.elbo, sample.pareto_k, sample.total_variation
        assert found == (0, -np.inf, -np.inf, np.inf, 1)
        assert np.isnan(sample.log_evidence_se) and np.isnan(sample.elbo_se)
        for call in (lambda: sample.weights, lambda: sample.resample(2), lambda: sample.expectation(lambda x: x)):
            with pytest.raises(ValueError, match="no draw lies in the target's support"):
                call()


class TestTotalVariation:
    @pytest.mark.parametrize("shift", [0.0, 0.5, 1.0])
    @pytest.mark.parametrize("seed", range(3))
    def test_of_two_normals(self, shift, seed):
        """N(0, 1) and N(m, 1): 2 Phi(m / 2) - 1; within Z standard errors, each term being in [0, 1]."""
        x = np.random.default_rng(seed).standard_normal(50_000)
        found = total_variation(shift * x - 0.5 * shift**2)
        assert abs(found - math.erf(shift / 2**1.5)) <= Z * 0.6 / np.sqrt(50_000) * (1 + shift)

    @given(some_zero, st.floats(-500, 500))
    def test_is_a_share_and_has_no_unit(self, log_weights, constant):
        found = total_variation(log_weights)
        assert 0 <= found <= 1
        assert total_variation(log_weights + constant) == pytest.approx(found, abs=1e-9)

    def test_is_half_the_absolute_difference(self):
        w = np.random.default_rng(0).exponential(size=1000)
        expected = 0.5 * np.abs(1 - w / w.mean()).mean()
        assert total_variation(np.log(w)) == pytest.approx(expected)
        assert WeightedSample(np.zeros((1000, 1)), np.log(w), True).total_variation == pytest.approx(expected)

    @pytest.mark.parametrize("share", [0.85, 0.6, 0.25])
    def test_of_log_normal_weights_is_that_of_the_docstring(self, share):
        x = np.sqrt(-np.log(share)) * np.random.default_rng(0).standard_normal(400_000)
        assert total_variation(x) == pytest.approx({0.85: 0.16, 0.6: 0.28, 0.25: 0.44}[share], abs=0.006)


class TestParetoKLimit:
    @pytest.mark.parametrize("n, limit", [
        (1, -np.inf), (10, 0.0), (100, 0.5), (1000, 2 / 3), (2154, 0.7), (2155, 0.7), (10**6, 0.7)
    ])  # fmt: skip
    def test_values(self, n, limit):
        assert pareto_k_limit(n) == pytest.approx(limit, abs=1e-4)
        assert WeightedSample(np.zeros((n, 1)), np.zeros(n), True).pareto_k_limit == pareto_k_limit(n)

    def test_of_none(self):
        with pytest.raises(ValueError, match="at least 1; got 0"):
            pareto_k_limit(0)

    @pytest.mark.parametrize("n", [100, 1000, 10_000])
    def test_is_that_of_the_warning(self, n):
        """Weights of a tail of shape .6 are reliable for the larger numbers only."""
        u = (np.arange(n) + 0.5) / n
        sample = WeightedSample(np.zeros((n, 1)), -0.6 * np.log(u), True)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            sample.warn_if_unreliable()
        assert bool(caught) == (sample.pareto_k > pareto_k_limit(n)) == (n == 100)


class TestResampling:
    @given(
        some_zero.filter(lambda log_weights: np.isfinite(log_weights).any()), st.integers(1, 300), st.integers(0, 99)
    )
    def test_counts(self, log_weights, n, seed):
        index = systematic_resample(log_weights, n, np.random.RandomState(seed))
        expected = n * np.exp(log_weights - log_weights.max()) / np.exp(log_weights - log_weights.max()).sum()
        counts = np.bincount(index, minlength=len(log_weights))
        assert counts.sum() == n
        assert (np.abs(counts - expected) < 1 + 1e-9 * n).all()
        assert (counts[np.isneginf(log_weights)] == 0).all()

    @pytest.mark.parametrize("uniform", [0.0, np.nextafter(1, 0)])
    def test_the_extreme_uniform_numbers_find_no_zero_weight(self, uniform):
        class Extreme:
            def uniform(self):
                return uniform

        assert set(systematic_resample([-np.inf, 0, 0, -np.inf], 1000, Extreme())) == {1, 2}

    def test_is_unbiased(self):
        # a count is floor or floor + 1 of 7 w; its mean over replications, z-bound as above
        log_weights = np.log([0.5, 0.3, 0.2])
        rng = np.random.RandomState(0)
        counts = [np.bincount(systematic_resample(log_weights, 7, rng), minlength=3) for _ in range(2000)]
        assert (np.abs(np.mean(counts, 0) - [3.5, 2.1, 1.4]) < Z * 0.5 / np.sqrt(2000)).all()

    def test_is_reproducible_and_leaves_the_global_state_alone(self):
        sample = WeightedSample(*gaussian(500), is_bound=True)
        before = pickle.dumps(np.random.get_state())
        first = sample.resample(200, random_state=3)
        assert first.shape == (200, 2) and first.dtype == np.float64
        np.testing.assert_array_equal(first, sample.resample(200, random_state=3))
        np.testing.assert_array_equal(first, sample.resample(200, random_state=np.random.RandomState(3)))
        assert (first != sample.resample(200, random_state=4)).any()
        assert pickle.dumps(np.random.get_state()) == before
        assert sample.resample(10).shape == (10, 2)
        assert sample.resample(2000, random_state=0).shape == (2000, 2)  # more than there are

    def test_rows_are_in_random_order(self):
        n = 10_000
        sample = WeightedSample(np.arange(n)[:, None], np.zeros(n), is_bound=True)
        rows = sample.resample(n, random_state=0)[:, 0]
        assert abs(np.corrcoef(rows, np.arange(n))[0, 1]) < Z / np.sqrt(n)

    def test_agrees_with_the_weighted_mean(self):
        # given the weights, systematic resampling of n from n is at least as exact as n independent draws,
        # here along a sorted sample, where its error is at most range / n
        x, log_weights = gaussian(5000, d=1)
        order = np.argsort(x[:, 0])
        sample = WeightedSample(x[order], log_weights[order], is_bound=True)
        mean = sample.expectation(lambda x: x[:, 0])
        assert abs(sample.resample(5000, random_state=0).mean() - mean) <= np.ptp(x) / 5000

    @pytest.mark.parametrize("n", [-1, 2.5, True])
    def test_bad_number(self, n):
        with pytest.raises(ValueError, match="must be an integer of at least 0"):
            WeightedSample(*gaussian(5), is_bound=True).resample(n)

    @pytest.mark.parametrize("log_weights", [np.zeros(5), np.full(5, -np.inf)])
    def test_none(self, log_weights):
        sample = WeightedSample(np.ones((5, 2)), log_weights, is_bound=True)
        assert sample.resample(0).shape == (0, 2) and sample.resample(0).dtype == np.float64
        assert systematic_resample(log_weights, 0, np.random.RandomState(0)).shape == (0,)

    def test_a_generator_moves_on(self):
        sample = WeightedSample(*gaussian(50), is_bound=True)
        draws = [sample.resample(20, random_state=rng) for rng in [np.random.default_rng(3)] * 2]
        assert (draws[0] != draws[1]).any()
        np.testing.assert_array_equal(draws[0], sample.resample(20, random_state=np.random.default_rng(3)))


class TestTruncation:
    def test_cuts_at_sqrt_n_times_the_mean(self):
        weights = np.array([1.0] * 99 + [10_000.0])
        cut = np.exp(truncate_log_weights(np.log(weights)))
        np.testing.assert_allclose(cut, [1.0] * 99 + [10 * weights.mean()])

    def test_leaves_even_weights_alone(self):
        log_weights = gaussian(1000)[1]
        np.testing.assert_array_equal(truncate_log_weights(log_weights), log_weights)

    def test_raises_the_effective_sample_size(self):
        log_weights = gaussian(5000, 20, 0.5)[1]
        assert effective_sample_size(truncate_log_weights(log_weights)) > 2 * effective_sample_size(log_weights)


class TestWeightedSample:
    def test_properties(self):
        x, log_weights = gaussian(1000)
        sample = WeightedSample(x, log_weights, is_bound=np.bool_(True), n_energy_evals=1000)
        assert sample.weights.sum() == pytest.approx(1)
        assert sample.ess == effective_sample_size(log_weights) == pytest.approx(1 / (sample.weights**2).sum())
        assert (sample.log_evidence, sample.log_evidence_se) == log_evidence(log_weights)
        assert sample.pareto_k == pareto_k(log_weights)
        assert sample.is_bound is True and sample.violation_share == 0 and sample.n_energy_evals == 1000

    def test_repr(self):
        sample = WeightedSample(*gaussian(1000), is_bound=False, violation_share=0.01)
        number = r"-?\d+\.\d+"
        pattern = (
            rf"WeightedSample\(n=1000, d=2, ess={number}, log_evidence={number} ± {number}, pareto_k={number}, "
            r"is_bound=False, violation_share=0\.01\)"
        )
        assert re.fullmatch(pattern, repr(sample))
        assert f"ess={sample.ess:.1f}" in repr(sample) and f"± {sample.log_evidence_se:.4f}" in repr(sample)

    @pytest.mark.parametrize("read_first", [False, True])
    def test_pickle(self, read_first):
        sample = WeightedSample(*gaussian(200), is_bound=True)
        if read_first:
            sample.pareto_k  # noqa: B018
        loaded = pickle.loads(pickle.dumps(sample))
        np.testing.assert_array_equal(loaded.samples, sample.samples)
        assert repr(loaded) == repr(sample)

    def test_is_frozen(self):
        with pytest.raises(AttributeError):
            WeightedSample(*gaussian(10), is_bound=True).is_bound = False

    def test_keeps_float64(self):
        x, log_weights = gaussian(10)
        sample = WeightedSample(x.astype(np.float32), list(log_weights), is_bound=True)
        assert sample.samples.dtype == sample.log_weights.dtype == np.float64

    def test_expectation_shapes(self):
        sample = WeightedSample(*gaussian(100), is_bound=True)
        mean, se = sample.expectation(lambda x: x, return_se=True)
        assert mean.shape == se.shape == (2,)
        first, first_se = sample.expectation(lambda x: x[:, 0], return_se=True)
        assert np.ndim(first) == np.ndim(first_se) == 0
        assert (mean[0], se[0]) == pytest.approx((first, first_se))
        assert sample.expectation(lambda x: np.ones(len(x))) == pytest.approx(1)
        with pytest.raises(ValueError, match=r"one value or one row for each of the 100 draws; it returned shape \(\)"):
            sample.expectation(np.mean)

    def test_expectation_se_equals_the_jackknife(self):
        x, log_weights = gaussian(400, d=3, scale=0.85)

        def estimate(x, log_weights):
            return WeightedSample(x, log_weights, is_bound=True).expectation(lambda x: x[:, 0] ** 2, return_se=True)

        left_out = [estimate(np.delete(x, i, 0), np.delete(log_weights, i))[0] for i in range(400)]
        assert estimate(x, log_weights)[1] == pytest.approx(np.std(left_out) * np.sqrt(399), rel=0.05)

    def test_one_draw(self):
        sample = WeightedSample([[1.0]], [2.0], is_bound=True)
        assert (sample.ess, sample.log_evidence, sample.elbo) == (1, 2, 2)
        assert np.isnan(sample.log_evidence_se) and np.isnan(sample.elbo_se)

    def test_cannot_see_a_missed_mode(self):
        # what the docstrings say: half the target is missed, and every diagnostic is content
        x = np.random.default_rng(0).normal(size=(2000, 1)) - 10
        near, far = (stats.norm.logpdf(x[:, 0], centre) for centre in (-10, 10))
        sample = WeightedSample(x, np.logaddexp(near, far) + np.log(0.5) - near, is_bound=True)
        assert sample.ess == pytest.approx(2000) and sample.pareto_k < 0.7
        assert sample.log_evidence == pytest.approx(-np.log(2)) and sample.log_evidence_se < 1e-6

    @pytest.mark.parametrize(
        "samples, log_weights, message",
        [
            (np.zeros((3, 2)), np.zeros(4), "There are 3 samples but 4 log weights"),
            (np.zeros(3), np.zeros(3), r"Samples must have shape \(n, d\)"),
            (np.zeros((3, 0)), np.zeros(3), r"Samples must have shape \(n, d\)"),
            (np.zeros((0, 2)), np.zeros(0), "non-empty array"),
            (np.zeros((3, 2)), np.zeros((3, 1)), r"not of shape \(3, 1\)"),
            (np.zeros((3, 2)), [0, np.nan, 0], "1 of 3 log weights are NaN or .inf, the first at index 1"),
            (np.zeros((3, 2)), [0, 0, np.inf], "1 of 3 log weights are NaN or .inf, the first at index 2"),
            ([[0.0], [np.nan]], [0, 0], "1 of 2 samples have a weight but are not finite, the first at row 1"),
            (
                [[0.0, 1.0], [np.nan, 1.0]],
                [0, 0],
                "1 of 2 samples have a weight but are not finite, the first at row 1",
            ),
        ],
    )
    def test_bad_arrays(self, samples, log_weights, message):
        with pytest.raises(ValueError, match=message):
            WeightedSample(samples, log_weights, is_bound=True)

    @pytest.mark.parametrize(
        "field, message",
        [
            ({"violation_share": 0.1}, "is_bound must be False"),
            ({"violation_share": 1.5}, "share of the draws, from 0 to 1"),
            ({"n_energy_evals": -1}, "is a count"),
        ],
    )
    def test_bad_fields(self, field, message):
        with pytest.raises(ValueError, match=message):
            WeightedSample(np.zeros((3, 2)), np.zeros(3), is_bound=True, **field)
