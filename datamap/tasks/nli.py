"""Natural language inference."""

from __future__ import annotations

import dataclasses

from datamap.tasks.classification import SequenceClassification


@dataclasses.dataclass(frozen=True)
class NaturalLanguageInference(SequenceClassification):
    """Whether a hypothesis follows from a premise: columns id, premise, hypothesis, label (SNLI, MNLI, SICK)."""

    name = "nli"
    text_guesses = (("premise", "hypothesis"), ("sentence1", "sentence2"), ("sentence_A", "sentence_B"),
                    ("text_a", "text_b"))
    label_guesses = ("label", "labels", "gold_label", "entailment_label", "entailment_judgment")
