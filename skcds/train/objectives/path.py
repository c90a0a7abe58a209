"""Losses on simulated paths: the variance of their log weight, or minus its mean."""

__all__ = ["LARGEST_SCORE", "PATH_LOSSES", "LogVarianceLoss", "PathKLLoss", "reparametrised_loss"]

import torch
from torch import Tensor

from ..._support.devices import randint, randn, randperm
from ...density.standardize import StandardizedTarget
from ...models.diffusion import DiffusionModel
from .base import Objective


class LogVarianceLoss(Objective):
    """Variance of the log path weight over simulated trajectories (Richter & Berner 2024), at constant memory.

    Trajectories are simulated without a graph; the gradient of the variance is that of a weighted sum of step log
    densities, of which a random subset of steps is back-propagated. A batch of trajectories serves several calls in a
    row: the loss may be over any paths, and the weights of a gradient step ago are close to those of now.

    Parameters
    ----------
    model : DiffusionModel
        What is trained.
    target : StandardizedTarget
        The density.
    n_steps : int
        Steps of the chain.
    batch_size : int
        Trajectories.
    generator : torch.Generator
        Source of randomness.
    n_gradient_steps : int, default=8
        Steps, drawn at random at every call, that the gradient is taken over.
    n_uses : int, default=2
        Calls that a batch of trajectories serves.
    """

    path: Tensor  # (N + 1, n, d) states of the trajectories in use
    log_weights: Tensor  # (n,) theirs

    def __init__(
        self, model: DiffusionModel, target: StandardizedTarget, n_steps, batch_size, generator, n_gradient_steps=8,
        n_uses=2,
    ):  # fmt: skip
        self.model, self.target, self.generator, self.n_uses = model, target, generator, n_uses
        self.uses_left = 0
        self.grid, self.batch_size = model.grid(n_steps), batch_size
        self.n_gradient_steps = min(n_gradient_steps, n_steps)

    def state_dict(self) -> dict:
        """What `load_state_dict` puts back: the trajectories in use."""
        return {name: getattr(self, name, None) for name in ("path", "log_weights", "uses_left")}

    def load_state_dict(self, state: dict) -> None:
        """Go back to an earlier state."""
        self.uses_left = state["uses_left"]
        if state["path"] is not None:
            self.path, self.log_weights = (state[name].to(self.generator.device) for name in ("path", "log_weights"))

    def _simulate(self) -> None:
        def normal(k):
            return randn(self.generator, self.batch_size, self.model.n_features)

        self.path, log_ratio = self.model.simulate(normal(0), self.grid, self.target, normal, keep=True)
        self.log_weights, self.uses_left = log_ratio + self.target.log_prob(self.path[-1]), self.n_uses

    def __call__(self, iteration: int) -> Tensor:
        """A scalar whose gradient estimates that of the variance, and whose value is its batch's."""
        if not self.uses_left:
            self._simulate()
        self.uses_left -= 1
        path, log_weights = self.path, self.log_weights
        finite = log_weights.isfinite()
        if not finite.any():
            return torch.stack([p.sum() for p in self.model.parameters()]).sum() * 0.0
        centred = _winsorise(torch.where(finite, log_weights, log_weights[finite].min()))
        k = randperm(self.generator, self.grid.n_steps)[: self.n_gradient_steps]
        rows = k.repeat_interleave(self.batch_size)
        x, x_next = path[k].flatten(0, 1), path[k + 1].flatten(0, 1)
        score = self.target.log_prob_and_score(x)[1] if self.model.needs_score else None
        log_prob = self.model.step_log_prob(self.grid, rows, x, x_next, score).reshape(len(k), -1)
        share = self.grid.n_steps / len(k)
        surrogate = -2 * share * (centred.float() * log_prob.sum(0)).sum() / (len(centred) - 1)
        return surrogate + (centred.var() - surrogate.detach())

    def states(self, n: int, log_snr: Tensor) -> Tensor:
        """States (n, d) of the trajectories simulated last, at levels (n,) of the grid."""
        k = torch.searchsorted(self.grid.log_snr, log_snr - 1e-4)
        return self.path[k, randint(self.generator, 0, self.batch_size, (n,))]


class PathKLLoss(Objective):
    """Kullback-Leibler divergence of the chain from the noised target, less log Z: minus the mean log path weight.

    The objective of PIS and DDS (Zhang & Chen 2022; Vargas, Grathwohl & Doucet 2023). Trajectories are differentiated,
    so that memory grows with their number of steps; scores of the target that the control reads count as constants, as
    in the published implementations. It seeks modes.

    Parameters
    ----------
    model : DiffusionModel
        What is trained.
    target : StandardizedTarget
        The density; its gradient is needed.
    n_steps : int
        Steps of the chain.
    batch_size : int
        Trajectories.
    generator : torch.Generator
        Source of randomness.
    """

    def __init__(self, model: DiffusionModel, target: StandardizedTarget, n_steps, batch_size, generator):
        self.model, self.target, self.generator = model, target, generator
        self.grid, self.batch_size = model.grid(n_steps), batch_size

    def __call__(self, iteration: int) -> Tensor:
        """The loss of one batch; trajectories that end outside the support are left out."""

        def normal(k):
            return randn(self.generator, self.batch_size, self.model.n_features)

        z, log_ratio = self.model.simulate_differentiably(normal(0), self.grid, self.target, normal)
        return reparametrised_loss(z, log_ratio, self.target)


LARGEST_SCORE = 1e3  # of a coordinate, to which the target's is clipped in losses
PATH_LOSSES = {"log_variance": LogVarianceLoss, "kl": PathKLLoss}


def reparametrised_loss(z: Tensor, log_ratio: Tensor, target: StandardizedTarget) -> Tensor:
    """Minus the mean of ``log rho(z) + log_ratio`` over the rows z (n, d) in the support.

    The score of the target, clipped, stands in for a graph through the energy.
    """
    log_prob, score = target.log_prob_and_score(z.detach())
    inside = log_prob.isfinite() & log_ratio.isfinite()
    terms = (score.clamp(-LARGEST_SCORE, LARGEST_SCORE) * (z - z.detach())).sum(1) + log_prob + log_ratio
    return -terms[inside].mean() if inside.any() else 0.0 * z.sum()


def _winsorise(log_weights: Tensor, z: float = 4.0) -> Tensor:
    """Centre on the mean after pulling values to within z robust standard deviations of the median."""
    median = log_weights.median()
    spread = 1.4826 * (log_weights - median).abs().median().clamp(min=1e-6)
    clipped = log_weights.clamp(median - z * spread, median + z * spread)
    return clipped - clipped.mean()
