"""Maps F(x, t, t') from a noisy state to a less noisy one, the identity at t' = t; f(x, t) = F(x, t, 0) is one step."""

__all__ = ["CouplingMap", "OneStepModel", "ResidualMap", "exact_log_weight", "jacobians"]

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import jacfwd, vmap

from .._support.settings import CPU, FLOAT
from ..density.standardize import OPTIONAL_PARTS, Standardization
from ..density.triangular import DEGREES
from ..io.registry import register_model
from .networks import ResidualMLP, TimeFeatures, count_evaluations, in_parts, note_evaluations
from .process import LOG_SNR_MIN, noise_levels
from .splines import n_numbers, rational_quadratic_spline, stretched_spline

FINE_LOG_SNR = 6.8  # of the last noisy level, for a smallest length scale of a tenth
LOW_DIMENSION, LOW_DIMENSION_BINS = 4, 32  # up to here few splines bend all the mass, and bins cost little
ELEMENTWISE_ABOVE, ELEMENTWISE_HIDDEN = 20, 16  # features; width of the network of the noise level
ELEMENTWISE_BINS = 16  # at least, of splines of single coordinates where these have modes
COUPLED_UP_TO = (
    256  # features: particles of more are too few to tell dependence, beyond that which whitening takes away
)
COARSE_SIZES = {"hidden": 64, "n_layers": 2, "n_transforms": 4, "bins": 8, "stretch": True}
FINE_SIZES = {"hidden": 64, "n_layers": 2, "n_transforms": 6, "bins": 16, "stretch": True}
BATCH_SIZES = {False: 512, True: 1024}  # by whether the target has small length scales


