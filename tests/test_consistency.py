"""Objectives of the one-step samplers against the exact flow of a Gaussian and explicit gradients.

Statistical bounds hold for any seed: each states the probability at which it fails a correct implementation.
"""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal

from skcds import Consistency
from skcds.density.energy import Energy
from skcds.density.standardize import Standardization, StandardizedTarget
from skcds.models.diffusion import DiffusionModel
from skcds.models.maps import OneStepModel
from skcds.models.networks import GatedMLP, ResidualMLP, seeded
from skcds.models.process import LOG_SNR_MIN, noise_levels
from skcds.train.objectives.consistency import ConsistencyLoss, TrajectoryBank, pseudo_huber
from skcds.train.objectives.likelihood import LikelihoodLoss, levels_to_target, truncated_weights
from skcds.train.objectives.reverse_kl import ReverseKLLoss

LOG_SNR_MAX = 8.0
MEAN, SD = torch.tensor([0.4, -0.8]), torch.tensor([0.5, 1.5])  # of the Gaussian target
Z = 5.5  # two-sided tail of the normal distribution: 4e-8; with the skewness of these statistics below 1e-6


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_model(kind, d=2, scale=0.1, seed=0, **options):
    """A one-step model whose output layers, which start at zero, are perturbed."""
    with seeded(seed):
        model = OneStepModel(kind, d, LOG_SNR_MAX, False, hidden=16, n_layers=2, **options)
    source = generator(seed)
    for part in model.modules():
        if isinstance(part, (GatedMLP, ResidualMLP)):
            for parameter in part.output.parameters():
                parameter.data += scale * torch.randn(parameter.shape, generator=source)
    return model


class ExactNetwork(torch.nn.Module):
    """The mean of eps given x_t for N(MEAN, diag(SD^2)), or of a shifted one."""

    langevin = False

    def __init__(self, shift=0.0, mean=MEAN, sd=SD):
        super().__init__()
        self.mean, self.sd = mean + shift, sd

    def forward(self, x, log_snr, score):
        a, s = (t[:, None] for t in noise_levels(log_snr))
        return s * (x - a * self.mean) / ((a * self.sd) ** 2 + s**2), None


def exact_teacher(**options):
    with seeded(0):
        teacher = DiffusionModel(2, LOG_SNR_MAX, False, 4, 1, False, False)
    teacher.network = ExactNetwork(**options)
    return teacher


def quantiles(x, log_snr):
    """The exact flow keeps them: x_t in units of its law N(a MEAN, a^2 SD^2 + s^2)."""
    a, s = (t[:, None] for t in noise_levels(log_snr))
    return (x - a * MEAN) / ((a * SD) ** 2 + s**2).sqrt()


class ExactMap(torch.nn.Module):
    """The consistency map of the exact flow, to which an error can be added where there is noise."""

    def __init__(self, error=0.0):
        super().__init__()
        self.error = torch.nn.Parameter(torch.tensor(error))

    def forward(self, x, log_snr):
        return MEAN + SD * quantiles(x, log_snr) + self.error * noise_levels(log_snr)[1][:, None]


def gradient(module, loss):
    module.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten().clone() for p in module.parameters()])


class CountingTeacher:
    """Its n-th call of `flow` gives trajectories full of n."""

    n_features = 2

    def __init__(self):
        self.calls = 0

    def grid(self, n_steps):
        return exact_teacher().grid(n_steps)

    def flow(self, x, grid, target, keep):
        self.calls += 1
        return torch.full((grid.n_steps + 1, *x.shape), float(self.calls))


