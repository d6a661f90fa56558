"""Recognises the dialect of a CSV file from its header and rows together: separator, comments, header and units."""

import csv
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.errors import DataFileError
from pipeline.files.cell_forms import (
    SENSOR_NAMES,
    TIME_NAMES,
    is_data_row,
    is_header_row,
    is_missing,
    is_number,
    is_time,
    is_unit_row,
)
from pipeline.files.file_layout import SEPARATOR_NAMES, FileLayout
from pipeline.files.guesses import Guesses

_SEPARATORS: Final = (",", ";", "\t", "|")
_COMMENTS: Final = ("#", "%", "//")
_NAME_OF: Final = {separator: name for name, separator in SEPARATOR_NAMES.items()}
_SAMPLE_LINES: Final = 300
_SAMPLE_BYTES: Final = 262_144
_MOST_PREAMBLE_LINES: Final = 100
_MOST_UNIT_ROWS: Final = 3
_LEAST_ROWS: Final = 2  # a header and a reading
# A separator that fits fewer of the rows than the best one by more than this is ruled out.
_FIT_MARGIN: Final = 0.1
# Two separators are equally plausible if the shares of cells that make sense differ by less.
_PLAUSIBLE_MARGIN: Final = 0.02
_SEPARATOR_LINE: Final = re.compile(r'"?sep=(.)"?', re.IGNORECASE)


@dataclass(frozen=True)
class Dialect:
    """How to split the text of a CSV file into rows and cells."""

    separator: str
    skip_rows: int = 0  # lines before the header; without a header, before the readings
    header: bool = True
    names: tuple[str, ...] = ()  # of the columns, if no header names them, or in place of the header's names
    unit_rows: int = 0  # lines between the header and the readings
    comment: str = ""


Row = tuple[int, list[str]]  # line from 0, cells


def find_dialect(text: bytes, layout: FileLayout, name: str, guesses: Guesses) -> Dialect:
    """The dialect that the layout states, completed by guesses from the first rows of ``text``.

    Raises:
        DataFileError: two separators fit equally well, the file names an impossible one, or it has no header.
    """
    lines = _sample(text)
    first = layout.skip_rows or 0
    separator = separator_of(layout)
    if layout.skip_rows is None and (found := _SEPARATOR_LINE.fullmatch(lines[0].strip())):
        first, separator = 1, separator or found[1]
        if not _is_separator(separator):
            raise DataFileError(
                f"{name}, line 1: {separator!r} cannot separate cells; save the file with another separator, or name "
                "the right one with --separator"
            )
    comment = layout.comment
    if comment is None:
        comment = _guess_comment(lines[first:], separator)
        if comment:
            guesses.add(f"lines that begin with {comment} are comments", "--comment", comment)
    body = [(i, line) for i, line in enumerate(lines) if i >= first and line.strip() and not _begins(line, comment)]
    if not body:
        raise DataFileError(f"{name} has no rows")
    if separator is None:
        separator = _guess_separator([line for _, line in body], name)
        if separator != ",":
            guesses.add(f"the separator is {_article(separator)}", "--separator", _NAME_OF.get(separator, separator))
    rows = _rows(body, separator)
    width = _usual_width([cells for _, cells in rows])
    header, at = layout.header, 0
    if layout.column_names:
        header = False if header is None else header
    if header is not False and layout.skip_rows is None:
        at = _header_place([cells for _, cells in rows], width, layout)
    if header is None and is_data_row(rows[at][1]) and _has_names(rows[at:], _usual_names(layout)):
        header = True
        guesses.add(f"line {rows[at][0] + 1} names the columns", "--header")
    if header is None and is_data_row(rows[at][1]):
        names = _names_in_comment(lines[: rows[at][0]], comment, separator, len(rows[at][1]))
        if not names:
            raise DataFileError(
                f"{name}, line {rows[at][0] + 1}: this line looks like a reading, and the file has no header; name its "
                "columns: --column-names time,value (or give --no-header: its columns are then column_1, column_2, "
                "...). If this line names the columns, add --header"
                + (f". If a line that begins with {comment} does, add --comment ''" if comment else "")
            )
        guesses.add("the last comment names the columns", "--column-names", ",".join(names))
        return Dialect(separator, rows[at][0], header=False, names=names, comment=comment)
    skip_rows = rows[at][0]
    if at:
        guesses.add(f"line {skip_rows + 1} is the header", "--skip-rows", str(skip_rows))
    unit_rows = layout.unit_rows or 0
    if layout.unit_rows is None and header is not False:
        unit_rows = _count_unit_rows([cells for _, cells in rows[at + 1 :]])
        if unit_rows:
            guesses.add(f"the {unit_rows} lines after the header hold no readings", "--unit-rows", str(unit_rows))
    return Dialect(separator, skip_rows, header is not False, layout.column_names, unit_rows, comment)


