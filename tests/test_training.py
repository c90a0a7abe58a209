"""The training loop: convergence, averaging, clipping, schedule, budgets, callbacks and the progress bar."""

import contextlib
import math
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning

from skcds._support.errors import Spent
from skcds._support.progress import Progress
from skcds.specifications import Training
from skcds.train import budget as budget_module
from skcds.train import loop as training
from skcds.train.budget import Budget
from skcds.train.loop import _schedule
from skcds.train.objectives.base import InTurn, Objective, Sum
from skcds.train.phases import Phase
from skcds.train.run import Run

UNLIMITED = Budget(None, None, energy=SimpleNamespace(n_energy_evals=0))


class Vector(torch.nn.Module):
    """A parameter vector."""

    def __init__(self, *values):
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(values))


class Clock:
    """Stands in for the time module of the training loop."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now


class Function(Objective):
    """A function of the iteration as an objective."""

    def __init__(self, function):
        self.function = function

    def __call__(self, iteration):
        return self.function(iteration)


def train(model, loss, *, max_iter, budget, description="", **options):
    """The average of a model that was trained in one phase, and the losses."""
    run = Run(None, budget, torch.Generator(), model=model)
    run.train([Phase(description, Function(loss), max_iter, **options)])
    return run.model, run.losses


def steps(max_iter, budget=UNLIMITED, spend=lambda iteration: None, **options):
    """Step lengths of Adam under a constant gradient: the learning rates of the iterations."""
    model, trace = Vector(0.0), []

    def loss(iteration):
        trace.append(model.value.item())
        spend(iteration)
        return model.value.sum()

    options = {"learning_rate": 1.0, **options}
    _, losses = train(model, loss, max_iter=max_iter, budget=budget, **options)
    return -torch.tensor([*trace, model.value.item()]).diff(), losses


class TestConvergence:
    def test_least_squares(self):
        generator = torch.Generator().manual_seed(0)
        design, noise = torch.randn(50, 3, generator=generator), torch.randn(50, generator=generator)
        y = design @ torch.tensor([1.0, -2.0, 0.5]) + 0.1 * noise
        exact = torch.linalg.lstsq(design, y[:, None]).solution[:, 0]
        model = Vector(0.0, 0.0, 0.0)
        averaged, losses = train(
            model,
            lambda iteration: ((design @ model.value - y) ** 2).mean(),
            max_iter=600, budget=UNLIMITED, learning_rate=0.1, ema_decay=0.98,
        )  # fmt: skip
        torch.testing.assert_close(model.value.detach(), exact, rtol=0, atol=1e-3)
        torch.testing.assert_close(averaged.value, exact, rtol=0, atol=1e-3)
        assert len(losses) == 600 and losses[-1] < 1e-2 * losses[0]

    def test_losses(self):
        losses = train(Vector(3.0), lambda i: torch.tensor(float(i), requires_grad=True), max_iter=4, budget=UNLIMITED)
        assert losses[1] == [0.0, 1.0, 2.0, 3.0]

    def test_weight_decay(self):
        def end(weight_decay):
            model = Vector(1.0)
            train(model, lambda i: 0.0 * model.value.sum(), max_iter=50, budget=UNLIMITED, weight_decay=weight_decay)
            return model.value.item()

        assert end(0.0) == 1 and 0 < end(10.0) < 0.9

    def test_is_reproducible_and_leaves_the_global_state_alone(self):
        state = torch.get_rng_state()
        assert torch.equal(steps(20)[0], steps(20)[0])
        assert torch.equal(torch.get_rng_state(), state)


class TestAverage:
    @pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
    def test_is_exponential(self, decay):
        model, after = Vector(0.0), []

        def loss(iteration):
            if iteration:
                after.append(model.value.item())
            return model.value.sum()

        averaged, _ = train(model, loss, max_iter=10, budget=UNLIMITED, learning_rate=1.0, ema_decay=decay)
        expected, *rest = [*after, model.value.item()]
        for n, value in enumerate(rest, 1):
            now = min(decay, (1 + n) / (10 + n))  # it forgets its start faster than what comes later
            expected = now * expected + (1 - now) * value
        assert averaged.value.item() == pytest.approx(expected, rel=1e-6)
        assert decay == 0 or averaged.value.item() > model.value.item() + 0.1  # it lags

    def test_is_returned_without_gradients(self):
        model = Vector(1.0)
        averaged, _ = train(model, lambda i: model.value.sum(), max_iter=3, budget=UNLIMITED)
        assert type(averaged) is Vector and averaged is not model
        assert not averaged.value.requires_grad and not averaged.training
        assert model.value.requires_grad

    def test_without_an_iteration(self):
        model = Vector(1.0)
        averaged, losses = train(model, lambda i: model.value.sum(), max_iter=0, budget=UNLIMITED)
        assert losses == [] and averaged.value.item() == 1 and not averaged.value.requires_grad


class TestGradients:
    @pytest.mark.parametrize("scale, norm", [(1e6, 1.0), (0.1, 0.5)])
    def test_are_clipped(self, scale, norm):
        model = Vector(0.0, 0.0)
        direction = scale * torch.tensor([3.0, 4.0])
        train(model, lambda i: (direction * model.value).sum(), max_iter=1, budget=UNLIMITED)
        torch.testing.assert_close(model.value.grad, norm * torch.tensor([0.6, 0.8]), rtol=1e-4, atol=0)

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("where", ["gradient", "loss"])
    def test_what_is_not_finite_is_gone_back_from(self, bad, where):
        """To the state of the last multiple of 25 iterations, at half the rate, which grows again by 2 % a step."""
        model, values, averages = Vector(0.0, 0.0), [], []

        def loss(iteration):
            values.append(model.value.detach().clone())
            spoil = bad if iteration == 27 else 1.0
            if where == "loss":
                return model.value.sum() + (0.0 if spoil == 1.0 else spoil)
            return (torch.tensor([1.0, spoil]) * model.value).sum()

        callbacks = {i: lambda averaged: averages.append(averaged.value.detach().clone()) for i in range(80)}
        budget = Budget(None, None, energy=None)
        averaged, losses = train(model, loss, max_iter=80, budget=budget, callbacks=callbacks)
        assert budget.n_rollbacks == 1 and len(losses) == 80
        for trace in (values, averages):
            assert torch.equal(trace[28], trace[25]) and not torch.equal(trace[28], trace[27])
        step = [float((values[i] - values[i + 1])[0]) for i in range(79)]
        plain = [training._schedule(i / 80) for i in range(79)]
        assert step[28] / plain[28] == pytest.approx(0.5 * step[24] / plain[24], rel=0.05)
        assert step[78] / plain[78] == pytest.approx(step[24] / plain[24], rel=0.05)
        assert averaged.value.isfinite().all()

    def test_none_is_finite(self):
        model, budget = Vector(2.0), Budget(None, None, energy=None)
        with pytest.warns(ConvergenceWarning, match="not finite 11 times in a row"):
            averaged, losses = train(model, lambda i: math.nan * model.value.sum(), max_iter=300, budget=budget)
        assert averaged.value.item() == model.value.item() == 2
        assert len(losses) == budget.n_rollbacks <= Training.snapshot_every + Training.max_rollbacks
        assert all(math.isnan(value) for value in losses)

    def test_a_state_that_diverges_at_once_is_left_for_an_earlier_one(self):
        """From iteration 25 on values below -.6 are bad: the state of iteration 25 leads nowhere, that of 0 does."""
        model, budget = Vector(0.0), Budget(None, None, energy=None)

        def loss(iteration):
            return model.value.sum() * (math.nan if iteration >= 25 and model.value.item() < -0.6 else 1.0)

        train(model, loss, max_iter=40, budget=budget, learning_rate=0.05)
        assert budget.n_rollbacks == 2 and -0.6 < model.value.item() < 0


class TestInterruption:
    def interrupted(self, where):
        model, budget, done = Vector(1.0), Budget(None, None, energy=None), []

        def press(*args):
            raise KeyboardInterrupt

        def loss(iteration):
            done.append(iteration)
            return model.value.sum() if where != "loss" or iteration < 4 else press()

        callbacks = {4: press} if where == "callback" else {}
        averaged, losses = train(model, loss, max_iter=9, budget=budget, callbacks=callbacks)
        return averaged, losses, budget, done

    @pytest.mark.parametrize("where", ["loss", "callback"])
    def test_keeps_what_was_learned(self, where):
        averaged, losses, budget, _ = self.interrupted(where)
        assert budget.interrupted and len(losses) == 4 and averaged.value.item() != 1

    def test_ends_the_trainings_that_follow(self):
        _, _, budget, _ = self.interrupted("loss")
        model = Vector(1.0)
        assert train(model, lambda i: model.value.sum(), max_iter=9, budget=budget)[1] == []

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="notes came with Python 3.11")
    def test_errors_say_where_they_happened(self):
        def loss(iteration):
            raise ZeroDivisionError("mine")

        with pytest.raises(ZeroDivisionError, match="mine") as caught:
            train(Vector(1.0), loss, max_iter=9, budget=UNLIMITED, description="distillation")
        assert caught.value.__notes__ == ["This happened in iteration 0 of 9 of distillation."]


class TestSchedule:
    @given(st.floats(0, 3))
    def test_bounds(self, progress):
        assert 0.01 - 1e-12 <= _schedule(progress) <= 1

    def test_shape(self):
        assert _schedule(0.0) == pytest.approx(1 / 11)  # not a standstill
        assert _schedule(0.02) == pytest.approx(1, abs=2e-3) and _schedule(0.0199) == pytest.approx(1, abs=1e-2)
        assert _schedule(0.5) == pytest.approx(0.505)
        assert _schedule(1.0) == pytest.approx(0.01) == pytest.approx(_schedule(6.3))

    @given(st.floats(0, 1), st.floats(0, 1))
    def test_rises_then_falls(self, a, b):
        a, b = sorted((a, b))
        if b < 0.02:
            assert _schedule(a) <= _schedule(b)
        if a >= 0.02:
            assert _schedule(a) >= _schedule(b)

    def test_follows_the_iterations(self):
        rates, _ = steps(50, learning_rate=0.3)
        expected = torch.tensor([0.3 * _schedule(i / 50) for i in range(50)])
        torch.testing.assert_close(rates, expected, rtol=1e-3, atol=1e-5)

    def test_follows_the_budget_where_that_is_further(self, monkeypatch):
        clock = Clock()
        monkeypatch.setattr(budget_module, "time", clock)

        def spend(iteration):
            clock.now += 1

        rates, losses = steps(1_000_000, Budget(20.0, None, None, start=100.0), spend)
        assert len(losses) == 20
        expected = torch.tensor([_schedule(i / 20) for i in range(20)])
        torch.testing.assert_close(rates, expected, rtol=1e-3, atol=1e-5)
        assert rates[-1] < 0.02  # annealed


class TestBudget:
    def test_spent(self, monkeypatch):
        clock, energy = Clock(), SimpleNamespace(n_energy_evals=30)
        monkeypatch.setattr(budget_module, "time", clock)
        clock.now += 5
        assert Budget(None, None, energy, start=100.0).spent() == 0
        assert Budget(10.0, None, energy, start=100.0).spent() == pytest.approx(0.5)
        assert Budget(None, 40, energy, start=100.0).spent() == pytest.approx(0.75)
        assert Budget(10.0, 40, energy, start=100.0).spent() == pytest.approx(0.75)
        assert Budget(5.0, 300, energy, start=100.0).spent() == pytest.approx(1)

    def test_evaluations_left(self):
        energy = SimpleNamespace(n_energy_evals=30)
        assert Budget(None, None, energy).energy_evals_left() == math.inf
        assert Budget(None, 100, energy).energy_evals_left() == 70
        assert Budget(None, 10, energy).energy_evals_left() == 0

    @pytest.mark.parametrize("left", [0, 1, 999, 1000, 5000, 12_345, 10**6])
    @pytest.mark.parametrize("share", [0.3, 1.0])
    def test_spacing(self, left, share):
        """Rows are evaluated at iteration 0 and then every so often; at least once, as often as usual at most."""
        n_iter, rows, usual = 200, 50, 10
        budget = Budget(None, left + 7, SimpleNamespace(n_energy_evals=7))
        every = budget.spacing(usual, rows, n_iter, share)
        times = len(range(0, n_iter, every))
        assert times == 1 or rows * (times - (every == usual)) <= share * left  # as usual: to a part of one
        assert every >= usual
        if every > usual:  # no further apart than need be: a few times more would be too many
            assert rows * (times + 1 + times // 3) > share * left or times == 1

    def test_spacing_without_a_limit(self):
        assert Budget(None, None, SimpleNamespace(n_energy_evals=7)).spacing(10, 10**9, 10**9, 0.1) == 10

    def test_clock_starts_by_itself(self):
        before = time.perf_counter()
        budget = Budget(1.0, None, None)
        assert before <= budget.start <= time.perf_counter()
        assert 0 <= budget.spent() <= time.perf_counter() - before

    def test_time(self):
        start = time.perf_counter()
        _, losses = steps(10**9, Budget(0.4, None, None), lambda i: time.sleep(0.02))
        assert 0 < len(losses) <= 20
        assert time.perf_counter() - start >= 0.4

    @pytest.mark.parametrize("share, iterations", [(1.0, 9), (0.5, 4), (0.2, 1)])
    def test_energy_evaluations(self, share, iterations):
        energy = SimpleNamespace(n_energy_evals=10)

        def spend(iteration):
            energy.n_energy_evals += 10

        _, losses = steps(1000, Budget(None, 100, energy), spend, share=share)
        assert len(losses) == iterations
        assert energy.n_energy_evals == round(100 * share)

    def test_schedule_starts_with_what_is_left(self):
        energy = SimpleNamespace(n_energy_evals=50)

        def spend(iteration):
            energy.n_energy_evals += 1

        rates, _ = steps(1000, Budget(None, 100, energy), spend)
        torch.testing.assert_close(rates, torch.tensor([_schedule(i / 50) for i in range(50)]), rtol=1e-3, atol=1e-5)

    def test_max_iter_stops_first(self):
        assert len(steps(7, Budget(1e6, 10**9, SimpleNamespace(n_energy_evals=0)))[1]) == 7

    @pytest.mark.parametrize("share", [1.0, 0.5])
    def test_one_iteration_is_done_when_it_is_spent_already(self, share):
        """What comes back has been trained."""
        energy = SimpleNamespace(n_energy_evals=100)
        assert len(steps(50, Budget(None, 100, energy), share=share)[1]) == 1

    def test_refused_evaluations_end_it(self):
        def refused(iteration):
            if iteration == 3:
                raise Spent

        assert len(steps(50, spend=refused)[1]) == 3


class TestCallbacks:
    def test_are_called_before_their_iteration(self):
        model, events = Vector(0.0), []

        def loss(iteration):
            events.append(iteration)
            return model.value.sum()

        def note(averaged):
            assert averaged is not model and type(averaged) is Vector
            events.append("called")

        train(model, loss, max_iter=4, budget=UNLIMITED, callbacks={0: note, 2: note, 9: note})
        assert events == ["called", 0, 1, "called", 2, 3]

    def test_get_the_average(self):
        seen, model = [], Vector(0.0)
        averaged, _ = train(
            model, lambda i: model.value.sum(), max_iter=3, budget=UNLIMITED, ema_decay=0.5, learning_rate=1.0,
            callbacks={i: lambda averaged: seen.append(averaged.value.item()) for i in range(3)},
        )  # fmt: skip
        assert seen[0] == 0 > seen[1] > seen[2] > averaged.value.item() > model.value.item()

    @pytest.mark.parametrize("result, iterations", [(True, 2), (False, 5), (None, 5)])
    def test_end_the_training(self, result, iterations):
        _, losses = steps(5, callbacks={2: lambda averaged: result})
        assert len(losses) == iterations

    def test_end_the_training_at_once(self):
        model = Vector(1.0)
        averaged, losses = train(
            model, lambda i: model.value.sum(), max_iter=5, budget=UNLIMITED, callbacks={0: lambda averaged: True}
        )
        assert losses == [] and averaged.value.item() == 1


class TestProgress:
    def run(self, verbose):
        budget = Budget(None, None, SimpleNamespace(n_energy_evals=0), progress=Progress(verbose))
        with contextlib.closing(budget.progress):
            steps(60, budget, lambda iteration: time.sleep(0.01), description="matching scores")

    @pytest.mark.parametrize("verbose", [1, 2])
    def test_bar(self, verbose, capsys):
        self.run(verbose)
        captured = capsys.readouterr()
        assert "matching scores" in captured.err and "loss " in captured.err and captured.out == ""
        assert captured.err.endswith("\n") == (verbose > 1)  # stays, or is wiped

    def test_silence(self, capsys):
        self.run(0)
        assert capsys.readouterr() == ("", "")


class Counted(Objective):
    """Constant loss that remembers the iterations it was called with."""

    def __init__(self, value=1.0):
        self.value, self.seen = value, []

    def __call__(self, iteration):
        self.seen.append(iteration)
        return torch.tensor(self.value, requires_grad=True)

    def state_dict(self):
        return {"seen": list(self.seen)}

    def load_state_dict(self, state):
        self.seen = list(state["seen"])


class TestComposition:
    def test_sum(self):
        first, second = Counted(2.0), Counted(5.0)
        assert Sum([(1.0, first), (0.5, second)])(3).item() == 4.5
        assert first.seen == second.seen == [3]

    def test_in_turn(self):
        """Each counts its own iterations."""
        first, second = Counted(1.0), Counted(2.0)
        objective = InTurn(one=(1, first), two=(3, second))
        assert [objective(k).item() for k in range(9)] == [1, 2, 2, 2, 1, 2, 2, 2, 1]
        assert first.seen == [0, 1, 2] and second.seen == list(range(6))
        assert objective.cycle == ("one", "two", "two", "two")

    def test_state_of_all_parts(self):
        def build():
            parts = [Counted() for _ in range(3)]
            return parts, InTurn(a=(1, parts[0]), b=(2, Sum([(1.0, parts[1]), (2.0, parts[2])])))

        (parts, objective), (others, twin) = build(), build()
        for k in range(5):
            objective(k)
        twin.load_state_dict(objective.state_dict())
        assert [part.seen for part in others] == [part.seen for part in parts] == [[0, 1], [0, 1, 2], [0, 1, 2]]


class TestHistory:
    def test_tells_of_every_phase_that_ran(self):
        run = Run(None, UNLIMITED, torch.Generator(), model=Vector(1.0))
        constant = Function(lambda iteration: run.model.value.sum())

        def recipe():
            yield Phase("first", constant, 7)
            if run.history[0].n_iter == 7:
                yield Phase("second", InTurn(x=(1, constant), y=(2, constant)), 4)

        run.train(recipe())
        assert [(record.name, record.n_iter) for record in run.history] == [("first", 7), ("second", 4)]
        assert run.history[0].kinds().tolist() == ["first"] * 7
        assert run.history[1].kinds().tolist() == ["x", "y", "y", "x"] and len(run.losses) == 11
