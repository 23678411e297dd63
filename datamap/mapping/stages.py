"""The stages of map_dataset.py: which command line each is, what it reads and leaves, and whether that is there.

A stage is another script's command line. What was begun stands in ``map.json`` of the output directory, with the
settings and what was read, so that a finished one is not done again unless one of these has changed.
"""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamap.analysis import cluster_arguments
from datamap.core.artifacts import artifact_file, content_key, digest, load_meta, recorded_dataset
from datamap.core.errors import UserError
from datamap.core.files import read_json
from datamap.mapping.arguments import CHECKPOINTS, EPOCHS, SAVING, words
from datamap.tasks.guess import Guess
from datamap.training import arguments, embeddings
from datamap.training.models import check_whole_model

STATE = "map.json"
# How long each takes, in passes of the model over the data; of the training see ``train``.
WEIGHTS: dict[str, dict[str, float]] = {
    "train": {"": 15.0}, "joint": {"": 0.5}, "predictions": {"": 1.0}, "samples": {"": 0.5}, "embeddings": {"": 1.0},
    "clusters": {"": 1.5}, "integrated": {"": 0.5}, "unified": {"": 0.5}, "suspects": {"": 0.5}, "page": {"": 1.0},
}
PREDICTIONS, EMBEDDINGS = "eval_predictions.jsonl", "embeddings.npy"


@dataclass(frozen=True)
class Stage:
    """A command line, and what it leaves.

    reads: what it reads -> its place; it is done again when one of these has changed. leaves: name -> place of what
    later stages read. files: that must be there, as patterns. parts: the weights (WEIGHTS) of its parts, by what their
    Progress calls them. expected: how a warning begins that it is bound to give, and that tells nobody anything.
    """

    name: str
    script: str
    argv: tuple[str, ...]
    reads: Mapping[str, str]
    leaves: Mapping[str, str]
    files: tuple[str, ...]
    parts: Mapping[str, float] | None = None
    expected: str = ""

    @property
    def weights(self) -> Mapping[str, float]:
        return self.parts or WEIGHTS[self.name]

    @property
    def trains(self) -> bool:
        return self.name == "train" or self.name.startswith("seed ")

    @property
    def directories(self) -> list[Path]:
        """Those that it writes run_meta.json into, the main one first."""
        return list(dict.fromkeys(Path(place) for place in self.leaves.values()))

    def settings(self, home: str) -> list[str]:
        """Its command line, the same from wherever it is started and wherever ``home``, the output directory, lies."""
        def fixed(word: str) -> str:
            flag, _, value = word.partition("=")
            path = os.path.abspath(value)
            inside = os.path.relpath(path, home)
            if not inside.startswith(".."):
                return f"{flag}={inside}"
            return f"{flag}={path}" if os.path.exists(path) else word

        def relative(word: str) -> str:
            path = os.path.abspath(word)
            return word if word.startswith("-") or not os.path.exists(path) else os.path.relpath(path, home)

        return [self.script, *(fixed(word) if "=" in word else relative(word) for word in self.argv)]

    def what_is_read(self) -> dict[str, str]:
        return {name: content_key(place) if Path(place).exists() else place for name, place in self.reads.items()}

    def made(self) -> str | None:
        """What tells what it left from what it leaves when it is done again; None where that is not whole."""
        for directory in self.directories:
            meta = (load_meta(directory) if directory.is_dir() else None) or {}
            if meta.get("status") != "finished" or not all((directory / name).exists() for name in meta["outputs"]):
                return None
        if not all(next(self.directories[0].glob(each), None) for each in self.files):
            return None
        return digest(self.there())

    def there(self) -> list[str | None]:
        """What lies in its directories, whole or not."""
        return [content_key(place) if place.exists() else None for place in self.directories]


# --- one after the other ------------------------------------------------------------------------------------------


def train(args: argparse.Namespace, guess: Guess, have: Mapping[str, str]) -> Stage | str:
    return training(args, guess, "train", args.training, "model", "cartography", args.output_dir)


