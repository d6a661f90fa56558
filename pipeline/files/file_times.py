"""The time column of a user's file: finds it, and converts it to microseconds UTC."""

import zoneinfo
from pathlib import Path
from typing import Final

import polars as pl

from pipeline.errors import DataFileError
from pipeline.files.datafile import line_name

# Lower-case names of time columns, for files without a column of a time type.
TIME_NAMES: Final = ("timestamp", "time", "datetime", "date_time", "date time", "date", "ts", "utc", "event_time")
# Columns that together hold a time, as in the original files of the bundled data.
TIME_PARTS: Final = ("year", "month", "day", "hour", "minute", "second")
_LEAST_PARTS: Final = 3
# (limit, microseconds per unit): a whole number below the limit has this unit. 1e11 seconds is the year 5138.
_EPOCH_FACTORS: Final = ((1e11, 1_000_000), (1e14, 1_000), (1e17, 1))
_NANOSECONDS_PER_US: Final = 1_000
_SMALLEST_EPOCH: Final = 100_000_000  # 1973 in seconds; dates written as 20130301 are smaller
_ZONE: Final = r"(?:[Zz]|[+-]\d{2}:?\d{2})$"
_ISO: Final = r"^\s*\d{4}[-/]\d{1,2}[-/]\d{1,2}"


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
    frame: pl.DataFrame, columns: tuple[str, ...], path: Path, timezone: str | None, sensors: pl.Series
) -> pl.Series:
    """Microseconds UTC (int64) of each row; ``sensors`` has each row's sensor.

    Whole numbers are seconds, milliseconds, microseconds or nanoseconds since 1970, by their size. Times without a zone
    are local times of ``timezone``. When clocks are set back, a local time exists twice: a sensor's first reading with
    it has the earlier of the two times, its next one the later.

    Raises:
        DataFileError: a cell is not a time, a zone is missing, or a local time does not exist.
    """
    series = _joined_parts(frame, columns, path) if len(columns) > 1 else frame[columns[0]]
    if series.dtype == pl.String:
        series = series.str.strip_chars()
        whole = series.cast(pl.Int64, strict=False)
        series = whole if whole.null_count() == series.null_count() else _parse(series, columns[0], path)
    if series.null_count():
        row = int(series.is_null().arg_true()[0])
        raise DataFileError(f"{line_name(path, row)}: column {columns[0]} is empty; every row needs a time")
    if series.dtype.is_integer():
        return _epoch(series.cast(pl.Int64), columns[0], path)
    if series.dtype == pl.Date:
        series = series.cast(pl.Datetime("us"))
    if not isinstance(series.dtype, pl.Datetime):
        raise DataFileError(f"{path}: column {columns[0]} holds {series.dtype}, not times; name another: --time-column")
    series = series.dt.cast_time_unit("us")
    if series.dtype.time_zone is None:  # type: ignore[attr-defined]
        series = _localise(series, sensors, path, timezone)
    return series.dt.convert_time_zone("UTC").to_physical()


def _joined_parts(frame: pl.DataFrame, columns: tuple[str, ...], path: Path) -> pl.Series:
    parts = [pl.col(name).cast(pl.Int32, strict=False).cast(pl.String).str.zfill(2) for name in columns]
    parts += [pl.lit("00")] * (len(TIME_PARTS) - len(parts))
    text = frame.select(pl.concat_str(parts, separator="-").alias("time"))["time"]
    series = text.str.to_datetime("%Y-%m-%d-%H-%M-%S", time_unit="us", strict=False)
    if series.null_count():
        row = int(series.is_null().arg_true()[0])
        raise DataFileError(f"{line_name(path, row)}: columns {', '.join(columns)} form no date: {frame.row(row)}")
    return series


def _parse(series: pl.Series, column: str, path: Path) -> pl.Series:
    """ISO 8601 text as date-times. Other formats are refused, because the order of day and month is ambiguous."""
    written = series.is_not_null()
    zoned = series.str.contains(_ZONE)
    bad = written & ~series.str.contains(_ISO)
    if not bad.any() and zoned.any():
        bad = written & ~zoned
    if not bad.any():
        moments = series.str.to_datetime(time_unit="us", strict=False)
        bad = written & moments.is_null()
        if not bad.any():
            return moments
    row = int(bad.arg_true()[0])
    raise DataFileError(
        f"{line_name(path, row)}: {series[row]!r} in column {column} is not a time like 2013-03-01 14:00:00 or "
        "2013-03-01T14:00:00Z (a zone on all rows or on none); if another column holds the time, name it: --time-column"
    )


def _epoch(series: pl.Series, column: str, path: Path) -> pl.Series:
    largest = series.abs().max()
    if isinstance(largest, int) and largest < _SMALLEST_EPOCH:
        raise DataFileError(
            f"{path}: the whole numbers in column {column} are not times: they are too small for seconds or "
            "milliseconds since 1970. Write dates as 2013-03-01, or name another column: --time-column"
        )
    for limit, factor in _EPOCH_FACTORS:
        if isinstance(largest, int) and largest < limit:
            return series * factor
    return series // _NANOSECONDS_PER_US


def _localise(series: pl.Series, sensors: pl.Series, path: Path, timezone: str | None) -> pl.Series:
    if timezone is None:
        raise DataFileError(
            f"{path}: its times have no zone ({series[0]}); name it: --timezone UTC, --timezone Asia/Shanghai, "
            "--timezone Etc/GMT-1 (UTC+1 all year)"
        )
    if timezone not in zoneinfo.available_timezones():
        raise DataFileError(f"unknown time zone {timezone!r}; use a name such as UTC, Europe/Berlin or Asia/Shanghai")
    local = pl.DataFrame({"sensor": sensors, "time": series})
    again = pl.int_range(pl.len()).over("sensor", "time") > 0
    moments = local.select(
        pl.col("time").dt.replace_time_zone(
            timezone,
            ambiguous=pl.when(again).then(pl.lit("latest")).otherwise(pl.lit("earliest")),
            non_existent="null",
        )
    )["time"]
    if moments.null_count():
        row = int(moments.is_null().arg_true()[0])
        raise DataFileError(
            f"{line_name(path, row)}: {series[row]} does not exist in {timezone}, where clocks were set forward; if "
            "the file has the same UTC offset all year, name that: --timezone Etc/GMT-1 is UTC+1"
        )
    return moments
