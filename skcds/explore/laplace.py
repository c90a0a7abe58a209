"""Gaussians for dimensions in which particles tell too little: Laplace's at a mode, and the best one around it."""

__all__ = [
    "decomposed",
    "gaussian_bound",
    "laplace_away_from_seams",
    "laplace_standardization",
    "minimum",
    "variational_standardization",
]

from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from .._support.devices import randn, to_numpy
from .._support.errors import Spent
from ..density.energy import Energy
from ..density.standardize import Standardization, StandardizedTarget
from ..models.maps import standard_normal_log_prob
from .stages import HighDimension

NEWTON_STEPS = 3
DIFFERENCE = 1e-4  # for the Hessian, in units of a coordinate's scale
MIN_CURVATURE = 1e-10  # smallest eigenvalue of the Hessian relative to the largest that makes a Gaussian


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
    hessian = _hessian(energy, mode)
    if not hessian.isfinite().all():
        return None
    found = decomposed(hessian)
    if found is None:
        return None
    values, vectors = found
    if values[0] <= MIN_CURVATURE * values[-1]:
        return None
    for _ in range(NEWTON_STEPS):
        score = energy.log_prob_and_score(mode[None])[1][0]
        mode = mode + vectors @ ((vectors.T @ score) / values)
    return Standardization.from_moments(mode, (vectors / values) @ vectors.T)


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
        mode = bounds(found.loc[None])
        energy.bounds = bounds.cut_open(mode)
        found = laplace_standardization(energy, energy.bounds.inverse(mode)[0], max_iter)
    if found is None:
        energy.bounds = bounds
    return found


def variational_standardization(
    energy: Energy, start: Standardization, generator, by: HighDimension | None = None, ended: Callable | None = None
) -> tuple[Standardization, bool]:
    """The Gaussian with the smallest reverse Kullback-Leibler divergence from a density, found from Laplace's.

    Its precision is the mean Hessian of the energy over its own draws, and the mean score over these is zero (Opper &
    Archambeau 2009). Each step takes the Hessian at one draw into an average in which later ones count more (Khan & Lin
    2017), and moves the mean by a Newton step with the score of many draws and their mirror images. A mode says
    nothing of a density's skewness; means over draws do.

    Parameters
    ----------
    energy : Energy
        The density; its gradient is needed.
    start : Standardization
        Laplace's approximation.
    generator : torch.Generator
        Source of randomness.
    by : HighDimension, optional
        How many steps there are.
    ended : callable, optional
        Says whether the time is over.

    Returns
    -------
    standardization : Standardization
        The Gaussian, or the start where the bound of log Z is not better by it.
    better : bool
        Whether it is.
    """
    by = HighDimension() if by is None else by
    loc, precision, found = start.loc, torch.cholesky_inverse(start.scale), start
    try:
        for k in range(by.n_hessians):
            if ended is not None and ended():
                break
            draw = found(randn(generator, 1, energy.n_features, dtype=torch.float64))[0]
            share = 2 / (k + 4)
            precision = (1 - share) * precision + share * _hessian(energy, draw)
            root, info = torch.linalg.cholesky_ex(precision)
            if info or not precision.isfinite().all():
                break
            for _ in range(by.mean_steps):
                found = Standardization.from_moments(loc, torch.cholesky_inverse(root))
                loc = loc + torch.cholesky_solve(_mean_score(energy, found, by.n_draws, generator)[:, None], root)[:, 0]
        found = Standardization.from_moments(loc, found.covariance)
        bounds, errors = zip(*(gaussian_bound(energy, g, by.n_draws, generator) for g in (start, found)), strict=True)
    except Spent:
        return start, False
    better = bounds[1] - bounds[0] > 2 * (errors[0] ** 2 + errors[1] ** 2) ** 0.5
    return (found if better else start), better


def gaussian_bound(energy: Energy, gaussian: Standardization, n: int, generator) -> tuple[float, float]:
    """Lower bound of log Z by n draws of a Gaussian, and its standard error."""
    z = randn(generator, n, energy.n_features, dtype=torch.float64)
    log_weights = StandardizedTarget(energy, gaussian).log_prob(z) - standard_normal_log_prob(z)
    return float(log_weights.mean()), float(log_weights.std()) / n**0.5


def _mean_score(energy: Energy, gaussian: Standardization, n: int, generator) -> Tensor:
    """Mean score (d,) over draws of a Gaussian and their mirror images."""
    z = randn(generator, n // 2, energy.n_features, dtype=torch.float64)
    return energy.log_prob_and_score(gaussian(torch.cat([z, -z])))[1].mean(0)


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


def _hessian(energy: Energy, x: Tensor) -> Tensor:
    """Hessian of the energy (d, d) by central differences of its gradient."""
    steps = DIFFERENCE * torch.eye(len(x), dtype=torch.float64, device=x.device)
    ahead, behind = (energy.log_prob_and_score(x + sign * steps)[1] for sign in (1, -1))
    hessian = (behind - ahead) / (2 * DIFFERENCE)
    return 0.5 * (hessian + hessian.T)
