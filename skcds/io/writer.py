"""Writing fitted samplers: what their classes declare, in one file that the reader was shown first."""

__all__ = ["save", "to_bytes"]

import math
import platform
from typing import Any

import numpy as np
import scipy
import sklearn
import torch
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted

from .. import _version
from .files import check_place, replace_file, seal
from .packing import describe, pack
from .reader import FORMAT, KIND, ModelFileError, from_bytes
from .registry import RECORDS, SAMPLERS, SPECIFICATIONS, key_of
from .schema import in_files, undeclared


def save(sampler, path) -> None:
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


def to_bytes(sampler) -> bytes:
    """The file of a fitted sampler."""
    writer = _Writer()
    root = writer.sampler(sampler)
    content = {
        "format": FORMAT,
        "root": root,
        "samplers": writer.samplers,
        "versions": {
            "skcds": _version.__version__, "torch": torch.__version__, "numpy": np.__version__,
            "scipy": scipy.__version__, "scikit-learn": sklearn.__version__, "python": platform.python_version(),
        },
    }  # fmt: skip
    return seal(KIND, content, writer.arrays)


class _Writer:
    """Takes samplers apart into plain values and named arrays; a sampler that occurs twice is written once."""

    def __init__(self) -> None:
        self.samplers: list[dict | None] = []
        self.arrays: dict[str, np.ndarray] = {}
        self.places: dict[int, int] = {}  # of samplers, by id

    def sampler(self, sampler: Any) -> int:
        """Place in the list of samplers."""
        kind, unknown = key_of(type(sampler)), undeclared(sampler)
        if SAMPLERS.get(kind) is not type(sampler):
            raise TypeError(f"{kind} was defined anew since this sampler of it was made: fit one of the new class.")
        if unknown:
            raise TypeError(
                f"{kind} has fitted attributes {', '.join(unknown)} that it does not declare: give the class "
                f"_fitted_attributes = {{{unknown[0]!r}: ...}} with the kind of each, or pickle the sampler."
            )
        if id(sampler) not in self.places:
            place = self.places[id(sampler)] = len(self.samplers)
            self.samplers.append(None)
            params = {name: self._parameter(value, name) for name, value in sampler.get_params(deep=False).items()}
            written: dict[str, Any] = {"class": kind, "params": params, "fitted": None, "energy": None}
            if hasattr(sampler, "_model"):
                fitted = in_files(type(sampler))
                written["fitted"] = {
                    name: self._attribute(getattr(sampler, name), attribute.kind, f"{place}.{name}")
                    for name, attribute in fitted.items()
                }
                energy = sampler._energy
                written["energy"] = sampler._energy_name if energy is None else describe(energy.energy_fn)
            self.samplers[place] = written
        return self.places[id(sampler)]

    def _attribute(self, value, kind: str, name: str):
        kind = "none" if value is None else kind.removesuffix(" or None")
        if kind.startswith("list of "):
            inner = kind.removeprefix("list of ")
            return {"list": [self._attribute(part, inner, f"{name}.{k}") for k, part in enumerate(value)]}
        if kind in RECORDS:
            _, fields = RECORDS[kind]
            return {key: self._attribute(getattr(value, key), fields[key], f"{name}.{key}") for key in fields}
        return self._value(value, name)

    def _parameter(self, value: Any, name: str, of_specification: bool = False):
        """As `_value`, but arrays and sequences as nested lists of plain values; a tuple stays one where it matters."""
        if hasattr(value, "__array__") and not isinstance(value, np.generic):
            value = np.asarray(value).tolist()
        if isinstance(value, list | tuple):
            stays = (of_specification or name == "start") and isinstance(value, tuple)
            return {"tuple" if stays else "list": [self._parameter(part, name, of_specification) for part in value]}
        name_of_class = key_of(type(value))
        if name_of_class in SPECIFICATIONS:
            fields = {key: self._parameter(field, key, True) for key, field in value.get_params(deep=False).items()}
            return {"specification": [name_of_class, fields]}
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
        if _is_sampler(value):
            return {"sampler": self.sampler(value)}
        if isinstance(value, FrozenEstimator) and _is_sampler(value.estimator):
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
        if isinstance(value, torch.nn.Module):
            state = pack(value)
            weights = {key: self._array(array, f"{name}.{key}") for key, array in state["weights"].items()}
            return {"class": state["class"], "config": state["config"], "weights": weights}
        raise TypeError(f"{name} of type {type(value).__name__} cannot be saved; pickle the sampler.")

    def _array(self, array: np.ndarray, name: str) -> dict:
        name = name if name not in self.arrays else f"{name}.{len(self.arrays)}"
        self.arrays[name] = np.asarray(array, order="C")
        return {"array": name}


def _is_sampler(value) -> bool:
    return key_of(type(value)) in SAMPLERS
