"""What an exploration by few evaluations has left: a map, from which that of a fit starts, and points to train on."""

__all__ = ["as_explored", "begin_from", "has_own_draws", "known_points_loss"]

import torch

from ..explore.few_evaluations import Adaptive
from ..explore.specifications import Pilot
from ..models.maps import CouplingMap, OneStepModel
from ..models.specifications import Map
from ..train.known_points import KnownPoints
from ..train.objectives.known_points import KnownPointsLoss

SIZES = {
    "hidden_features": "hidden", "n_layers": "n_layers", "n_transforms": "n_transforms", "bins": "bins",
    "stretch": "stretch", "elementwise": "elementwise",
}  # fmt: skip


def has_own_draws(sampler) -> bool:
    """Whether a one-step sampler trains an invertible map on draws of its own, for an energy with a gradient."""
    objective = sampler._specified("objective")
    return sampler._specified("network").kind == "coupling" and objective.refine and objective.likelihood.reverse_kl > 0


def as_explored(network: Map, explored: OneStepModel | None) -> Map:
    """The map that is wanted, with the sizes of the explored one where they are left open; as it is without one."""
    if explored is None or network.kind != "coupling":
        return network
    return network.set_params(
        **{name: explored.config[key] for name, key in SIZES.items() if getattr(network, name) is None}
    )


@torch.no_grad()
def begin_from(step_map, explored: OneStepModel | None) -> bool:
    """Give a map the weights of an explored one, if they have the same sizes; whether it was done.

    Both are in the coordinates of the explored one. At the prior end features of the level do not depend on the grid. A
    map of two levels has features of the second, too, to which it gives no weight at first.
    """
    if explored is None or not isinstance(step_map, CouplingMap):
        return False
    found, own = explored.map.state_dict(), step_map.state_dict()
    if found.keys() != own.keys():
        return False
    for name, value in own.items():
        n_more = value.shape[-1] - found[name].shape[-1] if value.ndim == 2 else 0
        if n_more == step_map.n_time - explored.map.n_time > 0:
            found[name] = torch.nn.functional.pad(found[name], (0, n_more))
        if found[name].shape != value.shape:
            return False
    step_map.load_state_dict(found)
    return True


def known_points_loss(sampler, run) -> KnownPointsLoss | None:
    """What a run's map is trained on in place of its particles; None where an exploration has left no points."""
    if run.explored is None:
        return None
    found, start = run.explored, sampler._specified("start")
    adaptive = start.adaptive if isinstance(start, Pilot) else Adaptive()
    by, score = adaptive.map, found.score if found.has_scores else None
    run.points = KnownPoints(
        found.x, found.log_prob, score, found.log_weights, found.held, run.model.standardization, by.exponent
    )  # fmt: skip
    likelihood = sampler._specified("objective").likelihood
    return KnownPointsLoss(
        run.model, run.points, by.batch_size, run.generator, by.regression, by.scores, likelihood.order,
        likelihood.largest_count,
    )  # fmt: skip
