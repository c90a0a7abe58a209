"""Exploration of a family: a pilot looks at a few contexts each, and all are tempered side by side from there."""

__all__ = ["Explored", "explore_family", "scout", "temper_family"]

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .._support.devices import rand, randn
from .._support.errors import Spent
from ..density.families import FamilyEnergy
from ..density.standardize import Standardization, StandardizedTarget
from ..train.budget import Budget
from ..train.particles import TARGET_ACCEPTANCE, mala_step
from .pilot import run_pilot
from .smc import moments
from .specifications import Pilot
from .stages import FamilyTempering
from .start import Start

FEWEST_GROUPS = 20  # contexts that a family can be learned from


@dataclass
class Explored:
    """Particles of many contexts.

    Attributes
    ----------
    contexts : Tensor
        (m, k).
    x : Tensor
        Particles (m, r, d) in unconstrained coordinates.
    log_evidence : Tensor
        Estimates (m,) of log Z, by few particles each.
    """

    contexts: Tensor
    x: Tensor
    log_evidence: Tensor


def explore_family(
    energy: FamilyEnergy, n_groups: int, generator, budget: Budget, start: Start | None = None,
    pilot: Pilot | None = None,
) -> Explored:  # fmt: skip
    """Particles for many contexts from the energy alone.

    Parameters
    ----------
    energy : FamilyEnergy
        The family.
    n_groups : int
        Contexts; fewer where the limits do not allow for so many.
    generator : torch.Generator
        Source of randomness.
    budget : Budget
        Limits of the fit.
    start : Start, optional
        Where the user says that the densities are.
    pilot : Pilot, optional
        How the pilots go; its ``family`` says how the tempering goes.

    Raises
    ------
    InvalidEnergyError
        Where the energy at a context is not one of a density.
    """
    pilot = Pilot() if pilot is None else pilot
    by, full_covariance = pilot.family, pilot.tempering.full_covariance
    with budget.part(by.time_share, by.evals_share):
        if start is not None and start.gaussian is not None:
            reference = start.gaussian
        else:
            points = scout(energy, generator, budget, start, pilot)
            reference = Standardization.from_moments(*moments(points, full_covariance))
        budget.progress.phase("tempering")
        cost = by.n_temperatures * (1 + _moves(by, energy)) * by.n_each
        affordable = budget.energy_evals_left(by.evals_share) / cost
        n_groups = int(min(n_groups, max(affordable, FEWEST_GROUPS)))
        contexts = energy.source.draw(n_groups, generator)
        return temper_family(energy, contexts, reference.to(energy.device), generator, budget, by)


def _moves(by: FamilyTempering, energy: FamilyEnergy) -> int:
    return by.n_moves if energy.has_gradient else by.n_moves_without


def scout(energy: FamilyEnergy, generator, budget: Budget, start: Start | None, pilot: Pilot) -> Tensor:
    """Points (n, d) of the densities of a few contexts, the most different ones, by a pilot for each."""
    found, bounds, by = [], energy.bounds, pilot.family
    monitor = energy.monitor
    try:
        for context in most_different(energy.source.draw(by.n_candidates, generator), by.n_scouts):
            energy.monitor = limits = _limits_of_a_scout(energy, budget, by)
            if start is not None:
                energy.bounds = bounds  # in whose coordinates it is
            density = energy.given(context[None])
            _, x = run_pilot(density, by.scout_particles, generator, limits, start, pilot=pilot)
            found.append(x if energy.bounds is None else energy.bounds(x))
            budget.interrupted |= limits.interrupted
            if budget.interrupted:
                break
    except Spent:
        if not found:
            raise
    finally:
        energy.monitor = monitor
    points = torch.cat(found)
    if energy.bounds is None:
        return points
    if bounds is not None and bounds.adapts:
        energy.bounds = bounds.centred(bounds.inverse(points))
    return energy.bounds.inverse(points)


