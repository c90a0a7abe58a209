"""Whether a sampler would gain by more training, by looks at its effective sample size."""

__all__ = ["ROUNDING", "Plateau", "plateau_of", "share_at_particles", "share_at_points"]

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .particles import spread_index
from .specifications import Stopping

ROUNDING = 1e-9  # of shares of iterations


def share_at_points(log_ratio: Tensor, log_weights: Tensor | None = None) -> float:
    """Normalised ESS of a sampler's draws, from log p - log q (n,) at points of the target, with weights if they have.

    With w = p / q it is ``E_q[w]^2 / E_q[w^2] = 1 / (E_p[w] E_p[1 / w])``, whatever p is normalised to. The w are
    truncated at sqrt(n) times their mean (Ionides 2008), as one far point would decide for all.
    """
    log_ratio = log_ratio.double()
    log_weights = torch.log_softmax(torch.zeros_like(log_ratio) if log_weights is None else log_weights, 0)
    log_mean = -torch.logsumexp(log_weights - log_ratio, 0)
    bounded = log_ratio.clamp(max=log_mean + 0.5 * math.log(max(len(log_ratio), 1)))
    means = float(torch.logsumexp(log_weights + bounded, 0) - log_mean)
    return math.exp(-means) if math.isfinite(means) else 0.0


def share_at_particles(log_ratio: Tensor) -> float:
    """`share_at_points` of particles, or nothing where a draw never comes to one of them."""
    return 0.0 if (log_ratio == torch.inf).any() else share_at_points(log_ratio)


def plateau_of(run, n_iter: int) -> "Plateau | None":
    """What ends a training of so many iterations on a run's particles early; None for a map without a density."""
    stopping = run.training.stopping
    if not run.model.map.invertible or n_iter < stopping.min_iter:
        return None

    def look(averaged) -> float:
        """At points that are held out, or at the particles, for no evaluation."""
        if run.points is not None:
            return run.points.share(averaged)
        rows = spread_index(
            len(run.population), min(len(run.population), stopping.n_particles), run.population.x.device
        )
        z, log_p = run.population.x[rows], run.population.log_prob[rows]
        return share_at_particles(log_p - averaged.log_prob(z).double())

    return Plateau(look, stopping, run.budget.progress)


class Plateau:
    """Looks now and then at the averaged model, and says when more training would bring nothing that a user could see.

    Parameters
    ----------
    look : callable
        Normalised ESS of an averaged model.
    by : Stopping
        When it looks, and what it goes by.
    progress : Progress
        Is told the effective share.
    start : float, optional
        Effective share before training; by default it is looked at.
    """

    def __init__(self, look: Callable[[nn.Module], float], by: Stopping, progress, start: float | None = None):
        self.look, self.by, self.progress = look, by, progress
        self.shares = [] if start is None else [start]
        self.next = by.first

    def is_due(self, iteration: int, done: float) -> bool:
        """Whether there is a look before an iteration, at which a share of the phase is done."""
        if not self.shares:
            return True
        return iteration >= self.by.min_iter and done >= self.next - ROUNDING

    def wait(self, done: float, cost: float) -> None:
        """After a look at a share of the phase, which has cost another, let the next one be a while away."""
        self.next = max(self.next, done + max(self.by.look_every, cost / self.by.paths_share))

    @torch.no_grad()
    def reached(self, averaged) -> bool:
        """Look at the averaged model: whether its effective share has no room left, or has not grown for a while."""
        self.shares.append(self.look(averaged))
        self.progress.note(ess=self.shares[-1])
        before, recent = self.shares[: -self.by.patience], self.shares[-self.by.patience :]
        stands = bool(before) and max(recent) < max(before) + self.by.gain
        return self.shares[-1] >= 1 - self.by.tol or (stands and max(before + recent) >= self.by.least)

    def state_dict(self) -> dict:
        """What `load_state_dict` puts back."""
        return {"shares": self.shares, "next": self.next}

    def load_state_dict(self, state: dict) -> None:
        """Go back to an earlier state."""
        self.shares, self.next = list(state["shares"]), state["next"]
