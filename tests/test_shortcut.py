"""The step map: exact at its boundary, invertible at every step size, self-consistent where it should be."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skcds import Control, Residual
from skcds.density.energy import Energy
from skcds.density.standardize import Standardization, StandardizedTarget
from skcds.estimators.networks import shortcut_model
from skcds.models.networks import seeded
from skcds.models.process import LOG_SNR_MIN, noise_levels
from skcds.models.shortcut import DyadicSteps, ShortcutModel
from skcds.train.objectives.self_consistency import SelfConsistencyLoss
from skcds.train.particles import Population

N, LOG_SNR_MAX = 16, 4.0


def make_model(network="coupling", d=2, scale=0.3, seed=0, n_steps=N):
    """A model whose output layers, which start at zero, are perturbed."""
    with seeded(seed):
        model = ShortcutModel(network, n_steps, d, LOG_SNR_MAX, True, 16, 2, network == "coupling", False, 16, 2)
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if hasattr(module, "output"):
            module.output.weight.data = scale * torch.randn(module.output.weight.shape, generator=generator)
    return model.requires_grad_(False)


def normal(n, d=2, seed=1):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def gaussian_target(d=2, sd=1.0):
    """The density exp(-x^2 / 2 sd^2)."""
    energy = Energy(lambda x: 0.5 * ((x / sd) ** 2).sum(1), d, generator=torch.Generator().manual_seed(0))
    return StandardizedTarget(energy, Standardization(d))


each_network = pytest.mark.parametrize("network", ["coupling", "residual"])


class TestDyadicSteps:
    @given(n_steps=st.sampled_from([1, 2, 4, 8, 16]))
    def test_equal_steps_cover_the_grid(self, n_steps):
        pairs = DyadicSteps(N, LOG_SNR_MAX).pairs(n_steps)
        assert len(pairs) == n_steps
        assert pairs[0][0] == LOG_SNR_MIN and pairs[-1][1] == torch.inf
        assert all(a[1] == b[0] for a, b in itertools.pairwise(pairs))

    @given(seed=st.integers(0, 2**31 - 1), first=st.integers(0, 2))
    def test_drawn_steps_are_legal(self, seed, first):
        start, size = DyadicSteps(N, LOG_SNR_MAX).draw(200, torch.Generator().manual_seed(seed), first)
        assert (size >= 2**first).all() and (N % size == 0).all()
        assert (start % size == 0).all() and (start + size <= N).all()

    def test_every_step_is_drawn(self):
        """All 31 steps of the grid; misses one with probability below 31 (1 - 1/80)^4000 = 5e-21."""
        start, size = DyadicSteps(N, LOG_SNR_MAX).draw(4000, torch.Generator().manual_seed(0))
        assert len(set(zip(start.tolist(), size.tolist(), strict=True))) == 2 * N - 1

    def test_levels_are_those_of_the_chain(self):
        model = make_model()
        assert torch.equal(model.steps.log_snr[:-1], model.grid(N).log_snr)


@each_network
class TestStepMap:
    @given(index=st.integers(0, N))
    def test_no_step_is_the_identity(self, network, index):
        model, x = make_model(network), normal(20)
        level = model.steps.log_snr[index].expand(20)
        torch.testing.assert_close(model.map(x, level, level), x, atol=2e-6, rtol=2e-6)  # rounding of the splines

    @pytest.mark.parametrize("n_steps", [1, 2, 4, 16])
    def test_log_det_of_the_walk(self, network, n_steps):
        model, x = make_model(network), normal(6)
        _, log_det = model._walk_and_log_det(x, n_steps)
        jacobian = torch.stack(
            [torch.autograd.functional.jacobian(lambda r: model.walk(r[None], n_steps)[0], row) for row in x]
        )
        torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobian)[1], atol=1e-4, rtol=1e-4)

    def test_walk_in_one_step_is_the_map_to_the_target(self, network):
        model, x = make_model(network), normal(20)
        assert torch.equal(model.walk(x, 1), model.map(x, model.start()))


class TestCoupling:
    @pytest.mark.parametrize("index", [4, 8, N])
    def test_log_prob_inverts_the_map(self, index):
        model, x = make_model(), normal(50)
        to = model.steps.log_snr[index].expand(50)
        z, log_det = model.map.call_and_log_det(x, model.start(), to)
        log_prior = -0.5 * (x**2).sum(1) - torch.log(torch.tensor(2 * torch.pi))
        torch.testing.assert_close(model.log_prob(z, to), log_prior - log_det, atol=1e-3, rtol=1e-3)

    @pytest.mark.parametrize("index", [4, N])
    def test_log_prob_integrates_to_one(self, index):
        model, side = make_model(scale=0.1), torch.linspace(-7, 7, 281)
        grid = torch.cartesian_prod(side, side)
        density = model.log_prob(grid, model.steps.log_snr[index].expand(len(grid))).exp()
        assert density.sum() * (side[1] - side[0]) ** 2 == pytest.approx(1, abs=5e-3)

    @pytest.mark.parametrize("n_steps", [1, 2, 8])
    def test_weights_have_expectation_z(self, n_steps):
        """False alarms: 1e-8; a determinant with the wrong sign is found."""
        model, latent = make_model(scale=0.05), normal(40_000)
        log_weight = model.call_and_log_weight(latent, gaussian_target(), n_steps)[1]
        w = log_weight.exp() / (2 * torch.pi)
        assert abs(w.mean() - 1) < 5.7 * w.std() / 200
        wrong = (log_weight - 2 * model._walk_and_log_det(latent, n_steps)[1]).exp() / (2 * torch.pi)
        assert abs(wrong.mean() - 1) > 5.7 * wrong.std() / 200


class TestLeap:
    @pytest.mark.parametrize("n_steps, size, first", [(2, 2, 14), (4, 2, 10), (8, 2, 2), (16, 1, 1)])
    def test_levels(self, n_steps, size, first):
        """The partial map is the first of n steps, the others are of equal size and end at the target."""
        model = make_model()
        level, grid = model.partial_step(n_steps)
        assert grid.n_steps == n_steps - 1 and first + size * (n_steps - 1) == N
        assert level == grid.log_snr[0] == model.steps.log_snr[first]
        assert torch.equal(grid.log_snr, model.steps.log_snr[first:N:size])

    def test_path_weights_have_expectation_z(self):
        """False alarms: 1e-8; the density of the prior in place of that of the partial map is found."""
        model, target, generator = make_model(scale=0.12), gaussian_target(sd=0.8), torch.Generator().manual_seed(3)
        latent = normal(40_000)
        z, log_ratio = model.partial_map_and_simulate(
            latent, 2, target, lambda k: torch.randn(latent.shape, generator=generator)
        )
        w = (log_ratio + target.log_prob(z)).exp() / (2 * torch.pi * 0.64)
        assert w.std() < 5  # so that the bound holds
        assert abs(w.mean() - 1) < 5.7 * w.std() / 200
        level = model.partial_step(2)[0].expand(len(latent))
        x, log_det = model.map.call_and_log_det(latent, model.start(), level)
        wrong = w * (0.5 * (x**2 - latent**2).sum(1) - log_det).exp()
        assert abs(wrong.mean() - 1) > 5.7 * wrong.std() / 200


class TestResidual:
    @pytest.mark.parametrize("index", range(N))
    def test_finest_steps_are_the_control(self, index):
        """A step of the map equals a step of the probability-flow ODE with the noise that the control reads off it."""
        model, x = make_model("residual"), normal(20)
        level, to = (model.steps.log_snr[i].expand(20) for i in (index, index + 1))
        noise, variance = model.noise(x, level, None)
        (a, s), (a_to, s_to) = ((t[:, None] for t in noise_levels(at)) for at in (level, to))
        assert variance is None
        torch.testing.assert_close(
            model.map(x, level, to), a_to * (x - s * noise) / a + s_to * noise, atol=2e-4, rtol=2e-4
        )

    def test_one_network(self):
        names = {name.split(".")[0] for name, _ in make_model("residual").named_parameters()}
        assert names == {"map"}

    @pytest.mark.parametrize("network, hidden", [(Residual(hidden_features=24, n_layers=3), 24), (Residual(), 20)])
    def test_sizes_are_those_of_the_network_or_else_of_the_control(self, network, hidden):
        control = Control(hidden_features=20, n_layers=3)
        model = shortcut_model(network, control, 4, Standardization(2), LOG_SNR_MAX, langevin=False)
        assert model.map.body.input.out_features == hidden and len(model.map.body.hidden) == 2


class TestSelfConsistencyLoss:
    def loss(self, model, n=400):
        target, generator = gaussian_target(model.n_features), torch.Generator().manual_seed(0)
        population = Population(target, normal(1000, model.n_features), generator)
        return SelfConsistencyLoss(model, target, population.noised, n, generator)(0)

    def test_nothing_to_learn_for_the_identity(self):
        """On N(0, I) the control starts exact and the map as the flow, the identity; Heun's error falls with N."""
        coarse, fine = (self.loss(make_model(scale=0.0, n_steps=n)) for n in (16, 128))
        assert fine < 1e-5 < coarse < 2e-3

    def test_inconsistent_map_is_found(self):
        assert self.loss(make_model()) > 0.05

    def test_residual_map_learns_from_two_steps_on(self):
        model = make_model("residual", scale=0.0)
        model.requires_grad_(True)
        loss = self.loss(model)
        loss.backward()
        assert loss > 0  # cos x alone is no solution of the ODE
        assert model.map.body.output.weight.grad.abs().sum() > 0

    def test_heun_step_is_the_models(self):
        model, x = make_model(), normal(30)
        target = gaussian_target()
        loss = SelfConsistencyLoss(model, target, None, 1, None)
        flow = model.flow(x, model.grid(N), target, keep=True)
        for k in (0, 5, N - 1):
            level, to = (model.steps.log_snr[i].expand(30) for i in (k, k + 1))
            torch.testing.assert_close(loss._heun_step(flow[k], level, to), flow[k + 1], atol=1e-4, rtol=1e-4)


def test_goals_come_from_an_exponential_average():
    """The latest weights count for a twentieth; in a plain mean of two they would for a half."""
    model = make_model()
    loss = SelfConsistencyLoss(model, None, None, 1, None)
    first = [parameter.clone() for parameter in model.map.parameters()]
    loss.averaged.update_parameters(model.map)
    for parameter in model.map.parameters():
        parameter.data += 1
    loss.averaged.update_parameters(model.map)
    for averaged, parameter in zip(loss.averaged.parameters(), first, strict=True):
        torch.testing.assert_close(averaged, parameter + 0.05)
