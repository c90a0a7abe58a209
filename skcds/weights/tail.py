"""The upper tail of weights: a generalised Pareto distribution of the largest ones."""

__all__ = ["Tail", "excesses", "fitted_tail", "generalised_pareto"]

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

MIN_TAIL = 5  # fewest exceedances a generalised Pareto distribution is fitted to
SMALLEST_EXCESS = 1e-300  # an exceedance below it is a weight lost to underflow, or a tie with the cutoff
NO_TAIL = 1e-8  # largest weights that agree to this relative precision have no tail
SMALLEST_SHAPE = 1e-6  # in the place of zero, of the exponential distribution


@dataclass(frozen=True)
class Tail:
    """Weights above a cutoff: their share, and the generalised Pareto distribution of how far above it they are.

    Attributes
    ----------
    cutoff : float
        In the units of the weights.
    share : float
        Of the weights, that are above it.
    shape, scale : float
        Of the distribution.
    """

    cutoff: float
    share: float
    shape: float
    scale: float

    def excess_over(self, c: float, weights: np.ndarray) -> float:
        """Mean of ``max(0, w - c)``, by weights (n,) up to the cutoff, by the distribution above; may be infinite."""
        if self.shape >= 1:
            return math.inf
        below = float(np.maximum(np.minimum(weights, self.cutoff) - c, 0).mean())
        reach = 1 + self.shape * max(c - self.cutoff, 0.0) / self.scale
        if reach <= 0:  # beyond the end of a distribution that has one
            return below
        return below + self.share * self.scale / (1 - self.shape) * reach ** (1 - 1 / self.shape)


def fitted_tail(log_weights: np.ndarray) -> Tail:
    """The tail that `pareto_k` looks at, of log weights (n,) for which that is finite."""
    excess, cutoff = excesses(log_weights)
    assert excess is not None and len(excess)
    shape, scale = generalised_pareto(excess)
    shape, largest = shape if abs(shape) > SMALLEST_SHAPE else SMALLEST_SHAPE, float(np.exp(log_weights.max()))
    return Tail(cutoff * largest, len(excess) / len(log_weights), shape, scale * largest)


def excesses(log_weights: np.ndarray) -> tuple[np.ndarray | None, float]:
    """The ``ceil(min(0.2 n, 3 sqrt(n)))`` largest weights less the next largest one, sorted, and that one.

    In units of the largest weight. None in the place of too few to judge by, none at all where the largest agree.
    """
    n = len(log_weights)
    n_tail = int(np.ceil(min(0.2 * n, 3 * np.sqrt(n))))
    if n_tail < MIN_TAIL or np.isneginf(log_weights.max()):
        return None, 0.0
    tail = np.sort(np.partition(log_weights, n - n_tail - 1)[n - n_tail - 1 :])  # (n_tail + 1,), the cutoff first
    tail = np.exp(tail - tail[-1])
    excess, cutoff = tail[1:] - tail[0], float(tail[0])
    if excess[-1] <= NO_TAIL:
        return excess[:0], cutoff
    excess = excess[excess > SMALLEST_EXCESS]
    return (None if len(excess) < MIN_TAIL else excess), cutoff


def generalised_pareto(x: np.ndarray) -> tuple[float, float]:
    """Shape and scale of a generalised Pareto distribution fitted to sorted positive x (m,).

    The shape is shrunk towards 0.5 (Vehtari et al. 2024); the scale goes with the shape before that.
    """
    m, largest = len(x), float(x[-1])
    x = x / largest
    n_grid = 30 + int(np.sqrt(m))
    quartile = x[int(m / 4 + 0.5) - 1]
    # candidates for b = -k / sigma, all below 1 = 1 / max(x), weighted by their profile likelihood
    b = 1 + (1 - np.sqrt(n_grid / (np.arange(n_grid) + 0.5))) / (3 * quartile)  # (n_grid,)
    b[b == 0] = 1e-30  # the exponential distribution, as a limit
    k = np.log1p(-b[:, None] * x).mean(1)  # (n_grid,)
    log_likelihood = m * (np.log(-b / k) - k - 1)
    weights = np.exp(log_likelihood - logsumexp(log_likelihood))
    b = weights @ b
    k = np.log1p(-b * x).mean()
    shape = float((m * k + 10 * 0.5) / (m + 10))  # the prior: worth ten observations, centred at 0.5
    return shape, float(-k / b) * largest
