"""Made-up splits and artifacts, as the stages write them, for rows that need many examples and no model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from datamap.core.files import write_csv, write_json, write_jsonl
from datamap.core.flags import DEFAULT_SEED

LABELS = ("contradiction", "entailment", "neutral")
DIMENSIONS, WORDS, QUESTIONS_A_CONTEXT = 384, 20_000, 5


def sentence(rng: np.random.Generator, low: int, high: int) -> str:
    """Words w1, w2, ... as often as words of a language are (Zipf)."""
    return " ".join(f"w{word % WORDS}" for word in rng.zipf(1.2, rng.integers(low, high)))


def rows_of(
    task: str, examples: int, rng: np.random.Generator, questions_a_context: int = QUESTIONS_A_CONTEXT,
) -> Iterator[dict[str, Any]]:
    context = ""
    for place in range(examples):
        each = rng.bytes(8).hex()
        if task == "classification":
            yield {"id": each, "sentence": sentence(rng, 8, 28), "label": LABELS[rng.integers(3)]}
        elif task == "nli":
            yield {"id": each, "premise": sentence(rng, 8, 25), "hypothesis": sentence(rng, 4, 12),
                   "label": LABELS[rng.integers(3)]}
        else:
            if place % questions_a_context == 0:
                context = sentence(rng, 60, 120)
            words = context.split()
            first = int(rng.integers(len(words) - 6))
            answer = " ".join(words[first : first + int(rng.integers(1, 6))])
            start = len(" ".join(words[:first])) + (first > 0)
            yield {"id": each, "question": f"what {sentence(rng, 4, 10)}?", "context": context,
                   "answers": {"text": [answer], "answer_start": [start]}}


def epochs_of(examples: int, epochs: int, heads: int, rng: np.random.Generator) -> Iterator[dict[str, np.ndarray]]:
    """The columns that are recorded in each epoch: examples of different difficulty whose margins grow with time."""
    difficulty = rng.normal(0.0, 2.0, size=examples)
    for epoch in range(1, epochs + 1):
        noise = rng.normal(0.0, 1.0, size=(heads, examples))
        margins = (6.0 * epoch / epochs - difficulty + noise).astype(np.float32)
        p = 1 / (1 + np.exp(-margins))
        columns = {"confidence": np.sqrt(p.prod(axis=0)) if heads == 2 else p[0], "correct": margins.min(axis=0) > 0,
                   "loss": -np.log(p).mean(axis=0), "aum": margins.mean(axis=0),
                   "el2n": np.float32(2**0.5) * (1 - p).mean(axis=0)}
        yield columns | ({"start_confidence": p[0], "end_confidence": p[1]} if heads == 2 else {})


def write_epochs(directory: str, examples: int, epochs: int, artifact_format: str = "json") -> int:
    """Dynamics of question answering, all seven columns; the bytes written."""
    from datamap.cartography.dynamics import dynamics_file, write_dynamics

    rng = np.random.default_rng(DEFAULT_SEED)
    ids = [rng.bytes(8).hex() for _ in range(examples)]
    for epoch, columns in enumerate(epochs_of(examples, epochs, 2, rng), 1):
        write_dynamics(directory, epoch, ids, columns, artifact_format)
    return sum(dynamics_file(directory, epoch, artifact_format).stat().st_size for epoch in range(1, epochs + 1))


def write_map(directory: Path, ids: list[str], epochs: int, heads: int, rng: np.random.Generator) -> Any:
    """The dynamics and the data map of these examples; their metrics."""
    from datamap.cartography.dynamics import write_dynamics
    from datamap.cartography.maps import write_cartography
    from datamap.cartography.metrics import compute_metrics

    recorded = []
    for epoch, columns in enumerate(epochs_of(len(ids), epochs, heads, rng), 1):
        write_dynamics(directory, epoch, ids, columns)
        recorded.append({"epoch": epoch, "id": ids, **columns})
    metrics = compute_metrics(recorded)
    write_cartography(directory, metrics)
    return metrics


def write_clusters(directory: Path, ids: list[str], rng: np.random.Generator) -> np.ndarray:
    """cluster_assignments.csv and what the stages need of its metadata; the cluster of each example."""
    import pandas as pd

    cluster = np.where(rng.random(len(ids)) < 0.2, -1, rng.integers(0, 30, len(ids)))
    write_csv(directory / "cluster_assignments.csv", pd.DataFrame({
        "id": ids, "cluster": cluster, "dim1": rng.random(len(ids)), "dim2": rng.random(len(ids)),
        "cluster_probability": rng.random(len(ids)), "outlier_score": rng.random(len(ids)),
    }))
    write_json(directory / "cluster_metadata.json", {
        "axes": ["dimension 1", "dimension 2"], "num_clusters": 30, "noise_fraction": float((cluster < 0).mean()),
    })
    return cluster


def write_split(file: Path, task: str, examples: int) -> list[str]:
    """The split as JSON Lines; its ids."""
    ids = []

    def noted() -> Iterator[dict[str, Any]]:
        for row in rows_of(task, examples, np.random.default_rng(DEFAULT_SEED)):
            ids.append(row["id"])
            yield row

    write_jsonl(file, noted())
    return ids


def write_table_inputs(directory: str, task: str, examples: int) -> None:
    """train.jsonl, map/ and clusters/: what the joined table is made of."""
    at, rng = Path(directory), np.random.default_rng(DEFAULT_SEED)
    for name in ("map", "clusters"):
        (at / name).mkdir()
    ids = write_split(at / "train.jsonl", task, examples)
    write_map(at / "map", ids, 2, 2 if task == "qa" else 1, rng)
    write_clusters(at / "clusters", ids, rng)


def write_artifacts(directory: str, task: str, examples: int) -> None:
    """train.jsonl, map/ with out_of_fold.csv, embeddings/, clusters/, predictions/: every kind of evidence."""
    at, rng = Path(directory), np.random.default_rng(DEFAULT_SEED)
    for name in ("map", "embeddings", "clusters", "predictions"):
        (at / name).mkdir()
    rows = list(rows_of(task, examples, rng))
    ids = [row["id"] for row in rows]
    write_jsonl(at / "train.jsonl", rows)
    metrics = write_map(at / "map", ids, 5, 2 if task == "qa" else 1, rng)
    held_out = metrics.assign(fold=rng.integers(1, 4, examples))
    if task == "qa":
        answers = [row["answers"]["text"][0] if rng.random() < 0.7 else row["context"].split()[0] for row in rows]
        held_out = held_out.assign(predicted_answer=answers, span_margin=rng.normal(size=examples))
        said = [{"predicted_answer": answer} for answer in answers]
    else:
        shares = rng.dirichlet(np.ones(3), examples)
        held_out = held_out.assign(predicted_label=np.array(LABELS)[shares.argmax(axis=1)],
                                   **{f"probability_{name}": shares[:, place] for place, name in enumerate(LABELS)})
        said = [{"predicted_label": LABELS[each]} for each in rng.integers(0, 3, examples)]
    write_csv(at / "map" / "out_of_fold.csv", held_out.reset_index())
    write_jsonl(at / "predictions" / "eval_predictions.jsonl",
                ({"id": each, **one} for each, one in zip(ids, said, strict=True)))
    cluster = write_clusters(at / "clusters", ids, rng)
    centres = rng.normal(size=(30, DIMENSIONS)).astype(np.float32)
    np.save(at / "embeddings" / "embeddings.npy",
            centres[cluster] + rng.normal(size=(examples, DIMENSIONS)).astype(np.float32))
    write_json(at / "embeddings" / "embeddings_metadata.json", {"ids": ids})


def blobs(rows: int, dims: int, noise: float, rng: np.random.Generator) -> np.ndarray:
    """(rows, dims): thirty normal clusters of different size and width, and a share of uniform noise."""
    shares = rng.dirichlet(np.full(30, 3.0))
    cluster = rng.choice(30, size=rows, p=shares)
    centres, widths = rng.normal(0, 3, size=(30, dims)), rng.uniform(0.5, 1.5, size=30)
    vectors = centres[cluster] + widths[cluster][:, None] * rng.normal(size=(rows, dims))
    lost = rng.random(rows) < noise
    vectors[lost] = rng.uniform(-9, 9, size=(lost.sum(), dims))
    return vectors
