"""JSON texts of whole columns of numbers and times, many times as fast as one value at a time.

The spelling is msgspec's, so that records encoded by column and records encoded alone have the same bytes.
"""

from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

_ARRAYS: Final = orjson.OPT_SERIALIZE_NUMPY
_UTC: Final = _ARRAYS | orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z


def float_texts(values: NDArray[np.floating[Any]]) -> list[bytes]:
    """Each number of an array of any shape, with the fewest digits of its precision; ``null`` for NaN."""
    return _floats(values.reshape(-1))[1:-1].split(b",") if values.size else []


def float_rows(values: NDArray[np.float64]) -> list[bytes]:
    """The numbers of each row (n, h), separated by commas."""
    return _floats(values.astype(np.float64, copy=False))[2:-2].split(b"],[") if len(values) else []


def integer_texts(values: NDArray[np.int64]) -> list[bytes]:
    """Each number (n,)."""
    text = orjson.dumps(np.ascontiguousarray(values, dtype=np.int64), option=_ARRAYS)
    return text[1:-1].split(b",") if len(values) else []


def time_texts(timestamp_us: NDArray[np.int64]) -> list[bytes]:
    """ISO 8601 in UTC of each time (n,), as ``messages.iso_timestamp`` writes it, without quotes."""
    moments = np.ascontiguousarray(timestamp_us, dtype=np.int64).view("datetime64[us]")
    return orjson.dumps(moments, option=_UTC)[2:-2].split(b'","') if len(moments) else []


def _floats(values: NDArray[np.floating[Any]]) -> bytes:
    """The text of an array, with 1e17 for orjson's 1e+17."""
    return orjson.dumps(np.ascontiguousarray(values), option=_ARRAYS).replace(b"e+", b"e")
