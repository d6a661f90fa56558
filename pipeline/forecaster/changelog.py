"""Restores states from the compacted state topic, and from the readings where that does not serve.

A partition's states are restored, as of the group's position, before its first reading is processed. The changelog is
read to the end that it has *after* the group's position is known, open transactions included: a committed transaction
whose markers are still being written is waited for. A state is used only if it is whole, of the model version that
serves, of the same settings, and not ahead of the position. Any other sensor is rebuilt by ``Replayer``.

The changelog has a position of its own, and the two are the same unless the brokers have lost one of them. Where the
changelog's lies ahead, or the group has none, it is gone on from there, since all before has been forecast; where it
lies behind, the readings in between are stepped once more. Only an offset that was reset by hand is taken as it is.
"""

import logging
import time
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaTimeoutError
from kafka.protocol.consumer import OffsetSpec

from model.state import unsound
from pipeline.errors import StateError
from pipeline.forecaster.orphans import end_orphans
from pipeline.forecaster.position import POSITION_KEY, Committed, Noted, Position
from pipeline.forecaster.readings import Readings, Record
from pipeline.forecaster.replay import POLL_MS, Known, Rebuilt, Replayer, known_of_state, known_of_states
from pipeline.forecaster.resume_point import Log, held_lost, settle_position
from pipeline.forecaster.serving import Serving
from pipeline.messages import decode_state
from pipeline.settings import Settings

logger = logging.getLogger("streamgru.changelog")

# Each poll's records are in memory beside the table: few enough not to show beside it, enough to be worth a round.
POLL_RECORDS: Final = 2_000
# An open transaction that is waited for so long may be a dead forecaster's: a live one's takes milliseconds.
ORPHAN_INTERVAL_S: Final = 0.5
HANGING_S: Final = 30.0  # brokers end what timed out before
PROGRESS_INTERVAL_S: Final = 2.0  # how often a long restore says how far it is


@dataclass
class Restored:
    """What restoring did: positions to go on from, and counts."""

    positions: dict[int, int] = field(default_factory=dict)  # by partition, the offset of the next reading
    sensors: int = 0  # whose states came from the changelog
    rebuilt: Rebuilt = field(default_factory=Rebuilt)
    # Partitions where states were rebuilt or the position is not what is committed: one transaction is due at once,
    # so that the next restart has less to do and begins at the same reading.
    unsaved: set[int] = field(default_factory=set)
    held: dict[int, Readings] = field(default_factory=dict)  # by partition, the readings that wait for earlier ones
    held_lost: int = 0  # offsets deleted by retention where readings were held
    seconds: float = 0.0


