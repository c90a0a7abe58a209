"""Masses of regions from importance sampling: wrong ones are mended, and where the proposal is poor nothing is done."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cases import slow

from skcds import Pilot
from skcds.density.energy import Energy
from skcds.explore.balance import balance
from skcds.explore.climb import climb
from skcds.explore.nested_laplace import Along
from skcds.explore.pilot import _Pilot, run_pilot
from skcds.explore.result import PilotResult
from skcds.explore.start import Start
from skcds.explore.tempered_run import standardization_of
from skcds.specifications import Balance, Nested
from skcds.targets import Funnel
from skcds.train.budget import Budget

N = 4000
MEANS = torch.tensor([[-200.0, 50.0, 0.0], [-150.0, 90.0, 30.0], [-260.0, 20.0, -40.0]], dtype=torch.float64)
MASSES = np.array([0.5, 0.35, 0.15])
LOG_Z = 3.0


def mixture(x):
    """Energy of three Gaussians far from one another, of masses .5, .35, .15 and log Z of 3."""
    log_terms = torch.as_tensor(np.log(MASSES)).to(x) - 0.5 * torch.cdist(x, MEANS.to(x)) ** 2
    return -torch.logsumexp(log_terms, 1) + 1.5 * math.log(2 * math.pi) - LOG_Z


def draws(masses, seed):
    rng = np.random.default_rng(seed)
    k = rng.choice(3, N, p=masses)
    return MEANS[k] + torch.as_tensor(rng.standard_normal((N, 3)))


def shares(x):
    return np.bincount(torch.cdist(x, MEANS).argmin(1), minlength=3) / len(x)


def energy_of(function, d):
    return Energy(function, d, generator=torch.Generator().manual_seed(9))


def total_variation(masses):
    return 0.5 * np.abs(masses - MASSES).sum()


@pytest.mark.parametrize("seed", [2, *slow(0, 1, 3, 4)])
def test_wrong_masses_are_mended(seed):
    """From .35 off to .03: six deviations of the least mass's noise, of 8000 draws of which half are effective."""
    x = draws([0.15, 0.5, 0.35], seed)
    assert total_variation(shares(x)) > 0.3
    found, log_evidence = balance(energy_of(mixture, 3), x, 8000, torch.Generator().manual_seed(seed))
    assert total_variation(shares(found)) < 0.03
    assert log_evidence == pytest.approx(LOG_Z, abs=0.06)
    assert set(map(tuple, found.tolist())) <= set(map(tuple, x.tolist()))


@pytest.mark.parametrize("background, found", [(Balance.background, True), (0.0, False)])
def test_little_mass_that_is_spread_far_is_found(background, found):
    """A background of .03 twenty times as wide as the peak, of which particles have none.

    With wide components some 100 of 8000 draws are there: log Z, .03 apart, is off by .005 at most with chance 1e-6,
    and particles of the background are .02 to .04 of all. Without them, the negative control, log Z is too low.
    """

    def energy(x):
        squares = 0.5 * x.square().sum(1)
        wide = torch.full_like(squares, math.log(0.03 / 400)) - squares / 400
        return math.log(2 * math.pi) - torch.logaddexp(math.log(0.97) - squares, wide)

    x = torch.as_tensor(np.random.default_rng(0).standard_normal((N, 2)))
    by = Balance(max_components=10, background=background)
    drawn, log_evidence = balance(energy_of(energy, 2), x, 8000, torch.Generator().manual_seed(0), by=by)
    far = float((drawn.norm(dim=1) > 6).double().mean())
    if found:
        assert abs(log_evidence) < 0.015 and 0.02 < far < 0.04
    else:
        assert log_evidence < -0.015


def test_right_masses_stay():
    found, _ = balance(energy_of(mixture, 3), draws(MASSES, 1), 8000, torch.Generator().manual_seed(1))
    assert total_variation(shares(found)) < 0.03


def test_a_poor_proposal_changes_nothing():
    """Few draws of any mixture of fifty components are effective in a funnel of 20 dimensions."""
    x = torch.as_tensor(Funnel(20).sample(N, random_state=0))
    assert balance(energy_of(Funnel(20), 20), x, 8000, torch.Generator().manual_seed(0)) is None


@pytest.mark.slow
def test_a_mixture_without_a_mode_changes_nothing():
    """One component for three modes is as good as none; particles of forty modes, which eight components leave out."""
    rng = np.random.default_rng(3)
    means = torch.as_tensor(rng.uniform(-1000, 1000, (40, 2)))
    k = torch.as_tensor(rng.integers(0, 40, N))

    def energy(x):
        return -torch.logsumexp(-0.5 * torch.cdist(x, means.to(x)) ** 2, 1)

    x = means[k] + torch.as_tensor(rng.standard_normal((N, 2)))
    few = Balance(max_components=38, least_ess=0.01)
    found = balance(energy_of(energy, 2), x, 8000, torch.Generator().manual_seed(0), by=few)
    assert found is None or len(torch.cdist(found[0], means).argmin(1).unique()) == 40


