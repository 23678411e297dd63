"""Training dynamics and metrics that tests make up."""

import math

import numpy as np
import pandas as pd

from datamap.cartography.dynamics import write_dynamics

AWKWARD_IDS = ["001", "12e5", "nan", "NA", "None", "1.0", "-1", "true", "a,b", 'say "x"', "naïve/ü", " lead", "0x1F"]
MEANS = ("loss", "aum", "el2n", "start_confidence", "end_confidence")
COLUMNS = ("confidence", "correct", *MEANS)


def make_epochs(count=6, epochs=4, seed=0, ids=None, columns=COLUMNS):
    rng = np.random.default_rng(seed)
    ids = ids or [f"ex-{number}" for number in range(count)]
    for epoch in range(1, epochs + 1):
        values = {name: rng.random(len(ids)) for name in columns}
        right = {"correct": values["correct"] < 0.5} if "correct" in values else {}
        yield {"epoch": epoch, "id": list(ids), **values, **right}


def write_epochs(directory, epochs):
    for epoch in epochs:
        columns = {name: column for name, column in epoch.items() if name not in ("epoch", "id")}
        write_dynamics(directory, epoch["epoch"], epoch["id"], columns)


def metrics_frame(confidence, variability, ids=None):
    index = pd.Index(ids or [f"ex-{number}" for number in range(len(confidence))], name="id", dtype="str")
    return pd.DataFrame({"confidence": confidence, "variability": variability}, index=index, dtype=float)


def slow_metrics(epochs):
    """The formulas, one example at a time, from the list of its (p, correct, other columns)."""
    seen: dict[str, list[dict]] = {}
    for epoch in epochs:
        for row, example in enumerate(epoch["id"]):
            record = {name: column[row] for name, column in epoch.items() if name not in ("epoch", "id")}
            seen.setdefault(example, []).append(record)
    expected = {}
    for example, records in seen.items():
        p = [float(record["confidence"]) for record in records]
        right = [bool(record["correct"]) for record in records]
        mean = math.fsum(p) / len(p)
        expected[example] = {
            "confidence": mean,
            "variability": math.sqrt(math.fsum((value - mean) ** 2 for value in p) / len(p)),
            "correctness": sum(right) / len(right),
            "num_epochs": len(p),
            "forgetting_events": sum(a and not b for a, b in zip(right, right[1:], strict=False)),
            "never_learned": not any(right),
            "aleatoric": math.fsum(value * (1 - value) for value in p) / len(p),
        }
        for name in MEANS:
            if name in records[0]:
                expected[example][name] = math.fsum(float(record[name]) for record in records) / len(p)
    return expected
