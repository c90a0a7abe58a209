"""Saved files: nothing that was changed loads, nothing is lost by a failed save, and pickles warn of other versions."""

import builtins
import copy
import dataclasses
import hashlib
import importlib
import json
import os
import pickle
import stat
import time
from pathlib import Path

import numpy as np
import pandas
import pytest
import safetensors.numpy
import torch
from cases import slow
from samplers import KINDS, SMALL_MAP, START, D, fitted, make, quadratic
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator

import skcds
from skcds import (
    ConsistentSamplerDistiller,
    Control,
    Coupling,
    DiffusionSampler,
    ModelFileError,
    PathLoss,
    Pilot,
    Prior,
    SelfConsistency,
)
from skcds.explore.start import Start
from skcds.io.files import BLANK, MARK
from skcds.io.reader import FORMAT
from skcds.io.registry import SAMPLERS, key_of
from skcds.io.schema import in_files

DATA = Path(__file__).parent / "data"


class Mine(DiffusionSampler):
    """A sampler of one's own, with a parameter and a fitted attribute more."""

    _parameter_constraints = {**DiffusionSampler._parameter_constraints, "tag": [int]}
    _fitted_attributes = {"centre_": "number"}

    def __init__(self, n_features=None, *, n_steps=64, start=None, max_iter=3000, random_state=None, tag=0):
        super().__init__(n_features, n_steps=n_steps, start=start, max_iter=max_iter, random_state=random_state)
        self.tag = tag

    def _fit(self, *args):
        fitted = super()._fit(*args)
        return fitted | {"centre_": float(fitted["particles_"].mean())}


