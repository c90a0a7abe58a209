"""Laplace's approximation against Gaussians, for which it is exact, and where there is none."""

import numpy as np
import pytest
import torch
from bounds_of_gaussians import gaussian_bound
from cases import slow
from hypothesis import given
from hypothesis import strategies as st

from skcds import Pilot, targets
from skcds.density.energy import Energy
from skcds.density.standardize import Standardization, StandardizedTarget
from skcds.explore import laplace as laplace_module
from skcds.explore.climb import climb
from skcds.explore.laplace import laplace_standardization
from skcds.explore.nested_laplace import nested_laplace
from skcds.explore.pilot import run_pilot
from skcds.explore.precisions import DensePrecision
from skcds.explore.skewness import best_gaussian
from skcds.specifications import HighDimension, Race


def energy_of(energy_fn, d):
    return Energy(energy_fn, d, generator=torch.Generator().manual_seed(0))


@given(st.integers(1, 8), st.integers(0, 99))
def test_exact_for_a_gaussian(d, seed):
    rng = np.random.default_rng(seed)
    root, mean = rng.standard_normal((d, d)) + 3 * np.eye(d), 5 * rng.standard_normal(d)
    target = targets.Gaussian(mean, root @ root.T)
    found = laplace_standardization(energy_of(target, d))
    np.testing.assert_allclose(found.loc, mean, atol=1e-5)
    np.testing.assert_allclose(found.covariance, root @ root.T, rtol=1e-4, atol=1e-4)


def test_evaluations():
    energy = energy_of(targets.Gaussian(np.ones(5), np.eye(5)), 5)
    before = energy.n_energy_evals
    laplace_standardization(energy)
    assert 2 * 5 <= energy.n_energy_evals - before < 60


def test_start():
    """Of two wells, the one that the search starts in."""
    energy = energy_of(lambda x: ((x**2 - 4) ** 2).sum(1), 1)
    for sign in (-1, 1):
        assert float(laplace_standardization(energy, torch.tensor([sign * 1.0])).loc) == pytest.approx(2 * sign)


@pytest.mark.parametrize(
    "energy_fn",
    [
        lambda x: 0.5 * x[:, 0] ** 2 + 0 * x[:, 1],  # flat along one coordinate
        lambda x: 0.5 * x[:, 0] ** 2 - torch.cos(x[:, 1]) * torch.where(x[:, 1].abs() < 1, -1.0, 1.0),  # on a maximum
        *slow(lambda x: x[:, 0] + x[:, 1]),  # falls for ever
    ],
)
def test_nothing_where_there_is_no_gaussian(energy_fn):
    assert laplace_standardization(energy_of(energy_fn, 2)) is None


def test_nothing_where_the_covariance_is_none_to_rounding():
    """A factor with small pivots, whose inverse grows a thousandfold with every row."""
    root = torch.ones(12, 12, dtype=torch.float64).tril(-1) + 1e-3 * torch.eye(12, dtype=torch.float64)
    assert DensePrecision(root @ root.T, root).gaussian(root[0]) is None
    one = torch.eye(12, dtype=torch.float64)
    assert DensePrecision(one, one).gaussian(root[0]).covariance.equal(one)


