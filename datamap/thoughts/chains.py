"""Chains of thought from a chat server, their repair, and a judge's scores: the modes of generate_thoughts.py."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datamap.core.artifacts import recorded_dataset, stage
from datamap.core.errors import UserError, name_a_few
from datamap.core.files import read_json, write_json
from datamap.core.tables import console_table
from datamap.thoughts.chat_client import Answers, Question, ask_all, total
from datamap.thoughts.chat_pace import TOKENS, cost_of
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

FILES = {"generate": "thoughts.jsonl", "reflect": "reflections.jsonl", "score": "scores.jsonl",
         "compare": "comparisons.jsonl"}
FAILURES, USAGE, STATISTICS = "failures.jsonl", "usage.json", "thought_statistics.json"
# Of the files named in run_meta.json by the mode that writes them; all but pictures and tables only grow.
TABLES = (USAGE, STATISTICS, "thought_lengths.*", "thought_accuracy_by_length.csv")
OWNS = {
    "generate": (FILES["generate"], FAILURES, *TABLES), "reflect": (FILES["reflect"], FAILURES, *TABLES),
    "score": (FILES["score"], FILES["compare"], "score_report.json", FAILURES, *TABLES), "statistics": TABLES,
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


def ask(args: argparse.Namespace, kind: str, questions: Sequence[tuple[str, dict, dict]]) -> Answers:
    """The answers to (id, values of the prompt, what the record says of it), recorded; ``kind``: of READERS."""
    own = PROMPTS / f"{kind}.txt"
    template = load_prompt(own if kind == "compare" else args.prompt_file or own, PLACEHOLDERS[kind])
    keys = list(SCHEMAS[kind]["properties"])
    parameters: dict[str, Any] = {"temperature": args.temperature, "max_tokens": args.max_tokens}
    if args.response_format != "none":
        parameters["response_format"] = {"type": args.response_format}
    if args.response_format == "json_schema":
        parameters["response_format"]["json_schema"] = {"name": kind, "schema": SCHEMAS[kind], "strict": True}

    def check(question: Question, text: str) -> dict[str, Any]:
        found = READERS[kind](text, question.messages[0]["content"])
        if found is None:
            raise ValueError(f"no JSON object with {', '.join(keys)} that can be used in {text.strip()!r:.80}")
        true = question.about.get(TRUE_LABEL)
        return {**found, **({"correct": found[LABEL] == true} if LABEL in found and true is not None else {})}

    def verify(text: str) -> str | None:
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if isinstance(found, dict) and (args.response_format == "json_object" or set(found) == set(keys)):
            return None
        return (f"pays no heed to --response_format {args.response_format} (it answered {text.strip()!r:.60}); take "
                "another, or none: answers are then read out of whatever stands around them")

    output = Path(args.output_dir)
    asked = [
        Question(name, [{"role": "user", "content": fill_tagged(template, values)}], {"mode": kind, **about})
        for name, values, about in questions
    ]
    answers = ask_all(
        asked, output / FILES[kind], failures_path=output / FAILURES, model=args.model, base_url=args.base_url,
        key_variable=args.key_variable, parameters=parameters, check=check, keep_parsed=True,
        verify=None if args.response_format == "none" else verify, workers=args.workers,
        requests_per_minute=args.requests_per_minute, max_requests=args.max_requests, prices=args.prices,
        max_cost=args.max_cost, max_retries=args.max_retries, timeout=args.timeout, retry_failures=args.retry_failures,
    )
    record_usage(args, kind, answers)
    return answers


# --- modes -------------------------------------------------------------------------------------------------------


def generate(args: argparse.Namespace) -> None:
    split = load_pairs(args.dataset, args.split, args.label_map, args.max_samples, args.text_columns or (),
                       args.label_column)
    questions = [(row["id"], row, {name: row[name] for name in PAIR} | {TRUE_LABEL: row["label"]})
                 for row in split.data]
    unlabelled = sum(row["label"] is None for row in split.data)
    if unlabelled:
        logger.warning(f"{unlabelled:,} of {len(questions):,} pairs have no true label: nobody can tell whether their "
                       "chains are right")
    with stage(args.output_dir, args, owns=OWNS["generate"], datasets=[split.identity()], resume=True):
        answers = ask(args, "generate", questions)
        summarize(args, usable(answers), None)


def reflect(args: argparse.Namespace) -> None:
    chains = read_thoughts(args.thoughts)[: args.max_samples]
    wrong = [chain for chain in chains if is_right(chain) is False]
    logger.info(f"{len(wrong):,} of {len(chains):,} chains come to the wrong label")
    if not wrong:
        print("nothing to reflect on: no chain comes to the wrong label")
        return
    told = (*PAIR, TRUE_LABEL, THOUGHT)
    questions = [(chain["id"], {**chain, "thought": chain[THOUGHT]}, {name: chain[name] for name in told})
                 for chain in wrong]
    with _stage(args):
        answers = ask(args, "reflect", questions)
        summarize(args, chains, usable(answers))


def score(args: argparse.Namespace) -> None:
    from datamap.thoughts.statistics import chain_lengths, judge_report, position_report

    chains, reflections = _read(args)
    lengths, unit = chain_lengths(chains, args.tokenizer)
    questions = [
        (chain["id"], {**chain, "thought": chain[THOUGHT], "label": chain[LABEL]},
         {name: chain[name] for name in (LABEL, TRUE_LABEL)})
        for chain in chains if chain[LABEL] is not None
    ]
    pairs = shown_in_both_orders(chains, (reflections or [])[: args.position_samples])
    with _stage(args) as path:
        answers = ask(args, "score", questions)
        found: dict[str, Any] = {"model": args.model, "length_unit": unit,
                                 **judge_report(chains, answers.parsed, lengths), "position_bias": None}
        if pairs:
            better = ask(args, "compare", list(pairs.values())).parsed
            sides = {key: better[name]["better"] for key, (name, *_) in pairs.items() if name in better}
            found["position_bias"] = position_report(sides)
        else:
            logger.info("the judge's bias by position needs two chains of a pair: none without --reflections")
        write_json(path / "score_report.json", found)
        summarize(args, chains, reflections)
    _print_judge(found)


def shown_in_both_orders(
    chains: Sequence[Mapping[str, Any]], reflections: Sequence[Mapping[str, Any]]
) -> dict[tuple[str, str], tuple[str, dict, dict]]:
    """Of every pair with an original and a repaired chain, the two questions about them by (id, order)."""
    from datamap.thoughts.statistics import FIRST, SECOND

    original = {chain["id"]: chain for chain in chains}
    questions: dict[tuple[str, str], tuple[str, dict, dict]] = {}
    for repaired in (chain for chain in reflections if chain["id"] in original):
        first = original[repaired["id"]]
        a, b = (first[THOUGHT], first[LABEL]), (repaired[IMPROVED], repaired[LABEL])
        for order, (one, other) in ((FIRST, (a, b)), (SECOND, (b, a))):
            values = {"thought_a": one[0], "label_a": one[1], "thought_b": other[0], "label_b": other[1]}
            questions[first["id"], order] = (f"{first['id']} ({order})", {**first, **values}, {"order": order})
    return questions


def statistics(args: argparse.Namespace) -> None:
    chains, reflections = _read(args)
    with _stage(args):
        summarize(args, chains, reflections)


def _read(args: argparse.Namespace) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """The first chains, as many as --max_samples asks for, and the repaired ones of the same pairs."""
    chains = read_thoughts(args.thoughts)
    reflections = read_reflections(args.reflections) if args.reflections else None
    if args.max_samples is None:
        return chains, reflections
    chains = chains[: args.max_samples]
    known = {chain["id"] for chain in chains}
    return chains, None if reflections is None else [each for each in reflections if each["id"] in known]


def _stage(args: argparse.Namespace) -> Any:
    inputs = {"thoughts": args.thoughts, "reflections": args.reflections}
    datasets = [identity for path in inputs.values() if path and (identity := recorded_dataset(path))][:1]
    return stage(args.output_dir, args, owns=OWNS[args.mode], inputs=inputs, datasets=datasets, resume=True)


# --- what came of it ---------------------------------------------------------------------------------------------


def usable(answers: Answers) -> list[dict[str, Any]]:
    """The records of this call's questions, without the failures; a file may hold those of others too."""
    return [record for name, record in answers.records.items() if name in answers.parsed]


