"""Markov moves for a population of particles: Metropolis-adjusted Langevin, with step sizes of many scales."""

__all__ = [
    "Population",
    "effective_share",
    "langevin_step",
    "mala_step",
    "spread_index",
    "systematic_index",
    "truncated",
]

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .._support.devices import rand, randint, randn, randperm
from ..models.process import noise_levels

CORRECTION_MOVES = 5  # moves that part the copies which resampling made
NARROWEST = 1e-3  # step along a coordinate, relative to the widest
TARGET_ACCEPTANCE = {True: 0.55, False: 0.3}  # with gradient (MALA), without (random walk)


def mala_step(log_prob_and_score: Callable, x: Tensor, log_prob: Tensor, score: Tensor, step: Tensor, generator):
    """One Metropolis-adjusted Langevin move of every particle (Roberts & Tweedie 1996).

    Parameters
    ----------
    log_prob_and_score : callable
        (n, d) points to log density (n,) and score (n, d). A score of zeros gives random-walk Metropolis.
    x, log_prob, score : Tensor
        Particles (n, d) and their log density (n,) and score (n, d).
    step : Tensor
        Step size h, (n, 1), or (n, d) where coordinates have their own: the proposal is N(x + h score, 2 h I).
    generator : torch.Generator
        Source of randomness.

    Returns
    -------
    x, log_prob, score : Tensor
        The moved particles.
    accepted : Tensor
        Boolean, (n,).
    """
    noise = randn(generator, x.shape, dtype=x.dtype)
    log_uniform = rand(generator, len(x), dtype=torch.float64).log()
    return langevin_step(log_prob_and_score, x, log_prob, score, step, noise, log_uniform)


def langevin_step(log_prob_and_score: Callable, x: Tensor, log_prob, score, step: Tensor, noise, log_uniform):
    """`mala_step` with its random numbers: standard normal noise (n, d), and logarithms of uniform numbers (n,)."""
    y = x + step * score + (2 * step).sqrt() * noise
    log_prob_y, score_y = log_prob_and_score(y)
    forward = (y - x - step * score) ** 2
    backward = (x - y - step * score_y) ** 2
    if step.shape[1] == 1:
        correction = (forward.sum(1) - backward.sum(1)) / (4 * step[:, 0])
    else:
        correction = ((forward - backward) / (4 * step)).sum(1)
    log_ratio = log_prob_y - log_prob + correction.double()
    accepted = log_uniform < log_ratio
    keep = accepted[:, None]
    return (
        torch.where(keep, y, x),
        torch.where(accepted, log_prob_y, log_prob),
        torch.where(keep, score_y, score),
        accepted,
    )


def systematic_index(log_weights: Tensor, n: int, generator) -> Tensor:
    """Indices (n,) of a systematic resampling by log weights (m,)."""
    uniform = rand(generator, 1, dtype=torch.float64)
    positions = (torch.arange(n, dtype=torch.float64, device=uniform.device) + uniform) / n
    return torch.searchsorted(torch.softmax(log_weights, 0).cumsum(0), positions).clamp(max=len(log_weights) - 1)


def truncated(log_weights: Tensor) -> Tensor:
    """Log weights (n,), at most sqrt(n) times their mean (Ionides 2008)."""
    return log_weights.clamp(max=torch.logsumexp(log_weights, 0) - 0.5 * math.log(len(log_weights)))


def spread_index(m: int, n: int, device) -> Tensor:
    """Indices (n,) of m particles, each as often as another or once more, and not the first of them.

    Particles may be in the order of a resampling, in which those of a mode are neighbours.
    """
    return torch.arange(n, device=device) * m // n


def effective_share(log_weights: Tensor) -> float:
    """Effective sample size of log weights (n,) over n; 0 when all weights are zero."""
    if not (log_weights > -torch.inf).any():
        return 0.0
    return float(1 / torch.softmax(log_weights, 0).square().sum()) / len(log_weights)


