"""The reverse Kullback-Leibler divergence of one-step draws."""

__all__ = ["ReverseKLLoss", "beside_likelihood", "on_own_draws", "turns_of_own_draws"]

import torch
from torch import Tensor

from ..._support.devices import randn
from ..._support.settings import FLOAT
from ..budget import Pace
from ..specifications import Likelihood
from .base import Objective
from .path import LARGEST_SCORE, reparametrised_loss


class ReverseKLLoss(Objective):
    """Minus the mean exact log weight of one-step draws. It needs no particles, and seeks modes.

    Parameters
    ----------
    model : OneStepModel or ShortcutModel
        What is trained.
    target : StandardizedTarget
        The density; its gradient is needed.
    batch_size : int
        Draws in a batch.
    generator : torch.Generator
        Source of randomness.
    mirrored : bool, default=False
        Whether half of the latents are the mirror images of the others: what is odd then cancels, and that is most of
        the noise where the map is nearly linear.
    of_draws : bool, default=False
        Whether the gradient is that by way of the draws alone, for an invertible map. What is left out is the score of
        the draws' density by the parameters, whose mean is zero: its noise is all that is left where the fit is exact
        (Roeder, Wu & Duvenaud 2017; Vaitl et al. 2022).
    pace : Pace, optional
        Says at which iterations there is a batch; the loss is zero at others.
    """

    def __init__(
        self, model, target, batch_size: int, generator, mirrored: bool = False, of_draws: bool = False,
        pace: Pace | None = None,
    ):  # fmt: skip
        self.model, self.target, self.batch_size, self.generator = model, target, batch_size, generator
        self.mirrored, self.of_draws, self.pace = mirrored, of_draws, pace

    def state_dict(self) -> dict:
        """What `load_state_dict` puts back: how many batches there were."""
        return {"n_made": self.pace.n_made if self.pace else 0}

    def load_state_dict(self, state: dict) -> None:
        """Go back to an earlier state."""
        if self.pace:
            self.pace.n_made = state["n_made"]

    def __call__(self, iteration: int) -> Tensor:
        """A scalar with the gradient of the loss: the score of the target stands in for a graph through the energy."""
        if self.pace is not None and not self.pace.due(iteration):
            return torch.zeros((), dtype=FLOAT, device=self.generator.device)
        latent = randn(self.generator, self.batch_size // (1 + self.mirrored), self.model.n_features)
        if self.mirrored:
            latent = torch.cat([latent, -latent])
        z, log_det = self.model.map.call_and_log_det(latent, self.model.start())
        return self._by_way_of(z) if self.of_draws else reparametrised_loss(z, log_det, self.target)

    def _by_way_of(self, z: Tensor) -> Tensor:
        """The loss of draws (n, d), with the gradient of their log weights at parameters that are held fixed."""
        log_p, score = self.target.log_prob_and_score(z.detach())
        at = z.detach().requires_grad_(True)
        log_q = self.model.log_prob(at)
        (own,) = torch.autograd.grad(log_q.sum(), at)
        gap, log_ratio = own - score.clamp(-LARGEST_SCORE, LARGEST_SCORE), (log_q.detach() - log_p).float()
        known = log_ratio.isfinite() & gap.isfinite().all(1)
        terms = (gap.masked_fill(~known[:, None], 0.0) * (z - z.detach())).sum(1) + log_ratio
        return terms[known].mean() if known.any() else 0.0 * z.sum()


def on_own_draws(run, by: Likelihood) -> Objective | None:
    """What takes the place of the likelihood where particles are too few for the numbers of a map; None elsewhere."""
    d, n = run.energy.n_features, len(run.population)
    are_few = by.reverse_kl > 0 and d > by.many_features and n < by.fewest_particles
    if not ((are_few or d > by.most_features) and run.target.has_gradient):
        return None
    of_draws = d <= by.most_features  # unmeasured above
    return ReverseKLLoss(run.model, run.target, by.n_draws, run.generator, mirrored=True, of_draws=of_draws)


def beside_likelihood(run, n_iter: int, by: Likelihood) -> list[tuple[float, Objective]]:
    """The weighted loss of own draws that goes beside the likelihood; none for an energy without a gradient.

    In few dimensions particles are enough. So they are for splines of single coordinates alone, whose modes would lose
    their masses: gradients along draws do not tell these.

    Parameters
    ----------
    run : Run
        Its model is trained, within its budget.
    n_iter : int
        Iterations of the loss.
    by : Likelihood
        Its weight, and evaluations.
    """
    transforms = getattr(getattr(run.model, "map", None), "transforms", ())
    are_wanted = run.energy.n_features > by.many_features and len(transforms) != 1
    if not (are_wanted and by.reverse_kl and run.target.has_gradient) or on_own_draws(run, by) is not None:
        return []
    pace = Pace(run.budget, by.n_draws, n_iter, by.reverse_share)
    loss = ReverseKLLoss(
        run.model, run.target, by.n_draws, run.generator, mirrored=True, of_draws=True, pace=pace
    )  # fmt: skip
    return [(by.reverse_kl, loss)]


def turns_of_own_draws(run, n_iter: int, by: Likelihood) -> int:
    """Iterations on own draws for each of the likelihood, of `n_iter` in all.

    None where there are no own draws, or the limits allow for fewer, which are then summed with the likelihood.
    """
    if run.energy.n_features <= by.many_features or not beside_likelihood(run, n_iter, by):
        return 0
    n_own = n_iter * by.turns // (1 + by.turns)
    return by.turns if by.reverse_share * run.budget.energy_evals_left() >= by.n_draws * n_own else 0
