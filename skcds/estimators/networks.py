"""The networks that parameters ask for, and those that an earlier fit has: made, and compared for a warm start."""

__all__ = [
    "map_wanted",
    "networks_found",
    "networks_of_map",
    "networks_of_shortcut",
    "networks_wanted",
    "shortcut_model",
    "start_map",
]

from ..models.maps import OneStepModel, coupling_sizes
from ..models.networks import seeded
from ..models.shortcut import ShortcutModel
from ..models.specifications import Control, Map

NAMES_OF_MAP = {  # fields of a coupling, by the names that a shortcut model's configuration has for them
    "hidden_features": "map_hidden", "n_layers": "map_layers", "n_transforms": "n_transforms", "bins": "bins",
    "stretch": "stretch", "elementwise": "elementwise",
}  # fmt: skip


def map_wanted(network: Map) -> dict:
    """Kind of a map, and fields of the parameter `network` that decide its size."""
    return {"network": network.kind} | {f"network__{name}": size for name, size in vars(network).items()}


def networks_wanted(name: str, control: Control, energy) -> dict:
    """Fields of the parameter `name` that decide the network of a control; None where the value leaves it open."""
    langevin = None if control.langevin == "auto" or not energy.has_gradient else bool(control.langevin)
    return {f"{name}__{field}": value for field, value in {**vars(control), "langevin": langevin}.items()}


def networks_found(name: str, config: dict) -> dict:
    """Those of a model with this configuration."""
    variance = "learned" if config["learned_variance"] else "fixed"
    found = Control(config["hidden"], config["n_layers"], variance, config["langevin"])
    return {f"{name}__{field}": value for field, value in vars(found).items()}


def networks_of_map(config: dict) -> dict:
    """Fields of the parameter `network` that a one-step model with this configuration has."""
    names = {"hidden": "hidden_features"}
    return {"network": config["network"]} | {f"network__{names.get(key, key)}": value for key, value in config.items()}


def networks_of_shortcut(config: dict) -> dict:
    """Fields of the parameters that decide the networks of a shortcut model with this configuration."""
    residual = config["network"] == "residual"
    names = {"hidden_features": "hidden", "n_layers": "n_layers"} if residual else NAMES_OF_MAP
    found = {f"network__{name}": config[key] for name, key in names.items() if key in config}
    both = {"network": config["network"], "n_steps": config["n_steps"]}
    return {**both, **found, **networks_found("control", config)}


def shortcut_model(network: Map, control: Control, n_steps: int, standardization, log_snr_max: float, langevin: bool):
    """A control and a map of steps, untrained; a residual map is its own control, which reads no score.

    Parameters
    ----------
    network : Map
        The map, with its sizes.
    control : Control
        The control beside it.
    n_steps : int
        Steps of the grid.
    standardization : Standardization
        Of the target.
    log_snr_max : float
        Level of the last step.
    langevin : bool
        Whether the control reads the target's score.
    """
    d = standardization.loc.numel()
    if residual := network.kind == "residual":  # the map is the control, too
        control = control.set_params(**{name: size for name, size in vars(network).items() if size is not None})
    sizes = coupling_sizes(d, log_snr_max, **({} if residual else network.sizes()))
    if residual:
        sizes |= {"hidden": control.hidden_features, "n_layers": control.n_layers}
    return ShortcutModel(
        network.kind, n_steps, d, log_snr_max, standardization.full, control.hidden_features,
        control.n_layers, langevin and not residual, control.variance == "learned" and not residual,
        sizes["hidden"], sizes["n_layers"], sizes["n_transforms"], sizes["bins"], sizes["stretch"],
        sizes["elementwise"], **standardization.parts,
    )  # fmt: skip


def start_map(network: Map, control, seed: int) -> OneStepModel:
    """An untrained one-step map in the coordinates, and with the noise levels, of a control."""
    log_snr_max, standardization = control.log_snr_max, control.standardization
    sizes = {name: size for name, size in network.sizes().items() if size is not None}
    if network.kind == "coupling":
        sizes = coupling_sizes(control.n_features, log_snr_max, **sizes)
    else:
        sizes = {"hidden": 128, "n_layers": 4} | sizes
    with seeded(seed):
        options = standardization.config | sizes
        model = OneStepModel(network.kind, standardization.loc.numel(), log_snr_max, **options)
    model.standardization = standardization
    return model
