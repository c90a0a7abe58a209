"""What a training goes by, whatever its loss: steps back, particles, likelihood, families, and the judgement."""

__all__ = ["FamilyTraining", "Likelihood", "Marginals", "Particles", "Stopping", "Training"]

from dataclasses import dataclass
from typing import ClassVar

from ..io.registry import register_specification
from ..models.specifications import Part, at_least_one, at_least_two, not_negative, positive, share


@register_specification
@dataclass(frozen=True, repr=False)
class Particles(Part):
    """How the particles that training draws on are kept moving, and exchanged for ends of paths.

    The defaults are unmeasured.

    Parameters
    ----------
    move_every : int, default=10
        Iterations of score matching between moves of the particles.
    moves_share : float, default=0.8
        Of the evaluations left after the pilot, for moves of the particles; half of it where scores are read.
    exchanges : tuple of float, default=(0.25, 0.5, 0.75)
        Of the iterations of score matching in a `DiffusionSampler`, at which particles are exchanged for ends of paths.
    exchanges_of_map : tuple of float, default=(0.25, 0.5, 0.65, 0.8)
        The same in a `ConsistentSamplerScratch`.
    exchanges_from_prior : tuple of float, default=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
        The same where it starts from the prior.
    min_iter : int, default=200
        Iterations of a fit for which the exchanges are worth their cost.
    n_paths : int, default=10000
        Of an exchange in a `ConsistentSamplerScratch`, at most.
    fewest_paths : int, default=200
        That an exchange is made with, under a limit of time.
    paths_share : float, default=0.1
        Of the seconds left, for an exchange.
    """

    constraints: ClassVar[dict] = {
        "move_every": [at_least_one],
        "moves_share": [share],
        "exchanges": [tuple],
        "exchanges_of_map": [tuple],
        "exchanges_from_prior": [tuple],
        "min_iter": [not_negative],
        "n_paths": [at_least_two],
        "fewest_paths": [at_least_one],
        "paths_share": [share],
    }

    move_every: int = 10
    moves_share: float = 0.8
    exchanges: tuple[float, ...] = (0.25, 0.5, 0.75)
    exchanges_of_map: tuple[float, ...] = (0.25, 0.5, 0.65, 0.8)
    exchanges_from_prior: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    min_iter: int = 200
    n_paths: int = 10_000
    fewest_paths: int = 200
    paths_share: float = 0.1


@register_specification
@dataclass(frozen=True, repr=False)
class Stopping(Part):
    """When training comes to its end before `max_iter`.

    Now and then the normalised ESS of what is trained is estimated: of an invertible map's draws at the particles,
    which needs no evaluation, or of a chain's paths. Where it has no room left, or has not grown for a while, the
    learning rate falls to its end within a few more iterations. Default students of gmm9 took 500 of 2000 iterations
    for an ESS of .983 where all gave .990, and of a funnel in 10 dimensions 1600 for .944 and .948. The rest is
    unmeasured.

    Parameters
    ----------
    tol : float, default=0.02
        Training of a map comes to its end when the normalised ESS exceeds ``1 - tol``; that of paths by the `tol` of
        `PathLoss`.
    look_every, first : float, default=0.05 and 0.1
        Shares of `max_iter`: between looks, and of the first after that at the start.
    patience : int, default=5
        Looks within which the best has to be better than all before, the start included. It is for maps alone: the
        effective share of a chain's paths grows most when the learning rate falls. A teacher of gmm9 that did not wait
        had .68, one of all 3000 iterations .91.
    gain : float, default=0.01
        By so much.
    least : float, default=0.5
        Normalised ESS below which training goes on, however slow it is.
    landing : float, default=0.1
        Share of `max_iter` in which the learning rate then falls.
    n_particles, n_paths : int, default=2000 and 500
        Particles that a look at a map takes, and paths that one at a chain does.
    paths_share : float, default=0.1
        Of the evaluations left, for all looks at a chain; without 100 paths each there are none. Of a limit of time,
        too: the next look waits until the last one has taken less.
    min_iter : int, default=100
        A shorter training is not looked at.
    """

    constraints: ClassVar[dict] = {
        "tol": [share],
        "look_every": [share],
        "first": [share],
        "patience": [at_least_one],
        "gain": [not_negative],
        "least": [share],
        "landing": [share],
        "n_particles": [at_least_two],
        "n_paths": [at_least_two],
        "paths_share": [share],
        "min_iter": [not_negative],
    }

    tol: float = 0.02
    look_every: float = 0.05
    first: float = 0.1
    patience: int = 5
    gain: float = 0.01
    least: float = 0.5
    landing: float = 0.1
    n_particles: int = 2000
    n_paths: int = 500
    paths_share: float = 0.1
    min_iter: int = 100


