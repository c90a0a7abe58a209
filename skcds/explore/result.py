"""What a pilot run leaves behind."""

__all__ = ["PilotResult"]

from dataclasses import dataclass

import numpy as np
import torch

from ..density.standardize import Standardization
from ..io.registry import register_record


@register_record(
    "pilot", log_evidence="number", starting_scale="number", loc="vector", covariance="covariance",
    tail_center="vector", tail_width="vector", n_temperatures="count",
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
        Mean of the particles, in coordinates with tame tails (see `Standardization`).
    covariance : ndarray of shape (n_features, n_features) or (n_features,)
        Covariance of the particles in these coordinates, or its diagonal in high dimension.
    tail_center, tail_width : ndarray of shape (n_features,)
        Center and width of the hyperbolic sine by which heavy tails were tamed; a width of infinity where tails are
        light.
    n_temperatures : int
        Number of temperatures, or of the proposals of the importance sampling.
    """

    log_evidence: float
    starting_scale: float
    loc: np.ndarray
    covariance: np.ndarray
    tail_center: np.ndarray
    tail_width: np.ndarray
    n_temperatures: int

    def standardization(self) -> Standardization:
        """The standardisation by what was found."""
        tails = torch.from_numpy(self.tail_center), torch.from_numpy(self.tail_width)
        return Standardization.from_moments(torch.from_numpy(self.loc), torch.from_numpy(self.covariance), tails)
