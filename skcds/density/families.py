"""Families of densities p(x | c): an energy of points and contexts, and of points alone where contexts are given.

Rows of points and contexts go together: with contexts (m, k), points (m r, d) are r of the first context, then r of the
second, and so on.
"""

__all__ = ["FamilyDensity", "FamilyEnergy", "FamilyTarget", "GivenEnergy", "check_signature", "open_energy"]

import copy
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._support.devices import randn
from .bounds import Bounds
from .contexts import ContextSource
from .energy import Energy, example_of
from .function import Density
from .probe import PROBE_SIZES
from .standardize import StandardizedTarget
from .support import candidates


@dataclass(frozen=True)
class FamilyDensity(Density):
    """An energy of points and contexts, with what a fit is told of the contexts.

    Attributes
    ----------
    energy_fn, grad_fn : callable
        Map points (n, n_features) and contexts (n, n_contexts) to energies (n,), and to gradients (n, n_features).
    contexts : array-like or callable
        See `BaseSampler.fit`.
    draws : array-like or None
        Exact draws, one a context.
    context_names : sequence of str or None
        Names of the numbers of a context.
    """

    contexts: Any = None
    draws: Any = None
    context_names: Any = None

    @property
    def about_contexts(self) -> dict:
        """Arguments of `fit` beside the functions."""
        return {"contexts": self.contexts, "draws": self.draws, "context_names": self.context_names}


def open_energy(
    density: Density, n_features: int, generator, bounds: Bounds | None = None, monitor: Any = None,
    start: Tensor | None = None,
) -> Energy:  # fmt: skip
    """The `Energy` of a density, or the `FamilyEnergy` of a family."""
    if not isinstance(density, FamilyDensity):
        return Energy.of(density, n_features, generator, bounds, monitor, start)
    source = ContextSource(density.contexts, generator)
    return FamilyEnergy(density, n_features, source, generator, bounds, monitor, start)


