"""What leaves the process and comes back: saved samplers, pickles, checkpoints' files, data frames.

Models and samplers register themselves, and samplers declare their fitted attributes; nothing here knows their classes.
"""

__all__ = ["ModelFileError", "load", "save"]

from .reader import ModelFileError, load
from .writer import save
