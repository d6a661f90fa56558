"""Ids of sensors and their row numbers, in about 30 bytes a sensor; a ``dict`` of bytes takes 130."""

import re
from array import array
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

_FEWEST_SLOTS: Final = 1_024
_FREE: Final = -1
_END: Final = b"\xff"  # follows each id; UTF-8 never contains it
_FULLEST: Final = 2 / 3  # share of used slots at which the hash table grows; beyond it, searches become long


@dataclass(frozen=True)
class SensorIds:
    """A copy of all ids, each followed by ``_END``; the id of a row begins at ``starts[row]``."""

    ids: bytes
    starts: NDArray[np.uint32]  # (rows + 1,) offset in bytes of each id in ``ids``, and the end

    def search(self, text: bytes) -> NDArray[np.int64]:
        """The rows whose ids contain the text, in ascending order; ASCII letters match in either case."""
        if not text:
            return np.arange(len(self.starts) - 1)
        if _END in text:
            return np.zeros(0, np.int64)
        matches = re.finditer(re.escape(text.lower()), self.ids.lower())
        at = np.fromiter((match.start() for match in matches), np.int64)
        return np.unique(np.searchsorted(self.starts, at, "right") - 1)

    def ranks(self) -> NDArray[np.int32]:
        """(rows,) the place of each sensor in the order of the ids."""
        ids = self.ids.split(_END)[:-1]
        order = sorted(range(len(ids)), key=ids.__getitem__)
        ranks = np.empty(len(ids), np.int32)
        ranks[order] = np.arange(len(ids), dtype=np.int32)
        return ranks


class SensorTable:
    """Numbers the sensors in order of their arrival. Rows are never removed. Not thread-safe.

    The ids, in UTF-8, stand one after the other in one byte string. An open-addressed hash table holds row numbers; its
    hash is Python's, whose seed is random, so that no producer can choose ids that collide.
    """

    def __init__(self) -> None:
        self._ids = bytearray()
        self._starts = array("I", [0])  # row -> start of its id; one more entry than rows
        self._slots = array("i", [_FREE]) * _FEWEST_SLOTS
        self.ranks = np.empty(0, np.int32)  # the last ``SensorIds.ranks``, so that they need not be sorted again

    def __len__(self) -> int:
        return len(self._starts) - 1

    def find(self, sensor: bytes) -> int | None:
        """The row of a sensor; None for an unknown one."""
        row = self._slots[self._slot(sensor)]
        return None if row == _FREE else row

    def find_or_add(self, sensor: bytes) -> int:
        """The row of a sensor; a new one for an unknown sensor."""
        slot = self._slot(sensor)
        row = self._slots[slot]
        if row != _FREE:
            return row
        row = len(self)
        self._ids += sensor + _END
        self._starts.append(len(self._ids))
        self._slots[slot] = row
        if row + 1 > _FULLEST * len(self._slots):
            self._grow()
        return row

    def id_of(self, row: int) -> bytes:
        """The id of the sensor in a row."""
        return bytes(self._ids[self._starts[row] : self._starts[row + 1] - 1])

    def copy_ids(self) -> "SensorIds":
        """The ids at this moment, to search and sort without keeping other threads waiting."""
        return SensorIds(bytes(self._ids), np.array(self._starts, np.uint32))

    @property
    def bytes_used(self) -> int:
        """The memory of the table."""
        return len(self._ids) + 4 * (len(self._starts) + len(self._slots)) + self.ranks.nbytes

    def _slot(self, sensor: bytes) -> int:
        """The slot of a sensor, or the free slot that it would get."""
        slots, starts, ids = self._slots, self._starts, self._ids
        mask = len(slots) - 1
        at = hash(sensor) & mask
        while (row := slots[at]) != _FREE and ids[starts[row] : starts[row + 1] - 1] != sensor:
            at = (at + 1) & mask
        return at

    def _grow(self) -> None:
        self._slots = array("i", [_FREE]) * (2 * len(self._slots))
        for row in range(len(self)):
            self._slots[self._slot(self.id_of(row))] = row
