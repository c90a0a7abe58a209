"""Energies of a prior and a likelihood, as the nested samplers and their neighbours take them."""

__all__ = ["PriorEnergy", "from_prior"]

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from .._support.settings import CPU, own_modes
from ..density.bounds import Bounds
from ..density.energy import InvalidEnergyError
from ._blobs import Blobs, blobs_of, check_blob_names
from ._common import ConstrainedEnergy, names_of
from ._distributions import MARK, DensityPrior, IndependentPrior, Prior, TransformPrior, applied, is_distribution
from ._numpy import NumPyEnergy
from ._workers import Workers

PROBED = 2  # points that a function is first tried with


def from_prior(
    prior: Any,
    log_likelihood: Callable,
    n_features: int | None = None,
    *,
    bounds: Any = None,
    feature_names: Iterable[str] | None = None,
    vectorize: bool = True,
    pass_dict: bool = False,
    coordinates: Literal["parameters", "cube"] | None = None,
    n_jobs: int | None = None,
    pool: Any = None,
    blobs: Iterable[str] | None = None,
) -> "PriorEnergy":
    """Energy of prior times likelihood, as nested samplers and ensemble samplers take the two.

    Log Z is the evidence, if the prior is normalised: transforms and distributions are.

    Parameters
    ----------
    prior : dict, sequence, or callable
        One of

        - frozen distributions of SciPy, as `scipy.stats.norm(0, 5)`, by name (a dict) or in order, all independent; a
          pair (low, high) is short for the uniform one;
        - a prior transform, as of dynesty, nautilus and UltraNest: a function that maps the unit cube to parameters;
        - the log density of the prior, a function of the parameters, to which `bounds` may belong.

        The two kinds of function are told apart by `bounds`, or by the shape of what they return in the middle of the
        unit cube.
    log_likelihood : callable
        Maps parameters (n, n_features) to log likelihoods (n,). On torch tensors it is differentiated by autograd, if
        the prior is of distributions or in PyTorch, too. It is called where the prior is positive.
    n_features : int, optional
        Number of parameters; needed for a function as the prior that comes without `feature_names`.
    bounds : pair or array-like of shape (n_features, 2), optional
        Of the parameters, for the log density of a prior. Those of distributions are their supports.
    feature_names : iterable of str, optional
        Names of the parameters; by default the keys of the dictionary, or ``x[0]``, ``x[1]``, ...
    vectorize : bool, default=True
        Whether the functions take many points. With False `log_likelihood` maps one point (n_features,) to a number,
        and so does a log density; a prior transform maps one point to one. They are tried with NumPy arrays first.
    pass_dict : bool, default=False
        Whether `log_likelihood` takes a dictionary of parameters by name in place of an array.
    coordinates : {"parameters", "cube"}, default=None
        What a sampler's draws are: the parameters, the default unless the prior is a transform; or coordinates of the
        unit cube, where the prior is uniform. A sampler works in normal scores of the cube, where the prior is standard
        normal.
    n_jobs, pool : optional
        Workers that the points are shared among, for a `log_likelihood` on NumPy arrays; as of `from_numpy`.
    blobs : iterable of str, optional
        Names of further results, as in emcee and nautilus. `log_likelihood` then returns a tuple: its value, and a
        number or k numbers for each name; with `vectorize`, arrays (n,) or (n, k). Weighted draws have them as columns
        beside the features.

    Returns
    -------
    AdaptedEnergy
        Takes tensors and arrays of coordinates. Samplers take their bounds, names and start from it, unless they have
        some of their own. ``constrain`` maps draws to a dictionary of parameters; of draws in the cube, data frames
        and weighted draws have the parameters as columns beside them.

    Raises
    ------
    TypeError
        When `prior` is none of these, or `log_likelihood` is not a function.
    ValueError
        When the number of parameters is not known or not the same everywhere, or `blobs` are no names.
    InvalidEnergyError
        When a function as the prior returns neither parameters nor log densities.

    Notes
    -----
    A likelihood is tried with a tensor first, then with arrays, and stays what it turned out to be. Of a SciPy
    distribution, the slope of a quantile is one over its density, and the log density is differentiated by central
    differences.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import stats
    >>> from skcds.adapters import from_prior
    >>> prior = {"mu": stats.norm(0, 5), "tau": stats.halfcauchy(0, 5)}
    >>> def log_likelihood(p):  # of one observation
    ...     return stats.norm.logpdf(1.0, p["mu"], p["tau"])
    >>> energy = from_prior(prior, log_likelihood, pass_dict=True)
    >>> energy.feature_names
    ['mu', 'tau']
    >>> energy(np.array([[1.0, 2.0], [1.0, -2.0]])).round(3)
    array([6.37,  inf])
    >>> cube = from_prior(
    ...     lambda u: stats.norm.ppf(u), lambda x: -0.5 * x[:, 0] ** 2, 1
    ... )
    >>> cube.constrain(np.array([[0.5], [0.9]]))["x[0]"].round(3)
    array([0.   , 1.282])
    """
    if not callable(log_likelihood):
        raise TypeError(f"log_likelihood has to be a function; got {type(log_likelihood).__name__}.")
    if coordinates not in (None, "parameters", "cube"):
        raise ValueError(f"coordinates has to be 'parameters', 'cube' or None; got {coordinates!r}.")
    if isinstance(prior, Mapping) and feature_names is None:
        feature_names = list(prior)
    names = None if feature_names is None else [str(name) for name in feature_names]
    if callable(prior) and not is_distribution(prior):
        found = _of_function(prior, n_features, names, bounds, vectorize, coordinates)
    else:
        found = _of_distributions(prior, n_features, bounds, coordinates)
    for given, what in ((n_features, "n_features"), (names and len(names), "feature_names")):
        if given is not None and given != found.n_features:
            raise ValueError(f"The prior is of {found.n_features} parameters, and {what} of {given}.")
    return PriorEnergy(found, log_likelihood, names, vectorize, pass_dict, Workers(n_jobs, pool), blobs)


