"""Precision matrices of Gaussians, dense or sparse, with roots to draw by and to solve with."""

__all__ = ["DensePrecision", "SparsePrecision", "precision_of"]

import copy

import torch
from scipy.sparse import csr_array
from torch import Tensor

from ..density.elimination import Elimination
from ..density.sparse_triangular import SparseTriangularMap
from ..density.standardize import Standardization
from .hessians import dense_of


class DensePrecision:
    """A precision (d, d), positive definite, with its Cholesky factor.

    Attributes
    ----------
    matrix : Tensor
        The precision.
    pivots : Tensor
        (d,), the squares of the factor's diagonal.
    """

    def __init__(self, matrix: Tensor, root: Tensor):
        self.matrix, self._root, self.pivots = matrix, root, root.diagonal().square()

    @classmethod
    def of(cls, matrix: Tensor) -> "DensePrecision | None":
        """None where it is not positive definite, or not finite."""
        if not matrix.isfinite().all():
            return None
        root, info = torch.linalg.cholesky_ex(matrix)
        return None if info else cls(matrix, root)

    def mixed(self, share: float, hessian: Tensor | csr_array, _elimination) -> "DensePrecision | None":
        """With a share of a Hessian in place of as much of it; None where that is no precision."""
        return self.of((1 - share) * self.matrix + share * dense_of(hessian, self.matrix.device))

    def correlated(self, z: Tensor) -> Tensor:
        """Standard normal points (n, d) to points of this precision."""
        return torch.linalg.solve_triangular(self._root.T, z.T, upper=True).T

    def solve(self, score: Tensor) -> Tensor:
        """The covariance times a vector (d,)."""
        return torch.cholesky_solve(score[:, None], self._root)[:, 0]

    def covariance(self) -> Tensor:
        """The inverse (d, d)."""
        return torch.cholesky_inverse(self._root)

    def gaussian(self, loc: Tensor, like: Standardization | None = None) -> Standardization | None:
        """The Gaussian with a mean (d,); None where the covariance is none to rounding.

        It has the tails and the non-centred coordinates of another one.
        """
        covariance = self.covariance()
        if torch.linalg.cholesky_ex(covariance).info:
            return None
        if like is None:
            return Standardization.from_moments(loc, covariance)
        return Standardization.from_moments(loc, covariance, (like.center, like.width), like.noncentred, like.skewed)


class SparsePrecision:
    """A sparse precision (d, d), positive definite, with its factor by elimination.

    Attributes
    ----------
    matrix : csr_array
        The precision.
    pivots : Tensor
        (d,), one over the variances of coordinates given those before.
    """

    def __init__(self, matrix: csr_array, elimination: Elimination, factor: SparseTriangularMap):
        self.matrix, self.elimination, self._factor = matrix, elimination, factor
        self.pivots = factor.scale**-2

    @classmethod
    def of(cls, matrix: csr_array, elimination: Elimination, device: torch.device) -> "SparsePrecision | None":
        """None where it is not positive definite, or not finite."""
        loc = torch.zeros(matrix.shape[0], dtype=torch.float64, device=device)
        factor = SparseTriangularMap.of_precision(loc, matrix, elimination)
        return None if factor is None else cls(matrix, elimination, factor)

    def mixed(
        self, share: float, hessian: Tensor | csr_array, elimination: Elimination | None
    ) -> "DensePrecision | SparsePrecision | None":
        """With a share of a Hessian in place of as much of it; None where that is no precision."""
        device = self.pivots.device
        if elimination is None or isinstance(hessian, Tensor):
            return DensePrecision.of((1 - share) * dense_of(self.matrix, device) + share * dense_of(hessian, device))
        return self.of(csr_array((1 - share) * self.matrix + share * hessian), elimination, device)

    def correlated(self, z: Tensor) -> Tensor:
        """Standard normal points (n, d) to points of this precision."""
        return self._factor.correlated(z)

    def solve(self, score: Tensor) -> Tensor:
        """The covariance times a vector (d,)."""
        return self._factor.solve(score[None])[0]

    def gaussian(self, loc: Tensor, like: Standardization | None = None) -> Standardization:
        """The Gaussian with a mean (d,)."""
        found = copy.deepcopy(self._factor)
        found.loc = loc.clone()
        return Standardization.from_sparse(found)


def precision_of(
    matrix: Tensor | csr_array, elimination: Elimination | None, device: torch.device
) -> DensePrecision | SparsePrecision | None:
    """A precision, sparse if it is given so; None where it is not positive definite, or not finite."""
    if isinstance(matrix, Tensor) or elimination is None:
        return DensePrecision.of(dense_of(matrix, device))
    return SparsePrecision.of(matrix, elimination, device)
