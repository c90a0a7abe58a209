"""The reverse Kullback-Leibler divergence of one-step draws."""

__all__ = ["ReverseKLLoss"]

from torch import Tensor

from ..._support.devices import randn
from .base import Objective
from .path import reparametrised_loss


class ReverseKLLoss(Objective):
    """Minus the mean exact log weight of one-step draws, for a map without a tractable inverse. Seeks modes.

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
    """

    def __init__(self, model, target, batch_size: int, generator):
        self.model, self.target, self.batch_size, self.generator = model, target, batch_size, generator

    def __call__(self, iteration: int) -> Tensor:
        """A scalar with the gradient of the loss: the score of the target stands in for a graph through the energy."""
        latent = randn(self.generator, self.batch_size, self.model.n_features)
        z, log_det = self.model.map.call_and_log_det(latent, self.model.start())
        return reparametrised_loss(z, log_det, self.target)
