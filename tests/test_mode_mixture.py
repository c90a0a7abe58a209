"""Mixtures that know the modes: their expectation maximisation, what is added to them, and what they are worth."""

import functools
import math
import warnings

import numpy as np
import pytest
import torch
from cases import slow
from sklearn.mixture import GaussianMixture

from skcds.density.energy import Energy
from skcds.explore.adaptive import explore
from skcds.explore.mixture import TMixture
from skcds.explore.modes import climbs_from
from skcds.explore.store import Store, log_evidence, n_effective
from skcds.specifications import Adaptive, MapFit, Mixture, Survey

MANY = 1e12  # effective points, beside which what a component was counts for nothing


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def points(n, seed=0):
    """Of two bent clouds and a round one."""
    x = torch.randn(n, 2, generator=seeded(seed)).double()
    third = torch.arange(n) % 3
    x[third == 0, 1] += 0.3 * x[third == 0, 0] ** 2
    return x + double([0.0, 0.0], [7.0, 1.0], [2.0, 8.0])[third]


def begun(freedom):
    loc = double([1.0, 1.0], [5.0, 0.0], [1.0, 6.0])
    return TMixture(double(1.0, 1.0, 2.0), loc, 2 * torch.eye(2).double().expand(3, 2, 2), freedom)


class TestImproved:
    @pytest.mark.parametrize("n_iter", [1, 20])
    def test_of_gaussians_is_that_of_scikit_learn(self, n_iter):
        x, first = points(600), begun(math.inf)
        mixture = first.improved(x, MANY, Mixture(n_iter=n_iter))
        start = {"weights_init": first.weights.numpy(), "means_init": first.loc.numpy()}
        start["precisions_init"] = np.linalg.inv((first.scale @ first.scale.mT).numpy())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that so few iterations do not converge
            by_others = GaussianMixture(3, max_iter=n_iter, tol=0.0, reg_covar=0.0, **start).fit(x.numpy())
        np.testing.assert_allclose(mixture.weights, by_others.weights_, rtol=1e-6)
        np.testing.assert_allclose(mixture.loc, by_others.means_, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(mixture.scale @ mixture.scale.mT, by_others.covariances_, rtol=1e-6, atol=1e-8)

    @pytest.mark.parametrize("freedom", [1.0, 5.0, 30.0])
    def test_makes_points_likelier_in_every_iteration(self, freedom):
        x, mixture, means = points(600), begun(5.0), []
        for _ in range(15):
            mixture = mixture.improved(x, MANY, Mixture(n_iter=1), freedom)
            means.append(float(mixture.log_prob(x).mean()))
        assert mixture.freedom == freedom and (np.diff(means) > -1e-12).all() and means[-1] > means[0] + 0.05

    def test_components_without_points_stay_as_they_were(self):
        x, first = points(600)[::3], begun(5.0)  # the first cloud alone
        first.loc[1:] += 1e3
        mixture = first.improved(x, 100.0, Mixture())
        torch.testing.assert_close(mixture.loc[1:], first.loc[1:], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(mixture.scale[1:], first.scale[1:], rtol=1e-3, atol=1e-3)
        assert mixture.weights[0] > 0.9 and (mixture.weights > 0).all()  # what is not met yet may still be there

    def test_points_on_a_line(self):
        """Covariances are singular, but for what the components were."""
        x = torch.linspace(-1, 1, 50).double()[:, None] * double(1.0, 1.0)
        mixture = begun(30.0).improved(x, MANY, Mixture())
        assert all(value.isfinite().all() for value in (mixture.weights, mixture.loc, mixture.scale))


class TestLacking:
    """A known cloud, and one that a mixture lacks."""

    LOC = double([0.0, 0.0], [20.0, 0.0])

    def lacking(self, share, most=5, **fields):
        x = torch.randn(1000, 2, generator=seeded(0)).double() + self.LOC[(torch.arange(1000) >= 1000 * share).long()]
        one = double(1.0)
        target = TMixture(double(share, 1 - share), self.LOC, torch.eye(2).double().expand(2, 2, 2), math.inf)
        known = TMixture(one, self.LOC[:1], torch.eye(2).double()[None], 5.0)
        return known.lacking(x, target.log_prob(x), torch.zeros(1000).double(), most, Mixture(**fields))

    @pytest.mark.parametrize("share", [0.5, 0.95, 0.995])
    def test_it_is_there_with_its_mass(self, share):
        parts = self.lacking(share)
        assert all((part.loc - self.LOC[1]).norm() < 5 for _, part in parts)
        assert sum(mass for mass, _ in parts) == pytest.approx(1 - share, abs=0.002)

    def test_nothing_is_where_nothing_is_lacking(self):
        assert self.lacking(1.0) == []
        assert self.lacking(0.95, least_mass=0.1) == []  # nor where it is less than this
        assert self.lacking(0.95, lack=1e300) == []

    def test_at_most_so_many(self):
        assert len(self.lacking(0.5, most=1)) == 1 and self.lacking(0.5, most=0) == []


def scattered(n_modes, seed):
    """An energy of Gaussians of one width, log Z of 0, and their means."""
    means = 60 * torch.rand(n_modes, 2, generator=seeded(seed)).double() - 30

    def energy_fn(x):
        square = (x[:, None] - means.to(x)).square().sum(2)
        return -torch.logsumexp(-0.5 * square, 1) + math.log(2 * math.pi * n_modes)

    return energy_fn, means


def wells(x):
    """Three pairs of wells, eight modes, some with a twentieth of the mass of others; log Z of 0."""
    half = torch.logaddexp(math.log(0.7) - 0.5 * ((x - 2) / 0.3) ** 2, math.log(0.3) - 0.5 * ((x + 2) / 0.3) ** 2)
    return -(half - math.log(0.3) - 0.5 * math.log(2 * math.pi)).sum(1)


def explored(energy_fn, d, n_evals, by, places, **options):
    """By modes that climbs from the places end at."""
    energy, store, generator = Energy(energy_fn, d, generator=seeded(0)), Store(d), seeded(0)
    modes, end = climbs_from(energy, places), energy.n_energy_evals + n_evals
    explore(energy, store, modes, generator, lambda: end - energy.n_energy_evals, by=by, **options)
    return store


class TestExplore:
    QUICK = MapFit(n_iter=25)

    @pytest.mark.parametrize("seed", [0, *slow(1, 2)])
    def test_scattered_modes_have_good_proposals(self, seed):
        """Without, mixtures merge modes: their draws have a third of the effective points."""
        energy_fn, means = scattered(25, seed)
        shares = []
        for n_iter in (20, 0):
            by = Adaptive(rounds=4, mixture=Mixture(n_iter=n_iter, max_fitted=2000), map=self.QUICK)
            store = explored(energy_fn, 2, 4000, by, means)
            shares.append(n_effective(store.log_weights()) / len(store))
            assert abs(log_evidence(store.log_weights())) < 0.1
        assert shares[0] > 0.6 and shares[0] > 1.5 * shares[1]

    def test_modes_that_no_climb_ended_at_are_found(self):
        """Of eight modes, four are known, no two of which are neighbours."""
        known = double([2.0, 2.0, 2.0], [2.0, -2.0, -2.0], [-2.0, 2.0, -2.0], [-2.0, -2.0, 2.0])
        energy, generator = Energy(wells, 3, generator=seeded(0)), seeded(0)
        modes = climbs_from(energy, known)
        for share, found in ((0.15, 8), (0.0, 4)):  # of the evaluations for climbs
            by, end = Adaptive(rounds=6, map=self.QUICK, survey=Survey(share=share)), energy.n_energy_evals + 4000
            all_modes, store = list(modes), Store(3)
            budget = functools.partial(lambda end: end - energy.n_energy_evals, end)
            explore(energy, store, all_modes, generator, budget, by=by, may_miss=True)
            assert len(all_modes) == found
            assert abs(log_evidence(store.log_weights())) < 0.1  # by further components alone, too
        never = Adaptive(mixture=Mixture(lack=1e300, scales=(1e-3,), broad=1.0), map=self.QUICK)
        known = torch.cartesian_prod(double(2.0), double(2.0, -2.0), double(2.0, -2.0))
        lost = explored(wells, 3, 1500, never, known)
        assert abs(log_evidence(lost.log_weights()) - math.log(0.7)) < 0.1

    def test_climbs_end_where_they_find_nothing_new(self):
        """Of two bent modes, which no mixture has the shape of, there are always points that it lacks."""

        def bent(x):
            y = x[:, 0] - torch.sign(x[:, 1]) * 0.5 * (x[:, 1].abs() - 8) ** 2
            return 0.5 * (y / 0.1) ** 2 + 0.5 * ((x[:, 1].abs() - 8) / 2) ** 2

        energy, store, generator = Energy(bent, 2, generator=seeded(0)), Store(2), seeded(0)
        modes = climbs_from(energy, double([0.0, 8.0], [0.0, -8.0]))
        end = energy.n_energy_evals + 3000
        before = energy.n_energy_evals
        explore(
            energy, store, modes, generator, lambda: end - energy.n_energy_evals, by=Adaptive(rounds=6, map=self.QUICK)
        )
        assert len(modes) == 2 and energy.n_energy_evals - before - len(store) < 15 * 60  # 8 + 4 + 2 + 1 climbs