def test_a_known_mode_without_particles_is_filled():
    """By draws of its Laplace approximation: half of the mass, of which no particle knows."""
    energy = energy_of(mixture, 3)
    lost = climb(energy, MEANS[0] + 1.0)
    x = draws([0.0, 0.7, 0.3], 2)
    found, log_evidence = balance(energy, x, 8000, torch.Generator().manual_seed(2), [lost])
    assert total_variation(shares(found)) < 0.03
    assert log_evidence == pytest.approx(LOG_Z, abs=0.06)
    near = found[torch.cdist(found, MEANS).argmin(1) == 0] - MEANS[0]
    assert near.std(0).numpy() == pytest.approx(np.ones(3), abs=0.1)


def test_evaluations_are_bounded():
    rows = []

    def counted(x):
        rows.append(len(x))
        return mixture(x)

    energy = energy_of(counted, 3)
    rows.clear()
    assert balance(energy, draws(MASSES, 0), Balance().fewest_draws - 1, torch.Generator().manual_seed(0)) is None
    assert sum(rows) == 0
    assert balance(energy, draws(MASSES, 0), Balance().fewest_draws, torch.Generator().manual_seed(0)) is not None
    assert sum(rows) == Balance().fewest_draws // 10 * 11


@pytest.mark.slow
def test_the_pilot_makes_use_of_it():
    """log Z to 5.6 standard errors of some 2000 effective draws of 3000; without, it is that of the tempering."""
    start = Start.from_parameter((MEANS.mean(0).numpy(), 60.0), 3)
    found = []
    for by in (Balance(max_components=10), Balance(fewest_draws=10**9)):
        result, x = run_pilot(
            energy_of(mixture, 3), 2000, torch.Generator().manual_seed(2), start=start, pilot=Pilot(balance=by)
        )
        found.append(result.log_evidence)
        assert total_variation(shares(x)) < 0.1
    assert abs(found[0] - LOG_Z) < 0.075
    assert found[0] != found[1]


def cut_funnel(d=10, at=-2.5):
    """Exact draws of Neal's funnel without its neck, which has .203 of the mass."""
    x = torch.as_tensor(Funnel(d).sample(2 * N, random_state=0))
    return x[x[:, 0] > at][:N]


@pytest.mark.parametrize("seed", [0, *slow(1, 2, 3)])
def test_a_neck_that_particles_lack_is_filled(seed):
    """By draws of Laplace's approximations along the first coordinate; without them nothing is done.

    Some 2700 of 6000 draws are effective: the share of the neck has a standard deviation of .008.
    """
    x, energy = cut_funnel(), energy_of(Funnel(10), 10)
    generator = torch.Generator().manual_seed(seed)
    along = Along(energy, Nested()).found(x, 800, generator, lambda: math.inf)
    found, log_evidence = balance(energy, x, 8000, generator, along=along)
    assert float((found[:, 0] < -2.5).double().mean()) == pytest.approx(0.203, abs=0.04)
    assert log_evidence == pytest.approx(0.0, abs=0.12)
    assert balance(energy, x, 8000, generator) is None


@pytest.mark.parametrize("lack, is_filled", [(0.2, True), (-1.5, False)])
def test_few_evaluations_in_many_dimensions_fill_a_neck(lack, is_filled):
    """Of a run's particles without it; not where the run has found more by a nat and a half, the negative control."""
    d, generator = 24, torch.Generator().manual_seed(0)
    energy, x = energy_of(Funnel(d), d), cut_funnel(d)
    pilot = _Pilot(energy, N, generator, Budget(None, None, energy), None, Pilot())
    before = PilotResult.of(standardization_of(x), -lack, 1.0, 5)
    result, found = pilot._with_a_neck(before, x)
    neck = float((found[:, 0] < -2.5).double().mean())
    if is_filled:
        assert abs(neck - 0.203) < 0.04 and abs(result.log_evidence) < 0.12
        assert result.noncentred.leading == (0,)
    else:
        assert neck == 0 and result is before


@pytest.mark.parametrize("share, is_filled", [(Balance.along, True), (0.0, False)])
def test_the_pilot_fills_a_neck(share, is_filled):
    """Where a run has left it out; with no share for the approximations, the negative control, it stays out."""
    energy = energy_of(Funnel(10), 10)
    generator = torch.Generator().manual_seed(0)
    by = Pilot(balance=Balance(along=share))
    run = SimpleNamespace(x=cut_funnel(), log_evidence=-0.2, tame_what_came_in=lambda tails: None)
    _Pilot(energy, N, generator, Budget(None, None, energy), None, by)._balance(run)
    neck = float((run.x[:, 0] < -2.5).double().mean())
    assert abs(neck - 0.203) < 0.04 if is_filled else neck == 0
    assert abs(run.log_evidence) < 0.12 if is_filled else run.log_evidence == -0.2
