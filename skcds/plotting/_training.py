"""TrainingDisplay: the losses of a fit."""

from typing import Any

import numpy as np
from scipy.ndimage import median_filter, uniform_filter1d
from sklearn.utils.validation import check_is_fitted

from .._support.validation import check_count
from ._style import BLUE, GREEN, INK, VERMILLION, axes_for, caption, mark, note_of, number, require_matplotlib, tidy

COLORS = (BLUE, VERMILLION, GREEN)
SMOOTHED_OVER = 0.03  # of the iterations
LEAST_SMOOTHED = 15  # iterations, of at least eight times as many
FAR = 10  # median deviations from the running median; single losses beyond are moved there for the running mean
BURN_IN = 0.05  # of the iterations; their losses do not set the limits
LARGEST = 1e100  # that limits of the axis may be
SPREAD = 0.01  # of the raw losses beyond the limits, on each side


class TrainingDisplay:
    """Losses of a fit: each iteration's in a pale line, and a running mean.

    The limits are those of the losses after the first twentieth of the iterations. So the first ones and single
    outliers do not squash the rest; the caption counts what is outside. Losses of different kinds, which take turns or
    follow each other, have a line each. A falling loss says that training works, not that the sampler is good: see
    `EvidenceDisplay`.

    Parameters
    ----------
    loss_curve : array-like of shape (n_iter,)
        Loss of every iteration.
    kinds : array-like of str of shape (n_iter,), default=None
        What each loss is of; by default one kind.
    estimator_name : str, default=None
        Name of the estimator.
    fit_time : float, default=None
        Seconds.
    converged, interrupted : bool, default=None
        Whether the weights after the fit were reliable, and whether the user ended the training.
    n_rollbacks : int, default=None
        How often training diverged and went back to an earlier state.
    note : str, default=None
        A note on the fit that is shown in the axes, for example that it did not converge.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes.
    figure_ : matplotlib Figure
        The figure.
    raw_, smooth_ : list of matplotlib Line2D
        Losses and their running means, one line for each kind.
    caption_ : str
        What the caption says.
    note_ : matplotlib Text
        The note; None without one.

    See Also
    --------
    EvidenceDisplay : Whether the result can be relied on.

    Examples
    --------
    >>> import numpy as np
    >>> from skcds.plotting import TrainingDisplay
    >>> losses = 1 / np.arange(1, 500)
    >>> display = TrainingDisplay(losses, fit_time=12.0, converged=True).plot()
    >>> display.caption_.splitlines()[0]
    '499 iterations · 12 s · converged'
    """

    def __init__(
        self, loss_curve, *, kinds=None, estimator_name=None, fit_time=None, converged=None, interrupted=None,
        n_rollbacks=None, note=None,
    ):  # fmt: skip
        self.loss_curve = loss_curve
        self.kinds = kinds
        self.estimator_name = estimator_name
        self.fit_time = fit_time
        self.converged = converged
        self.interrupted = interrupted
        self.n_rollbacks = n_rollbacks
        self.note = note

    @classmethod
    def from_estimator(cls, estimator, *, ax=None, **plot_options) -> "TrainingDisplay":
        """Plot the losses of a fitted sampler.

        Parameters
        ----------
        estimator : object
            A fitted sampler, whose ``history_`` tells what its losses are of.
        ax : matplotlib Axes, default=None
            Where to plot; by default in a new figure.
        **plot_options
            Further arguments of `plot`.

        Returns
        -------
        TrainingDisplay

        Raises
        ------
        ImportError
            Without matplotlib.
        NotFittedError
            When the sampler is not fitted.

        Examples
        --------
        >>> from skcds import DiffusionSampler, Pilot
        >>> from skcds.plotting import TrainingDisplay
        >>> sampler = DiffusionSampler(
        ...     n_features=2, start=Pilot((3, 2), 500),
        ...     n_steps=8, max_iter=20, random_state=0
        ... )
        >>> sampler.fit(lambda x: 0.5 * ((x - 3) ** 2).sum(1))
        DiffusionSampler(...)
        >>> TrainingDisplay.from_estimator(sampler).loss_curve.shape
        (20,)
        """
        require_matplotlib("TrainingDisplay.from_estimator")
        check_is_fitted(estimator)
        losses = np.asarray(estimator.loss_curve_, dtype=np.float64)
        kinds = [kind for phase in estimator.history_ for kind in phase.kinds()]
        facts = {name: getattr(estimator, f"{name}_", None) for name in ("fit_time", "converged", "interrupted")}
        return cls(
            losses, kinds=np.array(kinds), estimator_name=type(estimator).__name__,
            n_rollbacks=getattr(estimator, "n_rollbacks_", None), note=note_of(estimator), **facts,
        ).plot(ax=ax, **plot_options)  # fmt: skip

    def plot(self, ax=None, *, yscale="auto", smoothing=None) -> "TrainingDisplay":
        """Plot what is stored.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to plot in; by default those of a new figure.
        yscale : {"auto", "linear", "log"}, default="auto"
            Scale of the losses. "auto" is logarithmic if all are positive and their means fall by a factor of 30.
            "log" leaves losses that are not positive outside the picture, and is linear where none is positive.
        smoothing : int, default=None
            Iterations that the running mean is taken over; by default about a thirtieth of them.

        Returns
        -------
        TrainingDisplay
            Itself.

        Raises
        ------
        ImportError
            Without matplotlib.
        ValueError
            When an argument is out of its range.
        """
        require_matplotlib("TrainingDisplay.plot")
        if yscale not in ("auto", "linear", "log"):
            raise ValueError(f"yscale has to be 'auto', 'linear' or 'log'; got {yscale!r}.")
        losses = np.asarray(self.loss_curve, dtype=np.float64)
        if losses.ndim != 1:
            raise ValueError(f"loss_curve has to have shape (n_iter,); got {losses.shape}.")
        lines = self._lines(losses, None if smoothing is None else check_count(smoothing, "smoothing", 1))
        ax, self.figure_ = axes_for(ax, (5.8, 3.6))
        self.ax_: Any = ax
        self.raw_: list = []
        self.smooth_: list = []
        for (kind, (iterations, raw, smooth)), color in zip(lines.items(), COLORS * len(lines), strict=False):
            alone = {"marker": ".", "markersize": 2} if len(raw) < 2 else {}
            self.raw_ += ax.plot(iterations, raw, color=color, alpha=0.22, linewidth=0.7, **alone)
            self.smooth_ += ax.plot(iterations, smooth, color=color, linewidth=1.6, label=kind)
        n_outside = _set_limits(ax, lines, yscale)
        ax.set(xlabel="iteration", ylabel="loss", xlim=(0, max(len(losses), 1)))
        tidy(ax)
        self.caption_ = self._caption(len(losses), n_outside)
        caption(ax, self.caption_.splitlines())
        self.note_ = mark(ax, self.note)
        if len(lines) > 1:
            ax.legend(frameon=False, fontsize="small", labelcolor=INK)
        return self

    def _lines(self, losses: np.ndarray, smoothing) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Iterations, losses and running means of every kind."""
        kinds = np.full(len(losses), "loss") if self.kinds is None else np.asarray(self.kinds)
        if kinds.shape != losses.shape:
            raise ValueError(f"kinds has to have one entry a loss, shape {losses.shape}; got shape {kinds.shape}.")
        lines = {}
        for kind in dict.fromkeys(kinds.tolist()):
            iterations = np.flatnonzero(kinds == kind)
            raw = losses[iterations]
            width = max(1, round(SMOOTHED_OVER * len(raw)), min(LEAST_SMOOTHED, len(raw) // 8))
            lines[kind] = iterations + 1, raw, smoothed(raw, width if smoothing is None else smoothing)
        return lines

    def _caption(self, n_iter: int, n_outside: int) -> str:
        name = [] if self.estimator_name is None else [self.estimator_name]
        facts = [f"{n_iter} iterations"]
        if self.fit_time is not None:
            facts.append(_duration(self.fit_time))
        if self.converged is not None:
            facts.append("converged" if self.converged else "not converged")
        events = ["interrupted"] if self.interrupted else []
        if self.n_rollbacks:
            events.append(f"{self.n_rollbacks} rollback{'s' if self.n_rollbacks > 1 else ''}")
        if n_outside:
            events.append(f"{n_outside} losses outside the picture")
        return "\n".join([*name, *(" · ".join(part) for part in (facts, events) if part)])


def smoothed(losses: np.ndarray, width: int) -> np.ndarray:
    """Running mean (n,) over `width` losses; those that are not finite are skipped, those far out moved nearer."""
    finite = np.isfinite(losses)
    if width <= 1 or not finite.any():
        return losses.copy()
    filled = np.interp(np.arange(len(losses)), np.flatnonzero(finite), losses[finite])
    median = median_filter(filled, min(width, len(losses)), mode="nearest")
    far = FAR * np.median(np.abs(filled - median))
    near = np.clip(filled, median - far, median + far) if far > 0 else filled
    return uniform_filter1d(near, min(width, len(losses)), mode="nearest")


def _set_limits(ax, lines, yscale: str) -> int:
    """Limits and scale from the losses after burn-in; the number of losses outside."""
    late = [(raw[_late(raw)], smooth[_late(raw)]) for _, raw, smooth in lines.values()]
    raws = [raw[np.isfinite(raw)] for raw, _ in late]
    smooths = [smooth[np.isfinite(smooth)] for _, smooth in late]
    if not any(map(len, raws)):
        return sum(len(raw) for _, raw, _ in lines.values())
    bounds = np.concatenate([np.quantile(raw, [SPREAD, 1 - SPREAD]) for raw in raws if len(raw)] + smooths)
    low, high = np.clip([bounds.min(), bounds.max()], -LARGEST, LARGEST)
    means, positive = np.concatenate(smooths), np.concatenate([raw[raw > 0] for raw in raws])
    log = yscale == "log" or (yscale == "auto" and low > 0 and means.max() > 30 * means.min())
    if log and len(positive):
        low = max(low if low > 0 else positive.min(), 1 / LARGEST)
        high = max(high if high > 0 else positive.max(), low)
        edge = max(np.exp(0.06 * np.log(high / low)), 1.1)
        low, high = low / edge, high * edge
    else:
        edge = 0.06 * (high - low) or 0.5
        low, high = low - edge, high + edge
    ax.set_ylim(low, high)  # before the scale, which would look for limits of its own
    ax.set_yscale("log" if log and len(positive) else "linear")
    return int(sum(np.sum(~((raw >= low) & (raw <= high))) for _, raw, _ in lines.values()))


def _late(losses: np.ndarray) -> slice:
    return slice(int(BURN_IN * len(losses)), None)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{number(seconds)} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
