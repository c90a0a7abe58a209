"""Weights of an exploration's points by the proposals of their own round, and the log Z that these tell."""

import math

import numpy as np
import pytest
import torch
from cases import slow

from skcds import Pilot
from skcds.density.energy import Energy
from skcds.explore.adaptive import explore
from skcds.explore.mixture import TMixture
from skcds.explore.pilot import run_pilot
from skcds.explore.rounds import TOO_LOW, final_weights, weights_by_rounds
from skcds.explore.store import Store, log_evidence, n_effective
from skcds.explore.weighed import WeighedPoints
from skcds.importance import log_evidence as with_se
from skcds.specifications import Adaptive, MapFit, Mixture
from skcds.train.budget import Budget

D, WELL = 2, 4.0  # dimensions, and the place of two wells
SE = 5  # standard errors: a false alarm of 6e-7


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def two_wells(x):
    """Log density of two Gaussians of the same mass, normalised."""
    parts = torch.stack([-0.5 * ((x - at) ** 2).sum(1) for at in (-WELL, WELL)])
    return torch.logsumexp(parts, 0) - math.log(2) - 0.5 * D * math.log(2 * math.pi)


def at(*places, width=1.3):
    """A mixture of as many round components, of the same mass."""
    loc = torch.tensor(places, dtype=torch.float64)[:, None].expand(-1, D)
    return TMixture(torch.ones(len(loc)), loc, width * torch.eye(D, dtype=torch.float64).expand(len(loc), -1, -1), 5.0)


def store_of(*rounds, n=4000, seed=0, log_prob=two_wells):
    """With n points of each proposal of each round."""
    store, generator = Store(D), seeded(seed)
    for proposals in rounds:
        store.begin_round()
        for proposal in proposals:
            x = proposal.sample(n, generator)
            store.add(proposal, x, log_prob(x), torch.zeros_like(x))
    return store


def error_and_se(log_weights):
    return with_se(log_weights.numpy())


@pytest.mark.parametrize("seed", range(3))
def test_of_one_round_they_are_those_under_all_proposals(seed):
    store = store_of([at(-WELL), at(WELL, width=2.0)], seed=seed)
    assert torch.allclose(weights_by_rounds(store), store.log_weights())
    error, se = error_and_se(final_weights(store))
    assert abs(error) < SE * se < 0.1


@pytest.mark.parametrize("seed", range(3))
def test_a_round_that_misses_a_mode_counts_little(seed):
    """By its own weights, which are even, it counts as much as the other, and log Z is low by half of log 2."""
    store = store_of([at(-WELL, width=1.1)], [at(-WELL, WELL)], seed=seed)
    own = store.log_weights_of(0)
    assert n_effective(own) > 0.5 * len(own) and log_evidence(own) < -0.6
    by_rounds = weights_by_rounds(store)
    assert abs(log_evidence(by_rounds)) < 0.03  # five standard errors of 4000 draws of which .8 are effective are .04
    assert torch.logsumexp(by_rounds[store.origin == 0], 0) - torch.logsumexp(by_rounds, 0) < math.log(0.01)


@pytest.mark.parametrize("seed", range(3))
def test_proposals_that_were_fitted_to_points(seed):
    """Narrow components at the points of the round before, by their weights, and a broad one: as overfitted as can be.

    Under all proposals log Z is low by tenths, dozens of standard errors.
    """
    store = store_of([at(-WELL, WELL, width=2.0)], n=300, seed=seed)
    chosen = store.x[store.particles(60, seeded(seed))]
    narrow = TMixture(torch.ones(60), chosen, 0.25 * torch.eye(D, dtype=torch.float64).expand(60, -1, -1), 5.0)
    fitted = TMixture.joined([(0.8, narrow), (0.2, at(-WELL, WELL, width=2.0))])
    store.begin_round()
    x = fitted.sample(6000, seeded(seed + 10))
    store.add(fitted, x, two_wells(x), torch.zeros_like(x))
    first = store.origin == 0
    under_all = log_evidence(store.log_weights()[first]) - log_evidence(store.log_weights_of(0))
    assert under_all < -0.2
    error, se = error_and_se(weights_by_rounds(store))
    assert abs(error) < SE * se


