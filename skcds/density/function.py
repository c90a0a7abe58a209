"""What users pass for a density: an energy function, and its gradient where it comes with one."""

__all__ = ["Density"]

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Density:
    """An energy function with its gradient, which stay together from the door on.

    Attributes
    ----------
    energy_fn : callable
        Maps points (n, n_features) to energies (n,).
    grad_fn : callable or None
        Maps points (n, n_features) to gradients (n, n_features).
    evaluations : tuple or None
        Points and energies that the user has evaluated before.
    """

    energy_fn: Callable
    grad_fn: Callable | None = None
    evaluations: Any = None

    @classmethod
    def of(cls, energy_fn, grad_fn=None) -> "Density | None":
        """From the arguments of a public method; None where it was given no energy."""
        if energy_fn is None or isinstance(energy_fn, cls):
            return energy_fn
        return cls(energy_fn, grad_fn)

    @property
    def about_contexts(self) -> dict:
        """Arguments of `fit` beside the functions."""
        return {} if self.evaluations is None else {"evaluations": self.evaluations}

    @classmethod
    def in_options(cls, options: dict) -> dict:
        """Options of `sample` with the density in place of its functions."""
        rest = {name: value for name, value in options.items() if name not in ("energy_fn", "grad_fn")}
        return rest | {"density": cls.of(options.get("energy_fn"), options.get("grad_fn"))}
