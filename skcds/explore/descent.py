"""Many climbs at once: BFGS from every point of a batch, one call of the energy for all of them in turn."""

__all__ = ["descend"]

import torch
from torch import Tensor

from ..density.energy import Energy
from .mode_stages import Climbs

SUFFICIENT = 1e-4  # share of the predicted decrease that a step has to bring (Armijo; Nocedal & Wright 2006, 3.4)
SHRINK = 0.25  # of a step that did not
SMALLEST_STEP = 1e-8  # in units of the quasi-Newton step, after which a descent starts again from the gradient
ENDED = 1e-7  # nats that a quasi-Newton step is predicted to bring, with which a descent has ended
FIRST_STEP, RESTART = 1.0, 1e-3  # length of the first step, in the coordinates of the energy, and after such a start


def descend(energy: Energy, points: Tensor, max_iter: int = Climbs.max_steps) -> Tensor:
    """Points (n, d) of lower energy, most of them minima, from points (n, d).

    Parameters
    ----------
    energy : Energy
        With a gradient.
    points : Tensor
        Where the descents start. One that starts outside of the support stays there.
    max_iter : int, default=150
        Calls of the energy; each is of the points that have not ended.

    Returns
    -------
    Tensor
        Where they end, float64.

    Raises
    ------
    Spent
        When a limit is reached on the way.
    """
    x = points.double().clone()
    value, gradient = _evaluate(energy, x)
    n, d = x.shape
    identity = torch.eye(d, dtype=x.dtype, device=x.device)
    inverse = identity * _first_scale(gradient)[:, None, None]
    step, fresh = torch.ones(n, dtype=x.dtype, device=x.device), torch.ones(n, dtype=torch.bool, device=x.device)
    rows = torch.arange(n, device=x.device)[value.isfinite()]
    for _ in range(max_iter):
        direction = -(inverse[rows] @ gradient[rows, :, None])[..., 0]
        slope = (direction * gradient[rows]).sum(1)
        going = slope < -ENDED
        rows, direction, slope = rows[going], direction[going], slope[going]
        if not len(rows):
            break
        change = step[rows, None] * direction
        new_value, new_gradient = _evaluate(energy, x[rows] + change)
        lower = new_value <= value[rows] + SUFFICIENT * step[rows] * slope
        kept, gone = rows[lower], rows[~lower]
        yielded = new_gradient[lower] - gradient[kept]
        first = fresh[kept]
        inverse[kept[first]] = identity * _scale_of(change[lower][first], yielded[first])[:, None, None]
        inverse[kept] = _updated(inverse[kept], change[lower], yielded)
        fresh[kept] = False
        x[kept] += change[lower]
        value[kept], gradient[kept], step[kept] = new_value[lower], new_gradient[lower], 1.0
        step[gone] *= SHRINK
        stuck = gone[step[gone] < SMALLEST_STEP]
        inverse[stuck] = identity * _first_scale(gradient[stuck])[:, None, None]
        step[stuck], fresh[stuck] = RESTART, True
    return x


def _evaluate(energy: Energy, x: Tensor) -> tuple[Tensor, Tensor]:
    log_prob, score = energy.log_prob_and_score(x)
    return -log_prob, -score


def _first_scale(gradient: Tensor) -> Tensor:
    """Of the inverse Hessian (n,) with which the first step has the length that it should."""
    return FIRST_STEP / gradient.norm(dim=1).clamp(min=1e-290)


def _scale_of(change: Tensor, yielded: Tensor) -> Tensor:
    """Scale (n,) of the inverse Hessian that a first step tells of (Nocedal & Wright 2006, 6.20)."""
    scale = (change * yielded).sum(1) / yielded.square().sum(1).clamp(min=1e-290)
    return torch.where(scale > 0, scale, change.norm(dim=1) / yielded.norm(dim=1).clamp(min=1e-290))


def _updated(inverse: Tensor, change: Tensor, yielded: Tensor) -> Tensor:
    """Inverse Hessians (n, d, d) after steps and differences of gradients (n, d); as they are where these disagree."""
    curvature = (change * yielded).sum(1)
    usable = curvature > 1e-10 * change.norm(dim=1) * yielded.norm(dim=1)
    rho = torch.where(usable, curvature, 1.0).reciprocal()[:, None, None]
    outer = change[:, :, None] * change[:, None, :]
    moved = (inverse @ yielded[:, :, None])[..., 0]
    along = (yielded * moved).sum(1)[:, None, None]
    cross = moved[:, :, None] * change[:, None, :]
    updated = inverse - rho * (cross + cross.transpose(1, 2)) + rho * (1 + rho * along) * outer
    return torch.where(usable[:, None, None], updated, inverse)
