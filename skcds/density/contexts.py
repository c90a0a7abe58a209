"""Contexts of a family: where a fit gets them from, and checks of those that users pass."""

__all__ = ["ContextSource", "as_contexts", "columns_of", "context_names_of", "one_or_many"]

import numbers
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .._support.devices import randint

FIRST = 7  # contexts that a callable is asked for first


class ContextSource:
    """Contexts for a fit: rows of an array, or what a callable draws.

    Parameters
    ----------
    contexts : array-like of shape (m, k) or callable
        An array whose rows are picked at random, or ``contexts(n, rng)`` with a `numpy.random.Generator`, which returns
        an array (n, k).
    generator : torch.Generator
        Source of randomness for a first look at what a callable draws.

    Attributes
    ----------
    n_contexts : int
        Numbers k that a context has.
    rows : ndarray of shape (m, k) or None
        The array; None for a callable.
    names : list of str or None
        Columns of a data frame.

    Raises
    ------
    TypeError, ValueError
        When they are no numbers, not finite, or of another shape.
    """

    def __init__(self, contexts, generator: torch.Generator):
        self.draw_more: Callable | None = contexts if callable(contexts) else None
        self.names = columns_of(contexts)
        self.rows = None if self.draw_more is not None else as_contexts(contexts, "contexts")
        first = self._drawn(FIRST, generator) if self.rows is None else self.rows
        self.n_contexts = first.shape[1]

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Contexts (n, k), float64, on the device of the generator; rows of an array repeat only where they have to."""
        if self.rows is None:
            found = self._drawn(n, generator)
            if found.shape[1] != self.n_contexts:
                raise ValueError(
                    f"contexts(n, rng) returned {found.shape[1]} numbers a context, and {self.n_contexts} before."
                )
        else:
            found = self.rows[self._rng(generator).permutation(len(self.rows))[np.arange(n) % len(self.rows)]]
        return torch.from_numpy(found).to(generator.device)

    def _drawn(self, n: int, generator: torch.Generator) -> np.ndarray:
        assert self.draw_more is not None
        try:
            found = self.draw_more(n, self._rng(generator))
        except TypeError as error:
            raise TypeError(
                f"contexts, where it is a function, is called with a number and a NumPy generator, contexts(n, rng): "
                f"{error}"
            ) from error
        self.names = columns_of(found) if self.names is None else self.names
        found = as_contexts(found, "contexts(n, rng)")
        if len(found) != n:
            raise ValueError(f"contexts(n, rng) has to return n contexts, (n, k); got {len(found)} for n = {n}.")
        return found

    def _rng(self, generator: torch.Generator) -> np.random.Generator:
        return np.random.default_rng(int(randint(generator, 0, 2**62)))


def as_contexts(value, name: str) -> np.ndarray:
    """Contexts (m, k) as float64.

    Raises
    ------
    TypeError
        When they are no numbers.
    ValueError
        When they are not finite, or have another shape.
    """
    try:
        array = np.array(value)
        if array.dtype.kind not in "biufO":
            raise TypeError
        array = array.astype(np.float64)
    except (TypeError, ValueError):
        raise TypeError(
            f"{name} has to be an array of numbers (m, k), a context in each row; got {type(value).__name__}."
        ) from None
    if array.ndim != 2 or 0 in array.shape:
        hint = " Of one number each, they are a column: contexts[:, None]." if array.ndim == 1 and len(array) else ""
        raise ValueError(
            f"{name} has to be an array (m, k), a context in each row; got one of shape {array.shape}.{hint}"
        )
    if not np.isfinite(array).all():
        row, column = np.argwhere(~np.isfinite(array))[0]
        raise ValueError(f"{name} has to be finite; in row {row}, column {column} it is {array[row, column]}.")
    return array


def columns_of(value) -> list[str] | None:
    """Names of the columns of a data frame, where they are names."""
    columns = getattr(value, "columns", None)
    return [str(name) for name in columns] if columns is not None else None


def context_names_of(names, owner, n_contexts: int) -> np.ndarray:
    """Names of the numbers of a context: columns of a data frame, or ``energy_fn.context_names``, or c0, c1, ...

    Raises
    ------
    ValueError
        When these are not as many different names.
    """
    found = names if names is not None else getattr(owner, "context_names", None)
    if found is None:
        return np.array([f"c{j}" for j in range(n_contexts)], dtype=object)
    found = [str(name) for name in found]
    if len(found) != n_contexts or len(set(found)) != n_contexts:
        raise ValueError(f"context_names has to be {n_contexts} different names, one a number; got {found!r}.")
    return np.array(found, dtype=object)


def one_or_many(context, n_contexts: int, names) -> tuple[np.ndarray, bool]:
    """What users pass as ``context=``: contexts (m, k), and whether they are many or one.

    Parameters
    ----------
    context : array-like of shape (k,) or (m, k), mapping, or data frame
        A number stands for a context of one; columns of a data frame, and keys, are put in the order of `names`.
    n_contexts : int
        Numbers k of a context.
    names : sequence of str
        Their names.

    Raises
    ------
    TypeError, ValueError
        Which name the context.
    """
    if context is None:
        raise ValueError(f"This sampler was fitted to a family of densities: pass context=, {n_contexts} numbers.")
    if isinstance(context, dict) or columns_of(context) is not None:
        missing = [name for name in names if name not in context]
        if missing:
            raise ValueError(f"The context has no {missing[0]!r}; it is made of {', '.join(names)}.")
        context = [context[name] for name in names] if isinstance(context, dict) else context[list(names)]
    if isinstance(context, numbers.Real) and not isinstance(context, bool) and n_contexts == 1:
        context = [context]
    try:
        array = np.array(context, dtype=np.float64) if not isinstance(context, str | bytes) else None
    except (TypeError, ValueError):
        array = None
    if array is None:
        raise TypeError(f"context has to be {n_contexts} numbers, or an array (m, {n_contexts}); got {context!r}.")
    if array.ndim not in (1, 2) or array.shape[-1] != n_contexts:
        raise ValueError(
            f"context has to be of shape ({n_contexts},), or (m, {n_contexts}) for many; got shape {array.shape}."
        )
    if not np.isfinite(array).all():
        raise ValueError(f"context has to be finite; got {array[~np.isfinite(array)][0]} in it.")
    return np.atleast_2d(array) + 0.0, array.ndim == 2  # no negative zeros, which streams would tell apart
