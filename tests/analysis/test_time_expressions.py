"""What counts as a date, a time or a number."""

import pytest

from datamap.analysis.time_expressions import count_numbers, count_time_expressions

ONE_TIME = [
    "2018-03-14", "03/14/2018", "3/14/18", "14.03.2018", "3/14", "03/2018", "March 14", "March 14, 2018", "Mar 2018",
    "March, 2018", "14 March 2018", "14th of March", "the 3rd of May, 2018", "14-Mar-2018", "14MAR2018",
    "Sept. 11, 2001", "March 14-16, 2018", "may 14", "3 may 2018", "May 2018", "in May", "May", "january", "Dec.",
    "Monday, March 14, 2018 at 8:30 am", "2018-03-14T08:30:00Z", "2018-03-14 08:30", "the morning of March 14",
    "8:30 am on March 14", "POD 3 (3/14)", "1945", "in the year 1945", "(1945)", "the 1960s", "mid-1990s", "the '60s",
    "400 BC", "AD 79", "13,000 BP", "the 19th century", "late nineteenth century", "20th-century", "spring of 2018",
    "fall of 1999", "last summer", "Tuesday", "on Tuesdays", "yesterday morning", "Christmas Eve", "8:30", "8 a.m.",
    "8pm", "14:30", "1430 hours", "nine o'clock", "noon", "at night", "this morning at 8 a.m.", "two weeks ago",
    "a week ago", "about 2 to 3 weeks ago", "twenty-five years ago", "22,000 years ago", "a few days later",
    "in three weeks", "within 24 hours", "3 days prior to admission", "last night", "last May", "the past 3 days",
    "the day of surgery", "postoperative day 2", "post-op day #2", "hospital day three", "POD#2", "day of life 3",
    "week 12", "at the age of 45", "at age five",
]
NO_TIME = [
    "", "decrease", "oral", "may", "it may be", "May cause drowsiness", "this may cause pain", "MAY BE DISCHARGED",
    "march", "marching", "Mayo", "marginal", "decided", "augmented", "juncture", "satisfied", "81 mg", "1200 mg",
    "1945 mg", "2000 patients", "$1945", "1,945", "12345", "3.1415", "120/80", "1/2 tablet", "O2 sat 98%",
    "for two weeks", "twice daily", "monthly", "on admission", "seconds", "the second", "his last fall", "therapist",
    "I am", "overnight",
]
TWO_TIMES = [
    "1990-1995", "from 1914 to 1918", "2018 and 2019", "May 3 and May 5", "March 2018 or April 2018",
    "03/14/2018-03/16/2018", "Monday through Friday", "8:30 am and 9 pm", "April and May", "yesterday and today",
    "Monday, Tuesday", "1990, 1991",
]


@pytest.mark.parametrize(("text", "count"), [(text, n) for n, texts in enumerate((NO_TIME, ONE_TIME, TWO_TIMES))
                                             for text in dict.fromkeys(texts)])
def test_time_expressions(text, count):
    assert count_time_expressions(text) == count


NUMBERS = {
    0: ["", "B12", "T4", "COVID-19", "CA-125", "2nd", "12th", "someone", "oral", "tender", "often", "weight",
        "March 14, 2018", "03/14/2018", "2018-03-14"],
    1: ["81 mg", "81mg", "3.5", ".5 mg", "1,200", "1,234,567.89", "one", "One", "twenty-five", "one hundred and two",
        "two thousand and five hundred", "two and a half", "2 and a half", "2 1/2 tablets", "½ tablet", "1½",
        "two thirds", "half a tablet", "a couple of", "twice", "none", "5 million", "$5 million", "two dozen",
        "hundreds", "10%",
        "120/80", "-5", "1945", "25-year-old", "5 of B12", "81 mg from March 14, 2018 to April 2, 2018"],
    2: ["5-10 mg", "one or two", "3 and 4", "2 tablets of 81 mg", "between 5 and 10"],
    3: ["1, 2, 3", "one, two or 3"],
    4: ["1, 2, 3 and 4", "one, two, three, four"],
}


@pytest.mark.parametrize(("text", "count"), [(text, n) for n, texts in NUMBERS.items() for text in texts])
def test_numbers(text, count):
    assert count_numbers(text) == count
