"""A map's density compared with what is known of a density at weighted points: its mass, its values and its slopes."""

__all__ = ["KnownPointsLoss", "spread_of", "truncated_weights"]

import torch
from torch import Tensor

from ..._support.devices import randn
from ...models.maps import standard_normal_log_prob
from ..known_points import KnownPoints
from ..specifications import Likelihood
from .base import Objective

STEP = 0.05  # of the differences along latents, whose scale is 1
LARGEST_SLOPE = 50.0  # of a difference of log densities along a latent, that counts


class KnownPointsLoss(Objective):
    """Likelihood of a map at weighted points, with regressions on the log densities and on the scores there.

    An evaluation of a density with its gradient tells 1 + d numbers, of which the likelihood uses none but by the
    weights. The regression on log densities asks that the variance of the log weights vanishes (Richter et al. 2020),
    that on scores that their gradient does (score matching, Hyvarinen 2005, with the score known). The latter is taken
    in the latent space of the map, where the pulled-back density is to be a standard normal one whatever the scale of
    the density is: along random directions, by differences of the map's log density, whose error is of order
    ``STEP^2``. So it takes no second derivatives.

    Parameters
    ----------
    model : OneStepModel or ShortcutModel
        What is trained; its map is invertible.
    points : KnownPoints
        The points.
    batch_size : int
        Of them in a batch.
    generator : torch.Generator
        Source of randomness.
    regression, scores : float, default=1.0
        Weights of the two regressions beside the likelihood. Without scores of the points there is the first alone.
    order, largest_count : float, default=1.0 and 10.0
        Of Renyi's divergence, in the likelihood (see `LikelihoodLoss`).
    """

    def __init__(
        self, model, points: KnownPoints, batch_size: int, generator, regression: float = 1.0, scores: float = 1.0,
        order: float = 1.0, largest_count: float = Likelihood.largest_count,
    ):  # fmt: skip
        self.model, self.points, self.batch_size, self.generator = model, points, batch_size, generator
        self.order, self.largest_count = order, largest_count
        self.regression, self.scores = regression, 0.0 if points.score is None else scores

    def __call__(self, iteration: int) -> Tensor:
        """The loss of one batch."""
        rows, counts = self.points.draw(self.batch_size, self.generator)
        latent, log_det = self.model.map.inverse_and_log_det(self.points.z[rows], self.model.start())
        log_prob = log_det + standard_normal_log_prob(latent)
        if self.order > 1:
            log_ratio = (self.points.log_prob[rows] - log_prob.detach()).double()
            counts = counts * truncated_weights((self.order - 1) * log_ratio, self.largest_count)
            counts = counts / counts.mean()
        loss = -(counts * log_prob).mean()
        if self.regression:
            loss = loss + self.regression * spread_of(self.points.log_prob[rows] - log_prob)
        if self.scores and self.points.score is not None:
            slopes = self._slopes(latent, self.points.score[rows])
            loss = loss + self.scores * _size_of(slopes.clamp(-LARGEST_SLOPE, LARGEST_SLOPE)).mean()
        return loss

    def _slopes(self, latent: Tensor, score: Tensor) -> Tensor:
        """Slopes (n,) of the log weight of images of latents (n, d), along one random direction of the latents each."""
        n, direction = len(latent), randn(self.generator, latent.shape)
        sides = torch.cat([latent + STEP * direction, latent - STEP * direction])
        z, log_det = self.model.map.call_and_log_det(sides, self.model.start())
        of_target = (score * (z[:n] - z[n:])).sum(1) + (log_det[:n] - log_det[n:])
        return of_target / (2 * STEP) + (latent * direction).sum(1)


def truncated_weights(log_weights: Tensor, largest: float = Likelihood.largest_count) -> Tensor:
    """Weights (n,) float32 of mean 1, truncated at so many times their median; ``-inf`` is a weight of zero."""
    finite = log_weights > -torch.inf
    if not finite.any():
        return torch.ones_like(log_weights, dtype=torch.float32)
    weights = (log_weights - log_weights[finite].median()).exp().clamp(max=largest)
    return (weights / weights.mean()).float()


def spread_of(log_ratio: Tensor) -> Tensor:
    """Variance of log ratios (n,) where they are small, and their mean distance from the mean where they are large."""
    return _size_of(log_ratio - log_ratio.mean()).mean()


def _size_of(gap: Tensor) -> Tensor:
    """Squares of what is small, and twice the sizes of what is large."""
    return 2 * ((1 + gap**2).sqrt() - 1)
