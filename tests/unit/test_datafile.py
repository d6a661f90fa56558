"""Files of a user become readings, or an error names the file and the line."""

import gzip
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import deploy
from pipeline.errors import DataFileError
from pipeline.files.file_layout import FileLayout
from pipeline.files.guesses import Guesses, guess_notes
from pipeline.files.reading_encoder import ReadingEncoder
from pipeline.files.reading_table import ReadingTable, read_readings
from pipeline.messages import ReadingDecoder, iso_timestamp

BUNDLED = Path(deploy.__path__[0]) / "data" / "beijing.parquet"
MEASUREMENTS = ("PM2.5", "PM10", "SO2", "NO2", "CO", "O3", "TEMP", "PRES", "DEWP", "RAIN", "WSPM")
UTC_LAYOUT = FileLayout(timezone="UTC")


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    content = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


def rows(table: ReadingTable) -> list[tuple[Any, ...]]:
    """(sensor, ISO time, value of each feature), None where missing."""
    return [
        (
            table.sensors[table.sensor_codes[i]],
            iso_timestamp(int(table.timestamp_us[i])),
            *(None if np.isnan(column[i]) else float(column[i]) for column in table.values.values()),
        )
        for i in range(len(table))
    ]


def complaint(path: Path, layout: FileLayout = UTC_LAYOUT, features: tuple[str, ...] = ("value",)) -> str:
    with pytest.raises(DataFileError) as raised:
        read_readings([path], layout, features)
    return str(raised.value)


# --- the bundled data -------------------------------------------------------------------------------------------------


def test_the_bundled_data_has_the_rows_and_columns_of_its_source() -> None:
    assert BUNDLED.stat().st_size <= 4_000_000
    assert "CC BY 4.0" in (BUNDLED.parent / "ATTRIBUTION.md").read_text(encoding="utf-8")
    frame = pl.read_parquet(BUNDLED)
    assert frame.columns == ["station", "timestamp", *MEASUREMENTS]
    assert set(frame.dtypes[2:]) == {pl.Float32}
    assert frame.group_by("station").len()["len"].to_list() == [35_064] * 12
    assert frame["timestamp"].is_sorted()
    assert (frame["timestamp"].min(), frame["timestamp"].max()) == (datetime(2013, 3, 1), datetime(2017, 2, 28, 23))  # noqa: DTZ001
    nulls = dict(zip(frame.columns, frame.null_count().row(0), strict=True))
    assert nulls == {
        "station": 0,
        "timestamp": 0,
        **dict(zip(MEASUREMENTS, (8_739, 6_449, 9_021, 12_116, 20_701, 13_277, 398, 393, 403, 390, 318), strict=True)),
    }
    first = frame.filter(pl.col("station") == "aotizhongxin").row(0, named=True)
    assert (first["PM2.5"], first["TEMP"], first["CO"]) == (4.0, pytest.approx(-0.7), 300.0)


def test_the_bundled_data_reads_as_twelve_sensors_in_event_order() -> None:
    table = read_readings([BUNDLED], FileLayout(sensor_column="station", timezone="Asia/Shanghai"), ("PM2.5", "TEMP"))
    assert len(table.sensors) == 12
    assert len(table) > 420_000
    assert iso_timestamp(int(table.timestamp_us[0])) == "2013-02-28T16:00:00Z"
    assert (np.diff(table.timestamp_us) >= 0).all()


# --- layouts ----------------------------------------------------------------------------------------------------------


def test_each_file_is_a_sensor_named_after_it_and_rows_are_in_event_order(tmp_path: Path) -> None:
    a = write(tmp_path, "a.csv", "timestamp,value\n2020-01-01 00:00:00,1\n2020-01-01 02:00:00,2\n")
    b = write(tmp_path, "b.csv.gz", "timestamp,value\n2020-01-01 01:00:00,3\n2020-01-01 02:00:00,4\n")
    table = read_readings([a, b], UTC_LAYOUT, ("value",))
    assert rows(table) == [
        ("a", "2020-01-01T00:00:00Z", 1.0),
        ("b", "2020-01-01T01:00:00Z", 3.0),
        ("a", "2020-01-01T02:00:00Z", 2.0),
        ("b", "2020-01-01T02:00:00Z", 4.0),
    ]
    in_file_order = read_readings([a, b], FileLayout(timezone="UTC", order="file"), ("value",))
    assert [row[0] for row in rows(in_file_order)] == ["a", "a", "b", "b"]


