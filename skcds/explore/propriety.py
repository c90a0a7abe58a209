"""Is it a density at all? Faults of an energy that leave no finite mass: a wrong sign, flat directions, heavy tails."""

__all__ = ["check_directions", "check_mass", "first_look"]

import math

import numpy as np
import torch
from torch import Tensor

from .._support.devices import randn, to_numpy
from .._support.errors import InvalidEnergyError
from .._support.settings import CPU
from .._support.warnings import muted
from ..density.bounds import FARTHEST as END_OF_BOUNDED
from ..density.energy import Energy
from ..density.standardize import FARTHEST, Standardization, StandardizedTarget

RADII = (1e3, 1e6, 1e9, 1e12)  # at which the first look compares energies
RAYS, FEW_RAYS = 24, 6  # random directions of the first look, and with few evaluations allowed
AXES = 32  # coordinates looked along, each to both sides
FEW_EVALS = 20_000  # a limit below which the first look is short
CLEAR_SHARE = 0.75  # of the rays that have to agree
FALL = 1.0  # nats that an energy falls by between two radii at least, if it falls without end
DISTANCES = (1e-4, 1e-10)  # from a bound, in units of the width, between which the density may grow by less than 1 / x
FAR_OUT, FAR_SHARE = 0.75, 0.01  # of `FARTHEST`, and of the particles, from which mass is taken for infinite
DOUBT = 0.5  # largest deviation from 1 of a mean that is 1 for a density, and twice its largest standard error
FAR = 30.0, 1e3, 1e6  # standard deviations away, at which the energy has to have grown
FAR_ROWS, FAR_STEPS = 16, 64  # particles from which that is looked at, directions at a time
FEWEST_FAR_ROWS = 3  # where few evaluations are allowed
STEEPEST = 0.98  # of the inverse distance's power, which is 1, to allow for what else changes
WRONG_SIGN = "did you pass a log density? An energy is its negative, -log rho(x)."


def first_look(energy: Energy, generator: torch.Generator, few: bool = False) -> None:
    """Refuse what shows within some hundred evaluations: energies that fall without end, or do not grow at all.

    Parameters
    ----------
    energy : Energy
        The density.
    generator : torch.Generator
        Source of the directions.
    few : bool, default=False
        Whether to take some tens of evaluations only.

    Raises
    ------
    InvalidEnergyError
        When the energy falls or stays the same with the distance from the origin in nearly all directions, or along a
        coordinate; or when the density grows towards a bound at least as fast as the inverse distance.
    """
    if not len(energy.valid):
        return
    base = energy.valid[:1] if few else energy.valid[:3]
    n_invalid = energy.n_invalid
    try:
        energy.n_invalid = max(n_invalid, 1)  # that far out the function need not make sense, and is not warned of
        _look_outwards(energy, base, generator, few)
        if energy.bounds is not None:
            _look_at_bounds(energy, base)
    finally:
        energy.n_invalid = n_invalid


def _look_outwards(energy: Energy, base: Tensor, generator, few: bool) -> None:
    d = energy.n_features
    free = torch.ones(d, dtype=torch.bool, device=base.device) if energy.bounds is None else ~energy.bounds.bounded
    if not free.any():
        return
    rays = randn(generator, FEW_RAYS if few else RAYS, d, dtype=torch.float64) * free
    rays = rays / rays.norm(dim=1, keepdim=True)
    along = _energies(energy, base, rays)  # (rays, base, radii)
    steps = along.diff(dim=2)
    falls = ((steps < -FALL) | (along[:, :, 1:] == -torch.inf)).all(2)
    if falls.double().mean() >= CLEAR_SHARE:
        raise InvalidEnergyError(
            "energy_fn falls without end with the distance from the origin, to "
            f"{float(along[..., -1].median()):.3g} at a distance of {RADII[-1]:.0e}, so that exp(-energy) has infinite "
            f"mass: {WRONG_SIGN}"
        )
    growth = along[:, :, -1] - along[:, :, 0]
    least = 0.5 * int(free.sum()) * math.log(RADII[-1] / RADII[0])
    if bool((growth.isfinite() & (growth < least)).all()) and bool(along.isfinite().all()):
        raise InvalidEnergyError(
            "energy_fn seems to belong to a density of infinite mass: it grows by no more than "
            f"{float(growth.max()):.3g} between distances of {RADII[0]:.0e} and {RADII[-1]:.0e} from the origin. It "
            "has to grow faster than d log|x| in d dimensions, or be +inf outside of a bounded region: give every "
            "coordinate a proper prior, or pass bounds=."
        )
    if few:
        return
    axes = torch.eye(d, dtype=torch.float64, device=base.device)[free][:AXES]
    along = _energies(energy, base, torch.cat([axes, -axes])).unflatten(0, (2, len(axes)))  # (2, axes, base, radii)
    flat = (along.diff(dim=3).abs() < FALL).all(3).all(2).all(0)
    if flat.any():
        j = int(torch.arange(d, device=base.device)[free][:AXES][flat][0])
        raise InvalidEnergyError(
            f"energy_fn seems to belong to a density of infinite mass: along x[{j}] it does not grow at all between "
            f"distances of {RADII[0]:.0e} and {RADII[-1]:.0e}. It has to grow in every direction, or be +inf outside "
            "of a bounded region; give every coordinate a proper prior, or pass bounds=."
        )


