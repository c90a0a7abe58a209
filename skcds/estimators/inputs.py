"""What a fit is about, from the parameters of a sampler and the attributes of an energy function."""

__all__ = ["Inputs"]

import numbers
from typing import Any

import numpy as np

from ..density.bounds import Bounds, is_bound
from ..explore.specifications import Pilot, as_start
from ..explore.start import Start
from ..io.export import checked_names
from .derived import Derived


class Inputs:
    """Of a sampler: dimension, names, bounds, and where to begin."""

    n_features: Any
    bounds: Any
    periodic: Any
    feature_names: Any
    start: Any

    def _find_n_features(self, energy_fn) -> int:
        n_features = self.n_features if self.n_features is not None else getattr(energy_fn, "n_features", None)
        if n_features is None:
            n_features = self._implied_n_features(energy_fn)
        if n_features is None:
            raise ValueError(
                "The dimension of the density is not known: pass n_features= to the constructor (or bounds= with one "
                "pair a feature, or feature_names=), or give the energy function an attribute n_features."
            )
        if not isinstance(n_features, numbers.Integral) or n_features < 1:
            raise ValueError(f"energy_fn.n_features has to be an integer of at least 1; got {n_features!r}.")
        return int(n_features)

    def _implied_n_features(self, energy_fn) -> int | None:
        """Of how many features there are names, or bounds one by one."""
        for owner in (self, energy_fn):
            names, bounds = getattr(owner, "feature_names", None), getattr(owner, "bounds", None)
            if names is not None:
                return len(names)
            if bounds is not None and not all(is_bound(bound) for bound in bounds):
                return len(bounds)
        return None

    def _find_bounds(self, n_features: int, names: np.ndarray, energy_fn) -> Bounds | None:
        known = getattr(energy_fn, "bounds", None) if self.bounds is None else self.bounds
        return Bounds.from_parameter(known, n_features, self.periodic, names)

    def _find_derived(self, energy_fn, derived) -> Derived | None:
        if derived is None:
            return None
        names = self._find_feature_names(energy_fn, self._find_n_features(energy_fn))
        others = [getattr(energy_fn, attribute, ()) for attribute in ("parameter_names", "blob_names")]
        return Derived.from_parameter(derived, [*names, *others[0], *others[1]])

    def _find_feature_names(self, energy_fn, n_features: int) -> np.ndarray:
        names, owner = self.feature_names, "feature_names"
        if names is None:
            names, owner = getattr(energy_fn, "feature_names", None), "energy_fn.feature_names"
        return checked_names(names, n_features, owner)

    def _find_start(self, n_features: int, bounds: Bounds | None, energy_fn) -> Start | None:
        start = as_start(self.start)
        if not isinstance(start, Pilot):
            return None
        known = getattr(energy_fn, "start", None) if start.begin is None else start.begin
        return Start.from_parameter(known, n_features, bounds)

    def _find_bounds_and_start(
        self, n_features: int, names: np.ndarray, energy_fn
    ) -> tuple[Bounds | None, Start | None]:
        """Bounds, and where to begin, far from which their circles are cut open."""
        bounds = self._find_bounds(n_features, names, energy_fn)
        begin = self._find_start(n_features, bounds, energy_fn)
        if begin is not None and bounds is not None and bounds.periodic.any():
            bounds = bounds.cut_open(bounds(begin.points))
            begin = self._find_start(n_features, bounds, energy_fn)
        return bounds, begin
