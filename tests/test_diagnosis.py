"""The report on a sampler: sound ones pass, sabotaged ones do not.

Every figure counts beyond the noise of an exact sampler only, with false alarms of at most .001 a figure, so that a
verdict on a sound sampler below is wrong with a probability under .01; benchmarks/verdicts.py counts them.
"""

import copy
import math

import numpy as np
import pytest
import torch
from samplers import KINDS, fitted, make, quadratic
from scipy import stats
from sklearn.exceptions import ConvergenceWarning

from skcds import DiffusionSampler, Prior, WeightedSample, targets
from skcds.estimators.judgement import pilot_noise
from skcds.estimators.onestep import OneStepSampler
from skcds.explore.result import PilotResult
from skcds.weights.diagnosis import VERDICTS, _of_modes, diagnose, kolmogorov, kurtosis

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

    @pytest.mark.parametrize("share", [0.6, 0.75, 0.9])
    @pytest.mark.parametrize("n, d", [(1000, 2), (10_000, 2), (1000, 50), (10_000, 50)])
    def test_weights_that_are_mere_noise(self, n, d, share):
        """As of paths; the total variation by the weights is up to .28 and tells nothing of the draws."""
        rng, sd = np.random.default_rng([n, d]), math.sqrt(-math.log(share))
        X, particles = rng.standard_normal((2, n, d))
        noise = sd * rng.standard_normal((2, n))
        weighted = WeightedSample(X, noise[0] - 0.5 * sd**2, True)
        energies = 0.5 * (X**2).sum(1)
        found = diagnose(weighted, particles, noise[1] + 0.5 * sd**2, lambda x: x, pilot_log_evidence=0.0,
                         energies=energies)  # fmt: skip
        assert found.verdict == "ok", found
        expected = math.erf(sd / 2**1.5)
        assert found["total variation"].value == pytest.approx(expected, abs=4 / n**0.5)

    @pytest.mark.parametrize("mass", [0.0005, 0.0015, 0.003])
    def test_a_little_mass_out_of_reach(self, mass):
        """As in the tail of a hierarchical model; of 10 000 particles at most 45 (four deviations) are there."""
        rng = np.random.default_rng(int(1e4 * mass))
        of_particles = np.where(rng.uniform(size=N) < mass, math.log(1000), 0.0)
        found = diagnose(WeightedSample(draws(0), np.zeros(N), True), draws(1), of_particles, lambda x: x)
        assert found.verdict == "ok" and 0 < found["particles out of reach"].value < 0.006

    def test_a_proposal_a_little_too_wide(self):
        assert report(draws(0, 1.05), lambda X: normal(X, 0, 1.05), normal, draws(1)).verdict == "ok"


def test_kurtosis_is_that_of_each_coordinate():
    X = np.random.default_rng(0).standard_exponential((50, 3)) ** [0.5, 1, 2]
    assert np.allclose(kurtosis(X), stats.kurtosis(X, fisher=False))


def test_shares_of_modes_are_those_of_draws_that_are_finite():
    target = targets.gmm9()
    X = target.sample(200, random_state=0)
    broken = np.concatenate([np.tile([[np.nan, 0.0]], (300, 1)), X])
    assert [check.value for check in _of_modes(broken, target)] == [check.value for check in _of_modes(X, target)]


class TestSabotaged:
    """Negative controls: what is wrong is named."""

    def test_a_dropped_mode(self):
        masses = (0.5, 0.5, 0.0)
        found = report(mixture_draws(0, masses), lambda X: mixture(X, masses), mixture, mixture_draws(1), MODES)
        assert found["normalised ESS"].verdict == "ok"  # its own weights see nothing
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
        assert found["Pareto k"].verdict != "ok" and found["normalised ESS"].verdict == "failed"

    def test_one_draw_far_out(self):
        X = draws(0)
        X[0] = np.nan
        found = diagnose(WeightedSample(X, np.r_[-np.inf, np.zeros(N - 1)], True), draws(1), None, lambda x: x)
        assert found["location"].verdict == "failed"


