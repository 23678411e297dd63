"""Pictures of a suite: differences with their intervals, metrics against training-set size, learning curves."""
from __future__ import annotations


def write_plots(*a): pass
