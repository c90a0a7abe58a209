"""The teacher of a student: as it was given, or fitted on the way, within a share of the student's limits."""

__all__ = ["FEWEST_WITH_TEACHER", "ForStudent", "few_evals", "fitted_teacher", "one_of_several", "unwrapped"]

from dataclasses import dataclass

import numpy as np
from sklearn.base import clone

from .._support.devices import randint, to_numpy
from .._support.forks import seed_of
from .._support.warnings import muted
from ..explore.few_evaluations import Adaptive
from ..explore.specifications import Pilot
from ..explore.store import Explored
from ..train.budget import FEWEST_EVALS, Budget
from ..train.objectives.specifications import PathLoss
from ..train.specifications import Training
from .diffusion import DiffusionSampler
from .explored import has_own_draws

FEWEST_WITH_TEACHER = 500  # evaluations, for a teacher that is fitted on the way and the student
TEACHER_SHARE = 0.6  # of the limits, for a teacher that is fitted on the way
TEACHER_TOL = 0.2  # of one without parameters of its own: its student does not gain by a better one
FRUGAL_TEACHER_SHARE = 0.85  # of the evaluations, where they are so few that none is forgotten: it explores
FRUGAL_JUDGED = 1000  # paths of such a teacher, each of two evaluations or more, which its student can use better
FRUGAL_JUDGEMENT_SHARE = 0.5  # of those left then
MOST_RESERVED = 1.1  # of the draws of the judgement


@dataclass
class ForStudent:
    """What a student that fits its teacher on the way tells it, and hears from it.

    Attributes
    ----------
    own_draws : bool
        Whether evaluations are left for draws of the student.
    explored : Explored or None
        What the teacher's exploration found.
    """

    own_draws: bool = False
    explored: Explored | None = None


def few_evals(student, budget: Budget) -> bool:
    """Whether a student's evaluations are so few that those of its teacher are kept."""
    start = student._specified("start")
    by = start.adaptive if isinstance(start, Pilot) else Adaptive()
    return budget.max_energy_evals is not None and budget.max_energy_evals <= by.max_evals


def leaves_own_draws(student, energy, budget: Budget) -> bool:
    """Whether few evaluations are better spent on draws of the student than on its teacher."""
    many = energy.n_features > student._specified("objective").likelihood.many_features
    return many and has_own_draws(student) and energy.has_gradient and few_evals(student, budget)


def fitted_teacher(student, run):
    """The teacher, fitted here unless it comes so; the run notes it, and what fitting it spent."""
    energy, budget, teacher = run.energy, run.budget, unwrapped(student.teacher)
    if hasattr(teacher, "_model"):
        run.fitted["teacher_"] = teacher
        return teacher
    seed = int(randint(run.generator, 0, 2**31 - 1))
    if teacher is not None:
        teacher = clone(teacher)
    else:
        training = Training(n_judged=FRUGAL_JUDGED) if few_evals(student, budget) else Training()
        loss = PathLoss(tol=TEACHER_TOL, training=training)
        teacher = DiffusionSampler(loss=loss, max_iter=max(1, student.max_iter // 2))
    if teacher.random_state is None:
        teacher.random_state = seed
    teacher.set_params(**_parameters(student, teacher, energy, budget))
    path = budget.checkpoint.path
    vars(teacher)["_for_student"] = wanted = ForStudent(leaves_own_draws(student, energy, budget))
    with muted("interruption", "convergence", *([RuntimeWarning] if energy.n_invalid else [])):  # warned of here
        teacher.fit(
            energy.energy_fn, grad_fn=energy.grad_fn, checkpoint=path and path.with_name(path.name + ".teacher"),
            evaluations=energy.known and energy.known.given,
        )  # fmt: skip
    vars(teacher).pop("_for_student", None)
    run.explored = wanted.explored
    energy.n_invalid += vars(teacher)["_energy"].n_invalid
    budget.interrupted |= teacher.interrupted_
    if budget.max_energy_evals is not None:
        budget.max_energy_evals = max(1, budget.max_energy_evals - teacher.n_energy_evals_)
        share = FRUGAL_JUDGEMENT_SHARE if few_evals(student, budget) else budget.training.judgement_share
        budget.evals_reserve = min(share * budget.max_energy_evals, MOST_RESERVED * budget.training.n_judged)
    run.fitted |= {
        "teacher_": teacher,
        "n_energy_evals_before": teacher.n_energy_evals_,
        "n_grad_evals_before": teacher.n_grad_evals_,
        "n_network_evals_before": teacher.n_network_evals_,
    }
    return teacher


def _parameters(student, teacher, energy, budget: Budget) -> dict:
    """Parameters of a teacher that is fitted here: the student's density and start, and shares of its limits."""
    limits = {"n_features": energy.n_features, "verbose": max(student.verbose, teacher.verbose)}
    limits |= {"bounds": energy.bounds and energy.bounds.to_array(), "periodic": None}
    if energy.bounds is not None and energy.bounds.periodic.any():
        limits["periodic"] = to_numpy(energy.bounds.periodic).nonzero()[0].tolist()
    if teacher.device == "auto":
        limits["device"] = student.device
    if student.start is not None:
        limits["start"] = _start_of(teacher, student._specified("start"))
    if student.max_time is not None:
        left = student.max_time - budget.elapsed()
        limits["max_time"] = min(teacher.max_time or np.inf, max(TEACHER_SHARE * left, 1e-3))
    if budget.max_energy_evals is not None:
        explores = few_evals(student, budget) and not leaves_own_draws(student, energy, budget)
        share = FRUGAL_TEACHER_SHARE if explores else TEACHER_SHARE
        evals = int(share * (budget.max_energy_evals - energy.n_energy_evals))
        limits["max_energy_evals"] = min(teacher.max_energy_evals or np.inf, max(evals, FEWEST_EVALS))
    return limits


def _start_of(teacher, given):
    """Start of a teacher that is fitted here: its own, with the beginning of the student's where it has none."""
    own = teacher._specified("start")
    if teacher.start is None:
        return given
    if isinstance(own, Pilot) and own.begin is None and isinstance(given, Pilot):
        return own.set_params(begin=given.begin)
    return own


def one_of_several(teacher, k: int):
    """The teacher of fit k of several: of an unfitted one a clone, with another seed for every fit."""
    if not isinstance(teacher, DiffusionSampler) or hasattr(teacher, "_model"):
        return teacher
    found = clone(teacher)
    if found.random_state is not None:
        sequence = np.random.SeedSequence([seed_of(found.random_state), k])
        found.random_state = int(sequence.generate_state(1)[0])
    return found


def unwrapped(teacher):
    """The teacher inside a FrozenEstimator, or the teacher."""
    return getattr(teacher, "estimator", teacher)
