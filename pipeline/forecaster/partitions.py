"""The lifecycle of a partition: one record for each, its state, and one table of the allowed transitions.

            assigned by the group
                     |
                     v
    +---------> ASSIGNED <----------------------+
    |                |                          |
    |                | a restore begins         |
    |                v                          |
    |           RESTORING --------------------->|  start over: a transaction was aborted, or a restore
    |            |     |                        |  failed; all partitions are restored again.
    |            |     | the changelog has      |
    |            |     | every state            |  rebuild: a sensor's state is non-finite; this partition
    |            v     |                        |  is restored again.
    |         WRITING -|----------------------->|
    |            |     |                        |
    | full write |     |                        |
    | committed  |     |                        |
    |            v     v                        |
    |            RUNNING -----------------------+
    |
    |    any state ----> LOST   revoked, or this member missed a generation of the group
    |                      |
    +----------------------+    assigned again; after a missed generation, at once

    state      polled  position  rows in the state table
    ASSIGNED   paused  -         -
    RESTORING  paused  -         being filled
    WRITING    paused  yes       complete; not all in the changelog
    RUNNING    yes     yes       complete
    LOST       -       -         -

``needs_full_write`` means that all states of a partition go into one of the next transactions. There are two cases:

- WRITING: the restore rebuilt states or corrected the position, and the changelog still holds the old states. A commit
  of new readings would move the changelog's position past the old states, and the next restore would use them. So the
  partition stays paused until the full write is committed.
- RUNNING, after a model swap: the changelog holds states of the previous model version. No restore uses them for the
  new version. So the partition is polled while it waits for its full write.
"""

import logging
import time
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from kafka import KafkaConsumer, TopicPartition

from pipeline.forecaster.positions import CommittedPosition, Position
from pipeline.forecaster.readings import Readings, Record
from pipeline.forecaster.restore import Restorer, RestoreReport
from pipeline.forecaster.states.store import ServedModel
from pipeline.forecaster.states.table import StateTable
from pipeline.kafka.patches import next_offset

logger = logging.getLogger("streamgru.partitions")

Polled = Mapping[TopicPartition, Sequence[Record]]

# milliseconds that one offset fetch waits for another forecaster's open transaction; then other partitions get a turn
COMMITTED_TIMEOUT_MS: Final = 200
# seconds of one call of ``restore``. A longer slice delays the other partitions; a shorter one spends more of the time
# on empty polls (``loop.BUSY_POLL_MS`` each).
SLICE_S: Final = 0.1
# bytes of full writes in one transaction; far below the limit of a broker
FULL_WRITE_BYTES: Final = 20_000_000
# kafka-python raises these errors for a partition that its I/O thread has just revoked.
_NOT_ASSIGNED: Final = (ValueError, KeyError)


class PartitionState(StrEnum):
    """The states of the diagram above."""

    ASSIGNED = "ASSIGNED"
    RESTORING = "RESTORING"
    WRITING = "WRITING"
    RUNNING = "RUNNING"
    LOST = "LOST"


ASSIGNED, RESTORING, WRITING, RUNNING, LOST = PartitionState

TRANSITIONS: Final[Mapping[PartitionState, frozenset[PartitionState]]] = {
    ASSIGNED: frozenset({RESTORING, LOST}),
    RESTORING: frozenset({WRITING, RUNNING, ASSIGNED, LOST}),
    WRITING: frozenset({RUNNING, ASSIGNED, LOST}),
    RUNNING: frozenset({ASSIGNED, LOST}),
    LOST: frozenset({ASSIGNED}),
}


@dataclass
class Partition:
    """The record of one partition. It is kept in LOST, because the reply to an offset fetch may still arrive."""

    number: int
    state: PartitionState = ASSIGNED
    position: int | None = None  # offset of the next reading to process; in WRITING and RUNNING only
    last_position: int | None = None  # the position before the current restore
    buffered: Readings | None = None  # reorder buffer: readings that wait for earlier readings; None if empty
    needs_full_write: bool = False  # always True in WRITING; True in RUNNING after a model swap
    rebuild_only: set[str] = field(default_factory=set)  # sensors whose recorded states the next restore discards
    is_offset_fetch_pending: bool = False  # no reply yet to the current restore's offset fetch
    is_offset_fetch_stale: bool = False  # no reply yet to an earlier restore's offset fetch: discard the next reply

    def enter(self, state: PartitionState) -> None:
        """Change the state."""
        assert state in TRANSITIONS[self.state], f"partition {self.number}: {self.state} -> {state} is not allowed"
        logger.debug("partition %d: %s -> %s", self.number, self.state, state)
        self.state = state


