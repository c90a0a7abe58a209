"""Draws against the truth: transport distance, mode masses and quantiles, for targets that can be sampled exactly.

Unlike importance weights, the scores here compare with exact draws, so they can see a missed mode. Each is blind to
something: read them together.

================================================  ==================================================================
function                                          does not see
================================================  ==================================================================
`wasserstein_ratio`                               under-dispersion, from a few dimensions up: it **lowers** the
                                                  distance; errors that are small beside the floor, such as in the
                                                  shape of modes whose masses fluctuate (hence ``within_modes=True``)
`wasserstein_ratio` with ``within_modes=True``    mode masses, missed modes
`mode_total_variation`                            everything inside the modes
`quantile_error`                                  dependence between coordinates, hence modes that are missed but
                                                  leave each coordinate's distribution as it is; the far tails
================================================  ==================================================================

A perfect sampler does not score 0: a finite sample differs from the truth by chance. Print beside a score the *floor*,
which is what an exact sampler of the same size gets. It is in the result of `wasserstein_ratio`, and it is
`expected_mode_total_variation`. For `quantile_error` it is the error of ``target.sample(len(X))``.

A target is an object as in `skcds.targets`: it has ``n_features`` and, as far as the function needs them,
``sample(n, random_state)`` for exact draws, and ``modes(X)`` with ``mode_masses``.
"""

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

from .cost import break_even
from .marginals import quantile_error
from .modes import expected_mode_total_variation, mode_shares, mode_total_variation
from .transport import WassersteinRatio, wasserstein, wasserstein_ratio
