"""Saved samplers: one safetensors file that is checked whole before anything is built from it, and runs no code."""

__all__ = ["ModelFileError", "load"]

import dataclasses
import math
import numbers
import os
import platform
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import sklearn
import torch
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted

from ._base import MODELS, BaseSampler, name_of, pack, package_version, unpack
from ._diffusion import DiffusionSampler
from ._distiller import ConsistentSamplerDistiller
from ._scratch import ConsistentSamplerScratch
from .bounds import Bounds
from .devices import loading_device
from .export import checked_names
from .files import DamagedFileError, check_hash, check_place, open_arrays, read_header, replace_file, seal
from .networks import without_draws
from .pilot import PilotResult
from .process import GRIDS

FORMAT = 3  # of the files that `save` writes; `load` reads this and all earlier ones
KIND = "skcds"
MAX_STEPS = 2**20  # of a model's grid, which is the one size that no array in the file has

SAMPLERS: dict[str, type[BaseSampler]] = {
    cls.__name__: cls for cls in (DiffusionSampler, ConsistentSamplerDistiller, ConsistentSamplerScratch)
}
# Fitted attributes and their types. Of arrays, the lengths of the axes, where d is the number of features.
COMMON = {
    "_model": "model", "n_features_in_": "count", "n_energy_evals_": "count", "n_grad_evals_": "count",
    "n_network_evals_": "count", "n_iter_": "count", "loss_curve_": "numbers", "log_evidence_": "number",
    "log_evidence_se_": "number", "elbo_": "number", "ess_": "number", "converged_": "flag", "interrupted_": "flag",
    "n_rollbacks_": "count", "bounds_": "bounds", "bounds_scale_": "scales", "feature_names_out_": "names",
}  # fmt: skip
ADDED = {  # fitted attributes by the format that brought them
    2: {"elbo_", "bounds_", "bounds_scale_", "feature_names_out_"},
    3: {"n_steps_"},
}
FITTED = {
    "DiffusionSampler": COMMON | {"pilot_": "pilot", "particles_": "particles", "n_steps_": "count"},
    "ConsistentSamplerDistiller": COMMON | {"violation_share_": "number", "teacher_": "sampler"},
    "ConsistentSamplerScratch": COMMON | {"pilot_": "pilot", "particles_": "particles", "violation_share_": "number"},
}
# Arrays that may hold values that are not finite, by the ends of their names: bounds and widths that are none, losses
# of iterations that were taken back, and particles beyond the range of their type.
UNLIMITED = ("width", "bounds_", "loss_curve_", "particles_")

UNSAVED = {"_energy", "_lost_energy", "_particles_log_prob", "fit_time_"}


class ModelFileError(ValueError):
    """A file is not a saved sampler, or not the one that was written; or a sampler cannot be saved as it is."""


# -------------------------------------------------------------------- writing


def save(sampler: BaseSampler, path) -> None:
    """Write a fitted sampler to one file; see `BaseSampler.save`."""
    check_is_fitted(sampler)
    check_place(path)
    raw = to_bytes(sampler)
    try:
        from_bytes(raw, device="cpu")
    except Exception as error:
        raise ModelFileError(
            f"This {type(sampler).__name__} was not saved, since the file could not be loaded: {error}"
        ) from error
    replace_file(path, raw)


def to_bytes(sampler: BaseSampler) -> bytes:
    """The file of a fitted sampler."""
    writer = _Writer()
    root = writer.sampler(sampler)
    content = {
        "format": FORMAT,
        "root": root,
        "samplers": writer.samplers,
        "versions": {
            "skcds": package_version(), "torch": torch.__version__, "numpy": np.__version__, "scipy": scipy.__version__,
            "scikit-learn": sklearn.__version__, "python": platform.python_version(),
        },
    }  # fmt: skip
    return seal(KIND, content, writer.arrays)


