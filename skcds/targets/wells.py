"""Products of double wells."""

__all__ = ["ManyWell", "ManyWellPairs", "mw52", "mw54"]

import math

import numpy as np
from scipy.integrate import cumulative_trapezoid
from torch import Tensor

from .._support.forks import random_state_of
from .base import LOG_2PI, Target, count, positive

WELL_CUT = 7.0  # a double well is integrated where |v^2 - delta| < WELL_CUT: its density outside is below exp(-49)
WELL_NODES = 2**14  # quadrature nodes of each half line
MAX_LABELLED_WELLS = 62  # that one integer tells the sides of
MAX_LISTED_WELLS = 20  # 2^20 mode masses are 8 MB


def _double_well(delta: float, tilt: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes v and the integral of exp(tilt v - (v^2 - delta)^2) up to each, (2 WELL_NODES,).

    The trapezoidal rule gives the total to rounding: the integrand is smooth and falls to zero at both ends.
    """
    half = np.linspace(math.sqrt(max(delta - WELL_CUT, 0.0)), math.sqrt(delta + WELL_CUT), WELL_NODES)
    v = np.concatenate([-half[::-1], half])
    density = np.exp(tilt * v - (v**2 - delta) ** 2)
    return v, cumulative_trapezoid(density, v, initial=0.0)


class _DoubleWells(Target):
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

    def sides(self, X) -> np.ndarray:
        """Whether each well coordinate is positive, (n, n_wells), at each row of `X`."""
        return self._split(self._points(X))[0] > 0

    def modes(self, X) -> np.ndarray:
        """Label of each row of `X`, (n,): its bit i tells whether the i-th well coordinate is positive."""
        if self.n_wells > MAX_LABELLED_WELLS:
            raise ValueError(
                f"{self} has 2^{self.n_wells} modes, too many for integers (at most 2^{MAX_LABELLED_WELLS}); "
                "the mass of each is a product of well_masses."
            )
        return self.sides(X) @ (1 << np.arange(self.n_wells, dtype=np.int64))

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
        n_features, n_wells = count(n_features, "n_features"), count(n_wells, "n_wells")
        if n_wells > min(n_features, 62):
            raise ValueError(f"n_wells has to be at most n_features = {n_features} and at most 62; got {n_wells}.")
        super().__init__(n_features, n_wells, positive(delta, "delta"))

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
        Number of pairs; the dimension is twice that. With 32 pairs log Z is 329.39135, with 64 it is 658.7827.

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
        self.n_pairs = count(n_pairs, "n_pairs")
        super().__init__(2 * self.n_pairs, self.n_pairs, 3.0)

    def _split(self, x):
        return x[:, 0::2], x[:, 1::2]
