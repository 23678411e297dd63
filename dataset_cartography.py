"""Dataset cartography."""

from datamap.cartography.metrics import (
    categorize_examples,
    category_thresholds,
    get_examples_by_category,
    load_cartography_metrics,
    plot_data_map,
)

__all__ = [
    "categorize_examples",
    "category_thresholds",
    "get_examples_by_category",
    "load_cartography_metrics",
    "plot_data_map",
]
