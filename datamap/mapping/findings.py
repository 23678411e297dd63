"""What a finished map found, in a few lines: map_dataset.py ends with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from datamap.core.artifacts import artifact_file
from datamap.core.files import read_json_like, read_table

SHOWN = {"gold": 40, "reasons": 80}  # characters of the most suspicious example


def findings(have: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(name, text) of what each stage found, of those that there are."""
    from datamap.cartography.categories import counted
    from datamap.cartography.maps import load_map

    if "model" in have:
        for file in sorted(Path(have["model"]).glob("eval_metrics*.json")):  # several where there are several splits
            split = file.stem.removeprefix("eval_metrics").replace("_", " ", 1)
            yield f"evaluation{split}", quality(_metrics(file))
    frame, cuts = load_map(have["cartography"])
    yield "data map", f"{len(frame):,} examples: {counted(frame, cuts)}"
    if "stability" in frame and frame["stability"].notna().any():
        yield "stability", (f"two of {frame['n_runs'].max()} runs put {frame['stability'].mean():.0%} of the examples "
                            "into the same category")
    if "clusters" in have:
        maker = "cluster_analysis.py"
        found = read_json_like(artifact_file(have["clusters"], "cluster_metadata.json", maker),
                               {"num_clusters": int, "noise_fraction": float}, maker)
        yield "clusters", f"{found['num_clusters']}, and {found['noise_fraction']:.1%} of the examples in none"
    if "unified" in have:
        maker = "analyze_dataset.py --export_unified"
        file = artifact_file(have["unified"], "overlap_summary.json", maker)
        if "dataset_errors" in read_json_like(file, dict, maker):
            found = read_json_like(file, {"dataset_errors": {"n": int}, "total_examples": int}, maker)
            yield "error rules", f"{found['dataset_errors']['n']:,} of {found['total_examples']:,} break 3 or more"
    if "suspects" in have:
        table = read_table(Path(have["suspects"]) / "suspects.csv", text=("gold", "reasons"))
        if len(table):
            first = table.iloc[0]
            gold, reason = (shortened(str(first[column]), length) for column, length in SHOWN.items())
            yield "most suspicious", f"{first['id']}, suspicion {first['suspicion']:.2f}: {gold!r}: {reason}"


def _metrics(file: Path) -> dict[str, float]:
    maker = "run.py --do_eval"
    return read_json_like(artifact_file(file, file.name, maker), {...: int | float | None}, maker)


def shortened(text: str, length: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length - 3]}..."


def quality(metrics: Mapping[str, float]) -> str:
    if "eval_exact_match" in metrics:
        return f"exact match {metrics['eval_exact_match']:.1f}, F1 {metrics['eval_f1']:.1f}"
    baseline = f"majority baseline {metrics['eval_majority_baseline']:.1%}"
    return f"accuracy {metrics['eval_accuracy']:.1%} ({baseline}), macro F1 {metrics['eval_f1']:.3f}"
