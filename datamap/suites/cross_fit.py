"""The K trainings of ``run.py --cross_fit K``, each without its fold, and what they say of it as one table.

A fold's training is an ordinary run of run.py with ``--fold``, carried out as those of a suite are: a finished one is
not done again, an interrupted one goes on from its checkpoint. They lie in ``folds/`` of --output_dir until all is
written.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from datamap.core.configs import flags_to_argv
from datamap.core.errors import UserError
from datamap.core.files import read_table
from datamap.core.progress import Progress
from datamap.detection.out_of_fold import OUT_OF_FOLD_FILE
from datamap.suites.definition import settings_hash
from datamap.suites.runner import Outcome, execute, run_locally
from datamap.suites.runs import FINISHED, LOG, Run, identity_of, run_name, state_of
from datamap.training.arguments import build_parser, inputs_of, parse_args
from datamap.training.checkpoints import has_whole_checkpoint
from datamap.training.data import RunData

if TYPE_CHECKING:
    import pandas as pd

FOLDS = "folds"
# What the folds do without, or decide by themselves. Their dataset is the one that was loaded.
NOT_OF_FOLDS = {
    "config", "output_dir", "cartography_output_dir", "overwrite", "resume_from_checkpoint", "dataset", "do_eval",
    "eval_split", "eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "eval_ablations", "max_eval_samples",
    "slice_by", "cluster_by", "keep_top_epochs", "load_best_model_at_end", "metric_for_best_model",
    "greater_is_better", "filter_validation", "map_split", "validation_cartography_output_dir",
    "validation_cluster_assignments_path", "cross_fit_workers", "save_strategy", "save_steps", "save_total_limit",
    "save_only_model", "push_to_hub", "report_to", "run_name",
}
PLANTED = "plant_"  # flags of errors that stand in the dataset by now

logger = logging.getLogger(__name__)


def train_folds(args: argparse.Namespace, data: RunData) -> list[Run]:
    """Train what is not trained yet; the runs in the order of their folds.

    UserError where a fold fails, or where folds of an unfinished run with other settings lie there.
    """
    runs = _runs(args, data)
    _make_room(args, runs)
    workers = getattr(args, "cross_fit_workers", 1)
    logger.info(f"{len(runs)} folds of {len(data.folds):,} examples, {min(workers, len(runs))} at a time, into "  # type: ignore[arg-type]
                f"{runs[0].directory.parent}")
    with Progress("folds", len(runs), "folds") as progress:
        for run, outcome in _carried_out(runs, workers):
            if outcome.state != FINISHED:
                why = outcome.error or "another process is at it"
                raise UserError(f"{run.experiment} is {outcome.state} ({why}); see {run.directory / LOG}, and start "
                                "the same command again: finished folds are kept")
            logger.info(f"{run.experiment} of {len(runs)}: " + (f"trained in {outcome.seconds:.0f} s"
                                                                if outcome.seconds else "was trained before"))
            progress.advance()
    return runs


def _carried_out(runs: Sequence[Run], workers: int) -> Iterator[tuple[Run, Outcome]]:
    if workers > 1:
        yield from run_locally(runs, workers=workers, retry=True, keep_models=False, stop_on_error=True)
        return
    for run in runs:  # here, where the libraries may be imported already
        yield run, execute(run, retry=True, keep_model=False)


def _runs(args: argparse.Namespace, data: RunData) -> list[Run]:
    assert data.train is not None
    parser, home = build_parser(), Path(args.output_dir) / FOLDS
    given = {name: value for name, value in vars(args).items() if f"--{name}" in parser.flags
             and name not in NOT_OF_FOLDS and not name.startswith(PLANTED) and value != parser.get_default(name)}
    given |= {"dataset": data.train.name, "save_strategy": "epoch", "save_total_limit": 1}
    common, runs = flags_to_argv(parser, given, "--cross_fit"), []
    arguments = parse_args([*common, "--fold=1"])
    for fold in range(1, args.cross_fit + 1):
        arguments.fold = fold
        identity = identity_of(settings_hash(arguments, inputs_of(arguments), {}), args.seed)
        place = home / run_name(f"fold{fold}", args.seed, identity)
        argv = [*common, f"--fold={fold}", f"--output_dir={place}",
                f"--cartography_output_dir={place / 'cartography_output'}"]
        config = {"identity": identity, "fold": fold, "command": shlex.join(["python", "run.py", *argv])}
        runs.append(Run(f"fold {fold}", args.seed, identity, place, tuple(argv), config, records=True))
    return runs


def _make_room(args: argparse.Namespace, runs: Sequence[Run]) -> None:
    """Folds of other settings go; those that have cost time only with --overwrite, else they are a UserError."""
    home, ours = runs[0].directory.parent, {run.directory for run in runs}
    others = sorted(place for place in home.iterdir() if place not in ours) if home.is_dir() else []
    begun = [place for place in others if state_of(place) == FINISHED or has_whole_checkpoint(place, True)]
    if begun and not args.overwrite:
        raise UserError(f"{home} holds folds of an unfinished run with other settings or data ({begun[0].name}): go "
                        "on with the flags that it was started with, or start again with --overwrite")
    for place in others:
        shutil.rmtree(place)


def said_by(runs: Sequence[Run], data: RunData) -> pd.DataFrame:
    """What the folds say as one table (``out_of_fold.csv``), in the order of the examples that are trained on."""
    import pandas as pd

    assert data.train is not None
    files = [run.directory / "cartography_output" / OUT_OF_FOLD_FILE for run in runs]
    tables = [read_table(file, text=("predicted_label", "predicted_answer")).set_index("id") for file in files]
    joined = pd.concat([table for table in tables if len(table)], verify_integrity=True)
    known = set(joined.index)  # an answer that stands whole in no window has no dynamics
    return joined.loc[[example for example in data.train.ids if example in known]].reset_index()


def forget(runs: Sequence[Run]) -> None:
    """Delete the runs of the folds, when all that they say is written."""
    shutil.rmtree(runs[0].directory.parent)
