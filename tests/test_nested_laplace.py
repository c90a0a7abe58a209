"""Laplace's approximations along a coordinate: which coordinate, the masses of knots, and draws in the neck."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skcds.density.energy import Energy
from skcds.explore.adaptive import explore
from skcds.explore.mixture import TMixture
from skcds.explore.nested_laplace import Along, _knot, leading_coordinates, nested_laplace
from skcds.explore.store import Store, log_evidence, n_effective
from skcds.specifications import Adaptive, MapFit, Nested


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def funnel(d=10, sd=3.0):
    """Neal's, normalised: the first coordinate is N(0, sd^2), the others N(0, exp of it)."""

    def energy(x):
        v = x[:, 0]
        others = x[:, 1:].square().sum(1) * torch.exp(-v) + (d - 1) * v
        return 0.5 * (v / sd).square() + math.log(sd) + 0.5 * others + 0.5 * d * math.log(2 * math.pi)

    return energy


def funnel_draws(n, d=10, sd=3.0, seed=0):
    z = torch.randn(n, d, generator=seeded(seed), dtype=torch.float64)
    v = sd * z[:, :1]
    return torch.cat([v, z[:, 1:] * torch.exp(0.5 * v)], 1)


def banana(x):
    """The second coordinate is near the square of the first; normalised."""
    bent = x[:, 1] - x[:, 0].square()
    return (
        0.5 * (x[:, 0].square() + bent.square() / 0.01 + x[:, 2].square()) + 1.5 * math.log(2 * math.pi) + math.log(0.1)
    )


def banana_draws(n, seed=0):
    z = torch.randn(n, 3, generator=seeded(seed), dtype=torch.float64)
    z[:, 1] = z[:, 0] ** 2 + 0.1 * z[:, 1]
    return z


def gaussian(covariance):
    precision = torch.linalg.inv(covariance)
    log_z = 0.5 * len(covariance) * math.log(2 * math.pi) + 0.5 * torch.logdet(covariance)
    return lambda x: 0.5 * ((x @ precision.to(x)) * x).sum(1) + float(log_z)


def weights(energy, mixture, n, seed=0):
    x = mixture.sample(n, seeded(seed))
    return x, energy.log_prob(x) - mixture.log_prob(x)


class TestLeadingCoordinates:
    def test_the_scale_of_a_funnel(self):
        """With its neck cut off, too."""
        x = funnel_draws(1000)
        assert leading_coordinates(x) == leading_coordinates(x[x[:, 0] > -2.5]) == [0]

    def test_the_place_of_a_banana(self):
        """And of one bent twice, two coordinates of which are close to proportional."""
        x = banana_draws(500)
        assert leading_coordinates(x)[0] == 0
        again = 0.5 * x[:, :1].square() + 0.1 * torch.randn(500, 1, generator=seeded(7)).double()
        assert leading_coordinates(torch.cat([x, again], 1))[0] == 0

    @pytest.mark.parametrize("seed", range(5))
    def test_none_of_a_gaussian(self, seed):
        """Correlations of 2000 draws have an error of .022, so that one of .25 is 11 of them: no false alarm."""
        a = torch.randn(6, 6, generator=seeded(seed), dtype=torch.float64)
        z = torch.randn(2000, 6, generator=seeded(seed + 100), dtype=torch.float64)
        assert leading_coordinates(z @ a) == []

    @settings(max_examples=20, deadline=None)
    @given(order=st.permutations(range(4)), logs=st.lists(st.floats(-5, 5), min_size=4, max_size=4))
    def test_follow_their_order_and_do_not_see_units(self, order, logs):
        x = funnel_draws(500, d=4)
        units = torch.tensor(logs, dtype=torch.float64).exp()
        found = leading_coordinates(x)
        assert [order[k] for k in leading_coordinates((x * units)[:, order])] == found

    def test_too_few_points_and_a_single_coordinate(self):
        assert leading_coordinates(funnel_draws(10)) == []
        assert leading_coordinates(torch.randn(100, 1, generator=seeded())) == []

    def test_no_more_than_wanted(self):
        assert leading_coordinates(funnel_draws(1000), Nested(most_coordinates=0)) == []

    def test_constant_coordinates(self):
        x = funnel_draws(2000, d=4)
        x[:, 3] = 1.0
        assert leading_coordinates(x)[0] == 0