CASES = [(KINDS[0], None), *((kind, network) for kind in KINDS[1:] for network in ("coupling", "residual"))]
each_case = pytest.mark.parametrize("kind, network", CASES)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Bytes of a small saved student with its teacher."""
    path = tmp_path_factory.mktemp("small") / "student.skcds"
    teacher = DiffusionSampler(
        2,
        n_steps=4,
        max_iter=5,
        random_state=0,
        start=dataclasses.replace(START, n_particles=100),
        network=Control(hidden_features=8, n_layers=2),
    )
    student = ConsistentSamplerDistiller(
        teacher.fit(quadratic),
        max_iter=5,
        random_state=0,
        network=Coupling(hidden_features=8, n_layers=1, n_transforms=2, bins=4),
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
    @pytest.mark.parametrize("kind", KINDS)
    def test_loaded_models_are_not_trained(self, kind):
        model = pickle.loads(pickle.dumps(fitted(kind)))._model
        assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())

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
        not_saved = {"fit_time_", "_particles_log_prob", "_particles_score"}
        assert vars(loaded).keys() == vars(sampler).keys() - not_saved

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
        options = {"max_iter": 2, "random_state": 0, "network": SMALL_MAP, "batch_size": 64}
        student = ConsistentSamplerDistiller(FrozenEstimator(loaded.teacher_), **options)
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

    @pytest.mark.parametrize("start", [(1.0, 2.0), (np.ones(3), 2.0), np.ones((1, 3))], ids=str)
    def test_start_of_either_kind(self, start, tmp_path):
        """A tuple is a Gaussian and an array points, so that a tuple has to come back as one."""
        copy.deepcopy(fitted(KINDS[0])).set_params(start=start).save(tmp_path / "a")
        loaded = skcds.load(tmp_path / "a")
        assert isinstance(loaded.start, tuple) == isinstance(start, tuple)
        first, second = (Start.from_parameter(value, 3) for value in (start, loaded.start))
        assert torch.equal(first.points, second.points)

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
    "an array twice": (
        lambda c, a: sampler(c)["fitted"].update(loss_curve_=c["samplers"][1]["fitted"]["loss_curve_"]),
        "used twice",
    ),
    "half precision": (lambda c, a: a.update({"1.particles_": a["1.particles_"].astype(np.float16)}), "of float16"),
    "losses of another type": (lambda c, a: a.update({"0.loss_curve_": np.arange(5)}), "of int64"),
    "no such reference": (
        set_item(lambda c: c["samplers"][1]["fitted"]["_model"]["config"], "reference", "x"),
        "out of range",
    ),
    "infinite level": (set_item(lambda c: model(c)["config"], "log_snr_max", float("inf")), "out of range"),
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


CLAIMS = [
    {"n_transforms": 60, "n_layers": 100},
    {"n_transforms": 4096, "n_layers": 4096},
    {"n_transforms": 4096},
    {"n_layers": 4096},
    {"n_layers": 10**9, "n_transforms": 1},
    {"hidden": 4096, "bins": 4096},
    {"hidden": 10**12},
    {"bins": 10**12},
    {"n_features": 4096},
    {"n_features": 10**12},
    {"n_features": 10**7, "n_transforms": 16},
]


class TestClaims:
    """Sizes that are not those of the arrays in the file are refused before anything of these sizes is made."""

    @staticmethod
    def refused(path):
        """Seconds and bytes that it takes, the least of three times."""
        resource, seconds = pytest.importorskip("resource"), []
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(3):
            start = time.perf_counter()
            with pytest.raises(ModelFileError, match="sizes of a model are out of range"):
                skcds.load(path)
            seconds.append(time.perf_counter() - start)
        return min(seconds), 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)

    @pytest.mark.parametrize("claim", CLAIMS, ids=str)
    def test_of_a_student(self, claim, small, tmp_path):
        def change(content, arrays):
            model(content)["config"].update(claim)
            sampler(content)["fitted"]["n_features_in_"] = model(content)["config"]["n_features"]

        seconds, memory = self.refused(write(tmp_path / "a", forge(small, change)))
        assert seconds < 0.2 and memory < 5e7

    @pytest.mark.parametrize("network", ["coupling", "residual"])
    @pytest.mark.parametrize(
        "claim", [{"n_steps": 2**40}, {"map_layers": 10**6}, {"n_layers": 10**6}, {"map_hidden": 10**12}], ids=str
    )
    def test_of_one_from_scratch(self, network, claim, tmp_path):
        fitted("ConsistentSamplerScratch", network).save(tmp_path / "a")
        raw = forge((tmp_path / "a").read_bytes(), lambda content, arrays: model(content)["config"].update(claim))
        seconds, memory = self.refused(write(tmp_path / "a", raw))
        assert seconds < 0.2 and memory < 5e7

    @pytest.mark.parametrize("shape", [(0, 10**12), (10**12, 0)])
    def test_shapes_without_numbers(self, shape, small, tmp_path):
        """An empty array has any length, and lends it to no model."""

        def change(content, arrays):
            arrays[weight(content)] = np.zeros(shape, np.float32)
            model(content)["config"].update(n_features=10**12, n_transforms=8)
            sampler(content)["fitted"]["n_features_in_"] = 10**12

        seconds, memory = self.refused(write(tmp_path / "a", forge(small, change)))
        assert seconds < 0.2 and memory < 5e7

    @pytest.mark.parametrize("n_copies", [2, 200])
    def test_one_set_of_arrays_for_many_samplers(self, n_copies, small, tmp_path):
        def change(content, arrays):
            content["samplers"] += [content["samplers"][1]] * n_copies

        with pytest.raises(ModelFileError, match="used twice"):
            skcds.load(write(tmp_path / "a", forge(small, change)))


BAD_FLOATS = [float("nan"), float("inf"), -float("inf")]


def equal(a, b):
    """Whether two attributes are one, types and NaN included."""
    if dataclasses.is_dataclass(a):
        return all(equal(getattr(a, field.name), getattr(b, field.name)) for field in dataclasses.fields(a))
    if isinstance(a, float):
        return type(b) is float and (a == b or (a != a and b != b))
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, np.ndarray) and a.dtype != object:
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=True)
    return np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b


class TestWhatIsSavedLoads:
    """`save` accepts what `load` reads, and refuses what it does not before it writes."""

    @staticmethod
    def changed(kind, name, place, value):
        """A fit with a value that is not finite in an attribute: itself, or an element of it."""
        twin = copy.deepcopy(fitted(kind))
        owner, last = (twin, name) if "." not in name else (getattr(twin, name.split(".")[0]), name.split(".")[1])
        old = getattr(owner, last)
        if isinstance(old, float):
            object.__setattr__(owner, last, value)
        else:
            flat = old if isinstance(old, list) else old.reshape(-1)
            flat[place % len(flat)] = value
        return twin

    @pytest.mark.parametrize("value", BAD_FLOATS, ids=str)
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(
        "name",
        ["loss_curve_", "particles_", "log_evidence_", "log_evidence_se_", "elbo_", "ess_", "pilot_.log_evidence",
         "pilot_.loc", "pilot_.covariance", "pilot_.tail_width", "pilot_.tail_center", "violation_share_"],
    )  # fmt: skip
    def test_any_attribute(self, kind, name, value, tmp_path):
        if not hasattr(fitted(kind), name.split(".")[0]):
            pytest.skip("not an attribute of this kind")
        twin, path = self.changed(kind, name, 3, value), tmp_path / "a"
        if name in ("pilot_.loc", "pilot_.covariance", "pilot_.tail_center") or (
            name == "pilot_.tail_width" and not value > 0
        ):
            with pytest.raises(ModelFileError, match=r"was not saved, since .*not finite"):
                twin.save(path)
            assert os.listdir(tmp_path) == []
            return
        twin.save(path)
        loaded = skcds.load(path)
        for attribute in in_files(type(twin)):
            if attribute not in ("_model", "teacher_"):
                assert equal(getattr(loaded, attribute), getattr(twin, attribute)), attribute

    @pytest.mark.parametrize("value", [BAD_FLOATS[0], *slow(*BAD_FLOATS[1:])], ids=str)
    @each_case
    def test_weights_that_are_not_finite(self, kind, network, value, tmp_path):
        """In any one of them; the old file stays."""
        path = tmp_path / "a"
        fitted(kind, network).save(path)
        before = path.read_bytes()
        for name in fitted(kind, network)._model.state_dict():
            twin = copy.deepcopy(fitted(kind, network))
            tensor = twin._model.state_dict()[name]
            if tensor.is_floating_point():
                tensor.view(-1)[-1] = value
                if name.endswith("width") and value > 0:  # no width at all
                    twin.save(tmp_path / "b")
                    skcds.load(tmp_path / "b")
                    (tmp_path / "b").unlink()
                    continue
                with pytest.raises(ModelFileError, match=r"was not saved, since .* could not be loaded"):
                    twin.save(path)
        assert path.read_bytes() == before and os.listdir(tmp_path) == ["a"]

    @pytest.mark.parametrize(
        "kind, params",
        [
            ("DiffusionSampler", {"loss": PathLoss("kl", share=0.5), "learning_rate": 10.0}),
            ("DiffusionSampler", {"loss": "kl", "learning_rate": 1e12, "start": Prior(500)}),
            ("ConsistentSamplerDistiller", {"network": "coupling", "learning_rate": 1e6}),
            ("ConsistentSamplerDistiller", {"network": "residual", "learning_rate": 1e30}),
            ("ConsistentSamplerScratch", {"network": "residual", "learning_rate": 1e30}),
        ],
    )
    @pytest.mark.filterwarnings("ignore")
    def test_fits_that_diverged(self, kind, params, tmp_path):
        sampler = make(kind, max_iter=30, n_features=2, **params).fit(quadratic)
        sampler.save(tmp_path / "a")
        loaded = skcds.load(tmp_path / "a")
        assert equal(loaded.loss_curve_, sampler.loss_curve_) and loaded.n_rollbacks_ == sampler.n_rollbacks_

    @pytest.mark.filterwarnings("ignore")
    def test_losses_of_iterations_that_were_taken_back(self, tmp_path):
        """The control of the test above: its fits have what could not be read."""
        sampler = make("ConsistentSamplerDistiller", max_iter=30, n_features=2, network="residual", learning_rate=1e30)
        assert sampler.fit(quadratic).n_rollbacks_ and not np.isfinite(sampler.loss_curve_).all()

    @pytest.mark.parametrize(
        "kind, changes", [(KINDS[2], {"n_steps": 8192}), (KINDS[1], {"bins": 5000}), (KINDS[1], {"hidden": 5000})]
    )
    def test_large_sizes(self, kind, changes, tmp_path):
        """Those of a model that is there are no claims."""
        twin = copy.deepcopy(fitted(kind))
        standardization = twin._model.standardization
        twin._model = type(twin._model)(**{**twin._model.config, "n_transforms": 1, "n_layers": 1, **changes})
        twin._model.standardization = standardization
        twin.save(tmp_path / "a")
        assert skcds.load(tmp_path / "a").sample(3, random_state=0).shape == (3, D)

    @pytest.mark.filterwarnings("ignore")
    def test_unused_sizes(self, tmp_path):
        """Of a residual map, which has no splines."""
        twin = copy.deepcopy(fitted(KINDS[2], "residual"))
        twin._model = type(twin._model)(**{**twin._model.config, "bins": 10**7, "n_transforms": 10**7})
        twin._model.standardization = fitted(KINDS[2], "residual")._model.standardization
        twin.save(tmp_path / "a")
        assert skcds.load(tmp_path / "a")._model.config["bins"] == 10**7

    def test_parameters_that_no_fit_takes(self, tmp_path):
        twin = copy.deepcopy(fitted(KINDS[0])).set_params(max_iter=-3)
        with pytest.raises(ModelFileError, match=r"was not saved.*max_iter"):
            twin.save(tmp_path / "a")
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize(
        "as_bounds", [np.array, torch.tensor, pandas.DataFrame, tuple], ids=lambda kind: kind.__name__
    )
    def test_bounds_of_any_type(self, as_bounds, tmp_path):
        bounds = [[0.0, np.inf], [-1.0, 2.5]]
        sampler = copy.deepcopy(fitted(KINDS[0])).set_params(bounds=as_bounds(bounds))
        sampler.save(tmp_path / "a")
        assert skcds.load(tmp_path / "a").bounds == bounds

    def test_random_state_of_another_generator(self, tmp_path):
        twin = copy.deepcopy(fitted(KINDS[0])).set_params(random_state=np.random.RandomState(np.random.PCG64(0)))
        with pytest.raises(TypeError, match="random_state of type RandomState cannot be saved"):
            twin.save(tmp_path / "a")
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_particles_of_both_types(self, dtype, tmp_path):
        twin = copy.deepcopy(fitted(KINDS[0]))
        twin.particles_ = twin.particles_.astype(dtype)
        twin.save(tmp_path / "a")
        loaded = skcds.load(tmp_path / "a")
        assert loaded.particles_.dtype == dtype and np.array_equal(loaded.particles_, twin.particles_)
        assert loaded.set_params(warm_start=True, max_iter=2).fit(quadratic).n_iter_ == 2
        loaded.diagnose(200, random_state=0)


@pytest.mark.parametrize("kind", [*KINDS[:2], *slow(KINDS[2])])
@pytest.mark.filterwarnings("ignore")
def test_draws_are_the_same_to_the_last_bit(kind, tmp_path):
    """Of correlated coordinates: in another layout of the same matrix they would be rounded otherwise.

    In 20 dimensions that changes the last digit of some of 1000 draws.
    """
    A = torch.tensor(np.random.default_rng(0).normal(size=(20, 20)) + 2 * np.eye(20))

    def energy(x):
        return 0.5 * ((x.double() @ A - 3) ** 2).sum(1)

    sampler = make(kind, n_features=20, max_iter=2).fit(energy)
    sampler.save(tmp_path / "a")
    assert all(tensor.is_contiguous() for tensor in sampler._model.state_dict().values())
    for other in (skcds.load(tmp_path / "a"), copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):
        ours, theirs = (s.sample_weighted(1000, random_state=0, energy_fn=energy) for s in (sampler, other))
        assert np.array_equal(ours.samples, theirs.samples)
        assert np.array_equal(ours.log_weights, theirs.log_weights)


class TestSave:
    def test_unfitted(self, tmp_path):
        with pytest.raises(NotFittedError):
            make(KINDS[0]).save(tmp_path / "a")
        assert os.listdir(tmp_path) == []

    def test_class_of_ones_own(self, tmp_path):
        mine = Mine(2, n_steps=4, start=Pilot(n_particles=100), max_iter=2, random_state=0, tag=3).fit(quadratic)
        mine.save(tmp_path / "a")
        loaded = skcds.load(tmp_path / "a")
        assert type(loaded) is Mine and loaded.tag == 3 and loaded.centre_ == mine.centre_ != 0
        assert np.array_equal(loaded.sample(9, random_state=0, energy_fn=quadratic), mine.sample(9, random_state=0))
        student = ConsistentSamplerDistiller(mine, max_iter=2, random_state=0, network=Coupling(n_transforms=2)).fit(
            quadratic
        )
        student.save(tmp_path / "b")
        assert type(skcds.load(tmp_path / "b").teacher_) is Mine

    def test_attribute_that_its_class_does_not_declare(self, tmp_path):
        mine = Mine(2, n_steps=4, start=Pilot(n_particles=100), max_iter=2, random_state=0).fit(quadratic)
        mine.other_ = 1
        with pytest.raises(TypeError, match=r"Mine has fitted attributes other_ that it does not declare"):
            mine.save(tmp_path / "a")
        assert os.listdir(tmp_path) == []

    def test_class_that_was_defined_anew(self, tmp_path):
        mine = Mine(2, n_steps=4, start=Pilot(n_particles=100), max_iter=2, random_state=0).fit(quadratic)
        again = type("Mine", (DiffusionSampler,), {"__module__": __name__, "__qualname__": "Mine"})
        with pytest.raises(TypeError, match=r"Mine was defined anew"):
            mine.save(tmp_path / "a")
        SAMPLERS[key_of(again)] = Mine
        mine.save(tmp_path / "a")

    def test_class_of_ones_own_that_is_not_imported(self, tmp_path, monkeypatch):
        Mine(2, n_steps=4, start=Pilot(n_particles=100), max_iter=2, random_state=0).fit(quadratic).save(tmp_path / "a")
        monkeypatch.delitem(SAMPLERS, key_of(Mine))
        with pytest.raises(ModelFileError, match=r"Mine' is none of .*has to be imported first"):
            skcds.load(tmp_path / "a")

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

    def test_with_steps(self):
        """A file of format 3, written by version 0.1.0.dev0, of the same student, with its teacher's steps."""
        student = skcds.load(DATA / "format-3.skcds")
        expected = [[1.2327, 0.2908], [0.2979, -0.5320]]
        np.testing.assert_allclose(student.sample(2, random_state=0), expected, atol=2e-3)
        expected = [[1.6395, -0.1910], [0.4342, -0.1733]]
        draws = student.teacher_.sample(2, random_state=0, energy_fn=lambda x: x.sum(1))
        np.testing.assert_allclose(draws, expected, atol=2e-3)
        assert student.teacher_.n_steps_ == 4 and student.teacher_.bounds_scale_.shape == (2,)

    def test_with_parameters_that_are_fields_now(self):
        """Files of format 4, written by version 0.1.0.dev0, whose sizes and losses were parameters of their own."""
        student = skcds.load(DATA / "format-4.skcds")
        expected = [[1.8552, 1.3674], [0.2940, 0.6427], [2.4944, 0.4909]]
        np.testing.assert_allclose(student.sample(3, random_state=0), expected, atol=2e-3)
        assert student.network == Coupling(4, 1, n_transforms=1, bins=4) and student.objective.weight == 0.2
        assert student.teacher_.network == Control(4, 1, "fixed", False) and student.teacher.start == Pilot(None, 100)
        sampler = skcds.load(DATA / "format-4-scratch.skcds")
        expected = [[1.4773, 1.5891], [0.3144, 0.8802], [1.9526, 0.5820]]
        np.testing.assert_allclose(sampler.sample(3, random_state=0), expected, atol=2e-3)
        assert sampler.objective == SelfConsistency("joint", refine=False, batch_size=16, path_batch_size=8)
        assert sampler.control == Control(4, 1) and sampler.start == Pilot((0.0, 2.0), 100)

    def test_with_a_tolerance_of_the_sampler(self):
        """A file of format 5, written by version 0.1.0.dev0, in which `tol` was a parameter of the teacher."""
        student = skcds.load(DATA / "format-5.skcds")
        expected = [[1.2023, 0.4600], [0.2986, -0.4201], [2.1377, -0.4999]]
        np.testing.assert_allclose(student.sample(3, random_state=0), expected, atol=2e-3)
        assert student.teacher.loss == PathLoss(tol=0.3) and student.teacher_.loss == PathLoss(tol=0.3)
        assert np.isnan(student.total_variation_) and student.periodic is None and student.seam_ is None

    def test_with_a_periodic_coordinate(self):
        """A file of format 6, written by version 0.1.0.dev0, of a student whose couplings do not stretch."""
        student = skcds.load(DATA / "format-6.skcds")
        expected = [[1.3263, 0.4334], [0.2604, -0.6492], [2.6139, -0.4798]]
        np.testing.assert_allclose(student.sample(3, random_state=0), expected, atol=2e-3)
        np.testing.assert_allclose(student.seam_, [np.nan, 2.1307], atol=1e-4)
        assert student.teacher.periodic == [1] and "stretch" not in student._model.config

    def test_with_stretches(self):
        """A file of format 7, written by version 0.1.0.dev0, of the same student whose couplings do."""
        student = skcds.load(DATA / "format-7.skcds")
        expected = [[1.3339, 0.4242], [0.2585, -0.6549], [2.6484, -0.4758]]
        np.testing.assert_allclose(student.sample(3, random_state=0), expected, atol=2e-3)
        assert student._model.config["stretch"] is True and "elementwise" not in student._model.config

    def test_with_splines_of_single_coordinates(self):
        """A file of format 8, written by version 0.1.0.dev0, of a student with them."""
        student = skcds.load(DATA / "format-8.skcds")
        expected = [[1.3836, 1.0728], [0.2594, 0.3778], [2.0304, 0.3893]]
        np.testing.assert_allclose(student.sample(3, random_state=0), expected, atol=2e-3)
        assert student._model.config["elementwise"] is True and student.network.elementwise is True

    def test_with_non_centred_coordinates(self):
        """A file of format 9, written by version 0.1.0.dev0, of a sampler of a funnel."""
        sampler = skcds.load(DATA / "format-9.skcds")
        expected = [[1.7901, 1.445], [-2.2737, -0.0968], [3.5707, -1.9276]]
        np.testing.assert_allclose(sampler.sample(3, random_state=0), expected, atol=2e-3)
        assert sampler.pilot_.noncentred.leading == (0,)

    def test_with_a_triangular_map(self):
        """A file of format 10, written by version 0.1.0.dev0, of a sampler that such a map was put into."""
        sampler = skcds.load(DATA / "format-10.skcds")
        expected = [[1.0539, -0.0472, -0.1081], [0.2769, -0.4022, 1.2233], [-0.9874, -2.1769, 1.4352]]
        draws = sampler.sample(3, random_state=0, energy_fn=lambda x: 0.5 * (x**2).sum(1))
        np.testing.assert_allclose(draws, expected, atol=2e-3)
        assert sampler._model.config["triangular"] is True and (sampler.pilot_.triangular.curvature != 0).any()

    def test_with_principal_axes(self):
        """A file of format 11, written by version 0.1.0.dev0, of a sampler that a rotation was put into."""
        sampler = skcds.load(DATA / "format-11.skcds")
        expected = [[-0.0307, -1.0224, -0.3336], [0.7594, -0.9861, 0.4388], [-0.6058, 0.7412, -0.1921]]
        draws = sampler.sample(3, random_state=0, energy_fn=lambda x: 0.5 * (x**2).sum(1))
        np.testing.assert_allclose(draws, expected, atol=2e-3)
        assert sampler._model.config["rotation"] is True and (sampler.pilot_.rotation.axes < 0).any()

    def test_with_a_cubic_triangular_map(self):
        """A file of format 12, written by version 0.1.0.dev0, of a sampler that such a map was put into."""
        sampler = skcds.load(DATA / "format-12.skcds")
        expected = [[0.5653, 0.4708, -0.1628], [-0.3278, 0.7955, 0.2817], [0.4634, -1.0448, 1.6246]]
        np.testing.assert_allclose(sampler.sample(3, random_state=0), expected, atol=2e-3)
        assert sampler._model.config["degree"] == sampler.pilot_.triangular.degree == 3
        with pytest.raises(ValueError, match="no evaluations with weights"):  # which later formats have
            sampler.weighted_evaluations()

    def test_with_weighed_points(self):
        """A file of format 13, written by version 0.1.0.dev0, with the first 40 of the points."""
        sampler = skcds.load(DATA / "format-13.skcds")
        expected = [[1.5163, 1.5995], [0.4475, 0.6795], [2.5026, 0.7729]]
        np.testing.assert_allclose(sampler.sample(3, random_state=0), expected, atol=2e-3)
        weighted = sampler.weighted_evaluations()
        np.testing.assert_allclose(weighted.samples[0], [1.4893, -1.3467], atol=1e-4)
        np.testing.assert_allclose(weighted.log_weights[:3], [1.5722, 1.7424, 1.1392], atol=1e-4)
        assert sampler.pilot_.sparse is None

    def test_with_a_sparse_precision(self):
        """A file of format 14, written by version 0.1.0.dev0, of a sampler that its map was put into."""
        sampler = skcds.load(DATA / "format-14.skcds")
        expected = [
            [0.2185, 0.4525, -0.1337, 0.9216],
            [0.7627, -0.0108, 0.2214, 0.6860],
            [-0.0884, 0.5021, -0.1224, 1.7763],
        ]
        np.testing.assert_allclose(sampler.sample(3, random_state=0), expected, atol=2e-3)
        assert sampler._model.config["n_root"] == len(sampler.pilot_.sparse.root) == 8


class TestOtherFormats:
    def test_pickle_of_another_version_warns(self, monkeypatch):
        data = pickle.dumps(fitted(KINDS[0]))
        monkeypatch.setattr(skcds._version, "__version__", "99.1")
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
