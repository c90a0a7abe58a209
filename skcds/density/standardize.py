"""The target in standardised coordinates: an invertible map from them to the user's, and the energy seen through it."""

__all__ = ["FARTHEST", "OPTIONAL_PARTS", "Standardization", "StandardizedTarget"]

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._support.settings import place
from .block_triangular import BlockTriangularMap
from .energy import Energy
from .noncentred import NonCentred
from .rotation import Rotation
from .sparse_triangular import SparseTriangularMap
from .triangular import DEGREES, TriangularMap

OF_SPARSE = "n_top", "n_links", "n_root"  # options that are those of a `SparseTriangularMap`
OPTIONAL_PARTS = "n_knots", "triangular", "degree", "skewed", "rotation", *OF_SPARSE  # options that say which there are
FARTHEST = 40.0  # of a tamed coordinate: 1e17 widths; points beyond count as outside the support


class Standardization(torch.nn.Module):
    """Invertible map from standardised to the user's coordinates, affine where the tails are light.

    First ``y = loc + L z``, then ``x_j = y_j``, or ``x_j = center_j + width_j sinh(y_j)`` where the tails are heavy.
    The hyperbolic sine is linear within `width_j` of the center and exponential far from it: scales that differ by
    factors become scales that differ by terms (Johnson 1949). Where the scale or the place of coordinates depends on
    one of them, these x are non-centred ones, from which `NonCentred` leads to the user's. Where the density is skew
    along other directions than the coordinates, a `TriangularMap` of z comes before all of these. Where it is skew
    along many coordinates that depend on each other, a `BlockTriangularMap` comes after the hyperbolic sine, or a
    `SparseTriangularMap` where the precision is sparse, with skewness or without. Where modes lie apart along one
    direction, a `Rotation` before the affine part makes it a coordinate.

    Parameters
    ----------
    n_features : int
        Dimension.
    full : bool, default=True
        Lower-triangular `L`; a diagonal one otherwise.
    n_knots : int, default=0
        Of the splines of the `NonCentred` coordinates; 0 if there are none.
    triangular, skewed, rotation : bool, default=False
        Whether there is a `TriangularMap`, a `BlockTriangularMap`, and a `Rotation`.
    degree : {2, 3}, default=2
        Of the `TriangularMap`.
    n_top, n_links, n_root : int, default=0
        Of the `SparseTriangularMap`; there is none if the first is 0.

    Attributes
    ----------
    loc, scale : Tensor
        (d,) and (d, d) or (d,), the affine part.
    center, width : Tensor
        (d,), of the hyperbolic sine; a width of infinity stands for a coordinate without.
    noncentred : NonCentred or None
        The last part of the map.
    triangular : TriangularMap or None
        The first part of the map.
    skewed : BlockTriangularMap or None
        The part before the last.
    sparse : SparseTriangularMap or None
        The part in its place, where the precision is sparse.
    rotation : Rotation or None
        The part before the affine one.
    """

    loc: Tensor
    scale: Tensor
    center: Tensor
    width: Tensor

    def __init__(
        self, n_features: int, full: bool = True, n_knots: int = 0, triangular: bool = False, skewed: bool = False,
        rotation: bool = False, degree: int = 2, n_top: int = 0, n_links: int = 0, n_root: int = 0,
    ):  # fmt: skip
        super().__init__()
        self.full = full
        self.noncentred = NonCentred(n_features, n_knots) if n_knots else None
        self.triangular = TriangularMap(n_features, degree) if triangular else None
        self.skewed = BlockTriangularMap(n_features) if skewed else None
        self.sparse = SparseTriangularMap(n_features, n_top, n_links, n_root) if n_top else None
        self.rotation = Rotation(n_features) if rotation else None
        one = torch.ones(n_features, dtype=torch.float64, device=place())
        self.register_buffer("loc", torch.zeros_like(one))
        self.register_buffer("scale", torch.diag(one) if full else one)
        self.register_buffer("center", torch.zeros_like(one))
        self.register_buffer("width", torch.full_like(one, torch.inf))

    @classmethod
    def from_moments(
        cls, loc: Tensor, covariance: Tensor, tails: tuple[Tensor, Tensor] | None = None,
        noncentred: NonCentred | None = None, skewed: BlockTriangularMap | None = None,
    ):  # fmt: skip
        """Standardise to zero mean and unit covariance, given as a (d, d) matrix or its (d,) diagonal.

        They are the moments of y where `tails` gives the center and width of the hyperbolic sine.
        """
        standardization = cls(len(loc), full=covariance.ndim == 2).to(loc.device)
        standardization.loc, covariance = loc.double().clone(), covariance.double()
        scale = torch.linalg.cholesky(covariance) if standardization.full else covariance.sqrt()
        standardization.scale = scale.contiguous()  # as it comes back from a file: the layout decides how it is rounded
        if tails is not None:
            standardization.center, standardization.width = (t.double().clone() for t in tails)
        standardization.noncentred, standardization.skewed = noncentred, skewed
        return standardization

    @classmethod
    def from_sparse(cls, sparse: SparseTriangularMap) -> "Standardization":
        """The one that is a `SparseTriangularMap` alone."""
        standardization = cls(len(sparse.loc), full=False).to(sparse.loc.device)
        standardization.sparse = sparse
        return standardization

    def without_affine(self) -> "Standardization":
        """The map from y to the user's coordinates alone."""
        bend = Standardization(len(self.loc), full=False).to(self.loc.device)
        bend.center, bend.width, bend.noncentred = self.center, self.width, self.noncentred
        bend.skewed, bend.sparse = self.skewed, self.sparse
        return bend

    def with_triangular(self, triangular: TriangularMap | None) -> "Standardization":
        """The same with another first part."""
        return self._with(triangular, self.rotation)

    def with_rotation(self, rotation: Rotation | None) -> "Standardization":
        """The same with another part before the affine one."""
        return self._with(self.triangular, rotation)

    def _with(self, triangular: TriangularMap | None, rotation: Rotation | None) -> "Standardization":
        found = Standardization(len(self.loc), self.full).to(self.loc.device)
        found.loc, found.scale, found.center, found.width = self.loc, self.scale, self.center, self.width
        found.noncentred, found.skewed, found.sparse = self.noncentred, self.skewed, self.sparse
        found.triangular, found.rotation = triangular, rotation
        return found

    @property
    def config(self) -> dict[str, Any]:
        """What a model has to know of it, beside the number of features."""
        return {"full": self.full} | self.parts

    @property
    def parts(self) -> dict[str, Any]:
        """Options of the parts that it has beside the affine one and the hyperbolic sine."""
        parts: dict[str, Any] = {} if self.noncentred is None else {"n_knots": len(self.noncentred.knots)}
        parts |= {name: True for name in ("triangular", "skewed", "rotation") if getattr(self, name) is not None}
        if self.triangular is not None and self.triangular.degree != DEGREES[0]:
            parts["degree"] = self.triangular.degree
        if self.sparse is not None:
            parts |= {name: size for name, size in self.sparse.config.items() if name in OF_SPARSE}
        return parts

    @property
    def matrix(self) -> Tensor:
        """`L`, (d, d)."""
        return self.scale if self.full else torch.diag(self.scale)

    @property
    def covariance(self) -> Tensor:
        """``L L^T``, (d, d), or its diagonal (d,)."""
        return self.scale @ self.scale.T if self.full else self.scale**2

    @property
    def deviation(self) -> Tensor:
        """Diagonal (d,) of `L`."""
        return self.scale.diagonal() if self.full else self.scale

    @property
    def variance(self) -> Tensor:
        """Diagonal (d,) of the covariance, or of that of a `SparseTriangularMap` that stands alone."""
        if self.sparse is not None:
            return self.sparse.variance()
        return self.covariance.diagonal() if self.full else self.covariance

    def forward(self, z: Tensor) -> Tensor:
        """(n, d) standardised points to the user's coordinates, float64."""
        return self._affine(z) if self.is_affine() else self.call_and_pull_back(z)[0]

    def inverse(self, x: Tensor) -> Tensor:
        """(n, d) points in the user's coordinates to standardised ones, float64."""
        centred = self.tame(x) - self.loc
        if self.full:
            y = torch.linalg.solve_triangular(self.scale, centred.T, upper=False).T
        else:
            y = centred / self.scale
        for part in (self.rotation, self.triangular):
            y = y if part is None else part.inverse(y)
        return y

    def tame(self, x: Tensor) -> Tensor:
        """(n, d) points in the user's coordinates to y, float64."""
        y, heavy = x.double(), self._heavy
        for part in (self.noncentred, self.skewed, self.sparse):
            y = y if part is None else part.inverse(y)
        if heavy.any():
            y = y.clone()
            y[:, heavy] = ((y[:, heavy] - self.center[heavy]) / self.width[heavy]).asinh()
        return y

    def pull_back(self, z: Tensor, score: Tensor) -> Tensor:
        """Gradient with respect to z of a function of x plus `log_det`, from the function's gradient (n, d) in x."""
        return self.call_and_pull_back(z)[2](score)

    def log_det(self, z: Tensor) -> Tensor:
        """Log determinant (n,) of the Jacobian at standardised points (n, d), float64; ``-inf`` out of reach."""
        return self.call_and_pull_back(z)[1]

    def call_and_pull_back(self, z: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """What `forward` and `log_det` give at z, and `pull_back` there."""
        if self.is_affine():
            return self._tame_part(z)
        parts = self.triangular, self.rotation, self.sparse, self.skewed, self.noncentred
        first, second, *last = [part and part.call_and_pull_back for part in parts]
        x, total = z, torch.zeros(len(z), dtype=torch.float64, device=z.device)
        pulls: list[Callable[[Tensor], Tensor]] = []
        for call in (first, second, self._tame_part, *last):
            if call is not None:
                x, log_det, pull = call(x)
                total, pulls = total + log_det, [pull, *pulls]

        def pull_back(score):
            for pull in pulls:
                score = pull(score)
            return score

        return x, total, pull_back

    def is_affine(self) -> bool:
        """Whether there is nothing but the affine part."""
        return not (self.parts or self._heavy.any())

    def is_gaussian(self) -> bool:
        """Whether a standard normal density in these coordinates is a Gaussian in the user's."""
        bent = self.noncentred, self.triangular, self.skewed
        if self._heavy.any() or any(part is not None for part in bent):
            return False
        return self.sparse is None or self.sparse.is_affine

    def _tame_part(self, z: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """`call_and_pull_back` of the affine part and the hyperbolic sine."""
        x, heavy = self._affine(z), self._heavy
        log_det = self.deviation.log().sum().expand(len(z))

        def pull_back_affine(score):
            return score @ self.scale if self.full else score * self.scale

        if not heavy.any():
            return x, log_det, pull_back_affine
        columns = slice(None) if heavy.all() else heavy
        y, width = x[:, columns], self.width[columns]
        sinh = y.clamp(-FARTHEST, FARTHEST).sinh()
        cosh = (1 + sinh * sinh).sqrt()
        log_det = log_det + (width.log() + cosh.log().masked_fill(y.abs() > FARTHEST, -torch.inf)).sum(1)
        x = x.clone()
        x[:, columns] = self.center[columns] + width * sinh

        def pull_back(score):
            score = score.clone()
            score[:, columns] = score[:, columns] * (width * cosh) + sinh / cosh
            return pull_back_affine(score)

        return x, log_det, pull_back

    @property
    def _heavy(self) -> Tensor:
        return self.width.isfinite()

    def _affine(self, z: Tensor) -> Tensor:
        z = z.double()
        return self.loc + (z @ self.scale.T if self.full else z * self.scale)


class StandardizedTarget:
    """The energy seen in standardised coordinates: log density (float64) and score (in the dtype of the points).

    Parameters
    ----------
    energy : Energy
        The energy in the user's coordinates.
    standardization : Standardization
        From standardised to the user's coordinates.
    dtype : torch.dtype, optional
        Precision of the energy evaluations; by default the best that the user's function takes.
    score_dtype : torch.dtype, optional
        That of `log_prob_and_score`, where it is another: scores guide a sampler, densities are reported.
    """

    def __init__(self, energy: Energy, standardization: Standardization, dtype=None, score_dtype=None):
        self.energy, self.standardization, self.dtype = energy, standardization, dtype or energy.dtype
        self.score_dtype = score_dtype or self.dtype
        self.n_features, self.has_gradient = energy.n_features, energy.has_gradient

    @classmethod
    def reported(cls, energy: Energy, standardization: Standardization) -> "StandardizedTarget":
        """For reported figures: densities in the best precision, the scores that guide draws in the fast one."""
        return cls(energy, standardization, score_dtype=energy.fast_dtype)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density with respect to z, (n,) float64, the Jacobian of the standardisation included."""
        x, log_det, _ = self.standardization.call_and_pull_back(z)
        return self.energy.log_prob(x, self.dtype) + log_det

    def log_prob_and_score(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """`log_prob` and its gradient with respect to z, (n, d); zeros when the energy has no gradient."""
        if not self.has_gradient:
            return self.log_prob(z), torch.zeros_like(z)
        x, log_det, pull_back = self.standardization.call_and_pull_back(z)
        log_prob, score = self.energy.log_prob_and_score(x, self.score_dtype)
        return log_prob + log_det, pull_back(score).to(z.dtype)
