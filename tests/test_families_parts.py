"""What fits to families are made of, and what users pass for contexts."""

import math

import numpy as np
import pytest
import torch
from families import MIX, D, K, contexts, exact, gaussian, log_z, make

import skcds
from skcds import Pilot
from skcds.density.contexts import ContextSource, as_contexts, one_or_many
from skcds.density.families import FamilyDensity, FamilyTarget, open_energy
from skcds.density.regression import FamilyStandardization
from skcds.density.standardize import Standardization
from skcds.explore import families as explore_families
from skcds.explore.families import explore_family, most_different, next_betas, systematic_within, temper_family
from skcds.explore.pilot import run_pilot
from skcds.explore.smc import next_beta
from skcds.explore.start import Start
from skcds.models.conditional import ConditionalModel, conditional_sizes
from skcds.models.networks import seeded
from skcds.specifications import FamilyTempering, FamilyTraining, Race
from skcds.train.budget import Budget
from skcds.train.groups import ParticleGroups
from skcds.train.objectives.family import spread_within

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def family(energy=gaussian, C=None, **options):
    return open_energy(
        FamilyDensity(energy, None, contexts=contexts(200) if C is None else C), D, generator(), **options
    )


def model(n_features=D, seed=0):
    """A map with random weights."""
    with seeded(seed):
        found = ConditionalModel("coupling", n_features, K, **conditional_sizes(n_features, bins=8, hidden=16))
    noise = generator(seed)
    for parameter in found.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=noise)
    return found.requires_grad_(False)


# -------------------------------------------------------------------- energies


def test_a_given_energy_is_that_of_points():
    energy, x, c = family(), torch.randn(12, D, generator=generator()).double(), torch.from_numpy(contexts(3))
    given, rows = energy.given(c), c.repeat_interleave(4, 0)
    before = energy.n_energy_evals
    log_prob, score = given.log_prob_and_score(x)
    assert torch.allclose(log_prob, -gaussian(x, rows)) and given.n_energy_evals == before + 12
    assert torch.allclose(score, -(x - rows @ MIX) / rows[:, :1].exp()) and score.shape == (12, D)
    assert torch.allclose(given.log_prob(x), log_prob)


def test_single_precision_is_compared_at_several_contexts():
    """Where the draws are, every eighth context adds 1e9, which single precision rounds to multiples of 64."""
    C = np.concatenate([contexts(160), np.arange(160)[:, None] % 8 == 0], 1)
    X = 50 + np.concatenate([exact(1, c) for c in C[:, :K]])
    sampler = make(max_iter=1, start=None)
    sampler.fit(lambda x, c: gaussian(x - 50, c[:, :K]) + 1e9 * c[:, K] * (x[:, 0] > 25), contexts=C, draws=X)
    assert sampler._energy.fast_dtype == torch.float64


@pytest.mark.parametrize("with_gradient", [True, False])
def test_numpy_energies(with_gradient):
    mix = MIX.numpy()

    def energy(x, c):
        if not isinstance(x, np.ndarray):
            raise TypeError("NumPy arrays only")
        return 0.5 * ((x - c @ mix) ** 2).sum(1) / np.exp(c[:, 0])

    def gradient(x, c):
        return (x - c @ mix) / np.exp(c[:, :1])

    sampler = make(max_iter=40, start__n_particles=1600)
    sampler.fit(energy, contexts=contexts(100), grad_fn=gradient if with_gradient else None)
    assert (sampler.n_grad_evals_ > 0) == with_gradient
    w = sampler.sample_weighted(1000, context=[0.3, 0.4], random_state=0)
    assert abs(w.log_evidence - log_z([0.3, 0.4])[0]) < 5 * w.log_evidence_se + 1e-3


