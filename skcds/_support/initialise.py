"""Where layers get their first weights from: a seed of their own, or zeros."""

__all__ = ["Linear", "seeded", "without_draws"]

import contextlib
import math
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from torch import nn

from .settings import CPU, FLOAT, place

_weights: ContextVar[torch.Generator | str | None] = ContextVar("weights", default=None)  # where layers get theirs


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Layers that are made inside the block, in this thread, draw their weights from a generator of this seed.

    They are those that PyTorch's own layers have after ``torch.manual_seed(seed)``, but its generator is left alone.
    """
    with _weights_from(torch.Generator("cpu").manual_seed(seed)):
        yield


@contextlib.contextmanager
def without_draws() -> Iterator[None]:
    """Layers that are made inside the block, in this thread, are zero, and draw no random numbers."""
    with _weights_from("zeros"):
        yield


@contextlib.contextmanager
def _weights_from(source: torch.Generator | str) -> Iterator[None]:
    token = _weights.set(source)
    try:
        yield
    finally:
        _weights.reset(token)


class Linear(nn.Linear):
    """PyTorch's linear layer, with the weights that `seeded` or `without_draws` say; outside of both, its own."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, dtype=FLOAT, device=place())

    def reset_parameters(self) -> None:
        """Draw weights and biases anew."""
        source = _weights.get()
        if source is None:
            super().reset_parameters()
            return
        with torch.no_grad():
            for parameter in (self.weight, self.bias):
                if isinstance(source, str) or parameter.is_meta:
                    parameter.zero_()
                else:
                    bound = 1 / math.sqrt(self.in_features) if self.in_features else 0.0
                    draws = torch.empty(parameter.shape, dtype=parameter.dtype, device=CPU)
                    parameter.copy_(draws.uniform_(-bound, bound, generator=source))
