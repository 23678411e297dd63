"""Embeddings beside sentence-transformers, and clusters beside hdbscan and fast_hdbscan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from timing import Found, Measure, Setting, in_turn, peer, ratio, script, timed

from datamap.core.files import write_json
from datamap.core.flags import DEFAULT_SEED
from datamap.core.splits import load_split
from datamap.tasks.registry import get_task
from rows import made
from rows.training import padding

LONGEST, BATCH_SIZE = 256, 32  # tokens of a text; texts of a batch, on both sides


def sentence_transformer(place: str, device: str = "cpu") -> Any:
    """The same weights with the mean over all tokens, as ours has it, and no scaling to length 1."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    transformer = Transformer(place)
    model = SentenceTransformer(modules=[transformer, Pooling(transformer.get_embedding_dimension())], device=device)
    model.max_seq_length = LONGEST
    return model


def embed(split: Any, model: Any, tokenizer: Any, file: Path) -> np.ndarray:
    """As extract_embeddings.py does it: features, spans, batches by length, the file."""
    from datamap.training.embeddings import embedding_spans, write_embeddings

    rows, spans, _ = embedding_spans(split, tokenizer, "mean", LONGEST, 0)
    write_embeddings(file, model, tokenizer, rows, spans, BATCH_SIZE)
    return np.load(file)


def embeddings(setting: Setting) -> Found:
    import dataclasses

    from datamap.training.models import load_encoder, place_of

    notes: list[str] = []
    made_up = setting.output("texts")
    made.write_split(made_up / "train.jsonl", "classification", 48)
    source = load_split(setting.dataset("sst2", str(made_up)), "train", get_task("classification"))
    column = source.task.text_columns[0]
    library = peer("sentence_transformers", "sentence-transformers", notes)
    model, tokenizer = load_encoder("minilm", no_cuda=True)
    other = library and sentence_transformer(place_of("minilm"))
    measures = []
    for count, least in ((setting.size(3000, 48), 1.3), (setting.size(300, 16), 1.0)):
        split = dataclasses.replace(source, data=source.data.select(range(count)))
        file, texts = setting.scratch / f"{count}.npy", split.data[column][:]

        def ours(_: int = 0, split: Any = split, file: Path = file) -> tuple[float, np.ndarray]:
            return timed(embed, split, model, tokenizer, file)

        def theirs(_: int = 0, texts: list[str] = texts) -> tuple[float, np.ndarray]:
            return timed(other.encode, texts, batch_size=BATCH_SIZE, show_progress_bar=False)

        sides: list[Callable[..., tuple[float, np.ndarray]]] = [ours, theirs] if other else [ours]
        first = [side()[1] for side in sides]  # first calls load kernels
        if other:
            gap = float(np.abs(first[0] - first[1]).max())
            if gap > 1e-4:
                raise RuntimeError(f"the embeddings of the two sides differ by {gap:.2g}: not the same is measured")
        found = [[seconds for seconds, _ in each] for each in in_turn(setting.size(5, 1), *sides)]
        measures.append(Measure(f"{count:,} sentences", found[0], " s"))
        if other:
            measures += [Measure(f"{count:,} sentences, sentence-transformers", found[1], " s"),
                         ratio(f"{count:,} sentences: sentence-transformers / ours", found[1], found[0], least)]
        tokens = tokenizer(list(texts), truncation=True, max_length=LONGEST).input_ids
        lengths = np.array(list(map(len, tokens)))
        for side, longest_first in (("ours", lengths), ("sentence-transformers", np.array(list(map(len, texts))))):
            order = np.argsort(-longest_first, kind="stable").tolist()  # of the latter by characters
            measures.append(Measure(f"{count:,} sentences: positions of batches / tokens, {side}",
                                    [padding(lengths, order, BATCH_SIZE)], " x"))
    return Found(measures, notes)


# --- clusters --------------------------------------------------------------------------------------------------------


