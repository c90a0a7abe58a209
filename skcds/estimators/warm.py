"""Warm starts: whether networks and particles of an earlier fit can serve the energy of a new one."""

__all__ = ["check_continued", "check_same_networks", "serve", "warn_of_a_cold_start", "with_new_coordinates"]

import math

import torch
from sklearn.exceptions import ConvergenceWarning

from .._support.warnings import warn_user
from ..density.bounds import Bounds, same_bounds
from ..density.standardize import OPTIONAL_PARTS
from ..models.maps import OneStepModel
from ..models.networks import without_draws
from ..train.particles import CORRECTION_MOVES, Population, effective_share, systematic_index

MIN_SHARE = 0.1  # normalised ESS of the old particles under the new energy, by which they can be resampled
SAME_SHARE = 0.99  # from which they are kept as they are
MAX_GAIN = 1.0  # nats of their mean log density that a few moves may bring, where the old densities are not known


def check_continued(sampler, energy) -> None:
    """Refuse a warm start from a fit in another dimension, or with other bounds, than those of an energy.

    Raises
    ------
    ValueError
        Which says what differs.
    """
    if energy.n_features != sampler.n_features_in_:
        raise ValueError(
            f"warm_start=True goes on from a fit in {sampler.n_features_in_} dimensions, and the energy has "
            f"{energy.n_features}; set warm_start=False."
        )
    if not same_bounds(Bounds.from_fitted(sampler), energy.bounds):
        raise ValueError("warm_start=True goes on from a fit with other bounds; set warm_start=False.")


def check_same_networks(wanted: dict, found: dict) -> None:
    """Refuse parameters of networks that differ from those of the fit that a warm start goes on from.

    Parameters
    ----------
    wanted : dict
        Values by parameter; None for one that may be anything.
    found : dict
        Those of the earlier fit; parameters that are not in it are not looked at.

    Raises
    ------
    ValueError
        For the first that differs.
    """
    for name, value in wanted.items():
        if value is not None and name in found and value != found[name]:
            raise ValueError(
                f"warm_start=True goes on from a fit with {name}={found[name]!r}, and {name}={value!r} is asked for: "
                "that is another network; set warm_start=False to start anew."
            )


def serve(population: Population, old_log_prob) -> bool:
    """Whether an earlier fit's particles are plausible under the energy of a new one; if so they become its particles.

    Their weights are the ratio of the densities. Where these differ and still agree well enough, the particles are
    resampled and moved. Where the old density is not known, a few moves must not raise the new one much.

    Parameters
    ----------
    population : Population
        The particles, under the new energy.
    old_log_prob : Tensor or None
        Their log densities (n,) under the old one, or None where they are not known.

    Returns
    -------
    bool
        False where the particles, and what was learned on them, are of no use.
    """
    new = population.log_prob
    if not (new > -torch.inf).any():
        return False
    if old_log_prob is None:
        population.move(CORRECTION_MOVES)
        gain = float(population.log_prob.mean() - new.mean())
        return math.isfinite(gain) and gain < MAX_GAIN
    log_weights = (new - old_log_prob.to(new)).nan_to_num(nan=-torch.inf, posinf=-torch.inf)
    share = effective_share(log_weights)
    if share < MIN_SHARE:
        return False
    if share < SAME_SHARE:
        population.replace(population.x[systematic_index(log_weights, len(population), population.generator)])
        population.move(CORRECTION_MOVES)
    return True


def warn_of_a_cold_start(name: str) -> None:
    """Say that an earlier fit is of no use."""
    warn_user(
        f"warm_start=True: the density has moved away from the particles of the earlier fit of {name}, which starts "
        "anew.",
        ConvergenceWarning,
    )


def with_new_coordinates(model: OneStepModel, control) -> OneStepModel:
    """A copy of a one-step model in the coordinates, and with the noise levels, of another control.

    The map works in standardised coordinates, in which two targets of one shape look the same wherever they are.
    """
    kept = {name: value for name, value in model.config.items() if name not in OPTIONAL_PARTS}
    with without_draws():
        copy = OneStepModel(**(kept | {"log_snr_max": control.log_snr_max} | control.standardization.config))
    copy.map.load_state_dict(model.map.state_dict())
    copy.standardization = control.standardization
    return copy