def test_bounds_hold_for_every_context():
    """Exponential distributions of rate exp(c) on the positive half-line: log Z = -c."""

    def energy(x, c):
        assert bool((x > 0).all())
        return (x * c.exp()).sum(1)

    sampler = make(n_features=1, bounds=(0, None), start=Pilot(n_particles=1600))
    sampler.fit(energy, contexts=lambda n, rng: rng.uniform(-1, 1, (n, 1)))
    X = sampler.sample(2000, context=[0.5], random_state=0)
    w = sampler.sample_weighted(2000, context=[[0.5], [-0.5]], random_state=0)
    assert X.min() > 0 and max(abs(one.log_evidence - z) for one, z in zip(w, (-0.5, 0.5), strict=True)) < 0.1
    assert np.isneginf(sampler.log_prob(np.array([[-1.0]]), context=0.5)).all()


def test_there_is_no_density_outside_the_bounds():
    """As `test_bounds_hold_for_every_context`, of hardly a fit."""
    C, rng = contexts(60), np.random.default_rng(0)
    sampler = make(n_features=1, bounds=(0, None), max_iter=1)
    sampler.fit(lambda x, c: (x * c[:, :1].exp()).sum(1), contexts=C, draws=rng.exponential(np.exp(-C[:, :1])))
    for context in ([0.3, 0.4], [[0.3, 0.4], [0.3, 0.4]]):
        inside, outside = sampler.log_prob(np.array([[0.5], [-0.5]]), context=context)
        assert np.isfinite(inside) and outside == -np.inf


# -------------------------------------------------------------------- contexts


@pytest.mark.parametrize("C", [[1.0, 2.0], [["a"]], [[math.nan]], np.zeros((0, 2)), np.zeros((2, 2, 2)), "ab"])
def test_bad_contexts_of_a_fit_are_named(C):
    with pytest.raises((TypeError, ValueError), match="contexts"):
        make().fit(gaussian, contexts=C)


@pytest.mark.parametrize("draw", [lambda: 1, lambda n, rng: np.zeros(n), lambda n, rng: np.zeros((n + 1, 2))])
def test_bad_functions_of_contexts_are_named(draw):
    with pytest.raises((TypeError, ValueError), match="contexts"):
        make().fit(gaussian, contexts=draw)


@pytest.mark.parametrize(
    "params, match",
    [
        ({"network": "residual"}, "network"),
        ({"kind": "distiller", "teacher": skcds.DiffusionSampler(n_features=D)}, "teacher"),
    ],
)
def test_parameters_without_a_meaning_are_named(params, match):
    with pytest.raises(ValueError, match=match):
        make(**params).fit(gaussian, contexts=contexts(50))


def test_arguments_that_belong_to_families_are_named():
    plain = make(max_iter=2)
    with pytest.raises(ValueError, match="contexts="):
        plain.fit(lambda x: (x**2).sum(1), draws=np.zeros((3, D)))
    with pytest.raises(ValueError, match="draws"):
        plain.fit(gaussian, contexts=contexts(50), draws=np.zeros((3, D)))
    with pytest.raises(ValueError, match="10"):
        plain.fit(gaussian, contexts=contexts(3))


def test_names_lead_to_columns():
    names = np.array(["a", "b"])
    assert one_or_many({"b": 2, "a": 1}, 2, names)[0].tolist() == [[1.0, 2.0]]
    assert one_or_many(3.0, 1, ["a"])[0].tolist() == [[3.0]]
    assert not np.signbit(one_or_many([-0.0, 0.0], 2, names)[0]).any()  # or zero would have two streams of draws
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"b": [2.0, 4.0], "a": [1.0, 3.0]})
    found, many = one_or_many(frame, 2, names)
    assert found.tolist() == [[1.0, 2.0], [3.0, 4.0]] and many
    with pytest.raises(ValueError, match="'a'"):
        one_or_many({"b": 2}, 2, names)
    assert ContextSource(frame, generator()).names == ["b", "a"]


