"""The fuzz target for time columns: any cells of any type, with any options."""

import random
from typing import Any, Final

import msgspec
import polars as pl

from pipeline.errors import DataFileError
from pipeline.files.file_times import convert_times
from pipeline.files.time_column import TimeColumn, TimeOptions
from pipeline.messages import EARLIEST_TIMESTAMP_US, LATEST_TIMESTAMP_US, ReadingDecoder, Rejected
from tests.fuzz.mutation import mutate

_TEXTS: Final = (
    *(
        "2024-03-01T12:00:00Z",
        "2024-10-27 02:30:00",
        "2024-03-31 02:30",
        "2016-12-31T23:59:60.5+00",
        "2024-03-01 24:00",
    ),
    *(
        "01/03/2024 00:00",
        "13/1/2024 18.00.00",
        "1/1/2010 0:00",
        "01.03.2024",
        "01/03/24",
        "2024/03/01 12:00:00,123456",
    ),
    *("2024-03-01 12:00:00 CET", "2024-03-01 12:00 Europe/Berlin", "2024-03-01 12:00 PM", "Fri, 01 Mar 2024 12:00 GMT"),
    *("2024030100", "202403010000", "20240301", "2403010000", "1709251200", "1709251200000", "1709251200.5", "1.7e18"),
    *("2024-W09-5", "2024-061", "01-Mar-24", "20240301T120000.1234567-0830", "9999-12-31", "0001-01-01T00:00:00+23:59"),
    *(
        "2024-03-01T12:00:00+01:00[Europe/Berlin]",
        "Mar 1, 2024 12:00 AM",
        "NaN",
        "-9223372036854775808",
        "2024-11-03 1:30",
    ),
)
_SEEDS: Final = [text.encode() for text in _TEXTS]
_FORMATS: Final = (
    *("epoch_s", "epoch_ms", "epoch_us", "epoch_ns", "day-first", "month-first", "year-first", "%Y-%m-%d %H:%M:%S"),
    *("%d/%m/%Y %H:%M", "%Y%m%d%H", "%y%m%d%H%M", "%Y-%m-%dT%H:%M:%S.%f%z", "%G-W%V-%u", "%Y-%j", "%Y 2024 %m"),
    *("%d.%B.%Y %I %p %Z", "%", "%Y%%", "%q", "", "%Y %Y", "epoch"),
)
_ZONES: Final = (
    None,
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "Etc/GMT-1",
    "CET",
    "Mars",
    "",
)
_NUMBERS: Final = (0, 1, -1, 20240301, 2024030100, 1709251200, 1709251200000, 2403010000, 2**31, 2**53, 2**62, -(2**63))
_TYPES: Final = (
    *(pl.Int64, pl.Float64, pl.Float32, pl.Date, pl.Datetime("ms"), pl.Datetime("us"), pl.Datetime("ns", "UTC")),
    *(pl.Datetime("us", "Europe/Berlin"), pl.Decimal(38, 3), pl.Time, pl.Duration("us"), pl.Boolean, pl.UInt64),
)
_STREAM: Final = ReadingDecoder(("x",))


def file_times(chance: random.Random) -> None:
    """Any column gives microseconds within the range of the stream, or our error; ISO 8601 as on the stream."""
    cells = _texts(chance) if chance.random() < 0.7 else _numbers(chance)
    options = TimeOptions(
        chance.choice(_ZONES),
        chance.choice(_FORMATS) if chance.random() < 0.3 else None,
        chance.choice(("infer", "infer", "infer", "earlier", "later")),
    )
    found = _convert(cells, pl.Series([chance.choice("ab") for _ in range(len(cells))], dtype=pl.String), options)
    if found is not None:
        assert (found.dtype, len(found)) == (pl.Int64, len(cells))
        assert found.is_between(EARLIEST_TIMESTAMP_US, LATEST_TIMESTAMP_US - 1).all()
    if cells.dtype == pl.String and options.time_format is None:
        _check_against_stream(cells[0])


def _convert(cells: pl.Series, sensors: pl.Series, options: TimeOptions) -> pl.Series | None:
    column = TimeColumn("when", "a.csv", cells, lambda row: f"a.csv, line {row + 2}")
    try:
        return convert_times(column, sensors, options)
    except DataFileError:
        return None
    except pl.exceptions.PanicException as error:  # not an Exception, so the runner would end
        raise AssertionError(f"Polars panicked: {error}") from error


def _check_against_stream(text: str | None) -> None:
    try:
        value = msgspec.json.encode({"sensor_id": "a", "timestamp": text, "values": {"x": 1.0}})
        expected = _STREAM.decode(b"a", value).timestamp_us
    except Rejected:
        return
    found = _convert(pl.Series([text]), pl.Series(["a"]), TimeOptions())
    assert found is not None, f"a file refuses {text!r}, and the stream reads it"
    assert found.to_list() == [expected], text


def _texts(chance: random.Random) -> pl.Series:
    """Cells of one form or of several, some of them broken."""
    text = chance.choice(_TEXTS)
    cells: list[str | None] = []
    for _ in range(chance.choice((1, 1, 2, 3, 8, 30))):
        kind = chance.random()
        if kind < 0.4:
            cells.append(
                "".join(
                    chance.choice("0123456789") if each.isdigit() and chance.random() < 0.2 else each for each in text
                )
            )
        elif kind < 0.6:
            cells.append(mutate(chance.choice(_SEEDS), _SEEDS, chance).decode(errors="replace"))
        elif kind < 0.65:
            cells.append(chance.choice((None, "", " ", chance.choice(_TEXTS))))
        else:
            cells.append(text)
    return pl.Series("when", cells, dtype=pl.String)


def _numbers(chance: random.Random) -> pl.Series:
    """Numbers as a column of some type; a type that cannot hold them stays a column of numbers."""
    start, step = chance.choice(_NUMBERS), chance.choice((0, 1, 100, 3_600, 86_400, 10**6, 10**12))
    values: list[Any] = [start + step * row for row in range(chance.choice((1, 2, 5, 40)))]
    values = [max(min(value, 2**63 - 1), -(2**63)) for value in values]
    if chance.random() < 0.2:
        values[chance.randrange(len(values))] = chance.choice((None, *_NUMBERS))
    numbers = pl.Series("when", values, dtype=pl.Int64)
    if chance.random() < 0.1:
        return (numbers.cast(pl.Float64) + chance.choice((0.5, float("nan"), float("inf")))).alias("when")
    kind: Any = chance.choice(_TYPES)
    try:
        return numbers.cast(pl.Int32).cast(kind) if kind == pl.Date else numbers.cast(kind)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return numbers
