"""The records of the changelog: writes states; reads usable states, sensors to rebuild, and positions."""

import logging
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from itertools import compress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.state import non_finite, outlooks_from, record_bytes
from pipeline.errors import StateError
from pipeline.forecaster.positions import POSITION_KEY, PartitionLog, Position, PositionRecord
from pipeline.forecaster.readings import Record
from pipeline.forecaster.rebuild import SensorAnchors, anchors_of_state, anchors_of_states
from pipeline.forecaster.states.store import ServedModel
from pipeline.forecaster.states.table import States
from pipeline.kafka.byte_strings import ByteStrings
from pipeline.messages import CHECKSUM_BYTES, StateTag, decode_state
from pipeline.reading_times import TimeRules
from pipeline.settings import Settings
from pipeline.unreadable_batch import UnreadableBatch

logger = logging.getLogger("streamgru.restore")


def encode_states(tag: StateTag, states: States) -> ByteStrings:
    """The values of the records of some states (B,): ``tag.encode`` of each, several times as fast."""
    blank = _blank(tag)
    count, head, size = len(states), len(blank), states.dtype.itemsize
    values = np.empty((count, head + size), np.uint8)
    values[:, :head] = blank
    rows = values[:, head:]
    rows[:] = record_bytes(np.ascontiguousarray(states))
    checksums = np.fromiter(map(zlib.crc32, rows), "<u4", count)
    values[:, head - CHECKSUM_BYTES : head] = checksums.view(np.uint8).reshape(count, CHECKSUM_BYTES)
    starts = np.arange(0, values.size, head + size)
    return ByteStrings(values.reshape(-1), starts, starts + (head + size))


@cache
def _blank(tag: StateTag) -> NDArray[np.uint8]:
    """The header of a state record with checksum 0, which is the last field."""
    return np.frombuffer(tag.encode(b""), np.uint8)


