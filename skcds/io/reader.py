"""Reading saved samplers: a safetensors file is checked whole before anything is built from it, and runs no code."""

__all__ = ["FORMAT", "KIND", "ModelFileError", "from_bytes", "load"]

import dataclasses
import inspect
import math
import numbers
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.frozen import FrozenEstimator

from .._support.devices import loading_device
from .._support.initialise import without_draws
from .._support.settings import guest, skeletons
from .export import checked_names
from .files import DamagedFileError, check_hash, open_arrays, read_header
from .packing import unpack
from .registry import MODELS, RECORDS, SAMPLERS, SPECIFICATIONS
from .schema import in_files, missing

FORMAT = 14  # of the files that `save` writes; `load` reads this and all earlier ones
KIND = "skcds"
RENAMED_BEFORE = 6  # formats in which sizes and numbers of losses, or `tol` alone, are parameters of their own
MAX_STEPS = 2**20  # of a model's grid, which is the one size that no array in the file has
MAY_BE_NONE = "n_transforms"  # size that may be 0: maps of single coordinates have no couplings
# Arrays that may hold values that are not finite, by the ends of their names: bounds and length scales may be infinite,
# losses are those of iterations that were taken back, particles may be beyond the range of their type, and a density
# may be zero.
UNLIMITED = ("width", "bounds_", "seam_", "loss_curve_", "particles_", "log_weights", "log_density")
# Kinds of fitted attributes that are arrays: lengths of the axes and types. d is the number of features, and None any
# length. Files of earlier versions have other types.
ARRAYS: dict[str, Any] = {
    "vector": (("d",), "f8"),
    "bounds": (("d", 2), "f8"),
    "particles": ((None, "d"), "f4", "f8"),
    "a point": ((None,), "f8"),
    "contexts": ((None, None), "f8"),
}


class ModelFileError(ValueError):
    """A file is not a saved sampler or was changed since it was written, or a sampler cannot be saved as it is."""


@guest
def load(path):
    """Read a sampler that `save` wrote.

    The file is checked before anything is built from it: its hash over every byte, the version of its format, the class
    against the package's own, the set of its parts and their shapes, and that weights are finite. No code of the file
    is run, and none can be in it. The hash tells damage, not forgery: a made-up file can have a hash that fits, and
    numbers of no fit. The energy is not in the file. Methods that need it have to be given it.

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
    >>> sampler = skcds.DiffusionSampler(
    ...     n_features=2, start=skcds.Pilot((3, 2), 500),
    ...     n_steps=8, max_iter=20, random_state=0
    ... )
    >>> sampler.fit(lambda x: 0.5 * ((x - 3) ** 2).sum(1)).save(path)
    >>> skcds.load(path).get_params()["max_iter"]
    20
    """
    raw = Path(path).read_bytes()
    try:
        return from_bytes(raw)
    except (DamagedFileError, ModelFileError) as error:
        raise ModelFileError(f"{os.fspath(path)} cannot be loaded: {error}") from error.__cause__
    except Exception as error:
        raise ModelFileError(f"{os.fspath(path)} cannot be loaded: {type(error).__name__}: {error}.") from error


