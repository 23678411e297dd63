"""Datasets of the Hub, and whether it can be reached at all: without a network that costs one line, not a minute of
retries."""

from __future__ import annotations

import functools
import glob
import logging
import os
import re
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from datamap.core.errors import UserError, first_line, name_a_few

if TYPE_CHECKING:
    import datasets

SECONDS = 10  # that the Hub has to answer: firewalls of clusters swallow what is sent
REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")
DATA_FILE = re.compile(r".*\.(json|jsonl|csv|tsv|parquet)(\.gz)?")


@functools.cache
def unreachable() -> str:
    """Why the Hub cannot be reached, "" where it can be; to be asked before a library is let at a Hub name.

    Where it cannot, the libraries of this process, and of those that it starts, take what is in their caches.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    logging.getLogger("huggingface_hub").handlers.clear()  # its own: every line of it would be printed twice
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    answers = []

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=SECONDS)
            answers.append("")
        except Exception as error:  # httpx's, requests', or of a proxy's bad URL
            answers.append(first_line(error))

    # No time limit of a request holds for name servers.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(SECONDS + 1)
    why = answers[0] if answers else f"it has not answered for {SECONDS} s"
    if why:
        os.environ["HF_HUB_OFFLINE"] = "1"
        constants.HF_HUB_OFFLINE = True
        if "datasets" in sys.modules:
            sys.modules["datasets"].config.HF_HUB_OFFLINE = True
    return why


def read_hub(name: str, split: str) -> datasets.Dataset:
    """A split of ``owner/name`` or ``owner/name:subset``. UserError for what cannot be had, and at once for what looks
    like the path of a file."""
    repository, _, subset = name.partition(":")
    files = sorted(file for file in glob.glob(f"{glob.escape(name)}.*") if DATA_FILE.fullmatch(file))
    if files:
        raise UserError(f"dataset {name!r}: no such file or directory; is {name_a_few(files)} meant? (A dataset of "
                        "the Hub is owner/name)")
    if not REPOSITORY.fullmatch(repository):
        raise UserError(f"dataset {name!r}: no such file or directory, and no name of the Hub, which is owner/name")
    why = unreachable()
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return datasets.load_dataset(repository, subset or None, split=split)
    except (datasets.exceptions.DatasetNotFoundError, FileNotFoundError, ConnectionError, HfHubHTTPError) as error:
        if why:
            raise UserError(f"dataset {name!r} is neither a local file or directory nor in the cache, and the Hub "
                            f"cannot be reached ({why}); check the name and the network") from error
        raise UserError(
            f"dataset {name!r} is neither a local file or directory nor to be had from the Hub "
            f"({first_line(error)}); check the name, the network, or log in with `hf auth login`"
        ) from error
    except ValueError as error:  # an unknown split or subset: the message lists the known ones
        raise UserError(f"dataset {name!r}: {first_line(error)}") from error


def hub_splits(name: str) -> Sequence[str]:
    """The splits of a dataset of the Hub; none where that cannot be told: loading it comes next and says what is
    wrong."""
    repository, _, subset = name.partition(":")
    if not REPOSITORY.fullmatch(repository):
        return ()
    unreachable()
    import datasets

    try:
        return datasets.get_dataset_split_names(repository, subset or None)
    except (datasets.exceptions.DatasetNotFoundError, FileNotFoundError, ConnectionError, ValueError):
        return ()
