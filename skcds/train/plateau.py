"""Whether a sampler would gain by more training, by looks at its effective sample size."""

__all__ = ["Plateau", "plateau_of", "share_at_particles"]

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .specifications import Stopping


def share_at_particles(log_ratio: Tensor) -> float:
    """Normalised ESS of a sampler's draws, from log p - log q (n,) at points drawn from the target.

    With weights w = p / q it is ``E_q[w]^2 / E_q[w^2] = 1 / (E_p[w] E_p[1 / w])``, whatever p is normalised to.
    """
    log_ratio = log_ratio.double()
    means = float(torch.logsumexp(log_ratio, 0) + torch.logsumexp(-log_ratio, 0)) - 2 * math.log(len(log_ratio))
    return math.exp(-means) if math.isfinite(means) else 0.0


def plateau_of(run, n_iter: int) -> "Plateau | None":
    """What ends a training of so many iterations on a run's particles early; None for a map without a density."""
    stopping = run.training.stopping
    if not run.model.map.invertible or n_iter < stopping.min_iter:
        return None

    def look(averaged) -> float:
        """At points that are held out, or at the particles, for no evaluation."""
        if run.points is not None:
            return run.points.share(averaged)
        n = min(len(run.population), stopping.n_particles)
        z, log_p = run.population.x[:n], run.population.log_prob[:n]
        return share_at_particles(log_p - averaged.log_prob(z).double())

    return Plateau(look, n_iter, stopping, run.budget.progress)


class Plateau:
    """Looks now and then at the averaged model, and says when more training would bring nothing that a user could see.

    Parameters
    ----------
    look : callable
        Normalised ESS of an averaged model.
    n_iter : int
        Iterations of the phase.
    by : Stopping
        When it looks, and what it goes by.
    progress : Progress
        Is told the effective share.
    """

    def __init__(self, look: Callable[[nn.Module], float], n_iter: int, by: Stopping, progress):
        self.look, self.n_iter, self.by, self.progress = look, n_iter, by, progress
        self.every = max(1, round(by.look_every * n_iter))
        self.shares: list[float] = []

    def landing(self, iteration: int) -> int | None:
        """Iterations in which training is to come to its end, if it is to, before a given iteration."""
        if iteration < self.by.first * self.n_iter or iteration % self.every:
            return None
        return max(1, round(self.by.landing * self.n_iter))

    @torch.no_grad()
    def reached(self, averaged) -> bool:
        """Look at the averaged model: whether its effective share has no room left, or has not grown for a while."""
        self.shares.append(self.look(averaged))
        self.progress.note(ess=self.shares[-1])
        before, recent = self.shares[: -self.by.patience], self.shares[-self.by.patience :]
        stands = bool(before) and max(recent) < max(before) + self.by.gain
        return self.shares[-1] >= 1 - self.by.tol or (stands and max(recent) >= self.by.least)

    def state_dict(self) -> dict:
        """What `load_state_dict` puts back."""
        return {"shares": self.shares}

    def load_state_dict(self, state: dict) -> None:
        """Go back to an earlier state."""
        self.shares = list(state["shares"])
