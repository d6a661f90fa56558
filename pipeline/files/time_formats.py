"""Forms of times in text: strptime patterns of the user, and the forms that are recognised without one.

A form is a regular expression whose groups ``pipeline.files.time_fields`` reads.
"""

import re
from dataclasses import dataclass, field
from typing import Final

from pipeline.errors import DataFileError

Pattern = re.Pattern[bytes]

EPOCH_UNITS_NS: Final = {"epoch_s": 1_000_000_000, "epoch_ms": 1_000_000, "epoch_us": 1_000, "epoch_ns": 1}
# Words of --time-format that settle the order of day, month and year.
DAY_FIRST, MONTH_FIRST, YEAR_FIRST = "day-first", "month-first", "year-first"
ORDERS: Final = (DAY_FIRST, MONTH_FIRST, YEAR_FIRST)
WORDS: Final = (*EPOCH_UNITS_NS, *ORDERS)

_WORD: Final = r"[A-Z]{3,9}"
_HALF_DAY: Final = r"(?P<half_day>[AP]\.?M\.?)"
# directive -> (expression, digits); directives of digits that touch each other have a fixed width.
_DIRECTIVES: Final = {
    "Y": (r"(?P<year>[0-9]{4})", 4),
    "y": (r"(?P<short_year>[0-9]{2})", 2),
    "m": (r"(?P<month>[0-9]{1,2})", 2),
    "d": (r"(?P<day>[0-9]{1,2})", 2),
    "e": (r"(?P<day>[0-9]{1,2})", 2),
    "j": (r"(?P<day_of_year>[0-9]{1,3})", 3),
    "H": (r"(?P<hour>[0-9]{1,2})", 2),
    "k": (r"(?P<hour>[0-9]{1,2})", 2),
    "I": (r"(?P<hour>[0-9]{1,2})", 2),
    "l": (r"(?P<hour>[0-9]{1,2})", 2),
    "M": (r"(?P<minute>[0-9]{1,2})", 2),
    "S": (r"(?P<second>[0-9]{1,2})", 2),
    "G": (r"(?P<iso_year>[0-9]{4})", 4),
    "V": (r"(?P<iso_week>[0-9]{1,2})", 2),
    "u": (r"(?P<iso_weekday>[0-9])", 1),
    "f": (r"(?P<fraction>[0-9]+)", 0),
    "b": (rf"(?P<month_name>{_WORD})\.?", 0),
    "B": (rf"(?P<month_name>{_WORD})\.?", 0),
    "h": (rf"(?P<month_name>{_WORD})\.?", 0),
    "a": (rf"(?P<weekday_name>{_WORD})\.?", 0),
    "A": (rf"(?P<weekday_name>{_WORD})\.?", 0),
    "p": (_HALF_DAY, 0),
    "P": (_HALF_DAY, 0),
    "z": (r"(?:(?P<sign>[-+])(?P<offset_hour>[0-9]{1,2})(?::?(?P<offset_minute>[0-9]{2}))?|(?P<zulu>Z))", 0),
    "Z": (r"(?P<zone_name>[A-Z_]+(?:/[A-Z_-]+)*)", 0),
    "%": ("%", 0),
}
_SHORTHANDS: Final = {"%F": "%Y-%m-%d", "%T": "%H:%M:%S", "%R": "%H:%M", "%D": "%m/%d/%y"}
_TOKEN: Final = re.compile(
    r"%[-#_0]?(?P<directive>[A-Za-z%])|(?P<space>\s+)|(?P<digits>[0-9]+)|(?P<other>[^%\s0-9]+|%)"
)
_CHRONO_FRACTION: Final = re.compile(r"%\.[0-9]?f|%[0-9]f")
# Groups of which one must be there: without a year there is no date.
_YEARS: Final = ("year", "short_year", "iso_week")


@dataclass(frozen=True)
class Form:
    """A form of times. A cell fits if it matches and each group named in ``constants`` equals its number there."""

    pattern: Pattern
    constants: dict[str, int] = field(default_factory=dict)
    digits: int | None = None  # number of digits, if the form is nothing but digits


