"""The pilot against closed forms at many scales, and sabotaged pilots that must be found out.

Errors of sequential Monte Carlo have no closed form. Where bounds are statistical, the spread of correct runs was
measured over 40 seeds, and the bound is at least 5.5 times that spread: 4e-8 for a normal law, below 1e-6 for the small
skewness seen.
"""

import math
import warnings

import numpy as np
import pytest
import torch
from cases import crossed, slow
from samplers import SHORT
from scipy import stats

from skcds import Pilot
from skcds.density.energy import Energy, InvalidEnergyError
from skcds.density.standardize import Standardization, StandardizedTarget
from skcds.explore import one_mode, propriety, smc, tempered_run
from skcds.explore.pilot import run_pilot
from skcds.explore.smc import temper
from skcds.explore.store import Store
from skcds.explore.tempered_run import finest_scale
from skcds.specifications import Balance, Centring, Climbs, HighDimension, Race, Tails, Tempering
from skcds.targets import Funnel, GaussianMixture, gmm9
from skcds.train import particles as mcmc
from skcds.train.budget import Budget
from skcds.train.particles import Population, effective_share

N = 2000  # particles
LOG_Z_BOUND = 0.14  # standard deviations of log Z are .016 to .022 on the Gaussians here; finds Z that is 15 % off
MOMENT_BOUND = 7.0  # in standard errors of N independent draws, of which .7 to 1.25 were seen; finds .16 of a scale
FEW = Balance(max_components=10)  # of which fifty take longer to fit than all else
COVARIANCES = {1: np.array([[0.7]]), 2: np.array([[1.0, 0.6], [0.6, 0.5]])}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class GaussianEnergy:
    """Unnormalised Gaussian in the coordinates of whoever asks: NumPy functions leave the gradient unknown."""

    def __init__(self, scale=1.0, loc=0.0, d=2, gradient=True):
        self.cov = scale**2 * COVARIANCES[d]
        self.loc, self.n_features, self.gradient = np.full(d, float(loc)), d, gradient
        self.precision = np.linalg.inv(self.cov)
        self.log_evidence = 0.5 * np.linalg.slogdet(2 * np.pi * self.cov)[1]

    def __call__(self, x):
        if not self.gradient:
            centred = np.asarray(x) - self.loc
            return 0.5 * ((centred @ self.precision) * centred).sum(1)
        centred = x - torch.tensor(self.loc, dtype=x.dtype)
        return 0.5 * ((centred @ torch.tensor(self.precision, dtype=x.dtype)) * centred).sum(1)

    def whiten(self, x):
        return np.linalg.solve(np.linalg.cholesky(self.cov), (x - self.loc).T).T


def make_energy(energy_fn, d=2):
    return Energy(energy_fn, d, generator=seeded(0))


def run(energy_fn, d=2, n=N, seed=0, **stages):
    return run_pilot(make_energy(energy_fn, d), n, seeded(seed), pilot=Pilot(**{"balance": FEW} | stages))


def is_standard_normal(u):
    """Means and second moments of whitened particles, within MOMENT_BOUND standard errors."""
    n, d = u.shape
    second, exact_error = u.T @ u / n - np.eye(d), np.sqrt((1 + np.eye(d)) / n)
    return bool(
        (np.abs(u.mean(0)) < MOMENT_BOUND / np.sqrt(n)).all() and (np.abs(second) < MOMENT_BOUND * exact_error).all()
    )


GAUSSIANS = {
    "narrow": {"scale": 1e-3},
    "unit": {},
    "wide": {"scale": 50.0},
    "shifted": {"loc": 30.0},
    "one feature": {"scale": 3.0, "loc": -5.0, "d": 1},
    "without gradient": {"scale": 50.0, "loc": 30.0, "gradient": False},
}


