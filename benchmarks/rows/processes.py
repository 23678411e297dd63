"""Whole processes: the start of every script, and a map in one command beside its stages in processes of their own."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from timing import Found, Measure, Setting, in_own_process, in_turn, ratio, script, timed

from datamap.core.places import CHECKOUT
from datamap.suites.runs import LOG
from rows import made

# --- the start -------------------------------------------------------------------------------------------------------

HEAVY = ("torch", "transformers", "datasets", "pandas", "sklearn", "scipy", "matplotlib", "hdbscan", "umap", "plotly")
NO_SCRIPT = "helpers.py"
# Ends --help as the script does, and says which of the heavy libraries were imported for it.
OF_HELP = ("import atexit, io, runpy, sys; atexit.register(lambda: print('\\nloaded', "
           f"*[name for name in {HEAVY!r} if name in sys.modules])); "
           "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')")


def python(*code: str) -> float:
    return timed(subprocess.run, [sys.executable, "-c", *code], cwd=CHECKOUT, check=True, capture_output=True)[0]


def answered(name: str, flag: str, status: int, _: int) -> float:
    return script(name, flag, peak=False, status=status).seconds


def start(setting: Setting) -> Found:
    scripts = sorted(path.name for path in CHECKOUT.glob("*.py") if path.name != NO_SCRIPT)
    scripts = scripts[: setting.size(len(scripts), 2)]
    rounds = setting.size(5, 1)
    calls: dict[str, Callable[[int], float]] = {
        "python -c pass": lambda _: python("pass"), "import datamap": lambda _: python("import datamap"),
        "import torch": lambda _: python("import torch"),
    }
    for name in scripts:
        calls[f"{name} --help"] = partial(answered, name, "--help", 0)
        calls[f"{name}, an argument error"] = partial(answered, name, "--no_such_flag", 2)
    first = ["--do_train", "--dataset=demo:clinical", "--model=tiny", "--max_steps=1", "--max_train_samples=16",
             "--save_strategy=no", "--no_cuda", "--overwrite", f"--output_dir={setting.scratch / 'model'}"]
    calls["run.py, a training of one step"] = lambda _: script("run.py", *first, peak=False).seconds
    found = dict(zip(calls, in_turn(rounds, *calls.values()), strict=True))
    plain, torch = found["python -c pass"], found["import torch"]
    bounded = [name for name in calls if name.startswith("import datamap") or " --help" in name or "argument" in name]
    measures = [Measure("python -c pass", plain, " s"), Measure("import torch", torch, " s")]
    measures += [Measure(f"{name}: more than python -c pass",
                         [one - other for one, other in zip(found[name], plain, strict=True)], " s", most=0.3)
                 for name in bounded]
    one_step = found["run.py, a training of one step"]
    measures += [Measure("run.py, a training of one step: more than import torch",
                         [one - other for one, other in zip(one_step, torch, strict=True)], " s", most=0.3)]
    loaded = {name: heavy_libraries(name) for name in scripts}
    measures.append(Measure("heavy libraries that --help imports, all scripts",
                            [float(sum(map(len, loaded.values())))], most=0.0))
    return Found(measures, details={"imported_for_help": {name: libraries for name, libraries in loaded.items()
                                                          if libraries}})


def heavy_libraries(name: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", OF_HELP, str(CHECKOUT / name), "--help"], cwd=CHECKOUT,
                          capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()[1:]


# --- the chain -------------------------------------------------------------------------------------------------------


def stages_of(log: Path) -> list[tuple[str, list[str]]]:
    """The command lines of the stages that map_dataset.py carried out, as its log tells them."""
    lines = re.findall(r"^--- \S+ python (\S+) ?(.*)$", log.read_text(encoding="utf-8"), re.MULTILINE)
    return [(name, shlex.split(rest)) for name, rest in lines]


def chain(setting: Setting) -> Found:
    given: dict[int, list[str]] = {}
    if not setting.quick:
        trained = setting.output("trained")
        script("run.py", "--do_train", "--enable_cartography", "--model=tiny", "--dataset=demo:clinical",
               "--max_length=128", "--doc_stride=32", "--num_train_epochs=2", "--per_device_train_batch_size=16",
               "--save_strategy=no", "--no_cuda", f"--output_dir={trained / 'model'}",
               f"--cartography_output_dir={trained / 'map'}")
        given[2500] = [f"--cartography_dir={trained / 'map'}", "--max_length=128", "--doc_stride=32", "--no_cuda",
                       "--visualization_method=pca", "--reduction_dim=10", "--min_samples=5"]
    # So many cannot be embedded in the time of this row: embeddings, clusters and predictions are given as well.
    large, at = setting.size(100_000, 300), str(setting.output("made"))
    in_own_process(made.write_artifacts, at, "nli", large)
    given[large] = [f"--dataset={at}/train.jsonl", "--task=nli", f"--cartography_dir={at}/map",
                    f"--embedding_dir={at}/embeddings", f"--cluster_dir={at}/clusters",
                    f"--predictions={at}/predictions"]
    measures = []
    for size, flags in given.items():
        home = setting.scratch / f"map-{size}"

        def whole(number: int, home: Path = home, flags: list[str] = flags) -> float:
            return script("map_dataset.py", *flags, f"--output_dir={home}-{number}").seconds

        def apart(number: int, home: Path = home) -> float:
            """The stages of the first map, which write to a directory of their own."""
            other = f"{home}-apart-{number}"
            Path(other).mkdir()
            return sum(script(name, *(word.replace(f"{home}-0", other) for word in argv)).seconds
                       for name, argv in stages_of(Path(f"{home}-0", LOG)))

        one, many = in_turn(2 if size == 2500 else 1, whole, apart)
        stages = len(stages_of(Path(f"{home}-0", LOG)))
        measures += [Measure(f"{size:,} examples, one command", one, " s"),
                     Measure(f"{size:,} examples, {stages} processes", many, " s"),
                     ratio(f"{size:,} examples: processes / one command", many, one, least=1.0)]
    return Found(measures)
