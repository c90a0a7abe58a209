"""Where might the support be? Points of many kinds, for densities that are zero at standard normal ones."""

__all__ = ["candidates"]

from collections.abc import Iterator

import torch
from torch import Tensor

from .._support.devices import rand, randn

SCALES = (1.0, 0.1, 10.0, 0.01, 100.0)


def candidates(generator: torch.Generator, n_features: int, n: int) -> Iterator[Tensor]:
    """Batches of points at which a density of narrow support may be positive.

    Normal points of several scales; those with all coordinates positive, or negative; in ascending and descending order
    (cut-points, change-points); uniform in the simplex and in the unit cube.

    Parameters
    ----------
    generator : torch.Generator
        Source of randomness.
    n_features : int
        Dimension d.
    n : int
        Points of a batch.

    Yields
    ------
    Tensor
        Points (n, d), float64.
    """
    exponential = -rand(generator, n, n_features + 1, dtype=torch.float64).clamp(min=1e-12).log()
    yield (exponential / exponential.sum(1, keepdim=True))[:, :n_features]
    yield rand(generator, n, n_features, dtype=torch.float64)
    for scale in SCALES:
        z = scale * randn(generator, n, n_features, dtype=torch.float64)
        yield z
        yield z.abs()
        yield z.sort(1).values
        yield z.abs().sort(1).values
        yield z.sort(1, descending=True).values
        yield z.abs().sort(1, descending=True).values
        yield -z.abs()
