"""Energies from elsewhere: a density of another library as an energy that every sampler takes, gradient included.

======================  =========================================================  ============================
function                the density                                                needs
======================  =========================================================  ============================
`from_numpy`            a NumPy function, of a point or of a batch                 nothing
`from_prior`            a prior and a likelihood, as nested samplers take them     nothing
`from_jax`              a JAX function, of a point or of a batch                   ``pip install "skcds[jax]"``
`from_numpyro`          a NumPyro model and its data                               ``pip install "skcds[numpyro]"``
`from_pymc`             a PyMC model                                               ``pip install "skcds[pymc]"``
`from_stan`             a Stan program and its data, built by PyStan               ``pip install "skcds[stan]"``
======================  =========================================================  ============================

All return an `AdaptedEnergy`: a callable that maps points (n, n_features) to energies ``-log rho``, (n,), is
differentiated by autograd once, and carries `n_features` and `feature_names`. Those of a model are of its unconstrained
coordinates, the log Jacobian included, and those of a prior transform are of the unit cube; `constrain` maps draws to
the parameters by name. ``from_numpyro(...).family()`` and ``from_pymc(...).family()`` are a model's posteriors for all
data, a `ModelFamily`. Every library is imported when its function is called, not before.
"""

__all__ = [
    "AdaptedEnergy", "ModelEnergy", "ModelFamily", "from_jax", "from_numpy", "from_numpyro", "from_prior", "from_pymc",
    "from_stan",
]  # fmt: skip

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._common import AdaptedEnergy
    from ._family import ModelEnergy, ModelFamily
    from ._jax import from_jax
    from ._numpy import from_numpy
    from ._numpyro import from_numpyro
    from ._prior import from_prior
    from ._pymc import from_pymc
    from ._stan import from_stan

_MODULES = {
    "AdaptedEnergy": "_common",
    "ModelEnergy": "_family",
    "ModelFamily": "_family",
    "from_jax": "_jax",
    "from_numpy": "_numpy",
    "from_numpyro": "_numpyro",
    "from_prior": "_prior",
    "from_pymc": "_pymc",
    "from_stan": "_stan",
}


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
