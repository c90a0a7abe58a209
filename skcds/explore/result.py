"""What a pilot run leaves behind."""

__all__ = ["PilotResult"]

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .._support.devices import to_numpy
from ..density.block_triangular import BlockTriangularMap
from ..density.noncentred import NonCentred
from ..density.rotation import Rotation
from ..density.sparse_triangular import SparseTriangularMap
from ..density.standardize import Standardization
from ..density.triangular import TriangularMap
from ..io.packing import pack, unpack
from ..io.registry import register_record

PARTS = {  # of a standardisation, that are modules
    "noncentred": NonCentred,
    "triangular": TriangularMap,
    "skewed": BlockTriangularMap,
    "rotation": Rotation,
    "sparse": SparseTriangularMap,
}


@register_record(
    "pilot", log_evidence="number", starting_scale="number", loc="vector", covariance="covariance",
    tail_center="vector", tail_width="vector", n_temperatures="count", noncentred="model or None",
    triangular="model or None", skewed="model or None", rotation="model or None", chance_of_another="number",
    sparse="model or None",
)  # fmt: skip
@dataclass
class PilotResult:
    """What the pilot found.

    Attributes
    ----------
    log_evidence : float
        Estimate of log Z, by sequential Monte Carlo, or by importance sampling where few evaluations were allowed.
    starting_scale : float
        Standard deviation of the Gaussian that the tempering started from; of the particles, without tempering.
    loc : ndarray of shape (n_features,)
        Mean of the particles, in coordinates with tame tails, non-centred where there are such (see `Standardization`).
        Behind `skewed` or `sparse` it is zero: they have means and covariances of their own.
    covariance : ndarray of shape (n_features, n_features) or (n_features,)
        Covariance of the particles in these coordinates, or its diagonal in high dimension.
    tail_center, tail_width : ndarray of shape (n_features,)
        Center and width of the hyperbolic sine by which heavy tails were tamed; a width of infinity where tails are
        light.
    n_temperatures : int
        Number of temperatures, or of the proposals of the importance sampling.
    noncentred : NonCentred or None
        Coordinates in which the others have one scale and one place whatever a leading one is, where they depend on it.
    triangular : TriangularMap or None
        Coordinates in which the density is close to a Gaussian, where it is skew along any directions.
    skewed : BlockTriangularMap or None
        The same in more than 20 dimensions, where it is skew along the coordinates.
    rotation : Rotation or None
        Principal axes, where the density is simpler along these than along the coordinates one after the other.
    chance_of_another : float
        That a climb ends at a mode which is not known yet, after the survey of an exploration by few evaluations.
    sparse : SparseTriangularMap or None
        Coordinates by a sparse precision, in more than 256 dimensions, where the density is skew or not.
    """

    log_evidence: float
    starting_scale: float
    loc: np.ndarray
    covariance: np.ndarray
    tail_center: np.ndarray
    tail_width: np.ndarray
    n_temperatures: int
    noncentred: NonCentred | None = None
    triangular: TriangularMap | None = None
    skewed: BlockTriangularMap | None = None
    rotation: Rotation | None = None
    chance_of_another: float = 0.0
    sparse: SparseTriangularMap | None = None

    @classmethod
    def of(cls, found: Standardization, log_evidence: float, scale: float, n_temperatures: int) -> "PilotResult":
        """With the standardisation that was found."""
        loc, covariance, center, width = (to_numpy(t) for t in (found.loc, found.covariance, found.center, found.width))
        return cls(
            log_evidence, scale, loc, covariance, center, width, n_temperatures,
            **{name: getattr(found, name) for name in PARTS},
        )  # fmt: skip

    def state_dict(self) -> dict:
        """Tensors and plain values, which `restored` makes it of again."""
        state = {name: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for name, v in vars(self).items()}
        parts = {name: getattr(self, name) for name in PARTS}
        return state | {n: p and {"config": p.config, "weights": p.state_dict()} for n, p in parts.items()}

    @classmethod
    def restored(cls, state: dict) -> "PilotResult":
        """From its `state_dict`."""
        values: dict[str, Any] = {n: to_numpy(v) if isinstance(v, torch.Tensor) else v for n, v in state.items()}
        for name, part in PARTS.items():
            if inner := state[name]:
                values[name] = part(**inner["config"])
                values[name].load_state_dict(inner["weights"])
        return cls(**values)

    def __getstate__(self) -> dict:
        """Of NumPy arrays and plain values."""
        parts = {name: getattr(self, name) for name in PARTS}
        return vars(self) | {name: part and pack(part) for name, part in parts.items()}

    def __setstate__(self, state: dict) -> None:
        inner = {name: state.get(name) for name in PARTS}
        vars(self).update(state, **{name: part and unpack(part) for name, part in inner.items()})

    def standardization(self) -> Standardization:
        """The standardisation by what was found."""
        tails = torch.from_numpy(self.tail_center), torch.from_numpy(self.tail_width)
        moments = torch.from_numpy(self.loc), torch.from_numpy(self.covariance)
        found = Standardization.from_moments(*moments, tails, self.noncentred, self.skewed)
        found.sparse = self.sparse
        return found.with_triangular(self.triangular).with_rotation(self.rotation)
