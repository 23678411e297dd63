"""Join cartography, clusters and error rules: which clusters are hard, where errors gather, what is wrong.

Reads cartography_metrics.csv (run.py --enable_cartography) and cluster_assignments.csv (cluster_analysis.py). Writes
category_cluster_overlap.csv, cluster_difficulty.csv, cluster_map.csv, patterns.json and pictures, and with
--predictions wrong_answers.csv (of labels misclassified.csv) and error_counts.csv, how often which kind of error is
where; with --export_unified instead unified_analysis.csv (one row per example of the split) and overlap_summary.json.
The error rules are for question answering; for classification and NLI the table goes without them. With --error_rules
it writes only what they flag in a dataset alone. With --find_errors it writes
only suspects.csv, every example with its suspicion and reasons, the most suspicious first, for a person to decide on;
dataset_filters.py --decisions takes it from there. With --report it writes only report.html, all of this as one page
to look at and to decide on in a browser, and duplicates.csv and leaks.csv, the copies within the split and in others.

    python analyze_dataset.py --cartography_dir ./cartography_output --cluster_dir ./cluster_output
    python analyze_dataset.py --export_unified --predictions ./train_predictions/eval_predictions.jsonl
    python analyze_dataset.py --find_errors --cartography_dir ./cartography_output --output_dir ./suspects
    python analyze_dataset.py --report --cartography_dir ./cartography_output --output_dir ./report
"""

from __future__ import annotations

import argparse
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamap.analysis.clusters import axes_of, cluster_name, load_clusters
from datamap.analysis.error_rules import ERROR_SCORE, RULE_WEIGHTS, RULES, rule_counts, silent_rules
from datamap.cartography.maps import METRICS_FILE, load_map, means_nothing
from datamap.core.artifacts import (
    artifact_file,
    check_not_read,
    check_same_dataset,
    recorded_dataset,
    recorded_split,
    recorded_task,
    stage,
)
from datamap.core.errors import UserError, command_line
from datamap.core.files import write_csv, write_either, write_json
from datamap.core.flags import ALLOW_CHANGED, DEFAULT_DATASET, Parser, positive_int
from datamap.core.parquet import add_artifact_format, format_of
from datamap.core.plots import add_plot_format, dataset_label, picture_files
from datamap.core.progress import Progress
from datamap.core.splits import load_split
from datamap.core.tables import console_table, safe_to_open
from datamap.tasks.registry import add_task_flags, task_of

if TYPE_CHECKING:
    import pandas as pd

    from datamap.core.splits import Split
    from datamap.detection.suspects import Judge

OWNS = (
    "category_cluster_overlap.csv", "cluster_difficulty.csv", "cluster_map.csv", "patterns.json",
    "unified_analysis.csv", "unified_analysis.parquet", "overlap_summary.json", "wrong_answers.csv",
    "misclassified.csv", "error_counts.csv",
    *picture_files("category_by_cluster", "cluster_difficulty", "cluster_map_by_category"),
)
RULE_FILES = ("flagged_examples.csv", "rule_counts.csv")
ROWS_PRINTED = 20

