"""Directions that are coordinates of their own, such as one along which modes lie apart."""

__all__ = ["Rotation"]

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .._support.settings import place
from ..io.registry import register_model


@register_model()
class Rotation(nn.Module):
    """Orthogonal map of standardised coordinates, the identity at first.

    Parameters
    ----------
    n_features : int
        Dimension.

    Attributes
    ----------
    axes : Tensor
        (d, d), whose columns are the directions of the coordinates.
    """

    axes: Tensor

    def __init__(self, n_features: int):
        super().__init__()
        self.config = {"n_features": n_features}
        self.register_buffer("axes", torch.eye(n_features, dtype=torch.float64, device=place()))

    @classmethod
    def of(cls, axes: Tensor) -> "Rotation":
        """With given axes (d, d)."""
        rotation = cls(len(axes)).to(axes.device)
        rotation.axes = axes.contiguous()
        return rotation

    def forward(self, z: Tensor) -> Tensor:
        """(n, d) points z to y, float64."""
        return z.double() @ self.axes.T

    def inverse(self, y: Tensor) -> Tensor:
        """(n, d) points y to z, float64."""
        return y.double() @ self.axes

    def call_and_pull_back(self, z: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """Points (n, d), the log determinant (n,) of the Jacobian, which is zero, and `pull_back`.

        The last maps the gradient (n, d) of a function of y to that of the function in z.
        """
        zero = torch.zeros(len(z), dtype=torch.float64, device=z.device)
        return self(z), zero, lambda score: score.double() @ self.axes
