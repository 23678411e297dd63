"""suspects.csv: every example of a split, the most suspicious first, as a person reads and decides on it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from datamap.core.artifacts import check_same_dataset
from datamap.core.splits import Split
from datamap.core.tables import console_table
from datamap.detection.base import Evidence
from datamap.detection.decisions import NO_ANSWER, check_decided_ids, idle_fixes_kept, read_decisions
from datamap.detection.known import known_of
from datamap.detection.reasons import NEAREST, class_numbers, reasons
from datamap.detection.review import rank
from datamap.tasks.qa_metrics import normalize_answer
from datamap.tasks.spans import places_of

if TYPE_CHECKING:
    import pandas as pd

PRINTED = 60  # characters of a text on the console
AROUND = 100  # characters shown on either side of an answer
PROPOSED_ABOVE = 0.5  # out-of-fold probability of another label for it to be proposed
JUDGE = "judge"
COLUMNS = ("id", "suspicion", "gold", "predicted", "reasons", "evidence", "proposed", "decision", "corrected")


class Opinion(NamedTuple):
    """What somebody else says of an example. probability: of being wrong, 0..1. words: verdict and reason, for a
    person. correction: what it should be, None where nothing is proposed."""

    probability: float
    words: str
    correction: str | None


Judge = Callable[[Split, np.ndarray], dict[str, Opinion]]  # suspicion (N,) -> opinions of some examples, by id


def find_suspects(
    split: Split, cartography_dir: str, *, embedding_dir: str | None = None, cluster_dir: str | None = None,
    predictions: str | None = None, decisions: str | None = None, judge: Judge | None = None,
) -> tuple[pd.DataFrame, list[str]]:
    """The table of suspects from finished artifacts, and what to say of it: of what it was made, and what the
    decisions so far (a file, ``read_decisions``) teach.

    With decisions suspicion is what they make of it (``review.rank``), and what is decided stands below the rest. A
    judge is shown suspicion without them, so that it is asked the same however far the review is.
    """
    import pandas as pd

    places = {"embedding_dir": embedding_dir, "cluster_dir": cluster_dir, "predictions": predictions}
    evidence, scores, (values, made_of), _ = known_of(split, cartography_dir, **places)  # type: ignore[arg-type]
    said = [described(evidence, [flag for flag, place in places.items() if not place])]
    decided = decisions_on(split, decisions) if decisions else None
    opinions = judge(split, values) if judge else {}
    if opinions:
        evidence = copy.copy(evidence)  # who asks again without a judge has none
        evidence.opinions = {JUDGE: np.array([opinions[each].probability if each in opinions else np.nan
                                              for each in split.ids])}
        scores = scores.assign(**evidence.opinions)
        said.append(f"a judge's opinion of {len(opinions):,} examples, column {JUDGE}")
    if decided is None:
        return with_opinions(suspects_table(evidence, scores, values, made_of), opinions), said
    ranking = rank(evidence, scores, values, decided["decision"].to_dict())
    made_of = f"{made_of}, {len(decided):,} decision{'s' * (len(decided) != 1)}"
    table = with_opinions(suspects_table(evidence, scores, ranking.probability, made_of), opinions)
    for column in ("decision", "corrected"):
        table[column] = table["id"].map(decided[column].where(decided[column] != "", None))
    is_decided = table["decision"].notna()
    return pd.concat([table[~is_decided], table[is_decided]], ignore_index=True), [*said, *ranking.learned]


def with_opinions(table: pd.DataFrame, opinions: Mapping[str, Opinion]) -> pd.DataFrame:
    """The table with a column JUDGE behind suspicion, its words before the other reasons, and its correction where
    models propose none; as it is without opinions."""
    if not opinions:
        return table
    found = [opinions.get(example) for example in table["id"]]
    table.insert(2, JUDGE, [None if each is None else each.probability for each in found])
    table["reasons"] = ["; ".join(filter(None, [each.words if each else "", reasons]))
                        for each, reasons in zip(found, table["reasons"], strict=True)]
    table["proposed"] = [each.correction if each and not isinstance(proposed, str) else proposed
                         for each, proposed in zip(found, table["proposed"], strict=True)]
    return table


def decisions_on(split: Split, path: str) -> pd.DataFrame:
    """``decision`` and ``corrected`` of each example of the split that there is a decision on, indexed by id; none of
    those that have changed since, and a fix that changes nothing as a keep."""
    table = read_decisions(path).set_index("id")
    table = table[table["decision"] != ""]
    if table.empty:
        return table
    check_decided_ids(path, table.index, split)
    changed = check_same_dataset(path, table.index, split)
    return idle_fixes_kept(table[table.index.isin(set(split.ids) - changed)], split, path)


def described(evidence: Evidence, not_given: list[str]) -> str:
    """``evidence: data map, out_of_fold.csv; not given: --cluster_dir``"""
    kinds = {"data map": evidence.metrics, "out_of_fold.csv": evidence.out_of_fold, "embeddings": evidence.embeddings,
             "clusters": evidence.clusters, "predictions": evidence.predictions, "error rules": evidence.rules}
    text = f"evidence: {', '.join(name for name, value in kinds.items() if value is not None)}"
    missing = [f"--{flag}" for flag in not_given]
    missing += ["out_of_fold.csv (run.py --cross_fit)"] if evidence.out_of_fold is None else []
    return f"{text}; not given: {', '.join(missing)}" if missing else text


def printed_suspects(table: pd.DataFrame, rows: int) -> str:
    """The first of them for the console."""
    shown = table[["id", "suspicion", "gold", "predicted", "reasons"]].copy()
    for column in ("gold", "predicted", "reasons"):
        shown[column] = [f"{text[: PRINTED - 3]}..." if isinstance(text, str) and len(text) > PRINTED else text
                         for text in shown[column]]
    return console_table(shown, {"suspicion": ".2f"}, rows)


def suspects_table(
    evidence: Evidence, scores: pd.DataFrame, suspicion: np.ndarray, made_of: str
) -> pd.DataFrame:
    """One row per example, by falling suspicion (ties in the order of the split, unknown last): ``COLUMNS``, with the
    texts behind suspicion.

    suspicion: (N,) 0..1. made_of: of what, for the column evidence. predicted is what models trained without the
    example say, where there are such, else the trained model. None is an empty cell.
    """
    import pandas as pd

    texts = readable_texts(evidence)
    known = predicted(evidence)
    columns: dict[str, Any] = {"id": evidence.split.ids, "suspicion": suspicion}
    for name, values in texts.items():
        columns[f"data_{name}" if name in (*COLUMNS, JUDGE) else name] = values
    columns |= {
        "gold": golds(evidence), "predicted": known, "reasons": reasons(evidence, scores), "evidence": made_of,
        "proposed": proposals(evidence), "decision": None, "corrected": None,
    }
    order = np.argsort(-np.nan_to_num(suspicion, nan=-1), kind="stable")
    return pd.DataFrame(columns).iloc[order].reset_index(drop=True)


def readable_texts(evidence: Evidence) -> dict[str, list[str]]:
    """The texts; of a context what stands around the answer, which is marked with [[ ]]."""
    texts = {column: evidence.column(column) for column in evidence.split.task.text_columns}
    if evidence.answers_questions:
        texts["context"] = [
            marked(context, answer["answer_start"][0], len(answer["text"][0])) if fine and answer["text"]
            else marked(context, 0, 0)
            for context, answer, fine in zip(texts["context"], evidence.column("answers"), evidence.usable,
                                             strict=True)
        ]
    return texts


def marked(context: str, start: int, length: int) -> str:
    """``... admitted on [[March 3, 2019]] from ...``; without a length the beginning of the context, unmarked."""
    end = start + length
    first, last = max(0, start - AROUND), min(len(context), end + AROUND)
    if first:  # not in mid-word
        first = min(start, first + len(context[first:start]) - len(context[first:start].lstrip()))
        blank = context.find(" ", first, start)
        first = blank + 1 if blank >= 0 and not context[first - 1].isspace() else first
    if last < len(context) and not context[last].isspace():
        blank = context.rfind(" ", end, last)
        last = blank if blank >= 0 else last
    answer = f"[[{context[start:end]}]]" if length else ""
    return f"{'... ' * (first > 0)}{context[first:start]}{answer}{context[end:last]}{' ...' * (last < len(context))}"


def golds(evidence: Evidence) -> list[str]:
    """The annotated label, or the first annotated answer."""
    if evidence.answers_questions:
        return [text or NO_ANSWER for text in evidence.golds]
    return [evidence.class_names[label] for label in evidence.labels]


def predicted(evidence: Evidence) -> list[str | None]:
    """What models say of each example, out of fold where that is known; None where nothing is."""
    said = _said(evidence, "out_of_fold")
    final = _said(evidence, "predictions")
    return [one if one is not None else other for one, other in zip(said, final, strict=True)]


def _said(evidence: Evidence, source: str) -> list[str | None]:
    """Answers, or names of classes, of one source of evidence."""
    if source == "predictions":
        values = evidence.predictions
    else:
        column = "predicted_answer" if evidence.answers_questions else "predicted_label"
        table = evidence.out_of_fold
        values = None if table is None or column not in table else table[column].tolist()
    if values is None:
        return [None] * len(evidence)
    if evidence.answers_questions:
        return [(value or NO_ANSWER) if isinstance(value, str) else None for value in values]
    names = evidence.class_names
    return [names[number] if number >= 0 else None for number in class_numbers(evidence, values).tolist()]


def proposals(evidence: Evidence, rows: np.ndarray | None = None) -> list[str | None]:
    """What to correct an example to, None where models do not agree; of all examples, or of ``rows`` (n,).

    A label that models trained without the example hold to be more probable than all others together, and that the
    trained model or most of the five nearest neighbours give too, where these are known. An answer that both the
    models trained without it and the trained model give, and that stands in the context.
    """
    rows = np.arange(len(evidence)) if rows is None else rows
    return (_proposed_answers if evidence.answers_questions else _proposed_labels)(evidence, rows)


def _proposed_labels(evidence: Evidence, rows: np.ndarray) -> list[str | None]:
    said = _said(evidence, "out_of_fold")
    numbers, gold = class_numbers(evidence, said)[rows], evidence.labels
    agreed = (numbers >= 0) & (numbers != gold[rows])
    if evidence.probabilities is not None:
        agreed &= evidence.probabilities[rows, numbers] > PROPOSED_ABOVE
    others = []
    if evidence.predictions is not None:
        others.append(class_numbers(evidence, evidence.predictions)[rows] == numbers)
    if evidence.has("embeddings"):
        near = evidence.neighbours_of(rows)[:, :NEAREST]
        same = (evidence.labels[near] == numbers[:, None]) & (near >= 0)
        others.append(2 * same.sum(axis=1) > NEAREST)
    if others:
        agreed &= np.any(others, axis=0)
    return [said[row] if fine else None for row, fine in zip(rows.tolist(), agreed.tolist(), strict=True)]


def _proposed_answers(evidence: Evidence, rows: np.ndarray) -> list[str | None]:
    found: list[str | None] = []
    columns = (evidence.column("context"), evidence.golds, _said(evidence, "out_of_fold"),
               _said(evidence, "predictions"))
    for row in rows.tolist():
        context, gold, said, final = (column[row] for column in columns)
        agreed = said is not None and final is not None and normalize_answer(said) == normalize_answer(final)
        if said is None or not agreed or normalize_answer(said) == normalize_answer(gold or NO_ANSWER):
            found.append(None)
        else:
            found.append(said if said == NO_ANSWER or places_of(context, said) else None)
    return found
