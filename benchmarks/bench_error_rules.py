"""Seconds of the nine error rules on 100,000 examples with predictions, made of the notes of demo:clinical.

Reads nothing. Prints a table and writes bench_error_rules.json; exit status 1 when the bound is broken.

    python benchmarks/bench_error_rules.py
    python benchmarks/bench_error_rules.py --examples 1000
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
from timing import Measure, bench_parser, report, timed

from datamap.core.errors import command_line
from datamap.core.flags import DEFAULT_SEED, positive_int
from datamap.demo import builtin

BOUND = 15.0  # seconds for 100,000 examples, one process
FIXED = 1.0  # seconds that few examples may take: patterns are compiled, libraries warm up


def make_examples(count: int) -> tuple[list[str], list[str], list[str], list[str]]:
    """Questions, contexts of two notes, answers and predictions (spans of 1 to 15 words, often overlapping)."""
    rng = np.random.default_rng(DEFAULT_SEED)
    notes = builtin.generate("clinical", "train")
    questions, contexts, answers, predictions = [], [], [], []
    for first, second in rng.integers(len(notes), size=(count, 2)):
        contexts.append(f"{notes[first]['context']} {notes[second]['context']}")
        words = contexts[-1].split(" ")
        start, length, shift = int(rng.integers(len(words) - 15)), int(rng.integers(1, 16)), int(rng.integers(4))
        questions.append(notes[first]["question"])
        answers.append(" ".join(words[start : start + length]))
        predictions.append(" ".join(words[start + shift : start + length + shift // 2]))
    return questions, contexts, answers, predictions


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = bench_parser(__doc__, __file__)
    parser.add_argument("--examples", type=positive_int, default=100_000, help="examples to flag")
    return parser.parse_args(argv)


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    from datamap.analysis.error_rules import RULES, flag_errors

    columns = make_examples(args.examples)
    seconds, flags = timed(flag_errors, *columns)
    words = float(np.mean([len(context.split()) for context in columns[1]]))
    report(args, __file__, {"rates": {rule: float(flags[rule].mean()) for rule in (*RULES, "is_dataset_error")}}, [
        Measure(f"nine rules on {args.examples:,} examples", [seconds], " s",
                most=max(FIXED, BOUND * args.examples / 100_000)),
        Measure("words in a context, mean", [words]),
    ])


if __name__ == "__main__":
    main()
