"""Numbers in files: one form for all columns, or a refusal that names the options."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import DataFileError
from pipeline.files.file_layout import FileLayout
from pipeline.files.reading_table import ReadingTable, read_readings
from pipeline.settings.sections import FilesSettings

HEADER = "time;a;b\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "a.csv"
    path.write_text(text, encoding="utf-8")
    return path


def rows(*cells: str) -> str:
    return HEADER + "".join(f"2024-03-{day:02};{text}\n" for day, text in enumerate(cells, start=1))


def read(path: Path, **options: Any) -> ReadingTable:
    features = ("value",) if options.get("columns_as_sensors") else ("a", "b")
    return read_readings([path], FileLayout.of(FilesSettings(timezone="UTC"), **options), features)


def complaint(path: Path, **options: Any) -> str:
    with pytest.raises(DataFileError) as raised:
        read(path, **options)
    return str(raised.value)


def values(table: ReadingTable) -> list[list[float]]:
    return [column.tolist() for column in table.values.values()]


@pytest.mark.parametrize(
    ("cells", "remedies"),
    [
        (("1,234;1.234", "2,345;2.345"), ("--decimal , --thousands .", "--decimal . --thousands ,")),
        (("1.234;2,5",), ("--decimal , --thousands .",)),
        (("1.234;2,5678", "n.a.;1"), ("--decimal , --thousands .",)),
    ],
)
def test_commas_beside_points_that_may_separate_thousands_are_refused(
    tmp_path: Path, cells: tuple[str, ...], remedies: tuple[str, ...]
) -> None:
    path = write(tmp_path, rows(*cells))
    message = complaint(path)
    assert "line 2: " in message
    for remedy in remedies:
        assert remedy in message
        _, decimal, _, thousands = remedy.split()
        read(path, decimal=decimal, thousands=thousands)


def test_a_point_that_cannot_separate_thousands_decides_the_form(tmp_path: Path) -> None:
    for proof, number in (("1.5", 1.5), ("0.125", 0.125), ("1.2345", 1.2345)):
        assert values(read(write(tmp_path, rows(f"1,234;{proof}")))) == [[1234.0], [number]]


def test_words_with_points_do_not_hide_decimal_commas(tmp_path: Path) -> None:
    assert values(read(write(tmp_path, rows("2,5;n.a.", "1,25;3")))) == [
        [2.5, 1.25],
        [pytest.approx(float("nan"), nan_ok=True), 3.0],
    ]


def test_a_number_of_another_form_is_refused_with_both_options(tmp_path: Path) -> None:
    path = write(tmp_path, rows("1.234,5;1"))
    assert "--decimal , --thousands ." in complaint(path, decimal=",")
    assert values(read(path, decimal=",", thousands=".")) == [[1234.5], [1.0]]
    assert "--decimal . --thousands ," in complaint(write(tmp_path, rows("1,234.5;1")), decimal=".")


def test_a_mark_with_a_decimal_comma_is_refused_and_a_list_is_split(tmp_path: Path) -> None:
    path = write(tmp_path, rows("-99,9;9", "2,5;3"))
    message = complaint(path, missing=("-99,9",))
    assert "--missing -99.9" in message
    assert "--missing -99 --missing 9" in message
    found = values(read(path, missing=("-99.9",)))
    assert str(found) == "[[nan, 2.5], [9.0, 3.0]]"
    with_points = write(tmp_path, rows("-99.5;9", "-99;3"))
    assert str(values(read(with_points, missing=("-99,9",)))) == "[[-99.5, nan], [nan, 3.0]]"


def test_columns_as_sensors_have_one_form_and_none_is_left_out(tmp_path: Path) -> None:
    table = read(write(tmp_path, rows("1,234;2,5", "2,345;3,5")), columns_as_sensors=True)
    assert table.sensors == ("a", "b")
    assert values(table) == [[1.234, 2.5, 2.345, 3.5]]
    open_form = write(tmp_path, rows("1,234;1", "2,345;2"))
    assert "line 2: '1,234' in column a has a comma" in complaint(open_form, columns_as_sensors=True)
    wrong_cell = write(tmp_path, rows("1;1", "2;2", "oops;3"))
    assert "line 4: 'oops' in column a is not a number" in complaint(wrong_cell, columns_as_sensors=True)
    with_text = write(tmp_path, rows("10.0.0.1;1", "north;2"))
    assert read(with_text, columns_as_sensors=True).sensors == ("b",)


def test_an_option_for_the_sensors_replaces_the_setting(tmp_path: Path) -> None:
    columns, named = FilesSettings(columns_as_sensors=True), FilesSettings(sensor_column="a")
    assert not FileLayout.of(columns, sensor_column="a").columns_as_sensors
    assert FileLayout.of(named, columns_as_sensors=True).sensor_column is None
    assert FileLayout.of(columns, sensor_column=None).columns_as_sensors
