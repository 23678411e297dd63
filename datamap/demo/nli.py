"""Built-in natural language inference: made-up scenes, and whether one description of a scene follows from another.

A premise says how many people, how old and where, and one of: what colour, what things, when. It is compared with
three hypotheses, one for each label. A hypothesis states one or two of the first three details and one of the others.
What is left open is said in general ("people" for two people, "animals" for dogs) or not at all.

- entailment: the premise states all of it. "At noon two old people are feeding animals outdoors." - "Old people are
  feeding animals at noon."
- contradiction: number, age and place, as far as the hypothesis states them, are other than in the premise, by another
  number, an antonym or a negation. "At noon people are feeding animals not outdoors."
- neutral: it adds a colour, the things or a time that the premise leaves open. "Old people are feeding dogs."

Neither text alone says anything about the label: every premise comes with each label, and the details of a hypothesis
and their values are drawn in the same way for each. The usual giveaways of such data, which a model that sees only the
hypothesis finds (Gururangan et al. 2018, arXiv 1803.02324), are not there.

A tenth of the training examples carry a wrong label, named in the column `planted_error`; no stage reads that column.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from datamap.demo.draws import pick, shuffled
from datamap.demo.planting import another

SIZES = {"train": 1500, "validation": 300}
LABELS = ("entailment", "neutral", "contradiction")
PLANTED_ERRORS = ("wrong_label",)
ERROR_SHARE = 0.1

# General word: the things of that kind, and what is done with them.
THINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "animals": (("dogs", "cats"), ("feeding", "washing", "brushing")),
    "clothes": (("coats", "hats"), ("folding", "washing", "ironing")),
    "pieces of furniture": (("chairs", "tables"), ("painting", "moving", "cleaning")),
    "vehicles": (("cars", "buses"), ("washing", "repairing", "cleaning")),
}
# Details that a contradiction changes. Here and below there are few values of each, so that a small model sees every
# pair of them often enough to learn from 1,500 examples which two agree.
CHANGED: dict[str, tuple[str, ...]] = {
    "count": ("two", "three", "four"),
    "age": ("young", "old"),
    "where": ("outdoors", "not outdoors"),
}
# Details that a neutral hypothesis adds; the things are those of the scene's kind.
ADDED: dict[str, tuple[str, ...]] = {"colour": ("white", "black"), "thing": (), "when": ("at noon", "at night")}
FRONTED_SHARE = 0.25  # "At noon two people are ..."
MAX_MISSES = 1000  # scenes in a row that belong to the other split or are known


def build(rng: np.random.Generator, split: str, num_examples: int) -> list[dict[str, Any]]:
    """Rows `premise, hypothesis, label, planted_error` in random order; no two splits share a premise."""
    pairs: list[tuple[str, str, str]] = []
    seen: set[tuple[str, str]] = set()
    misses = 0
    stated = pick(rng, tuple(ADDED))
    while len(pairs) < num_examples:
        premise, hypotheses = _scene(rng, stated)
        texts = {(premise, hypothesis) for hypothesis in hypotheses.values()}
        # The premise alone decides the split, so no two splits share one, whatever their seeds and sizes.
        if zlib.crc32(premise.encode()) % 2 != (split == "validation") or texts & seen:
            misses += 1
            if misses == MAX_MISSES:
                raise ValueError(f"num_examples is {num_examples}; demo:nli cannot make so many different pairs")
            continue
        # Drawn once for each scene that is kept: another draw after a miss would favour what is said in many ways.
        stated = pick(rng, tuple(ADDED))
        misses = 0
        seen |= texts
        pairs += [(premise, hypotheses[label], label) for label in shuffled(rng, LABELS)]
    pairs = shuffled(rng, pairs[:num_examples])
    num_wrong = round(num_examples * ERROR_SHARE) if split == "train" else 0
    wrong = set(rng.permutation(num_examples)[:num_wrong].tolist())
    rows = []
    for number, (premise, hypothesis, label) in enumerate(pairs):
        error = PLANTED_ERRORS[0] if number in wrong else ""
        if error:
            label = another(rng, label, LABELS)
        rows.append({"premise": premise, "hypothesis": hypothesis, "label": label, "planted_error": error})
    return rows


def _scene(rng: np.random.Generator, stated: str) -> tuple[str, dict[str, str]]:
    """A premise that states this of the details in ADDED, and for each label a hypothesis that has it."""
    kind = pick(rng, tuple(THINGS))
    things, actions = THINGS[kind]
    action = pick(rng, actions)
    values = CHANGED | ADDED | {"thing": things}
    scene = {detail: pick(rng, options) for detail, options in values.items()}
    unstated = [detail for detail in ADDED if detail != stated]
    premise = _sentence(rng, {detail: scene[detail] for detail in (*CHANGED, stated)}, kind, action)
    hypotheses = {}
    for label in LABELS:
        claim = {detail: scene[detail] for detail in shuffled(rng, tuple(CHANGED))[: pick(rng, (1, 2))]}
        if label == "contradiction":
            claim = {
                detail: pick(rng, [other for other in values[detail] if other != value])
                for detail, value in claim.items()
            }
        added = pick(rng, unstated) if label == "neutral" else stated
        hypotheses[label] = _sentence(rng, claim | {added: scene[added]}, kind, action)
    return premise, hypotheses


def _sentence(rng: np.random.Generator, stated: dict[str, str], kind: str, action: str) -> str:
    count = stated.get("count", pick(rng, ("some", "")))
    where, when = stated.get("where"), stated.get("when")
    people = [count, stated.get("age"), "people are", action, stated.get("colour"), stated.get("thing", kind)]
    words = [when, *people, where] if rng.random() < FRONTED_SHARE else [*people, where, when]
    text = " ".join(word for word in words if word)
    return text[0].upper() + text[1:] + "."
