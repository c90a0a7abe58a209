"""What the estimators share: parameters, and the template of a fit."""

import contextlib
import inspect
import math
import numbers
import time
from abc import ABCMeta, abstractmethod
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.metadata_routing import UNUSED

from .._support.devices import find_device, generator_on
from .._support.errors import Spent
from .._support.forks import seed_of
from .._support.progress import Progress
from .._support.settings import guest
from .._support.warnings import warn_user
from .._version import DOCUMENTATION
from ..density.bounds import Bounds
from ..density.contexts import context_names_of
from ..density.energy import Energy
from ..density.families import FamilyDensity, FamilyEnergy, open_energy
from ..density.function import Density
from ..explore.evaluations import Evaluations
from ..explore.specifications import as_start
from ..io.export import checked_names
from ..io.registry import register_sampler
from ..io.schema import Fitted
from ..models.networks import count_evaluations
from ..models.specifications import Specification
from ..train.budget import FEWEST_EVALS, Budget
from ..train.checkpoint import Checkpoint, identity_of
from ..train.phases import Phase, PhaseRecord
from ..train.run import Run
from ..train.specifications import Training
from ..weights.sample import WeightedSample
from .documentation import filled
from .families import OF_MAPS, FamilyKind, fit_family, identity_of_family
from .given import is_given, one_given
from .inputs import Inputs
from .judgement import Judged, advice_by_cause, judge_fit
from .pickling import Persistent
from .sampling import Drawing
from .several import fit_several
from .slow import limit_slow

positive_integer = Interval(numbers.Integral, 1, None, closed="left")
positive_real = Interval(numbers.Real, 0, None, closed="neither")


