"""Training on own draws: a gradient that is exact where the fit is, and batches that are paced by limits."""

import math
from types import SimpleNamespace

import pytest
import torch

import skcds
from skcds import (
    Consistency,
    ConsistentSamplerDistiller,
    ConsistentSamplerScratch,
    DiffusionSampler,
    Pilot,
    SelfConsistency,
)
from skcds.density.energy import Energy
from skcds.density.standardize import StandardizedTarget
from skcds.models.maps import OneStepModel, coupling_sizes
from skcds.models.networks import seeded as nets_seeded
from skcds.specifications import Likelihood, Triangular
from skcds.train.budget import Budget, Pace
from skcds.train.objectives.base import InTurn
from skcds.train.objectives.reverse_kl import ReverseKLLoss, beside_likelihood, on_own_draws, turns_of_own_draws


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def coupling(d=3, seed=0, scale=0.3):
    """A coupling map whose last layers are not zero."""
    with nets_seeded(seed):
        model = OneStepModel("coupling", d, 6.0, True, hidden=8, n_layers=1, n_transforms=2, bins=4)
    with torch.no_grad():
        for parameter in model.map.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=seeded(seed + 1))
    return model


def gradient(model, loss):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.map.parameters()))])


class Own:
    """The density of a model's own draws: what an exact fit has for a target."""

    has_gradient = True

    def __init__(self, model):
        self.model = model

    def log_prob_and_score(self, z):
        z = z.detach().requires_grad_(True)
        log_q = self.model.log_prob(z)
        return log_q.detach().double(), torch.autograd.grad(log_q.sum(), z)[0]


class TestGradientByWayOfDraws:
    def test_has_no_noise_where_the_fit_is_exact(self):
        """The usual gradient has plenty: of 64 draws its length is about a root of the numbers over 64."""
        model = coupling()
        of_draws = gradient(model, ReverseKLLoss(model, Own(model), 64, seeded(5), of_draws=True)(0))
        usual = gradient(model, ReverseKLLoss(model, Own(model), 64, seeded(5))(0))
        assert of_draws.norm() < 1e-4 < 0.05 < usual.norm()

    def test_is_the_usual_one_in_the_mean(self):
        """Means of 150 batches are equal up to five standard errors in each direction of ten: one of 10^5 fails.

        The sign of the density's part turned round, the difference is tens of them.
        """
        model = coupling()
        target = StandardizedTarget(
            Energy(lambda x: 0.5 * (x**2).sum(1) + 0.05 * (x**4).sum(1), 3, generator=seeded()), model.standardization
        )
        n = sum(p.numel() for p in model.map.parameters())
        directions = torch.randn(n, 10, generator=seeded(3)) / math.sqrt(n)

        def projected(of_draws, seed):
            loss = ReverseKLLoss(model, target, 64, seeded(seed), of_draws=of_draws)(0)
            return gradient(model, loss) @ directions

        gaps = torch.stack([projected(True, seed) - projected(False, seed) for seed in range(150)])
        usual = torch.stack([projected(False, seed) for seed in range(150)])
        error = gaps.std(0) / math.sqrt(len(gaps))
        assert (gaps.mean(0).abs() < 5 * error).all()
        assert (usual.mean(0).abs() > 5 * error).any()  # a gradient of zero would be noticed

    def test_value_is_minus_the_mean_log_weight(self):
        model = coupling()
        target = StandardizedTarget(Energy(lambda x: 0.5 * (x**2).sum(1), 3, generator=seeded()), model.standardization)
        loss = ReverseKLLoss(model, target, 50, seeded(1), of_draws=True)(0)
        _, log_weights = model.call_and_log_weight(torch.randn(50, 3, generator=seeded(1)), target)
        assert loss.item() == pytest.approx(-log_weights.mean().item(), rel=1e-4)

    def test_rows_outside_of_the_support_are_left_out(self):
        class HalfLine(Own):
            def log_prob_and_score(self, z):
                log_p, score = super().log_prob_and_score(z)
                inside = z[:, 0] > 0
                return torch.where(inside, log_p, -torch.inf), torch.where(inside[:, None], score, torch.nan)

        class Nowhere(Own):
            def log_prob_and_score(self, z):
                return torch.full((len(z),), -torch.inf).double(), torch.zeros_like(z)

        model = coupling()
        loss = ReverseKLLoss(model, HalfLine(model), 64, seeded(2), of_draws=True)(0)
        assert loss.isfinite() and gradient(model, loss).norm() < 1e-4
        loss = ReverseKLLoss(model, Nowhere(model), 64, seeded(2), of_draws=True)(0)
        assert loss == 0 and not gradient(model, loss).any()


