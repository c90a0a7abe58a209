"""Periodic coordinates: a mode on the seam is one mode, with log Z, draws and densities as known in closed form.

Bounds are 5.6 standard errors: false alarms 2e-8 each.
"""

import functools
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from cases import slow
from hypothesis import given
from hypothesis import strategies as st
from samplers import KINDS, ONE_STEP, make
from scipy.special import ive
from scipy.stats import vonmises
from sklearn.base import clone

import skcds
from skcds import ConsistentSamplerDistiller, ConsistentSamplerScratch, DiffusionSampler, Pilot
from skcds.density.bounds import Bounds, periodic_of
from skcds.density.circle import sparsest_place, wrapped
from skcds.density.energy import Energy
from skcds.explore.modes import survey
from skcds.explore.pilot import run_pilot
from skcds.explore.start import Start
from skcds.specifications import HighDimension, Survey

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
Z, TURN, KAPPA = 5.6, 2 * math.pi, 1.5
LOG_Z = math.log(TURN * ive(0, KAPPA)) + KAPPA + math.log(TURN) + math.log(0.5 * math.sqrt(TURN))
BOX = [(0, TURN), (0, TURN), (None, None)]
each_kind = pytest.mark.parametrize("kind", [KINDS[0], *slow(KINDS[1]), KINDS[2]])


def three(x):
    """Energy of a von Mises coordinate with its mode on the seam, a uniform one, and N(1, 1 / 4)."""
    return -KAPPA * torch.cos(x[:, 0]) + 2 * (x[:, 2] - 1) ** 2


def log_density(X):
    """Of `three`, normalised."""
    return -three(torch.from_numpy(X)).numpy() - LOG_Z


def exact(n, seed=0):
    """Draws of `three`."""
    rng = np.random.RandomState(seed)
    angle = vonmises.rvs(KAPPA, size=n, random_state=rng) % TURN
    return np.stack([angle, TURN * rng.uniform(size=n), 1 + 0.5 * rng.standard_normal(n)], 1)


@functools.cache
def fitted(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"bounds": BOX, "periodic": ["angle", 1], "feature_names": ["angle", "phase", "height"]}
        return make(kind, **options, max_iter=40, start=(0.0, 2.0)).fit(three)


def circle(seam=0.0, low=0.0, width=TURN):
    """Bounds of one periodic coordinate."""
    sides = (torch.tensor([value], dtype=torch.float64) for value in (low, low + width))
    return Bounds(*sides, seam=torch.tensor([seam], dtype=torch.float64))


def column(values):
    return torch.as_tensor(values, dtype=torch.float64).reshape(-1, 1)


# -------------------------------------------------------------------- the bijection

shifts = st.floats(-3.0, 3.0)
lows = st.floats(-10.0, 10.0)
widths = st.floats(0.1, 30.0)
latents = st.lists(st.floats(-4.0, 4.0), min_size=1, max_size=8).map(column)


class TestBijection:
    @given(latents, lows, widths, shifts, shifts)
    def test_it_moves_with_the_seam(self, y, low, width, seam, shift):
        """A circle that is turned, with its seam, has the same unconstrained coordinates."""
        one, other = circle(low + width * seam, low, width), circle(low + width * (seam + shift), low, width)
        x, log_det, _ = one.call_and_pull_back(y)
        turned, log_det_too, _ = other.call_and_pull_back(y)
        apart = torch.remainder(turned - x - width * shift + 0.5 * width, width) - 0.5 * width
        assert apart.abs().max() < 1e-9 * width * (1 + abs(low) / width)
        assert torch.allclose(log_det, log_det_too)
        assert torch.allclose(other.inverse(x + width * shift), one.inverse(x), atol=1e-4)

    @given(latents, lows, widths, shifts, st.integers(-5, 5))
    def test_is_inverted_whole_turns_away_and_stays_between_the_bounds(self, y, low, width, seam, turns):
        bounds = circle(low + width * seam, low, width)
        x = bounds(y)
        assert ((low < x) & (x < low + width)).all()
        assert torch.allclose(bounds.inverse(x + turns * width), y, atol=1e-4)

    @given(st.just(column([0.0])) | latents, shifts)
    def test_the_density_does_not_depend_on_the_seam(self, x, seam):
        """That of a smooth density on the circle, pushed to the line and back."""
        energy = [Energy(lambda x: -torch.cos(x).sum(1), 1, bounds=circle(at)) for at in (0.0, TURN * seam)]
        found = []
        for one in energy:
            y = one.bounds.inverse(x)
            found.append(one.log_prob(y) - one.bounds.call_and_pull_back(y)[1])
        assert torch.allclose(*found, atol=1e-6)

    def test_derivatives_are_those_of_autograd(self):
        bounds, y = circle(2.0), column(np.linspace(-4, 4, 40)).requires_grad_()
        x, log_det, pull_back = bounds.call_and_pull_back(y)
        (slope,) = torch.autograd.grad(x.sum(), y, retain_graph=True)
        assert torch.allclose(slope[:, 0].log(), log_det)
        (expected,) = torch.autograd.grad(x.sin().sum() + log_det.sum(), y)
        assert torch.allclose(pull_back(x.detach().cos()), expected, rtol=1e-6, atol=1e-6)

    def test_a_uniform_circle_is_normal_whatever_the_seam(self):
        y = column(np.linspace(-3, 3, 9))
        log_prob = circle(4.0).call_and_pull_back(y)[1] - math.log(TURN)
        assert torch.allclose(log_prob, torch.distributions.Normal(0.0, 1.0).log_prob(y[:, 0]))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_the_energy_is_called_between_the_bounds_alone(self, dtype):
        def guarded(x):
            assert x.dtype == dtype and ((x > -math.pi) & (x < math.pi)).all()
            return -torch.cos(x).sum(1)

        bounds = Bounds.from_parameter((-math.pi, math.pi), 2, [0, 1]).cut_open(torch.tensor([[1.0, 3.1]]).double())
        energy = Energy(guarded, 2, bounds=bounds) if dtype == torch.float64 else None
        if energy is None:
            rows = bounds.inside(bounds(torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))).float())
            assert (rows.double().abs() < math.pi).all()
        else:
            energy.log_prob(3 * torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)).double())


