"""The diffusion sampler's model: simulation of its chain with exact path weights, and its probability-flow ODE."""

__all__ = ["Chain", "DiffusionModel"]

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..density.standardize import Standardization, StandardizedTarget
from ..density.triangular import DEGREES
from ..io.registry import register_model
from .networks import NoiseNetwork
from .process import GRIDS, Grid, heun_step, reverse_kernel


class Chain:
    """The generative chain of a network for the noise; its methods are those of `DiffusionModel`."""

    network: Any  # (x, log_snr, score) to the estimate of eps and its variance
    n_features: int
    log_snr_max: float
    reference: str

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        raise NotImplementedError

    @property
    def needs_score(self) -> bool:
        """Whether the network reads the score of the target."""
        return self.network.langevin

    def grid(self, n_steps: int) -> Grid:
        """Noise levels for a number of steps."""
        return GRIDS[self.reference](n_steps, self.log_snr_max).to(self.device)

    def noise(self, x: Tensor, log_snr: Tensor, target: StandardizedTarget | None) -> tuple[Tensor, Tensor | None]:
        """Estimate of eps and its variance at states (n, d) and levels (n,) or ()."""
        score = target.log_prob_and_score(x)[1] if self.needs_score and target is not None else None
        return self.network(x, log_snr.reshape(-1), score)

    @torch.no_grad()
    def simulate(self, x: Tensor, grid: Grid, target: StandardizedTarget | None, noise_source, keep: bool = False):
        """`simulate_differentiably` without a graph."""
        return self.simulate_differentiably(x, grid, target, noise_source, keep)

    def simulate_differentiably(self, x: Tensor, grid: Grid, target, noise_source, keep: bool = False):
        """Run the generative chain. Scores of the target that the network reads count as constants.

        Parameters
        ----------
        x : Tensor
            (n, d) draws from the prior N(0, I).
        grid : Grid
            Noise levels.
        target : StandardizedTarget or None
            Needed when the network reads the score.
        noise_source : callable
            ``noise_source(k)`` gives the standard normal draws (n, d) of step k.
        keep : bool, default=False
            Return all states (N + 1, n, d) in place of the last.

        Returns
        -------
        x : Tensor
            The last state (n, d), or all.
        log_ratio : Tensor
            (n,) float64: the sum over steps of log noising kernel minus log generative kernel, minus the log prior of
            the first state. With the log density of the last state it is the log path weight.
        """
        d = x.shape[1]
        log_ratio = 0.5 * (x.double() ** 2).sum(1) + 0.5 * d * math.log(2 * math.pi)
        path = [x]
        for k in range(grid.n_steps):
            noise, noise_var = self.noise(x, grid.log_snr[k], target)
            mean, variance = reverse_kernel(grid, k, x, noise, noise_var)
            eps = noise_source(k)
            step = variance.sqrt() * eps
            # x - b (mean + step), without cancellation
            backward = grid.rest[k] * x + grid.b[k] * (grid.gain[k] * noise - step)
            terms = eps**2 - backward**2 / grid.v[k] + (variance / grid.v[k]).log()
            log_ratio += 0.5 * terms.sum(1).double()
            x = mean + step
            path.append(x)
        return (torch.stack(path) if keep else x), log_ratio

    def simulate_weighted(self, x: Tensor, grid: Grid, target: StandardizedTarget, noise_source):
        """Ends (n, d) of the chain, and their log path weights (n,) float64; arguments as in `simulate`.

        A path that ends where the density is zero, or leaves the range of its numbers, has no weight.
        """
        z, log_ratio = self.simulate(x, grid, target, noise_source)
        log_prob = target.log_prob(z)
        lost = (log_prob == -torch.inf) | ~z.isfinite().all(1)
        return z, (log_ratio + log_prob).masked_fill(lost, -torch.inf)

    @torch.no_grad()
    def noise_back(self, z: Tensor, grid: Grid, target: StandardizedTarget | None, noise_source, keep: bool = False):
        """Noise points of the target back to the prior: paths distributed as those of `simulate` should be.

        Parameters
        ----------
        z : Tensor
            (n, d) ends of the paths.
        grid : Grid
            Noise levels.
        target : StandardizedTarget or None
            Needed when the network reads the score.
        noise_source : callable
            ``noise_source(k)`` gives the standard normal draws (n, d) that lead from index k + 1 to k.
        keep : bool, default=False
            Return all states (N + 1, n, d) in place of the first.

        Returns
        -------
        x : Tensor
            The first state (n, d), or all.
        log_ratio : Tensor
            (n,) float64, as of `simulate` for the same path.
        """
        log_ratio, path = z.new_zeros(len(z), dtype=torch.float64), [z]
        for k in reversed(range(grid.n_steps)):
            eps = noise_source(k)
            x = grid.b[k] * path[-1] + grid.v[k].sqrt() * eps
            score = target.log_prob_and_score(x)[1] if self.needs_score and target is not None else None
            log_prob = self.step_log_prob(
                grid, torch.full((len(z),), k, dtype=torch.int64, device=z.device), x, path[-1], score
            )
            log_ratio -= (log_prob + 0.5 * (eps**2 + grid.v[k].log()).sum(1)).double()
            path = [*(path if keep else ()), x]
        x = path[-1]
        log_ratio += 0.5 * (x.double() ** 2).sum(1) + 0.5 * z.shape[1] * math.log(2 * math.pi)
        return (torch.stack(path[::-1]) if keep else x), log_ratio

    def step_log_prob(self, grid: Grid, k: Tensor, x: Tensor, x_next: Tensor, score: Tensor | None) -> Tensor:
        """Log density (n,) of the generative step from x at index k (n,) to x_next; differentiable."""
        mean, variance = reverse_kernel(grid, k, x, *self.network(x, grid.log_snr[k], score))
        return -0.5 * ((x_next - mean) ** 2 / variance + variance.log()).sum(1)

    @torch.no_grad()
    def flow(self, x: Tensor, grid: Grid, target: StandardizedTarget | None, keep: bool = False) -> Tensor:
        """Solve the probability-flow ODE from prior draws (n, d); the last state, or all (N + 1, n, d)."""
        path = [x]
        for k in range(grid.n_steps):
            path.append(heun_step(lambda y, level: self.noise(y, level, target)[0], grid, k, path[-1]))
            if not keep:
                path = path[-1:]
        return torch.stack(path) if keep else path[-1]


