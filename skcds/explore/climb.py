"""Climbs to modes: location, and scale of every coordinate, from a point and whatever the energy tells around it."""

__all__ = ["Mode", "climb"]

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from .._support.devices import to_numpy
from ..density.energy import Energy
from ..density.standardize import Standardization
from .laplace import decomposed
from .mode_stages import Climbs

RISE = 0.5, 2.0  # nats by which the energy should rise over the distance that the scale is taken from
DIFFERENCE = 1e-2  # of the gradient for the Hessian, in units of a coordinate's scale
MIN_CURVATURE = 1e-10  # smallest eigenvalue of the Hessian in scaled coordinates, relative to the largest
NEWTON_STEPS = 3
NEAR = 0.5  # standard deviations, within which two modes are one


@dataclass
class Mode:
    """A point where the density is highest near by.

    Attributes
    ----------
    standardization : Standardization
        That of Laplace's approximation.
    log_mass : float
        Log of the mass that the approximation gives.
    """

    standardization: Standardization
    log_mass: float

    @property
    def x(self) -> Tensor:
        """Where it is, (d,)."""
        return self.standardization.loc

    def is_near(self, x: Tensor) -> bool:
        """Whether a point (d,) can be taken for this one."""
        return float(self.standardization.inverse(x[None]).norm()) < NEAR


def climb(energy: Energy, start: Tensor, known: Sequence[Mode] = (), by: Climbs | None = None) -> Mode | None:
    """The mode that a climb from a point (d,) ends at, or None where there is no Gaussian around its end.

    A mode that is known already is given as it is, without another look at its scales.

    By L-BFGS where the energy has a gradient, and by Powell's method in few dimensions where it has not. The scale of
    every coordinate is found by how far the energy has to be followed to rise by a nat, so that coordinates may differ
    in location and scale by many orders of magnitude.

    Raises
    ------
    Spent
        When a limit is reached on the way.
    """
    by = Climbs() if by is None else by
    if not energy.has_gradient and energy.n_features > by.max_features_without:
        return None
    x = start.double()
    scale = torch.ones_like(x)
    for _ in range(by.rounds):
        found, finished = _search(energy, x, scale, by)
        if found is None:
            return None
        x = found
        for mode in known:
            if mode.is_near(x):
                return mode
        previous, scale = scale, _scales(energy, x, scale, by.scale_passes)
        if finished and bool(((scale / previous).log().abs() < math.log(30)).all()):
            break
    return _laplace(energy, x, scale)


def _search(energy: Energy, x: Tensor, scale: Tensor, by: Climbs) -> tuple[Tensor | None, bool]:
    """The lowest point (d,) found from x in scaled coordinates, and whether the search came to an end."""
    origin, unit = to_numpy(x), to_numpy(scale)
    device = x.device
    best: list[Any] = [math.inf, origin]

    def value(u, with_gradient):
        point = torch.from_numpy(origin + unit * u)[None].to(device)
        if with_gradient:
            log_prob, score = energy.log_prob_and_score(point)
            result = -float(log_prob[0]), -to_numpy(score[0]) * unit
        else:
            result = -float(energy.log_prob(point)[0]), None
        if result[0] < best[0]:
            best[:] = [result[0], origin + unit * u]
        capped = min(result[0], 1e300)  # a line search cannot do with infinity
        return (capped, result[1]) if with_gradient else capped

    with np.errstate(all="ignore"):
        if energy.has_gradient:
            options: dict[str, float] = {"maxfun": by.max_calls, "maxiter": by.max_calls}
            found = minimize(value, np.zeros_like(origin), (True,), "L-BFGS-B", jac=True, options=options)
        else:
            options = {"maxfev": by.calls_a_coordinate * len(origin), "xtol": 1e-6, "ftol": 1e-12}
            found = minimize(value, np.zeros_like(origin), (False,), "Powell", options=options)
    if not math.isfinite(best[0]) or not np.isfinite(best[1]).all():
        return None, True
    return torch.from_numpy(best[1]).to(device), bool(found.success)


def _scales(energy: Energy, x: Tensor, scale: Tensor, passes: int) -> Tensor:
    """Distances (d,) over which the energy rises by about a nat along each coordinate, to the mean of both sides."""
    d = len(x)
    here = -energy.log_prob(x[None])[0]
    scale = scale.clone()
    floor = 4e-16 * x.abs().clamp(min=1e-290)
    for _ in range(passes):
        steps = torch.diag(scale)
        energies = -energy.log_prob(torch.cat([x + steps, x - steps])).view(2, d)
        rise = 0.5 * (energies - here).sum(0)
        off = ~((rise > RISE[0]) & (rise < RISE[1]))
        if not off.any():
            break
        factor = torch.where(rise.isfinite() & (rise > 0), rise.clamp(1e-30, 1e30) ** -0.5, 10.0)
        factor = torch.where(rise == torch.inf, 0.1, factor)
        scale = torch.where(off, torch.maximum(scale * factor.clamp(1e-15, 1e15), floor), scale)
    return scale


def _laplace(energy: Energy, x: Tensor, scale: Tensor) -> Mode | None:
    """Laplace's approximation near x, polished by Newton steps where there is a gradient."""
    hessian = _hessian(energy, x, scale)  # in scaled coordinates
    if not hessian.isfinite().all():
        return None
    found = decomposed(hessian)
    if found is None:
        return None
    values, vectors = found
    if values[0] <= MIN_CURVATURE * values[-1]:
        return None
    if energy.has_gradient:
        log_prob = float(energy.log_prob(x[None])[0])
        for _ in range(NEWTON_STEPS):
            score = energy.log_prob_and_score(x[None])[1][0] * scale
            moved = x + scale * (vectors @ ((vectors.T @ score) / values))
            now = float(energy.log_prob(moved[None])[0])
            if not now > log_prob:
                break
            x, log_prob = moved, now
    covariance = ((vectors / values) @ vectors.T) * scale[:, None] * scale
    if torch.linalg.cholesky_ex(covariance).info != 0:
        return None
    log_det = float(2 * scale.log().sum() - values.log().sum())
    log_mass = float(energy.log_prob(x[None])[0]) + 0.5 * (len(x) * math.log(2 * math.pi) + log_det)
    return Mode(Standardization.from_moments(x, covariance), log_mass)


def _hessian(energy: Energy, x: Tensor, scale: Tensor) -> Tensor:
    """Hessian of the energy (d, d) in coordinates scaled by `scale`, by central differences."""
    d = len(x)
    if energy.has_gradient:
        steps = DIFFERENCE * torch.diag(scale)
        ahead, behind = (energy.log_prob_and_score(x + sign * steps)[1] * scale for sign in (1, -1))
        hessian = (behind - ahead) / (2 * DIFFERENCE)
        return 0.5 * (hessian + hessian.T)
    steps, here = torch.diag(scale), -energy.log_prob(x[None])[0]
    ahead, behind = -energy.log_prob(x + steps), -energy.log_prob(x - steps)
    i, j = torch.triu_indices(d, d, 1, device=x.device)
    both = -energy.log_prob(x + steps[i] + steps[j]) if len(i) else here.new_zeros(0)
    neither = -energy.log_prob(x - steps[i] - steps[j]) if len(i) else here.new_zeros(0)
    hessian = torch.diag(ahead + behind - 2 * here)
    mixed = 0.5 * (both + neither - ahead[i] - ahead[j] - behind[i] - behind[j] + 2 * here)
    hessian[i, j] = hessian[j, i] = mixed
    return hessian