def train_again(args: argparse.Namespace, guess: Guess, have: Mapping[str, str], seed: int) -> Stage | str:
    """The same training with another seed, without its folds."""
    given = {flag: value for flag, value in args.training.items() if flag not in OF_FOLDS} | {"seed": seed}
    return training(args, guess, f"seed {seed}", given, f"model of seed {seed}", f"map of seed {seed}",
                    place(args, f"seeds/{seed}"))


def joint(args: argparse.Namespace, guess: Guess, have: Mapping[str, str]) -> Stage | str:
    maps = {"cartography": place(args, "cartography_output"),
            **{name: path for name, path in have.items() if name.startswith("map of seed ")}}
    argv = ("--cartography_dir", *maps.values(), *drawn(args), *of_format(args),
            f"--output_dir={place(args, 'joint_map')}")
    return Stage("joint", "dataset_cartography.py", argv, maps, {"cartography": place(args, "joint_map")},
                 ("joint_map.json",))


def training(
    args: argparse.Namespace, guess: Guess, name: str, given: Mapping[str, Any], model: str, cartography: str,
    home: str,
) -> Stage:
    """A training into ``home`` with these flags of run.py; model, cartography: what it leaves is called so."""
    parser = arguments.build_parser()
    evaluates = args.evaluates or bool({"eval_split", "eval_fraction"} & given.keys())
    flags = {
        "do_train": True, **({"do_eval": True} if evaluates else {}), "enable_cartography": True, "task": guess.task,
        "text_columns": list(guess.text_columns) or None, "label_column": guess.label_column or None,
        "model": args.model, "dataset": args.dataset, "num_train_epochs": EPOCHS,
        **(CHECKPOINTS if not SAVING & given.keys() else {}), **given, **of_pictures(args),
        "output_dir": str(Path(home) / "trainer_output"),
        "cartography_output_dir": str(Path(home) / "cartography_output"),
    }
    argv = words(parser, flags)
    inputs = arguments.inputs_of(arguments.parse_args(argv))  # says at once what contradicts what
    epochs, folds = flags["num_train_epochs"], given.get("cross_fit", 0)
    return Stage(
        name, "run.py", tuple(argv),
        {"dataset": args.dataset, **{name: path for name, path in inputs.items() if path}},
        {model: flags["output_dir"], cartography: flags["cartography_output_dir"]},
        ("config.json", *(["eval_metrics*.json"] if evaluates else [])),
        {**({"folds": 4.0 * epochs * (folds - 1)} if folds else {}), "training": 3.0 * epochs, "evaluating": 0.3},
    )


def predictions(args: argparse.Namespace, guess: Guess, have: Mapping[str, str]) -> Stage | str:
    if (lacking := lacks_model(have)) is not None:
        return lacking
    given = args.training
    recorded = recorded_dataset(have["cartography"]) or {}
    flags = {"do_eval": True, "eval_split": [recorded.get("split", "train")], "model": have["model"],
             "max_eval_samples": recorded.get("max_samples"), **of_task(args),
             **{flag: given[flag] for flag in ("max_length", "doc_stride", "max_answer_length", "no_cuda", "use_cpu",
                                               "per_device_eval_batch_size", "ablations") if flag in given},
             "output_dir": place(args, "train_predictions")}
    return Stage("predictions", "run.py", tuple(words(arguments.build_parser(), flags)), {"model": have["model"]},
                 {"predictions": place(args, "train_predictions")}, (PREDICTIONS,), expected="evaluating on ")


def samples(args: argparse.Namespace, guess: Guess, have: Mapping[str, str]) -> Stage | str:
    return analysis(args, have, "samples", "analyze_cartography.py", "cartography_analysis", ("cartography",),
                    ("hard_samples.json",), *drawn(args))


