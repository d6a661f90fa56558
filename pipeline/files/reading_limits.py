"""The limits that the stream sets to a reading, checked in files before anything is published or scored."""

from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.files.datafile import CellError
from pipeline.messages import LARGEST_VALUE, LONGEST_SENSOR_ID_BYTES

# Bytes of a record around its key and value: the head of its batch, its own fields and header.
RECORD_OVERHEAD_BYTES: Final = 150
# Most bytes of a value in JSON, with a comma: a sign, 17 digits, a point and an exponent.
_VALUE_BYTES: Final = 26
_FRAME_BYTES: Final = 80  # of a reading's JSON around its sensor id and values


def check_values(values: pl.Series, cells: pl.Series, column: str) -> None:
    """Raise for a value that the stream's decoder rejects; ``cells`` are as the file has them.

    Raises:
        CellError: a value is too large.
    """
    if not len(values.drop_nulls()):
        return
    bad = (values.cast(pl.Float64).abs() > LARGEST_VALUE).fill_null(value=False)
    if bad.any():
        row = int(bad.arg_true()[0])
        raise CellError(
            row,
            f"{cells[row]!r} in column {column} is beyond ±{LARGEST_VALUE:g}, and the stream rejects such a reading; "
            f"if it stands for a missing value, add --missing {cells[row]}",
        )


def check_sensor_ids(sensors: pl.Series, column: str) -> None:
    """Raise for a sensor id that the stream's decoder rejects.

    Raises:
        CellError: an id is missing, empty or too long.
    """
    bad = sensors.is_null() | (sensors.str.len_bytes() == 0) | (sensors.str.len_bytes() > LONGEST_SENSOR_ID_BYTES)
    if bad.any():
        row = int(bad.arg_true()[0])
        shown = "" if not sensors[row] else f" ({sensors[row][:20]!r}... is longer)"
        raise CellError(row, f"column {column} must hold a sensor id of 1 to {LONGEST_SENSOR_ID_BYTES} bytes{shown}")


def may_exceed(sensor_bytes: int, features: tuple[str, ...], max_reading_bytes: int) -> bool:
    """Whether a reading with an id of this size could be larger than the topic accepts."""
    names = sum(_VALUE_BYTES + 4 + 2 * len(name.encode()) for name in features)
    return RECORD_OVERHEAD_BYTES + _FRAME_BYTES + 7 * sensor_bytes + names > max_reading_bytes


def too_large(keys: list[bytes], values: list[bytes], max_reading_bytes: int) -> NDArray[np.intp]:
    """The readings whose records are larger than the topic accepts."""
    sizes = np.array([len(key) + len(value) for key, value in zip(keys, values, strict=True)], np.int64)
    return np.flatnonzero(sizes + RECORD_OVERHEAD_BYTES > max_reading_bytes)
