"""The time column of a user's file: finding it, and turning it into microseconds UTC."""

import zoneinfo
from pathlib import Path
from typing import Final

import polars as pl

from pipeline.errors import DataFileError
from pipeline.files.datafile import line_name

# Names that a time column has when its type does not tell. Lower case.
TIME_NAMES: Final = ("timestamp", "time", "datetime", "date_time", "date time", "date", "ts", "utc", "event_time")
# Columns that together make a time, as in the original files of the bundled data.
TIME_PARTS: Final = ("year", "month", "day", "hour", "minute", "second")
_LEAST_PARTS: Final = 3
# The unit of a whole number by its size: seconds reach the year 5138 below the first limit, and so on.
_EPOCH_FACTORS: Final = ((1e11, 1_000_000), (1e14, 1_000), (1e17, 1))
_NANOSECONDS_PER_US: Final = 1_000
_SMALLEST_EPOCH: Final = 100_000_000  # 1973 in seconds; a date written as 20130301 lies below
_ZONE: Final = r"(?:[Zz]|[+-]\d{2}:?\d{2})$"
_ISO: Final = r"^\s*\d{4}[-/]\d{1,2}[-/]\d{1,2}"


def find_time_columns(frame: pl.DataFrame, path: Path, named: str | None) -> tuple[str, ...]:
    """The time column: the one that was named, else the only one it can be; or several that make a time together.

    Raises:
        DataFileError: there is no such column, or none or several candidates.
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
    found = f"these might be: {', '.join(candidates)}" if candidates else f"it has: {', '.join(columns)}"
    raise DataFileError(f"{path}: which column holds the time? Name it with --time-column; {found}")


def read_times(
    frame: pl.DataFrame, columns: tuple[str, ...], path: Path, timezone: str | None, sensors: pl.Series
) -> pl.Series:
    """Microseconds UTC (int64) of each row, ``sensors`` being the rows' sensors.

    Whole numbers are seconds, milliseconds, microseconds or nanoseconds since 1970, by their size. Times without a zone
    are local times of ``timezone``. A local time that exists twice, when clocks are set back, is the earlier of the two
    where its sensor shows it for the first time, the later one after that.

    Raises:
        DataFileError: a cell holds no time, times have no zone and none is given, or a local time does not exist.
    """
    series = _joined_parts(frame, columns, path) if len(columns) > 1 else frame[columns[0]]
    if series.dtype == pl.String:
        series = series.str.strip_chars()
        whole = series.cast(pl.Int64, strict=False)
        series = whole if whole.null_count() == series.null_count() else _parse(series, columns[0], path)
    if series.null_count():
        row = int(series.is_null().arg_true()[0])
        raise DataFileError(f"{line_name(path, row)}: there is no time in column {columns[0]}")
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
        raise DataFileError(f"{line_name(path, row)}: columns {', '.join(columns)} make no date: {frame.row(row)}")
    return series


def _parse(series: pl.Series, column: str, path: Path) -> pl.Series:
    """ISO 8601 text as date-times. The order of day and month is never guessed."""
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
            f"{path}: the whole numbers in column {column} are no times; they would be seconds or milliseconds since "
            "1970, and are too small for either. Dates are written as 2013-03-01. Name another column: --time-column"
        )
    for limit, factor in _EPOCH_FACTORS:
        if isinstance(largest, int) and largest < limit:
            return series * factor
    return series // _NANOSECONDS_PER_US


def _localise(series: pl.Series, sensors: pl.Series, path: Path, timezone: str | None) -> pl.Series:
    if timezone is None:
        raise DataFileError(
            f"{path}: its times have no zone ({series[0]}); say which one they are in: --timezone UTC, --timezone "
            "Asia/Shanghai, --timezone Etc/GMT-1 (which is UTC+1 all year)"
        )
    if timezone not in zoneinfo.available_timezones():
        raise DataFileError(f"there is no time zone {timezone!r}; names are like UTC, Europe/Berlin, Asia/Shanghai")
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
            "the file keeps one time all year, give that: --timezone Etc/GMT-1 is UTC+1"
        )
    return moments
