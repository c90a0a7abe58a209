"""Score matching on particles that keep moving."""

__all__ = ["DenoisingLoss", "FamilyDenoising"]

from typing import Any

import torch
from torch import Tensor

from ..._support.devices import rand, randn
from ...models.diffusion import DiffusionModel
from ...models.process import LOG_SNR_MIN, noise_levels
from ..groups import ParticleGroups
from ..particles import Population
from ..specifications import Particles
from .base import Objective, rows_within


class DenoisingLoss(Objective):
    """Simulation-free score matching on particles that keep moving.

    The regression target mixes the noise itself with the target-score identity ``-s score(x_0) / a`` (De Bortoli et al.
    2024), weighted by ``c = s^2 / (s^2 + a^2 w^2)`` where w is the finest length scale along each coordinate: each is
    used where its variance is small. The variance is fitted by the likelihood of the true step (the bound of Nichol &
    Dhariwal 2021, with the expectation over x_{k+1} taken in closed form), which leaves the mean alone.

    Parameters
    ----------
    model : DiffusionModel
        What is trained.
    target : StandardizedTarget
        Gives the score that the network reads.
    population : Population
        The particles.
    n_steps : int
        Steps of the grid whose kernels the variance is fitted for.
    batch_size : int
        Rows of one batch.
    generator : torch.Generator
        Source of randomness.
    move_every : int, default=10
        Iterations between moves of the particles.
    """

    def __init__(
        self,
        model: DiffusionModel,
        target,
        population: Population,
        n_steps,
        batch_size,
        generator,
        move_every=Particles.move_every,
    ):
        self.model, self.target, self.population = model, target, population
        self.batch_size = rows_within(batch_size, model.n_features)
        self.generator, self.move_every = generator, move_every
        self.spacing = (model.log_snr_max - LOG_SNR_MIN) / max(n_steps - 1, 1)

    def __call__(self, iteration: int) -> Tensor:
        """The loss of one batch."""
        if iteration and iteration % self.move_every == 0:
            self.population.move()
        return self._of(self.model, self.target, *self.population.draw(self.batch_size))

    def _of(self, model, target, x_0: Tensor, score_0: Tensor) -> Tensor:
        """The loss at points (n, d) of a target, with its scores there."""
        uniform = rand(self.generator, len(x_0))
        log_snr = LOG_SNR_MIN + (self.model.log_snr_max - LOG_SNR_MIN) * uniform
        a, s = (t[:, None] for t in noise_levels(log_snr))
        eps = randn(self.generator, x_0.shape)
        x = a * x_0 + s * eps
        noise, noise_var = model.noise(x, log_snr, target)
        loss = (noise - self._regression_target(eps, score_0, a, s)).square().clamp(max=1e3).sum(1).mean()
        if noise_var is not None:
            loss = loss + self._variance_loss(log_snr, s, noise_var, (eps - noise.detach()) ** 2)
        return loss / x_0.shape[1]

    def _regression_target(self, eps, score_0, a, s):
        c = s**2 / (s**2 + (a * self.model.network.width) ** 2)
        return c * eps - (1 - c) * (score_0.clamp(-1e3, 1e3) * s / a)

    def _variance_loss(self, log_snr, s, noise_var, residual):
        """Expected negative log density of the true step, in units of v~ (with v~ / kappa = ratio)."""
        s_next = noise_levels(log_snr + self.spacing)[1][:, None]
        b_squared = torch.sigmoid(log_snr)[:, None] / torch.sigmoid(log_snr + self.spacing)[:, None]
        ratio = b_squared * s_next**2 / (s**2 - b_squared * s_next**2)  # v~ / kappa
        variance = ratio + noise_var
        return 0.5 * (variance.log() + (ratio + residual.clamp(max=1e3)) / variance).sum(1).mean()


class FamilyDenoising(DenoisingLoss):
    """Score matching for a family, at particles of many contexts.

    Parameters
    ----------
    model : ConditionalDiffusionModel
        What is trained.
    groups : ParticleGroups
        The particles.
    n_steps, batch_size, generator
        See `DenoisingLoss`.
    """

    def __init__(self, model, groups: ParticleGroups, n_steps: int, batch_size: int, generator):
        population: Any = groups
        super().__init__(model, groups.target, population, n_steps, batch_size, generator)
        self.family, self.groups, self.n_groups = model, groups, max(1, batch_size // groups.n_each)

    def __call__(self, iteration: int) -> Tensor:
        """The loss of one batch."""
        batch = self.groups.draw(self.n_groups)
        model, target = self.family.given(batch.contexts), self.groups.target.given(batch.contexts)
        return self._of(model, target, batch.z.flatten(0, 1), batch.score.flatten(0, 1))
