"""Several fits, and chunks of draws, by joblib's workers: the results do not depend on how many there are."""

import pickle
import time

import joblib
import numpy as np
import pytest
import torch
from cases import slow
from samplers import KINDS, fitted, make, quadratic

from skcds._support.forks import seed_of
from skcds._support.parallel import few_threads
from skcds.estimators import sampling
from skcds.estimators.sampling import CHUNK_ROWS, normal_streams

each_kind = pytest.mark.parametrize("kind", KINDS)
N = 2 * CHUNK_ROWS + 5


def with_jobs(sampler, n_jobs):
    return pickle.loads(pickle.dumps(sampler)).set_params(n_jobs=n_jobs)


def other(x):
    return 2 * quadratic(x)


class TestDraws:
    @each_kind
    def test_are_those_of_one_worker(self, kind):
        options = {"n_steps": 2} if kind == "DiffusionSampler" else {}
        alone = fitted(kind).sample(N, random_state=3, **options)
        shared = with_jobs(fitted(kind), 2).sample(N, random_state=3, **options)
        prefix = fitted(kind).sample(CHUNK_ROWS + 9, random_state=3, **options)
        assert np.allclose(shared, alone, atol=1e-4)  # workers have another number of threads: another order of sums
        assert np.allclose(prefix, alone[: CHUNK_ROWS + 9], atol=1e-4)
        assert np.std(alone - np.roll(alone, CHUNK_ROWS, axis=0)) > 1

    @pytest.mark.parametrize("options, needed", [
        ({}, False), ({"n_steps": 2, "method": "map"}, False), ({"n_steps": 2, "method": "chain"}, True),
        ({"polish": 1}, True), ({"exact": True}, True),
    ])  # fmt: skip
    def test_energy_is_needed_by_chains_that_read_scores(self, options, needed):
        assert fitted(KINDS[2])._model.needs_score and fitted(KINDS[2])._needs_energy(**options) == needed

    @pytest.mark.parametrize("options, sent", [
        ({"n_steps": 1}, None), ({"n_steps": 2}, quadratic), ({"n_steps": 2, "energy_fn": other}, other),
    ])  # fmt: skip
    def test_energy_of_the_call_comes_before_that_of_the_fit(self, options, sent, monkeypatch):
        monkeypatch.setattr(sampling, "drawn_in_parallel", lambda sampler, n, seed, options, n_chunks: options)
        found = with_jobs(fitted(KINDS[2]), 2)._sampled_chunks(N, 0, {"grad_fn": None, **options})["density"]
        assert (found and found.energy_fn) is sent

    def test_energy_is_taken_along_when_it_cannot_be_pickled(self):
        energy = lambda x: 0.5 * ((x - 1.0) ** 2).sum(1)  # noqa: E731
        sampler = make("DiffusionSampler", max_iter=2, n_jobs=2).fit(energy)
        alone = sampler.set_params(n_jobs=1).sample(N, n_steps=2, random_state=0)
        assert np.allclose(sampler.set_params(n_jobs=2).sample(N, n_steps=2, random_state=0), alone, atol=1e-4)

    def test_backend_is_that_of_the_context(self):
        with joblib.parallel_config(backend="threading", n_jobs=2):
            shared = fitted(KINDS[1]).sample(N, random_state=3)
        assert np.allclose(shared, fitted(KINDS[1]).sample(N, random_state=3), atol=1e-4)

    def test_streams_of_chunks_differ(self):
        first, second = (normal_streams(0, chunk, (50, 2), torch.device("cpu"))(0).numpy() for chunk in (0, 1))
        other = normal_streams(0, 0, (50, 2), torch.device("cpu"))(1).numpy()
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.5 and not np.array_equal(first, other)

    def test_on_a_cluster(self):
        distributed = pytest.importorskip("distributed")
        with (
            distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
            distributed.Client(cluster),
            joblib.parallel_config(backend="dask"),
        ):
            shared = fitted(KINDS[1]).sample(N, random_state=3)
        assert np.allclose(shared, fitted(KINDS[1]).sample(N, random_state=3), atol=1e-4)


