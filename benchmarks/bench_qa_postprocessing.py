"""Span search and scoring of 50,000 windows against the nested-loop form, and against an exhaustive search.

Builds seeded synthetic windows (384 tokens, 2 per example), gold answers and logits; writes JSON with --output.
Exit status 1 when the nested-loop form is not at least 20 times slower.

    python benchmarks/bench_qa_postprocessing.py --output bench.json
    python benchmarks/bench_qa_postprocessing.py --windows 2000 --nested_windows 200 --exhaustive_windows 10

The nested-loop form is the one commonly written: per example and window the 20 highest starts times the 20 highest
ends, a dictionary for each valid pair, a sort, a slice of the context, then normalisation by regular expressions for
every score. It and the exhaustive search are timed on part of the examples and scaled linearly, as nothing in them is
shared between examples. All sides run interleaved in one process on one thread, from logits in memory to EM and F1.
The nested loops are kept lean: no progress bar, no softmax over the candidates, features in plain lists and not in an
Arrow table. Our side runs in batches as an evaluation does; smaller batches are timed once for comparison.
"""

import argparse
import json
import os
import platform
import re
import statistics
import string
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datamap.tasks import qa_metrics  # noqa: E402

BOUND = 20.0
LENGTH = 384
QUESTION_TOKENS = 14  # [CLS] question [SEP]
STRIDE = 128
N_BEST = 20
MAX_ANSWER_LENGTH = 30
SYLLABLES = ["ba", "cor", "di", "el", "fos", "gra", "hin", "lo", "mer", "nu", "pra", "ril", "so", "tan", "vex"]


class Windows(NamedTuple):
    contexts: list[str]  # one per example
    golds: list[list[str]]  # one per example, empty when unanswerable
    example: np.ndarray  # (W,)
    start_logits: np.ndarray  # (W, L) float32
    end_logits: np.ndarray
    mask: np.ndarray  # (W, L) bool, context tokens
    offsets: np.ndarray  # (W, L, 2) int32


def make_windows(n_windows: int, seed: int) -> Windows:
    """Two windows an example, five examples a context, one unanswerable example in ten; most gold spans stand out."""
    rng = np.random.default_rng(seed)
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


def vectorised(data: Windows, batch_size: int) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """What the evaluation runs: one call of best_spans per batch, the rest once. Returns text, score, EM, F1."""
    import torch

    kept = []
    for first in range(0, len(data.example), batch_size):
        rows = slice(first, first + batch_size)
        start, end = torch.from_numpy(data.start_logits[rows]), torch.from_numpy(data.end_logits[rows])
        spans = qa_metrics.best_spans(start, end, torch.from_numpy(data.mask[rows]), MAX_ANSWER_LENGTH)
        kept.append((*spans, start[:, 0] + end[:, 0]))
    score, start_token, end_token, null_score = (torch.cat(column).numpy() for column in zip(*kept, strict=True))
    first_token = np.arange(len(data.offsets)) * data.offsets.shape[1]
    char_start, char_end = qa_metrics.char_spans(data.offsets.reshape(-1, 2), start_token, end_token, first_token)
    answers = qa_metrics.choose_answers(
        data.contexts, data.example, score, char_start, char_end, null_score, version_2=True
    )
    scores = qa_metrics.score_predictions(answers.text, data.golds, version_2=True)
    return answers.text, answers.score, scores.exact_match, scores.f1


def nested_loops(data: Windows, features: list[dict], examples: range, exhaustive: bool = False):
    """The commonly written form, or with `exhaustive` every span; same return as `vectorised`, for these examples."""
    texts, best_scores, exact, overlap = [], [], [], []
    for example in examples:
        candidates: list[dict[str, Any]] = []
        null_score = float("inf")
        for row in (2 * example, 2 * example + 1):
            start_logits, end_logits = data.start_logits[row], data.end_logits[row]
            offsets = features[row]["offset_mapping"]
            null_score = min(null_score, float(start_logits[0] + end_logits[0]))
            if exhaustive:
                span = exhaustive_span(start_logits.tolist(), end_logits.tolist(), offsets)
                if span is not None:
                    candidates.append({"score": span[0], "offsets": (offsets[span[1]][0], offsets[span[2]][1])})
                continue
            best_starts = np.argsort(start_logits)[-1 : -N_BEST - 1 : -1].tolist()
            best_ends = np.argsort(end_logits)[-1 : -N_BEST - 1 : -1].tolist()
            for start in best_starts:
                for end in best_ends:
                    if start >= len(offsets) or end >= len(offsets) or offsets[start] is None or offsets[end] is None:
                        continue
                    if end < start or end - start + 1 > MAX_ANSWER_LENGTH:
                        continue
                    candidates.append(
                        {
                            "score": start_logits[start] + end_logits[end],
                            "offsets": (offsets[start][0], offsets[end][1]),
                        }
                    )
        candidates = sorted(candidates, key=lambda candidate: candidate["score"], reverse=True)[:N_BEST]
        for candidate in candidates:
            begin, stop = candidate["offsets"]
            candidate["text"] = data.contexts[example][begin:stop]
        best: dict[str, Any] = candidates[0] if candidates else {"text": "", "score": float("-inf")}
        text = "" if null_score - best["score"] > 0 else best["text"]
        golds = [gold for gold in data.golds[example] if plain_normalize(gold)] or [""]
        texts.append(text)
        best_scores.append(float(best["score"]))
        exact.append(max(float(plain_normalize(text) == plain_normalize(gold)) for gold in golds))
        overlap.append(max(plain_f1(text, gold) for gold in golds))
    return texts, np.array(best_scores), np.array(exact), np.array(overlap)


