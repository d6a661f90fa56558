"""Restores the states of partitions from the changelog, and rebuilds missing states from readings.

The steps for each partition, before its first reading is processed:

1. Fetch the group's committed offset. If a transaction that may change it is open, wait.
2. Look up the end of the changelog, past open transactions, and read the changelog up to it.
3. Load the usable states. A usable state is undamaged and finite. The serving model version made it under the present
   settings, and it is not ahead of the position to resume from.
4. Compare the changelog's position with the committed offset (``positions.resume_position``). They differ only if
   brokers lost one of the two, or if a user reset the offset. If the changelog's position is lower, step the readings
   in between again.
5. Rebuild every other sensor's state from readings (``StateRebuilder``), and read the buffered readings again.
"""

import logging
import time
from collections.abc import Callable, Collection, Generator, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
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
from pipeline.forecaster.states.records import StateRecords
from pipeline.forecaster.states.store import ServedModel
from pipeline.reading_times import time_rules_from
from pipeline.settings import Settings

logger = logging.getLogger("streamgru.restore")

# records of one poll; they take little memory compared with the state table, and larger polls are not faster
POLL_RECORDS: Final = 2_000
# seconds between attempts to abort hanging transactions during a restore; a live forecaster commits within milliseconds
HANGING_CHECK_INTERVAL_S: Final = 0.5
HANGING_S: Final = 30.0  # seconds until a blocked restore logs an error; brokers end a transaction before that
PROGRESS_INTERVAL_S: Final = 2.0  # seconds between two log lines of a long restore


@dataclass
class RestoreReport:
    """The result of a restore: positions, reorder buffers and counts."""

    positions: dict[int, int] = field(default_factory=dict)  # partition -> offset of the next reading
    sensors: int = 0  # sensors with a state from the changelog
    rebuilt: RebuildReport = field(default_factory=RebuildReport)
    # Partitions whose states were rebuilt or whose position was corrected. All their states go into the next
    # transaction, so that another restart finds them and has the same position.
    needs_full_write: set[int] = field(default_factory=set)
    buffered: dict[int, Readings] = field(default_factory=dict)  # partition -> reorder buffer, if not empty
    buffered_lost: int = 0  # offsets that retention deleted from the first buffered reading on
    seconds: float = 0.0