class TestLostMass:
    """A share of the target in a place without draws; what particles see of it, which weights cannot."""

    @pytest.mark.parametrize("mass, verdict", [(0.03, "suspect"), (0.1, "failed"), (0.5, "failed")])
    @pytest.mark.parametrize("seed", range(3))
    def test_is_seen(self, mass, verdict, seed):
        """.03 of 10 000 is above .005 and noise of .006 by ten standard errors, and below .05."""
        rng = np.random.default_rng(seed)
        lost = rng.uniform(size=N) < mass
        particles, of_particles = draws(seed + 10), np.where(lost, 50.0, 0.0)
        particles[lost, 0] += 2.0 * rng.choice([-1, 1], lost.sum())
        found = diagnose(WeightedSample(draws(seed), np.zeros(N), True), particles, of_particles, lambda x: x)
        assert found["lost mass"].value == pytest.approx(mass, abs=5 * (mass / N) ** 0.5)
        assert verdict in (found["lost mass"].verdict, found["particles out of reach"].verdict)
        assert found["normalised ESS"].value == 1

    @pytest.mark.parametrize("mass, verdict", [(0.1, "suspect"), (0.5, "failed")])
    def test_is_seen_below_a_weight_of_a_hundred(self, mass, verdict):
        """Of 1000 draws none is where the target has thirty times more."""
        lost = np.arange(N) < mass * N
        weighted = WeightedSample(draws(0)[:1000], np.zeros(1000), True)
        found = diagnose(weighted, draws(1), np.where(lost, math.log(30), 0.0), lambda x: x)
        assert found["particles out of reach"].verdict == "ok"
        assert found["lost mass"].verdict in (verdict, "failed")

    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("n", [300, 1000, 10_000])
    def test_is_none_where_draws_see_it_too(self, seed, n):
        """Wrong masses of modes that the weights know."""
        masses = (0.6, 0.2, 0.2)
        X, particles = mixture_draws(seed, masses)[:n], mixture_draws(seed + 50)[:n]
        found = report(X, lambda X: mixture(X, masses), mixture, particles)
        assert found["lost mass"].verdict == found["particles out of reach"].verdict == "ok"
        assert abs(found["lost mass"].value) < 4 / n**0.5

    @pytest.mark.parametrize("seed", range(5))
    def test_particles_need_not_be_independent(self, seed):
        """Four copies of each are told from lost mass, which they vary like."""
        masses = (0.5, 0.3, 0.2)
        particles = np.repeat(mixture_draws(seed + 50)[:500], 4, axis=0)
        found = report(mixture_draws(seed, masses), lambda X: mixture(X, masses), mixture, particles)
        assert found["lost mass"].verdict == "ok"


class TestDrawsWithoutTheirWeights:
    """What `sample` returns is judged, too; its density is known, and the weights mend it."""

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("shift, verdict", [(0.05, "ok"), (0.3, "suspect"), (0.7, "failed")])
    def test_a_shift(self, shift, verdict, seed):
        """Kolmogorov distances of .02, .12, .27, with noise below .02."""
        sd = 1.1
        found = report(draws(seed, sd, shift, d=1), lambda X: normal(X, shift, sd), normal, draws(seed + 9, d=1))
        check = found["draws less weights"]
        assert (check.verdict == verdict and "x0" in check.meaning) or verdict == "ok"

    @pytest.mark.parametrize("seed", range(3))
    def test_an_edge(self, seed):
        """P(x > .9) is .335, and .233 of the draws: a distance of .102."""
        rng = np.random.default_rng(seed)
        right = rng.uniform(size=N) < 0.233
        X = np.where(right, rng.uniform(0.9, 1, N), rng.uniform(0, 0.9, N))[:, None]
        weighted = WeightedSample(X, np.log(np.where(right, 0.335 / 0.233, 0.665 / 0.767)), True)
        check = diagnose(weighted, np.empty((0, 1)), None, lambda x: x)["draws less weights"]
        assert check.verdict == "suspect" and check.value == pytest.approx(0.102, abs=0.02)

    @pytest.mark.parametrize("seed", range(3))
    def test_a_plateau_by_the_energy(self, seed):
        """.165 of the mass in a ball in ten dimensions, and .084 of the draws, seen in no coordinate."""
        rng = np.random.default_rng(seed)
        inside = rng.uniform(size=N) < 0.084
        X = rng.standard_normal((N, 10))
        weighted = WeightedSample(X, np.log(np.where(inside, 0.165 / 0.084, 0.835 / 0.916)), True)
        without = diagnose(weighted, np.empty((0, 10)), None, lambda x: x)["draws less weights"]
        check = diagnose(weighted, np.empty((0, 10)), None, lambda x: x, energies=-1.0 * inside)["draws less weights"]
        assert without.verdict == "ok" and check.verdict == "suspect"
        assert check.value == pytest.approx(0.081, abs=0.02) and "of the energy" in check.meaning

    def test_ties_are_one_step(self):
        x, excess = np.array([1.0, 2.0, 2.0, 2.0, np.nan]), np.array([0.1, 0.2, -0.2, 0.1, -0.2])
        assert kolmogorov(x, excess) == pytest.approx(0.2)


