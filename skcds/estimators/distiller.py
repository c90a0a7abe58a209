"""ConsistentSamplerDistiller: a one-step sampler distilled from a diffusion sampler."""

import functools
import time

import numpy as np
import torch
from sklearn.base import clone
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.validation import check_is_fitted

from .._support.devices import placed, randint
from .._support.forks import seed_of
from .._support.settings import guest
from .._support.validation import check_count
from .._support.warnings import muted
from ..density.bounds import Bounds, same_bounds
from ..density.function import Density
from ..density.standardize import StandardizedTarget
from ..explore.pilot import FEW_EVALS_LEFT
from ..explore.specifications import Pilot
from ..io.export import checked_names
from ..models.maps import BATCH_SIZES, MAPS, OneStepModel, coupling_sizes, has_fine_scales
from ..models.networks import in_parts, seeded
from ..models.process import noise_levels
from ..models.specifications import MAPS_BY_NAME, Specification
from ..train.budget import FEWEST_EVALS, JUDGEMENT_SHARE
from ..train.objectives.base import Objective, Sum
from ..train.objectives.consistency import REFRESH_EVERY, REFRESH_ROWS, ConsistencyLoss, TrajectoryBank
from ..train.objectives.likelihood import LikelihoodLoss, levels_to_target, particle_spacing
from ..train.objectives.reverse_kl import ReverseKLLoss
from ..train.objectives.specifications import Consistency
from ..train.particles import Population
from ..train.phases import Phase
from .base import BaseSampler, positive_integer
from .control import MOVES_SHARE, N_CHECKED, POPULATION_SHARE, population_of
from .diffusion import DiffusionSampler
from .given import draws_given, is_given, weighted_given
from .onestep import OneStepSampler
from .warm import check_same_networks, with_new_coordinates

SMALLEST_BANK = 32  # trajectories of the teacher held in memory with few evaluations allowed
READING_SHARE = 0.2  # of the evaluations left, for each of moves, trajectories, and new ones, where scores are read
FEWEST_WITH_TEACHER = 500  # evaluations, for a teacher that is fitted on the way and the student
BANK_TIME = 0.1  # of the seconds left, for the first trajectories
REVERSE_KL_SHARE = 0.4  # of the iterations, for a map without a tractable inverse
TEACHER_SHARE = 0.6  # of the limits, for a teacher that is fitted on the way
FRUGAL_TEACHER_SHARE = 0.85  # of the evaluations, where they are so few that none is forgotten: it explores
FRUGAL_JUDGEMENT_SHARE = 0.5  # of those left then
WEIGHT_DECAY = 1e-2


