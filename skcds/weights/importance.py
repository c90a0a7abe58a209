"""Importance weights: evidence, effective sample size and their reliability.

A sampler that knows the density of its own draws can weigh them. The functions here take ``log_weights`` with
``E[exp(log_weight)] = Z``, the normalising constant of the target. They estimate log Z and say how far the estimate can
be trusted. `WeightedSample` holds draws and log weights and reads everything else off them.

Every number in this module comes from the sampler's own draws. **None of them can see a mode that the sampler has
missed**. A sampler that covers one of two equal modes perfectly has constant weights, the largest possible effective
sample size, the smallest Pareto k, and a log evidence that is too low by log 2. Before you trust a good score, compare
with exact samples, with another sampler, or with what is known of the target.
"""

from numbers import Integral

import numpy as np
from scipy.special import logsumexp

from .tail import excesses, generalised_pareto

__all__ = [
    "effective_sample_size",
    "log_evidence",
    "log_mean_exp",
    "pareto_k",
    "pareto_k_limit",
    "systematic_resample",
    "total_variation",
    "truncate_log_weights",
]

LARGEST_K = 0.7  # that is reliable however many draws there are: beyond it they would have to be too many


def log_mean_exp(log_weights):
    """Logarithm of the mean of ``exp(log_weights)``, safe from overflow.

    Parameters
    ----------
    log_weights : array-like of shape (n,)
        Log weights; ``-inf`` is a weight of zero.

    Returns
    -------
    float
        ``-inf`` if every weight is zero.

    Examples
    --------
    >>> import numpy as np
    >>> from skcds.importance import log_mean_exp
    >>> round(log_mean_exp(1000 + np.log([1, 2, 3])) - 1000, 6)  # log 2
    0.693147
    """
    log_weights = as_log_weights(log_weights)
    return float(logsumexp(log_weights) - np.log(len(log_weights)))


def effective_sample_size(log_weights):
    """Effective sample size ``(sum w)^2 / sum w^2`` (Kong 1992), a count between 1 and n.

    Adding a constant to the log weights does not change it. It cannot see a missed mode.

    Parameters
    ----------
    log_weights : array-like of shape (n,)
        Log weights; ``-inf`` is a weight of zero.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If every weight is zero.

    Examples
    --------
    >>> import numpy as np
    >>> from skcds.importance import effective_sample_size
    >>> effective_sample_size([7.0, 7.0, 7.0, -np.inf])
    3.0
    """
    w = scaled_weights(log_weights)  # (n,), the largest is 1
    return float(np.clip(w.sum() ** 2 / (w**2).sum(), 1, len(w)))


def log_evidence(log_weights):
    """Estimate log Z as the log mean weight, with its standard error.

    The standard error is the delta method's, ``sqrt(1 / ESS - 1 / n)``. It is computed from the same weights and
    never exceeds 1. So it is far too small when a few draws carry all the weight: read it together with `pareto_k`.

    Parameters
    ----------
    log_weights : array-like of shape (n,)
        Log weights with ``E[exp(log_weight)] = Z``; ``-inf`` is a weight of zero.

    Returns
    -------
    estimate : float
    standard_error : float
        NaN for a single draw, which says nothing about its own spread.

    Raises
    ------
    ValueError
        If every weight is zero.

    Examples
    --------
    >>> import numpy as np
    >>> from skcds.importance import log_evidence
    >>> estimate, standard_error = log_evidence(np.log([1, 2, 3, 2]))
    >>> f"{estimate:.4f} +- {standard_error:.4f}"
    '0.6931 +- 0.1768'
    """
    w = scaled_weights(log_weights)  # (n,), the largest is 1
    n = len(w)
    se = w.std() / (w.mean() * np.sqrt(n)) if n > 1 else np.nan  # = sqrt(1 / ESS - 1 / n), without the cancellation
    return log_mean_exp(log_weights), float(se)


