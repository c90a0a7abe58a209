"""What a fit may spend: a clock and a count that bound all between call and return, and a share for each part."""

__all__ = ["Budget", "Pace"]

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .._support.errors import Spent
from .._support.progress import Progress
from .checkpoint import Checkpoint
from .specifications import Training

FEWEST_ROWS = 10  # that a judgement is made of, however slow
ROUNDING = 1e-9  # of the number of batches that are due
FEWEST_EVALS = 200  # that a fit can be made of: probe, pilot and judgement need some tens each


@dataclass
class Budget:
    """What a fit may spend, a clock that started with it, and what has become of it.

    The energy asks it before every call (`admit`), so that no part of a fit can run over its limits: parts that are
    allowed a share only say so (`part`), and `judgement` opens what was kept for it.

    Attributes
    ----------
    max_time : float or None
        Seconds.
    max_energy_evals : int or None
        Energy evaluations, as counted by `energy`.
    energy : Energy
        Has ``n_energy_evals`` and ``evals_per_second``.
    start : float
        Clock reading at the start.
    checkpoint : Checkpoint
        Where the state of the fit is kept.
    progress : Progress
        What shows the user how far it is.
    interrupted : bool
        Whether the user has asked to stop.
    n_rollbacks : int
        How often training went back to an earlier state.
    training : Training
        What shares there are, and what else the fit goes by.
    time_reserve, evals_reserve : float
        Seconds and evaluations kept for the judgement.
    limits_itself : bool
        Whether the limit of evaluations is the fit's own, and not the user's.
    """

    max_time: float | None
    max_energy_evals: int | None
    energy: Any = None
    start: float = field(default_factory=time.perf_counter)
    checkpoint: Checkpoint = field(default_factory=lambda: Checkpoint(None))
    progress: Progress = field(default_factory=Progress)
    interrupted: bool = False
    n_rollbacks: int = 0
    training: Training = field(default_factory=Training)
    time_reserve: float = 0.0
    evals_reserve: float = 0.0
    limits_itself: bool = False
    _part: tuple[float, float] | None = None  # seconds since the start and evaluations at which the current part ends

    def reserve(self) -> None:
        """Keep a share of the limits for the judgement."""
        if self.max_time is not None:
            self.time_reserve = self.training.judgement_share * self.max_time
        if self.max_energy_evals is not None:
            self.evals_reserve = min(self.training.judgement_share * self.max_energy_evals, 20_000)

    def limit_evals(self, n: int) -> None:
        """Allow n evaluations, where there was no limit of them."""
        self.max_energy_evals, self.limits_itself = n, True
        self.reserve()

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.start

    def seconds_left(self, until: float = 1.0) -> float:
        """Seconds that are left of a first part of the limit, less the reserve; infinite without a limit."""
        if self.max_time is None:
            return math.inf
        return max(0.0, until * (self.max_time - self.time_reserve) - self.elapsed())

    def seconds_to_judge(self) -> float:
        """Seconds that are left of the limit, the reserve included; infinite without a limit."""
        return math.inf if self.max_time is None else max(0.0, self.max_time - self.elapsed())

    def spent(self) -> float:
        """Largest share spent of the time and of the evaluations, less the reserves; 0 without limits."""
        shares = [0.0]
        if self.max_time is not None:
            shares.append(self.elapsed() / (self.max_time - self.time_reserve))
        if self.max_energy_evals is not None:
            shares.append(self.energy.n_energy_evals / (self.max_energy_evals - self.evals_reserve))
        return max(shares)

    def energy_evals_left(self, until: float = 1.0) -> float:
        """Evaluations of the energy that are left of a first part of the limits; infinite without limits.

        A limit of time is one of evaluations, too: as many as the energy gives in half of the seconds left.
        """
        left = math.inf
        if self.max_energy_evals is not None:
            left = max(0.0, until * (self.max_energy_evals - self.evals_reserve) - self.energy.n_energy_evals)
        if self.max_time is not None:
            left = min(left, self.training.energy_time * self.seconds_left(until) * self.energy.evals_per_second)
        return left

    def spacing(self, usual: int, rows: int, n_iter: int, share: float, until: float = 1.0) -> int:
        """Iterations between evaluations at `rows` points each.

        As many as usual, or more, so that all of them take no more than a share of the evaluations left (`until`).
        """
        affordable = share * self.energy_evals_left(until) / rows
        return usual if affordable >= n_iter / usual else math.ceil(n_iter / max(math.floor(affordable), 1))

    # ---------------------------------------------------------------- bounds that hold

    def admit(self, n_evals: int, rows: int) -> None:
        """Let the energy, which has made `n_evals` evaluations, make another `rows`, or raise `Spent`."""
        self.progress.tick(n_evals)
        seconds, evals = self._part or self._ends(1.0, 1.0)
        if n_evals + rows > evals or self.elapsed() > seconds:
            raise Spent

    @contextlib.contextmanager
    def part(self, time_share: float, evals_share: float) -> Iterator[None]:
        """Within the block the energy refuses evaluations beyond these shares of the limits, counted from the start."""
        outer = self._part
        ends = self._ends(time_share, evals_share)
        self._part = ends if outer is None else (min(ends[0], outer[0]), min(ends[1], outer[1]))
        try:
            yield
        finally:
            self._part = outer

    @contextlib.contextmanager
    def untimed(self) -> Iterator[None]:
        """Within the block only the count refuses evaluations: for what every fit needs, however late it is."""
        outer = self._part
        self._part = math.inf, self._ends(1.0, 1.0)[1]
        try:
            yield
        finally:
            self._part = outer

    @contextlib.contextmanager
    def judgement(self) -> Iterator[None]:
        """Within the block the reserve of evaluations is open, and the clock lets the block end what it has begun."""
        outer = self._part
        self._part = math.inf, math.inf if self.max_energy_evals is None else self.max_energy_evals
        try:
            yield
        finally:
            self._part = outer

    def n_affordable(self, n: int, seconds_a_row: float, evals_a_row: float = 1.0, least: int = 1) -> int:
        """At most n rows of the judgement, as many as what is left of the limits, reserve included, allows.

        Where it allows for fewer than `least`, still so many by the clock, if they are had in a tenth of the limit, but
        not by the count.
        """
        if self.max_time is not None:
            row = max(seconds_a_row, 1e-9)
            least = min(least, max(FEWEST_ROWS, int(self.training.judgement_share * self.max_time / row)))
            n = min(n, max(least, int(self.seconds_to_judge() / row)))
        if self.max_energy_evals is not None:
            n = min(n, int((self.max_energy_evals - self.energy.n_energy_evals) / max(evals_a_row, 1e-9)))
        return max(n, 0)

    def too_little(self, name: str, of_family: bool = False, allowed: int | None = None) -> str:
        """What to say where the limits do not allow one iteration and its judgement, of so many evaluations."""
        few = self.max_energy_evals is not None and self.energy.n_energy_evals >= 0.5 * self.max_energy_evals
        if few or self.max_time is None:
            limit = f"max_energy_evals={allowed or self.max_energy_evals}"
        else:
            limit = f"max_time={self.max_time:g}"
        if of_family:
            return f"{limit} is too little for {name} to be fitted to a family of densities: raise it."
        return (
            f"{limit} is too little for {name} to be fitted and judged with these parameters: raise it, or set "
            "Control(langevin=False) or a smaller n_steps, since every step of a draw may evaluate the energy."
        )

    def _ends(self, time_share: float, evals_share: float) -> tuple[float, float]:
        seconds = evals = math.inf
        if self.max_time is not None:
            seconds = time_share * (self.max_time - self.time_reserve)
        if self.max_energy_evals is not None:
            evals = evals_share * (self.max_energy_evals - self.evals_reserve)
        return seconds, evals


class Pace:
    """When batches are due of which there are fewer than iterations: evenly by iterations, or by the clock if faster.

    Parameters
    ----------
    budget : Budget
        Its clock and limits.
    rows : int
        Evaluations of a batch.
    n_iter : int
        Iterations that there are at most.
    share : float
        Of the evaluations left, that all batches may take.
    """

    def __init__(self, budget: Budget, rows: int, n_iter: int, share: float):
        self.budget, self.n_iter, self.n_made = budget, n_iter, 0
        self.n_batches = share * budget.energy_evals_left() / rows
        self.begun, self.seconds = budget.elapsed(), budget.seconds_left()

    def due(self, iteration: int) -> bool:
        """Whether a batch is due now, which is counted then."""
        if self.n_batches >= self.n_iter:
            return True
        used = 0.0 if self.seconds in (0.0, math.inf) else (self.budget.elapsed() - self.begun) / self.seconds
        due = self.n_made + 1 <= self.n_batches * min(1.0, max((iteration + 1) / self.n_iter, used)) + ROUNDING
        self.n_made += due
        return due