class TestThreads:
    """How many PyTorch uses, as the energy sees it; the tests themselves use one."""

    @pytest.fixture(autouse=True)
    def machine(self, monkeypatch):
        """Six processors, of which PyTorch has counted eight."""
        monkeypatch.setattr(joblib, "cpu_count", lambda: 6)
        before = torch.get_num_threads()
        torch.set_num_threads(8)
        yield
        torch.set_num_threads(before)

    def seen(self):
        """By training and by draws; the probe before training is not worth the change."""
        counts = []

        def energy(x):
            counts.append(torch.get_num_threads())
            return quadratic(x)

        sampler = make("DiffusionSampler", max_iter=2).fit(energy)
        training = counts[-1]
        counts.clear()
        sampler.sample(9, n_steps=2, random_state=0)
        sampler.sample_weighted(9, n_steps=2, random_state=0)
        assert torch.get_num_threads() == 8
        return {training, *counts}

    def test_no_more_than_processors(self):
        assert self.seen() == {6}

    def test_fewer_are_left_alone(self, monkeypatch):
        monkeypatch.setattr(joblib, "cpu_count", lambda: 64)
        assert self.seen() == {8}

    @pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
    def test_workers_share_them(self):
        """Two workers have three each: in the fits of which the best is kept, and in the chunks of a sample."""
        counts = []

        def energy(x):
            counts.append(torch.get_num_threads())
            return quadratic(x)

        with joblib.parallel_config(backend="threading", n_jobs=2):
            sampler = make("DiffusionSampler", max_iter=2, n_init=2).fit(energy)
            assert counts[-1] == 3
            counts.clear()
            sampler.sample(N, n_steps=2, random_state=0)
            assert set(counts) == {3}
        assert torch.get_num_threads() == 8

    def test_after_an_error(self):
        with pytest.raises(ZeroDivisionError), few_threads():
            1 / 0  # noqa: B018
        assert torch.get_num_threads() == 8


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
class TestFits:
    @pytest.mark.parametrize("kind", [KINDS[0], *slow(*KINDS[1:])])
    def test_best_is_kept(self, kind):
        several = make(kind, max_iter=3, n_init=2).fit(quadratic)
        seeds = np.random.SeedSequence(seed_of(0)).generate_state(2)
        each = [make(kind, max_iter=3)._one_of_several(k, int(seed)).fit(quadratic) for k, seed in enumerate(seeds)]
        best = max(each, key=lambda fit: fit.elbo_)
        assert several.elbo_ == best.elbo_ and several.n_init == 2
        assert np.array_equal(several.sample(9, random_state=0), best.sample(9, random_state=0))
        assert several.n_energy_evals_ == sum(fit.n_energy_evals_ for fit in each)

    def test_do_not_depend_on_the_workers(self):
        """The energy is a closure, which workers are sent by value; afterwards it is there again."""
        energy = lambda x: 0.5 * ((x - 1.0) ** 2).sum(1)  # noqa: E731
        alone, shared = (make("DiffusionSampler", max_iter=2, n_init=2, n_jobs=n).fit(energy) for n in (1, 2))
        draws = [sampler.sample_weighted(9, random_state=0) for sampler in (alone, shared)]
        assert np.allclose(draws[0].samples, draws[1].samples, rtol=1e-6)

    def test_one_fit_after_the_other_goes_on_from_files(self, tmp_path):
        file = tmp_path / "fit.ckpt"
        start = time.perf_counter()
        first = make("DiffusionSampler", max_iter=2, n_init=2).fit(quadratic, checkpoint=file)
        assert 0 < first.fit_time_ <= time.perf_counter() - start
        assert sorted(path.name for path in tmp_path.iterdir()) == ["fit.ckpt.0", "fit.ckpt.1"]
        again = make("DiffusionSampler", max_iter=2, n_init=2).fit(quadratic, checkpoint=file)
        assert np.array_equal(first.sample(9, random_state=0), again.sample(9, random_state=0))

    def test_files_need_a_seed(self, tmp_path):
        with pytest.raises(ValueError, match="needs an integer random_state"):
            make("DiffusionSampler", n_init=2, random_state=None).fit(quadratic, checkpoint=tmp_path / "fit.ckpt")

    def test_errors_come_before_any_fit(self):
        calls = []

        def wrong(x):
            calls.append(len(x))
            return x

        with pytest.raises(ValueError, match="energy_fn has to return"):
            make(KINDS[0], n_init=5).fit(wrong)
        assert len(calls) < 8
