"""What a pilot does where it knows one mode: the best coordinates around it, and a short tempered run from these."""

__all__ = ["OneMode"]

import math
import time
from dataclasses import replace

import torch
from torch import Tensor

from .._support.devices import randn
from .._support.errors import Spent
from ..density.standardize import Standardization
from .laplace import is_better, is_close_to_normal, laplace_away_from_seams, variance_of_log_weights
from .modes import near_to
from .propriety import check_directions
from .result import PilotResult
from .skewness import best_gaussian
from .smc import MANY_FEATURES, moments
from .stages import HighDimension
from .tempered_run import TemperedRun
from .triangular import WORTH, best_triangular

GAUGED = 256  # rows whose time is measured
FEW = 4.0  # temperatures of a run in coordinates that are close to normal


class OneMode:
    """Runs from the best coordinates around a mode, and these coordinates in place of those by particles.

    Parameters
    ----------
    run : _Pilot
        The pilot's run: its energy, its limits, and what it goes by.
    """

    def __init__(self, run):
        self.pilot, self.energy, self.generator, self.budget = run, run.energy, run.generator, run.budget
        self.by = run.by

    def is_likely(self) -> bool:
        """Whether a run from the best Gaussian is worth a look: a race is slow, and a covariance of particles poor."""
        return self.energy.has_gradient and self.energy.n_features > self.by.high_dimension.n_features_of_one_mode

    def run_if_all_climbs_end_there(self) -> tuple[PilotResult, Tensor] | None:
        """`run` from the only mode that is known; None where there are others, or the run takes many temperatures."""
        modes = self.pilot.modes
        if not self.is_likely() or not modes:
            return None
        best = max(modes, key=lambda mode: mode.log_mass)
        least = best.log_mass - self.energy.n_features  # Laplace's approximation may be a nat off for each
        if not near_to(best, torch.stack([mode.x for mode in modes if mode.log_mass > least])).all():
            return None
        found, few = self.run(best.x), self.by.high_dimension.n_temperatures
        return found if found is not None and 0 < found[0].n_temperatures <= few else None

    def run(self, begin: Tensor | None = None) -> tuple[PilotResult, Tensor] | None:
        """A run from around the mode found from a point, by default the user's, or the origin; None without a mode.

        Particles of short runs say too little about a covariance in hundreds of dimensions, and tempering from afar
        takes hundreds of temperatures. Other modes are found only by luck.
        """
        self.budget.progress.phase("Laplace's approximation")
        energy, pilot, by = self.energy, self.pilot, self.by.high_dimension
        start = begin if begin is not None else None if pilot.start is None else pilot.start.points[0]
        laplace = laplace_away_from_seams(energy, start, by.max_iter)
        if laplace is None:
            return None
        found, inflation = self._best_around(laplace)
        most = min(pilot.n_particles, max(by.fewest_particles, by.max_numbers // energy.n_features))
        affordable = min(pilot.left(), self._rows_left(found)) / (by.n_temperatures * (1 + pilot.n_moves))
        affordable = max(
            self.by.tempering.fewest_particles, affordable * (1 if found.is_gaussian() else by.n_temperatures / FEW)
        )
        self.budget.progress.phase("tempering")
        run = TemperedRun(
            energy, found, int(min(most, affordable)), pilot.n_moves, self.generator, inflation, self.budget.progress,
            by=self.by.tempering,
        )  # fmt: skip
        try:
            if run.stopped is not None:
                raise run.stopped
            check_directions(run.x, moments(run.x, self.by.tempering.full_covariance), run.target)
        except (Spent, KeyboardInterrupt) as stopped:
            pilot.note(stopped)
        return run.result(found, float(self._width(found).mean())), run.x

    def refine(self, run: TemperedRun) -> None:
        """Take the best coordinates, by scores, in dimensions of which particles tell a covariance with much noise."""
        start = run.standardized()
        if not self.energy.has_gradient or self.energy.n_features <= MANY_FEATURES or not start.full:
            return
        if start.noncentred is not None or start.width.isfinite().any():
            return
        self.budget.progress.phase("best Gaussian")
        by, energy = self.by.high_dimension, self.energy
        until = energy.n_energy_evals + by.refined_share * self.pilot.evals_left()
        with self.pilot.share(by.refined_share):
            found, better = best_gaussian(
                energy, start, self.generator, by, lambda n: energy.n_energy_evals + n > until
            )  # fmt: skip
        if better:
            run.refine(found, self.by.tails.clear_loss)
        found, better = self._with_triangular(run.standardized())
        if better:
            run.refine(found, self.by.tails.clear_loss)

    @staticmethod
    def _width(found: Standardization) -> Tensor:
        """Standard deviations (d,), by the affine part or a sparse precision."""
        return found.deviation if found.sparse is None else found.variance.sqrt()

    def _rows_left(self, found: Standardization) -> float:
        """Rows that the time left is enough for, with what their coordinates take beside the density; no evaluation."""
        seconds = self.budget.seconds_left(self.pilot.time_share)
        if math.isinf(seconds):
            return math.inf
        start = time.perf_counter()
        z = randn(self.generator, GAUGED, self.energy.n_features, dtype=torch.float64)
        found.pull_back(z, z)
        return seconds / ((time.perf_counter() - start) / GAUGED + 1 / self.energy.evals_per_second)

    def _best_around(self, laplace: Standardization) -> tuple[Standardization, float]:
        """The best coordinates that the limits allow, and the width that a run starts with from there.

        A triangular map needs only a fair Gaussian to start from. Where it takes long, and is large, skewness along the
        coordinates may do as well.
        """
        by, of_maps, d = self.by.high_dimension, self.by.triangular, self.energy.n_features
        may_be_triangular, is_large = d <= of_maps.max_features, d > of_maps.max_features_of_cubics
        fair = laplace
        if may_be_triangular:
            few = replace(by, n_hessians=min(by.n_hessians, of_maps.n_hessians), n_skew_draws=0)
            fair, _ = self._best_gaussian(laplace, few)
        if may_be_triangular and not is_large:
            tried, better = self._with_triangular(fair)
            if better:
                return tried, by.variational_inflation
        found, better = self._best_gaussian(laplace, by)
        if may_be_triangular and is_large and (large := self._with_large_triangular(fair, found)) is not None:
            return large, by.variational_inflation
        better = better or is_close_to_normal(self.energy, found, by.n_draws, self.generator)
        return found, by.variational_inflation if better else by.inflation

    def _with_large_triangular(self, gaussian: Standardization, small: Standardization) -> Standardization | None:
        """A Gaussian behind a large triangular map; None where coordinates with a small one do about as well."""
        energy, n = self.energy, self.by.triangular.n_compared_cubic
        if variance_of_log_weights(energy, small, n, self.generator) < 2 * WORTH:
            return None  # the bound is half of it below log Z
        found, better = self._with_triangular(gaussian)
        return found if better and is_better(energy, found, small, n, self.generator, WORTH) else None

    def _best_gaussian(self, laplace: Standardization, by: HighDimension) -> tuple[Standardization, bool]:
        """The best Gaussian that the limits allow, and whether it is better than Laplace's."""
        pilot, budget = self.pilot, self.budget
        until = by.gaussian_share * pilot.time_share
        of_a_hessian = 2 * self.energy.n_features if laplace.sparse is None else 0
        least = max((1 - by.gaussian_share) * pilot.evals_left(), of_a_hessian)
        budget.progress.phase("best Gaussian")

        def ended(n):
            return pilot.evals_left() - n < least or budget.seconds_left(until) <= 0

        return best_gaussian(self.energy, laplace, self.generator, by, ended)

    def _with_triangular(self, gaussian: Standardization) -> tuple[Standardization, bool]:
        """A Gaussian behind a triangular map, and whether it is clearly better, within a share of the limits."""
        by, pilot = self.by.triangular, self.pilot
        self.budget.progress.phase("triangular map")
        end = time.perf_counter() + by.share * self.budget.seconds_left(pilot.time_share)
        return best_triangular(
            self.energy, gaussian, self.generator, by, by.share * pilot.left(), lambda: end - time.perf_counter()
        )  # fmt: skip
