"""map_dataset.py: the stages carried out one after the other, in this process, as far as they are not done."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from datamap.core.artifacts import content_key, recorded_task
from datamap.core.errors import UserError, first_line, refused_by_system
from datamap.core.files import write_json
from datamap.core.flags import DEFAULT_MODEL
from datamap.core.hub import unreachable
from datamap.core.splits import EVAL_SPLITS, raw_split, splits_of
from datamap.mapping.arguments import SAVING, check_text_columns
from datamap.mapping.console import Console
from datamap.mapping.findings import findings
from datamap.mapping.stages import STATE, WEIGHTS, Stage, given_artifacts, order_of, read_state
from datamap.suites.runner import carry_out, free_memory
from datamap.suites.runs import LOG
from datamap.tasks.guess import Guess, guess_task
from datamap.tasks.registry import TASKS
from datamap.training import arguments
from datamap.training.checkpoints import checkpoints_in, has_whole_checkpoint
from datamap.training.models import PACKAGED_MODEL, TOKENIZER_FILES, place_of
from datamap.training.prerequisites import one_gpu

ROWS_LOOKED_AT = 10_000
WIDTH = 12  # of the names of stages
BEGINS, GOES_ON = "begins", "goes on"

logger = logging.getLogger(__name__)


def make_map(args: argparse.Namespace) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Every stage that is not done yet; what there is then, by what it is, and what was found (``findings``).

    SystemExit, with the status of a stage that fails; what is finished stays.
    """
    os.environ.update(one_gpu())  # before anything looks for them
    console = Console(Path(args.output_dir) / LOG)
    with console.hearing():
        state = read_state(args)
        have = given_artifacts(args)
        guess, args.evaluates = known_of_data(args, state)
        if args.cartography_dir and recorded_task(args.cartography_dir) is None:  # made elsewhere: its stages are told
            args.task, args.label_column = guess.task or None, guess.label_column or None
            args.text_columns = list(guess.text_columns) or None
        if "cartography" not in have:
            args.model = args.model or model_of_map(state)
        by = f" by {args.model}" if args.model else ""
        console.say(f"the map of {args.dataset or args.cartography_dir}{by} goes to {args.output_dir}, and what its "
                    f"stages say to {console.log}")
        console.expect({name: WEIGHTS.get(name, WEIGHTS["train"]) for name in order_of(args)})
        with console.running():
            do_all(guess, have, state, args, console)
        return have, list(findings(have))


def do_all(
    guess: Guess, have: dict[str, str], state: dict[str, Any], args: argparse.Namespace, console: Console
) -> None:
    """One stage after the other; ``have``, what there is, grows by what each leaves."""
    outdated: dict[str, str] = {}
    order = order_of(args)
    for name, build in order.items():
        if ("cartography" if name == "train" else name) in have:
            console.dropped(name)
            continue
        stage = f"--skip {name}" if name in args.skip else build(args, guess, have)
        if isinstance(stage, str):
            console.dropped(name)
            if why := out_of_date(name, state, have, outdated):
                outdated[name] = why
                console.say(f"{name:<{WIDTH}} left out: {stage}; what it had left is out of date ({why})")
            elif name not in args.skip:
                console.say(f"{name:<{WIDTH}} left out: {stage}")
            continue
        console.weights[name] = stage.weights
        if why := why_to_do(stage, state, args):
            if name == "train":
                check_data(stage)
            try:
                do(stage, why, state, args, console)
            except SystemExit:
                tell_of_before(stage, state, have, order, console)
                raise
        settle(stage, state, args)
        console.finished(name)
        have |= stage.leaves


def out_of_date(
    name: str, state: Mapping[str, Any], have: Mapping[str, str], outdated: Mapping[str, str]
) -> str:
    """What has changed that a stage had read which is not done now; "" where nothing has, or it left nothing."""
    record = state["stages"].get(name)
    if record is None or record["made"] is None:
        return ""
    changed = [each for each, key in record["reads"].items()
               if each in outdated or (each in have and content_key(have[each]) != key)]
    return f"{', '.join(changed)} changed" if changed else ""


