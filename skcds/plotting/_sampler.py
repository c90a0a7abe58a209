"""SamplerDisplay: what a sampler draws."""

from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted

from .._support.settings import guest
from .._support.validation import check_count
from ..density.energy import Energy
from ..density.function import Density
from ..io.export import checked_names
from ..weights.sample import WeightedSample
from . import _arguments as arguments
from . import _grids as grids
from . import _panels as panels
from . import _pictures as pictures
from ._style import BLUE, mark, note_of, require_matplotlib


class SamplerDisplay:
    """Draws of a sampler: a histogram, a plane with the density under the draws, or a corner plot.

    Make one with `from_estimator` or `from_samples`.

    - One feature is shown as a histogram, with the normalised density over it if the energy is known.
    - Two features are shown as points over the highest-density regions of the energy, found on a grid. The regions hold
      50, 80, 95 and 99 % of the mass in the window.
    - Three to eight features make a corner plot, with histograms of each on the diagonal and highest-density regions of
      the draws below it.

    Weighted draws enter by their weights: in histograms as such, as points by their areas. Regions of draws are those
    of a histogram smoothed by one bin. That makes narrow ones a little wider. In a corner plot it does the same to the
    reference.

    A picture of a sampler's own draws cannot show a mode that they miss. `reference` draws can, and so can the regions
    of the energy if they reach into the window.

    Parameters
    ----------
    samples : ndarray of shape (n, d)
        Draws of the features shown.
    weights : ndarray of shape (n,), default=None
        Normalised weights.
    feature_names : ndarray of shape (d,), default=None
        Names of the features shown; by default x0, x1, ...
    reference : ndarray of shape (m, d), default=None
        Other draws, to compare with.
    grid : list of ndarray, default=None
        Axes of the grid that `log_density` is on.
    log_density : ndarray of shape (len(grid[0]), ...), default=None
        Minus the energy on the grid, with one or two features.
    log_evidence : float, default=None
        log Z, which normalises the curve over the histogram of one feature; by default its integral over the window.
    n_features : int, default=None
        Features of the density, if only some are shown; by default d.
    note : str, default=None
        A note on the fit that is shown in the axes, for example that it did not converge.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes of one or two features; None for a corner plot.
    axes_ : ndarray of shape (d, d) of matplotlib Axes
        Axes of a corner plot, None above its diagonal; None for one or two features.
    figure_ : matplotlib Figure
        The figure.
    draws_ : list of matplotlib artists
        The draws, for a corner plot those of every panel.
    contours_ : list of matplotlib artists
        Regions of the energy, or the curve of the density; empty if the energy is not known.
    reference_ : list of matplotlib artists
        Outlines of the other draws; empty without them.
    legend_ : matplotlib Legend
        The legend.
    note_ : matplotlib Text
        The note; None without one.

    See Also
    --------
    TrainingDisplay : The losses of a fit.
    EvidenceDisplay : The log weights of the draws.

    Examples
    --------
    >>> import numpy as np
    >>> from skcds.plotting import SamplerDisplay
    >>> X = np.random.default_rng(0).normal(size=(500, 3))
    >>> names = ["length", "width", "height"]
    >>> display = SamplerDisplay.from_samples(X, feature_names=names)
    >>> display.axes_.shape
    (3, 3)
    """

    def __init__(
        self, samples, *, weights=None, feature_names=None, reference=None, grid=None, log_density=None,
        log_evidence=None, n_features=None, note=None,
    ):  # fmt: skip
        self.samples = samples
        self.weights = weights
        self.feature_names = feature_names
        self.reference = reference
        self.grid = grid
        self.log_density = log_density
        self.log_evidence = log_evidence
        self.n_features = n_features
        self.note = note

    # ---------------------------------------------------------------- from estimators and draws

    @classmethod
    @guest
    def from_estimator(
        cls, estimator, n=5000, *, weighted=False, energy_fn=None, grad_fn=None, features=None, feature_names=None,
        reference=None, grid_size=None, random_state=None, ax=None, **plot_options,
    ) -> "SamplerDisplay":  # fmt: skip
        """Draw from a fitted sampler and plot the draws.

        Parameters
        ----------
        estimator : object
            A fitted sampler.
        n : int, default=5000
            Number of draws.
        weighted : bool or "auto", default=False
            Whether to weigh the draws, which needs the energy. With "auto" they are weighed if the energy is known and
            the Pareto k of the weights is reliable.
        energy_fn, grad_fn : callable, optional
            The energy, for a sampler that was loaded without it.
        features : sequence of int or str, default=None
            Features and derived quantities to show, by index or name, the latter after the former; by default all, or
            the first eight with a note. Of draws in the unit cube of a prior the parameters are shown.
        feature_names : sequence of str of length n_features, default=None
            Names of all features; by default the estimator's ``feature_names_out_``, else x0, x1, ...
        reference : array-like of shape (m, n_features) or "particles", default=None
            Draws to compare with, such as exact ones or those of a Markov chain. "particles" stands for those of the
            training, which the sampler did not draw, in the user's coordinates.
        grid_size : int, default=None
            Points along each axis of the grid that the energy is evaluated on. By default 1000 for one feature, and 200
            for two, which makes 40 000 evaluations. Very narrow densities need more.
        random_state : int, RandomState instance, numpy.random.Generator or None, default=None
            Seed of the draws.
        ax : matplotlib Axes, default=None
            Where to plot; see `plot`.
        **plot_options
            Further arguments of `plot`.

        Returns
        -------
        SamplerDisplay

        Raises
        ------
        ImportError
            Without matplotlib.
        NotFittedError
            When the sampler is not fitted.
        ValueError
            When an argument is out of its range, or the energy is needed and not known.

        Examples
        --------
        >>> from skcds import DiffusionSampler, Pilot
        >>> from skcds.plotting import SamplerDisplay
        >>> sampler = DiffusionSampler(
        ...     n_features=2, start=Pilot((3, 2), 500),
        ...     n_steps=8, max_iter=20, random_state=0
        ... )
        >>> sampler.fit(lambda x: 0.5 * ((x - 3) ** 2).sum(1))
        DiffusionSampler(...)
        >>> options = {"n": 500, "grid_size": 50, "random_state": 0}
        >>> display = SamplerDisplay.from_estimator(sampler, **options)
        >>> display.ax_.get_xlabel()
        'x0'
        """
        require_matplotlib("SamplerDisplay.from_estimator")
        check_is_fitted(estimator)
        if not isinstance(weighted, bool) and weighted != "auto":
            raise ValueError(f"weighted has to be True, False or 'auto'; got {weighted!r}.")
        energy = arguments.energy_of(estimator, Density.of(energy_fn, grad_fn))
        options = {} if energy_fn is None else {"energy_fn": energy_fn, "grad_fn": grad_fn}
        if weighted == "auto" and energy is None:
            weighted = False
        X, log_weights = arguments.draw_from(estimator, check_count(n, "n", 2), weighted, random_state, options)
        if isinstance(reference, str):
            reference = arguments.particles_of(estimator, reference)
        names = feature_names if feature_names is not None else getattr(estimator, "feature_names_out_", None)
        display = cls._computed(
            X, arguments.normalised_weights(log_weights), names, features, reference, energy,
            getattr(estimator, "log_evidence_", None), grid_size, getattr(estimator, "bounds_", None),
            getattr(estimator, "_columns", None), arguments.in_cube(estimator),
        )  # fmt: skip
        display.note = note_of(estimator)
        return display.plot(ax=ax, **plot_options)

    @classmethod
    @guest
    def from_samples(
        cls, X, *, sample_weight=None, log_weights=None, energy_fn=None, log_evidence=None, features=None,
        feature_names=None, reference=None, grid_size=None, ax=None, **plot_options,
    ) -> "SamplerDisplay":  # fmt: skip
        """Plot draws.

        Parameters
        ----------
        X : array-like of shape (n, d), or WeightedSample
            Draws; a `WeightedSample` brings its weights, a data frame the names of its columns.
        sample_weight : array-like of shape (n,), default=None
            Weights, not negative.
        log_weights : array-like of shape (n,), default=None
            Logarithms of weights, in place of these; ``-inf`` is a weight of zero.
        energy_fn : callable, default=None
            Maps points (n, d) to energies (n,); shown with one or two features.
        log_evidence : float, default=None
            log Z of the energy; see `SamplerDisplay`.
        features, feature_names, grid_size, ax, **plot_options
            As in `from_estimator`.
        reference : array-like of shape (m, d), default=None
            Draws to compare with.

        Returns
        -------
        SamplerDisplay

        Raises
        ------
        ImportError
            Without matplotlib.
        ValueError
            When shapes do not agree, or draws that have a weight are not finite.
        """
        require_matplotlib("SamplerDisplay.from_samples")
        names: Any
        if isinstance(X, WeightedSample):
            if sample_weight is not None or log_weights is not None:
                raise ValueError("A WeightedSample has weights of its own: pass its samples to give others.")
            names, log_weights = X.feature_names, X.log_weights
            beside = (lambda rows, columns=X.derived: columns or {}) if reference is None else None
            X, in_cube = X.samples, X.parameter_names is not None
        else:
            beside, in_cube, names = None, False, arguments.columns_of(X)
        X = arguments.as_draws(X, "X")
        weights = arguments.as_weights(sample_weight, log_weights, len(X))
        energy = None if energy_fn is None else Energy(energy_fn, X.shape[1], None, torch.Generator().manual_seed(0))
        names = feature_names if feature_names is not None else names
        return cls._computed(
            X, weights, names, features, reference, energy, log_evidence, grid_size, None, beside, in_cube
        ).plot(ax=ax, **plot_options)

    @classmethod
    def _computed(
        cls, X, weights, names, features, reference, energy, log_evidence, grid_size, bounds, beside, in_cube
    ):  # fmt: skip
        """The display with what it stores; without plotting it. ``beside(X)`` gives derived columns of draws."""
        n_features = X.shape[1]
        names = checked_names(names, n_features, "feature_names")
        if reference is not None:
            reference = arguments.as_draws(reference, "reference")
            if reference.shape[1] != n_features:
                raise ValueError(f"reference has {reference.shape[1]} features, and the draws have {n_features}.")
        X, reference, names = arguments.with_derived(X, reference, names, beside)
        if features is None and in_cube and len(names) > n_features:
            features = names[n_features : n_features + arguments.MAX_FEATURES]
        columns = arguments.chosen_features(features, names)
        X, weights = arguments.finite_rows(X, weights)
        if reference is not None:
            reference, _ = arguments.finite_rows(reference, None, "reference")
            reference = reference[:, columns]
        display = cls(
            X[:, columns], weights=weights, feature_names=names[columns], reference=reference, n_features=len(names)
        )
        if energy is not None and sorted(columns) == list(range(n_features)) and n_features <= 2:
            size = check_count((1000, 200)[n_features - 1] if grid_size is None else grid_size, "grid_size", 2)
            box = [(-np.inf, np.inf) if bounds is None else tuple(bounds[j]) for j in columns]
            display.grid = [
                arguments.axis_within(window, limits, size)
                for window, limits in zip(display._windows(pictures.MARGINS["plane"]), box, strict=True)
            ]
            display.log_density = grids.log_density_on(energy, display.grid, columns)
            display.log_evidence = log_evidence
        return display

    def _windows(self, margin: float) -> list[tuple[float, float]]:
        """Limits of every feature."""
        found = []
        for j in range(self.samples.shape[1]):
            columns = [(self.samples[:, j], self.weights)]
            if self.reference is not None:
                columns.append((self.reference[:, j], None))
            found.append(grids.window(columns, 0.0025, margin))
        return found

    # ---------------------------------------------------------------- plotting

    def plot(
        self, ax=None, *, kind="auto", masses=None, bins=None, color=None, label=None, reference_label="reference"
    ) -> "SamplerDisplay":
        """Plot what is stored.

        Parameters
        ----------
        ax : matplotlib Axes, or ndarray of them of shape (d, d), default=None
            Axes to plot in; by default those of a new figure. A corner plot takes the place of a single one, or goes
            over that of another display when given its ``axes_``.
        kind : {"auto", "scatter", "histogram", "corner"}, default="auto"
            How to show two features: as points up to 20 000 draws and as a histogram above; "corner" adds the
            histogram of each. One feature is always a histogram, three and more a corner plot.
        masses : sequence of float, default=None
            Shares of the mass that the highest-density regions hold; by default .5, .8, .95 and, with two features,
            .99.
        bins : int, default=None
            Bins of a histogram along each axis; by default by the square root of the effective number of draws.
        color : matplotlib color, default=None
            Of the draws.
        label : str, default=None
            Of the draws in the legend; by default "draws" or "weighted draws".
        reference_label : str, default="reference"
            Of the other draws in the legend.

        Returns
        -------
        SamplerDisplay
            Itself.

        Raises
        ------
        ImportError
            Without matplotlib.
        ValueError
            When an argument is out of its range.
        """
        require_matplotlib("SamplerDisplay.plot")
        d = self.samples.shape[1]
        style = panels.Style(kind, masses, bins, color or BLUE, label or self._default_label(), reference_label, d)
        self.ax_: Any = None
        self.axes_: Any = None
        self.draws_: list = []
        self.contours_: list = []
        self.reference_: list = []
        if style.kind == "corner":
            pictures.corner(self, ax, style)
        elif d == 1:
            pictures.line(self, ax, style)
        else:
            pictures.plane(self, ax, style)
        self.note_ = self._mark()
        return self

    def _mark(self):
        if self.ax_ is not None:
            return mark(self.ax_, self.note)
        return mark(self.axes_[0, 0], self.note, inside=False)

    def _default_label(self) -> str:
        return "draws" if self.weights is None else "weighted draws"

    @property
    def _names(self) -> list[str]:
        names = self.feature_names
        return [f"x{j}" for j in range(self.samples.shape[1])] if names is None else [str(name) for name in names]

    @property
    def _n_hidden(self) -> int:
        return (self.n_features or self.samples.shape[1]) - self.samples.shape[1]