@pytest.mark.parametrize("name", ["narrow", "unit", "wide", "one feature", *slow("shifted", "without gradient")])
def test_gaussians(name):
    energy_fn = GaussianEnergy(**GAUSSIANS[name])
    d = energy_fn.n_features
    energy = make_energy(energy_fn, d)
    assert energy.has_gradient == energy_fn.gradient
    result, x = run_pilot(energy, N, seeded(1), pilot=Pilot(balance=FEW))
    assert x.shape == (N, d) and x.dtype == torch.float64
    assert abs(result.log_evidence - energy_fn.log_evidence) < LOG_Z_BOUND
    assert is_standard_normal(energy_fn.whiten(x.numpy()))
    np.testing.assert_allclose(result.loc, x.mean(0))
    np.testing.assert_allclose(result.covariance, np.cov(x.numpy().T).reshape(d, d), rtol=1e-6)  # jitter of 1e-8
    assert result.loc.dtype == result.covariance.dtype == np.float64
    assert result.starting_scale >= min(Race.scales) and result.n_temperatures >= 1


def standardized(target, cov):
    """What a perfect race would hand on: the density in coordinates of its own moments."""
    affine = Standardization.from_moments(torch.zeros(2, dtype=torch.float64), torch.tensor(cov))
    return StandardizedTarget(make_energy(target), affine, torch.float32)


def temper_mixture(mixture, n, seed=0):
    """Mode counts of tempered particles, from their moments as the pilot's last run would find them."""
    m, p = mixture.means, mixture.mode_masses
    target = standardized(mixture, mixture.sd**2 * np.eye(2) + (m - p @ m).T @ np.diag(p) @ (m - p @ m))
    target.standardization.loc = torch.tensor(p @ m)
    found = temper(target, n, Tempering.inflation, Tempering.n_moves, seeded(seed))
    z, log_evidence = found.z, found.log_evidence
    x = target.standardization(z).numpy()
    return x, mixture.modes(x), log_evidence


def right_masses(labels, mixture):
    """Counts within 9 binomial standard errors; their errors were 1.3 to 1.5 of these, 1.6 times 5.5 is 9."""
    n, p = len(labels), mixture.mode_masses
    counts = np.bincount(labels, minlength=len(p))
    return bool((np.abs(counts - n * p) < 9 * np.sqrt(n * p * (1 - p))).all())


UNEVEN = GaussianMixture([[-6.0, 0.0], [6.0, 0.0]], 0.7, weights=[1, 9])


class TestModes:
    @pytest.mark.parametrize("mixture, n", [*slow((gmm9(), 10_000)), (UNEVEN, 4 * N)])
    def test_masses(self, mixture, n):
        """The mass of each of nine modes is found to 25 %, of the rare mode of two to 30 %; log Z, whose standard
        deviations are .014 and .03, as on the Gaussians."""
        _, labels, log_evidence = temper_mixture(mixture, n)
        assert right_masses(labels, mixture)
        assert abs(log_evidence - mixture.log_evidence) < 0.17
        # negative controls: a mode is missing, or two thirds of it
        assert not right_masses(np.where(labels == 0, 1, labels), mixture)
        assert not right_masses(np.where((labels == 0) & (np.arange(n) % 3 > 0), 1, labels), mixture)

    def test_no_reweighting_is_found(self, monkeypatch):  # negative control
        monkeypatch.setattr(smc, "systematic_index", lambda log_weights, n, generator: torch.arange(n))
        _, labels, _ = temper_mixture(UNEVEN, N)
        assert not right_masses(labels, UNEVEN)

    def test_the_whole_pilot_finds_all_modes(self):
        """One race in 25 is won by too narrow a start, whose lopsided scouts make the mass errors of the last run up to
        6.6 binomial ones. Even then a mode keeps a quarter of its share, 5.7 standard errors below all of it."""
        target, n = gmm9(), 20_000
        _, x = run(target, n=n)
        counts = np.bincount(target.modes(x.numpy()), minlength=9)
        assert (counts > n / 9 / 4).all()
        # distances from the means are chi-square of two degrees: the widths of the modes, whatever their masses
        squares = ((x.numpy() - target.means[target.modes(x.numpy())]) ** 2).sum(1) / target.sd**2
        assert abs(squares.mean() - 2) < MOMENT_BOUND * 2 / np.sqrt(n)


