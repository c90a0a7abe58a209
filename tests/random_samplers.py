"""One-step samplers that were never fitted, for what holds of any map."""

import numpy as np
import torch

from skcds import ConsistentSamplerDistiller, ConsistentSamplerScratch
from skcds.density.bounds import Bounds
from skcds.density.standardize import Standardization
from skcds.models.maps import OneStepModel
from skcds.models.shortcut import ShortcutModel


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
    box = box and box.chosen(box.choices | {"scale": 1 + torch.rand(n_features, generator=generator)})
    sampler.__dict__ |= {
        "_model": model.requires_grad_(False).eval(), "n_features_in_": n_features, "violation_share_": 0.0,
        "n_contexts_in_": 0,
        "feature_names_out_": np.array([f"x{j}" for j in range(n_features)], dtype=object), "_energy": None,
        "_energy_name": None, "_lost_energy": None, **Bounds.as_fitted(box),
    }  # fmt: skip
    return sampler
