"""What the search for modes and for their masses goes by: climbs, modes that particles have lost, masses of regions."""

__all__ = ["Balance", "Climbs", "LostModes"]

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
    further_at_once : int, default=48
        Descents at a time among these: a fit that makes them has evaluations to spare.
    chance_of_another : float, default=0.0001
        That the next climb ends at a new mode, with which they end; see `Survey`.
    too_many : float, default=0.75
        Share of climbs that end at new modes, above which no others are made: a product of bimodal coordinates has more
        modes than can be listed, and each has little mass. It is looked at after those from the particles, in more than
        `listed_features`, and after each batch of further ones.
    listed_features : int, default=20
        Features up to which all the climbs of `n_after` are made.
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
        "further_at_once": [at_least_one],
        "chance_of_another": [share],
        "too_many": [share],
        "listed_features": [not_negative],
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
    further_at_once: int = 48
    chance_of_another: float = 1e-4
    too_many: float = 0.75
    listed_features: int = 20
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
    share : float, default=0.5
        Of the limits that the pilot has left, for the search and the runs; what is over is for masses and coordinates.
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
        "share": [share],
        "min_share": [share],
        "covered": [not_negative],
        "inflation": [positive],
        "n_particles": [at_least_two],
        "clear_factor": [not_negative],
        "min_count": [not_negative],
    }

    share: float = 0.5
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
    n_draws, fewest_draws : int, default=40000 and 4000
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
    backgrounds, background : tuple of float and float, default=(5.0, 25.0) and 0.06
        Widths of components around all particles, in units of their spread, and the share of these together: for little
        mass that is spread far. Of a background twenty times as wide as a peak, with .02 of the mass, the particles of
        one of six seeds had .0005 without them.
    along : float, default=0.5
        Share of Laplace's approximations along a coordinate, where there are any (`Nested`).
    along_draws : float, default=0.1
        Of the draws, as many as each of these is tried by.
    fewest_along, as_much : int and float, default=1000 and 0.2
        Draws of these alone, from which they take the place of particles in many dimensions; and nats of log Z by which
        they may find less than the tempered run there.
    least_ess, least_ess_along : float, default=0.3 and 0.1
        Normalised, of the draws, below which particles are left as they are; and with such approximations, where the
        particles lack more than weights of few effective draws do.
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
        "backgrounds": [tuple],
        "background": [share],
        "along": [share],
        "along_draws": [share],
        "fewest_along": [at_least_two],
        "as_much": [not_negative],
        "least_ess": [share],
        "least_ess_along": [share],
        "known": [not_negative],
        "far": [positive],
        "out_of_reach": [share],
    }

    share: float = 0.1
    max_features: int = 64
    n_draws: int = 40_000
    fewest_draws: int = 4000
    n_fitted: int = 4000
    max_components: int = 50
    points_a_component: int = 10
    first_share: float = 0.25
    least_weight: float = 0.05
    defensive: float = 0.15
    width: float = 1.6
    backgrounds: tuple[float, ...] = (5.0, 25.0)
    background: float = 0.06
    along: float = 0.5
    along_draws: float = 0.1
    fewest_along: int = 1000
    as_much: float = 0.2
    least_ess: float = 0.3
    least_ess_along: float = 0.1
    known: float = 0.25
    far: float = 30.0
    out_of_reach: float = 0.005
