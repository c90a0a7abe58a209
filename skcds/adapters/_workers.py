"""Workers that points are shared among: joblib's, or those of a pool of the user's."""

__all__ = ["Workers"]

from collections.abc import Callable
from typing import Any

import joblib
import numpy as np
from sklearn.utils.parallel import Parallel, delayed

from .._support.parallel import in_parallel


class Workers:
    """Calls a function for every element of a list, in order, whoever does it.

    Parameters
    ----------
    n_jobs : int or None
        Workers of joblib.
    pool : object or None
        An object with a method ``map`` in their place.

    Raises
    ------
    TypeError
        When the pool has no method ``map``.
    """

    def __init__(self, n_jobs: int | None, pool: Any):
        if pool is not None and not callable(getattr(pool, "map", None)):
            raise TypeError(f"pool has to be an object with a method map; got {type(pool).__name__}.")
        self.n_jobs, self.pool = n_jobs, pool

    def __getstate__(self) -> dict:
        return {"n_jobs": self.n_jobs, "pool": None}

    @property
    def number(self) -> int:
        """How many there are, as far as they tell."""
        if self.pool is None:
            return joblib.effective_n_jobs(self.n_jobs)
        known = (getattr(self.pool, name, None) for name in ("_processes", "_max_workers", "size"))
        return next((number for number in known if isinstance(number, int) and number > 0), 1)

    def map(self, function: Callable, elements: list) -> list:
        """Results in the order of the elements."""
        if len(elements) < 2:
            return [function(element) for element in elements]
        if self.pool is not None:
            return list(self.pool.map(function, elements))
        if not in_parallel(self.n_jobs, len(elements)):
            return [function(element) for element in elements]
        return Parallel(n_jobs=self.n_jobs)(delayed(function)(element) for element in elements)

    def parts(self, X: np.ndarray) -> list[np.ndarray]:
        """Rows (n, d) in as many parts as there are workers."""
        return np.array_split(X, min(self.number, max(len(X), 1)))
