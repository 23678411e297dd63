"""Pairs with a binary label, chains of thought about them, and what a model is fine-tuned on.

A label is 1 where the hypothesis follows from the premise, 0 where it does not, None where nobody says.
"""

from __future__ import annotations

import argparse
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamap.core.artifacts import artifact_file
from datamap.core.errors import UserError, name_a_few
from datamap.core.files import read_rows
from datamap.core.hub import read_hub
from datamap.core.splits import Split, load_split
from datamap.tasks.classification import NO_GOLD_LABEL, gold_labels
from datamap.tasks.nli import NaturalLanguageInference
from datamap.thoughts.reader import IMPROVED, LABEL, LABELS, THOUGHT, as_label

if TYPE_CHECKING:
    import datasets

COLUMNS = ("premise", "hypothesis", "label")
TRUE_LABEL = "true_label"
THOUGHTS_FILE = ("thoughts.jsonl", "generate_thoughts.py --mode generate")  # and what makes it
HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+(?<!\.jsonl)(?<!\.json)(?<!\.gz)(?::.+)?")

logger = logging.getLogger(__name__)


# --- pairs -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairFormat:
    """A premise, a hypothesis and, if there is one, a label that ``label_map`` (name, 0 or 1) makes binary.

    Without a map the labels are 0 and 1 themselves. Loaded splits have the columns id, premise, hypothesis, label.
    """

    label_map: tuple[tuple[str, int], ...] = ()
    text_columns: tuple[str, ...] = ()
    label_column: str = ""

    content_columns = COLUMNS

    def settings(self) -> dict[str, Any]:
        return {"name": "nli", "text_columns": list(self.text_columns), "label_column": self.label_column}

    def sought(self, columns: Sequence[str]) -> Sequence[str]:
        pair = NaturalLanguageInference(self.text_columns, self.label_column)
        return *pair.sought(columns), *([] if self.label_column else [TRUE_LABEL])

    def for_columns(self, columns: Sequence[str], source: str) -> PairFormat:
        pair = NaturalLanguageInference(self.text_columns, self.label_column)
        texts, label = pair.named_columns(columns, source, (TRUE_LABEL,), needs_label=False)
        if len(texts) != 2:
            raise UserError(f"{source}: {name_a_few(texts)} is no pair of texts; --text_columns takes two columns")
        return PairFormat(self.label_map, texts, label)

    def normalize(self, data: datasets.Dataset, source: str) -> datasets.Dataset:
        import datasets

        columns: dict[str, list] = {"id": data["id"][:]} if "id" in data.column_names else {}
        for name, column in zip(COLUMNS, self.text_columns, strict=False):
            columns[name] = data[column][:]
            wrong = [row for row, text in enumerate(columns[name]) if not isinstance(text, str) or not text.strip()]
            if wrong:
                raise UserError(f"{source}: column {column} of row {wrong[0] + 1} holds no text")
        columns["label"] = self._labels(data, source)
        kinds = {**dict.fromkeys(columns, "string"), "label": "int64"}
        features = datasets.Features({name: datasets.Value(kind) for name, kind in kinds.items()})
        return datasets.Dataset.from_dict(columns, features=features)

    def mend(self, data: datasets.Dataset, source: str) -> tuple[datasets.Dataset, list[dict[str, Any]]]:
        return data, []

    def _labels(self, data: datasets.Dataset, source: str) -> list[int | None]:
        if not self.label_column:
            return [None] * len(data)
        labels = gold_labels(data, self.label_column)
        texts = [None if label is None else str(label).strip() for label in labels]
        found = sorted({text for text in texts if text is not None})
        known = dict(self.label_map) or {str(label): label for label in LABELS}
        unknown = [text for text in found if text not in known]
        if unknown:
            shown = ",".join(f"{text}={'0|1' if 'entailment' not in found else int(text == 'entailment')}"
                             for text in found[:5])
            raise UserError(
                f"{source}: column {self.label_column} holds {name_a_few(unknown)}; say which labels are 1 (follows) "
                f"and which 0 (does not): --label_map {shown}"
            )
        return [None if text is None else known[text] for text in texts]


