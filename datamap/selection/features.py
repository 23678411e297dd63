"""What selectors read: every feature by its name, and how it is computed for the examples of a split.

    features, costs = features_for(split, position, ("embeddings", "label"), args)

``args`` are the flags of select_subset.py. What takes long is kept in --cache_dir and found there the next time.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock

from datamap.cartography.dynamics import read_dynamics
from datamap.cartography.metrics import load_cartography_metrics
from datamap.core.artifacts import artifact_file, check_same_dataset, digest
from datamap.core.configs import read_mapping
from datamap.core.errors import UserError, name_a_few
from datamap.core.files import read_json, write_csv
from datamap.core.splits import Split
from datamap.selection import text_features
from datamap.selection.cache import Compute, cached
from datamap.selection.diversity import check_finite
from datamap.selection.text_features import model_key, split_key
from datamap.selection.text_metrics import METRICS, syllable_rule
from datamap.training.models import SCRATCH_MODELS
from datamap.training.prerequisites import Prerequisite, PrerequisiteFailed, make

BY_SYLLABLES = ("flesch", "syllables")

logger = logging.getLogger(__name__)


@dataclass
class Source:
    """A split with its rows in the order of their ids, the flags, and what was computed on the way.

    position: (n,) place of each row in the dataset as loaded. names: the features that are asked for.
    """

    split: Split
    position: np.ndarray
    args: argparse.Namespace
    names: Sequence[str]
    known: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def cache(self) -> Path:
        return Path(self.args.cache_dir)

    @cached_property
    def syllables_by(self) -> str:
        return syllable_rule()

    @cached_property
    def metrics(self) -> pd.DataFrame:
        rule = self.syllables_by if set(BY_SYLLABLES) & set(self.names) else "hyphenation"  # else nobody asks
        return text_features.metrics_table(self.split, self.args.mattr_window, rule, self.cache)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.known:
            self.known[name] = FEATURES[name](self)
        return self.known[name]

    @property
    def checked_embeddings(self) -> np.ndarray:
        check_finite(self["embeddings"], self.split.ids)
        return self["embeddings"]

    @property
    def label_column(self) -> str:
        column = getattr(self.split.task, "label_column", "")
        if not column:
            raise UserError(f"examples of --task {self.split.task.name} have no class label, which this needs; choose "
                            "another selector (select_subset.py --list)")
        return column

    @property
    def labels(self) -> np.ndarray:
        """(n,) class numbers."""
        return np.asarray(self.split.data[self.label_column][:])

    @property
    def class_names(self) -> list[str]:
        return self.split.data.features[self.label_column].names

    def cached(self, name: str, key: Mapping[str, Any], prepare: Callable[[], Compute]) -> np.ma.MaskedArray:
        """(n,) numbers, masked where NaN, from the cache where they are there. prepare: gives what computes some."""
        n = len(self.split.data)
        values = cached(self.cache, name, {**split_key(self.split), **key}, (n,),
                        lambda: (np.arange(n), prepare()), dtype=np.float64)
        return np.ma.masked_invalid(values)

    def part(self, rows: np.ndarray) -> Split:
        return dataclasses.replace(self.split, data=self.split.data.select(rows))

    @property
    def sizes(self) -> dict[str, Any]:
        sizes = {"max_length": self.args.max_length}
        return {**sizes, "doc_stride": self.args.doc_stride} if "doc_stride" in self.split.task.flags else sizes


def features_for(
    split: Split, position: np.ndarray, names: Sequence[str], args: argparse.Namespace
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The features with these names, and of each how long it took (seconds) and which examples have none.

    split: rows in the order of their ids; position: (n,) their places in the dataset as loaded.
    """
    source, ids = Source(split, position, args, names), split.ids
    costs: dict[str, Any] = {}
    for name in names:
        began = time.monotonic()
        values = source[name]
        costs[name] = {"seconds": round(time.monotonic() - began, 3)}
        if name in BY_SYLLABLES:
            costs[name]["syllables_by"] = source.syllables_by
        if isinstance(values, np.ma.MaskedArray):
            mask = np.ma.getmaskarray(values)
            absent = np.flatnonzero(mask.any(axis=1) if mask.ndim > 1 else mask)
            costs[name]["without"] = [ids[row] for row in absent]
            if len(absent):
                level = logging.WARNING if len(absent) == len(mask) else logging.INFO
                logger.log(level, f"{len(absent):,} of {len(mask):,} examples have no {name} "
                           f"({name_a_few(costs[name]['without'])})")
    return {name: source[name] for name in names}, costs


