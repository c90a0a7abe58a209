"""Independent fits and chunks of draws in parallel, by joblib and whatever backend it is configured with."""

__all__ = ["best_fit", "drawn_in_parallel", "in_parallel"]

import warnings
from collections.abc import Iterator
from pathlib import Path

import joblib
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.parallel import Parallel, delayed

TASKS_A_WORKER = 4  # that the chunks of a sample are divided in: fewer wait for the slowest, more for each other


def in_parallel(n_jobs: int | None, n_tasks: int) -> bool:
    """Whether joblib, as it is configured, would use more than one worker."""
    return n_tasks > 1 and joblib.effective_n_jobs(n_jobs) > 1


def best_fit(sampler, energy_fn, grad_fn, checkpoint, seed: int):
    """The best of ``n_init`` independent fits by their evidence lower bound on held-out draws, and all of them.

    The seeds are those of one sequence, whatever the number of workers.
    """
    seeds = np.random.SeedSequence(seed).generate_state(sampler.n_init)
    fits = Parallel(n_jobs=sampler.n_jobs)(
        delayed(_fit_one)(
            type(sampler)(**sampler.get_params(deep=False)).set_params(n_init=1, n_jobs=1, random_state=int(one)),
            energy_fn, grad_fn, checkpoint and Path(checkpoint).with_name(f"{Path(checkpoint).name}.{k}"),
        )
        for k, one in enumerate(seeds)
    )  # fmt: skip
    return max(fits, key=lambda fit: (fit.elbo_, fit.ess_)), fits


def _fit_one(sampler, energy_fn, grad_fn, checkpoint):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of one of several; of the best the caller warns
        return sampler.fit(energy_fn, grad_fn=grad_fn, checkpoint=checkpoint)


def drawn_in_parallel(sampler, n: int, seed: int, options: dict, n_chunks: int) -> Iterator[tuple[slice, np.ndarray]]:
    """The chunks of ``sampler.sample(n)``, in order: each has random streams of its own, so any worker may draw it."""
    n_tasks = min(n_chunks, TASKS_A_WORKER * joblib.effective_n_jobs(sampler.n_jobs))
    ranges = np.array_split(np.arange(n_chunks), n_tasks)
    parallel = Parallel(n_jobs=sampler.n_jobs, return_as="generator")
    for chunks in parallel(delayed(_draw)(sampler, n, seed, options, chunks) for chunks in ranges):
        yield from chunks


def _draw(sampler, n, seed, options, chunks) -> list:
    return list(sampler._drawn_chunks(n, seed, sampler._plan(**options), chunks))
