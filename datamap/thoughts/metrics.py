"""How well predicted labels of pairs, each 0, 1 or no answer, agree with the true ones: numbers, tables, pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.core.artifacts import artifact_file
from datamap.core.clusters import NO_CLUSTERS, Clusters
from datamap.core.errors import UserError, name_a_few
from datamap.core.files import read_jsonl, write_csv, write_json
from datamap.core.intervals import ALPHA, compare_right, wilson_interval
from datamap.core.plots import COLORS, GREY, LIGHT_GREY, new_figure, save_figure
from datamap.core.tables import console_table
from datamap.tasks.evaluation import plot_confusion
from datamap.thoughts.answers import RECORDS, check_same_texts
from datamap.thoughts.reader import LABELS, METHODS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

NO_ANSWER = "no answer"
NO_DIFFERENCE, UNDERPOWERED = "no detectable difference", "underpowered"
LABEL_NAMES = {0: "does not follow", 1: "follows"}
MARGIN = 0.01  # of accuracy: a difference that matters, as suites take it
MAX_BINS, MIN_IN_BIN = 8, 10  # of the table by length


# --- numbers -----------------------------------------------------------------------------------------------------


def pair_metrics(
    gold: Sequence[int | None], predicted: Sequence[int | None], methods: Sequence[str]
) -> dict[str, Any]:
    """The metrics of a set of pairs, flat; shares lie in 0..1, higher is better.

    gold, predicted: 0, 1 or None for no label and no answer. methods: how each answer was read (``Parsed.method``).

    ``n`` pairs, ``n_labelled`` of them with a true label. ``accuracy`` takes no answer for wrong, ``accuracy_low`` and
    ``accuracy_high`` are its 95 % Wilson interval; ``accuracy_parsed`` is that among the ``n_labelled_parsed``
    labelled pairs with an answer. ``parse_rate`` is the share of all pairs with an answer, ``parsed_<method>`` counts
    pairs and ``parse_rate_<method>`` their shares. ``majority_baseline``: the accuracy of always giving the commoner
    label.

    ``precision_<label>``, ``recall_<label>``, ``f1_<label>``, ``support_<label>`` are of one label; no answer counts
    against the recall of the true label and for no precision. The ``_macro`` ones are unweighted means over the labels
    that occur, as true or as predicted ones; a label that is never predicted has precision 0, one that is never true
    recall 0. What cannot be told is None: without labelled pairs everything about them, without answers
    ``accuracy_parsed``, and all of a label that does not occur.

    Raises ValueError for unequal lengths and for values outside these.
    """
    if not len(gold) == len(predicted) == len(methods):
        raise ValueError(f"got {len(gold)} true labels, {len(predicted)} predictions and {len(methods)} methods")
    if strange := {*gold, *predicted} - {*LABELS, None} | set(methods) - {*METHODS}:
        raise ValueError(f"neither labels nor methods: {strange}")
    n, counts = len(gold), confusion(gold, predicted)
    total, parsed, right = int(counts.sum()), int(counts[:, :-1].sum()), int(counts.trace())
    low, high = wilson_interval(right, total) if total else (None, None)
    metrics: dict[str, Any] = {
        "n": n,
        "n_labelled": total,
        "n_labelled_parsed": parsed,
        "accuracy": _share(right, total),
        "accuracy_low": low,
        "accuracy_high": high,
        "accuracy_parsed": _share(right, parsed),
        "parse_rate": _share(sum(answer is not None for answer in predicted), n),
        **{f"parsed_{method}": methods.count(method) for method in METHODS},
        **{f"parse_rate_{method}": _share(methods.count(method), n) for method in METHODS},
        "majority_baseline": _share(int(counts.sum(axis=1).max()), total),
    }
    both, true, answered = counts.diagonal(), counts.sum(axis=1), counts[:, :-1].sum(axis=0)
    occurs = true + answered > 0
    scores = {"precision": both / np.maximum(answered, 1), "recall": both / np.maximum(true, 1),
              "f1": 2 * both / np.maximum(true + answered, 1)}
    for name, score in scores.items():
        metrics[f"{name}_macro"] = float(score[occurs].mean()) if occurs.any() else None
    for label in LABELS:
        for name, score in scores.items():
            metrics[f"{name}_{label}"] = float(score[label]) if occurs[label] else None
        metrics[f"support_{label}"] = int(true[label])
    return metrics


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


# --- two runs ----------------------------------------------------------------------------------------------------


def compare_runs(
    right: Sequence[bool], other_right: Sequence[bool], texts: Sequence[str] | None = None
) -> dict[str, Any]:
    """Whether two runs on the same pairs differ in accuracy; (N,) each, the same order, no answer is not right.

    ``n``, ``accuracy``, ``other_accuracy``, ``both_right``, ``both_wrong``, ``only_this_right``, ``only_other_right``;
    ``difference`` = accuracy - other_accuracy, above 0 where this run is better, with ``difference_low`` and
    ``difference_high``; ``p`` and ``p_equivalence``, as ``compare_right`` has them; ``clusters``. ``texts``: pairs
    of one go together; None: each by itself. ``verdict``: "better" or "worse" at p <= 0.05; else "no detectable
    difference" where a difference of MARGIN is ruled out (p_equivalence <= 0.05), and "underpowered" where it is not:
    the pairs are too few to tell. Raises ValueError for unequal lengths and for none.
    """
    if len(right) != len(other_right) or not len(right):
        raise ValueError(f"expected two answers to every pair, got {len(right)} and {len(other_right)}")
    this, other = np.asarray(right, dtype=bool), np.asarray(other_right, dtype=bool)
    clusters = None if texts is None else Clusters(texts)
    found = compare_right(this, other, MARGIN, clusters)
    return {
        "n": len(this),
        "clusters": None if clusters is None else clusters.count,
        "accuracy": float(this.mean()),
        "other_accuracy": float(other.mean()),
        "both_right": int((this & other).sum()),
        "both_wrong": int((~this & ~other).sum()),
        "only_this_right": found["only_first"],
        "only_other_right": found["only_second"],
        "difference": found["difference"],
        "difference_low": found["low"],
        "difference_high": found["high"],
        "p": found["p"],
        "p_equivalence": found["p_equivalence"],
        "verdict": ("better" if found["difference"] > 0 else "worse") if found["p"] <= ALPHA
        else NO_DIFFERENCE if found["p_equivalence"] <= ALPHA else UNDERPOWERED,
    }


# --- tables ------------------------------------------------------------------------------------------------------


def length_table(
    lengths: Sequence[int | None], gold: Sequence[int | None], predicted: Sequence[int | None]
) -> pd.DataFrame:
    """Accuracy by length of the answer, in groups of about equal size, at most 8, from 10 pairs on where possible.

    One row per group: ``shortest, longest, mean_length, n, accuracy, low, high`` (95 % Wilson interval),
    ``parse_rate``; pairs without a true label or a length are left out, no answer is wrong. Equal lengths stay
    together.
    """
    import pandas as pd

    known = [(size, true == answer, answer is not None)
             for size, true, answer in zip(lengths, gold, predicted, strict=True)
             if size is not None and true is not None]
    pairs = pd.DataFrame(known, columns=["length", "right", "answered"])
    bins = int(np.clip(len(pairs) // MIN_IN_BIN, 1, MAX_BINS))
    edges: Any = np.unique(np.quantile(pairs["length"], np.linspace(0, 1, bins + 1)[1:-1])) if known else []
    table = pairs.groupby(np.searchsorted(edges, pairs["length"])).agg(
        shortest=("length", "min"), longest=("length", "max"), mean_length=("length", "mean"), n=("length", "size"),
        accuracy=("right", "mean"), right=("right", "sum"), parse_rate=("answered", "mean"),
    )
    for place, ends in enumerate(zip(("low", "high"), wilson_interval(table.pop("right"), table["n"]), strict=True)):
        table.insert(5 + place, *ends)
    return table.reset_index(drop=True)


def confusion(gold: Sequence[int | None], predicted: Sequence[int | None]) -> np.ndarray:
    """(2, 3) counts: rows the true labels 0 and 1, columns the predictions 0, 1 and no answer."""
    counts = np.zeros((len(LABELS), len(LABELS) + 1), dtype=np.int64)
    for true, answer in zip(gold, predicted, strict=True):
        if true is not None:
            counts[true, len(LABELS) if answer is None else answer] += 1
    return counts


# --- files -------------------------------------------------------------------------------------------------------


def write_confusion(directory: Path, counts: np.ndarray, title: str) -> None:
    """``confusion_matrix.csv`` (label, predicted_label, n) and its picture; colour is the share of the row."""
    import pandas as pd

    names = [*map(str, LABELS), NO_ANSWER]
    rows = [(label, name, int(counts[label, column])) for label in LABELS for column, name in enumerate(names)]
    write_csv(directory / "confusion_matrix.csv", pd.DataFrame(rows, columns=["label", "predicted_label", "n"]))
    shown = [f"{label} {LABEL_NAMES[label]}" for label in LABELS]
    caption = f"{title}; no answer counts as wrong"
    plot_confusion(directory / "confusion_matrix.png", counts, shown, caption, [*shown, NO_ANSWER])


def draw_accuracy(axis: Axes, table: pd.DataFrame) -> None:
    """The accuracy of a ``length_table`` with its intervals."""
    accuracy = table["accuracy"]
    errors = np.clip([accuracy - table["low"], table["high"] - accuracy], 0, None)
    axis.errorbar(table["mean_length"], accuracy, yerr=errors, color=COLORS[0], marker="o", markersize=5, linewidth=1,
                  elinewidth=1.2, label="accuracy", zorder=3)


def write_lengths(directory: Path, table: pd.DataFrame, unit: str, metrics: Mapping[str, Any], title: str) -> None:
    """``accuracy_by_length.csv`` (a ``length_table``) and its picture; unit: what is counted, for the axis."""
    from matplotlib.ticker import MaxNLocator

    write_csv(directory / "accuracy_by_length.csv", table)
    figure, axis = new_figure(5.6, 3.6)
    place = table["mean_length"]
    width = [place - table["shortest"], table["longest"] - place]
    axis.errorbar(place, table["accuracy"], xerr=width, fmt="none", ecolor=LIGHT_GREY, elinewidth=4, zorder=0)
    draw_accuracy(axis, table)
    axis.plot(place, table["parse_rate"], color=GREY, marker="s", markersize=4, linewidth=1, label="parse rate")
    axis.axhline(metrics["majority_baseline"], color=GREY, linewidth=1, linestyle=":", label="majority baseline")
    axis.set(ylim=(-0.03, 1.03), yticks=[0, 0.25, 0.5, 0.75, 1])
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.set_xlabel(f"length of the answer ({unit})", fontsize=9)
    axis.set_ylabel("share of the pairs", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=8, borderaxespad=0)
    counts = ", ".join(f"{count:,}" for count in table["n"])
    caption = (
        f"{title}, n = {int(table['n'].sum()):,} (from left to right {counts})\npoint and bar: accuracy and its 95 % "
        "Wilson interval, no answer counted as wrong; light bar: shortest to longest of the group"
    )
    save_figure(figure, directory / "accuracy_by_length.png", "Accuracy by length of the answer", caption)


# --- a run, and another one --------------------------------------------------------------------------------------


def lengths_of(records: Sequence[Mapping[str, Any]]) -> tuple[list[int | None], str]:
    """The length of every answer and its unit: new tokens where they are known of all answers, else words."""
    known = all(record["new_tokens"] is not None for record in records if record["output"] is not None)
    lengths = [None if record["output"] is None else record["new_tokens"] if known else len(record["output"].split())
               for record in records]
    return lengths, "new tokens" if known else "words"


def metrics_of(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``pair_metrics``, and of generated answers how many were cut off and their mean length."""
    columns = ([record[name] for record in records] for name in ("true_label", "predicted_label", "method"))
    tokens = [record["new_tokens"] for record in records if record["new_tokens"] is not None]
    ends = [record["finished"] for record in records if record["finished"] is not None]
    return {
        **pair_metrics(*columns),
        "no_output": sum(record["output"] is None for record in records),
        "cut_off": ends.count(False) if ends else None,
        "new_tokens_mean": sum(tokens) / len(tokens) if tokens else None,
    }


