"""Built-in natural language inference: made-up scenes, and whether one description of a scene follows from another.

A scene has seven details: how many people, young or old, men or women, the colour and the kind of the things that they
handle, where and when. Premise and hypothesis each state some of them. What is left unsaid is said in general ("people"
for women, "animals" for dogs) or not at all, so the label follows from the details of the hypothesis:

- entailment: the premise states them all ("Two old women are feeding dogs." - "Some women are feeding animals.");
- contradiction: the premise states another value of one of them: an antonym, another number or colour, a negation;
- neutral: the premise leaves one of them open ("Old people are feeding dogs." - "Old women are feeding dogs.").

Neither text alone says anything about the label: the details of each are drawn in the same way whatever the label is,
and so are its word order, active or passive, and whether it says "indoors" or "not outdoors". The usual giveaways of
such data, which a model that sees only the hypothesis finds (Gururangan et al. 2018, arXiv 1803.02324), are not there.

A tenth of the training examples carry a wrong label, named in the column `planted_error`; no stage reads that column.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

SIZES = {"train": 1500, "validation": 300}
LABELS = ("entailment", "neutral", "contradiction")
PLANTED_ERRORS = ("wrong_label",)
ERROR_SHARE = 0.1

# Kind of things: the general word, the words for one kind each, and what is done with them (active, passive).
THINGS: dict[str, tuple[tuple[str, ...], tuple[tuple[str, str], ...]]] = {
    "animals": (("dogs", "cats", "horses"), (("feeding", "fed"), ("washing", "washed"), ("brushing", "brushed"))),
    "clothes": (("coats", "shirts", "hats"), (("folding", "folded"), ("washing", "washed"), ("ironing", "ironed"))),
    "pieces of furniture": (
        ("chairs", "tables", "benches"),
        (("painting", "painted"), ("moving", "moved"), ("cleaning", "cleaned")),
    ),
    "vehicles": (("cars", "vans", "buses"), (("washing", "washed"), ("repairing", "repaired"), ("cleaning", "cleaned"))),
}
VALUES: dict[str, tuple[str, ...]] = {
    "count": ("two", "three", "four", "five"),
    "age": ("young", "old"),
    "person": ("men", "women"),
    "colour": ("white", "black", "brown", "grey"),
    "thing": (),  # those of the scene's kind of things
    "where": ("indoors", "outdoors"),
    "when": ("in the morning", "at noon", "in the evening", "at night"),
}
PREMISE_DETAILS = (4, 5)  # how many the premise states, and the hypothesis
HYPOTHESIS_DETAILS = (1, 2, 3)
NEGATED_SHARE = 0.25  # "not outdoors" for "indoors"
PASSIVE_SHARE = 0.25
FRONTED_SHARE = 0.25  # "At noon two men are ..."


def build(rng: np.random.Generator, split: str, num_examples: int) -> list[dict[str, Any]]:
    """Rows `premise, hypothesis, label, planted_error`, a third with each label; no two splits share a premise."""
    labels = [LABELS[i % len(LABELS)] for i in rng.permutation(num_examples)]
    wrong = set(rng.permutation(num_examples)[: round(num_examples * ERROR_SHARE)].tolist())
    rows: list[dict[str, Any]] = []
    seen: set[tuple[str, str]] = set()
    while len(rows) < num_examples:
        label = labels[len(rows)]
        pair = _pair(rng, label)
        # The premise alone decides the split, so no two splits share a premise, whatever their seeds and sizes.
        if zlib.crc32(pair[0].encode()) % 2 != (split == "validation") or pair in seen:
            continue
        seen.add(pair)
        error = ""
        if split == "train" and len(rows) in wrong:
            error = PLANTED_ERRORS[0]
            label = _pick(rng, [other for other in LABELS if other != label])
        rows.append({"premise": pair[0], "hypothesis": pair[1], "label": label, "planted_error": error})
    return rows


def _pair(rng: np.random.Generator, label: str) -> tuple[str, str]:
    """A premise, and a hypothesis that has this label.

    Which details the premise states is a draw of 4 or 5 out of 7, for every label; which the hypothesis states, a draw
    of 1 to 3. Only how the two draws depend on each other makes the label.
    """
    kind = _pick(rng, list(THINGS))
    things, actions = THINGS[kind]
    action = _pick(rng, actions)
    values = VALUES | {"thing": things}
    scene = {detail: _pick(rng, options) for detail, options in values.items()}
    details = [list(VALUES)[i] for i in rng.permutation(len(VALUES))]
    in_premise = _pick(rng, PREMISE_DETAILS)
    stated, unstated = details[:in_premise], details[in_premise:]
    asked = stated[: _pick(rng, HYPOTHESIS_DETAILS)]
    claim = dict(scene)
    if label == "neutral":
        asked[0] = unstated[0]
    elif label == "contradiction":
        claim[asked[0]] = _pick(rng, [value for value in values[asked[0]] if value != scene[asked[0]]])
    premise = _sentence(rng, {detail: scene[detail] for detail in stated}, kind, action)
    return premise, _sentence(rng, {detail: claim[detail] for detail in asked}, kind, action)


def _sentence(rng: np.random.Generator, stated: dict[str, str], kind: str, action: tuple[str, str]) -> str:
    """The details in one sentence; those that are not there are left open."""
    count = stated.get("count", _pick(rng, ("some", "")))
    people = " ".join(filter(None, (count, stated.get("age"), stated.get("person", "people"))))
    things = " ".join(filter(None, (stated.get("colour"), stated.get("thing", kind))))
    where, when = stated.get("where", ""), stated.get("when", "")
    if where and rng.random() < NEGATED_SHARE:
        where = "not " + next(other for other in VALUES["where"] if other != where)
    text = f"{people} are {action[0]} {things}"
    if rng.random() < PASSIVE_SHARE:
        text = f"{things} are being {action[1]} by {people}"
    parts = [text, where, when]
    if rng.random() < FRONTED_SHARE:
        parts = [when, text, where]
    text = " ".join(filter(None, parts))
    return text[0].upper() + text[1:] + "."


def _pick(rng: np.random.Generator, options: Sequence[Any]) -> Any:
    return options[int(rng.integers(len(options)))]
