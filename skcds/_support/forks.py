"""Forked children: they compute with one thread, and draw other random numbers than their parent."""

__all__ = ["is_forked_child", "random_state_of", "seed_of"]

import os

import numpy as np
from sklearn.utils import check_random_state

_parent = os.getpid()


def is_forked_child() -> bool:
    """Whether this process was forked after the package was imported.

    The parent's OpenMP threads do not survive a fork, and a child that waits for them hangs.
    """
    return os.getpid() != _parent


def seed_of(random_state) -> int:
    """An integer seed from what scikit-learn calls a random state, or from a `numpy.random.Generator`.

    Instances of either move on. With None it comes from NumPy's global state, which a forked child shares with its
    parent: there the process id is mixed in.
    """
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**31 - 1))
    seed = int(check_random_state(random_state).randint(2**31 - 1))
    if random_state is None and is_forked_child():
        return int(np.random.SeedSequence([seed, os.getpid()]).generate_state(1)[0] % (2**31 - 1))
    return seed


def random_state_of(random_state) -> np.random.RandomState:
    """As scikit-learn's `check_random_state`; a `numpy.random.Generator` gives the seed of a new one, and moves on."""
    if isinstance(random_state, np.random.Generator):
        return np.random.RandomState(seed_of(random_state))
    return check_random_state(random_state)
