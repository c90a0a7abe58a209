"""How samplers are fitted to a family of densities: exploration, one phase of training, judgement.

What differs between the samplers is a `FamilyKind`. That of the one-step samplers is here.
"""

__all__ = ["OF_MAPS", "FamilyKind", "check_start", "fit_family", "identity_of_family"]

import copy
import math
import time
from collections.abc import Iterator

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from .._support.devices import generator_on, randint, randn, to_numpy
from .._support.warnings import warn_user
from ..density.families import FamilyDensity, FamilyEnergy, FamilyTarget
from ..density.regression import FamilyStandardization
from ..explore.families import explore_family
from ..explore.specifications import Pilot
from ..io.packing import built
from ..io.plain import described
from ..io.registry import key_of
from ..models.conditional import ConditionalModel, conditional_sizes
from ..models.networks import seeded
from ..train.checkpoint import identity_of
from ..train.groups import ParticleGroups
from ..train.objectives.family import FamilyLikelihood, Renewal, renewal_spacing
from ..train.phases import Phase
from ..train.specifications import FamilyTraining
from ..weights.importance import effective_sample_size, log_evidence, pareto_k, pareto_k_limit, total_variation
from .judgement import advice_by_cause
from .warm import MIN_SHARE, check_same_networks, warn_of_a_cold_start

BATCH_SIZE = 512
WEIGHT_DECAY, EMA_DECAY = 1e-2, 0.995
HELD_OUT, FEWEST_EACH = 100, 50  # contexts that a fit is judged by, and draws of each
BY_PARTICLES = "A family of densities is learned on its own particles:"
N_CHECKED = 500  # particles at which single precision is compared with double
N_KEPT = 1000  # contexts of the fit that the sampler keeps
CONVERGED_SHARE = 0.9  # of the held-out contexts whose weights have to be reliable
MIN_CONTEXTS = 10  # of an array


