"""From start and end logits to answers, and from answers to SQuAD exact match and F1, without loops over spans.

The road of an evaluation: `best_spans` inside the evaluation step (three numbers are kept per window, however long it
is), `char_spans` and `choose_answers` once all windows are in, `score_predictions` and `squad_summary` at the end.

Two sets of scoring rules exist and differ. SQuAD 1.1 (evaluate-v1.1.py): every example has gold answers; an answer
without tokens (empty, or only articles and punctuation) has F1 0 against everything, itself included. SQuAD 2.0
(evaluate-v2.0.py): gold answers without tokens are dropped; an example left without any has the single gold answer "",
and an answer without tokens scores 1 against that one and 0 against any other. `version_2` chooses, for a slice of a
dataset that of the whole.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch

_PUNCTUATION = string.punctuation.encode()
_LOWER_CASE = bytes(range(256)).lower()
_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:an?|the)\b")


class Spans(NamedTuple):
    """Best span of each window: three tensors of shape (B,) on the device of the logits."""

    score: torch.Tensor  # float32, start logit + end logit; -inf when the window has no valid span
    start: torch.Tensor  # int64 token position; -1 when there is none
    end: torch.Tensor  # int64 token position, inclusive; -1 when there is none


class PredictedAnswers(NamedTuple):
    """One answer per example, in the order of the contexts."""

    text: list[str]  # slice of the context, or "" for no answer
    span: list[str]  # of the best span, whatever the no-answer score says; "" where there is none
    no_answer: np.ndarray  # float64, lowest null score - best span score; -inf: always answered, inf: never
    score: np.ndarray  # float64, best span over the windows; -inf when there is none


class Scores(NamedTuple):
    """One score per example, in the order of the predictions."""

    exact_match: np.ndarray  # float64, 0 or 1
    f1: np.ndarray  # float64, 0..1
    has_answer: np.ndarray  # bool, the example comes with gold answers
    version_2: bool  # scored by the rules of SQuAD 2.0


def best_spans(
    start_logits: torch.Tensor, end_logits: torch.Tensor, candidate_mask: torch.Tensor,
    max_answer_length: int | None = None,
) -> Spans:
    """The span with the highest start + end logit of each window, equal to an exhaustive search.

    A span is valid when start <= end, both positions are candidates, and it has at most `max_answer_length` tokens
    (None: no limit). Sums are taken in float32, whatever the dtype of the logits. Among equal sums the smallest start
    wins, then the smallest end. A position whose logit is not finite is not a candidate on that side.

    start_logits, end_logits: (B, L), any float dtype and device; candidate_mask: (B, L), true or nonzero where an
    answer may start or end (the context tokens). Memory B * L; time B * L, times log2(max_answer_length) with a limit.
    Raises ValueError for shapes that differ and for max_answer_length below 1.
    """
    import torch

    if start_logits.dim() != 2 or not start_logits.shape == end_logits.shape == candidate_mask.shape:
        raise ValueError(
            "start_logits, end_logits and candidate_mask must have one shape (windows, tokens), found "
            f"{tuple(start_logits.shape)}, {tuple(end_logits.shape)} and {tuple(candidate_mask.shape)}"
        )
    if max_answer_length is not None and max_answer_length < 1:
        raise ValueError(f"max_answer_length must be at least 1 token or None, found {max_answer_length}")

    length = start_logits.shape[1]
    limit = length if max_answer_length is None else min(max_answer_length, length)
    # Not-finite logits become -inf, and adding -inf where no answer may be is cheaper than selecting twice.
    barred = torch.where(candidate_mask.bool(), 0.0, -torch.inf)
    start_scores, end_scores = (
        logits.detach().float().nan_to_num(-torch.inf, -torch.inf, -torch.inf) + barred
        for logits in (start_logits, end_logits)
    )

    # best_end[s] = highest end score in s .. s + limit - 1.
    if limit == length:
        best_end = end_scores.flip(1).cummax(dim=1).values.flip(1)
    else:
        # The width of the maximum doubles until it is the limit: log2(limit) passes, no (B, L, limit) array.
        best_end, width = torch.nn.functional.pad(end_scores, (0, limit - 1), value=-torch.inf), 1
        while width < limit:
            shift = min(width, limit - width)
            best_end = torch.maximum(best_end[:, :-shift], best_end[:, shift:])
            width += shift

    score, start = (start_scores + best_end).max(dim=1)  # the first of equal maxima
    # Two different end logits may give the same rounded sum, so the end is looked up by the sum and not by the logit:
    # the first match from the start on (positions past the window repeat its last one and never come first).
    ends = (start[:, None] + torch.arange(limit, device=start.device)).clamp_(max=length - 1)
    reached = end_scores.gather(1, ends) + start_scores.gather(1, start[:, None]) == score[:, None]
    end = start + reached.to(torch.uint8).argmax(dim=1)

    none = score == -torch.inf
    return Spans(score, start.masked_fill(none, -1), end.masked_fill(none, -1))


def char_spans(
    offsets: np.ndarray, start: np.ndarray, end: np.ndarray, first_token: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Token spans to character spans: (char_start, char_end), int64 of shape (N,), end exclusive.

    offsets: (T, 2), the tokenizer's offset mapping of all windows one after the other; first_token: (N,), the row of
    each window's first token. Without a span (start -1) the result is (0, 0).
    """
    start, end, first = (np.asarray(values, np.int64) for values in (start, end, first_token))
    if not len(first) == len(start) == len(end):
        raise ValueError(f"{len(first)} windows, but {len(start)} starts and {len(end)} ends")
    char_start, char_end = np.zeros(len(start), np.int64), np.zeros(len(start), np.int64)
    found = start >= 0
    char_start[found] = offsets[first[found] + start[found], 0]
    char_end[found] = offsets[first[found] + end[found], 1]
    return char_start, char_end


