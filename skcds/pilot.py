"""The pilot: adaptive tempered sequential Monte Carlo that finds where the density is before any network is trained."""

__all__ = ["PilotResult", "run_pilot"]

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .bounds import FARTHEST as END_OF_BOUNDED
from .devices import randn, to_numpy
from .energy import FARTHEST, Energy, InvalidEnergyError, Standardization, StandardizedTarget
from .laplace import laplace_standardization
from .mcmc import Population, systematic_index

STARTING_SCALES = (1.0, 3.0, 10.0, 30.0, 100.0)
MAX_SCALE, MIN_SCALE = 1e7, 1e-7
RACE_PARTICLES, RACE_MOVES = 1000, 3
MOVES = {True: 10, False: 30}  # a temperature, with and without gradient
MIN_ESS = 0.8  # of the incremental weights; sets the next temperature
RACE_SHARE = 0.4  # of the evaluations that the pilot may make, for the race
RUN_SHARE = 0.5  # of those left after it, for the run with all particles; the rest makes more of them
GROWTH_MOVES = 3  # of the new ones, in units of those at a temperature
RACE_COST = 400  # evaluations of the race for each of its particles: a guess, for how many are affordable
MIN_RACE_PARTICLES = 100
CLEAR_WIN = 1.0  # nats by which the widest scale has to win for wider ones to be tried: short runs are noisy
MIN_HITS = 20  # particles of a scout run that have to meet the support
HEAVY_KURTOSIS = 4.5  # of a coordinate, above which taming its tails is tried; a Gaussian's is 3
TAIL_LEVEL = 0.2  # quantile of the distance from the median, within which a tamed coordinate stays linear
CLEAR_GAIN = 0.05  # nats of log Z by which a run with tamed tails has found what one without missed
MAX_TAMED_RUNS = 3
FAR_OUT, FAR_SHARE = (
    0.75,
    0.01,
)  # of `FARTHEST`, and of the particles, from which a density's mass is taken for infinite
INFLATION = 2.0  # width of the final run's starting Gaussian in units of the winner's spread
DOUBT = 0.5  # largest deviation from 1 of a mean that is 1 for a density, and twice its largest standard error
FAR = 30.0, 1e3, 1e6  # standard deviations away, at which the energy has to have grown
FAR_ROWS, FAR_STEPS = 16, 64  # particles from which that is looked at, directions at a time
FULL_COVARIANCE_MAX = 256  # features; above, Laplace's approximation, or else a diagonal standardisation
HIGH_INFLATION = 1.1  # in place of `INFLATION` around Laplace's approximation
LAPLACE_TEMPERATURES = 4  # of a run from there: a guess, for how many particles are affordable
MIN_AFFORDABLE = 200  # particles of a run, however few evaluations are allowed
MAX_NUMBERS, MIN_PARTICLES = 5_000_000, 2000  # held by the draws of high dimension; particles moved there at least


@dataclass
class PilotResult:
    """What the pilot found.

    Attributes
    ----------
    log_evidence : float
        Sequential Monte Carlo estimate of log Z.
    starting_scale : float
        Standard deviation of the Gaussian that the tempering started from.
    loc : ndarray of shape (n_features,)
        Mean of the particles, in coordinates with tame tails (see `Standardization`).
    covariance : ndarray of shape (n_features, n_features) or (n_features,)
        Covariance of the particles in these coordinates, or its diagonal in high dimension.
    tail_center, tail_width : ndarray of shape (n_features,)
        Center and width of the hyperbolic sine by which heavy tails were tamed; a width of infinity where tails are
        light.
    n_temperatures : int
        Number of temperatures.
    """

    log_evidence: float
    starting_scale: float
    loc: np.ndarray
    covariance: np.ndarray
    tail_center: np.ndarray
    tail_width: np.ndarray
    n_temperatures: int

    def standardization(self) -> Standardization:
        """The standardisation by what was found."""
        tails = torch.from_numpy(self.tail_center), torch.from_numpy(self.tail_width)
        return Standardization.from_moments(torch.from_numpy(self.loc), torch.from_numpy(self.covariance), tails)


