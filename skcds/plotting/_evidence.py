"""EvidenceDisplay: the log weights of draws, and the log Z that they estimate."""

import math
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted

from .._support.settings import guest
from .._support.validation import check_count
from .._support.warnings import muted
from ..weights.importance import effective_sample_size, log_evidence, pareto_k, pareto_k_limit
from ..weights.sample import WeightedSample
from ._grids import centers, weighted_quantile
from ._style import (
    BLUE,
    DARK,
    GREEN,
    GREY,
    INK,
    VERMILLION,
    axes_for,
    caption,
    decimals,
    mark,
    note_of,
    number,
    require_matplotlib,
    tidy,
)

MAX_BINS = 80
BULK = 0.02  # quantile of the log weights: below it half the width of the rest is drawn, and the others are counted
SMALL_SHARES = (0.01, "very low"), (0.1, "low")  # of ESS / n, as in `BaseSampler.diagnose`


class EvidenceDisplay:
    """Histogram of log weights around the log evidence that they estimate, with Pareto k.

    A perfect sampler has all its log weights at log Z. The estimate is the log of the mean weight. So a few draws far
    to the right of it decide. They are coloured, and a generalised Pareto distribution of shape Pareto k is drawn over
    them. The counts are on a logarithmic scale: a straight tail that falls as slowly as the weights grow has k = 1. The
    mean log weight (ELBO) is a lower bound of log Z in expectation for draws of a known density.

    Draws outside the support, with log weight ``-inf``, are counted in the caption. Nothing here can see a mode that
    the draws miss. The log Z of the pilot may be larger then, if it is known.

    Parameters
    ----------
    log_weights : array-like of shape (n,)
        Log weights; ``-inf`` is a weight of zero.
    is_bound : bool, default=None
        Whether the mean log weight is a lower bound of log Z in expectation; None if that is not known.
    pilot_log_evidence : float, default=None
        Another estimate of log Z.
    note : str, default=None
        A note on the fit that is shown in the axes, for example that it did not converge.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes.
    figure_ : matplotlib Figure
        The figure.
    histogram_, tail_ : matplotlib StepPatch
        Counts of all draws, and of those in the tail that Pareto k is fitted to; None without a tail.
    tail_fit_ : matplotlib Line2D
        The fit to the tail; None without a tail.
    log_evidence_line_, elbo_line_, pilot_line_ : matplotlib Line2D
        Marks; None for a number that is not known.
    log_evidence_, log_evidence_se_, elbo_, ess_, pareto_k_ : float
        Estimate of log Z with its standard error, mean log weight, normalised ESS (ESS / n), and Pareto k.
    caption_ : str
        What the caption says.
    note_ : matplotlib Text
        The note; None without one.

    See Also
    --------
    WeightedSample : Draws with their log weights.
    SamplerDisplay : The draws.

    Examples
    --------
    >>> import numpy as np
    >>> from skcds.plotting import EvidenceDisplay
    >>> log_weights = np.random.default_rng(0).normal(scale=0.5, size=5000)
    >>> print(EvidenceDisplay.from_weights(log_weights, is_bound=True).caption_)
    log Z = 0.1216 ± 0.0074
    ESS / n 0.783 · Pareto k −0.05: good
    ELBO −0.0023: a lower bound of log Z
    """

    def __init__(self, log_weights, *, is_bound=None, pilot_log_evidence=None, note=None):
        self.log_weights = log_weights
        self.is_bound = is_bound
        self.pilot_log_evidence = pilot_log_evidence
        self.note = note

    @classmethod
    @guest
    def from_estimator(
        cls, estimator, n=10_000, *, energy_fn=None, grad_fn=None, random_state=None, ax=None, **plot_options
    ) -> "EvidenceDisplay":
        """Draw from a fitted sampler with weights, and plot these.

        Parameters
        ----------
        estimator : object
            A fitted sampler.
        n : int, default=10000
            Number of draws.
        energy_fn, grad_fn : callable, optional
            The energy, for a sampler that was loaded without it.
        random_state : int, RandomState instance, numpy.random.Generator or None, default=None
            Seed of the draws.
        ax : matplotlib Axes, default=None
            Where to plot; by default in a new figure.
        **plot_options
            Further arguments of `plot`.

        Returns
        -------
        EvidenceDisplay

        Raises
        ------
        ImportError
            Without matplotlib.
        NotFittedError
            When the sampler is not fitted.
        ValueError
            When the energy is not known, or no draw is in the support.

        Examples
        --------
        >>> from skcds import DiffusionSampler, Pilot
        >>> from skcds.plotting import EvidenceDisplay
        >>> sampler = DiffusionSampler(
        ...     n_features=2, start=Pilot((3, 2), 500),
        ...     n_steps=8, max_iter=20, random_state=0
        ... )
        >>> sampler.fit(lambda x: 0.5 * ((x - 3) ** 2).sum(1))
        DiffusionSampler(...)
        >>> display = EvidenceDisplay.from_estimator(sampler, n=1000, random_state=0)
        >>> f"{display.log_evidence_:.1f}"  # log 2 pi
        '1.8'
        """
        require_matplotlib("EvidenceDisplay.from_estimator")
        check_is_fitted(estimator)
        n = check_count(n, "n", 2)
        with muted(ConvergenceWarning):  # what they say is in the caption
            weighted = estimator.sample_weighted(n, random_state=random_state, energy_fn=energy_fn, grad_fn=grad_fn)
        pilot = getattr(getattr(estimator, "teacher_", estimator), "pilot_", None)
        found = None if pilot is None else pilot.log_evidence
        return cls(
            weighted.log_weights, is_bound=weighted.is_bound, pilot_log_evidence=found, note=note_of(estimator)
        ).plot(ax=ax, **plot_options)

    @classmethod
    def from_weights(
        cls, log_weights, is_bound=None, *, pilot_log_evidence=None, ax=None, **plot_options
    ) -> "EvidenceDisplay":
        """Plot log weights.

        Parameters
        ----------
        log_weights : array-like of shape (n,), or WeightedSample
            Log weights; ``-inf`` is a weight of zero. A `WeightedSample` also brings `is_bound`.
        is_bound : bool, default=None
            Whether the mean log weight is a lower bound of log Z in expectation.
        pilot_log_evidence : float, default=None
            Another estimate of log Z.
        ax : matplotlib Axes, default=None
            Where to plot; by default in a new figure.
        **plot_options
            Further arguments of `plot`.

        Returns
        -------
        EvidenceDisplay

        Raises
        ------
        ImportError
            Without matplotlib.
        ValueError
            When the log weights are NaN, ``+inf``, or all ``-inf``.
        """
        require_matplotlib("EvidenceDisplay.from_weights")
        if isinstance(log_weights, WeightedSample):
            is_bound = log_weights.is_bound if is_bound is None else is_bound
            log_weights = log_weights.log_weights
        log_weights = np.asarray(log_weights, dtype=np.float64)
        return cls(log_weights, is_bound=is_bound, pilot_log_evidence=pilot_log_evidence).plot(ax=ax, **plot_options)

    def plot(self, ax=None, *, bins=None, log=True, color=None) -> "EvidenceDisplay":
        """Plot what is stored.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to plot in; by default those of a new figure.
        bins : int, default=None
            Bins of the histogram; by default by the square root of the number of draws.
        log : bool, default=True
            Whether counts are on a logarithmic scale, on which single draws of a tail can be seen.
        color : matplotlib color, default=None
            Of the histogram.

        Returns
        -------
        EvidenceDisplay
            Itself.

        Raises
        ------
        ImportError
            Without matplotlib.
        ValueError
            When the log weights are NaN, ``+inf``, or all ``-inf``.
        """
        require_matplotlib("EvidenceDisplay.plot")
        log_weights = np.asarray(self.log_weights, dtype=np.float64)
        self._measure(log_weights)
        shown = log_weights[np.isfinite(log_weights)] - self.log_evidence_
        low, high = self._window(shown)
        count = int(np.clip(0.8 * np.sqrt(len(shown)), 15, MAX_BINS)) if bins is None else check_count(bins, "bins", 2)
        edges = np.linspace(low, high, count + 1)
        beside: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)} if ax is None else {"loc": "best"}
        ax, self.figure_ = axes_for(ax, (6.6, 3.9))
        self.ax_: Any = ax
        counts = np.histogram(shown, edges)[0]
        self.histogram_ = ax.stairs(counts, edges, fill=True, color=color or BLUE, alpha=0.35, linewidth=0)
        self._draw_tail(ax, shown, edges)
        ax.set_ylim(*((0.6, 2.5 * counts.max()) if log else (0, 1.08 * counts.max())))
        ax.set_yscale("log" if log else "linear")
        self._draw_marks(ax, low, high)
        ax.set(xlabel="log weight − estimate of log Z", ylabel="draws in a bin", xlim=(low, high))
        tidy(ax)
        self.caption_ = self._caption(len(log_weights), len(shown), int((shown < low).sum()), low)
        good = self.pareto_k_ <= pareto_k_limit(len(log_weights)) and self.ess_ >= SMALL_SHARES[0][0]
        caption(ax, self.caption_.splitlines(), GREY if good else VERMILLION)
        self.note_ = mark(ax, self.note)
        ax.legend(frameon=False, fontsize="small", labelcolor=INK, handlelength=1.4, borderaxespad=0.2, **beside)
        return self

    def _measure(self, log_weights: np.ndarray) -> None:
        self.log_evidence_, self.log_evidence_se_ = log_evidence(log_weights)
        self.elbo_ = float(log_weights.mean())
        self.ess_ = effective_sample_size(log_weights) / len(log_weights)
        self.pareto_k_ = pareto_k(log_weights)

    def _window(self, shown: np.ndarray) -> tuple[float, float]:
        """All of the right, where the large weights are, and most of the left."""
        body = float(weighted_quantile(shown, [BULK], None)[0])
        high = max(float(shown.max()), 3 * (self.log_evidence_se_ or 0.0))
        low = max(float(shown.min()), body - 0.5 * (high - body))
        marks = [0.0] if self.pilot_log_evidence is None else [0.0, self.pilot_log_evidence - self.log_evidence_]
        marks = [mark for mark in marks if math.isfinite(mark)]
        low, high = min(low, *marks, 0.0), max(high, *marks, 0.0)
        edge = 0.04 * (high - low) or 1.0
        return low - edge, high + edge

    def _draw_tail(self, ax, shown: np.ndarray, edges: np.ndarray) -> None:
        """The largest weights, and the generalised Pareto distribution with the shape found."""
        self.tail_: Any = None
        self.tail_fit_: Any = None
        n = len(self.log_weights)
        n_tail = int(np.ceil(min(0.2 * n, 3 * np.sqrt(n))))
        if not math.isfinite(self.pareto_k_) or n_tail >= len(shown):
            return
        tail = np.sort(shown)[-n_tail - 1 :]
        cutoff, tail = tail[0], tail[1:]
        self.tail_ = ax.stairs(
            np.histogram(tail, edges)[0], edges, fill=True, color=VERMILLION, alpha=0.75, linewidth=0,
            label=f"{n_tail} largest",
        )  # fmt: skip
        at, counts = _tail_counts(tail, cutoff, self.pareto_k_, edges)
        if len(at):
            (self.tail_fit_,) = ax.plot(
                at, counts, color=DARK, linewidth=1.2, label=f"their fit, k = {number(self.pareto_k_, 2)}"
            )

    def _draw_marks(self, ax, low: float, high: float) -> None:
        se = self.log_evidence_se_
        if math.isfinite(se):
            ax.axvspan(-se, se, color=INK, alpha=0.18, linewidth=0, zorder=0.5)
        self.log_evidence_line_ = ax.axvline(0.0, color=INK, linewidth=1.2, label="log Z ± standard error")
        elbo = self.elbo_ - self.log_evidence_
        self.elbo_line_: Any = None
        if low <= elbo <= high:
            self.elbo_line_ = ax.axvline(elbo, color=INK, linewidth=1.2, linestyle="--", label=self._elbo_name)
        self.pilot_line_: Any = None
        if self.pilot_log_evidence is not None and math.isfinite(self.pilot_log_evidence):
            gap = self.pilot_log_evidence - self.log_evidence_
            self.pilot_line_ = ax.axvline(gap, color=GREEN, linewidth=1.4, linestyle=":", label="log Z of the pilot")

    @property
    def _elbo_name(self) -> str:
        return "mean log weight" if self.is_bound is False else "ELBO"

    def _caption(self, n: int, n_inside: int, n_left: int, low: float) -> str:
        digits = decimals(self.log_evidence_se_)
        lines = [f"log Z = {number(self.log_evidence_, digits)} ± {number(self.log_evidence_se_, digits)}"]
        if self.pilot_log_evidence is not None:
            lines[0] += f" · pilot {number(self.pilot_log_evidence, min(digits, 3))}"
        lines.append(f"ESS / n {number(self.ess_)}{_judged(self.ess_)} · Pareto k {_in_words(self.pareto_k_, n)}")
        bound = {True: ": a lower bound of log Z", False: ": no bound of log Z", None: ""}[self.is_bound]
        if not math.isfinite(self.elbo_):
            bound = ", for the draws outside the support"
        lines.append(f"{self._elbo_name} {number(self.elbo_, digits)}{bound}")
        if self.elbo_ - self.log_evidence_ < low and math.isfinite(self.elbo_):
            lines[-1] += ", left of the picture"
        if n > n_inside:
            lines.append(f"{n - n_inside} of {n} draws outside the support, with weight zero")
        if n_left:
            lines.append(f"{n_left} of {n} draws left of the picture")
        return "\n".join(lines)


