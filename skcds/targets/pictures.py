"""Densities of pictures."""

__all__ = ["ImageDensity", "picture_density"]


import numpy as np
import torch
from sklearn.datasets import load_sample_image
from torch import Tensor

from .._support.forks import random_state_of
from .base import Target, finite, like, not_negative, positive

PICTURES = ("flower", "china")  # that come with scikit-learn, 427 rows of 640 pixels
BLOCK = 6  # sides of the squares of pixels whose mean is a pixel of `picture_density`


def _sample_picture(name: str) -> np.ndarray:
    """A picture that comes with scikit-learn, grey and reduced to (71, 106) by the means of square blocks."""
    try:
        picture = load_sample_image(f"{name}.jpg").mean(2)
    except ImportError as error:
        raise ImportError(
            "scikit-learn's pictures are JPEG files, which Pillow reads: pip install pillow, or skcds[plot], which "
            "brings it; or give a picture as an array."
        ) from error
    rows, columns = (side // BLOCK for side in picture.shape)
    blocks = picture[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK)
    return blocks.mean((1, 3))


class ImageDensity(Target):
    """Density in the plane that is the brightness of a grey picture, upright; a normalised density.

    The pixels are the nodes of a grid of squares, and the density is bilinear on each: continuous, with a gradient that
    jumps from square to square. It is zero outside the rectangle whose corners are the picture's corner pixels. With a
    `floor` of 0 it is zero between black pixels, too. The energy is +inf there, with a gradient of zero.

    Source: "Image" of arXiv 2502.07579, with another picture.

    Parameters
    ----------
    picture : array-like of shape (n_rows, n_columns), optional
        Brightness, not negative, of at least 2 by 2 pixels; the first row is the top. By default the flower of
        `picture_density`, which needs Pillow.
    extent : float, default=4.0
        Half the width: the first coordinate grows from -extent to extent along a row. The second coordinate grows
        upwards, is centred too, and has the same scale.
    floor : float, default=0.01
        Share of the largest brightness that is added to every pixel. With one above 0 the log density is bounded in
        the rectangle, within log(1 + 1 / floor).

    Attributes
    ----------
    n_rows, n_columns : int
        Size of the picture.
    density : ndarray of shape (n_columns, n_rows)
        Density at the pixels, by the first coordinate and the second, both growing.

    Examples
    --------
    >>> import torch
    >>> target = ImageDensity([[0, 1, 0], [0, 1, 2]], extent=1.0, floor=0.0)
    >>> target
    ImageDensity(n_rows=2, n_columns=3, extent=1, floor=0)
    >>> x = torch.tensor([[1.0, -0.5], [0.0, 0.0], [-1.0, 0.0], [0.0, 0.6]])
    >>> target(x).exp()  # bottom right, middle, and twice outside
    tensor([0.7500, 1.5000,    inf,    inf])
    >>> target.sample(1000, random_state=0).shape
    (1000, 2)
    """

    n_features = 2
    _shown = ("n_rows", "n_columns", "extent", "floor")

    def __init__(self, picture=None, extent: float = 4.0, floor: float = 0.01):
        self.extent, self.floor = positive(extent, "extent"), not_negative(floor, "floor")
        picture = finite(_sample_picture("flower") if picture is None else picture, "picture", (None, None))
        self.n_rows, self.n_columns = picture.shape
        if min(picture.shape) < 2:
            raise ValueError(f"picture has to have at least 2 by 2 pixels; got shape {picture.shape}.")
        if picture.min() < 0:
            raise ValueError(f"picture must not have negative pixels; the smallest is {picture.min()}.")
        if picture.max() == 0:
            raise ValueError("picture has to have a pixel that is not black; all are 0.")
        brightness = picture[::-1].T / picture.max() + self.floor
        areas = self._areas()
        self.density = brightness / (brightness * areas).sum()

    @property
    def _last(self) -> np.ndarray:
        """Largest index of a pixel along each coordinate, (2,)."""
        return np.array([self.n_columns - 1.0, self.n_rows - 1.0])

    @property
    def _half(self) -> np.ndarray:
        """Half the width and half the height, (2,)."""
        return self.extent * (self._last / self._last[0])

    @property
    def _spacing(self) -> float:
        return 2 * self.extent / (self.n_columns - 1)

    def _areas(self) -> np.ndarray:
        """Integral of each pixel's share in the interpolant, (n_columns, n_rows): squares, halved at the edges."""
        across, up = np.ones(self.n_columns), np.ones(self.n_rows)
        across[[0, -1]] = up[[0, -1]] = 0.5
        return self._spacing**2 * np.outer(across, up)

    def _energy(self, x: Tensor) -> Tensor:
        last = like(self._last, x)
        inside = (x.abs() <= like(self._half, x)).all(1)
        position = x.masked_fill(~inside[:, None], 0.0) / self._spacing + 0.5 * last  # in pixels
        corner = torch.minimum(position.detach().floor().clamp(min=0.0), last - 1.0)
        value = self._interpolate(corner.long(), position - corner)
        inside = inside & (value > 0)
        return -value.masked_fill(~inside, 1.0).log().masked_fill(~inside, -torch.inf)

    def _interpolate(self, corner: Tensor, step: Tensor) -> Tensor:
        """Density (n,) at `step` (n, 2), in [0, 1], from the pixels of index `corner` (n, 2)."""
        (i, j), (u, v), density = corner.unbind(1), step.unbind(1), like(self.density, step)
        low = (1 - u) * density[i, j] + u * density[i + 1, j]
        high = (1 - u) * density[i, j + 1] + u * density[i + 1, j + 1]
        return (1 - v) * low + v * high

    def sample(self, n: int, random_state=None) -> np.ndarray:
        """Exact draws, (n, 2).

        A bilinear interpolant is a mixture of pyramids, products of triangular densities around each pixel; what would
        lie beyond the edge is reflected.
        """
        rng = random_state_of(random_state)
        masses = self.density * self._areas()
        pixel = np.stack(np.unravel_index(rng.choice(masses.size, size=n, p=masses.ravel()), masses.shape), 1)
        position = np.abs(pixel + rng.uniform(size=(n, 2)) - rng.uniform(size=(n, 2)))
        position = self._last - np.abs(self._last - position)
        return self._spacing * position - self._half


def picture_density(name: str = "flower") -> ImageDensity:
    """A picture that comes with scikit-learn, grey, of 71 by 106 pixels, as a density in the plane.

    Needs Pillow, which reads the file.

    Parameters
    ----------
    name : {"flower", "china"}, default="flower"
        A dahlia, bright on a dark ground; or a pavilion, dark before the sky.

    Returns
    -------
    ImageDensity
        With 2 features.

    Examples
    --------
    >>> picture_density("china")  # doctest: +SKIP
    ImageDensity(n_rows=71, n_columns=106, extent=4, floor=0.01)
    """
    if name not in PICTURES:
        raise ValueError(f"name has to be one of {list(PICTURES)}; got {name!r}.")
    return ImageDensity(_sample_picture(name))
