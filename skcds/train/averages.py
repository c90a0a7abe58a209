"""Moving averages of a network's weights."""

__all__ = ["moving_average"]

from collections.abc import Callable

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .._support.settings import CPU


def moving_average(network: nn.Module, decay: float | None = None, update: Callable | None = None) -> AveragedModel:
    """PyTorch's average of a network, whose count of updates is on the CPU and not on the default device.

    Parameters
    ----------
    network : nn.Module
        What is averaged; the average is its ``module``.
    decay : float, optional
        Of an exponential moving average.
    update : callable, optional
        The average in its place, a ``multi_avg_fn``.
    """
    average = AveragedModel(network, multi_avg_fn=update or get_ema_multi_avg_fn(decay))
    average.n_averaged = torch.zeros((), dtype=torch.int64, device=CPU)
    return average
