"""Where tensors are: the device of a fit, random numbers on it, and the way back to NumPy."""

__all__ = [
    "find_device",
    "generator_on",
    "loading_device",
    "placed",
    "rand",
    "randint",
    "randn",
    "randperm",
    "to_numpy",
]

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .settings import FLOAT
from .warnings import warn_user


def find_device(name: str) -> torch.device:
    """The device that a parameter asks for; "auto" is CUDA where there is one, else the CPU.

    Raises
    ------
    ValueError
        When there is no such device here, or it has no double precision, which densities are evaluated in.
    """
    if name == "auto":
        cuda = torch.device("cuda")
        return cuda if torch.cuda.is_available() and _fault(cuda) is None else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device has to be 'auto', 'cpu', 'cuda' or one like 'cuda:1'; got {name!r}.") from None
    error = _fault(device)
    if error is not None:
        raise ValueError(
            f"device={name!r} cannot be used here: it is missing, or has no double precision. Pass device='auto' or "
            "'cpu'."
        ) from error
    return device


def _fault(device: torch.device) -> Exception | None:
    """What goes wrong in double precision on a device."""
    try:
        torch.zeros(1, dtype=torch.float64, device=device).add_(1).item()
    except Exception as error:
        return error
    return None


def loading_device(name: str) -> torch.device:
    """The device of `find_device` for a sampler that was fitted elsewhere: the CPU where there is no such device."""
    try:
        return find_device(name)
    except ValueError as error:
        warn_user(f"{error} The sampler is on the CPU now.", UserWarning)
        return torch.device("cpu")


def generator_on(device, seed: int) -> torch.Generator:
    """A seeded generator whose random numbers are on a device."""
    return torch.Generator(device).manual_seed(seed)


def randn(generator: torch.Generator, *size, dtype: torch.dtype = FLOAT) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*size, dtype=dtype, generator=generator, device=generator.device)


def rand(generator: torch.Generator, *size, dtype: torch.dtype = FLOAT) -> Tensor:
    """Uniform numbers in [0, 1)."""
    return torch.rand(*size, dtype=dtype, generator=generator, device=generator.device)


def randint(generator: torch.Generator, low: int, high: int, size: tuple = ()) -> Tensor:
    """Uniform integers from `low` to below `high`."""
    return torch.randint(low, high, size, generator=generator, device=generator.device)


def randperm(generator: torch.Generator, n: int) -> Tensor:
    """The numbers below n in random order."""
    return torch.randperm(n, generator=generator, device=generator.device)


def to_numpy(tensor: Tensor) -> np.ndarray:
    """The values of a tensor, from whatever device; on the CPU they share its memory."""
    return tensor.detach().cpu().numpy()


def placed(model: Any, device: torch.device) -> Any:
    """A model with a `device`, or a copy of it on another one."""
    return model if model.device == device else copy.deepcopy(model).to(device)
