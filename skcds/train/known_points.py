"""Weighted points where a density is known, some of them held out: what a map can be trained on and looked at."""

__all__ = ["LARGEST_LACK", "KnownPoints"]

import math

import torch
from torch import Tensor

from .._support.devices import rand
from ..models.maps import standard_normal_log_prob
from .plateau import share_at_points

LARGEST_LACK = 10.0  # nats by which the log density of a proposal may lack at a point, and count for it
FURTHEST = 1000.0  # nats of log weight: of points further out the log density is too coarse in single precision


class KnownPoints:
    """Weighted points of a density in a map's coordinates, with the log density and its gradient there.

    Parameters
    ----------
    x : Tensor
        Points (n, d) float64, in unconstrained coordinates.
    log_prob : Tensor
        Log density (n,) there, ``-inf`` outside of its support.
    score : Tensor or None
        Its gradient (n, d), of an energy that has one.
    log_weights : Tensor
        Weights (n,) of the points.
    held : Tensor of bool
        (n,), points that are not trained on.
    standardization : Standardization
        Of the map.
    exponent : float, default=0.5
        Of the weights by which points are drawn for a batch: spreads it over more of them. The rest of the weights
        counts them in it.
    """

    def __init__(
        self, x: Tensor, log_prob: Tensor, score: Tensor | None, log_weights: Tensor, held: Tensor, standardization,
        exponent: float = 0.5,
    ):  # fmt: skip
        z = standardization.inverse(x)
        _, log_det, pull_back = standardization.call_and_pull_back(z)
        self.z, self.log_prob = z.float(), (log_prob + log_det).float()
        self.score = None if score is None else pull_back(score).float()
        known = self.log_prob.isfinite() & self.z.isfinite().all(1)
        if self.score is not None:
            known &= self.score.isfinite().all(1)
        log_weights = torch.where(known, log_weights, -torch.inf)
        looked_at = held & (log_weights > log_weights.max() - FURTHEST)
        self.held, self.log_weights_held = looked_at.nonzero()[:, 0], log_weights[looked_at]
        training = torch.where(held, -torch.inf, log_weights)
        self.cumulative = torch.softmax(exponent * training, 0).cumsum(0)
        self.rest = ((1 - exponent) * (training - training.max())).exp().float()

    def __len__(self) -> int:
        return len(self.z)

    def draw(self, n: int, generator) -> tuple[Tensor, Tensor]:
        """Rows (n,) of points to train on, picked at random, and what each counts (n,), 1 on average."""
        uniform = rand(generator, n, dtype=torch.float64) * self.cumulative[-1]
        rows = torch.searchsorted(self.cumulative, uniform).clamp(max=len(self) - 1)
        return rows, self.rest[rows] / self.rest[rows].mean()

    @torch.no_grad()
    def fit_of(self, model) -> float:
        """Weighted mean log density of the draws of a map at the points that are held out, up to a constant.

        Where it lacks more than `LARGEST_LACK` nats beyond the median, it counts as if it lacked these: one point does
        not decide. NaN where none is held out.
        """
        if not len(self.held):
            return math.nan
        latent, log_det = model.map.inverse_and_log_det(self.z[self.held], model.start())
        log_ratio = (log_det + standard_normal_log_prob(latent) - self.log_prob[self.held]).double()
        bounded = log_ratio.clamp(min=float(log_ratio.median()) - LARGEST_LACK)
        return float((torch.softmax(self.log_weights_held, 0) * bounded.nan_to_num()).sum())

    @torch.no_grad()
    def share(self, model) -> float:
        """Normalised ESS of the draws of a map, estimated at the points that are held out.

        Far from where a map has draws the weights are huge, and truncated; see `share_at_points`.
        """
        latent, log_det = model.map.inverse_and_log_det(self.z[self.held], model.start())
        log_ratio = (self.log_prob[self.held] - log_det - standard_normal_log_prob(latent)).double()
        return share_at_points(log_ratio, self.log_weights_held)