class Partitions:
    """All partitions of one forecaster. The loop's thread calls every method.

    Args:
        consumer: of the group; ``pipeline.kafka.rebalances`` pauses each partition on assignment.
        topic: of the readings.
    """

    def __init__(self, consumer: KafkaConsumer, topic: str, restorer: Restorer, *, accept_loss: bool) -> None:
        self._consumer = consumer
        self._topic = topic
        self._restorer = restorer
        self._accept_loss = accept_loss
        self._partitions: dict[int, Partition] = {}
        # The current restore, and its partitions: it skips a partition that is removed from the set.
        self._restore: Generator[None, None, RestoreReport] | None = None
        self._wanted: set[int] = set()

    @property
    def are_restored(self) -> bool:
        """Whether no partition waits for its states."""
        return self._restore is None and not self._in(ASSIGNED)

    @property
    def has_any(self) -> bool:
        """Whether the forecaster has a partition, in any state but LOST."""
        return bool(self._in(ASSIGNED, RESTORING, WRITING, RUNNING))

    @property
    def need_full_write(self) -> bool:
        """Whether a partition needs a full write."""
        return any(partition.needs_full_write for partition in self._in(WRITING, RUNNING))

    @property
    def positions(self) -> dict[int, int]:
        """Partition -> offset of the next reading; WRITING and RUNNING partitions."""
        return {each.number: each.position for each in self._in(WRITING, RUNNING) if each.position is not None}

    @property
    def last_positions(self) -> dict[int, int]:
        """``positions``, and the previous positions of partitions that wait for a restore."""
        before = {each.number: each.last_position for each in self._in() if each.last_position is not None}
        return before | self.positions

    @property
    def buffered(self) -> dict[int, Readings]:
        """Partition -> reorder buffer; partitions without buffered readings are left out."""
        return {each.number: each.buffered for each in self._in() if each.buffered is not None}

    def select(self, polled: Polled) -> Polled:
        """The records of partitions that have a position."""
        positions = self.positions
        return {where: records for where, records in polled.items() if where.partition in positions}

    def read_up_to(self) -> dict[int, int]:
        """Partition -> next offset that the client reads, past transaction markers, which ``poll`` never returns."""
        found = self.positions
        for number, position in found.items():
            found[number] = max(position, next_offset(self._consumer, self._where(number)) or 0)
        return found

    def read_again(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Poll the records from these offsets on once more."""
        for where, offset in offsets.items():
            with suppress(*_NOT_ASSIGNED):  # the next turn gets the revocation as an event
                self._consumer.seek(where, offset)

    # --- events -------------------------------------------------------------------------------------------------------

    def assign(self, numbers: Iterable[int], serving: ServedModel) -> None:
        """Enter ASSIGNED: the group assigned partitions."""
        for number in numbers:
            partition = self._partitions.get(number)
            if partition is None:
                self._partitions[number] = Partition(number)
                continue
            if partition.state is not LOST:  # the client did not report the revocation in between
                self._discard(partition, LOST, serving)
            partition.enter(ASSIGNED)

    def revoke(self, numbers: Iterable[int], serving: ServedModel) -> None:
        """Enter LOST: the group revoked partitions."""
        for number in numbers:
            partition = self._partitions.get(number)
            if partition is not None and partition.state is not LOST:
                self._discard(partition, LOST, serving)
                partition.last_position = None
                partition.rebuild_only = set()

    def miss_generation(self, serving: ServedModel) -> None:
        """Restore all partitions: another member may have had them in a generation that this member missed."""
        self._restore = None
        for partition in self._in(ASSIGNED, RESTORING, WRITING, RUNNING):
            self._discard(partition, LOST, serving)
            partition.enter(ASSIGNED)

    def start_over(self, serving: ServedModel) -> None:
        """Restore all partitions: the states in memory may differ from the durable ones."""
        self._restore = None
        for partition in self._in(RESTORING, WRITING, RUNNING):
            self._discard(partition, ASSIGNED, serving)

    def rebuild(self, non_finite: Mapping[int, Iterable[str]], serving: ServedModel) -> None:
        """Restore partitions and rebuild their non-finite sensors from readings; other partitions keep running."""
        for number, sensors in non_finite.items():
            partition = self._partitions[number]
            partition.rebuild_only.update(sensors)
            self._discard(partition, ASSIGNED, serving)

    def restore(self, serving: ServedModel) -> RestoreReport | None:
        """Restore the ASSIGNED partitions for one slice of time; return the report once the restore is complete.

        The first call begins a restore and reads nothing.

        Raises:
            OffsetsLost: the next readings were deleted or lost.
            kafka.errors.KafkaError: the restore failed; call ``start_over`` before the next call.
        """
        until = time.monotonic() + SLICE_S
        if self._restore is None:
            if not self._in(ASSIGNED):
                return None
            self._restore, until = self._begin_restore(serving), 0.0
        try:
            while True:
                next(self._restore)
                if time.monotonic() >= until:
                    return None
        except StopIteration as done:
            self._restore = None
            restored: RestoreReport = done.value
            self._finish_restore(restored, serving)
            return restored

    def request_full_write(self) -> None:
        """Write all states of all partitions once: the model was swapped."""
        for partition in self._in(WRITING, RUNNING):
            partition.needs_full_write = True

    def next_full_writes(self, table: StateTable) -> dict[int, int]:
        """Partition -> position, for the next transaction's full writes: at least one, up to ``FULL_WRITE_BYTES``."""
        chosen: dict[int, int] = {}
        size = 0
        for number, position in sorted(self.positions.items()):
            if self._partitions[number].needs_full_write:
                size += len(table.partition_rows(number)[0]) * table.dtype.itemsize
                if chosen and size > FULL_WRITE_BYTES:
                    break
                chosen[number] = position
        return chosen

    def commit(
        self, positions: Mapping[int, Position], buffered: Mapping[int, Readings], full_writes: Collection[int]
    ) -> None:
        """Apply a transaction that was committed.

        Args:
            positions: partition -> position in the transaction.
            buffered: partition -> reorder buffer after the transaction, for all partitions.
            full_writes: partitions with a full write in the transaction.
        """
        for number, position in positions.items():
            self._partitions[number].position = position.next
        for partition in self._in(WRITING, RUNNING):
            partition.buffered = buffered.get(partition.number)
            if partition.number in full_writes:
                partition.needs_full_write = False
                if partition.state is WRITING:
                    partition.enter(RUNNING)
                    with suppress(*_NOT_ASSIGNED):
                        self._consumer.resume(self._where(partition.number))

    # --- inside -------------------------------------------------------------------------------------------------------

    def _in(self, *states: PartitionState) -> list[Partition]:
        """The partitions in the given states; all partitions if no state is given."""
        return [each for each in list(self._partitions.values()) if not states or each.state in states]

    def _where(self, number: int) -> TopicPartition:
        return TopicPartition(self._topic, number)

    def _discard(self, partition: Partition, state: PartitionState, serving: ServedModel) -> None:
        """Discard the state rows, the position and the reorder buffer of a partition."""
        with suppress(*_NOT_ASSIGNED):
            self._consumer.pause(self._where(partition.number))
        serving.table.drop_partition(partition.number)
        self._wanted.discard(partition.number)
        if partition.position is not None:
            partition.last_position = partition.position
        partition.position = partition.buffered = None
        partition.needs_full_write = False
        partition.enter(state)

    def _begin_restore(self, serving: ServedModel) -> Generator[None, None, RestoreReport]:
        assigned = self._in(ASSIGNED)
        self._wanted = {partition.number for partition in assigned}
        logger.info("partitions assigned: %s; restoring their states", listed(self._wanted))
        for partition in assigned:
            partition.enter(RESTORING)
            partition.is_offset_fetch_stale |= partition.is_offset_fetch_pending
            partition.is_offset_fetch_pending = False
        return self._restorer.restore(
            serving,
            self._wanted,
            self._fetch_offset,
            accept_loss=self._accept_loss,
            rebuild_only={partition.number: partition.rebuild_only for partition in assigned},
        )

    def _finish_restore(self, restored: RestoreReport, serving: ServedModel) -> None:
        for number, position in restored.positions.items():
            partition, where = self._partitions[number], self._where(number)
            partition.rebuild_only = set()
            needs_full_write = number in restored.needs_full_write
            try:
                self._consumer.seek(where, position)
                if not needs_full_write:
                    self._consumer.resume(where)
            except _NOT_ASSIGNED:  # the next turn gets the revocation as an event
                self._discard(partition, LOST, serving)
                continue
            partition.position, partition.buffered = position, restored.buffered.get(number)
            partition.needs_full_write = needs_full_write
            partition.enter(WRITING if needs_full_write else RUNNING)
        logger.info(
            "partitions %s are served: %d states restored, %d rebuilt from readings, %d cold, in %.2f s",
            listed(restored.positions),
            restored.sensors,
            restored.rebuilt.sensors,
            len(restored.rebuilt.cold),
            restored.seconds,
        )

    def _fetch_offset(self, number: int) -> CommittedPosition | None:
        """The group's committed position, from an offset fetch that this restore sent.

        kafka-python 3.0.12 keeps an offset fetch that timed out, even while another member has the partition. It
        returns the late reply to the next caller. So this method waits for the reply to an earlier restore's fetch,
        and discards it.
        """
        partition = self._partitions[number]
        if partition.is_offset_fetch_stale:
            self._committed(number)
            partition.is_offset_fetch_stale = False
        partition.is_offset_fetch_pending = True
        committed = self._committed(number)
        partition.is_offset_fetch_pending = False
        return committed

    def _committed(self, number: int) -> CommittedPosition | None:
        found = self._consumer.committed(self._where(number), metadata=True, timeout_ms=COMMITTED_TIMEOUT_MS)
        return None if found is None else CommittedPosition.of(found)


def listed(partitions: Collection[int]) -> str:
    """Partition numbers as text for a message."""
    return ", ".join(map(str, sorted(partitions))) or "none"
