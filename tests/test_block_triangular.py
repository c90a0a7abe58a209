"""Block triangular maps: their inverse and gradients, and what they make of latent fields that are skew."""

import copy
import pickle

import numpy as np
import pytest
import torch
from autograd_checks import check_by_autograd
from bounds_of_gaussians import gaussian_bound
from cases import slow
from hypothesis import given, settings
from hypothesis import strategies as st

import skcds
from skcds import ConsistentSamplerScratch, Pilot, SelfConsistency
from skcds.density.block_triangular import BLOCKS, BlockTriangularMap, pivoted_root
from skcds.density.energy import Energy
from skcds.density.standardize import Standardization, StandardizedTarget
from skcds.explore.laplace import laplace_standardization, stepped
from skcds.explore.result import PilotResult
from skcds.explore.skewness import best_gaussian, skewed, third_derivatives
from skcds.specifications import HighDimension, Marginals, Training

D = 80  # above 64 a run from the best Gaussian takes the place of the race


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def any_map(d, generator, size=0.1):
    """With third derivatives that make each coordinate about as skew, whatever its scale."""
    root = normal(generator, d, d)
    covariance = root @ root.T + torch.eye(d)
    third = size * normal(generator, d) / covariance.diagonal() ** 1.5
    return BlockTriangularMap.of_gaussian(normal(generator, d), covariance, third)


def covariance_of_field(d=D):
    """Of a field on a line that varies over some ten sites."""
    place = torch.arange(d, dtype=torch.float64)
    return (-(place[:, None] - place).abs() / 10).exp()


PRECISION = torch.linalg.inv(covariance_of_field())


def counts(x):
    """A latent field with a Poisson count of zero at every site."""
    return 0.5 * ((x @ PRECISION.to(x)) * x).sum(1) + (x - 0.5).exp().sum(1)


def best_plain(energy, seed=0):
    return stepped(energy, laplace_standardization(energy), seeded(seed), HighDimension(), None, range(16))


class TestMap:
    @settings(max_examples=15, deadline=None)
    @given(st.integers(0, 10**6), st.integers(1, 2 * BLOCKS + 1))
    def test_inverse_determinant_and_gradient(self, seed, d):
        """Of any such map, with blocks of one coordinate or of several, by `autograd`."""
        generator = seeded(seed)
        found = any_map(d, generator)
        check_by_autograd(found, normal(generator, 4, d))

    def test_without_third_derivatives_itis_affine(self):
        covariance, z = covariance_of_field(9), normal(seeded(), 5, 9)
        found = BlockTriangularMap.of_gaussian(torch.ones(9).double(), covariance, torch.zeros(9).double())
        x, log_det, pull_back = found.call_and_pull_back(z)
        assert torch.allclose(x, 1 + z @ found.root.T) and torch.allclose(pull_back(z), z @ found.root)
        assert torch.allclose(log_det, 0.5 * torch.logdet(covariance).expand(5))

    def test_far_away(self):
        found, z = any_map(20, seeded()), 100 * normal(seeded(1), 30, 20)
        x, log_det, pull_back = found.call_and_pull_back(z)
        assert x.isfinite().all() and log_det.isfinite().all() and pull_back(x).isfinite().all()

    def test_root_with_pivots(self):
        """It is a root, and its first columns are those of coordinates far apart."""
        covariance = covariance_of_field()
        root, log_volume = pivoted_root(covariance)
        assert torch.allclose(root @ root.T, covariance)
        assert float(log_volume) == pytest.approx(0.5 * float(torch.logdet(covariance)))
        first = root[:, :4].argmax(0).sort()[0]
        assert (first.diff() > 10).all()

    def test_no_root_of_a_singular_covariance(self):
        assert BlockTriangularMap.of_gaussian(torch.zeros(3), torch.ones(3, 3).double(), torch.zeros(3)) is None

    def test_among_the_other_parts(self):
        """After a hyperbolic sine, by `autograd`."""
        generator = seeded(3)
        width = torch.tensor([0.5, torch.inf, 2.0], dtype=torch.float64)
        standardization = Standardization.from_moments(
            normal(generator, 3), torch.eye(3) + 0.5, (normal(generator, 3), width), skewed=any_map(3, generator)
        )
        z = normal(generator, 6, 3).requires_grad_()
        x, log_det, pull_back = standardization.call_and_pull_back(z)
        (gradient,) = torch.autograd.grad((x.sin().sum(1) + log_det).sum(), z)
        with torch.no_grad():
            assert torch.allclose(standardization(z), x) and torch.allclose(standardization.inverse(x), z, atol=1e-8)
            assert torch.allclose(pull_back(x.cos()), gradient, atol=1e-8)
        assert standardization.config == {"full": True, "skewed": True}


