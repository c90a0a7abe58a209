"""What `SamplerDisplay` is made of: points, histograms, regions, legends, and the axes of a corner plot."""

import textwrap
from typing import Any

import numpy as np

from .._support.validation import check_count
from . import _grids as grids
from ._arguments import MAX_FEATURES, checked_masses
from ._style import INK, THIN, short_ticks, tidy

MASSES = {"plane": (0.5, 0.8, 0.95, 0.99), "corner": (0.5, 0.8, 0.95)}  # of the highest-density regions
GREYS = ("0.955", "0.91", "0.85", "0.77")  # of the regions, from the outside
MAX_POINTS = 20_000  # drawn one by one; more as a histogram
KINDS = ("auto", "scatter", "histogram", "corner")
CHARACTERS_AN_INCH = 12  # of a legend, its markers included
LEGEND_DROP = 36  # points from the axes to the legend below: tick labels and the name of the axis
DRAWS_IN_A_CELL = 14.0  # of a histogram that regions are found from, on average


class Style:
    """The arguments of `SamplerDisplay.plot`, checked."""

    def __init__(self, kind, masses, bins, color, label, reference_label, d):
        if kind not in KINDS:
            raise ValueError(f"kind has to be one of {', '.join(map(repr, KINDS))}; got {kind!r}.")
        if d > MAX_FEATURES:
            raise ValueError(f"A corner plot shows at most {MAX_FEATURES} features; got {d}.")
        self.asked = kind
        self.kind = "corner" if d > 2 or (kind == "corner" and d == 2) else "plane"
        self.masses = checked_masses(MASSES[self.kind] if masses is None else masses)
        self.bins = None if bins is None else check_count(bins, "bins", 2)
        self.color, self.label, self.reference_label = color, label, reference_label

    def scatters(self, n: int) -> bool:
        return self.asked == "scatter" or (self.asked == "auto" and n <= MAX_POINTS)

    def entry(self):
        """The draws in a legend."""
        from matplotlib.lines import Line2D

        return Line2D([], [], linestyle="none", marker="o", markersize=5, color=self.color, alpha=0.7, label=self.label)

    def reference_entry(self, reference) -> list:
        from matplotlib.lines import Line2D

        if reference is None:
            return []
        return [Line2D([], [], color=INK, linewidth=1, linestyle="--", label=self.reference_label)]


def heights_of(x, edges, weights) -> np.ndarray:
    """Density (bins,): with all draws, those outside the edges too, it would integrate to one."""
    counts, _ = np.histogram(x, edges, weights=weights)
    return counts / (len(x) if weights is None else 1.0) / np.diff(edges)


def draw_regions(ax, grid, log_density, masses) -> list:
    """Highest-density regions of a density on a grid, in greys with thin lines."""
    peak = log_density.max()
    levels = np.unique(np.log(np.maximum(grids.hdr_levels(np.exp(log_density - peak), masses), 1e-300)))
    surface = np.maximum(log_density - peak, levels[0] - 5).T
    greys = [GREYS[round(k)] for k in np.linspace(0, len(GREYS) - 1, len(levels))]
    filled = ax.contourf(*grid, surface, levels=[*levels, np.inf], colors=greys, zorder=0)
    lines = ax.contour(
        *grid, surface, levels=levels, colors="0.55", linewidths=THIN, linestyles="solid", zorder=0.5
    )  # fmt: skip
    return [filled, lines]


def draw_points(ax, xy, weights, style):
    """Points, with areas by their weights."""
    n = len(xy)
    size = float(np.clip(2e4 / n, 1.5, 14.0))
    sizes = size if weights is None else size * np.minimum(n * weights, 60.0)
    return ax.scatter(
        xy[:, 0], xy[:, 1], s=sizes, color=style.color, alpha=float(np.clip(18 / np.sqrt(n), 0.2, 0.8)),
        linewidths=0, zorder=2, rasterized=n > 2000,
    )  # fmt: skip


def draw_histogram(ax, xy, windows, weights, style):
    """Two-dimensional histogram, transparent where there are no draws."""
    bins = style.bins or grids.pair_bins(xy, windows, weights, 2 * DRAWS_IN_A_CELL)
    edges = [grids.edges_of(limits, bins) for limits in windows]
    counts, _, _ = np.histogram2d(xy[:, 0], xy[:, 1], edges, weights=weights)
    counts = np.ma.masked_less_equal(counts.T, 0)
    return ax.pcolormesh(*edges, counts, cmap=fade_to(style.color), vmin=0, linewidth=0, rasterized=True, zorder=2)


