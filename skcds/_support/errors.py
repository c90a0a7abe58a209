"""Exceptions that several modules raise or catch."""

__all__ = ["InvalidEnergyError", "Spent"]


class InvalidEnergyError(ValueError):
    """The energy function returned values that cannot be those of a density."""


class Spent(Exception):
    """No more evaluations are allowed in this part of the fit; whoever asked for them ends with what there is."""
