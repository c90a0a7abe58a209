"""What is done for products of many coordinates: kept apart, fitted to their marginals, fitted by their own draws."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cases import slow

from skcds import ConsistentSamplerDistiller, ConsistentSamplerScratch, Coupling, DiffusionSampler, Pilot, targets
from skcds.density.energy import Energy
from skcds.density.standardize import Standardization, StandardizedTarget
from skcds.explore import modes
from skcds.explore.race import Race
from skcds.explore.separate import separated
from skcds.explore.smc import moments, temper
from skcds.explore.tempered_run import heavy_tails
from skcds.models.maps import OneStepModel, coupling_sizes
from skcds.models.networks import seeded as seeded_networks
from skcds.specifications import Climbs, HighDimension, Likelihood, Marginals
from skcds.train.budget import Budget
from skcds.train.marginals import fit_marginals, interaction, refit_marginals, start_marginals
from skcds.train.objectives.reverse_kl import ReverseKLLoss, on_own_draws
from skcds.train.particles import Population


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draws_of_wells(n_pairs, n, seed=0):
    return torch.from_numpy(targets.ManyWellPairs(n_pairs).sample(n, seed))


@pytest.mark.parametrize("d, wanted", [(4, False), (6, True)])
def test_many_numbers_are_learned_from_own_draws_and_their_mirror_images(d, wanted):
    energy = Energy(lambda x: 0.5 * (x**2).sum(1), d, generator=seeded())
    target = StandardizedTarget(energy, Standardization(d))
    run = SimpleNamespace(energy=energy, target=target, model=None, generator=seeded(), population=range(9999))
    loss = on_own_draws(run, Likelihood(most_features=5))
    assert loss.mirrored if wanted else loss is None


class TestSeparated:
    def test_independent_wells(self):
        """A correlation by chance, or by few ancestors, is left out."""
        x = draws_of_wells(12, 4000)
        x = torch.cat([x[:3600], x[:20].repeat(20, 1)])
        covariance = torch.cov(x.T)
        assert (covariance - covariance.diag().diag()).abs().max() > 0.1
        found = separated(x, covariance)
        assert torch.equal(found, covariance.diag().diag())

    def test_a_gaussian_is_whitened_as_before(self):
        x = torch.randn(4000, 24, dtype=torch.float64, generator=seeded()).cumsum(1)
        covariance = torch.cov(x.T)
        assert separated(x, covariance) is covariance
        noise = torch.randn(4000, 24, dtype=torch.float64, generator=seeded())
        assert separated(noise, torch.cov(noise.T)) is not None

    def test_groups(self):
        """Wells that are independent of correlated Gaussians, which stay together."""
        gaussian = torch.randn(4000, 6, dtype=torch.float64, generator=seeded()).cumsum(1)
        x = torch.cat([draws_of_wells(10, 4000), gaussian], 1)
        covariance = torch.cov(x.T)
        found = separated(x, covariance)
        assert torch.equal(found[20:, 20:], covariance[20:, 20:])
        assert not found[:20, 20:].any() and not found[0, 2]

    def test_two_groups(self):
        """Two coordinates of two modes 20 deviations apart, and three of a Gaussian, with correlations by chance."""
        gaussian = torch.randn(4000, 3, dtype=torch.float64, generator=seeded()).cumsum(1)
        signs = torch.randn(4000, 1, dtype=torch.float64, generator=seeded(1)).sign()
        x = torch.cat([gaussian, 10 * signs + torch.randn(4000, 2, dtype=torch.float64, generator=seeded(2))], 1)
        x = torch.cat([x[:2800], x[:60].repeat(20, 1)])
        covariance = torch.cov(x.T)
        found = separated(x, covariance)
        assert torch.equal(found, torch.block_diag(covariance[:3, :3], covariance[3:, 3:]))

    def test_few_coordinates_are_left_alone(self):
        x = draws_of_wells(10, 1000)
        assert (moments(x)[1] != 0).all()
        x = draws_of_wells(11, 1000)
        assert (moments(x)[1] == 0).any()


class TestMarginals:
    def model(self, d=24, **sizes):
        return OneStepModel("coupling", d, 6.0, True, **coupling_sizes(d, 6.0, **sizes))

    def test_independent_wells(self):
        """Their map is close to perfect before it is trained, and does not draw random numbers."""
        target, model = targets.ManyWellPairs(12), self.model(n_transforms=2)
        x = draws_of_wells(12, 8000)
        model.standardization = Standardization.from_moments(x.mean(0), x.var(0))
        assert fit_marginals(model, model.standardization.inverse(x).float())
        energy = StandardizedTarget(Energy(target, 24, generator=seeded()), model.standardization)
        latent = torch.randn(2000, 24, generator=seeded(1))
        log_weights = model.call_and_log_weight(latent, energy)[1]
        assert -0.6 < float(log_weights.mean()) - target.log_evidence < 0.05
        untrained = self.model(n_transforms=2)
        untrained.standardization = model.standardization
        assert float(untrained.call_and_log_weight(latent, energy)[1].mean()) - target.log_evidence < -10

    def test_without_time_nothing_is_done(self):
        model, x = self.model(), draws_of_wells(12, 4000).float()
        assert not fit_marginals(model, x, seconds=0.0) and not fit_marginals(model, x, Marginals(time_share=0.0))

    @pytest.mark.parametrize(
        "sizes, d, n, by",
        [
            ({"elementwise": False}, 24, 2000, None),
            ({}, 24, 500, None),  # fewer particles than a spline has numbers, forty times
            ({}, 24, 2000, Marginals(most_features=10)),
            ({}, 4, 2000, None),
        ],
    )
    def test_where_there_is_nothing_to_fit(self, sizes, d, n, by):
        model = self.model(d, **sizes)
        before = [p.clone() for p in model.map.parameters()]
        assert not fit_marginals(model, torch.randn(n, d, generator=seeded()), by)
        assert all(torch.equal(a, b) for a, b in zip(before, model.map.parameters(), strict=True))

    @pytest.mark.slow
    def test_what_was_trained_is_left_alone(self):
        model, z = self.model(), torch.randn(2000, 24, generator=seeded())
        assert not fit_marginals(model, z, again=True)
        assert fit_marginals(model, z)
        assert not fit_marginals(model, z)
        assert fit_marginals(model, z + 1, again=True)

    def test_masses_that_tempering_has_wrong(self):
        """Twice as many particles in the lighter wells: swaps with draws of the splines leave a third of the error.

        Of 4000 particles the standard error of a share is .006.
        """
        target, x = targets.ManyWellPairs(12), draws_of_wells(12, 4000)
        for j in range(0, 24, 2):  # coordinates are independent: each may be drawn anew by itself
            light = (x[:, j] > 0) if (x[:, j] > 0).double().mean() < 0.5 else (x[:, j] < 0)
            weights = torch.where(light, 2.0, 1.0)
            x[:, j] = x[torch.multinomial(weights, len(x), True, generator=seeded(j)), j]
        errors, bounds = {}, {}
        for n in (0, Marginals.n_crossings):
            model, energy = self.model(n_transforms=2), Energy(target, 24, generator=seeded())
            model.standardization = Standardization.from_moments(x.mean(0), x.var(0))
            seen = StandardizedTarget(energy, model.standardization)
            population = Population(seen, model.standardization.inverse(x).float(), seeded())
            start_marginals(model, population, Marginals(n_crossings=n), Budget(None, None, energy))
            sides = target.sides(model.standardization(population.x).numpy()).mean(0)
            errors[n] = np.abs(sides - target.well_masses[1]).mean()
            latent = torch.randn(2000, 24, generator=seeded(1))
            bounds[n] = float(model.call_and_log_weight(latent, seen)[1].mean()) - target.log_evidence
        assert errors[0] > 0.1 and errors[Marginals.n_crossings] < errors[0] / 3
        assert bounds[0] < -0.6 and -0.45 < bounds[Marginals.n_crossings] < 0.05

    def fitted(self, density, d=24, n=4000, may_drop=True, **by):
        """A model with its first fit, to particles that are drawn from N(0, I)."""
        energy, model = Energy(density, d, generator=seeded()), self.model(d, n_transforms=2)
        target, x = StandardizedTarget(energy, Standardization(d)), torch.randn(n, d, generator=seeded())
        population = Population(target, x, seeded())
        by = Marginals(50, particles_a_number=10, n_crossings=0).set_params(**by)
        start_marginals(model, population, by, Budget(None, None, energy), may_drop)
        return model, target

    def test_interaction(self):
        """Of a Gaussian with pairs of correlation .3 the divergence from independence is -.5 log(1 - .09) for each."""
        precision = torch.linalg.inv(torch.tensor([[1.0, 0.3], [0.3, 1.0]], dtype=torch.float64))
        precision = torch.block_diag(*[precision] * 12)
        model, target = self.fitted(lambda x: 0.5 * ((x @ precision.to(x)) * x).sum(1), n_pairs=0)
        expected = -12 * 0.5 * math.log(1 - 0.09)
        assert 0.6 * expected < interaction(model, target, 4000, seeded()) < 1.6 * expected
        model, target = self.fitted(lambda x: (0.5 * x**2 + 0.3 * x.exp()).sum(1), n_pairs=0)  # poorly fitted
        assert interaction(model, target, 4000, seeded()) < 1e-4

    @pytest.mark.parametrize("coupled, may_drop, kept", [(0.0, True, 1), (0.0, False, 3), (0.3, True, 3)])
    def test_couplings_are_dropped_where_coordinates_are_independent(self, coupled, may_drop, kept):
        model, _ = self.fitted(
            lambda x: 0.5 * (x**2).sum(1) + coupled * torch.tanh(x[:, 0] * x[:, 1]), may_drop=may_drop
        )
        assert len(model.map.transforms) == kept
        again = OneStepModel(**model.config)
        again.load_state_dict(model.state_dict())
        latent = torch.randn(10, 24, generator=seeded(1))
        torch.testing.assert_close(again.map(latent, again.start()), model.map(latent, model.start()))

    @pytest.mark.parametrize("n_crossings, share, n_evals", [(0, 0.1, 0), (2, 0.1, 2000), (2, 0.001, 0)])
    def test_evaluations_of_swaps(self, n_crossings, share, n_evals):
        energy = Energy(lambda x: 0.5 * (x**2).sum(1), 24, generator=seeded())
        population = Population(
            StandardizedTarget(energy, Standardization(24)), torch.randn(1000, 24, generator=seeded()), seeded()
        )
        before, by = energy.n_energy_evals, Marginals(20, particles_a_number=10, crossings_share=share)
        budget = Budget(None, 100_000, energy)
        start_marginals(self.model(), population, by.set_params(n_crossings=n_crossings), budget)
        assert energy.n_energy_evals - before == n_evals

    def test_a_residual_map(self):
        model = OneStepModel("residual", 24, 6.0, True, hidden=8, n_layers=1)
        assert not fit_marginals(model, torch.randn(2000, 24, generator=seeded()))


class TestRefit:
    """The fit of single coordinates behind couplings that have learned something."""

    D = 4

    def trained(self, seed=0):
        """A map whose couplings turn the coordinates, and the density of its images with a wrong marginal."""
        with seeded_networks(seed):
            model = OneStepModel(
                "coupling", self.D, 4.0, True, hidden=8, n_layers=1, n_transforms=2, bins=8, elementwise=True
            )
            for transform in model.map.transforms[:-1]:
                for parameter in transform.parameters():
                    parameter.data += 0.2 * torch.randn(parameter.shape)
        learned = copy.deepcopy(model).double().requires_grad_(False)

        def energy(x):
            scale = torch.where(x[:, 1] > 0, 1.4, 0.8)
            z = torch.cat([x[:, :1], x[:, 1:2] / scale[:, None], x[:, 2:]], 1)
            return scale.log() - learned.log_prob(z.double())

        target = StandardizedTarget(Energy(energy, self.D, generator=seeded()), Standardization(self.D))
        return model, target

    def log_weights(self, model, target, seed):
        with torch.no_grad():
            return model.call_and_log_weight(torch.randn(20_000, self.D, generator=seeded(seed + 50)), target)[1]

    @pytest.mark.parametrize("seed", [0, *slow(1, 2)])
    def test_a_marginal_comes_right(self, seed):
        """The bound of log Z, which is .01 to .02 too low before, gains half of that, and one array changes."""
        model, target = self.trained(seed)
        before = self.log_weights(model, target, seed).mean()
        known = {name: value.clone() for name, value in model.state_dict().items()}
        flags = [parameter.requires_grad for parameter in model.map.parameters()]
        assert before < -0.01
        assert refit_marginals(model, target, seeded(seed), Marginals(n_refits=200, refit_rate=0.01))
        assert self.log_weights(model, target, seed).mean() > 0.5 * before
        changed = [name for name, value in model.state_dict().items() if not torch.equal(value, known[name])]
        assert changed == ["map.transforms.2.conditioner.output.bias"]
        assert flags == [parameter.requires_grad for parameter in model.map.parameters()]

    @pytest.mark.parametrize(
        "by, seconds, evals",
        [
            (Marginals(n_refits=0), math.inf, math.inf), (Marginals(), 0.0, math.inf), (Marginals(), math.inf, 0.0),
            (Marginals(), math.inf, 150_000), (Marginals(most_features=3), math.inf, math.inf),
        ],
    )  # fmt: skip
    def test_without_steps_time_or_evaluations_nothing_is_done(self, by, seconds, evals):
        model, target = self.trained()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        assert not refit_marginals(model, target, seeded(), by, seconds, evals)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def test_evaluations_are_a_share_of_those_left(self):
        model, target = self.trained()
        before = target.energy.n_energy_evals
        assert refit_marginals(model, target, seeded(), Marginals(refit_batch_size=50), evals=15_000)
        assert target.energy.n_energy_evals == before + 1500

    def test_draws_beyond_the_support_have_no_part(self):
        model, target = self.trained()
        inner = target.energy.energy_fn
        bounded = Energy(lambda x: torch.where(x[:, 0] > 1, torch.inf, inner(x)), self.D, generator=seeded())
        target = StandardizedTarget(bounded, Standardization(self.D))
        assert refit_marginals(model, target, seeded(), Marginals(n_refits=20, refit_batch_size=200))
        assert model.map.transforms[-1].conditioner.output.bias.isfinite().all()

    def test_an_interruption_leaves_parameters_as_they_were_wanted(self, monkeypatch):
        model, target = self.trained()
        flags = [parameter.requires_grad for parameter in model.map.parameters()]
        monkeypatch.setattr(OneStepModel, "log_prob", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            refit_marginals(model, target, seeded())
        assert flags == [parameter.requires_grad for parameter in model.map.parameters()]

    def test_a_map_without_such_splines(self):
        model = OneStepModel("coupling", 3, 4.0, True, hidden=8, n_layers=1, n_transforms=2, bins=4)
        target = StandardizedTarget(
            Energy(lambda x: 0.5 * x.square().sum(1), 3, generator=seeded()), Standardization(3)
        )
        assert not refit_marginals(model, target, seeded())


def test_sizes():
    assert not coupling_sizes(20, 6.0)["elementwise"] and coupling_sizes(21, 6.0)["elementwise"]
    assert coupling_sizes(256, 6.0)["n_transforms"] == 4 and coupling_sizes(257, 6.0)["n_transforms"] == 0
    assert coupling_sizes(300, 6.0, n_transforms=2, elementwise=False, bins=None)["n_transforms"] == 2


def test_two_unequal_modes_are_no_heavy_tail():
    x = torch.from_numpy(np.random.default_rng(0).choice([-1.7, 1.7], (5000, 2), p=[0.1, 0.9]))
    x = x + 0.2 * torch.randn(5000, 2, dtype=torch.float64, generator=seeded())
    assert float(((x[:, 0] - x[:, 0].mean()) / x[:, 0].std()).pow(4).mean()) > 4.5
    assert heavy_tails(x) is None
    x[:, 1] = torch.from_numpy(np.random.default_rng(0).standard_t(3, 5000))
    assert heavy_tails(x)[1].isfinite().tolist() == [False, True]


class TestPooled:
    def race(self, d):
        energy = Energy(lambda x: 0.5 * (x**2).sum(1), d, generator=seeded())
        race = Race(energy, 3, np.inf, seeded(), Budget(None, None, energy))
        race.n_particles = 50
        for scale in (1.0, 2.0):
            race.enter(scale)
        return race

    def test_few_coordinates(self):
        race = self.race(20)
        assert race.pooled() is race.best.x and race.cost() == race.best.cost

    def test_many(self):
        race = self.race(21)
        assert len(race.pooled()) == 100 and race.cost() > race.runs[0].cost
        race.runs[0].log_evidence = race.best.log_evidence - 0.3 * 21
        assert len(race.pooled()) == 50


@pytest.mark.parametrize("d, swaps", [(20, False), (21, True)])
def test_tempering_swaps_coordinates(d, swaps, monkeypatch):
    seen = []
    monkeypatch.setattr(Population, "cross", lambda self, n: seen.append(n))
    energy = Energy(lambda x: 0.5 * (x**2).sum(1), d, generator=seeded())
    temper(StandardizedTarget(energy, Standardization(d)), 50, 1.5, 3, seeded())
    assert bool(seen) == swaps


@pytest.mark.parametrize("share_new, n_batches", [(1.0, 1), (0.5, 10)])
def test_modes_that_cannot_be_listed(share_new, n_batches, monkeypatch):
    """Further climbs end where nearly all of a batch end at new modes."""
    sizes = []

    mode = SimpleNamespace(x=torch.zeros(3, dtype=torch.float64))

    def climbs(energy, points, known=(), by=None):
        sizes.append(len(points))
        return [mode] * int(share_new * len(points))

    monkeypatch.setattr(modes, "climbs_from", climbs)
    modes._climb_further(None, torch.randn(10, 3, dtype=torch.float64), [mode] * 90, 100, Climbs(), seeded())
    assert sizes == [Climbs.further_at_once] * n_batches


class TestOwnDraws:
    def test_mirror_images(self):
        """Of a linear map and a Gaussian they leave no noise in the gradient of a shift."""
        model = OneStepModel("coupling", 3, 6.0, True, hidden=4, n_layers=1, n_transforms=0, elementwise=True)
        seen = []

        def energy_fn(x):
            seen.append(x.detach().clone())
            return 0.5 * (x**2).sum(1)

        target = StandardizedTarget(Energy(energy_fn, 3, generator=seeded()), model.standardization)
        loss = ReverseKLLoss(model, target, 8, seeded(1), mirrored=True)
        assert torch.isfinite(loss(0))
        torch.testing.assert_close(seen[-1][:4], -seen[-1][4:], rtol=0, atol=1e-5)

    @pytest.mark.parametrize("kind", ["scratch", *slow("distiller")])
    def test_a_fit(self, kind):
        """The bound is about that of the best Gaussian at least, .7 too low; Laplace's is 1.9 too low."""
        d = 30
        start = Pilot(n_particles=300, high_dimension=HighDimension(n_features=20, fewest_particles=300, n_hessians=20))
        likelihood = {"objective__likelihood__most_features": 20, "objective__likelihood__n_draws": 64}
        options = {"max_iter": 60, "random_state": 0, "network": Coupling(n_transforms=0)}
        if kind == "scratch":
            sampler = ConsistentSamplerScratch(d, start=start, n_steps=4, **options)
            sampler.set_params(objective=sampler._specified("objective"))
        else:
            teacher = DiffusionSampler(d, start=start, n_steps=4, max_iter=10, random_state=0)
            sampler = ConsistentSamplerDistiller(teacher, **options)
            sampler.set_params(objective=sampler._specified("objective"))
        sampler.set_params(**likelihood).fit(lambda x: (x.exp() + 0.25 * x**2).sum(1))
        nodes = np.linspace(-30, 12, 20_001)
        log_z = d * np.log(np.trapezoid(np.exp(-np.exp(nodes) - 0.25 * nodes**2), nodes))
        weighted = sampler.sample_weighted(2000, random_state=1)
        assert log_z - 1.4 < weighted.elbo < log_z + 4 * weighted.elbo_se
