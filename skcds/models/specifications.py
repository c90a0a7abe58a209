"""Networks and maps with the sizes of each kind. Parameters take them in place of a string.

A specification is a parameter of a parameter, as a kernel is in scikit-learn: ``get_params`` and ``set_params`` reach
its fields by ``network__bins``, and `clone` copies it. It does not change; ``set_params`` puts another in its place.
"""

__all__ = ["Control", "Coupling", "Part", "Residual", "Specification"]

import math
import numbers
from collections import defaultdict
from dataclasses import dataclass, fields, replace
from typing import ClassVar

from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval, StrOptions, validate_parameter_constraints

from .._version import DOCUMENTATION
from ..io.registry import register_specification

at_least_one = Interval(numbers.Integral, 1, None, closed="left")
at_least_two = Interval(numbers.Integral, 2, None, closed="left")
at_least_three = Interval(numbers.Integral, 3, None, closed="left")
share = Interval(numbers.Real, 0, 1, closed="both")
not_negative = Interval(numbers.Real, 0, None, closed="left")
positive = Interval(numbers.Real, 0, None, closed="neither")


@dataclass(frozen=True, repr=False)
class Specification(BaseEstimator):
    """What specifications have in common."""

    constraints: ClassVar[dict] = {}  # of the fields, as scikit-learn validates parameters

    _doc_link_module: ClassVar[str] = "skcds"
    _doc_link_template: ClassVar[str] = DOCUMENTATION + "api/specifications.html#skcds.{estimator_name}"

    def __post_init__(self):
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        name = type(self).__name__
        validate_parameter_constraints(self.constraints, values, name)
        for field, value in values.items():
            if self.constraints.get(field) == [tuple] and not (value and all(map(_is_number, value))):
                raise ValueError(
                    f"The '{field}' parameter of {name} must be a tuple of numbers. Got {value!r} instead."
                )

    def set_params(self, **params):
        """Another one with these fields, as this one does not change; those of a field by ``field__name``."""
        own: dict = {}
        inner: dict = defaultdict(dict)
        for name, value in params.items():
            field, nested, rest = name.partition("__")
            if field not in {field.name for field in fields(self)}:
                raise ValueError(f"{type(self).__name__} has no field {field!r}.")
            if nested:
                inner[field][rest] = value
            else:
                own[field] = value
        for field, values in inner.items():
            part = own.get(field, getattr(self, field))
            if not isinstance(part, Specification):
                raise ValueError(f"{type(self).__name__} has no field {field + '__' + next(iter(values))!r}.")
            own[field] = part.set_params(**values)
        return replace(self, **own)

    def __getstate__(self):
        """Fields for a pickle, none of them an object that another field may be, too: equal ones hash alike."""
        state = dict(super().__getstate__())
        for name, value in state.items():
            if self.constraints.get(name) == [tuple]:
                state[name] = list(value)
            elif isinstance(value, Part):
                state[name] = replace(value)
        return state

    def __setstate__(self, state):
        """Fields from a pickle; of an earlier version some may be missing, and are as by default."""
        tuples = {name: tuple(value) for name, value in state.items() if self.constraints.get(name) == [tuple]}
        super().__setstate__({**state, **tuples})

    def __repr__(self, N_CHAR_MAX=math.inf):
        """The fields that are not as by default, all of them: checkpoints compare it."""
        return super().__repr__(N_CHAR_MAX)


def _is_number(value) -> bool:
    return isinstance(value, numbers.Real) and math.isfinite(value)


@dataclass(frozen=True, repr=False)
class Part(Specification):
    """A specification inside another one, public in `skcds.specifications`."""

    _doc_link_template: ClassVar[str] = DOCUMENTATION + "api/specifications.html#skcds.specifications.{estimator_name}"


@dataclass(frozen=True, repr=False)
class Map(Specification):
    """A kind of one-step map, with its sizes; None leaves one to the fit."""

    kind: ClassVar[str]  # key in `MAPS`

    def sizes(self) -> dict[str, int | None]:
        """Arguments of the map by their names in `MAPS`."""
        names = {"hidden_features": "hidden"}
        return {names.get(field.name, field.name): getattr(self, field.name) for field in fields(self)}


@register_specification
@dataclass(frozen=True, repr=False)
class Coupling(Map):
    """Spline couplings, invertible by construction: the default map.

    Parameters
    ----------
    hidden_features, n_layers : int, default=None
        Width and number of the hidden layers of the conditioner of each coupling; by default 64 and 2.
    n_transforms, bins : int, default=None
        Number of couplings, and of bins of their splines. By default 4 and 8, or 6 and 16 if the target has a length
        scale below a tenth in standardised coordinates. In up to four dimensions the default is 32 bins. In more than
        256 there are no couplings by default, and the splines of single coordinates are the map.
    stretch : bool, default=None
        Whether each coupling stretches the images of its splines by factors that depend on the other coordinates; by
        default it does. Splines alone miss the tail of a ridge that bounds cut: .0016 of its mass.
    elementwise : bool, default=None
        Whether splines of single coordinates, which nothing but the noise level conditions, come after the couplings;
        by default in more than 20 dimensions.

    Examples
    --------
    >>> from skcds import ConsistentSamplerDistiller, Coupling
    >>> student = ConsistentSamplerDistiller(network=Coupling(bins=32))
    >>> student.set_params(network__n_transforms=6).network
    Coupling(bins=32, n_transforms=6)
    """

    kind: ClassVar[str] = "coupling"
    constraints: ClassVar[dict] = {
        "hidden_features": [at_least_one, None],
        "n_layers": [at_least_one, None],
        "n_transforms": [Interval(numbers.Integral, 0, None, closed="left"), None],
        "bins": [at_least_two, None],
        "stretch": ["boolean", None],
        "elementwise": ["boolean", None],
    }

    hidden_features: int | None = None
    n_layers: int | None = None
    n_transforms: int | None = None
    bins: int | None = None
    stretch: bool | None = None
    elementwise: bool | None = None


@register_specification
@dataclass(frozen=True, repr=False)
class Residual(Map):
    """A residual network: the published kind of map. It can fold.

    Parameters
    ----------
    hidden_features, n_layers : int, default=None
        Width and number of the hidden layers; by default 128 and 4.
    """

    kind: ClassVar[str] = "residual"
    constraints: ClassVar[dict] = {"hidden_features": [at_least_one, None], "n_layers": [at_least_one, None]}

    hidden_features: int | None = None
    n_layers: int | None = None


@register_specification
@dataclass(frozen=True, repr=False)
class Control(Specification):
    """The network of the control of the generative chain.

    Parameters
    ----------
    hidden_features, n_layers : int, default=128 and 4
        Width and number of the hidden layers.
    variance : {"learned", "fixed"}, default="learned"
        Variance of a step. It is learned for every state and coordinate, or it is that of the noising step, as in [1]_.
    langevin : bool or "auto", default="auto"
        Whether the control reads the target's score. The score is then evaluated at every step of sampling, too. With
        "auto" it is read unless the limits of the fit are too low for that.

    References
    ----------
    .. [1] Richter & Berner, "Improved sampling via learned diffusions", 2024.
    """

    constraints: ClassVar[dict] = {
        "hidden_features": [at_least_one],
        "n_layers": [at_least_one],
        "variance": [StrOptions({"learned", "fixed"})],
        "langevin": ["boolean", StrOptions({"auto"})],
    }

    hidden_features: int = 128
    n_layers: int = 4
    variance: str = "learned"
    langevin: bool | str = "auto"


MAPS_BY_NAME: dict = {cls.kind: cls() for cls in (Coupling, Residual)}