def budget_of(n_evals=None, max_time=None):
    energy = SimpleNamespace(n_energy_evals=0, evals_per_second=1e6)
    return Budget(max_time, n_evals, energy)


class TestPace:
    def test_all_iterations_without_limits(self):
        pace = Pace(budget_of(), 10, 100, 0.5)
        assert all(pace.due(i) for i in range(100))

    @pytest.mark.parametrize("n_batches", [1, 7, 50, 99])
    def test_as_many_as_are_allowed_evenly(self, n_batches):
        pace = Pace(budget_of(20 * n_batches), 10, 100, 0.5)
        due = [i for i in range(100) if pace.due(i)]
        assert len(due) == n_batches
        gaps = [b - a for a, b in zip([-1, *due[:-1]], due, strict=True)]
        assert max(gaps) <= math.ceil(100 / n_batches) and due[-1] == 99

    def test_none_where_none_can_be_paid_for(self):
        pace = Pace(budget_of(10), 10, 100, 0.5)
        assert not any(pace.due(i) for i in range(100))

    def test_goes_by_the_clock_where_that_is_faster(self):
        budget = budget_of(1000, max_time=10.0)
        pace = Pace(budget, 10, 10**6, 0.5)
        assert not pace.due(0)
        budget.start -= 0.6 * budget.max_time
        assert sum(pace.due(i) for i in range(1, 100)) in (29, 30)  # .6 of the 50 that are allowed

    def test_state(self):
        model = coupling()
        one, other = (
            ReverseKLLoss(model, Own(model), 8, seeded(), pace=Pace(budget_of(160), 8, 100, 0.5)) for _ in range(2)
        )
        for i in range(50):
            one(i)
        other.load_state_dict(one.state_dict())
        assert other.pace.n_made == one.pace.n_made == 5
        assert ReverseKLLoss(model, Own(model), 8, seeded()).state_dict() == {"n_made": 0}


def run_of(d, has_gradient=True, n_particles=20_000):
    target = SimpleNamespace(has_gradient=has_gradient)
    energy = SimpleNamespace(n_features=d, n_energy_evals=0, evals_per_second=1e6)
    run = {"energy": energy, "target": target, "model": None, "generator": seeded(), "budget": budget_of()}
    return SimpleNamespace(**run, population=range(n_particles))


@pytest.mark.parametrize(
    ("d", "has_gradient", "by", "n_terms", "turns"),
    [
        (20, True, Likelihood(), 0, 0),
        (21, True, Likelihood(), 1, Likelihood().turns),
        (21, False, Likelihood(), 0, 0),
        (21, True, Likelihood(reverse_kl=0.0), 0, 0),
        (257, True, Likelihood(), 0, 0),
    ],
)
def test_where_there_are_own_draws(d, has_gradient, by, n_terms, turns):
    """In more than 256 dimensions they take the place of the likelihood."""
    run = run_of(d, has_gradient)
    assert len(beside_likelihood(run, 10, by)) == n_terms and turns_of_own_draws(run, 10, by) == turns


@pytest.mark.parametrize(("n_transforms", "n_terms"), [(0, 0), (2, 1)])
def test_none_beside_the_likelihood_of_single_coordinates(n_transforms, n_terms):
    run, sizes = run_of(21), coupling_sizes(21, 6.0, n_transforms=n_transforms)
    run.model = OneStepModel("coupling", 21, 6.0, True, **sizes)
    assert len(beside_likelihood(run, 10, Likelihood())) == n_terms


