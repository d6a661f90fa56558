"""The time column of a user's file: finds it, and converts it to microseconds UTC.

    text       time_text      a strptime pattern, or a form that is recognised
    numbers    number_times   seconds to nanoseconds since 1970, or calendar digits
    local      local_times    times without a zone become UTC

Every guess is said with the option that states it. A cell that cannot be read is an error that names its line.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from pipeline.errors import DataFileError
from pipeline.files.cell_forms import TIME_NAMES
from pipeline.files.guesses import Guesses
from pipeline.files.local_times import localise
from pipeline.files.number_times import recognise_decimals, recognise_whole, scale_decimals, scale_whole
from pipeline.files.time_column import RepeatedHour, TimeColumn, TimeOptions, Times
from pipeline.files.time_fields import Flags, Integers, TimeFields, moments
from pipeline.files.time_formats import EPOCH_UNITS_NS, ORDERS, compile_format
from pipeline.files.time_text import read_text
from pipeline.iso_times import DAY_US, SECOND_US, follows_leap_second

# Columns that together hold a time, as in the original files of the bundled data.
TIME_PARTS: Final = ("year", "month", "day", "hour", "minute", "second")
_LEAST_PARTS: Final = 3
_WHOLE: Final = r"^[+-]?[0-9]{1,19}$"
_DECIMAL: Final = r"^[+-]?(?:[0-9]+[.,]?[0-9]*|[.,][0-9]+)(?:[eE][+-]?[0-9]{1,3})?$"
_EXPONENT: Final = "[eE]"
_LARGEST_EXACT: Final = 2**53
_FAR_DAYS: Final = 10**7  # far beyond the range of the stream, and within int64 as microseconds


def find_time_columns(frame: pl.DataFrame, path: Path, named: str | None) -> tuple[str, ...]:
    """The named time column, or the only candidate, or several columns that together hold a time.

    Raises:
        DataFileError: the named column does not exist, or there are no or several candidates.
    """
    columns = frame.columns
    if named is not None:
        if named not in columns:
            raise DataFileError(f"{path} has no column {named!r}; it has: {', '.join(columns)}")
        return (named,)
    candidates = [name for name in columns if frame[name].dtype.is_temporal()]
    if not candidates:
        candidates = [name for name in columns if name.strip().lower() in TIME_NAMES]
    if len(candidates) == 1:
        return (candidates[0],)
    by_lower = {name.lower(): name for name in columns}
    parts = tuple(by_lower[part] for part in TIME_PARTS if part in by_lower)
    if not candidates and [part.lower() for part in parts] == list(TIME_PARTS[: max(len(parts), _LEAST_PARTS)]):
        return parts
    found = f"candidates: {', '.join(candidates)}" if candidates else f"its columns: {', '.join(columns)}"
    raise DataFileError(f"{path}: which column holds the time? Name it with --time-column; {found}")


def read_times(
    frame: pl.DataFrame,
    columns: tuple[str, ...],
    path: Path,
    timezone: str | None,
    sensors: pl.Series,
    *,
    time_format: str | None = None,
    repeated_hour: RepeatedHour = "infer",
    place: Callable[[int], str] | None = None,
    guesses: Guesses | None = None,
    notes: list[str] | None = None,
) -> pl.Series:
    """Microseconds UTC (int64) of each row, named "time"; ``sensors`` has each row's sensor.

    Args:
        timezone: zone of times that have none.
        time_format: a strptime pattern or one of ``time_formats.WORDS``; None recognises the form.
        repeated_hour: the reading of a local time that exists twice.
        place: the name of a row (from 0) in messages; by default its number.
        guesses: each guess is added, with the option that states it.
        notes: other sentences for the user are appended.

    Raises:
        DataFileError: a cell is not a time, a zone is missing, a local time does not exist, or times have two readings.
    """
    place = place or (lambda row: f"{path}, row {row + 1}")
    series = frame[columns[0]] if len(columns) == 1 else _joined(frame, columns, place)
    name = ", ".join(columns)
    column = TimeColumn(
        name, str(path), series, place, Guesses() if guesses is None else guesses, [] if notes is None else notes
    )
    return convert_times(column, sensors, TimeOptions(timezone, time_format, repeated_hour))


def convert_times(column: TimeColumn, sensors: pl.Series, options: TimeOptions) -> pl.Series:
    """Microseconds UTC (int64) of each cell of a column: text, whole numbers, floats, dates or date-times.

    ``sensors`` and the errors are those of ``read_times``; ``column.notes`` gets the notes.
    """
    cells = _plain(column)
    if not len(cells):
        return pl.Series("time", [], dtype=pl.Int64)
    if cells.null_count():
        row = int(cells.is_null().arg_true()[0])
        raise column.error(row, f"column {column.name} is empty; every row needs a time")
    if isinstance(cells.dtype, pl.Datetime):
        if options.time_format is not None:
            raise DataFileError(f"{column.file}: column {column.name} holds times, so --time-format does not apply")
        ticks = cells.to_physical().cast(pl.Int64).to_numpy()
        times = Times(scale_whole(ticks, f"epoch_{cells.dtype.time_unit}"), cells.dtype.time_zone is None)
    else:
        times = _read_cells(cells, column, sensors, options)
    us = times.us
    column.check_range(us)
    if times.is_local:
        if options.timezone is None:
            raise DataFileError(
                f"{column.file}: its times have no zone ({column.show(0)}); name it: --timezone UTC, --timezone "
                "Asia/Shanghai, --timezone Etc/GMT-1 (UTC+1 all year)"
            )
        us = localise(us, sensors, column, options.timezone, options.repeated_hour)
    if times.leap is not None and times.leap.any():
        us = _skip_leap_seconds(us, times.leap, column)
    column.check_range(us)
    return pl.Series("time", us, dtype=pl.Int64)


def _plain(column: TimeColumn) -> pl.Series:
    """The cells as text without surrounding space, int64, float64 or date-times; null where empty.

    Raises:
        DataFileError: the column has a type that holds no times.
    """
    cells, kind = column.cells, column.cells.dtype
    if kind in (pl.Categorical, pl.Enum):
        cells, kind = cells.cast(pl.String), pl.String()
    if kind == pl.String:
        text = cells.str.strip_chars()
        return text.set(text == "", None)
    if kind.is_integer() or kind == pl.Null:
        whole = cells.cast(pl.Int64, strict=False)
        if whole.null_count() > cells.null_count():  # beyond int64
            raise column.cell_error(int((whole.is_null() & cells.is_not_null()).arg_true()[0]), "is not a time")
        return whole
    if kind.is_float() or kind.is_decimal():
        return cells.cast(pl.Float64)
    if kind == pl.Date:
        # A cast from dates panics at years far away, and a cast from numbers does not.
        days = cells.to_physical().cast(pl.Int64).clip(-_FAR_DAYS, _FAR_DAYS)
        return (days * DAY_US).cast(pl.Datetime("us"))
    if isinstance(kind, pl.Datetime):
        return cells
    raise DataFileError(f"{column.file}: column {column.name} holds {kind}, not times; name another: --time-column")


def _read_cells(cells: pl.Series, column: TimeColumn, sensors: pl.Series, options: TimeOptions) -> Times:
    """Times of text or numbers."""
    time_format = options.time_format
    if time_format in EPOCH_UNITS_NS:
        stated = _numbers(cells, column, time_format)
        scale = scale_decimals if stated.dtype == pl.Float64 else scale_whole
        return Times(scale(stated.to_numpy(), time_format), False)
    if time_format is None:
        numbers = _as_numbers(cells)
        if numbers is not None and cells.dtype == pl.String:
            _check_exponents(cells, column)
        if numbers is not None and numbers.dtype == pl.Float64:
            return recognise_decimals(_finite(numbers, column).to_numpy(), column, options.now_us)
        if numbers is not None:
            digits = _whole_digits(cells, numbers) if cells.dtype == pl.String else None
            return recognise_whole(numbers.to_numpy(), digits, column, options.now_us)
    text = _digits(cells, column, time_format)
    return read_text(text, column, sensors, options)


def _as_numbers(cells: pl.Series) -> pl.Series | None:
    """Whole numbers as int64, decimals as float64; None for text."""
    if cells.dtype == pl.String:
        if not cells[:1].str.contains(_DECIMAL)[0] or not cells.str.contains(_DECIMAL).all():
            return None
        if cells.str.contains(_WHOLE).all():
            whole = cells.cast(pl.Int64, strict=False)
            return None if whole.null_count() else whole
        cells = cells.str.replace(",", ".", literal=True).cast(pl.Float64, strict=False)
        if cells.null_count():
            return None
    if cells.dtype == pl.Int64:
        return cells
    exact = cells.is_finite() & (cells == cells.floor()) & (cells.abs() < _LARGEST_EXACT)
    return cells.cast(pl.Int64) if exact.all() else cells


def _check_exponents(cells: pl.Series, column: TimeColumn) -> None:
    """Raise for a number such as 2.02403E+11: a spreadsheet that shows it so has cut off its last digits."""
    with_exponent = cells.str.contains(_EXPONENT)
    if not with_exponent.any():
        return
    mantissa = cells.str.replace(rf"{_EXPONENT}.*$", "").str.replace_all(r"^[+-]?0*|[.,]", "")
    exponent = cells.str.extract(rf"{_EXPONENT}([+-]?\d+)$").cast(pl.Int64)
    whole = cells.str.extract(r"^[+-]?0*(\d*)").str.len_bytes().cast(pl.Int64)
    cut = (with_exponent & (mantissa.str.len_bytes().cast(pl.Int64) < whole + exponent)).fill_null(value=False)
    if cut.any():
        raise column.cell_error(
            int(cut.arg_true()[0]),
            "has an exponent, and its last digits are cut off; show all digits in the spreadsheet (number format 0) "
            "and save the file again. If the number is exact, say its unit: --time-format epoch_s (or epoch_ms)",
        )


def _whole_digits(cells: pl.Series, numbers: pl.Series) -> pl.Series:
    """The digits of whole numbers in text, with leading zeros, without sign and decimals."""
    digits = cells.str.extract(r"^[+-]?(\d*)")
    return digits.zip_with(~cells.str.contains(_EXPONENT), numbers.cast(pl.String))


def _finite(numbers: pl.Series, column: TimeColumn) -> pl.Series:
    bad = ~numbers.is_finite()
    if bad.any():
        raise column.cell_error(int(bad.arg_true()[0]), "is not a time")
    return numbers


def _numbers(cells: pl.Series, column: TimeColumn, time_format: str) -> pl.Series:
    """Numbers of a column for which --time-format names a unit."""
    numbers = _as_numbers(cells)
    if numbers is None:
        bad = ~cells.str.contains(_DECIMAL)
        row = int(bad.arg_true()[0]) if bad.any() else 0
        raise column.cell_error(row, f"is not a number, as --time-format {time_format} needs")
    return _finite(numbers, column) if numbers.dtype == pl.Float64 else numbers


def _digits(cells: pl.Series, column: TimeColumn, time_format: str | None) -> pl.Series:
    """Cells as text for a pattern; whole numbers get the leading zeros that a number cannot have."""
    width = None if time_format is None or time_format in ORDERS else compile_format(time_format).digits
    numbers = _as_numbers(cells) if cells.dtype != pl.String or width is not None else None
    if numbers is None:
        return cells
    if cells.dtype == pl.String:
        _check_exponents(cells, column)
        text = _whole_digits(cells, numbers) if numbers.dtype == pl.Int64 else cells
    else:
        text = (_finite(numbers, column) if numbers.dtype == pl.Float64 else numbers).cast(pl.String)
    return text if width is None else text.str.zfill(width)


def _skip_leap_seconds(us: Integers, leap: Flags, column: TimeColumn) -> Integers:
    """Add the second 60 of leap seconds, as Unix time does.

    Raises:
        DataFileError: a second 60 that does not end a month of UTC.
    """
    us = us.copy()
    us[leap] += SECOND_US
    for row in np.flatnonzero(leap).tolist():
        if not follows_leap_second(int(us[row]) // SECOND_US * SECOND_US):
            raise column.cell_error(row, "has second 60, but leap seconds only end a month of UTC")
    return us


# --- several columns --------------------------------------------------------------------------------------------------


def _joined(frame: pl.DataFrame, columns: tuple[str, ...], place: Callable[[int], str]) -> pl.Series:
    """Several columns as one: a date and a time as text, or year, month, day and so on as date-times.

    Raises:
        DataFileError: numbers of a row form no time.
    """
    parts = [column.strip().lower() for column in columns]
    if not set(parts) <= set(TIME_PARTS):
        texts = [_text(frame[name]).alias(str(index)) for index, name in enumerate(columns)]
        return pl.DataFrame(texts).select(pl.concat_str(pl.all(), separator=" ").alias("time"))["time"]
    fields = TimeFields.empty(frame.height)
    bad = np.zeros(frame.height, np.bool_)
    for name, part in zip(columns, parts, strict=True):
        numbers = frame[name].cast(pl.Float64, strict=False).fill_null(float("nan")).to_numpy()
        whole = (numbers == np.floor(numbers)) & (numbers >= 0) & (numbers < _LARGEST_EXACT)
        bad |= ~whole
        fields.put(part, np.arange(frame.height), np.where(whole, numbers, 0).astype(np.int64))
    times = moments(fields)
    bad |= times.bad | times.leap
    if bad.any():
        row = int(bad.argmax())
        shown = ", ".join(f"{name} {frame[name][row]}" for name in columns)
        raise DataFileError(f"{place(row)}: the columns form no date: {shown}")
    return pl.Series("time", times.us).cast(pl.Datetime("us"))


def _text(cells: pl.Series) -> pl.Series:
    """Cells of a date or a time of day as text."""
    if cells.dtype == pl.Date:  # years far away make polars panic
        cells = cells.to_physical().clip(-_FAR_DAYS, _FAR_DAYS).cast(pl.Date)
    try:
        return cells.cast(pl.String).str.strip_chars()
    except pl.exceptions.PolarsError as error:
        raise DataFileError(f"column {cells.name} holds {cells.dtype}, not times") from error
