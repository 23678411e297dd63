"""What must not change a result: the same content written otherwise; and odd surroundings of a command."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

from base_artifacts import STAGES, Stage
from damage import pick, shuffled
from place import Broke, Place

# --- the same content ---------------------------------------------------------------------------------------------


def files_read(place: Place, stage: Stage, suffix: str) -> list[Path]:
    """Copies of all files of a kind that a stage may read."""
    found = []
    for item in stage.reads:
        place.own(item)
        found += [file for file in sorted((place.directory / item).rglob(f"*{suffix}")) if file.is_file()]
    return found


def spreadsheet(place: Place, stage: Stage, argv: list[str]) -> None:
    """Every CSV is saved again with semicolons, a byte order mark and other line ends."""
    for file in files_read(place, stage, ".csv"):
        with file.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.reader(stream))
        text = io.StringIO(newline="")
        csv.writer(text, delimiter=";").writerows(rows)
        file.write_bytes(b"\xef\xbb\xbf" + text.getvalue().encode())


def rows_of_csv(place: Place, stage: Stage, argv: list[str]) -> None:
    """The rows of tables that are joined by id stand in another order."""
    for file in files_read(place, stage, ".csv"):
        if file.name == "cluster_assignments.csv":
            head, *rows = file.read_text(encoding="utf-8").splitlines(keepends=True)
            file.write_text(head + "".join(shuffled(rows, place.rng)), encoding="utf-8")


def rows_of_jsonl(place: Place, stage: Stage, argv: list[str]) -> None:
    """The lines of predictions stand in another order."""
    for file in files_read(place, stage, ".jsonl"):
        if file.name in ("eval_predictions.jsonl", "outputs.jsonl"):
            lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
            file.write_text("".join(shuffled(lines, place.rng)), encoding="utf-8")


def json_layout(place: Place, stage: Stage, argv: list[str]) -> None:
    """JSON without its layout, with a byte order mark, non-ASCII as escapes."""
    for file in files_read(place, stage, ".json"):
        if file.name in ("run_meta.json", "settings.json", "suite.json", "filters.json", "thresholds.json",
                         "embeddings_metadata.json", "cluster_metadata.json"):
            value = json.loads(file.read_text(encoding="utf-8"))
            file.write_text(json.dumps(value, indent=8) + " " * 400, encoding="utf-8-sig")


def packed_data(place: Place, stage: Stage, argv: list[str]) -> None:
    """The dataset's files in another format, in the same directory."""
    import pyarrow as pa
    import pyarrow.parquet

    for name in {"stories", "reviews"} & set(stage.reads):
        place.own(name)
        kind = pick(place.rng, ("gz", "list", "parquet", "crlf", "bom"))
        place.note = kind
        for file in (place.directory / name).glob("*.jsonl"):
            raw = file.read_bytes()
            rows = [json.loads(line) for line in raw.splitlines()]
            file.unlink()
            if kind == "gz":
                file.with_name(file.name + ".gz").write_bytes(gzip.compress(raw))
            elif kind == "list":
                file.with_suffix(".json").write_text(json.dumps(rows, indent=1))
            elif kind == "parquet":
                pyarrow.parquet.write_table(pa.Table.from_pylist(rows), file.with_suffix(".parquet"))
            else:
                file.write_bytes(raw.replace(b"\n", b"\r\n") if kind == "crlf" else b"\xef\xbb\xbf" + raw)


def copies(place: Place, stage: Stage, argv: list[str]) -> None:
    """Everything that is read is a copy with new times."""
    for item in stage.reads:
        for file in place.own(item).rglob("*"):
            os.utime(file, (0, 0))


def spelling(place: Place, stage: Stage, argv: list[str]) -> list[str]:
    """Flags with dashes, with equals signs."""
    made: list[list[str]] = []
    for word in argv:
        if word.startswith("--"):
            made.append([word.replace("_", "-")])
        else:
            made[-1].append(word)
    return [word for words in made for word in (["=".join(words)] if len(words) == 2 else words)]


def over_itself(place: Place, stage: Stage, argv: list[str]) -> list[str]:
    """The same command a second time, over what it made."""
    for item in stage.writes:
        if (place.base / item).exists() and not (place.directory / item).exists():
            shutil.copytree(place.base / item, place.directory / item)
    return [*argv, *["--overwrite"] * ("--do_train" in argv or stage.script == "train_sft.py")]


def gone_on(place: Place, stage: Stage, argv: list[str]) -> list[str]:
    """From a checkpoint, where there are any."""
    if not stage.goes_on or stage.script != "run.py":
        return over_itself(place, stage, argv)
    over_itself(place, stage, argv)
    first = min((place.directory / stage.writes[0]).glob("checkpoint-*"),
                key=lambda each: int(each.name.split("-")[1]))
    place.note = first.name
    return [*argv, "--resume_from_checkpoint", str(first.relative_to(place.directory)), "--overwrite"]


CHANGES: tuple[Callable[[Place, Stage, list[str]], list[str] | None], ...] = (
    spreadsheet, rows_of_csv, rows_of_jsonl, json_layout, packed_data, copies, spelling, over_itself, gone_on,
)

# --- surroundings -------------------------------------------------------------------------------------------------

LIGHT = ("qa_cut", "qa_cleaned", "qa_integrated", "thoughts_counted", "thoughts_outputs", "thoughts_chains",
         "qa_suspects",
         "qa_analysis", "reviews_hardest", "suites_status")
FORKED = (*LIGHT, "qa_embeddings", "qa_clusters", "qa_predictions", "qa_page", "thoughts_scored", "reviews_selection",
          "suites_compared")
