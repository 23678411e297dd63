"""Dataset filters."""

from datamap.analysis.filter_config import apply_filters

__all__ = ["apply_filters"]
