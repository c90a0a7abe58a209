"""The self-consistent sampler's model: a control for the finest steps, and a map for steps of every power of two.

Steps are counted on the grid of N + 1 noise levels: one of size 2^j goes from index k, a multiple of 2^j, to k + 2^j.
"""

__all__ = ["DyadicSteps", "ShortcutModel"]

import itertools

import torch
from torch import Tensor, nn

from .._support.devices import rand, randint
from .._support.settings import FLOAT, place
from ..density.triangular import DEGREES
from ..io.registry import register_model
from .diffusion import DiffusionModel
from .maps import MAPS, ResidualMap, exact_log_weight, jacobians, standard_normal_log_prob
from .networks import in_parts, note_evaluations
from .process import LOG_SNR_MIN, Grid, noise_levels

LARGEST_CHAIN_STEP = 2  # in finest steps, after a partial map


class FinestStepControl(nn.Module):
    """The control that a residual map's finest steps are made of: ``eps = s x - a NN(x, t, t')`` (see `ResidualMap`).

    It stands where a diffusion model has a network of its own, and reads no score.
    """

    langevin = False
    width: Tensor
    log_snr: Tensor

    def __init__(self, step_map: ResidualMap, log_snr: Tensor):
        super().__init__()
        self.map = [step_map]  # in a list: the map's parameters are registered by the model
        self.register_buffer("log_snr", log_snr, persistent=False)
        self.register_buffer("width", torch.ones(step_map.body.output.out_features, dtype=FLOAT, device=place()))

    def forward(self, x: Tensor, log_snr: Tensor, score: Tensor | None = None) -> tuple[Tensor, None]:
        """Noise estimate (n, d) at states (n, d) and levels (n,)."""
        note_evaluations(x)
        a, s = (t[:, None] for t in noise_levels(log_snr))
        following = torch.searchsorted(self.log_snr[:-1], log_snr + 1e-4)
        time, _, _ = self.map[0].condition(log_snr, self.log_snr[following])
        return s * x - a * self.map[0].body(x, time), None


