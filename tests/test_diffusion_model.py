"""The diffusion model's path weights by quadrature and statistics, its kernels, and its flow against closed forms.

Statistical bounds hold for any seed: each states the probability at which it fails a correct implementation.
"""

import math

import numpy as np
import pytest
import torch

from skcds.density.energy import Energy
from skcds.density.standardize import Standardization, StandardizedTarget
from skcds.models.diffusion import DiffusionModel
from skcds.models.networks import GatedMLP, ResidualMLP, seeded
from skcds.models.process import LOG_SNR_MIN, noise_levels, reverse_kernel

LOG_SNR_MAX, LOG_Z = 3.0, 0.9
Z = 5.5  # two-sided tail of the normal distribution: 4e-8; with the skewness of the weights here below 1e-6
KINDS = [(False, False), (False, True), (True, False), (True, True)]  # langevin, learned variance

parametrize_kinds = pytest.mark.parametrize("langevin, learned_variance", KINDS)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_model(langevin, learned_variance, d=1, scale=0.02, seed=0):
    """A model that is not the identity: the first step multiplies what the network says by up to s / a = 20.

    The variance is raised, so that the chain's tails are no lighter than the target's.
    """
    with seeded(seed):
        model = DiffusionModel(d, LOG_SNR_MAX, False, 16, 2, langevin, learned_variance)
    source = generator(seed)
    for part in model.modules():
        if isinstance(part, (GatedMLP, ResidualMLP)):
            for parameter in part.output.parameters():
                parameter.data += scale * torch.randn(parameter.shape, generator=source)
    if learned_variance:
        model.network.body.output.bias.data[-d:] += 0.2
    return model.requires_grad_(False)


def normal_target(mean=0.01, sd=0.96, d=1):
    """exp(LOG_Z) N(mean, sd^2 I)."""

    def energy(x):
        return 0.5 * (((x - mean) / sd) ** 2).sum(1) + d * (math.log(sd) + 0.5 * math.log(2 * math.pi)) - LOG_Z

    return StandardizedTarget(Energy(energy, d, generator=generator()), Standardization(d, full=False))


def log_weights(model, target, x, noises, spoil=None):
    """Log path weights of given draws, and what a mistake would make of them."""
    grid = model.grid(len(noises))
    path, log_ratio = model.simulate(x, grid, target, noises.__getitem__, keep=True)
    log_w = log_ratio + target.log_prob(path[-1])
    if spoil == "no variance term":
        for k in range(grid.n_steps):
            variance = reverse_kernel(grid, k, path[k], *model.noise(path[k], grid.log_snr[k], target))[1]
            log_w -= 0.5 * (variance / grid.v[k]).log().sum(1).double()
    if spoil == "wrong prior":
        normal = torch.distributions.Normal
        log_w += (normal(0, 1).log_prob(x.double()) - normal(0, 1.2).log_prob(x.double())).sum(1)
    if spoil == "wrong temperature":
        log_w += 0.05 * target.log_prob(path[-1])
    return log_w


def quadrature(n_steps):
    """Gauss-Hermite nodes of the prior draw and of the noise of every step in one dimension, and their weights."""
    nodes, weights = np.polynomial.hermite_e.hermegauss({1: 80, 2: 44}[n_steps])
    grids = np.meshgrid(*[nodes] * (n_steps + 1), indexing="ij")
    mass = np.prod(np.meshgrid(*[weights / weights.sum()] * (n_steps + 1), indexing="ij"), 0).ravel()
    x, *noises = (torch.tensor(grid.ravel()[:, None], dtype=torch.float32) for grid in grids)
    return x, noises, torch.tensor(mass)


class TestByQuadrature:
    """E[w] = Z whatever the network, and E[log w] <= log Z: in one dimension, to 1e-4 of Z."""

    def evidence(self, model, n_steps, spoil=None):
        x, noises, mass = quadrature(n_steps)
        log_w = log_weights(model, normal_target(), x, noises, spoil)
        return float(mass @ (log_w - LOG_Z).exp()), float(mass @ log_w)

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("n_steps", [1, 2])
    @parametrize_kinds
    def test_evidence_and_bound(self, langevin, learned_variance, n_steps, seed):
        evidence, bound = self.evidence(random_model(langevin, learned_variance, seed=seed), n_steps)
        assert evidence == pytest.approx(1, abs=2e-4)
        assert bound < LOG_Z - 1e-3

    @pytest.mark.parametrize("n_steps", [1, 2])
    @pytest.mark.parametrize("spoil", ["no variance term", "wrong prior", "wrong temperature"])
    def test_a_mistake_is_found(self, spoil, n_steps):  # negative controls
        assert abs(self.evidence(random_model(False, True), n_steps, spoil)[0] - 1) > 1e-2