def tell_of_before(
    stage: Stage, state: Mapping[str, Any], have: Mapping[str, str], order: Collection[str], console: Console
) -> None:
    """Behind a stage that stopped: which results of later ones lie there that are not of what it was to make."""
    if state["stages"][stage.name]["made"] is not None:  # it stopped before it touched anything
        return
    outdated = dict.fromkeys([stage.name, *stage.leaves], "not made")
    for name in order:
        if name not in outdated and (why := out_of_date(name, state, have, outdated)):
            outdated[name] = why
    if old := [name for name in outdated if name in order and name != stage.name]:
        console.say(f"what {', '.join(old)} had left is out of date")


def check_data(stage: Stage) -> None:
    """UserError where the data cannot be trained or evaluated on, such as a wrong --label_column, before anything is
    written or what is there is touched."""
    from datamap.training.data import load_data

    load_data(arguments.parse_args(list(stage.argv)))  # run.py finds it in memory


# --- one stage ----------------------------------------------------------------------------------------------------


def why_to_do(stage: Stage, state: dict[str, Any], args: argparse.Namespace) -> str:
    """Why a stage is to be done; "" where it is done."""
    record, made, settings = state["stages"].get(stage.name), stage.made(), stage.settings(args.output_dir)
    if record is None or args.overwrite:
        return BEGINS
    if record["settings"] != settings:
        gone = [word for word in record["settings"] if word not in settings]
        new = [word for word in settings if word not in record["settings"]]
        return f"{' '.join(new) or 'no flag'} instead of {' '.join(gone) or 'none'}"
    read = stage.what_is_read()
    if changed := [name for name in read if record["reads"].get(name) != read[name]]:
        return f"{' and '.join(changed)} changed"
    if record["made"] is None:
        return "" if made not in (None, record["replaces"]) else GOES_ON
    return "" if made == record["made"] else "what it had left changed"


def do(stage: Stage, why: str, state: dict[str, Any], args: argparse.Namespace, console: Console) -> None:
    """Carry a stage out. What is begun is written down first, so that a killed one is known for what it was."""
    file, log, before = Path(args.output_dir) / STATE, console.log, state["stages"].get(stage.name)
    there = stage.there()
    if why != GOES_ON:
        state["stages"][stage.name] = {"settings": stage.settings(args.output_dir), "reads": stage.what_is_read(),
                                       "replaces": stage.made(), "made": None}
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, state)
    argv = list(stage.argv)
    if stage.trains:
        resumes = why == GOES_ON and has_whole_checkpoint(stage.directories[0], with_dynamics=True)
        why = "goes on from its last checkpoint" if resumes else why
        argv += ["--resume_from_checkpoint" if resumes else "--overwrite"]
    if why not in (BEGINS, GOES_ON):
        console.say(f"{stage.name:<{WIDTH}} {'' if why.startswith(GOES_ON) else 'again: '}{why}")
    began, size = time.monotonic(), log.stat().st_size if log.exists() else 0
    console.expected = stage.expected
    try:
        carry_out(stage.script, argv, log)
    except BaseException as error:
        if before is not None and before["made"] is not None and there == stage.there():
            state["stages"][stage.name] = before  # it stopped before it touched what was there
            write_json(file, state)
        raise SystemExit(failed(stage, error, said_since(log, size), console)) from error
    finally:
        free_memory()
    wrote = next((line for line in reversed(said_since(log, size)) if line.startswith("wrote ")), "")
    console.say(f"{stage.name:<{WIDTH}} {time.monotonic() - began:5.0f} s  {wrote.partition(';')[0]}")


def settle(stage: Stage, state: dict[str, Any], args: argparse.Namespace) -> None:
    """Behind a stage that is finished, now or by a command that was killed right behind it: leave nothing over, and
    write down what it has left."""
    if stage.trains and not SAVING & args.training.keys():
        for checkpoint in checkpoints_in(stage.directories[0]):
            shutil.rmtree(checkpoint)
    record = state["stages"][stage.name]
    if record["made"] is None:
        record["made"] = stage.made()
        write_json(Path(args.output_dir) / STATE, state)


