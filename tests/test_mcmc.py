"""Markov moves against the laws that they leave invariant, and sabotaged moves that must be found out.

Statistical bounds hold for any seed: each states the probability at which it fails correct moves.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from skcds.density.energy import Energy
from skcds.density.standardize import Standardization, StandardizedTarget
from skcds.train.particles import (
    CORRECTION_MOVES,
    TARGET_ACCEPTANCE,
    Population,
    effective_share,
    mala_step,
    spread_index,
    systematic_index,
)

N = 10_000  # particles of every statistical test
ALPHA = 1e-6  # false alarms of a statistical test
Z = 5.5  # two-sided tail of the normal distribution: 4e-8
MEAN = torch.tensor([1.0, -2.0], dtype=torch.float64)
COV = torch.tensor([[2.0, 0.9], [0.9, 1.0]], dtype=torch.float64)
FACTOR = torch.linalg.cholesky(COV)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def density(mean=MEAN, cov=COV, gradient=True):
    """Log density, but for its constant, and score of a Gaussian; zeros in the score's place without gradient."""
    precision = torch.linalg.inv(cov)

    def log_prob_and_score(x):
        centred = x.double() - mean
        score = -centred @ precision
        return 0.5 * (score * centred).sum(1), (score if gradient else torch.zeros_like(score)).to(x.dtype)

    return log_prob_and_score


def exact_draws(seed, n=N):
    return MEAN + torch.randn(n, 2, dtype=torch.float64, generator=seeded(seed)) @ FACTOR.T


def is_the_gaussian(x):
    """Whether independent rows follow N(MEAN, COV).

    Half of ALPHA goes to the bound of Dvoretzky, Kiefer, Wolfowitz and Massart on the Kolmogorov distance of both
    whitened coordinates, which finds a shift by .1 standard deviations; half to the sum of their squares, which is
    chi-square: it finds variances that are 10 % off.
    """
    u = torch.linalg.solve_triangular(FACTOR, (x.double() - MEAN).T, upper=False).T.numpy()
    n, d = u.shape
    uniforms, ranks = np.sort(stats.norm.cdf(u), axis=0), np.arange(n + 1)[:, None] / n
    distance = max((ranks[1:] - uniforms).max(), (uniforms - ranks[:-1]).max())
    low, high = stats.chi2.ppf([ALPHA / 4, 1 - ALPHA / 4], n * d)
    return distance < math.sqrt(math.log(2 * d / (ALPHA / 2)) / (2 * n)) and low < (u**2).sum() < high


def move(kernel, log_prob_and_score, x, n_moves, largest_step, generator, decades=0.0):
    """Many moves, with step sizes of their own for every particle."""
    state = (x, *log_prob_and_score(x))
    for _ in range(n_moves):
        scale = torch.rand(len(x), 1, dtype=x.dtype, generator=generator)
        step = largest_step * 10 ** (-decades * scale)
        *state, _ = kernel(log_prob_and_score, *state, step, generator)
    return state[0]


def accept_all(log_prob_and_score, x, log_prob, score, step, generator):
    return mala_step(log_prob_and_score, x, torch.full_like(log_prob, -torch.inf), score, step, generator)


def accept_by_density(log_prob_and_score, x, log_prob, score, step, generator):
    """Without the ratio of the proposal densities."""
    y = x + step * score + (2 * step).sqrt() * torch.randn(x.shape, dtype=x.dtype, generator=generator)
    log_prob_y, score_y = log_prob_and_score(y)
    accepted = torch.rand(len(x), dtype=x.dtype, generator=generator).log() < log_prob_y - log_prob
    keep = accepted[:, None]
    return torch.where(keep, y, x), torch.where(accepted, log_prob_y, log_prob), torch.where(keep, score_y, score), None


DENSITIES = {
    "MALA": density(),
    "random walk": density(gradient=False),
    "drift of another density": lambda x: (density()(x)[0], density(MEAN + 1, 2 * COV)(x)[1]),
}
SABOTAGED = {
    "all accepted": (accept_all, density()),
    "all of a random walk accepted": (accept_all, density(gradient=False)),
    "all accepted, another drift": (accept_all, DENSITIES["drift of another density"]),
    "proposal ratio forgotten": (accept_by_density, density()),
    "10 % too cold": (mala_step, density(cov=COV / 1.1)),
    "shifted": (mala_step, density(MEAN + 0.2)),
}


