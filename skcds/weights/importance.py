"""Importance weights: evidence, effective sample size and their reliability.

A sampler that knows the density of its own draws can weigh them. With ``log_weights`` such that
``E[exp(log_weight)] = Z``, the normalising constant of the target, the functions here estimate log Z and say how far
the estimate can be trusted; `WeightedSample` holds draws and log weights and reads everything else off them.

Every number in this module comes from the sampler's own draws. **None of them can see a mode that the sampler has
missed**: a sampler that covers one of two equal modes perfectly has constant weights, the largest possible effective
sample size, the smallest Pareto k, and a log evidence that is too low by log 2. Compare with exact samples, with
another sampler or with what is known of the target before trusting a good score.
"""

from dataclasses import dataclass
from functools import cached_property
from numbers import Integral

import numpy as np
from scipy.special import logsumexp
from sklearn.exceptions import ConvergenceWarning

from .._support.forks import random_state_of
from .._support.warnings import warn_user
from ..io.export import checked_names, to_arviz, to_frame

__all__ = [
    "WeightedSample",
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
MIN_TAIL = 5  # fewest exceedances a generalised Pareto distribution is fitted to
SMALLEST_EXCESS = 1e-300  # an exceedance below it is a weight lost to underflow, or a tie with the cutoff
NO_TAIL = 1e-8  # largest weights that agree to this relative precision have no tail


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
    log_weights = _as_log_weights(log_weights)
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
    w = _scaled_weights(log_weights)  # (n,), the largest is 1
    return float(np.clip(w.sum() ** 2 / (w**2).sum(), 1, len(w)))


def log_evidence(log_weights):
    """Estimate log Z as the log mean weight, with its standard error.

    The standard error is the delta method's, ``sqrt(1 / ESS - 1 / n)``. It is computed from the same weights and
    never exceeds 1, so it is far too small when a few draws carry all the weight: read it together with `pareto_k`.

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
    w = _scaled_weights(log_weights)  # (n,), the largest is 1
    n = len(w)
    se = w.std() / (w.mean() * np.sqrt(n)) if n > 1 else np.nan  # = sqrt(1 / ESS - 1 / n), without the cancellation
    return log_mean_exp(log_weights), float(se)


def pareto_k(log_weights):
    """Pareto k: the shape of the weights' upper tail, as in Pareto smoothed importance sampling (PSIS).

    Below 0.5 the weights have a finite variance and estimates converge at the usual rate; above `pareto_k_limit`, which
    is 0.7 from 2200 draws on and lower for fewer, estimates and their standard errors are unreliable. It cannot see a
    missed mode.

    A generalised Pareto distribution is fitted, by the method of [2]_ with the weakly informative prior of [1]_, to the
    ``ceil(min(0.2 n, 3 sqrt(n)))`` largest weights less the next largest one.

    Parameters
    ----------
    log_weights : array-like of shape (n,)
        Log weights; ``-inf`` is a weight of zero.

    Returns
    -------
    float
        ``inf`` where there are too few weights to judge by: fewer than five in the tail that differ from the next
        largest one and from zero, as always with 20 draws or fewer. ``-inf`` where the largest weights agree to eight
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
    log_weights = _as_log_weights(log_weights)
    n = len(log_weights)
    n_tail = int(np.ceil(min(0.2 * n, 3 * np.sqrt(n))))
    if n_tail < MIN_TAIL or np.isneginf(log_weights.max()):
        return np.inf
    tail = np.sort(np.partition(log_weights, n - n_tail - 1)[n - n_tail - 1 :])  # (n_tail + 1,), the cutoff first
    tail = np.exp(tail - tail[-1])
    excess = tail[1:] - tail[0]
    if excess[-1] <= NO_TAIL:
        return -np.inf
    excess = excess[excess > SMALLEST_EXCESS]
    if len(excess) < MIN_TAIL:
        return np.inf
    return _generalised_pareto_shape(excess)


def _generalised_pareto_shape(x):
    """Shape k of a generalised Pareto distribution fitted to sorted positive x (m,), shrunk towards 0.5."""
    m = len(x)
    x = x / x[-1]
    n_grid = 30 + int(np.sqrt(m))
    quartile = x[int(m / 4 + 0.5) - 1]
    # candidates for b = -k / sigma, all below 1 = 1 / max(x), weighted by their profile likelihood
    b = 1 + (1 - np.sqrt(n_grid / (np.arange(n_grid) + 0.5))) / (3 * quartile)  # (n_grid,)
    b[b == 0] = 1e-30  # the exponential distribution, as a limit
    k = np.log1p(-b[:, None] * x).mean(1)  # (n_grid,)
    log_likelihood = m * (np.log(-b / k) - k - 1)
    weights = np.exp(log_likelihood - logsumexp(log_likelihood))
    k = np.log1p(-(weights @ b) * x).mean()
    return float((m * k + 10 * 0.5) / (m + 10))  # the prior: worth ten observations, centred at 0.5


def pareto_k_limit(n):
    """Largest Pareto k at which the weights of n draws can be relied on: ``min(1 - 1 / log10(n), 0.7)``.

    For a larger k, estimates from n draws have a large error with a probability that is not small (section 3.2.4 of
    [1]_). From 2200 draws on the limit is 0.7: more draws would help in theory, but the number needed soon is out of
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
    Expectations of functions with values from 0 to 1 differ by at most so much between unweighted draws and target.

    Of path weights it is the distance between the laws of whole paths, at least that of their ends. Weights that are
    log-normal with an effective share s have ``2 Phi(sqrt(-log(s)) / 2) - 1``: .16 with s = .85, .28 with .6, .44 with
    .25. It cannot see a missed mode.

    Parameters
    ----------
    log_weights : array-like of shape (n,)
        Log weights, up to a constant; ``-inf`` is a weight of zero.

    Returns
    -------
    float
        Between 0 and 1; 1 where every weight is zero, for draws without any in the target's support.

    Examples
    --------
    >>> import numpy as np
    >>> from skcds.importance import total_variation
    >>> round(total_variation(np.log([1.0, 1.0, 2.0, 4.0])), 6)  # two lack half of the mean
    0.25
    """
    log_weights = _as_log_weights(log_weights)
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
    log_weights = _as_log_weights(log_weights)
    return np.minimum(log_weights, log_mean_exp(log_weights) + 0.5 * np.log(len(log_weights)))


def systematic_resample(log_weights, n, rng):
    """Draw n indices in proportion to the weights with a single uniform number.

    Index i comes ``floor(n w_i)`` or ``ceil(n w_i)`` times, w normalised, and ``n w_i`` times in expectation;
    an index of weight zero never comes. The indices are sorted: shuffle them where the order matters.

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
        If every weight is zero and n is not, or n is no count.

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
    cumulative = np.cumsum(_scaled_weights(log_weights))  # (m,)
    positions = (np.arange(int(n)) + rng.uniform()) / n
    positions = np.minimum(positions, np.nextafter(1, 0))  # rounding must not pass the last weight
    return np.searchsorted(cumulative / cumulative[-1], positions, side="right")


@dataclass(frozen=True, eq=False, repr=False)
class WeightedSample:
    """Draws of a sampler with their log importance weights, and what follows from them.

    All properties are computed from the sampler's own draws and **cannot see a missed mode** (see the module's
    docstring). The arrays are not copied; do not change them in place.

    Parameters
    ----------
    samples : array-like of shape (n, d)
        Draws, kept as float64. Rows of non-zero weight must be finite.
    log_weights : array-like of shape (n,)
        Log weights, kept as float64; ``E[exp(log_weight)] = Z``. ``-inf`` is a weight of zero, as of a draw outside the
        target's support; NaN and ``+inf`` are errors.
    is_bound : bool
        Whether ``E[log_weight] <= log Z`` is guaranteed: always for path weights, and for the weights of a one-step map
        where the map is injective. A map that is not injective counts some of the target's mass more than once.
    violation_share : float, default=0.0
        Share of draws where the map was found not to be injective. Above zero, ``is_bound`` must be False.
    n_energy_evals : int, default=0
        Energy evaluations spent on the weights.
    feature_names : array-like of str, default=None
        Names of the coordinates, for data frames and ArviZ; by default x0, x1 and so on.

    See Also
    --------
    effective_sample_size, log_evidence, pareto_k, total_variation : The definitions of the properties.

    Notes
    -----
    Where every weight is zero, `ess` is 0, `log_evidence` is ``-inf`` with a standard error of NaN, and
    `total_variation` is 1; what needs normalised weights (`weights`, `resample`, `expectation`) raises.

    Examples
    --------
    Draws of N(0, 1.5^2) weighted for the density exp(-x^2 / 2), whose log Z is log sqrt(2 pi) = 0.919:

    >>> import numpy as np
    >>> from skcds.importance import WeightedSample
    >>> z = np.random.RandomState(0).normal(size=(10_000, 1))
    >>> x = 1.5 * z
    >>> log_proposal = -0.5 * (z**2).sum(1) - np.log(1.5 * np.sqrt(2 * np.pi))
    >>> W = WeightedSample(x, -0.5 * (x**2).sum(1) - log_proposal, is_bound=True)
    >>> W
    WeightedSample(n=10000, d=1, ess=8342.2, log_evidence=0.9259 ± 0.0045, pareto_k=-1.79, is_bound=True)
    >>> W.resample(3, random_state=1).shape
    (3, 1)
    >>> mean, se = W.expectation(lambda x: x**2, return_se=True)  # 1 for N(0, 1)
    >>> abs(mean - 1) < 5 * se
    array([ True])
    """

    samples: np.ndarray
    log_weights: np.ndarray
    is_bound: bool
    violation_share: float = 0.0
    n_energy_evals: int = 0
    feature_names: np.ndarray | None = None

    def __post_init__(self):
        fields = {
            "samples": np.asarray(self.samples, dtype=np.float64),
            "log_weights": _as_log_weights(self.log_weights),
            "is_bound": bool(self.is_bound),
            "violation_share": float(self.violation_share),
            "n_energy_evals": int(self.n_energy_evals),
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)  # the only time: the class is frozen
        _check_samples(self.samples, self.log_weights)
        names = checked_names(self.feature_names, self.samples.shape[1], "feature_names")
        object.__setattr__(self, "feature_names", names)
        if not 0 <= self.violation_share <= 1:
            raise ValueError(f"violation_share is a share of the draws, from 0 to 1, not {self.violation_share}.")
        if self.is_bound and self.violation_share > 0:
            raise ValueError(
                f"The map was found not to be injective at {self.violation_share:.2%} of the draws, so their weights "
                "guarantee no bound: is_bound must be False."
            )
        if self.n_energy_evals < 0:
            raise ValueError(f"n_energy_evals is a count and cannot be {self.n_energy_evals}.")

    @property
    def weights(self):
        """Normalised weights, an ndarray of shape (n,) that sums to 1."""
        w = _scaled_weights(self.log_weights)
        return w / w.sum()

    @property
    def ess(self):
        """Effective sample size, between 1 and n; see `effective_sample_size`. 0 if every weight is zero."""
        return 0.0 if self._all_zero else effective_sample_size(self.log_weights)

    @property
    def total_variation(self):
        """Total variation between the draws without their weights and the target; see `total_variation`."""
        return total_variation(self.log_weights)

    @property
    def _all_zero(self):
        return bool(np.isneginf(self.log_weights).all())

    @property
    def log_evidence(self):
        """Estimate of log Z, the log mean weight; where `is_bound`, its expectation is at most log Z too.

        ``-inf`` if every weight is zero.
        """
        return log_mean_exp(self.log_weights)

    @property
    def log_evidence_se(self):
        """Standard error of `log_evidence`; to be believed where `pareto_k` is at most `pareto_k_limit`.

        NaN for a single draw or if every weight is zero.
        """
        return np.nan if self._all_zero else log_evidence(self.log_weights)[1]

    @cached_property
    def pareto_k(self):
        """Shape of the weights' upper tail; above `pareto_k_limit` the estimates are unreliable. See `pareto_k`."""
        return pareto_k(self.log_weights)

    @property
    def pareto_k_limit(self):
        """Largest `pareto_k` that is reliable with so many draws: 0.7, or less below 2200. See `pareto_k_limit`."""
        return pareto_k_limit(len(self.log_weights))

    @property
    def elbo(self):
        """Mean log weight. Only where `is_bound` is it an evidence lower bound.

        Even then its expectation is the bound: the estimate itself varies by `elbo_se`. ``-inf`` if any draw has
        weight zero.
        """
        return float(self.log_weights.mean())

    @property
    def elbo_se(self):
        """Standard error of `elbo`; NaN for a single draw or if any draw has weight zero."""
        n = len(self.log_weights)
        if n == 1 or np.isneginf(self.log_weights).any():
            return np.nan
        return float(self.log_weights.std(ddof=1) / np.sqrt(n))

    def resample(self, n, random_state=None):
        """Draw n rows in proportion to the weights, with repetition, by systematic resampling.

        Parameters
        ----------
        n : int
            How many rows to draw. More than `ess` of them repeat each other; 0 gives an empty array.
        random_state : int, RandomState instance, numpy.random.Generator or None, default=None
            An int makes the draw reproducible; an instance moves on.

        Returns
        -------
        ndarray of shape (n, d)
            Unweighted draws in random order, so that any subset of rows is as good as another.
        """
        rng = random_state_of(random_state)
        return self.samples[rng.permutation(systematic_resample(self.log_weights, n, rng))]

    def to_frame(self):
        """The draws as a pandas data frame with a column for each feature, and one more, ``log_weight``.

        Returns
        -------
        pandas.DataFrame
            Of shape (n, d + 1).

        Raises
        ------
        ImportError
            Without pandas.
        """
        return to_frame(self.samples, self.feature_names, log_weight=self.log_weights)

    def to_arviz(self, resample=True, random_state=None, constrain=None):
        """The draws as an ArviZ posterior.

        ArviZ takes the draws of a posterior to be equally good, so that by default there are as many draws resampled in
        proportion to their weights, which repeat each other: what ArviZ gives as effective sample size counts
        repetitions as new, and `ess` does not.

        Parameters
        ----------
        resample : bool, default=True
            Whether to resample. Otherwise the draws are those of the sampler, which ArviZ summarises without their
            weights, with ``log_weight`` among the statistics of the draws.
        random_state : int, RandomState instance, numpy.random.Generator or None, default=None
            For the resampling.
        constrain : callable, default=None
            Maps draws (n, d) to a dictionary of arrays (n, ...), which then are the variables, as the method
            ``constrain`` of energies of models does (`skcds.adapters`). By default the variables are the features.

        Returns
        -------
        InferenceData or DataTree
            As the installed ArviZ has it. Independent draws are arranged in four chains where their number allows. The
            posterior's attributes tell ``ess``, ``pareto_k``, ``log_evidence`` and ``log_evidence_se``.

        Raises
        ------
        ImportError
            Without ArviZ.
        """
        attrs = {
            "ess": self.ess, "pareto_k": self.pareto_k, "log_evidence": self.log_evidence,
            "log_evidence_se": self.log_evidence_se,
        }  # fmt: skip

        def variables(X):
            assert self.feature_names is not None  # since __post_init__
            return dict(zip(self.feature_names, X.T, strict=True)) if constrain is None else constrain(X)

        if resample:
            return to_arviz(variables(self.resample(len(self.samples), random_state)), attrs)
        return to_arviz(variables(self.samples), attrs, log_weight=self.log_weights)

    def expectation(self, fn, return_se=False):
        """Estimate E[fn(x)] under the normalised target by the self-normalised weighted mean.

        Parameters
        ----------
        fn : callable
            Maps an array of shape (n, d) to one of shape (n,) or (n, k). Rows of weight zero do not count,
            whatever it returns there.
        return_se : bool, default=False
            Whether to return the delta method's standard error as well; to be believed where `pareto_k` is at most
            `pareto_k_limit`.

        Returns
        -------
        mean : float or ndarray of shape (k,)
        standard_error : float or ndarray of shape (k,)
            Only if ``return_se``.
        """
        values = np.asarray(fn(self.samples), dtype=np.float64)
        if values.ndim not in (1, 2) or len(values) != len(self.samples):
            raise ValueError(
                f"fn must return one value or one row for each of the {len(self.samples)} draws; "
                f"it returned shape {values.shape}."
            )
        weights = self.weights
        w, values = weights[weights > 0], values[weights > 0]
        mean = w @ values  # scalar or (k,)
        if not return_se:
            return mean
        return mean, np.sqrt(w**2 @ (values - mean) ** 2)

    def warn_if_unreliable(self):
        """Emit a `ConvergenceWarning` if `pareto_k` is above `pareto_k_limit`; the estimators call it.

        Silence does not mean that every mode was found.
        """
        if self.pareto_k <= self.pareto_k_limit:
            return
        n = len(self.log_weights)
        if self._all_zero:
            reason = f"All {n} draws have weight zero: none lies in the target's support."
        elif np.isposinf(self.pareto_k):
            reason = (
                f"The {n} draws hold too few distinct weights to judge their reliability "
                f"(Pareto k is inf, effective sample size {self.ess:.1f})."
            )
        else:
            reason = (
                f"Pareto k is {self.pareto_k:.2f}, above {self.pareto_k_limit:.3g}: a few draws dominate "
                f"(effective sample size {self.ess:.1f} of {n})."
            )
        warn_user(
            f"{reason} The log evidence, its standard error and weighted means are unreliable. Weigh more draws, "
            "fit for longer, or sample in more steps; then look at pareto_k again.",
            ConvergenceWarning,
        )

    def __repr__(self):
        n, d = self.samples.shape
        if self._all_zero:
            found = "every weight is zero"
        else:
            found = (
                f"ess={self.ess:.1f}, log_evidence={self.log_evidence:.4f} ± {self.log_evidence_se:.4f}, "
                f"pareto_k={self.pareto_k:.2f}"
            )
        violations = f", violation_share={self.violation_share:.2g}" if self.violation_share else ""
        return f"WeightedSample(n={n}, d={d}, {found}, is_bound={self.is_bound}{violations})"


def _as_log_weights(log_weights):
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


def _scaled_weights(log_weights):
    """Weights (n,) scaled so that the largest is 1."""
    log_weights = _as_log_weights(log_weights)
    largest = log_weights.max()
    if np.isneginf(largest):
        raise ValueError(
            f"All {len(log_weights)} log weights are -inf: no draw lies in the target's support, "
            "so there is nothing to estimate from."
        )
    return np.exp(log_weights - largest)


def _check_samples(samples, log_weights):
    if samples.ndim != 2 or samples.shape[1] == 0:
        raise ValueError(f"Samples must have shape (n, d) with d > 0, not {samples.shape}.")
    if len(samples) != len(log_weights):
        raise ValueError(f"There are {len(samples)} samples but {len(log_weights)} log weights; each needs one.")
    bad = ~np.isfinite(samples).all(1) & (log_weights > -np.inf)
    if bad.any():
        raise ValueError(
            f"{bad.sum()} of {len(samples)} samples have a weight but are not finite, the first at row {bad.argmax()}."
        )
