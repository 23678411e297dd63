"""Long documents: what training on a share of the windows that hold no answer gains, and what it costs.

Each question stands with its paragraph at a place drawn at random among paragraphs of which no question of the split
asks the same, so that more than nine in ten windows hold no answer (some of these may answer it all the same):
questions of policyqa, with which a model goes on that has learnt to read paragraphs alone, and of the built-in notes,
which a small model learns from nothing. It trains on all windows or on a share of the empty ones, with the same seed
in a round; which windows are drawn, their order and dropout differ with the seed. All windows of documents of other
policies or notes are then read for the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from timing import Found, Measure, Setting, in_turn, ratio

from datamap.core.clusters import Clusters
from datamap.core.files import read_jsonl, write_jsonl
from datamap.core.flags import DEFAULT_SEED
from datamap.core.splits import load_split
from datamap.tasks.registry import get_task
from rows.trained import QA_SCORES, quietly, run_of, spread

SHARE = 0.05
LONGEST_ANSWER = 60  # characters, so that an answer fits into a window of 64 tokens
LEARNING = ("--learning_rate=1e-4", "--warmup_steps=0.1")
WINDOWS = ("--max_length=64", "--doc_stride=8")
NO_WORSE = 2.0  # points: a share is no worse where the 95 % interval of its difference lies above minus that


def splits_of(dataset: str) -> dict[str, list[dict[str, Any]]]:
    return {split: list(load_split(dataset, split, get_task("qa")).data) for split in ("train", "validation")}


def short_answers(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["answers"]["text"] and max(map(len, row["answers"]["text"])) <= LONGEST_ANSWER]


def asked_about(row: dict[str, Any]) -> str:
    """Paragraphs that are asked the same may hold another answer; of notes those that are asked the like."""
    return row.get("question_type") or row["question"]


def joined(
    rows: Sequence[dict[str, Any]], whole: Sequence[dict[str, Any]], questions: int, characters: int, seed: int,
) -> Iterator[dict[str, Any]]:
    """So many of the rows, their contexts (``paragraph``) among others of the rows, of which none of the ``whole``
    split asks the same, until they have so many characters."""
    rng = np.random.default_rng(seed)
    asked: dict[str, set[str]] = {}
    for row in whole:
        asked.setdefault(row["context"], set()).add(asked_about(row))
    contexts = list(dict.fromkeys(row["context"] for row in rows))
    for row in (rows[place] for place in rng.permutation(len(rows))[:questions]):
        others, length = [], len(row["context"])
        for other in (contexts[place] for place in rng.permutation(len(contexts))):
            if length >= characters:
                break
            if asked_about(row) not in asked[other]:
                others.append(other)
                length += 1 + len(other)
        own = int(rng.integers(len(others) + 1))
        before = "".join(f"{other} " for other in others[:own])
        starts = [start + len(before) for start in row["answers"]["answer_start"]]
        yield {"id": row["id"], "question": row["question"], "paragraph": row["context"],
               "context": " ".join([*others[:own], row["context"], *others[own:]]),
               "answers": {"text": row["answers"]["text"], "answer_start": starts}}


def windows_of(dataset: Path, model: str) -> dict[float, int]:
    """How many windows of the documents are trained on with each share, 0: those that hold an answer alone. model:
    whose tokenizer cuts them."""
    from datamap.training.arguments import parse_args
    from datamap.training.data import features_of
    from datamap.training.models import load_tokenizer
    from datamap.training.running import with_fewer_empty

    args = parse_args(["--do_train", f"--dataset={dataset}", *WINDOWS])
    split = load_split(str(dataset), "train", get_task("qa"))
    features = features_of(split, load_tokenizer(model), args.max_length, args.doc_stride, "none")
    return {share: len(with_fewer_empty(features, share, DEFAULT_SEED)) for share in (0.0, SHARE, 1.0)}


def empty_windows(setting: Setting) -> Found:
    quietly()
    policies, notes = of_policies(setting), of_notes(setting)
    return Found([*policies.measures, *notes.measures], [*policies.notes, *notes.notes],
                 {"policyqa": policies.details, "notes": notes.details})


def of_policies(setting: Setting) -> Found:
    source = setting.dataset("policyqa", "demo:clinical")
    whole = splits_of(source)
    short = short_answers(whole["train"])
    order = np.random.default_rng(DEFAULT_SEED).permutation(len(short))
    few, paragraphs = setting.size(800, 16), setting.output("paragraphs")
    write_jsonl(paragraphs / "train.jsonl", (short[place] for place in order[:few]))
    documents = write_documents(setting, "policies", [short[place] for place in order[few:]], whole,
                                setting.size(400, 8))

    reader = setting.scratch / "reader"
    run_of(reader, paragraphs, "tiny" if setting.quick else "minilm", "--do_train", "--max_length=128",
           "--doc_stride=16", *LEARNING, f"--num_train_epochs={setting.size(3, 1)}")
    before = run_of(setting.scratch / "before", documents, str(reader), "--do_eval", *WINDOWS)
    found = sides_of(setting, documents, str(reader), *LEARNING, "--num_train_epochs=1")
    return beside_all("policyqa", *found, before)


def of_notes(setting: Setting) -> Found:
    whole = splits_of("demo:clinical")
    documents = write_documents(setting, "notes", short_answers(whole["train"]), whole, setting.size(800, 8))
    found = sides_of(setting, documents, "tiny", "--learning_rate=2e-3", "--warmup_steps=0.1",
                     f"--num_train_epochs={setting.size(4, 1)}")
    return beside_all("notes", *found)


def write_documents(
    setting: Setting, name: str, train: Sequence[dict[str, Any]], whole: dict[str, list[dict[str, Any]]],
    questions: int,
) -> Path:
    documents, characters = setting.output(name), setting.size(2600, 900)
    write_jsonl(documents / "train.jsonl", joined(train, whole["train"], questions, characters, DEFAULT_SEED))
    held_out = whole["validation"]
    write_jsonl(documents / "validation.jsonl", joined(short_answers(held_out), held_out, setting.size(300, 8),
                                                       characters, DEFAULT_SEED + 1))
    return documents


def sides_of(
    setting: Setting, documents: Path, model: str, *flags: str,
) -> tuple[dict[float, list[dict[str, Any]]], dict[float, int], Clusters]:
    """All windows and the share in turn, how many windows that are, and the paragraphs of the questions scored."""
    trained = setting.scratch / "model"

    def side(share: float, number: int) -> dict[str, Any]:
        return run_of(trained, documents, model, "--do_train", "--do_eval", *WINDOWS, *flags,
                      f"--empty_windows={share}", f"--seed={number + 1}")

    sides = in_turn(setting.size(5, 2), *(partial(side, share) for share in (1.0, SHARE)))
    asked = list(read_jsonl(documents / "validation.jsonl"))
    assert all(one["ids"] == [row["id"] for row in asked] for each in sides for one in each)
    return (dict(zip((1.0, SHARE), sides, strict=True)), windows_of(documents, str(trained)),
            Clusters([row["paragraph"] for row in asked]))


def beside_all(
    name: str, sides: dict[float, list[dict[str, Any]]], windows: dict[float, int], clusters: Clusters,
    before: dict[str, Any] | None = None,
) -> Found:
    """The share beside all windows: seconds and windows of the training, and the scores of the same questions, with
    intervals for other seeds and other questions (``multi_bootstrap``), which go together by their paragraph. before:
    what the model scores that goes on; where all windows teach it nothing, a share that is no worse says little."""
    seconds = {share: [one["train_runtime"] for one in each] for share, each in sides.items()}
    scores = {share: {score: 100 * np.stack([one[score] for one in each]) for score in QA_SCORES}
              for share, each in sides.items()}
    measures = [
        Measure(f"{name}: windows that hold no answer", [100 * (1 - windows[0.0] / windows[1.0])], " %", least=90.0),
        Measure(f"{name}: training on all windows", seconds[1.0], " s"),
    ]
    for score in QA_SCORES:
        found = scores[1.0][score].mean(axis=1)
        measures.append(Measure(f"{name}: {score}, all windows", found.tolist(), " %"))
        if before is not None:
            gained = found - 100 * float(before[score].mean())
            measures.append(Measure(f"{name}: {score}, more than before this training", gained.tolist(), " points",
                                    least=0.0))
    faster = ratio(f"{name}: seconds of all windows / of the share {SHARE:g}", seconds[1.0], seconds[SHARE],
                   least=5.0)
    compared = [spread(f"{name}: {score} of the share", scores[SHARE][score], scores[1.0][score], clusters,
                       least=-NO_WORSE) for score in QA_SCORES]
    measures += [faster, Measure(f"{name}: windows of all / of the share", [windows[1.0] / windows[SHARE]], " x"),
                 *(measure for each, _ in compared for measure in each)]
    no_worse = all(measure.keeps for measure in compared[0][0])
    note = (f"{'; '.join(said for _, said in compared)}. {faster.found:.1f} x as fast: "
            f"{'5 x is kept' if faster.keeps else '5 x is not kept'}, and that exact match is no worse (the interval, "
            f"over seeds and {clusters.count:,} paragraphs of {clusters.n:,} questions, lies above "
            f"-{NO_WORSE:g} points) is {'shown' if no_worse else 'not shown'}.")
    return Found(measures, [note], {"windows": windows, "questions": clusters.n, "paragraphs": clusters.count})
