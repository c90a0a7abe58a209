"""ConsistentSamplerScratch: one step or many, learned from the energy without a teacher."""

import copy
import functools

from sklearn.utils._param_validation import StrOptions
from sklearn.utils.validation import check_is_fitted

from .._support.settings import guest
from .._support.validation import check_count
from ..density.function import Density
from ..models.maps import BATCH_SIZES, MAPS, has_fine_scales
from ..models.networks import in_parts
from ..models.specifications import MAPS_BY_NAME, Control, Specification
from ..train.objectives.base import InTurn, Sum
from ..train.objectives.denoising import DenoisingLoss
from ..train.objectives.likelihood import LikelihoodLoss, levels_of_steps, options_within
from ..train.objectives.path import LogVarianceLoss
from ..train.objectives.reverse_kl import beside_likelihood, on_own_draws, turns_of_own_draws
from ..train.objectives.self_consistency import SelfConsistencyLoss
from ..train.objectives.specifications import PathLoss, SelfConsistency
from ..train.phases import Phase
from ..train.plateau import plateau_of
from .control import CONSTRAINTS, FITTED, ControlStart, found_by
from .explored import as_explored, begin_from, has_own_draws, known_points_loss
from .given import draws_given, is_given, weighted_given
from .networks import map_wanted, networks_of_shortcut, networks_wanted, shortcut_model
from .onestep import OneStepSampler
from .paths import first_ends, gauge, moves_share, renewals

WEIGHT_DECAY = 1e-2


