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

SMALLEST = 1e-300  # divisors are no smaller


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
        return self._log_parts(self._squares(x), x.shape[1])

    def _squares(self, x: Tensor) -> Tensor:
        """Squared distances (k, n) of points (n, d) from the components, in units of their scales."""
        return torch.stack([
            torch.linalg.solve_triangular(scale, (x - loc).T, upper=False).square().sum(0)
            for loc, scale in zip(self.loc, self.scale, strict=True)
        ])  # fmt: skip

    def _log_parts(self, squares: Tensor, d: int) -> Tensor:
        f, log_det = self.freedom, self.scale.diagonal(dim1=1, dim2=2).log().sum(1)
        if math.isfinite(f):
            constant = math.lgamma(0.5 * (f + d)) - math.lgamma(0.5 * f) - 0.5 * d * math.log(f * math.pi)
            kernel = -0.5 * (f + d) * torch.log1p(squares / f)
        else:
            constant, kernel = -0.5 * d * math.log(2 * math.pi), -0.5 * squares
        return (kernel + (self.weights.log() + constant - log_det)[:, None]).T

    def improved(self, x: Tensor, n_effective: float, by: Mixture, freedom: float | None = None) -> "TMixture":
        """Its components fitted to points by expectation maximisation (Peel & McLachlan 2000; Cappe et al. 2008).

        Parameters
        ----------
        x : Tensor
            Points (n, d), equally likely.
        n_effective : float
            How many of them are effective: components that few are near to stay as they were.
        by : Mixture
            Iterations, and how many points what they were counts as.
        freedom : float, optional
            Degrees of freedom; by default those that it has.
        """
        d, prior, before = x.shape[1], by.prior_points, self.scale @ self.scale.mT
        mixture = TMixture(self.weights, self.loc, self.scale, self.freedom if freedom is None else freedom)
        for _ in range(by.n_iter):
            squares, f = mixture._squares(x), mixture.freedom
            share = torch.softmax(mixture._log_parts(squares, d), 1).T
            pull = share * (f + d) / (f + squares) if math.isfinite(f) else share
            total, number = share.sum(1), share.sum(1) * (n_effective / len(x))
            center = (pull @ x) / pull.sum(1).clamp(min=SMALLEST)[:, None]
            loc = torch.lerp(mixture.loc, center, (number / (number + prior))[:, None])
            own = torch.stack([((x - at).T * row) @ (x - at) for at, row in zip(loc, pull, strict=True)])
            own = own / total.clamp(min=SMALLEST)[:, None, None]
            covariance = torch.lerp(before, own, (number / (number + prior * (d + 1)))[:, None, None])
            scale, failed = torch.linalg.cholesky_ex(covariance)
            scale = torch.where((failed == 0)[:, None, None], scale, mixture.scale)
            mixture = TMixture(number + prior, loc, scale, f)
        return mixture

    def lacking(
        self, x: Tensor, log_prob: Tensor, log_weights: Tensor, most: int, by: Mixture
    ) -> "list[tuple[float, TMixture]]":
        """Further components, at most so many, at weighted points that it has too low a density at, with their masses.

        Each is at a point of large weight, with the scale of the nearest component, and its mass is that of such points
        around (after incremental mixture importance sampling, Raftery & Bao 2010).

        Parameters
        ----------
        x : Tensor
            Points (n, d).
        log_prob, log_weights : Tensor
            Log density (n,) at these, normalised, and their log weights (n,).
        most : int
            Number of components.
        by : Mixture
            What is too low, and where there is too little mass for a component.
        """
        weights = torch.softmax(log_weights, 0)
        width = (weights @ (x - weights @ x).square()).sqrt().clamp(min=SMALLEST)
        weights = torch.where(log_prob - self.log_prob(x) > math.log(by.lack), weights, 0.0)
        parts: list[tuple[float, TMixture]] = []
        d = x.shape[1]
        while len(parts) < most and weights.sum() >= by.least_mass:
            at = x[weights.argmax()]
            scale = self.scale[((self.loc - at) / width).square().sum(1).argmin()]
            part = TMixture(weights.new_ones(1), at[None], scale[None], self.freedom)
            near = part._squares(x)[0] < d + 4 * math.sqrt(2 * d)
            parts.append((float(weights[near].sum()), part))
            weights = torch.where(near, 0.0, weights)
        return parts


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