class TestSeam:
    @given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=30), st.floats(-2, 2), widths)
    def test_moves_with_the_points(self, points, shift, width):
        x = width * torch.tensor(points, dtype=torch.float64)
        place, moved = sparsest_place(x, width), sparsest_place(x + width * shift, width)
        cosine = [np.cos(TURN / width * (p - q.numpy())) for p, q in ((place, x), (moved, x + width * shift))]
        assert math.isclose(*(np.exp(100 * (c - 1)).mean() + 1e-3 * np.exp(c - 1).mean() for c in cosine), rel_tol=1e-4)

    def test_is_opposite_to_a_single_point(self):
        assert abs(sparsest_place(torch.tensor([1.0]), TURN) - 1.0 - math.pi) < 0.02

    def test_far_from_zero_is_as_fine(self):
        """Times in days since an epoch, of a period of one: single precision would have steps of a quarter there."""
        x = 2.0**22 + torch.tensor([0.125], dtype=torch.float64)
        assert abs(sparsest_place(x, 1.0) % 1.0 - 0.625) < 0.02

    @pytest.mark.parametrize("seed", range(5))
    def test_is_between_modes(self, seed):
        """Two modes around 0 and 2, of deviation .2: from 4 deviations beyond the one to 4 before the other."""
        rng = np.random.RandomState(seed)
        x = torch.from_numpy(np.concatenate([rng.normal(0, 0.2, 900), rng.normal(2, 0.2, 100)]) % TURN)
        assert 2.8 < sparsest_place(x, TURN) % TURN < TURN - 0.8

    def test_of_no_points(self):
        assert sparsest_place(torch.full((3,), torch.nan), TURN) == 0.0

    def test_wrapped(self):
        low, width = torch.tensor([-1.0]), torch.tensor([2.0])
        assert wrapped(column([-1.0, 1.0, 3.5, -4.0]), low, width)[:, 0].tolist() == [-1.0, -1.0, -0.5, 0.0]


class TestParameter:
    def test_by_numbers_and_names(self):
        assert periodic_of([2, "a", np.int64(0)], 3, ["a", "b", "c"]) == [0, 2] and periodic_of("b", 2, ["a", "b"]) == [
            1
        ]
        assert periodic_of(None, 2) == [] and periodic_of(np.array([1]), 2) == [1]

    @pytest.mark.parametrize("which", [[3], [-1], ["d"], [True], [0.5], "d"])
    def test_others_are_errors(self, which):
        with pytest.raises(
            ValueError, match="periodic has to list coordinates, by numbers from 0 to 2 or by the names"
        ):
            periodic_of(which, 3, ["a", "b", "c"])

    @pytest.mark.parametrize("bounds", [[(0, None), (0, 1)], [None, (0, 1)]])
    def test_two_bounds_are_needed(self, bounds):
        with pytest.raises(ValueError, match="periodic coordinate 0 needs two finite bounds"):
            Bounds.from_parameter(bounds, 2, [0])
        with pytest.raises(ValueError, match="needs bounds="):
            Bounds.from_parameter(None, 2, [0])

    def test_from_fit(self):
        with pytest.raises(ValueError, match="'beta'"):
            make(KINDS[0], bounds=(0, 1), periodic=["beta"]).fit(three)


