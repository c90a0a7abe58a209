"""What the stages of a pilot run go by: climbs, race, tempering, high dimension, and the tempering of families."""

__all__ = ["Balance", "Climbs", "FamilyTempering", "HighDimension", "LostModes", "Race", "Tails", "Tempering"]

from dataclasses import dataclass
from typing import ClassVar

from ..io.registry import register_specification
from ..models.specifications import Part, at_least_one, at_least_two, not_negative, positive, share


@register_specification
@dataclass(frozen=True, repr=False)
class Climbs(Part):
    """Climbs to modes, before the race, and from the particles in the end.

    The defaults are unmeasured.

    Parameters
    ----------
    n_before : int, default=8
        Climbs before the race.
    n_after : int, default=24
        Climbs from the particles in the end, and for each of `wide` as many from around them.
    n_further : int, default=480
        Climbs after these, where there is a gradient, until another new mode is unlikely.
    chance_of_another : float, default=0.0001
        That the next climb ends at a new mode, with which they end; see `Survey`.
    few : int, default=4
        In the place of `n_after`, without further ones, where fewer than 200 evaluations for each climb and coordinate
        are left.
    many_features : int, default=50
        Above so many a climb costs hundreds of evaluations, and `n_there` are made.
    n_there : int, default=2
        In the place of `n_before` and `n_after` in so many features.
    share : float, default=0.1
        Of the evaluations that the pilot may make, for climbs before the race.
    scales : tuple of float, default=(0.0, 1.0, 1.0, 10.0, 3.0, 100.0, 30.0, 1.0)
        Distances from the origin of the points that climbs before the race start from, in turn.
    far : float, default=3.0
        Widths of the particles that some of the climbs in the end start from.
    wide : tuple of float, default=(3.0, 1.0, 10.0, 2.0, 30.0)
        Widths of the particles that the many others start from, in turn. In six far Gaussians in five dimensions climbs
        from one or two widths end at four of 120 where those from ten end at one.
    batch_size : int, default=12
        Descents at a time: more take fewer calls, and more of a small limit before the first has ended.
    max_steps : int, default=150
        Of a descent; what has not ended then is for a climb of its own.
    rounds : int, default=3
        Of a search and a look at the scales, each in the coordinates of the one before.
    max_calls : int, default=400
        Of the energy in a search by gradients.
    calls_a_coordinate : int, default=60
        Of the energy in a search without gradients.
    max_features_without : int, default=30
        In which a search without gradients is tried.
    scale_passes : int, default=8
        After which the scale of a coordinate is left as it is.
    """

    constraints: ClassVar[dict] = {
        "n_before": [at_least_one],
        "n_after": [at_least_one],
        "n_further": [not_negative],
        "chance_of_another": [share],
        "few": [at_least_one],
        "many_features": [at_least_one],
        "n_there": [at_least_one],
        "share": [share],
        "scales": [tuple],
        "far": [positive],
        "wide": [tuple],
        "batch_size": [at_least_one],
        "max_steps": [at_least_one],
        "rounds": [at_least_one],
        "max_calls": [at_least_one],
        "calls_a_coordinate": [at_least_one],
        "max_features_without": [at_least_one],
        "scale_passes": [at_least_one],
    }

    n_before: int = 8
    n_after: int = 24
    n_further: int = 480
    chance_of_another: float = 1e-4
    few: int = 4
    many_features: int = 50
    n_there: int = 2
    share: float = 0.1
    scales: tuple[float, ...] = (0.0, 1.0, 1.0, 10.0, 3.0, 100.0, 30.0, 1.0)
    far: float = 3.0
    wide: tuple[float, ...] = (3.0, 1.0, 10.0, 2.0, 30.0)
    batch_size: int = 12
    max_steps: int = 150
    rounds: int = 3
    max_calls: int = 400
    calls_a_coordinate: int = 60
    max_features_without: int = 30
    scale_passes: int = 8


