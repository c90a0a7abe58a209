"""Consistency along the teacher's trajectories."""

__all__ = ["ConsistencyLoss", "TrajectoryBank", "pseudo_huber"]

import torch
import torch.nn.functional as F
from torch import Tensor

from ..._support.devices import randint, randn
from ..averages import moving_average
from .base import Objective

REFRESH_EVERY, REFRESH_ROWS = 80, 256  # trajectories simulated anew, and the iterations between
HUBER = 0.03  # of the pseudo-Huber distance, per square root of a dimension


def pseudo_huber(difference: Tensor) -> Tensor:
    """Mean pseudo-Huber length of differences (n, d) (Song & Dhariwal 2024)."""
    c = HUBER * difference.shape[1] ** 0.5
    return (((difference**2).sum(1) + c**2).sqrt() - c).mean()


class TrajectoryBank:
    """Trajectories of the teacher's probability-flow ODE, a part of which is simulated anew now and then.

    Parameters
    ----------
    teacher : DiffusionModel
        The teacher.
    target : StandardizedTarget
        In the teacher's coordinates.
    n_steps : int
        Steps of its grid.
    size : int
        Trajectories held.
    generator : torch.Generator
        Source of randomness.
    """

    def __init__(self, teacher, target, n_steps: int, size: int, generator):
        self.teacher, self.target, self.generator = teacher, target, generator
        self.grid = teacher.grid(n_steps)
        self.log_snr = F.pad(self.grid.log_snr, (0, 1), value=torch.inf)  # the last level is free of noise
        self.paths, self.next = self._simulate(size), 0

    def _simulate(self, n: int) -> Tensor:
        x = randn(self.generator, n, self.teacher.n_features)
        return self.teacher.flow(x, self.grid, self.target, keep=True)

    def refresh(self, n: int) -> None:
        """Replace the n oldest trajectories by new ones."""
        rows = (self.next + torch.arange(n, device=self.paths.device)) % self.paths.shape[1]
        self.paths[:, rows], self.next = self._simulate(n), int(rows[-1]) + 1

    def draw(self, n: int, gap: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """States (n, d) and levels (n,) `gap` grid steps apart on one trajectory; half start at the prior end."""
        k = randint(self.generator, 0, self.grid.n_steps - gap + 1, (n,))
        k[: n // 2] = 0
        rows = randint(self.generator, 0, self.paths.shape[1], (n,))
        return self.paths[k, rows], self.log_snr[k], self.paths[k + gap, rows], self.log_snr[k + gap]


class ConsistencyLoss(Objective):
    """Consistency distillation (Algorithm 1 of arXiv:2502.07579; Song et al. 2023).

    States on one trajectory of the teacher's probability-flow ODE have to be mapped to the same end: the one nearer to
    the target by a slowly moving average of the map, without a gradient. The gap between them shrinks from half the
    grid to one step as training proceeds.

    Parameters
    ----------
    model : OneStepModel
        What is trained.
    bank : TrajectoryBank
        The teacher's trajectories.
    batch_size : int
        Pairs of states.
    n_iter : int
        Iterations that the gap shrinks over.
    ema_decay : float, default=0.95
        Of the average that gives the targets.
    refresh_every, refresh_rows : int, default=80 and 256
        Trajectories simulated anew, and the iterations between.
    """

    def __init__(
        self,
        model,
        bank: TrajectoryBank,
        batch_size: int,
        n_iter: int,
        ema_decay=0.95,
        refresh_every=REFRESH_EVERY,
        refresh_rows=REFRESH_ROWS,
    ):
        self.model, self.bank, self.batch_size, self.n_iter = model, bank, batch_size, n_iter
        self.refresh_every, self.refresh_rows = refresh_every, refresh_rows
        self.averaged = moving_average(model.map, ema_decay)

    def state_dict(self) -> dict:
        """What `load_state_dict` puts back."""
        return {"averaged": self.averaged.state_dict(), "paths": self.bank.paths, "next": self.bank.next}

    def load_state_dict(self, state: dict) -> None:
        """Go back to an earlier state."""
        self.averaged.load_state_dict(state["averaged"])
        self.bank.paths, self.bank.next = state["paths"].to(self.bank.paths.device), state["next"]

    def __call__(self, iteration: int) -> Tensor:
        """The loss of one batch."""
        self.averaged.update_parameters(self.model.map)
        if iteration and iteration % self.refresh_every == 0:
            self.bank.refresh(self.refresh_rows)
        n_steps = self.bank.grid.n_steps
        gap = max(1, int(0.5 * n_steps * (1 - iteration / self.n_iter)))
        x, level, x_near, level_near = self.bank.draw(self.batch_size, gap)
        with torch.no_grad():
            end = self.averaged.module(x_near, level_near)
        return pseudo_huber(self.model.map(x, level) - end)
