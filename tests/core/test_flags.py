"""Command lines as people type them."""

import argparse

import pytest
from hypothesis import given
from hypothesis import strategies as st

import run
from datamap.core.flags import Parser, boolean, fraction, number, positive_int


def make_parser():
    parser = Parser("Does nothing.")
    group = parser.add_argument_group("things")
    group.add_argument("--max_train_samples", type=positive_int, help="first rows")
    group.add_argument("--top_fraction", type=fraction, default=0.33, help="share")
    group.add_switch("--do_train", help="train")
    parser.add_switch("--use_cpu", help="no GPU")
    group.add_list("--exclude_clusters", type=int, default=[-1], help="clusters")
    parser.add_list("--categories", choices=("easy", "hard"), help="categories")
    parser.add_argument("--name", default="x", help="of the run, 50 %% of it")
    return parser


def parse(*argv):
    return make_parser().parse_args(list(argv))


@pytest.fixture
def complaint(capsys):
    """The one line with which parsing ends."""

    def call(*argv):
        with pytest.raises(SystemExit) as stopped:
            parse(*argv)
        lines = capsys.readouterr().err.splitlines()
        assert stopped.value.code == 2
        assert len(lines) == 1, lines
        assert lines[0].startswith("test_flags.py: error: ")
        return lines[0]

    return call


@pytest.mark.parametrize("flag", ["--max_train_samples", "--max-train-samples", "--max_train-samples"])
def test_flags_take_dashes_and_underscores(flag):
    assert parse(flag, "3").max_train_samples == 3
    assert parse(f"{flag}=3").max_train_samples == 3


def test_values_keep_their_dashes():
    assert parse("--name", "my-run_1").name == "my-run_1"
    assert parse("--name=--a-b").name == "--a-b"
    assert parse("--top-fraction=0.5").top_fraction == 0.5


@pytest.mark.parametrize(
    "argv, expected",
    [
        (["-1,3,5"], [-1, 3, 5]),
        (["-1", "3", "5"], [-1, 3, 5]),
        (["-1 3 5"], [-1, 3, 5]),
        (["-1, 3,", "5"], [-1, 3, 5]),
        (["3"], [3]),
        (["-1"], [-1]),
    ],
)
@pytest.mark.parametrize("flag", ["--exclude_clusters", "--exclude-clusters"])
def test_lists_take_commas_spaces_and_minus_signs(flag, argv, expected):
    values = parse(flag, *argv, "--do_train")
    assert values.exclude_clusters == expected
    assert values.do_train is True


def test_lists_with_an_equals_sign_and_their_default():
    assert parse("--exclude_clusters=-1,3").exclude_clusters == [-1, 3]
    assert parse("--categories", "easy", "hard", "--exclude_clusters", "-1").categories == ["easy", "hard"]
    assert parse().exclude_clusters == [-1]
    assert parse().categories is None


@pytest.mark.parametrize(
    "argv, expected",
    [([], False), (["--do_train"], True), (["--do-train"], True), (["--do_train=true"], True),
     (["--do_train=False"], False), (["--do_train", "false"], False), (["--do_train=1"], True),
     (["--do_train=no"], False), (["--do_train", "--use_cpu"], True)],
)
def test_switches_are_bare_or_take_true_and_false(argv, expected):
    assert parse(*argv).do_train is expected


def test_switches_in_and_out_of_groups():
    assert parse("--use-cpu").use_cpu is True
    assert boolean("Yes") is True and boolean("0") is False


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--max_train", "3"], "unknown argument --max_train; did you mean --max_train_samples?"),  # no abbreviations
        (["--max-trian-samples=3"], "unknown argument --max_trian_samples; did you mean --max_train_samples?"),
        (["--zzzz"], "unknown argument --zzzz ("),
        (["stray"], "unknown argument stray"),
        (["--max_train_samples", "0"], "expected a whole number of at least 1, found '0'"),
        (["--max_train_samples", "2.5"], "expected a whole number of at least 1, found '2.5'"),
        (["--max_train_samples"], "expected one argument"),
        (["--top_fraction", "1.1"], "expected a number from 0 to 1, found '1.1'"),
        (["--top_fraction", "nan"], "expected a number from 0 to 1, found 'nan'"),
        (["--do_train=maybe"], "expected true or false, found 'maybe'"),
        (["--exclude_clusters", "-1,x"], "expected a list of int, found 'x'"),
        (["--exclude_clusters"], "expected at least one value, found none"),
        (["--exclude_clusters", ","], "expected at least one value, found none"),
        (["--categories", "easy,medium"], "'medium' is not one of easy, hard"),
    ],
)
def test_errors_are_one_line(complaint, argv, message):
    assert message in complaint(*argv)


def test_help_names_defaults(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert stopped.value.code == 0
    assert "share (default: 0.33)" in text and "(default: [-1])" in text
    assert "train (default" not in text  # a switch that is off needs no default
    assert "50 % of it" in text


@given(st.lists(st.integers(-50, 50), min_size=1, max_size=6), st.data())
def test_every_way_to_write_a_list_is_read_alike(values, data):
    text = str(values[0]) + "".join(
        data.draw(st.sampled_from([",", " ", ", ", " , "])) + str(value) for value in values[1:]
    )
    tokens = data.draw(st.sampled_from([[text], text.split(" ")]))
    assert parse("--exclude_clusters", *tokens).exclude_clusters == values


@pytest.mark.parametrize("text", ["0", "1", "0.33", "1e-3"])
def test_fractions(text):
    assert fraction(text) == float(text)


def test_numbers_have_bounds():
    assert number("-3") == -3
    for text in ("x", "nan", "-1"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected a number"):
            number(text, 0)


@pytest.mark.parametrize("argv", [["--output_dir", ""], ["--train_ids="], ["--filter_config", ""], ["--dataset", ""]])
def test_an_empty_value_is_no_value(capsys, argv):
    """``--train_ids "$NOT_SET"`` trained on everything, ``--output_dir ""`` wrote into the working directory."""
    with pytest.raises(SystemExit) as stopped:
        run.main(["--do_train", *argv])
    assert stopped.value.code == 2
    assert f"error: {argv[0].rstrip('=')} is empty: give a value, or leave it out" in capsys.readouterr().err


def test_a_name_that_is_no_text_is_refused(capsys):
    """A byte that is no UTF-8 comes from the shell as half a character, which no file of ours can hold."""
    parser = Parser("", "x.py")
    parser.add_argument("--output_dir")
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(["--output_dir", "a\udcff"])
    assert stopped.value.code == 2 and "'a\\udcff' is no UTF-8 text" in capsys.readouterr().err
