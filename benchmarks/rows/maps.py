"""What is done once an example without a model: error rules, loading and filtering, dynamics and tables, suspects."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from timing import Clock, Found, Measure, Process, Setting, in_own_process, in_turn, memory, ratio, script, timed

from datamap.core.flags import DEFAULT_SEED
from datamap.demo import builtin
from rows import made

# --- error rules -----------------------------------------------------------------------------------------------------


def ruled_examples(count: int) -> tuple[list[str], list[str], list[str], list[str]]:
    """Questions, contexts of two notes, answers and predictions (spans of 1 to 15 words, often overlapping)."""
    rng = np.random.default_rng(DEFAULT_SEED)
    notes = builtin.generate("clinical", "train")
    questions, contexts, answers, predictions = [], [], [], []
    for first, second in rng.integers(len(notes), size=(count, 2)):
        contexts.append(f"{notes[first]['context']} {notes[second]['context']}")
        words = contexts[-1].split(" ")
        start, length, shift = int(rng.integers(len(words) - 15)), int(rng.integers(1, 16)), int(rng.integers(4))
        questions.append(notes[first]["question"])
        answers.append(" ".join(words[start : start + length]))
        predictions.append(" ".join(words[start + shift : start + length + shift // 2]))
    return questions, contexts, answers, predictions


def rules_by_row(columns: tuple[list[str], ...]) -> Any:
    """The nine rules as they are commonly written: a function of a row for each rule, applied to the rows of a table,
    which takes what it needs of the texts anew. What counts as a word, a date or a boundary is ours."""
    import pandas as pd

    from datamap.analysis import error_rules as ours
    from datamap.tasks.questions import STARTS_LIKE_A_QUESTION, fold

    def overlap(left: str, right: str) -> float:
        one, other = (set(ours._content_words(fold(text))) for text in (left, right))
        return len(one & other) / len(one | other) if one and other else 0.0

    def gains(row: Any) -> bool:
        before, after = overlap(row.answer, row.question), overlap(row.prediction, row.question)
        return after - before > 0.1 + 1e-12

    frame = pd.DataFrame(dict(zip(("question", "context", "answer", "prediction"), columns, strict=True)))
    threshold = ours.length_threshold(np.array(frame.apply(lambda row: len(row.answer.split()), axis=1)))
    rules = (
        lambda row: len(row.answer.split()) > threshold,
        lambda row: ours._has_clauses(row.answer),
        lambda row: bool(row.answer) and overlap(row.answer, row.question) < 0.05,
        lambda row: fold(row.prediction) in fold(row.answer) and gains(row),
        lambda row: bool(row.answer) and ours._qtype_mismatch(fold(row.question), row.answer),
        lambda row: bool(row.answer) and ours._occurs_again(fold(row.answer), fold(row.context)),
        lambda row: ours._BAD_BOUNDARY.search(row.answer) is not None,
        gains,
        lambda row: STARTS_LIKE_A_QUESTION.match(fold(row.question)) is None,
    )
    return pd.DataFrame({name: frame.apply(rule, axis=1) for name, rule in zip(ours.RULES, rules, strict=True)})


def rules(setting: Setting) -> Found:
    from datamap.analysis.error_rules import RULES, flag_errors

    count = setting.size(100_000, 300)
    part = count // setting.size(10, 1)  # for the rows one by one, of which nothing is shared
    columns = ruled_examples(count)
    few = tuple(column[:part] for column in columns)
    flag_errors(*few), rules_by_row(few)  # first calls compile patterns
    ours, theirs = in_turn(setting.size(3, 1), lambda _: timed(flag_errors, *columns)[0],
                           lambda _: timed(rules_by_row, few)[0] * count / part)
    flags = flag_errors(*columns)
    return Found([Measure(f"nine rules on {count:,} examples", ours, " s"),
                  Measure("row by row (DataFrame.apply), scaled", theirs, " s"),
                  ratio("row by row / ours", theirs, ours, least=10.0)],
                 details={"rates": {rule: float(flags[rule].mean()) for rule in (*RULES, "is_dataset_error")}})


# --- loading and filtering -------------------------------------------------------------------------------------------


def write_texts(directory: str, examples: int) -> int:
    """train.jsonl of short texts and map/; the bytes of the former."""
    at = Path(directory)
    (at / "map").mkdir()
    ids = made.write_split(at / "train.jsonl", "classification", examples)
    made.write_map(at / "map", ids, 2, 1, np.random.default_rng(DEFAULT_SEED))
    return (at / "train.jsonl").stat().st_size


FILTER = {"category": {"categories": ["easy", "ambiguous"]}}


def load_and_filter(directory: str) -> dict[str, float]:
    from datamap.analysis.filter_config import apply_filters
    from datamap.core.splits import load_split
    from datamap.tasks.registry import get_task

    config = {"category": {**FILTER["category"], "metrics_path": f"{directory}/map"}}
    with Clock() as loading:
        split = load_split(f"{directory}/train.jsonl", "train", get_task("classification"))
    with Clock() as filtering:
        kept = apply_filters(split.data, config)
    return {"loading": loading.seconds, "filtering": filtering.seconds, "gb": memory("VmHWM") / 1e9, "kept": len(kept)}


def pandas_round_trip(directory: str) -> dict[str, float]:
    """The same with pandas: read, join on the id, choose by the category, and back into a dataset."""
    import datasets
    import pandas as pd

    from datamap.core.files import read_json

    with Clock() as loading:
        frame = pd.read_json(f"{directory}/train.jsonl", lines=True, dtype={"id": str})
    with Clock() as filtering:
        metrics = pd.read_csv(f"{directory}/map/cartography_metrics.csv", dtype={"id": str})
        cuts = read_json(Path(directory, "map", "thresholds.json"))
        joined = frame.merge(metrics, on="id", how="left")
        hard = (joined["variability"] <= cuts["variability"]) & (joined["confidence"] < cuts["confidence"])
        kept = datasets.Dataset.from_pandas(joined.loc[~hard, frame.columns], preserve_index=False)
    return {"loading": loading.seconds, "filtering": filtering.seconds, "gb": memory("VmHWM") / 1e9, "kept": len(kept)}


def loading(setting: Setting) -> Found:
    examples = setting.size(1_000_000, 500)
    directory = str(setting.output("texts"))
    size = in_own_process(write_texts, directory, examples)
    sides = in_turn(setting.size(2, 1), *(lambda _, side=side: in_own_process(side, directory)
                                          for side in (load_and_filter, pandas_round_trip)))
    ours, theirs = ({name: [one[name] for one in side] for name in side[0]} for side in sides)
    if ours["kept"] != theirs["kept"]:
        raise RuntimeError(f"{ours['kept'][0]} examples are kept, by pandas {theirs['kept'][0]}")
    return Found([
        Measure(f"loading {examples:,} texts ({size / 1e6:.0f} MB)", ours["loading"], " s", most=5.0),
        Measure("filtering them by category", ours["filtering"], " s", most=2.0),
        Measure("peak memory of both", ours["gb"], " GB", most=1.0),
        Measure("pandas: loading", theirs["loading"], " s"), Measure("pandas: filtering", theirs["filtering"], " s"),
        Measure("pandas: peak memory", theirs["gb"], " GB"),
        ratio("pandas / ours, loading", theirs["loading"], ours["loading"]),
        ratio("pandas / ours, filtering", theirs["filtering"], ours["filtering"]),
    ])


# --- dynamics and the joined table -----------------------------------------------------------------------------------


def read_and_measure(directory: str) -> dict[str, float]:
    """Dynamics -> metrics -> files, as the end of a training does."""
    from datamap.cartography.dynamics import read_dynamics
    from datamap.cartography.maps import write_cartography
    from datamap.cartography.metrics import compute_metrics

    with Clock() as computing:
        metrics = compute_metrics(read_dynamics(directory))
    with Clock() as writing:
        write_cartography(directory, metrics)
    return {"computing": computing.seconds, "writing": writing.seconds, "gb": memory("VmHWM") / 1e9}


def analyse(directory: str, task: str, flag: str, evidence: bool = True) -> Process:
    """A stage of analyze_dataset.py in a process of its own, from its start to its end."""
    at = Path(directory)
    more = [f"--embedding_dir={at / 'embeddings'}", f"--predictions={at / 'predictions'}"] if evidence else []
    return script("analyze_dataset.py", flag, f"--task={task}", f"--dataset={at / 'train.jsonl'}",
                  f"--cartography_dir={at / 'map'}", f"--cluster_dir={at / 'clusters'}",
                  f"--output_dir={at / flag.strip('-')}", *more)


def dynamics(setting: Setting) -> Found:
    examples, epochs = setting.size(1_000_000, 500), setting.size(10, 3)
    recorded, tables = str(setting.output("dynamics")), str(setting.output("tables"))
    # A process begins with the peak memory of the one that started it, so writing has a process of its own too.
    size = in_own_process(made.write_epochs, recorded, examples, epochs)
    in_own_process(made.write_table_inputs, tables, "classification", examples)
    sides: list[Callable[[int], Any]] = [
        lambda _: in_own_process(read_and_measure, recorded),
        lambda _: analyse(tables, "classification", "--export_unified", evidence=False),
    ]
    maps, joined = in_turn(setting.size(2, 1), *sides)
    return Found([
        Measure(f"{examples:,} examples, {epochs} epochs: metrics", [one["computing"] for one in maps], " s"),
        Measure("CSV, JSON and picture", [one["writing"] for one in maps], " s"),
        Measure("both", [one["computing"] + one["writing"] for one in maps], " s", most=12.0),
        Measure("peak memory", [one["gb"] for one in maps], " GB", most=1.0),
        Measure("bytes an example and epoch in the files", [size / (examples * epochs)], most=120.0),
        Measure("the joined table of as many texts", [one.seconds for one in joined], " s", most=25.0),
        Measure("its peak memory", [one.peak_gb for one in joined], " GB", most=1.5),
    ])


# --- suspects --------------------------------------------------------------------------------------------------------


# Types into the search field and waits until the table has answered and the window is painted.
SEARCHED = """(async () => {
  const field = document.getElementById("search");
  field.value = "w1";
  field.dispatchEvent(new Event("input"));
  await new Promise((done) => setTimeout(done, 200));
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
})()"""


def open_page(page: Path, profile: Path) -> float:
    """Seconds from the navigation of a fresh Chromium to maps and table drawn, and the first search answered."""
    from datamap.report.browser import Browser

    browser = Browser(profile)
    try:
        with Clock() as clock:
            browser.open(page)
            browser.run(SEARCHED)
        if browser.errors:
            raise RuntimeError(f"the page has errors: {browser.errors}")
    finally:
        browser.close()
    return clock.seconds


def stage_of_map(directory: str, task: str) -> float:
    """Seconds of the page where one command makes suspects.csv and it, which reads and imports once."""
    at = Path(directory)
    made_already = {"cartography_dir": "map", "embedding_dir": "embeddings", "cluster_dir": "clusters",
                    "predictions": "predictions"}
    said = script("map_dataset.py", f"--task={task}", f"--dataset={at / 'train.jsonl'}",
                  *(f"--{flag}={at / name}" for flag, name in made_already.items()),
                  "--skip=samples,integrated,unified", f"--output_dir={at / 'mapped'}").output
    page = re.search(r"^page +(\d+) s ", said, re.MULTILINE)
    if page is None:
        raise RuntimeError(f"map_dataset.py made no page: {said.strip().splitlines()[-1:]}")
    return float(page[1])


def suspects(setting: Setting) -> Found:
    """From finished artifacts to suspects.csv, to report.html and to that page in use, with every kind of evidence."""
    from datamap.report.browser import CHROMIUM

    measures, examples = [], setting.size(100_000, 300)
    for task in ("nli", "qa"):
        directory = str(setting.output(task))
        in_own_process(made.write_artifacts, directory, task, examples)
        for name, flag, most in (("suspects.csv", "--find_errors", 60.0), ("report.html", "--report", 20.0)):
            found = analyse(directory, task, flag)
            measures += [Measure(f"{task}: {name} of {examples:,} examples", [found.seconds], " s", most=most),
                         Measure(f"{task}: its CPU time", [found.cpu_seconds], " s"),
                         Measure(f"{task}: its peak memory", [found.peak_gb], " GB")]
        measures.append(Measure(f"{task}: report.html, as a stage of map_dataset.py", [stage_of_map(directory, task)],
                                " s", most=20.0))
        page = Path(directory, "report", "report.html")
        measures.append(Measure(f"{task}: its size", [page.stat().st_size / 1e6], " MB", most=40.0))
        if CHROMIUM is not None:
            measures.append(Measure(f"{task}: until it can be used in Chromium",
                                    [open_page(page, setting.output(f"profile-{task}"))], " s", most=8.0))
    lacking = "no Chromium is installed (apt-get install chromium): how long the page takes to open is left out"
    return Found(measures, [] if CHROMIUM is not None else [lacking])
