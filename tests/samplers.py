"""What the tests of the estimators share: small fits of every kind, each made once."""

import functools
import warnings

import numpy as np
import torch

from skcds import ConsistentSamplerDistiller, ConsistentSamplerScratch, DiffusionSampler
from skcds.density.bounds import Bounds
from skcds.density.standardize import Standardization
from skcds.models.maps import OneStepModel
from skcds.models.shortcut import ShortcutModel

KINDS = ["DiffusionSampler", "ConsistentSamplerDistiller", "ConsistentSamplerScratch"]
ONE_STEP = KINDS[1:]
D = 3
LOG_Z = 0.5 * D * 1.8378770664093453  # of `quadratic`


def quadratic(x):
    """Energy of N(1, I) without its normaliser; importable, so that pickles carry it."""
    return 0.5 * ((x - 1.0) ** 2).sum(1)


# the start, as wide as two standard deviations of `quadratic`, spares a fit half of its time
SMALL = {"start": (0.0, 2.0), "n_steps": 8, "n_particles": 500, "hidden_features": 32, "n_layers": 2, "batch_size": 256}
SMALL_MAP = {"n_transforms": 2, "batch_size": 128}


def make(kind, **params):
    """An unfitted sampler of one kind with small limits; n_features=D unless said otherwise."""
    params = {"n_features": D, "random_state": 0, "max_iter": 20, **params}
    if kind == "DiffusionSampler":
        return DiffusionSampler(**{**SMALL, **params})
    if kind == "ConsistentSamplerScratch":
        return ConsistentSamplerScratch(**{**SMALL, "n_transforms": 2, "map_batch_size": 128, **params})
    teacher = {name: params.pop(name) for name in ("n_features", "langevin", "start") if name in params}
    teacher = DiffusionSampler(**{**SMALL, **teacher}, max_iter=20, random_state=0)
    return ConsistentSamplerDistiller(teacher, **{**SMALL_MAP, **params})


@functools.cache
def fitted(kind, network=None):
    """A small fit to `quadratic`; do not change it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(kind, **({"network": network} if network else {})).fit(quadratic)


def random_sampler(kind, seed, n_features=2, bounds=None, tails=False, network="coupling", strength=0.3):
    """A one-step sampler that was never fitted, of 8 steps, with a random map, standardisation and box scales."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"n_transforms": 3, "bins": 6} if network == "coupling" else {}
    if kind == "ConsistentSamplerScratch":
        sizes = {"map_hidden": 16, "map_layers": 2, **sizes}
        sampler, args = ConsistentSamplerScratch(n_features), (network, 8, n_features, 6.0, True, 16, 2, False, True)
        model = ShortcutModel(*args, **sizes)
    else:
        sampler = ConsistentSamplerDistiller(n_features=n_features)
        model = OneStepModel(network, n_features, 6.0, True, hidden=16, n_layers=2, **sizes)
    for parameter in model.parameters():
        parameter.data.copy_(strength * torch.randn(parameter.shape, generator=generator))
    factor = 0.15 * torch.randn(n_features, n_features, generator=generator) + 0.5 * torch.eye(n_features)
    loc = torch.randn(n_features, generator=generator)
    center_and_width = (torch.zeros(n_features), torch.full((n_features,), 0.5)) if tails else None
    model.standardization = Standardization.from_moments(0.2 * loc, factor @ factor.T, center_and_width)
    box = Bounds.from_parameter(bounds, n_features)
    box = box and box.scaled(1 + torch.rand(n_features, generator=generator))
    sampler.__dict__ |= {
        "_model": model.requires_grad_(False).eval(), "n_features_in_": n_features, "violation_share_": 0.0,
        "feature_names_out_": np.array([f"x{j}" for j in range(n_features)], dtype=object), "_energy": None,
        "_energy_name": None, "_lost_energy": None, **Bounds.as_fitted(box),
    }  # fmt: skip
    return sampler
