"""Models as class name, configuration and arrays, and functions as names that importing gives back."""

__all__ = ["built", "describe", "imported", "name_of", "pack", "unpack"]

import functools
import importlib

import numpy as np
import torch
from torch import nn

from .._support.devices import to_numpy
from .._support.initialise import without_draws
from .registry import MODELS, key_of


def pack(model: nn.Module) -> dict:
    """A model as its class name, configuration, and weights as NumPy arrays."""
    weights = {name: to_numpy(tensor).copy() for name, tensor in model.state_dict().items()}
    return {"class": key_of(type(model)), "config": dict(vars(model)["config"]), "weights": weights}


def unpack(state: dict) -> nn.Module:
    """The model that `pack` took apart."""
    model = built(state["class"], state["config"])
    model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in state["weights"].items()})
    return model.requires_grad_(False).eval()


def built(name: str, config: dict) -> nn.Module:
    """A model of a registered class, with weights of zero."""
    with without_draws():
        return MODELS[name](**config)


def name_of(function) -> list[str] | None:
    """Module and qualified name of a function that importing these gives back, or None."""
    try:
        module, qualname = function.__module__, function.__qualname__
        return [module, qualname] if imported(module, qualname) is function else None
    except Exception:
        return None


def imported(module: str, qualname: str):
    """What has this name in a module."""
    return functools.reduce(getattr, qualname.split("."), importlib.import_module(module))


def describe(energy_fn) -> str:
    """Where an energy function comes from, in words."""
    name = name_of(energy_fn)
    return ".".join(name) if name else f"an instance or closure of type {type(energy_fn).__qualname__}"
