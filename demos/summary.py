"""What a pipeline found, in a few lines, and where its pictures and tables are; make demo and make map end with it.

Reads a directory that holds the outputs of the stages under their usual names. Prints, and writes nothing.

    python demos/summary.py demo_output
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the modules beside this folder, installed or not

from datamap.core.artifacts import artifact_file
from datamap.core.errors import UserError, command_line
from datamap.core.files import read_json
from datamap.core.flags import Parser


def findings(directory: Path) -> Iterator[tuple[str, str]]:
    """What each stage found, as (name, text), of the stages that ran."""
    for name, title in (("trainer_output", "evaluation"), ("retrained", "evaluation, retrained")):
        for file in sorted((directory / name).glob("eval_metrics*.json")):  # several where there are several splits
            split = file.stem.removeprefix("eval_metrics").replace("_", " ", 1)
            yield title + split, quality(read_json(artifact_file(file, file.name, "run.py --do_eval")))
    if (directory / "cartography_output").exists():
        from datamap.cartography.categories import counted
        from datamap.cartography.maps import load_map

        frame, cuts = load_map(directory / "cartography_output")
        yield "data map", f"{len(frame):,} examples: {counted(frame, cuts)}"
    if (directory / "cluster_output").exists():
        found = read_json(artifact_file(directory / "cluster_output", "cluster_metadata.json", "cluster_analysis.py"))
        yield "clusters", f"{found['num_clusters']}, and {found['noise_fraction']:.1%} of the examples in none"
    if (directory / "unified_export").exists():
        maker = "analyze_dataset.py --export_unified"
        found = read_json(artifact_file(directory / "unified_export", "overlap_summary.json", maker))
        if "dataset_errors" in found:
            yield "error rules", f"{found['dataset_errors']['n']:,} of {found['total_examples']:,} break 3 or more"
        else:  # the rules are for question answering
            both = found["coverage"]["cartography_and_clusters"]["n"]
            yield "unified table", f"{found['total_examples']:,} examples, {both:,} with metrics and cluster"


def quality(metrics: Mapping[str, float]) -> str:
    if "eval_exact_match" in metrics:
        return f"exact match {metrics['eval_exact_match']:.1f}, F1 {metrics['eval_f1']:.1f}"
    baseline = f"majority baseline {metrics['eval_majority_baseline']:.1%}"
    return f"accuracy {metrics['eval_accuracy']:.1%} ({baseline}), macro F1 {metrics['eval_f1']:.3f}"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("What a pipeline found, and where its pictures and tables are.")
    parser.add_argument("directory", help="holds trainer_output, cartography_output and so on")
    return parser.parse_args(argv)


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    directory = Path(args.directory)
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory; make demo or make map write one")
    for name, text in findings(directory):
        print(f"{name:<23} {text}")
    for title, pattern in (("pictures", "*/*.png"), ("tables", "*/*.csv")):
        print(f"{title}:")
        for file in sorted(directory.glob(pattern)):
            print(f"  {file}")


if __name__ == "__main__":
    main()
