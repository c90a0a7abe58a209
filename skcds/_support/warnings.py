"""Warnings that point at the user's line, however deep inside the package they arise, and notes on their errors."""

import contextlib
import sys
import warnings
from collections.abc import Iterator
from contextvars import ContextVar

INTERNAL = ("skcds", "torch", "scipy")  # packages whose frames are passed over
HAS_NOTES = hasattr(BaseException, "add_note")  # from Python 3.11 on

_muted: ContextVar[frozenset] = ContextVar("muted", default=frozenset())  # categories, and topics


@contextlib.contextmanager
def muted(*kinds: type[Warning] | str) -> Iterator[None]:
    """No warnings of the package of these categories or topics inside the block.

    The filters of `warnings` are those of the process; this holds for the thread that is in the block alone.
    """
    token = _muted.set(_muted.get() | set(kinds))
    try:
        yield
    finally:
        _muted.reset(token)


def warn_user(message: str, category: type[Warning], topic: str | None = None) -> None:
    """Warn, with the first line outside the package as the place, unless category or topic are `muted`."""
    if not _muted.get().isdisjoint((category, topic)):
        return
    frame, level = sys._getframe(1), 2  # level 1 is this function
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in INTERNAL:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def note(error: BaseException, text: str) -> None:
    """Add a line to what an exception says of itself.

    Before Python 3.11 it becomes part of the message, where that is the text that the exception was made with.
    """
    if HAS_NOTES:
        error.add_note(text)  # type: ignore[attr-defined]
        return
    message, args = str(error), error.args
    if args and args[0] == message:
        error.args = (f"{message}\n{text}", *args[1:])
    elif not args and not message:
        error.args = (text,)
