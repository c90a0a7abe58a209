"""Stretches of optimisation, and what became of them."""

__all__ = ["Phase", "PhaseRecord"]

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from ..io.registry import register_record
from .objectives.base import Objective
from .plateau import Plateau


@dataclass
class Phase:
    """One stretch of optimisation of a run's model.

    Attributes
    ----------
    name : str
        Its name in the checkpoint, the progress display, messages and the training plot.
    objective : Objective
        What is minimised.
    n_iter : int
        Iterations.
    learning_rate, weight_decay, ema_decay : float
        Of AdamW and of the exponential moving average of the weights.
    share : float
        Of the limits, at which it ends.
    callbacks : dict of int to callable
        ``callbacks[iteration](averaged_model)`` is called before that iteration; the phase ends where it returns True.
    plateau : Plateau, optional
        Says when more training would bring nothing.
    """

    name: str
    objective: Objective
    n_iter: int
    learning_rate: float = 2e-3
    weight_decay: float = 0.0
    ema_decay: float = 0.998
    share: float = 1.0
    callbacks: Mapping[int, Callable[[nn.Module], bool | None]] = field(default_factory=dict)
    plateau: Plateau | None = None

    def record(self, n_iter: int) -> "PhaseRecord":
        """What is told of it after as many iterations."""
        return PhaseRecord(self.name, n_iter, list(self.objective.cycle) or [self.name])


@register_record("phase", name="text", n_iter="count", cycle="list of text")
@dataclass
class PhaseRecord:
    """A phase of the training that ran.

    Attributes
    ----------
    name : str
        Its name.
    n_iter : int
        Iterations done.
    cycle : list of str
        What the losses of its iterations are of, in turn.
    """

    name: str
    n_iter: int
    cycle: list[str]

    def kinds(self) -> np.ndarray:
        """What the loss of each iteration is of (n_iter,)."""
        return np.resize(np.array(self.cycle), self.n_iter)
