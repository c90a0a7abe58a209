"""Masses of modes."""

__all__ = ["expected_mode_total_variation", "mode_shares", "mode_total_variation"]


import numpy as np
from scipy.stats import binom

from .base import as_count, as_draws


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
    X = as_draws(X, target, needs=("modes", "mode_masses"))
    return np.bincount(target.modes(X), minlength=len(target.mode_masses)) / len(X)


def mode_total_variation(X, target):
    """Total variation between the shares of the draws in the modes and the masses of the modes.

    It is half the sum of the absolute differences: the share of the draws that would have to move to another mode. 0 is
    perfect, and 1 means that all draws are where the target has none. It sees missed modes and wrong masses, down to
    the floor. It sees **nothing of what happens inside the modes**: not their width, not their shape.

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

    It is exact for any n, by de Moivre's formula for the mean absolute deviation of every count, which is binomial. If
    all modes expect many draws, it is ``sum(sqrt(masses * (1 - masses) / (2 * pi * n)))``, the normal approximation.

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
    n, masses = as_count(n, "n"), np.asarray(masses, dtype=np.float64)
    if masses.ndim != 1 or not (masses >= 0).all() or not np.isclose(masses.sum(), 1):
        raise ValueError(f"masses must be a list of probabilities that sum to 1; got shape {masses.shape}: {masses}.")
    above = np.floor(n * masses) + 1  # the least count above the mean
    deviation = 2 * above * (1 - masses) * binom.pmf(above, n, masses)  # (n_modes,), E|count - n mass|
    return float(0.5 * deviation.sum() / n)