@pytest.mark.parametrize(
    ("d", "n_particles", "weight", "replaced"),
    [
        (21, 4999, 1.0, True),
        (21, 5000, 1.0, False),
        (20, 4999, 1.0, False),
        (21, 4999, 0.0, False),
        (257, 9999, 0.0, True),
    ],
)
def test_they_take_the_place_of_the_likelihood_where_particles_are_few(d, n_particles, weight, replaced):
    run, by = run_of(d, n_particles=n_particles), Likelihood(reverse_kl=weight)
    loss = on_own_draws(run, by)
    assert (loss is not None) == replaced and (loss is None or loss.of_draws == (d <= 256))
    assert not (replaced and beside_likelihood(run, 10, by))
    assert on_own_draws(run_of(d, False, n_particles), by) is None


def test_summed_where_they_are_few():
    """Turns take 7 or 8 of 10 iterations: as many batches have to be affordable."""
    by = Likelihood(turns=3, n_draws=10, reverse_share=0.5)
    for n_evals, turns in ((140, 3), (139, 0)):
        run = run_of(30)
        run.budget = budget_of(n_evals)
        assert turns_of_own_draws(run, 10, by) == turns


def quartic(x):
    return (0.5 * x**2 + 0.05 * x**4).sum(1)


class TestFits:
    def sampler(self, kind, d, **likelihood):
        by = Likelihood(n_draws=32, fewest_particles=0, **likelihood)
        start = Pilot(n_particles=300, triangular=Triangular(n_steps=0))  # which leave a map little to learn
        if kind == "scratch":
            return ConsistentSamplerScratch(
                d, start=start, n_steps=4, max_iter=20, random_state=0, objective=SelfConsistency(likelihood=by)
            )
        teacher = DiffusionSampler(d, start=start, n_steps=4, max_iter=5, random_state=0)
        return ConsistentSamplerDistiller(teacher, max_iter=20, random_state=0, objective=Consistency(likelihood=by))

    @pytest.mark.parametrize("kind", ["scratch", "distiller"])
    def test_in_turn_in_many_features(self, kind):
        sampler = self.sampler(kind, 3, many_features=2, turns=3).fit(quartic)
        of = list(sampler.history_[-1].kinds())
        assert of.count("own draws") == {"scratch": 12, "distiller": 15}[kind]
        assert math.isfinite(sampler.log_evidence_)

    def test_seen_in_the_number_of_evaluations(self):
        """Of 20 iterations, each has 32."""
        options = {"many_features": 2, "turns": 0}
        with_draws, without = (self.sampler("distiller", 3, reverse_kl=w, **options).fit(quartic) for w in (1.0, 0.0))
        assert with_draws.n_energy_evals_ - without.n_energy_evals_ == 20 * 32

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["scratch", "distiller"])
    def test_they_sharpen_a_fit(self, kind):
        """A posterior-like density in 24 dimensions: the effective share of short fits."""
        mixing = torch.randn(24, 24, generator=seeded(1)).double() / 5

        def energy_fn(x):
            y = x @ mixing.to(x)
            return 0.5 * (x**2).sum(1) + torch.nn.functional.softplus(4 * y).sum(1)

        def share(weight):
            sampler = self.sampler(kind, 24, reverse_kl=weight).set_params(max_iter=200).fit(energy_fn)
            return sampler.sample_weighted(4000, random_state=1).ess / 4000

        assert share(1.0) > share(0.0)


def test_in_turn_names_what_it_minimises():
    assert InTurn(**{"own draws": (2, None), "distillation": (1, None)}).cycle == ("own draws",) * 2 + ("distillation",)


def test_energies_without_a_gradient_are_fitted_as_before():
    sampler = ConsistentSamplerScratch(2, start=Pilot(n_particles=200), n_steps=4, max_iter=10, random_state=0)
    sampler.fit(lambda x: 0.5 * (x.numpy() ** 2).sum(1) if hasattr(x, "numpy") else 0.5 * (x**2).sum(1))
    assert isinstance(sampler, skcds.ConsistentSamplerScratch) and math.isfinite(sampler.log_evidence_)
