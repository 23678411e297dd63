"""What the experiments of a suite read: a cartography run, embeddings, clusters. Found, or made once and shared."""

from __future__ import annotations

import logging
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from artifacts import load_meta
from checkpoints import whole_checkpoints
from helpers import DEFAULT_SEED, UserError
from run_arguments import parse_args
from suites import Suite, fingerprints, parse_quietly, settings_hash
from tasks import TASKS

SCRIPTS = {"embeddings": "extract_embeddings.py", "clusters": "cluster_analysis.py"}
HERE = Path(__file__).resolve().parent

logger = logging.getLogger(__name__)


class PrerequisiteFailed(Exception):
    """A prerequisite could not be made; its log says why."""


@dataclass
class Prerequisite:
    """A directory that the experiments read. command: what makes it, None where it is there already."""

    name: str
    directory: Path
    command: list[str] | None
    identity: str | None  # None: not ours, told by its content


def plan(suite: Suite, experiments_dir: Path) -> list[Prerequisite]:
    """The prerequisites that the suite names, those that they need themselves first."""
    if not suite.prerequisites:
        return []
    where = f"suite {suite.name}, prerequisites"
    flags = {name: suite.prerequisites.get(name, []) for name in ("cartography", "embeddings", "clusters")}
    argv = [*suite.base, *flags["cartography"], "--do_train=true", "--enable_cartography=true",
            f"--seed={DEFAULT_SEED}"]  # fmt: skip
    arguments = parse_quietly(parse_args, argv, where)
    identity = settings_hash(arguments, {}, {}) + f"-{arguments.seed}"
    home = experiments_dir / "shared" / f"cartography-{identity[:8]}"
    found = _matching_map(Path(arguments.cartography_output_dir), arguments)
    given = any(word.startswith("--cartography_output_dir") for word in suite.base)
    if given and found is None:
        raise UserError(f"{where}: {arguments.cartography_output_dir} is no finished map of {arguments.dataset} "
                        f"[{arguments.train_split}]; leave --cartography_output_dir out to have one made")  # fmt: skip
    places = [f"--cartography_output_dir={home / 'cartography_output'}", f"--output_dir={home / 'trainer_output'}"]
    made = Prerequisite("cartography", home / "cartography_output", ["run.py", *argv, *places], identity)
    needed = [made if found is None else Prerequisite("cartography", found, None, None)]
    if "embeddings" in suite.prerequisites or "clusters" in suite.prerequisites:
        needed += _clusters(suite, flags, arguments, needed[0], home)
    return needed


def _matching_map(directory: Path, arguments: Any) -> Path | None:
    """The directory when it holds a finished map of what the baseline trains on, by the same model."""
    meta = load_meta(directory) if directory.is_dir() else None
    if meta is None or meta["status"] != "finished" or not meta.get("datasets"):
        return None
    before = meta["arguments"]
    same = before.get("model") == arguments.model
    rows, asked = meta["datasets"][0]["rows"], arguments.max_train_samples
    covers = (before.get("max_train_samples") or rows) >= min(asked or rows, rows)
    whole = covers and not before.get("filters") and not before.get("train_ids")
    known = meta["datasets"][0]["fingerprint"] == fingerprints(arguments)[arguments.train_split]
    if same and whole and known:
        return directory
    logger.info(f"{directory} is no map of all of {arguments.dataset} [{arguments.train_split}] by {arguments.model}: "
                "not used")  # fmt: skip
    return None


def _clusters(
    suite: Suite, flags: dict[str, list[str]], arguments: Any, cartography: Prerequisite, home: Path
) -> list[Prerequisite]:
    existing = Path(arguments.cluster_assignments_path)
    meta = load_meta(existing) if existing.is_dir() else None
    fingerprint = fingerprints(arguments)[arguments.train_split]
    if meta and meta["status"] == "finished" and meta.get("datasets", [{}])[0].get("fingerprint") == fingerprint:
        return [Prerequisite("clusters", existing, None, None)]
    model = home / "trainer_output"
    if cartography.command is None:
        model = Path((load_meta(cartography.directory) or {})["arguments"]["output_dir"])
        home = home.with_name(home.name.replace("cartography", "clusters"))
    lengths = ["max_length", *(["doc_stride"] if "doc_stride" in TASKS[arguments.task].flags else [])]
    sizes = [f"--{name}={getattr(arguments, name)}" for name in lengths]
    if arguments.max_train_samples:
        sizes.append(f"--max_samples={arguments.max_train_samples}")
    places = {
        "embeddings": [f"--model_path={model}", f"--split={arguments.train_split}",
                       *sizes, f"--no_cuda={arguments.no_cuda}".lower(),
                       f"--output_dir={home / 'embeddings_output'}"],
        "clusters": [f"--embedding_dir={home / 'embeddings_output'}", f"--output_dir={home / 'cluster_output'}"],
    }  # fmt: skip
    needed = []
    for name in ("embeddings", "clusters"):
        argv = [*places[name], *flags[name]]
        identity = "-".join([str(cartography.identity or cartography.directory), *flags["embeddings"], *flags[name]])
        needed.append(Prerequisite(name, Path(places[name][-1].partition("=")[2]), [SCRIPTS[name], *argv], identity))
    return needed


def is_made(each: Prerequisite) -> bool:
    meta = load_meta(each.directory) if each.directory.is_dir() else None
    return meta is not None and meta["status"] == "finished"


def shown(each: Prerequisite) -> str:
    """The command that makes it, to be typed."""
    assert each.command is not None
    return shlex.join(["python", *each.command])


def make(needed: Sequence[Prerequisite]) -> None:
    """Make what is missing, one after the other; another process that is at the same one is waited for.

    Raises PrerequisiteFailed with the last lines of the log.
    """
    for each in needed:
        if each.command is None or is_made(each):
            continue
        home = each.directory.parent
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(home / ".lock"):
            if is_made(each):
                continue
            script, *argv = each.command
            if script == "run.py":
                whole = whole_checkpoints(home / "trainer_output", with_dynamics=True)
                argv.append("--resume_from_checkpoint" if whole else "--overwrite")
            logger.info(f"making {each.directory}: {shlex.join(['python', script, *argv])}")
            log = home / "log.txt"
            with log.open("a", encoding="utf-8") as file:
                done = subprocess.run([sys.executable, str(HERE / script), *argv], stdout=file, stderr=file)
            if done.returncode:
                last = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()][-3:]
                raise PrerequisiteFailed("\n".join([f"{each.name} could not be made ({log}):", *last]))


def places_of(needed: Sequence[Prerequisite]) -> list[str]:
    """The flags of run.py that say where the prerequisites are."""
    flags = {"cartography": "--cartography_output_dir", "clusters": "--cluster_assignments_path"}
    return [f"{flags[each.name]}={each.directory}" for each in needed if each.name in flags]
