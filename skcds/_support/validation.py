"""Checks of what users pass."""

__all__ = ["check_count"]

import numbers


def check_count(value, name: str, minimum: int) -> int:
    """An integer of at least `minimum`, or a sentence."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} has to be an integer; got {value!r}.")
    if value < minimum:
        raise ValueError(f"{name} has to be at least {minimum}; got {value}.")
    return int(value)
