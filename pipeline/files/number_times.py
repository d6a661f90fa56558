"""Whole numbers and decimals as times: seconds to nanoseconds since 1970, or the digits of a calendar time.

Both look alike: 2024030100 is an hour of 2024, and a second of 2034. A calendar form must fit every row. If the numbers
also count seconds since 1970, the reading with the more regular steps is taken; a draw is refused.
"""

from typing import Final, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.files.time_column import TimeColumn, Times
from pipeline.files.time_fields import Flags, Integers, TimeFields, moments
from pipeline.files.time_formats import EPOCH_UNITS_NS
from pipeline.iso_times import DAY_US
from pipeline.messages import EARLIEST_TIMESTAMP_US, LATEST_TIMESTAMP_US

Floats = NDArray[np.float64]

# unit -> its numbers lie below this: 1e11 seconds is the year 5138.
_UNIT_LIMITS: Final = (("epoch_s", 10**11), ("epoch_ms", 10**14), ("epoch_us", 10**17), ("epoch_ns", 2**63))
_UNIT_WORDS: Final = {
    "epoch_s": "seconds",
    "epoch_ms": "milliseconds",
    "epoch_us": "microseconds",
    "epoch_ns": "nanoseconds",
}
_SMALLEST_EPOCH: Final = 10**8  # 1973 in seconds; smaller numbers are counts, or days
# Rows of two magnitudes are of one unit only if no gap between them is longer. It is shorter than any error of unit.
_LONGEST_GAP_US: Final = 3_653 * DAY_US
# Forms of calendar times by their number of digits, the more usual one first.
_CALENDARS: Final = {
    6: ("%Y%m", "%y%m%d"),
    8: ("%Y%m%d", "%y%m%d%H", "%d%m%Y", "%m%d%Y"),
    10: ("%Y%m%d%H", "%y%m%d%H%M", "%d%m%Y%H", "%m%d%Y%H"),
    12: ("%Y%m%d%H%M", "%y%m%d%H%M%S", "%d%m%Y%H%M", "%m%d%Y%H%M"),
    14: ("%Y%m%d%H%M%S", "%d%m%Y%H%M%S", "%m%d%Y%H%M%S"),
    17: ("%Y%m%d%H%M%S%f",),
}
_FULL_YEAR: Final = "%Y"
_YEAR_MONTH: Final = "%Y%m"
# directive -> group of ``time_fields``, and digits; fractions are milliseconds.
_DIGITS: Final = {
    "Y": ("year", 4),
    "y": ("short_year", 2),
    "m": ("month", 2),
    "d": ("day", 2),
    "H": ("hour", 2),
    "M": ("minute", 2),
    "S": ("second", 2),
    "f": ("fraction", 3),
}
_FIRST_YEAR, _AFTER_LAST_YEAR = 1900, 2200  # of the stream
_SAMPLE: Final = 1_000  # rows of which at least one fits a form that is worth the whole column
# Calendar digits that fit no form are times from 1970 to 1979 as seconds or milliseconds, such as 103202400. A guess
# takes a time before 1990 only if the column has numbers below zero, which calendar digits never are.
_EARLIEST_GUESS_US: Final = 7_305 * DAY_US
# A guessed time later than this beyond the clock is implausible.
_LATEST_AHEAD_US: Final = 366 * DAY_US
# Share of rows that fit a calendar form by intention: the remaining rows are then errors, not seconds since 1970.
_MOST_FIT: Final = {True: 0.5, False: 0.9}  # by whether the form has four digits of the year
# Digits that cover a whole day in minutes and stay valid in every row are calendar times, not seconds by chance.
_WIDE_RANGE: Final = 10_000
_FEW_TIMES: Final = 8
_CLEAR_MARGIN: Final = 0.05  # difference between shares of regular steps
_LEAST_STEPS: Final = 2
_SECONDS_DIGITS: Final = 10  # of seconds since 1970, from 2001 to 2286
_US_NS: Final = 1_000
_BEYOND: Final = 2**62  # microseconds far beyond any time
_HINT: Final = (
    "say what they are: --time-format epoch_s (or epoch_ms, epoch_us, epoch_ns), or a pattern like '%Y%m%d%H'"
)


class _Candidate(NamedTuple):
    name: str  # the value of --time-format
    times: Times

    @property
    def has_full_year(self) -> bool:
        return _FULL_YEAR in self.name


def recognise_whole(values: Integers, text: pl.Series | None, column: TimeColumn, now_us: int) -> Times:
    """The times of whole numbers without a stated unit; ``text`` has their digits with leading zeros, if known.

    Raises:
        DataFileError: the numbers are not times, change their magnitude, or have two readings.
    """
    latest_us = now_us + _LATEST_AHEAD_US
    calendars = _calendars(values, _width(values, text), column, latest_us)
    if not calendars:
        unit = _epoch_unit(values.astype(np.float64), column)
        return _epoch(scale_whole(values, unit), unit, column, latest_us, may_be_digits=int(values.min()) >= 0)
    chosen = _choose(calendars, values, column, latest_us)
    if not chosen.times.is_local:
        return _epoch(chosen.times.us, chosen.name, column, latest_us, may_be_digits=True)
    column.guesses.add(f"the digits in {column.name} are calendar times", "--time-format", chosen.name)
    return chosen.times


