"""AdamW by PyTorch's functional form: its class loads the compiler at first use, which takes some seconds."""

__all__ = ["AdamW"]

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim.adamw import adamw


class AdamW:
    """The fused AdamW of `torch.optim`, bit for bit, for one group of parameters (Loshchilov & Hutter 2019).

    Parameters
    ----------
    parameters : iterable of Tensor
        What is optimised, in place; those without a gradient are left alone.
    learning_rate : float
        May be changed between steps, as the attribute of that name.
    weight_decay : float, default=0.0
        Decoupled.
    betas : tuple of float, default=(0.9, 0.999)
        Decay of the averages of gradients and of their squares.
    """

    EPS = 1e-8

    def __init__(
        self, parameters: Iterable[Tensor], learning_rate: float, weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
    ):  # fmt: skip
        self.parameters, self.learning_rate, self.weight_decay = list(parameters), learning_rate, weight_decay
        self.betas = betas
        self.moments: list[tuple[Tensor, Tensor, Tensor] | None] = [None] * len(self.parameters)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """One step along the gradients."""
        rows = [k for k, parameter in enumerate(self.parameters) if parameter.grad is not None]
        for k in rows:
            if self.moments[k] is None:
                zeros = torch.zeros_like(self.parameters[k], memory_format=torch.preserve_format)
                count = torch.zeros((), dtype=torch.float32, device=zeros.device)
                self.moments[k] = (zeros, zeros.clone(), count)
        moments = [m for k in rows if (m := self.moments[k]) is not None]
        gradients = [g for k in rows if (g := self.parameters[k].grad) is not None]
        first, second, counts = (list(column) for column in zip(*moments, strict=True)) if moments else ([], [], [])
        adamw(
            [self.parameters[k] for k in rows], gradients, first, second, [], counts, foreach=False, fused=True,
            amsgrad=False, beta1=self.betas[0], beta2=self.betas[1], lr=self.learning_rate,
            weight_decay=self.weight_decay, eps=self.EPS, maximize=False,
        )  # fmt: skip

    def state_dict(self) -> dict:
        """What `load_state_dict` puts back."""
        return {"moments": list(self.moments)}

    def load_state_dict(self, state: dict) -> None:
        """Go back to an earlier state."""
        self.moments = [
            None if moments is None else tuple(part.to(parameter.device) for part in moments)
            for moments, parameter in zip(state["moments"], self.parameters, strict=True)
        ]