class TestNextTemperature:
    gap = 10 * torch.randn(N, dtype=torch.float64, generator=seeded(0))

    @pytest.mark.parametrize("beta", [0.0, 0.1, 0.7])
    def test_keeps_the_share(self, beta):
        """Bisection to the last bit; a chain of such steps ends at 1."""
        following = smc.next_beta(self.gap, beta)
        assert beta < following < 1
        assert effective_share((following - beta) * self.gap) == pytest.approx(Tempering.min_ess, rel=1e-9)
        assert Tempering.min_ess >= 0.5  # less than one particle in two is lost to resampling at a temperature

    def test_ends(self):
        assert smc.next_beta(self.gap, 0.99) == 1.0
        assert smc.next_beta(torch.zeros(9), 0.0) == 1.0

    def test_never_stalls(self):
        """Where one particle has all the weight even for the least step."""
        gap = torch.tensor([0.0, *[-1e300] * 99], dtype=torch.float64)
        assert 0.5 < smc.next_beta(gap, 0.5) <= 1


@pytest.mark.filterwarnings("ignore:energy_fn raised ValueError:RuntimeWarning")
@pytest.mark.parametrize("max_raised, found", [(0.1, False), (0.9, True)])
def test_a_run_whose_first_particles_raise_is_given_up(max_raised, found):
    """Beyond 30 the function raises, at three in four of them; each costs calls."""

    def energy_fn(x):
        if (x[:, 0].abs() > 30).any():
            raise ValueError
        return 0.5 * ((x / 100) ** 2).sum(1)

    target = StandardizedTarget(make_energy(energy_fn), Standardization(2))
    run = temper(target, 50, 100.0, 1, seeded(0), max_raised=max_raised)
    assert (run.log_evidence > -math.inf) == found and (run.n_temperatures > 0) == found


class TestSabotage:
    """Negative controls: without one of its parts a run from a 1000 times too wide start gets a Gaussian wrong."""

    energy_fn = GaussianEnergy(scale=1e-3)
    bound = 0.3  # standard deviation of log Z on this way: .05

    def judge(self):
        target = StandardizedTarget(make_energy(self.energy_fn), Standardization(2))
        found = temper(target, N, 1.0, Tempering.n_moves, seeded(0))
        z, log_evidence = found.z, found.log_evidence
        u = self.energy_fn.whiten(z.numpy())
        return is_standard_normal(u), abs(log_evidence - self.energy_fn.log_evidence), len(np.unique(u, axis=0))

    def test_nothing_missing(self):
        right, error, n_different = self.judge()
        assert right and error < self.bound and n_different == N

    def test_no_moves(self, monkeypatch):
        monkeypatch.setattr(Population, "move", lambda self, n_moves: None)
        right, _, n_different = self.judge()
        assert not right and n_different < 100

    def test_moves_at_twice_the_temperature(self, monkeypatch):
        def hot(log_prob_and_score, x, log_prob, score, step, generator):
            def halved(y):
                log_prob_y, score_y = log_prob_and_score(y)
                return log_prob_y / 2, score_y

            x, log_prob, score, accepted = correct(halved, x, log_prob / 2, score, step, generator)
            return x, 2 * log_prob, score, accepted

        correct = mcmc.mala_step
        monkeypatch.setattr(mcmc, "mala_step", hot)
        right, error, _ = self.judge()
        assert not right and error > self.bound


def half_plane(x):
    return torch.where(x[:, 0] > 0, 0.5 * (x**2).sum(1), torch.inf)


