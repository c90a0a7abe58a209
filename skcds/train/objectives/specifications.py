"""Losses with the numbers that each has: what the parameters `loss` and `objective` take beside a string."""

__all__ = ["Consistency", "PathLoss", "SelfConsistency"]

from dataclasses import dataclass
from typing import ClassVar

from sklearn.utils._param_validation import StrOptions

from ...io.registry import register_specification
from ...models.specifications import Specification, at_least_one, at_least_two, not_negative, positive, share
from ..specifications import FamilyTraining, Likelihood, Training
from .path import PATH_LOSSES


@register_specification
@dataclass(frozen=True, repr=False)
class PathLoss(Specification):
    """Loss on simulated trajectories, which trains a control that starts from the prior, or that scores have taught.

    Parameters
    ----------
    kind : {"log_variance", "kl"}, default="log_variance"
        The variance of the log path weight, or minus its mean. The latter needs the energy's gradient and seeks modes;
        DDS and PIS were published with it.
    share : float, default=0.0
        Share of the iterations, the last ones, that go to this loss after a pilot; from the prior all do. On paths of
        its own a chain forgets tails that it reaches too seldom.
    batch_size : int, default=512
        Trajectories in a batch.
    tol : float, default=0.02
        Score matching ends early when the normalised ESS of the path weights exceeds ``1 - tol``.
    training : Training, default=Training()
        Moves of particles, steps back, the judgement, and what else every fit goes by; see `skcds.specifications`.
    family : FamilyTraining, default=FamilyTraining()
        The training on a family of densities.

    Examples
    --------
    >>> from skcds import DiffusionSampler, PathLoss
    >>> DiffusionSampler(loss=PathLoss("kl", share=0.2)).get_params()["loss__share"]
    0.2
    """

    constraints: ClassVar[dict] = {
        "kind": [StrOptions(set(PATH_LOSSES))],
        "share": [share],
        "batch_size": [at_least_two],
        "tol": [share],
        "training": [Training],
        "family": [FamilyTraining],
    }

    kind: str = "log_variance"
    share: float = 0.0
    batch_size: int = 512
    tol: float = 0.02
    training: Training = Training()
    family: FamilyTraining = FamilyTraining()


@register_specification
@dataclass(frozen=True, repr=False)
class Consistency(Specification):
    """Distillation: consistency on the teacher's trajectories (Algorithm 1 of [1]_), and calibration.

    Parameters
    ----------
    refine : bool, default=True
        Whether to calibrate the one-step density on exact weights: by likelihood for a coupling map, by the reverse
        Kullback-Leibler divergence for a residual one.
    weight : float, default=0.3
        Weight of the consistency loss beside the likelihood. Only 0 and 0.3 were measured: at equal time 0 has the
        larger ESS, and leaves the map without a meaning at other noise levels.
    bank_size : int, default=1024
        Trajectories of the teacher that are held in memory. Unmeasured.
    smallest_bank : int, default=32
        The same with few evaluations allowed. Unmeasured.
    bank_time : float, default=0.1
        Of the seconds left, for the first trajectories. Unmeasured.
    refresh_every, refresh_rows : int, default=80 and 256
        Iterations between simulations of new trajectories, and how many these are. Unmeasured.
    reading_share : float, default=0.2
        Of the evaluations left, for each of moves, trajectories, and new ones, where scores are read. Unmeasured.
    huber : float, default=0.03
        Of the pseudo-Huber distance, per square root of a dimension. Unmeasured; Song & Dhariwal (2024) have 0.00054.
    ema_decay : float, default=0.95
        Of the average of the map that gives the targets. Unmeasured.
    reverse_kl_share : float, default=0.4
        Of the iterations, for the calibration of a residual map. Unmeasured.
    likelihood : Likelihood, default=Likelihood()
        The calibration of a coupling map; see `skcds.specifications`.
    family : FamilyTraining, default=FamilyTraining()
        The training on a family of densities.
    training : Training, default=Training()
        Steps back, the judgement, and what else every fit goes by.

    References
    ----------
    .. [1] Jutras-Dubé, Pynadath & Zhang, "Single-Step Consistent Diffusion Samplers", arXiv:2502.07579.
    """

    constraints: ClassVar[dict] = {
        "refine": ["boolean"],
        "weight": [not_negative],
        "bank_size": [at_least_one],
        "smallest_bank": [at_least_one],
        "bank_time": [share],
        "refresh_every": [at_least_one],
        "refresh_rows": [at_least_one],
        "reading_share": [share],
        "huber": [positive],
        "ema_decay": [share],
        "reverse_kl_share": [share],
        "likelihood": [Likelihood],
        "family": [FamilyTraining],
        "training": [Training],
    }

    refine: bool = True
    weight: float = 0.3
    bank_size: int = 1024
    smallest_bank: int = 32
    bank_time: float = 0.1
    refresh_every: int = 80
    refresh_rows: int = 256
    reading_share: float = 0.2
    huber: float = 0.03
    ema_decay: float = 0.95
    reverse_kl_share: float = 0.4
    likelihood: Likelihood = Likelihood()
    family: FamilyTraining = FamilyTraining()
    training: Training = Training()


