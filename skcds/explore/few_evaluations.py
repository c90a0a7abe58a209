"""What an exploration by few evaluations goes by: adaptive importance sampling, with mixtures and maps as proposals."""

__all__ = ["Adaptive", "MapFit", "Mixture", "Nested", "Survey"]

from dataclasses import dataclass
from typing import ClassVar

from ..io.registry import register_specification
from ..models.specifications import Part, at_least_one, at_least_three, at_least_two, not_negative, positive, share


@register_specification
@dataclass(frozen=True, repr=False)
class Survey(Part):
    """The climbs that an exploration by few evaluations begins with.

    Of 24 mixtures of six far Gaussians in five dimensions, broad ones and narrow ones, surveys to a chance of .0005, by
    96 climbs at least, lost modes of more than .03 of the mass in five, by 4 000 evaluations; these defaults in one (a
    mode of .04), by 8 000 (``python benchmarks/surveys.py``). Other values are unmeasured.

    Parameters
    ----------
    share : float, default=0.15
        Of the evaluations left.
    n_climbs, fewest_climbs : int, default=600 and 200
        At most, and where all end at one mode.
    chance_of_another : float, default=1e-5
        Estimated chance that the next climb ends at a new mode, with which a survey ends that knows several.
    distances : tuple of float, default=(1.0, 3.0, 10.0, 30.0, 100.0)
        From the origin, or beyond the spread of the modes, of the points that climbs start from, in turn.
    widths : tuple of float, default=(1.0, 2.0)
        Of the spread of the modes, in turn.
    from_origin : int, default=4
        One of so many climbs starts from around the origin, once two modes are known.
    """

    constraints: ClassVar[dict] = {
        "share": [share],
        "n_climbs": [not_negative],
        "fewest_climbs": [at_least_one],
        "chance_of_another": [share],
        "distances": [tuple],
        "widths": [tuple],
        "from_origin": [at_least_two],
    }

    share: float = 0.15
    n_climbs: int = 600
    fewest_climbs: int = 200
    chance_of_another: float = 1e-5
    distances: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0, 100.0)
    widths: tuple[float, ...] = (1.0, 2.0)
    from_origin: int = 4


@register_specification
@dataclass(frozen=True, repr=False)
class Mixture(Part):
    """The mixtures of t distributions that points are drawn from.

    The defaults are unmeasured one by one, and were tried together; see `Adaptive`.

    Parameters
    ----------
    max_components, fewest_components : int, default=50 and 8
        At most, and to begin with beside two for each mode.
    points_a_component : int, default=4
        Effective points for each coordinate of a component.
    used : float, default=0.8
        Share of the components in use with which there may be more.
    max_fitted : int, default=4000
        Points that a mixture is fitted to.
    freedom : float, default=5.0
        Degrees of freedom of the components, a whole number.
    spread : float, default=1.2
        Of the components, in units of the covariance of what they were fitted to.
    scales : tuple of float, default=(1.0, 3.0, 10.0, 30.0, 100.0)
        Of round parts of the first one.
    laplace_spread : float, default=1.2
        Of its parts at modes.
    broad : float, default=1.6
        Width of the broader one, in units of the mixture's.
    n_iter : int, default=20
        Of expectation maximisation, which is from the last mixture where there are several modes; with 0, none is.
    prior_points : float, default=1.0
        Effective points that what a component was counts as: for each coordinate and one more, where its scale is
        concerned.
    light : float, default=30.0
        Degrees of freedom of mixtures with lighter tails, which are tried, too, where there are several modes.
    lack, least_mass : float, default=10.0 and 1e-3
        Ratio of the density to that of the mixture, from which it has too low a density at a point, and the mass of
        such points from which there are further components.
    """

    constraints: ClassVar[dict] = {
        "max_components": [at_least_one],
        "fewest_components": [at_least_one],
        "points_a_component": [at_least_one],
        "used": [share],
        "max_fitted": [at_least_one],
        "freedom": [positive],
        "spread": [positive],
        "scales": [tuple],
        "laplace_spread": [positive],
        "broad": [positive],
        "n_iter": [not_negative],
        "prior_points": [positive],
        "light": [positive],
        "lack": [positive],
        "least_mass": [share],
    }

    max_components: int = 50
    fewest_components: int = 8
    points_a_component: int = 4
    used: float = 0.8
    max_fitted: int = 4000
    freedom: float = 5.0
    spread: float = 1.2
    scales: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0, 100.0)
    laplace_spread: float = 1.2
    broad: float = 1.6
    n_iter: int = 20
    prior_points: float = 1.0
    light: float = 30.0
    lack: float = 10.0
    least_mass: float = 1e-3


