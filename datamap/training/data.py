"""Which examples a run trains on and evaluates on, and why."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.analysis.filter_config import apply_filters, filter_inputs
from datamap.cartography.metrics import load_cartography_metrics
from datamap.core.artifacts import artifact_file, check_same_dataset, digest, recorded_dataset
from datamap.core.clusters import NO_CLUSTERS, Clusters
from datamap.core.errors import UserError, name_a_few
from datamap.core.files import nulls_for_nan, read_json, read_table, write_json, write_jsonl
from datamap.core.splits import Split, content_fingerprint, default_eval_split, load_split, overlap
from datamap.detection.out_of_fold import HEAD_FOLDS, folds_of
from datamap.tasks.base import Task
from datamap.tasks.classification import label_values
from datamap.tasks.evaluation import Evaluation
from datamap.tasks.slices import cluster_values, slice_columns
from datamap.training.arguments import evaluation_filters, task_of_run
from datamap.training.models import trained_fingerprint
from datamap.training.planted import beside_planted_errors, plants_errors, with_planted_errors

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

# Setting of a filter -> the flag that names it for what is evaluated, and what makes it.
OF_EVALUATED = {
    "metrics_path": ("--validation_cartography_output_dir", "run.py --do_train --enable_cartography --train_split"),
    "cluster_path": ("--validation_cluster_assignments_path", "cluster_analysis.py"),
}
FILTER_REPORT = "filter_report.json"

logger = logging.getLogger(__name__)


@dataclass
class RunData:
    """What a run trains on and evaluates on, and what came of choosing it.

    loaded: the training split before any example was dropped or filtered, None without training. variability: of each
    training example, for the curriculum. slices: of each evaluated split, values to slice by, by column. clusters:
    of each, what its examples go together by, where --cluster_by says so; None for each by itself. kept: of each, the
    ids that the filters keep, where they were asked, and kept_reports what they took and why. folds: (training
    examples,) from 1, where models that have not seen an example are asked about it. held_out: the fold that this run
    only asks about. mapped: of which a map is recorded beside that of what is trained on (--map_split).
    """

    task: Task
    loaded: Split | None
    train: Split | None
    filter_report: dict[str, Any] | None
    variability: np.ndarray | None
    evaluated: list[Split]
    slices: dict[str, dict[str, list]]
    kept: dict[str, set[str]] | None
    kept_reports: dict[str, dict[str, Any]] | None
    folds: np.ndarray | None = None
    held_out: Split | None = None
    mapped: Split | None = None
    clusters: dict[str, Clusters | None] = dataclasses.field(default_factory=dict)

    def evaluation(self, split: Split, features: datasets.Dataset) -> Evaluation:
        """Of an evaluated split."""
        evaluation = split.task.evaluation(split.data, features)
        if split.split in self.clusters:
            evaluation.clusters = self.clusters[split.split]
        return evaluation

    def rows_digest(self) -> str:
        """16 hex digits over the ids that are trained on and their variability."""
        assert self.train is not None
        return digest([self.train.ids, None if self.variability is None else self.variability.tolist()])

    def match_labels(self, config: PreTrainedConfig) -> None:
        """Number the labels as the model numbers them."""
        for split in [*filter(None, [self.train, self.held_out, self.mapped]), *self.evaluated]:
            split.data = split.task.match_labels(split.data, config, f"{split.name} [{split.split}]")


def load_data(args: argparse.Namespace) -> RunData:
    """UserError for whatever is wrong with the data, before any model is loaded."""
    task = task_of_run(args)
    loaded, train, report, variability, evaluated = None, None, None, None, []
    if args.do_train:
        loaded, train, report = training_split(args, task)
        task, variability = loaded.task, known_variability(args, train)
    if args.do_eval or watches(args):
        evaluated = evaluation_splits(args, task)
        task = evaluated[-1].task
    slices = {
        split.split: slice_columns(split.data, args.slice_by or (), f"{args.dataset} [{split.split}]")
        for split in evaluated
    }
    kept, reports = filtered_evaluation(args, evaluated) if args.filter_validation else (None, None)
    data = RunData(task, loaded, train, report, variability, evaluated, slices, kept, reports)
    if hasattr(args, "map_split"):
        data.mapped = split_to_map(args, task)
    if (column := getattr(args, "cluster_by", None)) is not None:
        for split in evaluated:
            source = f"{args.dataset} [{split.split}]"
            data.clusters[split.split] = None if column == NO_CLUSTERS else Clusters(
                cluster_values(split.data, column, source))
    folds = getattr(args, "cross_fit", None) or HEAD_FOLDS * getattr(args, "cross_fit_head", False)
    if train is not None and folds:
        data.folds = folds_of(train, folds, args.seed)
        if hasattr(args, "fold"):
            inside = data.folds == args.fold
            data.train = dataclasses.replace(train, data=train.data.select(np.flatnonzero(~inside)))
            data.held_out = dataclasses.replace(train, data=train.data.select(np.flatnonzero(inside)))
    return data


def filtered_evaluation(
    args: argparse.Namespace, evaluated: Sequence[Split]
) -> tuple[dict[str, set[str]], dict[str, dict[str, Any]]]:
    """Of each evaluated split, the ids that --filter_validation keeps, and the report of the filters."""
    config = evaluation_filters(args)
    for name, path in filter_inputs(config).items():
        flag, maker = OF_EVALUATED.get(name.rpartition(".")[2], ("", ""))
        if flag and not Path(path).exists():
            raise UserError(f"{path}: no such file or directory; there --filter_validation reads ({flag}) what "
                            f"{maker} makes of the examples that are evaluated")
    kept, reports = {}, {}
    for split in evaluated:
        logger.info(f"filters of the evaluation on {split.split}:")
        data, reports[split.split] = apply_filters(split, config, seed=args.seed, return_report=True)
        kept[split.split] = set(data["id"][:])
    return kept, reports


def write_filter_report(directory: Path, data: RunData, trained: bool) -> None:
    """What filters took from the training data, and under ``evaluation`` from each split that is evaluated. A run that
    only evaluates leaves what the training of the model wrote there."""
    file = directory / FILTER_REPORT
    before = read_json(file) if file.exists() and not trained else {}
    report = (data.filter_report or {}) if trained else {
        name: value for name, value in before.items() if name != "evaluation"}
    report |= {"evaluation": data.kept_reports} if data.kept_reports else {}
    if report and report != before:
        write_json(file, report)
    elif before and not report:
        file.unlink()


def watches(args: argparse.Namespace) -> bool:
    """Whether the first evaluated split is evaluated during training too."""
    return getattr(args, "eval_strategy", "no") != "no" or getattr(args, "eval_on_start", False)


def training_split(args: argparse.Namespace, task: Task) -> tuple[Split, Split, dict[str, Any] | None]:
    """The training split as loaded, the same after dropping and filtering, and the report of what went and why."""
    loaded = load_split(args.dataset, args.train_split, task, args.max_train_samples)
    if plants_errors(args):
        loaded = with_planted_errors(args, loaded)
    loaded.allow_changed = getattr(args, "allow_changed", False)
    task, data, report = loaded.task, loaded.data, []
    task.check_training_data(data, args.dataset)
    usable = task.is_usable(data)
    if not usable.all():
        bad = [data["id"][row] for row in np.flatnonzero(~usable)]
        logger.warning(f"{len(bad):,} of {len(data):,} examples ({name_a_few(bad)}) are not trained on: "
                       f"{task.unusable}")
        report.append({"filter": "unusable", "before": len(data), "after": len(data) - len(bad),
                       "removed": {task.unusable: bad}})
        data = data.select(np.flatnonzero(usable))
    used, among, filter_report = dataclasses.replace(loaded, data=data), None, None
    if args.train_ids:
        among = _is_selected(data, args.train_ids, loaded)
        removed = [example for example, kept in zip(data["id"][:], among, strict=True) if not kept]
        report.append({"filter": "train_ids", "before": len(data), "after": int(among.sum()),
                       "removed": {f"not in {args.train_ids}": removed}})
    if args.filters:
        used.data, filter_report = apply_filters(
            used, args.filters, seed=args.seed, max_drop_percentage=args.max_drop_percentage, return_report=True,
            among=among,
        )
        if among is not None and filter_report["size_matched_to"] is not None:
            filter_report["size_matched_to"].insert(0, report.pop())  # it only said how many
    elif among is not None:
        used.data = data.select(np.flatnonzero(among))
    if not report and filter_report is None:
        return loaded, used, None
    task.check_training_data(used.data, f"{args.dataset} after filtering")
    if len(used.data) < len(loaded.data):
        logger.info(f"{len(used.data):,} of {len(loaded.data):,} examples are left to train on")
    filters = (filter_report or {}).get("filters", [])
    whole = {"before": len(loaded.data), "after": len(used.data)}
    return loaded, used, {**(filter_report or {}), **whole, "filters": [*report, *filters]}


def split_to_map(args: argparse.Namespace, task: Task) -> Split:
    """What --map_split names, a split of --dataset or a file, without the examples that have no label to learn."""
    is_file = Path(args.map_split).is_file()
    name, split = (args.map_split, "train") if is_file else (args.dataset, args.map_split)
    loaded = load_split(name, split, task, args.max_eval_samples)
    if not is_file:
        if overlap(split, args.train_split):
            raise UserError(f"--map_split {split} is trained on (--train_split {args.train_split}), and its map is "
                            "recorded without the flag; name another split, or a file")
        if plants_errors(args):
            loaded = beside_planted_errors(args, loaded, task)
    usable = loaded.task.is_usable(loaded.data)
    if not usable.any():
        raise UserError(f"--map_split {args.map_split}: no example can be judged: {loaded.task.unusable}")
    if not usable.all():
        logger.warning(f"--map_split {args.map_split}: {int((~usable).sum()):,} of {len(usable):,} examples are not "
                       f"in its map: {loaded.task.unusable}")
    return dataclasses.replace(loaded, data=loaded.data.select(np.flatnonzero(usable)))


def leave_out_unlearnable(args: argparse.Namespace, data: RunData, tokenizer: PreTrainedTokenizerBase) -> None:
    """Take examples out of the training data whose labels, in the tokens of this model, are not what they say."""
    if data.train is None:
        return
    train, task = data.train, data.train.task
    features = features_of(train, tokenizer, args.max_length, args.doc_stride, args.ablations)
    rows = np.asarray(features["example_index"][:])
    learnable = np.ones(len(train.data), dtype=bool)
    learnable[rows[~task.is_learnable(features)]] = False
    if learnable.all():
        return
    kept, bad = np.flatnonzero(learnable), np.asarray(train.ids)[~learnable].tolist()
    if not len(kept):
        raise UserError(f"{args.dataset} [{args.train_split}]: {task.unlearnable}, in every example "
                        f"({name_a_few(bad)}); check answers and answer_start")
    logger.warning(f"{len(bad):,} of {len(train.data):,} examples ({name_a_few(bad)}) are not trained on: "
                   f"{task.unlearnable}")
    report = {"filter": "unlearnable", "before": len(train.data), "after": len(kept),
              "removed": {task.unlearnable: bad}}
    earlier = data.filter_report or {"before": len(train.data), "filters": []}
    data.filter_report = {**earlier, "after": len(kept), "filters": [*earlier["filters"], report]}
    data.train = dataclasses.replace(train, data=train.data.select(kept))
    data.variability = None if data.variability is None else data.variability[kept]


def write_split(file: Path, split: Split) -> None:
    """The examples as JSON Lines that ``load_split`` reads as the same examples: classes by their names.

    UserError where it does not; a class called "-", for example, means in a file that there is no gold label.
    """
    classes = {
        column: dict(enumerate(label_values(feature.names)))
        for column, feature in split.data.features.items() if getattr(feature, "names", None) is not None
    }
    write_jsonl(file, (
        {**nulls_for_nan(row), **{column: names.get(row[column]) for column, names in classes.items()}}
        for row in split.data
    ))
    try:
        written = load_split(str(file), "train", split.task)
        if written.fingerprint != content_fingerprint(split.data, split.task.content_columns):
            raise UserError(f"{split.name} [{split.split}] is other content when it is read again from {file}; "
                            "classes called '-', '-1' or '1.0' need other names")
    except UserError:
        file.unlink()
        raise


def _is_selected(data: Any, path: str, split: Split) -> np.ndarray:
    """(n,) bool: the examples whose ids the CSV lists."""
    wanted = read_table(artifact_file(path, "selected.csv", "select_subset.py"), columns=("id",))["id"].tolist()
    changed = check_same_dataset(path, wanted, split)
    selected = np.isin(data["id"][:], [example for example in wanted if example not in changed])
    if not selected.any():
        raise UserError(f"{path}: none of its {len(wanted):,} ids are among the examples to train on")
    if selected.sum() < len(wanted):
        absent = sorted(set(wanted) - set(data["id"][:]))
        logger.warning(f"{path}: {len(absent):,} ids ({name_a_few(absent)}) are not among the training examples")
    return selected


@dataclass(frozen=True)
class _Tokenised:
    """Features, and how their making left the tokenizer, on which padding and the files of a model depend."""

    features: datasets.Dataset
    tokenizer: PreTrainedTokenizerBase | None  # a slow one, which has no state to compare, so none may take its place
    sides: tuple[str, str]
    truncation: dict[str, Any] | None


_features: dict[tuple[Any, ...], _Tokenised] = {}


def features_of(
    split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int, doc_stride: int, ablation: str
) -> datasets.Dataset:
    """``Task.features`` of a split. The last few are kept: runs of a suite that follow each other share them.

    The tokenizer is left as making them leaves it, whether they are made now or not.
    """
    if (backend := tokenizer.backend_tokenizer if tokenizer.is_fast else None) is not None:
        backend.no_truncation()  # what its last call asked for says nothing of the next
        backend.no_padding()
    state = backend.to_str() if backend is not None else str(id(tokenizer))
    fingerprint = split.data._fingerprint  # of the rows, not of the whole split
    asked = (max_length, doc_stride, ablation)
    read_as = digest([state, tokenizer.model_input_names, tokenizer.split_special_tokens, tokenizer.truncation_side,
                      tokenizer.cls_token_id])
    key = (fingerprint, read_as, split.task, *asked)
    if (made := _features.pop(key, None)) is None:
        features = split.task.features(split.data, tokenizer, *asked)
        made = _Tokenised(features, None if tokenizer.is_fast else tokenizer,
                          (tokenizer.padding_side, tokenizer.truncation_side),
                          backend.truncation if backend is not None else None)
    else:
        tokenizer.padding_side, tokenizer.truncation_side = made.sides
        if backend is not None and made.truncation is not None:
            backend.enable_truncation(**made.truncation)
    _features[key] = made  # the latest stands last
    for old in list(_features)[:-4]:
        del _features[old]
    return made.features


def evaluation_splits(args: argparse.Namespace, task: Task) -> list[Split]:
    """The splits to evaluate on; one that is trained on is refused unless --eval_split asks for it."""
    splits = []
    for name in args.eval_split or [default_eval_split(args.dataset)]:
        loaded = load_split(args.dataset, name, task, args.max_eval_samples)
        if plants_errors(args):
            loaded = beside_planted_errors(args, loaded, task)
        loaded.allow_changed = getattr(args, "allow_changed", False)
        if _was_trained_on(args, loaded) or (args.do_train and overlap(name, args.train_split)):
            if not args.eval_split:
                raise UserError(
                    f"{args.dataset} [{name}] is what the model trains on, and evaluating on it needs asking: give a "
                    f"directory with train.* and validation.*, --eval_fraction 0.1 to hold some of it out, or "
                    f"--eval_split {name}"
                )
            logger.warning(f"evaluating on {name!r}, which the model was trained on; that says nothing of other data")
        unusable = int((~loaded.task.is_usable(loaded.data)).sum())
        if unusable:
            logger.warning(f"{unusable:,} evaluation examples: {loaded.task.unusable}; they are scored all the same")
        splits.append(loaded)
    return splits


def _was_trained_on(args: argparse.Namespace, split: Split) -> bool:
    """Whether the model was trained on these examples or some of them."""
    if trained_fingerprint(args.model) == split.fingerprint:
        return True
    recorded = recorded_dataset(args.model) if Path(args.model).is_dir() else None
    return bool(recorded and recorded["dataset"] == split.identity()["dataset"]
                and overlap(recorded["split"], split.split))


def known_variability(args: argparse.Namespace, split: Split) -> np.ndarray | None:
    """Variability of each example for the curriculum, NaN where it has no metrics; None without a curriculum."""
    if not (args.use_label_smoothing or args.use_soft_weighting):
        return None
    metrics = load_cartography_metrics(args.cartography_output_dir)
    changed = check_same_dataset(args.cartography_output_dir, metrics.index, split)
    variability = metrics["variability"].drop(list(changed)).reindex(split.ids).to_numpy(dtype=float)
    unknown = int(np.isnan(variability).sum())
    if unknown:
        logger.warning(f"{unknown:,} of {len(variability):,} examples have no metrics: weight 1, no smoothing")
    if not np.nansum(variability):
        logger.warning(f"no example of {args.cartography_output_dir} varies: smoothing is 0 and every weight 1")
    return variability
