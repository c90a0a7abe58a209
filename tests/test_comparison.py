"""Whether a map is kept, or that of before training."""

import math
from types import SimpleNamespace

import pytest
import torch

from skcds import Coupling
from skcds._support.errors import Spent
from skcds.density.energy import Energy
from skcds.density.standardize import Standardization, StandardizedTarget
from skcds.estimators.comparison import _n_compared, keep_the_better_map, start_from_marginals
from skcds.models.maps import OneStepModel
from skcds.models.networks import seeded
from skcds.specifications import Marginals, Training
from skcds.train.budget import Budget
from skcds.train.particles import Population

D = 3


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def model_of(noise, seed=0):
    """A model whose couplings are the identity but for normal numbers of this size in all parameters."""
    with seeded(seed):
        model = OneStepModel("coupling", D, 4.0, True, hidden=8, n_layers=1, n_transforms=2, bins=4)
        for parameter in model.map.parameters():
            parameter.data += noise * torch.randn(parameter.shape)
    return model


def run_of(before, after, x=None, function=lambda x: 0.5 * x.square().sum(1), seed=0, **limits):
    energy = Energy(function, D, generator=generator())
    x = torch.randn(2000, D, generator=generator(seed)) if x is None else x
    budget = Budget(limits.get("max_time"), limits.get("max_energy_evals"), energy)
    budget.training = Training()
    return SimpleNamespace(
        energy=energy, budget=budget, generator=generator(seed), model=after, untrained=before.map,
        population=SimpleNamespace(x=x), target=StandardizedTarget(energy, Standardization(D)), training=Training(),
    )  # fmt: skip


class Wide(torch.nn.Module):
    """A map to eight times the width."""

    invertible = True

    def call_and_log_det(self, z, log_snr, to=None):
        return 8 * z, torch.full((len(z),), D * math.log(8))

    def inverse_and_log_det(self, z, log_snr, to=None):
        return z / 8, torch.full((len(z),), -D * math.log(8))


@pytest.mark.parametrize("seed", range(3))
class TestKept:
    def test_before_where_training_spoiled_it(self, seed):
        before, after = model_of(0.0), model_of(0.5, seed)
        run = run_of(before, after, seed=seed)
        keep_the_better_map(run)
        assert run.model.map is before.map

    def test_none_where_all_are_worse(self, seed):
        """The identity takes the place of two noisy maps."""
        run = run_of(model_of(0.3, seed), model_of(0.5, seed), seed=seed)
        keep_the_better_map(run)
        z = torch.randn(20, D, generator=generator(9))
        assert torch.allclose(run.model.map(z, run.model.start()), z, atol=1e-5)

    def test_after_where_training_made_it_better(self, seed):
        before, after = model_of(0.5, seed), model_of(0.0)
        trained = after.map
        run = run_of(before, after, seed=seed)
        keep_the_better_map(run)
        assert run.model.map is trained

    @pytest.mark.parametrize("spoils", [False, True])
    def test_splines_fitted_once_more_are_taken_where_they_are_no_worse(self, seed, spoils, monkeypatch):
        trained, again = (0.0, 0.5) if spoils else (0.5, 0.0)
        run, fitted = run_of(model_of(0.5, seed + 3), model_of(trained, seed), seed=seed), model_of(again, seed).map

        def refit(model, target, generator, by, seconds, evals):
            model.map = fitted
            return True

        monkeypatch.setattr("skcds.estimators.comparison.refit_marginals", refit)
        keep_the_better_map(run)
        z = torch.randn(20, D, generator=generator(9))
        assert (run.model.map is fitted) != spoils
        assert torch.allclose(run.model.map(z, run.model.start()), z, atol=1e-5)  # of both the better one

    def test_after_where_before_knows_half_of_the_particles(self, seed):
        """A map that is far too wide has the worse bound, and gives no particle a density that is nearly zero."""
        before = model_of(0.0)
        x = torch.randn(2000, D, generator=generator(seed))
        x[:1000, 0] += 8
        run = run_of(before, model_of(0.0), x, seed=seed)
        run.model.map = wide = Wide()
        keep_the_better_map(run)
        assert run.model.map is wide
        run.population.x = torch.randn(2000, D, generator=generator(seed))  # all of which the other knows
        keep_the_better_map(run)
        assert run.model.map is before.map


