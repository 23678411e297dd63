"""How many dates, times and numbers stand in a text: what rule 5 of error_rules.py counts in an answer."""

from __future__ import annotations

import re

_CARDINAL = (
    r"(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen"
    r"|seventeen|eighteen|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|thousand|million"
    r"|billion|trillion|dozen)"
)
# Bounded, because an endless row of number words would be read again from each of its words.
_NUMBER_WORDS = rf"{_CARDINAL}(?:(?:[\s-]+|(?<=hundred)\s+and\s+|(?<=thousand)\s+and\s+){_CARDINAL}){{0,8}}"
_MAGNITUDE = r"(?:\s+(?:hundred|thousand|million|billion|trillion|dozen)s?)*"
_PARTS = r"(?:half|halves|thirds?|quarters?|fourths?|fifths?|sixths?|eighths?|tenths?)"
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)*|\.\d+)"

# One number each: 81 mg, 81mg, 3.5, .5, 1,200, 120/80, 1 1/2, ½, 5 million, twenty-five, one hundred and two, two and
# a half, two thirds, a couple, twice. Two: 5-10. None: B12, COVID-19, 2nd.
_NUMBER = re.compile(
    rf"(?<![\w.])(?<![^\W\d]-)"
    rf"(?:{_DIGITS}(?!\d|(?:st|nd|rd|th)\b)(?:\s+\d+/\d+|(?:\s?/\s?{_DIGITS})+|\s?[¼-¾⅐-⅞])?{_MAGNITUDE}"
    rf"(?:\s+and\s+(?:a\s+half|a\s+quarter))?"
    rf"|[¼-¾⅐-⅞]"
    rf"|(?:{_NUMBER_WORDS}(?:[\s-]+{_PARTS}|\s+and\s+(?:a\s+half|one[\s-]half|a\s+quarter))?s?"
    rf"|half|once|twice|thrice|none|single|couple|pair)\b)",
    re.IGNORECASE,
)

# A month alone is a date if it can hardly be anything else: "may" and "march" are verbs, "Dec" can be a decrease.
_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)(?![a-z])\.?"
)
_MONTH_ALONE = (
    r"(?:(?:january|february|april|june|july|september|october|november|december)"
    r"|(?-i:March|MARCH|August|AUGUST|(?:Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\b\.?)"
    r"|(?-i:(?<=[a-z,][\s-])May|\AMay(?=\W*\Z)))"
)
_DAY = r"(?:0?[1-9]|[12]\d|3[01])(?!\d)(?:st|nd|rd|th)?"
_YEAR = r"(?:1\d|20)\d\d(?!\d)"
_MONTH_YEAR = rf"(?:{_YEAR}|['’]\d\d(?!\d))"
_CALENDAR_DATE = (
    r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?Z?)?"
    r"|\d{1,2}[-/.]\d{1,2}[-/.](?:\d{4}|\d{2})(?!\d)"
    rf"|(?:0?[1-9]|1[0-2])/{_YEAR}"
    rf"|{_MONTH}[\s-]*{_DAY}(?!\w)(?:\s?[-–]\s?{_DAY}(?!\w))?(?:(?:,\s*|\s+(?:of\s+)?|-){_MONTH_YEAR})?"
    rf"|{_DAY}(?:\s?[-–]\s?{_DAY})?(?:\s+day)?(?:\s+of)?[\s.-]*{_MONTH},?[\s-]*(?:of\s+)?{_MONTH_YEAR}"
    rf"|{_DAY}(?:\s+day)?(?:\s+of)?[\s.-]*(?!may\b){_MONTH}|{_DAY}(?:\s+of)?\s+(?-i:May|MAY)"
    rf"|{_MONTH},?[\s/-]*(?:of\s+)?{_MONTH_YEAR}"
)
# What makes a bare "1200" a measure and no year, a bare "1/2" a fraction and no day.
_NO_MEASURE = (
    r"(?!\s?(?:[%°]|(?:mg|mcg|µg|g|kg|ml|cc|l|dl|meq|mmol|iu|units?|cal\w*|kcal|percent|tab\w*|pills?|caps?\w*|people|men"
    r"|women|children|patients?|students?|soldiers|troops|times|km|miles?|m|feet|ft|dollars|beats|strength)\b))"
)
_AMOUNT_OF = (
    rf"(?:\d+(?:[.,]\d+)*|{_NUMBER_WORDS}|an?(?:\s+few|\s+couple(?:\s+of)?|\s+half)?|several|few|couple(?:\s+of)?|many"
    r"|some)"
)
_UNIT = r"(?:second|minute|min|hour|hr|day|night|weekend|week|wk|month|mo|year|yr|decade|century|centurie)s?"
_AMOUNT_OF_TIME = rf"{_AMOUNT_OF}(?:\s*(?:-|–|to|or)\s*{_AMOUNT_OF})?[\s-]*{_UNIT}"
_WEEKDAY = r"(?:mon|tues|wednes|thurs|fri|satur|sun)days?"
_SEASON = r"(?:spring|summer|autumn|fall|winter)"
_PART_OF_DAY = r"(?:morning|afternoon|evening|night|midnight|noon|midday|bedtime|dawn|dusk)"

