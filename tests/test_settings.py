"""A guest in any program: what PyTorch was set to changes no bit of a public call, and no public call changes it."""

import ast
import contextlib
import copy
import inspect
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import slow
from public_calls import arguments_of, bits, drained, methods_of, of_estimators, of_fits, of_modules
from samplers import KINDS, fitted, make, quadratic

import skcds
from skcds._support.settings import own_modes

with contextlib.suppress(ImportError):
    import sympy  # noqa: F401  PyTorch imports it in its own time, by which it adds a filter of warnings

ROOT = Path(__file__).parent.parent / "skcds"


# ------------------------------------------------------------------------------------------------ settings


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def flushed_denormals():
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@contextlib.contextmanager
def default_device(name):
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def all_of(*settings):
    with contextlib.ExitStack() as stack:
        for setting in settings:
            stack.enter_context(SETTINGS[setting]())
        yield


SETTINGS = {
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "cpu": lambda: default_device("cpu"),
    "meta": lambda: default_device("meta"),
    "cuda": lambda: default_device("cuda"),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "deterministic": deterministic,
    "flushed_denormals": flushed_denormals,
}
TOGETHER = {
    "all": ("float64", "meta", "inference_mode", "autocast", "deterministic", "flushed_denormals"),
    "others": ("float16", "no_grad", "cuda" if torch.cuda.is_available() else "cpu"),
}
slow_ones = [pytest.param((name,), id=name, marks=pytest.mark.slow) for name in SETTINGS if name != "cuda"]
each_setting = pytest.mark.parametrize(
    "settings", [*(pytest.param(names, id=name) for name, names in TOGETHER.items()), *slow_ones]
)


def state():
    """What a program may have set, and the random numbers that it has not drawn yet."""
    return {
        "dtype": torch.get_default_dtype(), "device": torch.get_default_device(), "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(), "autocast": torch.is_autocast_enabled("cpu"),
        "deterministic": torch.are_deterministic_algorithms_enabled(), "flushed": np.nextafter(0.0, 1.0) * 1.0 == 0.0,
        "threads": torch.get_num_threads(), "filters": list(warnings.filters),
        "numpy": np.random.get_state()[1].tobytes(), "torch": torch.get_rng_state().numpy().tobytes(),
        "errors": np.geterr(),
    }  # fmt: skip


