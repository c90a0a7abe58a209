"""Training that ends where more would bring nothing.

Statistical bounds hold for any seed; each states the probability at which it fails a correct implementation.
"""

import dataclasses
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cases import slow
from samplers import KINDS, make, quadratic

from skcds import Consistency, DiffusionSampler, PathLoss, Pilot, SelfConsistency
from skcds._support.progress import Progress
from skcds.estimators.paths import _bound, plateau_of_paths, renewals
from skcds.specifications import Particles, Stopping, Training
from skcds.train.loop import _Training
from skcds.train.phases import Phase
from skcds.train.plateau import Plateau, share_at_particles

EVERY_TENTH = Stopping(look_every=0.1, first=0.1, patience=2, gain=0.05, least=0.3, landing=0.2, min_iter=10)


def shares_of(*values):
    """A plateau that sees these effective shares in turn."""
    values = iter(values)
    return Plateau(lambda averaged: next(values), EVERY_TENTH, Progress())


def looks(plateau, iterations, n_iter=100, cost=0.0):
    """Iterations at which it looks, if each look costs a share of a limit."""
    found = []
    for i in iterations:
        if plateau.is_due(i, i / n_iter):
            plateau.reached(None)
            plateau.wait(i / n_iter, cost)
            found.append(i)
    return found


def test_renewals_are_due_at_shares_of_the_iterations():
    by = Particles(min_iter=100, exchanges_of_map=(0.25, 0.5), exchanges_from_prior=(0.1,))
    run = SimpleNamespace(training=Training(particles=by))
    due = [set(renewals(run, 4, n_iter, start)) for n_iter, start in ((100, True), (100, False), (99, True))]
    assert due == [{25, 50}, {10}, set()]


def test_bound_of_paths_counts_those_outside_the_support():
    """Of two in four: the mean of the others, less log 2; of none -inf."""
    log_weights = torch.tensor([1.0, -torch.inf, 3.0, -torch.inf])
    assert math.isclose(_bound(log_weights), 2 - math.log(2))
    assert _bound(log_weights[[1, 3]]) == -math.inf


@pytest.mark.parametrize("astray", [-1e9, -math.inf])
def test_bound_of_paths_is_not_decided_by_a_few(astray):
    """By a hundredth of them, but by two."""
    log_weights = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    mean = float(log_weights.mean())
    log_weights[:10] = astray
    assert abs(_bound(log_weights) - mean) < 0.1
    log_weights[:20] = astray
    assert _bound(log_weights) < (mean - 1e6 if math.isfinite(astray) else mean)