logger = logging.getLogger(__name__)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("Join cartography, clusters and error rules: difficulty per cluster, patterns, one table.")
    group = parser.add_argument_group("what is read")
    group.add_argument("--cartography_dir", default="./cartography_output", help="written by run.py")
    group.add_argument("--cluster_dir", help="written by cluster_analysis.py (default: ./cluster_output; with "
                       "--find_errors and --report none)")
    group.add_argument("--embedding_dir", help="written by extract_embeddings.py, for --find_errors and --report "
                       "(default: none)")
    group.add_argument("--dataset", help="dataset with the texts (default: the one recorded in the artifacts)")
    group.add_argument("--split", help="its split (default: the one recorded in the artifacts, else train)")
    add_task_flags(group)
    group.add_argument("--max_samples", type=positive_int, metavar="N",
                       help="the first N rows of it (default: those that the map was made from)")
    group.add_argument("--predictions", metavar="FILE",
                       help="eval_predictions.jsonl of run.py --do_eval on this split, or its directory: what is "
                            "wrong in it, by category, cluster and question type or label; with --export_unified a "
                            "column, and what rules 4 and 8 need (--error_rules too); with --find_errors and "
                            "--report it is evidence")
    group.add_argument("--decisions", metavar="FILE", help="suspects.csv with some decisions filled in: --find_errors "
                       "ranks what is left by what they teach, --report begins with them")
    group.add_argument("--comparison_dir", metavar="DIR", help="written by dataset_cartography.py --compare: a third "
                       "picture of --report shows where the examples lie in the second map")
    group.add_switch("--allow_changed", help=ALLOW_CHANGED)
    group = parser.add_argument_group("a chat model as a judge, for --find_errors (the key: OPENAI_API_KEY)")
    group.add_argument("--judge_top", type=positive_int, metavar="N",
                       help="ask it about the N most suspicious examples, one request each (default: it is not asked)")
    group.add_argument("--judge_model", metavar="NAME", help="as the server calls it")
    group.add_argument("--base_url", metavar="URL", help="such as http://localhost:8000/v1 (default: OpenAI's)")
    group = parser.add_argument_group("what is written")
    group.add_switch("--export_unified", help="write unified_analysis.csv, one table of all examples, and "
                     "overlap_summary.json instead")
    add_artifact_format(group, "form of that table")
    group.add_switch("--find_errors", help="write suspects.csv instead: every example, the most suspicious first")
    group.add_switch("--error_rules", help="write flagged_examples.csv, what the nine rules flag in --dataset, and "
                     "rule_counts.csv instead; it takes neither map nor clusters")
    group.add_argument("--rule_weights", choices=list(RULE_WEIGHTS), default="equal",
                       help="the error score of --error_rules and --export_unified: rules that fire, or the evidence "
                            "that each was measured to be, in bits (default: %(default)s)")
    group.add_switch("--report", help="write report.html instead: maps, table, review and overview in one page")
    group.add_argument("--report_max_points", type=positive_int, metavar="N", help="above so many examples a random N "
                       "of them are on the page, and all suspects (default: 20,000)")
    group.add_switch("--list_detectors", help="only list the detectors of wrong examples: range, which end is "
                     "suspicious, cost, what each needs, paper")
    group.add_argument("--output_dir", help="where the files go (default: ./integrated_analysis; with "
                       "--export_unified ./unified_export; with --find_errors ./suspects; with --report ./report; "
                       "with --error_rules ./error_rules)")
    add_plot_format(group)
    args = parser.parse_args(argv)
    asked = [flag for flag in ("export_unified", "find_errors", "report", "error_rules") if getattr(args, flag)]
    if len(asked) > 1:
        parser.error(f"--{asked[0]} and --{asked[1]} write different files; run one after the other")
    for flag in ("embedding_dir", "decisions", "judge_top", "judge_model", "base_url"):
        if getattr(args, flag) and not (args.find_errors or args.report and flag in ("embedding_dir", "decisions")):
            parser.error(f"--{flag} is for --find_errors; add it")
    for flag in ("report_max_points", "comparison_dir"):
        if getattr(args, flag) and not args.report:
            parser.error(f"--{flag} is for --report; add it")
    if format_of(args) and not args.export_unified:
        parser.error("--artifact_format is for --export_unified; add it")
    if args.rule_weights != "equal" and not (args.error_rules or args.export_unified):
        parser.error("--rule_weights is for --error_rules and --export_unified; add one of them")
    if bool(args.judge_top) != bool(args.judge_model):
        parser.error("--judge_top and --judge_model belong together: how many examples, and which chat model is asked")
    if args.base_url and not args.judge_top:
        parser.error("--base_url is where a judge is asked; add --judge_top and --judge_model")
    if args.base_url:
        from datamap.thoughts.chat_client import server_address

        server_address(args.base_url)
    if not (args.find_errors or args.report or args.error_rules):
        args.cluster_dir = args.cluster_dir or "./cluster_output"
    defaults = {"export_unified": "./unified_export", "find_errors": "./suspects", "report": "./report",
                "error_rules": "./error_rules"}
    args.output_dir = args.output_dir or (defaults[asked[0]] if asked else "./integrated_analysis")
    return args


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.list_detectors:
        from datamap.detection.base import described

        return print(described())
    if args.find_errors:
        return find_errors(args)
    if args.report:
        return report(args)
    if args.error_rules:
        return error_rules(args)
    return integrate(args)


