"""One-step samplers of unnormalised densities, with scikit-learn manners."""

__all__ = [
    "ConsistentSamplerDistiller",
    "ConsistentSamplerScratch",
    "Diagnosis",
    "DiffusionSampler",
    "EvidenceDisplay",
    "ModelFileError",
    "PolishedSample",
    "SamplerDisplay",
    "TrainingDisplay",
    "WeightedSample",
    "adapters",
    "load",
    "metrics",
    "targets",
]

from . import adapters, metrics, targets
from ._diffusion import DiffusionSampler
from ._distiller import ConsistentSamplerDistiller
from ._scratch import ConsistentSamplerScratch
from ._version import __version__ as __version__
from .diagnosis import Diagnosis
from .importance import WeightedSample
from .io import ModelFileError, load
from .plotting import EvidenceDisplay, SamplerDisplay, TrainingDisplay
from .polish import PolishedSample
