"""A first fit of the splines of single coordinates, to the marginals of particles."""

__all__ = ["fit_marginals"]

import math
import time

import torch
from torch import Tensor

from ..models.maps import ElementwiseSplines
from ..models.splines import n_numbers, stretched_spline
from .optimizer import AdamW
from .specifications import Marginals


def fit_marginals(model, z: Tensor, by: Marginals | None = None, seconds: float = math.inf) -> bool:
    """Fit the splines of single coordinates of an untrained map to standardised particles (n, d), all at once.

    They are one-dimensional problems, solved by maximum likelihood in the time of a few dozen iterations of a map. In a
    product of independent coordinates they are the whole map. The numbers are those of the prior end; towards the
    target they shrink with the angle between the levels. Particles are taken in their order, so that no random numbers
    are drawn. A share of `seconds` may be spent.

    Returns
    -------
    bool
        Whether there were splines to fit, particles enough for their numbers, and time.
    """
    by = Marginals() if by is None else by
    transforms = getattr(getattr(model, "map", None), "transforms", None)
    layer = transforms[-1] if transforms else None
    if not isinstance(layer, ElementwiseSplines) or len(z) < by.particles_a_number * n_numbers(layer.bins, True):
        return False
    output, limit = layer.conditioner.output, by.time_share * seconds
    if output.weight.any() or output.bias.any() or z.shape[1] > by.most_features or not limit > 0:
        return False
    phi = z.new_zeros(z.shape[1], n_numbers(layer.bins, True)).requires_grad_()
    optimizer = AdamW([phi], by.learning_rate, betas=(0.9, 0.99))
    stride, clock = max(1, len(z) // by.batch_size), time.perf_counter()
    for k in range(by.n_iter):
        progress = max(k / by.n_iter, (time.perf_counter() - clock) / limit)
        if progress >= 1:
            break
        optimizer.learning_rate = by.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
        batch = z[k % stride :: stride]
        y, log_slope = stretched_spline(batch, phi.expand(len(batch), -1, -1), layer.bound, inverse=True)
        loss = (0.5 * y.square() - log_slope).mean(0).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        output.bias.copy_(phi.flatten())
    return True
