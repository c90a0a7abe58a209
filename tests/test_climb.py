"""Climbs: location and scale of every coordinate, over many orders of magnitude, with and without gradients."""

import math

import numpy as np
import pytest
import torch
from cases import crossed, slow
from hypothesis import given, settings
from hypothesis import strategies as st

from skcds import Pilot
from skcds.density.energy import Energy
from skcds.explore.climb import climb
from skcds.explore.pilot import run_pilot
from skcds.specifications import Climbs, Race


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def gaussian(loc, scale, gradient=True):
    loc, scale = np.asarray(loc, float), np.asarray(scale, float)

    def in_torch(x):
        return 0.5 * (((x - torch.from_numpy(loc).to(x)) / torch.from_numpy(scale).to(x)) ** 2).sum(1)

    def in_numpy(x):
        return 0.5 * np.square((np.asarray(x) - loc) / scale).sum(1)

    return in_torch if gradient else in_numpy


def line(gradient=True):
    """An ephemeris: times of transits, a straight line with Student-t noise of 1e-4, priors of width 10 and 3."""
    rng, n = np.random.default_rng(0), np.array([0, 10, 50, 200, 500, 900, 1500, 2000.0])
    times = 3.2 + 1.7 * n + 1e-4 * rng.standard_t(4, len(n))

    def energy_fn(x):
        x, log1p = (x, torch.log1p) if gradient else (np.asarray(x), np.log1p)
        n_, t_ = (torch.from_numpy(a).to(x) for a in (n, times)) if gradient else (n, times)
        r = (t_ - x[:, :1] - x[:, 1:] * n_) / 1e-4
        return 2.5 * log1p(r**2 / 4).sum(1) + 0.5 * ((x[:, 0] / 10) ** 2 + (x[:, 1] / 3) ** 2)

    return energy_fn


PLACES = [
    ([2.5e6, 1e-7, 1e6], [1e-3, 1e-9, 3.0]),
    ([0.0, 0.0], [1e-8, 1e8]),
    ([-1e5, 3.0, 7e-4, 1e3], [1e-2, 1e-4, 1e-6, 1e2]),
]


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("loc, scale", PLACES)
def test_gaussians(loc, scale, gradient):
    energy = Energy(gaussian(loc, scale, gradient), len(loc), generator=seeded(0))
    before = energy.n_energy_evals
    mode = climb(energy, torch.zeros(len(loc)))
    assert mode is not None and energy.n_energy_evals - before < 1000
    np.testing.assert_allclose((mode.x.numpy() - loc) / scale, 0, atol=1e-2)
    np.testing.assert_allclose(mode.standardization.covariance.diagonal().sqrt(), scale, rtol=1e-3)
    assert mode.log_mass == pytest.approx(0.5 * len(loc) * math.log(2 * math.pi) + np.log(scale).sum(), abs=1e-2)


@pytest.mark.parametrize("gradient", [True, False])
def test_correlations(gradient):
    """Mixed derivatives, by four differences where there is no gradient."""
    root = np.array([[1.0, 0, 0], [0.8, 0.6, 0], [-0.5, 0.3, 2.0]])
    precision = np.linalg.inv(root @ root.T)

    def energy_fn(x):
        p = torch.from_numpy(precision).to(x) if gradient else precision
        x = x if gradient else np.asarray(x)
        return 0.5 * ((x @ p) * x).sum(1)

    mode = climb(Energy(energy_fn, 3, generator=seeded(0)), torch.ones(3))
    np.testing.assert_allclose(mode.standardization.covariance, root @ root.T, atol=1e-2)


@settings(max_examples=20)
@given(st.lists(st.tuples(st.floats(-4, 4), st.floats(-4, 4)), min_size=1, max_size=4), st.integers(0, 99))
def test_gaussians_of_any_scales(logs, seed):
    scale, loc = np.array([10**a for a, _ in logs]), np.array([b * 10.0 for _, b in logs])
    start = 10 * torch.randn(len(logs), dtype=torch.float64, generator=seeded(seed))
    mode = climb(Energy(gaussian(loc, scale), len(logs), generator=seeded(0)), start)
    assert mode is not None
    np.testing.assert_allclose((mode.x.numpy() - loc) / scale, 0, atol=0.1)


def test_nothing_where_there_is_no_gaussian():
    assert climb(Energy(lambda x: x[:, 0].abs() + 0 * x[:, 1], 2, generator=seeded(0)), torch.ones(2)) is None


FEW = Pilot(climbs=Climbs(n_before=4, n_after=8), race=Race(n_particles=300, scales=(1.0, 10.0, 100.0)))


class TestPilot:
    @pytest.mark.parametrize("place, seed", crossed([], range(3), [0, 1]))
    def test_far_and_narrow(self, place, seed):
        """Standard deviations of log Z are below .03; before, these did not come back within ten minutes."""
        loc, scale = PLACES[place]
        energy = Energy(gaussian(loc, scale), len(loc), generator=seeded(seed))
        result, x = run_pilot(energy, 500, seeded(seed), pilot=FEW)
        assert abs(result.log_evidence - 0.5 * len(loc) * math.log(2 * math.pi) - np.log(scale).sum()) < 0.3
        z = (x.numpy() - loc) / scale
        assert (np.abs(z.mean(0)) < 7 / math.sqrt(500)).all() and (np.abs(z.std(0) - 1) < 0.3).all()

    @pytest.mark.parametrize("seed", [0, *slow(1)])
    @pytest.mark.parametrize("gradient", [True, *slow(False)])
    def test_straight_line(self, gradient, seed):
        """log Z is -31.40 by quadrature around the mode; it was twelve nats off before."""
        energy = Energy(line(gradient), 2, generator=seeded(seed))
        result, x = run_pilot(energy, 500, seeded(seed), pilot=FEW)
        assert abs(result.log_evidence + 31.40) < 0.3
        assert abs(float(x[:, 1].mean()) - 1.7) < 1e-6 and 5e-8 < float(x[:, 1].std()) < 9e-8
