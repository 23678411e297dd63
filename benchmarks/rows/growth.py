"""How the time of each part grows with the rows: seconds at several sizes, and the exponent of a power through them.

A part is timed in a process of its own at every size. It stops before a size for which a straight line through what it
took so far foresees more than LONGEST seconds, and says so. An exponent of 1 is linear; that of n log n lies between
1.08 and 1.12 over these sizes. The joined table and the suspects are whole processes, whose start weighs at the
smallest size and makes the exponent smaller.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from timing import Found, Measure, Setting, in_own_process, timed

from datamap.core.flags import DEFAULT_SEED
from datamap.core.splits import load_split
from datamap.tasks.registry import get_task
from rows import made, maps, questions, selectors, vectors

LONGEST = 90.0  # seconds of a size
TOLERANCE = 0.05  # of an exponent, for the noise of a clock


class Part(NamedTuple):
    """seconds: of so many rows, with a directory that holds nothing. sizes: that are tried."""

    name: str
    seconds: Callable[[int, str], float]
    sizes: tuple[int, ...] = (10_000, 100_000, 1_000_000)


def windows(rows: int, directory: str) -> float:
    from transformers import AutoTokenizer

    from datamap.training.models import place_of

    tokenizer, task = AutoTokenizer.from_pretrained(place_of("minilm")), get_task("qa")
    data = questions.pairs_of(Path(directory, "pairs.jsonl"), rows, made.QUESTIONS_A_CONTEXT)
    task.features(data.select(range(min(rows, 500))), tokenizer, questions.LENGTH, questions.STRIDE)
    return timed(task.features, data, tokenizer, questions.LENGTH, questions.STRIDE)[0]


def answers(rows: int, _: str) -> float:
    import torch

    torch.set_num_threads(1)
    data = questions.make_windows(rows)
    questions.vectorised(questions.make_windows(400))
    return timed(questions.vectorised, data)[0]


def embeddings(rows: int, directory: str) -> float:
    from datamap.training.models import load_encoder

    made.write_split(Path(directory, "train.jsonl"), "classification", rows)
    split = load_split(f"{directory}/train.jsonl", "train", get_task("classification"))
    model, tokenizer = load_encoder("minilm", no_cuda=True)
    few = dataclasses.replace(split, data=split.data.select(range(min(rows, 32))))
    vectors.embed(few, model, tokenizer, Path(directory, "few.npy"))
    return timed(vectors.embed, split, model, tokenizer, Path(directory, "vectors.npy"))[0]


def rules(rows: int, _: str) -> float:
    from datamap.analysis.error_rules import flag_errors

    columns = maps.ruled_examples(rows)
    flag_errors(*(column[:100] for column in columns))
    return timed(flag_errors, *columns)[0]


def loading(rows: int, directory: str) -> float:
    for size in (50, rows):  # first calls load libraries
        place = Path(directory, str(size))
        place.mkdir(exist_ok=True)
        maps.write_texts(str(place), size)
        found = maps.load_and_filter(str(place))
    return found["loading"] + found["filtering"]


def dynamics(rows: int, directory: str) -> float:
    for size in (50, rows):
        place = Path(directory, str(size))
        place.mkdir(exist_ok=True)
        made.write_epochs(str(place), size, 5)
        found = maps.read_and_measure(str(place))
    return found["computing"] + found["writing"]


def joined(rows: int, directory: str) -> float:
    made.write_table_inputs(directory, "classification", rows)
    return maps.analyse(directory, "classification", "--export_unified", evidence=False).seconds


def suspects(rows: int, directory: str) -> float:
    made.write_artifacts(directory, "nli", rows)
    return maps.analyse(directory, "nli", "--find_errors").seconds


def clusters(rows: int, _: str) -> float:
    from datamap.analysis import clusters as stage

    values = made.blobs(rows, 50, 0.0, np.random.default_rng(DEFAULT_SEED))
    stage.cluster(values[:500], 15, None, "euclidean", 50_000, DEFAULT_SEED)
    return timed(stage.cluster, values, 15, None, "euclidean", 50_000, DEFAULT_SEED)[0]


PARTS = (
    Part("windows of QA pairs (row 5)", windows, (3000, 10_000, 30_000, 100_000, 1_000_000)),
    Part("answers and scores of windows (row 6)", answers, (10_000, 30_000, 100_000)),  # 1 M are 7 GB of logits
    Part("embeddings (row 7)", embeddings, (1000, 3000, 10_000, 100_000)), Part("error rules (row 8)", rules),
    Part("loading and filtering (row 9)", loading), Part("dynamics of 5 epochs (row 10)", dynamics),
    Part("the joined table (row 10)", joined),
    Part("clusters (row 11)", clusters, (1000, 3000, 10_000, 30_000, 100_000)),
    Part("suspects, of the chain (row 13)", suspects, (10_000, 30_000, 100_000)),
)


def grow(part: Part, setting: Setting) -> tuple[list[int], list[float], float | None]:
    """Sizes, their seconds, and the seconds foreseen of a size that was left out."""
    sizes: list[int] = []
    seconds: list[float] = []
    for size in (60, 200) if setting.quick else part.sizes:
        foreseen = seconds[-1] * size / sizes[-1] if sizes else 0.0
        if foreseen > LONGEST:
            return sizes, seconds, foreseen
        place = setting.output(f"{part.seconds.__name__}-{size}")
        sizes.append(size)
        seconds.append(part.seconds(size, str(place)) if setting.quick
                       else in_own_process(part.seconds, size, str(place)))
        shutil.rmtree(place)
    return sizes, seconds, None


def exponent(sizes: list[int], seconds: list[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def growth(setting: Setting) -> Found:
    measures, notes, details = [], [], {}
    for part in PARTS:
        sizes, seconds, foreseen = grow(part, setting)
        details[part.name] = {"n": sizes, "seconds": seconds}
        span = f"{part.name}, {sizes[0]:,} to {sizes[-1]:,}"
        if foreseen:
            notes.append(f"{part.name}: stops at {sizes[-1]:,} rows, the next size would take about {foreseen:,.0f} s")
        n_log_n = exponent(sizes, [n * np.log(n) for n in sizes]) if len(sizes) > 1 else None
        measures.append(Measure(f"{span}: seconds of the last", seconds[-1:], " s"))
        if n_log_n:
            measures.append(Measure(f"{span}: exponent", [exponent(sizes, seconds)],
                                    most=None if part.seconds is clusters else n_log_n + TOLERANCE))
    sizes = [100, 200] if setting.quick else [10_000, 100_000, 1_000_000]
    chosen = selectors.scaling(setting, sizes)
    for device, found in chosen.details.items():
        for name, one in found.items():
            measures.append(Measure(f"{name}, {device}, {sizes[0]:,} to {sizes[-1]:,}: exponent", [one["exponent"]],
                                    most=exponent(sizes, [n * np.log(n) for n in sizes]) + TOLERANCE))
    return Found([*measures, *chosen.measures], notes, {**details, "selectors": chosen.details}, chosen.pictures)
