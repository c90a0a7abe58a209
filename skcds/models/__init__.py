"""Processes, networks and maps: all that has parameters."""