# --- texts and labels ---------------------------------------------------------------------------------------------


def _label(source: Source) -> np.ndarray:
    """(n,) names of the labels."""
    return np.asarray(source.class_names, dtype=object)[source.labels]


def _text_metric(source: Source, name: str) -> np.ndarray:
    return np.ma.masked_invalid(source.metrics[name].to_numpy(dtype=float))


def _perplexity(source: Source, masked: bool) -> np.ndarray:
    args = source.args
    return text_features.perplexity(
        source.split, args.model if masked else args.causal_lm, masked=masked, max_length=args.max_length,
        batch_size=args.batch_size, no_cuda=args.no_cuda, cache_dir=source.cache,
    )


def _wordpiece_ratio(source: Source) -> np.ndarray:
    from datamap.selection.model_scores import wordpiece_ratio

    texts, tokenizer = text_features.texts_of(source.split), text_features.load_tokenizer(source.args.model)
    return wordpiece_ratio(texts, tokenizer)


def _embeddings(source: Source) -> np.ndarray:
    args = source.args
    if args.embedding_dir:
        return _read_embeddings(source)
    return text_features.embeddings(
        source.split, args.model, pooling=args.pooling, max_length=args.max_length, doc_stride=args.doc_stride,
        batch_size=args.batch_size, no_cuda=args.no_cuda, cache_dir=source.cache,
    )


def _read_embeddings(source: Source) -> np.ndarray:
    """What extract_embeddings.py wrote, its rows in our order."""
    made_by, directory = "extract_embeddings.py", source.args.embedding_dir
    ids = read_json(artifact_file(directory, "embeddings_metadata.json", made_by))["ids"]
    vectors = np.load(artifact_file(directory, "embeddings.npy", made_by), mmap_mode="r")
    check_same_dataset(directory, ids, source.split)
    if len(vectors) != len(ids):
        raise UserError(f"{directory} holds {len(vectors):,} embeddings of {len(ids):,} ids; run {made_by} again")
    row_of = {example: row for row, example in enumerate(ids)}
    absent = [example for example in source.split.ids if example not in row_of]
    if absent:
        raise UserError(f"{directory} has no embedding of {len(absent):,} examples ({name_a_few(absent)}); embed the "
                        "whole split, or give --max_samples")
    rows = [row_of[example] for example in source.split.ids]
    return vectors if rows == list(range(len(vectors))) else vectors[rows]


# --- labels that may be wrong -------------------------------------------------------------------------------------


def _label_quality(source: Source) -> np.ndarray:
    """cleanlab's label quality, 0..1, less 1 where confident learning calls the label an issue."""
    from datamap.selection.label_quality import label_issues, label_quality, out_of_fold_probabilities

    labels, args = source.labels, source.args
    if args.probabilities == "model":
        probabilities = _model_out_of_fold(source, labels)
    else:
        probabilities = out_of_fold_probabilities(
            source.checked_embeddings, labels, len(source.class_names), folds=args.folds, seed=args.seed,
            names=source.class_names,
        )
    return label_quality(labels, probabilities) - label_issues(labels, probabilities)


def _model_out_of_fold(source: Source, labels: np.ndarray) -> np.ndarray:
    """(n, C) probabilities of models that were each trained without the fold that they judge."""
    from sklearn.model_selection import StratifiedKFold

    from datamap.selection.model_scores import class_probabilities

    args = source.args
    result = np.zeros((len(labels), len(source.class_names)))
    fewest = int(np.unique(labels, return_counts=True)[1].min())
    if fewest < args.folds:
        raise UserError(f"--folds {args.folds}: a label has only {fewest:,} examples, and every fold needs one; give "
                        "fewer folds, or leave the label out")
    folds = StratifiedKFold(args.folds, shuffle=True, random_state=args.seed)
    for number, (rest, fold) in enumerate(folds.split(labels, labels), 1):
        logger.info(f"fold {number} of {args.folds}: training on {len(rest):,} examples")
        model, tokenizer = _load(source, str(trained_model(source, rest)))
        result[fold] = class_probabilities(model, tokenizer, source.part(fold),
                                           max_length=args.max_length, batch_size=args.batch_size)
    return result


