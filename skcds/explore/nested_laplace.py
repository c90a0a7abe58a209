"""Laplace's approximations along a coordinate on which location or scale of the others depends: funnels and ridges."""

__all__ = ["Along", "conditional_gaussians", "leading_coordinates", "nested_laplace", "scattered_gaussians"]

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .._support.devices import randn, to_numpy
from ..density.energy import Energy
from ..density.noncentred import NonCentred
from ..train.particles import effective_share
from .few_evaluations import Nested
from .laplace import decomposed, minimum
from .mixture import TMixture, log_weights_of

DIFFERENCE = 1e-3  # for the Hessian, in units of a coordinate's conditional scale
CLIMB, BEGUN = 100, 200  # iterations of a climb that goes off; points to begin from after it
KNOT_EVALS = 3  # Newton steps for a knot, at most in the mean, that evaluations are allowed for
STEPS = (1.0, 0.5, 0.2, 0.05, 0.01)  # of a Newton step, all tried at once
CLOSE_WIDTHS = (0.5, 2.0)  # that the masses tell, in units of the one that knots are taken by
REFINED = 5  # times at most that knots are taken anew, at distances by what they told of the width
CONVERGED = 0.1  # nats that another Newton step would gain
LEAST_TOTAL = 0.4  # of the squares of a coordinate's correlations with all others, relative to the largest
BY_CHANCE = 3.5  # standard deviations of a correlation without dependence: some hundred are compared
LEAST_CURVATURE = 1e-10  # eigenvalue of a Hessian relative to the largest, in units of the conditional scales