class TestStart:
    def test_points_are_wrapped(self):
        bounds = Bounds.from_parameter([(0, TURN), (0, 1)], 2, [0])
        start = Start.from_parameter([[7 * TURN + 0.5, 0.5]], 2, bounds)
        assert torch.allclose(bounds(start.points), torch.tensor([[0.5, 0.5]], dtype=torch.float64))
        with pytest.raises(ValueError, match="within the bounds"):
            Start.from_parameter([[0.5, 1.5]], 2, bounds)

    def test_a_location_is_wrapped_and_its_scale_no_wider_than_the_circle(self):
        bounds = Bounds.from_parameter((0, TURN), 1, [0]).cut_open(column([0.1]))
        start = Start.from_parameter((-TURN + 0.1, 100.0), 1, bounds)
        assert torch.allclose(bounds(start.points), column([0.1])) and 1 < start.gaussian.covariance.sum() < 10

    def test_the_seam_is_far_from_them(self):
        found = make(KINDS[0], start=[[TURN - 0.1]], n_features=1, bounds=(0, TURN), periodic=[0], max_iter=2)
        assert abs(found.fit(lambda x: -8 * torch.cos(x[:, 0])).seam_[0] - math.pi) < 1


# -------------------------------------------------------------------- samplers


@each_kind
class TestSamplers:
    def test_log_evidence(self, kind):
        weighted = fitted(kind).sample_weighted(20_000, random_state=0)
        assert weighted.is_bound and abs(weighted.log_evidence - LOG_Z) < Z * weighted.log_evidence_se

    def test_means_of_the_circle(self, kind):
        """The mean of exp(i angle) is I1 / I0 of the von Mises coordinate, and 0 of the uniform one."""
        weighted = fitted(kind).sample_weighted(20_000, random_state=1)

        def parts(X):
            return np.column_stack([np.cos(X[:, :2]), np.sin(X[:, :2]), X[:, 2]])

        mean, se = weighted.expectation(parts, return_se=True)
        assert (np.abs(mean - [ive(1, KAPPA) / ive(0, KAPPA), 0, 0, 0, 1]) < Z * se).all()

    def test_draws_are_between_the_bounds_and_on_both_sides_of_the_mode(self, kind):
        X = fitted(kind).sample(2000, random_state=0)
        assert ((X[:, :2] >= 0) & (X[:, :2] < TURN)).all() and 0.2 < (X[:, 0] < math.pi).mean() < 0.8
        frame = fitted(kind).sample(5, random_state=0, as_frame=True)
        assert list(frame) == ["angle", "phase", "height"] and np.allclose(
            frame, X[:5], atol=1e-4
        )  # rounding of other batches

    def test_the_seam_is_away_from_the_mode(self, kind):
        """Density there below .4 of its mean; at random places it is so with a probability of .4."""
        seam = fitted(kind).seam_
        assert abs(seam[0] - math.pi) < 1.2 and 0 <= seam[1] < TURN and np.isnan(seam[2])
        assert fitted(kind).bounds_.tolist() == [[0, TURN], [0, TURN], [-np.inf, np.inf]]

    def test_survives_pickle_file_and_clone(self, kind, tmp_path):
        sampler = fitted(kind)
        sampler.save(tmp_path / "a.skcds")
        for again in (pickle.loads(pickle.dumps(sampler)), skcds.load(tmp_path / "a.skcds")):
            assert np.array_equal(again.seam_, sampler.seam_, equal_nan=True)
            one, other = (s.sample_weighted(50, random_state=0, energy_fn=three) for s in (sampler, again))
            assert np.array_equal(one.samples, other.samples) and np.allclose(one.log_weights, other.log_weights)
        assert clone(again).periodic == ["angle", 1] or kind == ONE_STEP[0]

    def test_an_interrupted_fit_goes_on(self, kind, tmp_path):
        options = {"n_features": 1, "bounds": (0, TURN), "periodic": [0], "max_iter": 2}
        whole, again = (
            make(kind, **options).fit(lambda x: -4 * torch.cos(x[:, 0]), checkpoint=tmp_path / "a") for _ in range(2)
        )
        assert np.array_equal(whole.seam_, again.seam_)
        assert np.array_equal(whole.sample(20, random_state=0), again.sample(20, random_state=0))

    def test_a_report_finds_nothing_wrong_with_the_place(self, kind):
        found = fitted(kind).diagnose(2000, random_state=0)
        assert found["location"].value < 0.5 and found["spread"].value < 1.5


