"""What the one-step samplers share: exact weights of the map, held-out ones too, and the check for folds."""

import dataclasses
import time

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted

from .._support.devices import randn, to_numpy
from .._support.errors import Spent
from .._support.forks import seed_of
from .._support.settings import guest
from .._support.validation import check_count
from .._support.warnings import warn_user
from ..density.function import Density
from ..density.standardize import StandardizedTarget
from ..weights.injectivity import check_injectivity
from ..weights.polish import Acceptance, PolishedSample, polish
from ..weights.rejection import RejectionLimit, draw_by_rejection, rejection_limit, warn_of_loss
from ..weights.sample import WeightedSample
from .base import BaseSampler
from .comparison import keep_the_better_map
from .densities import WithDensity
from .family_methods import WithDensityOfFamilies
from .given import is_given, one_given
from .paths import RAISING
from .sampling import normal_streams

N_INJECTIVITY = 2_000
FEWEST_EVALUATION_DRAWS, PART = 200, 2000  # of the first and of later parts, which end with the time
N_LOOKED_AT, LOOK_STREAM = 10_000, 2**31  # weighted draws that exact ones are planned by; their own random numbers
GAUGED = 40  # draws by which the time of the check for folds is measured


class OneStepSampler(WithDensityOfFamilies, WithDensity, BaseSampler):
    """Samplers whose ``_model`` has a ``map`` from the prior to the target, and its exact weights."""

    violation_share_: float

    _fitted_attributes: dict = {"violation_share_": "number"}

    def _drawn_together(self, normal, options: dict):
        """Draws (m r, d) of the contexts that a sampler is bound to."""
        return self._model.mapped(normal(0))[0]

    def _weighed_together(self, normal, target, options: dict):
        """Draws (m r, d) of the contexts that a sampler is bound to, and their log weights (m r,)."""
        return self._model.call_and_log_weight(normal(0), target)

    def _judge(self, run):
        keep_the_better_map(run)
        weighted, run.fitted["violation_share_"] = self._hold_out(run)
        return weighted

    def _hold_out(self, run) -> tuple[WeightedSample, float]:
        """One-step evaluation draws with their weights, and the share of violations of injectivity among them."""
        model, budget = run.model, run.budget
        target = StandardizedTarget.reported(run.energy, model.standardization)
        budget.progress.phase("judgement")
        total, parts, done = run.training.n_judged, [], 0
        latent = randn(run.generator, total, model.n_features)
        first, a_draw = FEWEST_EVALUATION_DRAWS, 1
        if run.energy.n_raised:  # rows at which a call raises are found by halving it
            first, a_draw = FEWEST_EVALUATION_DRAWS // RAISING, RAISING
        with budget.judgement():
            start = time.perf_counter()
            while done < total:
                a_row = (time.perf_counter() - start) / done if done else 1 / target.energy.evals_per_second
                least = 0 if done else first
                n = budget.n_affordable(min(PART if done else first, total - done), a_row, a_draw, least)
                if not n and done:
                    break
                try:
                    parts.append(model.call_and_log_weight(latent[done : done + max(n, 2)], target))
                except Spent:
                    if not done:
                        raise
                    break
                done += max(n, 2)
        z, log_weights = (torch.cat(part) for part in zip(*parts, strict=True))
        share = _violation_share(model.map, latent[:done], model.start(), budget)
        return WeightedSample(to_numpy(model.standardization(z)), to_numpy(log_weights), not share), share

    @guest
    def sample_polished(self, n, n_moves=50, random_state=None, *, context=None, energy_fn=None, grad_fn=None):
        """One-step draws that were moved by Markov steps: exact in the limit of many, however poor the fit.

        Steps of two kinds take turns in the latent space of the map: proposals of new one-step draws, accepted by the
        exact weights (independence Metropolis-Hastings), and Metropolis-adjusted Langevin steps where the energy has a
        gradient. A draw is a chain of its own, so that the draws stay independent of each other. What neither kind of
        step reaches, such as a mode that the map has no draws of and that is far from all others, stays missing.

        Parameters
        ----------
        n : int
            Number of draws.
        n_moves : int, default=50
            Steps of every draw; each costs an evaluation of the energy (and of its gradient).
        random_state : int, RandomState instance, numpy.random.Generator or None, default=None
            Seed; without moves the draws are those of ``sample(n, random_state=random_state)``.
        context : array-like of shape (n_contexts,), optional
            Which density of a family.
        energy_fn, grad_fn : callable, optional
            The energy, for a sampler that was loaded without it.

        Returns
        -------
        PolishedSample
            ``samples``, ``independence_acceptance``, ``langevin_acceptance``, ``n_energy_evals``.

        Raises
        ------
        ValueError
            For a residual map, whose weights are not known to be exact.
        """
        check_is_fitted(self)
        if is_given(self, context):
            options = {"energy_fn": energy_fn, "grad_fn": grad_fn}
            return one_given(self, context, options).sample_polished(n, n_moves, random_state)
        n_moves = check_count(n_moves, "n_moves", 0)
        target = self._polish_target(Density.of(energy_fn, grad_fn))
        independence, langevin = Acceptance(), Acceptance()
        n = check_count(n, "n", 0)

        def draw(normal):
            return polish(self._model, target, normal, n_moves, independence, langevin)

        samples = self._draws(n, self._drawn_chunks(n, seed_of(random_state), draw))
        evals = target.energy.n_energy_evals
        return PolishedSample(samples, n_moves, independence.rate, langevin.rate, evals)

    def _polish_plan(self, n_moves, n_steps, density):
        """As `_plan`, for one-step draws that are moved."""
        if n_steps != 1:
            raise ValueError(f"polish= moves one-step draws; got n_steps={n_steps}.")
        target = self._polish_target(density)
        return lambda normal: polish(self._model, target, normal, n_moves, Acceptance(), Acceptance())

    def _polish_target(self, density):
        if not self._model.map.invertible:
            raise ValueError(
                "Polishing needs exact weights, which a residual map has not: fit with network='coupling'."
            )
        energy = self._target(density, "Polishing").energy
        return StandardizedTarget(energy, self._model.standardization)

    def _prepared(self, options):
        if options.get("exact") is True:
            self._check_exact(**options)
            return options | {"exact": self._look_at_weights(self._target(options["density"], "exact=True"))}
        return options

    def _exact_plan(self, exact, density, **options):
        """As `_plan`, for one-step draws by rejection; `exact` is True, or the limit that was found before."""
        self._check_exact(**options)
        target = self._target(density, "exact=True")
        limit = exact if isinstance(exact, RejectionLimit) else self._look_at_weights(target)
        return lambda normal: draw_by_rejection(self._model, target, normal, limit)

    def _check_exact(self, *, n_steps=1, polish=0, return_log_density=False, **options):
        """Refuse options of `sample` that do not go with ``exact=True``."""
        if n_steps != 1 or polish or return_log_density:
            name = "n_steps > 1" if n_steps != 1 else "polish=" if polish else "return_log_density=True"
            raise ValueError(f"exact=True keeps one-step draws by their weights, and {name} does not go with it.")
        if not self._model.map.invertible:
            raise ValueError("exact=True needs exact weights, which a residual map has not: fit network='coupling'.")

    def _look_at_weights(self, target) -> RejectionLimit:
        """Where weights are truncated, by draws that are the same whatever is asked for."""
        shape = N_LOOKED_AT, self._model.n_features
        latent = normal_streams(0, 0, shape, self._model.device, self._stream_key)(LOOK_STREAM)
        limit = rejection_limit(to_numpy(self._model.call_and_log_weight(latent, target)[1]))
        warn_of_loss(limit)
        return limit

    @torch.no_grad()
    def _weigh(self, z, target, generator):
        if not self._model.map.invertible:
            return None
        return target.log_prob(z) - self._model.log_prob(z).double()

    def _weigh_map(self, n, random_state, target, step_map, call_and_log_weight) -> WeightedSample:
        """Draws of a map with exact weights; where violations of injectivity are found they are no bound, and warn."""
        first: list[torch.Tensor] = []  # latents of the first chunk

        def draw(normal):
            latent = normal(0)
            first.append(latent[: 0 if first else N_INJECTIVITY])
            return call_and_log_weight(latent, target)

        weighted = self._weighted_draws(n, random_state, target, draw, is_bound=True)
        share = _violation_share(step_map, first[0], self._model.start())
        share = max(share, 0.0 if step_map.invertible else self.violation_share_)
        if not share:
            return weighted
        warn_user(
            f"The map is not injective (violations at {share:.2%} of the draws checked): its weights are not those of "
            "a density, and the mean log weight is no bound. network='coupling' has exact weights.",
            ConvergenceWarning,
        )
        return dataclasses.replace(weighted, is_bound=False, violation_share=share)


def _violation_share(step_map, latent, level, budget=None) -> float:
    if step_map.invertible:
        return 0.0
    n = N_INJECTIVITY
    if budget is not None and budget.max_time is not None:
        start = time.perf_counter()
        check_injectivity(step_map, latent[:GAUGED], level)
        n = budget.n_affordable(n, (time.perf_counter() - start) / GAUGED, 0, GAUGED)
    return check_injectivity(step_map, latent[:n], level, n_search=max(n // 4, 1)).violation_share
