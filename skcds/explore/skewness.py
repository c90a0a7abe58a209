"""Coordinates in which a Gaussian is skew as a density is, along these: by scores at its draws."""

__all__ = ["bends", "bent", "best_gaussian", "skewed", "third_derivatives"]

import contextlib
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .._support.devices import randn
from .._support.errors import Spent
from ..density.block_triangular import BlockTriangularMap
from ..density.elimination import Elimination
from ..density.energy import Energy
from ..density.sparse_triangular import SparseTriangularMap
from ..density.standardize import Standardization
from .laplace import is_better, stepped
from .moments import refined
from .stages import HighDimension

FAR = 3.0  # where the hyperbolic sine bends: it is an exponential there, whose skewness goes with the width in it
LARGEST, LEAST = 0.3, 1e-3  # bends; of the largest the density's slope is zero 1.7 standard deviations out
DIFFERENCE = 1e-2  # for third derivatives, in units of a coordinate's standard deviation
CLEAR = 2.0  # by which the gain has to exceed what noise alone seems to gain


def best_gaussian(
    energy: Energy, laplace: Standardization, generator, by: HighDimension | None = None,
    ended: Callable | None = None,
) -> tuple[Standardization, bool]:  # fmt: skip
    """The best Gaussian, behind bends or a block triangular map where the density is skew along the coordinates.

    Half of the steps are made without these, which are found then, the others in the coordinates that have the better
    bound. Bends are monotone functions of single coordinates; a `BlockTriangularMap` knows how these depend on each
    other, too. Behind the latter, and behind a `SparseTriangularMap`, the other steps are those of `refined`.

    Parameters
    ----------
    energy : Energy
        The density; its gradient is needed.
    laplace : Standardization
        Laplace's approximation.
    generator : torch.Generator
        Source of randomness.
    by : HighDimension, optional
        How many draws and steps there are.
    ended : callable, optional
        Says whether the time is over, or a number of evaluations cannot be made.

    Returns
    -------
    standardization : Standardization
        The Gaussian, or Laplace's where the bound of log Z is not better by it.
    better : bool
        Whether it is.
    """
    by = HighDimension() if by is None else by
    half = by.n_hessians // 2 if by.n_skew_draws else by.n_hessians
    found = stepped(energy, laplace, generator, by, ended, range(half))
    if half < by.n_hessians and not (ended is not None and ended(0)):
        gaussian = found
        with contextlib.suppress(Spent):
            for tried in _skew(energy, gaussian, generator, by):
                if tried is not None and is_better(energy, tried, found, by.n_skew_draws, generator):
                    found = tried
        if found.skewed is None and (found.sparse is None or found.sparse.is_affine):
            found = stepped(energy, found, generator, by, ended, range(half, by.n_hessians))
        else:
            found = refined(energy, found, generator, by, ended)
    better = is_better(energy, found, laplace, by.n_draws, generator)
    return (found if better else laplace), better


def _skew(
    energy: Energy, gaussian: Standardization, generator, by: HighDimension
) -> Iterator[Standardization | None]:  # fmt: skip
    """A Gaussian behind bends, and behind a block triangular map; None where there is none."""
    if gaussian.sparse is None:
        bend = bends(energy, gaussian, by.n_skew_draws, generator)
        yield None if bend is None else bent(gaussian, bend)
    third = third_derivatives(energy, gaussian, by.n_third_draws, generator)
    yield None if third is None else skewed(gaussian, third)


