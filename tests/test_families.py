"""Families of densities: one fit for all contexts, against closed forms, properties, and samplers that are wrong."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from families import KINDS, MIX, D, K, contexts, exact, fitted, gaussian, log_z, make
from scipy.stats import ks_2samp
from sklearn.exceptions import ConvergenceWarning

import skcds
from skcds.estimators.given import given

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


# -------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("kind", ["scratch", "distiller"])
def test_log_evidence_is_that_of_the_closed_form(kind):
    """At 20 new contexts within 5 standard errors: a false alarm in 1e5 of exact samplers."""
    new = contexts(20, 9)
    found = fitted(kind).sample_weighted(2000, context=new, random_state=0)
    errors = np.array([w.log_evidence for w in found]) - log_z(new)
    assert np.abs(errors / np.array([w.log_evidence_se for w in found])).max() < 5
    assert min(w.ess for w in found) > 1800


def test_a_bound_sampler_draws_in_this_process():
    """What it is bound to cannot be sent to others."""
    sampler = copy.copy(fitted()).set_params(n_jobs=2)
    assert given(sampler, np.array([0.1, 0.2])).n_jobs == 1 and sampler.n_jobs == 2


def test_weighted_moments_follow_the_context():
    for c in ([-0.9, 0.8], [0.9, -0.8]):
        weighted = fitted().sample_weighted(4000, context=c, random_state=1)
        mean, se = weighted.expectation(lambda x: x, return_se=True)
        assert np.abs((mean - np.array(c) @ MIX.numpy()) / se).max() < 5


def test_draws_are_those_of_the_density():
    """Kolmogorov-Smirnov in each coordinate, at weights of nearly one: a false alarm in 1e4."""
    weighted = fitted().sample_weighted(4000, context=[0.5, 0.5], random_state=2)
    X, Y = weighted.resample(2000, random_state=0), exact(2000, [0.5, 0.5], 1)
    assert min(ks_2samp(a, b).pvalue for a, b in zip(X.T, Y.T, strict=True)) > 1e-4 / D


def test_log_prob_is_the_density_of_the_draws():
    sampler, c = fitted(), np.array([0.2, -0.4])
    w = sampler.sample_weighted(200, context=c, random_state=0)
    energies = gaussian(torch.from_numpy(w.samples), torch.from_numpy(np.tile(c, (200, 1)))).numpy()
    assert np.allclose(w.log_weights, -energies - sampler.log_prob(w.samples, context=c), atol=1e-4)
    rows = np.tile(c, (200, 1))
    assert np.allclose(sampler.log_prob(w.samples, context=rows), sampler.log_prob(w.samples, context=c), atol=1e-5)


# -------------------------------------------------------------------- properties


def test_permuted_contexts_give_permuted_draws():
    sampler, some = fitted(), contexts(7, 3)
    order = np.random.default_rng(0).permutation(7)
    one, other = (
        sampler.sample(50, context=some, random_state=4),
        sampler.sample(50, context=some[order], random_state=4),
    )
    assert np.allclose(one[order], other, atol=1e-5)
    weights = [w.log_weights for w in sampler.sample_weighted(50, context=some, random_state=4)]
    again = [w.log_weights for w in sampler.sample_weighted(50, context=some[order], random_state=4)]
    assert np.allclose(np.array(weights)[order], again, atol=1e-4)


def test_a_context_has_the_same_draws_by_itself():
    sampler, some = fitted(), contexts(3, 3)
    many = sampler.sample(9000, context=some, random_state=4)  # more than a chunk of rows
    few = sampler.sample(90, context=some, random_state=4)
    for c, rows, first in zip(some, many, few, strict=True):
        assert np.allclose(rows, sampler.sample(9000, context=c, random_state=4), atol=1e-5)
        assert np.allclose(rows[:90], first, atol=1e-5)
    assert abs(np.corrcoef(many[0, :, 0], many[1, :, 0])[0, 1]) < 0.05  # their noise is not shared: 4.7 deviations


def test_draws_of_many_contexts_are_reproducible_and_pure():
    sampler, some, state = fitted(), contexts(5, 3), np.random.get_state()[1].copy()
    before = pickle.dumps(sampler)
    assert np.array_equal(*(sampler.sample(40, context=some, random_state=1) for _ in range(2)))
    assert pickle.dumps(sampler) == before and np.array_equal(np.random.get_state()[1], state)
    assert sampler.sample(0, context=some).shape == (5, 0, D)


def test_a_shift_of_the_energy_by_context_moves_log_evidence():
    def raised(x, c):
        return gaussian(x, c) + 3 * c[:, 1]

    sampler, some = fitted(), contexts(6, 5)
    plain = sampler.sample_weighted(300, context=some, random_state=0)
    moved = sampler.sample_weighted(300, context=some, random_state=0, energy_fn=raised)
    difference = [a.log_evidence - b.log_evidence for a, b in zip(plain, moved, strict=True)]
    assert np.allclose(difference, 3 * some[:, 1], atol=1e-5)


@pytest.mark.slow
def test_a_constant_context_is_a_single_density():
    """Its draws and those of a fit to the density alone: Kolmogorov-Smirnov, a false alarm in 1e4."""
    c = np.array([0.3, -0.2])
    family = make().fit(gaussian, contexts=np.tile(c, (20, 1)))

    def alone(x):
        return gaussian(x, torch.from_numpy(c).to(x).expand(len(x), -1))

    single = make(max_iter=40, n_steps=8, start__n_particles=1000).fit(alone)
    X = family.sample_weighted(3000, context=c, random_state=0).resample(2000, random_state=0)
    Y = single.sample_weighted(3000, random_state=0).resample(2000, random_state=1)
    assert min(ks_2samp(a, b).pvalue for a, b in zip(X.T, Y.T, strict=True)) > 1e-4 / D
    assert abs(family.log_evidence_ - log_z(c)[0]) < 0.02


# -------------------------------------------------------------------- judges


def deaf_to_contexts(sampler):
    """A copy of which location and scale are the same for every context."""
    deaf = copy.deepcopy(sampler)
    standardization = deaf._model.standardization
    for weight in (standardization.loc_weight, standardization.log_scale_weight):
        weight[1:] = 0
    return deaf


def test_a_family_that_ignores_its_context_fails():
    sound, deaf = fitted(), deaf_to_contexts(fitted())
    truths = np.concatenate([exact(1, c, k) for k, c in enumerate(contexts(200, 6))])
    good, bad = (s.calibrate(contexts(200, 6), 200, truths, random_state=0) for s in (sound, deaf))
    assert good.verdict == "ok" and good.rank_p_value > 1e-3 and good.ess.mean() > 0.9
    assert bad.verdict != "ok" and bad.ess.mean() < 0.8 * good.ess.mean()
    assert sound.diagnose(random_state=0).verdict == "ok"


def test_ranks_tell_draws_that_are_not_of_the_family():
    truths = np.concatenate([exact(1, c, k) for k, c in enumerate(contexts(200, 6))])
    sampler = fitted()
    assert sampler.calibrate(contexts(200, 6), 200, truths + 0.7, random_state=0).rank_p_value < 1e-3
    centre = contexts(200, 6) @ MIX.numpy()
    narrow = centre + 0.3 * (truths - centre)
    found = sampler.calibrate(contexts(200, 6), 200, narrow, random_state=0)
    assert found.rank_p_value < 1e-3 and found.verdict == "suspect"


def test_the_report_names_contexts():
    found = fitted().calibrate(contexts(30, 1), 100, random_state=0)
    frame = pytest.importorskip("pandas") and found.to_frame()
    assert list(frame.columns[:4]) == ["c0", "c1", "ess", "pareto_k"] and len(frame) == 30
    assert found.worst(1)[0]["ess"] == found.ess.min() and {"c0", "c1"} <= found.worst(1)[0].keys()
    assert sum(found.shares.values()) == pytest.approx(1) and "worst" in str(found) and np.isnan(found.rank_p_value)


def test_the_pictures_of_a_report():
    """The band of counts holds all bins of exact ranks but for one picture in a hundred."""
    pytest.importorskip("matplotlib").use("agg")
    truths = np.concatenate([exact(1, c, k) for k, c in enumerate(contexts(100, 6))])
    found = fitted().calibrate(contexts(100, 6), 100, truths, random_state=0)
    ranks, shares = skcds.CalibrationDisplay(found).plot(), skcds.CalibrationDisplay(found).plot(ranks=False)
    low, high = ranks.band_
    counts = [patch.get_data().values for patch in ranks.lines_]
    assert len(counts) == D and all(
        count.sum() == 100 and low <= count.min() <= count.max() <= high for count in counts
    )
    assert shares.band_ is None and "100 contexts" in shares.caption_
    with pytest.raises(ValueError, match="draws="):
        skcds.CalibrationDisplay(fitted().calibrate(contexts(5), 50, random_state=0)).plot(ranks=True)


def test_one_context_has_every_method():
    sampler, c = fitted(), [0.1, 0.2]
    assert sampler.diagnose(500, context=c, random_state=0).verdict == "ok"
    assert sampler.sample_polished(20, 3, context=c, random_state=0).samples.shape == (20, D)
    assert sampler.sample(4, context=c, polish=2, random_state=0).shape == (4, D)
    assert sampler.score(context=c, n=500) == pytest.approx(log_z(c)[0], abs=0.1)
    assert sampler.score() <= log_z(sampler.contexts_[:100]).mean() + 0.01
    batches = np.concatenate(list(sampler.iter_samples(100, 30, 0, context=c)))
    assert np.allclose(batches, sampler.sample(100, context=c, random_state=0), atol=1e-5)
    one = given(sampler, np.array(c))
    assert one.n_contexts_in_ == 0 and one.sample(3).shape == (3, D) and sampler.n_contexts_in_ == K


# -------------------------------------------------------------------- speed


def test_draws_of_many_contexts_cost_little_more_than_the_map():
    """In processor time of this process; the bar of 1.3 is for an idle machine."""
    import time

    sampler, some = fitted(), contexts(30, 8)
    latent = torch.randn(8000, D, generator=torch.Generator().manual_seed(0))
    rows = torch.from_numpy(some[:8])

    def bare():
        with torch.no_grad():
            for _ in range(4):
                sampler._model.given(rows).mapped(latent)

    def seconds(function):
        start = time.process_time()
        function()
        return time.process_time() - start

    ratios = [seconds(lambda: sampler.sample(1000, context=some, random_state=0)) / seconds(bare) for _ in range(3)]
    assert min(ratios) < 2


# -------------------------------------------------------------------- files and pickles


def test_pickles_keep_an_importable_energy_and_files_its_name(tmp_path):
    sampler, some = fitted(), contexts(3, 2)
    back = pickle.loads(pickle.dumps(sampler))
    w, v = (s.sample_weighted(50, context=some, random_state=0) for s in (sampler, back))
    assert all(np.allclose(a.log_weights, b.log_weights, atol=1e-5) for a, b in zip(w, v, strict=True))
    sampler.save(tmp_path / "family.skcds")
    loaded = skcds.load(tmp_path / "family.skcds")
    assert loaded.n_contexts_in_ == K and loaded.context_names_in_.tolist() == ["c0", "c1"]
    with pytest.raises(ValueError, match="energy_fn="):
        loaded.sample_weighted(5, context=some)
    found = loaded.sample_weighted(50, context=some, random_state=0, energy_fn=gaussian)
    assert np.allclose(found[0].log_weights, w[0].log_weights, atol=1e-5)
    assert loaded.calibrate(some, 50, energy_fn=gaussian).ess.shape == (3,)


def test_a_checkpoint_goes_on_where_it_was(tmp_path):
    whole = make(max_iter=90).fit(gaussian, contexts=contexts(50))
    path = tmp_path / "state"
    calls = []

    def interrupted(x, c):
        calls.append(len(x))
        if 9 * sum(calls) > 8 * whole.n_energy_evals_:  # in the training, after the start was written
            raise MemoryError
        return gaussian(x, c)

    with pytest.raises(MemoryError):
        make(max_iter=90).fit(interrupted, contexts=contexts(50), checkpoint=path)
    again = make(max_iter=90).fit(gaussian, contexts=contexts(50), checkpoint=path)
    assert np.array_equal(
        whole.sample(9, context=[0, 0], random_state=0), again.sample(9, context=[0, 0], random_state=0)
    )
    with pytest.raises(ValueError, match="belongs to another fit"):
        make(max_iter=90).fit(gaussian, contexts=contexts(50, 1), checkpoint=path)


def test_copies_and_a_failed_second_fit_keep_the_first():
    sampler = copy.deepcopy(fitted())
    before = sampler.sample(5, context=[0, 0], random_state=0)
    with pytest.raises(TypeError):
        sampler.fit(lambda x: x.sum(1), contexts=contexts(50))
    assert np.array_equal(before, sampler.sample(5, context=[0, 0], random_state=0))


def test_warm_start_goes_on():
    sampler = copy.deepcopy(fitted()).set_params(warm_start=True, max_iter=20)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        sampler.fit(lambda x, c: gaussian(x - 0.1, c), contexts=contexts(100))
    assert sampler.ess_ > 0.9 and sampler.n_iter_ == 20
    with pytest.raises(ValueError, match="warm_start"):
        sampler.fit(lambda x: 0.5 * (x**2).sum(1))
    with pytest.raises(ValueError, match="warm_start"):
        sampler.fit(lambda x, c: 0.5 * (x**2).sum(1) + 0 * c[:, 0], contexts=np.zeros((20, 3)))


@pytest.mark.parametrize("kind", KINDS)
def test_settings_of_the_program_around_change_nothing(kind):
    """Default dtype and device, and modes: the same bits of a fit, of draws, weights and reports."""

    def all_of_it():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sampler = make(kind, max_iter=5, start__n_particles=800).fit(gaussian, contexts=contexts(60))
            rows = contexts(3, 1)
            found = [
                sampler.sample(20, context=rows, random_state=0),
                sampler.log_prob(exact(5, rows[0]), context=rows[0]),
            ]
            found += [weighted.log_weights for weighted in sampler.sample_weighted(50, context=rows, random_state=1)]
            return [*found, sampler.calibrate(rows, 50, random_state=2).ess]

    plain = all_of_it()
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        with torch.inference_mode():
            there = all_of_it()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    for one, other in zip(plain, there, strict=True):
        np.testing.assert_array_equal(one, other)


def test_densities_of_draws_have_the_rules_of_a_single_density():
    """`score_samples` is `log_prob`; NaN, other steps, and contexts that do not go with the points are refused."""
    sampler, rows = fitted(), contexts(3, 1)
    x = sampler.sample(4, context=rows[0], random_state=0)
    assert np.array_equal(sampler.score_samples(x, context=rows[0]), sampler.log_prob(x, context=rows[0]))
    for context in (rows[0], contexts(4, 2)):
        with pytest.raises(ValueError, match="NaN in 1 of 4 rows"):
            sampler.score_samples(np.where(np.arange(4)[:, None] == 2, np.nan, x), context=context)
        with pytest.raises(ValueError, match="n_steps"):
            sampler.score_samples(x, context=context, n_steps=4)
    with pytest.raises(ValueError, match="one for each of 4; got 3"):
        sampler.score_samples(x, context=rows)
