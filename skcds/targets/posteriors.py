"""Posterior densities."""

__all__ = ["BayesianLogisticRegression", "LogGaussianCoxProcess", "breast_cancer"]

import math
import os
from functools import partial

import numpy as np
import torch
from scipy.spatial.distance import cdist
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils import check_X_y
from torch import Tensor
from torch.nn.functional import logsigmoid

from .._support.forks import random_state_of
from .base import LOG_2PI, Target, count, finite, like, positive

PINES = 126  # points in the pattern that the constants of `LogGaussianCoxProcess` are from, expected in a synthetic one
PATTERN_SEED = 9  # of the synthetic pattern: the first seed that gives 126 points on 40 by 40 cells
SCALERS = {"zscore": StandardScaler, "scale": partial(StandardScaler, with_mean=False), None: FunctionTransformer}


class BayesianLogisticRegression(Target):
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
        improper if the classes are linearly separable.
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
        self.prior_sd, self.standardize, self.intercept = positive(prior_sd, "prior_sd"), standardize, bool(intercept)
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
        margins = like(self.signs, x) * (x @ like(self.design, x).T)  # (n, n_rows)
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
    points = finite(_read_points(points) if isinstance(points, str | os.PathLike) else points, "points", (None, 2))
    if points.min() < 0 or points.max() > 1:
        low, high = points.min(), points.max()
        raise ValueError(f"points have to lie in the unit square; their coordinates go from {low:.6g} to {high:.6g}.")
    return points


class LogGaussianCoxProcess(Target):
    """Posterior of the log intensity of points in the unit square, on a grid of cells, under a Gaussian process.

    The energy is ``-log N(x; mean, K) - sum_i (x_i y_i - exp(x_i) / M^2)`` for the M^2 cells of a grid, with y_i points
    in the i-th. The prior is normalised. The Poisson likelihood is without the log y_i!, as in the literature.
    Covariances are K_ij = variance exp(-r_ij / length_scale), with r_ij the distance of the centres of two cells. The
    mean is log(n_points) - variance / 2, which makes the expected number of points that of the pattern.

    Source: J. Moller, A. R. Syversveen and R. P. Waagepetersen, "Log Gaussian Cox processes", Scandinavian Journal of
    Statistics 25(3), 1998. Its 126 points are pines in Finland. With the constants of arXiv 2102.07501, this is "LGCP"
    of arXiv 2502.07579. The points are not shipped with this package. With them and by default log Z is 501.66, with a
    standard error of 0.06, by annealed importance sampling from the Laplace approximation.

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
        self.n_grid, self.whitened = count(n_grid, "n_grid"), bool(whitened)
        self.variance, self.length_scale = positive(variance, "variance"), positive(length_scale, "length_scale")
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
                self._roots[key] = like(self._cholesky(), x)
        return self._roots[key]

    def _energy(self, x: Tensor) -> Tensor:
        upper = self._root(x).T
        if self.whitened:
            noise, field = x, self.mean + x @ upper
        else:
            noise, field = torch.linalg.solve_triangular(upper, x - self.mean, upper=True, left=False), x
        expected_points = field.exp().sum(1) / self.n_features
        log_prior = -0.5 * noise.square().sum(1) - self._log_norm
        return expected_points - field @ like(self.counts.ravel(), x) - log_prior

    def log_intensity(self, X) -> np.ndarray:
        """Log intensity of the cells, (n, n_grid, n_grid), at each row of `X`."""
        X = self._points(X)
        field = self.mean + X @ self._cholesky().T if self.whitened else X
        return field.reshape(-1, self.n_grid, self.n_grid)
