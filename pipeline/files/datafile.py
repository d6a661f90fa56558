"""Reads a user's CSV or Parquet file into a frame; errors name the line at fault.

The cells of a CSV file stay text here. If types were guessed from the first rows, a later cell could fail without being
named, or one typing error would turn a column of numbers into text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.errors import DataFileError
from pipeline.files.csv_dialect import find_dialect
from pipeline.files.csv_records import read_records
from pipeline.files.file_layout import FileLayout
from pipeline.files.guesses import Guesses
from pipeline.files.sources import Source
from pipeline.files.text_encoding import utf8_text

# PyArrow's errors are kinds of ValueError, OSError, LookupError, TypeError, RuntimeError and MemoryError.
_PARQUET_ERRORS: Final = (
    *(pl.exceptions.PolarsError, pl.exceptions.PanicException, ValueError, OSError, LookupError, TypeError),
    *(RuntimeError, MemoryError, OverflowError),
)


class CellError(DataFileError):
    """A cell that cannot be read; ``row`` counts rows from 0. The reader of the file adds the name of the line.

    The message begins with the value and names the column: "'x' in column value is not a number".
    """

    def __init__(self, row: int, message: str) -> None:
        super().__init__(message)
        self.row = row


@dataclass(frozen=True)
class DataTable:
    """A file's rows. Columns of a text file are text, null where a cell is empty; Parquet columns have their types.

    ``places`` (n,) has the line of each row in a text file, or its number in a Parquet file, both from 1.
    """

    source: Source
    frame: pl.DataFrame
    places: NDArray[np.int64]

    def where(self, row: int) -> str:
        """The name of a row (from 0) in messages."""
        return self.source.place(int(self.places[row]))

    def named(self, error: CellError) -> DataFileError:
        """The error with the name of the file and the line."""
        return DataFileError(f"{self.where(error.row)}: {error}")

    def column(self, name: str) -> str | None:
        """The column of this name, or of this name without the blanks around it; None if there is no such column."""
        columns = self.frame.columns
        if name in columns:
            return name
        return name.strip() if name.strip() in columns else None

    def without(self, rows: pl.Series) -> "DataTable":
        """The table without the rows of a mask."""
        return replace(self, frame=self.frame.filter(~rows), places=self.places[~rows.to_numpy()])


def read_table(source: Source, layout: FileLayout, guesses: Guesses, notes: list[str]) -> DataTable:
    """The rows of a file that have a cell.

    Raises:
        DataFileError: the file is empty, has another format, or is malformed; names the line if known.
    """
    content = source.content()
    if source.is_text:
        table = _read_text(source, content, layout, guesses, notes)
    else:
        frame = _read_parquet(source, content)
        table = DataTable(source, frame, np.arange(1, frame.height + 1))
    if not table.frame.height:
        raise DataFileError(f"{source.name} has no rows")
    return table


def _read_parquet(source: Source, content: bytes) -> pl.DataFrame:
    # PyArrow names the fault in a damaged file. Polars panics, and its threads write their stacks to the terminal.
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content)).read()
        table.validate(full=True)
        str(table.schema).encode()  # raises for names that are not UTF-8, at which Polars panics
        frame = pl.DataFrame(pyarrow.Table.from_arrays(table.columns, names=table.column_names))
        padded = {name: name.strip() for name in frame.columns if name != name.strip()}
        frame = frame.rename({old: new for old, new in padded.items() if new and new not in frame.columns})
        constants = {name: value for name, value in source.constants if name not in frame.columns}
        return frame.with_columns(pl.lit(value, pl.String).alias(name) for name, value in constants.items())
    except _PARQUET_ERRORS as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataFileError(f"{source.name} cannot be read: {reason}") from error


def _read_text(source: Source, content: bytes, layout: FileLayout, guesses: Guesses, notes: list[str]) -> DataTable:
    text = utf8_text(content, layout.encoding, source.name, guesses)
    dialect = find_dialect(text, layout, source.name, guesses)
    try:
        header, frame, lines = read_records(text, dialect, source.name)
    except pl.exceptions.PolarsError as error:
        raise DataFileError(f"{source.name} cannot be read: {str(error).splitlines()[0]}") from error
    has_names = dialect.header and not dialect.names
    names = header if has_names else _names_by_position(dialect.names, frame.width, source.name)
    frame.columns = _unique_names(names, source.name, notes)
    table = DataTable(source, frame, lines)
    table = table.without(_is_blank(frame))  # blank lines do not count as rows of units
    frame, lines = table.frame[dialect.unit_rows :], table.places[dialect.unit_rows :]
    table = _without_repeated_headers(replace(table, frame=frame, places=lines), header, notes)
    return replace(table, frame=table.frame.drop(_columns_without_cells(names, table.frame)))


def _names_by_position(given: Sequence[str], width: int, name: str) -> list[str]:
    if given and len(given) != width:
        raise DataFileError(f"{name} has {width} columns, but --column-names has {len(given)}: {', '.join(given)}")
    return list(given) or [f"column_{i + 1}" for i in range(width)]


def _unique_names(header: Sequence[str], name: str, notes: list[str]) -> list[str]:
    """The header's names without blanks around them; the first of equal names keeps its name."""
    found: list[str] = []
    for i, cell in enumerate(header):
        column = cell.strip().strip("\ufeff\u200b") or f"column_{i + 1}"
        count = 0
        while column in found:
            if not count:
                notes.append(f"{name}: two columns are called {column!r}; the first of them is read")
            column = f"{cell.strip()}_duplicated_{count}"
            count += 1
        found.append(column)
    return found


def _is_blank(frame: pl.DataFrame) -> pl.Series:
    """Whether no cell of a row has text."""
    blank = reduce(lambda left, right: left & right, (frame[name].is_null() for name in frame.columns[-1:]))
    if not blank.any():
        return blank
    cells = (frame[name].str.strip_chars().fill_null("") == "" for name in frame.columns)
    return reduce(lambda left, right: left & right, cells)


def _columns_without_cells(header: Sequence[str], frame: pl.DataFrame) -> list[str]:
    """The columns that separators at the end of lines make: without a name and without a cell."""
    unnamed = [column for cell, column in zip(header, frame.columns, strict=True) if not cell.strip()]
    return [column for column in unnamed if frame[column].null_count() == frame.height]


def _without_repeated_headers(table: DataTable, header: Sequence[str], notes: list[str]) -> DataTable:
    """The table without rows that repeat the header, as in files that were joined.

    The frame still has the columns without cells, so that the header's cells are in the same places.
    """
    frame = table.frame
    repeated = [cell.strip() or None for cell in header[: frame.width]]
    repeated += [None] * (frame.width - len(repeated))
    first = next((place for place, cell in enumerate(repeated) if cell is not None), None)
    if first is None:
        return table
    same = frame[frame.columns[first]].str.strip_chars() == repeated[first]
    if not same.any():
        return table
    candidates = same.fill_null(value=False).arg_true().to_list()
    repeats = [row for row in candidates if [(cell or "").strip() or None for cell in frame.row(row)] == repeated]
    if not repeats:
        return table
    mask = pl.Series(np.isin(np.arange(frame.height), repeats))
    more = f"; further repeats: {len(repeats) - 1:,}" if len(repeats) > 1 else ""
    notes.append(f"{table.where(repeats[0])} repeats the header and is left out{more}")
    return table.without(mask)
