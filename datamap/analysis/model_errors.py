"""What a model gets wrong: wrong answers by their kind, labels as gold against predicted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from datamap.core.splits import Split
from datamap.tasks.span_errors import NONE, SPAN_ERRORS, span_errors

if TYPE_CHECKING:
    import pandas as pd

LABEL_ERRORS = (NONE, "wrong")


def predicted_table(split: Split, predictions: Sequence[str | None]) -> pd.DataFrame:
    """One row per example that has a gold annotation and a prediction, in the order of the split: ``id``, of questions
    ``question_type``, ``gold`` (the first annotated answer, or the class), ``predicted``, ``error``.

    predictions: an answer ("": that there is none) or the name of a class for each example, None where there is none.
    error: of answers one of ``SPAN_ERRORS``, to which all annotated answers count; of labels of ``LABEL_ERRORS``.
    """
    import pandas as pd

    data, task = split.data, split.task
    columns: dict[str, Any] = {"id": split.ids}
    if task.name == "qa":
        by, columns[by] = task.groups(data)
        columns |= {"gold": task.readable(data)["answer"], "predicted": list(predictions)}
        errors = pd.Categorical(span_errors(data["context"][:], data["answers"][:], predictions), SPAN_ERRORS)
    else:
        names = data.features[task.label_column].names
        gold = [None if number is None or number < 0 else names[number] for number in data[task.label_column][:]]
        columns |= {"gold": pd.Categorical(gold, names), "predicted": pd.Categorical(predictions, names)}
        errors = pd.Categorical([None if one is None or other is None else LABEL_ERRORS[one != other]
                                 for one, other in zip(gold, predictions, strict=True)], LABEL_ERRORS)
    table = pd.DataFrame({**columns, "error": errors})
    return table[table["error"].notna()].reset_index(drop=True)


def error_counts(table: pd.DataFrame, by: str) -> pd.DataFrame:
    """Of a ``predicted_table``: how many examples of each group in its column ``by`` (rows, the largest first; ``all``
    below) have each kind of error (columns), and ``n``."""
    import pandas as pd

    counts = pd.crosstab(table[by], table["error"], dropna=False)
    counts.columns = counts.columns.astype("str")
    counts = counts.assign(n=counts.sum(axis=1)).sort_values("n", ascending=False, kind="stable")
    return pd.concat([counts, counts.sum().to_frame("all").T]).rename_axis(index=by, columns=None)


def confusion_counts(table: pd.DataFrame) -> pd.DataFrame:
    """Of a ``predicted_table`` of labels: how many examples of each class (rows) were predicted to be which."""
    import pandas as pd

    return pd.crosstab(table["gold"], table["predicted"], dropna=False)
