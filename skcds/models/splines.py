"""Monotonic rational-quadratic splines (Durkan et al. 2019), with the gradient written out.

A coupling map is many small splines, for which recording each elementary operation costs more than the operations do.
Value and log derivative are therefore one operation here, whose gradient reuses what the value needed.
"""

__all__ = ["n_numbers", "rational_quadratic_spline", "stretched_spline"]

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

MIN_SLOPE = 1e-3  # slopes at knots are above it and below its reciprocal, ratios of two bins above it
_SOFT = -1 / math.log(MIN_SLOPE)
MAX_LOG_STRETCH = 3.0  # stretches are by factors of up to 20 (unmeasured)


def n_numbers(bins: int, stretch: bool) -> int:
    """Numbers that a spline has, with the stretch of its image."""
    return 3 * bins - 1 + stretch


def stretched_spline(x: Tensor, phi: Tensor, bound: float, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """A spline whose image is stretched, ``y = e^s R(x)``: it moves points that R has spread out beyond its interval.

    A spline is the identity outside its interval. If a coordinate's tail is wider than a standard normal one, where
    that depends on the other coordinates, it is out of the spline's reach. Stretches of couplings are those of real
    NVP (Dinh et al. 2017).

    Parameters
    ----------
    x : Tensor
        Points, of any shape.
    phi : Tensor
        ``(*x.shape, 3 * bins)``, or (d, 3 * bins) for points (n, d): the numbers of `rational_quadratic_spline`, then a
        number of which s is a bounded function. All zero is the identity.
    bound, inverse
        See `rational_quadratic_spline`.

    Returns
    -------
    y, log_slope : Tensor
        Images and log derivatives, of the shape of x.
    """
    log_stretch = MAX_LOG_STRETCH * (phi[..., -1] / MAX_LOG_STRETCH).tanh()
    phi = phi[..., :-1]
    if inverse:
        y, log_slope = rational_quadratic_spline(x * (-log_stretch).exp(), phi, bound, inverse=True)
        return y, log_slope - log_stretch
    y, log_slope = rational_quadratic_spline(x, phi, bound)
    return y * log_stretch.exp(), log_slope + log_stretch


def rational_quadratic_spline(x: Tensor, phi: Tensor, bound: float, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """Monotonic map of [-bound, bound] to itself, the identity outside, with slope 1 at both ends.

    Parameters
    ----------
    x : Tensor
        Points, of any shape.
    phi : Tensor
        ``(*x.shape, 3 * bins - 1)``, or (d, 3 * bins - 1) for points (n, d) that share a spline for each column: logits
        of the bins' widths and of their heights, then log slopes at the knots between bins. All zero is the identity.
    bound : float
        Half the length of the interval.
    inverse : bool, default=False
        Whether to apply the inverse map.

    Returns
    -------
    y : Tensor
        Images, of the shape of x.
    log_slope : Tensor
        Log derivatives at x of the map that was applied.

    Notes
    -----
    There are first derivatives in reverse mode, and neither forward mode nor the transforms of ``torch.func``.
    """
    if phi.ndim > x.ndim:
        return tuple(found[..., 0] for found in _Spline.apply(x[..., None], phi, bound, inverse))
    return tuple(found.T.contiguous() for found in _Spline.apply(x.T.contiguous(), phi, bound, inverse))


class _Spline(torch.autograd.Function):
    # In shares of the interval the map is y = y0 + h R(z) with z = (x - x0) / w in a bin of width w and height h, where
    # R = (s z^2 + d0 q) / (s + t q), q = z (1 - z), s = h / w, t = d0 + d1 - 2 s, d0 and d1 the slopes at its knots.
    # The last axis of x is that of the points of a spline: there is one, or all of a batch.

    @staticmethod
    def forward(ctx, x, phi, bound, inverse):
        bins = (phi.shape[-1] + 1) // 3
        inside, point, index, start, share, knots, between, slopes, sizes, total, damping, slope_damping = _bin_of(
            x, phi, bins, bound, int(inverse)
        )  # fmt: skip
        (x0, y0), (w, h), (d0, d1) = start.unbind(-2), share.unbind(-2), slopes.unbind(-2)

        s = h / w
        t = d0 + d1 - s - s
        if inverse:
            offset = point - y0
            excess = offset * t
            b = h * d0 - excess
            c = s * offset
            discriminant = b * b + 4 * c * (h * (s - d0) + excess)
            z = (c + c) / (b + discriminant.clamp_(min=0).sqrt_())
        else:
            z = (point - x0) / w
        z = z.clamp_(0, 1)
        u = 1 - z
        z2, q, u2 = z * z, z * u, u * u
        scale = (s + t * q).reciprocal_()
        ratio = (s * z2 + d0 * q) * scale
        middle = (s + s) * q + d0 * u2 + d1 * z2
        slope = s * s * middle * scale * scale
        image = x0 + w * z if inverse else y0 + h * ratio
        y = torch.where(inside, image.sub_(0.5).mul_(2 * bound), x)
        log_slope = slope.log()

        ctx.bins, ctx.bound, ctx.inverse = bins, bound, inverse
        ctx.save_for_backward(
            inside, sizes, total, damping, index, start, share, knots, between, slopes, slope_damping, z, ratio,
            scale, middle, slope,
        )  # fmt: skip
        return y, torch.where(inside, -log_slope if inverse else log_slope, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y, grad_log_slope):
        (inside, sizes, total, damping, index, start, share, knots, between, slopes, slope_damping, z, ratio, scale,
         middle, slope) = ctx.saved_tensors  # fmt: skip
        bins, bound, grad_outside = ctx.bins, ctx.bound, grad_y
        (w, h), (d0, d1) = share.unbind(-2), slopes.unbind(-2)
        u, s = 1 - z, h / w
        z2, q, u2 = z * z, z * u, u * u
        grad_y, grad_l = (torch.where(inside, grad, 0.0) for grad in (grad_y, grad_log_slope))
        grad_y = grad_y * (2 * bound)
        # L = 2 log s + log m + 2 log `scale` is the log slope, m = 2 s q + d0 u^2 + d1 z^2 with u = 1 - z.
        by_middle = middle.reciprocal()
        inner = u - z
        l_z = 2 * ((s * inner - d0 * u + d1 * z) * by_middle - (d0 + d1 - s - s) * inner * scale)
        if ctx.inverse:
            # x(y) with L(x(y)): its gradient by the parameters is that of y(x), at the x that was found, over -slope.
            grad_l = -grad_l
            grad_x = (grad_y + grad_l * l_z / w) / slope
            grad_y = -grad_x
        else:
            grad_x = grad_y * slope + grad_l * l_z / w
        grad_z = grad_y * slope * w + grad_l * l_z
        grad_ratio = grad_y * h * scale
        of_middle, of_scale = grad_l * by_middle, grad_l * scale
        shift = (of_scale + of_scale) * q
        grad_s = grad_ratio * (z2 - ratio * (u2 + z2))
        half = grad_l / s + of_middle * q - of_scale * (u2 + z2)
        grad_s = grad_s + half + half
        grad_d0 = grad_ratio * q * (1 - ratio) + of_middle * u2 - shift
        grad_d1 = of_middle * z2 - grad_ratio * q * ratio - shift

        grad_start = torch.stack([-grad_z / w, grad_y], -2)
        grad_share = torch.stack([-(grad_s * s + grad_z * z) / w, grad_y * ratio + grad_s / w], -2)
        mean = (grad_start * start + grad_share * share).sum(-1, keepdim=True)
        grad_sizes = _of_sizes(grad_start, grad_share, mean, index, bins)
        grad_sizes.mul_(sizes).div_(damping * damping * total[..., None])
        grad_slopes = torch.stack([grad_d0, grad_d1], -2) * slopes * between / (slope_damping * slope_damping)
        grad_phi = grad_sizes.new_zeros(*z.shape[:-1], 3 * bins - 1)
        grad_phi[..., : 2 * bins] = grad_sizes.flatten(-2)
        grad_phi[..., 2 * bins :].scatter_add_(-1, knots.flatten(-2), grad_slopes.flatten(-2))
        return torch.where(inside, grad_x * (0.5 / bound), grad_outside), grad_phi, None, None


def _bin_of(x, phi, bins, bound, which):
    """Where points are in shares of the interval, and their bins: ends, sizes and slopes, and what these are made of.

    Bins are looked up along x (`which` 0) or along y (1).
    """
    logits = phi[..., : 2 * bins].unflatten(-1, (2, bins))
    damping = logits.abs().mul_(2 * _SOFT).add_(1)
    sizes = (logits / damping).exp_()  # of the bins, in units in which they add up to `total`
    ends = sizes.cumsum(-1)
    total = ends[..., -1]

    inside = x.abs() < bound
    point = torch.where(inside, x, 0.0).mul_(0.5 / bound).add_(0.5)
    index = torch.searchsorted(
        ends[..., which, :-1].contiguous(), (point * total[..., which, None]).contiguous(), right=True
    )  # fmt: skip
    both = index[..., None, :].expand(*index.shape[:-1], 2, -1)
    share = sizes.gather(-1, both) / total[..., None]
    start = ends.gather(-1, both) / total[..., None] - share
    knots = torch.stack([index, index + 1], -2)  # of all, left and right
    between = (knots > 0) & (knots < bins)
    knots = knots.clamp_(1, bins - 1).sub_(1)
    logits = phi[..., 2 * bins :].gather(-1, knots.flatten(-2)).view_as(knots) * between
    slope_damping = logits.abs().mul_(_SOFT).add_(1)
    slopes = (logits / slope_damping).exp_()
    return inside, point, index, start, share, knots, between, slopes, sizes, total, damping, slope_damping


def _of_sizes(grad_start, grad_share, mean, index, bins):
    """Gradients by the sizes of all bins: those before a point's move its start, its own its share."""
    both = index[..., None, :].expand_as(grad_start)
    if index.shape[-1] == 1:
        before = (torch.arange(bins, device=index.device) < index)[..., None, :]
        return torch.where(before, grad_start - mean, -mean).scatter_(-1, both, grad_share - mean)
    starts = grad_start.new_zeros(*grad_start.shape[:-1], bins).scatter_add_(-1, both, grad_start)
    later = starts.flip(-1).cumsum(-1).flip(-1) - starts  # of the points in bins after each
    return later.scatter_add_(-1, both, grad_share).sub_(mean)