def repeated(contexts: Tensor, n_rows: int) -> Tensor:
    """Contexts (m, k) as rows (n_rows, k) that go with points, each as often as the others."""
    return contexts.repeat_interleave(n_rows // max(len(contexts), 1), 0)


def check_signature(function: Callable, name: str) -> None:
    """Refuse a function that does not take points and contexts.

    Raises
    ------
    TypeError
        When it cannot be called with two arguments.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # not known of some built-in functions
        return
    try:
        signature.bind(None, None)
    except TypeError:
        raise TypeError(
            f"With contexts=, {name} is a function of points (n, n_features) and contexts (n, n_contexts), such as "
            f"{name}(x, c); this one takes {signature}. Leave contexts= out for a single density."
        ) from None


class FamilyEnergy(Energy):
    """An `Energy` whose rows are points and contexts side by side, (n, n_features + n_contexts).

    `given` makes it one of points. Scores are zero in the columns of the contexts.

    Parameters
    ----------
    density : FamilyDensity
        The functions.
    n_features : int
        Dimension of a point.
    source : ContextSource
        Contexts at which the energy is probed.
    generator, bounds, monitor, start
        See `Energy`; `bounds` and `start` are of points.
    """

    def __init__(
        self, density: Density, n_features: int, source: ContextSource, generator,
        bounds: Bounds | None = None, monitor: Any = None, start: Tensor | None = None,
    ):  # fmt: skip
        for function, name in ((density.energy_fn, "energy_fn"), (density.grad_fn, "grad_fn")):
            if callable(function):
                check_signature(function, name)
        self.source, self.n_contexts = source, source.n_contexts
        begin = start if start is None else self._beside_contexts(start, generator)
        super().__init__(density.energy_fn, n_features, density.grad_fn, generator, bounds, monitor, begin)

    def given(self, contexts: Tensor) -> "GivenEnergy":
        """The energy of points (m r, d) with contexts (m, k)."""
        return GivenEnergy(self, contexts)

    def _beside_contexts(self, x: Tensor, generator) -> Tensor:
        return torch.cat([x.to(generator.device, torch.float64), self.source.draw(len(x), generator)], 1)

    def _first_points(self, generator) -> Tensor:
        x = randn(generator, max(PROBE_SIZES), self.n_features, dtype=torch.float64)
        return self._beside_contexts(x, generator)

    def _candidates(self, generator, n: int) -> Iterator[Tensor]:
        for x in candidates(generator, self.n_features, n):
            yield self._beside_contexts(x, generator)

    def _split(self, rows):
        return rows[:, : self.n_features], rows[:, self.n_features :]

    def _apply(self, function: Callable, rows):
        x, contexts = self._split(rows)
        return function(x, contexts.detach() if isinstance(contexts, Tensor) else contexts)

    def _shape(self, rows):
        return f"({len(rows)}, {self.n_features}) and contexts of shape ({len(rows)}, {self.n_contexts})"

    def _example(self, row: Tensor) -> str:
        x, context = (part[0] for part in self._split(row[None]))
        return f"{example_of(x)} with context {example_of(context)}"

    def _user_gradient(self, grad_fn: Callable, x: Tensor) -> Tensor:
        value = super()._user_gradient(grad_fn, x)
        return torch.cat([value, value.new_zeros(len(x), self.n_contexts)], 1)

    def _inside(self, rows: Tensor) -> Tensor:
        if self.bounds is None:
            return rows
        x, contexts = self._split(rows)
        return torch.cat([self.bounds.inside(x), contexts], 1)

    def _locate(self, x: Tensor):
        if self.bounds is None:
            return super()._locate(x)
        points, contexts = self._split(x)
        located, log_det, pull_back = self.bounds.call_and_pull_back(points)

        def pull_back_rows(score):
            return torch.cat([pull_back(score[:, : self.n_features]), torch.zeros_like(contexts)], 1)

        return torch.cat([located, contexts.double()], 1), log_det, pull_back_rows


class GivenEnergy(Energy):
    """The energy of points with contexts; counts, limits, precision and bounds are the family's.

    Parameters
    ----------
    family : FamilyEnergy
        The energy of points and contexts.
    contexts : Tensor
        (m, k), which points (m r, d) go with.
    """

    family: FamilyEnergy
    contexts: Tensor

    def __init__(self, family: FamilyEnergy, contexts: Tensor):
        object.__setattr__(self, "family", family)
        object.__setattr__(self, "contexts", contexts.double())

    def __getattr__(self, name: str):
        if name.startswith("__") or name in ("family", "contexts"):
            raise AttributeError(name)
        return getattr(self.family, name)

    def __setattr__(self, name: str, value) -> None:
        setattr(self.family, name, value)

    def __copy__(self) -> "GivenEnergy":
        return GivenEnergy(copy.copy(self.family), self.contexts)

    @property
    def valid(self) -> Tensor:  # type: ignore[override]
        """Unconstrained points of the probe at which the density is positive for some context."""
        return self.family.valid[:, : self.n_features]

    @property
    def constrain(self) -> Callable | None:
        """As `Energy.constrain`, of points with these contexts."""
        of_both = self.family.constrain
        return of_both and (lambda X: of_both(X, repeated(self.contexts, len(X))))

    def log_prob(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """As `Energy.log_prob`."""
        return self.family.log_prob(self._joined(x), dtype)

    def log_prob_and_score(self, x: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """As `Energy.log_prob_and_score`."""
        log_prob, score = self.family.log_prob_and_score(self._joined(x), dtype)
        return log_prob, score[:, : self.n_features]

    def _rows(self, x: Tensor, dtype: torch.dtype | None) -> Tensor:
        return self.family._rows(self._joined(x), dtype)

    def _apply(self, function: Callable, rows):
        return self.family._apply(function, rows)

    def _shape(self, rows):
        return self.family._shape(rows)

    def _example(self, row: Tensor) -> str:
        return self.family._example(row)

    def _joined(self, x: Tensor) -> Tensor:
        return torch.cat([x.double(), repeated(self.contexts.to(x.device), len(x))], 1)

    @property
    def evals_per_second(self) -> float:
        """Measured rate of evaluations."""
        return self.family.evals_per_second


class FamilyTarget:
    """A family in coordinates that are standardised by context; `given` is the target of some contexts.

    Parameters
    ----------
    energy : FamilyEnergy
        The energy.
    standardization : FamilyStandardization
        From standardised to the user's coordinates, by context.
    dtype : torch.dtype, optional
        Precision of the evaluations; by default the best that the user's function takes.
    """

    def __init__(self, energy: FamilyEnergy, standardization, dtype: torch.dtype | None = None):
        self.energy, self.standardization, self.dtype = energy, standardization, dtype

    def given(self, contexts: Tensor) -> StandardizedTarget:
        """The target of points (m r, d) with contexts (m, k)."""
        return StandardizedTarget(self.energy.given(contexts), self.standardization.given(contexts), self.dtype)