class Changelog:
    """Reads back what the forecasters wrote.

    Args:
        reader: a consumer of its own, without a group, of committed records.
        admin: says where a log ends, open transactions included, which a reader of committed records cannot.
        owner: of the positions that count, see ``position.owner_of_positions``.
    """

    def __init__(self, settings: Settings, reader: KafkaConsumer, admin: KafkaAdminClient, owner: str) -> None:
        self._owner = owner
        self._settings = settings
        self._reader = reader
        self._admin = admin

    def restore(
        self,
        serving: Serving,
        wanted: set[int],
        committed: Callable[[int], Committed | None],
        *,
        accept_loss: bool = False,
        distrusted: Mapping[int, Collection[str]] = MappingProxyType({}),
    ) -> Generator[None, None, Restored]:
        """Fill the serving's table for the partitions wanted; yields between polls.

        Args:
            wanted: partitions; the caller may discard one while this runs, and it is left out from then on.
            committed: what the group has committed for a partition, None: nothing. It raises ``KafkaTimeoutError``
                while a transaction that may still change that is open, and is asked again.
            accept_loss: go on from the start of the log where it has lost what was to come next.
            distrusted: by partition, sensors whose states are rebuilt whatever the changelog has of them.

        Raises:
            OffsetsLost: see ``resume_point.first_position``.
        """
        began = time.monotonic()
        restored = Restored()
        logs: dict[int, Log] = {}
        for partition in sorted(wanted):
            logs[partition] = yield from self._log(partition, committed)
        reading = _Reading(serving, logs, self._settings, self._owner, distrusted)
        for partition in wanted:
            serving.table.add_partition(partition)
        yield from self._read(reading, wanted)
        for partition in sorted(wanted):
            if partition in wanted:
                noted = reading.noted.get(partition)
                position = settle_position(self._settings, logs[partition], noted, accept_loss=accept_loss)
                reading.settle_at(partition, position.next)
                yield from self._finish(partition, position, reading, restored, wanted)
        restored.positions = {partition: restored.positions[partition] for partition in wanted}
        restored.held = {partition: held for partition, held in restored.held.items() if partition in wanted}
        restored.unsaved &= wanted
        restored.seconds = time.monotonic() - began
        return restored

    def _finish(
        self, partition: int, position: Position, reading: "_Reading", restored: Restored, wanted: set[int]
    ) -> Generator[None, None, None]:
        """Bring the states of a partition, whose changelog has been read, to its position."""
        serving, log, noted = reading.serving, reading.logs[partition], reading.noted.get(partition)
        replayer = Replayer(self._settings, self._reader, serving, alive=wanted.__contains__)
        restored.positions[partition] = position.next
        lost = held_lost(self._settings, partition, position, log.start)
        restored.held_lost += lost
        is_as_committed = log.committed == Committed(position)
        if lost or not is_as_committed:
            restored.unsaved.add(partition)
        # An empty changelog does not say which sensors there are: whatever the readings have is rebuilt.
        known = reading.foreign[partition] if reading.seen[partition] else None
        past: dict[str, Known] = {}
        if noted is not None and noted.next != position.next:
            restored.unsaved.add(partition)
        if is_as_committed and reading.seen[partition] and (noted is None or noted.next < position.next):
            restored.unsaved.add(partition)
            logger.error(
                "partition %d: the changelog says offset %s, and the group is at %d: states that were committed in "
                "between may be lost; readings are stepped once more",
                partition,
                "nothing of an" if noted is None else noted.next,
                position.next,
            )
            if noted is not None and log.start <= noted.read_from:
                yield from replayer.catch_up(partition, noted.read_from, position.next)
                if partition not in wanted:
                    return
            else:  # not all of those readings are there, or known: whatever there is tells the most
                past, known = reading.past(partition), None
        rebuilt = yield from self._rebuild(replayer, partition, known, position)
        restored.rebuilt += rebuilt
        if rebuilt.sensors or rebuilt.cold:
            restored.unsaved.add(partition)
        if partition not in wanted:
            return
        replayer.keep_timestamps(partition, past)
        restored.sensors += len(serving.table.partition_rows(partition)[0]) - rebuilt.sensors - len(rebuilt.cold)
        if position.held_from is not None:
            held = yield from replayer.hold(partition, max(position.held_from, log.start), position.next)
            if len(held):
                restored.held[partition] = held

    def _log(self, partition: int, committed: Callable[[int], Committed | None]) -> Generator[None, None, Log]:
        """Where a partition of the readings topic begins and ends, and where the group goes on."""
        began = said = looked = time.monotonic()
        while True:
            try:
                found = committed(partition)
                break
            except KafkaTimeoutError:
                if time.monotonic() - looked > ORPHAN_INTERVAL_S:
                    end_orphans(self._settings, self._admin)
                    looked = time.monotonic()
                if time.monotonic() - said > PROGRESS_INTERVAL_S:
                    said = time.monotonic()
                    logger.info(
                        "partition %d: waiting for another forecaster's open transaction to end, for %.0f s so far",
                        partition,
                        said - began,
                    )
            yield
        where = TopicPartition(self._settings.kafka.topics.readings, partition)
        start = self._reader.beginning_offsets([where])[where]
        # The last stable offset: the group never commits beyond it, and "latest" does not wait for what is open.
        return Log(partition, start, self._reader.end_offsets([where])[where], found)

    def _read(self, reading: "_Reading", wanted: set[int]) -> Generator[None, None, None]:
        """Every record of the partitions' changelogs, in order, up to their present ends."""
        topic = self._settings.kafka.topics.state
        ends = {
            where: found.offset
            for where, found in self._admin.list_partition_offsets(
                {TopicPartition(topic, partition): OffsetSpec.LATEST for partition in wanted}
            ).items()
        }
        remaining = [where for where, end in ends.items() if end > 0]
        if not remaining:
            return
        self._reader.assign(remaining)
        self._reader.seek_to_beginning(*remaining)
        total = sum(ends.values())
        said = got = moved = time.monotonic()
        read = 0
        while remaining:
            polled = self._reader.poll(timeout_ms=POLL_MS, max_records=POLL_RECORDS)
            if polled:
                got = moved = time.monotonic()
            elif time.monotonic() - got > ORPHAN_INTERVAL_S:
                # What is left to read lies in, or behind, a transaction that is open.
                end_orphans(self._settings, self._admin)
                got = time.monotonic()
            for where, records in polled.items():
                if where.partition in wanted:
                    reading.take(where.partition, records)
                read += len(records)
            remaining = [where for where in remaining if (self._reader.position(where) or 0) < ends[where]]
            if time.monotonic() - said > PROGRESS_INTERVAL_S:
                said = time.monotonic()
                left = sum(ends[where] - (self._reader.position(where) or 0) for where in remaining)
                logger.info("restoring: %d state records read, offsets %d of %d", read, total - left, total)
                if said - moved > HANGING_S:
                    self._say_what_hangs(remaining)
            yield

    def _say_what_hangs(self, remaining: Sequence[TopicPartition]) -> None:
        logger.error(
            "nothing more of %s can be read, in partitions %s: transactions there have neither been committed nor "
            "aborted. `kafka-transactions.sh find-hanging` names them, and `abort` ends them",
            self._settings.kafka.topics.state,
            ", ".join(f"{where.partition} (offset {self._reader.position(where)})" for where in remaining),
        )

    def _rebuild(
        self, replayer: Replayer, partition: int, known: dict[str, Known | None] | None, position: Position
    ) -> Generator[None, None, Rebuilt]:
        topic = self._settings.kafka.topics.readings
        if known is not None and not known:
            return Rebuilt()
        began = time.monotonic()
        rebuilt = yield from replayer.rebuild(partition, known, position.next, position.held_from)
        if rebuilt.sensors or rebuilt.cold:
            logger.warning(
                "partition %d: the states of %d sensors %s; rebuilt by replaying %d readings of %s in %.1f s",
                partition,
                rebuilt.sensors + len(rebuilt.cold),
                "are not in the changelog" if known is None else "in the changelog are not of this model or unusable",
                rebuilt.readings,
                topic,
                time.monotonic() - began,
            )
        if rebuilt.cold:
            logger.error(
                "partition %d: %d sensors start cold, their recent readings lie too far back or are gone: %s",
                partition,
                len(rebuilt.cold),
                ", ".join(rebuilt.cold[:5]),
            )
        if rebuilt.doubtful:
            logger.error(
                "partition %d: of %d sensors nothing is left from before offset %d, that of the first reading held; if "
                "the first one left of such a sensor was held too, it gets no forecast: %s",
                partition,
                len(rebuilt.doubtful),
                position.held_from,
                ", ".join(rebuilt.doubtful[:5]),
            )
        return rebuilt


class _Reading:
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
    assert dtype.names is not None and dtype.fields is not None
    names = dtype.names[: dtype.names.index("hidden")]
    return np.dtype([(name, dtype.fields[name][0]) for name in names])
