"""One mode in many dimensions: runs from the best Gaussian, and this in place of the particles' moments."""

import numpy as np
import pytest
import torch

from skcds import Pilot
from skcds.density.energy import Energy
from skcds.density.standardize import Standardization
from skcds.explore.climb import Mode
from skcds.explore.pilot import _Pilot, run_pilot
from skcds.explore.tempered_run import TemperedRun
from skcds.specifications import HighDimension, Triangular
from skcds.train.budget import Budget

D = 8


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def quartic(x):
    return (0.5 * x**2 + 0.1 * x**4).sum(1)


def two_wells(x):
    return 0.5 * (x[:, 1:] ** 2).sum(1) + (x[:, 0] ** 2 - 4) ** 2 / 4


def climbed(energy_fn, **by):
    """A pilot after its climbs, for which eight dimensions are many."""
    energy = Energy(energy_fn, D, generator=seeded())
    by = HighDimension(n_features_of_one_mode=D - 1, fewest_particles=500, max_numbers=5000).set_params(**by)
    by = Pilot(high_dimension=by, triangular=Triangular(max_features=0))
    run = _Pilot(energy, 500, seeded(), Budget(None, None, energy), None, by)
    run._climb()
    return run


class TestFromTheOnlyMode:
    def test_one_mode(self):
        nodes = np.linspace(-8, 8, 20_001)
        log_z = D * np.log(np.trapezoid(np.exp(-0.5 * nodes**2 - 0.1 * nodes**4), nodes))
        result, x = climbed(quartic).one_mode.run_if_all_climbs_end_there()
        assert x.shape == (500, D) and abs(result.log_evidence - log_z) < 0.3

    @pytest.mark.parametrize(
        "energy_fn, by",
        [
            (two_wells, {}),
            (quartic, {"n_features_of_one_mode": D}),
            (quartic, {"n_temperatures": 1, "n_hessians": 0, "inflation": 5.0}),  # far from a Gaussian
            (lambda x: (0.5 * np.asarray(x) ** 2).sum(1), {}),  # without a gradient
        ],
    )
    def test_where_a_race_is_better(self, energy_fn, by):
        assert climbed(energy_fn, **by).one_mode.run_if_all_climbs_end_there() is None

    @pytest.mark.parametrize("log_mass, found", [(-1e9, True), (0.0, False)])
    def test_climbs_that_went_astray(self, log_mass, found):
        """Their ends have no mass to speak of; another mode with mass has."""
        run = climbed(quartic)
        far = Standardization.from_moments(torch.full((D,), 99.0), torch.eye(D))
        run.modes.append(Mode(far, log_mass))
        assert (run.one_mode.run_if_all_climbs_end_there() is not None) == found

    def test_no_climb_ended(self):
        run = climbed(quartic)
        run.modes = []
        assert run.one_mode.run_if_all_climbs_end_there() is None

    @pytest.mark.slow
    @pytest.mark.parametrize("seed", [0, 1])
    def test_what_it_saves(self, seed):
        """Of 70 skew and correlated coordinates: evaluations, and what particles' moments lose in the bound."""
        root = torch.eye(70, dtype=torch.float64) + 0.5 * torch.eye(70, dtype=torch.float64).roll(1, 0)
        spent = {}
        for n in (64, 100):
            energy = Energy(lambda x: (0.3 * (x @ root.to(x)).exp() + 0.25 * (x @ root.to(x)) ** 2).sum(1), 70)
            by = Pilot(high_dimension=HighDimension(n_features_of_one_mode=n))
            result, _ = run_pilot(energy, 2000, seeded(seed), pilot=by)
            spent[n] = energy.n_energy_evals, result.n_temperatures
        assert spent[64][0] < 0.5 * spent[100][0] and spent[64][1] < spent[100][1]


class TestRefined:
    def run(self, x, energy_fn=quartic):
        """A tempered run whose particles are x."""
        run = object.__new__(TemperedRun)
        run.x, run.gaussian, run.by = x, None, Pilot().tempering
        run.standardization = Standardization.from_moments(x.mean(0), torch.cov(x.T))
        return run

    def test_a_gaussian_that_knows_the_particles(self):
        run = self.run(torch.randn(400, 30, dtype=torch.float64, generator=seeded()))
        exact = Standardization.from_moments(torch.zeros(30), torch.eye(30))
        run.refine(exact, 0.2)  # the particles' own moments fit them better, by chance
        assert run.standardized() is exact

    def test_a_gaussian_around_one_of_two_modes(self):
        x = torch.randn(400, 30, dtype=torch.float64, generator=seeded())
        x[200:, 0] += 20
        run = self.run(x)
        run.refine(Standardization.from_moments(torch.zeros(30), torch.eye(30)), 0.2)
        assert run.gaussian is None and float(run.standardized().loc[0]) == pytest.approx(10, abs=1)

    @pytest.mark.parametrize(
        "energy_fn, d, refined",
        [
            (lambda x: (0.5 * x**2 + 0.5 * (x + 1).exp()).sum(1), 24, True),
            (lambda x: (0.5 * x**2 + 0.5 * (x + 1).exp()).sum(1), 20, False),
            (lambda x: (0.5 * np.asarray(x) ** 2).sum(1), 24, False),
        ],
    )
    def test_when_it_is_looked_for(self, energy_fn, d, refined, monkeypatch):
        seen = []
        monkeypatch.setattr(
            "skcds.explore.one_mode.best_gaussian", lambda energy, start, *rest: (seen.append(start) or start, False)
        )
        run_pilot(Energy(energy_fn, d, generator=seeded()), 300, seeded())
        assert bool(seen) == refined
