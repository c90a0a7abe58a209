"""The networks at their start, where they have closed forms, and the seeding that leaves the global state alone."""

import functools
import math
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from skcds.models.diffusion import DiffusionModel
from skcds.models.maps import OneStepModel
from skcds.models.networks import (
    LANGEVIN_CLIP,
    GatedMLP,
    Linear,
    NoiseNetwork,
    ResidualMLP,
    TimeFeatures,
    count_evaluations,
    in_parts,
    seeded,
    without_draws,
)
from skcds.models.process import LOG_SNR_MIN, noise_levels
from skcds.models.shortcut import ShortcutModel

LOG_SNR_MAX = 6.0
EPS = 2.0**-24
LEVELS = torch.tensor([LOG_SNR_MIN, -2.0, 0.0, 3.0, LOG_SNR_MAX, torch.inf])
MODELS = [
    functools.partial(OneStepModel, "coupling", 3, LOG_SNR_MAX, True, hidden=8, n_layers=2, n_transforms=4, bins=4),
    functools.partial(OneStepModel, "coupling", 1, LOG_SNR_MAX, True, hidden=8, n_layers=2, n_transforms=2, bins=4),
    functools.partial(OneStepModel, "residual", 3, LOG_SNR_MAX, False, hidden=8, n_layers=3),
    functools.partial(DiffusionModel, 3, LOG_SNR_MAX, True, 8, 3, True, True),
    functools.partial(ShortcutModel, "coupling", 8, 3, LOG_SNR_MAX, True, 8, 3, True, True),
    functools.partial(ShortcutModel, "residual", 8, 3, LOG_SNR_MAX, True, 8, 3, False, False),
]