def _limits_of_a_scout(energy: FamilyEnergy, budget: Budget, by: FamilyTempering) -> Budget:
    """A budget of its own, which ends no later than the fit's."""
    evals, seconds, share = float(by.scout_evals), None, by.scout_share / by.n_scouts
    if budget.max_energy_evals is not None:
        evals = min(evals, share * (budget.max_energy_evals - budget.evals_reserve))
    if budget.max_time is not None:
        seconds = budget.elapsed() + share * budget.max_time
    limits = copy.copy(budget)
    limits.max_energy_evals, limits.max_time = energy.n_energy_evals + int(evals), seconds
    limits.time_reserve = limits.evals_reserve = 0.0
    return limits


def most_different(contexts: Tensor, n: int) -> Tensor:
    """At most n of contexts (m, k): the one nearest to their mean, then always the farthest from those chosen."""
    scaled = (contexts - contexts.mean(0)) / contexts.std(0, correction=0).clamp(min=1e-300)
    chosen = [int(scaled.square().sum(1).argmin())]
    distance = (scaled - scaled[chosen[0]]).square().sum(1)
    while len(chosen) < n and distance.max() > 0:
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (scaled - scaled[chosen[-1]]).square().sum(1))
    return contexts[chosen]


def temper_family(
    energy: FamilyEnergy, contexts: Tensor, reference: Standardization, generator, budget: Budget,
    by: FamilyTempering | None = None,
) -> Explored:  # fmt: skip
    """Tempered sequential Monte Carlo within each context, side by side (Del Moral, Doucet & Jasra 2006).

    Particles are weighed, resampled and moved within their context; each context has its own temperatures and step
    size. Contexts without a particle in the support are left out. A run that a limit ends leaves particles that are too
    wide, which the training corrects by exact weights.

    Parameters
    ----------
    energy : FamilyEnergy
        The family.
    contexts : Tensor
        (m, k).
    reference : Standardization
        Location and scale of the Gaussian that all start from, before it is inflated.
    generator, budget
        See `explore_family`.
    by : FamilyTempering, optional
        How many particles and moves there are, and more.
    """
    by = FamilyTempering() if by is None else by
    run = _Tempering(energy, contexts, reference, by, generator)
    try:
        for _ in range(by.max_temperatures):
            if not run.cool():
                break
            run.move(_moves(by, energy))
            budget.progress.note(float(run.beta.mean()))
    except Spent:
        pass
    except KeyboardInterrupt:
        budget.interrupted = True
    return run.result()


