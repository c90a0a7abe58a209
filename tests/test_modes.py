"""Modes that a tempered run loses: a spike within a slab, which is a phase transition of first order."""

import math

import numpy as np
import pytest
import torch
from cases import crossed, slow

from skcds.density.energy import Energy
from skcds.explore import modes
from skcds.explore.pilot import run_pilot


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def spike(d, sd, share):
    """A share of the mass in N(0, sd^2 I), the rest in N(0, I)."""

    def energy_fn(x):
        log_slab = -0.5 * (x**2).sum(1) + math.log(1 - share)
        log_spike = -0.5 * (x**2).sum(1) / sd**2 - d * math.log(sd) + math.log(share)
        return -torch.logaddexp(log_slab, log_spike) + 0.5 * d * math.log(2 * math.pi)

    return energy_fn


def share_of(x, sd, d):
    return float((x.square().sum(1) < (2 * sd) ** 2 * d).double().mean())


CASES = [(10, 0.025, 0.5), (10, 0.05, 0.3), (5, 0.05, 0.5), (5, 0.01, 0.4), (3, 0.003, 0.7)]


@pytest.mark.parametrize("case, seed", crossed([(0, 0), (4, 1)], range(5), [0, 1]))
def test_spikes_are_found(case, seed):
    """At the slab's own mode, where climbs from it end. One off it is a needle in a haystack.

    log Z is 0. Runs of 500 particles weigh the spike with a standard deviation of some .05; lost, it is
    log(1 - share), -.36 and less.
    """
    d, sd, share = CASES[case]
    result, x = run_pilot(Energy(spike(d, sd, share), d, generator=seeded(seed)), 1000, seeded(seed))
    assert abs(result.log_evidence) < 0.25
    assert abs(share_of(x, sd, d) - share) < 0.12


def test_without_climbs_it_is_lost(monkeypatch):  # negative control
    monkeypatch.setattr(
        "skcds.explore.pilot.find_lost_modes", lambda energy, x, log_evidence, *rest: (x, log_evidence, 0, [])
    )
    monkeypatch.setattr("skcds.explore.pilot._Pilot._climb", lambda self: None)
    result, x = run_pilot(Energy(spike(10, 0.025, 0.5), 10, generator=seeded(0)), 1000, seeded(0))
    assert result.log_evidence < -0.5 and share_of(x, 0.025, 10) < 0.1


@pytest.mark.parametrize("seed", [0, *slow(1, 2)])
def test_nothing_is_added_to_what_is_known(seed):
    """Exact draws of three Gaussians of different widths: no mode is lost."""
    means = torch.tensor([[0.0, 0.0], [6.0, 0.0], [0.0, 8.0]], dtype=torch.float64)
    sds = torch.tensor([1.0, 0.3, 2.0], dtype=torch.float64)

    def energy_fn(x):
        terms = -0.5 * ((x[:, None] - means.to(x)) ** 2).sum(2) / sds.to(x) ** 2 - 2 * sds.to(x).log()
        return -torch.logsumexp(terms - math.log(6 * math.pi), 1)

    rng = np.random.default_rng(seed)
    k = rng.integers(3, size=2000)
    x = means[k] + sds[k, None] * torch.from_numpy(rng.standard_normal((2000, 2)))
    energy = Energy(energy_fn, 2, generator=seeded(seed))
    same, log_evidence, n_found, _ = modes.find_lost_modes(energy, x, 0.0, [], 24, 10, seeded(seed))
    assert n_found == 0 and torch.equal(same, x) and log_evidence == 0.0
    some = x[torch.from_numpy(k != 1)]
    known = modes.climbs_from(energy, means)
    more, log_evidence, n_found, _ = modes.find_lost_modes(energy, some, math.log(2 / 3), known, 4, 10, seeded(seed))
    assert n_found == 1 and abs(log_evidence) < 0.15
    near = ((more - means[1]).norm(dim=1) < 1.5).double().mean()
    assert abs(float(near) - 1 / 3) < 0.07
