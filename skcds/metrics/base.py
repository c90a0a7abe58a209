"""Checks of what the scores are given."""

__all__ = ["as_count", "as_draws", "as_sample"]

from numbers import Integral

import numpy as np


def as_sample(X, name, at_least=1):
    """Points (n, d) as finite float64, or a sentence."""
    X = np.asarray(X, dtype=np.float64)
    if X.ndim != 2 or X.shape[1] == 0:
        raise ValueError(f"{name} must have shape (n, d), one row for each draw, with d at least 1; got {X.shape}.")
    if len(X) < at_least:
        raise ValueError(f"{name} must have at least {at_least} rows, not {len(X)}.")
    bad = np.flatnonzero(~np.isfinite(X).all(1))
    if bad.size:
        raise ValueError(f"{bad.size} of {len(X)} rows of {name} are not finite, the first at row {bad[0]}.")
    return X


def as_draws(X, target, needs, at_least=1):
    """Points (n, d) of a target that has what a score needs, or a sentence."""
    X = as_sample(X, "X", at_least)
    missing = [name for name in needs if not hasattr(target, name)]
    if missing:
        raise ValueError(f"This score needs `{missing[0]}`, which the target {target!r} does not have.")
    if X.shape[1] != target.n_features:
        raise ValueError(f"X has {X.shape[1]} features, but the target {target!r} has {target.n_features}.")
    return X


def as_count(n, name):
    """A positive integer, or a sentence."""
    if not isinstance(n, Integral) or n < 1:
        raise ValueError(f"{name} must be a positive integer, not {n!r}.")
    return int(n)
