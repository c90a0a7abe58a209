"""Hypothesis profiles: HYPOTHESIS_PROFILE=dev (default), ci (the default in CI) or thorough (explores for real)."""

import os
import re

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)  # the fits are small, and a second thread that has to wait for a core costs more than it gives

slow_is_fine = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("dev", max_examples=20, **slow_is_fine)
settings.register_profile("ci", max_examples=20, derandomize=True, database=None, print_blob=True, **slow_is_fine)
settings.register_profile("thorough", max_examples=500, **slow_is_fine)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))

# Tests that take five seconds and more, each with a quicker one of its kind beside it: with the slow ones.
LONG = re.compile(
    r"""
    test_benchmarks\.py::test_(scattered_modes|devices_are_timed|fits_within_budgets|every_method_gives|nuts_keeps)
    |test_benchmarks\.py::test_(sizes_are_compared|evaluations_are_counted_drawn)
    |test_speed\.py::test_(nuts_for_an_effective|every_part_is|peak_memory_is)
    |test_rounding\.py::TestPilot
    |test_pilot\.py::(TestHeavyTails::test_(without_taming|light_tails)|TestLimit::test_is_kept\[2)
    |test_bounds\.py::TestFamilies::test_log_evidence\[(half|uniform|Beta)
    |test_bounds\.py::(TestSamplers::test_an_interrupted.*Scratch|TestTeacherAndStudent::test_unfitted_teacher\[teacher)
    |test_families_parts\.py::test_bounds_hold
    |test_checkpoint\.py::(TestEnergyOfAnotherFit::test_gradient\[1\.0|TestGoesOn::test_bit_for_bit.*params[25])
    |test_parallel\.py::TestFits::test_best_is_kept\[(Diffusion|ConsistentSamplerS)
    |test_copies\.py::TestWorkers::test_(give_the_energy_back\[(Diffusion|ConsistentSamplerS)|with_bounds)
    |test_plotting\.py::test_particles_are_shown.*Diffusion
    |test_streams\.py::(TestWarmStart::test_moved_energy.*Scratch|TestSeeds::test_teachers_of_several.*None)
    |test_export\.py::TestScore::test_picks
    |test_references\.py::\w+::test_(descends|log_evidence)\[(kl-dis|log_variance-(dds|pis))
    |test_periodic\.py::TestSamplers::test_log_evidence\[(Diffusion|ConsistentSamplerD)
    """,
    re.VERBOSE,
)


@pytest.hookimpl(tryfirst=True)  # before the slow ones are left out
def pytest_collection_modifyitems(items):
    """Mark the long ones."""
    for item in items:
        if LONG.search(item.nodeid.replace(" ", "")):
            item.add_marker(pytest.mark.slow)
