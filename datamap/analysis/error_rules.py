"""Nine rules that flag likely annotation errors in extractive question answering, and the question types.

`flag_errors` looks at the text of an example (question, context, first gold answer, and a model's prediction where
there is one). A rule that fires is a reason to look, not a proof; `is_dataset_error` asks for three of them.

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

import math
import re
from collections.abc import Iterator

import numpy as np
import pandas as pd

from datamap.tasks.questions import (
    STARTS_LIKE_A_QUESTION,
    Column,
    common_index,
    fold,
    optional_texts,
    question_type_of,
    required_texts,
)

RULES: tuple[str, ...] = (
    "rule1_length_anomaly",
    "rule2_multi_clause",
    "rule3_low_q_similarity",
    "rule4_pred_inside_gold_better",
    "rule5_qtype_mismatch",
    "rule6_multi_occurrences",
    "rule7_boundary_weirdness",
    "rule8_pred_better_q_alignment",
    "rule9_question_not_starting_with_qword",
)
RULES_NEEDING_PREDICTIONS: tuple[str, ...] = ("rule4_pred_inside_gold_better", "rule8_pred_better_q_alignment")
ERROR_SCORE = 3  # so many rules together make an example a dataset error

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


# --- numbers, dates and times (rule 5) ---------------------------------------------------------------------------

_CARDINAL = (
    r"(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen"
    r"|seventeen|eighteen|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|thousand|million"
    r"|billion|trillion|dozen)"
)
# Bounded, because an endless row of number words would be read again from each of its words.
_NUMBER_WORDS = rf"{_CARDINAL}(?:(?:[\s-]+|(?<=hundred)\s+and\s+|(?<=thousand)\s+and\s+){_CARDINAL}){{0,8}}"
_MAGNITUDE = r"(?:\s+(?:hundred|thousand|million|billion|trillion|dozen)s?)*"
_PARTS = r"(?:half|halves|thirds?|quarters?|fourths?|fifths?|sixths?|eighths?|tenths?)"
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)*|\.\d+)"

# One number each: 81 mg, 81mg, 3.5, .5, 1,200, 120/80, 1 1/2, ½, 5 million, twenty-five, one hundred and two, two and
# a half, two thirds, a couple, twice. Two: 5-10. None: B12, COVID-19, 2nd.
_NUMBER = re.compile(
    rf"(?<![\w.])(?<![^\W\d]-)"
    rf"(?:{_DIGITS}(?!\d|(?:st|nd|rd|th)\b)(?:\s+\d+/\d+|(?:\s?/\s?{_DIGITS})+|\s?[¼-¾⅐-⅞])?{_MAGNITUDE}"
    rf"(?:\s+and\s+(?:a\s+half|a\s+quarter))?"
    rf"|[¼-¾⅐-⅞]"
    rf"|(?:{_NUMBER_WORDS}(?:[\s-]+{_PARTS}|\s+and\s+(?:a\s+half|one[\s-]half|a\s+quarter))?s?"
    rf"|half|once|twice|thrice|none|single|couple|pair)\b)",
    re.IGNORECASE,
)

# A month alone is a date if it can hardly be anything else: "may" and "march" are verbs, "Dec" can be a decrease.
_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)(?![a-z])\.?"
)
_MONTH_ALONE = (
    r"(?:(?:january|february|april|june|july|september|october|november|december)"
    r"|(?-i:March|MARCH|August|AUGUST|(?:Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\b\.?)"
    r"|(?-i:(?<=[a-z,][\s-])May|\AMay(?=\W*\Z)))"
)
_DAY = r"(?:0?[1-9]|[12]\d|3[01])(?!\d)(?:st|nd|rd|th)?"
_YEAR = r"(?:1\d|20)\d\d(?!\d)"
_MONTH_YEAR = rf"(?:{_YEAR}|['’]\d\d(?!\d))"
_CALENDAR_DATE = (
    r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?Z?)?"
    r"|\d{1,2}[-/.]\d{1,2}[-/.](?:\d{4}|\d{2})(?!\d)"
    rf"|(?:0?[1-9]|1[0-2])/{_YEAR}"
    rf"|{_MONTH}[\s-]*{_DAY}(?!\w)(?:\s?[-–]\s?{_DAY}(?!\w))?(?:(?:,\s*|\s+(?:of\s+)?|-){_MONTH_YEAR})?"
    rf"|{_DAY}(?:\s?[-–]\s?{_DAY})?(?:\s+day)?(?:\s+of)?[\s.-]*{_MONTH},?[\s-]*(?:of\s+)?{_MONTH_YEAR}"
    rf"|{_DAY}(?:\s+day)?(?:\s+of)?[\s.-]*(?!may\b){_MONTH}|{_DAY}(?:\s+of)?\s+(?-i:May|MAY)"
    rf"|{_MONTH},?[\s/-]*(?:of\s+)?{_MONTH_YEAR}"
)
# What makes a bare "1200" a measure and no year, a bare "1/2" a fraction and no day.
_NO_MEASURE = (
    r"(?!\s?(?:[%°]|(?:mg|mcg|µg|g|kg|ml|cc|l|dl|meq|mmol|iu|units?|cal\w*|kcal|percent|tab\w*|pills?|caps?\w*|people|men"
    r"|women|children|patients?|students?|soldiers|troops|times|km|miles?|m|feet|ft|dollars|beats|strength)\b))"
)
_AMOUNT_OF = (
    rf"(?:\d+(?:[.,]\d+)*|{_NUMBER_WORDS}|an?(?:\s+few|\s+couple(?:\s+of)?|\s+half)?|several|few|couple(?:\s+of)?|many"
    r"|some)"
)
_UNIT = r"(?:second|minute|min|hour|hr|day|night|weekend|week|wk|month|mo|year|yr|decade|century|centurie)s?"
_AMOUNT_OF_TIME = rf"{_AMOUNT_OF}(?:\s*(?:-|–|to|or)\s*{_AMOUNT_OF})?[\s-]*{_UNIT}"
_WEEKDAY = r"(?:mon|tues|wednes|thurs|fri|satur|sun)days?"
_SEASON = r"(?:spring|summer|autumn|fall|winter)"
_PART_OF_DAY = r"(?:morning|afternoon|evening|night|midnight|noon|midday|bedtime|dawn|dusk)"

# The named groups are the kinds of expression; two neighbours of different kinds can be one ("March 14 at 8:30 am").
_TIME_EXPRESSION = re.compile(
    rf"(?<![\w$£€#])(?<!\d[.,])(?:"
    # two weeks ago, in 3 days, 24 hours after, last night, postoperative day 2, POD#2, day of life 3, at age 45
    rf"(?P<relative>{_AMOUNT_OF_TIME}\s+(?:ago|earlier|later|before|after|prior|previously|back|post\w*|from\s+now|hence)"
    rf"|(?:in|within|after|at)\s+(?:about\s+|approximately\s+|the\s+(?:last|next|first|past)\s+)?{_AMOUNT_OF_TIME}"
    rf"|(?:last|next|past|this|previous|following|coming|same)\s+(?:{_AMOUNT_OF}\s+)?"
    rf"(?:(?!second){_UNIT}|{_WEEKDAY}|(?!fall){_SEASON}|{_PART_OF_DAY}|{_MONTH_ALONE}|(?-i:May))"
    rf"|the\s+(?:day|night|morning|evening|week|month|year)\s+(?:of|before|after|prior|following)"
    rf"|(?:day|week|month|year)(?:\s+of\s+life)?\s*(?:\#|number\s)?\s*(?:\d{{1,3}}(?!\d)|{_NUMBER_WORDS})"
    rf"|(?:pod|hd|dol)\s*\#?\s*\d+"
    rf"|(?:at|by|from|since)\s+(?:the\s+)?age\s+(?:of\s+)?(?:\d+|{_NUMBER_WORDS}))"
    # 8:30 am, 8 a.m., 14:30, 1430 hours, nine o'clock
    rf"|(?P<clock>(?:[01]?\d|2[0-3]):[0-5]\d(?::[0-5]\d)?(?:\s?[ap]\.?m\b\.?)?|(?:1[0-2]|0?[1-9])\s?[ap]\.?m\b\.?"
    rf"|(?:[01]\d|2[0-3])[0-5]\d\s?(?:hours|hrs|h)|(?:\d{{1,2}}|{_CARDINAL})\s+o['’]clock)"
    # 2018-03-14, 03/14/2018, 3/14, March 14, 14 Mar 2018, Mar 2018, yesterday, Christmas
    rf"|(?P<date>{_CALENDAR_DATE}|(?:0?[1-9]|1[0-2])/(?:0?[1-9]|[12]\d|3[01])(?![/\d]){_NO_MEASURE}"
    rf"|today|yesterday|tomorrow|tonight|christmas(?:\s+(?:day|eve))?|new\s+year['’]s(?:\s+(?:day|eve))?"
    rf"|thanksgiving|easter)"
    # 1945, mid-1960s, the '60s, 400 BC, 19th century
    rf"|(?P<year>\d{{1,3}}(?:,?\d{{3}})*\s?(?:BCE?|CE|AD|BP|B\.C\.(?:E\.)?|A\.D\.)|(?:AD|A\.D\.)\s?\d{{1,4}}"
    rf"|['’]?\d0['’]?s|{_YEAR}(?:['’]?s)?(?![,.]\d){_NO_MEASURE}"
    rf"|(?:[a-z]+-)?(?:\d+|[a-z]+)(?:th|st|nd|rd)[\s-](?:century|centuries|millennium))"
    rf"|(?P<weekday>{_WEEKDAY})"
    rf"|(?P<part>{_PART_OF_DAY}s?)"
    rf"|(?P<season>summer|autumn|winter|in\s+the\s+spring|{_SEASON}(?=,?\s+(?:of\s+)?{_YEAR}))"
    rf"|(?P<month>{_MONTH_ALONE})"
    rf")(?!\w)",
    re.IGNORECASE,
)
_GLUE = re.compile(r"[\s,(]*(?:(?:at|on|of|in|the|around|about|approximately)\s+)*", re.IGNORECASE)
_CALENDAR = re.compile(rf"(?<!\w)(?:{_CALENDAR_DATE})(?!\w)", re.IGNORECASE)


def count_time_expressions(text: str) -> int:
    """How many dates and times stand in `text`; a moment that is told by several parts counts once.

    "Monday, March 14, 2018 at 8:30 am" is one; "1990-1995" and "May 3 and May 5" are two. Counted are calendar
    dates in the forms of notes and of prose, years, decades and centuries, weekdays, times and parts of the day,
    relative times ("two weeks ago", "postoperative day 2") and ages ("at age 45"). Not counted are durations ("for
    two weeks"), frequencies ("twice daily") and events ("on admission").
    """
    count, kinds, end = 0, set[str | None](), 0
    for found in _TIME_EXPRESSION.finditer(text):
        kind = found.lastgroup
        if kinds and kind not in kinds and _GLUE.fullmatch(text, end, found.start()):
            kinds.add(kind)
        else:
            count, kinds = count + 1, {kind}
        end = found.end()
    return count


def count_numbers(text: str) -> int:
    """How many numbers stand in `text`, in digits or words: "81 mg", "1,200" and "twenty-five" hold one each.

    A calendar date is no number (a year alone is), nor are ordinals and names such as B12 or COVID-19.
    """
    return sum(1 for _ in _NUMBER.finditer(_CALENDAR.sub(" | ", text)))


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
    while start >= 0:
        if not _cuts_a_word(context, start) and not _cuts_a_word(context, start + len(answer)):
            occurrences += 1
            if occurrences == 2:
                return True
        start = context.find(answer, start + 1)
    return False


def _overlaps(left: list[frozenset[str]], right: list[frozenset[str]]) -> tuple[np.ndarray, np.ndarray]:
    """Jaccard overlap of each pair as numerator and denominator, int64 (n,); 0 / 1 when either side is empty."""
    shared = np.fromiter((len(a & b) for a, b in zip(left, right, strict=True)), np.int64, len(left))
    sizes = np.fromiter((len(a) + len(b) for a, b in zip(left, right, strict=True)), np.int64, len(left))
    return shared, np.where(shared > 0, sizes - shared, 1)


def _lengths(answers: list[str]) -> np.ndarray:
    return np.fromiter((len(answer.split()) for answer in answers), np.int64, len(answers))


def _threshold(lengths: np.ndarray) -> float:
    lengths = lengths[lengths > 0]
    if not len(lengths):
        return math.inf
    median = np.median(lengths)
    return float(max(np.percentile(lengths, 95), median + 2 * np.median(np.abs(lengths - median))))


def length_threshold(answers: Column) -> float:
    """Tokens (separated by white space) above which rule 1 calls an answer too long: max(P95, median + 2 MAD).

    Taken over the answers that are not empty; P95 is linearly interpolated, MAD the plain median absolute deviation.
    inf when no answer is left, so that nothing exceeds it.
    """
    return _threshold(_lengths(required_texts(answers, "answers")))


def flag_errors(
    questions: Column,
    contexts: Column,
    answers: Column,
    predictions: Column | None = None,
    *,
    length_threshold: float | None = None,
) -> pd.DataFrame:
    """The nine error rules for n examples.

    `answers` holds each example's first gold text, "" where it is unanswerable; `predictions` the predicted texts,
    None where an example has none. Lists, Series and Arrow columns may be mixed. Missing questions, contexts and
    answers count as empty. Rule 1 compares with `length_threshold`, by default that of these answers: pass the whole
    split's (`length_threshold(answers)`) to flag a part of it.

    Returns n rows, indexed like the Series given (else 0 .. n-1):

    - `RULES`, nullable boolean; missing only in rules 4 and 8 and only where there is no prediction
    - `dataset_error_score`, Int64: how many rules fired, higher = more suspicious
    - `num_rules`, Int64: of how many, 9 with a prediction and 7 without
    - `is_dataset_error`, bool: score of at least 3

    The rules, with J the Jaccard overlap of content words (0 when either side has none):

    1. More tokens (separated by white space) than the threshold.
    2. Cut at commas, semicolons, newlines, "and" and "or", the answer has two parts or more with at least 3 content
       words, repeated words counted. Upper-case OR after "the", "to", "in" or "from" is the operating room.
    3. J(answer, question) < 0.05: so every answer without content words, and "81 mg" asked for with other words.
    4. The prediction is a substring of the answer, be it in mid-word, and rule 8 holds.
    5. A time question whose answer has not exactly one date or time (`count_time_expressions`): "when"; "what/which
       date, day, year, month, time, century ..."; "what is the ... date"; "how long ago". "How long" asks for a
       duration or a length, "how often" for a frequency: neither. Or a quantity question whose answer has no number
       or more than 3 (`count_numbers`): "how many, much, old"; "what (is the) dose, amount, number of, age ...".
    6. The answer stands at two places of the context or more, which may overlap, and never begins or ends inside a
       word or a number ("5" is not in "2.5").
    7. Starts or ends with a comma, semicolon, slash, hyphen or dash, colon, "and" or "or", white space ignored.
    8. J(prediction, question) > J(answer, question) + 0.1, compared exactly.
    9. Behind opening quotation marks and brackets the question does not begin with a question word or auxiliary; "In
       what year" does not.

    Raises ValueError for columns of different lengths or Series with different indexes, TypeError for other values
    than strings.
    """
    given: dict[str, Column] = {"questions": questions, "contexts": contexts, "answers": answers}
    if predictions is not None:
        given["predictions"] = predictions
    index = common_index(given)
    question_texts = required_texts(questions, "questions")
    context_texts = required_texts(contexts, "contexts")
    answer_texts = required_texts(answers, "answers")
    n = len(question_texts)
    prediction_texts = [None] * n if predictions is None else optional_texts(predictions, "predictions")
    lengths = (n, len(context_texts), len(answer_texts), len(prediction_texts))
    if len(set(lengths)) > 1:
        raise ValueError("questions, contexts, answers and predictions have {}, {}, {} and {} rows".format(*lengths))

    # Several rules need the compared form of the short texts; contexts are folded one at a time, to spare memory.
    folded_questions = [fold(text) for text in question_texts]
    folded_answers = [fold(text) for text in answer_texts]
    folded_predictions = [fold(text or "") for text in prediction_texts]
    question_words = [frozenset(_content_words(text)) for text in folded_questions]
    answer_words = [frozenset(_content_words(text)) for text in folded_answers]
    prediction_words = [frozenset(_content_words(text)) for text in folded_predictions]
    answered = np.fromiter((bool(text) for text in folded_answers), bool, n)
    predicted = np.fromiter((text is not None for text in prediction_texts), bool, n)

    def mask(flags: Iterator[bool]) -> np.ndarray:
        return np.fromiter(flags, bool, n)

    tokens = _lengths(answer_texts)
    threshold = _threshold(tokens) if length_threshold is None else length_threshold

    # Fractions are compared crosswise in integers: 0.8 is not more than 0.7 + 0.1, whatever floats say.
    gold_num, gold_den = _overlaps(answer_words, question_words)
    pred_num, pred_den = _overlaps(prediction_words, question_words)
    low_overlap = gold_num * _MIN_OVERLAP[1] < gold_den * _MIN_OVERLAP[0]
    gain = pred_num * gold_den - gold_num * pred_den  # (J(prediction) - J(answer)) times both denominators
    better = gain * _MIN_GAIN[1] > pred_den * gold_den * _MIN_GAIN[0]
    inside = mask(pred in gold for pred, gold in zip(folded_predictions, folded_answers, strict=True))

    pairs = zip(folded_questions, answer_texts, strict=True)
    places = zip(folded_answers, context_texts, strict=True)
    flags = (
        tokens > threshold,
        mask(_has_clauses(answer) for answer in answer_texts),
        low_overlap & answered,
        better & inside,
        mask(_qtype_mismatch(question, answer) for question, answer in pairs) & answered,
        mask(bool(answer) and _occurs_again(answer, fold(context)) for answer, context in places),
        mask(_BAD_BOUNDARY.search(answer) is not None for answer in answer_texts),
        better,
        mask(STARTS_LIKE_A_QUESTION.match(question) is None for question in folded_questions),
    )

    frame = pd.DataFrame(index=pd.RangeIndex(n) if index is None else index)
    score = np.zeros(n, np.int64)
    for rule, fired in zip(RULES, flags, strict=True):
        missing = ~predicted if rule in RULES_NEEDING_PREDICTIONS else np.zeros(n, bool)
        frame[rule] = pd.arrays.BooleanArray(fired, missing)
        score += fired  # never True where missing: the overlap of no prediction is 0
    frame["dataset_error_score"] = pd.array(score, dtype="Int64")
    frame["num_rules"] = pd.array(len(RULES) - len(RULES_NEEDING_PREDICTIONS) * ~predicted, dtype="Int64")
    frame["is_dataset_error"] = score >= ERROR_SCORE
    return frame