def box(half_width, gradient):
    def energy_fn(x):
        if gradient:
            return torch.where((x.abs() < half_width).all(1), 0.0 * x.sum(1), torch.inf)
        return np.where((np.abs(np.asarray(x)) < half_width).all(1), 0.0, np.inf)

    return energy_fn


class TestSupport:
    @pytest.mark.slow
    def test_half_plane(self):
        result, x = run(half_plane)
        assert abs(result.log_evidence - math.log(math.pi)) < LOG_Z_BOUND
        x = x.numpy()
        assert (x[:, 0] > 0).all()
        assert abs(x[:, 0].mean() - math.sqrt(2 / math.pi)) < MOMENT_BOUND * math.sqrt((1 - 2 / math.pi) / N)
        assert abs(x[:, 1].mean()) < MOMENT_BOUND / math.sqrt(N)

    @pytest.mark.parametrize(
        "half_width, gradient, seed",
        crossed([(0.04, True, 1)], [0.5, 0.04, 1e-3], [True, False], range(4)),
    )
    def test_box(self, half_width, gradient, seed):
        """Uniform in a box which few or none of the scouts meet at their starting scales. Kolmogorov distances are
        .009 to .03, twice the bound for N independent draws; log Z has a standard deviation of .04."""
        result, x = run(box(half_width, gradient), seed=seed)
        u = x.numpy() / half_width
        assert (np.abs(u) < 1).all()
        assert abs(result.log_evidence - 2 * math.log(2 * half_width)) < 0.25
        for coordinate in u.T:
            assert stats.kstest(coordinate, "uniform", args=(-1, 2)).statistic < 2 * math.sqrt(math.log(2e6) / (2 * N))

    def test_nothing_is_found(self):
        with pytest.raises(
            InvalidEnergyError,
            match=r"every point that the pilot tried, .* for s from 1e-07 to 100, .*; shift or scale",
        ):
            run(lambda x: torch.where(x[:, 0] > 1e9, 0.5 * (x**2).sum(1), torch.inf))

    def test_invalid_values_far_out(self):
        """Wide starts fail, with more than half of their points invalid; the race goes on without them."""

        def energy_fn(x):
            return torch.where(x.abs().amax(1) < 8, 0.5 * (x**2).sum(1), torch.nan)

        with pytest.warns(RuntimeWarning, match="treated as outside the support"):
            result, _ = run(energy_fn)
        assert abs(result.log_evidence - math.log(2 * math.pi)) < LOG_Z_BOUND
        assert result.starting_scale < 30


class TestManners:
    short = {"race": Race(scales=(3.0, 10.0))}

    def test_is_reproducible(self):
        (first, x), (second, y), (_, other) = (
            run(GaussianEnergy(), n=200, seed=seed, **self.short) for seed in (3, 3, 4)
        )
        assert torch.equal(x, y) and not torch.equal(x, other)
        assert first.log_evidence == second.log_evidence and first.starting_scale == second.starting_scale
        np.testing.assert_array_equal(first.loc, second.loc)
        np.testing.assert_array_equal(first.covariance, second.covariance)

    def test_leaves_the_global_states_alone(self):
        before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            run(GaussianEnergy(), n=200, **self.short)
        assert torch.equal(torch.get_rng_state(), before)
        np.testing.assert_array_equal(np.random.get_state()[1], numpy_before)

    def test_diagonal_covariance_in_high_dimension(self, monkeypatch):
        energy_fn = GaussianEnergy()
        monkeypatch.setattr(one_mode, "laplace_away_from_seams", lambda *args: None)  # as where no mode is found
        high = {"high_dimension": HighDimension(n_features=1), "tempering": Tempering(full_covariance=1)}
        result, x = run(energy_fn, **self.short, **high)
        np.testing.assert_allclose(result.covariance, x.numpy().var(0, ddof=1))
        assert abs(result.log_evidence - energy_fn.log_evidence) < LOG_Z_BOUND
        assert is_standard_normal(energy_fn.whiten(x.numpy()))

    def test_evaluates_in_fast_precision(self):
        """The runs; what is looked at beside them, some thousands of points, is looked at in double."""
        rows = {torch.float32: 0, torch.float64: 0}

        def energy_fn(x):
            rows[x.dtype] += len(x)
            return 0.5 * (x**2).sum(1)

        run_pilot(make_energy(energy_fn), 200, seeded(0))
        assert rows[torch.float64] < 10_000 < 0.2 * rows[torch.float32]