class TestZeroWeights:
    """Draws none of which is in the support: a verdict and no error."""

    @pytest.mark.parametrize("log_weights_of_particles", [None, np.zeros(500), np.full(500, np.inf)])
    @pytest.mark.parametrize("pilot_log_evidence", [None, 0.0])
    def test_fail(self, log_weights_of_particles, pilot_log_evidence):
        particles = draws(1)[:500]
        weighted = WeightedSample(draws(0), np.full(N, -np.inf), True)
        found = diagnose(weighted, particles, log_weights_of_particles, lambda x: x,
                         pilot_log_evidence=pilot_log_evidence)  # fmt: skip
        assert found.verdict == "failed" and found["outside the support"].value == 1
        assert "failed" in str(found)


class TestExactDrawsOfManyModes:
    """Noise of the counts is put down to chance: false alarms of at most .001 each by McDiarmid's inequality."""

    @pytest.mark.parametrize("n", [100, 1000, 10_000])
    @pytest.mark.parametrize("target", [
        targets.gmm9(), targets.gmm40(), targets.mw54(), targets.ManyWell(10, 10, 4.0), targets.ManyWellPairs(16),
        targets.ManyWellPairs(24),
    ])  # fmt: skip
    def test_pass(self, target, n):
        X = target.sample(n, random_state=n)
        found = diagnose(WeightedSample(X, np.zeros(n), True), np.empty((0, 2)), None, lambda x: x, target=target)
        assert found.verdict == "ok", found
        assert {check.name for check in found.checks} & {"mode masses", "well masses"}

    @pytest.mark.parametrize("target", [targets.gmm40(), targets.mw54()])
    def test_draws_of_half_of_the_modes_fail(self, target):
        X = target.sample(10_000, random_state=0)
        X = X[target.modes(X) < len(target.mode_masses) / 2]
        found = diagnose(WeightedSample(X, np.zeros(len(X)), True), np.empty((0, 2)), None, lambda x: x, target=target)
        assert found["mode masses"].verdict == "failed"

    @pytest.mark.parametrize("target", [targets.ManyWellPairs(16), targets.ManyWellPairs(24)])
    def test_a_well_with_wrong_masses_fails(self, target):
        X = target.sample(20_000, random_state=0)
        labels = target.modes(X)
        X = X[(labels >> 5 & 1) == 1]
        found = diagnose(WeightedSample(X, np.zeros(len(X)), True), np.empty((0, 2)), None, lambda x: x, target=target)
        assert found["well masses"].verdict != "ok" and found["well masses"].value == pytest.approx(0.156, abs=0.01)


class TestFewDraws:
    @pytest.mark.parametrize("n", [100, 300, 1000])
    @pytest.mark.parametrize("d", [1, 5, 50])
    def test_exact_ones_pass(self, n, d):
        rng = np.random.default_rng([n, d])
        X, particles = rng.standard_normal((n, d)), rng.standard_normal((n, d))
        found = report(X, normal, normal, particles)
        assert found.verdict == "ok", found

    def test_limit_of_pareto_k_is_theirs(self):
        u = (np.arange(100) + 0.5) / 100
        weighted = WeightedSample(draws(0)[:100], -0.65 * np.log(u), True)
        assert 0.5 < weighted.pareto_k < 0.7
        assert diagnose(weighted, np.empty((0, 2)), None, lambda x: x)["Pareto k"].verdict == "suspect"


