"""Moved draws have the law of the target however poor the map is, and unmoved ones have not.

Bounds of means over 5000 independent draws are 5.6 standard errors: false alarms 2e-8 each.
"""

import math
import warnings

import numpy as np
import pytest
import torch
from cases import slow
from samplers import ONE_STEP, D, fitted, make, quadratic

import skcds
from skcds.density.energy import Energy
from skcds.density.standardize import StandardizedTarget
from skcds.weights import polish

Z, N = 5.6, 5000
MEAN, SD = 1.6, 0.7
each = pytest.mark.parametrize("kind", ONE_STEP)


def other(x):
    """Energy of N(1.6, .49 I); the samplers were fitted to N(1, I)."""
    return 0.5 * (((x - MEAN) / SD) ** 2).sum(1)


def other_numpy(x):
    return 0.5 * (((np.asarray(x) - MEAN) / SD) ** 2).sum(1)


def right(X, mean=MEAN, sd=SD):
    """All means and variances, six figures: false alarms 1e-7 in all."""
    u = (X - mean) / sd
    return (np.abs(u.mean(0)) < Z / len(X) ** 0.5).all() and (
        np.abs((u**2).mean(0) - 1) < Z * (2 / len(X)) ** 0.5
    ).all()


@pytest.mark.parametrize("kind", [ONE_STEP[0], *slow(ONE_STEP[1])])  # they are alike to what moves their draws
class TestExactness:
    def test_moves_bring_another_density(self, kind):
        """After 50 moves what is left of the start is below 1e-4 with acceptances of .2 or more."""
        moved = fitted(kind).sample_polished(N, 50, random_state=0, energy_fn=other)
        assert right(moved.samples)
        assert moved.independence_acceptance > 0.2 and moved.langevin_acceptance > 0.3

    def test_without_moves_it_is_not_there(self, kind):  # negative control
        assert not right(fitted(kind).sample(N, random_state=0))

    def test_without_gradients(self, kind):
        moved = fitted(kind).sample_polished(N, 50, random_state=0, energy_fn=other_numpy)
        assert right(moved.samples)
        assert math.isnan(moved.langevin_acceptance)

    @pytest.mark.slow
    def test_langevin_moves_alone(self, kind, monkeypatch):
        """Independence proposals are refused: the Langevin steps have to be right by themselves."""
        monkeypatch.setattr(polish, "standard_normal_log_prob", lambda x: x.sum(1) * torch.nan)
        moved = fitted(kind).sample_polished(N, 80, random_state=0, energy_fn=other)
        assert moved.independence_acceptance == 0
        assert right(moved.samples)

    @pytest.mark.slow
    def test_half_of_a_density(self, kind):
        """Draws start on both sides of the edge of the support."""
        half = lambda x: torch.where(x[:, 0] > 1, quadratic(x), torch.inf)  # noqa: E731
        X = fitted(kind).sample_polished(N, 60, random_state=0, energy_fn=half).samples
        assert (X[:, 0] > 1).all()  # 30 proposals, half of which land there: false alarms 3e-6
        mean, sd = math.sqrt(2 / math.pi), math.sqrt(1 - 2 / math.pi)
        assert abs(X[:, 0].mean() - 1 - mean) < Z * sd / N**0.5
        assert right(X[:, 1:], 1.0, 1.0)


@each
class TestManners:
    def test_no_moves_are_the_draws(self, kind):
        unmoved = fitted(kind).sample_polished(50, 0, random_state=3)
        assert np.array_equal(unmoved.samples, fitted(kind).sample(50, random_state=3))
        assert math.isnan(unmoved.independence_acceptance) and unmoved.n_moves == 0

    def test_parameter_of_sample(self, kind):
        moved = fitted(kind).sample_polished(50, 4, random_state=3)
        assert np.array_equal(moved.samples, fitted(kind).sample(50, random_state=3, polish=4))
        assert not np.array_equal(moved.samples, fitted(kind).sample(50, random_state=3))

    def test_a_prefix_is_a_smaller_sample(self, kind):
        X = fitted(kind).sample(300, random_state=0, polish=3)
        assert np.allclose(X[:100], fitted(kind).sample(100, random_state=0, polish=3), atol=1e-4)

    def test_batches(self, kind):
        X = np.concatenate(list(fitted(kind).iter_samples(300, 70, random_state=0, polish=2)))
        assert np.array_equal(X, fitted(kind).sample(300, random_state=0, polish=2))

    def test_evaluations_are_counted(self, kind):
        rows = []

        def counted(x):
            rows.append(len(x))
            return other(x)

        moved = fitted(kind).sample_polished(100, 5, random_state=0, energy_fn=counted)
        assert 600 <= moved.n_energy_evals == sum(rows) < 650  # at the start, for every move, and to probe the function

    def test_needs_the_energy(self, kind, tmp_path):
        fitted(kind).save(tmp_path / "sampler")
        loaded = skcds.load(tmp_path / "sampler")
        with pytest.raises(ValueError, match="pass energy_fn="):
            loaded.sample(5, polish=2)
        assert loaded.sample(5, polish=2, energy_fn=quadratic).shape == (5, D)

    def test_refusals(self, kind):
        with pytest.raises(ValueError, match="n_steps=2"):
            fitted(kind).sample(5, n_steps=2, polish=1)
        with pytest.raises(ValueError, match="polish"):
            fitted(kind).sample(5, polish=-1)
        with pytest.raises(ValueError, match="residual"):
            fitted(kind, "residual").sample(5, polish=1)


def test_an_energy_that_differentiates_something_itself():
    """From the fit to the verdict: an energy that needs autograd had passed the probe, and failed in what followed."""

    def energy_fn(x):
        (slope,) = torch.autograd.grad((0.5 * (x - 1.0) ** 2).sum(), x, create_graph=True)
        return 0.5 * (slope**2).sum(1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler = make("ConsistentSamplerScratch", max_iter=2).fit(energy_fn)
        weighted = sampler.sample_weighted(100, random_state=0)
        polished = sampler.sample_polished(100, 4, random_state=0)
        found = sampler.diagnose(200, random_state=0)
        plainly = sampler.sample_weighted(100, random_state=0, energy_fn=quadratic)
    np.testing.assert_allclose(weighted.log_weights, plainly.log_weights, atol=1e-5)
    assert polished.langevin_acceptance > 0 and found.n_draws == 200


def test_gradient_of_the_latent_density():
    """Against differences too small to reach over a knot of a spline often, on a map that is not the identity."""
    sampler = fitted("ConsistentSamplerDistiller")
    model = sampler._model
    target = StandardizedTarget(Energy(other, D), model.standardization)
    noise = iter([torch.zeros(1, D), torch.full((1, D), 0.3)])
    seen = []

    def spy(density, latent, log_density, gradient, step, noise, log_uniform):
        seen.append((density, latent, gradient))
        return latent, log_density, gradient, torch.zeros(1, dtype=torch.bool)

    original, polish.langevin_step = polish.langevin_step, spy
    try:
        polish.polish(
            model, target, lambda k, shape=(1, D): next(noise) if k in (0, 1) else torch.zeros(shape), 2,
            polish.Acceptance(), polish.Acceptance(),
        )  # fmt: skip
    finally:
        polish.langevin_step = original
    density, latent, gradient = seen[0]
    for j in range(D):
        shift = 0.001 * torch.eye(D)[j]
        difference = (density(latent + shift)[0] - density(latent - shift)[0]) / 0.002
        assert gradient[0, j] == pytest.approx(difference.item(), abs=0.02)
