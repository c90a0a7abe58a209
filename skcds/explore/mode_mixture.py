"""A mixture with a component for each of several modes, which every round of an exploration improves."""

__all__ = ["ModeMixture"]

import math
from collections.abc import Sequence

from torch import Tensor

from .climb import Mode
from .few_evaluations import Mixture
from .mixture import TMixture, laplace_mixture
from .store import Store, log_evidence, n_effective

POWER, LEAST = 0.5, 0.1  # of the masses of modes, and their share in any case, to begin with


class ModeMixture:
    """Components that begin as Laplace's approximations at modes, and follow the weighted points from round to round.

    A mixture that is fitted to points without knowing the modes merges some of them: of forty modes, it had twenty
    components, and the normalised ESS of its draws was .2 where that of these is .9.

    Parameters
    ----------
    modes : sequence of Mode
        At least one.
    by : Mixture, optional
        How components are fitted, and when there are more.
    """

    def __init__(self, modes: Sequence[Mode], by: Mixture | None = None):
        self.by = Mixture() if by is None else by
        self.most = max(self.by.max_components, 2 * len(modes))
        self.mixture = laplace_mixture(modes, POWER, LEAST, self.by)

    def lacking(self, store: Store, log_weights: Tensor) -> list[tuple[float, TMixture]]:
        """Components, with their masses, at weighted points of the store that there is none for."""
        log_prob = store.log_prob - log_evidence(store.log_weights())
        return self.mixture.lacking(store.x, log_prob, log_weights, self.most - len(self.mixture), self.by)

    def add(self, modes: Sequence[Mode], log_z: float) -> None:
        """Laplace's approximations at further modes, where log Z is about so much."""
        parts = [
            (
                math.exp(min(max(mode.log_mass - log_z, math.log(self.by.least_mass)), 0.0)),
                laplace_mixture([mode], by=self.by),
            )
            for mode in modes
        ]
        self.mixture = TMixture.joined([(1.0, self.mixture), *parts])

    def candidates(
        self, store: Store, log_weights: Tensor, points: Tensor, others: Sequence[TMixture]
    ) -> list[TMixture]:
        """Mixtures to choose from, this one first: all fitted to the points, with heavier tails and with lighter ones.

        Parameters
        ----------
        store : Store
            Where there are points that no component is for, there are further ones.
        log_weights : Tensor
            Of the points in the store, (n,).
        points : Tensor
            Points (m, d) by these weights.
        others : sequence of TMixture
            Further ones to begin from.
        """
        by, n = self.by, n_effective(log_weights)
        begun = TMixture.joined([(1.0, self.mixture), *self.lacking(store, log_weights)])
        return [
            mixture.improved(points, n, by, freedom)
            for mixture in (begun, *others)
            for freedom in (by.freedom, by.light)
        ]  # fmt: skip

    def take(self, mixture: TMixture) -> None:
        """Go on from this one in the next round."""
        self.mixture = TMixture(mixture.weights, mixture.loc, mixture.scale, self.by.freedom)