class PriorEnergy(ConstrainedEnergy):
    """Energy of prior times likelihood; made by `from_prior`."""

    _origin = "prior and the likelihood"

    def __init__(
        self, prior: Prior, log_likelihood, names, vectorize: bool, pass_dict: bool, workers: Workers, blobs=None
    ):
        d = prior.n_features
        self.parameter_names = names_of({"x": (d,)}) if names is None else names
        mark = MARK if prior.in_cube else ""
        name = getattr(log_likelihood, "__name__", type(log_likelihood).__name__)
        super().__init__(d, [name + mark for name in self.parameter_names], name)
        self.prior, self.bounds, self.start = prior, prior.bounds, prior.start
        self.constrained_names = self.parameter_names
        self.vectorize, self.workers = vectorize, workers
        function = ByName(log_likelihood, self.parameter_names) if pass_dict else log_likelihood
        self.log_likelihood = function if blobs is None else Blobs(function, blobs, vectorize)
        self._in_arrays = _Likelihood(self.log_likelihood, d, None, vectorize, None, workers)
        self.blob_names = check_blob_names(self.log_likelihood, self.parameter_names)
        self._framework: str | None = None  # "torch" or "numpy", as soon as a point was evaluated

    @property
    def to_parameters(self) -> Callable | None:
        """`parameters` where the coordinates are others, else None."""
        return self.parameters if self.prior.in_cube else None

    @property
    def fewest_rows(self) -> int:
        """Points that a call should have at least, so that all workers have one."""
        return self.workers.number

    def parameters(self, X) -> np.ndarray:
        """Parameters (n, n_features) at coordinates (n, n_features)."""
        X = np.array(X, dtype=np.float64, order="C")
        try:
            return np.asarray(self.prior.parameters(X), dtype=np.float64)
        except Exception:  # a function of tensors
            return self.prior.parameters(torch.from_numpy(X)).detach().to(CPU, torch.float64).numpy()

    def log_prior(self, X) -> np.ndarray:
        """Log densities (n,) of the prior at coordinates (n, n_features)."""
        X = np.array(X, dtype=np.float64, order="C")
        try:
            return np.asarray(self.prior.log_density(X), dtype=np.float64)
        except Exception:  # a function of tensors
            return self.prior.log_density(torch.from_numpy(X)).detach().to(CPU, torch.float64).numpy()

    def blobs(self, X) -> dict[str, np.ndarray]:
        """Columns (n,) by name at coordinates (n, n_features): what `log_likelihood` returns beside its value.

        Empty without `blobs`. The prior has to be positive there.
        """
        in_tensors = self._framework == "torch" and self.vectorize
        return blobs_of(self.parameters(X), self.log_likelihood, self.workers, in_tensors)

    def _constrain(self, X: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(self.parameter_names, self.parameters(X).T, strict=True))

    def __call__(self, x):
        """Energies ``-log rho(x)``, (n,) float64, of coordinates (n, n_features): a tensor for a tensor."""
        if not isinstance(x, Tensor):
            return self(torch.from_numpy(np.array(x, dtype=np.float64, order="C"))).detach().numpy()
        if x.ndim != 2 or x.shape[1] != self.n_features:
            raise ValueError(f"{self} takes points of shape (n, {self.n_features}); got {tuple(x.shape)}.")
        if self._framework is None:
            self._framework = self._found(x)
        return self._evaluated(x, self._framework or "torch")

    def _evaluated(self, x: Tensor, framework: str) -> Tensor:
        if framework == "torch":
            return -self._log_prob(x)
        found = self._log_prob(x.detach().to(CPU, torch.float64).numpy())
        return torch.from_numpy(-found).to(x.device)

    def _log_prob(self, X):
        """Log densities (n,), float64, of coordinates as an array or a tensor."""
        log_prior = self.prior.log_density(X)
        inside = log_prior > -np.inf
        if inside.all():
            return log_prior + self._log_likelihood(self.prior.parameters(X))
        found = log_prior.clone() if isinstance(X, Tensor) else log_prior.copy()
        if inside.any():
            found[inside] = log_prior[inside] + self._log_likelihood(self.prior.parameters(X[inside]))
        return found

    def _log_likelihood(self, parameters):
        if isinstance(parameters, Tensor):
            return applied(self.log_likelihood, parameters, self.vectorize, "log_likelihood", ()).double()
        return -self._in_arrays(parameters)

    def _found(self, x: Tensor) -> str | None:
        """What the functions take, found at two points where the prior is positive; None where there is none."""
        errors: list[Exception] = []
        for framework in ("torch", "numpy") if self.vectorize else ("numpy", "torch"):
            try:
                with own_modes():
                    rows = self._inside(x.detach().clone(), framework)
                    if not len(rows):
                        return None
                    value = self._evaluated(rows.requires_grad_(), framework)
            except Exception as error:
                errors.append(error)
                continue
            self.has_gradient = value.requires_grad
            return framework
        of_shapes = [error for error in errors if isinstance(error, InvalidEnergyError)]
        first, other = (of_shapes or errors)[0], errors[-1]
        if type(other) is not type(first):
            first.__cause__ = other
        raise first

    def _inside(self, x: Tensor, framework: str) -> Tensor:
        """Two rows where the prior is positive, which may be one, or none."""
        if framework == "torch":
            inside = self.prior.log_density(x) > -np.inf
        else:
            inside = torch.from_numpy(self.prior.log_density(x.to(CPU, torch.float64).numpy()) > -np.inf).to(x.device)
        rows = x[inside][:PROBED]
        return rows if len(rows) == PROBED else rows.repeat(PROBED, 1)


