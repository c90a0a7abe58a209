"""Particles whose regions have the masses that importance sampling gives them."""

__all__ = ["balance"]

import torch
from torch import Tensor

from .._support.devices import randint, randperm
from ..density.energy import Energy
from ..train.particles import effective_share, systematic_index
from .mixture import TMixture
from .store import log_evidence

# Tempered particles are right within a mode, but its share comes from few ancestors: in six far Gaussians in five
# dimensions, modes that climbs had found had masses off by .12 in total variation (see benchmarks/scattered.py).
MAX_FITTED = 4000  # particles that a mixture is fitted to
MAX_COMPONENTS, POINTS_A_COMPONENT = 50, 10  # of the mixture; particles for each coordinate of one
DEFENSIVE, WIDE = 0.15, 1.6  # share and width of broader components
FIRST_SHARE, LEAST_WEIGHT = 0.25, 0.05  # of draws, after which components are weighted anew; of a mixture, for all
LEAST_ESS = 0.3  # normalised, of draws from the mixture, below which particles are left as they are
FEWEST_DRAWS, MOST_DRAWS = 1000, 40_000


def balance(energy: Energy, x: Tensor, n_evals: int, generator) -> tuple[Tensor, float] | None:
    """Particles resampled so that each region of a mixture has its mass.

    A mixture of t distributions is fitted to the particles. The importance weights of its draws tell log Z and the mass
    of every region, which are the points that one component is the likeliest source of (post-stratification). A first
    part of the draws says how likely the components should be for the second, which counts.

    Parameters
    ----------
    energy : Energy
        The density.
    x : Tensor
        Particles (n, d) in unconstrained coordinates.
    n_evals : int
        Evaluations that may be made.
    generator : torch.Generator
        Source of randomness.

    Returns
    -------
    x, log_evidence : tuple of Tensor and float, or None
        Particles (n, d), some of them several times, and log Z; None where the mixture is too poor a proposal, or
        evaluations are too few.

    Raises
    ------
    Spent
        When a limit is reached on the way.
    """
    n, d = x.shape
    n_draws = min(MOST_DRAWS, n_evals)
    points = x[randperm(generator, n)[:MAX_FITTED]]
    k = min(MAX_COMPONENTS, len(points) // (POINTS_A_COMPONENT * d))
    if n_draws < FEWEST_DRAWS or k < 1:
        return None
    mixture = TMixture.fitted(points, k, int(randint(generator, 0, 2**31 - 1)))
    first = int(FIRST_SHARE * n_draws)
    mass, log_weights = _masses(energy, mixture, mixture, first, generator)
    if effective_share(log_weights) == 0:
        return None
    sharpened = TMixture(mass + LEAST_WEIGHT / len(mixture), mixture.loc, mixture.scale, mixture.freedom)
    mass, log_weights = _masses(energy, sharpened, mixture, n_draws - first, generator)
    if effective_share(log_weights) < LEAST_ESS:
        return None
    regions = mixture.log_parts(x).argmax(1)
    share = torch.bincount(regions, minlength=len(mixture)).double() / n
    rows = systematic_index((mass / share.clamp(min=1 / n)).log()[regions], n, generator)
    return x[rows], log_evidence(log_weights)


def _masses(energy: Energy, mixture: TMixture, regions: TMixture, n: int, generator) -> tuple[Tensor, Tensor]:
    """Masses (k,) of regions, and log importance weights (n,) of draws of a mixture."""
    proposal = TMixture.joined([(1 - DEFENSIVE, mixture), (DEFENSIVE, mixture.broadened(WIDE))])
    y = proposal.sample(n, generator)
    log_weights = (energy.log_prob(y) - proposal.log_prob(y)).nan_to_num(nan=-torch.inf, posinf=-torch.inf)
    mass = torch.zeros(len(regions), dtype=torch.float64, device=y.device)
    mass.index_add_(0, regions.log_parts(y).argmax(1), torch.softmax(log_weights, 0).nan_to_num())
    return mass, log_weights
