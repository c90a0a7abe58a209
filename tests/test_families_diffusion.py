"""Families of densities by a chain of many steps: exact path weights for every context, against closed forms."""

import copy
import functools
import math
import pickle
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cases import slow
from families import MIX, D, K, contexts, exact, gaussian, log_z

import skcds
from skcds import Control, DiffusionSampler, PathLoss, Pilot, Prior
from skcds.estimators import diffusion_families
from skcds.specifications import FamilyTraining, Particles, Training

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

SMALL = {
    "start": Pilot(begin=(0.0, 2.0), n_particles=3000), "n_steps": 12, "max_iter": 60, "batch_size": 512,
    "network": Control(hidden_features=32, n_layers=2), "random_state": 0,
}  # fmt: skip
BLIND = {"network": Control(hidden_features=32, n_layers=2, langevin=False)}


def make(**params):
    return DiffusionSampler(n_features=D).set_params(**SMALL | params)


@functools.cache
def fitted():
    """A small fit to `gaussian`; do not change it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make().fit(gaussian, contexts=contexts(500))


def test_log_evidence_is_that_of_the_closed_form():
    """At 20 new contexts within 5 standard errors: a false alarm in 1e5; a shift of .1 is found out."""
    new = contexts(20, 9)
    found = fitted().sample_weighted(600, context=new, random_state=0)
    errors = np.array([w.log_evidence for w in found]) - log_z(new)
    se = np.array([w.log_evidence_se for w in found])
    assert np.abs(errors / se).max() < 5 < np.abs((errors - 0.1) / se).max()
    assert min(w.ess for w in found) > 500 and all(w.is_bound for w in found)
    assert found[0].n_energy_evals == 600 * 13


def test_draws_follow_the_context():
    for c in ([-0.9, 0.8], [0.9, -0.8]):
        weighted = fitted().sample_weighted(2000, context=c, random_state=1)
        mean, se = weighted.expectation(lambda x: x, return_se=True)
        assert np.abs((mean - np.array(c) @ MIX.numpy()) / se).max() < 5
        assert abs(weighted.samples[:, 0].std() / math.exp(0.5 * c[0]) - 1) < 0.1  # 6 deviations


@pytest.mark.parametrize("options", [{}, {"n_steps": 5}, {"method": "ode"}])
def test_a_context_has_the_same_draws_by_itself(options):
    sampler, some = fitted(), contexts(3, 3)
    many = sampler.sample(60, context=some, random_state=4, **options)
    assert many.shape == (3, 60, D)
    for c, rows in zip(some, many, strict=True):
        assert np.allclose(rows, sampler.sample(60, context=c, random_state=4, **options), atol=1e-4)
    if "method" not in options:
        weighted = sampler.sample_weighted(60, context=some, random_state=4, **options)
        assert np.allclose([w.samples for w in weighted], many, atol=1e-4)
    assert not np.allclose(many, sampler.sample(60, context=some, random_state=5, **options), atol=0.1)


def test_a_family_that_ignores_its_context_fails():
    deaf = copy.deepcopy(fitted())
    for weight in (deaf._model.standardization.loc_weight, deaf._model.standardization.log_scale_weight):
        weight[1:] = 0
    truths = np.concatenate([exact(1, c, k) for k, c in enumerate(contexts(100, 6))])
    good, bad = (s.calibrate(contexts(100, 6), 100, truths, random_state=0) for s in (fitted(), deaf))
    assert good.rank_p_value > 1e-3 and good.ess.mean() > 0.9 and good.shares["failed"] == 0
    assert bad.verdict != "ok" and bad.ess.mean() < 0.8 * good.ess.mean()


def test_a_control_without_scores_draws_without_the_energy():
    calls = []

    def counted(x, c):
        calls.append(len(x))
        return gaussian(x, c)

    sampler = make(**BLIND).fit(counted, contexts=contexts(200))
    seen = len(calls)
    sampler.sample(20, context=contexts(3, 1))
    assert len(calls) == seen
    assert sampler.ess_ > 0.5 and sampler.converged_


def test_names_in_files_are_from_a_list():
    model = fitted()._model
    assert {name for name, value in model.config.items() if isinstance(value, str)} == set(model.config_choices)


def test_files_and_pickles(tmp_path):
    sampler, some = fitted(), contexts(3, 2)
    assert sampler.n_contexts_in_ == K and sampler.n_steps_ == 12 and sampler.contexts_.shape == (500, K)
    back = pickle.loads(pickle.dumps(sampler))
    expected = sampler.sample(20, context=some, random_state=0)
    assert np.array_equal(back.sample(20, context=some, random_state=0), expected)
    sampler.save(tmp_path / "family.skcds")
    loaded = skcds.load(tmp_path / "family.skcds")
    with pytest.raises(ValueError, match="energy_fn="):
        loaded.sample(5, context=some)
    assert np.allclose(loaded.sample(20, context=some, random_state=0, energy_fn=gaussian), expected, atol=1e-5)
    one = loaded.sample_weighted(20, context=some[0], random_state=0, energy_fn=gaussian)
    assert np.allclose(one.samples, expected[0], atol=1e-4)


def test_a_checkpoint_goes_on_where_it_was(tmp_path):
    whole, calls = make().fit(gaussian, contexts=contexts(50)), []

    def interrupted(x, c):
        calls.append(len(x))
        if 9 * sum(calls) > 8 * whole.n_energy_evals_:
            raise MemoryError
        return gaussian(x, c)

    path = tmp_path / "state"
    with pytest.raises(MemoryError):
        make().fit(interrupted, contexts=contexts(50), checkpoint=path)
    again = make().fit(gaussian, contexts=contexts(50), checkpoint=path)
    assert np.array_equal(*(s.sample(9, context=[0, 0], random_state=0) for s in (whole, again)))


@pytest.mark.parametrize("left, n_groups", [(math.inf, 20), (13_000, 10), (1000, None)])
def test_new_particles_are_as_many_as_the_limit_of_evaluations_allows(left, n_groups, monkeypatch):
    """A path of twelve steps takes 13 evaluations."""
    made = []
    monkeypatch.setattr(diffusion_families, "Renewal", lambda *args: made.append(args[3].n_groups) or (lambda model: 0))
    by = FamilyTraining(n_groups=20, draws_each=10)
    sampler = make(loss=PathLoss(family=by, training=Training(particles=Particles(paths_share=0.1, fewest_paths=50))))
    budget = SimpleNamespace(max_time=None, energy_evals_left=lambda: left, progress=None)
    run = SimpleNamespace(
        population=None, training=sampler.loss.training, budget=budget, energy=SimpleNamespace(source=None)
    )
    diffusion_families.OF_CHAINS._renew(sampler, run, SimpleNamespace(needs_score=True))
    assert made == ([] if n_groups is None else [n_groups])


def test_warm_start_goes_on():
    sampler = copy.deepcopy(fitted()).set_params(warm_start=True, max_iter=20)
    evals = sampler.n_energy_evals_
    sampler.fit(lambda x, c: gaussian(x - 0.1, c), contexts=contexts(100))
    assert sampler.ess_ > 0.9 and sampler.n_energy_evals_ < evals
    with pytest.raises(ValueError, match="hidden_features"):
        sampler.set_params(network__hidden_features=16).fit(gaussian, contexts=contexts(100))
    with pytest.raises(ValueError, match="a fit to a family"):
        sampler.fit(lambda x: (x**2).sum(1))


def test_simulated_pairs_spare_the_exploration():
    C = contexts(2000, 1)
    X = np.concatenate([exact(1, c, k) for k, c in enumerate(C)])
    sampler = make(start=None).fit(gaussian, contexts=C, draws=X)
    assert sampler.ess_ > 0.9
    weighted = sampler.sample_weighted(1000, context=[0.3, 0.3], random_state=0)
    assert abs(weighted.log_evidence - log_z([0.3, 0.3])[0]) < 5 * weighted.log_evidence_se


@pytest.mark.parametrize("limits", [{"max_energy_evals": 60_000, **BLIND}, *slow({"max_energy_evals": 120_000})])
def test_evaluations_are_within_their_limit(limits):
    calls = []

    def counted(x, c):
        calls.append(len(x))
        return gaussian(x, c)

    sampler = make(max_iter=300, **limits).fit(counted, contexts=contexts(200))
    assert sum(calls) <= limits["max_energy_evals"] and sampler.n_iter_ > 0 and sampler.ess_ > 0.1


def test_time_is_within_its_limit():
    sampler = make(max_iter=100_000, max_time=6.0).fit(gaussian, contexts=contexts(200))
    assert sampler.fit_time_ < 12 and sampler.ess_ > 0.5  # twice the limit, for a machine that others use


@pytest.mark.parametrize(
    "params, match",
    [
        ({"start": Prior()}, "start has to be a Pilot"),
        ({"loss": PathLoss(share=0.2)}, "share=0"),
    ],
)
def test_parameters_without_a_meaning_are_named(params, match):
    with pytest.raises(ValueError, match=match):
        make(**params).fit(gaussian, contexts=contexts(50))


def test_what_needs_scores_or_a_density_is_refused():
    def no_gradient(x, c):
        return gaussian(torch.from_numpy(np.asarray(x)), torch.from_numpy(np.asarray(c))).numpy()

    with pytest.raises(ValueError, match="pass grad_fn="):
        make().fit(no_gradient, contexts=contexts(50))
    with pytest.raises(ValueError, match="needs no teacher"):
        skcds.ConsistentSamplerDistiller(fitted()).fit(gaussian, contexts=contexts(50))
    assert not hasattr(fitted(), "score_samples") and not hasattr(fitted(), "log_prob")
    with pytest.raises(ValueError, match="pass context="):
        fitted().sample(3)
    with pytest.raises(ValueError, match="method has to be"):
        fitted().sample(3, context=contexts(2), method="heun")


@pytest.mark.slow
def test_two_modes_whose_masses_depend_on_the_context():
    """Bumps at +-c_0 with masses by c_1 beside a Gaussian: log Z is 0, and the mass on the right is known.

    Within 5 standard errors for 12 contexts, 24 figures: a false alarm in 1e5.
    """

    def energy(x, c):
        p = torch.sigmoid(c[:, 1])
        a = p.log() - 2 * (x[:, 0] - c[:, 0]) ** 2
        b = torch.log1p(-p) - 2 * (x[:, 0] + c[:, 0]) ** 2
        return -torch.logaddexp(a, b) + 0.5 * x[:, 1] ** 2 + math.log(math.pi)

    def draw(n, rng):
        return np.column_stack([rng.uniform(2.5, 4, n), rng.uniform(-2, 2, n)])

    sampler = DiffusionSampler(n_features=2, n_steps=32, max_iter=800, max_time=100, random_state=0)
    sampler.fit(energy, contexts=draw)
    new = draw(12, np.random.default_rng(5))
    for c, weighted in zip(new, sampler.sample_weighted(1000, context=new, random_state=0), strict=True):
        mass, se = weighted.expectation(lambda x: (x[:, 0] > 0).astype(float), return_se=True)
        assert abs(mass - 1 / (1 + math.exp(-c[1]))) < 5 * se and weighted.ess > 300
        assert abs(weighted.log_evidence) < 5 * weighted.log_evidence_se
