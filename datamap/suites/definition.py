"""Suites of experiments: JSON tables of run.py configurations, and what each of their runs is.

    {"name": "filtering", "description": "...", "baseline": "baseline",
     "prerequisites": {"cartography": {"num_train_epochs": 5}},
     "base": {"dataset": "demo:clinical", "do_train": true, "do_eval": true},
     "experiments": [
        {"name": "baseline", "description": "all of the data", "args": {}},
        {"name": "no_hard", "description": "...", "why": "...", "args": {"filter_categories": ["easy", "ambiguous"]}}]}

Keys of ``base`` and ``args`` are flags of run.py, nothing is translated; ``args`` win over flags of the command line,
and these over ``base``; null is run.py's default. An experiment whose filters or ``train_ids`` differ from those of
the baseline gets a size-matched control unless it says ``"control": false``. (``max_train_samples`` is a size and has
none.) ``"select": {"selector": "kcenter", "fraction": 0.1}``, flags of select_subset.py, chooses for every seed what
the experiment trains on; that too is a change of the data, and has a control.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datamap.analysis import cluster_arguments
from datamap.core.artifacts import content_key, digest
from datamap.core.configs import flags_to_argv, read_mapping
from datamap.core.errors import UserError, name_a_few, repeated
from datamap.core.flags import Parser
from datamap.core.places import EXAMPLES
from datamap.core.splits import default_eval_split, load_split
from datamap.selection import arguments as selection_arguments
from datamap.suites.runs import Run, identity_of, run_name
from datamap.training import embeddings
from datamap.training.arguments import build_parser, inputs_of, parse_args, task_of_run
from datamap.training.models import SCRATCH_MODELS
from datamap.training.planted import planted_fingerprint, plants_errors

SUITES = EXAMPLES / "suites"
SUITE_KEYS = {"name", "description", "baseline", "prerequisites", "base", "experiments"}
EXPERIMENT_KEYS = {"name", "description", "why", "args", "select", "control"}
# What makes a prerequisite, in the order of their making: the script and its parser.
SCRIPTS = {
    "cartography": ("run.py", build_parser), "embeddings": ("extract_embeddings.py", embeddings.build_parser),
    "clusters": ("cluster_analysis.py", cluster_arguments.build_parser),
}
CONTROL = "_control"
MAX_NAME = 100  # letters
# Flags of run.py that the suite decides, run by run; of select_subset.py, that it or the run that trains decides.
DECIDED = ("output_dir", "seed", "resume_from_checkpoint", "overwrite", "overwrite_output_dir", "config", "help_all",
           "fold")
DECIDED_OF_SELECTION = ("output_dir", "seed", "config", "list", "dataset", "split", "max_samples", "task",
                        "text_columns", "label_column", "spans")
# Flag of select_subset.py -> that of run.py whose value it takes, unless the suite gives one.
FROM_THE_RUN = {"model": "model", "dataset": "dataset", "split": "train_split", "max_samples": "max_train_samples",
                "task": "task", "text_columns": "text_columns", "label_column": "label_column", "spans": "spans",
                "max_length": "max_length", "doc_stride": "doc_stride", "no_cuda": "no_cuda"}
SELECTED = "selected.csv"
# Of select_subset.py: where and how fast.
SELECTION_PLACES = ("seed", "output_dir", "cache_dir", "batch_size", "workers", "max_requests", "requests_per_minute",
                    "plot_format")
# Where things are, not what they are; what is read is part of a run's identity by its content.
PLACES = ("output_dir", "cartography_output_dir", "cluster_assignments_path", "validation_cartography_output_dir",
          "validation_cluster_assignments_path", "config", "overwrite",
          "resume_from_checkpoint", "seed", "filters", "filter_config", "train_ids", "cross_fit_workers",
          "plot_format")

logger = logging.getLogger(__name__)


@dataclass
class Experiment:
    """One row of a suite. ``argv``: its flags, all but those of DECIDED; ``arguments``: what run.py makes of them."""

    name: str
    description: str
    why: str
    argv: list[str]
    control_of: str | None = None
    arguments: argparse.Namespace = field(default_factory=argparse.Namespace)
    settings_hash: str = ""  # of all but the seed
    wants_control: bool = False
    select: list[str] | None = None  # argv of select_subset.py, all but what FROM_THE_RUN and the seed say


@dataclass
class Suite:
    file: Path
    name: str
    description: str
    baseline: str
    prerequisites: dict[str, list[str]]  # their flags, as argv of the scripts that make them
    base: list[str]
    experiments: list[Experiment]


def suite_file(name: str) -> Path:
    """The file of a built-in suite, or the path itself."""
    if Path(name).suffix == ".json" or Path(name).is_file():
        return Path(name)
    built_in = sorted(path.stem for path in SUITES.glob("*.json"))
    if name not in built_in:
        raise UserError(f"--suite {name}: expected the path of a suite's JSON file, or one of {', '.join(built_in)}")
    return SUITES / f"{name}.json"


def load_suite(path: Path, extra: Sequence[str], controls: bool) -> Suite:
    """The suite in a file, with ``extra`` flags of run.py over its base; UserError for whatever is wrong with it.

    The arguments of the experiments, and their controls, are still to be resolved, when its prerequisites have their
    places.
    """
    table = read_mapping(path)
    _check_keys(table, SUITE_KEYS, f"{path}")
    experiments = table.get("experiments")
    if not isinstance(experiments, list) or not experiments:
        raise UserError(f"{path}: expected a list of experiments, found {experiments!r:.60}")
    parser, select_parser = build_parser(), selection_arguments.build_parser()
    base = [*_argv(parser, table.get("base", {}), f"{path}, base"), *extra]
    found: list[Experiment] = []
    for number, each in enumerate(experiments, 1):
        if not isinstance(each, dict) or not isinstance(each.get("name"), str) or not each["name"]:
            raise UserError(f"{path}, experiment {number}: expected an object with a name, found {each!r:.60}")
        where = f"{path}, experiment {each['name']}"
        _check_keys(each, EXPERIMENT_KEYS, where)
        if not _is_word(each["name"]) or each["name"].endswith(CONTROL):
            raise UserError(f"{where}: the name is that of a directory: no slash, no blank, at most "
                            f"{MAX_NAME} letters, no {CONTROL} at its end")
        args = each.get("args", {})
        own = _argv(parser, args, f"{where}, args")
        unset = {"--" + key.replace("-", "_") for key, value in args.items() if value is None}  # null: the default
        inherited = [word for word in base if word.partition("=")[0] not in unset]
        one = Experiment(each["name"], each.get("description", ""), each.get("why", ""), [*inherited, *own])
        if "select" in each:
            one.select = _argv(select_parser, each["select"], f"{where}, select", DECIDED_OF_SELECTION)
            if any(word.startswith("--train_ids") for word in one.argv):
                raise UserError(f"{where}: select and train_ids both say what to train on; leave one")
        wanted = each.get("control", True)
        if not isinstance(wanted, bool):
            raise UserError(f"{where}: control is {wanted!r}; expected true or false")
        one.wants_control = controls and wanted
        found.append(one)
    names = [one.name for one in found]
    if twice := sorted(repeated(names)):
        raise UserError(f"{path}: two experiments are called {name_a_few(twice)}")
    baseline = table.get("baseline", "baseline" if "baseline" in names else names[0])
    if baseline not in names:
        raise UserError(f"{path}: the baseline {baseline!r} is no experiment; there is {', '.join(names)}")
    named = table.get("prerequisites", {})
    _check_keys(named, set(SCRIPTS), f"{path}, prerequisites")
    prerequisites = {
        name: _argv(SCRIPTS[name][1](), flags, f"{path}, prerequisites, {name}") for name, flags in named.items()
    }
    name = table.get("name", path.stem)
    if not isinstance(name, str) or not _is_word(name) or name == "shared":
        raise UserError(f"{path}: the name {name!r:.60} is that of a directory: no slash, no blank")
    return Suite(path, name, table.get("description", ""), baseline, prerequisites, base, found)


def _is_word(name: str) -> bool:
    """Whether a directory can be called so."""
    return len(name) <= MAX_NAME and name.isprintable() and not set(name) & set("/\\ ") and name.strip(".") != ""


def _check_keys(table: Any, known: set[str], where: str) -> None:
    if not isinstance(table, dict):
        raise UserError(f"{where}: expected an object, found {table!r:.60}")
    if unknown := sorted(set(table) - known):
        raise UserError(f"{where}: unknown key {unknown[0]!r}; there is {', '.join(sorted(known))}")
    for key in ("description", "why"):
        if not isinstance(table.get(key, ""), str):
            raise UserError(f"{where}: {key} is {table[key]!r:.60}; expected a text")


def _argv(parser: Parser, flags: Any, where: str, decided: Sequence[str] = DECIDED) -> list[str]:
    if not isinstance(flags, dict):
        raise UserError(f"{where}: expected flags and their values, found {flags!r:.60}")
    for name in flags:
        if name.replace("-", "_") in decided:
            raise UserError(f"{where}: {name} is decided by the suite, run by run; leave it out")
    return flags_to_argv(parser, flags, where)


# --- what a run is ------------------------------------------------------------------------------------------------


def parse_quietly(parse: Callable[[Sequence[str]], argparse.Namespace], argv: Sequence[str], where: str) -> Any:
    """``parse(argv)``, whose one line of complaint becomes a UserError that begins with ``where``."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            parsed = parse(argv)
        if printed.getvalue():
            print(printed.getvalue(), end="", file=sys.stderr)
        return parsed
    except SystemExit:
        complaint = printed.getvalue().strip().splitlines()[-1].partition("error: ")[2]
        complaint = re.sub(r" \(\S+ --help lists the flags\)$", "", complaint)
        raise UserError(f"{where}: {complaint}") from None
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def resolve(suite: Suite, places: Sequence[str], made: Mapping[str, str]) -> None:
    """Fill in the arguments and hashes of the experiments, and add the controls of those that change the data.

    places: flags that say where the prerequisites are. made: directory of a prerequisite -> its identity, for those
    that the suite makes itself.
    """
    made = dict(made)
    for each in suite.experiments:
        where = f"{suite.file}, experiment {each.name}"
        each.argv = [*places, *each.argv]
        if each.select is not None:
            each.argv.append(f"--train_ids={_resolve_selection(each, where, made)}")  # runs_of says where it is
        each.arguments = parse_quietly(parse_args, each.argv, where)
        if not each.arguments.do_eval:
            raise UserError(f"{where}: it evaluates nothing; add do_eval to base")
        if "random" in each.arguments.filters:
            raise UserError(f"{where}: the suite adds size-matched controls itself; leave filter_random out")
    baseline = next(each.arguments for each in suite.experiments if each.name == suite.baseline)
    experiments, suite.experiments = suite.experiments, []
    seen: dict[str, str] = {}
    for each in experiments:
        for one in (each, *_control(each, baseline)):
            suite.experiments.append(one)
            where = f"{suite.file}, experiment {one.name}"
            one.arguments = parse_quietly(parse_args, one.argv, where) if one is not each else one.arguments
            try:
                one.settings_hash = settings_hash(one.arguments, inputs_of(one.arguments), made)
            except UserError as error:
                raise UserError(f"{where}: {error}") from None
            if (other := seen.setdefault(one.settings_hash, one.name)) != one.name:
                raise UserError(f"suite {suite.name}: {other} and {one.name} come to the same arguments; to compare "
                                "them would say nothing")


