"""Parameters of earlier versions, which had what are fields of a specification now as parameters of their own."""

__all__ = ["nested"]

from ..explore.specifications import Pilot, Prior
from ..models.specifications import MAPS_BY_NAME, Control, Specification
from ..train.objectives.specifications import Consistency, PathLoss, SelfConsistency

CONTROL = {name: name for name in ("hidden_features", "n_layers", "variance", "langevin")}
MAP = {"hidden_features": "hidden_features", "n_layers": "n_layers", "n_transforms": "n_transforms", "n_bins": "bins"}


def nested(cls, params: dict) -> dict:
    """Parameters of a sampler as it has them now, from those of files of format 5 and before.

    Parameters
    ----------
    cls : type
        Class of the sampler.
    params : dict
        Values by name; those of today stay as they are.
    """
    rest = dict(params)
    if "periodic" in cls._get_param_names():
        rest.setdefault("periodic", None)  # which files of format 5 do not have
    kinds = {base.__name__ for base in cls.__mro__}
    if "DiffusionSampler" in kinds:
        found = _of_teacher(rest)
    elif "ConsistentSamplerDistiller" in kinds:
        network = MAPS_BY_NAME.get(rest.get("network", "coupling"), rest.get("network"))
        found = {
            "network": _filled(network, _taken(rest, MAP)),
            "objective": _filled(Consistency(), _taken(rest, {"refine": "refine", "consistency_weight": "weight"})),
        }
    elif "ConsistentSamplerScratch" in kinds:
        found = _of_scratch(rest)
    else:
        found = {}
    return rest | {name: value for name, value in found.items() if value is not None}


def _of_teacher(rest: dict) -> dict:
    loss = rest.pop("loss", None)
    fields = {"kind": loss} if isinstance(loss, str) else {}
    fields |= _taken(rest, {"path_share": "share", "path_batch_size": "batch_size", "tol": "tol"})
    start, of_network = _start(rest), _taken(rest, CONTROL)
    return {
        "network": _filled(rest.get("network") or Control(), of_network) if of_network else None,
        "loss": _filled(PathLoss() if loss is None or isinstance(loss, str) else loss, fields),
        "start": start,
    }


def _of_scratch(rest: dict) -> dict:
    network = MAPS_BY_NAME.get(rest.get("network", "coupling"), rest.get("network"))
    sizes = {"map_features": "hidden_features", "map_layers": "n_layers", "n_transforms": "n_transforms"}
    of_map = _taken(rest, {**sizes, "n_bins": "bins"})
    of_control = _taken(rest, CONTROL)
    if getattr(network, "kind", None) == "residual":  # which is the control
        of_map = {name: of_control[name] for name in ("hidden_features", "n_layers") if name in of_control}
        of_map |= {name: value for name, value in vars(network).items() if value is not None}
    objective = rest.pop("objective", None)
    fields = {"schedule": objective} if isinstance(objective, str) else {}
    names = {"refine": "refine", "consistency_weight": "weight", "map_batch_size": "batch_size"}
    fields |= _taken(rest, {**names, "path_batch_size": "path_batch_size"})
    of_old = objective is None or isinstance(objective, str)
    return {
        "network": _filled(network, of_map),
        "control": _filled(rest.get("control") or Control(), of_control),
        "objective": _filled(SelfConsistency() if of_old else objective, fields),
        "start": _start(rest),
    }


def _taken(rest: dict, names: dict) -> dict:
    """Values of old parameters by the names of fields; they leave the others."""
    return {field: rest.pop(name) for name, field in names.items() if rest.get(name, rest) is not rest}


def _start(rest: dict):
    """The parameter `start`, with `init` and `n_particles` in it; None where it stays as it is."""
    old = _taken(rest, {"init": "init", "n_particles": "n_particles"})
    start = rest.get("start")
    if not old or isinstance(start, Specification):
        return start
    init = old.pop("init", "pilot")
    return Prior(**old) if init == "prior" else Pilot(start, **old)


def _filled(specification, fields: dict):
    """A specification with more fields; those that a kind does not have are left out."""
    known = {name: value for name, value in fields.items() if hasattr(specification, name) and value is not None}
    return specification.set_params(**known) if known else specification