class TestByStatistics:
    n = 100_000

    def z_score(self, langevin, learned_variance, n_steps, spoil=None):
        """Of the mean weight about Z; the weights' standard deviation is measured below 1, their skewness below 20."""
        d, scale, sd = 2, *((0.002, 0.99) if langevin else (0.007, 0.96))
        model = random_model(langevin, learned_variance, d, scale, seed=n_steps)
        x, *noises = torch.randn(n_steps + 1, self.n, d, generator=generator(100 + n_steps))
        w = (log_weights(model, normal_target(sd=sd, d=d), x, noises, spoil) - LOG_Z).exp()
        assert w.std() < 1
        return float((w.mean() - 1) / w.std() * self.n**0.5)

    @pytest.mark.parametrize("n_steps", [1, 2, 5])
    @parametrize_kinds
    def test_evidence(self, langevin, learned_variance, n_steps):  # a bias of 4 % of Z would be found, often of 1 %
        assert abs(self.z_score(langevin, learned_variance, n_steps)) < Z

    @pytest.mark.parametrize("n_steps", [1, 2, 5])
    @pytest.mark.parametrize("spoil", ["no variance term", "wrong prior", "wrong temperature"])
    def test_a_mistake_is_found(self, spoil, n_steps):  # negative controls
        assert abs(self.z_score(False, True, n_steps, spoil)) > Z


class TestExactSampler:
    """Untrained, the chain is the exact reversal for N(0, I), with either variance."""

    @pytest.mark.parametrize("n_steps", [1, 2, 5, 50])
    @parametrize_kinds
    def test_weights_are_constant(self, langevin, learned_variance, n_steps):
        model = random_model(langevin, learned_variance, 3, scale=0.0)
        if learned_variance:
            model.network.body.output.bias.data.zero_()
        x, *noises = torch.randn(n_steps + 1, 500, 3, generator=generator())
        log_w = log_weights(model, normal_target(0.0, 1.0, 3), x, noises)
        torch.testing.assert_close(log_w, torch.full_like(log_w, LOG_Z), rtol=0, atol=1e-4)
        assert log_weights(model, normal_target(0.0, 0.9, 3), x, noises).std() > 0.1  # negative control

    @pytest.mark.parametrize("n_steps", [1, 5])
    def test_steps(self, n_steps):
        # x_{k+1} given x_k is N(b x_k, v I) in the stationary process
        model = random_model(False, False, 2, scale=0.0)
        grid = model.grid(n_steps)
        x, *noises = torch.randn(n_steps + 1, 10, 2, generator=generator())
        path, _ = model.simulate(x, grid, None, noises.__getitem__, keep=True)
        for k in range(n_steps):
            torch.testing.assert_close(path[k + 1], grid.b[k] * path[k] + grid.v[k].sqrt() * noises[k])


