"""A consumer for whole batches: it reads records three times as fast as the client, and prefetches only in a backlog.

kafka-python reads a record through a dozen calls and makes two objects of it, in about 6 µs. ``read_fast`` parses the
same bytes in one loop into one ``FetchedRecord``. The client still fetches, verifies checksums, keeps the positions and
filters aborted transactions. Some input does not stop this consumer, and takes little memory: a header name that is not
UTF-8, a batch that unpacks to gigabytes, and a damaged batch. Such a batch is one record, see ``unreadable_batch``.

kafka-python requests the next records while it returns the previous ones. With little traffic the broker answers at
once with one or two readings. That answer stays in the client until the batch before it is committed, and readings that
arrive in the meantime are fetched only then: at 1,000 readings a second a reading waits for up to two batches before
its own. After ``fetch_late``, a poll that follows a small batch at the end of the log fetches all readings that have
arrived. In a backlog the client prefetches as before, so that fetching and stepping overlap.
"""

import logging
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any, Final, NamedTuple

from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError, KafkaError
from kafka.protocol.consumer import IsolationLevel
from kafka.record.default_records import DefaultRecordBatch

from pipeline.kafka.next_batch import BEYOND_BYTES, ask_next_base
from pipeline.kafka.record_batch import (
    ColumnReader,
    FetchedRecord,
    find_fault,
    read_or_set_aside,
    split_batches,
    unfindable,
)
from pipeline.kafka.record_batch import Headers as Headers  # part of this module's interface
from pipeline.kafka.record_columns import join_records
from pipeline.settings.sections import KafkaSettings

logger = logging.getLogger("streamgru.batch_consumer")

# Readings in a batch; a larger batch lets the client prefetch. A fetch takes some 2 ms, stepping 500 readings 20 ms.
FEW_RECORDS: Final = 500

# Memory of a poll's batches after which it ends; joining the batches copies their records once more. A poll of readings
# takes a few MB; one of highly compressed records could take GB.
POLL_BYTES: Final = 64 * 1024 * 1024


def read_fast(consumer: KafkaConsumer, kafka: KafkaSettings, *, in_columns: bool = False) -> KafkaConsumer:
    """Let ``poll`` return ``FetchedRecord`` objects. Call it before the first poll of a consumer without deserialisers.

    With ``in_columns`` a poll returns ``RecordColumns`` where it can: for code that processes whole batches. The first
    such consumer loads the compiled reader, which takes most of a second.

    A batch that is damaged, or larger in memory than the settings allow, becomes one record with an
    ``UnreadableBatch``. A poll ends after the batch with which its records pass ``POLL_BYTES`` in memory.

    Private: ``_fetcher``, which makes one ``PartitionRecords`` per fetched partition, and whose ``fetched_records``
        calls ``_parse_fetched_data`` and ``_append`` until it has enough records, and extends a list per partition by
        the runs that ``take`` returns; the sizes of a fetch in its ``config``.
    Why: no option of the client replaces the class that reads records, or limits the bytes of a poll.
    Without it: reading takes 6 µs a record instead of 2, a header name that is not UTF-8 or a damaged batch stops the
        consumer, and a compressed batch of 64 KB can take gigabytes.
    Tested with: kafka-python >=3.0.12,<3.1, by comparison with the client's own records.
    Goes when: the client reads as fast, and has options for all of this.
    """
    read_columns = None
    if in_columns:
        from pipeline.kafka import record_kernel  # only here: most commands do without numba

        read_columns = record_kernel.read_columns
    fetcher, limits = consumer._fetcher, _Limits(kafka, read_columns)
    hand_out, append, parse = fetcher.fetched_records, fetcher._append, fetcher._parse_fetched_data

    def next_base(where: TopicPartition, damaged_base: int, size: int) -> int:
        # The broker may return the damaged batch again before the next one, so a fetch must have room for both.
        for option in ("max_partition_fetch_bytes", "fetch_max_bytes"):
            fetcher.config[option] = max(fetcher.config[option], size + BEYOND_BYTES)
        return ask_next_base(consumer, where, damaged_base, size)

    def fetched_records(*args: Any, **options: Any) -> Any:
        limits.polled_bytes = 0
        runs, is_partial = hand_out(*args, **options)
        return {where: join_records(found) for where, found in runs.items()}, is_partial

    def append_within_limits(drained: Any, part: Any, most: int, update_offsets: bool) -> int:
        taken: int = append(drained, part, most, update_offsets)
        return most if limits.is_poll_full else taken

    def parse_and_locate(fetch: Any) -> Any:
        try:
            return parse(fetch)
        except CorruptRecordError as error:  # the broker could not read its log
            why = f"the broker answers {type(error).__name__}"
            raise unfindable(fetch.topic_partition, fetch.fetched_offset, why) from error

    fetcher.PartitionRecords = partial(_FastPartitionRecords, limits, next_base)
    fetcher.fetched_records, fetcher._append = fetched_records, append_within_limits
    fetcher._parse_fetched_data = parse_and_locate
    return consumer


