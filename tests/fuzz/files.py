"""The fuzz target for files of readings: any bytes under any suffix, with any options."""

import gzip
import io
import random
import tempfile
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from pipeline.errors import DataFileError
from pipeline.files.file_layout import FileLayout
from pipeline.files.reading_encoder import ReadingEncoder
from pipeline.files.reading_table import ReadingTable, read_readings
from pipeline.messages import ReadingDecoder
from tests.fuzz.mutation import mutate

FIELD: Final = Path(__file__).parents[1] / "field"
FEATURES: Final = ("value", "offset", "sensor", "time", "PM2.5")
LARGEST: Final = 1_000  # bytes of a reading
_HEAD_BYTES: Final = 600  # of each file of the corpus: small cases are fast
_PIECES: Final = (
    *(b",", b";", b"\t", b"|", b'"', b'""', b"\n", b"\r\n", b"\r", b"\n\n", b"#", b"sep=;\n", b" ", b"\x00", b"\xa0"),
    *(b"inf", b"-inf", b"nan", b"1e400", b"1e31", b"-1e30", b"5e-324", b"1.234,5", b"1,234.5", b"1 234", b"-200"),
    *(b"unavailable", b"2024-03-01", b"24:00", b"9999-12-31", b"2024-02-30", b"12:00 PM", b"1709251200", b"00.00.00"),
    *(b"\xff\xfe", b"\xef\xbb\xbf", b"\xe2\x88\x92", b"\xd0", b"timestamp,value\n", b"time", b"99999999999999999999"),
)
_OPTIONS: Final[dict[str, tuple[Any, ...]]] = {
    "time_column": (
        "timestamp",
        "time",
        "when",
        ("Date", "Time"),
        "Date,Time",
        "column_1",
        "nothing",
        ("value", "time"),
    ),
    "time_format": ("epoch_s", "day-first", "%Y-%m-%d %H:%M", "%d/%m/%Y %H.%M.%S", "%Y%m%d%H", "%", ""),
    "repeated_hour": ("earlier", "later"),
    "timezone": ("UTC", "Europe/Berlin", "Mars/Olympus", "America/New_York", ""),
    "sensor_column": ("id", "sensor", "value", "column_2", "time"),
    "strip_ids": (True,),
    "columns_as_sensors": (True,),
    "encoding": (
        "utf-8",
        "utf-16",
        "cp1252",
        "latin-1",
        "idna",
        "hex",
        "utf-7",
        "undefined",
        "",
        "unicode_escape",
        "\0",
    ),
    "separator": (";", ",", "tab", "space", "|", "é", "", ",,", '"', "\n", ".", "-", ":"),
    "decimal": (",", ".", ";"),
    "thousands": (".", ",", "space", "'", "x", ""),
    "missing": (("-200", "unavailable"), ("",), ("nan", "inf", "1e999"), ("1",)),
    "skip_rows": (0, 1, 3, 10**9),
    "unit_rows": (0, 1, 2, 10**9),
    "comment": ("#", "", "2", "%", "é", "//"),
    "header": (True, False),
    "column_names": (("time", "value"), ("a",), ("time", "time"), ("", "")),
    "order": ("file",),
}


def _seeds() -> list[bytes]:
    texts = [path.read_bytes()[:_HEAD_BYTES] for path in sorted(FIELD.rglob("*.csv"))]
    times = "".join(f"2024-03-01 {hour:02}:00,{hour}.5,{hour}\n" for hour in range(5))
    texts.append(f"time,value,offset\n{times}".encode())
    texts.append(f"time,value,offset\n{times}".encode("utf-16"))
    texts.append(f"# a comment\nDate;Time;value\n;h;°C\n{times.replace(' ', ';').replace(',', ';')}".encode("cp1252"))
    texts.append(f'"time","value","sensor"\n{times.replace(",", chr(34) + "," + chr(34))}'.encode())
    return texts