class ConsistentSamplerDistiller(OneStepSampler):
    """One-step sampler distilled from a diffusion sampler (CDDS), with exact weights.

    A map f(x, t) from any state of the teacher's probability-flow ODE to its end is trained by consistency on partial
    trajectories that are simulated during training (Algorithm 1 of [1]_), without a data set of finished samples; f(x,
    0) = x by construction. Drawing is one call of f at the prior end. The default map is an invertible spline coupling
    whose one-step density is calibrated at the same time, by likelihood on particles that are kept moving and
    corrected by the map's own exact weights; ``network="residual", objective="consistency"`` is the method as
    published.

    Parameters
    ----------
    teacher : DiffusionSampler, FrozenEstimator or None, default=None
        A fitted teacher is used as it is, an unfitted one is cloned and fitted; None stands for a default one. One
        without a `random_state` gets a seed that follows from the student's; with `n_init` each fit has another.
    n_features : int, default=None
        Dimension; by default the teacher's or ``energy_fn.n_features``.
    {bounds}
        By default those of the teacher, with its periodic coordinates.
    {periodic}
    feature_names : array-like of str, default=None
        Names of the coordinates; by default ``energy_fn.feature_names``, those of the teacher, or x0, x1 and so on.
    start : {"pilot", "prior"}, Pilot, Prior, array-like of shape (m, n_features) or tuple, default=None
        Where the training of an unfitted teacher that has no `start` of its own starts; see `DiffusionSampler`. Points
        of your own, or a tuple (location, scale), are where its pilot begins to look for the density.
    network : {"coupling", "residual"}, Coupling or Residual, default="coupling"
        The map: spline couplings conditioned on t, invertible by construction, or the residual network of [1]_, which
        can fold. Exact weights of the latter cost n_features forward-mode products a draw, and are checked for folds.
    objective : {"calibrated", "consistency"} or Consistency, default="calibrated"
        Consistency on the teacher's trajectories, with a calibration of the one-step density on exact weights beside
        it, or alone, as in [1]_; ``Consistency(weight=...)`` says more.
    batch_size : int, default=None
        Particles and pairs of states in a batch; by default 512, or 1024 where the finest scale is below a tenth.
    {learning_rate}
    max_iter : int, default=2000
        Optimiser iterations.
    max_time : float, default=None
        Seconds that the fit may take from call to return, the fit of an unfitted teacher included: shares of them are
        kept for the pilot, for training and for the judgement of held-out draws. A single call of `energy_fn` is waited
        for.
    max_energy_evals : int, default=None
        Points that `energy_fn` may be asked for in all, at least 200, or 500 with those of an unfitted teacher, which
        has three fifths of them (of at most 300 000: .85). The fit is planned for it: with fewer particles, fewer
        moves of them, and without scores of the target where they are few.
        With at most 300 000 all points that the pilot draws are kept and weighed (adaptive importance sampling).
    {n_init}
    {n_jobs}
    {device}
        A teacher that is fitted on the way, and does not name a device of its own, is fitted there.
    warm_start : bool, default=False
        Whether to go on from the earlier fit's map, which must not have another size. It is carried over to the
        coordinates of the teacher of the new fit.
    {verbose}
    {random_state}

    Attributes
    ----------
    {n_features_in_}
    {feature_names_out_}
    {bounds_}
    {bounds_scale_}
    {seam_}
    teacher_ : DiffusionSampler
        The fitted teacher.
    log_evidence_, log_evidence_se_ : float
        Estimate of log Z from held-out one-step draws, with its standard error.
    {elbo_}
    ess_ : float
        Effective share of their exact weights, in (0, 1].
    {total_variation_}
    {converged_}
    {violation_share_}
    {loss_curve_}
    {history_}
    {n_iter_}
    n_energy_evals_, n_grad_evals_, n_network_evals_ : int
        Evaluations of the energy, of its gradient, and of networks, in points; those of a teacher fitted on the way
        included.
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
    >>> from skcds import ConsistentSamplerDistiller, DiffusionSampler
    >>> teacher = DiffusionSampler(
    ...     n_features=2, n_steps=16, max_iter=50, random_state=0
    ... )
    >>> student = ConsistentSamplerDistiller(teacher, max_iter=50, random_state=0)
    >>> student.fit(lambda x: 0.5 * ((x - 3) ** 2).sum(1))
    ConsistentSamplerDistiller(...)
    >>> student.sample(4, random_state=0).shape
    (4, 2)
    """

    _parameter_constraints: dict = {
        **BaseSampler._parameter_constraints,
        "teacher": "no_validation",
        "network": [StrOptions(set(MAPS)), Specification],
        "objective": [StrOptions({"calibrated", "consistency"}), Consistency],
        "batch_size": [positive_integer, None],
    }
    _short_cuts: dict = {
        "network": MAPS_BY_NAME,
        "objective": {"calibrated": Consistency(), "consistency": Consistency(refine=False)},
    }
    _fitted_attributes: dict = {"teacher_": "sampler or None"}

    def __init__(
        self, teacher=None, *, n_features=None, bounds=None, periodic=None, feature_names=None, start=None,
        network="coupling", objective="calibrated", batch_size=None, learning_rate=4e-3, max_iter=2000, max_time=None,
        max_energy_evals=None, n_init=1, n_jobs=None, device="auto", warm_start=False, verbose=0, random_state=None,
    ):  # fmt: skip
        self.teacher = teacher
        self.n_features = n_features
        self.bounds = bounds
        self.periodic = periodic
        self.feature_names = feature_names
        self.start = start
        self.network = network
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

    # ---------------------------------------------------------------- training

    def _fewest_evals(self):
        return FEWEST_EVALS if hasattr(_unwrap(self.teacher), "_model") else FEWEST_WITH_TEACHER

    def _find_n_features(self, energy_fn):
        teacher = _unwrap(self.teacher)
        if teacher is not None and not isinstance(teacher, DiffusionSampler):
            raise TypeError(
                "teacher has to be a DiffusionSampler, fitted or not, a FrozenEstimator around a fitted one, or None; "
                f"got {type(teacher).__name__}."
            )
        known = getattr(teacher, "n_features_in_", None) or getattr(teacher, "n_features", None)
        if known is None:
            return super()._find_n_features(energy_fn)
        if self.n_features is not None and self.n_features != known:
            raise ValueError(f"The teacher samples {known} features, and n_features={self.n_features} was asked for.")
        return int(known)

    def _find_bounds(self, n_features, names):
        teacher = _unwrap(self.teacher)
        own = super()._find_bounds(n_features, names)
        if hasattr(teacher, "_model"):
            known = Bounds.from_fitted(teacher)
        elif teacher is None or teacher.bounds is None:
            known = own
        else:
            theirs = names if teacher.feature_names is None else checked_names(teacher.feature_names, n_features, "")
            known = teacher._find_bounds(n_features, theirs)
        if self.bounds is not None and not same_bounds(own, known):
            raise ValueError(
                "bounds= and periodic= are not those of the teacher: leave them out, and the teacher's are taken."
            )
        return known

    def _find_feature_names(self, energy_fn, n_features):
        teacher = _unwrap(self.teacher)
        if self.feature_names is None and getattr(energy_fn, "feature_names", None) is None and teacher is not None:
            return getattr(teacher, "feature_names_out_", checked_names(teacher.feature_names, n_features, "teacher"))
        return super()._find_feature_names(energy_fn, n_features)

    def _begin(self, run):
        energy = run.energy
        if self.warm_start and hasattr(self, "_model"):
            self._check_continued(energy)
        teacher = self._fitted_teacher(run)
        bounds = Bounds.from_fitted(teacher)
        energy.bounds = bounds and bounds.to(energy.device)
        control = placed(teacher._model, energy.device)
        x = torch.from_numpy(teacher.particles_).to(energy.device)
        energy.check_fast_dtype(x[: int(min(N_CHECKED, 1 + POPULATION_SHARE * run.budget.energy_evals_left()))])
        run.target = StandardizedTarget(energy, control.standardization, energy.fast_dtype)
        run.population = self._particles(run, teacher, run.target.standardization.inverse(x).float())
        run.checkpoint.watch(x)
        run.model = self._start_model(control, run.generator)

    def _particles(self, run, teacher, z):
        """A population of the teacher's particles, with what was evaluated there if few evaluations are allowed."""
        known, fitted_here = getattr(teacher, "_particles_log_prob", None), "n_energy_evals_before" in run.fitted
        if known is None or not fitted_here or not self._few_evals:
            return population_of(run, z)
        values = torch.from_numpy(known).to(z.device), torch.from_numpy(teacher._particles_score).to(z)
        return Population(run.target, z, run.generator, known=values)

    @property
    def _few_evals(self) -> bool:
        return self.max_energy_evals is not None and self.max_energy_evals <= FEW_EVALS_LEFT

    def _recipe(self, run):
        refines = self._specified("objective").refine and not run.model.map.invertible
        n_kl = round(REVERSE_KL_SHARE * self.max_iter) if refines else 0
        n_iter = self.max_iter - n_kl
        if n_iter:
            loss = self._distillation(run, n_iter)
            yield Phase("distillation", loss, n_iter, self.learning_rate, WEIGHT_DECAY, ema_decay=0.99)
        if n_kl and len(run.losses) == n_iter:
            loss = ReverseKLLoss(run.model, run.target, self._batch_size(run.model), run.generator)
            yield Phase("reverse KL", loss, n_kl, 0.5 * self.learning_rate, ema_decay=0.99)

    def _advice(self, run):
        teacher = run.fitted["teacher_"]
        if teacher.converged_:
            return "Raise max_iter or the size of the network, or use a better teacher."
        return (
            f"Its teacher did not converge either (effective share {teacher.ess_:.3f}): raise the teacher's "
            "max_iter or n_steps, or check the energy function."
        )

    def _fitted_teacher(self, run):
        """The teacher, fitted here unless it comes so; the run notes it, and what fitting it spent."""
        energy, budget, teacher = run.energy, run.budget, _unwrap(self.teacher)
        if hasattr(teacher, "_model"):
            run.fitted["teacher_"] = teacher
            return teacher
        seed = int(randint(run.generator, 0, 2**31 - 1))
        teacher = clone(teacher) if teacher is not None else DiffusionSampler()
        if teacher.random_state is None:
            teacher.random_state = seed
        limits = {"n_features": energy.n_features, "verbose": max(self.verbose, teacher.verbose)}
        limits |= {"bounds": energy.bounds and energy.bounds.to_array(), "periodic": None}
        if energy.bounds is not None and energy.bounds.periodic.any():
            limits["periodic"] = energy.bounds.periodic.nonzero()[:, 0].tolist()
        if teacher.device == "auto":
            limits["device"] = self.device
        if self.start is not None:
            limits["start"] = _start_of(teacher, self._specified("start"))
        if self.max_time is not None:
            left = self.max_time - budget.elapsed()
            limits["max_time"] = min(teacher.max_time or np.inf, max(TEACHER_SHARE * left, 1e-3))
        if self.max_energy_evals is not None:
            share = FRUGAL_TEACHER_SHARE if self._few_evals else TEACHER_SHARE
            evals = int(share * (self.max_energy_evals - energy.n_energy_evals))
            limits["max_energy_evals"] = min(teacher.max_energy_evals or np.inf, max(evals, FEWEST_EVALS))
        path = budget.checkpoint.path
        with muted("interruption", "convergence", *([RuntimeWarning] if energy.n_invalid else [])):  # warned of here
            teacher.set_params(**limits).fit(
                energy.energy_fn, grad_fn=energy.grad_fn, checkpoint=path and path.with_name(path.name + ".teacher")
            )
        energy.n_invalid += vars(teacher)["_energy"].n_invalid
        budget.interrupted |= teacher.interrupted_
        if budget.max_energy_evals is not None:
            budget.max_energy_evals = max(1, budget.max_energy_evals - teacher.n_energy_evals_)
            share = FRUGAL_JUDGEMENT_SHARE if self._few_evals else JUDGEMENT_SHARE
            budget.evals_reserve = share * budget.max_energy_evals
        run.fitted |= {
            "teacher_": teacher,
            "n_energy_evals_before": teacher.n_energy_evals_,
            "n_grad_evals_before": teacher.n_grad_evals_,
            "n_network_evals_before": teacher.n_network_evals_,
        }
        return teacher

    def _start_model(self, control, generator):
        if self.warm_start and hasattr(self, "_model"):
            return with_new_coordinates(self._model, control).to(generator.device)
        log_snr_max = control.log_snr_max
        network = self._specified("network")
        sizes = {name: size for name, size in network.sizes().items() if size is not None}
        if network.kind == "coupling":
            sizes = coupling_sizes(control.n_features, log_snr_max, **sizes)
        else:
            sizes = {"hidden": 128, "n_layers": 4} | sizes
        standardization = control.standardization
        with seeded(int(randint(generator, 0, 2**31 - 1))):
            model = OneStepModel(network.kind, standardization.loc.numel(), log_snr_max, standardization.full, **sizes)
        model.standardization = standardization
        return model.to(generator.device)

    def _one_of_several(self, k, seed):
        one, teacher = super()._one_of_several(k, seed), self.teacher
        if isinstance(teacher, DiffusionSampler) and not hasattr(teacher, "_model"):
            one.teacher = clone(teacher)
            if teacher.random_state is not None:  # another for every fit
                sequence = np.random.SeedSequence([seed_of(one.teacher.random_state), k])
                one.teacher.random_state = int(sequence.generate_state(1)[0])
        return one

    def _check_continued(self, energy):
        """Refuse a warm start from a fit in another dimension, with other bounds or another network."""
        if energy.n_features != self.n_features_in_:
            raise ValueError(
                f"warm_start=True goes on from a fit in {self.n_features_in_} dimensions, and the energy has "
                f"{energy.n_features}; set warm_start=False."
            )
        if not same_bounds(Bounds.from_fitted(self), energy.bounds):
            raise ValueError("warm_start=True goes on from a fit with other bounds; set warm_start=False.")
        network, config = self._specified("network"), self._model.config
        names = {"hidden": "hidden_features"}
        found = {f"network__{names.get(key, key)}": value for key, value in config.items()}
        wanted = {f"network__{name}": size for name, size in vars(network).items()}
        check_same_networks({"network": network.kind, **wanted}, {"network": config["network"], **found})

    def _distillation(self, run, n_iter):
        """Consistency on the teacher's trajectories, with the likelihood beside it for a map that has one."""
        model, control = run.model, placed(run.fitted["teacher_"]._model, run.energy.device)
        batch_size = self._batch_size(model)
        objective = self._specified("objective")
        calibrate = objective.refine and model.map.invertible
        terms: list[tuple[float, Objective]] = []
        if calibrate:
            levels = levels_to_target(model.log_snr_max, run.generator)
            share = READING_SHARE if control.needs_score else MOVES_SHARE
            spacing = particle_spacing(run.budget, run.population, n_iter, share)
            likelihood = LikelihoodLoss(model, run.population, batch_size, control, run.target, levels, **spacing)
            terms.append((1.0, likelihood))
        weight = objective.weight if calibrate else 1.0
        if weight:
            n_pairs = max(1, batch_size // (2 if calibrate else 1))
            terms.append((weight, self._consistency(run, control, n_pairs, n_iter)))
        return Sum(terms)

    def _consistency(self, run, control, n_pairs, n_iter):
        """The consistency loss; where the control reads the score, with trajectories that the budget allows."""
        budget, size, n_steps = run.budget, self._specified("objective").bank_size, run.fitted["teacher_"].n_steps_
        if control.needs_score:
            n_steps = self._affordable_steps(n_steps, budget)

        def bank_of(size):
            return TrajectoryBank(control, run.target, n_steps, size, run.generator)

        if budget.max_time is not None:
            start = time.perf_counter()
            with budget.untimed():
                bank = bank_of(SMALLEST_BANK)
            seconds = (time.perf_counter() - start) / SMALLEST_BANK
            size = int(min(size, max(SMALLEST_BANK, BANK_TIME * budget.seconds_left() / seconds)))
        if not control.needs_score:
            return ConsistencyLoss(run.model, bank_of(size), n_pairs, n_iter, refresh_rows=min(REFRESH_ROWS, size))
        cost = 2 * n_steps  # of a trajectory, by Heun's method
        affordable = READING_SHARE * budget.energy_evals_left() / cost
        size = int(min(size, max(SMALLEST_BANK, affordable)))
        if budget.max_time is None or size > SMALLEST_BANK:
            bank = bank_of(size)
        rows = min(REFRESH_ROWS, size)
        every = budget.spacing(REFRESH_EVERY, cost * rows, n_iter, READING_SHARE)
        return ConsistencyLoss(run.model, bank, n_pairs, n_iter, refresh_every=every, refresh_rows=rows)

    def _affordable_steps(self, n_steps, budget):
        """Steps of trajectories that read the score: the teacher's, or as many as the smallest bank can afford."""
        affordable = READING_SHARE * budget.energy_evals_left() / (2 * SMALLEST_BANK)
        return int(min(n_steps, max(1, affordable)))

    def _batch_size(self, model):
        return self.batch_size or BATCH_SIZES[has_fine_scales(model.log_snr_max)]

    # ---------------------------------------------------------------- sampling

    @guest
    def sample(
        self, n, n_steps=1, random_state=None, *, context=None, polish=0, exact=False, energy_fn=None, grad_fn=None,
        out=None, as_frame=False, return_log_density=False,
    ):  # fmt: skip
        """Draw by one call of the network a step; the energy is needed for polished and exact draws alone.

        Parameters
        ----------
        n : int
            Number of draws.
        n_steps : int, default=1
            Calls of the network: after the first, each noises the draw to a lower level and maps it again (multistep
            consistency sampling, Algorithm 4 of the paper).
        random_state : int, RandomState instance, numpy.random.Generator or None, default=None
            Seed. The first rows of a larger sample are those of a smaller one, to single precision.
        context : array-like of shape (n_contexts,) or (m, n_contexts), optional
            Of a sampler that was fitted to a family of densities: which of them, or which many of them.
            A family is sampled in one step.
        polish : int, default=0
            Markov steps that every one-step draw is moved by; see `sample_polished`, which also tells how many were
            accepted. They need the energy.
        exact : bool, default=False
            Whether each draw is the first of a sequence of one-step draws that rejection by their exact weights keeps:
            independent draws from the target, but for a total variation of at most .001 by which weights are
            truncated. A call evaluates the energy at 10 000 points, and at as many for a draw as
            `skcds.importance.rejection_limit` of `sample_weighted` says: a few for a good fit. It needs the energy, and
            what the map has no draws of stays missing.
        energy_fn, grad_fn : callable, optional
            The energy, to polish draws of a sampler that was loaded without it, or for exact ones.
        out : ndarray of shape (n, n_features), optional
            Where the draws go, for example a memory map; floating point numbers of any precision.
        as_frame : bool, default=False
            Whether to return a pandas data frame with named columns.
        return_log_density : bool, default=False
            Whether to return the log density of the draws, too, by the same pass of the map; see `score_samples`.

        Returns
        -------
        X : ndarray of shape (n, n_features)
            Draws, float64, or `out`, or a data frame. For many contexts (m, n, n_features), or a data frame with one
            more column, ``context``, of their numbers.
        log_density : ndarray of shape (n,)
            Float64; only with ``return_log_density=True``.

        Raises
        ------
        ValueError
            When an argument is out of its range, or draws are to come with their density and have none in closed form:
            polished and exact ones, and those of several steps or of a residual map. With ``exact=True`` where the
            Pareto k of the weights is above its limit; where more than .001 is left out, it warns.
        """
        check_is_fitted(self)
        options = {
            "n_steps": n_steps, "polish": polish, "energy_fn": energy_fn, "grad_fn": grad_fn,
            "return_log_density": return_log_density, "exact": exact,
        }  # fmt: skip
        if is_given(self, context):
            return draws_given(self, context, n, random_state, options, out, as_frame)
        return self._sample(n, random_state, options, out, as_frame)

    def _plan(self, *, n_steps=1, polish=0, return_log_density=False, density=None, exact=False):
        n_steps, polish = check_count(n_steps, "n_steps", 1), check_count(polish, "polish", 0)
        if exact:
            return self._exact_plan(
                exact, density, n_steps=n_steps, polish=polish, return_log_density=return_log_density
            )
        if return_log_density:
            return self._plan_with_density(polish, n_steps=n_steps)
        if polish:
            return self._polish_plan(polish, n_steps, density)
        levels = self._model.levels(n_steps)

        def draw(normal):
            z = normal(0)
            for k, level in enumerate(levels):
                if k:
                    a, s = noise_levels(level)
                    z = a * z + s * normal(k)
                z = in_parts(functools.partial(self._model.map, log_snr=level[None]), z)
            return z

        return draw

    def _map_steps(self, *, n_steps=1):
        if check_count(n_steps, "n_steps", 1) > 1:
            raise ValueError(
                f"Draws of n_steps={n_steps} are noised between two calls of the map, so that their density has no "
                "closed form: take n_steps=1."
            )
        self._check_invertible("The density of draws")
        return [(self._model.start(), None)]

    def _needs_energy(self, *, polish=0, exact=False, **options):
        return polish > 0 or bool(exact)

    @guest
    def sample_weighted(self, n, random_state=None, *, context=None, energy_fn=None, grad_fn=None):
        """Draw in one step, with exact weights from the Jacobian of the map that is applied.

        Parameters
        ----------
        n : int
            Number of draws.
        random_state : int, RandomState instance, numpy.random.Generator or None, default=None
            Seed; the draws are those of ``sample(n, random_state=random_state)``.
        context : array-like of shape (n_contexts,) or (m, n_contexts), optional
            Of a sampler that was fitted to a family of densities: which of them, or which many of them.
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
            options = {"energy_fn": energy_fn, "grad_fn": grad_fn}
            return weighted_given(self, context, n, random_state, options)
        n = check_count(n, "n", 1)
        target = self._target(Density.of(energy_fn, grad_fn), "sample_weighted")
        return self._weigh_map(n, random_state, target, self._model.map, self._model.call_and_log_weight)


def _start_of(teacher, given):
    """Start of a teacher that is fitted here: its own, with the beginning of the student's where it has none."""
    own = teacher._specified("start")
    if teacher.start is None:
        return given
    if isinstance(own, Pilot) and own.begin is None and isinstance(given, Pilot):
        return own.set_params(begin=given.begin)
    return own


def _unwrap(teacher):
    """The teacher inside a FrozenEstimator, or the teacher."""
    return getattr(teacher, "estimator", teacher)
