"""Why an example is suspected, in words that a person can check with the example before her eyes."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.analysis.clusters import NOISE
from datamap.analysis.error_rules import STOP_WORDS
from datamap.detection.base import Evidence
from datamap.detection.decisions import NO_ANSWER
from datamap.detection.detect_texts import content
from datamap.tasks.qa_metrics import normalize_answer
from datamap.tasks.spans import begins_or_ends_in_word

if TYPE_CHECKING:
    import pandas as pd

Words = Callable[[int], str]
Reason = tuple[np.ndarray, Words]  # rows for which it holds, and its words for one of them
NEAREST = 5
MOST_NEIGHBOURS_DIFFER = 4  # of the five
COMMON = 0.2  # what holds for more of the examples than this tells nothing of one
LOW = 0.1  # the share of examples with the lowest values, of which that is said
ODD = 0.02  # the share of questions that are called oddly worded
STANDS_OUT = 0.05  # the same of a detector that is named because nothing else is known
SHOWN = 60  # characters of an answer
NUMBER_WORDS = ("no", "one", "two", "three", "four", "five")
RULE_WORDS = {
    "rule1_length_anomaly": "the answer is longer than nearly all others",
    "rule2_multi_clause": "the answer holds several clauses",
    "rule3_low_q_similarity": "the answer shares no word with the question",
    "rule5_qtype_mismatch": "the question asks for a time or a quantity, and the answer holds none or several",
    "rule6_multi_occurrences": "the answer stands in the context more than once",
    "rule7_boundary_weirdness": "the answer begins or ends with a comma, a hyphen, 'and' or the like",
    "rule8_pred_better_q_alignment": "the model's answer shares more words with the question",
    "rule9_question_not_starting_with_qword": "the question does not begin like a question",
}


def reasons(evidence: Evidence, scores: pd.DataFrame, rows: np.ndarray | None = None) -> list[str]:
    """For each of the N examples, or of ``rows`` (n,), what speaks against it, joined by ``; ``, the plainest first;
    "" where nothing does.

    scores: (N, D) of the detectors. Where no reason holds, those are named for which the example is among the 5 %
    most suspicious.
    """
    rows = np.arange(len(evidence)) if rows is None else rows
    found: dict[int, list[str]] = {row: [] for row in rows.tolist()}
    asked = np.zeros(len(evidence), dtype=bool)
    asked[rows] = True

    def add(reason: Reason) -> None:
        holds, words = reason
        for row in holds[asked[holds]].tolist():
            found[row].append(words(row))

    for reason in itertools.chain(_all_reasons(evidence, rows), _of_odd_questions(scores)):
        add(reason)
    silent = asked.copy()
    silent[[row for row, each in found.items() if each]] = False
    for reason in _standing_out(scores.drop(columns=list(evidence.opinions), errors="ignore"), silent):
        add(reason)
    return ["; ".join(each) for each in found.values()]


def shown(answer: str) -> str:
    """An answer in quotation marks, shortened, or that there is none."""
    text = " ".join(answer.split())
    return NO_ANSWER if not text else f"'{text if len(text) <= SHOWN else text[: SHOWN - 3] + '...'}'"


def class_numbers(evidence: Evidence, values: Iterable[Any]) -> np.ndarray:
    """(N,) class numbers of predicted labels, given by name or by the whole number that is the name; -1 of none."""
    number_of = {name: number for number, name in enumerate(evidence.class_names)}
    return np.array([-1 if value is None or value != value else number_of.get(str(value), -1) for value in values])


def _all_reasons(evidence: Evidence, rows: np.ndarray) -> Iterator[Reason]:
    """rows: those that are asked about; what is read of the texts of each alone is read of these."""
    if evidence.answers_questions:
        yield from _of_spans(evidence, rows)
    yield from _of_training(evidence)
    yield from _of_answers(evidence, rows) if evidence.answers_questions else _of_labels(evidence)
    yield from _of_duplicates(evidence)
    if evidence.has("embeddings") and not evidence.answers_questions:
        yield from _of_neighbours(evidence, rows)
    if evidence.rules is not None:
        yield from _of_rules(evidence.rules)
    if evidence.clusters is not None:
        yield np.flatnonzero(evidence.clusters["cluster"].to_numpy() == NOISE), _always("it lies in no cluster")
    for name, opinion in evidence.opinions.items():
        yield np.flatnonzero(np.asarray(opinion) > 0.5), _always(f"{name} holds it to be wrong")


def _always(text: str) -> Words:
    return lambda row: text


# --- what a model learned of it ----------------------------------------------------------------------------------


def _of_training(evidence: Evidence) -> Iterator[Reason]:
    metrics = evidence.metrics
    if metrics is None:
        return
    if {"correctness", "num_epochs"} <= set(metrics):
        epochs, share = metrics["num_epochs"].to_numpy(), metrics["correctness"].to_numpy()
        right = np.round(share * epochs, 1)  # of several runs a mean, which need not be whole
        never_right = "never learned" if evidence.trained_on else "not trained on, and never right"
        yield np.flatnonzero(share == 0), lambda row: f"{never_right} in {_counted(epochs[row], 'epoch')}"
        yield (np.flatnonzero((share > 0) & (share < 0.5)),
               lambda row: f"right in {right[row]:g} of {epochs[row]:g} epochs only")
    if "forgetting_events" in metrics:
        forgotten = metrics["forgetting_events"].to_numpy()
        lost = "learned and forgotten" if evidence.trained_on else "right and then wrong"
        yield np.flatnonzero(forgotten >= 2), lambda row: f"{lost} {forgotten[row]:.0f} times"
    if "confidence" in metrics:
        confidence = metrics["confidence"].to_numpy(dtype=float)
        lower, higher = _shares(confidence)
        what = "answer" if evidence.answers_questions else "label"
        never = metrics["never_learned"].to_numpy(dtype=float) == 1 if "never_learned" in metrics else False
        yield (np.flatnonzero((lower < LOW) & ~np.asarray(never)),
               lambda row: f"the model gave its {what} a probability of {confidence[row]:.2f} on average, less than "
                           f"in {np.floor(100 * higher[row]):.0f}% of the examples")


def _of_labels(evidence: Evidence) -> Iterator[Reason]:
    names, gold, table = evidence.class_names, evidence.labels, evidence.out_of_fold
    if table is not None and "predicted_label" in table:
        said = class_numbers(evidence, table["predicted_label"].tolist())
        every = np.arange(len(said))
        p_said = p_gold = None
        if evidence.probabilities is not None:
            p_said, p_gold = evidence.probabilities[every, said], evidence.probabilities[every, gold]

        def words(row: int) -> str:
            text = f"a model trained without it says {names[said[row]]}"
            if p_said is None or p_gold is None or np.isnan(p_said[row]):
                return text
            return f"{text} with probability {p_said[row]:.2f}, {names[gold[row]]} with {p_gold[row]:.2f}"

        yield np.flatnonzero((said >= 0) & (said != gold)), words
        yield from _never_agreed(evidence)
    if evidence.predictions is not None:
        final = class_numbers(evidence, evidence.predictions)
        though = ", though it was trained on this label" if evidence.trained_on else ""
        yield (np.flatnonzero((final >= 0) & (final != gold)),
               lambda row: f"the trained model says {names[final[row]]}{though}")


def _never_agreed(evidence: Evidence) -> Iterator[Reason]:
    table = evidence.out_of_fold
    if table is None or not {"correctness", "num_epochs"} <= set(table):
        return
    epochs = table["num_epochs"].to_numpy()
    what = "its answer" if evidence.answers_questions else "its label"
    yield (np.flatnonzero((table["correctness"].to_numpy() == 0) & (epochs > 1)),
           lambda row: f"a model trained without it gave {what} in none of {epochs[row]:.0f} epochs")


# --- questions ---------------------------------------------------------------------------------------------------


def _of_spans(evidence: Evidence, rows: np.ndarray) -> Iterator[Reason]:
    usable, contexts, answers = evidence.usable, evidence.column("context"), evidence.column("answers")
    yield np.flatnonzero(~usable), _always("the annotated answer does not stand at its answer_start")
    begins, ends = np.zeros(len(usable), dtype=bool), np.zeros(len(usable), dtype=bool)
    for row in rows[usable[rows]].tolist():
        if answers[row]["text"]:
            start = answers[row]["answer_start"][0]
            begins[row], ends[row] = begins_or_ends_in_word(contexts[row], start, start + len(answers[row]["text"][0]))
    yield np.flatnonzero(begins), _always("the span begins inside a word")
    yield np.flatnonzero(ends), _always("the span ends inside a word")
    golds = evidence.golds
    empty = [bool(golds[row]) and STOP_WORDS.issuperset(normalize_answer(golds[row]).split()) for row in rows.tolist()]
    yield rows[np.array(empty, dtype=bool)], _always("the answer has no word of content")


def _of_answers(evidence: Evidence, rows: np.ndarray) -> Iterator[Reason]:
    golds = {row: _compared(evidence.golds[row]) for row in rows.tolist()}
    table, final = evidence.out_of_fold, evidence.predictions
    held_out = None if table is None or "predicted_answer" not in table else table["predicted_answer"].tolist()
    for answers, who in ((held_out, "a model trained without it answers"), (final, "the trained model answers")):
        if answers is not None:
            yield _other_answer(golds, answers, who)
    yield from _never_agreed(evidence)


def _other_answer(golds: Mapping[int, str], answers: Sequence[Any], who: str) -> Reason:
    """golds: as compared, of the rows that are asked about."""
    relations = {row: _relation(gold, answers[row]) for row, gold in golds.items()}
    differing = [row for row, relation in relations.items() if relation]
    return np.array(differing, dtype=np.int64), lambda row: f"{who} {shown(answers[row])}, {relations[row]}"


def _relation(gold: str, answer: Any) -> str:
    """How a predicted answer lies to the gold one (as compared); "" where it is the same, or there is none."""
    if not isinstance(answer, str) or (text := _compared(answer)) == gold:
        return ""
    if not gold or not text:
        return "where none is annotated" if text else "where one is annotated"
    if f" {text} " in f" {gold} ":
        return "a part of the annotated answer"
    if f" {gold} " in f" {text} ":
        return "which holds the annotated answer and more"
    overlap = set(text.split()) & set(gold.split())
    return "which overlaps the annotated answer" if overlap else "which has no word of the annotated answer"


def _compared(answer: str) -> str:
    """Without case, punctuation and articles, unless nothing else is there; "" of no answer."""
    return normalize_answer(answer) or " ".join(answer.casefold().split())


def _of_rules(rules: pd.DataFrame) -> Iterator[Reason]:
    for rule, words in RULE_WORDS.items():
        fired = rules[rule].fillna(False).to_numpy(dtype=bool)
        if fired.mean() <= COMMON:
            yield np.flatnonzero(fired), _always(words)


def _of_odd_questions(scores: pd.DataFrame) -> Iterator[Reason]:
    if "odd_question" in scores:
        odd = scores["odd_question"].rank(pct=True).to_numpy() > 1 - ODD
        yield np.flatnonzero(odd), _always("its words follow each other as in hardly any other question")


# --- its like ----------------------------------------------------------------------------------------------------


def _of_duplicates(evidence: Evidence) -> Iterator[Reason]:
    """The same texts, but for case and blanks, with another label or answer."""
    copies: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for row, key in enumerate(evidence.once(content)):
        copies[key].append(row)
    asks, ids = evidence.answers_questions, evidence.split.ids

    def gold(row: int) -> str:
        return _compared(evidence.golds[row]) if asks else evidence.class_names[evidence.labels[row]]

    other: dict[int, int] = {}
    for rows in copies.values():
        if len(rows) > 1:
            golds = {row: gold(row) for row in rows}
            first = {golds[row]: row for row in reversed(rows)}  # the first row with each gold
            for row in rows if len(first) > 1 else ():
                other[row] = min(place for each, place in first.items() if each != golds[row])

    def words(row: int) -> str:
        said = f"answered {shown(evidence.golds[other[row]])}" if asks else f"labelled {gold(other[row])}"
        return f"the same text is {said} in {ids[other[row]]}"

    yield np.array(list(other), dtype=np.int64), words


def _of_neighbours(evidence: Evidence, rows: np.ndarray) -> Iterator[Reason]:
    near = evidence.neighbours_of(rows)[:, :NEAREST]
    if near.shape[1] < NEAREST:
        return
    names, found = evidence.class_names, evidence.labels[near]
    counts = np.stack([(found == number).sum(axis=1) for number in range(len(names))], axis=1)
    counts[(near < 0).any(axis=1)] = 0
    most = counts.argmax(axis=1)
    often = counts[np.arange(len(counts)), most]
    differs = np.flatnonzero((often >= MOST_NEIGHBOURS_DIFFER) & (most != evidence.labels[rows]))
    place = {rows[each]: each for each in differs.tolist()}

    def words(row: int) -> str:
        at = place[row]
        which = "its five nearest neighbours" if often[at] == NEAREST else (
            f"{NUMBER_WORDS[often[at]]} of its five nearest neighbours")
        return f"{which} are labelled {names[most[at]]}"

    yield rows[differs], words


def _standing_out(scores: pd.DataFrame, silent: np.ndarray) -> Iterator[Reason]:
    if not scores.shape[1] or not silent.any():
        return
    rows = np.flatnonzero(silent)
    share = (1 - scores.rank(pct=True).to_numpy())[rows]
    place = {row: at for at, row in enumerate(rows.tolist())}
    high = np.nan_to_num(share, nan=1) < STANDS_OUT
    names = np.asarray(scores.columns, dtype=object)

    def words(row: int) -> str:
        which = np.flatnonzero(high[place[row]])
        best = which[np.argsort(share[place[row]][which], kind="stable")][:3]
        return f"among the {STANDS_OUT:.0%} most suspicious by {', '.join(names[best])}"

    yield rows[high.any(axis=1)], words


# --- numbers in words --------------------------------------------------------------------------------------------


def _shares(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each value, (N,), the share of the known ones that are lower, and higher; NaN of an unknown one."""
    known = np.sort(values[~np.isnan(values)])
    unknown, count = np.isnan(values), max(len(known), 1)
    lower, higher = np.searchsorted(known, values), len(known) - np.searchsorted(known, values, side="right")
    return np.where(unknown, np.nan, lower / count), np.where(unknown, np.nan, higher / count)


def _counted(number: float, noun: str) -> str:
    return f"{number:.0f} {noun}{'s' * bool(number != 1)}"