class _Writer:
    """Takes samplers apart into plain values and named arrays; a sampler that occurs twice is written once."""

    def __init__(self) -> None:
        self.samplers: list[dict | None] = []
        self.arrays: dict[str, np.ndarray] = {}
        self.places: dict[int, int] = {}  # of samplers, by id

    def sampler(self, sampler: BaseSampler) -> int:
        """Place in the list of samplers."""
        kind = type(sampler).__name__
        if SAMPLERS.get(kind) is not type(sampler):
            raise TypeError(
                f"Only the package's own samplers can be saved to a file, not {type(sampler).__module__}.{kind}: "
                "pickle it, or save the sampler that it is made from."
            )
        if id(sampler) not in self.places:
            place = self.places[id(sampler)] = len(self.samplers)
            self.samplers.append(None)
            params = {name: self._parameter(value, name) for name, value in sampler.get_params(deep=False).items()}
            written: dict[str, Any] = {"class": kind, "params": params, "fitted": None, "energy": None}
            if hasattr(sampler, "_model"):
                fitted = FITTED[kind]
                written["fitted"] = {name: self._value(getattr(sampler, name), f"{place}.{name}") for name in fitted}
                energy = sampler._energy
                written["energy"] = sampler._energy_name if energy is None else describe(energy.energy_fn)
            self.samplers[place] = written
        return self.places[id(sampler)]

    def _parameter(self, value, name: str):
        """As `_value`, but arrays and sequences as nested lists of plain values; a tuple stays one where it matters."""
        if hasattr(value, "__array__") and not isinstance(value, np.generic):
            value = np.asarray(value).tolist()
        if isinstance(value, list | tuple):
            kind = "tuple" if name == "start" and isinstance(value, tuple) else "list"
            return {kind: [self._parameter(part, name) for part in value]}
        return self._value(value, name)

    def _value(self, value, name: str):
        if isinstance(value, np.ndarray) and value.dtype == object:
            return {"list": value.tolist()}
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else {"float": str(value)}
        if isinstance(value, np.ndarray):
            return self._array(value, name)
        if isinstance(value, BaseSampler):
            return {"sampler": self.sampler(value)}
        if isinstance(value, FrozenEstimator) and isinstance(value.estimator, BaseSampler):
            return {"frozen": self.sampler(value.estimator)}
        if isinstance(value, np.random.RandomState) and value.get_state(legacy=False)["bit_generator"] == "MT19937":
            state = value.get_state(legacy=False)
            rest = [state["state"]["pos"], state["has_gauss"], state["gauss"]]
            return {"random_state": [self._array(state["state"]["key"], name), *rest]}
        if isinstance(value, np.random.Generator) and isinstance(value.bit_generator, np.random.PCG64):
            pcg: Any = value.bit_generator.state
            return {"generator": [*pcg["state"].values(), pcg["has_uint32"], pcg["uinteger"]]}
        if isinstance(value, list):
            return self._array(np.array(value, dtype=np.float64), name)
        if isinstance(value, PilotResult):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            return {key: self._value(field, f"{name}.{key}") for key, field in fields.items()}
        if isinstance(value, torch.nn.Module):
            state = pack(value)
            weights = {key: self._array(array, f"{name}.{key}") for key, array in state["weights"].items()}
            return {"class": state["class"], "config": state["config"], "weights": weights}
        raise TypeError(f"{name} of type {type(value).__name__} cannot be saved; pickle the sampler.")

    def _array(self, array: np.ndarray, name: str) -> dict:
        name = name if name not in self.arrays else f"{name}.{len(self.arrays)}"
        self.arrays[name] = np.asarray(array, order="C")
        return {"array": name}


def describe(energy_fn) -> str:
    """Where an energy function comes from, in words."""
    name = name_of(energy_fn)
    return ".".join(name) if name else f"an instance or closure of type {type(energy_fn).__qualname__}"


# -------------------------------------------------------------------- reading


