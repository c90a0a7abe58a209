"""Priors: the density of a sampler's coordinates, and the parameters that these stand for."""

__all__ = ["DensityPrior", "IndependentPrior", "Prior", "TransformPrior", "is_distribution"]

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._support.settings import CPU
from .._support.warnings import note
from ..density.energy import InvalidEnergyError

MARK = " (unit cube)"  # after the name of a coordinate that is a prior's quantile, not the parameter itself
FEWEST_POINTS, POINTS_A_FEATURE = 64, 4  # of a start: location and scale are taken from them
STEP, NEAREST = 1e-5, 1e-4  # of differences of a log density, in its scale and in distances from the nearest bound
LARGEST_SHARE = 1 - 2.0**-53  # of a coordinate in the unit cube, below one


class Prior:
    """What a sampler's coordinates are of.

    Attributes
    ----------
    n_features : int
        Number of parameters.
    in_cube : bool
        Whether the coordinates are in the unit cube, where the prior is uniform, and not the parameters themselves.
    bounds : list of (float, float) or None
        Of the coordinates.
    start : ndarray of shape (m, n_features) or None
        Coordinates that are spread as the prior is.
    """

    in_cube = True

    def __init__(self, n_features: int, bounds: list | None, start: np.ndarray | None):
        self.n_features, self.bounds, self.start = n_features, bounds, start

    def log_density(self, X):
        """Log density (n,) of coordinates (n, d), float64: a tensor for a tensor, an array for an array."""
        inside = ((X > 0) & (X < 1)).all(1)
        if isinstance(X, Tensor):
            return torch.zeros_like(X[:, 0], dtype=torch.float64).masked_fill(~inside, -math.inf)
        return np.where(inside, 0.0, -np.inf)

    def parameters(self, X):
        """Parameters (n, d) at coordinates (n, d) of positive density."""
        raise NotImplementedError


class IndependentPrior(Prior):
    """Independent parameters, each with a frozen distribution of SciPy.

    Gradients are those of any distribution: the slope of a quantile is one over the density, and log densities are
    differentiated by central differences, to some nine digits.

    Parameters
    ----------
    distributions : sequence
        One for each parameter, with the methods `logpdf`, `ppf` and `support`.
    in_cube : bool
        Whether the coordinates are the quantiles of the parameters.
    """

    def __init__(self, distributions: Sequence[Any], in_cube: bool):
        self.distributions, self.in_cube = list(distributions), in_cube
        d = len(self.distributions)
        shares = spread(d)
        supports = [tuple(float(end) for end in one.support()) for one in self.distributions]
        start = np.column_stack([one.ppf(shares[:, j]) for j, one in enumerate(self.distributions)])
        if not np.isfinite(start).all():
            j = int((~np.isfinite(start)).any(0).argmax())
            raise ValueError(f"prior[{j}] has quantiles that are not finite, and so is no distribution: check it.")
        self.scales = np.subtract(*np.quantile(start, [0.84, 0.16], axis=0)) / 2
        super().__init__(d, [(0.0, 1.0)] * d if in_cube else supports, shares if in_cube else start)

    def log_density(self, X):
        if self.in_cube:
            return super().log_density(X)
        if not isinstance(X, Tensor):
            return sum(one.logpdf(X[:, j]) for j, one in enumerate(self.distributions))
        columns = [_LogDensity.apply(X[:, j].double(), self, j) for j in range(self.n_features)]
        return torch.stack(columns, 1).sum(1)

    def parameters(self, X):
        if not self.in_cube:
            return X
        if not isinstance(X, Tensor):
            return np.column_stack([self.quantile(X[:, j], j) for j in range(self.n_features)])
        columns = [_Quantile.apply(X[:, j].double(), self, j) for j in range(self.n_features)]
        return torch.stack(columns, 1)

    def quantile(self, share: np.ndarray, j: int) -> np.ndarray:
        """Quantiles (n,) of parameter j."""
        return np.asarray(self.distributions[j].ppf(np.clip(share, np.finfo(float).tiny, LARGEST_SHARE)))

    def score(self, x: np.ndarray, j: int) -> np.ndarray:
        """Derivatives (n,) of the log density of parameter j."""
        one = self.distributions[j]
        low, high = one.support()
        step = np.fmin(STEP * self.scales[j], NEAREST * np.fmin(x - low, high - x))
        above, below = x + step, x - step
        with np.errstate(all="ignore"):
            return (one.logpdf(above) - one.logpdf(below)) / (above - below)


class TransformPrior(Prior):
    """A function of the user's that maps the unit cube to parameters.

    Parameters
    ----------
    function : callable
        Maps coordinates (n, d) to parameters (n, d), or one point (d,) to one.
    n_features : int
        d.
    vectorize : bool
        Whether it takes many points.
    """

    def __init__(self, function: Callable, n_features: int, vectorize: bool):
        self.function, self.vectorize = function, vectorize
        super().__init__(n_features, [(0.0, 1.0)] * n_features, spread(n_features))

    def parameters(self, X):
        return applied(self.function, X, self.vectorize, "prior", (self.n_features,))


