"""Splits the text of a CSV file into records whose lines are known, and reads their cells with Polars.

The lines are found before Polars sees the text. Every row thus has the line number that an editor shows, also behind
comments, blank lines and line breaks within quotes.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.errors import DataFileError
from pipeline.files.csv_dialect import Dialect

_NEWLINE, _QUOTE = b"\n"[0], b'"'[0]


@dataclass(frozen=True)
class Records:
    """The records of a text: ``text`` holds only them, ``lines`` (n,) is the first line of each, from 1."""

    text: bytes
    lines: NDArray[np.int64]
    starts: NDArray[np.int64]  # place of each record in the text
    ends: NDArray[np.int64]
    quotes: NDArray[np.int64]  # places of the quotes in the text
    is_regular: bool  # every quote stands at the edge of a cell, or is doubled within quotes


def read_records(text: bytes, dialect: Dialect, name: str) -> tuple[list[str], pl.DataFrame, NDArray[np.int64]]:
    """The cells of the first record, the other records as columns of text, and the lines of the other records.

    Empty cells are null. Records without any cell are left out. The first record is empty if there is no header.

    Raises:
        DataFileError: a record has more or fewer cells than the first one, or a quote does not close; names the line.
    """
    records = _split(_without_lines(text, dialect), dialect.separator)
    if not len(records.lines):
        raise DataFileError(f"{name} has no rows")
    if not records.is_regular or dialect.separator == " ":
        return _read_slowly(text, dialect, name)
    head_end = int(records.ends[0])
    head = next(csv.reader([records.text[:head_end].decode() + "\n"], delimiter=dialect.separator), [])
    body = records.text[head_end + 1 :] if dialect.header else records.text
    lines = records.lines[1:] if dialect.header else records.lines
    width = len(head)
    if not len(lines):
        raise DataFileError(f"{name} has no rows")
    try:
        frame = _parse(body, dialect.separator, width, is_ragged=False)
    except pl.exceptions.ComputeError:
        _check_widths(records, dialect, name, head)
        frame = _parse(body, dialect.separator, width, is_ragged=True)
    if frame.height != len(lines):
        return _read_slowly(text, dialect, name)
    # Polars reads the cells that a short row lacks as null. Only with nulls is the slow check needed.
    if width > 1 and frame[frame.columns[-1]].null_count():
        _check_widths(records, dialect, name, head)
    return head if dialect.header else [], frame, lines


def _without_lines(text: bytes, dialect: Dialect) -> tuple[bytes, NDArray[np.int64]]:
    """The text without skipped lines, comments and empty lines outside quotes, and the number of each line left."""
    codes = np.frombuffer(text, np.uint8)
    ends = np.flatnonzero(codes == _NEWLINE)
    if not len(ends) or ends[-1] != len(codes) - 1:
        text += b"\n"
        codes = np.frombuffer(text, np.uint8)
        ends = np.append(ends, len(codes) - 1)
    starts = np.append(0, ends[:-1] + 1)
    keep = np.arange(len(starts)) >= dialect.skip_rows
    comment = dialect.comment.encode()
    if comment:
        for i in np.flatnonzero(codes[starts] == comment[0]).tolist():
            keep[i] = keep[i] and not text.startswith(comment, int(starts[i]))
    if b'"' not in text:
        keep &= ends > starts
    lines = np.flatnonzero(keep) + 1
    if not keep.all():
        dropped_head = int(lines[0] - 1) if len(lines) else len(keep)
        if keep[dropped_head:].all():
            text = text[int(starts[dropped_head]) if len(lines) else len(text) :]
        else:
            text = codes[np.repeat(keep, ends - starts + 1)].tobytes()
    return text, lines


def _split(content: tuple[bytes, NDArray[np.int64]], separator: str) -> Records:
    """The records of a text; a line break within quotes does not end a record."""
    text, lines = content
    codes = np.frombuffer(text, np.uint8)
    ends = np.flatnonzero(codes == _NEWLINE)
    quotes = np.flatnonzero(codes == _QUOTE)
    is_regular = len(quotes) % 2 == 0
    if len(quotes) and is_regular:
        is_regular = _are_at_edges(codes, quotes, ord(separator))
        is_end = np.searchsorted(quotes, ends) % 2 == 0
        starts_line = np.append(True, is_end[:-1])
        lines, ends = lines[starts_line], ends[is_end]
    starts = np.append(0, ends[:-1] + 1)[: len(ends)]
    empty = ends == starts
    if is_regular and len(quotes) and empty.any():
        lengths = ends - starts + 1
        kept = codes[np.repeat(~empty, lengths)].tobytes()
        return _split_again(kept, lines[~empty], lengths[~empty])
    return Records(text, lines, starts, ends, quotes, is_regular)


def _split_again(text: bytes, lines: NDArray[np.int64], lengths: NDArray[np.int64]) -> Records:
    after = np.cumsum(lengths)
    quotes = np.flatnonzero(np.frombuffer(text, np.uint8) == _QUOTE)
    return Records(text, lines, after - lengths, after - 1, quotes, True)


def _are_at_edges(codes: NDArray[np.uint8], quotes: NDArray[np.int64], separator: int) -> bool:
    opening, closing = quotes[0::2], quotes[1::2]
    before = codes[opening - 1]
    opens = (opening == 0) | (before == separator) | (before == _NEWLINE)
    opens[1:] |= opening[1:] - 1 == closing[:-1]  # a doubled quote within quotes
    after = codes[np.minimum(closing + 1, len(codes) - 1)]
    closes = (after == separator) | (after == _NEWLINE) | (after == _QUOTE)
    return bool(opens.all() and closes.all())


def _parse(body: bytes, separator: str, width: int, *, is_ragged: bool) -> pl.DataFrame:
    # A header of our own gives the number of columns: the first row may be shorter or longer.
    header = separator.join(map(str, range(width))) + "\n"
    return pl.read_csv(
        BytesIO(header.encode() + body),
        infer_schema=False,
        separator=separator,
        truncate_ragged_lines=is_ragged,
    )


def _check_widths(records: Records, dialect: Dialect, name: str, head: Sequence[str]) -> None:
    """Raise for the first row with fewer cells than the header, or with text in a cell beyond the header."""
    codes = np.frombuffer(records.text, np.uint8)
    places = np.flatnonzero(codes == ord(dialect.separator))
    if len(records.quotes):
        places = places[np.searchsorted(records.quotes, places) % 2 == 0]
    cells = np.searchsorted(places, records.ends) - np.searchsorted(places, records.starts) + 1
    for i in np.flatnonzero(cells != len(head)).tolist():
        row = _cells(records.text[int(records.starts[i]) : int(records.ends[i])].decode(), dialect.separator)
        _check_width(row, head, f"{name}, line {records.lines[i]}")


def _check_width(row: list[str], head: Sequence[str], where: str) -> None:
    """Raise for text in a cell beyond the header, and for a missing cell of a column with a name."""
    width = len(head)
    least = max((i + 1 for i, name in enumerate(head) if name.strip()), default=width)
    if any(cell.strip() for cell in row[width:]) or (len(row) < least and any(cell.strip() for cell in row)):
        remedy = (
            "if the cells are not separated well, name the separator with --separator; if these are lines before the "
            "header, leave them out with --skip-rows"
        )
        if (sign := row[0].strip()[:1]) in tuple("#%!"):
            remedy = f"if it is a comment, add --comment '{sign}'"
        raise DataFileError(f"{where}: {len(row)} cells, but the header has {width}; {remedy}")


def _cells(record: str, separator: str) -> list[str]:
    return next(csv.reader(record.splitlines(keepends=True), delimiter=separator), [])


def _read_slowly(text: bytes, dialect: Dialect, name: str) -> tuple[list[str], pl.DataFrame, NDArray[np.int64]]:
    """The same by Python's reader, for quotes within cells and for runs of blanks between cells."""
    found = _python_rows(text.decode(), dialect, name)
    head_line, head = next(found, (0, []))
    width = len(head)
    rows, lines = [], []
    if not dialect.header and head:
        rows, lines = [head], [head_line]
    for line, row in found:
        if len(row) != width:
            _check_width(row, head, f"{name}, line {line}")
            row = (row + [""] * width)[:width]
        rows.append(row)
        lines.append(line)
    if not rows:
        raise DataFileError(f"{name} has no rows")
    columns = [pl.Series(str(i), [row[i] for row in rows], pl.String) for i in range(width)]
    frame = pl.DataFrame(columns)
    frame = frame.with_columns(pl.when(pl.all() != "").then(pl.all()))
    return head if dialect.header else [], frame, np.array(lines, np.int64)


def _python_rows(text: str, dialect: Dialect, name: str) -> Iterator[tuple[int, list[str]]]:
    """The line (from 1) and the cells of each record that has a cell."""
    numbers: list[int] = []

    def physical_lines() -> Iterator[str]:
        for number, line in enumerate(text.split("\n")):
            if number < dialect.skip_rows or (dialect.comment and line.startswith(dialect.comment)):
                continue
            numbers.append(number + 1)
            yield line.strip(" \t") + "\n" if dialect.separator == " " else line + "\n"

    reader = csv.reader(physical_lines(), delimiter=dialect.separator, skipinitialspace=True, strict=True)
    begin = 0
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataFileError(f"{name}, line {numbers[begin]}: {_explained(error)}") from error
        if any(cell.strip() for cell in row):
            yield numbers[begin], row
        begin = reader.line_num


def _explained(error: csv.Error) -> str:
    reason = str(error)
    if "unexpected end of data" in reason:
        return 'a quote (") opens in this line and never closes'
    if "expected after" in reason:
        return 'text follows a closing quote ("); write a quote within quotes twice'
    if "field larger than field limit" in reason:
        return 'a cell has more than 131,072 characters; perhaps a quote (") opens in this line and never closes'
    return reason