def _control(each: Experiment, baseline: argparse.Namespace) -> list[Experiment]:
    """The size-matched control of an experiment that trains on a choice of examples, if it wants one."""
    filters, train_ids = each.arguments.filters, each.arguments.train_ids
    same = (filters, train_ids) == (baseline.filters, baseline.train_ids)
    if same or not (each.wants_control and each.arguments.do_train and (filters or train_ids)):
        return []
    argv = list(each.argv)
    argv.insert(len(argv) - (each.select is not None), "--filter_random=true")  # --train_ids of a selection is last
    return [Experiment(each.name + CONTROL, f"as many examples as {each.name}, drawn at random", "", argv,
                       control_of=each.name, select=each.select)]


def _resolve_selection(each: Experiment, where: str, made: dict[str, str]) -> str:
    """Complete the flags of an experiment's selection; returns a name for what it chooses, whose identity goes into
    ``made``."""
    run = parse_quietly(parse_args, each.argv, where)
    if not run.do_train:
        raise UserError(f"{where}: select says what to train on; add do_train")
    if plants_errors(run):
        raise UserError(f"{where}: select would choose from data without the errors of plant_errors; let run.py plant "
                        "them, and name its planted_data as dataset")
    assert each.select is not None
    given = {word.partition("=")[0].removeprefix("--") for word in each.select}
    for flag, name in FROM_THE_RUN.items():
        value = getattr(run, name, None)
        if flag not in given and value not in (None, False, *SCRATCH_MODELS):  # which give no embeddings
            each.select.append(f"--{flag}={','.join(value) if isinstance(value, list) else str(value)}")
    arguments = parse_quietly(selection_arguments.parse_args, each.select, f"{where}, select")
    if "cartography_dir" in arguments.sources and "cartography_dir" not in given:
        each.select.append(f"--cartography_dir={run.cartography_output_dir}")
        arguments = parse_quietly(selection_arguments.parse_args, each.select, f"{where}, select")
    settings = {name: value for name, value in vars(arguments).items()
                if name not in ("settings", "sources", "read", *SELECTION_PLACES)}
    if arguments.spans != "strict":
        del settings["spans"]
    of_selectors = vars(arguments.settings)
    if arguments.judge_fraction == 1:  # younger than choices that were made without it
        settings, of_selectors = ({name: value for name, value in each.items() if name != "judge_fraction"}
                                  for each in (settings, of_selectors))
    try:
        sources = {flag: made.get(path) or content_key(path) for flag, path in arguments.sources.items()
                   if flag != "model_path" or Path(path).exists()}
    except UserError as error:
        raise UserError(f"{where}, select: {error}") from None
    # Where these are no places they are names of the Hub, which stand in the settings.
    files = [arguments.model, arguments.causal_lm, arguments.training_config, arguments.judge_prompt]
    contents = [content_key(path) if path and Path(path).exists() else None for path in files]
    split = load_split(run.dataset, run.train_split, task_of_run(run))
    by = arguments.stratify if arguments.stratify in split.data.column_names else None
    strata = digest(split.data[by][:]) if by else None  # the fingerprint knows texts and labels only
    if "embeddings" in arguments.features and run.model in SCRATCH_MODELS and "model" not in given:
        logger.info(f"{where}: embeddings by {arguments.model}, as {run.model} gives none; \"model\" in select names "
                    "another")
    identity = digest([settings, of_selectors, sources, contents, split.fingerprint, strata])
    selected = str(Path(f"selection-{identity}") / SELECTED)
    made[selected] = identity
    return selected


