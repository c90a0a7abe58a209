"""Likelihood of an invertible map at particles that keep moving."""

__all__ = [
    "LikelihoodLoss",
    "cross_images",
    "exchange_images",
    "levels_of_steps",
    "levels_to_target",
    "options_within",
]

from typing import Any

import torch
from torch import Tensor

from ..._support.devices import rand, randint, randn
from ...models.maps import standard_normal_log_prob
from ...models.networks import in_parts
from ...models.process import LOG_SNR_MIN, noise_levels
from ..particles import Population
from ..specifications import Likelihood
from .base import Objective
from .known_points import KnownPointsLoss, spread_of, truncated_weights

N_CROSSINGS = 2  # swaps of coordinates that pairs of a particle and an image try after an exchange


class LikelihoodLoss(Objective):
    """Minus the weighted mean log density of the mapped states at particles that keep moving: covers the mass.

    Particles count by a power of their weight under the map, ``(p / q)^(order - 1)``, truncated. This turns the
    Kullback-Leibler divergence of the target p from the distribution q of one-step draws into Renyi's of a larger
    order: that of order 2 is the variance of the weights (Midgley et al. 2023, who draw particles by annealed
    importance sampling).

    At the prior end the density is that of one-step draws. Half as many states are mapped between other levels t and
    t', where F(., t, t') has to carry the distribution p_t of the noised target to p_t'. There log p_t is not known.
    Its gradient at the inverse image is the score of the noised target, which is all that the gradient of the loss
    needs. All are inverted in one pass.

    Parameters
    ----------
    model : OneStepModel or ShortcutModel
        What is trained; its map is invertible.
    population : Population
        The particles.
    batch_size : int
        Particles in a batch.
    control : DiffusionModel
        Gives the score at other levels.
    target : StandardizedTarget
        What the control reads.
    levels : callable
        ``levels(n)`` gives the levels (n,) that the map goes from and to, as log signal-to-noise ratios.
    partial_levels : Tensor, optional
        Levels (k,) that the map goes to from the prior end, beside the target: half as many states go there as to the
        target, with half the weight.
    order : float, default=1.5
        Of the divergence, at least 1, which is that of Kullback and Leibler.
    move_every, exchange_every : int, default=8 and 50
        Iterations between moves of all the particles, and between exchanges of half of them for images of the map.
    regression : float, default=0.0
        Weight of the variance of log p - log q over the particles (Richter et al. 2020): uses what is known of p there,
        which makes up for particles that are few and hardly move.
    largest_count : float, default=10.0
        Largest weight of a particle, in units of the median.
    known : KnownPointsLoss, optional
        Takes the place of the particles at the prior end: few evaluations leave few of these, and the weighted points
        that they were taken from tell more.
    """

    def __init__(
        self,
        model,
        population: Population,
        batch_size: int,
        control,
        target,
        levels,
        partial_levels: Tensor | None = None,
        order: float = Likelihood.order,
        move_every: int = Likelihood.move_every,
        exchange_every: int = Likelihood.exchange_every,
        regression: float = 0.0,
        largest_count: float = Likelihood.largest_count,
        known: KnownPointsLoss | None = None,
    ):
        self.largest_count, self.known = largest_count, known
        self.regression = regression
        self.model, self.population, self.batch_size = model, population, batch_size
        self.move_every, self.exchange_every = move_every, exchange_every
        self.control, self.target, self.levels = control, target, levels
        self.partial_levels, self.order = partial_levels, order

    def __call__(self, iteration: int) -> Tensor:
        """The loss of one batch."""
        if iteration and iteration % self.move_every == 0:
            self.population.move()
        if iteration % self.exchange_every == self.exchange_every - 1:
            exchange_images(self.population, self.model, len(self.population) // 2)
        n, half = 0 if self.known else self.batch_size, max(1, self.batch_size // 2)
        population, start = self.population, self.model.start().expand(max(n, half))
        particles, log_p = population.draw_with_log_prob(n)
        parts = [(particles, start[:n], torch.full_like(start[:n], torch.inf))]  # states at `to`, from, to
        if self.partial_levels is not None:
            to = self.partial_levels[randint(population.generator, 0, len(self.partial_levels), (half,))]
            parts.append((population.noised(half, to), start[:half], to))
        level, to = self.levels(half)
        parts.append((population.noised(half, to), level, to))
        x, log_det = self.model.map.inverse_and_log_det(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
        log_prob = log_det[:-half] + standard_normal_log_prob(x[:-half])
        fit = self.known(iteration) if self.known else self._fit_of(log_p, log_prob[:n])
        loss = fit + self._with_gradient_of_the_score(x[-half:], log_det[-half:], level)
        return loss if self.partial_levels is None else loss - 0.5 * log_prob[n:].mean()

    def _fit_of(self, log_p, log_prob):
        """Of the log density (n,) of one-step draws at particles, where that of the target is known."""
        count: Tensor | float = 1.0
        if self.order > 1:
            count = truncated_weights((self.order - 1) * (log_p - log_prob.detach()), self.largest_count)
        fit = -(count * log_prob).mean()
        return fit + self.regression * spread_of((log_p - log_p.mean()).float() - log_prob) if self.regression else fit

    def _with_gradient_of_the_score(self, x, log_det, level):
        """A scalar of value zero with the gradient of minus the mean of ``log p_t(x) + log_det``."""
        with torch.no_grad():
            noise, _ = self.control.noise(x.detach(), level, self.target)
            score = -noise / noise_levels(level)[1][:, None]
        surrogate = -((score * x).sum(1) + log_det).mean()
        return surrogate - surrogate.detach()


def options_within(budget, population: Population, n_iter: int, share: float, by: Likelihood) -> dict[str, Any]:
    """Options of a `LikelihoodLoss`, the moves and exchanges of which take a share of the evaluations left at most."""
    n = len(population)  # exchanges evaluate half of them, as many images of the map, and those that come in
    exchanged = 3 * n // 2 + (N_CROSSINGS * n // 2 if crosses(population) else 0)
    move_every = budget.spacing(by.move_every, n, n_iter, (1 - by.exchange_share) * share)
    return {
        "move_every": move_every,
        "exchange_every": budget.spacing(by.exchange_every, exchanged, n_iter, by.exchange_share * share),
        "regression": by.regression if move_every > by.rare_moves else 0.0,
        "order": by.order,
        "largest_count": by.largest_count,
    }


def exchange_images(population: Population, model, n: int) -> float:
    """Let images of an invertible one-step map take the places of n particles, by their exact weights.

    In many dimensions particles swap some of their coordinates with other images afterwards.
    """
    target = population.target

    @torch.no_grad()
    def weigh(z):
        return target.log_prob(z) - in_parts(model.log_prob, z).double()

    latent = randn(population.generator, n, model.n_features)
    z, log_weights = model.call_and_log_weight(latent, target)
    share = population.exchange(z, log_weights, weigh)
    if crosses(population):
        cross_images(population, model, n, N_CROSSINGS)
    return share


def crosses(population: Population) -> bool:
    """Whether there are so many dimensions that particles swap some of their coordinates."""
    return population.x.shape[1] > population.one_step


def cross_images(population: Population, model, n: int, n_times: int) -> float:
    """Let n particles swap some of their coordinates with images of an invertible one-step map."""

    @torch.no_grad()
    def log_density(z):
        return in_parts(model.log_prob, z.float()).double()

    @torch.no_grad()
    def draw(m):
        latent = randn(population.generator, m, model.n_features)
        return in_parts(lambda z: model.map(z, model.start()), latent), log_density

    return population.cross_with(draw, n, n_times)


def levels_to_target(log_snr_max: float, generator):
    """Sampler of pairs of levels: from one uniform in log signal-to-noise to the target."""

    def levels(n: int) -> tuple[Tensor, Tensor]:
        uniform = rand(generator, n)
        return LOG_SNR_MIN + (log_snr_max - LOG_SNR_MIN) * uniform, torch.full_like(uniform, torch.inf)

    return levels


def levels_of_steps(steps, generator):
    """Sampler of pairs of levels: the ends of steps of a grid, of any size that it has."""

    def levels(n: int) -> tuple[Tensor, Tensor]:
        start, size = steps.draw(n, generator)
        return steps.log_snr[start], steps.log_snr[start + size]

    return levels