class StateRecords:
    """Loads usable states into the state table, and collects the anchors of unusable ones.

    A state is ahead if its last reading or outlook is not before the partition's floor (``PartitionLog.floor``). It
    waits until ``load_up_to`` gives the position.

    Args:
        logs: partition -> log.
        owner: owner of the positions that count, see ``positions.position_owner``.
        rebuild_only: partition -> sensors whose states are unusable.
    """

    def __init__(
        self,
        serving: ServedModel,
        logs: Mapping[int, PartitionLog],
        settings: Settings,
        owner: str,
        rebuild_only: Mapping[int, Collection[str]],
    ) -> None:
        self.serving = serving
        self.logs = logs
        self.recorded: dict[int, Position] = {}  # partition -> the changelog's position
        self.time_rules: dict[int, TimeRules] = {}  # partition -> the time rules recorded with that position
        # partition -> sensor -> the anchors in its unusable state, or None
        self.unusable: dict[int, dict[str, SensorAnchors | None]] = {partition: {} for partition in logs}
        self.damaged: set[int] = set()  # partitions of which some state records cannot be read
        self.seen: dict[int, bool] = dict.fromkeys(logs, False)  # partition -> whether it has a state record
        self._owner = owner
        self._reached = {partition: log.floor for partition, log in logs.items()}
        self._ahead: dict[int, dict[str, bytes | None]] = {partition: {} for partition in logs}
        self._settings = settings
        self._rebuild_only = rebuild_only
        # The fields before the hidden state, which are the same for every model.
        dtype = serving.table.dtype
        names = list(dtype.names or ())
        self._prefix: np.dtype[Any] = np.dtype([(name, dtype[name]) for name in names[: names.index("hidden")]])

    def add(self, partition: int, records: Iterable[Record]) -> None:
        """Add records in the order of the log; a sensor's last record replaces its earlier ones."""
        latest: dict[str, bytes | None] = {}
        for record in records:
            if record.key is None:
                if isinstance(record.value, UnreadableBatch):
                    logger.error("partition %d of the state topic: %s", partition, record.value.detail)
                    self.damaged.add(partition)
                continue
            if record.key == POSITION_KEY:
                self._add_position(partition, record.value)
                continue
            try:
                latest[record.key.decode()] = record.value
            except UnicodeDecodeError:
                logger.error("partition %d of the state topic: %r is not a sensor id", partition, record.key[:80])
        self.seen[partition] |= bool(latest)
        self._apply(partition, latest)

    def load_up_to(self, partition: int, reached: int) -> None:
        """Load the states before ``reached``, the offset of the next reading.

        States ahead of it are unusable: brokers lost readings, or a user reset the offset.
        """
        self._reached[partition] = reached
        ahead, self._ahead[partition] = self._ahead[partition], {}
        if ahead:
            self._apply(partition, ahead)

    def anchors(self, partition: int) -> dict[str, SensorAnchors]:
        """The anchors of a partition's sensors, from usable and unusable states."""
        sensors, rows = self.serving.table.partition_rows(partition)
        unusable = {sensor: known for sensor, known in self.unusable[partition].items() if known is not None}
        return anchors_of_states(sensors, self.serving.table.gather(rows), self._settings) | unusable

    def _add_position(self, partition: int, value: bytes | None) -> None:
        self.recorded.pop(partition, None)
        self.time_rules.pop(partition, None)
        try:
            recorded = PositionRecord.decode(value)
        except StateError as error:
            logger.error("partition %d of the state topic: %s", partition, error)
        else:
            if recorded.owner == self._owner:
                self.recorded[partition] = recorded.position
                self.time_rules[partition] = recorded.time_rules

    def _apply(self, partition: int, latest: Mapping[str, bytes | None]) -> None:
        sensors, values = list(latest), list(latest.values())
        usable = self._load_usable(partition, sensors, values)
        unusable = self.unusable[partition]
        for older in (unusable, self._ahead[partition]):
            if older:
                for sensor in sensors:
                    older.pop(sensor, None)
        if len(usable) < len(sensors):
            chosen = set(usable)
            for place, sensor in enumerate(sensors):
                if place not in chosen:
                    unusable[sensor] = self._anchors(partition, sensor, values[place])

    def _load_usable(self, partition: int, sensors: Sequence[str], values: Sequence[bytes | None]) -> list[int]:
        """Load the usable states into the table; returns their places in ``sensors`` and ``values``."""
        table = self.serving.table
        places, packed = self.serving.tag.unpack_rows(values, table.dtype.itemsize)
        states = np.frombuffer(packed, table.dtype)
        good = ~_are_ahead(states, self._reached[partition])
        bad = non_finite(states)
        for place in compress(places, bad.tolist()):
            logger.error("the state of sensor %s, partition %d, is non-finite", sensors[place], partition)
        rebuild_only = self._rebuild_only.get(partition)
        if rebuild_only:
            bad |= np.array([sensors[place] in rebuild_only for place in places], bool)
        good &= ~bad
        if not good.all():
            states, places = states[good], list(compress(places, good.tolist()))
        table.scatter(table.rows(partition, [sensors[place] for place in places]), states)
        return places

    def _anchors(self, partition: int, sensor: str, value: bytes | None) -> SensorAnchors | None:
        """The anchors in an unusable state; None if it has other settings, which may have accepted other readings."""
        if value is None:
            return None  # a user deleted the state
        try:
            tag, row = decode_state(value)
        except StateError as error:
            logger.error("the state of sensor %s, partition %d, cannot be used: %s", sensor, partition, error)
            return None
        if tag == self.serving.tag and len(row) != self.serving.table.dtype.itemsize:
            logger.error("the state of sensor %s, partition %d, does not have the model's size", sensor, partition)
        if tag.settings != self.serving.tag.settings or len(row) < self._prefix.itemsize:
            return None
        is_whole = tag == self.serving.tag and len(row) == self.serving.table.dtype.itemsize
        dtype = self.serving.table.dtype if is_whole else self._prefix
        states = np.frombuffer(row[: dtype.itemsize], dtype, 1)
        if _are_ahead(states, self._reached[partition])[0]:
            self._ahead[partition][sensor] = value
            return None
        return anchors_of_state(states[0], self._settings)


def _are_ahead(states: States, reached: int) -> NDArray[np.bool_]:
    """(B,) whether a state holds a reading or an outlook at ``reached`` or later."""
    ahead: NDArray[np.bool_] = (states["offset"] >= reached) | (outlooks_from(states) > reached)
    return ahead