@register_model(network=MAPS, degree=DEGREES)
class ShortcutModel(DiffusionModel):
    """A diffusion model with a map that takes large steps of its probability-flow ODE at once.

    Parameters
    ----------
    network : {"coupling", "residual"}
        Kind of map. The finest steps of a residual map are the control (one network, as in the paper). A coupling map
        has a network for the control beside it.
    n_steps : int
        Steps N of the grid, a power of two.
    map_hidden, map_layers, n_transforms, bins, stretch, elementwise : int
        Sizes of the map, whether its couplings stretch, and whether splines of single coordinates come after them.
    n_features, log_snr_max, full, hidden, n_layers, langevin, learned_variance, **parts
        See `DiffusionModel`.
    """

    def __init__(
        self, network, n_steps, n_features, log_snr_max, full, hidden, n_layers, langevin, learned_variance,
        map_hidden=64, map_layers=2, n_transforms=4, bins=8, stretch=False, elementwise=False, **parts
    ):  # fmt: skip
        super().__init__(n_features, log_snr_max, full, hidden, n_layers, langevin, learned_variance, **parts)
        sizes = {"n_transforms": n_transforms, "bins": bins, "stretch": stretch, "elementwise": elementwise}
        self.map = MAPS[network](
            n_features, log_snr_max, map_hidden, map_layers, two_levels=True, **sizes if network == "coupling" else {}
        )
        self.steps = DyadicSteps(n_steps, log_snr_max)
        if network == "residual":
            self.network = FinestStepControl(self.map, self.steps.log_snr)
        del self.config["reference"]  # steps are those of the default grid
        self.config |= {
            "network": network, "n_steps": n_steps, "map_hidden": map_hidden, "map_layers": map_layers,
            **sizes,
        }  # fmt: skip

    def start(self) -> Tensor:
        """Log signal-to-noise ratio (1,) of the prior end."""
        return torch.full((1,), LOG_SNR_MIN, dtype=FLOAT, device=self.device)

    def log_prob(self, z: Tensor, to: Tensor | None = None) -> Tensor:
        """Log density (n,) of steps from the prior to levels `to` (n,), by default one-step draws, at points (n, d)."""
        latent, log_det = self.map.inverse_and_log_det(z, self.start(), to)
        return log_det + standard_normal_log_prob(latent)

    def walk(self, z: Tensor, n_steps: int) -> Tensor:
        """Latents (n, d) to the target in equal steps of the map."""
        for level, to in self.steps.pairs(n_steps):
            z = self.map(z, level[None], to[None])
        return z

    def composed(self, n_steps: int) -> "ComposedMap":
        """`walk` in the form of a one-step map."""
        return ComposedMap(self, n_steps)

    @torch.no_grad()
    def call_and_log_weight(self, latent: Tensor, target, n_steps: int = 1) -> tuple[Tensor, Tensor]:
        """Images (n, d) of latents after equal steps, and their exact log weights (n,) float64."""
        z, log_det = in_parts(lambda part: self._walk_and_log_det(part, n_steps), latent)
        return z, exact_log_weight(z, log_det, latent, target)

    def _walk_and_log_det(self, z, n_steps):
        if not self.map.invertible:
            z, jacobian = self.composed(n_steps).jacobian(z)
            return z, torch.linalg.slogdet(jacobian)[1]
        total = z.new_zeros(len(z))
        for level, to in self.steps.pairs(n_steps):
            z, log_det = self.map.call_and_log_det(z, level[None], to[None])
            total = total + log_det
        return z, total

    def partial_step(self, n_steps: int) -> tuple[Tensor, Grid]:
        """Level that the partial map goes to in the first of n steps, and the grid of the chain's steps from there.

        Each of the chain's steps goes over N / n_steps finest steps, at most `LARGEST_CHAIN_STEP`.
        """
        size = min(self.steps.n_steps // n_steps, LARGEST_CHAIN_STEP)
        grid = self.grid(self.steps.n_steps).tail(n_steps - 1, size)
        return grid.log_snr[0], grid

    def partial_levels(self) -> Tensor:
        """Levels (k,) that the partial map goes to in the first of 2, 4, ... steps."""
        return torch.stack([self.partial_step(2**j)[0] for j in range(1, self.steps.n_steps.bit_length())])

    @torch.no_grad()
    def partial_map_and_simulate(self, latent: Tensor, n_steps: int, target, noise_source) -> tuple[Tensor, Tensor]:
        """Take the partial map to a level with noise, and go on from there by the chain.

        Returns the ends (n, d) and a log ratio (n,) as `simulate` does, with the density of the partial map in place of
        the prior's. With the log density of the ends it is the log path weight.
        """
        level, grid = self.partial_step(n_steps)
        x, log_det = self.map.call_and_log_det(latent, self.start(), level[None])
        z, log_ratio = self.simulate(x, grid, target, noise_source)
        density_ratio = 0.5 * (latent.double() ** 2 - x.double() ** 2).sum(1) + log_det.double()
        return z, log_ratio + density_ratio


class ComposedMap:
    """The map from prior to target that is composed of equal steps (see `check_injectivity`)."""

    def __init__(self, model: ShortcutModel, n_steps: int):
        self.model, self.n_steps, self.invertible = model, n_steps, model.map.invertible

    def __call__(self, z: Tensor, level: Tensor | None = None) -> Tensor:
        """Latents (n, d) to the target."""
        return self.model.walk(z, self.n_steps)

    def jacobian(self, z: Tensor, level: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Images (n, d) and Jacobians (n, d, d)."""
        return jacobians(self, z)


class DyadicSteps(nn.Module):
    """Steps of every power of two on a grid of N steps.

    Parameters
    ----------
    n_steps : int
        N, a power of two.
    log_snr_max : float
        Of the grid.
    """

    log_snr: Tensor

    def __init__(self, n_steps: int, log_snr_max: float):
        super().__init__()
        self.n_steps = n_steps
        self.numbers = [2**j for j in range(n_steps.bit_length())]  # of equal steps, and sizes of a step
        noisy = Grid(n_steps, log_snr_max).log_snr
        levels = torch.cat([noisy, noisy.new_full((1,), torch.inf)])
        self.register_buffer("log_snr", levels, persistent=False)

    def pairs(self, n_steps: int) -> list[tuple[Tensor, Tensor]]:
        """Levels that each of `n_steps` equal steps goes from and to."""
        index = range(0, self.n_steps + 1, self.n_steps // n_steps)
        return [(self.log_snr[i], self.log_snr[j]) for i, j in itertools.pairwise(index)]

    def draw(self, n: int, generator, first: int = 0) -> tuple[Tensor, Tensor]:
        """Start indices and sizes (n,) of steps: sizes uniform over the powers of two from 2^first, then starts."""
        size = 2 ** randint(generator, first, len(self.numbers), (n,))
        start = (rand(generator, n) * (self.n_steps // size)).long() * size
        return start, size
