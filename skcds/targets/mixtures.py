"""Gaussians, mixtures of them, and the funnel."""

__all__ = ["Funnel", "Gaussian", "GaussianMixture", "gmm40", "gmm9"]

import math

import numpy as np
import torch
from sklearn.metrics import pairwise_distances_argmin
from torch import Tensor

from .._support.forks import random_state_of
from .base import LOG_2PI, Target, count, finite, like, positive

# 40 points uniform in [-40, 40]^2: numpy.random.default_rng(40).uniform(-40, 40, (40, 2)).round(2)
GMM40_MEANS = (
    (18.39, 15.47), (35.35, -35.23), (15.24, 33.79), (-1.95, -12.93), (8.15, 18.45), (-31.02, -31.31), (10.98, -36.61),
    (-36.18, -14.46), (-23.1, 22.1), (23.78, -26.26), (-28.8, -10.4), (2.37, 3.39), (-9.59, -5.47), (-11.15, -18.04),
    (9.66, -18.46), (-6.51, 1.01), (-15.69, -13.26), (-20.59, -18.87), (-21.82, -16.61), (16.38, -28.44), (9.52, -0.12),
    (-24.79, -13.8), (-13.5, -15.4), (-31.03, 4.98), (8.95, -26.97), (-35.72, -1.58), (-8.89, -29.22), (-31.86, 38.51),
    (24.05, 8.98), (-5.95, 34.71), (5.71, 7.8), (-17.97, 5.28), (12.69, 20.19), (15.88, 30.6), (-33.18, 34.04),
    (6.83, -14.85), (21.31, -30.17), (-28.74, 39.67), (25.63, 35.74), (-18.87, -5.78),
)  # fmt: skip


class GaussianMixture(Target):
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
        The weights. `modes` labels a point by its nearest mean. So these are the masses of the labels as far as the
        components do not overlap. (What two overlapping components of equal weight lose to each other cancels.)

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
        self.means = finite(means, "means", (None, None))
        self.n_components, self.n_features = self.means.shape
        self.sd = positive(sd, "sd")
        weights = np.ones(self.n_components) if weights is None else finite(weights, "weights", (self.n_components,))
        if weights.min() <= 0:
            raise ValueError(f"weights have to be positive; the smallest is {weights.min()}.")
        self.mode_masses = weights / weights.sum()

    def _energy(self, x: Tensor) -> Tensor:
        z = (x[:, None] - like(self.means, x)) / self.sd  # (n, n_components, d)
        log_parts = like(np.log(self.mode_masses), x) - 0.5 * z.square().sum(-1)
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


class Gaussian(Target):
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
        self.mean = finite(mean, "mean", (None,))
        self.n_features = len(self.mean)
        self.cov = finite(cov, "cov", (self.n_features, self.n_features))
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
        z = (x - like(self.mean, x)) @ like(self._whiten, x).T
        return 0.5 * z.square().sum(1) + self._log_norm

    def sample(self, n: int, random_state=None) -> np.ndarray:
        """Exact draws, (n, n_features)."""
        z = random_state_of(random_state).standard_normal((n, self.n_features))
        return self.mean + z @ self._cholesky().T


class Funnel(Target):
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
        self.n_features = count(n_features, "n_features", 2)

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
