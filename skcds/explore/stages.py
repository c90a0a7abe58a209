"""What the stages of a pilot run go by: race, tempering, tails, centring, high dimension, tempering of families."""

__all__ = ["Centring", "FamilyTempering", "HighDimension", "Race", "Tails", "Tempering", "Triangular"]

from dataclasses import dataclass
from typing import ClassVar

from ..io.registry import register_specification
from ..models.specifications import Part, at_least_one, at_least_three, at_least_two, not_negative, positive, share


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
    one_winner : int, default=20
        Features up to which the run with all particles starts from the Gaussian of the winner's particles alone.
    nats_a_feature : float, default=0.25
        In more features the particles of other runs count, too, whose log Z is as many nats below the winner's for each
        feature at most.
    cost_factor : float, default=1.3
        By which a run from there is expected to take more evaluations a particle than the cheapest around the origin.
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
        "one_winner": [not_negative],
        "nats_a_feature": [not_negative],
        "cost_factor": [positive],
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
    one_winner: int = 20
    nats_a_feature: float = 0.25
    cost_factor: float = 1.3
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
    """Heavy tails of the particles, with which the run is repeated in coordinates behind a sinh transform.

    The defaults are unmeasured.

    Parameters
    ----------
    kurtosis : float, default=4.5
        Of a coordinate, above which taming its tails is tried; a Gaussian's is 3.
    beyond_two_points : float, default=2.5
        What kurtosis minus squared skewness has to exceed, too: it is 1 for two unequal points, little more for two
        narrow modes, whose tails are light, and 3 for a Gaussian.
    level : float, default=0.2
        Quantile of the distance from the median, within which a tamed coordinate stays linear.
    clear_gain, clear_loss : float, default=0.05 and 0.2
        Nats of log Z by which a run with tamed tails has found what one without missed, and has missed what that found.
    better_fit : float, default=0.05
        Nats by which a Gaussian has to fit the particles better behind the sinh transform, where neither is so. Student
        t with 3 degrees of freedom is worth -.05 to -.01, with 2 it is .2 to .4, and one to thirty per cent of the
        mass in a background twenty times as wide as the rest .2 to 2.
    max_runs : int, default=3
        Repetitions.
    """

    constraints: ClassVar[dict] = {
        "kurtosis": [positive],
        "beyond_two_points": [not_negative],
        "level": [share],
        "clear_gain": [not_negative],
        "clear_loss": [not_negative],
        "better_fit": [not_negative],
        "max_runs": [not_negative],
    }

    kurtosis: float = 4.5
    beyond_two_points: float = 2.5
    level: float = 0.2
    clear_gain: float = 0.05
    clear_loss: float = 0.2
    better_fit: float = 0.05
    max_runs: int = 3


@register_specification
@dataclass(frozen=True, repr=False)
class Centring(Part):
    """Non-centred coordinates, along one that the place or the scale of the others depends on (`NonCentred`).

    In funnels, centred hierarchical models and along ridges a chain of Gaussian steps needs many for what is one step
    in such coordinates, and moves mix better there; see ``benchmarks/necks.py --fits default``. The single values are
    unmeasured.

    Parameters
    ----------
    max_features : int, default=40
        In which they are tried; they take a triangular matrix for every point.
    n_knots : int, default=4
        Of a spline.
    n_fitted : int, default=5000
        Particles that they are fitted to.
    share : float, default=0.1
        Of the evaluations left, that the comparisons may take.
    n_draws, fewest_draws : int, default=2000 and 100
        Of a Gaussian, by whose ESS coordinates are compared.
    gain, least_ess : float, default=2.0 and 0.05
        By which the ESS has to be larger than without them, and which it has to be.
    """

    constraints: ClassVar[dict] = {
        "max_features": [not_negative],
        "n_knots": [at_least_three],
        "n_fitted": [at_least_two],
        "share": [share],
        "n_draws": [at_least_one],
        "fewest_draws": [at_least_two],
        "gain": [positive],
        "least_ess": [share],
    }

    max_features: int = 40
    n_knots: int = 4
    n_fitted: int = 5000
    share: float = 0.1
    n_draws: int = 2000
    fewest_draws: int = 100
    gain: float = 2.0
    least_ess: float = 0.05


