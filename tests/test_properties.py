"""Invariants of the estimators that hold for every input: shapes, seeds, chunks, shifts, permutations."""

import copy
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import crossed
from hypothesis import given, settings
from hypothesis import strategies as st
from samplers import KINDS, LOG_Z, D, fitted, make, quadratic
from sklearn.base import clone

import skcds
from skcds import ConsistentSamplerDistiller, ConsistentSamplerScratch, DiffusionSampler
from skcds.estimators.sampling import CHUNK_ROWS

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
each = pytest.mark.parametrize("kind", KINDS)
seeds = st.integers(0, 2**32 - 1)


@each
class TestSampling:
    @given(n=st.integers(0, 300), seed=seeds)
    def test_shape_and_finiteness(self, kind, n, seed):
        X = fitted(kind).sample(n, random_state=seed)
        assert X.shape == (n, D) and np.isfinite(X).all()

    @given(n=st.integers(1, 300), m=st.integers(0, 300), seed=seeds)
    def test_a_prefix_is_a_smaller_sample(self, kind, n, m, seed):
        n, m = max(n, m), min(n, m)
        X = fitted(kind).sample(n, random_state=seed)
        assert np.allclose(X[:m], fitted(kind).sample(m, random_state=seed), atol=1e-5)  # rounding of other batches

    @given(seed=seeds)
    def test_seeds_decide(self, kind, seed):
        X = fitted(kind).sample(5, random_state=seed)
        assert np.array_equal(X, fitted(kind).sample(5, random_state=seed))
        assert not np.array_equal(X, fitted(kind).sample(5, random_state=(seed + 1) % 2**32))

    @given(seed=seeds)
    def test_weights(self, kind, seed):
        W = fitted(kind).sample_weighted(200, random_state=seed)
        assert 1 <= W.ess <= 200 and W.elbo <= W.log_evidence
        log_density = -quadratic(torch.from_numpy(W.samples)).numpy()
        assert np.isfinite(W.log_weights - log_density).all()


@pytest.mark.parametrize("kind", ["ConsistentSamplerDistiller", "ConsistentSamplerScratch"])
@given(extra=st.integers(1, 50))
def test_chunks_are_no_seams(kind, extra):
    """Draws on both sides of a chunk's end are as different as any."""
    X = fitted(kind).sample(CHUNK_ROWS + extra, random_state=0)
    assert len(np.unique(X, axis=0)) == len(X)


@each
def test_a_large_energy_shift_moves_log_evidence_alone(kind):
    shift = 1e6
    shifted, plain = make(kind).fit(lambda x: quadratic(x.double()) + shift), fitted(kind)
    assert np.allclose(shifted.sample(100, random_state=0), plain.sample(100, random_state=0), atol=1e-2)
    assert shifted.log_evidence_ + shift == pytest.approx(plain.log_evidence_, abs=1e-2)


@pytest.mark.parametrize(
    "kind, scale", crossed([(KINDS[0], 1e-3), (KINDS[1], 1e3), (KINDS[2], 1e-3)], KINDS, [1e-3, 1e3])
)
def test_units_do_not_matter(kind, scale):
    """In other units the same density: log Z moves by the log of the unit (5.6 standard errors: false alarms 1e-8)."""
    sampler = make(kind).fit(lambda x: quadratic(x / scale))
    W = sampler.sample_weighted(10_000, random_state=0)
    assert W.pareto_k < 0.7
    assert abs(W.log_evidence - LOG_Z - D * np.log(scale)) < 5.6 * W.log_evidence_se
    assert np.allclose(W.expectation(lambda x: x), scale, atol=5.6 * scale * (1 / W.ess) ** 0.5)


@each
def test_coordinates_keep_their_places(kind):
    """False alarms: 1e-7 (5.6 standard errors of three means). Swapped means, 3 apart, are found."""
    mean = torch.tensor([0.0, 3.0, -5.0], dtype=torch.float64)
    W = make(kind).fit(lambda x: 0.5 * ((x - mean.to(x)) ** 2).sum(1)).sample_weighted(10_000, random_state=0)
    assert np.allclose(W.expectation(lambda x: x), mean, atol=5.6 / W.ess**0.5)


# ---------------------------------------------------------------- parameters and files

positive = st.integers(1, 10**6)
PARAMETERS = {  # some of every kind; None where it is legal
    "n_features": st.none() | positive, "max_iter": positive, "max_time": st.none() | st.floats(1e-3, 1e6),
    "max_energy_evals": st.none() | positive, "warm_start": st.booleans(), "verbose": st.integers(0, 3),
    "random_state": st.none() | seeds, "learning_rate": st.floats(1e-6, 1.0),
}  # fmt: skip
CLASSES = {cls.__name__: cls for cls in (DiffusionSampler, ConsistentSamplerDistiller, ConsistentSamplerScratch)}


@each
@given(params=st.fixed_dictionaries({}, optional=PARAMETERS))
def test_parameters_come_back_as_they_were_set(kind, params):
    defaults, sampler = CLASSES[kind]().get_params(), CLASSES[kind](**params)
    assert sampler.get_params() == defaults | params
    assert CLASSES[kind]().set_params(**params).get_params() == sampler.get_params() == clone(sampler).get_params()
    assert clone(sampler) is not sampler
    assert sampler.set_params(**defaults).get_params() == defaults


@each
@settings(max_examples=max(1, settings.default.max_examples // 4))  # a save waits for the disk
@given(params=st.fixed_dictionaries({}, optional=PARAMETERS), seed=seeds, scale=st.floats(1e-6, 3.0))
def test_files_keep_parameters_and_weights(kind, params, seed, scale):
    """Whatever the parameters and the network's weights are."""
    sampler = copy.deepcopy(fitted(kind)).set_params(**params)
    source = torch.Generator().manual_seed(seed)
    for parameter in sampler._model.parameters():
        parameter.data += scale * torch.randn(parameter.shape, generator=source)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "sampler.skcds")
        sampler.save(path)
        loaded = skcds.load(path)
    assert loaded.get_params(deep=False).keys() == sampler.get_params(deep=False).keys()
    assert all(getattr(loaded, name) == value for name, value in params.items())
    for ours, theirs in zip(loaded._model.state_dict().values(), sampler._model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