@register_specification
@dataclass(frozen=True, repr=False)
class Marginals(Part):
    """The first fit of splines of single coordinates to the marginals of particles, before a map is trained.

    Of 12 pairs of wells in 24 dimensions, whose marginals are all there is to learn, such a fit alone gives draws an
    ESS of .88 with the defaults, and of .39 with 8 bins, 150 iterations and a rate of .1. The rest is unmeasured.

    Parameters
    ----------
    n_iter : int, default=800
        Iterations; none leave the splines to the training of the map.
    batch_size : int, default=200
        Particles in a batch, about.
    learning_rate : float, default=0.2
        Of Adam, which falls to zero.
    time_share : float, default=0.1
        Of the seconds left, that it may take; swaps and the fit after them may each take as much again.
    most_features : int, default=256
        Features up to which there is such a fit.
    particles_a_number : int, default=40
        Particles for each number of a spline that there have to be.
    n_crossings : int, default=10
        Times that each particle tries to swap coordinates with a draw of the splines, which are then fitted again; 0
        leaves the masses of modes as tempering has them.
    n_pairs, independent : int and float, default=500 and 0.01
        Pairs of draws by which it is told whether coordinates are independent (`interaction`), and nats of dependence
        below which the map has no couplings, unless their number is said.
    crossings_share : float, default=0.1
        Of the evaluations left, that swaps and pairs may take, and as many again a fit after training.
    refit_time_share : float, default=0.3
        Of the seconds left after training, for one more fit; but for it only the judgement is to come.
    n_refits, refit_batch_size, refit_rate : int, int and float, default=100, 1000 and 0.003
        Iterations, draws in a batch, and learning rate of the fit after training. Of two maps of five wells among 50
        coordinates it took the largest error of a quantile from .037 and .025 to .013 and .013, and their ESS from .924
        and .950 to .943 and .952. A fit to 20 000 particles took the error to .016 and .022; particles that were held
        out lost .013 and .010 nats by it.
    """

    constraints: ClassVar[dict] = {
        "n_iter": [not_negative],
        "batch_size": [at_least_two],
        "learning_rate": [positive],
        "time_share": [share],
        "most_features": [not_negative],
        "particles_a_number": [at_least_one],
        "n_crossings": [not_negative],
        "n_pairs": [not_negative],
        "independent": [not_negative],
        "crossings_share": [share],
        "refit_time_share": [share],
        "n_refits": [not_negative],
        "refit_batch_size": [at_least_two],
        "refit_rate": [positive],
    }

    n_iter: int = 800
    batch_size: int = 200
    learning_rate: float = 0.2
    time_share: float = 0.1
    most_features: int = 256
    particles_a_number: int = 40
    n_crossings: int = 10
    n_pairs: int = 500
    independent: float = 0.01
    crossings_share: float = 0.1
    refit_time_share: float = 0.3
    n_refits: int = 100
    refit_batch_size: int = 1000
    refit_rate: float = 0.003


@register_specification
@dataclass(frozen=True, repr=False)
class Training(Part):
    """What every fit goes by: steps back, limits, the judgement of evaluation draws, and the checkpoint.

    Unmeasured unless said otherwise.

    Parameters
    ----------
    snapshot_every : int, default=25
        Iterations between states that training can go back to where loss or gradient is not finite.
    max_rollbacks : int, default=10
        In a row without a new such state, after which training ends.
    slower, recovery : float, default=0.5 and 1.02
        Factors of the learning rate when it goes back, and at every iteration after that.
    energy_time : float, default=0.5
        Of the seconds left, for evaluations of the energy: about what training itself takes.
    judgement_share : float, default=0.1
        Of either limit, kept for the judgement of evaluation draws.
    n_judged : int, default=10000
        Evaluation draws that a fit is judged by.
    n_compared : int, default=500
        Paths by which the control of a `DiffusionSampler` is compared with that before training, and draws by which
        the map of a one-step sampler is.
    regression_margin : float, default=1.0
        Nats of the lower bound of log Z by which training has made a control worse, which then is that of before.
        Seen on a log-Gaussian Cox process in 1600 dimensions: ELBO 437 after training, 481 before.
    checkpoint_interval : float, default=30.0
        Seconds of training between two writes of the checkpoint.
    particles : Particles, default=Particles()
        Moves and exchanges of particles.
    stopping : Stopping, default=Stopping()
        When training ends before `max_iter`.
    marginals : Marginals, default=Marginals()
        The first fit of splines of single coordinates.
    """

    constraints: ClassVar[dict] = {
        "snapshot_every": [at_least_one],
        "max_rollbacks": [not_negative],
        "slower": [positive],
        "recovery": [positive],
        "energy_time": [share],
        "judgement_share": [share],
        "n_judged": [at_least_two],
        "n_compared": [at_least_two],
        "regression_margin": [not_negative],
        "checkpoint_interval": [not_negative],
        "particles": [Particles],
        "stopping": [Stopping],
        "marginals": [Marginals],
    }

    snapshot_every: int = 25
    max_rollbacks: int = 10
    slower: float = 0.5
    recovery: float = 1.02
    energy_time: float = 0.5
    judgement_share: float = 0.1
    n_judged: int = 10_000
    n_compared: int = 500
    regression_margin: float = 1.0
    checkpoint_interval: float = 30.0
    particles: Particles = Particles()
    stopping: Stopping = Stopping()
    marginals: Marginals = Marginals()


