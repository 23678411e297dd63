"""Does it help to mend what is found? Trains on dirty, filtered, corrected and clean data, through run_experiments.py.

Reads what error_detection.py left under runs/ of a set (--run), whose suspects it asks for with analyze_dataset.py.
Writes suspects/, found.json (how many of them were planted), the datasets, suite.json, the suite's runs and
comparison.csv to --output_dir. Every training is evaluated on the same clean validation split, with each seed; what is
dropped has a size-matched random control.

    python benchmarks/closed_loop.py --run ./error_detection_output/runs/sst2-0 --clean DATA/sst2 \\
        --output_dir ./closed_loop_sst2
    python benchmarks/closed_loop.py --run ./error_detection_output/runs/sick-real-0 \\
        --corrections DATA/sick_nli/corrections.csv --output_dir ./closed_loop_sick
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timing  # noqa: F401  puts the repository on the path

from datamap.core.artifacts import recorded_split, recorded_task
from datamap.core.errors import UserError, command_line, name_a_few
from datamap.core.files import read_json, read_table, write_csv, write_json
from datamap.core.flags import Parser, fraction, seed_number
from datamap.core.splits import Split, load_split
from datamap.core.tables import restored, write_for_spreadsheet
from datamap.suites.runner import carry_out
from datamap.suites.runs import last_lines
from datamap.tasks.registry import get_task
from datamap.training.data import write_split
from datamap.training.planted import PLANTED_FILE

FLAGS = ("task", "model", "num_train_epochs", "per_device_train_batch_size", "max_length", "doc_stride", "no_cuda",
         "learning_rate", "warmup_steps")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser((__doc__ or "").split("\n")[0])
    parser.add_argument("--run", required=True, metavar="DIR", help="of error_detection.py: holds model/, map/, ...")
    parser.add_argument("--clean", metavar="DATASET", help="the same data without errors, where they were planted; "
                        "with a validation split")
    parser.add_argument("--corrections", metavar="FILE", help="id, label, corrected_label: what experts put right")
    parser.add_argument("--share", type=fraction, default=0.1, help="of the examples, the most suspicious are dropped")
    parser.add_list("--seeds", type=seed_number, default=[1, 2, 3, 4, 5], help="of the trainings")
    parser.add_argument("--workers", default="1", help="trainings at a time")
    parser.add_argument("--output_dir", default="./closed_loop_output", help="everything goes here")
    return parser.parse_args(argv)


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    import pandas as pd

    args = parse_args(argv)
    run, output = Path(args.run), Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)

    def script(name: str, *argv: str) -> None:
        log = output / "log.txt"
        print(f"{name}: see {log}")
        try:
            carry_out(name, argv, log)
        except SystemExit:
            print("".join(last_lines(log, 1)), end="")
            raise

    task = recorded_task(run / "map")
    assert task is not None
    its_task = ["--task", task["name"]]
    for setting in ("text_columns", "label_column"):
        if task.get(setting):
            value = task[setting]
            its_task += [f"--{setting}", value if isinstance(value, str) else ",".join(value)]
    script("analyze_dataset.py", "--find_errors", "--cartography_dir", str(run / "map"), "--embedding_dir",
           str(run / "embeddings"), "--cluster_dir", str(run / "clusters"), "--predictions", str(run / "model"),
           "--output_dir", str(output / "suspects"))
    suspects = pd.read_csv(output / "suspects" / "suspects.csv", dtype=str, keep_default_na=False,
                           encoding="utf-8-sig")
    suspects["id"] = [restored(cell) for cell in suspects["id"]]
    top = suspects.head(round(args.share * len(suspects)))
    kept = suspects["id"][~suspects["id"].isin(top["id"])]
    write_csv(output / "kept.csv", kept.to_frame())
    proposed = top[top["proposed"] != ""]
    if (planted := run / "model" / PLANTED_FILE).exists():
        wrong = read_table(planted, ("id",))["id"]
        found = {"most_suspicious": len(top), "planted": int(top["id"].isin(wrong).sum()),
                 "corrections": len(proposed), "corrections_of_planted": int(proposed["id"].isin(wrong).sum())}
        print(f"of the {found['most_suspicious']:,} most suspicious {found['planted']:,} are planted errors; "
              f"{found['corrections']:,} get a correction, {found['corrections_of_planted']:,} of these are errors")
        write_json(output / "found.json", found)
    experiments: list[dict[str, Any]] = [
        {"name": "dirty", "description": "as it is", "args": {}},
        {"name": "filtered", "description": f"without the {args.share:.0%} most suspicious",
         "args": {"train_ids": str(output / "kept.csv")}},
    ]
    cleaned = {"proposed": proposed.assign(decision="fix", corrected="")}  # takes what is proposed
    if args.corrections:
        experts = read_table(args.corrections, ("id", "label", "corrected_label"))
        wrong = experts[experts["label"].astype(str) != experts["corrected_label"].astype(str)]
        wrong = wrong[wrong["id"].isin(suspects["id"])]
        cleaned["experts"] = wrong.assign(decision="fix", corrected=wrong["corrected_label"].astype(str))
    split_of = recorded_split(run / "map", None, None, get_task(**task))
    assert split_of is not None
    if args.clean:
        clean, dirty = clean_and_dirty(args.clean, split_of, output)
        split_of = dataclasses.replace(split_of, name=str(dirty))
        experiments.append({"name": "clean", "description": "without errors", "args": {"dataset": str(clean)},
                            "control": False})
    for name, decisions in cleaned.items():
        file, columns = output / f"decisions_{name}.csv", ("id", "decision", "corrected", "proposed")
        write_for_spreadsheet(file, decisions[[column for column in columns if column in decisions]])
        script("dataset_filters.py", "--dataset", split_of.name, *its_task, "--decisions", str(file),
               "--eval_split", "validation", "--output_dir", str(output / f"data_{name}"))
        experiments.append({"name": name, "description": f"{len(decisions):,} labels or answers put right",
                            "args": {"dataset": str(output / f"data_{name}")}, "control": False})
    given = read_json(run / "model" / "run_meta.json")["arguments"]
    base = {flag: given[flag] for flag in FLAGS if given.get(flag) is not None}
    if split_of.max_samples:
        base["max_train_samples"] = split_of.max_samples
    base |= {"dataset": split_of.name, "do_train": True, "do_eval": True, "eval_split": ["validation"]}
    write_json(output / "suite.json", {"name": "closed_loop", "description": "Does it help to mend what is found?",
                                       "baseline": "dirty", "base": base, "experiments": experiments})
    script("run_experiments.py", "--mode", "run", "--suite", str(output / "suite.json"), "--workers", args.workers,
           "--experiments_dir", str(output / "experiments"), "--seeds", *map(str, args.seeds))


def clean_and_dirty(name: str, planted: Split, output: Path) -> tuple[Path, Path]:
    """The examples of ``planted`` without errors and with them, each as a dataset with the same validation split."""
    clean = load_split(name, "train", planted.task)
    row_of = {example: row for row, example in enumerate(clean.ids)}
    if missing := [example for example in planted.ids if example not in row_of]:
        raise UserError(f"--clean {name} has no example {name_a_few(missing)}, which the map was made from")
    same = dataclasses.replace(clean, data=clean.data.select([row_of[example] for example in planted.ids]))
    validation = load_split(name, "validation", planted.task)
    places = output / "data_clean", output / "data_dirty"
    for place, train in zip(places, (same, planted), strict=True):
        place.mkdir(exist_ok=True)
        write_split(place / "train.jsonl", train)
        write_split(place / "validation.jsonl", validation)
    return places


if __name__ == "__main__":
    main()
