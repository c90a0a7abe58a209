"""Where the user says that a fit may begin: points, or a location and a scale."""

__all__ = ["Start"]

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .._support.devices import to_numpy
from ..density.bounds import Bounds
from ..density.standardize import Standardization
from .smc import moments

WIDEST_ARC = 0.45  # of a period, that the scale of a periodic coordinate can be
MIN_POINTS = 10  # from which location and scale can be taken, and twice as many as there are features


@dataclass
class Start:
    """Points or a Gaussian to begin from, in unconstrained coordinates.

    Attributes
    ----------
    points : Tensor
        Points (m, d), float64; the location alone where the user gave location and scale.
    gaussian : Standardization or None
        Location and scale; None where there are too few points to tell.
    """

    points: Tensor
    gaussian: Standardization | None

    @classmethod
    def from_parameter(cls, start, n_features: int, bounds: Bounds | None = None) -> "Start | None":
        """From what users pass: None, points (m, n_features), or a tuple (location, scale) of numbers or arrays.

        Raises
        ------
        ValueError
            When it has another shape, values that are not finite or out of the bounds, or a scale that is not positive.
        """
        if start is None:
            return None
        if isinstance(start, tuple):
            return cls._from_gaussian(start, n_features, bounds)
        points = _array(start, "start")
        if points.ndim != 2 or points.shape[1] != n_features or not len(points):
            raise ValueError(
                f"start has to be points of shape (m, {n_features}), or a tuple (location, scale); got an array of "
                f"shape {points.shape}."
            )
        points = _wrapped(points, bounds)
        _check_inside(points, bounds, "start")
        y = _on(bounds, points) if bounds is None else bounds.inverse(_on(bounds, points))
        enough = len(y) >= max(MIN_POINTS, 2 * n_features) and bool((y.var(0) > 0).all())
        return cls(y, Standardization.from_moments(*moments(y)) if enough else None)

    @classmethod
    def _from_gaussian(cls, start: tuple, n_features: int, bounds: Bounds | None) -> "Start":
        if len(start) != 2:
            raise ValueError(f"start as a tuple has to be (location, scale); got {len(start)} entries.")
        loc, scale = (_array(value, name) for value, name in zip(start, ("location", "scale"), strict=True))
        for value, name in ((loc, "location"), (scale, "scale")):
            if value.shape not in ((), (n_features,)):
                raise ValueError(
                    f"The {name} of start has to be a number or an array of shape ({n_features},); got one of shape "
                    f"{value.shape}."
                )
        if not (scale > 0).all():
            raise ValueError(f"The scale of start has to be positive; got {scale!r}.")
        loc, scale = np.broadcast_to(loc, n_features).copy(), np.broadcast_to(scale, n_features).copy()
        loc = _wrapped(loc[None], bounds)[0]
        _check_inside(loc[None], bounds, "The location of start")
        if bounds is not None:
            scale = np.where(to_numpy(bounds.periodic), np.minimum(scale, WIDEST_ARC * to_numpy(bounds.width)), scale)
        three = _on(bounds, np.stack([loc - scale, loc, loc + scale]))
        if bounds is not None:
            three = bounds.inverse(three)
        low, middle, high = three
        variance = (0.5 * (high - low)).clamp(min=1e-300) ** 2
        return cls(middle[None], Standardization.from_moments(middle, variance))

    def to(self, device: torch.device) -> "Start":
        """The same on a device."""
        return Start(self.points.to(device), self.gaussian and self.gaussian.to(device))


def _array(value, name: str) -> np.ndarray:
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} has to be an array of numbers; got {type(value).__name__}.") from None
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has values that are not finite.")
    return array


def _wrapped(points: np.ndarray, bounds: Bounds | None) -> np.ndarray:
    """Points (n, d) with their periodic coordinates between the bounds."""
    if bounds is None or not bounds.periodic.any():
        return points
    wrapped = bounds.wrapped(_on(bounds, points))
    return to_numpy(torch.where(bounds.periodic, bounds.inside(wrapped), wrapped))


def _check_inside(points: np.ndarray, bounds: Bounds | None, name: str) -> None:
    if bounds is None:
        return
    low, high = bounds.to_array().T
    outside = (points < low) | (points > high)
    if outside.any():
        row, j = np.argwhere(outside)[0]
        raise ValueError(f"{name} has to be within the bounds: x[{j}] is {points[row, j]:g} in row {row}.")


def _on(bounds: Bounds | None, array: np.ndarray) -> Tensor:
    """An array as a tensor where the bounds are."""
    tensor = torch.from_numpy(array)
    return tensor if bounds is None else tensor.to(bounds.low.device)
