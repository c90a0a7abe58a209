"""What the tests of the estimators share: small fits of every kind, each made once."""

import functools
import warnings

from skcds import (
    Consistency,
    ConsistentSamplerDistiller,
    ConsistentSamplerScratch,
    Control,
    Coupling,
    DiffusionSampler,
    PathLoss,
    Pilot,
    Prior,
    Residual,
    SelfConsistency,
)  # fmt: skip
from skcds.specifications import Adaptive, Climbs, MapFit, Mixture, Race, Tempering, Training

KINDS = ["DiffusionSampler", "ConsistentSamplerDistiller", "ConsistentSamplerScratch"]
ONE_STEP = KINDS[1:]
D = 3
LOG_Z = 0.5 * D * 1.8378770664093453  # of `quadratic`


def quadratic(x):
    """Energy of N(1, I) without its normaliser; importable, so that pickles carry it."""
    return 0.5 * ((x - 1.0) ** 2).sum(1)


# Explorations of few evaluations, with small mixtures and short maps, on which most of their time is spent.
SHORT = Adaptive(rounds=6, map=MapFit(n_iter=10), mixture=Mixture(max_fitted=500, max_components=10))
FEW = Climbs(n_before=4, n_after=4, n_further=0)
# The start, as wide as two standard deviations of `quadratic`, spares a fit most of its pilot.
START = Pilot(
    (0.0, 2.0), n_particles=500, adaptive=SHORT, race=Race(inflations=(1.0,), n_modes=0, n_particles=300),
    tempering=Tempering(n_moves=3), climbs=FEW,
)  # fmt: skip
JUDGED = Training(n_judged=2000)
SMALL = {"start": START, "n_steps": 8, "batch_size": 256}
SMALL_CONTROL, SMALL_MAP = Control(hidden_features=32, n_layers=2), Coupling(n_transforms=2)
SMALL_RESIDUAL = Residual(hidden_features=32, n_layers=2)


def make(kind, **params):
    """An unfitted sampler of one kind with small limits; n_features=D unless said otherwise."""
    common = {"random_state": 0, "max_iter": 20}
    if kind == "DiffusionSampler":
        sampler = DiffusionSampler(D, **SMALL, **common, network=SMALL_CONTROL, loss=PathLoss(training=JUDGED))
    elif kind == "ConsistentSamplerScratch":
        objective = SelfConsistency(batch_size=128, training=JUDGED)
        sampler = ConsistentSamplerScratch(
            D, **SMALL, **common, network=SMALL_MAP, control=SMALL_CONTROL, objective=objective
        )
    else:
        teacher = DiffusionSampler(D, **SMALL, **common, network=SMALL_CONTROL, loss=PathLoss(training=JUDGED))
        objective = Consistency(training=JUDGED)
        sampler = ConsistentSamplerDistiller(teacher, **common, network=SMALL_MAP, batch_size=128, objective=objective)
        of_teacher = {name: params.pop(name) for name in ("n_features", "start") if name in params}
        teacher.set_params(**_with_few_particles(of_teacher))
    params = _with_few_particles(params)
    if params.get("network") == "residual":
        params["network"] = SMALL_RESIDUAL
    return sampler.set_params(**params)


def _with_few_particles(params):
    start = params.get("start", "as it is")
    if isinstance(start, str | Pilot | Prior):
        return params
    return params | {"start": Pilot(start, n_particles=500, adaptive=SHORT, race=Race(n_particles=300), climbs=FEW)}


@functools.cache
def fitted(kind, network=None):
    """A small fit to `quadratic`; do not change it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(kind, **({"network": network} if network else {})).fit(quadratic)
