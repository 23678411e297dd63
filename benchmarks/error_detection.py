"""How well does each detector find wrong examples, planted and real? And how well all of them together?

Trains on each set with errors planted by run.py, or with the errors that experts found in SICK, and scores every
example with every detector. Writes detectors.csv, kinds.csv, differences.csv, agreement.csv, costs.csv,
calibration.csv, review.csv, error_detection.json and pictures to --output_dir, and under runs/ what was trained; what
is finished there is not run again. --fit also writes the weights of `suspicion` into datamap/detection/, from the
planted sets alone.

    python benchmarks/error_detection.py --data_dir DATA --workers 2 --output_dir ./error_detection_output
    python benchmarks/error_detection.py --sets clinical --seeds 0 --max_examples 300 --output_dir ./tried_output

DATA holds policyqa/, sst2/, sick_nli/ (train.jsonl, validation.jsonl; sick_nli/corrections.csv) and
squad_xquad_en/xquad.en.json.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from timing import Measure, bench_parser, report

from datamap.core.errors import UserError, command_line, setup_logging
from datamap.core.files import read_json, read_table, write_csv, write_json
from datamap.core.flags import positive_int, seed_number
from datamap.core.places import CHECKOUT
from datamap.core.plots import COLORS, LIGHT_GREY, new_figure, save_figure
from datamap.detection.figures import Judged, average_precision, figures, over_seeds_and_examples, ranked_first
from datamap.training.planted import PLANTED_DATA

if TYPE_CHECKING:
    import pandas as pd

    from datamap.detection.base import Evidence

ERROR_SHARE = 0.1
RIGHT = "right"
SUSPICION, HELD_OUT = "suspicion", "suspicion, other sets"
RIVALS = ("confidence", "aum", "el2n")  # and the best of cleanlab's, on the real errors
CLEANLAB = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")
DEMO_ALL, DEMO_KIND = 0.95, 0.85  # least average precision on the demo
LEAST_GAIN = 2.0  # times a random order, for the picture
REVIEW_DEPTHS = (100, 200, 300)


class ErrorSet(NamedTuple):
    """Where examples are wrong, and how it is trained on. plant: the kind of run.py, "" for errors that are there."""

    dataset: str
    task: str
    model: str
    plant: str
    training: str  # flags of run.py
    most: int | None  # examples
    truth: str = ""  # of what is there: a column, or a file of corrections


# What two hours on two cores allow for five seeds: few epochs, two folds, some hundred examples.
DEMO = ("--learning_rate 2e-3 --warmup_steps 0.1 --num_train_epochs 4 --per_device_train_batch_size 16 "
        "--max_length 128 --doc_stride 32 --cross_fit 3")  # as make demo trains
QA = ("--learning_rate 2e-4 --num_train_epochs 3 --per_device_train_batch_size 16 --max_length 256 --doc_stride 64 "
      "--cross_fit 2")
LABELS = ("--learning_rate 1e-4 --num_train_epochs 3 --per_device_train_batch_size 32 --max_length 128 "
          "--cross_fit 2")
SETS: dict[str, ErrorSet] = {
    "clinical": ErrorSet("demo:clinical", "qa", "tiny", "", DEMO, None, "planted_error"),
    "policyqa": ErrorSet("policyqa", "qa", "minilm", "qa", QA, 400),
    "xquad": ErrorSet("squad_xquad_en/xquad.en.json", "qa", "minilm", "qa", QA, 400),
    "sst2": ErrorSet("sst2", "classification", "minilm", "uniform", LABELS, 1000),
    "sst2-plausible": ErrorSet("sst2", "classification", "minilm", "plausible", LABELS, 1000),
    "sick": ErrorSet("sick_nli", "nli", "minilm", "confusion", LABELS, 1000),
    "sick-real": ErrorSet("sick_nli", "nli", "minilm", "", LABELS, None, "sick_nli/corrections.csv"),
}


class Job(NamedTuple):
    name: str
    seed: int
    about: ErrorSet
    directory: Path
    data_dir: str
    most: int | None


# --- carrying out --------------------------------------------------------------------------------------------------


def carried_out(job: Job) -> dict[str, float]:
    """Make all artifacts of a job and its scores.csv, unless they are there; seconds of each step."""
    from datamap.suites.runner import carry_out

    setup_logging()
    job.directory.mkdir(parents=True, exist_ok=True)
    costs = read_json(job.directory / "costs.json") if (job.directory / "costs.json").exists() else {}
    for step, script, argv in steps(job):
        if step not in costs:
            began = time.monotonic()
            carry_out(script, argv, job.directory / "log.txt")
            costs[step] = time.monotonic() - began
            write_json(job.directory / "costs.json", costs)
    if not (job.directory / "scores.csv").exists():
        began = time.monotonic()
        write_csv(job.directory / "scores.csv", scored(job).reset_index())
        costs["detectors"] = time.monotonic() - began
        write_json(job.directory / "costs.json", costs)
    return costs


def place_of(job: Job) -> str:
    name = job.about.dataset
    return name if name.startswith("demo:") else str(Path(job.data_dir, name))


def steps(job: Job) -> list[tuple[str, str, list[str]]]:
    """(what, script, command line) of every stage."""
    at, about = job.directory, job.about
    train = ["--do_train", "--do_eval", "--eval_split", "train", "--enable_cartography", "--task", about.task,
             "--model", about.model, "--dataset", place_of(job), *about.training.split(), "--seed", str(job.seed),
             "--output_dir", str(at / "model"), "--cartography_output_dir", str(at / "map"), "--overwrite",
             "--no_cuda"]
    if job.most:
        train += ["--max_train_samples", str(job.most), "--max_eval_samples", str(job.most)]
    if about.plant:
        train += ["--plant_errors", str(ERROR_SHARE), "--plant_seed", str(job.seed)]
        train += ["--plant_kind", about.plant] if about.plant != "qa" else []
    embed = ["--model_path", str(at / "model"), "--split", "train", "--no_cuda",
             "--output_dir", str(at / "embeddings")]
    cluster = ["--embedding_dir", str(at / "embeddings"), "--output_dir", str(at / "clusters"),
               "--visualization_method", "pca"]
    all_steps = [("training", "run.py", train), ("embeddings", "extract_embeddings.py", embed),
                 ("clusters", "cluster_analysis.py", cluster)]
    if about.task != "qa":  # what run.py --cross_fit_head does before it trains
        untrained = ["--model_path", about.model, "--pooling", "mean", "--task", about.task, "--no_cuda", "--dataset",
                     str(at / "model" / PLANTED_DATA) if about.plant else place_of(job), "--output_dir",
                     str(at / "untrained")]
        all_steps.append(("untrained", "extract_embeddings.py", untrained))
    return all_steps


def scored(job: Job) -> pd.DataFrame:
    """Every detector's scores of what was trained on; ``error``: its kind, RIGHT, or missing where it is not known."""
    from datamap.detection.base import score_all

    evidence = evidence_of(job)
    table, truth = score_all(evidence), known_errors(job, evidence.split)
    table.insert(0, "error", [truth.get(example) for example in evidence.split.ids])
    if not evidence.answers_questions:
        table.insert(1, "label", [evidence.class_names[label] for label in evidence.labels])
        head = said_by_head(job, evidence)
        table = table.assign(head_confidence=-head["confidence"], head_aum=-head["aum"])
    return table[table["confidence"].notna()]


