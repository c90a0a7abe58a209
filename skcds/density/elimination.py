"""Sparse precisions, by elimination of coordinates that are no neighbours, set after set, down to a dense rest."""

__all__ = ["Elimination", "Factor", "structure"]

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import LinAlgError, cholesky, solve_triangular
from scipy.linalg.lapack import dpotri
from scipy.sparse import csr_array, diags_array, eye_array, hstack, vstack

from .block_triangular import pivoted_cholesky

REST = 1 / 16  # of the coordinates, that are left for a dense factor, if sets do not become too small before
SMALLEST_SET = 1 / 16  # of the coordinates that are left, if a dense factor of these is no larger than is sparse
FEWEST = 1 / 64  # of the coordinates that are left, that a set has
DENSE = 1 / 4  # of the numbers of a dense factor, that a sparse one may take


@dataclass
class Factor:
    """Root of the covariance of a sparse precision, by which each coordinate is drawn given those before.

    The order begins with the dense rest, and goes from the set that was eliminated last to the first one.

    Attributes
    ----------
    order : ndarray of int64, (d,)
        Which coordinates come one after the other.
    level : ndarray of int64, (d,)
        Numbers of their sets, ascending; 0 for the rest.
    top : ndarray, (m, m)
        Lower triangular, the inverse of the root of the rest's covariance.
    links : csr_array, (d, d)
        Regression of each coordinate on those of the sets before, in this order.
    scale : ndarray, (d,)
        Standard deviations given these; of the rest, one over the diagonal of `top`.
    """

    order: np.ndarray
    level: np.ndarray
    top: np.ndarray
    links: csr_array
    scale: np.ndarray

    def root(self, least: float) -> csr_array:
        """The root (d, d), block triangular in this order, without entries below a share of a standard deviation."""
        of_rest = solve_triangular(self.top, np.eye(len(self.top)), lower=True)
        known = _without_small(csr_array(of_rest), least)
        for start, end in self.sets():
            given = self.links[start:end, :start] @ known
            own = diags_array(self.scale[start:end], format="csr")
            nothing = csr_array((start, end - start))
            rows = _without_small(csr_array(hstack([given, own])), least)
            known = csr_array(vstack([hstack([known, nothing]), rows]))
        return known

    def sets(self) -> Iterator[tuple[int, int]]:
        """Where each set begins and ends, but for the rest."""
        ends = np.flatnonzero(np.diff(self.level, append=-1)) + 1
        yield from itertools.pairwise(ends.tolist())


class Elimination:
    """Sets of coordinates of which no two are neighbours, in the order in which they are eliminated.

    Given those that are left, the coordinates of a set are independent. To eliminate them makes their neighbours
    neighbours of each other. The sets are maximal independent ones, found in the order of the number of neighbours
    (Saad 1996). Half of the coordinates of a chain are the first set, half of the others the second, and so on.

    Parameters
    ----------
    pattern : csr_array
        (d, d), symmetric, with entries where a precision has any.

    References
    ----------
    Saad (1996), "ILUM: a multi-elimination ILU preconditioner for general sparse matrices", SIAM J. Sci. Comput. 17(4).
    """

    def __init__(self, pattern: csr_array):
        self.n_features, self.n_links = pattern.shape[0], 0
        self.sets: list[np.ndarray] = []
        left, near = np.arange(self.n_features), structure(pattern)
        while len(left) > REST * self.n_features and len(left) > 1:
            chosen = _independent(near)
            chosen[np.flatnonzero(chosen)[: int(chosen.all())]] = False  # at least one is left
            share = chosen.sum() / len(left)
            if share < FEWEST or (share < SMALLEST_SET and self._is_sparse(len(left))):
                break
            across = near[chosen][:, ~chosen]
            self.sets.append(left[chosen])
            self.n_links += across.nnz
            left, near = left[~chosen], structure(near[~chosen][:, ~chosen] + across.T @ across)
        self.rest = left

    @property
    def is_sparse(self) -> bool:
        """Whether factors take clearly fewer numbers than dense ones."""
        return self._is_sparse(len(self.rest))

    def _is_sparse(self, n_left: int) -> bool:
        return self.n_links + n_left**2 < DENSE * self.n_features**2

    def factor(self, precision: csr_array) -> Factor | None:
        """The factor of a precision with this pattern; None where it is not positive definite."""
        eliminated, d = np.concatenate([*self.sets, self.rest]), self.n_features
        left, found = csr_array(precision[eliminated][:, eliminated]), []
        for chosen in self.sets:
            n = len(chosen)
            pivots = left.diagonal()[:n]
            if not (pivots > 0).all() or not np.isfinite(pivots).all():
                return None
            across = left[:n, n:]
            found.append((diags_array(-1 / pivots, format="csr") @ across, pivots**-0.5))
            left = csr_array(left[n:, n:] + across.T @ found[-1][0])
        of_rest = _root_of_rest(left.toarray())
        if of_rest is None:
            return None
        top, pivots = of_rest
        order = np.concatenate([self.rest[pivots], *reversed(self.sets)])
        n_each = [len(self.rest), *(len(chosen) for chosen in reversed(self.sets))]
        scale = np.concatenate([1 / top.diagonal(), *(scale for _, scale in reversed(found))])
        rows = [csr_array(hstack([csr_array((links.shape[0], d - links.shape[1])), links])) for links, _ in found]
        links = csr_array(vstack([*rows, csr_array((len(self.rest), d))]))
        back = np.argsort(eliminated)[order]
        return Factor(order, np.repeat(np.arange(len(n_each)), n_each), top, csr_array(links[back][:, back]), scale)


def structure(pattern: csr_array) -> csr_array:
    """Entries of one where a matrix has any, and on the diagonal."""
    ones = csr_array(pattern, dtype=float, copy=True)
    ones.data[:] = 1
    found = csr_array(ones + eye_array(pattern.shape[0], format="csr"))
    found.data[:] = 1
    return found


def _independent(near: csr_array) -> np.ndarray:
    """Which coordinates (d,) a maximal set has of which no two are neighbours, by their number of neighbours."""
    free, chosen = np.ones(near.shape[0], dtype=bool), np.zeros(near.shape[0], dtype=bool)
    starts, columns = near.indptr.tolist(), near.indices
    for k in np.argsort(np.diff(near.indptr), kind="stable"):
        if free[k]:
            chosen[k] = True
            free[columns[starts[k] : starts[k + 1]]] = False
    return chosen


def _root_of_rest(precision: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Inverse of the lower triangular root of a dense precision's covariance, in the order of its pivots, and these.

    It is a root of the precision, too, and known from this without an inverse.
    """
    try:
        covariance = dpotri(cholesky(precision, lower=True), lower=1)[0]
        pivoted = pivoted_cholesky(torch.from_numpy(np.tril(covariance) + np.tril(covariance, -1).T))
        if pivoted is None:
            return None
        pivots = pivoted[1].numpy()
        backwards = pivots[::-1]
        upper = cholesky(precision[np.ix_(backwards, backwards)], lower=True)[::-1, ::-1]
    except (LinAlgError, ValueError):  # not positive definite, or not finite
        return None
    return upper.T.copy(), pivots


def _without_small(rows: csr_array, least: float) -> csr_array:
    """Rows of a root without entries below a share of the row's norm."""
    norms = np.sqrt(rows.multiply(rows).sum(1))
    rows.data[np.abs(rows.data) < least * np.repeat(norms, np.diff(rows.indptr))] = 0
    rows.eliminate_zeros()
    return rows