class TestFinestScale:
    n = 4000

    def population(self, sd, gradient=True, n_moves=0):
        sd = np.asarray(sd)

        def energy_fn(x):
            x = x if gradient else np.asarray(x)
            return 0.5 * ((x / (torch.tensor(sd, dtype=x.dtype) if gradient else sd)) ** 2).sum(1)

        x = torch.tensor(sd) * torch.randn(self.n, len(sd), dtype=torch.float64, generator=seeded(0))
        particles = Population(
            StandardizedTarget(make_energy(energy_fn, len(sd)), Standardization(len(sd))), x, seeded(1)
        )
        particles.move(n_moves)
        return particles

    def test_gaussian(self):
        """Its standard deviations: the root-mean-square score is known to sqrt(1 / 2n), and 5.5 of it are 6 %."""
        scale = finest_scale(self.population([1.0, 0.1, 0.003])).numpy()
        np.testing.assert_array_less(np.abs(scale / np.array([1.0, 0.1, 0.003]) - 1), 5.5 * np.sqrt(0.5 / self.n))

    def test_is_at_most_one(self):
        assert (finest_scale(self.population([50.0, 0.1])) <= 1).all()
        assert finest_scale(self.population([50.0, 0.1]))[0] == 1

    def test_dtype(self):
        particles = self.population([1.0, 0.1])
        particles.replace(particles.x.float())
        assert finest_scale(particles).dtype == torch.float32

    @pytest.mark.parametrize("d", [2, 8])
    def test_without_gradient(self, d):
        """A rule of thumb: the acceptance that is best in high dimension puts it within a factor of 1.5 here."""
        scale = finest_scale(self.population([0.01] * d, gradient=False, n_moves=100))
        assert scale.shape == (d,) and (scale == scale[0]).all()
        assert 1 / 1.5 < scale[0] / 0.01 < 1.5

    def test_without_gradient_follows_the_scale(self):
        """To 10 %: the step size wanders by a percent or two about the same value."""
        wide, narrow = (finest_scale(self.population([sd, sd], False, 100))[0] for sd in (0.1, 0.001))
        assert wide / narrow == pytest.approx(100, rel=0.1)


