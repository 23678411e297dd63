"""Artifacts: the files that one stage writes and the next one reads, whole or not at all (DESIGN 5)."""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from datamap.core.errors import UserError, first_line, is_main_process, name_a_few, refused_by_system
from datamap.core.files import atomic, csv_rows, not_strict, plain, read_json, write_json
from datamap.core.locks import LOCK, check_unlocked, is_held, lock
from datamap.core.parquet import in_either_form
from datamap.core.places import CHECKOUT
from datamap.core.plots import plot_formats
from datamap.core.splits import RowFormat, Split, load_split, place_of_dataset

META = "run_meta.json"
PACKAGES = ("transformers", "datasets", "torch", "accelerate", "pandas", "numpy", "scikit-learn", "hdbscan",
            "umap-learn")

logger = logging.getLogger(__name__)


# --- one run of a stage ------------------------------------------------------------------------------------------


def check_writable(directory: str | Path) -> None:
    """Raise UserError unless files can be made in ``directory``, which need not exist yet, and no other process is
    writing there; creates nothing."""
    if not str(directory).strip():
        raise UserError("the name of an output directory is empty; name one (is a shell variable not set?)")
    path = Path(directory).absolute()
    try:
        if path.exists() and not path.is_dir():
            raise UserError(f"output directory {directory} is a file; name a directory")
        existing = next(parent for parent in (path, *path.parents) if parent.exists())
    except OSError as error:  # such as a name that is too long
        raise _not_writable(directory, error) from error
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"output directory {directory} is not writable ({existing} refuses); name another")
    if is_main_process():  # which holds it for the others
        check_unlocked(path / LOCK)


@contextmanager
def sole_writer(*directories: str | Path) -> Iterator[None]:
    """No other process runs a stage into these directories meanwhile; UserError where one does.

    A stage is that by itself. Whoever looks at what is there before its first stage begins, or runs several, holds the
    directories from the beginning. In a distributed run the main process does.
    """
    with ExitStack() as held:
        for directory in directories if is_main_process() else ():
            check_writable(directory)
            try:
                held.enter_context(lock(Path(directory) / LOCK))
            except OSError as error:
                raise _not_writable(directory, error) from error
        yield


def _not_writable(directory: str | Path, error: OSError) -> UserError:
    return UserError(f"output directory {directory} is not writable ({error.strerror}); name another, or mend that")


@contextmanager
def stage(
    output_dir: str | Path, args: argparse.Namespace | Mapping[str, Any], *, owns: Sequence[str],
    inputs: Mapping[str, str | Path | None] | None = None, datasets: Sequence[Split | Mapping[str, Any] | None] = (),
    resume: bool = False,
) -> Iterator[Path]:
    """Run one stage into ``output_dir``: its old artifacts go, ``run_meta.json`` says what happened to it.

    ``owns`` are the glob patterns of the files this stage writes there; they are removed first unless ``resume``.
    ``inputs`` names the artifacts read, ``datasets`` the splits used, or their identities (``Split.identity()``); None
    among them is left out. Of a split that comes first the digests of its examples are kept beside what is written, so
    that ``check_same_dataset`` can tell which have changed since.
    What is drawn inside is also written in the formats of ``args.plot_format``, where there is one.
    ``run_meta.json`` is marked ``running`` inside the block, then ``finished`` or ``failed``; earlier runs move to
    its list ``history``. Check the user's input before entering: entering removes. In a distributed run only the
    main process touches files. No other process can run a stage there meanwhile (``sole_writer``). A UserError before
    anything was done to what it was to go on with (``resume``) leaves ``run_meta.json`` as it was.
    """
    path = Path(output_dir)
    if not is_main_process():
        yield path
        return
    with sole_writer(output_dir), plot_formats((args if isinstance(args, Mapping) else vars(args)).get("plot_format")):
        try:
            path.mkdir(parents=True, exist_ok=True)
            meta = {**_start_meta(path, args, inputs or {}, datasets), "owns": list(owns)}
            write_json(path / META, meta)
        except OSError as error:
            raise _not_writable(output_dir, error) from error
        _remove(path, [".*.tmp-*", *([] if resume else owns)])  # the first are of processes that were killed
        before = _stamps(path, owns)
        try:
            yield path
            _end_meta(path, meta, "finished", owns)
        except BaseException as error:
            if resume and isinstance(error, UserError) and _stamps(path, owns) == before:
                _take_back(path, meta)
                raise
            try:
                _end_meta(path, meta, "failed", owns, error=f"{type(error).__name__}: {error}"[:500])
            except OSError:
                _mark_failed_in_place(path / META)
            if refused_by_system(error):
                whole = sorted({file.name for pattern in owns for file in path.glob(pattern) if file.is_file()})
                error.add_note(f"{output_dir} is not whole, and later stages refuse it"
                               f"{f' (whole files in it: {name_a_few(whole, 6)})' if whole else ''}")
            raise


