"""Which coordinates a standardisation keeps apart: those that particles show to be independent."""

__all__ = ["separated"]

import numpy as np
import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from .._support.devices import to_numpy

ROWS = 4000  # particles that entropies are estimated from
THRESHOLDS = (0.05, 0.1, 0.2, 0.4)  # correlations below which two coordinates are not linked
LEAST_GAIN = 0.1  # nats by which keeping coordinates apart has to be better than whitening all together


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
