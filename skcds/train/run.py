"""A fit in progress: what it carries from its start to the judgement."""

__all__ = ["Run"]

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from .budget import Budget
from .checkpoint import Checkpoint
from .loop import train
from .phases import Phase, PhaseRecord
from .specifications import Training


@dataclass
class Run:
    """What a fit carries.

    Attributes
    ----------
    energy : Energy
        What is asked for, within the budget.
    budget : Budget
        What may be spent.
    generator : torch.Generator
        Source of all randomness.
    pilot : PilotResult or None
        What the pilot found.
    model : nn.Module
        What is trained: after each phase, the average of its weights.
    target : StandardizedTarget
        The density in the model's coordinates.
    population : Population or None
        Particles.
    losses : list of float
        One an iteration, over all phases.
    history : list of PhaseRecord
        The phases that ran.
    seconds_a_path : float
        That a path of the chain takes; 0 without a limit of time.
    untrained : nn.Module or None
        The model before training, or the map of a one-step sampler, to be compared with what it has become.
    explored : Explored or None
        What an exploration by few evaluations has left: a map, and points.
    points : KnownPoints or None
        Of these, in the coordinates of the model.
    weighed : WeighedPoints or None
        The same points with their weights, for the user.
    fitted : dict
        Fitted attributes that are known already.
    """

    energy: Any
    budget: Budget
    generator: torch.Generator
    pilot: Any = None
    model: Any = None
    target: Any = None
    population: Any = None
    losses: list[float] = field(default_factory=list)
    history: list[PhaseRecord] = field(default_factory=list)
    seconds_a_path: float = 0.0
    untrained: Any = None
    explored: Any = None
    points: Any = None
    weighed: Any = None
    fitted: dict[str, Any] = field(default_factory=dict)

    @property
    def checkpoint(self) -> Checkpoint:
        """Where its state is kept."""
        return self.budget.checkpoint

    @property
    def training(self) -> Training:
        """What the fit goes by."""
        return self.budget.training

    def train(self, recipe: Iterable[Phase]) -> None:
        """Train the phases of a recipe, each of which may depend on what became of the one before."""
        for phase in recipe:
            losses = train(phase, self)
            self.losses += losses
            self.history.append(phase.record(len(losses)))
