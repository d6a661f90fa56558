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
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from kafka import KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaTimeoutError
from kafka.protocol.consumer import OffsetSpec

from pipeline.forecaster.orphans import end_orphans
from pipeline.forecaster.position import Committed, Position
from pipeline.forecaster.readings import Readings
from pipeline.forecaster.replay import POLL_MS, Known, Rebuilt, Replayer
from pipeline.forecaster.resume_point import Log, held_lost, settle_position
from pipeline.forecaster.serving import Serving
from pipeline.forecaster.state_records import StateRecords
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
        states = StateRecords(serving, logs, self._settings, self._owner, distrusted)
        for partition in wanted:
            serving.table.add_partition(partition)
        yield from self._read(states, wanted)
        for partition in sorted(wanted):
            if partition in wanted:
                noted = states.noted.get(partition)
                position = settle_position(self._settings, logs[partition], noted, accept_loss=accept_loss)
                states.settle_at(partition, position.next)
                yield from self._finish(partition, position, states, restored, wanted)
        restored.positions = {partition: restored.positions[partition] for partition in wanted}
        restored.held = {partition: held for partition, held in restored.held.items() if partition in wanted}
        restored.unsaved &= wanted
        restored.seconds = time.monotonic() - began
        return restored

    def _finish(
        self, partition: int, position: Position, states: StateRecords, restored: Restored, wanted: set[int]
    ) -> Generator[None, None, None]:
        """Bring the states of a partition, whose changelog has been read, to its position."""
        serving, log, noted = states.serving, states.logs[partition], states.noted.get(partition)
        replayer = Replayer(self._settings, self._reader, serving, alive=wanted.__contains__)
        restored.positions[partition] = position.next
        lost = held_lost(self._settings, partition, position, log.start)
        restored.held_lost += lost
        is_as_committed = log.committed == Committed(position)
        if lost or not is_as_committed or (noted is not None and noted.next != position.next):
            restored.unsaved.add(partition)
        # An empty changelog does not say which sensors there are: whatever the readings have is rebuilt.
        known = states.foreign[partition] if states.seen[partition] else None
        past: dict[str, Known] = {}
        if is_as_committed and states.seen[partition] and (noted is None or noted.next < position.next):
            restored.unsaved.add(partition)
            caught_up = yield from self._catch_up(replayer, log, noted, position)
            if partition not in wanted:
                return
            if not caught_up:  # whatever readings there are tell the most
                past, known = states.past(partition), None
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

    def _catch_up(
        self, replayer: Replayer, log: Log, noted: Position | None, position: Position
    ) -> Generator[None, None, bool]:
        """Step the readings once more whose states a changelog that lags behind the group has lost.

        Returns:
            False where those readings are not all there, or which they are is not known; then nothing was stepped.
        """
        logger.error(
            "partition %d: the changelog says offset %s, and the group is at %d: states that were committed in "
            "between may be lost; readings are stepped once more",
            log.partition,
            "nothing of an" if noted is None else noted.next,
            position.next,
        )
        if noted is None or noted.read_from < log.start:
            return False
        yield from replayer.catch_up(log.partition, noted.read_from, position.next)
        return True

    def _log(self, partition: int, committed: Callable[[int], Committed | None]) -> Generator[None, None, Log]:
        """Where a partition of the readings topic begins and ends, and where the group goes on."""
        began = said = looked = time.monotonic()
        while True:
            try:
                found = committed(partition)
                break
            except KafkaTimeoutError:
                if time.monotonic() - looked > ORPHAN_INTERVAL_S:
                    end_orphans(self._settings)
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

    def _read(self, states: StateRecords, wanted: set[int]) -> Generator[None, None, None]:
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
                end_orphans(self._settings)
                got = time.monotonic()
            for where, records in polled.items():
                if where.partition in wanted:
                    states.take(where.partition, records)
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
