"""State of an unfinished fit on disk, from which a later fit goes on as if it had not been stopped."""

__all__ = ["Checkpoint", "replace_file"]

import contextlib
import copy
import hashlib
import io
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from .devices import generator_on, randn, to_numpy

FORMAT = 1
INTERVAL = 30.0  # seconds of training between two writes
N_PROBES = 16  # points at which the energy is compared with that of the file
# Parameters that may be others when a fit goes on; the kind of device may not.
FREE = {"verbose", "max_time", "max_energy_evals", "n_jobs", "device"}


class Checkpoint:
    """Named states of a fit, each with its random state, its counts and its clock.

    A fit that goes on runs the same code from its start; what was finished is taken from the file, and with it the
    random state and the counts of that moment, so that the rest does not know the difference.

    Parameters
    ----------
    path : path-like or None
        The file; with None nothing is kept.

    Attributes
    ----------
    seed : int or None
        That of the fit in the file.

    Raises
    ------
    ValueError
        When there is a file that is no checkpoint.
    """

    def __init__(self, path):
        self.path = None if path is None else Path(path)
        self.entries: dict[str, dict] = {}
        self.seed: int | None = None
        self.identity: dict | None = None
        self.written = time.perf_counter()
        if self.path is not None and self.path.exists():
            self._read(self.path)

    def _read(self, path: Path) -> None:
        try:
            content = torch.load(path, weights_only=True, map_location="cpu")  # which runs no code
            version = content["format"]
            if version == FORMAT:
                self.entries, self.seed, self.identity = content["entries"], content["seed"], content["identity"]
                return
        except OSError:
            raise
        except Exception as error:
            raise ValueError(
                f"The checkpoint {self.path} cannot be read: it is damaged, or no checkpoint; delete it to start anew."
            ) from error
        raise ValueError(
            f"The checkpoint {self.path} has format {version}, and this version of skcds reads {FORMAT}: use the "
            "version that wrote it, or delete it to start anew."
        )

    def begin(self, seed: int, identity: dict, budget, generator: torch.Generator, network) -> None:
        """Check that the file belongs to this fit; what follows is of this seed, budget, generator and network count.

        Raises
        ------
        ValueError
            When the file belongs to a fit with other parameters or another energy.
        """
        self.budget, self.generator, self.network = budget, generator, network
        if self.identity is not None:
            for name, value in identity.items():
                found = self.identity.get(name)
                if not _agrees(value, found):
                    raise ValueError(
                        f"The checkpoint {self.path} belongs to another fit: its {name} is {found!r}, and that of this "
                        f"fit is {value!r}. Give this fit another file, or delete that one."
                    )
        self.seed, self.identity = seed, identity

    def restore(self, name: str) -> dict | None:
        """The state stored under a name; `rewind` puts back what goes with it."""
        entry = self.entries.get(name)
        return None if entry is None else copy.deepcopy(entry["state"])

    def rewind(self, name: str) -> None:
        """Put back the random state, the counts and the clock of the moment when `name` was stored."""
        moment, energy = self.entries[name]["moment"], self.budget.energy
        self.generator.set_state(moment["generator"])
        energy.n_energy_evals, energy.n_grad_evals, energy.n_invalid = moment["energy"]
        self.network.rows = moment["network"]
        self.budget.n_rollbacks = moment["n_rollbacks"]
        self.budget.start = time.perf_counter() - moment["elapsed"]

    def due(self) -> bool:
        """Whether it is time to write."""
        return self.path is not None and time.perf_counter() - self.written > INTERVAL

    def store(self, name: str, state: dict) -> None:
        """Keep a state of tensors and plain values, and write the file."""
        if self.path is None or self.budget.interrupted:
            return
        energy = self.budget.energy
        moment = {
            "generator": self.generator.get_state(),
            "energy": (energy.n_energy_evals, energy.n_grad_evals, energy.n_invalid),
            "network": self.network.rows,
            "n_rollbacks": self.budget.n_rollbacks,
            "elapsed": time.perf_counter() - self.budget.start,
        }
        self.entries[name] = {"state": _copied(state), "moment": moment}
        buffer = io.BytesIO()
        content = {"format": FORMAT, "seed": self.seed, "identity": self.identity, "entries": self.entries}
        torch.save(content, buffer)
        replace_file(self.path, buffer.getvalue())
        self.written = time.perf_counter()


def _copied(state):
    """A deep copy with its tensors on the CPU."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {name: _copied(value) for name, value in state.items()}
    return type(state)(map(_copied, state)) if isinstance(state, list | tuple) else copy.deepcopy(state)


def identity_of(sampler, energy) -> dict:
    """What a fit has to have in common with one that it goes on from: class, parameters, dimension and energy."""
    probes = randn(generator_on("cpu", 0), N_PROBES, energy.n_features, dtype=torch.float64).to(energy.device)
    counts = energy.n_energy_evals, energy.n_grad_evals, energy.n_invalid
    values = [round_off(-value) for value in to_numpy(energy.log_prob(probes)).tolist()]
    energy.n_energy_evals, energy.n_grad_evals, energy.n_invalid = counts
    start = {"earlier fit": weights_hash(sampler)} if sampler.warm_start else {}
    return {
        "class": type(sampler).__name__,
        **{f"parameter {name}": value for name, value in _parameters(sampler).items()},
        **start,
        "dimension": energy.n_features,
        "device": energy.device.type,
        "energy at fixed points": values,
        "gradient": energy.has_gradient,
    }


def _parameters(sampler) -> dict:
    described = {}
    for name, value in sampler.get_params(deep=False).items():
        if name in FREE:
            continue
        inner = getattr(value, "estimator", value)  # of a FrozenEstimator
        if hasattr(inner, "_parameter_constraints"):
            described[name] = repr(
                {"class": type(inner).__name__, "weights": weights_hash(inner), **_parameters(inner)}
            )
        else:
            described[name] = "no integer" if name == "random_state" and not isinstance(value, int) else repr(value)
    return described


def weights_hash(sampler) -> str | None:
    """SHA-256 of the weights of a fitted sampler."""
    if not hasattr(sampler, "_model"):
        return None
    digest = hashlib.sha256()
    for name, tensor in sampler._model.state_dict().items():
        digest.update(name.encode() + np.ascontiguousarray(to_numpy(tensor)).tobytes())
    return digest.hexdigest()


def round_off(value: float) -> float:
    """Without the digits that another order of a sum changes."""
    return float(f"{value:.9e}")


def _agrees(value, found) -> bool:
    if isinstance(value, list) and isinstance(found, list):
        return len(value) == len(found) and np.allclose(value, found, rtol=1e-6, atol=1e-6, equal_nan=True)
    return value == found


def replace_file(path: Path, data: bytes) -> None:
    """Write a file beside `path`, and put it in its place once it is on the disk: the old file or the new, no other."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(OSError):  # the permissions of a file that is replaced, or else the usual ones
            os.chmod(name, path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
