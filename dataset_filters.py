"""Dataset filters."""

from datamap.analysis.filters import apply_filters

__all__ = ["apply_filters"]