class ConsistentSamplerScratch(OneStepSampler):
    """Self-consistent diffusion sampler (SCDS): learns without a teacher to sample in one step or, if asked, in more.

    One model holds a control of the generative chain, trained by a sampling loss, and a map F(x, t, d) that takes steps
    of every power of two of the grid, up to the one from the prior to the target. A step of size 2d from a state of
    the process has to land where two steps of size d land (self-consistency, Algorithm 2 of [1]_). The default map is
    an invertible spline coupling, whose likelihood calibrates the distribution of every step on the way;
    ``network="residual", objective="joint", start="prior"`` is the method as published.

    Parameters
    ----------
    {n_features}
    {bounds}
    {periodic}
    {feature_names}
    start : {"pilot", "prior"}, Pilot, Prior, array-like of shape (m, n_features) or tuple, default=None
        Where training starts; see `DiffusionSampler`. From a pilot the sampling loss is score matching on particles,
        from the prior it is the log-variance loss on simulated paths, whose states the map is then trained on.
    n_steps : int, default=64
        Steps N of the grid, a power of two.
    network : {"coupling", "residual"}, Coupling or Residual, default="coupling"
        The map: spline couplings conditioned on both ends of a step, invertible by construction, beside a network for
        the control; or one residual network whose finest steps are the control, as in [1]_, which can fold.
    control : Control, default=None
        The network of the control beside a coupling map; None is ``Control()``.
    objective : {"separate", "joint"} or SelfConsistency, default="separate"
        Whether the sampling loss and the losses of the map take optimiser steps in turn, or are summed as in [1]_;
        ``SelfConsistency(weight=...)`` says more.
    batch_size : int, default=2048
        Particles in a batch of score matching, and steps in one of self-consistency for a residual network.
    {learning_rate}
    max_iter : int, default=4000
        Optimiser iterations, at most: training comes to its end where more would bring nothing (`Stopping`).
    {max_time}
    {max_energy_evals}
    {n_init}
    {n_jobs}
    {device}
    warm_start : bool, default=False
        Whether to go on from the earlier fit's networks, of the same size, and from its particles. Of these some are
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
    {log_evidence_}
    {elbo_}
    {ess_}
    {total_variation_}
    {converged_}
    {violation_share_}
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
    .. [1] Jutras-Dubé, Pynadath & Zhang, "Single-Step Consistent Diffusion Samplers", arXiv:2502.07579.

    Examples
    --------
    >>> from skcds import ConsistentSamplerScratch, Pilot
    >>> sampler = ConsistentSamplerScratch(
    ...     n_features=2, start=Pilot(n_particles=500),
    ...     n_steps=8, max_iter=20, random_state=0
    ... )
    >>> sampler = sampler.fit(lambda x: 0.5 * ((x - 3) ** 2).sum(1))
    >>> sampler.sample(4, random_state=0).shape
    (4, 2)
    """

    _parameter_constraints: dict = {
        **OneStepSampler._parameter_constraints,
        **CONSTRAINTS,
        "network": [StrOptions(set(MAPS)), Specification],
        "control": [Control, None],
        "objective": [StrOptions({"separate", "joint"}), SelfConsistency],
    }
    _short_cuts: dict = {
        "network": MAPS_BY_NAME,
        "control": {None: Control()},
        "objective": {schedule: SelfConsistency(schedule) for schedule in ("separate", "joint")},
    }
    _fitted_attributes: dict = FITTED

    def __init__(
        self, n_features=None, *, bounds=None, periodic=None, feature_names=None, start=None, n_steps=64,
        network="coupling", control=None, objective="separate", batch_size=2048, learning_rate=4e-3, max_iter=4000,
        max_time=None, max_energy_evals=None, n_init=1, n_jobs=None, device="auto", warm_start=False, verbose=0,
        random_state=None,
    ):  # fmt: skip
        self.n_features = n_features
        self.bounds = bounds
        self.periodic = periodic
        self.feature_names = feature_names
        self.start = start
        self.n_steps = n_steps
        self.network = network
        self.control = control
        self.objective = objective
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

    def _networks_wanted(self, energy):
        wanted = map_wanted(self._specified("network")) | {"n_steps": self.n_steps}
        if wanted["network"] == "residual":  # one network, which reads no score
            return wanted
        return wanted | networks_wanted("control", self._specified("control"), energy)

    def _networks_found(self, config):
        return networks_of_shortcut(config)

    def _build_model(self, standardization, log_snr_max, langevin, explored=None):
        network, control = as_explored(self._specified("network"), explored), self._specified("control")
        model = shortcut_model(network, control, self.n_steps, standardization, log_snr_max, langevin)
        begin_from(model.map, explored)
        return model

    def _begin(self, run):
        if self.n_steps & (self.n_steps - 1):
            raise ValueError(f"n_steps has to be a power of two; got {self.n_steps}.")
        objective = self._specified("objective")
        path_loss = PathLoss(batch_size=objective.path_batch_size, training=objective.training)
        ControlStart(self, self._specified("control"), path_loss, has_own_draws(self)).begin(run)
        run.untrained = copy.deepcopy(run.model.map)
        gauge(run, self.n_steps)

    def _judge(self, run):
        run.fitted |= found_by(run)
        return super()._judge(run)

    def _advice(self, run):
        return "Raise max_iter or the sizes of the networks, or take more steps."

    def _recipe(self, run):
        """One phase, of a sampling loss and the losses of the map, in turn or summed."""
        objective = self._specified("objective")
        on_particles, separate = run.population is not None, objective.schedule == "separate"
        n_map = objective.map_steps if on_particles else objective.map_steps_from_prior
        refines = on_particles and objective.refine and run.model.map.invertible
        n_own = n_map * turns_of_own_draws(run, self.max_iter, objective.likelihood) if refines and separate else 0
        n_sampling = -(-self.max_iter // (1 + n_map + n_own)) if separate else self.max_iter
        if on_particles:
            share = 0.5 * moves_share(run)  # the other half is for the likelihood's
            every = run.budget.spacing(run.training.particles.move_every, len(run.population), n_sampling, share)
            sampling: DenoisingLoss | LogVarianceLoss = DenoisingLoss(
                run.model, run.target, run.population, self.n_steps, self.batch_size, run.generator, every
            )
            states = run.population.noised
        else:
            sampling = LogVarianceLoss(run.model, run.target, self.n_steps, objective.path_batch_size, run.generator)
            states = sampling.states
            run.population = first_ends(run, self.n_steps, self._specified("start").n_particles)
        n_iter = n_sampling * n_map if separate else self.max_iter
        own = beside_likelihood(run, n_sampling * n_own or n_iter, objective.likelihood) if refines else []
        map_loss = self._map_loss(run, states, n_iter, own if not n_own else [])
        in_turn = {"sampling": (1, sampling), "map": (n_map, map_loss)}
        in_turn |= {"own draws": (n_own, own[0][1])} if n_own else {}
        loss = InTurn(**in_turn) if separate else Sum([(1, sampling), (1, map_loss)])
        yield Phase(
            "self-consistency", loss, self.max_iter, self.learning_rate, WEIGHT_DECAY, ema_decay=0.995,
            callbacks=renewals(run, self.n_steps, self.max_iter, on_particles),
            plateau=plateau_of(run, self.max_iter) if on_particles else None,
        )  # fmt: skip

    def _map_loss(self, run, states, n_iter, own):
        """Self-consistency for `n_iter` iterations, with the likelihood beside it for a map that has one."""
        model, generator, objective = run.model, run.generator, self._specified("objective")
        between = (
            objective.likelihood.batch_between if turns_of_own_draws(run, self.max_iter, objective.likelihood) else None
        )
        batch = objective.batch_size or between or BATCH_SIZES[has_fine_scales(model.log_snr_max)]
        consistency = SelfConsistencyLoss(
            model, run.target, states, batch if model.map.invertible else self.batch_size, generator,
            objective.ema_decay, objective.huber,
        )  # fmt: skip
        if not (objective.refine and model.map.invertible):
            return consistency
        likelihood = None if run.pilot is None else on_own_draws(run, objective.likelihood)
        if likelihood is None:
            levels, share = (levels_of_steps(model.steps, generator), model.partial_levels()), 0.5 * moves_share(run)
            options = options_within(run.budget, run.population, n_iter, share, objective.likelihood)
            options["known"] = known_points_loss(self, run)
            likelihood = LikelihoodLoss(model, run.population, batch, model, run.target, *levels, **options)
        return Sum([(1.0, likelihood), *own, *([(objective.weight, consistency)] if objective.weight else [])])

    # ---------------------------------------------------------------- sampling

    @guest
    def sample(
        self, n, n_steps=1, random_state=None, *, context=None, method=None, polish=0, exact=False, energy_fn=None,
        grad_fn=None, out=None, as_frame=False, return_log_density=False,
    ):  # fmt: skip
        """Draw in one step, or in more; one step needs no energy.

        Parameters
        ----------
        {n}
        n_steps : int, default=1
            A power of two, at most the `n_steps` of the fit. 1 is the single step of Algorithm 3 of the paper.
        {random_state}
        {context}
            A family is sampled in one step.
        method : {"map", "chain"}, default=None
            How more than one step are taken. "map" is the few-step version of Algorithm 4: all are equal steps of the
            map, and need no energy. "chain" goes by the map to a level with little noise in the first step, and on from
            there by steps of the stochastic chain; the control may read the energy's score there. By default "chain"
            for a coupling map, "map" for a residual one, for which there is no "chain".
        {polish}
        {exact}
        energy_fn, grad_fn : callable, optional
            The energy, for a sampler that was loaded without it: a chain whose control reads the score,
            polishing, or exact draws.
        {out}
        {as_frame}
        {return_log_density}

        Returns
        -------
        {X}
        {log_density}

        Raises
        ------
        ValueError
            When an argument is out of its range, or draws are to come with their density and have none in closed form:
            polished and exact ones, and those of a chain or of a residual map. With ``exact=True`` where the Pareto k
            of the weights is above its limit; where more than .001 is left out, it warns.
        """
        check_is_fitted(self)
        options = {
            "n_steps": n_steps, "method": method, "polish": polish, "energy_fn": energy_fn, "grad_fn": grad_fn,
            "return_log_density": return_log_density, "exact": exact,
        }  # fmt: skip
        if is_given(self, context):
            return draws_given(self, context, n, random_state, options, out, as_frame)
        return self._sample(n, random_state, options, out, as_frame)

    @guest
    def score_samples(self, X, *, context=None, n_steps=1, method=None):
        """Log density of the sampler's draws at any points, exact, by one pass of the inverse map a step.

        It is normalised: its exponential integrates to one over the coordinates that `energy_fn` was given, inside the
        bounds where there are some. With it draws can be weighed for another density, proposed in a Metropolis-Hastings
        step of your own, or compared with draws from elsewhere.

        Parameters
        ----------
        X : array-like or data frame of shape (n, n_features)
            Points. Of a data frame the columns named as in `feature_names_out_` are taken, in any order.
        context : array-like of shape (n_contexts,) or (n, n_contexts), optional
            Of a sampler of a family: the context of all points, or one for each.
        n_steps : int, default=1
            Steps of the draws, a power of two, at most the `n_steps` of the fit.
        method : {"map", "chain"}, default=None
            As in `sample`. Draws of several steps have a density in closed form with "map" alone, which is not the
            default.

        Returns
        -------
        log_density : ndarray of shape (n,)
            Float64. ``-inf`` on the bounds, outside of them, and at infinity.

        Raises
        ------
        NotFittedError
            When the sampler is not fitted.
        ValueError
            When X has NaN or another number of features, or when the draws have no density in closed form: those of a
            chain, and of a residual map, which has no inverse.
        """
        check_is_fitted(self)
        if is_given(self, context):
            return self._score_given(X, context, n_steps=n_steps, method=method)
        return self._log_density(X, self._map_steps(n_steps=n_steps, method=method))

    def _map_steps(self, *, n_steps=1, method=None):
        n_steps, method = self._check_steps(n_steps), self._method(method)
        self._check_invertible("The density of draws")
        if n_steps > 1 and method == "chain":
            raise ValueError(
                f"Draws of n_steps={n_steps} with method='chain' end a random path, and their density has no closed "
                "form: take n_steps=1 or method='map'."
            )
        return [(level[None], to[None]) for level, to in self._model.steps.pairs(n_steps)]

    def _plan(self, *, n_steps=1, method=None, polish=0, return_log_density=False, density=None, exact=False):
        n_steps, method = self._check_steps(n_steps), self._method(method)
        if exact:
            return self._exact_plan(
                exact, density, n_steps=n_steps, polish=polish, return_log_density=return_log_density
            )
        if return_log_density:
            return self._plan_with_density(polish, n_steps=n_steps, method=method)
        if check_count(polish, "polish", 0):
            return self._polish_plan(polish, n_steps, density)
        if n_steps == 1 or method == "map":
            return lambda normal: in_parts(lambda z: self._model.walk(z, n_steps), normal(0))
        target = self._target(density, "sample") if self._model.needs_score else None
        return lambda normal: self._model.partial_map_and_simulate(normal(n_steps - 1), n_steps, target, normal)[0]

    def _needs_energy(self, *, n_steps=1, method=None, polish=0, exact=False, **options):
        chain = n_steps > 1 and self._method(method) == "chain"
        return polish > 0 or bool(exact) or (chain and self._model.needs_score)

    @guest
    def sample_weighted(
        self, n, n_steps=1, random_state=None, *, context=None, method=None, energy_fn=None, grad_fn=None
    ):  # fmt: skip
        """Draw with exact weights.

        Parameters
        ----------
        {n}
        n_steps : int, default=1
            A power of two, at most the `n_steps` of the fit.
        random_state : int, RandomState instance, numpy.random.Generator or None, default=None
            Seed; the draws are those of `sample` with the same arguments.
        {context}
        method : {"map", "chain"}, default=None
            As in `sample`. The weights of the map are those of the Jacobian of all its steps together, those of the
            chain are path weights with the exact density of the partial map.
        {energy_fn}

        Returns
        -------
        {WeightedSample}
        """
        check_is_fitted(self)
        if is_given(self, context):
            options = {"n_steps": n_steps, "method": method, "energy_fn": energy_fn, "grad_fn": grad_fn}
            return weighted_given(self, context, n, random_state, options)
        n, n_steps, method = check_count(n, "n", 1), self._check_steps(n_steps), self._method(method)
        target = self._target(Density.of(energy_fn, grad_fn), "sample_weighted")
        if n_steps == 1 or method == "map":
            weigh = functools.partial(self._model.call_and_log_weight, n_steps=n_steps)
            return self._weigh_map(n, random_state, target, self._model.composed(n_steps), weigh)

        def draw(normal):
            z, log_ratio = self._model.partial_map_and_simulate(normal(n_steps - 1), n_steps, target, normal)
            return z, log_ratio + target.log_prob(z)

        return self._weighted_draws(n, random_state, target, draw, is_bound=True)

    def _check_steps(self, n_steps) -> int:
        n_steps, legal = check_count(n_steps, "n_steps", 1), self._model.steps.numbers
        if n_steps not in legal:
            raise ValueError(f"n_steps has to be one of {', '.join(map(str, legal))}; got {n_steps}.")
        return n_steps

    def _method(self, method) -> str:
        if method not in (None, "map", "chain"):
            raise ValueError(f"method has to be 'map', 'chain' or None; got {method!r}.")
        if method == "chain" and not self._model.map.invertible:
            raise ValueError("method='chain' needs the density of the map: fit with network='coupling'.")
        return method or ("chain" if self._model.map.invertible else "map")
