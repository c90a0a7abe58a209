"""What the arguments of `SamplerDisplay` stand for, checked: draws, weights, features, the energy."""

import numbers

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning

from .._support.warnings import muted, warn_user
from ..density.bounds import Bounds
from ..density.energy import Energy
from ..density.function import Density
from ._grids import centers

MAX_FEATURES = 8


def energy_of(estimator, density: Density | None) -> Energy | None:
    """The energy passed, or the one that the estimator keeps, or None."""
    if density is None and getattr(estimator, "_energy", None) is None:
        return None
    return estimator._target(density, "SamplerDisplay").energy


def draw_from(estimator, n, weighted, random_state, options) -> tuple[np.ndarray, np.ndarray | None]:
    """Draws, and their log weights where these are asked for."""
    if not weighted:
        return np.asarray(estimator.sample(n, random_state=random_state, **options)), None
    with muted(*([ConvergenceWarning] if weighted == "auto" else [])):
        found = estimator.sample_weighted(n, random_state=random_state, **options)
    reliable = weighted != "auto" or found.pareto_k <= found.pareto_k_limit
    return found.samples, found.log_weights if reliable else None


def particles_of(estimator, name: str) -> np.ndarray:
    """Particles of the training, the teacher's for a student, in the user's coordinates."""
    owner = getattr(estimator, "teacher_", estimator)
    particles = getattr(owner, "particles_", None)
    if name != "particles" or particles is None or not len(particles):
        known = "the estimator has none" if name == "particles" else f"got {name!r}"
        raise ValueError(
            f"reference has to be draws (m, n_features), or 'particles' for those of the training; {known}."
        )
    points, bounds = torch.from_numpy(np.asarray(particles, dtype=np.float64)), Bounds.from_fitted(owner)
    return (points if bounds is None else bounds(points)).numpy()


def as_draws(X, name: str) -> np.ndarray:
    """Draws (n, n_features) as float64."""
    X = np.asarray(X, dtype=np.float64)
    if X.ndim != 2 or not X.shape[1] or len(X) < 2:
        raise ValueError(f"{name} has to hold at least two draws, shape (n, n_features); got shape {X.shape}.")
    return X


def columns_of(X) -> list[str] | None:
    """Names of the columns of a data frame."""
    columns = getattr(X, "columns", None)
    return None if columns is None else [str(column) for column in columns]


def as_weights(sample_weight, log_weights, n: int) -> np.ndarray | None:
    """Normalised weights, or None."""
    if sample_weight is not None and log_weights is not None:
        raise ValueError("sample_weight and log_weights say the same: pass one of them.")
    name, values = ("sample_weight", sample_weight) if log_weights is None else ("log_weights", log_weights)
    if values is None:
        return None
    values = np.asarray(values, dtype=np.float64)
    if values.shape != (n,):
        raise ValueError(f"{name} has to have one number a draw, shape ({n},); got shape {values.shape}.")
    if name == "log_weights":
        return normalised_weights(values)
    if not (np.isfinite(values).all() and (values >= 0).all() and values.sum() > 0):
        raise ValueError("sample_weight has to be finite, not negative, and not all zero.")
    return values / values.sum()


def normalised_weights(log_weights) -> np.ndarray | None:
    """Weights that sum to 1, or None for None."""
    if log_weights is None:
        return None
    largest = log_weights.max()
    if not np.isfinite(largest):
        raise ValueError("log_weights has to be free of NaN and +inf, and one of them at least finite.")
    weights = np.exp(log_weights - largest)
    return weights / weights.sum()


def finite_rows(X, weights, name="X") -> tuple[np.ndarray, np.ndarray | None]:
    """Without draws that are not finite, which may have no weight."""
    finite = np.isfinite(X).all(1)
    if finite.all():
        return X, weights
    if weights is None or weights[~finite].any():
        raise ValueError(
            f"{(~finite).sum()} of {len(X)} draws in {name} are not finite, the first in row {finite.argmin()}."
        )
    return X[finite], weights[finite]


def in_cube(estimator) -> bool:
    """Whether draws are in the unit cube of a prior, and the parameters are columns beside them."""
    energy_fn = getattr(getattr(estimator, "_energy", None), "energy_fn", None)
    return getattr(energy_fn, "to_parameters", None) is not None


def with_derived(X, reference, names, beside) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Draws, reference draws and names with those of derived columns behind them; ``beside(X)`` gives the columns."""
    columns = {} if beside is None else beside(X)
    if not columns:
        return X, reference, names
    if reference is not None:
        reference = np.column_stack([reference, *beside(reference).values()])
    return np.column_stack([X, *columns.values()]), reference, np.array([*names, *columns], dtype=object)


def chosen_features(features, names) -> list[int]:
    """Indices of the features to show."""
    d = len(names)
    if features is None:
        if d > MAX_FEATURES:
            warn_user(f"The first {MAX_FEATURES} of {d} features are shown; choose others with features=.", UserWarning)
        return list(range(min(d, MAX_FEATURES)))
    if isinstance(features, str | numbers.Integral):
        features = [features]
    columns = [index_of(feature, names) for feature in features]
    if not columns or len(set(columns)) != len(columns) or len(columns) > MAX_FEATURES:
        raise ValueError(f"features has to name one to {MAX_FEATURES} different features; got {list(features)!r}.")
    return columns


def index_of(feature, names) -> int:
    """Index of a feature that is given by index or name."""
    d = len(names)
    if isinstance(feature, str) and feature in names:
        return list(names).index(feature)
    if isinstance(feature, numbers.Integral) and not isinstance(feature, bool) and -d <= int(feature) < d:
        return int(feature) % d
    raise ValueError(f"features has to hold names, or indices below {d}; got {feature!r}.")


def checked_masses(masses) -> list[float]:
    """Shares of the mass, increasing."""
    masses = sorted(float(mass) for mass in masses)
    if not masses or not all(0 < mass < 1 for mass in masses):
        raise ValueError(f"masses has to be shares between 0 and 1; got {masses}.")
    return masses


def axis_within(window, bounds, size: int) -> np.ndarray:
    """Points (size,) over a window, inside the bounds of the density."""
    return centers(np.linspace(max(window[0], bounds[0]), min(window[1], bounds[1]), size + 1))