def separator_of(layout: FileLayout) -> str | None:
    """The separator character that the layout states.

    Raises:
        DataFileError: it is not one character.
    """
    if layout.separator is None:
        return None
    found = SEPARATOR_NAMES.get(layout.separator.lower(), layout.separator)
    found = "\t" if found == "\\t" else found
    if not _is_separator(found):
        raise DataFileError(
            f"--separator {layout.separator!r} is not one character; use a character such as ';', or one of the names "
            f"{', '.join(SEPARATOR_NAMES)}"
        )
    return found


def _is_separator(text: str) -> bool:
    return len(text) == 1 and text.isascii() and text not in '"\n\r\0'


def split_line(line: str, separator: str) -> list[str]:
    """The cells of one line."""
    return _rows([(0, line)], separator)[0][1]


def _sample(text: bytes) -> list[str]:
    sample = text[:_SAMPLE_BYTES]
    if len(sample) < len(text):
        sample = sample[: sample.rfind(b"\n") + 1] or sample
    return sample.decode(errors="replace").split("\n")[:_SAMPLE_LINES]


def _begins(line: str, comment: str) -> bool:
    return bool(comment) and line.startswith(comment)


def _rows(lines: Sequence[tuple[int, str]], separator: str) -> list[Row]:
    """The cells of each line; a line whose quotes do not close is one row with the lines after it."""
    numbers = [number for number, _ in lines]
    reader = csv.reader([line + "\n" for _, line in lines], delimiter=separator, skipinitialspace=True)
    found: list[Row] = []
    begin = 0
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return found
        except csv.Error:  # a cell that is too long: the reader of the whole file names it
            return found or [(numbers[0], [lines[0][1]])]
        found.append((numbers[min(begin, len(numbers) - 1)], cells))
        begin = reader.line_num


def _trimmed(row: Sequence[str]) -> int:
    """The number of cells without the empty ones at the end."""
    return max((i + 1 for i, cell in enumerate(row) if cell.strip()), default=0)


def _fits(row: Sequence[str], width: int) -> bool:
    return _trimmed(row) <= width <= len(row)


def _usual_width(rows: Sequence[Sequence[str]]) -> int:
    """The width that most rows fit; of equal ones the largest."""
    spans = Counter((_trimmed(row), len(row)) for row in rows)
    widths = {width for span in spans for width in span}
    return max(widths, key=lambda w: (sum(n for (low, high), n in spans.items() if low <= w <= high), w))


def _guess_comment(lines: Sequence[str], separator: str | None) -> str:
    head = next((line for line in lines if line.strip()), "")
    mark = next((mark for mark in _COMMENTS if head.startswith(mark)), "")
    return "" if mark and _is_column_name(mark, head, lines, separator) else mark


def _is_column_name(mark: str, head: str, lines: Sequence[str], separator: str | None) -> bool:
    """Whether a mark of comments is the first name in the header of the readings after it, as in ``#,time,value``."""
    body = [(i, line) for i, line in enumerate(lines) if line.strip() and not line.startswith(mark)]
    for each in _SEPARATORS if separator is None else (separator,):
        cells = split_line(head, each)
        if body and len(cells) > 1 and cells[0].strip() == mark:
            rows = [cells for _, cells in _rows(body, each)]
            if len(cells) == _usual_width(rows) and is_data_row(rows[0]):
                return True
    return False


def _usual_names(layout: FileLayout) -> set[str]:
    """The names, in lower case, of which a header has at least one: of the time column, or usual ones of sensors."""
    return _time_names(layout) | {*SENSOR_NAMES, (layout.sensor_column or "").strip().lower()} - {""}


def _time_names(layout: FileLayout) -> set[str]:
    given = {part.strip().lower() for name in layout.time_columns for part in (name, *name.split(","))}
    return given or set(TIME_NAMES)