class TestOfADensity:
    @pytest.mark.parametrize("seed", range(2))
    def test_third_derivatives(self, seed):
        """Those of the counts are -exp(x - .5), whose mean over the Gaussian is known. Six standard errors are .1."""
        energy = Energy(counts, D)
        gaussian = best_plain(energy, seed)
        found = third_derivatives(energy, gaussian, 2000, seeded(seed))
        expected = -(gaussian.loc - 0.5 + 0.5 * gaussian.covariance.diagonal()).exp()
        assert torch.allclose(found, expected, rtol=0.1)

    @pytest.mark.parametrize("seed", [0, *slow(1, 2)])
    def test_gains_most_of_the_gap(self, seed):
        """The bound gains what skewness has taken. Standard errors of the bounds are .003, that of log Z .001."""
        energy = Energy(counts, D)
        gaussian = best_plain(energy, seed)
        found = skewed(gaussian, third_derivatives(energy, gaussian, 64, seeded(seed)))
        bound, before = (gaussian_bound(energy, s, 10_000, seeded(seed))[0] for s in (found, gaussian))
        z = normal(seeded(seed + 1), 50_000, D)
        log_weights = StandardizedTarget(energy, found).log_prob(z) + 0.5 * z.square().sum(1)
        log_z = float(log_weights.logsumexp(0)) - np.log(len(z)) + 0.5 * D * np.log(2 * np.pi)
        assert log_z - bound < 0.4 * (log_z - before)
        assert log_z - before > 0.03

    def test_taken_by_the_best_gaussian(self):
        energy = Energy(counts, D)
        laplace = laplace_standardization(energy)
        found, better = best_gaussian(energy, laplace, seeded())
        assert better and found.skewed is not None and found.noncentred is None
        plain, _ = best_gaussian(energy, laplace, seeded(), HighDimension(n_skew_draws=0))
        assert plain.skewed is None

    def test_not_of_a_gaussian(self):
        energy = Energy(lambda x: 0.5 * ((x @ PRECISION.to(x)) * x).sum(1), D)
        found, _ = best_gaussian(energy, laplace_standardization(energy), seeded())
        assert found.skewed is None

    def test_result_comes_back(self):
        x, generator = normal(seeded(), 20, 4), seeded(1)
        found = Standardization.from_moments(torch.zeros(4), torch.eye(4), skewed=any_map(4, generator))
        result = PilotResult.of(found, 0.0, 1.0, 3)
        for again in (PilotResult.restored(result.state_dict()), pickle.loads(pickle.dumps(result))):
            assert torch.equal(again.standardization().inverse(x), found.inverse(x))


@pytest.fixture(scope="module")
def fitted():
    start = Pilot(n_particles=500, high_dimension=HighDimension(fewest_particles=300, max_numbers=30_000))
    objective = SelfConsistency(training=Training(marginals=Marginals(n_iter=50, n_refits=0), n_judged=2000))
    options = {"start": start, "objective": objective, "n_steps": 4, "max_iter": 3}
    sampler = ConsistentSamplerScratch(n_features=D, **options, random_state=0).fit(counts)
    assert sampler.pilot_.skewed is not None
    return sampler


class TestSampler:
    def test_files_and_pickles(self, fitted, tmp_path):
        fitted.save(tmp_path / "sampler.skcds")
        x = fitted.sample(20, random_state=3)
        for other in (skcds.load(tmp_path / "sampler.skcds"), pickle.loads(pickle.dumps(fitted)), copy.copy(fitted)):
            assert np.array_equal(x, other.sample(20, random_state=3))

    def test_densities_at_any_points(self, fitted):
        x, log_q = fitted.sample(100, random_state=3, return_log_density=True)
        assert np.allclose(fitted.score_samples(x), log_q, atol=1e-2)
