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
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datamap.core.artifacts import check_writable, recorded_dataset, stage
from datamap.core.errors import command_line, name_a_few
from datamap.core.files import read_json, write_json
from datamap.core.flags import Parser, number, positive_int
from datamap.thoughts.chat_client import KEY_VARIABLE, TOKENS, Answers, Question, ask_all, cost_of
from datamap.thoughts.data import TRUE_LABEL, add_pair_flags, is_right, load_pairs, read_reflections, read_thoughts
from datamap.thoughts.prompts import PAIR, PROMPTS, fill_tagged, load_prompt
from datamap.thoughts.reader import (
    ANALYSIS,
    CRITERIA,
    IMPROVED,
    LABEL,
    LABELS,
    SIDES,
    THOUGHT,
    parse_preference,
    parse_reflection,
    parse_scores,
    parse_thought,
)
from datamap.thoughts.records import locked

FILES = {"generate": "thoughts.jsonl", "reflect": "reflections.jsonl", "score": "scores.jsonl"}
COMPARISONS, FAILURES = "comparisons.jsonl", "failures.jsonl"
USAGE, STATISTICS = "usage.json", "thought_statistics.json"
# Of the files named in run_meta.json by the mode that writes them; all but pictures and tables only grow.
TABLES = (USAGE, STATISTICS, "thought_lengths.*", "thought_accuracy_by_length.csv")
OWNS = {
    "generate": ("thoughts.jsonl", FAILURES, *TABLES), "reflect": ("reflections.jsonl", FAILURES, *TABLES),
    "score": ("scores.jsonl", COMPARISONS, "score_report.json", FAILURES, *TABLES), "statistics": TABLES,
}
PLACEHOLDERS = {
    "generate": PAIR, "reflect": (*PAIR, "true_label", "thought"), "score": (*PAIR, "thought", "label"),
    "compare": (*PAIR, "thought_a", "label_a", "thought_b", "label_b"),
}
RESPONSE_FORMATS = ("none", "json_object", "json_schema")

logger = logging.getLogger(__name__)


# --- what is asked -----------------------------------------------------------------------------------------------

TEXT, BINARY = {"type": "string"}, {"type": "integer", "enum": list(LABELS)}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


SCHEMAS = {
    "generate": _object(**{THOUGHT: TEXT, LABEL: BINARY}),
    "reflect": _object(**{ANALYSIS: TEXT, IMPROVED: TEXT, LABEL: BINARY}),
    "score": _object(
        **dict.fromkeys(CRITERIA, _object(reason=TEXT, score={"type": "integer", "enum": [1, 2, 3, 4, 5]}))
    ),
    "compare": _object(reason=TEXT, better={"type": "string", "enum": list(SIDES)}),
}


def thought_of(text: str, prompt: str) -> dict[str, Any] | None:
    found = parse_thought(text, prompt)
    if found.label is None or found.thought is None:
        return None
    return {THOUGHT: found.thought, LABEL: found.label, "method": found.method}


READERS: dict[str, Callable[[str, str], dict[str, Any] | None]] = {
    "generate": thought_of, "reflect": parse_reflection, "score": parse_scores, "compare": parse_preference,
}


def ask(args: argparse.Namespace, kind: str, file: str, questions: Sequence[tuple[str, dict, dict]]) -> Answers:
    """The answers to (id, values of the prompt, what the record says of it); ``kind``: a key of READERS."""
    template = load_prompt(prompt_file(args, kind), PLACEHOLDERS[kind])
    expected = ", ".join(SCHEMAS[kind]["properties"])

    def check(question: Question, text: str) -> dict[str, Any]:
        found = READERS[kind](text, question.messages[0]["content"])
        if found is None:
            raise ValueError(f"no JSON object with {expected} that can be used in {text.strip()!r:.80}")
        return found

    def describe(question: Question, found: Mapping[str, Any]) -> dict[str, Any]:
        true = question.about.get(TRUE_LABEL)
        return {**found, **({"correct": found[LABEL] == true} if LABEL in found and true is not None else {})}

    def verify(text: str) -> str | None:
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        keys = set(found) if isinstance(found, dict) else None
        wanted = keys if args.response_format == "json_object" else set(SCHEMAS[kind]["properties"])
        if keys is not None and keys == wanted:
            return None
        return (f"pays no heed to --response_format {args.response_format} (it answered {text.strip()!r:.60}); take "
                "another, or none: answers are then read out of whatever stands around them")

    output = Path(args.output_dir)
    asked = [
        Question(name, [{"role": "user", "content": fill_tagged(template, values)}], {"mode": kind, **about})
        for name, values, about in questions
    ]
    return ask_all(
        asked, output / file, failures_path=output / FAILURES, model=args.model, base_url=args.base_url, check=check,
        key_variable=args.key_variable, parameters=request_parameters(args, kind), describe=describe,
        verify=None if args.response_format == "none" else verify, workers=args.workers,
        requests_per_minute=args.requests_per_minute, max_requests=args.max_requests, prices=args.prices,
        max_cost=args.max_cost, max_retries=args.max_retries, timeout=args.timeout, retry_failures=args.retry_failures,
    )


