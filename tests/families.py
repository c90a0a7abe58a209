"""Families of densities in closed form, and small fits to them that the tests share."""

import functools
import math
import warnings

import numpy as np
import torch

from skcds import ConsistentSamplerDistiller, ConsistentSamplerScratch, Coupling

D, K = 3, 2
MIX = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, -0.5]], dtype=torch.float64)
SMALL = {"start": (0.0, 2.0), "max_iter": 60, "random_state": 0, "network": Coupling(n_transforms=2)}
KINDS = {"scratch": ConsistentSamplerScratch, "distiller": ConsistentSamplerDistiller}


def gaussian(x, c):
    """Energy of N(c MIX, exp(c_0) I), without its normaliser; importable, so that pickles carry it."""
    return 0.5 * ((x - c @ MIX.to(x)) ** 2).sum(1) / torch.exp(c[:, 0])


def log_z(c):
    """Of `gaussian` at contexts (m, 2)."""
    return 0.5 * D * (math.log(2 * math.pi) + np.atleast_2d(c)[:, 0])


def exact(n, c, seed=0):
    """Draws (n, 3) of `gaussian` at one context, or one at each of n."""
    c = np.broadcast_to(np.atleast_2d(c), (n, K))
    noise = np.random.default_rng(seed).standard_normal((n, D))
    return c @ MIX.numpy() + np.exp(0.5 * c[:, :1]) * noise


def contexts(n, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (n, K))


def make(kind="scratch", **params):
    """An unfitted sampler; its start spares it the pilots."""
    few = {"start__n_particles": 3000}
    return KINDS[kind](n_features=D).set_params(**SMALL | few | params)


@functools.cache
def fitted(kind="scratch"):
    """A small fit to `gaussian`; do not change it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(kind).fit(gaussian, contexts=contexts(500))