def found(call, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # small fits warn
        before = state()
        value = drained(call(folder))
        assert state() == before
    return bits(value)


EXPECTED = {}


def check(name, call, settings, folder):
    if name not in EXPECTED:
        (folder / "plain").mkdir()
        EXPECTED[name] = found(call, folder / "plain")
    (folder / "set").mkdir()
    with all_of(*settings):
        assert found(call, folder / "set") == EXPECTED[name]


# --------------------------------------------------------------------------------------------------- calls


@each_setting
@pytest.mark.parametrize("name", of_estimators())
def test_calls_of_samplers(name, settings, tmp_path):
    check(name, of_estimators()[name], settings, tmp_path)


@each_setting
@pytest.mark.parametrize("name", [*of_fits(others=False), *slow(*sorted({*of_fits()} - {*of_fits(others=False)}))])
def test_fits(name, settings, tmp_path):
    check(name, of_fits()[name], settings, tmp_path)


@each_setting
@pytest.mark.parametrize("name", of_modules())
def test_calls_of_modules(name, settings, tmp_path):
    if "targets" in name:  # they compute in the modes of their caller, as any function of tensors
        settings = tuple(setting for setting in settings if setting != "autocast")
    check(name, of_modules()[name], settings, tmp_path)


def test_the_walk_can_see_a_setting():
    """Negative control: calls that rely on a default, or change one, are found out."""
    for setting, careless in {
        "float64": lambda folder: torch.ones(3) / 3,
        "inference_mode": lambda folder: [torch.ones(3).is_inference()],
        "flushed_denormals": lambda folder: torch.full((1,), 1e-320, dtype=torch.float64) * 1,
    }.items():
        plain = found(careless, None)
        with all_of(setting):
            assert found(careless, None) != plain, setting
    with pytest.raises(AssertionError):
        found(lambda folder: torch.set_num_threads(torch.get_num_threads() + 1), None)
    torch.set_num_threads(1)


def test_what_was_made_under_a_setting_is_as_good_as_any(tmp_path):
    """A sampler that was loaded or copied in inference mode is fitted on: its tensors can be differentiated."""
    fitted("ConsistentSamplerScratch").save(tmp_path / "sampler")
    with torch.inference_mode():
        samplers = [skcds.load(tmp_path / "sampler"), copy.deepcopy(fitted("ConsistentSamplerScratch"))]
    for sampler in samplers:
        assert not any(parameter.is_inference() for parameter in sampler._model.parameters())
        sampler.set_params(warm_start=True, max_iter=2).fit(quadratic)


def test_the_energy_sees_what_the_user_has_set():
    seen = []

    def energy(x):
        seen.append((torch.get_default_dtype(), torch.get_default_device().type))
        return quadratic(x)

    with all_of("float64", "meta"):
        make("ConsistentSamplerScratch", max_iter=4).fit(energy)
    assert set(seen) == {(torch.float64, "meta")}


# -------------------------------------------------------------------------------------------------- errors


class Failing:
    """An energy that raises after some calls."""

    def __init__(self, error, calls):
        self.error, self.left = error, calls

    def __call__(self, x):
        self.left -= 1
        if self.left < 0:
            raise self.error
        return quadratic(x)


def with_energy(kind):
    """Public methods that take an energy."""
    methods = ["fit", *methods_of(kind)]
    return [name for name in methods if "energy_fn" in inspect.signature(getattr(fitted(kind), name)).parameters]


@pytest.mark.parametrize(
    "error, calls", [(RuntimeError("mine"), 0), (RuntimeError("mine"), 6), (KeyboardInterrupt(), 6)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_an_error_leaves_the_settings(kind, calls, error):
    torch.set_num_threads(5)  # more than there are processors, so that a call takes fewer
    try:
        for method in with_energy(kind):
            sampler = make(kind) if method == "fit" else fitted(kind)
            arguments = {**arguments_of(getattr(sampler, method), method), "energy_fn": Failing(error, calls)}
            if method == "sample" and kind != "DiffusionSampler":
                arguments["polish"] = 8
            with warnings.catch_warnings(), all_of("float64", "no_grad", "flushed_denormals"):
                warnings.simplefilter("ignore")
                before = state()
                with contextlib.suppress(Exception, KeyboardInterrupt):
                    getattr(sampler, method)(**arguments)
                assert state() == before, method
    finally:
        torch.set_num_threads(1)


def test_denormals_are_numbers_inside():
    with flushed_denormals():
        before = state()["flushed"]
        with own_modes():
            assert not state()["flushed"]
        assert state()["flushed"] == before


def test_between_batches_the_caller_has_its_own_modes():
    with torch.inference_mode(), flushed_denormals():
        before = state()
        for _ in fitted("ConsistentSamplerScratch").iter_samples(200, 50, random_state=0):
            assert state() == before


# ------------------------------------------------------------------------------------------------- sources

FACTORIES = {  # of tensors, and which of dtype, device and source of randomness they take from a default
    "dtype device": ["empty", "eye", "full", "linspace", "logspace", "ones", "rand", "randn", "tensor", "zeros"],
    "device": ["arange", "as_tensor", "randint", "randperm", "tril_indices", "triu_indices"],
    "generator": ["bernoulli", "multinomial", "normal", "poisson"],
}
LAYERS = ["Conv1d", "Embedding", "LayerNorm", "Linear", "RMSNorm"]


def unsaid(source):
    """Calls that make tensors and leave dtype, device or generator to the defaults, as (line, name)."""
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        owner, name = node.func.value, node.func.attr
        if not (isinstance(owner, ast.Name) and owner.id in ("torch", "nn")):
            continue
        needed = next((keys for keys, names in FACTORIES.items() if name in names), "dtype device" * (name in LAYERS))
        if set(needed.split()) - {keyword.arg for keyword in node.keywords}:
            yield node.lineno, name


def test_whoever_makes_a_tensor_says_dtype_and_device():
    for path in sorted(ROOT.rglob("*.py")):
        if path.name != "__main__.py":  # a program, and no guest
            assert not list(unsaid(path.read_text(encoding="utf-8"))), path.relative_to(ROOT)


def test_defaults_and_filters_are_changed_nowhere():
    """Settings of the whole process, which other threads would see."""
    for path in ROOT.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for name in ("set_default_dtype(", "set_default_device(", "catch_warnings(", "simplefilter(", "use_determ"):
            assert name not in text, (path.relative_to(ROOT), name)


def test_an_unsaid_default_is_found():
    source = "torch.zeros(3)\ntorch.ones(3, device=x.device)\nnn.Linear(2, 3)\ntorch.arange(3)\ntorch.cat([a])"
    source += "\ntorch.multinomial(weights, 3)"
    assert [name for _, name in unsaid(source)] == ["zeros", "ones", "Linear", "arange", "multinomial"]
    assert not list(unsaid("torch.zeros(3, dtype=FLOAT, device=CPU)\nx.new_zeros(3)\ntorch.arange(3, device=CPU)"))