@register_specification
@dataclass(frozen=True, repr=False)
class LostModes(Part):
    """Which modes of those that climbs end at count as lost by the particles, and are added.

    The defaults are unmeasured.

    Parameters
    ----------
    min_share : float, default=0.01
        Of the mass, that a mode has to have to be looked at.
    covered : float, default=0.25
        Of the particles that a mode should have, with which it is taken for known.
    inflation : float, default=1.5
        Widening of the Gaussian that the run of a mode starts from.
    n_particles : int, default=500
        Particles of such a run.
    clear_factor : float, default=2.0
        By which the mass of a mode has to exceed what the particles have there.
    min_count : int, default=20
        Particles that a lost mode makes a difference of at least.
    """

    constraints: ClassVar[dict] = {
        "min_share": [share],
        "covered": [not_negative],
        "inflation": [positive],
        "n_particles": [at_least_two],
        "clear_factor": [not_negative],
        "min_count": [not_negative],
    }

    min_share: float = 0.01
    covered: float = 0.25
    inflation: float = 1.5
    n_particles: int = 500
    clear_factor: float = 2.0
    min_count: int = 20


@register_specification
@dataclass(frozen=True, repr=False)
class Balance(Part):
    """Masses of regions by importance sampling from a mixture that is fitted to the particles.

    Tempered particles are right within a mode, but its mass comes from few ancestors. In six far Gaussians in five
    dimensions the masses of modes that climbs had found were .09 off in total variation without this, .005 with it.
    The single values are unmeasured.

    Parameters
    ----------
    share : float, default=0.1
        Of the evaluations left.
    max_features : int, default=64
        In which a mixture can be fitted.
    n_draws, fewest_draws : int, default=40000 and 1000
        Of the mixture, at most, and at least. No more than two for each particle are made.
    n_fitted : int, default=4000
        Particles that the mixture is fitted to.
    max_components, points_a_component : int, default=50 and 10
        Of the mixture; particles for each coordinate of one.
    first_share : float, default=0.25
        Of the draws, after which components are weighted anew.
    least_weight : float, default=0.05
        Of the mixture then, shared by all components.
    defensive, width : float, default=0.15 and 1.6
        Share and width of broader components.
    least_ess : float, default=0.3
        Normalised, of the draws, below which particles are left as they are.
    known : float, default=0.25
        Particles that a region has, in units of what it should have, below which draws take their place there.
    far, out_of_reach : float, default=30.0 and 0.005
        Weight of a particle in units of the mean, from which draws hardly reach it; share of such particles above which
        they are left as they are, since the mixture lacks what they know.
    """

    constraints: ClassVar[dict] = {
        "share": [share],
        "max_features": [at_least_one],
        "n_draws": [at_least_one],
        "fewest_draws": [at_least_two],
        "n_fitted": [at_least_two],
        "max_components": [at_least_one],
        "points_a_component": [at_least_one],
        "first_share": [share],
        "least_weight": [share],
        "defensive": [share],
        "width": [positive],
        "least_ess": [share],
        "known": [not_negative],
        "far": [positive],
        "out_of_reach": [share],
    }

    share: float = 0.1
    max_features: int = 64
    n_draws: int = 40_000
    fewest_draws: int = 1000
    n_fitted: int = 4000
    max_components: int = 50
    points_a_component: int = 10
    first_share: float = 0.25
    least_weight: float = 0.05
    defensive: float = 0.15
    width: float = 1.6
    least_ess: float = 0.3
    known: float = 0.25
    far: float = 30.0
    out_of_reach: float = 0.005


