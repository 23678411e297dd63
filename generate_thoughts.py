"""Let a chat model reason about pairs of premise and hypothesis, repair what goes wrong, and judge the reasoning.

Reads a dataset (generate) or the chains of an earlier call (reflect, score, statistics). Writes thoughts.jsonl,
reflections.jsonl, scores.jsonl and comparisons.jsonl, one record an answer as it comes; failures.jsonl; usage.json,
thought_statistics.json and thought_lengths.png to --output_dir. What is recorded is never asked for again.

    python generate_thoughts.py --mode generate --dataset nyu-mll/glue:mnli --model open-mistral-7b \\
        --base_url https://api.mistral.ai/v1 --label_map entailment=1,neutral=0,contradiction=0 --max_samples 1000
    python generate_thoughts.py --mode reflect --model open-mistral-nemo --base_url https://api.mistral.ai/v1
    python generate_thoughts.py --mode statistics --thoughts ./thoughts_output

The key is read from the environment variable OPENAI_API_KEY (--key_variable names another) and written nowhere.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from datamap.core.artifacts import check_writable
from datamap.core.errors import command_line
from datamap.core.flags import Parser, number, positive_int
from datamap.core.plots import add_plot_format
from datamap.thoughts.chains import FAILURES, FILES, MODES
from datamap.thoughts.chat_client import KEY_VARIABLE, server_address
from datamap.thoughts.data import add_pair_flags
from datamap.thoughts.records import locked


def build_parser() -> Parser:
    parser = Parser("Let a chat model reason about pairs, repair what goes wrong, and judge the reasoning.")
    parser.add_argument("--mode", choices=list(MODES), required=True,
                        help="generate: a chain of thought for every pair; reflect: repair the wrong ones; score: let "
                             "a model judge them; statistics: count and draw, without asking anybody")
    parser.add_argument("--output_dir", default="./thoughts_output", metavar="DIR", help="where the files go")

    group = parser.add_argument_group("what to reason about")
    add_plot_format(parser)
    group.add_argument("--dataset", help="pairs (generate): Hub name or name:subset, file, directory, or demo:nli")
    group.add_argument("--split", default="train", help="of the dataset")
    add_pair_flags(group)
    group.add_argument("--max_samples", type=positive_int, metavar="N", help="the first N pairs or chains (default: "
                       "all)")
    group.add_argument("--thoughts", metavar="PATH", help="chains to reflect on, score or count: a directory, a "
                       "file, also of others, or a Hub name (default: --output_dir)")
    group.add_argument("--reflections", metavar="PATH", help="repaired chains, for score and statistics (default: "
                       "those beside the thoughts)")

    group = parser.add_argument_group("server (any OpenAI-compatible one)")
    group.add_argument("--model", metavar="NAME", help="as the server calls it")
    group.add_argument("--base_url", metavar="URL", help="such as http://localhost:8000/v1 (default: OpenAI's)")
    group.add_argument("--key_variable", default=KEY_VARIABLE, metavar="NAME",
                       help="environment variable with the key; a local server needs none")
    group.add_argument("--prompt_file", metavar="FILE",
                       help="instead of the mode's own in example_configs/prompts/")
    group.add_argument("--temperature", type=lambda text: number(text, 0, 2), default=0.0,
                       help="0: the likeliest words")
    group.add_argument("--max_tokens", type=positive_int, default=512, metavar="N", help="longest answer, in tokens")
    group.add_argument("--response_format", choices=("none", "json_object", "json_schema"), default="none",
                       help="ask the server to enforce JSON, or the very schema; the first answers say if it does")

    group = parser.add_argument_group("pace and budget")
    group.add_argument("--workers", type=positive_int, default=8, metavar="N", help="requests at a time")
    group.add_argument("--requests_per_minute", type=positive_int, metavar="N", help="default: no limit")
    group.add_argument("--max_requests", type=positive_int, metavar="N", help="budget of this call, retries included")
    group.add_argument("--max_cost", type=lambda text: number(text, 0), metavar="AMOUNT",
                       help="budget of this call in the currency of the prices; needs both prices")
    group.add_argument("--input_price", type=lambda text: number(text, 0), metavar="AMOUNT",
                       help="of a million prompt tokens")
    group.add_argument("--output_price", type=lambda text: number(text, 0), metavar="AMOUNT",
                       help="of a million answered tokens")
    group.add_argument("--max_retries", type=lambda text: int(number(text, 0, 100)), default=5, metavar="N",
                       help="how often a question is asked again that got no answer (after 0.5 s, twice as long each "
                            "time, 8 s at most), or none that can be read (at temperature 0.7 where it was 0); a rate "
                            "limit does not count, all requests wait for its end")
    group.add_argument("--timeout", type=lambda text: number(text, 0.1), default=120.0, metavar="SECONDS",
                       help="without a sign of the server")
    group.add_switch("--retry_failures", help="ask again for what stands in failures.jsonl")

    group = parser.add_argument_group("statistics")
    group.add_argument("--tokenizer", metavar="NAME",
                       help="lengths in its tokens: Hub name or directory (default: words)")
    group.add_argument("--position_samples", type=positive_int, default=50, metavar="N",
                       help="pairs with an original and a repaired chain, shown to the judge in both orders")
    return parser


ONLY_FOR = {
    "dataset": ("generate",), "split": ("generate",), "label_map": ("generate",), "text_columns": ("generate",),
    "label_column": ("generate",), "thoughts": ("reflect", "score", "statistics"),
    "reflections": ("score", "statistics"), "position_samples": ("score",), "model": ("generate", "reflect", "score"),
}
# Of asking a server, which statistics do without.
ONLY_FOR |= dict.fromkeys((
    "base_url", "key_variable", "prompt_file", "temperature", "max_tokens", "response_format", "workers",
    "requests_per_minute", "max_requests", "max_cost", "max_retries", "timeout", "retry_failures",
), ONLY_FOR["model"])


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = build_parser()
    args = parser.parse_args(argv)
    for flag, modes in ONLY_FOR.items():
        if args.mode not in modes and getattr(args, flag) != parser.get_default(flag):
            parser.error(f"--{flag} is for --mode {' or '.join(modes)}, this is {args.mode}")
    if args.mode == "generate" and not args.dataset:
        parser.error("--mode generate needs --dataset: pairs with premise and hypothesis, such as demo:nli")
    if args.mode in ONLY_FOR["model"]:
        if not args.model:
            parser.error(f"--mode {args.mode} needs --model: the name of a chat model as the server calls it")
        server_address(args.base_url)
    if (args.input_price is None) != (args.output_price is None):
        parser.error("--input_price and --output_price belong together: give both, per million tokens")
    args.prices = None if args.input_price is None else (args.input_price, args.output_price)
    if args.max_cost is not None and args.prices is None:
        parser.error("--max_cost needs --input_price and --output_price, per million tokens")
    if args.mode != "generate":
        args.thoughts = args.thoughts or args.output_dir
        beside = Path(args.thoughts) / FILES["reflect"]
        # Without a single answer the file is empty.
        if args.reflections is None and args.mode in ONLY_FOR["reflections"]:
            args.reflections = str(beside) if beside.exists() and beside.stat().st_size else None
    return args


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    check_writable(args.output_dir)
    if Path(args.output_dir).is_dir() and args.mode in ONLY_FOR["model"]:
        with locked(Path(args.output_dir) / FAILURES):  # before run_meta.json speaks of this run
            pass
    MODES[args.mode](args)


if __name__ == "__main__":
    main()
