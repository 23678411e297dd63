"""What answers to pairs are worth: metrics, tables and pictures of a run, and a comparison with another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datamap.core.artifacts import artifact_file
from datamap.core.errors import UserError, name_a_few
from datamap.core.files import read_jsonl, write_csv, write_json
from datamap.core.tables import console_table
from datamap.thoughts.answers import RECORDS, check_same_texts
from datamap.thoughts.reader import LABELS, METHODS


def lengths_of(records: Sequence[Mapping[str, Any]]) -> tuple[list[int | None], str]:
    """The length of every answer and its unit: new tokens where they are known of all answers, else words."""
    known = all(record["new_tokens"] is not None for record in records if record["output"] is not None)
    lengths = [None if record["output"] is None else record["new_tokens"] if known else len(record["output"].split())
               for record in records]
    return lengths, "new tokens" if known else "words"


def metrics_of(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``metrics.pair_metrics``, and of generated answers how many were cut off and their mean length."""
    from datamap.thoughts.metrics import pair_metrics

    columns = ([record[name] for record in records] for name in ("true_label", "predicted_label", "method"))
    tokens = [record["new_tokens"] for record in records if record["new_tokens"] is not None]
    ends = [record["finished"] for record in records if record["finished"] is not None]
    return {
        **pair_metrics(*columns),
        "no_output": sum(record["output"] is None for record in records),
        "cut_off": ends.count(False) if ends else None,
        "new_tokens_mean": sum(tokens) / len(tokens) if tokens else None,
    }


def write_results(
    path: Path, records: Sequence[Mapping[str, Any]], metrics: Mapping[str, Any], title: str
) -> None:
    import pandas as pd

    from datamap.thoughts.metrics import confusion, length_table, write_confusion, write_lengths

    write_json(path / "metrics.json", metrics)
    gold, predicted = ([record[name] for record in records] for name in ("true_label", "predicted_label"))
    submission = pd.DataFrame({"id": [record["id"] for record in records], "prediction": predicted})
    write_csv(path / "submission.csv", submission.astype({"id": "string", "prediction": "Int64"}))
    if not metrics["n_labelled"]:
        return
    write_confusion(path, confusion(gold, predicted), title)
    lengths, unit = lengths_of(records)
    table = length_table(lengths, gold, predicted)
    if len(table):
        write_lengths(path, table, unit, metrics, title)


def read_other(source: str, pairs: Mapping[str, Mapping[str, Any]]) -> dict[str, int | None]:
    """What another run predicted for the labelled ones of these pairs, by id."""
    file = artifact_file(source, RECORDS, "evaluate_thoughts.py")
    rows = {row["id"]: row for row in read_jsonl(file, ("id", "true_label", "predicted_label"))}
    labels = {name: pair["label"] for name, pair in pairs.items() if pair["label"] is not None}
    if not labels:
        raise UserError("--compare needs true labels, and these pairs have none")
    check_same_texts(f"--compare {source}", rows, pairs)
    for name, row in rows.items():
        if row["true_label"] is not None and labels.get(name, row["true_label"]) != row["true_label"]:
            raise UserError(f"--compare {source}: the true label of {name!r} is {row['true_label']} there and "
                            f"{labels[name]} here; compare runs on the same pairs with the same --label_map")
    shared = {name: rows[name]["predicted_label"] for name in labels if name in rows}
    if not shared:
        raise UserError(f"--compare {source} has no labelled pairs in common with this run ({name_a_few(rows)} there, "
                        f"{name_a_few(labels)} here); compare runs on the same pairs")
    return shared


def compare(source: str, other: Mapping[str, int | None], records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    from datamap.thoughts.metrics import compare_runs

    gold = {name: record["true_label"] for name, record in records.items() if record["true_label"] is not None}
    right = [records[name]["predicted_label"] == gold[name] for name in other]
    other_right = [label == gold[name] for name, label in other.items()]
    return {"other": source, **compare_runs(right, other_right), "only_in_this": len(gold) - len(other)}


def in_words(found: Mapping[str, Any]) -> str:
    """A comparison in a sentence."""
    overlap = f" ({found['only_in_this']:,} others are not there)" * bool(found["only_in_this"])
    return (
        f"against {found['other']} on {found['n']:,} pairs{overlap}: accuracy {found['accuracy']:.3f} here, "
        f"{found['other_accuracy']:.3f} there, difference {found['difference']:+.3f} [{found['difference_low']:+.3f}, "
        f"{found['difference_high']:+.3f}]; right only here {found['only_this_right']:,}, only there "
        f"{found['only_other_right']:,}, exact McNemar p = {found['p_mcnemar']:.3g}: {found['verdict']}"
    )


def metrics_table(metrics: Mapping[str, Any]) -> str:
    """For the console."""
    import pandas as pd

    rows: list[tuple[str, Any, str]] = [
        ("pairs", metrics["n"], f"{metrics['n_labelled']:,} with a true label"),
    ]
    if metrics["n_labelled"]:
        f1 = ", ".join(f"label {label} " + ("-" if metrics[f"f1_{label}"] is None else f"{metrics[f'f1_{label}']:.3f}")
                       for label in LABELS)
        rows += [
            ("accuracy", metrics["accuracy"], f"95 % interval [{metrics['accuracy_low']:.3f}, "
             f"{metrics['accuracy_high']:.3f}]; no answer is wrong"),
            ("among answered", metrics["accuracy_parsed"], f"{metrics['n_labelled_parsed']:,} pairs"),
            ("majority baseline", metrics["majority_baseline"], "always the commoner label"),
            ("macro F1", metrics["f1_macro"], f1),
        ]
    counts = ", ".join(f"{method} {metrics[f'parsed_{method}']:,}" for method in METHODS)
    rows.append(("parse rate", metrics["parse_rate"], counts))
    table = pd.DataFrame(rows, columns=["metric", "value", "of"], dtype=object)
    return console_table(table, {"value": lambda value: format(value, ",d" if isinstance(value, int) else ".3f")})