@register_specification
@dataclass(frozen=True, repr=False)
class Nested(Part):
    """Laplace's approximations along a coordinate on which location or scale of the others depends.

    Their draws, after 145 to 565 evaluations, had an ESS of .56 on a funnel in ten dimensions, .61 on eight centred
    schools and .68 on a banana in four (``python benchmarks/necks.py``). The defaults are unmeasured
    one by one.

    Parameters
    ----------
    share : float, default=0.2
        Of the evaluations left, for the approximations of one coordinate; their draws are beside it. With 0 there are
        none.
    least_correlation : float, default=0.25
        Between the coordinate, or its square, and the log squares, or the values, of what linear regression leaves of
        another one, from which there are such approximations.
    most_coordinates, most_looks : int, default=2 and 4
        That there are approximations along, and how often they are looked for, by twice as many points each time.
    draws : float, default=0.3
        Of a round's draws, from a new approximation.
    least_ess, kept, good : float, default=0.05, 0.3 and 0.2
        Normalised ESS of these, above which it is kept; relative to that of the best one; and with which no others are
        looked for.
    most_knots : int, default=60
        Along a coordinate.
    step, width : float, default=0.5 and 0.6
        Between knots, in standard deviations of the coordinate; and of a component along it, in units of this.
    depth : float, default=12.0
        Nats of mass below the largest, at which the approximations end.
    lines : int, default=12
        That there are where other leading coordinates are given, too, as those of so many points.
    beside : float, default=0.4
        Width of a component in these, in units of their standard deviation.
    knots_of_several : int, default=10
        Of each spline of non-centred coordinates along several leading ones.
    power : float, default=0.7
        Of the masses, which are the components' weights.
    spread, freedom : float, default=1.1 and 5.0
        Of the components, in units of the approximations, and their degrees of freedom, a whole number.
    """

    constraints: ClassVar[dict] = {
        "share": [share],
        "least_correlation": [share],
        "most_coordinates": [not_negative],
        "most_looks": [not_negative],
        "draws": [share],
        "least_ess": [share],
        "kept": [share],
        "good": [share],
        "most_knots": [at_least_two],
        "step": [positive],
        "width": [positive],
        "depth": [positive],
        "lines": [at_least_one],
        "beside": [positive],
        "knots_of_several": [at_least_three],
        "power": [positive],
        "spread": [positive],
        "freedom": [positive],
    }

    share: float = 0.2
    least_correlation: float = 0.25
    most_coordinates: int = 2
    most_looks: int = 4
    draws: float = 0.3
    least_ess: float = 0.05
    kept: float = 0.3
    good: float = 0.2
    most_knots: int = 60
    step: float = 0.5
    width: float = 0.6
    depth: float = 12.0
    lines: int = 12
    beside: float = 0.4
    knots_of_several: int = 10
    power: float = 0.7
    spread: float = 1.1
    freedom: float = 5.0


@register_specification
@dataclass(frozen=True, repr=False)
class MapFit(Part):
    """The coupling maps that points are drawn from where a mixture is too poor.

    The defaults are unmeasured one by one, but for the regression; see `Adaptive`.

    Parameters
    ----------
    good_mixture : float, default=0.65
        Normalised ESS of a round from a mixture, above which no map is tried.
    n_iter : int, default=200
        Iterations of a fit.
    batch_size : int, default=256
        Points in a batch.
    learning_rate, weight_decay : float, default=3e-3 and 1e-2
        Of AdamW.
    exponent : float, default=0.5
        Of the weights by which points are drawn for training: spreads a batch over more of them.
    regression : float, default=1.0
        Weight of the regression on log densities, beside the likelihood: without it and with it, the ESS of a map
        fitted to the points of nine modes was .93 and .96.
    log_snr_max : float, default=6.0
        Last level of the map, which decides its sizes.
    n_transforms : int, default=4
        Couplings.
    scores : float, default=1.0
        Weight of the regression on scores, where there is a gradient and no more than one known mode; see
        ``benchmarks/points.py``. Between separate modes it harms: it tells nothing of their masses.
    wide : float, default=0.3
        Of a round's draws from a map, those one latent coordinate of which has a t distribution, or, where there are
        any, those from approximations along a coordinate (`Nested`); where no more than one mode is known.
    wide_scale, wide_freedom : float, default=1.5 and 2.0
        Of that distribution; the freedom is a whole number.
    kept : float, default=0.1
        Normalised ESS of a round, above which the map is fitted further, and not anew.
    begun : float, default=0.2
        Normalised ESS of the last round, above which the map of a one-step sampler starts from this one.
    """

    constraints: ClassVar[dict] = {
        "good_mixture": [share],
        "n_iter": [at_least_one],
        "batch_size": [at_least_one],
        "learning_rate": [positive],
        "weight_decay": [not_negative],
        "exponent": [share],
        "regression": [not_negative],
        "log_snr_max": [positive],
        "n_transforms": [at_least_one],
        "scores": [not_negative],
        "wide": [share],
        "wide_scale": [positive],
        "wide_freedom": [positive],
        "kept": [share],
        "begun": [share],
    }

    good_mixture: float = 0.65
    n_iter: int = 200
    batch_size: int = 256
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    exponent: float = 0.5
    regression: float = 1.0
    log_snr_max: float = 6.0
    n_transforms: int = 4
    scores: float = 1.0
    wide: float = 0.3
    wide_scale: float = 1.5
    wide_freedom: float = 2.0
    kept: float = 0.1
    begun: float = 0.2


