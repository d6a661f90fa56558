"""Every file of ``tests/field`` becomes the readings that ``expected.toml`` states, or is refused with a remedy.

A case in ``expected.toml`` has ``files``, ``options`` as a user types them after ``publish``, and ``features``. The
case also has either ``refused``, words of the message, or a result: ``rows``, ``sensors``, ``first`` and ``last``
(sensor, time, value of each feature; "" where missing) and ``notes``, words of the notes.
"""

import shlex
import tomllib
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

from deploy.option_types import layout_options
from pipeline.errors import DataFileError
from pipeline.files.file_layout import FileLayout
from pipeline.files.reading_encoder import ReadingEncoder
from pipeline.files.reading_table import ReadingTable, read_readings
from pipeline.messages import ReadingDecoder, iso_timestamp
from pipeline.settings.sections import FilesSettings

FIELD = Path(__file__).parents[1] / "field"
CASES: list[dict[str, Any]] = tomllib.loads((FIELD / "expected.toml").read_text(encoding="utf-8"))["case"]


def layout(options: str) -> FileLayout:
    """The layout that ``streamgru publish`` makes of its options."""
    found: list[FileLayout] = []

    @click.command()
    @layout_options
    def command(**given: Any) -> None:
        found.append(FileLayout.of(FilesSettings(), **given))

    result = CliRunner().invoke(command, shlex.split(options))
    assert found, result.output
    return found[0]


def read(case: dict[str, Any], options: str) -> ReadingTable:
    paths = [FIELD / name for name in case["files"]]
    return read_readings(paths, layout(options), case.get("features", ["value"]))


def reading(table: ReadingTable, row: int) -> list[Any]:
    values = [float(column[row]) for column in table.values.values()]
    moment = iso_timestamp(int(table.timestamp_us[row]))
    return [table.sensors[table.sensor_codes[row]], moment, *("" if np.isnan(value) else value for value in values)]


def decoded_by_the_stream(table: ReadingTable) -> list[list[Any]]:
    if not len(table):
        return []
    keys, values = ReadingEncoder(table).encode(np.arange(len(table)))
    decoder = ReadingDecoder(tuple(table.values))
    readings = [decoder.decode(key, value) for key, value in zip(keys, values, strict=True)]
    return [[each.sensor_id, each.timestamp_us, *each.values] for each in readings]


def stated_options(table: ReadingTable) -> str | None:
    """The options that a note says the same as the guesses; None without guesses, or if files differ in them."""
    found = [note.partition("options that say the same: ")[2] for note in table.notes if note.startswith("guessed for")]
    return found[0] or None if len(found) == 1 else None


@pytest.mark.parametrize("case", CASES, ids=[case.get("id", " ".join(case["files"])) for case in CASES])
def test_a_file_from_the_field_is_read_right_or_refused_with_the_remedy(case: dict[str, Any]) -> None:
    options = case.get("options", "")
    if "refused" in case:
        with pytest.raises(DataFileError) as raised:
            read(case, options)
        for words in case["refused"]:
            assert words in str(raised.value)
        return
    table = read(case, options)
    if "first" in case:
        assert reading(table, 0) == case["first"]
    if "last" in case:
        assert reading(table, len(table) - 1) == case["last"]
    assert len(table) == case["rows"]
    assert list(table.sensors) == case["sensors"]
    for words in case.get("notes", []):
        assert words in "\n".join(table.notes)
    check_readings_are_equal(table, decoded_by_the_stream(table))
    if (stated := stated_options(table)) is not None:
        again = read(case, f"{options} {stated}")
        assert stated_options(again) is None
        check_readings_are_equal(again, decoded_by_the_stream(table))


def check_readings_are_equal(table: ReadingTable, decoded: list[list[Any]]) -> None:
    assert [reading[:2] for reading in decoded] == [
        [table.sensors[code], time] for code, time in zip(table.sensor_codes, table.timestamp_us, strict=True)
    ]
    values = [reading[2:] for reading in decoded] or np.empty((0, len(table.values)))
    np.testing.assert_array_equal(values, np.stack(list(table.values.values()), axis=1))
