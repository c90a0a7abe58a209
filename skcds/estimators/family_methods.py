"""What only samplers of families do: a report over contexts, and log densities by context."""

__all__ = ["OfFamilies", "WithDensityOfFamilies"]

from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted

from .._support.devices import to_numpy
from .._support.settings import CPU, guest
from .._support.validation import check_count
from .._support.warnings import muted
from ..density.bounds import Bounds
from ..weights.calibration import calibrated
from .densities import checked_points
from .given import checked, given, weighted_given

MOST_CONTEXTS = 100  # of those kept, for a report that is asked for without any
FEWEST_DRAWS = 20


class OfFamilies:
    """Of a sampler that may be of a family."""

    _model: Any
    _standardize: Any
    score_samples: Any
    contexts_: np.ndarray | None
    context_names_in_: np.ndarray | None
    n_contexts_in_: int
    n_features_in_: int
    feature_names_out_: np.ndarray
    bounds_: np.ndarray | None

    @guest
    def calibrate(self, contexts=None, n=1000, draws=None, random_state=None, *, energy_fn=None, grad_fn=None):
        """Look at the weights of draws for many contexts and, where exact draws are known, at their ranks.

        Parameters
        ----------
        contexts : array-like of shape (m, n_contexts), default=None
            By default up to 100 contexts of the fit.
        n : int, default=1000
            Draws for each, at least 20.
        draws : array-like of shape (m, n_features), default=None
            An exact draw for each context, as parameters that its data were simulated with: their ranks among the
            sampler's weighted draws are uniform where these are exact (simulation-based calibration).
        random_state : int, RandomState instance, numpy.random.Generator or None, default=None
            Seed.
        energy_fn, grad_fn : callable, optional
            The energy of points and contexts, for a sampler that was loaded without it.

        Returns
        -------
        Calibration
            ESS, Pareto k, log Z and a verdict for each context, and the ranks.

        Raises
        ------
        ValueError
            When the sampler is not one of a family, or contexts or draws have another shape.
        """
        check_is_fitted(self)
        if not self.n_contexts_in_:
            raise ValueError("calibrate looks at many contexts, and this sampler was fitted to a single density.")
        n = check_count(n, "n", FEWEST_DRAWS)
        if contexts is None:
            if draws is not None:
                raise ValueError("draws= are one for each context: pass contexts=, too.")
            assert self.contexts_ is not None  # since this is a family
            contexts = self.contexts_[:MOST_CONTEXTS]
        rows, many = checked(self, contexts)
        if not many:
            raise ValueError(f"contexts has to be an array (m, {self.n_contexts_in_}); got one context.")
        known = None if draws is None else self._known(draws, len(rows))
        options = {"energy_fn": energy_fn, "grad_fn": grad_fn}
        with muted(ConvergenceWarning, UserWarning):  # what they say is in the report
            weighted = weighted_given(self, rows, n, random_state, options)
        return calibrated(weighted, rows, self.context_names_in_, known)

    def _known(self, draws, m: int) -> np.ndarray:
        x = np.asarray(draws, dtype=np.float64)
        if x.shape != (m, self.n_features_in_) or not np.isfinite(x).all():
            raise ValueError(f"draws has to be a finite array of shape ({m}, {self.n_features_in_}), one a context.")
        return x


class WithDensityOfFamilies(OfFamilies):
    """Of a sampler that may be of a family, whose draws have a density."""

    @guest
    def log_prob(self, X, *, context=None):
        """Log density of the one-step draws themselves, from the Jacobian of the map; the energy is not called.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
            Points.
        context : array-like of shape (n_contexts,) or (n, n_contexts), optional
            Of a sampler of a family: the context of all points, or one for each.

        Returns
        -------
        ndarray of shape (n,)
            Normalised log densities, float64; ``-inf`` outside of the bounds.

        Raises
        ------
        ValueError
            For a residual map, whose inverse is not known, and where shapes do not fit.
        """
        return self.score_samples(X, context=context)

    def _score_given(self, X, context, **options) -> np.ndarray:
        """What `score_samples` gives for one context of all points, or for one of each."""
        rows, many = checked(self, context)
        if not many:
            return given(self, rows[0]).score_samples(X, **options)
        if options.get("n_steps", 1) != 1:
            raise ValueError(f"A family of densities is sampled in one step; got n_steps={options['n_steps']}.")
        X = checked_points(X, self.feature_names_out_, type(self).__name__)
        if len(rows) != len(X):
            raise ValueError(f"context has to be one for all points, or one for each of {len(X)}; got {len(rows)}.")
        with torch.no_grad():
            return _log_prob(self, self._model.given(torch.from_numpy(rows).to(self._model.device)), X)


@torch.no_grad()
def _log_prob(sampler, model, X: np.ndarray) -> np.ndarray:
    """Log densities (n,) of draws of a one-step model at points (n, d) in the user's coordinates."""
    points, bounds = torch.from_numpy(X), Bounds.from_fitted(sampler)
    inside = torch.ones(len(X), dtype=torch.bool, device=CPU)
    slope = torch.zeros(len(X), dtype=torch.float64, device=CPU)
    if bounds is not None:
        inside = bounds.contains(points)
        points = bounds.inverse(points)
        slope = bounds.call_and_pull_back(points)[1]
    z = model.standardization.inverse(points.to(model.device))
    found = model.log_prob(z.float()).double() - model.standardization.log_det(z)
    return to_numpy((found.cpu() - slope).masked_fill(~inside, -torch.inf))
