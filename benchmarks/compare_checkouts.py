"""Whether two checkouts of this repository write the same artifacts, byte for byte, from the same commands.

Runs each road below in both checkouts, at small sizes on the CPU, and compares every CSV, JSON, JSON Lines and .npy
that comes out. Left out of the comparison: times, versions, commits, paths and the sizes of pictures, which stand in
run_meta.json and in the fields of VOLATILE. Writes comparison.csv (one row per file) to --output_dir, beside what both
checkouts wrote; exit status 1 where a file differs. Pictures are for looking at, side by side.

    git worktree add ../before v1 && python benchmarks/compare_checkouts.py ../before . --output_dir ./compared
    python benchmarks/compare_checkouts.py ../before . --roads qa nli --output_dir ./compared
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datamap.core.errors import UserError, command_line  # noqa: E402
from datamap.core.flags import Parser  # noqa: E402

# Fields, wherever they stand, that say when, how fast, how much memory, by which code, or how large a picture was.
VOLATILE = re.compile(
    r"started|finished|versions|git_commit|git_dirty|outputs|owns|seconds|select_seconds|peak_memory_mb|"
    r"time|created|created_at|at|latency\w*|\w*_runtime|\w*_per_second|\w*_seconds|\w*_time|request_id"
)
# Records that are appended in the order in which a server answers.
AS_ANSWERED = ("thoughts.jsonl", "reflections.jsonl", "scores.jsonl", "comparisons.jsonl", "failures.jsonl")
SUFFIXES = (".csv", ".json", ".jsonl", ".npy", ".txt")
# Logs are words, models are larger than what they are judged by, and what a server said is its own affair.
LEFT_OUT = re.compile(r"(^|/)(log\.txt|server\.log|tokenizer.*|.*\.lock|vocab\.txt|feature_cache/.*)$")
TINY = "--no_cuda --per_device_train_batch_size 16 --learning_rate 2e-3 --warmup_steps 0.1"
WINDOWS = "--max_length 128 --doc_stride 32"
QA = f"--dataset demo:clinical --max_train_samples 800 {WINDOWS}"
NLI = "--task nli --dataset demo:nli"
SUITE = {
    "name": "small", "prerequisites": {"cartography": {}, "clusters": {"reduction_dim": 10, "min_cluster_size": 10,
                                                                        "visualization_method": "pca"}},
    "base": {"dataset": "demo:clinical", "model": "tiny", "max_train_samples": 400, "max_eval_samples": 200,
             "max_length": 128, "doc_stride": 32, "num_train_epochs": 3, "per_device_train_batch_size": 16,
             "learning_rate": 0.002, "save_strategy": "no", "no_cuda": True, "do_train": True, "do_eval": True},
    "experiments": [
        {"name": "baseline", "args": {}},
        {"name": "no_hard", "args": {"filter_categories": ["easy", "ambiguous"]}},
        {"name": "no_noise", "args": {"filter_clusters": True}},
        {"name": "weighting", "args": {"use_soft_weighting": True}},
        {"name": "longest", "select": {"selector": "stratified", "fraction": 0.5, "strata": ["token_count"]}},
    ],
}
SELECTORS = {
    "random": "", "full": "", "wordpiece_ratio": "--model trained", "stratified": "--strata token_count",
    "consistency": "--model_path trained --perturbations swap",
    **dict.fromkeys(("kcenter", "kmeans", "herding", "lexical_diversity", "label_issues", "self_filter"),
                    "--embedding_dir embeddings"),
    **dict.fromkeys(("predictive_entropy", "el2n", "grand"), "--model_path trained"),
    **dict.fromkeys(("forgetting", "aum", "confidence", "variability", "loss_trajectory"), "--cartography_dir map"),
    "pipeline": "--pipeline aum:0.8,kcenter:0.5 --cartography_dir map --embedding_dir embeddings",
}


def qa() -> Iterator[str]:
    yield (f"run.py {QA} {TINY} --model tiny --do_train --do_eval --enable_cartography --num_train_epochs 4 "
           "--save_strategy no --cartography_output_dir map --output_dir trained --logging_steps 20 "
           "--eval_ablations none q_only")
    yield (f"run.py --dataset demo:clinical {WINDOWS} --no_cuda --model trained --do_eval --eval_split train "
           "--max_eval_samples 800 --output_dir predictions")
    yield "analyze_cartography.py --cartography_dir map --output_dir samples"
    yield f"extract_embeddings.py --model_path trained {WINDOWS} --no_cuda --max_samples 800 --output_dir embeddings"
    yield from clusters()
    yield (f"run.py {QA} {TINY} --model trained --do_train --do_eval --num_train_epochs 1 --save_strategy no "
           "--filter_cartography --filter_clusters --cluster_assignments_path clusters --use_label_smoothing "
           "--use_soft_weighting --cartography_output_dir map --output_dir retrained")
    yield (f"run.py {QA} {TINY} --model tiny --do_train --num_train_epochs 1 --save_strategy no "
           "--filter_config filters.json --filter_random --output_dir control")


def nli() -> Iterator[str]:
    yield (f"run.py {NLI} {TINY} --model tiny --do_train --do_eval --enable_cartography --num_train_epochs 3 "
           "--cartography_output_dir map --output_dir trained --slice_by label --keep_top_epochs 2")
    yield (f"run.py {NLI} --no_cuda --model lstm --do_train --do_eval --num_train_epochs 2 --save_strategy no "
           "--output_dir lstm")
    yield f"run.py {NLI} --no_cuda --model trained --do_eval --eval_split train --output_dir predictions"
    yield "analyze_cartography.py --cartography_dir map --output_dir samples"
    yield "extract_embeddings.py --model_path trained --no_cuda --output_dir embeddings"
    yield from clusters()


def clusters() -> Iterator[str]:
    yield ("cluster_analysis.py --embedding_dir embeddings --visualization_method pca --reduction_dim 10 "
           "--min_samples 5 --output_dir clusters")
    yield "analyze_dataset.py --cartography_dir map --cluster_dir clusters --output_dir integrated"
    yield ("analyze_dataset.py --cartography_dir map --cluster_dir clusters --export_unified "
           "--predictions predictions --output_dir unified")


def suite() -> Iterator[str]:
    yield "run_experiments.py --suite suite.json --seeds 1 2 3 --workers 2"
    yield "run_experiments.py --mode analyze"


def selection() -> Iterator[str]:
    yield (f"run.py {NLI} {TINY} --model tiny --do_train --enable_cartography --num_train_epochs 3 "
           "--save_strategy no --cartography_output_dir map --output_dir trained")
    yield "extract_embeddings.py --model_path trained --no_cuda --output_dir embeddings"
    for name, flags in SELECTORS.items():
        yield f"select_subset.py --selector {name} --k 60 {NLI} {flags} --no_cuda --output_dir selected/{name}"
    yield (f"run.py {NLI} {TINY} --model tiny --do_train --do_eval --num_train_epochs 1 "
           "--save_strategy no --train_ids selected/kcenter/selected.csv --output_dir on_selected")


def thoughts() -> Iterator[str]:
    yield "demos/chain_of_thought.py --num_pairs 12 --num_train_epochs 1 --output_dir thoughts"


ROADS = {"qa": qa, "nli": nli, "suite": suite, "selection": selection, "thoughts": thoughts}


def walk(checkout: Path, road: str, place: Path) -> None:
    """Carry out the commands of a road in ``place``, which is made anew."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    (place / "suite.json").write_text(json.dumps(SUITE))
    filters = {"metric": {"metrics_path": "map", "metric": "aum", "drop_fraction": 0.1, "drop": "lowest"}, "rules": {}}
    (place / "filters.json").write_text(json.dumps(filters))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "HF_HUB_OFFLINE": "1"}
    with (place / "log.txt").open("w") as log:
        for command in ROADS[road]():
            script, *argv = shlex.split(command)
            print(f"{checkout}: {command}", flush=True)
            log.write(f"\n$ python {command}\n")
            log.flush()
            done = subprocess.run([sys.executable, str(checkout / script), *argv], cwd=place, env=environment,
                                  stdout=log, stderr=subprocess.STDOUT)
            if done.returncode:
                raise UserError(f"{command} ended with exit status {done.returncode} in {checkout}; see {log.name}")