class TestSimulate:
    @pytest.mark.parametrize("n_steps", [1, 4])
    @parametrize_kinds
    def test_keep(self, langevin, learned_variance, n_steps):
        model, target = random_model(langevin, learned_variance, 2), normal_target(d=2)
        x, *noises = torch.randn(n_steps + 1, 20, 2, generator=generator())
        path, log_ratio = model.simulate(x, model.grid(n_steps), target, noises.__getitem__, keep=True)
        last, same = model.simulate(x, model.grid(n_steps), target, noises.__getitem__)
        assert path.shape == (n_steps + 1, 20, 2) and log_ratio.dtype == torch.float64
        assert torch.equal(path[0], x) and torch.equal(path[-1], last) and torch.equal(log_ratio, same)

    @parametrize_kinds
    def test_step_log_prob_is_what_it_accumulates(self, langevin, learned_variance):
        model, target, n_steps = random_model(langevin, learned_variance, 2, scale=0.05), normal_target(d=2), 4
        grid = model.grid(n_steps)
        x, *noises = torch.randn(n_steps + 1, 50, 2, generator=generator())
        path, log_ratio = model.simulate(x, grid, target, noises.__getitem__, keep=True)
        k = torch.arange(n_steps).repeat_interleave(50)
        starts, ends = path[:-1].flatten(0, 1), path[1:].flatten(0, 1)
        score = target.log_prob_and_score(starts)[1] if model.needs_score else None
        forward = model.step_log_prob(grid, k, starts, ends, score).double() - math.log(2 * math.pi)
        b, v = grid.b.double()[k, None], grid.v.double()[k, None]
        backward = torch.distributions.Normal(b * ends.double(), v.sqrt()).log_prob(starts.double()).sum(1)
        prior = torch.distributions.Normal(0, 1).log_prob(x.double()).sum(1)
        total = (backward - forward).reshape(n_steps, 50).sum(0) - prior
        torch.testing.assert_close(log_ratio, total, rtol=1e-4, atol=1e-3)  # float32 states, divided by v

    @parametrize_kinds
    def test_step_log_prob_is_differentiable(self, langevin, learned_variance):
        model = random_model(langevin, learned_variance, 2).requires_grad_(True)
        grid, k = model.grid(3), torch.tensor([0, 1, 2])
        x, x_next, score = torch.randn(3, 3, 2, generator=generator())
        log_prob = model.step_log_prob(grid, k, x, x_next, score if langevin else None)
        assert log_prob.shape == (3,)
        log_prob.sum().backward()
        assert all(p.grad.any() for p in model.network.parameters())
        one = model.step_log_prob(grid, k[1:2], x[1:2], x_next[1:2], score[1:2] if langevin else None)
        torch.testing.assert_close(one, log_prob[1:2])

    def test_has_no_graph_and_leaves_the_global_state_alone(self):
        model, target = random_model(True, True, 2).requires_grad_(True), normal_target(d=2)
        state, source = torch.get_rng_state(), generator()
        x = torch.randn(10, 2, generator=source)
        end, log_ratio = model.simulate(
            x, model.grid(3), target, lambda k: torch.randn(10, 2, generator=source), keep=True
        )
        flow = model.flow(x, model.grid(3), target)
        assert not end.requires_grad and not log_ratio.requires_grad and not flow.requires_grad
        assert torch.equal(torch.get_rng_state(), state)

    @pytest.mark.parametrize("langevin", [False, True])
    def test_energy_evaluations(self, langevin):
        model, target, n_steps, n = random_model(langevin, True, 2), normal_target(d=2), 5, 12
        x, *noises = torch.randn(n_steps + 1, n, 2, generator=generator())
        before = target.energy.n_energy_evals
        model.simulate(x, model.grid(n_steps), target, noises.__getitem__)
        assert target.energy.n_energy_evals - before == langevin * n_steps * n
        before = target.energy.n_grad_evals
        model.flow(x, model.grid(n_steps), target)
        assert target.energy.n_grad_evals - before == langevin * (2 * n_steps - 1) * n  # eps is 0 at the target

    def test_noise_source_is_asked_once_a_step(self):
        asked = []

        def source(k):
            asked.append(k)
            return torch.zeros(3, 1)

        model = random_model(False, False)
        model.simulate(torch.zeros(3, 1), model.grid(4), None, source)
        assert asked == [0, 1, 2, 3]

    def test_one_level_or_many(self):
        model, x = random_model(False, True, 2), torch.randn(6, 2, generator=generator())
        one, many = (model.noise(x, level, None) for level in (torch.tensor(0.3), torch.full((6,), 0.3)))
        for ours, theirs in zip(one, many, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)

    def test_config_rebuilds_the_model(self):
        model, target = random_model(True, True, 2), normal_target(d=2)
        copy = DiffusionModel(**model.config)
        copy.load_state_dict(model.state_dict())
        x = torch.randn(6, 2, generator=generator())
        assert torch.equal(copy.flow(x, copy.grid(3), target), model.flow(x, model.grid(3), target))


