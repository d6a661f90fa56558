"""The forms of cells that tell a row of readings from a header: numbers, times and words for a missing value."""

import re
from collections.abc import Sequence
from typing import Final

# Lower-case names of time columns.
TIME_NAMES: Final = ("timestamp", "time", "datetime", "date_time", "date time", "date", "ts", "utc", "event_time")
# Lower-case names of columns of sensor ids.
SENSOR_NAMES: Final = (
    "sensor",
    "sensor_id",
    "sensorid",
    "sensor id",
    "station",
    "station_id",
    "device",
    "device_id",
    "id",
)
# Text that users write into a cell for a missing value. An empty cell is always missing.
MISSING_MARKS: Final = ("NA", "N/A", "NaN", "nan", "null", "NULL", "None", "-")
# Other words for a missing value, in lower case. A note says which of them a file has.
MISSING_WORDS: Final = frozenset(
    (
        *("na", "n/a", "n.a.", "n.a", "nan", "null", "nil", "none", "--", "---", "?", "unavailable", "unknown"),
        *("missing", "not available", "no data", "nodata", "#n/a", "#na", "#value!", "#ref!", "#div/0!", "#null!"),
        *("<na>", "undefined", "undef", "(null)", "\\n", "1.#qnan", "-1.#ind", "1.#ind", "-nan", "+nan"),
    )
)
_NUMBER: Final = re.compile(
    r"[+\-\u2212]?(\d[\d .,'\u2019\u00a0\u2009\u202f]*|[.,]\d+)([eE][+-]?\d+)?|[+-]?inf(inity)?", re.IGNORECASE
)
_TIME: Final = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}\b.*|\d{1,2}[:.]\d{2}([:.]\d{2}.*)?|\d{4}-\d{2}\b.*")
_DIGITS_OF_A_TIME: Final = 3


def is_number(cell: str) -> bool:
    """Whether the cell is a number in some country's form."""
    return _NUMBER.fullmatch(cell.strip()) is not None


def is_time(cell: str) -> bool:
    """Whether the cell looks like a date or a time of day."""
    return _TIME.fullmatch(cell.strip()) is not None


def is_missing(cell: str) -> bool:
    """Whether the cell is empty or a word for a missing value."""
    cell = cell.strip()
    return not cell or cell in MISSING_MARKS or cell.lower() in MISSING_WORDS


def is_data_row(row: Sequence[str]) -> bool:
    """Whether the row holds a time, or only numbers and missing values."""
    filled = [cell for cell in row if not is_missing(cell)]
    return bool(filled) and (is_time(filled[0]) or any(map(is_time, filled)) or all(map(is_number, filled)))


def is_header_row(row: Sequence[str]) -> bool:
    """Whether the row can hold names of columns: text in its cells, at least one, and no number or time."""
    filled = [cell for cell in row if cell.strip()]
    return bool(filled) and not any(is_number(cell) or is_time(cell) for cell in filled)


def is_unit_row(row: Sequence[str]) -> bool:
    """Whether the row can hold units of measurement or remarks about the columns, and no reading."""
    filled = [cell for cell in row if cell.strip()]
    texts = [cell for cell in filled if cell.strip() != "-"]
    if not texts or any(is_missing(cell) for cell in texts):
        return False
    return not any(
        is_number(cell) or is_time(cell) or sum(letter.isdigit() for letter in cell) >= _DIGITS_OF_A_TIME
        for cell in texts
    )
