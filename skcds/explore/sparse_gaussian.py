"""The best Gaussian with a sparse precision behind skewness along the coordinates: by moments of what scores leave."""

__all__ = ["refined", "sparse_skewed"]

from collections.abc import Callable

import numpy as np
from scipy.sparse import coo_array, csr_array
from torch import Tensor

from .._support.devices import to_numpy
from .._support.errors import Spent
from ..density.elimination import Elimination
from ..density.energy import Energy
from ..density.sparse_triangular import SparseTriangularMap
from ..density.standardize import Standardization, StandardizedTarget
from .laplace import is_better, mirrored
from .stages import HighDimension

LARGEST_MOMENT = 3.0  # of what is left of a score along a coordinate: 0 in the end
PART_ENTRIES = 1000  # whose moments are found at a time


def sparse_skewed(gaussian: Standardization, third: Tensor) -> Standardization | None:
    """A Gaussian with a sparse precision that becomes skew along its coordinates; None if rounding forbids it."""
    if gaussian.sparse is None:
        return None
    precision = gaussian.sparse.precision()
    found = SparseTriangularMap.of_precision(gaussian.sparse.loc, precision, Elimination(precision), third)
    return None if found is None else Standardization.from_sparse(found)


def refined(
    energy: Energy, start: Standardization, generator, by: HighDimension, ended: Callable | None = None
) -> Standardization:  # fmt: skip
    """Coordinates with another mean and another precision of the same pattern, if the bound of log Z is better so.

    Skewness changes mean and covariance, to the second order in the third derivatives, and the Gaussian that was best
    without it is not the best one behind it. The score of a standard normal density is -z. What is left of it at draws
    z has a mean m and a covariance D with z. They vanish where the bound is largest. A step along them is a natural
    gradient: it moves the mean by R m and the precision by ``-G^T D G``, with the root R of the covariance and its
    inverse G. Of the second only entries in the pattern are needed, each of which is a moment of two numbers.

    Parameters
    ----------
    energy : Energy
        The density; its gradient is needed.
    start : Standardization
        A `SparseTriangularMap` alone.
    generator : torch.Generator
        Source of randomness.
    by : HighDimension
        How many steps there are, and draws in each.
    ended : callable, optional
        Says whether the time is over.
    """
    found = start
    try:
        for k in range(by.n_sparse_steps):
            if found.sparse is None or (ended is not None and ended()):
                break
            moved = _moved(energy, found, found.sparse, mirrored(by.n_skew_draws, energy, generator), 2 / (k + 4))
            if moved is None:
                break
            found = moved
    except Spent:
        pass
    return found if found is not start and is_better(energy, found, start, by.n_skew_draws, generator) else start


def _moved(
    energy: Energy, at: Standardization, sparse: SparseTriangularMap, z: Tensor, share: float
) -> Standardization | None:  # fmt: skip
    """One step, of a share of the whole one; None where it leads to no precision, or the density is far from normal."""
    left = StandardizedTarget(energy, at).log_prob_and_score(z)[1] + z
    mean, along = left.mean(0), (left * z).mean(0)
    if not (mean.abs().max() < LARGEST_MOMENT and along.abs().max() < LARGEST_MOMENT):
        return None
    whitening, precision, place = sparse.whitening(), sparse.precision(), np.argsort(to_numpy(sparse.order))
    of_left, of_z = (np.ascontiguousarray(whitening.T @ to_numpy(part).T) for part in (left, z))
    entries = precision.tocoo()
    once = entries.row <= entries.col
    rows, columns = entries.row[once], entries.col[once]
    change, (first, second) = np.empty(len(rows)), (place[rows], place[columns])
    for start in range(0, len(rows), PART_ENTRIES):
        part = slice(start, start + PART_ENTRIES)
        a, b = first[part], second[part]
        change[part] = -0.5 * ((of_left[a] * of_z[b]).mean(1) + (of_left[b] * of_z[a]).mean(1))
    above = coo_array((change * (1 - 0.5 * (rows == columns)), (rows, columns)), shape=precision.shape)
    moved = csr_array(precision + share * (above + above.T))
    loc = sparse.loc + share * sparse.correlated(mean[None])[0]
    found = SparseTriangularMap.of_precision(loc, moved, Elimination(precision), sparse.third)
    return None if found is None else Standardization.from_sparse(found)
