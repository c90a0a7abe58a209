"""Weights of an exploration's points by the proposals of their own round, and the log Z that these tell."""

__all__ = ["final_weights", "weights_by_rounds"]

import math

import torch
from torch import Tensor

from .store import Store, log_evidence, n_effective

SHARES = 1e-4, 0.98  # of effective points, that may be foretold of a round
TOO_LOW = 0.1  # nats of log Z under all proposals, from which weights by rounds are taken
FEWEST = 0.2  # of the points that are effective under all proposals, by rounds, for these to tell log Z


def weights_by_rounds(store: Store) -> Tensor:
    """Log weights (n,) of a store's points under the proposals of their own round alone; their mean estimates Z.

    Given all that was drawn before, the mean weight of a round has no bias. Rounds count by the inverse variance of
    their weights (the optimum for independent estimates; Owen & Zhou 2020). Their own points do not tell it: where a
    round misses a mode, these have weights of little variance. The points of all rounds do. The variance is the mean of
    p / q over the target's normalised density p, less 1.

    References
    ----------
    Owen and Zhou (2020), "The square root rule for adaptive importance sampling", ACM TOMACS 30(2).
    """
    together = store.log_weights()
    met, log_target = together > -torch.inf, torch.log_softmax(together, 0)
    log_density = store.log_prob - log_evidence(together)
    log_weights, total = torch.full_like(together, -torch.inf), 0.0
    for k in store.rounds.unique().tolist():
        own, log_q = store.rounds[store.origin] == k, store.log_mixture((store.rounds == k).nonzero()[:, 0])
        share = torch.exp(-torch.logsumexp((log_target + log_density - log_q)[met], 0)).clamp(*SHARES)
        odds = float(share / (1 - share))
        total += odds * int(own.sum())
        log_weights[own] = (store.log_prob - log_q)[own] + math.log(odds)
    return (log_weights + math.log(len(store)) - math.log(total)).nan_to_num(-torch.inf, -torch.inf, -torch.inf)


def final_weights(store: Store) -> Tensor:
    """Log weights (n,) of a store's points; their mean estimates Z.

    They are those under all proposals, of which more are effective. Their mean is low, as proposals are large at the
    points that they were fitted to, so that they are scaled to the mean of the weights by rounds. Where it is lower by
    `TOO_LOW`, as it may be in dozens of dimensions, they are too low where the density is large, and standard
    deviations come out narrow. There the weights by rounds are taken (``benchmarks/evidence_by_rounds.py``). Where a
    few points decide these, as where no proposal is good, they tell nothing.
    """
    together, by_rounds = store.log_weights(), weights_by_rounds(store)
    if n_effective(by_rounds) <= FEWEST * n_effective(together):
        return together
    lack = log_evidence(by_rounds) - log_evidence(together)
    return by_rounds if lack > TOO_LOW else together + lack
