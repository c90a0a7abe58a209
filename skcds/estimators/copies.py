"""Copies of samplers inside a process, which keep the energy, where pickles keep its name at most."""

__all__ = ["copied", "copied_deeply", "with_energy"]

import copy

from .._support.devices import generator_on
from ..density.bounds import Bounds
from ..density.energy import Energy
from ..density.families import open_energy
from ..density.function import Density


def copied(sampler):
    """What ``copy.copy`` gives: another sampler of the same attributes."""
    twin = object.__new__(type(sampler))
    twin.__dict__.update(vars(sampler))
    return twin


def copied_deeply(sampler, memo: dict):
    """What ``copy.deepcopy`` gives: all is copied but the energy's functions, which may be anything of the user's."""
    twin = memo[id(sampler)] = object.__new__(type(sampler))
    for name, value in vars(sampler).items():
        twin.__dict__[name] = copy.copy(value) if isinstance(value, Energy) else copy.deepcopy(value, memo)
    return twin


def with_energy(sampler, density: Density):
    """A fitted sampler, given the energy where it has lost it on the way from another process."""
    if sampler._energy is None:
        generator = generator_on(sampler._model.device, 0)
        sampler._energy = open_energy(density, sampler.n_features_in_, generator, Bounds.from_fitted(sampler))
        sampler._energy_name = sampler._lost_energy = None
    return sampler
