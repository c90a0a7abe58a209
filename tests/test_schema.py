"""Fitted attributes are declared once: fits have those and no others, and the documentation tells of each."""

import copy
import inspect
import pickle
import re

import pytest
from samplers import KINDS, fitted

import skcds
from skcds.io.reader import ARRAYS
from skcds.io.registry import RECORDS
from skcds.io.schema import UNSAVED, fitted_attributes, in_files, undeclared

KNOWN = {
    "context names",
    "model",
    "count",
    "flag",
    "number",
    "numbers",
    "covariance",
    "names",
    "sampler",
    "list of phase",
}


def documented(cls):
    section = inspect.getdoc(cls).split("Attributes\n----------\n")[1].split("\n\n")[0]
    return {name for names in re.findall(r"^(\S.*) : ", section, re.M) for name in names.split(", ")}


@pytest.mark.parametrize("kind", KINDS)
def test_declared_fitted_and_documented_are_the_same(kind):
    sampler = fitted(kind)
    declared = fitted_attributes(type(sampler))
    assert declared.keys() <= vars(sampler).keys() and not undeclared(sampler)
    assert documented(type(sampler)) == {name for name in declared if not name.startswith("_")}
    kinds = {attribute.kind.removesuffix(" or None") for attribute in declared.values()}
    assert kinds <= KNOWN | ARRAYS.keys() | UNSAVED | RECORDS.keys()


def test_what_is_not_declared_is_found():
    sampler = copy.copy(fitted(KINDS[0]))
    sampler.__dict__ |= {"twist_": 1, "_hidden_": 2, "parameter": 3}
    assert undeclared(sampler) == ["twist_"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept(kind):
    """Clock readings leave with no pickle, what is for memory only with no file."""
    sampler = fitted(kind)
    by_kind = {name: attribute.kind for name, attribute in fitted_attributes(type(sampler)).items()}
    assert by_kind["fit_time_"] == "clock" and "fit_time_" not in vars(pickle.loads(pickle.dumps(sampler)))
    assert not {name for name, what in by_kind.items() if what in UNSAVED} & in_files(type(sampler)).keys()


def test_a_pickle_from_before_an_attribute_gets_what_it_stands_for():
    state = fitted("DiffusionSampler").__getstate__()
    for name in ("bounds_", "bounds_scale_", "feature_names_out_", "n_steps_", "history_"):
        del state[name]
    sampler = object.__new__(skcds.DiffusionSampler)
    sampler.__setstate__(state)
    assert sampler.bounds_ is None and sampler.feature_names_out_.tolist() == ["x0", "x1", "x2"]
    assert sampler.n_steps_ == sampler.n_steps == 8 and [phase.n_iter for phase in sampler.history_] == [20]


def test_files_of_a_format_hold_what_there_was():
    kinds = [in_files(skcds.DiffusionSampler, version).keys() for version in (1, 2, 3, 4, 5, 6)]
    assert kinds[2] - kinds[1] == {"n_steps_"} and "elbo_" in kinds[1] - kinds[0]
    assert kinds[3] - kinds[2] == {"history_"} and kinds[5] - kinds[4] == {"total_variation_", "seam_"}
