"""What a model gets wrong: wrong answers by their kind, labels as gold against predicted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from datamap.core.errors import UserError, name_a_few
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


def errors_by_region(split: Split, unified: pd.DataFrame, predictions: Sequence[Any]) -> tuple[pd.DataFrame, str]:
    """The ``predicted_table`` of predictions as a file has them (a label may be the number that is its name), with
    ``category`` and ``cluster`` of the ``unified_table``; and the name of its column of question types or labels.

    UserError where a label is no class of the data.
    """
    if split.task.name == "qa":
        said, by = list(predictions), "question_type"
    else:
        said, by = [None if each is None else str(each) for each in predictions], "label"
        names = split.data.features[split.task.label_column].names
        if unknown := sorted({each for each in said if each is not None} - set(names)):
            raise UserError(f"the predictions have labels that {split.name} [{split.split}] does not "
                            f"({name_a_few(unknown)}; it has {name_a_few(names, 10)}); give those of a model of this "
                            "dataset")
    table = predicted_table(split, said).rename(columns={"gold": by} if by == "label" else {})
    return table.join(unified.set_index("id")[["category", "cluster"]], on="id"), by


def confusion_counts(table: pd.DataFrame) -> pd.DataFrame:
    """Of a ``predicted_table`` of labels: how many examples of each class (rows) were predicted to be which."""
    import pandas as pd

    return pd.crosstab(table["gold"], table["predicted"], dropna=False)
