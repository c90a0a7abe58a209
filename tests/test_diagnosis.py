"""The report on a sampler: sound ones pass, sabotaged ones do not.

Its limits are far from what chance does to 10 000 draws: the standard error of a mean is .01 deviations, that of a
deviation .7 % for a normal law, that of log Z below .02 with an effective share of .2.
"""

import copy
import math

import numpy as np
import pytest
from samplers import KINDS, fitted, make, quadratic

from skcds import WeightedSample, targets
from skcds.diagnosis import VERDICTS, diagnose

N = 10_000
MODES = targets.GaussianMixture([[-6.0, 0.0], [0.0, 0.0], [6.0, 0.0]], sd=1.0)


def normal(X, mean=0.0, sd=1.0):
    return -0.5 * (((X - mean) / sd) ** 2).sum(1) - X.shape[1] * math.log(sd * math.sqrt(2 * math.pi))


def report(X, log_q, log_p, particles, target=None, **options):
    """Of draws and the densities of sampler and target."""
    weighted = WeightedSample(X, log_p(X) - log_q(X), True)
    weights = log_p(particles) - log_q(particles)
    options = {"pilot_log_evidence": 0.0, **options}
    return diagnose(weighted, particles, weights, lambda x: x, target=target, **options)


def draws(seed, sd=1.0, mean=0.0, d=2):
    return mean + sd * np.random.default_rng(seed).standard_normal((N, d))


def mixture(X, masses=(1 / 3, 1 / 3, 1 / 3)):
    parts = [math.log(m) + normal(X, np.array([c, 0.0])) for m, c in zip(masses, (-6, 0, 6), strict=True) if m]
    return np.logaddexp.reduce(parts, axis=0)


def mixture_draws(seed, masses=(1 / 3, 1 / 3, 1 / 3)):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((N, 2))
    X[:, 0] += rng.choice([-6.0, 0.0, 6.0], size=N, p=masses)
    return X


class TestSound:
    @pytest.mark.parametrize("seed", range(5))
    def test_exact_draws(self, seed):
        found = report(draws(seed), normal, normal, draws(seed + 100), violation_share=0.0)
        assert found.verdict == "ok" and found.reasons == []

    @pytest.mark.parametrize("seed", range(5))
    def test_exact_draws_of_modes(self, seed):
        """The mode masses of exact draws exceed .05 with a probability below 1e-9."""
        found = report(mixture_draws(seed), mixture, mixture, mixture_draws(seed + 100), MODES)
        assert found.verdict == "ok" and found["mode masses"].value < 0.05

    def test_a_proposal_a_little_too_wide(self):
        assert report(draws(0, 1.05), lambda X: normal(X, 0, 1.05), normal, draws(1)).verdict == "ok"


