"""Flags of run.py in a JSON file: which value wins, that every kind of value arrives, every mistake in one line."""

import gzip
import json
from pathlib import Path

import pytest

import run
from datamap.core.configs import flags_to_argv, read_mapping
from datamap.core.errors import UserError
from datamap.training.arguments import build_parser

EXAMPLES = Path(__file__).resolve().parents[2] / "example_configs"


@pytest.fixture
def config(tmp_path):
    """Write a config file, from flags or from its very text."""

    def write(content):
        file = tmp_path / "flags.json"
        file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return str(file)

    return write


def parsed(file, *argv):
    return run.parse_args(["--do_train", "--config", file, *argv])


# --- which value wins --------------------------------------------------------------------------------------------


def test_the_file_wins_over_the_default(config):
    args = parsed(config({"seed": 7, "max_length": 64}))
    assert (args.seed, args.max_length) == (7, 64)


def test_the_rest_keeps_its_default(config):
    assert vars(parsed(config({"seed": 7}))) == {
        **vars(run.parse_args(["--do_train"])), "seed": 7, "config": parsed(config({"seed": 7})).config
    }


@pytest.mark.parametrize("before", [True, False])
def test_the_command_line_wins_wherever_config_stands(config, before):
    file = ["--config", config({"seed": 7, "eval_split": ["train", "validation"], "do_eval": True})]
    given = ["--do_train", "--seed", "8", "--eval_split", "test"]
    args = run.parse_args([*given, *file] if before else [*file, *given])
    assert (args.seed, args.eval_split, args.do_eval) == (8, ["test"], True)


def test_config_may_be_joined_to_its_value_and_its_name_hold_spaces(tmp_path):
    file = tmp_path / "my flags.json"
    file.write_text('{"seed": 7}')
    assert run.parse_args(["--do_train", f"--config={file}"]).seed == 7
    assert run.parse_args(["--do_train", "--config", str(file)]).seed == 7


def test_the_command_line_turns_a_switch_of_the_file_off(config):
    args = parsed(config({"do_eval": True, "no_cuda": True}), "--no_cuda", "false")
    assert (args.do_eval, args.no_cuda) == (True, False)


def test_the_last_of_two_on_the_command_line_wins_over_both(config):
    assert parsed(config({"seed": 7}), "--seed", "8", "--seed", "9").seed == 9


# --- every kind of value -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        ({"do_eval": True}, "do_eval", True),
        ({"do_eval": False}, "do_eval", False),
        ({"do_train": False, "do_eval": True}, "do_train", True),  # --do_train of the command line wins
        ({"bf16": True}, "bf16", True),  # of TrainingArguments
        ({"learning_rate": 2e-5}, "learning_rate", 2e-5),
        ({"learning_rate": 1}, "learning_rate", 1.0),
        ({"num_train_epochs": 2.5}, "num_train_epochs", 2.5),
        ({"warmup_steps": 0.1}, "warmup_steps", 0.1),
        ({"lr_scheduler_kwargs": '{"min_lr": 1e-6}'}, "lr_scheduler_kwargs", '{"min_lr": 1e-6}'),
        ({"filter_clusters": True, "exclude_clusters": [-1, 3]}, "exclude_clusters", [-1, 3]),
        ({"filter_clusters": True, "exclude_clusters": [-1]}, "exclude_clusters", [-1]),
        ({"filter_clusters": True, "exclude_clusters": -1}, "exclude_clusters", [-1]),
        ({"filter_clusters": True, "exclude_clusters": "-1,3"}, "exclude_clusters", [-1, 3]),
        ({"filter_categories": ["easy", "hard"]}, "filter_categories", ["easy", "hard"]),
        ({"filter_categories": "easy hard"}, "filter_categories", ["easy", "hard"]),
        ({"eval_split": ["validation"], "do_eval": True}, "eval_split", ["validation"]),
        ({"max_train_samples": None}, "max_train_samples", None),
        ({"eval_split": None}, "eval_split", None),
        ({"seed": None}, "seed", 42),
        ({"output_dir": "a, b/c d"}, "output_dir", "a, b/c d"),
        ({"output_dir": "-x"}, "output_dir", "-x"),
        ({"output_dir": "--model"}, "output_dir", "--model"),
        ({"output_dir": "a=b"}, "output_dir", "a=b"),
        ({"output_dir": "größe/数"}, "output_dir", "größe/数"),
        ({"max-train-samples": 5}, "max_train_samples", 5),
        ({"per-device-train-batch-size": 4}, "per_device_train_batch_size", 4),
        ({"evaluation_strategy": "epoch"}, "eval_strategy", "epoch"),
    ],
)
def test_a_value_arrives_as_it_was_written(config, flags, name, value):
    found = getattr(parsed(config(flags)), name)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("text", ["2e-5", "2E-05", "0.00002", "0.2e-4"])