def clusters(setting: Setting) -> Found:
    import hdbscan
    from sklearn.metrics import adjusted_rand_score

    from datamap.analysis import clusters as stage

    notes: list[str] = []
    fast = peer("fast_hdbscan", "fast_hdbscan", notes)
    rng, measures = np.random.default_rng(DEFAULT_SEED), []
    sides: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "ours": lambda values: stage.cluster(values, 15, None, "euclidean", 50_000, DEFAULT_SEED).labels,
        "hdbscan": lambda values: hdbscan.HDBSCAN(min_cluster_size=15).fit_predict(values),
    }
    if fast:
        sides["fast_hdbscan"] = lambda values: fast.HDBSCAN(min_cluster_size=15).fit_predict(values)
    for side in sides.values():
        side(made.blobs(500, 10, 0.1, rng))  # compiles
    shapes = [(22_000, 50, 0.0, 2), (22_000, 10, 0.2, 2), (60_000, 50, 0.0, 1)]
    for rows, dims, noise, rounds in shapes if not setting.quick else [(400, 10, 0.1, 1)]:
        values = made.blobs(rows, dims, noise, rng)
        labels: dict[str, np.ndarray] = {}

        def one(name: str, values: np.ndarray = values, labels: dict[str, np.ndarray] = labels) -> float:
            seconds, labels[name] = timed(sides[name], values)
            return seconds

        found = dict(zip(sides, in_turn(rounds, *(lambda _, name=name, one=one: one(name) for name in sides)),
                         strict=True))
        what = f"{rows:,} x {dims}" + (f", {noise:.0%} noise" if noise else "")
        measures += [Measure(f"{what}: {name}", seconds, " s") for name, seconds in found.items()]
        measures += [ratio(f"{what}: hdbscan / ours", found["hdbscan"], found["ours"], least=2.5),
                     *(Measure(f"{what}: adjusted Rand, {name} and hdbscan",
                               [float(adjusted_rand_score(labels["hdbscan"], labels[name]))],
                               least=0.98 if name == "ours" else None) for name in sides if name != "hdbscan")]
    many = setting.size(200_000, 600)
    rest = timed(stage.cluster, made.blobs(many, 50, 0.1, rng), 15, None, "euclidean", many // 4, DEFAULT_SEED)[0]
    measures.append(Measure(f"{many:,} x 50, 10% noise: ours, of which it clusters {many // 4:,}", [rest], " s"))
    return Found([*measures, *picture(setting)], notes)


def picture(setting: Setting) -> list[Measure]:
    """cluster_analysis.py as it is, and asked for the picture by PCA and by UMAP: whether the compiler of UMAP costs
    who has not asked for it, and what it costs who has."""
    place = setting.output("embeddings")
    rows = setting.size(2000, 60)
    np.save(place / "embeddings.npy", made.blobs(rows, 20, 0.1, np.random.default_rng(0)).astype(np.float32))
    write_json(place / "embeddings_metadata.json", {"ids": [str(row) for row in range(rows)]})

    def run(*flags: str) -> float:
        return script("cluster_analysis.py", f"--embedding_dir={place}", *flags,
                      f"--output_dir={setting.scratch / 'clusters'}", peak=False).seconds

    by_umap = "pca" if setting.quick else "umap"  # the compiler takes longer than a quick run may
    plain, pca, umap = in_turn(setting.size(2, 1), lambda _: run(), lambda _: run("--visualization_method=pca"),
                               lambda _: run(f"--visualization_method={by_umap}"))
    return [Measure(f"cluster_analysis.py on {rows:,} rows", plain, " s"),
            Measure("longer than with --visualization_method pca",
                    [one - other for one, other in zip(plain, pca, strict=True)], " s", most=3.0),
            Measure("longer with --visualization_method umap",
                    [one - other for one, other in zip(umap, plain, strict=True)], " s")]
