"""Forked children: they compute with one thread, and draw other random numbers than their parent."""

__all__ = ["random_state_of", "seed_of"]

import os

import numpy as np
import torch
from sklearn.utils import check_random_state

_parent = os.getpid()


def _use_one_thread() -> None:
    torch.set_num_threads(1)  # the parent's OpenMP threads do not survive a fork, and a child that waits for them hangs


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_use_one_thread)


def seed_of(random_state) -> int:
    """An integer seed from what scikit-learn calls a random state, or from a `numpy.random.Generator`.

    Instances of either move on. With None it comes from NumPy's global state, which a forked child shares with its
    parent: there the process id is mixed in.
    """
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**31 - 1))
    seed = int(check_random_state(random_state).randint(2**31 - 1))
    if random_state is None and os.getpid() != _parent:
        return int(np.random.SeedSequence([seed, os.getpid()]).generate_state(1)[0] % (2**31 - 1))
    return seed


def random_state_of(random_state) -> np.random.RandomState:
    """As scikit-learn's `check_random_state`; a `numpy.random.Generator` gives the seed of a new one, and moves on."""
    if isinstance(random_state, np.random.Generator):
        return np.random.RandomState(seed_of(random_state))
    return check_random_state(random_state)