def test_scientific_notation_is_a_number(config, text):
    assert parsed(config(f'{{"learning_rate": {text}}}')).learning_rate == 2e-5


def test_a_file_says_what_the_command_line_says(config):
    flags = {"do_train": True, "do_eval": True, "model": "tiny", "num_layers": 3, "eval_split": ["test", "train"],
             "learning_rate": 5e-4, "filter_clusters": True, "exclude_clusters": [-1, 0]}
    words = ("--do_train --do_eval --model tiny --num_layers 3 --eval_split test train --learning_rate 5e-4 "
             "--filter_clusters --exclude_clusters -1 0").split()
    by_file, by_words = vars(run.parse_args(["--config", config(flags)])), vars(run.parse_args(words))
    assert by_file.pop("config") and by_words.pop("config") is None
    assert by_file == by_words


@pytest.mark.parametrize("file", [file for file in sorted(EXAMPLES.glob("*.json")) if file.name != "filters.json"])
def test_the_examples_are_whole_command_lines(file):
    args = run.parse_args(["--config", str(file)])
    assert args.do_train and args.do_eval
    assert run.parse_args(["--config", str(file), "--max_train_samples", "7"]).max_train_samples == 7


def test_a_byte_order_mark_is_no_content(config):
    assert parsed(config('\ufeff{"seed": 3}')).seed == 3


def test_an_empty_object_changes_nothing(config):
    assert parsed(config({})).seed == 42


def test_the_words_of_a_command_line():
    flags = {"max-length": 64, "do_eval": True, "no_cuda": False, "seed": None, "exclude_clusters": [-1, 3]}
    assert flags_to_argv(build_parser(), flags, "here") == [
        "--max_length=64", "--do_eval=true", "--no_cuda=false", "--exclude_clusters=-1,3"
    ]


# --- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"sed": 3}', ["unknown flag 'sed'", "did you mean --seed"]),
        ('{"max-train-sample": 3}', ["unknown flag 'max-train-sample'", "did you mean --max_train_samples"]),
        ('{"--seed": 3}', ["unknown flag '--seed'"]),
        ('{"": 3}', ["unknown flag ''"]),
        ('{"Seed": 3}', ["unknown flag 'Seed'", "did you mean --seed"]),
        ('{"config": "other.json"}', ["unknown flag 'config'"]),
        ('{"seed": 3, "seed": 4}', ["'seed' occurs twice"]),
        ('{"seed": 3, "max_length": 64, "seed": 3}', ["'seed' occurs twice"]),
        ('{"eval_split": {"a": 1, "a": 2}}', ["'a' occurs twice"]),
        ("[]", ["expected a JSON object, found []"]),
        ('"seed"', ["expected a JSON object"]),
        ("null", ["expected a JSON object"]),
        ("3", ["expected a JSON object, found 3"]),
        ('{"seed": {"value": 3}}', ["seed is {'value': 3}", "expected a value"]),
        ('{"eval_split": [["a"]]}', ["eval_split is [['a']]", "expected a value or a list of values"]),
        ('{"eval_split": ["a", {"b": 1}]}', ["eval_split is", "expected a value or a list of values"]),
        ('{"seed": 3,\n}', ["line 2: malformed JSON"]),
        ("{'seed': 3}", ["line 1: malformed JSON"]),
        ("seed: 3", ["line 1: malformed JSON"]),
        ("", ["line 1: malformed JSON"]),
        ('{"seed": 3', ["malformed JSON"]),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(refused, config, text, words):
    message = refused(run.main, "--do_train", "--config", config(text))
    assert "flags.json" in message
    for each in words:
        assert each in message


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"max_length": "long"}, "--max_length"),
        ({"max_length": True}, "max_length"),
        ({"max_length": [64, 128]}, "max_length"),
        ({"max_length": 64.5}, "--max_length"),
        ({"seed": -1}, "--seed"),
        ({"learning_rate": "fast"}, "--learning_rate"),
        ({"learning_rate": -1}, "--learning_rate must not be negative"),
        ({"do_eval": "maybe"}, "--do_eval"),
        ({"filter_categories": []}, "--filter_categories"),
        ({"filter_categories": ["easy", "odd"]}, "'odd' is not one of easy"),
        ({"exclude_clusters": [-1, 3]}, "--exclude_clusters does nothing without --filter_clusters"),
        ({"label_smoothing_factor": 0.1}, "--label_smoothing_factor is not taken"),
        ({"help_all": True}, "help_all"),
        ({"task": "nope"}, "invalid choice"),
    ],
)
def test_a_wrong_value_is_refused_as_on_the_command_line(refused, config, flags, words):
    assert words in refused(run.main, "--do_train", "--config", config(flags))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_are_none_are_refused(refused, config, number):
    assert "--learning_rate" in refused(run.main, "--do_train", "--config", config(f'{{"learning_rate": {number}}}'))


