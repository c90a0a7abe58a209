"""One-step samplers of unnormalised densities, with scikit-learn manners."""

__all__ = [
    "Calibration",
    "CalibrationDisplay",
    "Consistency",
    "ConsistentSamplerDistiller",
    "ConsistentSamplerScratch",
    "Control",
    "Coupling",
    "Diagnosis",
    "DiffusionSampler",
    "EvidenceCurve",
    "EvidenceDisplay",
    "ModelFileError",
    "PathLoss",
    "Pilot",
    "PolishedSample",
    "Prior",
    "Residual",
    "SamplerDisplay",
    "SelfConsistency",
    "TrainingDisplay",
    "WeightedSample",
    "adapters",
    "load",
    "metrics",
    "specifications",
    "targets",
    "tempered",
]

from . import adapters, metrics, specifications, targets
from ._version import __version__ as __version__
from .density.tempered import tempered
from .estimators.diffusion import DiffusionSampler
from .estimators.distiller import ConsistentSamplerDistiller
from .estimators.scratch import ConsistentSamplerScratch
from .explore.specifications import Pilot, Prior
from .io import ModelFileError, load
from .models.specifications import Control, Coupling, Residual
from .plotting import CalibrationDisplay, EvidenceDisplay, SamplerDisplay, TrainingDisplay
from .train.objectives.specifications import Consistency, PathLoss, SelfConsistency
from .weights.calibration import Calibration
from .weights.diagnosis import Diagnosis
from .weights.evidence_curve import EvidenceCurve
from .weights.polish import PolishedSample
from .weights.sample import WeightedSample
