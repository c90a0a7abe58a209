"""Bounded and periodic coordinates: a bijection from unconstrained ones, with its Jacobian."""

__all__ = ["Bounds", "is_bound", "same_bounds"]

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .._support.devices import to_numpy
from .._support.settings import CPU
from .circle import sparsest_place, wrapped

FARTHEST = 37.0  # of an unconstrained coordinate, beyond which the density counts as zero: as far as doubles reach
ON_SEAM = 1e-12  # of a period, that a point on the seam is moved by: the density there is that beside it
LOG_ROOT_2PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True, eq=False)
class Bounds:
    """The box ``low < x < high`` as the image of unconstrained coordinates y.

    With the normal distribution function Phi, ``x = low + (high - low) Phi(y)`` where both bounds are finite, ``x =
    low + scale Phi(y) / Phi(-y)`` or ``x = high - scale Phi(y) / Phi(-y)`` where one is, and ``x = y`` where none is. A
    density of x becomes one of y by the Jacobian, with the same log evidence. One that is a power of the distance from
    a bound has the tail of a Gaussian there, where a logistic or an exponential function would have made an exponential
    tail, which Gaussian steps and splines reach too seldom.

    A periodic coordinate is cut open at its seam s: ``x = s + (high - low) Phi(y)``, wrapped to between the bounds.

    Parameters
    ----------
    low, high : Tensor
        Bounds (d,), float64; infinite where there is none.
    scale : Tensor, default=None
        Distances (d,) from a single bound that y = 0 stands for; by default 1.
    seam : Tensor, default=None
        Where periodic coordinates are cut open, (d,); NaN for the others, as all are by default.
    """

    low: Tensor
    high: Tensor
    scale: Tensor = None  # type: ignore[assignment]  # after construction there always is one
    seam: Tensor = None  # type: ignore[assignment]  # nor one of no seam
    bounded: Tensor = field(init=False)
    both: Tensor = field(init=False)
    only_low: Tensor = field(init=False)
    only_high: Tensor = field(init=False)
    width: Tensor = field(init=False)
    periodic: Tensor = field(init=False)
    start: Tensor = field(init=False)  # of the interval that unconstrained coordinates are mapped to
    end: Tensor = field(init=False)

    def __post_init__(self):
        low, high = self.low.double(), self.high.double()
        has_low, has_high = low.isfinite(), high.isfinite()
        seam = torch.full_like(low, torch.nan) if self.seam is None else self.seam.double()
        periodic, width = ~seam.isnan(), torch.where(has_low & has_high, high - low, 1.0)
        seam = wrapped(seam, low, width)
        start, end = torch.where(periodic, seam, low), torch.where(periodic, seam + width, high)
        found = {
            "low": low, "high": high, "scale": torch.ones_like(low) if self.scale is None else self.scale.double(),
            "bounded": has_low | has_high, "both": has_low & has_high, "only_low": has_low & ~has_high,
            "only_high": ~has_low & has_high, "width": width, "seam": seam, "periodic": periodic, "start": start,
            "end": end,
        }  # fmt: skip
        self.__dict__.update(found)

    @classmethod
    def from_parameter(cls, bounds, n_features: int, periodic=None, names=()) -> "Bounds | None":
        """From what users pass: a pair (low, high), or one a feature; None or infinity stand for no bound.

        Parameters
        ----------
        bounds : sequence or None
            Pairs.
        n_features : int
            Dimension d.
        periodic : sequence of int or str, optional
            Coordinates that are periodic, with a period of the width between their bounds; the seam is at the lower.
        names : sequence of str, optional
            Names of the coordinates.

        Returns
        -------
        Bounds or None
            None where no coordinate is bounded.

        Raises
        ------
        ValueError
            When there are not as many pairs as features, a lower bound is not below the upper one, or a periodic
            coordinate is none of the features or has not two bounds.
        """
        which = periodic_of(periodic, n_features, names)
        if bounds is None:
            if which:
                raise ValueError(f"periodic={periodic!r} needs bounds=: the period is the width between two of them.")
            return None
        pairs = list(bounds)
        if len(pairs) == 2 and all(is_bound(bound) for bound in pairs):
            pairs = [pairs] * n_features
        if len(pairs) != n_features:
            raise ValueError(
                f"bounds has to be one pair (low, high), or {n_features} of them, one a feature; got {len(pairs)}."
            )
        low, high = zip(*(_pair(pair, j) for j, pair in enumerate(pairs)), strict=True)
        for j in which:
            if not (math.isfinite(low[j]) and math.isfinite(high[j])):
                raise ValueError(
                    f"The periodic coordinate {j} needs two finite bounds, whose difference is its period; got "
                    f"bounds[{j}] = {pairs[j]!r}."
                )
        seam = [low[j] if j in which else math.nan for j in range(n_features)]
        of_low, of_high, of_seam = (torch.tensor(side, dtype=torch.float64, device=CPU) for side in (low, high, seam))
        found = cls(of_low, of_high, seam=of_seam)
        return found if found.bounded.any() else None

    @classmethod
    def from_fitted(cls, sampler) -> "Bounds | None":
        """Those that a sampler was fitted with."""
        if sampler.bounds_ is None:
            return None
        low, high = torch.from_numpy(np.array(sampler.bounds_, dtype=np.float64)).T
        scale, seam = sampler.bounds_scale_, getattr(sampler, "seam_", None)
        seam = np.full(len(low), np.nan) if seam is None else np.array(seam, dtype=np.float64)
        return cls(low, high, torch.from_numpy(np.array(scale, dtype=np.float64)), torch.from_numpy(seam))

    def to(self, device: torch.device) -> "Bounds":
        """The same box on a device."""
        return Bounds(*(side.to(device) for side in (self.low, self.high, self.scale, self.seam)))

    @staticmethod
    def as_fitted(bounds: "Bounds | None") -> dict:
        """Fitted attributes that `from_fitted` reads."""
        if bounds is None:
            return {"bounds_": None, "bounds_scale_": None, "seam_": None}
        seam = to_numpy(bounds.seam) if bounds.periodic.any() else None
        return {"bounds_": bounds.to_array(), "bounds_scale_": to_numpy(bounds.scale), "seam_": seam}

    def to_array(self) -> np.ndarray:
        """Lower and upper bounds, (d, 2)."""
        return to_numpy(torch.stack([self.low, self.high], 1))

    @property
    def adapts(self) -> bool:
        """Whether any coordinate has a single bound, whose scale, or is periodic, whose seam, `centred` finds."""
        return bool((self.only_low | self.only_high | self.periodic).any())

    @property
    def choices(self) -> dict[str, Tensor]:
        """What `centred` finds, scales and seams (d,); `chosen` takes it."""
        return {"scale": self.scale, "seam": self.seam}

    def chosen(self, choices: dict[str, Tensor]) -> "Bounds":
        """The same box with other scales and seams."""
        return Bounds(self.low, self.high, **{name: value.to(self.low.device) for name, value in choices.items()})

    def centred(self, y: Tensor) -> "Bounds":
        """The same box with the scales at which unconstrained points (n, d) have their median at zero.

        Periodic coordinates are cut open where the points are sparsest.
        """
        x = self(y)
        distance = torch.where(self.only_low, x - self.low, self.high - x).quantile(0.5, dim=0)
        usable = (self.only_low | self.only_high) & distance.isfinite() & (distance > 0)
        return Bounds(self.low, self.high, torch.where(usable, distance, self.scale), self.seam).cut_open(x)

    def cut_open(self, x: Tensor) -> "Bounds":
        """The same box with the seams where points (n, d) of it are sparsest."""
        seam = self.seam.clone()
        for j in to_numpy(self.periodic).nonzero()[0]:
            seam[j] = sparsest_place(x[:, j], float(self.width[j]))
        return Bounds(self.low, self.high, self.scale, seam)

    def __call__(self, y: Tensor) -> Tensor:
        """(n, d) unconstrained points to the box, float64."""
        return self.call_and_pull_back(y)[0]

    def inverse(self, x: Tensor) -> Tensor:
        """(n, d) points of the box to unconstrained ones, float64; a point on a bound as its neighbour inside.

        Periodic coordinates may be anywhere.
        """
        x = torch.where(self.periodic, wrapped(x.double(), self.start, self.width), x.double())
        x = between(x, self.start, self.end)
        edge = ON_SEAM * self.width
        x = torch.where(self.periodic, x.clamp(self.start + edge, self.end - edge), x)
        below, above = x - self.start, self.end - x
        share = torch.where(self.both, below / (below + above), below / (self.scale + below))
        rest = torch.where(self.both, above / (below + above), self.scale / (self.scale + below))
        share, rest = (
            torch.where(self.only_high, above / (self.scale + above), share),
            torch.where(self.only_high, self.scale / (self.scale + above), rest),
        )
        y = torch.where(share < rest, torch.special.ndtri(share), -torch.special.ndtri(rest))
        return torch.where(self.bounded, y, x)

    def call_and_pull_back(self, y: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """Points x (n, d) of the box, the log determinant (n,) of the Jacobian, and a function of gradients.

        The function takes the gradient (n, d) of a function of x to that of the function plus the log determinant with
        respect to y. The log determinant is ``-inf`` beyond `FARTHEST`.
        """
        y = y.double()
        far = (self.bounded & ~(y.abs() <= FARTHEST)).any(1)
        y = torch.where(self.bounded, y.clamp(-FARTHEST, FARTHEST), y)
        log_share, log_rest = torch.special.log_ndtr(y), torch.special.log_ndtr(-y)
        share, rest, odds = log_share.exp(), log_rest.exp(), (log_share - log_rest).exp()
        x = torch.where(y < 0, self.start + self.width * share, self.end - self.width * rest)
        x = torch.where(self.both, x, y)
        x = torch.where(self.only_low, self.low + self.scale * odds, x)
        x = torch.where(self.only_high, self.high - self.scale * odds, x)
        log_density = -0.5 * y**2 - LOG_ROOT_2PI
        log_slope = log_density + torch.where(self.both, self.width.log(), self.scale.log() - 2 * log_rest)
        log_slope = torch.where(self.bounded, log_slope, 0.0)

        def pull_back(gradient):
            slope = torch.where(self.only_high, -log_slope.exp(), log_slope.exp())
            hazard = (log_density - log_rest).exp()
            bend = torch.where(self.both, -y, torch.where(self.bounded, 2 * hazard - y, 0.0))
            return gradient * slope + bend

        return self.inside(self.wrapped(x)), log_slope.sum(1).masked_fill(far, -torch.inf), pull_back

    def wrapped(self, x: Tensor) -> Tensor:
        """(n, d) points with their periodic coordinates between the bounds."""
        return torch.where(self.periodic, wrapped(x, self.low, self.width), x)

    def contains(self, x: Tensor) -> Tensor:
        """Whether points (n, d) are inside the box, (n,); periodic coordinates may be anywhere."""
        return (((self.low < x) & (x < self.high)) | self.periodic).all(1)

    def inside(self, x: Tensor) -> Tensor:
        """(n, d) points with those on a bound or beyond it, by rounding, moved to the nearest number inside."""
        return between(x, self.low, self.high)


def between(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Numbers x (n, d) with those that are not between low and high (d,) moved to the nearest number that is."""
    low, high = low.to(x.dtype), high.to(x.dtype)
    return x.clamp(torch.nextafter(low, high), torch.nextafter(high, low))


def same_bounds(bounds: Bounds | None, others: Bounds | None) -> bool:
    """Whether two boxes are one, with the same periodic coordinates; scales and seams aside."""
    if bounds is None or others is None:
        return bounds is others
    same_box = np.array_equal(bounds.to_array(), others.to_array())
    return same_box and torch.equal(bounds.periodic.cpu(), others.periodic.cpu())


def periodic_of(periodic, n_features: int, names=()) -> list[int]:
    """Numbers of the periodic coordinates, from numbers or names as users pass them.

    Raises
    ------
    ValueError
        For what is no coordinate.
    """
    names, found = [str(name) for name in names], []
    for which in [] if periodic is None else [periodic] if isinstance(periodic, str) else periodic:
        if isinstance(which, str) and which in names:
            found.append(names.index(which))
        elif isinstance(which, numbers.Integral) and not isinstance(which, bool) and int(which) in range(n_features):
            found.append(int(which))
        else:
            raise ValueError(
                f"periodic has to list coordinates, by numbers from 0 to {n_features - 1} or by the names of "
                f"{names}; got {which!r}."
            )
    return sorted(set(found))


def is_bound(value) -> bool:
    """Whether a value is a single bound, and not a pair."""
    return value is None or (isinstance(value, numbers.Real) and not isinstance(value, bool))


def _pair(pair, j: int) -> tuple[float, float]:
    try:
        low, high = (None, None) if pair is None else pair
    except (TypeError, ValueError):
        raise ValueError(f"bounds[{j}] has to be a pair (low, high); got {pair!r}.") from None
    if not (is_bound(low) and is_bound(high)):
        raise ValueError(f"bounds[{j}] has to be a pair of numbers or None; got {pair!r}.")
    low, high = -math.inf if low is None else float(low), math.inf if high is None else float(high)
    if not low < high:
        raise ValueError(f"bounds[{j}] has to have its lower bound below the upper one; got {pair!r}.")
    if not high - low > 1e-12 * max(abs(bound) if math.isfinite(bound) else 0.0 for bound in (low, high)):
        raise ValueError(f"bounds[{j}] is narrower than numbers can tell; got {pair!r}: shift the coordinate to zero.")
    return low, high