class TestNoiseBack:
    @pytest.mark.parametrize("reference", ["dis", "dds", "pis"])
    @parametrize_kinds
    def test_has_the_ratio_of_the_same_path_simulated(self, langevin, learned_variance, reference):
        model, target, n_steps = random_model(langevin, learned_variance, 2, scale=0.05), normal_target(d=2), 4
        model.reference = reference
        grid = model.grid(n_steps)
        x, *noises = torch.randn(n_steps + 1, 50, 2, generator=generator())
        path, log_ratio = model.simulate(x, grid, target, noises.__getitem__, keep=True)
        backward = [(path[k] - grid.b[k] * path[k + 1]) / grid.v[k].sqrt() for k in range(n_steps)]
        same_path, same_ratio = model.noise_back(path[-1], grid, target, backward.__getitem__, keep=True)
        torch.testing.assert_close(same_path, path, rtol=0, atol=1e-4)
        torch.testing.assert_close(same_ratio, log_ratio, rtol=1e-4, atol=2e-3)  # float32 states, divided by v
        first, ratio = model.noise_back(path[-1], grid, target, backward.__getitem__)
        assert torch.equal(first, same_path[0]) and torch.equal(ratio, same_ratio)
        backward[1] = backward[1] + 0.5  # negative control: another path
        _, other = model.noise_back(path[-1], grid, target, backward.__getitem__)
        assert (other - log_ratio).abs().max() > 0.05

    @parametrize_kinds
    def test_reciprocal_weights_have_mean_one_over_the_evidence(self, langevin, learned_variance):
        """Of paths from exact draws; a bias of 3 % would be found. The negative control: a prior of another scale."""
        n, d, sd = 100_000, 2, 0.9
        model, target = (
            random_model(langevin, learned_variance, d, 0.002 if langevin else 0.007),
            normal_target(0, sd, d),
        )
        z, *noises = torch.randn(4, n, d, generator=generator(7))
        first, log_ratio = model.noise_back(sd * z, model.grid(3), target, noises.__getitem__)
        inverse = (LOG_Z - log_ratio - target.log_prob(sd * z)).exp()
        assert inverse.std() < 1
        assert abs(float((inverse.mean() - 1) / inverse.std() * n**0.5)) < Z
        spoiled = inverse * (0.05 * (first**2).sum(1)).exp()
        assert abs(float((spoiled.mean() - 1) / spoiled.std() * n**0.5)) > Z

    def test_evaluates_the_energy_where_the_control_reads_it(self):
        target, x = normal_target(d=2), torch.zeros(12, 2)
        for langevin in (False, True):
            before = target.energy.n_energy_evals
            model = random_model(langevin, True, 2)
            model.noise_back(x, model.grid(5), target, lambda k: torch.zeros(12, 2))
            assert target.energy.n_energy_evals - before == langevin * 5 * 12


MEAN = torch.tensor([0.7, -0.4], dtype=torch.float64)
COV = torch.tensor([[0.5, 0.3], [0.3, 1.2]], dtype=torch.float64)


