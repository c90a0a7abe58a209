"""The one-step map of a family of densities: spline couplings and an affine map that depend on the context."""

__all__ = ["ConditionalCouplingMap", "ConditionalModel", "GivenModel", "conditional_sizes"]

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._support.settings import CPU, FLOAT
from ..density.regression import FamilyStandardization, GivenStandardization
from ..io.registry import register_model
from .maps import coupling_masks, exact_log_weight, standard_normal_log_prob
from .networks import Linear, in_parts, note_evaluations
from .process import LOG_SNR_MIN
from .splines import n_numbers, rational_quadratic_spline, stretched_spline

BOUND = 5.0  # the splines act on [-BOUND, BOUND]
FULL_MAX = 32  # features; above, the affine part is diagonal (unmeasured)
PART_ROWS = 4096  # rows mapped at a time: activations stay in the cache
SIZES = {"hidden": 64, "n_layers": 2, "n_transforms": 4, "bins": 16, "stretch": True}
LOW_DIMENSION, LOW_DIMENSION_BINS = 4, 32  # as of `CouplingMap`


def conditional_sizes(n_features: int, **given) -> dict:
    """Sizes of a `ConditionalCouplingMap`; those that are given and not None are kept."""
    sizes = dict(SIZES)
    if n_features <= LOW_DIMENSION:
        sizes["bins"] = LOW_DIMENSION_BINS
    return sizes | {name: value for name, value in given.items() if value is not None}


class ContextFeatures(nn.Module):
    """Scaled contexts (m, k) to features (m, hidden), by two layers."""

    def __init__(self, n_contexts: int, hidden: int):
        super().__init__()
        self.input, self.hidden = Linear(n_contexts, hidden), Linear(hidden, hidden)

    def forward(self, scaled: Tensor) -> Tensor:
        """(m, k) to (m, hidden)."""
        h = F.silu(self.input(scaled))
        return h + F.silu(self.hidden(h))


class ContextConditioner(nn.Module):
    """A residual network of points (m r, .) and context features (m, .), which enter its first layer once a context."""

    def __init__(self, n_points: int, n_context: int, n_out: int, hidden: int, n_layers: int):
        super().__init__()
        self.n_points = n_points
        self.input = Linear(n_points + n_context, hidden)
        self.hidden = nn.ModuleList(Linear(hidden, hidden) for _ in range(n_layers - 1))
        self.output = Linear(hidden, n_out)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, points: Tensor, features: Tensor) -> Tensor:
        """(m r, .) and (m, .) to (m r, n_out)."""
        of_points, of_context = self.input.weight.split([self.n_points, features.shape[1]], 1)
        shift = F.linear(features, of_context, self.input.bias)
        h = F.silu((_grouped(points @ of_points.T, len(features)) + shift[:, None]).flatten(0, 1))
        for layer in self.hidden:
            h = h + F.silu(layer(h))
        return self.output(h)


