"""Fits that go on from a checkpoint end as if nothing had happened, and refuse what does not belong to them."""

import copy
import itertools
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from samplers import KINDS, SMALL_MAP, fitted, make, quadratic
from sklearn.exceptions import ConvergenceWarning

import skcds
from skcds import ConsistentSamplerDistiller, ModelFileError, PathLoss, Prior, SelfConsistency
from skcds.density.energy import Energy
from skcds.io.files import seal
from skcds.io.plain import from_plain, to_plain
from skcds.specifications import Particles, Training
from skcds.train import loop as training
from skcds.train.checkpoint import FORMAT, KIND, Checkpoint, identity_of

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


# Writes at every few iterations, and at each of them; exchanges in fits of few iterations, too, and fewer draws.
OFTEN, ALWAYS = {"checkpoint_interval": 0.05}, {"checkpoint_interval": 0.0}
SHORT = {"n_judged": 1000, "particles": Particles(min_iter=20, n_paths=500)}


def small(kind, training=None, **params):
    """A fit with every phase that its kind has, of small networks."""
    sampler, training = _small(kind, **params), Training(**(training or {}))
    if kind == "ConsistentSamplerDistiller":
        sampler.teacher.set_params(loss__training=training)
    name = "loss" if kind == "DiffusionSampler" else "objective"
    return sampler.set_params(**{f"{name}__training": training})


def _small(kind, **params):
    sizes = {"network__hidden_features": 16, "network__n_layers": 1}
    if kind == "ConsistentSamplerDistiller":
        teacher = make("DiffusionSampler", batch_size=200, **sizes)
        options = {"max_iter": 60, "batch_size": 100, "random_state": 0, "network": SMALL_MAP}
        return ConsistentSamplerDistiller(teacher, **options).set_params(**sizes | params)
    if kind == "DiffusionSampler":
        extra = {"max_iter": 40, "loss": PathLoss(share=0.3, batch_size=50)}
    else:
        sizes = {name.replace("network", "control"): size for name, size in sizes.items()}
        extra = {"max_iter": 210, "objective": SelfConsistency(batch_size=100, path_batch_size=50)}
    extra |= {"batch_size": 200}
    return make(kind, **{**sizes, **extra, **params})


def result(sampler):
    """Hash of all that a fit found; a checkpoint takes evaluations of its own."""
    state = sampler.__getstate__()
    teacher = state.pop("teacher_", None)
    for name in ("_energy", "teacher", "verbose", "max_time", "n_energy_evals_", "n_grad_evals_"):
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