class Along:
    """The approximations along coordinates that an exploration has tried, and the best of them.

    Parameters
    ----------
    energy : Energy
        The density.
    by : Nested
        How often they are tried, and which are kept.

    Attributes
    ----------
    mixture : TMixture or None
        Those that are kept, by the ESS of their draws.
    noncentred : NonCentred or None
        Coordinates by the best of these along one coordinate, or by all with the same ones given.
    """

    def __init__(self, energy: Energy, by: Nested):
        self.energy, self.by = energy, by
        self.mixture: TMixture | None = None
        self.noncentred: NonCentred | None = None
        self._gaussians: tuple[Tensor, Tensor, Tensor] | None = None  # of the mixture that was tried last
        self._scattered: tuple[list[int], list[list[_Knot]]] | None = None  # the same, where others were given
        self._pooled: dict[tuple[int, ...], list[list[_Knot]]] = {}  # lines along leading coordinates with others given
        self._n_looks, self._n_points = 0, 0.0  # effective ones, at the last look
        self._known: dict[int, tuple[float, TMixture]] = {}

    def tried(self, x: Tensor, n_points: float, left: Callable[[], float]) -> Iterator[tuple[int, TMixture]]:
        """Coordinates and approximations along them, for points (n, d), so many of which are effective.

        None where points are not twice as many as when they were looked at before. The draws of each are to be told by
        `take` before the next. `left` says how many evaluations there are.
        """
        by = self.by
        if not by.share or self._n_looks == by.most_looks or n_points < 2 * self._n_points or self.best >= by.good:
            return
        self._n_looks, self._n_points = self._n_looks + 1, n_points
        yield from self._along(leading_coordinates(x, by, n_points), x, left)

    def begun(
        self, start: Tensor, scale: Tensor, generator, left: Callable[[], float]
    ) -> Iterator[tuple[int, TMixture]]:  # fmt: skip
        """As `tried`, where nothing is known but a place (d,) and scales (d,), and a climb from there ends at no mode.

        It goes off into a neck, and farthest along the coordinate that leads there.
        """
        by = self.by
        if not by.share or by.most_coordinates == 0 or len(start) < 2:
            return
        end = minimum(self.energy, start, CLIMB)
        if end is not None:
            far = np.argsort(-to_numpy((end - start).abs() / scale), kind="stable")
            x = start + scale * randn(generator, BEGUN, len(start), dtype=torch.float64)
            yield from self._alone([int(k) for k in far[: by.most_coordinates]], x, left)

    def _most(self, x: Tensor) -> int:
        """Evaluations that a line is allowed."""
        return KNOT_EVALS * self.by.most_knots * (x.shape[1] + len(STEPS) + 1)

    def _alone(self, leading: list[int], x: Tensor, left: Callable[[], float]) -> Iterator[tuple[int, TMixture]]:
        """Along each coordinate by itself."""
        for k in leading:
            lines, kernel = _lines(self.energy, x, k, self.by, min(self.by.share * left(), self._most(x)))
            self._gaussians, self._scattered = _gaussians(lines, k), None
            mixture = _joined(lines, kernel, self.by)
            if mixture is not None:
                yield k, mixture

    def _along(self, leading: list[int], x: Tensor, left: Callable[[], float]) -> Iterator[tuple[int, TMixture]]:
        """Along each coordinate by itself, and with the others given where that is no good."""
        by = self.by
        yield from self._alone(leading, x, left)
        missing = [] if len(leading) == 1 or self.best >= by.good else [k for k in leading if k not in self._known]
        for k in missing:
            others = [j for j in leading if j != k]
            lines, kernel = _lines(self.energy, x, k, by, min(by.share * left(), by.lines * self._most(x)), others)
            self._gaussians, self._scattered = None, (leading, lines)
            mixture = _joined(lines, kernel, by)
            if mixture is not None:
                yield k, mixture

    def found(self, x: Tensor, n_draws: int, generator, left: Callable[[], float]) -> TMixture | None:
        """The approximations that are good enough, for points (n, d); each is tried by so many draws."""
        for k, mixture in self.tried(x, len(x), left):
            y = mixture.sample(n_draws, generator)
            self.take(k, mixture, effective_share(log_weights_of(self.energy, mixture, y)))
        return self.mixture

    @property
    def best(self) -> float:
        """Largest normalised ESS of the draws of approximations that are kept, or 0."""
        return max((ess for ess, _ in self._known.values()), default=0.0)

    def take(self, k: int, mixture: TMixture, ess: float) -> None:
        """Keep approximations whose draws have such a normalised ESS, if it is good enough."""
        if ess > max(self.by.least_ess, self._known.get(k, (0.0,))[0]):
            if self._gaussians is not None:
                if ess > self.best:
                    self.noncentred = NonCentred.of_gaussians(k, *self._gaussians)
            elif self._scattered is not None:
                leading, lines = self._scattered
                self._pooled.setdefault(tuple(sorted(leading)), []).extend(lines)
                pooled = _scattered(self._pooled[tuple(sorted(leading))], leading, mixture.loc)
                found = NonCentred.of_scattered(*pooled, self.by.knots_of_several)
                self.noncentred = self.noncentred if found is None else found
            self._known[k] = ess, mixture
            least = self.by.kept * self.best
            self.mixture = TMixture.joined([part for part in self._known.values() if part[0] >= least])


def leading_coordinates(x: Tensor, by: Nested | None = None, n_points: float = math.inf) -> list[int]:
    """Coordinates that location or scale of others depend on beyond a Gaussian, the strongest first.

    The logarithm of the squares of what linear regression on all the others leaves of a coordinate is correlated with a
    coordinate that its scale depends on. The coordinate itself is correlated with the square of one that its location
    depends on, beyond its linear dependence on that one.

    Parameters
    ----------
    x : Tensor
        Points (n, d).
    by : Nested, optional
        How strong the dependence has to be, and how many there are at most.
    n_points : float, default=inf
        Of the points, that are effective: with few, stronger correlations come by chance.
    """
    by = Nested() if by is None else by
    if x.shape[1] < 2 or len(x) < 2 * x.shape[1]:
        return []
    z = _standardized(x.double())
    covariance = z.T @ z / len(z) + 1e-6 * torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    precision = torch.linalg.inv(covariance)
    rest = z @ precision / precision.diagonal()
    of_scale = _correlations((rest.square() + 1e-8).log(), z)
    squares = z.square()
    straight, own = _correlations(z, z), _correlations(z, squares).diagonal()
    left = ((1 - straight.square()) * (1 - own.square())).clamp(min=1e-6).sqrt()
    of_location = (_correlations(z, squares) - straight * own) / left  # partial, given the coordinate
    strength = torch.maximum(of_scale.square(), of_location.square()).fill_diagonal_(0.0)  # (others, leading)
    largest, total = strength.amax(0), strength.sum(0)
    least = max(by.least_correlation, BY_CHANCE / math.sqrt(min(n_points, len(x))))
    leads = to_numpy((largest > least**2) & (total > LEAST_TOTAL * total.max()))
    return [int(k) for k in np.argsort(-to_numpy(total), kind="stable") if leads[k]][: by.most_coordinates]