class TestHeavyTails:
    """Neal's funnel, whose log Z is 0 and whose nine other coordinates have a kurtosis of tens and hundreds."""

    def run(self, **stages):
        few = {"balance": FEW, "climbs": Climbs(n_before=4, n_after=4, n_further=0), "race": Race(scales=(1.0, 3.0))}
        few["centring"] = Centring(max_features=0)  # which has the funnel without any tails
        result, x = run_pilot(make_energy(Funnel(), 10), 2000, seeded(0), pilot=Pilot(**few | stages))
        z = result.standardization().inverse(x)
        return result, x, ((z - z.mean(0)) ** 4).mean(0) / z.var(0) ** 2

    @pytest.mark.slow
    def test_funnel(self):
        result, x, kurtosis = self.run()
        assert np.isinf(result.tail_width[0]) and np.isfinite(result.tail_width[1:]).all()
        assert abs(result.log_evidence) < 0.3 and kurtosis.max() < 6
        assert float(x[:, 0].std()) > 2.2  # 3 is right

    @pytest.mark.slow
    def test_without_taming(self):  # negative control
        result, _, kurtosis = self.run(tails=Tails(kurtosis=1e9))
        assert np.isinf(result.tail_width).all() and (kurtosis[1:] > 6).all()

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("share", [0.02, 0.1])
    def test_a_wide_background_is_tamed(self, share, seed):
        """A peak with a share of its mass in a background twenty times as wide: a Gaussian fits it badly otherwise."""

        def energy(x):
            squares = 0.5 * x.double().square().sum(1)
            wide = torch.full_like(squares, math.log(share / 400)) - squares / 400
            return -torch.logaddexp(math.log(1 - share) - squares, wide)

        few = {"balance": FEW, "climbs": Climbs(n_before=4, n_after=4, n_further=0), "race": Race(scales=(10.0,))}
        result, x = run_pilot(make_energy(energy, 2), 2000, seeded(seed), pilot=Pilot(**few))
        assert np.isfinite(result.tail_width).all()
        outside = float((x.norm(dim=1) > 5).double().mean())
        assert 0.5 * share < outside < 2 * share  # .97 of the background is there

    def test_light_tails_and_rare_modes_are_left_alone(self):
        """One mode of twenty far away looks like a heavy tail to a kurtosis; taming would make it narrow."""
        rare = np.zeros((20, 2))
        rare[0] = 30
        for target in (gmm9(), GaussianMixture(rare, 1.0)):
            result, _ = run_pilot(make_energy(target), 2000, seeded(0))
            assert np.isinf(result.tail_width).all()


def ridge(x):
    """A Gaussian in any dimension, with deviations from .1 to 1."""
    return 0.5 * ((x / torch.linspace(0.1, 1, x.shape[1]).to(x)) ** 2).sum(1)


def limited(evals, energy):
    """A budget of which the pilot may take so many evaluations."""
    return Budget(None, int(evals / Pilot.evals_share), energy)


class TestLimit:
    """A limit of evaluations, of which the pilot may take a share: it plans for it, and ends there at the latest."""

    LIMITS = (2e4, 1e5, 1e6)

    @pytest.mark.parametrize("case, limit", crossed([(0, 2e4), (1, 1e5), (2, 2e4), (2, 1e6)], range(3), LIMITS))
    def test_is_kept(self, case, limit):
        target, d = [(gmm9(), 2), (Funnel(), 10), (ridge, 20)][case]
        energy = make_energy(target, d)
        before = energy.n_energy_evals
        energy.monitor = limited(limit, energy)
        result, x = run_pilot(energy, 20_000, seeded(0), energy.monitor)
        spent = energy.n_energy_evals - before
        assert 0.2 * limit < spent <= limit
        assert x.shape[1] == d and x.isfinite().all() and not math.isinf(result.log_evidence)

    def test_what_a_tenth_still_finds(self):
        """Nine modes, and the moments: masses to a total variation of .1, some three times its spread here."""
        energy = make_energy(gmm9())
        energy.monitor = limited(2e5, energy)
        result, x = run_pilot(energy, 20_000, seeded(0), energy.monitor)
        assert energy.n_energy_evals < 2.5e5  # without a limit 1.9e6
        assert len(x) > 500 and abs(result.log_evidence) < 0.3
        share = np.bincount(gmm9().modes(x.numpy()), minlength=9) / len(x)
        assert 0.5 * np.abs(share - 1 / 9).sum() < 0.1

    @pytest.mark.parametrize("d", [*slow(3), 5])
    def test_support_that_few_particles_meet(self, d):
        """An exponential distribution in an orthant, which 13 and 3 of a hundred particles meet; log Z is 0."""

        def orthant(x):
            return torch.where((x > 0).all(1), x.sum(1), torch.inf)

        energy = make_energy(orthant, d)
        energy.monitor = limited(3e5, energy)
        result, x = run_pilot(energy, 20_000, seeded(0), energy.monitor)
        assert energy.n_energy_evals <= 3e5 and (x > 0).all()
        assert abs(result.log_evidence) < 0.7  # some hundreds of particles

    def test_copies_part(self):
        """More particles than were tempered: none is where another is, and their spread is the target's."""
        target = GaussianEnergy()
        run = tempered_run.TemperedRun(make_energy(target), Standardization(2), 200, Tempering.n_moves, seeded(0))
        run.grow(5000)
        assert run.x.shape == (5000, 2) and len(torch.unique(run.x[:, 0])) == 5000
        assert run.x.std(0).numpy() == pytest.approx(np.sqrt(np.diag(target.cov)), rel=0.2)
        run.grow(100)
        assert len(run.x) == 5000

    @pytest.mark.parametrize("n", [300, 700])
    def test_copies_leave_masses_as_they_are(self, n):
        """Particles come from a resampling in the order of modes: copies of the first of them change masses by .17."""
        target = Energy(lambda x: -torch.logaddexp(-0.5 * x.square().sum(1), -0.5 * (x - 40).square().sum(1)), 2)
        run = tempered_run.TemperedRun(target, Standardization(2), 200, Tempering.n_moves, seeded(0))
        run.x = torch.randn(200, 2, generator=seeded(1), dtype=torch.float64)
        run.x[100:] += 40
        run.grow(n)
        assert float((run.x[:, 0] > 20).double().mean()) == pytest.approx(0.5, abs=0.01)

    def test_none(self):
        """A limit that is no limit changes nothing."""
        energy = make_energy(gmm9())
        few = Pilot(race=Race(scales=(3.0, 10.0)), climbs=Climbs(n_before=4, n_after=4))
        plain = run_pilot(energy, 200, seeded(0), pilot=few)
        energy.monitor = limited(1e12, energy)
        bounded = run_pilot(energy, 200, seeded(0), energy.monitor, pilot=few)
        assert torch.equal(plain[1], bounded[1]) and plain[0].log_evidence == bounded[0].log_evidence


