"""Seconds from finished artifacts to suspects.csv, to report.html, and to that page in use, for many examples.

Makes up a split and all its artifacts (data map, out-of-fold models, embeddings, clusters, predictions), then runs
analyze_dataset.py --find_errors and --report on them, and opens the page in a headless Chromium. Prints a table and
writes bench_suspects.json; exit status 1 when a bound is broken. Linux only.

    python benchmarks/bench_suspects.py
    python benchmarks/bench_suspects.py --tasks nli --examples 2000
"""

from __future__ import annotations

import argparse
import logging
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from timing import Clock, Measure, bench_parser, in_own_process, report

from datamap.core.errors import command_line
from datamap.core.files import write_csv, write_json, write_jsonl
from datamap.core.flags import DEFAULT_SEED, positive_int
from datamap.core.places import CHECKOUT
from datamap.report.browser import CHROMIUM, Browser

EXAMPLES = 100_000
SUSPECTS_BOUND, PAGE_BOUND, OPENED_BOUND, SIZE_BOUND = 60.0, 20.0, 8.0, 40.0  # seconds three times, MB
EPOCHS, DIMENSIONS, WORDS, QUESTIONS_A_CONTEXT = 5, 384, 20_000, 5
LABELS = ("contradiction", "entailment", "neutral")
# Types into the search field and waits until the table has answered and the window is painted.
SEARCHED = """(async () => {
  const field = document.getElementById("search");
  field.value = "w1";
  field.dispatchEvent(new Event("input"));
  await new Promise((done) => setTimeout(done, 200));
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
})()"""

logger = logging.getLogger(__name__)


def sentence(rng: np.random.Generator, low: int, high: int) -> str:
    """Words w1, w2, ... as often as words of a language are (Zipf)."""
    return " ".join(f"w{word % WORDS}" for word in rng.zipf(1.2, rng.integers(low, high)))


