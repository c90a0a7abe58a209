"""Whether training has made a map better than it was before."""

__all__ = ["keep_the_better_map", "start_from_marginals"]

import copy

import torch

from .._support.devices import randn
from .._support.errors import Spent
from ..models.networks import without_draws
from ..train.marginals import refit_marginals, start_marginals

EVALS_A_ROW = 12  # of which three are made: most of what is left is for the judgement
MANY = 8  # times the draws, if an eighth of what is left is enough for them
SHARE_OF_START = 0.02  # of the evaluations left, for the comparison before training
FEWEST = 100  # draws that tell a difference
N_PARTICLES = 4000  # at which densities are compared
UNKNOWN, FEW = 10.0, 1e-3  # nats by which a particle is less likely that a map does not know, and how many may be


def start_from_marginals(run, network) -> None:
    """Fit the marginals of a run's map, and leave it the identity where that has made it clearly worse.

    It may, where coordinates are those of a map that the pilot has found: particles say less of a marginal than the
    scores have.

    Parameters
    ----------
    run : Run
        With an untrained model, and particles.
    network : Specification
        Of the map, or of a control; couplings that it leaves open are dropped where coordinates are independent.
    """
    may_drop = getattr(network, "n_transforms", 0) is None
    start_marginals(run.model, run.population, run.training.marginals, run.budget, may_drop)
    of_marginals = getattr(run.model, "map", None)
    if of_marginals is None or not of_marginals.invertible:
        return
    if not {"triangular", "skewed", "n_top"} & run.model.standardization.parts.keys():
        return
    n = int(min(run.training.n_compared, SHARE_OF_START * run.budget.energy_evals_left() / 2)) // 2
    run.model.map = _best_of(run, [_identity(run)], n)


def keep_the_better_map(run) -> None:
    """Take the map of before training, or none, where its bound of log Z is clearly better, and it knows all particles.

    Coordinates may be such that nothing is left to learn: a few iterations, or few particles in many dimensions, then
    add noise. None is the identity. The bound alone would prefer a map that has lost a mode. Such a map gives some
    particles a density that is many nats below that of the other.

    The map's splines of single coordinates are fitted once more before (`refit_marginals`), and stay as they were where
    the bound is clearly better so.

    Parameters
    ----------
    run : Run
        With its invertible map after training; ``untrained`` is that of before, or None.
    """
    if run.untrained is None or run.population is None or not run.model.map.invertible:
        return
    others, trained = [run.untrained, _identity(run)], copy.deepcopy(run.model.map)
    with run.budget.judgement():
        seconds = run.budget.seconds_to_judge()
        evals = run.budget.n_affordable(10**9, 2 / run.energy.evals_per_second)
        try:
            if refit_marginals(run.model, run.target, run.generator, run.training.marginals, seconds, evals):
                others = [trained, *others]
        except Spent:
            run.model.map = trained
        run.model.map = _best_of(run, others, _n_compared(run) // 2)


def _n_compared(run) -> int:
    """Draws of the comparison: where they are no large part of what is left, so many that hundredths of a nat show."""
    n, seconds = run.training.n_compared, 4 / run.energy.evals_per_second
    few = run.budget.n_affordable(n, seconds, EVALS_A_ROW)
    return max(few, run.budget.n_affordable(MANY * n, MANY * seconds, MANY * EVALS_A_ROW))


def _identity(run):
    model = run.model
    with without_draws():
        return type(model)(**model.config).map.to(run.generator.device)


def _best_of(run, maps, n: int):
    """A run's map, or one of others that is clearly better by n draws and their mirror images, and knows particles."""
    model, best = run.model, run.model.map
    if 2 * n < FEWEST:
        return best
    latent = randn(run.generator, n, model.n_features)
    latent = torch.cat([latent, -latent])
    try:
        least = _log_weights(model, best, latent, run.target)
        for tried in maps:
            log_weights = _log_weights(model, tried, latent, run.target)
            gain = (log_weights - least).view(2, n).mean(0)
            is_better = float(gain.mean()) > 2 * float(gain.std()) / n**0.5
            if is_better and _knows(model, tried, best, run.population.x):
                best, least = tried, log_weights
    except Spent:
        pass
    return best


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