# The named groups are the kinds of expression; two neighbours of different kinds can be one ("March 14 at 8:30 am").
_TIME_EXPRESSION = re.compile(
    rf"(?<![\w$£€#])(?<!\d[.,])(?:"
    # two weeks ago, in 3 days, 24 hours after, last night, postoperative day 2, POD#2, day of life 3, at age 45
    rf"(?P<relative>{_AMOUNT_OF_TIME}\s+(?:ago|earlier|later|before|after|prior|previously|back|post\w*|from\s+now|hence)"
    rf"|(?:in|within|after|at)\s+(?:about\s+|approximately\s+|the\s+(?:last|next|first|past)\s+)?{_AMOUNT_OF_TIME}"
    rf"|(?:last|next|past|this|previous|following|coming|same)\s+(?:{_AMOUNT_OF}\s+)?"
    rf"(?:(?!second){_UNIT}|{_WEEKDAY}|(?!fall){_SEASON}|{_PART_OF_DAY}|{_MONTH_ALONE}|(?-i:May))"
    rf"|the\s+(?:day|night|morning|evening|week|month|year)\s+(?:of|before|after|prior|following)"
    rf"|(?:day|week|month|year)(?:\s+of\s+life)?\s*(?:\#|number\s)?\s*(?:\d{{1,3}}(?!\d)|{_NUMBER_WORDS})"
    rf"|(?:pod|hd|dol)\s*\#?\s*\d+"
    rf"|(?:at|by|from|since)\s+(?:the\s+)?age\s+(?:of\s+)?(?:\d+|{_NUMBER_WORDS}))"
    # 8:30 am, 8 a.m., 14:30, 1430 hours, nine o'clock
    rf"|(?P<clock>(?:[01]?\d|2[0-3]):[0-5]\d(?::[0-5]\d)?(?:\s?[ap]\.?m\b\.?)?|(?:1[0-2]|0?[1-9])\s?[ap]\.?m\b\.?"
    rf"|(?:[01]\d|2[0-3])[0-5]\d\s?(?:hours|hrs|h)|(?:\d{{1,2}}|{_CARDINAL})\s+o['’]clock)"
    # 2018-03-14, 03/14/2018, 3/14, March 14, 14 Mar 2018, Mar 2018, yesterday, Christmas
    rf"|(?P<date>{_CALENDAR_DATE}|(?:0?[1-9]|1[0-2])/(?:0?[1-9]|[12]\d|3[01])(?![/\d]){_NO_MEASURE}"
    rf"|today|yesterday|tomorrow|tonight|christmas(?:\s+(?:day|eve))?|new\s+year['’]s(?:\s+(?:day|eve))?"
    rf"|thanksgiving|easter)"
    # 1945, mid-1960s, the '60s, 400 BC, 19th century
    rf"|(?P<year>\d{{1,3}}(?:,?\d{{3}})*\s?(?:BCE?|CE|AD|BP|B\.C\.(?:E\.)?|A\.D\.)|(?:AD|A\.D\.)\s?\d{{1,4}}"
    rf"|['’]?\d0['’]?s|{_YEAR}(?:['’]?s)?(?![,.]\d){_NO_MEASURE}"
    rf"|(?:[a-z]+-)?(?:\d+|[a-z]+)(?:th|st|nd|rd)[\s-](?:century|centuries|millennium))"
    rf"|(?P<weekday>{_WEEKDAY})"
    rf"|(?P<part>{_PART_OF_DAY}s?)"
    rf"|(?P<season>summer|autumn|winter|in\s+the\s+spring|{_SEASON}(?=,?\s+(?:of\s+)?{_YEAR}))"
    rf"|(?P<month>{_MONTH_ALONE})"
    rf")(?!\w)",
    re.IGNORECASE,
)
_GLUE = re.compile(r"[\s,(]*(?:(?:at|on|of|in|the|around|about|approximately)\s+)*", re.IGNORECASE)
_CALENDAR = re.compile(rf"(?<!\w)(?:{_CALENDAR_DATE})(?!\w)", re.IGNORECASE)


def count_time_expressions(text: str) -> int:
    """How many dates and times stand in `text`; a moment that is told by several parts counts once.

    "Monday, March 14, 2018 at 8:30 am" is one; "1990-1995" and "May 3 and May 5" are two. Counted are calendar
    dates in the forms of notes and of prose, years, decades and centuries, weekdays, times and parts of the day,
    relative times ("two weeks ago", "postoperative day 2") and ages ("at age 45"). Not counted are durations ("for
    two weeks"), frequencies ("twice daily") and events ("on admission").
    """
    count, kinds, end = 0, set[str | None](), 0
    for found in _TIME_EXPRESSION.finditer(text):
        kind = found.lastgroup
        if kinds and kind not in kinds and _GLUE.fullmatch(text, end, found.start()):
            kinds.add(kind)
        else:
            count, kinds = count + 1, {kind}
        end = found.end()
    return count


def count_numbers(text: str) -> int:
    """How many numbers stand in `text`, in digits or words: "81 mg", "1,200" and "twenty-five" hold one each.

    A calendar date is no number (a year alone is), nor are ordinals and names such as B12 or COVID-19.
    """
    return sum(1 for _ in _NUMBER.finditer(_CALENDAR.sub(" | ", text)))
