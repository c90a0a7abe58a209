"""The user's energy: probed once, evaluated in batches, counted, with one policy for non-finite values."""

__all__ = ["Energy", "InvalidEnergyError", "Standardization", "StandardizedTarget"]

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ._warnings import note, warn_user
from .bounds import Bounds
from .devices import randn, to_numpy

PROBE_SIZES = (7, 2, 1)
CHUNK_ROWS = 1024  # rows of one call of the user's function: intermediate arrays stay in the cache
FARTHEST = 40.0  # of a tamed coordinate: 1e17 widths; points beyond count as outside the support
FAST_TOLERANCE = 1e-2  # largest error of float32 energies at the probe points for which training uses float32


class InvalidEnergyError(ValueError):
    """The energy function returned values that cannot be those of a density."""


def _describe(energy_fn) -> str:
    return getattr(energy_fn, "__name__", type(energy_fn).__name__)


class Energy:
    """A batch-wise energy ``E(x) = -log rho(x)`` with its gradient, dtype, counts and non-finite policy.

    The callable is probed at construction with batches of 7, 2 and 1 standard normal points. A callable that maps a
    torch tensor to a torch tensor is used as such, and differentiated by autograd when its result has a graph; any
    other callable is given NumPy arrays, with `grad_fn` for the gradient. The highest precision that the callable
    accepts (float64, else float32) is `dtype`, for numbers that are reported; training may use `fast_dtype`, float32
    where it gives the same energies. A callable that does not take tensors of the generator's device is given tensors
    on the CPU, or NumPy arrays, at the price of copies.

    ``+inf`` means outside the support. NaN and ``-inf`` rows are dropped (treated as outside the support), counted in
    `n_invalid` and warned of once; more than half of a batch of them is an error.

    Parameters
    ----------
    energy_fn : callable
        Maps ``(n, n_features)`` points to ``(n,)`` energies.
    n_features : int
        Dimension of a point.
    grad_fn : callable, optional
        Maps ``(n, n_features)`` to the gradient of the energy, ``(n, n_features)``.
    generator : torch.Generator, optional
        Source of the probe points. What the methods take and return is on its device.
    bounds : Bounds, optional
        The box that the density lives in. The methods then take unconstrained coordinates, and speak of the density of
        these, the Jacobian of the bijection included; the callables are given points in the box.

    Attributes
    ----------
    device, call_device : torch.device
        Where points and results are, and where the callables are given theirs.
    has_gradient : bool
        Whether `log_prob_and_score` is available.
    n_energy_evals, n_grad_evals : int
        Rows evaluated so far, the probe included.
    n_invalid : int
        Rows that were NaN or ``-inf`` so far.

    Raises
    ------
    TypeError
        When `energy_fn` is not callable.
    InvalidEnergyError
        When its result has the wrong type or shape, is not finite, or depends on the other rows of the batch.
    """

    def __init__(
        self, energy_fn: Callable, n_features: int, grad_fn: Callable | None = None, generator=None,
        bounds: Bounds | None = None,
    ):  # fmt: skip
        if not callable(energy_fn):
            raise TypeError(
                "energy_fn has to be a function that maps an array of points (n, n_features) to energies (n,); "
                f"got {type(energy_fn).__name__}."
            )
        if grad_fn is not None and not callable(grad_fn):
            raise TypeError(f"grad_fn has to be a function or None; got {type(grad_fn).__name__}.")
        generator = torch.default_generator if generator is None else generator
        self.energy_fn, self.grad_fn, self.n_features, self.device = energy_fn, grad_fn, n_features, generator.device
        self.bounds = bounds and bounds.to(self.device)
        self.n_energy_evals = self.n_grad_evals = self.n_invalid = 0
        self._probe(randn(generator, max(PROBE_SIZES), n_features, dtype=torch.float64))

    def log_prob(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """``-E(x)`` for (n, d) points, as (n,) float64; ``-inf`` where the density is zero or the value invalid."""
        with torch.no_grad():
            x, log_det, _ = self._locate(x.detach())
            values = [self._call(chunk) for chunk in self._rows(x, dtype).split(CHUNK_ROWS)]
            return self._screen(torch.cat(values).to(x.device), x) + log_det

    def log_prob_and_score(self, x: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """``-E(x)``, (n,) float64, and its gradient, (n, d) float64; the gradient is zero where it is not finite."""
        x, log_det, pull_back = self._locate(x.detach())
        pairs = [self._value_and_gradient(chunk) for chunk in self._rows(x, dtype).split(CHUNK_ROWS)]
        self.n_grad_evals += len(x)
        energy, gradient = (torch.cat(parts).to(x.device) for parts in zip(*pairs, strict=True))
        score = pull_back(-gradient.to(torch.float64).nan_to_num(0.0, 0.0, 0.0))
        return self._screen(energy, x) + log_det, score.nan_to_num(0.0, 0.0, 0.0)

    def _locate(self, x: Tensor):
        """Points in the user's coordinates, the log determinant of the Jacobian there, and what it does to scores."""
        if self.bounds is None:
            return x, 0.0, lambda score: score
        return self.bounds.call_and_pull_back(x)

    def _rows(self, x: Tensor, dtype: torch.dtype | None) -> Tensor:
        """Points in the user's coordinates as the callables take them, inside the bounds still."""
        rows = x.to(dtype or self.dtype)
        rows = rows if self.bounds is None else self.bounds.inside(rows)
        return rows.to(self.call_device)

    def _value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.grad_fn is not None:
            return self._call(x).detach(), self._user_gradient(self.grad_fn, x).detach()
        with torch.enable_grad():
            x = x.clone().requires_grad_()
            value = self._call(x)
            (gradient,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), gradient

    def _call(self, x: Tensor) -> Tensor:
        """Energies of a batch in the dtype of the callable; shapes and types checked, values not."""
        self.n_energy_evals += len(x)
        try:
            if self.framework == "numpy":
                value = self.energy_fn(x.detach().numpy().copy())
            else:
                value = self.energy_fn(x.clone())  # which may write into its argument
        except Exception as error:
            note(error, f"energy_fn was given {self.framework} points of shape {tuple(x.shape)} and dtype {x.dtype}.")
            raise
        return _checked_shape(value, (len(x),), "energy_fn", tuple(x.shape))

    def _user_gradient(self, grad_fn: Callable, x: Tensor) -> Tensor:
        value = grad_fn(x.numpy().copy() if self.framework == "numpy" else x.clone())
        return _checked_shape(value, tuple(x.shape), "grad_fn", tuple(x.shape))

    def _screen(self, energy: Tensor, x: Tensor) -> Tensor:
        log_prob = -energy.to(torch.float64)
        lost = x.isnan().any(1)  # states of a chain that diverged, of which the energy says nothing
        log_prob = log_prob.masked_fill(lost, -torch.inf)
        invalid = log_prob.isnan() | (log_prob == torch.inf)
        count = int(invalid.sum())
        if count:
            example = np.array2string(to_numpy(x[invalid][0]), precision=4, threshold=8)
            if 2 * count > len(x) - int(lost.sum()):
                raise InvalidEnergyError(
                    f"energy_fn returned NaN or -inf for {count} of {len(x)} points, for example at x = {example}; "
                    "it has to be finite, or +inf outside the support of the density."
                )
            if not self.n_invalid:
                warn_user(
                    f"energy_fn returned NaN or -inf for {count} of {len(x)} points, for example at x = {example}; "
                    "such points are treated as outside the support. Return +inf there to say so.",
                    RuntimeWarning,
                )
            self.n_invalid += count
            log_prob = log_prob.masked_fill(invalid, -torch.inf)
        return log_prob

    def _probe(self, points: Tensor) -> None:
        """Find the framework, the precision and the gradient; check shapes, finiteness and row independence."""
        unconstrained, (points, *_) = points, self._locate(points)
        values = self._find_framework(points)
        if not (values.isfinite() | (values == torch.inf)).any():
            raise InvalidEnergyError(
                f"energy_fn returned {values[0].item()} at every one of {len(points)} standard normal points; "
                "it has to be finite, or +inf outside the support of the density."
            )
        for size in PROBE_SIZES[1:]:
            alone = self._call(points[:size].to(self.call_device, self.dtype)).detach().to(points.device)
            tolerance = 1e-6 if self.dtype == torch.float64 else 1e-3
            if not torch.allclose(alone.double(), values[:size], rtol=tolerance, atol=tolerance, equal_nan=True):
                raise InvalidEnergyError(
                    f"energy_fn gave {alone.tolist()} for {size} points, and {values[:size].tolist()} for the same "
                    f"points in a batch of {len(points)}: each row's energy has to depend on that row alone, and not "
                    "be random."
                )
        if self.has_gradient:
            self.log_prob_and_score(unconstrained)
        self.fast_dtype = self._find_fast_dtype(points, values)

    def _find_fast_dtype(self, points: Tensor, values: Tensor) -> torch.dtype:
        """float32 when the callable takes it and gives the float64 energies to `FAST_TOLERANCE`.

        Not with bounds: close to them single precision does not tell points apart.
        """
        if self.bounds is not None:
            return self.dtype
        finite = values.isfinite()
        try:
            fast = self._call(points.to(self.call_device, torch.float32)).detach().to(points.device, torch.float64)
        except Exception:
            return self.dtype
        agrees = torch.allclose(fast[finite], values[finite], rtol=0, atol=FAST_TOLERANCE)
        return torch.float32 if agrees and torch.equal(fast.isfinite(), finite) else self.dtype

    def _find_framework(self, points: Tensor) -> Tensor:
        """Try torch then NumPy (the other way round with a `grad_fn`), float64 then float32; keep what works.

        Torch is tried on the device of the points first, and then on the CPU.
        """
        self.has_gradient = self.grad_fn is not None
        errors: list[Exception] = []
        cpu = torch.device("cpu")
        places = [("torch", device) for device in dict.fromkeys((self.device, cpu))]
        places = [*places, ("numpy", cpu)] if self.grad_fn is None else [("numpy", cpu), *places]
        for framework, device in places:
            for dtype in (torch.float64, torch.float32):
                self.framework, self.call_device, self.dtype = framework, device, dtype
                x = points.to(device, dtype, copy=True)
                try:
                    if framework == "numpy":
                        raw = self.energy_fn(x.numpy())
                    else:
                        with torch.enable_grad():
                            raw = self.energy_fn(x.requires_grad_(self.grad_fn is None).clone())
                    if isinstance(raw, Tensor) != (framework == "torch"):
                        raise TypeError(f"energy_fn returned {type(raw).__name__} for a {framework} input")
                    values = _checked_shape(raw, (len(x),), "energy_fn", tuple(x.shape))
                except Exception as error:
                    errors.append(error)
                    continue
                self.n_energy_evals += len(x)
                self.has_gradient |= values.requires_grad
                return values.detach().to(points.device, torch.float64)
        shape_errors = [error for error in errors if isinstance(error, InvalidEnergyError)]
        first = (shape_errors or errors)[0]
        note(
            first,
            f"skcds probed energy_fn ({_describe(self.energy_fn)}) with torch tensors and NumPy arrays of shape "
            f"{tuple(points.shape)}.",
        )
        others = [error for error in reversed(errors) if type(error) is not type(first)]
        if others:
            raise first from others[0]  # the user's own error may be in the other framework
        raise first


def _checked_shape(value, shape: tuple, name: str, shape_in: tuple) -> Tensor:
    expected = f"{name} has to return real numbers of shape {shape} for an input of shape {shape_in}"
    if not isinstance(value, Tensor):
        try:
            array = np.asarray(value)
        except Exception as error:
            raise InvalidEnergyError(f"{expected}; got {type(value).__name__}.") from error
        if array.dtype.kind not in "fiu":
            raise InvalidEnergyError(f"{expected}; got {type(value).__name__} of dtype {array.dtype}.")
        # a copy: the user's memory may be read-only, reversed, or a buffer that is used again
        value = torch.from_numpy(
            np.array(array, dtype=np.float32 if array.dtype == np.float32 else np.float64, order="C")
        )
    if tuple(value.shape) != shape:
        hint = " Sum over the features only, not over the batch." if value.ndim == 0 else ""
        hint = " Drop the last axis, for example with [:, 0]." if tuple(value.shape) == (*shape, 1) else hint
        raise InvalidEnergyError(f"{expected}; got shape {tuple(value.shape)}.{hint}")
    if not value.is_floating_point():
        raise InvalidEnergyError(f"{expected}; got dtype {value.dtype}.")
    return value


class Standardization(torch.nn.Module):
    """Invertible map from standardised to the user's coordinates, affine where the tails are light.

    First ``y = loc + L z``, then ``x_j = y_j``, or ``x_j = center_j + width_j sinh(y_j)`` where the tails are heavy.
    The hyperbolic sine is linear within `width_j` of the center and exponential far from it: scales that differ by
    factors become scales that differ by terms (Johnson 1949).

    Parameters
    ----------
    n_features : int
        Dimension.
    full : bool, default=True
        Lower-triangular `L`; a diagonal one otherwise.

    Attributes
    ----------
    loc, scale : Tensor
        (d,) and (d, d) or (d,), the affine part.
    center, width : Tensor
        (d,), of the hyperbolic sine; a width of infinity stands for a coordinate without.
    """

    loc: Tensor
    scale: Tensor
    center: Tensor
    width: Tensor

    def __init__(self, n_features: int, full: bool = True):
        super().__init__()
        self.full = full
        one = torch.ones(n_features, dtype=torch.float64)
        self.register_buffer("loc", torch.zeros_like(one))
        self.register_buffer("scale", torch.diag(one) if full else one)
        self.register_buffer("center", torch.zeros_like(one))
        self.register_buffer("width", torch.full_like(one, torch.inf))

    @classmethod
    def from_moments(cls, loc: Tensor, covariance: Tensor, tails: tuple[Tensor, Tensor] | None = None):
        """Standardise to zero mean and unit covariance, given as a (d, d) matrix or its (d,) diagonal.

        They are the moments of y where `tails` gives the center and width of the hyperbolic sine.
        """
        standardization = cls(len(loc), full=covariance.ndim == 2).to(loc.device)
        standardization.loc, covariance = loc.double().clone(), covariance.double()
        scale = torch.linalg.cholesky(covariance) if standardization.full else covariance.sqrt()
        standardization.scale = scale.contiguous()  # as it comes back from a file: the layout decides how it is rounded
        if tails is not None:
            standardization.center, standardization.width = (t.double().clone() for t in tails)
        return standardization

    @property
    def covariance(self) -> Tensor:
        """``L L^T``, (d, d), or its diagonal (d,)."""
        return self.scale @ self.scale.T if self.full else self.scale**2

    def forward(self, z: Tensor) -> Tensor:
        """(n, d) standardised points to the user's coordinates, float64."""
        return self.call_and_pull_back(z)[0] if self._heavy.any() else self._affine(z)

    def inverse(self, x: Tensor) -> Tensor:
        """(n, d) points in the user's coordinates to standardised ones, float64."""
        centred = self.tame(x) - self.loc
        if self.full:
            return torch.linalg.solve_triangular(self.scale, centred.T, upper=False).T
        return centred / self.scale

    def tame(self, x: Tensor) -> Tensor:
        """(n, d) points in the user's coordinates to y, float64."""
        y, heavy = x.double(), self._heavy
        if heavy.any():
            y = y.clone()
            y[:, heavy] = ((y[:, heavy] - self.center[heavy]) / self.width[heavy]).asinh()
        return y

    def pull_back(self, z: Tensor, score: Tensor) -> Tensor:
        """Gradient with respect to z of a function of x plus `log_det`, from the function's gradient (n, d) in x."""
        return self.call_and_pull_back(z)[2](score)

    def log_det(self, z: Tensor) -> Tensor:
        """Log determinant (n,) of the Jacobian at standardised points (n, d), float64; ``-inf`` out of reach."""
        return self.call_and_pull_back(z)[1]

    def call_and_pull_back(self, z: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """What `forward` and `log_det` give at z, and `pull_back` there."""
        x, heavy = self._affine(z), self._heavy
        log_det = (self.scale.diagonal() if self.full else self.scale).log().sum().expand(len(z))

        def pull_back_affine(score):
            return score @ self.scale if self.full else score * self.scale

        if not heavy.any():
            return x, log_det, pull_back_affine
        columns = slice(None) if heavy.all() else heavy
        y, width = x[:, columns], self.width[columns]
        sinh = y.clamp(-FARTHEST, FARTHEST).sinh()
        cosh = (1 + sinh * sinh).sqrt()
        log_det = log_det + (width.log() + cosh.log().masked_fill(y.abs() > FARTHEST, -torch.inf)).sum(1)
        x = x.clone()
        x[:, columns] = self.center[columns] + width * sinh

        def pull_back(score):
            score = score.clone()
            score[:, columns] = score[:, columns] * (width * cosh) + sinh / cosh
            return pull_back_affine(score)

        return x, log_det, pull_back

    @property
    def _heavy(self) -> Tensor:
        return self.width.isfinite()

    def _affine(self, z: Tensor) -> Tensor:
        z = z.double()
        return self.loc + (z @ self.scale.T if self.full else z * self.scale)


class StandardizedTarget:
    """The energy seen in standardised coordinates: log density (float64) and score (in the dtype of the points).

    Parameters
    ----------
    energy : Energy
        The energy in the user's coordinates.
    standardization : Standardization
        From standardised to the user's coordinates.
    dtype : torch.dtype, optional
        Precision of the energy evaluations; by default the best that the user's function takes.
    score_dtype : torch.dtype, optional
        That of `log_prob_and_score`, where it is another: scores guide a sampler, densities are reported.
    """

    def __init__(self, energy: Energy, standardization: Standardization, dtype=None, score_dtype=None):
        self.energy, self.standardization, self.dtype = energy, standardization, dtype or energy.dtype
        self.score_dtype = score_dtype or self.dtype
        self.n_features, self.has_gradient = energy.n_features, energy.has_gradient

    @classmethod
    def reported(cls, energy: Energy, standardization: Standardization) -> "StandardizedTarget":
        """For reported figures: densities in the best precision, the scores that guide draws in the fast one."""
        return cls(energy, standardization, score_dtype=energy.fast_dtype)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density with respect to z, (n,) float64, the Jacobian of the standardisation included."""
        x, log_det, _ = self.standardization.call_and_pull_back(z)
        return self.energy.log_prob(x, self.dtype) + log_det

    def log_prob_and_score(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """`log_prob` and its gradient with respect to z, (n, d); zeros when the energy has no gradient."""
        if not self.has_gradient:
            return self.log_prob(z), torch.zeros_like(z)
        x, log_det, pull_back = self.standardization.call_and_pull_back(z)
        log_prob, score = self.energy.log_prob_and_score(x, self.score_dtype)
        return log_prob + log_det, pull_back(score).to(z.dtype)
