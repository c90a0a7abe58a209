"""A thorough diagnosis: fresh climbs find modes that the draws lack, and nothing where there is nothing."""

import math

import numpy as np
import pytest
import torch
from cases import slow
from samplers import KINDS, D, fitted, make, quadratic

from skcds.density.energy import Energy
from skcds.explore import missed
from skcds.explore.missed import find_missed
from skcds.targets import Funnel

N = 4000
LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


class Mixture:
    """Gaussians of unequal shapes and weights, apart by tens of their widths, up to 300 from the origin."""

    def __init__(self, seed, spread=60.0):
        self.rng = rng = np.random.default_rng(seed)
        self.d, k = int(rng.integers(2, 6)), int(rng.integers(2, 6))
        self.weights = rng.dirichlet(np.full(k, 4.0))
        self.means = rng.uniform(-300, 300, self.d) + rng.uniform(-spread, spread, (k, self.d))
        self.factors = np.stack([np.diag(rng.uniform(0.5, 3, self.d)) for _ in range(k)])
        self.log_z = rng.uniform(-5, 5)

    def __call__(self, x):
        means, inverse = torch.as_tensor(self.means).to(x), torch.as_tensor(np.linalg.inv(self.factors)).to(x)
        z = torch.einsum("kij,nkj->nki", inverse, x[:, None] - means)
        log_terms = torch.as_tensor(np.log(self.weights) - np.log(np.linalg.det(self.factors))).to(x)
        return -torch.logsumexp(log_terms - 0.5 * (z**2).sum(-1) - self.d * LOG_SQRT_2PI, 1) - self.log_z

    def draw(self, without=()):
        """Exact draws (N, d) of the rest of the modes, and their log weights."""
        weights = self.weights.copy()
        weights[list(without)] = 0
        k = self.rng.choice(len(weights), N, p=weights / weights.sum())
        x = self.means[k] + np.einsum("nij,nj->ni", self.factors[k], self.rng.standard_normal((N, self.d)))
        return torch.as_tensor(x), torch.full((N,), self.log_z + math.log(weights.sum()), dtype=torch.float64)


def look(energy_fn, d, draws, seed=0, n_evals=20_000, grad=True):
    generator = torch.Generator().manual_seed(seed)
    rows = []

    def counted(x):
        rows.append(len(x))
        return energy_fn(x)

    energy = Energy(counted if grad else lambda x: counted(torch.as_tensor(x)).numpy(), d, generator=generator)
    rows.clear()
    found = find_missed(energy, *draws, n_evals, generator)
    return found, sum(rows)


@pytest.mark.parametrize("seed", [0, 1, 2, *slow(3, 4, 5)])
def test_a_mode_without_draws_is_found_and_weighed(seed):
    """Its share to a quarter: masses come from some hundreds of draws of its Gaussian, which here is exact."""
    mixture = Mixture(seed)
    lost = int(mixture.weights.argmax())
    found, n_evals = look(mixture, mixture.d, mixture.draw([lost]), seed)
    assert found.share == pytest.approx(mixture.weights[lost], rel=0.25)
    assert 0 < found.excess < found.share
    assert np.linalg.norm(found.x.numpy() - mixture.means[lost]) < 3
    assert n_evals <= 20_000


@pytest.mark.parametrize("seed", [0, 1, 2, *slow(3, 4, 5)])
def test_nothing_is_missed_by_exact_draws(seed):
    """A mode counts from 4 standard errors on, so that chance alone gives one in 1e4 modes."""
    mixture = Mixture(seed)
    found, _ = look(mixture, mixture.d, mixture.draw(), seed)
    assert found.share == found.excess == 0 and found.x is None
    assert found.n_modes >= 1 and found.n_climbs >= 96