def bends(energy: Energy, gaussian: Standardization, n: int, generator) -> Tensor | None:
    """By how much to bend each coordinate of a Gaussian, (d,); None where nothing is clearly gained.

    With draws u of unit variance, a bend a moves a coordinate by a (u^2 - 1) standard deviations. The bound of log Z is
    quadratic in all bends to the second order. Its gradient at zero is the mean of the score times u^2 - 1, and its
    curvature is known from the covariance alone. The maximum is shrunk by the share of the gain that noise has.

    Parameters
    ----------
    energy : Energy
        The density; its gradient is needed.
    gaussian : Standardization
        Affine, with a full matrix.
    n : int
        Draws, in pairs of mirror images.
    generator : torch.Generator
        Source of randomness.
    """
    z = randn(generator, n // 2, energy.n_features, dtype=torch.float64)
    scale, spread = gaussian.scale, gaussian.covariance.diagonal().sqrt()
    one = torch.eye(len(scale), dtype=scale.dtype, device=scale.device)
    inverse = torch.linalg.solve_triangular(scale, one, upper=False)
    raised = ((z @ scale.T) / spread).square() - 1
    (log_prob, score), (other, opposite) = (energy.log_prob_and_score(gaussian(sign * z)) for sign in (1, -1))
    gradients = 0.5 * (score + opposite) * raised * spread  # the Gaussian's own scores are opposite, too, and cancel
    if not (gradients.isfinite().all() and log_prob.isfinite().all() and other.isfinite().all()):
        return None
    precision, correlation = inverse.T @ inverse, gaussian.covariance / torch.outer(spread, spread)
    curvature = 2 * precision * torch.outer(spread, spread) * correlation**2
    root, info = torch.linalg.cholesky_ex(curvature + 4 * one)
    if info:
        return None
    gradient = gradients.mean(0)
    solved = torch.linalg.solve_triangular(root, (gradients - gradient).T, upper=False)
    noise = float(solved.square().sum(0).mean()) / len(z)
    found = torch.cholesky_solve(gradient[:, None], root)[:, 0]
    gain = float(found @ gradient)
    return found.mul(1 - noise / gain).clamp(-LARGEST, LARGEST) if gain > CLEAR * noise else None


def bent(gaussian: Standardization, by: Tensor) -> Standardization:
    """A Gaussian whose coordinates are bent (d,), with the hyperbolic sine far from its center.

    Of ``x = c + w sinh(e + s u)`` the second term in u is s tanh(e) / 2 standard deviations, which sets s.
    """
    covariance, loc = gaussian.covariance, gaussian.loc
    spread, apart = covariance.diagonal().sqrt(), by.abs() > LEAST
    at, within = FAR * by.sign(), 2 * by.abs() / math.tanh(FAR)
    width = spread / (math.cosh(FAR) * within)
    center = loc - by * spread - width * at.sinh()
    factor = torch.where(apart, within / spread, 1.0)
    tails = torch.where(apart, center, 0.0), torch.where(apart, width, torch.inf)
    return Standardization.from_moments(
        torch.where(apart, at, loc), covariance * torch.outer(factor, factor), tails
    )  # fmt: skip


def third_derivatives(energy: Energy, gaussian: Standardization, n: int, generator) -> Tensor | None:
    """Mean third derivative (d,) of the log density along each coordinate, over n draws; None if it is not finite.

    The score's second difference along a random corner of a cube is, in each coordinate, that along the coordinate and
    what mixed derivatives add, whose mean over the corners is zero.

    Parameters
    ----------
    energy : Energy
        The density; its gradient is needed.
    gaussian : Standardization
        Affine, with a full matrix or a sparse precision.
    n : int
        Draws, in pairs of mirror images, of three evaluations each.
    generator : torch.Generator
        Source of randomness.
    """
    z, corner = (randn(generator, n // 2, energy.n_features, dtype=torch.float64) for _ in range(2))
    x, spread = gaussian(torch.cat([z, -z])), gaussian.variance.sqrt()
    step = DIFFERENCE * spread * torch.cat([corner, corner]).sign()
    behind, middle, ahead = (energy.log_prob_and_score(x + sign * step)[1] for sign in (-1, 0, 1))
    third = ((behind - 2 * middle + ahead) / (DIFFERENCE * spread).square()).mean(0)
    return third if third.isfinite().all() else None


def skewed(gaussian: Standardization, third: Tensor) -> Standardization | None:
    """A Gaussian that becomes skew along its coordinates; None if rounding forbids it.

    By a `BlockTriangularMap`, or by a `SparseTriangularMap` where the precision is sparse.
    """
    if gaussian.sparse is not None:
        precision, loc = gaussian.sparse.precision(), gaussian.sparse.loc
        sparse = SparseTriangularMap.of_precision(loc, precision, Elimination(precision), third)
        return None if sparse is None else Standardization.from_sparse(sparse)
    part = BlockTriangularMap.of_gaussian(gaussian.loc, gaussian.covariance, third)
    if part is None:
        return None
    return Standardization.from_moments(torch.zeros_like(third), torch.ones_like(third), skewed=part)
