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
from .probe import PROBE_SIZES, checked_shape, close, probe
from .support import candidates

CHUNK_ROWS = 1024  # rows of one call of the user's function: intermediate arrays stay in the cache
CALL_SECONDS = 0.25  # that a call may take under a limit of time; its rows are halved or doubled accordingly
FORGET = 0.7  # weight of the earlier calls in the measured rate of evaluations


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

    # What the probe finds.
    framework: str
    call_device: torch.device
    dtype: torch.dtype
    fast_dtype: torch.dtype
    has_gradient: bool
    valid: Tensor
    latest: Tensor
    known: Any = None  # `Evaluations` of the user

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
            probe(self, self._first_points(generator), generator, start)
        if monitor is not None and monitor.max_time is not None:
            self.rows = int(min(CHUNK_ROWS, max(self._fewest_rows, self.evals_per_second * CALL_SECONDS)))

    def release(self) -> None:
        """Leave the limits of a fit behind."""
        self.monitor, self.known, self.rows = None, None, CHUNK_ROWS

    @classmethod
    def of(cls, density: Density, n_features: int, *args, **options) -> "Energy":
        """The energy of a density; the other arguments are those of the class."""
        return cls(density.energy_fn, n_features, density.grad_fn, *args, **options)

    @property
    def constrain(self) -> Callable | None:
        """The map from points to a model's parameters by name, of an energy function that has one."""
        return getattr(self.energy_fn, "constrain", None)

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
        agrees = torch.equal(fast.isfinite(), inside) and close(fast[inside], exact[inside])
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
        return checked_shape(value, (len(x),), "energy_fn", self._shape(x))

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
        return checked_shape(value, (len(x), self.n_features), "grad_fn", self._shape(x))

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


def example_of(x: Tensor) -> str:
    """A point (d,) as it is named in messages."""
    return np.array2string(to_numpy(x), precision=4, threshold=8)
