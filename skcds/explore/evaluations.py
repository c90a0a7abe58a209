"""Energies that the user has evaluated before: where a search begins, without asking for them again."""

__all__ = ["Evaluations"]

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._support.devices import randint, to_numpy
from ..density.bounds import Bounds
from ..density.energy import Energy
from ..train.particles import systematic_index
from .few_evaluations import Mixture
from .mixture import TMixture
from .store import tempered

N_COMPARED = 3  # evaluations that are made again, to see whether they are those of this energy
TOLERANCE = 1e-3  # of their energies, in units of these or of one
N_CLIMBS = 12  # that begin from the best of them
POINTS_A_COMPONENT, EFFECTIVE_A_FEATURE = 5, 10  # of the mixture that is fitted to them


@dataclass(frozen=True)
class Evaluations:
    """Points and their energies, the lowest first.

    They are of no known distribution, so that they have no importance weights, and no part in log Z. They say where
    climbs and the first draws of an exploration begin.

    Attributes
    ----------
    x : Tensor
        Points (m, d) float64 in the user's coordinates, at which the density is positive.
    energies : Tensor
        Their energies (m,).
    given : tuple
        What the user passed.
    """

    x: Tensor
    energies: Tensor
    given: Any

    @classmethod
    def from_parameter(cls, given, n_features: int, bounds: Bounds | None) -> "Evaluations | None":
        """From what users pass: None, or points (m, n_features) and their energies (m,).

        Raises
        ------
        ValueError
            When it is no such pair, or has no point inside of the bounds with a finite energy.
        """
        if given is None:
            return None
        if not isinstance(given, tuple | list) or len(given) != 2:
            raise ValueError(
                "evaluations has to be a pair (X, E) of points (m, n_features) and their energies (m,); got "
                f"{type(given).__name__}."
            )
        parts = (to_numpy(value) if isinstance(value, Tensor) else value for value in given)
        x, energies = (np.array(value, dtype=np.float64) for value in parts)
        if x.ndim != 2 or x.shape[1] != n_features or energies.shape != x.shape[:1]:
            raise ValueError(
                f"evaluations has to be a pair of points (m, {n_features}) and energies (m,); got arrays of shapes "
                f"{x.shape} and {energies.shape}."
            )
        usable = np.isfinite(x).all(1) & np.isfinite(energies)
        if bounds is not None:
            usable &= bounds.contains(torch.from_numpy(x).to(bounds.low.device)).cpu().numpy()
        if not usable.any():
            raise ValueError(
                f"None of the {len(x)} points of evaluations has a finite energy inside of the bounds: leave them out."
            )
        order = np.argsort(energies[usable], kind="stable")
        return cls(torch.from_numpy(x[usable][order]), torch.from_numpy(energies[usable][order]), given)

    def check(self, energy: Energy) -> None:
        """Compare a few with the energy.

        Raises
        ------
        ValueError
            When they are those of another.
        """
        points = self.points(energy, N_COMPARED)
        now = -energy.log_prob(points)
        if energy.bounds is not None:
            now = now + energy.bounds.call_and_pull_back(points)[1]
        then = self.energies[:N_COMPARED].to(now.device)
        off = (now - then).abs() > TOLERANCE * then.abs().clamp(min=1.0)
        if bool((off | ~now.isfinite()).any()):
            k = int((off | ~now.isfinite()).int().argmax())
            where = np.array2string(self.x[k].numpy(), precision=4, threshold=8)
            raise ValueError(
                f"evaluations says that the energy at x = {where} is {float(then[k]):.6g}, and energy_fn gives "
                f"{float(now[k]):.6g}: pass evaluations of this energy, its constant included."
            )

    def points(self, energy: Energy, n: int | None = None) -> Tensor:
        """The n best points, or all, in the unconstrained coordinates of an energy."""
        x = self.x[:n].to(energy.device)
        return x if energy.bounds is None else energy.bounds.inverse(x)

    def mixture(self, energy: Energy, generator, by: Mixture) -> TMixture | None:
        """A mixture fitted to them, with powers of exp(-E) for weights; None where they are too few."""
        d = energy.n_features
        log_weights = (self.energies[0] - self.energies).to(energy.device)
        log_weights = log_weights * tempered(log_weights, EFFECTIVE_A_FEATURE * d)
        k = min(by.fewest_components, len(self.x) // (POINTS_A_COMPONENT * d))
        if k < 1:
            return None
        rows = systematic_index(log_weights, min(by.max_fitted, 2 * len(self.x)), generator)
        points = self.points(energy)[rows]
        if not bool((points.var(0) > 0).all()):
            return None
        return TMixture.fitted(points, k, int(randint(generator, 0, 2**31 - 1)), by=by)
