"""What the experiments of a suite read: a cartography run, embeddings, clusters. Found, or made once and shared."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datamap.cartography.maps import METRICS_FILE
from datamap.core.artifacts import content_key, digest, load_meta
from datamap.core.errors import UserError
from datamap.core.flags import DEFAULT_SEED
from datamap.core.parquet import in_either_form
from datamap.suites.definition import SCRIPTS, Suite, fingerprints, parse_quietly, settings_hash
from datamap.tasks.registry import TASKS
from datamap.training.arguments import inputs_of, parse_args
from datamap.training.prerequisites import Prerequisite, is_made

# What makes a run read a map; the run that makes one does without.
LEFT_OUT = (
    "filter_random", "filter_cartography", "ambiguous_top_fraction", "filter_categories", "filter_clusters",
    "exclude_clusters", "min_cluster_probability", "cluster_assignments_path", "filter_config", "filter_validation",
    "validation_cartography_output_dir", "validation_cluster_assignments_path",
    "train_ids", "max_drop_percentage", "missing", "allow_changed", "use_label_smoothing", "smoothing_factor",
    "use_soft_weighting", "weight_clip_min", "weight_clip_max", "cross_fit", "cross_fit_workers", "cross_fit_head",
    "mc_dropout", "map_split",
    # Nor does it evaluate: suites that differ in how they do share a map.
    "do_eval", "eval_split", "eval_strategy", "eval_steps", "eval_on_start", "eval_ablations", "max_eval_samples",
    "slice_by", "cluster_by", "keep_top_epochs", "load_best_model_at_end", "metric_for_best_model",
    "greater_is_better", "max_answer_length",
)
DEFAULT_EPOCHS = 3.0  # the library's
# What a map depends on, beside the data and the number of rows.
MADE_WITH = ("model", "spans", "ablations", "confidence_type", "hidden_size", "num_layers", "dropout", "vocab_size")

logger = logging.getLogger(__name__)


def plan(suite: Suite, experiments_dir: Path) -> list[Prerequisite]:
    """The prerequisites that the suite names, those that they need themselves first."""
    if not suite.prerequisites:
        return []
    where = f"{suite.file}, prerequisites"
    flags = {name: suite.prerequisites.get(name, []) for name in SCRIPTS}
    base = [word for word in suite.base if word.partition("=")[0].removeprefix("--") not in LEFT_OUT]
    argv = [*base, *flags["cartography"], "--do_train=true", "--enable_cartography=true", f"--seed={DEFAULT_SEED}"]
    arguments = parse_quietly(parse_args, argv, where)
    identity = settings_hash(arguments, inputs_of(arguments), {}) + f"-{arguments.seed}"
    home = experiments_dir / "shared" / f"cartography-{identity[:8]}"
    asked = [word.partition("=")[0].removeprefix("--") for word in flags["cartography"]]
    there = Path(arguments.cartography_output_dir)
    reason = _why_not(there, arguments)
    given = any(word.startswith("--cartography_output_dir") for word in suite.base)
    other = _made_otherwise(there, arguments, asked) if reason is None else {}
    # Epochs are a matter of more or less; with other flags it is used only where somebody names it.
    if not given and (differ := [text for name, text in other.items() if name != "num_train_epochs"]):
        reason = differ[0]
    if reason is not None and there.exists():
        logger.info(f"{there} is no map of all of {arguments.dataset} [{arguments.train_split}] by {arguments.model} "
                    f"({reason}): not used")
    if given and reason is not None:
        raise UserError(f"{where}: {there} is no finished map of {arguments.dataset} [{arguments.train_split}] by "
                        f"{arguments.model} ({reason}); leave --cartography_output_dir out to have one made")
    places = [f"--cartography_output_dir={home / 'cartography_output'}", f"--output_dir={home / 'trainer_output'}"]
    made = Prerequisite("cartography", home / "cartography_output", ["run.py", *argv, *places], identity)
    # One that was made before has been read by the runs that are there.
    is_ours = reason is not None or (not given and is_made(made))
    if other and not is_ours:
        logger.info(f"{there} is used all the same: {', '.join(other.values())}")
    needed = [made if is_ours else Prerequisite("cartography", there, [], None)]
    if "embeddings" in suite.prerequisites or "clusters" in suite.prerequisites:
        needed += _clusters(suite, flags, arguments, needed[0], home)
    return needed


def _recorded_with(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the training that recorded a map, which dataset_cartography.py passes on."""
    return meta["arguments"].get("recorded_with") or meta["arguments"]


