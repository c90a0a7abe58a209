"""ConsistentSamplerScratch: one step or many, learned from the energy without a teacher."""

import functools
import numbers

import torch
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from .._support.devices import randn
from .._support.validation import check_count
from ..density.function import Density
from ..models.maps import BATCH_SIZES, MAPS, coupling_sizes, has_fine_scales
from ..models.networks import in_parts
from ..models.shortcut import ShortcutModel
from ..models.specifications import Residual, Specification, specified
from ..train.objectives.base import InTurn, Sum
from ..train.objectives.denoising import MOVE_EVERY, DenoisingLoss
from ..train.objectives.likelihood import LikelihoodLoss, particle_spacing
from ..train.objectives.path import LogVarianceLoss
from ..train.objectives.self_consistency import SelfConsistencyLoss
from ..train.particles import effective_share
from ..train.phases import Phase
from .base import positive_integer
from .control import (
    CONSTRAINTS,
    FITTED,
    GAUGED,
    MIN_ITER_REFRESH,
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
from .given import draws_given, is_given, weighted_given
from .onestep import OneStepSampler

CONSISTENCY_STEPS = {True: 1, False: 8}  # for each step of the sampling loss, on particles and on simulated paths
REFRESHES = {True: (0.25, 0.5, 0.65, 0.8), False: (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)}
REFRESH_DRAWS = 10_000
WEIGHT_DECAY = 1e-2


class ConsistentSamplerScratch(OneStepSampler):
    """Self-consistent diffusion sampler (SCDS): learns without a teacher to sample in one step or, if asked, in more.

    One model holds a control of the generative chain, trained by a sampling loss, and a map F(x, t, d) that takes steps
    of every power of two of the grid, up to the one from the prior to the target. A step of size 2d from a state of
    the process has to land where two steps of size d land (self-consistency, Algorithm 2 of [1]_). The default map is
    an invertible spline coupling, whose likelihood calibrates the law of every step on the way; ``network="residual",
    objective="joint", init="prior"`` is the method as published.

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
        Steps N of the grid, a power of two.
    network : {"coupling", "residual"}, Coupling or Residual, default="coupling"
        The map: spline couplings conditioned on both ends of a step, invertible by construction, beside a network for
        the control; or one residual network whose finest steps are the control, as in [1]_, which can fold.
    objective : {"separate", "joint"}, default="separate"
        Whether the sampling loss and the losses of the map take optimiser steps in turn, or are summed as in [1]_.
    refine : bool, default=True
        Whether to calibrate a coupling map by likelihood beside self-consistency.
    init : {"pilot", "prior"}, default="pilot"
        Where training starts; see `DiffusionSampler`. With "pilot" the sampling loss is score matching on particles,
        with "prior" the log-variance loss on simulated paths, whose states the map is then trained on.
    variance, langevin
        Of the control beside a coupling map; see `DiffusionSampler`.
    consistency_weight : float, default=0.3
        Weight of self-consistency beside the likelihood.
    n_particles : int, default=20000
        Particles of the pilot; see `DiffusionSampler`.
    hidden_features, n_layers : int, default=128 and 4
        Width and number of the hidden layers of the control or of the residual network.
    map_features, map_layers : int, default=None
        The same of the conditioner of each coupling; by default 64 and 2.
    n_transforms, n_bins : int, default=None
        Couplings, and bins of their splines; by default 4 and 8, or 6 and 16 where the target's finest scale is below a
        tenth of its width; 32 bins in up to four dimensions.
    batch_size : int, default=2048
        Particles in a batch of score matching, and steps in one of self-consistency for a residual network.
    map_batch_size : int, default=None
        Particles in a batch of likelihood, and steps in one of self-consistency for a coupling map; by default 512, or
        1024 where the finest scale is below a tenth.
    path_batch_size : int, default=512
        Trajectories in a batch of the log-variance loss.
    learning_rate : float, default=4e-3
        Of AdamW at its height.
    max_iter : int, default=4000
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
        Whether to go on from the earlier fit's networks and particles, which must not have another size. Where its
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
    log_evidence_, log_evidence_se_ : float
        Estimate of log Z from held-out one-step draws, with its standard error.
    elbo_ : float
        Their mean log weight, an evidence lower bound (of a map that folds no bound).
    ess_ : float
        Effective share of their exact weights, in (0, 1].
    converged_ : bool
        Whether their Pareto k is at most `skcds.importance.pareto_k_limit`, 0.7 for so many.
    violation_share_ : float
        Share of held-out draws at which the map was found not to be injective; 0 for a coupling map.
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
        Numbers of a context; 0 for a single density.
    context_names_in_ : ndarray of shape (n_contexts_in_,) or None
        Their names; None for a single density.
    contexts_ : ndarray of shape (m, n_contexts_in_) or None
        Up to 1000 contexts, of which a hundred were held out to judge the fit of a family; for one, `log_evidence_`,
        `elbo_` and `ess_` are means over these, and `converged_` says that the weights of nine of ten are reliable.
    fit_time_ : float
        Seconds; not part of a pickle.

    References
    ----------
    .. [1] Jutras-Dubé, Pynadath & Zhang, "Single-Step Consistent Diffusion Samplers", arXiv:2502.07579.

    Examples
    --------
    >>> from skcds import ConsistentSamplerScratch
    >>> sampler = ConsistentSamplerScratch(
    ...     n_features=2, n_steps=16, n_particles=1000, max_iter=50, random_state=0
    ... )
    >>> sampler.fit(lambda x: 0.5 * ((x - 3) ** 2).sum(1))
    ConsistentSamplerScratch(...)
    >>> sampler.sample(4, random_state=0).shape
    (4, 2)
    """

    _parameter_constraints: dict = {
        **OneStepSampler._parameter_constraints,
        **CONSTRAINTS,
        "network": [StrOptions(set(MAPS)), Specification],
        "objective": [StrOptions({"separate", "joint"})],
        "refine": ["boolean"],
        "consistency_weight": [Interval(numbers.Real, 0, None, closed="left")],
        "map_features": [positive_integer, None],
        "map_layers": [positive_integer, None],
        "map_batch_size": [positive_integer, None],
        "n_transforms": [positive_integer, None],
        "n_bins": [Interval(numbers.Integral, 2, None, closed="left"), None],
    }
    _fitted_attributes: dict = FITTED

    def __init__(
        self, n_features=None, *, bounds=None, feature_names=None, start=None, n_steps=64, network="coupling",
        objective="separate", refine=True, init="pilot", variance="learned", langevin="auto", consistency_weight=0.3,
        n_particles=20_000, hidden_features=128, n_layers=4, map_features=None, map_layers=None, n_transforms=None,
        n_bins=None, batch_size=2048, map_batch_size=None, path_batch_size=512, learning_rate=4e-3, max_iter=4000,
        max_time=None, max_energy_evals=None, n_init=1, n_jobs=None, device="auto", warm_start=False, verbose=0,
        random_state=None,
    ):  # fmt: skip
        self.n_features = n_features
        self.bounds = bounds
        self.feature_names = feature_names
        self.start = start
        self.n_steps = n_steps
        self.network = network
        self.objective = objective
        self.refine = refine
        self.init = init
        self.variance = variance
        self.langevin = langevin
        self.consistency_weight = consistency_weight
        self.n_particles = n_particles
        self.hidden_features = hidden_features
        self.n_layers = n_layers
        self.map_features = map_features
        self.map_layers = map_layers
        self.n_transforms = n_transforms
        self.n_bins = n_bins
        self.batch_size = batch_size
        self.map_batch_size = map_batch_size
        self.path_batch_size = path_batch_size
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

    def _networks_wanted(self, energy):
        network = self._specification()
        wanted = {"network": network.kind, **networks_wanted(self, energy)}
        if network.kind == "residual":  # one network, which reads no score
            one = {"hidden_features": network.hidden_features, "n_layers": network.n_layers}
            return {**wanted, **one, "variance": None, "langevin": None, "n_steps": self.n_steps}
        return {
            **wanted, "map_features": network.hidden_features, "map_layers": network.n_layers,
            "n_transforms": network.n_transforms, "n_bins": network.bins, "n_steps": self.n_steps,
        }  # fmt: skip

    def _specification(self):
        """Of the map; a residual one is the control, too, and has its sizes unless it says otherwise."""
        if self.network == "residual":
            return Residual(self.hidden_features, self.n_layers)
        if isinstance(self.network, Residual):
            sizes = self.network.hidden_features or self.hidden_features, self.network.n_layers or self.n_layers
            return Residual(*sizes)
        return specified(
            self.network, hidden_features=self.map_features, n_layers=self.map_layers, n_transforms=self.n_transforms,
            bins=self.n_bins,
        )  # fmt: skip

    def _networks_found(self, config):
        return {
            "network": config["network"], **networks_found(config), "map_features": config["map_hidden"],
            "map_layers": config["map_layers"], "n_transforms": config["n_transforms"], "n_bins": config["bins"],
            "n_steps": config["n_steps"],
        }  # fmt: skip

    def _begin(self, run):
        if self.n_steps & (self.n_steps - 1):
            raise ValueError(f"n_steps has to be a power of two; got {self.n_steps}.")
        ControlStart(self).begin(run)
        gauge(run, self.n_steps)

    def _judge(self, run):
        run.fitted |= found_by(run)
        return super()._judge(run)

    def _advice(self, run):
        return "Raise max_iter or the sizes of the networks, or take more steps."

    def _build_model(self, standardization, log_snr_max, langevin):
        network, d = self._specification(), standardization.loc.numel()
        residual = network.kind == "residual"
        hidden, n_layers = (network if residual else self).hidden_features, (network if residual else self).n_layers
        unused = {"n_transforms": self.n_transforms, "bins": self.n_bins}  # sizes of no coupling
        sizes = coupling_sizes(d, log_snr_max, **(unused if residual else network.sizes()))
        if residual:
            sizes |= {"hidden": hidden, "n_layers": n_layers}
        return ShortcutModel(
            network.kind, self.n_steps, d, log_snr_max, standardization.full, hidden, n_layers,
            langevin and not residual, self.variance == "learned" and not residual,
            sizes["hidden"], sizes["n_layers"], sizes["n_transforms"], sizes["bins"],
        )  # fmt: skip

    def _recipe(self, run):
        """One phase, of a sampling loss and the losses of the map, in turn or summed."""
        on_particles, separate = run.population is not None, self.objective == "separate"
        n_map = CONSISTENCY_STEPS[on_particles]
        n_sampling = -(-self.max_iter // (1 + n_map)) if separate else self.max_iter
        sampling: DenoisingLoss | LogVarianceLoss
        if on_particles:
            share = 0.5 * moves_share(run.model)  # the other half is for the likelihood's
            every = run.budget.spacing(MOVE_EVERY, len(run.population), n_sampling, share)
            sampling = DenoisingLoss(
                run.model, run.target, run.population, self.n_steps, self.batch_size, run.generator, every
            )
            states = run.population.noised
        else:
            sampling = LogVarianceLoss(run.model, run.target, self.n_steps, self.path_batch_size, run.generator)
            states = sampling.states
            n = affordable_paths(self.n_particles, run) or GAUGED
            ends, _ = weighted_paths(run.model, run.target, self.n_steps, n, run.generator)
            run.population = population_of(run, ends)
        map_loss = self._map_loss(run, states, self.max_iter - n_sampling * separate)
        callbacks = {}
        if self.max_iter >= MIN_ITER_REFRESH:
            refresh = functools.partial(self._refresh, run, on_particles)
            callbacks = {int(share * self.max_iter): refresh for share in REFRESHES[on_particles]}
        both = InTurn(sampling=(1, sampling), map=(n_map, map_loss))
        loss = both if separate else Sum([(1.0, sampling), (1.0, map_loss)])
        yield Phase(
            "self-consistency", loss, self.max_iter, self.learning_rate, WEIGHT_DECAY, ema_decay=0.995,
            callbacks=callbacks,
        )  # fmt: skip

    def _refresh(self, run, on_particles, averaged):
        """Exchange particles for ends of the chain; without a pilot, resample the better of these and the map's."""
        population, target, generator = run.population, run.target, run.generator
        n = affordable_paths(min(REFRESH_DRAWS, len(population)) if on_particles else REFRESH_DRAWS, run)
        if not n:
            return
        z, log_weights = weighted_paths(averaged, target, self.n_steps, n, generator)
        if on_particles:
            exchange_paths(population, averaged, target, self.n_steps, z, log_weights, generator)
            return
        if averaged.map.invertible:
            latent = randn(generator, REFRESH_DRAWS, averaged.n_features)
            images = averaged.call_and_log_weight(latent, target)
            z, log_weights = max((z, log_weights), images, key=lambda draws: effective_share(draws[1]))
        population.correct(z, log_weights, min_share=0.0)

    def _map_loss(self, run, states, n_iter):
        """Self-consistency for `n_iter` iterations, with the likelihood beside it for a map that has one."""
        model, generator = run.model, run.generator
        map_batch = self.map_batch_size or BATCH_SIZES[has_fine_scales(model.log_snr_max)]
        batch = map_batch if model.map.invertible else self.batch_size
        consistency = SelfConsistencyLoss(model, run.target, states, batch, generator)
        if not (self.refine and model.map.invertible):
            return consistency

        def levels(n):
            start, size = model.steps.draw(n, generator)
            return model.steps.log_snr[start], model.steps.log_snr[start + size]

        leaps = torch.stack([model.leap(2**j)[0] for j in range(1, self.n_steps.bit_length())])
        likelihood = LikelihoodLoss(
            model, run.population, map_batch, model, run.target, levels, leaps,
            **particle_spacing(run.budget, run.population, n_iter, 0.5 * moves_share(model)),
        )  # fmt: skip
        weight = self.consistency_weight
        return Sum([(1.0, likelihood), (weight, consistency)] if weight else [(1.0, likelihood)])

    # ---------------------------------------------------------------- sampling

    def sample(
        self, n, n_steps=1, random_state=None, *, context=None, method=None, polish=0, energy_fn=None, grad_fn=None,
        out=None, as_frame=False,
    ):  # fmt: skip
        """Draw in one step, or in more; one step needs no energy.

        Parameters
        ----------
        n : int
            Number of draws.
        n_steps : int, default=1
            A power of two, at most the `n_steps` of the fit. 1 is the single step of Algorithm 3 of the paper.
        random_state : int, RandomState instance, numpy.random.Generator or None, default=None
            Seed. The first rows of a larger sample are those of a smaller one, to single precision.
        context : array-like of shape (n_contexts,) or (m, n_contexts), optional
            Of a sampler that was fitted to a family of densities: which of them, or which many of them.
            A family is sampled in one step.
        method : {"map", "chain"}, default=None
            How more than one step are taken. "map" is the few-step version of Algorithm 4: all are equal steps of the
            map, and need no energy. "chain" leaps in the first step to a level with little noise, and leaves the rest
            to steps of the stochastic chain; the control may read the energy's score there. By default "chain" for a
            coupling map, "map" for a residual one, for which there is no "chain".
        polish : int, default=0
            Markov steps that every one-step draw is moved by; see `sample_polished`, which also tells how many were
            accepted. They need the energy.
        energy_fn, grad_fn : callable, optional
            The energy, for a sampler that was loaded without it: a chain whose control reads the score, or polishing.
        out : ndarray of shape (n, n_features), optional
            Where the draws go, for example a memory map; floating point numbers of any precision.
        as_frame : bool, default=False
            Whether to return a pandas data frame with named columns.

        Returns
        -------
        X : ndarray of shape (n, n_features)
            Draws, float64, or `out`, or a data frame. For many contexts (m, n, n_features), or a data frame with one
            more column, ``context``, of their numbers.
        """
        check_is_fitted(self)
        options = {
            "n_steps": n_steps, "method": method, "polish": polish, "energy_fn": energy_fn, "grad_fn": grad_fn
        }  # fmt: skip
        if is_given(self, context):
            return draws_given(self, context, n, random_state, options, out, as_frame)
        return self._sample(n, random_state, options, out, as_frame)

    def _plan(self, *, n_steps=1, method=None, polish=0, density=None):
        n_steps, method = self._check_steps(n_steps), self._method(method)
        if check_count(polish, "polish", 0):
            return self._polish_plan(polish, n_steps, density)
        if n_steps == 1 or method == "map":
            return lambda normal: in_parts(lambda z: self._model.walk(z, n_steps), normal(0))
        target = self._target(density, "sample") if self._model.needs_score else None
        return lambda normal: self._model.leap_and_simulate(normal(n_steps - 1), n_steps, target, normal)[0]

    def _needs_energy(self, *, n_steps=1, method=None, polish=0, **options):
        return polish > 0 or (n_steps > 1 and self._method(method) == "chain" and self._model.needs_score)

    def sample_weighted(
        self, n, n_steps=1, random_state=None, *, context=None, method=None, energy_fn=None, grad_fn=None
    ):  # fmt: skip
        """Draw with exact weights.

        Parameters
        ----------
        n : int
            Number of draws.
        n_steps : int, default=1
            A power of two, at most the `n_steps` of the fit.
        random_state : int, RandomState instance, numpy.random.Generator or None, default=None
            Seed; the draws are those of `sample` with the same arguments.
        context : array-like of shape (n_contexts,) or (m, n_contexts), optional
            Of a sampler that was fitted to a family of densities: which of them, or which many of them.
        method : {"map", "chain"}, default=None
            As in `sample`. The weights of the map are those of the Jacobian of all its steps together, those of the
            chain are path weights with the exact density of the leap.
        energy_fn, grad_fn : callable, optional
            The energy, for a sampler that was loaded without it.

        Returns
        -------
        WeightedSample
            For many contexts a list of them. ``is_bound`` says whether the mean log weight is a lower bound of log Z in
            expectation: always for a coupling map; for a residual one only where no violation of injectivity was
            found, else a warning is given.
        """
        check_is_fitted(self)
        if is_given(self, context):
            options = {"n_steps": n_steps, "method": method, "energy_fn": energy_fn, "grad_fn": grad_fn}
            return weighted_given(self, context, n, random_state, options)
        n, n_steps, method = check_count(n, "n", 1), self._check_steps(n_steps), self._method(method)
        target = self._target(Density.of(energy_fn, grad_fn), "sample_weighted")
        if n_steps == 1 or method == "map":
            return self._weigh_map(
                n, random_state, target, self._model.walker(n_steps),
                lambda latent, target: self._model.call_and_log_weight(latent, target, n_steps),
            )  # fmt: skip

        def draw(normal):
            z, log_ratio = self._model.leap_and_simulate(normal(n_steps - 1), n_steps, target, normal)
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
        if not self._model.map.invertible:
            if method == "chain":
                raise ValueError("method='chain' needs the density of the map: fit with network='coupling'.")
            return "map"
        return method or "chain"
