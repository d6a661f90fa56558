"""What the records of the state topic say: states to go on from, of which sensors else, and how far they reach."""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import compress
from types import MappingProxyType
from typing import Any

import numpy as np

from model.state import non_finite
from pipeline.errors import StateError
from pipeline.forecaster.positions import POSITION_KEY, PartitionLog, Position, PositionRecord
from pipeline.forecaster.readings import Record
from pipeline.forecaster.rebuild import SensorAnchors, anchors_of_state, anchors_of_states
from pipeline.forecaster.state_store import ServedModel
from pipeline.messages import decode_state
from pipeline.settings import Settings

logger = logging.getLogger("streamgru.restore")


class StateRecords:
    """Sorts state records into usable ones, which go into the table, and others, of which it notes what they tell.

    Args:
        logs: by partition; what is ahead of one's floor waits for ``load_up_to``.
        owner: of the positions that count.
    """

    def __init__(
        self,
        serving: ServedModel,
        logs: Mapping[int, PartitionLog],
        settings: Settings,
        owner: str,
        rebuild_only: Mapping[int, Collection[str]] = MappingProxyType({}),
    ) -> None:
        self.serving = serving
        self.logs = logs
        self.recorded: dict[int, Position] = {}  # by partition, what the changelog says
        self._owner = owner
        self._reached = {partition: log.floor for partition, log in logs.items()}
        self._ahead: dict[int, dict[str, bytes | None]] = {partition: {} for partition in logs}
        self._settings = settings
        self._rebuild_only = rebuild_only
        self._prefix = _prefix(serving.table.dtype)
        self.unusable: dict[int, dict[str, SensorAnchors | None]] = {partition: {} for partition in logs}
        self.seen: dict[int, bool] = dict.fromkeys(logs, False)

    def add(self, partition: int, records: Iterable[Record]) -> None:
        """Records in the order of the log: a later one of a sensor stands for it."""
        latest: dict[str, bytes | None] = {}
        for record in records:
            if record.key is None:
                continue
            if record.key == POSITION_KEY:
                self._add_position(partition, record.value)
                continue
            try:
                latest[record.key.decode()] = record.value
            except UnicodeDecodeError:
                what = record.key[:80]
                logger.error("partition %d of the state topic has a key that is no sensor id: %r", partition, what)
        self.seen[partition] |= bool(latest)
        self._apply(partition, latest)

    def load_up_to(self, partition: int, reached: int) -> None:
        """Take what is not ahead of the next reading's offset. Whatever still is, is of a future that was undone."""
        self._reached[partition] = reached
        ahead, self._ahead[partition] = self._ahead[partition], {}
        if ahead:
            self._apply(partition, ahead)

    def anchors(self, partition: int) -> dict[str, SensorAnchors]:
        """What is known of a partition's sensors by their states, used or not."""
        sensors, rows = self.serving.table.partition_rows(partition)
        unused = {sensor: known for sensor, known in self.unusable[partition].items() if known is not None}
        return anchors_of_states(sensors, self.serving.table.gather(rows), self._settings) | unused

    def _add_position(self, partition: int, value: bytes | None) -> None:
        self.recorded.pop(partition, None)
        try:
            recorded = PositionRecord.decode(value)
        except StateError as error:
            logger.error("partition %d of the state topic: %s", partition, error)
        else:
            if recorded.owner == self._owner:
                self.recorded[partition] = recorded.position

    def _apply(self, partition: int, latest: Mapping[str, bytes | None]) -> None:
        sensors, values = list(latest), list(latest.values())
        usable = self._load_usable(partition, sensors, values)
        unusable, ahead = self.unusable[partition], self._ahead[partition]
        for older in (unusable, ahead):
            if older:
                for sensor in sensors:
                    older.pop(sensor, None)
        if len(usable) < len(sensors):
            chosen = set(usable)
            for place, sensor in enumerate(sensors):
                if place not in chosen:
                    unusable[sensor] = self._anchors(partition, sensor, values[place])

    def _load_usable(self, partition: int, sensors: Sequence[str], values: Sequence[bytes | None]) -> list[int]:
        """Put the usable ones among the states of some sensors into the table; the places of these."""
        table = self.serving.table
        places, packed = self.serving.tag.unpack_rows(values, table.dtype.itemsize)
        states = np.frombuffer(packed, table.dtype)
        good = states["offset"] < self._reached[partition]
        bad = non_finite(states)
        for place in compress(places, bad.tolist()):
            what = sensors[place]
            logger.error("the state of sensor %s, partition %d, has a number that is not finite", what, partition)
        rebuild_only = self._rebuild_only.get(partition)
        if rebuild_only:
            bad |= np.array([sensors[place] in rebuild_only for place in places], bool)
        good &= ~bad
        if not good.all():
            states, places = states[good], list(compress(places, good.tolist()))
        table.scatter(table.rows(partition, [sensors[place] for place in places]), states)
        return places

    def _anchors(self, partition: int, sensor: str, value: bytes | None) -> SensorAnchors | None:
        """What an unusable state still tells, where its settings are ours: readings were accepted by the same rules."""
        if value is None:
            return None  # deleted by hand: the sensor is rebuilt
        try:
            tag, row = decode_state(value)
        except StateError as error:
            logger.error("the state of sensor %s, partition %d, cannot be used: %s", sensor, partition, error)
            return None
        if tag == self.serving.tag and len(row) != self.serving.table.dtype.itemsize:
            logger.error("the state of sensor %s, partition %d, has another size than the model's", sensor, partition)
        if tag.settings != self.serving.tag.settings or len(row) < self._prefix.itemsize:
            return None
        state = np.frombuffer(row[: self._prefix.itemsize], self._prefix, 1)[0]
        if int(state["offset"]) >= self._reached[partition]:
            self._ahead[partition][sensor] = value
            return None  # likewise undone
        return anchors_of_state(state, self._settings)


def _prefix(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The leading fields of a state, which are the same whatever the model: all before the hidden state."""
    assert dtype.names is not None
    assert dtype.fields is not None
    names = dtype.names[: dtype.names.index("hidden")]
    return np.dtype([(name, dtype.fields[name][0]) for name in names])