def has_open_stage(directory: str | Path) -> bool:
    """Whether this process runs a stage into the directory."""
    return is_held(Path(directory) / LOCK) and (load_meta(directory) or {}).get("status") == "running"


def mark_failed(directory: str | Path, error: str) -> None:
    """Mark the run in a directory as failed from outside, also one that failed before its stage began."""
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    try:
        meta = load_meta(path)
    except UserError:  # damaged
        meta = None
    meta = meta or {"arguments": {}, "started": None, "history": []}
    write_json(path / META, {**meta, "status": "failed", "finished": _now(), "error": error[:500]})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _start_meta(
    path: Path, args: argparse.Namespace | Mapping[str, Any], inputs: Mapping[str, str | Path | None],
    datasets: Sequence[Split | Mapping[str, Any] | None],
) -> dict[str, Any]:
    arguments = dict(args) if isinstance(args, Mapping) else vars(args)
    earlier = load_meta(path)
    history = [*earlier.pop("history", []), earlier] if earlier else []
    used = [each for each in datasets if each]
    if used and isinstance(used[0], Split) and (digests := used[0].digests()) is not None:
        with atomic(_digests_file(path, used[0].fingerprint)) as temporary, temporary.open("wb") as file:
            np.save(file, np.sort(digests))
    return {
        "status": "running",
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "arguments": arguments,
        "seed": arguments.get("seed"),
        **provenance(),
        "datasets": [each.identity() if isinstance(each, Split) else dict(each) for each in used],
        "inputs": {label: {"path": str(file), "fingerprints": _fingerprints(file)}
                   for label, file in inputs.items() if file},
        "started": _now(),
        "finished": None,
        "history": history,
    }


def hand_on_digests(output_dir: str | Path, source: str | Path) -> None:
    """Keep the digests of an artifact's examples with what is made of it by a stage that does not read the dataset."""
    recorded = recorded_dataset(source)
    file = _digests_file(source, recorded["fingerprint"]) if recorded else None
    if file is not None and file.exists():
        with atomic(Path(output_dir) / file.name) as temporary:
            shutil.copyfile(file, temporary)


def _digests_file(path: str | Path, fingerprint: str) -> Path:
    path = Path(path)
    return (path if path.is_dir() else path.parent) / f".examples-{fingerprint}.npy"


def _end_meta(path: Path, meta: dict[str, Any], status: str, owns: Sequence[str], error: str | None = None) -> None:
    files = sorted({file for pattern in owns for file in path.glob(pattern) if file.is_file()})
    # What counts is their content: a spreadsheet that saves one again makes it shorter.
    rows = {file.name: csv_rows(file) for file in files if file.suffix == ".csv" and status == "finished"}
    write_json(path / META, {
        **{key: value for key, value in meta.items() if key != "history"}, "status": status, "finished": _now(),
        **({} if error is None else {"error": error}),
        "outputs": {file.name: file.stat().st_size for file in files}, "rows": rows, "history": meta["history"],
    })


def _stamps(path: Path, owns: Sequence[str]) -> dict[Path, tuple[int, int]]:
    """What tells whether something was done to the artifacts of a stage."""
    found = {file: file.lstat() for pattern in owns for file in path.glob(pattern)}
    return {file: (stat.st_mtime_ns, stat.st_size) for file, stat in found.items()}


