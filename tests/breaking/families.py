"""The families of tries: each draws a try from the generator of its place, carries it out, and says what must hold."""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from base_artifacts import MADE, STAGES, Stage
from damage import LOSSES, damage_of, pick, shuffled
from odd_data import changed, write
from place import Broke, Family, Place, check_words

# These train, or do several stages: few of them, or there is no time for the others.
SLOW = ("qa_model", "reviews_model", "qa_again", "reviews_chosen", "reviews_mapped", "thoughts_tuned", "suites_suite",
        "thoughts_answers", "reviews_configured")
TRAINED = [name for name in STAGES if name in SLOW]
QUICK = [name for name in STAGES if name not in SLOW]
APPENDED = ("thoughts", "suites", "reviews_mapped")  # stages that take what an earlier run left


def a_stage(place: Place, slow: float = 0.2) -> tuple[str, Stage]:
    name = pick(place.rng, TRAINED if place.rng.random() < slow else QUICK)
    return name, STAGES[name]


def files_in(path: Path) -> list[Path]:
    return sorted(each for each in path.rglob("*") if each.is_file() and "checkpoint-" not in str(each))


def recorded(file: Path) -> bool:
    """Whether the stage that wrote a file noted its size."""
    meta = file.parent / "run_meta.json"
    return meta.exists() and file.name in json.loads(meta.read_text())["outputs"]


# --- what is read -------------------------------------------------------------------------------------------------


def damaged(place: Place) -> None:
    """One file of what a stage reads is damaged."""
    name, stage = a_stage(place)
    while not stage.reads:
        name, stage = a_stage(place)
    item = pick(place.rng, stage.reads)
    place.own(item)
    named = [word for word in stage.argv.split() if word.startswith(f"{item}/")]
    file = place.directory / named[0] if named else pick(place.rng, files_in(place.directory / item))
    must_be_seen = recorded(file)
    damage = damage_of(file, place.rng)
    place.note = f"{name}, {file.relative_to(place.directory)} {damage.__name__}"
    damage(file, place.rng)
    outcome = place.run_stage(stage)
    if outcome.status == 0 and must_be_seen and damage in LOSSES:
        place.check_same(stage.writes)


def left(place: Place) -> None:
    """What an earlier run of the same stage left is damaged."""
    name, stage = a_stage(place, slow=0.3)
    while not stage.writes:
        name, stage = a_stage(place)
    for item in stage.writes:
        place.own(item)
    file = pick(place.rng, [file for item in stage.writes for file in sorted((place.directory / item).rglob("*"))
                            if file.is_file()])
    damage = damage_of(file, place.rng)
    more = pick(place.rng, ("", stage.goes_on, "--overwrite")) if stage.goes_on else ""
    place.note = f"{name} {more}, over {file.relative_to(place.directory)} {damage.__name__}"
    damage(file, place.rng)
    outcome = place.run(stage.script, place.argv(stage, *more.split()))
    takes_what_is_left = more == stage.goes_on != "" or name.startswith(APPENDED)
    if outcome.status == 0 and not takes_what_is_left:
        place.check_same(stage.writes)


