"""One-step maps against autograd Jacobians and closed forms; exact weights against quadrature and statistics.

Statistical bounds hold for any seed: each states the probability at which it fails a correct implementation.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skcds.density.energy import Energy
from skcds.density.standardize import Standardization, StandardizedTarget
from skcds.models.maps import MAPS, CouplingMap, OneStepModel, ResidualMap, coupling_masks, coupling_sizes
from skcds.models.networks import GatedMLP, ResidualMLP, seeded
from skcds.models.process import LOG_SNR_MIN, noise_levels
from skcds.targets import Gaussian

LOG_SNR_MAX = 6.0
Z = 5.5  # two-sided tail of the normal distribution: 4e-8; with the skewness of the weights here below 1e-6
BOUND, BINS = 5.0, 8

levels = st.floats(LOG_SNR_MIN, LOG_SNR_MAX) | st.just(math.inf)
seeds = st.integers(0, 99)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def perturbed(module, scale, seed=0):
    """Move the output layers, which start at zero."""
    source = generator(seed)
    for part in module.modules():
        if isinstance(part, (GatedMLP, ResidualMLP)):
            for parameter in part.output.parameters():
                parameter.data += scale * torch.randn(parameter.shape, generator=source)
    return module.requires_grad_(False)


def random_map(kind, d, seed=0, scale=0.2, **sizes):
    """A map in float64 that is not the identity."""
    with seeded(seed):
        consistency_map = MAPS[kind](d, LOG_SNR_MAX, hidden=16, n_layers=2, **sizes)
    return perturbed(consistency_map, scale, seed).double()


def random_model(kind, d, seed=0, scale=0.2, loc=0.0, sd=1.0):
    """A one-step model that is not the identity, in the coordinates x = loc + sd z."""
    with seeded(seed):
        model = OneStepModel(kind, d, LOG_SNR_MAX, False, hidden=16, n_layers=2)
    model.standardization.loc, model.standardization.scale = (
        torch.full((d,), loc).double(),
        torch.full((d,), sd).double(),
    )
    return perturbed(model, scale, seed)


def points(n, d, seed=0, scale=1.5):
    return scale * torch.randn(n, d, generator=generator(seed), dtype=torch.float64)


def at(level, n):
    return torch.full((n,), level, dtype=torch.float64)


def autograd_jacobian(consistency_map, x, level, to=math.inf):
    """Reverse mode, row by row: (n, d, d)."""

    def single(row):
        return consistency_map(row[None], at(level, 1), at(to, 1))[0]

    return torch.stack([torch.autograd.functional.jacobian(single, row) for row in x])


class TestBoundary:
    """f(x, 0) = x, whatever the network."""

    @given(st.integers(1, 7), seeds)
    def test_residual_is_exact(self, d, seed):
        x = points(20, d, seed, scale=4)
        assert torch.equal(random_map("residual", d, seed, scale=3.0)(x, at(math.inf, 20)), x)
        with seeded(seed):
            single = perturbed(ResidualMap(d, LOG_SNR_MAX, 16, 2), 3.0, seed)
        assert torch.equal(single(x.float(), at(math.inf, 20).float()), x.float())

    @given(st.integers(1, 7), seeds, st.sampled_from([torch.float32, torch.float64]))
    def test_coupling_is_exact_to_rounding(self, d, seed, dtype):
        # four splines with the identity's knots: each is a handful of operations on numbers of at most BOUND
        x = points(20, d, seed, scale=4).to(dtype)
        consistency_map = random_map("coupling", d, seed, scale=3.0).to(dtype)
        y, log_det = consistency_map.call_and_log_det(x, at(math.inf, 20).to(dtype))
        rounding = 4 * 8 * torch.finfo(dtype).eps
        torch.testing.assert_close(y, x, rtol=0, atol=BOUND * rounding)
        torch.testing.assert_close(log_det, torch.zeros(20, dtype=dtype), rtol=0, atol=BINS * d * rounding)

    @pytest.mark.parametrize("kind", MAPS)
    def test_other_levels_move(self, kind):  # negative control
        x = points(20, 2)
        consistency_map = random_map(kind, 2)
        ends = [consistency_map(x, at(level, 20)) for level in (LOG_SNR_MIN, 0.0, 3.0)]
        assert all((end - x).abs().max() > 0.1 for end in ends)
        assert (ends[0] - ends[1]).abs().max() > 0.1  # the level is read

    @pytest.mark.parametrize("level", [LOG_SNR_MIN, 0.0, LOG_SNR_MAX])
    def test_untrained(self, level):
        x = points(20, 3)
        with seeded(0):
            coupling = CouplingMap(3, LOG_SNR_MAX, 16, 2).double()
            residual = ResidualMap(3, LOG_SNR_MAX, 16, 2).double()
        torch.testing.assert_close(coupling(x, at(level, 20)), x)
        torch.testing.assert_close(residual(x, at(level, 20)), noise_levels(at(level, 1))[0] * x)

    @pytest.mark.parametrize("kind", MAPS)
    def test_is_continuous(self, kind):  # |f(x, t) - x| is of the order of s
        x = points(20, 2)
        for level in (10.0, 20.0, 30.0):
            deviation = (random_map(kind, 2)(x, at(level, 20)) - x).abs().max()
            assert 0 < deviation < 20 * noise_levels(at(level, 1))[1]


class TestCouplingMasks:
    @given(st.integers(1, 70), st.integers(2, 16))
    def test_every_coordinate_moves(self, d, n_transforms):
        masks = torch.stack(coupling_masks(d, n_transforms))
        assert masks.shape == (n_transforms, d) and masks.dtype == torch.bool
        assert masks.any(0).all() and masks.any(1).all()
        for first, second in zip(masks[::2], masks[1::2], strict=False):
            assert d == 1 or torch.equal(first, ~second)  # the others condition

    @given(st.integers(2, 40))
    def test_every_pair_of_coordinates_meets(self, d):
        masks = torch.stack(coupling_masks(d, 2 * math.ceil(math.log2(d)))).double()
        moved_given = masks.T @ (1 - masks)  # (d, d), how often j conditions i
        assert (moved_given + torch.eye(d) > 0).all()

    @pytest.mark.parametrize("d", range(1, 8))
    def test_the_map_moves_every_coordinate(self, d):
        x = points(50, d)
        moved = random_map("coupling", d)(x, at(LOG_SNR_MIN, 50)) - x
        assert (moved.abs().amax(0) > 1e-3).all()


class TestCouplingMap:
    @given(st.integers(1, 7), levels, seeds, st.booleans(), st.booleans())
    def test_inverse(self, d, level, seed, stretch, elementwise):
        # float64; the slopes of the perturbed splines lie within a few orders of magnitude of 1
        consistency_map = random_map("coupling", d, seed, stretch=stretch, elementwise=elementwise)
        x, level = points(30, d, seed), at(level, 30)
        y, log_det = consistency_map.call_and_log_det(x, level)
        back, log_det_back = consistency_map.inverse_and_log_det(y, level)
        torch.testing.assert_close(back, x, rtol=0, atol=1e-8)
        torch.testing.assert_close(log_det_back, -log_det, rtol=0, atol=1e-8)
        assert torch.equal(consistency_map(x, level), y)

    @given(st.integers(1, 7), levels, seeds, st.booleans(), st.booleans())
    def test_log_det(self, d, level, seed, stretch, elementwise):
        consistency_map = random_map("coupling", d, seed, stretch=stretch, elementwise=elementwise)
        x = points(5, d, seed)
        sign, truth = torch.linalg.slogdet(autograd_jacobian(consistency_map, x, level))
        assert (sign == 1).all()
        torch.testing.assert_close(consistency_map.call_and_log_det(x, at(level, 5))[1], truth, rtol=0, atol=1e-9)

    def test_log_det_is_not_trivial(self):  # negative control: the checks above would pass for the identity
        log_det = random_map("coupling", 3).call_and_log_det(points(100, 3), at(LOG_SNR_MIN, 100))[1]
        assert log_det.std() > 0.1

    @pytest.mark.parametrize("d", [1, 3])
    def test_outside_the_splines(self, d):
        consistency_map = random_map("coupling", d, scale=1.0)
        x = torch.tensor([[-1e6], [-5.5], [-5.0], [5.0], [5.5], [40.0]], dtype=torch.float64).expand(-1, d)
        y, log_det = consistency_map.call_and_log_det(x, at(LOG_SNR_MIN, 6))
        back, log_det_back = consistency_map.inverse_and_log_det(x, at(LOG_SNR_MIN, 6))
        outside = (x.abs() > BOUND).all(1)
        assert torch.equal(y[outside], x[outside]) and torch.equal(back[outside], x[outside])
        assert (log_det[outside] == 0).all() and (log_det_back[outside] == 0).all()
        torch.testing.assert_close(y, x)  # continuous at the bound

    def test_stretches_reach_beyond_the_splines(self):
        x = points(2000, 2).clamp(-4.9, 4.9)
        reach = [random_map("coupling", 2, scale=1.0, stretch=stretch)(x, at(LOG_SNR_MIN, 2000)).abs().max()
                 for stretch in (True, False)]  # fmt: skip
        assert reach[0] > 2 * BOUND and reach[1] <= BOUND

    def test_splines_of_single_coordinates(self):
        """Without couplings a coordinate depends on itself alone, and one level for all is that of each."""
        consistency_map, x = random_map("coupling", 3, n_transforms=0, elementwise=True), points(5, 3)
        jacobian = autograd_jacobian(consistency_map, x, 0.0)
        assert (jacobian.diagonal(dim1=1, dim2=2) > 0).all() and (jacobian.diagonal(dim1=1, dim2=2) != 1).any()
        assert torch.equal(jacobian, jacobian.diagonal(dim1=1, dim2=2).diag_embed())
        y = consistency_map(x, at(0.0, 5))
        torch.testing.assert_close(consistency_map(x, at(0.0, 1)), y, rtol=0, atol=1e-12)
        untrained = random_map("coupling", 3, scale=0.0, elementwise=True)
        torch.testing.assert_close(untrained(x, at(0.0, 5)), x, rtol=0, atol=1e-12)

    def test_one_coordinate_outside(self):
        consistency_map, x = random_map("coupling", 2), points(50, 2)
        x[:, 0] = 7.0
        y, _ = consistency_map.call_and_log_det(x, at(0.0, 50))
        assert (y[:, 0] == 7).all() and (y[:, 1] - x[:, 1]).abs().max() > 0.1
        truth = torch.linalg.slogdet(autograd_jacobian(consistency_map, x, 0.0))[1]
        torch.testing.assert_close(consistency_map.call_and_log_det(x, at(0.0, 50))[1], truth)

    def test_is_monotone_in_one_dimension(self):
        x = torch.linspace(-8, 8, 5001, dtype=torch.float64)[:, None]
        y = random_map("coupling", 1, scale=1.0)(x, at(LOG_SNR_MIN, len(x)))
        assert (y.diff(dim=0) > 0).all()

    @pytest.mark.parametrize("kind", MAPS)
    def test_rows_do_not_depend_on_each_other(self, kind):
        consistency_map, x = random_map(kind, 3), points(20, 3)
        level = torch.linspace(LOG_SNR_MIN, LOG_SNR_MAX, 20, dtype=torch.float64)
        together, log_det = consistency_map.call_and_log_det(x, level)
        alone, log_det_alone = consistency_map.call_and_log_det(x[7:8], level[7:8])
        torch.testing.assert_close(together[7:8], alone)
        torch.testing.assert_close(log_det[7:8], log_det_alone)

    def test_gradients_are_finite_everywhere(self):
        with seeded(0):
            consistency_map = CouplingMap(2, LOG_SNR_MAX, 16, 2)
        perturbed(consistency_map, 0.2).requires_grad_(True)
        x = torch.cat([points(50, 2).float(), torch.full((3, 2), 9.0), torch.full((1, 2), BOUND), torch.zeros(1, 2)])
        level = torch.cat([torch.linspace(LOG_SNR_MIN, LOG_SNR_MAX, 50), torch.full((5,), math.inf)])
        for call in (consistency_map.call_and_log_det, consistency_map.inverse_and_log_det):
            consistency_map.zero_grad()
            y, log_det = call(x, level)
            (y.sum() + log_det.sum()).backward()
            assert all(p.grad.isfinite().all() for p in consistency_map.parameters())


class TestResidualMap:
    @given(st.integers(1, 5), levels, seeds)
    def test_jacobian(self, d, level, seed):
        consistency_map, x = random_map("residual", d, seed), points(4, d, seed)
        y, jacobian = consistency_map.jacobian(x, at(level, 4))
        truth = autograd_jacobian(consistency_map, x, level)
        torch.testing.assert_close(y, consistency_map(x, at(level, 4)))
        torch.testing.assert_close(jacobian, truth)
        image, log_det = consistency_map.call_and_log_det(x, at(level, 4))
        torch.testing.assert_close(image, y)
        torch.testing.assert_close(log_det, torch.linalg.slogdet(truth)[1], rtol=0, atol=1e-9)

    def test_is_not_symmetric(self):  # negative control: a transposed Jacobian would fail
        jacobian = random_map("residual", 3).jacobian(points(4, 3), at(LOG_SNR_MIN, 4))[1]
        assert (jacobian - jacobian.mT).abs().max() > 0.1

    def test_log_det_has_a_gradient(self):
        consistency_map = random_map("residual", 2).requires_grad_(True)
        x = points(3, 2)

        def total(bias):
            state = {"body.output.weight": consistency_map.body.output.weight.detach() * bias}
            call = torch.func.functional_call
            jacobian = torch.stack(
                [
                    torch.autograd.functional.jacobian(
                        lambda r: call(consistency_map, state, (r[None], at(0.0, 1)))[0], row, create_graph=True
                    )
                    for row in x
                ]
            )
            return torch.linalg.slogdet(jacobian)[1].sum()

        scale = torch.ones((), dtype=torch.float64, requires_grad=True)
        (truth,) = torch.autograd.grad(total(scale), scale)
        consistency_map.call_and_log_det(x, at(0.0, 3))[1].sum().backward()
        weight = consistency_map.body.output.weight
        torch.testing.assert_close((weight.grad * weight).sum(), truth)

    def test_can_fold(self):  # what separates the two kinds
        x = points(2000, 1)
        slope = random_map("residual", 1, seed=1, scale=2.0).jacobian(x, at(LOG_SNR_MIN, 2000))[1]
        assert slope.min() < 0 < slope.max()
        assert CouplingMap.invertible and not ResidualMap.invertible


class TestTwoLevels:
    """F(x, t, t'), the identity at t' = t, the consistency map at t' = 0."""

    @given(st.integers(1, 5), levels, seeds)
    def test_standing_still(self, d, level, seed):
        x, level = points(20, d, seed, scale=3), at(level, 20)
        assert torch.equal(random_map("residual", d, seed, scale=3.0, two_levels=True)(x, level, level), x)
        coupling = random_map("coupling", d, seed, scale=3.0, two_levels=True)
        y, log_det = coupling.call_and_log_det(x, level, level)
        torch.testing.assert_close(y, x, rtol=0, atol=1e-13)
        torch.testing.assert_close(log_det, torch.zeros(20).double(), rtol=0, atol=1e-13)

    @pytest.mark.parametrize("two_levels", [False, True])
    @pytest.mark.parametrize("kind", MAPS)
    def test_goes_to_the_target_by_default(self, kind, two_levels):
        x, level = points(20, 2), torch.linspace(LOG_SNR_MIN, LOG_SNR_MAX, 20).double()
        step = random_map(kind, 2, two_levels=two_levels)
        assert torch.equal(step(x, level), step(x, level, at(math.inf, 20)))
        for got, expected in zip(
            step.call_and_log_det(x, level), step.call_and_log_det(x, level, at(math.inf, 20)), strict=True
        ):
            torch.testing.assert_close(got, expected)

    @pytest.mark.parametrize("kind", MAPS)
    def test_reads_both_levels(self, kind):
        x, step = points(20, 2), random_map(kind, 2, two_levels=True)
        ends = [step(x, at(level, 20), at(to, 20)) for level, to in ((-6, 0), (-6, 2), (-3, 2), (-3, math.inf))]
        assert all((a - b).abs().max() > 0.01 for a, b in itertools.pairwise(ends))

    @given(st.integers(1, 5), levels, levels, seeds)
    def test_coupling(self, d, level, to, seed):
        level, to = sorted((level, to))
        step, x = random_map("coupling", d, seed, two_levels=True), points(3, d, seed)
        y, log_det = step.call_and_log_det(x, at(level, 3), at(to, 3))
        back, log_det_back = step.inverse_and_log_det(y, at(level, 3), at(to, 3))
        torch.testing.assert_close(back, x, rtol=0, atol=1e-8)
        torch.testing.assert_close(log_det_back, -log_det, rtol=0, atol=1e-8)
        jacobian = autograd_jacobian(step, x, level, to)
        torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobian)[1], rtol=0, atol=1e-9)

    @given(levels, levels, seeds)
    def test_residual(self, level, to, seed):
        level, to = (at(value, 5) for value in sorted((level, to)))
        step, x = random_map("residual", 2, seed, two_levels=True), points(5, 2, seed)
        (a, s), (a_to, s_to) = noise_levels(level), noise_levels(to)
        sine, cosine = (s * a_to - a * s_to)[:, None], (a * a_to + s * s_to)[:, None]  # of a difference of angles
        body = step.body(x, torch.cat([step.time(level), step.time(to)], 1))
        torch.testing.assert_close(step(x, level, to), cosine * x + sine * body)
        y, jacobian = step.jacobian(x, level, to)
        torch.testing.assert_close(y, step(x, level, to))
        log_det = step.call_and_log_det(x, level, to)[1]
        torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobian)[1])
        shifted = [step(x + h * torch.eye(2)[0], level, to) for h in (-1e-5, 1e-5)]
        torch.testing.assert_close(jacobian[:, :, 0], (shifted[1] - shifted[0]) / 2e-5, rtol=1e-5, atol=1e-8)

    def test_a_step_of_the_flow_has_the_residual_form(self):
        # x' = a' x_0 + s' eps = cos x + sin (s x_0 - a eps) where x = a x_0 + s eps
        x_0, eps = points(20, 2, seed=1), points(20, 2, seed=2)
        step = random_map("residual", 2, two_levels=True)
        (a, s), (a_to, s_to) = ((t[:, None] for t in noise_levels(at(level, 20))) for level in (-1.0, 2.0))
        step.body.forward = lambda x, condition: s * x_0 - a * eps
        moved = step(a * x_0 + s * eps, at(-1.0, 20), at(2.0, 20))
        torch.testing.assert_close(moved, a_to * x_0 + s_to * eps)