def request_parameters(args: argparse.Namespace, kind: str) -> dict[str, Any]:
    parameters: dict[str, Any] = {"temperature": args.temperature, "max_tokens": args.max_tokens}
    if args.response_format == "json_object":
        parameters["response_format"] = {"type": "json_object"}
    elif args.response_format == "json_schema":
        schema = {"name": kind, "schema": SCHEMAS[kind], "strict": True}
        parameters["response_format"] = {"type": "json_schema", "json_schema": schema}
    return parameters


def prompt_file(args: argparse.Namespace, kind: str) -> Path:
    return Path(args.prompt_file) if args.prompt_file and kind != "compare" else PROMPTS / f"{kind}.txt"


# --- modes -------------------------------------------------------------------------------------------------------


def generate(args: argparse.Namespace) -> None:
    split = load_pairs(args.dataset, args.split, args.label_map, args.max_samples, args.text_columns or (),
                       args.label_column)
    questions = []
    for row in split.data:
        pair = {name: row[name] for name in PAIR}
        questions.append((row["id"], pair, {**pair, TRUE_LABEL: row["label"]}))
    unlabelled = sum(about[TRUE_LABEL] is None for _, _, about in questions)
    if unlabelled:
        logger.warning(f"{unlabelled:,} of {len(questions):,} pairs have no true label: nobody can tell whether their "
                       "chains are right")
    with stage(args.output_dir, args, owns=OWNS["generate"], datasets=[split.identity()], resume=True):
        answers = ask(args, "generate", FILES["generate"], questions)
        record_usage(args, "generate", answers)
        summarize(args, usable(answers), None, args.model)


def reflect(args: argparse.Namespace) -> None:
    chains = read_thoughts(args.thoughts)[: args.max_samples]
    wrong = [chain for chain in chains if is_right(chain) is False]
    logger.info(f"{len(wrong):,} of {len(chains):,} chains come to the wrong label")
    if not wrong:
        print("nothing to reflect on: no chain comes to the wrong label")
        return
    questions = []
    for chain in wrong:
        about = {name: chain[name] for name in (*PAIR, TRUE_LABEL, THOUGHT)}
        values = {"true_label": str(chain[TRUE_LABEL]), "thought": chain[THOUGHT]}
        questions.append((chain["id"], {name: chain[name] for name in PAIR} | values, about))
    with _stage(args, {"thoughts": args.thoughts}):
        answers = ask(args, "reflect", FILES["reflect"], questions)
        record_usage(args, "reflect", answers)
        summarize(args, chains, usable(answers), _name(args.thoughts))


def score(args: argparse.Namespace) -> None:
    from datamap.thoughts.statistics import chain_lengths, judge_report, position_report

    chains = read_thoughts(args.thoughts)[: args.max_samples]
    reflections = read_reflections(args.reflections) if args.reflections else None
    lengths, unit = chain_lengths(chains, args.tokenizer)
    questions = [
        (chain["id"], {name: chain[name] for name in PAIR} | {"thought": chain[THOUGHT], "label": str(chain[LABEL])},
         {LABEL: chain[LABEL], TRUE_LABEL: chain[TRUE_LABEL]})
        for chain in chains if chain[LABEL] is not None
    ]
    pairs = shown_in_both_orders(chains, (reflections or [])[: args.position_samples])
    with _stage(args, {"thoughts": args.thoughts, "reflections": args.reflections}) as path:
        answers = ask(args, "score", FILES["score"], questions)
        record_usage(args, "score", answers)
        found: dict[str, Any] = {"model": args.model, "length_unit": unit,
                                 **judge_report(chains, answers.parsed, lengths), "position_bias": None}
        if pairs:
            compared = ask(args, "compare", COMPARISONS, [question for question, _ in pairs])
            record_usage(args, "compare", compared)
            sides = {key: compared.parsed[name]["better"] for (name, *_), key in pairs if name in compared.parsed}
            found["position_bias"] = position_report(sides)
        else:
            logger.info("the judge's bias by position needs two chains of a pair: none without --reflections")
        write_json(path / "score_report.json", found)
        summarize(args, chains, reflections, _name(args.thoughts))
    _print_judge(found)