def exhaustive_span(start_logits: list, end_logits: list, offsets: list) -> tuple[float, int, int] | None:
    best = None
    for start in range(len(offsets)):
        if offsets[start] is None:
            continue
        for end in range(start, min(start + MAX_ANSWER_LENGTH, len(offsets))):
            if offsets[end] is None:
                continue
            score = start_logits[start] + end_logits[end]
            if best is None or score > best[0]:
                best = score, start, end
    return best


def plain_normalize(text: str) -> str:
    text = "".join(character for character in text.lower() if character not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def plain_f1(prediction: str, gold: str) -> float:
    predicted, target = plain_normalize(prediction).split(), plain_normalize(gold).split()
    if not predicted or not target:
        return float(predicted == target)
    same = sum((Counter(predicted) & Counter(target)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(predicted), same / len(target)
    return 2 * precision * recall / (precision + recall)


def timed(function, *args, **kwargs):
    begin = time.perf_counter()
    result = function(*args, **kwargs)
    return time.perf_counter() - begin, result


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=50_000, help="windows for our side (default 50000)")
    parser.add_argument("--nested_windows", type=int, default=2_000, help="windows for nested loops (default 2000)")
    parser.add_argument("--exhaustive_windows", type=int, default=100, help="windows for every span (default 100)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds; the medians count (default 5)")
    parser.add_argument("--batch_size", type=int, default=256, help="windows per call of best_spans (default 256)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args(argv)
    for name in ("windows", "nested_windows", "exhaustive_windows"):
        if getattr(args, name) < 2 or getattr(args, name) % 2:
            parser.error(f"--{name} must be even and at least 2, as an example has two windows")
    if max(args.nested_windows, args.exhaustive_windows) * args.repeats > args.windows:
        parser.error("--windows must hold --repeats times the other two: each round takes a new part")
    return args


def main(argv=None) -> int:
    args = parse_args(argv)
    import torch

    torch.set_num_threads(1)  # the loops have one, and what else runs on the machine disturbs the ratio less
    data = make_windows(args.windows, args.seed)
    sampled = max(args.nested_windows, args.exhaustive_windows) * args.repeats
    # Lists of pairs, None outside the context: what the loops find in their features. Not timed.
    features = [
        {"offset_mapping": [tuple(pair) if keep else None for pair, keep in zip(pairs.tolist(), mask, strict=True)]}
        for pairs, mask in zip(data.offsets[:sampled], data.mask[:sampled], strict=True)
    ]
    vectorised(data, args.batch_size)  # first calls load kernels

    seconds: dict[str, list[float]] = {"ours": [], "nested": [], "exhaustive": []}
    missed = checked = 0
    for round_ in range(args.repeats):
        took, ours = timed(vectorised, data, args.batch_size)
        seconds["ours"].append(took)
        for name, windows in (("nested", args.nested_windows), ("exhaustive", args.exhaustive_windows)):
            examples = range(round_ * windows // 2, (round_ + 1) * windows // 2)
            took, theirs = timed(nested_loops, data, features, examples, exhaustive=name == "exhaustive")
            seconds[name].append(took * args.windows / windows)
            part = slice(examples.start, examples.stop)
            # The same answer wherever the same span score was found; the 20 x 20 loops may miss the best span.
            same = np.isclose(ours[1][part], theirs[1], rtol=1e-6, atol=1e-6)
            if name == "exhaustive" and not same.all():
                raise AssertionError("best_spans differs from the exhaustive search")
            if name == "nested":
                missed, checked = missed + int((~same).sum()), checked + len(same)
            for ours_column, their_column in ((ours[2][part], theirs[2]), (ours[3][part], theirs[3])):
                if not np.array_equal(ours_column[same], their_column[same]):
                    raise AssertionError(f"scores differ from the {name} form")

    other_batches = {str(size): timed(vectorised, data, size)[0] for size in (8, 64)}
    median = {name: statistics.median(values) for name, values in seconds.items()}
    ratio, exhaustive_ratio = median["nested"] / median["ours"], median["exhaustive"] / median["ours"]
    result = {
        "what": "seconds from logits in memory to EM and F1; medians over interleaved rounds",
        "windows": args.windows,
        "examples": len(data.contexts),
        "length": LENGTH,
        "max_answer_length": MAX_ANSWER_LENGTH,
        "batch_size": args.batch_size,
        "seed": args.seed,
        "extrapolated": f"nested measured on {args.nested_windows}, exhaustive on {args.exhaustive_windows} windows "
        f"a round; scaled linearly to {args.windows}",
        "seconds": median,
        "seconds_rounds": seconds,
        "seconds_ours_by_batch_size": other_batches,
        "ratio": ratio,
        "ratio_exhaustive": exhaustive_ratio,
        "bound": BOUND,
        "passed": ratio >= BOUND,
        "nested_missed_best_span": missed / checked,
        "exact_match": float(100 * ours[2].mean()),
        "f1": float(100 * ours[3].mean()),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if args.output:
        args.output.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    print(
        f"{args.windows} windows: ours {median['ours']:.3f} s, nested loops {median['nested']:.1f} s "
        f"({ratio:.0f}x, bound {BOUND:.0f}x), exhaustive {median['exhaustive']:.1f} s ({exhaustive_ratio:.0f}x); "
        f"EM {result['exact_match']:.1f}, F1 {result['f1']:.1f}; the nested loops miss the best span of "
        f"{100 * missed / checked:.1f}% of the examples" + (f"; wrote {args.output}" if args.output else "")
    )
    return 0 if ratio >= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
