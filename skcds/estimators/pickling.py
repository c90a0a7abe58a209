"""How a fitted sampler leaves the process: files, pickles and copies."""

__all__ = ["Persistent"]

from typing import Any

from sklearn.base import BaseEstimator

from .. import _version
from .._support.devices import loading_device
from .._support.settings import guest
from .._support.warnings import warn_user
from ..density.energy import Energy
from ..density.function import Density
from ..io.packing import imported, name_of, pack, unpack
from ..io.schema import fitted_attributes, missing
from ..io.writer import save
from .copies import copied, copied_deeply
from .derived import Derived
from .given import energy_of
from .legacy import nested


class Persistent(BaseEstimator):
    """Of a sampler that declares its fitted attributes."""

    _model: Any
    _energy: Energy | None
    _lost_energy: str | None
    _derived: Derived | None

    @guest
    def save(self, path):
        """Write the fitted sampler to one safetensors file, from which `skcds.load` reads it without running code.

        The file is complete or not there at all: it is written beside `path` and then takes its place, and when that
        fails an older file stays as it was. The energy function is not in the file, but its name is.
        A class of your own can be saved, too: it declares what its `fit` adds in ``_fitted_attributes``, and has to be
        imported where the file is loaded.

        Parameters
        ----------
        path : path-like
            The file; an older one is replaced. A symbolic link stays, and the file that it links to is replaced.

        Raises
        ------
        NotFittedError
            When the sampler is not fitted.
        TypeError
            When it has a parameter that cannot be saved, or a fitted attribute that its class does not declare.
        ModelFileError
            When `skcds.load` would refuse the file, as with weights that are not finite: nothing is written then.
        OSError
            When the file cannot be written, for example since its folder is not there.
        """
        save(self, path)

    @classmethod
    def _of_an_earlier_format(cls, params: dict) -> dict:
        """Parameters as the class has them now, from those of a file of an earlier version."""
        return nested(cls, params)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_model")

    @guest
    def __copy__(self):
        return copied(self)

    @guest
    def __deepcopy__(self, memo):
        return copied_deeply(self, memo)

    @guest
    def __getstate__(self) -> dict:
        """State of NumPy arrays and plain values; the energy only by reference, the clock reading not at all."""
        clocks = {name for name, attribute in fitted_attributes(type(self)).items() if attribute.kind == "clock"}
        state = {name: value for name, value in super().__getstate__().items() if name not in clocks}
        state["_skcds_version"] = _version.__version__
        if "_model" in state:
            state["_model"] = pack(state["_model"])
            state["_energy"] = _reference(state["_energy"])
            state["_lost_energy"] = None
        if state.get("_derived") is not None:
            state["_derived"] = state["_derived"].references()
        return state

    @guest
    def __setstate__(self, state: dict) -> None:
        state = dict(state)
        written = state.pop("_skcds_version", None)
        if written != _version.__version__:
            warn_user(
                f"This {type(self).__name__} was pickled with skcds {written or 'of before 0.1'} and is loaded with "
                f"{_version.__version__}: it may break or give other results. A file written by its method save is "
                "read by every later version.",
                UserWarning,
            )
        params = {name: value for name, value in state.items() if name[0] != "_" and name[-1] != "_"}
        if set(self._get_param_names()) - set(params):  # of a version before parameters were nested
            state = nested(type(self), params) | {name: state[name] for name in state.keys() - params.keys()}
        if "_model" in state:
            state["_model"] = unpack(state["_model"]).to(loading_device(state.get("device", "auto")))
        super().__setstate__(state)
        if "_model" in state:
            self.__dict__ |= missing(self)
            self._energy, self._lost_energy = _dereference(state["_energy"], self)
        if state.get("_derived") is not None:
            self._derived = Derived.from_references(state["_derived"])


def _reference(energy: Energy | None) -> list | None:
    """Names of the energy's functions, or None unless they can be imported."""
    if energy is None:
        return None
    functions = (energy.energy_fn, energy.grad_fn)
    names = [name_of(function) for function in functions]
    return None if any(f is not None and name is None for f, name in zip(functions, names, strict=True)) else names


def _dereference(names: list | None, sampler) -> tuple[Energy | None, str | None]:
    if names is None:
        return None, None
    try:
        energy_fn, grad_fn = (name and imported(*name) for name in names)
        return energy_of(sampler, Density(energy_fn, grad_fn)), None
    except Exception as error:
        return None, f" (it could not be imported: {error})"