def embed(args: argparse.Namespace, guess: Guess, have: Mapping[str, str]) -> Stage | str:
    if (lacking := lacks_model(have)) is not None:
        return lacking
    taken = ("max_length", *(["doc_stride"] if guess.task == "qa" else []))
    flags = {"model_path": have["model"], **of_task(args),
             "no_cuda": args.training.get("no_cuda") or args.training.get("use_cpu"),
             **{flag: args.training[flag] for flag in taken if flag in args.training},
             "output_dir": place(args, "embeddings_output")}
    return Stage("embeddings", "extract_embeddings.py", tuple(words(embeddings.build_parser(), flags)),
                 {"model": have["model"]}, {"embeddings": place(args, "embeddings_output")}, (EMBEDDINGS,))


def clusters(args: argparse.Namespace, guess: Guess, have: Mapping[str, str]) -> Stage | str:
    if "embeddings" not in have:
        return "there are no embeddings to cluster"
    parser = cluster_arguments.build_parser()
    seed = {"seed": args.training["seed"]} if "seed" in args.training else {}
    flags = {"embedding_dir": have["embeddings"], **seed, **args.clustering, **of_pictures(args),
             "output_dir": place(args, "cluster_output")}
    argv = words(parser, flags)
    directory = Path(have["embeddings"])
    file = directory / EMBEDDINGS if directory.is_dir() else directory
    try:
        cluster_arguments.check_sizes(parser.parse_args(argv), len(np.load(file, mmap_mode="r")))
    except UserError as error:
        return str(error)
    return Stage("clusters", "cluster_analysis.py", tuple(argv), {"embeddings": have["embeddings"]},
                 {"clusters": place(args, "cluster_output")}, ("cluster_assignments.csv",))


def integrated(args: argparse.Namespace, guess: Guess, have: Mapping[str, str]) -> Stage | str:
    if "clusters" not in have:
        return "it joins the map with clusters"
    return analysis(args, have, "integrated", "analyze_dataset.py", "integrated_analysis",
                    ("cartography", "clusters"), ("patterns.json",), *drawn(args))


def unified(args: argparse.Namespace, guess: Guess, have: Mapping[str, str]) -> Stage | str:
    if "clusters" not in have:
        return "its table has clusters in it"
    return analysis(args, have, "unified", "analyze_dataset.py", "unified_export",
                    ("cartography", "clusters", "predictions"), ("unified_analysis.*",), "--export_unified",
                    *of_format(args))


def of_format(args: argparse.Namespace) -> list[str]:
    """The form that the tables of the training have is that of the later ones."""
    return [f"--artifact_format={args.training['artifact_format']}"] if "artifact_format" in args.training else []


def suspects(args: argparse.Namespace, guess: Guess, have: Mapping[str, str]) -> Stage | str:
    return analysis(args, have, "suspects", "analyze_dataset.py", "suspects",
                    ("cartography", "embeddings", "clusters", "predictions"), ("suspects.csv",), "--find_errors")


def page(args: argparse.Namespace, guess: Guess, have: Mapping[str, str]) -> Stage | str:
    most = [f"--report_max_points={args.report_max_points}"] if args.report_max_points else []
    return analysis(args, have, "page", "analyze_dataset.py", ".",
                    ("cartography", "embeddings", "clusters", "predictions"), ("report.html",), "--report", *most)


ORDER: dict[str, Callable[[argparse.Namespace, Guess, Mapping[str, str]], Stage | str]] = {
    "train": train, "predictions": predictions, "samples": samples, "embeddings": embed, "clusters": clusters,
    "integrated": integrated, "unified": unified, "suspects": suspects, "page": page,
}
OF_FOLDS = ("cross_fit", "cross_fit_head", "cross_fit_workers", "mc_dropout")


def order_of(args: argparse.Namespace) -> dict[str, Callable[[argparse.Namespace, Guess, Mapping[str, str]], Any]]:
    """The stages in their order, with --seeds a training for each of them."""
    again = {f"seed {seed}": functools.partial(train_again, seed=seed) for seed in (args.seeds or ())[1:]}
    rest = {name: build for name, build in ORDER.items() if name != "train"}
    return {"train": train, **again, **({"joint": joint} if again else {}), **rest}


DIRECTORIES = ("trainer_output", "cartography_output", "train_predictions", "cartography_analysis",
               "embeddings_output", "cluster_output", "integrated_analysis", "unified_export", "suspects")