@register_model(reference=GRIDS, degree=DEGREES)
class DiffusionModel(Chain, nn.Module):
    """A network for the noise in x_t, a standardisation, and the range of noise levels.

    Parameters
    ----------
    n_features : int
        Dimension.
    log_snr_max : float
        Log signal-to-noise ratio of the last noisy level.
    full : bool
        Whether the standardisation has a full matrix.
    hidden, n_layers, langevin, learned_variance
        See `NoiseNetwork`.
    reference : {"dis", "dds", "pis"}, default="dis"
        Kind of grid; see `GRIDS`.
    **parts
        Of the standardisation; see there.
    """

    def __init__(
        self, n_features, log_snr_max, full, hidden, n_layers, langevin, learned_variance, reference="dis", **parts
    ):  # fmt: skip
        super().__init__()
        self.config = {
            "n_features": n_features, "log_snr_max": log_snr_max, "full": full, "hidden": hidden, "n_layers": n_layers,
            "langevin": langevin, "learned_variance": learned_variance, "reference": reference,
        }  # fmt: skip
        self.n_features, self.log_snr_max, self.reference = n_features, log_snr_max, reference
        self.standardization = Standardization(n_features, full, **parts)
        self.config |= self.standardization.config
        self.network = NoiseNetwork(n_features, log_snr_max, hidden, n_layers, langevin, learned_variance)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.standardization.loc.device
