"""Draws against the truth: transport distance, mode masses and quantiles, for targets that can be sampled exactly.

Unlike importance weights, the scores here compare with exact draws, so they can see a missed mode. Each is blind to
something: read them together.

================================================  ==================================================================
function                                          does not see
================================================  ==================================================================
`wasserstein_ratio`                               under-dispersion, from a few dimensions up: it **lowers** the
                                                  distance; what is small beside the floor, such as the shape of the
                                                  modes where their masses fluctuate (hence ``within_modes=True``)
`wasserstein_ratio` with ``within_modes=True``    mode masses, missed modes
`mode_total_variation`                            everything inside the modes
`quantile_error`                                  dependence between coordinates, hence modes that are missed but
                                                  leave each coordinate's distribution as it is; the far tails
================================================  ==================================================================

A perfect sampler does not score 0: a finite sample differs from the truth by chance. Print beside a score what an exact
sampler of the same size gets, the *floor*: it is in the result of `wasserstein_ratio`, in
`expected_mode_total_variation`, and for `quantile_error` it is the error of ``target.sample(len(X))``.

A target is an object as in `skcds.targets`: it has ``n_features`` and, as far as the function needs them,
``sample(n, random_state)`` for exact draws, and ``modes(X)`` with ``mode_masses``.
"""

from dataclasses import dataclass
from numbers import Integral

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from scipy.stats import binom

from ._support.forks import random_state_of

__all__ = [
    "WassersteinRatio",
    "break_even",
    "expected_mode_total_variation",
    "mode_shares",
    "mode_total_variation",
    "quantile_error",
    "wasserstein",
    "wasserstein_ratio",
]

METRICS = {1: "euclidean", 2: "sqeuclidean"}  # p: cost of moving one draw
MAX_BATCHES = 1000  # of exact draws, ten times as many as wanted in each, before a mode counts as too rare to fill


def wasserstein(X, Y, p=2):
    """Exact p-Wasserstein distance between two samples of the same size, with Euclidean ground cost.

    The p-th root of the mean p-th power of the distances between the paired rows, for the pairing of the rows of `X`
    with those of `Y` that makes it least. Time grows as n^3 and memory as n^2: half a second for 1500 rows.

    Between two samples of one distribution it is not 0 and falls slowly, as n^(-1/d) in many dimensions d: see
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
    X, Y = _as_sample(X, "X"), _as_sample(Y, "Y")
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
        ``distance / floor``: 1 but for chance where the draws are exact.
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

    - From a few dimensions up, under-dispersed draws are *nearer* to the exact ones than exact draws are, so that the
      ratio is below 1 (see the example), and a defect that spreads the draws can make up for one that contracts them.
      A ratio below 1 by more than chance is an error of the sampler too. `quantile_error` sees both.
    - What is small beside the floor is not seen. Where modes are far apart, the chance differences of their counts are
      most of the floor: they make the ratio noisy and hide the shape of the modes. Use ``within_modes=True``.
    - In heavy tails (`skcds.targets.Funnel`) a few draws are most of the distance, and the ratio is noise: use ``p=1``
      or `quantile_error`.

    Parameters
    ----------
    X : array-like of shape (m, d)
        Draws to judge, at least `n`; weighted ones have to be resampled first. The repeats use different rows where
        there are ``n * n_repeats``.
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

    The first is 1 but for chance. Normal draws in 20 dimensions that are 20 % too narrow look better than exact ones:

    >>> target = Gaussian(np.zeros(20), np.eye(20))
    >>> X = 0.8 * target.sample(2000, random_state=1)
    >>> round(wasserstein_ratio(X, target, n=400, random_state=0).ratio, 2)
    0.92
    """
    X = _as_draws(X, target, needs=("sample", "modes") if within_modes else ("sample",))
    n, n_repeats = _as_count(n, "n"), _as_count(n_repeats, "n_repeats")
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


def mode_shares(X, target):
    """Share of the draws in every mode of the target.

    Parameters
    ----------
    X : array-like of shape (m, d)
        Draws; weighted ones have to be resampled first.
    target : object
        Has ``modes(X)`` and ``mode_masses``.

    Returns
    -------
    ndarray of shape (n_modes,)
        To be compared with ``target.mode_masses``.

    Examples
    --------
    >>> from skcds.metrics import mode_shares
    >>> from skcds.targets import GaussianMixture
    >>> target = GaussianMixture([[-4.0], [4.0]], sd=1.0, weights=[1, 3])
    >>> mode_shares([[-3.0], [-4.0], [-5.0], [4.0]], target)
    array([0.75, 0.25])
    """
    X = _as_draws(X, target, needs=("modes", "mode_masses"))
    return np.bincount(target.modes(X), minlength=len(target.mode_masses)) / len(X)