MADE_BY = {"cartography": ("cartography_metrics.csv", "run.py --do_train --enable_cartography"),
           "embeddings": (EMBEDDINGS, "extract_embeddings.py"),
           "clusters": ("cluster_assignments.csv", "cluster_analysis.py"),
           "predictions": (PREDICTIONS, "run.py --do_eval")}
FLAGS = {"cartography": "cartography_dir", "embeddings": "embedding_dir", "clusters": "cluster_dir",
         "predictions": "predictions"}


def place(args: argparse.Namespace, directory: str) -> str:
    return str(Path(args.output_dir) / directory)


def of_task(args: argparse.Namespace) -> dict[str, Any]:
    """The dataset and the task where they were given with a finished map; else they are recorded in what is read."""
    if not args.cartography_dir or not args.dataset:
        return {}
    return {"dataset": args.dataset, "task": args.task, "text_columns": args.text_columns,
            "label_column": args.label_column}


def of_pictures(args: argparse.Namespace) -> dict[str, Any]:
    return {"plot_format": args.plot_format} if hasattr(args, "plot_format") else {}


def drawn(args: argparse.Namespace) -> list[str]:
    return [f"--{flag}={','.join(formats)}" for flag, formats in of_pictures(args).items()]


def analysis(
    args: argparse.Namespace, have: Mapping[str, str], name: str, script: str, directory: str, reads: tuple[str, ...],
    files: tuple[str, ...], *more: str,
) -> Stage:
    """A stage that reads those of ``reads`` that there are, each by a flag."""
    there = {each: have[each] for each in reads if each in have}
    argv = [*more, *(f"--{FLAGS[each]}={path}" for each, path in there.items())]
    for flag, value in of_task(args).items():
        argv += [f"--{flag}={','.join(value) if isinstance(value, list) else value}"] if value else []
    return Stage(name, script, (*argv, f"--output_dir={place(args, directory)}"), there,
                 {name: place(args, directory)}, files)


def lacks_model(have: Mapping[str, str]) -> str | None:
    if "model" not in have:
        return "no trained model is known of the map; --model DIR names it"
    return None


def given_artifacts(args: argparse.Namespace) -> dict[str, str]:
    """Finished artifacts that flags name, by what they are; with a map also its model, where that is still there."""
    have = {name: getattr(args, flag) for name, flag in FLAGS.items() if getattr(args, flag)}
    for name, path in have.items():
        artifact_file(path, *MADE_BY[name])
    if "cartography" in have:
        meta = load_meta(have["cartography"]) or {}
        arguments_of_map = meta.get("arguments", {})
        model = args.model or (arguments_of_map.get("recorded_with") or arguments_of_map).get("output_dir")
        if model and (Path(model) / "config.json").exists():
            check_whole_model(model)
            have["model"] = model
    return have


def read_state(args: argparse.Namespace) -> dict[str, Any]:
    """What earlier commands began and finished in --output_dir; UserError where others wrote there."""
    file = Path(args.output_dir) / STATE
    dataset = os.path.abspath(args.dataset) if args.dataset and os.path.exists(args.dataset) else args.dataset
    if file.exists() and not args.overwrite:
        state = read_json(file)
        if not isinstance(state, dict) or not {"dataset", "data", "default_model", "stages"} <= state.keys():
            raise UserError(f"{file} is none of map_dataset.py's: name another --output_dir")
        if dataset and state["dataset"] != dataset:
            raise UserError(f"{args.output_dir} holds the map of {state['dataset']}: name another --output_dir, or "
                            "replace it with --overwrite")
        return state
    if not args.overwrite:
        there = [name for name in (*DIRECTORIES, "joint_map")
                 if (Path(args.output_dir) / name / "run_meta.json").exists()]
        there += ["report.html"] * (Path(args.output_dir) / "report.html").exists()
        if there:
            raise UserError(f"{args.output_dir} holds {there[0]} that another command made: name another "
                            "--output_dir, or replace it with --overwrite")
    return {"dataset": dataset, "data": None, "default_model": None, "stages": {}}