def recognise_decimals(values: Floats, column: TimeColumn, now_us: int) -> Times:
    """The times of decimals, such as 1709251200.5, without a stated unit.

    Raises:
        DataFileError: the numbers are not times, or change their magnitude.
    """
    unit = _epoch_unit(values, column)
    latest_us = now_us + _LATEST_AHEAD_US
    return _epoch(scale_decimals(values, unit), unit, column, latest_us, may_be_digits=float(values.min()) >= 0)


def _epoch(us: Integers, unit: str, column: TimeColumn, latest_us: int, *, may_be_digits: bool) -> Times:
    """Times of a guessed unit. ``may_be_digits`` is whether the numbers can be the digits of calendar times.

    Raises:
        DataFileError: a time lies far in the future, or before 1990, so the guess is wrong.
    """
    if may_be_digits and (us < _EARLIEST_GUESS_US).any():
        row = int((us < _EARLIEST_GUESS_US).argmax())
        year = int(us[row].astype("datetime64[us]").astype("datetime64[Y]").astype(int)) + 1970
        raise column.cell_error(
            row, f"would be a time of {year} as {_UNIT_WORDS[unit]} since 1970 (--time-format {unit}); {_HINT}"
        )
    if (us >= latest_us).any():
        row = int((us >= latest_us).argmax())
        raise column.cell_error(
            row, f"would be a time in the far future as {_UNIT_WORDS[unit]} since 1970 (--time-format {unit}); {_HINT}"
        )
    column.guesses.add(f"{column.name} counts {_UNIT_WORDS[unit]} since 1970", "--time-format", unit)
    return Times(us, False)


def _width(values: Integers, text: pl.Series | None) -> int:
    """The number of digits of all numbers, with leading zeros; 0 if it differs or a number is negative.

    A whole number cannot have the leading zero of the first of a month, so an odd width is one more. Spreadsheets also
    leave this zero out of text.
    """
    if int(values.min()) < 0:
        return 0
    if text is None:
        width = len(str(int(values.max())))
        return width if width in _CALENDARS else width + 1
    widths = text.str.len_bytes()
    least, most = int(widths.min()), int(widths.max())  # type: ignore[arg-type]  # whole numbers
    lacks_zero = least == most - 1 and not text.str.starts_with("0").any()
    return most if least == most or (lacks_zero and most in _CALENDARS) else 0


def _calendars(values: Integers, width: int, column: TimeColumn, latest_us: int) -> list[_Candidate]:
    """The calendar forms that fit every row.

    Raises:
        DataFileError: a form fits most rows, or all years, but not every row.
    """
    found = []
    misfit: tuple[str, int] | None = None
    for name in _CALENDARS.get(width, ()):
        if not name.startswith(_FULL_YEAR) and not _fit(values[:_SAMPLE], name)[1].any():
            continue
        local, fit, begins_with_years = _fit(values, name)
        if fit.all():
            found.append(_Candidate(name, Times(local, True)))
        elif misfit is None and (fit.mean() >= _MOST_FIT[_FULL_YEAR in name] or begins_with_years):
            misfit = name, int((~fit).argmax())
    if misfit is not None and not found:
        name, row = misfit
        if width != _SECONDS_DIGITS or (scale_whole(values, "epoch_s") >= latest_us).any():
            raise column.cell_error(row, f"is invalid as '{name}', which the digits look like; correct it, or {_HINT}")
    return found


def _fit(values: Integers, name: str) -> tuple[Integers, Flags, bool]:
    """Local times of digits in a calendar form, whether each fits, and whether all begin with a plausible year."""
    fields = TimeFields.empty(len(values))
    rest = values
    for directive in reversed(name.split("%")[1:]):
        group, digits = _DIGITS[directive]
        rest, number = np.divmod(rest, 10**digits)
        fields.numbers[group] = number * 1_000 if directive == "f" else number
    local = moments(fields)
    fit = (local.us >= EARLIEST_TIMESTAMP_US) & (local.us < LATEST_TIMESTAMP_US) & ~local.bad & ~local.leap
    years = fields.get("year", 0)
    plausible = (years >= _FIRST_YEAR) & (years < _AFTER_LAST_YEAR)
    return local.us, fit, name.startswith(_YEAR_MONTH) and name != _YEAR_MONTH and bool(plausible.all())


