"""Independent fits and chunks of draws in parallel, by joblib and whatever backend it is configured with."""

__all__ = ["best_fit", "drawn_in_parallel", "few_threads", "in_parallel"]

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

import joblib
import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.parallel import Parallel, delayed

from .forks import is_forked_child
from .warnings import muted

TASKS_A_WORKER = 4  # that the chunks of a sample are divided in: fewer wait for the slowest, more for each other

# Process whose threads this context has limited already: counting processors takes longer than a small draw.
_limited: ContextVar[int] = ContextVar("limited", default=0)


@contextlib.contextmanager
def few_threads(n_workers: int = 1) -> Iterator[None]:
    """PyTorch's threads inside the block: no more than this process's share of processors among workers like it.

    PyTorch counts those of the machine, also where a container or an affinity mask leaves fewer; threads that then wait
    for a processor cost a small network more than they give. In a forked child there is one.
    """
    before = torch.get_num_threads()
    if before == 1 or (_limited.get() == os.getpid() and n_workers == 1):
        yield
        return
    share = 1 if is_forked_child() else max(1, joblib.cpu_count() // n_workers)
    token = _limited.set(os.getpid())
    try:
        torch.set_num_threads(min(before, share))
        yield
    finally:
        torch.set_num_threads(before)
        _limited.reset(token)


def in_parallel(n_jobs: int | None, n_tasks: int) -> bool:
    """Whether joblib, as it is configured, would use more than one worker."""
    return n_tasks > 1 and joblib.effective_n_jobs(n_jobs) > 1


def best_fit(sampler, density, checkpoint, seed: int):
    """The best of ``n_init`` independent fits by their evidence lower bound on evaluation draws, and all of them.

    A map that was found to fold, whose weights are no bound, is taken only where all fold.

    The seeds are those of one sequence, whatever the number of workers.
    """
    seeds = np.random.SeedSequence(seed).generate_state(sampler.n_init)
    n_workers = min(sampler.n_init, joblib.effective_n_jobs(sampler.n_jobs))
    fits = Parallel(n_jobs=sampler.n_jobs)(
        delayed(_fit_one)(
            sampler._one_of_several(k, int(one)),
            density, checkpoint and Path(checkpoint).with_name(f"{Path(checkpoint).name}.{k}"), n_workers,
        )
        for k, one in enumerate(seeds)
    )  # fmt: skip
    return max(fits, key=_merit), fits


def _merit(fit) -> tuple:
    return not getattr(fit, "violation_share_", 0.0), np.nan_to_num(fit.elbo_, nan=-np.inf), fit.ess_


def _fit_one(sampler, density, checkpoint, n_workers):
    with muted(ConvergenceWarning), few_threads(n_workers):  # of one of several; of the best the caller warns
        return sampler.fit(density.energy_fn, grad_fn=density.grad_fn, checkpoint=checkpoint, **density.about_contexts)


def drawn_in_parallel(sampler, n: int, seed: int, options: dict, n_chunks: int) -> Iterator[tuple[slice, np.ndarray]]:
    """The chunks of ``sampler.sample(n)``, in order: each has random streams of its own, so any worker may draw it."""
    n_workers = joblib.effective_n_jobs(sampler.n_jobs)
    n_tasks = min(n_chunks, TASKS_A_WORKER * n_workers)
    ranges = np.array_split(np.arange(n_chunks), n_tasks)
    parallel = Parallel(n_jobs=sampler.n_jobs, return_as="generator")
    for chunks in parallel(delayed(_draw)(sampler, n, seed, options, chunks, n_workers) for chunks in ranges):
        yield from chunks


def _draw(sampler, n, seed, options, chunks, n_workers) -> list:
    with few_threads(n_workers):
        return list(sampler._drawn_chunks(n, seed, sampler._plan(**options), chunks))
