"""Finished artifacts that tests make up for a split, and the page made of them."""

from pathlib import Path

import numpy as np
import pandas as pd
from made_dynamics import make_epochs, write_epochs

from datamap.cartography.maps import write_cartography
from datamap.cartography.metrics import compute_metrics
from datamap.core.artifacts import stage
from datamap.core.files import write_csv, write_json, write_jsonl
from datamap.core.splits import Split
from datamap.detection import known
from datamap.detection.suspicion import Suspicion


def by_confidence(evidence, scores) -> Suspicion:
    """In the stead of suspicion, whose weights may change."""
    return Suspicion(1 - np.nan_to_num(evidence.metrics["confidence"].to_numpy(dtype=float), nan=0.5), "the data map")


def write_artifacts(directory: Path, split: Split, epochs: int = 3, seed: int = 0) -> dict[str, str]:
    """A data map, embeddings, clusters and predictions of random numbers; the flags that name them."""
    ids, rng = split.ids, np.random.default_rng(seed)
    places = {name: directory / name for name in ("map", "embeddings", "clusters", "predictions")}
    for place in places.values():
        place.mkdir(parents=True)
    made = list(make_epochs(epochs=epochs, ids=ids, seed=seed))
    write_epochs(places["map"], made)
    write_cartography(places["map"], compute_metrics(made))
    np.save(places["embeddings"] / "embeddings.npy", rng.normal(size=(len(ids), 6)).astype(np.float32))
    write_json(places["embeddings"] / "embeddings_metadata.json", {"ids": ids})
    write_csv(places["clusters"] / "cluster_assignments.csv", pd.DataFrame({
        "id": ids, "cluster": np.arange(len(ids)) % 3 - 1, "dim1": rng.normal(size=len(ids)),
        "dim2": rng.normal(size=len(ids)), "cluster_probability": rng.random(len(ids)),
        "outlier_score": rng.random(len(ids)),
    }))
    readable = split.task.readable(split.data)
    if split.task.name == "qa":
        said = [context.split()[0] if row % 2 else answer
                for row, (context, answer) in enumerate(zip(readable["context"], readable["answer"], strict=True))]
        column = "predicted_answer"
    else:
        names = split.data.features[split.task.label_column].names
        said, column = [names[row % len(names)] for row in range(len(ids))], "predicted_label"
    write_jsonl(places["predictions"] / "eval_predictions.jsonl",
                [{"id": example, column: each} for example, each in zip(ids, said, strict=True)])
    return {"--cartography_dir": str(places["map"]), "--embedding_dir": str(places["embeddings"]),
            "--cluster_dir": str(places["clusters"]), "--predictions": str(places["predictions"])}


def record(flags: dict[str, str], split: Split) -> None:
    """Say beside such artifacts of which split they were made, as the stages do."""
    for flag, place in flags.items():
        with stage(place, {"flag": flag}, owns=(), datasets=[split]):
            pass


def command(split: Split, flags: dict[str, str], output_dir: Path) -> list[str]:
    return ["--report", *(word for pair in flags.items() for word in pair), "--dataset", split.name, "--split",
            split.split, "--task", split.task.name, "--output_dir", str(output_dir)]


def make_page(directory: Path, split: Split, monkeypatch, **flags: str) -> Path:
    """report.html of made-up artifacts."""
    import analyze_dataset

    monkeypatch.setattr(known, "suspicion", by_confidence)
    given = write_artifacts(directory / "made", split)
    analyze_dataset.main(command(split, {**given, **{f"--{name}": value for name, value in flags.items()}},
                                 directory / "report"))
    return directory / "report" / "report.html"