class TestBestGaussian:
    """Against the optimum of a skew density, energy .3 e^x + x^2 / 4 in each of several coordinates."""

    by = HighDimension(n_hessians=60, n_draws=400, n_skew_draws=0)

    @staticmethod
    def skew(x):
        return (0.3 * x.exp() + 0.25 * x**2).sum(1)

    def test_moments(self):
        energy = energy_of(self.skew, 8)
        laplace = laplace_standardization(energy)
        found, better = best_gaussian(energy, laplace, torch.Generator().manual_seed(0), self.by)
        mean, variance = 0.0, 1.0
        for _ in range(2000):  # E[e^x] = exp(mean + variance / 2) for a Gaussian
            raised = 0.3 * np.exp(mean + 0.5 * variance)
            variance, mean = 1 / (raised + 0.5), mean - 0.3 * (raised + 0.5 * mean)
        assert better
        np.testing.assert_allclose(found.loc.mean(), mean, atol=0.05)
        np.testing.assert_allclose(found.covariance.diagonal().mean(), variance, rtol=0.1)
        assert (laplace.loc - mean).min() > 0.15  # negative control

    def test_bound(self):
        energy, generator = energy_of(self.skew, 40), torch.Generator().manual_seed(0)
        laplace = laplace_standardization(energy)
        found, _ = best_gaussian(energy, laplace, generator, self.by)
        nodes = np.linspace(-30, 12, 20_001)
        log_z = 40 * np.log(np.trapezoid(np.exp(-0.3 * np.exp(nodes) - 0.25 * nodes**2), nodes))
        bounds = [gaussian_bound(energy, g, 4000, generator) for g in (laplace, found)]
        assert bounds[0][0] + 0.8 < bounds[1][0] < log_z + 4 * bounds[1][1]  # the best is 1.2 nats better

    def test_of_a_gaussian_it_is_laplace(self):
        energy = energy_of(lambda x: 0.5 * (x**2).sum(1), 5)
        laplace = laplace_standardization(energy)
        found, better = best_gaussian(energy, laplace, torch.Generator().manual_seed(0), self.by)
        assert found is laplace and not better

    def test_limits(self):
        energy = energy_of(self.skew, 8)
        laplace, before = laplace_standardization(energy), energy.n_energy_evals
        found, better = best_gaussian(energy, laplace, torch.Generator().manual_seed(0), self.by, ended=lambda n: True)
        assert found is laplace and not better and energy.n_energy_evals - before <= 2 * self.by.n_draws

    def test_a_start_that_is_better_stays(self):
        """Of a density so skew that single Hessians are far off, the bound decides."""
        energy = energy_of(lambda x: (0.3 * x.exp() + 0.1 * x**2).sum(1), 40)
        laplace, generator = laplace_standardization(energy), torch.Generator().manual_seed(0)
        found, better = best_gaussian(energy, laplace, generator, self.by)
        bounds = [gaussian_bound(energy, g, 4000, generator)[0] for g in (laplace, found)]
        assert better or found is laplace
        assert bounds[1] > bounds[0] - 1

    def test_where_the_mean_hessian_is_not_positive(self):
        """Two wells, from one of them: draws reach the barrier, and Laplace's Gaussian stays."""
        energy = energy_of(lambda x: (4 * (x**2 - 1) ** 2).sum(1) / 16, 3)
        start = Standardization.from_moments(torch.zeros(3), 4 * torch.eye(3))
        found, better = best_gaussian(energy, start, torch.Generator().manual_seed(0), self.by)
        assert found.covariance.isfinite().all() and (better or found is start)


