"""Where the latest records lie: the offsets of forecasts with their readings, and the values of recent readings.

Both logs have a fixed number of entries, and new entries replace the oldest. So the memory does not depend on the
number of sensors, and a sensor's history reaches as far back as the log: the number of entries divided by the number of
sensors. A fixed number of offsets per sensor would cost 100,000 sensors more and show 12 sensors less.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

NO_ENTRY: Final = -1


@dataclass(frozen=True)
class RecordPlace:
    """Where a forecast and its reading lie."""

    partition: int
    offset: int  # of the forecast
    reading_offset: int  # of the reading


class ForecastPlaces:
    """The places of the latest forecasts; each entry leads to the previous one of its sensor. 22 bytes an entry."""

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._next = 0  # number of the next entry, counted from the first one ever
        self._partition = np.zeros(entries, np.uint16)
        self._offset = np.zeros(entries, np.int64)
        self._reading_offset = np.zeros(entries, np.int64)
        self._back = np.zeros(entries, np.uint32)  # entries back to the sensor's previous one; 0: it is the first

    def append(
        self,
        partition: NDArray[np.int64],
        offset: NDArray[np.int64],
        reading_offset: NDArray[np.int64],
        previous: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Add entries, one per sensor at most, and return their numbers.

        Args:
            partition: (n,) partition of the forecast and its reading.
            offset: (n,) offset of the forecast.
            reading_offset: (n,) offset of the reading.
            previous: (n,) number of the sensor's previous entry, ``NO_ENTRY`` without one.
        """
        numbers = np.arange(self._next, self._next + len(offset))
        self._next += len(offset)
        at = numbers % self._entries
        self._partition[at], self._offset[at], self._reading_offset[at] = partition, offset, reading_offset
        distance = numbers - previous
        self._back[at] = np.where((previous == NO_ENTRY) | (distance >= self._entries), 0, distance)
        return numbers

    def walk_back(self, number: int, most: int) -> list[RecordPlace]:
        """The places of a sensor's latest forecasts, newest first, from its newest entry ``number`` on."""
        found: list[RecordPlace] = []
        while number > NO_ENTRY and number >= self._next - self._entries and len(found) < most:
            at = number % self._entries
            found.append(RecordPlace(int(self._partition[at]), int(self._offset[at]), int(self._reading_offset[at])))
            back = int(self._back[at])
            number = number - back if back else NO_ENTRY
        return found


class RecentReadings:
    """The values of the latest readings of each partition, by offset, until their forecasts arrive.

    Args:
        entries: of all partitions together.
        width: numbers per reading.
    """

    def __init__(self, partitions: int, entries: int, width: int) -> None:
        self.per_partition = max(1, entries // partitions)
        shape = (partitions, self.per_partition)
        self._offset = np.full(shape, -1, np.int64)
        self._sent_ms = np.zeros(shape, np.int64)
        self._values = np.zeros((*shape, width), np.float32)

    def add(self, partition: int, offset: int, sent_ms: int, values: tuple[float, ...]) -> None:
        """Keep a reading, in the place of the one ``per_partition`` offsets before it."""
        at = offset % self.per_partition
        self._offset[partition, at] = offset
        self._sent_ms[partition, at] = sent_ms
        self._values[partition, at] = values

    def find(
        self, partition: NDArray[np.int64], offset: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """(n, width) values and (n,) sending times in ms; NaN and -1 for readings that are not here."""
        at = offset % self.per_partition
        is_here = self._offset[partition, at] == offset
        values = np.where(is_here[:, None], self._values[partition, at], np.float32(np.nan))
        return values, np.where(is_here, self._sent_ms[partition, at], -1)
