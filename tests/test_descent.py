"""Descents of many points at once, against single climbs; and that surveys find modes far apart by them."""

import math

import numpy as np
import pytest
import torch

from skcds._support.errors import Spent
from skcds.density.energy import Energy
from skcds.explore import modes
from skcds.explore.climb import NEAR, climb
from skcds.explore.descent import descend
from skcds.train.budget import Budget


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(n, d, seed=0):
    return torch.randn(n, d, generator=seeded(seed), dtype=torch.float64)


def energy_of(function, d, limit=None):
    budget = Budget(None, limit, None)
    budget.energy = Energy(function, d, generator=seeded(), monitor=budget)
    return budget.energy


def rosenbrock(x):
    return (1 - x[:, 0]) ** 2 + 30 * (x[:, 1] - x[:, 0] ** 2) ** 2


MEANS = torch.tensor([[-30.0, 0.0, 20.0], [25.0, 10.0, 0.0], [0.0, -40.0, -10.0]], dtype=torch.float64)


def mixture(x):
    squares = torch.cdist(x, MEANS.to(x)) ** 2
    return -torch.logsumexp(-0.5 * squares, 1)


class TestDescend:
    @pytest.mark.parametrize("d", [1, 2, 30])
    @pytest.mark.parametrize("seed", range(3))
    def test_ends_at_the_minimum_of_a_quadratic(self, d, seed):
        """Of scales that differ tenfold, and any orientation: to .3 standard deviations, nearer than modes are told."""
        rotation = torch.linalg.qr(normal(d, d, seed))[0]
        scale = torch.logspace(-1, 0, d, dtype=torch.float64)
        factor, mean = rotation * (1 / scale), 10 * normal(1, d, seed + 9)

        def energy(x):
            return 0.5 * (((x - mean.to(x)) @ factor.to(x)) ** 2).sum(1)

        ends = descend(energy_of(energy, d), 20 * normal(9, d, seed))
        assert float(((ends - mean) @ factor).norm(dim=1).max()) < 0.3 < NEAR

    def test_ends_where_single_climbs_end(self):
        points = 30 * normal(40, 3)
        energy = energy_of(mixture, 3)
        ends = descend(energy, points)
        distance, _ = torch.cdist(ends, MEANS).min(1)
        assert float((distance < 1e-3).double().mean()) == 1
        for end in ends[:5]:
            assert float((climb(energy, end).x - end).norm()) < 1e-3

    def test_takes_few_calls_for_all(self):
        energy, calls = energy_of(rosenbrock, 2), []
        counted = energy.energy_fn

        def counting(x):
            calls.append(len(x))
            return counted(x)

        energy.energy_fn = counting
        ends = descend(energy, 2 * normal(64, 2))
        assert float((ends - 1).abs().max()) < 1e-3
        assert len(calls) <= 150 and sum(calls) / 64 < 90

    def test_outside_of_the_support(self):
        def half(x):
            return torch.where(x[:, 0] > 0, 0.5 * ((x - 2) ** 2).sum(1), torch.inf)

        points = torch.tensor([[-1.0, 0.0], [0.5, 3.0]], dtype=torch.float64)
        ends = descend(energy_of(half, 2), points)
        assert torch.equal(ends[0], points[0]) and float((ends[1] - 2).abs().max()) < 1e-3

    def test_without_end(self):
        """Energies that fall for ever, or have no slope: every end is finite."""
        for function in (lambda x: -(x[:, 0] ** 3), lambda x: 0 * x[:, 0], lambda x: x.abs().sum(1).sqrt()):
            assert bool(descend(energy_of(function, 2), normal(5, 2), 30).isfinite().all())

    def test_the_starting_points_stay(self):
        points = normal(4, 2)
        before = points.clone()
        descend(energy_of(rosenbrock, 2), points)
        assert torch.equal(points, before)

    def test_limits(self):
        with pytest.raises(Spent):
            descend(energy_of(rosenbrock, 2, 200), normal(64, 2))


class TestClimbs:
    def test_known_modes_cost_no_look_of_their_own(self):
        energy = energy_of(mixture, 3)
        found = modes.climbs_from(energy, MEANS + 0.1)
        before = energy.n_energy_evals
        assert len(found) == 3
        assert modes.climbs_from(energy, MEANS + 0.1, found) == []
        assert energy.n_energy_evals - before < 3 * 30

    def test_a_limit_keeps_what_was_found(self):
        """The first batch of descents is paid for, the second is not."""
        energy = energy_of(mixture, 3, 2000)
        assert 1 <= len(modes.climbs_from(energy, 30 * normal(400, 3))) <= 3 and energy.n_energy_evals <= 2000

    def test_without_a_gradient(self):
        energy = energy_of(lambda x: 0.5 * np.square(np.asarray(x) - 3).sum(1), 2)
        (mode,) = modes.climbs_from(energy, normal(3, 2))
        assert float((mode.x - 3).abs().max()) < 1e-3


@pytest.mark.parametrize("seed", range(4))
def test_lost_modes_far_from_the_particles_are_found(seed):
    """Particles of one of two modes forty deviations apart; climbs from the particles alone do not get there."""
    means = torch.tensor([[0.0, 0.0, 0.0], [30.0, 20.0, -20.0]], dtype=torch.float64)

    def energy_fn(x):
        return (
            -torch.logsumexp(-0.5 * torch.cdist(x, means.to(x)) ** 2, 1) - math.log(0.5) + 1.5 * math.log(2 * math.pi)
        )

    energy, x = energy_of(energy_fn, 3), normal(1000, 3, seed)
    search = modes.find_lost_modes(energy, x, -math.log(2), [], 24, 10, seeded(seed))
    share = float((torch.cdist(search.x, means).argmin(1) == 1).double().mean())
    assert search.n_found == 1 and abs(search.log_evidence) < 0.25 and abs(share - 0.5) < 0.12
    none = modes.find_lost_modes(energy, x, -math.log(2), [], 0, 10, seeded(seed))
    assert none.n_found == 0 and torch.equal(none.x, x)