class ContextCoupling(nn.Module):
    """A spline coupling that is conditioned on the context, the identity before training.

    Parameters
    ----------
    transformed : Tensor of bool
        (d,), the coordinates that move.
    n_context, hidden, n_layers, bins : int
        Sizes.
    stretch : bool, default=False
        Whether the images of the splines are stretched, by factors that depend on context and other coordinates.
    """

    moving: Tensor
    fixed: Tensor
    stretch = False  # of pickles from before there was one

    def __init__(
        self, transformed: Tensor, n_context: int, hidden: int, n_layers: int, bins: int, stretch: bool = False
    ):  # fmt: skip
        super().__init__()
        self.bins, self.stretch = bins, stretch
        self.register_buffer("moving", transformed.nonzero()[:, 0], persistent=False)
        self.register_buffer("fixed", (~transformed).nonzero()[:, 0], persistent=False)
        n_out = len(self.moving) * n_numbers(bins, stretch)
        self.conditioner = ContextConditioner(len(self.fixed), n_context, n_out, hidden, n_layers)

    def forward(self, x: Tensor, features: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """(m r, d) points to images, or by the inverse, and log |det J| (m r,) of what was applied."""
        phi = self.conditioner(x.index_select(1, self.fixed), features)
        phi = phi.unflatten(1, (len(self.moving), n_numbers(self.bins, self.stretch)))
        spline = stretched_spline if self.stretch else rational_quadratic_spline
        y, log_slope = spline(x.index_select(1, self.moving), phi, BOUND, inverse=inverse)
        return x.index_copy(1, self.moving, y), log_slope.sum(1)


class ContextAffine(nn.Module):
    """``x = loc(c) + L(c) u``, with a triangular L of positive diagonal; the identity before training."""

    rows: Tensor
    columns: Tensor

    def __init__(self, n_features: int, n_context: int):
        super().__init__()
        self.n_features, self.full = n_features, n_features <= FULL_MAX
        indices = torch.tril_indices(n_features, n_features, -1, device="cpu")
        rows, columns = indices.unbind(0)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)
        self.output = Linear(n_context, 2 * n_features + self.full * len(rows))
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor, features: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """(m r, d) points to images, or by the inverse, and log |det J| (m r,) of what was applied."""
        d, m = self.n_features, len(features)
        loc, log_diagonal, lower = self.output(features).split([d, d, self.output.out_features - 2 * d], 1)
        points, log_det = _grouped(x, m), log_diagonal.sum(1)
        matrix = torch.diag_embed(log_diagonal.exp())
        if self.full and d > 1:
            every = torch.arange(m, device=x.device)[:, None]
            matrix = matrix.index_put((every, self.rows[None, :], self.columns[None, :]), lower)
        if inverse:
            centred = (points - loc[:, None]).transpose(1, 2)
            y = torch.linalg.solve_triangular(matrix, centred, upper=False).transpose(1, 2)
            log_det = -log_det
        else:
            y = points @ matrix.transpose(1, 2) + loc[:, None]
        return y.flatten(0, 1), log_det[:, None].expand(m, points.shape[1]).flatten()