def load(path):
    """Read a sampler that `save` wrote.

    The file is checked before anything is built from it: its hash over every byte, the version of its format, the class
    against the package's own, the set of its parts and their shapes, and that weights are finite. No code of the file
    is run, and none can be in it. The hash tells damage, not forgery: a file that somebody made up can have one that
    fits, and numbers of no fit. The energy is not in it either: methods that need the energy have to be given it.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    sampler : DiffusionSampler, ConsistentSamplerDistiller or ConsistentSamplerScratch
        The fitted sampler.

    Raises
    ------
    ModelFileError
        When the file is not one that `save` wrote: cut off, changed, of another kind or a newer format.
    OSError
        When it cannot be read.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import skcds
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "sampler.skcds"
    >>> sampler = skcds.DiffusionSampler(2, n_steps=16, n_particles=1000, max_iter=50)
    >>> sampler.fit(lambda x: 0.5 * ((x - 3) ** 2).sum(1)).save(path)
    >>> skcds.load(path).get_params()["max_iter"]
    50
    """
    raw = Path(path).read_bytes()
    try:
        return from_bytes(raw)
    except (DamagedFileError, ModelFileError) as error:
        raise ModelFileError(f"{os.fspath(path)} cannot be loaded: {error}") from error.__cause__
    except Exception as error:
        raise ModelFileError(f"{os.fspath(path)} cannot be loaded: {type(error).__name__}: {error}.") from error


def from_bytes(raw: bytes, device: str | None = None) -> BaseSampler:
    """The sampler in a file, on a device or on its own."""
    content, shapes = read_header(raw, KIND)
    version = content["format"]
    _require(
        version <= FORMAT,
        f"it has format {version}, and this version of skcds reads formats up to {FORMAT}: update skcds.",
    )
    check_hash(raw)
    return _Reader(content, shapes, open_arrays(raw), device).root()


def _require(condition, reason: str) -> None:
    if not condition:
        raise ModelFileError(reason)