class TestInvariance:
    """Exact draws stay exact draws, whatever the drift and the step sizes: no burn-in, so any seed is fair."""

    @pytest.mark.parametrize("decades", [0.0, 2.0])
    @pytest.mark.parametrize("name", DENSITIES)
    def test_exact_draws(self, name, decades):
        start = exact_draws(0)
        x = move(mala_step, DENSITIES[name], start, 20, 0.5, seeded(1), decades)
        assert is_the_gaussian(x)
        assert (x != start).any(1).double().mean() > 0.9  # they have moved

    @pytest.mark.parametrize("name", SABOTAGED)
    def test_sabotaged_moves_are_found(self, name):  # negative control
        kernel, log_prob_and_score = SABOTAGED[name]
        assert not is_the_gaussian(move(kernel, log_prob_and_score, exact_draws(0), 20, 0.5, seeded(1)))

    @pytest.mark.parametrize("seed", range(3))
    def test_the_judge_knows_the_gaussian(self, seed):
        assert is_the_gaussian(exact_draws(seed))
        assert not is_the_gaussian(exact_draws(seed) + 0.15 * FACTOR.sum(1))
        assert not is_the_gaussian(MEAN + 1.06 * (exact_draws(seed) - MEAN))

    @pytest.mark.parametrize("name, n_moves", [("MALA", 100), ("random walk", 200)])
    def test_is_reached_from_elsewhere(self, name, n_moves):
        """A move leaves .82 (MALA) and .91 of the slowest direction's mean, as measured: in the end below 1e-8."""
        start = torch.zeros(N, 2, dtype=torch.float64)
        log_prob_and_score = DENSITIES[name]
        assert not is_the_gaussian(move(mala_step, log_prob_and_score, start, 3, 0.6, seeded(2)))
        assert is_the_gaussian(move(mala_step, log_prob_and_score, start, n_moves, 0.6, seeded(2)))

    def test_a_chain_in_single_precision(self):
        x = move(mala_step, DENSITIES["MALA"], exact_draws(0).float(), 20, 0.5, seeded(1))
        assert x.dtype == torch.float32 and is_the_gaussian(x)


class TestStep:
    x = exact_draws(3, 500)
    step = torch.full((500, 1), 0.7, dtype=torch.float64)

    def take(self, log_prob_and_score=DENSITIES["MALA"], seed=0, **changes):
        log_prob, score = log_prob_and_score(self.x)
        return mala_step(log_prob_and_score, self.x, log_prob, score, changes.get("step", self.step), seeded(seed))

    @pytest.mark.parametrize("name", DENSITIES)
    def test_state_is_consistent(self, name):
        x, log_prob, score, accepted = self.take(DENSITIES[name])
        assert accepted.dtype == torch.bool and 0 < accepted.sum() < 500
        assert torch.equal((x != self.x).any(1), accepted)
        expected_log_prob, expected_score = DENSITIES[name](x)
        torch.testing.assert_close(log_prob, expected_log_prob)
        torch.testing.assert_close(score, expected_score)

    def test_tiny_steps_are_accepted(self):
        """The log ratio is of order h^(3/2): below 1e-12 at 1e-10, times scores and noise to the third power."""
        assert self.take(step=self.step * 1e-10)[3].all()

    def test_huge_steps_are_refused(self):
        assert not self.take(step=self.step * 1e6)[3].any()

    def test_the_proposal(self):
        """N(x + h score, 2 h I) where all is accepted: chi-square, at 1e-6 for any seed."""
        log_prob, score = DENSITIES["MALA"](self.x)
        y, *_ = accept_all(DENSITIES["MALA"], self.x, log_prob, score, self.step, seeded(0))
        noise = (y - self.x - self.step * score) / (2 * self.step).sqrt()
        low, high = stats.chi2.ppf([ALPHA / 2, 1 - ALPHA / 2], 1000)
        assert low < float((noise**2).sum()) < high
        assert abs(float(noise.mean())) < Z / math.sqrt(1000)

    def test_support(self):
        """Moves go into the support and never out of it; half of the proposals would leave."""

        def half_plane(x):
            log_prob, score = DENSITIES["random walk"](x)
            return torch.where(x[:, 0] > 1, log_prob, -torch.inf), score

        inside = self.x[:, 0] > 1
        x, log_prob, _, accepted = self.take(half_plane)
        assert (x[inside, 0] > 1).all() and log_prob[inside].isfinite().all()
        entered = ~inside & (x[:, 0] > 1)
        assert entered.any() and accepted[entered].all()
        assert not accepted[~inside & ~entered].any()

    def test_is_reproducible_and_leaves_the_global_state_alone(self):
        before = torch.get_rng_state()
        first, second, other = self.take(seed=1)[0], self.take(seed=1)[0], self.take(seed=2)[0]
        assert torch.equal(first, second) and not torch.equal(first, other)
        assert torch.equal(torch.get_rng_state(), before)


