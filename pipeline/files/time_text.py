"""Times in text: by a pattern of the user, or by a form that is recognised in the first row and fits all rows.

Year-first dates are ISO 8601 and need no note. In 01/03/2024 the order of day and month is decided by all rows of the
column. If both orders fit, the column is refused, because a wrong guess would pass unnoticed.
"""

import re
import shlex
from dataclasses import replace
from typing import Final, NoReturn

import numpy as np
import polars as pl

from pipeline.files.local_times import localise
from pipeline.files.time_column import TimeColumn, TimeOptions, Times
from pipeline.files.time_fields import (
    ABSENT,
    LONGEST_CELL_BYTES,
    NO_ZONE,
    Flags,
    Integers,
    TimeFields,
    fits,
    moments,
    read_fields,
)
from pipeline.files.time_formats import (
    DAY_FIRST,
    MONTH_FIRST,
    NUMERIC,
    ORDERS,
    YEAR_FIRST,
    Form,
    compile_format,
    recognise,
    spell_format,
    suggest_format,
)
from pipeline.files.zone_names import offsets_of, zone_of_name
from pipeline.iso_times import SECOND_US

_FOUR_DIGITS: Final = 4
_SHAPES: Final = bytes.maketrans(b"123456789", b"0" * 9)
_OUT_OF_RANGE: Final = "does not exist: its month, day, hour, minute, second or UTC offset is out of range"
_MINUTE_US: Final = 60 * SECOND_US
_OTHER_SPACES: Final = r"[\u00a0\u2007\u2009\u202f]"
_PARTS: Final = {
    DAY_FIRST: ("day", "month", "year"),
    MONTH_FIRST: ("month", "day", "year"),
    YEAR_FIRST: ("year", "month", "day"),
}
_LONG_FRACTION: Final = r"([.,][0-9]{9})[0-9]+"
_ORDER_WORDS: Final = {DAY_FIRST: "day/month/year", MONTH_FIRST: "month/day/year", YEAR_FIRST: "year/month/day"}


def read_text(text: pl.Series, column: TimeColumn, sensors: pl.Series, options: TimeOptions) -> Times:
    """The times of cells without nulls and surrounding space.

    Raises:
        DataFileError: a cell does not fit the form, has no unambiguous zone, or the order of day and month is open.
    """
    if (text.str.len_bytes() != text.str.len_chars()).any():
        text = text.str.replace_all(_OTHER_SPACES, " ").str.replace_all("\u2212", "-", literal=True)
    order = options.time_format if options.time_format in ORDERS else None
    pattern = options.time_format if order is None else None
    if pattern is None:
        if (text.str.len_bytes() > LONGEST_CELL_BYTES).any():  # the stream reads a fraction of any length
            text = text.str.replace(_LONG_FRACTION, "$1")
        form = recognise(text[0].encode())
        if form is None:
            _refuse(column, 0, text, None)
    else:
        form = compile_format(pattern)
    fields, bad, matches = read_fields(text, form.pattern)
    for name, constant in form.constants.items():
        bad |= fields.get(name, ABSENT) != constant
    if bad.any():
        _refuse(column, _first_misfit(text, form), text, pattern)
    if form is NUMERIC:
        _order_parts(fields, column, matches, order)
    elif pattern is None and fields.has("short_year"):
        _add_guess(column, matches, DAY_FIRST)
    times = moments(fields)
    if times.bad.any():
        raise column.cell_error(int(times.bad.argmax()), _OUT_OF_RANGE)
    column.check_range(times.us)
    zoned = fields.zone != NO_ZONE
    if not zoned.any():
        return Times(times.us, True, times.leap)
    if not zoned.all():
        row = int((~zoned).argmax())
        raise column.cell_error(row, f"has no zone, but {column.line(int(zoned.argmax()))} has one; give all rows one")
    us = times.us.copy()
    for code, name in enumerate(fields.zone_names):
        _apply_zone(us, fields.zone == code, name, column, sensors, options)
    return Times(us, False, times.leap)


def _refuse(column: TimeColumn, row: int, text: pl.Series, time_format: str | None) -> NoReturn:
    """Raise the error for a cell that is not a time."""
    if time_format is not None:
        raise column.cell_error(row, f"does not fit --time-format {time_format!r}")
    suggested = suggest_format(text[row].encode())
    if suggested is not None:
        raise column.cell_error(
            row, f"is a week date or an ordinal date of ISO 8601; say so: --time-format {suggested!r}"
        )
    first = f" like {column.show(0)} in {column.line(0)}" if row and recognise(text[0].encode()) else ""
    raise column.cell_error(
        row,
        f"is not a time{first or ' like 2013-03-01 14:00:00 or 2013-03-01T14:00:00Z'}. For another form give its "
        "pattern, such as --time-format '%d.%m.%Y %H:%M'. If another column holds the time, name it: --time-column",
    )


def _first_misfit(text: pl.Series, form: Form) -> int:
    """The first row that does not fit the form."""
    known: dict[bytes, bool] = {}
    for row, cell in enumerate(text):
        encoded = cell.encode()
        shape = encoded.translate(_SHAPES) if not form.constants else encoded
        if shape not in known:
            known[shape] = fits(encoded, form.pattern, form.constants)
        if not known[shape]:
            return row
    raise AssertionError("read_fields found a misfit")


# --- order of day, month and year -------------------------------------------------------------------------------------


