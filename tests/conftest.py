"""Hypothesis profiles: HYPOTHESIS_PROFILE=dev (default), ci (the default in CI) or thorough (explores for real).

And what all tests do without.
"""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)  # the fits are small, and a second thread that has to wait for a core costs more than it gives

slow_is_fine = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("dev", max_examples=20, **slow_is_fine)
settings.register_profile("ci", max_examples=20, derandomize=True, database=None, print_blob=True, **slow_is_fine)
settings.register_profile("thorough", max_examples=500, **slow_is_fine)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))


@pytest.fixture(autouse=True)
def _short_explorations(request, monkeypatch):
    """Explorations of few evaluations fit small mixtures and short maps, on which most of their time is spent.

    Not in slow tests, nor where they are the subject. The evaluations that are made, and limits, are the same.
    """
    if "slow" not in request.keywords and "test_adaptive" not in request.node.nodeid:
        for name, value in {"MAP_ITERATIONS": 10, "MAX_FITTED": 500, "MAX_COMPONENTS": 10}.items():
            monkeypatch.setattr(f"skcds.explore.adaptive.{name}", value)
