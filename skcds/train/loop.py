"""One training loop for every objective: clipping, averaging, budgets, checkpoints, interruption, progress."""

__all__ = ["train"]

import contextlib
import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import nn

from .._support.errors import Spent
from .._support.warnings import note, warn_user
from .averages import moving_average
from .optimizer import AdamW
from .phases import Phase
from .plateau import ROUNDING


class _Optimization:
    """Model, average, optimiser and what else a training changes, as one state."""

    def __init__(self, model: nn.Module, phase: Phase):
        self.ema = moving_average(model, update=_average(phase.ema_decay))
        self.optimizer = AdamW(model.parameters(), phase.learning_rate, phase.weight_decay)
        self.parts: dict[str, Any] = {"model": model, "ema": self.ema, "optimizer": self.optimizer}
        self.factor = 1.0  # of the learning rate
        self.snapshots: list[dict] = []
        self.is_new = False  # whether the last snapshot was taken after the last rollback

    @property
    def average(self) -> nn.Module:
        """The model with averaged weights."""
        return self.ema.module

    def state(self) -> dict:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load(self, state: dict) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(copy.deepcopy(state[name]))

    def snap(self) -> None:
        if all(parameter.isfinite().all() for parameter in self.parts["model"].parameters()):
            self.snapshots, self.is_new = [*self.snapshots[-1:], copy.deepcopy(self.state())], True

    def roll_back(self, slower: float) -> None:
        """To the last snapshot, or where that has led here already, to the one before."""
        if not self.is_new and len(self.snapshots) > 1:
            self.snapshots.pop()
        self.load(self.snapshots[-1])
        self.factor, self.is_new = slower * self.factor, False

    def state_dict(self) -> dict:
        return self.state() | {"factor": self.factor, "snapshots": self.snapshots, "is_new": self.is_new}

    def load_state_dict(self, state: dict) -> None:
        self.load(state)
        self.factor, self.snapshots, self.is_new = state["factor"], state["snapshots"], state["is_new"]


def train(phase: Phase, run) -> list[float]:
    """Minimise the objective of a phase over the parameters of a run's model, which is then their average.

    AdamW with a cosine schedule, which follows the iterations or, where that is further, the budget: a fit that would
    run out of time anneals all the same, and one that would not is reproducible. Where loss or gradient is not finite,
    training goes back to a state of up to a few dozen iterations before, with half the learning rate, which then
    recovers. Where more training would bring nothing, the learning rate falls to its end within a few iterations.
    Ctrl-C ends it, and what follows of the fit is not trained either. A limit ends it too, after one iteration at the
    earliest.

    Parameters
    ----------
    phase : Phase
        What is minimised, and how.
    run : Run
        Its model is trained, and then stands for the average without gradients; its particles move. Its checkpoint
        keeps the state under the name of the phase.

    Returns
    -------
    losses : list of float
        One an iteration.
    """
    training = _Training(phase, run)
    training.resume()
    training.iterate()
    if not training.finished:
        training.store(finished=True)
    run.model = (training.state.average if training.losses else run.model).requires_grad_(False).eval()
    return training.losses


