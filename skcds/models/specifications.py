"""Which map a sampler learns, with the sizes that this kind of map has: what `network` takes beside a string.

A specification is a parameter of a parameter, as a kernel is in scikit-learn: ``get_params`` and ``set_params`` reach
its fields by ``network__bins``, and `clone` copies it. It does not change; ``set_params`` puts another in its place.
"""

__all__ = ["Coupling", "Residual", "Specification", "as_specification", "specified"]

import numbers
from dataclasses import dataclass, fields, replace
from typing import ClassVar

from sklearn.base import BaseEstimator

from .._version import DOCUMENTATION
from ..io.registry import register_specification


@dataclass(frozen=True, repr=False)
class Specification(BaseEstimator):
    """What a specification of a map has in common."""

    kind: ClassVar[str]  # key in `MAPS`
    least: ClassVar[dict[str, int]] = {}  # smallest legal values, where they are not 1

    _doc_link_module: ClassVar[str] = "skcds"
    _doc_link_template: ClassVar[str] = DOCUMENTATION + "api/specifications.html#skcds.{estimator_name}"

    def __post_init__(self):
        for field in fields(self):
            value, least = getattr(self, field.name), self.least.get(field.name, 1)
            if value is not None and (
                not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least
            ):
                raise ValueError(
                    f"{field.name} of {type(self).__name__} has to be an integer of at least {least}, or None for the "
                    f"default; got {value!r}."
                )

    def set_params(self, **params):
        """Another one with these fields, as this one does not change."""
        unknown = params.keys() - {field.name for field in fields(self)}
        if unknown:
            raise ValueError(f"{type(self).__name__} has no field {sorted(unknown)[0]!r}.")
        return replace(self, **params)

    def sizes(self) -> dict[str, int | None]:
        """Arguments of the map by their names in `MAPS`."""
        names = {"hidden_features": "hidden"}
        return {names.get(field.name, field.name): getattr(self, field.name) for field in fields(self)}


@register_specification
@dataclass(frozen=True, repr=False)
class Coupling(Specification):
    """Spline couplings, invertible by construction: the default map.

    Parameters
    ----------
    hidden_features, n_layers : int, default=None
        Width and number of the hidden layers of the conditioner of each coupling; by default 64 and 2.
    n_transforms, bins : int, default=None
        Couplings, and bins of their splines; by default 4 and 8, or 6 and 16 where the target's finest scale is below a
        tenth of its width; 32 bins in up to four dimensions.

    Examples
    --------
    >>> from skcds import ConsistentSamplerDistiller, Coupling
    >>> student = ConsistentSamplerDistiller(network=Coupling(bins=32))
    >>> student.set_params(network__n_transforms=6).network
    Coupling(bins=32, n_transforms=6)
    """

    kind: ClassVar[str] = "coupling"
    least: ClassVar[dict[str, int]] = {"bins": 2}

    hidden_features: int | None = None
    n_layers: int | None = None
    n_transforms: int | None = None
    bins: int | None = None


@register_specification
@dataclass(frozen=True, repr=False)
class Residual(Specification):
    """A residual network, the published kind of map, which can fold.

    Parameters
    ----------
    hidden_features, n_layers : int, default=None
        Width and number of the hidden layers; by default 128 and 4.
    """

    kind: ClassVar[str] = "residual"

    hidden_features: int | None = None
    n_layers: int | None = None


KINDS: dict[str, type[Specification]] = {cls.kind: cls for cls in (Coupling, Residual)}


def as_specification(value):
    """The specification that a string is short for; anything else as it is."""
    return KINDS[value]() if isinstance(value, str) and value in KINDS else value


def specified(network, **given) -> Specification:
    """The specification that a parameter `network` stands for, with sizes from the sampler's other parameters.

    Parameters
    ----------
    network : str or Specification
        The parameter.
    **given
        Sizes by the names of fields; None where they are not set. Those that a kind does not have are left out.

    Raises
    ------
    ValueError
        When a size is given both ways.
    """
    if isinstance(network, str):
        cls = KINDS[network]
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in given.items() if name in known})
    twice = [name for name, value in given.items() if value is not None and getattr(network, name, None) is not None]
    if twice:
        raise ValueError(f"{twice[0]} is given both to the sampler and to its network {network!r}: leave one out.")
    sizes = {name: value for name, value in given.items() if value is not None and hasattr(network, name)}
    return replace(network, **sizes)