@register_specification
@dataclass(frozen=True, repr=False)
class Race(Part):
    """The race of starting scales: short tempered runs, of which the one with the largest log Z wins.

    The defaults are unmeasured.

    Parameters
    ----------
    scales : tuple of float, default=(1.0, 3.0, 10.0, 30.0, 100.0)
        Standard deviations of the Gaussians around the origin that runs start from, the widest last. Too narrow a start
        misses mass, too wide a one loses it on the way.
    inflations : tuple of float, default=(1.0, 3.0)
        Widenings of what the user says in `start`, and, the last, of Laplace's approximation.
    share : float, default=0.4
        Of the evaluations left, for the race.
    n_particles, fewest_particles : int, default=1000 and 30
        Particles of a run, at most and at least.
    evals_a_particle : int, default=400
        Evaluations of the race for each of its particles: a guess, for how many are affordable.
    fewest_moves : int, default=3
        Moves at a temperature, or a third of those of the run with all particles if that is more.
    n_modes : int, default=2
        Modes that runs are started from.
    clear_win : float, default=1.0
        Nats by which the widest scale has to win for wider ones to be tried: short runs are noisy.
    min_hits : int, default=20
        Particles of a run that have to meet the support, or a tenth of few.
    max_temperatures, max_temperatures_beside : int, default=1000 and 150
        Temperatures of a run, and of one beside a run that found something.
    annealing : tuple of float, default=(0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
        Inverse temperatures on the way from points of a support that no Gaussian meets.
    """

    constraints: ClassVar[dict] = {
        "scales": [tuple],
        "inflations": [tuple],
        "share": [share],
        "n_particles": [at_least_two],
        "fewest_particles": [at_least_two],
        "evals_a_particle": [at_least_one],
        "fewest_moves": [at_least_one],
        "n_modes": [not_negative],
        "clear_win": [not_negative],
        "min_hits": [at_least_one],
        "max_temperatures": [at_least_one],
        "max_temperatures_beside": [at_least_one],
        "annealing": [tuple],
    }

    scales: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0, 100.0)
    inflations: tuple[float, ...] = (1.0, 3.0)
    share: float = 0.4
    n_particles: int = 1000
    fewest_particles: int = 30
    evals_a_particle: int = 400
    fewest_moves: int = 3
    n_modes: int = 2
    clear_win: float = 1.0
    min_hits: int = 20
    max_temperatures: int = 1000
    max_temperatures_beside: int = 150
    annealing: tuple[float, ...] = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


@register_specification
@dataclass(frozen=True, repr=False)
class Tempering(Part):
    """Tempered sequential Monte Carlo, of the race and of the run with all particles.

    The defaults are unmeasured.

    Parameters
    ----------
    n_moves, n_moves_without : int, default=10 and 30
        Moves at a temperature of the run with all particles, with and without a gradient.
    min_ess : float, default=0.8
        Normalised, of the incremental weights; sets the next temperature.
    last_ess : float, default=0.3
        Normalised, of the weights by which an unfinished run goes as far as it can.
    inflation : float, default=2.0
        Width of the Gaussian that the run with all particles starts from, in units of the winner's spread.
    full_covariance : int, default=256
        Features up to which particles give a full covariance; above, a diagonal one.
    share : float, default=0.5
        Of the evaluations left after the race, for the run with all particles; the rest makes more of them.
    growth_moves : int, default=3
        Of new particles, in units of those at a temperature.
    fewest_particles : int, default=50
        Of a run, however few evaluations are allowed.
    """

    constraints: ClassVar[dict] = {
        "n_moves": [at_least_one],
        "n_moves_without": [at_least_one],
        "min_ess": [share],
        "last_ess": [share],
        "inflation": [positive],
        "full_covariance": [not_negative],
        "share": [share],
        "growth_moves": [at_least_one],
        "fewest_particles": [at_least_two],
    }

    n_moves: int = 10
    n_moves_without: int = 30
    min_ess: float = 0.8
    last_ess: float = 0.3
    inflation: float = 2.0
    full_covariance: int = 256
    share: float = 0.5
    growth_moves: int = 3
    fewest_particles: int = 50


@register_specification
@dataclass(frozen=True, repr=False)
class Tails(Part):
    """Heavy tails of the particles, with which the run is repeated in coordinates that tame them.

    The defaults are unmeasured.

    Parameters
    ----------
    kurtosis : float, default=4.5
        Of a coordinate, above which taming its tails is tried; a Gaussian's is 3.
    level : float, default=0.2
        Quantile of the distance from the median, within which a tamed coordinate stays linear.
    clear_gain : float, default=0.05
        Nats of log Z by which a run with tamed tails has found what one without missed.
    max_runs : int, default=3
        Repetitions.
    """

    constraints: ClassVar[dict] = {
        "kurtosis": [positive],
        "level": [share],
        "clear_gain": [not_negative],
        "max_runs": [not_negative],
    }

    kurtosis: float = 4.5
    level: float = 0.2
    clear_gain: float = 0.05
    max_runs: int = 3


