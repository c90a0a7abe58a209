"""What the one-step samplers share: exact weights of the map, held-out ones too, and the check for folds."""

import dataclasses

import torch
from sklearn.exceptions import ConvergenceWarning

from ._base import BaseSampler
from ._warnings import warn_user
from .importance import WeightedSample
from .injectivity import check_injectivity

N_HELD_OUT = 10_000
N_INJECTIVITY = 2_000


class OneStepSampler(BaseSampler):
    """Samplers whose ``_model`` has a ``map`` from the prior to the target, and its exact weights."""

    violation_share_: float

    def _hold_out(self, model, target, generator) -> tuple[WeightedSample, float]:
        """Held-out one-step draws with their weights, and the share of violations of injectivity among them."""
        latent = torch.randn(N_HELD_OUT, model.n_features, generator=generator)
        z, log_weights = model.call_and_log_weight(latent, target)
        share = _violation_share(model.map, latent, model.start(N_INJECTIVITY))
        return WeightedSample(model.standardization(z).numpy(), log_weights.numpy(), not share), share

    @torch.no_grad()
    def _weigh(self, z, target, generator):
        if not self._model.map.invertible:
            return None
        return target.log_prob(z) - self._model.log_prob(z).double()

    def _weigh_map(self, n, random_state, target, step_map, call_and_log_weight) -> WeightedSample:
        """Draws of a map with exact weights; where violations of injectivity are found they are no bound, and warn."""
        first: list[torch.Tensor] = []  # latents of the first chunk

        def draw(normal):
            latent = normal(0)
            first.append(latent[: 0 if first else N_INJECTIVITY])
            return call_and_log_weight(latent, target)

        weighted = self._weighted_draws(n, 1, random_state, target, draw, is_bound=True)
        share = _violation_share(step_map, first[0], self._model.start(N_INJECTIVITY))
        share = max(share, 0.0 if step_map.invertible else self.violation_share_)
        if not share:
            return weighted
        warn_user(
            f"The map is not injective (violations at {share:.2%} of the draws checked): its weights are not those of "
            "a density, and the mean log weight is no bound. network='coupling' has exact weights.",
            ConvergenceWarning,
        )
        return dataclasses.replace(weighted, is_bound=False, violation_share=share)


def _violation_share(step_map, latent, level) -> float:
    if step_map.invertible:
        return 0.0
    return check_injectivity(step_map, latent[: len(level)], level[: len(latent)]).violation_share
