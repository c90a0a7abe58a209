"""What the estimators share: the fit template, sampling in chunks, weights, pickling."""

import contextlib
import copy
import math
import numbers
import time
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils._param_validation import Interval
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_is_fitted

from .. import _version
from .._support.devices import find_device, generator_on, loading_device, to_numpy
from .._support.errors import Spent
from .._support.forks import seed_of
from .._support.parallel import best_fit, drawn_in_parallel, few_threads, in_parallel
from .._support.progress import Progress
from .._support.warnings import muted, warn_user
from ..density.bounds import Bounds
from ..density.energy import Energy
from ..density.standardize import StandardizedTarget
from ..explore.start import Start
from ..io.export import checked_names, to_frame
from ..io.packing import imported, name_of, pack, unpack
from ..io.registry import register_sampler
from ..io.schema import Fitted, fitted_attributes, missing
from ..io.writer import save
from ..models.networks import count_evaluations
from ..train.budget import FEWEST_EVALS, Budget
from ..train.checkpoint import Checkpoint, identity_of
from ..train.loop import MAX_ROLLBACKS
from ..train.phases import Phase, PhaseRecord
from ..train.run import Run
from ..weights.diagnosis import diagnose, energies_at, subset
from ..weights.importance import WeightedSample
from .copies import copied, copied_deeply, with_energy

CHUNK_ROWS = 8192  # rows simulated at a time: bounds the memory, and keeps activations in the cache
DOCUMENTATION = "https://skcds.readthedocs.io/en/latest/"
MIN_JUDGED = 100  # draws from which weights are judged

positive_integer = Interval(numbers.Integral, 1, None, closed="left")
positive_real = Interval(numbers.Real, 0, None, closed="neither")