def settings_hash(
    arguments: argparse.Namespace, inputs: Mapping[str, str | None], made: Mapping[str, str]
) -> str:
    """16 hex digits over the arguments (without the seed and without places), what is read, and the data."""
    settings = {name: value for name, value in vars(arguments).items() if name not in PLACES}
    if arguments.spans != "strict":  # its default may be given or not
        del settings["spans"]
    if arguments.filter_config:
        settings["filters"] = list(_without_paths(arguments.filters).items())  # their order counts
    read = {label: made.get(str(path)) or content_key(path) for label, path in inputs.items() if path is not None}
    return digest([settings, read, fingerprints(arguments)])


def _without_paths(filters: Any) -> Any:
    if isinstance(filters, dict):
        return {name: _without_paths(value) for name, value in filters.items() if not name.endswith("_path")}
    return [_without_paths(value) for value in filters] if isinstance(filters, list) else filters


def fingerprints(arguments: argparse.Namespace) -> dict[str, str]:
    """``{"train": fingerprint, ...}`` of the splits that a run reads."""
    task = task_of_run(arguments)
    splits = [arguments.train_split] if arguments.do_train else []
    splits += (arguments.eval_split or [default_eval_split(arguments.dataset)]) if arguments.do_eval else []
    found = {split: load_split(arguments.dataset, split, task).fingerprint for split in splits}
    if Path(file := getattr(arguments, "map_split", "")).is_file():
        found["map_split"] = content_key(file)
    if plants_errors(arguments):
        found[arguments.train_split] = planted_fingerprint(arguments, task)
    return found


