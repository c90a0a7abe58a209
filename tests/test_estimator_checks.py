"""scikit-learn's own checks: those without data on the real classes, all of them on a subclass that takes an array."""

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.validation import validate_data

from skcds import ConsistentSamplerDistiller, ConsistentSamplerScratch, DiffusionSampler

ESTIMATORS = [
    DiffusionSampler(),
    ConsistentSamplerDistiller(),
    ConsistentSamplerDistiller(DiffusionSampler()),
    ConsistentSamplerScratch(),
]
DATA_FREE = [
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_estimator_tags_renamed",
    "check_get_params_invariance",
    "check_mixin_order",
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_set_params",
    "check_valid_tag_types",
]


@pytest.mark.parametrize("name", DATA_FREE)
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: type(e).__name__)
def test_without_data(estimator, name):
    getattr(estimator_checks, name)(type(estimator).__name__, estimator)


class ArraySampler(DiffusionSampler):
    """Samples the Gaussian with the mean and the variances of the columns of an array."""

    def __init__(self, n_steps=2, max_iter=2, start="prior", random_state=None):
        super().__init__(n_steps=n_steps, start=start, max_iter=max_iter, random_state=random_state)

    def fit(self, X, y=None):
        X = validate_data(self, X)
        mean, variance = torch.tensor(X.mean(0)), torch.tensor(X.var(0) + 1e-3)

        def energy(x):
            return 0.5 * ((x - mean.to(x)).square() / variance.to(x)).sum(1)

        energy.n_features = X.shape[1]
        return super().fit(energy)

    def score(self, X, y=None):
        validate_data(self, X, reset=False)
        return super().score(n=100)


@pytest.mark.filterwarnings(f"ignore::{ConvergenceWarning.__module__}.{ConvergenceWarning.__name__}")
@parametrize_with_checks([ArraySampler()])
def test_with_data(estimator, check):
    check(estimator)


def test_the_checks_can_fail():
    class Careless(DiffusionSampler):
        def __init__(self, n_features=None):
            super().__init__(n_features=int(n_features or 2))

    with pytest.raises(AssertionError):
        estimator_checks.check_parameters_default_constructible("Careless", Careless())


def test_array_defines_the_energy():
    X = np.random.RandomState(0).normal(size=(50, 3))
    assert ArraySampler().fit(X).sample(4).shape == (4, 3)
