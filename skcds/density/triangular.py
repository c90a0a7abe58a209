"""Coordinates in which a density that is skew along any directions is close to a Gaussian: a triangular map."""

__all__ = ["BEND_MEAN", "CURVATURE_OF_BEND", "FAR", "LARGEST_BEND", "TriangularMap", "features", "unbent"]

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .._support.settings import place
from ..io.registry import register_model

FAR = 4.0  # where features level off: nothing is told by few draws out there, and squares would go on
UNIT = 0.9450698  # standard deviation of FAR tanh(z / FAR) for standard normal z
BEND_MEAN = 1.3545308  # of sqrt(1 + z^2)
CURVATURE_OF_BEND = 0.2824454  # coefficient of z^2 - 1 in sqrt(1 + z^2)
LARGEST_BEND = 0.8  # below 1, where a coordinate would fold


@register_model()
class TriangularMap(nn.Module):
    """Invertible map of standardised coordinates whose location is quadratic, and whose log scale linear, in others.

    With features ``p = 4 tanh(z / 4)`` of unit variance,
    ``y_i = m_i + sum_j a_ij z_j + sum_jk c_ijk (p_j p_k - [j = k]) + exp(s_i + sum_j l_ij p_j) b_i(z_i)``
    over all j, k < i. The last function is ``b_i(z) = z + h_i (sqrt(1 + z^2) - 1.35)`` with |h_i| < 1. It is the
    identity where all numbers are zero.

    To first order in a density's third derivatives this is the map that leads from a Gaussian to it (a
    Knothe-Rosenblatt rearrangement; see Marzouk, Moselhy, Parno & Spantini 2016 on such maps). A spline for each
    coordinate sees skewness along the coordinates only. In regressions it is along the directions of the data.

    Parameters
    ----------
    n_features : int
        Dimension.

    Attributes
    ----------
    location, log_scale, bend : Tensor
        (d,), the numbers m, s and h.
    regression, slope : Tensor
        (d, d), a and l, strictly lower-triangular.
    curvature : Tensor
        (d, d, d), c, symmetric in the last two axes, and zero where one of these is not below the first.
    """

    location: Tensor
    log_scale: Tensor
    bend: Tensor
    regression: Tensor
    slope: Tensor
    curvature: Tensor

    def __init__(self, n_features: int):
        super().__init__()
        self.config = {"n_features": n_features}
        shapes = {"location": 1, "log_scale": 1, "bend": 1, "regression": 2, "slope": 2, "curvature": 3}
        for name, n_axes in shapes.items():
            zeros = torch.zeros([n_features] * n_axes, dtype=torch.float64, device=place())
            self.register_buffer(name, zeros)

    def forward(self, z: Tensor) -> Tensor:
        """(n, d) points z to y, float64."""
        return self._call(z.double())[0]

    def inverse(self, y: Tensor) -> Tensor:
        """(n, d) points y to z, float64, one coordinate after the other."""
        y = y.double()
        z, p = torch.zeros_like(y), torch.zeros_like(y)
        traces = self._traces()
        for i in range(y.shape[1]):
            before, bend = p[:, :i], self.bend[i]
            moved = self.location[i] - traces[i] + z[:, :i] @ self.regression[i, :i]
            moved = moved + ((before @ self.curvature[i, :i, :i]) * before).sum(1)
            own = (y[:, i] - moved) * (-self.log_scale[i] - before @ self.slope[i, :i]).exp()
            z[:, i] = unbent(own, bend)
            p[:, i] = features(z[:, i])[0]
        return z

    def call_and_pull_back(self, z: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """Points (n, d), the log determinant (n,) of the Jacobian, and `pull_back`.

        The last maps the gradient (n, d) of a function of y to that of the function plus the log determinant in z.
        """
        z = z.double()
        y, log_det, scaled, own = self._call(z)

        def pull_back(score):
            (p, rate), root = features(z), (1 + z * z).sqrt()
            steep = 1 + self.bend * z / root
            through = score.double() * scaled
            curved = 2 * self._curved(p, score.double())
            of_features = rate * (curved + (through * own + 1) @ self.slope)
            return through * steep + self.bend / (root**3 * steep) + score.double() @ self.regression + of_features

        return y, log_det, pull_back

    def _call(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Points (n, d), log determinants (n,), scales exp(s + l p) and values of b (n, d)."""
        p, root = features(z)[0], (1 + z * z).sqrt()
        log_scale = self.log_scale + p @ self.slope.T
        own = z + self.bend * (root - BEND_MEAN)
        shift = self.location - self._traces() + z @ self.regression.T
        shift = shift + torch.stack([(self._row(p, i) * p[:, :i]).sum(1) for i in range(z.shape[1])], 1)
        scaled = log_scale.exp()
        return shift + scaled * own, (log_scale + (self.bend * z / root).log1p()).sum(1), scaled, own

    def _row(self, p: Tensor, i: int) -> Tensor:
        """The products (n, i) of features with the curvature of coordinate i."""
        return p[:, :i] @ self.curvature[i, :i, :i]

    def _curved(self, p: Tensor, score: Tensor) -> Tensor:
        """Sum (n, d) over coordinates of the scores (n, d) times their products."""
        total = torch.zeros_like(p)
        for i in range(1, p.shape[1]):
            total[:, :i] += score[:, i : i + 1] * self._row(p, i)
        return total

    def _traces(self) -> Tensor:
        return self.curvature.diagonal(dim1=1, dim2=2).sum(1)


def unbent(own: Tensor, bend: Tensor) -> Tensor:
    """Where ``z + bend (sqrt(1 + z^2) - 1.35)`` has given values (n, k)."""
    own = own + bend * BEND_MEAN
    return (own - bend * (own**2 + 1 - bend**2).sqrt()) / (1 - bend**2)


def features(z: Tensor) -> tuple[Tensor, Tensor]:
    """Bounded features (n, d) of unit variance for standard normal z, and their derivatives."""
    level = (z / FAR).tanh()
    return level * (FAR / UNIT), (1 - level * level) / UNIT
