"""Is a one-step map injective on the prior's mass? Only then are its exact weights those of a density."""

__all__ = ["InjectivityReport", "check_injectivity"]

from dataclasses import dataclass

import torch
from scipy.spatial import cKDTree
from torch import Tensor

from .._support.devices import to_numpy

NEWTON_STEPS = 20
TOLERANCE = 1e-4  # of images, in standardised units
SEPARATION = 1e-2  # of latents that count as different


@dataclass(frozen=True)
class InjectivityReport:
    """What the search for folds found.

    Attributes
    ----------
    sign_change_share : float
        Share of draws whose Jacobian determinant is zero, or has another sign than most of them.
    second_preimage_share : float
        Share of the searched draws that another latent is mapped to as well.
    """

    sign_change_share: float
    second_preimage_share: float

    @property
    def violation_share(self) -> float:
        """The larger of the two."""
        return max(self.sign_change_share, self.second_preimage_share)


def check_injectivity(
    consistency_map, latent: Tensor, level: Tensor, n_search: int = 500, n_starts: int = 4
) -> InjectivityReport:
    """Search for violations of injectivity: determinants that change sign, and second preimages.

    A continuous map whose Jacobian determinant changes sign folds. A map that turns space over has a negative
    determinant everywhere, and may be injective. A map whose determinant keeps its sign may still overlap itself. So
    Newton's method looks for other latents with the same image, for `n_search` of the draws. It starts from the latents
    of draws that landed near by but started far away. Finding none is evidence, not proof.

    Parameters
    ----------
    consistency_map : ResidualMap
        Has ``jacobian``.
    latent : Tensor
        Prior draws (n, d).
    level : Tensor
        Log signal-to-noise ratios (n,), or (1,) for all rows.
    n_search : int, default=500
        Draws searched for second preimages.
    n_starts : int, default=4
        Neighbours that Newton's method starts from.

    Returns
    -------
    InjectivityReport
    """
    if not len(latent):
        return InjectivityReport(0.0, 0.0)
    images, jacobian = consistency_map.jacobian(latent, level)
    signs = torch.linalg.slogdet(jacobian)[0]
    changed = (len(signs) - max(int((signs > 0).sum()), int((signs < 0).sum()))) / len(signs)
    n_search = min(n_search, len(latent))
    neighbours = _near_images_far_latents(images, latent, n_search, n_starts)
    found = torch.zeros(n_search, dtype=torch.bool, device=latent.device)
    for start in neighbours.T:
        z = _newton(consistency_map, latent[start], images[:n_search], level[:n_search])
        residual = (consistency_map(z, level[:n_search]) - images[:n_search]).norm(dim=1)
        other = (z - latent[:n_search]).norm(dim=1) > SEPARATION
        on_mass = (z**2).sum(1) < (latent**2).sum(1).max()
        found |= (residual < TOLERANCE) & other & on_mass
    return InjectivityReport(changed, float(found.double().mean()))


def _near_images_far_latents(images: Tensor, latent: Tensor, n_search: int, n_starts: int) -> Tensor:
    """Indices (n_search, n_starts): of the draws with the nearest images, those whose latents are farthest away."""
    n_near = min(16, len(images))
    _, near = cKDTree(to_numpy(images)).query(to_numpy(images[:n_search]), n_near)
    near = torch.from_numpy(near).reshape(n_search, n_near).to(latent.device)
    distance = (latent[near] - latent[:n_search, None]).norm(dim=2)
    return near.gather(1, distance.argsort(1, descending=True)[:, : min(n_starts, n_near)])


def _newton(consistency_map, z: Tensor, goal: Tensor, level: Tensor) -> Tensor:
    """Solve f(z) = goal by Newton's method with steps of length at most 1."""
    for _ in range(NEWTON_STEPS):
        image, jacobian = consistency_map.jacobian(z, level)
        step = torch.linalg.lstsq(jacobian, (goal - image)[:, :, None]).solution[:, :, 0].nan_to_num()
        z = z + step / step.norm(dim=1, keepdim=True).clamp(min=1.0)
    return z