def _energies(energy: Energy, base: Tensor, rays: Tensor) -> Tensor:
    """Energies (k, m, r) at the radii along rays (k, d) from points (m, d); NaN where invalid."""
    radii = torch.tensor(RADII, dtype=torch.float64, device=CPU).to(base.device)
    x = base[None, :, None] + radii[None, None, :, None] * rays[:, None, None]
    return _raw_energies(energy, x.flatten(0, 2)).view(len(rays), len(base), len(radii))


def _raw_energies(energy: Energy, x: Tensor) -> Tensor:
    """Energies (n,) of points in the user's coordinates, where -inf is not hidden by the policy on invalid values."""
    (values,) = energy._in_chunks(energy._value, energy._rows(x, None))
    return values.to(x.device, torch.float64)


def _look_at_bounds(energy: Energy, base: Tensor) -> None:
    """The density has to grow towards a bound by less than the inverse of the distance, and to fall far from one."""
    bounds = energy.bounds
    assert bounds is not None
    x = bounds(base)
    width = torch.where(bounds.both, bounds.width, bounds.scale)
    for side, edge, sign in (("lower", bounds.low, 1.0), ("upper", bounds.high, -1.0)):
        other = bounds.high if sign > 0 else bounds.low
        for j in np.flatnonzero(to_numpy(edge.isfinite() & ~bounds.periodic & (edge.abs() < 1e4 * width)))[
            :AXES
        ].tolist():
            near, far = (_at(energy, x, j, edge[j] + sign * distance * width[j]) for distance in DISTANCES[::-1])
            fall = (far - near) / math.log(DISTANCES[0] / DISTANCES[1])
            if bool((fall >= STEEPEST).all()):
                raise InvalidEnergyError(
                    f"energy_fn seems to belong to a density of infinite mass: towards the {side} bound "
                    f"{float(edge[j]):g} of x[{j}] it falls by {float(fall.min()):.3g} times the logarithm of the "
                    f"distance, where less than 1 is allowed; {WRONG_SIGN}"
                )
            if other[j].isfinite():
                continue
            outwards = torch.stack([_at(energy, x, j, edge[j] + sign * radius * width[j]) for radius in RADII])
            if bool((outwards.diff(dim=0) < -FALL).all()):
                raise InvalidEnergyError(
                    f"energy_fn falls without end with the distance of x[{j}] from its {side} bound, so that "
                    f"exp(-energy) has infinite mass: {WRONG_SIGN}"
                )


def _at(energy: Energy, x: Tensor, j: int, value) -> Tensor:
    """Energies (n,) at points x (n, d) of the box with another coordinate j."""
    x = x.clone()
    x[:, j] = value
    return _raw_energies(energy, x)


def check_mass(x: Tensor, standardization: Standardization, bounds) -> None:
    """Refuse a density whose mass is infinite: particles (n, d) then are as far out as they are let."""
    y = standardization.tame(x)[:, standardization.width.isfinite()]
    share = float((y.abs() > FAR_OUT * FARTHEST).any(1).double().mean())
    if bounds is not None:
        at_bound = (x.abs() > FAR_OUT * END_OF_BOUNDED) & bounds.bounded
        if float(at_bound.any(1).double().mean()) > FAR_SHARE:
            j = int(at_bound.double().mean(0).argmax())
            raise InvalidEnergyError(
                f"energy_fn seems to belong to a density of infinite mass: {float(at_bound[:, j].double().mean()):.1%} "
                f"of the pilot's particles are within 1e-100 of a bound of x[{j}], or as far from its only one as "
                "numbers reach. Towards a bound the density has to grow by less than the inverse of the distance; "
                f"{WRONG_SIGN}"
            )
    if share > FAR_SHARE:
        raise InvalidEnergyError(
            f"energy_fn seems to belong to a density of infinite mass: {share:.1%} of the pilot's particles are more "
            f"than {math.exp(FAR_OUT * FARTHEST):.0e} widths from the center. The energy has to grow faster than "
            "d log|x| with the distance in d dimensions, or be +inf outside of a bounded region."
        )


