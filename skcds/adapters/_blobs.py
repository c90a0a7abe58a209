"""Blobs: what a likelihood returns beside its value."""

__all__ = ["Blobs", "blobs_of", "check_blob_names"]

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._support.settings import CPU
from ..density.energy import InvalidEnergyError
from ._workers import Workers

MOST_KNOWN = 100_000  # points whose blobs are remembered


class Blobs:
    """A function that returns its value and blobs, as a function of the value alone.

    What a function of one point returned is remembered in this process, so that draws which were weighed need no second
    call.

    Parameters
    ----------
    function : callable
        Of one point, or of many with `batched`. Returns a tuple: `n_values` values, then the blobs.
    names : iterable of str
        Of the blobs.
    batched : bool
        Whether the function takes many points.
    n_values : int, default=1
        What comes before the blobs: the log density, or that and its gradient.

    Raises
    ------
    ValueError
        When there is no name, or two are the same.
    """

    def __init__(self, function: Callable, names: Iterable[str], batched: bool, n_values: int = 1):
        self.function, self.names, self.batched, self.n_values = function, list(map(str, names)), batched, n_values
        if isinstance(names, str) or not self.names or len(set(self.names)) < len(self.names):
            raise ValueError(f"blobs has to be a list of names, each once; got {names!r}.")
        self.__name__ = getattr(function, "__name__", type(function).__name__)
        self._known: dict[bytes, tuple] = {}

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_known": {}}

    def __call__(self, x):
        """The value, or the tuple of values."""
        found = self.all_of(x)
        if not self.batched and isinstance(x, np.ndarray):
            self._remember(x, found[self.n_values :])
        return found[: self.n_values] if self.n_values > 1 else found[0]

    def all_of(self, x) -> tuple:
        """Values and blobs.

        Raises
        ------
        InvalidEnergyError
            When the function returns something else.
        """
        found, n = self.function(x), self.n_values + len(self.names)
        if not isinstance(found, tuple | list) or len(found) != n:
            got = f"{len(found)} of them" if isinstance(found, tuple | list) else type(found).__name__
            values = "value and gradient" if self.n_values > 1 else "value"
            raise InvalidEnergyError(
                f"{self.__name__} has to return a tuple of {n}, {values} and the blobs {', '.join(self.names)}; got "
                f"{got}. Outside its support, too: blobs may be NaN there."
            )
        return tuple(found)

    def _remember(self, x: np.ndarray, blobs: tuple) -> None:
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
        self._known[x.tobytes()] = tuple(np.array(blob) for blob in blobs)

    def at(self, X, workers: Workers) -> dict[str, np.ndarray]:
        """Blobs (n, ...) by name at points (n, d), an array or, for functions of many points, a tensor.

        Raises
        ------
        InvalidEnergyError
            When a blob has not one entry for each point, numbers of the same shape.
        """
        if self.batched:
            found: Any = self.all_of(X.clone() if isinstance(X, Tensor) else X.copy())[self.n_values :]
        else:
            rows = list(map(np.array, X))
            known = [self._known.get(row.tobytes()) for row in rows]
            new = iter(workers.map(self.all_of, [row for row, k in zip(rows, known, strict=True) if k is None]))
            found = zip(*(k if k is not None else next(new)[self.n_values :] for k in known), strict=True)
        return {name: self._array(name, blob, len(X)) for name, blob in zip(self.names, found, strict=True)}

    def _array(self, name: str, blob, n: int) -> np.ndarray:
        try:
            blob = blob.detach().to(CPU).numpy() if isinstance(blob, Tensor) else blob
            array = np.array(blob, dtype=np.float64)
        except (ValueError, TypeError):  # of different shapes, or no numbers
            array = np.empty(0)
        if array.shape[:1] != (n,) or array.ndim > 2:
            raise InvalidEnergyError(
                f"The blob {name} of {self.__name__} has to be a number, or k numbers, at each of {n} points."
            )
        return array


def check_blob_names(function: Callable, taken: list[str]) -> list[str]:
    """Names of the blobs of a function, none if it has none.

    Raises
    ------
    ValueError
        When a parameter has the same name.
    """
    names = function.names if isinstance(function, Blobs) else []
    if twice := [name for name in names if name in taken]:
        raise ValueError(f"blobs has {twice[0]!r}, which is the name of a parameter: choose another.")
    return names


def blobs_of(X: np.ndarray, function: Callable, workers: Workers, in_tensors: bool = False) -> dict[str, np.ndarray]:
    """Columns (n,) of blobs at points (n, d); several numbers of one blob are ``name[0]``, ``name[1]``, ..."""
    columns: dict[str, np.ndarray] = {}
    if not isinstance(function, Blobs) or not len(X):
        return columns
    for name, array in function.at(torch.from_numpy(X) if in_tensors else X, workers).items():
        columns |= {name: array} if array.ndim == 1 else {f"{name}[{j}]": part for j, part in enumerate(array.T)}
    return columns
