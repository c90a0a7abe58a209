"""Which cases of a test are run by default, and which with the slow tests alone."""

import itertools

import pytest


def crossed(shown, *factors):
    """All combinations of the factors, of which those that are not shown are slow tests."""
    return [
        pytest.param(*case, marks=() if case in shown else pytest.mark.slow) for case in itertools.product(*factors)
    ]


def slow(*cases):
    """These cases, each a value or a tuple of values, as slow tests."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow) for case in cases]
