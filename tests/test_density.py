"""What is passed for a density stays together, and its box does not change."""

import dataclasses

import numpy as np
import pytest
import torch
from samplers import fitted, quadratic

from skcds.density.bounds import Bounds
from skcds.density.energy import Energy
from skcds.density.function import Density


def gradient(x):
    return x - 1


def test_of_nothing_and_of_itself():
    assert Density.of(None, gradient) is None
    density = Density.of(quadratic, gradient)
    assert density == Density(quadratic, gradient) and Density.of(density) is density


def test_in_options():
    options = Density.in_options({"n_steps": 4, "energy_fn": quadratic, "grad_fn": gradient})
    assert options == {"n_steps": 4, "density": Density(quadratic, gradient)}
    assert Density.in_options({}) == {"density": None}


def test_energy_of_a_density():
    def energy(x):
        return 0.5 * ((x - 1) ** 2).sum(1) if isinstance(x, np.ndarray) else None

    density = Density(energy, gradient)
    assert Energy.of(density, 2).density == density and Energy.of(density, 2).has_gradient
    assert not Energy.of(Density(energy), 2).has_gradient


def test_batches_take_the_energy():
    sampler = fitted("ConsistentSamplerDistiller")
    batches = sampler.iter_samples(5, 2, 0, polish=2, energy_fn=quadratic)
    assert np.array_equal(np.concatenate(list(batches)), sampler.sample(5, random_state=0, polish=2))


def test_bounds_are_immutable():
    bounds = Bounds(torch.tensor([0.0]), torch.tensor([torch.inf]))
    with pytest.raises(dataclasses.FrozenInstanceError):
        bounds.scale = torch.tensor([2.0])
    assert bounds.chosen(bounds.choices | {"scale": torch.tensor([2.0])}).scale.tolist() == [
        2.0
    ] and bounds.scale.tolist() == [1.0]
