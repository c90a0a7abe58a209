"""Draws that follow the target, by rejection with truncated weights: what they cost, and what truncation leaves out."""

__all__ = ["RejectionLimit", "draw_by_rejection", "rejection_limit", "warn_of_loss"]

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from .._support.warnings import warn_user
from .importance import as_log_weights, effective_sample_size, log_mean_exp, pareto_k, pareto_k_limit
from .tail import fitted_tail

LARGEST_LOSS = 1e-3  # of the target's mass that is left out: a test would need about a million draws to see it
LARGEST_PRICE = 100.0  # weight at which weights are truncated, however much is left out then (unmeasured)
HALVINGS = 60
MARGIN = 1e-7  # beyond the largest weight where weights have no tail
PATIENCE = 40.0  # rounds in units of the price: a draw that is left after them has a probability of exp(-40)


@dataclass(frozen=True)
class RejectionLimit:
    """Where weights are truncated, and what follows from it.

    Attributes
    ----------
    log_weight : float
        Log weight at which weights are truncated.
    price : float
        Weighted draws, each an evaluation of the energy, that a draw takes on average.
    loss : float
        Bound on the total variation between the draws and the target: the estimated mass of the weights above the
        limit.
    """

    log_weight: float
    price: float
    loss: float


def rejection_limit(log_weights, largest_loss=LARGEST_LOSS, largest_price=LARGEST_PRICE):
    """What draws from the target cost: where to truncate weights for rejection, the price and what is left out.

    A draw of density q and weight w = p / q, of mean one, is kept with probability ``min(1, w / c)``. What is kept has
    a density in proportion to ``min(w, c) q``; its total variation to p is at most the loss ``E_q[max(0, w - c)]``, for
    p is a mixture of it and of what is left out. A draw takes c weighted draws, divided by one minus the loss. The
    limit c is the smallest whose loss is at most `largest_loss`, by the weights and by a generalised Pareto
    distribution of their tail.

    Parameters
    ----------
    log_weights : array-like of shape (n,)
        Log weights of draws; ``-inf`` is a weight of zero.
    largest_loss : float, default=0.001
        Total variation that is put up with.
    largest_price : float, default=100.0
        Largest limit, in units of the mean weight; where it does not do, the loss is larger than `largest_loss`.

    Returns
    -------
    RejectionLimit
        ``log_weight``, ``price`` and ``loss``.

    Raises
    ------
    ValueError
        When `pareto_k` is above `pareto_k_limit`: the weights say too little of those that are larger still.

    References
    ----------
    Liu, Chen and Wong (1998), "Rejection control and sequential importance sampling", JASA 93(443).

    Examples
    --------
    >>> import numpy as np
    >>> from skcds.importance import rejection_limit
    >>> x = np.random.RandomState(0).standard_normal(10_000)
    >>> limit = rejection_limit(0.3 * x)
    >>> f"{limit.price:.1f} evaluations a draw, {limit.loss:.4f} left out"
    '2.1 evaluations a draw, 0.0010 left out'
    """
    log_weights = as_log_weights(log_weights)
    n, k = len(log_weights), pareto_k(log_weights)
    if k > pareto_k_limit(n):
        share = 0.0 if np.isneginf(log_weights).all() else effective_sample_size(log_weights) / n
        raise ValueError(
            f"The weights of {n} draws have Pareto k = {k:.2f}, above {pareto_k_limit(n):.3g}, and a normalised ESS of "
            f"{share:.3g}: they cannot carry draws from the target. Fit for longer, or move the draws by polish=."
        )
    log_mean = log_mean_exp(log_weights)
    weights = np.exp(log_weights - log_mean)
    if np.isneginf(k):
        largest = float(weights.max()) * (1 + MARGIN)
        return RejectionLimit(log_mean + math.log(largest), largest, 0.0)
    tail = fitted_tail(log_weights - log_mean)

    def loss(c: float) -> float:
        return max(float(np.maximum(weights - c, 0).mean()), tail.excess_over(c, weights))

    low, high = 1.0, largest_price
    if loss(high) <= largest_loss:
        for _ in range(HALVINGS):
            middle = math.sqrt(low * high)
            low, high = (low, middle) if loss(middle) <= largest_loss else (middle, high)
    left_out = loss(high)
    return RejectionLimit(log_mean + math.log(high), high / (1 - left_out), left_out)


def warn_of_loss(limit: RejectionLimit) -> None:
    """Warn where more is left out than `LARGEST_LOSS`."""
    if limit.loss > LARGEST_LOSS * (1 + 1e-9):
        warn_user(
            f"exact=True leaves out what makes a total variation of up to {limit.loss:.2g} to the target, at "
            f"{limit.price:.0f} evaluations a draw: the weights have a heavy tail. Fit for longer, or use the weights "
            "of sample_weighted.",
            ConvergenceWarning,
        )


@torch.no_grad()
def draw_by_rejection(model, target, normal: Callable, limit: RejectionLimit) -> Tensor:
    """Draws (n, d) in standardised coordinates, each the first of its own sequence of weighted draws that is kept.

    The first of each sequence is the one-step draw of the same latent.

    Parameters
    ----------
    model : OneStepModel or ShortcutModel
        Its map is invertible.
    target : StandardizedTarget
        The density.
    normal : callable
        ``normal(k, shape)``, standard normal numbers of stream k, by default (n, d).
    limit : RejectionLimit
        Where weights are truncated.

    Raises
    ------
    RuntimeError
        When a draw is still missing after so many rounds that chance cannot be the reason.
    """
    rounds = math.ceil(PATIENCE * limit.price)
    for k in range(rounds):
        latent = normal(2 * k)
        if not k:
            drawn, pending = torch.empty_like(latent), torch.arange(len(latent), device=latent.device)
        log_uniform = torch.special.log_ndtr(normal(2 * k + 1, (len(latent),)).double())
        z, log_weight = model.call_and_log_weight(latent[pending], target)
        kept = log_uniform[pending] < log_weight - limit.log_weight
        drawn[pending[kept]] = z[kept].to(drawn.dtype)
        pending = pending[~kept]
        if not len(pending):
            return drawn
    raise RuntimeError(
        f"Of {len(drawn)} draws by rejection {len(pending)} are missing after {rounds} rounds, and {limit.price:.3g} "
        "should do on average: the energy gives other values than before."
    )
