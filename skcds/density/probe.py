"""The first calls of the user's function, which find out what it takes and gives."""

__all__ = ["PROBE_SIZES", "checked_shape", "close", "probe"]

import numpy as np
import torch
from torch import Tensor

from .._support.errors import InvalidEnergyError, Spent
from .._support.warnings import note

PROBE_SIZES = (7, 2, 1)
FAST_TOLERANCE = 1e-2  # largest error of float32 energies for which training uses float32
ONE_POINT = (
    "A function of one point, or of a dictionary of parameters, becomes one of batches by "
    "skcds.adapters.from_numpy; models of NumPyro, PyMC and Stan by their adapters."
)


def probe(energy, points: Tensor, generator, start: Tensor | None) -> None:
    """Find the framework, the precision and the gradient; check shapes, finiteness and row independence.

    What it finds becomes attributes of the energy.

    Parameters
    ----------
    energy : Energy
        An energy that knows its callables, bounds and limits.
    points : Tensor
        Unconstrained points (n, n_features) to begin with.
    generator : torch.Generator
        Source of more points.
    start : Tensor or None
        Unconstrained points (m, n_features) at which the density may be positive.

    Raises
    ------
    InvalidEnergyError
        When the result has the wrong type or shape, is finite at no point, or depends on the other rows of the batch.
    """
    unconstrained, (points, *_) = points, energy._locate(points)
    values = _find_framework(energy, points)
    energy._canary = energy._rows(points[:1], None)
    if not values.isfinite().any():
        unconstrained, points, values = _look_for_support(energy, unconstrained, points, values, generator, start)
    energy.valid = unconstrained[values.isfinite()]
    _check_rows(energy, points, values)
    if energy.has_gradient:
        energy.log_prob_and_score(unconstrained)
    energy.fast_dtype = _find_fast_dtype(energy, points, values)


def _check_rows(energy, points: Tensor, values: Tensor) -> None:
    """Refuse a callable whose rows depend on each other, or are random."""
    for size in PROBE_SIZES[1:]:
        alone = _quietly(energy, points[:size]).to(points.device)
        tolerance = 1e-6 if energy.dtype == torch.float64 else 1e-3
        if not torch.allclose(alone.double(), values[:size], rtol=tolerance, atol=tolerance, equal_nan=True):
            raise InvalidEnergyError(
                f"energy_fn gave {alone.tolist()} for {size} points, and {values[:size].tolist()} for the same "
                f"points in a batch of {len(points)}: each row's energy has to depend on that row alone, and not "
                "be random."
            )


def _quietly(energy, points: Tensor) -> Tensor:
    """Energies (n,) of points in the user's coordinates, whether or not the callable needs autograd for them."""
    x = energy._rows(points, None)
    try:
        with torch.no_grad():
            return energy._guarded(energy._value, x)[0]
    except (Spent, InvalidEnergyError):
        raise
    except Exception:
        if energy.needs_grad_mode or energy.framework != "torch":
            raise
        energy.needs_grad_mode = True  # a callable that differentiates something itself
        return energy._guarded(energy._value, x)[0]


def _look_for_support(energy, unconstrained: Tensor, points: Tensor, values: Tensor, generator, start):
    """Points, in both coordinates, with their energies, some of them finite if any of many kinds of points is."""
    n = len(points)
    spare = energy.monitor is None or energy.monitor.max_energy_evals is None
    batches = energy._candidates(generator, 200 if spare else n)
    for batch in [start, *batches] if start is not None else batches:
        rows = energy._locate(batch)[0]
        found = _quietly(energy, rows).to(points.device, torch.float64)
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


def _find_fast_dtype(energy, points: Tensor, values: Tensor) -> torch.dtype:
    """float32 when the callable takes it and gives the float64 energies to `FAST_TOLERANCE`.

    Not with bounds: close to them single precision does not tell points apart.
    """
    if energy.bounds is not None or energy.dtype == torch.float32:
        return energy.dtype
    finite = values.isfinite()
    try:
        (fast,) = energy._value(points.to(energy.call_device, torch.float32))
        fast = fast.to(points.device, torch.float64)
    except Spent:
        raise
    except Exception:
        return energy.dtype
    agrees = close(fast[finite], values[finite]) and torch.equal(fast.isfinite(), finite)
    return torch.float32 if agrees else energy.dtype


def _find_framework(energy, points: Tensor) -> Tensor:
    """Try torch then NumPy (the other way round with a `grad_fn`), float64 then float32; keep what works.

    Torch is tried on the device of the points first, and then on the CPU.
    """
    energy.has_gradient = energy.grad_fn is not None
    errors: list[Exception] = []
    cpu = torch.device("cpu")
    places = [("torch", device) for device in dict.fromkeys((energy.device, cpu))]
    places = [*places, ("numpy", cpu)] if energy.grad_fn is None else [("numpy", cpu), *places]
    for framework, device in places:
        for dtype in (torch.float64, torch.float32):
            energy.framework, energy.call_device, energy.dtype = framework, device, dtype
            try:
                values = _try(energy, points.to(device, dtype, copy=True))
            except Exception as error:
                errors.append(error)
                continue
            energy.has_gradient |= values.requires_grad
            return values.detach().to(points.device, torch.float64)
    raise _first_of(errors, tuple(points.shape), energy.energy_fn)


def _try(energy, x: Tensor) -> Tensor:
    """Energies of the probe points in the framework and precision that are being tried."""
    energy.n_energy_evals += len(x)
    with energy._silenced(), torch.enable_grad():
        if energy.framework == "numpy":
            raw = energy._apply(energy.energy_fn, x.numpy())
        else:
            raw = energy._apply(energy.energy_fn, x.requires_grad_(energy.grad_fn is None).clone())
        if isinstance(raw, Tensor) != (energy.framework == "torch"):
            raise TypeError(f"energy_fn returned {type(raw).__name__} for a {energy.framework} input")
        return checked_shape(raw, (len(x),), "energy_fn", energy._shape(x))


def _first_of(errors: list[Exception], shape: tuple, energy_fn) -> Exception:
    """The error to raise where no framework worked, the user's own one chained to it."""
    shape_errors = [error for error in errors if isinstance(error, InvalidEnergyError)]
    first = (shape_errors or errors)[0]
    note(
        first,
        f"skcds probed energy_fn ({_describe(energy_fn)}) with torch tensors and NumPy arrays of shape {shape}.",
    )
    note(first, ONE_POINT)
    others = [error for error in reversed(errors) if type(error) is not type(first)]
    if others:
        first.__cause__ = others[0]  # the user's own error may be in the other framework
    return first


def _describe(energy_fn) -> str:
    return getattr(energy_fn, "__name__", type(energy_fn).__name__)


def close(fast: Tensor, exact: Tensor) -> bool:
    """Whether energies in single precision are those in double, to `FAST_TOLERANCE`."""
    return torch.allclose(fast, exact, rtol=0, atol=FAST_TOLERANCE)


def checked_shape(value, shape: tuple, name: str, shape_in) -> Tensor:
    """What a callable of the user returned, as a tensor of this shape; `InvalidEnergyError` where it is none."""
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
