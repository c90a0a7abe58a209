"""The numbers behind the pictures: highest-density regions, weighted histograms, windows, the density on a grid."""

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from ..density.energy import Energy

CHUNK_ROWS = 8192
FIRST_BINS = 100, 60  # of a first histogram with one axis and with two, by which bins are chosen
BINS_ALLOWED = 12, 120


def hdr_levels(density, masses) -> np.ndarray:
    """Levels of highest-density regions: the cells of a uniform grid with a density above one hold a share of the mass.

    Parameters
    ----------
    density : ndarray
        Densities of the cells, not negative, up to a constant.
    masses : array-like of shape (k,)
        Shares between 0 and 1.

    Returns
    -------
    ndarray of shape (k,)

    Examples
    --------
    >>> import numpy as np
    >>> from skcds.plotting._grids import hdr_levels
    >>> x = np.linspace(-5, 5, 201)
    >>> density = np.exp(-0.5 * (x[:, None] ** 2 + x**2))
    >>> hdr_levels(density, [0.5, 0.95]).round(2)  # one minus the mass, in the plane
    array([0.5 , 0.05])
    """
    cells = np.sort(np.ravel(density))[::-1]
    held = np.cumsum(cells)
    index = np.searchsorted(held / held[-1], np.asarray(masses, dtype=np.float64))
    return cells[np.minimum(index, len(cells) - 1)]


def weighted_quantile(x: np.ndarray, levels, weights: np.ndarray | None) -> np.ndarray:
    """Quantiles (k,) of x (n,) with weights (n,) that sum to 1, or with equal ones."""
    if weights is None:
        return np.quantile(x, levels)
    order = np.argsort(x)
    share = weights[order]
    return np.interp(levels, np.cumsum(share) - 0.5 * share, x[order])


def window(columns: list[tuple[np.ndarray, np.ndarray | None]], tail: float, margin: float) -> tuple[float, float]:
    """Limits for columns with their weights: quantiles at `tail`, a share of their distance beyond, no wider than all.

    Single draws far out do not squash the rest.
    """
    spans = []
    for x, weights in columns:
        low, high = weighted_quantile(x, [tail, 1 - tail], weights)
        seen = x if weights is None else x[weights > 0]
        beyond = margin * (high - low)
        spans.append((max(seen.min(), low - beyond), min(seen.max(), high + beyond)))
    low, high = min(low for low, _ in spans), max(high for _, high in spans)
    edge = 0.03 * (high - low) or 0.5 * max(abs(low), 1.0)
    return float(low - edge), float(high + edge)


def effective_number(n: int, weights: np.ndarray | None) -> float:
    """Number of equal draws that weights (n,), normalised, are worth."""
    return float(n) if weights is None else float(1 / np.sum(weights**2))


def bins_for(x: np.ndarray, limits: tuple[float, float], weights: np.ndarray | None, factor: float) -> int:
    """Bins of a histogram over a window: `factor` times the root of the number of draws in the part that holds them."""
    counts, _ = np.histogram(x, FIRST_BINS[0], limits, weights=weights)
    bins = factor * np.sqrt(effective_number(len(x), weights)) * FIRST_BINS[0] / _occupied(counts)
    return int(np.clip(bins, *BINS_ALLOWED))


def pair_bins(xy: np.ndarray, limits: list[tuple[float, float]], weights: np.ndarray | None, in_a_cell: float) -> int:
    """Bins of both axes of a histogram: cells that hold so many draws each, in the part that holds them.

    Separate narrow modes have finer bins than one wide one.
    """
    counts, _, _ = np.histogram2d(xy[:, 0], xy[:, 1], FIRST_BINS[1], limits, weights=weights)
    cells = effective_number(len(xy), weights) / in_a_cell
    return int(np.clip(FIRST_BINS[1] * np.sqrt(cells / _occupied(counts)), *BINS_ALLOWED))


def _occupied(counts: np.ndarray) -> float:
    """Number of equally filled cells with the same entropy."""
    share = counts[counts > 0] / counts.sum()
    return float(np.exp(-np.sum(share * np.log(share)))) if len(share) else 1.0


def edges_of(limits: tuple[float, float], bins: int) -> np.ndarray:
    """Edges (bins + 1,) of equal bins."""
    return np.linspace(limits[0], limits[1], bins + 1)


def smooth_histogram(xy: np.ndarray, edges: list[np.ndarray], weights: np.ndarray | None) -> np.ndarray:
    """Weighted two-dimensional histogram of points (n, 2), smoothed by one bin; x along the first axis."""
    counts, _, _ = np.histogram2d(xy[:, 0], xy[:, 1], edges, weights=weights)
    return gaussian_filter(counts, 1.0, mode="constant")


def centers(edges: np.ndarray) -> np.ndarray:
    """Middles of bins."""
    return 0.5 * (edges[1:] + edges[:-1])


def log_density_on(energy: Energy, grid: list[np.ndarray], columns: list[int]) -> np.ndarray:
    """Minus the energy on the product of axes; ``-inf`` outside the support.

    Parameters
    ----------
    energy : Energy
        The density.
    grid : list of ndarray
        An axis for every feature, in the order that they are shown in.
    columns : list of int
        The feature of each axis.
    """
    mesh = np.stack(np.meshgrid(*grid, indexing="ij"), -1).reshape(-1, len(grid))
    points = np.empty_like(mesh)
    points[:, columns] = mesh
    rows = torch.from_numpy(points).to(energy.call_device, energy.dtype)
    with torch.no_grad():
        values = torch.cat([energy._call(chunk).detach().double() for chunk in rows.split(CHUNK_ROWS)]).cpu().numpy()
    values = np.where(np.isnan(values) | np.isneginf(values), np.inf, values)
    return -values.reshape([len(axis) for axis in grid])
