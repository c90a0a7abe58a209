"""A sampler of a family with a context given is a sampler of one density; many contexts are drawn for together."""

__all__ = [
    "draws_given", "energy_of", "given", "is_given", "one_given", "weighted_given",
]  # fmt: skip

import hashlib
import numbers
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning

from .._support.devices import generator_on, to_numpy
from .._support.forks import seed_of
from .._support.parallel import few_threads
from .._support.validation import check_count
from .._support.warnings import muted, warn_user
from ..density.bounds import Bounds
from ..density.contexts import ContextSource, one_or_many
from ..density.energy import Energy
from ..density.families import FamilyEnergy
from ..density.function import Density
from ..io.export import to_frame
from ..weights.importance import pareto_k_limit
from ..weights.sample import WeightedSample
from .copies import copied
from .sampling import CHUNK_ROWS, MIN_JUDGED, normal_streams


def energy_of(sampler, density: Density) -> Energy:
    """The energy of a density as a fitted sampler needs it: of points, or of points and contexts."""
    generator, bounds = generator_on(sampler._model.device, 0), Bounds.from_fitted(sampler)
    if not sampler.n_contexts_in_:
        return Energy.of(density, sampler.n_features_in_, generator, bounds)
    source = ContextSource(sampler.contexts_, generator)
    return FamilyEnergy(density, sampler.n_features_in_, source, generator, bounds)


def is_given(sampler, context) -> bool:
    """Whether a method is about a family.

    Raises
    ------
    ValueError
        When a context is given to a sampler of one density, or none to one of a family.
    """
    if sampler.n_contexts_in_:
        return True
    if context is not None:
        raise ValueError("This sampler was fitted to a single density, which has no context: leave context= out.")
    return False


def checked(sampler, context) -> tuple[np.ndarray, bool]:
    """Contexts (m, k) and whether they are many; warns of those far from the contexts of the fit."""
    contexts, many = one_or_many(context, sampler.n_contexts_in_, sampler.context_names_in_)
    standardization = sampler._model.standardization
    far = standardization.is_far(torch.from_numpy(contexts).to(standardization.device))
    if far.any():
        warn_user(
            f"{int(far.sum())} of {len(contexts)} contexts are far outside of those of the fit, for example "
            f"{np.array2string(contexts[int(far.int().argmax())], precision=4, threshold=8)}: the sampler has not "
            "learned about such a context. Look at the weights of its draws.",
            UserWarning,
        )
    return contexts, many


def given(sampler, context: np.ndarray, energy: FamilyEnergy | None = None):
    """The sampler of p(x | c), with the methods of one that was fitted to it alone.

    Parameters
    ----------
    sampler : BaseSampler
        That of a family.
    context : ndarray of shape (k,)
        The context c.
    energy : FamilyEnergy, optional
        In the place of the one kept.
    """
    twin = bound(sampler, context[None], energy)
    twin._stream_key = stream_key(context)
    return twin


def bound(sampler, contexts: np.ndarray, energy: FamilyEnergy | None = None):
    """As `given`, for contexts (m, k): a sampler of points (m r, d) that go with them."""
    twin = copied(sampler)
    rows = torch.from_numpy(contexts).to(sampler._model.device)
    energy = sampler._energy if energy is None else energy
    nothing = np.empty((0, sampler.n_features_in_))
    twin.__dict__.update(
        _model=sampler._model.given(rows), _energy=None if energy is None else energy.given(rows),
        n_contexts_in_=0, n_jobs=1, pilot_=None, particles_=nothing, _weighed=None,
    )  # fmt: skip
    twin.__dict__.pop("teacher_", None)
    return twin


def one_given(sampler, context, options: dict):
    """The sampler of one context, with the energy of ``options``, which is taken out of these.

    Raises
    ------
    ValueError
        When there are many contexts.
    """
    contexts, many = checked(sampler, context)
    if many:
        raise ValueError(f"This method takes one context of {sampler.n_contexts_in_} numbers; got {len(contexts)}.")
    return given(sampler, contexts[0], _energy_passed(sampler, options))


def _energy_passed(sampler, options: dict) -> FamilyEnergy | None:
    """The energy in options, which no longer holds it."""
    density = Density.of(options.pop("energy_fn", None), options.pop("grad_fn", None))
    found: Any = None if density is None else energy_of(sampler, density)
    return found


def stream_key(context: np.ndarray) -> tuple[int, ...]:
    """What sets the random numbers of a context apart from those of others, whichever are asked for with it."""
    digest = hashlib.sha256(np.ascontiguousarray(context, dtype="<f8").tobytes()).digest()
    return tuple(int.from_bytes(digest[k : k + 4], "little") for k in range(0, 16, 4))


# -------------------------------------------------------------------- draws