def mode_total_variation(X, target):
    """Total variation between the shares of the draws in the modes and the masses of the modes.

    Half the sum of the absolute differences: the share of the draws that would have to move to another mode. 0 is
    perfect, and 1 is all draws where the target has none. It sees missed modes and wrong masses, down to the floor, and
    **nothing of what happens inside the modes**: not their width, not their shape.

    The floor is `expected_mode_total_variation` and grows with the number of modes. Exact draws, m of them, exceed it
    by t with a probability of at most exp(-2 m t^2) (McDiarmid's inequality).

    Parameters
    ----------
    X : array-like of shape (m, d)
        Draws; weighted ones have to be resampled first.
    target : object
        Has ``modes(X)`` and ``mode_masses``.

    Returns
    -------
    float

    Examples
    --------
    >>> from skcds.metrics import expected_mode_total_variation, mode_total_variation
    >>> from skcds.targets import gmm9
    >>> target = gmm9()
    >>> X = target.sample(10_000, random_state=0)
    >>> one_missed = X[target.modes(X) != 8]
    >>> for draws in X, one_missed:
    ...     floor = expected_mode_total_variation(len(draws), target.mode_masses)
    ...     found = mode_total_variation(draws, target)
    ...     print(f"{found:.3f} (exact draws: {floor:.3f})")
    0.007 (exact draws: 0.011)
    0.111 (exact draws: 0.012)
    """
    return float(0.5 * np.abs(mode_shares(X, target) - target.mode_masses).sum())


def expected_mode_total_variation(n, masses):
    """Expectation of `mode_total_variation` for n exact draws: its floor.

    Exact for any n, by de Moivre's formula for the mean absolute deviation of every count, which is binomial. Where all
    modes expect many draws it is ``sum(sqrt(masses * (1 - masses) / (2 * pi * n)))``, the normal approximation.

    Parameters
    ----------
    n : int
        How many draws.
    masses : array-like of shape (n_modes,)
        Probability of each mode, as ``target.mode_masses``.

    Returns
    -------
    float

    References
    ----------
    Diaconis and Zabell (1991), "Closed form summation for classical distributions: variations on a theme of de
    Moivre", Statistical Science 6(3).

    Examples
    --------
    >>> from skcds.metrics import expected_mode_total_variation
    >>> expected_mode_total_variation(1, [0.5, 0.5])  # one draw is in one mode
    0.5
    >>> expected_mode_total_variation(10_000, [0.5, 0.5])  # sqrt(1 / (2 pi n))
    0.00398...
    """
    n, masses = _as_count(n, "n"), np.asarray(masses, dtype=np.float64)
    if masses.ndim != 1 or not (masses >= 0).all() or not np.isclose(masses.sum(), 1):
        raise ValueError(f"masses must be a list of probabilities that sum to 1; got shape {masses.shape}: {masses}.")
    above = np.floor(n * masses) + 1  # the least count above the mean
    deviation = 2 * above * (1 - masses) * binom.pmf(above, n, masses)  # (n_modes,), E|count - n mass|
    return float(0.5 * deviation.sum() / n)