class Restorer:
    """Restores partitions.

    Args:
        reader: a consumer of committed records, without a group, that nothing else uses.
        admin: finds the end of a log that has open transactions; ``reader`` stops at the first of them.
        owner: owner of the positions that count, see ``positions.position_owner``.
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
        accept_loss: bool,
        rebuild_only: Mapping[int, Collection[str]],
    ) -> Generator[None, None, RestoreReport]:
        """Fill the state table for the wanted partitions; yields between polls.

        Args:
            wanted: partitions; the restore skips a partition that the caller removes from the set.
            committed: returns the group's committed position of a partition, or None. It raises ``KafkaTimeoutError``
                while a transaction that may change it is open; the restore then calls it again.
            accept_loss: continue from the start of the log if the next readings were deleted or lost.
            rebuild_only: partition -> sensors whose states are rebuilt although the changelog has them.

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
        restored.seconds = time.monotonic() - began
        return restored

    def _bring_to_position(
        self, partition: int, position: Position, states: StateRecords, restored: RestoreReport, wanted: set[int]
    ) -> Generator[None, None, None]:
        """Bring the loaded states of a partition to its position, and rebuild the missing ones."""
        serving, log, recorded = states.serving, states.logs[partition], states.recorded.get(partition)
        rebuilder = StateRebuilder(self._settings, self._reader, serving, alive=wanted.__contains__)
        restored.positions[partition] = position.next
        self._set_time_rules(partition, position, states)
        lost = lost_buffered_offsets(self._settings, partition, position, log.start)
        restored.buffered_lost += lost
        is_as_committed = log.committed == CommittedPosition(position)
        if lost or not is_as_committed or (recorded is not None and recorded.next != position.next):
            restored.needs_full_write.add(partition)
        # An empty changelog names no sensors: rebuild every sensor that has readings.
        known = states.unusable[partition] if states.seen[partition] else None
        past: dict[str, SensorAnchors] = {}
        if partition in states.damaged:
            # The last states of some sensors cannot be read, and nothing says of which: rebuild every sensor.
            restored.needs_full_write.add(partition)
            past, known = states.anchors(partition), None
        if is_as_committed and states.seen[partition] and (recorded is None or recorded.next < position.next):
            restored.needs_full_write.add(partition)
            if recorded is None or recorded.read_from < log.start:
                logger.error(
                    "partition %d: the changelog has no position, or readings after its position were deleted; the "
                    "committed offset is %d. Rebuilding the states from the readings that are left",
                    partition,
                    position.next,
                )
                # The changelog may not name all sensors: rebuild every sensor that has readings.
                past, known = states.anchors(partition), None
            elif partition not in states.damaged:
                logger.error(
                    "partition %d: the changelog ends at offset %d, before the committed offset %d; stepping the "
                    "readings in between again",
                    partition,
                    recorded.next,
                    position.next,
                )
                yield from rebuilder.catch_up(partition, recorded.read_from, position.next)
        if partition not in wanted:
            return
        admitted = {*states.anchors(partition), *states.unusable[partition]}
        rebuilt = yield from self._rebuild(rebuilder, partition, known, position, admitted)
        restored.rebuilt += rebuilt
        if rebuilt.sensors or rebuilt.cold:
            restored.needs_full_write.add(partition)
        if partition not in wanted:
            return
        rebuilder.keep_timestamps(partition, past)
        self._warn_of_silent_sensors(partition, serving)
        restored.sensors += len(serving.table.partition_rows(partition)[0]) - rebuilt.sensors - len(rebuilt.cold)
        if position.held_from is not None:
            buffered = yield from rebuilder.read_buffered(partition, max(position.held_from, log.start), position.next)
            if len(buffered):
                restored.buffered[partition] = buffered

    def _set_time_rules(self, partition: int, position: Position, states: StateRecords) -> None:
        """Let the time rule of the settings apply to the readings that no forecaster has processed yet."""
        log, recorded = states.logs[partition], states.recorded.get(partition)
        processed = 0 if recorded is None and log.committed is None else position.next
        if recorded is not None:
            processed = max(processed, recorded.next)  # a user may have reset the offset to process readings again
        known = states.time_rules.get(partition, ())
        states.serving.time_rules[partition] = rules = time_rules_from(known, self._settings, processed)
        if rules != known and processed:
            logger.info("partition %d: the time rule of the settings applies from offset %d on", partition, processed)

    def _warn_of_silent_sensors(self, partition: int, serving: ServedModel) -> None:
        """Name the sensors whose readings are late, because a reading of the future was accepted before the rule."""
        sensors, rows = serving.table.partition_rows(partition)
        latest_us = time.time_ns() // 1_000 + round(self._settings.times.max_ahead_s * 1_000_000)
        silent = [sensors[place] for place in np.flatnonzero(serving.table.field("last_us", rows) > latest_us)]
        if silent:
            logger.warning(
                "partition %d: an implausible time in the future was accepted from %d sensors, so that their readings "
                "are late: %s. To let them continue, set times.all_readings = true for all forecasters",
                partition,
                len(silent),
                ", ".join(silent[:5]),
            )

    def _partition_log(
        self, partition: int, committed: Callable[[int], CommittedPosition | None]
    ) -> Generator[None, None, PartitionLog]:
        """The log of a partition of the readings topic, with the group's committed position."""
        began = logged_at = checked_at = time.monotonic()
        while True:
            try:
                found = committed(partition)
                break
            except KafkaTimeoutError:
                if time.monotonic() - checked_at > HANGING_CHECK_INTERVAL_S:
                    abort_hanging_transactions(self._settings)
                    checked_at = time.monotonic()
                if time.monotonic() - logged_at > PROGRESS_INTERVAL_S:
                    logged_at = time.monotonic()
                    logger.info(
                        "partition %d: waiting for another forecaster's open transaction to end, for %.0f s so far",
                        partition,
                        logged_at - began,
                    )
            yield
        where = TopicPartition(self._settings.kafka.topics.readings, partition)
        start = self._reader.beginning_offsets([where])[where]
        # `end_offsets` of a read_committed consumer is the last stable offset, and no committed offset exceeds it. A
        # forecaster with start "latest" begins at this offset, and does not wait for open transactions of publishers.
        return PartitionLog(partition, start, self._reader.end_offsets([where])[where], found)

    def _read(self, states: StateRecords, wanted: set[int]) -> Generator[None, None, None]:
        """Add all records of the partitions' changelogs, in order, up to their present ends."""
        topic = self._settings.kafka.topics.state
        changelogs = {TopicPartition(topic, partition): OffsetSpec.LATEST for partition in wanted}
        ends = {where: found.offset for where, found in self._admin.list_partition_offsets(changelogs).items()}
        remaining = [where for where, end in ends.items() if end > 0]
        if not remaining:
            return
        self._reader.assign(remaining)
        self._reader.seek_to_beginning(*remaining)
        logged_at = checked_at = read_at = time.monotonic()
        read = 0
        while remaining:
            polled = self._reader.poll(timeout_ms=POLL_MS, max_records=POLL_RECORDS)
            if polled:
                checked_at = read_at = time.monotonic()
            elif time.monotonic() - checked_at > HANGING_CHECK_INTERVAL_S:
                # An open transaction blocks the remaining records.
                abort_hanging_transactions(self._settings)
                checked_at = time.monotonic()
            for where, records in polled.items():
                if where.partition in wanted:
                    states.add(where.partition, records)
                read += len(records)
            offsets = {where: self._reader.position(where) or 0 for where in remaining}
            remaining = [where for where in remaining if offsets[where] < ends[where]]
            if time.monotonic() - logged_at > PROGRESS_INTERVAL_S:
                logged_at = time.monotonic()
                left = sum(ends[where] - offsets[where] for where in remaining)
                logger.info("restoring: %d state records read, %d of %d offsets left", read, left, sum(ends.values()))
                if logged_at - read_at > HANGING_S:
                    logger.error(
                        "open transactions block the remaining records of %s, in partitions %s. Find them by "
                        "`kafka-transactions.sh find-hanging`, and end each by its command `abort`",
                        topic,
                        ", ".join(f"{where.partition} (offset {offsets[where]})" for where in remaining),
                    )
            yield

    def _rebuild(
        self,
        rebuilder: StateRebuilder,
        partition: int,
        known: dict[str, SensorAnchors | None] | None,
        position: Position,
        admitted: Collection[str],
    ) -> Generator[None, None, RebuildReport]:
        if known is not None and not known:
            return RebuildReport()
        began = time.monotonic()
        rebuilt = yield from rebuilder.rebuild(partition, known, position.next, position.held_from, admitted)
        if rebuilt.sensors or rebuilt.cold:
            logger.warning(
                "partition %d: the changelog has no usable states of %d sensors; rebuilt by replaying %d readings of "
                "%s in %.1f s",
                partition,
                rebuilt.sensors + len(rebuilt.cold),
                rebuilt.readings,
                self._settings.kafka.topics.readings,
                time.monotonic() - began,
            )
        if rebuilt.cold:
            logger.error(
                "partition %d: %d sensors start cold, because their recent readings are too far back or deleted: %s",
                partition,
                len(rebuilt.cold),
                ", ".join(rebuilt.cold[:5]),
            )
        if rebuilt.maybe_skipped:
            logger.error(
                "partition %d: %d sensors have no readings left before offset %d, the first buffered reading: "
                "retention deleted their older readings. Whether the first one left was forecast before the crash is "
                "unknown; it counts as forecast, so it may have no forecast: %s",
                partition,
                len(rebuilt.maybe_skipped),
                position.held_from,
                ", ".join(rebuilt.maybe_skipped[:5]),
            )
        return rebuilt
