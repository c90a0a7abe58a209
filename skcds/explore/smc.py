"""Tempered sequential Monte Carlo from a Gaussian, which ends early with what it has."""

__all__ = ["Tempered", "moments", "temper"]

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .._support.devices import randn
from .._support.errors import Spent
from ..density.standardize import Standardization, StandardizedTarget
from ..train.particles import Population, systematic_index
from .separate import separated
from .stages import Tempering

MANY_FEATURES = 20  # above which coordinates are kept apart that are independent, and particles swap some of them


@dataclass
class Tempered:
    """What a run found.

    Attributes
    ----------
    z : Tensor
        Particles (n, d) in the coordinates of the target.
    log_evidence : float
        Estimate of log Z; ``-inf`` when too few particles met the support, or the run was ended early.
    n_temperatures : int
        Number of temperatures.
    stopped : BaseException or None
        What ended it early: `Spent`, or KeyboardInterrupt.
    """

    z: Tensor
    log_evidence: float
    n_temperatures: int
    stopped: BaseException | None = None


class TemperedTarget:
    """Geometric path target^beta N(0, scale^2 I)^(1 - beta), preconditioned by an affine map z = loc + L u."""

    def __init__(self, target: StandardizedTarget, scale: float):
        self.target, self.scale, self.beta = target, scale, 0.0
        self.standardization = Standardization(target.n_features, full=False)
        self.has_gradient = target.has_gradient

    def log_reference(self, z: Tensor) -> Tensor:
        """Log density (n,) of the reference at points (n, d)."""
        d = z.shape[1]
        return -0.5 * (z**2).sum(1) / self.scale**2 - d * math.log(self.scale * math.sqrt(2 * math.pi))

    def log_prob_and_score(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Log density (n,) at beta, up to a constant, and its score (n, d), in preconditioned coordinates."""
        z = self.standardization(u)
        log_prob, score = self.target.log_prob_and_score(z)
        tempered = self.beta * log_prob + (1 - self.beta) * self.log_reference(z)
        if self.has_gradient:
            score = self.beta * score - (1 - self.beta) * z / self.scale**2
        return tempered.nan_to_num(nan=-torch.inf, neginf=-torch.inf), self.standardization.pull_back(u, score)


def moments(x: Tensor, full_covariance: int = Tempering.full_covariance) -> tuple[Tensor, Tensor]:
    """Mean, and covariance, with a jitter relative to the variances; its diagonal in more features than those given.

    In more than 20 features correlations between groups of independent coordinates are left out (see `separated`).
    """
    d = x.shape[1]
    variance = x.var(0).clamp(min=1e-300)
    if d <= full_covariance and len(x) >= 10 * d:
        covariance = torch.cov(x.T).reshape(d, d) + torch.diag(1e-8 * variance)
        if torch.linalg.cholesky_ex(covariance).info == 0:
            return x.mean(0), separated(x, covariance) if d > MANY_FEATURES else covariance
    return x.mean(0), variance


def next_beta(gap: Tensor, beta: float, min_ess: float = Tempering.min_ess) -> float:
    """Largest next inverse temperature whose incremental weights keep a share `min_ess` of the particles effective."""

    def share(candidate):
        weights = torch.softmax((candidate - beta) * gap, 0)
        return float(1 / (weights**2).sum()) / len(gap)

    if share(1.0) >= min_ess:
        return 1.0
    low, high = beta, 1.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if share(middle) >= min_ess else (low, middle)
    return high if low == beta else low


def temper(
    target: StandardizedTarget, n_particles: int, scale: float, n_moves: int, generator, min_hits: int = 1,
    progress=None, max_raised: float = 1.0, max_temperatures: float = math.inf, by: Tempering | None = None,
) -> Tempered:  # fmt: skip
    """Tempered sequential Monte Carlo from N(0, scale^2 I) (Del Moral, Doucet & Jasra 2006).

    A run that is ended early, by a limit or by Ctrl-C, goes as far towards the target as its particles' weights allow.

    Parameters
    ----------
    target : StandardizedTarget
        The density.
    n_particles : int
        Number of particles.
    scale : float
        Standard deviation of the Gaussian that it starts from.
    n_moves : int
        Moves of all particles at a temperature.
    generator : torch.Generator
        Source of randomness.
    min_hits : int, default=1
        Particles that have to meet the support.
    progress : Progress, optional
        Told how far the run is.
    max_raised : float, default=1.0
        Share of the first particles at which the user's function may raise an exception.
    max_temperatures : float, default=inf
        Temperatures after which the run is given up.
    by : Tempering, optional
        How far apart temperatures are, and more.

    Returns
    -------
    Tempered
        Its ``log_evidence`` is ``-inf`` when fewer than `min_hits` particles met the support, the function raised at
        too many of them, or the run was given up.
    """
    by = Tempering() if by is None else by
    path = TemperedTarget(target, scale)
    z = scale * randn(generator, n_particles, target.n_features, dtype=torch.float64)
    log_evidence, step, n_temperatures, population = 0.0, 0.1, 0, None
    raised = target.energy.n_raised + max_raised * n_particles
    try:
        while path.beta < 1:
            log_prob = target.log_prob(z)
            inside = log_prob > -torch.inf
            hopeless = n_temperatures >= max_temperatures or (not n_temperatures and target.energy.n_raised > raised)
            if inside.sum() < min_hits or hopeless:
                return Tempered(z, -math.inf, n_temperatures)
            gap = (log_prob - path.log_reference(z))[inside]
            beta = next_beta(gap, path.beta, by.min_ess)
            log_weights = (beta - path.beta) * gap
            log_evidence += float(torch.logsumexp(log_weights, 0)) - math.log(n_particles)
            z = z[inside][systematic_index(log_weights, n_particles, generator)]
            path.standardization = Standardization.from_moments(*moments(z, by.full_covariance))
            path.beta, n_temperatures = beta, n_temperatures + 1
            population = Population(path, path.standardization.inverse(z), generator, step=step)
            population.move(n_moves)
            if target.n_features > MANY_FEATURES:
                population.cross(max(2, n_moves // 3))
            z, step = path.standardization(population.x), population.step
            if progress is not None:
                progress.note(beta, log_z=log_evidence)
    except (Spent, KeyboardInterrupt) as stopped:
        if population is not None:
            z = _as_far_as_it_goes(path, population, generator, by.last_ess)
        return Tempered(z, log_evidence if path.beta == 1 else -math.inf, n_temperatures, stopped)
    return Tempered(z, log_evidence, n_temperatures)


def _as_far_as_it_goes(path: TemperedTarget, population: Population, generator, last_ess: float) -> Tensor:
    """Particles of an unfinished run, resampled for the coldest temperature that leaves enough of them effective."""
    z = path.standardization(population.x)
    if path.beta >= 1:
        return z
    reference = path.log_reference(z)
    gap = (population.log_prob - (1 - path.beta) * reference) / path.beta - reference
    inside = gap.isfinite()
    if not inside.any():
        return z
    beta = next_beta(gap[inside], path.beta, last_ess)
    return z[inside][systematic_index((beta - path.beta) * gap[inside], len(z), generator)]