some_zero = arrays(float, st.integers(1, 100), elements=st.one_of(st.just(-np.inf), st.floats(-30, 30)))
some_zero = some_zero.filter(lambda log_weights: np.isfinite(log_weights).any()).map(torch.tensor)


class TestSystematicIndex:
    @given(some_zero, st.integers(1, 300), st.integers(0, 999))
    def test_counts(self, log_weights, n, seed):
        index = systematic_index(log_weights, n, seeded(seed))
        assert index.shape == (n,) and (index.diff() >= 0).all()
        counts, expected = torch.bincount(index, minlength=len(log_weights)), n * torch.softmax(log_weights, 0)
        assert ((counts - expected).abs() < 1 + 1e-9 * n).all()
        assert (counts[log_weights.isneginf()] == 0).all()

    @given(some_zero, st.integers(0, 999))
    def test_shift(self, log_weights, seed):
        shifted = systematic_index(log_weights + 4096.0, 50, seeded(seed))
        counts = [torch.bincount(i, minlength=100) for i in (shifted, systematic_index(log_weights, 50, seeded(seed)))]
        assert (counts[0] - counts[1]).abs().max() <= 1  # rounding of the weights may tip one position over

    def test_equal_weights_leave_the_particles_alone(self):
        assert systematic_index(torch.zeros(64).double(), 64, seeded(0)).tolist() == list(range(64))


@pytest.mark.parametrize("m, n", [(7, 7), (7, 20), (20, 7), (1, 5)])
def test_spread_index_takes_each_as_often(m, n):
    index = spread_index(m, n, torch.device("cpu"))
    counts = torch.bincount(index, minlength=m)
    assert len(index) == n and int(counts.max() - counts.min()) <= 1 and (index.diff() >= 0).all()
    assert m < 2 or n < 2 * m or counts.min() >= 1

    def test_is_unbiased(self):
        """A count is floor or floor + 1 of 7 w: means over replications within Z standard errors, false alarms 1e-7."""
        log_weights, generator = torch.tensor([0.5, 0.3, 0.2]).double().log(), seeded(0)
        counts = [torch.bincount(systematic_index(log_weights, 7, generator), minlength=3) for _ in range(2000)]
        error = torch.stack(counts).double().mean(0) - torch.tensor([3.5, 2.1, 1.4])
        assert (error.abs() < Z * 0.5 / math.sqrt(2000)).all()


class TestEffectiveShare:
    def test_closed_forms(self):
        assert effective_share(torch.full((8,), -3.0)) == 1
        assert effective_share(torch.tensor([0.0, -torch.inf, 0.0, -torch.inf])) == 0.5
        assert effective_share(torch.tensor([0.0, -2000.0, -2000.0, -2000.0])) == 0.25
        assert effective_share(torch.full((5,), -torch.inf)) == 0
        weights = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
        assert effective_share(weights.log()) == pytest.approx(100 / 30 / 4, rel=1e-14)

    @given(some_zero, st.integers(-1000, 1000))
    def test_bounds_and_shift(self, log_weights, shift):
        share, n = effective_share(log_weights), len(log_weights)
        in_support = int(log_weights.isfinite().sum())
        assert 1 / n * (1 - 1e-12) <= share <= in_support / n * (1 + 1e-12)
        # weights of |log w| up to 1030 are shifted with a rounding error of 1030 eps, and squared
        assert effective_share(log_weights + shift) == pytest.approx(share, rel=1e-11)

    def test_gaussian_weights(self):
        """For draws of N(0, s^2) weighted to N(0, 1) the share is m1^2 / m2, by the delta method within Z errors."""
        scale, z = 1.5, torch.randn(N, dtype=torch.float64, generator=seeded(0))
        m = [scale**j * (1 + j * (scale**2 - 1)) ** -0.5 for j in range(5)]  # moments of the weights
        slope = np.array([2 / m[2], -1 / m[2] ** 2])
        covariance = np.array([[m[2] - 1, m[3] - m[2]], [m[3] - m[2], m[4] - m[2] ** 2]])
        share = effective_share(0.5 * (1 - scale**2) * z**2 + math.log(scale))
        assert abs(share - 1 / m[2]) < Z * math.sqrt(slope @ covariance @ slope / N)