def power(matrix, exponent):
    """Power of a symmetric positive definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ (values**exponent).diag() @ vectors.T


class ExactNetwork(torch.nn.Module):
    """The mean of eps given x_t for the target N(MEAN, COV)."""

    langevin = False

    def forward(self, x, log_snr, score):
        a, s = (t.double() for t in noise_levels(log_snr[0]))
        noise = s * (x.double() - a * MEAN) @ torch.linalg.inv(a**2 * COV + s**2 * torch.eye(2))
        return noise.to(x.dtype), None


def exact_model(log_snr_max=12.0):
    with seeded(0):
        model = DiffusionModel(2, log_snr_max, False, 4, 1, False, False)
    model.network = ExactNetwork()
    return model


def exact_states(z, log_snr):
    """Where the exact flow of N(MEAN, COV) carries the quantiles z."""
    a, s = (t.double() for t in noise_levels(log_snr))
    return a * MEAN + z @ power(a**2 * COV + s**2 * torch.eye(2), 0.5)


class TestFlow:
    z = torch.randn(200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def error(self, n_steps, end=math.inf):
        model = exact_model()
        start = exact_states(self.z, torch.tensor(LOG_SNR_MIN))
        return float(
            (model.flow(start, model.grid(n_steps), None) - exact_states(self.z, torch.tensor(end))).abs().max()
        )

    def test_lands_on_the_target(self):
        # the last step's error is of the order of the noise left at its start: s^2 / sd^2 = 1e-5 of a deviation
        assert self.error(512) < 1e-3
        assert self.error(512, end=2.0) > 0.03  # negative control: another law

    def test_is_of_second_order(self):
        coarse, middle, fine = (self.error(n) for n in (32, 64, 128))
        assert middle < 0.35 * coarse and fine < 0.35 * middle  # Euler's method would halve the error

    def test_intermediate_states(self):
        model = exact_model()
        grid = model.grid(256)
        path = model.flow(exact_states(self.z, grid.log_snr[0]), grid, None, keep=True)
        assert path.shape == (257, 200, 2)
        for k in (0, 64, 128, 192, 255):
            torch.testing.assert_close(path[k], exact_states(self.z, grid.log_snr[k]), rtol=0, atol=1.5e-3)

    def test_quantiles_from_the_prior(self):
        # the prior end differs from N(0, I) by a MEAN, with a = .05, and a^2 = .0025 of the variance
        model = exact_model()
        end = model.flow(self.z, model.grid(256), None)
        truth = MEAN + self.z @ power(COV, 0.5)
        a, s = (t.double() for t in noise_levels(torch.tensor(LOG_SNR_MIN)))
        start = power(a**2 * COV + s**2 * torch.eye(2), -0.5)
        mismatch = ((self.z - a * MEAN) @ start - self.z) @ power(COV, 0.5)
        torch.testing.assert_close(end, truth + mismatch, rtol=0, atol=1.5e-3)
        assert mismatch.abs().max() < 0.1

    @parametrize_kinds
    def test_keep(self, langevin, learned_variance):
        model, target = random_model(langevin, learned_variance, 2), normal_target(d=2)
        x = torch.randn(20, 2, generator=generator())
        path = model.flow(x, model.grid(4), target, keep=True)
        assert path.shape == (5, 20, 2) and torch.equal(path[0], x)
        assert torch.equal(path[-1], model.flow(x, model.grid(4), target))

    @pytest.mark.parametrize("langevin", [False, True])
    def test_untrained_is_exact_for_a_standard_normal(self, langevin):
        # the flow of N(0, I) stands still; the last step, with eps = s x at its start and 0 at its end, is not as fine
        model = random_model(langevin, False, 3, scale=0.0)
        x, (a, s) = torch.randn(20, 3, generator=generator()), noise_levels(torch.tensor(LOG_SNR_MAX))
        end = model.flow(x, model.grid(512), normal_target(0.0, 1.0, 3))
        torch.testing.assert_close(end, (1 - s**2 / 2) / a * x, rtol=2e-4, atol=1e-6)
        torch.testing.assert_close(end, x, rtol=float(s**4), atol=1e-6)


def test_a_path_that_leaves_its_numbers_has_no_weight(monkeypatch):
    """The first of five is sent off by the network; without a check its weight is NaN, and no one's is of use."""
    model, target, source = random_model(False, False), normal_target(), generator()
    noise = model.noise

    def sends_off(*arguments):
        eps, variance = noise(*arguments)
        eps[0] = -3e38
        return eps, variance

    monkeypatch.setattr(model, "noise", sends_off)
    x = torch.randn(5, 1, generator=source)
    z, log_w = model.simulate_weighted(x, model.grid(8), target, lambda k: torch.randn(5, 1, generator=source))
    assert log_w[0] == -torch.inf and not z[0].isfinite().all()
    assert log_w[1:].isfinite().all()


@pytest.mark.parametrize("seed", range(5))
def test_paths_come_back_from_far_away(seed):
    """Wherever a step has led, and whatever the layers say: to less than a tenth of how far off they began.

    Layers that see states as far as they are make these grow by their square in each of 64 steps.
    """
    target, source = normal_target(d=2), generator(seed)
    model = random_model(True, True, d=2, scale=0.1, seed=seed)
    grid, x = model.grid(64), 1e4 * torch.randn(100, 2, generator=source)
    path, log_ratio = model.simulate(x, grid, target, lambda k: torch.randn(100, 2, generator=source), keep=True)
    assert path[-1].abs().max() < 0.1 * x.abs().max() and log_ratio.isfinite().all()
