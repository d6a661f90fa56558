"""Restores states from the compacted state topic, and from the readings where that does not serve.

A partition's states are restored, as of the group's position, before its first reading is processed. The changelog is
read to the end that it has *after* the group's position is known, open transactions included: a committed transaction
whose markers are still being written is waited for. A state is used only if it is whole, of the model version that
serves, of the same settings, and not ahead of the position. Any other sensor is rebuilt by ``StateRebuilder``.

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

from pipeline.forecaster.hanging_transactions import abort_hanging_transactions
from pipeline.forecaster.positions import (
    CommittedPosition,
    PartitionLog,
    Position,
    lost_buffered_offsets,
    resume_position,
)
from pipeline.forecaster.readings import Readings
from pipeline.forecaster.rebuild import POLL_MS, RebuildReport, SensorAnchors, StateRebuilder
from pipeline.forecaster.state_records import StateRecords
from pipeline.forecaster.state_store import ServedModel
from pipeline.settings import Settings

logger = logging.getLogger("streamgru.restore")

# Each poll's records are in memory beside the table: few enough not to show beside it, enough to be worth a round.
POLL_RECORDS: Final = 2_000
# An open transaction that is waited for so long may be a dead forecaster's: a live one's takes milliseconds.
HANGING_CHECK_INTERVAL_S: Final = 0.5
HANGING_S: Final = 30.0  # brokers end what timed out before
PROGRESS_INTERVAL_S: Final = 2.0  # how often a long restore says how far it is


@dataclass
class RestoreReport:
    """What restoring did: positions to go on from, and counts."""

    positions: dict[int, int] = field(default_factory=dict)  # by partition, the offset of the next reading
    sensors: int = 0  # whose states came from the changelog
    rebuilt: RebuildReport = field(default_factory=RebuildReport)
    # Partitions where states were rebuilt or the position is not what is committed: one transaction is due at once,
    # so that the next restart has less to do and begins at the same reading.
    needs_full_write: set[int] = field(default_factory=set)
    buffered: dict[int, Readings] = field(default_factory=dict)  # by partition, the readings that wait for earlier ones
    buffered_lost: int = 0  # offsets deleted by retention where readings were held
    seconds: float = 0.0


class Restorer:
    """Reads back what the forecasters wrote.

    Args:
        reader: a consumer of its own, without a group, of committed records.
        admin: says where a log ends, open transactions included, which a reader of committed records cannot.
        owner: of the positions that count, see ``positions.position_owner``.
    """

    def __init__(self, settings: Settings, reader: KafkaConsumer, admin: KafkaAdminClient, owner: str) -> None:
        self._owner = owner
        self._settings = settings
        self._reader = reader
        self._admin = admin

    def restore(
        self,
        serving: ServedModel,
        wanted: set[int],
        committed: Callable[[int], CommittedPosition | None],
        *,
        accept_loss: bool = False,
        rebuild_only: Mapping[int, Collection[str]] = MappingProxyType({}),
    ) -> Generator[None, None, RestoreReport]:
        """Fill the serving's table for the partitions wanted; yields between polls.

        Args:
            wanted: partitions; the caller may discard one while this runs, and it is left out from then on.
            committed: what the group has committed for a partition, None: nothing. It raises ``KafkaTimeoutError``
                while a transaction that may still change that is open, and is asked again.
            accept_loss: go on from the start of the log where it has lost what was to come next.
            rebuild_only: by partition, sensors whose states are rebuilt whatever the changelog has of them.

        Raises:
            OffsetsLost: see ``positions.position_from_group``.
        """
        began = time.monotonic()
        restored = RestoreReport()
        logs: dict[int, PartitionLog] = {}
        for partition in sorted(wanted):
            logs[partition] = yield from self._partition_log(partition, committed)
        states = StateRecords(serving, logs, self._settings, self._owner, rebuild_only)
        for partition in wanted:
            serving.table.add_partition(partition)
        yield from self._read(states, wanted)
        for partition in sorted(wanted):
            if partition in wanted:
                recorded = states.recorded.get(partition)
                position = resume_position(self._settings, logs[partition], recorded, accept_loss=accept_loss)
                states.load_up_to(partition, position.next)
                yield from self._bring_to_position(partition, position, states, restored, wanted)
        restored.positions = {partition: restored.positions[partition] for partition in wanted}
        restored.buffered = {
            partition: buffered for partition, buffered in restored.buffered.items() if partition in wanted
        }
        restored.needs_full_write &= wanted
        restored.seconds = time.monotonic() - began
        return restored

    def _bring_to_position(
        self, partition: int, position: Position, states: StateRecords, restored: RestoreReport, wanted: set[int]
    ) -> Generator[None, None, None]:
        """Bring the states of a partition, whose changelog has been read, to its position."""
        serving, log, recorded = states.serving, states.logs[partition], states.recorded.get(partition)
        rebuilder = StateRebuilder(self._settings, self._reader, serving, alive=wanted.__contains__)
        restored.positions[partition] = position.next
        lost = lost_buffered_offsets(self._settings, partition, position, log.start)
        restored.buffered_lost += lost
        is_as_committed = log.committed == CommittedPosition(position)
        if lost or not is_as_committed or (recorded is not None and recorded.next != position.next):
            restored.needs_full_write.add(partition)
        # An empty changelog does not say which sensors there are: whatever the readings have is rebuilt.
        known = states.unusable[partition] if states.seen[partition] else None
        past: dict[str, SensorAnchors] = {}
        if is_as_committed and states.seen[partition] and (recorded is None or recorded.next < position.next):
            restored.needs_full_write.add(partition)
            caught_up = yield from self._catch_up(rebuilder, log, recorded, position)
            if partition not in wanted:
                return
            if not caught_up:  # whatever readings there are tell the most
                past, known = states.anchors(partition), None
        rebuilt = yield from self._rebuild(rebuilder, partition, known, position)
        restored.rebuilt += rebuilt
        if rebuilt.sensors or rebuilt.cold:
            restored.needs_full_write.add(partition)
        if partition not in wanted:
            return
        rebuilder.keep_timestamps(partition, past)
        restored.sensors += len(serving.table.partition_rows(partition)[0]) - rebuilt.sensors - len(rebuilt.cold)
        if position.held_from is not None:
            buffered = yield from rebuilder.read_buffered(partition, max(position.held_from, log.start), position.next)
            if len(buffered):
                restored.buffered[partition] = buffered

    def _catch_up(
        self, rebuilder: StateRebuilder, log: PartitionLog, recorded: Position | None, position: Position
    ) -> Generator[None, None, bool]:
        """Step the readings once more whose states a changelog that lags behind the group has lost.

        Returns:
            False where those readings are not all there, or which they are is not known; then nothing was stepped.
        """
        logger.error(
            "partition %d: the changelog says offset %s, and the group is at %d: states that were committed in "
            "between may be lost; readings are stepped once more",
            log.partition,
            "nothing of an" if recorded is None else recorded.next,
            position.next,
        )
        if recorded is None or recorded.read_from < log.start:
            return False
        yield from rebuilder.catch_up(log.partition, recorded.read_from, position.next)
        return True

    def _partition_log(
        self, partition: int, committed: Callable[[int], CommittedPosition | None]
    ) -> Generator[None, None, PartitionLog]:
        """Where a partition of the readings topic begins and ends, and where the group goes on."""
        began = said = looked = time.monotonic()
        while True:
            try:
                found = committed(partition)
                break
            except KafkaTimeoutError:
                if time.monotonic() - looked > HANGING_CHECK_INTERVAL_S:
                    abort_hanging_transactions(self._settings)
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
        return PartitionLog(partition, start, self._reader.end_offsets([where])[where], found)

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
            elif time.monotonic() - got > HANGING_CHECK_INTERVAL_S:
                # What is left to read lies in, or behind, a transaction that is open.
                abort_hanging_transactions(self._settings)
                got = time.monotonic()
            for where, records in polled.items():
                if where.partition in wanted:
                    states.add(where.partition, records)
                read += len(records)
            remaining = [where for where in remaining if (self._reader.position(where) or 0) < ends[where]]
            if time.monotonic() - said > PROGRESS_INTERVAL_S:
                said = time.monotonic()
                left = sum(ends[where] - (self._reader.position(where) or 0) for where in remaining)
                logger.info("restoring: %d state records read, offsets %d of %d", read, total - left, total)
                if said - moved > HANGING_S:
                    self._log_hanging(remaining)
            yield

    def _log_hanging(self, remaining: Sequence[TopicPartition]) -> None:
        logger.error(
            "nothing more of %s can be read, in partitions %s: transactions there have neither been committed nor "
            "aborted. `kafka-transactions.sh find-hanging` names them, and `abort` ends them",
            self._settings.kafka.topics.state,
            ", ".join(f"{where.partition} (offset {self._reader.position(where)})" for where in remaining),
        )

    def _rebuild(
        self,
        rebuilder: StateRebuilder,
        partition: int,
        known: dict[str, SensorAnchors | None] | None,
        position: Position,
    ) -> Generator[None, None, RebuildReport]:
        topic = self._settings.kafka.topics.readings
        if known is not None and not known:
            return RebuildReport()
        began = time.monotonic()
        rebuilt = yield from rebuilder.rebuild(partition, known, position.next, position.held_from)
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
        if rebuilt.maybe_skipped:
            logger.error(
                "partition %d: of %d sensors nothing is left from before offset %d, that of the first reading held; if "
                "the first one left of such a sensor was held too, it gets no forecast: %s",
                partition,
                len(rebuilt.maybe_skipped),
                position.held_from,
                ", ".join(rebuilt.maybe_skipped[:5]),
            )
        return rebuilt