def standard_target(gradient=True):
    """N(0, I) in two dimensions, which counts its evaluations."""
    if gradient:
        energy = Energy(lambda x: 0.5 * (x**2).sum(1), 2, generator=seeded(0))
    else:
        energy = Energy(lambda x: 0.5 * np.sum(x * np.asarray(x), 1), 2, generator=seeded(0))
    return StandardizedTarget(energy, Standardization(2))


def population(n=1000, gradient=True, dtype=torch.float64, seed=0, **options):
    x = torch.randn(n, 2, dtype=dtype, generator=seeded(seed))
    return Population(standard_target(gradient), x, seeded(seed + 1), **options)


def acceptance_of_a_move(particles):
    before = particles.x
    particles.move()
    return float((particles.x != before).any(1).double().mean())


class TestPopulation:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("gradient", [True, False])
    def test_state_is_consistent(self, gradient, dtype):
        particles = population(gradient=gradient, dtype=dtype)
        assert len(particles) == 1000
        for _ in range(2):
            log_prob, score = particles.target.log_prob_and_score(particles.x)
            assert particles.x.dtype == particles.score.dtype == dtype and particles.log_prob.dtype == torch.float64
            torch.testing.assert_close(particles.log_prob, log_prob)
            torch.testing.assert_close(particles.score, score)
            particles.move(3)

    @pytest.mark.parametrize("gradient", [True, False])
    def test_evaluations(self, gradient):
        particles = population(700, gradient)
        energy = particles.target.energy
        before = energy.n_energy_evals, energy.n_grad_evals
        particles.move(4)
        assert energy.n_energy_evals == before[0] + 4 * 700
        assert energy.n_grad_evals == before[1] + (4 * 700 if gradient else 0)
        particles.draw(50)
        assert energy.n_energy_evals == before[0] + 4 * 700

    @pytest.mark.parametrize("step", [1e-5, 0.5, 1e3])
    @pytest.mark.parametrize("gradient", [True, False])
    def test_adapts_to_the_acceptance(self, gradient, step):
        """The rate of one move of n particles has a standard error of at most sqrt(.25 / n); the step size, which
        wanders by half of the earlier errors, adds less than half of it in variance. Six errors: false alarms 1e-6."""
        n = 4000
        particles = population(n, gradient, step=step)
        target, bound = TARGET_ACCEPTANCE[gradient], 6 * math.sqrt(1.5 * 0.25 / n)
        first = acceptance_of_a_move(particles)
        particles.move(200)
        assert abs(acceptance_of_a_move(particles) - target) < bound
        if step != 0.5:
            assert abs(first - target) > bound  # negative control: not before the adaptation

    def test_the_target_differs_without_gradient(self):
        assert population(gradient=True).acceptance == 0.55 and population(gradient=False).acceptance == 0.3

    def test_step_sizes_spread_over_the_decades(self):
        """Seen by where a constant score carries particles that start outside the support, which are all accepted."""

        class Ramp:
            has_gradient = True

            def log_prob_and_score(self, x):
                return torch.where(x[:, 0] == 0, -torch.inf, 0.0).double(), torch.full_like(x, 1e8)

        n = 4000
        particles = Population(Ramp(), torch.zeros(n, 1, dtype=torch.float64), seeded(0), step=0.5, decades=2.0)
        particles.move()
        exponent = (particles.x[:, 0] / 1e8 / 0.5).log10().numpy() / -2  # the noise is below 1e-6 of the drift
        assert exponent.min() > -1e-6 and exponent.max() < 1 + 1e-6
        # Kolmogorov distance from the uniform law: ALPHA by the bound of Massart, and the noise
        assert stats.kstest(exponent, "uniform").statistic < math.sqrt(math.log(2 / ALPHA) / (2 * n)) + 1e-6

    def test_moves_keep_the_law(self):
        """Chi-square at 1e-6, the adaptation of the step size (from all particles together) included."""
        particles = population(N)
        particles.move(30)
        low, high = stats.chi2.ppf([ALPHA / 2, 1 - ALPHA / 2], 2 * N)
        assert low < float((particles.x**2).sum()) < high

    def test_moves_correct_wrong_particles(self):
        particles = population(N)
        particles.replace(1.3 * particles.x)
        high = stats.chi2.ppf(1 - ALPHA / 2, 2 * N)
        assert float((particles.x**2).sum()) > high  # negative control
        particles.move(60)  # a move leaves .6 of the excess once the step is adapted, after about 20 moves
        assert float((particles.x**2).sum()) < high

    def test_replace(self):
        particles, x = population(), torch.full((3, 2), 2.0)
        particles.replace(x)
        assert particles.x is x and len(particles) == 3
        np.testing.assert_allclose(particles.log_prob, np.full(3, -4.0))
        np.testing.assert_allclose(particles.score, np.full((3, 2), -2.0))

    def test_draw(self):
        particles = population(50)
        x, score = particles.draw(20_000)
        assert x.shape == score.shape == (20_000, 2)
        torch.testing.assert_close(score, -x)
        again, log_prob = particles.draw_with_log_prob(20)
        torch.testing.assert_close(log_prob, -0.5 * again.square().sum(1).double())
        rows = {tuple(row): i for i, row in enumerate(particles.x.tolist())}
        counts = np.bincount([rows[tuple(row)] for row in x.tolist()], minlength=50)
        # Pearson's statistic of equal probabilities; the chi-square law of 49 degrees fits at 400 a cell: 1e-6
        assert stats.chisquare(counts).statistic < stats.chi2.ppf(1 - ALPHA, 49)

    def test_is_reproducible_and_leaves_the_global_state_alone(self):
        before = torch.get_rng_state()
        first, second, other = population(seed=5), population(seed=5), population(seed=6)
        for particles in (first, second, other):
            particles.move(2)
            particles.correct(particles.x.clone(), torch.zeros(len(particles)).double(), 0.5)
        assert torch.equal(first.x, second.x) and torch.equal(first.draw(9)[0], second.draw(9)[0])
        assert not torch.equal(first.x, other.x)
        assert torch.equal(torch.get_rng_state(), before)


