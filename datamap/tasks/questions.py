"""Questions: columns of texts as the rules and the groupings read them, and what kind of question each one is."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

QUESTION_TYPES: tuple[str, ...] = (
    "what", "who", "when", "where", "why", "how many/how much", "how", "which", "yes/no", "other",
)

Column = Iterable[Any]  # a list, Series or Arrow column of texts; None, NaN and <NA> count as missing


def optional_texts(column: Column, name: str) -> list[str | None]:
    """The column as Python strings, missing values as None."""
    import pandas as pd

    if isinstance(column, str | bytes):
        raise TypeError(f"{name}: found a single string, expected a column of texts")
    if hasattr(column, "to_pylist"):  # pyarrow: iterating would give scalars, not strings
        values = column.to_pylist()
    else:
        values = column.tolist() if hasattr(column, "tolist") else list(column)
    for position, value in enumerate(values):
        if not isinstance(value, str):
            if value is not None and value is not pd.NA and value == value:
                raise TypeError(f"{name}[{position}]: found {type(value).__name__}, expected a string or None")
            values[position] = None  # `values` is a list of our own: every way above makes a new one
    return values


def required_texts(column: Column, name: str) -> list[str]:
    return ["" if text is None else text for text in optional_texts(column, name)]


def common_index(columns: dict[str, Column]) -> pd.Index | None:
    """The index shared by the columns that are Series; rows must never be joined by position against their labels."""
    import pandas as pd

    index: pd.Index | None = None
    first = ""
    for name, column in columns.items():
        if isinstance(column, pd.Series):
            if index is None:
                index, first = column.index, name
            elif not index.equals(column.index):
                raise ValueError(f"{name} and {first} have different indexes: bring them into one order first")
    return index


def fold(text: str) -> str:
    """The form in which texts are compared: NFC, casefolded, every run of white space one space."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return " ".join(text.casefold().split())


# --- question types ----------------------------------------------------------------------------------------------

_AUXILIARIES = (
    r"(?:is|are|was|were|am|do|does|did|has|have|had|can|could|will|would|shall|should|may|might|must)(?:n['’]t)?"
    r"|can['’]t|cannot|won['’]t|shan['’]t|ain['’]t"
)
_QUESTION_WORDS = r"what|whom|whose|who|when|where|why|how|which"
_OPENING = r"^[\s\"'“”‘’«„¿(\[]*"  # quotation marks and brackets may stand before the first word
_STARTS_WITH_AUXILIARY = re.compile(rf"{_OPENING}(?:{_AUXILIARIES})\b")
STARTS_LIKE_A_QUESTION = re.compile(rf"{_OPENING}(?:{_QUESTION_WORDS}|{_AUXILIARIES})\b")
# "When the patient fell, what ...": when and where ask only if a verb or nothing follows ("... signed when?").
_ASKS = rf"(?=(?:\s+(?:and\s+\w+|exactly|\w+ly|else|last|first))?\s+(?:{_AUXILIARIES})\b|['’]\w|\W*$)"
_ASKING_WORD = rf"(?P<word>what|whom|whose|who|when{_ASKS}|where{_ASKS}|why|how\s+(?:many|much)|how|which)\b"
# Where the question word may stand, best first: at the start; after punctuation or a preposition ("In what year");
# anywhere. A who or which elsewhere is often a relative pronoun.
_PREPOSITIONS = r"in|on|at|by|to|for|from|of|with|since|until|till|before|after|during|under|about|into|through|near"
_QUESTION_WORD_PLACES = tuple(
    re.compile(place + _ASKING_WORD)
    for place in (_OPENING, rf"(?:[,;:]\s*(?:and\s+)?|\b(?:{_PREPOSITIONS})\s+)", r"\b")
)
_WHEN_OR_WHERE = re.compile(rf"{_OPENING}(?P<word>when|where)\b")


def question_type_of(folded: str) -> str:
    """The kind of question, one of `QUESTION_TYPES`, of a text as `fold` leaves it.

    A question that begins with an auxiliary is yes/no. Otherwise its question word decides: the first word, else one
    after punctuation or a preposition ("In what year", "..., who won?"), else any. whom and whose are who. A "when"
    or "where" that opens a clause ("When the patient fell, what ...") asks only if no other word does.
    """
    if _STARTS_WITH_AUXILIARY.match(folded):
        return "yes/no"
    for place in (*_QUESTION_WORD_PLACES, _WHEN_OR_WHERE):
        if found := place.search(folded):
            word = " ".join(found["word"].split())
            if word in ("how many", "how much"):
                return "how many/how much"
            return "who" if word in ("whom", "whose") else word
    return "other"


def question_types(questions: Column) -> pd.Series:
    """`question_type_of` every question: strings, with the index of `questions` if that is a Series."""
    import pandas as pd

    index = common_index({"questions": questions})
    types = [question_type_of(fold(text)) for text in required_texts(questions, "questions")]
    return pd.Series(types, index=index, name="question_type", dtype="str")
