"""The state table: the committed states of all sensors in memory, a row of one structured array per sensor.

A step works on copies (``gather``), and the loop writes these back (``scatter``) after the commit. The durable copy is
the changelog, see ``restore``.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model.state import record_bytes

States = NDArray[np.void]  # (B,) states of model.state.state_dtype
Rows = NDArray[np.intp]

_SMALLEST_CAPACITY: Final = 64
# Capacity factor. Small steps waste little memory, and Linux grows a large array by remapping its pages, not by a copy.
_GROWTH: Final = 1.0625


class StateTable:
    """States by partition and sensor.

    A sensor id in two partitions is two sensors. ``rows`` gives an unknown sensor a blank row. Not thread-safe.

    Args:
        blank: (1,) the state of a sensor without readings; its dtype is the table's.
    """

    def __init__(self, blank: States) -> None:
        self._blank = blank.copy()
        # The states as bytes: numpy copies records of many fields several times as slowly, one even a hundred times.
        self._records = np.empty((0, blank.dtype.itemsize), np.uint8)
        self._states = np.ndarray(0, blank.dtype, self._records)  # the same memory
        self._sensors: list[str] = []  # sensor of each row; a free row keeps its old one
        self._partitions = np.empty(0, np.int32)  # partition of each row
        self._index: dict[int, dict[str, int]] = {}
        self._free: list[int] = []

    def __len__(self) -> int:
        return sum(len(index) for index in self._index.values())

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of a state."""
        return self._states.dtype

    @property
    def partitions(self) -> frozenset[int]:
        """The partitions in the table, including those without a sensor."""
        return frozenset(self._index)

    @property
    def nbytes(self) -> int:
        """Bytes of the array of states."""
        return self._states.nbytes + self._partitions.nbytes

    def add_partition(self, partition: int) -> None:
        """Add an empty partition; states that the table had for it are deleted."""
        self.drop_partition(partition)
        self._index[partition] = {}

    def drop_partition(self, partition: int) -> None:
        """Delete a partition; its rows become free."""
        self._free += self._index.pop(partition, {}).values()

    def rows(self, partition: int, sensors: Sequence[str]) -> Rows:
        """(n,) the row of each sensor; sensors may repeat, unknown ones get blank rows."""
        index = self._index[partition]
        try:
            return np.fromiter(map(index.__getitem__, sensors), np.intp, len(sensors))
        except KeyError:
            self._allocate(partition, [sensor for sensor in dict.fromkeys(sensors) if sensor not in index])
        return np.fromiter(map(index.__getitem__, sensors), np.intp, len(sensors))

    def unknown(self, partition: int, sensors: Iterable[str]) -> list[str]:
        """The sensors without a row, in order and each once."""
        index = self._index[partition]
        return list(dict.fromkeys(sensor for sensor in sensors if sensor not in index))

    def known_rows(self, partition: int, sensors: Sequence[str]) -> Rows:
        """The row of each sensor that has one, in order."""
        index = self._index[partition]
        return np.array([index[sensor] for sensor in sensors if sensor in index], np.intp)

    def count(self, partition: int) -> int:
        """The number of sensors of a partition."""
        return len(self._index[partition])

    def partition_rows(self, partition: int) -> tuple[list[str], Rows]:
        """All sensors of a partition and their rows."""
        index = self._index[partition]
        return list(index), np.fromiter(index.values(), np.intp, len(index))

    def sensors_at(self, rows: Iterable[int]) -> list[str]:
        """The sensor of each row."""
        return [self._sensors[row] for row in rows]

    def partitions_at(self, rows: Rows) -> NDArray[np.int32]:
        """The partition of each row."""
        return self._partitions[rows]

    def sensors_by_partition(self, rows: Rows) -> dict[int, list[str]]:
        """The sensors at ``rows``, by partition."""
        found: dict[int, list[str]] = {}
        for partition, sensor in zip(self.partitions_at(rows).tolist(), self.sensors_at(rows.tolist()), strict=True):
            found.setdefault(partition, []).append(sensor)
        return found

    def field(self, name: str, rows: Rows) -> NDArray[Any]:
        """One field of the states at ``rows``."""
        return self._states[name][rows]

    def gather(self, rows: Rows) -> States:
        """A copy of the states at ``rows``."""
        return np.ndarray(len(rows), self.dtype, self._records.take(rows, axis=0))

    def scatter(self, rows: Rows, states: States) -> None:
        """Write states to ``rows``, which are distinct."""
        self._records[rows] = record_bytes(np.ascontiguousarray(states))

    def blank(self, count: int) -> States:
        """(count,) states of sensors without readings."""
        return np.repeat(self._blank, count)

    def _allocate(self, partition: int, sensors: Sequence[str]) -> None:
        if len(sensors) > len(self._free):
            self._grow(len(sensors) - len(self._free))
        rows = [self._free.pop() for _ in sensors]
        self._records[rows] = record_bytes(self._blank)
        self._partitions[rows] = partition
        for row, sensor in zip(rows, sensors, strict=True):
            self._sensors[row] = sensor
        self._index[partition].update(zip(sensors, rows, strict=True))

    def _grow(self, by: int) -> None:
        before = len(self._states)
        capacity = max(_SMALLEST_CAPACITY, int(before * _GROWTH), before + by)
        # refcheck=False is safe: every method returns copies, so only `_states` refers to the old memory.
        self._records.resize((capacity, self.dtype.itemsize), refcheck=False)
        self._states = np.ndarray(capacity, self.dtype, self._records)
        self._partitions.resize(capacity, refcheck=False)
        self._sensors += [""] * (capacity - before)
        self._free += range(capacity - 1, before - 1, -1)  # pop() hands out the lowest row first