def test_a_file_with_a_sensor_column_and_missing_values_is_read(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "wide.csv",
        "when;id;x;y;more\n"
        "2020-01-01T00:00:00Z;1;1.5;NA;q\n2020-01-01T00:00:00Z;2; 2 ;;r\n2020-01-01T01:00:00Z;1;;NaN;s\n",
    )
    layout = FileLayout(time_column="when", sensor_column="id")
    table = read_readings([path], layout, ("x", "y", "z"))
    assert rows(table) == [("1", "2020-01-01T00:00:00Z", 1.5, None), ("2", "2020-01-01T00:00:00Z", 2.0, None)]
    assert table.notes == (
        f"guessed for {path}: the separator is a semicolon; options that say the same: --separator semicolon",
        "ignored columns: more",
        "no file has a column for z; missing in every reading",
        "1 rows without a value of any feature are left out",
    )


def test_each_numeric_column_can_be_a_sensor(tmp_path: Path) -> None:
    path = write(tmp_path, "wide.csv", "date,HUFL,name,OT\n2020-01-01,1,x,2\n2020-01-02,3,y,\n")
    table = read_readings([path], FileLayout(timezone="UTC", columns_as_sensors=True), ("value",))
    assert rows(table) == [
        ("HUFL", "2020-01-01T00:00:00Z", 1.0),
        ("OT", "2020-01-01T00:00:00Z", 2.0),
        ("HUFL", "2020-01-02T00:00:00Z", 3.0),
    ]
    assert table.notes[0].startswith("ignored columns, not numeric: name (")
    assert "set features to one name" in complaint(path, FileLayout(columns_as_sensors=True), ("x", "y"))
    both = FileLayout(columns_as_sensors=True, sensor_column="name")
    assert "not both" in complaint(path, both)


def test_infinite_values_are_missing(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "time,x,y\n2020-01-01,inf,1\n2020-01-02,-inf,nan\n")
    assert rows(read_readings([path], UTC_LAYOUT, ("x", "y"))) == [("a", "2020-01-01T00:00:00Z", None, 1.0)]


# --- times ------------------------------------------------------------------------------------------------------------

MOMENT = datetime(2020, 6, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "timezone"),
    [
        ("2020-06-01T12:00:00Z", None),
        ("2020-06-01 14:00:00+02:00", None),
        ("2020-06-01T14:00+0200", "Asia/Shanghai"),
        ("2020-06-01 14:00", "Europe/Berlin"),
        ("2020/06/01 20:00:00.000", "Asia/Shanghai"),
        ("1591012800", None),
        ("1591012800000", None),
        ("1591012800000000", None),
        ("1591012800000000000", None),
    ],
)
def test_times_are_read_in_many_spellings(tmp_path: Path, text: str, timezone: str | None) -> None:
    path = write(tmp_path, "a.csv", f"time,value\n{text},1\n")
    table = read_readings([path], FileLayout(timezone=timezone), ("value",))
    assert table.timestamp_us.tolist() == [int(MOMENT.timestamp() * 1_000_000)]


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_parquet_times_are_read_in_every_unit(tmp_path: Path, unit: Any) -> None:
    path = tmp_path / "a.parquet"
    times = pl.Series("when", [MOMENT]).dt.cast_time_unit(unit)
    pl.DataFrame([times, pl.Series("value", [1], dtype=pl.Int16)]).write_parquet(path)
    assert rows(read_readings([path], FileLayout(), ("value",))) == [("a", "2020-06-01T12:00:00Z", 1.0)]