def _take_back(path: Path, meta: Mapping[str, Any]) -> None:
    """A stage that was to go on with what is there, and was refused before it did anything, has not been."""
    with suppress(OSError):  # then it is marked as running
        if meta["history"]:
            write_json(path / META, {**meta["history"][-1], "history": meta["history"][:-1]})
        else:
            (path / META).unlink()


def _mark_failed_in_place(file: Path) -> None:
    """Mark a run as failed where the disk is too full for a new run_meta.json: with a word of the same length."""
    running, failed = b'"status": "running"', b'"status": "failed" '
    with suppress(OSError), file.open("r+b") as stream:
        place = stream.read().find(running)
        if place >= 0:
            stream.seek(place)
            stream.write(failed)


def _fingerprints(file: str | Path) -> list[str]:
    return [identity["fingerprint"] for identity in (load_meta(file) or {}).get("datasets", [])]


def provenance(packages: tuple[str, ...] = PACKAGES, apart_from: Sequence[str] = ()) -> dict[str, Any]:
    """What made a result: the commit of the code, whether it was changed since, and the versions of the packages.
    apart_from: files and directories of the checkout that may have been changed."""
    commit, dirty = _git_state(*apart_from)
    return {"git_commit": commit, "git_dirty": dirty,
            "versions": {"python": sys.version.split()[0], **_versions(packages)}}


def _git_state(*apart_from: str) -> tuple[str | None, bool | None]:
    """Commit of the code and whether it was changed since; None where the code is not in a git checkout."""
    if not (CHECKOUT / ".git").exists():
        return None, None
    command = ["git", "status", "--porcelain=v2", "--branch", "--untracked-files=no", "--", ".",
               *(f":(exclude){path}" for path in apart_from)]
    try:
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None, None
    lines = done.stdout.splitlines()
    commit = next(line.removeprefix("# branch.oid ") for line in lines if line.startswith("# branch.oid "))
    return commit, any(not line.startswith("#") for line in lines)