def fade_to(color):
    """Colour map from nearly transparent to a colour."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgb

    rgb = to_rgb(color)
    return LinearSegmentedColormap.from_list("draws", [(*rgb, 0.15), (*rgb, 0.8), (*(0.5 * c for c in rgb), 1.0)])


def smooth_surface(xy, edges, weights, masses) -> tuple[np.ndarray, np.ndarray]:
    """Smoothed histogram (y along the first axis), and increasing levels of its highest-density regions."""
    surface = grids.smooth_histogram(xy, edges, weights)
    levels = np.unique(grids.hdr_levels(surface, masses)) if surface.any() else np.array([])
    return surface.T, levels[levels > 0]


def fill_regions(ax, xy, edges, weights, masses, color) -> list:
    from matplotlib.colors import to_rgb

    surface, levels = smooth_surface(xy, edges, weights, masses)
    if not len(levels):
        return []
    middles = [grids.centers(axis) for axis in edges]
    fills = [(*to_rgb(color), alpha) for alpha in np.linspace(0.18, 0.75, len(levels))]
    filled = ax.contourf(*middles, surface, levels=[*levels, np.inf], colors=fills)
    line = ax.contour(*middles, surface, levels=levels, colors=[color], linewidths=THIN, alpha=0.8)
    return [filled, line]


def outline(ax, xy, edges, masses) -> list:
    surface, levels = smooth_surface(xy, edges, None, masses)
    if not len(levels):
        return []
    middles = [grids.centers(axis) for axis in edges]
    return [ax.contour(*middles, surface, levels=levels, colors=INK, linewidths=0.9, linestyles="--", zorder=3)]


def legend_below(ax, handles=None):
    """Below the label of the horizontal axis, where it covers nothing and leaves room for a title."""
    from matplotlib.transforms import ScaledTranslation

    handles = ax.get_legend_handles_labels()[0] if handles is None else [*entries_of(ax), *handles]
    n_characters = sum(len(handle.get_label()) for handle in handles)
    inches = ax.get_window_extent().width / ax.figure.dpi
    fits = max(1, int(inches * CHARACTERS_AN_INCH / max(n_characters, 1) * len(handles)))
    below = ax.transAxes + ScaledTranslation(0, -LEGEND_DROP / 72, ax.figure.dpi_scale_trans)
    return ax.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0.0, 0.0), bbox_transform=below, ncols=min(fits, 3),
        frameon=False, borderaxespad=0, fontsize="small", handlelength=1.4, columnspacing=1.2, handletextpad=0.5,
        labelcolor=INK,
    )  # fmt: skip


def entries_of(ax) -> list:
    """Entries of the legend that a display before this one has made."""
    return [] if ax.get_legend() is None else list(ax.get_legend().legend_handles)


def corner_axes(ax, d: int) -> tuple[np.ndarray, Any]:
    """Axes (d, d), None above the diagonal, that share the limits of their columns and rows; and their figure."""
    import matplotlib.pyplot as plt
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    if isinstance(ax, np.ndarray):
        if ax.shape != (d, d):
            raise ValueError(f"ax has to be an array of axes of shape ({d}, {d}); got shape {ax.shape}.")
        return ax, ax[0, 0].figure
    if ax is None:
        side = min(2.6 + 1.4 * d, 5 + 0.8 * d)
        layout = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0.0, hspace=0.0)
        figure = plt.figure(figsize=(side, side), layout=layout)
        spec = figure.add_gridspec(d, d)
    else:
        figure, place = ax.figure, ax.get_subplotspec()
        box = ax.get_position()
        ax.set_axis_off()
        sides = {"left": box.x0, "right": box.x1, "bottom": box.y0, "top": box.y1}
        spec = (
            figure.add_gridspec(d, d, **sides) if place is None else place.subgridspec(d, d, wspace=0.08, hspace=0.08)
        )
    axes = np.full((d, d), None, dtype=object)
    for i in range(d):
        axes[i, i] = figure.add_subplot(spec[i, i])
    for i in range(d):
        for j in range(i):
            axes[i, j] = figure.add_subplot(spec[i, j], sharex=axes[j, j], sharey=axes[i, 0] if j else None)
    return axes, figure


def label_corner(axes, names, windows, figure) -> None:
    """Limits, ticks and labels, the latter only at the left and below."""
    d = len(axes)
    place = axes[-1, 0].get_position()
    points = 72 * min(place.width * figure.bbox.width, place.height * figure.bbox.height) / figure.dpi
    size = "medium" if d <= 4 else "small"
    width = max(8, int(points / (5.7 if d <= 4 else 4.8)))
    wrapped = [textwrap.fill(name, width, max_lines=2, placeholder="…") for name in names]
    n_ticks = 4 if d <= 5 else 3
    for i in range(d):
        for j in range(i + 1):
            ax, last = axes[i, j], i == d - 1
            tidy(ax, ("bottom",) if i == j else ("left", "bottom", "right", "top"))
            ax.set_xlim(*windows[j])
            short_ticks(ax.xaxis, windows[j], n_ticks)
            if i == j:
                ax.set_yticks([])
            else:
                ax.set_ylim(*windows[i])
                short_ticks(ax.yaxis, windows[i], n_ticks)
            ax.tick_params(labelbottom=last, labelleft=j == 0 and i > 0, length=2.5)
            if last:
                ax.set_xlabel(wrapped[j], fontsize=size)
                turn_long_labels(ax)
        if i:
            axes[i, 0].set_ylabel(wrapped[i], fontsize=size)
    figure.align_labels([ax for ax in axes.ravel() if ax is not None])


def turn_long_labels(ax) -> None:
    labels = [ax.xaxis.get_major_formatter()(tick) for tick in ax.get_xticks()]
    if max(map(len, labels), default=0) > 5:
        ax.tick_params(axis="x", labelrotation=45)