def _made_otherwise(directory: Path, arguments: argparse.Namespace, asked: Sequence[str]) -> dict[str, str]:
    """Of the flags that the suite itself gives for its map (asked), those with which a map that is there was not made:
    name -> words."""
    before = {"num_train_epochs": DEFAULT_EPOCHS, **_recorded_with(load_meta(directory) or {})}
    return {name: f"its {name} is {_shown(before.get(name))}, where the suite asks for {_shown(wanted)}"
            for name in dict.fromkeys(asked) if before.get(name) != (wanted := getattr(arguments, name))}


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _why_not(directory: Path, arguments: argparse.Namespace) -> str | None:
    """What keeps a directory from being a finished map of what the baseline trains on, by the same model; or None."""
    meta = load_meta(directory) if directory.is_dir() else None
    if meta is None:
        return "it holds no run_meta.json"
    if meta["status"] != "finished":
        return f"it is marked {meta['status']}"
    if not meta.get("datasets"):
        return "it names no dataset"
    before = _recorded_with(meta)
    for name in MADE_WITH:
        if before.get(name) != getattr(arguments, name):
            return f"its {name} is {before.get(name)}, not {getattr(arguments, name)}"
    rows = meta["datasets"][0]["rows"]
    if (before.get("max_train_samples") or rows) < min(arguments.max_train_samples or rows, rows):
        return f"its max_train_samples is {before['max_train_samples']}"
    if before.get("filters") or before.get("train_ids"):
        return "it was made with filters or train_ids"
    if meta["datasets"][0]["fingerprint"] != fingerprints(arguments)[arguments.train_split]:
        return f"it is of {meta['datasets'][0]['dataset']}"
    return None if in_either_form(directory / METRICS_FILE).exists() else f"it holds no {METRICS_FILE}"


def _clusters(
    suite: Suite, flags: dict[str, list[str]], arguments: argparse.Namespace, cartography: Prerequisite, home: Path
) -> list[Prerequisite]:
    existing = Path(arguments.cluster_assignments_path)
    if _are_clusters_of(existing, arguments):
        return [Prerequisite("clusters", existing, [], None)]
    if existing.exists():
        logger.info(f"{existing} holds no finished clusters of all of {arguments.dataset} "
                    f"[{arguments.train_split}]: not used")
    model = home / "trainer_output"
    if not cartography.command:
        model = Path(_recorded_with(load_meta(cartography.directory) or {})["output_dir"])
        if not (model / "config.json").exists():
            raise UserError(f"{suite.file}, prerequisites: clusters need the model of {cartography.directory}, and "
                            f"{model} holds none; move the map away to have both made")
    origin = cartography.identity or content_key(cartography.directory)
    identity = digest([origin, flags["embeddings"], flags["clusters"]])
    home = home.with_name(f"clusters-{identity[:8]}")
    lengths = ["max_length", *(["doc_stride"] if "doc_stride" in TASKS[arguments.task].flags else [])]
    sizes = [f"--{name}={getattr(arguments, name)}" for name in lengths]
    if arguments.max_train_samples:
        sizes.append(f"--max_samples={arguments.max_train_samples}")
    places = {
        "embeddings": [f"--model_path={model}", f"--split={arguments.train_split}",
                       *sizes, f"--no_cuda={arguments.no_cuda}".lower(),
                       f"--output_dir={home / 'embeddings_output'}"],
        "clusters": [f"--embedding_dir={home / 'embeddings_output'}", f"--output_dir={home / 'cluster_output'}"],
    }
    needed = []
    for name, own in places.items():
        script, build_parser = SCRIPTS[name]
        argv = [*own, *flags[name]]
        parse_quietly(build_parser().parse_args, argv, f"{suite.file}, prerequisites, {name}")
        needed.append(Prerequisite(name, Path(own[-1].partition("=")[2]), [script, *argv], identity))
    return needed


def _are_clusters_of(directory: Path, arguments: argparse.Namespace) -> bool:
    meta, file = load_meta(directory) if directory.is_dir() else None, directory / "cluster_assignments.csv"
    if meta is None or meta["status"] != "finished" or not meta.get("datasets") or not file.exists():
        return False
    recorded = meta["datasets"][0]
    rows = sum(1 for _ in file.open("rb")) - 1
    asked = min(arguments.max_train_samples or recorded["rows"], recorded["rows"])
    return recorded["fingerprint"] == fingerprints(arguments)[arguments.train_split] and rows >= asked


def places_of(needed: Sequence[Prerequisite]) -> list[str]:
    """The flags of run.py that say where the prerequisites are."""
    flags = {"cartography": "--cartography_output_dir", "clusters": "--cluster_assignments_path"}
    return [f"{flags[each.name]}={each.directory}" for each in needed if each.name in flags]