@functools.cache  # a process goes on with what it has imported
def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Of those that are installed."""
    found = {package: list(metadata.distributions(name=package)) for package in packages}
    return {package: copies[0].version for package, copies in found.items() if copies}


def _remove(path: Path, patterns: Iterable[str]) -> None:
    for pattern in patterns:
        for item in path.glob(pattern):
            if item.is_dir() and not item.is_symlink():
                shutil.rmtree(item)
            else:
                item.unlink()


# --- reading -----------------------------------------------------------------------------------------------------


def load_meta(path: str | Path) -> dict[str, Any] | None:
    """The run_meta.json of an artifact (a file or its directory), or None where there is none."""
    path = Path(path)
    file = (path if path.is_dir() else path.parent) / META
    if not file.exists():
        return None
    meta = read_json(file)
    if wrong := _wrong_in(meta) or not_strict(meta):
        raise UserError(f"{file} is not as a stage writes it ({wrong}): make {file.parent} again, or take the file "
                        "away if what lies beside it was made elsewhere")
    return meta


def _wrong_in(meta: Any) -> str | None:
    """What in a run_meta.json would stop a reader; keys that are absent would not."""
    if not isinstance(meta, dict):
        return f"expected an object, found {meta!r:.40}"
    kinds = {"datasets": list, "history": list, "owns": list, "outputs": dict, "rows": dict, "arguments": dict}
    for key, kind in kinds.items():
        if not isinstance(meta.get(key, kind()), kind):
            return f"{key} is {meta[key]!r:.40}"
    for identity in meta.get("datasets", ()):
        named = isinstance(identity, dict) and [identity.get(key) for key in ("dataset", "split", "fingerprint")]
        if not named or not all(isinstance(value, str) for value in named):
            return f"datasets holds {identity!r:.40}"
        cap, task = identity.get("max_samples", 1), identity.get("task", {"name": ""})
        if not isinstance(cap, int | None) or not isinstance(task, dict) or not isinstance(task.get("name"), str):
            return f"datasets holds {identity!r:.40}"
    if odd := [each for each in meta.get("owns", ()) if not isinstance(each, str)]:
        return f"owns holds {odd[0]!r:.40}"
    for key in ("outputs", "rows"):
        if odd := [each for each in meta.get(key, {}).values() if not isinstance(each, int)]:
            return f"{key} holds {odd[0]!r:.40}"
    return next(filter(None, map(_wrong_in, meta.get("history", ()))), None)


def model_meta(path: str | Path) -> dict[str, Any] | None:
    """The run that trained the model in a directory, also when it was evaluated into the same directory since."""
    meta = load_meta(path)
    runs = [meta, *reversed(meta.get("history", []))] if meta else []
    return next((run for run in runs if run.get("arguments", {}).get("do_train")), None)


def artifact_file(path: str | Path, filename: str, made_by: str, appended: bool = False) -> Path:
    """The file of an artifact given as its directory or as the file itself.

    ``made_by`` is the command that writes it, for the message. Raises UserError when it is missing, empty, shorter
    than when it was written, or when its run is marked running or failed. Of a directory the Parquet form of the file
    is taken where only that is there (``in_either_form``). Files made elsewhere, without run_meta.json, are accepted.
    appended: the file only grows, by whole records: what a failed run left of it is taken, with a warning.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or directory; {made_by} writes {filename}")
    file = in_either_form(path / filename) if path.is_dir() else path
    meta = load_meta(file) or {}
    # Several stages may write into one directory: the last run that owns this file says whether it is whole.
    runs = [meta, *reversed(meta.get("history", []))]
    owner = next((run for run in runs if any(fnmatch(file.name, each) for each in run.get("owns", ()))), meta)
    status = owner.get("status", "finished")  # a meta of somebody else's says nothing
    if status == "failed" and appended and file.exists():
        logger.warning(f"{file}: the last run that wrote it failed ({owner.get('error') or 'no reason given'}); what "
                       "there is of it is taken")
    elif status != "finished":
        reason = "is still running or was killed" if status == "running" else "failed"
        raise UserError(f"{file.parent} is not whole: the run that writes it {reason} ({META}); run {made_by} again")
    if not file.exists():
        raise UserError(f"{path} holds no {filename}; {made_by} writes it")
    size = file.stat().st_size
    if size == 0:
        raise UserError(f"{file} is empty; run {made_by} again")
    written, unit = owner.get("outputs", {}).get(file.name, size), "bytes"
    if size != written and file.name in owner.get("rows", {}):
        size, written, unit = csv_rows(file), owner["rows"][file.name], "rows"
    if size < written:
        raise UserError(
            f"{file} is truncated: {size:,} {unit}, {written:,} when it was written; run {made_by} again (a file "
            "shortened on purpose belongs into a directory of its own)"
        )
    return file


def recorded_dataset(path: str | Path) -> dict[str, Any] | None:
    """``{"dataset", "split", "fingerprint", "rows"}`` of the split that an artifact was made from, or None."""
    path = Path(path)
    if path.name.startswith("checkpoint-") and not (path / META).exists():
        path = path.parent
    meta = model_meta(path) or load_meta(path)  # a model stands for what it was trained on
    return meta["datasets"][0] if meta and meta.get("datasets") else None


def recorded_task(*artifacts: str | Path) -> dict[str, Any] | None:
    """The settings of the task for which the first of these artifacts that records one was made."""
    recorded = (recorded_dataset(artifact) or {} for artifact in artifacts)
    return next((identity["task"] for identity in recorded if "task" in identity), None)


def recorded_split(
    artifact: str | Path, dataset: str | None, split: str | None, task: RowFormat, max_samples: int | None = None
) -> Split | None:
    """The split named on the command line, else the one recorded in the artifact; None where neither names one.

    Where the artifact was made from its first rows, these are taken, unless ``max_samples`` asks for others.
    """
    recorded = recorded_dataset(artifact) or {}
    name = dataset or recorded.get("dataset")
    if name is None:
        return None
    split = split or recorded.get("split", "train")
    if max_samples is None:
        max_samples = recorded_cap(recorded, name, split)
    try:
        return load_split(name, split, task, max_samples)
    except UserError as error:
        if dataset:
            raise
        raise UserError(f"{error} (recorded in {artifact}; --dataset names another place)") from error


def recorded_cap(recorded: Mapping[str, Any], name: str, split: str) -> int | None:
    """How many of the first rows of this split an artifact was made from (--max_train_samples); None for all."""
    named = place_of_dataset(name), split
    cap = recorded.get("max_samples") if named == (recorded.get("dataset"), recorded.get("split")) else None
    if cap is not None:
        logger.info(f"the first {cap:,} examples of {name} [{split}] are taken, as in what is read")
    return cap


