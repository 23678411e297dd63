"""Try to break every script: damaged files, odd data, odd flags, kills, full disks, two at once, odd surroundings.

A try ends well when its last command exits with 0, or with 2 and one line on stderr that says why; no temporary file
or lock is left, nothing half-written is called finished, and a result that must be that of an undisturbed run is.

    python tests/breaking/breaking.py                            1,000 tries, about 15 minutes on 2 cores
    python tests/breaking/breaking.py --every 10                 a tenth of them
    python tests/breaking/breaking.py --tries 10000 --seed 7
    python tests/breaking/breaking.py --only damaged:17 --keep damaged-17
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import context
from pathlib import Path
from typing import NamedTuple

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="",
                  MPLBACKEND="agg", HF_DATASETS_DISABLE_PROGRESS_BARS="1")
OURS = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy",
        "ALL_PROXY", "SSL_CERT_FILE")  # of the machine, and nothing of it may matter
for name in OURS:
    os.environ.pop(name, None)

import warm_processes  # noqa: E402  after the environment

SHOWN = 100  # tries from one line to the next


class Verdict(NamedTuple):
    family: str
    number: int
    end: str  # "well", "exit 2" or "broke"
    why: str
    seconds: float


def shares(tries: int) -> dict[str, int]:
    """How many of the tries each family has."""
    from families import FAMILIES

    whole = sum(share for _, share in FAMILIES.values())
    return {name: max(1, round(tries * share / whole)) for name, (_, share) in FAMILIES.items()}


def carry_out(family: str, number: int, seed: int, base: str, where: str, url: str, keep: bool) -> Verdict:
    import numpy as np
    from families import FAMILIES
    from place import Broke, Place

    began = time.monotonic()
    rng = np.random.default_rng([seed, zlib.crc32(family.encode()), number])
    directory = Path(where) / f"{family}-{number}"
    shutil.rmtree(directory, ignore_errors=True)
    place = Place(Path(base), directory, rng, url)
    try:
        FAMILIES[family][0](place)
        end = "exit 2" if place.outcomes and place.outcomes[-1].status == 2 else "well"
        why = place.note
    except Broke as error:
        end, why = "broke", f"{place.note}: {error}"
    except (Exception, SystemExit) as error:  # of the try itself
        end, why = "broke", f"{place.note}: the try is wrong: {error!r}\n{traceback.format_exc()}"
    if keep or end == "broke":
        told = "".join(f"$ {each.command}\n{each.out}{each.err}[{each.status}]\n\n" for each in place.outcomes)
        why += "\n    " + (place.outcomes[-1].command if place.outcomes else "no command")
        if keep:
            (directory / "told.txt").write_text(told, encoding="utf-8", errors="backslashreplace")
    if not keep:
        shutil.rmtree(directory, ignore_errors=True)
    return Verdict(family, number, end, why, time.monotonic() - began)


def serve(pipe) -> None:  # type: ignore[no-untyped-def]
    import base_artifacts

    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what it says of clients that were killed
    server = base_artifacts.serve_chat()
    pipe.send(server.url)
    server.http.serve_forever()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Try to break every script.")
    parser.add_argument("--tries", type=int, default=1000, metavar="N", help="of all families (default: 1,000)")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every Nth of them")
    parser.add_argument("--only", metavar="FAMILY[:NUMBER]", help="one family, or one try")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="tries at a time")
    parser.add_argument("--keep", metavar="DIR", help="work here, where base artifacts may be there from before, and "
                        "leave what the tries leave")
    parser.add_argument("--times", action="store_true", help="print the slowest tries, too")
    return parser.parse_args()


def chosen(args: argparse.Namespace) -> list[tuple[str, int]]:
    """The tries, of all families by turns."""
    if ":" in (args.only or ""):
        family, _, number = args.only.partition(":")
        return [(family, int(number))]
    found = [(number / count, family, number) for family, count in shares(args.tries).items()
             for number in range(0, count, args.every) if args.only in (None, family)]
    return [(family, number) for _, family, number in sorted(found)]


def main() -> int:
    args = parse_args()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # of odd commands
    began = time.monotonic()
    where = Path(args.keep or tempfile.mkdtemp(prefix="breaking-")).resolve()
    base = where / "base"
    base.mkdir(parents=True, exist_ok=True)
    os.environ["BREAKING_DIR"], os.environ["HF_HOME"] = str(where), str(where / "hub")
    warm_processes.import_everything()
    import base_artifacts

    fork = context.ForkContext()
    ours, theirs = fork.Pipe()
    server = fork.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    url = ours.recv()
    verdicts: list[Verdict] = []
    try:
        is_made = (base / ".seconds.json").exists()
        if not is_made:
            base_artifacts.make_data(base)
        with ProcessPoolExecutor(args.workers, fork) as pool:
            if not is_made:
                made = [pool.submit(base_artifacts.make_chain, base, chain, url) for chain in base_artifacts.CHAINS]
                seconds = {name: took for each in made for name, took in each.result().items()}
                (base / ".seconds.json").write_text(json.dumps(seconds))
            print(f"base artifacts: {time.monotonic() - began:.0f} s", flush=True)
            tries = [pool.submit(carry_out, *each, args.seed, str(base), str(where), url, bool(args.keep))
                     for each in chosen(args)]
            for done in as_completed(tries):
                verdicts.append(verdict := done.result())
                if len(verdicts) % SHOWN == 0:
                    print(f"{len(verdicts):,} of {len(tries):,} tries, {time.monotonic() - began:.0f} s", flush=True)
                if verdict.end == "broke":
                    print(f"{verdict.family}:{verdict.number}  {verdict.why}\n    python tests/breaking/breaking.py "
                          f"--seed {args.seed} --only {verdict.family}:{verdict.number}", flush=True)
                elif args.only:
                    print(f"{verdict.family}:{verdict.number}  {verdict.end}: {verdict.why}", flush=True)
    finally:
        server.terminate()
        if not args.keep:
            shutil.rmtree(where, ignore_errors=True)
    ends = Counter((verdict.family, verdict.end) for verdict in verdicts)
    print(f"\n{'family':<14}{'tries':>7}{'well':>7}{'exit 2':>8}{'broke':>7}{'seconds':>9}")
    for family in dict.fromkeys(family for family, _ in chosen(args)):
        counts = [ends[family, end] for end in ("well", "exit 2", "broke")]
        took = sum(verdict.seconds for verdict in verdicts if verdict.family == family)
        print(f"{family:<14}{sum(counts):>7}{counts[0]:>7}{counts[1]:>8}{counts[2]:>7}{took:>9.0f}")
    broke = sum(verdict.end == "broke" for verdict in verdicts)
    if args.times:
        for verdict in sorted(verdicts, key=lambda each: -each.seconds)[:15]:
            print(f"{verdict.seconds:6.1f} s  {verdict.family}:{verdict.number}  {verdict.why}")
    of_cpu = sum(os.times()[:4])
    print(f"{len(verdicts):,} tries, {broke} broke ({time.monotonic() - began:.0f} s, {of_cpu:.0f} s of processor)")
    return int(broke > 0)


if __name__ == "__main__":
    sys.exit(main())