def network(n_features=3, langevin=True, learned_variance=True, seed=0):
    with seeded(seed):
        return NoiseNetwork(n_features, LOG_SNR_MAX, 16, 3, langevin, learned_variance)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def randomise(module, seed=0):
    """Weights as after training: none is zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return module


class TestSeeded:
    @pytest.mark.parametrize("build", MODELS)
    @pytest.mark.parametrize("seed", [0, 5])
    def test_weights_are_those_of_torchs_own_generator(self, build, seed):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            expected = build().state_dict()
        with seeded(seed):
            found = build().state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in expected)

    @pytest.mark.parametrize("build", MODELS)
    @pytest.mark.parametrize("block", [lambda: seeded(3), without_draws])
    def test_leaves_torchs_own_generator_alone(self, build, block, monkeypatch):
        before = torch.get_rng_state()
        monkeypatch.setattr(torch, "set_rng_state", None)  # not even to put it back
        with block():
            build()
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("build", MODELS)
    def test_without_draws(self, build):
        with without_draws():
            model = build()
        linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
        assert linear and not any(p.any() for module in linear for p in module.parameters())
        buffers = dict(build().named_buffers())
        assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())

    def test_ends_after_an_error(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            expected = Linear(2, 2).weight
            torch.manual_seed(1)
            with pytest.raises(KeyError), seeded(3):
                raise KeyError
            assert torch.equal(Linear(2, 2).weight, expected)

    def test_nests(self):
        with seeded(3):
            expected = [Linear(2, 3).weight for _ in range(2)]
        with seeded(3):
            first = Linear(2, 3).weight
            with seeded(4):
                Linear(7, 7)
            second = Linear(2, 3).weight
        assert torch.equal(first, expected[0]) and torch.equal(second, expected[1])

    def test_threads_do_not_see_each_other(self):
        """Weights of many threads at once are those of one; a thread that draws meanwhile never repeats itself."""

        def weights(seed):
            return network(seed=seed).state_dict()["body.hidden.0.weight"]

        def draw(stop):
            draws = []
            while not stop.is_set():
                draws.append(float(torch.rand(1, dtype=torch.float64)))
            return draws

        expected, stop = [weights(seed) for seed in range(100)], threading.Event()
        with torch.random.fork_rng(devices=[]), ThreadPoolExecutor(5) as pool:
            drawn = pool.submit(draw, stop)
            found = list(pool.map(weights, range(100)))
            stop.set()
        assert all(map(torch.equal, found, expected))
        assert len(set(drawn.result())) == len(drawn.result())

    def test_decides_the_weights(self):
        state, same, other = (network(seed=seed).state_dict() for seed in (0, 0, 1))
        assert all(torch.equal(state[key], same[key]) for key in state)
        assert not torch.equal(state["body.input.weight"], other["body.input.weight"])


class TestTimeFeatures:
    @pytest.mark.parametrize("n_frequencies", [1, 16])
    def test_values(self, n_frequencies):
        features = TimeFeatures(LOG_SNR_MAX, n_frequencies)
        out = features(LEVELS)
        assert out.shape == (6, features.n_out) == (6, 2 + 2 * n_frequencies)
        assert out.isfinite().all() and (out.abs() <= 1).all()
        a, s = noise_levels(LEVELS)
        assert torch.equal(out[:, 0], a) and torch.equal(out[:, 1], s)
        sin, cos = out[:, 2:].split(n_frequencies, 1)
        torch.testing.assert_close(sin**2 + cos**2, torch.ones_like(sin))

    def test_angles(self):
        """From the lowest frequency, 1/2, at both ends: 1/2 and 0 radians."""
        out = TimeFeatures(LOG_SNR_MAX, 16)(LEVELS)
        np.testing.assert_allclose(out[[0, -2], 2], [math.sin(0.5), 0], atol=2 * EPS)
        np.testing.assert_allclose(out[[0, -2], 18], [math.cos(0.5), 1], atol=2 * EPS)
        np.testing.assert_allclose(out[2, 17], math.sin(25 * LOG_SNR_MAX / (LOG_SNR_MAX - LOG_SNR_MIN)), atol=30 * EPS)

    def test_past_the_end_only_the_amplitudes_change(self):
        out = TimeFeatures(LOG_SNR_MAX)(torch.tensor([LOG_SNR_MAX, LOG_SNR_MAX + 5, torch.inf]))
        assert torch.equal(out[0, 2:], out[1, 2:]) and torch.equal(out[0, 2:], out[2, 2:])
        assert (out[:, 1].diff() < 0).all() and out[2, 1] == 0

    def test_levels_are_told_apart(self):
        """Neighbours of a grid of 200 steps differ by more than rounding, also where a and s hardly change."""
        out = TimeFeatures(LOG_SNR_MAX)(torch.linspace(LOG_SNR_MIN, LOG_SNR_MAX, 200))
        assert (out.diff(dim=0).abs().amax(1) > 0.01).all()


INPUT = normal(7, 5).split([3, 2], 1)  # and a condition


class TestResidualMLP:
    @pytest.mark.parametrize("n_layers", [1, 2, 4])
    def test_starts_at_zero(self, n_layers):
        with seeded(0):
            body = ResidualMLP(5, 2, 8, n_layers)
        assert torch.equal(body(*INPUT), torch.zeros(7, 2))
        assert len(body.hidden) == n_layers - 1
        assert sum(p.numel() for p in body.parameters()) == 48 + (n_layers - 1) * 72 + 18

    def test_formula(self):
        body = randomise(ResidualMLP(5, 2, 8, 3))

        def silu(x):
            return x / (1 + np.exp(-x))

        weights = {key: value.numpy().astype(float) for key, value in body.state_dict().items()}
        h = silu(normal(7, 5).numpy() @ weights["input.weight"].T + weights["input.bias"])
        for i in range(2):
            h = h + silu(h @ weights[f"hidden.{i}.weight"].T + weights[f"hidden.{i}.bias"])
        expected = h @ weights["output.weight"].T + weights["output.bias"]
        np.testing.assert_allclose(body(*INPUT).detach(), expected, rtol=1e-4, atol=1e-5)

    def test_leaves_the_start(self):
        """A zero output layer has a gradient of its own, so that training starts."""
        with seeded(0):
            body = ResidualMLP(5, 2, 8, 2)
        (body(*INPUT) - 1).square().sum().backward()
        assert body.output.weight.grad.abs().max() > 0 and body.output.bias.grad.abs().max() > 0


class TestGatedMLP:
    @pytest.mark.parametrize("n_layers", [1, 2, 4])
    def test_starts_at_zero(self, n_layers):
        with seeded(0):
            body = GatedMLP(5, 2, 8, n_layers)
        assert torch.equal(body(*INPUT), torch.zeros(7, 2))
        assert sum(p.numel() for p in body.parameters()) == 48 + (n_layers - 1) * (8 + 144) + 18

    def test_formula(self):
        body = randomise(GatedMLP(5, 2, 8, 3))

        def silu(x):
            return x / (1 + np.exp(-x))

        weights = {key: value.numpy().astype(float) for key, value in body.state_dict().items()}
        h = silu(normal(7, 5).numpy() @ weights["input.weight"].T + weights["input.bias"])
        for i in range(2):
            size = np.sqrt((h**2).mean(1, keepdims=True))
            both = (h / size * weights[f"norms.{i}.weight"]) @ weights[f"hidden.{i}.weight"].T
            both += weights[f"hidden.{i}.bias"]
            h = h + silu(both[:, :8]) * both[:, 8:]
        expected = h @ weights["output.weight"].T + weights["output.bias"]
        np.testing.assert_allclose(body(*INPUT).detach(), expected, rtol=1e-4, atol=1e-5)

    def test_far_out_it_grows_no_faster_than_its_input(self):
        """Products of products would grow as the 16th power: a chain that strays would not come back."""
        body = randomise(GatedMLP(5, 2, 8, 5))
        near, far = (float(body(*(scale * part for part in INPUT)).detach().abs().max()) for scale in (1e3, 1e6))
        assert far < 2e3 * near


@pytest.mark.parametrize("kind", [ResidualMLP, GatedMLP])
def test_every_layer_is_trained(kind):
    body = randomise(kind(5, 2, 8, 4))
    body(*INPUT).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in body.parameters())


@pytest.mark.parametrize("kind", [ResidualMLP, GatedMLP])
def test_one_condition_for_all_rows(kind):
    """Images and gradients are those of the condition repeated."""
    body = randomise(kind(5, 2, 8, 3))
    x, condition = INPUT[0], INPUT[1][:1]
    once, repeated = body(x, condition), body(x, condition.expand(7, 2))
    torch.testing.assert_close(once, repeated, rtol=1e-4, atol=1e-5)
    parameters = list(body.parameters())
    grads = [torch.autograd.grad(out.square().sum(), parameters) for out in (once, repeated)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("learned_variance", [True, False])
@pytest.mark.parametrize("langevin", [True, False])
@pytest.mark.parametrize("trained", [True, False])
class TestEveryNoiseNetwork:
    def test_shapes(self, langevin, learned_variance, trained):
        net = network(3, langevin, learned_variance)
        net = randomise(net) if trained else net
        x, score = normal(6, 3), normal(6, 3, seed=1) if langevin else None
        noise, variance = net(x, LEVELS, score)
        assert noise.shape == (6, 3) and noise.isfinite().all()
        if learned_variance:
            assert variance.shape == (6, 3) and variance.isfinite().all() and (variance > 0).all()
        else:
            assert variance is None

    def test_one_level_for_all_rows(self, langevin, learned_variance, trained):
        net = network(3, langevin, learned_variance)
        net = randomise(net) if trained else net
        x, score = normal(6, 3), normal(6, 3, seed=1) if langevin else None
        once, repeated = net(x, LEVELS[:1], score), net(x, LEVELS[:1].expand(6), score)
        torch.testing.assert_close(once[0], repeated[0], rtol=1e-4, atol=1e-5)
        if learned_variance:
            torch.testing.assert_close(once[1], repeated[1], rtol=1e-4, atol=1e-5)

    def test_rows_are_independent(self, langevin, learned_variance, trained):
        net = network(3, langevin, learned_variance)
        net = randomise(net) if trained else net
        x, score = normal(6, 3), normal(6, 3, seed=1) if langevin else None
        rows = [2, 5]
        alone = net(x[rows], LEVELS[rows], score[rows] if langevin else None)
        together = net(x, LEVELS, score)
        torch.testing.assert_close(alone[0], together[0][rows])
        if learned_variance:
            torch.testing.assert_close(alone[1], together[1][rows])

    def test_pickles(self, langevin, learned_variance, trained):
        net = network(3, langevin, learned_variance)
        net = randomise(net) if trained else net
        x, score = normal(6, 3), normal(6, 3, seed=1) if langevin else None
        assert torch.equal(pickle.loads(pickle.dumps(net))(x, LEVELS, score)[0], net(x, LEVELS, score)[0])


class TestNoiseNetwork:
    def amplitudes(self):
        return (t[:, None] for t in noise_levels(LEVELS))

    def test_exact_for_a_standard_gaussian(self):
        """x_t is N(0, I) at every level, and eps given x_t is N(s x_t, a^2 I)."""
        x = normal(6, 3)
        a, s = self.amplitudes()
        noise, variance = network()(x, LEVELS, -x)
        torch.testing.assert_close(noise, s * x, rtol=4 * EPS, atol=4 * EPS)
        torch.testing.assert_close(variance, (a**2).expand(6, 3))

    def with_gain(self, gain=1.0, n_features=3):
        """A network that, but for the gain of the target's score, is at its start."""
        net = network(n_features)
        net.body.output.bias.data[2 * n_features : 3 * n_features] = gain
        return net

    def test_the_score_has_no_say_at_the_start(self):
        x, score = normal(6, 3), normal(6, 3, seed=1)
        _, s = self.amplitudes()
        torch.testing.assert_close(network()(x, LEVELS, score)[0], s * x, rtol=4 * EPS, atol=4 * EPS)

    def test_langevin_form(self):
        """With gain 1 the score of x_t is f score(x) - (1 - f) x with f = w^2 / (a^2 w^2 + s^2), a width a feature."""
        net, x, score = self.with_gain(), normal(6, 3), normal(6, 3, seed=1)
        net.width = torch.tensor([0.1, 0.5, 1.0])
        a, s = self.amplitudes()
        f = net.width**2 / (a**2 * net.width**2 + s**2)
        noise, _ = net(x, LEVELS, score)
        torch.testing.assert_close(noise, -s * (f * score - (1 - f) * x))

    def test_langevin_form_meets_both_ends(self):
        """At little noise the score is the target's, at much noise, for a narrow target, the prior's."""
        net, x, score = self.with_gain(), normal(2, 3), normal(2, 3, seed=1)
        net.width = torch.full((3,), 0.01)
        levels = torch.tensor([LOG_SNR_MIN, 30.0])
        s = noise_levels(levels)[1][:, None]
        estimate = -net(x, levels, score)[0] / s
        torch.testing.assert_close(estimate[0], -x[0], rtol=0, atol=2e-3)  # f is 1e-4, score and x below 5
        # 1 - f is s^2 / w^2 = 1e-9; in the noise s x cancels to its rounding
        torch.testing.assert_close(estimate[1], score[1], rtol=1e-5, atol=1e-5)

    def test_large_scores_are_clipped(self):
        net, x = self.with_gain(), torch.zeros(6, 3)
        noise, _ = net(x, LEVELS, torch.full((6, 3), -1e30))
        assert (noise[:-1] == LANGEVIN_CLIP).all()
        assert (net(x, LEVELS, torch.full((6, 3), 1e30))[0][:-1] == -LANGEVIN_CLIP).all()
        assert (noise[-1] == 0).all()  # no noise, no score

    def test_without_score(self):
        """The start is the score of the prior, -x."""
        x = normal(6, 3)
        _, s = self.amplitudes()
        noise, _ = network(langevin=False)(x, LEVELS, None)
        torch.testing.assert_close(noise, s * x)

    def test_the_target_is_without_noise_at_the_end(self):
        x = normal(6, 3)
        noise, _ = network()(x, torch.full((6,), torch.inf), -x)
        assert (noise == 0).all()

    def test_the_score_is_read(self):
        net, x = randomise(network()), normal(6, 3)
        same = net(x, LEVELS, -x)[0]
        assert (net(x, LEVELS, -x + 0.5)[0] != same)[:-1].all()

    def test_gains_are_learned(self):
        """With the output layer's bias alone: (1 + b_0) s x + b_1 + b_2 correction, and variance a^2 exp(b_3)."""
        net, x = network(1), normal(6, 1)
        net.width = torch.tensor([0.5])
        net.body.output.bias.data = torch.tensor([0.5, 0.25, 0.75, -1.0])
        a, s = self.amplitudes()
        f = 0.25 / (0.25 * a**2 + s**2)
        noise, variance = net(x, LEVELS, -4 * x)
        torch.testing.assert_close(noise, 0.25 + 1.5 * s * x + 0.75 * s * f * 3 * x)
        torch.testing.assert_close(variance, a**2 * math.exp(-1))

    @pytest.mark.parametrize("bias", [1e4, -1e4])
    def test_the_variance_is_bounded(self, bias):
        net, x = network(1), normal(6, 1)
        net.body.output.bias.data[3] = bias
        a, _ = self.amplitudes()
        torch.testing.assert_close(net(x, LEVELS, -x)[1], a**2 * math.exp(math.copysign(7, bias)))

    def test_the_width_is_saved(self):
        net, other = network(), network(seed=1)
        net.width = torch.tensor([0.1, 0.5, 1.0])
        other.load_state_dict(net.state_dict())
        x = normal(6, 3)
        assert torch.equal(other(x, LEVELS, -x)[0], net(x, LEVELS, -x)[0])
        assert torch.equal(other.width, net.width)


