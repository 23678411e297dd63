"""Nine rules that flag likely annotation errors in extractive question answering.

`flag_errors` looks at the text of an example (question, context, first gold answer, and a model's prediction where
there is one). A rule that fires is a reason to look, not a proof; `is_dataset_error` asks for three of them, or for as
much evidence by what each was measured to say (docs/rules.md). With J the Jaccard overlap of content words (0 when
either side has none):

1. More tokens (separated by white space) than `length_threshold` of all the answers.
2. Cut at commas, semicolons, newlines, "and" and "or", the answer has two parts or more with at least 3 content words,
   repeated words counted. Upper-case OR after "the", "to", "in" or "from" is the operating room.
3. J(answer, question) < 0.05: so every answer without content words, and "81 mg" asked for with other words.
4. The prediction is a substring of the answer, be it in mid-word, and rule 8 holds.
5. A time question whose answer has not exactly one date or time (`count_time_expressions`): "when"; "what/which date,
   day, year, month, time, century ..."; "what is the ... date"; "how long ago". "How long" asks for a duration or a
   length, "how often" for a frequency: neither. Or a quantity question whose answer has no number or more than 3
   (`count_numbers`): "how many, much, old"; "what (is the) dose, amount, number of, age ...".
6. The answer stands at two places of the context or more, which may overlap, and never begins or ends inside a word or
   a number ("5" is not in "2.5").
7. Starts or ends with a comma, semicolon, slash, hyphen or dash, colon, "and" or "or", white space ignored.
8. J(prediction, question) > J(answer, question) + 0.1, compared exactly.
9. Behind opening quotation marks and brackets the question does not begin with a question word or auxiliary; "In what
   year" does not.

Decisions that hold for every rule:

- Comparisons ignore case (casefold), kinds and runs of white space, and the Unicode form of accents (NFC).
- A content word is a word (a run of letters, digits and underscores) made of letters only that is not in
  `STOP_WORDS`; "'s", "n't" and the like are cut off first. Words are not stemmed. The overlap J is taken over the
  sets of distinct content words.
- An empty answer marks an unanswerable question (SQuAD 2.0). There is no span that could be too long or badly cut, so
  rules 1 to 7 do not fire. Rule 8 can: the model found something close to the question where the annotator found
  nothing.
- An empty prediction is a prediction (of "no answer"); None is none, and leaves rules 4 and 8 missing.
- The word lists are English; texts in other languages pass through without an error but the flags mean little.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from datamap.analysis.time_expressions import count_numbers, count_time_expressions
from datamap.tasks.questions import (
    STARTS_LIKE_A_QUESTION,
    Column,
    common_index,
    fold,
    optional_texts,
    question_type_of,
    required_texts,
)

if TYPE_CHECKING:
    import pandas as pd

RULES: tuple[str, ...] = (
    "rule1_length_anomaly", "rule2_multi_clause", "rule3_low_q_similarity", "rule4_pred_inside_gold_better",
    "rule5_qtype_mismatch", "rule6_multi_occurrences", "rule7_boundary_weirdness", "rule8_pred_better_q_alignment",
    "rule9_question_not_starting_with_qword",
)
RULES_NEEDING_PREDICTIONS: tuple[str, ...] = ("rule4_pred_inside_gold_better", "rule8_pred_better_q_alignment")
ERROR_SCORE = 3  # of this and more the score makes an example a dataset error: three rules, or three bits
# What a rule that fires adds to the score. ``measured``: its weight of evidence (Good 1950), log2 of how many times
# more often it fires on a wrong example than on a right one, so that each bit doubles the odds that the example is
# wrong (rules taken as independent: naive Bayes). Measured on planted errors by benchmarks/error_rules.py, which says
# in docs/rules.md how; 0 where a rule says nothing. Rule 4 has what it adds to rule 8, without which it never fires.
RULE_WEIGHTS: dict[str, Mapping[str, float]] = {
    "equal": dict.fromkeys(RULES, 1),
    "measured": dict(zip(RULES, (2.82, 1.44, 0, 0.37, 3.87, 0.13, 0.60, 0.18, 0.83), strict=True)),
}
MOST_FIRED = 0.5  # on this share and more a rule says nothing: what it flags is wrong at most twice as often as any

# Function words only: articles, pronouns, auxiliaries, prepositions, conjunctions, question words, negations, and what
# is left of won't, can't and shan't without their n't.
STOP_WORDS = frozenset(
    """
    a an the this that these those some any each every either neither both all few more most other another such same
    own only very too so just than then there here no nor not none
    i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her hers
    herself it its itself they them their theirs themselves someone anyone everyone something anything nothing
    who whom whose which what when where why how whether
    am is are was were be been being do does did doing done have has had having can could will would shall should may
    might must ought
    and or but if because as until while although though since unless of at by for with about against between into
    through during before after above below to from up down in out on off over under again further once upon within
    without toward towards among per via
    also yet wo ca sha
    """.split()
)

# --- words ---------------------------------------------------------------------------------------------------------

_WORD = re.compile(r"\w+")
_CONTRACTION = re.compile(r"(?:n['’]t|['’](?:s|re|ve|ll|d|m))\b")


def _content_words(folded: str) -> list[str]:
    if "'" in folded or "’" in folded:
        folded = _CONTRACTION.sub("", folded)
    return [word for word in _WORD.findall(folded) if word.isalpha() and word not in STOP_WORDS]


# --- questions and their answers (rule 5) ------------------------------------------------------------------------

_WHAT_IS = r"\b(?:what|which)(?:['’]s|\s+(?:is|are|was|were|will\s+be|would\s+be))"
_WHICH = r"\b(?:what|which)(?:\s+(?:exact|precise|specific|approximate|total|calendar|current|daily))?\s+"
# Words between "what is" and its noun ("the patient's last discharge"), none of which begins another phrase.
_MODIFIERS = (
    r"(?:\s+(?!(?:of|for|in|on|at|by|from|to|with|after|and|or|that|this|which|who|when|each|every|per|an?)\b)"
    r"[\w'’-]+){0,4}?\s+"
)
# day, year and time also close adverbials ("what was the dose last year"), so little may stand before them.
_ITS = (
    r"\s+(?:the|his|her|its|their|your)\s+"
    r"(?:(?:exact|precise|specific|first|last|final|next|earliest|latest|start|starting|end|ending|birth)\s+){0,2}"
)
_TIME_QUESTION = re.compile(
    rf"{_WHICH}(?:dates?|day|year|month|week|weekday|time|hour|century|decade)\b"
    r"(?!-|\s+(?:periods?|frames?|spans?|zones?|scales?|signatures?|series|courses?|limits?|complexity|range))"
    rf"|{_WHAT_IS}{_MODIFIERS}dates?\b"
    rf"|{_WHAT_IS}{_ITS}(?:(?:day|year|month|century|decade)\b(?!-)|time(?=\s+(?:of|when|that)\b|\W*$))"
    r"|\bhow\s+(?:long\s+ago|recently)\b"
)
_DOSE = r"dos(?:es?|ages?)"
_QUANTITY = r"amounts?|quantit(?:y|ies)|percent(?:age)?|proportion"
_QUANTITY_QUESTION = re.compile(
    r"\bhow\s+old\b"
    rf"|{_WHICH}(?:(?:[\w'’-]+\s+)?{_DOSE}|{_QUANTITY}|numbers?|age)\b"
    rf"|{_WHAT_IS}{_MODIFIERS}(?:{_DOSE}|{_QUANTITY}|numbers?(?=\s+of\b))\b"
    rf"|{_WHAT_IS}(?:\s+[\w'’-]+){{0,3}}?(?:['’]s|\s+(?:the|his|her|their|your|its|current))\s+age\b"
)


# --- the rules ---------------------------------------------------------------------------------------------------

# Upper-case OR after one of these is the operating room.
_CONJUNCTION = r"\b(?:and|or(?<!\bthe (?-i:OR))(?<!\bto (?-i:OR))(?<!\bin (?-i:OR))(?<!\bfrom (?-i:OR)))\b"
_CLAUSE_BREAK = re.compile(rf"[,;\n\r]|{_CONJUNCTION}", re.IGNORECASE)
_EDGE = r"[,;/:\-‐-―]"  # the range: Unicode hyphens and dashes
_BAD_BOUNDARY = re.compile(rf"\A\s*(?:{_EDGE}|(?:and|or)\b)|(?:{_EDGE}|{_CONJUNCTION})\s*\Z", re.IGNORECASE)
_CLAUSE_WORDS = 3
_MIN_OVERLAP = (1, 20)  # rule 3: 0.05
_MIN_GAIN = (1, 10)  # rules 4 and 8: 0.1


def _has_clauses(answer: str) -> bool:
    parts = _CLAUSE_BREAK.split(answer)
    return len(parts) > 1 and sum(len(_content_words(fold(part))) >= _CLAUSE_WORDS for part in parts) > 1


def _qtype_mismatch(folded_question: str, answer: str) -> bool:
    kind = question_type_of(folded_question)
    if (kind == "when" or _TIME_QUESTION.search(folded_question)) and count_time_expressions(answer) != 1:
        return True
    asks_quantity = kind == "how many/how much" or _QUANTITY_QUESTION.search(folded_question)
    return bool(asks_quantity) and not 1 <= count_numbers(answer) <= 3


def _cuts_a_word(text: str, position: int) -> bool:
    """Whether the boundary before `position` lies inside a word or a number such as 2.5 or 1,200."""
    if not 0 < position < len(text):
        return False
    before, after = text[position - 1], text[position]
    if (before.isalnum() or before == "_") and (after.isalnum() or after == "_"):
        return True
    if after.isdigit() and before in ".,":
        return position > 1 and text[position - 2].isdigit()
    return before.isdigit() and after in ".," and text[position + 1 : position + 2].isdigit()


def _occurs_again(answer: str, context: str) -> bool:
    """Whether `answer` stands in `context` at two or more places (which may overlap) as whole words; both folded."""
    occurrences, start = 0, context.find(answer)
    while start >= 0 and occurrences < 2:
        occurrences += not _cuts_a_word(context, start) and not _cuts_a_word(context, start + len(answer))
        start = context.find(answer, start + 1)
    return occurrences == 2


def _overlaps(left: list[frozenset[str]], right: list[frozenset[str]]) -> np.ndarray:
    """(2, n) int64, Jaccard overlap of each pair as numerator and denominator; 0 / 1 when either side is empty."""
    pairs = [(n, len(a) + len(b) - n) if (n := len(a & b)) else (0, 1) for a, b in zip(left, right, strict=True)]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2).T


def length_threshold(lengths: np.ndarray) -> float:
    """Above how many tokens rule 1 calls an answer too long: max(P95, median + 2 MAD) of the answers not empty.

    P95 is linearly interpolated, MAD the plain median absolute deviation. inf when no answer is left, so that nothing
    exceeds it.
    """
    lengths = lengths[lengths > 0]
    if not len(lengths):
        return math.inf
    median = np.median(lengths)
    return float(max(np.percentile(lengths, 95), median + 2 * np.median(np.abs(lengths - median))))


def _fired(questions: list[str], contexts: list[str], answers: list[str], predictions: list[str]) -> list[np.ndarray]:
    """The flags of RULES, each bool (n,); a prediction that is missing is "", and its rules 4 and 8 do not count."""

    def mask(flags: Iterable[bool]) -> np.ndarray:
        return np.fromiter(flags, bool, len(answers))

    # Several rules need the compared form of the short texts; contexts are folded one at a time, to spare memory, and
    # those that follow each other with one context share it.
    fold_context = functools.lru_cache(maxsize=8)(fold)
    folded = [[fold(text) for text in texts] for texts in (questions, answers, predictions)]
    folded_questions, folded_answers, folded_predictions = folded
    question_words, answer_words, prediction_words = (
        [frozenset(_content_words(text)) for text in texts] for texts in folded
    )
    answered = mask(bool(text) for text in folded_answers)
    tokens = np.fromiter((len(answer.split()) for answer in answers), np.int64, len(answers))

    # Fractions are compared crosswise in integers: 0.8 is not more than 0.7 + 0.1, whatever floats say.
    gold_num, gold_den = _overlaps(answer_words, question_words)
    pred_num, pred_den = _overlaps(prediction_words, question_words)
    low_overlap = gold_num * _MIN_OVERLAP[1] < gold_den * _MIN_OVERLAP[0]
    gain = pred_num * gold_den - gold_num * pred_den  # (J(prediction) - J(answer)) times both denominators
    better = gain * _MIN_GAIN[1] > pred_den * gold_den * _MIN_GAIN[0]
    inside = mask(pred in gold for pred, gold in zip(folded_predictions, folded_answers, strict=True))

    pairs = zip(folded_questions, answers, strict=True)
    places = zip(folded_answers, contexts, strict=True)
    return [
        tokens > length_threshold(tokens),
        mask(_has_clauses(answer) for answer in answers),
        low_overlap & answered,
        better & inside,
        mask(_qtype_mismatch(question, answer) for question, answer in pairs) & answered,
        mask(bool(answer) and _occurs_again(answer, fold_context(context)) for answer, context in places),
        mask(_BAD_BOUNDARY.search(answer) is not None for answer in answers),
        better,
        mask(STARTS_LIKE_A_QUESTION.match(question) is None for question in folded_questions),
    ]


def flag_errors(
    questions: Column, contexts: Column, answers: Column, predictions: Column | None = None, *,
    rule_weights: str = "equal",
) -> pd.DataFrame:
    """The nine error rules for n examples.

    `answers` holds each example's first gold text, "" where it is unanswerable; `predictions` the predicted texts,
    None where an example has none. Lists, Series and Arrow columns may be mixed. Missing questions, contexts and
    answers count as empty.

    Returns n rows, indexed like the Series given (else 0 .. n-1):

    - `RULES`, nullable boolean; missing only in rules 4 and 8 and only where there is no prediction
    - `dataset_error_score`, higher = more suspicious: how many rules fired, Int64; with the `rule_weights` "measured"
      the sum of their `RULE_WEIGHTS`, Float64, in bits
    - `num_rules`, Int64: rules that could be applied, 9 with a prediction and 7 without
    - `is_dataset_error`, bool: score of at least `ERROR_SCORE`

    Raises ValueError for columns of different lengths or Series with different indexes, TypeError for other values
    than strings.
    """
    import pandas as pd

    given: dict[str, Column] = {"questions": questions, "contexts": contexts, "answers": answers}
    if predictions is not None:
        given["predictions"] = predictions
    index = common_index(given)
    texts = [required_texts(given[name], name) for name in ("questions", "contexts", "answers")]
    n = len(texts[0])
    predicted = [None] * n if predictions is None else optional_texts(predictions, "predictions")
    lengths = [*map(len, texts), len(predicted)]
    if len(set(lengths)) > 1:
        raise ValueError("questions, contexts, answers and predictions have {}, {}, {} and {} rows".format(*lengths))
    flags = _fired(texts[0], texts[1], texts[2], [text or "" for text in predicted])
    unknown = np.fromiter((text is None for text in predicted), bool, n)

    frame = pd.DataFrame(index=pd.RangeIndex(n) if index is None else index)
    for rule, fired in zip(RULES, flags, strict=True):
        needs_it = rule in RULES_NEEDING_PREDICTIONS
        frame[rule] = pd.arrays.BooleanArray(fired, unknown if needs_it else np.zeros(n, bool))
    score = rule_score(frame, RULE_WEIGHTS[rule_weights])
    frame["dataset_error_score"] = pd.array(score, dtype="Int64" if rule_weights == "equal" else "Float64")
    frame["num_rules"] = pd.array(len(RULES) - len(RULES_NEEDING_PREDICTIONS) * unknown, dtype="Int64")
    frame["is_dataset_error"] = score >= ERROR_SCORE
    return frame


def rule_score(flags: pd.DataFrame, weights: Mapping[str, float]) -> np.ndarray:
    """(n,) the weights of the rules that fired, added, in hundredths so that equal sums are equal; a flag that is
    missing adds nothing. flags: has the columns `RULES`."""
    fired = flags[list(RULES)].to_numpy(dtype=float, na_value=0.0)
    return np.round(fired @ np.array([weights[rule] for rule in RULES], dtype=float), 2)


def silent_rules(flags: pd.DataFrame) -> str:
    """Which rules say nothing of their own on these examples, and why, in one line.

    Such a rule could not be applied, fires on none, fires on `MOST_FIRED` of the examples or more, or by its
    definition only where another rule does (4, where 8 does; so there is always one). flags: has the columns `RULES`.
    """
    reasons: dict[str, list[str]] = {}
    for number, rule in enumerate(RULES, start=1):
        applied, fired = int(flags[rule].notna().sum()), int(flags[rule].sum())
        if not applied:
            reason = "not applied (they need the predictions of a model)"
        elif not fired:
            reason = "fires on none"
        elif fired >= MOST_FIRED * applied:
            reason = f"fires on {fired / applied:.0%}"
        elif rule == RULES[3]:
            reason = "fires only where rule 8 does"
        else:
            continue
        reasons.setdefault(reason, []).append(str(number))
    told = [f"rule {numbers[0]} {reason}" if len(numbers) == 1 else
            f"rules {', '.join(numbers[:-1])} and {numbers[-1]} {reason.replace('fires', 'fire')}"
            for reason, numbers in reasons.items()]
    return f"error rules that say nothing of their own here: {'; '.join(told)}"


def rule_counts(table: pd.DataFrame, groups: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """How often each rule fires, of all examples and of each group: ``by`` (``all``, then the names of ``groups``),
    ``group`` (the largest first), ``rule``, ``flagged``, ``n`` (examples that the rule could be applied to), and
    ``share``, 0..1, missing where that is none.

    table: has the columns of ``flag_errors``; groups: of each grouping, which group each row is in.
    """
    import pandas as pd

    names = [*RULES, "is_dataset_error"]
    fired = table[names].astype("boolean").reset_index(drop=True)
    rows = []
    for by, values in {"all": ["all"] * len(table), **groups}.items():
        of_group = pd.Series(list(values))
        for group in of_group.value_counts().index:
            inside = fired[of_group == group]
            for rule in names:
                n, flagged = int(inside[rule].notna().sum()), int(inside[rule].sum())
                rows.append({"by": by, "group": group, "rule": rule, "flagged": flagged, "n": n,
                             "share": flagged / n if n else None})
    return pd.DataFrame(rows)
