"""Energies from NumPy functions."""

__all__ = ["NumPyEnergy", "from_numpy"]

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .._support.warnings import note
from ..density.energy import InvalidEnergyError
from ._blobs import Blobs, blobs_of, check_blob_names
from ._common import AdaptedEnergy
from ._workers import Workers


def from_numpy(
    log_prob: Callable,
    n_features: int,
    grad: Callable | Literal[True] | None = None,
    *,
    batched: bool = False,
    feature_names: Iterable[str] | None = None,
    n_jobs: int | None = None,
    pool: Any = None,
    blobs: Iterable[str] | None = None,
) -> AdaptedEnergy:
    """Energy of a log density that is written in NumPy, or in anything that takes and returns arrays.

    Parameters
    ----------
    log_prob : callable
        Maps a point (n_features,) to its log density, a number; with `batched`, points (n, n_features) to (n,). It is
        a log density, not an energy: larger is likelier. ``-inf`` outside its support.
    n_features : int
        Dimension of a point.
    grad : callable or True, optional
        Maps a point to the gradient of the log density, (n_features,); with `batched`, points to (n, n_features). True
        when `log_prob` returns the pair of value and gradient. Without it samplers work without a gradient.
    batched : bool, default=False
        Whether the functions take a batch of points, which is much faster, or a single one.
    feature_names : iterable of str, optional
        Names of the coordinates, by default ``x[0]``, ``x[1]``, ...
    n_jobs : int, optional
        Workers that the points of a batch are shared among by joblib, for functions that take a millisecond or more.
        None is 1 unless in a `joblib.parallel_config` context, which may name another backend, such as dask; -1 all
        processors. The results do not depend on it.
    pool : object with a method ``map``, optional
        Workers in place of joblib's: of `multiprocessing`, `concurrent.futures`, schwimmbad or mpi4py. The functions
        have to be such that the pool can send them. A pickle of the energy leaves the pool out.
    blobs : iterable of str, optional
        Names of further results, as in emcee and nautilus. `log_prob` then returns a tuple: its value (and gradient),
        and a number or k numbers for each name; with `batched`, arrays (n,) or (n, k). Weighted draws have them as
        columns beside the features.

    Returns
    -------
    AdaptedEnergy
        Takes tensors, with a gradient where there is one; errors of the functions are raised when it is called.

    Raises
    ------
    TypeError
        When `log_prob` or `grad` is not a function, or `pool` has no method ``map``.
    ValueError
        When `blobs` are no names.

    Examples
    --------
    >>> import numpy as np
    >>> from skcds.adapters import from_numpy
    >>> energy = from_numpy(lambda x: -0.5 * x @ x, 3, grad=lambda x: -x)
    >>> energy(np.ones((2, 3)))
    array([1.5, 1.5])
    >>> import torch
    >>> x = torch.ones(2, 3, requires_grad=True)
    >>> torch.autograd.grad(energy(x).sum(), x)[0]
    tensor([[1., 1., 1.],
            [1., 1., 1.]])
    """
    if not callable(log_prob):
        raise TypeError(f"log_prob has to be a function of arrays; got {type(log_prob).__name__}.")
    if not (grad is None or grad is True or callable(grad)):
        raise TypeError(
            f"grad has to be a function, True when log_prob returns value and gradient, or None; got {grad!r}."
        )
    if blobs is not None:
        log_prob = Blobs(log_prob, blobs, batched, 1 + (grad is True))
    return NumPyEnergy(log_prob, n_features, grad, batched, feature_names, Workers(n_jobs, pool))


