"""Several fits with independent seeds, of which the best is kept."""

__all__ = ["fit_several"]

import numbers
import time

from sklearn.exceptions import ConvergenceWarning

from .._support.devices import find_device, generator_on
from .._support.forks import seed_of
from .._support.parallel import best_fit
from .._support.warnings import warn_user
from ..density.bounds import Bounds
from ..density.families import open_energy
from ..density.function import Density
from .copies import with_energy


def fit_several(sampler, density: Density, checkpoint, start, derived=None):
    """Fit a sampler `n_init` times, and keep the best.

    Parameters
    ----------
    sampler : BaseSampler
        It gets the attributes of the best fit.
    density : Density
        What was passed to `fit`.
    checkpoint : path-like or None
        Name that those of the checkpoints of the fits begin with.
    start : float
        Clock reading at the start.
    derived : Derived, optional
        Functions of draws.

    Returns
    -------
    BaseSampler
        The sampler.

    Raises
    ------
    ValueError
        With a checkpoint, when `random_state` is no integer.
    """
    if checkpoint is not None and not isinstance(sampler.random_state, numbers.Integral):
        raise ValueError(
            f"A checkpoint of n_init={sampler.n_init} fits needs an integer random_state, by which they are found "
            f"again; got {sampler.random_state!r}."
        )
    seed = seed_of(sampler.random_state)
    n_features = sampler._find_n_features(density.energy_fn)
    names = sampler._find_feature_names(density.energy_fn, n_features)
    bounds = sampler._find_bounds(n_features, names, density.energy_fn)
    energy = open_energy(  # which finds fault with the function before any worker starts
        density, n_features, generator_on(find_device(sampler.device), seed), bounds
    )
    if derived is not None:
        derived.check(energy)
    best, fits = best_fit(sampler, density, checkpoint, seed)
    fitted = {name: value for name, value in vars(best).items() if name not in sampler.get_params(deep=False)}
    for count in ("n_energy_evals_", "n_grad_evals_", "n_network_evals_"):
        fitted[count] = sum(getattr(fit, count) for fit in fits)
    _take_back(sampler, fitted, density)
    bounds = Bounds.from_fitted(best)
    energy.bounds = bounds and bounds.to(energy.device)
    sampler.__dict__.update(
        fitted, _energy=energy, _energy_name=None, _lost_energy=None, fit_time_=time.perf_counter() - start,
        _derived=derived,
    )  # fmt: skip
    if not sampler.converged_:
        warn_user(
            f"None of {sampler.n_init} fits of {type(sampler).__name__} converged: the best has a normalised ESS of "
            f"{sampler.ess_:.3f} and weights with a Pareto k above its limit, so that log evidence and "
            "expectations are not reliable. Raise max_iter or max_time, or check the energy function.",
            ConvergenceWarning,
            "convergence",
        )
    return sampler


def _take_back(sampler, fitted: dict, density: Density) -> None:
    """Give the sampler inside a fit, which may be from another process, the energy back."""
    if fitted.get("teacher_") is not None:
        own = getattr(sampler.teacher, "estimator", sampler.teacher)
        kept = own if hasattr(own, "_model") else with_energy(fitted["teacher_"], density)
        fitted["teacher_"] = kept
