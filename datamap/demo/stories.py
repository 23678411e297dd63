"""Built-in yes/no story questions: who walks the same way as whom at the end of a made-up story.

"Paul walks south. Helen walks south. Kevin walks north. Paul turns around. Kevin follows Helen." - "Is Kevin following
Paul?" Every actor walks in a direction from the start; the events that follow set it anew. "walks D" sets it to D,
"turns around" reverses it, "A follows B" copies the direction that B has at that moment (later turns of B do not move
A), "A goes in the opposite direction of B" copies the reverse of it. The answer is yes (label 1) exactly when both
asked actors have the same direction at the end. `stories` has the directions north and south, `stories_4dir` has four
and the turns left, right and around (left of north is west).

The column `category` names how densely the actors depend on each other. The events are turns and interactions
(follows, opposite); a category sets the share of interactions, and how often an interaction refers to an actor that
had one before, which makes chains: Kevin follows Helen, who followed Paul. Means over `validB` and `test` of
`stories`; an actor's depth is 0 without an interaction, else 1 more than that of the actor whom its latest one refers
to:

| category | turns per actor | interactions per actor | depth of the deeper asked actor |
|---|---|---|---|
| `simple` | 0.93 | 0.22 | 0.42 |
| `deeper`, about as many interactions as `less_dense` but in longer chains | 0.61 | 0.48 | 0.94 |
| `less_dense` | 0.56 | 0.51 | 0.81 |
| `dense` | 0.46 | 0.60 | 1.02 |
| `superdense` | 0.37 | 0.70 | 1.12 |

Training and validation stories have few actors, `validB` more and `test` most, so that a model can be asked whether
what it learnt on short stories holds for long ones. Every (category, num_actors) slice has as many examples as any
other (or one more), half of them with the answer yes.

Nothing but following the story should tell the answer. Short stories would give it away by counting (one "follows" and
no turn between two actors is always a yes), so stories come in twins: two stories of the same slice with the same
number of sentences of each kind, in another order and with other actors, one with the answer yes and one with no.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from datamap.demo.draws import pick, shuffled

NAMES = (
    "Alice", "Andrew", "Anna", "Betty", "Bob", "Brian", "Carol", "Charles", "Christopher", "Daniel", "Donna",
    "Dorothy", "Edward", "Emily", "George", "Helen", "James", "Jason", "Karen", "Kevin", "Laura", "Linda", "Lisa",
    "Matthew", "Michael", "Nancy", "Patricia", "Paul", "Peter", "Richard", "Ruth", "Sandra", "Sarah", "Steven",
    "Susan", "Thomas",
)
SIZES = {"train": 5000, "validation": 700, "validB": 1200, "test": 1000}
NUM_ACTORS = {"train": (2, 8), "validation": (2, 8), "validB": (9, 20), "test": (21, 30)}  # fewest, most

# A direction is a number of quarter turns to the right from north; a turn adds to it, modulo 4.
DIRECTIONS = ("north", "east", "south", "west")
AROUND = 2
# Sentence of each kind of event; a turn says in TURNS what it adds.
EVENTS = {
    "around": "{actor} turns around.",
    "left": "{actor} turns left.",
    "right": "{actor} turns right.",
    "follows": "{actor} follows {other}.",
    "opposite": "{actor} goes in the opposite direction of {other}.",
}
TURNS = {"around": AROUND, "left": 3, "right": 1}
INTERACTIONS = {"follows": 0, "opposite": AROUND}
TRIES = 30  # stories drawn for one label before the plan counts as one that allows no such answer


# Share of the interactions among the events, and how often one must refer to an actor that had one before.
DENSITIES = {"simple": 0.19, "deeper": 0.44, "less_dense": 0.48, "dense": 0.55, "superdense": 0.65}
CHAINED = {"deeper": 0.3}


def build(rng: np.random.Generator, split: str, num_examples: int, num_directions: int = 2) -> list[dict[str, Any]]:
    """Rows `story, question, label, category, num_actors, num_sentences`, in random order; `label` 1 means yes."""
    fewest, most = NUM_ACTORS[split]
    slices = [(category, num) for category in DENSITIES for num in range(fewest, most + 1)]
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    odd = 0
    for place, which in enumerate(rng.permutation(len(slices))):
        category, num_actors = slices[which]
        size = num_examples // len(slices) + (place < num_examples % len(slices))
        labels = [0, 1] * (size // 2)
        if size % 2:  # the odd ones of all slices take turns
            labels.append(odd % 2)
            odd += 1
        for start in range(0, size, 2):
            twins = _twins(rng, category, num_actors, num_directions, split == "validation", seen)
            rows += [twins[label] for label in labels[start : start + 2]]
    return shuffled(rng, rows)


def _twins(
    rng: np.random.Generator, category: str, num_actors: int, num_directions: int, held_out: bool, seen: set[str]
) -> list[dict[str, Any]]:
    """Two rows with the same number of events of each kind: the first has the answer no, the second yes."""
    while True:
        plan = _plan(rng, category, num_actors, num_directions)
        twins: list[dict[str, Any]] = []
        for label in (0, 1):
            for _ in range(TRIES):
                text, actors = _story(rng, plan, category, num_actors, num_directions)
                # The text alone decides between training and validation, so that the two share no story, whatever
                # their seeds and sizes; the other splits have other numbers of actors.
                if zlib.crc32(text.encode()) % 2 != held_out or text in seen:
                    continue
                pairs = [(a, b) for a in actors for b in actors if a != b and (actors[a] == actors[b]) == label]
                if not pairs:
                    continue
                one, other = pick(rng, pairs)
                seen.add(text)
                twins.append({
                    "story": text, "question": f"Is {one} following {other}?", "label": label, "category": category,
                    "num_actors": num_actors, "num_sentences": num_actors + len(plan),
                })
                break
        if len(twins) == 2:
            return twins


def _plan(rng: np.random.Generator, category: str, num_actors: int, num_directions: int) -> list[str]:
    """Kinds of the events of a story, 2 to 2 * num_actors of them."""
    turns = ("around",) if num_directions == 2 else tuple(TURNS)
    return [
        pick(rng, tuple(INTERACTIONS) if rng.random() < DENSITIES[category] else turns)
        for _ in range(int(rng.integers(2, 2 * num_actors + 1)))
    ]


def _story(
    rng: np.random.Generator, plan: list[str], category: str, num_actors: int, num_directions: int
) -> tuple[str, dict[str, int]]:
    """A story with the events of the plan in random order, and of each actor the direction at its end."""
    names = shuffled(rng, NAMES)[:num_actors]
    step = len(DIRECTIONS) // num_directions
    directions = [int(quarter) * step for quarter in rng.integers(num_directions, size=num_actors)]
    sentences = [f"{name} walks {DIRECTIONS[direction]}." for name, direction in zip(names, directions, strict=True)]
    linked: list[int] = []  # actors that have had an interaction, each once
    for kind in shuffled(rng, plan):
        actor = other = int(rng.integers(num_actors))
        if kind in TURNS:
            directions[actor] = (directions[actor] + TURNS[kind]) % len(DIRECTIONS)
        else:
            others = [i for i in range(num_actors) if i != actor]
            chained = [i for i in linked if i != actor]
            if chained and rng.random() < CHAINED.get(category, 0):
                others = chained
            other = pick(rng, others)
            directions[actor] = (directions[other] + INTERACTIONS[kind]) % len(DIRECTIONS)
            if actor not in linked:
                linked.append(actor)
        sentences.append(EVENTS[kind].format(actor=names[actor], other=names[other]))
    return " ".join(sentences), dict(zip(names, directions, strict=True))
