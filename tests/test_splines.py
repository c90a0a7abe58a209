"""The splines against another implementation, finite differences and what a monotonic map has to be."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from zuko.transforms import MonotonicRQSTransform

from skcds.models.splines import MAX_LOG_STRETCH, MIN_SLOPE, n_numbers, rational_quadratic_spline, stretched_spline

BOUND = 5.0

bins = st.integers(2, 16)
scales = st.sampled_from([0.0, 0.1, 2.0, 50.0])
seeds = st.integers(0, 999)


def problem(n_bins, scale=1.0, seed=0, shape=(40, 3), dtype=torch.float64):
    """Points, some of them outside, and parameters."""
    source = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(shape, generator=source, dtype=torch.float64)
    phi = scale * torch.randn(*shape, 3 * n_bins - 1, generator=source, dtype=torch.float64)
    return x.to(dtype), phi.to(dtype)


def other(x, phi, inverse):
    """The same map by the library zuko."""
    n_bins = (phi.shape[-1] + 1) // 3
    transform = MonotonicRQSTransform(*phi.split([n_bins, n_bins, n_bins - 1], -1), bound=BOUND, slope=MIN_SLOPE)
    return (transform.inv if inverse else transform).call_and_ladj(x)


class TestValue:
    @given(bins, scales, seeds, st.booleans())
    def test_is_that_of_another_implementation(self, n_bins, scale, seed, inverse):
        x, phi = problem(n_bins, scale, seed)
        atol = 1e-8 if scale < 50 else 1e-5  # slopes and their changes are then in the thousands
        for ours, theirs in zip(
            rational_quadratic_spline(x, phi, BOUND, inverse=inverse), other(x, phi, inverse), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)

    @given(bins, seeds, st.booleans())
    def test_float32(self, n_bins, seed, inverse):
        """Bins of parameters of order 1 are a hundredth of the interval or wider: 1e-6 is 1e-5 of them."""
        x, phi = problem(n_bins, 1.0, seed)
        truth = rational_quadratic_spline(x, phi, BOUND, inverse=inverse)
        got = rational_quadratic_spline(x.float(), phi.float(), BOUND, inverse=inverse)
        for value, expected in zip(got, truth, strict=True):
            assert value.dtype == torch.float32
            torch.testing.assert_close(value.double(), expected, rtol=0, atol=5e-4)

    @given(bins, st.sampled_from([0.1, 2.0]), seeds)
    def test_inverse(self, n_bins, scale, seed):
        x, phi = problem(n_bins, scale, seed)
        y, log_slope = rational_quadratic_spline(x, phi, BOUND)
        back, log_slope_back = rational_quadratic_spline(y, phi, BOUND, inverse=True)
        torch.testing.assert_close(back, x, rtol=0, atol=1e-7)
        torch.testing.assert_close(log_slope_back, -log_slope, rtol=0, atol=1e-5)

    @given(bins, scales, seeds, st.booleans())
    def test_monotonic(self, n_bins, scale, seed, inverse):
        phi = problem(n_bins, scale, seed, (1,))[1].expand(2001, -1)
        y, _ = rational_quadratic_spline(torch.linspace(-6, 6, 2001, dtype=torch.float64), phi, BOUND, inverse=inverse)
        assert (y.diff() > 0).all()

    @pytest.mark.parametrize("inverse", [False, True])
    def test_identity_outside_at_the_ends_and_for_zeros(self, inverse):
        x, phi = problem(8, 2.0)
        outside = torch.tensor([-1e30, -7.0, -BOUND, BOUND, 7.0, math.inf, -math.inf], dtype=torch.float64)
        y, log_slope = rational_quadratic_spline(outside, phi[:7, 0], BOUND, inverse=inverse)
        assert torch.equal(y, outside)
        assert (log_slope == 0).all()
        y, log_slope = rational_quadratic_spline(x, torch.zeros_like(phi), BOUND, inverse=inverse)
        torch.testing.assert_close(y, x, rtol=0, atol=1e-14)
        torch.testing.assert_close(log_slope, torch.zeros_like(x), rtol=0, atol=1e-13)

    @pytest.mark.parametrize("inverse", [False, True])
    def test_at_the_knots(self, inverse):
        """Value and slope are those of both bins."""
        _, phi = problem(4, 1.0, shape=(1,))
        shares = (phi[0, :8].view(2, 4) / (1 - 2 * phi[0, :8].view(2, 4).abs() / math.log(MIN_SLOPE))).softmax(-1)
        knots = BOUND * (2 * shares.cumsum(-1)[:, :3] - 1)
        start, end = (knots[1], knots[0]) if inverse else knots
        for shift in (-1e-12, 0.0, 1e-12):
            y, log_slope = rational_quadratic_spline(start + shift, phi.expand(3, -1), BOUND, inverse=inverse)
            torch.testing.assert_close(y, end, rtol=0, atol=1e-10)
            logits = phi[0, 8:] / (1 - phi[0, 8:].abs() / math.log(MIN_SLOPE))
            torch.testing.assert_close(log_slope, -logits if inverse else logits, rtol=0, atol=1e-9)

    def test_not_a_number_stays_one_and_concerns_its_row_alone(self):
        x, phi = problem(8)
        spoiled = x.clone()
        spoiled[3] = math.nan
        y, _ = rational_quadratic_spline(spoiled, phi, BOUND)
        assert y[3].isnan().all()
        rest = torch.arange(len(x)) != 3
        assert torch.equal(y[rest], rational_quadratic_spline(x, phi, BOUND)[0][rest])


class TestSharedByRows:
    """Numbers (d, m) for points (n, d) against the same ones repeated for each row."""

    @given(bins, scales, seeds, st.booleans(), st.sampled_from([1, 2, 40]))
    def test_value_is_to_the_bit_that_of_repeated_numbers(self, n_bins, scale, seed, inverse, n):
        x, phi = problem(n_bins, scale, seed, (n, 3), torch.float32)
        shared = rational_quadratic_spline(x, phi[0], BOUND, inverse=inverse)
        repeated = rational_quadratic_spline(x, phi[:1].expand(n, -1, -1), BOUND, inverse=inverse)
        for one, other in zip(shared, repeated, strict=True):
            assert torch.equal(one, other)
            assert one.is_contiguous()

    @given(bins, st.sampled_from([0.0, 0.1, 2.0]), seeds, st.booleans(), st.sampled_from([1, 2, 40]))
    def test_gradient(self, n_bins, scale, seed, inverse, n):
        x, phi = problem(n_bins, scale, seed, (n, 3))
        of_value, of_slope = torch.randn(
            2, n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )  # fmt: skip
        found = []
        for is_shared in (True, False):
            leaves = x.clone().requires_grad_(), phi[0].clone().requires_grad_()
            numbers = leaves[1] if is_shared else leaves[1].expand(n, -1, -1)
            y, log_slope = rational_quadratic_spline(leaves[0], numbers, BOUND, inverse=inverse)
            found.append(torch.autograd.grad((of_value * y + of_slope * log_slope).sum(), leaves))
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)

    def test_makes_nothing_of_the_size_of_points_times_bins(self):
        n, d, n_bins = 2000, 50, 64
        x, phi = torch.randn(n, d), torch.zeros(d, 3 * n_bins, requires_grad=True)
        largest = 0

        def note(tensor):
            nonlocal largest
            largest = max(largest, tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            y, log_slope = stretched_spline(x, phi, BOUND)
        (y.sum() + log_slope.sum()).backward()
        assert 0 < largest <= 2 * n * d


class TestGradient:
    @given(bins, st.sampled_from([0.0, 0.1, 1.0]), seeds, st.booleans())
    def test_is_that_of_another_implementation(self, n_bins, scale, seed, inverse):
        x, phi = problem(n_bins, scale, seed)
        source = torch.Generator().manual_seed(seed)
        of_value, of_slope = torch.randn(2, *x.shape, generator=source, dtype=torch.float64)
        gradients = []
        for function in (lambda x, phi: rational_quadratic_spline(x, phi, BOUND, inverse=inverse),
                         lambda x, phi: other(x, phi, inverse)):  # fmt: skip
            leaves = x.clone().requires_grad_(), phi.clone().requires_grad_()
            y, log_slope = function(*leaves)
            gradients.append(torch.autograd.grad((of_value * y + of_slope * log_slope).sum(), leaves))
        for ours, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)

    @pytest.mark.parametrize("inverse", [False, True])
    @pytest.mark.parametrize("n_bins", [2, 5])
    def test_is_that_of_finite_differences(self, n_bins, inverse):
        leaves = [leaf.requires_grad_() for leaf in problem(n_bins, 1.0, shape=(6, 2))]
        assert torch.autograd.gradcheck(
            lambda x, phi: rational_quadratic_spline(x, phi, BOUND, inverse=inverse), leaves
        )

    def test_outside(self):
        x, phi = (leaf.requires_grad_() for leaf in problem(8, shape=(2,)))
        with torch.no_grad():
            x.copy_(torch.tensor([7.0, -9.0]))
        y, log_slope = rational_quadratic_spline(x, phi, BOUND)
        (y + log_slope).sum().backward()
        assert (x.grad == 1).all()
        assert (phi.grad == 0).all()

    def test_a_second_derivative_is_refused(self):
        x, phi = (leaf.requires_grad_() for leaf in problem(8))
        y, _ = rational_quadratic_spline(x, phi, BOUND)
        gradient = torch.autograd.grad((y**2).sum(), x, create_graph=True)[0]
        with pytest.raises(RuntimeError, match="once_differentiable"):
            gradient.sum().backward()


class TestStretched:
    @given(bins, seeds)
    def test_is_the_spline_times_a_factor(self, n_bins, seed):
        x, phi = problem(n_bins, 1.0, seed)
        s = torch.linspace(-20, 20, x.numel(), dtype=torch.float64).view_as(x)
        y, log_slope = stretched_spline(x, torch.cat([phi, s[..., None]], -1), BOUND)
        plain, log_slope_plain = rational_quadratic_spline(x, phi, BOUND)
        factor = y / plain
        torch.testing.assert_close(log_slope - log_slope_plain, factor.log())
        small = s.abs() < 0.1
        torch.testing.assert_close(factor.log()[small], s[small], rtol=1e-3, atol=0)
        assert (factor.log().abs() <= MAX_LOG_STRETCH).all() and factor.max() > 20 and factor.min() < 0.05

    @given(bins, st.sampled_from([0.1, 2.0]), seeds)
    def test_inverse(self, n_bins, scale, seed):
        x, phi = problem(n_bins, scale, seed)
        phi = torch.cat([phi, scale * x.roll(1, 1)[..., None]], -1)
        y, log_slope = stretched_spline(x, phi, BOUND)
        back, log_slope_back = stretched_spline(y, phi, BOUND, inverse=True)
        torch.testing.assert_close(back, x, rtol=0, atol=1e-7)
        torch.testing.assert_close(log_slope_back, -log_slope, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("inverse", [False, True])
    def test_gradient_is_that_of_finite_differences(self, inverse):
        x, phi = problem(4, 1.0, 3, (6, 2))
        phi = torch.cat([phi, torch.ones(6, 2, 1, dtype=torch.float64)], -1)
        assert torch.autograd.gradcheck(
            lambda x, phi: stretched_spline(x, phi, BOUND, inverse=inverse),
            (x.requires_grad_(), phi.requires_grad_()),
        )

    def test_zeros_are_the_identity(self):
        x, _ = problem(5)
        y, log_slope = stretched_spline(x, x.new_zeros(*x.shape, n_numbers(5, stretch=True)), BOUND)
        torch.testing.assert_close(y, x)
        torch.testing.assert_close(log_slope, torch.zeros_like(x), rtol=0, atol=1e-12)