def nested_laplace(
    energy: Energy, x: Tensor, k: int, by: Nested | None = None, most=math.inf, beside: Sequence[int] = ()
) -> TMixture | None:  # fmt: skip
    """A mixture along coordinate k: at every knot, Laplace's approximation to the density of the others given it.

    From the points' mean, conditional modes are followed in both directions by Newton steps, with Hessians by
    differences of scores, until the masses at the knots have become small. It is the approximation of Rue, Martino &
    Chopin 2009 as a proposal, whose draws have weights. Where the others are Gaussian given the coordinate, as in the
    funnels of hierarchical models, it reaches the neck however narrow that is.

    Parameters
    ----------
    energy : Energy
        The density; its gradient is needed.
    x : Tensor
        Points (n, d) of it, for location and scale to begin from.
    k : int
        The coordinate.
    by : Nested, optional
        Knots and components.
    most : float, default=inf
        Evaluations after which no further knot is begun.
    beside : sequence of int, default=()
        Other coordinates that are given, too, as those of some of the points: scales of a hierarchical model each of
        which has a neck, where the conditional mode would be in the necks of the others.

    Returns
    -------
    TMixture or None
        None where no conditional mode is found to begin from.
    """
    by = Nested() if by is None else by
    return _joined(*_lines(energy, x, k, by, most, beside), by)


def conditional_gaussians(
    energy: Energy, x: Tensor, k: int, by: Nested | None = None, most=math.inf
) -> tuple[Tensor, Tensor, Tensor] | None:  # fmt: skip
    """Laplace's approximations of `nested_laplace` by themselves: to the others, at evenly spaced values of one.

    Parameters
    ----------
    energy, x, k, by, most
        See there.

    Returns
    -------
    at, loc, covariance : tuple of Tensor, or None
        Values (m,) of the coordinate, means (m, d), and covariances (m, d, d) with zeros for it. None for fewer than
        three.
    """
    lines, _ = _lines(energy, x, k, Nested() if by is None else by, most)
    return _gaussians(lines, k)


def scattered_gaussians(
    energy: Energy, x: Tensor, leading: Sequence[int], by: Nested | None = None, most=math.inf
) -> tuple[list[int], Tensor, Tensor]:
    """Laplace's approximations to the others with all leading coordinates given, at the knots of lines along each.

    Parameters
    ----------
    energy, x, by, most
        See `nested_laplace`; the evaluations are those for each of the coordinates.
    leading : sequence of int
        The coordinates, two or more.

    Returns
    -------
    leading, loc, covariance : tuple of list, Tensor and Tensor
        The coordinates in their order, means (n, d), with the values of leading coordinates, and covariances (n, d, d)
        with zeros for these.
    """
    by, lines = Nested() if by is None else by, []
    for k in leading:
        lines += _lines(energy, x, k, by, most, [j for j in leading if j != k])[0]
    return _scattered(lines, leading, x)


def _scattered(lines: "list[list[_Knot]]", leading: Sequence[int], x: Tensor) -> tuple[list[int], Tensor, Tensor]:
    """`scattered_gaussians` of lines; of points x (n, d) only the dimension and the device count."""
    knots, d = [knot for line in lines for knot in line], x.shape[1]
    if not knots:
        return sorted(leading), x.new_zeros(0, d), x.new_zeros(0, d, d)
    return sorted(leading), torch.stack([knot.x for knot in knots]), torch.stack([knot.covariance for knot in knots])


