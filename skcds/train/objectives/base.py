"""What an objective is, and how objectives are put together."""

__all__ = ["InTurn", "Objective", "Sum", "rows_within"]

from collections.abc import Sequence

from torch import Tensor

MAX_NUMBERS, FEWEST_ROWS = 2048 * 256, 64  # of a batch: held by its rows, and rows that it has all the same


def rows_within(n: int, n_features: int) -> int:
    """Rows of a batch: n, or as many as hold no more numbers than the largest default batch does in 256 dimensions."""
    return min(n, max(FEWEST_ROWS, MAX_NUMBERS // n_features))


class Objective:
    """A loss that training minimises: ``objective(iteration)`` is a scalar with a graph.

    What else changes as it is called is its state. Particles are not: they are the run's.
    """

    cycle: tuple[str, ...] = ()  # what the losses of successive iterations are of, where they differ

    def __call__(self, iteration: int) -> Tensor:
        """The loss of one batch."""
        raise NotImplementedError

    def state_dict(self) -> dict:
        """What `load_state_dict` puts back."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Go back to an earlier state."""


class Sum(Objective):
    """Weighted sum of objectives.

    Parameters
    ----------
    terms : sequence of (float, Objective)
        Weights and what they are of.
    """

    def __init__(self, terms: Sequence[tuple[float, Objective]]):
        self.terms = list(terms)

    def __call__(self, iteration: int) -> Tensor:
        """The loss of one batch."""
        first, *rest = (weight * term(iteration) for weight, term in self.terms)
        return sum(rest, first)

    def state_dict(self) -> dict:
        """What `load_state_dict` puts back."""
        return {"terms": [term.state_dict() for _, term in self.terms]}

    def load_state_dict(self, state: dict) -> None:
        """Go back to an earlier state."""
        for (_, term), term_state in zip(self.terms, state["terms"], strict=True):
            term.load_state_dict(term_state)


class InTurn(Objective):
    """Objectives that take iterations in turn, each its number of them; each counts its own.

    Parameters
    ----------
    **turns : (int, Objective)
        Iterations of a turn, and what they minimise, by name.
    """

    def __init__(self, **turns: tuple[int, Objective]):
        self.turns = turns
        self.cycle = tuple(name for name, (n, _) in turns.items() for _ in range(n))

    def __call__(self, iteration: int) -> Tensor:
        """The loss of one batch."""
        turn, rest = divmod(iteration, len(self.cycle))
        n, objective = self.turns[self.cycle[rest]]
        return objective(turn * n + rest - self.cycle.index(self.cycle[rest]))

    def state_dict(self) -> dict:
        """What `load_state_dict` puts back."""
        return {name: objective.state_dict() for name, (_, objective) in self.turns.items()}

    def load_state_dict(self, state: dict) -> None:
        """Go back to an earlier state."""
        for name, (_, objective) in self.turns.items():
            objective.load_state_dict(state[name])