def _self_filter(source: Source) -> np.ndarray:
    from datamap.selection.label_quality import self_filter

    labels = source.labels  # before what takes long: a question has none
    return self_filter(source.checked_embeddings, labels, len(source.class_names), rounds=source.args.rounds,
                       seed=source.args.seed, names=source.class_names)


def _flip_rate(source: Source) -> np.ndarray:
    """Of small changes to the text, one column at a time: the share after which the prediction is another."""
    from datamap.selection.model_scores import predict
    from datamap.selection.perturbations import flip_rate, perturbed_texts, wordnet_synonyms

    args, task = source.args, source.split.task
    synonyms = wordnet_synonyms() if "synonym" in args.perturbations else None
    path, sizes = _model_path(source), {**source.sizes, "batch_size": args.batch_size}

    def prepare() -> Compute:
        model, tokenizer = _load(source, path)

        def compute(rows: np.ndarray) -> np.ndarray:
            part = source.part(rows)
            before, after = predict(model, tokenizer, part, **sizes), [list[Any]() for _ in rows]
            for column in task.perturbed_columns:
                copies = perturbed_texts(part.data[column][:], part.ids, args.perturbations, args.copies, args.seed,
                                         synonyms)
                place = [number for number, texts in enumerate(copies) for _ in texts]
                if not place:
                    continue
                changed = part.data.select(place)
                order = changed.column_names
                texts = [text for each in copies for text in each]
                changed = changed.remove_columns(column).add_column(column, texts).select_columns(order)
                found = predict(model, tokenizer, dataclasses.replace(part, data=changed), **sizes)
                for number, prediction in zip(place, found, strict=True):
                    after[number].append(prediction)
            return flip_rate(before, after).filled(np.nan)

        return compute

    key = {**model_key(path, args.no_cuda), "perturbations": args.perturbations, "copies": args.copies,
           "seed": args.seed, **source.sizes}
    return source.cached("flip_rate", key, prepare)


def _judge_flags(source: Source) -> np.ndarray:
    from datamap.selection.llm_judge import DEFAULT_PROMPT, flags, judge, texts_and_labels

    args, split = source.args, source.split
    if not args.judge_model:
        raise UserError("--selector llm_judge needs --judge_model, the name of a chat model as the server of "
                        "--base_url calls it")
    home = source.cache / f"judge-{digest([split.fingerprint, split.task.settings(), args.base_url])}"
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / ".waiting"):  # another seed of a suite asks the same
        return flags(judge(
            split.ids, *texts_and_labels(split), directory=home, model=args.judge_model, base_url=args.base_url,
            prompt_file=args.judge_prompt or DEFAULT_PROMPT, workers=args.workers,
            requests_per_minute=args.requests_per_minute, max_requests=args.max_requests,
        ))


# --- a model's view -----------------------------------------------------------------------------------------------


def _load(source: Source, name: str) -> Any:
    """Model and tokenizer, on the GPU where there is one."""
    import torch

    from datamap.training.models import load_model

    model, tokenizer = load_model(name, source.split.task, None, source.args.max_length, {})
    return model.to("cuda" if torch.cuda.is_available() and not source.args.no_cuda else "cpu"), tokenizer


def _model_path(source: Source) -> str:
    """--model_path; UserError where it is not given."""
    from datamap.selection.model_scores import trained_on

    args = source.args
    if not args.model_path:
        raise UserError("this selector needs a trained model: --model_path DIR (run.py --do_train writes one), or a "
                        "model of the Hub with a head for the task")
    if trained_on(args.model_path, source.split):
        logger.warning(f"{args.model_path} was trained on this very dataset: it is surer of it than of other data")
    return args.model_path


def _model_score(source: Source, name: str) -> np.ndarray:
    """A score of model_scores.py; EL2N and GraNd of a model that was warmed up for it where none is named."""
    from datamap.selection.model_scores import score_rows

    args = source.args
    if args.model_path or name == "entropy":
        path = _model_path(source)
        key = model_key(path, args.no_cuda)
    else:
        path = str(trained_model(source, None))
        key = {"trained": Path(path).parent.name}

    def prepare() -> Compute:
        model, tokenizer = _load(source, path)

        def compute(rows: np.ndarray) -> np.ndarray:
            scores = score_rows(model, tokenizer, source.part(rows), batch_size=args.batch_size, names=[name],
                                **source.sizes)
            return scores[name].filled(np.nan)

        return compute

    return source.cached(name, {**key, **source.sizes}, prepare)