def pareto_k(log_weights):
    """Pareto k: the shape of the weights' upper tail, as in Pareto smoothed importance sampling (PSIS).

    Below 0.5 the weights have a finite variance and estimates converge at the usual rate. Above `pareto_k_limit`
    estimates and their standard errors are unreliable. The limit is 0.7 from 2200 draws on and lower for fewer. The
    number cannot see a missed mode.

    It is the shape of a generalised Pareto distribution, fitted to the ``ceil(min(0.2 n, 3 sqrt(n)))`` largest weights
    less the next largest one. The method is that of [2]_, with the weakly informative prior of [1]_.

    Parameters
    ----------
    log_weights : array-like of shape (n,)
        Log weights; ``-inf`` is a weight of zero.

    Returns
    -------
    float
        ``inf`` if there are too few weights to judge by: fewer than five in the tail that differ from the next largest
        one and from zero. That is always so with 20 draws or fewer. ``-inf`` if the largest weights agree to eight
        digits, so that there is no tail. Hence ``pareto_k(w) > pareto_k_limit(len(w))`` is "not shown to be reliable".

    References
    ----------
    .. [1] Vehtari, Simpson, Gelman, Yao and Gabry (2024), "Pareto smoothed importance sampling", JMLR 25(72).
    .. [2] Zhang and Stephens (2009), "A new and efficient estimation method for the generalized Pareto
       distribution", Technometrics 51(3).

    Examples
    --------
    >>> import numpy as np
    >>> from skcds.importance import pareto_k
    >>> u = (np.arange(10_000) + 0.5) / 10_000
    >>> round(pareto_k(-0.9 * np.log(u)), 2)  # weights u ** -0.9 have a tail of shape 0.9
    0.88
    >>> pareto_k(np.zeros(1000))
    -inf
    """
    excess, _ = excesses(as_log_weights(log_weights))
    if excess is None:
        return np.inf
    return generalised_pareto(excess)[0] if len(excess) else -np.inf


def pareto_k_limit(n):
    """Largest Pareto k at which the weights of n draws can be relied on: ``min(1 - 1 / log10(n), 0.7)``.

    For a larger k, estimates from n draws have a large error with a probability that is not small (section 3.2.4 of
    [1]_). From 2200 draws on the limit is 0.7. More draws would help in theory, but the number needed is soon out of
    reach.

    Parameters
    ----------
    n : int
        How many weights, at least one.

    Returns
    -------
    float
        ``-inf`` for a single one.

    Raises
    ------
    ValueError
        If there are none.

    References
    ----------
    .. [1] Vehtari, Simpson, Gelman, Yao and Gabry (2024), "Pareto smoothed importance sampling", JMLR 25(72).

    Examples
    --------
    >>> from skcds.importance import pareto_k_limit
    >>> [round(pareto_k_limit(n), 2) for n in (100, 1000, 10_000)]
    [0.5, 0.67, 0.7]
    """
    if n < 1:
        raise ValueError(f"n is the number of weights, at least 1; got {n}.")
    return -np.inf if n == 1 else float(min(1 - 1 / np.log10(n), LARGEST_K))


def total_variation(log_weights):
    """Total variation distance between the density of the draws and the target, as the weights see it.

    For weights ``w = p / q`` that are normalised to mean one, it is ``E_q[max(0, 1 - w)] = E_q|1 - w| / 2``: the share
    of the draws that would have to move. It is estimated by the mean over the draws of ``max(0, 1 - w / mean(w))``.
    Expectations of functions with values from 0 to 1 differ by at most this between unweighted draws and target.

    For path weights it is the distance between the distributions of whole paths, which is at least that of their ends.
    Log-normal weights with a normalised ESS of s have ``2 Phi(sqrt(-log(s)) / 2) - 1``: .16 with s = .85, .28 with .6,
    .44 with .25. It cannot see a missed mode.

    Parameters
    ----------
    log_weights : array-like of shape (n,)
        Log weights, up to a constant; ``-inf`` is a weight of zero.

    Returns
    -------
    float
        Between 0 and 1. It is 1 if every weight is zero, that is if no draw lies in the target's support.

    Examples
    --------
    >>> import numpy as np
    >>> from skcds.importance import total_variation
    >>> round(total_variation(np.log([1.0, 1.0, 2.0, 4.0])), 6)  # two lack half of the mean
    0.25
    """
    log_weights = as_log_weights(log_weights)
    mean = log_mean_exp(log_weights)
    if np.isneginf(mean):
        return 1.0
    return float(-np.expm1(np.minimum(log_weights - mean, 0)).mean())


