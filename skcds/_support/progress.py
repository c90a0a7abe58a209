"""One progress display for a whole fit: its phase, the evaluations and their rate, log Z and ESS so far, time left."""

__all__ = ["Progress"]

import time

from tqdm.auto import tqdm

INTERVAL = 0.2  # seconds between two updates
BAR_FORMAT = "{desc}: {percentage:3.0f}%|{bar:12}| {postfix}"


class Progress:
    """A line that is there from the first second of a fit on, in terminals and in notebooks.

    Parameters
    ----------
    verbose : int, default=0
        0 shows nothing, 1 one line that is removed in the end, 2 keeps a line for every phase.
    label : str, default=""
        What is fitted; stands before the phase.
    """

    def __init__(self, verbose: int = 0, label: str = ""):
        self.verbose, self.label = verbose, label
        self.start = self.updated = self.phase_start = time.perf_counter()
        self.deadline: float | None = None  # clock reading at which the fit has to be done
        self.bar: tqdm | None = None
        self.phase_name, self.share, self.n_evals = "", 0.0, 0
        self.figures: dict[str, float] = {}

    def phase(self, name: str) -> None:
        """Begin a phase of the fit."""
        if not self.verbose:
            return
        if self.bar is not None and self.verbose > 1 and self.phase_name:
            self._show()
            self.bar.leave = True
            self.close()
        self.phase_name, self.share, self.phase_start = name, 0.0, time.perf_counter()
        self._show()

    def note(self, share: float | None = None, **figures: float) -> None:
        """Take the share of the phase that is done, and figures to show, such as ``log_z`` and ``ess``."""
        if not self.verbose:
            return
        if share is not None:
            self.share = max(self.share, min(share, 1.0))
        self.figures |= figures
        self.tick()

    def tick(self, n_evals: int | None = None) -> None:
        """Show what has changed, a few times a second; `n_evals` are the energy evaluations so far."""
        if n_evals is not None:
            self.n_evals = n_evals
        if self.verbose and time.perf_counter() - self.updated > INTERVAL:
            self._show()

    def close(self) -> None:
        """Take the line away, or keep it as `verbose` says."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def text(self) -> str:
        """The figures, as the line shows them."""
        elapsed = max(time.perf_counter() - self.start, 1e-3)
        parts = [_clock(elapsed)]
        left = self._seconds_left()
        if left is not None:
            parts[0] += f", {_clock(left)} left"
        parts.append(f"{_count(self.n_evals)} evaluations ({_count(self.n_evals / elapsed)}/s)")
        names = {"log_z": "log Z {:.3g}", "ess": "ESS/n {:.2f}", "loss": "loss {:.4g}"}
        parts += [names[name].format(value) for name, value in self.figures.items() if name in names]
        return ", ".join(parts)

    def _seconds_left(self) -> float | None:
        """Until the end of the fit where a limit sets it, else of the phase as it goes on; None if not known."""
        now = time.perf_counter()
        if self.deadline is not None:
            return max(self.deadline - now, 0.0)
        if self.share < 0.02:
            return None
        return (now - self.phase_start) * (1 - self.share) / self.share

    def _show(self) -> None:
        if self.bar is None:
            self.bar = tqdm(total=1.0, bar_format=BAR_FORMAT, leave=self.verbose > 1, delay=1e-9)
        self.updated = time.perf_counter()
        name = f"{self.label}, {self.phase_name}" if self.label else self.phase_name
        self.bar.set_description_str(name or "start", refresh=False)
        self.bar.set_postfix_str(self.text(), refresh=False)
        self.bar.n = self.share
        self.bar.refresh()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def _count(n: float) -> str:
    return f"{n:.0f}" if n < 10_000 else f"{n:.1e}".replace("e+0", "e")
