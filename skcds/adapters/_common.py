"""What energies from elsewhere share: tensors in and out, the one autograd function, names of coordinates."""

__all__ = ["UNCONSTRAINED", "AdaptedEnergy", "ConstrainedEnergy", "names_of", "require"]

from collections.abc import Iterable
from importlib import import_module
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from .._support.settings import CPU


class AdaptedEnergy:
    """Energy ``-log rho(x)`` of a density that another library evaluates; any sampler's `fit` takes it.

    A tensor (n, n_features) is mapped to a float64 tensor (n,), an array to an array. Where the density has a gradient
    the result can be differentiated by autograd, once: value and gradient are then computed together. They are computed
    in float64 on the CPU, wherever the tensor is.

    Made by the functions of `skcds.adapters`.

    Attributes
    ----------
    n_features : int
        Dimension of a point.
    feature_names : list of str
        Names of the coordinates, such as ``mu`` and ``theta[0]``.
    has_gradient : bool
        Whether energies can be differentiated.
    """

    has_gradient = True
    _origin = ""  # of the density, in words

    def __init__(self, n_features: int, feature_names: Iterable[str] | None, name: str):
        self.n_features = int(n_features)
        self.feature_names = names_of({"x": (self.n_features,)}) if feature_names is None else list(feature_names)
        self.__name__ = name
        if self.n_features < 1:
            raise ValueError(f"n_features has to be at least 1; got {n_features!r}.")
        if len(self.feature_names) != self.n_features:
            raise ValueError(
                f"feature_names has to be {self.n_features} names, one a feature; got {self.feature_names!r}."
            )

    def __call__(self, x):
        """Energies ``-log rho(x)``, (n,) float64, of points (n, n_features): a tensor for a tensor, else an array."""
        if not isinstance(x, Tensor):
            return self(torch.from_numpy(np.array(x, dtype=np.float64, order="C"))).numpy()
        if x.ndim != 2 or x.shape[1] != self.n_features:
            raise ValueError(f"{self} takes points of shape (n, {self.n_features}); got {tuple(x.shape)}.")
        if self.has_gradient and x.requires_grad and torch.is_grad_enabled():
            return _Differentiable.apply(x, self)[0]
        return self._energy_and_gradient(x, False)[0]

    def __repr__(self) -> str:
        return f"<energy of the {self._origin} {self.__name__}, n_features={self.n_features}>"

    def _energy_and_gradient(self, x: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor]:
        """Energies (n,) float64 and their gradients (n, d) as `x` is, or no rows of them, on the device of `x`."""
        points = torch.empty(x.shape, dtype=torch.float64, device=CPU).copy_(
            x.detach()
        )  # the library may write into it
        if not len(points):
            return x.new_zeros(0, dtype=torch.float64), torch.zeros_like(x)
        log_prob, score = self._log_prob_and_score(points, with_gradient)
        gradient = x.new_zeros((0, self.n_features)) if score is None else -score.to(x)
        return -log_prob.to(x.device, torch.float64), gradient

    def _log_prob_and_score(self, points: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
        """Log densities (n,) and, where asked for, their gradients (n, d) at points (n, d) on the CPU, float64."""
        raise NotImplementedError


class ConstrainedEnergy(AdaptedEnergy):
    """Energy of a model in unconstrained coordinates, with the map to the model's parameters.

    Attributes
    ----------
    constrained_names : list of str
        What `constrain` returns, in this order.
    """

    constrained_names: list[str]

    def constrain(self, X) -> dict[str, np.ndarray]:
        """The model's parameters at unconstrained points.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
            Points, such as a sampler's draws.

        Returns
        -------
        dict
            An array (n, ...) for every name in `constrained_names`.

        Raises
        ------
        ValueError
            When X has another shape.
        """
        X = np.array(X, dtype=np.float64, order="C")
        if X.ndim != 2 or X.shape[1] != self.n_features:
            raise ValueError(f"constrain takes points of shape (n, {self.n_features}); got {X.shape}.")
        values = self._constrain(X if len(X) else np.zeros((1, self.n_features)))
        return {name: values[name][: len(X)] for name in self.constrained_names}

    def _constrain(self, X: np.ndarray) -> dict[str, np.ndarray]:
        """Arrays (n, ...) by name at points (n, d), n at least 1."""
        raise NotImplementedError


class _Differentiable(torch.autograd.Function):
    """Energies whose gradients are known by the time they are asked for."""

    @staticmethod
    def forward(x, energy):
        return energy._energy_and_gradient(x, True)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, energy = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, output[1])
        ctx.energy = energy

    @staticmethod
    def backward(ctx, weights, _):
        x, gradient = ctx.saved_tensors
        return _Gradient.apply(x, weights, gradient, ctx.energy), None


class _Gradient(torch.autograd.Function):
    """Gradients times weights; says what is wrong where these are differentiated again."""

    @staticmethod
    def forward(x, weights, gradient, energy):
        return weights.to(gradient)[:, None] * gradient

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.energy = inputs[3]

    @staticmethod
    def backward(ctx, *_):
        raise NotImplementedError(
            f"The energy of the {ctx.energy._origin} {ctx.energy.__name__} has a first derivative and no second: only "
            "values and gradients come over to PyTorch. Take differences of gradients, or write it in PyTorch."
        )


UNCONSTRAINED = " (unconstrained)"  # after the name of a coordinate that is not the parameter itself, but a transform


def names_of(shapes: dict[str, tuple], transformed: Iterable[str] = ()) -> list[str]:
    """Names of the entries of arrays, C order: ``mu`` of a number, ``theta[0]`` and ``L[1, 0]`` of larger ones.

    Those of arrays in `transformed` are marked.
    """
    return [
        name + (f"[{', '.join(map(str, index))}]" if shape else "") + (UNCONSTRAINED if name in transformed else "")
        for name, shape in shapes.items()
        for index in np.ndindex(*shape)
    ]


def require(module: str, library: str, extra: str) -> ModuleType:
    """Import a library, or say how to install it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f'from_{extra} needs {library}: pip install "skcds[{extra}]" ({error}).') from error
