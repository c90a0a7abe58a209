"""Triangular maps: their inverse and gradients, what they make of skew densities, and where a fit takes them."""

import copy
import itertools
import math
import pickle
import time

import numpy as np
import pytest
import torch
from bounds_of_gaussians import gaussian_bound
from cases import slow
from hypothesis import given, settings
from hypothesis import strategies as st

import skcds
from skcds import (
    Consistency,
    ConsistentSamplerDistiller,
    ConsistentSamplerScratch,
    DiffusionSampler,
    Pilot,
    SelfConsistency,
)
from skcds._support.errors import Spent
from skcds.density.energy import Energy
from skcds.density.standardize import Standardization, StandardizedTarget
from skcds.density.triangular import (
    DEGREES,
    GROUP,
    LARGEST_BEND,
    PART_ROWS,
    TriangularMap,
    features,
    n_pairs,
    n_triples,
)  # fmt: skip
from skcds.explore import one_mode
from skcds.explore import triangular as triangular_module
from skcds.explore.laplace import laplace_standardization
from skcds.explore.pilot import run_pilot
from skcds.explore.result import PilotResult
from skcds.explore.skewness import best_gaussian
from skcds.explore.triangular import (
    LARGEST_GAIN,
    LARGEST_MOMENT,
    LEAST_SIGNAL,
    WORTH,
    Moments,
    best_triangular,
    residual_moments,
    stepped,
)  # fmt: skip
from skcds.specifications import Climbs, HighDimension, Marginals, Race, Tempering, Training, Triangular
from skcds.targets import BayesianLogisticRegression
from skcds.train.particles import effective_share

D = 22  # from 21 on a fit looks for such a map
QUICK = {
    "tempering": Tempering(n_moves=3), "climbs": Climbs(n_after=4, n_further=0),
    "race": Race(n_particles=300, scales=(1.0, 3.0), inflations=(1.0,), n_modes=0),
}  # fmt: skip
TRAINING = Training(marginals=Marginals(n_iter=50, n_refits=0), n_judged=2000)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def any_map(d, generator, size=0.3, degree=2):
    found, below = TriangularMap(d, degree), torch.ones(d, d, dtype=torch.float64).tril(-1)
    found.location, found.log_scale = size * normal(generator, d), size * normal(generator, d)
    found.bend = (size * normal(generator, d)).clamp(-LARGEST_BEND, LARGEST_BEND)
    found.regression, found.slope = (size * normal(generator, d, d) * below for _ in range(2))
    before = below[:, :, None] * below[:, None, :]
    curvature = size * normal(generator, d, d, d) / d
    found.curvature = (curvature + curvature.mT) * before
    if degree == 3:
        spread = size * normal(generator, d, d, d) / d
        found.spread, found.cubic = (spread + spread.mT) * before, size * normal(generator, len(found.cubic)) / d
    return found


def symmetric(tensor):
    """The mean over all orders of the axes."""
    orders = list(itertools.permutations(range(tensor.ndim)))
    return sum(tensor.permute(order) for order in orders) / len(orders)


def of_triples(fourth):
    """A symmetric tensor (d, d, d, d) in the order of the moments' triples."""
    d = len(fourth)
    pairs = [torch.tril_indices(c + 1, c + 1) for c in range(d)]
    return torch.cat([fourth[:, c, b, a] for c, (b, a) in enumerate(pairs)], 1)


def quartic(fourth):
    """An energy: that of a standard normal density minus quartic Hermite polynomials."""

    def energy(z):
        t = fourth.to(z)
        of_squares, of_all = torch.einsum("ijkk->ij", t), torch.einsum("iikk->", t)
        he4 = torch.einsum("ijkl,ni,nj,nk,nl->n", t, z, z, z, z) - 6 * ((z @ of_squares) * z).sum(1) + 3 * of_all
        return 0.5 * z.square().sum(1) - he4 / 24

    return energy