def integrate(args: argparse.Namespace) -> None:
    """Map and clusters, with the texts where they are known: tables and pictures, or one table (--export_unified)."""
    import pandas as pd

    from datamap.analysis import integrated
    from datamap.analysis.map_summary import printed_groups
    from datamap.analysis.unified_table import predictions_of, summarize_overlap, unified_table

    check_not_read(args.output_dir, args.cartography_dir, args.cluster_dir)
    metrics, thresholds = load_map(args.cartography_dir)
    clusters = load_clusters(args.cluster_dir)
    sources = {"cartography": Path(args.cartography_dir), "clusters": Path(args.cluster_dir)}
    recorded = [source for source in sources.values() if recorded_dataset(source)]
    task = task_of(args, recorded_task(*sources.values()))
    if args.rule_weights != "equal" and not task.has_error_rules:
        raise UserError("--rule_weights: the error rules are for extractive question answering; this is --task "
                        f"{task.name}")
    made_from = recorded[0] if recorded else sources["cartography"]
    split = recorded_split(made_from, args.dataset, args.split, task, args.max_samples)
    predictions = None
    if split is not None:
        split.allow_changed = args.allow_changed
        metrics = metrics.drop(list(check_same_dataset(sources["cartography"], metrics.index, split)))
        clusters = clusters.drop(list(check_same_dataset(sources["clusters"], clusters.index, split)))
        if args.predictions:
            predictions = predictions_of(args.predictions, split)
    elif args.export_unified or args.predictions:
        flag = "export_unified" if args.export_unified else "predictions"
        raise UserError(f"the artifacts record no dataset; --{flag} needs its texts: name it with --dataset")
    else:
        logger.info("the artifacts record no dataset and --dataset names none: no question types or labels in "
                    "patterns.json")

    frame, by = metrics.join(clusters, how="inner"), None
    if split is not None:
        rows = pd.Index(split.ids, dtype="str").get_indexer(frame.index)
        by, groups = split.task.groups(split.data)
        frame = frame[rows >= 0].assign(**{by: [groups[row] for row in rows[rows >= 0].tolist()]})
    if frame.empty:
        raise UserError(f"{args.cartography_dir} and {args.cluster_dir} share no ids; make both from one dataset")

    name = dataset_label(split.name, split.split) if split else args.cartography_dir
    cuts = f"cuts: confidence {thresholds[0]:.3g}, variability {thresholds[1]:.3g}"
    caption = f"{name}, n = {len(frame):,} with metrics and cluster; {cuts}"
    caption += means_nothing(args.cartography_dir, metrics)
    tables: dict[str, pd.DataFrame] = {}
    told = ""
    if split is not None and predictions is not None and not args.export_unified:
        tables, told = mistakes(split, unified_table(split, metrics, clusters, predictions), predictions)
    inputs = {**sources, "predictions": args.predictions}
    with stage(args.output_dir, args, owns=OWNS, inputs=inputs, datasets=[split and split.identity()]) as path:
        difficulty = integrated.difficulty_table(frame)
        patterns = integrated.find_patterns(frame, thresholds, by)
        summary = None
        if not args.export_unified:
            points = frame.reset_index()[["id", "dim1", "dim2", "cluster", "category"]]
            write_csv(path / "category_cluster_overlap.csv", integrated.overlap_table(frame))
            write_csv(path / "cluster_difficulty.csv", difficulty)
            write_csv(path / "cluster_map.csv", points)
            write_json(path / "patterns.json", patterns)
            integrated.plot_category_by_cluster(path / "category_by_cluster.png", difficulty, caption)
            integrated.plot_difficulty(path / "cluster_difficulty.png", difficulty, patterns["overall"], caption)
            integrated.plot_map(path / "cluster_map_by_category.png", points, caption, axes_of(args.cluster_dir))
            for file, table in tables.items():
                write_csv(path / file, table)
        elif split is not None:
            del frame  # which takes as much room as the table that is made now
            unified = unified_table(split, metrics, clusters, predictions, args.rule_weights)
            num_predicted = None if predictions is None else sum(each is not None for each in predictions)
            summary = summarize_overlap(unified, num_predicted)
            table_file = write_either(path / "unified_analysis.csv", unified, format_of(args))
            write_json(path / "overlap_summary.json", summary)

    print(caption)
    print(printed_groups(difficulty, "cluster", ROWS_PRINTED, cluster_name))
    if patterns["category_cluster_association"]:
        strength = patterns["category_cluster_association"]["cramers_v"]
        print(f"association of category and cluster: Cramer's V {strength:.2f} (0 none, 1 full)")
    if summary and "dataset_errors" in summary:
        errors, regions = summary["dataset_errors"], summary["high_overlap_regions"]
        print(f"{errors['n']:,} of {len(unified):,} examples {called_errors(args)} ({errors['share']:.1%}); "
              f"{len(regions)} high-overlap regions")
        print(silent_rules(unified))
    if told:
        print(told)
    print(f"wrote {f'{table_file} and overlap_summary.json' if summary else 'tables and pictures'} to {path}")