class TestKnot:
    def test_is_exact_of_a_gaussian(self):
        """Mode, covariance and integral over the others, from another place and with wrong scales."""
        a = torch.randn(4, 4, generator=seeded(3), dtype=torch.float64)
        covariance = a @ a.T + 0.1 * torch.eye(4)
        energy = Energy(gaussian(covariance), 4)
        knot = _knot(
            energy, torch.tensor([2.0, 5.0, -3.0, 1.0]).double(), torch.tensor([3.0, 1.0, 0.1, 9.0]).double(), 1
        )
        others = [0, 2, 3]
        gain = covariance[others, 1] / covariance[1, 1]
        torch.testing.assert_close(knot.x[others], 5 * gain, rtol=1e-6, atol=1e-6)
        conditional = covariance[others][:, others] - torch.outer(gain, gain) * covariance[1, 1]
        torch.testing.assert_close(knot.covariance[others][:, others], conditional, rtol=1e-6, atol=1e-8)
        expected = -0.5 * 25 / covariance[1, 1] - 0.5 * torch.log(2 * math.pi * covariance[1, 1])
        assert knot.log_mass == pytest.approx(float(expected), abs=1e-6)

    def test_none_on_a_saddle(self):
        energy = Energy(lambda x: x[:, 0] ** 2 - x[:, 1] ** 2 + x[:, 1] ** 4 * 0, 2)
        assert _knot(energy, torch.zeros(2).double(), torch.ones(2).double(), [0]) is None

    def test_none_on_a_plain(self):
        """Without curvature there is no step to try, so that the energy is not asked at NaN."""
        energy = Energy(lambda x: 0.5 * x[:, 0].square() + 0.0 * x[:, 1], 2)
        assert _knot(energy, torch.zeros(2).double(), torch.ones(2).double(), [0]) is None
        assert nested_laplace(energy, torch.randn(100, 2, generator=seeded()).double(), 0) is None
        assert energy.n_invalid == 0

    def test_none_where_the_energy_is_not_finite(self):
        energy = Energy(lambda x: torch.where(x[:, 0] > 0, 0.5 * x.square().sum(1), torch.inf), 2)
        assert _knot(energy, torch.tensor([-1.0, 0.0]).double(), torch.ones(2).double(), [1]) is None


