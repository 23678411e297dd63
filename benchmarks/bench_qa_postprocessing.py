"""Span search and scoring of 50,000 windows against the nested-loop form, and against an exhaustive search.

Builds seeded synthetic windows (384 tokens, 2 per example), gold answers and logits. Prints a table and writes
bench_qa_postprocessing.json; exit status 1 when the nested-loop form is not at least 20 times slower.

    python benchmarks/bench_qa_postprocessing.py
    python benchmarks/bench_qa_postprocessing.py --windows 2000 --nested_windows 200 --exhaustive_windows 10

The nested-loop form is the one commonly written: per example and window the 20 highest starts times the 20 highest
ends, a dictionary for each valid pair, a sort, a slice of the context, then normalisation by regular expressions for
every score. It and the exhaustive search are timed on part of the examples and scaled linearly, as nothing in them is
shared between examples. All sides run in turn in one process on one thread, from logits in memory to EM and F1.
The nested loops are kept lean: no progress bar, no softmax over the candidates, features in plain lists and not in an
Arrow table. Our side runs in batches as an evaluation does.
"""

from __future__ import annotations

import argparse
import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from timing import Measure, bench_parser, in_turn, report, timed

from datamap.core.errors import command_line
from datamap.core.flags import positive_int
from datamap.tasks import qa_metrics

BOUND = 20.0
LENGTH = 384
QUESTION_TOKENS = 14  # [CLS] question [SEP]
STRIDE = 128
N_BEST = 20
MAX_ANSWER_LENGTH = 30
BATCH_SIZE = 256  # windows per call of best_spans
ROUNDS = 5
SYLLABLES = ["ba", "cor", "di", "el", "fos", "gra", "hin", "lo", "mer", "nu", "pra", "ril", "so", "tan", "vex"]

Offsets = list[tuple[int, int] | None]  # None outside the context: what the loops find in their features


class Windows(NamedTuple):
    contexts: list[str]  # one per example
    golds: list[list[str]]  # one per example, empty when unanswerable
    example: np.ndarray  # (W,)
    start_logits: np.ndarray  # (W, L) float32
    end_logits: np.ndarray
    mask: np.ndarray  # (W, L) bool, context tokens
    offsets: np.ndarray  # (W, L, 2) int32


class Found(NamedTuple):
    """Of the answers, one per example."""

    score: np.ndarray  # of the span
    exact_match: np.ndarray
    f1: np.ndarray


