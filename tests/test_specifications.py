"""Specifications of maps: parameters of a parameter, with the manners of scikit-learn, that files keep."""

import dataclasses
import pickle

import numpy as np
import pytest
from samplers import D, make, quadratic
from sklearn.base import clone

import skcds
from skcds import ConsistentSamplerDistiller, ConsistentSamplerScratch, Coupling, Residual
from skcds.estimators import onestep

KINDS = [ConsistentSamplerDistiller, ConsistentSamplerScratch]
MAP = {"n_transforms": 2, "bins": 4, "hidden_features": 16, "n_layers": 1}
each_kind = pytest.mark.parametrize("cls", KINDS)


def draws(sampler):
    return sampler.fit(quadratic).sample(20, random_state=0)


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

    @pytest.mark.parametrize("wrong", [{"bins": 1}, {"n_layers": 0}, {"hidden_features": 2.5}, {"n_transforms": True}])
    def test_wrong_values(self, wrong):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} of Coupling has to be an integer of at least"):
            Coupling(**wrong)

    def test_unknown_fields(self):
        with pytest.raises(ValueError, match="Residual has no field 'bins'"):
            ConsistentSamplerScratch(network=Residual()).set_params(network__bins=4)

    def test_sizes_given_twice(self):
        sampler = make("ConsistentSamplerScratch", network=Coupling(n_transforms=2), n_transforms=3)
        with pytest.raises(ValueError, match="n_transforms is given both to the sampler and to its network Coupling"):
            sampler.fit(quadratic)


@pytest.mark.filterwarnings("ignore")
class TestFits:
    """A specification and the sampler's own parameters make the same map."""

    def test_of_a_student(self):
        names = {"bins": "n_bins"}
        plain = {names.get(name, name): value for name, value in MAP.items()}
        first = make("ConsistentSamplerDistiller", max_iter=3, **plain)
        second = make("ConsistentSamplerDistiller", max_iter=3, n_transforms=None, network=Coupling(**MAP))
        assert np.array_equal(draws(first), draws(second))

    def test_of_one_from_scratch(self):
        names = {"bins": "n_bins", "hidden_features": "map_features", "n_layers": "map_layers"}
        plain = {names.get(name, name): value for name, value in MAP.items()}
        first = make("ConsistentSamplerScratch", max_iter=3, **plain)
        second = make("ConsistentSamplerScratch", max_iter=3, n_transforms=None, network=Coupling(**MAP))
        assert np.array_equal(draws(first), draws(second))

    @pytest.mark.parametrize("kind", ["ConsistentSamplerDistiller", "ConsistentSamplerScratch"])
    def test_of_a_residual_map(self, kind, monkeypatch):
        monkeypatch.setattr(onestep, "N_HELD_OUT", 200)  # whose Jacobians take most of the time
        sizes = {"hidden_features": 24, "n_layers": 1}
        few = {"batch_size": 32} | ({"map_batch_size": 32} if kind == "ConsistentSamplerScratch" else {})
        first = make(kind, max_iter=3, network="residual", **sizes, **few)
        second = make(kind, max_iter=3, network=Residual(**sizes), **few)
        if kind == "ConsistentSamplerScratch":
            assert second.hidden_features == 32  # of `make`: the network's own sizes come first
        assert np.array_equal(draws(first), draws(second))

    def test_files_and_pickles_keep_them(self, tmp_path):
        sampler = make("ConsistentSamplerScratch", max_iter=2, n_transforms=None, network=Coupling(n_transforms=2))
        sampler.fit(quadratic).save(tmp_path / "a")
        for same in (skcds.load(tmp_path / "a"), pickle.loads(pickle.dumps(sampler))):
            assert same.network == Coupling(n_transforms=2)
            assert np.array_equal(same.sample(5, random_state=0), sampler.sample(5, random_state=0))

    def test_warm_starts_compare_them(self):
        sampler = make("ConsistentSamplerDistiller", max_iter=2, n_transforms=None, network=Coupling(n_transforms=2))
        sampler.fit(quadratic).set_params(warm_start=True).fit(quadratic)
        with pytest.raises(ValueError, match="n_transforms=2, and n_transforms=3 is asked for"):
            sampler.set_params(network__n_transforms=3).fit(quadratic)

    def test_checkpoints_compare_them(self, tmp_path):
        def fit(n_transforms):
            network = Coupling(n_transforms=n_transforms)
            sampler = make("ConsistentSamplerScratch", max_iter=2, n_transforms=None, network=network)
            return sampler.fit(quadratic, checkpoint=tmp_path / "a")

        assert fit(2).n_features_in_ == fit(2).n_features_in_ == D
        with pytest.raises(ValueError, match=r"parameter network is 'Coupling\(n_transforms=2\)'"):
            fit(3)