def said_by_head(job: Job, evidence: Evidence) -> pd.DataFrame:
    """What run.py --cross_fit_head writes to out_of_fold.csv."""
    import dataclasses

    from datamap.detection.evidence import load_evidence
    from datamap.detection.out_of_fold import HEAD_FOLDS, folds_of, head_table

    split = evidence.split
    usable = np.flatnonzero(split.task.is_usable(split.data))
    usable_split = dataclasses.replace(split, data=split.data.select(usable))
    vectors = load_evidence(split, embedding_dir=job.directory / "untrained").embeddings
    assert vectors is not None
    table = head_table(usable_split.ids, vectors[usable], evidence.labels[usable], evidence.class_names,
                       folds_of(usable_split, HEAD_FOLDS, job.seed), job.seed)
    return table.set_index("id").reindex(split.ids)


def evidence_of(job: Job) -> Evidence:
    from datamap.core.artifacts import recorded_split, recorded_task
    from datamap.detection.evidence import load_evidence
    from datamap.tasks.registry import get_task

    at, task = job.directory, recorded_task(job.directory / "map")
    assert task is not None
    split = recorded_split(at / "map", None, None, get_task(**task))
    assert split is not None
    return load_evidence(split, at / "map", embedding_dir=at / "embeddings", cluster_dir=at / "clusters",
                         predictions=at / "model")


