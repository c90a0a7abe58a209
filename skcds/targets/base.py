"""What the targets share: checked arguments and a repr."""

__all__ = ["LOG_2PI", "Target", "count", "finite", "like", "not_negative", "positive"]

import math
import numbers

import numpy as np
import torch
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)


def positive(value, name: str) -> float:
    """A positive number, or a sentence."""
    if not (isinstance(value, numbers.Real) and 0 < float(value) < math.inf):
        raise ValueError(f"{name} has to be a positive number; got {value!r}.")
    return float(value)


def count(value, name: str, low: int = 1) -> int:
    """An integer of at least `low`, or a sentence."""
    if not isinstance(value, numbers.Integral) or value < low:
        raise ValueError(f"{name} has to be an integer of at least {low}; got {value!r}.")
    return int(value)


def finite(value, name: str, shape: tuple) -> np.ndarray:
    """A new C-ordered float64 array; None in `shape` stands for any length."""
    array = np.array(value, dtype=np.float64, order="C")
    matches = array.ndim == len(shape) and all(b in (None, a) for a, b in zip(array.shape, shape, strict=True))
    if not matches or not array.size or not np.isfinite(array).all():
        wanted = "(" + ", ".join("any" if s is None else str(s) for s in shape) + ("," if len(shape) == 1 else "") + ")"
        raise ValueError(f"{name} has to be an array of finite numbers of shape {wanted}; got shape {array.shape}.")
    return array


def not_negative(value, name: str) -> float:
    """A number of at least 0, or a sentence."""
    if not (isinstance(value, numbers.Real) and 0 <= float(value) < math.inf):
        raise ValueError(f"{name} has to be a number of at least 0; got {value!r}.")
    return float(value)


def like(array: np.ndarray, x: Tensor) -> Tensor:
    """An array as a tensor of the dtype and on the device of another."""
    return torch.tensor(array, dtype=x.dtype, device=x.device)


class Target:
    """An energy with a repr and a checked argument."""

    n_features: int
    log_evidence: float | None = 0.0
    log_evidence_se: float | None = 0.0
    _shown: tuple = ("n_features",)  # the attributes in the repr

    def __call__(self, x: Tensor) -> Tensor:
        """Energies ``-log rho(x)``, (n,), of points (n, n_features)."""
        if not isinstance(x, Tensor):
            raise TypeError(f"{self} takes a torch tensor; got {type(x).__name__}: wrap it in torch.as_tensor.")
        self._check_shape(x)
        if not x.is_floating_point():
            raise ValueError(f"{self} takes points in floating point; got {x.dtype}.")
        return self._energy(x)

    def _energy(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def __repr__(self) -> str:
        values = (getattr(self, name) for name in self._shown)
        shown = (f"{value:.6g}" if isinstance(value, float) else repr(value) for value in values)
        return f"{type(self).__name__}({', '.join(map('='.join, zip(self._shown, shown, strict=True)))})"

    def _check_shape(self, x) -> None:
        if x.ndim != 2 or x.shape[1] != self.n_features:
            raise ValueError(f"{self} takes points of shape (n, {self.n_features}); got {tuple(x.shape)}.")

    def _points(self, X) -> np.ndarray:
        X = np.asarray(X, dtype=np.float64)
        self._check_shape(X)
        return X
