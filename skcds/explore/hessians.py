"""Hessians of an energy by differences of its gradient: of sparse ones, by few of these."""

__all__ = ["Hessians", "colouring", "hessian"]

import torch
from torch import Tensor

from .._support.devices import generator_on, rand
from .._support.settings import CPU
from ..density.energy import Energy
from ..density.standardize import StandardizedTarget

DIFFERENCE = 1e-4  # in units of a coordinate's scale
SMALLEST = 1e-6  # entry that is not zero, in units of the geometric mean of its diagonal ones
SPARSE = 1 / 16  # of the columns, that there may be groups of
LARGEST_ERROR = 1e-4  # of the product with a vector, relative to its norm
MOST_NUMBERS = 4_000_000  # of the points of a call
N_DENSE = 2  # that tell where entries are


def hessian(energy: Energy | StandardizedTarget, x: Tensor) -> Tensor:
    """Hessian of the energy (d, d) at a point (d,), by 2 d evaluations."""
    found = _differences(energy, x, torch.eye(len(x), dtype=torch.float64, device=x.device))
    return 0.5 * (found + found.T)


class Hessians:
    """Hessians of an energy at one point after another.

    The first are dense. Where these are sparse, as those of chains and lattices are, columns without a common row are
    groups, and one difference of gradients along the sum of a group tells all of its columns (Curtis, Powell & Reid
    1974). The product with another vector tells whether an entry has appeared elsewhere: then that Hessian is dense.

    Parameters
    ----------
    energy : Energy or StandardizedTarget
        Its gradient is needed.

    References
    ----------
    Curtis, Powell and Reid (1974), "On the estimation of sparse Jacobian matrices", IMA J. Appl. Math. 13(1).
    """

    def __init__(self, energy: Energy | StandardizedTarget):
        self.energy, self.n_dense = energy, 0
        self.pattern: Tensor | None = None  # (d, d), where entries were
        self.groups: Tensor | None = None  # number (d,) of each column's group; None where there are too many

    def __call__(self, x: Tensor) -> Tensor:
        """The Hessian (d, d) at a point (d,)."""
        found = None
        if self.groups is not None and self.pattern is not None:
            found = _by_groups(self.energy, x, self.pattern, self.groups)
        if found is None:
            found = hessian(self.energy, x)
            self._learn(found)
        return found

    def _learn(self, found: Tensor) -> None:
        """Take the places of a dense Hessian's entries."""
        scale = found.diagonal().abs().sqrt()
        pattern = ~(found.abs() <= SMALLEST * scale[:, None] * scale)  # where it is not finite, too
        pattern.fill_diagonal_(True)
        self.pattern = pattern if self.pattern is None else self.pattern | pattern
        self.n_dense += 1
        self.groups = colouring(self.pattern, int(SPARSE * len(found))) if self.n_dense >= N_DENSE else None


def colouring(pattern: Tensor, most: int) -> Tensor | None:
    """Groups of columns of a symmetric pattern (d, d) of which no two have a row in common: the number (d,) of each.

    Greedy, in the order of the columns. None where there are more than `most` groups.
    """
    if int(pattern.sum(1).max()) > most:  # of columns with a row in common, each has a group of its own
        return None
    places, groups = pattern.cpu(), torch.full((len(pattern),), -1, dtype=torch.int64, device=CPU)
    for column in range(len(pattern)):
        near = places[places[column]].any(0)
        taken = groups[near].unique()
        free = torch.ones(len(taken) + 2, dtype=torch.bool, device=CPU)
        free[taken[(taken >= 0) & (taken < len(free))]] = False
        groups[column] = int(free.nonzero()[0])
    return groups.to(pattern.device) if int(groups.max()) < most else None


def _by_groups(energy: Energy | StandardizedTarget, x: Tensor, pattern: Tensor, groups: Tensor) -> Tensor | None:
    """The Hessian (d, d) from one difference for each group, or None where it has entries outside of a pattern."""
    d, n = len(x), int(groups.max()) + 1
    along = torch.zeros(n + 1, d, dtype=torch.float64, device=x.device)
    along[groups, torch.arange(d, device=x.device)] = 1
    along[n] = (rand(generator_on(CPU, 0), d) < 0.5).to(along) * 2 - 1  # always the same signs
    differences = _differences(energy, x, along)
    rows, columns = pattern.nonzero().T
    found = torch.zeros(d, d, dtype=torch.float64, device=x.device)
    found[rows, columns] = differences[groups[columns], rows]
    error = (found @ along[n] - differences[n]).norm()
    return 0.5 * (found + found.T) if error <= LARGEST_ERROR * differences[n].norm() else None


def _differences(energy: Energy | StandardizedTarget, x: Tensor, along: Tensor) -> Tensor:
    """Products (n, d) of the Hessian at a point (d,) with vectors (n, d), by central differences of the gradient."""
    found = []
    for part in along.split(max(1, MOST_NUMBERS // len(x))):
        ahead, behind = (energy.log_prob_and_score(x + sign * DIFFERENCE * part)[1] for sign in (1, -1))
        found.append((behind - ahead) / (2 * DIFFERENCE))
    return torch.cat(found)
