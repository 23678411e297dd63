"""Does the joint map of several runs find errors better than that of a single one, and how stable is it?

Trains on each set with the same planted errors and several seeds (demo:clinical carries its own), and joins the maps.
Writes average_precision.csv (by number of runs), gains.csv (the joint map of all runs but one against that one),
stability.csv, joint_maps.json and joint_maps.png to --output_dir, and under runs/ what was trained and joined; what is
finished there is not run again. Then it trains --cleaned sets again without the tenth that is most suspicious by the
joint map, and compares the joint maps before and after: cleaned.csv, and SET_compared/ of dataset_cartography.py.

    python benchmarks/joint_maps.py --data_dir DATA --workers 2 --output_dir ./joint_maps_output
    python benchmarks/joint_maps.py --sets clinical --seeds 1 2 3 --max_examples 300 --output_dir ./tried_output

DATA holds policyqa/, sst2/ and sick_nli/ (train.jsonl, validation.jsonl).
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from timing import bench_parser, report

from datamap.core.errors import UserError, command_line, setup_logging
from datamap.core.files import read_json, read_table, write_csv
from datamap.core.flags import positive_int, seed_number
from datamap.core.plots import COLORS, GREY, new_figure, save_figure, whole_numbers
from datamap.core.tables import restored
from datamap.detection.figures import average_precision, over_seeds_and_examples, ranked_first

if TYPE_CHECKING:
    import pandas as pd

ERROR_SHARE = 0.1


class ErrorSet(NamedTuple):
    """Where examples are wrong, and how it is trained on. plant: the kind of run.py, "" for errors that are there, in
    the column planted_error."""

    dataset: str
    task: str
    model: str
    plant: str
    training: str  # flags of run.py
    most: int | None  # examples


DEMO = ("--learning_rate 2e-3 --warmup_steps 0.1 --num_train_epochs 4 --per_device_train_batch_size 16 "
        "--max_length 128 --doc_stride 32")
QA = "--learning_rate 2e-4 --num_train_epochs 3 --per_device_train_batch_size 16 --max_length 256 --doc_stride 64"
LABELS = "--learning_rate 1e-4 --num_train_epochs 3 --per_device_train_batch_size 32 --max_length 128"
# As benchmarks/error_detection.py trains on them, without its folds.
SETS = {
    "clinical": ErrorSet("demo:clinical", "qa", "tiny", "", DEMO, None),
    "sst2": ErrorSet("sst2", "classification", "minilm", "uniform", LABELS, 1000),
    "sick": ErrorSet("sick_nli", "nli", "minilm", "confusion", LABELS, 1000),
    "policyqa": ErrorSet("policyqa", "qa", "minilm", "qa", QA, 400),
}
# Metric -> 1 where high is suspicious, -1 where low is.
SCORES = {"confidence": -1, "correctness": -1, "aum": -1, "el2n": 1, "loss": 1, "forgetting_events": 1}
SHOWN = ("confidence", "aum")  # in the picture
MAX_CHOICES = 60  # of k of the runs


class Job(NamedTuple):
    name: str
    seed: int
    directory: Path
    data_dir: str
    most: int | None
    kept: str = ""  # file with the ids that are trained on, "" for all


def carried_out(job: Job) -> None:
    """Record the map of a set and seed, unless it is there."""
    from datamap.core.artifacts import load_meta
    from datamap.suites.runner import carry_out

    setup_logging()
    about, at = SETS[job.name], job.directory
    job.directory.mkdir(parents=True, exist_ok=True)
    if (at / "map").is_dir() and (load_meta(at / "map") or {}).get("status") == "finished":
        return
    place = about.dataset if about.dataset.startswith("demo:") else str(Path(job.data_dir, about.dataset))
    argv = ["--do_train", "--enable_cartography", "--task", about.task, "--model", about.model, "--dataset", place,
            *about.training.split(), "--seed", str(job.seed), "--save_strategy", "no",
            "--output_dir", str(at / "model"), "--cartography_output_dir", str(at / "map"), "--overwrite", "--no_cuda"]
    argv += ["--max_train_samples", str(job.most)] if job.most else []
    argv += ["--train_ids", job.kept] if job.kept else []
    if about.plant:  # the same errors for every seed of the training
        argv += ["--plant_errors", str(ERROR_SHARE), "--plant_seed", "0"]
        argv += ["--plant_kind", about.plant] if about.plant != "qa" else []
    carry_out("run.py", argv, at / "log.txt")


def wrong_ids(name: str, directory: Path) -> set[str]:
    """The ids of the examples that are wrong in the data of a run."""
    from datamap.core.splits import load_split
    from datamap.tasks.registry import get_task

    about = SETS[name]
    if about.plant:
        return set(read_table(directory / "model" / "planted_errors.csv")["id"])
    data = load_split(about.dataset, "train", get_task(about.task)).data
    return {example for example, error in zip(data["id"][:], data["planted_error"][:], strict=True) if error}


def precision_by_runs(maps: Sequence[pd.DataFrame], wrong: np.ndarray, score: str) -> dict[int, list[float]]:
    """k -> average precision of the mean of a metric over k of the maps, for MAX_CHOICES choices of k at most."""
    values = np.stack([SCORES[score] * each[score].to_numpy(dtype=float) for each in maps], axis=1)
    rng, found = np.random.default_rng(0), {}
    for k in range(1, len(maps) + 1):
        choices = list(itertools.combinations(range(len(maps)), k))
        if len(choices) > MAX_CHOICES:
            choices = [choices[place] for place in rng.choice(len(choices), MAX_CHOICES, replace=False)]
        found[k] = [average_precision(wrong, ranked_first(values[:, choice].mean(axis=1))) for choice in choices]
    return found


def gain_row(maps: Sequence[pd.DataFrame], wrong: np.ndarray, score: str, draws: int) -> dict[str, float]:
    """How much better the joint map of all other runs finds the errors than each single one does, mean over runs, with
    its 95 % bootstrap interval over runs and examples. A run is no part of the joint map it is set against."""
    values = np.stack([SCORES[score] * each[score].to_numpy(dtype=float) for each in maps], axis=1)
    pairs = [[(wrong, np.delete(values, run, axis=1).mean(axis=1)), (wrong, values[:, run])]
             for run in range(len(maps))]
    gain = over_seeds_and_examples(pairs, draws=draws)
    single = over_seeds_and_examples([[each[1]] for each in pairs], draws=draws)
    return {"single": single.mean, "single_low": single.low, "single_high": single.high, "runs": len(maps) - 1,
            "gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high}


def tables_of(
    found: Mapping[str, tuple[Sequence[pd.DataFrame], np.ndarray]], draws: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """average_precision.csv and gains.csv. found: set -> metrics of its runs in one order of examples, and which of
    these are wrong."""
    import pandas as pd

    precision, gains = [], []
    for name, (maps, wrong) in found.items():
        for score in SCORES:
            for k, each in precision_by_runs(maps, wrong, score).items():
                precision.append({"set": name, "score": score, "runs": k, "choices": len(each),
                                  "average_precision": float(np.mean(each)), "lowest": min(each),
                                  "highest": max(each)})
            gains.append({"set": name, "score": score, "examples": len(wrong), "wrong": int(wrong.sum()),
                          **gain_row(maps, wrong, score, draws)})
    return pd.DataFrame(precision), pd.DataFrame(gains)


def stability_row(record: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a joint_map.json in one row."""
    told = {(each["statistic"], each["of"], each["share"]): each["mean"] for each in record["pairs"]}
    row = {"runs": len(record["runs"]), "examples": record["examples"],
           **{f"stability_{name}": record["stability"][name] for name in ("mean", "by_chance", "kappa")},
           "spearman_confidence": told.get(("spearman", "confidence", None)),
           "spearman_variability": told.get(("spearman", "variability", None))}
    for what in ("hardest", "most ambiguous"):
        curve = record["learning_curve"][what]
        key = what.replace(" ", "_")
        row |= {f"overlap_{key}": told.get(("overlap", what, 0.1)), f"needed_{key}": curve["needed"],
                f"needed_{key}_why": curve["reason"]}
    return row


