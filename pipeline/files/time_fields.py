"""Columns of text become fields of times: year, month, hour, offset and so on, as integers.

Cells of one *shape* differ in their digits only. A pattern is matched once per shape; then numpy reads the digits of
all its cells. A pattern must therefore accept any digit wherever it accepts one.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.iso_times import (
    DAY_US,
    END_OF_DAY,
    LARGEST_OFFSET_HOUR,
    LARGEST_OFFSET_MINUTE,
    LEAP_SECOND,
    MICROSECOND_DIGITS,
    SECOND_US,
)

Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]

# A longer cell is not a time. The limit keeps a cell of megabytes from becoming a wide matrix.
LONGEST_CELL_BYTES: Final = 80
ABSENT: Final = -1  # a field that a cell does not have
MONTHS: Final = (
    *("january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november"),
    "december",
)
WEEKDAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_ABBREVIATION: Final = 3
# Shapes of one length that are searched one after the other; sorting finds the remaining ones.
_FEW_SHAPES: Final = 64
# POSIX: two digits below this are years of this century.
_TWO_DIGIT_PIVOT: Final = 69
_ZERO: Final = np.uint8(ord("0"))
_LARGEST_NUMBER_DIGITS: Final = 18
_NOON: Final = 12
_FIRST_YEAR, _LAST_YEAR = 1, 9999
_DAYS_IN_MONTH: Final = np.array([0, 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])
_MONTHS, _LEAP_MONTH = 12, 2
_DAYS_IN_YEAR, _MINUTES, _MINUTE_US, _HOUR_US = 366, 60, 60 * SECOND_US, 3_600 * SECOND_US
_WEEKS, _WEEK_DAYS = 53, 7
_HOUR_DIGITS, _MINUTE_DIGITS = 2, 4  # in a time of day without separators
_HUNDRED: Final = 100


class Shape(NamedTuple):
    """Cells that differ in their digits only."""

    rows: NDArray[np.intp]  # (k,) in ascending order
    sample: bytes  # the first of them
    cells: NDArray[np.uint8]  # (k, bytes of each)


@dataclass
class TimeFields:
    """Fields of n times, each (n,); ``ABSENT`` where a cell lacks the field."""

    numbers: dict[str, Integers]
    zone: NDArray[np.int32]  # index into ``zone_names``, ``NO_ZONE`` or ``OFFSET``
    zone_names: list[str] = field(default_factory=list)

    @classmethod
    def empty(cls, count: int) -> "TimeFields":
        return cls({}, np.full(count, NO_ZONE, np.int32))

    def __len__(self) -> int:
        return len(self.zone)

    def put(self, name: str, rows: NDArray[np.intp], values: Integers | int) -> None:
        """Set a field of some rows."""
        if name not in self.numbers:
            self.numbers[name] = np.full(len(self), ABSENT, np.int64)
        self.numbers[name][rows] = values

    def get(self, name: str, default: int) -> Integers:
        """A field, with ``default`` where it is absent."""
        found = self.numbers.get(name)
        if found is None:
            return np.full(len(self), default, np.int64)
        return np.where(found == ABSENT, default, found)

    def has(self, name: str) -> bool:
        return name in self.numbers


NO_ZONE: Final = -1
OFFSET: Final = -2  # the cell has an offset from UTC


def read_fields(text: pl.Series, pattern: re.Pattern[bytes]) -> tuple[TimeFields, Flags, list[re.Match[bytes]]]:
    """Fields by the named groups of ``pattern``; whether each row fails to match; one match per shape.

    The groups are those of ``pipeline.files.time_formats``. ``text`` has no nulls.
    """
    fields, bad = TimeFields.empty(len(text)), np.zeros(len(text), np.bool_)
    matches = []
    for shape in _shapes(text, bad):
        found = pattern.fullmatch(shape.sample)
        if found is None or not _put_shape(fields, shape, found):
            bad[shape.rows] = True
            break  # one failed row is enough; a column of prose has a shape per row
        matches.append(found)
    return fields, bad, matches


def fits(cell: bytes, pattern: re.Pattern[bytes], constants: Mapping[str, int]) -> bool:
    """Whether ``read_fields`` accepts a cell, and its groups have the given numbers."""
    found = pattern.fullmatch(cell) if len(cell) <= LONGEST_CELL_BYTES else None
    if found is None or any(int(found[name]) != number for name, number in constants.items()):
        return False
    shape = Shape(np.zeros(1, np.intp), cell, np.frombuffer(cell, np.uint8).reshape(1, -1))
    return _put_shape(TimeFields.empty(1), shape, found)


def _shapes(text: pl.Series, bad: Flags) -> Iterator[Shape]:
    """The shapes of a column; sets ``bad`` for cells that are too long to be a time."""
    lengths = text.str.len_bytes().to_numpy()
    bad |= (lengths > LONGEST_CELL_BYTES) | (lengths == 0)
    if bad.any():
        return
    for length in np.unique(lengths).tolist():
        rows = np.flatnonzero(lengths == length)
        joined = (text if len(rows) == len(text) else text.gather(rows)).str.join("")[0].encode()
        cells = np.frombuffer(joined, np.uint8).reshape(-1, length)
        yield from _shapes_of_length(rows, cells)


def _shapes_of_length(rows: NDArray[np.intp], cells: NDArray[np.uint8]) -> Iterator[Shape]:
    classes = np.where(cells - _ZERO < 10, _ZERO, cells)
    for _ in range(_FEW_SHAPES):
        same = (classes == classes[0]).all(axis=1)
        yield Shape(rows[same], cells[0].tobytes(), cells[same])
        if same.all():
            return
        rows, cells, classes = rows[~same], cells[~same], classes[~same]
    keys = np.ascontiguousarray(classes).view(f"V{classes.shape[1]}").ravel()
    _, shape_of = np.unique(keys, return_inverse=True)
    order = np.argsort(shape_of, kind="stable")
    for part in np.split(order, np.flatnonzero(np.diff(shape_of[order])) + 1):
        yield Shape(rows[part], cells[part[0]].tobytes(), cells[part])


def _put_shape(fields: TimeFields, shape: Shape, found: re.Match[bytes]) -> bool:
    """Store the groups of a shape; False if a group is a word other than a month, or a number is too long."""
    rows = shape.rows
    for name, value in found.groupdict().items():
        if value is None or name.startswith("_"):
            continue
        start, stop = found.span(name)
        match name:
            case "fraction" | "clock_fraction":
                fields.put("fraction", rows, _fraction(shape.cells[:, start:stop]))
            case "month_name":
                month = _index(value, MONTHS)
                if month is None:
                    return False
                fields.put("month", rows, month + 1)
            case "weekday_name":
                if _index(value, WEEKDAYS) is None:
                    return False
            case "half_day":
                fields.put(name, rows, int(value[:1].lower() == b"p"))
            case "zone_name":
                fields.zone[rows] = _zone_code(fields, value.decode())
            case "zulu":
                fields.zone[rows] = OFFSET
            case "sign":
                fields.zone[rows] = OFFSET
                fields.put("is_west", rows, int(value == b"-"))
            case "clock" | "first" | "last":
                fields.put(name, rows, _number(shape.cells[:, start:stop]))
                fields.put(f"{name}_width", rows, stop - start)
            case _:
                if stop - start > _LARGEST_NUMBER_DIGITS:
                    return False
                fields.put(name, rows, _number(shape.cells[:, start:stop]))
    return True


def _zone_code(fields: TimeFields, name: str) -> int:
    if name.upper() in ("Z", "UTC", "GMT", "UT"):
        return OFFSET
    if name not in fields.zone_names:
        fields.zone_names.append(name)
    return fields.zone_names.index(name)


def _index(word: bytes, names: tuple[str, ...]) -> int | None:
    """The index of a full name or an abbreviation of three or more letters."""
    text = word.decode(errors="replace").lower()
    if len(text) < _ABBREVIATION:
        return None
    return next((index for index, name in enumerate(names) if name.startswith(text)), None)


def _number(cells: NDArray[np.uint8]) -> Integers:
    value = np.zeros(len(cells), np.int64)
    for column in range(cells.shape[1]):
        value = value * 10 + (cells[:, column] - _ZERO)
    return value


def _fraction(cells: NDArray[np.uint8]) -> Integers:
    """Microseconds, rounded half up, as in ``iso_times.fraction_us``."""
    kept = cells[:, :MICROSECOND_DIGITS]
    value: Integers = _number(kept) * 10 ** (MICROSECOND_DIGITS - kept.shape[1])
    if cells.shape[1] > MICROSECOND_DIGITS:
        value += cells[:, MICROSECOND_DIGITS] >= ord("5")
    return value


# --- from fields to microseconds --------------------------------------------------------------------------------------


class Moments(NamedTuple):
    """n local times, or times in UTC where ``fields.zone`` is ``OFFSET``; each (n,)."""

    us: Integers
    bad: Flags  # fields that form no time
    leap: Flags  # times with second 60, still without that second


def moments(fields: TimeFields) -> Moments:
    """Microseconds since 1970 of the fields; offsets from UTC are subtracted, named zones are not."""
    days, bad = _days(fields)
    clock, bad_clock, leap = _time_of_day(fields)
    hours, minutes = fields.get("offset_hour", 0), fields.get("offset_minute", 0)
    bad |= bad_clock | (hours > LARGEST_OFFSET_HOUR) | (minutes > LARGEST_OFFSET_MINUTE)
    offset = (hours * _HOUR_US + minutes * _MINUTE_US) * np.where(fields.get("is_west", 0) == 1, -1, 1)
    return Moments(days * DAY_US + clock - offset, bad, leap)


def _days(fields: TimeFields) -> tuple[Integers, Flags]:
    """Days since 1970, and whether the fields form no date."""
    if fields.has("iso_week"):
        year, week, weekday = fields.get("iso_year", 0), fields.get("iso_week", 0), fields.get("iso_weekday", 1)
        bad = (year < _FIRST_YEAR) | (year > _LAST_YEAR) | (week < 1) | (week > _WEEKS)
        bad |= (weekday < 1) | (weekday > _WEEK_DAYS)
        fourth, next_fourth = (
            days_from_civil(each, np.ones_like(year), np.full_like(year, 4)) for each in (year, year + 1)
        )
        # 1970-01-01 was a Thursday; the week of 4 January is the first week of an ISO year.
        monday, next_monday = (days - (days + 3) % _WEEK_DAYS for days in (fourth, next_fourth))
        days = monday + (week - 1) * _WEEK_DAYS + weekday - 1
        return days, bad | (days >= next_monday)
    year = fields.get("year", 0)
    if fields.has("short_year"):
        short = fields.get("short_year", 0)
        year = np.where(
            fields.get("short_year", ABSENT) == ABSENT, year, short + np.where(short < _TWO_DIGIT_PIVOT, 2_000, 1_900)
        )
    bad = (year < _FIRST_YEAR) | (year > _LAST_YEAR)
    if fields.has("day_of_year"):
        number = fields.get("day_of_year", 0)
        bad |= (number < 1) | (number > _DAYS_IN_YEAR) | ((number == _DAYS_IN_YEAR) & ~_is_leap_year(year))
        return days_from_civil(year, np.ones_like(year), np.ones_like(year)) + number - 1, bad
    month, day = fields.get("month", 1), fields.get("day", 1)
    bad |= (month < 1) | (month > _MONTHS) | (day < 1)
    bad |= day > _DAYS_IN_MONTH[np.clip(month, 0, _MONTHS)]
    bad |= (month == _LEAP_MONTH) & (day == _DAYS_IN_MONTH[_LEAP_MONTH]) & ~_is_leap_year(year)
    return days_from_civil(year, month, day), bad


def _is_leap_year(year: Integers) -> Flags:
    leap: Flags = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    return leap


def days_from_civil(year: Integers, month: Integers, day: Integers) -> Integers:
    """Days since 1970 in the Gregorian calendar (Hinnant, chrono-compatible low-level date algorithms)."""
    shifted = year - (month <= 2)
    era = shifted // 400
    year_of_era = shifted - era * 400
    day_of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    days: Integers = era * 146_097 + year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year - 719_468
    return days


def _time_of_day(fields: TimeFields) -> tuple[Integers, Flags, Flags]:
    """Microseconds since midnight without a leap second, whether they are invalid, and second 60."""
    hour, minute, second = (fields.get(name, 0) for name in ("hour", "minute", "second"))
    micro = fields.get("fraction", 0)
    bad = np.zeros(len(fields), np.bool_)
    if fields.has("clock"):
        _split_clock(fields, hour, minute, second, bad)
    if fields.has("half_day"):
        half = fields.get("half_day", ABSENT)
        twelve = half != ABSENT
        # 00:30 AM occurs in files and is clear; 13:00 PM and 00:30 PM contradict themselves.
        bad |= twelve & ((hour > _NOON) | ((hour == 0) & (half == 1)))
        hour = np.where(twelve, hour % _NOON + _NOON * half, hour)
    ends = (hour == END_OF_DAY) & (minute == 0) & (second == 0) & (micro == 0)
    leap = second == LEAP_SECOND
    bad |= ((hour >= END_OF_DAY) & ~ends) | (minute >= _MINUTES) | (second > LEAP_SECOND)
    return hour * _HOUR_US + minute * _MINUTE_US + (second - leap) * SECOND_US + micro, bad, leap


def _split_clock(fields: TimeFields, hour: Integers, minute: Integers, second: Integers, bad: Flags) -> None:
    """Split a time of day without separators, such as 5, 0530 or 053000, into the given fields.

    A column that has 100 and 2330 counts hours and minutes, so its 5 is five minutes past midnight.
    """
    clock, width = fields.get("clock", ABSENT), fields.get("clock_width", 0)
    there = clock != ABSENT
    widest = int(width[there].max())
    if widest <= _HOUR_DIGITS:
        hour[there] = clock[there]
    elif widest <= _MINUTE_DIGITS:
        hour[there], minute[there] = np.divmod(clock[there], _HUNDRED)
    else:
        minutes, second[there] = np.divmod(clock[there], _HUNDRED)
        hour[there], minute[there] = np.divmod(minutes, _HUNDRED)
    # Digits after a point are fractions of a second, so the seconds must be there.
    if fields.has("fraction"):
        bad |= there & (fields.get("fraction", ABSENT) != ABSENT) & (width <= _MINUTE_DIGITS)