class TestFlatDirections:
    """Particles that are exact or as far out as a flat direction lets them; no false alarm depends on chance much: the
    means that have to be 1 within .5 have standard errors of .02 for 5000 particles of these densities.
    """

    def check(self, energy_fn, x, d=2, n_evals=None):
        energy = make_energy(energy_fn, d)
        target = StandardizedTarget(energy, Standardization(d), energy.fast_dtype)
        propriety.check_directions(x, smc.moments(x), target, n_evals)
        return energy

    def normal(self, *scales):
        return torch.randn(5000, len(scales), dtype=torch.float64, generator=seeded(0)) * torch.tensor(scales).double()

    @pytest.mark.parametrize(
        "energy_fn, direction",
        [
            (lambda x: 0.5 * x[:, 0] ** 2, r"\+x\[1\]"),
            (lambda x: 0 * x[:, 0] + 3, r"\+x\[0\]"),
            (lambda x: 0.5 * x[:, 0] ** 2 + (-x[:, 1]).clamp(min=0), r"\+x\[1\]"),
            (lambda x: 0.5 * x[:, 0] ** 2 + x[:, 1].clamp(min=0), r"-x\[1\]"),
            (lambda x: 0.5 * x[:, 0] ** 2 + x[:, 1].sin(), r"\+x\[1\]"),
            (lambda x: 0.5 * np.asarray(x)[:, 0] ** 2, r"\+x\[1\]"),
        ],
        ids=["a coordinate", "all", "one side", "the other side", "periodic", "without a gradient"],
    )
    @pytest.mark.parametrize("n_evals", [None, 100])
    def test_are_named(self, energy_fn, direction, n_evals):
        with pytest.raises(InvalidEnergyError, match=f"infinite mass: along {direction}"):
            self.check(energy_fn, self.normal(1.0, 1e4), n_evals=n_evals)

    def test_few_evaluations_are_kept_for_it(self):
        energy = make_energy(lambda x: 0.5 * x[:, 0] ** 2)
        before = energy.n_energy_evals
        energy.monitor = Budget(None, 3000, energy)
        with pytest.raises(InvalidEnergyError, match=r"infinite mass: along .*x\[1\]"):
            run_pilot(energy, 1000, seeded(0), energy.monitor, store=Store(2), pilot=Pilot(adaptive=SHORT))
        assert energy.n_energy_evals - before <= 3000

    def test_oblique(self):
        u, flat = self.normal(1.0, 100.0).T
        with pytest.raises(InvalidEnergyError, match=r"0\.71 x\[0\] .0\.71 x\[1\]"):
            self.check(lambda x: 0.25 * (x[:, 0] + x[:, 1]) ** 2, torch.stack([u + flat, u - flat], 1))

    @pytest.mark.parametrize("scales", [(1.0, 1.0), (1e-6, 1e6)])
    def test_gaussians_pass(self, scales):
        sd = torch.tensor(scales).double()
        self.check(lambda x: 0.5 * ((x / sd.to(x)) ** 2).sum(1), self.normal(*scales))
        self.check(lambda x: 0.5 * ((np.asarray(x) / sd.numpy()) ** 2).sum(1), self.normal(*scales))
        self.check(lambda x: 0.5 * ((x / sd.to(x)) ** 2).sum(1), self.normal(*scales), n_evals=100)

    def test_what_has_no_gradient_but_ends_passes(self):
        x = torch.rand(5000, 2, dtype=torch.float64, generator=seeded(0))
        self.check(lambda x: torch.where(((x > 0) & (x < 1)).all(1), 0 * x[:, 0], torch.inf), x)
        self.check(lambda x: x.abs().floor().sum(1) + 0 * x[:, 0], 3 * (2 * x - 1))

    def test_particles_that_have_not_spread_pass(self):
        """In a coordinate the box is met farther out."""
        x = torch.rand(5000, 2, dtype=torch.float64, generator=seeded(0))
        self.check(lambda x: torch.where((x.abs() < 500).all(1), 0 * x[:, 0], torch.inf), x)

    @pytest.mark.parametrize("error", [None, np.linalg.LinAlgError("not positive definite")])
    def test_nonsense_far_out_passes_in_silence(self, error, recwarn):
        """The energy is not a number or fails beyond 5, as where something overflows."""

        def energy_fn(x):
            if error is not None and (x.abs() > 5).any():
                raise error
            return torch.where((x.abs() < 5).all(1), 0 * x[:, 0], torch.nan)

        energy = self.check(energy_fn, torch.rand(5000, 2, dtype=torch.float64, generator=seeded(0)))
        assert energy.n_invalid == 0 and not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]

    def test_particles_on_the_edge_do_not_count(self):
        x = self.normal(1.0, 1e4)
        x[:3, 1] = -1.0
        with pytest.raises(InvalidEnergyError, match="infinite mass"):
            self.check(lambda x: torch.where(x[:, 1] == -1, torch.inf, 0.5 * x[:, 0] ** 2), x)

    def test_in_high_dimension(self):
        """A start from Laplace's approximation is checked, too."""
        with pytest.raises(InvalidEnergyError, match=r"infinite mass: along \+x\[0\]"):
            run(lambda x: 0.5 * (x[:, 1:] ** 2).sum(1) + torch.nn.functional.softplus(-x[:, 0]), 257, n=200)

    @pytest.mark.parametrize("name", ["cauchy", *slow("funnel", "gmm9")])
    def test_whole_pilots_pass(self, name):
        energy_fn = {"funnel": Funnel(), "gmm9": gmm9(), "cauchy": lambda x: torch.log1p(x**2).sum(1)}[name]
        result, _ = run(energy_fn, getattr(energy_fn, "n_features", 2), n=1000)
        assert math.isfinite(result.log_evidence)
