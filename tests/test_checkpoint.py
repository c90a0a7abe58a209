"""Fits that go on from a checkpoint end as if nothing had happened, and refuse what does not belong to them."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from samplers import KINDS, make, quadratic
from sklearn.exceptions import ConvergenceWarning

from skcds import ConsistentSamplerDistiller, training
from skcds.checkpoint import Checkpoint
from skcds.files import replace_file

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


class Stop(Exception):
    """Ends a fit."""


def stopping(after, error=Stop):
    """The energy of N(1, I) until it was called so often."""
    calls = []

    def energy(x):
        calls.append(len(x))
        if len(calls) > after:
            raise error
        return quadratic(x)

    energy.calls = calls
    return energy


def small(kind, **params):
    """A fit with every phase that its kind has, of small networks."""
    sizes = {"hidden_features": 16, "n_layers": 1}
    if kind == "ConsistentSamplerDistiller":
        teacher = make("DiffusionSampler", batch_size=200, **sizes)
        return ConsistentSamplerDistiller(teacher, max_iter=60, batch_size=100, random_state=0, **sizes, **params)
    extra = {"max_iter": 40, "path_share": 0.3} if kind == "DiffusionSampler" else {"max_iter": 210}
    extra |= {"batch_size": 200, "path_batch_size": 50} | ({"map_batch_size": 100} if kind == KINDS[2] else {})
    return make(kind, **{**sizes, **extra, **params})


def result(sampler):
    """Hash of all that a fit found."""
    state = sampler.__getstate__()
    teacher = state.pop("teacher_", None)
    for name in ("_energy", "teacher", "verbose", "max_time"):
        state.pop(name, None)
    return joblib.hash(state), teacher and result(teacher)


def press_at(monkeypatch, iterations, error=KeyboardInterrupt):
    """Ctrl-C, or an error, in these iterations of the trainings of a fit, counted through."""
    count, schedule = itertools.count(), training._schedule

    def pressed(progress):
        if next(count) in iterations:
            raise error
        return schedule(progress)

    monkeypatch.setattr(training, "_schedule", pressed)


@pytest.fixture
def often(monkeypatch):
    """Write at every few iterations."""
    monkeypatch.setattr("skcds.checkpoint.INTERVAL", 0.05)


def finish(sampler, path, rng, n_calls):
    """Fit, stopped at random calls of the energy until it has run through or was stopped 3 times; and how often."""
    for stops in range(3):
        try:
            return sampler.fit(stopping(rng.integers(n_calls // 3, n_calls)), checkpoint=path), stops
        except Stop:
            assert not hasattr(sampler, "_model")
    return sampler.fit(quadratic, checkpoint=path), 3


class TestGoesOn:
    @pytest.mark.parametrize(
        "kind, params",
        [
            *((kind, {}) for kind in KINDS),
            pytest.param("DiffusionSampler", {"init": "prior", "loss": "kl"}, marks=pytest.mark.slow),
            pytest.param("ConsistentSamplerDistiller", {"network": "residual"}, marks=pytest.mark.slow),
            ("ConsistentSamplerScratch", {"network": "residual", "init": "prior", "objective": "joint"}),
        ],
    )
    @pytest.mark.usefixtures("often")
    def test_bit_for_bit(self, kind, params, tmp_path):
        counter = stopping(10**9)
        uninterrupted = small(kind, **params).fit(counter)
        sampler, stops = finish(
            small(kind, **params), tmp_path / "fit.ckpt", np.random.default_rng(1), len(counter.calls)
        )
        assert stops >= 1 and result(sampler) == result(uninterrupted)

    def test_without_a_write_in_between(self, tmp_path):
        """Only the ends of phases are kept."""
        uninterrupted = small("DiffusionSampler").fit(quadratic)
        sampler = small("DiffusionSampler").fit(quadratic, checkpoint=tmp_path / "a")
        assert result(sampler) == result(uninterrupted)
        again = small("DiffusionSampler").fit(stopping(10**9), checkpoint=str(tmp_path / "a"))
        assert result(again) == result(uninterrupted)

    def test_a_finished_fit_is_not_trained_again(self, tmp_path):
        first, second = stopping(10**9), stopping(10**9)
        small("DiffusionSampler").fit(first, checkpoint=tmp_path / "a")
        small("DiffusionSampler").fit(second, checkpoint=tmp_path / "a")
        assert len(second.calls) < len(first.calls) / 2

    @pytest.mark.usefixtures("often")
    def test_any_random_state(self, tmp_path, monkeypatch):
        """The seed is in the file; without it the second fit would have another."""
        press_at(monkeypatch, [15], Stop)
        with pytest.raises(Stop):
            small("DiffusionSampler", random_state=None).fit(quadratic, checkpoint=tmp_path / "a")
        seed = Checkpoint(tmp_path / "a").seed
        sampler = small("DiffusionSampler", random_state=None).fit(quadratic, checkpoint=tmp_path / "a")
        assert Checkpoint(tmp_path / "a").seed == seed
        other = small("DiffusionSampler", random_state=None).fit(quadratic)
        assert sampler.loss_curve_ != other.loss_curve_

    @pytest.mark.parametrize("at", [15, 16])
    @pytest.mark.usefixtures("often")
    def test_trajectories_in_use(self, at, tmp_path, monkeypatch):
        """Stopped before the first and before the second of the two steps that share trajectories."""
        uninterrupted = small("DiffusionSampler", init="prior").fit(quadratic)
        monkeypatch.setattr("skcds.checkpoint.INTERVAL", 0.0)
        press_at(monkeypatch, [at], Stop)
        with pytest.raises(Stop):
            small("DiffusionSampler", init="prior").fit(quadratic, checkpoint=tmp_path / "a")
        sampler = small("DiffusionSampler", init="prior").fit(quadratic, checkpoint=tmp_path / "a")
        assert result(sampler) == result(uninterrupted)

    @pytest.mark.usefixtures("often")
    def test_time_goes_on(self, tmp_path, monkeypatch):
        monkeypatch.setattr("skcds.checkpoint.INTERVAL", 0.0)
        press_at(monkeypatch, [15], Stop)
        with pytest.raises(Stop):
            small("DiffusionSampler", max_time=1e6).fit(quadratic, checkpoint=tmp_path / "a")
        entry = Checkpoint(tmp_path / "a").entries["score matching"]
        sampler = small("DiffusionSampler", max_time=0.5 * entry["moment"]["elapsed"])
        sampler.fit(quadratic, checkpoint=tmp_path / "a")
        assert sampler.n_iter_ == entry["state"]["iteration"] < 40

    def test_warm_start(self, tmp_path):
        sampler = small("DiffusionSampler", warm_start=True).fit(quadratic)
        sampler.fit(quadratic, checkpoint=tmp_path / "a")
        with pytest.raises(ValueError, match="its earlier fit is"):
            sampler.fit(quadratic, checkpoint=tmp_path / "a")


class TestRefusal:
    @pytest.fixture
    def path(self, tmp_path):
        make("DiffusionSampler").fit(quadratic, checkpoint=tmp_path / "a")
        return tmp_path / "a"

    @pytest.mark.parametrize(
        "change, named",
        [
            ({"max_iter": 21}, "parameter max_iter is 20,.*is 21"),
            ({"random_state": 1}, "parameter random_state"),
            ({"learning_rate": 0.1}, "parameter learning_rate"),
        ],
    )
    def test_other_parameters(self, path, change, named):
        before = path.read_bytes()
        sampler = make("DiffusionSampler").set_params(**change)
        with pytest.raises(ValueError, match=named):
            sampler.fit(quadratic, checkpoint=path)
        assert path.read_bytes() == before and not hasattr(sampler, "_model")

    @pytest.mark.parametrize("change", [{"verbose": 0, "max_time": 1e6}, {"max_energy_evals": 10**9}])
    def test_limits_may_change(self, path, change):
        make("DiffusionSampler").set_params(**change).fit(quadratic, checkpoint=path)

    @pytest.mark.parametrize(
        "energy",
        [
            lambda x: quadratic(x) + 0.01,
            lambda x: quadratic(x - 0.001),
            lambda x: 0.5 * ((x - 1).abs() ** 2.001).sum(1),
        ],
    )
    def test_another_energy(self, path, energy):
        with pytest.raises(ValueError, match="its energy at fixed points"):
            make("DiffusionSampler").fit(energy, checkpoint=path)

    def test_another_class_or_dimension(self, path):
        with pytest.raises(ValueError, match="its class is 'DiffusionSampler'"):
            make("ConsistentSamplerScratch").fit(quadratic, checkpoint=path)
        with pytest.raises(ValueError, match="parameter n_features"):
            make("DiffusionSampler", n_features=2).fit(quadratic, checkpoint=path)

    def test_another_teacher(self, tmp_path):
        teachers = [make("DiffusionSampler", random_state=seed).fit(quadratic) for seed in (0, 1)]
        students = [ConsistentSamplerDistiller(teacher, max_iter=5, random_state=0) for teacher in teachers]
        students[0].fit(quadratic, checkpoint=tmp_path / "a")
        with pytest.raises(ValueError, match="parameter teacher"):
            students[1].fit(quadratic, checkpoint=tmp_path / "a")

    @pytest.mark.parametrize("raw", [b"", b"no checkpoint", None])
    def test_damaged_file(self, path, raw):
        raw = path.read_bytes()[:-100] if raw is None else raw
        path.write_bytes(raw)
        with pytest.raises(ValueError, match=r"cannot be read.*delete it"):
            make("DiffusionSampler").fit(quadratic, checkpoint=path)
        assert path.read_bytes() == raw

    def test_newer_format(self, path):
        content = torch.load(path, weights_only=True)
        torch.save(content | {"format": 2}, path)
        with pytest.raises(ValueError, match="format 2"):
            make("DiffusionSampler").fit(quadratic, checkpoint=path)

    def test_folder_that_is_not_there(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            make("DiffusionSampler").fit(quadratic, checkpoint=tmp_path / "none" / "a")


CHILD = """
import sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, {folder!r})
import torch; torch.set_num_threads(1)
import skcds.checkpoint; skcds.checkpoint.INTERVAL = 0.02
from samplers import quadratic
from test_checkpoint import result, small
print("fitting", flush=True)
print(result(small("DiffusionSampler", max_iter=300).fit(quadratic, checkpoint={path!r})), flush=True)
"""


def killed_and_resumed(path, delays):
    """Hash of a fit in processes of its own, each killed after a delay but the last; and how many were killed."""
    code, n_killed = CHILD.format(folder=str(Path(__file__).parent), path=str(path)), 0
    for delay in [*delays, None]:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        process.stdout.readline()
        if delay is not None:
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        out = process.communicate()[0].strip()
        n_killed += process.returncode != 0
        if process.returncode == 0:
            return out, n_killed
    return out, n_killed


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is of POSIX")
class TestKilled:
    def check(self, tmp_path, n_rounds):
        uninterrupted, _ = killed_and_resumed(tmp_path / "reference", [])
        rng, total = np.random.default_rng(0), 0
        for k in range(n_rounds):
            out, n_killed = killed_and_resumed(tmp_path / f"{k}", rng.uniform(0.2, 2.5, size=2))
            assert out == uninterrupted
            total += n_killed
            assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]
        return total

    def test_once(self, tmp_path):
        assert self.check(tmp_path, 1) >= 1

    @pytest.mark.slow
    def test_twenty_times(self, tmp_path):
        assert self.check(tmp_path, 20) >= 20


class TestInterrupted:
    @pytest.mark.parametrize(
        "kind, at, n_iter", [("DiffusionSampler", 15, 15), ("ConsistentSamplerScratch", 15, 15), (KINDS[1], 50, 30)]
    )
    def test_keeps_what_was_learned(self, kind, at, n_iter, monkeypatch):
        press_at(monkeypatch, [at])  # the teacher of the distiller has 20 iterations
        sampler = small(kind)
        with pytest.warns(ConvergenceWarning, match=f"was interrupted after {n_iter} iterations"):
            sampler.fit(quadratic)
        assert sampler.interrupted_ is True and sampler.n_iter_ == n_iter
        assert np.isfinite(sampler.sample(50, random_state=0)).all()
        monkeypatch.undo()
        assert sampler.fit(quadratic).interrupted_ is False and sampler.n_rollbacks_ == 0

    def test_in_the_teacher_ends_the_student_too(self, monkeypatch):
        press_at(monkeypatch, [10])
        with pytest.warns(ConvergenceWarning, match="ConsistentSamplerDistiller was interrupted after 0 iterations"):
            student = small("ConsistentSamplerDistiller").fit(quadratic)
        assert student.teacher_.interrupted_ and student.teacher_.n_iter_ == 10 and student.interrupted_

    @pytest.mark.usefixtures("often")
    def test_goes_on_later(self, tmp_path, monkeypatch):
        uninterrupted = small("DiffusionSampler").fit(quadratic)
        press_at(monkeypatch, [15])
        small("DiffusionSampler").fit(quadratic, checkpoint=tmp_path / "a")
        monkeypatch.undo()
        assert result(small("DiffusionSampler").fit(quadratic, checkpoint=tmp_path / "a")) == result(uninterrupted)

    def test_outside_of_training_raises_and_leaves_the_earlier_fit(self):
        sampler = small("DiffusionSampler").fit(quadratic)
        before = result(sampler)
        with pytest.raises(KeyboardInterrupt):
            sampler.fit(stopping(20, KeyboardInterrupt))  # in the pilot
        assert result(sampler) == before


class TestReplaceFile:
    def test_leaves_nothing_behind(self, tmp_path):
        replace_file(tmp_path / "a", b"one")
        replace_file(tmp_path / "a", b"two")
        assert (tmp_path / "a").read_bytes() == b"two" and os.listdir(tmp_path) == ["a"]