def test_wrong_masses_of_known_modes_are_missed_mass():
    """Draws that know a mode of .5 by a tenth of themselves lack .4 of the mass, less what is too much elsewhere."""

    def energy(x):
        return -torch.logsumexp(-0.5 * torch.stack([((x - a) ** 2).sum(1) for a in (-20.0, 20.0)], 1), 1)

    x = torch.randn(N, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x += torch.where(torch.arange(N) < N // 10, 20.0, -20.0)[:, None]
    log_weights = torch.full((N,), math.log(2) + 2 * LOG_SQRT_2PI, dtype=torch.float64)
    found, _ = look(energy, 2, (x, log_weights))
    assert 0.2 < found.share < 0.4
    assert found.x.numpy() == pytest.approx([20.0, 20.0], abs=0.1)


def test_a_spike_inside_a_broad_mode_is_found():
    """Half of the mass within .02 of the origin, where 4000 draws of N(0, I) in five dimensions have none."""
    d, sd = 5, 0.02

    def energy(x):
        squares = (x**2).sum(1)
        slab = -0.5 * squares - d * LOG_SQRT_2PI
        spike = -0.5 * squares / sd**2 - d * (math.log(sd) + LOG_SQRT_2PI)
        return -torch.logaddexp(slab, spike) + math.log(2)

    x = torch.randn(N, d, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found, _ = look(energy, d, (x, torch.full((N,), math.log(0.5), dtype=torch.float64)))
    assert found.share == pytest.approx(0.5, abs=0.05)


@pytest.mark.slow
def test_without_a_gradient():
    mixture = Mixture(1)
    found, _ = look(mixture, mixture.d, mixture.draw([0]), n_evals=4000, grad=False)
    assert found.share == pytest.approx(mixture.weights[0], rel=0.25)


@pytest.mark.slow
def test_a_funnel_has_no_modes_that_its_draws_lack():
    funnel = Funnel(5)
    x = torch.as_tensor(funnel.sample(N, random_state=0))
    draws = x, torch.full((N,), 0.0, dtype=torch.float64)
    assert look(funnel, 5, draws)[0].share == 0


@pytest.mark.parametrize("n_evals", [30, 700])
def test_no_more_evaluations_than_allowed(n_evals):
    mixture = Mixture(1)
    found, n_made = look(mixture, mixture.d, mixture.draw([0]), n_evals=n_evals)
    assert n_made <= n_evals
    assert found.share >= 0


def test_climbs_start_at_other_points_each_time(monkeypatch):
    """Two of each batch are the densest draws that are left; the first two are those of largest weight."""
    starts = []

    def climbs(energy, points, modes):
        starts.append(points)
        energy.log_prob(points)
        return []

    monkeypatch.setattr(missed, "climbs_from", climbs)
    energy = Energy(quadratic, 1, generator=torch.Generator().manual_seed(0))
    x = 1 + torch.arange(1.0, 101.0, dtype=torch.float64)[:, None]
    missed._climb(energy, x, torch.arange(100.0), 1000, torch.Generator().manual_seed(0))
    assert len(starts) == 8 and {len(points) for points in starts} == {missed.BATCH}
    assert torch.equal(torch.cat([points[2:4] for points in starts]), x[:16])
    assert torch.equal(torch.cat([points[:2] for points in starts]), x.flip(0)[:16])


class TestDiagnose:
    @staticmethod
    def both(x):
        """As much mass again 40 away from that of `quadratic`."""
        return -torch.logaddexp(-quadratic(x), -quadratic(x - 40.0))

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_lost_mode_fails(self, kind):
        sampler = fitted(kind)
        quick = sampler.diagnose(500, random_state=0, energy_fn=self.both)
        with pytest.raises(KeyError):
            quick["missed modes"]
        found = sampler.diagnose(500, random_state=0, energy_fn=self.both, thorough=True)
        assert found["missed modes"].verdict == found.verdict == "failed"
        assert found["missed modes"].value == pytest.approx(0.5, abs=0.1)
        assert "the draws have too little of the mass near [41. 41. 41.]" in str(found)

    @pytest.mark.parametrize("kind", KINDS)
    def test_nothing_is_missed_of_what_was_fitted(self, kind):
        check = fitted(kind).diagnose(500, random_state=0, thorough=3000)["missed modes"]
        assert check.value == 0 and check.verdict == "ok"

    @pytest.mark.slow
    def test_places_are_in_the_users_coordinates(self):
        def one(x):
            return 0.5 * ((x - 2.0) ** 2).sum(1) / 0.1

        def two(x):
            return -torch.logaddexp(-one(x), -one(x - 6.0))

        sampler = make("ConsistentSamplerScratch", bounds=[(0, 10)] * D, start=(2.0, 0.5)).fit(one)
        found = sampler.diagnose(500, random_state=0, energy_fn=two, thorough=5000)["missed modes"]
        assert found.verdict == "failed"
        numbers = found.meaning.rpartition("[")[2].rstrip("]").split()
        assert [float(x) for x in numbers] == pytest.approx([8.0] * D, abs=0.2)

    @pytest.mark.parametrize("thorough", [-1, 1.5, "yes"])
    def test_other_numbers_are_refused(self, thorough):
        with pytest.raises((ValueError, TypeError), match="thorough"):
            fitted(KINDS[1]).diagnose(500, thorough=thorough)

    def test_the_energy_is_asked_no_more_than_said(self):
        rows = []

        def counted(x):
            rows.append(len(x))
            return quadratic(x)

        sampler = fitted("ConsistentSamplerScratch")
        sampler.diagnose(500, random_state=0, energy_fn=counted)
        usual, _ = sum(rows), rows.clear()
        sampler.diagnose(500, random_state=0, energy_fn=counted, thorough=1000)
        assert usual + 100 < sum(rows) <= usual + 1000