def test_a_missing_file(refused, tmp_path):
    assert "nowhere.json: no such file" in refused(run.main, "--do_train", "--config", tmp_path / "nowhere.json")


def test_a_directory_is_no_file(refused, tmp_path):
    assert f"{tmp_path}: no such file" in refused(run.main, "--do_train", "--config", tmp_path)


def test_a_file_that_is_no_utf_8(refused, tmp_path):
    (tmp_path / "flags.json").write_bytes('{"output_dir": "größe"}'.encode("latin-1"))
    assert "flags.json, line 1: not UTF-8" in refused(run.main, "--do_train", "--config", tmp_path / "flags.json")


def test_nothing_is_written_when_the_file_is_wrong(refused, config, tmp_path):
    refused(run.main, "--do_train", "--output_dir", tmp_path / "out", "--config", config({"sed": 3}))
    assert not (tmp_path / "out").exists()


def test_config_without_a_value_is_one_line(capsys):
    with pytest.raises(SystemExit) as stopped:
        run.main(["--do_train", "--config"])
    assert stopped.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("run.py: error: ") and "--config" in line


@pytest.mark.parametrize(
    "flags",
    [
        {"max-length": 64, "max_length": 128},
        {"eval_strategy": "no", "evaluation_strategy": "epoch"},
        {"overwrite": True, "overwrite_output_dir": False},
    ],
)
def test_one_flag_in_two_spellings_is_there_twice(refused, config, flags):
    assert "flags.json" in refused(run.main, "--do_train", "--config", config({"dataset": "demo:nothing", **flags}))


def test_a_null_within_a_list_is_refused():
    with pytest.raises(UserError, match="here: eval_split is"):
        flags_to_argv(build_parser(), {"eval_split": ["validation", None]}, "here")


@pytest.mark.parametrize("item", ["answer type", "answer,type"])
def test_an_item_of_a_list_stays_one_item_or_is_refused(item):
    parser = build_parser()
    try:
        argv = flags_to_argv(parser, {"slice_by": ["source", item]}, "here")
    except UserError as error:
        assert item in str(error)
        return
    assert parser.parse_args(argv).slice_by == ["source", item]


def test_a_list_for_a_flag_of_one_value_is_refused():
    with pytest.raises(UserError, match="here: model is"):
        flags_to_argv(build_parser(), {"model": ["tiny", "lstm"]}, "here")


def test_true_for_a_flag_that_takes_a_text_is_refused():
    with pytest.raises(UserError, match="here: model is"):
        flags_to_argv(build_parser(), {"model": True}, "here")


def test_a_packed_file_is_read_or_refused(tmp_path):
    file = tmp_path / "flags.json.gz"
    file.write_bytes(gzip.compress(b'{"seed": 7}'))
    try:
        assert read_mapping(file) == {"seed": 7}
    except UserError as error:
        assert "flags.json.gz" in str(error)
