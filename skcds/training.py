"""One training loop for every objective: clipping, averaging, budgets, checkpoints, interruption, progress."""

__all__ = ["train"]

import contextlib
import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ._warnings import note, warn_user
from .budget import Budget
from .errors import Spent
from .optimizer import AdamW

SNAPSHOT_EVERY = 25  # iterations between states that training can go back to
MAX_ROLLBACKS = 10  # in a row without a new such state, after which training ends
SLOWER, RECOVERY = 0.5, 1.02  # factors of the learning rate at a rollback, and at every iteration after it


class _Optimization:
    """Model, average, optimiser and what else a training changes, as one state."""

    def __init__(self, model, ema, optimizer):
        self.parts = {"model": model, "ema": ema, "optimizer": optimizer}
        self.factor = 1.0  # of the learning rate
        self.snapshots: list[dict] = []
        self.is_new = False  # whether the last snapshot was taken after the last rollback

    def state(self) -> dict:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load(self, state: dict) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(copy.deepcopy(state[name]))

    def snap(self) -> None:
        if all(parameter.isfinite().all() for parameter in self.parts["model"].parameters()):
            self.snapshots, self.is_new = [*self.snapshots[-1:], copy.deepcopy(self.state())], True

    def roll_back(self) -> None:
        """To the last snapshot, or where that has led here already, to the one before."""
        if not self.is_new and len(self.snapshots) > 1:
            self.snapshots.pop()
        self.load(self.snapshots[-1])
        self.factor, self.is_new = SLOWER * self.factor, False

    def state_dict(self) -> dict:
        return self.state() | {"factor": self.factor, "snapshots": self.snapshots, "is_new": self.is_new}

    def load_state_dict(self, state: dict) -> None:
        self.load(state)
        self.factor, self.snapshots, self.is_new = state["factor"], state["snapshots"], state["is_new"]


def train(
    model: nn.Module, loss_fn: Callable, *, max_iter: int, budget: Budget, share: float = 1.0,
    learning_rate: float = 2e-3, weight_decay: float = 0.0, ema_decay: float = 0.998, callbacks: dict | None = None,
    stateful: Sequence[Any] = (), description: str = "", needed: bool = True,
) -> tuple[nn.Module, list[float]]:  # fmt: skip
    """Minimise ``loss_fn(iteration)`` over the parameters of `model` with AdamW, a cosine schedule and an average.

    The schedule follows the iterations or, where that is further, the budget: a fit that would run out of time anneals
    all the same, and one that would not is reproducible. Where loss or gradient is not finite, training goes back to a
    state of up to a few dozen iterations before, with half the learning rate, which then recovers. Ctrl-C ends it, and
    what follows of the fit is not trained either. A limit ends it too, after one iteration at the earliest if that is
    needed.

    Parameters
    ----------
    model : nn.Module
        Trained in place.
    loss_fn : callable
        Maps the iteration to a scalar with a graph.
    max_iter : int
        Number of iterations.
    budget : Budget
        Training stops when `share` of it is spent. Its checkpoint keeps the state under the name of `description`.
    share : float, default=1.0
        See `budget`.
    learning_rate, weight_decay, ema_decay : float
        Of AdamW and of the exponential moving average of the weights.
    callbacks : dict of int to callable, optional
        ``callbacks[iteration](averaged_model)`` is called before that iteration; training ends where it
        returns True.
    stateful : sequence
        What else changes during training, with ``state_dict`` and ``load_state_dict``.
    description : str
        Name of the phase, for the progress display, messages and the checkpoint.
    needed : bool, default=True
        Whether the first iteration is made however late it is; False where the model was trained before.

    Returns
    -------
    averaged : nn.Module
        The model with averaged weights, without gradients.
    losses : list of float
        One a iteration.
    """
    ema = AveragedModel(model, multi_avg_fn=_average(ema_decay))
    optimizer = AdamW(model.parameters(), learning_rate, weight_decay)
    state, checkpoint = _Optimization(model, ema, optimizer), budget.checkpoint
    spent, start, finished = budget.spent(), 0, False
    losses: list[float] = []

    stored = checkpoint.restore(description)
    if stored is not None:
        state.load_state_dict(stored["optimization"])
        for part, part_state in zip(stateful, stored["stateful"], strict=True):
            part.load_state_dict(part_state)
        losses, start, spent, finished = (stored[key] for key in ("losses", "iteration", "spent", "finished"))
        checkpoint.rewind(description)

    def store(iteration, finished):
        parts = [part.state_dict() for part in stateful]
        progress = {"losses": losses, "iteration": iteration, "spent": spent, "finished": finished}
        checkpoint.store(description, {"optimization": state.state_dict(), "stateful": parts, **progress})

    failures, progress = 0, budget.progress
    progress.phase(description)
    for iteration in range(start, 0 if finished else max_iter):
        if checkpoint.due():
            store(iteration, finished=False)
        now = budget.spent()
        if (now >= share and (losses or not needed)) or budget.interrupted:
            break
        used = (now - spent) / max(share - spent, 1e-9)
        try:
            if iteration % SNAPSHOT_EVERY == 0:
                state.snap()
                failures = failures if not state.is_new else 0
            if callbacks and iteration in callbacks and callbacks[iteration](ema.module):
                break
            optimizer.learning_rate = state.factor * learning_rate * _schedule(max(iteration / max_iter, used))
            optimizer.zero_grad()
            with contextlib.nullcontext() if losses or not needed else budget.untimed():
                loss = loss_fn(iteration)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            losses.append(loss.item())
            if math.isfinite(norm) and math.isfinite(losses[-1]):
                optimizer.step()
                ema.update_parameters(model)
                state.factor = min(1.0, RECOVERY * state.factor)
            else:
                state.roll_back()
                budget.n_rollbacks, failures = budget.n_rollbacks + 1, failures + 1
        except KeyboardInterrupt:
            budget.interrupted = True
            break
        except Spent:
            break
        except Exception as error:
            note(error, f"This happened in iteration {iteration} of {max_iter} of {description or 'training'}.")
            raise
        if failures > MAX_ROLLBACKS:
            warn_user(
                f"{description.capitalize() or 'Training'} ended in iteration {iteration} of {max_iter}: loss or "
                f"gradient was not finite {failures} times in a row. Lower learning_rate, or look for places where "
                "the energy is not smooth.",
                ConvergenceWarning,
            )
            break
        progress.note(max((iteration + 1) / max_iter, used), loss=losses[-1])
    if not finished:
        store(len(losses), finished=True)
    averaged = ema.module if losses else model
    return averaged.requires_grad_(False).eval(), losses


def _average(decay: float) -> Callable:
    """Exponential moving average that forgets faster at first: a short training is not averaged with its start.

    After n steps the decay is that given, or (1 + n) / (10 + n) if that is less.
    """

    @torch.no_grad()
    def update(averaged, current, n_averaged):
        now = min(decay, (1 + float(n_averaged)) / (10 + float(n_averaged)))
        torch._foreach_lerp_(averaged, current, 1 - now)

    return update


def _schedule(progress: float, warm_up: float = 0.02, floor: float = 0.01) -> float:
    """Linear warm-up, then a cosine to `floor`."""
    if progress < warm_up:
        return (progress + 0.002) / (warm_up + 0.002)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
