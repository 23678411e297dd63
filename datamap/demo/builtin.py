"""The built-in datasets: synthetic, seeded, offline. This module is the list of them; each has a module of its own.

| name | task | what |
|---|---|---|
| `clinical` | qa | questions about clinical notes, a tenth of the answers wrong on purpose (`clinical.py`) |
| `nli` | nli | premise and hypothesis, a tenth of the labels wrong on purpose (`nli.py`) |
| `stories`, `stories_4dir` | classification | yes/no questions about who walks where (`stories.py`) |

Nothing heavy is imported here or there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from datamap.demo import clinical, nli, stories


@dataclass(frozen=True)
class Demo:
    """A built-in dataset: default size of each split, and `build(rng, split, num_examples)`, rows without ids."""

    sizes: dict[str, int]
    build: Callable[[np.random.Generator, str, int], list[dict[str, Any]]]


DEMOS: dict[str, Demo] = {
    "clinical": Demo(clinical.SIZES, clinical.build),
    "nli": Demo(nli.SIZES, nli.build),
    "stories": Demo(stories.SIZES, stories.build),
    "stories_4dir": Demo(stories.SIZES, partial(stories.build, num_directions=4)),
}


def generate(name: str, split: str, seed: int = 42, num_examples: int | None = None) -> list[dict[str, Any]]:
    """Rows of one split, ids included; the same arguments give the same rows on every machine.

    `num_examples` None means the split's own size. Raises ValueError for an unknown name or split, or a negative
    number.
    """
    if name not in DEMOS:
        raise ValueError(f"no built-in dataset {name!r}; there is {', '.join(DEMOS)}")
    demo = DEMOS[name]
    if split not in demo.sizes:
        raise ValueError(f"demo:{name} has no split {split!r}; it has {', '.join(demo.sizes)}")
    size = demo.sizes[split] if num_examples is None else num_examples
    if size < 0:
        raise ValueError(f"num_examples is {size}; it must be 0 or more")
    rng = np.random.default_rng([seed, list(demo.sizes).index(split)])
    rows = demo.build(rng, split, size)
    return [{"id": f"{name}-{split}-{i:05d}", **row} for i, row in enumerate(rows)]