def plot_precision(path: Path, precision: pd.DataFrame, gains: pd.DataFrame) -> None:
    names = list(dict.fromkeys(precision["set"]))
    figure, axes = new_figure(3 * len(names) + 0.6, 3.4, columns=len(names), squeeze=False, sharey=True)
    for axis, name in zip(axes[0], names, strict=True):
        for score, color in zip(SHOWN, COLORS, strict=False):
            part = precision[(precision["set"] == name) & (precision["score"] == score)]
            axis.fill_between(part["runs"], part["lowest"], part["highest"], color=color, alpha=0.2, linewidth=0)
            axis.plot(part["runs"], part["average_precision"], "o-", color=color, label=score)
        about = gains[gains["set"] == name].iloc[0]
        axis.axhline(about["wrong"] / about["examples"], color=GREY, linewidth=0.8, linestyle=":")
        axis.set(title=f"{name}, n = {about['examples']:,}", xlabel="runs joined (count)", ylim=(0, 1))
        whole_numbers(axis.xaxis)
    axes[0][0].set_ylabel("average precision of errors")
    axes[0][-1].legend(loc="upper right")
    save_figure(figure, path, "Errors found by the mean over several runs",
                "Mean over the choices of so many of the runs, band: worst to best choice; dotted: a random order")


