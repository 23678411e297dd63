"""How often the 95 % interval of a judge's leaning by position leaves out the truth, for judges that are made up.

Reads nothing. Draws answers of judges to pairs of chains in both orders, and asks datamap.thoughts.statistics for the
interval; beside it Wilson's, which takes the two answers to a pair as independent. Writes bench_position.csv and
bench_position.json and prints a Markdown table.

    python benchmarks/bench_position.py
    python benchmarks/bench_position.py --repetitions 200 --output_dir ./bench_position
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from timing import bench_parser, markdown, report

from datamap.core.errors import command_line
from datamap.core.files import write_csv
from datamap.core.flags import DEFAULT_SEED, positive_int
from datamap.core.intervals import wilson_interval
from datamap.thoughts.statistics import FIRST, SECOND, position_report

SIZES = (10, 20, 50, 200)  # pairs
ANSWERS = np.array(["A", "B", "tie"])


def whims(rng: np.random.Generator, shape: tuple[int, int], first: float, ties: float = 0.0) -> np.ndarray:
    """One place wins in both orders, the first with chance ``first``; each answer is a tie with chance ``ties``."""
    answers = np.repeat(np.where(rng.random(shape) < first, 0, 1)[..., None], 2, axis=2)
    return np.where(rng.random(answers.shape) < ties, 2, answers)


def content(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """The same chain wins in both orders in half of the pairs, and the same place in the others."""
    better = rng.integers(0, 2, shape)
    by_content = np.stack([better, 1 - better], axis=2)
    return np.where((rng.random(shape) < 0.5)[..., None], by_content, whims(rng, shape, 0.5))


# What draws (repetitions, pairs, 2) of ANSWERS, and the share of answers that prefer the first shown.
JUDGES: dict[str, tuple[Callable[[np.random.Generator, tuple[int, int]], np.ndarray], float]] = {
    "a coin for every answer": (lambda rng, shape: rng.integers(0, 2, (*shape, 2)), 0.5),
    "a coin for every pair: one place wins twice": (lambda rng, shape: whims(rng, shape, 0.5), 0.5),
    "the same, 30 % ties": (lambda rng, shape: whims(rng, shape, 0.5, ties=0.3), 0.5),
    "half by content, half so": (content, 0.5),
    "the first shown wins twice in 80 % of the pairs": (lambda rng, shape: whims(rng, shape, 0.8), 0.8),
}


def intervals(answers: np.ndarray) -> list[tuple[float, ...]]:
    """Per repetition the ends over pairs and those over answers; no row for one of ties alone."""
    found: list[tuple[float, ...]] = []
    for drawn in ANSWERS[answers]:
        told = position_report({(str(pair), order): str(answer) for pair, both in enumerate(drawn)
                                for order, answer in zip((FIRST, SECOND), both, strict=True)})
        if told["low"] is not None:
            decided = told["n_answers"] - told["n_ties"]
            found.append((told["low"], told["high"], *wilson_interval(round(told["first_share"] * decided), decided)))
    return found


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    parser = bench_parser(__doc__, __file__)
    parser.add_argument("--repetitions", type=positive_int, default=2000, metavar="N", help="judges a cell")
    args = parser.parse_args(argv)
    rng = np.random.default_rng(DEFAULT_SEED)
    rows = []
    for name, (draw, truth) in JUDGES.items():
        for pairs in SIZES:
            ends = np.array(intervals(draw(rng, (args.repetitions, pairs))))
            row: dict[str, Any] = {"judge": name, "pairs": pairs, "repetitions": len(ends)}
            for kind, low, high in (("pairs", *ends[:, :2].T), ("answers", *ends[:, 2:].T)):
                row[f"outside_over_{kind}"] = float(((low > truth) | (high < truth)).mean())
                row[f"width_over_{kind}"] = float((high - low).mean())
            rows.append(row)
    report(args, __file__, {"rows": rows})
    write_csv(Path(args.output_dir, "bench_position.csv"), pd.DataFrame(rows))
    head = ["judge", "pairs", "outside %, over pairs", "over answers", "width, over pairs", "over answers"]
    print(markdown([head, *(
        [row["judge"], row["pairs"], *(f"{100 * row[f'outside_over_{kind}']:.1f}" for kind in ("pairs", "answers")),
         *(f"{row[f'width_over_{kind}']:.2f}" for kind in ("pairs", "answers"))] for row in rows)]))


if __name__ == "__main__":
    main()