@register_specification
@dataclass(frozen=True, repr=False)
class HighDimension(Part):
    """The run from Laplace's approximation in high dimension, where the energy has a gradient.

    Unmeasured, but for the number of temperatures.

    Parameters
    ----------
    n_features : int, default=256
        Features above which a run starts from there, and no climbs are made.
    inflation : float, default=1.1
        In place of that of `Tempering`.
    n_temperatures : int, default=18
        Of such a run, for how many particles are affordable: as measured once on a log-Gaussian Cox process in 1600
        dimensions.
    max_numbers : int, default=5000000
        Held by all particles together.
    fewest_particles : int, default=2000
        Particles, however many numbers these hold.
    max_iter : int, default=2000
        Of L-BFGS, which looks for the mode.
    """

    constraints: ClassVar[dict] = {
        "n_features": [not_negative],
        "inflation": [positive],
        "n_temperatures": [at_least_one],
        "max_numbers": [at_least_one],
        "fewest_particles": [at_least_two],
        "max_iter": [at_least_one],
    }

    n_features: int = 256
    inflation: float = 1.1
    n_temperatures: int = 18
    max_numbers: int = 5_000_000
    fewest_particles: int = 2000
    max_iter: int = 2000


@register_specification
@dataclass(frozen=True, repr=False)
class FamilyTempering(Part):
    """The exploration of a family of densities: pilots for a few contexts, then tempering within each context.

    The defaults are unmeasured.

    Parameters
    ----------
    n_scouts, scout_particles : int, default=4 and 500
        Contexts that a pilot looks at, and its particles for each.
    scout_evals : int, default=150000
        Evaluations that it may make for each.
    scout_share : float, default=0.1
        Of the limits, that all of them may take.
    n_candidates : int, default=500
        Contexts that the most different ones are chosen from.
    inflation : float, default=2.0
        Width of the Gaussian that all contexts start from, in units of the spread of the pilots' particles.
    min_ess : float, default=0.6
        Normalised, of the incremental weights within a context; sets its next temperature.
    n_moves, n_moves_without : int, default=8 and 20
        Moves at a temperature, with and without a gradient.
    max_temperatures : int, default=100
        Of a run.
    n_temperatures : int, default=15
        That a run is planned for.
    step, decades : float, default=0.1 and 1.0
        First step of MALA in preconditioned coordinates, and how far below it random steps go.
    time_share, evals_share : float, default=0.3 and 0.4
        Of the limits of a fit.
    n_each : int, default=16
        Particles of a context.
    """

    constraints: ClassVar[dict] = {
        "n_scouts": [at_least_one],
        "scout_particles": [at_least_two],
        "scout_evals": [at_least_one],
        "scout_share": [share],
        "n_candidates": [at_least_one],
        "inflation": [positive],
        "min_ess": [share],
        "n_moves": [at_least_one],
        "n_moves_without": [at_least_one],
        "max_temperatures": [at_least_one],
        "n_temperatures": [at_least_one],
        "step": [positive],
        "decades": [not_negative],
        "time_share": [share],
        "evals_share": [share],
        "n_each": [at_least_two],
    }

    n_scouts: int = 4
    scout_particles: int = 500
    scout_evals: int = 150_000
    scout_share: float = 0.1
    n_candidates: int = 500
    inflation: float = 2.0
    min_ess: float = 0.6
    n_moves: int = 8
    n_moves_without: int = 20
    max_temperatures: int = 100
    n_temperatures: int = 15
    step: float = 0.1
    decades: float = 1.0
    time_share: float = 0.3
    evals_share: float = 0.4
    n_each: int = 16
