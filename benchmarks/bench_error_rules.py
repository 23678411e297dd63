"""Time the nine error rules on 100,000 synthetic examples with predictions: python benchmarks/bench_error_rules.py"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datamap.core.errors import command_line
from datamap.core.flags import DEFAULT_SEED, Parser, positive_int

BOUND = 15.0  # seconds for 100,000 examples, one process
CONTEXT_WORDS = 150

SENTENCES = (
    "The patient was started on {drug} {dose} mg by mouth {freq} on {date}.",
    "Serum {lab} was {value} on admission and {value} at discharge; it was repeated the next morning.",
    "On {date} she underwent {procedure} without complication, and was transferred to the floor.",
    "He denies chest pain, shortness of breath, nausea or vomiting and has no known allergy to {drug}.",
    "Family history is notable for {disease} in the father at age {age} and for {disease} in a brother.",
    "{drug} was held because of {disease}, then resumed at {dose} mg {freq} after the {lab} had returned to normal.",
)
FILLERS = {
    "drug": ["aspirin", "metoprolol", "lisinopril", "furosemide", "warfarin", "insulin glargine", "atorvastatin"],
    "dose": ["5", "12.5", "25", "40", "81", "325", "1,000"],
    "freq": ["daily", "twice daily", "every 8 hours", "at bedtime", "q.d."],
    "date": ["2018-03-14", "03/14/2018", "March 14, 2018", "postoperative day 2", "Monday", "12 May 2017"],
    "lab": ["sodium", "creatinine", "hemoglobin", "potassium", "troponin"],
    "value": ["4.1", "138", "1.9", "0.04", "11.2"],
    "procedure": ["cardiac catheterization", "right hip replacement", "a colonoscopy", "coronary artery bypass"],
    "disease": ["atrial fibrillation", "type 2 diabetes", "pneumonia", "hyperkalemia", "congestive heart failure"],
    "age": ["45", "52", "61", "70"],
}
QUESTIONS = (
    "When was the patient started on {drug}?",
    "What is the dose of {drug}?",
    "How many mg of {drug} does the patient take?",
    "What was the date of the {procedure}?",
    "Has the patient ever had {disease}?",
    "Why was {drug} held?",
    "What were the results of the {lab}?",
    "medications for {disease}",
)


def make_examples(count: int, rng: np.random.Generator) -> tuple[list[str], list[str], list[str], list[str]]:
    """Questions, contexts of about 150 words, answers and predictions (spans of 1 to 15 words, often overlapping)."""

    def fill(template: str) -> str:
        return template.format(**{name: values[rng.integers(len(values))] for name, values in FILLERS.items()})

    # Contexts are put together from a stock of sentences; filling each one in would take longer than the benchmark.
    stock = [fill(SENTENCES[i % len(SENTENCES)]) for i in range(3000)]
    asked = [fill(QUESTIONS[i % len(QUESTIONS)]) for i in range(2000)]
    sentences = -(-CONTEXT_WORDS * len(stock) // sum(len(sentence.split()) for sentence in stock))  # rounded up
    questions, contexts, answers, predictions = [], [], [], []
    for picks in rng.integers(len(stock), size=(count, sentences)):
        context = " ".join(stock[i] for i in picks)
        words = context.split(" ")
        start = int(rng.integers(len(words) - 15))
        end = start + int(rng.integers(1, 16))
        shift = int(rng.integers(0, 4))
        questions.append(asked[rng.integers(len(asked))])
        contexts.append(context)
        answers.append(" ".join(words[start:end]))
        predictions.append(" ".join(words[start + shift : end + shift // 2]))
    return questions, contexts, answers, predictions


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("--examples", type=positive_int, default=100_000, help="examples to flag (default: 100000)")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help=f"of the generator (default: {DEFAULT_SEED})")
    parser.add_argument("--output", type=Path, help="JSON file for the result (default: printed only)")
    return parser.parse_args(argv)


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    import pandas as pd

    from datamap.analysis.error_rules import RULES, flag_errors

    columns = make_examples(args.examples, np.random.default_rng(args.seed))
    start = time.perf_counter()
    flags = flag_errors(*columns)
    seconds = time.perf_counter() - start

    result = {
        "seconds": seconds,
        "bound_seconds": BOUND * args.examples / 100_000,
        "examples": args.examples,
        "mean_context_words": float(np.mean([len(context.split()) for context in columns[1]])),
        "rates": {rule: float(flags[rule].mean()) for rule in (*RULES, "is_dataset_error")},
        "seed": args.seed,
        "versions": {"python": platform.python_version(), "pandas": pd.__version__, "numpy": np.__version__},
    }
    text = json.dumps(result, indent=2)
    print(text)
    if args.output:
        args.output.write_text(text + "\n", encoding="utf-8")
    if seconds > result["bound_seconds"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