@pytest.mark.parametrize("kind", ONE_STEP)
class TestDensity:
    def test_is_normalised(self, kind):
        """The mean of q / p over exact draws of p is one."""
        X = exact(20_000)
        ratio = np.exp(fitted(kind).score_samples(X) - log_density(X))
        assert abs(ratio.mean() - 1) < Z * ratio.std() / math.sqrt(len(X))

    def test_is_that_of_the_weights_and_of_points_whole_turns_away(self, kind):
        weighted = fitted(kind).sample_weighted(200, random_state=0)
        X, log_q = fitted(kind).sample(200, random_state=0, return_log_density=True)
        again, seam = fitted(kind).score_samples(X + [2 * TURN, -TURN, 0]), fitted(kind).seam_[:2]
        clear = (np.abs(X[:, :2] - seam) > 1e-6).all(1)  # a turn rounds what is left of the distance from the seam
        assert clear.mean() > 0.9 and np.allclose(log_q[clear], again[clear], atol=1e-3)
        assert np.allclose(weighted.log_weights, log_density(X) + LOG_Z - log_q, atol=1e-3)

    def test_exact_and_polished_draws(self, kind):
        for options in ({"exact": True}, {"polish": 4}):
            X = fitted(kind).sample(2000, random_state=0, **options)
            assert ((X[:, :2] >= 0) & (X[:, :2] < TURN)).all()


class TestSeamModes:
    """What periodic= is for, and that without it the same mode is two."""

    def energy(self, periodic):
        bounds = Bounds.from_parameter((0, TURN), 1, periodic)
        return Energy(lambda x: -20 * torch.cos(x[:, 0]), 1, bounds=bounds)

    def modes(self, energy):
        return len(survey(energy, torch.Generator().manual_seed(0), Survey(n_climbs=24)).modes)

    def test_one_mode_is_one(self):
        energy = self.energy([0])
        energy.bounds = energy.bounds.cut_open(column([0.01, TURN - 0.01]))
        assert self.modes(energy) == 1

    def test_without_it_there_are_more(self):  # negative control
        assert self.modes(self.energy(None)) > 1

    def test_a_fit_is_better_for_it(self):
        """Bounds on log Z of two teachers of as many iterations; without the cut the same as with plain bounds."""
        found = []
        for periodic in ([0, 1], None):
            sampler = make(KINDS[0], n_features=2, bounds=(0, TURN), periodic=periodic, random_state=1)
            found.append(sampler.fit(lambda x: -4 * torch.cos(x).sum(1)).elbo_)
        assert found[0] > found[1] + 0.5

    def test_a_pair_of_modes_one_of_them_on_the_seam(self):
        """Masses .3 and .7, by the weights."""

        def pair(x):
            turned = torch.stack([torch.cos(x[:, 0]), torch.cos(x[:, 0] - 2.5)])
            return -torch.logsumexp(20 * turned + torch.tensor([[0.3], [0.7]]).to(x).log(), 0)

        sampler = make(ONE_STEP[1], n_features=1, bounds=(0, TURN), periodic=[0], max_iter=100).fit(pair)
        weighted = sampler.sample_weighted(20_000, random_state=0)
        near, se = weighted.expectation(lambda X: (np.cos(X[:, 0]) > math.cos(1.25)).astype(float), return_se=True)
        assert abs(near - 0.3) < Z * se < 0.1
        assert abs(weighted.log_evidence - math.log(TURN * ive(0, 20)) - 20) < Z * weighted.log_evidence_se


class TestFewEvaluations:
    def test_the_seam_is_found_by_climbs(self):
        sampler = make(ONE_STEP[1], bounds=BOX, periodic=[0, 1], max_energy_evals=4000, start=None).fit(three)
        assert abs(sampler.seam_[0] - math.pi) < 1.2 and sampler.n_energy_evals_ <= 4000
        weighted = sampler.sample_weighted(20_000, random_state=0)
        assert abs(weighted.log_evidence - LOG_Z) < Z * weighted.log_evidence_se


class TestHighDimension:
    def test_the_seam_is_opposite_to_the_mode_that_laplaces_approximation_is_at(self):
        high = Pilot(high_dimension=HighDimension(n_features=1))  # that it begins from there
        bounds = Bounds.from_parameter([(0, TURN), (None, None)], 2, [0])
        energy = Energy(
            lambda x: -8 * torch.cos(x[:, 0] - 0.1) + 0.5 * x[:, 1] ** 2,
            2,
            None,
            torch.Generator().manual_seed(0),
            bounds,
        )
        found, x = run_pilot(energy, 500, torch.Generator().manual_seed(0), pilot=high)
        assert abs(energy.bounds.seam[0] - math.pi - 0.1) < 0.5  # of the mode as it is seen from the first seam
        truth = math.log(TURN * ive(0, 8)) + 8 + 0.5 * math.log(TURN)
        assert abs(found.log_evidence - truth) < 0.3 and x.std(0).max() < 1.5


