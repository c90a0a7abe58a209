"""Points that are shared among workers: results as of one, at the same time, and errors as they were."""

import concurrent.futures
import multiprocessing.pool
import pickle
import threading
import time
import warnings

import joblib
import numpy as np
import pytest
import torch
from samplers import make

from skcds.adapters import from_numpy
from skcds.density.energy import Energy
from skcds.train.budget import Budget
from skcds.train.loop import _Training

X = np.random.default_rng(0).standard_normal((7, 2))


def log_prob(x):
    return -0.5 * x @ x


def pair(x):
    return log_prob(x), -x


def in_batches(x):
    return -0.5 * (x**2).sum(1)


def together(n, patience=5.0):
    """A log density that returns only while n calls of it run at the same time."""
    barrier = threading.Barrier(n)

    def log_prob(x):
        barrier.wait(patience)
        return -0.5 * float(np.sum(x**2))

    return log_prob


def threads(n):
    return concurrent.futures.ThreadPoolExecutor(n)


def value_and_gradient(energy):
    x = torch.from_numpy(X).requires_grad_()
    value = energy(x)
    return value.detach(), torch.autograd.grad(value.sum(), x)[0]


@pytest.mark.parametrize("options", [{"n_jobs": 2}, {"pool": threads(2)}, {"pool": multiprocessing.pool.ThreadPool(2)}])
@pytest.mark.parametrize(
    "function, other",
    [(log_prob, {"grad": lambda x: -x}), (pair, {"grad": True}), (in_batches, {"batched": True, "grad": lambda x: -x})],
)
def test_results_are_those_of_one_worker(function, other, options):
    with joblib.parallel_config("threading"):
        found = value_and_gradient(from_numpy(function, 2, **other, **options))
    for many, one in zip(found, value_and_gradient(from_numpy(function, 2, **other)), strict=True):
        assert torch.equal(many, one)


@pytest.mark.parametrize("batched", [False, True])
def test_they_work_at_the_same_time(batched):
    """Two calls wait for each other; with one worker they wait in vain."""
    function = together(2)
    plain = (lambda x: np.full(len(x), function(x))) if batched else function
    assert from_numpy(plain, 2, pool=threads(2), batched=batched)(X[:4]).shape == (4,)
    impatient = together(2, 0.05)
    alone = (lambda x: np.full(len(x), impatient(x))) if batched else impatient
    with pytest.raises(threading.BrokenBarrierError):
        from_numpy(alone, 2, pool=threads(1), batched=batched)(X[:4])


def test_workers_of_joblib_do_so_too():
    with joblib.parallel_config("threading"):
        assert from_numpy(together(2), 2, n_jobs=2)(X[:4]).shape == (4,)
        with pytest.raises(threading.BrokenBarrierError):
            from_numpy(together(2, 0.05), 2, n_jobs=1)(X[:4])


def test_processes_of_joblib():
    assert np.array_equal(from_numpy(lambda x: -0.5 * x @ x, 2, n_jobs=2)(X), from_numpy(log_prob, 2)(X))


@pytest.mark.parametrize("options", [{"n_jobs": 2}, {"pool": threads(2)}])
def test_errors_are_the_function_s_own(options):
    def raises(x):
        raise ZeroDivisionError("no luck")

    with joblib.parallel_config("threading"), pytest.raises(ZeroDivisionError, match="no luck") as caught:
        from_numpy(raises, 2, **options)(X)
    if hasattr(caught.value, "__notes__"):
        assert "log_prob was given a float64 array of shape (2,); batched=True" in caught.value.__notes__[0]


def test_a_pool_without_map():
    with pytest.raises(TypeError, match="pool has to be an object with a method map; got int"):
        from_numpy(log_prob, 2, pool=4)


def test_pickles_leave_the_pool_out():
    energy = pickle.loads(pickle.dumps(from_numpy(log_prob, 2, pool=threads(2))))
    assert energy.workers.pool is None and np.array_equal(energy(X), from_numpy(log_prob, 2)(X))


@pytest.mark.filterwarnings("ignore")
def test_a_fit_does_not_depend_on_them():
    draws = [
        make("DiffusionSampler", n_features=2, max_iter=2, start__n_particles=100, loss__training__n_judged=500)
        .fit(from_numpy(log_prob, 2, grad=lambda x: -x, pool=pool))
        .sample(5, random_state=0)
        for pool in (None, threads(3))
    ]
    assert np.array_equal(*draws)


@pytest.mark.filterwarnings("ignore")
def test_a_fit_goes_on_with_another_pool(tmp_path, monkeypatch):
    def fit(pool, **checkpoint):
        sampler = make("ConsistentSamplerScratch", n_features=2, max_iter=4, start="prior")
        return sampler.fit(from_numpy(log_prob, 2, pool=pool), **checkpoint)

    step = _Training._step

    def interrupted(self, iteration, progress):
        if iteration == 2:
            raise KeyboardInterrupt
        return step(self, iteration, progress)

    file, whole = tmp_path / "fit", fit(None)
    with monkeypatch.context() as patch:
        patch.setattr(_Training, "_step", interrupted)
        assert fit(threads(2), checkpoint=file).n_iter_ == 2
    again = fit(multiprocessing.pool.ThreadPool(3), checkpoint=file)
    assert again.n_iter_ == 4 and again.loss_curve_ == whole.loss_curve_


def test_all_have_work_however_slow_the_function_is():
    """Under a limit of time a call has a row for each worker at least, where one alone would have one row."""

    def slow(x):
        time.sleep(0.3)
        return log_prob(x)

    rows = {}
    for n in (1, 4):
        function = from_numpy(slow, 2, pool=threads(n))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            energy = Energy(function, 2, generator=torch.Generator().manual_seed(0), monitor=Budget(60.0, None, None))
        rows[n] = energy.rows
    assert rows[1] == 1 and rows[4] == 4
