"""Coordinates in which the others have one scale whatever a leading one is: non-centred ones, found from points."""

__all__ = ["NonCentred"]

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from .._support.devices import to_numpy
from .._support.settings import place
from ..io.registry import register_model

PART_NUMBERS = 2**21  # in matrices of points, at a time
LARGEST_LOG_SCALE = 40.0  # of a coordinate; points where it would be beyond count as outside the support
ROUNDS, NEWTON_STEPS = 12, 3  # of regression in turns on location and on scale
TINY_RIDGE = 1e-9  # in units of the mean square of a basis function
RIDGE = 1e-2  # penalty of squared coefficients, for points and functions in standardised units
MOST_SURPRISE = 20.0  # squared residual, in units of the scale, up to which a point counts in a Newton step
SPREAD = (0.001, 0.999)  # quantiles of the leading coordinate that the knots are between


@register_model()
class NonCentred(nn.Module):
    """Invertible map from non-centred to the user's coordinates, along one of these or several.

    In standardised coordinates u of the user, ``u_k = y_k`` for the leading one, and for the others in their order
    ``u_i = c_i(u_k) + sum_j t_ij(u_k) u_j + exp(s_i(u_k)) y_i`` over all j < i: a Gaussian whose mean and covariance
    depend on the leading coordinate is a Gaussian of independent coordinates in y. The functions are cubic splines; of
    several leading coordinates, sums of one for each, as for scales of which each has its own parameters. Beyond their
    knots `c` and `s` go on as lines, so that a funnel's neck gets narrower, and `t` stays as it is. A hierarchical
    model is better sampled in such coordinates (Papaspiliopoulos, Roberts & Skold 2007), in which users would write it
    by hand.

    Parameters
    ----------
    n_features, n_knots : int
        Numbers of coordinates, two at least, and of the knots of all splines together, of each three at least, evenly
        spaced.

    Attributes
    ----------
    coordinate : Tensor
        (m,) int64, the leading coordinate that each knot is of.
    loc, unit : Tensor
        (d,), mean and standard deviation of the user's coordinates.
    knots : Tensor
        (m,), values of u for the leading coordinates.
    location, log_scale : Tensor
        (m, d), c and s at the knots; zero for leading coordinates.
    regression : Tensor
        (m, d, d), t at the knots: strictly lower-triangular, with zeros in rows and columns of leading ones.
    """

    coordinate: Tensor
    loc: Tensor
    unit: Tensor
    knots: Tensor
    location: Tensor
    log_scale: Tensor
    regression: Tensor

    def __init__(self, n_features: int, n_knots: int):
        super().__init__()
        self.config = {"n_features": n_features, "n_knots": n_knots}
        one = torch.ones(n_features, dtype=torch.float64, device=place())
        self.register_buffer("coordinate", torch.zeros(n_knots, dtype=torch.int64, device=place()))
        self.register_buffer("loc", torch.zeros_like(one))
        self.register_buffer("unit", one)
        self.register_buffer("knots", torch.linspace(-1, 1, n_knots, dtype=torch.float64, device=place()))
        self.register_buffer("location", one.new_zeros(n_knots, n_features))
        self.register_buffer("log_scale", one.new_zeros(n_knots, n_features))
        self.register_buffer("regression", one.new_zeros(n_knots, n_features, n_features))

    @property
    def leading(self) -> tuple[int, ...]:
        """The leading coordinates."""
        return tuple(k for k, _ in self._splines())

    def _splines(self) -> list[tuple[int, slice]]:
        """Leading coordinates, and where the knots of each are."""
        coordinate = to_numpy(self.coordinate)
        starts = [0, *(np.flatnonzero(np.diff(coordinate)) + 1).tolist(), len(coordinate)]
        return [(int(coordinate[a]), slice(a, b)) for a, b in itertools.pairwise(starts)]

    @classmethod
    def fitted(cls, x: Tensor, k: int, n_knots: int = 4) -> "NonCentred | None":
        """Fitted to points (n, d) by maximum likelihood, along coordinate k; None where that comes to no end.

        Location and scale are found in turns: by least squares with the scales as weights, and by Newton's method
        for the logarithm of the scales, given the residuals.
        """
        x = x.double()
        found = cls._along(k, n_knots, x.mean(0), x.std(0).clamp(min=1e-150))
        u = (x - found.loc) / found.unit
        low, high = u[:, k].quantile(torch.tensor(SPREAD, dtype=x.dtype, device=x.device))
        if not high > low:
            return None
        found.knots = torch.lerp(low, high, torch.linspace(0, 1, n_knots, dtype=x.dtype, device=x.device))
        within, beyond = found._bases(u)
        others = [i for i in range(x.shape[1]) if i != k]
        for row, i in enumerate(others):
            before = others[:row]
            features = torch.cat([beyond, *(within * u[:, [j]] for j in before)], 1)
            try:
                weights, log_scale = _regressed(features, beyond, u[:, i])
            except torch.linalg.LinAlgError:
                return None
            if not (weights.isfinite().all() and log_scale.isfinite().all()):
                return None
            weights = weights.view(-1, n_knots).T  # (m, 1 + row)
            found.location[:, i], found.log_scale[:, i] = weights[:, 0], log_scale
            found.regression[:, i, before] = weights[:, 1:]
        return found

    @classmethod
    def of_gaussians(cls, k: int, at: Tensor, loc: Tensor, covariance: Tensor) -> "NonCentred | None":
        """Of Gaussians of the others at values (m,) of coordinate k, evenly spaced; None where one is singular.

        Their means are loc (m, d) and their covariances (m, d, d); rows and columns of k do not count.
        """
        m = len(loc)
        middle = covariance[m // 2].diagonal().clone()
        middle[k] = (at[-1] - at[0]).square() / 12
        found = cls._along(k, m, loc[m // 2].clone(), middle.sqrt())
        found.loc[k] = at[m // 2]
        found.knots = (at - at[m // 2]) / found.unit[k]
        parts = found._parts_of(loc, covariance)
        if parts is None:
            return None
        others = found._others()
        found.location[:, others], found.log_scale[:, others] = parts[0], parts[2]
        found.regression[:, others[:, None], others] = parts[1]
        return found

    @classmethod
    def of_scattered(cls, leading: Sequence[int], loc: Tensor, covariance: Tensor, n_knots: int) -> "NonCentred | None":
        """Fitted to Gaussians of the others at values of several leading coordinates, by weighted least squares.

        Their means are loc (n, d), which has the leading coordinates' values, too, and their covariances (n, d, d);
        rows and columns of leading ones do not count. Singular ones are left out. None where they are too few.
        """
        others = [i for i in range(loc.shape[1]) if i not in leading]
        sound = torch.linalg.cholesky_ex(covariance[:, others][:, :, others])[1] == 0
        loc, covariance = loc[sound], covariance[sound]
        n, d = loc.shape
        if n < 2 * n_knots * len(leading):
            return None
        variance = covariance.diagonal(dim1=1, dim2=2).mean(0) + loc.var(0)
        found = cls(d, n_knots * len(leading)).to(loc.device)
        found.loc, found.unit = loc.mean(0), variance.sqrt()
        u, even = (loc - found.loc) / found.unit, torch.linspace(0, 1, n_knots, dtype=loc.dtype, device=loc.device)
        for i, k in enumerate(leading):
            own = slice(i * n_knots, (i + 1) * n_knots)
            found.coordinate[own], found.knots[own] = k, torch.lerp(u[:, k].min(), u[:, k].max(), even)
        parts = found._parts_of(loc, covariance)
        if parts is None or not (found.unit > 0).all():
            return None
        location, regression, log_scale = parts
        features, _ = found._bases(u)
        ridge = TINY_RIDGE * torch.eye(features.shape[1], dtype=loc.dtype, device=loc.device)
        plain = features.T @ features / n
        if not (location.isfinite().all() and regression.isfinite().all() and log_scale.isfinite().all()):
            return None
        found.log_scale[:, others] = torch.linalg.solve(plain + ridge, features.T @ log_scale / n)
        for row, i in enumerate(others):
            precision = (-2 * (log_scale[:, row] - log_scale[:, row].min())).exp()  # an error counts in units of scale
            weighted = features.T * (precision / precision.mean()) / n
            wanted = torch.cat([location[:, row : row + 1], regression[:, row, :row]], 1)
            values = torch.linalg.solve(weighted @ features + ridge, weighted @ wanted)
            found.location[:, i], found.regression[:, i, others[:row]] = values[:, 0], values[:, 1:]
        return found

    def _parts_of(self, loc: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """Values c (n, e), t (n, e, e) and s (n, e) of the e others by moments; None where one is singular."""
        others = self._others()
        unit = self.unit[others]
        root, info = torch.linalg.cholesky_ex(covariance[:, others][:, :, others] / (unit[:, None] * unit))
        if info.any() or not root.isfinite().all():
            return None
        scale = root.diagonal(dim1=1, dim2=2)
        lower = root / scale[:, None]  # with ones on the diagonal
        one = torch.eye(len(others), dtype=loc.dtype, device=loc.device)
        inverse = torch.linalg.solve_triangular(lower, one.expand_as(lower), upper=False, unitriangular=True)
        mean = (loc[:, others] - self.loc[others]) / unit
        return torch.einsum("nij,nj->ni", inverse, mean), (one - inverse).tril(-1), scale.log()

    def _others(self) -> Tensor:
        """Coordinates (e,) that are not leading."""
        is_other = torch.ones(len(self.loc), dtype=torch.bool, device=self.loc.device)
        is_other[self.coordinate] = False
        return is_other.nonzero()[:, 0]

    @classmethod
    def _along(cls, k: int, n_knots: int, loc: Tensor, unit: Tensor) -> "NonCentred":
        found = cls(len(loc), n_knots).to(loc.device)
        found.coordinate[:] = k
        found.loc, found.unit = loc, unit
        return found

    def forward(self, y: Tensor) -> Tensor:
        """(n, d) non-centred points to the user's coordinates, float64."""
        return self.call_and_pull_back(y)[0]

    def inverse(self, x: Tensor) -> Tensor:
        """(n, d) points in the user's coordinates to non-centred ones, float64."""
        return torch.cat([self._inverse(part) for part in self._parts(x.double())])

    def _inverse(self, x: Tensor) -> Tensor:
        u = (x - self.loc) / self.unit
        location, regression, log_scale = self._given(*self._bases(u))
        return (-log_scale).exp() * (u - location - torch.einsum("nij,nj->ni", regression, u))

    def call_and_pull_back(self, y: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """Points (n, d) in the user's coordinates, the log determinant (n,) of the Jacobian, and `pull_back`.

        The last maps the gradient (n, d) of a function of x to that of the function plus the log determinant in y.
        """
        parts = self._parts(y.double())
        points, log_dets = zip(*(self._call(part) for part in parts), strict=True)

        def pull_back(score):
            scores = self._parts(score.double())
            return torch.cat([self._pulled(part, own) for part, own in zip(parts, scores, strict=True)])

        return torch.cat(points), torch.cat(log_dets), pull_back

    def _parts(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Rows so many at a time as a matrix for each may take."""
        return rows.split(max(1, PART_NUMBERS // rows.shape[1] ** 2))

    def _call(self, y: Tensor) -> tuple[Tensor, Tensor]:
        u, _, _, log_scale = self._solved(y)
        log_det = log_scale.sum(1) + self.unit.log().sum()
        is_far = ~(log_scale.abs() < LARGEST_LOG_SCALE).all(1)  # or NaN
        return self.loc + self.unit * u, log_det.masked_fill(is_far, -torch.inf)

    def _solved(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Points u (n, d), the matrix (n, d, d) to these, `scale y` and log scales (n, d)."""
        location, regression, log_scale = self._given(*self._bases(y))
        lower = torch.eye(len(self.loc), dtype=y.dtype, device=y.device) - regression
        moved = log_scale.exp() * y
        u = torch.linalg.solve_triangular(lower, (location + moved)[:, :, None], upper=False, unitriangular=True)
        return u[:, :, 0], lower, moved, log_scale

    def _pulled(self, y: Tensor, score: Tensor) -> Tensor:
        u, lower, moved, log_scale = self._solved(y)
        through = torch.linalg.solve_triangular(
            lower.mT, (score * self.unit)[:, :, None], upper=True, unitriangular=True
        )[:, :, 0]
        pulled, is_free = through * log_scale.exp(), log_scale.abs() < LARGEST_LOG_SCALE
        for k, own in self._splines():
            knots, v = self.knots[own], y[:, k]
            slope = _cubic(v.clamp(knots[0], knots[-1]), knots)[1]
            inside = ((v > knots[0]) & (v < knots[-1]))[:, None]
            of_scale = (slope @ self.log_scale[own]) * is_free
            of_regression = ((slope * inside) @ self.regression[own].flatten(1)).view_as(lower)
            bent = slope @ self.location[own] + torch.einsum("nij,nj->ni", of_regression, u)
            pulled[:, k] += (through * (bent + of_scale * moved)).sum(1) + of_scale.sum(1)
        return pulled.nan_to_num(nan=0.0)  # far outside, where numbers overflow

    def _given(self, within: Tensor, beyond: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Location (n, d), regression (n, d, d) and log scale (n, d) for functions of the knots (n, m)."""
        log_scale = (beyond @ self.log_scale).clamp(-LARGEST_LOG_SCALE, LARGEST_LOG_SCALE)
        return (
            beyond @ self.location,
            (within @ self.regression.flatten(1)).unflatten(1, [len(self.loc)] * 2),
            log_scale,
        )

    def _bases(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (n, m) of the knots at points u (n, d), held beyond these, and going on as lines there."""
        held, lines = [], []
        for k, own in self._splines():
            knots, v = self.knots[own], u[:, k]
            inside = v.clamp(knots[0], knots[-1])
            weights, slope = _cubic(inside, knots)
            held.append(weights)
            lines.append(weights + slope * (v - inside)[:, None])
        return torch.cat(held, 1), torch.cat(lines, 1)


def _cubic(v: Tensor, knots: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (n, m) of evenly spaced knots at v (n,) between these, and their derivatives: cubic Hermite splines.

    The slope at a knot is that of the line between its neighbours (Catmull & Rom 1974).
    """
    m, step = len(knots), knots[1] - knots[0]
    place = (v - knots[0]) / step
    left = place.nan_to_num().floor().clamp(0, m - 2)
    t, left = (place - left)[:, None], left.long()
    slopes = torch.zeros(m, m, dtype=v.dtype, device=v.device)  # of the knots, by the values there
    inner = torch.arange(1, m - 1, device=v.device)
    slopes[inner, inner - 1], slopes[inner, inner + 1] = -0.5, 0.5
    slopes[0, 0] = slopes[-1, -2] = -1.0
    slopes[0, 1] = slopes[-1, -1] = 1.0
    values = torch.eye(m, dtype=v.dtype, device=v.device)
    a, b, c, e = values[left], slopes[left], values[left + 1], slopes[left + 1]
    weights = (1 + 2 * t) * (1 - t) ** 2 * a + t * (1 - t) ** 2 * b + t**2 * (3 - 2 * t) * c + t**2 * (t - 1) * e
    rate = 6 * t * (t - 1) * a + (1 - t) * (1 - 3 * t) * b + 6 * t * (1 - t) * c + t * (3 * t - 2) * e
    return weights, rate / step


def _regressed(features: Tensor, of_scale: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (p,) of features (n, p) in the mean of a target (n,), and of others (n, m) in the log of its scale."""
    n, p = features.shape
    penalty = RIDGE * torch.eye(p, dtype=target.dtype, device=target.device)
    log_scale = target.new_zeros(of_scale.shape[1])
    weights = target.new_zeros(p)
    for k in range(ROUNDS):
        precision = (-2 * (of_scale @ log_scale)).exp()
        weighted = features.T * precision
        weights = torch.linalg.solve(weighted @ features + penalty, weighted @ target)
        squares = (target - features @ weights).square().clamp(min=1e-290)
        if k == 0:  # the mean of the log of a squared standard normal number is -1.27
            log_scale = torch.linalg.lstsq(of_scale, (0.5 * (squares.log() + 1.27))[:, None]).solution[:, 0]
        for _ in range(NEWTON_STEPS):
            surprise = (squares * (-2 * (of_scale @ log_scale)).exp()).clamp(max=1e6)
            slope = of_scale.T @ (1 - surprise) / n
            curvature = (of_scale.T * (2 * surprise.clamp(0.05, MOST_SURPRISE))) @ of_scale / n
            step = torch.linalg.solve(
                curvature + 1e-4 * torch.eye(len(slope), dtype=slope.dtype, device=slope.device), slope
            )
            log_scale = log_scale - step * min(1.0, 1.0 / max(float(step.norm()), 1e-300))
    return weights, log_scale
