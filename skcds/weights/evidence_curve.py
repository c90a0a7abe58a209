"""Log Z of a family as a smooth function of the context, by regression on estimates that have known errors."""

__all__ = ["EvidenceCurve", "evidence_curve"]

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import minimize
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, Matern, WhiteKernel

from ..density.contexts import one_or_many

FLAT = 1e2  # prior variance of the linear part's coefficients, in units of the estimates' spread
FEWEST = 30  # contexts for a curve; of 30, errors of new ones were up to twice as large as said, of 100 as said
MOST_FOR_KERNEL = 300  # contexts that the kernel is learned from: a likelihood of it takes their number cubed
N_RESTARTS = 2  # of the search for the kernel (unmeasured)
SMALLEST_SE = 1e-6  # of an estimate, in units of their spread; against rounding


@dataclass(frozen=True, eq=False, repr=False)
class EvidenceCurve:
    """Log Z(c) at any context, with its standard error; made by `Calibration.evidence_curve`.

    A Gaussian process regression (Rasmussen & Williams 2006): a quadratic, a smooth function (Matérn, 5/2) and a rough
    one, with variances that maximise the likelihood. The noise of each estimate is its own standard error. The standard
    error of the curve tells of that noise and of the distance to other contexts, if log Z(c) is about as smooth
    everywhere as where it was estimated. From a hundred contexts it was right for closed forms; from 30 it was up to
    two times too small.

    Attributes
    ----------
    contexts : ndarray of shape (m, n_contexts)
        Contexts whose estimates were used.
    context_names : ndarray of str
        Names of the numbers of a context.
    log_evidence, log_evidence_se : ndarray of shape (m,)
        Estimates of log Z(c), and their standard errors.
    residuals : ndarray of shape (m,)
        Each estimate less what the others predict there, in standard deviations. They are standard normal where
        everything fits. One beyond 5 says that the sampler misses mass at this context, or that log Z has a step.
    """

    contexts: np.ndarray
    context_names: np.ndarray
    log_evidence: np.ndarray
    log_evidence_se: np.ndarray
    residuals: np.ndarray
    _process: Any = field(default=None)
    _scale: tuple = ()  # mean and spread of contexts, and of estimates

    def predict(self, context):
        """Log Z at contexts.

        Parameters
        ----------
        context : array-like of shape (n_contexts,) or (m, n_contexts), mapping, or data frame
            One context or many. Far from those of the curve the standard error is large.

        Returns
        -------
        log_evidence : float or ndarray of shape (m,)
            Log Z.
        standard_error : float or ndarray of shape (m,)
            Its standard error.
        """
        rows, many = one_or_many(context, self.contexts.shape[1], self.context_names)
        center, spread, mean, scale = self._scale
        value, error = self._process.predict((rows - center) / spread, return_std=True)
        value, error = mean + scale * value, scale * error
        return (value, error) if many else (float(value[0]), float(error[0]))

    def __repr__(self) -> str:
        return (
            f"EvidenceCurve({len(self.contexts)} contexts, log Z from {self.log_evidence.min():.4g} to "
            f"{self.log_evidence.max():.4g}, largest residual {np.abs(self.residuals).max():.2g})"
        )


def evidence_curve(
    contexts: np.ndarray, context_names, log_evidence: np.ndarray, log_evidence_se: np.ndarray
) -> EvidenceCurve:
    """Regress estimates (m,) of log Z, with standard errors (m,), on contexts (m, k).

    Raises
    ------
    ValueError
        When there are fewer than 30.
    """
    if len(contexts) < FEWEST:
        raise ValueError(
            f"A curve of log Z needs reliable estimates at {FEWEST} contexts at least; got {len(contexts)}. Calibrate "
            "at more contexts, with more draws each, or fit for longer."
        )
    center, spread = contexts.mean(0), contexts.std(0)
    spread = np.where(spread > 0, spread, 1.0)
    mean, scale = float(log_evidence.mean()), float(log_evidence.std()) or 1.0
    z, y = (contexts - center) / spread, (log_evidence - mean) / scale
    errors = np.maximum(log_evidence_se / scale, SMALLEST_SE)
    process = GaussianProcessRegressor(_kernel(z, y, errors), alpha=errors**2, optimizer=None).fit(z, y)
    return EvidenceCurve(
        contexts, np.asarray(context_names), log_evidence, log_evidence_se, _left_out(process, y),
        process, (center, spread, mean, scale),
    )  # fmt: skip


def _kernel(z: np.ndarray, y: np.ndarray, errors: np.ndarray):
    """The kernel of the largest likelihood: polynomials of degree two, a smooth function, and what is neither."""
    rows = np.random.default_rng(0).permutation(len(z))[:MOST_FOR_KERNEL]
    linear = ConstantKernel(FLAT, "fixed") * DotProduct(1.0, "fixed")
    quadratic = ConstantKernel(0.1, (1e-8, 1e5)) * DotProduct(1.0, "fixed") ** 2
    smooth = ConstantKernel(0.1, (1e-8, 1e5)) * Matern(np.full(z.shape[1], 2.0), (0.05, 1e3), nu=2.5)
    kernel = linear + quadratic + smooth + WhiteKernel(1e-6, (1e-12, 1e2))
    process = GaussianProcessRegressor(kernel, alpha=errors[rows] ** 2, optimizer=None).fit(z[rows], y[rows])

    def loss(theta):
        value, gradient = process.log_marginal_likelihood(theta, eval_gradient=True, clone_kernel=False)
        return -value, -gradient

    kernel = process.kernel_
    low, high = kernel.bounds.T
    rng = np.random.default_rng(1)
    starts = [kernel.theta.copy(), *(rng.uniform(low, high) for _ in range(N_RESTARTS))]
    found = [minimize(loss, start, jac=True, method="L-BFGS-B", bounds=kernel.bounds) for start in starts]
    return kernel.clone_with_theta(min(found, key=lambda one: one.fun).x)


def _left_out(process: GaussianProcessRegressor, y: np.ndarray) -> np.ndarray:
    """Estimates (m,) less what the others predict, in standard deviations (Rasmussen & Williams 2006, section 5.4)."""
    factor = process.L_
    inverse = np.linalg.solve(factor @ factor.T, np.eye(len(factor)))
    return (inverse @ y) / np.sqrt(np.diag(inverse))
