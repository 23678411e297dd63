"""How well low confidence, and suspicion, find the annotation errors that a built-in dataset carries on purpose.

Reads cartography metrics and the dataset they were recorded on, the only reader of its column planted_error, and with
--suspects_dir the suspects.csv of analyze_dataset.py --find_errors. Writes
planted_errors.csv, .json and .png, and what is drawn there as planted_errors_map.csv; with --check, exit status 1 when
the errors are not found well enough.

    python benchmarks/planted_errors.py --cartography_dir ./cartography_output --dataset demo:clinical \\
        --output_dir ./planted_errors
    make demo          (runs it on what it trained)
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datamap.core.artifacts import check_not_read, check_same_dataset, stage
from datamap.core.errors import UserError, command_line
from datamap.core.files import write_csv, write_json
from datamap.core.flags import Parser
from datamap.core.plots import COLORS, LIGHT_GREY, dataset_label, new_figure, save_figure
from datamap.core.splits import load_split
from datamap.core.tables import console_table
from datamap.detection.decisions import read_decisions
from datamap.tasks.registry import TASKS, get_task

if TYPE_CHECKING:
    import pandas as pd

OVERALL_BOUND = 0.97  # AUROC, all kinds of error against the clean examples
KIND_BOUND = 0.9  # AUROC, each kind against the clean examples
SUSPICION_BOUND, SUSPICION_KIND_BOUND = 0.95, 0.85  # average precision of suspicion, likewise
MARKERS = "osD^Pv"  # marker and colour say the same thing twice


def detection(confidence: np.ndarray, error: np.ndarray) -> pd.DataFrame:
    """One row for all errors and one per kind: n, auroc, precision and recall among the n lowest.

    confidence: (N,), 0..1. error: (N,) kind of error, "" where clean. ``auroc`` is the probability that an error has
    lower confidence than a clean example (0.5 is chance); ``recall_in_lowest`` is the share of the kind among the K
    lowest confidences of all examples, K the number of errors of any kind, and for all errors their precision too.
    """
    import pandas as pd
    from sklearn.metrics import roc_auc_score

    clean = error == ""
    lowest = np.zeros(len(error), dtype=bool)
    lowest[np.argsort(confidence, kind="stable")[: int((~clean).sum())]] = True
    rows = []
    for name, chosen in [("all", ~clean)] + [(kind, error == kind) for kind in sorted(set(error[~clean]))]:
        among = clean | chosen
        rows.append({
            "planted_error": name, "n": int(chosen.sum()),
            "auroc": float(roc_auc_score(chosen[among], -confidence[among])),
            "in_lowest": int((chosen & lowest).sum()), "recall_in_lowest": float(lowest[chosen].mean()),
            "median_confidence": float(np.median(confidence[chosen])),
        })
    return pd.DataFrame(rows)


def suspicion_precision(suspects_dir: str, error: pd.Series) -> list[float]:
    """Average precision of suspicion for all errors, then for each kind against the clean examples, as ``detection``
    orders them. error: kind of error by id, "" where clean."""
    import pandas as pd
    from sklearn.metrics import average_precision_score

    table = read_decisions(suspects_dir).set_index("id")
    suspicion = pd.to_numeric(table["suspicion"], errors="coerce").reindex(error.index).to_numpy()
    if np.isnan(suspicion).any():
        raise UserError(f"{suspects_dir} has no suspicion of {int(np.isnan(suspicion).sum()):,} of the examples of "
                        "the map; make both from one dataset")
    kinds = error.to_numpy(dtype=str)
    found = [float(average_precision_score(kinds != "", suspicion))]
    for kind in sorted(set(kinds) - {""}):
        among = (kinds == "") | (kinds == kind)
        found.append(float(average_precision_score(kinds[among] == kind, suspicion[among])))
    return found


def plot_planted_errors(path: Path, frame: pd.DataFrame, table: pd.DataFrame, title: str) -> None:
    """The data map with the planted errors marked by kind over the clean examples, and confidence by kind beside it,
    where the marks of the crowded corner can be told apart."""
    figure, (axis, strips) = new_figure(10.5, 5.2, 1, 2, sharey=True, width_ratios=[3, 2])
    rng = np.random.default_rng(0)
    overall, *kinds = table.itertuples()
    groups = [("", "clean", None, ".", LIGHT_GREY)]
    groups += [(row.planted_error, row.planted_error.replace("_", " "), row.auroc, marker, color)
               for row, marker, color in zip(kinds, MARKERS, COLORS, strict=False)]
    for place, (kind, label, auroc, marker, color) in enumerate(groups):
        points = frame[frame["planted_error"] == kind]
        look: dict[str, Any] = {"marker": marker, "color": color, "linewidths": 0.5 * bool(kind),
                                "edgecolors": "white", "zorder": 3 if kind else 1}
        axis.scatter(points["variability"], points["confidence"], s=24, label=f"{label} (n = {len(points):,})", **look)
        jitter = rng.uniform(-0.32, 0.32, size=len(points))
        strips.scatter(place + jitter, points["confidence"], s=17, **look)
        if auroc is not None:
            strips.annotate(f"{auroc:.3f}", (place, 1.0), ha="center", va="bottom", fontsize=8)
    strips.annotate("AUROC", (0, 1.0), ha="center", va="bottom", fontsize=8)
    axis.set(xlabel="variability (standard deviation of p(gold) over epochs)", xlim=(-0.01, 0.51),
             ylabel="confidence (mean p(gold) over epochs)", ylim=(-0.02, 1.05))
    # This corner is empty: values in 0..1 with mean m have a standard deviation of at most sqrt(m * (1 - m)).
    axis.legend(loc="lower right", fontsize=8, frameon=False, labelspacing=0.25, borderpad=0)
    labels = [label.replace(" ", "\n") for _, label, *_ in groups]
    strips.set_xticks(range(len(groups)), labels, fontsize=8)
    strips.set_xlabel("training examples by planted error")
    caption = (f"n = {len(frame):,}, {overall.n:,} of them planted errors. Ranked by low confidence: AUROC "
               f"{overall.auroc:.3f}; {overall.recall_in_lowest:.0%} of the {overall.n:,} lowest are planted errors")
    save_figure(figure, path, title, caption)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser((__doc__ or "").split("\n")[0])
    parser.add_argument("--cartography_dir", default="./cartography_output",
                        help="directory that run.py --enable_cartography wrote")
    parser.add_argument("--suspects_dir", metavar="DIR", help="of analyze_dataset.py --find_errors on that map")
    parser.add_argument("--dataset", default="demo:clinical", help="dataset with a column planted_error")
    parser.add_argument("--split", default="train", help="split that was trained on")
    parser.add_argument("--task", choices=list(TASKS), default="qa", help="task that the dataset is for")
    parser.add_argument("--output_dir", default="./planted_errors", help="table and picture go here")
    parser.add_switch("--check", help=f"exit status 1 unless AUROC reaches {OVERALL_BOUND}, {KIND_BOUND} per kind, "
                      f"and suspicion an average precision of {SUSPICION_BOUND}, {SUSPICION_KIND_BOUND} per kind")
    return parser.parse_args(argv)


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    from datamap.cartography.metrics import load_cartography_metrics

    check_not_read(args.output_dir, args.cartography_dir)
    metrics = load_cartography_metrics(args.cartography_dir)
    split = load_split(args.dataset, args.split, get_task(args.task))
    metrics = metrics.drop(list(check_same_dataset(args.cartography_dir, metrics.index, split)))
    if "planted_error" not in split.data.column_names:
        raise UserError(f"{args.dataset} has no column 'planted_error'; give one that has, such as demo:clinical")
    planted = dict(zip(split.ids, split.data["planted_error"][:], strict=True))
    frame = metrics[metrics.index.isin(planted)]
    frame = frame.assign(planted_error=[planted[example] or "" for example in frame.index])
    errors = int((frame["planted_error"] != "").sum())
    if errors in (0, len(frame)):
        raise UserError(f"{args.dataset} [{args.split}]: {errors:,} of {len(frame):,} examples with metrics carry a "
                        "planted error; a ranking needs errors and clean examples")
    table = detection(frame["confidence"].to_numpy(dtype=float), frame["planted_error"].to_numpy(dtype=str))
    bounds = np.where(table["planted_error"] == "all", OVERALL_BOUND, KIND_BOUND)
    result: dict[str, Any] = {
        "dataset": args.dataset, "split": args.split, "examples": len(frame), "errors": errors,
        "auroc": float(table["auroc"].iloc[0]),
        "precision_in_lowest": float(table["recall_in_lowest"].iloc[0]),  # as many are taken as there are errors
        "kinds": table.iloc[1:].rename(columns={"planted_error": "kind"}).to_dict("records"),
        "bounds": {"auroc": OVERALL_BOUND, "auroc_per_kind": KIND_BOUND},
        "missed": [f"{row.planted_error} AUROC {row.auroc:.3f} < {bound:g}"
                   for row, bound in zip(table.itertuples(), bounds, strict=True) if row.auroc < bound],
    }
    if args.suspects_dir:
        table["suspicion_precision"] = suspicion_precision(args.suspects_dir, frame["planted_error"])
        result["suspicion_precision"] = dict(zip(table["planted_error"], table["suspicion_precision"], strict=True))
        least = np.where(table["planted_error"] == "all", SUSPICION_BOUND, SUSPICION_KIND_BOUND)
        result["missed"] += [f"{row.planted_error} suspicion {row.suspicion_precision:.3f} < {bound:g}"
                             for row, bound in zip(table.itertuples(), least, strict=True)
                             if row.suspicion_precision < bound]
    with stage(args.output_dir, args, owns=("planted_errors*",), inputs={"cartography": args.cartography_dir},
               datasets=[split.identity()]) as path:
        write_csv(path / "planted_errors.csv", table)
        write_json(path / "planted_errors.json", result)
        plotted = frame[["variability", "confidence", "planted_error"]].replace({"planted_error": {"": None}})
        write_csv(path / "planted_errors_map.csv", plotted.reset_index())
        title = f"Data map of {dataset_label(args.dataset, args.split)} with its planted annotation errors"
        plot_planted_errors(path / "planted_errors.png", frame, table, title)
    shown = table.assign(planted_error=table["planted_error"].str.replace("_", " "))
    print(console_table(shown, {"n": ",d", "in_lowest": ",d", "recall_in_lowest": ".0%", "auroc": ".3f",
                                "median_confidence": ".3f", "suspicion_precision": ".3f"}))
    print(f"of the {errors:,} examples with the lowest confidence, {result['precision_in_lowest']:.0%} are errors")
    print(f"wrote planted_errors.csv, .json and .png to {path}")
    if args.check and result["missed"]:
        print(f"below its bound: {', '.join(result['missed'])}", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
