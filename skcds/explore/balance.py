"""Particles whose regions have the masses that importance sampling gives them."""

__all__ = ["balance"]

import math

import torch
from torch import Tensor

from .._support.devices import randint, randperm
from ..density.energy import Energy
from ..train.particles import effective_share, systematic_index
from .mixture import TMixture
from .mode_stages import Balance
from .store import log_evidence


def balance(
    energy: Energy, x: Tensor, n_draws: int, generator, by: Balance | None = None
) -> tuple[Tensor, float] | None:
    """Particles resampled so that each region of a mixture has its mass.

    A mixture of t distributions is fitted to the particles. The importance weights of its draws tell log Z and the mass
    of every region, which are the points that one component is the likeliest source of (post-stratification). A first
    part of the draws says how likely the components should be for the second, which counts. Particles that the draws
    hardly reach tell that the mixture lacks a mode.

    Parameters
    ----------
    energy : Energy
        The density.
    x : Tensor
        Particles (n, d) in unconstrained coordinates.
    n_draws : int
        Draws that may be evaluated, and a tenth as many particles.
    generator : torch.Generator
        Source of randomness.
    by : Balance, optional
        How it is done.

    Returns
    -------
    x, log_evidence : tuple of Tensor and float, or None
        Particles (n, d), some of them several times, and log Z; None where the mixture is too poor a proposal, or
        draws are too few.

    Raises
    ------
    Spent
        When a limit is reached on the way.
    """
    by = Balance() if by is None else by
    n, d = x.shape
    points = x[randperm(generator, n)[: by.n_fitted]]
    k = min(by.max_components, len(points) // (by.points_a_component * d))
    if n_draws < by.fewest_draws or k < 1:
        return None
    mixture = TMixture.fitted(points, k, int(randint(generator, 0, 2**31 - 1)))
    first = int(by.first_share * n_draws)
    mass, log_weights, _ = _masses(energy, mixture, mixture, first, generator, by)
    if effective_share(log_weights) == 0:
        return None
    sharpened = TMixture(mass + by.least_weight / len(mixture), mixture.loc, mixture.scale, mixture.freedom)
    mass, log_weights, proposal = _masses(energy, sharpened, mixture, n_draws - first, generator, by)
    log_z = log_evidence(log_weights)
    some = points[: n_draws // 10]
    far = energy.log_prob(some) - proposal.log_prob(some) > log_z + math.log(by.far)
    if effective_share(log_weights) < by.least_ess or float(far.double().mean()) > by.out_of_reach:
        return None
    regions = mixture.log_parts(x).argmax(1)
    share = torch.bincount(regions, minlength=len(mixture)).double() / n
    rows = systematic_index((mass / share.clamp(min=1 / n)).log()[regions], n, generator)
    return x[rows], log_z


def _masses(
    energy: Energy, mixture: TMixture, regions: TMixture, n: int, generator, by: Balance
) -> tuple[Tensor, Tensor, TMixture]:
    """Masses (k,) of regions, log importance weights (n,) of draws around a mixture, and what these are draws of."""
    proposal = TMixture.joined([(1 - by.defensive, mixture), (by.defensive, mixture.broadened(by.width))])
    y = proposal.sample(n, generator)
    log_weights = (energy.log_prob(y) - proposal.log_prob(y)).nan_to_num(nan=-torch.inf, posinf=-torch.inf)
    mass = torch.zeros(len(regions), dtype=torch.float64, device=y.device)
    mass.index_add_(0, regions.log_parts(y).argmax(1), torch.softmax(log_weights, 0).nan_to_num())
    return mass, log_weights, proposal
