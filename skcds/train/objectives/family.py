"""Likelihood of a conditional map at particles of many contexts, and new particles from the map's own draws."""

__all__ = ["FamilyLikelihood", "Renewal", "renewal_spacing"]

from collections.abc import Callable

import torch
from torch import Tensor

from ..._support.devices import randn
from ..groups import ParticleGroups
from ..specifications import FamilyTraining
from .base import Objective


class FamilyLikelihood(Objective):
    """Minus the mean log density of particles under the map given their context, and the spread of the log ratios.

    The spread is that of ``log p(x | c) - log q(x | c)`` among the particles of one context, which does not depend on
    log Z(c): it is zero for a perfect map, and so is its noise, where the likelihood's is not (Richter et al. 2020).

    Parameters
    ----------
    model : ConditionalModel
        What is trained.
    groups : ParticleGroups
        The particles.
    n_groups : int
        Contexts in a batch.
    regression : float, default=1.0
        Weight of the spread.
    """

    def __init__(self, model, groups: ParticleGroups, n_groups: int, regression: float = FamilyTraining.regression):
        self.model, self.groups, self.n_groups, self.regression = model, groups, n_groups, regression

    def __call__(self, iteration: int) -> Tensor:
        """The loss of one batch."""
        batch = self.groups.draw(self.n_groups)
        log_q = self.model.given(batch.contexts).log_prob(batch.z.flatten(0, 1)).view(len(batch), -1)
        loss = -log_q.mean()
        if not self.regression or log_q.shape[1] < 2:
            return loss
        ratio = (batch.log_prob - batch.log_prob.mean(1, keepdim=True)).float() - log_q
        return loss + self.regression * spread_within(ratio)


def spread_within(log_ratio: Tensor) -> Tensor:
    """As `spread_of`, among the columns of each row (m, r), in the mean over the rows."""
    gap = log_ratio - log_ratio.mean(1, keepdim=True)
    return 2 * ((1 + gap**2).sqrt() - 1).mean()


class Renewal:
    """New groups of particles, from draws of a map at new contexts: resampled by exact weights within each, and moved.

    Parameters
    ----------
    groups : ParticleGroups
        What they are added to.
    source : ContextSource
        Where contexts come from.
    progress : Progress
        Told the mean normalised ESS.
    by : FamilyTraining
        How many contexts, draws and moves there are at a time.
    weigh : callable, optional
        ``weigh(model, contexts, each)`` gives draws (m r, d) for contexts (m, k) and their exact log weights (m r,); by
        default those of a map.
    """

    def __init__(self, groups: ParticleGroups, source, progress, by: FamilyTraining, weigh: Callable | None = None):
        self.groups, self.source, self.progress, self.by = groups, source, progress, by
        self.weigh = self._weighed if weigh is None else weigh

    def _weighed(self, model, contexts: Tensor, each: int) -> tuple[Tensor, Tensor]:
        latent = randn(self.groups.generator, len(contexts) * each, model.n_features)
        return model.given(contexts).call_and_log_weight(latent, self.groups.target.given(contexts))

    @torch.no_grad()
    def __call__(self, model) -> None:
        """Draw from a model, resample, move, and add; move some of the anchors, too."""
        groups, generator, by = self.groups, self.groups.generator, self.by
        contexts = self.source.draw(by.n_groups, generator)
        z, log_weights = self.weigh(model, contexts, by.draws_each)
        log_weights = log_weights.view(by.n_groups, by.draws_each)
        inside = (log_weights > -torch.inf).any(1)
        if not inside.any():
            return
        weights = torch.softmax(log_weights[inside], 1)
        self.progress.note(ess=float((1 / weights.square().sum(1)).mean()) / by.draws_each)
        index = torch.multinomial(weights, groups.n_each, replacement=True, generator=generator)
        z = z.view(by.n_groups, by.draws_each, -1)[inside]
        z = z.gather(1, index[..., None].expand(-1, -1, z.shape[2]))
        groups.add(groups.moved(contexts[inside], z.flatten(0, 1), by.n_moves))
        groups.move_anchors(min(by.anchors_moved, len(groups.anchors)), by.n_moves)


def renewal_spacing(budget, n_iter: int, by: FamilyTraining) -> int:
    """Iterations between renewals that take a share of the evaluations left at most."""
    rows = by.n_groups * by.draws_each + (by.n_groups + by.anchors_moved) * by.n_each * (1 + by.n_moves)
    return budget.spacing(by.every, rows, n_iter, by.evals_share)