def _choose(calendars: list[_Candidate], values: Integers, column: TimeColumn, latest_us: int) -> _Candidate:
    """The only plausible reading of digits that fit at least one calendar form.

    Raises:
        DataFileError: two readings are as plausible.
    """
    candidates = [each for each in calendars if (each.times.us < latest_us).all()] or calendars
    full = [each for each in candidates if each.has_full_year]
    count = len(np.unique(values))
    wide = int(values.max()) - int(values.min()) >= _WIDE_RANGE and count >= _FEW_TIMES
    unit = _unit(float(values[0]))
    epoch = scale_whole(values, unit)
    possible = (values >= _SMALLEST_EPOCH) & (epoch >= _EARLIEST_GUESS_US) & (epoch < latest_us)
    if not full and not wide and possible.all():
        candidates = [*candidates, _Candidate(unit, Times(epoch, False))]
        if count == 1:
            return candidates[-1]  # a number fits a calendar form by chance rather than by intention
    if len(candidates) > 1:
        regular = [_regularity(each) for each in candidates]
        candidates = [
            each for each, share in zip(candidates, regular, strict=True) if share > max(regular) - _CLEAR_MARGIN
        ]
    if len(candidates) > 1 and candidates[0].name.startswith(_YEAR_MONTH) and candidates[0].name != _YEAR_MONTH:
        return candidates[0]
    if len(candidates) > 1:
        options = " or ".join(f"--time-format {_quoted(each.name)}" for each in candidates)
        raise column.cell_error(0, f"and all other rows have more than one reading; say which: {options}")
    return candidates[0]


def _quoted(name: str) -> str:
    return f"'{name}'" if "%" in name else name


def _regularity(candidate: _Candidate) -> float:
    """Share of the most frequent step between the distinct times; months count as steps of one length."""
    times = candidate.times.us
    if candidate.name == _YEAR_MONTH:
        times = times.astype("datetime64[us]").astype("datetime64[M]").astype(np.int64)
    steps = np.diff(np.unique(times))
    if len(steps) < _LEAST_STEPS:
        return 0.0
    return float(np.unique(steps, return_counts=True)[1].max()) / len(steps)


# --- since 1970 -------------------------------------------------------------------------------------------------------


def _unit(value: float) -> str:
    return next(name for name, limit in _UNIT_LIMITS if abs(value) < limit or name == _UNIT_LIMITS[-1][0])


def _epoch_unit(values: Floats, column: TimeColumn) -> str:
    """The unit of numbers since 1970, by the size of the largest.

    Raises:
        DataFileError: the numbers are too small, or change their magnitude.
    """
    sizes = np.abs(values)
    if sizes.max() < _SMALLEST_EPOCH:
        row = int(sizes.argmax())
        raise column.cell_error(
            row,
            f"is too small for seconds or milliseconds since 1970; {_HINT}. If another column holds "
            "the time, name it: --time-column",
        )
    unit = _unit(float(sizes.max()))
    changed = _changes_unit(values, scale_decimals(values, unit))
    if changed.any():
        row = int(changed.argmax())
        units = dict.fromkeys((_unit_word(float(values[0])), _unit_word(float(values[row]))))
        raise column.cell_error(
            row,
            f"has another magnitude than {column.show(0)} in {column.line(0)} ({' and '.join(units)}); write all times "
            f"in one unit, or {_HINT}",
        )
    return unit


def _unit_word(value: float) -> str:
    if abs(value) < _SMALLEST_EPOCH:
        return "too small for a time"
    return f"{_UNIT_WORDS[_unit(value)]} since 1970"


def _changes_unit(values: Floats, times: Integers) -> Flags:
    """(n,) rows of another magnitude than the first row's, if ``times`` jump between them.

    A series that runs through 1970 in one unit has numbers of all sizes, but no jump of years.
    """
    sizes = np.abs(values)
    classes = np.searchsorted([_SMALLEST_EPOCH, *(float(limit) for _, limit in _UNIT_LIMITS)], sizes, side="right")
    other: Flags = classes != classes[0]
    if other.any() and np.diff(np.unique(times)).max(initial=0) > _LONGEST_GAP_US:
        return other
    return np.zeros(len(values), np.bool_)


def scale_whole(values: Integers, unit: str) -> Integers:
    """Microseconds of whole numbers, rounded down; numbers beyond the range of int64 become its ends."""
    unit_ns = EPOCH_UNITS_NS[unit]
    if unit_ns < _US_NS:
        return values // (_US_NS // unit_ns)
    factor = unit_ns // _US_NS
    return np.clip(values, -(_BEYOND // factor), _BEYOND // factor) * factor


def scale_decimals(values: Floats, unit: str) -> Integers:
    """Microseconds of decimals, rounded; numbers beyond the range of int64 become its ends.

    Whole part and fraction are scaled apart, because their product has more digits than a float.
    """
    factor = EPOCH_UNITS_NS[unit] / _US_NS
    whole = np.floor(values)
    scaled: Integers = np.clip(whole * factor, -_BEYOND, _BEYOND).astype(np.int64)
    return scaled + np.round((values - whole) * factor).astype(np.int64)
