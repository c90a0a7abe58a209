"""Coordinates in which a density with a sparse precision is close to a Gaussian, skew along the user's or not."""

__all__ = ["SparseTriangularMap"]

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array, diags_array, eye_array, vstack
from torch import Tensor, nn

from .._support.devices import to_numpy
from .._support.settings import place
from ..io.registry import register_model
from .block_triangular import BLOCKS
from .elimination import Elimination, Factor
from .triangular import BEND_MEAN, CURVATURE_OF_BEND, FAR, LARGEST_BEND, unbent

LEAST = 1e-3  # entries of the root that skewness goes by, in units of a coordinate's standard deviation
ROUNDING = 1e-12  # entries of a precision that a factor leaves where there were none, in units of its diagonal
PART_NUMBERS = 2**20  # of points, at a time


@register_model()
class SparseTriangularMap(nn.Module):
    """Invertible map from a normal density to one with a sparse precision, and third derivatives along coordinates.

    Each coordinate is drawn given its neighbours among those before, in the order of an `Elimination` from its end. A
    point takes as many operations as the factor has entries, and no matrix (d, d) is made. With third derivatives t_n
    the map is that of `BlockTriangularMap`: coordinates of the root R are moved given the part of those of the sets
    before, by the same formulas, with the entries of R that count. Where t is zero the map is affine.

    Parameters
    ----------
    n_features : int
        Dimension.
    n_top : int
        Coordinates of the dense rest.
    n_links : int, default=0
        Entries of all regressions on neighbours.
    n_root : int, default=0
        Entries of the root that skewness goes by.

    Attributes
    ----------
    loc, third : Tensor
        (d,), the mean and the derivatives t, of the user's coordinates.
    order, level : Tensor of int64
        (d,), which of these comes after which, and the number of its set.
    scale : Tensor
        (d,), the standard deviations given those before, in this order, as all that follows.
    top : Tensor
        (n_top, n_top), the inverse of the root of the covariance of the first ones.
    links, weights : Tensor
        (2, n_links) of int64 and (n_links,), rows and columns of regression weights, and these.
    places, root : Tensor
        (2, n_root) of int64 and (n_root,), rows and columns of entries of the root, and these.
    """

    loc: Tensor
    third: Tensor
    order: Tensor
    level: Tensor
    scale: Tensor
    top: Tensor
    links: Tensor
    weights: Tensor
    places: Tensor
    root: Tensor

    def __init__(self, n_features: int, n_top: int, n_links: int = 0, n_root: int = 0):
        super().__init__()
        sizes = {"n_features": n_features, "n_top": n_top, "n_links": n_links, "n_root": n_root}
        self.config = {name: size for name, size in sizes.items() if size}
        one = torch.ones(n_features, dtype=torch.float64, device=place())
        whole = torch.zeros(n_features, dtype=torch.int64, device=place())
        self.register_buffer("loc", torch.zeros_like(one))
        self.register_buffer("third", torch.zeros_like(one))
        self.register_buffer("order", whole.clone())
        self.register_buffer("level", whole.clone())
        self.register_buffer("scale", one)
        self.register_buffer("top", one.new_zeros(n_top, n_top))
        self.register_buffer("links", whole.new_zeros(2, n_links))
        self.register_buffer("weights", one.new_zeros(n_links))
        self.register_buffer("places", whole.new_zeros(2, n_root))
        self.register_buffer("root", one.new_zeros(n_root))
        self.register_load_state_dict_post_hook(_check_places)

    @classmethod
    def of_precision(
        cls, loc: Tensor, precision: csr_array, elimination: Elimination, third: Tensor | None = None
    ) -> "SparseTriangularMap | None":
        """That of a Gaussian with a mean (d,), and third derivatives (d,), if any.

        None where the precision (d, d) is not positive definite.
        """
        factor = elimination.factor(precision)
        if factor is None:
            return None
        root = None if third is None else factor.root(LEAST)
        found = cls(len(loc), len(factor.top), factor.links.nnz, 0 if root is None else root.nnz)
        found.loc = loc.detach().double().cpu().clone()
        found.order, found.level = (torch.from_numpy(part).long() for part in (factor.order, factor.level))
        found.scale, found.top = torch.from_numpy(factor.scale), torch.from_numpy(factor.top)
        found.links, found.weights = _entries(factor.links)
        if third is not None and root is not None:
            found.third = third.detach().double().cpu().clone()
            found.places, found.root = _entries(root)
        return found.to(loc.device)

    @property
    def is_affine(self) -> bool:
        """Whether there is no skewness."""
        return not len(self.root)

    def precision(self) -> csr_array:
        """That of its Gaussian, (d, d), in the user's order."""
        d, whitening = len(self.loc), self.whitening()
        found = coo_array(whitening.T @ whitening)
        spread = found.diagonal() ** 0.5
        rows, columns = found.row, found.col
        kept = np.abs(found.data) > ROUNDING * spread[rows] * spread[columns]
        order = to_numpy(self.order)
        places = order[rows[kept]], order[columns[kept]]
        return csr_array(coo_array((found.data[kept], places), shape=(d, d)))

    def whitening(self) -> csr_array:
        """The inverse (d, d) of the covariance's root, in the order of its rows."""
        d, n = len(self.loc), len(self.top)
        below = diags_array(1 / to_numpy(self.scale), format="csr") @ (eye_array(d, format="csr") - self._regressions())
        above = csr_array(to_numpy(self.top))
        above.resize((n, d))
        return csr_array(vstack([above, below[n:]]))

    def variance(self) -> Tensor:
        """Variances (d,) of its Gaussian, in the user's order, without small entries of the root."""
        order, level, top, scale = (to_numpy(part) for part in (self.order, self.level, self.top, self.scale))
        root = Factor(order, level, top, self._regressions(), scale).root(LEAST)
        found = torch.empty_like(self.loc)
        found[self.order] = torch.from_numpy(root.multiply(root).sum(1)).to(found)
        return found

    def _regressions(self) -> csr_array:
        rows, columns = to_numpy(self.links)
        return csr_array((to_numpy(self.weights), (rows, columns)), shape=(len(self.loc),) * 2)

    def correlated(self, w: Tensor) -> Tensor:
        """(n, d) standard normal points to points of the Gaussian with mean zero."""
        form = _Form(self)
        return torch.cat([form.correlated(part.T).T for part in self._parts(w)])

    def solve(self, score: Tensor) -> Tensor:
        """Products (n, d) of the covariance with rows (n, d)."""
        form = _Form(self)
        return torch.cat([form.correlated(form.transposed(part.T)).T for part in self._parts(score)])

    def forward(self, z: Tensor) -> Tensor:
        """(n, d) standard normal points to the user's coordinates, float64."""
        return self.call_and_pull_back(z)[0]

    def inverse(self, x: Tensor) -> Tensor:
        """(n, d) points in the user's coordinates to standard normal ones, float64."""
        form = _Form(self)
        return torch.cat([form.inverse(part.T).T for part in self._parts(x.double())])

    def call_and_pull_back(self, z: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """Points (n, d) in the user's coordinates, the log determinant (n,) of the Jacobian, and `pull_back`.

        The last maps the gradient (n, d) of a function of x to that of the function plus the log determinant in z.
        """
        form, parts = _Form(self), self._parts(z.double())
        points, log_dets = zip(*(form.call(part.T) for part in parts), strict=True)

        def pull_back(score):
            pairs = zip(parts, self._parts(score.double()), strict=True)
            return torch.cat([form.pulled(part.T, own.T).T for part, own in pairs])

        return torch.cat([part.T for part in points]), torch.cat(log_dets), pull_back

    def _parts(self, rows: Tensor) -> tuple[Tensor, ...]:
        return rows.split(max(1, PART_NUMBERS // rows.shape[1]))


@dataclass
class _Block:
    """Coordinates from `start` to `end` that are moved at once, given those before.

    Attributes
    ----------
    matrix, squares : Tensor
        Sparse (end - start, d - start), transposed entries of the root in their columns, and the squares of these.
    affects : Tensor
        Sparse (d - end, end - start), the part that they have in the rows after them.
    variance : Tensor
        (d - start, 1), that of the part that those before have in the rows from here.
    """

    start: int
    end: int
    matrix: Tensor
    squares: Tensor
    affects: Tensor
    variance: Tensor


class _Form:
    """A map's numbers as few sparse matrices, for points (d, n)."""

    def __init__(self, of: SparseTriangularMap):
        self.loc, self.order, self.top = of.loc[:, None], of.order, of.top
        self.scale, self.third = of.scale[:, None], of.third[of.order][:, None]
        self.back, self.is_affine = of.order.argsort(), of.is_affine
        self.n_top = len(of.top)
        ends = of.level.unique_consecutive(return_counts=True)[1].cumsum(0).tolist()
        self.sets = list(itertools.pairwise(ends))
        rows, columns = of.links
        self.links = []
        for (start, end), entries in zip(self.sets, _between(rows, ends), strict=True):
            at = torch.stack([rows[entries] - start, columns[entries]])
            self.links.append(_sparse(at, of.weights[entries], (end - start, start)))
        self.log_volume = of.scale.log().sum()
        self.blocks = [] if self.is_affine else self._blocks(of)

    def _blocks(self, of: SparseTriangularMap) -> list[_Block]:
        """The dense rest in some blocks, then one for each set; and what all of them go by."""
        d, rows, columns, values = len(of.loc), *of.places, of.root
        by_column = (columns * d + rows).argsort()
        rows, columns, values = rows[by_column], columns[by_column], values[by_column]
        self.far = FAR * torch.zeros_like(of.loc).index_add(0, rows, values.square()).sqrt()[:, None]
        cubes = torch.zeros_like(of.loc).index_add(0, columns, values**3 * self.third[rows, 0])
        self.bend = (cubes / (6 * CURVATURE_OF_BEND)).clamp(-LARGEST_BEND, LARGEST_BEND)[:, None]
        ends = [*range(0, self.n_top, -(-d // BLOCKS)), self.n_top, *(end for _, end in self.sets)]
        variance, blocks = torch.zeros_like(of.loc), []
        for (start, end), entries in zip(itertools.pairwise(ends), _between(columns, ends), strict=True):
            row, column, own = rows[entries], columns[entries] - start, values[entries]
            at, later = torch.stack([column, row - start]), row >= end
            to_later = torch.stack([row[later] - end, column[later]])
            matrix, squares = (_sparse(at, numbers, (end - start, d - start)) for numbers in (own, own.square()))
            affects = _sparse(to_later, own[later], (d - end, end - start))
            blocks.append(_Block(start, end, matrix, squares, affects, variance[start:, None]))
            variance = variance.index_add(0, row, own.square())
        return blocks

    def correlated(self, w: Tensor) -> Tensor:
        """Products of the root with numbers (d, n)."""
        y = torch.linalg.solve_triangular(self.top, w[: self.n_top], upper=False)
        for (start, end), links in zip(self.sets, self.links, strict=True):
            y = torch.cat([y, torch.sparse.mm(links, y) + self.scale[start:end] * w[start:end]])
        return y[self.back]

    def transposed(self, score: Tensor) -> Tensor:
        """Products with the transposed root."""
        left, found = score[self.order], []
        for (start, end), links in zip(reversed(self.sets), reversed(self.links), strict=True):
            own = left[start:end]
            found.append(self.scale[start:end] * own)
            left = left[:start] + torch.sparse.mm(links.T, own)
        return torch.cat([torch.linalg.solve_triangular(self.top.T, left, upper=True), *reversed(found)])

    def call(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Points (d, n) and log determinants (n,)."""
        if self.is_affine:
            return self.loc + self.correlated(z), self.log_volume.expand(z.shape[1])
        root, log_det, moved = (1 + z * z).sqrt(), self.log_volume, []
        own = z + self.bend * (root - BEND_MEAN)
        for block, (shift, log_scale, _, _) in zip(self.blocks, self._moves(z), strict=True):
            moved.append(shift + log_scale.exp() * own[block.start : block.end])
            log_det = log_det + log_scale.sum(0)
        log_det = log_det + (self.bend * z / root).log1p().sum(0)
        return self.loc + self.correlated(torch.cat(moved)), log_det

    def pulled(self, z: Tensor, score: Tensor) -> Tensor:
        """`pull_back` of a score (d, n) at points (d, n)."""
        through = self.transposed(score)
        if self.is_affine:
            return through
        root, bend = (1 + z * z).sqrt(), self.bend
        own, steep = z + bend * (root - BEND_MEAN), 1 + bend * z / root
        pulled, of_sums = bend / (root**3 * steep), z[:0]  # of the sums of rows after a block
        found, moves = [], list(self._moves(z))
        for block, (_, log_scale, levelled, rate) in zip(reversed(self.blocks), reversed(moves), strict=True):
            here = slice(block.start, block.end)
            scaled = through[here] * log_scale.exp()
            found.append(pulled[here] + scaled * steep[here] + torch.sparse.mm(block.affects.T, of_sums))
            curved = levelled * torch.sparse.mm(block.matrix.T, through[here])
            curved = curved + torch.sparse.mm(block.squares.T, 0.5 * (scaled * own[here] + 1))
            curved = self.third[block.start :] * rate * curved
            curved[block.end - block.start :] += of_sums
            of_sums = curved
        return torch.cat(found[::-1])

    def inverse(self, x: Tensor) -> Tensor:
        """Standard normal points (d, n) for points (d, n)."""
        y = (x - self.loc)[self.order]
        found = [self.top @ y[: self.n_top]]
        for (start, end), links in zip(self.sets, self.links, strict=True):
            found.append((y[start:end] - torch.sparse.mm(links, y[:start])) / self.scale[start:end])
        w = torch.cat(found)
        if self.is_affine:
            return w
        z: list[Tensor] = []
        sums = torch.zeros_like(w)
        for block in self.blocks:
            shift, log_scale, _, _ = self._moved(sums, block)
            here = slice(block.start, block.end)
            z.append(unbent(((w[here] - shift) * (-log_scale).exp()).T, self.bend[here, 0]).T)
            sums = sums[block.end - block.start :] + torch.sparse.mm(block.affects, z[-1])
        return torch.cat(z)

    def _moves(self, z: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """What `_moved` gives for one block after the other."""
        sums = torch.zeros_like(z)
        for block in self.blocks:
            yield self._moved(sums, block)
            own = z[block.start : block.end]
            sums = sums[block.end - block.start :] + torch.sparse.mm(block.affects, own)

    def _moved(self, sums: Tensor, block: _Block) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Shift and log scale of a block's coordinates, and the levelled sums of rows from there, with their slopes."""
        far, third = self.far[block.start :], 0.5 * self.third[block.start :]
        level = (sums / far).tanh()
        levelled = far * level
        shift = torch.sparse.mm(block.matrix, third * (levelled * levelled - block.variance))
        return shift, torch.sparse.mm(block.squares, third * levelled), levelled, 1 - level * level


def _sparse(at: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """A sparse matrix of entries at places (2, n)."""
    return torch.sparse_coo_tensor(at, values, shape, check_invariants=True).coalesce()


def _between(ascending: Tensor, ends: list[int]) -> list[slice]:
    """Where ascending integers pass from one end to the next."""
    at = torch.tensor(ends, dtype=ascending.dtype, device=ascending.device)
    return [slice(a, b) for a, b in itertools.pairwise(torch.searchsorted(ascending.contiguous(), at).tolist())]


def _entries(matrix: csr_array) -> tuple[Tensor, Tensor]:
    """Places (2, n), row after row, and values (n,)."""
    matrix.sort_indices()
    entries = matrix.tocoo()
    places = np.stack([entries.row, entries.col]).astype(np.int64)
    return torch.from_numpy(places), torch.from_numpy(entries.data)


def _check_places(module: SparseTriangularMap, _) -> None:
    """Raise `ValueError` where numbers that were loaded are no places."""
    d, level = len(module.loc), module.level
    everywhere = torch.arange(d, device=module.order.device)
    fits = torch.equal(module.order.sort().values, everywhere) and bool((level.diff() >= 0).all())
    fits = fits and int((level == 0).sum()) == len(module.top)
    fits = fits and all(bool(((at >= 0) & (at < d)).all()) for at in (module.links, module.places))
    rows, columns = module.links
    if not (fits and bool((level[rows] > level[columns]).all()) and bool((rows.diff() >= 0).all())):
        raise ValueError("The places of a sparse matrix are out of range.")
