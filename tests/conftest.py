"""Hypothesis profiles: HYPOTHESIS_PROFILE=dev (default), ci (the default in CI) or thorough (explores for real)."""

import os

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)  # the fits are small, and a second thread that has to wait for a core costs more than it gives

slow_is_fine = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("dev", max_examples=20, **slow_is_fine)
settings.register_profile("ci", max_examples=20, derandomize=True, database=None, print_blob=True, **slow_is_fine)
settings.register_profile("thorough", max_examples=500, **slow_is_fine)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))