@dataclass
class _Limits:
    """The limits of one consumer, its reader of valid batches, and the memory that its present poll has taken."""

    kafka: KafkaSettings
    read_columns: ColumnReader | None
    polled_bytes: int = 0  # memory of the batches that the poll has opened

    @property
    def is_poll_full(self) -> bool:
        return self.polled_bytes >= POLL_BYTES


def fetch_late(consumer: KafkaConsumer) -> KafkaConsumer:
    """Let ``poll`` prefetch only in a backlog. For a consumer that one thread polls.

    Private: ``_fetcher``, whose ``fetch_records`` calls ``fetched_records`` and then ``send_fetches`` on the polling
        thread; the positions and ends of log in ``_subscription``.
    Why: no option of the client turns prefetching off.
    Without it: forecasts are the same, up to two batches later.
    Tested with: kafka-python >=3.0.12,<3.1, by looking at the fetches in flight.
    Goes when: the client has an option that turns prefetching off while it polls.
    """
    fetcher = consumer._fetcher
    hand_out, send = fetcher.fetched_records, fetcher.send_fetches
    is_caught_up = False

    def is_at_end(where: TopicPartition) -> bool:
        # Without a state the client's own thread has just given up the partition: there is nothing to fetch.
        state = consumer._subscription.assignment.get(where)
        return state is None or state.position is None or state.position.offset >= (state.highwater or 0)

    def fetched_records(*args: Any, **options: Any) -> tuple[Any, bool]:
        nonlocal is_caught_up
        records, is_partial = hand_out(*args, **options)
        few = 0 < sum(map(len, records.values())) < FEW_RECORDS
        is_caught_up = few and all(map(is_at_end, records))
        return records, is_partial

    def send_fetches() -> Any:
        return [] if is_caught_up else send()

    fetcher.fetched_records, fetcher.send_fetches = fetched_records, send_fetches
    return consumer


class _Run(NamedTuple):
    """The records of one batch, and the offset after the batch."""

    records: Sequence[FetchedRecord]
    next_offset: int


class _Taken:
    """The runs of records that one ``take`` returns: as many as its records for ``len``, runs for ``list.extend``."""

    def __init__(self, runs: Sequence[Sequence[FetchedRecord]]) -> None:
        self._runs = runs

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def __iter__(self) -> Iterator[Sequence[FetchedRecord]]:
        return iter(self._runs)