def log_weights_of(s):
    """Log weights of draws of N(0, s^2 I) for N(0, I), but for a constant."""
    return lambda z: 0.5 * (1 / s**2 - 1) * (z.double() ** 2).sum(1)


class TestExchange:
    @pytest.mark.parametrize("s", [0.7, 1.5])
    def test_leaves_the_target_invariant(self, s):
        """Particles from N(0, I), draws too narrow or too wide: their |x|^2 stays chi-square (sum of 2 N, 1e-6)."""
        low, high = stats.chi2.ppf([ALPHA / 2, 1 - ALPHA / 2], 2 * N)
        particles, z = population(N), s * torch.randn(N, 2, dtype=torch.float64, generator=seeded(4))
        share = particles.exchange(z, log_weights_of(s)(z), log_weights_of(s))
        assert 0.3 < share < 0.9
        assert low < float((particles.x**2).sum()) < high
        particles.exchange(z, torch.zeros(N).double(), lambda x: torch.zeros(len(x)).double())  # negative control
        assert not low < float((particles.x**2).sum()) < high

    def test_brings_particles_to_the_target(self):
        """Particles 1.3 times too wide. Draws 1.2 times too wide are taken with probability .7 or so: 20 rounds leave
        the bound of N independent exact draws, one does not."""
        low, high = stats.chi2.ppf([ALPHA / 2, 1 - ALPHA / 2], 2 * N)
        particles, generator = population(N), seeded(3)
        particles.replace(1.3 * particles.x)
        totals = []
        for _ in range(20):
            z = 1.2 * torch.randn(N, 2, dtype=torch.float64, generator=generator)
            particles.exchange(z, log_weights_of(1.2)(z), log_weights_of(1.2))
            totals.append(float((particles.x**2).sum()))
        assert low < totals[-1] < high < totals[0]

    def test_density_and_score_are_those_of_the_new_particles(self):
        particles = population(50)
        before = particles.x
        z = torch.randn(20, 2, dtype=torch.float64, generator=seeded(1))
        share = particles.exchange(z, torch.zeros(20).double(), lambda x: torch.full((len(x),), -9.0).double())
        new = (particles.x != before).any(1)
        assert share == 1 and new.sum() == 20 and len(particles) == 50
        torch.testing.assert_close(particles.score, -particles.x)
        torch.testing.assert_close(particles.log_prob, -0.5 * (particles.x**2).sum(1))

    @pytest.mark.parametrize("log_weight", [-np.inf, np.nan])
    def test_draws_without_weight_are_not_taken(self, log_weight):
        particles = population(30)
        x = particles.x
        evaluated = particles.target.energy.n_energy_evals
        z = torch.full((30, 2), 99.0, dtype=torch.float64)
        assert (
            particles.exchange(z, torch.full((30,), log_weight).double(), lambda x: torch.zeros(len(x)).double()) == 0
        )
        assert particles.x is x and particles.target.energy.n_energy_evals == evaluated

    def test_more_draws_than_particles(self):
        particles = population(10)
        z = torch.randn(25, 2, dtype=torch.float64, generator=seeded(1))
        particles.exchange(z, torch.zeros(25).double(), lambda x: torch.full((len(x),), -9.0).double())
        assert len(particles) == 10 and torch.equal(particles.x.sort(0)[0], z[:10].sort(0)[0])