def _lines(
    energy: Energy, x: Tensor, k: int, by: Nested, most: float, beside: Sequence[int] = ()
) -> "tuple[list[list[_Knot]], Tensor]":
    """Knots along coordinate k, from the mean of points or from several places, and the widths (d,) of these."""
    most, spread = energy.n_energy_evals + most, x.std(0).clamp(min=1e-150)
    given, kernel, width = [k, *beside], torch.zeros_like(spread), float(spread[k])
    places = x.mean(0, keepdim=True)
    if beside:
        places = x[torch.linspace(0, len(x) - 1, by.lines, dtype=torch.float64, device=x.device).round().long()]
        kernel[list(beside)] = by.beside * spread[list(beside)]
    lines = []
    for place in places:
        line, width = _refined(energy, place, spread, given, width, by, most)
        if len(line) > 1:
            lines.append(line)
    return lines, kernel


def _joined(lines: "list[list[_Knot]]", kernel: Tensor, by: Nested) -> TMixture | None:
    """The mixture of all lines, in shares by the masses there."""
    log_masses = np.array([max(knot.log_mass for knot in line) for line in lines])
    shares = np.exp(0.5 * (log_masses - log_masses.max(initial=-math.inf))).tolist()
    parts = [(share, _mixture(line, kernel, by)) for share, line in zip(shares, lines, strict=True)]
    known = [(share, part) for share, part in parts if part is not None]
    return TMixture.joined(known) if known else None


