"""Training objectives of the diffusion sampler."""

__all__ = ["PATH_LOSSES", "DenoisingLoss", "LogVarianceLoss", "PathKLLoss"]

import torch
from torch import Tensor

from ...devices import rand, randint, randn, randperm
from ...diffusion import DiffusionModel
from ...mcmc import Population
from ...process import LOG_SNR_MIN, noise_levels
from ...standardize import StandardizedTarget

MOVE_EVERY = 10  # iterations of score matching between moves of the particles


class DenoisingLoss:
    """Simulation-free score matching on particles that keep moving.

    The regression target mixes the noise itself with the target-score identity ``-s score(x_0) / a`` (De Bortoli et al.
    2024), weighted by ``c = s^2 / (s^2 + a^2 w^2)`` where w is the finest scale along each coordinate: each is used
    where its variance is small. The variance is fitted by the likelihood of the true step (the bound of Nichol &
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
        move_every=MOVE_EVERY,
    ):
        self.model, self.target, self.population = model, target, population
        self.batch_size, self.generator, self.move_every = batch_size, generator, move_every
        self.spacing = (model.log_snr_max - LOG_SNR_MIN) / max(n_steps - 1, 1)

    def __call__(self, iteration: int) -> Tensor:
        """The loss of one batch."""
        if iteration and iteration % self.move_every == 0:
            self.population.move()
        x_0, score_0 = self.population.draw(self.batch_size)
        uniform = rand(self.generator, len(x_0))
        log_snr = LOG_SNR_MIN + (self.model.log_snr_max - LOG_SNR_MIN) * uniform
        a, s = (t[:, None] for t in noise_levels(log_snr))
        eps = randn(self.generator, x_0.shape)
        x = a * x_0 + s * eps
        noise, noise_var = self.model.noise(x, log_snr, self.target)
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


class LogVarianceLoss:
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


class PathKLLoss:
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


PATH_LOSSES = {"log_variance": LogVarianceLoss, "kl": PathKLLoss}


def reparametrised_loss(z: Tensor, log_ratio: Tensor, target: StandardizedTarget) -> Tensor:
    """Minus the mean of ``log rho(z) + log_ratio`` over the rows z (n, d) in the support.

    The score of the target, clipped, stands in for a graph through the energy.
    """
    log_prob, score = target.log_prob_and_score(z.detach())
    inside = log_prob.isfinite() & log_ratio.isfinite()
    terms = (score.clamp(-1e3, 1e3) * (z - z.detach())).sum(1) + log_prob + log_ratio
    return -terms[inside].mean() if inside.any() else 0.0 * z.sum()


def _winsorise(log_weights: Tensor, z: float = 4.0) -> Tensor:
    """Centre on the mean after pulling values to within z robust standard deviations of the median."""
    median = log_weights.median()
    spread = 1.4826 * (log_weights - median).abs().median().clamp(min=1e-6)
    clipped = log_weights.clamp(median - z * spread, median + z * spread)
    return clipped - clipped.mean()