def runs_of(suite: Suite, seeds: Sequence[int], directory: Path) -> list[Run]:
    """Every run of the suite, experiment by experiment: the seeds of one share what was read and tokenised."""
    runs = []
    for each in suite.experiments:
        for seed in seeds:
            selection: tuple[str, ...] = ()
            argv = list(each.argv)
            if each.select is not None:
                name = Path(argv.pop().partition("=")[2]).parent.name
                chosen = directory.parent / "shared" / f"{name[: len('selection-') + 8]}-seed{seed}"
                argv.append(f"--train_ids={chosen / SELECTED}")
                cache = [] if any(word.startswith("--cache_dir=") for word in each.select) else [
                    f"--cache_dir={directory.parent / 'shared' / 'feature_cache'}"
                ]
                selection = (*each.select, *cache, f"--seed={seed}", f"--output_dir={chosen}")
            identity = identity_of(each.settings_hash, seed)
            place = directory / run_name(each.name, seed, identity)
            argv += [f"--seed={seed}", f"--output_dir={place}"]
            if each.arguments.enable_cartography:
                argv.append(f"--cartography_output_dir={place / 'cartography_output'}")
            config = {
                "suite": suite.name, "experiment": each.name, "seed": seed, "identity": identity,
                "settings_hash": each.settings_hash, "control_of": each.control_of,
                "command": shlex.join(["python", "run.py", *argv]),
            }
            if selection:
                config["selection"] = shlex.join(["python", "select_subset.py", *selection])
            runs.append(Run(each.name, seed, identity, place, tuple(argv), config, each.arguments.enable_cartography,
                            selection))
    return runs