def check_not_read(output_dir: str | Path, *sources: str | Path) -> None:
    """Refuse an output directory that holds what is read: writing starts by removing."""
    for source in map(Path, sources):
        if Path(output_dir).resolve() == (source if source.is_dir() else source.parent).resolve():
            raise UserError(f"--output_dir {output_dir} holds {source.name}, which is read; name another directory")


def check_same_dataset(path: str | Path, artifact_ids: Iterable[str], split: Split) -> set[str]:
    """Refuse an artifact that was made from another dataset; return the ids whose examples have changed since.

    What the artifact says of these does not count, and a warning counts them; with ``split.allow_changed`` it does,
    and the set is empty. No shared ids, or none whose example is the same (by id and content), is a UserError that
    names both datasets; partial overlap is reported.
    """
    recorded = recorded_dataset(path)
    other = f"{recorded['dataset']} [{recorded['split']}]" if recorded else "another dataset"
    this = f"{split.name} [{split.split}]"
    # An index of pandas would make each text by itself.
    known = set(artifact_ids.to_numpy() if hasattr(artifact_ids, "to_numpy") else artifact_ids)
    shared = [example for example in split.ids if example in known]
    if not shared:
        raise UserError(f"{path} was made from {other} and shares no ids with {this}; give the one made from {this}")
    changed: set[str] = set()
    if recorded and recorded["fingerprint"] != split.fingerprint:
        prints = f"fingerprints {recorded['fingerprint']} and {split.fingerprint}"
        same = _unchanged(path, recorded["fingerprint"], split)
        if same is None:
            file = _digests_file(path, recorded["fingerprint"]).name
            raise UserError(f"{path} was made from {other}, which has ids of {this} but other content ({prints}); "
                            f"which examples differ cannot be told without {file} (hidden: a copy may have left it "
                            f"out, an older version wrote none); copy it too, or make {path} again from {this}")
        changed = set(shared) - same
        if len(changed) == len(shared):
            raise UserError(f"{path} was made from {other}, which has ids of {this} but other content in every "
                            f"example ({prints}); give the one made from {this}, or make it with --dataset "
                            f"{split.name}")
        if changed:
            taken = "their old rows are taken" if split.allow_changed else (
                "they are left out of it (--allow_changed takes their old rows)")
            names = name_a_few([example for example in shared if example in changed])
            logger.warning(f"{path} was made from {other}: {len(changed):,} of {len(shared):,} examples of {this} "
                           f"that it knows have changed since ({names}); {taken}")
    left_out = set() if split.allow_changed else changed
    covered = len(shared) - len(left_out)
    if covered < len(split.data):
        logger.info(f"{path} covers {covered:,} of {len(split.data):,} examples of {this} "
                    f"({covered / len(split.data):.1%})")
    return left_out


def _unchanged(path: str | Path, fingerprint: str, split: Split) -> set[str] | None:
    """The ids of the whole split whose examples an artifact knows as they are; None where it has not recorded that."""
    file, digests = _digests_file(path, fingerprint), split.digests()
    if split.whole is None or digests is None or not file.exists():
        return None
    try:
        is_same = np.isin(digests, np.load(file))
    except (ValueError, EOFError) as error:
        raise UserError(f"{file} is damaged ({first_line(error)}); make {path} again") from error
    return {example for example, same in zip(split.whole["id"][:], is_same.tolist(), strict=True) if same}


# --- telling one from another --------------------------------------------------------------------------------------


def content_key(path: str | Path) -> str:
    """What tells an artifact from one that was made again in the same place."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or directory, and it is to be read")
    if path.is_file():
        return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
    if (meta := load_meta(path)) is not None:
        return digest([meta.get("started"), meta.get("arguments"), meta.get("outputs")])
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return digest([[str(file.relative_to(path)), hashlib.blake2b(file.read_bytes()).hexdigest()] for file in files])


def digest(value: Any) -> str:
    """16 hex digits over a JSON value."""
    text = json.dumps(value, sort_keys=True, default=plain)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
