"""A consumer for whole batches: it reads records three times as fast as the client, and prefetches only in a backlog.

kafka-python reads a record through a dozen calls and makes two objects of it, in about 6 µs. ``read_fast`` parses the
same bytes in one loop into one ``FetchedRecord``. The client still fetches, decompresses, verifies checksums, keeps the
positions and filters aborted transactions. One difference: a header name that is not UTF-8 does not stop the consumer.

kafka-python requests the next records while it returns the previous ones. With little traffic the broker answers at
once with one or two readings. That answer stays in the client until the batch before it is committed, and readings that
arrive in the meantime are fetched only then: at 1,000 readings a second a reading waits for up to two batches before
its own. After ``fetch_late``, a poll that follows a small batch at the end of the log fetches all readings that have
arrived. In a backlog the client prefetches as before, so that fetching and stepping overlap.
"""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError
from kafka.protocol.consumer import IsolationLevel

# Readings in a batch; a larger batch lets the client prefetch. A fetch takes some 2 ms, stepping 500 readings 20 ms.
FEW_RECORDS: Final = 500

_RECORD_FORMAT: Final = 2  # the only record format of Kafka 4

Headers = list[tuple[str, bytes | None]]


class FetchedRecord(NamedTuple):
    """A fetched record, with key and value as bytes."""

    key: bytes | None
    value: bytes | None
    offset: int
    headers: Headers  # shared by records without headers: do not mutate; names may hold surrogate escapes
    timestamp: int = -1  # ms since the epoch, as the producer or the broker stamped it


def read_fast(consumer: KafkaConsumer) -> KafkaConsumer:
    """Let ``poll`` return ``FetchedRecord`` objects. Call it before the first poll of a consumer without deserialisers.

    Private: ``_fetcher``, which makes one ``PartitionRecords`` per fetched partition.
    Why: no option of the client replaces the class that reads records.
    Without it: reading takes 6 µs a record instead of 2, and a header name that is not UTF-8 stops the consumer.
    Tested with: kafka-python >=3.0.12,<3.1, by comparison with the client's own records.
    Goes when: the client reads as fast, and accepts such header names.
    """
    consumer._fetcher.PartitionRecords = _FastPartitionRecords
    return consumer


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


class _FastPartitionRecords(Fetcher.PartitionRecords):  # type: ignore[misc]
    """The fetched batches of a partition, returned record by record.

    Private: this class overrides ``_unpack_records`` and maintains the same fields: ``next_fetch_offset``,
        ``leader_epoch``, ``bytes_read``, ``records_read`` and ``aborted_producer_ids``. It calls ``drain``,
        ``_consume_aborted_transactions_up_to``, ``_contains_abort_marker`` and ``_is_batch_aborted``.
    Why, Without it, Goes when: see ``read_fast``.
    Tested with: kafka-python >=3.0.12,<3.1.
    """

    def _unpack_records(self, tp: Any, records: Any, *deserializers: Any) -> Iterator[FetchedRecord]:
        batch = None
        for batch in iter(records.next_batch, None):
            if batch.magic != _RECORD_FORMAT or (self.check_crcs and not batch.validate_crc()):
                raise CorruptRecordError(f"a record batch of {tp} at offset {batch.base_offset} is damaged")
            self.leader_epoch = batch.leader_epoch
            if self._is_aborted(batch) or batch.is_control_batch:
                self.next_fetch_offset = batch.next_offset
                continue
            self.records_read += batch.records_count
            self.bytes_read += batch.size_in_bytes
            for record in read_batch(batch):
                self.next_fetch_offset = record.offset + 1
                yield record
        if batch is not None:
            # Compaction may have removed the last records of a batch, so the next fetch starts after the whole batch.
            self.next_fetch_offset = batch.next_offset
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


def read_batch(batch: Any) -> Iterator[FetchedRecord]:
    """The records of a batch.

    Private: ``DefaultRecordBatch._maybe_uncompress``, ``._buffer``, ``._pos``.
    Why, Without it, Goes when: see ``read_fast``.
    Tested with: kafka-python >=3.0.12,<3.1.

    Raises:
        CorruptRecordError: the bytes are not valid records.
    """
    batch._maybe_uncompress()
    data = bytes(memoryview(batch._buffer)[batch._pos :])
    base_offset = batch.base_offset
    by_broker = batch.timestamp_type == batch.LOG_APPEND_TIME
    stamped = batch.max_timestamp if by_broker else batch.first_timestamp
    none: Headers = []
    position = 0
    try:
        for _ in range(batch.records_count):
            length, position = _varint(data, position)
            end = position + length
            position += 1  # record attributes; format 2 defines no attributes
            since = data[position]
            if since < 0x80:
                since = (since >> 1) ^ -(since & 1)
                position += 1
            else:
                since, position = _varint(data, position)
            delta, position = _varint(data, position)
            size, position = _varint(data, position)
            key = value = None
            if size >= 0:
                key = data[position : position + size]
                position += size
            size, position = _varint(data, position)
            if size >= 0:
                value = data[position : position + size]
                position += size
            headers = none
            if data[position]:
                headers, position = _headers(data, position)
            else:
                position += 1
            if position != end:
                raise CorruptRecordError(f"a record near offset {base_offset + delta} does not have its stated length")
            yield FetchedRecord(key, value, base_offset + delta, headers, stamped if by_broker else stamped + since)
        if position != len(data):
            raise CorruptRecordError(f"the record batch at offset {base_offset} does not end with its last record")
    except IndexError as error:
        raise CorruptRecordError(f"the record batch at offset {base_offset} is damaged: {error}") from error


def _headers(data: bytes, position: int) -> tuple[Headers, int]:
    count, position = _varint(data, position)
    headers: Headers = []
    for _ in range(count):
        size, position = _varint(data, position)
        # Brokers accept any bytes as a name. Surrogate escapes keep bytes that are not UTF-8 for a dead letter.
        name = data[position : position + size].decode(errors="surrogateescape")
        position += size
        size, position = _varint(data, position)
        headers.append((name, None if size < 0 else data[position : position + size]))
        position += max(size, 0)
    return headers, position


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A zigzag varint and the position after it."""
    byte = data[position]
    if byte < 0x80:  # most are small
        return (byte >> 1) ^ -(byte & 1), position + 1
    value = byte & 0x7F
    shift = 7
    while True:
        position += 1
        byte = data[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), position + 1
        shift += 7