def without_volatile(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_volatile(item) for key, item in value.items() if not VOLATILE.fullmatch(key)}
    return [without_volatile(item) for item in value] if isinstance(value, list) else value


def stable(path: Path) -> bytes:
    """The content of a file without what differs from run to run."""
    import pandas as pd

    raw = path.read_bytes()
    if path.suffix == ".json":  # the order of the flags in run_meta.json says nothing
        return json.dumps(without_volatile(json.loads(raw)), sort_keys=path.name == "run_meta.json").encode()
    if path.suffix == ".jsonl":
        lines = [json.dumps(without_volatile(json.loads(line))) for line in raw.split(b"\n") if line]
        return "\n".join(sorted(lines) if path.name in AS_ANSWERED else lines).encode()
    if path.suffix == ".csv":
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        return table[[name for name in table if not VOLATILE.fullmatch(name)]].to_csv(index=False).encode()
    return raw


def compare(before: Path, after: Path) -> Iterator[dict[str, str]]:
    """One row per file: equal, equal without volatile fields, different, or only in one of them."""
    names = {str(path.relative_to(root)) for root in (before, after) for path in root.rglob("*")
             if path.suffix in SUFFIXES and path.is_file()}
    for name in sorted(name for name in names if not LEFT_OUT.search(name)):
        old, new = before / name, after / name
        if not (old.exists() and new.exists()):
            found = "only before" if old.exists() else "only after"
        elif old.read_bytes() == new.read_bytes():
            found = "equal"
        else:
            found = "equal but for volatile fields" if stable(old) == stable(new) else "different"
        yield {"road": before.name, "file": name, "found": found}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("Whether two checkouts of this repository write the same artifacts from the same commands.")
    parser.add_argument("before", type=Path, help="checkout of the earlier version")
    parser.add_argument("after", type=Path, help="checkout of the later version")
    parser.add_list("--roads", choices=list(ROADS), default=list(ROADS), help="what to run")
    parser.add_switch("--compare_only", help="compare what an earlier call wrote")
    parser.add_argument("--output_dir", type=Path, default=Path("./compared"), help="everything goes here")
    return parser.parse_args(argv)


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    import pandas as pd

    args = parse_args(argv)
    rows: list[dict[str, str]] = []
    for road in args.roads:
        places = [args.output_dir / side / road for side in ("before", "after")]
        for checkout, place in zip((args.before, args.after), places, strict=True):
            if not args.compare_only:
                walk(checkout.resolve(), road, place)
        rows += compare(*places)
    table = pd.DataFrame(rows)
    table.to_csv(args.output_dir / "comparison.csv", index=False)
    for row in table[~table["found"].str.startswith("equal")].itertuples():
        print(f"{row.found}: {row.road}/{row.file}")
    for road, found in table.groupby("road")["found"]:
        print(f"{road}: {len(found):,} files, " + ", ".join(f"{n:,} {name}" for name, n in Counter(found).items()))
    print(f"wrote comparison.csv to {args.output_dir}")
    if (table["found"] == "different").any():
        raise SystemExit(1)


if __name__ == "__main__":
    main()
