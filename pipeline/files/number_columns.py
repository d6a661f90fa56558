"""Reads columns of numbers in the form of any country, and the words and numbers that stand for a missing value."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl

from pipeline.errors import DataFileError
from pipeline.files.cell_forms import MISSING_MARKS, MISSING_WORDS
from pipeline.files.datafile import CellError, DataTable
from pipeline.files.file_layout import FileLayout
from pipeline.files.guesses import Guesses

_SPACES: Final = " \u00a0\u2009\u202f"
_GROUP_SIGNS: Final = (".", ",", "'", "\u2019", " ")
_INFINITE: Final = r"^(?i)[+-]?inf(inity)?$"
# Polars' regular expressions.
_COMMA_DECIMAL: Final = r"^[+-]?(\d+,\d*|,\d+)([eE][+-]?\d+)?$"
_COMMA_IS_DECIMAL: Final = r"^[+-]?(0*,\d*|\d{4,},\d*|\d+,(\d{0,2}|\d{4,}))([eE][+-]?\d+)?$"
_POINT_GROUPS: Final = r"^[+-]?[1-9]\d{0,2}(\.\d{3})+(,\d+)?$"
_COMMA_GROUPS: Final = r"^[+-]?\d{1,3}(,\d{3})+(\.\d*)?$"
_COMMA_IS_GROUP: Final = r"^[+-]?\d{1,3}((,\d{3}){2,}(\.\d*)?|,\d{3}\.\d*)$"
_WITH_POINT: Final = r"^[+-]?(\d+\.[\d.]*|\.\d+)([eE][+-]?\d+)?$"
_LIKE_NUMBER: Final = (
    rf"^(?i)[+\-\x{{2212}}]?(\d+([.,'\x{{2019}}{_SPACES}]\d{{3}})*([.,]\d*)?|[.,]\d+)(e[+-]?\d+)?$|^[+-]?inf(inity)?$"
)
# A column of text is numeric if more than this share of its cells look like numbers; further cells are then errors.
_LEAST_NUMERIC: Final = 0.5
_POINT_IS_GROUP: Final = r"^[+-]?\d{1,3}((\.\d{3}){2,}(,\d*)?|\.\d{3},\d*)$"


@dataclass(frozen=True)
class NumberForm:
    """Decimal sign, and the sign between groups of three digits; empty for no groups."""

    decimal: str = "."
    thousands: str = ""


def read_numbers(
    table: DataTable, columns: Sequence[str], layout: FileLayout, guesses: Guesses, notes: list[str]
) -> list[pl.Series]:
    """The columns as floats, null where missing. Float32 columns stay float32, so that JSON gets fewer digits.

    Words for infinity are missing, with a note. Numbers too large for a float stay infinite.

    Raises:
        DataFileError: a cell is not a number, or its form is ambiguous; names the line.
    """
    texts = {name: _text(table.frame[name]) for name in columns if table.frame[name].dtype == pl.String}
    words, marks = _marks(layout.missing)
    form = _stated_form(layout)
    if form is None:
        form = _guess_form(table, texts, words, guesses)
    if form.decimal == "," and layout.unclear_missing:
        unclear = layout.unclear_missing[0]
        first, _, second = unclear.partition(",")
        raise DataFileError(
            f"{table.source.name} has decimal commas, so --missing {unclear} may be one number or two; write one as "
            f"--missing {first}.{second}, and repeat the option for two: --missing {first} --missing {second}"
        )
    found = []
    try:
        for name in columns:
            if name in texts:
                series = _parsed(texts[name], table.frame[name], form, words, notes)
            else:
                series = _typed(table.frame[name], table, notes)
            if marks:
                series = series.set(series.is_in(pl.Series(marks, dtype=pl.Float64).cast(series.dtype).implode()), None)
            found.append(series.alias(name))
    except CellError as error:
        raise table.named(error) from error
    return found


def why_not_numeric(table: DataTable, column: str, layout: FileLayout) -> str | None:
    """None if the column holds numbers or nothing, otherwise the reason.

    A column of numbers may have single cells that ``read_numbers`` refuses.
    """
    series = table.frame[column]
    if series.dtype != pl.String:
        return None if _is_typed_number(series) else f"{table.source.name}: column {column} holds {series.dtype}"
    text = _text(series)
    lower = text.str.to_lowercase()
    text = text.set(lower.is_in([*MISSING_WORDS, *_marks(layout.missing)[0]]).fill_null(value=False), None)
    is_number = text.str.contains(_LIKE_NUMBER)
    filled = text.len() - text.null_count()
    if not filled or int(is_number.sum()) > _LEAST_NUMERIC * filled:
        return None
    row = int((~is_number).fill_null(value=False).arg_true()[0])
    return f"{table.where(row)}: {text[row]!r} in column {column} is not a number"


def _is_typed_number(series: pl.Series) -> bool:
    return series.dtype.is_numeric() or series.dtype in (pl.Boolean, pl.Null)


def _marks(missing: Sequence[str]) -> tuple[list[str], list[float]]:
    """The texts in lower case, and the numbers, that the user gives for a missing value."""
    words = [mark.strip().lower() for mark in missing if mark.strip()]
    numbers = []
    for word in words:
        try:
            number = float(word)
        except ValueError:
            continue
        if math.isfinite(number):
            numbers.append(number)
    return words, numbers


def _stated_form(layout: FileLayout) -> NumberForm | None:
    """The form that the layout states; None if it is to be recognised.

    Raises:
        DataFileError: the signs are unknown, or equal.
    """
    if layout.decimal is None and layout.thousands is None:
        return None
    thousands = {"space": " ", "": ""}.get(layout.thousands or "", layout.thousands or "")
    decimal = layout.decimal or ("," if thousands == "." else ".")
    if decimal not in (".", ","):
        raise DataFileError(f"--decimal {decimal!r} is not a decimal sign; give '.' or ','")
    if thousands and thousands not in (*_GROUP_SIGNS, *_SPACES):
        raise DataFileError(f"--thousands {thousands!r} does not separate groups of digits; give '.', ',', ' or space")
    if thousands == decimal:
        raise DataFileError(f"--thousands and --decimal are both {decimal!r}; they must differ")
    return NumberForm(decimal, " " if thousands and thousands in _SPACES else thousands)


def _text(series: pl.Series) -> pl.Series:
    """The cells without blanks around them; missing ones are null."""
    text = series.str.strip_chars()
    return text.set(text.is_in([*MISSING_MARKS, ""]), None)


def _guess_form(table: DataTable, texts: dict[str, pl.Series], words: Sequence[str], guesses: Guesses) -> NumberForm:
    """The form of the numbers, from the cells that are not numbers with a decimal point.

    Raises:
        DataFileError: the cells fit two forms.
    """
    odd: list[pl.Series] = []
    for name, text in texts.items():
        bad = _unparsed(text, words)
        if len(bad):
            odd.append(bad.alias(name))
    if not odd:
        return NumberForm()
    cells = pl.concat([series.alias("cell") for series in odd])
    spaced = cells.str.contains(rf"^[+-]?\d{{1,3}}([{_SPACES}'\u2019]\d{{3}})+([.,]\d*)?$")
    thousands = ""
    if spaced.any():
        sign = re.search(rf"[{_SPACES}'\u2019]", str(cells.filter(spaced)[0]))
        thousands = " " if sign is None or sign[0] in _SPACES else sign[0]
    cells = cells.str.replace_all(rf"(\d)[{_SPACES}'\u2019](\d{{3}})", "$1$2")
    points = pl.concat([text.filter(text.str.contains(_WITH_POINT)).alias("cell") for text in texts.values()])
    has_decimal_point = not bool(points.str.contains(_POINT_GROUPS).all())
    decimal = "."
    if cells.str.contains(_POINT_IS_GROUP).any() and not has_decimal_point:
        decimal, thousands = ",", "."
    elif cells.str.contains(_COMMA_IS_GROUP).any():
        thousands = ","
    elif cells.str.contains(_COMMA_IS_DECIMAL).any() and not len(points):
        decimal = ","
    elif cells.str.contains(_COMMA_DECIMAL).any() and not has_decimal_point:
        _refuse_ambiguous(table, texts, points)
    elif cells.str.contains(_COMMA_GROUPS).any() and not cells.str.contains(_COMMA_IS_DECIMAL).any():
        thousands = ","
    if decimal == ",":
        guesses.add("the decimal sign is a comma", "--decimal", ",")
    if thousands:
        shown = {" ": "a space", ".": "a point", ",": "a comma"}.get(thousands, thousands)
        guesses.add(f"{shown} separates thousands", "--thousands", "space" if thousands == " " else thousands)
    return NumberForm(decimal, thousands)


def _unparsed(text: pl.Series, words: Sequence[str]) -> pl.Series:
    """The cells that are neither missing nor numbers with a decimal point."""
    bad = text.filter(text.cast(pl.Float64, strict=False).is_null() & text.is_not_null())
    lower = bad.str.to_lowercase()
    return bad.filter(~lower.is_in([*MISSING_WORDS, *words]))


def _refuse_ambiguous(table: DataTable, texts: dict[str, pl.Series], points: pl.Series) -> None:
    """Raise for the first comma; ``points`` are cells whose points may separate thousands."""
    for name, text in texts.items():
        rows = text.str.contains(_COMMA_DECIMAL).fill_null(value=False).arg_true()
        if not len(rows):
            continue
        row = int(rows[0])
        where = f"{table.where(row)}: {text[row]!r} in column {name} has a comma"
        if not len(points):
            raise DataFileError(
                f"{where} that is a decimal sign or separates thousands; name it: --decimal , or --thousands ,"
            )
        other = "" if text.str.contains(_COMMA_IS_DECIMAL).any() else "; if the comma does: --decimal . --thousands ,"
        raise DataFileError(
            f"{where}, and {points[0]!r} in the same file has a point; if the point separates thousands, say so: "
            f"--decimal , --thousands .{other}"
        )


def _parsed(
    text: pl.Series, original: pl.Series, form: NumberForm, words: Sequence[str], notes: list[str]
) -> pl.Series:
    plain = _plain(text, form)
    parsed = plain.cast(pl.Float64, strict=False)
    bad = parsed.is_null() & text.is_not_null()
    if bad.any() or words:
        lower = text.str.to_lowercase()
        is_stated = lower.is_in(list(words)).fill_null(value=False)
        is_usual = lower.is_in(list(MISSING_WORDS)).fill_null(value=False) & ~is_stated
        parsed = parsed.set(is_usual | is_stated, None)
        bad &= ~(is_usual | is_stated)
        if is_usual.any():
            found = text.filter(is_usual).unique(maintain_order=True)
            notes.append(f"column {original.name}: {', '.join(map(repr, found.head(5)))} are read as missing values")
    if bad.any():
        row = int(bad.arg_true()[0])
        with_form = "" if form == NumberForm() else f" with decimal sign {form.decimal!r}"
        if form.thousands:
            with_form += f" and thousands sign {form.thousands!r}"
        elif form.decimal == "," and re.fullmatch(_POINT_GROUPS[1:-1], text[row]):
            with_form += "; if its point separates thousands, say so: --decimal , --thousands ."
        elif re.fullmatch(_COMMA_GROUPS[1:-1], text[row]):
            with_form += "; if its comma separates thousands, say so: --decimal . --thousands ,"
        raise CellError(
            row,
            f"{original[row]!r} in column {original.name} is not a number{with_form} (leave missing values empty, or "
            f"write {', '.join(MISSING_MARKS[:4])}; other marks for them: --missing)",
        )
    infinite = parsed.is_infinite().fill_null(value=False)
    if infinite.any():
        is_word = infinite & text.str.contains(_INFINITE)
        if is_word.any():
            notes.append(f"column {original.name}: {int(is_word.sum()):,} infinite values are read as missing")
            parsed = parsed.set(is_word, None)
    return parsed.set(parsed.is_nan().fill_null(value=False), None)


def _plain(text: pl.Series, form: NumberForm) -> pl.Series:
    """Cells of this form as numbers with a decimal point and no groups; cells of another form become no numbers."""
    if text.str.contains("\u2212", literal=True).any():
        text = text.str.replace("\u2212", "-", literal=True)  # the minus sign of typesetting
    if form.thousands:
        sign = rf"[{_SPACES}]" if form.thousands == " " else re.escape(form.thousands)
        decimal = re.escape(form.decimal)
        grouped = text.str.contains(rf"^[+-]?\d{{1,3}}({sign}\d{{3}})+({decimal}\d*)?([eE][+-]?\d+)?$")
        whole = text.str.replace_all(sign, "")
        text = pl.select(pl.when(grouped).then(whole).otherwise(text).alias("text"))["text"]
    if form.decimal == ",":
        # A point would be taken for the decimal sign, so it makes the cell unreadable.
        text = text.str.replace(".", "?", literal=True).str.replace(",", ".", literal=True)
    return text


def _typed(series: pl.Series, table: DataTable, notes: list[str]) -> pl.Series:
    """The values of a column with a type; NaN and infinite ones are missing."""
    if not _is_typed_number(series):
        raise DataFileError(f"{table.source.name}: column {series.name} holds {series.dtype}, not numbers")
    values = series if series.dtype == pl.Float32 else series.cast(pl.Float64)
    infinite = int(values.is_infinite().sum())
    if infinite:
        notes.append(f"column {series.name}: {infinite:,} infinite values are read as missing")
    return values.set(~values.is_finite().fill_null(value=True), None)