def choose_answers(
    contexts: Sequence[str], example_index: np.ndarray, score: np.ndarray, char_start: np.ndarray,
    char_end: np.ndarray, null_score: np.ndarray, *, version_2: bool,
) -> PredictedAnswers:
    """The answer of each example: the text of its best span over all of its windows.

    contexts: one per example (N of them); the arrays have one entry per window, (W,), in any order: example_index into
    `contexts`, score of the window's best span (-inf: none), its characters in the context, and null_score =
    start logit + end logit of the [CLS] token. Of equal scores the first window wins.

    With version_2 the answer is "" when (lowest null score over the windows) - (best span score), its ``no_answer``,
    is above 0; without, never. An example without any window, or without any span, gets "".
    """
    example = np.asarray(example_index, np.int64)
    score, null_score = np.asarray(score, np.float64), np.asarray(null_score, np.float64)
    char_start, char_end = np.asarray(char_start, np.int64), np.asarray(char_end, np.int64)
    sizes = [len(array) for array in (example, score, char_start, char_end, null_score)]
    if len(set(sizes)) > 1:
        raise ValueError(
            "example_index, score, char_start, char_end and null_score must have one entry per window, "
            f"found {', '.join(map(str, sizes))}"
        )
    n = len(contexts)
    if sizes[0] and not (0 <= example.min() and example.max() < n):
        raise ValueError(f"example_index must lie in 0..{n - 1}, found {example.min()}..{example.max()}")

    # Sorted by example, then best first; lexsort is stable, so the first window stays first among equals.
    order = np.lexsort((-score, example))
    present, first = np.unique(example[order], return_index=True)
    window = order[first]  # the best of each example that has any
    best_score = np.full(n, -np.inf)
    best_score[present] = score[window]
    has_span = score[window] != -np.inf
    no_answer = np.full(n, np.inf)
    if len(window):
        null = np.minimum.reduceat(null_score[order], first)
        # A missing (NaN) null score keeps the span.
        no_answer[present[has_span]] = np.where(np.isnan(null), -np.inf, null)[has_span] - score[window[has_span]]
    begin, stop = np.zeros((2, n), np.int64)
    begin[present[has_span]], stop[present[has_span]] = char_start[window[has_span]], char_end[window[has_span]]
    span = [context[a:b] for context, a, b in zip(contexts, begin.tolist(), stop.tolist(), strict=True)]
    text = ["" if version_2 and value > 0 else answer for answer, value in zip(span, no_answer.tolist(), strict=True)]
    return PredictedAnswers(text, span, no_answer, best_score)


