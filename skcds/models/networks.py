"""Networks: the control of the diffusion sampler, and what it shares with the one-step maps."""

__all__ = [
    "Evaluations",
    "GatedMLP",
    "Linear",
    "NoiseNetwork",
    "ResidualMLP",
    "TimeFeatures",
    "count_evaluations",
    "in_parts",
    "note_evaluations",
    "seeded",
    "without_draws",
]

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._support.initialise import Linear, seeded, without_draws
from .._support.settings import FLOAT, place
from .process import LOG_SNR_MIN, noise_levels

PART_NUMBERS, PART_ROWS = 65_536, (512, 4096)  # that a thread maps at once: numbers, or rows within these limits
FARTHEST_STATE = 20.0  # of standardised states that layers see: of others they would make ever further ones
LANGEVIN_CLIP = 10.0  # of the target's part of the noise estimate, in standard deviations of the noise


@dataclass
class Evaluations:
    """Rows that controls and maps were evaluated at; a Jacobian counts as one row."""

    rows: int = 0


_evaluations: ContextVar[Evaluations | None] = ContextVar("evaluations", default=None)


@contextlib.contextmanager
def count_evaluations() -> Iterator[Evaluations]:
    """Count the rows that controls and maps are evaluated at inside the block."""
    count = Evaluations()
    token = _evaluations.set(count)
    try:
        yield count
    finally:
        _evaluations.reset(token)


def note_evaluations(x: Tensor, times: int = 1) -> None:
    """Add the rows of x to the count, if there is one, as often as networks were called with them."""
    count = _evaluations.get()
    if count is not None:
        count.rows += times * len(x)


class TimeFeatures(nn.Module):
    """Amplitudes and Fourier features of the noise level: (n,) log signal-to-noise ratios to (n, `n_out`)."""

    frequencies: Tensor

    def __init__(self, log_snr_max: float, n_frequencies: int = 16, max_frequency: float = 25.0):
        super().__init__()
        self.span = (LOG_SNR_MIN, log_snr_max)
        frequencies = torch.linspace(0.5, max_frequency, n_frequencies, dtype=FLOAT, device=place())
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.n_out = 2 + 2 * n_frequencies

    def forward(self, log_snr: Tensor) -> Tensor:
        """(n,) to (n, n_out)."""
        a, s = noise_levels(log_snr)
        low, high = self.span
        angle = ((high - log_snr.clamp(max=high)) / (high - low))[:, None] * self.frequencies
        return torch.cat([a[:, None], s[:, None], angle.sin(), angle.cos()], 1)


