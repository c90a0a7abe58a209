"""Particles whose regions have the masses that importance sampling gives them."""

__all__ = ["balance"]

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .._support.devices import randint, randperm
from ..density.energy import Energy
from ..train.particles import effective_share, systematic_index
from .climb import Mode
from .mixture import TMixture, laplace_mixture, log_weights_of
from .mode_stages import Balance
from .store import log_evidence


def balance(
    energy: Energy, x: Tensor, n_draws: int, generator, modes: Sequence[Mode] = (), by: Balance | None = None,
    along: TMixture | None = None,
) -> tuple[Tensor, float] | None:  # fmt: skip
    """Particles resampled so that each region of a mixture has its mass.

    A mixture of t distributions is fitted to the particles. It is joined by Laplace's approximations at modes that are
    known or along a coordinate, and by wide components around all particles. The importance weights of its draws tell
    log Z and the mass of every region, which are the points that one component is the likeliest source of
    (post-stratification). A first part of the draws says how likely the components should be for the second, which
    counts. Particles that the draws hardly reach tell that the mixture lacks a mode.

    With approximations along a coordinate the weighted draws take the place of all particles, which may be lacking in a
    part of a region only, such as the narrow end of a funnel.

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
    modes : sequence of Mode
        Modes that are known.
    by : Balance, optional
        How it is done.
    along : TMixture, optional
        Laplace's approximations along a coordinate, which reach where particles do not.

    Returns
    -------
    x, log_evidence : tuple of Tensor and float, or None
        Particles (n, d), some of them several times, and draws of the mixture in regions where particles are too few;
        log Z. None where the mixture is too poor a proposal, or draws are too few.

    Raises
    ------
    Spent
        When a limit is reached on the way.
    """
    by = Balance() if by is None else by
    points = x[randperm(generator, len(x))[: by.n_fitted]]
    k = min(by.max_components, len(points) // (by.points_a_component * x.shape[1]))
    if n_draws < by.fewest_draws or k < 1:
        return None
    mixture = TMixture.fitted(points, k, int(randint(generator, 0, 2**31 - 1)))
    if modes:
        mixture = TMixture.joined([(0.5, mixture), (0.5, laplace_mixture(modes))])
    if along is not None:
        mixture = TMixture.joined([(1 - by.along, mixture), (by.along, along)])
    if by.background:
        spread = points.std(0).clamp(min=1e-150)
        wide = TMixture.of_widths(points.mean(0), by.backgrounds, spread, mixture.freedom)
        mixture = TMixture.joined([(1 - by.background, mixture), (by.background, wide)])
    first = _weighted(energy, mixture, mixture, int(by.first_share * n_draws), generator, by)
    if effective_share(first.log_weights) == 0:
        return None
    sharpened = TMixture(first.mass + by.least_weight / len(mixture), mixture.loc, mixture.scale, mixture.freedom)
    drawn = _weighted(energy, sharpened, mixture, n_draws - len(first.x), generator, by)
    log_z, some = log_evidence(drawn.log_weights), points[: n_draws // 10]
    far = energy.log_prob(some) - drawn.proposal.log_prob(some) > log_z + math.log(by.far)
    least = by.least_ess if along is None else by.least_ess_along
    if effective_share(drawn.log_weights) < least or float(far.double().mean()) > by.out_of_reach:
        return None
    known = by.known if along is None else math.inf
    return _resampled(x, mixture.log_parts(x).argmax(1), drawn, generator, known), log_z


@dataclass(frozen=True)
class _Drawn:
    """Draws (m, d) of a proposal, log weights and regions (m,) of them, and the masses (k,) of the regions."""

    x: Tensor
    proposal: TMixture
    log_weights: Tensor
    regions: Tensor
    mass: Tensor


def _weighted(energy: Energy, mixture: TMixture, regions: TMixture, m: int, generator, by: Balance) -> _Drawn:
    """Weighted draws around a mixture."""
    proposal = TMixture.joined([(1 - by.defensive, mixture), (by.defensive, mixture.broadened(by.width))])
    y = proposal.sample(m, generator)
    log_weights = log_weights_of(energy, proposal, y)
    which = regions.log_parts(y).argmax(1)
    mass = torch.zeros(len(regions), dtype=torch.float64, device=y.device)
    mass.index_add_(0, which, torch.softmax(log_weights, 0).nan_to_num())
    return _Drawn(y, proposal, log_weights, which, mass)


def _resampled(x: Tensor, regions: Tensor, drawn: _Drawn, generator, least: float) -> Tensor:
    """As many particles as x (n, d), by the masses of regions; weighted draws where particles are too few.

    These are fewer than `least` times as many as a region should have.
    """
    count = torch.bincount(regions, minlength=len(drawn.mass)).double()
    known = count >= least * len(x) * drawn.mass
    of_particles = torch.where(known, (drawn.mass / count.clamp(min=1)).log(), -torch.inf)[regions]
    of_draws = torch.log_softmax(drawn.log_weights, 0).masked_fill(known[drawn.regions], -torch.inf)
    pool = torch.cat([x, drawn.x])
    return pool[systematic_index(torch.cat([of_particles, of_draws]), len(x), generator)]