def compile_format(time_format: str) -> Form:
    """The form of a strptime pattern. Numbers need no leading zeros, unless directives touch, as in ``%Y%m%d``.

    Raises:
        DataFileError: an unknown directive, one that is given twice, or no date.
    """
    text = _CHRONO_FRACTION.sub(lambda found: ".%f" if found[0][1] == "." else "%f", time_format)
    for shorthand, meaning in _SHORTHANDS.items():
        text = text.replace(shorthand, meaning)
    tokens = list(_TOKEN.finditer(text))
    expressions, constants, digits = [], {}, 0
    for index, token in enumerate(tokens):
        directive = token["directive"]
        if directive is None:
            name = f"literal_{index}"
            if token["other"] == "%":
                raise DataFileError(f"--time-format {time_format!r}: a % without a directive; {describe_choices()}")
            if token["digits"]:
                constants[name] = int(token["digits"])
                expressions.append(f"(?P<{name}>[0-9]{{{len(token['digits'])}}})")
            else:
                expressions.append(" +" if token["space"] else re.escape(token[0]))
            continue
        if directive not in _DIRECTIVES:
            raise DataFileError(f"--time-format {time_format!r}: unknown directive %{directive}; {describe_choices()}")
        expression, width = _DIRECTIVES[directive]
        digits += width
        if width and any(_is_number(tokens, near) for near in (index - 1, index + 1)):
            expression = expression.replace(f"{{1,{width}}}", f"{{{width}}}")
        expressions.append(expression)
    try:
        pattern = re.compile("".join(expressions).encode(), re.IGNORECASE)
    except re.error:
        raise DataFileError(f"--time-format {time_format!r} gives a part of the time twice") from None
    if not any(name in pattern.groupindex for name in _YEARS):
        raise DataFileError(f"--time-format {time_format!r} has no year; {describe_choices()}")
    only_digits = all(_is_number(tokens, index) and token["directive"] != "f" for index, token in enumerate(tokens))
    return Form(pattern, constants, digits if only_digits else None)


def _is_number(tokens: list[re.Match[str]], index: int) -> bool:
    if not 0 <= index < len(tokens):
        return False
    directive = tokens[index]["directive"]
    return directive == "f" or (directive is not None and _DIRECTIVES.get(directive, ("", 0))[1] > 0)


def describe_choices() -> str:
    """The values of --time-format, for messages."""
    return f"give a strptime pattern such as '%Y-%m-%d %H:%M' or '%d.%m.%Y %H:%M:%S', or one of {', '.join(WORDS)}"


# --- forms that need no option ----------------------------------------------------------------------------------------

_WEEKDAY: Final = rf"(?:(?P<weekday_name>{_WORD})\.?,? +)?"
_CLOCK: Final = (
    r"(?:(?P<hour>[0-9]{1,2})(?P<_colon>[:.h])(?P<minute>[0-9]{2})"
    r"(?:(?P=_colon)(?P<second>[0-9]{2})(?:[.,](?P<fraction>[0-9]+))?)?"
    r"|(?P<clock>[0-9]{1,6})(?:[.,](?P<clock_fraction>[0-9]+))?)"
    rf"(?: *{_HALF_DAY})?"
)
_ZONE: Final = (
    r"(?: *(?:(?:UTC|GMT)?(?P<sign>[-+])"
    r"(?P<offset_hour>[0-9]{2}|(?:(?<=UTC[-+])|(?<=GMT[-+]))[0-9])(?::?(?P<offset_minute>[0-9]{2}))?"
    r"(?:\[[A-Z_/-]+\]| \([A-Z ]+\))?"
    r"|(?P<zone_name>[A-Z_]+(?:/[A-Z_-]+)*)))?"
)
_TIME: Final = rf"(?:(?:T|_|:|,? +){_CLOCK}{_ZONE})?"
_YEAR: Final = r"(?:(?P<year>[0-9]{4})|(?P<short_year>[0-9]{2}))"
_MONTH: Final = rf"(?P<month_name>{_WORD})\.?"
_DAY: Final = r"(?P<day>[0-9]{1,2})(?:st|nd|rd|th)?\.?"
_BAR: Final = r"(?: *[-/.,] *| +)"

