"""The map of an exploration: fitted by its own draws, and what the map of a fit starts from."""

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning

import skcds
from skcds import Control, Coupling, Pilot, Residual
from skcds.density.energy import Energy
from skcds.density.standardize import Standardization, StandardizedTarget
from skcds.estimators import control
from skcds.estimators.explored import as_explored, begin_from
from skcds.estimators.networks import shortcut_model, start_map
from skcds.explore import pilot as pilots
from skcds.explore.adaptive import MapProposal, _Explorer, explore, first_proposal, fit_to_own_draws
from skcds.explore.store import Store
from skcds.models.maps import OneStepModel, standard_normal_log_prob
from skcds.models.networks import seeded as nets_seeded
from skcds.specifications import Adaptive, MapFit, Mixture
from skcds.train.budget import Budget


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


SIZES = {"hidden": 8, "n_layers": 1, "n_transforms": 2, "bins": 4, "stretch": True, "elementwise": False}


def explored_map(d=3, scale=0.3, **sizes):
    """A coupling map that is not the identity."""
    with nets_seeded(1):
        model = OneStepModel("coupling", d, 6.0, True, **(SIZES | sizes))
    with torch.no_grad():
        for parameter in model.map.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=seeded(2))
    return model


class Controlled:
    """What a one-step map is made for."""

    def __init__(self, d, log_snr_max):
        self.n_features, self.log_snr_max = d, log_snr_max
        self.standardization = Standardization(d, full=True)


class TestBeginning:
    def one_step(self, explored, network=None, log_snr_max=9.0):
        network = as_explored(Coupling() if network is None else network, explored)
        return start_map(network, Controlled(explored.n_features, log_snr_max), 0)

    def shortcut(self, explored, network=None, log_snr_max=9.0):
        network = as_explored(Coupling() if network is None else network, explored)
        standardization = Standardization(explored.n_features, full=True)
        return shortcut_model(network, Control(8, 1), 4, standardization, log_snr_max, False)

    @pytest.mark.parametrize("make", ["one_step", "shortcut"])
    @pytest.mark.parametrize("sizes", [{}, {"elementwise": True}, {"n_transforms": 4, "stretch": False}])
    def test_the_density_of_one_step_is_that_of_the_explored_map(self, make, sizes):
        """On another grid, and with a second level, too."""
        explored = explored_map(**sizes)
        model, x = getattr(self, make)(explored), torch.randn(50, 3, generator=seeded())
        assert (model.log_prob(x) - explored.log_prob(x)).abs().max() > 0.1
        assert begin_from(model.map, explored)
        torch.testing.assert_close(model.log_prob(x), explored.log_prob(x), rtol=1e-4, atol=1e-4)

    def test_sizes_that_the_user_gave_are_kept(self):
        explored = explored_map()
        model = self.one_step(explored, Coupling(n_transforms=3))
        before = {name: value.clone() for name, value in model.map.state_dict().items()}
        assert len(model.map.transforms) == 3 and not begin_from(model.map, explored)
        assert all(torch.equal(before[name], value) for name, value in model.map.state_dict().items())
        assert not begin_from(self.one_step(explored, Coupling(hidden_features=16)).map, explored)

    def test_other_maps_and_no_map(self):
        explored = explored_map()
        assert as_explored(Residual(), explored) == Residual() and as_explored(Coupling(), None) == Coupling()
        residual = start_map(Residual(8, 1), Controlled(3, 9.0), 0)
        assert not begin_from(residual.map, explored) and not begin_from(self.one_step(explored).map, None)


def bent(x):
    """A banana in the first two coordinates of eight or so."""
    return 0.5 * (x[:, 0] ** 2 + (x[:, 1] - 0.7 * x[:, 0] ** 2) ** 2 / 0.25 + (x[:, 2:] ** 2).sum(1))


def test_a_map_is_fitted_by_its_own_draws():
    """From the identity the bound of log Z comes from 4.0 nats below it to within .4 (seen: .14 to .16, six seeds)."""
    energy = Energy(bent, 8, generator=seeded())
    model = explored_map(8, 0.0, n_transforms=4, hidden=32, bins=8)
    target = StandardizedTarget(energy, model.standardization, energy.fast_dtype)

    def gap():
        """Of the bound, whose noise is below .1."""
        _, log_weights = model.call_and_log_weight(torch.randn(4000, 8, generator=seeded(1)), target)
        return 4 * math.log(2 * math.pi) + math.log(0.5) - float(log_weights.mean())

    before, n = gap(), energy.n_energy_evals
    fit_to_own_draws(model, energy, 6400, seeded(3), by=MapFit(n_draws=64, rate_of_draws=5e-3))
    assert energy.n_energy_evals - n == 6400 and not any(p.requires_grad for p in model.parameters())
    assert before > 3 and -0.1 < gap() < 0.4
    n = energy.n_energy_evals
    fit_to_own_draws(model, energy, 6400, seeded(3), ended=lambda: True)
    assert energy.n_energy_evals == n