def quantile_error(X, target, levels=(0.05, 0.25, 0.5, 0.75, 0.95), n=200_000, random_state=None):
    """The largest error of the quantiles of the coordinates, as a probability.

    For every coordinate and level, the share of exact draws that do not exceed the quantile of `X`, minus the level, in
    absolute value; the largest of them. It has no units and heavy tails do not disturb it.

    It sees shifts, wrong scales (too narrow as well as too wide) and wrong masses, coordinate by coordinate. **It does
    not see dependence**: draws with independently shuffled columns score the same. Nor does it see what is beyond the
    outer levels, or a change of shape between two of them.

    The floor is the error of ``target.sample(len(X))``. At every coordinate and level it is about 0.5 / sqrt(len(X)),
    and the largest counts; a larger `n` does not lower it.

    Parameters
    ----------
    X : array-like of shape (m, d)
        Draws, at least two; weighted ones have to be resampled first.
    target : object
        Has ``sample(n, random_state)``.
    levels : sequence of float, default=(0.05, 0.25, 0.5, 0.75, 0.95)
        Probabilities between 0 and 1.
    n : int, default=200_000
        Number of exact draws; their own error is at most 0.5 / sqrt(n), one standard deviation.
    random_state : int, RandomState instance, numpy.random.Generator or None, default=None
        An int makes the result reproducible.

    Returns
    -------
    float

    Examples
    --------
    >>> from skcds.metrics import quantile_error
    >>> from skcds.targets import Funnel
    >>> X = Funnel().sample(10_000, random_state=1)
    >>> exact = Funnel().sample(len(X), random_state=2)
    >>> floor = quantile_error(exact, Funnel(), random_state=0)
    >>> for draws in X, 0.8 * X:
    ...     found = quantile_error(draws, Funnel(), random_state=0)
    ...     print(f"{found:.3f} (exact draws: {floor:.3f})")
    0.010 (exact draws: 0.007)
    0.047 (exact draws: 0.007)
    """
    X = _as_draws(X, target, needs=("sample",), at_least=2)
    n, levels = _as_count(n, "n"), np.asarray(levels, dtype=np.float64)
    if levels.ndim != 1 or not levels.size or not ((levels > 0) & (levels < 1)).all():
        raise ValueError(f"levels must be a list of probabilities between 0 and 1; got {levels.tolist()}.")
    exact = target.sample(n, random_state_of(random_state))  # (n, d)
    quantiles = np.quantile(X, levels, axis=0)  # (n_levels, d)
    below = np.array([(exact <= q).mean(0) for q in quantiles])  # (n_levels, d)
    return float(np.abs(below - levels[:, None]).max())


def _as_sample(X, name, at_least=1):
    X = np.asarray(X, dtype=np.float64)
    if X.ndim != 2 or X.shape[1] == 0:
        raise ValueError(f"{name} must have shape (n, d), one row for each draw, with d at least 1; got {X.shape}.")
    if len(X) < at_least:
        raise ValueError(f"{name} must have at least {at_least} rows, not {len(X)}.")
    bad = np.flatnonzero(~np.isfinite(X).all(1))
    if bad.size:
        raise ValueError(f"{bad.size} of {len(X)} rows of {name} are not finite, the first at row {bad[0]}.")
    return X


def _as_draws(X, target, needs, at_least=1):
    X = _as_sample(X, "X", at_least)
    missing = [name for name in needs if not hasattr(target, name)]
    if missing:
        raise ValueError(f"This score needs `{missing[0]}`, which the target {target!r} does not have.")
    if X.shape[1] != target.n_features:
        raise ValueError(f"X has {X.shape[1]} features, but the target {target!r} has {target.n_features}.")
    return X


def _as_count(n, name):
    if not isinstance(n, Integral) or n < 1:
        raise ValueError(f"{name} must be a positive integer, not {n!r}.")
    return int(n)


def break_even(n_training_evals, n_steps_before, n_steps=1):
    """Number of draws from which a sampler of few steps has paid for its training, in network evaluations.

    Training evaluations over the evaluations saved for each draw. With three evaluations for every row of a batch this
    is the paper's ``S = 3 I B / (N - 1)``, for I iterations with batches of B rows; `n_training_evals` is meant to be a
    count, ``student.n_network_evals_``.

    Parameters
    ----------
    n_training_evals : int
        Network evaluations, in points, that training has cost beyond that of the sampler of many steps.
    n_steps_before : int
        Network evaluations for each draw of the sampler of many steps.
    n_steps : int, default=1
        Network evaluations for each draw of the sampler of few steps.

    Returns
    -------
    float
        ``inf`` when nothing is saved.

    References
    ----------
    Jutras-Dubé, Pynadath & Zhang, "Single-Step Consistent Diffusion Samplers", arXiv:2502.07579.

    Examples
    --------
    >>> break_even(3 * 2000 * 512, n_steps_before=129)
    24000.0
    """
    if n_training_evals < 0 or n_steps < 1 or n_steps_before < 1:
        raise ValueError(
            "n_training_evals has to be at least 0 and the numbers of steps at least 1; got "
            f"{n_training_evals}, {n_steps_before} and {n_steps}."
        )
    saved = n_steps_before - n_steps
    return float(n_training_evals / saved) if saved > 0 else np.inf
