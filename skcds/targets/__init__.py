"""Densities to judge samplers against. Log Z, exact draws, modes and their masses are known as far as possible.

A target is a callable energy: ``target(x)`` maps a torch tensor of points (n, n_features) to ``-log rho(x)``, (n,), in
the dtype and on the device of `x`, differentiable by autograd. Arrays are held as NumPy, so that a target pickles and
targets that are built alike have equal ``joblib.hash``.

Every target has `n_features`, `log_evidence` (log Z, the log of the integral of rho) and `log_evidence_se` (its
standard error: 0 for closed forms and quadrature). Both are None if log Z is unknown. Some targets have more; ask with
``hasattr``:

- ``sample(n, random_state=None)``: exact independent draws, a float64 array (n, n_features). The seed is an int, None,
  or a RandomState instance or `numpy.random.Generator`; these two move on.
- ``modes(X)``: the mode of each row of an array (n, n_features), integers (n,). It comes with `mode_masses`, the
  probability of each mode, (n_modes,).
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
    "Phi4Lattice",
    "breast_cancer",
    "gmm40",
    "gmm9",
    "mw52",
    "mw54",
    "picture_density",
]

from .lattices import Phi4Lattice
from .mixtures import Funnel, Gaussian, GaussianMixture, gmm9, gmm40
from .pictures import ImageDensity, picture_density
from .posteriors import BayesianLogisticRegression, LogGaussianCoxProcess, breast_cancer
from .wells import ManyWell, ManyWellPairs, mw52, mw54