@register_specification
@dataclass(frozen=True, repr=False)
class HighDimension(Part):
    """The run from the best Gaussian around a mode in high dimension, where the energy has a gradient.

    Unmeasured unless said otherwise.

    Parameters
    ----------
    n_features : int, default=256
        Features above which a run starts from there, and no climbs are made.
    n_features_of_one_mode, n_climbs : int, default=64 and 12
        Features above which such a run is made if so many climbs end at one mode, or within the bulk of one.
    inflation : float, default=1.1
        In place of that of `Tempering`.
    n_temperatures : int, default=18
        Of such a run, for how many particles are affordable: as measured once on a log-Gaussian Cox process in 1600
        dimensions. In up to `n_features` a run that takes more is given up for a race.
    max_numbers : int, default=5000000
        Held by all particles together.
    fewest_particles : int, default=2000
        Particles, however many numbers these hold.
    max_iter : int, default=2000
        Of L-BFGS, which looks for the mode.
    n_hessians : int, default=32
        Steps from Laplace's approximation to the best Gaussian; each takes a Hessian, of 2 n_features evaluations, or
        of a dozen where the first one is sparse. On the same Cox process the bound of log Z is 480.7 by Laplace's
        Gaussian and 498.8 by the best one.
    mean_steps, n_draws : int, default=2 and 256
        Moves of the mean in each, and draws that a move, or the comparison of bounds, takes.
    n_skew_draws : int, default=2048
        By whose scores coordinates are bent to the density's skewness, after half of the steps (`bends`), and by which
        such coordinates are compared; 0 leaves them as they are.
    n_third_draws : int, default=64
        By which third derivatives are known, for a block triangular map in place of the bends.
    n_moment_steps : int, default=8
        Steps to the best mean and precision behind a skew map (`refined`), in place of the Hessians after it, with
        `n_skew_draws` draws each. With twice as many the bound of log Z is the same where the precision is sparse.
    moment_draws : float, default=2.0
        Draws of such a step for each feature where the precision is dense, if these are more.
    variational_inflation : float, default=1.0
        In place of `inflation`, for a run from the best Gaussian, or from Laplace's where the density is close to
        normal. In 1600 dimensions a widening by a tenth costs 15 nats.
    gaussian_share, refined_share : float, default=0.4 and 0.1
        Of the pilot's limits, for the steps; and of what it has left, for those that start from its particles in more
        than 20 features.
    """

    constraints: ClassVar[dict] = {
        "n_features": [not_negative],
        "n_features_of_one_mode": [not_negative],
        "n_climbs": [at_least_one],
        "inflation": [positive],
        "n_temperatures": [at_least_one],
        "max_numbers": [at_least_one],
        "fewest_particles": [at_least_two],
        "max_iter": [at_least_one],
        "n_hessians": [not_negative],
        "mean_steps": [at_least_one],
        "n_draws": [at_least_two],
        "n_skew_draws": [not_negative],
        "n_third_draws": [at_least_two],
        "n_moment_steps": [not_negative],
        "moment_draws": [positive],
        "variational_inflation": [positive],
        "gaussian_share": [share],
        "refined_share": [share],
    }

    n_features: int = 256
    n_features_of_one_mode: int = 64
    n_climbs: int = 12
    inflation: float = 1.1
    n_temperatures: int = 18
    max_numbers: int = 5_000_000
    fewest_particles: int = 2000
    max_iter: int = 2000
    n_hessians: int = 32
    mean_steps: int = 2
    n_draws: int = 256
    n_skew_draws: int = 2048
    n_third_draws: int = 64
    n_moment_steps: int = 8
    moment_draws: float = 2.0
    variational_inflation: float = 1.0
    gaussian_share: float = 0.4
    refined_share: float = 0.1


@register_specification
@dataclass(frozen=True, repr=False)
class Triangular(Part):
    """A triangular map before the Gaussian, where the density is skew along any directions (`TriangularMap`).

    It is looked for in more than 20 features, where the energy has a gradient. Numbers of draws and steps are measured
    on two logistic regressions, by ``benchmarks/gaussians.py``; the shares are unmeasured.

    Parameters
    ----------
    max_features : int, default=200
        In which it is looked for; it has a third of their cube of numbers.
    max_features_of_cubics : int, default=64
        In which one of degree 3 is; it also has a 24th of their fourth power. In more than these, a map has to be
        better than skewness along the coordinates alone.
    n_hessians : int, default=4
        Steps to the Gaussian that it starts from, where evaluations are few; see `HighDimension`. With 32 the ESS is
        the same.
    n_steps : int, default=16
        Towards it. With 8 the bound of log Z is up to .01 less, with 32 it is the same.
    draws, draws_at_least : float, default=1.0 and 0.25
        Draws of a step, and those that have to be affordable, in units of the square of the number of features.
    fewest_draws, most_draws : int, default=256 and 10000
        Draws of a step, however few or many features there are, if those at least that have to be affordable are not
        more.
    n_compared : int, default=256
        Draws of the comparison with the Gaussian.
    share : float, default=0.6
        Of the evaluations and the time that the pilot has left.
    n_cubic_steps : int, default=12
        Further ones, to a map with cubic locations and quadratic log scales; 0 for none.
    cubic_draws, cubic_draws_at_least : float, default=4.0 and 1.0
        Draws of such a step, and those that have to be affordable, in units of the square of the number of features.
        With 2 the bound is .005 less.
    n_compared_cubic : int, default=2048
        Draws of the comparison between the two maps.
    least_gain : float, default=0.02
        Nats that the bound has to gain by the cubic one: it takes several times as long.
    """

    constraints: ClassVar[dict] = {
        "max_features": [not_negative],
        "max_features_of_cubics": [not_negative],
        "n_hessians": [not_negative],
        "n_steps": [not_negative],
        "draws": [positive],
        "draws_at_least": [positive],
        "fewest_draws": [at_least_two],
        "most_draws": [at_least_two],
        "n_compared": [at_least_two],
        "share": [share],
        "n_cubic_steps": [not_negative],
        "cubic_draws": [positive],
        "cubic_draws_at_least": [positive],
        "n_compared_cubic": [at_least_two],
        "least_gain": [not_negative],
    }

    max_features: int = 200
    max_features_of_cubics: int = 64
    n_hessians: int = 4
    n_steps: int = 16
    draws: float = 1.0
    draws_at_least: float = 0.25
    fewest_draws: int = 256
    most_draws: int = 10_000
    n_compared: int = 256
    share: float = 0.6
    n_cubic_steps: int = 12
    cubic_draws: float = 4.0
    cubic_draws_at_least: float = 1.0
    n_compared_cubic: int = 2048
    least_gain: float = 0.02


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