READERS = {
    "stories": (
        "run.py --do_eval --model qa_model --eval_split train --max_length 64 --doc_stride 16 --no_cuda --output_dir "
        "new "
        "--dataset", "extract_embeddings.py --model_path qa_model --max_length 64 --doc_stride 16 --no_cuda "
        "--output_dir "
        "new --dataset", "analyze_dataset.py --find_errors --cartography_dir qa_map --output_dir new --dataset",
        "analyze_cartography.py --cartography_dir qa_map --output_dir new --dataset",
        "analyze_dataset.py --report --cartography_dir qa_map --output_dir new --dataset",
        "analyze_dataset.py --export_unified --cartography_dir qa_map --cluster_dir qa_clusters --output_dir new "
        "--dataset",
        "dataset_filters.py --decisions decided/suspects.csv --output_dir new --dataset",
        "run.py --do_train --do_eval --eval_split train --model tiny --hidden_size 16 --num_layers 1 --max_length 64 "
        "--doc_stride 16 --num_train_epochs 1 --no_cuda --save_strategy no --output_dir new --dataset",
        "select_subset.py --task qa --selector stratified --k 4 --cache_dir new_cache --output_dir new --dataset",
    ),
    "reviews": (
        "run.py --do_train --do_eval --eval_fraction 0.3 --task classification --model lstm --hidden_size 16 "
        "--max_length 64 "
        "--num_train_epochs 1 --enable_cartography --cartography_output_dir new_map --no_cuda --save_strategy no "
        "--output_dir new --dataset",
        "run.py --do_eval --model reviews_model --eval_split train --no_cuda --output_dir new --slice_by kind "
        "--dataset",
        "select_subset.py --selector stratified --k 5 --cache_dir new_cache --output_dir new --dataset",
        "select_subset.py --selector random --stratify label --k 5 --cache_dir new_cache --output_dir new --dataset",
        "select_subset.py --selector predictive_entropy --model_path reviews_model --k 5 --no_cuda --cache_dir "
        "new_cache "
        "--output_dir new --dataset",
        "analyze_dataset.py --find_errors --cartography_dir reviews_map --embedding_dir reviews_embeddings "
        "--output_dir new "
        "--dataset", "analyze_cartography.py --cartography_dir reviews_map --output_dir new --dataset",
        "extract_embeddings.py --model_path reviews_model --pooling mean --no_cuda --output_dir new --dataset",
        "analyze_dataset.py --report --cartography_dir reviews_map --output_dir new --dataset",
        "map_dataset.py --model lstm --hidden_size 16 --max_length 64 --num_train_epochs 1 --no_cuda --skip "
        "predictions,samples,integrated,unified --visualization_method pca --min_cluster_size 3 --output_dir new "
        "--dataset",
    ),
    "pairs": (
        "generate_thoughts.py --mode generate --model m --base_url {url} --workers 1 --output_dir new --dataset",
        "evaluate_thoughts.py --predictions settings/outputs.jsonl --output_dir new --dataset",
        "run.py --do_eval --task nli --model reviews_model --eval_split train --no_cuda --output_dir new --dataset",
        "select_subset.py --task nli --selector stratified --k 5 --cache_dir new_cache --output_dir new --dataset",
    ),
    "thoughts/thoughts": (
        "generate_thoughts.py --mode statistics --output_dir new --thoughts",
        "generate_thoughts.py --mode reflect --model m --base_url {url} --workers 1 --output_dir new --thoughts",
        "generate_thoughts.py --mode score --model m --base_url {url} --workers 1 --output_dir new --thoughts",
        "train_sft.py --prompt_file settings/prompt.txt --model mistral --quantization none --no_cuda "
        "--num_train_epochs 1 "
        "--max_new_tokens 4 --eval_samples 2 --output_dir new --thoughts",
    ),
}


def data(place: Place) -> None:
    """A dataset with odd content, in some format."""
    kind = pick(place.rng, ("stories", "stories", "reviews", "reviews", "pairs", "thoughts/thoughts"))
    file = place.base / (f"{kind}.jsonl" if "/" in kind else f"{kind}/train.jsonl")
    rows, what = changed([json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()], place.rng)
    path = write(rows, place.directory / "odd", place.rng)
    script, *argv = pick(place.rng, READERS[kind]).format(url=place.url).split()
    place.note = f"{kind}: {what}, as {path.name}"
    place.run(script, [*argv, str(path.relative_to(place.directory))])


# --- flags --------------------------------------------------------------------------------------------------------

VALUES = ("", " ", "x", "-1", "0", "1", "2", "3", "7", "100", "0.5", "1.5", "1e-5", "nan", "inf", "-inf", "1e400",
          "1_000", "٣", "true",
          "false", "none", "a,b", "0,1", "-1,2", "label", "id", "kind", "train", "validation", "stories",
          "stories/train.jsonl",
          "qa_map", "qa_model", "reviews_map", "qa_clusters", "qa_embeddings", "nowhere", "nowhere.jsonl", "/proc/x",
          "/dev/null",
          "/dev/full", "demo:nli", "demo:nothing", "tiny", "lstm", "é\n", "a b", "'", "\x1b[31m", "{}", "--", "-",
          "~", ".", "*",
          "http://127.0.0.1:9", "{url}", "a" * 5000, "settings/suite.json", "settings/filters.json", "random",
          "easy,hard")
