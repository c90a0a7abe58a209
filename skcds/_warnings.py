"""Warnings that point at the user's line, however deep inside the package they arise, and notes on their errors."""

import sys
import warnings

INTERNAL = ("skcds", "torch")  # packages whose frames are passed over


def warn_user(message: str, category: type[Warning]) -> None:
    """Warn, with the first line outside the package as the place."""
    frame, level = sys._getframe(1), 2  # level 1 is this function
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in INTERNAL:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def note(error: BaseException, text: str) -> None:
    """Add a line to what an exception says of itself (Python 3.11)."""
    if hasattr(error, "add_note"):
        error.add_note(text)
