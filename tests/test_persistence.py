"""Saved files: nothing that was changed loads, nothing is lost by a failed save, and pickles warn of other versions."""

import builtins
import hashlib
import importlib
import json
import os
import pickle
import stat
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from samplers import KINDS, fitted, make, quadratic
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator

import skcds
from skcds import ConsistentSamplerDistiller, DiffusionSampler, ModelFileError
from skcds.persistence import BLANK, FORMAT, MARK

DATA = Path(__file__).parent / "data"
CASES = [(KINDS[0], None), *((kind, network) for kind in KINDS[1:] for network in ("coupling", "residual"))]
each_case = pytest.mark.parametrize("kind, network", CASES)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Bytes of a small saved student with its teacher."""
    path = tmp_path_factory.mktemp("small") / "student.skcds"
    teacher = DiffusionSampler(2, n_steps=4, n_particles=100, hidden_features=8, n_layers=2, max_iter=5, random_state=0)
    student = ConsistentSamplerDistiller(
        teacher.fit(quadratic), hidden_features=8, n_layers=1, n_transforms=2, n_bins=4, max_iter=5, random_state=0
    )
    student.fit(quadratic).save(path)
    return path.read_bytes()


def write(path, raw):
    path.write_bytes(raw)
    return path


def forge(raw, change):
    """A file with a change to its content or arrays, and a hash that fits."""
    size = int.from_bytes(raw[:8], "little")
    content = json.loads(json.loads(raw[8 : 8 + size])["__metadata__"]["skcds"])
    arrays = safetensors.numpy.load(raw)
    change(content, arrays)
    raw = safetensors.numpy.save(arrays, {"skcds": json.dumps(content), "sha256": BLANK})
    place = raw.index(MARK) + len(MARK)
    return raw[:place] + hashlib.sha256(raw).hexdigest().encode() + raw[place + 64 :]


class TestRoundTrip:
    @each_case
    def test_draws_and_attributes(self, kind, network, tmp_path):
        sampler, path = fitted(kind, network), tmp_path / "sampler.skcds"
        sampler.save(path)
        loaded = skcds.load(path)
        energy = {"energy_fn": quadratic} if kind == "DiffusionSampler" else {}
        assert np.array_equal(loaded.sample(50, random_state=0, **energy), sampler.sample(50, random_state=0))
        W, same = (s.sample_weighted(20, random_state=1, energy_fn=quadratic) for s in (sampler, loaded))
        assert np.array_equal(W.log_weights, same.log_weights)
        assert loaded.get_params(deep=False).keys() == sampler.get_params(deep=False).keys()
        for name in ("log_evidence_", "loss_curve_", "n_energy_evals_", "converged_", "ess_", "n_features_in_"):
            assert getattr(loaded, name) == getattr(sampler, name)
        if hasattr(sampler, "pilot_"):
            assert np.array_equal(loaded.pilot_.covariance, sampler.pilot_.covariance)
            assert loaded.particles_.dtype == sampler.particles_.dtype
        assert vars(loaded).keys() == vars(sampler).keys() - {"fit_time_", "_particles_log_prob"}

    def test_twice_is_the_same_bytes_of_content(self, tmp_path):
        fitted(KINDS[0]).save(tmp_path / "a")
        skcds.load(tmp_path / "a").save(tmp_path / "b")
        assert (
            skcds.load(tmp_path / "b")._energy_name == skcds.load(tmp_path / "a")._energy_name == "samplers.quadratic"
        )
        first, second = (safetensors.numpy.load((tmp_path / name).read_bytes()) for name in "ab")
        assert first.keys() == second.keys() and all(np.array_equal(first[k], second[k]) for k in first)

    def test_teacher_is_one_object(self, tmp_path):
        fitted("ConsistentSamplerDistiller").save(tmp_path / "student")
        loaded = skcds.load(tmp_path / "student")
        assert loaded.teacher_.n_steps == 8 and loaded.teacher_._energy is None
        student = ConsistentSamplerDistiller(FrozenEstimator(loaded.teacher_), max_iter=2, random_state=0)
        student.fit(quadratic).save(tmp_path / "student")
        loaded = skcds.load(tmp_path / "student")
        assert isinstance(loaded.teacher, FrozenEstimator) and loaded.teacher.estimator is loaded.teacher_

    def test_random_state_object(self, tmp_path):
        state = np.random.RandomState(3)
        state.normal()
        sampler = make(KINDS[0], max_iter=2, random_state=state).fit(quadratic)
        sampler.save(tmp_path / "a")
        assert skcds.load(tmp_path / "a").random_state.normal() == state.normal()

    def test_says_which_energy_it_needs(self, tmp_path):
        sampler = make(KINDS[0], max_iter=2).fit(lambda x: 0.5 * (x**2).sum(1))
        sampler.save(tmp_path / "a")
        with pytest.raises(ValueError, match="fitted to an instance or closure of type function"):
            skcds.load(tmp_path / "a").sample(3)
        fitted(KINDS[0]).save(tmp_path / "a")
        with pytest.raises(ValueError, match=r"fitted to samplers\.quadratic.*pass energy_fn="):
            skcds.load(tmp_path / "a").sample(3)

    def test_can_be_fitted_on(self, tmp_path):
        fitted(KINDS[0]).save(tmp_path / "a")
        loaded = skcds.load(tmp_path / "a").set_params(warm_start=True, max_iter=2).fit(quadratic)
        assert loaded.n_iter_ == 2 and loaded._energy_name is None

    def test_runs_no_code(self, small, tmp_path, monkeypatch):
        def fail(*args, **kwargs):
            raise AssertionError("code of the file was run")

        for module, name in [(pickle, "loads"), (pickle, "load"), (importlib, "import_module"), (builtins, "eval")]:
            monkeypatch.setattr(module, name, fail)
        assert skcds.load(write(tmp_path / "a", small)).sample(3).shape == (3, 2)


class TestDamage:
    def test_flipped_bits(self, small, tmp_path):
        """200 over the file, 200 more in the header and near it."""
        rng = np.random.default_rng(0)
        header = int.from_bytes(small[:8], "little") + 8
        for place in [*rng.integers(len(small), size=200), *rng.integers(header + 64, size=200)]:
            raw = bytearray(small)
            raw[place] ^= 1 << rng.integers(8)
            with pytest.raises(ModelFileError, match="cannot be loaded"):
                skcds.load(write(tmp_path / "a", raw))

    def test_truncations(self, small, tmp_path):
        rng = np.random.default_rng(1)
        for size in [0, 1, 7, 8, 9, len(small) - 1, *rng.integers(len(small), size=194)]:
            with pytest.raises(ModelFileError):
                skcds.load(write(tmp_path / "a", small[:size]))

    def test_more_at_the_end(self, small, tmp_path):
        with pytest.raises(ModelFileError):
            skcds.load(write(tmp_path / "a", small + b"\0"))

    def test_other_files(self, tmp_path):
        class Bomb:
            def __reduce__(self):
                return os.system, (f"touch {tmp_path}/exploded",)

        safetensors.numpy.save_file({"x": np.zeros(3)}, tmp_path / "plain")
        for raw in (pickle.dumps(Bomb()), b"", b"{}", b"\xff" * 100, (tmp_path / "plain").read_bytes()):
            with pytest.raises(ModelFileError):
                skcds.load(write(tmp_path / "a", raw))
        assert not (tmp_path / "exploded").exists()

    def test_no_file(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            skcds.load(tmp_path / "none")

    def test_is_a_value_error(self):
        assert issubclass(ModelFileError, ValueError)


def model(content):
    return content["samplers"][0]["fitted"]["_model"]


def weight(content):
    return next(iter(model(content)["weights"].values()))["array"]


def set_item(find, key, value):
    def change(content, arrays):
        find(content)[key] = value

    return change


def sampler(content):
    return content["samplers"][0]


FORGERIES = {
    "newer format": (set_item(lambda c: c, "format", FORMAT + 1), "update skcds"),
    "no format": (set_item(lambda c: c, "format", "x"), "format 'x'"),
    "extra part": (set_item(lambda c: c, "code", "import os"), "its parts"),
    "class of another library": (set_item(sampler, "class", "Pipeline"), "'Pipeline' is none of"),
    "another class": (set_item(sampler, "class", "ConsistentSamplerScratch"), "fitted attributes"),
    "another model": (set_item(model, "class", "Module"), "'Module' is no model"),
    "model of another class": (set_item(model, "class", "DiffusionModel"), "cannot be loaded"),
    "unknown attribute": (set_item(lambda c: sampler(c)["fitted"], "x_", 1), "x_"),
    "missing attribute": (lambda c, a: sampler(c)["fitted"].pop("ess_"), "ess_"),
    "attribute of another kind": (set_item(lambda c: sampler(c)["fitted"], "n_iter_", "many"), "n_iter_ has to be"),
    "negative count": (set_item(lambda c: sampler(c)["fitted"], "n_iter_", -1), "n_iter_ has to be"),
    "flag": (set_item(lambda c: sampler(c)["fitted"], "converged_", 1), "converged_ has to be"),
    "number": (set_item(lambda c: sampler(c)["fitted"], "ess_", "all"), "ess_ has to be a number"),
    "unknown parameter": (set_item(lambda c: sampler(c)["params"], "hook", "os.system"), "no parameters"),
    "parameter out of range": (set_item(lambda c: sampler(c)["params"], "max_iter", -3), "max_iter"),
    "parameter of unknown kind": (set_item(lambda c: sampler(c)["params"], "max_iter", {"eval": "1"}), "unknown kind"),
    "unfitted": (set_item(sampler, "fitted", None), "missing or extra|not fitted"),
    "another dimension": (set_item(lambda c: sampler(c)["fitted"], "n_features_in_", 3), "2 features, not 3"),
    "size of the model": (set_item(lambda c: model(c)["config"], "hidden", 16), "have to be"),
    "huge size": (set_item(lambda c: model(c)["config"], "hidden", 10**12), "out of range"),
    "code in the configuration": (set_item(lambda c: model(c)["config"], "hidden", ["x"]), "out of range"),
    "missing weights": (lambda c, a: model(c)["weights"].popitem(), "missing or extra"),
    "missing array": (lambda c, a: a.pop(weight(c)), "are None"),
    "extra array": (lambda c, a: a.update(extra=np.zeros(3)), "extra"),
    "shape": (lambda c, a: a.update({weight(c): np.zeros((1, 1), np.float32)}), "have to be"),
    "dtype": (lambda c, a: a.update({weight(c): a[weight(c)].astype(np.float16)}), "have to be"),
    "nan": (lambda c, a: a[weight(c)].fill(np.nan), "not finite"),
    "infinite": (lambda c, a: a[weight(c)].fill(np.inf), "not finite"),
    "own teacher": (set_item(lambda c: sampler(c)["fitted"], "teacher_", {"sampler": 0}), "refer to each other"),
    "no such teacher": (set_item(lambda c: sampler(c)["fitted"], "teacher_", {"sampler": 7}), "refer to each other"),
    "particles": (lambda c, a: a.update({"1.particles_": np.zeros((5, 3), np.float32)}), "particles_ has shape"),
    "pilot": (lambda c, a: c["samplers"][1]["fitted"]["pilot_"].pop("loc"), "loc|extra"),
    "name of the energy": (set_item(sampler, "energy", 3), "name of the energy"),
}


class TestForgeries:
    """Files whose hash fits and whose content does not."""

    def test_none(self, small, tmp_path):  # the control of the forger
        assert skcds.load(write(tmp_path / "a", forge(small, lambda content, arrays: None))).sample(2).shape == (2, 2)

    @pytest.mark.parametrize("name", FORGERIES)
    def test_is_refused(self, name, small, tmp_path):
        change, reason = FORGERIES[name]
        with pytest.raises(ModelFileError, match=reason):
            skcds.load(write(tmp_path / "a", forge(small, change)))


class TestSave:
    def test_unfitted(self, tmp_path):
        with pytest.raises(NotFittedError):
            make(KINDS[0]).save(tmp_path / "a")
        assert os.listdir(tmp_path) == []

    def test_class_of_ones_own(self, tmp_path):
        class Mine(DiffusionSampler):
            pass

        mine = Mine(2, n_steps=4, n_particles=100, max_iter=2, random_state=0).fit(quadratic)
        with pytest.raises(TypeError, match="Mine"):
            mine.save(tmp_path / "a")
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("broken", ["os.fsync", "os.replace"])
    def test_failure_leaves_the_old_file(self, broken, tmp_path, monkeypatch):
        def fail(*args):
            raise OSError("disk full")

        path = tmp_path / "a"
        fitted(KINDS[0]).save(path)
        before = path.read_bytes()
        monkeypatch.setattr(broken, fail)
        with pytest.raises(OSError, match="disk full"):
            fitted(KINDS[1]).save(path)
        assert path.read_bytes() == before and os.listdir(tmp_path) == ["a"]

    def test_folder_that_is_not_there(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            fitted(KINDS[0]).save(tmp_path / "none" / "a")

    @pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
    def test_permissions(self, tmp_path):
        path, plain = tmp_path / "a", write(tmp_path / "b", b"")
        fitted(KINDS[0]).save(path)
        assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
        path.chmod(0o640)
        fitted(KINDS[0]).save(str(path))
        assert stat.S_IMODE(path.stat().st_mode) == 0o640


class TestGolden:
    """A file of format 1, written by version 0.1.0.dev0 from the fit of `small`, and the draws it had then."""

    def test_loads_and_draws_the_same(self):
        student = skcds.load(DATA / "format-1.skcds")
        expected = [[1.5579, 1.5090], [0.1928, 0.4642]]
        np.testing.assert_allclose(student.sample(2, random_state=0), expected, atol=2e-3)
        assert student.teacher_.n_steps == 4 and student.n_iter_ == 5
        assert student.bounds_ is None and student.feature_names_out_.tolist() == ["x0", "x1"]

    def test_with_bounds_and_names(self):
        """A file of format 2, written by version 0.1.0.dev0, of a student of the energy x0 + x1 in a box."""
        student = skcds.load(DATA / "format-2.skcds")
        expected = [[1.3012, 0.4361], [0.2429, -0.5722]]
        np.testing.assert_allclose(student.sample(2, random_state=0), expected, atol=2e-3)
        assert student.feature_names_out_.tolist() == ["rate", "share"]
        assert student.bounds_.tolist() == [[0, np.inf], [-1, 2.5]]
        assert student.teacher.bounds == [[0, None], [-1, 2.5]]


class TestOtherFormats:
    def test_pickle_of_another_version_warns(self, monkeypatch):
        data = pickle.dumps(fitted(KINDS[0]))
        monkeypatch.setattr(skcds, "__version__", "99.1")
        with pytest.warns(UserWarning, match=r"pickled with skcds 0\.1.* and is loaded with 99\.1"):
            pickle.loads(data)

    def test_pickle_of_this_version_does_not(self, recwarn):
        pickle.loads(pickle.dumps(fitted(KINDS[0])))
        assert not recwarn.list

    @each_case
    def test_skops(self, kind, network):
        skops = pytest.importorskip("skops.io")
        data = skops.dumps(fitted(kind, network))
        loaded = skops.loads(data, trusted=skops.get_untrusted_types(data=data))
        assert np.array_equal(loaded.sample(9, random_state=0), fitted(kind, network).sample(9, random_state=0))
        assert all(name.startswith("skcds.") for name in skops.get_untrusted_types(data=data))