def trained_model(source: Source, rows: np.ndarray | None) -> Path:
    """The directory of a model that run.py trained on some rows (None: all) for --warmup_epochs; kept in the cache."""
    args, split = source.args, source.split
    settings = read_mapping(args.training_config) if args.training_config else {}
    model = {"name": args.model} if args.model in SCRATCH_MODELS else model_key(args.model, args.no_cuda)
    ids = split.ids if rows is None else split.data.select(rows)["id"][:]
    identity = digest([split_key(split), model, settings, args.warmup_epochs, args.seed, source.sizes, ids])
    home = source.cache / f"model-{identity}"
    home.mkdir(parents=True, exist_ok=True)
    write_csv(home / "selected.csv", pd.DataFrame({"id": ids}))
    argv = ["run.py", *([f"--config={args.training_config}"] if args.training_config else []),
            f"--task={split.task.name}", f"--dataset={args.dataset}", f"--train_split={args.split}", "--do_train",
            f"--model={args.model}", f"--num_train_epochs={args.warmup_epochs}", f"--seed={args.seed}",
            *(f"--{name}={value}" for name, value in source.sizes.items()), f"--train_ids={home / 'selected.csv'}",
            "--save_strategy=no", f"--output_dir={home / 'trainer_output'}"]
    if args.no_cuda:
        argv.append("--no_cuda")
    if getattr(split.task, "label_column", ""):
        argv += [f"--text_columns={','.join(split.task.text_columns)}", f"--label_column={split.task.label_column}"]
    try:
        make([Prerequisite("model", home / "trainer_output", argv, identity)])
    except PrerequisiteFailed as error:
        raise UserError(str(error).replace("\n", " | ")) from error
    return home / "trainer_output"


# --- training dynamics --------------------------------------------------------------------------------------------


def _cartography(source: Source, column: str) -> np.ndarray:
    """A column of cartography_metrics.csv, masked where an example has none."""
    path, split = source.args.cartography_dir, source.split
    metrics = load_cartography_metrics(path)
    check_same_dataset(path, metrics.index, split)
    needed = {"forgetting": ("forgetting_events", "never_learned", "num_epochs")}.get(column, (column,))
    if lacking := [name for name in needed if name not in metrics]:
        raise UserError(f"{path} has no column {name_a_few(lacking)}; it has {name_a_few(metrics.columns, 20)}")
    values = metrics[needed[0]].astype(float)
    if column == "forgetting":
        values = values.where(~metrics["never_learned"].astype(bool), metrics["num_epochs"].astype(float))
    return np.ma.masked_invalid(values.reindex(split.ids).to_numpy(dtype=float))


def _losses(source: Source) -> np.ndarray:
    """(n, epochs) loss of each example in each epoch, nats; masked where it was recorded in none."""
    path, split = source.args.cartography_dir, source.split
    epochs, known = [], set[str]()
    for content in read_dynamics(path):
        if "loss" not in content:
            raise UserError(f"{path}: epoch {content['epoch']} records no loss; record again with run.py")
        epochs.append(pd.Series(content["loss"], index=content["id"], dtype=float).reindex(split.ids).to_numpy())
        known.update(content["id"])
    check_same_dataset(path, known, split)
    return np.ma.masked_invalid(np.stack(epochs, axis=1))


# --- by name ------------------------------------------------------------------------------------------------------

# The flags of select_subset.py that only one of them reads are FEATURE_FLAGS of selection_arguments.py.
FEATURES: dict[str, Callable[[Source], np.ndarray]] = {
    "position": lambda source: source.position,
    "label": _label,
    **{name: partial(_text_metric, name=name) for name in METRICS},
    "embeddings": _embeddings,
    "perplexity": partial(_perplexity, masked=False),
    "pseudo_perplexity": partial(_perplexity, masked=True),
    "wordpiece_ratio": _wordpiece_ratio,
    "label_quality": _label_quality,
    "self_filter": _self_filter,
    "flip_rate": _flip_rate,
    "judge_flags": _judge_flags,
    **{name: partial(_model_score, name=name) for name in ("entropy", "el2n", "grand")},
    **{name: partial(_cartography, column=name) for name in ("forgetting", "aum", "confidence", "variability")},
    "losses": _losses,
}