def _parquet_seeds() -> list[bytes]:
    moment = datetime(2024, 3, 1, tzinfo=UTC)
    columns: dict[str, list[Any]] = {
        "time": [moment + timedelta(hours=hour) for hour in range(4)],
        "value": [1.0, None, float("inf"), 1e31],
        "offset": [1, 2, 3, 4],
        "sensor": ["a", "b ", "", None],
    }
    found = []
    for names in (("time", "value"), ("time", "offset"), ("time", "sensor", "offset"), ("value", "offset")):
        file = io.BytesIO()
        pl.DataFrame({name: columns[name] for name in names}).write_parquet(file)
        found.append(file.getvalue())
    return found


_TEXTS = _seeds()
_PARQUET = _parquet_seeds()
_FOLDER = tempfile.TemporaryDirectory(prefix="streamgru-fuzz-")


def files(chance: random.Random) -> None:
    """Any file gives readings that the stream's decoder accepts, or our error; never another exception."""
    paths = [_write(chance, Path(_FOLDER.name) / name) for name in chance.choice((("a",), ("a",), ("a", "b")))]
    given = {name: chance.choice(_OPTIONS[name]) for name in _OPTIONS if chance.random() < 0.12}
    layout = FileLayout(**{"timezone": "UTC", **given})
    features = FEATURES[:1] if layout.columns_as_sensors else FEATURES[: chance.randrange(1, len(FEATURES) + 1)]
    try:
        table = read_readings(paths, layout, features, LARGEST)
    except DataFileError:
        return
    except pl.exceptions.PanicException as error:  # not an Exception, so the runner would end
        raise AssertionError(f"Polars panicked: {error}") from error
    finally:
        for path in paths:
            path.unlink()
    check_accepted(table)


def check_accepted(table: ReadingTable) -> None:
    """Assert that the stream accepts every reading, with the same content."""
    if not len(table):
        return
    decoder = ReadingDecoder(tuple(table.values))
    keys, values = ReadingEncoder(table).encode(np.arange(len(table)))
    columns = [column.tolist() for column in table.values.values()]
    for row, (key, value) in enumerate(zip(keys, values, strict=True)):
        assert len(key) + len(value) <= LARGEST
        reading = decoder.decode(key, value)
        assert reading.sensor_id == table.sensors[table.sensor_codes[row]]
        assert reading.timestamp_us == table.timestamp_us[row]
        np.testing.assert_array_equal(reading.values, [column[row] for column in columns])


def _write(chance: random.Random, stem: Path) -> Path:
    kind = chance.choice((".csv", ".csv", ".csv", ".tsv", ".csv.gz", ".zip", ".parquet"))
    content = _broken(chance, _PARQUET if kind == ".parquet" else _TEXTS)
    if kind == ".csv.gz":
        content = _perhaps_broken(chance, gzip.compress(content, 1))
    if kind == ".zip":
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", chance.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED))) as archive:
            archive.writestr("a.csv", content)
            archive.writestr(
                chance.choice(("folder/a.csv", "b.parquet", "c.csv.gz", "readme.md")), chance.choice(_TEXTS)
            )
        content = _perhaps_broken(chance, file.getvalue())
    path = stem.with_name(stem.name + kind)
    path.write_bytes(content)
    return path


def _broken(chance: random.Random, seeds: list[bytes]) -> bytes:
    content = chance.choice(seeds)
    if chance.random() < 0.2:
        return content
    for _ in range(chance.choice((0, 1, 2, 4))):
        at = chance.randrange(len(content) + 1)
        content = content[:at] + chance.choice(_PIECES) + content[at + chance.choice((0, 0, 1, 5)) :]
    return mutate(content, seeds, chance) if chance.random() < 0.5 else content


def _perhaps_broken(chance: random.Random, content: bytes) -> bytes:
    return mutate(content, [content], chance) if chance.random() < 0.3 else content
