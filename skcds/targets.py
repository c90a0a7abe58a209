"""Densities to judge samplers against, with what is known of them: log Z, exact draws, modes and their masses.

A target is a callable energy: ``target(x)`` maps a torch tensor of points (n, n_features) to ``-log rho(x)``, (n,), in
the dtype and on the device of `x`, differentiable by autograd. Arrays are held as NumPy, so that a target pickles and
targets that are built alike have equal ``joblib.hash``.

Every target has `n_features`, `log_evidence` (log Z, the log of the integral of rho) and `log_evidence_se` (its
standard error: 0 for closed forms and quadrature). Both are None where log Z is unknown. What a target does not have is
absent, so that ``hasattr`` tells:

- ``sample(n, random_state=None)``: exact independent draws, a float64 array (n, n_features);
- ``modes(X)``: the mode to which each row of an array (n, n_features) belongs, integers (n,); comes with
  `mode_masses`, the probability of each mode, (n_modes,).
"""

__all__ = [
    "BayesianLogisticRegression",
    "Funnel",
    "Gaussian",
    "GaussianMixture",
    "ImageDensity",
    "LogGaussianCoxProcess",
    "ManyWell",
    "ManyWellPairs",
    "breast_cancer",
    "gmm40",
    "gmm9",
    "mw52",
    "mw54",
    "picture_density",
]

import math
import numbers
import os
from functools import partial

import numpy as np
import torch
from scipy.integrate import cumulative_trapezoid
from scipy.spatial.distance import cdist
from sklearn.datasets import load_breast_cancer, load_sample_image
from sklearn.metrics import pairwise_distances_argmin
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils import check_X_y
from torch import Tensor
from torch.nn.functional import logsigmoid

from ._support.forks import random_state_of

LOG_2PI = math.log(2 * math.pi)
WELL_CUT = 7.0  # a double well is integrated where |v^2 - delta| < WELL_CUT: its density outside is below exp(-49)
WELL_NODES = 2**14  # quadrature nodes of each half line
MAX_LISTED_WELLS = 20  # 2^20 mode masses are 8 MB
PICTURES = ("flower", "china")  # that come with scikit-learn, 427 rows of 640 pixels
BLOCK = 6  # sides of the squares of pixels whose mean is a pixel of `picture_density`
PINES = 126  # points in the pattern that the constants of `LogGaussianCoxProcess` are from, expected in a synthetic one
PATTERN_SEED = 9  # of the synthetic pattern: the first seed that gives 126 points on 40 by 40 cells
SCALERS = {"zscore": StandardScaler, "scale": partial(StandardScaler, with_mean=False), None: FunctionTransformer}

# 40 points uniform in [-40, 40]^2: numpy.random.default_rng(40).uniform(-40, 40, (40, 2)).round(2)
GMM40_MEANS = (
    (18.39, 15.47), (35.35, -35.23), (15.24, 33.79), (-1.95, -12.93), (8.15, 18.45), (-31.02, -31.31), (10.98, -36.61),
    (-36.18, -14.46), (-23.1, 22.1), (23.78, -26.26), (-28.8, -10.4), (2.37, 3.39), (-9.59, -5.47), (-11.15, -18.04),
    (9.66, -18.46), (-6.51, 1.01), (-15.69, -13.26), (-20.59, -18.87), (-21.82, -16.61), (16.38, -28.44), (9.52, -0.12),
    (-24.79, -13.8), (-13.5, -15.4), (-31.03, 4.98), (8.95, -26.97), (-35.72, -1.58), (-8.89, -29.22), (-31.86, 38.51),
    (24.05, 8.98), (-5.95, 34.71), (5.71, 7.8), (-17.97, 5.28), (12.69, 20.19), (15.88, 30.6), (-33.18, 34.04),
    (6.83, -14.85), (21.31, -30.17), (-28.74, 39.67), (25.63, 35.74), (-18.87, -5.78),
)  # fmt: skip


def _positive(value, name: str) -> float:
    if not (isinstance(value, numbers.Real) and 0 < float(value) < math.inf):
        raise ValueError(f"{name} has to be a positive number; got {value!r}.")
    return float(value)


def _count(value, name: str, low: int = 1) -> int:
    if not isinstance(value, numbers.Integral) or value < low:
        raise ValueError(f"{name} has to be an integer of at least {low}; got {value!r}.")
    return int(value)


