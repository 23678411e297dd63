"""By how much soft weights move the learning rate where long documents vary more, or less, than short ones.

Reads nothing; draws the variability of examples of one and of several windows. Writes bench_weights.json and prints a
Markdown table: the mean weight over the windows of an epoch, which multiplies the learning rate, with weights that are
1 on average over examples and with ours, which are so over windows.

    python benchmarks/bench_weights.py
    python benchmarks/bench_weights.py --examples 200 --windows 3
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
from timing import bench_parser, markdown, report, shown

from datamap.core.errors import command_line
from datamap.core.flags import DEFAULT_SEED, ListOf, fraction, positive_int

VARIABILITY = {"much less": (0.3, 0.05), "less": (0.3, 0.15), "as much": (0.2, 0.2), "more": (0.15, 0.3),
               "much more": (0.05, 0.3)}  # of short examples, of long ones


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = bench_parser(__doc__, __file__)
    parser.add_argument("--examples", type=positive_int, default=2000, help="short and long ones")
    parser.add_argument("--long", type=fraction, default=0.5, help="share of long examples, 0..1")
    parser.add_argument("--windows", type=ListOf(positive_int), default=[3, 12], help="of a long example")
    return parser.parse_args(argv)


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    from datamap.training.trainer import weights_of

    rng = np.random.default_rng(DEFAULT_SEED)
    found = []
    for many in args.windows:
        is_long = rng.permutation(args.examples) < args.long * args.examples
        windows = np.where(is_long, many, 1)
        for word, means in VARIABILITY.items():
            variability = np.clip(np.where(is_long, means[1], means[0]) * rng.gamma(4, 0.25, args.examples), 0, 0.5)
            scales = [float(np.repeat(weights_of(variability, 0.1, 10.0, over), windows).mean())
                      for over in (None, windows)]
            found.append({"windows": many, "long_vary": word, "over_examples": scales[0], "over_windows": scales[1]})
    head = ("windows of a short and a long text", "the long vary", "learning rate times, over examples",
            "over windows")
    rows = [(f"1 and {each['windows']}", each["long_vary"], shown(each["over_examples"]), shown(each["over_windows"]))
            for each in found]
    print(markdown([head, *rows]))
    report(args, __file__, {"scales": found})


if __name__ == "__main__":
    main()
