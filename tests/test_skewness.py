"""Coordinates bent to a density's skewness, against what is known of products of skew densities."""

import math

import numpy as np
import pytest
import torch
from bounds_of_gaussians import gaussian_bound

from skcds import Pilot
from skcds._support.errors import Spent
from skcds.density.energy import Energy
from skcds.density.standardize import Standardization
from skcds.explore.laplace import laplace_standardization
from skcds.explore.pilot import run_pilot
from skcds.explore.skewness import bends, bent, best_gaussian
from skcds.specifications import HighDimension, Triangular


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def skew(x):
    """Energy .3 e^x + x^2 / 4 in each coordinate."""
    return (0.3 * x.exp() + 0.25 * x**2).sum(1)


def log_z_of_skew(d):
    nodes = np.linspace(-30, 12, 20_001)
    return d * math.log(np.trapezoid(np.exp(-0.3 * np.exp(nodes) - 0.25 * nodes**2), nodes))


def correlated(d=3):
    root = torch.tril(torch.full((d, d), 0.5, dtype=torch.float64)) + 0.5 * torch.eye(d, dtype=torch.float64)
    return Standardization.from_moments(torch.arange(d) - 1.0, root @ root.T)


class TestBends:
    @pytest.mark.parametrize("seed", [0, 1])
    def test_of_a_product(self, seed):
        """Of N(m, s^2) in each coordinate: the gradient of the bound is -.3 s^3 exp(m + s^2 / 2), the curvature 6.

        The standard error of one coordinate is .0021: .012 is six of them.
        """
        energy, m, s = Energy(skew, 20), 0.0, 0.8
        gaussian = Standardization.from_moments(torch.full((20,), m), s**2 * torch.eye(20))
        found = bends(energy, gaussian, 20_000, seeded(seed))
        expected = -0.3 * s**3 * math.exp(m + s**2 / 2) / 6
        assert expected < -0.03
        np.testing.assert_allclose(found, np.full(20, expected), atol=0.012)

    def test_no_better_bends_to_second_order(self):
        """In correlated coordinates: along the bends that are found the bound has its maximum at one, not elsewhere."""
        mixing = correlated().scale
        energy = Energy(lambda x: skew(x @ torch.linalg.inv(mixing).T.to(x)), 3)
        by = HighDimension(n_hessians=100, n_draws=2000, n_skew_draws=0)
        best, _ = best_gaussian(energy, laplace_standardization(energy), seeded(), by)
        found = bends(energy, best, 40_000, seeded())
        bounds = [gaussian_bound(energy, bent(best, k * found), 100_000, seeded())[0] for k in (-1, 0, 1, 3)]
        assert bounds[2] == max(bounds) and bounds[2] > bounds[1] + 0.02 and bounds[0] < bounds[1]

    def test_none_of_what_is_not_skew(self):
        """Chance: mirror images take out all that is even, and of a Gaussian there is nothing at all."""
        for energy_fn in (lambda x: 0.5 * (x**2).sum(1), lambda x: (0.5 * x**2 + 0.05 * x**4).sum(1)):
            gaussian = Standardization.from_moments(torch.zeros(3), torch.eye(3))
            assert bends(Energy(energy_fn, 3), gaussian, 1000, seeded()) is None

    def test_none_by_chance(self):
        """Skewness far below the noise of few draws is left out; with many draws it is found (negative control)."""
        energy = Energy(lambda x: (0.5 * x**2 + 0.1 * torch.cos(20 * x + 1) + 0.02 * x.exp()).sum(1), 50)
        gaussian = Standardization.from_moments(torch.zeros(50), torch.eye(50))
        assert bends(energy, gaussian, 20, seeded()) is None
        assert bends(energy, gaussian, 20_000, seeded()) is not None

    def test_none_where_draws_have_no_density(self):
        energy = Energy(lambda x: torch.where(x[:, 0] > 1, torch.inf, 0.5 * x[:, 0] ** 2) + x[:, 1].exp(), 2)
        assert bends(energy, Standardization.from_moments(torch.zeros(2), torch.eye(2)), 1000, seeded()) is None


