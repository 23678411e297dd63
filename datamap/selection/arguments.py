"""The arguments of select_subset.py: its flags, and what contradicts what."""

from __future__ import annotations

import argparse
import difflib
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from datamap.core.artifacts import check_not_read, check_writable, recorded_cap, recorded_dataset, recorded_task
from datamap.core.configs import with_config
from datamap.core.errors import UserError
from datamap.core.flags import ALLOW_CHANGED, DEFAULT_SEED, Parser, fraction, positive_int, seed_number
from datamap.core.plots import add_plot_format
from datamap.selection.base import SELECTORS, SETTINGS, Settings, needed, settings_of
from datamap.selection.features import FEATURES
from datamap.selection.perturbations import KINDS
from datamap.selection.selectors import parse_members
from datamap.selection.text_metrics import MATTR_WINDOW
from datamap.tasks.base import Task
from datamap.tasks.registry import TASKS, add_task_flags
from datamap.thoughts.chat_client import server_address

DEFAULT_DATASET, DEFAULT_TASK = "stanfordnlp/sst2", "classification"
DEFAULT_ENCODER, DEFAULT_CAUSAL_LM = "answerdotai/ModernBERT-base", "Qwen/Qwen3-1.7B-Base"
POOLINGS = ("mean", "cls", "cls_and_answer_mean")
SOURCES = ("cartography_dir", "embedding_dir", "model_path")  # flags that name what is read
DRAWN = ("cartography_dir", "embedding_dir")  # what is chosen is drawn on them also where the selector reads neither
DEFAULT_MAP = "./cartography_output"
MADE_BY = {"cartography_dir": "run.py --enable_cartography", "embedding_dir": "extract_embeddings.py"}


