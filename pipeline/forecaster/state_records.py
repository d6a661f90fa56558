"""What the records of the state topic say: states to go on from, of which sensors else, and how far they reach."""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import compress
from types import MappingProxyType
from typing import Any

import numpy as np

from model.state import unsound
from pipeline.errors import StateError
from pipeline.forecaster.position import POSITION_KEY, Noted, Position
from pipeline.forecaster.readings import Record
from pipeline.forecaster.replay import Known, known_of_state, known_of_states
from pipeline.forecaster.resume_point import Log
from pipeline.forecaster.serving import Serving
from pipeline.messages import decode_state
from pipeline.settings import Settings

logger = logging.getLogger("streamgru.changelog")


class StateRecords:
    """Sorts state records into usable ones, which go into the table, and others, of which it notes what they tell.

    Args:
        logs: by partition; what is ahead of one's floor waits for ``settle_at``.
        owner: of the positions that count.
    """

    def __init__(
        self,
        serving: Serving,
        logs: Mapping[int, Log],
        settings: Settings,
        owner: str,
        distrusted: Mapping[int, Collection[str]] = MappingProxyType({}),
    ) -> None:
        self.serving = serving
        self.logs = logs
        self.noted: dict[int, Position] = {}  # by partition, what the changelog says
        self._owner = owner
        self._reached = {partition: log.floor for partition, log in logs.items()}
        self._ahead: dict[int, dict[str, bytes | None]] = {partition: {} for partition in logs}
        self._settings = settings
        self._distrusted = distrusted
        self._prefix = _prefix(serving.table.dtype)
        self.foreign: dict[int, dict[str, Known | None]] = {partition: {} for partition in logs}
        self.seen: dict[int, bool] = dict.fromkeys(logs, False)

    def take(self, partition: int, records: Iterable[Record]) -> None:
        """Records in the order of the log: a later one of a sensor stands for it."""
        latest: dict[str, bytes | None] = {}
        for record in records:
            if record.key is None:
                continue
            if record.key == POSITION_KEY:
                self._note(partition, record.value)
                continue
            try:
                latest[record.key.decode()] = record.value
            except UnicodeDecodeError:
                what = record.key[:80]
                logger.error("partition %d of the state topic has a key that is no sensor id: %r", partition, what)
        self.seen[partition] |= bool(latest)
        self._sort(partition, latest)

    def settle_at(self, partition: int, reached: int) -> None:
        """Take what is not ahead of the next reading's offset. Whatever still is, is of a future that was undone."""
        self._reached[partition] = reached
        ahead, self._ahead[partition] = self._ahead[partition], {}
        if ahead:
            self._sort(partition, ahead)

    def past(self, partition: int) -> dict[str, Known]:
        """What is known of a partition's sensors by their states, used or not."""
        sensors, rows = self.serving.table.partition_rows(partition)
        unused = {sensor: known for sensor, known in self.foreign[partition].items() if known is not None}
        return known_of_states(sensors, self.serving.table.gather(rows), self._settings) | unused

    def _note(self, partition: int, value: bytes | None) -> None:
        self.noted.pop(partition, None)
        try:
            noted = Noted.decode(value)
        except StateError as error:
            logger.error("partition %d of the state topic: %s", partition, error)
        else:
            if noted.owner == self._owner:
                self.noted[partition] = noted.position

    def _sort(self, partition: int, latest: Mapping[str, bytes | None]) -> None:
        sensors, values = list(latest), list(latest.values())
        usable = self._keep(partition, sensors, values)
        foreign, ahead = self.foreign[partition], self._ahead[partition]
        for older in (foreign, ahead):
            if older:
                for sensor in sensors:
                    older.pop(sensor, None)
        if len(usable) < len(sensors):
            chosen = set(usable)
            for place, sensor in enumerate(sensors):
                if place not in chosen:
                    foreign[sensor] = self._known(partition, sensor, values[place])

    def _keep(self, partition: int, sensors: Sequence[str], values: Sequence[bytes | None]) -> list[int]:
        """Put the usable ones among the states of some sensors into the table; the places of these."""
        table = self.serving.table
        places, packed = self.serving.tag.take_rows(values, table.dtype.itemsize)
        states = np.frombuffer(packed, table.dtype)
        good = states["offset"] < self._reached[partition]
        bad = unsound(states)
        for place in compress(places, bad.tolist()):
            what = sensors[place]
            logger.error("the state of sensor %s, partition %d, has a number that is not finite", what, partition)
        distrusted = self._distrusted.get(partition)
        if distrusted:
            bad |= np.array([sensors[place] in distrusted for place in places], bool)
        good &= ~bad
        if not good.all():
            states, places = states[good], list(compress(places, good.tolist()))
        table.scatter(table.rows(partition, [sensors[place] for place in places]), states)
        return places

    def _known(self, partition: int, sensor: str, value: bytes | None) -> Known | None:
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
        return known_of_state(state, self._settings)


def _prefix(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The leading fields of a state, which are the same whatever the model: all before the hidden state."""
    assert dtype.names is not None
    assert dtype.fields is not None
    names = dtype.names[: dtype.names.index("hidden")]
    return np.dtype([(name, dtype.fields[name][0]) for name in names])
