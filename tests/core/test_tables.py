"""The console table, names that are cut, and what a spreadsheet may run."""

import math

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from datamap.core.files import write_csv
from datamap.core.tables import console_table, safe_to_open, shortened

FRAME = pd.DataFrame(
    {"name": ["a", None, "long name"], "n": [1200, 3, 40], "share": [0.5, math.nan, 1.0], "mixed": ["x", 2, 3.0]}
)


def test_columns_are_aligned_and_missing_values_blank():
    lines = console_table(FRAME, {"n": ",d", "share": ".1%"}).splitlines()
    assert lines == [
        "name           n   share  mixed",
        "a          1,200   50.0%      x",
        "               3              2",
        "long name     40  100.0%    3.0",
    ]


def test_a_limit_counts_what_is_cut_and_a_format_may_be_a_function():
    lines = console_table(FRAME[["name", "n"]], {"n": lambda n: f"<{n}>"}, limit=1).splitlines()
    assert lines == ["name       n", "a     <1200>", "... and 2 more"]


def test_an_empty_table_has_its_names():
    assert console_table(FRAME.head(0)) == "name  n  share  mixed"


def test_cells_stay_on_their_line_and_control_nothing():
    table = console_table(pd.DataFrame({"label": ["a\nb\tc", "\x1b[31mred\x07", "\u202etxt"], "n": [1, 2, 3]}))
    assert [line.split("  ")[0] for line in table.splitlines()] == [
        "label", "a b c", r"\x1b[31mred\x07", r"\u202etxt"]


def test_wide_characters_take_two_columns():
    frame = pd.DataFrame({"label": ["\u597d\u8bc4", "e\u0301t\u00e9", "plain"], "n": [1, 2, 3]})
    assert console_table(frame).splitlines() == ["label  n", "\u597d\u8bc4   1", "e\u0301t\u00e9    2", "plain  3"]


# --- names that are cut ------------------------------------------------------------------------------------------


@given(st.lists(st.text("ab_ \n", max_size=60), max_size=8), st.integers(12, 30))
def test_cut_names_are_short_and_stay_apart(names, length):
    short = shortened(names, length)
    assert all(len(each) <= length and "\n" not in each for each in short)
    lines = [" ".join(name.split()) for name in names]
    for one in range(len(names)):
        if len(lines[one]) <= length and lines.count(lines[one]) == 1 and short[one] != lines[one]:
            assert any(lines[one] == other for place, other in enumerate(short) if place != one) or "(" in short[one]
        for other in range(one):
            assert (short[one] == short[other]) == (names[one] == names[other])


def test_names_of_one_beginning_keep_their_ends():
    names = ["customer complaint about the delivery", "customer complaint about the refund", "other"]
    assert shortened(names, 20) == ["customer... delivery", "customer...he refund", "other"]
    assert shortened(["plain and very long", "short"], 10) == ["plain a...", "short"]
    same = [f"{'x' * 30}{number}{'y' * 30}" for number in range(3)]
    assert shortened(same, 20) == [f"{'x' * 8}...{'y' * 5} ({number})" for number in (1, 2, 3)]


# --- in a spreadsheet --------------------------------------------------------------------------------------------


def test_nothing_runs_where_a_person_opens_it_and_numbers_stay(tmp_path):
    frame = pd.DataFrame({
        "id": ["001", "-5", "=cmd"], "text": ["=1+1", "fine", None], "n": [-1, 2, 3],
        "share": pd.array([0.5, None, -0.25], dtype="Float64"), "=column": ["@SUM(A1)", "+1e3", "-"],
    }, index=[5, 6, 7])
    safe = safe_to_open(frame)
    write_csv(tmp_path / "x.csv", safe)
    assert (tmp_path / "x.csv").read_text() == (
        '"id","text","n","share","\'=column"\n"001","\'=1+1",-1,0.5,"\'@SUM(A1)"\n"-5","fine",2,,"+1e3"\n'
        '"\'=cmd",,3,-0.25,"\'-"\n')
    assert frame["text"].tolist()[0] == "=1+1" and safe.dtypes["share"] == "Float64"
    plain = pd.DataFrame({"id": ["a"], "x": pd.array(["b"], dtype="string")})
    pd.testing.assert_frame_equal(safe_to_open(plain), plain)
