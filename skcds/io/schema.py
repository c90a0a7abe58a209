"""Fitted attributes of a sampler: declared once by its class, and read by all that saves, pickles or checks them."""

__all__ = ["Fitted", "fitted_attributes", "missing", "undeclared"]

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

UNSAVED = {"clock", "memory"}  # kinds that no file holds; pickles hold those of the second


@dataclass(frozen=True)
class Fitted:
    """A fitted attribute.

    Attributes
    ----------
    kind : str
        What it is, one of `skcds.io.reader.KINDS` (such as "count", "number", "numbers" or "array"); or "clock" for a
        reading that makes no difference to a fit, and "memory" for what stays in the process and in its pickles.
    since : int
        Format of files that brought it.
    before : callable or None
        Maps a sampler to what files and pickles from before it stand for.
    """

    kind: str
    since: int = 1
    before: Callable[[Any], Any] | None = None


def fitted_attributes(cls: type) -> dict[str, Fitted]:
    """Those that a class and its bases declare in ``_fitted_attributes``, by name."""
    found: dict[str, Fitted] = {}
    for base in reversed(cls.__mro__):
        for name, attribute in vars(base).get("_fitted_attributes", {}).items():
            found[name] = attribute if isinstance(attribute, Fitted) else Fitted(attribute)
    return found


def in_files(cls: type, version: int | None = None) -> dict[str, Fitted]:
    """Those that files hold, of one format or of the newest."""
    declared = fitted_attributes(cls).items()
    return {
        name: attribute
        for name, attribute in declared
        if attribute.kind not in UNSAVED and (version is None or attribute.since <= version)
    }


def missing(sampler) -> dict[str, Any]:
    """What attributes that a sampler lacks stand for, where they came after it was written."""
    return {
        name: attribute.before(sampler)
        for name, attribute in fitted_attributes(type(sampler)).items()
        if attribute.before is not None and name not in vars(sampler)
    }


def undeclared(sampler) -> list[str]:
    """Public fitted attributes that no class of the sampler declares."""
    declared = fitted_attributes(type(sampler))
    return sorted(
        name for name in vars(sampler) if name.endswith("_") and not name.startswith("_") and name not in declared
    )