MANY = {"num_train_epochs", "rounds", "copies", "num_layers", "mc_dropout", "cross_fit"}  # long: few of them
# Of these the last but one submits jobs where there is a Slurm, and the last makes a run wait for minutes.
WASTE = {"help", "help_all", "launcher", "requests_per_minute"}


def parser_of(script: str, argv: list[str], base: Path) -> Any:
    """The parser that a script makes for itself; ``base`` is where its --config lies."""
    import runpy
    from contextlib import chdir
    from unittest.mock import patch

    import warm_processes

    from datamap.core.flags import Parser

    class Found(BaseException):
        pass

    def stop(parser: Parser, *_: Any) -> None:
        raise Found(parser)

    with patch.object(Parser, "parse_known_args", stop), patch("sys.argv", [script, *argv]), chdir(base):
        try:
            runpy.run_path(str(warm_processes.REPOSITORY / script), run_name="__main__")
        except Found as found:
            return found.args[0]
    raise Broke(f"{script} has no parser")


def takes(action: Any, value: str) -> bool:
    """Whether the parser would take a value for a flag."""
    try:
        return action.type is None or action.type(value) is not None
    except (argparse.ArgumentTypeError, ValueError, TypeError):
        return False


def value_of(place: Place, action: Any) -> list[str]:
    if action.const is not None and place.rng.random() < 0.5:
        return []
    if action.choices and place.rng.random() < 0.7:
        return [str(pick(place.rng, action.choices))]
    among = [value for value in VALUES if takes(action, value)] if place.rng.random() < 0.7 else VALUES
    if action.dest in MANY:
        among = [value for value in among if value not in ("100", "1_000")]
    values = [pick(place.rng, among or VALUES) for _ in range(2 if place.rng.random() < 0.1 else 1)]
    return [value.replace("{url}", place.url) for value in values]


def flags(place: Place) -> None:
    """Two flags of a script, with values that may or may not be right, behind a command that works."""
    name, stage = a_stage(place)
    argv = place.argv(stage)
    # A command of several words at once is read by other parsers, too.
    actions = [each for each in parser_of(stage.script, argv, place.base)._actions
               if each.dest not in WASTE and each.option_strings]
    more = []
    for _ in range(2):
        action = pick(place.rng, actions)
        more += [pick(place.rng, action.option_strings), *value_of(place, action)]
    place.note = f"{name} {' '.join(more)!r:.300}"
    place.make_room(stage)
    place.run(stage.script, [*argv, *more])


# --- kills, full disks, two at once -------------------------------------------------------------------------------


def same_again(place: Place, stage: Stage) -> None:
    """The same command, as far as it says itself what is to be added, makes what an undisturbed run makes."""
    outcome = place.end(place.start(stage.script, place.argv(stage)))
    check_words(outcome)
    ways = [each for each in (stage.goes_on, "--overwrite") if each and each in outcome.err]
    for more in ways if outcome.status else ():
        outcome = place.end(place.start(stage.script, place.argv(stage, more)))
        check_words(outcome)
        if outcome.status == 0:
            break
    if outcome.status:
        raise Broke(f"the same command again: {outcome.err.splitlines()[-1][:300]}")
    place.check_files()
    place.check_same(stage.writes)


def kill(place: Place) -> None:
    """Killed at any moment, once or twice; then the same command again."""
    name, stage = a_stage(place, slow=0.5)
    place.make_room(stage)
    seconds = json.loads((place.base / ".seconds.json").read_text())[name]
    for _ in range(1 + int(place.rng.integers(2))):
        number = pick(place.rng, (signal.SIGTERM, signal.SIGINT, signal.SIGKILL))
        moment = float(place.rng.uniform(0.02, seconds))
        place.note += f"{name}, {number.name} after {moment:.2f} s; "
        started = place.start(stage.script, place.argv(stage))
        time.sleep(moment)
        os.kill(started.pid, number)
        outcome = place.end(started)
        # Ctrl-C inside a __del__ is lost to Python.
        lost = re.compile(r"Exception ignored in(.*\n)+?KeyboardInterrupt: *\n")
        check_words(outcome._replace(err=lost.sub("", outcome.err)), (0, 2, 130, -signal.SIGTERM, -signal.SIGKILL))
    same_again(place, stage)


