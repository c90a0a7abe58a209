"""Training objectives of the diffusion sampler against posteriors in closed form and an explicit variance.

Statistical bounds hold for any seed: each states the probability at which it fails a correct implementation.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skcds.density.energy import Energy
from skcds.density.standardize import Standardization, StandardizedTarget
from skcds.models.diffusion import DiffusionModel
from skcds.models.networks import GatedMLP, ResidualMLP, seeded
from skcds.models.process import LOG_SNR_MIN, Grid, noise_levels
from skcds.models.shortcut import DyadicSteps
from skcds.train.objectives import path as losses
from skcds.train.objectives.denoising import DenoisingLoss
from skcds.train.objectives.path import LogVarianceLoss, _winsorise

LOG_SNR_MAX = 5.0
MEAN, SD = torch.tensor([0.5, -1.0]), torch.tensor([0.4, 1.5])  # of the Gaussian target
WIDTH = torch.tensor([0.7, 0.6])  # finest scale that the network is told; wrong, so that the regression target varies
Z = 5.5  # two-sided tail of the normal distribution: 4e-8; with the skewness of these statistics below 1e-6

levels = st.floats(LOG_SNR_MIN, LOG_SNR_MAX)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_model(scale=0.1, d=2, langevin=True, learned_variance=True, log_snr_max=LOG_SNR_MAX, seed=0):
    """A model whose output layer, which starts at zero, is perturbed."""
    with seeded(seed):
        model = DiffusionModel(d, log_snr_max, False, 16, 2, langevin, learned_variance)
    source = generator(seed)
    for part in model.modules():
        if isinstance(part, (GatedMLP, ResidualMLP)):
            for parameter in part.output.parameters():
                parameter.data += scale * torch.randn(parameter.shape, generator=source)
    return model


def normal_target(mean=0.0, sd=1.0, d=2):
    """An unnormalised N(mean, diag(sd^2)); log Z = .9 for a unit covariance."""
    log_z = 0.9
    energy = Energy(
        lambda x: 0.5 * (((x - mean) / sd) ** 2).sum(1) + 0.5 * d * math.log(2 * math.pi) - log_z,
        d,
        generator=generator(),
    )
    return StandardizedTarget(energy, Standardization(d, full=False))


class GaussianParticles:
    """A population without end: independent draws of N(MEAN, diag(SD^2))."""

    def __init__(self, seed=0):
        self.generator, self.moves = generator(seed), 0

    def move(self):
        self.moves += 1

    def draw(self, n):
        x = MEAN + SD * torch.randn(n, 2, generator=self.generator)
        return x, -(x - MEAN) / SD**2


class ExactNetwork(torch.nn.Module):
    """The mean of eps given x_t for N(MEAN, diag(SD^2)), and its variance; both can be put wrong."""

    def __init__(self, offset=0.0, slope=0.0, factor=None):
        super().__init__()
        self.langevin, self.width = False, WIDTH
        self.offset, self.slope, self.factor = (
            None if value is None else torch.nn.Parameter(torch.tensor(float(value)))
            for value in (offset, slope, factor)
        )

    def forward(self, x, log_snr, score):
        a, s = (t[:, None] for t in noise_levels(log_snr))
        total = (a * SD) ** 2 + s**2
        noise = s * (x - a * MEAN) / total + self.offset + self.slope * x
        return noise, None if self.factor is None else self.factor * (a * SD) ** 2 / total


def denoising_loss(network, n=100_000, seed=0, n_steps=16):
    model = random_model()
    model.network = network
    return DenoisingLoss(model, None, GaussianParticles(seed), n_steps, n, generator(seed + 1000))


class TestRegressionTarget:
    @given(levels, st.floats(-3, 3))
    def test_posterior_mean(self, level, x):
        # x_0 given x_t is Gaussian and the target is linear in x_0: two symmetric nodes are exact
        loss = denoising_loss(ExactNetwork(), n=1)
        level, x = torch.tensor([level]).double(), torch.full((1, 2), x).double()
        a, s = (t[:, None] for t in noise_levels(level))
        total = (a * SD) ** 2 + s**2
        mean, sd = MEAN + a * SD**2 * (x - a * MEAN) / total, SD * s / total.sqrt()
        values = [
            loss._regression_target((x - a * x_0) / s, -(x_0 - MEAN) / SD**2, a, s) for x_0 in (mean - sd, mean + sd)
        ]
        torch.testing.assert_close(sum(values) / 2, s * (x - a * MEAN) / total, rtol=1e-6, atol=1e-6)

    @given(levels)
    def test_both_forms_are_used(self, level):
        loss = denoising_loss(ExactNetwork(), n=1)
        a, s = (t[:, None] for t in noise_levels(torch.tensor([level])))
        one, zero = torch.ones(1, 2), torch.zeros(1, 2)
        share = loss._regression_target(one, zero, a, s)
        torch.testing.assert_close(share, s**2 / (s**2 + (a * WIDTH) ** 2))
        torch.testing.assert_close(loss._regression_target(zero, one, a, s), -(1 - share) * s / a)

    def residual(self, width, level, n=20_000):
        """Regression targets less the exact mean."""
        loss = denoising_loss(ExactNetwork(), n=1)
        loss.model.network.width = width
        x_0, score = GaussianParticles().draw(n)
        eps = torch.randn(n, 2, generator=generator(1))
        a, s = (t[:, None] for t in noise_levels(torch.full((n,), level)))
        mean = s * (a * x_0 + s * eps - a * MEAN) / ((a * SD) ** 2 + s**2)
        return loss._regression_target(eps, score, a, s) - mean

    @pytest.mark.parametrize("level", [LOG_SNR_MIN, 0.0, LOG_SNR_MAX])
    def test_is_exact_for_a_gaussian_of_the_given_width(self, level):  # what the mix is for
        assert self.residual(SD, level).abs().max() < 1e-4
        assert self.residual(WIDTH, level).std(0).max() > 1e-3  # negative control

    @pytest.mark.parametrize("level", [LOG_SNR_MIN, LOG_SNR_MAX])
    def test_variance_is_small_at_both_ends(self, level):
        # that of eps alone is 1 near the target, that of the score alone diverges at the prior end
        assert (self.residual(WIDTH, level).var(0) < 0.1).all()

    def test_scores_are_clipped(self):
        a, s = torch.full((1, 1), 0.6), torch.full((1, 1), 0.8)
        loss = denoising_loss(ExactNetwork(), n=1)
        huge = [loss._regression_target(torch.zeros(1, 2), torch.full((1, 2), v), a, s) for v in (1e3, 1e30)]
        assert torch.equal(*huge)


class TestDenoisingLoss:
    """The exact estimate is the minimiser: another one costs the mean square of the difference."""

    def excess(self, offset, slope, spoil=lambda target: target, n=100_000, seed=0):
        """Mean over rows of what a wrong predictor adds to the loss, less the square of its error; in standard errors.

        The two losses share all random numbers. The rows are bounded by Gaussians of size 1: no skewness at this n.
        """
        log_snr = LOG_SNR_MIN + (LOG_SNR_MAX - LOG_SNR_MIN) * torch.rand(n, generator=generator(seed))
        x_0, score = GaussianParticles(seed + 1).draw(n)
        eps = torch.randn(n, 2, generator=generator(seed + 2))
        a, s = (t[:, None] for t in noise_levels(log_snr))
        x = a * x_0 + s * eps
        target = spoil(denoising_loss(ExactNetwork())._regression_target(eps, score, a, s))
        with torch.no_grad():
            exact, wrong = (ExactNetwork(*p)(x, log_snr, None)[0] for p in ((), (offset, slope)))
        rows = ((wrong - target) ** 2 - (exact - target) ** 2 - (wrong - exact) ** 2).sum(1)
        return float(rows.mean() / rows.std() * n**0.5)

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("offset, slope", [(0.1, 0.0), (-0.5, 0.0), (0.0, 0.1), (0.0, -0.3), (0.2, 0.2)])
    def test_excess_is_the_squared_error(self, offset, slope, seed):
        assert abs(self.excess(offset, slope, seed=seed)) < Z

    @pytest.mark.parametrize("offset, slope, spoil", [(0.1, 0.0, lambda t: t + 0.05), (0.0, 0.1, lambda t: 1.1 * t)])
    def test_a_biased_target_is_found(self, offset, slope, spoil):  # negative control
        assert abs(self.excess(offset, slope, spoil)) > Z

    @pytest.mark.parametrize("offset, slope", [(0.1, 0.0), (-0.1, 0.0), (0.0, 0.1), (0.0, -0.1)])
    def test_the_exact_estimate_is_best(self, offset, slope):
        # the excess is .01 or more a coordinate, its standard error below 1e-3: false alarms below 1e-20
        exact, wrong = (denoising_loss(ExactNetwork(*p))(0).item() for p in ((), (offset, slope)))
        assert exact < wrong

    @pytest.mark.parametrize("factor", [0.7, 1.4])
    def test_the_true_variance_is_best(self, factor):
        # common random numbers; by quadrature over the levels the excess is above 3e-3, its standard error 3e-4
        true, wrong = (denoising_loss(ExactNetwork(factor=f))(0).item() for f in (1.0, factor))
        assert true < wrong

    def test_is_a_mean_over_rows_and_coordinates(self):
        a, s = noise_levels(torch.linspace(LOG_SNR_MIN, LOG_SNR_MAX, 20_001).double())
        variance = (a[:, None] * SD) ** 2 + s[:, None] ** 2
        c = s[:, None] ** 2 / ((a[:, None] * WIDTH) ** 2 + s[:, None] ** 2)
        # given x_t the target is linear in x_0
        slope = -c * a[:, None] / s[:, None] + (1 - c) * s[:, None] / a[:, None] / SD**2
        expected = (slope**2 * SD**2 * s[:, None] ** 2 / variance).mean()
        values = torch.stack([denoising_loss(ExactNetwork(), n=2000, seed=seed)(1).detach() for seed in range(100)])
        assert abs(values.mean() - expected) < Z * values.std() / 10 + 1e-6

    def test_moves_the_particles(self):
        loss = denoising_loss(ExactNetwork(), n=4)
        for iteration in range(21):
            loss(iteration)
        assert loss.population.moves == 2  # at 10 and 20

    @pytest.mark.parametrize("langevin", [False, True])
    @pytest.mark.parametrize("learned_variance", [False, True])
    def test_gradients(self, langevin, learned_variance):
        model = random_model(langevin=langevin, learned_variance=learned_variance)
        target = normal_target(MEAN, SD)
        DenoisingLoss(model, target, GaussianParticles(), 16, 64, generator())(0).backward()
        assert all(p.grad.isfinite().all() and p.grad.any() for p in model.network.parameters())

    def test_outliers_are_bounded(self):
        loss = denoising_loss(ExactNetwork(offset=1e6), n=100)(0)
        assert loss.item() == pytest.approx(1e3)

    def test_global_state_is_left_alone(self):
        state = torch.get_rng_state()
        denoising_loss(ExactNetwork(factor=1.0), n=10)(0)
        assert torch.equal(torch.get_rng_state(), state)


class TestVarianceLoss:
    @given(levels, st.floats(0.01, 3), st.integers(2, 64))
    def test_is_least_at_the_residual(self, level, variance, n_steps):
        # the loss is linear in the residual: its expectation is the loss of the expected residual
        loss = denoising_loss(ExactNetwork(), n=1, n_steps=n_steps)
        level = torch.tensor([level]).double()
        residual = torch.full((1, 2), variance, dtype=torch.float64)
        noise_var = residual.clone().requires_grad_()
        best = loss._variance_loss(level, noise_levels(level)[1][:, None], noise_var, residual)
        (gradient,) = torch.autograd.grad(best, noise_var)
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-9 / variance)
        for factor in (0.5, 0.9, 1.1, 2.0):
            wrong = loss._variance_loss(level, noise_levels(level)[1][:, None], factor * residual, residual)
            assert wrong > best

    @pytest.mark.parametrize("n_steps", [2, 5, 32])
    def test_is_the_step_likelihood(self, n_steps):
        # expected negative log density of the true step, N(mean, v~ + kappa Var(eps)), under the model's
        loss, grid = denoising_loss(ExactNetwork(), n=1, n_steps=n_steps), Grid(n_steps, LOG_SNR_MAX)
        true, noise_var = torch.tensor([[0.3, 0.6]]), torch.tensor([[0.5, 0.2]])
        for k in range(n_steps - 1):
            variance, true_variance = (grid.v_tilde[k] + grid.kappa[k] * value for value in (noise_var, true))
            expected = 0.5 * ((variance / grid.kappa[k]).log() + true_variance / variance).sum()
            level = grid.log_snr[k : k + 1]
            value = loss._variance_loss(level, noise_levels(level)[1][:, None], noise_var, true)
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)

    def test_leaves_the_mean_alone(self):
        gradients = []
        for factor in (None, 1.0):
            network = ExactNetwork(offset=0.3, slope=0.1, factor=factor)
            denoising_loss(network, n=100)(0).backward()
            gradients.append((network.offset.grad, network.slope.grad))
        torch.testing.assert_close(*gradients)

    def test_is_part_of_the_loss(self):
        network = ExactNetwork(factor=2.0)
        denoising_loss(network, n=1000)(0).backward()
        assert network.factor.grad > 0.01


N_STEPS = 5


def paths_and_log_weights(model, target, n, seed, n_steps=N_STEPS):
    """The trajectories that a LogVarianceLoss of this seed simulates, and their log weights without a graph."""
    source, grid = generator(seed), model.grid(n_steps)

    def normal(k):
        return torch.randn(n, model.n_features, generator=source)

    path, log_ratio = model.simulate(normal(0), grid, target, normal, keep=True)
    return path, log_ratio + target.log_prob(path[-1])


def explicit_variance(model, target, path, n_steps=N_STEPS):
    """The variance of a differentiable log w on fixed trajectories."""
    grid, log_w = model.grid(n_steps), target.log_prob(path[-1])
    for k in range(n_steps):
        noise, noise_var = model.noise(path[k], grid.log_snr[k], target)
        mean = (path[k] - grid.v[k] / grid.s[k] * noise) / grid.b[k]
        variance = grid.v[k] * torch.ones(()) if noise_var is None else grid.v_tilde[k] + grid.kappa[k] * noise_var
        forward = torch.distributions.Normal(mean, variance.sqrt()).log_prob(path[k + 1]).sum(1)
        backward = torch.distributions.Normal(grid.b[k] * path[k + 1], grid.v[k].sqrt()).log_prob(path[k]).sum(1)
        log_w = log_w + backward - forward
    return (log_w - torch.distributions.Normal(0, 1).log_prob(path[0]).sum(1)).var()


def gradient(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten().clone() for p in model.parameters()])


KINDS = [(False, False), (False, True), (True, False), (True, True)]


class TestLogVarianceLoss:
    target = normal_target(0.2, 0.8)

    @pytest.mark.parametrize("langevin, learned_variance", KINDS)
    def test_value(self, langevin, learned_variance):
        model = random_model(langevin=langevin, learned_variance=learned_variance)
        loss = LogVarianceLoss(model, self.target, N_STEPS, 200, generator(3))(0)
        _, log_weights = paths_and_log_weights(model, self.target, 200, seed=3)
        assert loss.item() == pytest.approx(float(_winsorise(log_weights).var()), rel=1e-6)
        assert loss.item() > 0.01

    @pytest.mark.parametrize("langevin, learned_variance", KINDS)
    def test_gradient_over_all_steps(self, langevin, learned_variance, monkeypatch):
        monkeypatch.setattr(losses, "_winsorise", lambda log_weights: log_weights - log_weights.mean())
        model = random_model(0.05, langevin=langevin, learned_variance=learned_variance)
        path, _ = paths_and_log_weights(model, self.target, 64, seed=3)
        loss = LogVarianceLoss(model, self.target, N_STEPS, 64, generator(3), n_gradient_steps=N_STEPS)(0)
        truth = explicit_variance(model, self.target, path)
        assert loss.item() == pytest.approx(truth.item(), rel=1e-3)  # float32 log densities of cancelling terms
        estimate, truth = gradient(model, loss), gradient(model, truth)
        assert (estimate - truth).norm() < 1e-3 * truth.norm()

    def test_more_steps_than_there_are(self):
        model = random_model()
        first, second = (LogVarianceLoss(model, self.target, N_STEPS, 32, generator(), m)(0) for m in (N_STEPS, 1000))
        torch.testing.assert_close(gradient(model, first), gradient(model, second))

    def z_score(self, n_gradient_steps, factor=1.0, n=200):
        """Of the gradient over a random subset of the steps about that over all, along the latter.

        The trajectories are the same every time, so that each subset gives one of 5 or 10 bounded values.
        """
        model = random_model(0.02)
        simulated = model.simulate(
            torch.randn(32, 2, generator=generator()), model.grid(N_STEPS), self.target,
            lambda k: torch.randn(32, 2, generator=generator(k + 1)), keep=True,
        )  # fmt: skip
        model.simulate = lambda *args, **kwargs: simulated
        every = gradient(model, LogVarianceLoss(model, self.target, N_STEPS, 32, generator(), N_STEPS)(0))
        loss = LogVarianceLoss(model, self.target, N_STEPS, 32, generator(), n_gradient_steps)
        values = torch.stack([factor * gradient(model, loss(i)) @ every / every.norm() ** 2 for i in range(n)])
        return float((values.mean() - 1) / values.std() * n**0.5)

    @pytest.mark.parametrize("n_gradient_steps", [1, 3])
    def test_gradient_over_some_steps_is_unbiased(self, n_gradient_steps):
        assert abs(self.z_score(n_gradient_steps)) < Z

    def test_an_unscaled_subset_is_found(self):  # negative control
        assert abs(self.z_score(3, factor=3 / N_STEPS)) > Z

    @pytest.mark.parametrize("langevin, learned_variance", KINDS)
    def test_is_zero_for_the_exact_sampler(self, langevin, learned_variance):
        # untrained, the chain is the exact one of N(0, I), and not of another target
        model = random_model(0.0, langevin=langevin, learned_variance=learned_variance)
        loss = LogVarianceLoss(model, normal_target(), N_STEPS, 500, generator())(0)
        assert 0 <= loss.item() < 1e-9  # float32 rounding of log w, squared
        assert gradient(model, loss).abs().max() < 1e-3
        loss = LogVarianceLoss(model, self.target, N_STEPS, 500, generator())(0)
        assert loss.item() > 0.01 and gradient(model, loss).abs().max() > 0.1

    @pytest.mark.parametrize("n_uses", [1, 2, 3])
    def test_trajectories_serve_several_calls(self, n_uses):
        model = random_model(0.1)
        loss = LogVarianceLoss(model, self.target, 64, 32, generator(), n_uses=n_uses)
        calls, simulate = [], model.simulate
        model.simulate = lambda *args, **kwargs: calls.append(1) or simulate(*args, **kwargs)
        gradients, values = zip(*((gradient(model, value), value.item()) for value in map(loss, range(6))), strict=True)
        assert len(calls) == 6 / n_uses and len({round(v, 3) for v in values}) == 6 / n_uses
        assert len({float(g.norm()) for g in gradients}) == 6  # every call draws its own steps

    @pytest.mark.parametrize("n_calls", [0, 1, 2])
    def test_state(self, n_calls):
        def values(loss, n):
            return [(value.item(), float(gradient(model, value).norm())) for value in map(loss, range(n))]

        model = random_model(0.1)
        loss = LogVarianceLoss(model, self.target, N_STEPS, 32, generator())
        values(loss, n_calls)
        state, source = loss.state_dict(), loss.generator.get_state()
        expected = values(loss, 5)
        again = LogVarianceLoss(model, self.target, N_STEPS, 32, generator(9))
        again.load_state_dict(state)
        again.generator.set_state(source)
        assert values(again, 5) == expected

    def test_descends(self):
        model = random_model(0.1)
        loss = LogVarianceLoss(model, self.target, N_STEPS, 256, generator())
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        values = []
        for iteration in range(100):
            optimizer.zero_grad()
            value = loss(iteration)
            value.backward()
            optimizer.step()
            values.append(value.item())
        assert sum(values[-10:]) < 0.5 * sum(values[:10])

    def test_zero_densities(self):
        def half_line(x):
            return torch.where(x[:, 0] > -2, 0.5 * x.square().sum(1), torch.inf)

        model = random_model(0.01)
        target = StandardizedTarget(Energy(half_line, 2, generator=generator()), Standardization(2, full=False))
        loss = LogVarianceLoss(model, target, N_STEPS, 200, generator(3))(0)
        _, log_weights = paths_and_log_weights(model, target, 200, seed=3)
        finite = log_weights.isfinite()
        assert 100 < finite.sum() < 200
        filled = torch.where(finite, log_weights, log_weights[finite].min())
        assert loss.item() == pytest.approx(float(_winsorise(filled).var()), rel=1e-6)
        assert gradient(model, loss).isfinite().all()

    def test_nothing_but_zero_densities(self):
        class Nowhere:
            def log_prob(self, x):
                return torch.full((len(x),), -torch.inf, dtype=torch.float64)

            def log_prob_and_score(self, x):
                return self.log_prob(x), torch.zeros_like(x)

        model = random_model()
        loss = LogVarianceLoss(model, Nowhere(), N_STEPS, 16, generator())(0)
        assert loss.item() == 0 and not gradient(model, loss).any()

    @pytest.mark.parametrize("levels_of", ["grid", "steps"])
    def test_states(self, levels_of):
        # of the trajectories simulated last, at levels of the grid, however these are rounded
        model, n_steps = random_model(0.01), 16
        loss = LogVarianceLoss(model, self.target, n_steps, 40, generator())
        loss(0)
        end = torch.tensor([torch.inf])
        grid = {"grid": torch.cat([loss.grid.log_snr, end]), "steps": DyadicSteps(n_steps, LOG_SNR_MAX).log_snr}
        k = torch.arange(n_steps + 1).repeat(50)
        states = loss.states(len(k), grid[levels_of][k])
        assert (states[:, None] == loss.path[k]).all(2).any(1).all()
        assert len(states[k == 3].unique(dim=0)) > 10  # of all trajectories

    def test_global_state_is_left_alone(self):
        state = torch.get_rng_state()
        LogVarianceLoss(random_model(), self.target, N_STEPS, 16, generator())(0)
        assert torch.equal(torch.get_rng_state(), state)


values = st.lists(st.integers(-6400, 6400).map(lambda i: i / 64), min_size=2, max_size=100).map(
    lambda v: torch.tensor(v, dtype=torch.float64)
)


class TestWinsorise:
    def test_hand_computed(self):
        values = torch.tensor([0.0, 1.0, 2.0, 3.0, 100.0], dtype=torch.float64)  # median 2, deviations 2 1 0 1 98
        pulled = torch.tensor([0.0, 1.0, 2.0, 3.0, 2.0 + 4 * 1.4826], dtype=torch.float64)
        torch.testing.assert_close(_winsorise(values), pulled - pulled.mean())
        pulled[-1] = 2 + 1.4826
        pulled[0] = 2 - 1.4826
        torch.testing.assert_close(_winsorise(values, z=1.0), pulled - pulled.mean())

    def test_normal_values_are_left_alone(self):
        x = torch.randn(1000, generator=generator(), dtype=torch.float64)
        torch.testing.assert_close(_winsorise(x), x - x.mean(), rtol=0, atol=0.02)

    @given(values)
    def test_invariants(self, x):
        out = _winsorise(x)
        spread = 1.4826 * float((x - x.median()).abs().median().clamp(min=1e-6))
        assert abs(float(out.mean())) < 1e-9
        assert float(out.max() - out.min()) <= 8 * spread * (1 + 1e-9) + 1e-9
        order = x.argsort()
        assert (out[order].diff() >= 0).all()
        torch.testing.assert_close(_winsorise(x + 1024), out, rtol=0, atol=1e-9)
        torch.testing.assert_close(_winsorise(4 * x), 4 * out, rtol=0, atol=1e-4)

    def test_outliers_count_little(self):
        x = torch.randn(1000, generator=generator(), dtype=torch.float64)
        spoilt = torch.cat([x, torch.tensor([-1e9, 1e9, 1e9])])
        assert _winsorise(spoilt).var() < 1.2 * x.var()
