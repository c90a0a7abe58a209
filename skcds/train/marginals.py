"""A first fit of the splines of single coordinates to the marginals of particles, and whether more is needed."""

__all__ = ["drop_couplings", "fit_marginals", "interaction", "refit_marginals", "start_marginals"]

import contextlib
import math
import time

import torch
from torch import Tensor

from .._support.devices import rand, randn
from .._support.errors import Spent
from ..models.maps import ElementwiseSplines
from ..models.splines import n_numbers, stretched_spline
from .budget import Budget
from .objectives.likelihood import cross_images
from .optimizer import AdamW
from .particles import Population, truncated
from .specifications import Marginals

FEWEST_REFITS = 20  # iterations that the last fit is not worth while without


def start_marginals(model, population: Population, by: Marginals, budget: Budget, may_drop: bool = False) -> None:
    """Fit the splines of single coordinates, mend the particles by draws of them, and fit them again.

    Tempering leaves errors in the masses of a coordinate's modes, of each of many coordinates. Draws have the same, and
    their densities mend them: particles swap coordinates with them.

    Parameters
    ----------
    model : OneStepModel or ShortcutModel
        What is about to be trained.
    population : Population
        Particles that approximate the target.
    by : Marginals
        How it is done.
    budget : Budget
        What is left.
    may_drop : bool, default=False
        Whether the couplings are dropped where coordinates are independent, of which they would learn noise.
    """
    if not fit_marginals(model, population.x, by, budget.seconds_left()):
        return
    evals = by.crossings_share * budget.energy_evals_left()
    n_crossed, n_looked_at = by.n_crossings * len(population), 4 * by.n_pairs
    nats = math.inf
    with _without_couplings(model), contextlib.suppress(Spent):  # couplings are the identity yet
        if 0 < n_crossed <= evals - n_looked_at:
            _cross(model, population, by, by.time_share * budget.seconds_left())
            fit_marginals(model, population.x, by, budget.seconds_left(), again=True)
        if may_drop and 0 < n_looked_at <= evals:
            nats = interaction(model, population.target, by.n_pairs, population.generator)
    if nats < by.independent:
        drop_couplings(model)


@torch.no_grad()
def interaction(model, target, n: int, generator) -> float:
    """Nats, about, that a map of single coordinates leaves of a target, since its coordinates depend on each other.

    Where they are independent, the log weight is a sum of functions of single coordinates, however well each is fitted,
    and stays the same in sum if two draws swap some coordinates. Of a sum of functions of pairs the mean square change
    is twice the variance, and half of that variance is the divergence that they make.

    Parameters
    ----------
    model : OneStepModel or ShortcutModel
        Its couplings are the identity yet.
    target : StandardizedTarget
        The density.
    n : int
        Pairs of draws, each of which takes four evaluations.
    generator : torch.Generator
        Source of randomness.
    """
    one, other = randn(generator, 2, n, model.n_features)
    swapped = rand(generator, n, model.n_features) < 0.5
    pairs = one, other, torch.where(swapped, other, one), torch.where(swapped, one, other)
    log_weights = model.call_and_log_weight(torch.cat(pairs), target)[1].unflatten(0, (4, n))
    change = log_weights[2:].sum(0) - log_weights[:2].sum(0)
    return float(change.square().mean().nan_to_num(nan=math.inf)) / 4


def _cross(model, population: Population, by: Marginals, seconds: float) -> None:
    """Let particles swap coordinates with draws as often as is said, or as there is time for."""
    clock = time.perf_counter()
    for k in range(0, by.n_crossings, 2):
        cross_images(population, model, len(population), min(2, by.n_crossings - k))
        if time.perf_counter() - clock > seconds:
            break


@contextlib.contextmanager
def _without_couplings(model):
    """Within the block the map is its splines of single coordinates alone."""
    transforms = model.map.transforms
    model.map.transforms = torch.nn.ModuleList([transforms[-1]])
    try:
        yield
    finally:
        model.map.transforms = transforms


def drop_couplings(model) -> None:
    """Leave nothing but the splines of single coordinates of a map."""
    model.map.transforms = torch.nn.ModuleList([model.map.transforms[-1]])
    model.config = model.config | {"n_transforms": 0}


