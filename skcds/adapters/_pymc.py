"""Energies from PyMC models."""

__all__ = ["from_pymc"]

import threading
from functools import cached_property
from importlib import import_module

import numpy as np
import torch
from torch import Tensor

from .._support.warnings import note
from ._common import ConstrainedEnergy, names_of, require

LARGEST_BATCH = 1024  # rows of a compiled call
_turn = threading.RLock()  # compiled functions keep their arguments in storage that all threads share


def from_pymc(model, *, vectorize: bool = True) -> ConstrainedEnergy:
    """Energy of the posterior of a PyMC model, in unconstrained coordinates.

    It is minus ``model.logp()``: the log of prior times likelihood, with the log Jacobian of the transforms and with
    every normalising constant, so that a sampler's log evidence is the model's log marginal likelihood. Value and
    gradient are one PyTensor graph of a batch, compiled once; compiling takes tens of seconds where PyTensor has not
    seen the like before.

    Parameters
    ----------
    model : pymc.Model
        The model, with its data.
    vectorize : bool, default=True
        Turn the graph of a point into one of a batch, by ``pytensor.graph.replace.vectorize_graph``: for the eight
        schools 12 microseconds a row instead of 33. Where PyTensor cannot, and with False, the rows are looped over
        as ``model.logp_dlogp_function`` has them, which also takes less memory.

    Returns
    -------
    AdaptedEnergy
        Takes tensors, with a gradient. Its `feature_names` follow the model's order, with "(unconstrained)" after those
        of transformed ones, and its method `constrain` maps
        draws (n, n_features) to a dictionary of the variables, deterministic ones included.

    Raises
    ------
    ImportError
        Without PyMC.
    TypeError
        When `model` is not a PyMC model.
    ValueError
        When the model has no free variable, a discrete one, or a random density, as with ``pm.Minibatch``.
    """
    pymc = require("pymc", "PyMC", "pymc")
    if not isinstance(model, pymc.Model):
        raise TypeError(f"model has to be a pymc.Model; got {type(model).__name__}.")
    _check(model)
    return _PyMCEnergy(model, vectorize)


class _PyMCEnergy(ConstrainedEnergy):
    _origin = "PyMC model"

    def __init__(self, model, vectorize: bool):
        pytensorf = import_module("pymc.pytensorf")
        variables = {model.rvs_to_values[rv]: rv.name for rv in model.free_RVs}
        self._inputs, self._point = list(variables), model.initial_point(random_seed=0)
        shapes = {name: np.shape(self._point[value.name]) for value, name in variables.items()}
        names = names_of(shapes, {rv.name for rv in model.free_RVs if model.rvs_to_transforms[rv] is not None})
        super().__init__(len(names), names, model.name or "model")
        self.constrained_names = [variable.name for variable in (*model.free_RVs, *model.deterministics)]
        self._outputs = {variable.name: variable for variable in model.unobserved_value_vars}
        self._log_prob = pytensorf.rewrite_pregrad(model.logp())
        if pytensorf.find_rng_nodes([self._log_prob]):
            raise ValueError(
                f"The log density of the PyMC {self.__name__} is random, as with pm.Minibatch, and has to be the same "
                "at every call: give the model the whole data."
            )
        self.vectorize = bool(vectorize)
        self._both = self._compile([self._log_prob], with_gradient=True)

    @cached_property
    def _value(self):
        return self._compile([self._log_prob])

    @cached_property
    def _parameters(self):
        return self._compile([self._outputs[name] for name in self.constrained_names])

    def _compile(self, outputs: list, with_gradient: bool = False):
        """A function of points (n, d), which returns a list of arrays (n, ...)."""
        pytensor = import_module("pytensor")
        outputs, x = import_module("pymc.pytensorf").join_nonshared_inputs(
            point=self._point, inputs=self._inputs, outputs=outputs, make_inputs_shared=False
        )
        if with_gradient:
            outputs = [*outputs, pytensor.grad(outputs[0], x)]
        if self.vectorize:
            try:
                X = import_module("pytensor.tensor").matrix("X", dtype=x.dtype)
                batch = import_module("pytensor.graph.replace").vectorize_graph(outputs, {x: X})
                return pytensor.function([X], batch, on_unused_input="ignore")
            except Exception as error:
                self.vectorize, self.vectorize_error = False, error
        row = pytensor.function([x], outputs, on_unused_input="ignore")
        return lambda X: [np.stack(values) for values in zip(*map(row, X), strict=True)]

    def _call(self, function, X: np.ndarray) -> list[np.ndarray]:
        try:
            parts = [
                function(X[first : first + LARGEST_BATCH].astype(import_module("pytensor").config.floatX))
                for first in range(0, len(X), LARGEST_BATCH)
            ]
        except Exception as error:
            note(error, f"The PyMC {self.__name__} was given points of shape {X.shape}.")
            raise
        return [np.concatenate(values) for values in zip(*parts, strict=True)]

    def _log_prob_and_score(self, points: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
        with _turn:
            values = self._call(self._both if with_gradient else self._value, points.numpy())
        value, *score = (torch.from_numpy(np.array(array, dtype=np.float64)) for array in values)
        return value, score[0] if with_gradient else None

    def _constrain(self, X: np.ndarray) -> dict[str, np.ndarray]:
        with _turn:
            return dict(zip(self.constrained_names, self._call(self._parameters, X), strict=True))


def _check(model) -> None:
    discrete = [rv.name for rv in model.free_RVs if np.dtype(model.rvs_to_values[rv].dtype).kind != "f"]
    if discrete:
        raise ValueError(
            f"The PyMC {model.name or 'model'} has discrete free variables, {', '.join(discrete)}, and a density over "
            "continuous coordinates is needed: sum over them in the model, for example with pm.Mixture."
        )
    if not model.free_RVs:
        raise ValueError(
            f"The PyMC {model.name or 'model'} has no free variable, and so no density: every variable is observed."
        )
