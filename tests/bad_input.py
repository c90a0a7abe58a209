"""Bad input and what becomes of it: one table, which the tests run through and the documentation prints.

A case acts on a fitted sampler, which has to be what it was afterwards where an error is expected.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import NotFittedError

import skcds
from skcds import ConsistentSamplerDistiller, DiffusionSampler, ModelFileError, Pilot
from skcds.density.energy import InvalidEnergyError
from skcds.io.reader import FORMAT as NEWEST
from skcds.specifications import Climbs, Race

D = 3
FORMAT = rb"\"format\": %d"
FAR = Pilot(n_particles=500, race=Race(n_particles=100), climbs=Climbs(n_before=4, n_after=4))


def quadratic(x):
    return 0.5 * ((x - 1.0) ** 2).sum(1)


@dataclass(frozen=True)
class Case:
    """What is done, in words and in code, and the error or warning that answers it; None where it has to work."""

    group: str
    what: str
    act: Callable[[Any, Path], Any]
    answer: type[BaseException] | None
    message: str = ""
    kind: str = "DiffusionSampler"


def energy(what, energy_fn, answer, message="", **options):
    """Of functions that have to work also the scale has to be found, from scales as far as those of the default."""

    def act(sampler, path):
        (sampler.set_params(start=FAR) if answer is None else sampler).fit(energy_fn, **options)

    return Case("energy", what, act, answer, message)


def parameter(name, value, message=None, answer=ValueError, kind="DiffusionSampler"):
    act = lambda s, path: s.set_params(**{name: value}).fit(quadratic)  # noqa: E731
    return Case("parameter", f"``{name}={value!r}``", act, answer, message or f"'{name}' parameter", kind)


def call(what, act, answer, message="", kind="ConsistentSamplerDistiller"):
    return Case("call", what, lambda s, path: act(s), answer, message, kind)


def file(what, damage, message):
    def act(sampler, path):
        sampler.save(path / "sampler.skcds")
        damage(path / "sampler.skcds")
        skcds.load(path / "sampler.skcds")

    return Case("file", what, act, ModelFileError, message)


def newer(raw: bytes) -> bytes:
    """The bytes of a file with the number of a format that is not there yet."""
    return raw.replace(FORMAT % NEWEST, FORMAT % (NEWEST + 1))


def overwrite(change):
    return lambda path: path.write_bytes(change(path.read_bytes()))


def raise_error(x):
    raise KeyError("mine")


def late(error, after=40):
    calls = []

    def energy_fn(x):
        calls.append(1)
        if len(calls) > after:
            raise error
        return quadratic(x)

    return energy_fn


def writes(x):
    value = quadratic(x)
    x *= 0
    return value


def checkpoint_of_another(sampler, path):
    DiffusionSampler(D, n_steps=8, max_iter=2, random_state=0, start=Pilot(n_particles=500)).fit(
        quadratic, checkpoint=path / "a"
    )
    sampler.fit(quadratic, checkpoint=path / "a")


def damaged_checkpoint(sampler, path):
    (path / "a").write_bytes(b"damaged")
    sampler.fit(quadratic, checkpoint=path / "a")


noise = torch.Generator().manual_seed(0)
CASES = [
    energy("not callable", 3.0, TypeError, "has to be a function"),
    energy("None", None, TypeError, "has to be a function"),
    energy("one number for the batch", lambda x: quadratic(x).sum(), InvalidEnergyError, "not over the batch"),
    energy("a column (n, 1)", lambda x: quadratic(x)[:, None], InvalidEnergyError, r"Drop the last axis"),
    energy("a number a coordinate", lambda x: (x - 1) ** 2, InvalidEnergyError, r"shape \(7,\)"),
    energy("one row too few", lambda x: quadratic(x)[:-1], InvalidEnergyError, r"shape \(6,\)"),
    energy("None for a batch", lambda x: None, InvalidEnergyError, "real numbers"),
    energy("text", lambda x: "low", InvalidEnergyError, "real numbers"),
    energy("complex numbers", lambda x: np.asarray(quadratic(x)) + 1j, InvalidEnergyError, "complex"),
    energy("truth values", lambda x: np.asarray(quadratic(x)) > 1, InvalidEnergyError, "bool"),
    energy("NaN everywhere", lambda x: quadratic(x) * torch.nan, InvalidEnergyError, "nan at every"),
    energy("minus infinity everywhere", lambda x: quadratic(x) - torch.inf, InvalidEnergyError, "-inf at every"),
    energy("plus infinity everywhere", lambda x: quadratic(x) + torch.inf, InvalidEnergyError, "no|every point"),
    energy("NaN here and there", lambda x: torch.where(x[:, 0] > 2.5, torch.nan, quadratic(x)), RuntimeWarning, "NaN"),
    energy("rows that depend on each other", lambda x: quadratic(x - x.mean(0)), InvalidEnergyError, "that row alone"),
    energy("random", lambda x: quadratic(x) + torch.rand(len(x), generator=noise), InvalidEnergyError, "be random"),
    energy("raises an error", raise_error, KeyError, "mine"),
    energy("raises an error later", late(KeyError("mine")), KeyError, "mine"),
    energy("writes into its argument", writes, None),
    energy("takes float32 only", lambda x: quadratic(x.float()) if x.dtype == torch.float32 else raise_error(x), None),
    energy("without a graph", lambda x: quadratic(x.detach()), None),
    energy("a million times too steep", lambda x: 1e6 * quadratic(x), None),
    energy("periodic, of infinite mass", lambda x: x.sin().sum(1), InvalidEnergyError, "infinite mass"),
    energy("a million times too flat", lambda x: 1e-6 * quadratic(x), None),
    energy("shifted by 1e8", lambda x: quadratic(x) + 1e8, None),
    energy("a NumPy function", lambda x: 0.5 * np.square(np.asarray(x) - 1).sum(1), None),
    energy("of infinite mass: tails like 1 / x", lambda x: 0.5 * torch.log1p(x**2).sum(1), InvalidEnergyError,
           "infinite mass"),
    energy("a gradient of another shape", lambda x: 0.5 * np.square(x).sum(1), InvalidEnergyError, "grad_fn",
           grad_fn=lambda x: x[:, :1]),
    parameter("n_features", 0),
    parameter("n_features", 2.5),
    parameter("n_features", "3"),
    parameter("n_steps", 1),
    parameter("max_iter", 0),
    parameter("max_time", -1.0),
    parameter("max_energy_evals", 0),
    parameter("learning_rate", 0.0),
    parameter("batch_size", 0),
    parameter("random_state", "seed"),
    parameter("reference", "ddpm"),
    parameter("loss", "l2"),
    parameter("start", "random"),
    parameter("network", "residual"),
    parameter("periodic", [0], "needs bounds="),
    parameter("loss__tol", 2.0, "'tol' parameter"),
    parameter("bounds", (1, 0), "lower bound below"),
    parameter("bounds", [(0, 1)], "one pair"),
    parameter("feature_names", ["a", "b"], "3 different names"),
    parameter("n_init", 0),
    parameter("n_jobs", 1.5),
    parameter("network", "transformer", kind="ConsistentSamplerDistiller"),
    parameter("n_steps", 12, "power of two", kind="ConsistentSamplerScratch"),
    Case("parameter", "``loss='kl'`` without a gradient",
         lambda s, path: s.set_params(loss="kl").fit(lambda x: 0.5 * np.square(np.asarray(x)).sum(1)),
         ValueError, "loss='kl' follows the gradient"),
    Case("parameter", "no dimension", lambda s, path: s.set_params(n_features=None).fit(quadratic), ValueError,
         "dimension of the density is not known"),
    parameter("teacher", "DIS", "teacher has to be a DiffusionSampler", TypeError, "ConsistentSamplerDistiller"),
    Case("parameter", "a student as teacher",
         lambda s, path: s.set_params(teacher=ConsistentSamplerDistiller()).fit(quadratic), TypeError,
         "teacher has to be a DiffusionSampler", "ConsistentSamplerDistiller"),
    Case("parameter", "a teacher of another dimension", lambda s, path: s.set_params(n_features=2).fit(quadratic),
         ValueError, "teacher samples 3 features", "ConsistentSamplerDistiller"),
    Case("parameter", "a checkpoint of other parameters", checkpoint_of_another, ValueError, "belongs to another fit"),
    Case("parameter", "a damaged checkpoint", damaged_checkpoint, ValueError, "cannot be read"),
    call("not fitted", lambda s: DiffusionSampler(2).sample(3), NotFittedError),
    call("``sample(-1)``", lambda s: s.sample(-1), ValueError, "n has to be at least 0"),
    call("``sample(2.5)``", lambda s: s.sample(2.5), TypeError, "n has to be an integer"),
    call("``sample('3')``", lambda s: s.sample("3"), TypeError, "n has to be an integer"),
    call("``sample(True)``", lambda s: s.sample(True), TypeError, "n has to be an integer"),
    call("``sample_weighted(0)``", lambda s: s.sample_weighted(0), ValueError, "n has to be at least 1"),
    call("``n_steps=0``", lambda s: s.sample(3, n_steps=0), ValueError, "n_steps has to be at least 1"),
    call("``n_steps`` of no power of two", lambda s: s.sample(3, n_steps=3), ValueError, "has to be one of",
         "ConsistentSamplerScratch"),
    call("``method='euler'``", lambda s: s.sample(3, method="euler"), ValueError, "method has to be",
         "DiffusionSampler"),
    call("``random_state='a'``", lambda s: s.sample(3, random_state="a"), ValueError, "cannot be used to seed"),
    call("too small an array for the draws", lambda s: s.sample(3, out=np.empty((2, D))), ValueError, "out has to be"),
    call("``score_samples`` at NaN", lambda s: s.score_samples(np.full((2, D), np.nan)), ValueError,
         "NaN in 2 of 2 rows", "ConsistentSamplerScratch"),
    call("``score_samples`` in another dimension", lambda s: s.score_samples(np.ones((2, 1))), ValueError,
         "X has 1 features", "ConsistentSamplerScratch"),
    call("``score_samples`` of draws of a chain", lambda s: s.score_samples(np.ones((2, D)), n_steps=2), ValueError,
         "no closed form", "ConsistentSamplerScratch"),
    call("``score_samples`` of the many-step sampler", lambda s: s.score_samples(np.ones((2, D))), AttributeError,
         "one-step samplers", "DiffusionSampler"),
    call("too few draws for a diagnosis", lambda s: s.diagnose(10), ValueError, "at least 100"),
    call("an energy of another dimension", lambda s: s.sample_weighted(9, energy_fn=lambda x: x[:, D]),
         (IndexError, InvalidEnergyError)),
    file("cut off", overwrite(lambda raw: raw[:1000]), "cut off"),
    file("empty", overwrite(lambda raw: b""), "empty"),
    file("one bit flipped", overwrite(lambda raw: raw[:-9] + bytes([raw[-9] ^ 4]) + raw[-8:]), "SHA-256"),
    file("a renamed pickle", overwrite(lambda raw: b"\x80\x04cos\nsystem\n"), "cut off|no safetensors"),
    file("of another program", overwrite(lambda raw: b"\x89PNG" + bytes(96)), "cut off|no safetensors"),
    file("of a newer format", overwrite(newer), "update skcds"),
]  # fmt: skip


def table() -> str:
    """The cases as a table in reStructuredText."""
    lines = [".. list-table::", "   :header-rows: 1", "", "   * - Of", "     - What", "     - Answer"]
    for case in CASES:
        answers = case.answer if isinstance(case.answer, tuple) else (case.answer,)
        answer = " or ".join(f"``{answer.__name__}``" if answer else "works" for answer in answers)
        lines += [f"   * - {case.group}", f"     - {case.what}", f"     - {answer}"]
    return "\n".join(lines) + "\n"
