"""What selectors read: every feature by its name, and how it is computed for the candidates.

    features, costs = features_for(candidates)

What takes long is kept in --cache_dir and found there the next time, by the dataset, the examples and their order, the
model with its revision and the parameters.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from datamap.analysis.clusters import load_embeddings
from datamap.cartography.dynamics import read_dynamics
from datamap.cartography.metrics import load_cartography_metrics
from datamap.core.artifacts import check_same_dataset, content_key, digest
from datamap.core.configs import read_mapping
from datamap.core.errors import UserError, name_a_few
from datamap.core.files import write_csv
from datamap.core.locks import lock
from datamap.core.splits import Split
from datamap.selection.cache import Compute
from datamap.selection.candidates import Candidates
from datamap.selection.diversity import check_finite
from datamap.selection.text_metrics import BY_SYLLABLES, METRICS
from datamap.training import models
from datamap.training.models import trained_fingerprint
from datamap.training.prerequisites import Prerequisite, PrerequisiteFailed, make

EMBEDDING_FLAGS, WARM_UP_FLAGS = ("pooling", "embedding_dir"), ("warmup_epochs", "training_config")
JUDGE_FLAGS = ("judge_model", "base_url", "workers", "max_requests", "requests_per_minute", "judge_prompt")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Feature:
    """compute: gives the values, a row per candidate. flags: those of select_subset.py that it reads, and that do
    nothing where no feature reads them."""

    compute: Callable[[Candidates], np.ndarray]
    flags: tuple[str, ...] = ()


FEATURES: dict[str, Feature] = {}


def feature(*names: str, flags: tuple[str, ...] = ()) -> Callable[[Callable[..., np.ndarray]], Callable[..., Any]]:
    """Register the decorated function; where it computes several features, it takes ``name``."""

    def add(function: Callable[..., np.ndarray]) -> Callable[..., Any]:
        takes_name = "name" in inspect.signature(function).parameters
        for name in names:
            FEATURES[name] = Feature(partial(function, name=name) if takes_name else function, flags)
        return function

    return add


def computed(candidates: Candidates, name: str) -> np.ndarray:
    if name not in candidates.known:
        candidates.known[name] = FEATURES[name].compute(candidates)
    return candidates.known[name]


def features_for(candidates: Candidates) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The features that ``candidates.args`` names, and of each how long it took (seconds) and which examples have
    none."""
    ids, costs = candidates.ids, {}
    for name in candidates.args.features:
        began = time.monotonic()
        values = computed(candidates, name)
        cost: dict[str, Any] = {"seconds": round(time.monotonic() - began, 3)}
        if name in BY_SYLLABLES:
            cost["syllables_by"] = candidates.syllables_by
        if isinstance(values, np.ma.MaskedArray):
            mask = np.ma.getmaskarray(values)
            absent = np.flatnonzero(mask.any(axis=1) if mask.ndim > 1 else mask)
            cost["without"] = [ids[row] for row in absent]
            if len(absent):
                level = logging.WARNING if len(absent) == len(mask) else logging.INFO
                logger.log(level, f"{len(absent):,} of {len(mask):,} examples have no {name} "
                           f"({name_a_few(cost['without'])})")
        costs[name] = cost | candidates.reports.get(name, {})
    return {name: computed(candidates, name) for name in costs}, costs


def peak_memory() -> float:
    """The most memory that this process, or one that it started, has held so far, MB."""
    most = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return most / (1024**2 if sys.platform == "darwin" else 1024)


# --- texts and labels ---------------------------------------------------------------------------------------------


@feature("position")
def _position(candidates: Candidates) -> np.ndarray:
    return candidates.position


@feature("label")
def _label(candidates: Candidates) -> np.ndarray:
    """(n,) names of the labels."""
    return np.asarray(candidates.class_names, dtype=object)[candidates.labels]


@feature("mattr", flags=("mattr_window",))
@feature(*(METRICS.keys() - {"mattr"}))
def _text_metric(candidates: Candidates, name: str) -> np.ndarray:
    return np.ma.masked_invalid(computed(candidates, "text_metrics")[:, list(METRICS).index(name)])