def finish(sampler, path, rng, n_calls):
    """Fit, stopped at random calls of the energy until it has run through or was stopped twice; and how often."""
    for stops in range(2):
        try:
            return sampler.fit(stopping(rng.integers(n_calls // 3, n_calls)), checkpoint=path), stops
        except Stop:
            assert not hasattr(sampler, "_model")
    return sampler.fit(quadratic, checkpoint=path), 2


class TestGoesOn:
    @pytest.mark.parametrize(
        "kind, params",
        [
            *((kind, {}) for kind in KINDS),
            pytest.param("DiffusionSampler", {"start": Prior(500), "loss": "kl"}, marks=pytest.mark.slow),
            pytest.param("ConsistentSamplerDistiller", {"network": "residual"}, marks=pytest.mark.slow),
            ("ConsistentSamplerScratch", {"network": "residual", "start": Prior(500), "objective": "joint"}),
        ],
    )
    def test_bit_for_bit(self, kind, params, tmp_path):
        params = {**params, "training": OFTEN | SHORT}
        params = {**params, "max_iter": 60} if kind == "ConsistentSamplerScratch" else params
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

    def test_any_random_state(self, tmp_path, monkeypatch):
        """The seed is in the file; without it the second fit would have another."""
        options = {"random_state": None, "training": OFTEN}
        press_at(monkeypatch, [15], Stop)
        with pytest.raises(Stop):
            small("DiffusionSampler", **options).fit(quadratic, checkpoint=tmp_path / "a")
        seed = Checkpoint(tmp_path / "a").seed
        sampler = small("DiffusionSampler", **options).fit(quadratic, checkpoint=tmp_path / "a")
        assert Checkpoint(tmp_path / "a").seed == seed
        other = small("DiffusionSampler", **options).fit(quadratic)
        assert sampler.loss_curve_ != other.loss_curve_

    @pytest.mark.parametrize("at", [15, 16])
    def test_trajectories_in_use(self, at, tmp_path, monkeypatch):
        """Stopped before the first and before the second of the two steps that share trajectories."""
        options = {"start": Prior(500), "training": ALWAYS}
        uninterrupted = small("DiffusionSampler", **options).fit(quadratic)
        press_at(monkeypatch, [at], Stop)
        with pytest.raises(Stop):
            small("DiffusionSampler", **options).fit(quadratic, checkpoint=tmp_path / "a")
        sampler = small("DiffusionSampler", **options).fit(quadratic, checkpoint=tmp_path / "a")
        assert result(sampler) == result(uninterrupted)

    def test_time_goes_on(self, tmp_path, monkeypatch):
        press_at(monkeypatch, [15], Stop)
        with pytest.raises(Stop):
            small("DiffusionSampler", max_time=1e6, training=ALWAYS).fit(quadratic, checkpoint=tmp_path / "a")
        entry = Checkpoint(tmp_path / "a").entries["score matching"]
        sampler = small("DiffusionSampler", max_time=0.5 * entry["moment"]["elapsed"], training=ALWAYS)
        sampler.fit(quadratic, checkpoint=tmp_path / "a")
        assert sampler.history_[0].n_iter == entry["state"]["iteration"] < 28

    def test_warm_start(self, tmp_path):
        sampler = small("DiffusionSampler", warm_start=True).fit(quadratic)
        sampler.fit(quadratic, checkpoint=tmp_path / "a")
        with pytest.raises(ValueError, match="its earlier fit is"):
            sampler.fit(quadratic, checkpoint=tmp_path / "a")


class TestRefusal:
    @pytest.fixture(scope="class")
    @staticmethod
    def written(tmp_path_factory):
        """The file of a finished fit."""
        path = tmp_path_factory.mktemp("refusal") / "a"
        make("DiffusionSampler").fit(quadratic, checkpoint=path)
        return path.read_bytes()

    @pytest.fixture
    def path(self, written, tmp_path):
        (tmp_path / "a").write_bytes(written)
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
        options = {"max_iter": 5, "random_state": 0, "network": SMALL_MAP, "batch_size": 100}
        students = [ConsistentSamplerDistiller(teacher, **options) for teacher in teachers]
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
        path.write_bytes(seal(KIND, {"format": FORMAT + 1}, {}))
        reason = f"format {FORMAT + 1}, and this version of skcds reads {FORMAT}: use the version"
        with pytest.raises(ValueError, match=reason):
            make("DiffusionSampler").fit(quadratic, checkpoint=path)

    def test_earlier_format(self, path, tmp_path):
        """One that was written by torch.save is refused before anything in it is unpickled."""

        class Bomb:
            def __reduce__(self):
                return os.system, (f"touch {tmp_path}/exploded",)

        torch.save({"format": 1, "seed": 0, "identity": {}, "entries": Bomb()}, path)
        with pytest.raises(ValueError, match=r"format 1.*use the version that wrote it, or delete it"):
            make("DiffusionSampler").fit(quadratic, checkpoint=path)
        assert not (tmp_path / "exploded").exists()

    def test_files_of_two_kinds(self, path, tmp_path):
        """A saved sampler is no checkpoint, and the other way round."""
        fitted("DiffusionSampler").save(tmp_path / "saved")
        before = (tmp_path / "saved").read_bytes()
        with pytest.raises(ValueError, match="cannot be read"):
            make("DiffusionSampler").fit(quadratic, checkpoint=tmp_path / "saved")
        assert (tmp_path / "saved").read_bytes() == before
        with pytest.raises(ModelFileError, match="no safetensors file that skcds wrote"):
            skcds.load(path)

    def test_folder_that_is_not_there(self, tmp_path):
        """Found out before the energy is called."""
        energy = stopping(0)
        with pytest.raises(FileNotFoundError, match=r"no such folder.*none'$"):
            make("DiffusionSampler").fit(energy, checkpoint=tmp_path / "none" / "a")
        assert not energy.calls


def wall(mean, sign=1.0):
    """Energy and gradient of a Gaussian at a mean, within 3 of it: infinite at the fixed points when that is far."""

    def energy(x):
        return np.where(np.abs(x - mean).max(1) < 3, 0.5 * ((x - mean) ** 2).sum(1), np.inf)

    return energy, lambda x: sign * (x - mean)


class TestEnergyOfAnotherFit:
    """What differs where the energies at fixed points do not tell."""

    @pytest.mark.parametrize("scale", [1.0, 1e6])
    def test_gradient(self, scale, tmp_path):
        """Only the sign was corrected; in coordinates of any unit."""
        make("DiffusionSampler", max_iter=2).fit(
            lambda x: quadratic(x / scale), grad_fn=lambda x: (1 - x / scale) / scale, checkpoint=tmp_path / "a"
        )
        with pytest.raises(ValueError, match="its gradient at fixed points"):
            make("DiffusionSampler", max_iter=2).fit(
                lambda x: quadratic(x / scale), grad_fn=lambda x: (x / scale - 1) / scale, checkpoint=tmp_path / "a"
            )

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("change", ["mean", "slope"])
    def test_at_particles(self, kind, change, tmp_path):
        """Energies that are the same at every fixed point, infinite or not."""

        def energy(x, mean=5.0, slope=1.0):
            far = 0.5 * ((x - mean) ** 2).sum(1) * slope
            return np.where(x.max(1) > 4, far, 8 + 0.5 * (x**2).sum(1))

        other = {"mean": lambda x: energy(x, 5.1), "slope": lambda x: energy(x, slope=1.1)}[change]
        path = tmp_path / "a"
        make(kind, max_iter=2, n_features=1).fit(energy, checkpoint=path)
        if kind == "ConsistentSamplerDistiller":
            (tmp_path / "a.teacher").unlink()  # the student's own file tells
        with pytest.raises(ValueError, match="its energy at particles"):
            make(kind, max_iter=2, n_features=1).fit(other, checkpoint=path)

    def test_the_same_energy_goes_on(self, tmp_path):
        for _ in range(2):
            energy, gradient = wall(0.5)
            make("DiffusionSampler", max_iter=2).fit(energy, grad_fn=gradient, checkpoint=tmp_path / "a")

    def test_moved_beyond_the_fixed_points(self, tmp_path):
        """They are outside the support of both but for one, far from the particles."""

        def energy(mean):
            return lambda x: np.where(
                (np.abs(x - mean) < 3).all(1),
                0.5 * ((x - mean) ** 2).sum(1),
                np.where((np.abs(x) < 3).all(1), 30.0, np.inf),
            )

        make("DiffusionSampler", max_iter=2, n_features=1).fit(energy(6.0), checkpoint=tmp_path / "a")
        with pytest.raises(ValueError, match=r"its energy at particles is [\d.e-]+, and that of this fit is inf"):
            make("DiffusionSampler", max_iter=2, n_features=1).fit(energy(25.0), checkpoint=tmp_path / "a")


class TestParameters:
    """They are compared by their values."""

    def identity(self, **params):
        sampler = make("DiffusionSampler", **params)
        energy = Energy(quadratic, sampler.n_features, generator=torch.Generator().manual_seed(0))
        return from_plain(to_plain(identity_of(sampler, energy), {}), {})

    @pytest.mark.parametrize("kind", [int, np.int64, np.int32, np.uint8])
    def test_seeds_of_any_type(self, kind):
        assert self.identity(random_state=kind(0)) == self.identity(random_state=0)
        assert self.identity(random_state=kind(1)) != self.identity(random_state=kind(0))

    @pytest.mark.parametrize("kind", [np.random.default_rng, np.random.RandomState])
    def test_an_instance_that_has_moved_on(self, kind, tmp_path):
        """The fit that goes on has the seed of the file, whatever the instance would give now."""
        one = make("DiffusionSampler", max_iter=2, random_state=kind(0)).fit(quadratic, checkpoint=tmp_path / "a")
        other = make("DiffusionSampler", max_iter=2, random_state=kind(1)).fit(quadratic, checkpoint=tmp_path / "a")
        assert np.array_equal(one.particles_, other.particles_)

    def test_seed_of_another_fit(self, tmp_path):
        make("DiffusionSampler", max_iter=2, random_state=np.int64(0)).fit(quadratic, checkpoint=tmp_path / "a")
        with pytest.raises(ValueError, match="parameter random_state is 0, and that of this fit is 1"):
            make("DiffusionSampler", max_iter=2, random_state=np.int64(1)).fit(quadratic, checkpoint=tmp_path / "a")

    @pytest.mark.parametrize("d", [3, 20, 1500])
    def test_arrays_of_any_length(self, d):
        bounds = np.column_stack([-np.ones(d), np.arange(1.0, d + 1)])
        known = self.identity(n_features=d, bounds=bounds)
        assert (
            known
            == self.identity(n_features=d, bounds=bounds.copy())
            == self.identity(n_features=d, bounds=bounds.tolist())
            == self.identity(n_features=d, bounds=bounds.astype(int))
        )
        for place in (0, d // 2, d - 1):
            other = bounds.copy()
            other[place, 1] += 0.5
            assert self.identity(n_features=d, bounds=other) != known

    @pytest.mark.parametrize("d", [3, 1500])
    def test_names(self, d):
        names = [f"a{j}" for j in range(d)]
        known = self.identity(n_features=d, feature_names=names)
        assert known == self.identity(n_features=d, feature_names=np.array(names, dtype=object))
        assert known != self.identity(n_features=d, feature_names=[*names[:-1], "b"])

    def test_a_teacher_by_its_arrays(self):
        """Students of teachers with other particles start from other particles."""
        teacher = fitted("DiffusionSampler")
        other = copy.copy(teacher)
        other.particles_ = teacher.particles_ + 1
        energy = Energy(quadratic, 3, generator=torch.Generator().manual_seed(0))
        same, changed = (
            identity_of(ConsistentSamplerDistiller(each), energy) for each in (copy.deepcopy(teacher), other)
        )
        known = identity_of(ConsistentSamplerDistiller(teacher), energy)
        assert known == same and known != changed


CHILD = """
import sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, {folder!r})
import torch; torch.set_num_threads(1)
from samplers import quadratic
from test_checkpoint import result, small
print("fitting", flush=True)
sampler = small("DiffusionSampler", {{"checkpoint_interval": 0.02}}, max_iter=300)
print(result(sampler.fit(quadratic, checkpoint={path!r})), flush=True)
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
    def check(self, tmp_path, n_rounds, n_kills):
        uninterrupted = small("DiffusionSampler", {"checkpoint_interval": 0.02}, max_iter=300).fit(quadratic)
        rng, total = np.random.default_rng(0), 0
        for k in range(n_rounds):
            delays = rng.uniform(0.1, 0.6, size=n_kills) * uninterrupted.fit_time_
            out, n_killed = killed_and_resumed(tmp_path / f"{k}", delays)
            assert out == str(result(uninterrupted))
            total += n_killed
            assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]
        return total

    @pytest.mark.slow
    def test_once(self, tmp_path):
        assert self.check(tmp_path, 1, 1) == 1

    @pytest.mark.slow
    def test_twenty_times(self, tmp_path):
        assert self.check(tmp_path, 20, 2) >= 20


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_evals", [600, 2000])
def test_its_own_evaluations_are_within_the_limit(kind, n_evals, tmp_path):
    """A limit that is enough without a file is with one, and the energy is not asked more often than is said."""
    asked = []

    def counted(x):
        asked.append(len(x))
        return quadratic(x)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so short a fit warns
        fitted = make(kind, max_iter=4, max_energy_evals=n_evals).fit(counted, checkpoint=tmp_path / "fit")
    assert fitted.n_energy_evals_ == sum(asked) <= n_evals


class TestInterrupted:
    @pytest.mark.parametrize(
        "kind, at, n_iter", [("DiffusionSampler", 15, 15), ("ConsistentSamplerScratch", 15, 15), (KINDS[1], 50, 30)]
    )
    def test_keeps_what_was_learned(self, kind, at, n_iter, monkeypatch):
        press_at(monkeypatch, [at])  # the teacher of the distiller has 20 iterations
        sampler = small(kind, **({"max_iter": 40} if kind == "ConsistentSamplerScratch" else {}))
        with pytest.warns(ConvergenceWarning, match=f"was interrupted after {n_iter} iterations"):
            sampler.fit(quadratic)
        assert sampler.interrupted_ is True and sampler.n_iter_ == n_iter
        assert np.isfinite(sampler.sample(50, random_state=0)).all()
        monkeypatch.undo()
        sampler.set_params(max_iter=5)
        assert sampler.fit(quadratic).interrupted_ is False and sampler.n_rollbacks_ == 0

    def test_in_the_teacher_ends_the_student_too(self, monkeypatch):
        press_at(monkeypatch, [10])
        with pytest.warns(ConvergenceWarning, match="ConsistentSamplerDistiller was interrupted after 0 iterations"):
            student = small("ConsistentSamplerDistiller").fit(quadratic)
        assert student.teacher_.interrupted_ and student.teacher_.n_iter_ == 10 and student.interrupted_

    def test_goes_on_later(self, tmp_path, monkeypatch):
        uninterrupted = small("DiffusionSampler", OFTEN).fit(quadratic)
        press_at(monkeypatch, [15])
        small("DiffusionSampler", OFTEN).fit(quadratic, checkpoint=tmp_path / "a")
        monkeypatch.undo()
        sampler = small("DiffusionSampler", OFTEN).fit(quadratic, checkpoint=tmp_path / "a")
        assert result(sampler) == result(uninterrupted)

    def test_outside_of_training_raises_and_leaves_the_earlier_fit(self):
        sampler = small("DiffusionSampler").fit(quadratic)
        before = result(sampler)
        with pytest.raises(KeyboardInterrupt):
            sampler.fit(stopping(20, KeyboardInterrupt))  # in the pilot
        assert result(sampler) == before