def write_results(path: Path, records: Sequence[Mapping[str, Any]], metrics: Mapping[str, Any], title: str) -> None:
    import pandas as pd

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


def compare(
    source: str, other: Mapping[str, int | None], records: Mapping[str, Mapping[str, Any]], cluster_by: str
) -> dict[str, Any]:
    """cluster_by: "premise" or "hypothesis", of which pairs of one go together, or "none"."""
    gold = {name: record["true_label"] for name, record in records.items() if record["true_label"] is not None}
    right = [records[name]["predicted_label"] == gold[name] for name in other]
    other_right = [label == gold[name] for name, label in other.items()]
    texts = None if cluster_by == NO_CLUSTERS else [records[name][cluster_by] for name in other]
    return {"other": source, **compare_runs(right, other_right, texts), "cluster_by": cluster_by,
            "only_in_this": len(gold) - len(other)}


def in_words(found: Mapping[str, Any]) -> str:
    """A comparison in a sentence."""
    grouped = found["clusters"] is not None and found["clusters"] < found["n"]
    groups = f" in {found['clusters']:,} clusters by {found['cluster_by']}" if grouped else ""
    test = "t over clusters" if grouped else "mid-p McNemar"
    overlap = f" ({found['only_in_this']:,} others are not there)" * bool(found["only_in_this"])
    return (
        f"against {found['other']} on {found['n']:,} pairs{groups}{overlap}: accuracy {found['accuracy']:.3f} here, "
        f"{found['other_accuracy']:.3f} there, difference {found['difference']:+.3f} [{found['difference_low']:+.3f}, "
        f"{found['difference_high']:+.3f}]; right only here {found['only_this_right']:,}, only there "
        f"{found['only_other_right']:,}, p = {found['p']:.3g} ({test}): {found['verdict']}, beside a margin of "
        f"{MARGIN:g} (p of equivalence {found['p_equivalence']:.3g})"
    )


def metrics_table(metrics: Mapping[str, Any]) -> str:
    """For the console."""
    import pandas as pd

    rows: list[tuple[str, Any, str]] = [("pairs", metrics["n"], f"{metrics['n_labelled']:,} with a true label")]
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