@feature("text_metrics", flags=("mattr_window",))
def _text_metrics(candidates: Candidates) -> np.ndarray:
    """(n, len(METRICS)), NaN where a text has none."""
    from datamap.selection.text_metrics import text_metrics

    rule, window = candidates.syllables_by, candidates.args.mattr_window

    def prepare() -> tuple[np.ndarray, Compute]:
        texts = candidates.texts
        return np.arange(len(texts)), lambda rows: text_metrics([texts[row] for row in rows], rule, window).to_numpy(
            dtype=float)

    key = {"mattr_window": window, "syllables_by": rule}
    return candidates.cached("text_metrics", key, prepare, (len(METRICS),), np.float64)


# --- pretrained models --------------------------------------------------------------------------------------------


def model_key(name: str, no_cuda: bool) -> dict[str, Any]:
    """What tells the numbers of a model from those of another of the same name: the content of a directory, the
    commit of a Hub model; and the precision, which on a GPU is bfloat16."""
    import torch

    precision = "bfloat16" if torch.cuda.is_available() and not no_cuda else "float32"
    models.check_whole_model(name)
    if Path(name).exists():
        return {"content": content_key(name), "precision": precision}
    return {"name": name, "commit": getattr(_config(name), "_commit_hash", None), "precision": precision}


def _config(name: str) -> Any:
    if name in models.SCRATCH_MODELS:
        raise UserError(f"model {name} is trained from scratch and gives no features untrained; name a Hub model or a "
                        "directory that run.py wrote")
    return models.load_config(name)


@feature("embeddings", flags=EMBEDDING_FLAGS)
def _embeddings(candidates: Candidates) -> np.ndarray:
    """(n, D) float32, a memory map: one vector per example of the encoder; see ``training.embeddings``."""
    from datamap.training.embeddings import embedder, embedding_spans

    args, split = candidates.args, candidates.split
    if args.embedding_dir:
        return _read_embeddings(candidates)

    def prepare() -> tuple[np.ndarray, Compute]:
        model, tokenizer = models.load_encoder(args.model, args.no_cuda)
        length = models.usable_length(args.max_length, model, tokenizer)
        stride = models.usable_stride(args.doc_stride, length) if "doc_stride" in split.task.flags else 0
        rows, spans, _ = embedding_spans(split, tokenizer, args.pooling, length, stride)
        return embedder(model, tokenizer, rows, spans, args.batch_size)

    key = {**model_key(args.model, args.no_cuda), "pooling": args.pooling, "max_length": args.max_length,
           "doc_stride": args.doc_stride}
    width = _config(args.model).hidden_size * (2 if args.pooling == "cls_and_answer_mean" else 1)
    return candidates.cached("embeddings", key, prepare, (width,))


def _read_embeddings(candidates: Candidates) -> np.ndarray:
    """What extract_embeddings.py wrote, its rows in our order."""
    import pandas as pd

    directory = candidates.args.embedding_dir
    embeddings = load_embeddings(directory)
    changed = check_same_dataset(directory, embeddings.ids, candidates.split)
    rows = pd.Index(embeddings.ids).get_indexer(candidates.ids)
    rows[np.isin(candidates.ids, list(changed))] = -1
    if (rows < 0).any():
        absent = np.asarray(candidates.ids)[rows < 0].tolist()
        raise UserError(f"{directory} has no embedding of {len(absent):,} examples ({name_a_few(absent)}); embed the "
                        "whole split, or give --max_samples")
    return embeddings.values if np.array_equal(rows, np.arange(len(embeddings.ids))) else embeddings.values[rows]


@feature("perplexity", flags=("causal_lm",))
@feature("pseudo_perplexity")
def _perplexity(candidates: Candidates, name: str) -> np.ma.MaskedArray:
    """(n,) >= 1, masked where a text is too short to score."""
    from datamap.selection import language_models as language

    args = candidates.args
    if name == "perplexity":
        model_name, load, score = args.causal_lm, language.load_causal, language.perplexity_rows
    else:
        model_name, load, score = args.model, language.load_masked, language.pseudo_perplexity_rows

    def prepare() -> tuple[np.ndarray, Compute]:
        model, tokenizer = load(model_name, args.no_cuda)
        length = models.usable_length(args.max_length, model, tokenizer)
        return score(candidates.texts, model, tokenizer, length, args.batch_size)

    key = {**model_key(model_name, args.no_cuda), "max_length": args.max_length}
    values = np.asarray(candidates.cached(name, key, prepare), dtype=np.float64)
    scores = np.ma.masked_invalid(values)
    if short := np.asarray(candidates.ids)[np.ma.getmaskarray(scores)].tolist():
        logger.warning(f"{len(short):,} of {len(scores):,} texts are too short to score ({name_a_few(short)})")
    return scores


