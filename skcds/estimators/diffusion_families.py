"""How a diffusion sampler is fitted to a family: a control that reads the context, by score matching."""

__all__ = ["OF_CHAINS"]

import functools
import math
import time
from collections.abc import Callable, Iterator

from torch import Tensor

from .._support.devices import randn
from ..density.families import FamilyEnergy, FamilyTarget
from ..explore.tempered_run import finest_scale
from ..models.conditional_diffusion import ConditionalDiffusionModel
from ..train.objectives.denoising import FamilyDenoising
from ..train.objectives.family import Renewal
from ..train.particles import Population
from ..train.phases import Phase
from .control import FINAL_NOISE, ControlStart
from .families import BY_PARTICLES, HELD_OUT, FamilyKind, check_start, training_of
from .paths import GAUGED, JUDGEMENT_MARGIN, LARGEST_RESERVE, affordable_paths
from .warm import check_same_networks

EMA_DECAY = 0.998


class ChainKind(FamilyKind):
    """The fit of a chain: score matching on the particles of all contexts, with exact path weights for each."""

    model = ConditionalDiffusionModel
    advice = "Raise max_iter or n_steps, or check the energy function."
    held_out_each = 100

    def check(self, sampler, energy: FamilyEnergy) -> None:
        """As `FamilyKind.check`."""
        check_start(sampler)
        if sampler._specified("loss").share:
            raise ValueError(f"{BY_PARTICLES} a loss on paths has no part in it, so loss has to have share=0.")
        if not energy.has_gradient:
            raise ValueError(
                "A DiffusionSampler learns a family by scores, and this energy has no gradient: pass grad_fn=, or fit "
                "a ConsistentSamplerScratch."
            )

    def check_networks(self, sampler, energy: FamilyEnergy, config: dict) -> None:
        """As `FamilyKind.check_networks`."""
        check_same_networks(sampler._networks_wanted(energy), sampler._networks_found(config))

    def new_model(self, sampler, run) -> ConditionalDiffusionModel:
        """As `FamilyKind.new_model`, with noise levels down to the finest scale of all particles."""
        control, energy = sampler._specified("network"), run.energy
        contexts, *parts = run.population.anchors.parts()
        z, log_prob, score = (part.flatten(0, 1) for part in parts)
        population = Population(run.target.given(contexts), z, run.generator, known=(log_prob, score))
        width = finest_scale(population)
        reads_score = ControlStart(sampler, control, sampler._specified("loss")).reads_score(energy, run.budget)
        model = ConditionalDiffusionModel(
            energy.n_features, energy.n_contexts, -2 * math.log(FINAL_NOISE * float(width.min())),
            control.hidden_features, control.n_layers, reads_score, control.variance == "learned", sampler.reference,
        )  # fmt: skip
        model.network.width = width
        return model

    def recipe(self, sampler, run) -> Iterator[Phase]:
        """As `FamilyKind.recipe`."""
        n_iter, by, groups = sampler.max_iter, training_of(sampler), run.population
        particles = run.training.particles
        self._gauge(sampler, run)
        rows = by.anchors_moved * by.n_each * (1 + by.n_moves)
        every = run.budget.spacing(particles.move_every, rows, n_iter, particles.moves_share)
        loss = FamilyDenoising(run.model, groups, sampler.n_steps, sampler.batch_size, run.generator)

        def move(averaged) -> None:
            groups.move_anchors(min(by.anchors_moved, len(groups.anchors)), by.n_moves)

        callbacks: dict[int, Callable] = dict.fromkeys(range(every, n_iter, every), move)
        if n_iter >= particles.min_iter:
            renew = functools.partial(self._renew, sampler, run)
            callbacks |= {int(share * n_iter): renew for share in particles.exchanges}
        yield Phase("score matching", loss, n_iter, sampler.learning_rate, ema_decay=EMA_DECAY, callbacks=callbacks)

    def _gauge(self, sampler, run) -> None:
        """Find the seconds that a path takes, with a limit of time, of which those of the judgement are kept."""
        budget = run.budget
        if budget.max_time is None:
            return
        contexts, start = run.population.anchors.contexts[:GAUGED], time.perf_counter()
        each = max(1, GAUGED // len(contexts))
        with budget.judgement():
            self.weighted(sampler, run.model, contexts, each, run.target, run.generator)
        run.seconds_a_path = (time.perf_counter() - start) / (each * len(contexts))
        judgement = JUDGEMENT_MARGIN * run.seconds_a_path * HELD_OUT * self.held_out_each
        budget.time_reserve = max(budget.time_reserve, min(budget.max_time * LARGEST_RESERVE, judgement))

    def _renew(self, sampler, run, averaged) -> None:
        """New particles by paths, of as many contexts as the limits allow."""
        by, groups = training_of(sampler), run.population
        n = affordable_paths(by.n_groups * by.draws_each, run)
        share = run.training.particles.paths_share
        n = min(n, share * run.budget.energy_evals_left() / self.evals_of(sampler, averaged))
        if n < run.training.particles.fewest_paths:
            return

        def weigh(model, contexts: Tensor, each: int):
            return self.weighted(sampler, model, contexts, each, groups.target, run.generator)

        few = by.set_params(n_groups=max(1, int(n) // by.draws_each))
        Renewal(groups, run.energy.source, run.budget.progress, few, weigh)(averaged)

    def evals_of(self, sampler, model) -> int:
        """As `FamilyKind.evals_of`."""
        return 1 + sampler.n_steps * model.needs_score

    def weighted(self, sampler, model, contexts: Tensor, each: int, target: FamilyTarget, generator):
        """As `FamilyKind.weighted`, with weights of paths."""

        def normal(k):
            return randn(generator, len(contexts) * each, model.n_features)

        grid = model.grid(sampler.n_steps)
        return model.given(contexts).simulate_weighted(normal(0), grid, target.given(contexts), normal)


OF_CHAINS = ChainKind()
