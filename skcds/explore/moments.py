"""The best mean and precision behind skewness along the coordinates: by moments of what scores leave."""

__all__ = ["refined"]

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array
from torch import Tensor

from .._support.devices import to_numpy
from .._support.errors import Spent
from ..density.block_triangular import BlockTriangularMap
from ..density.elimination import Elimination
from ..density.energy import Energy
from ..density.sparse_triangular import SparseTriangularMap
from ..density.standardize import Standardization, StandardizedTarget
from .laplace import is_better, mirrored
from .precisions import DensePrecision
from .stages import HighDimension

LARGEST_MOMENT = 3.0  # of what is left of a score along a coordinate: 0 in the end
PART_ENTRIES = 1000  # of a sparse matrix, whose moments are found at a time


def refined(
    energy: Energy, start: Standardization, generator, by: HighDimension, ended: Callable | None = None
) -> Standardization:  # fmt: skip
    """Coordinates with another mean and precision behind the same skewness, if the bound of log Z is better so.

    Skewness changes mean and covariance, to the second order in the third derivatives, and the Gaussian that was best
    without it is not the best one behind it. The score of a standard normal density is -z. What is left of it at draws
    z has a mean m and a covariance D with z. They vanish where the bound is largest. A step along them is a natural
    gradient: it moves the mean by R m and the precision by ``-G^T D G``, with the root R of the covariance and its
    inverse G. Where the precision is sparse, only the entries in its pattern are needed, each of which is a moment of
    two numbers. The steps get shorter, so that later ones are means over the draws of all.

    Parameters
    ----------
    energy : Energy
        The density; its gradient is needed.
    start : Standardization
        A `BlockTriangularMap` alone, or a skew `SparseTriangularMap`.
    generator : torch.Generator
        Source of randomness.
    by : HighDimension
        How many steps there are, and draws in each.
    ended : callable, optional
        Says whether the time is over, or a number of evaluations cannot be made.
    """
    found, rows = start, by.n_skew_draws * _n_parts(start, by) + 2 * by.n_skew_draws + 2 * by.n_draws
    try:
        for k in range(by.n_moment_steps):
            if ended is not None and ended(rows):  # with those that tell whether anything is gained
                break
            moved = _moved(energy, found, generator, by, 2 / (k + 4))
            if moved is None:
                break
            found = moved
    except Spent:
        pass
    return found if found is not start and is_better(energy, found, start, by.n_skew_draws, generator) else start


def _moved(
    energy: Energy, at: Standardization, generator, by: HighDimension, share: float
) -> Standardization | None:  # fmt: skip
    """One step, of a share of the whole one; None where it leads to no precision, or the density is far from normal."""
    target, one = StandardizedTarget(energy, at), at.loc.new_ones(energy.n_features)
    if at.sparse is not None:
        z = mirrored(by.n_skew_draws, energy, generator)
        left = target.log_prob_and_score(z)[1] + z
        mean = left.mean(0)
        if not _are_small(mean, (left * z).mean(0)):
            return None
        sparse = _moved_sparse(at.sparse, left, z, share * mean, share)
        return None if sparse is None else Standardization.from_sparse(sparse)
    assert at.skewed is not None
    n_parts = _n_parts(at, by)
    mean, second = torch.zeros_like(one), torch.zeros_like(at.skewed.root)
    for _ in range(n_parts):
        z = mirrored(by.n_skew_draws, energy, generator)
        left = target.log_prob_and_score(z)[1] + z
        mean, second = mean + left.mean(0) / n_parts, second + left.T @ z / (len(z) * n_parts)
    if not _are_small(mean, second.diagonal()):
        return None
    dense = _moved_dense(at.skewed, share * mean, share * second)
    return None if dense is None else Standardization.from_moments(torch.zeros_like(one), one, skewed=dense)


def _moved_dense(part: BlockTriangularMap, mean: Tensor, second: Tensor) -> BlockTriangularMap | None:
    """Moved by moments (d,) and (d, d)."""
    whitening = torch.linalg.inv(part.root)
    one = torch.eye(len(mean), dtype=mean.dtype, device=mean.device)
    precision = DensePrecision.of(whitening.T @ (one - 0.5 * (second + second.T)) @ whitening)
    if precision is None:
        return None
    return BlockTriangularMap.of_gaussian(part.loc + part.root @ mean, precision.covariance(), part.third)


def _moved_sparse(
    part: SparseTriangularMap, left: Tensor, z: Tensor, mean: Tensor, share: float
) -> SparseTriangularMap | None:  # fmt: skip
    """Moved by a mean (d,), and a share of the covariance of what is left (n, d) with draws (n, d)."""
    whitening, precision, place = part.whitening(), part.precision(), np.argsort(to_numpy(part.order))
    of_left, of_z = (np.ascontiguousarray(whitening.T @ to_numpy(rows).T) for rows in (left, z))
    entries = precision.tocoo()
    once = entries.row <= entries.col
    rows, columns = entries.row[once], entries.col[once]
    change, (first, second) = np.empty(len(rows)), (place[rows], place[columns])
    for start in range(0, len(rows), PART_ENTRIES):
        some = slice(start, start + PART_ENTRIES)
        a, b = first[some], second[some]
        change[some] = -0.5 * ((of_left[a] * of_z[b]).mean(1) + (of_left[b] * of_z[a]).mean(1))
    above = coo_array((change * (1 - 0.5 * (rows == columns)), (rows, columns)), shape=precision.shape)
    moved = csr_array(precision + share * (above + above.T))
    loc = part.loc + part.correlated(mean[None])[0]
    return SparseTriangularMap.of_precision(loc, moved, Elimination(precision), part.third)


def _n_parts(at: Standardization, by: HighDimension) -> int:
    """How many times `n_skew_draws` a step takes."""
    return max(1, math.ceil(by.moment_draws * len(at.loc) / by.n_skew_draws)) if at.sparse is None else 1


def _are_small(*moments: Tensor) -> bool:
    return all(bool(moment.abs().max() < LARGEST_MOMENT) for moment in moments)
