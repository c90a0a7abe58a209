"""All powers of a density as a family: the context is the inverse temperature."""

__all__ = ["TemperedEnergy", "tempered"]

from collections.abc import Callable


class TemperedEnergy:
    """``energy(x, c) = c energy_fn(x)``; see `tempered`."""

    context_names = ("inverse temperature",)

    def __init__(self, energy_fn: Callable, grad_fn: Callable | None = None):
        self.energy_fn, self.grad_fn = energy_fn, grad_fn
        for name in ("n_features", "feature_names"):
            if hasattr(energy_fn, name):
                setattr(self, name, getattr(energy_fn, name))

    def __call__(self, x, c):
        """Points (n, d) and inverse temperatures (n, 1) to energies (n,)."""
        return c[:, 0] * self.energy_fn(x)

    def gradient(self, x, c):
        """Points (n, d) and inverse temperatures (n, 1) to gradients (n, d), where `grad_fn` is known."""
        if self.grad_fn is None:
            raise ValueError("The gradient is not known: pass grad_fn= to skcds.tempered.")
        return c * self.grad_fn(x)


def tempered(energy_fn, grad_fn=None):
    """The family ``rho^c`` of a density rho: one sampler for all temperatures, with log Z at each.

    Parameters
    ----------
    energy_fn : callable
        Maps points (n, n_features) to energies (n,), ``-log rho``.
    grad_fn : callable, optional
        Maps points (n, n_features) to gradients (n, n_features).

    Returns
    -------
    TemperedEnergy
        To be passed to `fit` with ``contexts=`` that are inverse temperatures (n, 1), positive ones. Its method
        ``gradient`` is what ``grad_fn=`` of `fit` takes.

    Raises
    ------
    TypeError
        When `energy_fn` is not callable.

    Examples
    --------
    >>> import numpy as np
    >>> import skcds
    >>> family = skcds.tempered(lambda x: 0.5 * (x**2).sum(1))
    >>> family(np.ones((2, 3)), np.array([[1.0], [2.0]]))
    array([1.5, 3. ])
    """
    if not callable(energy_fn):
        raise TypeError(f"energy_fn has to be a function of points (n, n_features); got {type(energy_fn).__name__}.")
    return TemperedEnergy(energy_fn, grad_fn)
