"""Draws of a map with one latent coordinate of heavy tails: they go beyond what the map has been fitted to."""

__all__ = ["WideLatents"]

import math

import torch
from torch import Tensor

from .._support.devices import randint, randn
from ..models.maps import OneStepModel, standard_normal_log_prob
from ..models.networks import in_parts


class WideLatents:
    """The density of one-step draws of a map, one latent coordinate of which, at random, has a t distribution.

    Tails and necks that a map has not met yet mostly lie along one coordinate of its latents, while the others keep
    the distribution that the map knows there. Widening all of them at once would meet nothing in many dimensions.

    Parameters
    ----------
    model : OneStepModel
        Its map is invertible.
    scale, freedom : float
        Of the t distribution; the freedom is a whole number.
    """

    def __init__(self, model: OneStepModel, scale: float, freedom: float):
        self.model, self.scale, self.freedom = model, scale, freedom

    @torch.no_grad()
    def sample(self, n: int, generator) -> Tensor:
        """Draws (n, d) float64."""
        model, d = self.model, self.model.n_features
        latent, wide = randn(generator, n, d), randint(generator, 0, d, (n,))
        squares = randn(generator, n, round(self.freedom)).square().mean(1)
        wider = self.scale * randn(generator, n) / squares.sqrt()
        latent = latent.scatter(1, wide[:, None], wider[:, None])
        return model.standardization(in_parts(lambda part: model.map(part, model.start()), latent))

    @torch.no_grad()
    def log_prob(self, x: Tensor) -> Tensor:
        """Log density (n,) float64 at points (n, d)."""
        z = self.model.standardization.inverse(x)
        own = in_parts(self._log_prob, z.float()).double() - self.model.standardization.log_det(z)
        return own.nan_to_num(nan=-torch.inf, posinf=-torch.inf)

    def _log_prob(self, z):
        latent, log_det = self.model.map.inverse_and_log_det(z, self.model.start())
        f = self.freedom
        constant = math.lgamma(0.5 * (f + 1)) - math.lgamma(0.5 * f) - 0.5 * math.log(f * math.pi * self.scale**2)
        wider = constant - 0.5 * (f + 1) * torch.log1p((latent / self.scale).square() / f)
        normal = -0.5 * latent**2 - 0.5 * math.log(2 * math.pi)
        some = torch.logsumexp(wider - normal, 1) - math.log(latent.shape[1])
        return log_det + standard_normal_log_prob(latent) + some
