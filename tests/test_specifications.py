"""Specifications: parameters of a parameter, with the manners of scikit-learn, that files keep."""

import copy
import dataclasses
import pickle
import re

import joblib
import numpy as np
import pytest
from samplers import SMALL_CONTROL, SMALL_MAP, D, fitted, make, quadratic
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
    specifications,
)  # fmt: skip
from skcds.explore.specifications import as_start
from skcds.io.reader import _Reader
from skcds.io.registry import SPECIFICATIONS
from skcds.specifications import Adaptive, Likelihood, MapFit, Particles, Race, Tempering, Training

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

    @pytest.mark.parametrize("name", SPECIFICATIONS)
    def test_are_shown_without_what_is_by_default(self, name):
        """Each of them, inside a sampler, a checkpoint or alone."""
        assert repr(SPECIFICATIONS[name]()) == f"{name}()"

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
        small = {"max_iter": 2, "max_time": 0.5, "random_state": 0}
        for own, begin in [(None, (9.0, 2.0)), (Pilot(n_particles=300), (9.0, 2.0)), (Pilot((8.0, 3.0)), (8.0, 3.0))]:
            teacher = DiffusionSampler(D, start=own, n_steps=4, network=SMALL_CONTROL, **small)
            student = ConsistentSamplerDistiller(teacher, start=(9.0, 2.0), network=SMALL_MAP, **small)
            found = student.fit(quadratic).teacher_.start
            assert as_start(found).begin == begin
            assert as_start(found).n_particles == (300 if own and own.n_particles == 300 else 20_000)


INNER = [getattr(specifications, name) for name in specifications.__all__]
SHORT = {"start__tempering__n_moves": 2, "start__adaptive__map__n_iter": 3, "start__race__scales": (2.0, 8.0)}


class TestInside:
    """Specifications inside of others."""

    @pytest.mark.parametrize("cls", INNER)
    def test_every_field_is_documented_and_validated(self, cls):
        names = [field.name for field in dataclasses.fields(cls)]
        described = re.findall(r"^    (\w+(?:, \w+)*) : .*, default=", cls.__doc__, re.M)
        assert sorted(names) == sorted(", ".join(described).split(", ")) == sorted(cls.constraints)
        assert re.search("nmeasured|measured", cls.__doc__)
        for name in names:
            with pytest.raises(ValueError, match=f"'{name}' parameter of {cls.__name__} must be"):
                cls(**{name: "much"})

    @pytest.mark.parametrize("cls", INNER)
    def test_equal_ones_hash_alike(self, cls):
        """Also where two fields are one object, as default values may be, and copies are not."""
        one = cls()
        copies = clone(one), pickle.loads(pickle.dumps(one)), copy.deepcopy(one)
        for same in copies:
            assert same == one and hash(same) == hash(one) and joblib.hash(same) == joblib.hash(one)

    def test_are_reached_by_name(self):
        sampler = DiffusionSampler().set_params(**SHORT)
        params = sampler.get_params()
        assert SHORT.items() <= params.items() and params["start__tempering__n_moves_without"] == 30
        assert sampler.start == Pilot(
            tempering=Tempering(n_moves=2), adaptive=Adaptive(map=MapFit(n_iter=3)), race=Race(scales=(2.0, 8.0))
        )
        both = sampler.set_params(start__adaptive=Adaptive(rounds=4), start__adaptive__map__n_iter=5)
        assert both.start.adaptive == Adaptive(rounds=4, map=MapFit(n_iter=5))
        assert joblib.hash(sampler) == joblib.hash(clone(sampler)) and "MapFit(n_iter=5)" in repr(sampler)
        assert "MapFit" in sampler._repr_html_()

    @pytest.mark.parametrize("cls", KINDS)
    def test_reach_the_training(self, cls):
        sampler = cls().set_params(objective__training__particles__move_every=3, objective__likelihood__order=2.0)
        assert sampler._training() == Training(particles=Particles(move_every=3))
        assert sampler.objective.likelihood == Likelihood(order=2.0)

    @pytest.mark.parametrize(
        "name, message",
        [
            ("start__tempering__moves", "Tempering has no field 'moves'"),
            ("start__n_particles__x", "Pilot has no field 'n_particles__x'"),
            ("start__map", "Pilot has no field 'map'"),
        ],
    )
    def test_unknown_fields(self, name, message):
        with pytest.raises(ValueError, match=message):
            DiffusionSampler().set_params(**{name: 1})

    @pytest.mark.parametrize("wrong", [[1.0, 3.0], (), (1.0, "3"), (1.0, np.nan)])
    def test_sequences_are_tuples_of_numbers(self, wrong):
        with pytest.raises(ValueError, match="'scales' parameter of Race must be"):
            Race(scales=wrong)

    def test_a_long_repr_is_whole(self):
        """Checkpoints compare it."""
        names = [field.name for field in dataclasses.fields(Adaptive) if field.type in ("int", "float", int, float)]
        many = Adaptive(
            **{
                name: getattr(Adaptive, name) * 0.9
                if isinstance(getattr(Adaptive, name), float)
                else getattr(Adaptive, name) + 1
                for name in names
            }
        )
        text = repr(Pilot(adaptive=many, race=Race(scales=tuple(map(float, range(1, 40))))))
        assert all(f"{name}=" in text for name in names) and "..." not in text.replace("Pilot", "")

    @pytest.mark.filterwarnings("ignore")
    def test_take_effect_and_are_kept(self, tmp_path):
        """Fewer moves of fewer particles take fewer evaluations; files, pickles and checkpoints have the fields."""

        def fit(**params):
            return make("DiffusionSampler", max_iter=2, loss__training__n_judged=100, **params)

        usual, short = fit().fit(quadratic), fit(**SHORT, start__race__n_particles=100)
        short.fit(quadratic, checkpoint=tmp_path / "state")
        assert short.n_energy_evals_ < 0.8 * usual.n_energy_evals_
        short.save(tmp_path / "a")
        for same in (skcds.load(tmp_path / "a"), pickle.loads(pickle.dumps(short))):
            assert same.start.race.scales == (2.0, 8.0) and same.start == short.start
        with pytest.raises(ValueError, match="parameter start is 'Pilot"):
            fit().fit(quadratic, checkpoint=tmp_path / "state")

    def test_files_of_before_have_the_defaults(self):
        """They have the fields of their time."""
        old = {"specification": ["Pilot", {"begin": {"tuple": [0.0, 2.0]}, "n_particles": 500}]}
        assert _Reader({}, {}, {}, None)._parameter(old, 0) == Pilot((0.0, 2.0), 500)
        pilot = object.__new__(Pilot)
        pilot.__setstate__({"begin": None, "n_particles": 500})
        assert pilot == Pilot(n_particles=500) and pilot.tempering == Tempering()


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