class TestPilotInHighDimension:
    d, few = 30, 8  # by Laplace's approximation a dimension costs little, in a race of starting scales much

    low = Pilot(high_dimension=HighDimension(n_features=6, fewest_particles=500, max_numbers=60_000, n_hessians=0))

    def test_log_evidence(self):
        """A quartic term in each coordinate; log Z by quadrature. Runs of 2000 particles spread by less than .1."""

        def one(v):
            return 0.5 * v**2 + 0.05 * v**4

        nodes = np.linspace(-8, 8, 20_001)
        density = np.exp(-one(nodes))
        log_z = self.d * np.log(np.trapezoid(density, nodes))
        energy = energy_of(lambda x: one(x - 1).sum(1), self.d)
        result, x = run_pilot(energy, 20_000, torch.Generator().manual_seed(0), pilot=self.low)
        assert len(x) == 2000 and result.starting_scale not in Race.scales  # no race
        assert result.log_evidence == pytest.approx(log_z, abs=0.5)
        np.testing.assert_allclose(result.covariance, np.eye(self.d), atol=1e-3)  # the Hessian's at the mode
        laplace = StandardizedTarget(energy, result.standardization())
        gaussian = float(laplace.log_prob(torch.zeros(1, self.d))) + 0.5 * self.d * np.log(2 * np.pi)
        assert abs(gaussian - log_z) > 1  # negative control: Laplace's own log Z
        variance = np.trapezoid(nodes**2 * density, nodes) / np.trapezoid(density, nodes)
        assert float((x - 1).var()) == pytest.approx(variance, rel=0.05)

    def test_from_the_best_gaussian(self):
        """Narrower than Laplace's where the energy grows faster than its Hessian at the mode says."""
        energy = energy_of(lambda x: (0.5 * x**2 + 0.05 * x**4).sum(1), self.d)
        pilot = self.low.set_params(high_dimension__n_hessians=20)
        result, _ = run_pilot(energy, 500, torch.Generator().manual_seed(0), pilot=pilot)
        assert 0.6 < np.mean(result.covariance.diagonal()) < 0.9

    def test_fewer_particles_are_left_alone(self):
        energy = energy_of(lambda x: 0.5 * (x**2).sum(1), self.d)
        assert len(run_pilot(energy, 300, torch.Generator().manual_seed(0), pilot=self.low)[1]) == 300

    @pytest.mark.slow
    def test_without_a_mode(self):
        """Flat at the origin, where the Hessian is zero: the race over starting scales takes its place."""
        energy = energy_of(lambda x: ((x.abs() - 1).clamp(min=0) ** 2).sum(1), self.few)
        result, x = run_pilot(energy, 500, torch.Generator().manual_seed(0), pilot=self.low)
        assert result.starting_scale in Race.scales and len(x) == 500 and x.isfinite().all()

    def test_without_a_gradient(self):
        energy = energy_of(lambda x: 0.5 * np.square(np.asarray(x)).sum(1), self.few)
        scale = run_pilot(energy, 500, torch.Generator().manual_seed(0), pilot=self.low)[0].starting_scale
        assert np.isclose(scale, [*Race.scales, 10**2.5, 1e3]).any()  # the race goes on beyond its widest


def test_a_hessian_that_lapack_gives_up_on_is_no_mode(monkeypatch):
    """Its entries may differ by 1e30 deep in a neck: neither a mode nor an approximation; no error."""

    def fails(matrix):
        raise torch.linalg.LinAlgError("the algorithm failed to converge")

    energy, x = Energy(lambda x: 0.5 * x.square().sum(1), 3), torch.zeros(3, dtype=torch.float64)
    assert climb(energy, x + 1) is not None
    points = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert nested_laplace(energy, points, 0) is not None
    monkeypatch.setattr(torch.linalg, "eigh", fails)
    assert climb(energy, x + 1) is None
    assert nested_laplace(energy, points, 0) is None


class TestIsBetter:
    """Of N(0, s^2 I), of which the bound is better with s = 2 than with s = 4."""

    d = 4

    def found(self, energy_fn, one, other):
        energy = energy_of(energy_fn, self.d)
        return laplace_module.is_better(energy, one, other, 400, torch.Generator().manual_seed(0))

    def gaussian(self, width, bent=False):
        """As it is, or as the image of a narrow one under a hyperbolic sine, which is nearly linear there."""
        far, loc = 1e4, torch.zeros(self.d)
        tails = (loc, torch.full_like(loc, far)) if bent else None
        return Standardization.from_moments(loc, torch.eye(self.d) * (width / far if bent else width) ** 2, tails)

    @staticmethod
    def wells(x):
        return 5.0 * (x**2 - 4).square().sum(1)

    @staticmethod
    def normal(x):
        return x.square().sum(1) / 8

    def test_the_bound_decides(self):
        for energy_fn in (self.wells, self.normal):
            assert self.found(energy_fn, self.gaussian(2.0), self.gaussian(4.0))
            assert not self.found(energy_fn, self.gaussian(4.0), self.gaussian(2.0))
            assert not self.found(energy_fn, self.gaussian(2.0), self.gaussian(2.0))

    def test_a_bent_one_only_of_what_is_close_to_normal(self):
        """Log weights vary by more than a thousand between deep wells."""
        one, other = self.gaussian(2.0, bent=True), self.gaussian(4.0)
        assert self.found(self.normal, one, other) and not self.found(self.wells, one, other)