class _Training:
    """A phase as it is trained."""

    def __init__(self, phase: Phase, run):
        self.phase, self.run, self.budget, self.by = phase, run, run.budget, run.budget.training
        self.state = _Optimization(run.model.requires_grad_(True), phase)
        self.losses: list[float] = []
        self.start, self.spent, self.finished = 0, self.budget.spent(), False
        self.failures = 0  # in a row without a new snapshot
        self.landing: float | None = None  # share of the phase that was done when it began to end

    def resume(self) -> None:
        """Go on from the checkpoint, if it holds this phase."""
        stored = self.run.checkpoint.restore(self.phase.name)
        if stored is None:
            return
        self.state.load_state_dict(stored["optimization"])
        self.phase.objective.load_state_dict(stored["objective"])
        if self.run.population is not None:
            self.run.population.load_state_dict(stored["population"])
        self.losses, self.start, self.spent = stored["losses"], stored["iteration"], stored["spent"]
        self.finished, self.landing = stored["finished"], stored["landing"]
        if self.phase.plateau is not None:
            self.phase.plateau.load_state_dict(stored["plateau"])
        self.run.checkpoint.rewind(self.phase.name)

    def store(self, finished: bool) -> None:
        """Keep the state in the checkpoint."""
        state = {
            "optimization": self.state.state_dict(),
            "objective": self.phase.objective.state_dict(),
            "population": self.run.population and self.run.population.state_dict(),
            "losses": self.losses, "iteration": len(self.losses), "spent": self.spent, "finished": finished,
            "landing": self.landing, "plateau": self.phase.plateau and self.phase.plateau.state_dict(),
        }  # fmt: skip
        self.run.checkpoint.store(self.phase.name, state)

    def iterate(self) -> None:
        """All iterations that are left, or until something ends them."""
        n_iter, name = self.phase.n_iter, self.phase.name
        self.budget.progress.phase(name)
        for iteration in range(self.start, 0 if self.finished else n_iter):
            if self.run.checkpoint.due():
                self.store(finished=False)
            now = self.budget.spent()
            if (now >= self.phase.share and self._is_trained()) or self.budget.interrupted:
                return
            done = self._done(iteration, now)
            if self.landing is not None and self._progress(done) >= 1 and self._is_trained():
                return
            try:
                if self._step(iteration, done):
                    return
            except KeyboardInterrupt:
                self.budget.interrupted = True
                return
            except Spent:
                return
            except Exception as error:
                note(error, f"This happened in iteration {iteration} of {n_iter} of {name or 'training'}.")
                raise
            if self.failures > self.by.max_rollbacks:
                self._warn_of_failures(iteration)
                return
            self.budget.progress.note(self._progress(self._done(iteration + 1, now)), loss=self.losses[-1])

    def _done(self, iteration: int, now: float) -> float:
        """Share of the phase that is done before an iteration, of its iterations or, if that is more, of its limits."""
        return max(iteration / self.phase.n_iter, self._used(now))

    def _used(self, now: float) -> float:
        """Share that is used of the phase's part of the limits."""
        return (now - self.spent) / max(self.phase.share - self.spent, 1e-9)

    def _progress(self, done: float) -> float:
        """How far the learning rate has come where a share of the phase is done."""
        if self.landing is None or self.phase.plateau is None:
            return done
        landed = (done - self.landing) / max(self.phase.plateau.by.landing, ROUNDING) + ROUNDING
        return self.landing + (1 - self.landing) * landed

    def _look(self, iteration: int, done: float) -> None:
        """Begin to end, where more training would bring nothing."""
        plateau = self.phase.plateau
        if plateau is None or self.landing is not None or done + plateau.by.landing >= 1:
            return
        if not plateau.is_due(iteration, done):
            return
        begun = self.budget.spent()
        if plateau.reached(self.state.average):
            self.landing = done
        plateau.wait(done, self._used(self.budget.spent()) - self._used(begun))

    def _is_trained(self) -> bool:
        """Whether a limit may end the phase: the first iteration of a fit is made however late it is."""
        return bool(self.losses or self.run.losses)

    def _step(self, iteration: int, done: float) -> bool:
        """One iteration; whether a callback ends the phase instead."""
        state, model = self.state, self.run.model
        if iteration % self.by.snapshot_every == 0:
            state.snap()
            self.failures = self.failures if not state.is_new else 0
        if iteration in self.phase.callbacks and self.phase.callbacks[iteration](state.average):
            return True
        self._look(iteration, done)
        state.optimizer.learning_rate = state.factor * self.phase.learning_rate * _schedule(self._progress(done))
        state.optimizer.zero_grad()
        with contextlib.nullcontext() if self._is_trained() else self.budget.untimed():
            loss = self.phase.objective(iteration)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        self.losses.append(loss.item())
        if math.isfinite(norm) and math.isfinite(self.losses[-1]):
            state.optimizer.step()
            state.ema.update_parameters(model)
            state.factor = min(1.0, self.by.recovery * state.factor)
        else:
            state.roll_back(self.by.slower)
            self.budget.n_rollbacks, self.failures = self.budget.n_rollbacks + 1, self.failures + 1
        return False

    def _warn_of_failures(self, iteration: int) -> None:
        warn_user(
            f"{self.phase.name.capitalize() or 'Training'} ended in iteration {iteration} of {self.phase.n_iter}: "
            f"loss or gradient was not finite {self.failures} times in a row. Lower learning_rate, or look for places "
            "where the energy is not smooth.",
            ConvergenceWarning,
        )


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