class TestExplorer:
    def explorer(self, d=8, energy_fn=bent, modes=(), **fields):
        by = Adaptive(map=MapFit(n_iter=20, **fields), mixture=Mixture(max_components=4, max_fitted=500))
        energy = Energy(energy_fn, d, generator=seeded())
        return _Explorer(energy, Store(d), list(modes), first_proposal(energy, []), seeded(), lambda: False, by)

    def test_where_own_draws_are_wanted(self):
        assert self.explorer().by_own_draws
        assert not self.explorer(7).by_own_draws and self.explorer(7, fewest_features=7).by_own_draws
        assert not self.explorer(n_draws=0).by_own_draws
        assert not self.explorer(energy_fn=lambda x: bent(torch.as_tensor(np.asarray(x))).numpy()).by_own_draws

    def test_the_map_of_a_good_round_is_left(self):
        """One of a bad round is not: what starts from it would start wrong."""
        explorer = self.explorer(begun=0.2)
        explorer.proposal = MapProposal(explored_map(8))
        for share, left in ((0.3, True), (0.1, False)):
            weights = torch.zeros(1000).double()
            weights[: int((1 - share) * 1000)] = -torch.inf
            explorer.store.log_weights_of = lambda k, weights=weights: weights
            explorer._propose = lambda n: None
            explorer.step(100)
            assert (explorer.store.model is not None) == left

    def test_coordinates_are_chosen_again_once_points_need_no_tempering(self):
        explorer, points = self.explorer(kept=0.1), torch.randn(200, 8, generator=seeded()).double()
        first = explorer.model = explorer._model_for(points, is_tempered=True)
        explorer.ess = 0.5
        assert explorer._model_for(points, is_tempered=True) is first
        explorer.ess = 0.05
        second = explorer.model = explorer._model_for(points, is_tempered=True)
        assert second is not first
        third = explorer.model = explorer._model_for(points, is_tempered=False)
        assert third is not second and explorer._model_for(points, is_tempered=False) is third

    @pytest.mark.slow
    def test_explores(self):
        energy, store = Energy(bent, 8, generator=seeded()), Store(8)
        stop = energy.n_energy_evals + 12_000
        explore(energy, store, [], seeded(), lambda: stop - energy.n_energy_evals)
        assert energy.n_energy_evals <= stop and store.model is not None


class TestFits:
    @pytest.fixture
    def few(self):
        own_draws = MapFit(n_iter=20, n_draws=32, begun=0.0, fewest_features=2)
        return Pilot(adaptive=Adaptive(rounds=6, map=own_draws, mixture=Mixture(max_fitted=500)))

    def test_starts_from_the_map(self, few):
        """Its density is that of the explored map, but for what two iterations change."""
        options = {"max_energy_evals": 6000, "random_state": 0, "start": few, "max_iter": 2, "learning_rate": 1e-6}
        sampler = skcds.ConsistentSamplerScratch(3, n_steps=4, **options)
        student = skcds.ConsistentSamplerDistiller(n_features=3, **options)
        z = torch.randn(50, 3, generator=seeded())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            sampler.fit(bent)
            student.fit(bent)
        for fitted, explored in ((sampler, sampler._explored), (student, student.teacher_._explored)):
            expected = explored.log_prob(z)
            torch.testing.assert_close(fitted._model.log_prob(z), expected, rtol=1e-3, atol=1e-3)
            assert (expected - standard_normal_log_prob(z)).abs().max() > 0.1

    def test_goes_on_from_a_checkpoint(self, few, tmp_path):
        """The map is in it, and gives the sizes of the map that is trained."""
        options = {"max_energy_evals": 6000, "random_state": 0, "start": few, "max_iter": 6, "n_steps": 4}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            once, again = (
                skcds.ConsistentSamplerScratch(3, **options).fit(bent, checkpoint=tmp_path / "fit") for _ in range(2)
            )
        assert again._explored is not None
        np.testing.assert_array_equal(once.sample(5, random_state=1), again.sample(5, random_state=1))


class TestManyFeatures:
    def pilot(self, d, n_evals=20_000, **fields):
        energy = Energy(lambda x: 0.5 * ((x - 1) ** 2).sum(1), d, generator=seeded())
        energy.monitor = Budget(None, n_evals, energy)
        by = Pilot(n_particles=300, adaptive=Adaptive(many_features=5, **fields))
        run = pilots._Pilot(energy, 300, seeded(), energy.monitor, None, by)
        run.own_draws = True
        return run, energy

    def test_shares_of_few_evaluations(self):
        by = Adaptive()
        assert self.pilot(6)[0].shares_of_few() == (by.time_share, by.evals_before_own_draws)
        assert self.pilot(5)[0].shares_of_few() == (by.time_share, by.evals_share)

    @pytest.mark.parametrize(
        ("make", "wanted"),
        [
            (lambda **o: skcds.ConsistentSamplerScratch(6, n_steps=4, **o), True),
            (lambda **o: skcds.ConsistentSamplerScratch(6, n_steps=4, network="residual", **o), False),
            (lambda **o: skcds.DiffusionSampler(6, n_steps=4, **o), False),
        ],
        ids=["scratch", "residual", "teacher"],
    )
    def test_only_for_a_map_that_has_own_draws(self, make, wanted, monkeypatch):
        """A teacher by itself keeps its points."""
        asked = []

        def run_pilot(*args):
            asked.append(args[-1])
            raise RuntimeError("that is all")

        monkeypatch.setattr(control, "run_pilot", run_pilot)
        with pytest.raises(RuntimeError, match="that is all"):
            make(max_energy_evals=6000, random_state=0).fit(bent)
        assert asked == [wanted]

    def test_one_mode_is_run_from(self):
        """A short tempered run, and no store of points, leaves most of the evaluations."""
        run, energy = self.pilot(6)
        store = Store(6)
        with energy.monitor.part(*run.shares_of_few()):
            run.time_share, run.evals_share = run.shares_of_few()
            found, x = run.explore(store)
        assert not len(store) and x.isfinite().all() and math.isfinite(found.log_evidence)
        assert energy.n_energy_evals <= 0.4 * 20_000

    def test_several_modes_are_explored(self, monkeypatch):
        run, _ = self.pilot(6)
        monkeypatch.setattr(run, "_survey", lambda: [object(), object()])
        monkeypatch.setattr(run, "_in_high_dimension", lambda begin: pytest.fail("there are two modes"))
        monkeypatch.setattr(pilots, "explore", lambda *args: None)
        assert run.explore(Store(6)) is None
