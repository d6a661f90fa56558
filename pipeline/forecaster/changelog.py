"""Restores states from the compacted state topic, and from the readings where that does not serve.

A partition's states are restored, as of its committed offset, before its first reading is processed. The changelog is
read to the end that it has *after* the committed offset is known, open transactions included: a committed transaction
whose markers are still being written is waited for. A state is used only if it is whole, of the model version that
serves, of the same settings, and not ahead of the group's position. Any other sensor is rebuilt by ``Replayer``.
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
from pipeline.errors import OffsetsLost, StateError
from pipeline.forecaster.orphans import end_orphans
from pipeline.forecaster.position import Position
from pipeline.forecaster.readings import Readings, Record
from pipeline.forecaster.replay import POLL_MS, Known, Rebuilt, Replayer, known_of_state
from pipeline.forecaster.serving import Serving
from pipeline.messages import decode_state
from pipeline.settings import Settings

logger = logging.getLogger("streamgru.changelog")

# Each poll's records are in memory beside the table: few enough not to show beside it, enough to be worth a round.
POLL_RECORDS: Final = 2_000
# An open transaction that is waited for so long may be a dead forecaster's: a live one's takes milliseconds.
ORPHAN_INTERVAL_S: Final = 0.5
PROGRESS_INTERVAL_S: Final = 2.0  # how often a long restore says how far it is


@dataclass(frozen=True)
class Log:
    """Where a partition of the readings topic begins and ends, and where the group goes on."""

    start: int
    end: int
    committed: Position | None


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


def first_position(settings: Settings, partition: int, log: Log, *, accept_loss: bool) -> Position:
    """Where to go on in a partition.

    Raises:
        OffsetsLost: the committed offset lies outside the log, and ``accept_loss`` does not allow for that.
    """
    topic = settings.kafka.topics.readings
    if log.committed is None:
        return Position(log.start if settings.forecaster.start == "earliest" else log.end)
    reached = log.committed.next
    if reached > log.end:
        lost = "the topic was deleted and made anew"
    elif reached < log.start:
        lost = f"{log.start - reached} readings were deleted by retention before they were forecast"
    else:
        return log.committed
    message = (
        f"group {settings.forecaster.group_id} is to go on at offset {reached} of {topic}, partition {partition} "
        f"and the log has offsets {log.start} to {log.end}: {lost}"
    )
    if not accept_loss:
        raise OffsetsLost(f"{message}. To go on from offset {log.start}, start the forecaster with --accept-loss")
    logger.error("%s; going on from offset %d", message, log.start)
    return Position(log.start)


def held_lost(settings: Settings, partition: int, position: Position, start: int) -> int:
    """How many offsets retention has taken from the first held reading on; what was held there gets no forecast.

    It is logged and no reason to stop: one sensor that fell silent may hold a reading for longer than retention lasts.
    """
    if position.held_from is None or position.held_from >= start:
        return 0
    lost = start - position.held_from
    logger.error(
        "partition %d: retention has deleted offsets %d to %d of %s, of which the first and maybe more were readings "
        "held behind a gap; they get no forecast, and the stream goes on. To keep such readings, set a longer "
        "kafka.retention_s",
        partition,
        position.held_from,
        start - 1,
        settings.kafka.topics.readings,
    )
    return lost


class Changelog:
    """Reads back what the forecasters wrote.

    Args:
        reader: a consumer of its own, without a group, of committed records.
        admin: says where a log ends, open transactions included, which a reader of committed records cannot.
    """

    def __init__(self, settings: Settings, reader: KafkaConsumer, admin: KafkaAdminClient) -> None:
        self._settings = settings
        self._reader = reader
        self._admin = admin

    def restore(
        self,
        serving: Serving,
        wanted: set[int],
        committed: Callable[[int], Position | None],
        *,
        accept_loss: bool = False,
        distrusted: Mapping[int, Collection[str]] = MappingProxyType({}),
    ) -> Generator[None, None, Restored]:
        """Fill the serving's table for the partitions wanted; yields between polls.

        Args:
            wanted: partitions; the caller may discard one while this runs, and it is left out from then on.
            committed: the group's position in a partition, None where there is none. It raises ``KafkaTimeoutError``
                while a transaction that may still change it is open, and is asked again.
            accept_loss: go on from the start of the log where it has lost what was to come next.
            distrusted: by partition, sensors whose states are rebuilt whatever the changelog has of them.

        Raises:
            OffsetsLost: see ``first_position``.
        """
        began = time.monotonic()
        restored = Restored()
        held_from: dict[int, int] = {}
        log_starts: dict[int, int] = {}
        for partition in sorted(wanted):
            log = yield from self._log(partition, committed)
            if partition in wanted:
                position = first_position(self._settings, partition, log, accept_loss=accept_loss)
                restored.positions[partition] = position.next
                if position.held_from is not None:
                    held_from[partition] = position.held_from
                    log_starts[partition] = log.start
                lost = held_lost(self._settings, partition, position, log.start)
                restored.held_lost += lost
                if lost or log.committed != position:
                    restored.unsaved.add(partition)
        reading = _Reading(serving, restored.positions, wanted, self._settings, distrusted)
        for partition in wanted:
            serving.table.add_partition(partition)
        yield from self._read(reading, sorted(wanted))
        for partition in sorted(wanted):
            if partition not in wanted:
                continue
            foreign = reading.foreign[partition]
            restored.sensors += sum(sensor not in foreign for sensor in serving.table.partition_rows(partition)[0])
            # An empty changelog does not say which sensors there are: whatever the readings have is rebuilt.
            known = foreign if reading.seen[partition] else None
            position = Position(restored.positions[partition], held_from.get(partition))
            rebuilt = yield from self._rebuild(serving, partition, known, position, wanted)
            restored.rebuilt += rebuilt
            if rebuilt.sensors or rebuilt.cold:
                restored.unsaved.add(partition)
            if partition in held_from and partition in wanted:
                replayer = Replayer(self._settings, self._reader, serving, alive=wanted.__contains__)
                start = max(held_from[partition], log_starts[partition])
                held = yield from replayer.hold(partition, start, restored.positions[partition])
                if len(held):
                    restored.held[partition] = held
        restored.positions = {partition: restored.positions[partition] for partition in wanted}
        restored.held = {partition: held for partition, held in restored.held.items() if partition in wanted}
        restored.unsaved &= wanted
        restored.seconds = time.monotonic() - began
        return restored

    def _log(self, partition: int, committed: Callable[[int], Position | None]) -> Generator[None, None, Log]:
        """Where a partition of the readings topic begins and ends, and where the group goes on."""
        began = said = looked = time.monotonic()
        while True:
            try:
                position = committed(partition)
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
        return Log(start, self._reader.end_offsets([where])[where], position)

    def _read(self, reading: "_Reading", partitions: Sequence[int]) -> Generator[None, None, None]:
        """Every record of the partitions' changelogs, in order, up to their present ends."""
        topic = self._settings.kafka.topics.state
        ends = {
            where: found.offset
            for where, found in self._admin.list_partition_offsets(
                {TopicPartition(topic, partition): OffsetSpec.LATEST for partition in partitions}
            ).items()
        }
        remaining = [where for where, end in ends.items() if end > 0]
        if not remaining:
            return
        self._reader.assign(remaining)
        self._reader.seek_to_beginning(*remaining)
        total = sum(ends.values())
        said = got = time.monotonic()
        read = 0
        while remaining:
            polled = self._reader.poll(timeout_ms=POLL_MS, max_records=POLL_RECORDS)
            if polled:
                got = time.monotonic()
            elif time.monotonic() - got > ORPHAN_INTERVAL_S:
                # What is left to read lies in, or behind, a transaction that is open.
                end_orphans(self._settings, self._admin)
                got = time.monotonic()
            for where, records in polled.items():
                reading.take(where.partition, records)
                read += len(records)
            remaining = [where for where in remaining if (self._reader.position(where) or 0) < ends[where]]
            if time.monotonic() - said > PROGRESS_INTERVAL_S:
                said = time.monotonic()
                left = sum(ends[where] - (self._reader.position(where) or 0) for where in remaining)
                logger.info("restoring: %d state records read, offsets %d of %d", read, total - left, total)
            yield

    def _rebuild(
        self,
        serving: Serving,
        partition: int,
        known: dict[str, Known | None] | None,
        position: Position,
        wanted: set[int],
    ) -> Generator[None, None, Rebuilt]:
        topic = self._settings.kafka.topics.readings
        if known is not None and not known:
            return Rebuilt()
        replayer = Replayer(self._settings, self._reader, serving, alive=wanted.__contains__)
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
    """Sorts state records into usable ones, which go into the table, and others, of which it notes what they tell."""

    def __init__(
        self,
        serving: Serving,
        positions: dict[int, int],
        wanted: set[int],
        settings: Settings,
        distrusted: Mapping[int, Collection[str]],
    ) -> None:
        self._serving = serving
        self._positions = positions
        self._wanted = wanted
        self._settings = settings
        self._distrusted = distrusted
        self._prefix = _prefix(serving.table.dtype)
        self.foreign: dict[int, dict[str, Known | None]] = {partition: {} for partition in positions}
        self.seen: dict[int, bool] = dict.fromkeys(positions, False)

    def take(self, partition: int, records: Iterable[Record]) -> None:
        """Records in the order of the log: a later one of a sensor stands for it."""
        if partition not in self._wanted:
            return
        latest: dict[str, bytes | None] = {}
        for record in records:
            if record.key is None:
                continue
            try:
                latest[record.key.decode()] = record.value
            except UnicodeDecodeError:
                what = record.key[:80]
                logger.error("partition %d of the state topic has a key that is no sensor id: %r", partition, what)
        self.seen[partition] |= bool(latest)
        sensors, values = list(latest), list(latest.values())
        usable = self._keep(partition, sensors, values)
        foreign = self.foreign[partition]
        if foreign:
            for sensor in sensors:
                foreign.pop(sensor, None)
        if len(usable) < len(sensors):
            chosen = set(usable)
            for place, sensor in enumerate(sensors):
                if place not in chosen:
                    foreign[sensor] = self._known(partition, sensor, values[place])

    def _keep(self, partition: int, sensors: Sequence[str], values: Sequence[bytes | None]) -> list[int]:
        """Put the usable ones among the states of some sensors into the table; the places of these."""
        table = self._serving.table
        places, packed = self._serving.tag.take_rows(values, table.dtype.itemsize)
        states = np.frombuffer(packed, table.dtype)
        # What is not before the position is of a future that was undone, by resetting offsets or a topic made anew.
        good = states["offset"] < self._positions[partition]
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
        if tag == self._serving.tag and len(row) != self._serving.table.dtype.itemsize:
            logger.error("the state of sensor %s, partition %d, has another size than the model's", sensor, partition)
        if tag.settings != self._serving.tag.settings or len(row) < self._prefix.itemsize:
            return None
        state = np.frombuffer(row[: self._prefix.itemsize], self._prefix, 1)[0]
        if int(state["offset"]) >= self._positions[partition]:
            return None  # likewise undone
        return known_of_state(state, self._settings)


def _prefix(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The leading fields of a state, which are the same whatever the model: all before the hidden state."""
    assert dtype.names is not None and dtype.fields is not None
    names = dtype.names[: dtype.names.index("hidden")]
    return np.dtype([(name, dtype.fields[name][0]) for name in names])