def all_carried_out(jobs: Sequence[Job], workers: int) -> None:
    from tqdm.auto import tqdm

    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for _ in tqdm(pool.map(carried_out, jobs), total=len(jobs), unit="run", disable=None):
            pass


def joined(name: str, jobs: Sequence[Job], output: Path) -> tuple[Sequence[pd.DataFrame], np.ndarray, dict[str, Any]]:
    """The maps of a set over the examples that all runs know, which are wrong, and what its joint map says."""
    from datamap.cartography.metrics import load_cartography_metrics
    from datamap.suites.runner import carry_out

    maps = [load_cartography_metrics(job.directory / "map") for job in jobs]
    joint = output / "runs" / f"{name}-joint"
    carry_out("dataset_cartography.py", ["--cartography_dir", *(str(job.directory / "map") for job in jobs),
                                         "--output_dir", str(joint)], output / "runs" / f"{name}-joint.log")
    shared = maps[0].index[np.logical_and.reduce([maps[0].index.isin(each.index) for each in maps])]
    wrong = shared.isin(list(wrong_ids(jobs[0].name, jobs[0].directory)))
    return [each.loc[shared] for each in maps], np.asarray(wrong), read_json(joint / "joint_map.json")


def cleaned_row(jobs: Sequence[Job], workers: int, output: Path) -> dict[str, Any]:
    """Trains again without the most suspicious tenth, compares the joint map of before with that of after, and says
    what moved beyond noise, of the examples that were left in, right and wrong ones."""
    from datamap.suites.runner import carry_out

    name, runs = jobs[0].name, output / "runs"
    joint, after, suspects = (runs / f"{name}-{part}" for part in ("joint", "cleaned-joint", "suspects"))
    carry_out("analyze_dataset.py", ["--find_errors", "--cartography_dir", str(joint), "--output_dir", str(suspects)],
              runs / f"{name}-suspects.log")
    table = read_table(suspects / "suspects.csv")
    table["id"] = [restored(cell) for cell in table["id"]]
    removed = round(ERROR_SHARE * len(table))
    write_csv(runs / f"{name}-kept.csv", table[["id"]].iloc[removed:])
    again = [job._replace(directory=runs / f"{name}-{job.seed}-cleaned", kept=str(runs / f"{name}-kept.csv"))
             for job in jobs]
    all_carried_out(again, workers)
    joined(f"{name}-cleaned", again, output)
    carry_out("dataset_cartography.py", ["--compare", str(joint), str(after), "--output_dir",
                                         str(output / f"{name}_compared")], runs / f"{name}-compared.log")
    wrong = wrong_ids(name, jobs[0].directory)
    found = table["id"].iloc[:removed].isin(wrong).sum()
    moved = read_table(output / f"{name}_compared" / "moved.csv")
    row: dict[str, Any] = {"set": name, "runs": len(jobs), "removed": removed, "removed_wrong": int(found),
                           "left": len(moved)}
    is_wrong = moved["id"].isin(wrong)
    for who, part in (("right", moved[~is_wrong]), ("wrong", moved[is_wrong])):
        beyond = part["beyond_noise"] > 0
        row |= {f"{who}_left": len(part), f"{who}_moved": int(beyond.sum()),
                f"{who}_up": int((beyond & (part["confidence_shift"] > 0)).sum()),
                f"{who}_confidence_shift": part["confidence_shift"].mean(),
                f"{who}_other_category": int((part["category_a"] != part["category_b_at_a"]).sum())}
    return row


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = bench_parser(__doc__, __file__)
    parser.add_argument("--data_dir", default=".", help="holds the sets that are not built in")
    parser.add_list("--sets", choices=list(SETS), default=list(SETS), help="which", metavar="SET")
    parser.add_list("--seeds", type=seed_number, default=[1, 2, 3, 4, 5], help="of the trainings")
    parser.add_list("--cleaned", choices=list(SETS), default=["sst2"], metavar="SET",
                    help="those of the sets that are trained again without the most suspicious tenth")
    parser.add_argument("--workers", type=positive_int, default=1, help="trainings at a time")
    parser.add_argument("--max_examples", type=positive_int, metavar="N", help="of each set (default: its own most)")
    parser.add_argument("--draws", type=positive_int, default=300, help="of the bootstrap")
    args = parser.parse_args(argv)
    if len(set(args.seeds)) < 2:
        parser.error(f"--seeds {args.seeds[0]}: a joint map needs two runs or more")
    for name in args.sets:
        place = SETS[name].dataset
        if not place.startswith("demo:") and not Path(args.data_dir, place).exists():
            raise UserError(f"--data_dir {args.data_dir} holds no {place}; name another, or leave {name} out with "
                            "--sets")
    return args


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    import pandas as pd

    args = parse_args(argv)
    output = Path(args.output_dir)
    jobs = [Job(name, seed, output / "runs" / f"{name}-{seed}", args.data_dir,
                min(filter(None, (SETS[name].most, args.max_examples)), default=None))
            for seed in args.seeds for name in args.sets]
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // args.workers)))
    all_carried_out(jobs, args.workers)
    found, stable = {}, []
    for name in args.sets:
        maps, wrong, record = joined(name, [job for job in jobs if job.name == name], output)
        found[name] = (maps, wrong)
        stable.append({"set": name, **stability_row(record)})
    precision, gains = tables_of(found, args.draws)
    stability = pd.DataFrame(stable)
    cleaned = [cleaned_row([job for job in jobs if job.name == name], args.workers, output)
               for name in args.cleaned if name in args.sets]
    report(args, __file__, {"gains": gains.to_dict("records"), "stability": stable, "cleaned": cleaned})
    for name, table in (("average_precision", precision), ("gains", gains), ("stability", stability),
                        ("cleaned", pd.DataFrame(cleaned))):
        write_csv(output / f"{name}.csv", table)
    plot_precision(output / "joint_maps.png", precision, gains)
    print(gains.round(3).to_string(index=False))
    print(stability.round(2).T.to_string(header=False))
    print(pd.DataFrame(cleaned).round(3).T.to_string(header=False))


if __name__ == "__main__":
    main()
