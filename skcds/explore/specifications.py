"""Where the training of a control starts: from a pilot run, or from the prior."""

__all__ = ["Pilot", "Prior", "as_start"]

import numbers
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from sklearn.utils._param_validation import Interval

from ..io.plain import described
from ..io.registry import register_specification
from ..models.specifications import Specification, positive, share
from .few_evaluations import Adaptive
from .mode_stages import Balance, Climbs, LostModes
from .stages import Centring, FamilyTempering, HighDimension, Race, Tails, Tempering, Triangular

at_least_a_hundred = Interval(numbers.Integral, 100, None, closed="left")


@register_specification
@dataclass(frozen=True, repr=False, eq=False)
class Pilot(Specification):
    """Start from the particles of a pilot run: tempered sequential Monte Carlo, or adaptive importance sampling.

    Parameters
    ----------
    begin : array-like of shape (m, n_features) or tuple (location, scale), default=None
        Where to begin looking for the density: points of your own, or a location and a scale, each a number or an array
        of shape (n_features,). By default from Gaussians of scales 1 to 100 around the origin, and from the modes that
        climbs from there end at.
    n_particles : int, default=20000
        Particles; in more than 256 dimensions no more than hold 5e6 numbers, or 2000 if that is more.
    time_share, evals_share : float, default=0.4 and 0.6
        Of the limits of a fit. Unmeasured.
    climbs, race, tempering, tails, lost_modes, balance, centring, high_dimension, triangular : specification
        What each stage of the run goes by: `Climbs`, `Race`, `Tempering`, `Tails`, `LostModes`, `Balance`, `Centring`,
        `HighDimension` and `Triangular` of `skcds.specifications`.
    adaptive : Adaptive
        What takes their place where few evaluations are allowed.
    family : FamilyTempering
        What takes their place for a family of densities.

    Examples
    --------
    >>> from skcds import DiffusionSampler, Pilot
    >>> sampler = DiffusionSampler(start=Pilot(n_particles=5000))
    >>> sampler.set_params(start__n_particles=2000).start
    Pilot(n_particles=2000)
    >>> sampler.set_params(start__tempering__n_moves=20).start
    Pilot(n_particles=2000, tempering=Tempering(n_moves=20))
    """

    constraints: ClassVar[dict] = {
        "begin": "no_validation",
        "n_particles": [at_least_a_hundred],
        "time_share": [share],
        "evals_share": [share],
        "climbs": [Climbs],
        "race": [Race],
        "tempering": [Tempering],
        "tails": [Tails],
        "lost_modes": [LostModes],
        "balance": [Balance],
        "centring": [Centring],
        "high_dimension": [HighDimension],
        "triangular": [Triangular],
        "adaptive": [Adaptive],
        "family": [FamilyTempering],
    }

    begin: Any = None
    n_particles: int = 20_000
    time_share: float = 0.4
    evals_share: float = 0.6
    climbs: Climbs = Climbs()
    race: Race = Race()
    tempering: Tempering = Tempering()
    tails: Tails = Tails()
    lost_modes: LostModes = LostModes()
    balance: Balance = Balance()
    centring: Centring = Centring()
    high_dimension: HighDimension = HighDimension()
    triangular: Triangular = Triangular()
    adaptive: Adaptive = Adaptive()
    family: FamilyTempering = FamilyTempering()

    def __eq__(self, other):
        if type(other) is not type(self):
            return NotImplemented
        return all(described(getattr(self, f.name)) == described(getattr(other, f.name)) for f in fields(self))

    def __hash__(self):
        return hash((type(self), self.n_particles))


@register_specification
@dataclass(frozen=True, repr=False)
class Prior(Specification):
    """Start from the prior, and learn on the trajectories of the untrained sampler alone, as published.

    Separate modes are then found only by luck.

    Parameters
    ----------
    n_particles : int, default=20000
        Particles that are made of the ends of trajectories.
    length_scale : float, default=0.1
        Finest length scale that the target is assumed to have; its width is assumed to be about one. Unmeasured.
    """

    constraints: ClassVar[dict] = {"n_particles": [at_least_a_hundred], "length_scale": [positive]}

    n_particles: int = 20_000
    length_scale: float = 0.1


def as_start(value) -> Specification:
    """What a parameter `start` stands for: a name, points, or a location and a scale are short for a specification."""
    if isinstance(value, Specification):
        return value
    if value is None or isinstance(value, str):
        return {None: Pilot(), "pilot": Pilot(), "prior": Prior()}[value]
    return Pilot(value)
