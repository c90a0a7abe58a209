"""Adaptive importance sampling: an exploration that keeps all the points that it draws, and weighs them together."""

__all__ = ["MapProposal", "explore"]

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor

from .._support.devices import rand, randint, randn
from .._support.errors import Spent
from ..density.energy import Energy
from ..density.standardize import Standardization, StandardizedTarget
from ..models.maps import OneStepModel, coupling_sizes
from ..models.networks import in_parts, seeded
from ..train.objectives.likelihood import spread_of
from ..train.objectives.reverse_kl import ReverseKLLoss
from ..train.optimizer import AdamW
from ..train.particles import systematic_index
from .climb import Mode
from .few_evaluations import Adaptive, MapFit, Mixture
from .mixture import TMixture, laplace_mixture
from .smc import moments
from .store import Proposal, Store, log_evidence, n_effective, tempered


class MapProposal:
    """The density of one-step draws of a coupling map, in unconstrained coordinates."""

    def __init__(self, model: OneStepModel):
        self.model = model

    @torch.no_grad()
    def sample(self, n: int, generator) -> Tensor:
        """Draws (n, d) float64."""
        latent = randn(generator, n, self.model.n_features)
        return self.model.standardization(in_parts(lambda part: self.model.map(part, self.model.start()), latent))

    @torch.no_grad()
    def log_prob(self, x: Tensor) -> Tensor:
        """Log density (n,) float64 at points (n, d)."""
        z = self.model.standardization.inverse(x)
        own = in_parts(self.model.log_prob, z.float()).double() - self.model.standardization.log_det(z)
        return own.nan_to_num(nan=-torch.inf, posinf=-torch.inf)


def explore(
    energy: Energy, store: Store, modes: list[Mode], generator, left: Callable[[], float],
    ended: Callable[[], bool] = lambda: False, progress=None, gaussian: Standardization | None = None,
    by: Adaptive | None = None,
) -> BaseException | None:  # fmt: skip
    """Fill a store by draws from proposals, each fitted to all points before it (Cornuet et al. 2012).

    The first proposal has Laplace's approximation at every mode and round parts of many widths. The later ones are
    fitted to the weighted points, whose weights are tempered until enough of them are effective: a mixture of t
    distributions, or a coupling map where that gives held-out points a larger density. A map is trained by likelihood
    and by regression on the log densities, which are known: the variance of the log weights is to vanish (Richter et
    al. 2020), at no evaluation of the energy.

    Parameters
    ----------
    energy : Energy
        The density.
    store : Store
        Where evaluations go.
    modes : list of Mode
        Modes that are known.
    generator : torch.Generator
        Source of randomness.
    left : callable
        How many evaluations may still be made.
    ended : callable, optional
        Whether the time is over.
    progress : Progress, optional
        Told how far the exploration is.
    gaussian : Standardization, optional
        Location and scale to begin from, beside the modes.
    by : Adaptive, optional
        How many draws there are, and from which proposals.

    Returns
    -------
    stopped : BaseException or None
        What ended it early: `Spent`, or KeyboardInterrupt.
    """
    by = Adaptive() if by is None else by
    first = first_proposal(energy, modes, gaussian, by.mixture)
    known = None if energy.known is None else energy.known.mixture(energy, generator, by.mixture)
    if known is not None:
        first = TMixture.joined([(0.5, first), (0.5, known)])
    explorer = _Explorer(energy, store, modes, first, generator, ended, by)
    total = left()
    size = int(min(by.most_draws, max(by.fewest_draws, total / by.rounds)))
    try:
        while left() >= by.fewest_draws and not ended() and not explorer.is_enough():
            explorer.step(int(min(size, left())))
            if progress is not None:
                log_weights = store.log_weights()
                ess = n_effective(log_weights) / len(store)
                progress.note(1 - left() / total, log_z=log_evidence(log_weights), ess=ess)
    except (Spent, KeyboardInterrupt) as stopped:
        return stopped
    return None


def first_proposal(
    energy: Energy, modes: list[Mode], gaussian: Standardization | None = None, by: Mixture | None = None
) -> TMixture:
    """Laplace's approximations at modes, and round parts of many widths around the origin and around the modes."""
    by = Mixture() if by is None else by
    d, device = energy.n_features, energy.device
    parts = [
        (0.5, TMixture.of_widths(torch.zeros(d, dtype=torch.float64, device=device), by.scales, freedom=by.freedom))
    ]
    if modes:
        parts.append((0.5, laplace_mixture(modes, 0.5, 0.1, by)))
        loc = parts[-1][1].loc
        spread = float(loc.std(0, unbiased=False).norm()) / math.sqrt(d)
        if spread > 0:
            parts.append((0.2, TMixture.of_widths(loc.mean(0), [0.7 * spread, 2 * spread], freedom=by.freedom)))
    if gaussian is not None:
        wide = torch.stack([gaussian.matrix, 3 * gaussian.matrix])
        both = torch.ones(2, dtype=torch.float64, device=device)
        parts.append((1.0, TMixture(both, gaussian.loc.expand(2, -1), wide, by.freedom)))
    return TMixture.joined(parts)