# Parts in an order that the column decides: first, middle, last.
NUMERIC: Final = Form(
    re.compile(
        rf"{_WEEKDAY}(?P<first>[0-9]{{1,4}})(?P<_bar>[-/.])(?P<middle>[0-9]{{1,2}})(?P=_bar)(?P<last>[0-9]{{1,4}}){_TIME}".encode(),
        re.IGNORECASE,
    )
)
COMPACT: Final = Form(
    re.compile(
        rf"(?P<year>[0-9]{{4}})(?P<month>[0-9]{{2}})(?P<day>[0-9]{{2}})(?:T|_| +){_CLOCK}{_ZONE}".encode(),
        re.IGNORECASE,
    )
)
NAMED: Final = tuple(
    Form(re.compile(expression.encode(), re.IGNORECASE))
    for expression in (
        rf"{_WEEKDAY}{_DAY}{_BAR}?{_MONTH}{_BAR}?{_YEAR}{_TIME}",
        rf"{_WEEKDAY}{_MONTH}{_BAR}{_DAY}(?:, *| +){_YEAR}{_TIME}",
        rf"(?P<year>[0-9]{{4}}){_BAR}{_MONTH}{_BAR}{_DAY}{_TIME}",
        rf"{_WEEKDAY}{_MONTH} +{_DAY} +{_CLOCK}{_ZONE} +{_YEAR}",
    )
)
AUTOMATIC: Final = (NUMERIC, COMPACT, *NAMED)
# Dates of ISO 8601 that are easily confused with other numbers, and the pattern that reads them.
_WEEK_DATE: Final = re.compile(rb"[0-9]{4}-?W[0-9]{2}(?P<day>-?[1-7])?")
_ORDINAL_DATE: Final = re.compile(rb"[0-9]{4}-[0-9]{3}(?![0-9])")


def recognise(cell: bytes) -> Form | None:
    """The form of a cell, or None."""
    return next((form for form in AUTOMATIC if form.pattern.fullmatch(cell)), None)


def suggest_format(cell: bytes) -> str | None:
    """The pattern that reads a week date or an ordinal date; None for other cells."""
    if found := _WEEK_DATE.match(cell):
        bar = "-" if cell[4:5] == b"-" else ""
        return f"%G{bar}W%V" + (f"{bar}%u" if found["day"] else "")
    return "%Y-%j" if _ORDINAL_DATE.match(cell) else None


_DIRECTIVE_OF_GROUP: Final = {
    "year": "%Y",
    "short_year": "%y",
    "month": "%m",
    "day": "%d",
    "month_name": "%b",
    "weekday_name": "%a",
    "minute": "%M",
    "second": "%S",
    "fraction": "%f",
    "clock_fraction": "%f",
    "half_day": "%p",
    "zone_name": "%Z",
    "sign": "%z",
    "offset_hour": "",
    "offset_minute": "",
}
_CLOCKS: Final = {2: "%H", 4: "%H%M", 6: "%H%M%S"}  # by digits


def spell_format(found: re.Match[bytes], order: str | None) -> str | None:
    """The strptime pattern of a match; None if no pattern spells it. ``order`` is that of first, middle and last."""
    directives = dict(_DIRECTIVE_OF_GROUP)
    directives["hour"] = "%I" if found.groupdict().get("half_day") else "%H"
    if order is not None and "first" in found.re.groupindex:
        year = "%Y" if max(len(found["first"]), len(found["last"])) > 2 else "%y"
        parts = {DAY_FIRST: ("%d", "%m", year), MONTH_FIRST: ("%m", "%d", year), YEAR_FIRST: (year, "%m", "%d")}
        directives.update(zip(("first", "middle", "last"), parts[order], strict=True))
    if clock := found.groupdict().get("clock"):
        if len(clock) not in _CLOCKS:
            return None
        directives["clock"] = _CLOCKS[len(clock)]
    spelled, place = "", 0
    spans = sorted((found.span(name), name) for name in found.groupdict() if name in directives and found[name])
    for (start, stop), name in spans:
        between = found.string[place:start].decode(errors="replace")
        spelled += ("" if not directives[name] else between.replace("%", "%%")) + directives[name]
        place = stop
    return spelled + found.string[place:].decode(errors="replace").replace("%", "%%")
