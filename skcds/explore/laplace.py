"""Gaussians for dimensions in which particles tell too little: Laplace's at a mode, and the best one around it."""

__all__ = [
    "decomposed",
    "is_better",
    "is_close_to_normal",
    "laplace_away_from_seams",
    "laplace_standardization",
    "log_weights_of",
    "minimum",
    "mirrored",
    "stepped",
    "variance_of_log_weights",
]

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from .._support.devices import randn, to_numpy
from .._support.errors import Spent
from ..density.energy import Energy
from ..density.standardize import Standardization, StandardizedTarget
from .hessians import Hessians
from .precisions import DensePrecision, precision_of
from .stages import HighDimension

NEWTON_STEPS = 3
LARGEST_VARIANCE = 0.25  # of log weights, for each coordinate, where a density counts as close to normal
MIN_CURVATURE = 1e-10  # smallest pivot of the Hessian relative to the largest that makes a Gaussian


def laplace_standardization(
    energy: Energy, start: Tensor | None = None, max_iter: int = HighDimension.max_iter
) -> Standardization | None:
    """Mode of a density, found from `start`, with the inverse Hessian of the energy there as covariance.

    The mode is found by L-BFGS and polished by Newton steps, the Hessian by central differences of the score: 2
    n_features evaluations.

    Parameters
    ----------
    energy : Energy
        The density; its gradient is needed.
    start : Tensor, default=None
        Point (n_features,) to start from; by default the origin.
    max_iter : int, default=2000
        Iterations of L-BFGS.

    Returns
    -------
    Standardization or None
        None where the search ends at no point with a positive definite Hessian.
    """
    if start is None:
        start = torch.zeros(energy.n_features, dtype=torch.float64, device=energy.device)
    mode = minimum(energy, start.double(), max_iter)
    if mode is None:
        return None
    hessians = Hessians(energy)
    precision = precision_of(hessians(mode), hessians.elimination, mode.device)
    if precision is None or not precision.pivots.min() > MIN_CURVATURE * precision.pivots.max():
        return None
    for _ in range(NEWTON_STEPS):
        score = energy.log_prob_and_score(mode[None])[1][0]
        mode = mode + precision.solve(score)
    return precision.gaussian(mode)


def decomposed(matrix: Tensor) -> tuple[Tensor, Tensor] | None:
    """Eigenvalues (d,), ascending, and eigenvectors (d, d) of a symmetric matrix; None where LAPACK gives up."""
    try:
        return torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError:  # of entries of very different sizes, as of a Hessian deep in a neck
        return None


def laplace_away_from_seams(energy: Energy, start: Tensor | None, max_iter: int) -> Standardization | None:
    """`laplace_standardization`, with the seams of periodic coordinates far from the mode, which is looked for again.

    The energy's bounds are left as they were where there is none.
    """
    bounds = energy.bounds
    found = laplace_standardization(energy, start, max_iter)
    if found is not None and bounds is not None and bounds.periodic.any():
        mode = bounds(found(found.loc.new_zeros(1, energy.n_features)))
        energy.bounds = bounds.cut_open(mode)
        found = laplace_standardization(energy, energy.bounds.inverse(mode)[0], max_iter)
    if found is None:
        energy.bounds = bounds
    return found


def stepped(
    energy: Energy, start: Standardization, generator, by: HighDimension, ended: Callable | None, steps: range
) -> Standardization:  # fmt: skip
    """Steps towards the Gaussian with the smallest reverse Kullback-Leibler divergence, as many as the limits allow.

    Its precision is the mean Hessian of the energy over its own draws, and the mean score over these is zero (Opper &
    Archambeau 2009). Each step takes the Hessian at one draw into an average in which later ones count more (Khan & Lin
    2017), that of step k by 2 / (k + 4), and moves the mean by a Newton step with the score of many draws and their
    mirror images. Draws of Hessians are in pairs of mirror images, too: skewness changes a Hessian by as much on the
    other side. A mode says nothing of a density's skewness; means over draws do.

    Coordinates of the start that are behind a hyperbolic sine stay so, or behind a `BlockTriangularMap`. A start with a
    sparse precision has no skewness.
    """
    target, loc, hessians, precision = _set_out(energy, start)
    if precision is None:
        return start
    z, mirrored = loc.new_zeros(1, energy.n_features), False
    try:
        for k in steps:
            if ended is not None and ended(0):
                break
            z = -z if mirrored else randn(generator, 1, energy.n_features, dtype=torch.float64)
            share, mirrored = 2 / (k + 4), not mirrored
            hessian = hessians(loc + precision.correlated(z)[0])
            moved = precision.mixed(share, hessian, hessians.elimination)
            if moved is None:
                break
            precision = moved
            for _ in range(by.mean_steps):
                loc = loc + precision.solve(_mean_score(target, loc, precision, by.n_draws, generator))
    except Spent:
        pass
    return precision.gaussian(loc, like=start) or start