def test_contexts_of_an_array_are_picked_without_repetition():
    source = ContextSource(np.arange(20.0)[:, None], generator())
    assert sorted(source.draw(20, generator()).flatten().tolist()) == list(range(20))
    assert len(source.draw(50, generator())) == 50
    assert torch.equal(source.draw(5, generator(3)), source.draw(5, generator(3)))
    assert as_contexts([[1, 0], [True, 2]], "contexts").dtype == np.float64


# -------------------------------------------------------------------- exploration


def test_temperatures_are_those_of_each_context_by_itself():
    gap = 5 * torch.randn(6, 64, generator=generator(), dtype=torch.float64)
    beta = torch.linspace(0, 0.5, 6, dtype=torch.float64)
    expected = [next_beta(row, float(b), 0.6) for row, b in zip(gap, beta, strict=True)]
    assert torch.allclose(next_betas(gap, beta, 0.6), torch.tensor(expected, dtype=torch.float64), atol=1e-9)


def test_resampling_stays_within_a_context():
    log_weights = torch.tensor([[0.0, -torch.inf, 0.0], [-torch.inf, 0.0, -torch.inf]], dtype=torch.float64)
    index = systematic_within(log_weights, 4, generator())
    assert index[0].tolist() == [0, 0, 2, 2] and index[1].tolist() == [1] * 4


def test_tempering_finds_every_context():
    """Means and log Z of 200 contexts of 16 particles; their average errors within 5 standard errors of Monte Carlo."""
    energy, C = family(), torch.from_numpy(contexts(200, 2))
    reference = Standardization(D, full=False)
    found = temper_family(energy, C, reference, generator(), Budget(None, None, energy))
    error = found.x.mean(1) - C @ MIX
    spread = (0.5 * C[:, :1]).exp() / 4
    assert (error / spread).mean(0).abs().max() < 5 / math.sqrt(200) * 1.5
    off = found.log_evidence.numpy() - log_z(C.numpy())
    assert abs(off.mean()) < 5 * off.std() / math.sqrt(200) + 0.1  # the logarithm of an estimate is low


@pytest.mark.parametrize("start, n_scouts", [((0.0, 2.0), 0), (None, 2), (np.zeros((3, D)), 2)])
def test_scouts_are_spared_where_the_user_gives_a_gaussian(start, n_scouts, monkeypatch):
    scouted = []

    def scout(energy, *args, **options):
        scouted.append(energy)
        return run_pilot(energy, *args, **options)

    monkeypatch.setattr(explore_families, "run_pilot", scout)
    energy = family()
    by = FamilyTempering(n_scouts=2, scout_particles=100, n_moves=1, n_each=4)
    start = None if start is None else Start.from_parameter(start, D, None)
    found = explore_family(
        energy, 10, generator(), Budget(None, None, energy), start, Pilot(family=by, race=Race(scales=(1.0,)))
    )
    assert len(scouted) == n_scouts and found.x.shape == (10, 4, D)


def test_masses_of_modes_are_those_of_each_context():
    """Bumps at +-3 with masses by context: their mean error over 300 contexts, within 5 standard errors."""

    def energy(x, c):
        p = torch.sigmoid(c[:, 0])
        wells = torch.logaddexp(-2 * (x[:, 0] - 3) ** 2 + p.log(), -2 * (x[:, 0] + 3) ** 2 + torch.log1p(-p))
        return -wells + 0.5 * (x[:, 1:] ** 2).sum(1)

    C = torch.from_numpy(np.random.default_rng(0).uniform(-2, 2, (300, 2)))
    whole, reference = family(energy, C.numpy()), Standardization(D, full=False)
    found = temper_family(whole, C, reference, generator(), Budget(None, None, whole), FamilyTempering(n_each=32))
    off = (found.x[:, :, 0] > 0).double().mean(1) - torch.sigmoid(C[:, 0])
    assert abs(float(off.mean())) < 5 * float(off.std()) / math.sqrt(300)
    by_mass = torch.corrcoef(torch.stack([(found.x[:, :, 0] > 0).double().mean(1), torch.sigmoid(C[:, 0])]))[0, 1]
    assert by_mass > 0.7