def known_errors(job: Job, split: Any) -> dict[str, str]:
    """id -> kind of error, or RIGHT; what is not in it is neither."""
    if job.about.plant:
        planted = read_table(job.directory / "model" / "planted_errors.csv", ("id", "kind"))
        return dict.fromkeys(split.ids, RIGHT) | dict(zip(planted["id"], planted["kind"], strict=True))
    if job.about.truth.endswith(".csv"):
        table = read_table(Path(job.data_dir, job.about.truth), ("id", "label", "corrected_label"))
        names = zip(table["id"], table["label"].astype(str), table["corrected_label"].astype(str), strict=True)
        return {example: RIGHT if label == right else f"{label} to {right}" for example, label, right in names}
    return dict(zip(split.ids, [kind or RIGHT for kind in split.data[job.about.truth][:]], strict=True))


# --- figures -------------------------------------------------------------------------------------------------------


def known(table: pd.DataFrame) -> pd.DataFrame:
    """The examples whose truth is known."""
    return table[table["error"].notna()]


def detector_names(tables: Sequence[pd.DataFrame]) -> list[str]:
    return [name for name in tables[0] if name not in ("id", "error", "label")]


def judged(tables: Sequence[pd.DataFrame], detector: str, kind: str = "") -> list[list[Judged]]:
    """What a detector says at each seed; kind: of that kind of error alone, against what is right."""
    runs = []
    for table in tables:
        among = table if not kind else table[table["error"].isin([RIGHT, kind])]
        runs.append([((among["error"] != RIGHT).to_numpy(), among[detector].to_numpy(dtype=float))])
    return runs


