"""Particles of many contexts, in groups of one context each."""

__all__ = ["ParticleGroups"]

from dataclasses import dataclass

import torch
from torch import Tensor

from .._support.devices import randint, randperm
from .particles import CORRECTION_MOVES, Population
from .specifications import FamilyTraining


@dataclass
class Group:
    """Some groups.

    Attributes
    ----------
    contexts : Tensor
        (m, k), float64.
    z : Tensor
        Particles (m, r, d) in standardised coordinates, float32.
    log_prob : Tensor
        Their log densities (m, r), float64.
    score : Tensor
        Their scores (m, r, d), float32.
    """

    contexts: Tensor
    z: Tensor
    log_prob: Tensor
    score: Tensor

    def parts(self) -> tuple[Tensor, ...]:
        """The four tensors."""
        return self.contexts, self.z, self.log_prob, self.score

    def __len__(self) -> int:
        return len(self.contexts)

    def __getitem__(self, rows) -> "Group":
        return Group(*(part[rows] for part in self.parts()))


class ParticleGroups:
    """Groups that stay, the anchors, and groups that new ones take the places of.

    Parameters
    ----------
    target : FamilyTarget
        The densities.
    contexts : Tensor
        (m, k).
    x : Tensor
        Particles (m, r, d) in unconstrained coordinates.
    generator : torch.Generator
        Source of randomness.
    by : FamilyTraining
        How many particles are kept beside the anchors, and how many of a batch are of these.
    """

    def __init__(self, target, contexts: Tensor, x: Tensor, generator, by: FamilyTraining):
        self.target, self.generator, self.by, self.step = target, generator, by, 0.1
        z = target.standardization.given(contexts).inverse(x.flatten(0, 1)).float()
        self.anchors = self.moved(contexts, z, CORRECTION_MOVES)
        self.fresh = self.anchors[:0]

    @classmethod
    def of_state(cls, target, state: dict, generator, by: FamilyTraining) -> "ParticleGroups":
        """What `state_dict` gave."""
        self = object.__new__(cls)
        self.target, self.generator, self.by = target, generator, by
        self.load_state_dict(state)
        return self

    def __len__(self) -> int:
        """How many particles."""
        return (len(self.anchors) + len(self.fresh)) * self.n_each

    @property
    def n_each(self) -> int:
        """Particles of a group."""
        return self.anchors.z.shape[1]

    def moved(self, contexts: Tensor, z: Tensor, n_moves: int) -> Group:
        """Groups of contexts (m, k) with particles (m r, d) after moves."""
        target = self.target.given(contexts)
        population = Population(target, z, self.generator, step=self.step)
        population.move(n_moves)
        self.step = population.step
        m = len(contexts)
        score = population.score.float().view(m, -1, z.shape[1])
        return Group(contexts, population.x.view(m, -1, z.shape[1]), population.log_prob.view(m, -1), score)

    def add(self, group: Group) -> None:
        """Take new groups, in the place of the oldest but for the anchors."""
        n_fresh = self.by.n_fresh // self.by.n_each
        kept = self.fresh[max(0, len(self.fresh) + len(group) - n_fresh) :]
        self.fresh = Group(*(torch.cat(both) for both in zip(kept.parts(), group.parts(), strict=True)))

    def move_anchors(self, n: int, n_moves: int) -> None:
        """Move n of the anchors."""
        rows = randperm(self.generator, len(self.anchors))[:n]
        group = self.anchors[rows]
        new = self.moved(group.contexts, group.z.flatten(0, 1), n_moves)
        pairs = zip(self.anchors.parts(), new.parts(), strict=True)
        self.anchors = Group(*(old.index_copy(0, rows, part.to(old.dtype)) for old, part in pairs))

    def draw(self, n: int) -> Group:
        """N groups picked at random with replacement, a fixed share of them anchors."""
        n_anchors = round(self.by.anchors_drawn * n) if len(self.fresh) else n
        of_anchors = self.anchors[randint(self.generator, 0, len(self.anchors), (n_anchors,))]
        if not len(self.fresh):
            return of_anchors
        of_fresh = self.fresh[randint(self.generator, 0, len(self.fresh), (n - n_anchors,))]
        return Group(*(torch.cat(both) for both in zip(of_anchors.parts(), of_fresh.parts(), strict=True)))

    def state_dict(self) -> dict:
        """What `load_state_dict` puts back."""
        return {"anchors": self.anchors.parts(), "fresh": self.fresh.parts(), "step": self.step}

    def load_state_dict(self, state: dict) -> None:
        """Go back to an earlier state."""
        device = self.generator.device
        self.anchors, self.fresh = (Group(*(part.to(device) for part in state[name])) for name in ("anchors", "fresh"))
        self.step = state["step"]