def draws_given(sampler, context, n: int, random_state, options: dict, out=None, as_frame: bool = False):
    """What `sample` gives for a context (k,), draws (n, d), or for many (m, k), draws (m, n, d)."""
    random_state, options = _fixed(random_state), dict(options)
    energy = _energy_passed(sampler, options)
    contexts, many = checked(sampler, context)
    if not many:
        return given(sampler, contexts[0], energy)._sample(n, random_state, options, out, as_frame)
    if options.get("return_log_density"):
        raise ValueError("return_log_density=True is for draws of one context; see score_samples for many.")
    n = check_count(n, "n", 0)
    X = _checked_out(out, (len(contexts), n, sampler.n_features_in_))
    exact = options.get("exact")
    if len(contexts) and not exact:
        given(sampler, contexts[0], energy)._plan(**Density.in_options(options))  # which checks the options
    if exact or options.get("polish") or n > CHUNK_ROWS:
        for row, one in zip(X, contexts, strict=True):
            row[...] = given(sampler, one, energy)._sample(n, random_state, options)
    elif n:
        for rows, twin, normal in _blocks(sampler, contexts, n, seed_of(random_state), energy):
            with torch.no_grad(), few_threads():
                z = twin._drawn_together(normal, Density.in_options(options))
            X[rows] = twin._unstandardize(z).reshape(X[rows].shape)
    if not as_frame:
        return X
    which = np.repeat(np.arange(len(X)), n)
    flat = X.reshape(-1, X.shape[2])
    return to_frame(flat, sampler.feature_names_out_, **sampler._columns(flat), context=which)


def weighted_given(sampler, context, n: int, random_state, options: dict):
    """What `sample_weighted` gives for a context: a `WeightedSample`, or a list of them for many."""
    random_state, options = _fixed(random_state), dict(options)
    energy = _energy_passed(sampler, options)
    contexts, many = checked(sampler, context)
    n = check_count(n, "n", 1)
    if not many:
        return given(sampler, contexts[0], energy).sample_weighted(n, random_state=random_state, **options)
    given(sampler, contexts[0], energy)._plan(**Density.in_options(options))  # which checks the options
    found: list[WeightedSample] = []
    if n > CHUNK_ROWS:
        rest = {name: value for name, value in options.items() if name not in ("energy_fn", "grad_fn")}
        with muted(ConvergenceWarning):
            twins = (given(sampler, one, energy) for one in contexts)
            found = [twin.sample_weighted(n, random_state=random_state, **rest) for twin in twins]
    else:
        for _, twin, normal in _blocks(sampler, contexts, n, seed_of(random_state), energy):
            found += _weighted_block(twin, normal, n, Density.in_options(options))
    _warn_of_unreliable(found, n)
    return found


@torch.no_grad()
def _weighted_block(twin, normal, n: int, options: dict) -> list[WeightedSample]:
    """Weighted draws of the contexts that a sampler is bound to, n of each."""
    target = twin._target(None, "sample_weighted")
    with few_threads():
        z, log_weights = twin._weighed_together(normal, target, options)
    X = twin._unstandardize(z).reshape(-1, n, twin.n_features_in_)
    details = {"n_energy_evals": target.energy.n_energy_evals // len(X), "feature_names": twin.feature_names_out_}
    pairs = zip(X, to_numpy(log_weights).reshape(-1, n), strict=True)
    return [WeightedSample(x, row, True, **details, derived=twin._columns(x)) for x, row in pairs]


def _fixed(random_state) -> int:
    """A random state that every context can be drawn with."""
    return int(random_state) if isinstance(random_state, numbers.Integral) else seed_of(random_state)


def _checked_out(out, shape: tuple) -> np.ndarray:
    if out is None:
        return np.empty(shape)
    if not isinstance(out, np.ndarray) or out.dtype.kind != "f" or out.shape != shape or not out.flags.writeable:
        raise ValueError(f"out has to be a writeable NumPy array of floating point numbers of shape {shape}.")
    return out


def _warn_of_unreliable(found: list[WeightedSample], n: int) -> None:
    if n < MIN_JUDGED:
        return
    bad = sum(weighted.pareto_k > weighted.pareto_k_limit for weighted in found)
    if bad:
        warn_user(
            f"The weights of {bad} of {len(found)} contexts have a Pareto k above {pareto_k_limit(n):.3g}: their log "
            "evidence and weighted means are unreliable. Weigh more draws, or fit for longer.",
            ConvergenceWarning,
        )


def _blocks(
    sampler, contexts: np.ndarray, n: int, seed: int, energy: FamilyEnergy | None
) -> Iterator[tuple[slice, Any, Callable]]:
    """Slices of contexts (m, k), the sampler bound to these, and ``normal(k)``, the numbers that each has by itself."""
    at_once, shape, device = max(1, CHUNK_ROWS // n), (n, sampler.n_features_in_), sampler._model.device
    for first in range(0, len(contexts), at_once):
        rows = slice(first, min(first + at_once, len(contexts)))
        streams = [normal_streams(seed, 0, shape, device, stream_key(one)) for one in contexts[rows]]

        def normal(k, streams=streams):
            return torch.cat([stream(k) for stream in streams])

        with torch.no_grad():
            yield rows, bound(sampler, contexts[rows], energy), normal
