"""One-step samplers of unnormalised densities, with scikit-learn manners."""

__all__ = ["ConsistentSamplerDistiller", "DiffusionSampler", "WeightedSample", "targets"]
__version__ = "0.1.0.dev0"

from . import targets
from ._diffusion import DiffusionSampler
from ._distiller import ConsistentSamplerDistiller
from .importance import WeightedSample