def test_times_are_read_from_columns_of_year_month_day_and_hour(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", '"No","year","month","day","hour","value"\n1,2013,3,1,5,9\n')
    assert rows(read_readings([path], UTC_LAYOUT, ("value",))) == [("a", "2013-03-01T05:00:00Z", 9.0)]
    bad = write(tmp_path, "b.csv", "year,month,day,hour,value\n2013,3,1,5,9\n2013,2,30,5,9\n")
    assert "b.csv, line 3: the columns form no date: year 2013, month 2, day 30, hour 5" in complaint(bad)


def test_a_local_time_that_exists_twice_is_read_as_the_earlier_and_then_the_later(tmp_path: Path) -> None:
    hours = ("01:30", "02:00", "02:30", "02:00", "02:30", "03:00")
    path = write(tmp_path, "a.csv", "time,value\n" + "".join(f"2016-10-30 {hour},1\n" for hour in hours))
    table = read_readings([path], FileLayout(timezone="Europe/Berlin"), ("value",))
    assert np.diff(table.timestamp_us).tolist() == [1_800_000_000] * 5


def test_a_time_that_does_not_exist_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "time,value\n2016-03-27 01:30,1\n2016-03-27 02:30,1\n")
    message = complaint(path, FileLayout(timezone="Europe/Berlin"))
    assert "a.csv, line 3: 2016-03-27 02:30:00 does not exist in Europe/Berlin" in message
    assert "--timezone Etc/GMT-1" in message


# --- errors name file and line ----------------------------------------------------------------------------------------

HEADER = "timestamp,value\n"
GOOD = "2020-01-01 00:00:00,1\n"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.csv", "", "a.csv is empty"),
        ("a.csv", HEADER, "a.csv has no rows"),
        ("a.csv", HEADER + GOOD + "2020-01-01 01:00:00,1.2.3\n", "line 3: '1.2.3' in column value is not a number"),
        ("a.csv", HEADER + GOOD + "2020-01-01 01:00:00,1,2\n", "line 3: 3 cells, but the header has 2"),
        ("a.csv", HEADER + GOOD + "2020-01-01 01:00:00\n", "line 3: 1 cells, but the header has 2"),
        ("a.csv", HEADER + GOOD + "yesterday,1\n", "line 3: 'yesterday' in column timestamp is not a time like"),
        ("a.csv", HEADER + "01/02/2020 00:00,1\n", "line 2: '01/02/2020 00:00' in column timestamp and all"),
        ("a.csv", HEADER + GOOD + "2020-13-01 00:00:00,1\n", "line 3: '2020-13-01 00:00:00' in column timestamp"),
        ("a.csv", HEADER + GOOD + "2020-01-01T01:00:00Z,1\n", "line 2: '2020-01-01 00:00:00' in column timestamp"),
        ("a.csv", HEADER + GOOD + ",1\n", "line 3: column timestamp is empty; every row needs a time"),
        ("a.csv", HEADER + "2020,1\n", "line 2: '2020' in column timestamp is too small for seconds"),
        (
            "a.csv",
            "when,value\n" + GOOD,
            "which column holds the time? Name it with --time-column; its columns: when, value",
        ),
        ("a.csv", "time,date,value\n2020-01-01,2020-01-01,1\n", "--time-column; candidates: time, date"),
        ("a.csv", "time,x,y\n2020-01-01,1,2\n", "its columns are: time, x, y. Set features"),
        ("a.csv.gz", HEADER + GOOD + "2020-01-01 01:00:00\n", "line 3: 1 cells"),
        ("a.parquet", "no parquet", "a.parquet cannot be read"),
        ("a.csv", b"time,value\n2020-01-01,\xff\n", "line 2: 'ÿ' in column value is not a number"),
        ("a.xlsx", "", "a.xlsx: neither CSV nor Parquet"),
    ],
)
def test_a_malformed_file_is_named_with_its_line(tmp_path: Path, name: str, text: str | bytes, expected: str) -> None:
    assert expected in complaint(write(tmp_path, name, text))


@pytest.mark.parametrize("size", [2, 10, 15, 20, None])
def test_a_damaged_or_truncated_gzip_file_is_named(tmp_path: Path, size: int | None) -> None:
    path = write(tmp_path, "a.csv.gz", HEADER + GOOD * 100)
    whole = path.read_bytes()
    path.write_bytes(whole[:size] if size else whole[:12] + b"\xff" * (len(whole) - 12))
    assert "a.csv.gz cannot be read: its compressed data is damaged or incomplete (" in complaint(path)


