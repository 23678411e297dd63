"""What does `make demo` print on different processors? Carries it out with the instructions of older and newer ones.

The libraries under torch choose their kernels by the processor, and sums in another order end in another model. Limits
these kernels to SSE 4, AVX2 and AVX-512. Reads what each run left in demo_output/, and writes
demo_ranges.json, with the smallest and the largest of each figure, to --output_dir.

    python benchmarks/demo_ranges.py
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timing import bench_parser, markdown, report, shown

from datamap.core.errors import UserError, command_line
from datamap.core.files import read_json
from datamap.core.places import CHECKOUT

LIMITS = {
    "SSE 4": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "AVX-512": {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
                "MKL_ENABLE_INSTRUCTIONS": "AVX512"},
}
FIGURES = {  # name -> file, keys
    "exact match": ("trainer_output/eval_metrics.json", "eval_exact_match"),
    "F1": ("trainer_output/eval_metrics.json", "eval_f1"),
    "clusters": ("cluster_output/cluster_metadata.json", "num_clusters"),
    "in no cluster": ("cluster_output/cluster_metadata.json", "noise_fraction"),
    "break 3 or more rules": ("unified_export/overlap_summary.json", "dataset_errors", "n"),
    "errors among as many of the lowest confidence": ("planted_errors/planted_errors.json", "precision_in_lowest"),
    "average precision of suspicion": ("planted_errors/planted_errors.json", "suspicion_precision", "all"),
}


def parse_args(argv: Sequence[str] | None = None) -> Any:
    return bench_parser(__doc__, __file__).parse_args(argv)


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    found: dict[str, list[float]] = {name: [] for name in FIGURES}
    for name, limits in LIMITS.items():
        print(f"make demo with {name}")
        done = subprocess.run(["make", "demo"], cwd=CHECKOUT, env={**os.environ, **limits}, capture_output=True,
                              text=True)
        if done.returncode:
            raise UserError(f"make demo failed: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
        for figure, (file, *keys) in FIGURES.items():
            value: Any = read_json(Path(CHECKOUT, "demo_output", file))
            for key in keys:
                value = value[key]
            found[figure].append(value)
    print(markdown([("", *LIMITS), *((name, *map(shown, values)) for name, values in found.items())]))
    report(args, __file__, {"limits": LIMITS, "found": found,
                            "ranges": {name: [min(values), max(values)] for name, values in found.items()}})


if __name__ == "__main__":
    main()
