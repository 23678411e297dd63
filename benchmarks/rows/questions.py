"""Question answering: windows with their labels, and from logits to answers and scores, beside the common forms.

Windows: the preparation of the library's question-answering example, written anew: one tokenizer call a batch, then
for every window a walk over its tokens to the ones that hold the answer. Both sides through ``datasets`` in batches.

Answers: per example and window the 20 highest starts times the 20 highest ends, a dictionary for each valid pair, a
sort, a slice of the context, then normalisation by regular expressions for every score; beside it an exhaustive
search. The nested loops are kept lean: no progress bar, no softmax over the candidates, features in plain lists and
not in an Arrow table. They are timed on part of the examples and scaled linearly, as they share nothing between them.
All sides run in turn in one process on one thread, ours in batches as an evaluation does.

Scores alone: the formula of SQuAD v1.1 (exact match and F1, the best over the gold answers), example by example, and
torchmetrics' form of it. ``evaluate``'s loads the same formula from the Hub, which need not be in reach.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from timing import Found, Measure, Setting, in_turn, peer, ratio, timed

from datamap.core.files import write_jsonl
from datamap.core.flags import DEFAULT_SEED
from datamap.core.splits import load_split
from datamap.tasks import qa_metrics
from datamap.tasks.registry import get_task
from rows import made

LENGTH = 384
QUESTION_TOKENS = 14  # [CLS] question [SEP]
STRIDE = 128
N_BEST = 20
MAX_ANSWER_LENGTH = 30
BATCH_SIZE = 256  # windows per call of best_spans
PUNCTUATION = set(string.punctuation)
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


class Answers(NamedTuple):
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


def vectorised(data: Windows) -> Answers:
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
    return Answers(answers.score, scores.exact_match, scores.f1)


def by_loops(data: Windows, offsets: Sequence[Offsets], examples: range, exhaustive: bool) -> Answers:
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
    return Answers(*map(np.array, zip(*found, strict=True)))


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
    text = "".join(character for character in text.lower() if character not in PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def plain_f1(prediction: str, gold: str) -> float:
    predicted, target = plain_normalize(prediction).split(), plain_normalize(gold).split()
    if not predicted or not target:
        return float(predicted == target)
    return token_f1(predicted, target)


def token_f1(predicted: list[str], target: list[str]) -> float:
    same = sum((Counter(predicted) & Counter(target)).values())
    if not same:
        return 0.0
    precision, recall = same / len(predicted), same / len(target)
    return 2 * precision * recall / (precision + recall)


def share_missed(ours: Answers, theirs: Answers, examples: range, exhaustive: bool) -> float:
    """The share of the examples whose best span the loops do not find, 0..1. AssertionError where ours does not find
    what the exhaustive search does, or where the scores of the same span differ."""
    ours = Answers(*(column[examples.start : examples.stop] for column in ours))
    same = np.isclose(ours.score, theirs.score, rtol=1e-6, atol=1e-6)
    assert same.all() or not exhaustive, "best_spans differs from the exhaustive search"
    for mine, other in zip(ours[1:], theirs[1:], strict=True):
        assert np.array_equal(mine[same], other[same]), "scores differ"
    return float(1 - same.mean())


# --- windows ---------------------------------------------------------------------------------------------------------


def pairs_of(file: Path, count: int, a_context: int) -> Any:
    """So many questions, each another, and their contexts, each of which has so many of them; made up."""
    write_jsonl(file, made.rows_of("qa", count, np.random.default_rng(DEFAULT_SEED), a_context))
    return load_split(str(file), "train", get_task("qa")).data


def windows_by_loop(examples: dict[str, list], tokenizer: Any, max_length: int, doc_stride: int) -> dict[str, list]:
    """Token ids and the first and last token of the answer of every window, [CLS] where it does not hold it."""
    encoded = tokenizer(
        [question.lstrip() for question in examples["question"]], examples["context"], truncation="only_second",
        max_length=max_length, stride=doc_stride, return_overflowing_tokens=True, return_offsets_mapping=True,
    )
    example_of, places = encoded.pop("overflow_to_sample_mapping"), encoded.pop("offset_mapping")
    starts, ends = [], []
    for window, offsets in enumerate(places):
        cls = encoded["input_ids"][window].index(tokenizer.cls_token_id)
        context = [token for token, side in enumerate(encoded.sequence_ids(window)) if side == 1]
        answers = examples["answers"][example_of[window]]
        first = last = cls
        if answers["answer_start"]:
            begin = answers["answer_start"][0]
            stop = begin + len(answers["text"][0])
            if offsets[context[0]][0] <= begin and offsets[context[-1]][1] >= stop:
                for first in reversed(context):
                    if offsets[first][0] <= begin:
                        break
                for last in context:
                    if offsets[last][1] >= stop:
                        break
        starts.append(first)
        ends.append(last)
    return {**encoded, "start_positions": starts, "end_positions": ends}


def looped(data: Any, tokenizer: Any) -> Any:
    settings = {"tokenizer": tokenizer, "max_length": LENGTH, "doc_stride": STRIDE}
    return data.map(windows_by_loop, batched=True, remove_columns=data.column_names, fn_kwargs=settings,
                    keep_in_memory=True, load_from_cache_file=False)


def windows(setting: Setting) -> Found:
    import datasets
    from transformers import AutoTokenizer

    from datamap.training.models import place_of

    datasets.disable_progress_bars()
    tokenizer, task = AutoTokenizer.from_pretrained(place_of("minilm")), get_task("qa")
    count, measures = setting.size(50_000, 200), list[Measure]()

    def ours(data: Any, _: int = 0) -> float:
        return timed(task.features, data, tokenizer, LENGTH, STRIDE)[0]

    def theirs(data: Any, _: int = 0) -> float:
        return timed(looped, data, tokenizer)[0] * count / len(data)

    for a_context in (made.QUESTIONS_A_CONTEXT, 1):
        data = pairs_of(setting.scratch / f"of-{a_context}.jsonl", count, a_context)
        part = data.select(range(count // setting.size(5, 1)))  # for the loop, in which examples share nothing
        for side in (ours, theirs):
            side(data.select(range(min(count, 500))))
        whole, scaled = in_turn(setting.size(3, 1), partial(ours, data), partial(theirs, part))
        what = f"{count:,} pairs, {a_context} a context"
        measures += [Measure(f"{what}: ours", whole, " s"), Measure(f"{what}: the loop, scaled", scaled, " s"),
                     ratio(f"{what}: the loop / ours", scaled, whole, 5.0 if a_context > 1 else None)]
    return Found(measures)


# --- answers and scores ----------------------------------------------------------------------------------------------


def plain_offsets(data: Windows, count: int) -> list[Offsets]:
    return [[tuple(pair) if keep else None for pair, keep in zip(pairs.tolist(), mask, strict=True)]
            for pairs, mask in zip(data.offsets[:count], data.mask[:count], strict=True)]


def answers(setting: Setting) -> Found:
    import torch

    torch.set_num_threads(1)  # the loops have one, and what else runs on the machine disturbs the ratio less
    rounds, count = setting.size(5, 1), setting.size(50_000, 400)
    nested_part, every_part = setting.size(2000, 40), setting.size(100, 10)  # windows of a round
    data = make_windows(count)
    offsets = plain_offsets(data, rounds * max(nested_part, every_part))
    found = vectorised(data)  # first calls load kernels
    missed: dict[bool, list[float]] = {True: [], False: []}

    def loops(number: int, part: int, exhaustive: bool) -> float:
        examples = range(number * part // 2, (number + 1) * part // 2)
        seconds, theirs = timed(by_loops, data, offsets, examples, exhaustive)
        missed[exhaustive].append(share_missed(found, theirs, examples, exhaustive))
        return seconds * count / part

    ours, nested, every = in_turn(
        rounds, lambda _: timed(vectorised, data)[0], lambda number: loops(number, nested_part, False),
        lambda number: loops(number, every_part, True),
    )
    scored = scores(count // 2, rounds)
    return Found([
        Measure(f"answers and scores of {count:,} windows", ours, " s"), Measure("nested loops, scaled", nested, " s"),
        Measure("every span, scaled", every, " s"), ratio("nested loops / ours", nested, ours, least=20.0),
        ratio("every span / ours", every, ours),
        Measure("examples whose best span the nested loops miss", [100 * float(np.mean(missed[False]))], " %"),
        *scored.measures,
    ], scored.notes, {"length": LENGTH, "max_answer_length": MAX_ANSWER_LENGTH, "batch_size": BATCH_SIZE})


def made_answers(count: int) -> tuple[list[str], list[list[str]]]:
    """Predictions and gold answers, one to three each, that agree, overlap, or neither."""
    rng = np.random.default_rng(DEFAULT_SEED)
    words = ["".join(rng.choice(SYLLABLES, rng.integers(1, 4))) for _ in range(2000)]
    words += ["the", "a", "12", "Dr.", "U.S."]
    texts = [[words[place] for place in rng.integers(len(words), size=rng.geometric(0.3))] for _ in range(count)]
    # What is nothing but an article is no answer to SQuAD's formula, and torchmetrics counts it otherwise.
    texts = [[words[0], *text] if set(text) <= {"the", "a"} else text for text in texts]
    golds = [[" ".join(text), *(" ".join(text[: 1 + number]) for number in range(rng.integers(0, 3)))]
             for text in texts]
    said = [" ".join(text if draw < 0.5 else text[:2] if draw < 0.8 else [words[0]])
            for text, draw in zip(texts, rng.random(count), strict=True)]
    return said, golds


def by_formula(predictions: Sequence[str], golds: Sequence[Sequence[str]]) -> tuple[float, float]:
    """Exact match and F1 in percent, example by example; without a word in common F1 is 0."""
    exact = f1 = 0.0
    for prediction, texts in zip(predictions, golds, strict=True):
        exact += max(float(plain_normalize(prediction) == plain_normalize(text)) for text in texts)
        f1 += max(token_f1(plain_normalize(prediction).split(), plain_normalize(text).split()) for text in texts)
    return 100 * exact / len(golds), 100 * f1 / len(golds)


def by_torchmetrics(predictions: Sequence[str], golds: Sequence[Sequence[str]]) -> tuple[float, float]:
    from torchmetrics.functional.text import squad

    said = [{"id": str(row), "prediction_text": text} for row, text in enumerate(predictions)]
    known = [{"id": str(row), "answers": {"text": list(texts), "answer_start": [0] * len(texts)}}
             for row, texts in enumerate(golds)]
    found = squad(said, known)
    return float(found["exact_match"]), float(found["f1"])


def by_us(predictions: Sequence[str], golds: Sequence[Sequence[str]]) -> tuple[float, float]:
    found = qa_metrics.squad_summary(qa_metrics.score_predictions(predictions, golds, version_2=False))
    return found["exact_match"], found["f1"]


def scores(count: int, rounds: int) -> Found:
    notes: list[str] = []
    given = made_answers(count)
    sides = {"ours": by_us, "the formula, example by example": by_formula}
    if peer("torchmetrics", "torchmetrics", notes):
        sides["torchmetrics"] = by_torchmetrics
    known = {name: side(*given) for name, side in sides.items()}  # first calls load libraries
    for name, values in known.items():
        assert np.allclose(values, known["ours"], atol=1e-3), f"{name} scores {values}, ours {known['ours']}"
    ours, *others = in_turn(rounds, *(lambda _, side=side: timed(side, *given)[0] for side in sides.values()))
    return Found([Measure(f"scores alone of {count:,} answers", ours, " s"),
                  *(ratio(f"scores: {name} / ours", each, ours, least=5.0)
                    for name, each in zip(list(sides)[1:], others, strict=True))], notes)