def _gaussians(lines: "list[list[_Knot]]", k: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Values, means and covariances of a single line along coordinate k."""
    if len(lines) != 1 or len(lines[0]) < 3:
        return None
    loc = torch.stack([knot.x for knot in lines[0]])
    return loc[:, k], loc, torch.stack([knot.covariance for knot in lines[0]])


def _refined(energy: Energy, x: Tensor, scales: Tensor, given: list[int], width: float, by: Nested, most: float):
    """Knots along the first of the given coordinates, from a place (d,), and the width that their masses have."""
    knots: list[_Knot] = []
    start = _knot(energy, x, scales, given)
    for _ in range(REFINED):
        if start is None or energy.n_energy_evals >= most:
            break
        line = _line(energy, start, given, by.step * width, by, most)
        if knots and energy.n_energy_evals >= most:  # cut off
            break
        knots = line
        at = torch.stack([knot.x[given[0]] for knot in knots])
        log_mass = torch.tensor([knot.log_mass for knot in knots], dtype=at.dtype, device=at.device)
        mass = torch.softmax(log_mass, 0)
        found = max(float((mass * (at - (mass * at).sum()).square()).sum().sqrt()), 0.25 * width)
        if CLOSE_WIDTHS[0] < found / width < CLOSE_WIDTHS[1]:
            break
        start, width = knots[int(mass.argmax())], found
    return knots, width


def _line(energy: Energy, start: "_Knot", given: list[int], step: float, by: Nested, most: float) -> "list[_Knot]":
    """Knots in both directions from one of them, in the order of the coordinate.

    The next one is always at the end with the larger mass, so that the limits leave out what matters least.
    """
    sides, best = {-1: [start], 1: [start]}, start.log_mass  # from the first on
    open_sides = {-1, 1}
    while open_sides and energy.n_energy_evals < most:
        side = max(open_sides, key=lambda side: sides[side][-1].log_mass)
        line = sides[side]
        last = line[-1]
        guess = 2 * last.x - line[-2].x if len(line) > 1 else last.x.clone()
        guess[given[0]] = last.x[given[0]] + side * step
        found = _knot(energy, guess, last.scales, given)
        if found is not None:
            line.append(found)
            best = max(best, found.log_mass)
        if found is None or found.log_mass < best - by.depth or len(line) > by.most_knots // 2:
            open_sides.discard(side)
    return [*reversed(sides[-1]), *sides[1][1:]]


@dataclass(frozen=True)
class _Knot:
    """Laplace's approximation with one coordinate given, or several.

    Attributes
    ----------
    x : Tensor
        (d,), the conditional mode.
    covariance : Tensor
        (d, d), of the others; zero in the rows and columns of the given ones.
    scales : Tensor
        (d,), conditional standard deviations.
    log_mass : float
        Log of the integral over the others.
    """

    x: Tensor
    covariance: Tensor
    scales: Tensor
    log_mass: float


def _knot(energy: Energy, x: Tensor, scales: Tensor, given: list[int], max_steps: int = 12) -> _Knot | None:
    """Newton's method for the others from x (d,), with their scales (d,) as they are supposed to be."""
    d = len(x)
    others = torch.ones(d, dtype=torch.bool, device=x.device)
    others[given] = False
    for _ in range(max_steps):
        shifts = torch.diag(DIFFERENCE * scales)[others]
        value, score = energy.log_prob_and_score(torch.cat([x[None], x + shifts]))
        if not (value.isfinite().all() and score.isfinite().all()):
            return None
        unit = scales[others]
        hessian = (score[0] - score[1:])[:, others] / (DIFFERENCE * unit)[:, None]  # of the energy, by rows
        inner = 0.5 * (hessian + hessian.T)
        inner = inner * unit[:, None] * unit
        if not inner.isfinite().all() or not inner.any():
            return None
        found_axes = decomposed(inner)
        if found_axes is None:
            return None
        values, vectors = found_axes
        is_convex = bool(values[0] > 0)
        values = values.abs().clamp(min=LEAST_CURVATURE * float(values.abs().max()))
        root = unit[:, None] * vectors / values.sqrt()
        covariance = root @ root.T
        move = covariance @ score[0, others]
        found = covariance.diagonal().sqrt()
        scales = scales.clone()
        scales[others] = found
        gain = 0.5 * float(move @ score[0, others])
        if gain < CONVERGED and is_convex:
            break
        lengths = torch.tensor(STEPS, dtype=x.dtype, device=x.device)
        tried = x.repeat(len(lengths), 1)
        tried[:, others] += lengths[:, None] * move
        values_there = energy.log_prob(tried).nan_to_num(nan=-torch.inf)
        best = int(values_there.argmax())
        if values_there[best] <= value[0]:
            break
        x = tried[best]
    if not is_convex:
        return None
    whole = torch.zeros(d, d, dtype=x.dtype, device=x.device)
    whole[torch.outer(others, others)] = covariance.flatten()
    log_det = float(2 * unit.log().sum() - values.log().sum())
    x = x.clone()
    x[others] += move  # the last step costs nothing
    log_mass = float(value[0]) + gain + 0.5 * log_det + 0.5 * len(unit) * math.log(2 * math.pi)
    return _Knot(x, whole, scales, log_mass) if math.isfinite(log_mass) else None


def _mixture(knots: list[_Knot], kernel: Tensor, by: Nested) -> TMixture | None:
    """Components at the knots of a line, as wide as the kernel (d,) in other coordinates that are given."""
    x = torch.stack([knot.x for knot in knots])
    (tangent,) = torch.gradient(x, dim=0)  # of the line of modes, from knot to knot
    log_mass = torch.tensor([knot.log_mass for knot in knots], dtype=torch.float64, device=x.device)
    weights = torch.softmax(by.power * log_mass, 0)
    across = by.width * tangent
    covariance = torch.stack([knot.covariance for knot in knots]) * by.spread**2 + across[:, :, None] * across[:, None]
    covariance = covariance + torch.diag(kernel.square())
    unit = covariance.diagonal(dim1=1, dim2=2).sqrt()
    correlation = covariance / (unit[:, :, None] * unit[:, None])
    jitter = 1e-10 * torch.eye(len(unit[0]), dtype=unit.dtype, device=unit.device)
    root, info = torch.linalg.cholesky_ex(correlation + jitter)
    scale, sound = unit[:, :, None] * root, info == 0  # others are singular to rounding
    return TMixture(weights[sound], x[sound], scale[sound], by.freedom) if sound.any() else None


def _standardized(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / x.std(0, correction=0).clamp(min=1e-150)


def _correlations(x: Tensor, y: Tensor) -> Tensor:
    """(d, e) of the columns of x (n, d) with those of y (n, e)."""
    return _standardized(x).T @ _standardized(y) / len(x)
