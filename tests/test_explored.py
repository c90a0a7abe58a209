"""What an exploration leaves to a fit: the map that it starts from, and the points that it is trained on."""

import copy
import math
import pickle
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning

import skcds
from skcds import Control, Coupling, Pilot, Residual
from skcds.density.energy import Energy
from skcds.density.standardize import Standardization
from skcds.estimators import control, distiller, scratch
from skcds.estimators.explored import as_explored, begin_from, known_points_loss
from skcds.estimators.networks import shortcut_model, start_map
from skcds.estimators.paths import paths_to_exchange
from skcds.explore import adaptive
from skcds.explore import pilot as pilots
from skcds.explore.adaptive import MapProposal, _Explorer, explore, first_proposal
from skcds.explore.climb import Mode
from skcds.explore.mixture import TMixture
from skcds.explore.store import Store
from skcds.explore.wide import WideLatents
from skcds.models.maps import OneStepModel, standard_normal_log_prob
from skcds.models.networks import seeded as nets_seeded
from skcds.specifications import Adaptive, MapFit, Mixture, Training
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


def mode(d):
    return Mode(Standardization.from_moments(torch.zeros(d).double(), torch.eye(d).double()), 0.0)


class TestExplorer:
    def explorer(self, d=8, energy_fn=bent, modes=(), **fields):
        by = Adaptive(map=MapFit(n_iter=20, **fields), mixture=Mixture(max_components=4, max_fitted=500))
        energy = Energy(energy_fn, d, generator=seeded())
        return _Explorer(
            energy, Store(d), list(modes), first_proposal(energy, []), seeded(), lambda: 1e9, lambda: False, by
        )

    @pytest.mark.parametrize(("d", "modes", "left"), [(8, 0, True), (2, 1, True), (8, 2, False)])
    def test_the_map_of_a_good_round_is_left(self, d, modes, left):
        """One of a bad round is not: what starts from it would start wrong. Nor is one of several modes."""
        explorer = self.explorer(d, modes=[mode(d)] * modes, begun=0.2)
        explorer.proposal = MapProposal(explored_map(d))
        explorer._propose = lambda n: None
        for share, is_good in ((0.1, False), (0.3, True), (0.1, True)):
            weights = torch.zeros(1000).double()
            weights[: int((1 - share) * 1000)] = -torch.inf
            explorer.store.log_weights_of = lambda k, weights=weights: weights
            explorer.step(100)
            assert (explorer.store.model is not None) == (left and is_good)

    @pytest.mark.parametrize(("modes", "share"), [(0, 0.3), (2, 0.0)])
    def test_some_draws_of_a_map_go_beyond_it(self, modes, share):
        explorer = self.explorer(modes=[mode(8)] * modes, wide=0.3)
        explorer.proposal = MapProposal(explored_map(8))
        explorer._propose = lambda n: None
        explorer.step(200)
        wide = [k for k, proposal in enumerate(explorer.store.proposals) if isinstance(proposal, WideLatents)]
        assert sum(int((explorer.store.origin == k).sum()) for k in wide) == share * 200
        assert len(explorer.store) == 200 and explorer.evidence[-1][0] == 200

    @pytest.mark.parametrize(("modes", "share"), [(0, 0.0), (2, 0.3)])
    def test_a_map_that_is_no_better_is_drawn_from_once_between_modes(self, modes, share, monkeypatch):
        """It reaches modes beside those that are known. Here the mixture is better by hundreds of nats."""

        class Poor(MapProposal):
            def log_prob(self, x):
                return torch.full((len(x),), -1e3).double()

        monkeypatch.setattr(adaptive, "MapProposal", Poor)
        monkeypatch.setattr(adaptive, "fit_map", lambda *args: True)
        explorer = self.explorer(modes=[mode(8)] * modes, wide=0.3)
        explorer._draw(explorer.first, 500)
        explorer._propose(100)
        explorer.ess = 0.1
        explorer._propose(100)
        explorer._propose = lambda n: None
        for _ in range(2):
            explorer.step(200)
        poor = [k for k, proposal in enumerate(explorer.store.proposals) if isinstance(proposal, Poor)]
        assert sum(int((explorer.store.origin == k).sum()) for k in poor) == share * 200

    @pytest.mark.parametrize("modes", [0, 2])
    def test_scores_are_for_one_mode(self, modes, monkeypatch):
        """Between modes they tell nothing of the masses."""
        given = []
        monkeypatch.setattr(adaptive, "fit_map", lambda model, points, *args: given.append(points))
        explorer = self.explorer(modes=[mode(8)] * modes)
        explorer._draw(explorer.first, 500)
        explorer.proposal = MapProposal(explored_map(8))
        explorer._propose(100)
        assert (given[0].score is None) == (modes == 2)

    def test_coordinates_of_a_map_tame_heavy_tails(self):
        explorer, normal = self.explorer(3), torch.randn(2000, 3, generator=seeded()).double()
        heavy = normal / torch.randn(2, 2000, 1, generator=seeded(1)).double().square().sum(0).sqrt()
        assert explorer._new_model(heavy).standardization.width.isfinite().all()
        assert explorer._new_model(normal).standardization.width.isinf().all()

    def test_points_are_held_out_for_good(self):
        """A twentieth to a fifth of 400, where .12 are wanted: six errors of .016. They come with what is explored."""
        explorer = self.explorer(2, energy_fn=lambda x: 0.5 * (x**2).sum(1))
        normal = TMixture.of_widths(torch.zeros(2).double(), [1.0])
        explorer._draw(normal, 400)
        held = explorer.store.held.clone()
        assert 0.05 < held.double().mean() < 0.2
        explorer._draw(normal, 100)
        assert len(explorer.store.held) == 500 and torch.equal(explorer.store.held[:400], held)
        explorer.store.model = explorer._new_model(explorer.store.x)
        assert torch.equal(explorer.store.explored(50, True).held, explorer.store.held)

    def test_one_point_does_not_decide_between_proposals(self):
        """Where a map has hardly any density at a point of a hundred it lacks ten nats there, and no more."""
        explorer = self.explorer(2, energy_fn=lambda x: 0.5 * (x**2).sum(1))
        explorer._draw(TMixture.of_widths(torch.zeros(2).double(), [1.0]), 100)
        far = SimpleNamespace(log_prob=lambda x: torch.where(torch.arange(len(x)) == 0, -1e9, 0.0).double())
        near = SimpleNamespace(log_prob=lambda x: torch.zeros(len(x)).double())
        explorer.store.held[:], log_weights = True, torch.zeros(100).double()
        lost = explorer._score_of(near, log_weights) - explorer._score_of(far, log_weights)
        assert 0 < lost < 0.2

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
        quick, poor = MapFit(n_iter=60, begun=0.0), Mixture(max_fitted=500, max_components=1)
        return Pilot(adaptive=Adaptive(rounds=6, map=quick, mixture=poor))

    @pytest.fixture
    def losses(self, monkeypatch):
        """What maps are trained on, as it is made: a copy of the map before, and the loss."""
        made = []

        def noted(sampler, run):
            before = None if run.explored is None else copy.deepcopy(run.explored.model)
            made.append((before, known_points_loss(sampler, run)))
            return made[-1][1]

        for module in (scratch, distiller):
            monkeypatch.setattr(module, "known_points_loss", noted)
        return made

    @pytest.mark.parametrize("kind", [skcds.ConsistentSamplerScratch, skcds.ConsistentSamplerDistiller])
    def test_starts_from_the_map_and_is_trained_on_all_points(self, kind, few, losses):
        """Its density is that of the explored map, but for what two iterations change."""
        options = {"max_energy_evals": 6000, "random_state": 0, "start": few, "max_iter": 2, "learning_rate": 1e-6}
        fitted = kind(n_features=3, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            fitted.fit(bent)
        z = torch.randn(50, 3, generator=seeded())
        ((explored, loss),) = losses
        expected = explored.log_prob(z)
        torch.testing.assert_close(fitted._model.log_prob(z), expected, rtol=1e-3, atol=1e-3)
        assert (expected - standard_normal_log_prob(z)).abs().max() > 0.1
        assert len(loss.points) > 2000 and loss.points.score is not None
        assert 0.05 * len(loss.points) < len(loss.points.held) < 0.2 * len(loss.points)
        assert len(pickle.dumps(fitted)) < 4_000_000  # points are not kept

    def test_more_modes_are_learned_from_particles(self, few, losses):
        def two(x):
            return -torch.logsumexp(torch.stack([-0.5 * ((x - c) ** 2).sum(1) for c in (-4.0, 4.0)]), 0)

        options = {"max_energy_evals": 6000, "random_state": 0, "start": few, "max_iter": 2}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            skcds.ConsistentSamplerScratch(2, n_steps=4, **options).fit(two)
        assert losses == [(None, None)]

    def test_goes_on_from_a_checkpoint(self, few, tmp_path, losses):
        """Map and points are in it."""
        options = {"max_energy_evals": 6000, "random_state": 0, "start": few, "max_iter": 6, "n_steps": 4}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            once, again = (
                skcds.ConsistentSamplerScratch(3, **options).fit(bent, checkpoint=tmp_path / "fit") for _ in range(2)
            )
        assert len(losses) == 2 and torch.equal(losses[0][1].points.z, losses[1][1].points.z)
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
        assert energy.n_energy_evals <= run.by.adaptive.evals_before_own_draws * 20_000

    def test_several_modes_are_explored(self, monkeypatch):
        run, _ = self.pilot(6)
        monkeypatch.setattr(run, "_survey", lambda: [object(), object()])
        monkeypatch.setattr(run.one_mode, "run", lambda begin: pytest.fail("there are two modes"))
        monkeypatch.setattr(pilots, "explore", lambda *args, **options: None)
        assert run.explore(Store(6)) is None


@pytest.mark.parametrize(
    ("limit", "left", "reads_score", "expected"),
    [
        (None, math.inf, False, 4096),  # no limit of evaluations
        (60_000, 100_000, False, 4096),
        (60_000, 10_000, False, 500),  # a tenth of them, two a path
        (60_000, 10_000, True, 0),  # 18 a path leave 55: too few to exchange
        (60_000, 3000, False, 0),
    ],
)
def test_exchanges_of_paths_are_within_the_evaluations_left(limit, left, reads_score, expected):
    """Otherwise the first one that asked for more ended the training."""
    run = SimpleNamespace(
        budget=SimpleNamespace(max_time=None, max_energy_evals=limit, energy_evals_left=lambda: left),
        training=Training(), model=SimpleNamespace(needs_score=reads_score), seconds_a_path=0.0,
    )  # fmt: skip
    assert paths_to_exchange(4096, run, 8) == expected