class _Tempering:
    """Particles of all contexts on their way from the reference, in its coordinates."""

    def __init__(
        self, energy: FamilyEnergy, contexts: Tensor, reference: Standardization, by: FamilyTempering, generator
    ):  # fmt: skip
        self.energy, self.contexts, self.reference = energy, contexts, reference
        self.by, self.generator, self.dtype = by, generator, energy.fast_dtype
        m, d, self.n_each = len(contexts), energy.n_features, by.n_each
        self.z = by.inflation * randn(generator, m, self.n_each, d, dtype=torch.float64)
        self.beta = torch.zeros(m, dtype=torch.float64, device=contexts.device)
        self.step = torch.full_like(self.beta, by.step)
        self.log_evidence = torch.zeros_like(self.beta)
        self.log_prob = self._target(contexts).log_prob(self.z.flatten(0, 1)).view(m, self.n_each)
        self.usable = (self.log_prob > -torch.inf).any(1)

    def _target(self, contexts: Tensor) -> StandardizedTarget:
        return StandardizedTarget(self.energy.given(contexts), self.reference, self.dtype)

    def _log_reference(self, z: Tensor) -> Tensor:
        d, scale = z.shape[-1], self.by.inflation
        return -0.5 * z.square().sum(-1) / scale**2 - d * math.log(scale * math.sqrt(2 * math.pi))

    def cool(self) -> bool:
        """Weigh and resample every context that is not there yet to its next temperature; False where all are."""
        self.active = (self.usable & (self.beta < 1)).nonzero()[:, 0]
        if not len(self.active):
            return False
        rows = self.active
        gap = (self.log_prob[rows] - self._log_reference(self.z[rows])).nan_to_num(nan=-torch.inf, posinf=-torch.inf)
        beta = next_betas(gap, self.beta[rows], self.by.min_ess)
        log_weights = ((beta - self.beta[rows])[:, None] * gap).nan_to_num(nan=-torch.inf)
        self.log_evidence[rows] += torch.logsumexp(log_weights, 1) - math.log(self.n_each)
        index = systematic_within(log_weights, self.n_each, self.generator)
        self.z[rows] = self.z[rows].gather(1, index[..., None].expand(-1, -1, self.z.shape[2]))
        self.beta[rows] = beta
        return True

    def move(self, n_moves: int) -> None:
        """Move the particles of the contexts that were not there yet."""
        rows, d = self.active, self.z.shape[2]
        centred = (self.z[rows] - self.z[rows].mean(1, keepdim=True)).flatten(0, 1)
        covariance = centred.T @ centred / max(len(rows) * (self.n_each - 1), 1)
        covariance = covariance + torch.diag(1e-6 * covariance.diagonal().clamp(min=1e-12))
        factor, fault = torch.linalg.cholesky_ex(covariance)
        if fault or len(centred) < 10 * d:
            factor = torch.diag(covariance.diagonal().sqrt())
        target, beta = self._target(self.contexts[rows]), self.beta[rows].repeat_interleave(self.n_each)

        def tempered(u):
            z = u @ factor.T
            log_prob, score = target.log_prob_and_score(z)
            self.seen = log_prob
            if self.energy.has_gradient:
                score = (beta[:, None] * score - (1 - beta[:, None]) * z / self.by.inflation**2) @ factor
            density = beta * log_prob + (1 - beta) * self._log_reference(z)
            return density.nan_to_num(nan=-torch.inf, neginf=-torch.inf), score

        u = torch.linalg.solve_triangular(factor, self.z[rows].flatten(0, 1).T, upper=False).T
        density, score = tempered(u)
        plain = self.seen
        for _ in range(n_moves):
            decade = rand(self.generator, len(u), 1, dtype=torch.float64)
            step = self.step[rows].repeat_interleave(self.n_each)[:, None] * 10 ** (-self.by.decades * decade)
            u, density, score, accepted = mala_step(tempered, u, density, score, step, self.generator)
            plain = torch.where(accepted, self.seen, plain)
            rate = accepted.double().view(-1, self.n_each).mean(1)
            self.step[rows] *= (rate - TARGET_ACCEPTANCE[self.energy.has_gradient]).mul(0.5).exp()
            self.z[rows] = (u @ factor.T).view(len(rows), self.n_each, d)
            self.log_prob[rows] = plain.view(len(rows), self.n_each)

    def result(self) -> Explored:
        rows = self.usable
        x = self.reference(self.z[rows].flatten(0, 1)).view(-1, self.n_each, self.z.shape[2])
        return Explored(self.contexts[rows], x, self.log_evidence[rows])


def next_betas(gap: Tensor, beta: Tensor, min_ess: float = FamilyTempering.min_ess) -> Tensor:
    """Next inverse temperatures (m,): for each context the largest that leaves enough of its weights effective.

    Parameters
    ----------
    gap : Tensor
        Log density less log reference (m, r) of particles.
    beta : Tensor
        Present ones (m,).
    min_ess : float
        Normalised effective sample size of the incremental weights of a context.
    """

    def share(candidate):
        delta = (candidate - beta)[:, None]
        weights = torch.softmax((delta * gap).nan_to_num(nan=-torch.inf), 1)
        return 1 / weights.square().sum(1) / gap.shape[1]

    hits = (gap > -torch.inf).double().mean(1)  # a first step cannot leave more effective
    wanted = min_ess * hits
    low, high = beta.clone(), torch.ones_like(beta)
    done = share(high) >= wanted
    for _ in range(40):
        middle = 0.5 * (low + high)
        enough = share(middle) >= wanted
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return torch.where(done, 1.0, torch.where(low > beta, low, high))


def systematic_within(log_weights: Tensor, n: int, generator) -> Tensor:
    """Indices (m, n) of a systematic resampling of each row of log weights (m, r)."""
    cumulative = torch.softmax(log_weights, 1).cumsum(1)
    uniform = rand(generator, len(log_weights), 1, dtype=torch.float64)
    positions = (torch.arange(n, dtype=torch.float64, device=uniform.device) + uniform) / n
    return torch.searchsorted(cumulative, positions).clamp(max=log_weights.shape[1] - 1)