def failed(stage: Stage, error: BaseException, said: list[str], console: Console) -> int:
    """Say why a stage failed; its exit status."""
    status = error.code if isinstance(error, SystemExit) else 130 if isinstance(error, KeyboardInterrupt) else 1
    mark = f"{stage.script}: error: "
    reason = next((line.removeprefix(mark) for line in reversed(said) if line.startswith(mark)), "")
    if status == 130:
        reason = "interrupted"
    elif (refusal := refused_by_system(error)) is not None:  # of log.txt; stages tell of their own
        status, reason = 2, f"{refusal}; make room or mend that"
    elif not isinstance(error, SystemExit):
        reason = f"{type(error).__name__}: {first_line(error)}"
    if status in (2, 130):
        again = f"{'once that is mended, it' if status == 2 else 'the same command'} goes on from here"
    else:  # nobody knows whether it would fail again
        again = f"what is finished stays, and the same command tries {stage.name} again"
    console.say(f"map_dataset.py: error: {stage.name} ({stage.script}): {reason or 'it stopped without a word'} (all "
                f"that it said is in {console.log}; {again})")
    return status if isinstance(status, int) else 1


def said_since(log: Path, size: int) -> list[str]:
    if not log.exists():
        return []
    with log.open("rb") as file:
        file.seek(size)
        return file.read().decode(errors="replace").splitlines()


# --- what is not given --------------------------------------------------------------------------------------------


def known_of_data(args: argparse.Namespace, state: dict[str, Any]) -> tuple[Guess, bool]:
    """The task, and whether there is something to evaluate on. Of the same data it stands in ``state``: the Hub need
    not answer again, and what it does not tell now changes nothing."""
    asked = [content_key(args.dataset) if args.dataset and Path(args.dataset).exists() else args.dataset,
             args.task, args.text_columns, args.label_column, args.training.get("train_split")]
    if state["data"] is None or state["data"]["asked"] != asked:
        evaluates = bool(args.dataset) and any(split in splits_of(args.dataset) for split in EVAL_SPLITS)
        state["data"] = {"asked": asked, "task": task_of_map(args), "evaluates": evaluates}
    task, texts, label = state["data"]["task"]
    guess = Guess(task, tuple(texts), label)
    if args.dataset and not (args.task and (args.label_column or not label)):
        logger.info(f"{args.dataset} is taken for {guess} (guessed from its columns; --task, --text_columns and "
                    "--label_column say otherwise)")
    return guess, state["data"]["evaluates"]


def task_of_map(args: argparse.Namespace) -> Guess:
    """The task of a finished map, else what the flags say, and where they are silent what the columns look like."""
    if args.cartography_dir and (recorded := recorded_task(args.cartography_dir)) and not args.task:
        return Guess(recorded["name"])
    if args.task and (args.task == "qa" or "label_column" not in TASKS[args.task].flags):
        return Guess(args.task)
    given = Guess(args.task or "", tuple(args.text_columns or ()), args.label_column or "")
    if all(given) or not args.dataset:
        return given
    data = raw_split(args.dataset, args.training.get("train_split", "train"))
    data = data.select(range(min(len(data), ROWS_LOOKED_AT)))
    rows = {column: data[column][:] for column in data.column_names}
    for column, values in rows.items():
        if (names := getattr(data.features[column], "names", None)) is not None:
            rows[column] = [names[value] if value is not None and value >= 0 else None for value in values]
    guess = guess_task(rows, args.dataset, args.task, given.text_columns, args.label_column)
    check_text_columns(guess.text_columns)
    return guess


def model_of_map(state: dict[str, Any]) -> str:
    """The model where none is named: the one that was taken when the map was begun, whether the Hub answers or not."""
    if state["default_model"] is None:
        state["default_model"] = default_model()
    elif state["default_model"] != DEFAULT_MODEL:
        logger.info(f"--model {state['default_model']} is taken, as before")
    return state["default_model"]


def default_model() -> str:
    """The default where the Hub or its cache has it, else the pretrained model that comes as a package."""
    if _is_cached(DEFAULT_MODEL) or not (refusal := unreachable()):
        return DEFAULT_MODEL
    why = f"the Hub cannot be reached: {refusal:.100}"
    try:
        place_of(PACKAGED_MODEL)
    except UserError as error:
        raise UserError(f"{DEFAULT_MODEL} cannot be had ({why}), and in its place {error}; or name another --model"
                        ) from error
    logger.info(f"--model {PACKAGED_MODEL} is taken, as {DEFAULT_MODEL} cannot be had ({why})")
    return PACKAGED_MODEL


def _is_cached(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    def has(*files: str) -> bool:
        return any(isinstance(try_to_load_from_cache(name, file), str) for file in files)

    return has("config.json") and has("model.safetensors", "pytorch_model.bin") and has(*TOKENIZER_FILES)