def build_parser() -> Parser:
    parser = Parser("Choose k examples of a dataset to train on, and say why.", script="select_subset.py")
    parser.add_argument("--config", metavar="FILE", help="JSON file of flags; those given here win over it")
    parser.add_switch("--list", help="say what every selector does, and do nothing else")
    group = parser.add_argument_group("how many of what")
    group.add_argument("--selector", metavar="NAME", help="see --list")
    group.add_argument("--fraction", type=fraction, metavar="F", help="share of the examples to choose, above 0 to 1")
    group.add_argument("--k", type=positive_int, metavar="N", help="how many to choose, instead of --fraction")
    group.add_argument("--stratify", metavar="COLUMN",
                       help="choose from every value of this column in proportion; label: the class label")
    group.add_argument("--fill", choices=("random",), help="top up a selector that leaves too few, and say so")
    group.add_argument("--seed", type=seed_number, default=DEFAULT_SEED, help="of everything that is drawn")
    group.add_argument("--output_dir", default="./selection_output", help="where the files go")
    add_plot_format(group)

    group = parser.add_argument_group("data")
    group.add_argument("--dataset", help="Hub name, file, directory or demo:... (default: that of what is read, else "
                       f"{DEFAULT_DATASET})")
    group.add_argument("--split", help="split to choose from (default: as recorded, else train)")
    group.add_argument("--max_samples", type=positive_int, metavar="N", help="choose among the first N rows only "
                       "(default: those that what is read was made from)")
    group.add_switch("--allow_changed", default=argparse.SUPPRESS, help=ALLOW_CHANGED)
    add_task_flags(group, DEFAULT_TASK)

    group = parser.add_argument_group("models and features")
    group.add_argument("--model", default=DEFAULT_ENCODER,
                       help="Hub name, directory or minilm: gives embeddings, pseudo-perplexity and word pieces; also "
                            "what a warm-up trains")
    group.add_argument("--model_path", metavar="DIR", help="trained model for predictive_entropy and consistency, and "
                       "for el2n and grand instead of a warm-up")
    group.add_argument("--pooling", choices=POOLINGS, help="of embeddings (default: mean; of qa cls_and_answer_mean)")
    group.add_argument("--embedding_dir", metavar="DIR",
                       help="embeddings that extract_embeddings.py wrote; what is chosen is drawn on them")
    group.add_argument("--cartography_dir", metavar="DIR", help="what run.py --enable_cartography wrote; what is "
                       f"chosen is drawn on it (default: {DEFAULT_MAP} where the selector reads it)")
    group.add_argument("--max_length", type=positive_int, default=512, help="longest window or text, in tokens")
    group.add_argument("--doc_stride", type=positive_int, default=128, metavar="N",
                       help="tokens that two windows share, for qa")
    group.add_argument("--batch_size", type=positive_int, default=32, help="windows or texts in a batch")
    group.add_argument("--cache_dir", default="./feature_cache", metavar="DIR", help="where features are kept")
    group.add_switch("--no_cuda", help="use the CPU even where there is a GPU (on a GPU: bfloat16)")

    group.add_argument("--causal_lm", default=DEFAULT_CAUSAL_LM, metavar="NAME", help="model of perplexity")
    group.add_argument("--warmup_epochs", type=positive_int, default=1, metavar="N",
                       help="epochs of training before el2n and grand, and of every fold")
    group.add_argument("--training_config", metavar="FILE", help="JSON of run.py flags for that training")
    group.add_argument("--folds", type=positive_int, default=5, metavar="N",
                       help="of label_issues: every probability is of a model that did not see the example")
    group.add_argument("--probabilities", choices=("embeddings", "model"), default="embeddings",
                       help="of label_issues: by a linear head on embeddings, or by --model trained on every fold")
    group.add_argument("--rounds", type=positive_int, default=10, metavar="N", help="of self_filter")
    group.add_list("--perturbations", choices=KINDS, default=list(KINDS),
                   help="of consistency; synonyms are WordNet's")
    group.add_argument("--copies", type=positive_int, default=3, metavar="N", help="changed copies of every text")
    group.add_argument("--mattr_window", type=positive_int, default=MATTR_WINDOW, metavar="WORDS",
                       help="of MATTR; shorter texts have none")

    group = parser.add_argument_group("settings of selectors")
    for setting in SETTINGS.values():
        add = group.add_list if isinstance(setting.default, tuple) else group.add_argument
        default = list(setting.default) if isinstance(setting.default, tuple) else setting.default
        add(f"--{setting.name}", default=default, help=setting.help, **setting.options)

    group = parser.add_argument_group("several selectors")
    group.add_argument("--pipeline", metavar="A:SHARE,B:SHARE",
                       help="one after the other; shares are of all examples, the last says how many are chosen")
    group.add_argument("--fusion", metavar="A:WEIGHT,B:WEIGHT", help="weighted mean of their rank-normalised scores, "
                       "and with kcenter among them of the distance from what is chosen already")

    group = parser.add_argument_group("judge (any OpenAI-compatible server; the key is read from OPENAI_API_KEY)")
    group.add_argument("--judge_model", metavar="NAME", help="as the server calls it")
    group.add_argument("--base_url", metavar="URL", help="such as http://localhost:8000/v1 (default: OpenAI's)")
    group.add_argument("--workers", type=positive_int, default=8, metavar="N", help="requests at a time")
    group.add_argument("--max_requests", type=positive_int, metavar="N", help="budget of this call, retries included")
    group.add_argument("--requests_per_minute", type=positive_int, metavar="N", help="default: no limit")
    group.add_argument("--judge_prompt", metavar="FILE", help="prompt instead of example_configs/prompts/judge.txt")
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = build_parser()
    args = parser.parse_args(_with_config(parser, sys.argv[1:] if argv is None else argv))
    if args.list:
        return args
    _name_the_selector(parser, args)
    _check_size(parser, args)
    args.settings = _settings(parser, args)
    args.features = list(needed(args.selector, args.settings))
    read = settings_of(args.selector, args.settings)
    read |= {flag for name in args.features for flag in FEATURES[name].flags}
    read |= {flag for flag in DRAWN if getattr(args, flag)}
    args.cartography_dir = args.cartography_dir or DEFAULT_MAP
    every = {*SETTINGS, *(flag for feature in FEATURES.values() for flag in feature.flags)}
    for flag in sorted(every - read - {*DRAWN}):
        if getattr(args, flag) != parser.get_default(flag):
            more = " (--model names the encoder)" if flag == "model_path" and "embeddings" in args.features else ""
            parser.error(f"--{flag} does nothing with --selector {args.selector}{more}")
    _check_idle(parser, args, read)
    if args.base_url:
        server_address(args.base_url)
    # What is read records the dataset, and what task it is for.
    sources = {flag: getattr(args, flag) for flag in SOURCES if flag in read}
    args.sources = {flag: path for flag, path in sources.items() if path}
    recorded = next(filter(None, map(recorded_dataset, args.sources.values())), {})
    named = {} if args.dataset else recorded
    args.dataset = args.dataset or recorded.get("dataset", DEFAULT_DATASET)
    args.split = args.split or named.get("split", "train")
    args.max_samples = args.max_samples or recorded_cap(recorded, args.dataset, args.split)
    args.task = args.task or (recorded_task(*args.sources.values()) or {}).get("name") or DEFAULT_TASK
    if args.task == "qa" and args.strata == parser.get_default("strata") and "label" in args.features:
        args.strata = [name for name in args.strata if name != "label"]  # which questions have not
        args.settings = args.settings.replace(strata=tuple(args.strata))
        args.features = list(needed(args.selector, args.settings))
    args.read = sorted(read)
    if args.pooling is None:
        args.pooling = "cls_and_answer_mean" if args.task == "qa" else "mean"
    if args.pooling not in TASKS[args.task].pooling:
        parser.error(f"--pooling {args.pooling} is not for --task {args.task}, which has "
                     f"{', '.join(TASKS[args.task].pooling)}")
    return args


