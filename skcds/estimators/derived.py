"""Derived quantities: functions of draws, whose values stand beside the features."""

__all__ = ["Derived", "columns_beside", "details_of"]

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .._support.devices import to_numpy
from .._support.warnings import warn_user
from ..density.energy import Energy
from ..io.packing import imported, name_of

RESERVED = {"log_weight", "context"}  # columns of data frames that are no draws
PROBED = 3  # points that the functions are first tried at


class Derived:
    """Functions of draws, by name.

    Parameters
    ----------
    functions : dict
        Map draws (n, d) to one number each, (n,), or to several, (n, k).
    lost : sequence of str, default=()
        Names of functions that did not come along in a pickle.
    """

    def __init__(self, functions: dict[str, Callable], lost: tuple[str, ...] = ()):
        self.functions, self.lost = dict(functions), tuple(lost)

    def __deepcopy__(self, memo) -> "Derived":
        return self

    @classmethod
    def from_parameter(cls, derived, taken) -> "Derived | None":
        """From what users pass to `fit`, a dictionary or None.

        Raises
        ------
        TypeError
            When it is no dictionary of functions.
        ValueError
            When a name is that of another column, of those in `taken`.
        """
        if derived is None:
            return None
        if not isinstance(derived, Mapping):
            raise TypeError(f"derived has to be a dictionary of functions by name; got {type(derived).__name__}.")
        for name, function in derived.items():
            if not isinstance(name, str) or not callable(function):
                raise TypeError(
                    f"derived has to hold functions of draws by name; got {type(function).__name__} for {name!r}."
                )
            if name in RESERVED or name in taken:
                raise ValueError(f"derived[{name!r}] has the name of another column of the draws: choose a new one.")
        return cls(dict(derived))

    def check(self, energy: Energy) -> None:
        """Try the functions at a few points of the support, before a fit is spent on them."""
        y = energy.valid[:, : energy.n_features]
        if len(y):
            x = to_numpy(y if energy.bounds is None else energy.bounds(y)).astype(np.float64)
            columns_beside(np.resize(x, (PROBED, x.shape[1])), self, energy.energy_fn)

    def references(self) -> dict:
        """What a pickle holds: names of the functions that importing gives back, and of those that it lacks."""
        names = {name: name_of(function) for name, function in self.functions.items()}
        lost = [name for name, found in names.items() if found is None]
        return {"functions": {name: found for name, found in names.items() if found}, "lost": [*self.lost, *lost]}

    @classmethod
    def from_references(cls, state: dict) -> "Derived":
        """From what `references` gave."""
        functions, lost = {}, list(state["lost"])
        for name, reference in state["functions"].items():
            try:
                functions[name] = imported(*reference)
            except Exception:
                lost.append(name)
        return cls(functions, tuple(lost))

    def columns(self, X: np.ndarray) -> dict[str, np.ndarray]:
        """Values (n,) at points (n, d), by the names of their columns."""
        if self.lost:
            warn_user(
                f"The derived quantities {', '.join(self.lost)} are left out: their functions have no name that can be "
                "imported, and did not come along with the sampler. Evaluate them on the draws.",
                UserWarning,
            )
        found: dict[str, np.ndarray] = {}
        for name, function in self.functions.items():
            value = _checked(function(X.copy()), name, len(X))
            found |= {name: value} if value.ndim == 1 else {f"{name}[{j}]": part for j, part in enumerate(value.T)}
        return found


def _checked(value, name: str, n: int) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "fiub" or array.ndim not in (1, 2) or len(array) != n or not array.size >= n:
        raise ValueError(
            f"derived[{name!r}] has to map {n} draws to numbers of shape ({n},), one a draw, or ({n}, k); got shape "
            f"{array.shape} and dtype {array.dtype}."
        )
    return array.astype(np.float64)


def columns_beside(X: np.ndarray, derived: Derived | None, energy_fn: Any) -> dict[str, np.ndarray]:
    """Columns (n,) that stand beside draws (n, d): the parameters where draws are others, and derived quantities.

    These are functions of the parameters. An energy says how to get them by an attribute ``to_parameters``, a function
    or None, and by ``parameter_names``.
    """
    to_parameters, found = getattr(energy_fn, "to_parameters", None), {}
    if to_parameters is not None:
        X = to_parameters(X)
        found = dict(zip(energy_fn.parameter_names, X.T, strict=True))
    return found if derived is None else found | derived.columns(X)


def details_of(
    X: np.ndarray, log_density: np.ndarray, derived: Derived | None, energy_fn: Any, blobs: bool = True
) -> dict:  # fmt: skip
    """Fields of a `WeightedSample` beside draws (n, d) and weights, given the log density (n,) of the draws.

    Blobs, which the energy's attribute ``blob_names`` tells of, are what its method ``blobs`` returns where the density
    is positive, and NaN elsewhere; they may take further evaluations. The log likelihood is known where the energy has
    a prior, that is an attribute ``to_parameters`` and a method ``log_prior``.
    """
    details: dict = {"log_density": log_density, "derived": columns_beside(X, derived, energy_fn)}
    if blobs and getattr(energy_fn, "blob_names", None):
        positive = np.isfinite(log_density)
        for name, column in energy_fn.blobs(X[positive]).items():
            details["derived"][name] = np.full(len(X), np.nan)
            details["derived"][name][positive] = column
    if hasattr(energy_fn, "to_parameters"):
        log_prior = energy_fn.log_prior(X)
        positive = np.isfinite(log_density)
        with np.errstate(invalid="ignore"):
            details["log_likelihood"] = np.where(positive, log_density - log_prior, -np.inf)
        if energy_fn.to_parameters is not None:
            details["parameter_names"] = energy_fn.parameter_names
    return details