class _Likelihood(NumPyEnergy):
    _called = ("log_likelihood", "vectorize")


@dataclass(frozen=True)
class ByName:
    """A function of a dictionary of parameters as one of points (..., d)."""

    function: Callable
    names: list[str]

    def __call__(self, x):
        return self.function({name: x[..., j] for j, name in enumerate(self.names)})


def _of_distributions(prior, n_features, bounds, coordinates) -> Prior:
    if bounds is not None:
        raise ValueError("bounds belong to the log density of a prior; those of distributions are their supports.")
    if is_distribution(prior):
        prior = [prior] * (n_features or 1)
    if isinstance(prior, Mapping):
        prior = list(prior.values())
    if isinstance(prior, str) or not isinstance(prior, Iterable):
        raise TypeError(
            "prior has to be distributions of SciPy in a dictionary or a list, or a function: a prior transform or a "
            f"log density; got {type(prior).__name__}."
        )
    found = [_distribution(one, j) for j, one in enumerate(prior)]
    if not found:
        raise ValueError("prior holds no distribution: name one for each parameter.")
    return IndependentPrior(found, coordinates == "cube")


def _distribution(one, j: int):
    if is_distribution(one):
        shape = np.shape(one.ppf(0.5))
        if shape:
            raise ValueError(f"prior[{j}] is of {shape} parameters: pass a distribution for each of them.")
        return one
    if isinstance(one, tuple | list) and len(one) == 2:
        low, high = float(one[0]), float(one[1])
        if not (np.isfinite([low, high]).all() and low < high):
            raise ValueError(f"prior[{j}] as a pair has to be finite (low, high), low below high; got {one!r}.")
        return stats.uniform(low, high - low)
    raise TypeError(
        f"prior[{j}] has to be a frozen distribution, as scipy.stats.norm(0, 1), or a pair (low, high); got "
        f"{type(one).__name__}."
    )


