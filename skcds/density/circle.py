"""Points on a circle: wrapped to one turn, and the place where they are sparsest."""

__all__ = ["sparsest_place", "wrapped"]

import math

import torch
from torch import Tensor

PLACES = 360  # that are looked at
MOST_POINTS = 2000  # that are looked at
NARROW, WIDE = 100.0, 1.0  # concentrations of the kernels that points are smoothed by, about .1 and 1 radian wide
WIDE_WEIGHT = 1e-3  # of the wide kernel, which decides between places that are far from all points


def wrapped(x: Tensor, low: Tensor, width: Tensor) -> Tensor:
    """Numbers x (n, d) shifted by whole widths (d,) to between low and low + width."""
    return low + torch.remainder(x - low, width)


def sparsest_place(x: Tensor, period: float) -> float:
    """The place on a circle where points (n,) are sparsest: the least of a kernel density.

    It moves with the points.

    Parameters
    ----------
    x : Tensor
        Points.
    period : float
        Length of the circle.
    """
    x = x[x.isfinite()].double()
    if not len(x):
        return 0.0
    rows = torch.arange(min(len(x), MOST_POINTS), device=x.device)
    some = x[rows * len(x) // len(rows)]
    offsets = period * torch.arange(PLACES, dtype=torch.float64, device=x.device) / PLACES
    places = x[0] + offsets
    cosine = torch.cos(2 * math.pi / period * (places[:, None] - some)) - 1
    density = (NARROW * cosine).exp().mean(1) + WIDE_WEIGHT * (WIDE * cosine).exp().mean(1)
    return float(places[density.argmin()])