def record_usage(args: argparse.Namespace, kind: str, answers: Answers) -> None:
    """What the answers cost, to usage.json and the console; what was asked for earlier is counted with it."""
    file = Path(args.output_dir) / USAGE
    usage = read_json(file) if file.exists() else {}
    if not isinstance(usage, dict):
        raise UserError(f"{file} holds {usage!r:.40}; expected an object by kind of answers: delete it, the records "
                        "hold the same")
    records = answers.records.values()
    used: dict[str, Any] = {"model": args.model, **answers.usage, "cost": None, "by_outcome": {}}
    known = all(record[name] is not None for record in records for name in TOKENS if record["requests"])
    if args.prices and known:
        used["cost"] = sum(cost_of(record, args.prices) for record in records)
    for outcome in ("right", "wrong", "answered", "failed"):
        among = [record for record in records if _outcome(record) == outcome]
        if among:
            used["by_outcome"][outcome] = {"n": len(among), **{name: total(among, name) for name in TOKENS}}
    write_json(file, {**usage, kind: used})
    if kind == "generate" and answers.failures and not answers.parsed:  # later modes do with what there is
        first, reason = next(iter(answers.failures.items()))
        raise UserError(f"none of {len(answers.records):,} questions has a usable answer ({first!r}: {reason}); "
                        f"{FAILURES} holds the raw texts; see to the server, the model or the prompt, then "
                        "--retry_failures asks again")
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
    args: argparse.Namespace, chains: Sequence[Mapping[str, Any]], repaired: Sequence[Mapping[str, Any]] | None
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
    title = args.model if args.mode == "generate" else Path(args.thoughts).resolve().name
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
