"""What the tests of the estimators share: small fits of every kind, each made once."""

import functools
import warnings

from skcds import ConsistentSamplerDistiller, ConsistentSamplerScratch, DiffusionSampler

KINDS = ["DiffusionSampler", "ConsistentSamplerDistiller", "ConsistentSamplerScratch"]
ONE_STEP = KINDS[1:]
D = 3
LOG_Z = 0.5 * D * 1.8378770664093453  # of `quadratic`


def quadratic(x):
    """Energy of N(1, I) without its normaliser; importable, so that pickles carry it."""
    return 0.5 * ((x - 1.0) ** 2).sum(1)


# the start, as wide as two standard deviations of `quadratic`, spares a fit half of its time
SMALL = {"start": (0.0, 2.0), "n_steps": 8, "n_particles": 500, "hidden_features": 32, "n_layers": 2, "batch_size": 256}
SMALL_MAP = {"n_transforms": 2, "batch_size": 128}


def make(kind, **params):
    """An unfitted sampler of one kind with small limits; n_features=D unless said otherwise."""
    params = {"n_features": D, "random_state": 0, "max_iter": 20, **params}
    if kind == "DiffusionSampler":
        return DiffusionSampler(**{**SMALL, **params})
    if kind == "ConsistentSamplerScratch":
        return ConsistentSamplerScratch(**{**SMALL, "n_transforms": 2, "map_batch_size": 128, **params})
    teacher = {name: params.pop(name) for name in ("n_features", "langevin", "start") if name in params}
    teacher = DiffusionSampler(**{**SMALL, **teacher}, max_iter=20, random_state=0)
    return ConsistentSamplerDistiller(teacher, **{**SMALL_MAP, **params})


@functools.cache
def fitted(kind, network=None):
    """A small fit to `quadratic`; do not change it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(kind, **({"network": network} if network else {})).fit(quadratic)
