"""DiffusionSampler: a many-step diffusion sampler learned from the energy alone."""

import copy
import math

from sklearn.utils._param_validation import StrOptions
from sklearn.utils.validation import check_is_fitted

from .._support.devices import randn, to_numpy
from .._support.settings import guest
from .._support.validation import check_count
from ..density.function import Density
from ..explore.specifications import Pilot
from ..io.schema import Fitted
from ..models.diffusion import DiffusionModel
from ..models.process import GRIDS
from ..models.specifications import Control
from ..train.objectives.denoising import DenoisingLoss
from ..train.objectives.path import PATH_LOSSES
from ..train.objectives.specifications import PathLoss
from ..train.particles import effective_share
from ..train.phases import Phase
from ..weights.importance import log_evidence
from .base import BaseSampler
from .control import CONSTRAINTS, FITTED, ControlStart, found_by
from .diffusion_families import OF_CHAINS
from .family_methods import OfFamilies
from .given import draws_given, is_given, weighted_given
from .networks import networks_found, networks_wanted
from .paths import (
    exchange_paths,
    gauge,
    judge_paths,
    keep_time_for_paths,
    moves_share,
    paths_to_exchange,
    plateau_of_paths,
    weighted_paths,
)

FINE_TUNING_RATE = 0.1  # learning rate of the log-variance loss after score matching, in units of the latter's