class TestNestedLaplace:
    def test_reaches_the_neck_of_a_funnel_from_points_without_it(self):
        """Of 10 000 draws some .5 are effective; that log Z is right within five errors fails for 1e-6 of the seeds.

        A mixture that is fitted to the points, the negative control, has hardly any effective draw there.
        """
        x = funnel_draws(2000)
        energy = Energy(funnel(), 10)
        before = energy.n_energy_evals
        x = x[x[:, 0] > -2.5][:300]
        mixture = nested_laplace(energy, x, 0)
        assert energy.n_energy_evals - before < 1500
        y, log_weights = weights(energy, mixture, 10_000)
        share = n_effective(log_weights) / 10_000
        assert share > 0.35
        error = math.sqrt((1 / share - 1) / 10_000)
        assert abs(log_evidence(log_weights)) < 5 * error
        in_neck = y[:, 0] < -6
        assert 0.015 < float(torch.softmax(log_weights, 0)[in_neck].sum()) < 0.031  # .0228, with an error of .0016
        assert n_effective(log_weights[in_neck]) > 100
        y, log_weights = weights(energy, TMixture.fitted(x, 8, 0), 10_000)
        assert n_effective(log_weights[y[:, 0] < -6]) < 50

    def test_follows_a_banana(self):
        energy = Energy(banana, 3)
        _, log_weights = weights(energy, nested_laplace(energy, banana_draws(300), 0), 10_000)
        assert n_effective(log_weights) > 3000
        assert abs(log_evidence(log_weights)) < 0.08  # five errors

    @pytest.mark.parametrize("factor", [0.05, 20.0])
    def test_from_points_of_another_width(self, factor):
        """The distance of knots is found again by their masses."""
        energy = Energy(funnel(4), 4)
        x = torch.randn(200, 4, generator=seeded(), dtype=torch.float64) * factor
        _, log_weights = weights(energy, nested_laplace(energy, x, 0), 10_000)
        assert n_effective(log_weights) > 3000

    def test_units_do_not_matter(self):
        units = torch.tensor([1e3, 1.0, 1e-3, 7.0]).double()
        x, plain = funnel_draws(300, 4), Energy(funnel(4), 4)
        scaled = Energy(lambda y: funnel(4)(y / units.to(y)), 4)
        one, other = nested_laplace(plain, x, 0), nested_laplace(scaled, x * units, 0)
        torch.testing.assert_close(other.loc, one.loc * units, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(other.weights, one.weights, rtol=1e-4, atol=1e-6)

    def test_of_two_scales_with_the_other_one_given(self):
        """Otherwise the mode of the others is in the neck of the other scale, the negative control."""

        def both(x):
            return funnel(4)(x[:, :4]) + funnel(4)(x[:, 4:])

        energy, x = Energy(both, 8), torch.cat([funnel_draws(2000, 4, seed=s) for s in (1, 2)], 1)
        assert sorted(leading_coordinates(x)) == [0, 4]
        y, log_weights = weights(energy, nested_laplace(energy, x, 0, beside=[4]), 20_000)
        assert n_effective(log_weights) > 2000
        assert n_effective(log_weights[y[:, 0] < -6]) > 30
        alone = nested_laplace(energy, x, 0)
        assert alone is None or n_effective(weights(energy, alone, 20_000)[1]) < 400

    def test_ends_after_so_many_evaluations(self):
        energy = Energy(funnel(), 10)
        before = energy.n_energy_evals
        nested_laplace(energy, funnel_draws(300), 0, most=50)
        assert energy.n_energy_evals - before <= 50 + 12 * (11 + 5)  # and those of the last knot

    def test_none_without_a_place_to_begin(self):
        energy = Energy(lambda x: torch.where(x[:, 0] > 50, 0.5 * x.square().sum(1), torch.inf), 2)
        assert nested_laplace(energy, torch.randn(100, 2, generator=seeded()).double(), 0) is None


class TestAlong:
    def mixture(self):
        return TMixture.of_widths(torch.zeros(2).double(), [1.0])

    def test_keeps_the_best(self):
        along = Along(None, Nested(least_ess=0.05, kept=0.3))
        first, better, poor, other = (self.mixture() for _ in range(4))
        along.take(0, poor, 0.01)
        assert along.mixture is None
        along.take(0, first, 0.2)
        along.take(0, better, 0.5)
        along.take(0, first, 0.3)
        assert len(along.mixture) == 1
        along.take(1, other, 0.4)
        np.testing.assert_allclose(along.mixture.weights, [5 / 9, 4 / 9])
        along.take(2, poor, 0.1)
        assert len(along.mixture) == 2

    def test_gives_other_coordinates_where_one_is_not_enough(self):
        energy = Energy(lambda x: funnel(4)(x[:, :4]) + funnel(4)(x[:, 4:]), 8)
        x = torch.cat([funnel_draws(2000, 4, seed=s) for s in (1, 2)], 1)
        along, n_components = Along(energy, Nested()), {}
        for k, mixture in along.tried(x, 1000, lambda: 1e5):
            own = weights(energy, mixture, 1000)[1]
            along.take(k, mixture, n_effective(own) / 1000)
            n_components[k] = len(mixture)
        assert sorted(along._known) == [0, 4] and min(n_components.values()) > 60
        assert len(along.mixture) == sum(n_components.values())

    @pytest.mark.parametrize("d, seed", [(4, 0), (12, 1)])
    def test_begins_without_points_where_a_climb_goes_off(self, d, seed):
        """A hierarchical model has no mode: its energy falls along the log of the scale, the second coordinate."""

        def energy(x):
            mean, log_scale, groups = x[:, 0], x[:, 1], x[:, 2:]
            prior = 0.5 * mean.square() / 9 + 0.5 * (2 * log_scale).exp() / 9 - log_scale
            effects = (0.5 * (groups - mean[:, None]).square() * (-2 * log_scale).exp()[:, None]).sum(1)
            data = 0.5 * (groups - torch.linspace(-2, 3, d - 2).to(x)).square().sum(1) / 4
            return prior + effects + (d - 2) * log_scale + data

        density, found = Energy(energy, d), {}
        before, zero = density.n_energy_evals, torch.zeros(d).double()
        along = Along(density, Nested())
        for k, mixture in along.begun(zero, zero + 1, seeded(seed), lambda: 1e5):
            found[k] = n_effective(weights(density, mixture, 1000)[1]) / 1000
            along.take(k, mixture, found[k])
        assert density.n_energy_evals - before < 3000 + 1000 * len(found)
        assert max(found, key=found.get) == 1 and found[1] > 0.3
        assert along.noncentred.leading == (1,)

    def test_looks_again_with_twice_as_many_points(self):
        """So often at most, and not where it has found good ones."""
        energy, x = Energy(funnel(4), 4), funnel_draws(500, 4)

        def found(along, n):
            return [k for k, _ in along.tried(x, n, lambda: 1e4)]

        along = Along(energy, Nested(most_looks=2, most_coordinates=1))
        assert [found(along, n) for n in (100, 150, 210, 1000)] == [[0], [], [0], []]
        along = Along(energy, Nested(good=0.4))
        along.take(0, self.mixture(), 0.5)
        assert found(along, 100) == []

    def test_not_with_a_share_of_none(self):
        assert list(Along(SimpleNamespace(), Nested(share=0.0)).tried(funnel_draws(500, 4), 500, lambda: 1e4)) == []


class TestExploration:
    quick = Adaptive(rounds=6, map=MapFit(n_iter=20))

    def neck(self, by, seed=0):
        """Weighted share of an exploration's points in the neck, and how many are effective there."""
        energy, store = Energy(funnel(6), 6), Store(6)
        explore(energy, store, [], seeded(seed), lambda: 8000 - energy.n_energy_evals, by=by)
        log_weights = store.log_weights()
        inside = store.x[:, 0] < -6
        return float(torch.softmax(log_weights, 0)[inside].sum()), n_effective(log_weights[inside])

    def test_has_the_neck(self):
        """.0228 of the mass, by 46 to 116 effective points of five seeds; without, the negative control, by one."""
        share, effective = self.neck(self.quick)
        assert 0.006 < share < 0.045
        assert effective > 20
        assert self.neck(self.quick.set_params(nested__share=0.0))[1] < 5

    @pytest.mark.parametrize("share, begins", [(Nested.share, True), (0.0, False)])
    def test_begins_with_them_where_no_mode_is_known(self, share, begins):
        """Its first draws are of the approximations, and its maps in the coordinates by these."""
        energy, store = Energy(funnel(6), 6), Store(6)
        by = self.quick.set_params(nested__share=share)
        explore(energy, store, [], seeded(), lambda: 4000 - energy.n_energy_evals, by=by)
        own = store.log_weights_of(0)
        assert (n_effective(own) / len(own) > 0.3) == begins
        has = store.model is not None and store.model.standardization.noncentred is not None
        assert has == begins

    def test_not_without_a_gradient(self):
        """Nor is it looked for: the exploration goes on as before."""

        def energy(x):
            return funnel(3)(torch.as_tensor(np.asarray(x))).numpy()

        wrapped, store = Energy(energy, 3), Store(3)
        before = wrapped.n_energy_evals
        explore(wrapped, store, [], seeded(), lambda: 2000 - len(store), by=self.quick)
        assert wrapped.n_energy_evals - before == len(store)