def regression(d=D, n=60, seed=0):
    """A posterior that is skew along directions of its data; some observations for a coefficient, so that it is."""
    generator = np.random.default_rng(seed)
    X = generator.standard_normal((n, d - 1))
    y = generator.random(n) < 1 / (1 + np.exp(-X @ generator.standard_normal(d - 1)))
    return BayesianLogisticRegression(X, y.astype(float))


def gaussian_of(energy, seed=0):
    return best_gaussian(energy, laplace_standardization(energy), seeded(seed))[0]


def ess(energy, standardization, n=4000, seed=1):
    z = normal(seeded(seed), n, energy.n_features)
    return effective_share(StandardizedTarget(energy, standardization).log_prob(z) + 0.5 * z.square().sum(1))


class TestMap:
    @settings(max_examples=20, deadline=None)
    @given(st.integers(0, 10**6), st.integers(1, GROUP + 3), st.sampled_from(DEGREES))
    def test_inverse_determinant_and_gradient(self, seed, d, degree):
        """Of any such map, by `autograd`."""
        generator = seeded(seed)
        found = any_map(d, generator, degree=degree)
        z = (2 * normal(generator, 6, d)).requires_grad_()
        y, log_det, pull_back = found.call_and_pull_back(z)
        assert torch.allclose(found(z), y)
        jacobian = torch.stack([torch.autograd.functional.jacobian(lambda p: found(p[None])[0], point) for point in z])
        assert torch.allclose(torch.linalg.slogdet(jacobian)[1], log_det, atol=1e-9)
        assert (jacobian.triu(1) == 0).all()
        (gradient,) = torch.autograd.grad((y.sin().sum(1) + log_det).sum(), z)
        with torch.no_grad():
            assert torch.allclose(found.inverse(y), z, atol=1e-8)
            assert torch.allclose(pull_back(y.cos()), gradient, atol=1e-9)

    @pytest.mark.parametrize("degree", DEGREES)
    def test_untrained_it_is_the_identity(self, degree):
        z = normal(seeded(), 5, 4)
        y, log_det, pull_back = TriangularMap(4, degree).call_and_pull_back(z)
        assert torch.equal(y, z) and (log_det == 0).all() and torch.equal(pull_back(z), z)

    def test_cubics_are_polynomials_of_the_features_before(self):
        """By a loop over all of their terms."""
        d, generator = GROUP + 2, seeded()
        found, z = TriangularMap(d, 3), normal(generator, 7, d)
        found.cubic = normal(generator, len(found.cubic))
        p, expected = features(z)[0], z.clone()
        for c, numbers in enumerate(found.cubics()):
            for i, b in itertools.product(range(c + 1, d), range(c + 1)):
                for a in range(b + 1):
                    expected[:, i] += numbers[i - c - 1, n_pairs(b) + a] * p[:, c] * p[:, b] * p[:, a]
        assert torch.allclose(found(z), expected)

    def test_of_a_higher_degree_it_is_the_same(self):
        found, z = any_map(4, seeded()), normal(seeded(1), 9, 4)
        assert found.of_degree(3).degree == 3 and torch.allclose(found.of_degree(3)(z), found(z))

    def test_points_are_taken_in_parts(self):
        found, z = any_map(3, seeded(), degree=3), normal(seeded(1), PART_ROWS + 5, 3)
        y, log_det, pull_back = found.call_and_pull_back(z)
        last = found.call_and_pull_back(z[-5:])
        assert torch.allclose(y[-5:], last[0]) and torch.allclose(log_det[-5:], last[1])
        assert torch.allclose(pull_back(y)[-5:], last[2](y[-5:])) and torch.allclose(found.inverse(y), z)

    @pytest.mark.parametrize("degree", DEGREES)
    def test_far_away(self, degree):
        """Features level off, so that points 1000 standard deviations out stay finite, and come back."""
        found, z = any_map(5, seeded(), degree=degree), 1000 * normal(seeded(1), 50, 5)
        y, log_det, pull_back = found.call_and_pull_back(z)
        assert y.isfinite().all() and log_det.isfinite().all() and pull_back(z).isfinite().all()
        assert torch.allclose(found.inverse(y), z, rtol=1e-6)

    def test_features_have_unit_variance(self):
        nodes = torch.linspace(-10, 10, 20_001, dtype=torch.float64)
        weights = (-0.5 * nodes**2).exp() / (-0.5 * nodes**2).exp().sum()
        assert float((weights * features(nodes)[0] ** 2).sum()) == pytest.approx(1, abs=1e-6)

    @pytest.mark.parametrize("degree", DEGREES)
    def test_in_front_of_the_other_parts(self, degree):
        """Of a Gaussian with a heavy tail, by `autograd`."""
        generator = seeded(3)
        width = torch.tensor([0.5, torch.inf, 2.0], dtype=torch.float64)
        standardization = Standardization.from_moments(
            normal(generator, 3), torch.eye(3) + 0.5, (normal(generator, 3), width)
        ).with_triangular(any_map(3, generator, degree=degree))
        z = normal(generator, 6, 3).requires_grad_()
        x, log_det, pull_back = standardization.call_and_pull_back(z)
        (gradient,) = torch.autograd.grad((x.sin().sum(1) + log_det).sum(), z)
        with torch.no_grad():
            assert torch.allclose(standardization(z), x) and torch.allclose(standardization.inverse(x), z, atol=1e-8)
            assert torch.allclose(pull_back(x.cos()), gradient, atol=1e-8)
        assert standardization.config == {"full": True, "triangular": True} | ({"degree": 3} if degree == 3 else {})
        assert standardization.with_triangular(None).config == {"full": True}