class TestCountEvaluations:
    def test_counts_rows_inside_the_block_alone(self):
        with seeded(0):
            network = NoiseNetwork(2, 4.0, 8, 1, langevin=False, learned_variance=False)
        x, level = torch.zeros(5, 2), torch.zeros(5)
        with count_evaluations() as count:
            network(x, level, None)
            with count_evaluations() as inner:
                network(x[:2], level[:2], None)
            network(x, level, None)
        network(x, level, None)
        assert (count.rows, inner.rows) == (10, 2)


class TestInParts:
    @pytest.mark.parametrize("n", [0, 1, 4096, 4097, 20_000])
    def test_is_the_function_of_all(self, n):
        x = normal(n, 3)
        assert torch.equal(in_parts(lambda part: 2 * part, x), 2 * x)
        doubled, total = in_parts(lambda part: (2 * part, part.sum(1)), x)
        assert torch.equal(doubled, 2 * x) and torch.equal(total, x.sum(1))

    @pytest.mark.parametrize("d, rows", [(1, 4096), (16, 4096), (64, 1024), (200, 512)])
    def test_sizes(self, d, rows):
        sizes = []
        in_parts(lambda part: sizes.append(len(part)) or part, torch.zeros(10_000, d))
        assert max(sizes) == min(rows * torch.get_num_threads(), 10_000) and sum(sizes) == 10_000


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_the_score_is_read_as_the_difference_from_a_standard_normal(factor):
    """Nothing for its own score, and of the sign of the noise otherwise."""
    network, seen = NoiseNetwork(2, 6.0, 8, 1, True, False), []
    network.body.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x, log_snr = torch.randn(9, 2, generator=torch.Generator().manual_seed(0)), torch.linspace(-2, 3, 9)
    network(x, log_snr, -factor * x)
    s = noise_levels(log_snr)[1][:, None]
    torch.testing.assert_close(seen[0], torch.cat([x, (factor - 1) * s * x], 1))
