"""DiffusionSampler: a many-step diffusion sampler learned from the energy alone."""

import contextlib
import copy
import math
import numbers

from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from .._support.devices import randn, to_numpy
from .._support.errors import Spent
from .._support.validation import check_count
from ..density.function import Density
from ..density.standardize import StandardizedTarget
from ..explore.pilot import MAX_NUMBERS
from ..io.schema import Fitted
from ..models.diffusion import DiffusionModel
from ..models.process import GRIDS
from ..train.objectives.denoising import MOVE_EVERY, DenoisingLoss
from ..train.objectives.path import PATH_LOSSES
from ..train.particles import effective_share
from ..train.phases import Phase
from ..weights.importance import log_evidence
from ..weights.sample import WeightedSample
from .base import BaseSampler
from .control import (
    CONSTRAINTS,
    FITTED,
    HELD_OUT,
    MIN_ITER_REFRESH,
    REFRESHES,
    ControlStart,
    affordable_paths,
    exchange_paths,
    found_by,
    gauge,
    moves_share,
    networks_found,
    networks_wanted,
    population_of,
    weighted_paths,
)

FINE_TUNING_RATE = 0.1  # learning rate of the log-variance loss after score matching, in units of the latter's
N_COMPARED = 500  # paths by which the control is compared with that before training
MIN_RESAMPLED_SHARE = 0.1  # effective share of path weights that is good enough to resample their ends by
FEWEST_HELD_OUT = 100  # paths of the judgement, however little time is left
SHARE_COMPARED = N_COMPARED / HELD_OUT  # of the held-out paths, as many of the control before training
SPOILED = 1.0  # nats of the lower bound by which training has made a control worse


