"""One training loop for every objective: clipping, averaging, budgets, progress."""

__all__ = ["Budget", "train"]

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from .energy import Energy


@dataclass
class Budget:
    """What a fit may spend, and a clock that started with it.

    Attributes
    ----------
    max_time : float or None
        Seconds.
    max_energy_evals : int or None
        Energy evaluations, as counted by `energy`.
    energy : Energy
        Has ``n_energy_evals``.
    start : float
        Clock reading at the start.
    """

    max_time: float | None
    max_energy_evals: int | None
    energy: Energy
    start: float = field(default_factory=time.perf_counter)

    def spent(self) -> float:
        """Largest share spent of the time and of the evaluations; 0 without limits."""
        shares = [0.0]
        if self.max_time is not None:
            shares.append((time.perf_counter() - self.start) / self.max_time)
        if self.max_energy_evals is not None:
            shares.append(self.energy.n_energy_evals / self.max_energy_evals)
        return max(shares)


def train(
    model: nn.Module, loss_fn: Callable, *, max_iter: int, budget: Budget, share: float = 1.0,
    learning_rate: float = 2e-3, weight_decay: float = 0.0, ema_decay: float = 0.998, callbacks: dict | None = None,
    verbose=0, description: str = "",
) -> tuple[nn.Module, list[float]]:  # fmt: skip
    """Minimise ``loss_fn(iteration)`` over the parameters of `model` with AdamW, a cosine schedule and an average.

    The schedule follows the iterations or, where that is further, the budget: a fit that would run out of time anneals
    all the same, and one that would not is reproducible.

    Parameters
    ----------
    model : nn.Module
        Trained in place.
    loss_fn : callable
        Maps the iteration to a scalar with a graph.
    max_iter : int
        Number of iterations.
    budget : Budget
        Training stops when `share` of it is spent.
    share : float, default=1.0
        See `budget`.
    learning_rate, weight_decay, ema_decay : float
        Of AdamW and of the exponential moving average of the weights.
    callbacks : dict of int to callable, optional
        ``callbacks[iteration](averaged_model)`` is called before that iteration; training ends where it
        returns True.
    verbose : int
        Whether to show a progress bar.
    description : str
        Its label.

    Returns
    -------
    averaged : nn.Module
        The model with averaged weights, without gradients.
    losses : list of float
        One a iteration.
    """
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema_decay))
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=weight_decay)
    spent = budget.spent()
    losses: list[float] = []
    with tqdm(total=max_iter, desc=description, disable=not verbose, leave=verbose > 1) as bar:
        for iteration in range(max_iter):
            now = budget.spent()
            if now >= share:
                break
            used = (now - spent) / (share - spent)
            if callbacks and iteration in callbacks and callbacks[iteration](ema.module):
                break
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * _schedule(max(iteration / max_iter, used))
            optimizer.zero_grad()
            loss = loss_fn(iteration)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            if math.isfinite(norm):
                optimizer.step()
                ema.update_parameters(model)
            losses.append(loss.item())
            bar.update()
            if verbose and iteration % 50 == 0:
                bar.set_postfix(loss=f"{losses[-1]:.4g}")
    averaged = ema.module if losses else model
    return averaged.requires_grad_(False).eval(), losses


def _schedule(progress: float, warm_up: float = 0.02, floor: float = 0.01) -> float:
    """Linear warm-up, then a cosine to `floor`."""
    if progress < warm_up:
        return (progress + 0.002) / (warm_up + 0.002)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
