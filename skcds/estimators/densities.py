"""The log density of a one-step sampler's draws: anywhere, by the inverse of its map, and at draws as they are made."""

__all__ = ["WithDensity"]

import copy
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_array, check_is_fitted
from torch import Tensor

from .._support.devices import to_numpy
from .._support.settings import guest
from .._support.validation import check_count
from ..density.bounds import Bounds
from ..models.maps import standard_normal_log_prob
from ..models.networks import in_parts
from .given import is_given
from .sampling import CHUNK_ROWS, Drawing

MapSteps = list[tuple[Tensor, Tensor | None]]  # levels that each call of the map goes from and to


class WithDensity(Drawing):
    """Of a sampler whose draws are images of a map."""

    _model: Any
    n_features_in_: int
    feature_names_out_: np.ndarray
    _score_given: Any

    @guest
    def score_samples(self, X, *, context=None, n_steps=1):
        """Log density of the sampler's one-step draws at any points, exact, by one pass of the inverse map.

        It is normalised: its exponential integrates to one over the coordinates that `energy_fn` was given, inside the
        bounds where there are some. With it draws can be weighed for another density, proposed in a Metropolis-Hastings
        step of your own, or compared with draws from elsewhere.

        Parameters
        ----------
        X : array-like or data frame of shape (n, n_features)
            Points. Of a data frame the columns named as in `feature_names_out_` are taken, in any order.
        context : array-like of shape (n_contexts,) or (n, n_contexts), optional
            Of a sampler of a family: the context of all points, or one for each.
        n_steps : int, default=1
            Steps of the draws. Those of more than one add noise between calls of the map, and have no density in closed
            form.

        Returns
        -------
        log_density : ndarray of shape (n,)
            Natural logarithms, float64. ``-inf`` on the bounds, outside of them, and at infinity.

        Raises
        ------
        NotFittedError
            When the sampler is not fitted.
        ValueError
            When X has NaN or another number of features, or when the draws have no density in closed form: those of
            several steps, and of a residual map, which has no inverse.
        """
        check_is_fitted(self)
        if is_given(self, context):
            return self._score_given(X, context, n_steps=n_steps)
        return self._log_density(X, self._map_steps(n_steps=n_steps))

    @abstractmethod
    def _map_steps(self, *args, **options) -> MapSteps:
        """Levels of the calls of the map that a draw with these options of `sample` is made of; others are refused."""

    def _check_invertible(self, what: str) -> None:
        if not self._model.map.invertible:
            raise ValueError(
                f"{what} needs the inverse of the map, and a residual map has none: fit with network='coupling'."
            )

    # ---------------------------------------------------------------- at points

    @torch.no_grad()
    def _log_density(self, X, map_steps: MapSteps) -> np.ndarray:
        X = checked_points(X, self.feature_names_out_, type(self).__name__)
        bounds = Bounds.from_fitted(self)
        inside = np.isfinite(X).all(1)
        if bounds is not None:
            inside &= to_numpy(bounds.contains(torch.from_numpy(X)))
        log_prob, found = self._inverse(map_steps), np.full(len(X), -np.inf)
        (rows,) = inside.nonzero()
        for first in range(0, len(rows), CHUNK_ROWS):
            some = rows[first : first + CHUNK_ROWS]
            z = torch.from_numpy(self._standardize(X[some])).to(self._model.device)
            found[some] = self._in_users_coordinates(z, in_parts(log_prob, z))
        return found

    def _inverse(self, map_steps: MapSteps) -> Callable[[Tensor], Tensor]:
        """Log density (n,) of draws at standardised points (n, d), in double precision: no row depends on others."""
        double = copy.deepcopy(self._model.map).double()
        levels = [(level.double(), None if to is None else to.double()) for level, to in reversed(map_steps)]

        def log_prob(z: Tensor) -> Tensor:
            total = z.new_zeros(len(z))
            for level, to in levels:
                z, log_det = double.inverse_and_log_det(z, level, to)
                total = total + log_det
            return total + standard_normal_log_prob(z)

        return log_prob

    def _in_users_coordinates(self, z: Tensor, log_density: Tensor) -> np.ndarray:
        """Log densities (n,) with respect to standardised coordinates z (n, d) in those of the user."""
        y, bounds = self._model.standardization(z).cpu(), Bounds.from_fitted(self)
        log_slope = self._model.standardization.log_det(z).cpu()
        if bounds is not None:
            log_slope = log_slope + bounds.call_and_pull_back(y)[1]
        return to_numpy((log_density.cpu() - log_slope).masked_fill(log_slope == -torch.inf, -torch.inf))

    # ---------------------------------------------------------------- at draws

    def _plan_with_density(self, polish: int, **options) -> Callable:
        """As `_plan`, for draws that come with their log density with respect to standardised coordinates."""
        if polish:
            raise ValueError(
                "return_log_density=True is for draws of the map: polish= moves them to an unknown density."
            )
        map_steps, step_map = self._map_steps(**options), self._model.map

        def along(latent):
            z, total = latent, latent.new_zeros(len(latent))
            for level, to in map_steps:
                z, log_det = step_map.call_and_log_det(z, level, to)
                total = total + log_det
            return z, total

        def draw(normal):
            latent = normal(0)
            z, log_det = in_parts(along, latent)
            return z, standard_normal_log_prob(latent.double()) - log_det.double()

        return draw

    def _finished(self, drawn) -> np.ndarray:
        """Draws (n, d) in the user's coordinates, or with the log density as one more column."""
        if not isinstance(drawn, tuple):
            return super()._finished(drawn)
        return np.column_stack([self._unstandardize(drawn[0]), self._in_users_coordinates(*drawn)])

    def _sample(self, n, random_state, options, out=None, as_frame=False):
        if not options.get("return_log_density"):
            return super()._sample(n, random_state, options, out, as_frame)
        log_density = np.empty(check_count(n, "n", 0))

        def without_the_column(chunks):
            for rows, chunk in chunks:
                log_density[rows] = chunk[:, -1]
                yield rows, chunk[:, :-1]

        chunks = self._sampled_chunks(n, random_state, options)
        return self._draws(n, without_the_column(chunks), out, as_frame), log_density


def checked_points(X, names, owner: str) -> np.ndarray:
    """Points (n, d) float64, of a data frame by the names of its columns; NaN and other shapes are refused."""
    columns = list(getattr(X, "columns", ()))
    if set(names) <= set(columns):
        X = X[list(names)]
    elif all(isinstance(column, str) for column in columns) and columns and list(names) != default_names(names):
        raise ValueError(f"X has columns {columns}, and {owner} was fitted with the features {list(names)}.")
    X = check_array(X, dtype=np.float64, ensure_all_finite=False, ensure_min_samples=0, input_name="X")
    if X.shape[1] != len(names):
        raise ValueError(f"X has {X.shape[1]} features, but {owner} is expecting {len(names)} features as input.")
    lost = np.isnan(X).any(1)
    if lost.any():
        raise ValueError(
            f"X has NaN in {lost.sum()} of {len(X)} rows, the first in row {lost.argmax()}: leave them out."
        )
    return X


def default_names(names) -> list[str]:
    """The names that features have where the user gave none."""
    return [f"x{j}" for j in range(len(names))]