class BaseSampler(BaseEstimator, metaclass=ABCMeta):
    """Template of the samplers: subclasses say how to fit (`_fit`), and how to draw a chunk."""

    _model: Any
    _energy_name: str | None = None  # of a sampler that was loaded without its energy

    _doc_link_module = "skcds"  # of the link in the HTML that notebooks show
    _doc_link_template = DOCUMENTATION + "api/{estimator_name}.html#skcds.{estimator_name}"

    __metadata_request__fit = {"energy_fn": UNUSED, "grad_fn": UNUSED, "checkpoint": UNUSED}
    __metadata_request__score = {"energy_fn": UNUSED, "grad_fn": UNUSED, "n": UNUSED, "random_state": UNUSED}

    _parameter_constraints: dict = {
        "n_features": [positive_integer, None],
        "bounds": ["array-like", None],
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
        "start": "no_validation",
        "verbose": ["verbose"],
        "random_state": ["random_state", np.random.Generator],
    }

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
        "converged_": "flag",
        "interrupted_": "flag",
        "n_rollbacks_": "count",
        "bounds_": Fitted("bounds or None", since=2, before=lambda sampler: None),
        "bounds_scale_": Fitted("vector or None", since=2, before=lambda sampler: None),
        "feature_names_out_": Fitted(
            "names", since=2, before=lambda sampler: checked_names(None, sampler.n_features_in_, "")
        ),
        "fit_time_": "clock",
    }

    def __init_subclass__(cls, **kwargs) -> None:
        super().__init_subclass__(**kwargs)
        register_sampler(cls)

    def fit(self, energy_fn, y=None, *, grad_fn=None, checkpoint=None):
        """Learn to sample the density ``rho(x) = exp(-energy_fn(x))``.

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
            When `energy_fn` is not callable.
        """
        start = time.perf_counter()
        self._validate_params()
        if self.n_init > 1 and not (self.warm_start and hasattr(self, "_model")):
            return self._fit_several(energy_fn, grad_fn, checkpoint, start)
        state = Checkpoint(checkpoint)
        seed = seed_of(self.random_state)
        if state.seed is not None and not isinstance(self.random_state, numbers.Integral):
            seed = state.seed  # of the fit that goes on
        generator = generator_on(find_device(self.device), seed)
        n_features = self._find_n_features(energy_fn)
        names, bounds = self._find_feature_names(energy_fn, n_features), self._find_bounds(n_features)
        begin = self._find_start(n_features, bounds)
        budget = self._new_budget(start, state)
        with contextlib.closing(budget.progress), count_evaluations() as network, few_threads():
            budget.progress.phase("probe")
            energy = Energy(
                energy_fn, n_features, grad_fn, generator, bounds, budget, None if begin is None else begin.points
            )
            budget.energy = energy
            if checkpoint is not None:
                state.begin(seed, identity_of(self, energy), budget, generator, network)
            try:
                fitted = self._fit(Run(energy, budget, generator))
            except Spent:
                raise ValueError(budget.too_little(type(self).__name__)) from None
        energy.release()
        if budget.interrupted:
            warn_user(
                f"The fit of {type(self).__name__} was interrupted after {fitted['n_iter_']} iterations; what it had "
                "learned by then is kept.",
                ConvergenceWarning,
                "interruption",
            )
        elif not fitted["n_iter_"]:
            warn_user(
                f"The limits of {type(self).__name__} were used up before training began: raise max_energy_evals or "
                "max_time.",
                ConvergenceWarning,
            )
        fitted |= {
            "n_features_in_": energy.n_features,
            "feature_names_out_": names,
            **Bounds.as_fitted(energy.bounds),
            "n_energy_evals_": energy.n_energy_evals + fitted.pop("n_energy_evals_before", 0),
            "n_grad_evals_": energy.n_grad_evals + fitted.pop("n_grad_evals_before", 0),
            "n_network_evals_": network.rows + fitted.pop("n_network_evals_before", 0),
            "_energy": energy,
            "interrupted_": budget.interrupted,
            "n_rollbacks_": budget.n_rollbacks,
            "_energy_name": None,
            "_lost_energy": None,
            "fit_time_": time.perf_counter() - start,
        }
        self.__dict__.update(fitted)
        return self

    def _fit_several(self, energy_fn, grad_fn, checkpoint, start):
        """`n_init` fits, of which the best is kept."""
        if checkpoint is not None and not isinstance(self.random_state, numbers.Integral):
            raise ValueError(
                f"A checkpoint of n_init={self.n_init} fits needs an integer random_state, by which they are found "
                f"again; got {self.random_state!r}."
            )
        seed = seed_of(self.random_state)
        n_features = self._find_n_features(energy_fn)
        energy = Energy(  # which finds fault with the function before any worker starts
            energy_fn, n_features, grad_fn, generator_on(find_device(self.device), seed), self._find_bounds(n_features)
        )
        best, fits = best_fit(self, energy_fn, grad_fn, checkpoint, seed)
        fitted = {name: value for name, value in vars(best).items() if name not in self.get_params(deep=False)}
        for count in ("n_energy_evals_", "n_grad_evals_", "n_network_evals_"):
            fitted[count] = sum(getattr(fit, count) for fit in fits)
        self._take_back(fitted, energy_fn, grad_fn)
        bounds = Bounds.from_fitted(best)
        energy.bounds = bounds and bounds.to(energy.device)
        self.__dict__.update(
            fitted, _energy=energy, _energy_name=None, _lost_energy=None, fit_time_=time.perf_counter() - start
        )
        if not self.converged_:
            warn_user(
                f"None of {self.n_init} fits of {type(self).__name__} converged: the best has an effective share of "
                f"{self.ess_:.3f} and weights with a Pareto k above its limit, so that log evidence and "
                "expectations are not reliable. Raise max_iter or max_time, or check the energy function.",
                ConvergenceWarning,
                "convergence",
            )
        return self

    def _new_budget(self, start: float, state: Checkpoint) -> Budget:
        fewest = self._fewest_evals()
        if self.max_energy_evals is not None and self.max_energy_evals < fewest:
            raise ValueError(
                f"max_energy_evals has to be at least {fewest}, of which a fit can be made; got "
                f"{self.max_energy_evals}."
            )
        progress = Progress(self.verbose, type(self).__name__)
        budget = Budget(self.max_time, self.max_energy_evals, None, start, state, progress)
        budget.reserve()
        if self.max_time is not None:
            progress.deadline = start + self.max_time
        return budget

    def _fewest_evals(self) -> int:
        """Evaluations that a fit can be made of."""
        return FEWEST_EVALS

    def _find_start(self, n_features: int, bounds: Bounds | None) -> Start | None:
        return Start.from_parameter(self.start, n_features, bounds)

    def _take_back(self, fitted: dict, energy_fn, grad_fn) -> None:
        """Give the sampler inside a fit, which may be from another process, the energy back."""
        if "teacher_" in fitted:
            own = getattr(self.teacher, "estimator", self.teacher)
            kept = own if hasattr(own, "_model") else with_energy(fitted["teacher_"], energy_fn, grad_fn)
            fitted["teacher_"] = kept

    def _one_of_several(self, k: int, seed: int):
        """An unfitted sampler with these parameters and its own seed, for fit k of `n_init`."""
        return type(self)(**self.get_params(deep=False)).set_params(n_init=1, n_jobs=1, random_state=seed)

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
        """Held-out draws of the trained model."""

    @abstractmethod
    def _advice(self, run: Run) -> str:
        """What to do about a fit that ran to its end and did not converge."""

    def _find_n_features(self, energy_fn) -> int:
        n_features = self.n_features if self.n_features is not None else getattr(energy_fn, "n_features", None)
        if n_features is None:
            raise ValueError(
                "The dimension of the density is not known: pass n_features= to the constructor, or give the energy "
                "function an attribute n_features."
            )
        if not isinstance(n_features, numbers.Integral) or n_features < 1:
            raise ValueError(f"energy_fn.n_features has to be an integer of at least 1; got {n_features!r}.")
        return int(n_features)

    def _find_bounds(self, n_features: int) -> Bounds | None:
        return Bounds.from_parameter(self.bounds, n_features)

    def _find_feature_names(self, energy_fn, n_features: int) -> np.ndarray:
        names, owner = self.feature_names, "feature_names"
        if names is None:
            names, owner = getattr(energy_fn, "feature_names", None), "energy_fn.feature_names"
        return checked_names(names, n_features, owner)

    # ---------------------------------------------------------------- sampling

    def _chunks(self, n: int, seed: int, chunks=None) -> Iterator[tuple[slice, Callable]]:
        """Slices of n draws and ``normal(k)``, standard normal draws (rows, d) float32 of stream k for each slice.

        A prefix of the draws is a draw of fewer: the streams of a chunk are its own, whichever chunks are asked for.
        """
        for chunk in range(-(-n // CHUNK_ROWS)) if chunks is None else chunks:
            rows = slice(chunk * CHUNK_ROWS, min(n, (chunk + 1) * CHUNK_ROWS))
            yield (
                rows,
                _normal_streams(seed, int(chunk), (rows.stop - rows.start, self.n_features_in_), self._model.device),
            )

    @abstractmethod
    def _plan(self, *args, **options) -> Callable:
        """``draw(normal)``, which gives a chunk in standardised coordinates; checks the options of `sample`."""

    @abstractmethod
    def _needs_energy(self, **options) -> bool:
        """Whether drawing with these options evaluates the energy."""

    def _sample(self, n: int, random_state, options: dict, out=None, as_frame: bool = False):
        """As `_draws`, with the options of `sample`, by several workers where joblib has them."""
        plan, n = self._plan(**options), check_count(n, "n", 0)
        n_chunks, seed = -(-n // CHUNK_ROWS), seed_of(random_state)
        if not in_parallel(self.n_jobs, n_chunks):
            return self._draws(n, self._drawn_chunks(n, seed, plan), out, as_frame)
        if self._needs_energy(**options) and options.get("energy_fn") is None and self._energy is not None:
            options = {**options, "energy_fn": self._energy.energy_fn, "grad_fn": self._energy.grad_fn}
        chunks = drawn_in_parallel(self, n, seed, options, n_chunks)
        return self._draws(n, chunks, out, as_frame)

    def _draws(self, n: int, chunks: Iterator[tuple[slice, np.ndarray]], out=None, as_frame: bool = False):
        """Draws (n, d) in the user's coordinates, in a new array or in `out`, or as a data frame."""
        if as_frame and out is not None:
            raise ValueError("as_frame=True makes a data frame of its own, and out= was given: choose one of them.")
        X = np.empty((n, self.n_features_in_)) if out is None else _checked_out(out, (n, self.n_features_in_))
        for rows, chunk in chunks:
            X[rows] = chunk
        return to_frame(X, self.feature_names_out_) if as_frame else X

    def _drawn_chunks(self, n: int, seed: int, draw: Callable, chunks=None) -> Iterator[tuple[slice, np.ndarray]]:
        for rows, normal in self._chunks(n, seed, chunks):
            with torch.no_grad(), few_threads():
                chunk = self._unstandardize(draw(normal))
            yield rows, chunk

    def _unstandardize(self, z: torch.Tensor) -> np.ndarray:
        """Standardised points (n, d) in the user's coordinates."""
        x, bounds = self._model.standardization(z).cpu(), Bounds.from_fitted(self)
        return (x if bounds is None else bounds(x)).numpy()

    def _standardize(self, x: np.ndarray) -> np.ndarray:
        """Points (n, d) in the user's coordinates in standardised ones."""
        points, bounds = torch.from_numpy(np.asarray(x, dtype=np.float64)), Bounds.from_fitted(self)
        points = (points if bounds is None else bounds.inverse(points)).to(self._model.device)
        return to_numpy(self._model.standardization.inverse(points))

    def iter_samples(self, n, batch_size=CHUNK_ROWS, random_state=None, **options):
        """Draw in batches, for more draws than fit in memory.

        Parameters
        ----------
        n : int
            Number of draws in all.
        batch_size : int, default=8192
            Draws of a batch; the last may be smaller.
        random_state : int, RandomState instance, numpy.random.Generator or None, default=None
            Seed. The batches together are ``sample(n, random_state=random_state)``, whatever their size.
        **options
            Further arguments of `sample`, such as `n_steps`.

        Yields
        ------
        X : ndarray of shape (batch_size, n_features)
            Draws, float64.

        Raises
        ------
        ValueError, TypeError
            At once, as `sample` does.
        """
        check_is_fitted(self)
        n, batch_size = check_count(n, "n", 0), check_count(batch_size, "batch_size", 1)
        return self._batches(self._drawn_chunks(n, seed_of(random_state), self._plan(**options)), n, batch_size)

    def _batches(self, chunks, n: int, batch_size: int) -> Iterator[np.ndarray]:
        """The rows of chunks in batches of another size; a batch is an array of its own."""
        batch, filled = np.empty((min(batch_size, n), self.n_features_in_)), 0
        for _, chunk in chunks:
            while len(chunk):
                taken = min(len(batch) - filled, len(chunk))
                batch[filled : filled + taken] = chunk[:taken]
                chunk, filled, n = chunk[taken:], filled + taken, n - taken
                if filled == len(batch):
                    yield batch
                    batch, filled = np.empty((min(batch_size, n), self.n_features_in_)), 0

    @torch.no_grad()
    def _weighted_draws(
        self, n: int, random_state, target: StandardizedTarget, draw: Callable, **details
    ) -> WeightedSample:
        """Weighted draws; ``draw(normal)`` gives a chunk in standardised coordinates and its log weights."""
        X, log_weights = np.empty((n, self.n_features_in_)), np.empty(n)
        for rows, normal in self._chunks(n, seed_of(random_state)):
            with few_threads():
                z, log_weight = draw(normal)
            X[rows], log_weights[rows] = self._unstandardize(z), to_numpy(log_weight)
        details |= {"n_energy_evals": target.energy.n_energy_evals, "feature_names": self.feature_names_out_}
        weighted = WeightedSample(X, log_weights, **details)
        if n >= MIN_JUDGED:
            weighted.warn_if_unreliable()
        return weighted

    def to_arviz(self, n, random_state=None, *, resample=True, energy_fn=None, grad_fn=None):
        """Weighted draws as an ArviZ posterior, for example for ``arviz.summary``.

        The variables are the features, or the model's constrained parameters where the energy has a method
        ``constrain`` (`skcds.adapters`).

        Parameters
        ----------
        n : int
            Number of draws.
        random_state : int, RandomState instance, numpy.random.Generator or None, default=None
            Seed.
        resample : bool, default=True
            Whether the posterior holds as many draws resampled in proportion to the weights, or the draws themselves
            with ``log_weight`` among their statistics; see `WeightedSample.to_arviz`.
        energy_fn, grad_fn : callable, optional
            The energy, for a sampler that was loaded without it.

        Returns
        -------
        InferenceData or DataTree
            As the installed ArviZ has it.
        """
        check_is_fitted(self)
        seed = seed_of(random_state)
        kept = self._kept_energy("to_arviz") if energy_fn is None else None
        weighted = self.sample_weighted(n, random_state=seed, energy_fn=energy_fn, grad_fn=grad_fn)
        if kept is not None:
            energy_fn = kept.energy_fn
        return weighted.to_arviz(resample, seed, getattr(energy_fn, "constrain", None))

    # ---------------------------------------------------------------- judgement

    def score(self, energy_fn=None, y=None, *, grad_fn=None, n=10_000, random_state=0):
        """Evidence lower bound: the mean log weight of draws, by which fits to one energy can be compared.

        It is at most log Z in expectation, and lower by the Kullback-Leibler divergence from the sampler to the target.
        That divergence hardly minds a missed mode: of nine equal ones, log(9 / 8) = .12.

        Parameters
        ----------
        energy_fn : callable, default=None
            The energy; by default that of the fit.
        y : None
            Ignored; there for the scikit-learn interface.
        grad_fn : callable, optional
            The gradient that goes with `energy_fn`.
        n : int, default=10000
            Number of draws.
        random_state : int, RandomState instance, numpy.random.Generator or None, default=0
            Seed of the draws: the same for all that are compared.

        Returns
        -------
        float
            In nats; ``-inf`` where any draw falls outside the support. No bound for a map that folds, which warns.
        """
        check_is_fitted(self)
        if energy_fn is None:
            self._kept_energy("score")
        return self.sample_weighted(n, random_state=random_state, energy_fn=energy_fn, grad_fn=grad_fn).elbo

    def diagnose(self, n=10_000, random_state=None, *, energy_fn=None, grad_fn=None):
        """A short report: whether the draws and their weights can be relied on.

        The weights are judged by themselves (effective share, Pareto k, share outside the support). So are the draws
        that `sample` gives without weights, by what the weights would change about them: the total variation, and the
        largest Kolmogorov distance in any coordinate, the distance from the centre, and the energy. Both are compared
        with what the sampler did not draw: the pilot's log Z, and the particles of the training, which keep modes that
        the sampler has lost. What neither the pilot nor the sampler found is not seen; compare with other starting
        points, or with what you know of the target.

        Parameters
        ----------
        n : int, default=10000
            Draws, and at most as many particles, that are looked at; at least 100.
        random_state : int, RandomState instance, numpy.random.Generator or None, default=None
            Seed.
        energy_fn, grad_fn : callable, optional
            The energy, for a sampler that was loaded without it.

        Returns
        -------
        Diagnosis
            Its ``verdict`` is "ok", "suspect" or "failed"; printed, it is a table.

        Notes
        -----
        The verdict is the worst of the checks'. A figure counts as far as it is beyond what chance does to an exact
        sampler of as many draws, with particles of which four count as one. The limits for "suspect" and "failed":

        - training iterations: none is suspect;
        - effective share: below .1 and .01; Pareto k: above `skcds.importance.pareto_k_limit` (.7, or less below 2200
          draws) and 1; outside the support: .02 and .5 of the draws;
        - total variation: .4 and .75, generous, as noise of weights alone makes .28 with an effective share of .6;
        - draws less weights, the Kolmogorov distances: .05 and .2;
        - log Z less the pilot's: .1 and .5;
        - lost mass, the total variation that particles see beyond that of the draws' weights: .01 and .05;
        - particles out of reach, of a weight over 100 that draws hardly ever get: .005 and .02;
        - location: means shifted by .1 and .5 standard deviations; spread: deviations off by a factor of 1.1 and 1.5;
        - injectivity: any violation, and .01;
        - mode masses, and well masses of targets that are products: off by .05 and .2 where the energy knows them.

        Of samplers made by hand, 100 of every kind, none of 1400 sound ones was called anything but ok, with effective
        shares of .5 to 1 and 1000 or 10 000 draws: false alarms are below .003. From 10 000 draws and particles none of
        1100 faulty ones was called ok (dropped modes, wrong masses or widths, a plateau or an edge drawn too seldom,
        wrong weights, no training): misses are below .037 for every kind. From 1000, one of 40 modes dropped was missed
        in 39 % and a plateau of mass .165 drawn as .084 in 46 %. See benchmarks/verdicts.py.
        """
        check_is_fitted(self)
        n = check_count(n, "n", MIN_JUDGED)
        seed = seed_of(random_state)
        target = self._target(energy_fn, grad_fn, "diagnose")
        with muted(ConvergenceWarning):  # what they say is in the report
            weighted = self.sample_weighted(n, random_state=seed, energy_fn=energy_fn, grad_fn=grad_fn)
        trained: Any = getattr(self, "teacher_", self)
        pilot = trained.pilot_
        particles, log_weights = subset(trained.particles_, n if pilot is not None else 0, seed), None
        z = self._model.standardization.inverse(torch.from_numpy(particles).double().to(self._model.device))
        if len(particles):
            log_weights = self._weigh(z.float(), target, generator_on(self._model.device, seed))
        return diagnose(
            weighted, to_numpy(z), log_weights if log_weights is None else to_numpy(log_weights), self._standardize,
            pilot_log_evidence=pilot and pilot.log_evidence, violation_share=getattr(self, "violation_share_", None),
            target=target.energy.energy_fn, energies=energies_at(weighted.samples, target.energy), n_iter=self.n_iter_,
        )  # fmt: skip

    @abstractmethod
    def _weigh(self, z: torch.Tensor, target: StandardizedTarget, generator) -> torch.Tensor | None:
        """Exact log weights (n,) of points (n, d) that were not drawn, or None where they are not known."""

    def _target(self, energy_fn=None, grad_fn=None, what="This method") -> StandardizedTarget:
        """The standardised target of the energy passed, or else of the one kept from `fit`, with counts at zero."""
        if energy_fn is not None:
            bounds = Bounds.from_fitted(self)
            energy = Energy(energy_fn, self.n_features_in_, grad_fn, generator_on(self._model.device, 0), bounds)
        else:
            energy = self._kept_energy(what)
        return StandardizedTarget.reported(energy, self._model.standardization)

    def _kept_energy(self, what: str) -> Energy:
        if self._energy is None:
            raise ValueError(
                f"{what} needs the energy function, and this sampler was loaded without it"
                f"{self._lost_energy or (f' (it was fitted to {self._energy_name})' if self._energy_name else '')}: "
                "pass energy_fn= (and grad_fn= where fit had one)."
            )
        energy = copy.copy(self._energy)
        energy.n_energy_evals = energy.n_grad_evals = 0
        return energy

    # ---------------------------------------------------------------- scikit-learn and persistence

    def save(self, path):
        """Write the fitted sampler to one safetensors file, from which `skcds.load` reads it without running code.

        The file is complete or not there at all: it is written beside `path` and then takes its place, and when that
        fails an older file stays as it was. The energy function is not in the file, but its name is.
        A class of your own can be saved, too: it declares what its `fit` adds in ``_fitted_attributes``, and has to be
        imported where the file is loaded.

        Parameters
        ----------
        path : path-like
            The file; an older one is replaced. A symbolic link stays, and the file that it links to is replaced.

        Raises
        ------
        NotFittedError
            When the sampler is not fitted.
        TypeError
            When it has a parameter that cannot be saved, or a fitted attribute that its class does not declare.
        ModelFileError
            When `skcds.load` would refuse the file, as with weights that are not finite: nothing is written then.
        OSError
            When the file cannot be written, for example since its folder is not there.
        """
        save(self, path)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_model")

    def __copy__(self):
        return copied(self)

    def __deepcopy__(self, memo):
        return copied_deeply(self, memo)

    def __getstate__(self) -> dict:
        """State of NumPy arrays and plain values; the energy only by reference, the clock reading not at all."""
        clocks = {name for name, attribute in fitted_attributes(type(self)).items() if attribute.kind == "clock"}
        state = {name: value for name, value in super().__getstate__().items() if name not in clocks}
        state["_skcds_version"] = _version.__version__
        if "_model" in state:
            state["_model"] = pack(state["_model"])
            state["_energy"] = _reference(state["_energy"])
            state["_lost_energy"] = None
        return state

    def __setstate__(self, state: dict) -> None:
        state = dict(state)
        written = state.pop("_skcds_version", None)
        if written != _version.__version__:
            warn_user(
                f"This {type(self).__name__} was pickled with skcds {written or 'of before 0.1'} and is loaded with "
                f"{_version.__version__}: it may break or give other results. A file written by its method save is "
                "read by every later version.",
                UserWarning,
            )
        if "_model" in state:
            state["_model"] = unpack(state["_model"]).to(loading_device(state.get("device", "auto")))
        super().__setstate__(state)
        if "_model" in state:
            self.__dict__ |= missing(self)
            self._energy, self._lost_energy = _dereference(state["_energy"], self)


def _normal_streams(seed: int, chunk: int, shape: tuple[int, int], device: torch.device) -> Callable:
    """``normal(k)``, standard normal numbers of stream k of a chunk; the rows of fewer are the first ones of more.

    They are the same on every device.
    """
    streams: dict[int, np.random.Generator] = {}

    def normal(k, shape=shape):
        if k not in streams:
            key = (k, chunk) if chunk else (k,)
            streams[k] = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
        return torch.from_numpy(streams[k].standard_normal(shape, dtype=np.float32)).to(device)

    return normal


def _checked_out(out, shape: tuple) -> np.ndarray:
    if not isinstance(out, np.ndarray) or out.dtype.kind != "f":
        found = f"{type(out).__name__} of dtype {out.dtype}" if isinstance(out, np.ndarray) else type(out).__name__
        raise TypeError(f"out has to be a NumPy array of floating point numbers; got {found}.")
    if out.shape != shape or not out.flags.writeable:
        kind = "" if out.flags.writeable else "read-only "
        raise ValueError(f"out has to be a writeable array of shape {shape}; got a {kind}array of shape {out.shape}.")
    return out


def check_count(value, name: str, minimum: int) -> int:
    """An integer of at least `minimum`, or a sentence."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} has to be an integer; got {value!r}.")
    if value < minimum:
        raise ValueError(f"{name} has to be at least {minimum}; got {value}.")
    return int(value)


def advice_by_cause(budget: Budget, n_iter: int, max_iter: int, usual: str) -> str:
    """What to do about a fit that did not converge, by what ended its training; `usual` where it ran to its end."""
    ended = f"Training ended after {n_iter} of {max_iter} iterations"
    if budget.interrupted:
        return f"{ended}, when it was interrupted: fit it to the end."
    if n_iter < max_iter and budget.n_rollbacks > MAX_ROLLBACKS:
        return f"{ended}, as loss or gradient was not finite: lower learning_rate, or smooth the energy."
    if n_iter < max_iter and budget.spent() >= 1:
        name = "max_energy_evals" if budget.max_time is None or budget.seconds_left() > 0 else "max_time"
        return f"{ended}, when {name} was used up: raise it."
    return usual


def judge_fit(name: str, losses: list, weighted: WeightedSample, advice: str) -> dict:
    """Fitted attributes that the losses and held-out weights tell; warns when the weights have no usable tail."""
    k, limit, share = weighted.pareto_k, weighted.pareto_k_limit, weighted.ess / len(weighted.log_weights)
    if k > limit:
        found = f"have Pareto k = {k:.2f} (above {limit:.3g}) and an effective share of {share:.3f}"
        if not share:
            found = "are all zero, since none of the draws lies in the support"
        warn_user(
            f"{name} did not converge: the importance weights of {len(weighted.log_weights)} held-out draws {found}, "
            f"so log evidence and expectations from its weights are not reliable. {advice}",
            ConvergenceWarning,
            "convergence",
        )
    return {
        "loss_curve_": losses,
        "n_iter_": len(losses),
        "log_evidence_": weighted.log_evidence,
        "log_evidence_se_": weighted.log_evidence_se,
        "elbo_": weighted.elbo,
        "ess_": share,
        "converged_": bool(k <= limit),
    }


def _reference(energy: Energy | None) -> list | None:
    """Names of the energy's functions, or None unless they can be imported."""
    if energy is None:
        return None
    functions = (energy.energy_fn, energy.grad_fn)
    names = [name_of(function) for function in functions]
    return None if any(f is not None and name is None for f, name in zip(functions, names, strict=True)) else names


def _dereference(names: list | None, sampler: BaseSampler) -> tuple[Energy | None, str | None]:
    if names is None:
        return None, None
    try:
        energy_fn, grad_fn = (name and imported(*name) for name in names)
        generator, bounds = generator_on(sampler._model.device, 0), Bounds.from_fitted(sampler)
        return Energy(energy_fn, sampler.n_features_in_, grad_fn, generator, bounds), None
    except Exception as error:
        return None, f" (it could not be imported: {error})"
