"""Encodes the rows of a table as the records of the readings topic."""

from collections.abc import Iterable
from itertools import repeat
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.text.json_columns import float_texts, time_texts

if TYPE_CHECKING:
    from pipeline.files.reading_table import ReadingTable


class ReadingEncoder:
    """Encodes rows of a table as readings, a column at a time, into the same JSON as ``messages.encode_reading``."""

    def __init__(self, table: "ReadingTable") -> None:
        self._table = table
        names = [msgspec.json.encode(name) for name in table.values]
        self._before_first = b'","values":{' + names[0] + b":"
        self._before_others = [b"," + name + b":" for name in names[1:]]
        ids = [msgspec.json.encode(sensor) for sensor in table.sensors]
        self._keys = np.array([sensor.encode() for sensor in table.sensors] + [None], dtype=object)[:-1]
        heads = [b'{"sensor_id":' + sensor + b',"timestamp":"' for sensor in ids]
        self._heads = np.array([*heads, None], dtype=object)[:-1]

    def encode(self, rows: NDArray[np.int64]) -> tuple[list[bytes], list[bytes]]:
        """Keys and values of the rows, in their order."""
        table = self._table
        codes = table.sensor_codes[rows]
        times = time_texts(table.timestamp_us[rows])
        count = len(rows)
        columns: list[Iterable[bytes]] = [self._heads[codes].tolist(), times, repeat(self._before_first, count)]
        for index, values in enumerate(table.values.values()):
            if index:
                columns.append(repeat(self._before_others[index - 1], count))
            columns.append(float_texts(values[rows]))
        columns.append(repeat(b"}}", count))
        return self._keys[codes].tolist(), list(map(b"".join, zip(*columns, strict=True)))
