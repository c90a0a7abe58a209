"""Copies within a process keep the energy, a lambda too, and what comes from workers is given it back."""

import copy
import functools
import pickle

import joblib
import numpy as np
import pytest
from cases import slow
from samplers import KINDS, SMALL_MAP, fitted, make, quadratic
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator

from skcds import ConsistentSamplerDistiller
from skcds.density.function import Density
from skcds.estimators.copies import with_energy

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
COPIES = {"copy": copy.copy, "deepcopy": copy.deepcopy, "in a list": lambda sampler: copy.deepcopy([sampler])[0]}


class Stubborn:
    """An energy that can neither be copied nor pickled."""

    def __call__(self, x):
        return quadratic(x)

    def __reduce_ex__(self, protocol):
        raise TypeError("cannot be copied")


ENERGIES = {"lambda": lambda x: quadratic(x), "object": Stubborn()}


@functools.cache
def short(kind, energy):
    """A short fit; do not change it."""
    return make(kind, max_iter=2, n_features=2).fit(ENERGIES[energy])


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
class TestCopies:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("energy", ENERGIES)
    def test_keep_the_energy(self, kind, energy, copied):
        sampler = short(kind, energy)
        twin = copied(sampler)
        assert np.array_equal(
            twin.sample_weighted(9, random_state=0).log_weights, sampler.sample_weighted(9, random_state=0).log_weights
        )
        if kind == "ConsistentSamplerDistiller":
            twin.teacher_.sample_weighted(9, random_state=0)

    def test_are_others(self, copied):
        sampler = short(KINDS[1], "lambda")
        before = sampler.sample(5, random_state=0), joblib.hash(sampler)
        copied(sampler).set_params(max_iter=3).fit(lambda x: quadratic(2 * x))
        assert np.array_equal(sampler.sample(5, random_state=0), before[0]) and joblib.hash(sampler) == before[1]

    def test_unfitted(self, copied):
        sampler = make(KINDS[0], start__n_particles=200)
        assert copied(sampler).get_params() == sampler.get_params() and not hasattr(copied(sampler), "_model")

    def test_have_the_hash_and_the_pickle(self, copied):
        sampler = fitted(KINDS[1])
        assert joblib.hash(copied(sampler)) == joblib.hash(sampler)
        assert pickle.loads(pickle.dumps(copied(sampler)))._energy.energy_fn is quadratic


class TestDeepCopies:
    def test_share_no_arrays(self):
        sampler = fitted(KINDS[1])
        twin = copy.deepcopy(sampler)
        pairs = zip(twin._model.state_dict().values(), sampler._model.state_dict().values(), strict=True)
        assert all(ours.data_ptr() != theirs.data_ptr() for ours, theirs in pairs)
        assert twin.teacher_ is not sampler.teacher_
        assert not np.shares_memory(twin.teacher_.particles_, sampler.teacher_.particles_)

    def test_one_teacher_stays_one(self):
        teacher = fitted(KINDS[0])
        options = {"max_iter": 2, "random_state": 0, "batch_size": 100, "network": SMALL_MAP}
        student = ConsistentSamplerDistiller(teacher, **options).fit(quadratic)
        twin = copy.deepcopy(student)
        assert twin.teacher_ is twin.teacher is not teacher

    def test_of_a_clone(self):
        assert not hasattr(clone(fitted(KINDS[0])), "_model")


class TestWorkers:
    @pytest.mark.parametrize("kind", [KINDS[0], *slow(KINDS[1], KINDS[2])])
    def test_give_the_energy_back(self, kind):
        sampler = make(kind, max_iter=2, n_features=2, n_init=2, n_jobs=2).fit(lambda x: quadratic(x))
        alone = make(kind, max_iter=2, n_features=2, n_init=2).fit(lambda x: quadratic(x))
        for ours, theirs in [(sampler, alone), *([(sampler.teacher_, alone.teacher_)] if kind == KINDS[1] else [])]:
            assert np.array_equal(
                ours.sample_weighted(9, random_state=0).log_weights,
                theirs.sample_weighted(9, random_state=0).log_weights,
            )

    def test_the_energy_is_given_back_where_it_is_lost(self):
        """Alone, without workers: what a pickle has lost, and not what a sampler has."""
        sampler, density = short(KINDS[0], "lambda"), Density(ENERGIES["lambda"])
        lost = pickle.loads(pickle.dumps(sampler))
        assert lost._energy is None and with_energy(lost, density) is lost
        expected = sampler.sample_weighted(9, random_state=0).log_weights
        assert np.array_equal(lost.sample_weighted(9, random_state=0).log_weights, expected)
        own = copy.copy(sampler)
        assert with_energy(own, density)._energy is sampler._energy

    def test_with_bounds(self):
        sampler = make(KINDS[1], max_iter=2, n_features=2, n_init=2, n_jobs=2)
        sampler.set_params(teacher__bounds=(0, None)).fit(lambda x: quadratic(x))
        weighted = sampler.teacher_.sample_weighted(50, random_state=0)
        assert (weighted.samples > 0).all() and np.isfinite(weighted.log_weights).all()

    @pytest.mark.parametrize("wrap", [FrozenEstimator, *slow(lambda teacher: teacher)])
    def test_leave_a_fitted_teacher_itself(self, wrap):
        teacher = make(KINDS[0], max_iter=2, n_features=2).fit(lambda x: quadratic(x))
        student = ConsistentSamplerDistiller(
            wrap(teacher), max_iter=2, batch_size=100, n_init=2, n_jobs=2, random_state=0, network=SMALL_MAP
        ).fit(lambda x: quadratic(x))
        assert student.teacher_ is teacher
