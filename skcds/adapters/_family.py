"""Families from models: energies of points and contexts, where the contexts are the model's observed data."""

__all__ = ["ModelEnergy", "ModelFamily"]

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from .._support.forks import seed_of
from .._support.validation import check_count
from ._common import ConstrainedEnergy, names_of


class ModelEnergy(ConstrainedEnergy):
    """Energy of the posterior of a model with its data, in unconstrained coordinates; see `AdaptedEnergy`.

    Made by `skcds.adapters.from_numpyro` and `skcds.adapters.from_pymc`.
    """

    @abstractmethod
    def family(self) -> "ModelFamily":
        """The posteriors of the model for all data, as a family of densities: its observed data are the context.

        The data that the model has now give names and shapes; their values play no part. Only the values of observed
        statements become the context. Other arguments of the model, and what it computes from data by itself, stay.

        Returns
        -------
        ModelFamily
            Energy of points and contexts, to be passed to `fit` with ``contexts=``.

        Raises
        ------
        ValueError
            When the model has no observed data.
        """


class ModelFamily:
    """Energy ``-log rho(x, c)`` of a model whose observed data are the context c; `fit` takes it with ``contexts=``.

    It is of unconstrained coordinates x. Log Z(c) is the model's log marginal likelihood of the data c, with the
    constants that the library keeps. Made by `ModelEnergy.family`.

    Attributes
    ----------
    n_features, n_contexts : int
        Numbers of a point and of a context.
    feature_names, context_names : list of str
        Names of the coordinates and of the data, such as ``mu`` and ``y[0]``.
    constrained_names : list of str
        What `constrain` returns, in this order.
    """

    def __init__(
        self, library: Any, name: str, origin: str, feature_names: list[str], constrained_names: list[str],
        shapes: dict[str, tuple],
    ):  # fmt: skip
        self.library, self.__name__, self._origin = library, name, origin
        self.feature_names, self.constrained_names = list(feature_names), list(constrained_names)
        self.shapes = {site: tuple(shape) for site, shape in shapes.items()}
        self.context_names = names_of(self.shapes)
        self.n_features, self.n_contexts = len(self.feature_names), len(self.context_names)
        if not self.n_contexts:
            raise ValueError(
                f"The {origin} {name} has no observed data to be a context: give it data, whose values do not matter."
            )

    def __repr__(self) -> str:
        sizes = f"n_features={self.n_features}, n_contexts={self.n_contexts}"
        return f"<family of energies of the {self._origin} {self.__name__}, {sizes}>"

    def __call__(self, x, c):
        """Energies ``-log rho(x, c)``, (n,), of points (n, n_features) with contexts (n, n_contexts)."""
        return self.given(c)(x)

    def given(self, context) -> ConstrainedEnergy:
        """The energy of points for some data, as `AdaptedEnergy` with `constrain`.

        Parameters
        ----------
        context : array-like of shape (n_contexts,) or (n, n_contexts)
            Data of all points, or of each.
        """
        return _Given(self, context)

    def context(self, data: Mapping) -> np.ndarray:
        """The context of some data.

        Parameters
        ----------
        data : mapping
            Array-likes by name of the observed variable, each of the variable's shape or with one axis before it, of
            length m.

        Returns
        -------
        ndarray of shape (n_contexts,) or (m, n_contexts)
            Contexts.

        Raises
        ------
        ValueError
            When data are missing, unknown, or of another shape.
        """
        if set(data) != set(self.shapes):
            raise ValueError(f"data has to be of the variables {', '.join(self.shapes)}; got {', '.join(data)}.")
        parts = []
        for site, shape in self.shapes.items():
            array = np.asarray(data[site], dtype=np.float64)
            if array.shape[-len(shape) or array.ndim :] != shape or array.ndim > len(shape) + 1:
                raise ValueError(f"The data of {site} have to be of shape {shape} or (m, *{shape}); got {array.shape}.")
            parts.append(array.reshape(*array.shape[: array.ndim - len(shape)], -1))
        if len({part.shape[:-1] for part in parts}) > 1:
            raise ValueError(f"The data of {', '.join(self.shapes)} have to be of equally many data sets.")
        return np.concatenate(parts, axis=-1)

    def constrain(self, X, context) -> dict[str, np.ndarray]:
        """The model's parameters at unconstrained points.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
            Points, such as a sampler's draws.
        context : array-like of shape (n_contexts,) or (n, n_contexts)
            Data of all points, or of each: deterministic variables may depend on them.

        Returns
        -------
        dict
            An array (n, ...) for every name in `constrained_names`.
        """
        return self.given(context).constrain(X)

    def simulate(self, n: int, random_state=None) -> tuple[np.ndarray, np.ndarray]:
        """Simulate pairs: parameters from the prior, and data with them.

        Each draw is an exact one of the posterior of its data. Pass them on by
        ``fit(family, contexts=contexts, draws=draws)``.

        Parameters
        ----------
        n : int
            How many.
        random_state : int, RandomState instance, numpy.random.Generator or None, default=None
            Seed.

        Returns
        -------
        contexts : ndarray of shape (n, n_contexts)
            Data.
        draws : ndarray of shape (n, n_features)
            Parameters, in unconstrained coordinates.

        Raises
        ------
        ValueError
            When the model's density is not that of what it simulates: it has a factor or a potential, a scaled
            likelihood, or an improper prior.
        """
        n = check_count(n, "n", 1)
        fault = self.library.not_simulated()
        if fault:
            raise ValueError(
                f"The {self._origin} {self.__name__} cannot simulate draws of its posteriors, since it has {fault}: "
                "pass contexts= of your own to fit, without draws=."
            )
        return self.library.simulate(n, seed_of(random_state))


class _Given(ConstrainedEnergy):
    """A family with data given, for all points or for each."""

    def __init__(self, family: ModelFamily, context):
        super().__init__(family.n_features, family.feature_names, family.__name__)
        self._origin, self.constrained_names = family._origin, family.constrained_names
        self.library = family.library
        self.context = context.detach().cpu().numpy() if isinstance(context, Tensor) else np.asarray(context)
        self.context = np.atleast_2d(np.asarray(self.context, dtype=np.float64))
        if self.context.shape[1:] != (family.n_contexts,):
            raise ValueError(
                f"context has to be of shape ({family.n_contexts},), or (n, {family.n_contexts}) for as many points; "
                f"got {np.shape(context)}."
            )

    def _rows(self, n: int) -> np.ndarray:
        if len(self.context) not in (1, n):
            raise ValueError(f"context has to be one for all points, or one for each of {n}; got {len(self.context)}.")
        return np.broadcast_to(self.context, (n, self.context.shape[1]))

    def _log_prob_and_score(self, points: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
        return self.library.log_prob_and_score(points, self._rows(len(points)), with_gradient)

    def _constrain(self, X: np.ndarray) -> dict[str, np.ndarray]:
        return self.library.constrain(X, self._rows(len(X)))


def split(row, shapes: Mapping[str, tuple], dtypes: Iterable):
    """Arrays by name from a vector of all their entries, in the library's own arrays."""
    found, first = {}, 0
    for (name, shape), dtype in zip(shapes.items(), dtypes, strict=True):
        size = int(np.prod(shape))
        found[name] = row[first : first + size].reshape(shape).astype(dtype)
        first += size
    return found