def make_windows(n_windows: int) -> Windows:
    """Two windows an example, five examples a context, one unanswerable example in ten; most gold spans stand out."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(SYLLABLES, rng.integers(1, 4))) for _ in range(4000)]
    words += ["the", "a", "an", "of", "in", "and"] * 120 + [str(number) for number in range(400)]
    context_tokens = LENGTH - QUESTION_TOKENS - 1
    n_examples = n_windows // 2
    logits = rng.standard_normal((2, n_windows, LENGTH), dtype=np.float32)
    mask = np.zeros((n_windows, LENGTH), bool)
    offsets = np.zeros((n_windows, LENGTH, 2), np.int32)
    contexts: list[str] = []
    golds: list[list[str]] = []
    for index in range(n_examples):
        if index % 5 == 0:
            n_tokens = int(rng.integers(context_tokens + 1, 2 * context_tokens - STRIDE + 1))
            tokens = [words[i] for i in rng.integers(0, len(words), n_tokens)]
            tokens = [word.capitalize() if i % 12 == 0 else word for i, word in enumerate(tokens)]
            marks = ["." if i % 12 == 11 else "," if i % 7 == 6 else "" for i in range(n_tokens)]
            tokens = [word + mark for word, mark in zip(tokens, marks, strict=True)]
            ends = np.cumsum([len(token) + 1 for token in tokens]) - 1
            spans = np.stack([ends - [len(token) for token in tokens], ends], axis=1)
            context = " ".join(tokens)
        size = int(min(rng.geometric(0.3), 12))
        first = int(rng.integers(0, n_tokens - size))
        gold = [(first, first + size - 1)] + ([(first, first + size)] if rng.random() < 0.3 else [])
        answerable = index % 10 != 9
        contexts.append(context)
        golds.append([context[spans[a, 0] : spans[b, 1]] for a, b in gold] if answerable else [])
        for row, begin in ((2 * index, 0), (2 * index + 1, context_tokens - STRIDE)):
            count = min(context_tokens, n_tokens - begin)
            mask[row, QUESTION_TOKENS : QUESTION_TOKENS + count] = True
            offsets[row, QUESTION_TOKENS : QUESTION_TOKENS + count] = spans[begin : begin + count]
            if answerable and begin <= first and gold[0][1] < begin + count:
                shift = int(rng.integers(-2, 3)) if rng.random() < 0.3 else 0  # predictions that overlap, not equal
                logits[0, row, QUESTION_TOKENS + max(first - begin + min(shift, 0), 0)] += 6
                logits[1, row, QUESTION_TOKENS + min(gold[0][1] - begin + max(shift, 0), count - 1)] += 6
            else:
                logits[:, row, 0] += 5
    return Windows(contexts, golds, np.arange(n_windows) // 2, logits[0], logits[1], mask, offsets)


def vectorised(data: Windows) -> Found:
    """What the evaluation runs: one call of best_spans per batch, the rest once."""
    import torch

    kept = []
    for first in range(0, len(data.example), BATCH_SIZE):
        rows = slice(first, first + BATCH_SIZE)
        start, end = torch.from_numpy(data.start_logits[rows]), torch.from_numpy(data.end_logits[rows])
        spans = qa_metrics.best_spans(start, end, torch.from_numpy(data.mask[rows]), MAX_ANSWER_LENGTH)
        kept.append((*spans, start[:, 0] + end[:, 0]))
    score, start_token, end_token, null_score = (torch.cat(column).numpy() for column in zip(*kept, strict=True))
    first_token = np.arange(len(data.offsets)) * data.offsets.shape[1]
    char_start, char_end = qa_metrics.char_spans(data.offsets.reshape(-1, 2), start_token, end_token, first_token)
    answers = qa_metrics.choose_answers(data.contexts, data.example, score, char_start, char_end, null_score,
                                        version_2=True)
    scores = qa_metrics.score_predictions(answers.text, data.golds, version_2=True)
    return Found(answers.score, scores.exact_match, scores.f1)


def by_loops(data: Windows, offsets: Sequence[Offsets], examples: range, exhaustive: bool) -> Found:
    """The commonly written form, or with ``exhaustive`` every span, for these examples."""
    found = []
    for example in examples:
        candidates: list[dict[str, Any]] = []
        null_score = float("inf")
        for row in (2 * example, 2 * example + 1):
            start, end = data.start_logits[row], data.end_logits[row]
            null_score = min(null_score, float(start[0] + end[0]))
            candidates.extend((exhaustive_span if exhaustive else nested_spans)(start, end, offsets[row]))
        candidates = sorted(candidates, key=lambda candidate: candidate["score"], reverse=True)[:N_BEST]
        for candidate in candidates:
            begin, stop = candidate["offsets"]
            candidate["text"] = data.contexts[example][begin:stop]
        best: dict[str, Any] = candidates[0] if candidates else {"text": "", "score": float("-inf")}
        text = "" if null_score - best["score"] > 0 else best["text"]
        golds = [gold for gold in data.golds[example] if plain_normalize(gold)] or [""]
        found.append((float(best["score"]),
                      max(float(plain_normalize(text) == plain_normalize(gold)) for gold in golds),
                      max(plain_f1(text, gold) for gold in golds)))
    return Found(*map(np.array, zip(*found, strict=True)))


def nested_spans(start_logits: np.ndarray, end_logits: np.ndarray, offsets: Offsets) -> Iterator[dict[str, Any]]:
    best_ends = np.argsort(end_logits)[-1 : -N_BEST - 1 : -1].tolist()
    for start in np.argsort(start_logits)[-1 : -N_BEST - 1 : -1].tolist():
        for end in best_ends:
            first, last = offsets[start], offsets[end]
            if first is None or last is None or end < start or end - start + 1 > MAX_ANSWER_LENGTH:
                continue
            yield {"score": start_logits[start] + end_logits[end], "offsets": (first[0], last[1])}


def exhaustive_span(start_logits: np.ndarray, end_logits: np.ndarray, offsets: Offsets) -> Iterator[dict[str, Any]]:
    starts, ends = start_logits.tolist(), end_logits.tolist()
    spans = ((starts[start] + ends[end], first[0], last[1])
             for start, first in enumerate(offsets) if first is not None
             for end, last in enumerate(offsets[start : start + MAX_ANSWER_LENGTH], start) if last is not None)
    if best := max(spans, key=lambda span: span[0], default=None):
        yield {"score": best[0], "offsets": best[1:]}


def plain_normalize(text: str) -> str:
    text = "".join(character for character in text.lower() if character not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def plain_f1(prediction: str, gold: str) -> float:
    predicted, target = plain_normalize(prediction).split(), plain_normalize(gold).split()
    if not predicted or not target:
        return float(predicted == target)
    same = sum((Counter(predicted) & Counter(target)).values())
    precision, recall = same / len(predicted), same / len(target)
    return 2 * precision * recall / (precision + recall) if same else 0.0


def share_missed(ours: Found, theirs: Found, examples: range, exhaustive: bool) -> float:
    """The share of the examples whose best span the loops do not find, 0..1. AssertionError where ours does not find
    what the exhaustive search does, or where the scores of the same span differ."""
    ours = Found(*(column[examples.start : examples.stop] for column in ours))
    same = np.isclose(ours.score, theirs.score, rtol=1e-6, atol=1e-6)
    assert same.all() or not exhaustive, "best_spans differs from the exhaustive search"
    for mine, other in zip(ours[1:], theirs[1:], strict=True):
        assert np.array_equal(mine[same], other[same]), "scores differ"
    return float(1 - same.mean())


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = bench_parser(__doc__, __file__)
    parser.add_argument("--windows", type=positive_int, default=50_000, help="windows for our side")
    parser.add_argument("--nested_windows", type=positive_int, default=2_000, help="windows for nested loops, a round")
    parser.add_argument("--exhaustive_windows", type=positive_int, default=100, help="windows for every span, a round")
    args = parser.parse_args(argv)
    sizes = (args.windows, args.nested_windows, args.exhaustive_windows)
    if any(size % 2 for size in sizes):
        parser.error("--windows and the others must be even, as an example has two windows")
    if max(sizes[1:]) * ROUNDS > args.windows:
        parser.error(f"--windows must hold {ROUNDS} times the other two: each round takes a new part")
    return args


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    import torch

    torch.set_num_threads(1)  # the loops have one, and what else runs on the machine disturbs the ratio less
    data = make_windows(args.windows)
    sampled = max(args.nested_windows, args.exhaustive_windows) * ROUNDS
    offsets: list[Offsets] = [
        [tuple(pair) if keep else None for pair, keep in zip(pairs.tolist(), mask, strict=True)]
        for pairs, mask in zip(data.offsets[:sampled], data.mask[:sampled], strict=True)
    ]
    found = vectorised(data)  # first calls load kernels
    missed: dict[bool, list[float]] = {True: [], False: []}

    def loops(number: int, windows: int, exhaustive: bool) -> float:
        examples = range(number * windows // 2, (number + 1) * windows // 2)
        seconds, theirs = timed(by_loops, data, offsets, examples, exhaustive)
        missed[exhaustive].append(share_missed(found, theirs, examples, exhaustive))
        return seconds * args.windows / windows

    ours, nested, exhaustive = in_turn(
        ROUNDS, lambda _: timed(vectorised, data)[0], lambda number: loops(number, args.nested_windows, False),
        lambda number: loops(number, args.exhaustive_windows, True),
    )
    ratio, exhaustive_ratio = (float(np.median(other) / np.median(ours)) for other in (nested, exhaustive))
    report(args, __file__, {"length": LENGTH, "max_answer_length": MAX_ANSWER_LENGTH, "batch_size": BATCH_SIZE}, [
        Measure(f"{args.windows:,} windows", ours, " s"),
        Measure("nested loops, scaled", nested, " s"),
        Measure("every span, scaled", exhaustive, " s"),
        Measure("nested loops / ours", [ratio], " times", least=BOUND),
        Measure("every span / ours", [exhaustive_ratio], " times"),
        Measure("examples whose best span the nested loops miss", [100 * float(np.mean(missed[False]))], " %"),
        Measure("exact match", [float(100 * found.exact_match.mean())]),
        Measure("F1", [float(100 * found.f1.mean())]),
    ])


if __name__ == "__main__":
    main()
