"""Which coordinates a standardisation has: those that particles show to be independent, or their principal axes."""

__all__ = ["along_principal_axes", "separated"]

import numpy as np
import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from .._support.devices import to_numpy
from ..density.rotation import Rotation
from ..density.standardize import Standardization

ROWS = 4000  # particles that entropies are estimated from
THRESHOLDS = (0.05, 0.1, 0.2, 0.4)  # correlations below which two coordinates are not linked
LEAST_GAIN = 0.1  # nats by which other coordinates have to be better than a triangular root's, all together


def separated(x: Tensor, covariance: Tensor) -> Tensor:
    """The covariance (d, d) of particles (n, d) without correlations that are noise.

    Whitening mixes coordinates. If those are independent, and some have several modes, a correlation of a few
    hundredths by chance blurs the modes of one coordinate by the others. So coordinates are linked by large
    correlations, and those between groups that are not linked are left out, if that makes the density simpler: the sum
    of the marginal entropies in standardised coordinates, plus the log determinant, is what a map of single coordinates
    leaves of minus the log likelihood. Where all is Gaussian, whitening everything together is best, and the covariance
    is returned as it is.
    """
    rows = x[:: -(-len(x) // ROWS)]
    scale = covariance.diagonal().sqrt()
    correlation = (covariance / (scale[:, None] * scale)).abs()
    limit, best = _cost(rows, covariance) - LEAST_GAIN, covariance
    tried = {1}
    for threshold in THRESHOLDS:
        n_groups, labels = connected_components(to_numpy(correlation > threshold), directed=False)
        if n_groups in tried:  # thresholds are nested, so that as many groups are the same
            continue
        tried.add(n_groups)
        group = torch.from_numpy(np.asarray(labels)).to(x.device)
        candidate = torch.where(group[:, None] == group, covariance, 0.0)
        cost = _cost(rows, candidate)
        if cost < limit:
            limit, best = cost, candidate
    return best


def along_principal_axes(found: Standardization, x: Tensor) -> Standardization:
    """A standardisation whose coordinates are principal axes of particles (n, d), where the density is simpler so.

    Modes that lie apart along one direction of many, as the two magnetisations of a lattice do, are spread over all
    coordinates that a triangular root leads to. Of the principal axes of the correlations one has them. Of all
    rotations of whitened coordinates that with the least sum of marginal entropies leaves the least mutual information
    (independent component analysis; Comon 1994). It is the identity, or this one if it has clearly less: of 2000 draws
    of a Gaussian the gain is off by .02.

    Parameters
    ----------
    found : Standardization
        By the particles' moments. One with other parts is returned as it is.
    x : Tensor
        Particles in the user's unconstrained coordinates.
    """
    if not found.full or found.parts:
        return found
    scale = found.covariance.diagonal().sqrt()
    values, vectors = torch.linalg.eigh(found.covariance / torch.outer(scale, scale))
    if not values[0] > 0:
        return found
    axes = torch.linalg.solve_triangular(found.scale, scale[:, None] * vectors * values.sqrt(), upper=False).flip(1)
    z = found.inverse(x[:: -(-len(x) // ROWS)])
    gain = float((_entropies(z.T) - _entropies((z @ axes).T)).sum())
    return found.with_rotation(Rotation.of(axes)) if gain > LEAST_GAIN else found


def _cost(x: Tensor, covariance: Tensor) -> float:
    """Sum of the marginal entropies of particles (n, d) that are whitened by a covariance, and its log determinant."""
    root, info = torch.linalg.cholesky_ex(covariance)
    if info:
        return torch.inf
    z = torch.linalg.solve_triangular(root, (x - x.mean(0)).T, upper=False)
    return float(_entropies(z).sum() + root.diagonal().log().sum())


def _entropies(z: Tensor) -> Tensor:
    """Entropies (d,) of samples (d, n), by the spacings of order statistics (Vasicek 1976)."""
    n = z.shape[1]
    m = max(1, round(n**0.5))
    ordered = z.sort(1).values
    return (ordered[:, m:] - ordered[:, :-m]).clamp(min=1e-12).mul(n / m).log().mean(1)
