"""Exact draws have the law of the target where one-step draws have not, at the price and the loss that are stated.

Bounds are 5.6 standard errors of independent draws: false alarms 2e-8 for each figure.
"""

import copy
import math
import warnings

import families
import joblib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samplers import ONE_STEP, D, fitted, make, quadratic
from scipy.stats import chi2, norm
from sklearn.exceptions import ConvergenceWarning

from skcds.estimators import onestep
from skcds.importance import RejectionLimit, rejection_limit
from skcds.weights import rejection

Z, N = 5.6, 5000
WIDTH, RADIUS, MASS = 0.9, 0.8, 0.25  # of a normal density, and of a ball in it with a quarter of the mass beside
each = pytest.mark.parametrize("kind", ONE_STEP)


def plateau(x):
    """Energy of a ball of constant density in a normal one, around the point (1, 1, 1) that `quadratic` is around."""
    square = ((x - 1.0) ** 2).sum(1)
    ball = math.log(MASS / (4 / 3 * math.pi * RADIUS**3))
    normal = math.log(1 - MASS) - 0.5 * D * math.log(2 * math.pi * WIDTH**2)
    inside = torch.where(square < RADIUS**2, ball, -math.inf)
    return -torch.logaddexp(inside, normal - 0.5 * square / WIDTH**2)


def mass_of_the_ball():
    """By quadrature over the radius."""
    r = np.linspace(0, RADIUS / WIDTH, 100_001)
    density = math.sqrt(2 / math.pi) * r**2 * np.exp(-0.5 * r**2)
    return MASS + (1 - MASS) * np.trapezoid(density, r)


def right(X):
    """The share of the draws in the ball."""
    square, p = ((X - 1) ** 2).sum(1), mass_of_the_ball()
    return abs((square < RADIUS**2).mean() - p) < Z * math.sqrt(p * (1 - p) / len(X))


class Never:
    """A model whose weights are all zero."""

    def call_and_log_weight(self, latent, target):
        return latent, torch.full((len(latent),), -torch.inf, dtype=torch.float64)


LIMIT = RejectionLimit(0.0, 1.0, 0.0)


class TestLaw:
    @each
    def test_a_plateau(self, kind):
        assert right(fitted(kind).sample(N, exact=True, random_state=0, energy_fn=plateau))

    @each
    def test_raw_draws_miss_it(self, kind):  # negative control
        assert not right(fitted(kind).sample(N, random_state=0))

    def test_rejection_at_too_low_a_limit_misses_it(self, monkeypatch):  # negative control
        found = rejection.rejection_limit

        def low(log_weights):
            return RejectionLimit(found(log_weights).log_weight - 3.0, 100.0, 0.0)

        monkeypatch.setattr(onestep, "rejection_limit", low)
        assert not right(fitted(ONE_STEP[0]).sample(N, exact=True, random_state=0, energy_fn=plateau))

    def test_the_density_by_bins(self):
        """Twenty bins of equal probability of a coordinate of another normal density, false alarm 1e-7."""

        def other(x):
            return 0.5 * (((x - 1.3) / 0.8) ** 2).sum(1)

        def badness(X):
            counts = np.bincount((20 * norm.cdf((X[:, 1] - 1.3) / 0.8)).astype(int), minlength=20)
            return ((counts - N / 20) ** 2 / (N / 20)).sum()

        sampler, critical = fitted(ONE_STEP[1]), chi2.isf(1e-7, 19)
        assert badness(sampler.sample(N, exact=True, random_state=1, energy_fn=other)) < critical
        assert badness(sampler.sample(N, random_state=1)) > critical

    def test_draws_differ(self):
        X = fitted(ONE_STEP[0]).sample(N, exact=True, random_state=0, energy_fn=plateau)
        assert len(np.unique(X, axis=0)) == N

    @pytest.mark.slow
    def test_of_a_family(self):
        """Means and variances of a family of normal densities, at contexts near the end of their range."""
        sampler, contexts = families.fitted(), np.array([[-0.9, 0.8], [0.9, -0.8]])
        X = sampler.sample(N, context=contexts, exact=True, random_state=0)
        assert np.array_equal(X[1], sampler.sample(N, context=contexts[1], exact=True, random_state=0))
        for x, c in zip(X, contexts, strict=True):
            u = (x - c @ families.MIX.numpy()) / np.exp(0.5 * c[0])
            assert (np.abs(u.mean(0)) < Z / N**0.5).all() and (np.abs((u**2).mean(0) - 1) < Z * (2 / N) ** 0.5).all()


@each
def test_the_fit_tells_how_wrong_raw_draws_are(kind):
    """By other draws than those of `sample_weighted`: 10 000 numbers between 0 and 1, within 5.6 deviations."""
    found, other = fitted(kind).total_variation_, fitted(kind).sample_weighted(10_000, random_state=1).total_variation
    assert 0 < found < 1 and abs(found - other) < Z * math.sqrt(2 * 0.25 / 10_000)