class TestCorrect:
    still = 1e-30  # a step size that leaves the particles where they are, to within 1e-14

    def test_weights_are_truncated(self):
        """Of 100 draws one has weight 10 000: cut at 10 times the mean it keeps 91 % of the weight, uncut 99 %."""
        particles = population(1000, step=self.still)
        z = torch.linspace(-2, 2, 200, dtype=torch.float64).reshape(100, 2)
        weights = torch.ones(100, dtype=torch.float64)
        weights[37] = 10_000
        share = particles.correct(z, weights.log(), min_share=0.01)
        assert share == pytest.approx(10_099**2 / (99 + 1e8) / 100)
        cut = 10 * 10_099 / 100
        count = int(torch.isclose(particles.x, z[37], rtol=0, atol=1e-12).all(1).sum())
        assert abs(count - 1000 * cut / (99 + cut)) < 1

    def test_even_weights_are_not_truncated(self):
        particles = population(1000, step=self.still)
        z = torch.tensor([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0], [0.0, -1.0]], dtype=torch.float64)
        weights = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
        assert particles.correct(z, weights.log(), 0.8) == pytest.approx(100 / 120)
        nearest = torch.cdist(particles.x, z).argmin(1)
        assert (torch.bincount(nearest, minlength=4) - 100 * weights).abs().max() <= 1
        torch.testing.assert_close(particles.x, z[nearest], rtol=0, atol=1e-12)

    @pytest.mark.parametrize("log_weights", [[0.0, -50.0, -50.0, -50.0], [-np.inf] * 4])
    def test_poor_weights_change_nothing(self, log_weights):
        particles = population(100)
        before = particles.x, particles.score, particles.log_prob, particles.step, particles.target.energy.n_grad_evals
        share = particles.correct(torch.zeros(4, 2).double(), torch.tensor(log_weights).double(), min_share=0.3)
        assert share == effective_share(torch.tensor(log_weights)) < 0.3
        after = particles.x, particles.score, particles.log_prob, particles.step, particles.target.energy.n_grad_evals
        assert all(new is old or new == old for new, old in zip(after, before, strict=True))

    def test_the_limit_is_included(self):
        particles = population(100)
        x = particles.x
        assert particles.correct(torch.zeros(64, 2).double(), torch.zeros(64).double(), min_share=1.0) == 1
        assert particles.x is not x

    def test_copies_are_parted(self):
        """Every particle moves with probability .5 or so each time; the number of moves is in the count."""
        particles = population(1000)
        before = particles.target.energy.n_energy_evals
        particles.correct(torch.tensor([[0.3, 0.4], [0.5, -0.6]]).double(), torch.zeros(2).double(), 0.5)
        assert particles.target.energy.n_energy_evals == before + (1 + CORRECTION_MOVES) * 1000
        assert len(particles.x.unique(dim=0)) > 900

    def test_draws_outside_the_support_are_not_taken(self):
        particles = population(1000, step=self.still)
        z = torch.tensor([[0.0, 0.0], [9.0, 9.0], [1.0, 1.0]], dtype=torch.float64)
        particles.correct(z, torch.tensor([0.0, -torch.inf, 0.0], dtype=torch.float64), 0.5)
        assert particles.x.max() < 1.1

    def test_weighted_draws_are_corrected(self):
        """Draws of N(0, s^2 I) become draws of N(0, I): E|x|^2 = 2 within Z standard errors, those of the weighted mean
        (delta method) and of as many independent draws, than which systematic ones from shuffled rows are no worse."""
        s = 1.2
        z = s * torch.randn(N, 2, dtype=torch.float64, generator=seeded(4))
        particles = population(N, step=self.still)
        particles.correct(z, 0.5 * (1 / s**2 - 1) * (z**2).sum(1), 0.5)
        t2 = 1 / (2 - s**-2)  # w N(0, I) is proportional to N(0, t2 I)
        variance = s**2 * t2 * (8 * t2**2 - 8 * t2 + 4)  # of w (|z|^2 - 2)
        bound = Z * math.sqrt((variance + 4) / N)
        assert abs(float((particles.x**2).sum(1).mean()) - 2) < bound
        assert abs(float((z**2).sum(1).mean()) - 2) > 2 * bound  # negative control