class BaseSampler(Inputs, Drawing, Judged, Persistent, metaclass=ABCMeta):
    """Template of the samplers: subclasses say how to fit (`_fit`), and how to draw a chunk."""

    _model: Any
    _energy_name: str | None = None  # of a sampler that was loaded without its energy
    _family: FamilyKind = OF_MAPS  # how it is fitted to a family of densities

    _doc_link_module = "skcds"  # of the link in the HTML that notebooks show
    _doc_link_template = DOCUMENTATION + "api/{estimator_name}.html#skcds.{estimator_name}"

    __metadata_request__fit = dict.fromkeys(
        ("energy_fn", "grad_fn", "checkpoint", "contexts", "draws", "context_names", "evaluations", "derived"), UNUSED
    )
    __metadata_request__score = dict.fromkeys(("energy_fn", "grad_fn", "n", "random_state", "context"), UNUSED)

    _parameter_constraints: dict = {
        "n_features": [positive_integer, None],
        "bounds": ["array-like", None],
        "periodic": ["array-like", str, None],
        "feature_names": ["array-like", None],
        "max_iter": [positive_integer],
        "max_time": [positive_real, None],
        "max_energy_evals": [positive_integer, None],
        "learning_rate": [positive_real],
        "batch_size": [positive_integer],
        "n_init": [positive_integer],
        "n_jobs": [numbers.Integral, None],
        "device": [str],
        "warm_start": ["boolean"],
        "start": [StrOptions({"pilot", "prior"}), tuple, "array-like", Specification, None],
        "verbose": ["verbose"],
        "random_state": ["random_state", np.random.Generator],
    }

    _short_cuts: dict[str, dict] = {}  # specifications by parameter, and by the value that is short for each

    # Every fitted attribute by name: its kind, or what else is to be known of it (see `skcds.io.schema`).
    _fitted_attributes: dict = {
        "_model": "model",
        "n_features_in_": "count",
        "n_energy_evals_": "count",
        "n_grad_evals_": "count",
        "n_network_evals_": "count",
        "n_iter_": "count",
        "loss_curve_": "numbers",
        "history_": Fitted(
            "list of phase", since=4, before=lambda sampler: [PhaseRecord("training", sampler.n_iter_, ["training"])]
        ),
        "log_evidence_": "number",
        "log_evidence_se_": "number",
        "elbo_": Fitted("number", since=2, before=lambda sampler: math.nan),
        "ess_": "number",
        "total_variation_": Fitted("number", since=6, before=lambda sampler: math.nan),
        "converged_": "flag",
        "interrupted_": "flag",
        "n_rollbacks_": "count",
        "bounds_": Fitted("bounds or None", since=2, before=lambda sampler: None),
        "bounds_scale_": Fitted("vector or None", since=2, before=lambda sampler: None),
        "seam_": Fitted("vector or None", since=6, before=lambda sampler: None),
        "feature_names_out_": Fitted(
            "names", since=2, before=lambda sampler: checked_names(None, sampler.n_features_in_, "")
        ),
        "n_contexts_in_": Fitted("count", since=5, before=lambda sampler: 0),
        "context_names_in_": Fitted("context names or None", since=5, before=lambda sampler: None),
        "contexts_": Fitted("contexts or None", since=5, before=lambda sampler: None),
        "fit_time_": "clock",
    }

    def __init_subclass__(cls, **kwargs) -> None:
        super().__init_subclass__(**kwargs)
        cls.__doc__ = filled(cls.__doc__)
        for member in vars(cls).values():
            if inspect.isfunction(member):
                member.__doc__ = filled(member.__doc__, of_method=True)
        register_sampler(cls)

    @guest
    def fit(
        self, energy_fn, y=None, *, grad_fn=None, checkpoint=None, contexts=None, draws=None, context_names=None,
        derived=None, evaluations=None,
    ):  # fmt: skip
        """Learn to sample the density ``rho(x) = exp(-energy_fn(x))``, or a family ``exp(-energy_fn(x, c))``.

        Parameters
        ----------
        energy_fn : callable
            Maps points (n, n_features) to energies (n,), ``-log rho`` up to a constant; ``+inf`` outside the support.
            On torch tensors it is differentiated by autograd; on NumPy arrays it comes with `grad_fn` or is used
            without gradients.
        y : None
            Ignored; there for the scikit-learn interface.
        grad_fn : callable, optional
            Maps points (n, n_features) to gradients of the energy, (n, n_features).
        checkpoint : path-like, optional
            A file that the state of the fit is written to, every half a minute and after every phase, and that a fit
            which was stopped goes on from, with the same result. The parameters and the energy have to be the same
            again, but for `verbose`, `n_jobs`, `max_time` and `max_energy_evals`, and the device one of the same kind.
            The energy and its gradient are compared at fixed points and at particles of the fit in the file; where
            `random_state` is no integer, the seed is that of the file.
            A student keeps that of the teacher that it fits in a second file, of the same name with ``.teacher`` at its
            end; of several fits (`n_init`) each has its own, with ``.0``, ``.1`` and so on at their ends.
        contexts : array-like of shape (m, n_contexts) or callable, optional
            Contexts of a family of densities, of which one fit learns all. `energy_fn` then takes points
            (n, n_features) and contexts (n, n_contexts), a context for each point, and so does `grad_fn`. A callable
            ``contexts(n, rng)`` draws n of them by a `numpy.random.Generator`; of an array rows are picked. The fit is
            good where they are many. Draws are then asked for by ``sample(n, context=c)``.
        draws : array-like of shape (m, n_features), optional
            Simulated pairs: for each row of `contexts` an exact draw of its density, as parameters from the prior that
            data were simulated with. The fit starts from these in the place of an exploration.
        context_names : array-like of str, optional
            Names of the numbers of a context; by default the columns of a data frame of contexts, or
            ``energy_fn.context_names``, or c0, c1 and so on.
        derived : dict, optional
            Derived quantities: functions by name, which map draws (n, n_features) to numbers (n,) or (n, k). They are
            evaluated on draws, and are columns of data frames and of weighted draws. A pickle carries functions that
            can be imported by name, a saved file none. Where draws are in the unit cube of a prior
            (`skcds.adapters.from_prior`), the functions take the parameters.
        evaluations : tuple of array-like of shapes (m, n_features) and (m,), optional
            Points and their energies that were evaluated before, by an optimiser for example. A few are compared with
            `energy_fn`; none counts. Climbs begin from the best of them, and with few evaluations the first draws are
            from a mixture that is fitted to them. Where they came from is not known, so that they tell nothing about
            log Z.

        Returns
        -------
        self : object
            The fitted sampler. An earlier fit is kept when this one fails. Ctrl-C ends the training and keeps what was
            learned so far, with ``interrupted_`` True and a warning; pressed again, or before there is anything to
            keep, it raises KeyboardInterrupt.

        Raises
        ------
        ValueError
            When a parameter is out of its range, the dimension is unknown, the energy is not one of a density, or the
            checkpoint is that of another fit.
        TypeError
            When `energy_fn` is not callable, or takes other arguments, or `derived` is no dictionary of functions.
        """
        start = time.perf_counter()
        self._validate_params()
        density = self._find_density(energy_fn, grad_fn, contexts, draws, context_names, evaluations)
        kept = self._find_derived(energy_fn, derived)
        if self.n_init > 1 and not (self.warm_start and hasattr(self, "_model")):
            return fit_several(self, density, checkpoint, start, kept)
        state = Checkpoint(checkpoint, self._training().checkpoint_interval)
        seed = seed_of(self.random_state)
        if state.seed is not None and not isinstance(self.random_state, numbers.Integral):
            seed = state.seed  # of the fit that goes on
        generator = generator_on(find_device(self.device), seed)
        n_features = self._find_n_features(energy_fn)
        names = self._find_feature_names(energy_fn, n_features)
        bounds, begin = self._find_bounds_and_start(n_features, names, energy_fn)
        budget = self._new_budget(start, state)
        with contextlib.closing(budget.progress), count_evaluations() as network:
            energy, n_gauged = self._opened(density, n_features, generator, bounds, begin, budget)
            if kept is not None:
                kept.check(energy)
            if checkpoint is not None:
                state.begin(seed, self._identity(energy, density), budget, generator, network)
            try:
                fitted = self._fit_density(Run(energy, budget, generator), density)
            except Spent:
                too_little = budget.too_little(type(self).__name__, contexts is not None, self.max_energy_evals)
                raise ValueError(too_little) from None
        energy.release()
        self._warn_of_an_early_end(budget, fitted["n_iter_"])
        self.__dict__.update(
            self._with_counts(fitted, energy, network, n_gauged),
            feature_names_out_=names,
            _derived=kept,
            interrupted_=budget.interrupted,
            n_rollbacks_=budget.n_rollbacks,
            fit_time_=time.perf_counter() - start,
        )
        return self

    def _opened(self, density: Density, n_features: int, generator, bounds, begin, budget: Budget):
        """The energy, probed, with what is known of it, and how many evaluations measured its rate."""
        budget.progress.phase("probe")
        energy = open_energy(density, n_features, generator, bounds, budget, None if begin is None else begin.points)
        budget.energy = energy
        n_gauged = 0 if isinstance(density, FamilyDensity) else limit_slow(self, energy, budget)
        energy.known = Evaluations.from_parameter(density.evaluations, n_features, bounds)
        if energy.known is not None:
            energy.known.check(energy)
        return energy, n_gauged

    def _find_density(self, energy_fn, grad_fn, contexts, draws, context_names, evaluations) -> Density:
        """What was passed to `fit`, as one."""
        if contexts is not None:
            if evaluations is not None:
                raise ValueError("evaluations= is for a single density, and contexts= makes a family: leave one out.")
            found: Density = FamilyDensity(
                energy_fn, grad_fn, contexts=contexts, draws=draws, context_names=context_names
            )
        elif draws is not None or context_names is not None:
            name = "draws" if draws is not None else "context_names"
            raise ValueError(f"{name}= belongs to a family of densities: pass contexts=, too.")
        else:
            found = Density(energy_fn, grad_fn, evaluations)
        earlier = getattr(self, "n_contexts_in_", 0) > 0
        if self.warm_start and hasattr(self, "_model") and earlier != (contexts is not None):
            raise ValueError(
                f"warm_start=True goes on from a fit to a {'family' if earlier else 'single density'}, which this is "
                "not; set warm_start=False."
            )
        return found

    def _identity(self, energy: Energy, density: Density) -> dict:
        if isinstance(energy, FamilyEnergy) and isinstance(density, FamilyDensity):
            return identity_of_family(self, energy, density)
        return identity_of(self, energy)

    def _fit_density(self, run: Run, density: Density) -> dict:
        if not isinstance(density, FamilyDensity):
            return self._fit(run) | {"n_contexts_in_": 0, "context_names_in_": None, "contexts_": None}
        found, source = fit_family(self, run, density), run.energy.source
        names = source.names if density.context_names is None else density.context_names
        return found | {"context_names_in_": context_names_of(names, density.energy_fn, source.n_contexts)}

    def _one_density(self, options: dict):
        context = options.pop("context", None)
        return one_given(self, context, options) if is_given(self, context) else self

    def _warn_of_an_early_end(self, budget: Budget, n_iter: int) -> None:
        if budget.interrupted:
            warn_user(
                f"The fit of {type(self).__name__} was interrupted after {n_iter} iterations; what it had "
                "learned by then is kept.",
                ConvergenceWarning,
                "interruption",
            )
        elif not n_iter:
            warn_user(
                f"The limits of {type(self).__name__} were used up before training began: raise max_energy_evals or "
                "max_time.",
                ConvergenceWarning,
            )

    def _with_counts(self, fitted: dict, energy: Energy, network, n_gauged: int) -> dict:
        """Fitted attributes with those of the energy, and what was spent on it."""
        counts = {"energy": energy.n_energy_evals + n_gauged, "grad": energy.n_grad_evals, "network": network.rows}
        spent = {f"n_{what}_evals_": n + fitted.pop(f"n_{what}_evals_before", 0) for what, n in counts.items()}
        of_energy = {"_energy": energy, "_energy_name": None, "_lost_energy": None}
        return {"n_features_in_": energy.n_features, **fitted, **spent, **Bounds.as_fitted(energy.bounds), **of_energy}

    def _new_budget(self, start: float, state: Checkpoint) -> Budget:
        fewest = self._fewest_evals()
        if self.max_energy_evals is not None and self.max_energy_evals < fewest:
            raise ValueError(
                f"max_energy_evals has to be at least {fewest}, of which a fit can be made; got "
                f"{self.max_energy_evals}."
            )
        progress = Progress(self.verbose, type(self).__name__)
        budget = Budget(self.max_time, self.max_energy_evals, None, start, state, progress, training=self._training())
        budget.reserve()
        if self.max_time is not None:
            progress.deadline = start + self.max_time
        return budget

    def _training(self) -> Training:
        """What a fit goes by, from the specification of its loss."""
        named = [self._specified(name) for name in ("loss", "objective") if name in self._short_cuts]
        return next((part.training for part in named if hasattr(part, "training")), Training())

    def _fewest_evals(self) -> int:
        """Evaluations that a fit can be made of."""
        return FEWEST_EVALS

    def _specified(self, name: str) -> Any:
        """The specification that a parameter stands for."""
        value = getattr(self, name)
        if name == "start":
            return as_start(value)
        return value if isinstance(value, Specification) else self._short_cuts[name][value]

    def _one_of_several(self, k: int, seed: int):
        """An unfitted sampler with these parameters and its own seed, for fit k of `n_init`."""
        return type(self)(**self.get_params(deep=False)).set_params(n_init=1, n_jobs=1, random_state=seed)

    def set_params(self, **params):
        """Set parameters, those of a specification by the names ``parameter__field``.

        Parameters
        ----------
        **params
            Values by name.

        Returns
        -------
        self : object
            The sampler.
        """
        rest: dict = {}
        inner: dict = defaultdict(dict)
        for name, value in params.items():
            outer, _, field = name.partition("__")
            if field and (outer == "start" or outer in self._short_cuts):
                inner[outer][field] = value
            else:
                rest[name] = value
        super().set_params(**rest)
        found = {name: self._specified(name).set_params(**fields) for name, fields in inner.items()}
        return super().set_params(**found)

    def _fit(self, run: Run) -> dict:
        """Start, train, judge; returns the fitted attributes and changes nothing."""
        self._begin(run)
        run.train(self._recipe(run))
        weighted = self._judge(run)
        advice = advice_by_cause(run.budget, len(run.losses), self.max_iter, self._advice(run))
        found = judge_fit(type(self).__name__, run.losses, weighted, advice)
        return {"_model": run.model, "history_": run.history, **run.fitted, **found}

    @abstractmethod
    def _begin(self, run: Run) -> None:
        """Give the run its untrained model, and what it is trained on."""

    @abstractmethod
    def _recipe(self, run: Run) -> Iterator[Phase]:
        """Phases of the training."""

    @abstractmethod
    def _judge(self, run: Run) -> WeightedSample:
        """Evaluation draws of the trained model."""

    @abstractmethod
    def _advice(self, run: Run) -> str:
        """What to do about a fit that ran to its end and did not converge."""