def _finite(value, name: str, shape: tuple) -> np.ndarray:
    """A new C-ordered float64 array; None in `shape` stands for any length."""
    array = np.array(value, dtype=np.float64, order="C")
    matches = array.ndim == len(shape) and all(b in (None, a) for a, b in zip(array.shape, shape, strict=True))
    if not matches or not array.size or not np.isfinite(array).all():
        wanted = "(" + ", ".join("any" if s is None else str(s) for s in shape) + ("," if len(shape) == 1 else "") + ")"
        raise ValueError(f"{name} has to be an array of finite numbers of shape {wanted}; got shape {array.shape}.")
    return array


def _not_negative(value, name: str) -> float:
    if not (isinstance(value, numbers.Real) and 0 <= float(value) < math.inf):
        raise ValueError(f"{name} has to be a number of at least 0; got {value!r}.")
    return float(value)


def _like(array: np.ndarray, x: Tensor) -> Tensor:
    return torch.tensor(array, dtype=x.dtype, device=x.device)


class _Target:
    """An energy with a repr and a checked argument."""

    n_features: int
    log_evidence: float | None = 0.0
    log_evidence_se: float | None = 0.0
    _shown: tuple = ("n_features",)  # the attributes in the repr

    def __call__(self, x: Tensor) -> Tensor:
        """Energies ``-log rho(x)``, (n,), of points (n, n_features)."""
        if not isinstance(x, Tensor):
            raise TypeError(f"{self} takes a torch tensor; got {type(x).__name__}: wrap it in torch.as_tensor.")
        self._check_shape(x)
        if not x.is_floating_point():
            raise ValueError(f"{self} takes points in floating point; got {x.dtype}.")
        return self._energy(x)

    def _energy(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def __repr__(self) -> str:
        values = (getattr(self, name) for name in self._shown)
        shown = (f"{value:.6g}" if isinstance(value, float) else repr(value) for value in values)
        return f"{type(self).__name__}({', '.join(map('='.join, zip(self._shown, shown, strict=True)))})"

    def _check_shape(self, x) -> None:
        if x.ndim != 2 or x.shape[1] != self.n_features:
            raise ValueError(f"{self} takes points of shape (n, {self.n_features}); got {tuple(x.shape)}.")

    def _points(self, X) -> np.ndarray:
        X = np.asarray(X, dtype=np.float64)
        self._check_shape(X)
        return X


class GaussianMixture(_Target):
    """Mixture of Gaussians that share one isotropic standard deviation; a normalised density.

    Parameters
    ----------
    means : array-like of shape (n_components, n_features)
        Centres.
    sd : float
        Standard deviation of every component in every direction.
    weights : array-like of shape (n_components,), optional
        Positive weights, which are normalised to sum to one. Equal by default.

    Attributes
    ----------
    mode_masses : ndarray of shape (n_components,)
        The weights. `modes` labels a point by its nearest mean, so that these are the masses of the labels as far as
        the components do not overlap. (Where two components of equal weight overlap, what they lose to each other
        cancels.)

    Examples
    --------
    >>> import torch
    >>> target = GaussianMixture([[-4.0], [4.0]], sd=1.0, weights=[1, 3])
    >>> target
    GaussianMixture(n_components=2, n_features=1, sd=1)
    >>> target(torch.tensor([[4.0]], dtype=torch.float64))  # -log(3/4) + log(2 pi)/2
    tensor([1.2066], dtype=torch.float64)
    >>> target.sample(1000, random_state=0).shape
    (1000, 1)
    >>> target.modes([[-3.0], [5.0]]), target.mode_masses
    (array([0, 1]), array([0.25, 0.75]))
    """

    _shown = ("n_components", "n_features", "sd")

    def __init__(self, means, sd, weights=None):
        self.means = _finite(means, "means", (None, None))
        self.n_components, self.n_features = self.means.shape
        self.sd = _positive(sd, "sd")
        weights = np.ones(self.n_components) if weights is None else _finite(weights, "weights", (self.n_components,))
        if weights.min() <= 0:
            raise ValueError(f"weights have to be positive; the smallest is {weights.min()}.")
        self.mode_masses = weights / weights.sum()

    def _energy(self, x: Tensor) -> Tensor:
        z = (x[:, None] - _like(self.means, x)) / self.sd  # (n, n_components, d)
        log_parts = _like(np.log(self.mode_masses), x) - 0.5 * z.square().sum(-1)
        return self.n_features * (math.log(self.sd) + 0.5 * LOG_2PI) - torch.logsumexp(log_parts, 1)

    def sample(self, n: int, random_state=None) -> np.ndarray:
        """Exact draws, (n, n_features)."""
        rng = random_state_of(random_state)
        component = rng.choice(self.n_components, size=n, p=self.mode_masses)
        return self.means[component] + self.sd * rng.standard_normal((n, self.n_features))

    def modes(self, X) -> np.ndarray:
        """Index of the mean nearest to each row of `X`, (n,)."""
        return pairwise_distances_argmin(self._points(X), self.means)


def gmm9() -> GaussianMixture:
    """Nine equal Gaussians on the grid {-5, 0, 5}^2, variance 0.3: "GMM" of arXiv 2502.07579.

    The first coordinate changes slowest in the order of the modes.

    Returns
    -------
    GaussianMixture
        With 2 features.

    Examples
    --------
    >>> gmm9().means[:4].tolist()
    [[-5.0, -5.0], [-5.0, 0.0], [-5.0, 5.0], [0.0, -5.0]]
    """
    side = np.array([-5.0, 0.0, 5.0])
    return GaussianMixture(np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(9, 2), math.sqrt(0.3))


def gmm40() -> GaussianMixture:
    """Forty equal Gaussians with means uniform in [-40, 40]^2 and standard deviation softplus(1) = 1.3133.

    After Midgley et al., "Flow annealed importance sampling bootstrap" (arXiv 2208.01893), with means of its own:
    those of ``GMM40_MEANS``. The two nearest are 2.57 apart; the nearest-mean labels of `modes` have masses within
    0.11 % of 1/40 (by quadrature).

    Returns
    -------
    GaussianMixture
        With 2 features.

    Examples
    --------
    >>> gmm40()
    GaussianMixture(n_components=40, n_features=2, sd=1.31326)
    """
    return GaussianMixture(GMM40_MEANS, math.log1p(math.e))


class Gaussian(_Target):
    """Normal distribution; a normalised density.

    Parameters
    ----------
    mean : array-like of shape (n_features,)
        Mean.
    cov : array-like of shape (n_features, n_features)
        Covariance: symmetric and positive definite.

    Examples
    --------
    >>> import torch
    >>> target = Gaussian([1.0, 0.0], [[2.0, 1.0], [1.0, 2.0]])
    >>> target(torch.tensor([[1.0, 0.0]]))  # log(2 pi) + log(3)/2
    tensor([2.3872])
    """

    def __init__(self, mean, cov):
        self.mean = _finite(mean, "mean", (None,))
        self.n_features = len(self.mean)
        self.cov = _finite(cov, "cov", (self.n_features, self.n_features))
        self._whiten = np.linalg.inv(self._cholesky())  # (d, d), z = whiten (x - mean)
        self._log_norm = 0.5 * self.n_features * LOG_2PI - math.fsum(np.log(np.diag(self._whiten)))

    def _cholesky(self) -> np.ndarray:
        if not np.allclose(self.cov, self.cov.T):
            raise ValueError("cov has to be symmetric; it differs from its transpose.")
        try:
            return np.linalg.cholesky(self.cov)
        except np.linalg.LinAlgError as error:
            raise ValueError("cov has to be positive definite; its Cholesky factorisation failed.") from error

    def _energy(self, x: Tensor) -> Tensor:
        z = (x - _like(self.mean, x)) @ _like(self._whiten, x).T
        return 0.5 * z.square().sum(1) + self._log_norm

    def sample(self, n: int, random_state=None) -> np.ndarray:
        """Exact draws, (n, n_features)."""
        z = random_state_of(random_state).standard_normal((n, self.n_features))
        return self.mean + z @ self._cholesky().T


class Funnel(_Target):
    """Neal's funnel: x_0 ~ N(0, 3^2) and, given x_0, the others independent N(0, exp(x_0)); a normalised density.

    Source: R. M. Neal, "Slice sampling", Annals of Statistics 31(3), 2003, section 8.

    Parameters
    ----------
    n_features : int, default=10
        Dimension, at least 2.

    Examples
    --------
    >>> import torch
    >>> Funnel()(torch.zeros(1, 10))  # 5 log(2 pi) + log(3)
    tensor([10.2880])
    """

    NECK_SD = 3.0

    def __init__(self, n_features: int = 10):
        self.n_features = _count(n_features, "n_features", 2)

    def _energy(self, x: Tensor) -> Tensor:
        neck, others = x[:, 0], x[:, 1:]
        z = others * torch.exp(-0.5 * neck)[:, None]
        log_scales = math.log(self.NECK_SD) + 0.5 * (self.n_features - 1) * neck
        return 0.5 * ((neck / self.NECK_SD).square() + z.square().sum(1) + self.n_features * LOG_2PI) + log_scales

    def sample(self, n: int, random_state=None) -> np.ndarray:
        """Exact draws, (n, n_features)."""
        X = random_state_of(random_state).standard_normal((n, self.n_features))
        X[:, 0] *= self.NECK_SD
        X[:, 1:] *= np.exp(0.5 * X[:, :1])
        return X


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


class ImageDensity(_Target):
    """Density in the plane that is the brightness of a grey picture, upright; a normalised density.

    The pixels are the nodes of a grid of squares, on which the density is bilinear: continuous, with a gradient that
    jumps from square to square. It is zero, and the energy +inf with a gradient of zero, outside the rectangle whose
    corners are the picture's corner pixels, and where all pixels around are black and `floor` is 0.

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
        self.extent, self.floor = _positive(extent, "extent"), _not_negative(floor, "floor")
        picture = _finite(_sample_picture("flower") if picture is None else picture, "picture", (None, None))
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
        last = _like(self._last, x)
        inside = (x.abs() <= _like(self._half, x)).all(1)
        position = x.masked_fill(~inside[:, None], 0.0) / self._spacing + 0.5 * last  # in pixels
        corner = torch.minimum(position.detach().floor().clamp(min=0.0), last - 1.0)
        value = self._interpolate(corner.long(), position - corner)
        inside = inside & (value > 0)
        return -value.masked_fill(~inside, 1.0).log().masked_fill(~inside, -torch.inf)

    def _interpolate(self, corner: Tensor, step: Tensor) -> Tensor:
        """Density (n,) at `step` (n, 2), in [0, 1], from the pixels of index `corner` (n, 2)."""
        (i, j), (u, v), density = corner.unbind(1), step.unbind(1), _like(self.density, step)
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


def _double_well(delta: float, tilt: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes v and the integral of exp(tilt v - (v^2 - delta)^2) up to each, (2 WELL_NODES,).

    The trapezoidal rule gives the total to rounding: the integrand is smooth and falls to zero at both ends.
    """
    half = np.linspace(math.sqrt(max(delta - WELL_CUT, 0.0)), math.sqrt(delta + WELL_CUT), WELL_NODES)
    v = np.concatenate([-half[::-1], half])
    density = np.exp(tilt * v - (v**2 - delta) ** 2)
    return v, cumulative_trapezoid(density, v, initial=0.0)


class _DoubleWells(_Target):
    """Independent double wells (v^2 - delta)^2 - tilt v - offset and standard normal coordinates."""

    tilt = offset = 0.0

    def __init__(self, n_features: int, n_wells: int, delta: float):
        self.n_features, self.n_wells, self.delta = n_features, n_wells, delta
        v, cdf = _double_well(self.delta, self.tilt)
        left = np.interp(0.0, v, cdf) / cdf[-1]
        self.well_masses = np.array([left, 1.0 - left])
        log_well = math.log(cdf[-1]) + self.offset
        self.log_evidence = self.n_wells * log_well + 0.5 * (self.n_features - self.n_wells) * LOG_2PI

    def _split(self, x):
        """Views of the well coordinates and of the others, of a tensor or an array (n, n_features)."""
        raise NotImplementedError

    def _energy(self, x: Tensor) -> Tensor:
        wells, others = self._split(x)
        well_energy = (wells.square() - self.delta).square() - self.tilt * wells - self.offset
        return well_energy.sum(1) + 0.5 * others.square().sum(1)

    def sample(self, n: int, random_state=None) -> np.ndarray:
        """Draws by inverse CDF, (n, n_features), exact to 1e-7 in the distribution function of every coordinate."""
        rng = random_state_of(random_state)
        X = rng.standard_normal((n, self.n_features))
        wells, _ = self._split(X)  # a view
        wells[...] = self._well_quantiles(rng.uniform(size=wells.shape))
        return X

    def _well_quantiles(self, u: np.ndarray) -> np.ndarray:
        v, cdf = _double_well(self.delta, self.tilt)
        return np.interp(u * cdf[-1], cdf, v)

    def modes(self, X) -> np.ndarray:
        """Label of each row of `X`, (n,): its bit i tells whether the i-th well coordinate is positive."""
        wells, _ = self._split(self._points(X))
        return (wells > 0) @ (1 << np.arange(self.n_wells, dtype=np.int64))

    @property
    def mode_masses(self) -> np.ndarray:
        """Probability of each label of `modes`, (2^n_wells,)."""
        if self.n_wells > MAX_LISTED_WELLS:
            raise ValueError(
                f"{self} has 2^{self.n_wells} modes, too many to list (at most 2^{MAX_LISTED_WELLS}); "
                "the mass of each is a product of well_masses."
            )
        masses = np.ones(1)
        for _ in range(self.n_wells):
            masses = np.outer(self.well_masses, masses).ravel()
        return masses


class ManyWell(_DoubleWells):
    """Product of double wells and normals: energy sum_{i <= m} (x_i^2 - delta)^2 + 0.5 sum_{i > m} x_i^2.

    Source: "MW" of arXiv 2502.07579; log Z by quadrature in one dimension.

    Parameters
    ----------
    n_features : int
        Dimension d.
    n_wells : int
        Number m of double wells, the first coordinates, at most 62: there are 2^m modes of equal mass.
    delta : float
        The wells are at +-sqrt(delta), with a barrier of delta^2 nats.

    Attributes
    ----------
    well_masses : ndarray of shape (2,)
        Probability that a well coordinate is negative, and positive.
    mode_masses : ndarray of shape (2^n_wells,)
        Probability of each mode; for up to 20 wells.

    Examples
    --------
    >>> import torch
    >>> target = ManyWell(n_features=3, n_wells=2, delta=4.0)
    >>> target(torch.tensor([[2.0, -2.0, 0.0], [1.0, -2.0, 2.0]]))
    tensor([ 0., 11.])
    >>> target.modes([[2.0, -2.0, 0.0], [1.0, 2.0, 2.0]]), target.mode_masses
    (array([1, 3]), array([0.25, 0.25, 0.25, 0.25]))
    """

    _shown = ("n_features", "n_wells", "delta")

    def __init__(self, n_features: int, n_wells: int, delta: float):
        n_features, n_wells = _count(n_features, "n_features"), _count(n_wells, "n_wells")
        if n_wells > min(n_features, 62):
            raise ValueError(f"n_wells has to be at most n_features = {n_features} and at most 62; got {n_wells}.")
        super().__init__(n_features, n_wells, _positive(delta, "delta"))

    def _split(self, x):
        return x[:, : self.n_wells], x[:, self.n_wells :]


def mw54() -> ManyWell:
    """Five double wells with delta = 4, in 5 dimensions, 32 modes: "MW54" of arXiv 2502.07579; log Z = -0.54106.

    Returns
    -------
    ManyWell
        With 5 features.

    Examples
    --------
    >>> round(mw54().log_evidence, 5)
    -0.54106
    """
    return ManyWell(n_features=5, n_wells=5, delta=4.0)


def mw52() -> ManyWell:
    """Five double wells with delta = 2 and 45 normals, in 50 dimensions: "MW52" of arXiv 2502.07579; log Z = 42.81724.

    Returns
    -------
    ManyWell
        With 50 features.

    Examples
    --------
    >>> round(mw52().log_evidence, 5)
    42.81724
    """
    return ManyWell(n_features=50, n_wells=5, delta=2.0)


class ManyWellPairs(_DoubleWells):
    """Product of tilted double wells in the plane, of energy v1^4 - 6 v1^2 - v1/2 + v2^2/2 for each pair (v1, v2).

    The pairs are neighbouring coordinates: v1 at even indices, v2 at odd ones. With 16 pairs this is "MW32" of Midgley
    et al. (arXiv 2208.01893), with 65 536 modes of unequal mass and log Z = 164.69568.

    Parameters
    ----------
    n_pairs : int, default=16
        Number of pairs, at most 62; the dimension is twice that.

    Attributes
    ----------
    well_masses : ndarray of shape (2,)
        Probability that v1 is negative, and positive.
    mode_masses : ndarray of shape (2^n_pairs,)
        Probability of each mode; for up to 20 pairs.

    Examples
    --------
    >>> target = ManyWellPairs()
    >>> target, round(target.log_evidence, 5), target.well_masses.round(3)
    (ManyWellPairs(n_pairs=16), 164.69568, array([0.156, 0.844]))
    """

    tilt, offset = 0.5, 9.0  # v^4 - 6 v^2 - v/2 = (v^2 - 3)^2 - v/2 - 9
    _shown = ("n_pairs",)

    def __init__(self, n_pairs: int = 16):
        self.n_pairs = _count(n_pairs, "n_pairs")
        if n_pairs > 62:
            raise ValueError(f"n_pairs has to be at most 62; got {n_pairs}.")
        super().__init__(2 * self.n_pairs, self.n_pairs, 3.0)

    def _split(self, x):
        return x[:, 0::2], x[:, 1::2]


class BayesianLogisticRegression(_Target):
    """Posterior of the weights w of a logistic regression with the prior N(0, prior_sd^2) on each of them.

    The energy is ``-sum_i log sigmoid(s_i w . x_i) - log N(w; 0, prior_sd^2 I)`` with s_i = 1 for the larger label and
    -1 for the smaller one. The prior is normalised, so that Z is the marginal likelihood of the labels.

    Parameters
    ----------
    X : array-like of shape (n_rows, n_columns)
        Data.
    y : array-like of shape (n_rows,)
        Labels of exactly two classes.
    prior_sd : float, default=1.0
        Standard deviation of the prior of every weight, the intercept included. Without a prior the posterior would be
        improper where the classes are linearly separable.
    standardize : {"zscore", "scale", None}, default="zscore"
        Centre the columns of `X` and divide them by their standard deviations, or only divide, or neither. Constant
        columns are not divided.
    intercept : bool, default=True
        Put a column of ones in front: w[0] is then the intercept.

    Attributes
    ----------
    design : ndarray of shape (n_rows, n_features)
        The standardised data, with the column of ones.
    signs : ndarray of shape (n_rows,)
        Labels as -1 and 1.
    log_evidence, log_evidence_se : float or None
        None: not known in closed form. Assign them where you have computed them.

    Examples
    --------
    >>> import torch
    >>> target = BayesianLogisticRegression([[1.0], [2.0], [3.0], [4.0]], [0, 1, 0, 1])
    >>> target
    BayesianLogisticRegression(n_rows=4, n_features=2, prior_sd=1, standardize='zscore')
    >>> target(torch.zeros(1, 2))  # 4 log(2) + log(2 pi)
    tensor([4.6105])
    """

    log_evidence = log_evidence_se = None
    _shown = ("n_rows", "n_features", "prior_sd", "standardize")

    def __init__(self, X, y, prior_sd: float = 1.0, standardize: str | None = "zscore", intercept: bool = True):
        if standardize not in SCALERS:
            raise ValueError(f"standardize has to be one of {list(SCALERS)}; got {standardize!r}.")
        X, y = check_X_y(X, y, dtype=np.float64, order="C")
        self.prior_sd, self.standardize, self.intercept = _positive(prior_sd, "prior_sd"), standardize, bool(intercept)
        X = SCALERS[standardize]().fit_transform(X)
        columns = [np.ones((len(X), 1)), X] if intercept else [X]
        self.design = np.ascontiguousarray(np.hstack(columns))
        self.n_rows, self.n_features = self.design.shape
        self.signs = self._signs(y)

    @staticmethod
    def _signs(y: np.ndarray) -> np.ndarray:
        classes, index = np.unique(y, return_inverse=True)
        if len(classes) != 2:
            shown = ", ".join(map(str, classes[:5])) + (", ..." if len(classes) > 5 else "")
            raise ValueError(f"y has to have exactly two classes; got {len(classes)}: {shown}.")
        return 2.0 * index - 1.0

    def _energy(self, x: Tensor) -> Tensor:
        margins = _like(self.signs, x) * (x @ _like(self.design, x).T)  # (n, n_rows)
        misfit = -logsigmoid(margins).sum(1)
        log_norm = self.n_features * (math.log(self.prior_sd) + 0.5 * LOG_2PI)
        return misfit + 0.5 * (x / self.prior_sd).square().sum(1) + log_norm


def breast_cancer(prior_sd: float = 1.0) -> BayesianLogisticRegression:
    """Logistic regression of scikit-learn's breast cancer data: 569 rows, 30 z-scored columns and an intercept.

    The classes are linearly separable, so the prior matters; log Z is not known.

    Parameters
    ----------
    prior_sd : float, default=1.0
        Standard deviation of the prior of every weight.

    Returns
    -------
    BayesianLogisticRegression
        With 31 features.

    Examples
    --------
    >>> breast_cancer()
    BayesianLogisticRegression(n_rows=569, n_features=31, prior_sd=1, standardize='zscore')
    """
    X, y = load_breast_cancer(return_X_y=True)
    return BayesianLogisticRegression(X, y, prior_sd=prior_sd)


def _read_points(path) -> np.ndarray:
    """The last two columns of a CSV file, (n, 2), below an optional line of names."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"points has to be an array or the path of a CSV file; there is no file {str(path)!r}.")
    columns = np.genfromtxt(path, delimiter=",", ndmin=2, encoding="utf-8")[:, -2:]
    return columns[1:] if np.isnan(columns[:1]).all() else columns


def _unit_square(points) -> np.ndarray:
    """Points (n, 2) from an array or a file, checked."""
    points = _finite(_read_points(points) if isinstance(points, str | os.PathLike) else points, "points", (None, 2))
    if points.min() < 0 or points.max() > 1:
        low, high = points.min(), points.max()
        raise ValueError(f"points have to lie in the unit square; their coordinates go from {low:.6g} to {high:.6g}.")
    return points


class LogGaussianCoxProcess(_Target):
    """Posterior of the log intensity of points in the unit square, on a grid of cells, under a Gaussian process.

    The energy is ``-log N(x; mean, K) - sum_i (x_i y_i - exp(x_i) / M^2)`` for the M^2 cells of a grid, with y_i points
    in the i-th. The prior is normalised and the Poisson likelihood is without the log y_i!, as in the literature.
    Covariances are K_ij = variance exp(-r_ij / length_scale), with r_ij the distance of the centres of two cells;
    the mean, log(n_points) - variance / 2, makes the expected number of points that of the pattern.

    Source: J. Moller, A. R. Syversveen and R. P. Waagepetersen, "Log Gaussian Cox processes", Scandinavian Journal of
    Statistics 25(3), 1998, where the 126 points are pines in Finland; with the constants of arXiv 2102.07501, this is
    "LGCP" of arXiv 2502.07579. The points are not shipped with this package. With them and by default log Z is 501.66,
    by annealed importance sampling from the Laplace approximation, with a standard error of 0.06.

    Parameters
    ----------
    points : array-like of shape (n_points, 2) or path, optional
        The pattern, or a CSV file that has it in its last two columns. By default a synthetic pattern, always the same:
        drawn from the model itself, with 126 points expected (and 126 by default).
    n_grid : int, default=40
        Cells M along each side. An M^2 by M^2 matrix is held for every precision in which energies are asked for.
    variance : float, default=1.91
        Of the log intensity.
    length_scale : float, default=1/33
        Distance, in sides of the square, at which the correlation has fallen to 1/e.
    whitened : bool, default=False
        Take standard normal coordinates z in place of the log intensity x = mean + L z, with K = L L' (Cholesky). The
        Jacobian is included: log Z is the same.

    Attributes
    ----------
    points : ndarray of shape (n_points, 2)
        The pattern.
    counts : ndarray of shape (n_grid, n_grid)
        Points in each cell, by the first coordinate and the second; the features are in that order, row by row.
    mean : float
        Of the log intensity.
    log_evidence, log_evidence_se : float or None
        None: not known in closed form. Assign them where you have computed them.

    Examples
    --------
    >>> import torch
    >>> target = LogGaussianCoxProcess([[0.1, 0.2], [0.1, 0.9], [0.3, 0.7]], n_grid=2)
    >>> target
    LogGaussianCoxProcess(n_points=3, n_grid=2, variance=1.91, length_scale=0.030303, whitened=False)
    >>> target.counts
    array([[1., 2.],
           [0., 0.]])
    >>> x = torch.full((1, 4), target.mean)
    >>> target(x)  # 2 log(2 pi 1.91) + 3 exp(-1.91 / 2) - 3 mean
    tensor([5.6936])
    """

    log_evidence = log_evidence_se = None
    _shown = ("n_points", "n_grid", "variance", "length_scale", "whitened")

    def __init__(
        self,
        points=None,
        n_grid: int = 40,
        variance: float = 1.91,
        length_scale: float = 1 / 33,
        whitened: bool = False,
    ):
        self.n_grid, self.whitened = _count(n_grid, "n_grid"), bool(whitened)
        self.variance, self.length_scale = _positive(variance, "variance"), _positive(length_scale, "length_scale")
        self.n_features = self.n_grid**2
        self._roots: dict = {}  # Cholesky factors as tensors, by dtype and device
        root = self._cholesky()
        self.points = _unit_square(self._pattern(root) if points is None else points)
        self.n_points = len(self.points)
        self.mean = self._mean(self.n_points)
        counts, _ = np.histogramdd(self.points, bins=(self.n_grid, self.n_grid), range=[(0, 1), (0, 1)])
        self.counts = np.ascontiguousarray(counts)
        log_det = 0.0 if self.whitened else math.fsum(np.log(np.diag(root)))
        self._log_norm = 0.5 * self.n_features * LOG_2PI + log_det

    def __getstate__(self) -> dict:
        """All but the matrices, which are derived: pickles and hashes do not depend on what was evaluated."""
        return {**self.__dict__, "_roots": {}}

    def _mean(self, n_points: int) -> float:
        return math.log(n_points) - 0.5 * self.variance

    def _cholesky(self) -> np.ndarray:
        """L of the prior's covariance K = L L', (n_features, n_features)."""
        cells = np.stack(np.divmod(np.arange(self.n_features), self.n_grid), 1) / self.n_grid
        try:
            return np.linalg.cholesky(self.variance * np.exp(-cdist(cells, cells) / self.length_scale))
        except np.linalg.LinAlgError as error:
            raise ValueError(
                f"length_scale = {self.length_scale:.6g} is too long for a grid of {self.n_grid} by {self.n_grid}: the "
                "Cholesky factorisation of the prior's covariance failed."
            ) from error

    def _pattern(self, root: np.ndarray) -> np.ndarray:
        """Points (n, 2) drawn from the model."""
        rng = random_state_of(PATTERN_SEED)
        field = self._mean(PINES) + root @ rng.standard_normal(self.n_features)
        cells = np.repeat(np.arange(self.n_features), rng.poisson(np.exp(field) / self.n_features))
        corners = np.stack(np.divmod(cells, self.n_grid), 1)
        return (corners + rng.uniform(size=corners.shape)) / self.n_grid

    def _root(self, x: Tensor) -> Tensor:
        """`_cholesky` in the dtype and on the device of `x`."""
        key = x.dtype, x.device
        if key not in self._roots:
            with torch.inference_mode(False):  # or autograd could not use it later
                self._roots[key] = _like(self._cholesky(), x)
        return self._roots[key]

    def _energy(self, x: Tensor) -> Tensor:
        upper = self._root(x).T
        if self.whitened:
            noise, field = x, self.mean + x @ upper
        else:
            noise, field = torch.linalg.solve_triangular(upper, x - self.mean, upper=True, left=False), x
        expected_points = field.exp().sum(1) / self.n_features
        log_prior = -0.5 * noise.square().sum(1) - self._log_norm
        return expected_points - field @ _like(self.counts.ravel(), x) - log_prior

    def log_intensity(self, X) -> np.ndarray:
        """Log intensity of the cells, (n, n_grid, n_grid), at each row of `X`."""
        X = self._points(X)
        field = self.mean + X @ self._cholesky().T if self.whitened else X
        return field.reshape(-1, self.n_grid, self.n_grid)