class TestLevels:
    @given(st.integers(1, 64), st.floats(0, 12))
    def test_multi_step_levels(self, n_steps, log_snr_max):
        model = OneStepModel("residual", 1, log_snr_max, False, hidden=1, n_layers=1)
        starts = model.levels(n_steps)
        assert starts.shape == (n_steps,)
        assert starts[0] == LOG_SNR_MIN == model.start()[0]
        assert (starts.diff() > 0).all() and starts[-1] < log_snr_max
        spacing = (log_snr_max - LOG_SNR_MIN) / n_steps
        torch.testing.assert_close(starts, LOG_SNR_MIN + spacing * torch.arange(n_steps), rtol=0, atol=1e-5)

    def test_config_rebuilds_the_model(self):
        model = random_model("coupling", 3)
        copy = OneStepModel(**model.config)
        copy.load_state_dict(model.state_dict())
        x = torch.randn(10, 3, generator=generator())
        assert torch.equal(copy.map(x, copy.start()), model.map(x, model.start()))

    def test_unknown_kind(self):
        with pytest.raises(KeyError):
            OneStepModel("flow", 1, 1.0, False)


def grid(n, d):
    """Quadrature nodes ((n + 1)^d, d) on [-9, 9]^d, and the volume of a cell."""
    v = torch.linspace(-9, 9, n + 1, dtype=torch.float64)
    return torch.cartesian_prod(*[v] * d).reshape(-1, d), (18 / n) ** d


