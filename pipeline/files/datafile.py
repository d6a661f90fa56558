"""Reads a user's CSV or Parquet file into a frame; errors name the line at fault.

The cells of a CSV file stay text here. If types were guessed from the first rows, a later cell could fail without being
named, or one typing error would turn a column of numbers into text.
"""

import csv
import gzip
import zlib
from pathlib import Path
from typing import Final, TextIO

import polars as pl

from pipeline.errors import DataFileError

CSV_SUFFIXES: Final = (".csv", ".csv.gz", ".tsv", ".txt")
PARQUET_SUFFIXES: Final = (".parquet", ".pq")
# Text that users write into a cell for a missing value. An empty cell is always missing.
MISSING_MARKS: Final = ("NA", "N/A", "NaN", "nan", "null", "NULL", "None", "-")
_SEPARATORS: Final = (",", ";", "\t", "|")
_HEADER_LINES: Final = 1


class CellError(DataFileError):
    """A cell that cannot be read; ``row`` counts rows from 0. The reader of the file adds the name of the line.

    The message begins with the value and names the column: "'x' in column value is not a number".
    """

    def __init__(self, row: int, message: str) -> None:
        super().__init__(message)
        self.row = row


def read_frame(path: Path) -> pl.DataFrame:
    """The file's columns: text from a CSV file (missing cells null), the file's own types from Parquet.

    Raises:
        DataFileError: the file does not exist, is empty, has another format, or is malformed; names the line if known.
    """
    if not path.exists():
        raise DataFileError(f"there is no file {path}")
    if not path.is_file():
        raise DataFileError(f"{path} is not a file")
    name = path.name.lower()
    try:
        if name.endswith(PARQUET_SUFFIXES):
            frame = pl.read_parquet(path, glob=False)
        elif name.endswith(CSV_SUFFIXES):
            frame = _read_csv(path)
        else:
            suffixes = ", ".join((*CSV_SUFFIXES, *PARQUET_SUFFIXES))
            raise DataFileError(f"{path}: neither CSV nor Parquet; its name should end in one of {suffixes}")
    except OSError as error:
        raise DataFileError(f"{path} cannot be read: {error.strerror or error}") from error
    except (EOFError, zlib.error) as error:
        raise DataFileError(f"{path} cannot be read: its compressed data is damaged or incomplete ({error})") from error
    except pl.exceptions.NoDataError as error:
        raise DataFileError(f"{path} is empty") from error
    except pl.exceptions.PolarsError as error:
        raise DataFileError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    if not frame.height:
        raise DataFileError(f"{path} has no rows")
    return frame


def line_name(path: Path, row: int) -> str:
    """The name of a row (from 0) in messages: its line in a text file, its number in Parquet."""
    if path.name.lower().endswith(PARQUET_SUFFIXES):
        return f"{path}, row {row + 1}"
    return f"{path}, line {row + 1 + _HEADER_LINES}"


def numbers(frame: pl.DataFrame, column: str, path: Path) -> pl.Series:
    """A column as floats, null where a cell is missing. Float32 columns stay float32, so that JSON gets fewer digits.

    Raises:
        DataFileError: a cell is not a number; names its line.
    """
    series = frame[column]
    if series.dtype == pl.Float32:
        return series
    if series.dtype == pl.String:
        text = series.str.strip_chars()
        text = text.set(text.is_in([*MISSING_MARKS, ""]), None)
        parsed = text.cast(pl.Float64, strict=False)
        bad = (parsed.is_null() & text.is_not_null()).arg_true()
        if len(bad):
            row = int(bad[0])
            raise DataFileError(
                f"{line_name(path, row)}: {series[row]!r} in column {column} is not a number (leave missing values "
                f"empty, or write {', '.join(MISSING_MARKS[:4])})"
            )
        return parsed
    if series.dtype.is_numeric() or series.dtype in (pl.Boolean, pl.Null):
        return series.cast(pl.Float64)
    raise DataFileError(f"{path}: column {column} holds {series.dtype}, not numbers")


def is_numeric(frame: pl.DataFrame, column: str, path: Path) -> bool:
    """Whether ``numbers`` accepts the column."""
    try:
        numbers(frame, column, path)
    except DataFileError:
        return False
    return True


def _read_csv(path: Path) -> pl.DataFrame:
    separator = _separator(path)
    try:
        frame = pl.read_csv(path, infer_schema=False, separator=separator, glob=False)
    except pl.exceptions.ComputeError:
        _check_lengths(path, separator)
        raise
    # polars reads the cells that a short row lacks as null. Only with nulls is the slow check needed.
    if frame[frame.columns[-1]].null_count():
        _check_lengths(path, separator)
    return frame


def _separator(path: Path) -> str:
    with _open(path) as file:
        header = file.readline()
    return max(_SEPARATORS, key=header.count)


def _check_lengths(path: Path, separator: str) -> None:
    """Raise for the first row that has more or fewer cells than the header."""
    with _open(path) as file:
        rows = csv.reader(file, delimiter=separator)
        try:
            width = len(next(rows, []))
            for row in rows:
                if row and len(row) != width:
                    raise DataFileError(f"{path}, line {rows.line_num}: {len(row)} cells, but the header has {width}")
        except csv.Error as error:
            raise DataFileError(f"{path}, line {rows.line_num}: {error}") from error


def _open(path: Path) -> TextIO:
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig", errors="replace", newline="")
    return path.open(encoding="utf-8-sig", errors="replace", newline="")