def test_scouts_are_at_contexts_that_differ():
    C = torch.tensor([[0.0], [0.1], [-0.1], [5.0], [-5.0]], dtype=torch.float64)
    assert set(most_different(C, 3).flatten().tolist()) == {0.0, 5.0, -5.0}
    assert len(most_different(C[:1].expand(4, 1), 3)) == 1


# -------------------------------------------------------------------- standardisation and map


def test_standardisation_recovers_lines():
    C = torch.from_numpy(contexts(400))
    noise = torch.randn(400, 8, D, generator=generator(), dtype=torch.float64)
    x = (C @ MIX)[:, None] + (0.5 * C[:, :1]).exp()[:, None] * noise
    found = FamilyStandardization.fitted(C, x)
    new = torch.from_numpy(contexts(50, 1))
    given = found.given(new)
    assert (given.loc - new @ MIX).abs().max() < 0.15
    z = torch.randn(100, D, generator=generator(1), dtype=torch.float64)
    assert torch.allclose(given.inverse(given(z)), z, atol=1e-9)
    exact_scale = 1.5 * new[:, 0].repeat_interleave(2)
    assert (given.log_det(z) - exact_scale).abs().max() < 0.3
    jacobian = torch.autograd.functional.jacobian(lambda u: found.given(new[:1])(u[None])[0], z[0])
    assert torch.allclose(torch.linalg.slogdet(jacobian)[1], given.log_det(z)[0])
    assert torch.allclose(given.pull_back(z[:50], z[:50])[0], z[0] @ jacobian, atol=1e-9)
    assert found.is_far(torch.tensor([[9.0, 0.0], [0.0, 0.0]])).tolist() == [True, False]


@pytest.mark.parametrize("d", [1, 2, 5, 40])
def test_the_map_is_inverted_and_its_jacobian_exact(d):
    found, C = model(d), torch.from_numpy(contexts(3))
    z, given = torch.randn(6, d, generator=generator(1)), model(d).given(C)
    y, log_det = given.map.call_and_log_det(z)
    back, log_det_back = given.map.inverse_and_log_det(y)
    assert torch.allclose(back, z, atol=1e-4) and torch.allclose(log_det, -log_det_back, atol=1e-3)
    assert torch.allclose(given.map.double().inverse_and_log_det(y.double())[0], z.double(), atol=1e-4)
    jacobian = torch.autograd.functional.jacobian(lambda u: found.given(C[1:2]).map(u[None])[0], z[2])
    assert torch.allclose(torch.linalg.slogdet(jacobian)[1], log_det[2], atol=1e-4)


def test_groups_are_mapped_as_rows():
    C, z = torch.from_numpy(contexts(700)), torch.randn(7000, D, generator=generator(1))
    together, _ = model().given(C).mapped(z)
    rows, _ = model().given(C.repeat_interleave(10, 0)).mapped(z)
    assert torch.allclose(together, rows, atol=1e-5)


def test_contexts_are_standardised_but_for_what_is_constant():
    C = torch.cat([torch.from_numpy(contexts(50)), torch.full((50, 1), 3.0).double()], 1)
    found = FamilyStandardization.fitted(C, torch.randn(50, 4, D, generator=generator()).double())
    assert torch.allclose(found.spread, torch.cat([C[:, :K].std(0, correction=0), torch.ones(1).double()]))
    assert torch.allclose(found.center, C.mean(0))


def test_spread_is_within_a_context():
    ratio = torch.tensor([[1.0, 1.0], [50.0, 50.0]])
    assert float(spread_within(ratio)) == 0 and float(spread_within(ratio.T)) > 1