NAMES = ("a b", "it's", 'say "x"', "line\nend", "é漢👩", "=1+1", "$HOME", "~", "a" * 200, "-x", "tab\t", "\x1b[31m",
         "x;y", "*?", "%s {}",
         "trail ", ".hidden", "train.jsonl")
REFUSED = ("/proc/x", "/dev/null/x", "/dev/full", "a" * 300, "x/" * 2500, "stories/train.jsonl", "circle/x", "/sys/x",
           "bytes\udcff")


def environment(place: Place) -> None:
    name = pick(place.rng, LIGHT)
    changes: tuple[dict[str, str | None], ...] = (
        {"HOME": None}, {"HOME": "/proc/nowhere"}, {"LANG": "C", "LC_ALL": "C"}, {"LANG": "C", "LC_ALL": "C",
            "PYTHONUTF8": "0",
                                                                             "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "tr_TR.UTF-8"}, {"TERM": None}, {"COLUMNS": "1"}, {"COLUMNS": "x"}, {"PYTHONIOENCODING": "ascii"},
        {"TMPDIR": "/proc/nowhere"}, {"MPLCONFIGDIR": "/proc/x"}, {"HF_HOME": "/proc/x"}, {"PYTHONWARNINGS": "error"},
        {"RANK": "0", "WORLD_SIZE": "1"}, {"PATH": ""}, {"TZ": "nowhere"}, {"OPENAI_BASE_URL": "x"},
        {"PYTHONOPTIMIZE": "2"},
        {"all_proxy": "socks5://127.0.0.1:9", "NO_PROXY": None}, {"SSL_CERT_FILE": "/proc/nowhere"},
        {"GIT_DIR": "/proc/nowhere"},
    )
    change = pick(place.rng, changes)
    place.note = f"{name} with {change}"
    outcome = place.run_stage(STAGES[name], environment=change, fresh=True)
    if outcome.status == 0:
        place.check_same(STAGES[name].writes, pictures=False)


def streams(place: Place) -> None:
    """A standard stream is closed, full or narrow."""
    name, number = pick(place.rng, LIGHT), pick(place.rng, (0, 1, 2))
    kind = pick(place.rng, ("closed", "full", "pipe"))
    place.note = f"{name}, stream {number} {kind}"
    if number == 0:
        kind = "closed"

    def change() -> None:
        if kind == "closed":
            os.close(number)
        elif kind == "full":
            os.dup2(os.open("/dev/full", os.O_WRONLY), number)
        else:
            read, writes = os.pipe()
            os.dup2(writes, number)
            os.close(read)
            os.close(writes)

    place.make_room(STAGES[name])
    outcome = place.end(place.start(STAGES[name].script, place.argv(STAGES[name]), before=change, fresh=True))
    may = (0, 1, 2) if kind == "pipe" else (0, 2)
    if outcome.status not in may or "Traceback" in outcome.err:
        raise Broke(f"exit status {outcome.status}: {outcome.err[-300:]}")
    if number == 1 and kind == "full" and outcome.status != 2:
        raise Broke(f"standard output is full, and exit status {outcome.status}")
    place.check_files()
    if outcome.status != 1:  # of a pipe that nobody reads any more
        place.check_same(STAGES[name].writes, pictures=False)


def place_of_output(place: Place) -> None:
    """An odd name, or a place where nothing can be written."""
    name = pick(place.rng, [each for each in FORKED if STAGES[each].writes and each not in ("suites_compared",)])
    stage = STAGES[name]
    (place.directory / "circle").symlink_to("circle")
    where, refused = (pick(place.rng, REFUSED), True) if place.rng.random() < 0.4 else (pick(place.rng, NAMES), False)
    argv = place.argv(stage)
    argv[argv.index("--output_dir") :] = [f"--output_dir={where}"]
    place.note = f"{name} to {where!r:.60}"
    outcome = place.run(stage.script, argv)
    if refused and outcome.status == 0:
        raise Broke("wrote where nothing can be written")
    if not refused and outcome.status:
        raise Broke(f"refused: {outcome.err.splitlines()[-1][:300]}")


def place_of_input(place: Place) -> None:
    """What is read stands under an odd name."""
    name = pick(place.rng, [each for each in FORKED if STAGES[each].reads])
    stage, where = STAGES[name], pick(place.rng, NAMES[:-1])
    argv, item = place.argv(stage), pick(place.rng, stage.reads)
    place.own(item).rename(place.directory / where)
    place.make_room(stage)
    for number, word in enumerate(argv):
        if word == item or word.startswith(f"{item}/"):
            argv[number - 1 : number + 1] = ["", f"{argv[number - 1]}={where}{word[len(item):]}"]
    place.note = f"{name}, {item} as {where!r:.60}"
    place.run(stage.script, [word for word in argv if word])


def working_directory(place: Place) -> None:
    """It is deleted, or cannot be written."""
    name = pick(place.rng, FORKED)
    stage = STAGES[name]
    gone = place.directory / "gone"
    gone.mkdir()
    place.note = f"{name} in a directory that is deleted"
    is_absolute = place.rng.random() < 0.5
    argv = [str(place.directory / word) if is_absolute and word.partition("/")[0] in (*stage.reads,
        *stage.writes) else word
            for word in place.argv(stage)]
    place.make_room(stage)
    place.run(stage.script, argv, directory=gone, before=lambda: os.rmdir(gone), fresh=name in LIGHT)


def limits(place: Place) -> None:
    """Few open files."""
    name = pick(place.rng, LIGHT)
    number = pick(place.rng, (20, 30, 50))
    place.note = f"{name} with {number} open files"

    def change() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, number))

    place.run_stage(STAGES[name], before=change, fresh=True)


SURROUNDINGS: tuple[Callable[[Place], None], ...] = (
    environment, environment, streams, streams, place_of_output, place_of_input, working_directory, limits,
)