class _FastPartitionRecords(Fetcher.PartitionRecords):  # type: ignore[misc]
    """The fetched batches of a partition. Records are taken batch by batch.

    Private: this class overrides ``take``, ``_maybe_skip_record`` and ``_unpack_records``, whose iterator the client
        keeps in ``record_iterator``; it returns a ``_Run`` per batch. The class maintains the same fields:
        ``next_fetch_offset``, ``leader_epoch``, ``bytes_read``, ``records_read`` and ``aborted_producer_ids``. It calls
        ``drain``, ``_consume_aborted_transactions_up_to``, ``_contains_abort_marker`` and ``_is_batch_aborted``, and
        reads the ``_buffer`` of ``MemoryRecords``.
    Why, Without it, Goes when: see ``read_fast``.
    Tested with: kafka-python >=3.0.12,<3.1.
    """

    def __init__(
        self, limits: _Limits, next_base: Callable[[TopicPartition, int, int], int], *args: Any, **options: Any
    ) -> None:
        self._limits, self._next_base = limits, next_base
        self._run, self._taken = _Run([], -1), 0  # the present batch, and how many of its records were taken
        super().__init__(*args, **options)

    def take(self, n: int | None = None) -> _Taken:
        """The next records, at most ``n``; fewer if they fill the poll."""
        self._maybe_raise_next_inline_exception()
        runs: list[Sequence[FetchedRecord]] = []
        left = sys.maxsize if n is None else n
        try:
            while left > 0:
                run = self._run
                if self._taken == len(run.records):
                    if runs and self._limits.is_poll_full:
                        break
                    following = next(self.record_iterator, None)
                    if following is None:
                        break
                    self._run, self._taken = following, 0
                    continue
                part = run.records[self._taken : self._taken + left]
                runs.append(part)
                left -= len(part)
                self._taken += len(part)
                is_done = self._taken == len(run.records)
                self.next_fetch_offset = run.next_offset if is_done else part[-1].offset + 1
        except KafkaError as error:
            # The iterator has ended with the error. The next poll fetches from the present position again, so that an
            # error that lasts is raised there.
            self.drain()
            if not runs:
                raise
            logger.debug("records before an unreadable batch were returned first: %s", error)
        return _Taken(runs)

    def _maybe_skip_record(self, record: object) -> bool:
        return False  # `_unpack_records` has skipped the records before the position

    def _unpack_records(self, tp: Any, records: Any, *deserializers: Any) -> Iterator[_Run]:
        for content, next_base in split_batches(records._buffer, tp, self.next_fetch_offset):
            batch = DefaultRecordBatch(content)
            fault = find_fault(batch, check_crc=self.check_crcs)
            if fault is None:
                self.leader_epoch = batch.leader_epoch
                if self._is_aborted(batch) or batch.is_control_batch:
                    self.next_fetch_offset = batch.next_offset
                    continue
                last_offset = batch.last_offset
            else:
                if next_base is None or next_base <= batch.base_offset:
                    next_base = self._next_base(tp, batch.base_offset, len(content))
                last_offset = next_base - 1
            limit_bytes = self._limits.kafka.batch_limit_bytes(tp.topic)
            found, memory_bytes = read_or_set_aside(batch, limit_bytes, last_offset, fault, self._limits.read_columns)
            if batch.base_offset < self.fetch_offset:
                found = found[bisect_right(found, self.fetch_offset, key=attrgetter("next_offset")) :]
            self.records_read += len(found)
            self.bytes_read += batch.size_in_bytes
            self._limits.polled_bytes += memory_bytes
            if found:
                yield _Run(found, last_offset + 1)
            else:
                # Compaction may have removed the batch's records, so the next fetch starts after the whole batch.
                self.next_fetch_offset = max(self.next_fetch_offset, last_offset + 1)
        self.drain()

    def _is_aborted(self, batch: Any) -> bool:
        """Whether a batch is part of an aborted transaction."""
        if self.isolation_level != IsolationLevel.READ_COMMITTED or not batch.has_producer_id():
            return False
        self._consume_aborted_transactions_up_to(batch.last_offset)
        if self._contains_abort_marker(batch):
            self.aborted_producer_ids.discard(batch.producer_id)
            return False
        return bool(self._is_batch_aborted(batch))
