"""Past a million: dynamics in Parquet to a data map and to filtered rows, the recorder's own costs, and what 100
million and a billion examples need by these measurements (docs/scale.md).

What grows with the examples is taken as a straight line through what the smaller sizes took; how far that line misses
the largest size, which it has not seen, is a figure of the row.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from timing import Clock, Found, Measure, Setting, in_own_process, markdown, memory, script

from rows import made

FORESEEN = (10_000_000, 100_000_000, 1_000_000_000)  # examples of the table in docs/scale.md
BEGINS, ENDS = "<!-- of benchmarks/rows/scale.py: begin -->", "<!-- end -->"
BATCH, POSITIONS = 4096, 8  # of what the recorder is given; what it keeps does not depend on them

# --- a map and its filters -------------------------------------------------------------------------------------------


def write_inputs(directory: str, recorded: str, examples: int, epochs: int) -> int:
    """The dynamics, and a dataset of the examples, their ids and a text, in the library's own format; the bytes of the
    former."""
    import pyarrow as pa

    from datamap.cartography.dynamics import dynamics_file
    from datamap.core.parquet import ids_of, parquet_blocks

    size = made.write_epochs(recorded, examples, epochs, "parquet")
    file, schema = dynamics_file(recorded, 1, "parquet"), pa.schema({"id": pa.string(), "text": pa.string()})
    with pa.OSFile(f"{directory}/train.arrow", "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for block in parquet_blocks(file, ["id"]):
            ids = ids_of(file, block)
            writer.write_table(pa.table({"id": ids, "text": ids}))
    return size


def filter_rows(directory: str, mapped: str) -> dict[str, float]:
    """The rows that are easy or, of the most unstable third, ambiguous."""
    import datasets

    from datamap.analysis.filter_config import apply_filters

    rows = datasets.Dataset.from_file(f"{directory}/train.arrow")
    with Clock() as clock:
        kept = apply_filters(rows, {"category": {"categories": ["easy", "ambiguous"], "metrics_path": mapped},
                                    "ambiguous": {"top_fraction": 0.33}})
    return {"seconds": clock.seconds, "cpu": clock.cpu_seconds, "gb": memory("VmHWM") / 1e9,
            "kept": len(kept) / len(rows)}


def mapped_and_filtered(setting: Setting, examples: int, epochs: int) -> dict[str, float]:
    """Of so many examples: the dynamics made up, the map of them by one command, and the rows filtered by it."""
    home = setting.output(f"of-{examples}")
    recorded, mapped = str(home / "dynamics"), str(home / "map")
    Path(recorded).mkdir()
    size = in_own_process(write_inputs, str(home), recorded, examples, epochs)
    found = script("dataset_cartography.py", f"--cartography_dir={recorded}", f"--output_dir={mapped}",
                   "--artifact_format=parquet")
    metrics = Path(mapped, "cartography_metrics.parquet").stat().st_size
    filtered = in_own_process(filter_rows, str(home), mapped)
    shutil.rmtree(home)
    return {"examples": examples, "seconds": found.seconds, "cpu": found.cpu_seconds, "gb": found.peak_gb,
            "dynamics": size / (examples * epochs), "metrics": metrics / examples,
            **{f"filter_{name}": value for name, value in filtered.items()}}


# --- the recorder ----------------------------------------------------------------------------------------------------


def recorder_of(examples: int, directory: str) -> Any:
    """A recorder that has seen every example of an epoch once, as a question with its start and its end."""
    from datamap.cartography.recorder import CartographyCallback

    return CartographyCallback([f"{row:016x}" for row in range(examples)], directory, artifact_format="parquet")


def record_epoch(recorder: Any, rows: range) -> None:
    import torch

    from datamap.cartography.recorder import Heads

    for first in range(rows.start, rows.stop, BATCH):
        index = torch.arange(first, min(first + BATCH, rows.stop))
        logits = torch.randn(len(index), 2, POSITIONS)
        heads = Heads(logits, torch.randint(POSITIONS, (len(index), 2)),
                      torch.ones(len(index), POSITIONS, dtype=torch.bool), logits.log_softmax(dim=-1))
        recorder.record_heads(heads, index)


def recording(examples: int, epochs: int, directory: str) -> dict[str, float]:
    """What the recorder holds on the device, what the end of an epoch takes, and how its checkpoint grows."""
    recorder, sizes, ends = recorder_of(examples, directory), [], Clock()
    args, device = SimpleNamespace(output_dir=directory), 0
    for epoch in range(1, epochs + 1):
        state = SimpleNamespace(is_world_process_zero=True, global_step=epoch, epoch=float(epoch))
        record_epoch(recorder, range(examples))
        device = recorder._values.nbytes
        with ends:
            recorder.on_epoch_end(args, state, None)
        place = Path(directory, f"checkpoint-{epoch}")
        place.mkdir()
        recorder.on_save(args, state, None)
        sizes.append((place / recorder.checkpoint_file).stat().st_size)
    held = sum(column.nbytes for epoch in recorder._history for column in epoch.values())
    return {"device": device / examples, "checkpoint": (sizes[-1] - sizes[0]) / (examples * (epochs - 1)),
            "host": held / (examples * epochs), "epoch_end": ends.seconds / epochs / examples}


def merging(rank: int, examples: int, directory: str) -> dict[str, float]:
    """One of two processes that join what each has seen of an epoch: the bytes that it hands over, and the seconds."""
    import torch

    group, handed = torch.distributed, []
    group.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2)
    all_reduce = group.all_reduce

    def counted(tensor: Any, *more: Any) -> Any:
        handed.append(tensor.nbytes)
        return all_reduce(tensor, *more)

    group.all_reduce = counted
    recorder = recorder_of(examples, directory)
    record_epoch(recorder, range(rank * examples // 2, (rank + 1) * examples // 2))
    group.barrier()
    with Clock() as clock:
        _, seen = recorder._merged()
    group.destroy_process_group()
    if not seen.all():
        raise RuntimeError(f"only {int(seen.sum())} of {examples} rows came together")
    return {"reduced": sum(handed) / examples, "reducing": clock.seconds / examples}


def recorder_costs(setting: Setting, examples: int, epochs: int) -> dict[str, float]:
    """In bytes and seconds an example."""
    directory = str(setting.output("recorder"))
    costs = in_own_process(recording, examples, epochs, directory)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        first, _ = pool.map(merging, (0, 1), (examples, examples), (directory, directory))
    return {**costs, **first}


# --- the row ---------------------------------------------------------------------------------------------------------


def foreseen(found: Sequence[Mapping[str, float]], what: str, examples: float) -> float:
    """By a straight line through what is found."""
    sizes, values = ([one[name] for one in found] for name in ("examples", what))
    return float(np.polyval(np.polyfit(sizes, values, min(1, len(sizes) - 1)), examples))


def ten_million(setting: Setting) -> Found:
    epochs = setting.size(5, 3)
    sizes = (300, 500) if setting.quick else (1_000_000, 3_000_000, 10_000_000)
    found = [mapped_and_filtered(setting, examples, epochs) for examples in sizes]
    costs = recorder_costs(setting, setting.size(1_000_000, 200), epochs)
    *smaller, last = found
    measures = [
        Measure(f"{sizes[-1]:,} examples, {epochs} epochs: metrics, categories, pictures", [last["seconds"]], " s",
                most=120.0),
        Measure("its CPU time", [last["cpu"]], " s"),
        Measure("its peak memory", [last["gb"]], " GB", most=2.0),
        Measure("filters by category and instability", [last["filter_seconds"]], " s", most=30.0),
        Measure("their CPU time", [last["filter_cpu"]], " s"),
        Measure("their peak memory", [last["filter_gb"]], " GB"),
        Measure("bytes an example and epoch in the files of the dynamics", [last["dynamics"]]),
        Measure("bytes an example in that of the metrics", [last["metrics"]]),
        *(Measure(f"{what} of the map, as foreseen from {' and '.join(f'{size:,}' for size in sizes[:-1])}",
                  [foreseen(smaller, name, sizes[-1])], unit)
          for what, name, unit in (("CPU time", "cpu", " s"), ("peak memory", "gb", " GB"))),
        Measure("recorder: bytes a row on each GPU", [costs["device"]]),
        Measure("recorder: bytes an example and epoch of the main memory", [costs["host"]]),
        Measure("recorder: bytes a row that each process gives to the all-reduce of an epoch", [costs["reduced"]]),
        Measure("recorder: bytes by which a checkpoint grows, an example and epoch", [costs["checkpoint"]]),
    ]
    return Found(measures, details={"epochs": epochs, "found": found, "recorder": costs})


# --- docs/scale.md ---------------------------------------------------------------------------------------------------


def table(details: Mapping[str, Any]) -> str:
    """What so many examples (FORESEEN) need, each a window an epoch, by what the row has found."""
    epochs, found, costs = details["epochs"], details["found"], details["recorder"]
    gb = {
        "recorder, on each GPU": costs["device"],
        "recorder, main memory of each process": costs["host"] * epochs,
        "given to the all-reduce by each process, an epoch": costs["reduced"],
        "recorder's part of the last checkpoint": costs["checkpoint"] * epochs,
        "dynamics on disk": found[-1]["dynamics"] * epochs,
        "metrics on disk": found[-1]["metrics"],
    }
    rows: list[Sequence[Any]] = [(f"{epochs} epochs", *(f"{count:,} examples" for count in FORESEEN))]
    rows += [(what, *(f"{about(each * count / 1e9)} GB" for count in FORESEEN)) for what, each in gb.items()]
    for what, each in (("all-reduce of an epoch, two processes on one machine", costs["reducing"]),
                       ("end of an epoch, with its file", costs["epoch_end"])):
        rows.append((what, *(duration(each * count) for count in FORESEEN)))
    for what, name in (("map, memory", "gb"), ("filters, memory", "filter_gb")):
        rows.append((what, *(f"{about(foreseen(found, name, count))} GB" for count in FORESEEN)))
    for what, name in (("map, CPU time", "cpu"), ("filters, CPU time", "filter_cpu")):
        rows.append((what, *(duration(foreseen(found, name, count)) for count in FORESEEN)))
    sizes, [*smaller, last] = [f"{one['examples']:,}" for one in found], found
    check = [f"{about(foreseen(smaller, name, last['examples']))} {unit} where {about(last[name])} were found"
             for name, unit in (("cpu", "s of CPU time"), ("gb", "GB"))]
    return (f"{markdown(rows)}\n\nSuch a line misses by so much: from {' and '.join(sizes[:-1])} examples it "
            f"foresees, for a map of {sizes[-1]}, {' and '.join(check)}.")


def about(value: float) -> str:
    """In two digits: more would say more than is known."""
    return f"{float(f'{value:.2g}'):,g}"


def duration(seconds: float) -> str:
    """In the unit that people would say it in."""
    units = (("hours", 3600), ("minutes", 60))
    unit, length = next((each for each in units if seconds >= 2 * each[1]), ("s", 1))
    return f"{about(seconds / length)} {unit}"


def with_table(text: str, details: Mapping[str, Any]) -> str:
    """The page with the table of these findings between its marks."""
    before, _, rest = text.partition(BEGINS)
    return f"{before}{BEGINS}\n{table(details)}\n{ENDS}{rest.partition(ENDS)[2]}"