@feature("wordpiece_ratio")
def _wordpiece_ratio(candidates: Candidates) -> np.ndarray:
    from datamap.selection.model_scores import wordpiece_ratio

    _config(candidates.args.model)  # says what is wrong with the name
    return wordpiece_ratio(candidates.texts, models.load_tokenizer(candidates.args.model))


# --- labels that may be wrong -------------------------------------------------------------------------------------


def _checked_embeddings(candidates: Candidates) -> np.ndarray:
    vectors = computed(candidates, "embeddings")
    check_finite(vectors, candidates.ids)
    return vectors


@feature("label_quality", flags=("folds", "probabilities", *EMBEDDING_FLAGS, *WARM_UP_FLAGS))
def _label_quality(candidates: Candidates) -> np.ndarray:
    """cleanlab's label quality, 0..1, less 1 where confident learning calls the label an issue."""
    from datamap.detection.label_quality import label_issues, label_quality, out_of_fold_probabilities

    labels, args = candidates.labels, candidates.args
    if args.probabilities == "model":
        probabilities = _model_out_of_fold(candidates, labels)
    else:
        vectors, names = _checked_embeddings(candidates), candidates.class_names
        probabilities = out_of_fold_probabilities(vectors, labels, len(names), folds=args.folds, seed=args.seed,
                                                  names=names)
    return label_quality(labels, probabilities) - label_issues(labels, probabilities)


def _model_out_of_fold(candidates: Candidates, labels: np.ndarray) -> np.ndarray:
    """(n, C) probabilities of models that were each trained without the fold that they judge."""
    from sklearn.model_selection import StratifiedKFold

    from datamap.selection.model_scores import class_probabilities

    args = candidates.args
    result = np.zeros((len(labels), len(candidates.class_names)))
    fewest = int(np.unique(labels, return_counts=True)[1].min())
    if fewest < args.folds:
        raise UserError(f"--folds {args.folds}: a label has only {fewest:,} examples, and every fold needs one; give "
                        "fewer folds, or leave the label out")
    folds = StratifiedKFold(args.folds, shuffle=True, random_state=args.seed)
    for number, (rest, fold) in enumerate(folds.split(labels, labels), 1):
        logger.info(f"fold {number} of {args.folds}: training on {len(rest):,} examples")
        model, tokenizer = _load(candidates, str(trained_model(candidates, rest)))
        result[fold] = class_probabilities(model, tokenizer, candidates.part(fold), args.batch_size,
                                           **candidates.sizes)
    return result


@feature("self_filter", flags=("rounds", *EMBEDDING_FLAGS))
def _self_filter(candidates: Candidates) -> np.ndarray:
    from datamap.detection.label_quality import self_filter

    labels = candidates.labels  # before what takes long: a question has none
    return self_filter(_checked_embeddings(candidates), labels, len(candidates.class_names),
                       rounds=candidates.args.rounds, seed=candidates.args.seed, names=candidates.class_names)


@feature("flip_rate", flags=("model_path", "perturbations", "copies"))
def _flip_rate(candidates: Candidates) -> np.ndarray:
    """Of small changes to the text, one column at a time: the share after which the prediction is another."""
    from datamap.selection.model_scores import evaluated
    from datamap.selection.perturbations import flip_rate, perturbed_texts, wordnet_synonyms

    args, task = candidates.args, candidates.split.task
    synonyms = wordnet_synonyms() if "synonym" in args.perturbations else None
    path, sizes = _model_path(candidates), {**candidates.sizes, "batch_size": args.batch_size}

    def compute(loaded: tuple[Any, Any], rows: np.ndarray) -> np.ndarray:
        part = candidates.part(rows)
        before, after = evaluated(*loaded, part, **sizes).predicted_values(), [list[Any]() for _ in rows]
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
            found = evaluated(*loaded, dataclasses.replace(part, data=changed), **sizes).predicted_values()
            for number, prediction in zip(place, found, strict=True):
                after[number].append(prediction)
        return flip_rate(before, after).filled(np.nan)

    key = {**model_key(path, args.no_cuda), "perturbations": args.perturbations, "copies": args.copies,
           "seed": args.seed}
    return _by_model(candidates, "flip_rate", path, key, compute)


