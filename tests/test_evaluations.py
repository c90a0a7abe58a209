"""Energies that the user has evaluated before: they save evaluations, and those of another energy are refused."""

import math
import warnings

import numpy as np
import pytest
import torch
from cases import slow
from samplers import SHORT, D, make, quadratic

from skcds import Pilot
from skcds.density.bounds import Bounds
from skcds.density.energy import Energy
from skcds.explore.adaptive import first_proposal
from skcds.explore.evaluations import Evaluations
from skcds.explore.few_evaluations import Mixture
from skcds.explore.pilot import run_pilot
from skcds.explore.store import Store
from skcds.train.budget import Budget

FAR = torch.tensor([4000.0, -7000.0, 100.0], dtype=torch.float64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def two(x):
    """Half of the mass at the origin, half far off with a width of .1, where no climb from elsewhere ends."""
    near = -0.5 * (x**2).sum(1)
    far = -0.5 * ((x - FAR.to(x)) ** 2).sum(1) / 0.01 + 3 * math.log(10)
    return -torch.logaddexp(near, far)


def around_far(n=30, seed=0):
    x = FAR + 0.3 * torch.randn(n, 3, dtype=torch.float64, generator=seeded(seed))
    return x.numpy(), two(x).numpy()


def explored(known, seed):
    """Log Z of an exploration of two, less the truth."""
    budget = Budget(None, 4000, None)
    energy = budget.energy = Energy(two, 3, generator=seeded(seed), monitor=budget)
    energy.known = Evaluations.from_parameter(known, 3, None)
    pilot = Pilot(adaptive=SHORT)
    found, _ = run_pilot(energy, 500, seeded(seed), budget, store=Store(3), pilot=pilot)
    return found.log_evidence - math.log(2) - 1.5 * math.log(2 * math.pi)


@pytest.mark.parametrize("seed", [0, *slow(1)])
def test_a_mode_is_found_by_them(seed):
    assert abs(explored(around_far(), seed)) < 0.15


def test_and_not_without():  # negative control
    assert explored(None, 0) < -0.5


def test_they_join_the_first_proposal():
    energy = Energy(two, 3, generator=seeded())
    mixture = Evaluations.from_parameter(around_far(), 3, None).mixture(energy, seeded(), Mixture())
    assert float((mixture.loc - FAR).abs().max()) < 1
    assert len(first_proposal(energy, [])) == len(Mixture().scales)
    few = tuple(part[:10] for part in around_far())
    assert Evaluations.from_parameter(few, 3, None).mixture(energy, seeded(), Mixture()) is None


def test_the_best_come_first_and_others_are_left_out():
    x = np.array([[1.0, 2.0], [3.0, 4.0], [np.nan, 0.0], [5.0, 6.0], [7.0, 8.0], [-1.0, 2.0]])
    bounds = Bounds.from_parameter([(0, 10), None], 2)
    found = Evaluations.from_parameter((x, [3.0, 1.0, 0.0, np.inf, 2.0, -5.0]), 2, bounds)
    assert found.x.tolist() == [[3, 4], [7, 8], [1, 2]] and found.energies.tolist() == [1, 2, 3]


class TestFit:
    @pytest.mark.slow
    def test_is_the_same_density(self):
        """None of them is evaluated again but three, and log Z is that of the energy."""
        x = np.random.default_rng(0).normal(1.0, 1.0, (200, D))
        sampler = make("ConsistentSamplerScratch", max_iter=60)
        sampler.fit(quadratic, evaluations=(x, 0.5 * ((x - 1) ** 2).sum(1)))
        weighted = sampler.sample_weighted(20_000, random_state=0)
        assert abs(weighted.log_evidence - 1.5 * math.log(2 * math.pi)) < 5.6 * weighted.log_evidence_se + 1e-3

    def test_within_bounds(self):
        x = np.random.default_rng(0).uniform(0.1, 3, (50, D))
        make("ConsistentSamplerScratch", bounds=(0, 4)).fit(quadratic, evaluations=(x, quadratic(torch.tensor(x))))

    @pytest.mark.slow
    def test_reach_the_teacher_of_a_student(self):
        """By the error of a teacher's fit, which compares them, too."""
        start = Pilot(adaptive=SHORT, n_particles=500)
        student = make("ConsistentSamplerDistiller", max_iter=2, max_energy_evals=4000, start=start)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            student.fit(two, evaluations=around_far())
        assert abs(student.teacher_.pilot_.log_evidence - math.log(2) - 1.5 * math.log(2 * math.pi)) < 0.2

    @pytest.mark.parametrize(
        ("given", "match"),
        [
            (np.zeros((5, D)), r"pair \(X, E\)"),
            ((np.zeros((5, D)), np.zeros(4)), r"shapes \(5, 3\) and \(4,\)"),
            ((np.zeros((5, 2)), np.zeros(5)), r"points \(m, 3\)"),
            ((np.zeros((5, D)), np.full(5, np.inf)), "None of the 5 points"),
            ((np.zeros((5, D)), np.full(5, 7.0)), "energy at x = .* is 7, and energy_fn gives 1.5"),
            ((np.ones((5, D)), np.full(5, 0.01)), "its constant included"),
        ],
    )
    def test_others_are_refused(self, given, match):
        with pytest.raises(ValueError, match=match):
            make("ConsistentSamplerScratch").fit(quadratic, evaluations=given)

    def test_not_of_families(self):
        with pytest.raises(ValueError, match="leave one out"):
            make("ConsistentSamplerScratch").fit(
                lambda x, c: quadratic(x - c), contexts=np.zeros((9, 1)), evaluations=(np.zeros((1, D)), np.zeros(1))
            )