@register_specification
@dataclass(frozen=True, repr=False)
class Adaptive(Part):
    """Adaptive importance sampling, in the place of race and tempering where few evaluations are allowed.

    Tried together on Gaussian mixtures, wells and twisted Gaussians in 2 to 5 dimensions; unmeasured one by one, unless
    said otherwise.

    Parameters
    ----------
    max_evals, fewest_evals : int, default=300000 and 150
        With evaluations left between these, points are weighed and all kept. A Gaussian in three dimensions has
        an ESS of .47 with 700 evaluations (``benchmarks/limits.py --kinds scratch --problems slow3 --evals 700``).
    seconds : float, default=120.0
        That evaluations of a fit without limits may take, where `max_evals` of them take longer: about what its
        training takes.
    levels : tuple of int, default=(10000, 30000, 100000)
        Evaluations that such a fit is limited to: the largest that take no longer, or the first.
    fewest_timed, most_timed : int, default=300 and 100000
        A fit with a limit of time alone limits its evaluations to what half of the time allows, between these.
    max_features : int, default=64
        In which mixtures and maps can be fitted to thousands of points.
    time_share, evals_share : float, default=0.6 and 0.9
        Of the limits of a fit.
    many_features : int, default=20
        Above which, with a gradient and one mode, a short tempered run from the best Gaussian takes the place of
        weighted points, and the map is trained on its own draws.
    evals_before_own_draws : float, default=0.6
        Share of the limit of evaluations for that.
    checked_share : float, default=0.05
        Of the evaluations left, kept for a look at whether the density is one.
    fewest_effective : int, default=50
        Points that particles are taken from, if need be by tempered weights.
    rounds : int, default=12
        Of draws from a new proposal.
    fewest_draws, most_draws : int, default=50 and 4000
        Of a round.
    effective : float, default=0.4
        Of a round's draws, that the tempered weights leave effective.
    effective_a_feature : int, default=10
        So many for each feature are left effective at least.
    defensive : float, default=0.15
        Of a round's draws, from broader proposals, which keep weights bounded.
    good_proposal : float, default=0.8
        Normalised ESS of a round, above which nothing is fitted anew.
    growth : float, default=1.5
        Of the points, after which it is all the same.
    enough_ess : float, default=0.9
        Normalised ESS of a round, with which no more is explored if `enough_effective` points are effective.
    enough_effective : int, default=10000
        See `enough_ess`.
    settled : float, default=0.02
        And if log Z has changed by less since there were half as many points: a neck or a tail that is still being
        reached adds to it.
    held_out : float, default=0.12
        Share of the points, by which proposals are compared.
    survey : Survey, default=Survey()
        Climbs to begin with.
    mixture : Mixture, default=Mixture()
        Proposals that are mixtures.
    map : MapFit, default=MapFit()
        Proposals that are maps.
    nested : Nested, default=Nested()
        Proposals along a coordinate.
    """

    constraints: ClassVar[dict] = {
        "max_evals": [not_negative],
        "fewest_evals": [at_least_one],
        "seconds": [not_negative],
        "levels": [tuple],
        "fewest_timed": [at_least_one],
        "most_timed": [not_negative],
        "max_features": [not_negative],
        "time_share": [share],
        "evals_share": [share],
        "many_features": [not_negative],
        "evals_before_own_draws": [share],
        "checked_share": [share],
        "fewest_effective": [at_least_one],
        "rounds": [at_least_one],
        "fewest_draws": [at_least_one],
        "most_draws": [at_least_one],
        "effective": [share],
        "effective_a_feature": [not_negative],
        "defensive": [share],
        "good_proposal": [share],
        "growth": [positive],
        "enough_ess": [share],
        "enough_effective": [not_negative],
        "settled": [not_negative],
        "held_out": [share],
        "survey": [Survey],
        "mixture": [Mixture],
        "map": [MapFit],
        "nested": [Nested],
    }

    max_evals: int = 300_000
    fewest_evals: int = 150
    seconds: float = 120.0
    levels: tuple[int, ...] = (10_000, 30_000, 100_000)
    fewest_timed: int = 300
    most_timed: int = 100_000
    max_features: int = 64
    time_share: float = 0.6
    evals_share: float = 0.9
    many_features: int = 20
    evals_before_own_draws: float = 0.6
    checked_share: float = 0.05
    fewest_effective: int = 50
    rounds: int = 12
    fewest_draws: int = 50
    most_draws: int = 4000
    effective: float = 0.4
    effective_a_feature: int = 10
    defensive: float = 0.15
    good_proposal: float = 0.8
    growth: float = 1.5
    enough_ess: float = 0.9
    enough_effective: int = 10_000
    settled: float = 0.02
    held_out: float = 0.12
    survey: Survey = Survey()
    mixture: Mixture = Mixture()
    map: MapFit = MapFit()
    nested: Nested = Nested()
