"""Long documents: what training on a share of the windows that hold no answer gains, and what it costs.

Each question of policyqa stands with its paragraph at a place drawn at random among paragraphs of other questions, so
that more than nine in ten windows hold no answer. A model that has learnt to read the paragraphs alone goes on with
the documents, an epoch on all windows and one on each share, with the same seed in a round; which windows are drawn,
their order and dropout differ with the seed. All windows of documents of other policies are then read for the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from timing import Found, Measure, Setting, in_turn, ratio

from datamap.core.clusters import Clusters
from datamap.core.files import write_jsonl
from datamap.core.flags import DEFAULT_SEED
from datamap.core.splits import load_split
from datamap.tasks.registry import get_task
from rows.trained import QA_SCORES, quietly, run_of, spread

SHARES = (0.05, 0.1)
LONGEST_ANSWER = 60  # characters, so that an answer fits into a window of 64 tokens
WINDOWS = ("--max_length=64", "--doc_stride=8")
NO_WORSE = 2.0  # points: a share is no worse where the 95 % interval of its difference lies above minus that


def short_answers(dataset: str, split: str) -> list[dict[str, Any]]:
    data = load_split(dataset, split, get_task("qa")).data
    return [row for row in data if row["answers"]["text"] and max(map(len, row["answers"]["text"])) <= LONGEST_ANSWER]


def joined(rows: Sequence[dict[str, Any]], questions: int, characters: int, seed: int) -> Iterator[dict[str, Any]]:
    """So many of the rows, their contexts (``paragraph``) among others that are not asked the same question, until
    they have so many characters."""
    rng = np.random.default_rng(seed)
    asked: dict[str, set[str]] = {}
    for row in rows:
        asked.setdefault(row["context"], set()).add(row["question"])
    contexts = list(asked)
    for row in (rows[place] for place in rng.permutation(len(rows))[:questions]):
        others, length = [], len(row["context"])
        for other in (contexts[place] for place in rng.permutation(len(contexts))):
            if length >= characters:
                break
            if row["question"] not in asked[other]:
                others.append(other)
                length += 1 + len(other)
        own = int(rng.integers(len(others) + 1))
        before = "".join(f"{other} " for other in others[:own])
        starts = [start + len(before) for start in row["answers"]["answer_start"]]
        yield {"id": row["id"], "question": row["question"], "paragraph": row["context"],
               "context": " ".join([*others[:own], row["context"], *others[own:]]),
               "answers": {"text": row["answers"]["text"], "answer_start": starts}}


def windows_of(dataset: Path, model: str) -> dict[float, int]:
    """How many windows of the documents are trained on with each share, 0: those that hold an answer alone."""
    from datamap.training.arguments import parse_args
    from datamap.training.data import features_of
    from datamap.training.models import load_tokenizer
    from datamap.training.running import with_fewer_empty

    args = parse_args(["--do_train", f"--dataset={dataset}", *WINDOWS])
    split = load_split(str(dataset), "train", get_task("qa"))
    features = features_of(split, load_tokenizer(model), args.max_length, args.doc_stride, "none")
    return {share: len(with_fewer_empty(features, share, DEFAULT_SEED)) for share in (0.0, *SHARES, 1.0)}


def empty_windows(setting: Setting) -> Found:
    quietly()
    source = setting.dataset("policyqa", "demo:clinical")
    rows = {split: short_answers(source, split) for split in ("train", "validation")}
    paragraphs, documents = setting.output("paragraphs"), setting.output("documents")
    few, characters = setting.size(800, 16), setting.size(2600, 900)
    chosen = np.random.default_rng(DEFAULT_SEED).permutation(len(rows["train"]))[:few]
    write_jsonl(paragraphs / "train.jsonl", (rows["train"][place] for place in chosen))
    held_out = list(joined(rows["validation"], setting.size(300, 8), characters, DEFAULT_SEED + 1))
    write_jsonl(documents / "train.jsonl", joined(rows["train"], setting.size(200, 8), characters, DEFAULT_SEED))
    write_jsonl(documents / "validation.jsonl", held_out)

    reader = setting.scratch / "reader"
    run_of(reader, paragraphs, "tiny" if setting.quick else "minilm", "--do_train", "--max_length=128",
           "--doc_stride=16", "--learning_rate=1e-4", "--warmup_steps=0.1",
           f"--num_train_epochs={setting.size(3, 1)}")
    before = run_of(setting.scratch / "before", documents, str(reader), "--do_eval", *WINDOWS)

    def side(share: float, number: int) -> dict[str, Any]:
        return run_of(setting.scratch / "model", documents, str(reader), "--do_train", "--do_eval", *WINDOWS,
                      "--num_train_epochs=1", f"--empty_windows={share}", f"--seed={number + 1}")

    sides = in_turn(setting.size(5, 2), *(partial(side, share) for share in (1.0, *SHARES)))
    assert all(one["ids"] == before["ids"] == [row["id"] for row in held_out] for each in sides for one in each)
    return beside_all(dict(zip((1.0, *SHARES), sides, strict=True)), before, windows_of(documents, str(reader)),
                      Clusters([row["paragraph"] for row in held_out]))


def beside_all(
    sides: dict[float, list[dict[str, Any]]], before: dict[str, Any], windows: dict[float, int], clusters: Clusters,
) -> Found:
    """Each share beside all windows: seconds and windows of the training, and the scores of the same questions, with
    intervals for other seeds and other questions (``multi_bootstrap``), which go together by their paragraph."""
    seconds = {share: [one["train_runtime"] for one in each] for share, each in sides.items()}
    scores = {share: {name: 100 * np.stack([one[name] for one in each]) for name in QA_SCORES}
              for share, each in sides.items()}
    measures = [
        Measure("windows that hold no answer", [100 * (1 - windows[0.0] / windows[1.0])], " %", least=90.0),
        Measure("training on all windows", seconds[1.0], " s"),
        *(Measure(f"{name}, before this training", [100 * float(before[name].mean())], " %") for name in QA_SCORES),
        *(Measure(f"{name}, all windows", scores[1.0][name].mean(axis=1).tolist(), " %") for name in QA_SCORES),
    ]
    notes = [f"Exact match and F1 of {len(before['ids']):,} questions on documents of other policies, all windows "
             "read. No worse is what the interval, over seeds and questions, shows to lose less than "
             f"{NO_WORSE:g} points."]
    for share in [share for share in sides if share != 1.0]:
        what = f"share {share:g}"
        faster = ratio(f"{what}: seconds of all windows / of its own", seconds[1.0], seconds[share], least=5.0)
        compared = [spread(f"{what}: {name}", scores[share][name], scores[1.0][name], clusters, least=-NO_WORSE)
                    for name in QA_SCORES]
        measures += [faster, Measure(f"{what}: windows of all / of its own", [windows[1.0] / windows[share]], " x"),
                     *(measure for each, _ in compared for measure in each)]
        no_worse = all(measure.keeps for measure in compared[0][0])
        notes.append(f"{'; '.join(said for _, said in compared)}. {faster.found:.1f} x as fast: "
                     f"{'5 x is kept' if faster.keeps else '5 x is not kept'}, and that exact match is no worse is "
                     f"{'shown' if no_worse else 'not shown'}.")
    return Found(measures, notes, {"windows": windows, "questions": len(before["ids"]), "paragraphs": clusters.count})