class _Explorer:
    """The proposals of an exploration, and how well the last of them did."""

    def __init__(
        self, energy: Energy, store: Store, modes: list[Mode], first: TMixture, generator, ended: Callable[[], bool],
        by: Adaptive,
    ):  # fmt: skip
        self.by = by
        self.energy, self.store, self.first, self.generator, self.ended = energy, store, first, generator, ended
        self.proposal: Proposal = first
        self.broad = first
        self.model: OneStepModel | None = None
        self.was_tempered = False
        self.ess, self.fitted_at = 0.0, 0  # normalised, of the last round; points in the store at the last fit
        are_wanted = by.map.n_draws > 0 and energy.n_features >= by.map.fewest_features
        self.by_own_draws = are_wanted and energy.has_gradient and len(modes) < 2  # they seek modes
        self.most = 2 * len(modes) + by.mixture.fewest_components  # of a mixture; more where these are used

    def is_enough(self) -> bool:
        """Whether another round would tell nothing new."""
        by = self.by
        return self.ess > by.enough_ess and n_effective(self.store.log_weights()) > by.enough_effective

    def step(self, n: int) -> None:
        """A round of n draws, from a new proposal unless the last is good enough."""
        if len(self.store):
            settled = self.proposal is not self.first and self.ess > self.by.good_proposal
            if not settled or len(self.store) > self.by.growth * self.fitted_at:
                self._propose(n)
        n_broad = 0 if self.proposal is self.first else int(self.by.defensive * n)
        k = self._draw(self.proposal, n - n_broad)
        own = self.store.log_weights_of(k)
        self.ess = n_effective(own) / max(len(own), 1)
        if self.by_own_draws and isinstance(self.proposal, MapProposal):
            self.store.model = self.proposal.model if self.ess > self.by.map.begun else None
        if n_broad:
            self._draw(self.broad, n_broad)

    def _draw(self, proposal: Proposal, n: int) -> int:
        x = proposal.sample(n, self.generator)
        x = x[x.isfinite().all(1)]
        if not self.energy.has_gradient:
            return self.store.add(proposal, x, self.energy.log_prob(x), torch.zeros_like(x))
        return self.store.add(proposal, x, *self.energy.log_prob_and_score(x))

    def _propose(self, n: int) -> None:
        """Take the proposal that gives held-out points the larger weighted log density: a mixture, or a map."""
        store, d, by = self.store, self.energy.n_features, self.by
        log_weights = store.log_weights()
        if n_effective(log_weights) == 0:
            return
        hot = log_weights * tempered(log_weights, max(by.effective_a_feature * d, by.effective * n))
        held = rand(self.generator, len(store)) < by.held_out
        training = torch.where(held, -torch.inf, hot)
        if n_effective(training) == 0 or not (hot[held] > -torch.inf).any():
            return
        points = store.x[systematic_index(training, min(by.mixture.max_fitted, 2 * len(store)), self.generator)]
        mixture = self._mixture_of(points, n_effective(training))
        is_map = isinstance(self.proposal, MapProposal)
        was_first, self.proposal, self.fitted_at = self.proposal is self.first, mixture, len(store)
        self.broad = TMixture.joined([(0.7, mixture.broadened(by.mixture.broad)), (0.3, self.first)])
        if (was_first or (self.ess > by.map.good_mixture and not is_map)) or self.ended():
            return
        model = self._model_for(points, is_tempered=not torch.equal(hot, log_weights))
        if fit_map(model, store, hot, held, self.generator, self.ended, by.map):
            self.model = model
            if self.by_own_draws:
                fit_to_own_draws(model, self.energy, n, self.generator, self.ended, by.map)
            candidate = MapProposal(copy.deepcopy(model))
            weights = torch.softmax(torch.where(held, hot, -torch.inf), 0)[held]
            scores = [float((weights * q.log_prob(store.x[held]).clamp(min=-1e6)).sum()) for q in (candidate, mixture)]
            if scores[0] > scores[1] or self.by_own_draws:
                self.proposal = candidate

    def _mixture_of(self, points: Tensor, n_points: float) -> TMixture:
        """A mixture fitted to points (n, d), as many components as so many effective ones allow."""
        by = self.by.mixture
        k = int(min(self.most, by.max_components, max(1, n_points / (by.points_a_component * points.shape[1]))))
        mixture = TMixture.fitted(points, k, int(randint(self.generator, 0, 2**31 - 1)), by)
        if len(mixture) > by.used * k:
            self.most *= 2
        return mixture

    def _model_for(self, points: Tensor, is_tempered: bool) -> OneStepModel:
        """The last map, to be fitted further, or a new one where that was no good or is in coordinates of before."""
        is_new = self.ess < self.by.map.kept if is_tempered else self.was_tempered
        self.was_tempered = is_tempered
        return self._new_model(points) if self.model is None or is_new else self.model

    def _new_model(self, points: Tensor) -> OneStepModel:
        d, by, standardization = points.shape[1], self.by.map, Standardization.from_moments(*moments(points))
        with seeded(int(randint(self.generator, 0, 2**31 - 1))):
            sizes = coupling_sizes(d, by.log_snr_max, n_transforms=by.n_transforms)
            model = OneStepModel("coupling", d, by.log_snr_max, standardization.full, **sizes)
        model.standardization = standardization
        return model.to(points.device)