class TestTrajectoryBank:
    def test_holds_the_flow(self):
        teacher = exact_teacher()
        bank = TrajectoryBank(teacher, None, 8, 50, generator(3))
        assert bank.paths.shape == (9, 50, 2)
        assert torch.equal(bank.paths[0], torch.randn(50, 2, generator=generator(3)))
        assert torch.equal(bank.paths, teacher.flow(bank.paths[0], teacher.grid(8), None, keep=True))
        assert torch.equal(bank.log_snr, torch.cat([teacher.grid(8).log_snr, torch.tensor([torch.inf])]))

    @given(st.integers(1, 12), st.integers(1, 40), st.integers(0, 99), st.data())
    def test_draws_lie_on_one_trajectory(self, n_steps, n, seed, data):
        gap = data.draw(st.integers(1, n_steps))
        bank = TrajectoryBank(CountingTeacher(), None, n_steps, 7, generator(seed))
        step, row = torch.meshgrid(torch.arange(n_steps + 1), torch.arange(7), indexing="ij")
        bank.paths = torch.stack([step, row], 2).float()  # the state tells where it was
        x, level, x_near, level_near = bank.draw(n, gap)
        assert x.shape == x_near.shape == (n, 2) and level.shape == level_near.shape == (n,)
        assert torch.equal(x[:, 1], x_near[:, 1])
        assert torch.equal(x[:, 0] + gap, x_near[:, 0])
        assert torch.equal(level, bank.log_snr[x[:, 0].long()])
        assert torch.equal(level_near, bank.log_snr[x_near[:, 0].long()])
        assert (level[: n // 2] == LOG_SNR_MIN).all()

    def test_draws_reach_everything(self):
        # 2000 draws from 7 rows and 4 starts each: one is missed with probability 28 (1 - 1/28)^1000 < 1e-14
        bank = TrajectoryBank(CountingTeacher(), None, 6, 7, generator())
        step, row = torch.meshgrid(torch.arange(7), torch.arange(7), indexing="ij")
        bank.paths = torch.stack([step, row], 2).float()
        x = bank.draw(2000, 3)[0]
        assert len(x[1000:].unique(dim=0)) == 4 * 7 and len(x[:1000].unique(dim=0)) == 7

    def test_closed_form(self):
        # Heun's error is of second order in the spacing; so is what the deviations differ by
        def error(n_steps):
            bank = TrajectoryBank(exact_teacher(), None, n_steps, 200, generator())
            x, level, x_near, level_near = bank.draw(500, n_steps // 2)
            return (quantiles(x, level) - quantiles(x_near, level_near)).abs().max()

        assert error(128) < 0.35 * error(64) and error(256) < 5e-3

    @given(st.integers(1, 9), st.lists(st.integers(1, 9), max_size=12))
    def test_the_oldest_are_replaced(self, size, numbers):
        bank = TrajectoryBank(CountingTeacher(), None, 2, size, generator())
        expected, oldest = [1.0] * size, 0
        for call, n in enumerate(numbers, 2):
            n = min(n, size)
            bank.refresh(n)
            for i in range(n):
                expected[(oldest + i) % size] = float(call)
            oldest = (oldest + n) % size
        assert (bank.paths == torch.tensor(expected)[:, None]).all()

    def test_around_the_end(self):
        bank = TrajectoryBank(CountingTeacher(), None, 2, 5, generator())
        for expected in ([2, 2, 1, 1, 1], [2, 2, 3, 3, 1], [4, 2, 3, 3, 4], [4, 5, 5, 3, 4]):
            bank.refresh(2)
            assert bank.paths[0, :, 0].tolist() == expected

    def test_new_trajectories_are_new(self):
        bank = TrajectoryBank(exact_teacher(), None, 4, 6, generator())
        before = bank.paths.clone()
        bank.refresh(2)
        assert (bank.paths[:, :2] != before[:, :2]).any() and torch.equal(bank.paths[:, 2:], before[:, 2:])
        assert torch.equal(bank.paths, exact_teacher().flow(bank.paths[0], bank.grid, None, keep=True))

    def test_global_state_is_left_alone(self):
        state = torch.get_rng_state()
        TrajectoryBank(exact_teacher(), None, 4, 6, generator()).draw(5, 2)
        assert torch.equal(torch.get_rng_state(), state)


class RecordingBank:
    """One trajectory of two states, and what was asked of it."""

    def __init__(self, n_steps=16):
        self.grid, self.gaps, self.refreshed = SimpleNamespace(n_steps=n_steps), [], []

    def refresh(self, n):
        self.refreshed.append(n)

    def draw(self, n, gap):
        self.gaps.append(gap)
        x, x_near = torch.tensor([[1.0, 2.0]]).expand(n, 2), torch.tensor([[3.0, -1.0]]).expand(n, 2)
        return x, torch.zeros(n), x_near, torch.ones(n)


class Scaled(torch.nn.Module):
    """f(x, t) = theta x."""

    def __init__(self, theta):
        super().__init__()
        self.theta = torch.nn.Parameter(torch.tensor(theta))

    def forward(self, x, log_snr):
        return self.theta * x


class TestPseudoHuber:
    @given(st.integers(1, 9), st.floats(-5, 3))
    def test_between_square_and_length(self, d, exponent):
        difference = 10**exponent * torch.randn(20, d, generator=generator(), dtype=torch.float64)
        c, length = Consistency.huber * d**0.5, difference.norm(dim=1)
        torch.testing.assert_close(pseudo_huber(difference), ((length**2 + c**2).sqrt() - c).mean())
        assert 0 <= pseudo_huber(difference) <= min(length.mean(), (length**2).mean() / (2 * c)) + 1e-15

    def test_has_a_gradient_at_zero(self):
        difference = torch.zeros(3, 2, requires_grad=True)
        pseudo_huber(difference).backward()
        assert torch.equal(difference.grad, torch.zeros(3, 2))


class TestConsistencyLoss:
    def loss(self, consistency_map, n_steps=256):
        bank = TrajectoryBank(exact_teacher(), None, n_steps, 200, generator())
        return ConsistencyLoss(SimpleNamespace(map=consistency_map), bank, 300, n_iter=100)

    @pytest.mark.parametrize("iteration", [0, 50, 99])
    def test_is_zero_for_the_exact_map(self, iteration):
        # the bank's own error is below 5e-3 standard deviations (of at most 1.5): less than 6e-5 / (2 c), c = .04
        assert 0 <= self.loss(ExactMap())(iteration).item() < 1e-3

    @pytest.mark.parametrize("iteration", [0, 50])
    def test_is_positive_for_another(self, iteration):  # negative controls
        assert self.loss(ExactMap(0.5))(iteration) > 0.05
        assert self.loss(random_model("residual", scale=0.0).map)(iteration) > 0.05

    def test_a_map_that_moves_nothing_is_consistent_for_a_standard_normal(self):
        teacher = exact_teacher(mean=torch.zeros(2), sd=torch.ones(2))
        bank = TrajectoryBank(teacher, None, 256, 100, generator())
        loss = ConsistencyLoss(random_model("coupling", scale=0.0), bank, 200, n_iter=10)
        assert loss(0) < 1e-3 < ConsistencyLoss(random_model("coupling"), bank, 200, n_iter=10)(0)

    def test_is_minimised_by_the_exact_map(self):
        errors = torch.linspace(-0.2, 0.2, 9)
        values = [self.loss(ExactMap(float(error)))(50).item() for error in errors]
        assert min(range(9), key=values.__getitem__) == 4

    def test_value_and_gradient(self):
        # distance^2 = |theta (1, 2) - theta' (3, -1)|^2 = 5 theta^2 - 2 theta theta' + 10 theta'^2
        consistency_map = Scaled(2.0)
        loss = ConsistencyLoss(SimpleNamespace(map=consistency_map), RecordingBank(), 3, n_iter=10, ema_decay=0.75)
        c = Consistency.huber * 2**0.5
        average = 2.0
        for iteration, theta in enumerate([2.0, 1.0, -1.0]):
            consistency_map.theta.data.fill_(theta)
            average = average if not iteration else 0.75 * average + 0.25 * theta
            size = (5 * theta**2 - 2 * theta * average + 10 * average**2 + c**2) ** 0.5
            value = loss(iteration)
            assert value.item() == pytest.approx(size - c, rel=1e-5)
            # no gradient through the average, and none in it
            assert gradient(consistency_map, value).item() == pytest.approx((5 * theta - average) / size, rel=1e-5)
            assert loss.averaged.module.theta.grad is None
            assert loss.averaged.module.theta.item() == pytest.approx(average, rel=1e-6)

    def test_the_average_is_a_copy(self):
        consistency_map = Scaled(2.0)
        loss = ConsistencyLoss(SimpleNamespace(map=consistency_map), RecordingBank(), 3, n_iter=10)
        loss(0)
        consistency_map.theta.data.fill_(0.0)
        assert loss.averaged.module.theta.item() == 2 and loss.averaged.module.theta.grad is None
        loss(1)
        assert loss.averaged.module.theta.item() == pytest.approx(1.9)

    @given(st.integers(1, 128), st.integers(1, 300))
    def test_gap(self, n_steps, n_iter):
        bank = RecordingBank(n_steps)
        loss = ConsistencyLoss(SimpleNamespace(map=Scaled(1.0)), bank, 2, n_iter)
        for iteration in {*range(0, n_iter, max(1, n_iter // 10)), n_iter - 1}:
            loss(iteration)
        assert bank.gaps[0] == max(1, n_steps // 2)
        assert all(1 <= gap <= n_steps for gap in bank.gaps)

    def test_gap_shrinks(self):
        bank = RecordingBank(16)
        loss = ConsistencyLoss(SimpleNamespace(map=Scaled(1.0)), bank, 2, n_iter=8)
        for iteration in range(10):  # training may go on
            loss(iteration)
        assert bank.gaps == [8, 7, 6, 5, 4, 3, 2, 1, 1, 1]

    def test_refreshes(self):
        bank = RecordingBank()
        loss = ConsistencyLoss(SimpleNamespace(map=Scaled(1.0)), bank, 2, n_iter=100, refresh_every=10, refresh_rows=5)
        sizes = []
        for iteration in range(31):
            loss(iteration)
            sizes.append(len(bank.refreshed))
        assert bank.refreshed == [5, 5, 5]
        assert (sizes[9], sizes[10], sizes[19], sizes[20], sizes[30]) == (0, 1, 1, 2, 3)


class Particles:
    """A population that always draws its first rows, noised alike."""

    def __init__(self, x):
        self.x, self.moves, self.generator = x, 0, generator()

    def move(self):
        self.moves += 1

    def draw_with_log_prob(self, n):
        return self.x[:n], Normal(MEAN, SD).log_prob(self.x[:n]).sum(1).double() + 3.0  # not normalised

    def noised(self, n, log_snr):
        a, s = (t[:, None] for t in noise_levels(log_snr))
        return a * self.x[:n] + s * torch.randn(n, 2, generator=generator(9))


class FreshParticles(Particles):
    """Independent draws of N(0, I), which noise leaves as it is."""

    def __init__(self, seed=0):
        super().__init__(None)
        self.generator = generator(seed)

    def draw_with_log_prob(self, n):
        x = torch.randn(n, 2, generator=self.generator)
        return x, Normal(0.0, 1.0).log_prob(x).sum(1).double()

    def noised(self, n, log_snr):
        return self.draw_with_log_prob(n)[0]


class TestLevels:
    def test_to_target(self):
        level, to = levels_to_target(LOG_SNR_MAX, generator(3))(10_000)
        assert (to == torch.inf).all()
        uniform = (level - LOG_SNR_MIN) / (LOG_SNR_MAX - LOG_SNR_MIN)
        assert uniform.min() >= 0 and uniform.max() <= 1
        # the largest deviation from a uniform law is above .035 with probability 2 exp(-2 n .035^2) < 5e-11
        assert (uniform.sort().values - torch.linspace(0, 1, 10_000)).abs().max() < 0.035
        assert torch.equal(levels_to_target(LOG_SNR_MAX, generator(3))(10_000)[0], level)


def between_levels(n):
    """From random levels to less noisy ones."""
    level = LOG_SNR_MIN + (LOG_SNR_MAX - LOG_SNR_MIN) * torch.rand(n, generator=generator(7))
    return level, level + 2 * torch.rand(n, generator=generator(8))


def to_target(n):
    return between_levels(n)[0], torch.full((n,), torch.inf)


class TestTruncatedWeights:
    def test_definition(self):
        weights = truncated_weights(torch.tensor([0.0, 1.0, 2.0, 50.0, -50.0]).double())
        truth = torch.tensor([math.exp(-1), 1.0, math.e, 10.0, 0.0])
        torch.testing.assert_close(weights, truth / truth.mean())
        assert weights.dtype == torch.float32

    def test_equal_ones_are_one(self):
        assert torch.equal(truncated_weights(torch.full((7,), -1e6).double()), torch.ones(7))
        nothing = truncated_weights(torch.full((7,), -torch.inf, dtype=torch.float64))
        assert torch.equal(nothing, torch.ones(7)) and nothing.dtype == torch.float32

    def test_zero_weights(self):
        """Particles outside the support, of which there may be more than half."""
        weights = truncated_weights(torch.tensor([-torch.inf, -torch.inf, -torch.inf, 0.0, 0.0]).double())
        torch.testing.assert_close(weights, torch.tensor([0.0, 0.0, 0.0, 2.5, 2.5]))
        assert torch.equal(truncated_weights(torch.full((3,), -torch.inf).double()), torch.ones(3))

    def test_one(self):
        assert truncated_weights(torch.tensor([3.0])).item() == 1


class TestLikelihoodLoss:
    x = MEAN + SD * torch.randn(64, 2, generator=torch.Generator().manual_seed(1))

    def loss(self, model, levels=to_target, teacher=None, n=64, order=1.0):
        return LikelihoodLoss(model, Particles(self.x), n, teacher or exact_teacher(), None, levels, order=order)

    def at_prior_end(self, model):
        latent, log_det = model.map.inverse_and_log_det(self.x, model.start())
        return -(Normal(0.0, 1.0).log_prob(latent).sum(1) + log_det).mean()

    def at_other_levels(self, model, levels=to_target, n=32):
        """With log p_t in closed form."""
        level, to = levels(n)
        x, log_det = model.map.inverse_and_log_det(Particles(self.x).noised(n, to), level, to)
        a, s = (t[:, None] for t in noise_levels(level))
        return -(Normal(a * MEAN, ((a * SD) ** 2 + s**2).sqrt()).log_prob(x).sum(1) + log_det).mean()

    def test_value(self):
        model = random_model("coupling")
        assert self.loss(model)(1).item() == pytest.approx(self.at_prior_end(model).item(), rel=1e-5)
        assert self.loss(model)(1).item() == pytest.approx(-model.log_prob(self.x).mean().item(), rel=1e-5)

    def test_gradient(self):
        model = random_model("coupling")
        estimate = gradient(model, self.loss(model)(1))
        truth = gradient(model, self.at_prior_end(model) + self.at_other_levels(model))
        torch.testing.assert_close(estimate, truth, rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize("seed", range(2))
    @pytest.mark.parametrize("levels", [to_target, between_levels])
    def test_other_levels(self, levels, seed):
        model = random_model("coupling", seed=seed, two_levels=levels is between_levels)
        at_prior_end = gradient(model, self.at_prior_end(model))
        estimate = gradient(model, self.loss(model, levels)(1)) - at_prior_end
        truth = gradient(model, self.at_other_levels(model, levels))
        assert (estimate - truth).norm() < 1e-4 * truth.norm()
        wrong = gradient(model, self.loss(model, levels, exact_teacher(shift=0.1))(1)) - at_prior_end
        assert (wrong - truth).norm() > 1e-3 * truth.norm()  # negative control: another score

    @pytest.mark.parametrize("order", [1.2, 1.5])
    def test_order(self, order):
        """The gradient at the prior end is that of Renyi's divergence, up to a factor."""
        model = random_model("coupling")
        rest = gradient(model, self.loss(model)(1)) - gradient(model, self.at_prior_end(model))
        estimate = gradient(model, self.loss(model, order=order)(1)) - rest
        log_ratio = Normal(MEAN, SD).log_prob(self.x).sum(1) - model.log_prob(self.x)
        divergence = torch.logsumexp((order - 1) * log_ratio, 0) / (order - 1)
        weights = ((order - 1) * log_ratio).exp()
        assert weights.max() < 10 * weights.median()  # none is truncated
        truth = gradient(model, divergence)
        assert (estimate - truth).norm() < 1e-3 * truth.norm()
        assert (gradient(model, self.at_prior_end(model)) - truth).norm() > 0.01 * truth.norm()  # another order

    def test_leaps(self):
        """The map from the prior to other levels, with half the weight."""
        model, level = random_model("coupling", two_levels=True), torch.tensor([2.0])
        loss = self.loss(model)
        without = loss(1)
        loss.partial_levels = level
        difference = loss(1) - without
        noisy, to = loss.population.noised(32, level), level.expand(32)
        latent, log_det = model.map.inverse_and_log_det(noisy, model.start(), to)
        truth = -0.5 * (Normal(0.0, 1.0).log_prob(latent).sum(1) + log_det).mean()
        assert difference.item() == pytest.approx(truth.item(), rel=1e-4)
        torch.testing.assert_close(gradient(model, difference), gradient(model, truth), rtol=1e-3, atol=1e-4)

    def z_score(self, shift=0.0, n=80):
        """Of the gradient at the exact map of N(0, I), which moves nothing; means over independent batches.

        It is looked at along the direction that a teacher with the mean 1 would give, from draws of another seed.
        """
        model = random_model("coupling", scale=0.0)

        def loss(shift, batch_size, seed):
            teacher = exact_teacher(shift=shift, mean=torch.zeros(2), sd=torch.ones(2))
            levels = levels_to_target(LOG_SNR_MAX, generator(seed + 10))
            return LikelihoodLoss(model, FreshParticles(seed), batch_size, teacher, None, levels)

        direction = gradient(model, loss(1.0, 2000, seed=1)(1))
        tested = loss(shift, 100, seed=0)
        along = torch.stack([gradient(model, tested(1)) @ direction for _ in range(n)])
        return float(along.mean() / along.std() * n**0.5)

    def test_the_exact_map_is_stationary(self):
        assert abs(self.z_score()) < Z

    def test_a_wrong_score_moves_it(self):  # negative control
        assert abs(self.z_score(shift=0.5)) > Z

    def test_moves_the_particles(self):
        loss = self.loss(random_model("coupling"), n=2)
        for iteration in range(17):
            loss(iteration)
        assert loss.population.moves == 2  # at 8 and 16

    def test_one_particle(self):
        model = random_model("coupling")
        assert gradient(model, self.loss(model, n=1)(0)).isfinite().all()


def user_energy(x):
    """Quartic, in the user's coordinates."""
    return 0.5 * (x - 1).square().sum(1) + 0.1 * x.pow(4).sum(1)


class HalfLine:
    """The standard normal density where z_0 > 0 and an undefined one elsewhere."""

    def log_prob_and_score(self, z):
        log_prob = torch.where(z[:, 0] > 0, -0.5 * z.square().sum(1), -torch.inf)
        return log_prob.double(), torch.where(z[:, :1] > 0, -z, 0.0)


class Nowhere:
    def log_prob_and_score(self, z):
        return torch.full((len(z),), -torch.inf, dtype=torch.float64), torch.zeros_like(z)


class TestReverseKLLoss:
    def explicit(self, model, log_prob, n, seed):
        """The loss with a graph through the energy."""
        latent = torch.randn(n, 2, generator=generator(seed))
        z, log_det = model.map.call_and_log_det(latent, model.start())
        return -(log_prob(z) + log_det), z

    @pytest.mark.parametrize("seed", range(2))
    @pytest.mark.parametrize("kind", ["coupling", "residual"])
    def test_value_and_gradient(self, kind, seed):
        model = random_model(kind, seed=seed, scale=0.3)
        affine = Standardization(2, full=True)
        affine.loc, affine.scale = torch.tensor([1.0, -0.5]).double(), torch.tensor([[0.8, 0.0], [0.3, 1.2]]).double()
        target = StandardizedTarget(Energy(user_energy, 2, generator=generator()), affine)
        terms, _ = self.explicit(model, lambda z: affine.log_det(z) - user_energy(affine(z)), 50, seed)
        loss = ReverseKLLoss(model, target, 50, generator(seed))(0)
        assert loss.item() == pytest.approx(terms.mean().item(), rel=1e-4)
        estimate, truth = gradient(model, loss), gradient(model, terms.mean())
        assert truth.norm() > 0.1 and (estimate - truth).norm() < 1e-4 * truth.norm()

    @pytest.mark.parametrize("kind", ["coupling", "residual"])
    def test_rows_outside_the_support_are_left_out(self, kind):
        model = random_model(kind, scale=0.3)
        terms, z = self.explicit(model, lambda z: -0.5 * z.square().sum(1), 50, seed=2)
        inside = z[:, 0] > 0
        assert 0 < inside.sum() < 50
        loss = ReverseKLLoss(model, HalfLine(), 50, generator(2))(0)
        assert loss.item() == pytest.approx(terms[inside].mean().item(), rel=1e-4)
        torch.testing.assert_close(gradient(model, loss), gradient(model, terms[inside].mean()), rtol=1e-3, atol=1e-5)

    @pytest.mark.parametrize("kind", ["coupling", "residual"])
    def test_no_finite_row(self, kind):
        model = random_model(kind)
        loss = ReverseKLLoss(model, Nowhere(), 20, generator())(0)
        assert loss.item() == 0 and not gradient(model, loss).any()

    def test_huge_scores_are_clipped(self):
        model = random_model("residual")

        def target(score):
            return SimpleNamespace(
                log_prob_and_score=lambda z: (torch.zeros(len(z)).double(), torch.full_like(z, score))
            )

        gradients = [
            gradient(model, ReverseKLLoss(model, target(s), 20, generator())(0)) for s in (1e2, 1e3, 1e4, 1e30)
        ]
        assert torch.equal(gradients[1], gradients[2]) and torch.equal(gradients[1], gradients[3])
        assert not torch.equal(gradients[0], gradients[1])

    def test_seeks_the_target(self):
        # up to a constant the loss is the divergence from the map's law to the target: least for the exact affine map
        target = StandardizedTarget(
            Energy(lambda x: 0.5 * (((x - MEAN) / SD) ** 2).sum(1), 2, generator=generator()), Standardization(2)
        )

        class Affine(torch.nn.Module):
            def __init__(self, loc, scale):
                super().__init__()
                self.loc, self.scale = torch.nn.Parameter(loc.clone()), torch.nn.Parameter(scale.clone())

            def call_and_log_det(self, x, log_snr):
                return self.loc + self.scale * x, self.scale.log().sum().expand(len(x))

        def loss(loc, scale):
            model = SimpleNamespace(map=Affine(loc, scale), n_features=2, start=lambda: torch.zeros(1))
            return ReverseKLLoss(model, target, 20, generator(1))(0), model.map

        value, exact = loss(MEAN, SD)
        energies = 0.5 * torch.randn(20, 2, generator=generator(1)).square().sum(1)
        assert value.item() == pytest.approx(float(energies.mean() - SD.log().sum()), rel=1e-5)
        assert loss(MEAN + 1, SD)[0] > value and loss(MEAN, 2 * SD)[0] > value
        assert gradient(exact, value).isfinite().all()

    def test_global_state_is_left_alone(self):
        state = torch.get_rng_state()
        ReverseKLLoss(random_model("coupling"), Nowhere(), 20, generator())(0)
        assert torch.equal(torch.get_rng_state(), state)