@feature("judge_flags", flags=JUDGE_FLAGS)
def _judge_flags(candidates: Candidates) -> np.ma.MaskedArray:
    return _flags_of_judge(candidates, candidates.split)


@feature("judge_estimates", flags=(*JUDGE_FLAGS, *EMBEDDING_FLAGS))
def _judge_estimates(candidates: Candidates) -> np.ndarray:
    """(n, 2): flags of the judge, 0..3, or what a student expects them to be; and 1 where they are the judge's."""
    from datamap.selection.llm_judge import VERDICTS
    from datamap.selection.student import asked_rows, check_enough, estimates, told

    asked = asked_rows(candidates.ids, candidates.args.judge_fraction)
    check_enough(len(asked))  # before what costs
    vectors = _checked_embeddings(candidates)
    flags = _flags_of_judge(candidates, candidates.part(asked))
    answered = ~np.ma.getmaskarray(flags)
    rows, marks = asked[answered], flags.compressed()
    expected, report = estimates(vectors, rows, marks, len(VERDICTS), candidates.args.seed)
    report = {"asked": len(asked), **report}
    candidates.reports["judge_estimates"] = {"student": report}
    says = told(report)
    agrees = report["spearman_low"] is not None and report["spearman_low"] > 0
    if agrees and report["mean_absolute_error"] < report["mean_absolute_error_of_the_mean"]:
        logger.info(says)
    else:
        logger.warning(f"{says}: what it says of the others is no better than chance; ask about more "
                       "(--judge_fraction)")
    expected[rows] = marks
    return np.stack([expected, np.isin(np.arange(len(expected)), rows).astype(float)], axis=1)


def _flags_of_judge(candidates: Candidates, split: Split) -> np.ma.MaskedArray:
    """(m,) int64 of the examples of ``split``, which are some of the candidates; masked where there is no verdict."""
    from datamap.selection.llm_judge import DEFAULT_PROMPT, flags, judge
    from datamap.thoughts.judging import texts_and_labels

    args = candidates.args
    if not args.judge_model:
        raise UserError("--selector llm_judge needs --judge_model, the name of a chat model as the server of "
                        "--base_url calls it")
    home = candidates.cache / f"judge-{digest([split.fingerprint, split.task.settings(), args.base_url])}"
    with lock(home / ".waiting", wait=True):  # another seed of a suite asks the same
        return flags(judge(
            split.ids, *texts_and_labels(split), directory=home, model=args.judge_model, base_url=args.base_url,
            prompt_file=args.judge_prompt or DEFAULT_PROMPT, workers=args.workers,
            requests_per_minute=args.requests_per_minute, max_requests=args.max_requests,
        ))


# --- a trained model's view ---------------------------------------------------------------------------------------


def _load(candidates: Candidates, name: str) -> tuple[Any, Any]:
    """Model and tokenizer, on the GPU where there is one."""
    model, tokenizer = models.load_model(name, candidates.split.task, None, candidates.args.max_length, {})
    return model.to(models.device_of_process(candidates.args.no_cuda)), tokenizer


def _by_model(
    candidates: Candidates, name: str, path: str, key: dict[str, Any],
    compute: Callable[[tuple[Any, Any], np.ndarray], np.ndarray],
) -> np.ma.MaskedArray:
    """(n,) numbers, masked where NaN, that ``compute`` makes of model with tokenizer and rows."""

    def prepare() -> tuple[np.ndarray, Compute]:
        return np.arange(len(candidates.position)), partial(compute, _load(candidates, path))

    return np.ma.masked_invalid(candidates.cached(name, {**key, **candidates.sizes}, prepare, dtype=np.float64))