def normalize_answer(text: str) -> str:
    """Lower case, no ASCII punctuation, no articles (a, an, the), single spaces: as in both SQuAD scripts."""
    if text.isascii():  # bytes are lowered and stripped in one pass over a table, str in one for each
        text = text.encode().translate(_LOWER_CASE, _PUNCTUATION).decode()
    else:
        text = text.lower().translate(_DELETE_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def score_predictions(predictions: Sequence[str], golds: Sequence[Sequence[str]], version_2: bool) -> Scores:
    """Exact match and F1 of each example, each the maximum over its gold answers; equal to the official scripts.

    Raises ValueError when the lengths differ, and under the rules of SQuAD 1.1 when an example has no gold answers
    (there the official script fails, too). `has_answer` says, as evaluate-v2.0.py does, whether the list of gold
    answers is non-empty, also when it holds only answers without tokens.
    """
    if len(predictions) != len(golds):
        raise ValueError(f"{len(predictions)} predictions, but gold answers for {len(golds)} examples")
    if any(isinstance(answers, str) for answers in golds):
        raise ValueError("golds must hold a list of answers for each example, found a bare string")
    has_answer = np.fromiter((len(answers) > 0 for answers in golds), bool, len(golds))
    if not version_2 and not has_answer.all():
        raise ValueError(
            f"example {int(has_answer.argmin())} has no gold answers, which the rules of SQuAD 1.1 do not know; "
            "pass version_2=True"
        )

    exact, overlap = [], []
    for prediction, answers in zip(predictions, golds, strict=True):
        predicted = normalize_answer(prediction)
        if predicted and prediction in answers:  # the common case: no need to look at the gold answers
            exact.append(1.0)
            overlap.append(1.0)
            continue
        targets = [normalize_answer(answer) for answer in set(answers)]
        if version_2:
            targets = [target for target in targets if target] or [""]
        if predicted in targets:
            exact.append(1.0)
            overlap.append(1.0 if predicted or version_2 else 0.0)
        else:
            exact.append(0.0)
            tokens = predicted.split()
            overlap.append(max([_token_f1(tokens, target.split()) for target in targets]))
    return Scores(np.array(exact, np.float64), np.array(overlap, np.float64), has_answer, version_2)


def best_threshold(answered: np.ndarray, unanswered: np.ndarray, no_answer: np.ndarray) -> tuple[float, float]:
    """The highest mean score that a threshold on the no-answer score gives, and that threshold.

    ``answered`` and ``unanswered`` are (N,) scores of each example with its best span and with ""; ``no_answer`` as in
    ``PredictedAnswers``: an example is answered where it is at or below the threshold. What evaluate-v2.0.py calls
    best_exact and best_exact_thresh; among equal scores the lowest threshold. Other than there, examples of one
    no-answer score are answered together, and a threshold that answers none lies below all. Raises ValueError for no
    examples.
    """
    if not len(no_answer):
        raise ValueError("no predictions to choose a threshold by")
    order = np.argsort(no_answer, kind="stable")
    known = no_answer[order]
    totals = unanswered.sum() + np.concatenate([[0.0], np.cumsum((answered - unanswered)[order])])
    # After how many of them a threshold may lie: between different scores, behind -inf, before inf.
    edges = np.concatenate([[-np.inf], known]) < np.concatenate([known, [np.inf]])
    places = np.flatnonzero(edges)
    best = int(places[totals[places].argmax()])
    if best and np.isfinite(known[best - 1]):
        threshold = float(known[best - 1])
    else:
        threshold = float(known[best]) - 1 if best < len(known) and np.isfinite(known[best]) else 0.0
    return float(totals[best]) / len(known), threshold


def threshold_scores(
    answered: Scores, unanswered: Scores, no_answer: np.ndarray, halves: np.ndarray | None
) -> dict[str, float]:
    """Scores in percent at the best threshold on the no-answer score (logits), flat: ``best_exact``,
    ``best_exact_thresh``, ``best_f1``, ``best_f1_thresh``, as evaluate-v2.0.py names them.

    Those have seen the answers that they are scored by. ``held_out_exact`` and ``held_out_f1`` have not: in each of
    two ``halves`` ((N,) bool) the threshold is the other's best. None: no halves, and no such keys. Arguments as for
    ``best_threshold``, as ``score_predictions`` gives them.
    """
    found: dict[str, float] = {}
    for name, column in (("exact", "exact_match"), ("f1", "f1")):
        yes, no = getattr(answered, column), getattr(unanswered, column)
        best, threshold = best_threshold(yes, no, no_answer)
        found |= {f"best_{name}": 100 * best, f"best_{name}_thresh": threshold}
        if halves is not None:
            judged = np.empty(len(yes))
            for half in (halves, ~halves):
                other = best_threshold(yes[~half], no[~half], no_answer[~half])[1]
                judged[half] = np.where(no_answer[half] <= other, yes[half], no[half])
            found[f"held_out_{name}"] = 100 * float(judged.mean())
    return found


def squad_summary(scores: Scores) -> dict[str, float]:
    """Means over examples, flat, in percent: exact_match, f1, and total (a count).

    With the rules of SQuAD 2.0 also HasAns_exact, HasAns_f1, HasAns_total and NoAns_exact, NoAns_f1, NoAns_total; a
    group without examples has no keys, as in the official script. Raises ValueError when there are no examples at all.
    """
    if not len(scores.f1):
        raise ValueError("no predictions to summarise")
    summary: dict[str, float] = dict(
        zip(("exact_match", "f1", "total"), _means(scores, np.ones(len(scores.f1), bool)), strict=True)
    )
    if scores.version_2:
        for name, group in (("HasAns", scores.has_answer), ("NoAns", ~scores.has_answer)):
            if group.any():
                keys = (f"{name}_exact", f"{name}_f1", f"{name}_total")
                summary.update(zip(keys, _means(scores, group), strict=True))
    return summary


def _means(scores: Scores, group: np.ndarray) -> tuple[float, float, int]:
    total = int(group.sum())
    # Summed by Python and not by NumPy, whose pairwise sum differs from the official scripts in the last digit.
    exact, overlap = (sum(values[group].tolist()) for values in (scores.exact_match, scores.f1))
    return 100.0 * exact / total, 100.0 * overlap / total, total


def _token_f1(predicted: list[str], target: list[str]) -> float:
    """F1 of two bags of tokens, in the operations of the official scripts so that every digit agrees."""
    distinct = set(predicted)
    common = distinct.intersection(target)
    if not common:
        return 0.0
    same = len(common)
    if len(distinct) < len(predicted):  # a repeated token counts as often as both sides hold it
        same = sum((Counter(predicted) & Counter(target)).values())
    precision, recall = same / len(predicted), same / len(target)
    return (2 * precision * recall) / (precision + recall)