class TestBent:
    def test_the_second_order(self):
        gaussian, by = correlated(), torch.tensor([0.05, -0.04, 0.0], dtype=torch.float64)
        z = 0.5 * torch.randn(1000, 3, generator=seeded(), dtype=torch.float64)
        spread = gaussian.covariance.diagonal().sqrt()
        u = (gaussian(z) - gaussian.loc) / spread
        expected = gaussian.loc + spread * (u + by * (u**2 - 1))
        x = bent(gaussian, by)(z)
        assert float((x - expected).abs().max()) < 0.02
        assert float((gaussian(z) - expected).abs().max()) > 0.1  # negative control
        assert torch.equal(bent(gaussian, by).width.isfinite(), torch.tensor([True, True, False]))

    def test_the_inverse(self):
        gaussian = bent(correlated(), torch.tensor([0.2, -0.01, 0.0], dtype=torch.float64))
        z = torch.randn(100, 3, generator=seeded(), dtype=torch.float64)
        np.testing.assert_allclose(gaussian.inverse(gaussian(z)), z, atol=1e-6)


class TestBestGaussian:
    by = HighDimension(n_hessians=60, n_draws=1000)

    def test_most_of_the_gap_is_closed(self):
        """In 40 coordinates the best Gaussian misses .6 nats; the standard errors are below .03."""
        energy, gaps = Energy(skew, 40), {}
        for n in (0, 2048):
            by = self.by.set_params(n_skew_draws=n)
            found, better = best_gaussian(energy, laplace_standardization(energy), seeded(1), by)
            assert better and bool(found.width.isfinite().all()) == bool(n)
            gaps[n] = log_z_of_skew(40) - gaussian_bound(energy, found, 10_000, seeded(2))[0]
        assert gaps[0] > 0.4 and -0.1 < gaps[2048] < 0.4 * gaps[0]

    def test_of_a_gaussian_nothing_changes(self):
        energy = Energy(lambda x: 0.5 * (x**2).sum(1), 5)
        laplace = laplace_standardization(energy)
        assert best_gaussian(energy, laplace, seeded(), self.by) == (laplace, False)

    def test_limits(self):
        energy = Energy(skew, 8)
        laplace, before = laplace_standardization(energy), energy.n_energy_evals
        assert best_gaussian(energy, laplace, seeded(), self.by, lambda n: True) == (laplace, False)
        assert energy.n_energy_evals - before <= 2 * self.by.n_draws

    def test_where_evaluations_are_spent_on_the_way(self, monkeypatch):
        """The Gaussian from before the bends stays."""

        def spent(*args):
            raise Spent

        energy = Energy(skew, 8)
        monkeypatch.setattr("skcds.explore.skewness.bends", spent)
        found, better = best_gaussian(energy, laplace_standardization(energy), seeded(), self.by)
        assert better and found.width.isinf().all()

    def test_a_bend_that_is_no_better_is_left(self):
        """Of a density whose skewness is along a curve, not a coordinate."""
        energy = Energy(lambda x: 0.5 * x[:, 0] ** 2 + 0.5 * (x[:, 1] - 0.5 * x[:, 0] ** 2) ** 2, 2)
        laplace = laplace_standardization(energy)
        found, better = best_gaussian(energy, laplace, seeded(), self.by)
        bounds = [gaussian_bound(energy, g, 20_000, seeded(3))[0] for g in (laplace, found)]
        assert (bounds[1] > bounds[0]) if better else found is laplace


def test_the_pilot_is_bent_where_the_density_is_skew():
    by = HighDimension(n_features=6, fewest_particles=300, max_numbers=12_000)
    by = Pilot(high_dimension=by, triangular=Triangular(max_features=0))
    widths = {}
    for n in (0, 2048):
        pilot = by.set_params(high_dimension__n_skew_draws=n)
        result, x = run_pilot(Energy(skew, 40), 300, seeded(), pilot=pilot)
        widths[n] = result.standardization().width
        assert abs(result.log_evidence - log_z_of_skew(40)) < 0.5
        assert len(x) == 300
    assert widths[2048].isfinite().all() and widths[0].isinf().all()
