"""Lattice field theories."""

__all__ = ["Phi4Lattice"]

import math

import numpy as np
import torch
from torch import Tensor

from .base import Target, count, not_negative


class Phi4Lattice(Target):
    """Scalar field theory on a periodic square lattice: the action is the energy.

    With the field phi at the sites, the action is the sum over sites of
    ``(1 - 2 lam) phi^2 + lam phi^4 - 2 kappa phi (phi_right + phi_below)``. It does not change where phi changes its
    sign. For small kappa the field is disordered, for large kappa it is ordered: the mean of phi over the sites, the
    magnetisation, then has two values of opposite sign, and the density two modes, which single-site moves hardly ever
    connect.

    Source: K. A. Nicoli et al., "Estimation of thermodynamic observables in lattice field theories with deep generative
    models", Physical Review Letters 126, 2021, with lam = 0.022 and kappa from 0.2 to 0.3.

    Parameters
    ----------
    n_sites : int, default=8
        Sites along each side, at least 2; the dimension is their square.
    kappa : float, default=0.3
        Hopping parameter, the coupling of neighbours.
    lam : float, default=0.022
        Quartic coupling. With 0 the field is Gaussian, and kappa has to be below 1/4.

    Attributes
    ----------
    log_evidence, log_evidence_se : float or None
        In closed form where `lam` is 0. Otherwise None: assign them where you have computed them.

    Examples
    --------
    >>> import torch
    >>> target = Phi4Lattice(n_sites=2)
    >>> target
    Phi4Lattice(n_sites=2, kappa=0.3, lam=0.022)
    >>> target(torch.ones(1, 4))  # 4 (0.956 + 0.022 - 1.2)
    tensor([-0.8880])
    """

    _shown = ("n_sites", "kappa", "lam")

    def __init__(self, n_sites: int = 8, kappa: float = 0.3, lam: float = 0.022):
        self.n_sites = count(n_sites, "n_sites", 2)
        self.kappa, self.lam = not_negative(kappa, "kappa"), not_negative(lam, "lam")
        if not self.lam and self.kappa >= 0.25:
            raise ValueError(f"kappa has to be below 0.25 where lam is 0, or Z is infinite; got {self.kappa:.6g}.")
        self.n_features = self.n_sites**2
        self.log_evidence = None if self.lam else self._gaussian_log_evidence()
        self.log_evidence_se = None if self.lam else 0.0

    def _gaussian_log_evidence(self) -> float:
        """Log Z without the quartic term: plane waves are the eigenvectors of the action's matrix."""
        wave = np.cos(2 * math.pi * np.arange(self.n_sites) / self.n_sites)
        eigenvalues = 1 - 2 * self.kappa * (wave[:, None] + wave)
        return 0.5 * (self.n_features * math.log(math.pi) - math.fsum(np.log(eigenvalues).ravel()))

    def _energy(self, x: Tensor) -> Tensor:
        phi = x.unflatten(1, (self.n_sites, self.n_sites))
        neighbours = torch.roll(phi, 1, 1) + torch.roll(phi, 1, 2)
        squares = phi * phi
        action = (1 - 2 * self.lam) * squares + self.lam * squares * squares - 2 * self.kappa * phi * neighbours
        return action.flatten(1).sum(1)

    def magnetisation(self, X) -> np.ndarray:
        """Mean of the field over the sites, (n,), at each row of `X`."""
        return self._points(X).mean(1)