def mistakes(split: Split, unified: pd.DataFrame, predictions: Sequence[Any]) -> tuple[dict[str, pd.DataFrame], str]:
    """What the predictions get wrong, by the rows of the joined table, and how often where: tables by the names of
    their files, and what is said of them."""
    from datamap.analysis.model_errors import errors_by_region
    from datamap.tasks.error_counts import error_counts, tidy_error_counts
    from datamap.tasks.span_errors import NONE

    table, by = errors_by_region(split, unified, predictions)
    file = "wrong_answers.csv" if split.task.has_error_rules else "misclassified.csv"
    wrong = unified[unified["id"].isin(table["id"][table["error"] != NONE])]
    tables = {file: safe_to_open(wrong), "error_counts.csv": tidy_error_counts(table, ["category", "cluster", by])}
    known = table[table["category"].notna()]
    counts = error_counts(known, "category").reset_index()
    told = (f"{len(wrong):,} of {len(table):,} predictions are wrong ({', '.join(tables)}); by category, of the "
            f"{len(known):,} that the map knows:")
    return tables, "\n".join([told, console_table(counts, dict.fromkeys(counts.columns[1:], ",d"))])


def error_rules(args: argparse.Namespace) -> None:
    """The nine rules on a dataset alone."""
    import pandas as pd

    from datamap.analysis.unified_table import predictions_of, unified_table

    given = [args.predictions] * bool(args.predictions)
    task = task_of(args, recorded_task(*given))
    if not task.has_error_rules:
        raise UserError(f"the error rules are for extractive question answering; this is --task {task.name}")
    known = [recorded_split(each, args.dataset, args.split, task, args.max_samples) for each in given]
    split = next(filter(None, known), None) or load_split(
        args.dataset or DEFAULT_DATASET, args.split or "train", task, args.max_samples)
    split.allow_changed = args.allow_changed
    predictions = predictions_of(args.predictions, split) if args.predictions else None
    nothing = pd.DataFrame(index=pd.Index([], name="id"))
    table = unified_table(split, nothing, nothing, predictions, args.rule_weights)
    by, groups = split.task.groups(split.data)
    counts = rule_counts(table, {by: groups})
    ranked = table.sort_values("dataset_error_score", ascending=False, kind="stable")
    flagged = ranked[ranked[list(RULES)].any(axis=1)]
    check_not_read(args.output_dir, *given, *([split.name] if Path(split.name).exists() else []))
    with stage(args.output_dir, args, owns=RULE_FILES, inputs={"predictions": args.predictions},
               datasets=[split]) as path:
        write_csv(path / RULE_FILES[0], safe_to_open(flagged))
        write_csv(path / RULE_FILES[1], counts)
    whole = counts[counts["by"] == "all"]
    print(dataset_label(split.name, split.split) + f", n = {len(table):,}")
    print(console_table(whole[["rule", "flagged", "n", "share"]], {"flagged": ",d", "n": ",d", "share": ".1%"}))
    print(f"{len(flagged):,} of {len(table):,} examples break at least one of {len(RULES)} rules, "
          f"{int(table['is_dataset_error'].sum()):,} {called_errors(args).removeprefix('break ')}")
    print(silent_rules(table))
    print(f"wrote {' and '.join(RULE_FILES)} to {path}")


