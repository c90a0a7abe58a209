"""Whether a sampler can be relied on: the end of its fit, its score and its report."""

__all__ = ["Judged", "advice_by_cause", "judge_fit", "pilot_noise"]

import copy
import dataclasses
import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted

from .._support.devices import generator_on, to_numpy
from .._support.forks import seed_of
from .._support.settings import guest
from .._support.validation import check_count
from .._support.warnings import muted, warn_user
from ..density.energy import Energy
from ..density.function import Density
from ..density.standardize import StandardizedTarget
from ..explore.missed import Missed, find_missed
from ..train.budget import Budget
from ..weights.diagnosis import diagnose, energies_at, subset
from ..weights.sample import WeightedSample
from .given import energy_of, is_given, one_given, weighted_given
from .sampling import MIN_JUDGED

FEW_PARTICLES = 1000  # of a pilot, whose log evidence is known poorly
MOST_CONTEXTS = 100  # of a family, that a score is the mean over
THOROUGH = 20_000  # evaluations of a thorough diagnosis: some 500 climbs of a density in five dimensions


class Judged:
    """Of a sampler that weighs draws."""

    _model: Any
    _energy: Energy | None
    _energy_name: str | None
    _lost_energy: str | None
    _standardize: Callable
    sample_weighted: Callable
    calibrate: Callable
    contexts_: np.ndarray | None
    n_features_in_: int
    n_iter_: int

    @guest
    def to_arviz(self, n, random_state=None, *, context=None, resample=True, energy_fn=None, grad_fn=None):
        """Weighted draws as an ArviZ posterior, for example for ``arviz.summary``.

        The variables are the features, or the model's constrained parameters where the energy has a method
        ``constrain`` (`skcds.adapters`).

        Parameters
        ----------
        n : int
            Number of draws.
        random_state : int, RandomState instance, numpy.random.Generator or None, default=None
            Seed.
        context : array-like of shape (n_contexts,), optional
            Which density of a family.
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
        if is_given(self, context):
            one = one_given(self, context, {"energy_fn": energy_fn, "grad_fn": grad_fn})
            return one.to_arviz(n, random_state, resample=resample)
        seed = seed_of(random_state)
        kept = self._kept_energy("to_arviz") if energy_fn is None else None
        weighted = self.sample_weighted(n, random_state=seed, energy_fn=energy_fn, grad_fn=grad_fn)
        constrain = getattr(energy_fn, "constrain", None) if kept is None else kept.constrain
        return weighted.to_arviz(resample, seed, constrain)

    @guest
    def score(self, energy_fn=None, y=None, *, context=None, grad_fn=None, n=10_000, random_state=0):
        """Evidence lower bound: the mean log weight of draws, by which fits to one energy can be compared.

        It is at most log Z in expectation, and lower by the Kullback-Leibler divergence from the sampler to the target.
        That divergence hardly minds a missed mode: of nine equal ones, log(9 / 8) = .12.

        Parameters
        ----------
        energy_fn : callable, default=None
            The energy; by default that of the fit.
        y : None
            Ignored; there for the scikit-learn interface.
        context : array-like of shape (n_contexts,), optional
            Which density of a family; by default the mean over up to 100 contexts of the fit, of ``n / 100`` draws
            each.
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
        if is_given(self, context):
            return self._score_family(context, n, random_state, {"energy_fn": energy_fn, "grad_fn": grad_fn})
        if energy_fn is None:
            self._kept_energy("score")
        return self.sample_weighted(n, random_state=random_state, energy_fn=energy_fn, grad_fn=grad_fn).elbo

    def _score_family(self, context, n: int, random_state, options: dict) -> float:
        if context is not None:
            return one_given(self, context, options).score(n=n, random_state=random_state)
        assert self.contexts_ is not None  # since this is a family
        rows = self.contexts_[:MOST_CONTEXTS]
        with muted(ConvergenceWarning):
            found = weighted_given(self, rows, max(check_count(n, "n", 1) // len(rows), 1), random_state, options)
        return float(sum(weighted.elbo for weighted in found) / len(found))

    @guest
    def diagnose(self, n=10_000, random_state=None, *, thorough=False, context=None, energy_fn=None, grad_fn=None):
        """A short report: whether the draws and their weights can be relied on.

        The weights are judged by themselves (normalised ESS, Pareto k, share outside the support). So are the draws
        that `sample` gives without weights, by what the weights would change about them: the total variation, and the
        largest Kolmogorov distance in any coordinate, the distance from the centre, and the energy. Both are compared
        with what the sampler did not draw: the pilot's log Z, and the particles of the training, which keep modes that
        the sampler has lost. What neither the pilot nor the sampler found is not seen, unless the diagnosis is
        thorough. Then fresh climbs from near and far look for modes, and the mass of each is compared with that of the
        draws.

        Parameters
        ----------
        n : int, default=10000
            Draws, and at most as many particles, that are looked at; at least 100.
        random_state : int, RandomState instance, numpy.random.Generator or None, default=None
            Seed.
        thorough : bool or int, default=False
            Evaluations of the energy that may be spent on looking for modes that were missed; True is 20000. Without a
            gradient this is for at most 30 dimensions.
        context : array-like of shape (n_contexts,), optional
            Which density of a family, judged by its weights alone; by default the report is that of `calibrate` for up
            to 100 contexts of the fit, with ``n / 10`` draws each.
        energy_fn, grad_fn : callable, optional
            The energy, for a sampler that was loaded without it.

        Returns
        -------
        Diagnosis or Calibration
            Its ``verdict`` is "ok", "suspect" or "failed"; printed, it is a table.

        Notes
        -----
        The verdict is the worst of the checks'. A figure counts as far as it is beyond what chance does to an exact
        sampler of as many draws, with particles of which four count as one. The limits for "suspect" and "failed":

        - training iterations: none is suspect;
        - normalised ESS: below .1 and .01; Pareto k: above `skcds.importance.pareto_k_limit` (.7, or less below 2200
          draws) and 1; outside the support: .02 and .5 of the draws;
        - total variation: .4 and .75, generous, as noise of weights alone makes .28 with a normalised ESS of .6;
        - draws less weights, the Kolmogorov distances: .05 and .2;
        - log Z less the pilot's: .1 and .5, beyond the noise of a pilot with fewer than 1000 particles;
        - lost mass, the total variation that particles see beyond that of the draws' weights: .01 and .05;
        - particles out of reach, of a weight over 100 that draws hardly ever get: .005 and .02;
        - missed modes: .01 and .05 of the mass;
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
        n_evals = check_count({True: THOROUGH, False: 0}.get(thorough, thorough), "thorough", 0)
        if is_given(self, context):
            options = {"energy_fn": energy_fn, "grad_fn": grad_fn}
            if context is None and n_evals:
                raise ValueError("A thorough diagnosis is of one density of a family: pass context=.")
            if context is None:
                return self.calibrate(n=max(n // 10, MIN_JUDGED), random_state=random_state, **options)
            return one_given(self, context, options).diagnose(n, random_state, thorough=n_evals)
        seed = seed_of(random_state)
        target = self._target(Density.of(energy_fn, grad_fn), "diagnose")
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
            pilot_log_evidence=pilot and pilot.log_evidence, pilot_se=pilot_noise(pilot, len(trained.particles_)),
            chance_of_another=getattr(pilot, "chance_of_another", 0.0),
            violation_share=getattr(self, "violation_share_", None),
            target=target.energy.energy_fn, energies=energies_at(weighted.samples, target.energy), n_iter=self.n_iter_,
            missed=self._missed(weighted, target.energy, n_evals, seed) if n_evals and weighted.ess else None,
        )  # fmt: skip

    def _missed(self, weighted: WeightedSample, energy: Energy, n_evals: int, seed: int) -> Missed:
        """What fresh evaluations find beside the draws; its place is in the user's coordinates."""
        points = torch.from_numpy(weighted.samples).to(energy.device)
        points = points if energy.bounds is None else energy.bounds.inverse(points)
        log_weights = torch.from_numpy(weighted.log_weights).to(energy.device)
        found = find_missed(energy, points, log_weights, n_evals, generator_on(energy.device, seed))
        if found.x is None or energy.bounds is None:
            return found
        return dataclasses.replace(found, x=energy.bounds(found.x[None])[0])

    @abstractmethod
    def _weigh(self, z: torch.Tensor, target: StandardizedTarget, generator) -> torch.Tensor | None:
        """Exact log weights (n,) of points (n, d) that were not drawn, or None where they are not known."""

    def _target(self, density: Density | None, what: str) -> StandardizedTarget:
        """The standardised target of the energy passed, or else of the one kept from `fit`, with counts at zero."""
        if density is not None:
            energy = energy_of(self, density)
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


def advice_by_cause(budget: Budget, n_iter: int, max_iter: int, usual: str) -> str:
    """What to do about a fit that did not converge, by what ended its training; `usual` where it ran to its end."""
    ended = f"Training ended after {n_iter} of {max_iter} iterations"
    if budget.interrupted:
        return f"{ended}, when it was interrupted: fit it to the end."
    if n_iter < max_iter and budget.n_rollbacks > budget.training.max_rollbacks:
        return f"{ended}, as loss or gradient was not finite: lower learning_rate, or smooth the energy."
    if n_iter < max_iter and budget.spent() >= 1:
        by_time = budget.max_time is not None and (budget.limits_itself or budget.seconds_left() <= 0)
        name = "max_time" if by_time else "max_energy_evals"
        return f"{ended}, when {name} was used up: raise it."
    return usual


def pilot_noise(pilot, n_particles: int) -> float:
    """Standard error of the log evidence of a pilot with few particles, by its number of temperatures; 0 for many.

    Half of the particles are effective at each temperature, whose variances of about one over their number add up.
    """
    few = pilot is not None and 0 < n_particles < FEW_PARTICLES
    return math.sqrt(pilot.n_temperatures / n_particles) if few else 0.0


def judge_fit(name: str, losses: list, weighted: WeightedSample, advice: str) -> dict:
    """Fitted attributes from losses and weighted evaluation draws; warns when the weights have no usable tail."""
    k, limit, share = weighted.pareto_k, weighted.pareto_k_limit, weighted.ess / len(weighted.log_weights)
    if k > limit:
        found = f"have Pareto k = {k:.2f} (above {limit:.3g}) and a normalised ESS of {share:.3f}"
        if not share:
            found = "are all zero, since none of the draws lies in the support"
        warn_user(
            f"{name} did not converge: the importance weights of {len(weighted.log_weights)} evaluation draws {found}, "
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
        "total_variation_": weighted.total_variation,
        "converged_": bool(k <= limit),
    }
