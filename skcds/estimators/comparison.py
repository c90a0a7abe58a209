"""Whether training has made a map better than it was before."""

__all__ = ["keep_the_better_map"]

import torch

from .._support.devices import randn
from .._support.errors import Spent
from ..models.networks import without_draws

EVALS_A_ROW = 12  # of which three are made: most of what is left is for the judgement
FEWEST = 100  # draws that tell a difference
N_PARTICLES = 4000  # at which densities are compared
UNKNOWN, FEW = 10.0, 1e-3  # nats by which a particle is less likely that a map does not know, and how many may be


def keep_the_better_map(run) -> None:
    """Take the map of before training, or none, where its bound of log Z is clearly better, and it knows all particles.

    Coordinates may be such that nothing is left to learn: a few iterations, or few particles in many dimensions, then
    add noise, and so does the first fit of the marginals. None is the identity. The bound alone would prefer a map that
    has lost a mode. Such a map gives some particles a density that is many nats below that of the other.

    Parameters
    ----------
    run : Run
        With its invertible map after training; ``untrained`` is that of before, or None.
    """
    model, budget, best = run.model, run.budget, run.model.map
    if run.untrained is None or run.population is None or not best.invertible:
        return
    with without_draws():
        identity = type(model)(**model.config).map.to(run.generator.device)
    with budget.judgement():
        n = budget.n_affordable(run.training.n_compared, 4 / run.energy.evals_per_second, EVALS_A_ROW) // 2
        if 2 * n < FEWEST:
            return
        latent = randn(run.generator, n, model.n_features)
        latent = torch.cat([latent, -latent])
        try:
            least = _log_weights(model, best, latent, run.target)
            for tried in (run.untrained, identity):
                log_weights = _log_weights(model, tried, latent, run.target)
                gain = (log_weights - least).view(2, n).mean(0)
                is_better = float(gain.mean()) > 2 * float(gain.std()) / n**0.5
                if is_better and _knows(model, tried, best, run.population.x):
                    best, least = tried, log_weights
        except Spent:
            pass
    model.map = best


@torch.no_grad()
def _log_weights(model, of_it, latent, target):
    model.map = of_it.requires_grad_(False).eval()
    return model.call_and_log_weight(latent, target)[1]


@torch.no_grad()
def _knows(model, tried, best, z) -> bool:
    """Whether next to no particle (n, d) is far less likely by a map than by the best one until then."""
    z = z[:: max(1, len(z) // N_PARTICLES)]
    log_probs = []
    for model.map in (tried, best):
        log_probs.append(model.log_prob(z))
    lost = ~(log_probs[0] > log_probs[1] - UNKNOWN)
    return float(lost.double().mean()) <= FEW
