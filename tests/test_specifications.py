"""Specifications: parameters of a parameter, with the manners of scikit-learn, that files keep."""

import dataclasses
import pickle

import numpy as np
import pytest
from samplers import D, fitted, make, quadratic
from sklearn.base import clone

import skcds
from skcds import (
    Consistency,
    ConsistentSamplerDistiller,
    ConsistentSamplerScratch,
    Control,
    Coupling,
    DiffusionSampler,
    PathLoss,
    Pilot,
    Prior,
    Residual,
    SelfConsistency,
)  # fmt: skip
from skcds.explore.specifications import as_start

KINDS = [ConsistentSamplerDistiller, ConsistentSamplerScratch]
MAP = {"n_transforms": 2, "bins": 4, "hidden_features": 16, "n_layers": 1}
each_kind = pytest.mark.parametrize("cls", KINDS)


class TestManners:
    @each_kind
    def test_fields_are_parameters(self, cls):
        sampler = cls(network=Coupling(bins=8))
        assert sampler.get_params()["network__bins"] == 8 and "network__bins" not in sampler.get_params(deep=False)
        assert sampler.set_params(network__bins=16, max_iter=7) is sampler
        assert sampler.network == Coupling(bins=16) and sampler.max_iter == 7
        sampler.set_params(network=Residual(), network__n_layers=3)
        assert sampler.network == Residual(n_layers=3)

    @each_kind
    def test_strings_are_short_for_them(self, cls):
        assert cls(network="coupling").set_params(network__bins=4).network == Coupling(bins=4)
        assert cls().set_params(network="residual", network__n_layers=3).network == Residual(n_layers=3)

    @each_kind
    def test_clone(self, cls):
        network = Coupling(bins=8)
        twin = clone(cls(network=network))
        assert twin.network == network and twin.network is not network

    def test_do_not_change(self):
        network = Coupling(bins=8)
        assert network.set_params(bins=4) == Coupling(bins=4) and network.bins == 8
        with pytest.raises(dataclasses.FrozenInstanceError):
            network.bins = 4

    @each_kind
    def test_are_shown(self, cls):
        sampler = cls(network=Coupling(bins=8))
        assert "Coupling(bins=8)" in repr(sampler) and "Coupling" in sampler._repr_html_()

    @pytest.mark.parametrize("wrong", [{"bins": 1}, {"n_layers": 0}, {"hidden_features": 2.5}, {"n_transforms": "4"}])
    def test_wrong_values(self, wrong):
        with pytest.raises(
            ValueError, match=f"'{next(iter(wrong))}' parameter of Coupling must be an int in the range"
        ):
            Coupling(**wrong)

    def test_unknown_fields(self):
        with pytest.raises(ValueError, match="Residual has no field 'bins'"):
            ConsistentSamplerScratch(network=Residual()).set_params(network__bins=4)

    @pytest.mark.parametrize(
        "spec, wrong",
        [
            (Control, {"variance": "none"}), (Control, {"langevin": "yes"}), (Control, {"n_layers": None}),
            (Pilot, {"n_particles": 10}), (Prior, {"length_scale": 0.0}), (PathLoss, {"kind": "l2"}),
            (PathLoss, {"share": 1.5}), (PathLoss, {"batch_size": 1}), (Consistency, {"weight": -1.0}),
            (Consistency, {"refine": "no"}), (SelfConsistency, {"schedule": "both"}),
            (SelfConsistency, {"path_batch_size": 1}),
        ],
    )  # fmt: skip
    def test_wrong_values_of_others(self, spec, wrong):
        with pytest.raises(ValueError, match=f"'{next(iter(wrong))}' parameter of {spec.__name__} must be"):
            spec(**wrong)

    @pytest.mark.parametrize("cls", [DiffusionSampler, *KINDS])
    def test_a_constructor_can_be_read_at_a_glance(self, cls):
        assert len(cls().get_params(deep=False)) <= 20

    def test_a_start_is_short_for_a_pilot(self):
        points = np.arange(6.0).reshape(3, 2)
        for start in (None, "pilot", (1.0, 2.0), points):
            sampler = DiffusionSampler(start=start).set_params(start__n_particles=300)
            begin = start if isinstance(start, tuple | np.ndarray) else None
            assert sampler.start == Pilot(begin, 300) and sampler.start.begin is begin
        assert Pilot(points) == Pilot(points.copy()) != Pilot(points + 1)
        assert DiffusionSampler(start="prior").set_params(start__length_scale=0.2).start == Prior(length_scale=0.2)

    def test_a_teacher_begins_where_its_student_does(self):
        """Its own particles stay, and where it begins from comes from the student unless it says so itself."""
        for own, begin in [(None, (9.0, 2.0)), (Pilot(n_particles=300), (9.0, 2.0)), (Pilot((8.0, 3.0)), (8.0, 3.0))]:
            teacher = DiffusionSampler(D, start=own, n_steps=4, max_iter=2, random_state=0)
            student = ConsistentSamplerDistiller(teacher, start=(9.0, 2.0), max_iter=2, random_state=0)
            found = student.fit(quadratic).teacher_.start
            assert as_start(found).begin == begin
            assert as_start(found).n_particles == (300 if own and own.n_particles == 300 else 20_000)