def test_groups_keep_anchors_and_forget_the_oldest():
    energy, C = family(), torch.from_numpy(contexts(10))
    standardization = FamilyStandardization.fitted(C, torch.randn(10, 8, D, generator=generator()).double())
    target, by = FamilyTarget(energy, standardization), FamilyTraining(n_each=8, n_fresh=12 * 8)
    groups = ParticleGroups(target, C, torch.randn(10, 8, D).double(), generator(), by)
    for n_fresh in (5, 10, 12, 12):
        groups.add(groups.moved(C[:5], groups.anchors.z[:5].flatten(0, 1), 1))
        assert len(groups.fresh) == n_fresh
    assert len(groups.anchors) == 10 and len(groups.draw(8)) == 8
    other = ParticleGroups.of_state(groups.target, groups.state_dict(), generator(), by)
    assert torch.equal(other.fresh.z, groups.fresh.z) and len(other) == len(groups)


# -------------------------------------------------------------------- fits


def test_pairs_replace_the_exploration():
    C = contexts(300)
    X = np.concatenate([exact(1, c, k) for k, c in enumerate(C)])
    explored, paired = make(max_iter=1), make(max_iter=40)
    explored.fit(gaussian, contexts=C)
    paired.fit(gaussian, contexts=C, draws=X)
    assert paired.n_energy_evals_ < 0.8 * explored.n_energy_evals_ and paired.ess_ > 0.9


def test_limits_hold():
    calls = []

    def counted(x, c):
        calls.append(len(x))
        return gaussian(x, c)

    sampler = make(max_iter=30, max_energy_evals=60_000).fit(counted, contexts=contexts(100))
    assert sum(calls) <= 60_000 and sampler.n_energy_evals_ == sum(calls) and sampler.n_iter_ == 30
    timed = make(max_iter=100_000, max_time=3).fit(gaussian, contexts=contexts(100))
    assert timed.n_iter_ < 100_000 and timed.fit_time_ < 11  # the machine may be busy


def test_several_fits_and_names():
    def energy(x, c):
        return gaussian(x, c)

    energy.context_names = ["warm", "cold"]
    sampler = make(max_iter=10, start__n_particles=800, n_init=2).fit(energy, contexts=contexts(60))
    assert sampler.context_names_in_.tolist() == ["warm", "cold"]
    assert sampler.sample(2, context={"cold": 0.1, "warm": 0.2}).shape == (2, D)
    named = make(max_iter=2, start__n_particles=800).fit(energy, contexts=contexts(60), context_names=["u", "v"])
    assert named.context_names_in_.tolist() == ["u", "v"]


def test_tempered_densities():
    """Of a Gaussian: log Z = (d / 2) log(2 pi / c)."""
    family = skcds.tempered(lambda x: 0.5 * (x**2).sum(1))
    sampler = make(max_iter=80).fit(family, contexts=np.random.default_rng(0).uniform(0.2, 3, (300, 1)))
    found = sampler.sample_weighted(2000, context=[[0.3], [1.0], [2.5]], random_state=0)
    for w, c in zip(found, (0.3, 1.0, 2.5), strict=True):
        assert abs(w.log_evidence - 0.5 * D * math.log(2 * math.pi / c)) < 5 * w.log_evidence_se + 0.01
    assert sampler.context_names_in_.tolist() == ["inverse temperature"]
    with pytest.raises(ValueError, match="grad_fn"):
        family.gradient(np.zeros((1, D)), np.ones((1, 1)))
    with pytest.raises(TypeError, match="energy_fn"):
        skcds.tempered(3)


def test_a_gradient_may_be_taken_by_autograd():
    """A `grad_fn` that differentiates in PyTorch, which is called where gradients are off."""

    def by_autograd(x, c):
        with_graph = x.clone().requires_grad_()
        return torch.autograd.grad(gaussian(with_graph, c).sum(), with_graph)[0]

    density = FamilyDensity(gaussian, by_autograd, contexts=contexts(20))
    with torch.no_grad():
        energy = open_energy(density, D, torch.Generator().manual_seed(0))
        rows = energy.source.draw(4, torch.Generator().manual_seed(1))
        x = torch.randn(4, D, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        score = energy.given(rows).log_prob_and_score(x)[1]
    assert torch.allclose(score, -by_autograd(x, rows))
