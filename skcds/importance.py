"""Importance weights: the public names of `skcds.weights.importance`."""

__all__ = [
    "RejectionLimit",
    "WeightedSample",
    "effective_sample_size",
    "log_evidence",
    "log_mean_exp",
    "pareto_k",
    "pareto_k_limit",
    "rejection_limit",
    "systematic_resample",
    "total_variation",
    "truncate_log_weights",
]

from .weights.importance import (
    effective_sample_size,
    log_evidence,
    log_mean_exp,
    pareto_k,
    pareto_k_limit,
    systematic_resample,
    total_variation,
    truncate_log_weights,
)
from .weights.rejection import RejectionLimit, rejection_limit
from .weights.sample import WeightedSample