def made_rows(task: str, examples: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    ids = [rng.bytes(8).hex() for _ in range(examples)]
    if task == "nli":
        return [{"id": each, "premise": sentence(rng, 8, 25), "hypothesis": sentence(rng, 4, 12),
                 "label": LABELS[rng.integers(3)]} for each in ids]
    rows = []
    for place, each in enumerate(ids):
        if place % QUESTIONS_A_CONTEXT == 0:
            context = sentence(rng, 60, 120)
        words = context.split()
        first = int(rng.integers(len(words) - 6))
        answer = " ".join(words[first : first + int(rng.integers(1, 6))])
        start = len(" ".join(words[:first])) + (first > 0)
        rows.append({"id": each, "question": f"what {sentence(rng, 4, 10)}?", "context": context,
                     "answers": {"text": [answer], "answer_start": [start]}})
    return rows


def make_artifacts(directory: str, task: str, examples: int) -> None:
    """train.jsonl, map/ with out_of_fold.csv, embeddings/, clusters/, predictions/."""
    import pandas as pd

    from datamap.cartography.dynamics import write_dynamics
    from datamap.cartography.maps import write_cartography
    from datamap.cartography.metrics import compute_metrics

    at, rng = Path(directory), np.random.default_rng(DEFAULT_SEED)
    rows = made_rows(task, examples, rng)
    ids = [row["id"] for row in rows]
    write_jsonl(at / "train.jsonl", rows)
    for name in ("map", "embeddings", "clusters", "predictions"):
        (at / name).mkdir()
    difficulty, epochs = rng.normal(0, 2, examples), []
    for epoch in range(1, EPOCHS + 1):
        margins = (6 * epoch / EPOCHS - difficulty + rng.normal(0, 1, examples)).astype(np.float32)
        p = 1 / (1 + np.exp(-margins))
        columns = {"confidence": p, "correct": margins > 0, "loss": -np.log(p), "aum": margins, "el2n": 1 - p}
        if task == "qa":
            columns |= {"start_confidence": p, "end_confidence": p}
        write_dynamics(at / "map", epoch, ids, columns)
        epochs.append({"epoch": epoch, "id": ids, **columns})
    metrics = compute_metrics(epochs)
    write_cartography(at / "map", metrics)
    held_out = metrics.assign(fold=rng.integers(1, 4, examples))
    if task == "nli":
        shares = rng.dirichlet(np.ones(3), examples)
        held_out = held_out.assign(predicted_label=np.array(LABELS)[shares.argmax(axis=1)],
                                   **{f"probability_{name}": shares[:, place] for place, name in enumerate(LABELS)})
        said = [{"predicted_label": LABELS[each]} for each in rng.integers(0, 3, examples)]
    else:
        answers = [row["answers"]["text"][0] if rng.random() < 0.7 else row["context"].split()[0] for row in rows]
        held_out = held_out.assign(predicted_answer=answers, span_margin=rng.normal(size=examples))
        said = [{"predicted_answer": answer} for answer in answers]
    write_csv(at / "map" / "out_of_fold.csv", held_out.reset_index())
    write_jsonl(at / "predictions" / "eval_predictions.jsonl",
                [{"id": each, **one} for each, one in zip(ids, said, strict=True)])
    centres = rng.normal(size=(30, DIMENSIONS)).astype(np.float32)
    cluster = rng.integers(0, 30, examples)
    vectors = centres[cluster] + rng.normal(size=(examples, DIMENSIONS)).astype(np.float32)
    np.save(at / "embeddings" / "embeddings.npy", vectors)
    write_json(at / "embeddings" / "embeddings_metadata.json", {"ids": ids})
    write_csv(at / "clusters" / "cluster_assignments.csv", pd.DataFrame({
        "id": ids, "cluster": np.where(rng.random(examples) < 0.2, -1, cluster), "dim1": vectors[:, 0],
        "dim2": vectors[:, 1], "cluster_probability": rng.random(examples), "outlier_score": rng.random(examples),
    }))


def run_script(directory: str, task: str, flag: str) -> dict[str, float]:
    """Of the whole process, from its start to its end: seconds, CPU seconds of all cores (which other programs disturb
    less), peak memory in GB; of the page also its size in MB."""
    at = Path(directory)
    command = [
        sys.executable, str(CHECKOUT / "analyze_dataset.py"), flag, "--task", task, "--dataset",
        str(at / "train.jsonl"), "--cartography_dir", str(at / "map"), "--embedding_dir", str(at / "embeddings"),
        "--cluster_dir", str(at / "clusters"), "--predictions", str(at / "predictions"), "--output_dir",
        str(at / flag.strip("-")),
    ]
    with Clock() as clock:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    page = at / "report" / "report.html"
    return {"seconds": clock.seconds, "cpu": used.ru_utime + used.ru_stime, "gb": used.ru_maxrss * 1024 / 1e9,
            "mb": page.stat().st_size / 1e6 if page.exists() else 0.0}


def open_page(directory: str) -> float:
    """Seconds from the navigation of a fresh Chromium to maps and table drawn, and the first search answered."""
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(Path(profile))
        try:
            with Clock() as clock:
                browser.open(Path(directory, "report", "report.html"))
                browser.run(SEARCHED)
            if browser.errors:
                raise RuntimeError(f"the page has errors: {browser.errors}")
        finally:
            browser.close()
    return clock.seconds


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = bench_parser(__doc__, __file__)
    parser.add_list("--tasks", choices=["nli", "qa"], default=["nli", "qa"], help="kinds of data", metavar="TASK")
    parser.add_argument("--examples", type=positive_int, default=EXAMPLES, help="of each")
    parser.add_argument("--rounds", type=positive_int, default=1, metavar="N", help="how often each is measured")
    return parser.parse_args(argv)


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if CHROMIUM is None:
        logger.warning("no Chromium is installed (apt-get install chromium): how long the page takes to open is left "
                       "out")
    measures, share = [], max(1.0, args.examples / EXAMPLES)
    for task in args.tasks:
        with tempfile.TemporaryDirectory() as directory:
            in_own_process(make_artifacts, directory, task, args.examples)
            suspects, page = ([in_own_process(run_script, directory, task, flag) for _ in range(args.rounds)]
                              for flag in ("--find_errors", "--report"))
            opened = [open_page(directory) for _ in range(args.rounds if CHROMIUM else 0)]
        of = f"{args.examples:,} {task} examples"
        for what, rounds, bound in (("suspects.csv", suspects, SUSPECTS_BOUND), ("report.html", page, PAGE_BOUND)):
            found = {key: [each[key] for each in rounds] for key in rounds[0]}
            measures += [
                Measure(f"{what} of {of}", found["seconds"], " s", most=bound * share),
                Measure("its CPU time", found["cpu"], " s"), Measure("its peak memory", found["gb"], " GB"),
            ]
        measures.append(Measure("its size", [each["mb"] for each in page], " MB", most=SIZE_BOUND))
        if opened:
            measures.append(Measure("until it can be used in Chromium", opened, " s", most=OPENED_BOUND))
    report(args, __file__, {}, measures)


if __name__ == "__main__":
    main()