class DiffusionSampler(BaseSampler):
    """Diffusion sampler of an unnormalised density, learned from its energy (DIS; also DDS and PIS).

    A chain of Gaussian steps carries N(0, I) to the target. Its control is a network trained by score matching on the
    particles of a tempered sequential Monte Carlo run, which are kept moving by MALA and exchanged for draws of the
    chain by their exact path weights; or, as published, by a loss on simulated trajectories [1]_ [2]_. The path weights
    are exact for any number of steps.

    Parameters
    ----------
    n_features : int, default=None
        Dimension; by default ``energy_fn.n_features``.
    bounds : pair or array-like of shape (n_features, 2), default=None
        Lower and upper bound of every coordinate, or one pair for all; None or infinity where there is none. The
        sampler works in unconstrained coordinates, by the normal distribution function, so that `energy_fn` is never
        called on a bound or beyond; draws, weights and log Z are those of the density in the box.
    feature_names : array-like of str, default=None
        Names of the coordinates; by default ``energy_fn.feature_names``, or else x0, x1 and so on.
    start : array-like of shape (m, n_features) or tuple (location, scale), default=None
        Where to begin looking for the density: points of your own, or a location and a scale, each a number or an array
        of shape (n_features,). By default from Gaussians of scales 1 to 100 around the origin, and from the modes that
        climbs from there end at.
    n_steps : int, default=64
        Steps of the chain.
    reference : {"dis", "dds", "pis"}, default="dis"
        Process that the control is added to: the time reversal of an Ornstein-Uhlenbeck process on levels uniform in
        log signal-to-noise; the stationary Ornstein-Uhlenbeck process by the exponential integrator on the published
        cosine schedule (denoising diffusion sampler [3]_); or Brownian motion from a point in equal steps of time (path
        integral sampler [4]_).
    loss : {"log_variance", "kl"}, default="log_variance"
        Loss on simulated trajectories, with ``init="prior"`` or a positive `path_share`: the variance of the log path
        weight, or minus its mean, which needs the energy's gradient and seeks modes. DDS and PIS were published with
        the latter.
    init : {"pilot", "prior"}, default="pilot"
        Where training starts: from the particles of a pilot run, or on the trajectories of the untrained sampler alone,
        as in [1]_. The latter assumes a target of about unit scale and finds separate modes only by luck.
    variance : {"learned", "fixed"}, default="learned"
        Variance of a step: learned for every state and coordinate, or the variance of the noising step, as in [1]_.
    langevin : bool or "auto", default="auto"
        Whether the control reads the target's score, which then is evaluated at every step of sampling, too. "auto":
        unless `max_energy_evals` is too low for that.
    path_share : float, default=0.0
        Share of the iterations, the last ones, that go to `loss` with ``init="pilot"``; with ``init="prior"`` all do.
        On paths of its own a chain forgets tails that it reaches too seldom.
    n_particles : int, default=20000
        Particles of the pilot; in more than 256 dimensions no more than hold 5e6 numbers, or 2000 if that is more.
    hidden_features, n_layers : int, default=128 and 4
        Width and number of the hidden layers.
    batch_size : int, default=2048
        Particles in a batch of score matching.
    path_batch_size : int, default=512
        Trajectories in a batch of `loss`.
    learning_rate : float, default=4e-3
        Of AdamW at its height.
    tol : float, default=0.02
        Training ends early when the effective share of the path weights exceeds ``1 - tol``.
    max_iter : int, default=3000
        Optimiser iterations.
    max_time : float, default=None
        Seconds that the fit may take from call to return: shares of them are kept for the pilot, for training and
        for the judgement of held-out draws. A single call of `energy_fn` is waited for.
    max_energy_evals : int, default=None
        Points that `energy_fn` may be asked for in all, at least 200. The fit is planned for it: with fewer
        particles, fewer moves of them, and without scores of the target where they are few.
        With at most 300 000 all points that the pilot draws are kept and weighed (adaptive importance sampling).
    n_init : int, default=1
        Independent fits, each with the limits of one, of which the best by the evidence lower bound of held-out draws
        is kept. The bound hardly minds a missed mode.
    n_jobs : int, default=None
        Workers that several fits, and the chunks of large samples, are shared among by joblib; None is 1 unless in a
        `joblib.parallel_config` context, and -1 all processors. The results do not depend on it.
    device : str, default="auto"
        Where training and draws run: "cpu", "cuda" or one like "cuda:1"; "auto" is CUDA where there is one. A sampler
        that is loaded elsewhere is put on the CPU where its device is missing. Draws of one seed are of the same random
        numbers on every device; those of training are not.
    warm_start : bool, default=False
        Whether to go on from the earlier fit's network and particles, which must not have another size. Where its
        particles are of no use to the energy, the fit starts anew and says so.
    verbose : int, default=0
        1 shows one line of progress from the first second on: phase, time left, evaluations and their rate, log Z and
        normalised ESS so far. 2 keeps a line for every phase.
    random_state : int, RandomState instance, numpy.random.Generator or None, default=None
        Seed of the fit.

    Attributes
    ----------
    n_features_in_ : int
        Dimension.
    feature_names_out_ : ndarray of shape (n_features,)
        Names of the coordinates.
    bounds_ : ndarray of shape (n_features, 2) or None
        Lower and upper bounds, infinite where there is none; None without any.
    bounds_scale_ : ndarray of shape (n_features,) or None
        Distance from a single bound that zero stands for in unconstrained coordinates: the median of a short pilot run.
    n_steps_ : int
        Steps of the chain that was fitted.
    log_evidence_, log_evidence_se_ : float
        Estimate of log Z from held-out draws, with its standard error.
    elbo_ : float
        Their mean log weight, an evidence lower bound (of a map that folds no bound).
    ess_ : float
        Effective share of the held-out path weights, in (0, 1].
    converged_ : bool
        Whether their Pareto k is at most `skcds.importance.pareto_k_limit`, 0.7 for so many.
    pilot_ : PilotResult or None
        What the pilot found; with `bounds`, in unconstrained coordinates.
    particles_ : ndarray of shape (n_particles, n_features)
        Particles as they were left at the end; with `bounds`, in unconstrained coordinates.
    loss_curve_ : list of float
        Loss of every iteration.
    history_ : list of PhaseRecord
        Phases of the training that ran, each with its `name`, its `n_iter` and what its losses are of in turn, `cycle`.
    n_iter_ : int
        Iterations done.
    n_energy_evals_, n_grad_evals_, n_network_evals_ : int
        Evaluations of the energy, of its gradient, and of networks, in points.
    interrupted_ : bool
        Whether the user ended the training.
    n_rollbacks_ : int
        How often training diverged and went back to an earlier state.
    n_contexts_in_ : int
        Numbers of a context: 0, as this sampler learns single densities.
    context_names_in_, contexts_ : None
        Of the samplers of families, of which there is none here.
    fit_time_ : float
        Seconds; not part of a pickle.

    References
    ----------
    .. [1] Richter & Berner, "Improved sampling via learned diffusions", 2024.
    .. [2] Jutras-Dubé, Pynadath & Zhang, "Single-Step Consistent Diffusion Samplers", arXiv:2502.07579.
    .. [3] Vargas, Grathwohl & Doucet, "Denoising Diffusion Samplers", 2023.
    .. [4] Zhang & Chen, "Path Integral Sampler: a stochastic control approach for sampling", 2022.

    Examples
    --------
    >>> from skcds import DiffusionSampler
    >>> sampler = DiffusionSampler(
    ...     n_features=2, n_steps=16, n_particles=1000, max_iter=50, random_state=0
    ... )
    >>> sampler.fit(lambda x: 0.5 * ((x - 3) ** 2).sum(1))
    DiffusionSampler(...)
    >>> sampler.sample(4, random_state=0).shape
    (4, 2)
    """

    _parameter_constraints: dict = {
        **BaseSampler._parameter_constraints,
        **CONSTRAINTS,
        "reference": [StrOptions(set(GRIDS))],
        "loss": [StrOptions(set(PATH_LOSSES))],
        "path_share": [Interval(numbers.Real, 0, 1, closed="both")],
        "tol": [Interval(numbers.Real, 0, 1, closed="both")],
    }
    _fitted_attributes: dict = FITTED | {"n_steps_": Fitted("count", since=3, before=lambda sampler: sampler.n_steps)}

    def __init__(
        self, n_features=None, *, bounds=None, feature_names=None, start=None, n_steps=64, reference="dis",
        loss="log_variance", init="pilot", variance="learned", langevin="auto", path_share=0.0, n_particles=20_000,
        hidden_features=128, n_layers=4, batch_size=2048, path_batch_size=512, learning_rate=4e-3,
        tol=0.02, max_iter=3000, max_time=None, max_energy_evals=None, n_init=1, n_jobs=None, device="auto",
        warm_start=False, verbose=0, random_state=None,
    ):  # fmt: skip
        self.n_features = n_features
        self.bounds = bounds
        self.feature_names = feature_names
        self.start = start
        self.n_steps = n_steps
        self.reference = reference
        self.loss = loss
        self.init = init
        self.variance = variance
        self.langevin = langevin
        self.path_share = path_share
        self.n_particles = n_particles
        self.hidden_features = hidden_features
        self.n_layers = n_layers
        self.batch_size = batch_size
        self.path_batch_size = path_batch_size
        self.learning_rate = learning_rate
        self.tol = tol
        self.max_iter = max_iter
        self.max_time = max_time
        self.max_energy_evals = max_energy_evals
        self.n_init = n_init
        self.n_jobs = n_jobs
        self.device = device
        self.warm_start = warm_start
        self.verbose = verbose
        self.random_state = random_state

    # ---------------------------------------------------------------- training

    def _check_family(self):
        raise ValueError(
            "DiffusionSampler learns a single density and takes no contexts: fit a ConsistentSamplerScratch or a "
            "ConsistentSamplerDistiller to a family."
        )

    def _build_model(self, standardization, log_snr_max, langevin):
        grid = GRIDS[self.reference](self.n_steps, log_snr_max)
        return DiffusionModel(
            standardization.loc.numel(), max(log_snr_max, float(grid.log_snr[-1])), standardization.full,
            self.hidden_features, self.n_layers, langevin, self.variance == "learned", self.reference,
        )  # fmt: skip

    def _networks_wanted(self, energy):
        return {**networks_wanted(self, energy), "reference": self.reference}

    def _networks_found(self, config):
        return {**networks_found(config), "reference": config["reference"]}

    def _begin(self, run):
        if self.loss == "kl" and not run.energy.has_gradient:
            raise ValueError(
                "loss='kl' follows the gradient of the energy: pass grad_fn=, or an energy function on torch tensors, "
                "or choose loss='log_variance'."
            )
        ControlStart(self).begin(run)
        run.untrained = copy.deepcopy(run.model)
        gauge(run, self.n_steps)

    def _recipe(self, run):
        n_paths = round(self.max_iter * (1.0 if run.population is None else self.path_share))
        n_scores = self.max_iter - n_paths
        if n_scores:
            yield self._score_matching(run, n_scores)
        if n_paths and (len(run.losses) == n_scores or run.budget.spent() >= self._score_share):
            rate = self.learning_rate * (FINE_TUNING_RATE if self.init == "pilot" else 1.0)
            loss = PATH_LOSSES[self.loss](run.model, run.target, self.n_steps, self.path_batch_size, run.generator)
            yield Phase(self.loss.replace("_", " "), loss, n_paths, rate, ema_decay=0.98)

    @property
    def _score_share(self):
        """Share of the limits at which score matching ends, and what is left is for the loss on paths."""
        return 1 - 0.5 * self.path_share

    def _score_matching(self, run, n_iter):
        model, target, population = run.model, run.target, run.population
        share = moves_share(model)
        every = run.budget.spacing(MOVE_EVERY, len(population), n_iter, share, until=self._score_share)
        loss = DenoisingLoss(model, target, population, self.n_steps, self.batch_size, run.generator, every)

        def refresh(averaged):
            """Exchange particles for ends of paths; whether the path weights are good enough to end the training."""
            n = affordable_paths(max(len(population) // 2, 100), run)
            if not n:
                return False
            z, log_weights = weighted_paths(averaged, target, self.n_steps, n, run.generator)
            exchange_paths(population, averaged, target, self.n_steps, z, log_weights, run.generator)
            share = effective_share(log_weights)
            log_z = log_evidence(to_numpy(log_weights))[0] if share else -math.inf
            run.budget.progress.note(ess=share, log_z=log_z)
            return share >= 1 - self.tol

        callbacks = {int(share * n_iter): refresh for share in REFRESHES} if n_iter >= MIN_ITER_REFRESH else {}
        return Phase(
            "score matching", loss, n_iter, self.learning_rate, share=self._score_share, callbacks=callbacks
        )  # fmt: skip

    def _judge(self, run):
        """Held-out paths; the control before training is kept where training has clearly lowered the bound on log Z.

        Few particles in high dimension, or few iterations, can teach less than the standardisation knows. Particles are
        exchanged for ends of the paths, or are these where there are none.
        """
        reported = StandardizedTarget.reported(run.energy, run.model.standardization)
        run.budget.progress.phase("judgement")
        with run.budget.judgement():
            n = self._n_held_out(run)
            z, log_weights = weighted_paths(run.model, reported, self.n_steps, n, run.generator)
            before = run.untrained.requires_grad_(False).eval()
            n_before = min(n, max(N_COMPARED * n // HELD_OUT, 20))
            first, first_weights = weighted_paths(before, reported, self.n_steps, n_before, run.generator)
            if _bound(log_weights) + SPOILED < _bound(first_weights):
                run.model, z, log_weights = before, first, first_weights
            if run.population is not None:
                with contextlib.suppress(Spent):
                    exchange_paths(
                        run.population, run.model, run.target, self.n_steps, z, log_weights, run.generator
                    )  # fmt: skip
        if run.population is None:
            run.population = population_of(run, z)
            with contextlib.suppress(Spent):
                run.population.correct(z, log_weights, MIN_RESAMPLED_SHARE)
        run.fitted |= {"n_steps_": self.n_steps, **found_by(run)}
        return WeightedSample(to_numpy(run.model.standardization(z)), to_numpy(log_weights), True)

    def _n_held_out(self, run):
        evals = 1 + self.n_steps * run.model.needs_score
        n = min(HELD_OUT, max(N_COMPARED, MAX_NUMBERS // run.model.n_features))
        n = N_COMPARED if run.budget.interrupted else n
        evals_a_row = 2 * evals + 1 + evals * SHARE_COMPARED
        return max(run.budget.n_affordable(n, 2.2 * run.seconds_a_path, evals_a_row, FEWEST_HELD_OUT), 2)

    def _advice(self, run):
        return "Raise max_iter or n_steps, or check the energy function."

    # ---------------------------------------------------------------- sampling

    def sample(
        self, n, n_steps=None, random_state=None, *, method="sde", energy_fn=None, grad_fn=None, out=None,
        as_frame=False,
    ):  # fmt: skip
        """Draw from the learned density by simulation.

        Parameters
        ----------
        n : int
            Number of draws.
        n_steps : int, default=None
            Steps of the chain; by default those of the fit.
        random_state : int, RandomState instance, numpy.random.Generator or None, default=None
            Seed. The first rows of a larger sample are those of a smaller one, to single precision.
        method : {"sde", "ode"}, default="sde"
            The stochastic chain, or the probability-flow ODE by Heun's method.
        energy_fn, grad_fn : callable, optional
            The energy, for a sampler that was loaded without it and whose control reads the score.
        out : ndarray of shape (n, n_features), optional
            Where the draws go, for example a memory map; floating point numbers of any precision.
        as_frame : bool, default=False
            Whether to return a pandas data frame with named columns.

        Returns
        -------
        X : ndarray of shape (n, n_features)
            Draws, float64, or `out`, or a data frame.
        """
        check_is_fitted(self)
        options = {"n_steps": n_steps, "method": method, "energy_fn": energy_fn, "grad_fn": grad_fn}
        return self._sample(n, random_state, options, out, as_frame)

    def _plan(self, *, n_steps=None, method="sde", density=None):
        grid = self._grid(n_steps)
        if method not in ("sde", "ode"):
            raise ValueError(f"method has to be 'sde' or 'ode'; got {method!r}.")
        target = self._target(density, "sample") if self._model.needs_score else None

        def draw(normal):
            if method == "ode":
                return self._model.flow(normal(grid.n_steps), grid, target)
            return self._model.simulate(normal(grid.n_steps), grid, target, normal)[0]

        return draw

    def _needs_energy(self, **options):
        return self._model.needs_score

    def sample_weighted(self, n, n_steps=None, random_state=None, *, energy_fn=None, grad_fn=None):
        """Draw with exact path weights.

        Parameters
        ----------
        n : int
            Number of draws.
        n_steps : int, default=None
            Steps of the chain; by default those of the fit. The weights are exact for any number.
        random_state : int, RandomState instance, numpy.random.Generator or None, default=None
            Seed.
        energy_fn, grad_fn : callable, optional
            The energy, for a sampler that was loaded without it.

        Returns
        -------
        WeightedSample
            Its ``is_bound`` is True: the mean log weight is a lower bound of log Z in expectation.
        """
        check_is_fitted(self)
        n, grid = check_count(n, "n", 1), self._grid(n_steps)
        target = self._target(Density.of(energy_fn, grad_fn), "sample_weighted")

        return self._weighted_draws(
            n, random_state, target,
            lambda normal: self._model.simulate_weighted(normal(grid.n_steps), grid, target, normal), is_bound=True,
        )  # fmt: skip

    def _weigh(self, z, target, generator):
        _, log_ratio = self._model.noise_back(z, self._grid(None), target, lambda k: randn(generator, z.shape))
        return target.log_prob(z) + log_ratio

    def _grid(self, n_steps):
        return self._model.grid(self.n_steps_ if n_steps is None else check_count(n_steps, "n_steps", 1))


def _bound(log_weights) -> float:
    """Mean log weight of what falls into the support, less the log of its share; ``-inf`` where nothing does."""
    finite = log_weights.isfinite()
    share = float(finite.double().mean())
    return float(log_weights[finite].mean()) + math.log(share) if share else -math.inf