class FamilyKind:
    """What a kind of sampler does of its own in the fit of a family: here, that of the one-step samplers.

    Attributes
    ----------
    model : type
        Class of its models.
    advice : str
        What to do about a fit that did not converge.
    held_out_each : int
        Evaluation draws of a context.
    """

    model: type = ConditionalModel
    advice = "Raise max_iter or the sizes of the map."
    held_out_each = 500

    def check(self, sampler, energy: FamilyEnergy) -> None:
        """Refuse parameters that mean nothing for a family.

        Raises
        ------
        ValueError
            Which names the parameter.
        """
        network = sampler._specified("network")
        if network.kind != "coupling":
            raise ValueError(
                "A family of densities needs exact weights for every context: network has to be 'coupling'."
            )
        objective = sampler._specified("objective")
        if getattr(sampler, "teacher", None) is not None:
            raise ValueError(f"{BY_PARTICLES} it needs no teacher, so teacher has to be None.")
        check_start(sampler)
        if not objective.refine or getattr(objective, "schedule", "separate") != "separate":
            raise ValueError(
                f"{BY_PARTICLES} objective needs refine=True, and schedule='separate' if it has one; got {objective!r}."
            )

    def check_networks(self, sampler, energy: FamilyEnergy, config: dict) -> None:
        """Refuse a warm start from networks of other sizes."""
        check_same_networks(sampler._specified("network").sizes(), config)

    def new_model(self, sampler, run):
        """An untrained model."""
        sizes = conditional_sizes(run.energy.n_features, **sampler._specified("network").sizes())
        return ConditionalModel("coupling", run.energy.n_features, run.energy.n_contexts, **sizes)

    def recipe(self, sampler, run) -> Iterator[Phase]:
        """Phases of the training."""
        n_iter, batch_size, by = sampler.max_iter, settings_of(sampler)["batch_size"], training_of(sampler)
        renewal = Renewal(run.population, run.energy.source, run.budget.progress, by)
        every = renewal_spacing(run.budget, n_iter, by)
        loss = FamilyLikelihood(run.model, run.population, max(1, batch_size // by.n_each), by.regression)
        callbacks = dict.fromkeys(range(every, n_iter, every), renewal)
        yield Phase(
            "likelihood", loss, n_iter, sampler.learning_rate, WEIGHT_DECAY, ema_decay=EMA_DECAY, callbacks=callbacks
        )

    def evals_of(self, sampler, model) -> int:
        """Evaluations that a weighted draw takes."""
        return 1

    def weighted(self, sampler, model, contexts: Tensor, each: int, target: FamilyTarget, generator):
        """Draws (m r, d) for contexts (m, k), and their exact log weights (m r,)."""
        latent = randn(generator, len(contexts) * each, model.n_features)
        return model.given(contexts).call_and_log_weight(latent, target.given(contexts))


OF_MAPS = FamilyKind()


def settings_of(sampler) -> dict[str, int]:
    """What a family's fit takes from the parameters of a sampler, which have other names in each."""
    of_map = getattr(loss_of(sampler), "batch_size", sampler.batch_size)
    start = sampler._specified("start")
    n_groups = max(1, start.n_particles // start.family.n_each)
    return {"n_particles": start.n_particles, "n_groups": n_groups, "batch_size": of_map or BATCH_SIZE}


def tempered_each(sampler) -> int:
    """Particles of a context in the tempering."""
    return sampler._specified("start").family.n_each


def loss_of(sampler):
    """The specification that says how a sampler trains."""
    return sampler._specified("objective" if "objective" in sampler._short_cuts else "loss")


def training_of(sampler) -> FamilyTraining:
    """How a sampler trains on a family."""
    return loss_of(sampler).family


def check_start(sampler) -> None:
    """Refuse a start that no family has, and groups of more particles than the exploration has.

    Raises
    ------
    ValueError
        Which names the parameter.
    """
    start = sampler._specified("start")
    if not isinstance(start, Pilot):
        raise ValueError(f"{BY_PARTICLES} start has to be a Pilot, points, or a location and a scale; got {start!r}.")
    if training_of(sampler).n_each > start.family.n_each:
        raise ValueError(f"{BY_PARTICLES} n_each of the loss's family has to be at most start.family.n_each.")


def _check(sampler, energy: FamilyEnergy, density: FamilyDensity) -> None:
    """Refuse parameters that mean nothing for a family, too few contexts, and draws that are not those of these."""
    sampler._family.check(sampler, energy)
    rows = energy.source.rows
    if rows is not None and len(rows) < MIN_CONTEXTS:
        raise ValueError(
            f"contexts has {len(rows)} rows, of which no family can be learned: pass at least {MIN_CONTEXTS}, better "
            "hundreds, or a function contexts(n, rng) that draws them."
        )
    if density.draws is not None:
        _checked_draws(density.draws, rows, energy)


def _checked_draws(draws, rows: np.ndarray | None, energy: FamilyEnergy) -> Tensor:
    """Draws (m, d) of the rows' densities, in unconstrained coordinates."""
    if rows is None:
        raise ValueError("draws= are one for each context: pass contexts= as an array of as many rows.")
    try:
        x = np.array(draws, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"draws has to be an array of numbers; got {type(draws).__name__}.") from None
    if x.shape != (len(rows), energy.n_features) or not np.isfinite(x).all():
        raise ValueError(
            f"draws has to be a finite array of shape ({len(rows)}, {energy.n_features}), a point for each row of "
            f"contexts; got shape {x.shape}."
        )
    points = torch.from_numpy(x).to(energy.device)
    return points if energy.bounds is None else energy.bounds.inverse(points)


def fit_family(sampler, run, density: FamilyDensity) -> dict:
    """Start, train, judge, as `BaseSampler._fit` does."""
    _check(sampler, run.energy, density)
    _begin(sampler, run, density)
    run.train(sampler._family.recipe(sampler, run))
    found = _judge(sampler, run)
    absent = {
        "pilot_": None,
        "teacher_": None,
        "_particles_log_prob": None,
        "_particles_score": None,
        "_weighed": None,
    }
    group = run.population.anchors
    x = run.model.standardization.given(group.contexts)(group.z.flatten(0, 1))
    rest = absent | {"violation_share_": 0.0, "particles_": to_numpy(x), "n_steps_": getattr(sampler, "n_steps", 1)}
    declared = {name for cls in type(sampler).__mro__ for name in vars(cls).get("_fitted_attributes", {})}
    kept = {name: value for name, value in rest.items() if name in declared}
    return {"_model": run.model, "history_": run.history, **kept, **run.fitted, **found}


def identity_of_family(sampler, energy: FamilyEnergy, density: FamilyDensity) -> dict:
    """What a fit that goes on from a checkpoint has to have in common with it."""
    one = energy.given(energy.source.draw(1, generator_on(energy.device, 0)))
    contexts = "a function" if energy.source.rows is None else described(energy.source.rows)
    draws = None if density.draws is None else described(np.asarray(density.draws))
    return identity_of(sampler, one) | {"contexts": contexts, "draws": draws}


# -------------------------------------------------------------------- start


def _begin(sampler, run, density: FamilyDensity) -> None:
    """Model, target and particles: from the checkpoint, an earlier fit, simulated pairs, or an exploration."""
    stored = run.checkpoint.restore("start")
    if stored is not None:
        _restart(sampler, run, stored)
        return
    earlier = sampler._model if sampler.warm_start and hasattr(sampler, "_model") else None
    if earlier is None or not _continue(sampler, run, earlier):
        contexts, x = _particles(sampler, run, density)
        some = max(1, N_CHECKED // x.shape[1])
        run.energy.given(contexts[:some]).check_fast_dtype(x[:some].flatten(0, 1))
        _set_out(run, FamilyStandardization.fitted(contexts, x))
        run.population = _groups(sampler, run, contexts, x)
        run.model = _new_model(sampler, run)
    run.checkpoint.store(
        "start",
        {
            "model": {"class": key_of(type(run.model)), "config": dict(run.model.config)},
            "weights": run.model.state_dict(),
            "population": run.population.state_dict(),
            "bounds": run.energy.bounds and run.energy.bounds.choices,
        },
    )


def _particles(sampler, run, density: FamilyDensity) -> tuple[Tensor, Tensor]:
    """Contexts (m, k), and particles (m, r, d) of each."""
    energy, generator = run.energy, run.generator
    if density.draws is not None:
        contexts = torch.from_numpy(energy.source.rows).to(energy.device)
        x = _checked_draws(density.draws, energy.source.rows, energy)
        if energy.bounds is not None and energy.bounds.periodic.any():
            points = energy.bounds(x)
            energy.bounds = energy.bounds.cut_open(points)
            x = energy.bounds.inverse(points)
        kept = torch.randperm(len(x), generator=generator, device=generator.device)
        kept = kept[: 2 * settings_of(sampler)["n_particles"] // tempered_each(sampler)]
        return contexts[kept], x[kept][:, None].expand(-1, training_of(sampler).n_each, -1)
    start = sampler._find_start(energy.n_features, energy.bounds, energy.energy_fn)
    n_groups = settings_of(sampler)["n_groups"]
    found = explore_family(
        energy, n_groups, generator, run.budget, start and start.to(energy.device), sampler._specified("start")
    )
    if not len(found.contexts):
        raise ValueError("At none of the contexts a particle met the support of the density: pass start= or bounds=.")
    each = training_of(sampler).n_each
    n_parts = tempered_each(sampler) // each
    x = found.x[:, : n_parts * each].reshape(-1, each, energy.n_features)
    return found.contexts.repeat_interleave(n_parts, 0), x


def _set_out(run, standardization: FamilyStandardization) -> None:
    energy = run.energy
    run.target = FamilyTarget(energy, standardization, energy.fast_dtype)


def _groups(sampler, run, contexts: Tensor, x: Tensor) -> ParticleGroups:
    return ParticleGroups(run.target, contexts, x, run.generator, training_of(sampler))


def _new_model(sampler, run):
    with seeded(int(randint(run.generator, 0, 2**31 - 1))):
        model = sampler._family.new_model(sampler, run)
    model.standardization = run.target.standardization
    return model.to(run.energy.device)


def _restart(sampler, run, stored: dict) -> None:
    """What was begun with, from the checkpoint."""
    energy = run.energy
    if energy.bounds is not None:
        energy.bounds = energy.bounds.chosen(stored["bounds"])
    run.model = built(stored["model"]["class"], stored["model"]["config"])
    run.model.load_state_dict(stored["weights"])
    run.model.to(energy.device)
    _set_out(run, run.model.standardization)
    run.population = ParticleGroups.of_state(run.target, stored["population"], run.generator, training_of(sampler))
    run.checkpoint.rewind("start")


def _continue(sampler, run, earlier) -> bool:
    """Go on from an earlier fit's map, whose draws become the particles; False where it is of no use."""
    energy = run.energy
    kind = sampler._family
    if not isinstance(earlier, kind.model):
        raise ValueError("warm_start=True goes on from a fit to a single density; set warm_start=False for a family.")
    found = earlier.config
    if (found["n_features"], found["n_contexts"]) != (energy.n_features, energy.n_contexts):
        raise ValueError(
            f"warm_start=True goes on from a fit of {found['n_features']} features and contexts of "
            f"{found['n_contexts']} numbers, and this family has {energy.n_features} and {energy.n_contexts}; set "
            "warm_start=False."
        )
    kind.check_networks(sampler, energy, found)
    run.model = copy.deepcopy(earlier).to(energy.device)
    _set_out(run, run.model.standardization)
    contexts, each = energy.source.draw(settings_of(sampler)["n_groups"], run.generator), tempered_each(sampler)
    z, log_weights = kind.weighted(sampler, run.model, contexts, each, run.target, run.generator)
    log_weights = log_weights.view(len(contexts), -1).nan_to_num(nan=-torch.inf)
    inside = (log_weights > -torch.inf).any(1)
    weights = torch.softmax(log_weights[inside], 1)
    if not inside.any() or float((1 / weights.square().sum(1)).mean()) / each < 2 * MIN_SHARE:
        warn_of_a_cold_start(type(sampler).__name__)
        return False
    index = torch.multinomial(weights, training_of(sampler).n_each, replacement=True, generator=run.generator)
    z = z.view(len(contexts), each, -1)[inside].gather(1, index[..., None].expand(-1, -1, z.shape[1]))
    x = run.target.standardization.given(contexts[inside])(z.flatten(0, 1)).view(z.shape)
    run.population = _groups(sampler, run, contexts[inside], x)
    return True


# -------------------------------------------------------------------- judgement


def _judge(sampler, run) -> dict:
    """Fitted attributes that held-out contexts tell; warns where the weights of too many of them are not reliable."""
    budget, source = run.budget, run.energy.source
    budget.progress.phase("judgement")
    contexts = source.draw(N_KEPT if source.rows is None else min(N_KEPT, len(source.rows)), run.generator)
    log_weights = _held_out(sampler, run, contexts)
    each = log_weights.shape[1]
    inside = np.isfinite(log_weights).any(1)
    shares = np.zeros(len(log_weights))
    shares[inside] = [effective_sample_size(row) / each for row in log_weights[inside]]
    limit = pareto_k_limit(each)
    reliable = np.array([pareto_k(row) <= limit for row in log_weights])
    estimates = np.array([log_evidence(row) for row in log_weights[inside]]).reshape(-1, 2)
    converged = bool(reliable.mean() >= CONVERGED_SHARE)
    if not converged:
        advice = advice_by_cause(budget, len(run.losses), sampler.max_iter, sampler._family.advice)
        warn_user(
            f"{type(sampler).__name__} did not converge: of {len(shares)} held-out contexts, the importance weights of "
            f"{int((~reliable).sum())} have a Pareto k above {limit:.3g}; the mean normalised ESS is "
            f"{shares.mean():.3f}. {advice}",
            ConvergenceWarning,
            "convergence",
        )
    n = max(len(estimates), 1)
    return {
        "n_contexts_in_": source.n_contexts,
        "contexts_": to_numpy(contexts),
        "loss_curve_": run.losses,
        "n_iter_": len(run.losses),
        "log_evidence_": float(estimates[:, 0].mean()) if inside.all() else -math.inf,
        "log_evidence_se_": float(np.sqrt((estimates[:, 1] ** 2).sum())) / n if len(estimates) else math.nan,
        "elbo_": float(log_weights.mean()),
        "ess_": float(shares.mean()),
        "total_variation_": float(np.mean([total_variation(row) for row in log_weights])),
        "converged_": converged,
    }


def _held_out(sampler, run, contexts: Tensor) -> np.ndarray:
    """Log weights (m, r) of draws for held-out contexts, as many as the limits allow."""
    budget, model, kind = run.budget, run.model, sampler._family
    target, contexts = FamilyTarget(run.energy, model.standardization), contexts[:HELD_OUT]
    evals = kind.evals_of(sampler, model)

    def weigh(contexts: Tensor, each: int) -> np.ndarray:
        _, log_weights = kind.weighted(sampler, model, contexts, each, target, run.generator)
        return to_numpy(log_weights).reshape(len(contexts), each)

    with budget.judgement():
        start = time.perf_counter()
        weigh(contexts[:1], FEWEST_EACH)
        a_row = (time.perf_counter() - start) / FEWEST_EACH
        n = budget.n_affordable(FEWEST_EACH * len(contexts), a_row, evals, FEWEST_EACH)
        contexts = contexts[: max(1, n // FEWEST_EACH)]
        start = time.perf_counter()
        first = weigh(contexts, FEWEST_EACH)
        a_row = (time.perf_counter() - start) / first.size
        wanted = (kind.held_out_each - FEWEST_EACH) * len(contexts)
        more = budget.n_affordable(wanted, a_row, evals, 0) // len(contexts)
        return np.concatenate([first, weigh(contexts, more)], 1) if more else first
