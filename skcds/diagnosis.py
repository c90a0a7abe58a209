"""Whether the draws of a sampler can be relied on: the public names of `skcds.weights.diagnosis`."""

__all__ = ["Check", "Diagnosis"]

from .weights.diagnosis import Check, Diagnosis
