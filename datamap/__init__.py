"""What is in a dataset, by how a model learns it. The names below are imported from here; each loads on first use."""

_ROOMS = {
    "CartographyCallback": "cartography.recorder",
    "CartographyTrainer": "training.trainer",
    "Split": "core.splits",
    "Task": "tasks.base",
    "UserError": "core.errors",
    "apply_filters": "analysis.filter_config",
    "categorize_examples": "cartography.categories",
    "category_thresholds": "cartography.categories",
    "compute_metrics": "cartography.metrics",
    "flag_errors": "analysis.error_rules",
    "generate_hash_ids": "core.splits",
    "get_examples_by_category": "cartography.categories",
    "get_task": "tasks.registry",
    "load_cartography_metrics": "cartography.metrics",
    "load_map": "cartography.maps",
    "load_split": "core.splits",
    "map_thresholds": "cartography.maps",
    "plot_data_map": "cartography.maps",
    "select": "selection.selectors",
    "write_cartography": "cartography.maps",
}
__all__ = sorted(_ROOMS)


def __getattr__(name: str):
    import importlib

    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