def _with_config(parser: Parser, argv: Sequence[str]) -> list[str]:
    """The flags of the file that --config names and those of the command line, which wins: --k over a --fraction."""
    given = {word.partition("=")[0] for word in parser.normalize([str(word) for word in argv])}
    words = with_config(parser, argv)
    other = {"--k": "--fraction", "--fraction": "--k"}
    dropped = {other[flag] for flag in given & set(other)} - given
    return [word for word in words if word.partition("=")[0] not in dropped]


def _name_the_selector(parser: Parser, args: argparse.Namespace) -> None:
    if args.pipeline and args.fusion:
        parser.error("--pipeline and --fusion exclude each other")
    for hybrid in ("pipeline", "fusion"):
        if getattr(args, hybrid):
            if args.selector not in (None, hybrid):
                parser.error(f"--{hybrid} and --selector {args.selector} exclude each other")
            args.selector = hybrid
        elif args.selector == hybrid:
            parser.error(f'--selector {hybrid} needs --{hybrid}, such as "label_issues:0.9, kcenter:0.3"')
    if args.selector is None:
        parser.error("nothing to do: give --selector NAME (--list says what there is)")
    if args.selector not in SELECTORS:
        near = difflib.get_close_matches(args.selector, SELECTORS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        parser.error(f"--selector {args.selector}: no such selector (--list names all){hint}")


def _check_idle(parser: Parser, args: argparse.Namespace, read: set[str]) -> None:
    """Refuse flags that another one makes idle. read: the flags that the selector and its features read."""
    if args.folds < 2:
        parser.error(f"--folds must be at least 2, found {args.folds}")
    if args.copies < len(args.perturbations) and "copies" in read:
        parser.error(f"--copies {args.copies} leaves out some of the {len(args.perturbations)} --perturbations")
    instead = {"pooling": "embedding_dir", "warmup_epochs": "model_path", "training_config": "model_path"}
    for flag, other in instead.items():
        if getattr(args, flag) != parser.get_default(flag) and getattr(args, other):
            parser.error(f"--{flag} does nothing with --{other}")
    trains = args.probabilities == "model" or {"el2n", "grand"} & set(args.features)
    for flag in ("warmup_epochs", "training_config"):
        if flag in read and getattr(args, flag) != parser.get_default(flag) and not trains:
            parser.error(f"--{flag} does nothing without --probabilities model")


def _check_size(parser: Parser, args: argparse.Namespace) -> None:
    if args.fraction is not None and args.k is not None:
        parser.error("--fraction and --k exclude each other")
    if args.fraction == 0:
        parser.error("--fraction must be above 0, found 0")
    if args.fraction is None and args.k is None and args.selector not in ("pipeline", "full"):
        parser.error("how many? give --fraction, such as 0.1, or --k")


def _settings(parser: Parser, args: argparse.Namespace) -> Settings:
    members: tuple[tuple[str, float], ...] = ()
    for hybrid in ("pipeline", "fusion"):
        if text := getattr(args, hybrid):
            members = parse_members(text, hybrid)
    if args.pipeline and (args.fraction, args.k) == (None, None):
        args.fraction = members[-1][1]
    elif args.pipeline and args.fraction not in (None, members[-1][1]):
        parser.error(f"--fraction {args.fraction:g} is not the last share of --pipeline, {members[-1][1]:g}: leave it "
                     "out")
    elif args.fraction is None and args.k is None:
        args.fraction = 1.0  # full
    values = {name: getattr(args, name) for name in SETTINGS}
    settings = Settings(members, args.fill is not None,
                        **{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
    for name in (args.selector, *dict(members)):
        if wrong := SELECTORS[name].check(settings):
            parser.error(wrong)
    return settings


# --- places -------------------------------------------------------------------------------------------------------


def check_places(args: argparse.Namespace, sources: Mapping[str, str]) -> None:
    """Whether what is read is there, and what is written can be, and in another place."""
    check_writable(args.output_dir)
    check_writable(args.cache_dir)
    for flag in MADE_BY.keys() & sources.keys():
        if not Path(sources[flag]).exists():
            raise UserError(f"--{flag} {sources[flag]}: no such file or directory; {MADE_BY[flag]} writes it")
    local = [path for path in (*sources.values(), args.model, args.causal_lm) if Path(path).exists()]
    check_not_read(args.output_dir, *local)


def training_command(args: argparse.Namespace, task: Task, selected: Path) -> str:
    """How run.py trains on what was chosen into a directory: as it stands, into a directory of its own."""
    words = ["python", "run.py", "--do_train", "--task", args.task, "--dataset", args.dataset]
    if args.split != "train":
        words += ["--train_split", args.split]
    for name, value in task.settings().items():  # also what was guessed, or recorded with what was read
        if name != "name":
            words += [f"--{name}", *(value if isinstance(value, list) else [value])]
    if args.max_samples:
        words += ["--max_train_samples", str(args.max_samples)]
    if args.model != DEFAULT_ENCODER:
        words += ["--model", args.model]
    words += ["--allow_changed"] * getattr(args, "allow_changed", False)
    return shlex.join([*words, "--train_ids", str(selected / "selected.csv"), "--output_dir", f"{selected}_model"])