def check_directions(
    x: Tensor, moments: tuple[Tensor, Tensor], target: StandardizedTarget, n_evals: float | None = None
) -> None:
    """Refuse a density whose energy grows too slowly along some direction, to one of its sides or both.

    Too slowly is less than for a tail like 1 / x: by less than log(D) nats over D standard deviations. Particles with
    the distribution of a density have ``E[u . x u . grad E(x)] = 1`` for x centred and u of unit length, where no
    boundary of the support comes in (integration by parts). Only coordinates and principal axes for which that does not
    hold are looked along, or all where there is no gradient. With `n_evals`, for particles that follow it less closely,
    all are looked along, from as many particles as so many evaluations allow.
    """
    (loc, covariance), d = moments, x.shape[1]
    axes = torch.eye(d, dtype=torch.float64, device=loc.device)
    if covariance.ndim == 2:
        axes = torch.cat([axes, torch.linalg.eigh(covariance)[1]], 1)
    along = (x - loc) @ axes
    deviations = along.std(0)
    # Principal axes are less certain: looked along if the spread is suspect.
    exact = torch.arange(len(deviations), device=loc.device) < d
    doubtful = exact | (deviations > FAR[0] * deviations.min())
    if target.has_gradient and n_evals is None:
        _, score = target.energy.log_prob_and_score(x, target.score_dtype)
        terms = -along * (score @ axes)
        off, uncertain = (terms.mean(0) - 1).abs() > DOUBT, terms.std(0) / len(terms) ** 0.5 > DOUBT / 2
        doubtful &= off | uncertain
    steps = (axes * deviations).T[doubtful]
    steps = torch.cat([steps, -steps])
    if not len(steps):
        return
    if n_evals is not None:
        exact_steps = 2 * d * len(FAR[1:])
        x = x[: max(FEWEST_FAR_ROWS, int(n_evals / (len(FAR) + len(steps) + exact_steps)))]
    lacking = _growth(x, target, FAR[0] * steps) < math.log(FAR[0])
    exact = exact[doubtful].repeat(2)
    for factor in FAR[1:]:
        lacking[exact] &= _growth(x, target, factor * steps[exact]) < math.log(factor)
    if lacking.any():
        raise InvalidEnergyError(
            f"energy_fn seems to belong to a density of infinite mass: along {_direction(steps[lacking][0])} it hardly "
            f"grows over {FAR[0]:.0f} standard deviations of the pilot's particles. It has to grow in every direction, "
            "or be +inf outside of a bounded region; give every coordinate a proper prior."
        )


def _growth(x: Tensor, target: StandardizedTarget, steps: Tensor) -> Tensor:
    """Median growth of the energy (k,) from some particles along steps (k, d); infinite where there is no saying."""
    energy, x = target.energy, x[:FAR_ROWS]
    n_invalid = energy.n_invalid
    try:
        with muted(RuntimeWarning):  # that far out the function need not make sense
            here = energy.log_prob(x, target.score_dtype)
            parts = [(x + some[:, None]).flatten(0, 1) for some in steps.split(FAR_STEPS)]
            there = torch.cat([energy.log_prob(part, target.score_dtype) for part in parts])
    except Exception:
        return steps.new_full((len(steps),), torch.inf)
    finally:
        energy.n_invalid = n_invalid
    growth = here - there.view(len(steps), len(x))
    return growth.nanmedian(1).values.nan_to_num(torch.inf, torch.inf)


def _direction(step: Tensor) -> str:
    """The largest components of a direction in words."""
    u = step / step.norm()
    order = u.abs().argsort(descending=True)[:3].tolist()
    parts = [f"{float(u[j]):+.2g} x[{j}]" for j in order if abs(float(u[j])) > 0.05]
    return " ".join(parts) if len(parts) > 1 else f"{'+' if u[order[0]] > 0 else '-'}x[{order[0]}]"