def used_by(path: Path) -> int:
    """Bytes of the pages of a tmpfs."""
    found = os.statvfs(path)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def full_disk(place: Place) -> None:
    """The disk is full at some moment, or files have a limit; then the same command again, with room."""
    name, stage = a_stage(place, slow=0.3)
    size = sum(file.stat().st_size for item in stage.writes for file in files_in(place.base / item)) + 20_000
    room = int(size * place.rng.uniform(0, 1.2) ** 2)
    links = {each.name: os.readlink(each) for each in place.directory.iterdir()}
    mount = ["mount", "-t", "tmpfs", "-o", "size=512m", "tmpfs", str(place.directory)]
    has_disk = place.rng.random() < 0.7 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    place.note = f"{name}, {'disk' if has_disk else 'files'} of {room:,} bytes"
    try:
        if has_disk:
            for link, target in links.items():
                (place.directory / link).symlink_to(target)
        place.make_room(stage)
        limit = max(8192, room // 2)  # standard error is a file, too

        def only_small_files() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

        if has_disk:
            resize(place.directory, used_by(place.directory) + room)
            place.run(stage.script, place.argv(stage))
            resize(place.directory, 2**29)
        else:
            place.run(stage.script, place.argv(stage), before=only_small_files)
        same_again(place, stage)
    finally:
        if has_disk:
            subprocess.run(["umount", "-l", str(place.directory)], check=True)


def resize(directory: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={max(4096, size)}", str(directory)], check=True)


def together(place: Place) -> None:
    """Two of the same command at once: one makes it, the other is told so, or comes after it."""
    name, stage = a_stage(place, slow=0.3)
    while not stage.writes:
        name, stage = a_stage(place)
    place.make_room(stage)
    wait = float(place.rng.uniform(0, 0.6))
    place.note = f"{name}, {wait:.2f} s apart"
    first = place.start(stage.script, place.argv(stage))
    time.sleep(wait)
    second = place.start(stage.script, place.argv(stage))
    outcomes = [place.end(first), place.end(second)]
    for outcome in outcomes:
        check_words(outcome)
    if all(outcome.status for outcome in outcomes):
        raise Broke(f"both gave up: {outcomes[0].err.splitlines()[-1][:200]}")
    place.check_files()
    place.check_same(stage.writes)


# --- what must not matter -----------------------------------------------------------------------------------------


def harmless(place: Place) -> None:
    """What changes nothing: other dialects and formats of the same content, other orders, the same twice."""
    from unchanging import CHANGES

    name, stage = a_stage(place)
    while not stage.writes:
        name, stage = a_stage(place)
    change = pick(place.rng, CHANGES)
    place.make_room(stage)
    argv = place.argv(stage)
    argv = change(place, stage, argv) or argv
    place.note = f"{name}, {change.__name__}: {place.note}"
    outcome = place.run(stage.script, argv)
    if outcome.status:
        raise Broke(f"refused: {outcome.err.splitlines()[-1][:300]}")
    place.check_same(stage.writes)


def surroundings(place: Place) -> None:
    """Odd environments, streams, working directories and names of what is written."""
    from unchanging import SURROUNDINGS

    pick(place.rng, SURROUNDINGS)(place)


FAMILIES: dict[str, tuple[Family, int]] = {
    "damaged": (damaged, 280), "left": (left, 90), "data": (data, 230), "flags": (flags, 180), "kill": (kill, 60),
    "full_disk": (full_disk, 50), "together": (together, 30), "harmless": (harmless, 40),
    "surroundings": (surroundings, 40),
}
__all__ = ["FAMILIES", "MADE", "shuffled"]
