"""Energies from PyMC models."""

__all__ = ["from_pymc"]

import threading
from functools import cached_property
from importlib import import_module

import numpy as np
import torch
from torch import Tensor

from .._support.warnings import note
from ._common import names_of, require
from ._family import ModelEnergy, ModelFamily, split

LARGEST_BATCH = 1024  # rows of a compiled call
_turn = threading.RLock()  # compiled functions keep their arguments in storage that all threads share


def from_pymc(model, *, vectorize: bool = True) -> ModelEnergy:
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
    ModelEnergy
        Takes tensors, with a gradient. Its `feature_names` follow the model's order, with "(unconstrained)" after those
        of transformed ones, and its method `constrain` maps
        draws (n, n_features) to a dictionary of the variables, deterministic ones included. Its method `family` makes
        the observed variables a context: one fit for all data.

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


class _PyMCEnergy(ModelEnergy):
    _origin = "PyMC model"

    def __init__(self, model, vectorize: bool):
        pytensorf = import_module("pymc.pytensorf")
        variables = {model.rvs_to_values[rv]: rv.name for rv in model.free_RVs}
        self._inputs, self._point = list(variables), model.initial_point(random_seed=0)
        shapes = {name: np.shape(self._point[value.name]) for value, name in variables.items()}
        names = names_of(shapes, {rv.name for rv in model.free_RVs if model.rvs_to_transforms[rv] is not None})
        super().__init__(len(names), names, model.name or "model")
        self._model = model
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

    def _compile(self, outputs: list, with_gradient: bool = False, data: tuple = ()):
        """A function of points (n, d), and of data (n, k) where their vector is given; it returns arrays (n, ...)."""
        outputs, x = import_module("pymc.pytensorf").join_nonshared_inputs(
            point=self._point, inputs=self._inputs, outputs=outputs, make_inputs_shared=False
        )
        if with_gradient:
            outputs = [*outputs, import_module("pytensor").grad(outputs[0], x)]
        return self._of_rows([x, *data], outputs)

    def _of_rows(self, inputs: list, outputs: list):
        """A function of matrices from a graph of vectors, which are their rows."""
        pytensor = import_module("pytensor")
        if self.vectorize:
            try:
                tensor, replace = import_module("pytensor.tensor"), import_module("pytensor.graph.replace")
                matrices = [tensor.matrix(dtype=vector.dtype) for vector in inputs]
                batch = replace.vectorize_graph(outputs, dict(zip(inputs, matrices, strict=True)))
                return pytensor.function(matrices, batch, on_unused_input="ignore")
            except Exception as error:
                self.vectorize, self.vectorize_error = False, error
        row = pytensor.function(inputs, outputs, on_unused_input="ignore")
        return lambda *arrays: [np.stack(values) for values in zip(*map(row, *arrays), strict=True)]

    def _call(self, function, *arrays: np.ndarray) -> list[np.ndarray]:
        dtype, n = import_module("pytensor").config.floatX, len(arrays[0])
        try:
            parts = [
                function(*(array[first : first + LARGEST_BATCH].astype(dtype) for array in arrays))
                for first in range(0, n, LARGEST_BATCH)
            ]
        except Exception as error:
            note(error, f"The PyMC {self.__name__} was given points of shape {arrays[0].shape}.")
            raise
        return [np.concatenate(values) for values in zip(*parts, strict=True)]

    def _value_and_score(self, function, *arrays: np.ndarray) -> tuple[Tensor, Tensor | None]:
        with _turn:
            values = self._call(function, *arrays)
        value, *score = (torch.from_numpy(np.array(array, dtype=np.float64)) for array in values)
        return value, score[0] if score else None

    def _log_prob_and_score(self, points: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
        return self._value_and_score(self._both if with_gradient else self._value, points.numpy())

    def _constrain(self, X: np.ndarray) -> dict[str, np.ndarray]:
        with _turn:
            return dict(zip(self.constrained_names, self._call(self._parameters, X), strict=True))

    def family(self) -> ModelFamily:
        library = _PyMCLibrary(self)
        return ModelFamily(
            library, self.__name__, self._origin, self.feature_names, self.constrained_names, library.shapes
        )


class _PyMCLibrary:
    """What a `ModelFamily` asks of PyMC, by the energy of a model with some data."""

    def __init__(self, energy: _PyMCEnergy):
        self.energy, self.model = energy, energy._model
        self.values = {rv.name: self.model.rvs_to_values[rv] for rv in self.model.observed_RVs}
        observed = {name: value.eval() for name, value in self.values.items()}
        self.shapes = {name: np.shape(array) for name, array in observed.items() if np.size(array)}
        self.values = {name: self.values[name] for name in self.shapes}

    def _compile(self, outputs: list, with_gradient: bool = False):
        """A function of points (n, d) and data (n, k)."""
        tensor, replace = import_module("pytensor.tensor"), import_module("pytensor.graph.replace")
        data = tensor.vector("data", dtype=import_module("pytensor").config.floatX)
        parts = split(data, self.shapes, [value.dtype for value in self.values.values()])
        outputs = replace.graph_replace(outputs, {self.values[name]: parts[name] for name in parts}, strict=False)
        if with_gradient:
            outputs = [import_module("pymc.pytensorf").rewrite_pregrad(output) for output in outputs]
        return self.energy._compile(outputs, with_gradient, (data,))

    @cached_property
    def _value(self):
        return self._compile([self.model.logp()])

    @cached_property
    def _both(self):
        return self._compile([self.model.logp()], with_gradient=True)

    @cached_property
    def _parameters(self):
        return self._compile([self.energy._outputs[name] for name in self.energy.constrained_names])

    def log_prob_and_score(self, points: Tensor, contexts: np.ndarray, with_gradient: bool):
        return self.energy._value_and_score(self._both if with_gradient else self._value, points.numpy(), contexts)

    def constrain(self, X: np.ndarray, contexts: np.ndarray) -> dict[str, np.ndarray]:
        with _turn:
            values = self.energy._call(self._parameters, X, contexts)
        return dict(zip(self.energy.constrained_names, values, strict=True))

    def not_simulated(self) -> str:
        """Why simulated parameters would not be draws of the posteriors of their data; empty where they are."""
        return f"potentials: {', '.join(one.name for one in self.model.potentials)}" if self.model.potentials else ""

    def simulate(self, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        pymc, model = import_module("pymc"), self.model
        transforms = [model.rvs_to_transforms[rv] for rv in model.free_RVs]
        pairs = zip(transforms, model.free_RVs, strict=True)
        free = [rv if one is None else one.forward(rv, *rv.owner.inputs) for one, rv in pairs]
        data = [rv for rv in model.observed_RVs if rv.name in self.shapes]
        try:
            with _turn:
                found = pymc.draw([*data, *free], draws=n, random_seed=seed)
        except NotImplementedError as error:
            raise ValueError(
                f"The PyMC {self.energy.__name__} cannot simulate draws of its posteriors, since one of its variables "
                f"cannot be drawn ({str(error).splitlines()[0]}): pass contexts= of your own to fit, without draws=."
            ) from error
        flat = [np.asarray(array, dtype=np.float64).reshape(n, -1) for array in found]
        return np.concatenate(flat[: len(data)], 1), np.concatenate(flat[len(data) :], 1)


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
