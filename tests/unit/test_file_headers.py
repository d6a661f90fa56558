"""Headers with unusual names, lines before them, and messages about a header that is not recognised."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import DataFileError
from pipeline.files.file_layout import FileLayout
from pipeline.files.reading_table import ReadingTable, read_readings
from pipeline.settings.sections import FilesSettings


def read(folder: Path, text: str, features: tuple[str, ...] = ("value",), **options: Any) -> ReadingTable:
    path = folder / "a.csv"
    path.write_text(text, encoding="utf-8")
    return read_readings([path], FileLayout.of(FilesSettings(timezone="UTC"), **options), features)


def complaint(folder: Path, text: str, **options: Any) -> str:
    with pytest.raises(DataFileError) as raised:
        read(folder, text, **options)
    return str(raised.value)


def values(table: ReadingTable) -> list[list[float]]:
    return [column.tolist() for column in table.values.values()]


@pytest.mark.parametrize("mark", ["#", "%", "//"])
@pytest.mark.parametrize("separator", [",", ";"])
def test_a_mark_of_comments_may_be_the_name_of_a_column(tmp_path: Path, mark: str, separator: str) -> None:
    text = f"{mark},time,value\n1,2024-03-01,5\n2,2024-03-02,6\n".replace(",", separator)
    assert values(read(tmp_path, text)) == [[5.0, 6.0]]
    comment = f"{mark},by,logger\nnumber,time,value\n1,2024-03-01,5\n".replace(",", separator)
    assert values(read(tmp_path, comment)) == [[5.0]]


def test_a_header_taken_for_a_comment_is_refused_with_the_option(tmp_path: Path) -> None:
    text = "#nr,time,the value, in m\n1,2024-03-01,5\n2,2024-03-02,6\n"
    assert "If a line that begins with # does, add --comment ''" in complaint(tmp_path, text)


def test_numbers_and_dates_may_be_names_of_columns_beside_a_usual_name(tmp_path: Path) -> None:
    table = read(tmp_path, "time,0.05,0.10\n2024-03-01,1,2\n2024-03-02,3,4\n", ("0.05", "0.10"))
    assert values(table) == [[1.0, 3.0], [2.0, 4.0]]
    assert "line 1 names the columns" in table.notes[0]
    assert "--header" in table.notes[0]
    with_lines = "from logger 7\n\ntime,0.05,0.10\n2024-03-01,1,2\n2024-03-02,3,4\n"
    assert values(read(tmp_path, with_lines, ("0.10",))) == [[2.0, 4.0]]
    assert "has no column 'when'; it has: sensor, 2024-03-01" in complaint(
        tmp_path, "sensor,2024-03-01,2024-03-02\na,1,2\nb,3,4\n", time_column=("when",)
    )
    named = read(tmp_path, "when,0.05\n2024-03-01,1\n2024-03-02,3\n", ("0.05",), time_column=("when",))
    assert values(named) == [[1.0, 3.0]]


def test_a_row_that_may_be_a_header_is_refused_with_both_options(tmp_path: Path) -> None:
    message = complaint(tmp_path, "2024,0.05\n2024-03-01,1\n2024-03-02,3\n")
    assert "line 1: this line looks like a reading" in message
    assert "--column-names time,value" in message
    assert "If this line names the columns, add --header" in message
    with_zone = "2024-03-01 00:00,utc,5\n2024-03-01 01:00,utc,6\n"
    assert "line 1: this line looks like a reading" in complaint(tmp_path, with_zone)


@pytest.mark.parametrize("option", [("Date,Time",), ("Date", "Time"), ()])
def test_a_header_is_found_behind_padded_lines(tmp_path: Path, option: tuple[str, ...]) -> None:
    text = "Station north,,\nHeight,35,\nDate,Time,value\n2024-03-01,00:00,1\n2024-03-01,01:00,2\n2024-03-01,02:00,3\n"
    table = read(tmp_path, text, time_column=option)
    assert values(table) == [[1.0, 2.0, 3.0]]
    assert "--skip-rows 2" in table.notes[0]


def test_lines_of_blanks_before_and_behind_the_header_are_left_out(tmp_path: Path) -> None:
    body = "2024-03-01,1\n2024-03-02,2\n"
    for text in (
        "   \ntime,value\n" + body,
        "\t\n\n  \ntime,value\n  \n" + body,
        "time,value\n   \n,degC\n" + body,
        "time,value\n,\n,degC\n" + body,
        "  \n# time,value\n \n" + body,
    ):
        table = read(tmp_path, text)
        assert values(table) == [[1.0, 2.0]]
        assert table.origin is not None
        assert table.origin(0).endswith(f"line {text.count(chr(10)) - 1}")
    assert values(read(tmp_path, "time,value\n   \n,degC\n" + body, unit_rows=1)) == [[1.0, 2.0]]


def test_given_names_replace_those_of_a_header(tmp_path: Path) -> None:
    text = "when,reading\n2024-03-01,1\n2024-03-02,2\n"
    assert values(read(tmp_path, text, header=True, column_names=("time", "value"))) == [[1.0, 2.0]]
    message = complaint(tmp_path, text, header=True, column_names=("time", "value", "more"))
    assert "has 2 columns, but --column-names has 3" in message


@pytest.mark.parametrize("header", ["time,value", "time,,value", ",time,value", "time,value,"])
def test_a_repeated_header_is_left_out_wherever_a_column_without_cells_stands(tmp_path: Path, header: str) -> None:
    cells = [header.replace("time", f"2024-03-0{day}").replace("value", str(day)) for day in (1, 2, 3)]
    table = read(tmp_path, "\n".join([header, cells[0], header, cells[1], header, cells[2], ""]))
    assert values(table) == [[1.0, 2.0, 3.0]]
    assert "line 3 repeats the header" in " ".join(table.notes)


@pytest.mark.parametrize("sign", ["»", '"', "é"])
def test_a_separator_line_with_an_impossible_separator_is_refused(tmp_path: Path, sign: str) -> None:
    text = f"sep={sign}\ntime{sign}value\n2024-03-01{sign}1\n"
    assert "a.csv, line 1: " in complaint(tmp_path, text)
    assert values(read(tmp_path, "sep=»\ntime;value\n2024-03-01;1\n", separator=";")) == [[1.0]]
