"""The pictures of a `SamplerDisplay`: a line, a plane, a corner plot."""

import numpy as np

from . import _grids as grids
from . import _panels as panels
from ._style import GREY, INK, THIN, axes_for, tidy

MARGINS = {"plane": 0.25, "corner": 0.15}  # around the bulk of the draws, as a share of its width
REFERENCE_IN_A_CELL = 5.0  # beside regions of the energy: noisier, and less widened by smoothing
TALLEST = 4.0  # of the histogram, that a curve may reach in the picture


def line(display, ax, style) -> None:
    """One feature."""
    ax, display.figure_ = axes_for(ax, (5.4, 3.6))
    display.ax_ = ax
    low, high = display._windows(MARGINS["plane"])[0]
    bins = style.bins or grids.bins_for(display.samples[:, 0], (low, high), display.weights, 0.5)
    edges = grids.edges_of((low, high), bins)
    heights = panels.heights_of(display.samples[:, 0], edges, display.weights)
    display.draws_ = [
        ax.stairs(heights, edges, fill=True, color=style.color, alpha=0.3, linewidth=0, label=style.label),
        ax.stairs(heights, edges, color=style.color, linewidth=1, alpha=0.8),
    ]
    top = heights.max()
    if display.reference is not None:
        heights = panels.heights_of(display.reference[:, 0], edges, None)
        display.reference_ = [
            ax.stairs(heights, edges, color=INK, linewidth=1, linestyle="--", label=style.reference_label)
        ]
        top = max(top, heights.max())
    if display.log_density is not None:
        density = _normalised_density(display)
        display.contours_ = ax.plot(display.grid[0], density, color=INK, linewidth=1.2, label="exp(−energy) / Z")
        top = max(top, min(density.max(), TALLEST * top))
    ax.set(xlabel=display._names[0], ylabel="density", xlim=(low, high), ylim=(0, 1.06 * top))
    tidy(ax)
    display.legend_ = panels.legend_below(ax)


def _normalised_density(display) -> np.ndarray:
    log_density = np.asarray(display.log_density)
    if display.log_evidence is not None:
        return np.exp(log_density - display.log_evidence)
    density = np.exp(log_density - log_density.max())
    return density / (density.sum() * (display.grid[0][1] - display.grid[0][0]))


def plane(display, ax, style) -> None:
    """Two features."""
    from matplotlib.patches import Patch

    ax, display.figure_ = axes_for(ax, (5.2, 5.0))
    display.ax_ = ax
    windows = display._windows(MARGINS["plane"])
    entries = []
    if display.log_density is not None and np.isfinite(display.log_density).any():
        display.contours_ = panels.draw_regions(ax, display.grid, np.asarray(display.log_density), style.masses)
        shares = ", ".join(f"{100 * mass:.3g}" for mass in style.masses)
        entries.append(
            Patch(facecolor=panels.GREYS[2], edgecolor=GREY, linewidth=THIN, label=f"{shares} % regions of the energy")
        )
    if style.scatters(len(display.samples)):
        display.draws_ = [panels.draw_points(ax, display.samples, display.weights, style)]
    else:
        display.draws_ = [panels.draw_histogram(ax, display.samples, windows, display.weights, style)]
    if display.reference is not None:
        bins = style.bins or grids.pair_bins(display.reference, windows, None, REFERENCE_IN_A_CELL)
        edges = [grids.edges_of(limits, bins) for limits in windows]
        display.reference_ = panels.outline(ax, display.reference, edges, style.masses)
    ax.set(xlabel=display._names[0], ylabel=display._names[1], xlim=windows[0], ylim=windows[1])
    tidy(ax, ("left", "bottom"))
    display.legend_ = panels.legend_below(ax, [style.entry(), *entries, *style.reference_entry(display.reference)])


def corner(display, ax, style) -> None:
    """Histograms on the diagonal, regions below it."""
    d = display.samples.shape[1]
    display.axes_, display.figure_ = panels.corner_axes(ax, d)
    windows = display._windows(MARGINS["corner"])
    for i in range(d):
        _diagonal(display, display.axes_[i, i], i, windows[i], style)
        for j in range(i):
            _pair(display, display.axes_[i, j], [j, i], [windows[j], windows[i]], style)
    panels.label_corner(display.axes_, display._names, windows, display.figure_)
    _explain_corner(display, style)


def _diagonal(display, ax, j, limits, style) -> None:
    bins = style.bins or grids.bins_for(display.samples[:, j], limits, display.weights, 0.35)
    edges = grids.edges_of(limits, bins)
    heights = panels.heights_of(display.samples[:, j], edges, display.weights)
    display.draws_ += [
        ax.stairs(heights, edges, fill=True, color=style.color, alpha=0.3, linewidth=0),
        ax.stairs(heights, edges, color=style.color, linewidth=1),
    ]
    top = heights.max()
    if display.reference is not None:
        heights = panels.heights_of(display.reference[:, j], edges, None)
        display.reference_.append(ax.stairs(heights, edges, color=INK, linewidth=0.9, linestyle="--"))
        top = max(top, heights.max())
    ax.set_ylim(0, max(1.1 * top, 0.0 if ax.get_autoscaley_on() else ax.get_ylim()[1]))


def _pair(display, ax, pair, windows, style) -> None:
    edges = _pair_edges(display, pair, windows, style)
    display.draws_ += panels.fill_regions(
        ax, display.samples[:, pair], edges, display.weights, style.masses, style.color
    )
    if display.reference is not None:
        display.reference_ += panels.outline(ax, display.reference[:, pair], edges, style.masses)


def _pair_edges(display, pair, windows, style) -> list[np.ndarray]:
    """Bins of both axes, the same for draws and reference: what smooths one smooths the other."""
    bins = style.bins or grids.pair_bins(display.samples[:, pair], windows, display.weights, panels.DRAWS_IN_A_CELL)
    if display.reference is not None and style.bins is None:
        bins = min(bins, grids.pair_bins(display.reference[:, pair], windows, None, panels.DRAWS_IN_A_CELL))
    return [grids.edges_of(limits, bins) for limits in windows]


def _explain_corner(display, style) -> None:
    ax = display.axes_[0, 0]
    shares = ", ".join(f"{100 * mass:.3g}" for mass in style.masses)
    title = f"regions with\n{shares} % of the mass"
    if display._n_hidden:
        title = f"{display.samples.shape[1]} of {display.n_features} features\n{title}"
    entries = [*panels.entries_of(ax), style.entry(), *style.reference_entry(display.reference)]
    display.legend_ = ax.legend(
        handles=entries, title=title, loc="upper left", bbox_to_anchor=(1.08, 1.0), borderaxespad=0, frameon=False,
        fontsize="medium", title_fontsize="small", alignment="left", labelcolor=INK,
    )  # fmt: skip
    display.legend_.get_title().set_color(GREY)
    display.legend_.set_in_layout(False)
