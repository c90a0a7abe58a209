"""Draws as a pandas data frame, or as what ArviZ, GetDist and anesthetic read."""

__all__ = ["checked_names", "to_anesthetic", "to_arviz", "to_frame", "to_getdist"]

import re
from typing import Any

import numpy as np

N_CHAINS = 4  # that independent draws are arranged in, where their number allows: ArviZ compares chains


def checked_names(names, n_features: int, owner: str) -> np.ndarray:
    """Names of the features (d,), by default x0, x1, ... as scikit-learn has them."""
    if names is None:
        return np.array([f"x{j}" for j in range(n_features)], dtype=object)
    names = list(names)
    if len(names) != n_features or not all(isinstance(name, str) for name in names) or len(set(names)) != n_features:
        raise ValueError(f"{owner} has to be {n_features} different names, one a feature; got {names!r}.")
    return np.array([str(name) for name in names], dtype=object)


def to_frame(X: np.ndarray, names, **columns: np.ndarray):
    """Draws (n, d) as a data frame with named columns, and further columns (n,).

    Raises
    ------
    ImportError
        Without pandas.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError('A data frame needs pandas: pip install "skcds[frames]".') from error
    return pandas.DataFrame(X, columns=list(names)).assign(**columns)


def to_arviz(variables: dict[str, np.ndarray], attrs: dict, **sample_stats: np.ndarray):
    """Draws of variables, (n, ...) each, as an ArviZ posterior, and statistics (n,) of the draws.

    Returns
    -------
    InferenceData or DataTree
        As the installed ArviZ has it, before 1.0 or from then on.

    Raises
    ------
    ImportError
        Without ArviZ.
    """
    try:
        import arviz
    except ImportError as error:
        raise ImportError('to_arviz needs ArviZ: pip install "skcds[arviz]".') from error
    n = len(next(iter(variables.values())))
    n_chains = N_CHAINS if n % N_CHAINS == 0 and n > N_CHAINS else 1

    def in_chains(values):
        return values.reshape(n_chains, n // n_chains, *values.shape[1:])

    groups = {
        "posterior": {name: in_chains(values) for name, values in variables.items()},
        "sample_stats": {name: in_chains(column) for name, column in sample_stats.items()},
    }
    groups = {name: group for name, group in groups.items() if group}
    before_1 = int(arviz.__version__.split(".")[0]) < 1
    data = arviz.from_dict(**groups) if before_1 else arviz.from_dict(groups)
    data.posterior.attrs.update(attrs)
    return data


def to_getdist(
    columns: dict[str, np.ndarray], parameters, weights: np.ndarray, log_density, labels: dict, options: dict
):  # fmt: skip
    """Columns (n,) of weighted draws as GetDist's samples; those that are not `parameters` are marked as derived.

    Raises
    ------
    ImportError
        Without GetDist.
    """
    try:
        from getdist import MCSamples
    except ImportError as error:
        raise ImportError('to_getdist needs GetDist: pip install "skcds[getdist]".') from error
    kept = weights > 0
    given: dict[str, Any] = {
        "samples": np.column_stack([*columns.values()])[kept],
        "weights": weights[kept],
        "loglikes": None if log_density is None else -log_density[kept],
        "names": [re.sub(r"\s+", "_", name) + ("" if name in parameters else "*") for name in columns],
        "labels": [labels.get(name, name) for name in columns],
    }
    return MCSamples(**given | options)


def to_anesthetic(columns: dict[str, np.ndarray], weights: np.ndarray, log_likelihood, labels: dict, options: dict):
    """Columns (n,) of weighted draws as anesthetic's samples.

    Raises
    ------
    ImportError
        Without anesthetic.
    """
    try:
        from anesthetic import Samples
    except ImportError as error:
        raise ImportError('to_anesthetic needs anesthetic: pip install "skcds[anesthetic]".') from error
    given: dict[str, Any] = {
        "data": np.column_stack([*columns.values()]),
        "columns": list(columns),
        "weights": weights,
        "labels": [labels.get(name, name) for name in columns],
    }
    found = Samples(**given | options)
    if log_likelihood is not None:
        found["logL"] = log_likelihood
    return found