class ConditionalCouplingMap(nn.Module):
    """Spline couplings, then an affine map, all conditioned on the context: invertible in one pass each way.

    Parameters
    ----------
    n_features, n_contexts : int
        Numbers of a point and of a context.
    hidden, n_layers, n_transforms, bins : int
        Sizes.
    stretch : bool, default=False
        Whether couplings stretch.
    """

    invertible = True

    def __init__(
        self, n_features: int, n_contexts: int, hidden: int, n_layers: int, n_transforms: int, bins: int,
        stretch: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.features = ContextFeatures(n_contexts, hidden)
        masks = coupling_masks(n_features, n_transforms)
        parts = [ContextCoupling(mask, hidden, hidden, n_layers, bins, stretch) for mask in masks]
        self.transforms = nn.ModuleList([*parts, ContextAffine(n_features, hidden)])

    def compose(self, x: Tensor, features: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """Points (m r, d) with features of contexts (m, hidden) to images, and log |det J| (m r,)."""
        note_evaluations(x)
        total = x.new_zeros(len(x))
        for transform in reversed(self.transforms) if inverse else self.transforms:
            x, log_det = transform(x, features, inverse)
            total = total + log_det
        return x, total


class GivenMap:
    """The map with contexts given, with the methods of `CouplingMap`; there is no other level than the target."""

    invertible = True

    def __init__(self, conditional: ConditionalCouplingMap, features: Tensor):
        self.conditional, self.features = conditional, features

    def double(self) -> "GivenMap":
        """The same in double precision."""
        return GivenMap(copy.deepcopy(self.conditional).double(), self.features.double())

    def call_and_log_det(self, x: Tensor, log_snr=None, to=None) -> tuple[Tensor, Tensor]:
        """Latents (m r, d) to standardised points, and log |det J| (m r,)."""
        return self.conditional.compose(x, self.features)

    def inverse_and_log_det(self, x: Tensor, log_snr=None, to=None) -> tuple[Tensor, Tensor]:
        """Standardised points (m r, d) to latents, and log |det J| (m r,) of the inverse."""
        return self.conditional.compose(x, self.features, inverse=True)

    def __call__(self, x: Tensor, log_snr=None, to=None) -> Tensor:
        """Latents (m r, d) to standardised points."""
        return self.call_and_log_det(x)[0]


class OneStep:
    """The grid of a model that has no step smaller than the whole way."""

    numbers = [1]

    def pairs(self, n_steps: int) -> list[tuple[Tensor, Tensor]]:
        """Levels of the one step, which the map of a family does not read."""
        nowhere = torch.zeros(1, dtype=FLOAT, device=CPU)
        return [(nowhere, nowhere)]


class GivenModel:
    """A model of a family with contexts given: a one-step model of the points.

    Parameters
    ----------
    family : ConditionalModel
        The model of the family.
    contexts : Tensor
        (m, k), which points (m r, d) go with.
    """

    needs_score = False
    steps = OneStep()

    def __init__(self, family: "ConditionalModel", contexts: Tensor):
        self.family, self.n_features, self.n_given = family, family.n_features, len(contexts)
        self.standardization: GivenStandardization = family.standardization.given(contexts)
        features = family.map.features(family.standardization.scaled(contexts).float())
        self.map = GivenMap(family.map, features)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.family.device

    def start(self) -> Tensor:
        """Log signal-to-noise ratio (1,) of the prior end."""
        return torch.full((1,), LOG_SNR_MIN, dtype=FLOAT, device=self.device)

    def levels(self, n_steps: int) -> Tensor:
        """The level that the one step starts from."""
        if n_steps != 1:
            raise ValueError(f"A family of densities is sampled in one step; got n_steps={n_steps}.")
        return self.start()

    def walk(self, z: Tensor, n_steps: int = 1) -> Tensor:
        """Latents (m r, d) to standardised points."""
        return self.map(z)

    def composed(self, n_steps: int = 1) -> GivenMap:
        """The map."""
        return self.map

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density (m r,) of one-step draws at standardised points (m r, d)."""
        latent, log_det = self.map.inverse_and_log_det(z)
        return log_det + standard_normal_log_prob(latent)

    @torch.no_grad()
    def call_and_log_weight(self, latent: Tensor, target, n_steps: int = 1) -> tuple[Tensor, Tensor]:
        """One-step images (m r, d) of latents, and their exact log weights (m r,) float64."""
        z, log_det = self.mapped(latent)
        return z, exact_log_weight(z, log_det, latent, target)

    @torch.no_grad()
    def mapped(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """One-step images (m r, d) of latents and log |det J| (m r,), in parts that stay in the cache."""
        if self.n_given == 1:
            return in_parts(self.map.call_and_log_det, latent)
        each, parts = len(latent) // self.n_given, []
        at_once = max(1, PART_ROWS // max(each, 1))
        for first in range(0, self.n_given, at_once):
            part = GivenMap(self.family.map, self.map.features[first : first + at_once])
            parts.append(part.call_and_log_det(latent[first * each : (first + at_once) * each]))
        z, log_det = (torch.cat(column) for column in zip(*parts, strict=True))
        return z, log_det


@register_model(network={"coupling"})
class ConditionalModel(nn.Module):
    """The one-step model of a family, with the standardisation around it.

    Parameters
    ----------
    network : {"coupling"}
        Kind of map.
    n_features, n_contexts : int
        Numbers of a point and of a context.
    hidden, n_layers, n_transforms, bins : int
        Sizes of the map.
    stretch : bool, default=False
        Whether its couplings stretch.
    """

    needs_score = False

    def __init__(
        self, network: str, n_features: int, n_contexts: int, hidden: int, n_layers: int, n_transforms: int, bins: int,
        stretch: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.config = {
            "network": network, "n_features": n_features, "n_contexts": n_contexts, "hidden": hidden,
            "n_layers": n_layers, "n_transforms": n_transforms, "bins": bins, "stretch": stretch,
        }  # fmt: skip
        self.n_features, self.n_contexts = n_features, n_contexts
        self.standardization = FamilyStandardization(n_features, n_contexts)
        self.map = ConditionalCouplingMap(n_features, n_contexts, hidden, n_layers, n_transforms, bins, stretch)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.standardization.device

    def given(self, contexts: Tensor) -> GivenModel:
        """The model of points (m r, d) with contexts (m, k)."""
        return GivenModel(self, contexts)


def _grouped(rows: Tensor, m: int) -> Tensor:
    """(m r, d) as (m, r, d)."""
    return rows.view(m, len(rows) // max(m, 1), rows.shape[1])