def truncate_log_weights(log_weights):
    """Truncate weights at ``sqrt(n)`` times their mean.

    The truncated weights are biased low, by an amount that vanishes as n grows, and always have a finite variance.
    Use them to resample or to fit, not for an unbiased estimate of Z.

    Parameters
    ----------
    log_weights : array-like of shape (n,)
        Log weights; ``-inf`` is a weight of zero.

    Returns
    -------
    ndarray of shape (n,)

    References
    ----------
    Ionides (2008), "Truncated importance sampling", Journal of Computational and Graphical Statistics 17(2).

    Examples
    --------
    >>> import numpy as np
    >>> from skcds.importance import truncate_log_weights
    >>> log_weights = np.log([1.0, 1.0, 1.0, 17.0])
    >>> np.exp(truncate_log_weights(log_weights))  # mean 5, n 4: cut at 10
    array([ 1.,  1.,  1., 10.])
    """
    log_weights = as_log_weights(log_weights)
    return np.minimum(log_weights, log_mean_exp(log_weights) + 0.5 * np.log(len(log_weights)))


def systematic_resample(log_weights, n, rng):
    """Draw n indices in proportion to the weights with a single uniform number.

    With normalised weights w, index i comes ``floor(n w_i)`` or ``ceil(n w_i)`` times, and ``n w_i`` times in
    expectation. An index of weight zero never comes. The indices are sorted: shuffle them if the order matters.

    Parameters
    ----------
    log_weights : array-like of shape (m,)
        Log weights; ``-inf`` is a weight of zero.
    n : int
        How many indices to draw.
    rng : numpy.random.RandomState or numpy.random.Generator
        Source of the uniform number.

    Returns
    -------
    ndarray of shape (n,)
        Indices into ``log_weights``, in increasing order.

    Raises
    ------
    ValueError
        If every weight is zero and n is not, or n is not an integer of at least 0.

    References
    ----------
    Douc, Cappe and Moulines (2005), "Comparison of resampling schemes for particle filtering", ISPA.

    Examples
    --------
    >>> import numpy as np
    >>> from skcds.importance import systematic_resample
    >>> systematic_resample(np.log([1, 2, 1]), 8, np.random.RandomState(0))
    array([0, 0, 1, 1, 1, 1, 2, 2])
    """
    if not isinstance(n, Integral) or isinstance(n, bool) or n < 0:
        raise ValueError(f"The number of draws to resample must be an integer of at least 0, not {n!r}.")
    if n == 0:
        return np.empty(0, dtype=np.intp)
    cumulative = np.cumsum(scaled_weights(log_weights))  # (m,)
    positions = (np.arange(int(n)) + rng.uniform()) / n
    positions = np.minimum(positions, np.nextafter(1, 0))  # rounding must not pass the last weight
    return np.searchsorted(cumulative / cumulative[-1], positions, side="right")


def as_log_weights(log_weights):
    """Log weights as a float64 array (n,), n > 0, without NaN and +inf."""
    log_weights = np.asarray(log_weights, dtype=np.float64)
    if log_weights.ndim != 1 or len(log_weights) == 0:
        raise ValueError(f"Log weights must be a non-empty array of shape (n,), not of shape {log_weights.shape}.")
    bad = np.isnan(log_weights) | np.isposinf(log_weights)
    if bad.any():
        raise ValueError(
            f"{bad.sum()} of {len(log_weights)} log weights are NaN or +inf, the first at index {bad.argmax()}; "
            "a draw outside the support has log weight -inf."
        )
    return log_weights


def scaled_weights(log_weights):
    """Weights (n,) scaled so that the largest is 1."""
    log_weights = as_log_weights(log_weights)
    largest = log_weights.max()
    if np.isneginf(largest):
        raise ValueError(
            f"All {len(log_weights)} log weights are -inf: no draw lies in the target's support, "
            "so there is nothing to estimate from."
        )
    return np.exp(log_weights - largest)
