"""The reverse Kullback-Leibler divergence of one-step draws."""

__all__ = ["ReverseKLLoss", "on_own_draws"]

import torch
from torch import Tensor

from ..._support.devices import randn
from ..specifications import Likelihood
from .base import Objective
from .path import reparametrised_loss


class ReverseKLLoss(Objective):
    """Minus the mean exact log weight of one-step draws. It needs no inverse and no particles, and seeks modes.

    Parameters
    ----------
    model : OneStepModel
        What is trained.
    target : StandardizedTarget
        The density; its gradient is needed.
    batch_size : int
        Draws in a batch.
    generator : torch.Generator
        Source of randomness.
    mirrored : bool, default=False
        Whether half of the latents are the mirror images of the others: what is odd then cancels, and that is most of
        the noise where the map is nearly linear.
    """

    def __init__(self, model, target, batch_size: int, generator, mirrored: bool = False):
        self.model, self.target, self.batch_size, self.generator = model, target, batch_size, generator
        self.mirrored = mirrored

    def __call__(self, iteration: int) -> Tensor:
        """A scalar with the gradient of the loss: the score of the target stands in for a graph through the energy."""
        latent = randn(self.generator, self.batch_size // (1 + self.mirrored), self.model.n_features)
        if self.mirrored:
            latent = torch.cat([latent, -latent])
        z, log_det = self.model.map.call_and_log_det(latent, self.model.start())
        return reparametrised_loss(z, log_det, self.target)


def on_own_draws(run, by: Likelihood) -> Objective | None:
    """What takes the place of the likelihood where particles are too few for the numbers of a map; None elsewhere."""
    if run.energy.n_features <= by.most_features or not run.target.has_gradient:
        return None
    return ReverseKLLoss(run.model, run.target, by.n_draws, run.generator, mirrored=True)