class TestShareAtParticles:
    @pytest.mark.parametrize("sd", [0.9, 1.2])
    def test_is_that_of_the_weights(self, sd):
        """Of N(0, sd^2) for N(0, 1): ``sqrt(2 sd^2 - 1) / sd^2``. The limit is six times the spread over seeds."""
        x = torch.randn(100_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        log_ratio = -0.5 * x**2 + 0.5 * (x / sd) ** 2 + math.log(sd)
        truth = math.sqrt(2 * sd**2 - 1) / sd**2
        assert abs(share_at_particles(log_ratio) - truth) < 0.024
        assert share_at_particles(log_ratio + 1e4) == pytest.approx(share_at_particles(log_ratio), rel=1e-6)

    def test_is_nothing_where_a_particle_is_out_of_reach(self):
        assert share_at_particles(torch.tensor([0.0, math.inf])) == 0.0
        assert share_at_particles(torch.tensor([0.0, math.nan])) == 0.0


class TestPlateau:
    def test_no_room_left(self):
        plateau = shares_of(0.5, 0.979, 0.981)
        assert [plateau.reached(None) for _ in range(3)] == [False, False, True]

    def test_no_growth(self):
        plateau = shares_of(0.5, 0.6, 0.7, 0.72, 0.74, 0.71)
        assert [plateau.reached(None) for _ in range(6)] == [False] * 4 + [True] * 2

    def test_growth_and_what_is_still_poor_go_on(self):
        assert not any(map(shares_of(0.4, 0.5, 0.6, 0.7, 0.8).reached, [None] * 5))
        assert not any(map(shares_of(0.2, 0.2, 0.2, 0.2, 0.2).reached, [None] * 5))

    def test_the_start_counts(self):
        """Later looks have to surpass it, unless all are poor."""
        assert list(map(shares_of(0.6, 0.5, 0.64).reached, [None] * 3)) == [False, False, True]
        assert not any(map(shares_of(0.6, 0.5, 0.66).reached, [None] * 3))
        assert not any(map(shares_of(0.2, 0.2, 0.2).reached, [None] * 3))

    def test_none_is_begun_with_that_has_no_room(self):
        assert shares_of(0.99).reached(None)

    def test_when_it_looks(self):
        """At the start, and by shares of the iterations, or of a limit where this is used faster."""
        assert looks(shares_of(*[0.5] * 10), range(100)) == [0, 10, 20, 30, 40, 50, 60, 70, 80, 90]
        plateau = Plateau(lambda averaged: 0.5, EVERY_TENTH, Progress(), start=0.0)
        assert looks(plateau, range(20), 20) == [10, 12, 14, 16, 18]

    def test_looks_that_take_long_are_rare(self):
        """They take a tenth of a limit at most, the first aside: each of .03 of it lets the next wait for .3."""
        assert looks(shares_of(*[0.5] * 10), range(100), cost=0.03) == [0, 30, 60, 90]

    def test_an_earlier_state(self):
        plateau, again = shares_of(0.6, 0.5), shares_of(0.64)
        assert looks(plateau, range(11)) == [0, 10]
        again.load_state_dict(plateau.state_dict())
        assert not again.is_due(19, 0.19) and again.is_due(20, 0.2) and again.reached(None)


def stopping(kind, **fields):
    """An unfitted sampler of a hundred iterations that looks at its progress."""
    training = Training(stopping=dataclasses.replace(EVERY_TENTH, **fields), n_judged=500)
    sampler = make(kind, max_iter=100)
    if kind == "DiffusionSampler":
        return sampler.set_params(loss=PathLoss(tol=fields.get("tol", 0.02), training=training))
    objective = Consistency if kind == "ConsistentSamplerDistiller" else SelfConsistency
    return sampler.set_params(objective=objective(training=training))


def stopping_loop(by, n_iter, shares):
    """A loop over a phase that ends by these effective shares, of which none is trained."""
    values, budget = iter(shares), SimpleNamespace(spent=lambda: 0.0, training=Training(), progress=Progress())
    phase = Phase("phase", None, n_iter, 1e-3, plateau=Plateau(lambda averaged: next(values), by, budget.progress))
    return _Training(phase, SimpleNamespace(model=torch.nn.Linear(1, 1), budget=budget))


class TestFits:
    @pytest.mark.parametrize("kind", [*slow(*KINDS[:2]), KINDS[2]])
    def test_end_early(self, kind):
        """With room for nine tenths the first look is the last; with none, and patience, all iterations are made."""
        first = 30 if kind == "DiffusionSampler" else 20  # the start of a map is looked at, too
        assert stopping(kind, tol=0.9).fit(quadratic).n_iter_ == first
        whole = stopping(kind, tol=0.0, patience=100).fit(quadratic)
        assert whole.n_iter_ == 100 and whole.history_[-1].n_iter == 100

    @pytest.mark.slow
    def test_a_fit_is_as_good(self):
        """By default a fit may end within .02 of 1; chance takes less than .01 of 20 000 draws."""
        sampler = stopping("ConsistentSamplerScratch", tol=0.1).set_params(max_iter=400).fit(quadratic)
        assert sampler.n_iter_ < 400
        assert sampler.sample_weighted(20_000, random_state=0).ess > 0.85 * 20_000

    def test_the_learning_rate_falls_to_its_end(self, monkeypatch):
        rates = []
        step = _Training._step
        monkeypatch.setattr(
            _Training,
            "_step",
            lambda self, i, p: (step(self, i, p), rates.append(self.state.optimizer.learning_rate))[0],
        )
        sampler = stopping("ConsistentSamplerScratch", tol=0.9).fit(quadratic)
        assert sampler.n_iter_ == len(rates) == 20
        assert all(later < earlier for earlier, later in itertools.pairwise(rates[1:]))
        assert rates[-1] < 0.1 * rates[1]

    @pytest.mark.slow
    def test_a_loss_on_paths_still_follows(self):
        sampler = stopping("DiffusionSampler", tol=0.0).set_params(loss__share=0.2).fit(quadratic)
        assert [record.n_iter for record in sampler.history_] == [80, 20]

    @pytest.mark.parametrize("needs_score, left, looks", [(True, 1e6, False), (True, 2e6, True), (False, 1e5, True)])
    def test_without_evaluations_for_looks_there_are_none(self, needs_score, left, looks):
        """Twenty looks at a hundred paths of 64 steps take 130 000 evaluations where scores are read, and 2000 else."""
        budget = SimpleNamespace(energy_evals_left=lambda: left, progress=Progress())
        run = SimpleNamespace(budget=budget, training=Training(), model=SimpleNamespace(needs_score=needs_score))
        assert (plateau_of_paths(run, 64, 1000, 0.02) is not None) == looks

    @pytest.mark.slow
    def test_the_teacher_of_a_student_ends_with_what_serves_it(self):
        student = stopping("ConsistentSamplerDistiller").set_params(teacher=None, n_features=3, max_iter=8)
        student.set_params(start=Pilot((0.0, 2.0), n_particles=500))
        teacher = student.fit(quadratic).teacher_
        assert teacher.max_iter == 4 and teacher.loss.tol == 0.2
        assert isinstance(teacher, DiffusionSampler) and np.isfinite(teacher.ess_)

    def test_a_limit_of_time_brings_its_end_nearer(self):
        """Looks and the fall of the learning rate go by the share of a limit, where that is used faster."""
        training = stopping_loop(by=EVERY_TENTH, n_iter=1000, shares=[0.5, 0.5, 0.5])
        done = [training._done(i, now) for i, now in ((0, 0.0), (20, 0.1), (25, 0.2), (30, 0.3), (40, 0.5))]
        assert done == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.5])
        for i, share in zip((0, 20, 25), done, strict=False):
            training._look(i, share)
        assert training.landing == pytest.approx(0.2)
        assert [training._progress(share) for share in done[2:4]] == pytest.approx([0.2, 0.6])
        assert training._progress(0.4) >= 1

    @pytest.mark.parametrize("stop", [5, *slow(15)])
    def test_goes_on_bit_for_bit(self, stop, tmp_path, monkeypatch):
        """Interrupted while the learning rate falls."""
        whole, step = stopping("ConsistentSamplerScratch", tol=0.9).fit(quadratic), _Training._step

        def interrupted(self, iteration, progress):
            if iteration == stop:
                raise KeyboardInterrupt
            return step(self, iteration, progress)

        with monkeypatch.context() as patch:
            patch.setattr(_Training, "_step", interrupted)
            first = stopping("ConsistentSamplerScratch", tol=0.9).fit(quadratic, checkpoint=tmp_path / "fit")
        assert first.n_iter_ == stop
        again = stopping("ConsistentSamplerScratch", tol=0.9).fit(quadratic, checkpoint=tmp_path / "fit")
        assert again.n_iter_ == 20 and again.loss_curve_ == whole.loss_curve_