class DensityPrior(Prior):
    """A function of the user's that gives the log density of the parameters.

    Parameters
    ----------
    function : callable
        Maps parameters (n, d) to log densities (n,), or one point (d,) to a number.
    n_features : int
        d.
    vectorize : bool
        Whether it takes many points.
    bounds : list of pairs or None
        Of the parameters.
    """

    in_cube = False

    def __init__(self, function: Callable, n_features: int, vectorize: bool, bounds: list | None):
        self.function, self.vectorize = function, vectorize
        super().__init__(n_features, bounds, None)

    def log_density(self, X):
        found = applied(self.function, X, self.vectorize, "prior", ())
        return found.double() if isinstance(found, Tensor) else found

    def parameters(self, X):
        return X


class _Quantile(torch.autograd.Function):
    """Quantiles, whose slope is one over the density."""

    @staticmethod
    def forward(share, prior, j):
        found = prior.quantile(_array(share), j)
        return torch.from_numpy(np.array(found, dtype=np.float64)).to(share.device)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)
        ctx.prior, ctx.j = inputs[1:]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, weights):
        (x,) = ctx.saved_tensors
        log_density = ctx.prior.distributions[ctx.j].logpdf(_array(x))
        return weights * _tensor(np.exp(-log_density), x), None, None


class _LogDensity(torch.autograd.Function):
    """Log densities of one parameter."""

    @staticmethod
    def forward(x, prior, j):
        return _tensor(prior.distributions[j].logpdf(_array(x)), x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])
        ctx.prior, ctx.j = inputs[1:]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, weights):
        (x,) = ctx.saved_tensors
        return weights * _tensor(ctx.prior.score(_array(x), ctx.j), x), None, None


def _array(x: Tensor) -> np.ndarray:
    return x.detach().to(CPU).numpy()


def _tensor(values, like: Tensor) -> Tensor:
    return torch.from_numpy(np.array(values, dtype=np.float64)).to(like.device)


def spread(n_features: int) -> np.ndarray:
    """Points (m, d) of the unit cube with evenly spaced coordinates in random order, the same at every call."""
    m = max(FEWEST_POINTS, POINTS_A_FEATURE * n_features)
    rows = np.tile((np.arange(m) + 0.5) / m, (n_features, 1))
    return np.random.default_rng(0).permuted(rows, axis=1).T.copy()


def is_distribution(value) -> bool:
    """Whether a value has the methods of a frozen distribution of SciPy."""
    return all(callable(getattr(value, name, None)) for name in ("logpdf", "ppf", "support"))


def applied(function: Callable, X, vectorize: bool, name: str, shape: tuple):
    """Results (n, *shape) of a function of many points or of one, for a tensor or an array of points (n, d).

    Raises
    ------
    InvalidEnergyError
        When it returns something else.
    """
    is_tensor = isinstance(X, Tensor)
    try:
        values = [function(X.clone() if is_tensor else X.copy())] if vectorize else [function(x) for x in rows_of(X)]
    except Exception as error:
        given = tuple(X.shape) if vectorize else tuple(X.shape[1:])
        other = "vectorize=False gives it one point" if vectorize else "vectorize=True gives it many points"
        note(error, f"{name} was given {'a tensor' if is_tensor else 'an array'} of shape {given}; {other} at a time.")
        raise
    expected = (len(X), *shape) if vectorize else shape
    for value in values:
        check_result(value, is_tensor and vectorize, expected, name, vectorize)
    if is_tensor:
        parts = [torch.as_tensor(value, dtype=torch.float64, device=X.device) for value in values]
        return parts[0] if vectorize else torch.stack(parts)
    return np.asarray(values[0] if vectorize else values, dtype=np.float64)


def rows_of(X) -> Iterable:
    """Points (d,), each with memory of its own."""
    return X.unbind(0) if isinstance(X, Tensor) else X.copy()


def check_result(value, has_to_be_tensor: bool, shape: tuple, name: str, vectorize: bool) -> None:
    """Refuse what a function has returned if it is of another kind or shape.

    Raises
    ------
    InvalidEnergyError
        Which says what was expected.
    """
    if has_to_be_tensor and not isinstance(value, Tensor):
        raise InvalidEnergyError(f"{name} returned {type(value).__name__} for a tensor.")
    try:
        array = value if isinstance(value, Tensor) else np.asarray(value)
        found = tuple(array.shape)
        real = array.dtype.is_floating_point if isinstance(array, Tensor) else array.dtype.kind in "fiu"
    except ValueError:
        found, real = (), False
    if real and found == shape:
        return
    what = f"shape {found}" if real else f"{type(value).__name__}, which is not of real numbers"
    other = "pass vectorize=False for a function of one point" if vectorize else "pass vectorize=True for one of many"
    raise InvalidEnergyError(
        f"{name} has to return real numbers of shape {shape} for "
        f"{'many points (n, n_features)' if vectorize else 'one point (n_features,)'}; got {what}: {other}."
    )