def figure_table(found: dict[str, list[pd.DataFrame]], draws: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A row for each set and detector; and for each kind of error its average precision."""
    import pandas as pd

    rows, kinds = [], []
    for name, tables in found.items():
        errors = sorted(set().union(*(set(table["error"]) for table in tables)) - {RIGHT})
        for each in detector_names(tables):
            runs = judged(tables, each)
            interval = over_seeds_and_examples(runs, draws=draws)
            means = pd.DataFrame([figures(*run[0]) for run in runs]).mean()
            wrong = int((tables[0]["error"] != RIGHT).sum())
            rows.append({"set": name, "detector": each, "seeds": len(tables), "examples": len(tables[0]),
                         "errors": wrong, "low": interval.low, "high": interval.high, **means.to_dict()})
            for kind in errors:
                each_kind = [run for run in judged(tables, each, kind) if run[0][0].any()]
                values = [figures(*run[0]) for run in each_kind]
                kinds.append({"set": name, "kind": kind, "detector": each,
                              "errors": int(np.mean([run[0][0].sum() for run in each_kind])),
                              "average_precision": float(np.mean([value["average_precision"] for value in values])),
                              "auroc": float(np.mean([value["auroc"] for value in values]))})
    order = ["set", "detector", "seeds", "examples", "errors", "average_precision", "low", "high"]
    table = pd.DataFrame(rows)
    return table[[*order, *(name for name in table if name not in order)]], pd.DataFrame(kinds)


def demo_measures(tables: Sequence[pd.DataFrame]) -> list[Measure]:
    """Average precision of suspicion on demo:clinical, of each kind of its errors against the right ones too."""
    kinds = sorted(set(tables[0]["error"]) - {RIGHT})
    return [Measure(f"suspicion on clinical, {kind or 'all errors'}", [average_precision(*run[0]) for run in judged(
        tables, SUSPICION, kind)], least=DEMO_KIND if kind else DEMO_ALL) for kind in ("", *kinds)]


def difference_table(found: dict[str, list[pd.DataFrame]], best: dict[str, str], draws: int) -> pd.DataFrame:
    """How much better suspicion is than others in average precision, with intervals."""
    import pandas as pd

    rows = []
    for name, tables in found.items():
        rivals = dict.fromkeys(RIVALS, "") | {best[name]: "best single detector"}
        if (cleanlab := [each for each in CLEANLAB if each in tables[0]]):
            rivals.setdefault(max(cleanlab, key=lambda each: mean_precision(tables, each)), "cleanlab's best")
        for ours in [each for each in (SUSPICION, HELD_OUT) if each in tables[0]]:
            for rival, what in rivals.items():
                for kind, among in subsets(name, tables).items():
                    pairs = [[mine[0], other[0]] for mine, other in zip(judged(among, ours), judged(among, rival),
                                                                        strict=True)]
                    rows.append({"set": name, "among": kind, "score": ours, "against": rival, "which_is": what,
                                 **over_seeds_and_examples(pairs, draws=draws)._asdict()})
    return pd.DataFrame(rows)


def subsets(name: str, tables: Sequence[pd.DataFrame]) -> dict[str, list[pd.DataFrame]]:
    """All, and of SICK's real errors the scattered (entailment that is neutral) and the systematic ones apart."""
    every = {"all": list(tables)}
    if name == "sick-real":
        for what, kind in (("scattered", "0 to 1"), ("systematic", "1 to 2")):
            every[what] = [table[table["error"].isin([RIGHT, kind])] for table in tables]
    return every


def mean_precision(tables: Sequence[pd.DataFrame], detector: str) -> float:
    return float(np.mean([average_precision(run[0][0], ranked_first(run[0][1])) for run in judged(tables, detector)]))


def agreement_table(found: dict[str, list[pd.DataFrame]]) -> pd.DataFrame:
    """Of each pair of detectors, mean over seeds: Spearman's correlation, the share of the tops (as many as errors)
    that both name, and of two that flag Cohen's kappa."""
    import pandas as pd
    from sklearn.metrics import cohen_kappa_score

    rows = []
    for name, tables in found.items():
        names = detector_names(tables)
        each = []
        for table in tables:
            scores = table[names].apply(lambda column: ranked_first(column.to_numpy(dtype=float)))
            n = int((table["error"] != RIGHT).sum())
            top = {one: set(np.argsort(-scores[one].to_numpy(), kind="stable")[:n]) for one in names}
            flags = [one for one in names if set(table[one].dropna()) <= {0.0, 1.0}]
            ranks = scores.corr(method="spearman")
            each.append({(one, other): (ranks.loc[one, other], len(top[one] & top[other]) / n,
                                        cohen_kappa_score(scores[one] == 1, scores[other] == 1)
                                        if one in flags and other in flags else np.nan)
                         for place, one in enumerate(names) for other in names[place + 1 :]})
        for pair in each[0]:
            values = np.array([one[pair] for one in each], dtype=float)
            rows.append({"set": name, "detector": pair[0], "other": pair[1],
                         **dict(zip(("spearman", "top_overlap", "kappa"), values.mean(axis=0), strict=True))})
    return pd.DataFrame(rows)


def calibration_table(found: dict[str, list[pd.DataFrame]]) -> pd.DataFrame:
    """Of the examples whose suspicion (by other sets, where there are any) lies in a tenth of 0..1: its mean, and the
    share that is wrong."""
    import pandas as pd

    rows = []
    for name, tables in found.items():
        table, of = pd.concat(tables), HELD_OUT if HELD_OUT in tables[0] else SUSPICION
        for place, among in table.groupby(np.minimum((10 * table[of]).astype(int), 9)):
            rows.append({"set": name, "from": place / 10, "to": (place + 1) / 10, "n": len(among),
                         "suspicion": among[of].mean(), "wrong": (among["error"] != RIGHT).mean()})
    return pd.DataFrame(rows)


def review_table(jobs: Sequence[Job], draws: int = 20) -> pd.DataFrame:
    """Errors found by a reviewer who goes by the truth, as deep as REVIEW_DEPTHS: in the fixed order of suspicion, and
    ranked anew after every ten decisions, by what the detectors of suspicion teach (``learned``) and by all that there
    are (``learned_all``); a row for each of ``draws`` random pools of 80 % of the examples."""
    import pandas as pd

    from datamap.detection.base import score_all
    from datamap.detection.known import detectors_needed
    from datamap.detection.review import features, simulate_review
    from datamap.detection.suspicion import suspicion

    prepared = []
    for job in jobs:
        evidence = evidence_of(job)
        scores, truth = score_all(evidence), known_errors(job, evidence.split)
        needed = [name for name in detectors_needed(evidence) if name in scores]
        suspected = suspicion(evidence, scores).probability
        looked_at = {"learned": features(evidence, scores[needed], suspected),
                     "learned_all": features(evidence, scores, suspected)}
        errors = np.array([truth.get(example, "") for example in evidence.split.ids])
        prepared.append((looked_at, np.flatnonzero(errors != ""), errors != RIGHT))
    rows = []
    for draw in range(draws):
        looked_at, pool, wrong = prepared[draw % len(prepared)]
        rng = np.random.default_rng(draw)
        pool = np.sort(rng.choice(pool, round(0.8 * len(pool)), replace=False))
        ways = [(name, each, 10) for name, each in looked_at.items()] + [("fixed", looked_at["learned"], None)]
        found = {name: simulate_review(each.rows(pool), wrong[pool], depth=max(REVIEW_DEPTHS), every=every, seed=draw)
                 for name, each, every in ways}
        for depth in REVIEW_DEPTHS:
            row = {"draw": draw, "map": draw % len(prepared), "depth": depth, "random": depth * wrong[pool].mean()}
            rows.append(row | {name: int(counts[depth - 1]) for name, counts in found.items()})
    return pd.DataFrame(rows)


# --- suspicion -----------------------------------------------------------------------------------------------------


def kind_of_set(name: str) -> str:
    return "qa" if SETS[name].task == "qa" else "labels"


def is_planted(name: str) -> bool:
    return not SETS[name].truth.endswith(".csv")


def inputs_of(table: pd.DataFrame, kind: str, parts: tuple[str, ...]) -> np.ndarray:
    from datamap.detection.suspicion import term_values, terms_of

    return term_values(table, terms_of(kind, parts), kind)


def fitted(found: dict[str, list[pd.DataFrame]], kind: str, parts: tuple[str, ...]) -> dict[str, Any] | None:
    """Weights of 0 and more from the planted errors of these sets, each set with the same say; None without one."""
    from scipy.optimize import minimize

    from datamap.detection.suspicion import sigmoid, terms_of

    terms, inputs, wrong, weight = terms_of(kind, parts), [], [], []
    for name, tables in found.items():
        if kind_of_set(name) == kind and is_planted(name):
            for table in tables:
                is_known = table["error"].notna().to_numpy()
                inputs.append(inputs_of(table, kind, parts)[is_known])
                wrong.append((known(table)["error"] != RIGHT).to_numpy(dtype=float))
                weight.append(np.full(is_known.sum(), 1 / (is_known.sum() * len(tables))))
    if not inputs:
        return None
    x, y, w = np.concatenate(inputs), np.concatenate(wrong), np.concatenate(weight)
    x, w = np.column_stack([x, np.ones(len(x))]), w / w.sum()

    def objective(beta: np.ndarray) -> tuple[float, np.ndarray]:
        p, penalty = sigmoid(x @ beta), np.append(np.full(len(terms), 1e-3), 0)
        loss = -(w * (y * np.log(p + 1e-12) + (1 - y) * np.log(1 - p + 1e-12))).sum() + (penalty * beta**2).sum() / 2
        return loss, x.T @ (w * (p - y)) + penalty * beta

    bounds = [(0, None)] * len(terms) + [(None, None)]
    beta = minimize(objective, np.zeros(x.shape[1]), jac=True, bounds=bounds, method="L-BFGS-B").x
    rounded = [round(value, 4) for value in beta.tolist()]
    return {"terms": [term.detector for term in terms], "weights": rounded[:-1], "intercept": rounded[-1]}


def every_combination(found: dict[str, list[pd.DataFrame]], kind: str) -> dict[str, Any]:
    from itertools import combinations

    from datamap.detection.suspicion import MAP, PARTS

    chosen = {}
    for size in range(len(PARTS) + 1):
        for parts in combinations(PARTS, size):
            if (weights := fitted(found, kind, parts)) is not None:
                chosen["+".join((MAP, *parts))] = weights
    return chosen


def with_suspicion(found: dict[str, list[pd.DataFrame]]) -> dict[str, list[pd.DataFrame]]:
    """Two more columns: suspicion from the weights as they are fitted on all planted sets, and, to be judged by, from
    weights fitted without the very set (and others of the same texts). Of what comes back the truth is known."""
    from datamap.detection.suspicion import PARTS, linear, sigmoid

    result = {}
    for name, tables in found.items():
        kind = kind_of_set(name)
        others = {other: each for other, each in found.items() if SETS[other].dataset != SETS[name].dataset}
        columns = {SUSPICION: fitted(found, kind, tuple(PARTS)), HELD_OUT: fitted(others, kind, tuple(PARTS))}
        result[name] = [known(table.assign(**{column: sigmoid(linear(inputs_of(table, kind, tuple(PARTS)), weights))
                                              for column, weights in columns.items() if weights}))
                        for table in tables]
    return result


# --- pictures ------------------------------------------------------------------------------------------------------


def plot_detectors(path: Path, table: pd.DataFrame) -> None:
    """Average precision of the detectors that find something, set by set, suspicion on top, then the best."""
    names = list(table["set"].unique())
    gain = table["average_precision"] * table["examples"] / table["errors"]
    order = gain.groupby(table["detector"]).mean().sort_values()
    order = order[order >= LEAST_GAIN]
    ours = [name for name in (HELD_OUT, SUSPICION) if name in order.index]
    order = order[[*(name for name in order.index if name not in ours), *ours]]
    table = table[table["detector"].isin(order.index)]
    figure, axes = new_figure(1.7 * len(names) + 2.2, 0.19 * len(order) + 1.4, 1, len(names), sharey=True)
    rows = {detector: place for place, detector in enumerate(order.index)}
    for axis, name in zip(np.atleast_1d(axes), names, strict=True):
        part = table[table["set"] == name]
        share = part["errors"].iloc[0] / part["examples"].iloc[0]
        axis.axvline(share, color=LIGHT_GREY, zorder=0)
        for row in part.itertuples():
            color = COLORS[1] if row.detector in (SUSPICION, HELD_OUT) else COLORS[0]
            axis.plot([row.low, row.high], [rows[row.detector]] * 2, color=color, lw=1)
            axis.plot(row.average_precision, rows[row.detector], "o", color=color, markersize=3)
        axis.set(title=f"{name}\n{part['errors'].iloc[0]:,} of {part['examples'].iloc[0]:,} wrong", xlim=(0, 1.02))
        axis.title.set_fontsize(8)
        axis.tick_params(labelsize=7)
        axis.set_xlabel("average precision", fontsize=8)
    first = np.atleast_1d(axes)[0]
    first.set_yticks(range(len(order)), [name.replace("_", " ") for name in order.index], fontsize=7)
    first.set_ylim(-0.8, len(order) - 0.2)
    seeds = " or ".join(map(str, sorted(table["seeds"].unique())))
    save_figure(figure, path, "How well each detector ranks wrong examples first",
                f"Bars: 95 % intervals over seeds ({seeds}) and examples. Grey: a random order. Left out: detectors "
                f"that are on average less than {LEAST_GAIN:g} times as good")


def plot_calibration(path: Path, table: pd.DataFrame) -> None:
    figure, axis = new_figure(5.2, 4.6)
    axis.plot([0, 1], [0, 1], color=LIGHT_GREY, zorder=0)
    for place, (name, part) in enumerate(table[table["n"] >= 20].groupby("set", sort=False)):
        axis.plot(part["suspicion"], part["wrong"], marker="osD^vPX*"[place % 8], markersize=4, lw=1,
                  color=COLORS[place % len(COLORS)], label=name)
    axis.set(xlabel="suspicion (mean of each tenth)", ylabel="share that is wrong", xlim=(0, 1), ylim=(0, 1))
    axis.legend(fontsize=8, frameon=False)
    save_figure(figure, path, "Of the examples at this suspicion, how many are wrong?",
                "Weights fitted on other sets; tenths with at least 20 examples; all seeds together")


# --- script --------------------------------------------------------------------------------------------------------


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = bench_parser(__doc__, __file__)
    parser.add_argument("--data_dir", default=".", help="holds the sets that are not built in")
    parser.add_list("--sets", choices=list(SETS), default=list(SETS), help="which", metavar="SET")
    parser.add_list("--seeds", type=seed_number, default=[0, 1, 2, 3, 4], help="of training and planting")
    parser.add_argument("--workers", type=positive_int, default=1, help="trainings at a time")
    parser.add_argument("--max_examples", type=positive_int, metavar="N", help="of each set (default: its own most)")
    parser.add_argument("--draws", type=positive_int, default=300, help="of the bootstrap")
    parser.add_switch("--fit", help="write the weights of suspicion into datamap/detection/")
    return parser.parse_args(argv)


def jobs_of(args: argparse.Namespace) -> list[Job]:
    jobs = []
    for seed in args.seeds:  # a first seed of every set, then the next
        for name in args.sets:
            about = SETS[name]
            if about.dataset.startswith("demo:") or Path(args.data_dir, about.dataset).exists():
                most = min(filter(None, (about.most, args.max_examples)), default=None)
                place = Path(args.output_dir, "runs", f"{name}-{seed}")
                jobs.append(Job(name, seed, about, place, args.data_dir, most))
            else:
                raise UserError(f"--data_dir {args.data_dir} holds no {about.dataset}; name another, or leave {name} "
                                "out with --sets")
    return jobs


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    import pandas as pd
    from tqdm.auto import tqdm

    args = parse_args(argv)
    jobs, costs = jobs_of(args), []
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // args.workers)))
    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
        for job, seconds in zip(jobs, tqdm(pool.map(carried_out, jobs), total=len(jobs), unit="run", disable=None),
                                strict=True):
            costs.append({"set": job.name, "seed": job.seed, **seconds})
    tables: dict[str, list[pd.DataFrame]] = {}
    for job in jobs:
        text = {"id": str, "error": str, "label": str}
        tables.setdefault(job.name, []).append(pd.read_csv(job.directory / "scores.csv", dtype=text))
    summarise(args, tables, pd.DataFrame(costs))
    if reviewed := [job for job in jobs if job.about.truth.endswith(".csv")]:
        table = review_table(reviewed)
        write_csv(Path(args.output_dir, "review.csv"), table)
        orders = ["random", "fixed", "learned", "learned_all"]
        print(table.groupby("depth")[orders].agg(["mean", "std"]).round(1).to_string())


def summarise(args: argparse.Namespace, tables: dict[str, list[pd.DataFrame]], costs: pd.DataFrame) -> None:
    import datetime

    weights = {kind: every_combination(tables, kind) for kind in ("labels", "qa")}
    if args.fit:
        sets = {name: len(each) for name, each in tables.items() if is_planted(name)}
        fitted_on = {"on": sets, "date": datetime.date.today().isoformat(), "command": "error_detection.py --fit"}
        text = json.dumps({"fitted": fitted_on, **weights}, indent=1)
        (CHECKOUT / "datamap" / "detection" / "suspicion.json").write_text(text + "\n", encoding="utf-8")
    found = with_suspicion(tables)
    table, kinds = figure_table(found, args.draws)
    single = table[~table["detector"].isin([SUSPICION, HELD_OUT])]
    best = {name: str(part.loc[part["average_precision"].idxmax(), "detector"])
            for name, part in single.groupby("set")}
    differences = difference_table(found, best, args.draws)
    calibration = calibration_table(found)
    measures = demo_measures(found["clinical"]) if "clinical" in found else []
    report(args, __file__, {"best_single": best, "seconds": float(costs.drop(columns=["set", "seed"]).sum().sum())},
           measures, enforce=False)
    output = Path(args.output_dir)
    for name, each in {"detectors": table, "kinds": kinds, "differences": differences, "costs": costs,
                       "calibration": calibration, "agreement": agreement_table(found)}.items():
        write_csv(output / f"{name}.csv", each)
    plot_detectors(output / "detectors.png", table)
    plot_calibration(output / "calibration.png", calibration)
    shown = table.sort_values(["set", "average_precision"], ascending=[True, False])
    print(shown[["set", "detector", "average_precision", "low", "high", "auroc"]].to_string(index=False))
    print(differences.to_string(index=False))


if __name__ == "__main__":
    main()