class TestLimits:
    def test_few_evaluations_are_left_alone(self):
        run = run_of(model_of(0.0), model_of(0.5), max_energy_evals=300)
        spent, trained = run.energy.n_energy_evals, run.model.map
        keep_the_better_map(run)
        assert run.model.map is trained and run.energy.n_energy_evals == spent

    def test_the_last_fit_has_the_time_kept_for_the_judgement(self, monkeypatch):
        """A training that ends by the clock has left no other."""
        run, found = run_of(model_of(0.0), model_of(0.5), max_time=100.0), []
        run.budget.reserve()
        run.budget.start -= 95.0
        assert run.budget.seconds_left() == 0
        monkeypatch.setattr("skcds.estimators.comparison.refit_marginals", lambda *args: found.extend(args[4:]))
        keep_the_better_map(run)
        seconds, evals = found
        assert 4 < seconds < 5 and evals > 100

    def test_spent_on_the_way(self, monkeypatch):
        run = run_of(model_of(0.0), model_of(0.5))
        trained = run.model.map
        monkeypatch.setattr(OneStepModel, "call_and_log_weight", lambda *args: (_ for _ in ()).throw(Spent()))
        keep_the_better_map(run)
        assert run.model.map is trained

    @pytest.mark.parametrize("without", ["untrained", "population"])
    def test_nothing_to_compare(self, without):
        run = run_of(model_of(0.0), model_of(0.5))
        trained = run.model.map
        setattr(run, without, None)
        keep_the_better_map(run)
        assert run.model.map is trained


class TestStart:
    @staticmethod
    def begun(noise, triangular=True, **limits):
        """Maps before and after a run's begin, in coordinates by scores or by moments, and its evaluations."""
        run = run_of(model_of(0.0), model_of(noise), **limits)
        run.model.standardization = Standardization(D, triangular=triangular)
        first, before = run.model.map, run.energy.n_energy_evals
        start_from_marginals(run, Coupling())
        return first, run.model.map, run.energy.n_energy_evals - before

    def test_noise_gives_way_to_the_identity(self):
        noisy, found, _ = self.begun(0.3)
        z, start = torch.randn(20, D, generator=generator(9)), model_of(0.0).start()
        assert found is not noisy and torch.allclose(found(z, start), z, atol=1e-5)

    @pytest.mark.parametrize("seed", range(3))
    def test_a_fit_to_few_particles_gives_way(self, seed):
        """Of 60 normal ones some forty numbers learn noise."""
        with seeded(0):
            model = OneStepModel("coupling", D, 4.0, True, hidden=8, n_layers=1, n_transforms=2, bins=4,
                                 elementwise=True, triangular=True)  # fmt: skip
        x = torch.randn(60, D, generator=generator(seed))
        run = run_of(model, model, seed=seed)
        run.population = Population(run.target, x, run.generator)
        run.training = Training(marginals=Marginals(n_crossings=0, particles_a_number=1))
        first = model.map
        start_from_marginals(run, Coupling())
        assert first.transforms[-1].conditioner.output.bias.any() and run.model.map is not first

    def test_what_is_as_good_stays(self):
        first, found, n_evals = self.begun(0.0)
        assert found is first and n_evals

    @pytest.mark.parametrize("options", [{"triangular": False}, {"max_energy_evals": 4000}])
    def test_others_begin_as_they_are_for_no_evaluation(self, options):
        """Of few evaluations two hundredths are not enough for two maps."""
        first, found, n_evals = self.begun(0.3, **options)
        assert found is first and not n_evals

    def test_a_sampler_without_a_map(self):
        run = run_of(model_of(0.0), SimpleNamespace())
        before = run.energy.n_energy_evals
        start_from_marginals(run, Coupling())
        assert run.energy.n_energy_evals == before


@pytest.mark.parametrize(
    ("limits", "n"),
    [({}, 4000), ({"max_energy_evals": 10**6}, 4000), ({"max_energy_evals": 192_000}, 2000),
     ({"max_energy_evals": 48_000}, 500), ({"max_energy_evals": 12_000}, 500), ({"max_energy_evals": 3000}, 250)],
)  # fmt: skip
def test_many_draws_are_compared_where_an_eighth_of_what_is_left_is_enough(limits, n):
    """Of a row twelve evaluations are counted. An eighth of 192 000 is 24 000; at least the 500 of before are made."""
    assert n - 5 < _n_compared(run_of(model_of(0.0), model_of(0.0), **limits)) <= n  # the energy was probed before