class _Reader:
    """Puts samplers together from what was checked."""

    def __init__(self, content: dict, shapes: dict, arrays: dict[str, np.ndarray], device: str | None):
        self.content, self.shapes, self.arrays, self.device = content, shapes, arrays, device
        self.built: dict[int, BaseSampler] = {}

    def root(self) -> BaseSampler:
        """The sampler that was saved."""
        _require(
            set(self.content) == {"format", "root", "samplers", "versions"}, "its parts are not the ones expected."
        )
        self._check_shapes()
        for name, array in self.arrays.items():
            if array.dtype.kind == "f" and not name.endswith(UNLIMITED):
                _require(np.isfinite(array).all(), f"the array {name} has values that are not finite.")
            if name.endswith("width"):
                _require((array > -np.inf).all(), f"the array {name} has values that are not finite, and no width.")
        sampler = self._sampler(self.content["root"])
        _require(hasattr(sampler, "_model"), "the sampler in it is not fitted.")
        return sampler

    def _check_shapes(self) -> None:
        """Key sets and shapes, before anything of their size is made."""
        used = Counter(
            value["array"]
            for state in self.content["samplers"]
            for part in ("params", "fitted")
            for value in _leaves(state[part])
            if "array" in value
        )
        _require(used.total() == len(used), "an array in it is used twice.")  # a small file would make a large sampler
        for state in self.content["samplers"]:
            _require(state["class"] in SAMPLERS, f"{state['class']!r} is none of {', '.join(SAMPLERS)}.")
            fitted = state["fitted"]
            if fitted is None:
                continue
            expected = set(FITTED[state["class"]]).difference(
                *(names for version, names in ADDED.items() if version > self.content["format"])
            )
            _require(set(fitted) == expected, f"the fitted attributes {sorted(set(fitted) ^ expected)} differ.")
            self._check_model(fitted["_model"], fitted["n_features_in_"])
        differing = sorted(set(used) ^ set(self.shapes))
        _require(not differing, f"the arrays {differing} are missing or extra.")

    def _check_model(self, state: dict, n_features: int) -> None:
        _require(set(state) == {"class", "config", "weights"}, "the parts of a model are not the ones expected.")
        _require(state["class"] in MODELS, f"{state['class']!r} is no model of skcds.")
        config, weights = state["config"], state["weights"]
        check_sizes(config, {name: self.shapes.get(part["array"], (None, ()))[1] for name, part in weights.items()})
        with torch.device("meta"), without_draws():
            skeleton = MODELS[state["class"]](**config).state_dict()
        _require(
            set(weights) == set(skeleton), f"the weights {sorted(set(weights) ^ set(skeleton))} are missing or extra."
        )
        for name, tensor in skeleton.items():
            expected = (_DTYPES.get(tensor.dtype), tuple(tensor.shape))
            found = self.shapes.get(weights[name]["array"])
            _require(found == expected, f"the weights {name} are {found}, and have to be {expected}.")
        _require(
            config["n_features"] == n_features, f"the model has {config['n_features']} features, not {n_features}."
        )

    def _sampler(self, place, below: int = -1) -> BaseSampler:
        samplers = self.content["samplers"]
        _require(
            type(place) is int and below < place < len(samplers), "the samplers in it refer to each other wrongly."
        )
        if place not in self.built:
            state = samplers[place]
            cls = SAMPLERS[state["class"]]
            params = {name: self._parameter(value, place) for name, value in state["params"].items()}
            unknown = set(params) - set(cls._get_param_names())
            _require(not unknown, f"{state['class']} has no parameters {sorted(unknown)}.")
            sampler = cls(**params)
            sampler._validate_params()
            if state["fitted"] is not None:
                d = state["fitted"]["n_features_in_"]
                attributes = {
                    name: self._attribute(value, FITTED[state["class"]][name], name, d, place)
                    for name, value in state["fitted"].items()
                }
                name = state["energy"]
                _require(name is None or isinstance(name, str), "the name of the energy is no text.")
                attributes = {
                    "elbo_": math.nan,
                    "feature_names_out_": checked_names(None, d, ""),
                    **Bounds.as_fitted(None),
                    **({"n_steps_": sampler.n_steps} if state["class"] == "DiffusionSampler" else {}),
                } | attributes
                attributes["_model"].to(self.device or loading_device(sampler.device))
                sampler.__dict__ |= attributes | {"_energy": None, "_energy_name": name, "_lost_energy": None}
            self.built[place] = sampler
        return self.built[place]

    def _parameter(self, value, place: int):
        if not isinstance(value, dict):
            _require(value is None or isinstance(value, bool | int | float | str), "a parameter has no plain value.")
            return value
        ((kind, content),) = value.items()
        if kind == "float":
            return _special_float(content)
        if kind in ("list", "tuple"):
            sequence = [self._parameter(part, place) for part in content]
            return tuple(sequence) if kind == "tuple" else sequence
        if kind == "sampler":
            return self._sampler(content, below=place)
        if kind == "frozen":
            return FrozenEstimator(self._sampler(content, below=place))
        if kind == "generator":
            state, inc, *rest = content
            generator = np.random.default_rng(0)
            parts = {"bit_generator": "PCG64", "state": {"state": state, "inc": inc}}
            generator.bit_generator.state = parts | dict(zip(("has_uint32", "uinteger"), rest, strict=True))
            return generator
        _require(kind == "random_state", f"a parameter of unknown kind {kind!r}.")
        key, *rest = content
        random_state = np.random.RandomState(0)
        random_state.set_state(("MT19937", self.arrays[key["array"]], *rest))
        return random_state

    def _attribute(self, value, kind: str, name: str, d: int, place: int):
        if kind == "count":
            _require(type(value) is int and value >= 0, f"{name} has to be a count; it is {value!r}.")
            return value
        if kind == "flag":
            _require(type(value) is bool, f"{name} has to be true or false; it is {value!r}.")
            return value
        if kind == "number":
            return _number(value, name)
        if kind == "numbers":
            return self._array(value, name, (None,)).tolist()
        if kind == "particles":
            return self._array(value, name, (None, d), "f4", "f8")  # single precision in files of earlier versions
        if kind == "bounds":
            return None if value is None else self._bounds(value, d)
        if kind == "scales":
            return None if value is None else self._array(value, name, (d,))
        if kind == "names":
            return checked_names(value["list"], d, name)
        if kind == "sampler":
            return self._sampler(value["sampler"], below=place)
        if kind == "pilot":
            return None if value is None else self._pilot(value, d)
        weights = {key: self.arrays[part["array"]] for key, part in value["weights"].items()}
        return unpack(value | {"weights": weights})

    def _bounds(self, value: dict, d: int) -> np.ndarray:
        bounds = self._array(value, "bounds_", (d, 2))
        _require((bounds[:, 0] < bounds[:, 1]).all(), "a lower bound is not below the upper one.")
        return bounds

    def _pilot(self, value: dict, d: int) -> PilotResult:
        names = {field.name for field in dataclasses.fields(PilotResult)}
        _require(set(value) == names, f"the pilot's {sorted(set(value) ^ names)} are missing or extra.")
        full = len(self.shapes[value["covariance"]["array"]][1]) == 2
        return PilotResult(
            log_evidence=_number(value["log_evidence"], "log_evidence"),
            starting_scale=_number(value["starting_scale"], "starting_scale"),
            loc=self._array(value["loc"], "loc", (d,)),
            covariance=self._array(value["covariance"], "covariance", (d, d) if full else (d,)),
            tail_center=self._array(value["tail_center"], "tail_center", (d,)),
            tail_width=self._array(value["tail_width"], "tail_width", (d,)),
            n_temperatures=self._attribute(value["n_temperatures"], "count", "n_temperatures", d, 0),
        )

    def _array(self, value: dict, name: str, shape: tuple, *dtypes: str) -> np.ndarray:
        array = self.arrays[value["array"]]
        fits = array.ndim == len(shape) and all(
            want in (None, got) for want, got in zip(shape, array.shape, strict=True)
        )
        _require(fits, f"{name} has shape {array.shape}.")
        _require(array.dtype in [np.dtype(dtype) for dtype in dtypes or ("f8",)], f"{name} is of {array.dtype}.")
        return array