class NumPyEnergy(AdaptedEnergy):
    """Energy of a log density; parameters as those of `from_numpy`."""

    _origin = "NumPy function"
    _called = ("log_prob", "batched")  # names of the function, and of the option for a batch, in messages

    def __init__(self, log_prob, n_features, grad, batched, feature_names, workers):
        super().__init__(n_features, feature_names, getattr(log_prob, "__name__", type(log_prob).__name__))
        self.log_prob, self.grad, self.batched, self.has_gradient = log_prob, grad, batched, grad is not None
        self.workers, self.blob_names = workers, check_blob_names(log_prob, self.feature_names)

    @property
    def fewest_rows(self) -> int:
        """Points that a call should have at least, so that all workers have one."""
        return self.workers.number

    def blobs(self, X) -> dict[str, np.ndarray]:
        """Columns (n,) by name at points (n, n_features): what `log_prob` returns beside its value.

        Empty without `blobs`. The density has to be positive there.
        """
        return blobs_of(np.array(X, dtype=np.float64, order="C"), self.log_prob, self.workers)

    def _log_prob_and_score(self, points: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
        X, n, pairs, (name, option) = points.numpy(), len(points), self.grad is True, self._called
        rows = self.workers.parts(X) if self.batched else list(X)
        value: list = self.workers.map(_Call(self.log_prob, name, option, self.batched), rows)
        score: list = [None]
        if pairs:
            value, score = map(list, zip(*map(_pair, value), strict=True))
        elif with_gradient:
            score = self.workers.map(_Call(self.grad, "grad", option, self.batched), rows)
        if self.batched:
            value, score = _joined(value), _joined(score)
        shape_in = tuple(X.shape) if self.batched else (self.n_features,)
        values = self._checked(value, name, (n,), shape_in)
        if not with_gradient:
            return values, None
        return values, self._checked(score, "the gradient" if pairs else "grad", (n, self.n_features), shape_in)

    def _checked(self, value: Any, name: str, shape: tuple, shape_in: tuple) -> Tensor:
        """The results of all rows as a tensor; a function of points has given a list with one for each."""
        given = value if self.batched else value[0]
        try:
            array = np.asarray(value)
        except ValueError:  # rows of different shapes
            array = np.empty(0, dtype=object)
        if array.dtype.kind in "fiu" and array.shape == shape:
            return torch.from_numpy(np.array(array, dtype=np.float64, order="C"))
        expected = shape if self.batched else shape[1:]
        raise InvalidEnergyError(
            f"{name} has to be {_words(expected)} for an input of shape {shape_in}; got {_found(given)}. "
            f"{self._advice(np.shape(given) if array.dtype.kind in 'fiu' else None, expected)}"
        )

    def _advice(self, shape: tuple | None, expected: tuple) -> str:
        option = self._called[1]
        if shape is None:
            return "Return a number, or an array of numbers, for every point."
        if shape == (*expected, 1):
            return "Drop the last axis, for example with [..., 0]."
        if self.batched:
            return f"It has to return one result for each row; pass {option}=False for a function of a single point."
        return f"Sum over the features; pass {option}=True for a function of a batch of points."


@dataclass(frozen=True)
class _Call:
    """A user's function as workers call it, with a note on its errors."""

    function: Callable
    name: str
    option: str
    batched: bool

    def __call__(self, x: np.ndarray):
        try:
            return _kept(self.function(x.copy()))
        except Exception as error:
            other = "False gives it one point" if self.batched else "True gives it a batch of points"
            note(error, f"{self.name} was given a float64 array of shape {x.shape}; {self.option}={other} at a time.")
            raise


def _joined(parts: list):
    """What a function of batches gave for parts of a batch, as for the whole of it."""
    if len(parts) == 1 or not all(np.ndim(part) for part in parts):
        return parts[0]
    return np.concatenate([np.asarray(part) for part in parts])


def _kept(result):
    """A result that stays as it is when the function writes into the same memory again."""
    if isinstance(result, tuple | list):
        return [_kept(part) for part in result]
    return result.copy() if isinstance(result, np.ndarray) else result


def _pair(result) -> tuple:
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise InvalidEnergyError(
            f"log_prob has to return a pair, value and gradient, with grad=True; got {_found(result)}."
        )
    return _kept(result[0]), _kept(result[1])


def _words(shape: tuple) -> str:
    return f"an array of real numbers of shape {shape}" if shape else "a real number"


def _found(value) -> str:
    if value is None or isinstance(value, str | bytes | dict):
        return type(value).__name__
    try:
        array = np.asarray(value)
    except ValueError:
        return type(value).__name__
    return f"{type(value).__name__} of shape {array.shape} and dtype {array.dtype}"