class TestDraws:
    @each
    def test_prefix_batches_and_frames(self, kind):
        sampler = fitted(kind)
        X = sampler.sample(300, exact=True, random_state=3)
        assert np.allclose(X[:100], sampler.sample(100, exact=True, random_state=3), atol=1e-4)
        assert np.array_equal(X, np.concatenate(list(sampler.iter_samples(300, 70, 3, exact=True))))
        assert np.array_equal(X, sampler.sample(300, exact=True, random_state=3, as_frame=True).to_numpy())

    def test_those_that_are_kept_at_once_are_the_raw_ones(self):
        sampler = fitted(ONE_STEP[0])
        raw, X = (sampler.sample(500, random_state=0, exact=exact) for exact in (False, True))
        limit = rejection_limit(sampler.sample_weighted(10_000, random_state=1).log_weights)
        kept = np.isclose(raw, X, atol=1e-4).all(1).mean()
        assert abs(kept - 1 / limit.price) < 0.1

    def test_workers_look_at_the_weights_once(self):
        sampler = fitted(ONE_STEP[0])
        calls = []

        def counted(x):
            calls.append(len(x))
            return quadratic(x)

        def draws(n_jobs):
            calls.clear()
            with joblib.parallel_backend("threading"):
                twin = copy.copy(sampler).set_params(n_jobs=n_jobs)
                return twin.sample(20_000, exact=True, random_state=0, energy_fn=counted), sum(calls)

        (one, n_one), (two, n_two) = draws(1), draws(2)
        assert np.array_equal(one, two) and abs(n_two - n_one) < 1000  # but for the probes of the energy

    def test_the_price(self):
        calls = []

        def counted(x):
            calls.append(len(x))
            return quadratic(x)

        sampler = fitted(ONE_STEP[0])
        limit = rejection_limit(sampler.sample_weighted(10_000, random_state=1).log_weights)
        sampler.sample(N, exact=True, random_state=0, energy_fn=counted)
        n = sum(calls) - 10_000
        assert abs(n / (N * limit.price) - 1) < 0.15

    def test_what_does_not_go_with_it(self):
        sampler = fitted(ONE_STEP[1])
        for options, reason in [
            ({"n_steps": 2}, "n_steps > 1"), ({"polish": 3}, "polish="), ({"return_log_density": True}, "return_log"),
        ]:  # fmt: skip
            with pytest.raises(ValueError, match=reason):
                sampler.sample(3, exact=True, **options)
        with pytest.raises(ValueError, match="residual map"):
            fitted(ONE_STEP[0], "residual").sample(3, exact=True)

    def test_weights_that_cannot_carry_it(self):
        def far(x):
            return 0.5 * (x - 8.0).pow(2).sum(1)

        with pytest.raises(ValueError, match="Pareto k"):
            fitted(ONE_STEP[0]).sample(3, exact=True, energy_fn=far)

    def test_an_energy_that_changes(self):
        with pytest.raises(RuntimeError, match="other values than before"):
            rejection.draw_by_rejection(Never(), None, lambda k, shape=(4, 2): torch.zeros(shape), LIMIT)


class TestLimit:
    @pytest.mark.parametrize("sd", [0.1, 0.5, 1.0])
    def test_log_normal_weights(self, sd):
        """The loss at the limit found, in closed form: within a factor of three of what is stated, over ten samples."""
        for seed in range(10):
            log_weights = sd * np.random.RandomState(seed).standard_normal(10_000) - 0.5 * sd**2
            limit = rejection_limit(log_weights)
            c = limit.log_weight
            true = norm.cdf(0.5 * sd - c / sd) - math.exp(c) * norm.cdf(-0.5 * sd - c / sd)
            assert true < 3 * rejection.LARGEST_LOSS and limit.loss <= rejection.LARGEST_LOSS * (1 + 1e-6)

    @given(st.floats(-500, 500), st.integers(0, 100))
    @settings(max_examples=20, deadline=None)
    def test_constants_do_not_matter(self, constant, seed):
        log_weights = 0.4 * np.random.RandomState(seed).standard_normal(2000)
        one, other = rejection_limit(log_weights), rejection_limit(log_weights + constant)
        assert other.log_weight == pytest.approx(one.log_weight + constant, abs=1e-6)
        assert other.price == pytest.approx(one.price, rel=1e-6) and other.loss == pytest.approx(one.loss, rel=1e-4)

    def test_equal_weights_cost_one(self):
        limit = rejection_limit(np.full(1000, 3.0))
        assert limit.price == pytest.approx(1) and limit.loss == 0 and limit.log_weight == pytest.approx(3)

    def test_heavy_tails_are_refused_or_said(self):
        u = (np.arange(10_000) + 0.5) / 10_000
        with pytest.raises(ValueError, match="Pareto k"):
            rejection_limit(-0.9 * np.log(u))
        limit = rejection_limit(-0.6 * np.log(u))
        assert limit.loss > rejection.LARGEST_LOSS
        with pytest.warns(ConvergenceWarning, match="leaves out"):
            rejection.warn_of_loss(limit)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            rejection.warn_of_loss(rejection_limit(np.zeros(1000)))

    def test_no_weights(self):
        with pytest.raises(ValueError, match="normalised ESS of 0"):
            rejection_limit(np.full(1000, -np.inf))


@pytest.mark.slow
def test_after_a_fit_of_the_plateau():
    sampler = make(ONE_STEP[1], max_iter=600, start=None).fit(plateau)
    assert right(sampler.sample(20_000, exact=True, random_state=0))
