"""Reads a CSV or Parquet file of a user's into a frame, or says where it is malformed.

A CSV's cells stay text here: guessing types from the first rows would either fail later without naming the cell, or
turn a column of numbers with one typing error into text.
"""

import csv
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TextIO

import polars as pl

from pipeline.errors import DataFileError

CSV_SUFFIXES: Final = (".csv", ".csv.gz", ".tsv", ".txt")
PARQUET_SUFFIXES: Final = (".parquet", ".pq")
# What people write into a cell that holds no number. An empty cell is missing in any case.
MISSING_MARKS: Final = ("NA", "N/A", "NaN", "nan", "null", "NULL", "None", "-")
_SEPARATORS: Final = (",", ";", "\t", "|")
_HEADER_LINES: Final = 1


def read_frame(path: Path) -> pl.DataFrame:
    """The file's columns: text from a CSV (missing cells null), whatever types a Parquet file has.

    Raises:
        DataFileError: the file is missing, empty, of another kind, or malformed. Names the line where one is to blame.
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
            raise DataFileError(f"{path}: neither CSV nor Parquet; its name should end in one of {_suffixes()}")
    except OSError as error:
        raise DataFileError(f"{path} cannot be read: {error.strerror or error}") from error
    except (EOFError, zlib.error) as error:
        raise DataFileError(f"{path} cannot be read, its compression is damaged or cut off: {error}") from error
    except pl.exceptions.NoDataError as error:
        raise DataFileError(f"{path} is empty") from error
    except pl.exceptions.PolarsError as error:
        raise DataFileError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    if not frame.height:
        raise DataFileError(f"{path} has no rows")
    return frame


def line_name(path: Path, row: int) -> str:
    """How to point a person at a row (from 0): by its line in a text file, by its number elsewhere."""
    if path.name.lower().endswith(PARQUET_SUFFIXES):
        return f"{path}, row {row + 1}"
    return f"{path}, line {row + 1 + _HEADER_LINES}"


def numbers(frame: pl.DataFrame, column: str, path: Path) -> pl.Series:
    """A column as floats, null where a cell is missing. 32-bit columns stay so, and are published as short as they are.

    Raises:
        DataFileError: a cell is no number. Names its line.
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
                f"{line_name(path, row)}: {series[row]!r} in column {column} is not a number (missing values are left "
                f"empty, or written as {', '.join(MISSING_MARKS[:4])})"
            )
        return parsed
    if series.dtype.is_numeric() or series.dtype in (pl.Boolean, pl.Null):
        return series.cast(pl.Float64)
    raise DataFileError(f"{path}: column {column} holds {series.dtype}, not numbers")


def is_numeric(frame: pl.DataFrame, column: str, path: Path) -> bool:
    """Whether ``numbers`` takes the column."""
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
    # Cells that a short row lacks come out as missing; only then is the slower look worth it.
    if frame[frame.columns[-1]].null_count():
        _check_lengths(path, separator)
    return frame


def _separator(path: Path) -> str:
    with _opened(path) as file:
        header = file.readline()
    return max(_SEPARATORS, key=header.count)


def _check_lengths(path: Path, separator: str) -> None:
    """Raises for the first row that has more or fewer cells than the header; otherwise the reader is right to go on."""
    with _opened(path) as file:
        rows = csv.reader(file, delimiter=separator)
        try:
            width = len(next(rows, []))
            for row in rows:
                if row and len(row) != width:
                    raise DataFileError(f"{path}, line {rows.line_num}: {len(row)} cells, and the header has {width}")
        except csv.Error as error:
            raise DataFileError(f"{path}, line {rows.line_num}: {error}") from error


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    if path.name.lower().endswith(".gz"):
        with gzip.open(path, "rt", encoding="utf-8-sig", errors="replace", newline="") as file:
            yield file
    else:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            yield file


def _suffixes() -> str:
    return ", ".join((*CSV_SUFFIXES, *PARQUET_SUFFIXES))
