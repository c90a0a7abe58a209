"""Standardised coordinates by context: location and scale as regressions on the contexts."""

__all__ = ["FamilyStandardization", "GivenStandardization"]

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .._support.settings import place

FARTHEST = 4.0  # of a standardised context in the squares of the regressions, beyond which these stay as they are
LARGEST_LOG_SCALE = 4.0  # of a coordinate for any context, against the pooled one
RIDGE = 1e-3  # penalty of the regressions for each context (unmeasured)
JITTER = 1e-8  # of covariances, in units of the variances


class FamilyStandardization(nn.Module):
    """Invertible affine map from standardised to the user's coordinates, by context.

    ``x = loc(c) + L exp(s(c)) z`` with a lower-triangular L. `loc` and `s` are polynomials of degree two, without
    products, of contexts that are scaled to mean zero and variance one. What they miss is left to the map.

    Parameters
    ----------
    n_features, n_contexts : int
        Numbers of a point, and of a context.

    Attributes
    ----------
    center, spread : Tensor
        (k,), mean and standard deviation of the contexts of the fit.
    low, high : Tensor
        (k,), the smallest and largest of them.
    loc_weight, log_scale_weight : Tensor
        (1 + 2 k, d), coefficients.
    scale : Tensor
        (d, d), L.
    """

    center: Tensor
    spread: Tensor
    low: Tensor
    high: Tensor
    loc_weight: Tensor
    log_scale_weight: Tensor
    scale: Tensor

    def __init__(self, n_features: int, n_contexts: int):
        super().__init__()
        zero = torch.zeros(n_contexts, dtype=torch.float64, device=place())
        weight = torch.zeros(1 + 2 * n_contexts, n_features, dtype=torch.float64, device=place())
        self.register_buffer("center", zero)
        self.register_buffer("spread", torch.ones_like(zero))
        self.register_buffer("low", zero.clone())
        self.register_buffer("high", zero.clone())
        self.register_buffer("loc_weight", weight)
        self.register_buffer("log_scale_weight", weight.clone())
        self.register_buffer("scale", torch.eye(n_features, dtype=torch.float64, device=place()))

    @classmethod
    def fitted(cls, contexts: Tensor, x: Tensor) -> "FamilyStandardization":
        """By particles x (m, r, d) of contexts (m, k)."""
        self = cls(x.shape[2], contexts.shape[1]).to(x.device)
        spread = contexts.std(0, correction=0)
        constant = spread <= 1e-12 * contexts.abs().amax(0).clamp(min=1.0)
        self.center, self.spread = contexts.mean(0), torch.where(constant, 1.0, spread)
        self.low, self.high = contexts.amin(0), contexts.amax(0)
        features = self._features(contexts)
        self.loc_weight = _ridge(features, x.mean(1))
        residual = x - (features @ self.loc_weight)[:, None]
        flat = residual.flatten(0, 1)
        covariance = flat.T @ flat / len(flat)
        jitter = JITTER * covariance.diagonal().clamp(min=1e-300)
        self.scale = torch.linalg.cholesky(covariance + torch.diag(jitter))
        u = torch.linalg.solve_triangular(self.scale, flat.T, upper=False).T.view_as(residual)
        self.log_scale_weight = _ridge(features, 0.5 * (u.square().mean(1) + 1e-6).log())
        level = (u / self._log_scale(features).exp()[:, None]).square().mean((0, 1)).log()
        self.log_scale_weight[0] += 0.5 * level  # logarithms of few squares are low in the mean
        return self

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.center.device

    def scaled(self, contexts: Tensor) -> Tensor:
        """Contexts (m, k) with mean zero and variance one over those of the fit."""
        return (contexts.double() - self.center) / self.spread

    def is_far(self, contexts: Tensor) -> Tensor:
        """Whether contexts (m, k) are beyond those of the fit, by more than half of their range in any number."""
        margin = 0.5 * (self.high - self.low) + 1e-9 * self.center.abs()
        return ((contexts < self.low - margin) | (contexts > self.high + margin)).any(1)

    def given(self, contexts: Tensor) -> "GivenStandardization":
        """The map of points (m r, d) with contexts (m, k)."""
        features = self._features(contexts.double())
        return GivenStandardization(features @ self.loc_weight, self.scale, self._log_scale(features))

    def _features(self, contexts: Tensor) -> Tensor:
        scaled = self.scaled(contexts)
        squares = scaled.clamp(-FARTHEST, FARTHEST).square() - 1
        return torch.cat([torch.ones_like(scaled[:, :1]), scaled, squares], 1)

    def _log_scale(self, features: Tensor) -> Tensor:
        return (features @ self.log_scale_weight).clamp(-LARGEST_LOG_SCALE, LARGEST_LOG_SCALE)


class GivenStandardization:
    """What `FamilyStandardization` is with contexts given; see `Standardization` for its methods.

    Parameters
    ----------
    loc, log_scale : Tensor
        (m, d), by context.
    scale : Tensor
        (d, d), of all.
    """

    def __init__(self, loc: Tensor, scale: Tensor, log_scale: Tensor):
        self.loc, self.scale, self.log_scale = loc, scale, log_scale
        self._log_det = log_scale.sum(1) + scale.diagonal().log().sum()

    def __call__(self, z: Tensor) -> Tensor:
        """(m r, d) standardised points to the user's coordinates, float64."""
        spread = (self._grouped(z.double()) * self.log_scale.exp()[:, None]).flatten(0, 1) @ self.scale.T
        return (self._grouped(spread) + self.loc[:, None]).flatten(0, 1)

    def inverse(self, x: Tensor) -> Tensor:
        """(m r, d) points in the user's coordinates to standardised ones, float64."""
        centred = (self._grouped(x.double()) - self.loc[:, None]).flatten(0, 1)
        z = torch.linalg.solve_triangular(self.scale, centred.T, upper=False).T
        return (self._grouped(z) / self.log_scale.exp()[:, None]).flatten(0, 1)

    def log_det(self, z: Tensor) -> Tensor:
        """Log determinant (m r,) of the Jacobian."""
        return self._log_det.repeat_interleave(len(z) // len(self.loc))

    def pull_back(self, z: Tensor, score: Tensor) -> Tensor:
        """Gradient with respect to z of a function of x, from its gradient (m r, d) in x."""
        return (self._grouped(score @ self.scale) * self.log_scale.exp()[:, None]).flatten(0, 1)

    def call_and_pull_back(self, z: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """Points, `log_det`, and `pull_back` there."""
        return self(z), self.log_det(z), lambda score: self.pull_back(z, score)

    def _grouped(self, rows: Tensor) -> Tensor:
        return rows.view(len(self.loc), -1, rows.shape[1]) if len(rows) else rows.view(len(self.loc), 0, rows.shape[1])


def _ridge(features: Tensor, values: Tensor) -> Tensor:
    """Coefficients (p, d) of a penalised regression of values (m, d) on features (m, p), the first not penalised."""
    penalty = RIDGE * len(features) * torch.ones(features.shape[1], dtype=features.dtype, device=features.device)
    penalty[0] = 0.0
    return torch.linalg.solve(features.T @ features + torch.diag(penalty), features.T @ values)