def _order_parts(fields: TimeFields, column: TimeColumn, matches: list[re.Match[bytes]], order: str | None) -> None:
    """Turn first, middle and last into day, month and year, in the order that fits all rows."""
    first, last = fields.get("first_width", 0), fields.get("last_width", 0)
    # The year is at the front (1), at the back (2), or has two digits (3).
    place = np.select(
        [(first == _FOUR_DIGITS) & (last <= 2), (first <= 2) & (last == _FOUR_DIGITS), (first <= 2) & (last == 2)],
        [1, 2, 3],
    )
    if not place[0] or (place != place[0]).any():
        row = int((place != place[0]).argmax()) if place[0] else 0
        _refuse(column, row, column.cells.str.strip_chars(), None)
    possible = {1: (YEAR_FIRST,), 2: (DAY_FIRST, MONTH_FIRST), 3: ORDERS}[int(place[0])]
    if (first == 1).any():
        possible = tuple(each for each in possible if each != YEAR_FIRST)  # no year has one digit
    if order is None and matches[0]["_bar"] == b"." and len(possible) > 1:
        possible = tuple(each for each in possible if each != MONTH_FIRST)  # dots separate days from months
    if order is not None and order not in possible:
        raise column.cell_error(0, f"has no date in the order of --time-format {order}")
    chosen = order or (possible[0] if len(possible) == 1 else _decide(fields, column, matches, possible))
    _assign(fields, chosen)
    if order is None and place[0] != 1 and len(possible) == 1:
        _add_guess(column, matches, chosen)


def _assign(fields: TimeFields, order: str) -> None:
    for source, part in zip(("first", "middle", "last"), _PARTS[order], strict=True):
        name = "short_year" if part == "year" and (fields.get(f"{source}_width", 2) == 2).all() else part
        fields.numbers[name] = fields.numbers[source]


def _bad_dates(fields: TimeFields, order: str) -> Flags:
    dates = TimeFields.empty(len(fields))
    dates.numbers.update(
        {name: fields.numbers[name] for name in fields.numbers if name.startswith(("first", "middle", "last"))}
    )
    _assign(dates, order)
    return moments(dates).bad


def _decide(fields: TimeFields, column: TimeColumn, matches: list[re.Match[bytes]], possible: tuple[str, ...]) -> str:
    """The only order that fits all rows.

    Raises:
        DataFileError: several orders fit all rows, or no order does.
    """
    bad = {order: _bad_dates(fields, order) for order in possible}
    fitting = [order for order in possible if not bad[order].any()]
    if not fitting:
        nowhere = np.logical_and.reduce(list(bad.values()))
        if nowhere.any():
            raise column.cell_error(int(nowhere.argmax()), _OUT_OF_RANGE)
        day, month = (int(bad[order].argmax()) for order in (DAY_FIRST, MONTH_FIRST))
        raise column.cell_error(
            day,
            f"is only possible as {_ORDER_WORDS[MONTH_FIRST]}, but {column.show(month)} in {column.line(month)} only "
            f"as {_ORDER_WORDS[DAY_FIRST]}; write all dates in one order",
        )
    if len(fitting) > 1 and not _agree(fields, fitting):
        options = " or ".join(f"--time-format {shlex.quote(_option(matches, order))}" for order in fitting)
        words = " and ".join(_ORDER_WORDS[order] for order in fitting)
        raise column.cell_error(0, f"and all other rows can be read as {words}; say which: {options}")
    if len(fitting) == 1:
        _add_guess(column, matches, fitting[0])
    return fitting[0]


def _agree(fields: TimeFields, orders: list[str]) -> bool:
    """Whether the orders give the same days, as for 01/01/2024."""
    first, middle, last = (fields.numbers[name] for name in ("first", "middle", "last"))
    named = {order: dict(zip(_PARTS[order], (first, middle, last), strict=True)) for order in orders}
    return all(
        (named[order][part] == named[orders[0]][part]).all() for order in orders for part in ("year", "month", "day")
    )


def _option(matches: list[re.Match[bytes]], order: str | None) -> str:
    """The value of --time-format that gives this reading: a pattern if one spells all rows, otherwise the order."""
    spelled = {spell_format(found, order) for found in matches}
    only = spelled.pop()
    return only if only is not None and not spelled else str(order)


def _add_guess(column: TimeColumn, matches: list[re.Match[bytes]], order: str) -> None:
    column.guesses.add(f"dates in {column.name} are {_ORDER_WORDS[order]}", "--time-format", _option(matches, order))


# --- zones ------------------------------------------------------------------------------------------------------------


def _apply_zone(
    us: Integers, rows: Flags, name: str, column: TimeColumn, sensors: pl.Series, options: TimeOptions
) -> None:
    """Turn local times with the name of a zone into UTC, in place."""
    places = np.flatnonzero(rows)
    zone = zone_of_name(name)
    if zone is not None:
        part = replace(column, cells=column.cells.gather(places), place=lambda row: column.place(int(places[row])))
        us[places] = localise(us[places], sensors.gather(places), part, zone, options.repeated_hour)
        return
    years = us[places].min().astype("datetime64[us]"), us[places].max().astype("datetime64[us]")
    first, last = (int(year.astype("datetime64[Y]").astype(int)) + 1970 for year in years)
    offsets = sorted(offsets_of(name, first, last, options.timezone))
    row = int(places[0])
    if not offsets:
        raise column.cell_error(row, f"ends in {name!r}, which is not the name of a time zone")
    if len(offsets) > 1:
        meanings = ", ".join(_offset_name(offset) for offset in offsets)
        raise column.cell_error(
            row, f"ends in {name!r}, which several zones use ({meanings}); name the zone: --timezone America/Chicago"
        )
    column.notes.append(f"{name} in column {column.name} is {_offset_name(offsets[0])} in every row")
    us[places] -= offsets[0] * _MINUTE_US


def _offset_name(minutes: int) -> str:
    hours, rest = divmod(abs(minutes), 60)
    return f"UTC{'-' if minutes < 0 else '+'}{hours}" + (f":{rest:02}" if rest else "")
