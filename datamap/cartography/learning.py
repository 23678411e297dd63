"""Whether a model has learned anything while it was recorded: if not, the categories of its map mean nothing yet.

A model that has learned nothing has a map too, with half of its examples above the median. What tells is whether the
training beats guessing: always giving the same answer, or the same probabilities.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.core.parquet import ROWS_A_GROUP

if TYPE_CHECKING:
    import pandas as pd

MARGIN = 0.95  # a loss counts as lower than another below this share of it
MEANS_NOTHING = "no sign that the model has learned anything, so the categories mean nothing yet"


# Of a record of ``Learning``, as it comes back from a file.
LIKE_LEARNING = (type(None), {
    "examples": int, "ever_right": int, "accuracy": (type(None), [float]), "loss": (type(None), [float]),
    "guessing": (type(None), {"accuracy": float, "loss": float}), "warning": str | None})


def guessing(gold: np.ndarray) -> dict[str, float]:
    """What the best guess scores that is the same for every row: ``accuracy`` (0..1) and ``loss`` (nats).

    gold: (N,) or (N, H) whole numbers, the gold decisions of each row. accuracy: the share of the commonest row. loss:
    the entropy of the decisions, mean over the H; no constant distribution has a lower cross-entropy.
    """
    gold = gold.reshape(len(gold), -1)
    entropies = []
    for decisions in gold.T:
        shares = np.unique(decisions, return_counts=True)[1] / len(gold)
        entropies.append(float(-(shares * np.log(shares)).sum()))
    commonest = np.unique(gold, axis=0, return_counts=True)[1].max()
    return {"accuracy": float(commonest / len(gold)), "loss": float(np.mean(entropies))}


@dataclass
class Learning:
    """accuracy, loss: of the training, epoch by epoch, means over the examples recorded in it. guessing: of
    ``guessing``, None where the gold decisions are not known."""

    guessing: dict[str, float] | None = None
    accuracy: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)

    def follow(self, epochs: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        """The epochs as they are, noted as they pass."""
        self.accuracy, self.loss = [], []
        for epoch in epochs:
            if "gold" in epoch:
                self.guessing = guessing(np.asarray(epoch["gold"]))
            if count := len(epoch["id"]):
                self.accuracy.append(float(np.mean(np.asarray(epoch["correct"], dtype=bool))))
                if "loss" in epoch:
                    loss = np.asarray(epoch["loss"], dtype=np.float64)
                    # Added up as ``follow_blocks`` does, so that both come to the same number.
                    starts = range(0, count, ROWS_A_GROUP)
                    self.loss.append(sum(float(loss[at : at + ROWS_A_GROUP].sum()) for at in starts) / count)
            yield epoch

    def follow_blocks(self, blocks: Iterable[list[dict[str, Any]]]) -> Iterator[list[dict[str, Any]]]:
        """The blocks of ``dynamics.epoch_blocks`` as they are, noted as they pass."""
        self.accuracy, self.loss = [], []
        count, right, loss = 0, defaultdict[int, int](int), defaultdict[int, float](float)
        for block in blocks:
            count += len(block[0]["id"])
            for place, epoch in enumerate(block):
                right[place] += int(np.asarray(epoch["correct"], dtype=bool).sum())
                if "loss" in epoch:
                    loss[place] += float(np.asarray(epoch["loss"], dtype=np.float64).sum())
            yield block
        if count:
            self.accuracy = [right[place] / count for place in sorted(right)]
            self.loss = [loss[place] / count for place in sorted(loss)]

    def record(self, metrics: pd.DataFrame) -> dict[str, Any] | None:
        """What is known of it as JSON; None where that is nothing.

        ``examples``, ``ever_right`` (how many were right in an epoch), ``accuracy`` and ``loss`` (an epoch each, null
        where unknown), ``guessing``, ``has_learned`` (null where it cannot be told), ``warning`` (null without cause).
        """
        if "correctness" not in metrics:
            return None
        record: dict[str, Any] = {
            "examples": len(metrics),
            "ever_right": int((metrics["correctness"] > 0).sum()),
            "accuracy": self.accuracy or None,
            "loss": self.loss or None,
            "guessing": self.guessing,
        }
        learned = _has_learned(record)
        warning = None if learned is not False else f"{MEANS_NOTHING} ({progress(record)}); train longer, or with " \
                                                    "another learning rate"
        return {**record, "has_learned": learned, "warning": warning}


def _has_learned(record: Mapping[str, Any]) -> bool | None:
    """Whether the best epoch beats guessing, by accuracy (two standard errors) or by loss (5%); None: nobody knows."""
    guess, accuracy, loss = record["guessing"], record["accuracy"], record["loss"]
    if guess is None:  # of the loss, only whether it falls
        nothing = not record["ever_right"] and not (loss and min(loss) < MARGIN * loss[0])
        return False if nothing else None
    chance = guess["accuracy"]
    least = chance + 2 * np.sqrt(chance * (1 - chance) / record["examples"])
    return bool((accuracy and max(accuracy) > least) or (loss and min(loss) < MARGIN * guess["loss"]))


def progress(record: Mapping[str, Any]) -> str:
    """How far the training came, in words."""
    guess, accuracy, loss = record["guessing"], record["accuracy"], record["loss"]
    parts = [f"{record['ever_right']:,} of {record['examples']:,} examples were ever right"]
    if accuracy:
        than = f", always the commonest answer {guess['accuracy']:.1%}" if guess else ""
        parts.append(f"accuracy in the best epoch {max(accuracy):.1%}{than}")
    if loss:
        parts.append(f"loss {min(loss):.3g}" + (f", of guessing {guess['loss']:.3g}" if guess else ""))
    return "; ".join(parts)
