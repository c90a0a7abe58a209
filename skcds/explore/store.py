"""The points that an exploration has drawn and evaluated, with the proposals that they came from."""

__all__ = ["Explored", "Proposal", "Store", "log_evidence", "n_effective", "tempered"]

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..models.maps import OneStepModel
from ..train.particles import effective_share, systematic_index, truncated

SMALLEST_POWER = 1e-12  # above 0, so that a weight of zero stays one


class Proposal(Protocol):
    """A density that points are drawn from."""

    def sample(self, n: int, generator) -> Tensor:
        """Draws (n, d) float64."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density (n,) float64 at points (n, d)."""


@dataclass
class Explored:
    """What an exploration leaves to the map of a fit: its own last map, and all of its points.

    Attributes
    ----------
    model : OneStepModel
        The map.
    x, log_prob, score : Tensor
        Points (n, d) float64, the log density (n,) of the target there and its gradient (n, d).
    log_weights : Tensor
        Weights (n,) of the points, truncated.
    held : Tensor of bool
        (n,), points that the map has not been fitted to.
    has_scores : bool
        Whether the energy has a gradient.
    """

    model: OneStepModel
    x: Tensor
    log_prob: Tensor
    score: Tensor
    log_weights: Tensor
    held: Tensor
    has_scores: bool

    def state_dict(self) -> dict:
        """What `restored` makes it of again."""
        config, weights = dict(self.model.config), self.model.state_dict()
        return {**vars(self), "model": {"config": config, "weights": weights}}

    @classmethod
    def restored(cls, state: dict, device) -> "Explored":
        """From its `state_dict`."""
        model = OneStepModel(**state["model"]["config"])
        model.load_state_dict(state["model"]["weights"])
        tensors = {name: state[name].to(device) for name in ("x", "log_prob", "score", "log_weights", "held")}
        return cls(model.requires_grad_(False).to(device), has_scores=state["has_scores"], **tensors)


class Store:
    """Points with their log densities under the target and under every proposal that any of them came from.

    All points together are one sample of the mixture of all proposals, each in proportion to its draws, whichever
    proposal a point came from: the balance heuristic (Veach & Guibas 1995; Cornuet et al. 2012 for adapted proposals).

    Attributes
    ----------
    x : Tensor
        Points (n, d) float64, in unconstrained coordinates.
    log_prob, score : Tensor
        Log density (n,) of the target there, ``-inf`` outside of its support, and its gradient (n, d).
    origin : Tensor
        Number (n,) of the proposal that each came from.
    held : Tensor of bool
        (n,), points that no proposal is fitted to, by which proposals are compared.
    proposals : list of Proposal
        What they came from.
    rounds : Tensor
        Round (proposals,) of each: proposals of a round are no functions of its points.
    chosen : Tensor
        Rows (m,) that particles were taken from.
    model : OneStepModel or None
        A good map, where there is no more than one known mode.
    """

    def __init__(self, n_features: int, device=None):
        self.n_features, self.device = n_features, device
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        n_features, device = self.n_features, self.device
        self.x = torch.zeros(0, n_features, dtype=torch.float64, device=device)
        self.log_prob, self.score = self.x.new_zeros(0), self.x.clone()
        self.origin = torch.zeros(0, dtype=torch.int64, device=device)
        self.held = torch.zeros(0, dtype=torch.bool, device=device)
        self.proposals: list[Proposal] = []
        self.rounds, self._round = self.origin, 0
        self.chosen = self.origin
        self.model: OneStepModel | None = None
        self._log_q = self.x.new_zeros(0, 0)  # (proposals, points)

    def __len__(self) -> int:
        return len(self.x)

    def begin_round(self) -> None:
        """Say that proposals from here on may be functions of all points so far."""
        self._round += 1

    def add(
        self, proposal: Proposal, x: Tensor, log_prob: Tensor, score: Tensor, held: Tensor | None = None
    ) -> int:  # fmt: skip
        """Take draws (m, d) of a new proposal, with log density (m,) and score (m, d); the number of the proposal.

        Those that are held (m,) are for comparisons; by default none are.
        """
        held = self.held.new_zeros(len(x)) if held is None else held
        self.held = torch.cat([self.held, held])
        rows = [torch.cat([row, q.log_prob(x)]) for row, q in zip(self._log_q, self.proposals, strict=True)]
        self.origin = torch.cat([self.origin, self.origin.new_full((len(x),), len(self.proposals))])
        self.x, self.log_prob = torch.cat([self.x, x]), torch.cat([self.log_prob, log_prob.double()])
        self.score = torch.cat([self.score, score.double()])
        self.proposals.append(proposal)
        self.rounds = torch.cat([self.rounds, self.rounds.new_tensor([self._round])])
        self._log_q = torch.stack([*rows, proposal.log_prob(self.x)])
        return len(self.proposals) - 1

    def log_mixture(self, of: Tensor | None = None) -> Tensor:
        """Log density (n,) of the mixture of all proposals, or of those with these numbers."""
        count = torch.bincount(self.origin, minlength=len(self.proposals)).double()
        if of is None:
            of = torch.arange(len(count), device=count.device)
        share = count[of] / count[of].sum()
        return torch.logsumexp(self._log_q[of] + share.log()[:, None], 0)

    def log_weights(self) -> Tensor:
        """Log importance weights (n,), whose mean estimates the evidence."""
        return (self.log_prob - self.log_mixture()).nan_to_num(-torch.inf, -torch.inf, -torch.inf)

    def log_weights_of(self, k: int) -> Tensor:
        """Log importance weights (m,) of the draws of proposal k by itself."""
        own = self.origin == k
        return self.log_prob[own] - self._log_q[k, own]

    def values_of(self, rows: Tensor, target, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log density (m,) and score (m, d) of rows in the coordinates z (m, d) of a `StandardizedTarget`."""
        _, log_det, pull_back = target.standardization.call_and_pull_back(z)
        return self.log_prob[rows] + log_det, pull_back(self.score[rows]).to(z.dtype)

    def particles(self, n: int, generator, fewest: int = 0) -> Tensor:
        """Indices (n,) of points by their weights, truncated at sqrt(n) times the mean (Ionides 2008).

        Where fewer than `fewest` points are effective, by a power of the weights that leaves so many.
        """
        return systematic_index(self.truncated_weights(fewest), n, generator)

    def truncated_weights(self, fewest: int = 0) -> Tensor:
        """Log weights (n,) of `particles`."""
        log_weights = self.log_weights()
        log_weights = log_weights * tempered(log_weights, fewest)
        return truncated(log_weights)

    def explored(self, fewest: int, has_scores: bool) -> Explored | None:
        """What is left to a map; None where there was no good one."""
        if self.model is None:
            return None
        weights = self.truncated_weights(fewest)
        return Explored(self.model, self.x, self.log_prob, self.score, weights, self.held, has_scores)


def n_effective(log_weights: Tensor) -> float:
    """Effective number of draws with these log weights (n,); 0 where all weights are zero."""
    return len(log_weights) * effective_share(log_weights)


def tempered(log_weights: Tensor, wanted: float) -> float:
    """Largest power of the weights, at most 1, that leaves `wanted` draws effective, or a tiny one."""
    finite = log_weights[log_weights > -torch.inf]
    if n_effective(finite) >= wanted:
        return 1.0
    low, high = SMALLEST_POWER, 1.0
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if n_effective(middle * finite) >= wanted else (low, middle)
    return low


def log_evidence(log_weights: Tensor) -> float:
    """Log of the mean weight."""
    return float(torch.logsumexp(log_weights, 0)) - math.log(max(len(log_weights), 1))
