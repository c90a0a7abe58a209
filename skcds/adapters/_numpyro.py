"""Energies from NumPyro models."""

__all__ = ["from_numpyro"]

from collections.abc import Callable
from importlib import import_module

import numpy as np

from ._common import ConstrainedEnergy, names_of, require
from ._jax import JaxEnergy, JaxFunction, double_precision


def from_numpyro(model: Callable, *args, **kwargs) -> ConstrainedEnergy:
    """Energy of the posterior of a NumPyro model, in unconstrained coordinates.

    It is NumPyro's potential: minus the log of prior times likelihood, with the log Jacobian of the constraining
    transforms and with every normalising constant, so that a sampler's log evidence is the model's log marginal
    likelihood. Computed in float64 whether or not ``jax_enable_x64`` is set, as `from_jax` does. Global random states
    stay as they are.

    Parameters
    ----------
    model : callable
        The model, a function with NumPyro's statements; handlers such as ``condition`` and ``reparam`` may be applied.
    *args, **kwargs
        What the model is called with, its data among them.

    Returns
    -------
    AdaptedEnergy
        Takes tensors, with a gradient. Its `feature_names` follow the model's order, with "(unconstrained)" after those
        of transformed ones, and its method `constrain` maps draws (n, n_features) to a dictionary of the sites,
        deterministic ones included.

    Raises
    ------
    ImportError
        Without NumPyro.
    TypeError
        When `model` is not a function.
    ValueError
        When the model has no latent site, a discrete one, or a random subsample of the data.
    """
    require("numpyro", "NumPyro", "numpyro")
    if not callable(model):
        raise TypeError(f"model has to be a function with NumPyro's statements; got {type(model).__name__}.")
    with double_precision():
        return _NumPyroEnergy(model, args, kwargs)


class _NumPyroEnergy(ConstrainedEnergy, JaxEnergy):
    _origin = "NumPyro model"

    def __init__(self, model: Callable, args: tuple, kwargs: dict):
        jax, util = import_module("jax"), import_module("numpyro.infer.util")
        name, key = getattr(model, "__name__", type(model).__name__), jax.random.PRNGKey(0)
        sites = _sites(model, key, args, kwargs)
        _check(sites, name)
        info = util.initialize_model(key, model, model_args=args, model_kwargs=kwargs, validate_grad=False)
        start = info.param_info.z
        shapes = {site: np.shape(start[site]) for site in sites if site in start}
        ends = np.cumsum([0, *(int(np.prod(shape)) for shape in shapes.values())]).tolist()

        def unravel(x):
            slices = zip(shapes, ends[:-1], ends[1:], strict=True)
            return {site: x[first:last].reshape(shapes[site]) for site, first, last in slices}

        values = info.postprocess_fn(start)
        transformed = {site for site in shapes if not _equal(start[site], values[site])}
        names = names_of(shapes, transformed)
        super().__init__(lambda x: -info.potential_fn(unravel(x)), ends[-1], False, names, name)
        self._sites = JaxFunction(jax.vmap(lambda x: info.postprocess_fn(unravel(x))))
        with_values = jax.eval_shape(lambda x: info.postprocess_fn(unravel(x)), np.zeros(ends[-1]))
        self.constrained_names = [site for site in sites if site in with_values]

    def _constrain(self, X: np.ndarray) -> dict[str, np.ndarray]:
        parts = self._sites(X)
        return {site: np.concatenate([part[site] for part in parts]) for site in self.constrained_names}


def _equal(unconstrained, value) -> bool:
    return np.shape(unconstrained) == np.shape(value) and np.array_equal(unconstrained, value)


def _sites(model: Callable, key, args: tuple, kwargs: dict) -> dict[str, dict]:
    """The model's sites in its order, traced with a key of its own and where NumPyro's samplers would start."""
    handlers, infer = import_module("numpyro.handlers"), import_module("numpyro.infer")
    seeded = handlers.substitute(handlers.seed(model, key), substitute_fn=infer.init_to_uniform)
    return handlers.trace(seeded).get_trace(*args, **kwargs)


def _check(sites: dict[str, dict], name: str) -> None:
    latent = {key: site for key, site in sites.items() if site["type"] == "sample" and not site["is_observed"]}
    discrete = [key for key, site in latent.items() if site["fn"].support.is_discrete]
    plates = [key for key, site in sites.items() if site["type"] == "plate" and _is_partial(*site["args"])]
    if discrete:
        raise ValueError(
            f"The model {name} has discrete latent sites, {', '.join(discrete)}, and a density over continuous "
            "coordinates is needed: sum over them in the model, for example with a mixture distribution."
        )
    if plates:
        raise ValueError(
            f"The model {name} takes a random subsample in the plates {', '.join(plates)}, and the density of all "
            "data is needed: leave out subsample_size."
        )
    if not latent:
        raise ValueError(
            f"The model {name} has no latent site, and so no density: every sample statement is observed. Were all "
            "its arguments meant to be given?"
        )


def _is_partial(size: int, subsample_size: int | None) -> bool:
    return subsample_size not in (None, size)
