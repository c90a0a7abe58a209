"""The race of short runs: what it does where a limit or Ctrl-C ends it, and how it chooses and widens."""

import math

import pytest
import torch

from skcds._support.errors import InvalidEnergyError, Spent
from skcds.density.energy import Energy
from skcds.explore import race
from skcds.explore.pilot import run_pilot
from skcds.explore.race import Race
from skcds.train.budget import Budget

LOG_Z = math.log(2 * math.pi)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def normal(x):
    return 0.5 * (x**2).sum(1)


class Stopped:
    """A standard normal density; as soon as it is armed, the user presses Ctrl-C or the evaluations are spent."""

    def __init__(self, ending):
        self.ending, self.armed, self.n_calls = ending, False, 0
        self.energy = Energy(self, 2, generator=seeded(0))
        self.budget = Budget(None, None, self.energy)
        self.energy.monitor = self.budget

    def __call__(self, x):
        if self.armed:
            self.n_calls += 1
            if self.ending is KeyboardInterrupt:
                raise KeyboardInterrupt
        return normal(x)

    def arm(self, function, call):
        """The function, from whose n-th call on it is armed."""
        n_calls = [0]

        def armed(*args):
            n_calls[0] += 1
            if n_calls[0] == call:
                self.armed = True
                if self.ending is Spent:
                    self.energy.monitor = Budget(None, 0, self.energy)
            return function(*args)

        return armed


@pytest.mark.parametrize("ending", [KeyboardInterrupt, Spent])
@pytest.mark.parametrize("place", ["rounding_noise", "check_fast_dtype"])
class TestEndsInTheSoundnessCheck:
    """Evaluations of the look for rounding are the user's, too: what the run has found is kept, and nothing follows.

    Ctrl-C had ended the fit there, with what it had found lost.
    """

    def stop_in(self, place, call, ending, monkeypatch):
        stopped = Stopped(ending)
        owner = race if place == "rounding_noise" else Energy
        monkeypatch.setattr(owner, place, stopped.arm(getattr(owner, place), call))
        return stopped

    @pytest.mark.parametrize("call", [1, 2])
    def test_race(self, place, ending, call, monkeypatch):
        stopped = self.stop_in(place, call, ending, monkeypatch)
        found = Race(stopped.energy, 3, math.inf, seeded(0), stopped.budget)
        winner = found.run(None, [])
        assert isinstance(found.stopped, ending) and len(found.runs) == call
        assert stopped.n_calls <= 1  # nothing is evaluated after it
        assert abs(winner.log_evidence - LOG_Z) < 0.5  # .06 is its standard deviation
        assert winner.usable and winner.x.isfinite().all()

    def test_pilot(self, place, ending, monkeypatch):
        stopped = self.stop_in(place, 1, ending, monkeypatch)
        result, x = run_pilot(stopped.energy, 500, seeded(0), stopped.budget)
        assert stopped.budget.interrupted == (ending is KeyboardInterrupt)
        assert abs(result.log_evidence - LOG_Z) < 0.5 and result.n_temperatures == 0
        assert x.isfinite().all() and (x.std(0) - 1).abs().max() < 0.3


@pytest.mark.parametrize("ending", [KeyboardInterrupt, Spent])
def test_ends_in_the_search_for_a_cut(ending, monkeypatch):
    """Where rounding begins is looked for with evaluations as well."""
    stopped = Stopped(ending)
    found = Race(stopped.energy, 3, math.inf, seeded(0), stopped.budget)
    found.enter(1.0)
    found.unsound = [(found.best.x[:8] + 30.0, 5.0)]
    monkeypatch.setattr(race, "find_cut", stopped.arm(race.find_cut, 1))
    found.enter(3.0)
    assert isinstance(found.stopped, ending) and stopped.n_calls <= 1
    found.enter(10.0)
    assert len(found.runs) == 2 and found.best.log_evidence > -math.inf


def test_other_errors_are_not_taken_for_an_end(monkeypatch):  # negative control
    def broken(*args):
        raise ZeroDivisionError

    monkeypatch.setattr(race, "rounding_noise", broken)
    energy = Energy(normal, 2, generator=seeded(0))
    with pytest.raises(ZeroDivisionError):
        Race(energy, 3, math.inf, seeded(0), Budget(None, None, energy)).run(None, [])


def test_rounding_is_looked_for_where_the_density_is_largest(monkeypatch):
    """And at as many of the other particles."""
    seen = []
    monkeypatch.setattr(race, "rounding_noise", lambda energy, points, spread, generator: seen.append(points) or 0.0)
    energy = Energy(normal, 2, generator=seeded(0))
    x = torch.randn(500, 2, generator=seeded(1), dtype=torch.float64)
    assert Race(energy, 3, math.inf, seeded(0), Budget(None, None, energy))._is_sound(x)
    assert torch.equal(seen[0], torch.cat([x[normal(x).argsort()[:32]], x[:32]]))


def test_few_particles_without_a_hit_are_followed_by_all():
    """A support that 30 particles of each scale miss is looked for with 1000 before narrower Gaussians are tried."""
    energy = Energy(lambda x: torch.full_like(x[:, 0], torch.inf), 2, generator=seeded(0))
    found = Race(energy, 3, 12_000, seeded(0), Budget(None, None, energy))
    with pytest.raises(InvalidEnergyError, match="at every point that the pilot tried"):
        found.run(None, [])
    assert [(run.scale, len(run.x)) for run in found.runs[:11]] == [
        *((scale, 30) for scale in found.by.scales),
        *((scale, 1000) for scale in found.by.scales),
        (0.1, 1000),
    ]
