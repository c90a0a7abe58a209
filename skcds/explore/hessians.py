"""Hessians of an energy by differences of its gradient: of sparse ones, by few of these."""

__all__ = ["Hessians", "colouring", "dense_of"]

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array, vstack
from torch import Tensor
from torch.nn.functional import one_hot

from .._support.devices import generator_on, rand, to_numpy
from .._support.settings import CPU
from ..density.elimination import Elimination, structure
from ..density.energy import Energy
from ..density.standardize import StandardizedTarget

DIFFERENCE = 1e-4  # in units of a coordinate's scale
SMALLEST = 1e-6  # entry that is not zero, in units of the geometric mean of its diagonal ones
NOISE = 1e-9  # entry that is not zero, in units of the largest of its row, before all diagonal ones are known
SPARSE = 1 / 16  # of the columns, that there may be groups of
LARGE = 256  # features above which Hessians are sparse matrices, if factors of these are sparse
LARGEST_ERROR = 1e-4  # of the product with a vector, relative to its norm
MOST_NUMBERS = 4_000_000  # of the points of a call


class Hessians:
    """Hessians of an energy at one point after another.

    The first is found column by column. Where it is sparse, as that of a chain or a lattice is, columns without a
    common row are groups, and one difference of gradients along the sum of a group tells all of its columns (Curtis,
    Powell & Reid 1974). The product with another vector tells whether an entry has appeared elsewhere: then all
    columns are looked at again.

    Parameters
    ----------
    energy : Energy or StandardizedTarget
        Its gradient is needed.
    pattern : csr_array, optional
        (d, d), symmetric, with entries where Hessians are known to have any.

    Attributes
    ----------
    elimination : Elimination or None
        Order in which coordinates are eliminated, where Hessians are sparse matrices; None where they are dense.

    References
    ----------
    Curtis, Powell and Reid (1974), "On the estimation of sparse Jacobian matrices", IMA J. Appl. Math. 13(1).
    """

    def __init__(self, energy: Energy | StandardizedTarget, pattern: csr_array | None = None):
        self.energy, self.pattern = energy, None
        self.groups: np.ndarray | None = None  # number (d,) of each column's group; None where there are too many
        self.elimination: Elimination | None = None
        if pattern is not None:
            self._know(pattern)

    def __call__(self, x: Tensor) -> Tensor | csr_array:
        """The Hessian (d, d) at a point (d,): a sparse matrix in more than 256 features, if factors are sparse."""
        found = self._by_groups(x)
        if found is None:
            found = self._by_columns(x)
            self._know(found)
        if isinstance(found, Tensor) or self.elimination is not None:
            return found
        return dense_of(found, x.device)

    def _know(self, found: csr_array | Tensor) -> None:
        """Take the places of a Hessian's entries."""
        if isinstance(found, Tensor):
            self.pattern = self.groups = self.elimination = None
            return
        known = structure(found)  # of ones: a sum with numbers might cancel
        self.pattern, self.elimination = known if self.pattern is None else structure(known + self.pattern), None
        self.groups = colouring(self.pattern, int(SPARSE * found.shape[0]))
        if self.groups is not None and found.shape[0] > LARGE:
            elimination = Elimination(self.pattern)
            self.elimination = elimination if elimination.is_sparse else None

    def _by_columns(self, x: Tensor) -> Tensor | csr_array:
        """The Hessian by 2 d evaluations, without entries that are zero if most are."""
        columns = torch.arange(len(x), device=x.device).split(max(1, MOST_NUMBERS // len(x)))
        parts = [_sparse(_differences(self.energy, x, one_hot(part, len(x)).double())) for part in columns]
        if any(isinstance(part, Tensor) for part in parts):
            dense = torch.cat([dense_of(part, x.device) for part in parts])
            return 0.5 * (dense + dense.T)
        found = vstack(parts, format="csr")
        return _pruned(0.5 * (found + found.T))

    def _by_groups(self, x: Tensor) -> csr_array | None:
        """The Hessian from one difference for each group, or None where it has entries outside of the pattern."""
        if self.groups is None or self.pattern is None:
            return None
        d, n = len(x), int(self.groups.max()) + 1
        along = torch.zeros(n + 1, d, dtype=torch.float64, device=x.device)
        along[torch.from_numpy(self.groups).to(x.device), torch.arange(d, device=x.device)] = 1
        signs = (rand(generator_on(CPU, 0), d) < 0.5).double() * 2 - 1  # always the same
        along[n] = signs.to(x.device)
        differences = to_numpy(_differences(self.energy, x, along))
        places = self.pattern.tocoo()
        rows, columns = places.row, places.col
        values = differences[self.groups[columns], rows]
        found = csr_array(coo_array((values, (rows, columns)), shape=(d, d)))
        error = np.linalg.norm(found @ to_numpy(signs) - differences[n])
        if not error <= LARGEST_ERROR * np.linalg.norm(differences[n]):
            return None
        return csr_array(0.5 * (found + found.T))


def dense_of(matrix: Tensor | csr_array, device: torch.device) -> Tensor:
    """A matrix that may be sparse, as a dense one on a device."""
    return matrix if isinstance(matrix, Tensor) else torch.from_numpy(matrix.toarray()).to(device)


def colouring(pattern: csr_array, most: int) -> np.ndarray | None:
    """Groups of columns of a symmetric pattern (d, d) of which no two have a row in common: the number (d,) of each.

    Greedy, in the order of the columns. None where there are more than `most` groups.
    """
    if np.diff(pattern.indptr).max() > most:  # of columns with a row in common, each has a group of its own
        return None
    near = structure(pattern @ pattern)
    groups = np.full(pattern.shape[0], -1)
    for column in range(len(groups)):
        taken = groups[near.indices[near.indptr[column] : near.indptr[column + 1]]]
        free = np.ones(len(taken) + 2, dtype=bool)
        free[taken[(taken >= 0) & (taken < len(free))]] = False
        groups[column] = int(free.argmax())
    return groups if groups.max() < most else None


def _sparse(rows: Tensor) -> Tensor | csr_array:
    """Rows (n, d) as a sparse matrix, if most of their entries are zero."""
    is_zero = rows.abs() <= NOISE * rows.abs().amax(1, keepdim=True)
    if not rows.isfinite().all() or (~is_zero).sum() > SPARSE * rows.numel():
        return rows
    return csr_array(to_numpy(torch.where(is_zero, 0.0, rows)))


def _pruned(found: csr_array) -> csr_array:
    """A Hessian without entries that are small beside its diagonal ones, which stay."""
    scale, entries = np.sqrt(np.abs(found.diagonal())), found.tocoo()
    rows, columns = entries.row, entries.col
    kept = (np.abs(entries.data) > SMALLEST * scale[rows] * scale[columns]) | (rows == columns)
    return csr_array(coo_array((entries.data[kept], (rows[kept], columns[kept])), shape=found.shape))


def _differences(energy: Energy | StandardizedTarget, x: Tensor, along: Tensor) -> Tensor:
    """Products (n, d) of the Hessian at a point (d,) with vectors (n, d), by central differences of the gradient."""
    found = []
    for part in along.split(max(1, MOST_NUMBERS // len(x))):
        ahead, behind = (energy.log_prob_and_score(x + sign * DIFFERENCE * part)[1] for sign in (1, -1))
        found.append((behind - ahead) / (2 * DIFFERENCE))
    return torch.cat(found)
