"""The console table."""

import math

import pandas as pd

from datamap.core.tables import console_table

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
