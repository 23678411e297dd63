"""Chains of thought from a chat server, their repair, and a judge's scores: the modes of generate_thoughts.py."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datamap.core.artifacts import recorded_dataset, stage
from datamap.core.errors import name_a_few
from datamap.core.files import read_json, write_json
from datamap.core.tables import console_table
from datamap.thoughts.chat_client import TOKENS, Answers, Question, ask_all, cost_of
from datamap.thoughts.data import TRUE_LABEL, is_right, load_pairs, read_reflections, read_thoughts
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
        key_variable=args.key_variable, parameters=request_parameters(args, kind), keep_parsed=True,
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
    import pandas as pd

    biases = {name: found["length_bias"][name]["all"] for name in CRITERIA}
    correlation = f"rank correlation with length ({found['length_unit']})"
    table = pd.DataFrame([
        {"mean score (1 to 5)": name, **found[name], correlation: biases[name] and biases[name]["rho"]}
        for name in CRITERIA
    ])
    print(console_table(table, dict.fromkeys(table.columns[1:], ".2f")))
    auroc = found["agreement"]["auroc"]
    print("correctness score tells right from wrong chains: AUROC "
          + ("unknown" if auroc is None else f"{auroc:.2f} (0.5: not at all)"))
    position = found["position_bias"]
    if position and position["first_share"] is not None:
        interval = f"95 % interval {position['low']:.0%} to {position['high']:.0%}"
        print(f"of two chains the first shown wins in {position['first_share']:.0%} ({interval}; 50 %: no bias)")


MODES = {"generate": generate, "reflect": reflect, "score": score, "statistics": statistics}
