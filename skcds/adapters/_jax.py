"""Energies from JAX functions: compiled for few sizes of batches, in double precision whatever JAX is set to.

Arrays come over as NumPy's, for which a call takes 20 to 200 microseconds of 64 to 1024 rows; with dlpack both ways it
took 140 to 430, more for every size. Either way copies are small beside the rest, and JAX moves them to its device.
"""

__all__ = ["JaxFunction", "double_precision", "from_jax", "joined"]

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._support.warnings import note
from ..density.energy import InvalidEnergyError
from ._common import AdaptedEnergy, require

SMALLEST_BATCH, LARGEST_BATCH = 64, 1024  # rows, padded to powers of two between: five shapes to compile


def from_jax(
    log_prob: Callable, n_features: int, *, batched: bool = False, feature_names: Iterable[str] | None = None
) -> AdaptedEnergy:
    """Energy of a log density that is written in JAX.

    The function is vectorised, differentiated and compiled here, once for each of five sizes of batches. It is called
    with float64 whether or not ``jax_enable_x64`` is set, and the setting stays as it is; arrays that it closes over
    keep the precision that they have, so make data of more than seven digits with NumPy. It runs on JAX's default
    device. JAX dislikes to be forked: set up worker processes before, or spawn them.

    Parameters
    ----------
    log_prob : callable
        Maps a point (n_features,) to its log density, a scalar; with `batched`, points (n, n_features) to (n,). It is a
        log density, not an energy: larger is likelier. It has to be a function that ``jax.jit`` takes.
    n_features : int
        Dimension of a point. For a function of a dictionary or another tree, ravel it: ``jax.flatten_util``.
    batched : bool, default=False
        Whether `log_prob` takes a batch of points; row by row then, as always.
    feature_names : iterable of str, optional
        Names of the coordinates, by default ``x[0]``, ``x[1]``, ...

    Returns
    -------
    AdaptedEnergy
        Takes tensors, with a gradient.

    Raises
    ------
    ImportError
        Without JAX.
    TypeError
        When `log_prob` is not a function.
    InvalidEnergyError
        When it returns something else than a real scalar, or (n,) of them when `batched`.
    """
    require("jax", "JAX", "jax")
    if not callable(log_prob):
        raise TypeError(f"log_prob has to be a function of JAX arrays; got {type(log_prob).__name__}.")
    name = getattr(log_prob, "__name__", type(log_prob).__name__)
    energy = JaxEnergy(log_prob, n_features, batched, feature_names, name)
    _check(log_prob, energy.n_features, batched)
    return energy


class JaxEnergy(AdaptedEnergy):
    """Energy of a JAX log density, checked before; parameters as those of `from_jax`."""

    _origin = "JAX function"

    def __init__(self, log_prob: Callable, n_features: int, batched: bool, feature_names, name: str):
        super().__init__(n_features, feature_names, name)
        jax = import_module("jax")

        def value_and_gradient(x):
            value, pull_back = jax.vjp(log_prob, x)
            return value, pull_back(jax.numpy.ones_like(value))[0]

        functions = (log_prob, value_and_gradient)
        self._value, self._both = (JaxFunction(f if batched else jax.vmap(f)) for f in functions)

    def _log_prob_and_score(self, points: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
        if not with_gradient:
            return joined(self._value(points.numpy())), None
        values, scores = zip(*self._both(points.numpy()), strict=True)
        return joined(values), joined(scores)


class JaxFunction:
    """A compiled function of a batch, which takes arrays (n, d) of any n and returns the results in parts.

    Parameters
    ----------
    function : callable
        Maps a JAX array (m, d) to a tree of arrays (m, ...).
    """

    def __init__(self, function: Callable):
        self.jax = import_module("jax")
        self.function = self.jax.jit(function)

    def __call__(self, points: np.ndarray) -> list[Any]:
        """Trees of read-only arrays (m, ...), for consecutive rows of float64 points (n, d)."""
        chunks = [points[first : first + LARGEST_BATCH] for first in range(0, len(points), LARGEST_BATCH)]
        with double_precision():
            return [self._part(rows) for rows in chunks]

    def _part(self, rows: np.ndarray):
        result = self.function(_padded(rows))
        return self.jax.tree_util.tree_map(lambda array: np.asarray(array)[: len(rows)], result)


def _padded(rows: np.ndarray) -> np.ndarray:
    """The rows with the first one repeated at the end, until their number is one of those that are compiled."""
    size = max(SMALLEST_BATCH, 1 << (len(rows) - 1).bit_length())
    return np.concatenate([rows, np.broadcast_to(rows[0], (size - len(rows), rows.shape[1]))])


def joined(parts: Iterable[np.ndarray]) -> Tensor:
    """One float64 tensor of the parts' rows."""
    return torch.from_numpy(np.concatenate([np.asarray(part, dtype=np.float64) for part in parts]))


def double_precision():
    """Context in which JAX computes in float64; the user's setting comes back at its end."""
    jax = import_module("jax")
    return (jax if hasattr(jax, "enable_x64") else import_module("jax.experimental")).enable_x64(True)


def _check(log_prob: Callable, n_features: int, batched: bool) -> None:
    """Trace the function without computing anything, and judge the shape of what it returns."""
    jax = import_module("jax")
    shape = (SMALLEST_BATCH, n_features) if batched else (n_features,)
    given = f"a JAX array of shape {shape} to be traced"
    try:
        with double_precision():
            result = jax.eval_shape(log_prob, jax.ShapeDtypeStruct(shape, np.float64))
    except Exception as error:
        other = "batched=False gives it a single point" if batched else "batched=True gives it a batch of points"
        note(error, f"log_prob was given {given}; {other}.")
        raise
    expected = shape[:1] if batched else ()
    shape_out, dtype = getattr(result, "shape", None), getattr(result, "dtype", None)
    if shape_out == expected and dtype is not None and np.issubdtype(dtype, np.floating):
        return
    found = type(result).__name__ if dtype is None else f"shape {shape_out} and dtype {dtype}"
    if shape_out == (*expected, 1):
        advice = "Drop the last axis, for example with [..., 0]."
    elif batched:
        advice = "Sum over the features only; pass batched=False for a function of a single point."
    else:
        advice = "Sum over the features; pass batched=True for a function of a batch of points."
    raise InvalidEnergyError(
        f"log_prob has to return real numbers of shape {expected} for an input of shape {shape}; got {found}. " + advice
    )
