"""Which coordinates to sample in: non-centred ones, where draws of a Gaussian are better there."""

__all__ = ["non_centred"]

import torch
from torch import Tensor

from .._support.devices import randn, randperm
from ..density.energy import Energy
from ..density.noncentred import NonCentred
from ..density.standardize import Standardization, StandardizedTarget
from ..models.maps import standard_normal_log_prob
from ..train.particles import effective_share
from .few_evaluations import Nested
from .nested_laplace import conditional_gaussians, leading_coordinates, scattered_gaussians
from .stages import Centring, Tails
from .tempered_run import standardization_of


def non_centred(
    energy: Energy, x: Tensor, n_draws: int, generator, by: Centring | None = None, nested: Nested | None = None,
    tails: Tails | None = None,
) -> NonCentred | None:  # fmt: skip
    """Non-centred coordinates along one that the place or the scale of others depends on; None if they are no better.

    They are better where draws of a Gaussian of the particles' moments there have weights of a larger ESS.

    Parameters
    ----------
    energy : Energy
        The density.
    x : Tensor
        Particles (n, d).
    n_draws : int
        Draws that may be evaluated, for all coordinates together.
    generator : torch.Generator
        Source of randomness.
    by : Centring, optional
        How much better they have to be.
    nested : Nested, optional
        Which coordinates are tried.
    tails : Tails, optional
        What heavy tails are.
    """
    by = Centring() if by is None else by
    leading = leading_coordinates(x, nested)
    n = min(by.n_draws, n_draws // (2 + 2 * len(leading)))
    if not leading or n < by.fewest_draws:
        return None
    points = x[randperm(generator, len(x))[: by.n_fitted]]
    best, found = by.gain * _ess(energy, standardization_of(x, tails), n, generator), None
    for tried in _candidates(energy, points, leading, n_draws, by, nested):
        ess = _ess(energy, standardization_of(x, tails, noncentred=tried), n, generator)
        if ess > max(best, by.least_ess):
            best, found = ess, tried
    return found


def _candidates(energy: Energy, x: Tensor, leading: list[int], n_evals: int, by: Centring, nested: Nested | None):
    """Along each coordinate, by Laplace's approximations to the density of the others, and by regression on points."""
    nested = Nested() if nested is None else nested
    if len(leading) > 1 and energy.has_gradient:
        scattered = scattered_gaussians(energy, x, leading, nested, n_evals / 5)
        tried = NonCentred.of_scattered(*scattered, nested.knots_of_several)
        if tried is not None:
            yield tried
    for k in leading:
        gaussians = conditional_gaussians(energy, x, k, nested, n_evals / 10) if energy.has_gradient else None
        for tried in (gaussians and NonCentred.of_gaussians(k, *gaussians), NonCentred.fitted(x, k, by.n_knots)):
            if tried is not None:
                yield tried


def _ess(energy: Energy, standardization: Standardization, n: int, generator) -> float:
    """Normalised ESS of n draws of the Gaussian that is standard normal in these coordinates."""
    z = randn(generator, n, energy.n_features, dtype=torch.float64)
    log_weights = StandardizedTarget(energy, standardization).log_prob(z) - standard_normal_log_prob(z)
    return effective_share(log_weights.nan_to_num(nan=-torch.inf, posinf=-torch.inf))
