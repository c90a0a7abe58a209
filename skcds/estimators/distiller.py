"""ConsistentSamplerDistiller: a one-step sampler distilled from a diffusion sampler."""

import copy

import torch
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.validation import check_is_fitted

from .._support.devices import placed, randint
from .._support.settings import guest
from .._support.validation import check_count
from ..density.bounds import Bounds, same_bounds
from ..density.function import Density
from ..density.standardize import StandardizedTarget
from ..explore.specifications import Pilot
from ..io.export import checked_names
from ..models.maps import BATCH_SIZES, MAPS, has_fine_scales
from ..models.specifications import MAPS_BY_NAME, Specification
from ..train.budget import FEWEST_EVALS
from ..train.objectives.base import InTurn, Objective, Sum
from ..train.objectives.consistency import affordable_consistency
from ..train.objectives.likelihood import LikelihoodLoss, levels_to_target, options_within
from ..train.objectives.reverse_kl import ReverseKLLoss, beside_likelihood, on_own_draws, turns_of_own_draws
from ..train.objectives.specifications import Consistency
from ..train.particles import Population
from ..train.phases import Phase
from ..train.plateau import plateau_of
from .base import BaseSampler, positive_integer
from .comparison import start_from_marginals
from .control import N_CHECKED
from .diffusion import DiffusionSampler
from .explored import as_explored, begin_from, known_points_loss
from .given import draws_given, is_given, weighted_given
from .networks import map_wanted, networks_of_map, start_map
from .onestep import OneStepSampler
from .paths import POPULATION_SHARE, population_of
from .teacher import FEWEST_WITH_TEACHER, few_evals, fitted_teacher, one_of_several, unwrapped
from .warm import check_continued, check_same_networks, with_new_coordinates

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
        A fitted teacher is used as it is, an unfitted one is cloned and fitted; None stands for a default one
        with half as many iterations as the student, whose training ends early at a normalised ESS of .8. One without
        a `random_state` gets a seed that follows from the student's; with `n_init` each fit has another.
    n_features : int, default=None
        Dimension; by default the teacher's, ``energy_fn.n_features``, or as many as there are names or pairs of bounds.
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
        Particles and pairs of states in a batch; by default 512, or 1024 where the finest length scale is below .1.
    {learning_rate}
    max_iter : int, default=2000
        Optimiser iterations, at most: training comes to its end where more would bring nothing (`Stopping`).
    {max_time}
        The fit of an unfitted teacher is included.
    {max_energy_evals}
        With an unfitted teacher they are at least 500, and three fifths of them are the teacher's (of at most 300 000:
        .85).
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
    {log_evidence_}
    {elbo_}
    {ess_}
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
    >>> from skcds import ConsistentSamplerDistiller, DiffusionSampler, Pilot
    >>> teacher = DiffusionSampler(
    ...     n_features=2, start=Pilot(n_particles=500),
    ...     n_steps=8, max_iter=20, random_state=0
    ... )
    >>> student = ConsistentSamplerDistiller(teacher, max_iter=20, random_state=0)
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
        return FEWEST_EVALS if hasattr(unwrapped(self.teacher), "_model") else FEWEST_WITH_TEACHER

    def _specified(self, name):
        """The specification that a parameter stands for; an unfitted teacher's start unless there is another."""
        teacher = unwrapped(self.teacher)
        if name == "start" and self.start is None and isinstance(teacher, DiffusionSampler):
            own = teacher._specified(name)
            if isinstance(own, Pilot):
                return own
        return super()._specified(name)

    def _find_n_features(self, energy_fn):
        teacher = unwrapped(self.teacher)
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

    def _find_bounds(self, n_features, names, energy_fn):
        teacher = unwrapped(self.teacher)
        own = super()._find_bounds(n_features, names, energy_fn)
        if hasattr(teacher, "_model"):
            known = Bounds.from_fitted(teacher)
        elif teacher is None or teacher.bounds is None:
            known = own
        else:
            theirs = names if teacher.feature_names is None else checked_names(teacher.feature_names, n_features, "")
            known = teacher._find_bounds(n_features, theirs, energy_fn)
        if self.bounds is not None and not same_bounds(own, known):
            raise ValueError(
                "bounds= and periodic= are not those of the teacher: leave them out, and the teacher's are taken."
            )
        return known

    def _find_feature_names(self, energy_fn, n_features):
        teacher = unwrapped(self.teacher)
        if self.feature_names is None and getattr(energy_fn, "feature_names", None) is None and teacher is not None:
            return getattr(teacher, "feature_names_out_", checked_names(teacher.feature_names, n_features, "teacher"))
        return super()._find_feature_names(energy_fn, n_features)

    def _begin(self, run):
        energy = run.energy
        if self.warm_start and hasattr(self, "_model"):
            check_continued(self, energy)
            check_same_networks(map_wanted(self._specified("network")), networks_of_map(self._model.config))
        teacher = fitted_teacher(self, run)
        bounds = Bounds.from_fitted(teacher)
        energy.bounds = bounds and bounds.to(energy.device)
        control = placed(teacher._model, energy.device)
        x = torch.from_numpy(teacher.particles_).to(energy.device)
        energy.check_fast_dtype(x[: int(min(N_CHECKED, 1 + POPULATION_SHARE * run.budget.energy_evals_left()))])
        run.target = StandardizedTarget(energy, control.standardization, energy.fast_dtype)
        run.population = self._particles(run, teacher, run.target.standardization.inverse(x).float())
        run.checkpoint.watch(x)
        run.model = self._start_model(control, run.generator, run.explored and run.explored.model)
        start_from_marginals(run, self._specified("network"))
        run.untrained = copy.deepcopy(run.model.map)

    def _particles(self, run, teacher, z):
        """A population of the teacher's particles, with what was evaluated there if few evaluations are allowed."""
        known, fitted_here = getattr(teacher, "_particles_log_prob", None), "n_energy_evals_before" in run.fitted
        if known is None or not fitted_here or not few_evals(self, run.budget):
            return population_of(run, z)
        values = torch.from_numpy(known).to(z.device), torch.from_numpy(teacher._particles_score).to(z)
        return Population(run.target, z, run.generator, known=values)

    def _recipe(self, run):
        objective = self._specified("objective")
        refines = objective.refine and not run.model.map.invertible
        n_kl = round(objective.reverse_kl_share * self.max_iter) if refines else 0
        n_iter = self.max_iter - n_kl
        if n_iter:
            loss = self._distillation(run, n_iter)
            yield Phase(
                "distillation", loss, n_iter, self.learning_rate, WEIGHT_DECAY, ema_decay=0.99,
                plateau=plateau_of(run, n_iter),
            )  # fmt: skip
        if n_kl and len(run.losses) == n_iter:
            loss = ReverseKLLoss(run.model, run.target, self._batch_size(run.model), run.generator)
            yield Phase("reverse KL", loss, n_kl, 0.5 * self.learning_rate, ema_decay=0.99)

    def _advice(self, run):
        teacher = run.fitted["teacher_"]
        if teacher.converged_:
            return "Raise max_iter or the size of the network, or use a better teacher."
        return (
            f"Its teacher did not converge either (normalised ESS {teacher.ess_:.3f}): raise the teacher's "
            "max_iter or n_steps, or check the energy function."
        )

    def _start_model(self, control, generator, explored):
        if self.warm_start and hasattr(self, "_model"):
            return with_new_coordinates(self._model, control).to(generator.device)
        seed = int(randint(generator, 0, 2**31 - 1))
        model = start_map(as_explored(self._specified("network"), explored), control, seed).to(generator.device)
        begin_from(model.map, explored)
        return model

    def _one_of_several(self, k, seed):
        one = super()._one_of_several(k, seed)
        one.teacher = one_of_several(self.teacher, k)
        return one

    def _distillation(self, run, n_iter):
        """Consistency on the teacher's trajectories, with the likelihood beside it for a map that has one."""
        model, control = run.model, placed(run.fitted["teacher_"]._model, run.energy.device)
        objective = self._specified("objective")
        calibrate = objective.refine and model.map.invertible
        n_own = turns_of_own_draws(run, n_iter, objective.likelihood) if calibrate else 0
        n_all, n_iter = n_iter, max(1, n_iter // (1 + n_own))
        between = objective.likelihood.batch_between if n_own else None
        batch_size = self.batch_size or between or self._batch_size(model)
        terms: list[tuple[float, Objective]] = []
        own: list[tuple[float, Objective]] = []
        if calibrate:
            likelihood = on_own_draws(run, objective.likelihood)
            if likelihood is None:
                levels = levels_to_target(model.log_snr_max, run.generator)
                share = objective.reading_share if control.needs_score else objective.training.particles.moves_share
                own = beside_likelihood(run, n_all - n_iter if n_own else n_iter, objective.likelihood)
                share *= 1 - objective.likelihood.reverse_share if own else 1.0
                options = options_within(run.budget, run.population, n_iter, share, objective.likelihood)
                known = known_points_loss(self, run)
                likelihood = LikelihoodLoss(
                    model, run.population, batch_size, control, run.target, levels, known=known, **options
                )  # fmt: skip
            terms += [(1.0, likelihood), *(own if not n_own else [])]
        weight = objective.weight if calibrate else 1.0
        if weight:
            n_pairs = max(1, batch_size // (2 if calibrate else 1))
            n_steps = run.fitted["teacher_"].n_steps_
            terms.append((weight, affordable_consistency(run, control, n_steps, n_pairs, n_iter, objective)))
        return InTurn(**{"own draws": (n_own, own[0][1]), "distillation": (1, Sum(terms))}) if n_own else Sum(terms)

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
        {n}
        n_steps : int, default=1
            Calls of the network: after the first, each noises the draw to a lower level and maps it again (multistep
            consistency sampling, Algorithm 4 of the paper).
        {random_state}
        {context}
            A family is sampled in one step.
        {polish}
        {exact}
        energy_fn, grad_fn : callable, optional
            The energy, to polish draws of a sampler that was loaded without it, or for exact ones.
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
        return lambda normal: self._model.walk_with_noise(normal, n_steps)

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
        {n}
        random_state : int, RandomState instance, numpy.random.Generator or None, default=None
            Seed; the draws are those of ``sample(n, random_state=random_state)``.
        {context}
        {energy_fn}

        Returns
        -------
        {WeightedSample}
        """
        check_is_fitted(self)
        if is_given(self, context):
            options = {"energy_fn": energy_fn, "grad_fn": grad_fn}
            return weighted_given(self, context, n, random_state, options)
        n = check_count(n, "n", 1)
        target = self._target(Density.of(energy_fn, grad_fn), "sample_weighted")
        return self._weigh_map(n, random_state, target, self._model.map, self._model.call_and_log_weight)
