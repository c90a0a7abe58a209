"""Principal axes as coordinates: where they are taken, what they make of a density, and that they are kept."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import skcds
from skcds import ConsistentSamplerScratch, Coupling, Pilot
from skcds.density.energy import Energy
from skcds.density.rotation import Rotation
from skcds.density.standardize import Standardization
from skcds.explore.pilot import run_pilot
from skcds.explore.result import PilotResult
from skcds.explore.separate import along_principal_axes
from skcds.explore.smc import moments
from skcds.specifications import Climbs, Race, Tempering

D = 22  # from 21 on a fit looks for them
QUICK = {"tempering": Tempering(n_moves=3), "climbs": Climbs(n_after=4, n_further=0), "race": Race(n_particles=300)}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def any_rotation(d, generator):
    return Rotation.of(torch.linalg.qr(normal(generator, d, d))[0])


def two_modes(n, d, generator, apart=3.0):
    """Draws of two normal modes, this far from the origin along the diagonal."""
    side = 2 * torch.randint(2, (n, 1), generator=generator).double() - 1
    return normal(generator, n, d) + apart * side * d**-0.5


def energy_of_two_modes(x):
    """Of the same, with 5 for the distance; log Z is zero."""
    along = 5.0 * x.sum(1) * x.shape[1] ** -0.5
    return (
        0.5 * (x**2).sum(1) + 12.5 - torch.logaddexp(along, -along) + 0.5 * x.shape[1] * np.log(2 * np.pi) + np.log(2)
    )


def found_of(x):
    return along_principal_axes(Standardization.from_moments(*moments(x)), x)


class TestMap:
    @settings(max_examples=20, deadline=None)
    @given(st.integers(0, 10**6), st.integers(1, 6), st.booleans())
    def test_between_the_other_parts(self, seed, d, full):
        """Inverse, determinant and gradient, by `autograd`, with a heavy tail behind it."""
        generator = seeded(seed)
        width = torch.full((d,), torch.inf, dtype=torch.float64)
        width[0] = 0.5
        covariance = torch.eye(d) + 0.5 if full else torch.ones(d)
        found = Standardization.from_moments(normal(generator, d), covariance, (normal(generator, d), width))
        found = found.with_rotation(any_rotation(d, generator))
        z = normal(generator, 6, d).requires_grad_()
        x, log_det, pull_back = found.call_and_pull_back(z)
        jacobian = torch.stack([torch.autograd.functional.jacobian(lambda p: found(p[None])[0], point) for point in z])
        assert torch.allclose(torch.linalg.slogdet(jacobian)[1], log_det, atol=1e-9)
        (gradient,) = torch.autograd.grad((x.sin().sum(1) + log_det).sum(), z)
        with torch.no_grad():
            assert torch.allclose(found(z), x) and torch.allclose(found.inverse(x), z, atol=1e-8)
            assert torch.allclose(pull_back(x.cos()), gradient, atol=1e-8)
        assert found.config == {"full": full, "rotation": True}
        assert found.with_rotation(None).config == {"full": full}

    def test_untrained_it_is_the_identity(self):
        z = normal(seeded(), 5, 4)
        y, log_det, pull_back = Rotation(4).call_and_pull_back(z)
        assert torch.equal(y, z) and (log_det == 0).all() and torch.equal(pull_back(z), z)


class TestAlongPrincipalAxes:
    @pytest.mark.parametrize("seed", range(5))
    def test_of_modes_apart_along_a_direction(self, seed):
        """The first coordinate has both modes, in any units of the others; they keep mean and covariance."""
        x = two_modes(4000, D, seeded(seed)) * torch.logspace(-2, 2, D, dtype=torch.float64)
        found = found_of(x)
        z = found.inverse(x)
        assert found.rotation is not None
        assert torch.allclose(torch.cov(z.T), torch.eye(D, dtype=torch.float64), atol=1e-6)
        kurtosis = (z**4).mean(0)
        assert kurtosis[0] < 2.0 and (kurtosis[1:] > 2.5).all()  # 3 of a normal coordinate, 1.4 of the two modes
        assert found.with_rotation(None).inverse(x).pow(4).mean(0).min() > 2.0  # negative control

    @pytest.mark.parametrize("seed", range(5))
    def test_of_one_mode_or_of_independent_coordinates_nothing_changes(self, seed):
        """The gain has to be .1, eight times its standard deviation of a Gaussian: no false alarm."""
        generator = seeded(seed)
        correlated = normal(generator, 4000, D) @ normal(generator, D, D)
        wells = normal(generator, 4000, D) + 4 * normal(generator, 4000, D).sign()
        for x in (correlated, wells):
            assert found_of(x).rotation is None

    def test_others_are_left_alone(self):
        x = two_modes(4000, D, seeded())
        diagonal = Standardization.from_moments(x.mean(0), x.var(0))
        skewed = Standardization(D, skewed=True)
        assert along_principal_axes(diagonal, x) is diagonal and along_principal_axes(skewed, x) is skewed


@pytest.fixture(scope="module")
def sampler():
    start = Pilot(n_particles=2000, **QUICK)
    return ConsistentSamplerScratch(
        D, n_steps=4, start=start, network=Coupling(16, 1, 2), max_iter=20, random_state=0
    ).fit(energy_of_two_modes)


class TestFit:
    def test_a_pilot_takes_them(self):
        result, x = run_pilot(Energy(energy_of_two_modes, D), 2000, seeded(), pilot=Pilot(**QUICK))
        assert result.rotation is not None
        assert torch.allclose(result.standardization()(result.standardization().inverse(x)), x, atol=1e-8)
        again = PilotResult.restored(result.state_dict())
        assert torch.equal(again.rotation.axes, result.rotation.axes)

    def test_few_features_are_left_alone(self):
        result, _ = run_pilot(Energy(energy_of_two_modes, 3), 500, seeded(), pilot=Pilot(**QUICK))
        assert result.rotation is None

    def test_it_is_kept(self, sampler, tmp_path):
        assert sampler._model.config["rotation"] is True
        sampler.save(tmp_path / "model.skcds")
        for again in (skcds.load(tmp_path / "model.skcds"), pickle.loads(pickle.dumps(sampler))):
            assert np.array_equal(again.sample(50, random_state=0), sampler.sample(50, random_state=0))
            assert torch.equal(again.pilot_.rotation.axes, sampler.pilot_.rotation.axes)

    def test_weights_are_exact(self, sampler):
        """log Z within five standard errors, of which the chance fails one in a million."""
        weighted = sampler.sample_weighted(4000, random_state=0)
        assert abs(weighted.log_evidence) < 5 * weighted.log_evidence_se + 0.01
        x = torch.from_numpy(weighted.samples[:50])
        assert np.allclose(sampler.log_prob(weighted.samples[:50]) + weighted.log_weights[:50], -energy_of_two_modes(x))