class TestLogProb:
    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("d, nodes, error", [(1, 10_000, 1e-4), (2, 100, 2e-2)])
    def test_integrates_to_one(self, d, nodes, error, seed):
        # the trapezoidal rule across the spline's kinks is of second order: half the spacing, a quarter of the error
        model = random_model("coupling", d, seed).double()
        masses = [float(model.log_prob(x).exp().sum() * h) for x, h in (grid(nodes, d), grid(2 * nodes, d))]
        assert abs(masses[0] - 1) < error and abs(masses[1] - 1) < error / 4

    def test_change_of_variables(self):
        model = random_model("coupling", 3).double()
        latent = points(50, 3, scale=1)
        image, log_det = model.map.call_and_log_det(latent, model.start())
        truth = torch.distributions.Normal(0, 1).log_prob(latent).sum(1) - log_det
        torch.testing.assert_close(model.log_prob(image), truth, rtol=0, atol=1e-8)

    def test_quantiles_in_one_dimension(self):
        model = random_model("coupling", 1, scale=0.4).double()
        x = torch.linspace(-9, 9, 40_001, dtype=torch.float64)[:, None]
        mass = model.log_prob(x).exp()
        cumulative = torch.cumulative_trapezoid(mass, x[:, 0])
        latent = model.map.inverse_and_log_det(x, model.start())[0][1:, 0]
        torch.testing.assert_close(cumulative, torch.special.ndtr(latent), rtol=0, atol=1e-5)

    def test_untrained_is_the_prior(self):
        with seeded(0):
            model = OneStepModel("coupling", 2, LOG_SNR_MAX, True, hidden=8, n_layers=1)
        x = torch.randn(20, 2, generator=generator())
        torch.testing.assert_close(model.log_prob(x), torch.distributions.Normal(0, 1).log_prob(x).sum(1))