OLD = {
    "DiffusionSampler": {"path_share": 0.2, "path_batch_size": 16, "langevin": False},
    "ConsistentSamplerDistiller": {"n_bins": 4, "n_transforms": 2, "consistency_weight": 0.1, "refine": True},
    "ConsistentSamplerScratch": {"map_features": 8, "map_batch_size": 32, "objective": "joint", "init": "prior"},
}


class TestEarlierVersions:
    """Pickles of before had the fields as parameters; so have files, whose golden ones are in test_persistence."""

    @pytest.mark.parametrize("kind", OLD)
    @pytest.mark.filterwarnings("ignore")
    def test_pickles(self, kind):
        sampler = fitted(kind)
        state = sampler.__getstate__()
        today = ("network", "loss", "objective", "control")
        old = {name: value for name, value in state.items() if name not in today} | {"start": None}
        again = object.__new__(type(sampler))
        again.__setstate__(old | OLD[kind])
        params = again.get_params()
        assert params.keys() >= type(sampler)().get_params(deep=False).keys()
        expected = {
            "DiffusionSampler": {"loss__share": 0.2, "loss__batch_size": 16, "network__langevin": False},
            "ConsistentSamplerDistiller": {"network__bins": 4, "objective__weight": 0.1},
            "ConsistentSamplerScratch": {
                "network__hidden_features": 8, "objective__batch_size": 32, "objective__schedule": "joint",
                "start": Prior(),
            },
        }  # fmt: skip
        assert expected[kind].items() <= params.items()
        assert np.array_equal(again.sample(5, random_state=0), sampler.sample(5, random_state=0))


@pytest.mark.filterwarnings("ignore")
class TestFits:
    @pytest.mark.parametrize("kind", ["ConsistentSamplerDistiller", "ConsistentSamplerScratch"])
    def test_sizes_of_a_coupling(self, kind):
        sampler = make(kind, max_iter=1, network=Coupling(**MAP)).fit(quadratic)
        config, names = sampler._model.config, {"hidden_features": "hidden"}
        if kind == "ConsistentSamplerScratch":
            names = {"hidden_features": "map_hidden", "n_layers": "map_layers"}
            assert (config["hidden"], config["n_layers"]) == (32, 2)  # of the control
        assert all(config[names.get(name, name)] == size for name, size in MAP.items())

    @pytest.mark.parametrize("kind", ["ConsistentSamplerDistiller", "ConsistentSamplerScratch"])
    def test_sizes_of_a_residual_map(self, kind):
        config = make(kind, max_iter=1, network=Residual(24, 1)).fit(quadratic)._model.config
        assert (config["hidden"], config["n_layers"]) == (24, 1)

    def test_files_and_pickles_keep_them(self, tmp_path):
        sampler = make("ConsistentSamplerScratch", max_iter=2, network=Coupling(n_transforms=2))
        sampler.fit(quadratic).save(tmp_path / "a")
        for same in (skcds.load(tmp_path / "a"), pickle.loads(pickle.dumps(sampler))):
            assert same.network == Coupling(n_transforms=2)
            assert np.array_equal(same.sample(5, random_state=0), sampler.sample(5, random_state=0))

    def test_warm_starts_compare_them(self):
        sampler = make("ConsistentSamplerDistiller", max_iter=2, network=Coupling(n_transforms=2))
        sampler.fit(quadratic).set_params(warm_start=True).fit(quadratic)
        with pytest.raises(ValueError, match="network__n_transforms=2, and network__n_transforms=3 is asked for"):
            sampler.set_params(network__n_transforms=3).fit(quadratic)

    def test_checkpoints_compare_them(self, tmp_path):
        def fit(n_transforms):
            network = Coupling(n_transforms=n_transforms)
            sampler = make("ConsistentSamplerScratch", max_iter=2, network=network)
            return sampler.fit(quadratic, checkpoint=tmp_path / "a")

        assert fit(2).n_features_in_ == fit(2).n_features_in_ == D
        with pytest.raises(ValueError, match=r"parameter network is 'Coupling\(n_transforms=2\)'"):
            fit(3)
