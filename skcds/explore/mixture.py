"""Mixtures of multivariate t distributions: cheap proposals for a first look at a density."""

__all__ = ["TMixture", "laplace_mixture", "log_weights_of"]

import math
from collections.abc import Sequence

import numpy as np
import torch
from sklearn.mixture import BayesianGaussianMixture
from torch import Tensor

from .._support.devices import rand, randn, to_numpy
from .._support.settings import CPU
from ..density.energy import Energy
from .climb import Mode
from .few_evaluations import Mixture


class _QuietMixture(BayesianGaussianMixture):
    """A mixture that does not warn of slow convergence; filters of `warnings` would be those of the whole process."""

    converged_ = property(lambda self: True, lambda self, value: None)


class TMixture:
    """A mixture of k multivariate t distributions.

    Parameters
    ----------
    weights : Tensor
        (k,), positive; they are normalised.
    loc : Tensor
        (k, d).
    scale : Tensor
        Lower-triangular (k, d, d).
    freedom : float, default=5
        Degrees of freedom, a whole number; infinity for Gaussians.
    """

    def __init__(self, weights: Tensor, loc: Tensor, scale: Tensor, freedom: float = Mixture.freedom):
        self.weights, self.loc, self.scale, self.freedom = (weights / weights.sum()).double(), loc, scale, freedom

    @classmethod
    def of_widths(cls, loc: Tensor, widths, sd: Tensor | float = 1.0, freedom: float = Mixture.freedom) -> "TMixture":
        """Components at one place (d,), equally likely, of several widths in units of standard deviations (d,)."""
        widths = torch.as_tensor(widths, dtype=torch.float64, device=CPU).to(loc.device)
        scale = torch.diag(sd * torch.ones_like(loc, dtype=torch.float64))
        return cls(torch.ones_like(widths), loc.expand(len(widths), -1), widths[:, None, None] * scale, freedom)

    @classmethod
    def fitted(cls, x: Tensor, n_components: int, seed: int, by: Mixture | None = None) -> "TMixture":
        """Fitted to points (n, d): as many components as they need, at most `n_components` (variational Bayes)."""
        by = Mixture() if by is None else by
        center, width = x.mean(0), x.std(0).clamp(min=1e-150)
        z = to_numpy((x - center) / width)
        options = {"max_iter": 60, "reg_covar": 1e-6, "random_state": seed, "weight_concentration_prior": 1e-2}
        mixture = _QuietMixture(n_components=n_components, init_params="k-means++", **options)
        mixture.fit(z)
        used = mixture.weights_ > 0.5 / len(z)  # others were not needed
        weights, loc, covariance = (
            torch.from_numpy(np.ascontiguousarray(value[used])).to(x.device)
            for value in (mixture.weights_, mixture.means_, mixture.covariances_)
        )
        scale = torch.linalg.cholesky(covariance) * width[:, None] * by.spread
        return cls(weights, center + width * loc, scale, by.freedom)

    @classmethod
    def joined(cls, parts: "list[tuple[float, TMixture]]") -> "TMixture":
        """Of several mixtures, each with its share."""
        return cls(
            torch.cat([share * part.weights for share, part in parts]),
            torch.cat([part.loc for _, part in parts]),
            torch.cat([part.scale for _, part in parts]),
            parts[0][1].freedom,
        )

    def broadened(self, factor: float) -> "TMixture":
        """The same with wider components, and small ones more likely."""
        return TMixture(self.weights.sqrt(), self.loc, factor * self.scale, self.freedom)

    def __len__(self) -> int:
        return len(self.weights)

    def sample(self, n: int, generator) -> Tensor:
        """Draws (n, d) float64; each component has its share of them, as evenly as can be."""
        d = self.loc.shape[1]
        u = (torch.arange(n, dtype=torch.float64, device=self.loc.device) + rand(generator, n, dtype=torch.float64)) / n
        k = torch.searchsorted(self.weights.cumsum(0), u).clamp(max=len(self) - 1)
        z = randn(generator, n, d, dtype=torch.float64)
        if math.isfinite(self.freedom):
            chi_squared = randn(generator, round(self.freedom), n, dtype=torch.float64).square().sum(0)
            z = z / (chi_squared / self.freedom).sqrt()[:, None]
        return self.loc[k] + torch.einsum("nij,nj->ni", self.scale[k], z)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density (n,) float64 at points (n, d)."""
        return torch.logsumexp(self.log_parts(x), 1)

    def log_parts(self, x: Tensor) -> Tensor:
        """Log density of every component times its weight, (n, k)."""
        d, f = x.shape[1], self.freedom
        parts = []
        for log_weight, loc, scale in zip(self.weights.log(), self.loc, self.scale, strict=True):
            z = torch.linalg.solve_triangular(scale, (x - loc).T, upper=False)
            square, log_det = z.square().sum(0), scale.diagonal().log().sum()
            if math.isfinite(f):
                constant = math.lgamma(0.5 * (f + d)) - math.lgamma(0.5 * f) - 0.5 * d * math.log(f * math.pi)
                kernel = -0.5 * (f + d) * torch.log1p(square / f)
            else:
                constant, kernel = -0.5 * d * math.log(2 * math.pi), -0.5 * square
            parts.append(log_weight + constant + kernel - log_det)
        return torch.stack(parts, 1)


def log_weights_of(energy: Energy, mixture: TMixture, x: Tensor) -> Tensor:
    """Log importance weights (n,) of draws (n, d) of a mixture; ``-inf`` outside of the support."""
    return (energy.log_prob(x) - mixture.log_prob(x)).nan_to_num(-torch.inf, -torch.inf, -torch.inf)


def laplace_mixture(
    modes: Sequence[Mode], power: float = 1.0, least: float = 0.0, by: Mixture | None = None
) -> TMixture:
    """Laplace's approximations at modes, by a power of their masses.

    Parameters
    ----------
    modes : sequence of Mode
        At least one.
    power : float, default=1.0
        Of the masses, which are the components' weights.
    least : float, default=0.0
        Weight that is shared by all components in any case.
    by : Mixture, optional
        How wide the components are, and their tails.
    """
    by = Mixture() if by is None else by
    loc = torch.stack([mode.x for mode in modes])
    scale = torch.stack([mode.standardization.matrix for mode in modes])
    log_mass = torch.tensor([mode.log_mass for mode in modes], dtype=torch.float64, device=CPU).to(loc.device)
    weights = torch.softmax(power * log_mass, 0) + least / len(modes)
    return TMixture(weights, loc, by.laplace_spread * scale, by.freedom)
