"""Energies from NumPyro models."""

__all__ = ["from_numpyro"]

from collections.abc import Callable
from functools import cached_property
from importlib import import_module

import numpy as np
from torch import Tensor

from ._common import names_of, require
from ._family import ModelEnergy, ModelFamily, split
from ._jax import JaxEnergy, JaxFunction, double_precision, joined


def from_numpyro(model: Callable, *args, **kwargs) -> ModelEnergy:
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
    ModelEnergy
        Takes tensors, with a gradient. Its `feature_names` follow the model's order, with "(unconstrained)" after those
        of transformed ones, and its method `constrain` maps draws (n, n_features) to a dictionary of the sites,
        deterministic ones included. Its method `family` makes the observed sites a context: one fit for all data.

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


class _NumPyroEnergy(ModelEnergy, JaxEnergy):
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
        self._called, self._unravel, self._latent, self._traced = (model, args, kwargs), unravel, list(shapes), sites
        self._sites = JaxFunction(jax.vmap(lambda x: info.postprocess_fn(unravel(x))))
        with_values = jax.eval_shape(lambda x: info.postprocess_fn(unravel(x)), np.zeros(ends[-1]))
        self.constrained_names = [site for site in sites if site in with_values]

    def _constrain(self, X: np.ndarray) -> dict[str, np.ndarray]:
        return _by_site(self._sites(X), self.constrained_names)

    def family(self) -> ModelFamily:
        observed = {key: site for key, site in self._traced.items() if _is_data(site)}
        shapes = {key: np.shape(site["value"]) for key, site in observed.items()}
        with double_precision():
            library = _NumPyroLibrary(self, shapes)
        return ModelFamily(library, self.__name__, self._origin, self.feature_names, self.constrained_names, shapes)


class _NumPyroLibrary:
    """What a `ModelFamily` asks of NumPyro, by the energy of a model with some data."""

    def __init__(self, energy: _NumPyroEnergy, shapes: dict[str, tuple]):
        self.energy, self.shapes = energy, shapes
        jax, util, handlers = (import_module(name) for name in ("jax", "numpyro.infer.util", "numpyro.handlers"))
        model, args, kwargs = energy._called
        supports = [energy._traced[site]["fn"].support for site in shapes]
        dtypes = [np.int64 if support.is_discrete else np.float64 for support in supports]

        def given(c):
            return handlers.condition(model, split(c, shapes, dtypes))

        def log_prob(x, c):
            return -util.potential_energy(given(c), args, kwargs, energy._unravel(x))

        def sites(x, c):
            found = util.constrain_fn(given(c), args, kwargs, energy._unravel(x), return_deterministic=True)
            return {site: found[site] for site in energy.constrained_names}

        def of_rows(function):
            """The function of rows (d + k,)."""
            return JaxFunction(jax.vmap(lambda row: function(row[: energy.n_features], row[energy.n_features :])))

        self._value, self._both = of_rows(log_prob), of_rows(jax.value_and_grad(log_prob))
        self._sites = of_rows(sites)

    def log_prob_and_score(self, points: Tensor, contexts: np.ndarray, with_gradient: bool):
        rows = np.concatenate([points.numpy(), contexts], 1)
        if not with_gradient:
            return joined(self._value(rows)), None
        values, scores = zip(*self._both(rows), strict=True)
        return joined(values), joined(scores)

    def constrain(self, X: np.ndarray, contexts: np.ndarray) -> dict[str, np.ndarray]:
        return _by_site(self._sites(np.concatenate([X, contexts], 1)), self.energy.constrained_names)

    def not_simulated(self) -> str:
        """Why simulated parameters would not be draws of the posteriors of their data; empty where they are."""
        distributions, sites = import_module("numpyro.distributions"), self.energy._traced
        random = {key: site for key, site in sites.items() if site["type"] == "sample"}
        factors = [key for key, site in random.items() if site["is_observed"] and not _is_data(site)]
        scaled = [key for key, site in random.items() if not _is_plain(site.get("scale"))]
        masked = [key for key in self.energy._latent if isinstance(sites[key]["fn"], distributions.MaskedDistribution)]
        improper = [key for key in self.energy._latent if isinstance(sites[key]["fn"], distributions.ImproperUniform)]
        faults = {"factors": factors, "scaled sites": scaled, "masked priors": masked, "improper priors": improper}
        return "; ".join(f"{fault}: {', '.join(keys)}" for fault, keys in faults.items() if keys)

    @cached_property
    def _pairs(self) -> JaxFunction:
        """Data (n, k) and unconstrained parameters (n, d) by keys (n, 2)."""
        jax, biject_to = import_module("jax"), import_module("numpyro.distributions").biject_to
        handlers, (model, args, kwargs) = import_module("numpyro.handlers"), self.energy._called

        def pair(key):
            sites = handlers.trace(handlers.seed(handlers.uncondition(model), key)).get_trace(*args, **kwargs)
            fixed = [site for site in self.shapes if sites[site]["is_observed"]]
            if fixed:
                raise ValueError(f"The sites {', '.join(fixed)} cannot be simulated, as those of a loop by scan.")
            x = [biject_to(sites[site]["fn"].support).inv(sites[site]["value"]) for site in self.energy._latent]
            parts = [sites[site]["value"] for site in self.shapes], x
            return tuple(jax.numpy.concatenate([jax.numpy.ravel(part) for part in some]) for some in parts)

        return JaxFunction(jax.vmap(pair))

    def simulate(self, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Pairs from the prior: data (n, k), and unconstrained parameters (n, d)."""
        random = import_module("jax").random
        with double_precision():
            keys = np.asarray(random.split(random.PRNGKey(seed), n))
        contexts, draws = zip(*self._pairs(keys), strict=True)
        return joined(contexts).numpy(), joined(draws).numpy()


def _by_site(parts: list, names: list[str]) -> dict[str, np.ndarray]:
    return {site: np.concatenate([part[site] for part in parts]) for site in names}


def _is_data(site: dict) -> bool:
    """Whether a site is observed data, and not a factor, whose value is empty."""
    return site["type"] == "sample" and site["is_observed"] and np.size(site["value"]) > 0


def _is_plain(scale) -> bool:
    """Whether a site's log density is not multiplied by another number than one."""
    return scale is None or bool(np.all(np.asarray(scale) == 1))


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