def from_bytes(raw: bytes, device: str | None = None):
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
        self.built: dict[int, Any] = {}

    def root(self):
        """The sampler that was saved."""
        _require(
            set(self.content) == {"format", "root", "samplers", "versions"}, "its parts are not the ones expected."
        )
        self._check_shapes()
        for name, array in self.arrays.items():
            if array.dtype.kind == "f" and not name.endswith(UNLIMITED):
                _require(np.isfinite(array).all(), f"the array {name} has values that are not finite.")
            if name.endswith("width"):
                _require((array > -np.inf).all(), f"the array {name} has values that are not finite, other than +inf.")
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
            known = sorted(name for name, cls in SAMPLERS.items() if not inspect.isabstract(cls))
            _require(
                state["class"] in known,
                f"{state['class']!r} is none of {', '.join(known)}; a class of your own has to be imported first.",
            )
            fitted = state["fitted"]
            if fitted is None:
                continue
            expected = set(in_files(SAMPLERS[state["class"]], self.content["format"]))
            _require(set(fitted) == expected, f"the fitted attributes {sorted(set(fitted) ^ expected)} differ.")
            self._check_model(fitted["_model"], fitted["n_features_in_"])
        differing = sorted(set(used) ^ set(self.shapes))
        _require(not differing, f"the arrays {differing} are missing or extra.")

    def _check_model(self, state: dict, n_features: int) -> None:
        _require(set(state) == {"class", "config", "weights"}, "the parts of a model are not the ones expected.")
        _require(state["class"] in MODELS, f"{state['class']!r} is no model of skcds.")
        cls: Any = MODELS[state["class"]]
        config, weights = state["config"], state["weights"]
        _require(
            all(name not in config or config[name] in legal for name, legal in cls.config_choices.items()),
            "the configuration of a model is out of range.",
        )
        check_sizes(config, {name: self.shapes.get(part["array"], (None, ()))[1] for name, part in weights.items()})
        with skeletons(), without_draws():
            skeleton = cls(**config).state_dict()
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

    def _sampler(self, place, below: int = -1):
        samplers = self.content["samplers"]
        _require(
            type(place) is int and below < place < len(samplers), "the samplers in it refer to each other wrongly."
        )
        if place not in self.built:
            state = samplers[place]
            cls: Any = SAMPLERS[state["class"]]
            params = {name: self._parameter(value, place) for name, value in state["params"].items()}
            if self.content["format"] < RENAMED_BEFORE:
                params = cls._of_an_earlier_format(params)
            unknown = set(params) - set(cls._get_param_names())
            _require(not unknown, f"{state['class']} has no parameters {sorted(unknown)}.")
            sampler = cls(**params)
            sampler._validate_params()
            if state["fitted"] is not None:
                d, declared = state["fitted"]["n_features_in_"], in_files(cls)
                attributes = {
                    name: self._attribute(value, declared[name].kind, name, d, place)
                    for name, value in state["fitted"].items()
                }
                name = state["energy"]
                _require(name is None or isinstance(name, str), "the name of the energy is no text.")
                attributes["_model"].to(self.device or loading_device(sampler.device))
                lost = {"_energy": None, "_energy_name": name, "_lost_energy": None, "_derived": None}
                sampler.__dict__ |= attributes | lost
                sampler.__dict__ |= missing(sampler)
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
        if kind == "specification":
            name, values = content
            _require(name in SPECIFICATIONS, f"{name!r} is no specification of skcds.")
            return SPECIFICATIONS[name](**{key: self._parameter(part, place) for key, part in values.items()})
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
        """A fitted attribute, or the field of one, of a kind."""
        if kind.endswith(" or None") and value is None:
            return None
        kind = kind.removesuffix(" or None")
        if kind.startswith("list of "):
            return [self._attribute(part, kind.removeprefix("list of "), name, d, place) for part in value["list"]]
        if kind in RECORDS:
            return self._record(value, kind, name, d, place)
        if kind in ARRAYS:
            shape, *dtypes = ARRAYS[kind]
            array = self._array(value, name, tuple(d if n == "d" else n for n in shape), *dtypes)
            ordered = kind != "bounds" or (array[:, 0] < array[:, 1]).all()
            _require(ordered, "a lower bound is not below the upper one.")
            return array
        if kind == "count":
            _require(type(value) is int and value >= 0, f"{name} has to be a count; it is {value!r}.")
            return value
        if kind == "flag":
            _require(type(value) is bool, f"{name} has to be true or false; it is {value!r}.")
            return value
        if kind == "text":
            _require(isinstance(value, str), f"{name} has to be text; it is {value!r}.")
            return value
        if kind == "number":
            return _number(value, name)
        if kind == "numbers":
            return self._array(value, name, (None,)).tolist()
        if kind == "covariance":  # or its diagonal
            full = len(self.shapes[value["array"]][1]) == 2
            return self._array(value, name, (d, d) if full else (d,))
        if kind == "names":
            return checked_names(value["list"], d, name)
        if kind == "context names":
            return checked_names(value["list"], len(value["list"]), name)
        if kind == "sampler":
            return self._sampler(value["sampler"], below=place)
        _require(kind == "model", f"{name} is of an unknown kind {kind!r}.")
        if name != "_model":  # which was looked at first
            self._check_model(value, d)
        weights = {key: self.arrays[part["array"]] for key, part in value["weights"].items()}
        return unpack(value | {"weights": weights})

    def _record(self, value: dict, kind: str, name: str, d: int, place: int):
        cls, fields = RECORDS[kind]
        added = {field.name for field in dataclasses.fields(cls) if field.default is not dataclasses.MISSING}
        differing = sorted(set(value) ^ set(fields) - (added - set(value)))  # which earlier formats do not have
        _require(not differing, f"{name}'s {differing} are missing or extra.")
        return cls(**{field: self._attribute(value[field], fields[field], field, d, place) for field in value})

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
        plain and all(math.isfinite(value) for value in config.values() if not isinstance(value, str)),
        "the configuration of a model is out of range.",
    )
    couples = config.get("network") == "coupling"
    unused = set() if couples else {"n_transforms", "bins"}  # of a residual map
    sizes = {name: value for name, value in config.items() if type(value) is int and name not in unused}
    n_numbers = sum(math.prod(shape) for shape in shapes.values())
    limits = {"n_layers": len(shapes), "map_layers": len(shapes), "n_transforms": len(shapes), "n_steps": MAX_STEPS}
    fits = all(
        (name == MAY_BE_NONE or value) and 0 <= value <= limits.get(name, n_numbers) for name, value in sizes.items()
    )
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
