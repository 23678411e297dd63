"""Dataset cartography."""

from datamap.cartography.categories import categorize_examples, category_thresholds, get_examples_by_category
from datamap.cartography.maps import load_map, plot_data_map
from datamap.cartography.metrics import load_cartography_metrics

__all__ = [
    "categorize_examples",
    "category_thresholds",
    "get_examples_by_category",
    "load_cartography_metrics",
    "load_map",
    "plot_data_map",
]
