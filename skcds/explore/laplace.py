"""Laplace's approximation: location and covariance from a mode, for dimensions in which particles tell too little."""

__all__ = ["laplace_standardization"]

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from .._support.devices import to_numpy
from ..density.energy import Energy
from ..density.standardize import Standardization
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
    mode = _minimum(energy, start.double(), max_iter)
    if mode is None:
        return None
    hessian = _hessian(energy, mode)
    if not hessian.isfinite().all():
        return None
    values, vectors = torch.linalg.eigh(hessian)
    if values[0] <= MIN_CURVATURE * values[-1]:
        return None
    for _ in range(NEWTON_STEPS):
        score = energy.log_prob_and_score(mode[None])[1][0]
        mode = mode + vectors @ ((vectors.T @ score) / values)
    return Standardization.from_moments(mode, (vectors / values) @ vectors.T)


def _minimum(energy: Energy, start: Tensor, max_iter: int) -> Tensor | None:
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
