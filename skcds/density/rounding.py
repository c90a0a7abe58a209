"""Where an energy is mere rounding: functions whose terms cancel far out jump there by more than what they compute."""

__all__ = ["find_cut", "rounding_noise"]

import math

import torch
from torch import Tensor

from .._support.devices import randn
from .._support.settings import CPU
from .energy import Energy

NOISE_STEP = 1e-4  # between the points that rounding is looked for at, in units of the spread
ROWS = 16  # points that a place is looked at by
HALVINGS = 12  # of the way from sound points to unsound ones


def find_cut(
    energy: Energy, sound: Tensor, unsound: Tensor, generator: torch.Generator, largest: float
) -> tuple[int, float, bool] | None:
    """The coordinate that makes the energy mere rounding, the value from which on it does, and whether that is above.

    Parameters
    ----------
    energy : Energy
        The density.
    sound, unsound : Tensor
        Points (n, d) and (m, d) where the energy can be relied on, and where it cannot.
    generator : torch.Generator
        Source of directions.
    largest : float
        Nats that the energy may jump by between neighbouring points.

    Returns
    -------
    j : int
        The coordinate.
    threshold : float
        In the user's coordinates.
    above : bool
        Whether the values above the threshold are the unsound ones.

    None where no single coordinate makes the difference.
    """
    spread, start, bad = sound.std(0), sound[:ROWS], unsound.median(0).values

    def noise(j, value):
        points = start.clone()
        points[:, j] = value
        return rounding_noise(energy, points, spread, generator)

    noises = [noise(j, bad[j]) for j in range(sound.shape[1])]
    j = max(range(len(noises)), key=lambda k: noises[k])
    if noises[j] <= largest:
        return None
    low, high = start[:, j].median(), bad[j]
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if noise(j, middle) > largest else (middle, high)
    point = start[:1].clone()
    point[0, j] = low
    located = point if energy.bounds is None else energy.bounds(point)
    return j, float(located[0, j]), bool(bad[j] > low)


def rounding_noise(energy: Energy, x: Tensor, spread: Tensor, generator: torch.Generator) -> float:
    """Median size, in nats, of the jumps of the energy between points so close that a smooth function has none.

    Fourth differences along random directions cancel all that is smooth over a ten-thousandth of the spread; what is
    left is rounding in the user's function.

    Parameters
    ----------
    energy : Energy
        The density.
    x : Tensor
        Points (n, d).
    spread : Tensor
        Standard deviations (d,) of the coordinates.
    generator : torch.Generator
        Source of the directions.
    """
    step = NOISE_STEP * spread * randn(generator, x.shape, dtype=torch.float64)
    offsets = torch.arange(-2.0, 3.0, dtype=torch.float64, device=x.device)
    points = x[None] + offsets[:, None, None] * step
    values = energy.log_prob(points.flatten(0, 1)).view(5, len(x))
    binomial = torch.tensor([1.0, -4.0, 6.0, -4.0, 1.0], dtype=torch.float64, device=CPU).to(x.device)
    difference = (binomial[:, None] * values).sum(0).abs() / math.sqrt(70.0)
    finite = difference.isfinite()
    return float(difference[finite].median()) if finite.any() else 0.0
