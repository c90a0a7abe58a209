"""Draws with their log weights, and what these tell."""

__all__ = ["WeightedSample"]

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from .._support.forks import random_state_of
from .._support.warnings import warn_user
from ..io.export import checked_names
from .exports import Exported, checked_details
from .importance import (
    as_log_weights,
    effective_sample_size,
    log_evidence,
    log_mean_exp,
    pareto_k,
    pareto_k_limit,
    scaled_weights,
    systematic_resample,
    total_variation,
)


@dataclass(frozen=True, eq=False, repr=False)
class WeightedSample(Exported):
    """Draws of a sampler with their log importance weights, and what follows from them.

    All properties are computed from the sampler's own draws and **cannot see a missed mode** (see the module's
    docstring). The arrays are not copied; do not change them in place.

    Parameters
    ----------
    samples : array-like of shape (n, d)
        Draws, kept as float64. Rows of non-zero weight must be finite.
    log_weights : array-like of shape (n,)
        Log weights, kept as float64; ``E[exp(log_weight)] = Z``. ``-inf`` is a weight of zero, for example of a draw
        outside the target's support. NaN and ``+inf`` are errors.
    is_bound : bool
        Whether ``E[log_weight] <= log Z`` is guaranteed. For path weights it always is. For the weights of a one-step
        map it is if the map is injective. A map that is not injective counts some of the target's mass more than once.
    violation_share : float, default=0.0
        Share of draws where the map was found not to be injective. Above zero, ``is_bound`` must be False.
    n_energy_evals : int, default=0
        Energy evaluations spent on the weights.
    feature_names : array-like of str, default=None
        Names of the coordinates, for data frames and ArviZ; by default x0, x1 and so on.
    log_density : array-like of shape (n,), default=None
        Log density of the draws, minus the energy; None where it is not known.
    log_likelihood : array-like of shape (n,), default=None
        Its part that is not the prior; None where it is not known.
    derived : dict, default=None
        Derived quantities: an array (n,) by the name of each.
    parameter_names : sequence of str, default=None
        Names among those of `derived` that are the parameters, where the coordinates are others, as those of the unit
        cube of a prior.

    See Also
    --------
    effective_sample_size, log_evidence, pareto_k, total_variation : The definitions of the properties.

    Notes
    -----
    If every weight is zero, `ess` is 0, `log_evidence` is ``-inf`` with a standard error of NaN, and `total_variation`
    is 1. Members that need normalised weights (`weights`, `resample`, `expectation`) raise.

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
    log_density: np.ndarray | None = None
    log_likelihood: np.ndarray | None = None
    derived: dict[str, np.ndarray] | None = None
    parameter_names: tuple[str, ...] | None = None

    def __post_init__(self):
        fields = {
            "samples": np.asarray(self.samples, dtype=np.float64),
            "log_weights": as_log_weights(self.log_weights),
            "is_bound": bool(self.is_bound),
            "violation_share": float(self.violation_share),
            "n_energy_evals": int(self.n_energy_evals),
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)  # the only time: the class is frozen
        _check_samples(self.samples, self.log_weights)
        names = checked_names(self.feature_names, self.samples.shape[1], "feature_names")
        object.__setattr__(self, "feature_names", names)
        for name, value in checked_details(self).items():
            object.__setattr__(self, name, value)
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
        w = scaled_weights(self.log_weights)
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
        """Estimate of log Z, the log mean weight. If `is_bound`, its expectation is at most log Z, too.

        ``-inf`` if every weight is zero.
        """
        return log_mean_exp(self.log_weights)

    @property
    def log_evidence_se(self):
        """Standard error of `log_evidence`. Believe it if `pareto_k` is at most `pareto_k_limit`.

        NaN for a single draw or if every weight is zero.
        """
        return np.nan if self._all_zero else log_evidence(self.log_weights)[1]

    @cached_property
    def pareto_k(self):
        """Shape of the weights' upper tail. Above `pareto_k_limit` the estimates are unreliable. See `pareto_k`."""
        return pareto_k(self.log_weights)

    @property
    def pareto_k_limit(self):
        """Largest `pareto_k` that is reliable for this number of draws: 0.7, or less below 2200 draws."""
        return pareto_k_limit(len(self.log_weights))

    @property
    def elbo(self):
        """Mean log weight. It is an evidence lower bound only if `is_bound`.

        Even then its expectation is the bound, and the estimate itself varies by `elbo_se`. It is ``-inf`` if any draw
        has weight zero.
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
            How many rows to draw. If there are more than `ess`, rows repeat. 0 gives an empty array.
        random_state : int, RandomState instance, numpy.random.Generator or None, default=None
            An int makes the draw reproducible; an instance moves on.

        Returns
        -------
        ndarray of shape (n, d)
            Unweighted draws in random order, so that any subset of rows is as good as another.
        """
        return self.samples[self._resampled(n, random_state)]

    def _resampled(self, n, random_state):
        """Indices (n,) of rows drawn in proportion to the weights, in random order."""
        rng = random_state_of(random_state)
        return rng.permutation(systematic_resample(self.log_weights, n, rng))

    def expectation(self, fn, return_se=False):
        """Estimate E[fn(x)] under the normalised target by the self-normalised weighted mean.

        Parameters
        ----------
        fn : callable
            Maps an array of shape (n, d) to one of shape (n,) or (n, k). Rows of weight zero do not count, whatever it
            returns there.
        return_se : bool, default=False
            Whether to return the delta method's standard error as well. Believe it if `pareto_k` is at most
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
        """Emit a `ConvergenceWarning` if `pareto_k` is above `pareto_k_limit`. The estimators call it.

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