class TestMoments:
    @pytest.mark.parametrize("seed", [0, *slow(1, 2)])
    def test_of_a_cubic(self, seed):
        """The log density is -|z|^2 / 2 and cubic Hermite polynomials. All moments are their coefficients.

        Features level off, which takes up to a ninth of a coefficient away. The standard error is at most .003: .02 is
        six of them, and half a typical coefficient away from none.
        """
        d, generator = 4, seeded(seed)
        third = symmetric(0.2 * normal(generator, d, d, d))
        second = 0.1 * normal(generator, d, d)
        second, mean = second + second.T, 0.1 * normal(generator, d)

        def cubic(z):
            t, s, m = third.to(z), second.to(z), mean.to(z)
            he3 = torch.einsum("ijk,ni,nj,nk->n", t, z, z, z) - 3 * torch.einsum("ijj,ni->n", t, z)
            return 0.5 * z.square().sum(1) - z @ m - 0.5 * ((z @ s) * z).sum(1) - he3 / 6

        found = residual_moments(Energy(cubic, d), Standardization(d), 200_000, generator)
        for moment, expected in zip((found.mean, found.second, found.third), (mean, second, third), strict=True):
            assert torch.allclose(moment, expected, rtol=0.12, atol=0.02)
        assert not torch.allclose(found.third, 0 * third, rtol=0.12, atol=0.02)

    @pytest.mark.parametrize("seed", [0, *slow(1, 2)])
    def test_of_a_quartic(self, seed):
        """The log density is -|z|^2 / 2 and quartic Hermite polynomials, whose coefficients the moments are.

        Features level off, which takes up to a fifth of a coefficient away. The standard error of a coefficient is at
        most .004: .03 is seven of them.
        """
        d, generator = 4, seeded(seed)
        fourth = symmetric(0.2 * normal(generator, d, d, d, d))
        found = residual_moments(Energy(quartic(fourth), d), Standardization(d), 200_000, generator, 3)
        assert found.fourth.shape == (d, n_triples(d))
        assert torch.allclose(found.fourth.double(), of_triples(fourth), rtol=0.2, atol=0.03)
        assert not torch.allclose(found.fourth.double(), 0 * of_triples(fourth), rtol=0.2, atol=0.03)
        assert found.noise < 0.05 and float(found.third.abs().max()) < 0.03

    def test_noise_alone(self):
        """Of a Gaussian that is a tenth narrower there is no signal of degree 4."""
        energy = Energy(lambda x: 0.6 * x.square().sum(1), 8)
        found = residual_moments(energy, Standardization(8), 1000, seeded(), 3)
        assert 1 < found.noise <= (1 / LEAST_SIGNAL - 1) / 4

    @pytest.mark.parametrize("seed", [0, *slow(1, 2)])
    def test_a_whole_step_takes_small_moments_away(self, seed):
        """Of a quartic, by its coefficients, but for those in which the last coordinate has the third power.

        What is left is of second order. Half of it would be without the log scales, or with another factor of these
        or the locations.
        """
        d, generator = 4, seeded(seed)
        fourth = symmetric(0.15 * normal(generator, d, d, d, d))
        zeros = [torch.zeros([d] * k, dtype=torch.float64) for k in (1, 2, 3)]
        moved = stepped(TriangularMap(d, 3), Moments(*zeros, of_triples(fourth)), gain=1.0)
        energy = Energy(quartic(fourth), d)
        left = residual_moments(energy, Standardization(d).with_triangular(moved), 200_000, generator, 3)
        place = torch.arange(d)
        axes = torch.stack(torch.meshgrid(*[place] * 4, indexing="ij"), -1)
        alone = of_triples(((axes == axes.amax(-1, keepdim=True)).sum(-1) < 3).double())
        total, rest = (float((part * alone).square().sum()) for part in (of_triples(fourth), left.fourth.double()))
        assert rest < 0.1 * total

    def test_a_step_moves_only_the_last_coordinate_of_a_product(self):
        """Of z_0 z_1 z_2 the coordinate 2 moves, by the product of the others."""
        third = torch.zeros(3, 3, 3, dtype=torch.float64)
        for p in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
            third[p] = 0.1
        zeros = torch.zeros(3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)
        moved = stepped(TriangularMap(3), Moments(*zeros, third), gain=1.0)
        z = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64)
        assert torch.allclose(moved(z), z + torch.tensor([[0.0, 0.0, 0.1]]) * features(torch.ones(1).double())[0] ** 2)


