"""From a dataset to a page that shows what is in it, in one command; started again, it goes on where it stopped.

Reads a dataset. Writes into --output_dir what the scripts of all stages write, report.html, the page, and log.txt, all
that they say: run.py (training with --enable_cartography, then predictions on the training split),
analyze_cartography.py, extract_embeddings.py, cluster_analysis.py, analyze_dataset.py (four times).

    python map_dataset.py --dataset my.jsonl --output_dir my_map
    python map_dataset.py --dataset demo:clinical --output_dir demo_map --model tiny --max_length 128 \\
        --doc_stride 32 --per_device_train_batch_size 16 --no_cuda
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datamap.core.artifacts import sole_writer
from datamap.core.errors import command_line
from datamap.mapping.arguments import parse_args
from datamap.mapping.run import make_map


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    with sole_writer(args.output_dir):
        have, found = make_map(args)
    for name, text in found:
        print(f"{name:<23} {text}")
    if "page" in have:
        page = Path(have["page"]) / "report.html"
        print(f"wrote {page}; open {page.resolve().as_uri()}")
    else:
        print(f"wrote {', '.join(sorted(have))} to {args.output_dir}")


if __name__ == "__main__":
    main()