class TestReport:
    def test_text(self):
        found = report(draws(0, 1.3), lambda X: normal(X, 0, 1.3), normal, draws(1))
        text = str(found)
        assert text.startswith("suspect (10000 draws and 10000 particles)")
        assert "spread" in text and "cannot see modes" in text
        assert [reason.split(":")[0] for reason in found.reasons] == ["draws less weights", "spread"]
        with pytest.raises(KeyError):
            found["none"]

    def test_without_particles(self):
        found = diagnose(WeightedSample(draws(0), np.zeros(N), True), np.empty((0, 2)), None, lambda x: x)
        names = ["normalised ESS", "Pareto k", "outside the support", "total variation", "draws less weights"]
        assert [check.name for check in found.checks] == names


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
        found = make(kind, start=Prior(500)).fit(quadratic).diagnose(200, random_state=0)
        assert found.n_particles == 0 and "location" not in {check.name for check in found.checks}

    def test_without_training_at_best_suspect(self, kind):
        sampler = copy.deepcopy(fitted(kind))
        sampler.n_iter_ = 0
        found = sampler.diagnose(1000, random_state=0)
        assert found["training iterations"].verdict == "suspect" and found.verdict != "ok"
        assert any("none was done" in reason for reason in found.reasons)

    def test_of_draws_outside_the_support(self, kind):
        """No draw of a sampler comes near a support that is fifty deviations away."""

        def energy(x):
            return torch.where(x[:, 0] > 50, x[:, 0], torch.inf) if len(x) > 16 else 0.0 * x[:, 0]

        sampler = copy.deepcopy(fitted(kind))
        sampler._energy = copy.copy(sampler._energy)
        sampler._energy.energy_fn = energy
        found = sampler.diagnose(200, random_state=0)
        assert found.verdict == "failed" and found["outside the support"].value == 1

    def test_needs_enough_draws(self, kind):
        with pytest.raises(ValueError, match="at least 100"):
            fitted(kind).diagnose(50)


def test_residual_maps_have_no_weights_of_particles():
    found = fitted("ConsistentSamplerDistiller", "residual").diagnose(300, random_state=0)
    assert "particles out of reach" not in {check.name for check in found.checks}
    assert found["injectivity"].value >= 0


class DiesAfterTraining:
    """An energy that is finite in training, and infinite everywhere when the evaluation draws are judged."""

    n_features, dead = 2, False

    def __call__(self, x):
        return 0.5 * (x**2).sum(1) + (torch.inf if self.dead else 0.0)


@pytest.mark.parametrize("kind", [*KINDS, "residual"])
def test_a_fit_survives_held_out_draws_without_weight(kind, monkeypatch):
    energy = DiesAfterTraining()
    options = {"network": "residual"} if kind == "residual" else {}
    kind = KINDS[1] if options else kind
    owner, method = (DiffusionSampler, "_judge") if kind == KINDS[0] else (OneStepSampler, "_hold_out")
    original = getattr(owner, method)

    def dying(self, *args):
        energy.dead = True
        return original(self, *args)

    monkeypatch.setattr(owner, method, dying)
    with pytest.warns(ConvergenceWarning, match="did not converge: .* are all zero"):
        sampler = make(kind, n_features=2, max_iter=5, **options).fit(energy)
    assert (sampler.log_evidence_, sampler.ess_, sampler.converged_) == (-np.inf, 0.0, False)
    assert math.isnan(sampler.log_evidence_se_) and sampler.n_iter_ == 5
    assert np.isfinite(sampler.sample(10, random_state=0)).all()
    found = sampler.diagnose(100, random_state=0)
    assert found.verdict == "failed" and found["outside the support"].value == 1


@pytest.mark.parametrize(
    ("n_temperatures", "n_particles", "noise"), [(9, 100, 0.3), (9, 1000, 0.0), (9, 999, 0.095), (9, 0, 0.0)]
)
def test_a_pilot_with_few_particles_knows_log_z_poorly(n_temperatures, n_particles, noise):
    pilot = PilotResult(0.0, 1.0, None, None, None, None, n_temperatures)
    assert pilot_noise(pilot, n_particles) == pytest.approx(noise, abs=1e-3) and pilot_noise(None, 5) == 0.0


def test_log_z_is_compared_beyond_the_noise_of_the_pilot():
    """Off by .8: failed, unless the pilot's is known to .3 only; off by 3: failed in any case."""
    x = np.random.default_rng(0).standard_normal((2000, 2))
    weighted = WeightedSample(x, np.zeros(2000), False)
    for gap, se, verdict in ((0.8, 0.0, "failed"), (0.8, 0.3, "ok"), (3.0, 0.3, "failed")):
        found = diagnose(weighted, x[:0], None, lambda x: x, pilot_log_evidence=gap, pilot_se=se)
        assert found.verdict == verdict
