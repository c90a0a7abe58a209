"""Energies that are not those of a density are refused within the first second, and others are not."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import skcds
from skcds.density.bounds import Bounds
from skcds.density.energy import Energy, InvalidEnergyError
from skcds.explore.propriety import first_look
from skcds.targets import Funnel, GaussianMixture, breast_cancer, gmm9


def look(energy_fn, d, bounds=None, few=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    energy = Energy(energy_fn, d, None, generator, Bounds.from_parameter(bounds, d))
    before = energy.n_energy_evals
    first_look(energy, generator, few)
    return energy.n_energy_evals - before


def normal(x):
    return 0.5 * ((x - 3) ** 2).sum(1)


def cauchy(x):
    return torch.log1p(x**2).sum(1)


def student(x):
    return (x.shape[1] + 0.5) / 2 * torch.log1p((x**2).sum(1))


def many_well(x):
    return ((x**2 - 4) ** 2).sum(1)


def beta(x):
    return -(torch.log(x) + 3 * torch.log1p(-x)).sum(1)


def gamma(x):
    return (x - 1.5 * torch.log(x)).sum(1)


UNBOUNDED = {"normal": normal, "cauchy": cauchy, "student": student, "wells": many_well}
BOUNDED = {"beta": (beta, (0, 1)), "gamma": (gamma, (0, None)), "negative gamma": (lambda x: gamma(-x), (None, 0))}


class TestWrongSign:
    @pytest.mark.parametrize("few", [False, True])
    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("d", [1, 2, 10])
    @pytest.mark.parametrize("name", UNBOUNDED)
    def test_is_named(self, name, d, seed, few):
        with pytest.raises(InvalidEnergyError, match="did you pass a log density"):
            look(lambda x: -UNBOUNDED[name](x), d, few=few, seed=seed)

    @pytest.mark.parametrize("few", [False, True])
    @pytest.mark.parametrize("d", [1, 4])
    @pytest.mark.parametrize("name", BOUNDED)
    def test_is_named_between_bounds(self, name, d, few):
        energy_fn, bounds = BOUNDED[name]
        with pytest.raises(InvalidEnergyError, match="did you pass a log density"):
            look(lambda x: -energy_fn(x), d, [bounds] * d, few=few)

    def test_of_a_numpy_function(self):
        with pytest.raises(InvalidEnergyError, match="did you pass a log density"):
            look(lambda x: -0.5 * np.square(np.asarray(x)).sum(1), 3)

    @pytest.mark.parametrize("cls", [skcds.DiffusionSampler, skcds.ConsistentSamplerScratch])
    def test_a_fit_says_so_at_once(self, cls):
        start = time.perf_counter()
        with pytest.raises(InvalidEnergyError, match="did you pass a log density"):
            cls(2, random_state=0).fit(lambda x: -normal(x))
        assert time.perf_counter() - start < 5  # a tenth of a second where nothing else runs; over a minute before


class TestFlat:
    @pytest.mark.parametrize("few", [False, True])
    @pytest.mark.parametrize("d", [1, 3])
    @pytest.mark.parametrize("energy_fn", [lambda x: 0 * x[:, 0] + 5, lambda x: x.sin().sum(1)], ids=["flat", "waves"])
    def test_is_named(self, energy_fn, d, few):
        with pytest.raises(InvalidEnergyError, match="infinite mass"):
            look(energy_fn, d, few=few)

    @pytest.mark.parametrize("j", range(3))
    def test_a_coordinate_is_named(self, j):
        def energy_fn(x):
            return 0.5 * (x[:, [k for k in range(3) if k != j]] ** 2).sum(1)

        with pytest.raises(InvalidEnergyError, match=rf"along x\[{j}\] it does not grow"):
            look(energy_fn, 3)


class TestDensitiesPass:
    @pytest.mark.parametrize("few", [False, True])
    @pytest.mark.parametrize("d", [1, 2, 10])
    @pytest.mark.parametrize("name", UNBOUNDED)
    def test_unbounded(self, name, d, few):
        assert look(UNBOUNDED[name], d, few=few) <= (100 if few else 1000)

    @pytest.mark.parametrize("few", [False, True])
    @pytest.mark.parametrize("name", BOUNDED)
    def test_bounded(self, name, few):
        energy_fn, bounds = BOUNDED[name]
        look(energy_fn, 3, [bounds] * 3, few=few)
        look(lambda x: 0 * x[:, 0], 2, (-1, 5))

    @pytest.mark.parametrize("target", [Funnel(), gmm9(), breast_cancer(), GaussianMixture(np.full((1, 3), 1e7), 1.0)])
    def test_targets(self, target):
        look(target, target.n_features)

    @given(st.integers(1, 6), st.floats(-6, 6), st.floats(-6, 6), st.integers(0, 99))
    def test_gaussians_of_any_place_and_width(self, d, log_scale, log_place, seed):
        def energy_fn(x):
            return 0.5 * (((x - 10**log_place) / 10**log_scale) ** 2).sum(1)

        look(energy_fn, d, seed=seed)

    def test_nonsense_far_out_is_not_warned_of(self, recwarn):
        look(lambda x: torch.where(x.abs().amax(1) < 100, normal(x), torch.nan), 2)
        assert not recwarn.list
