"""Markov moves of one-step draws in the latent space of their map: exact in the limit, whatever the map has learned."""

__all__ = ["PolishedSample", "polish"]

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..models.maps import standard_normal_log_prob
from ..train.particles import langevin_step

STREAMS_A_MOVE = 3  # of random numbers: a latent or a noise, a uniform, a step size
LARGEST_STEP = (
    1.36  # of MALA in units of d^(-1/3), for a latent density that is standard normal (Roberts & Rosenthal 1998)
)
DECADES = 2.0  # below it that steps reach


@dataclass(frozen=True)
class PolishedSample:
    """Draws after Markov moves.

    Attributes
    ----------
    samples : ndarray of shape (n, n_features)
        The draws, float64.
    n_moves : int
        Moves of each draw.
    independence_acceptance, langevin_acceptance : float
        Share of the moves of each kind that were accepted; NaN if none was tried. The first is that of independence
        Metropolis-Hastings moves, and says how much the one-step draws know of the density. Below some percents more
        moves are worth less than a better fit.
    n_energy_evals : int
        Energy evaluations spent. The Langevin moves spend as many of the gradient.
    """

    samples: np.ndarray
    n_moves: int
    independence_acceptance: float
    langevin_acceptance: float
    n_energy_evals: int


class Acceptance:
    """Counts of moves tried and accepted."""

    def __init__(self):
        self.tried, self.accepted = 0, 0

    def count(self, accepted: Tensor) -> None:
        """Add the outcomes (n,) of a move."""
        self.tried, self.accepted = self.tried + len(accepted), self.accepted + int(accepted.sum())

    @property
    def rate(self) -> float:
        """Share that was accepted."""
        return self.accepted / self.tried if self.tried else float("nan")


def polish(model, target, normal: Callable, n_moves: int, independence: Acceptance, langevin: Acceptance) -> Tensor:
    """One-step draws (n, d) in standardised coordinates after moves of their latents; ``normal(k)`` as for all draws.

    Two kinds of move take turns. Independence Metropolis-Hastings moves propose latents from the prior, which the map
    turns into one-step draws (Tierney 1994). Metropolis-adjusted Langevin steps move in the latent space, where the
    density is standard normal for a perfect map. A draw is a chain of its own, and the step sizes are random and not
    adapted. So the moves leave the target invariant.

    Parameters
    ----------
    model : OneStepModel or ShortcutModel
        Its map is invertible.
    target : StandardizedTarget
        The density. Without gradients all moves are independence Metropolis-Hastings moves.
    normal : callable
        ``normal(k, shape)``, standard normal numbers of stream k, by default (n, d).
    n_moves : int
        Moves of every draw.
    independence, langevin : Acceptance
        They count the moves tried and accepted.
    """

    def density(latent):
        """Log density (n,) of latents under the target, and its gradient (n, d)."""
        with torch.enable_grad():
            latent = latent.detach().requires_grad_(target.has_gradient)
            z, log_det = model.map.call_and_log_det(latent, model.start())
            log_prob, score = target.log_prob_and_score(z.detach())
            log_density = log_prob + log_det.detach().double()
            if not target.has_gradient:
                return log_density, score
            gradient = torch.autograd.grad((score * z).sum() + log_det.sum(), latent)[0]
        return log_density, gradient.nan_to_num(0.0, 0.0, 0.0)

    def log_weight(latent, log_density):
        return log_density - standard_normal_log_prob(latent.double())

    latent = normal(0)
    n, d = latent.shape
    log_density, gradient = density(latent)
    for move in range(n_moves):
        first = 1 + STREAMS_A_MOVE * move
        noise, log_uniform = normal(first), torch.special.log_ndtr(normal(first + 1, (n,)).double())
        if move % 2 == 0 or not target.has_gradient:
            new_density, new_gradient = density(noise)
            accepted = log_uniform < log_weight(noise, new_density) - log_weight(latent, log_density)
            latent = torch.where(accepted[:, None], noise, latent)
            gradient = torch.where(accepted[:, None], new_gradient, gradient)
            log_density = torch.where(accepted, new_density, log_density)
            independence.count(accepted)
        else:
            decade = torch.special.ndtr(normal(first + 2, (n, 1)))
            step = LARGEST_STEP * d ** (-1 / 3) * 10 ** (-DECADES * decade)
            latent, log_density, gradient, accepted = langevin_step(
                density, latent, log_density, gradient, step, noise, log_uniform
            )
            langevin.count(accepted)
    return model.map(latent, model.start())