class DiffusionSampler(OfFamilies, BaseSampler):
    """Diffusion sampler of an unnormalised density, learned from its energy (DIS; also DDS and PIS).

    A chain of Gaussian steps carries N(0, I) to the target. Its control is a network trained by score matching on the
    particles of a tempered sequential Monte Carlo run, which are kept moving by MALA and exchanged for draws of the
    chain by their exact path weights; or, as published, by a loss on simulated trajectories [1]_ [2]_. The path weights
    are exact for any number of steps.

    Parameters
    ----------
    {n_features}
    {bounds}
    {periodic}
    {feature_names}
    start : {"pilot", "prior"}, Pilot, Prior, array-like of shape (m, n_features) or tuple, default=None
        Where training starts: from the particles of a pilot run, the default, or on the trajectories of the untrained
        sampler alone, as in [1]_. Points of your own, or a tuple (location, scale), are where a pilot begins to look
        for the density; ``Pilot(n_particles=...)`` says more.
    n_steps : int, default=64
        Steps of the chain.
    reference : {"dis", "dds", "pis"}, default="dis"
        Process that the control is added to: the time reversal of an Ornstein-Uhlenbeck process on levels uniform in
        log signal-to-noise; the stationary Ornstein-Uhlenbeck process by the exponential integrator on the published
        cosine schedule (denoising diffusion sampler [3]_); or Brownian motion from a point in equal steps of time (path
        integral sampler [4]_).
    network : Control, default=None
        The network of the control, with its sizes; None is ``Control()``.
    loss : {"log_variance", "kl"} or PathLoss, default="log_variance"
        Loss on simulated trajectories, where training starts from the prior, or where ``PathLoss(share=...)`` gives it
        a share of the iterations; ``PathLoss(tol=...)`` says when score matching ends early.
    batch_size : int, default=2048
        Particles in a batch of score matching.
    {learning_rate}
    max_iter : int, default=3000
        Optimiser iterations, at most: training comes to its end where more would bring nothing (`Stopping`).
    {max_time}
    {max_energy_evals}
    {n_init}
    {n_jobs}
    {device}
    warm_start : bool, default=False
        Whether to go on from the earlier fit's network, of the same size, and from its particles. Of these some are
        left out or copied where their number has changed; where they are of no use to the energy, the fit starts anew
        and says so.
    {verbose}
    {random_state}

    Attributes
    ----------
    {n_features_in_}
    {feature_names_out_}
    {bounds_}
    {bounds_scale_}
    {seam_}
    n_steps_ : int
        Steps of the chain that was fitted.
    log_evidence_, log_evidence_se_ : float
        Estimate of log Z from evaluation draws, with its standard error.
    {elbo_}
    ess_ : float
        Normalised ESS of the weights of evaluation paths, in (0, 1].
    {total_variation_}
    {converged_}
    {pilot_}
    {particles_}
    {loss_curve_}
    {history_}
    {n_iter_}
    {n_energy_evals_}
    {interrupted_}
    {n_rollbacks_}
    {n_contexts_in_}
    {context_names_in_}
    {contexts_}
    {fit_time_}

    References
    ----------
    .. [1] Richter & Berner, "Improved sampling via learned diffusions", 2024.
    .. [2] Jutras-Dubé, Pynadath & Zhang, "Single-Step Consistent Diffusion Samplers", arXiv:2502.07579.
    .. [3] Vargas, Grathwohl & Doucet, "Denoising Diffusion Samplers", 2023.
    .. [4] Zhang & Chen, "Path Integral Sampler: a stochastic control approach for sampling", 2022.

    Examples
    --------
    >>> from skcds import DiffusionSampler, Pilot
    >>> sampler = DiffusionSampler(
    ...     n_features=2, start=Pilot(n_particles=500),
    ...     n_steps=16, max_iter=20, random_state=0
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
        "network": [Control, None],
        "loss": [StrOptions(set(PATH_LOSSES)), PathLoss],
    }
    _short_cuts: dict = {
        "network": {None: Control()},
        "loss": {kind: PathLoss(kind) for kind in PATH_LOSSES},
    }
    _family = OF_CHAINS
    _fitted_attributes: dict = FITTED | {"n_steps_": Fitted("count", since=3, before=lambda sampler: sampler.n_steps)}

    def __init__(
        self, n_features=None, *, bounds=None, periodic=None, feature_names=None, start=None, n_steps=64,
        reference="dis", network=None, loss="log_variance", batch_size=2048, learning_rate=4e-3, max_iter=3000,
        max_time=None, max_energy_evals=None, n_init=1, n_jobs=None, device="auto", warm_start=False, verbose=0,
        random_state=None,
    ):  # fmt: skip
        self.n_features = n_features
        self.bounds = bounds
        self.periodic = periodic
        self.feature_names = feature_names
        self.start = start
        self.n_steps = n_steps
        self.reference = reference
        self.network = network
        self.loss = loss
        self.batch_size = batch_size
        self.learning_rate = learning_rate
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

    def _build_model(self, standardization, log_snr_max, langevin, explored=None):
        grid, control = GRIDS[self.reference](self.n_steps, log_snr_max), self._specified("network")
        return DiffusionModel(
            standardization.loc.numel(), max(log_snr_max, float(grid.log_snr[-1])), standardization.full,
            control.hidden_features, control.n_layers, langevin, control.variance == "learned", self.reference,
            **standardization.parts,
        )  # fmt: skip

    def _networks_wanted(self, energy):
        return {**networks_wanted("network", self._specified("network"), energy), "reference": self.reference}

    def _networks_found(self, config):
        return {**networks_found("network", config), "reference": config["reference"]}

    def _begin(self, run):
        path_loss = self._specified("loss")
        if path_loss.kind == "kl" and not run.energy.has_gradient:
            raise ValueError(
                "loss='kl' follows the gradient of the energy: pass grad_fn=, or an energy function on torch tensors, "
                "or choose loss='log_variance'."
            )
        student = vars(self).get("_for_student")  # of a student that fits it on the way
        ControlStart(self, self._specified("network"), path_loss, bool(student and student.own_draws)).begin(run)
        if student:
            student.explored = run.explored
        run.untrained = copy.deepcopy(run.model)
        gauge(run, self.n_steps)
        keep_time_for_paths(run)

    def _recipe(self, run):
        path_loss, with_pilot = self._specified("loss"), isinstance(self._specified("start"), Pilot)
        n_paths = round(self.max_iter * (1.0 if run.population is None else path_loss.share))
        n_scores = self.max_iter - n_paths
        if n_scores:
            yield self._score_matching(run, n_scores)
        if n_paths and (len(run.losses) == n_scores or run.budget.spent() >= self._score_share):
            rate = self.learning_rate * (FINE_TUNING_RATE if with_pilot else 1.0)
            kind = PATH_LOSSES[path_loss.kind]
            loss = kind(run.model, run.target, self.n_steps, path_loss.batch_size, run.generator)
            yield Phase(path_loss.kind.replace("_", " "), loss, n_paths, rate, ema_decay=0.98)

    @property
    def _score_share(self):
        """Share of the limits at which score matching ends, and what is left is for the loss on paths."""
        return 1 - 0.5 * self._specified("loss").share

    def _score_matching(self, run, n_iter):
        model, target, population = run.model, run.target, run.population
        share, by = moves_share(run), run.training.particles
        every = run.budget.spacing(by.move_every, len(population), n_iter, share, until=self._score_share)
        loss = DenoisingLoss(model, target, population, self.n_steps, self.batch_size, run.generator, every)

        def refresh(averaged):
            """Exchange particles for ends of paths; whether the path weights are good enough to end the training."""
            n = paths_to_exchange(max(len(population) // 2, 100), run, self.n_steps)
            if not n:
                return False
            z, log_weights = weighted_paths(averaged, target, self.n_steps, n, run.generator)
            exchange_paths(population, averaged, target, self.n_steps, z, log_weights, run.generator)
            share = effective_share(log_weights)
            log_z = log_evidence(to_numpy(log_weights))[0] if share else -math.inf
            run.budget.progress.note(ess=share, log_z=log_z)
            return share >= 1 - self._specified("loss").tol

        callbacks = {int(share * n_iter): refresh for share in by.exchanges} if n_iter >= by.min_iter else {}
        last = n_iter == self.max_iter  # a loss on paths that is to follow would be spared with the rest
        plateau = plateau_of_paths(run, self.n_steps, n_iter, self._specified("loss").tol) if last else None
        return Phase(
            "score matching", loss, n_iter, self.learning_rate, share=self._score_share, callbacks=callbacks,
            plateau=plateau,
        )  # fmt: skip

    def _judge(self, run):
        weighted = judge_paths(run, self.n_steps)
        run.fitted |= {"n_steps_": self.n_steps, **found_by(run)}
        return weighted

    def _advice(self, run):
        return "Raise max_iter or n_steps, or check the energy function."

    # ---------------------------------------------------------------- sampling

    @guest
    def sample(
        self, n, n_steps=None, random_state=None, *, context=None, method="sde", energy_fn=None, grad_fn=None, out=None,
        as_frame=False,
    ):  # fmt: skip
        """Draw from the learned density by simulation.

        Parameters
        ----------
        {n}
        n_steps : int, default=None
            Steps of the chain; by default those of the fit.
        {random_state}
        {context}
        method : {"sde", "ode"}, default="sde"
            The stochastic chain, or the probability-flow ODE by Heun's method.
        energy_fn, grad_fn : callable, optional
            The energy, for a sampler that was loaded without it and whose control reads the score.
        {out}
        {as_frame}

        Returns
        -------
        {X}
        """
        check_is_fitted(self)
        options = {"n_steps": n_steps, "method": method, "energy_fn": energy_fn, "grad_fn": grad_fn}
        if is_given(self, context):
            return draws_given(self, context, n, random_state, options, out, as_frame)
        return self._sample(n, random_state, options, out, as_frame)

    @property
    def score_samples(self):
        """Not there: the density of a chain's ends has no closed form. The one-step samplers have a `score_samples`.

        Raises
        ------
        AttributeError
            Always, so that ``hasattr`` is False.
        """
        raise AttributeError(
            "DiffusionSampler has no score_samples: the ends of its random paths have no density in closed form. The "
            "one-step samplers ConsistentSamplerDistiller and ConsistentSamplerScratch have one."
        )

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

    @guest
    def sample_weighted(self, n, n_steps=None, random_state=None, *, context=None, energy_fn=None, grad_fn=None):
        """Draw with exact path weights.

        Parameters
        ----------
        {n}
        n_steps : int, default=None
            Steps of the chain; by default those of the fit. The weights are exact for any number.
        random_state : int, RandomState instance, numpy.random.Generator or None, default=None
            Seed.
        {context}
        {energy_fn}

        Returns
        -------
        WeightedSample
            Its ``is_bound`` is True: the mean log weight is a lower bound of log Z in expectation. For many contexts a
            list of them.
        """
        check_is_fitted(self)
        if is_given(self, context):
            options = {"n_steps": n_steps, "energy_fn": energy_fn, "grad_fn": grad_fn}
            return weighted_given(self, context, n, random_state, options)
        n, grid = check_count(n, "n", 1), self._grid(n_steps)
        target = self._target(Density.of(energy_fn, grad_fn), "sample_weighted")

        return self._weighted_draws(
            n, random_state, target,
            lambda normal: self._model.simulate_weighted(normal(grid.n_steps), grid, target, normal), is_bound=True,
        )  # fmt: skip

    def _drawn_together(self, normal, options: dict):
        """Draws (m r, d) of the contexts that a sampler is bound to."""
        return self._plan(**options)(normal)

    def _weighed_together(self, normal, target, options: dict):
        """Draws (m r, d) of the contexts that a sampler is bound to, and their log path weights (m r,)."""
        grid = self._grid(options.get("n_steps"))
        return self._model.simulate_weighted(normal(grid.n_steps), grid, target, normal)

    def _weigh(self, z, target, generator):
        _, log_ratio = self._model.noise_back(z, self._grid(None), target, lambda k: randn(generator, z.shape))
        return target.log_prob(z) + log_ratio

    def _grid(self, n_steps):
        return self._model.grid(self.n_steps_ if n_steps is None else check_count(n_steps, "n_steps", 1))
