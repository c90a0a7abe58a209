"""Sampling from threads, from spawned and joblib's processes, and from forked children."""

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import joblib
import numpy as np
import pytest
from samplers import KINDS, fitted

from skcds._support import forks

each = pytest.mark.parametrize("kind", KINDS)


def draw(sampler, seed):
    return sampler.sample(300, random_state=seed)


def weights(sampler, seed):
    return sampler.sample_weighted(100, random_state=seed).log_weights


@each
@pytest.mark.parametrize("method", [draw, weights])
def test_threads(kind, method):
    expected = [method(fitted(kind), seed) for seed in range(16)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda seed: method(fitted(kind), seed), range(16)))
    assert all(map(np.array_equal, found, expected))


@each
def test_joblib(kind):
    expected = [draw(fitted(kind), seed) for seed in range(4)]
    found = joblib.Parallel(n_jobs=2)(joblib.delayed(draw)(fitted(kind), seed) for seed in range(4))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)  # another number of threads may sum in another order


@pytest.mark.slow
def test_spawned():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(draw, (fitted("ConsistentSamplerDistiller"), 3))
    np.testing.assert_allclose(found, draw(fitted("ConsistentSamplerDistiller"), 3), atol=1e-5)


FORK = """
import multiprocessing, sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, {folder!r})
import numpy as np, torch
torch.set_num_threads(2)
from random_samplers import random_sampler
from skcds._support.settings import own_modes
sampler = random_sampler("ConsistentSamplerDistiller", 0)
sampler.sample(5_000)  # starts PyTorch's threads
torch.ones(1000, 1000) @ torch.ones(1000, 1000)
np.random.seed(0)

def child(queue):
    with own_modes():
        inside = torch.get_num_threads()
    queue.put((sampler.sample(5_000), sampler.sample(5, random_state=1), (inside, torch.get_num_threads())))

context = multiprocessing.get_context("fork")
queue = context.Queue()
children = [context.Process(target=child, args=(queue,)) for _ in range(2)]
for process in children:
    process.start()
(first, seeded, threads), (second, same, _) = queue.get(timeout=60), queue.get(timeout=60)
own = sampler.sample(5_000)
assert threads == (1, 2) and torch.get_num_threads() == 2  # the program's own are left to it
assert np.allclose(seeded, same) and np.allclose(seeded, sampler.sample(5, random_state=1), atol=1e-5)
assert not np.allclose(first, second) and not np.allclose(first, own) and not np.allclose(second, own)
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forked_children_neither_hang_nor_repeat():
    code = FORK.format(folder=str(Path(__file__).parent))
    threads = {"OMP_NUM_THREADS": "2"}  # or there is none to wait for
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=240, env={**os.environ, **threads}
    )
    assert found.stdout.strip() == "done", found.stderr


def test_seeds_in_forked_children_are_as_everywhere(monkeypatch):
    """Not negative, below 2^31 - 1 and others at each call, without a word of NumPy's."""
    monkeypatch.setattr(forks, "_parent", -1)
    seeds = {forks.seed_of(None) for _ in range(50)}
    assert len(seeds) == 50 and min(seeds) >= 0 and max(seeds) < 2**31 - 1


def test_import_takes_little_beside_its_dependencies():
    """In processor time, as a ratio, since machines differ: less than NumPy's, SciPy's and scikit-learn's parts."""
    code = (
        "import time, torch; start = time.process_time(); import scipy.stats, scipy.optimize, sklearn.base; "
        "others = time.process_time() - start; import skcds; print((time.process_time() - start) / others)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(found.stdout) < 2.5