LOG_Z = 1.7


class PlusIdentity(torch.nn.Module):
    """The body of a residual map in one dimension, with its input added."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x, condition):
        return x + self.body(x, condition)


def gaussian_target(model, loc, sd):
    """exp(LOG_Z) N(loc + .2, (.8 sd)^2 I) in the user's coordinates: narrower than the map's law."""
    d = model.n_features
    gaussian = Gaussian([loc + 0.2 * sd] * d, np.eye(d) * (0.8 * sd) ** 2)
    return StandardizedTarget(Energy(lambda x: gaussian(x) - LOG_Z, d, generator=generator()), model.standardization)


class TestExactWeight:
    """E[w] = Z, whatever the map."""

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("kind, scale", [("coupling", 0.15), ("residual", 0.05)])
    def test_by_quadrature(self, kind, scale, seed):
        # float32 network, 1-D: the trapezoidal rule's error is far below 1e-4, relative to Z
        model = random_model(kind, 1, seed, scale, loc=3.0, sd=2.0)
        if kind == "residual":
            model.map.body = PlusIdentity(model.map.body)  # injective
        latent, h = grid(20_000, 1)
        z, log_weights = model.call_and_log_weight(latent.float(), gaussian_target(model, 3.0, 2.0))
        log_prior = torch.distributions.Normal(0, 1).log_prob(latent).sum(1)
        assert log_weights.dtype == torch.float64 and z.shape == (20_001, 1)
        assert float((log_prior + log_weights - LOG_Z).exp().sum() * h) == pytest.approx(1, abs=2e-4)

    def z_score(self, d, seed, scale, sign=1, n=40_000):
        """Of the mean weight about Z; the weights' standard deviation is measured below 2 Z, their skewness below 8."""
        model = random_model("coupling", d, seed, scale)
        latent = torch.randn(n, d, generator=generator(100 + seed))
        log_weights = model.call_and_log_weight(latent, gaussian_target(model, 0.0, 1.0))[1] - LOG_Z
        log_det = model.map.call_and_log_det(latent, model.start())[1]
        weights = (log_weights + (sign - 1) * log_det.double()).exp()
        assert sign == -1 or weights.std() < 2
        return float((weights.mean() - 1) / weights.std() * n**0.5)

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("d, scale", [(1, 0.15), (3, 0.06)])
    def test_is_unbiased(self, d, scale, seed):  # a bias of 6 % of Z would be found
        assert abs(self.z_score(d, seed, scale)) < Z

    @pytest.mark.parametrize("seed", range(3))
    def test_a_flipped_log_det_is_found(self, seed):  # negative control
        assert abs(self.z_score(2, seed, 0.1, sign=-1)) > Z

    def test_formula(self):
        model = random_model("residual", 3, loc=-1.0, sd=2.0)
        target = gaussian_target(model, -1.0, 2.0)
        latent = torch.randn(20, 3, generator=generator())
        z, log_weights = model.call_and_log_weight(latent, target)
        jacobian = autograd_jacobian(model.map.double(), latent.double(), LOG_SNR_MIN)
        log_prior = torch.distributions.Normal(0, 1).log_prob(latent.double()).sum(1)
        x = -1.0 + 2.0 * z.double()
        log_rho = LOG_Z + torch.distributions.Normal(-0.6, 1.6).log_prob(x).sum(1) + 3 * math.log(2)
        torch.testing.assert_close(
            log_weights, log_rho + torch.linalg.slogdet(jacobian)[1] - log_prior, rtol=0, atol=1e-4
        )

    def test_needs_no_graph(self):
        model = random_model("coupling", 2).requires_grad_(True)
        z, log_weights = model.call_and_log_weight(torch.zeros(3, 2), gaussian_target(model, 0.0, 1.0))
        assert not z.requires_grad and not log_weights.requires_grad

    def test_zero_density(self):
        model = random_model("coupling", 1)
        box = Energy(lambda x: torch.where(x[:, 0] > 0, 0.0, torch.inf), 1, generator=generator())
        latent = torch.randn(50, 1, generator=generator())
        z, log_weights = model.call_and_log_weight(latent, StandardizedTarget(box, Standardization(1)))
        assert torch.equal(log_weights > -torch.inf, z[:, 0] > 0)


class TestCouplingSizes:
    def test_larger_for_fine_scales(self):
        """A finest scale w has its last noisy level at w / 3; the sizes change at a tenth."""
        coarse, fine = (coupling_sizes(5, -2 * math.log(w / 3)) for w in (0.12, 0.08))
        assert coarse == {
            "hidden": 64, "n_layers": 2, "n_transforms": 4, "bins": 8, "stretch": True, "elementwise": False
        }  # fmt: skip
        assert all(fine[name] >= coarse[name] for name in coarse) and fine["bins"] == 16

    def test_more_bins_in_low_dimension(self):
        for log_snr_max in (6.0, 9.0):
            low, high = coupling_sizes(4, log_snr_max), coupling_sizes(5, log_snr_max)
            assert low["bins"] == 32 > high["bins"] and low | {"bins": 0} == high | {"bins": 0}

    def test_what_is_given_is_kept(self):
        assert coupling_sizes(2, 9.0, bins=5, hidden=None) == {**coupling_sizes(2, 9.0), "bins": 5}