def fit_marginals(
    model, z: Tensor, by: Marginals | None = None, seconds: float = math.inf, again: bool = False
) -> bool:  # fmt: skip
    """Fit the splines of single coordinates of an untrained map to standardised particles (n, d), all at once.

    They are one-dimensional problems, solved by maximum likelihood in the time of a few dozen iterations of a map. In a
    product of independent coordinates they are the whole map. The numbers are those of the prior end; towards the
    target they shrink with the angle between the levels. Particles are taken in their order, so that no random numbers
    are drawn. A share of `seconds` may be spent. Splines that are fitted already are left alone, or fitted `again`.

    Returns
    -------
    bool
        Whether there were splines to fit, particles enough for their numbers, and time.
    """
    by = Marginals() if by is None else by
    layer = _splines_of(model, by)
    if layer is None or len(z) < by.particles_a_number * n_numbers(layer.bins, True):
        return False
    output, limit = layer.conditioner.output, by.time_share * seconds
    begun = bool(output.weight.any() or output.bias.any())
    if begun != again or not limit > 0:
        return False
    phi = output.bias.detach().clone().unflatten(0, (z.shape[1], n_numbers(layer.bins, True))).requires_grad_()
    stride = max(1, len(z) // by.batch_size)

    def loss_of(k):
        batch = z[k % stride :: stride]
        y, log_slope = stretched_spline(batch, phi, layer.bound, inverse=True)
        return (0.5 * y.square() - log_slope).mean(0).sum()

    _minimise(loss_of, phi, by.n_iter, by.learning_rate, limit)
    with torch.no_grad():
        output.bias.copy_(phi.flatten())
    return True


def refit_marginals(
    model, target, generator, by: Marginals | None = None, seconds: float = math.inf, evals: float = math.inf
) -> bool:  # fmt: skip
    """Fit the splines of single coordinates of a trained map, behind its couplings, by its own weighted draws.

    Gradients of small batches leave errors in the masses of a coordinate's modes that change the likelihood by
    thousandths of a nat. All else that a map has learned stands still here, and the rate falls to zero. The
    likelihood is that of the target: draws have truncated importance weights. They are fresh in every iteration;
    particles would be learned by heart. The numbers are those of all noise levels.

    Parameters
    ----------
    model : OneStepModel or ShortcutModel
        Trained in place.
    target : StandardizedTarget
        The density in its coordinates.
    generator : torch.Generator
        Source of randomness.
    by : Marginals, optional
        How it is done.
    seconds, evals : float, default=infinity
        What is left; a share of it may be spent.

    Returns
    -------
    bool
        Whether there were splines to fit, time, and evaluations.
    """
    by = Marginals() if by is None else by
    layer, limit = _splines_of(model, by), by.refit_time_share * seconds
    n_iter = int(min(by.n_refits, by.crossings_share * evals / by.refit_batch_size))
    if layer is None or n_iter < min(FEWEST_REFITS, max(by.n_refits, 1)) or not limit > 0:
        return False
    bias = layer.conditioner.output.bias
    wanted = [parameter.requires_grad for parameter in model.map.parameters()]

    def loss_of(_):
        with torch.no_grad():
            z, log_weights = model.call_and_log_weight(
                randn(generator, by.refit_batch_size, model.n_features), target
            )  # fmt: skip
            weights = torch.softmax(truncated(log_weights), 0).to(z.dtype)
        known = weights > 0  # of others the density may be beyond numbers
        return -(weights[known] * model.log_prob(z[known])).sum()

    try:
        model.map.requires_grad_(False)
        bias.requires_grad_()
        _minimise(loss_of, bias, n_iter, by.refit_rate, limit)
    finally:
        for parameter, was in zip(model.map.parameters(), wanted, strict=True):
            parameter.requires_grad_(was)
    return True


def _splines_of(model, by: Marginals) -> ElementwiseSplines | None:
    """The splines of single coordinates of a map, if it has any, and not too many."""
    transforms = getattr(getattr(model, "map", None), "transforms", None)
    layer = transforms[-1] if transforms else None
    return layer if isinstance(layer, ElementwiseSplines) and model.n_features <= by.most_features else None


def _minimise(loss_of, numbers: Tensor, n_iter: int, rate: float, seconds: float) -> None:
    """Steps of Adam on ``loss_of(k)``, with a rate that falls to zero."""
    optimizer = AdamW([numbers], rate, betas=(0.9, 0.99))
    clock = time.perf_counter()
    for k in range(n_iter):
        progress = max(k / n_iter, (time.perf_counter() - clock) / seconds)
        if progress >= 1:
            break
        optimizer.learning_rate = rate * 0.5 * (1 + math.cos(math.pi * progress))
        loss = loss_of(k)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
