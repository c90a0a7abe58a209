"""Coordinates in which a density that is skew along any directions is close to a Gaussian: a triangular map."""

__all__ = [
    "BEND_MEAN", "CURVATURE_OF_BEND", "DEGREES", "FAR", "LARGEST_BEND", "TriangularMap", "features", "n_pairs",
    "n_triples", "products_of", "unbent",
]  # fmt: skip

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .._support.settings import place
from ..io.registry import register_model

FAR = 4.0  # where features level off: nothing is told by few draws out there, and squares would go on
UNIT = 0.9450698  # standard deviation of FAR tanh(z / FAR) for standard normal z
BEND_MEAN = 1.3545308  # of sqrt(1 + z^2)
CURVATURE_OF_BEND = 0.2824454  # coefficient of z^2 - 1 in sqrt(1 + z^2)
LARGEST_BEND = 0.8  # below 1, where a coordinate would fold
LARGEST_SPREAD = 2.0  # of a log scale, by its quadratic part
DEGREES = 2, 3  # that a location may have
GROUP = 8  # coordinates at a time
PART_ROWS = 1024  # points at a time: the products of their features are many


@register_model(degree=DEGREES)
class TriangularMap(nn.Module):
    """Invertible map of standardised coordinates whose locations and log scales are polynomials of the ones before.

    With features ``p = 4 tanh(z / 4)`` of unit variance,
    ``y_i = m_i + sum_j a_ij z_j + sum_jk c_ijk (p_j p_k - [j = k]) + exp(s_i + sum_j l_ij p_j) b_i(z_i)``
    over all j, k < i. The last function is ``b_i(z) = z + h_i (sqrt(1 + z^2) - 1.35)`` with |h_i| < 1. A map of degree
    3 has ``sum_abc g_iabc p_a p_b p_c``, a <= b <= c < i, in its locations and ``2 tanh(sum_jk q_ijk p_j p_k / 2)`` in
    its log scales, too. It is the identity where all numbers are zero.

    To first order in a density's third derivatives, and fourth ones with degree 3, this is the map that leads from a
    Gaussian to it (a Knothe-Rosenblatt rearrangement; see Marzouk, Moselhy, Parno & Spantini 2016 on such maps). Terms
    in which a coordinate itself has the third power are left out. A spline for each coordinate sees skewness along the
    coordinates only. In regressions it is along the directions of the data.

    Parameters
    ----------
    n_features : int
        Dimension.
    degree : {2, 3}, default=2
        Of the locations; log scales have one less.

    Attributes
    ----------
    location, log_scale, bend : Tensor
        (d,), the numbers m, s and h.
    regression, slope : Tensor
        (d, d), a and l, strictly lower-triangular.
    curvature, spread : Tensor
        (d, d, d), c and q, symmetric in the last two axes, and zero where one of these is not below the first. The
        latter is None with degree 2.
    cubic : Tensor or None
        (d (d + 2) (d^2 - 1) / 24,), g: for each c in turn a matrix whose rows are the i > c, and whose columns pairs
        (b, a), as of `tril_indices`.
    """

    location: Tensor
    log_scale: Tensor
    bend: Tensor
    regression: Tensor
    slope: Tensor
    curvature: Tensor
    spread: Tensor | None
    cubic: Tensor | None

    def __init__(self, n_features: int, degree: int = 2):
        super().__init__()
        self.config = {"n_features": n_features, "degree": degree}
        d, is_cubic = n_features, degree > DEGREES[0]
        shapes: dict[str, list[int]] = {
            "location": [d], "log_scale": [d], "bend": [d], "regression": [d, d], "slope": [d, d],
            "curvature": [d, d, d],
        }  # fmt: skip
        if is_cubic:
            shapes |= {"spread": [d, d, d], "cubic": [d * (d + 2) * (d * d - 1) // 24]}
        else:
            self.spread = self.cubic = None
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64, device=place()))

    @property
    def degree(self) -> int:
        """Of the locations."""
        return DEGREES[0] if self.cubic is None else DEGREES[1]

    def of_degree(self, degree: int) -> "TriangularMap":
        """The same map as one of a degree that is not below its own."""
        found = TriangularMap(len(self.location), degree).to(self.location.device)
        found.load_state_dict(found.state_dict() | self.state_dict())
        return found

    def cubics(self) -> Iterator[Tensor]:
        """The matrices of `cubic`, for each c, as views."""
        if self.cubic is not None:
            d = len(self.location)
            shapes = [(d - 1 - c, n_pairs(c + 1)) for c in range(d)]
            parts = self.cubic.split([n_rows * n_columns for n_rows, n_columns in shapes])
            yield from (part.view(shape) for part, shape in zip(parts, shapes, strict=True))

    def forward(self, z: Tensor) -> Tensor:
        """(n, d) points z to y, float64."""
        return self.call_and_pull_back(z)[0]

    def inverse(self, y: Tensor) -> Tensor:
        """(n, d) points y to z, float64, one coordinate after the other."""
        return torch.cat([self._inverse(part.T.contiguous()).T for part in y.double().split(PART_ROWS)])

    def call_and_pull_back(self, z: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """Points (n, d), the log determinant (n,) of the Jacobian, and `pull_back`.

        The last maps the gradient (n, d) of a function of y to that of the function plus the log determinant in z, in
        the precision of z: scores that guide a sampler take most of the time.
        """
        form, dtype = _Form(self), z.dtype
        parts = [form.call(part.T.contiguous()) for part in z.double().split(PART_ROWS)]
        y, log_det = (torch.cat([part[k] for part in parts], -1) for k in (0, 1))

        def pull_back(score):
            of, pulled = (form if dtype == torch.float64 else _Form(self, dtype)), []
            for part, (_, _, *kept) in zip(score.split(PART_ROWS), parts, strict=True):
                kept = [None if known is None else known.to(dtype) for known in kept]
                pulled.append(of.pull_back(part.T.to(dtype, memory_format=torch.contiguous_format), *kept).T)
            return torch.cat(pulled)

        return y.T, log_det, pull_back

    def _inverse(self, y: Tensor) -> Tensor:
        """`inverse` of points (d, n)."""
        d, cubics = len(y), self.cubics()
        z, p, spread = torch.zeros_like(y), torch.zeros_like(y), torch.zeros_like(y)
        shift, log_scale = (at[:, None].expand_as(y).clone() for at in (self._constants(), self.log_scale))
        products = y.new_empty(n_pairs(d), y.shape[1])
        for i in range(d):
            scale = (log_scale[i] + flattened(spread[i])[0]).exp()
            z[i] = unbent((y[i] - shift[i]) / scale, self.bend[i])
            p[i] = features(z[i])[0]
            later, block = slice(i + 1, None), p[i] * p[: i + 1]
            shift[later] += self.regression[later, i, None] * z[i] + _of_pairs(self.curvature, i) @ block
            log_scale[later] += self.slope[later, i, None] * p[i]
            if self.spread is not None:
                products[n_pairs(i) : n_pairs(i + 1)] = block
                spread[later] += _of_pairs(self.spread, i) @ block
                shift[later] += p[i] * (next(cubics) @ products[: n_pairs(i + 1)])
        return z

    def _constants(self) -> Tensor:
        """What locations (d,) are where all features are zero."""
        return self.location - self.curvature.diagonal(dim1=1, dim2=2).sum(1)


class _Form:
    """A map's numbers as few matrices, for points (d, n): products of matrices are fast with coordinates first."""

    def __init__(self, of: TriangularMap, dtype=torch.float64):
        d = len(of.location)
        k, j = torch.tril_indices(d, d, device=of.location.device)
        n_orders = 2.0 - (k == j).double()
        columns = of._constants(), of.log_scale, of.bend
        self.location, self.log_scale, self.bend = (column[:, None].to(dtype) for column in columns)
        self.regression, self.slope = of.regression.to(dtype), of.slope.to(dtype)
        self.curvature = (n_orders * of.curvature[:, k, j]).to(dtype)
        self.spread = None if of.spread is None else (n_orders * of.spread[:, k, j]).to(dtype)
        self.groups = [(first, end, numbers.to(dtype)) for first, end, numbers in _groups(of)]

    def call(self, z: Tensor) -> tuple[Any, ...]:
        """Points (d, n), log determinants (n,), and what `pull_back` takes beside a score."""
        p, root, bend = features(z)[0], (1 + z * z).sqrt(), self.bend
        products = products_of(p)
        shift = self.location + self.regression @ z + self.curvature @ products
        log_scale, flat = self.log_scale + self.slope @ p, None
        if self.spread is not None:
            spread, flat = flattened(self.spread @ products)
            log_scale = log_scale + spread
        for first, end, numbers in self.groups:
            by_pairs = (numbers.flatten(0, 1) @ products[: n_pairs(end)]).view(*numbers.shape[:2], -1)
            shift[first + 1 :] += (by_pairs * p[first:end]).sum(1)
        own, scaled = z + bend * (root - BEND_MEAN), log_scale.exp()
        return shift + scaled * own, (log_scale + (bend * z / root).log1p()).sum(0), z, scaled, own, flat

    def pull_back(self, score: Tensor, z: Tensor, scaled: Tensor, own: Tensor, flat: Tensor | None) -> Tensor:
        """The gradient (d, n) in z, from one in y."""
        (p, rate), root, bend = features(z), (1 + z * z).sqrt(), self.bend
        steep, through = 1 + bend * z / root, score * scaled
        of_log_scale = through * own + 1
        of_p, of_products = self.slope.T @ of_log_scale, self.curvature.T @ score
        if self.spread is not None and flat is not None:
            of_products.addmm_(self.spread.T, of_log_scale * flat)
        products = products_of(p)
        for first, end, numbers in self.groups:
            matrix, of_shift = numbers.flatten(0, 1), score[first + 1 :, None]
            by_pairs = (matrix @ products[: n_pairs(end)]).view(*numbers.shape[:2], -1)
            of_p[first:end] += (by_pairs * of_shift).sum(0)
            of_products[: n_pairs(end)].addmm_(matrix.T, (of_shift * p[first:end]).flatten(0, 1))
        for i in range(len(z)):
            block = of_products[n_pairs(i) : n_pairs(i + 1)]
            of_p[i] += (block * p[: i + 1]).sum(0)
            of_p[: i + 1] += block * p[i]
        return through * steep + bend / (root**3 * steep) + self.regression.T @ score + rate * of_p


def _groups(of: TriangularMap) -> Iterator[tuple[int, int, Tensor]]:
    """Some c at a time, the first and the one after the last, with their numbers (i > first, c, pairs).

    Large products of matrices are several times as fast as small ones, though some of these numbers are zero.
    """
    d, cubics = len(of.location), list(of.cubics())
    for first in range(0, d - 1 if cubics else 0, GROUP):
        end = min(first + GROUP, d - 1)
        numbers = of.location.new_zeros(d - 1 - first, end - first, n_pairs(end))
        for c in range(first, end):
            numbers[c - first :, c - first, : n_pairs(c + 1)] = cubics[c]
        yield first, end, numbers


def products_of(p: Tensor) -> Tensor:
    """Products (d (d + 1) / 2, n) of features (d, n)."""
    return torch.cat([p[i] * p[: i + 1] for i in range(len(p))])


def _of_pairs(symmetric: Tensor, i: int) -> Tensor:
    """Coefficients (d - 1 - i, i + 1) of ``p_j p_i``, j <= i, in the rows after i of a tensor (d, d, d)."""
    coefficients = 2 * symmetric[i + 1 :, i, : i + 1]
    coefficients[:, i] /= 2
    return coefficients


def flattened(spread: Tensor) -> tuple[Tensor, Tensor]:
    """``2 tanh(spread / 2)``, and its derivative."""
    level = (spread / LARGEST_SPREAD).tanh()
    return LARGEST_SPREAD * level, 1 - level * level


def n_pairs(d):
    """Number of pairs (b, a), a <= b < d."""
    return d * (d + 1) // 2


def n_triples(d):
    """Number of triples (c, b, a), a <= b <= c < d."""
    return d * (d + 1) * (d + 2) // 6


def unbent(own: Tensor, bend: Tensor) -> Tensor:
    """Where ``z + bend (sqrt(1 + z^2) - 1.35)`` has given values (n, k)."""
    own = own + bend * BEND_MEAN
    return (own - bend * (own**2 + 1 - bend**2).sqrt()) / (1 - bend**2)


def features(z: Tensor) -> tuple[Tensor, Tensor]:
    """Bounded features (of any shape) of unit variance for standard normal z, and their derivatives."""
    level = (z / FAR).tanh()
    return level * (FAR / UNIT), (1 - level * level) / UNIT