def shown_in_both_orders(
    chains: Sequence[Mapping[str, Any]], reflections: Sequence[Mapping[str, Any]]
) -> list[tuple[tuple[str, dict, dict], tuple[str, str]]]:
    """Of every pair with an original and a repaired chain, the two questions about them, each with (id, order)."""
    from datamap.thoughts.statistics import FIRST, SECOND

    original = {chain["id"]: chain for chain in chains}
    questions = []
    for repaired in (chain for chain in reflections if chain["id"] in original):
        first = original[repaired["id"]]
        a, b = (first[THOUGHT], str(first[LABEL])), (repaired[IMPROVED], str(repaired[LABEL]))
        for order, (one, other) in ((FIRST, (a, b)), (SECOND, (b, a))):
            values = {"thought_a": one[0], "label_a": one[1], "thought_b": other[0], "label_b": other[1]}
            name = f"{repaired['id']} ({order})"
            questions.append(((name, {each: first[each] for each in PAIR} | values, {"order": order}),
                              (repaired["id"], order)))
    return questions


def statistics(args: argparse.Namespace) -> None:
    chains = read_thoughts(args.thoughts)
    reflections = read_reflections(args.reflections) if args.reflections else None
    with _stage(args, {"thoughts": args.thoughts, "reflections": args.reflections}):
        summarize(args, chains, reflections, _name(args.thoughts))


def _stage(args: argparse.Namespace, inputs: Mapping[str, str | None]) -> Any:
    datasets = [identity for path in inputs.values() if path and (identity := recorded_dataset(path))][:1]
    return stage(args.output_dir, args, owns=OWNS[args.mode], inputs=inputs, datasets=datasets, resume=True)


# --- what came of it ---------------------------------------------------------------------------------------------


def usable(answers: Answers) -> list[dict[str, Any]]:
    """The records of this call's questions, without the failures; a file may hold those of others too."""
    return [record for name, record in answers.records.items() if name in answers.parsed]


def _name(thoughts: str) -> str:
    return Path(thoughts).resolve().name


def record_usage(args: argparse.Namespace, kind: str, answers: Answers) -> None:
    """What the answers cost, to usage.json and the console; what was asked for earlier is counted with it."""
    file = Path(args.output_dir) / USAGE
    usage = read_json(file) if file.exists() else {}
    records = answers.records.values()
    used: dict[str, Any] = {"model": args.model, **answers.usage, "cost": None, "by_outcome": {}}
    known = all(record[name] is not None for record in records for name in TOKENS if record["requests"])
    if args.prices and known:
        used["cost"] = sum(cost_of(record, args.prices) for record in records)
    for outcome in ("right", "wrong", "answered", "failed"):
        among = [record for record in records if _outcome(record) == outcome]
        if among:
            counts = {name: [record[name] for record in among if record[name] is not None] for name in TOKENS}
            used["by_outcome"][outcome] = {
                "n": len(among), **{name: sum(each) if each else None for name, each in counts.items()}
            }
    write_json(file, {**usage, kind: used})
    if answers.failures:
        first, reason = next(iter(answers.failures.items()))
        logger.warning(f"{len(answers.failures):,} of {len(answers.records):,} have no usable answer "
                       f"({name_a_few(answers.failures)}; {first!r}: {reason}); {FAILURES} holds the raw texts, "
                       "--retry_failures asks again")
    tokens = ", ".join("unknown" if answers.usage[name] is None else f"{answers.usage[name]:,} {what}"
                       for name, what in (("prompt_tokens", "in"), ("completion_tokens", "out")))
    cost = "" if used["cost"] is None else f", cost {used['cost']:.4f}"
    print(f"{kind}: {len(answers.parsed):,} of {len(answers.records):,} answered; tokens {tokens}{cost}")


def _outcome(record: Mapping[str, Any]) -> str:
    if record["failure"] is not None:
        return "failed"
    return {True: "right", False: "wrong", None: "answered"}[record.get("correct")]


