"""State of an unfinished fit on disk, from which a later fit goes on as if it had not been stopped."""

__all__ = ["Checkpoint", "identity_of"]

import copy
import hashlib
import time
from pathlib import Path

import numpy as np
import torch

from .._support.devices import generator_on, randn, to_numpy
from .._support.errors import InvalidEnergyError
from .._support.settings import CPU, FLOAT
from ..io.files import DamagedFileError, check_hash, check_place, open_arrays, read_header, replace_file, seal
from ..io.plain import described, from_plain, to_plain
from .specifications import Training

FORMAT = 8
KIND = "skcds checkpoint"
N_PROBES = 16  # points at which the energy is compared with that of the file
N_WATCHED = 32  # particles at which it is compared, too
WATCHED_SHARE = 0.25  # of the evaluations left, that these may take
ENERGY_TOLERANCE, GRADIENT_TOLERANCE = 1e-6, 1e-4  # that sums in another order may differ by
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
    interval : float
        Seconds of training between two writes.

    Attributes
    ----------
    seed : int or None
        That of the fit in the file.

    Raises
    ------
    ValueError
        When there is a file that is no checkpoint.
    OSError
        When a file of this name cannot be written.
    """

    def __init__(self, path, interval: float = Training.checkpoint_interval):
        self.interval = interval
        self.path = None if path is None else Path(path)
        self.entries: dict[str, dict] = {}
        self.seed: int | None = None
        self.identity: dict | None = None
        self.watched: dict | None = None
        self.written = time.perf_counter()
        if self.path is not None and check_place(self.path).exists():
            self._read(self.path)

    def _read(self, path: Path) -> None:
        raw = path.read_bytes()
        if raw.startswith(b"PK"):
            raise ValueError(
                f"The checkpoint {path} has format 1, which skcds wrote by torch.save and no longer reads, or is no "
                "checkpoint: use the version that wrote it, or delete it to start anew."
            )
        try:
            content, _ = read_header(raw, KIND)
            version = content["format"]
            if version == FORMAT:
                check_hash(raw)
                content = from_plain(content["fit"], open_arrays(raw))
                self.entries, self.seed, self.identity = content["entries"], content["seed"], content["identity"]
                self.watched = content["watched"]
                return
        except Exception as error:
            reason = str(error).rstrip(".") if isinstance(error, DamagedFileError) else "it is damaged"
            raise ValueError(
                f"The checkpoint {path} cannot be read: {reason}; delete it to start anew, or give another file."
            ) from error
        raise ValueError(
            f"The checkpoint {path} has format {version}, and this version of skcds reads {FORMAT}: use the "
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
            self._compare(self.identity, identity)
        if self.watched is not None:
            self._compare(self.watched, _density_at(budget.energy, self.watched["points"], "particles"))
        self.seed, self.identity = seed, identity

    def _compare(self, known: dict, values: dict) -> None:
        for name, value in values.items():
            difference = _difference(name, known.get(name), value)
            if difference is not None:
                found, here = difference
                raise ValueError(
                    f"The checkpoint {self.path} belongs to another fit: its {name} is {found!r}, and that of this "
                    f"fit is {here!r}. Give this fit another file, or delete that one."
                )

    def watch(self, points: torch.Tensor | None) -> None:
        """Keep the energy at some of the points (n, d) from now on, which the one of a fit that goes on has to have.

        They are the particles, that is where the density is, in the coordinates of the energy's methods.
        """
        if self.path is None or self.watched is not None or points is None:
            return
        energy = self.budget.energy
        n = int(min(N_WATCHED, len(points), WATCHED_SHARE * self.budget.energy_evals_left()))
        if not n:
            return
        rows = torch.linspace(0, len(points) - 1, n, dtype=FLOAT, device=CPU).long()
        points = points[rows.to(points.device)]
        points = (points if energy.bounds is None else energy.bounds(points)).double().cpu()
        self.watched = {"points": points, **_density_at(energy, points, "particles")}

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
        return self.path is not None and time.perf_counter() - self.written > self.interval

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
        content = {"seed": self.seed, "identity": self.identity, "watched": self.watched, "entries": self.entries}
        arrays: dict[str, np.ndarray] = {}
        replace_file(self.path, seal(KIND, {"format": FORMAT, "fit": to_plain(content, arrays)}, arrays))
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
    probes = probes if energy.bounds is None else energy.bounds(probes)
    start = {"earlier fit": fit_hash(sampler)} if sampler.warm_start else {}
    return {
        "class": type(sampler).__name__,
        **{f"parameter {name}": value for name, value in _parameters(sampler).items()},
        **start,
        "dimension": energy.n_features,
        "device": energy.device.type,
        "gradient": energy.has_gradient,
        **_density_at(energy, probes, "fixed points"),
    }


def _density_at(energy, points: torch.Tensor, where: str) -> dict:
    """Energies and their gradients at points (n, d) in the user's coordinates, whatever the bounds."""
    plain, points = copy.copy(energy), points.to(energy.device)
    plain.bounds = None
    try:
        log_prob, score = plain.log_prob_and_score(points) if energy.has_gradient else (plain.log_prob(points), None)
    except InvalidEnergyError as error:
        return {f"energy at {where}": str(error)}
    finally:
        energy.n_energy_evals, energy.n_grad_evals = plain.n_energy_evals, plain.n_grad_evals
    gradient = {} if score is None else {f"gradient at {where}": to_numpy(-score).tolist()}
    return {f"energy at {where}": to_numpy(-log_prob).tolist(), **gradient}


def _parameters(sampler) -> dict:
    found = {}
    for name, value in sampler.get_params(deep=False).items():
        if name in FREE:
            continue
        inner = getattr(value, "estimator", value)  # of a FrozenEstimator
        if hasattr(inner, "_parameter_constraints"):
            found[name] = {"class": type(inner).__name__, "fit": fit_hash(inner), **_parameters(inner)}
        else:
            found[name] = described(value)
    return found


def fit_hash(sampler) -> str | None:
    """SHA-256 of the weights and the other arrays of a fitted sampler."""
    if not hasattr(sampler, "_model"):
        return None
    arrays = {name: to_numpy(tensor) for name, tensor in sampler._model.state_dict().items()}
    arrays |= {name: value for name, value in sorted(vars(sampler).items()) if isinstance(value, np.ndarray)}
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(repr(array.tolist()).encode() if array.dtype == object else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _difference(name: str, found, value):
    """What differs of two descriptions, or None: of long lists the first numbers that do."""
    if not (isinstance(value, list) and isinstance(found, list) and name.startswith(("energy at", "gradient at"))):
        return None if value == found else (found, value)
    theirs, ours = np.asarray(found, dtype=np.float64), np.asarray(value, dtype=np.float64)
    if theirs.shape != ours.shape:
        return theirs.shape, ours.shape
    tolerance = ENERGY_TOLERANCE
    if name.startswith("gradient"):  # whose coordinates have units of their own
        tolerance = GRADIENT_TOLERANCE * np.abs(theirs).max(axis=0)
    differs = ~np.isclose(ours, theirs, rtol=ENERGY_TOLERANCE, atol=tolerance, equal_nan=True)
    return (float(theirs[differs][0]), float(ours[differs][0])) if differs.any() else None
