"""Nested states of a fit as plain values and named arrays, and parameters described by their values."""

__all__ = ["described", "from_plain", "to_plain"]

import hashlib
import json
import math
import numbers

import numpy as np
import torch

from .._support.devices import to_numpy

SHOWN = 20  # entries of a parameter that are compared and shown themselves; longer ones by a hash


def to_plain(value, arrays: dict[str, np.ndarray]):
    """What JSON can hold, with arrays and tensors moved to `arrays`; `from_plain` takes it back, bit for bit."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor):
        # the order of the axes in memory is kept: in another one products of matrices are rounded otherwise
        order = sorted(range(value.ndim), key=lambda axis: value.stride()[axis], reverse=True)
        return {"tensor": _stored(to_numpy(value.permute(order)), arrays), "order": order}
    if isinstance(value, np.ndarray):
        return {"array": _stored(value, arrays)}
    if isinstance(value, dict):
        return {"dict": [[to_plain(key, arrays), to_plain(part, arrays)] for key, part in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [to_plain(part, arrays) for part in value]}
    raise TypeError(f"A state of type {type(value).__name__} cannot be kept in a checkpoint.")


def from_plain(value, arrays: dict[str, np.ndarray]):
    """What `to_plain` took apart."""
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        tensor, order = torch.from_numpy(np.array(arrays[value["tensor"]])).clone(), value["order"]
        return tensor.permute([order.index(axis) for axis in range(len(order))])
    if "array" in value:
        return np.array(arrays[value["array"]])
    ((kind, parts),) = value.items()
    if kind == "dict":
        return {from_plain(key, arrays): from_plain(part, arrays) for key, part in parts}
    return {"list": list, "tuple": tuple}[kind](from_plain(part, arrays) for part in parts)


def _stored(array: np.ndarray, arrays: dict[str, np.ndarray]) -> str:
    name = str(len(arrays))
    arrays[name] = np.asarray(array, order="C")
    return name


def described(value):
    """A parameter as plain values that are equal where its own are: numbers of any type, arrays, sequences."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return "nan" if math.isnan(value) else float(value)
    if isinstance(value, np.random.RandomState):
        return "a RandomState"  # the file has the seed that came from it
    if isinstance(value, np.random.Generator):
        return "a Generator"
    if hasattr(value, "__array__"):
        value = np.asarray(value).tolist()
    if isinstance(value, list | tuple):
        parts = [described(part) for part in value]
        return parts if len(parts) <= SHOWN else _hashed(parts)
    return repr(value)


def _hashed(parts: list) -> str:
    text = json.dumps(_as_floats(parts)).encode()
    return f"{len(parts)} entries of SHA-256 {hashlib.sha256(text).hexdigest()}"


def _as_floats(value):
    """With integers as the floating point numbers that equal them, if there are such numbers."""
    if isinstance(value, list):
        return [_as_floats(part) for part in value]
    return float(value) if type(value) is int and float(value) == value else value
