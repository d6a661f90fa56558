"""The data files of ``publish`` and ``backtest``: their readings and outlooks, and the notes about them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deploy.terminal_text import say

if TYPE_CHECKING:
    from pipeline.files.file_layout import FileLayout
    from pipeline.files.outlook_table import OutlookTable
    from pipeline.files.reading_table import ReadingTable
    from pipeline.settings import Settings

ISSUED_COLUMN: Final = "issued_at"  # the default of `--issued-column`


def say_notes(notes: Sequence[str]) -> None:
    """Print notes to standard error, one a line."""
    for note in notes:
        say(f"note: {note}", err=True)


def read_reading_files(files: Sequence[Path], layout: "FileLayout", settings: "Settings") -> "ReadingTable":
    """The readings in the files, after the notes about them are printed.

    Raises:
        DataFileError: a file is malformed, does not fit the layout, or holds a reading that the stream rejects.
    """
    from pipeline.files.reading_table import read_readings  # loads polars

    table = read_readings(files, layout, settings.features, settings.kafka.max_reading_bytes)
    say_notes(table.notes)
    return table


def read_outlook_files(
    files: Sequence[Path], issued_column: str | None, columns: Mapping[str, Any], settings: "Settings"
) -> "OutlookTable":
    """The outlooks in the files, after the notes about them are printed.

    ``columns`` are the options for the layout of files; without ``issued_column`` the times of issue are in
    ``ISSUED_COLUMN``.

    Raises:
        DataFileError: a file is malformed, does not fit the layout, or holds an outlook that the stream rejects.
    """
    from pipeline.files.file_layout import FileLayout
    from pipeline.files.outlook_table import read_outlooks  # loads polars

    layout = FileLayout.of(settings.files, **columns, issued_column=issued_column or ISSUED_COLUMN)
    table = read_outlooks(files, layout, settings)
    say_notes(table.notes)
    return table
