"""The noising process against its defining identities, and generative steps against the exact laws of a Gaussian."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skcds.models.process import LOG_SNR_MIN, Grid, heun_step, noise_levels, reverse_kernel

EPS = 2.0**-24  # half a unit in the last place of float32, in which a grid is held
grids = st.builds(Grid, st.integers(2, 200), st.floats(0.0, 20.0))
TAU = torch.tensor([0.3, 1.0, 1.2], dtype=torch.float64)  # standard deviations of a Gaussian target
SHIFT = torch.tensor([0.5, -1.0, 0.0], dtype=torch.float64)  # its mean


def exact_levels(grid):
    """a and s in float64, from the definition."""
    log_snr = np.linspace(LOG_SNR_MIN, float(grid.log_snr[-1]), grid.n_steps)
    a2 = np.append(1 / (1 + np.exp(-log_snr)), 1.0)
    return np.sqrt(a2), np.sqrt(np.append(1 / (1 + np.exp(log_snr)), 0.0))


class TestNoiseLevels:
    @given(st.floats(-30, 30))
    def test_definition(self, log_snr):
        a, s = noise_levels(torch.tensor(log_snr, dtype=torch.float64))
        assert float(a**2 + s**2) == pytest.approx(1, rel=1e-14)
        assert float(2 * (a / s).log()) == pytest.approx(log_snr, abs=1e-13)

    def test_ends(self):
        a, s = noise_levels(torch.tensor([-torch.inf, 0.0, torch.inf]))
        np.testing.assert_allclose(a, [0, 0.5**0.5, 1])
        np.testing.assert_allclose(s, [1, 0.5**0.5, 0])


class TestGrid:
    @given(grids)
    def test_levels(self, grid):
        n = grid.n_steps
        assert [len(t) for t in (grid.log_snr, grid.a, grid.s, grid.b, grid.v)] == [n, n + 1, n + 1, n, n]
        assert all(t.dtype == torch.float32 for t in (grid.log_snr, grid.a, grid.s, grid.b, grid.v))
        a, s = exact_levels(grid)
        np.testing.assert_allclose(grid.a, a, rtol=40 * EPS)  # the last log_snr is known to 20 EPS only, absolutely
        np.testing.assert_allclose(grid.s, s, rtol=40 * EPS)
        np.testing.assert_allclose(grid.a.double() ** 2 + grid.s.double() ** 2, 1, rtol=3 * EPS)

    @given(grids)
    def test_is_monotone(self, grid):
        assert (grid.log_snr.diff() > 0).all() and (grid.s.diff() < 0).all()
        assert (grid.a.diff() >= 0).all()  # a is 1 in float32 where the noise is below 2^-12
        assert (grid.b > 0).all() and (grid.b <= 1).all() and (grid.v > 0).all() and (grid.v < 1).all()
        assert (grid.v_tilde <= grid.v).all() and (grid.kappa > 0).all()

    @given(grids)
    def test_is_uniform_in_log_snr(self, grid):
        gaps = grid.log_snr.double().diff()
        np.testing.assert_allclose(gaps, gaps.mean(), rtol=0, atol=2 * 20 * EPS)
        assert float(grid.log_snr[0]) == LOG_SNR_MIN
        assert grid.a[-1] == 1 and grid.s[-1] == 0

    @given(grids)
    def test_steps_compose_to_the_marginal_kernel(self, grid):
        """x_k given x_N is N(a_k x_N, s_k^2), by one noising step after the other. The rounding of n factors adds up;
        relative to the accumulated variance, which only grows, every step adds that of three operations."""
        shrink, variance = np.ones(()), np.zeros(())
        for k in reversed(range(grid.n_steps)):
            b, v = float(grid.b[k]), float(grid.v[k])
            shrink, variance = b * shrink, b**2 * variance + v
            tolerance = 3 * (grid.n_steps - k) * EPS
            assert shrink == pytest.approx(float(grid.a[k]), rel=tolerance)
            assert variance == pytest.approx(float(grid.s[k]) ** 2, rel=tolerance)

    @given(grids)
    def test_variances_against_direct_formulas(self, grid):
        """1 - b^2; the variance of x_{k+1} given x_k and x_0 by adding precisions; and kappa as a squared slope."""
        a, s = exact_levels(grid)
        b = a[:-1] / a[1:]
        v = 1 - b**2
        # the direct formula cancels: its own error is of float64, and that of the last log_snr
        np.testing.assert_allclose(grid.b, b, rtol=80 * EPS)
        np.testing.assert_allclose(grid.v, v, rtol=80 * EPS, atol=1e-15)
        v, b = grid.v.double().numpy()[:-1], b[:-1]
        np.testing.assert_allclose(grid.v_tilde[:-1], 1 / (b**2 / v + 1 / s[1:-1] ** 2), rtol=200 * EPS)
        assert grid.v_tilde[-1] == 0
        slope = grid.v.double() / (grid.b.double() * grid.s[:-1].double())  # of the mean of x_{k+1} in eps
        np.testing.assert_allclose(grid.kappa, slope**2, rtol=10 * EPS)

    def test_one_step(self):
        grid = Grid(1, 5.0)
        a2 = 1 / (1 + math.exp(-LOG_SNR_MIN))
        assert float(grid.b[0]) == pytest.approx(math.sqrt(a2), rel=2 * EPS)
        assert float(grid.v[0]) == pytest.approx(1 - a2, rel=2 * EPS) and grid.v_tilde[0] == 0

    def test_the_prior_end_can_be_chosen(self):
        assert float(Grid(4, 5.0, log_snr_min=-3.0).log_snr[0]) == -3.0


def posterior(a, s):
    """Slope, offset and variance of x_0 given x = a x_0 + s eps, for x_0 from N(SHIFT, TAU^2)."""
    gain = a * TAU**2 / (a**2 * TAU**2 + s**2)
    return gain, SHIFT - gain * a * SHIFT, TAU**2 - gain * a * TAU**2


def gaussian_noise(a, s, x):
    """Mean and variance of eps given x, (n, d) and (d,): eps = (x - a x_0) / s."""
    gain, offset, variance = posterior(a, s)
    return (x - a * (gain * x + offset)) / s, (a / s) ** 2 * variance


def points(n=5, seed=0):
    return torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class TestReverseKernel:
    @given(st.integers(2, 100), st.floats(1.0, 8.0), st.integers(0, 99))
    def test_exact_for_a_gaussian(self, n_steps, log_snr_max, seed):
        """x_{k+1} given x_k by conditioning the joint Gaussian of both: Cov[x_{k+1}, x_k] = b_k Var[x_{k+1}]."""
        grid = Grid(n_steps, log_snr_max)
        k, x = seed % n_steps, points(seed=seed)
        a, s, b, a_next, s_next = (t.double() for t in (grid.a[k], grid.s[k], grid.b[k], grid.a[k + 1], grid.s[k + 1]))
        noise, noise_var = gaussian_noise(a, s, x)
        mean, variance = reverse_kernel(grid, k, x, noise, noise_var.expand_as(x))
        marginal, marginal_next = a**2 * TAU**2 + s**2, a_next**2 * TAU**2 + s_next**2
        gain = b * marginal_next / marginal
        # noise and variance of eps are known to a few EPS / s; v / s <= s and kappa <= s^2 / b^2 bring the s back
        tolerance = 100 * EPS / float(b) ** 2
        torch.testing.assert_close(mean, a_next * SHIFT + gain * (x - a * SHIFT), rtol=tolerance, atol=10 * tolerance)
        # Var[x_{k+1}] - gain^2 Var[x_k] without cancellation
        exact_variance = (grid.v[k].double() * marginal_next / marginal).expand_as(x)
        torch.testing.assert_close(variance, exact_variance, rtol=100 * EPS / float(b) ** 2, atol=0)

    def test_the_fixed_variance_is_not_exact(self):  # negative control
        grid, x = Grid(8, 4.0), points()
        noise, noise_var = gaussian_noise(grid.a[3].double(), grid.s[3].double(), x)
        mean, learned = reverse_kernel(grid, 3, x, noise, noise_var.expand_as(x))
        same_mean, fixed = reverse_kernel(grid, 3, x, noise, None)
        assert torch.equal(mean, same_mean)
        assert fixed.shape == x.shape and (fixed == grid.v[3]).all()
        assert ((fixed / learned - 1).abs() > 0.05)[:, [0, 2]].all()  # the coordinates that are not N(., 1)
        torch.testing.assert_close(learned[:, 1], fixed[:, 1].double(), rtol=1e-5, atol=0)

    def test_mean_is_the_score_step(self):
        """(x + v S) / b with S = -noise / s."""
        grid, x, noise = Grid(8, 4.0), points(), points(seed=1)
        mean, _ = reverse_kernel(grid, 5, x, noise, None)
        b, v, s = (float(t[5]) for t in (grid.b, grid.v, grid.s))
        torch.testing.assert_close(mean, (x - v * noise / s) / b, rtol=10 * EPS, atol=10 * EPS)

    @pytest.mark.parametrize("learned", [True, False])
    def test_indices_of_rows(self, learned):
        grid, x, noise = Grid(8, 4.0), points(8), points(8, seed=1)
        noise_var = points(8, seed=2).exp() if learned else None
        k = torch.tensor([0, 7, 3, 3, 1, 6, 2, 5])
        mean, variance = reverse_kernel(grid, k, x, noise, noise_var)
        assert mean.shape == variance.shape == x.shape
        for i, index in enumerate(k.tolist()):
            row = slice(i, i + 1)
            one = reverse_kernel(grid, index, x[row], noise[row], noise_var[row] if learned else None)
            torch.testing.assert_close(mean[row], one[0])
            torch.testing.assert_close(variance[row], one[1].expand_as(x[row]))


def euler_step(noise_fn, grid, k, x):
    noise = noise_fn(x, grid.log_snr[k])
    return grid.a[k + 1] * (x - grid.s[k] * noise) / grid.a[k] + grid.s[k + 1] * noise


def flow_noise(x, log_snr):
    return gaussian_noise(*noise_levels(log_snr.double()), x)[0]


class TestHeunStep:
    log_snr_max = 4.0

    def error(self, step, n_steps):
        """Of the flow from the first level to the last with noise; the exact one scales deviations from the mean."""
        grid = Grid(n_steps + 1, self.log_snr_max)
        x = start = 2 * points()
        for k in range(n_steps):
            x = step(flow_noise, grid, k, x)
        a, s, a_end, s_end = (t.double() for t in (grid.a[0], grid.s[0], grid.a[-2], grid.s[-2]))
        ratio = ((a_end**2 * TAU**2 + s_end**2) / (a**2 * TAU**2 + s**2)).sqrt()
        return float((x - a_end * SHIFT - ratio * (start - a * SHIFT)).abs().max())

    @pytest.mark.parametrize("n_steps", [32, 64, 128])
    def test_is_second_order(self, n_steps):
        """Errors of 1e-4 at least, far above the rounding of the grid; the next order shifts 4 by O(1 / n_steps)."""
        assert self.error(heun_step, 2 * n_steps) > 1e-5
        assert self.error(heun_step, n_steps) / self.error(heun_step, 2 * n_steps) == pytest.approx(4, abs=16 / n_steps)

    @pytest.mark.parametrize("n_steps", [32, 64, 128])
    def test_euler_is_not(self, n_steps):  # negative control
        ratio = self.error(euler_step, n_steps) / self.error(euler_step, 2 * n_steps)
        assert ratio == pytest.approx(2, abs=16 / n_steps)
        assert self.error(euler_step, n_steps) > 5 * self.error(heun_step, n_steps)

    def test_the_last_step(self):
        """One evaluation, at the last level with noise; eps falls to 0 at the target, so that half of it is taken out.

        Denoising, x_0 = (x - s eps) / a, would leave the mean given x, and the draws too narrow (negative control).
        """
        grid, x, levels = Grid(4, self.log_snr_max), points(), []

        def noise_fn(x, log_snr):
            levels.append(float(log_snr))
            return flow_noise(x, log_snr)

        result = heun_step(noise_fn, grid, 3, x)
        assert levels == [float(grid.log_snr[3])]
        gain, offset, _ = posterior(grid.a[3].double(), grid.s[3].double())
        half_way = 0.5 * (x / grid.a[3].double() + gain * x + offset)
        torch.testing.assert_close(result, half_way, rtol=100 * EPS, atol=100 * EPS)
        assert (half_way - gain * x - offset).abs().max() > 1e-3

    def test_evaluates_at_both_ends(self):
        grid, levels = Grid(4, self.log_snr_max), []

        def noise_fn(x, log_snr):
            levels.append(float(log_snr))
            return torch.zeros_like(x)

        heun_step(noise_fn, grid, 1, points())
        assert levels == [float(grid.log_snr[1]), float(grid.log_snr[2])]

    def test_exact_where_the_noise_is_constant(self):
        """x / a moves by eps times the change of s / a; a point target at c: eps = (x - a c) / s is constant."""
        grid, noise, c = Grid(6, self.log_snr_max), points(seed=1), points(seed=2)
        x = grid.a[0].double() * c + grid.s[0].double() * noise
        for k in range(5):
            x = heun_step(lambda x, log_snr: noise, grid, k, x)
        denoised = (x - grid.s[5].double() * noise) / grid.a[5].double()
        torch.testing.assert_close(denoised, c, rtol=0, atol=1000 * EPS)  # rounding relative to s / a = 20 at the start