def in_parts(function: Callable[[Tensor], Any], x: Tensor) -> Any:
    """A function of points (n, d), in parts of so many rows that the activations stay in the cache.

    It returns a tensor of n rows, or a tuple of them.
    """
    smallest, largest = PART_ROWS
    rows = min(max(PART_NUMBERS // x.shape[1], smallest), largest) * torch.get_num_threads()
    if len(x) <= rows:
        return function(x)
    results = [function(part) for part in x.split(rows)]
    if isinstance(results[0], Tensor):
        return torch.cat(results)
    return tuple(torch.cat(parts) for parts in zip(*results, strict=True))


def first_layer(layer: nn.Linear, x: Tensor, condition: Tensor) -> Tensor:
    """A layer of x (n, .) beside a condition (n, .), or one of (1, .) for all rows, which is then part of the bias."""
    if len(condition) == len(x):
        return layer(torch.cat([x, condition], 1))
    of_x, of_condition = layer.weight.split([x.shape[1], condition.shape[1]], 1)
    return torch.addmm(F.linear(condition, of_condition, layer.bias), x, of_x.T)


class ResidualMLP(nn.Module):
    """SiLU layers of equal width with residual connections; the output layer starts at zero."""

    def __init__(self, n_in: int, n_out: int, hidden: int, n_layers: int):
        super().__init__()
        self.input = Linear(n_in, hidden)
        self.hidden = nn.ModuleList(Linear(hidden, hidden) for _ in range(n_layers - 1))
        self.output = Linear(hidden, n_out)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """A part (n, .) of the input and the rest, (n, .) or (1, .) for all rows, to (n, n_out)."""
        h = F.silu(first_layer(self.input, x, condition))
        for layer in self.hidden:
            h = h + F.silu(layer(h))
        return self.output(h)


class GatedMLP(nn.Module):
    """Gated linear units of equal width, normalised, with residual connections; the output layer starts at zero.

    The gates multiply features (SwiGLU; Shazeer 2020). If the scale of some coordinates depends on others, the noise is
    a product of both, and sums of activations learn products slowly. The normalisation (RMSNorm; Zhang & Sennrich 2019)
    keeps the products of far-out states bounded.
    """

    def __init__(self, n_in: int, n_out: int, hidden: int, n_layers: int):
        super().__init__()
        self.input = Linear(n_in, hidden)
        self.norms = nn.ModuleList(nn.RMSNorm(hidden, dtype=FLOAT, device=place()) for _ in range(n_layers - 1))
        self.hidden = nn.ModuleList(Linear(hidden, 2 * hidden) for _ in range(n_layers - 1))
        self.output = Linear(hidden, n_out)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """A part (n, .) of the input and the rest, (n, .) or (1, .) for all rows, to (n, n_out)."""
        h = F.silu(first_layer(self.input, x, condition))
        for norm, layer in zip(self.norms, self.hidden, strict=True):
            gate, value = layer(norm(h)).chunk(2, 1)
            h = torch.addcmul(h, F.silu(gate), value)
        return self.output(h)


class NoiseNetwork(nn.Module):
    """Estimate of the noise eps in x_t and of its conditional variance; the score of x_t is ``-eps / s``.

    The estimate is that of a standard normal target, ``s x``, with a learned gain, plus an output of the network. The
    Langevin parametrisation (Vargas et al. 2023, Zhang & Chen 2022) reads the target's score at x_t. It adds
    ``-s f (score(x) + x)`` with another gain, which starts at zero, and feeds this to the network, too. Here
    ``f = w^2 / (a^2 w^2 + s^2)`` with the smallest length scale w. It is exact for a target that is Gaussian of that
    scale near by. Beyond 20 standard deviations all but the first term stays as it is there, so that paths come back.

    Parameters
    ----------
    n_features : int
        Dimension.
    log_snr_max : float
        Largest log signal-to-noise ratio of the grid.
    hidden, n_layers : int
        Width and number of the hidden layers.
    langevin : bool
        Whether the score of the target is read.
    learned_variance : bool
        Whether the conditional variance is an output; None is returned in its place otherwise.
    n_condition : int, default=0
        Features of a context that are read, too.
    """

    width: Tensor

    def __init__(
        self, n_features: int, log_snr_max: float, hidden: int, n_layers: int, langevin: bool, learned_variance: bool,
        n_condition: int = 0,
    ):  # fmt: skip
        super().__init__()
        self.n_features, self.langevin, self.learned_variance = n_features, langevin, learned_variance
        self.time = TimeFeatures(log_snr_max)
        self.register_buffer("width", torch.ones(n_features, dtype=FLOAT, device=place()))
        n_in = n_features * (2 if langevin else 1) + self.time.n_out + n_condition
        n_out = n_features * (2 + langevin + learned_variance)
        self.body = GatedMLP(n_in, n_out, hidden, n_layers)

    def forward(
        self, x: Tensor, log_snr: Tensor, score: Tensor | None, condition: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Noise estimate (n, d) and its variance (n, d) or None, from states (n, d), levels and target scores (n, d).

        The levels are (n,), or (1,) for one that all rows have, and so are features of contexts, the condition.
        """
        note_evaluations(x)
        a, s = (t[:, None] for t in noise_levels(log_snr))
        near = x.clamp(-FARTHEST_STATE, FARTHEST_STATE)
        inputs = [near]
        if score is not None:
            f = self.width**2 / ((a * self.width) ** 2 + s**2)
            inputs.append(-(s * f * score).clamp(-LANGEVIN_CLIP, LANGEVIN_CLIP) - s * f * near)
        out = self._outputs(torch.cat(inputs, 1), self.time(log_snr), condition).split(self.n_features, 1)
        noise = s * (x + near * out[0]) + out[1]
        if score is not None:
            noise = noise + inputs[1] * out[2]
        if not self.learned_variance:
            return noise, None
        return noise, a**2 * out[-1].clamp(-7, 7).exp()

    def _outputs(self, points: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
        """What the layers make of points (n, .), and of features of levels and contexts, (n, .) or (1, .) each."""
        if condition is not None:
            n = max(len(time), len(condition))
            time = torch.cat([time.expand(n, -1), condition.expand(n, -1)], 1)
        return in_parts(lambda part: self.body(part, time), points) if len(time) == 1 else self.body(points, time)
