"""Coordinates in which a density that is skew along the user's own is close to a Gaussian, in many dimensions."""

__all__ = ["BlockTriangularMap", "pivoted_cholesky", "pivoted_root"]

from collections.abc import Callable

import torch
from scipy.linalg.lapack import dpstrf
from torch import Tensor, nn

from .._support.devices import to_numpy
from .._support.settings import place
from ..io.registry import register_model
from .triangular import BEND_MEAN, CURVATURE_OF_BEND, FAR, LARGEST_BEND, unbent

BLOCKS = 16  # at most; of the largest pivots first, so that coordinates of a block hardly depend on each other
PART_NUMBERS = 2**23  # of points, at a time


@register_model()
class BlockTriangularMap(nn.Module):
    """Invertible map from a normal density to one whose log has third derivatives t_n along its own coordinates alone.

    Such are posteriors of latent Gaussian fields, of which each observation sees one coordinate: counts, rates, labels.
    With u = R w the map is ``x = loc + u``. Coordinates w are moved in blocks, given the part ``U = R z`` that those of
    the blocks before have in u:
    ``w_i = sum_n R_ni t_n (F_n^2 - var U_n) / 2 + exp(sum_n R_ni^2 t_n F_n / 2) b_i(z_i)``, where F is U close to zero
    and levels off four standard deviations out, and ``b_i`` is as in `TriangularMap`, with a curvature of
    ``sum_n t_n R_ni^3 / 3``. It is that map to first order but for what is within a block, and a point takes O(d^2) in
    place of O(d^3) operations. The order is that of the pivots of the covariance's Cholesky factor: the first
    coordinates are far apart, and later ones hardly depend on each other, given these.

    Parameters
    ----------
    n_features : int
        Dimension.

    Attributes
    ----------
    loc, third : Tensor
        (d,), the mean and the derivatives t.
    root : Tensor
        (d, d), R, a root of the covariance.
    log_volume : Tensor
        (), the log of the absolute value of its determinant.
    """

    loc: Tensor
    third: Tensor
    root: Tensor
    log_volume: Tensor

    def __init__(self, n_features: int):
        super().__init__()
        self.config = {"n_features": n_features}
        one = torch.ones(n_features, dtype=torch.float64, device=place())
        self.register_buffer("loc", torch.zeros_like(one))
        self.register_buffer("third", torch.zeros_like(one))
        self.register_buffer("root", torch.diag(one))
        self.register_buffer("log_volume", one.new_zeros(()))

    @classmethod
    def of_gaussian(cls, loc: Tensor, covariance: Tensor, third: Tensor) -> "BlockTriangularMap | None":
        """That of a Gaussian and third derivatives (d,); None where the covariance is none to rounding."""
        root = pivoted_root(covariance)
        if root is None:
            return None
        found = cls(len(loc)).to(loc.device)
        found.loc, found.third = loc.clone(), third.clone()
        found.root, found.log_volume = root[0], root[1]
        return found

    def forward(self, z: Tensor) -> Tensor:
        """(n, d) standard normal points to the user's coordinates, float64."""
        return self.call_and_pull_back(z)[0]

    def inverse(self, x: Tensor) -> Tensor:
        """(n, d) points in the user's coordinates to standard normal ones, float64, block after block."""
        return torch.cat([self._inverse(part) for part in self._parts(x.double())])

    def _inverse(self, x: Tensor) -> Tensor:
        w = torch.linalg.solve(self.root, (x - self.loc).T).T
        z, sums, bend = torch.zeros_like(w), torch.zeros_like(w), self._bend()
        for block, variance in self._blocks():
            shift, log_scale, _ = self._moved(sums, block, variance)
            z[:, block] = unbent((w[:, block] - shift) * (-log_scale).exp(), bend[block])
            sums = sums + z[:, block] @ self.root[:, block].T
        return z

    def call_and_pull_back(self, z: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """Points (n, d) in the user's coordinates, the log determinant (n,) of the Jacobian, and `pull_back`.

        The last maps the gradient (n, d) of a function of x to that of the function plus the log determinant in z.
        """
        parts = self._parts(z.double())
        points, log_dets = zip(*(self._call(part) for part in parts), strict=True)

        def pull_back(score):
            scores = self._parts(score.double())
            return torch.cat([self._pulled(part, own) for part, own in zip(parts, scores, strict=True)])

        return torch.cat(points), torch.cat(log_dets), pull_back

    def _parts(self, rows: Tensor) -> tuple[Tensor, ...]:
        return rows.split(max(1, PART_NUMBERS // rows.shape[1]))

    def _call(self, z: Tensor) -> tuple[Tensor, Tensor]:
        bend, sums, moved = self._bend(), torch.zeros_like(z), []
        root = (1 + z * z).sqrt()
        own, log_det = z + bend * (root - BEND_MEAN), (bend * z / root).log1p().sum(1) + self.log_volume
        for block, variance in self._blocks():
            shift, log_scale, _ = self._moved(sums, block, variance)
            moved.append(shift + log_scale.exp() * own[:, block])
            log_det = log_det + log_scale.sum(1)
            sums = sums + z[:, block] @ self.root[:, block].T
        return self.loc + torch.cat(moved, 1) @ self.root.T, log_det

    def _pulled(self, z: Tensor, score: Tensor) -> Tensor:
        bend, sums, through = self._bend(), z @ self.root.T, score @ self.root
        root = (1 + z * z).sqrt()
        own, steep = z + bend * (root - BEND_MEAN), 1 + bend * z / root
        of_sums, pulled = torch.zeros_like(z), bend / (root**3 * steep)  # of what is in the sums, from later blocks
        for block, variance in reversed(self._blocks()):
            columns = self.root[:, block]
            sums = sums - z[:, block] @ columns.T
            _, log_scale, (level, rate) = self._moved(sums, block, variance)
            scaled = through[:, block] * log_scale.exp()
            pulled[:, block] += scaled * steep[:, block] + of_sums @ columns
            curved = level * (through[:, block] @ columns.T) + 0.5 * (scaled * own[:, block] + 1) @ (columns**2).T
            of_sums = of_sums + self.third * rate * curved
        return pulled

    def _moved(self, sums: Tensor, block: slice, variance: Tensor):
        """Shift and log scale (n, k) of the coordinates of a block, and the levelled sums (n, d) with their slopes."""
        columns, far = self.root[:, block], FAR * self._spread()
        level = (sums / far).tanh()
        levelled = far * level
        shift = (0.5 * self.third * (levelled**2 - variance)) @ columns
        return shift, (0.5 * self.third * levelled) @ columns**2, (levelled, 1 - level * level)

    def _blocks(self) -> list[tuple[slice, Tensor]]:
        """Slices of the coordinates, and the variances (d,) that the sums of those before have."""
        d = len(self.loc)
        size = -(-d // BLOCKS)
        slices = [slice(i, min(i + size, d)) for i in range(0, d, size)]
        added = torch.stack([self.root[:, block].square().sum(1) for block in slices])
        return list(zip(slices, added.cumsum(0) - added, strict=True))

    def _spread(self) -> Tensor:
        return self.root.square().sum(1).sqrt()

    def _bend(self) -> Tensor:
        return ((self.root**3).T @ self.third / (6 * CURVATURE_OF_BEND)).clamp(-LARGEST_BEND, LARGEST_BEND)


def pivoted_root(covariance: Tensor) -> tuple[Tensor, Tensor] | None:
    """A root (d, d) of a covariance, by Cholesky factors of its correlations with pivots, and its log volume ().

    Each column is of the coordinate that has the largest share of its variance left.
    """
    found = pivoted_cholesky(covariance)
    if found is None:
        return None
    lower, pivots = found
    root = torch.empty_like(lower)
    root[pivots] = lower
    return root, lower.diagonal().log().sum()


def pivoted_cholesky(covariance: Tensor) -> tuple[Tensor, Tensor] | None:
    """Pivots (d,) of a covariance's correlations, and its Cholesky factor (d, d) with rows in their order.

    None where the covariance is none to rounding.
    """
    spread = covariance.diagonal().sqrt()
    factor, pivots, rank, _ = dpstrf(to_numpy(covariance / torch.outer(spread, spread)), lower=1, tol=-1.0)
    if rank < len(spread):
        return None
    order = torch.from_numpy(pivots - 1).long().to(spread.device)
    lower = torch.from_numpy(factor).to(covariance).tril()
    return (lower * spread[order][:, None]).contiguous(), order