class TestTeachersAndWarmStarts:
    def test_a_student_takes_what_its_teacher_has(self):
        student = fitted(ONE_STEP[0])
        assert np.array_equal(student.seam_, student.teacher_.seam_, equal_nan=True)

    def test_and_refuses_another_circle(self):
        teacher = fitted(KINDS[0])
        for options in ({"bounds": BOX}, {"bounds": BOX, "periodic": [0]}):
            with pytest.raises(ValueError, match="bounds= and periodic= are not those of the teacher"):
                ConsistentSamplerDistiller(teacher, **options).fit(three)

    @pytest.mark.slow
    def test_a_teacher_fitted_on_the_way_by_the_students_parameters(self):
        student = ConsistentSamplerDistiller(n_features=3, bounds=BOX, periodic=[0, 1], max_time=4).fit(three)
        assert student.teacher_.periodic == [0, 1] and np.array_equal(
            student.seam_, student.teacher_.seam_, equal_nan=True
        )

    def test_a_warm_start_keeps_the_seam_and_refuses_another_circle(self):
        options = {"n_features": 1, "bounds": (0, TURN), "max_iter": 2}
        sampler = make(KINDS[0], periodic=[0], warm_start=True, **options).fit(lambda x: -2 * torch.cos(x[:, 0]))
        seam = sampler.seam_
        assert np.array_equal(sampler.fit(lambda x: -2 * torch.cos(x[:, 0])).seam_, seam)
        with pytest.raises(ValueError, match="a fit with other bounds"):
            sampler.set_params(periodic=None).fit(lambda x: -2 * torch.cos(x[:, 0]))

    @pytest.mark.slow
    def test_several_fits_keep_the_seam_of_the_best(self):
        sampler = make(KINDS[0], n_features=1, bounds=(0, TURN), periodic=[0], max_iter=2, n_init=2)
        sampler.fit(lambda x: -2 * torch.cos(x[:, 0]))
        assert np.array_equal(sampler.seam_, sampler._energy.bounds.seam.numpy())

    def test_from_the_prior_it_stays_at_the_bound(self):
        sampler = DiffusionSampler(1, bounds=(1, 1 + TURN), periodic=[0], start="prior", n_steps=4, max_iter=2)
        assert sampler.fit(lambda x: -torch.cos(x[:, 0])).seam_.tolist() == [1]


class TestFamilies:
    @pytest.mark.slow
    def test_a_mode_that_wanders_across_the_seam(self):
        """von Mises densities with modes at contexts around 0, whose log Z is known: 5.6 standard errors each."""

        def energy(x, c):
            return -KAPPA * torch.cos(x[:, 0] - c[:, 0])

        sampler = ConsistentSamplerScratch(1, bounds=(0, TURN), periodic=[0], max_iter=60, random_state=0)
        contexts = np.random.RandomState(0).uniform(-0.5, 0.5, (200, 1))
        sampler.set_params(start__n_particles=2000).fit(energy, contexts=contexts)
        assert abs(sampler.seam_[0] - math.pi) < 1.2
        new = np.array([[-0.4], [0.0], [0.4]])
        for c, weighted in zip(new, sampler.sample_weighted(5000, context=new, random_state=0), strict=True):
            assert abs(weighted.log_evidence - math.log(TURN * ive(0, KAPPA)) - KAPPA) < Z * weighted.log_evidence_se
            X = weighted.samples[:5]
            found = sampler.log_prob(X + TURN, context=c)
            assert np.allclose(found, sampler.log_prob(X, context=np.tile(c, (5, 1))), atol=1e-3)

    def test_from_simulated_pairs(self):
        rng = np.random.RandomState(0)
        contexts = rng.uniform(-0.5, 0.5, (300, 1))
        draws = contexts + vonmises.rvs(4, size=(300, 1), random_state=rng) - 3 * TURN
        sampler = ConsistentSamplerScratch(1, bounds=(0, TURN), periodic=[0], max_iter=5, random_state=0)
        sampler.fit(lambda x, c: -4 * torch.cos(x[:, 0] - c[:, 0]), contexts=contexts, draws=draws)
        assert abs(sampler.seam_[0] - math.pi) < 1.2
