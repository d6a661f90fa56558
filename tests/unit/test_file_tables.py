"""Files that a folder of small cases cannot hold: pipes, forbidden files, long readings, and many at once."""

import gzip
import os
import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipeline.errors import DataFileError
from pipeline.files import sources
from pipeline.files.file_layout import FileLayout
from pipeline.files.missing_values import extreme_note, extreme_value
from pipeline.files.reading_encoder import ReadingEncoder
from pipeline.files.reading_table import read_readings
from pipeline.settings import Settings
from pipeline.settings.sections import FilesSettings
from pipeline.windows import sequences_from_table

UTC_LAYOUT = FileLayout(timezone="UTC")
HEADER = "time,value\n"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def hours(count: int, value: str = "1") -> str:
    return "".join(f"2024-03-{1 + i // 24:02} {i % 24:02}:00,{value}\n" for i in range(count))


def complaint(*paths: Path, layout: FileLayout = UTC_LAYOUT, limit: int | None = None) -> str:
    with pytest.raises(DataFileError) as raised:
        read_readings(paths, layout, ("value",), limit)
    return str(raised.value)


# --- files ------------------------------------------------------------------------------------------------------------


def test_pipes_forbidden_files_and_broken_links_are_refused_by_name(tmp_path: Path) -> None:
    pipe, link, secret = tmp_path / "pipe.csv", tmp_path / "link.csv", write(tmp_path / "secret.csv", HEADER + hours(2))
    os.mkfifo(pipe)
    link.symlink_to(tmp_path / "nothing.csv")
    assert complaint(pipe) == f"{pipe} is not a file"
    assert complaint(link) == f"there is no file {link}"
    secret.chmod(0)
    if not os.access(secret, os.R_OK):  # root may read it
        assert complaint(secret) == f"{secret} cannot be read: Permission denied"
    assert "is not the path of a file: File name too long" in complaint(Path("a" * 5_000 + ".csv"))


def test_an_archive_with_a_password_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.csv", HEADER + hours(2))
    content = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + flags] |= 1  # the flag of encryption
    path.write_bytes(content)
    assert "password required for extraction; unpack it first" in complaint(path)


def test_files_of_one_name_get_as_many_folders_as_tell_them_apart(tmp_path: Path) -> None:
    paths = [write(tmp_path / folder / "data.csv", HEADER + hours(2)) for folder in ("x/a/raw", "x/b/raw", "y/a/raw")]
    paths.append(write(tmp_path / "x" / "other.csv", HEADER + hours(2)))
    table = read_readings(paths, UTC_LAYOUT, ("value",))
    assert table.sensors == ("x/a/raw/data", "x/b/raw/data", "y/a/raw/data", "other")
    assert len(table) == 8


def test_a_pattern_names_its_files_in_order_and_a_name_with_brackets_names_a_file(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "c[1].csv"):
        write(tmp_path / name, HEADER + hours(1))
    assert read_readings([tmp_path / "*.csv"], UTC_LAYOUT, ("value",)).sensors == ("a", "b", "c[1]")
    assert read_readings([tmp_path / "c[1].csv"], UTC_LAYOUT, ("value",)).sensors == ("c[1]",)


def test_a_delta_table_is_not_read_as_parquet_files(tmp_path: Path) -> None:
    table = tmp_path / "exports" / "readings"
    (table / "_delta_log").mkdir(parents=True)
    file = table / "day=1" / "part.parquet"
    file.parent.mkdir()
    pl.DataFrame({"time": ["2024-03-01"], "value": [1.0]}).write_parquet(file)
    for path in (table, table.parent, file.parent, file, table / "*" / "*.parquet"):
        message = complaint(path)
        assert f"{table} is a Delta table" in message
        assert "`streamgru backtest` and `streamgru retrain` without files read the history" in message
        assert "delta_scan" in message