def called_errors(args: argparse.Namespace) -> str:
    """What is_dataset_error means."""
    if args.rule_weights == "equal":
        return f"break at least {ERROR_SCORE} rules"
    return f"have at least {ERROR_SCORE} bits of evidence"


def find_errors(args: argparse.Namespace) -> None:
    from datamap.core.tables import write_for_spreadsheet
    from datamap.detection.decisions import SUSPECTS_FILE, check_not_edited
    from datamap.detection.suspects import find_suspects, printed_suspects

    check_not_edited(args.output_dir)
    split, given = read_for(args, "--find_errors")
    table, said = find_suspects(
        split, args.cartography_dir, embedding_dir=args.embedding_dir, cluster_dir=args.cluster_dir,
        predictions=args.predictions, decisions=args.decisions, judge=judge_of(args),
    )
    with stage(args.output_dir, args, owns=(SUSPECTS_FILE,), inputs=given, datasets=[split]) as path:
        write_for_spreadsheet(path / SUSPECTS_FILE, table)
    print(printed_suspects(table, ROWS_PRINTED))
    for line in said:
        print(line)
    print(f"wrote {SUSPECTS_FILE}, {len(table):,} examples, to {path}; fill in its column decision (keep, drop, fix), "
          f"then dataset_filters.py --decisions {path / SUSPECTS_FILE}")


def report(args: argparse.Namespace) -> None:
    from datamap.detection.known import known_of
    from datamap.report.page import MAX_POINTS, OF_TEXTS, REPORT_FILE, REPORT_FILES, gather, write_report

    split, given = read_for(args, "--report")
    with Progress("page", 2, "steps") as progress:
        known = known_of(split, args.cartography_dir, embedding_dir=args.embedding_dir, cluster_dir=args.cluster_dir,
                         predictions=args.predictions, ahead=OF_TEXTS)
        progress.advance()
        found = gather(known, decisions=args.decisions, max_points=args.report_max_points or MAX_POINTS,
                       comparison_dir=args.comparison_dir)
        progress.advance()
    with stage(args.output_dir, args, owns=REPORT_FILES, inputs=given, datasets=[split]) as path:
        write_report(path, found)
    size = (path / REPORT_FILE).stat().st_size / 1e6
    print(f"{found.shown:,} of {len(split.data):,} examples are on the page, {size:.1f} MB")
    print(f"wrote {path / REPORT_FILE}; open {(path / REPORT_FILE).resolve().as_uri()}")


def read_for(args: argparse.Namespace, flag: str) -> tuple[Split, dict[str, str]]:
    """The split whose texts ``flag`` shows, and the artifacts that are given, by what they are."""
    sources = {"cartography": args.cartography_dir, "embeddings": args.embedding_dir, "clusters": args.cluster_dir,
               "predictions": args.predictions, "decisions": args.decisions, "comparison": args.comparison_dir}
    given = {label: path for label, path in sources.items() if path}
    check_not_read(args.output_dir, *given.values())
    artifact_file(args.cartography_dir, METRICS_FILE, "run.py --do_train --enable_cartography")
    task = task_of(args, recorded_task(*given.values()))
    split = recorded_split(args.cartography_dir, args.dataset, args.split, task, args.max_samples)
    if split is None:
        raise UserError(f"{args.cartography_dir} records no dataset; {flag} shows its texts: name it with --dataset")
    split.allow_changed = args.allow_changed
    return split, given


def judge_of(args: argparse.Namespace) -> Judge | None:
    """Who is asked about the most suspicious examples; its answers are kept in --output_dir."""
    if not args.judge_top:
        return None
    from datamap.thoughts.error_judge import judge_errors

    return functools.partial(judge_errors, top=args.judge_top, directory=args.output_dir, model=args.judge_model,
                             base_url=args.base_url)


if __name__ == "__main__":
    main()
