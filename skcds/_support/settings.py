"""PyTorch's settings: what this package computes with, whatever the program around it has set.

Default dtype and default device are neither relied on nor changed. Whoever makes a tensor says its dtype and its
device: `FLOAT` and `CPU` from here, or those of another tensor. Layers and buffers of models take `place`. Defaults
cannot be changed for the length of a call: `torch.set_default_dtype` is of the whole process, so that other threads
would see it, and the user's energy function has to see what the user has set. A mode that fills in defaults
(`TorchFunctionMode`) would cost every operation microseconds, and sees no operation that promotes integers.

Modes belong to the thread: inference mode, ``no_grad``, autocast, and the processor's flag that takes denormal numbers
for zero. `guest` leaves them at the door of a public call, and puts them back behind it.
"""

__all__ = ["CPU", "FLOAT", "guest", "own_modes", "place", "skeletons"]

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

import torch

from .parallel import few_threads

FLOAT = torch.float32  # of networks, and of the random numbers that draws are made of
CPU = torch.device("cpu")

_place: ContextVar[torch.device] = ContextVar("place", default=CPU)
_SMALLEST_NORMAL = sys.float_info.min
_DEVICE_TYPES = ("cpu", "cuda")  # that autocast may be on for

Function = TypeVar("Function", bound=Callable)


def place() -> torch.device:
    """Where layers and buffers are made: the CPU, but inside `skeletons`."""
    return _place.get()


@contextlib.contextmanager
def skeletons() -> Iterator[None]:
    """Models that are made inside the block, in this thread, have shapes and no numbers."""
    token = _place.set(torch.device("meta"))
    try:
        yield
    finally:
        _place.reset(token)


@contextlib.contextmanager
def own_modes() -> Iterator[None]:
    """The package's modes of this thread inside the block: gradients where they are asked for, all numbers as they are.

    There are no more threads than this process has processors.

    Tensors that are made inside are usual ones, which later calls may differentiate.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(few_threads())
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            stack.enter_context(torch.enable_grad())
        for device_type in _DEVICE_TYPES:
            if torch.is_autocast_enabled(device_type):
                stack.enter_context(torch.autocast(device_type, enabled=False))
        if _flushes_denormals():
            stack.callback(torch.set_flush_denormal, True)
            torch.set_flush_denormal(False)
        yield


def guest(function: Function) -> Function:
    """Decorator of a public function: it runs in `own_modes`, and its caller finds the modes as they were.

    A generator would take its modes along to its caller: decorate what makes it, and let it use `own_modes` between
    two of its yields.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with own_modes():
            return function(*args, **kwargs)

    return call  # type: ignore[return-value]


def _flushes_denormals() -> bool:
    """Whether this thread's processor takes denormal numbers for zero; PyTorch has no question for it."""
    return _SMALLEST_NORMAL / 2 == 0.0