def _has_names(rows: Sequence[Row], usual: set[str]) -> bool:
    """Whether the first row has a usual name of a column, and the row after it another cell in its place."""
    if len(rows) < _LEAST_ROWS:
        return False
    first, second = ([cell.strip().lower() for cell in cells] for _, cells in rows[:_LEAST_ROWS])
    return any(cell in usual and cell not in second[i : i + 1] for i, cell in enumerate(first))


def _guess_separator(lines: Sequence[str], name: str) -> str:
    """The separator that gives most rows the same number of cells, and cells that make sense."""
    found: dict[str, tuple[float, float]] = {}  # separator -> share of rows that fit, share of plausible cells
    for separator in _SEPARATORS:
        rows = [cells for _, cells in _rows(list(enumerate(lines)), separator)]
        width = _usual_width(rows)
        if width > 1:
            fitting = [row for row in rows if _fits(row, width)]
            found[separator] = len(fitting) / len(lines), _plausible(fitting, separator)
    if not found:
        widths = Counter(len(line.split()) for line in lines)
        width, count = widths.most_common(1)[0]
        return " " if width > 1 and count > (1 - _FIT_MARGIN) * len(lines) else ","
    best = max(fit for fit, _ in found.values())
    left = {separator: sense for separator, (fit, sense) in found.items() if fit >= best - _FIT_MARGIN}
    order = sorted(left, key=lambda separator: -left[separator])
    if len(order) > 1 and left[order[0]] - left[order[1]] < _PLAUSIBLE_MARGIN:
        fits = {separator: found[separator][0] for separator in order[:2]}
        if fits[order[0]] == fits[order[1]]:
            first, second = (_NAME_OF[separator] for separator in order[:2])
            raise DataFileError(
                f"{name}: its cells may be separated by {first} or by {second}; name the right one: "
                f"--separator {first} or --separator {second}"
            )
        return max(fits, key=lambda separator: fits[separator])
    return order[0]


def _plausible(rows: Sequence[Sequence[str]], separator: str) -> float:
    """The share of cells below the header that are numbers, times, missing, or text without another separator."""
    others = [other for other in _SEPARATORS if other != separator]
    cells = [cell for row in rows[1:] or rows for cell in row if cell.strip()]
    good = sum(
        is_number(cell)
        or (is_time(cell) and not any(other in cell for other in others))
        or is_missing(cell)
        or not any(other in cell for other in others)
        for cell in cells
    )
    return good / len(cells) if cells else 0.0


def _header_place(rows: Sequence[Sequence[str]], width: int, layout: FileLayout) -> int:
    """The index of the header; 0 unless the rows before another one are clearly no part of the table."""
    fitting = [i for i, row in enumerate(rows[:_MOST_PREAMBLE_LINES]) if _fits(row, width)]
    places = [i for i in fitting if is_header_row(rows[i])]
    wanted = _time_names(layout)
    named = [i for i in fitting if wanted & {cell.strip().lower() for cell in rows[i]}]
    with_time = [i for i in named if i in places] or named  # a header may have numbers among its names
    if 0 in fitting and (not with_time or 0 in with_time or is_data_row(rows[0])):
        return 0
    candidates = with_time or places
    return candidates[0] if candidates and candidates[0] + 1 < len(rows) else 0


def _names_in_comment(lines: Sequence[str], comment: str, separator: str, width: int) -> tuple[str, ...]:
    """The names of the columns in the last comment before the readings; empty if it does not name all."""
    comments = [line for line in lines if _begins(line, comment)]
    if not comments:
        return ()
    cells = [cell.strip() for cell in split_line(comments[-1].lstrip(comment).strip(), separator)]
    is_complete = len(cells) == width and all(cells) and "," not in "".join(cells)
    return tuple(cells) if is_complete and is_header_row(cells) else ()


def _count_unit_rows(rows: Sequence[Sequence[str]]) -> int:
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    count = 0
    for row in rows[:_MOST_UNIT_ROWS]:
        if not is_unit_row(row):
            break
        count += 1
    return count if count < len(rows) else 0


def _article(separator: str) -> str:
    return {" ": "blank space"}.get(separator, f"a {_NAME_OF.get(separator, separator)}")
