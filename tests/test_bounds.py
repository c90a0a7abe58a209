"""Bounded coordinates: the bijection, the energies seen through it, and samplers of densities in boxes."""

import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from cases import slow
from samplers import FEW, JUDGED, KINDS, ONE_STEP, SMALL, SMALL_CONTROL, make
from scipy.special import betaln
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

import skcds
from skcds import (
    ConsistentSamplerDistiller,
    ConsistentSamplerScratch,
    Coupling,
    DiffusionSampler,
    PathLoss,
    Pilot,
    SelfConsistency,
)
from skcds.density.bounds import FARTHEST, Bounds
from skcds.density.energy import Energy, InvalidEnergyError
from skcds.specifications import Race

MIXED = [(0, 1), (2, None), (None, -1), (None, None), (-3, 5)]


def box(scale=1.0):
    bounds = Bounds.from_parameter(MIXED, len(MIXED))
    return Bounds(bounds.low, bounds.high, torch.full((len(MIXED),), scale))


def points(n=200, width=2.0, seed=0):
    return width * torch.randn(n, len(MIXED), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def beta_energy(x):
    """Beta(2, 1/2) in every coordinate, without its normaliser."""
    return -(x.log() - 0.5 * torch.log1p(-x)).sum(1)


def exponential_energy(x):
    """Exponential of mean 1000 in every coordinate."""
    return 1e-3 * x.sum(1)


# -------------------------------------------------------------------- the bijection


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
class TestBijection:
    def test_is_inverted(self, scale):
        y = points()
        assert torch.allclose(box(scale).inverse(box(scale)(y)), y, atol=1e-7)

    def test_stays_inside(self, scale):
        x = box(scale)(points(width=50.0))
        low, high = box().low, box().high
        assert ((low < x) & (x < high)).all()

    def test_determinant_is_that_of_autograd(self, scale):
        y, bounds = points(20), box(scale)
        log_det = bounds.call_and_pull_back(y)[1]
        jacobians = [torch.autograd.functional.jacobian(lambda v: bounds(v[None])[0], row) for row in y]
        assert torch.allclose(torch.linalg.slogdet(torch.stack(jacobians))[1], log_det, atol=1e-9)

    def test_gradients_are_those_of_autograd(self, scale):
        y, bounds = points(50).requires_grad_(), box(scale)
        x, log_det, pull_back = bounds.call_and_pull_back(y)
        (expected,) = torch.autograd.grad(x.sin().sum() + log_det.sum(), y)
        assert torch.allclose(pull_back(x.detach().cos()), expected, rtol=1e-6, atol=1e-6)

    def test_density_beyond_numbers_is_zero(self, scale):
        y = points(3, 0.1)
        y[1, 0], y[2, 1] = 1.01 * FARTHEST, -math.inf
        log_det = box(scale).call_and_pull_back(y)[1]
        assert log_det[0].isfinite() and (log_det[1:] == -torch.inf).all()


def test_uniform_becomes_standard_normal():
    bounds = Bounds.from_parameter([(2, 5)], 1)
    y = points()[:, :1]
    log_density = bounds.call_and_pull_back(y)[1] - math.log(3)
    assert torch.allclose(log_density, torch.distributions.Normal(0.0, 1.0).log_prob(y[:, 0]), atol=1e-12)


def test_a_point_on_a_bound_is_taken_for_its_neighbour():
    y = Bounds.from_parameter((0, 1), 2).inverse(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    assert y.isfinite().all()


def test_centred_puts_the_median_at_zero():
    bounds = Bounds.from_parameter([(0, None), (None, 3), (0, 1)], 3)
    y = 5 + points()[:, :3]
    centred = bounds.centred(y)
    assert centred.inverse(bounds(y)).quantile(0.5, dim=0)[:2].abs().max() < 0.05
    assert centred.scale[2] == 1 and torch.equal(centred.low, bounds.low)


class TestParameter:
    @pytest.mark.parametrize("bounds", [None, (None, None), (-np.inf, np.inf), [(None, None)] * 2, [None, None]])
    def test_none_are_no_bounds(self, bounds):
        assert Bounds.from_parameter(bounds, 2) is None

    @pytest.mark.parametrize("bounds", [(0, 1), [(0, 1), (0, 1)], np.array([[0, 1], [0, 1]]), ((0.0, 1), [0, 1.0])])
    def test_one_pair_is_for_all(self, bounds):
        assert np.array_equal(Bounds.from_parameter(bounds, 2).to_array(), [[0, 1], [0, 1]])

    @pytest.mark.parametrize(
        "bounds, message",
        [
            ([(0, 1)], "one pair .* or 2 of them.*got 1"),
            ([(0, 1)] * 3, "got 3"),
            ([(0, 1), (1, 1)], r"bounds\[1\] has to have its lower bound below"),
            ([(0, 1), (np.nan, 1)], r"bounds\[1\] has to have its lower bound below"),
            ([(0, 1), (0, "1")], r"bounds\[1\] has to be a pair of numbers or None"),
            ([(0, 1), 3], r"bounds\[1\] has to be a pair"),
            ([(0, 1), (1, 2, 3)], r"bounds\[1\] has to be a pair"),
            ([(0, 1), (1e9, 1e9 + 1e-5)], "narrower than numbers can tell"),
        ],
    )
    def test_others_are_errors(self, bounds, message):
        with pytest.raises(ValueError, match=message):
            make(KINDS[0], n_features=2, bounds=bounds).fit(lambda x: x.sum(1))


# -------------------------------------------------------------------- energies


class TestEnergy:
    def test_is_the_density_of_unconstrained_points(self):
        """Numerically integrated, it has the mass of the density in the box."""
        energy = Energy(beta_energy, 1, bounds=Bounds.from_parameter((0, 1), 1))
        y = torch.linspace(-30, 30, 20_001, dtype=torch.float64)[:, None]
        mass = torch.trapezoid(energy.log_prob(y).exp(), y[:, 0])
        assert mass.log().item() == pytest.approx(betaln(2, 0.5), abs=1e-6)

    @pytest.mark.parametrize("framework", ["torch", "numpy"])
    def test_gradient_is_that_of_the_values(self, framework):
        if framework == "torch":
            fn, grad = (lambda x: (x**2).sum(1)), None
        else:
            fn, grad = (lambda x: (np.asarray(x) ** 2).sum(1)), lambda x: 2 * np.asarray(x)
        energy = Energy(fn, len(MIXED), grad, bounds=box())
        y, step = points(20, width=0.7), 1e-5
        score = energy.log_prob_and_score(y)[1]
        for j in range(len(MIXED)):
            e = step * torch.eye(len(MIXED), dtype=torch.float64)[j]
            slope = (energy.log_prob(y + e) - energy.log_prob(y - e)) / (2 * step)
            assert torch.allclose(score[:, j], slope, rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_is_never_called_outside(self, dtype):
        def guarded(x):
            assert ((x > 0) & (x < 1)).all()
            return (0 * x.to(dtype)).sum(1)

        energy = Energy(guarded, 2, bounds=Bounds.from_parameter((0, 1), 2))
        energy.log_prob(torch.linspace(-40, 40, 400).reshape(-1, 2), dtype)

    def test_single_precision_is_not_used(self):
        """Near a bound it does not tell points apart."""
        assert Energy(beta_energy, 2, bounds=Bounds.from_parameter((0, 1), 2)).fast_dtype == torch.float64
        assert Energy(lambda x: (x**2).sum(1), 2).fast_dtype == torch.float32


# -------------------------------------------------------------------- samplers


@pytest.fixture(scope="module")
def fits():
    """A small teacher, student and scratch of two exponential coordinates, by kind."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        options = {"n_features": 2, "bounds": (0, None), "max_iter": 40}
        return {kind: make(kind, **options).fit(exponential_energy) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
class TestSamplers:
    def test_draws_are_inside(self, fits, kind):
        X = fits[kind].sample(500, random_state=0)
        assert (X > 0).all() and np.median(X) == pytest.approx(1000 * math.log(2), rel=0.5)

    def test_scales_are_found(self, fits, kind):
        assert fits[kind].bounds_.tolist() == [[0, np.inf]] * 2
        assert np.allclose(fits[kind].bounds_scale_, 1000 * math.log(2), rtol=0.3)

    def test_weights_are_right_for_a_poor_fit(self, fits, kind):
        """E[w] = Z whatever was learned: an error of 5 standard errors has a chance of 6e-7."""
        weighted = fits[kind].sample_weighted(20_000, random_state=0)
        assert abs(weighted.log_evidence - 2 * math.log(1000)) < 5 * weighted.log_evidence_se
        mean, se = weighted.expectation(lambda x: x, return_se=True)
        assert (abs(mean - 1000) < 5 * se).all()

    def test_without_the_jacobian_weights_are_wrong(self, fits, kind):
        """Negative control: the draws' weights by the energy at the draws, taken for unconstrained ones."""
        sampler = pickle.loads(pickle.dumps(fits[kind]))
        sampler._energy = Energy(lambda y: exponential_energy(Bounds.from_fitted(sampler)(y)), 2)
        weighted = sampler.sample_weighted(20_000, random_state=0)
        assert abs(weighted.log_evidence - 2 * math.log(1000)) > 8 * weighted.log_evidence_se

    def test_survive_pickle_and_file(self, fits, kind, tmp_path):
        sampler = fits[kind]
        sampler.save(tmp_path / "sampler.skcds")
        for again in (pickle.loads(pickle.dumps(sampler)), skcds.load(tmp_path / "sampler.skcds")):
            first, second = (
                s.sample_weighted(50, random_state=0, energy_fn=exponential_energy) for s in (sampler, again)
            )
            assert np.array_equal(first.samples, second.samples)
            assert np.allclose(first.log_weights, second.log_weights)
        assert clone(skcds.load(tmp_path / "sampler.skcds")).get_params()["bounds"] == clone(again).bounds

    def test_report_knows_particles_and_draws(self, fits, kind):
        found = fits[kind].diagnose(2000, random_state=0)
        assert found["location"].value < 0.5 and found["spread"].value < 1.5

    @pytest.mark.slow
    def test_an_interrupted_fit_goes_on(self, kind, tmp_path):
        file = tmp_path / "fit.ckpt"
        whole = make(kind, n_features=2, bounds=(0, None), max_iter=2).fit(exponential_energy, checkpoint=file)
        again = make(kind, n_features=2, bounds=(0, None), max_iter=2).fit(exponential_energy, checkpoint=file)
        assert np.array_equal(whole.sample(20, random_state=0), again.sample(20, random_state=0))
        assert np.array_equal(whole.bounds_scale_, again.bounds_scale_)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
class TestFamilies:
    """Densities with known log Z; a fit of seconds comes close, and its weights are exact."""

    @pytest.mark.parametrize(
        "energy, bounds, log_z",
        [
            (lambda x: 0 * x.sum(1), [(0, 1), (-2, 3)], math.log(5)),
            *slow((exponential_energy, (0, None), 2 * math.log(1000))),
            (beta_energy, (0, 1), 2 * betaln(2, 0.5)),
            (lambda x: 0.5 * (x[:, 0] ** 2 + (x[:, 1] + 1) ** 2), [None, (None, -1)], math.log(math.pi)),
        ],
        ids=["uniform", "exponential", "Beta", "half normal"],
    )
    def test_log_evidence(self, energy, bounds, log_z):
        """Within 5 standard errors or .05, where heavy tails of a short fit's weights make them too small."""
        sampler = ConsistentSamplerScratch(
            n_features=2,
            bounds=bounds,
            max_iter=150,
            random_state=0,
            network=Coupling(n_transforms=2),
            control=SMALL_CONTROL,
            objective=SelfConsistency(batch_size=256, training=JUDGED),
            **{**SMALL, "start": Pilot(n_particles=500, race=Race(n_particles=300), climbs=FEW)},
        ).fit(energy)
        weighted = sampler.sample_weighted(10_000, random_state=0)
        assert abs(weighted.log_evidence - log_z) < max(5 * weighted.log_evidence_se, 0.05)
        assert weighted.ess > 2500

    def test_infinite_mass_at_a_bound_is_named(self):
        with pytest.raises(InvalidEnergyError, match="infinite mass"):
            DiffusionSampler(
                n_features=1, bounds=(0, None), max_iter=5, random_state=0, start=Pilot(n_particles=500)
            ).fit(lambda x: x[:, 0].log() + x[:, 0])


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
class TestTeacherAndStudent:
    def test_student_takes_the_teachers(self, fits):
        student = fits["ConsistentSamplerDistiller"]
        assert np.array_equal(student.bounds_scale_, student.teacher_.bounds_scale_)

    def test_other_bounds_than_the_teachers_are_refused(self, fits):
        student = ConsistentSamplerDistiller(fits["DiffusionSampler"], bounds=(0, 5000), max_iter=2)
        with pytest.raises(ValueError, match="not those of the teacher"):
            student.fit(exponential_energy)

    @pytest.mark.parametrize("whose", ["teacher", "student"])
    def test_unfitted_teacher(self, whose):
        bounds = {name: (0, None) if name == whose else None for name in ("teacher", "student")}
        options = {**SMALL, "network": SMALL_CONTROL, "loss": PathLoss(training=JUDGED), "max_iter": 5}
        teacher = DiffusionSampler(bounds=bounds["teacher"], **options, random_state=0)
        student = ConsistentSamplerDistiller(
            teacher,
            n_features=2,
            bounds=bounds["student"],
            max_iter=5,
            batch_size=64,
            random_state=0,
            network=Coupling(n_transforms=2),
        ).fit(exponential_energy)
        assert (student.sample(100) > 0).all()

    def test_warm_start_keeps_the_scale_and_refuses_other_bounds(self, fits):
        sampler = pickle.loads(pickle.dumps(fits["DiffusionSampler"])).set_params(warm_start=True, max_iter=2)
        scale = sampler.bounds_scale_
        assert np.array_equal(sampler.fit(exponential_energy).bounds_scale_, scale)
        with pytest.raises(ValueError, match="other bounds"):
            sampler.set_params(bounds=(0, 1)).fit(exponential_energy)


@pytest.mark.parametrize("kind", ONE_STEP)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_polished_draws_stay_inside(fits, kind):
    assert (fits[kind].sample(100, random_state=0, polish=4) > 0).all()
