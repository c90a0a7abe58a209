"""The user's energy: probed once, evaluated in batches, counted, with one policy for non-finite values."""

__all__ = ["Energy", "InvalidEnergyError"]

import contextlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._support.devices import randn, to_numpy
from .._support.errors import InvalidEnergyError, Spent
from .._support.warnings import note, warn_user
from .bounds import Bounds
from .function import Density
from .support import candidates

PROBE_SIZES = (7, 2, 1)
CHUNK_ROWS = 1024  # rows of one call of the user's function: intermediate arrays stay in the cache
FAST_TOLERANCE = 1e-2  # largest error of float32 energies for which training uses float32
CALL_SECONDS = 0.25  # that a call may take under a limit of time; its rows are halved or doubled accordingly
FORGET = 0.7  # weight of the earlier calls in the measured rate of evaluations


ONE_POINT = (
    "A function of one point, or of a dictionary of parameters, becomes one of batches by "
    "skcds.adapters.from_numpy; models of NumPyro, PyMC and Stan by their adapters."
)


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

    ``+inf`` means outside the support. So do NaN, ``-inf`` and an exception, whatever kind the callable is of and
    however many rows of a batch are concerned: such rows are counted in `n_invalid` and warned of once. An exception at
    points where there was none before is the callable's own, and passed on. Floating point errors that NumPy would warn
    of are silenced and counted.

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
    monitor : Budget, optional
        Asked before every call whether it is allowed; see `Budget.admit`.
    start : Tensor, optional
        Unconstrained points (m, n_features) at which the density may be positive where it is not at standard normal
        ones.

    Attributes
    ----------
    device, call_device : torch.device
        Where points and results are, and where the callables are given theirs.
    has_gradient : bool
        Whether `log_prob_and_score` is available.
    n_energy_evals, n_grad_evals : int
        Rows evaluated so far, the probe included.
    n_invalid : int
        Rows that were NaN, ``-inf`` or an exception so far.
    n_raised : int
        Those of them that were an exception. A batch with such rows takes a call or more for each.
    n_float_errors : int
        Floating point errors that were silenced so far: overflows, divisions by zero, invalid operations.
    evals_per_second : float
        Measured rate of evaluations; infinite as long as it is not known.
    latest : Tensor
        What the last call of `log_prob` found in the user's coordinates, (n,) float64, without the Jacobian.
    valid : Tensor
        Unconstrained points (k, n_features) of the probe at which the density is positive; k may be 0.

    Raises
    ------
    TypeError
        When `energy_fn` is not callable.
    InvalidEnergyError
        When its result has the wrong type or shape, is finite at no point, or depends on the other rows of the batch.
    """

    fast_dtype: torch.dtype
    latest: Tensor

    def __init__(
        self, energy_fn: Callable, n_features: int, grad_fn: Callable | None = None, generator=None,
        bounds: Bounds | None = None, monitor: Any = None, start: Tensor | None = None,
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
        self.n_energy_evals = self.n_grad_evals = self.n_invalid = self.n_raised = self.n_float_errors = 0
        self.monitor, self.needs_grad_mode, self.rows = monitor, False, CHUNK_ROWS
        self.cuts: list[tuple[int, float, bool]] = []  # see `cut`
        self._seconds = self._timed = 0.0
        self._largest = 0  # rows of a call so far
        self._fewest_rows = min(CHUNK_ROWS, getattr(energy_fn, "fewest_rows", 1))  # one for each worker that it has
        self._canary: Tensor | None = None  # a row at which the callable has worked
        with contextlib.nullcontext() if monitor is None else monitor.untimed():
            self._probe(self._first_points(generator), generator, start)
        if monitor is not None and monitor.max_time is not None:
            self.rows = int(min(CHUNK_ROWS, max(self._fewest_rows, self.evals_per_second * CALL_SECONDS)))

    def release(self) -> None:
        """Leave the limits of a fit behind."""
        self.monitor, self.rows = None, CHUNK_ROWS

    @classmethod
    def of(cls, density: Density, n_features: int, *args, **options) -> "Energy":
        """The energy of a density; the other arguments are those of the class."""
        return cls(density.energy_fn, n_features, density.grad_fn, *args, **options)

    @property
    def density(self) -> Density:
        """What it was made from."""
        return Density(self.energy_fn, self.grad_fn)

    @property
    def evals_per_second(self) -> float:
        """Measured rate of evaluations in large calls, of recent ones more than of early ones."""
        return self._timed / self._seconds if self._seconds > 0 else float("inf")

    def log_prob(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """``-E(x)`` for (n, d) points, as (n,) float64; ``-inf`` where the density is zero or the value invalid."""
        with torch.no_grad():
            x, log_det, _ = self._locate(x.detach())
            rows = self._rows(x, dtype)
            (values,) = self._in_chunks(self._value, rows)
            self.latest = self._screen(values.to(x.device), x, rows)
            return self.latest + log_det

    def log_prob_and_score(self, x: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """``-E(x)``, (n,) float64, and its gradient, (n, d) float64; the gradient is zero where it is not finite."""
        x, log_det, pull_back = self._locate(x.detach())
        rows = self._rows(x, dtype)
        energy, gradient = (part.to(x.device) for part in self._in_chunks(self._value_and_gradient, rows))
        self.n_grad_evals += len(x)
        score = pull_back(-gradient.to(torch.float64).nan_to_num(0.0, 0.0, 0.0))
        return self._screen(energy, x, rows) + log_det, score.nan_to_num(0.0, 0.0, 0.0)

    def check_fast_dtype(self, x: Tensor) -> bool:
        """Whether single precision agrees with double at unconstrained points (n, d); it is given up where not."""
        if self.fast_dtype == self.dtype:
            return True
        try:
            exact, fast = self.log_prob(x), self.log_prob(x, self.fast_dtype)
        except Spent:  # not looked at, not relied on
            self.fast_dtype = self.dtype
            return True
        inside = exact.isfinite()
        agrees = torch.equal(fast.isfinite(), inside) and _close(fast[inside], exact[inside])
        if not agrees:
            self.fast_dtype = self.dtype
        return agrees

    def _in_chunks(self, function: Callable, rows: Tensor) -> tuple[Tensor, ...]:
        """What a function of points gives, in calls of as many rows as the callables are given at once."""
        parts: list[tuple[Tensor, ...]] = []
        first = 0
        while first < len(rows) or not parts:
            chunk = rows[first : first + self.rows]
            parts.append(self._guarded(function, chunk))
            first += self.rows if len(chunk) == self.rows else len(chunk) or 1
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))

    def _guarded(self, function: Callable, rows: Tensor, works: bool = False) -> tuple[Tensor, ...]:
        """A function of rows; those at which it raises count as outside the support, unless it raises everywhere."""
        try:
            return function(rows)
        except (Spent, InvalidEnergyError):
            raise
        except Exception as error:
            if self._canary is None:
                raise
            if not works:
                function(self._canary.to(rows.dtype))  # raises where the callable does not work any more
            if len(rows) > 1:
                halves = [self._guarded(function, half, True) for half in rows.split(-(-len(rows) // 2))]
                return tuple(torch.cat(part) for part in zip(*halves, strict=True))
            self._count_invalid(1, rows, f"raised {type(error).__name__} ({str(error).partition(chr(10))[0]})")
            self.n_raised += 1
            value = torch.full((len(rows),), torch.inf, dtype=rows.dtype, device=rows.device)
            return (value, torch.zeros_like(rows)) if function == self._value_and_gradient else (value,)

    # ---------------------------------------------------------------- what a family of densities does otherwise

    def _first_points(self, generator) -> Tensor:
        """Unconstrained points that the callable is probed at."""
        return randn(generator, max(PROBE_SIZES), self.n_features, dtype=torch.float64)

    def _candidates(self, generator, n: int):
        """Batches of unconstrained points at which the density may be positive."""
        return candidates(generator, self.n_features, n)

    def _apply(self, function: Callable, rows):
        """What a function of the user's gives for rows in the user's coordinates."""
        return function(rows)

    def _shape(self, rows):
        """The shape of what the user's functions are given for rows, for messages."""
        return tuple(rows.shape)

    def _example(self, row: Tensor) -> str:
        """A row as it is named in messages."""
        return example_of(row)

    def _inside(self, rows: Tensor) -> Tensor:
        """Rows in the user's coordinates, moved inside the bounds where rounding has left them."""
        return rows if self.bounds is None else self.bounds.inside(rows)

    def _locate(self, x: Tensor):
        """Points in the user's coordinates, the log determinant of the Jacobian there, and what it does to scores."""
        if self.bounds is None:
            return x, 0.0, lambda score: score
        return self.bounds.call_and_pull_back(x)

    def _rows(self, x: Tensor, dtype: torch.dtype | None) -> Tensor:
        """Points in the user's coordinates as the callables take them, inside the bounds still."""
        return self._inside(x.to(dtype or self.dtype)).to(self.call_device)

    def _value(self, x: Tensor) -> tuple[Tensor]:
        if self.framework == "torch" and not self.needs_grad_mode:
            return (self._call(x).detach(),)
        with torch.enable_grad():  # a NumPy function may differentiate something in PyTorch, too
            return (self._call(x.clone().requires_grad_(self.needs_grad_mode)).detach(),)

    def _value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.grad_fn is not None:
            (value,) = self._value(x)
            return value, self._user_gradient(self.grad_fn, x).detach()
        with torch.enable_grad():
            x = x.clone().requires_grad_()
            value = self._call(x)
            (gradient,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), gradient

    def _call(self, x: Tensor) -> Tensor:
        """Energies of a batch in the dtype of the callable; shapes and types checked, values not."""
        if self.monitor is not None:
            self.monitor.admit(self.n_energy_evals, len(x))
        self.n_energy_evals += len(x)
        start = time.perf_counter()
        try:
            with self._silenced():
                value = self._apply(
                    self.energy_fn, x.detach().numpy().copy() if self.framework == "numpy" else x.clone()
                )
        except Exception as error:
            note(error, f"energy_fn was given {self.framework} points of shape {self._shape(x)} and dtype {x.dtype}.")
            raise
        self._clock(time.perf_counter() - start, len(x))
        return _checked_shape(value, (len(x),), "energy_fn", self._shape(x))

    def _clock(self, seconds: float, rows: int) -> None:
        """Keep the rate of evaluations and, under a limit of time, the rows of a call."""
        if 2 * rows >= self._largest:  # small calls are mostly overhead
            self._largest = max(self._largest, rows)
            self._seconds, self._timed = FORGET * self._seconds + seconds, FORGET * self._timed + rows
        if self.monitor is None or self.monitor.max_time is None or rows < self.rows:
            return
        if seconds > 2 * CALL_SECONDS:
            self.rows = max(self._fewest_rows, self.rows // 2)
        elif seconds < CALL_SECONDS / 2:
            self.rows = min(CHUNK_ROWS, 2 * self.rows)

    def _silenced(self):
        """NumPy's floating point errors inside the block are counted and not warned of."""

        def count(kind, flag):
            self.n_float_errors += 1

        return np.errstate(divide="call", over="call", invalid="call", under="ignore", call=count)

    def _user_gradient(self, grad_fn: Callable, x: Tensor) -> Tensor:
        with self._silenced(), torch.enable_grad():
            value = self._apply(grad_fn, x.numpy().copy() if self.framework == "numpy" else x.clone())
        return _checked_shape(value, (len(x), self.n_features), "grad_fn", self._shape(x))

    def cut(self, j: int, threshold: float, above: bool) -> None:
        """From now on count points with coordinate j above (or below) a threshold as outside the support.

        Where a function's rounding errors are larger than what it computes, in the user's coordinates.
        """
        self.cuts = [*self.cuts, (j, threshold, above)]

    def _screen(self, energy: Tensor, x: Tensor, rows: Tensor) -> Tensor:
        for j, threshold, above in self.cuts:
            beyond = rows[:, j] > threshold if above else rows[:, j] < threshold
            energy = energy.masked_fill(beyond.to(energy.device), torch.inf)
        log_prob = -energy.to(torch.float64)
        lost = x.isnan().any(1)  # states of a chain that diverged, of which the energy says nothing
        log_prob = log_prob.masked_fill(lost, -torch.inf)
        invalid = log_prob.isnan() | (log_prob == torch.inf)
        count = int(invalid.sum())
        if count:
            infinite = bool((log_prob == torch.inf).any())
            what = f"returned {'-inf' if infinite else 'NaN'} for {count} of {len(x)} points"
            self._count_invalid(count, x[invalid], what, infinite)
            log_prob = log_prob.masked_fill(invalid, -torch.inf)
        return log_prob

    def _count_invalid(self, count: int, rows: Tensor, what: str, infinite: bool = False) -> None:
        if not self.n_invalid:
            hint = " Did you pass a log density? An energy is its negative." if infinite else ""
            warn_user(
                f"energy_fn {what}, for example at x = {self._example(rows[0])}; such points are treated as outside "
                f"the support, here and in what follows. Return +inf there to say so.{hint}",
                RuntimeWarning,
            )
        self.n_invalid += count

    # ---------------------------------------------------------------- the probe

    def _probe(self, points: Tensor, generator, start: Tensor | None) -> None:
        """Find the framework, the precision and the gradient; check shapes, finiteness and row independence."""
        unconstrained, (points, *_) = points, self._locate(points)
        values = self._find_framework(points)
        self._canary = self._rows(points[:1], None)
        if not values.isfinite().any():
            unconstrained, points, values = self._look_for_support(unconstrained, points, values, generator, start)
        self.valid = unconstrained[values.isfinite()]
        self._check_rows(points, values)
        if self.has_gradient:
            self.log_prob_and_score(unconstrained)
        self.fast_dtype = self._find_fast_dtype(points, values)

    def _check_rows(self, points: Tensor, values: Tensor) -> None:
        """Refuse a callable whose rows depend on each other, or are random."""
        for size in PROBE_SIZES[1:]:
            alone = self._quietly(points[:size]).to(points.device)
            tolerance = 1e-6 if self.dtype == torch.float64 else 1e-3
            if not torch.allclose(alone.double(), values[:size], rtol=tolerance, atol=tolerance, equal_nan=True):
                raise InvalidEnergyError(
                    f"energy_fn gave {alone.tolist()} for {size} points, and {values[:size].tolist()} for the same "
                    f"points in a batch of {len(points)}: each row's energy has to depend on that row alone, and not "
                    "be random."
                )

    def _quietly(self, points: Tensor) -> Tensor:
        """Energies (n,) of points in the user's coordinates, whether or not the callable needs autograd for them."""
        x = self._rows(points, None)
        try:
            with torch.no_grad():
                return self._guarded(self._value, x)[0]
        except (Spent, InvalidEnergyError):
            raise
        except Exception:
            if self.needs_grad_mode or self.framework != "torch":
                raise
            self.needs_grad_mode = True  # a callable that differentiates something itself
            return self._guarded(self._value, x)[0]

    def _look_for_support(self, unconstrained: Tensor, points: Tensor, values: Tensor, generator, start):
        """Points, in both coordinates, with their energies, some of them finite if any of many kinds of points is."""
        n = len(points)
        spare = self.monitor is None or self.monitor.max_energy_evals is None
        batches = self._candidates(generator, 200 if spare else n)
        for batch in [start, *batches] if start is not None else batches:
            rows = self._locate(batch)[0]
            found = self._quietly(rows).to(points.device, torch.float64)
            finite = found.isfinite()
            if finite.any():
                order = (~finite).to(torch.int8).argsort(stable=True)[:n]
                return batch[order], rows[order], found[order]
        if not (values == torch.inf).any():
            raise InvalidEnergyError(
                f"energy_fn returned {values[0].item()} at every one of {n} standard normal points, and nothing finite "
                "at points nearer, farther, ordered or positive; it has to be finite, or +inf outside the support of "
                "the density. Pass points of its support in start=."
            )
        return unconstrained, points, values

    def _find_fast_dtype(self, points: Tensor, values: Tensor) -> torch.dtype:
        """float32 when the callable takes it and gives the float64 energies to `FAST_TOLERANCE`.

        Not with bounds: close to them single precision does not tell points apart.
        """
        if self.bounds is not None or self.dtype == torch.float32:
            return self.dtype
        finite = values.isfinite()
        try:
            (fast,) = self._value(points.to(self.call_device, torch.float32))
            fast = fast.to(points.device, torch.float64)
        except Spent:
            raise
        except Exception:
            return self.dtype
        agrees = _close(fast[finite], values[finite]) and torch.equal(fast.isfinite(), finite)
        return torch.float32 if agrees else self.dtype

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
                try:
                    values = self._try(points.to(device, dtype, copy=True))
                except Exception as error:
                    errors.append(error)
                    continue
                self.has_gradient |= values.requires_grad
                return values.detach().to(points.device, torch.float64)
        raise self._first_of(errors, tuple(points.shape))

    def _try(self, x: Tensor) -> Tensor:
        """Energies of the probe points in the framework and precision that are being tried."""
        self.n_energy_evals += len(x)
        with self._silenced(), torch.enable_grad():
            if self.framework == "numpy":
                raw = self._apply(self.energy_fn, x.numpy())
            else:
                raw = self._apply(self.energy_fn, x.requires_grad_(self.grad_fn is None).clone())
            if isinstance(raw, Tensor) != (self.framework == "torch"):
                raise TypeError(f"energy_fn returned {type(raw).__name__} for a {self.framework} input")
            return _checked_shape(raw, (len(x),), "energy_fn", self._shape(x))

    def _first_of(self, errors: list[Exception], shape: tuple) -> Exception:
        """The error to raise where no framework worked, the user's own one chained to it."""
        shape_errors = [error for error in errors if isinstance(error, InvalidEnergyError)]
        first = (shape_errors or errors)[0]
        note(
            first,
            f"skcds probed energy_fn ({_describe(self.energy_fn)}) with torch tensors and NumPy arrays of shape "
            f"{shape}.",
        )
        note(first, ONE_POINT)
        others = [error for error in reversed(errors) if type(error) is not type(first)]
        if others:
            first.__cause__ = others[0]  # the user's own error may be in the other framework
        return first


def example_of(x: Tensor) -> str:
    """A point (d,) as it is named in messages."""
    return np.array2string(to_numpy(x), precision=4, threshold=8)


def _close(fast: Tensor, exact: Tensor) -> bool:
    return torch.allclose(fast, exact, rtol=0, atol=FAST_TOLERANCE)


def _checked_shape(value, shape: tuple, name: str, shape_in) -> Tensor:
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
    return value.clone()  # the tensor may be a buffer that is used again