class TestBestTriangular:
    @pytest.mark.parametrize("seed", [0, *slow(1, 2, 3)])
    def test_of_a_regression(self, seed):
        """The bound gains a tenth of a nat and more, 20 standard errors, and the ESS a third of what it lacks."""
        energy = Energy(regression(seed=seed), D)
        gaussian = gaussian_of(energy, seed)
        found, better = best_triangular(energy, gaussian, seeded(seed))
        assert better and found.triangular is not None
        bounds = [gaussian_bound(energy, s, 20_000, seeded(seed))[0] for s in (found, gaussian)]
        assert bounds[0] > bounds[1] + 0.1
        assert 1 - ess(energy, found) < (1 - ess(energy, gaussian)) / 1.5

    @pytest.mark.parametrize("seed", [0, *slow(1, 2, 3)])
    def test_cubics_of_a_regression(self, seed):
        """They take a third and more of what the ESS of the map without them lacks."""
        energy, by = Energy(regression(seed=seed), D), Triangular(n_cubic_steps=0)
        gaussian = gaussian_of(energy, seed)
        cubic, without = (best_triangular(energy, gaussian, seeded(seed), of)[0] for of in (None, by))
        assert cubic.triangular.degree == 3 and without.triangular.degree == 2
        assert 1 - ess(energy, cubic) < (1 - ess(energy, without)) / 1.5

    def test_no_cubics_where_little_is_left(self):
        """Many observations: the map of degree 2 is a hundredth of a nat below log Z."""
        energy = Energy(regression(n=2000), D)
        found, _ = best_triangular(energy, gaussian_of(energy), seeded())
        assert found.triangular is None or found.triangular.degree == 2

    @pytest.mark.parametrize("draws", [0.25, 1.0])
    def test_few_draws_are_all_noise(self, draws):
        """Then the map of degree 2 stays, or one of degree 3 is better than it all the same."""
        energy, gaussian = Energy(regression(), D), gaussian_of(Energy(regression(), D))
        by = Triangular(cubic_draws=draws, cubic_draws_at_least=0.1)
        found, without = (
            best_triangular(energy, gaussian, seeded(), of)[0] for of in (by, Triangular(n_cubic_steps=0))
        )
        assert ess(energy, found) > ess(energy, without) - 0.01

    @pytest.mark.parametrize("gain", [LARGEST_GAIN, 1.0])
    def test_half_steps_lead_back_from_a_wide_gaussian(self, gain, monkeypatch):
        """Of a quarter too wide; whole steps, the negative control, lead away."""
        monkeypatch.setattr(triangular_module, "LARGEST_GAIN", gain)
        energy, by = Energy(regression(), D), HighDimension(n_skew_draws=0)
        gaussian = best_gaussian(energy, laplace_standardization(energy), seeded(), by)[0]
        wide = Standardization.from_moments(gaussian.loc, 1.25**2 * gaussian.covariance)
        found, better = best_triangular(energy, wide, seeded(), Triangular(n_cubic_steps=0))
        bounds = [gaussian_bound(energy, s, 20_000, seeded())[0] for s in (found, gaussian)]
        assert (better and bounds[0] > bounds[1] + 0.1) == (gain < 1)

    @pytest.mark.parametrize("largest", [LARGEST_MOMENT, math.inf])
    def test_no_step_where_the_density_is_far_from_normal(self, largest, monkeypatch):
        """Of wells, points stay near; without the limit, the negative control, steps lead out of all bounds."""
        monkeypatch.setattr(triangular_module, "LARGEST_MOMENT", largest)
        farthest = []

        def wells(x):
            farthest.append(float(x.detach().abs().max()))
            return (x**2 - 4).square().sum(1)

        found, better = best_triangular(Energy(wells, D), Standardization(D), seeded())
        assert not better and found.triangular is None
        assert (max(farthest) < 10) == math.isfinite(largest)

    @pytest.mark.parametrize("seed", range(3))
    def test_not_of_a_gaussian(self, seed):
        """There is nothing to gain, and noise makes what is found worse. Two standard errors: a false alarm of .02."""
        energy = Energy(lambda x: 0.5 * x.square().sum(1), D)
        gaussian = Standardization(D)
        found, better = best_triangular(energy, gaussian, seeded(seed))
        assert found is gaussian and not better

    @pytest.mark.parametrize("n_evals", [0, 2000, 4000, 20_000, math.inf])
    def test_evaluations_are_bounded(self, n_evals):
        energy, by = Energy(regression(), D), Triangular()
        gaussian = gaussian_of(energy)
        before = energy.n_energy_evals
        _, better = best_triangular(energy, gaussian, seeded(), by, n_evals)
        used = energy.n_energy_evals - before
        fewest = by.n_steps * by.fewest_draws + 2 * by.n_compared
        assert used <= n_evals and (used > 0) == better == (n_evals >= fewest)

    @pytest.mark.parametrize(("n", "is_worth_it"), [(60, True), (600, False)])
    def test_of_many_features_it_has_to_be_worth_it(self, n, is_worth_it):
        """A tenth of a nat, and no cubics. Of many observations a small map, the control, gains some hundredths."""
        energy = Energy(regression(n=n), D)
        gaussian = gaussian_of(energy)
        found, better = best_triangular(energy, gaussian, seeded(), Triangular(max_features_of_cubics=D - 1))
        assert better == is_worth_it
        if better:
            assert found.triangular.degree == 2
        else:
            assert best_triangular(energy, gaussian, seeded())[1]

    @pytest.mark.parametrize(
        ("options", "n_draws"), [({}, D * D), ({"most_draws": 300}, 300), ({"most_draws": 2}, D * D // 4)]
    )
    def test_draws_of_a_step(self, options, n_draws, monkeypatch):
        """As many as are wanted, or the most, or those that have to be affordable; at least 256."""
        drawn = []

        def moments(energy, at, n, *rest):
            drawn.append(n)
            return residual_moments(energy, at, n, *rest)

        monkeypatch.setattr(triangular_module, "residual_moments", moments)
        energy, by = Energy(regression(), D), Triangular(n_steps=1, n_cubic_steps=0, **options)
        best_triangular(energy, gaussian_of(energy), seeded(), by)
        assert drawn == [max(256, n_draws)]

    @pytest.mark.parametrize(("steps", "draws"), [(math.inf, 484), (16.0, 484), (12.0, 363), (7.0, 256), (4.0, None)])
    def test_of_many_features_time_tells_the_draws(self, steps, draws, monkeypatch):
        """For all steps if it is enough, or as few as 256 here, for half of them at least. Small maps do not ask."""
        energy, by, drawn = Energy(regression(), D), Triangular(max_features_of_cubics=D - 1), []

        def moments(energy, at, n, *rest):
            drawn.append(n)
            return residual_moments(energy, at, n, *rest)

        gaussian = gaussian_of(energy)
        monkeypatch.setattr(triangular_module, "residual_moments", moments)
        monkeypatch.setattr(triangular_module._Walk, "seconds_of_step", lambda *_: 2.0)
        _, better = best_triangular(energy, gaussian, seeded(), by, seconds_left=lambda: 2 * steps)
        assert better == bool(drawn) == (draws is not None)
        assert all(n == 2 * (draws // 2) for n in drawn)
        assert best_triangular(energy, gaussian, seeded(), seconds_left=lambda: 2 * steps)[1]

    def test_seconds_of_a_step_are_those_that_it_takes(self, monkeypatch):
        """To a factor of five; a hundred times the draws take more than ten times as long."""
        energy = Energy(regression(80, 100), 80)
        walk = triangular_module._Walk(energy, gaussian_of(energy), seeded(), lambda: math.inf)
        start, zero = time.perf_counter(), TriangularMap(80)
        walk(zero, 1, 20_000)
        taken = time.perf_counter() - start
        foretold = min(walk.seconds_of_step(zero, 20_000) for _ in range(5))
        assert taken / 5 < foretold < 5 * taken
        assert walk.seconds_of_step(zero, 2_000_000) > 10 * foretold

    @pytest.mark.parametrize("by", [Triangular(max_features=D - 1), Triangular(n_steps=0)])
    def test_can_be_left_out(self, by):
        energy = Energy(regression(), D)
        gaussian = gaussian_of(energy)
        assert best_triangular(energy, gaussian, seeded(), by) == (gaussian, False)

    def test_ends_with_the_time_and_with_the_evaluations(self):
        target, calls = regression(), []

        def energy_fn(x):
            calls.append(len(x))
            if sum(calls) > limit[0]:
                raise Spent
            return target(x)

        limit = [math.inf]
        energy = Energy(energy_fn, D)
        gaussian = gaussian_of(energy)
        checked = []
        _, better = best_triangular(
            energy, gaussian, seeded(), seconds_left=lambda: checked.append(0) or 5 - len(checked)
        )
        assert better and len(checked) == 6  # once for the map of degree 3, too
        limit[0] = sum(calls) + 3000
        assert best_triangular(energy, gaussian, seeded()) == (gaussian, False)

    def test_not_where_half_of_its_draws_are_impossible(self):
        target = regression()
        gaussian = gaussian_of(Energy(target, D))
        middle = gaussian(torch.zeros(1, D))[0, 0]
        half = Energy(lambda x: torch.where(x[:, 0] > middle, torch.inf, target(x)), D)
        assert best_triangular(half, gaussian, seeded()) == (gaussian, False)


class TestPilot:
    @pytest.mark.parametrize("seed", [0, *slow(1)])
    def test_it_is_found(self, seed):
        """Beside its particles, which are then closer to normal in third moments, too."""
        energy = Energy(regression(seed=seed), D)
        result, x = run_pilot(energy, 2000, seeded(seed), pilot=Pilot(**QUICK))
        found = result.standardization()
        assert found.triangular is result.triangular is not None
        assert ess(energy, found) > ess(energy, found.with_triangular(None))
        assert abs(float(found.inverse(x).mean())) < 0.1

    def test_a_large_one_is_found(self):
        """In 72 dimensions, where bends along the coordinates are tried first; the ESS is twice theirs, at least."""
        energy, by = Energy(regression(72, 200), 72), {"climbs": Climbs(n_after=2, n_further=0)}
        found = run_pilot(energy, 500, seeded(), pilot=Pilot(**by))[0].standardization()
        none = Triangular(max_features=0)
        without = run_pilot(energy, 500, seeded(), pilot=Pilot(**by, triangular=none))[0].standardization()
        assert found.triangular is not None and found.triangular.degree == 2 and without.triangular is None
        assert ess(energy, found) > 2 * ess(energy, without)

    @pytest.mark.parametrize("is_better", [True, False])
    def test_a_large_one_has_to_be_better_than_a_small_one(self, is_better, monkeypatch):
        """By a tenth of a nat; the Gaussian, which it is compared with first, is worse than both."""
        least = []
        monkeypatch.setattr(one_mode, "is_better", lambda *given: least.append(given[-1]) or is_better)
        by = {"climbs": Climbs(n_after=2, n_further=0)}
        found = run_pilot(Energy(regression(72, 200), 72), 500, seeded(), pilot=Pilot(**by))[0]
        assert least == [WORTH] and (found.triangular is not None) == is_better

    def test_a_large_one_is_not_looked_for_where_a_small_one_does(self, monkeypatch):
        """Where the density is skew along its coordinates alone, as of counts."""
        looked = []
        monkeypatch.setattr(one_mode, "best_triangular", lambda energy, found, *_: looked.append(0) or (found, False))
        counts = torch.from_numpy(np.random.default_rng(0).poisson(3.0, 72)).double()
        skew = Energy(lambda x: (x.exp() - (counts + 1).to(x) * x).sum(1), 72)
        by = {"climbs": Climbs(n_after=2, n_further=0)}
        found = run_pilot(skew, 500, seeded(), pilot=Pilot(**by))[0]
        assert not looked and found.triangular is None
        run_pilot(Energy(regression(72, 200), 72), 500, seeded(), pilot=Pilot(**by))
        assert looked

    def test_not_in_few_dimensions(self):
        """Nor without a gradient: it goes with the best Gaussian."""
        assert run_pilot(Energy(regression(5), 5), 500, seeded(), pilot=Pilot(**QUICK))[0].triangular is None

    def test_its_result_comes_back(self):
        x = normal(seeded(), 20, 4)
        found = Standardization.from_moments(x.mean(0), torch.eye(4)).with_triangular(any_map(4, seeded()))
        result = PilotResult.of(found, 0.0, 1.0, 3)
        for again in (PilotResult.restored(result.state_dict()), pickle.loads(pickle.dumps(result))):
            assert torch.equal(again.standardization().inverse(x), found.inverse(x))


@pytest.fixture(scope="module")
def fitted():
    """One sampler of each kind, in the coordinates of such a map."""
    target, options = regression(), {"random_state": 0, "max_iter": 5}
    start = Pilot(n_particles=500, **QUICK)
    teacher = DiffusionSampler(n_features=D, start=start, n_steps=8, **options).fit(target)
    student = ConsistentSamplerDistiller(teacher, objective=Consistency(training=TRAINING), **options).fit(target)
    by = SelfConsistency(training=TRAINING)
    scratch = ConsistentSamplerScratch(n_features=D, start=start, n_steps=8, objective=by, **options).fit(target)
    for sampler in (teacher, student, scratch):
        assert sampler._model.standardization.triangular is not None
    return teacher, student, scratch


@pytest.mark.parametrize("place", range(3))
class TestSamplers:
    def test_weights_are_exact(self, fitted, place):
        """Their mean is Z: that of the best coordinates, by 200 000 draws."""
        energy = Energy(regression(), D)
        z = normal(seeded(5), 200_000, D)
        known = StandardizedTarget(energy, fitted[0]._model.standardization).log_prob(z) + 0.5 * z.square().sum(1)
        log_z = float(known.logsumexp(0)) - math.log(len(z)) + 0.5 * D * math.log(2 * math.pi)
        weighted = fitted[place].sample_weighted(10_000, random_state=1)
        assert weighted.log_evidence == pytest.approx(log_z, abs=5 * weighted.log_evidence_se + 0.02)

    def test_what_five_iterations_spoil_is_not_taken(self, fitted, place):
        """The map of before, the identity, has an ESS of some .75 in these coordinates; that of after one of .02."""
        assert place == 0 or fitted[place].sample_weighted(4000, random_state=1).ess > 2000

    def test_files_and_pickles(self, fitted, place, tmp_path):
        sampler, target = fitted[place], regression()
        sampler.save(tmp_path / "sampler.skcds")
        x = sampler.sample(50, random_state=3)
        for other in (skcds.load(tmp_path / "sampler.skcds"), pickle.loads(pickle.dumps(sampler)), copy.copy(sampler)):
            assert np.array_equal(x, other.sample(50, random_state=3, **({"energy_fn": target} if place != 1 else {})))
        if place != 1:
            loaded = skcds.load(tmp_path / "sampler.skcds").pilot_.triangular
            assert torch.equal(loaded.curvature, sampler.pilot_.triangular.curvature)

    def test_densities_at_any_points(self, fitted, place):
        if place:
            x, log_q = fitted[place].sample(200, random_state=3, return_log_density=True)
            assert np.allclose(fitted[place].score_samples(x), log_q, atol=1e-2)

    def test_a_warm_start_goes_on(self, fitted, place):
        if place != 1:
            again = copy.deepcopy(fitted[place]).set_params(warm_start=True, max_iter=2).fit(regression())
            assert again._model.standardization.triangular is not None


@pytest.mark.parametrize("cls", [ConsistentSamplerScratch, *slow(DiffusionSampler)])
def test_a_fit_goes_on_from_its_checkpoint(cls, tmp_path):
    """After an error of the energy in training, with the map that the pilot found."""
    calls = []

    def energy(x, last=math.inf):
        calls.append(len(x))
        if len(calls) > last:
            raise RuntimeError("stop")
        return regression()(x)

    options = {
        "n_features": D,
        "start": Pilot(n_particles=500, **QUICK),
        "n_steps": 8,
        "random_state": 0,
        "max_iter": 6,
    }
    if cls is ConsistentSamplerScratch:
        options["objective"] = SelfConsistency(training=TRAINING)
    whole = cls(**options).fit(energy)
    last, path = len(calls) - 2, tmp_path / "fit"
    calls.clear()
    with pytest.raises(Exception, match="stop"):
        cls(**options).fit(lambda x: energy(x, last), checkpoint=path)
    again = cls(**options).fit(regression(), checkpoint=path)
    assert torch.equal(again.pilot_.triangular.curvature, whole.pilot_.triangular.curvature)
    assert np.array_equal(whole.sample(20, random_state=0), again.sample(20, random_state=0))
