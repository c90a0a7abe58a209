"""A tempered run with all particles, and what its particles tell of location, scale and tails."""

__all__ = [
    "TemperedRun",
    "better_fit",
    "better_standardization",
    "finest_scale",
    "heavy_tails",
    "newly_heavy",
    "standardization_of",
    "standardize",
]

import math

import torch
from torch import Tensor

from .._support.errors import InvalidEnergyError
from ..density.energy import Energy
from ..density.noncentred import NonCentred
from ..density.standardize import Standardization, StandardizedTarget
from ..train.particles import Population, spread_index
from .result import PilotResult
from .smc import Tempered, moments, temper
from .stages import Tails, Tempering

DEPENDENCE = 4.0  # particles that count as one independent draw: they have common ancestors


class TemperedRun:
    """A tempered run with all particles, from a Gaussian in standardised coordinates."""

    def __init__(
        self, energy: Energy, standardization: Standardization, n_particles: int, n_moves: int, generator,
        inflation: float = Tempering.inflation, progress=None, max_raised: float = 1.0, by: Tempering | None = None,
    ):  # fmt: skip
        self.standardization, self.n_moves, self.generator = standardization, n_moves, generator
        self.gaussian: Standardization | None = None
        self.by = Tempering() if by is None else by
        self.target = StandardizedTarget(energy, standardization, energy.fast_dtype)
        before = energy.n_energy_evals
        found: Tempered = temper(
            self.target,
            n_particles,
            inflation,
            n_moves,
            generator,
            progress=progress,
            max_raised=max_raised,
            by=self.by,
        )
        self.log_evidence, self.n_temperatures, self.stopped = found.log_evidence, found.n_temperatures, found.stopped
        self.n_evals = energy.n_energy_evals - before
        self.x = standardization(found.z)
        if self.stopped is None and self.log_evidence == -math.inf and max_raised == 1.0:
            raise InvalidEnergyError(
                "No particle of the pilot's last run met the support of the density, which its first runs had found: "
                "it is too narrow for a Gaussian around it. Pass bounds=, or more n_particles."
            )

    @property
    def tails(self) -> tuple[Tensor, Tensor]:
        """Center and width of the hyperbolic sine, (d,)."""
        return self.standardization.center, self.standardization.width

    def standardized(self) -> Standardization:
        """The standardisation that the particles lead to, or a better one."""
        if self.gaussian is not None:
            return self.gaussian
        return standardize(self.x, self.tails, self.by.full_covariance, self.standardization.noncentred)

    def non_centre(self, noncentred: NonCentred, by: Tails) -> None:
        """Go on in non-centred coordinates, with the tails that coordinates have there."""
        self.standardization = standardization_of(self.x, by, self.by.full_covariance, noncentred)

    def refine(self, found: Standardization, clear_loss: float) -> None:
        """Go on with another Gaussian than that of the particles' moments, if it knows all of these.

        A Gaussian around one of two modes may have the better bound. The mean log density at the particles is at most
        that by their moments. How much less it may be is for noise in these, of particles of which four count as one.
        """
        n, d = self.x.shape
        noise = DEPENDENCE * d * (d + 3) / (4 * n)
        if gaussian_fit(self.x, found) > gaussian_fit(self.x, self.standardized()) - noise - clear_loss:
            self.gaussian = found

    def tame_what_came_in(self, by: Tails) -> None:
        """Tame the tails of coordinates that are heavy since particles came in from elsewhere."""
        tails = heavy_tails(self.x, by)
        if tails is None or not newly_heavy(tails, self.tails):
            return
        if better_fit(self.x, tails, self.tails) >= by.better_fit:
            self.standardization = standardize(self.x, tails, self.by.full_covariance)

    def settle(self) -> None:
        """Move particles that were put together from several runs."""
        self._moved(torch.arange(len(self.x), device=self.x.device))

    def grow(self, n: int) -> None:
        """Make up to n particles, if these are more: copies that moves part, for a fraction of what tempering costs."""
        if n > len(self.x):
            self._moved(spread_index(len(self.x), n, self.x.device))

    def _moved(self, rows: Tensor) -> None:
        standardization = self.standardized()
        target = StandardizedTarget(self.target.energy, standardization, self.target.dtype)
        population = Population(target, standardization.inverse(self.x[rows]), self.generator)
        population.move(self.by.growth_moves * self.n_moves)
        self.x = standardization(population.x)

    def result(self, found: Standardization, scale: float) -> PilotResult:
        """What is kept of the run, with the standardisation that its particles led to."""
        log_evidence = self.log_evidence if math.isfinite(self.log_evidence) else math.nan
        return PilotResult.of(found, log_evidence, scale, self.n_temperatures)