def check_sizes(config: dict, shapes: dict[str, tuple]) -> None:
    """Raise `ModelFileError` where a model's configuration takes more layers or numbers than there are in the file.

    This comes before anything is made of it: layers cost time and memory, even without their numbers.

    Parameters
    ----------
    config : dict
        Arguments of the model.
    shapes : dict of str to tuple
        Shapes of its weights in the file.
    """
    plain = all(isinstance(value, bool | int | float | str) for value in config.values())
    _require(
        plain
        and all(math.isfinite(value) for value in config.values() if not isinstance(value, str))
        and config.get("reference", "dis") in GRIDS,
        "the configuration of a model is out of range.",
    )
    couples = config.get("network") == "coupling"
    unused = set() if couples else {"n_transforms", "bins"}  # of a residual map
    sizes = {name: value for name, value in config.items() if type(value) is int and name not in unused}
    n_numbers = sum(math.prod(shape) for shape in shapes.values())
    limits = {"n_layers": len(shapes), "map_layers": len(shapes), "n_transforms": len(shapes), "n_steps": MAX_STEPS}
    fits = all(0 < value <= limits.get(name, n_numbers) for name, value in sizes.items())
    if fits and couples:
        layers = sizes["map_layers" if "map_layers" in sizes else "n_layers"]
        fits = (
            sizes["n_transforms"] * layers <= len(shapes)
            and sizes["n_transforms"] * sizes["n_features"] <= 2 * n_numbers
        )
    _require(fits, f"the sizes of a model are out of range of the {len(shapes)} arrays and {n_numbers} numbers it has.")


_DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64", torch.bool: "BOOL"}


def _leaves(value):
    """Dictionaries without dictionaries in them, and lists' ones."""
    if isinstance(value, dict):
        inner = [part for part in value.values() if isinstance(part, dict | list)]
        if not inner:
            yield value
        for part in inner:
            yield from _leaves(part)
    elif isinstance(value, list):
        for part in value:
            yield from _leaves(part)


def _number(value, name: str) -> float:
    if isinstance(value, dict):
        return _special_float(value["float"])
    _require(
        isinstance(value, numbers.Real) and not isinstance(value, bool), f"{name} has to be a number; it is {value!r}."
    )
    return float(value)


def _special_float(text) -> float:
    _require(text in ("nan", "inf", "-inf"), f"{text!r} is no number.")
    return float(text)