def fit_map(
    model: OneStepModel, store: Store, log_weights: Tensor, held: Tensor, generator,
    ended: Callable[[], bool] = lambda: False, by: MapFit | None = None,
) -> bool:  # fmt: skip
    """Fit a map to weighted points, by likelihood and regression; whether there was time for it.

    Parameters
    ----------
    model : OneStepModel
        Trained in place.
    store : Store
        The points, and log densities of the target there.
    log_weights : Tensor
        Weights (n,) of the points in the likelihood.
    held : Tensor of bool
        (n,), points that are not trained on.
    generator : torch.Generator
        Source of randomness.
    ended : callable, optional
        Whether the time is over.
    by : MapFit, optional
        Iterations, batches and weights.
    """
    by = MapFit() if by is None else by
    z = model.standardization.inverse(store.x)
    log_p, z = (store.log_prob + model.standardization.log_det(z)).float(), z.float()
    log_weights = torch.where(held | ~log_p.isfinite(), -torch.inf, log_weights)
    cumulative = torch.softmax(by.exponent * log_weights, 0).cumsum(0)
    rest = ((1 - by.exponent) * (log_weights - log_weights.max())).exp().float()
    model.requires_grad_(True)
    optimizer = AdamW(model.map.parameters(), by.learning_rate, by.weight_decay)
    for i in range(by.n_iter):
        if i % 25 == 0 and ended():
            return False
        annealed = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * i / by.n_iter))
        optimizer.learning_rate = by.learning_rate * min(1.0, (i + 1) / 20) * annealed
        uniform = rand(generator, by.batch_size, dtype=torch.float64) * cumulative[-1]
        rows = torch.searchsorted(cumulative, uniform).clamp(max=len(z) - 1)
        optimizer.zero_grad()
        log_q = model.log_prob(z[rows])
        loss = -(rest[rows] / rest[rows].mean() * log_q).mean() + by.regression * spread_of(log_p[rows] - log_q)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.map.parameters(), 1.0)
        optimizer.step()
    model.requires_grad_(False)
    return True


def fit_to_own_draws(
    model: OneStepModel, energy: Energy, n_evals: int, generator, ended: Callable[[], bool] = lambda: False,
    by: MapFit | None = None,
) -> None:  # fmt: skip
    """Fit a map to the density by its own draws, with their gradients (reverse divergence): it reaches beyond points.

    Parameters
    ----------
    model : OneStepModel
        Trained in place.
    energy : Energy
        The density, with a gradient.
    n_evals : int
        Evaluations that may be made.
    generator : torch.Generator
        Source of randomness.
    ended : callable, optional
        Whether the time is over.
    by : MapFit, optional
        Batches and rates.
    """
    by = MapFit() if by is None else by
    n_iter = n_evals // by.n_draws
    target = StandardizedTarget(energy, model.standardization, energy.fast_dtype)
    objective = ReverseKLLoss(model, target, by.n_draws, generator, mirrored=True, of_draws=True)
    optimizer = AdamW(model.map.parameters(), by.rate_of_draws)
    model.requires_grad_(True)
    for i in range(n_iter):
        if ended():
            break
        annealed = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * i / n_iter))
        optimizer.learning_rate = by.rate_of_draws * min(1.0, (i + 1) / 10) * annealed
        optimizer.zero_grad()
        objective(i).backward()
        torch.nn.utils.clip_grad_norm_(model.map.parameters(), 1.0)
        optimizer.step()
    model.requires_grad_(False)