class Population:
    """Particles that are kept moving under a target, so that what trains on them never sees a fixed data set.

    Every particle draws its step size log-uniformly from `decades` below the adapted largest one at every move, so that
    narrow and wide regions both mix. In many dimensions coordinates have steps of their own, by the mean size of their
    scores: in a product of bimodal and other coordinates of one variance, those with modes allow only steps of the size
    of a mode, and the others would hardly move.

    Parameters
    ----------
    target : StandardizedTarget
        Has ``log_prob_and_score``.
    x : Tensor
        Particles (n, d).
    generator : torch.Generator
        Source of randomness.
    step : float, default=0.05
        Largest step size to start from.
    decades : float, default=1.0
        Spread of the step sizes.
    known : tuple of Tensor, optional
        Their log density (n,) and score (n, d), where these were evaluated before.
    one_step : int, default=20
        Dimensions up to which all coordinates have one step size.
    """

    def __init__(
        self, target, x: Tensor, generator, step: float = 0.05, decades: float = 1.0, known=None, one_step: int = 20
    ):  # fmt: skip
        self.target, self.generator, self.step, self.decades = target, generator, step, decades
        self.one_step = one_step
        self.acceptance = TARGET_ACCEPTANCE[target.has_gradient]
        if known is None:
            self.replace(x)
        else:
            self.particles = (x, *known)

    def __len__(self) -> int:
        return len(self.x)

    @property
    def x(self) -> Tensor:
        """Particles (n, d)."""
        return self.particles[0]

    @property
    def log_prob(self) -> Tensor:
        """Their log density (n,)."""
        return self.particles[1]

    @property
    def score(self) -> Tensor:
        """Their score (n, d)."""
        return self.particles[2]

    def state_dict(self) -> dict:
        """What `load_state_dict` puts back."""
        return {"particles": self.particles, "step": self.step}

    def load_state_dict(self, state: dict) -> None:
        """Go back to an earlier state."""
        self.particles = tuple(part.to(self.generator.device) for part in state["particles"])
        self.step = state["step"]

    def replace(self, x: Tensor) -> None:
        """Take other particles; density and score are evaluated."""
        self.particles = (x, *self.target.log_prob_and_score(x))

    def squared_widths(self) -> Tensor | None:
        """Squared scales of the steps along the coordinates (d,), the largest 1; None where all have one."""
        if not self.target.has_gradient or self.x.shape[1] <= self.one_step:
            return None
        sizes = self.score.nan_to_num(posinf=0.0, neginf=0.0).abs().mean(0)
        smallest = sizes.min().clamp(min=1e-12)
        return (smallest / sizes).clamp(min=NARROWEST) ** 2 if (sizes > 0).all() else None

    def move(self, n_moves: int = 1) -> None:
        """Move all the particles `n_moves` times and adapt the step size to the acceptance rate."""
        widths = self.squared_widths()
        for _ in range(n_moves):
            scale = rand(self.generator, len(self.x), 1, dtype=self.x.dtype)
            step = self.step * 10 ** (-self.decades * scale)
            if widths is not None:
                step = step * widths
            x, log_prob, score, accepted = mala_step(
                self.target.log_prob_and_score, self.x, self.log_prob, self.score, step, self.generator
            )
            self.particles = x, log_prob, score  # all at once, also when the user interrupts
            self.step *= math.exp(0.5 * (float(accepted.double().mean()) - self.acceptance))

    def cross(self, n_times: int = 1) -> float:
        """Let pairs of particles swap some of their coordinates, by Metropolis; returns the last share that did.

        A particle in one of many modes of a product has a combination of sides that local moves do not change, so that
        tempering would weigh and copy whole combinations, of which soon few are left. Swaps mix the sides of each
        coordinate independently of the others (crossover; Liang & Wong 2001): where coordinates are independent every
        swap is accepted. The share of a coordinate that is swapped is drawn for each pair, from one in two to few.
        """
        n, share = len(self) // 2, 0.0
        for k in range(n_times):
            rows = randperm(self.generator, len(self))[: 2 * n]
            swapped = self._swapped(n, k)
            one, other = self.x[rows[:n]], self.x[rows[n:]]
            new = torch.cat([torch.where(swapped, other, one), torch.where(swapped, one, other)])
            log_prob, score = self.target.log_prob_and_score(new)
            log_ratio = (log_prob - self.log_prob[rows]).unflatten(0, (2, n)).sum(0)
            accepted = rand(self.generator, n, dtype=torch.float64).log() < log_ratio
            both = accepted.repeat(2)
            self._put(rows[both], (new[both], log_prob[both], score[both]))
            share = float(accepted.double().mean())
        return share

    def cross_with(self, draw: Callable, n: int, n_times: int = 1) -> float:
        """Let n particles swap some of their coordinates with draws, by Metropolis; returns the last share that did.

        A pair of a particle and a draw is a state of the target times the density of draws. Swaps within such pairs
        leave both invariant, as those of parallel tempering do. Where coordinates are independent, masses of their
        modes come right however many coordinates there are: `exchange` replaces all coordinates at once, which is
        accepted the less the more there are, and swaps among particles do not change what a coordinate's values are.

        Parameters
        ----------
        draw : callable
            Maps a number m to draws (m, d) and a function, of points (m, d), that gives the log density (m,) that they
            are from. There are new ones each time: of a swap with the same ones what one gains the other loses.
        n : int
            How many particles, at most as many as there are.
        n_times : int, default=1
            Draws that each tries.
        """
        share = 0.0
        for k in range(n_times):
            rows = randperm(self.generator, len(self))[:n]
            draws, log_density = draw(len(rows))
            swapped, old = self._swapped(len(rows), k), self.x[rows]
            new, back = torch.where(swapped, draws, old), torch.where(swapped, old, draws)
            log_prob, score = self.target.log_prob_and_score(new)
            log_ratio = log_prob - self.log_prob[rows] + log_density(back) - log_density(draws)
            accepted = rand(self.generator, len(rows), dtype=torch.float64).log() < log_ratio
            self._put(rows[accepted], (new[accepted], log_prob[accepted], score[accepted]))
            share = float(accepted.double().mean())
        return share

    def _swapped(self, n: int, k: int) -> Tensor:
        """Which coordinates n pairs swap at the k-th time, (n, d): half of them, and every other time fewer."""
        d = self.x.shape[1]
        scales = max(1, math.ceil(math.log2(max(d, 2))))
        chance = 0.5 ** (1 + (k % 2) * randint(self.generator, 0, scales, (n,)))
        return rand(self.generator, n, d) < chance[:, None].float()

    def _put(self, rows: Tensor, values) -> None:
        """Take values of particles, densities and scores in some rows."""
        self.particles = tuple(
            old.index_copy(0, rows, value.to(old.dtype)) for old, value in zip(self.particles, values, strict=True)
        )

    def exchange(self, z: Tensor, log_weights: Tensor, weigh: Callable) -> float:
        """Let draws take the places of random particles by independence Metropolis; returns the share that did.

        A draw with weight w takes the place of a particle with weight v with probability ``min(1, w / v)`` (Tierney
        1994), which leaves the target invariant however poor the draws are: what they know less of stays. The weights
        may be those of random paths that end at the particles (see `DiffusionModel.noise_back`), as the path is drawn
        from its distribution under the target: Metropolis on the space of paths.

        Parameters
        ----------
        z : Tensor
            Draws (m, d), of which as many as there are particles are used.
        log_weights : Tensor
            Their exact log weights (m,), up to a constant.
        weigh : callable
            Maps particles (n, d) to their log weights (n,) under the same sampler, with the same constant.
        """
        rows = randperm(self.generator, len(self))[: len(z)]
        uniform = rand(self.generator, len(rows), dtype=torch.float64)
        accepted = uniform.log() < log_weights[: len(rows)] - weigh(self.x[rows])
        if accepted.any():
            rows, new = rows[accepted], z[: len(accepted)][accepted]
            self._put(rows, (new, *self.target.log_prob_and_score(new)))
        return float(accepted.double().mean())

    def correct(self, z: Tensor, log_weights: Tensor, min_share: float) -> float:
        """Replace the particles by a resample of weighted draws, then move them; returns the weights' normalised ESS.

        The weights are truncated at sqrt(n) times their mean (Ionides 2008). Nothing changes when the share is below
        `min_share`: the draws then know less than the particles.
        """
        share = effective_share(log_weights)
        if share > 0 and share >= min_share:
            self.replace(z[systematic_index(truncated(log_weights), len(self), self.generator)])
            self.move(CORRECTION_MOVES)
        return share

    def draw(self, n: int) -> tuple[Tensor, Tensor]:
        """Particles (n, d) picked at random with replacement, and their scores."""
        index = randint(self.generator, 0, len(self.x), (n,))
        return self.x[index], self.score[index]

    def draw_with_log_prob(self, n: int) -> tuple[Tensor, Tensor]:
        """Particles (n, d) picked at random with replacement, and their log densities (n,) up to a constant."""
        index = randint(self.generator, 0, len(self.x), (n,))
        return self.x[index], self.log_prob[index]

    def noised(self, n: int, log_snr: Tensor) -> Tensor:
        """Particles (n, d) picked at random and noised to levels (n,)."""
        a, s = (t[:, None] for t in noise_levels(log_snr))
        x = self.draw(n)[0]
        return a * x + s * randn(self.generator, x.shape)
