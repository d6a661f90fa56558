"""Decodes many readings in streamgru's own form at once, into columns."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.readings_format import reading_kernel

Numbers = NDArray[np.int64]


class DecodedColumns(NamedTuple):
    """The readings in n records, except those that ``messages.ReadingDecoder`` has to decode."""

    names: list[str]  # the sensors, each once, by first appearance
    codes: Numbers  # (n,) index of the reading's sensor in ``names``
    timestamp_us: Numbers  # (n,)
    values: NDArray[np.float64]  # (n, F), NaN where missing
    decoded: int  # number of decoded records
    ignored: int  # features in these records that the settings do not name


class ColumnDecoder:
    """The decoder of columns for one list of features. One thread at a time may use it.

    Args:
        largest_bytes: size of the largest value that is decoded.
    """

    def __init__(self, features: Sequence[str], largest_bytes: int) -> None:
        encoded = [feature.encode() for feature in features]
        self._names = np.frombuffer(reading_kernel.WORDS + b"".join(encoded), np.uint8)
        self._name_ends = np.cumsum([len(reading_kernel.WORDS), *map(len, encoded)], dtype=np.int64)[1:].copy()
        self._scratch = np.empty(len(encoded) + 2 * reading_kernel.MOST_UNKNOWN, np.int64)
        self._largest_bytes = largest_bytes

    def decode(self, data: bytes, records: Numbers) -> DecodedColumns:
        """The readings in n records.

        Args:
            records: (n, 4 or more) where the records lie in ``data``: start of the key, its size, start of the value,
                its size; a size below 0 is a null.
        """
        count = len(records)
        codes, firsts = np.empty(count, np.int64), np.empty(count, np.int64)
        timestamp_us, values = np.empty(count, np.int64), np.empty((count, len(self._name_ends)))
        table = np.empty(1 << (2 * count).bit_length(), np.int64)
        table.fill(reading_kernel.UNUSUAL)
        sensors, decoded, ignored = reading_kernel.decode(
            np.frombuffer(data, np.uint8),
            np.ascontiguousarray(records),
            self._names,
            self._name_ends,
            self._largest_bytes,
            table,
            self._scratch,
            codes,
            firsts,
            timestamp_us,
            values,
        )
        places = records[firsts[:sensors], :2].tolist()
        names = [data[begin : begin + size].decode() for begin, size in places]
        return DecodedColumns(names, codes, timestamp_us, values, decoded, ignored)


def prepare() -> None:
    """Compile the kernel, or load it from the cache."""
    ColumnDecoder(("a",), 1).decode(b"s{", np.array([[0, 1, 1, 1]], np.int64))
