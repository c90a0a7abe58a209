"""What is inside other specifications: what the stages of a pilot run, and a training, go by.

They are fields of `skcds.Pilot`, `skcds.PathLoss`, `skcds.Consistency` and `skcds.SelfConsistency`, which
``set_params`` reaches by their names: ``start__tempering__n_moves=20``.
"""

__all__ = [
    "Adaptive",
    "Balance",
    "Centring",
    "Climbs",
    "FamilyTempering",
    "FamilyTraining",
    "HighDimension",
    "Likelihood",
    "LostModes",
    "MapFit",
    "Marginals",
    "Mixture",
    "Nested",
    "Particles",
    "Race",
    "Stopping",
    "Survey",
    "Tails",
    "Tempering",
    "Training",
    "Triangular",
]

from .explore.few_evaluations import Adaptive, MapFit, Mixture, Nested, Survey
from .explore.mode_stages import Balance, Climbs, LostModes
from .explore.stages import Centring, FamilyTempering, HighDimension, Race, Tails, Tempering, Triangular
from .train.specifications import FamilyTraining, Likelihood, Marginals, Particles, Stopping, Training
