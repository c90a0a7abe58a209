"""CalibrationDisplay: how good a sampler of a family is over contexts."""

from typing import Any

import numpy as np
from scipy.stats import binom

from ..weights.calibration import Calibration
from ._style import BLUE, GREY, INK, VERMILLION, axes_for, caption, number, require_matplotlib, tidy

BAND = 0.99  # of the counts of exact draws, in all bins together
MOST_BINS, RANKS_A_BIN = 20, 20


class CalibrationDisplay:
    """Normalised ESS over contexts, or the histogram of ranks if exact draws are known.

    A curve shows the share of contexts with at most a given ESS / n. For a perfect sampler it is a step at 1.

    Ranks of exact draws among those of an exact sampler are uniform. Each coordinate is a line, and nearly all of them
    stay in the band (99 % for all bins of all coordinates together, by Bonferroni's bound). A line like a bridge shows
    draws that are too wide. A line like a valley shows draws that are too narrow, and a slope shifted ones.

    Parameters
    ----------
    calibration : Calibration
        What `calibrate` found.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes.
    figure_ : matplotlib Figure
        The figure.
    lines_ : list of matplotlib Line2D or StepPatch
        The curve, or the histogram of each coordinate.
    band_ : tuple of float or None
        Lowest and highest count of a bin within the band.
    caption_ : str
        What the caption says.

    See Also
    --------
    Calibration : The numbers.

    Examples
    --------
    >>> import numpy as np
    >>> import skcds
    >>> sampler = skcds.ConsistentSamplerScratch(
    ...     n_features=1, start=skcds.Pilot((0.0, 2.0), 800),
    ...     max_iter=10, random_state=0
    ... )
    >>> C = np.random.default_rng(0).uniform(-1, 1, (50, 1))
    >>> sampler.fit(lambda x, c: 0.5 * ((x - c) ** 2).sum(1), contexts=C)
    ConsistentSamplerScratch(...)
    >>> found = sampler.calibrate(C, 200, random_state=0)
    >>> skcds.CalibrationDisplay(found).plot().caption_.partition(",")[0]
    '50 contexts'
    """

    def __init__(self, calibration: Calibration):
        self.calibration = calibration

    def plot(self, ax=None, *, ranks=None) -> "CalibrationDisplay":
        """Plot what is stored.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to plot in; by default those of a new figure.
        ranks : bool, default=None
            Whether to show ranks; by default if there are some.

        Returns
        -------
        CalibrationDisplay
            Itself.

        Raises
        ------
        ImportError
            Without matplotlib.
        ValueError
            When ranks are asked for and not known.
        """
        require_matplotlib("CalibrationDisplay.plot")
        found = self.calibration
        if ranks and found.ranks is None:
            raise ValueError("There are no ranks: pass draws= to calibrate.")
        known = None if ranks is False else found.ranks
        ax, self.figure_ = axes_for(ax, (5.2, 3.6))
        self.ax_: Any = ax
        self.band_: tuple[float, float] | None = None
        self.lines_ = self._draw_ess(ax) if known is None else self._draw_ranks(ax, known)
        tidy(ax)
        self.caption_ = (
            f"{len(found.contexts)} contexts, {found.n_draws} draws each: {found.verdict}\n"
            f"ESS / n in the mean {number(found.ess.mean())}, of the worst twentieth "
            f"{number(float(np.quantile(found.ess, 0.05)))}"
        )
        caption(ax, self.caption_.splitlines(), GREY if found.verdict == "ok" else VERMILLION)
        return self

    def _draw_ess(self, ax) -> list:
        ess = np.sort(self.calibration.ess)
        lines = ax.step(ess, np.arange(1, len(ess) + 1) / len(ess), where="post", color=BLUE)
        ax.set(xlabel="ESS / n", ylabel="share of contexts", xlim=(0, 1.02), ylim=(0, 1.02))
        return list(lines)

    def _draw_ranks(self, ax, ranks: np.ndarray) -> list:
        m, d = ranks.shape
        bins = int(np.clip(m // RANKS_A_BIN, 2, MOST_BINS))
        tail = 0.5 * (1 - BAND) / (bins * d)
        self.band_ = float(binom.ppf(tail, m, 1 / bins)), float(binom.ppf(1 - tail, m, 1 / bins))
        ax.axhspan(*self.band_, color=GREY, alpha=0.15, linewidth=0)
        ax.axhline(m / bins, color=INK, linewidth=0.6)
        edges = np.linspace(0, 1, bins + 1)
        patches = [ax.stairs(np.histogram(column, edges)[0], edges, alpha=0.8) for column in ranks.T]
        ax.set(xlabel="rank of the known draw", ylabel="contexts in a bin", xlim=(0, 1), ylim=(0, None))
        return patches
