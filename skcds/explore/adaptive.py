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
from ..density.noncentred import NonCentred
from ..density.standardize import Standardization
from ..models.maps import OneStepModel, coupling_sizes
from ..models.networks import in_parts, seeded
from ..train.known_points import LARGEST_LACK, KnownPoints
from ..train.objectives.known_points import KnownPointsLoss
from ..train.optimizer import AdamW
from ..train.particles import systematic_index
from .climb import Mode
from .few_evaluations import Adaptive, MapFit, Mixture
from .mixture import TMixture, laplace_mixture
from .mode_mixture import LEAST, POWER, ModeMixture
from .modes import climbs_from
from .nested_laplace import Along
from .rounds import final_weights
from .stages import Tails
from .store import Proposal, Store, log_evidence, n_effective, tempered
from .tempered_run import better_standardization
from .wide import WideLatents

MOST_LOOKS = 8  # climbs in a round from where there may be further modes
A_CLIMB = 20  # evaluations of a climb for each coordinate and one more, about
CHECKED = 25  # iterations between two looks at the points that are held out


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
    by: Adaptive | None = None, tails: Tails | None = None, may_miss: bool = False,
) -> BaseException | None:  # fmt: skip
    """Fill a store by draws from proposals, each fitted to all points before it (Cornuet et al. 2012).

    The first proposal has Laplace's approximation at every mode and round parts of many widths. The later ones are
    fitted to the weighted points, whose weights are tempered until enough of them are effective: a mixture of t
    distributions (of several known modes, `ModeMixture`), or a coupling map where that gives held-out points a larger
    density (`fit_map`). Some draws go beyond what is known. Of several modes, those are draws of a map that is no
    better than the mixture, as maps reach modes between and beside these. Of no more than one mode, they are those of
    Laplace's approximations along a coordinate that others depend on (`Along`), or else those of the map with one
    latent coordinate of heavy tails (`WideLatents`).

    Parameters
    ----------
    energy : Energy
        The density.
    store : Store
        Where evaluations go.
    modes : list of Mode
        Modes that are known; those that are found on the way are added.
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
    tails : Tails, optional
        What heavy tails are, which the coordinates of maps are to tame.
    may_miss : bool, default=False
        Whether there may well be more modes, so that maps are tried beside a good mixture, too.

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
    explorer = _Explorer(energy, store, modes, first, generator, left, ended, by, tails, may_miss)
    total = left()
    size = int(min(by.most_draws, max(by.fewest_draws, total / by.rounds)))
    try:
        if not modes:
            explorer.begin(gaussian, size)
        while left() >= by.fewest_draws and not ended() and not explorer.is_enough():
            explorer.step(int(min(size, left())))
            if progress is not None:
                log_z, ess = log_evidence(final_weights(store)), n_effective(store.log_weights()) / len(store)
                progress.note(1 - left() / total, log_z=log_z, ess=ess)
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
        parts.append((0.5, laplace_mixture(modes, POWER, LEAST, by)))
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
        self, energy: Energy, store: Store, modes: list[Mode], first: TMixture, generator, left: Callable[[], float],
        ended: Callable[[], bool], by: Adaptive, tails: Tails | None = None, may_miss: bool = False,
    ):  # fmt: skip
        self.by, self.tails, self.left, self.ended = by, tails, left, ended
        self.energy, self.store, self.first, self.generator = energy, store, first, generator
        self.proposal: Proposal = first
        self.broad = first
        self.model: OneStepModel | None = None
        self.was_tempered = False
        self.ess, self.fitted_at = 0.0, 0  # normalised, of the last round; points in the store at the last fit
        self.evidence: list[tuple[int, float]] = []  # points in the store after each round, and its log Z
        self.is_single = len(modes) < 2  # scores tell nothing of the masses of modes
        self.modes, self.n_looks = modes, MOST_LOOKS
        self.of_modes = ModeMixture(modes, by.mixture) if len(modes) > 1 and by.mixture.n_iter else None
        self.may_miss = may_miss
        self.beside: MapProposal | None = None  # a map that some of the next draws are from, beside the proposal
        self.along = Along(energy, by.nested)
        self.noncentred: NonCentred | None = None  # of these, when the map was made
        self.most = 2 * len(modes) + by.mixture.fewest_components  # of a mixture; more where these are used

    def is_enough(self) -> bool:
        """Whether another round would tell nothing new."""
        by, n = self.by, len(self.store)
        if self.ess <= by.enough_ess or n_effective(self.store.log_weights()) <= by.enough_effective:
            return False
        before = [log_z for points, log_z in self.evidence if points <= 0.5 * n]  # what is still found adds to it
        return bool(before) and abs(self.evidence[-1][1] - before[-1]) < by.settled

    def begin(self, gaussian: Standardization | None, n: int) -> None:
        """Where there is no mode: approximations along the coordinate that a climb goes off along."""
        d, by = self.energy.n_features, self.by
        if not self.energy.has_gradient or 40 * d > by.nested.share * self.left():
            return
        zero = torch.zeros(d, dtype=torch.float64, device=self.energy.device)
        place, scale = (zero, zero + 1) if gaussian is None else (gaussian.loc, gaussian.matrix.diagonal())
        for k, mixture in self.along.begun(place, scale, self.generator, self.left):
            self.store.begin_round()
            own = self.store.log_weights_of(self._draw(mixture, int(by.nested.draws * n)))
            self.along.take(k, mixture, n_effective(own) / max(len(own), 1))

    def step(self, n: int) -> None:
        """A round of n draws, from a new proposal unless the last is good enough."""
        if len(self.store):
            settled = self.proposal is not self.first and self.ess > self.by.good_proposal
            if not settled:
                n = max(n - self._look_along(n), 1)
            if not settled or len(self.store) > self.by.growth * self.fitted_at:
                self._propose(n)
        self.store.begin_round()
        model = self.proposal.model if isinstance(self.proposal, MapProposal) and self.is_single else None
        n_broad = 0 if self.proposal is self.first else int(self.by.defensive * n)
        n_wide = int(self.by.map.wide * n) if model or self.along.mixture not in (None, self.proposal) else 0
        n_beside = int(self.by.map.wide * n) if self.beside is not None else 0
        k = self._draw(self.proposal, n - n_broad - n_wide - n_beside)
        own = self.store.log_weights_of(k)
        self.ess = n_effective(own) / max(len(own), 1)
        if model and self.ess > self.by.map.begun:
            self.store.model = model
        if n_broad:
            self._draw(self.broad, n_broad)
        if self.beside is not None:
            self._draw(self.beside, n_beside)
            self.beside = None
        if n_wide and self.along.mixture is not None:
            self._draw(self.along.mixture, n_wide)
        elif n_wide and model is not None:
            self._draw(WideLatents(model, self.by.map.wide_scale, self.by.map.wide_freedom), n_wide)
        self.evidence.append((len(self.store), log_evidence(self.store.log_weights())))

    def _draw(self, proposal: Proposal, n: int) -> int:
        x = proposal.sample(n, self.generator)
        x = x[x.isfinite().all(1)]
        held = rand(self.generator, len(x)) < self.by.held_out
        if not self.energy.has_gradient:
            return self.store.add(proposal, x, self.energy.log_prob(x), torch.zeros_like(x), held)
        return self.store.add(proposal, x, *self.energy.log_prob_and_score(x), held)

    def _look_along(self, n: int) -> int:
        """Draw from approximations along coordinates that were not tried yet; how many draws that were."""
        store, by = self.store, self.by
        log_weights, before = store.log_weights(), len(store)
        known = n_effective(log_weights)
        if not (self.is_single and self.energy.has_gradient) or known == 0:
            return 0
        for k, mixture in self.along.tried(self._points(self._hot(log_weights, n)), known, self.left):
            store.begin_round()
            own = store.log_weights_of(self._draw(mixture, int(by.nested.draws * n)))
            self.along.take(k, mixture, n_effective(own) / max(len(own), 1))
        return len(store) - before

    def _propose(self, n: int) -> None:
        """Take the proposal that gives held-out points the largest weighted log density: a mixture, or a map."""
        store, by = self.store, self.by
        log_weights = store.log_weights()
        if n_effective(log_weights) == 0:
            return
        hot = self._hot(log_weights, n)
        training = torch.where(store.held, -torch.inf, hot)
        if n_effective(training) == 0 or not (hot[store.held] > -torch.inf).any():
            return
        points, nested = self._points(training), self.along.mixture
        needs_map = isinstance(self.proposal, MapProposal) or nested is not None
        mixture = self._mixture_of(points, training, hot)
        if nested is not None and self._score_of(nested, hot) > self._score_of(mixture, hot):
            mixture = nested
        was_first, self.proposal, self.fitted_at = self.proposal is self.first, mixture, len(store)
        self.broad = TMixture.joined([(0.7, mixture.broadened(by.mixture.broad)), (0.3, self.first)])
        is_good = self.ess > by.map.good_mixture and not (needs_map or self.may_miss)
        if (was_first and nested is None) or is_good or self.ended():
            return
        model = self._model_for(points, is_tempered=not torch.equal(hot, log_weights))
        score = store.score if self.energy.has_gradient and self.is_single else None
        known = KnownPoints(store.x, store.log_prob, score, hot, store.held, model.standardization, by.map.exponent)
        if fit_map(model, known, self.generator, self.ended, by.map):
            self.model = model
            candidate = MapProposal(copy.deepcopy(model))
            if self._score_of(candidate, hot) > self._score_of(mixture, hot):
                self.proposal = candidate
            elif not self.is_single:
                self.beside = candidate
            elif nested is not None and known.share(model) > by.map.begun:
                store.model = candidate.model  # the map of a fit can begin from it, though there is a better proposal

    def _hot(self, log_weights: Tensor, n: int) -> Tensor:
        """The log weights, by a power that leaves enough points effective to fit a proposal for n draws to."""
        by = self.by
        return log_weights * tempered(
            log_weights, max(by.effective_a_feature * self.energy.n_features, by.effective * n)
        )

    def _points(self, log_weights: Tensor) -> Tensor:
        """Points (n, d) by their weights, some of them several times."""
        n = min(self.by.mixture.max_fitted, 2 * len(self.store))
        return self.store.x[systematic_index(log_weights, n, self.generator)]

    def _score_of(self, proposal: Proposal, log_weights: Tensor) -> float:
        """Mean log density of a proposal at weighted points held out, one of which does not decide it by itself."""
        held = self.store.held
        weights = torch.softmax(torch.where(held, log_weights, -torch.inf), 0)[held]
        log_p = self.store.log_prob[held] - log_evidence(self.store.log_weights())
        log_ratio = proposal.log_prob(self.store.x[held]) - log_p
        known = weights > 0
        return float((weights * log_ratio.clamp(min=-LARGEST_LACK))[known].sum())

    def _mixture_of(self, points: Tensor, training: Tensor, hot: Tensor) -> TMixture:
        """A mixture fitted to points (n, d): of several modes, that by which held-out points have the largest density.

        Others than that of the modes are not tried where the last round was good.
        """
        n = n_effective(training)
        if self.of_modes is None:
            return self._new_mixture(points, n)
        others = [self._new_mixture(points, n)] if self.ess < self.by.map.good_mixture else []
        self._look_for_modes(self.of_modes, training)
        candidates = self.of_modes.candidates(self.store, training, points, others)
        best = max(candidates, key=lambda mixture: self._score_of(mixture, hot))
        self.of_modes.take(best)
        return best

    def _look_for_modes(self, mixture: ModeMixture, training: Tensor) -> None:
        """Climb from points that the mixture of modes has no component for; fewer, after climbs to known modes."""
        places = [part.loc for _, part in mixture.lacking(self.store, training)]
        n = int(min(self.n_looks, self.by.survey.share * self.left() / (A_CLIMB * (self.energy.n_features + 1))))
        if n == 0 or not places:
            return
        found = climbs_from(self.energy, torch.cat(places[:n]), self.modes)
        self.modes += found
        mixture.add(found, log_evidence(self.store.log_weights()))
        self.n_looks = MOST_LOOKS if found else self.n_looks // 2

    def _new_mixture(self, points: Tensor, n_points: float) -> TMixture:
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
        is_new |= self.along.noncentred is not self.noncentred
        self.was_tempered = is_tempered
        return self._new_model(points) if self.model is None or is_new else self.model

    def _new_model(self, points: Tensor) -> OneStepModel:
        self.noncentred = self.along.noncentred
        d, by = points.shape[1], self.by.map
        standardization = better_standardization(points, self.noncentred, self.tails)
        with seeded(int(randint(self.generator, 0, 2**31 - 1))):
            sizes = coupling_sizes(d, by.log_snr_max, n_transforms=by.n_transforms)
            model = OneStepModel("coupling", d, by.log_snr_max, **standardization.config, **sizes)
        model.standardization = standardization
        return model.to(points.device)


def fit_map(
    model: OneStepModel, points: KnownPoints, generator, ended: Callable[[], bool] = lambda: False,
    by: MapFit | None = None,
) -> bool:  # fmt: skip
    """Fit a map to weighted points, by likelihood and regressions (`KnownPointsLoss`); whether there was time for it.

    It is left as it was when it fitted the points that are held out best, which may be before the fit.

    Parameters
    ----------
    model : OneStepModel
        Trained in place.
    points : KnownPoints
        The points, in its coordinates.
    generator : torch.Generator
        Source of randomness.
    ended : callable, optional
        Whether the time is over.
    by : MapFit, optional
        Iterations, batches and weights.
    """
    by = MapFit() if by is None else by
    best, kept = points.fit_of(model), copy.deepcopy(model.map.state_dict())
    objective = KnownPointsLoss(model, points, by.batch_size, generator, by.regression, by.scores)
    model.requires_grad_(True)
    optimizer = AdamW(model.map.parameters(), by.learning_rate, by.weight_decay)
    for i in range(by.n_iter):
        if i % CHECKED == 0 and ended():
            return False
        annealed = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * i / by.n_iter))
        optimizer.learning_rate = by.learning_rate * min(1.0, (i + 1) / 20) * annealed
        optimizer.zero_grad()
        objective(i).backward()
        torch.nn.utils.clip_grad_norm_(model.map.parameters(), 1.0)
        optimizer.step()
        if (i + 1) % CHECKED == 0 and not (fit := points.fit_of(model)) <= best:
            best, kept = fit, copy.deepcopy(model.map.state_dict())
    model.map.load_state_dict(kept)
    model.requires_grad_(False)
    return True