class Pairs:
    """Gaussian in d dimensions: neighbours correlated by rho, coordinates of unequal width."""

    has_gradient = True

    def __init__(self, d, rho, narrow=1.0, sd=1.0):
        block = sd**2 * torch.tensor([[1.0, rho], [rho, 1.0]], dtype=torch.float64)
        self.covariance = torch.block_diag(*[block] * (d // 2))
        self.width = torch.where(torch.arange(d) < d // 2, 1.0, narrow).double()
        self.covariance = self.width[:, None] * self.covariance * self.width
        self.precision = torch.linalg.inv(self.covariance)

    def log_prob_and_score(self, x):
        score = -x.double() @ self.precision
        return 0.5 * (x * score).sum(1), score

    def log_prob(self, x):
        return self.log_prob_and_score(x)[0]

    def draw(self, n, seed):
        root = torch.linalg.cholesky(self.covariance)
        return torch.randn(n, len(root), dtype=torch.float64, generator=seeded(seed)) @ root.T


class Wells:
    """Independent coordinates with two narrow wells at -2 and 2, of which the right one has a share of the mass."""

    has_gradient = True

    def __init__(self, d, share):
        self.d, self.share = d, share

    def log_prob_and_score(self, x):
        with torch.enable_grad():
            x = x.detach().double().requires_grad_()
            left, right = (-0.5 * ((x - side) / 0.3) ** 2 for side in (-2.0, 2.0))
            log_prob = torch.logaddexp(left + math.log(1 - self.share), right + math.log(self.share)).sum(1)
            (score,) = torch.autograd.grad(log_prob.sum(), x)
        return log_prob.detach(), score

    def log_prob(self, x):
        return self.log_prob_and_score(x)[0]

    def draw(self, n, seed):
        generator = seeded(seed)
        sides = torch.where(torch.rand(n, self.d, generator=generator) < self.share, 2.0, -2.0)
        return sides + 0.3 * torch.randn(n, self.d, dtype=torch.float64, generator=generator)


def drawn_from(law):
    """New draws every time, and their log density."""
    seeds = itertools.count(100)
    return lambda m: (law.draw(m, next(seeds)), law.log_prob)


class TestManyDimensions:
    def test_swaps_of_independent_coordinates_are_all_accepted(self):
        target = Pairs(30, 0.0)
        particles = Population(target, target.draw(1000, 0), seeded(1))
        before = particles.x.clone()
        assert particles.cross(2) == 1.0
        assert torch.equal(particles.x.sort(0).values, before.sort(0).values)  # no coordinate lost a value
        assert float((particles.x != before).double().mean()) > 0.3
        torch.testing.assert_close(particles.log_prob, target.log_prob_and_score(particles.x)[0])
        torch.testing.assert_close(particles.score, target.log_prob_and_score(particles.x)[1])

    def test_swaps_leave_a_correlated_target_as_it_is(self):
        target, n = Pairs(30, 0.9), 4000
        particles = Population(target, target.draw(n, 0), seeded(1))
        before = particles.x.clone()
        assert 0 < particles.cross(20) < 1
        assert float((particles.x != before).double().mean()) > 0.02
        correlation = torch.corrcoef(particles.x.T).diagonal(1)[::2]
        assert (correlation - 0.9).abs().max() < 6 * (1 - 0.9**2) / n**0.5  # all accepted it would fall

    def test_swaps_with_draws_mend_the_masses_of_wells(self):
        """Thirty coordinates with .3 of the mass on one side, particles and draws with .45 there.

        The bound is six standard errors of N independent particles. An exchange of all coordinates for those of a draw
        is hardly ever accepted.
        """
        target, n = Wells(30, 0.3), 4000
        bound, shares = 6 * (0.3 * 0.7 / n) ** 0.5, {}
        for how in ("swaps", "exchange"):
            wrong = Wells(30, 0.45)
            particles = Population(target, wrong.draw(n, 0), seeded(1))
            if how == "swaps":
                assert particles.cross_with(drawn_from(wrong), n, 30) > 0.2
            else:
                draws, log_weights = wrong.draw(n, 2), lambda x, q=wrong: target.log_prob(x) - q.log_prob(x)
                particles.exchange(draws, log_weights(draws), log_weights)
            shares[how] = (particles.x > 0).double().mean(0)
        assert (shares["swaps"] - 0.3).abs().max() < bound
        assert (shares["exchange"] - 0.3).abs().mean() > bound  # negative control

    def test_swaps_with_draws_leave_the_target_as_it_is(self):
        """Correlated particles, and draws that are wider and not correlated."""
        target, n = Pairs(30, 0.9), 4000
        particles = Population(target, target.draw(n, 0), seeded(1))
        before, wide = particles.x.clone(), Pairs(30, 0.0, sd=1.3)
        share = particles.cross_with(drawn_from(wide), n, 20)
        assert 0 < share < 1 and float((particles.x != before).double().mean()) > 0.02
        assert (torch.corrcoef(particles.x.T).diagonal(1)[::2] - 0.9).abs().max() < 6 * (1 - 0.9**2) / n**0.5
        assert (particles.x.std(0) - 1).abs().max() < 6 / (2 * n) ** 0.5
        torch.testing.assert_close(particles.log_prob, target.log_prob_and_score(particles.x)[0])
        torch.testing.assert_close(particles.score, target.log_prob_and_score(particles.x)[1])

    @pytest.mark.parametrize("n, changed", [(3, 3), (9, 5)])
    def test_another_number_of_draws_than_of_particles(self, n, changed):
        target = Pairs(30, 0.0)
        particles = Population(target, target.draw(5, 0), seeded(1))
        before = particles.x.clone()
        particles.cross_with(drawn_from(target), n)
        assert int((particles.x != before).any(1).sum()) == changed

    def test_an_odd_number_of_particles(self):
        target = Pairs(30, 0.5)
        particles = Population(target, target.draw(3, 0), seeded(1))
        particles.cross(3)
        assert particles.x.shape == (3, 30)

    def test_steps_of_their_own(self):
        """Of a wide and of narrow coordinates the wide one moves as far as it is wide."""
        target = Pairs(30, 0.0, narrow=0.05)
        moved = {}
        for one_step in (20, 30):
            particles = Population(target, target.draw(2000, 0), seeded(1), one_step=one_step)
            particles.move(30)
            before = particles.x.clone()
            particles.move(10)
            moved[one_step] = float((particles.x - before)[:, :15].square().mean())
            spread = particles.x.std(0) / target.width
            assert (spread - 1).abs().max() < 6 / (2 * 2000) ** 0.5
        assert moved[20] > 5 * moved[30]

    def test_one_step_where_coordinates_are_few(self):
        assert Population(Pairs(20, 0.0), torch.ones(5, 20).double(), seeded(0)).squared_widths() is None
        assert Population(Pairs(22, 0.0), torch.ones(5, 22).double(), seeded(0)).squared_widths() is not None