def test_wrong_paths_columns_and_time_zones_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "time,id,value\n2020-01-01 00:00,,1\n2020-01-01 01:00,b,1\n")
    assert complaint(tmp_path / "none.csv") == f"there is no file {tmp_path / 'none.csv'}"
    assert f"{tmp_path} is not a file, but a folder without Parquet files" in complaint(tmp_path)
    assert "has no column 'when'; it has: time, id, value" in complaint(path, FileLayout(time_column="when"))
    assert "has no column 'sensor'" in complaint(path, FileLayout(timezone="UTC", sensor_column="sensor"))
    assert "line 2: column id must hold a sensor id" in complaint(path, FileLayout(timezone="UTC", sensor_column="id"))
    assert "its times have no zone ('2020-01-01 00:00'); name it" in complaint(path, FileLayout())
    assert "unknown time zone 'Mars/Olympus'" in complaint(path, FileLayout(timezone="Mars/Olympus"))
    assert "in column value is too small" in complaint(path, FileLayout(time_column="value"))
    texts = tmp_path / "texts.parquet"
    pl.DataFrame({"time": [MOMENT], "value": [["a list"]]}).write_parquet(texts)
    assert "texts.parquet: column value holds List(String), not numbers" in complaint(texts)


def test_several_sensors_read_as_one_are_reported(tmp_path: Path) -> None:
    lines = "".join(f"2020-01-01 0{hour}:00,{name},1\n" for hour in range(3) for name in "abc")
    path = write(tmp_path, "a.csv", "time,id,value\n" + lines)
    assert "6 of 9 rows repeat a time" in complaint(path)
    assert "--sensor-column (columns of text: id, value)" in complaint(path)
    doubled = write(tmp_path, "b.csv", HEADER + GOOD + GOOD + "2020-01-01 01:00:00,1\n")
    assert "1 rows repeat a time" in read_readings([doubled], UTC_LAYOUT, ("value",)).notes[0]


# --- encoding ---------------------------------------------------------------------------------------------------------


def test_rows_are_encoded_as_readings_that_the_stream_decodes() -> None:
    table = ReadingTable(
        sensors=("a", 'odd "é"'),
        sensor_codes=np.array([1, 0, 1]),
        timestamp_us=np.array([0, 1_500_000, -1]),
        values={
            "x": np.array([0.1, np.nan, 1e20], dtype=np.float32),
            'y "quoted"': np.array([np.nan, -0.1, 1e-7]),
        },
        notes=(),
    )
    keys, values = ReadingEncoder(table).encode(np.array([0, 1, 2]))
    assert values[0] == (
        b'{"sensor_id":"odd \\"\xc3\xa9\\"","timestamp":"1970-01-01T00:00:00Z",'
        b'"values":{"x":0.1,"y \\"quoted\\"":null}}'
    )
    decoder = ReadingDecoder(tuple(table.values))
    decoded = [decoder.decode(key, value) for key, value in zip(keys, values, strict=True)]
    assert [reading.sensor_id for reading in decoded] == ['odd "é"', "a", 'odd "é"']
    assert [reading.timestamp_us for reading in decoded] == [0, 1_500_000, -1]
    np.testing.assert_array_equal(
        [reading.values for reading in decoded], [[0.1, np.nan], [np.nan, -0.1], [1e20, 1e-7]]
    )


def test_an_option_is_not_proposed_if_two_columns_need_different_values() -> None:
    differ, same = Guesses(), Guesses()
    for guesses, issued in ((differ, "epoch_s"), (same, "epoch_ms")):
        guesses.add("time counts milliseconds since 1970", "--time-format", "epoch_ms")
        guesses.add("issued_at has numbers", "--time-format", issued)
    assert differ.command == ""
    assert same.command == "--time-format epoch_ms"
    assert guess_notes(["a.csv"], [differ])[0].endswith("issued_at has numbers; no option says the same")
    differ.add("the decimal sign is a comma", "--decimal", ",")
    assert guess_notes(["a.csv"], [differ])[0].endswith("options that say the same: --decimal ,")