def _of_function(function, n_features, names, bounds, vectorize, coordinates) -> Prior:
    d = n_features if n_features is not None else names and len(names)
    pairs = [] if bounds is None else list(bounds)
    if d is None and any(np.shape(pair) for pair in pairs if pair is not None):
        d = len(pairs)
    if d is None or d < 1:
        raise ValueError("The number of parameters is not known: pass n_features= or feature_names=.")
    if bounds is None and _is_transform(function, d, vectorize):
        if coordinates == "parameters":
            raise ValueError(
                "Of a prior transform only coordinates of the unit cube have a known density: leave coordinates= out "
                "and take the parameters from constrain, or pass distributions."
            )
        return TransformPrior(function, d, vectorize)
    if coordinates == "cube":
        raise ValueError("coordinates='cube' needs quantiles: pass distributions or a prior transform.")
    box = Bounds.from_parameter(bounds, d)
    return DensityPrior(function, d, vectorize, None if box is None else box.to_array().tolist())


def _is_transform(function: Callable, d: int, vectorize: bool) -> bool:
    """Whether a function maps the middle of the unit cube to parameters, and not to log densities.

    Raises
    ------
    InvalidEnergyError
        When it does neither.
    """
    X: Any = np.full((PROBED + 1, d) if vectorize else (d,), 0.5)
    try:
        found = function(X)
    except Exception:
        found = function(torch.from_numpy(X))
    shape = tuple(np.shape(found.detach().to(CPU) if isinstance(found, Tensor) else found))
    if shape == X.shape:
        return True
    if shape == X.shape[:-1]:
        return False
    many = "(n, n_features), with vectorize=True," if vectorize else "(n_features,), with vectorize=False,"
    raise InvalidEnergyError(
        f"prior as a function has to map points {many} to as many parameters or to log densities: for shape {X.shape} "
        f"to shape {X.shape} or {X.shape[:-1]}; got shape {shape}."
    )