def _judged(share: float) -> str:
    return next((f": {word}" for limit, word in SMALL_SHARES if share < limit), "")


def _in_words(k: float, n: int) -> str:
    if k == math.inf:
        return "∞: too few distinct weights to judge by"
    if k == -math.inf:
        return "−∞: good, the weights have no tail"
    return f"{number(k, 2)}: " + ("good" if k <= pareto_k_limit(n) else "unreliable")


def _tail_counts(tail: np.ndarray, cutoff: float, k: float, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Expected counts in a bin of the generalised Pareto distribution fitted to the excess of weights over a cutoff.

    Its shape is k, its scale that of the median excess.

    Parameters
    ----------
    tail : ndarray of shape (m,)
        Log weights of the tail.
    cutoff : float
        Log weight where it begins.
    k : float
        Shape.
    edges : ndarray of shape (bins + 1,)
        Bins of equal width.

    Returns
    -------
    at, counts : ndarray
        Log weights from the cutoff up to the last bin, and the counts there.
    """
    half = math.expm1(k * math.log(2)) / k if abs(k) > 1e-8 else math.log(2)
    scale = float(np.median(np.expm1(tail - cutoff))) / half  # in units of the weight at the cutoff
    at = np.linspace(cutoff, centers(edges)[-1], 200)
    inside = 1 + k * np.expm1(at - cutoff) / scale if scale > 0 else np.zeros(len(at))
    at, inside = at[inside > 0], inside[inside > 0]
    density = np.exp(-(1 / k + 1) * np.log(inside)) if abs(k) > 1e-8 else np.exp(-np.expm1(at - cutoff) / scale)
    return at, len(tail) * density / scale * np.exp(at - cutoff) * (edges[1] - edges[0])
