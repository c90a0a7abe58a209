"""What the displays look like: colours that colour-blind readers tell apart, thin lines, numbers in captions."""

import math
from typing import Any

import numpy as np

BLUE, VERMILLION, GREEN = "#0072B2", "#D55E00", "#009E73"
DARK = "#7A2E00"  # vermillion, darker
INK, GREY = "0.2", "0.45"
THIN = 0.6  # points


def require_matplotlib(caller: str) -> None:
    """Say how to install matplotlib where it is not there.

    Raises
    ------
    ImportError
        Without matplotlib.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(f'{caller} needs matplotlib: pip install "skcds[plot]".') from error


def axes_for(ax, figsize: tuple[float, float]) -> tuple[Any, Any]:
    """The axes given, or those of a new figure; and their figure."""
    import matplotlib.pyplot as plt

    if ax is None:
        _, ax = plt.subplots(figsize=figsize, layout="constrained")
    return ax, ax.figure


def tidy(ax, spines: tuple[str, ...] = ("left", "bottom")) -> None:
    """Thin spines on the sides named, and small tick labels."""
    for side, spine in ax.spines.items():
        spine.set_visible(side in spines)
        spine.set(linewidth=THIN, color=GREY)
    ax.tick_params(which="both", width=THIN, color=GREY, labelcolor=INK, labelsize="small")


def caption(ax, lines: list[str], color: str = GREY):
    """Small lines above the axes, to the left."""
    return ax.set_title("\n".join(lines), loc="left", fontsize="small", color=color, linespacing=1.4)


def note_of(estimator) -> str | None:
    """What a reader of a picture has to know of a fit that went wrong or did not end; None of one that is well."""
    notes = []
    if getattr(estimator, "n_iter_", None) == 0:
        notes.append("not trained: no iteration was done")
    elif getattr(estimator, "converged_", True) is False:
        share = getattr(estimator, "ess_", math.nan)
        notes.append(f"not converged: Pareto k above its limit, ESS / n {number(share)}")
    if getattr(estimator, "interrupted_", False):
        notes.append("interrupted")
    return "\n".join(notes) or None


def mark(ax, note: str | None, inside: bool = True):
    """A small note in the upper left corner of axes, or above them; None without one."""
    if note is None:
        return None
    if not inside:
        return ax.set_title(note, loc="left", fontsize="small", color=VERMILLION)
    box = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1.5}
    return ax.text(
        0.015, 0.985, note, transform=ax.transAxes, ha="left", va="top", fontsize="small", color=VERMILLION, bbox=box,
        zorder=10,
    )  # fmt: skip


def number(value: float, digits: int | None = None) -> str:
    """A number with a minus sign as long as a plus; with so many decimals, or else to three figures."""
    if not math.isfinite(value):
        return str(value).replace("-", "−").replace("inf", "∞")
    text = f"{value:.3g}" if digits is None or abs(value) >= 1e5 else f"{value:.{digits}f}"
    return text.replace("e+0", "e").replace("e-0", "e-").replace("-", "−")


def decimals(error: float) -> int:
    """Decimals of a number with a standard error: two figures of the error, from one to six."""
    return int(np.clip(1 - math.floor(math.log10(error)), 1, 6)) if 0 < error < math.inf else 3


def short_ticks(axis, limits: tuple[float, float], n_ticks: int) -> None:
    """A few ticks with labels as short as tells them apart, none at the ends; without a separate offset."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    width = limits[1] - limits[0]
    figures = int(np.clip(math.ceil(math.log10(max(map(abs, limits)) / width)) + 3, 3, 12))

    def label(value, _=None):
        first, last = axis.get_view_interval()
        if not 0.07 < (value - first) / (last - first) < 0.93:
            return ""
        value = 0.0 if abs(value) < 1e-9 * width else value
        text = f"{value:.{figures}g}"
        if "e" in text and 1 <= abs(value) < 1e5:
            text = f"{value:.{figures}f}".rstrip("0").rstrip(".")
        return text.replace("e+0", "e").replace("e-0", "e-").replace("-", "−")

    axis.set_major_locator(MaxNLocator(n_ticks, min_n_ticks=2))
    axis.set_major_formatter(FuncFormatter(label))