def id_text(value: Any) -> str:
    """An id of a JSON file as a string: 1 for 1 and 1.0, a string as it is."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def load_pairs(
    name: str, split: str, label_map: Mapping[str, int] | None = None, max_samples: int | None = None,
    text_columns: Sequence[str] = (), label_column: str = "",
) -> Split:
    """A split as ``helpers.load_split`` gives it: columns id, premise, hypothesis and label (0, 1 or None)."""
    pairs = PairFormat(tuple((label_map or {}).items()), tuple(text_columns), label_column)
    return load_split(name, split, pairs, max_samples)


def add_pair_flags(group: Any) -> None:
    """--text_columns, --label_column, --label_map: what a pair and its label are."""
    group.add_argument("--label_map", type=label_map, metavar="NAME=0|1,...",
                       help="what counts as following (1) and as not following (0), such as "
                            "entailment=1,neutral=0,contradiction=0 (default: the labels are 0 and 1)")
    group.add_list("--text_columns", help="columns with premise and hypothesis (default: the usual names)")
    group.add_argument("--label_column", metavar="NAME", default="", help="column with the labels (default: guessed)")


def label_map(text: str) -> dict[str, int]:
    """argparse type of ``entailment=1,neutral=0``."""
    found: dict[str, int] = {}
    for part in text.split(","):
        name, equals, label = part.strip().rpartition("=")
        number = as_label(label)
        if not equals or not name.strip() or number is None:
            raise argparse.ArgumentTypeError(f"expected NAME=0 or NAME=1 with commas between, found {part.strip()!r}")
        if name.strip() in found:
            raise argparse.ArgumentTypeError(f"{name.strip()!r} occurs twice")
        found[name.strip()] = number
    return found


# --- chains of thought -------------------------------------------------------------------------------------------


def read_thoughts(path: str | Path) -> list[dict[str, Any]]:
    """The chains in a file or directory, or in a dataset of the Hub (``owner/name`` or ``owner/name:subset``, split
    train), the last of each id where there are several.

    Records have ``id`` (a string), ``premise``, ``hypothesis``, ``thought_process``, ``predicted_label`` and
    ``true_label`` (0, 1 or None), and what else the file has. Others' files may be JSON Lines or a JSON list, with
    numbers or strings for ids and labels. UserError for a record that lacks one of these.
    """
    return _read_chains(path, *THOUGHTS_FILE, THOUGHT)


def read_reflections(path: str | Path) -> list[dict[str, Any]]:
    """As ``read_thoughts``, of repaired chains: ``improved_thought_process``; ``predicted_label`` is what it says."""
    return _read_chains(path, "reflections.jsonl", "generate_thoughts.py --mode reflect", IMPROVED)


def rows_at(path: str | Path, filename: str, made_by: str) -> tuple[str | Path, list[dict[str, Any]]]:
    """The records as they stand, and where: of a file, of a directory's ``filename``, or of the Hub."""
    if HUB_NAME.fullmatch(str(path)) and not Path(path).exists():
        return path, read_hub(str(path), "train").to_list()
    file = artifact_file(path, filename, made_by, appended=True)
    return file, read_rows(file)


def _read_chains(path: str | Path, filename: str, made_by: str, thought: str) -> list[dict[str, Any]]:
    file, rows = rows_at(path, filename, made_by)
    chains: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(rows, 1):
        needed = ("id", "premise", "hypothesis", thought, LABEL, TRUE_LABEL)
        missing = [name for name in needed if name not in row]
        if missing:
            raise UserError(f"{file}, record {number}: no {name_a_few(missing)}; expected {', '.join(needed)}")
        if row["id"] in (None, ""):
            raise UserError(f"{file}, record {number}: id is {row['id']!r}; give every chain that of its pair")
        for name in ("premise", "hypothesis", thought):
            if not isinstance(row[name], str) or not row[name].strip():
                raise UserError(f"{file}, record {number} (id {row['id']!r}): {name} is {row[name]!r:.40}, no text")
        labels = {name: as_label(row[name]) for name in (LABEL, TRUE_LABEL)}
        for name, label in labels.items():
            if label is None and row[name] not in NO_GOLD_LABEL:
                found = f"{name} is {row[name]!r:.40}"
                raise UserError(f"{file}, record {number} (id {row['id']!r}): {found}, neither 0 nor 1")
        key = id_text(row["id"])
        chains.pop(key, None)  # the last one counts, and stands where it stands
        chains[key] = {**row, "id": key, **labels}
    if not chains:
        raise UserError(f"{file} holds no chains of thought; {made_by} writes them")
    if len(chains) < len(rows):
        models = sorted({str(row["model"]) for row in rows if row.get("model")})
        named = f" (models: {name_a_few(models)})" * bool(models)
        logger.warning(f"{file}: {len(rows) - len(chains):,} of {len(rows):,} chains come before another of the same "
                       f"id and do not count{named}; an --output_dir for each model and prompt keeps them apart")
    return list(chains.values())


def is_right(chain: Mapping[str, Any]) -> bool | None:
    """Whether a chain comes to the true label; None where that is unknown."""
    return None if chain[TRUE_LABEL] is None else chain[LABEL] == chain[TRUE_LABEL]


def training_rows(
    thoughts: Sequence[Mapping[str, Any]], reflections: Sequence[Mapping[str, Any]] = ()
) -> list[dict[str, Any]]:
    """What to fine-tune on, one row per id: the chains that are right, and for the others the repaired ones that are.

    Rows have ``id, premise, hypothesis, label, thought_process, source`` (original or reflection), in the order of
    ``thoughts``, then of the reflections on other pairs. UserError where an id means two different pairs, and where
    nothing is right.
    """
    repaired = {chain["id"]: chain for chain in reflections}
    for chain in thoughts:
        other = repaired.get(chain["id"])
        pair = ("premise", "hypothesis", TRUE_LABEL)
        if other and any(other[name] != chain[name] for name in pair):
            raise UserError(f"id {chain['id']!r} is another pair in the reflections than in the thoughts; give those "
                            "that were made from these thoughts")
    rows: dict[str, dict[str, Any]] = {}
    for source, thought, chains in (("original", THOUGHT, thoughts), ("reflection", IMPROVED, reflections)):
        for chain in chains:
            if is_right(chain) and chain["id"] not in rows:
                rows[chain["id"]] = {
                    "id": chain["id"], "premise": chain["premise"], "hypothesis": chain["hypothesis"],
                    "label": chain[LABEL], THOUGHT: chain[thought], "source": source,
                }
    if not rows:
        raise UserError("no chain of thought comes to the true label, so there is nothing to train on; generate "
                        "more, or reflect on these")
    sources = Counter(row["source"] for row in rows.values())
    ids = list(dict.fromkeys([*(chain["id"] for chain in thoughts), *repaired]))
    logger.info(f"{len(rows):,} of {len(ids):,} pairs have a right chain: {sources['original']:,} as first written, "
                f"{sources['reflection']:,} repaired")
    return [rows[name] for name in ids if name in rows]
