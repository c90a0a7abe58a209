"""Every bad input of the table has the answer that the table says, and leaves the sampler as it was."""

import copy
import warnings

import joblib
import numpy as np
import pytest
from bad_input import CASES, table
from samplers import fitted


def fit_of(sampler):
    """Hash of what was fitted; parameters are the user's."""
    state = {name: value for name, value in sampler.__getstate__().items() if name.endswith("_") or name == "_model"}
    state.pop("teacher_", None)
    return joblib.hash(state)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.group}: {case.what}")
def test_bad_input(case, tmp_path):
    sampler = copy.deepcopy(fitted(case.kind))
    before = fit_of(sampler)
    if case.answer is None:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            case.act(sampler, tmp_path)
        assert np.isfinite(sampler.sample(50, random_state=0)).all() and np.isfinite(sampler.log_evidence_)
    elif isinstance(case.answer, type) and issubclass(case.answer, Warning):
        with pytest.warns(case.answer, match=case.message):
            case.act(sampler, tmp_path)
    else:
        with pytest.raises(case.answer, match=case.message):
            case.act(sampler, tmp_path)
        assert fit_of(sampler) == before
        sampler.set_params(**fitted(case.kind).get_params(deep=False))
        assert np.isfinite(sampler.sample(5, random_state=0)).all()


def test_there_are_enough():
    assert len(CASES) >= 40 and len({(case.group, case.what) for case in CASES}) == len(CASES)


def test_table():
    text = table()
    assert text.count("   * - ") == len(CASES) + 1 and "``InvalidEnergyError``" in text