def summarize(
    args: argparse.Namespace,
    chains: Sequence[Mapping[str, Any]],
    repaired: Sequence[Mapping[str, Any]] | None,
    title: str,
) -> None:
    """thought_statistics.json, thought_lengths and a few lines for the console; nothing where there are no chains."""
    from datamap.thoughts.statistics import chain_lengths, length_statistics, write_lengths

    if not chains:
        return
    output = Path(args.output_dir)
    lengths, unit = chain_lengths(chains, args.tokenizer)
    labelled = [chain for chain in chains if is_right(chain) is not None]
    right = sum(is_right(chain) is True for chain in labelled)
    found: dict[str, Any] = {
        "generated": len(chains), "labelled": len(labelled), "right": right,
        "accuracy": right / len(labelled) if labelled else None,
        "reflected": None, "repaired": None, "length_unit": unit, "lengths": length_statistics(chains, lengths),
    }
    if repaired is not None:
        found |= {"reflected": len(repaired), "repaired": sum(is_right(chain) is True for chain in repaired)}
        their, _ = chain_lengths(repaired, args.tokenizer, IMPROVED)
        found["reflection_lengths"] = length_statistics(repaired, their)
    write_json(output / STATISTICS, found)
    write_lengths(output, chains, lengths, unit, title)
    accuracy = "" if found["accuracy"] is None else f" ({found['accuracy']:.1%})"
    print(f"chains of thought: {len(chains):,}, of {len(labelled):,} with a true label {right:,} right{accuracy}")
    if repaired is not None:
        print(f"reflections: {found['reflected']:,}, {found['repaired']:,} of them come to the true label")
    for outcome, length in found["lengths"].items():
        print(f"length of {outcome} chains: median {length['median']:.0f} {unit} (n = {length['n']:,}, 5th to 95th "
              f"percentile {length['percentile_5']:.0f} to {length['percentile_95']:.0f})")
    print(f"wrote {', '.join((STATISTICS, 'thought_lengths.png'))} and what they are drawn from to {output}")


def _print_judge(found: Mapping[str, Any]) -> None:
    def shown(value: float | None) -> str:
        return "    -" if value is None else f"{value:5.2f}"

    print(f"{'mean score (1 to 5)':<22} all    right  wrong  rank correlation with length ({found['length_unit']})")
    for name in CRITERIA:
        means = "  ".join(shown(found[name][group]) for group in ("all", "right", "wrong"))
        bias = found["length_bias"][name]["all"]
        print(f"  {name:<18} {means}  {shown(bias and bias['rho'])}")
    auroc = found["agreement"]["auroc"]
    print(f"correctness score tells right from wrong chains: AUROC {shown(auroc).strip()} (0.5: not at all)")
    position = found["position_bias"]
    if position and position["first_share"] is not None:
        interval = f"95 % interval {position['low']:.0%} to {position['high']:.0%}"
        print(f"of two chains the first shown wins in {position['first_share']:.0%} ({interval}; 50 %: no bias)")


# --- command line ------------------------------------------------------------------------------------------------

MODES = {"generate": generate, "reflect": reflect, "score": score, "statistics": statistics}


def build_parser() -> Parser:
    parser = Parser("Let a chat model reason about pairs, repair what goes wrong, and judge the reasoning.")
    parser.add_argument("--mode", choices=list(MODES), required=True,
                        help="generate: a chain of thought for every pair; reflect: repair the wrong ones; score: let "
                             "a model judge them; statistics: count and draw, without asking anybody")
    parser.add_argument("--output_dir", default="./thoughts_output", metavar="DIR", help="where the files go")

    group = parser.add_argument_group("what to reason about")
    group.add_argument("--dataset", help="pairs (generate): Hub name or name:subset, file, directory, or demo:nli")
    group.add_argument("--split", default="train", help="of the dataset")
    add_pair_flags(group)
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
    group.add_argument("--response_format", choices=RESPONSE_FORMATS, default="none",
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
                       help="how often a question is asked again that got no answer, or none that can be read")
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


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = build_parser()
    args = parser.parse_args(argv)
    for flag, modes in ONLY_FOR.items():
        if args.mode not in modes and getattr(args, flag) != parser.get_default(flag):
            parser.error(f"--{flag} is for --mode {' or '.join(modes)}, this is {args.mode}")
    if args.mode == "generate" and not args.dataset:
        parser.error("--mode generate needs --dataset: pairs with premise and hypothesis, such as demo:nli")
    if args.mode in ONLY_FOR["model"] and not args.model:
        parser.error(f"--mode {args.mode} needs --model: the name of a chat model as the server calls it")
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