def _model_path(candidates: Candidates) -> str:
    """--model_path; UserError where it is not given."""
    path = candidates.args.model_path
    if not path:
        raise UserError("this selector needs a trained model: --model_path DIR (run.py --do_train writes one), or a "
                        "model of the Hub with a head for the task")
    if trained_fingerprint(path) == candidates.split.fingerprint:
        logger.warning(f"{path} was trained on this very dataset: it is surer of it than of other data")
    return path


@feature("el2n", "grand", flags=("model_path", *WARM_UP_FLAGS))
@feature("entropy", flags=("model_path",))
def _model_score(candidates: Candidates, name: str) -> np.ma.MaskedArray:
    """A score of model_scores.py; EL2N and GraNd of a model that was warmed up for them where none is named."""
    from datamap.selection.model_scores import score_rows

    args = candidates.args
    if name == "entropy" or args.model_path:
        path = _model_path(candidates)
        key = model_key(path, args.no_cuda)
    else:
        path = str(trained_model(candidates, None))
        key = {"trained": Path(path).parent.name}

    def compute(loaded: tuple[Any, Any], rows: np.ndarray) -> np.ndarray:
        scores = score_rows(*loaded, candidates.part(rows), args.batch_size, names=[name], **candidates.sizes)
        return scores[name].filled(np.nan)

    return _by_model(candidates, name, path, key, compute)


def trained_model(candidates: Candidates, rows: np.ndarray | None) -> Path:
    """The directory of a model that run.py trained on some rows (None: all) for --warmup_epochs; kept in the cache."""
    import pandas as pd

    args, split, sizes = candidates.args, candidates.split, candidates.sizes
    settings = read_mapping(args.training_config) if args.training_config else {}
    model = {"name": args.model} if args.model in models.SCRATCH_MODELS else model_key(args.model, args.no_cuda)
    ids = split.ids if rows is None else split.data.select(rows)["id"][:]
    identity = digest([candidates.key, model, settings, args.warmup_epochs, args.seed, sizes, ids])
    home = candidates.cache / f"model-{identity}"
    home.mkdir(parents=True, exist_ok=True)
    write_csv(home / "selected.csv", pd.DataFrame({"id": ids}))
    argv = ["run.py", *([f"--config={args.training_config}"] if args.training_config else []),
            f"--task={split.task.name}", f"--dataset={args.dataset}", f"--train_split={args.split}", "--do_train",
            f"--model={args.model}", f"--num_train_epochs={args.warmup_epochs}", f"--seed={args.seed}",
            *(f"--{name}={value}" for name, value in sizes.items()), f"--train_ids={home / 'selected.csv'}",
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


@feature("forgetting", "aum", "confidence", "variability", flags=("cartography_dir",))
def _cartography(candidates: Candidates, name: str) -> np.ndarray:
    """A column of cartography_metrics.csv, masked where an example has none."""
    path = candidates.args.cartography_dir
    metrics = load_cartography_metrics(path)
    metrics = metrics.drop(list(check_same_dataset(path, metrics.index, candidates.split)))
    columns = ("forgetting_events", "never_learned", "num_epochs") if name == "forgetting" else (name,)
    if lacking := [column for column in columns if column not in metrics]:
        raise UserError(f"{path} has no column {name_a_few(lacking)}; it has {name_a_few(metrics.columns, 20)}")
    values = metrics[columns[0]].astype(float)
    if name == "forgetting":
        values = values.where(~metrics["never_learned"].astype(bool), metrics["num_epochs"].astype(float))
    return np.ma.masked_invalid(values.reindex(candidates.ids).to_numpy(dtype=float))


@feature("losses", flags=("cartography_dir",))
def _losses(candidates: Candidates) -> np.ndarray:
    """(n, epochs) loss of each example in each epoch, nats; masked where it was recorded in none."""
    import pandas as pd

    path, ids = candidates.args.cartography_dir, candidates.ids
    epochs, known = [], set[str]()
    for content in read_dynamics(path):
        if "loss" not in content:
            raise UserError(f"{path}: epoch {content['epoch']} records no loss; record again with run.py")
        epochs.append(pd.Series(content["loss"], index=content["id"], dtype=float).reindex(ids).to_numpy())
        known.update(content["id"])
    losses = np.stack(epochs, axis=1)
    losses[np.isin(ids, list(check_same_dataset(path, known, candidates.split)))] = np.nan
    return np.ma.masked_invalid(losses)
