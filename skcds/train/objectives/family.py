"""Likelihood of a conditional map at particles of many contexts, and new particles from the map's own draws."""

__all__ = ["FamilyLikelihood", "Renewal", "renewal_spacing"]

import torch
from torch import Tensor

from ..._support.devices import randn
from ..groups import ParticleGroups
from .base import Objective

EVERY = 40  # iterations between renewals
NEW_GROUPS, DRAWS_EACH = 400, 16  # contexts of a renewal, and draws of the map for each
NEW_MOVES, ANCHORS_MOVED = 3, 200  # moves of new particles, and anchors that are moved beside them
REGRESSION = 1.0  # weight of the spread of log ratios


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

    def __init__(self, model, groups: ParticleGroups, n_groups: int, regression: float = REGRESSION):
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
    n_groups : int, default=400
        Contexts at a time.
    """

    def __init__(self, groups: ParticleGroups, source, progress, n_groups: int = NEW_GROUPS):
        self.groups, self.source, self.progress, self.n_groups = groups, source, progress, n_groups

    @torch.no_grad()
    def __call__(self, model) -> None:
        """Draw from a model, resample, move, and add; move some of the anchors, too."""
        groups, generator = self.groups, self.groups.generator
        contexts = self.source.draw(self.n_groups, generator)
        latent = randn(generator, self.n_groups * DRAWS_EACH, model.n_features)
        z, log_weights = model.given(contexts).call_and_log_weight(latent, groups.target.given(contexts))
        log_weights = log_weights.view(self.n_groups, DRAWS_EACH)
        inside = (log_weights > -torch.inf).any(1)
        if not inside.any():
            return
        weights = torch.softmax(log_weights[inside], 1)
        self.progress.note(ess=float((1 / weights.square().sum(1)).mean()) / DRAWS_EACH)
        index = torch.multinomial(weights, groups.n_each, replacement=True, generator=generator)
        z = z.view(self.n_groups, DRAWS_EACH, -1)[inside]
        z = z.gather(1, index[..., None].expand(-1, -1, z.shape[2]))
        groups.add(groups.moved(contexts[inside], z.flatten(0, 1), NEW_MOVES))
        groups.move_anchors(min(ANCHORS_MOVED, len(groups.anchors)), NEW_MOVES)


def renewal_spacing(budget, n_each: int, n_iter: int, share: float) -> int:
    """Iterations between renewals that take a share of the evaluations left at most."""
    rows = NEW_GROUPS * DRAWS_EACH + (NEW_GROUPS + ANCHORS_MOVED) * n_each * (1 + NEW_MOVES)
    return budget.spacing(EVERY, rows, n_iter, share)
