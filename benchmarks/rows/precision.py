"""bf16 beside float32 on a processor that computes in it: what it gains, and whether what comes out is the same.

``run.py --bf16`` computes the matrix products of training and evaluation in bf16 (autocast); weights, losses and what
is recorded stay in float32. The other form keeps every tensor in float32 and lets the products be rounded
(``torch.backends.mkldnn.matmul.fp32_precision``, what ``set_float32_matmul_precision("medium")`` sets).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from timing import Found, Measure, Setting, in_turn, ratio, timed

from datamap.core.clusters import Clusters
from datamap.core.flags import DEFAULT_SEED
from datamap.core.splits import load_split
from datamap.tasks.registry import get_task
from rows import made
from rows.trained import LABEL_SCORES, QA_SCORES, quietly, run_of, spread
from rows.training import Trainings, sampled

MARGIN = 1.0  # points: as right as float32 where the 95 % interval of the difference lies within them
CLEARLY = 1.2  # times as fast
NOT_IN_BF16 = "this processor does not compute in bf16"


def computes_in_bf16() -> bool:
    import torch

    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16") or able.get("bf16"))


def bf16(setting: Setting) -> Found:
    if not computes_in_bf16():
        return Found([], [NOT_IN_BF16])
    quietly()
    measures: list[Measure] = []
    notes = []
    made_up = setting.output("made_up")
    for part in ("train", "validation"):
        made.write_split(made_up / f"{part}.jsonl", "classification", 24)
    sentences = setting.dataset("sst2", str(made_up))
    for name, task, source, rows, flags in (
        ("policyqa", "qa", setting.dataset("policyqa", "demo:clinical"), setting.size(200, 8),
         ("--max_length=256", "--num_train_epochs=2")),
        ("sst2", "classification", sentences, setting.size(800, 8), ("--max_length=128", "--num_train_epochs=1")),
    ):
        found, said = trainings(setting, name, task, source, rows, flags)
        measures += found
        notes.append(said)
    return Found([*measures, *forms(setting), *vectors(setting, sentences)], notes)


def trainings(
    setting: Setting, name: str, task: str, source: str, rows: int, flags: tuple[str, ...],
) -> tuple[list[Measure], str]:
    """run.py with and without --bf16, the same seed in a round: seconds, scores, and the data maps of both."""
    import pandas as pd

    from datamap.training.data import write_split

    place = sampled(setting, f"{name}-of-{rows}", task, source, rows)
    held_out = load_split(source, "validation", get_task(task))
    asked = setting.size(200 if task == "qa" else 872, 8)
    chosen = np.random.default_rng(DEFAULT_SEED).permutation(len(held_out.data))[:asked]
    write_split(Path(place) / "validation.jsonl", replace(held_out, data=held_out.data.select(np.sort(chosen))))

    def side(kind: str, number: int) -> dict[str, Any]:
        maps = setting.scratch / "map"
        found = run_of(
            setting.scratch / "model", place, "tiny" if setting.quick else "minilm", f"--task={task}", "--do_train",
            "--do_eval", "--enable_cartography", f"--cartography_output_dir={maps}", "--learning_rate=1e-4",
            "--warmup_steps=0.1", *flags, f"--seed={number + 1}", *([kind] if kind else []),
        )
        table = pd.read_csv(maps / "cartography_metrics.csv", dtype={"id": str}).set_index("id").sort_index()
        return {**found, "confidence": table["confidence"].to_numpy()}

    full, half = in_turn(setting.size(5, 2), partial(side, ""), partial(side, "--bf16"))
    faster = ratio(f"{name}, training: float32 / bf16", [one["train_runtime"] for one in full],
                   [one["train_runtime"] for one in half], least=CLEARLY)
    measures = [faster, ratio(f"{name}, evaluation: float32 / bf16", [one["eval_runtime"] for one in full],
                              [one["eval_runtime"] for one in half])]
    clusters = Clusters(full[0]["contexts"] or np.arange(len(full[0]["ids"])))
    words = []
    for score in QA_SCORES if task == "qa" else LABEL_SCORES:
        with_full, with_half = (100 * np.stack([one[score] for one in each]) for each in (full, half))
        what = f"{name}, {'accuracy' if score in LABEL_SCORES else score}"
        compared, said = spread(what, with_half, with_full, clusters, -MARGIN, MARGIN)
        measures += [Measure(f"{what}, float32", with_full.mean(axis=1).tolist(), " %"), *compared]
        words.append(said + (" (as right)" if all(each.keeps for each in compared) else " (not shown to be as right)"))
    apart = [float(np.abs(one["confidence"] - other["confidence"]).mean())
             for one, other in zip(full, half, strict=True)]
    seeds = [float(np.abs(one["confidence"] - other["confidence"]).mean())
             for one, other in zip(full, full[1:] + full[:1], strict=True)]
    measures += [Measure(f"{name}, confidences of the data map, mean distance from float32", apart),
                 Measure(f"{name}, the same between two seeds in float32", seeds)]
    return measures, (f"{'; '.join(words)}; within {MARGIN:g} points is as right. Training is {faster.found:.2f} x as "
                      f"fast, {CLEARLY:g} x would be clear.")


# --- the two forms ---------------------------------------------------------------------------------------------------


@contextmanager
def rounded_products() -> Iterator[None]:
    import torch

    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


def forms(setting: Setting) -> list[Measure]:
    """Steps of training in both forms, and by how much a product of either differs from float64."""
    import torch

    sides: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "float32": nullcontext, "autocast": partial(torch.autocast, "cpu", torch.bfloat16),
        "rounded products": rounded_products,
    }
    source = setting.dataset("policyqa", "demo:clinical")
    each = Trainings(setting, sampled(setting, "policyqa-forms", "qa", source, setting.size(96, 8)), "qa",
                     "tiny" if setting.quick else "minilm", 256)
    batches = setting.size(6, 1)

    def step(kind: str, number: int) -> float:
        with sides[kind]():
            return each.bare(batches)["seconds"]

    torch.manual_seed(DEFAULT_SEED)
    left, right = torch.randn(512, 384), torch.randn(384, 384)
    exact, errors = left.double() @ right.double(), []
    for kind, form in sides.items():
        step(kind, 0)  # first steps load kernels
        with form():
            error = float((left @ right - exact).abs().max())
        errors.append(Measure(f"{kind}: largest error of a product whose values spread by {exact.std():.0f}", [error]))
    seconds = dict(zip(sides, in_turn(setting.size(5, 1), *(partial(step, kind) for kind in sides)), strict=True))
    return [*(ratio(f"policyqa, steps: float32 / {kind}", seconds["float32"], seconds[kind])
              for kind in sides if kind != "float32"), *errors]


def vectors(setting: Setting, source: str) -> list[Measure]:
    """Embeddings of sentences, their seconds and angles."""
    import torch

    from datamap.training.embeddings import embedder, embedding_spans
    from datamap.training.models import load_encoder

    split = load_split(source, "train", get_task("classification"))
    split.data = split.data.select(range(setting.size(1500, 24)))
    model, tokenizer = load_encoder("minilm", no_cuda=True)
    rows, spans, _ = embedding_spans(split, tokenizer, "mean", 256, 0)
    plain = model.forward
    forward = {"float32": plain, "bf16": torch.autocast("cpu", torch.bfloat16)(plain)}
    order, embed = embedder(model, tokenizer, rows, spans, 32)

    def side(kind: str, number: int) -> tuple[float, np.ndarray]:
        model.forward = forward[kind]
        return timed(embed, order)

    for kind in forward:
        side(kind, 0)  # first calls load kernels
    full, half = in_turn(setting.size(5, 1), partial(side, "float32"), partial(side, "bf16"))
    one, other = (values / np.linalg.norm(values, axis=1, keepdims=True) for values in (full[0][1], half[0][1]))
    likest = [np.argmax(each @ each.T - 2 * np.eye(len(each)), axis=1) for each in (one, other)]
    return [
        ratio("embeddings: float32 / bf16", [seconds for seconds, _ in full], [seconds for seconds, _ in half],
              least=CLEARLY),
        Measure("embeddings: the smallest cosine of a sentence in float32 and in bf16",
                [float((one * other).sum(axis=1).min())]),
        Measure("embeddings: sentences with another nearest neighbour in bf16",
                [100 * float((likest[0] != likest[1]).mean())], " %"),
    ]