def _set_out(energy: Energy, start: Standardization):
    """Target of steps, mean that they start from, what makes Hessians, and precision; None where it is none."""
    if start.sparse is None:
        target = StandardizedTarget(energy, start.without_affine())
        return target, start.loc, Hessians(target), DensePrecision.of(torch.cholesky_inverse(start.matrix))
    target = StandardizedTarget(energy, Standardization(energy.n_features, full=False).to(energy.device))
    matrix = start.sparse.precision()
    hessians = Hessians(target, matrix)
    return target, start.sparse.loc, hessians, precision_of(matrix, hessians.elimination, energy.device)


def is_better(
    energy: Energy, one: Standardization, other: Standardization, n: int, generator, least: float = 0.0
) -> bool:  # fmt: skip
    """Whether the bound of log Z is clearly better, by two standard errors of n draws; not if evaluations are spent.

    Half of the draws are the mirror images of the others, in which skewness cancels. A Gaussian behind other parts is
    not better where the density is far from normal in its coordinates: a bound of minus thousands says nothing, and
    what is trained there pays for the parts at every step. Nor is it where it gains less than some nats.
    """
    z = mirrored(n, energy, generator)
    try:
        log_weights = log_weights_of(energy, one, z)
        gain = log_weights - log_weights_of(energy, other, z)
    except Spent:
        return False
    if not (one.is_gaussian() or float(log_weights.var()) < LARGEST_VARIANCE * energy.n_features):
        return False
    gain = gain.view(2, -1).mean(0)  # NaN or infinite where one of the densities is zero: then it is not better
    return float(gain.mean()) > max(2 * float(gain.std()) / len(gain) ** 0.5, least)


def is_close_to_normal(energy: Energy, standardization: Standardization, n: int, generator) -> bool:
    """Whether log weights of n draws hardly vary; not if evaluations are spent."""
    return variance_of_log_weights(energy, standardization, n, generator) < LARGEST_VARIANCE * energy.n_features


def variance_of_log_weights(energy: Energy, standardization: Standardization, n: int, generator) -> float:
    """Of n draws, half of which are mirror images; infinite if evaluations are spent, or one is."""
    try:
        variance = float(log_weights_of(energy, standardization, mirrored(n, energy, generator)).var())
    except Spent:
        return torch.inf
    return torch.inf if math.isnan(variance) else variance


def mirrored(n: int, energy: Energy, generator) -> Tensor:
    """Standard normal points (2 (n // 2), d) of which half are the mirror images of the others."""
    z = randn(generator, n // 2, energy.n_features, dtype=torch.float64)
    return torch.cat([z, -z])


def log_weights_of(energy: Energy, standardization: Standardization, z: Tensor) -> Tensor:
    """Log weights (n,), up to a constant, of standard normal points (n, d) in some coordinates."""
    return StandardizedTarget(energy, standardization).log_prob(z) + 0.5 * z.square().sum(1)


def _mean_score(target: StandardizedTarget, loc: Tensor, precision, n: int, generator) -> Tensor:
    """Mean score (d,) over draws of a Gaussian and their mirror images."""
    y = precision.correlated(randn(generator, n // 2, target.n_features, dtype=torch.float64))
    return target.log_prob_and_score(torch.cat([loc + y, loc - y]))[1].mean(0)


def minimum(energy: Energy, start: Tensor, max_iter: int) -> Tensor | None:
    """Where L-BFGS from a point (d,) ends, at a mode or not; None where that is not finite."""

    def value_and_gradient(x):
        log_prob, score = energy.log_prob_and_score(torch.from_numpy(x)[None].to(start.device))
        return -float(log_prob[0]), -to_numpy(score[0])

    with np.errstate(all="ignore"):
        found = minimize(
            value_and_gradient, to_numpy(start), jac=True, method="L-BFGS-B",
            options={"maxiter": max_iter, "maxfun": 2 * max_iter},
        )  # fmt: skip
    is_finite = np.isfinite(found.fun) and np.isfinite(found.x).all()
    return torch.from_numpy(found.x).to(start.device) if is_finite else None
