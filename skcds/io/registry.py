"""Classes that files may name: models, samplers, and records of what a fit found."""

__all__ = [
    "MODELS",
    "RECORDS",
    "SAMPLERS",
    "SPECIFICATIONS",
    "key_of",
    "register_model",
    "register_record",
    "register_sampler",
    "register_specification",
]

from collections.abc import Callable, Collection
from typing import Any
from weakref import WeakValueDictionary

MODELS: WeakValueDictionary[str, Any] = WeakValueDictionary()
SAMPLERS: WeakValueDictionary[str, Any] = WeakValueDictionary()

SPECIFICATIONS: dict[str, type] = {}  # dataclasses of plain values that parameters may be
RECORDS: dict[str, tuple[type, dict[str, str]]] = {}  # by kind: a dataclass and the kinds of its fields


def key_of(cls: type) -> str:
    """Name of a class in files: bare for the package's own, so that they may move, with its module for a user's."""
    own = cls.__module__.partition(".")[0] == __name__.partition(".")[0]
    return cls.__name__ if own else f"{cls.__module__}.{cls.__qualname__}"


def register_model(**choices: Collection) -> Callable:
    """Class decorator: let files name a model, a module that is made of its ``config``.

    Parameters
    ----------
    **choices : collection
        Legal values of entries of the configuration that are names; the others may be any numbers.
    """

    def register(cls: type) -> type:
        cls.config_choices = choices  # type: ignore[attr-defined]
        MODELS[key_of(cls)] = cls
        return cls

    return register


def register_sampler(cls: type) -> None:
    """Let files name a sampler, which declares its ``_fitted_attributes``."""
    SAMPLERS[key_of(cls)] = cls


def register_record(kind: str, **fields: str) -> Callable:
    """Class decorator: let a fitted attribute of this kind be a dataclass, whose fields are of the kinds given."""

    def register(cls: type) -> type:
        RECORDS[kind] = cls, fields
        return cls

    return register


def register_specification(cls: type) -> type:
    """Class decorator: let a parameter of a saved sampler be a dataclass of plain values."""
    SPECIFICATIONS[key_of(cls)] = cls
    return cls