def test_the_values_of_partition_folders_are_decoded(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "site=roof%2Fnorth%20a"
    folder.mkdir(parents=True)
    pl.DataFrame({"time": ["2024-03-01"], "value": [1.0]}).write_parquet(folder / "part.parquet")
    table = read_readings([tmp_path / "data"], FileLayout(timezone="UTC", sensor_column="site"), ("value",))
    assert table.sensors == ("roof/north a",)


@pytest.mark.parametrize("name", ["a.csv.gz", "a.zip"])
def test_a_file_that_unpacks_to_more_than_the_limit_is_refused(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, path = (HEADER + hours(48)).encode(), tmp_path / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(content))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.csv", content)
    monkeypatch.setattr(sources, "_MOST_UNPACKED_BYTES", len(content))
    assert len(read_readings([path], UTC_LAYOUT, ("value",))) == 48
    monkeypatch.setattr(sources, "_MOST_UNPACKED_BYTES", len(content) - 1)
    assert "unpacks to more than" in complaint(path)
    assert "split it into smaller files" in complaint(path)


def test_the_guess_about_many_files_is_one_note(tmp_path: Path) -> None:
    for i in range(20):
        write(tmp_path / f"{i:02}.csv", "time;value\n" + hours(3, "1,5").replace(",1,5", ";1,5"))
    notes = read_readings([tmp_path / "*.csv"], UTC_LAYOUT, ("value",)).notes
    assert len(notes) == 1
    assert "02.csv and 17 more files: the separator is a semicolon, the decimal sign is a comma" in notes[0]


# --- settings ---------------------------------------------------------------------------------------------------------


def test_an_option_wins_over_its_setting_and_a_setting_over_a_guess(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "time;value\n2024-03-01 00:00;1,234\n")
    settings = FilesSettings.model_validate({"timezone": "Europe/Berlin", "decimal": ",", "missing": [-200]})
    layout = FileLayout.of(settings, timezone="UTC", decimal=None, missing=())
    assert (layout.timezone, layout.decimal, layout.missing) == ("UTC", ",", ("-200",))
    assert read_readings([path], layout, ("value",)).values["value"].tolist() == [1.234]
    table = read_readings([path], FileLayout.of(settings, decimal=".", thousands=",", timezone="UTC"), ("value",))
    assert table.values["value"].tolist() == [1234.0]


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (FileLayout(separator=",,"), "--separator ',,' is not one character"),
        (FileLayout(timezone="UTC", decimal=",", thousands=","), "--thousands and --decimal are both ','"),
        (FileLayout(timezone="UTC", thousands="x"), "--thousands 'x' does not separate groups of digits"),
        (FileLayout(time_column=("time", "hour")), "has no column 'hour'; it has: time, value"),
        (FileLayout(skip_rows=9), "a.csv has no rows"),
        (FileLayout(unit_rows=9), "a.csv has no rows"),
    ],
)
def test_a_wrong_option_is_named(tmp_path: Path, layout: FileLayout, message: str) -> None:
    assert message in complaint(write(tmp_path / "a.csv", HEADER + hours(2)), layout=layout)


# --- the stream's limits ----------------------------------------------------------------------------------------------


def test_a_reading_larger_than_the_topic_accepts_is_refused_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "time,id,value\n2024-03-01,a,1\n2024-03-02," + "b" * 900 + ",1\n")
    layout = FileLayout(timezone="UTC", sensor_column="id")
    message = complaint(path, layout=layout, limit=1_000)
    assert message.startswith(f"{path}, line 3: as a reading this row is larger than 1,000 bytes")
    assert "kafka.max_reading_bytes" in message
    assert len(read_readings([path], layout, ("value",), 2_500)) == 2


def test_readings_keep_features_whose_names_the_program_uses_itself(tmp_path: Path) -> None:
    features = ("offset", "partition", "timestamp", "sensor_id", "sensor", "value 0", "file", "place")
    cells = ",".join(map(str, range(len(features))))
    path = write(tmp_path / "a.csv", f"time,{','.join(features)}\n" + hours(30, cells))
    table = read_readings([path], UTC_LAYOUT, features)
    settings = Settings(features=features, targets=("offset",))
    sequences = sequences_from_table(table, settings)
    assert sequences.features == features
    assert sequences.values.tolist() == [list(range(len(features)))] * 30
    assert b'"values":{"offset":0.0,"partition":1.0,' in ReadingEncoder(table).encode(np.arange(1))[1][0]


# --- missing values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([-200, *range(1, 20), -200], (-200, 2 / 21)),
        ([9999, 9999, *range(300, 340)], (9999, 2 / 42)),
        ([-9999.0, *np.linspace(-40, 40, 50), -9999.0], (-9999, 2 / 52)),
        ([0.0] * 50 + [0.1, 0.2, 0.5, 1.1, 2.0, 7.0], None),  # rain
        ([100.0] * 20 + list(range(60, 100)), None),  # humidity
        ([0, 1] * 50, None),  # a switch
        ([-200, *range(1, 20)], None),  # once: a spike
        ([21.5] * 30, None),
    ],
)
def test_an_extreme_value_that_repeats_and_stands_apart_is_pointed_out(
    values: list[float], expected: tuple[float, float] | None
) -> None:
    series = pl.Series("x", values, pl.Float64)
    assert extreme_value(series) == (None if expected is None else pytest.approx(expected))
    if expected is not None:
        assert f"add --missing {expected[0]:g}" in str(extreme_note("x", series))