class SplineCoupling(nn.Module):
    """Rational-quadratic spline coupling (Durkan et al. 2019), the identity at a gate of 0 and before training.

    Parameters
    ----------
    transformed : Tensor of bool
        (d,), the coordinates that move; the others condition the spline.
    n_time : int
        Number of time features.
    hidden, n_layers, bins : int
        Of the conditioner and of the spline.
    bound : float
        The spline acts on [-bound, bound].
    stretch : bool, default=False
        Whether its image is stretched, by factors that depend on the other coordinates.
    """

    moving: Tensor
    fixed: Tensor
    stretch = False  # of pickles from before there was one

    def __init__(
        self, transformed: Tensor, n_time: int, hidden: int, n_layers: int, bins: int, bound: float, stretch=False
    ):  # fmt: skip
        super().__init__()
        self.bins, self.bound, self.stretch = bins, bound, stretch
        self.register_buffer("moving", transformed.nonzero()[:, 0], persistent=False)
        self.register_buffer("fixed", (~transformed).nonzero()[:, 0], persistent=False)
        n_out = len(self.moving) * n_numbers(bins, stretch)
        self.conditioner = ResidualMLP(len(self.fixed) + n_time, n_out, hidden, n_layers)

    def forward(self, x: Tensor, time: Tensor, gate: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """(n, d) points to images, or by the inverse, and log |det J| (n,) of what was applied."""
        phi = gate * self.conditioner(x.index_select(1, self.fixed), time)
        phi = phi.unflatten(1, (len(self.moving), n_numbers(self.bins, self.stretch)))
        spline = stretched_spline if self.stretch else rational_quadratic_spline
        y, log_slope = spline(x.index_select(1, self.moving), phi, self.bound, inverse=inverse)
        return x.index_copy(1, self.moving, y), log_slope.sum(1)


class ElementwiseSplines(nn.Module):
    """A stretched spline for each coordinate by itself, which only the noise level conditions; starts as the identity.

    A coupling learns the marginals of its coordinates, too, but by a network of all the others, whose noise grows with
    their number. In a product of independent coordinates this layer is all that is needed, and it costs O(d).

    Parameters
    ----------
    n_features, n_time, bins, bound
        See `SplineCoupling`.
    """

    def __init__(self, n_features: int, n_time: int, bins: int, bound: float):
        super().__init__()
        self.bins, self.bound = bins, bound
        self.conditioner = ResidualMLP(n_time, n_features * n_numbers(bins, True), ELEMENTWISE_HIDDEN, 2)

    def forward(self, x: Tensor, time: Tensor, gate: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """(n, d) points to images, or by the inverse, and log |det J| (n,) of what was applied."""
        phi = gate * self.conditioner(time[:, :0], time)
        phi = phi.unflatten(1, (x.shape[1], n_numbers(self.bins, True)))
        phi = phi[0] if len(phi) == 1 else phi  # rows of one level share the splines
        y, log_slope = stretched_spline(x, phi, self.bound, inverse=inverse)
        return y, log_slope.sum(1)


def coupling_masks(n_features: int, n_transforms: int) -> list[Tensor]:
    """Which coordinates each transform moves: complementary pairs of halves, split along another bit at each pair."""
    index = torch.arange(n_features, device=CPU)  # which masks have true entries decides sizes, on any device
    bits = max(1, math.ceil(math.log2(max(n_features, 2))))
    masks = []
    for i in range(n_transforms):
        half = (index >> ((i // 2) % bits)) % 2 == i % 2
        masks.append(half if half.any() else torch.ones_like(half))
    return masks


class _LevelMap(nn.Module):
    """What the maps share: features of the level that they start from and, if wanted, of the one that they go to.

    With amplitudes (a, s) at the first and (a', s') at the second, ``s a' - a s'`` is the sine of the angle between the
    levels. It is s if the second is the target, and 0 if they are the same.
    """

    def __init__(self, log_snr_max: float, two_levels: bool):
        super().__init__()
        self.time, self.two_levels = TimeFeatures(log_snr_max), two_levels
        self.n_time = self.time.n_out * (1 + two_levels)

    def condition(self, log_snr: Tensor, to: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Features (n, n_time), cosine (n, 1) and sine (n, 1) of the angle between levels (n,) and `to` (n,).

        Here and in the maps n may be 1 for a level that all points have.
        """
        to = torch.full_like(log_snr, torch.inf) if to is None else to
        log_snr, to = torch.broadcast_tensors(log_snr, to)
        (a, s), (a_to, s_to) = noise_levels(log_snr), noise_levels(to)
        sine = (s * a_to - a * s_to)[:, None]
        features = [self.time(level) for level in ((log_snr, to) if self.two_levels else (log_snr,))]
        return torch.cat(features, 1), (1 - sine**2).sqrt(), sine


class CouplingMap(_LevelMap):
    """Composition of spline couplings conditioned on the noise level: invertible at every level, in one pass each way.

    Parameters
    ----------
    n_features : int
        Dimension.
    log_snr_max : float
        Largest log signal-to-noise ratio of the grid.
    hidden, n_layers, n_transforms, bins : int
        Sizes.
    bound : float
        The splines act on [-bound, bound] in every coordinate, and are the identity outside.
    two_levels : bool, default=False
        Whether the map goes to any level, and not to the target alone.
    stretch : bool, default=False
        Whether couplings stretch the images of their splines.
    elementwise : bool, default=False
        Whether splines of single coordinates come after the couplings.
    """

    invertible = True

    def __init__(
        self, n_features, log_snr_max, hidden, n_layers, n_transforms=4, bins=8, bound=5.0, two_levels=False,
        stretch=False, elementwise=False,
    ):  # fmt: skip
        super().__init__(log_snr_max, two_levels)
        self.transforms = nn.ModuleList(
            SplineCoupling(mask, self.n_time, hidden, n_layers, bins, bound, stretch)
            for mask in coupling_masks(n_features, n_transforms)
        )
        if elementwise:
            fewest = ELEMENTWISE_BINS if n_features <= COUPLED_UP_TO else 0
            self.transforms.append(ElementwiseSplines(n_features, self.n_time, max(bins, fewest), bound))

    def call_and_log_det(self, x: Tensor, log_snr: Tensor, to: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """States (n, d) at levels (n,) to states at levels `to`, by default the target, and log |det J| (n,)."""
        return self._compose(x, log_snr, to)

    def inverse_and_log_det(self, x: Tensor, log_snr: Tensor, to: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """States (n, d) at levels `to` to states at levels (n,), and log |det J| (n,) of the inverse."""
        return self._compose(x, log_snr, to, inverse=True)

    def forward(self, x: Tensor, log_snr: Tensor, to: Tensor | None = None) -> Tensor:
        """States (n, d) at levels (n,) to states at levels `to`, by default the target."""
        return self.call_and_log_det(x, log_snr, to)[0]

    def _compose(self, x, log_snr, to, inverse=False):
        note_evaluations(x)
        time, _, sine = self.condition(log_snr, to)
        total = x.new_zeros(len(x))
        for transform in reversed(self.transforms) if inverse else self.transforms:
            x, log_det = transform(x, time, sine, inverse)
            total = total + log_det
        return x, total


def has_fine_scales(log_snr_max: float) -> bool:
    """Whether the smallest length scale that a grid was made for is below a tenth."""
    return log_snr_max > FINE_LOG_SNR


def coupling_sizes(n_features: int, log_snr_max: float, **given) -> dict:
    """Sizes of a `CouplingMap`; those that are given and not None are kept.

    A target with small length scales has more couplings. It has more bins, too, and so has one of low dimension. In
    many dimensions splines of single coordinates come after the couplings, and in more still they are the whole map.
    """
    sizes = dict(FINE_SIZES if has_fine_scales(log_snr_max) else COARSE_SIZES)
    if n_features <= LOW_DIMENSION:
        sizes["bins"] = LOW_DIMENSION_BINS
    sizes["elementwise"] = n_features > ELEMENTWISE_ABOVE
    if n_features > COUPLED_UP_TO:
        sizes["n_transforms"] = 0
    return sizes | {name: value for name, value in given.items() if value is not None}


class ResidualMap(_LevelMap):
    """``F(x, t, t') = cos x + sin NN(x, t, t')`` with the angle between the levels: the paper's kind. It can fold.

    To the target it is ``f(x, t) = a x + s NN``. A step of the probability-flow ODE has this form with
    ``NN = s x_0 - a eps``, so that the network's output at the finest step is a control, ``eps = s x - a NN``.

    Parameters
    ----------
    n_features, log_snr_max, hidden, n_layers, two_levels
        See `CouplingMap`.
    """

    invertible = False

    def __init__(self, n_features, log_snr_max, hidden, n_layers, two_levels=False):
        super().__init__(log_snr_max, two_levels)
        self.body = ResidualMLP(n_features + self.n_time, n_features, hidden, n_layers)

    def forward(self, x: Tensor, log_snr: Tensor, to: Tensor | None = None) -> Tensor:
        """States (n, d) at levels (n,) to states at levels `to`, by default the target."""
        note_evaluations(x)
        time, cosine, sine = self.condition(log_snr.expand(len(x)), to)  # by row, as in `jacobian`: the same images
        return cosine * x + sine * self.body(x, time)

    def call_and_log_det(self, x: Tensor, log_snr: Tensor, to: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """States (n, d) at levels (n,) to states at levels `to`, and log |det J| (n,)."""
        y, jacobian = self.jacobian(x, log_snr, to)
        return y, torch.linalg.slogdet(jacobian)[1]

    def jacobian(self, x: Tensor, log_snr: Tensor, to: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Images (n, d) and Jacobians (n, d, d) by d forward-mode products."""
        log_snr = log_snr.expand(len(x))
        return jacobians(self, x, log_snr, torch.full_like(log_snr, torch.inf) if to is None else to.expand(len(x)))


def jacobians(function, x: Tensor, *conditions: Tensor) -> tuple[Tensor, Tensor]:
    """Images (n, d) and Jacobians (n, d, d) of ``function(x, *conditions)``, row by row, by d forward-mode products."""

    def single(point, *condition):
        y = function(point[None], *(c[None] for c in condition))[0]
        return y, y

    with count_evaluations() as of_a_row:  # all rows go through the function at once, which sees one
        jacobian, y = vmap(jacfwd(single, has_aux=True))(x, *conditions)
    note_evaluations(x, of_a_row.rows)
    return y, jacobian


MAPS = {"coupling": CouplingMap, "residual": ResidualMap}


@register_model(network=MAPS, degree=DEGREES)
class OneStepModel(nn.Module):
    """A consistency map with the standardisation around it.

    Parameters
    ----------
    network : {"coupling", "residual"}
        Kind of map.
    n_features : int
        Dimension.
    log_snr_max : float
        Log signal-to-noise ratio of the last noisy level of the teacher's grid.
    full : bool
        Whether the standardisation has a full matrix.
    **options
        Parts of the standardisation, see there, and sizes of the map.
    """

    def __init__(self, network: str, n_features: int, log_snr_max: float, full: bool, **options):
        super().__init__()
        parts = {name: options[name] for name in OPTIONAL_PARTS if name in options}
        sizes = {name: size for name, size in options.items() if name not in parts}
        self.config = {"network": network, "n_features": n_features, "log_snr_max": log_snr_max, "full": full, **sizes}
        self.n_features, self.log_snr_max = n_features, log_snr_max
        self.standardization = Standardization(n_features, full, **parts)
        self.config |= self.standardization.config
        self.map = MAPS[network](n_features, log_snr_max, **sizes)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.standardization.loc.device

    def start(self) -> Tensor:
        """Log signal-to-noise ratio (1,) of the prior end."""
        return torch.full((1,), LOG_SNR_MIN, dtype=FLOAT, device=self.device)

    def levels(self, n_steps: int) -> Tensor:
        """Log signal-to-noise ratios (n_steps,) that multi-step sampling starts its steps from."""
        return torch.linspace(LOG_SNR_MIN, self.log_snr_max, n_steps + 1, dtype=FLOAT, device=self.device)[:-1]

    def walk_with_noise(self, normal: Callable[[int], Tensor], n_steps: int) -> Tensor:
        """Draws (n, d) of several steps: after each but the last, noised to the next level (Song et al. 2023).

        Standard normal numbers (n, d) are ``normal(k)`` for step k.
        """
        z = normal(0)
        for k, level in enumerate(self.levels(n_steps)):
            if k:
                a, s = noise_levels(level)
                z = a * z + s * normal(k)
            z = in_parts(functools.partial(self.map, log_snr=level[None]), z)
        return z

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density (n,) of one-step draws at standardised points (n, d), for an invertible map."""
        latent, log_det = self.map.inverse_and_log_det(z, self.start())
        return log_det + standard_normal_log_prob(latent)

    @torch.no_grad()
    def call_and_log_weight(self, latent: Tensor, target) -> tuple[Tensor, Tensor]:
        """One-step images (n, d) of latents, and their exact log weights (n,) float64."""
        z, log_det = in_parts(lambda part: self.map.call_and_log_det(part, self.start()), latent)
        return z, exact_log_weight(z, log_det, latent, target)


def exact_log_weight(z: Tensor, log_det: Tensor, latent: Tensor, target) -> Tensor:
    """Log weights (n,) float64 of images (n, d) of prior draws (n, d), given log |det J| (n,) of the map."""
    return target.log_prob(z) + log_det.double() - standard_normal_log_prob(latent.double())


def standard_normal_log_prob(x: Tensor) -> Tensor:
    """Log density (n,) of the prior at points (n, d)."""
    return -0.5 * (x**2).sum(1) - 0.5 * x.shape[1] * math.log(2 * math.pi)
