"""Pictures, in the manner of scikit-learn's displays: draws, training, and weights. They need matplotlib."""

__all__ = ["SamplerDisplay", "TrainingDisplay", "EvidenceDisplay", "CalibrationDisplay"]

from ._calibration import CalibrationDisplay
from ._evidence import EvidenceDisplay
from ._sampler import SamplerDisplay
from ._training import TrainingDisplay
