"""Transport distance between draws and the truth."""

__all__ = ["WassersteinRatio", "wasserstein", "wasserstein_ratio"]

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from .._support.forks import random_state_of
from .base import as_count, as_draws, as_sample

METRICS = {1: "euclidean", 2: "sqeuclidean"}  # p: cost of moving one draw
MAX_BATCHES = 1000  # of exact draws, ten times as many as wanted in each, before a mode counts as too rare to fill


def wasserstein(X, Y, p=2):
    """Exact p-Wasserstein distance between two samples of the same size, with Euclidean ground cost.

    The rows of `X` are paired with those of `Y`. The distance is the p-th root of the mean p-th power of the distances
    between paired rows, for the pairing that makes it least. Time grows as n^3 and memory as n^2: half a second for
    1500 rows.

    Between two samples of one distribution it is not 0. It falls slowly, as n^(-1/d) in many dimensions d: see
    `wasserstein_ratio`.

    Parameters
    ----------
    X, Y : array-like of shape (n, d)
        Samples.
    p : {1, 2}, default=2
        Order. With 2 a few far draws can outweigh all others; take 1 for targets with heavy tails.

    Returns
    -------
    float

    Examples
    --------
    >>> from skcds.metrics import wasserstein
    >>> wasserstein([[0.0], [1.0]], [[5.0], [0.0]])  # 0 stays, 1 goes to 5
    2.8284271247461903
    >>> wasserstein([[0.0], [1.0]], [[5.0], [0.0]], p=1)
    2.0
    """
    X, Y = as_sample(X, "X"), as_sample(Y, "Y")
    if X.shape != Y.shape:
        raise ValueError(
            f"X and Y must have the same shape, since each row of one is paired with a row of the other; "
            f"got {X.shape} and {Y.shape}."
        )
    if p not in METRICS:
        raise ValueError(f"p must be 1 or 2, not {p!r}.")
    exponent = np.frexp(max(np.abs(X).max(), np.abs(Y).max()))[1]  # no square overflows, and powers of 2 are exact
    cost = cdist(np.ldexp(X, -exponent), np.ldexp(Y, -exponent), METRICS[p])  # (n, n)
    return float(np.ldexp(cost[linear_sum_assignment(cost)].mean() ** (1 / p), exponent))


@dataclass(frozen=True)
class WassersteinRatio:
    """Result of `wasserstein_ratio`.

    Parameters
    ----------
    ratio : float
        ``distance / floor``. For exact draws it differs from 1 by chance only.
    distance : float
        Distance between the draws and exact ones, the mean over the repeats.
    floor : float
        Distance between exact draws and exact ones, the mean over the repeats.
    """

    ratio: float
    distance: float
    floor: float


def wasserstein_ratio(X, target, n=1500, n_repeats=4, p=2, within_modes=False, random_state=None):
    """Distance of draws to exact ones, in units of the distance of exact draws to exact ones.

    Every repeat takes `n` rows of `X` and two exact samples, and measures the distance of the rows and of the first
    sample to the second. If the rows are exact, either is larger with probability 1/2.

    It sees missed modes, wrong masses of distant modes, stray draws and too wide a spread. **It does not see
    everything, and a ratio of 1 or less is no proof:**

    - From a few dimensions up, under-dispersed draws are *nearer* to the exact ones than exact draws are. The ratio is
      then below 1 (see the example), and a defect that spreads the draws can make up for one that contracts them. A
      ratio below 1 by more than chance is an error of the sampler, too. `quantile_error` sees both.
    - Errors that are small beside the floor are not seen. If modes are far apart, the chance differences of their
      counts are most of the floor. They make the ratio noisy and hide the shape of the modes. Use
      ``within_modes=True``.
    - In heavy tails (`skcds.targets.Funnel`) a few draws are most of the distance, and the ratio is noise: use ``p=1``
      or `quantile_error`.

    Parameters
    ----------
    X : array-like of shape (m, d)
        Draws to judge, at least `n`; weighted ones have to be resampled first. The repeats use different rows if there
        are ``n * n_repeats``.
    target : object
        Has ``sample(n, random_state)``.
    n : int, default=1500
        Size of the samples compared. The larger it is, the lower the floor and the smaller the errors that are seen.
    n_repeats : int, default=4
        How often to compare.
    p : {1, 2}, default=2
        Order of the distance; see `wasserstein`.
    within_modes : bool, default=False
        Whether to choose the exact draws, in both samples, so that they have as many draws in every mode as the rows of
        `X`. Only the shape of the modes is then compared. Masses and missed modes are **not**: see
        `mode_total_variation`. The target must have ``modes(X)``.
    random_state : int, RandomState instance, numpy.random.Generator or None, default=None
        An int makes the result reproducible.

    Returns
    -------
    WassersteinRatio
        With `ratio`, `distance` and `floor`.

    Examples
    --------
    >>> import numpy as np
    >>> from skcds.metrics import wasserstein_ratio
    >>> from skcds.targets import Gaussian, gmm9
    >>> X = gmm9().sample(4000, random_state=1)
    >>> one_missed = X[gmm9().modes(X) != 8]
    >>> for draws in X, one_missed:
    ...     found = wasserstein_ratio(draws, gmm9(), n=400, n_repeats=8, random_state=0)
    ...     print(round(found.ratio, 2))
    1.09
    1.82

    The first differs from 1 by chance only. Normal draws in 20 dimensions that are 20 % too narrow look better than
    exact ones:

    >>> target = Gaussian(np.zeros(20), np.eye(20))
    >>> X = 0.8 * target.sample(2000, random_state=1)
    >>> round(wasserstein_ratio(X, target, n=400, random_state=0).ratio, 2)
    0.92
    """
    X = as_draws(X, target, needs=("sample", "modes") if within_modes else ("sample",))
    n, n_repeats = as_count(n, "n"), as_count(n_repeats, "n_repeats")
    if len(X) < n:
        raise ValueError(f"X has {len(X)} rows, fewer than n={n}: draw more of them, or pass a smaller n.")
    rng = random_state_of(random_state)
    blocks = np.resize(rng.permutation(len(X)), (n_repeats, n))  # cyclic: no row comes twice in a block
    distances = []
    for rows in X[blocks]:  # (n, d)
        exact, other = (_exact_draws(rows, target, within_modes, rng) for _ in range(2))
        distances.append([wasserstein(rows, exact, p), wasserstein(other, exact, p)])
    distance, floor = np.mean(distances, axis=0).tolist()
    return WassersteinRatio(distance / floor, distance, floor)


def _exact_draws(rows, target, within_modes, rng):
    """As many exact draws as there are rows (n, d), in every mode where ``within_modes``."""
    if not within_modes:
        return target.sample(len(rows), rng)
    modes, missing = np.unique(target.modes(rows), return_counts=True)
    chosen = []
    for _ in range(MAX_BATCHES):
        Y = target.sample(10 * len(rows), rng)
        labels = target.modes(Y)
        for i in np.flatnonzero(missing):
            chosen.append(Y[labels == modes[i]][: missing[i]])
            missing[i] -= len(chosen[-1])
        if not missing.any():
            return np.concatenate(chosen)
    raise ValueError(
        f"X has far more draws in mode {modes[missing.argmax()]} than the target has: of "
        f"{MAX_BATCHES * 10 * len(rows)} exact draws too few are in it to compare the shapes. "
        "Call with within_modes=False, and see mode_total_variation."
    )
