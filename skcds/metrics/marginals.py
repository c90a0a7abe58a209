"""Quantiles of every coordinate."""

__all__ = ["quantile_error"]


import numpy as np

from .._support.forks import random_state_of
from .base import as_count, as_draws


def quantile_error(X, target, levels=(0.05, 0.25, 0.5, 0.75, 0.95), n=200_000, random_state=None):
    """The largest error of the quantiles of the coordinates, as a probability.

    For a coordinate and a level, the error is the share of exact draws that do not exceed the quantile of `X`, minus
    the level, in absolute value. The largest error of all coordinates and levels is returned. It has no units and heavy
    tails do not disturb it.

    It sees shifts, wrong scales (too narrow as well as too wide) and wrong masses, coordinate by coordinate. **It does
    not see dependence**: draws with independently shuffled columns score the same. It does not see what is beyond the
    outer levels either, or a change of shape between two of them.

    The floor is the error of ``target.sample(len(X))``. It is about 0.5 / sqrt(len(X)) at every
    coordinate and level, and the largest of these counts. A larger `n` does not lower it.

    Parameters
    ----------
    X : array-like of shape (m, d)
        Draws, at least two; weighted ones have to be resampled first.
    target : object
        Has ``sample(n, random_state)``.
    levels : sequence of float, default=(0.05, 0.25, 0.5, 0.75, 0.95)
        Probabilities between 0 and 1.
    n : int, default=200_000
        Number of exact draws. The standard deviation of their own error is at most 0.5 / sqrt(n).
    random_state : int, RandomState instance, numpy.random.Generator or None, default=None
        An int makes the result reproducible.

    Returns
    -------
    float

    Examples
    --------
    >>> from skcds.metrics import quantile_error
    >>> from skcds.targets import Funnel
    >>> X = Funnel().sample(10_000, random_state=1)
    >>> exact = Funnel().sample(len(X), random_state=2)
    >>> floor = quantile_error(exact, Funnel(), random_state=0)
    >>> for draws in X, 0.8 * X:
    ...     found = quantile_error(draws, Funnel(), random_state=0)
    ...     print(f"{found:.3f} (exact draws: {floor:.3f})")
    0.010 (exact draws: 0.007)
    0.047 (exact draws: 0.007)
    """
    X = as_draws(X, target, needs=("sample",), at_least=2)
    n, levels = as_count(n, "n"), np.asarray(levels, dtype=np.float64)
    if levels.ndim != 1 or not levels.size or not ((levels > 0) & (levels < 1)).all():
        raise ValueError(f"levels must be a list of probabilities between 0 and 1; got {levels.tolist()}.")
    exact = target.sample(n, random_state_of(random_state))  # (n, d)
    quantiles = np.quantile(X, levels, axis=0)  # (n_levels, d)
    below = np.array([(exact <= q).mean(0) for q in quantiles])  # (n_levels, d)
    return float(np.abs(below - levels[:, None]).max())
