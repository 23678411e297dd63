"""What others read, such as a map or a trained model: found, or made once by a script, however many ask for it."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datamap.core.artifacts import load_meta, model_meta
from datamap.core.locks import LOCK, lock
from datamap.core.places import script_file
from datamap.training.checkpoints import has_whole_checkpoint

logger = logging.getLogger(__name__)


class PrerequisiteFailed(Exception):
    """A prerequisite could not be made; its log says why."""


@dataclass
class Prerequisite:
    """A directory that others read. command: the script that makes it and its flags, empty where it is there."""

    name: str
    directory: Path
    command: list[str]
    identity: str | None  # None: not ours, its content tells it from others


def visible_gpus() -> list[str]:
    """The GPUs that processes may share, as CUDA_VISIBLE_DEVICES would name them; found without importing torch."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in visible.split(",") if name.strip()]
    if shutil.which("nvidia-smi") is None:
        return []
    ask = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    listed = subprocess.run(ask, capture_output=True, text=True)
    return listed.stdout.split() if listed.returncode == 0 else []


def one_gpu() -> dict[str, str]:
    """What a process must have in its environment to see one of them: on several the library splits batches over
    threads, which trains with larger ones and records nothing."""
    return {"CUDA_VISIBLE_DEVICES": gpus[0]} if (gpus := visible_gpus()) else {}


def is_made(each: Prerequisite) -> bool:
    metas = [load_meta(each.directory) if each.directory.is_dir() else None]
    model = each.directory.parent / "trainer_output"
    if each.name == "cartography" and model.is_dir():
        metas.append(model_meta(model))  # killed between the two, the map is whole and its model is not
    return all(meta is not None and meta["status"] == "finished" for meta in metas)


def make(needed: Sequence[Prerequisite]) -> None:
    """Make what is missing, one after the other; another process that is at the same one is waited for.

    Raises PrerequisiteFailed with the last lines of the log.
    """
    for each in needed:
        if is_made(each):
            continue
        home = each.directory.parent
        with lock(home / LOCK, wait=True) as descriptors:
            if is_made(each):
                continue
            script, *argv = each.command
            if script == "run.py":
                whole = has_whole_checkpoint(home / "trainer_output", with_dynamics=True)
                argv.append("--resume_from_checkpoint" if whole else "--overwrite")
            logger.info(f"making {each.directory}: {shlex.join(['python', script, *argv])}")
            log = home / "log.txt"
            with log.open("a", encoding="utf-8") as file:
                # The child holds the lock too: when this process is killed, the next one waits for it.
                done = subprocess.run([sys.executable, str(script_file(script)), *argv], stdout=file, stderr=file,
                                      pass_fds=descriptors, env={**os.environ, **one_gpu()})
            if done.returncode:
                last = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()][-3:]
                raise PrerequisiteFailed("\n".join([f"{each.name} could not be made ({log}):", *last]))
