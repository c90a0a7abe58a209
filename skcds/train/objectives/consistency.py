"""Consistency along the teacher's trajectories."""

__all__ = ["ConsistencyLoss", "TrajectoryBank", "affordable_consistency", "pseudo_huber"]

import time

import torch
import torch.nn.functional as F
from torch import Tensor

from ..._support.devices import randint, randn
from ..averages import moving_average
from .base import Objective
from .specifications import Consistency


def pseudo_huber(difference: Tensor, scale: float = Consistency.huber) -> Tensor:
    """Mean pseudo-Huber length of differences (n, d), round within `scale` per root of d (Song & Dhariwal 2024)."""
    c = scale * difference.shape[1] ** 0.5
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
    refresh_every, refresh_rows : int, default=80 and 256
        Trajectories simulated anew, and the iterations between.
    ema_decay : float, default=0.95
        Of the average that gives the targets.
    huber : float, default=0.03
        Of the pseudo-Huber distance, per square root of a dimension.
    """

    def __init__(
        self,
        model,
        bank: TrajectoryBank,
        batch_size: int,
        n_iter: int,
        refresh_every=Consistency.refresh_every,
        refresh_rows=Consistency.refresh_rows,
        ema_decay=Consistency.ema_decay,
        huber=Consistency.huber,
    ):
        self.huber = huber
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
        return pseudo_huber(self.model.map(x, level) - end, self.huber)


def affordable_consistency(run, teacher, n_steps: int, n_pairs: int, n_iter: int, by: Consistency) -> ConsistencyLoss:
    """The consistency loss; where the teacher reads the score, with trajectories that the limits allow.

    Parameters
    ----------
    run : Run
        Its model is trained, within its budget.
    teacher : DiffusionModel
        The teacher.
    n_steps : int
        Steps of its grid, if the limits allow for so many.
    n_pairs : int
        Pairs of states in a batch.
    n_iter : int
        Iterations.
    by : Consistency
        Trajectories held, how often they are simulated anew, and more.
    """
    budget, smallest, size = run.budget, by.smallest_bank, by.bank_size
    options = {"ema_decay": by.ema_decay, "huber": by.huber}
    if teacher.needs_score:
        n_steps = _affordable_steps(n_steps, budget, by)

    def bank_of(size):
        return TrajectoryBank(teacher, run.target, n_steps, size, run.generator)

    if budget.max_time is not None:
        start = time.perf_counter()
        with budget.untimed():
            bank = bank_of(smallest)
        seconds = (time.perf_counter() - start) / smallest
        size = int(min(size, max(smallest, by.bank_time * budget.seconds_left() / seconds)))
    rows = min(by.refresh_rows, size)
    if not teacher.needs_score:
        return ConsistencyLoss(run.model, bank_of(size), n_pairs, n_iter, by.refresh_every, rows, **options)
    cost = 2 * n_steps  # of a trajectory, by Heun's method
    affordable = by.reading_share * budget.energy_evals_left() / cost
    size = int(min(size, max(smallest, affordable)))
    if budget.max_time is None or size > smallest:
        bank = bank_of(size)
    rows = min(by.refresh_rows, size)
    every = budget.spacing(by.refresh_every, cost * rows, n_iter, by.reading_share)
    return ConsistencyLoss(run.model, bank, n_pairs, n_iter, every, rows, **options)


def _affordable_steps(n_steps: int, budget, by: Consistency) -> int:
    """Steps of trajectories that read the score: the teacher's, or as many as the smallest bank can afford."""
    affordable = by.reading_share * budget.energy_evals_left() / (2 * by.smallest_bank)
    return int(min(n_steps, max(1, affordable)))