@register_specification
@dataclass(frozen=True, repr=False)
class SelfConsistency(Specification):
    """Sampling loss and self-consistency (Algorithm 2 of [1]_), and calibration.

    Parameters
    ----------
    schedule : {"separate", "joint"}, default="separate"
        Whether the sampling loss and the losses of the map take optimiser steps in turn, or are summed as in [1]_.
    refine : bool, default=True
        Whether to calibrate a coupling map by likelihood beside self-consistency.
    weight : float, default=0.3
        Weight of self-consistency beside the likelihood. Only 0 and 0.3 were measured.
    batch_size : int, default=None
        Particles in a batch of likelihood, and steps in one of self-consistency for a coupling map. By default 512, or
        1024 where the target's length scale is below a tenth of its width.
    path_batch_size : int, default=512
        Trajectories in a batch of the sampling loss, where training starts from the prior.
    map_steps, map_steps_from_prior : int, default=1 and 8
        Iterations of the losses of the map for each of the sampling loss, from a pilot and from the prior. Unmeasured.
    huber : float, default=0.03
        Of the pseudo-Huber distance, per square root of a dimension. Unmeasured; Song & Dhariwal (2024) have 0.00054.
    ema_decay : float, default=0.95
        Of the average of the map that gives the goals. Unmeasured.
    likelihood : Likelihood, default=Likelihood()
        The calibration of a coupling map; see `skcds.specifications`.
    family : FamilyTraining, default=FamilyTraining()
        The training on a family of densities.
    training : Training, default=Training()
        Moves of particles, steps back, the judgement, and what else every fit goes by.

    References
    ----------
    .. [1] Jutras-Dubé, Pynadath & Zhang, "Single-Step Consistent Diffusion Samplers", arXiv:2502.07579.
    """

    constraints: ClassVar[dict] = {
        "schedule": [StrOptions({"separate", "joint"})],
        "refine": ["boolean"],
        "weight": [not_negative],
        "batch_size": [at_least_one, None],
        "path_batch_size": [at_least_two],
        "map_steps": [at_least_one],
        "map_steps_from_prior": [at_least_one],
        "huber": [positive],
        "ema_decay": [share],
        "likelihood": [Likelihood],
        "family": [FamilyTraining],
        "training": [Training],
    }

    schedule: str = "separate"
    refine: bool = True
    weight: float = 0.3
    batch_size: int | None = None
    path_batch_size: int = 512
    map_steps: int = 1
    map_steps_from_prior: int = 8
    huber: float = 0.03
    ema_decay: float = 0.95
    likelihood: Likelihood = Likelihood()
    family: FamilyTraining = FamilyTraining()
    training: Training = Training()
