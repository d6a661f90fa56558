"""All sensors' states in memory: one structured array, one row per sensor, rows found by partition and sensor.

The table holds only what has been committed: whoever steps states takes copies (``gather``) and puts them back
(``scatter``) once their transaction is durable. The durable copy is the changelog (``pipeline.forecaster.changelog``).
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

States = NDArray[np.void]  # (B,) of model.state.state_dtype
Rows = NDArray[np.intp]

_SMALLEST_CAPACITY: Final = 64
# In steps this small the memory stays near what is needed. Growing hardly costs: the system moves the pages of a large
# array instead of copying them (Linux), so it is never there twice.
_GROWTH: Final = 1.0625


class StateTable:
    """States by partition and sensor.

    A sensor id is a sensor of its own in each partition it appears in. A sensor that was never seen gets a blank row
    when it is asked for. Not safe for use by several threads.

    Args:
        blank: (1,) the state of a sensor without readings; its dtype is the table's.
    """

    def __init__(self, blank: States) -> None:
        self._blank = blank.copy()
        self._states = np.empty(0, blank.dtype)
        self._sensors: list[str] = []  # by row; of a free row: whatever was there
        self._partitions = np.empty(0, np.int32)  # by row
        self._index: dict[int, dict[str, int]] = {}
        self._free: list[int] = []

    def __len__(self) -> int:
        return sum(len(index) for index in self._index.values())

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of a state."""
        return self._states.dtype

    @property
    def partitions(self) -> frozenset[int]:
        """The partitions that the table holds, also those without a sensor."""
        return frozenset(self._index)

    @property
    def nbytes(self) -> int:
        """Bytes of the array of states."""
        return self._states.nbytes + self._partitions.nbytes

    def add_partition(self, partition: int) -> None:
        """Begin to hold a partition; what the table held of it is gone."""
        self.drop_partition(partition)
        self._index[partition] = {}

    def drop_partition(self, partition: int) -> None:
        """Forget a partition; its rows are free for other sensors."""
        self._free += self._index.pop(partition, {}).values()

    def rows(self, partition: int, sensors: Sequence[str]) -> Rows:
        """(n,) the row of each sensor, which may repeat; sensors not seen before get blank rows."""
        index = self._index[partition]
        try:
            return np.fromiter(map(index.__getitem__, sensors), np.intp, len(sensors))
        except KeyError:
            self._allot(partition, [sensor for sensor in dict.fromkeys(sensors) if sensor not in index])
        return np.fromiter(map(index.__getitem__, sensors), np.intp, len(sensors))

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

    def named(self, rows: Rows) -> dict[int, list[str]]:
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
        return self._states[rows]

    def scatter(self, rows: Rows, states: States) -> None:
        """Put states into ``rows``, each of which is named once."""
        self._states[rows] = states

    def blank(self, count: int) -> States:
        """As many states of sensors without readings."""
        return np.repeat(self._blank, count)

    def _allot(self, partition: int, sensors: Sequence[str]) -> None:
        if len(sensors) > len(self._free):
            self._grow(len(sensors) - len(self._free))
        rows = [self._free.pop() for _ in sensors]
        self._states[rows] = self._blank
        self._partitions[rows] = partition
        for row, sensor in zip(rows, sensors, strict=True):
            self._sensors[row] = sensor
        self._index[partition].update(zip(sensors, rows, strict=True))

    def _grow(self, by: int) -> None:
        before = len(self._states)
        capacity = max(_SMALLEST_CAPACITY, int(before * _GROWTH), before + by)
        # Nobody else holds these arrays: what leaves this class is a copy.
        self._states.resize(capacity, refcheck=False)
        self._partitions.resize(capacity, refcheck=False)
        self._sensors += [""] * (capacity - before)
        self._free += range(capacity - 1, before - 1, -1)  # the lowest row is taken first
