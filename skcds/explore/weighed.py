"""The points of an exploration by few evaluations, as what a fit keeps of them: weighted draws of the density."""

__all__ = ["WeighedPoints"]

from dataclasses import dataclass

import numpy as np
import torch

from .._support.devices import to_numpy
from ..density.bounds import Bounds
from ..io.registry import register_record
from .rounds import final_weights
from .store import Store


@register_record("weighed points", x="particles", log_weights="a point", log_density="a point")
@dataclass(frozen=True)
class WeighedPoints:
    """Points with the weights that make them a sample of the density.

    Attributes
    ----------
    x : ndarray of shape (n, d)
        Points in the user's coordinates.
    log_weights : ndarray of shape (n,)
        Log density at each, over that of the proposals: of all that any of them came from, the balance heuristic
        (Veach & Guibas 1995; Cornuet et al. 2012 for adapted proposals), or of those of the point's own round; see
        `final_weights`.
    log_density : ndarray of shape (n,)
        Log density at each, ``-inf`` outside of its support.

    Raises
    ------
    ValueError
        When there is not one weight and one log density for each point, or one of them is NaN or infinite.
    """

    x: np.ndarray
    log_weights: np.ndarray
    log_density: np.ndarray

    def __post_init__(self):
        for name in ("log_weights", "log_density"):
            values = getattr(self, name)
            if values.shape != self.x.shape[:1] or not (values < np.inf).all():
                raise ValueError(f"{name} has to be one number below infinity for each of {len(self.x)} points.")

    @classmethod
    def of(cls, store: Store, bounds: Bounds | None) -> "WeighedPoints | None":
        """Those of a store; None where it is empty."""
        if not len(store):
            return None
        x, log_density = store.x, store.log_prob
        if bounds is not None:
            x, log_det, _ = bounds.call_and_pull_back(x)
            log_density = log_density - log_det
        log_density = log_density.nan_to_num(-torch.inf, -torch.inf, -torch.inf)
        return cls(to_numpy(x), to_numpy(final_weights(store)), to_numpy(log_density))

    def state_dict(self) -> dict:
        """Tensors, which `restored` makes it of again."""
        return {name: torch.from_numpy(array) for name, array in vars(self).items()}

    @classmethod
    def restored(cls, state: dict) -> "WeighedPoints":
        """From its `state_dict`."""
        return cls(**{name: to_numpy(tensor) for name, tensor in state.items()})
