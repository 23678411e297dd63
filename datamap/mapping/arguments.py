"""The flags of map_dataset.py: its own, and those of run.py and cluster_analysis.py that it hands on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datamap.analysis import cluster_arguments
from datamap.core.configs import flags_to_argv
from datamap.core.errors import UserError
from datamap.core.flags import DEFAULT_MODEL, Parser, positive_int, seed_number
from datamap.core.plots import add_plot_format
from datamap.tasks.registry import TASKS
from datamap.training import arguments
from datamap.training.models import PACKAGED_MODEL

STAGES = ("train", "predictions", "samples", "embeddings", "clusters", "integrated", "unified", "suspects", "page")
EPOCHS = 5
CHECKPOINTS = {"save_strategy": "steps", "save_steps": 0.1, "save_total_limit": 2}
SAVING = {*CHECKPOINTS, "keep_top_epochs", "load_best_model_at_end"}  # any of these, and the user decides all of it
# Flags of run.py that map_dataset.py decides or has itself.
DECIDED = {
    "help", "help_all", "config", "do_train", "do_eval", "task", "text_columns", "label_column", "model", "dataset",
    "output_dir", "overwrite", "plot_format", "resume_from_checkpoint", "enable_cartography",
    "cartography_output_dir", "fold",
}
WITHOUT_TRAINING = {"max_length", "doc_stride", "no_cuda", "seed", "artifact_format"}  # of later stages too
DECIDED_OF_CLUSTERS = {"help", "embedding_dir", "output_dir", "plot_format", "seed"}
SHOWN = {
    "num_train_epochs": f"default: {EPOCHS}", "learning_rate": "default: 5e-5; tiny, lstm and lstm_reader: their own",
    "per_device_train_batch_size": "default: 8", "max_length": "longest window or text, in tokens (default: 512)",
    "doc_stride": "tokens that consecutive windows share (default: 128)", "seed": "default: 42",
    "max_train_samples": "the first N examples only", "no_cuda": "use the CPU even where there is a GPU",
    "cross_fit": "also train K models, each without its fold, which find errors better (costs K - 1 times "
                 "the training)",
    "cross_fit_head": "the same in seconds, for labels: only a linear head on vectors of --model",
}
SHOWN_OF_CLUSTERS = {
    "min_cluster_size": "examples in the smallest cluster (default: 15)",
    "visualization_method": "how clusters are drawn: pca (the default), or umap, which compiles itself first",
}


def build_parser() -> Parser:
    parser = Parser("From a dataset to a page that shows what is in it: train, map, embed, cluster, find errors.",
                    script="map_dataset.py")
    parser.epilog = ("Every other flag of run.py and cluster_analysis.py is accepted too: see their --help. The same "
                     "command goes on where it was stopped.")
    group = parser.add_argument_group("the data")
    group.add_argument("--dataset", help="file (.json .jsonl .csv .parquet), directory with train.*, Hub name or "
                       "demo:NAME (default: that of --cartography_dir)")
    group.add_argument("--task", choices=list(TASKS), help="what it is for (default: guessed from its columns)")
    group.add_list("--text_columns", help="one or two columns with the texts (default: guessed)")
    group.add_argument("--label_column", metavar="NAME", help="column with the classes (default: guessed)")
    group = parser.add_argument_group("the map")
    group.add_argument("--model", help=f"Hub name, directory, {PACKAGED_MODEL} or tiny (default: {DEFAULT_MODEL}; "
                       f"where the Hub is out of reach {PACKAGED_MODEL})")
    group.add_list("--seeds", type=seed_number, metavar="N", help="train once with each, and go on with the joint map "
                   "of all; the model is that of the first (costs a training each)")
    group.add_argument("--output_dir", default="./my_map", help="everything goes there, the page as report.html")
    group.add_list("--skip", choices=STAGES[1:], help=f"stages to leave out: {', '.join(STAGES[1:])}")
    group.add_argument("--report_max_points", type=positive_int, metavar="N",
                       help="above so many examples a random N of them are on the page (default: 20,000)")
    add_plot_format(group)
    group.add_switch("--overwrite", help="do every stage anew, also over what other commands wrote to --output_dir")
    group = parser.add_argument_group("finished artifacts, instead of making them")
    group.add_argument("--cartography_dir", metavar="DIR", help="data map of run.py; nothing is trained, and --model "
                       "is the trained model (default: the one that was recorded)")
    group.add_argument("--embedding_dir", metavar="DIR", help="of extract_embeddings.py")
    group.add_argument("--cluster_dir", metavar="DIR", help="of cluster_analysis.py")
    group.add_argument("--predictions", metavar="FILE", help="of run.py --do_eval on the training split, or its DIR")
    group = parser.add_argument_group("training and clusters")
    group.take_flags(arguments.build_parser(), DECIDED, SHOWN)
    group.take_flags(cluster_arguments.build_parser(), DECIDED_OF_CLUSTERS, SHOWN_OF_CLUSTERS)
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags; those that are handed on as dictionaries, ``training`` and ``clustering``, of what was given."""
    parser = build_parser()
    given = vars(parser.parse_args(sys.argv[1:] if argv is None else argv))
    handed_on = {}
    for name, other, decided in (("training", arguments.build_parser(), DECIDED),
                                 ("clustering", cluster_arguments.build_parser(), DECIDED_OF_CLUSTERS)):
        theirs = {action.dest for action in other._actions} - decided
        handed_on[name] = {flag: given.pop(flag) for flag in sorted(theirs & given.keys())}
    args = argparse.Namespace(**given, **handed_on)
    args.skip = args.skip or []
    _check(parser, args)
    if args.seeds:
        args.training["seed"] = args.seeds[0]
    return args