def standardize(
    x: Tensor, tails: tuple[Tensor, Tensor], full_covariance: int = Tempering.full_covariance,
    noncentred: NonCentred | None = None,
) -> Standardization:  # fmt: skip
    """Standardisation by the moments of particles (n, d) whose tails are tamed, in non-centred coordinates if any."""
    identity = x.new_zeros(x.shape[1]), x.new_ones(x.shape[1])
    tame = Standardization.from_moments(*identity, tails, noncentred).tame(x)
    return Standardization.from_moments(*moments(tame, full_covariance), tails, noncentred)


def standardization_of(
    x: Tensor, by: Tails | None = None, full_covariance: int = Tempering.full_covariance,
    noncentred: NonCentred | None = None,
) -> Standardization:  # fmt: skip
    """Standardisation of particles (n, d) whose tails are tamed where a Gaussian fits them better so."""
    by, y = Tails() if by is None else by, x if noncentred is None else noncentred.inverse(x)
    tails, light = heavy_tails(y, by), (y.new_zeros(y.shape[1]), torch.full_like(y[0], torch.inf))
    if tails is None or better_fit(y, tails, light) < by.better_fit:
        tails = light
    return standardize(x, tails, full_covariance, noncentred)


def better_standardization(
    x: Tensor, noncentred: NonCentred | None, by: Tails | None = None,
    full_covariance: int = Tempering.full_covariance,
) -> Standardization:  # fmt: skip
    """The standardisation of particles (n, d) by which a Gaussian fits them best: non-centred, or as they are."""
    plain = standardization_of(x, by, full_covariance)
    if noncentred is None:
        return plain
    other = standardization_of(x, by, full_covariance, noncentred)
    return other if gaussian_fit(x, other) > gaussian_fit(x, plain) else plain


def better_fit(x: Tensor, tails: tuple[Tensor, Tensor], before: tuple[Tensor, Tensor]) -> float:
    """Nats by which a Gaussian fits particles (n, d) better in coordinates with these tails than with those before."""
    return gaussian_fit(x, standardize(x, tails)) - gaussian_fit(x, standardize(x, before))


def gaussian_fit(x: Tensor, standardization: Standardization) -> float:
    """Mean log density at particles (n, d) of what is standard normal in these coordinates, but for a constant."""
    z = standardization.inverse(x)
    return float((-0.5 * z.square().sum(1) - standardization.log_det(z)).mean())


def heavy_tails(x: Tensor, by: Tails | None = None) -> tuple[Tensor, Tensor] | None:
    """Center and width of the hyperbolic sine for the coordinates of particles (n, d) with heavy tails, if any have.

    The center is the median, the width a low quantile of the distance from it.
    """
    by = Tails() if by is None else by
    unit = (x - x.mean(0)) / x.std(0).clamp(min=1e-150)
    kurtosis, skewness = unit.pow(4).mean(0), unit.pow(3).mean(0)
    center = x.quantile(0.5, dim=0)
    width = (x - center).abs().quantile(by.level, dim=0)
    heavy = (kurtosis > by.kurtosis) & (kurtosis - skewness**2 > by.beyond_two_points) & (width > 0)
    return (center, torch.where(heavy, width, torch.inf)) if heavy.any() else None


def newly_heavy(tails: tuple[Tensor, Tensor], before: tuple[Tensor, Tensor]) -> bool:
    """Whether a coordinate is to be tamed that was not."""
    return bool((tails[1].isfinite() & before[1].isinf()).any())


def finest_scale(population: Population) -> Tensor:
    """Finest length scale of the target along each standardised coordinate, (d,), at most 1.

    One over the root-mean-square score; without gradient, from the step that random-walk moves were tuned to (2.4 /
    sqrt(d) scales are best; Roberts, Gelman & Gilks 1997).
    """
    d = population.x.shape[1]
    if population.target.has_gradient:
        scale = 1 / population.score.double().square().mean(0).sqrt().clamp(min=1e-12)
    else:
        step = population.step * 10 ** (-population.decades / 2)
        scale = population.x.new_full((d,), math.sqrt(2 * step * d) / 2.4)
    return scale.clamp(max=1.0).to(population.x.dtype)