class _TemperedTarget:
    """Geometric path target^beta N(0, scale^2 I)^(1 - beta), preconditioned by an affine map z = loc + L u."""

    def __init__(self, target: StandardizedTarget, scale: float):
        self.target, self.scale, self.beta = target, scale, 0.0
        self.standardization = Standardization(target.n_features, full=False)
        self.has_gradient = target.has_gradient

    def log_reference(self, z: Tensor) -> Tensor:
        d = z.shape[1]
        return -0.5 * (z**2).sum(1) / self.scale**2 - d * math.log(self.scale * math.sqrt(2 * math.pi))

    def log_prob_and_score(self, u: Tensor) -> tuple[Tensor, Tensor]:
        z = self.standardization(u)
        log_prob, score = self.target.log_prob_and_score(z)
        tempered = self.beta * log_prob + (1 - self.beta) * self.log_reference(z)
        if self.has_gradient:
            score = self.beta * score - (1 - self.beta) * z / self.scale**2
        return tempered.nan_to_num(nan=-torch.inf, neginf=-torch.inf), self.standardization.pull_back(u, score)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean, and covariance (its diagonal in high dimension), with a jitter relative to the variances."""
    d = x.shape[1]
    variance = x.var(0).clamp(min=1e-300)
    if d <= FULL_COVARIANCE_MAX and len(x) >= 10 * d:
        covariance = torch.cov(x.T).reshape(d, d) + torch.diag(1e-8 * variance)
        if torch.linalg.cholesky_ex(covariance).info == 0:
            return x.mean(0), covariance
    return x.mean(0), variance


def _next_beta(gap: Tensor, beta: float) -> float:
    """Largest next inverse temperature whose incremental weights keep `MIN_ESS` of the particles in the support."""

    def share(candidate):
        weights = torch.softmax((candidate - beta) * gap, 0)
        return float(1 / (weights**2).sum()) / len(gap)

    if share(1.0) >= MIN_ESS:
        return 1.0
    low, high = beta, 1.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if share(middle) >= MIN_ESS else (low, middle)
    return high if low == beta else low


def temper(target: StandardizedTarget, n_particles: int, scale: float, n_moves: int, generator, min_hits: int = 1):
    """Tempered sequential Monte Carlo from N(0, scale^2 I) (Del Moral, Doucet & Jasra 2006).

    Returns
    -------
    z : Tensor
        Particles (n, d) in the coordinates of `target`.
    log_evidence : float
        Estimate of log Z; ``-inf`` when fewer than `min_hits` particles met the support.
    n_temperatures : int
        Number of temperatures.
    """
    path = _TemperedTarget(target, scale)
    z = scale * randn(generator, n_particles, target.n_features, dtype=torch.float64)
    log_evidence, step, n_temperatures = 0.0, 0.1, 0
    while path.beta < 1:
        log_prob = target.log_prob(z)
        inside = log_prob > -torch.inf
        if inside.sum() < min_hits:
            return z, -math.inf, n_temperatures
        gap = (log_prob - path.log_reference(z))[inside]
        beta = _next_beta(gap, path.beta)
        log_weights = (beta - path.beta) * gap
        log_evidence += float(torch.logsumexp(log_weights, 0)) - math.log(n_particles)
        z = z[inside][systematic_index(log_weights, n_particles, generator)]
        path.standardization = Standardization.from_moments(*_moments(z))
        path.beta, n_temperatures = beta, n_temperatures + 1
        population = Population(path, path.standardization.inverse(z), generator, step=step)
        population.move(n_moves)
        z, step = path.standardization(population.x), population.step
    return z, log_evidence, n_temperatures


def _race(target: StandardizedTarget, n_moves: int, limit: float, generator) -> tuple[float, Tensor, float]:
    """Starting scale whose short run gives the largest log Z, with that run's particles and evaluations for each.

    Too narrow a start misses mass, too wide a one loses it on the way. Once the evaluations reach the limit no other of
    the starting scales is tried, but the first two are, and narrower ones where none has met the support.
    """
    runs: dict[float, tuple[float, Tensor]] = {}
    costs: dict[float, float] = {}
    n_particles = int(min(RACE_PARTICLES, max(MIN_RACE_PARTICLES, limit / RACE_COST)))
    start = target.energy.n_energy_evals

    def spent():
        return target.energy.n_energy_evals - start

    def enter(scale):
        before = spent()
        try:
            z, log_evidence, _ = temper(target, n_particles, scale, n_moves, generator, MIN_HITS)
        except InvalidEnergyError:
            z, log_evidence = torch.empty(0, device=generator.device), -math.inf
        runs[scale], costs[scale] = (log_evidence, z), (spent() - before) / n_particles

    def best():
        return max(runs, key=lambda scale: runs[scale][0])

    def wins_clearly(scale):
        return runs[scale][0] > CLEAR_WIN + max(log_evidence for s, (log_evidence, _) in runs.items() if s != scale)

    for scale in STARTING_SCALES:
        if len(runs) < 2 or spent() < limit:
            enter(scale)
    if runs[best()][0] == -math.inf and n_particles < RACE_PARTICLES:
        n_particles = RACE_PARTICLES  # a run that does not meet the support costs an evaluation a particle
        for scale in STARTING_SCALES:
            enter(scale)
    scale = min(STARTING_SCALES)
    while runs[best()][0] == -math.inf and scale > MIN_SCALE:
        scale /= 10
        enter(scale)
    if runs[best()][0] == -math.inf:
        raise InvalidEnergyError(
            "energy_fn was +inf or invalid at every point that the pilot tried, drawn from N(0, s^2 I) for s from "
            f"{min(runs):g} to {max(runs):g}; shift or scale the coordinates so that the density has mass near zero."
        )
    while wins_clearly(max(runs)) and max(runs) < MAX_SCALE and spent() < limit:
        enter(max(runs) * 10**0.5)
    return best(), runs[best()][1], costs[best()]


def run_pilot(energy: Energy, n_particles: int, generator, max_evals: float = math.inf) -> tuple[PilotResult, Tensor]:
    """Find location, scale and particles of a density from its energy alone.

    Short tempered runs race over starting scales from 1 to 100 (and further out while the widest wins clearly, further
    in while none meets the support). The run with all particles starts from a Gaussian twice as wide as the winner's
    particles. Where it ends with heavy tails it is repeated with these tamed (see `Standardization`), and the
    repetition kept if it finds more of the density, or as much of a smoother one.

    Where coordinates have a single bound, the race is run again with the scales of the bijection from the first.

    In more than `FULL_COVARIANCE_MAX` dimensions, with a gradient, one run starts from Laplace's approximation.

    Parameters
    ----------
    energy : Energy
        The density; the scales of its bounds are set.
    n_particles : int
        Number of particles of the final run; at most `MAX_NUMBERS` / d of them from Laplace's approximation.
    generator : torch.Generator
        Source of randomness.
    max_evals : float, default=inf
        Evaluations of the energy that are aimed at, by fewer particles, fewer starting scales, and no repetitions.

    Returns
    -------
    result : PilotResult
        What was found.
    x : Tensor
        Particles (n_particles, d) that approximate the target, in the user's coordinates.

    Raises
    ------
    InvalidEnergyError
        When no point with positive density was found, or the density seems to have infinite mass.
    """
    n_moves = MOVES[energy.has_gradient]
    if energy.n_features > FULL_COVARIANCE_MAX and energy.has_gradient:
        found = _pilot_in_high_dimension(energy, n_particles, n_moves, generator, max_evals)
        if found is not None:
            return found
    identity = Standardization(energy.n_features, full=False).to(energy.device)
    plain = StandardizedTarget(energy, identity, energy.fast_dtype)
    last, race_moves = energy.n_energy_evals + max_evals, max(RACE_MOVES, n_moves // 3)
    scale, x, cost = _race(plain, race_moves, RACE_SHARE * max_evals, generator)
    if energy.bounds is not None and energy.bounds.one_sided:
        energy.bounds = energy.bounds.centred(x)
        scale, x, cost = _race(plain, race_moves, RACE_SHARE * (last - energy.n_energy_evals), generator)
    affordable = RUN_SHARE * (last - energy.n_energy_evals) / (cost * (1 + n_moves) / (1 + race_moves))
    n_tempered = int(min(n_particles, max(MIN_AFFORDABLE, affordable)))
    run = _Run(energy, Standardization.from_moments(*_moments(x)), n_tempered, n_moves, generator)
    for _ in range(MAX_TAMED_RUNS):
        tails = _heavy_tails(run.x)
        if tails is None or energy.n_energy_evals + run.n_evals > last:
            break
        tamed = _Run(energy, _standardize(run.x, tails), n_tempered, n_moves, generator)
        gain = tamed.log_evidence - run.log_evidence
        if gain < -CLEAR_GAIN or (gain < CLEAR_GAIN and tamed.smoothness() < run.smoothness()):
            break
        run = tamed
        if gain < CLEAR_GAIN:
            break
    _check_mass(run)
    _check_directions(run)
    run.grow(int(min(n_particles, (last - energy.n_energy_evals) / (1 + GROWTH_MOVES * n_moves))))
    found = _standardize(run.x, (run.standardization.center, run.standardization.width))
    return run.result(found, scale), run.x


def _check_mass(run: "_Run") -> None:
    """Refuse a density whose mass is infinite: particles then are as far out as they are let."""
    standardization = run.standardization
    y = standardization.tame(run.x)[:, standardization.width.isfinite()]
    share = float((y.abs() > FAR_OUT * FARTHEST).any(1).double().mean())
    bounds = run.target.energy.bounds
    if bounds is not None:
        at_bound = (run.x.abs() > FAR_OUT * END_OF_BOUNDED) & bounds.bounded
        if float(at_bound.any(1).double().mean()) > FAR_SHARE:
            j = int(at_bound.double().mean(0).argmax())
            raise InvalidEnergyError(
                f"energy_fn seems to belong to a density of infinite mass: {float(at_bound[:, j].double().mean()):.1%} "
                f"of the pilot's particles are within 1e-100 of a bound of x[{j}], or as far from its only one as "
                "numbers reach. Towards a bound the density has to grow by less than the inverse of the distance."
            )
    if share > FAR_SHARE:
        raise InvalidEnergyError(
            f"energy_fn seems to belong to a density of infinite mass: {share:.1%} of the pilot's particles are more "
            f"than {math.exp(FAR_OUT * FARTHEST):.0e} widths from the center. The energy has to grow faster than "
            "d log|x| with the distance in d dimensions, or be +inf outside of a bounded region."
        )


def _check_directions(run: "_Run") -> None:
    """Refuse a density whose energy grows too slowly along some direction, to one of its sides or both.

    Too slowly is less than for a tail like 1 / x: by less than log(D) nats over D standard deviations. Particles with
    the law of a density have ``E[u . x u . grad E(x)] = 1`` for x centred and u of unit length, where no boundary of
    the support comes in (integration by parts). Only coordinates and principal axes for which that does not hold are
    looked along, or all where there is no gradient.
    """
    loc, covariance = _moments(run.x)
    d = run.x.shape[1]
    axes = torch.eye(d, dtype=torch.float64, device=loc.device)
    if covariance.ndim == 2:
        axes = torch.cat([axes, torch.linalg.eigh(covariance)[1]], 1)
    along = (run.x - loc) @ axes
    deviations = along.std(0)
    # Principal axes are less certain: looked along if the spread is suspect.
    exact = torch.arange(len(deviations), device=loc.device) < d
    doubtful = exact | (deviations > FAR[0] * deviations.min())
    if run.target.has_gradient:
        _, score = run.target.energy.log_prob_and_score(run.x, run.target.score_dtype)
        terms = -along * (score @ axes)
        off, uncertain = (terms.mean(0) - 1).abs() > DOUBT, terms.std(0) / len(terms) ** 0.5 > DOUBT / 2
        doubtful &= off | uncertain
    steps = (axes * deviations).T[doubtful]
    steps = torch.cat([steps, -steps])
    if not len(steps):
        return
    lacking = _growth(run, FAR[0] * steps) < math.log(FAR[0])
    exact = exact[doubtful].repeat(2)
    for factor in FAR[1:]:
        lacking[exact] &= _growth(run, factor * steps[exact]) < math.log(factor)
    if lacking.any():
        raise InvalidEnergyError(
            f"energy_fn seems to belong to a density of infinite mass: along {_direction(steps[lacking][0])} it hardly "
            f"grows over {FAR[0]:.0f} standard deviations of the pilot's particles. It has to grow in every direction, "
            "or be +inf outside of a bounded region; give every coordinate a proper prior."
        )


def _growth(run: "_Run", steps: Tensor) -> Tensor:
    """Median growth of the energy (k,) from some particles along steps (k, d); infinite where there is no saying."""
    energy, x = run.target.energy, run.x[:FAR_ROWS]
    n_invalid = energy.n_invalid
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that far out the function need not make sense
            here = energy.log_prob(x, run.target.score_dtype)
            there = torch.cat(
                [
                    energy.log_prob((x + some[:, None]).flatten(0, 1), run.target.score_dtype)
                    for some in steps.split(FAR_STEPS)
                ]
            )
    except Exception:
        return steps.new_full((len(steps),), torch.inf)
    finally:
        energy.n_invalid = n_invalid
    growth = here - there.view(len(steps), len(x))
    return growth.nanmedian(1).values.nan_to_num(torch.inf, torch.inf)


def _direction(step: Tensor) -> str:
    """The largest components of a direction in words."""
    u = step / step.norm()
    order = u.abs().argsort(descending=True)[:3].tolist()
    parts = [f"{float(u[j]):+.2g} x[{j}]" for j in order if abs(float(u[j])) > 0.05]
    return " ".join(parts) if len(parts) > 1 else f"{'+' if u[order[0]] > 0 else '-'}x[{order[0]}]"


def _pilot_in_high_dimension(energy: Energy, n_particles: int, n_moves: int, generator, max_evals: float):
    """A run from Laplace's approximation at the mode found from the origin, or None where there is none.

    Particles of short runs say too little about a covariance in hundreds of dimensions, and tempering from afar takes
    hundreds of temperatures. Other modes are found only by luck.
    """
    standardization = laplace_standardization(energy)
    if standardization is None:
        return None
    n_particles = min(n_particles, max(MIN_PARTICLES, MAX_NUMBERS // energy.n_features))
    affordable = max_evals / (LAPLACE_TEMPERATURES * (1 + n_moves))
    n_particles = int(min(n_particles, max(MIN_AFFORDABLE, affordable)))
    run = _Run(energy, standardization, n_particles, n_moves, generator, HIGH_INFLATION)
    _check_directions(run)
    return run.result(standardization, float(standardization.scale.diagonal().mean())), run.x


class _Run:
    """A tempered run with all particles, from a Gaussian in standardised coordinates."""

    def __init__(
        self, energy: Energy, standardization: Standardization, n_particles: int, n_moves: int, generator,
        inflation: float = INFLATION,
    ):  # fmt: skip
        self.standardization, self.n_moves, self.generator = standardization, n_moves, generator
        self.target = StandardizedTarget(energy, standardization, energy.fast_dtype)
        before = energy.n_energy_evals
        z, self.log_evidence, self.n_temperatures = temper(self.target, n_particles, inflation, n_moves, generator)
        self.n_evals = energy.n_energy_evals - before
        self.x = standardization(z)

    def grow(self, n: int) -> None:
        """Make up to n particles, if these are more: copies that moves part, for a fraction of what tempering costs."""
        if n <= len(self.x):
            return
        standardization = _standardize(self.x, (self.standardization.center, self.standardization.width))
        target = StandardizedTarget(self.target.energy, standardization, self.target.dtype)
        rows = torch.arange(n, device=self.x.device) % len(self.x)
        population = Population(target, standardization.inverse(self.x[rows]), self.generator)
        population.move(GROWTH_MOVES * self.n_moves)
        self.x = standardization(population.x)

    def result(self, found: Standardization, scale: float) -> PilotResult:
        """What is kept of the run, with the standardisation that its particles led to."""
        loc, covariance, center, width = (to_numpy(t) for t in (found.loc, found.covariance, found.center, found.width))
        return PilotResult(self.log_evidence, scale, loc, covariance, center, width, self.n_temperatures)

    def smoothness(self) -> float:
        """Finest scale of the target along any coordinate, after moves that adapt their step size."""
        standardization = _standardize(self.x, (self.standardization.center, self.standardization.width))
        target = StandardizedTarget(self.target.energy, standardization, self.target.dtype)
        population = Population(target, standardization.inverse(self.x), self.generator)
        population.move(self.n_moves)
        return float(finest_scale(population).min())


def _standardize(x: Tensor, tails: tuple[Tensor, Tensor]) -> Standardization:
    """Standardisation by the moments of particles (n, d) whose tails are tamed."""
    identity = x.new_zeros(x.shape[1]), x.new_ones(x.shape[1])
    return Standardization.from_moments(*_moments(Standardization.from_moments(*identity, tails).tame(x)), tails)


def _heavy_tails(x: Tensor) -> tuple[Tensor, Tensor] | None:
    """Center and width of the hyperbolic sine for the coordinates of particles (n, d) with heavy tails, if any have.

    The center is the median, the width a low quantile of the distance from it.
    """
    kurtosis = ((x - x.mean(0)) / x.std(0).clamp(min=1e-150)).pow(4).mean(0)
    center = x.quantile(0.5, dim=0)
    width = (x - center).abs().quantile(TAIL_LEVEL, dim=0)
    heavy = (kurtosis > HEAVY_KURTOSIS) & (width > 0)
    return (center, torch.where(heavy, width, torch.inf)) if heavy.any() else None


def finest_scale(population: Population) -> Tensor:
    """Finest scale of the target along each standardised coordinate, (d,), at most 1.

    One over the root-mean-square score; without gradient, from the step that random-walk moves were tuned to (2.4 /
    sqrt(d) scales are best; Roberts, Gelman & Gilks 1997).
    """
    d = population.x.shape[1]
    if population.target.has_gradient:
        scale = 1 / population.score.double().square().mean(0).sqrt().clamp(min=1e-12)
    else:
        step = population.step * 10 ** (-population.decades / 2)
        scale = torch.full((d,), math.sqrt(2 * step * d) / 2.4, device=population.x.device)
    return scale.clamp(max=1.0).to(population.x.dtype)
