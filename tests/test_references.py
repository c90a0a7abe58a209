"""The reference processes of the paper's baselines (DIS, DDS, PIS), and the Kullback-Leibler loss on their paths.

Bounds of statistics are 5.6 standard errors, 2e-8 two-sided; every test says how many it takes at once.
"""

import dataclasses
import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samplers import START

from skcds import Control, DiffusionSampler, PathLoss, Prior, targets
from skcds.density.energy import Energy
from skcds.density.standardize import Standardization, StandardizedTarget
from skcds.models.diffusion import DiffusionModel
from skcds.models.networks import seeded
from skcds.models.process import GRIDS, LOG_SNR_MIN, reverse_kernel
from skcds.specifications import Training
from skcds.train.objectives import path as losses
from skcds.train.objectives.path import PATH_LOSSES, LogVarianceLoss, PathKLLoss

Z = 5.6
MEAN, SD, LOG_Z = torch.tensor([0.3, -0.2]), torch.tensor([0.6, 0.8]), 0.9
REFERENCES = list(GRIDS)
each = pytest.mark.parametrize("reference", REFERENCES)
grids = st.tuples(st.sampled_from(REFERENCES), st.integers(2, 200), st.floats(1, 12)).map(
    lambda drawn: (drawn[0], GRIDS[drawn[0]](*drawn[1:]))
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def model_of(reference, scale=0.0, learned_variance=False, langevin=False, seed=0):
    """A small model whose output layer, which starts at zero, is perturbed."""
    with seeded(seed):
        model = DiffusionModel(2, 3.0, False, 16, 2, langevin, learned_variance, reference)
    for parameter in model.network.body.output.parameters():
        parameter.data += scale * torch.randn(parameter.shape, generator=generator(seed))
    return model


def gaussian(mean=MEAN, sd=SD):
    """exp(LOG_Z) N(mean, diag(sd^2))."""
    norm = float(torch.log(sd * (2 * torch.pi) ** 0.5).sum()) - LOG_Z
    energy = Energy(lambda x: 0.5 * (((x - mean) / sd) ** 2).sum(1) + norm, 2, generator=generator())
    return StandardizedTarget(energy, Standardization(2, full=False))


def paths(model, target, n, n_steps, seed=0):
    """Ends, log path weights, and all the states of n trajectories."""
    source, grid = generator(seed), model.grid(n_steps)

    def normal(k):
        return torch.randn(n, 2, generator=source)

    states, log_ratio = model.simulate(normal(0), grid, target, normal, keep=True)
    return states[-1], log_ratio + target.log_prob(states[-1]), states


class TestGrids:
    @given(grids)
    def test_levels_rise_from_the_prior_end(self, named):
        _, grid = named
        assert float(grid.log_snr[0]) == pytest.approx(LOG_SNR_MIN, abs=1e-4)
        assert (grid.log_snr.diff() > 0).all() and (grid.v > 0).all() and (grid.v < 1).all()

    @given(grids)
    def test_steps_compose_to_the_marginal_kernel(self, named):
        """x_k given x_N is N(a_k x_N, s_k^2), by one noising step after the other, to the rounding of float32."""
        _, grid = named
        shrink, variance = 1.0, 0.0
        for k in reversed(range(grid.n_steps)):
            b, v = float(grid.b[k]), float(grid.v[k])
            shrink, variance = b * shrink, b**2 * variance + v
            assert shrink == pytest.approx(float(grid.a[k]), rel=1e-4)
            assert variance == pytest.approx(float(grid.s[k]) ** 2, rel=1e-4)

    @given(grids)
    def test_the_uncontrolled_chain_is_the_reference(self, named):
        """With the score of N(0, I), S = -x, a step is the noising kernel turned round: N(b x, v)."""
        _, grid = named
        x = torch.linspace(-3, 3, 7)[:, None].double()
        for k in range(grid.n_steps):
            mean, variance = reverse_kernel(grid, k, x, float(grid.s[k]) * x, None)
            torch.testing.assert_close(mean, float(grid.b[k]) * x, rtol=1e-4, atol=1e-4)
            assert (variance == grid.v[k]).all()

    @given(st.integers(2, 200))
    def test_brownian_motion(self, n_steps):
        """In W_t = sqrt(t) x: equal steps h of time, kernels of a bridge, and mean W + h (S_W + W / t), variance h."""
        grid = GRIDS["pis"](n_steps, 3.0)
        t = grid.a.double() ** 2
        h = (1 - t[0]) / n_steps
        torch.testing.assert_close(t.diff(), h.expand(n_steps), rtol=1e-3, atol=1e-6)
        now, later = t[:-1], t[1:]
        torch.testing.assert_close((now / later).sqrt() * grid.b.double(), now / later, rtol=1e-4, atol=0)
        torch.testing.assert_close(now * grid.v.double(), now * h / later, rtol=1e-3, atol=1e-9)
        x, noise = torch.randn(2, 1, dtype=torch.float64, generator=generator()).expand(2, n_steps)
        mean, variance = grid.keep.double() * x - grid.gain.double() * noise, grid.v.double()
        score = -noise / grid.s[:-1].double() / now.sqrt()  # of W_t
        w = now.sqrt() * x
        torch.testing.assert_close(later.sqrt() * mean, w + h * (score + w / now), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(later * variance, h.expand(n_steps), rtol=1e-3, atol=1e-7)

    @given(st.integers(2, 200))
    def test_exponential_integrator(self, n_steps):
        """b x + 2 (1 - b) (x + S), with alpha = 1 - b^2 falling as the fourth power of a cosine."""
        grid = GRIDS["dds"](n_steps, 3.0)
        x, noise = torch.randn(2, 1, dtype=torch.float64, generator=generator()).expand(2, n_steps)
        b, score = grid.b.double(), -noise / grid.s[:-1].double()
        expected = b * x + 2 * (1 - b) * (x + score)
        mean = grid.keep.double() * x - grid.gain.double() * noise
        torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-4)
        phase = 0.5 * np.pi * (np.arange(n_steps) / n_steps + 0.008) / 1.008
        np.testing.assert_allclose((grid.v / grid.v[0]).numpy(), (np.cos(phase) / np.cos(phase[0])) ** 4, rtol=1e-4)

    @pytest.mark.parametrize("name", GRIDS)
    def test_levels_are_computed_in_double_precision(self, name):
        """Of which differences are taken, and products over all steps."""
        assert GRIDS[name](8, 3.0)._log_snr.dtype == torch.float64

    def test_dds_is_not_the_time_reversal(self):  # negative control
        reversal, integrator = GRIDS["dis"](8, 3.0), GRIDS["dds"](8, 3.0)
        assert torch.allclose(reversal.keep, 1 / reversal.b) and not torch.allclose(integrator.keep, 1 / integrator.b)


@each
class TestPathWeights:
    """E[w] = Z whatever the network says, with any step, reference and variance."""

    n = 100_000

    def z_score(self, reference, learned_variance, langevin, spoil=False):
        """Of the mean weight about Z; the weights' standard deviation is measured below 3, skewness below 20."""
        scale, sd = (0.0003, 0.95) if langevin else (0.003, 0.7)  # scores of coarse steps are strong
        model = model_of(reference, scale, learned_variance, langevin, seed=1)
        target = gaussian(0.05 * MEAN if langevin else MEAN, sd * torch.ones(2))
        _, log_weights, states = paths(model.requires_grad_(False), target, self.n, 6, seed=2)
        if spoil:  # the noising kernels of another step
            log_weights = log_weights - 0.05 * (states[0].double() ** 2).sum(1)
        w = (log_weights - LOG_Z).exp()
        assert w.std() < 3
        return float((w.mean() - 1) / w.std() * self.n**0.5)

    @pytest.mark.parametrize("langevin", [False, True])
    @pytest.mark.parametrize("learned_variance", [False, True])
    def test_untrained(self, reference, learned_variance, langevin):  # a bias of 6 % of Z would be found
        assert abs(self.z_score(reference, learned_variance, langevin)) < Z

    def test_a_mistake_is_found(self, reference):  # negative control
        assert abs(self.z_score(reference, False, False, spoil=True)) > Z

    def test_exact_for_the_prior(self, reference):
        """Untrained, every chain is the stationary one: constant weights for N(0, I)."""
        target = gaussian(torch.zeros(2), torch.ones(2))
        _, log_weights, _ = paths(model_of(reference).requires_grad_(False), target, 500, 7)
        torch.testing.assert_close(log_weights, torch.full_like(log_weights, LOG_Z), rtol=0, atol=1e-3)


@each
class TestPathKLLoss:
    @pytest.mark.parametrize("learned_variance", [False, True])
    def test_value(self, reference, learned_variance):
        model, target = model_of(reference, 0.02, learned_variance), gaussian()
        loss = PathKLLoss(model, target, 5, 300, generator(3))(0)
        _, log_weights, _ = paths(model, target, 300, 5, seed=3)
        assert loss.item() == pytest.approx(-log_weights.mean().item(), rel=1e-5)

    @pytest.mark.parametrize("learned_variance", [False, True])
    def test_gradient_is_that_of_the_value(self, reference, learned_variance):
        """Against central differences along a random direction, without the score in the control."""
        model, target = model_of(reference, 0.02, learned_variance), gaussian()
        parameters = list(model.network.body.output.parameters())
        directions = [torch.randn(p.shape, generator=generator(5)) for p in parameters]

        def value(step):
            for p, u in zip(parameters, directions, strict=True):
                p.data += step * u
            result = -paths(model, target, 2000, 5, seed=3)[1].mean().item()
            for p, u in zip(parameters, directions, strict=True):
                p.data -= step * u
            return result

        PathKLLoss(model, target, 5, 2000, generator(3))(0).backward()
        slope = sum(float((p.grad * u).sum()) for p, u in zip(parameters, directions, strict=True))
        assert slope == pytest.approx((value(1e-3) - value(-1e-3)) / 2e-3, rel=0.02)

    def test_is_least_for_the_exact_sampler(self, reference):
        """At log Z of N(0, I) the untrained chain is exact; a perturbed one has to be worse."""
        target = gaussian(torch.zeros(2), torch.ones(2))
        exact = PathKLLoss(model_of(reference), target, 5, 2000, generator())(0).item()
        worse = PathKLLoss(model_of(reference, 0.05), target, 5, 2000, generator())(0).item()
        assert exact == pytest.approx(-LOG_Z, abs=1e-3) and worse > exact + 0.01

    @pytest.mark.parametrize("loss", PATH_LOSSES)
    def test_descends(self, reference, loss):
        model, target = model_of(reference), gaussian()
        loss_fn = PATH_LOSSES[loss](model, target, 8, 256, generator())
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        values = []
        for iteration in range(120):
            optimizer.zero_grad()
            value = loss_fn(iteration)
            value.backward()
            optimizer.step()
            values.append(value.item() + (LOG_Z if loss == "kl" else 0.0))
        assert np.mean(values[-10:]) < 0.5 * np.mean(values[:10])


def test_the_gradient_of_the_kl_is_half_that_of_the_log_variance(monkeypatch):
    """On trajectories of the sampler itself, in expectation (Richter et al. 2020): 20 000 paths, a few per cent."""
    monkeypatch.setattr(losses, "_winsorise", lambda log_weights: log_weights - log_weights.mean())
    gradients = {}
    for loss in (PathKLLoss, LogVarianceLoss):
        model = model_of("dis", 0.02)
        options = {} if loss is PathKLLoss else {"n_gradient_steps": 4}
        loss(model, gaussian(), 4, 20_000, generator(1), **options)(0).backward()
        gradients[loss] = torch.cat([p.grad.flatten() for p in model.network.body.output.parameters()])
    kl, log_variance = gradients[PathKLLoss], 0.5 * gradients[LogVarianceLoss]
    assert (kl - log_variance).norm() < 0.1 * kl.norm()
    assert (kl - 2 * log_variance).norm() > 0.5 * kl.norm()  # negative control


class TestNowhere:
    def test_paths_outside_the_support_are_left_out(self):
        energy = Energy(
            lambda x: torch.where(x[:, 0] > 0, 0.5 * x.square().sum(1), torch.inf), 2, generator=generator()
        )
        target, model = StandardizedTarget(energy, Standardization(2, full=False)), model_of("dis", 0.01)
        loss = PathKLLoss(model, target, 4, 200, generator())(0)
        loss.backward()
        assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


TARGET = targets.Gaussian([0.5, -0.3], [[0.5, 0.2], [0.2, 0.4]])


@each
@pytest.mark.parametrize("loss", PATH_LOSSES)
class TestEstimator:
    """Short fits from the prior, as published, and after the pilot: right for every number of steps."""

    def test_log_evidence(self, reference, loss):
        with_pilot = (reference, loss) in (("dds", "kl"), ("pis", "log_variance"))
        start = dataclasses.replace(START, n_particles=1000) if with_pilot else Prior(n_particles=1000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sampler = DiffusionSampler(
                2, start=start, n_steps=16, reference=reference, max_iter=40, random_state=0,
                loss=PathLoss(loss, 0.2, 256, training=Training(n_judged=1000)),
                network=Control(32, 2, "learned" if with_pilot else "fixed"),
            ).fit(TARGET)  # fmt: skip
        for n_steps in (None, 9):
            W = sampler.sample_weighted(4000, n_steps, random_state=1)
            assert W.is_bound and W.pareto_k < 0.7 and W.ess > 400
            assert abs(W.log_evidence) < Z * W.log_evidence_se
            assert W.elbo < Z * W.elbo_se
        assert sampler.n_grad_evals_ > 0 and sampler.n_iter_ == 40

    def test_round_trip(self, reference, loss):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sampler = DiffusionSampler(
                2,
                start=Prior(200),
                n_steps=4,
                network=Control(16, langevin=False),
                reference=reference,
                loss=PathLoss(loss, training=Training(n_judged=500)),
                max_iter=5,
                random_state=0,
            ).fit(TARGET)
        again = pickle.loads(pickle.dumps(sampler))
        np.testing.assert_array_equal(again.sample(5, random_state=0), sampler.sample(5, random_state=0))


def test_kl_needs_a_gradient():
    with pytest.raises(ValueError, match="loss='kl' follows the gradient"):
        DiffusionSampler(2, loss="kl").fit(lambda x: 0.5 * np.square(np.asarray(x)).sum(1))


@pytest.mark.parametrize("params", [{"reference": "ddpm"}, {"loss": "reverse"}])
def test_unknown_options(params):
    with pytest.raises(ValueError, match=next(iter(params))):
        DiffusionSampler(2, **params).fit(TARGET)