def _check(parser: Parser, args: argparse.Namespace) -> None:
    if not (args.dataset or args.cartography_dir):
        parser.error("--dataset is missing: a file (.json .jsonl .csv .parquet), a directory, a Hub name or demo:NAME")
    if args.dataset and Path(args.dataset).resolve() == Path(args.output_dir).resolve():
        parser.error(f"--output_dir {args.output_dir} is the dataset; name another directory")
    if args.seeds:
        if len(set(args.seeds)) < max(2, len(args.seeds)):
            parser.error(f"--seeds {' '.join(map(str, args.seeds))}: name two or more, each once; a single one is "
                         "--seed")
        if "seed" in args.training:
            parser.error("--seed and --seeds exclude each other; the first of --seeds is the model's")
        if args.cartography_dir:
            parser.error("--seeds is for trainings, and --cartography_dir brings a finished map; leave one out")
    if args.cartography_dir and (given := set(args.training) - WITHOUT_TRAINING):
        parser.error(f"--{min(given)} is for a training, and --cartography_dir brings a finished one; leave one out")
    if (epochs := args.training.get("num_train_epochs", EPOCHS)) <= 0:
        parser.error(f"--num_train_epochs {epochs:g}: a map is of one epoch at least")
    for flag, stage in (("embedding_dir", "embeddings"), ("cluster_dir", "clusters"), ("predictions", "predictions")):
        if getattr(args, flag) and stage in args.skip:
            parser.error(f"--{flag} and --skip {stage} exclude each other")
        if (place := getattr(args, flag)) and not Path(place).exists():
            parser.error(f"--{flag} {place}: no such file or directory")
    if args.cartography_dir and not Path(args.cartography_dir).exists():
        parser.error(f"--cartography_dir {args.cartography_dir}: no such directory")


def words(parser: Parser, flags: Mapping[str, Any]) -> list[str]:
    """Flags as the words of a command line of the script that ``parser`` is of; None leaves one out."""
    return flags_to_argv(parser, flags, "map_dataset.py")


def check_text_columns(columns: Sequence[str]) -> None:
    """Refuse guessed names that a list flag cannot carry."""
    if odd := [name for name in columns if len(name.replace(",", " ").split()) != 1]:
        raise UserError(f"column {odd[0]!r} has a blank or a comma in its name, and --text_columns takes none such: "
                        "rename it")