def test_final_weights_have_the_shape_of_those_under_all_proposals_or_are_by_rounds():
    near = store_of([at(-WELL, WELL)], [at(-WELL, WELL, width=1.5)])
    together, by_rounds, final = near.log_weights(), weights_by_rounds(near), final_weights(near)
    assert torch.allclose(torch.log_softmax(final, 0), torch.log_softmax(together, 0))
    assert log_evidence(final) == pytest.approx(log_evidence(by_rounds), abs=1e-12)
    near._log_q += (
        2 * TOO_LOW * (near.rounds[:, None] != near.rounds[near.origin])
    )  # as if fitted to the other's points
    assert torch.equal(final_weights(near), weights_by_rounds(near))


def test_they_are_what_a_fit_keeps():
    store = store_of([at(-WELL, WELL)], [at(-WELL, WELL, width=1.5)])
    store._log_q += 0.05 * (store.rounds[:, None] != store.rounds[store.origin])
    final = final_weights(store)
    assert abs(log_evidence(final) - log_evidence(store.log_weights())) > 0.01
    assert np.array_equal(WeighedPoints.of(store, None).log_weights, final.numpy())


def test_they_tell_log_z_of_the_pilot():
    """Within few evaluations, whose points are weighed."""
    energy = Energy(lambda x: -two_wells(x), D, generator=seeded())
    energy.monitor = budget = Budget(None, energy.n_energy_evals + 3000)
    budget.energy, store = energy, Store(D)
    pilot = Pilot(adaptive=Adaptive(rounds=5, map=MapFit(n_iter=10), mixture=Mixture(max_fitted=1000)))
    result, _ = run_pilot(energy, 500, seeded(), budget, store=store, pilot=pilot)
    expected = log_evidence(final_weights(store))
    assert result.log_evidence == expected != log_evidence(store.log_weights())


def test_weights_by_rounds_tell_nothing_where_few_points_decide_them():
    """A point that its own round hardly proposes, and the other does."""
    store = store_of([at(-WELL, WELL)], [at(-WELL, WELL, width=1.5)])
    store._log_q[0, 0] -= 20
    assert n_effective(weights_by_rounds(store)) < 100
    assert torch.equal(final_weights(store), store.log_weights())
    error, se = error_and_se(final_weights(store))
    assert abs(error) < SE * se


def test_points_outside_of_the_support():
    half = store_of([at(0.0, width=3.0)], [at(WELL)], log_prob=lambda x: two_wells(x).where(x[:, 0] > 0, -torch.inf))
    log_weights = final_weights(half)
    assert torch.equal(log_weights == -torch.inf, half.x[:, 0] <= 0)
    assert log_evidence(log_weights) == pytest.approx(-math.log(2), abs=0.1)
    nothing = store_of([at(0.0)], log_prob=lambda x: torch.full((len(x),), -torch.inf, dtype=torch.float64))
    assert (final_weights(nothing) == -torch.inf).all()


def skew_in(d):
    """Energy of a correlated density whose log Z is known by quadrature, but for the dimension."""
    from scipy.integrate import quad

    log_z = d * math.log(quad(lambda t: math.exp(-0.5 * t * t - 0.5 * math.exp(t)), -12, 6)[0])
    mixing = torch.linalg.qr(torch.randn(d, d, generator=seeded(7), dtype=torch.float64))[0]
    return lambda x: (0.5 * (x @ mixing.to(x)) ** 2 + 0.5 * (x @ mixing.to(x)).exp()).sum(1), log_z


@pytest.mark.parametrize("seed", [0, *slow(1, 2)])
def test_of_an_exploration_in_dozens_of_dimensions(seed):
    """Under all proposals log Z is low by more than five standard errors, and by rounds it is right."""
    d = 30
    energy_fn, log_z = skew_in(d)
    energy, store = Energy(energy_fn, d, generator=seeded(seed)), Store(d)
    by = Adaptive(rounds=5, map=MapFit(n_iter=30), mixture=Mixture(max_fitted=1500, max_components=4))
    end = energy.n_energy_evals + 6000
    explore(energy, store, [], seeded(seed), lambda: end - energy.n_energy_evals, by=by)
    assert len(store.rounds) == len(store.proposals) > len(store.rounds.unique()) > 2
    assert (store.rounds.diff() >= 0).all()
    together, se = error_and_se(store.log_weights())
    assert together < log_z - 5 * se
    found, se = error_and_se(final_weights(store))
    assert abs(found - log_z) < SE * se < 0.15
