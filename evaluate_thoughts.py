"""Let a fine-tuned model answer whether hypotheses follow, with its chain of thought, and score the answers.

Reads pairs, and a model with or without a LoRA adapter or, with --predictions, outputs made elsewhere (JSON Lines
or a JSON list with id and output). Writes predictions.jsonl, metrics.json, submission.csv (id, prediction),
confusion_matrix and accuracy_by_length (CSV and PNG) and, with --compare, comparison.json.

    python evaluate_thoughts.py --adapter ./sft_output --dataset nyu-mll/multi_nli --max_samples 1000 \\
        --label_map entailment=1,neutral=0,contradiction=0 --quantization 4bit --output_dir ./thoughts_evaluation
    python evaluate_thoughts.py --predictions outputs.jsonl --dataset demo:nli \\
        --label_map entailment=1,neutral=0,contradiction=0

A label is never guessed: an answer without one is null in the files, counted, and wrong in the accuracy. A run that
was stopped goes on with the same command; greedy answers in float32 depend neither on that nor on --batch_size.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from datamap.core.artifacts import check_not_read, check_writable
from datamap.core.clusters import NO_CLUSTERS
from datamap.core.errors import command_line
from datamap.core.files import write_json
from datamap.core.flags import DEFAULT_SEED, Parser, boolean, number, positive_int, seed_number
from datamap.core.plots import add_plot_format, dataset_label
from datamap.core.splits import default_eval_split
from datamap.thoughts.answers import OWNS, Answerer, answers_in_file, answers_of_model
from datamap.thoughts.data import add_pair_flags, load_pairs
from datamap.thoughts.metrics import compare, in_words, metrics_of, metrics_table, read_other, write_results
from datamap.thoughts.prompts import PROMPT_FILE
from datamap.thoughts.reader import parse_thought

OF_A_MODEL = ("model", "adapter", "quantization", "temperature", "constrained", "compile")  # what only it heeds

logger = logging.getLogger(__name__)


def build_parser() -> Parser:
    parser = Parser("Let a fine-tuned model answer whether hypotheses follow, and score the answers.")
    group = parser.add_argument_group("pairs")
    group.add_argument("--dataset", help="Hub name, file, directory or demo:... with premise and hypothesis; without "
                                         "labels, answers are written but not scored")
    group.add_argument("--split", help="split to answer (default: validation, or what stands for it)")
    add_pair_flags(group)
    group.add_argument("--max_samples", type=positive_int, metavar="N", help="the first N pairs (default: all)")
    group.add_argument("--premise", metavar="TEXT", help="answer this one pair, with --hypothesis; writes nothing")
    group.add_argument("--hypothesis", metavar="TEXT", help="answer this one pair, with --premise")
    group = parser.add_argument_group("model")
    group.add_argument("--model", help="Hub name or directory (default: the one that the adapter was trained on)")
    group.add_argument("--adapter", help="directory that train_sft.py wrote, or a LoRA adapter of the Hub")
    group.add_argument("--quantization", choices=("none", "4bit"), default="none",
                       help="4bit: NF4 weights, as in training; none: float32 on the CPU, bfloat16 on a GPU")
    group.add_argument("--prompt_file", metavar="FILE", help=f"text with $premise and $hypothesis (default: "
                       f"{PROMPT_FILE} beside the adapter, else example_configs/prompts/sft.txt); with --predictions "
                       "what was asked: an example that stands in it, echoed, is no answer")
    group.add_switch("--no_cuda", help="use the CPU even where there is a GPU")
    group = parser.add_argument_group("decoding")
    group.add_argument("--batch_size", type=positive_int, default=16, help="prompts answered at once")
    group.add_argument("--max_new_tokens", type=positive_int, default=256, help="longest answer; longer ones are cut")
    group.add_argument("--temperature", type=lambda text: number(text, 0, 10), default=0.0,
                       help="0 takes the likeliest token, above it tokens are drawn (default: 0)")
    group.add_argument("--seed", type=seed_number, default=DEFAULT_SEED, help="for --temperature above 0: an answer "
                       "depends on it and on its prompt, not on the others in its batch")
    group.add_switch("--constrained", help="allow nothing but the JSON of an answer (needs llguidance)")
    group.add_argument("--compile", nargs="?", const=True, default=None, type=boolean, metavar="true|false",
                       help="compile the step of one token, which changes no answer but by rounding (default: "
                       "false; it needs a GPU, and weights that are not of 4 bits)")
    group = parser.add_argument_group("results")
    group.add_argument("--predictions", metavar="FILE", help="score these outputs instead of a model's: JSON Lines or "
                       "a JSON list with id and output (null: no answer)")
    group.add_argument("--compare", metavar="DIR", help="output directory of another run on the same pairs: is the "
                       "difference more than chance?")
    group.add_argument("--cluster_by", choices=("premise", "hypothesis", NO_CLUSTERS), default="premise",
                       help="pairs of one go together in --compare; none: each pair by itself")
    group.add_argument("--output_dir", default="./thoughts_evaluation", help="where the files go")
    add_plot_format(group)
    group.add_switch("--overwrite", help="begin again where --output_dir holds answers of another run")
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = build_parser()
    args = parser.parse_args(argv)
    one_pair = args.premise is not None or args.hypothesis is not None
    for name in ("premise", "hypothesis") if one_pair else ():
        if getattr(args, name) is None:
            parser.error("--premise and --hypothesis belong together; give both")
        if not getattr(args, name).strip():
            parser.error(f"--{name} is empty; give a sentence")
    for name in ("dataset", "predictions", "compare") if one_pair else ():
        if getattr(args, name) is not None:
            parser.error(f"--premise and --hypothesis are one pair to answer; leave out --{name}")
    if not one_pair and args.dataset is None:
        parser.error("name the pairs with --dataset, or give one with --premise and --hypothesis")
    if args.predictions is None and args.model is None and args.adapter is None:
        parser.error("name what answers: --model, --adapter, or --predictions for outputs that are there already")
    for name in OF_A_MODEL if args.predictions is not None else ():
        if getattr(args, name) != parser.get_default(name):
            parser.error(f"--predictions scores outputs that are there already; leave out --{name}")
    return args


def answer_one(args: argparse.Namespace) -> None:
    by = Answerer(args)
    by.load()
    prompt = by.prompt(args.premise, args.hypothesis)
    [(_, [answer])] = by.answer([prompt])
    parsed = parse_thought(answer.text, prompt)
    if parsed.label is None:
        cut = f" and was cut off at {args.max_new_tokens} tokens" * (not answer.finished)
        print(f"no answer: what the model wrote cannot be read{cut}\nit wrote: {answer.text}")
        return
    print(f"answer:  {parsed.label}, the hypothesis {'follows' if parsed.label else 'does not follow'}")
    print(f"thought: {parsed.thought}")


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.premise is not None:
        answer_one(args)
        return
    path = Path(args.output_dir)
    check_writable(path)
    read = {name: getattr(args, name) for name in ("model", "adapter", "predictions", "compare")}
    inputs = {name: source for name, source in read.items() if source and Path(source).exists()}
    check_not_read(path, *inputs.values())
    split = load_pairs(args.dataset, args.split or default_eval_split(args.dataset), args.label_map, args.max_samples,
                       args.text_columns or (), args.label_column)
    pairs = {pair["id"]: pair for pair in split.data}
    other = read_other(args.compare, pairs) if args.compare else None

    answers = answers_in_file if args.predictions else answers_of_model
    with answers(args, pairs, {"owns": OWNS, "inputs": inputs, "datasets": [split.identity()]}) as records:
        metrics = metrics_of(list(records.values()))
        write_results(path, list(records.values()), metrics, dataset_label(split.name, split.split))
        print(metrics_table(metrics))
        if not metrics["n_labelled"]:
            logger.warning(f"{split.name} [{split.split}] has no labels: answers are written, but not scored")
        if metrics["cut_off"]:
            logger.warning(f"{metrics['cut_off']:,} of {metrics['n']:,} answers were cut off; --max_new_tokens allows "
                           "longer ones")
        if other is not None:
            comparison = compare(args.compare, other, records, args.cluster_by)
            write_json(path / "comparison.json", comparison)
            print(in_words(comparison))
    written = [file.name for pattern in OWNS for file in sorted(path.glob(pattern))]
    print(f"wrote {', '.join(written)} to {path}")


if __name__ == "__main__":
    main()