class TestSabotaged:
    """Negative controls: what is wrong is named."""

    def test_a_dropped_mode(self):
        masses = (0.5, 0.5, 0.0)
        found = report(mixture_draws(0, masses), lambda X: mixture(X, masses), mixture, mixture_draws(1), MODES)
        assert found["effective share"].verdict == "ok"  # its own weights see nothing
        assert found["particles out of reach"].verdict == "failed" and found["particles out of reach"].value > 0.3
        assert found["mode masses"].verdict == "failed" and found["location"].verdict == "failed"
        assert found["log Z less the pilot's"].value == pytest.approx(math.log(2 / 3), abs=0.01)
        assert found.verdict == "failed"

    def test_wrong_masses(self):
        masses = (0.9, 0.05, 0.05)
        found = report(mixture_draws(0, masses), lambda X: mixture(X, masses), mixture, mixture_draws(1), MODES)
        assert found["mode masses"].verdict == "failed" and found["location"].verdict != "ok"

    def test_wrong_masses_with_weights_that_do_not_know(self):
        masses = (0.9, 0.05, 0.05)
        found = report(mixture_draws(0, masses), mixture, mixture, mixture_draws(1))
        assert found["location"].verdict == "failed"

    @pytest.mark.parametrize("sd", [0.8, 1.2])
    def test_width(self, sd):
        found = report(draws(0, sd), lambda X: normal(X, 0, sd), normal, draws(1))
        assert found["spread"].verdict == "suspect" and found.verdict != "ok"

    def test_wrong_temperature(self):
        """The sampler draws from the square root of the density."""
        sd = 2**0.5
        found = report(draws(0, sd, d=6), lambda X: normal(X, 0, sd), normal, draws(1, d=6))
        assert found["spread"].verdict == "suspect" and found.verdict != "ok"

    @pytest.mark.parametrize("bias, verdict", [(0.05, "ok"), (0.3, "suspect"), (-0.3, "suspect"), (1.0, "failed")])
    def test_biased_weights(self, bias, verdict):
        found = report(draws(0), lambda X: normal(X) - bias, normal, draws(1))
        assert found["log Z less the pilot's"].verdict == found.verdict == verdict

    def test_folds(self):
        assert report(draws(0), normal, normal, draws(1), violation_share=0.004).verdict == "suspect"
        assert report(draws(0), normal, normal, draws(1), violation_share=0.05).verdict == "failed"

    def test_draws_outside_the_support(self):
        def half(X):
            return np.where(X[:, 0] > 0, normal(X) + math.log(2), -np.inf)

        particles = draws(1)
        particles[:, 0] = np.abs(particles[:, 0])
        found = report(draws(0), normal, half, particles)
        assert found["outside the support"].value == pytest.approx(0.5, abs=0.03)
        assert found["outside the support"].verdict != "ok"

    def test_weights_without_a_mean(self):
        found = report(draws(0, 0.5, d=8), lambda X: normal(X, 0, 0.5), normal, draws(1, d=8))
        assert found["Pareto k"].verdict != "ok" and found["effective share"].verdict == "failed"

    def test_one_draw_far_out(self):
        X = draws(0)
        X[0] = np.nan
        found = diagnose(WeightedSample(X, np.r_[-np.inf, np.zeros(N - 1)], True), draws(1), None, lambda x: x)
        assert found["location"].verdict == "failed"


class TestReport:
    def test_text(self):
        found = report(draws(0, 1.3), lambda X: normal(X, 0, 1.3), normal, draws(1))
        text = str(found)
        assert text.startswith("suspect (10000 draws and 10000 particles)")
        assert "spread" in text and "cannot see modes" in text
        assert found.reasons == ["spread: largest ratio of deviations"]
        with pytest.raises(KeyError):
            found["none"]

    def test_without_particles(self):
        found = diagnose(WeightedSample(draws(0), np.zeros(N), True), np.empty((0, 2)), None, lambda x: x)
        assert [check.name for check in found.checks] == ["effective share", "Pareto k", "outside the support"]


@pytest.mark.parametrize("kind", KINDS)
class TestMethod:
    def test_of_a_fit(self, kind):
        """Small fits to a Gaussian; the diffusion sampler's has to be sound."""
        found = fitted(kind).diagnose(2000, random_state=0)
        assert found.verdict in VERDICTS and found.n_draws == 2000 and found.n_particles == 500
        assert found["particles out of reach"].value < 0.01 and found["location"].value < 0.5
        assert {check.name for check in found.checks} >= {"log Z less the pilot's", "spread", "location"}
        again = fitted(kind).diagnose(2000, random_state=0)
        assert found == again

    def test_shifted_sampler_fails(self, kind):
        sabotaged = copy.deepcopy(fitted(kind))
        sabotaged._model.standardization.loc.add_(2.0)
        found = sabotaged.diagnose(1000, random_state=0, energy_fn=quadratic)
        assert found["location"].verdict == "failed" and found.verdict == "failed"

    def test_without_pilot_there_is_nothing_to_compare_with(self, kind):
        if kind == "ConsistentSamplerDistiller":
            pytest.skip("its teacher has the pilot")
        found = make(kind, init="prior").fit(quadratic).diagnose(200, random_state=0)
        assert found.n_particles == 0 and "location" not in {check.name for check in found.checks}

    def test_needs_enough_draws(self, kind):
        with pytest.raises(ValueError, match="at least 100"):
            fitted(kind).diagnose(50)


def test_residual_maps_have_no_weights_of_particles():
    found = fitted("ConsistentSamplerDistiller", "residual").diagnose(300, random_state=0)
    assert "particles out of reach" not in {check.name for check in found.checks}
    assert found["injectivity"].value >= 0