@register_specification
@dataclass(frozen=True, repr=False)
class Likelihood(Part):
    """The likelihood of a coupling map at particles that keep moving, which calibrates its one-step density.

    Unmeasured unless said otherwise; the figures are in ``benchmarks/README.md``.

    Parameters
    ----------
    order : float, default=1.5
        Of Renyi's divergence of the target from the draws, at least 1, which is that of Kullback and Leibler. Orders 1,
        1.5 and 2 gave an ESS of .48, .58 and .61 on gmm40, with ever more stray draws between modes.
    largest_count : float, default=10.0
        Largest weight of a particle, in units of the median.
    move_every, exchange_every : int, default=8 and 50
        Iterations between moves of the particles, and between exchanges of half of them for images of the map. Moves
        every 32 gave an ESS of .68 for .71 on a posterior in 35 dimensions. Of the funnel's deep neck, which has .0025
        of the mass, three exchanges in a fit gave .0007, one every 50 iterations .0012 to .0014.
    exchange_share : float, default=0.25
        Of the evaluations for both that exchanges may take.
    rare_moves : int, default=40
        Iterations between moves, where limits make them rarer, beyond which there is a regression on log densities.
    regression : float, default=1.0
        Its weight.
    most_features : int, default=256
        Features above which the reverse divergence of the map's own draws takes the place of the likelihood, where
        there is a gradient. Particles of more features are too few for the numbers of a map: splines of 1600 single
        coordinates gain a nat on fresh draws, and would lose several to 3000 particles.
    n_draws : int, default=128
        Of these at an iteration, half of them mirror images.
    reverse_kl : float, default=1.0
        Weight of the reverse divergence of own draws beside the likelihood, where there is a gradient, there are many
        features, and the map has couplings: gradients along draws do not tell the masses of single coordinates' modes.
    reverse_share : float, default=0.6
        Of the evaluations left, for it.
    turns, many_features : int, default=7 and 20
        In more features, iterations on own draws alone for each of the likelihood. In fewer, the losses are summed.
    batch_between : int, default=128
        Particles in a batch of the likelihood between such turns, and twice the pairs of states.
    fewest_particles : int, default=5000
        In many features own draws take the place of the likelihood where there are fewer particles.
    """

    constraints: ClassVar[dict] = {
        "order": [positive],
        "largest_count": [positive],
        "move_every": [at_least_one],
        "exchange_every": [at_least_one],
        "exchange_share": [share],
        "rare_moves": [not_negative],
        "regression": [not_negative],
        "most_features": [not_negative],
        "n_draws": [at_least_two],
        "reverse_kl": [not_negative],
        "reverse_share": [share],
        "turns": [not_negative],
        "many_features": [not_negative],
        "batch_between": [at_least_two],
        "fewest_particles": [not_negative],
    }

    order: float = 1.5
    largest_count: float = 10.0
    move_every: int = 8
    exchange_every: int = 50
    exchange_share: float = 0.25
    rare_moves: int = 40
    regression: float = 1.0
    most_features: int = 256
    n_draws: int = 128
    reverse_kl: float = 1.0
    reverse_share: float = 0.6
    turns: int = 7
    many_features: int = 20
    batch_between: int = 128
    fewest_particles: int = 5000


@register_specification
@dataclass(frozen=True, repr=False)
class FamilyTraining(Part):
    """The training on a family of densities: groups of particles, renewed from draws of the map.

    The defaults are unmeasured.

    Parameters
    ----------
    n_each : int, default=8
        Particles of a group.
    n_fresh : int, default=32000
        Particles that training keeps beside those of the exploration, the anchors.
    anchors_drawn : float, default=0.25
        Share of a batch of the anchors, which keep modes that a map may lose.
    every : int, default=40
        Iterations between renewals.
    n_groups, draws_each : int, default=400 and 16
        Contexts of a renewal, and draws of the map for each.
    n_moves : int, default=3
        Moves of new particles.
    anchors_moved : int, default=200
        Anchors that are moved beside them.
    evals_share : float, default=0.8
        Of the evaluations left, for renewals.
    regression : float, default=1.0
        Weight of the spread of log ratios within a context, beside the likelihood.
    """

    constraints: ClassVar[dict] = {
        "n_each": [at_least_two],
        "n_fresh": [at_least_two],
        "anchors_drawn": [share],
        "every": [at_least_one],
        "n_groups": [at_least_one],
        "draws_each": [at_least_two],
        "n_moves": [at_least_one],
        "anchors_moved": [not_negative],
        "evals_share": [share],
        "regression": [not_negative],
    }

    n_each: int = 8
    n_fresh: int = 32_000
    anchors_drawn: float = 0.25
    every: int = 40
    n_groups: int = 400
    draws_each: int = 16
    n_moves: int = 3
    anchors_moved: int = 200
    evals_share: float = 0.8
    regression: float = 1.0
