"""Appends whole micro-batches to a kafka-python producer, six times as fast as calling ``send`` once per record.

``send`` costs 15-20 µs a record: a future, two locks, several copies, a varint byte by byte. ``BatchAppender`` writes
the same bytes in about 1 µs, straight into the producer's own open broker batch, and takes one future per broker batch.
Compiled code writes records in columns (``byte_strings.ByteStrings``) in some tenths of a microsecond. The client still
does sequence numbers, transactions, retries, expiry, flush and close; ``send`` may be called too.

Private parts of kafka-python that this module touches:

- ``KafkaProducer._closed``, ``._accumulator``, ``._sender`` (``wakeup``, ``_can_split``), ``._transaction_manager``
- ``RecordAccumulator._tp_lock``, ``._batches``, ``._incomplete``, ``._appends_in_progress``, ``._closed``
- ``ProducerBatch`` (``records``, ``produce_future``, ``last_append``, ``max_record_size``)
- ``MemoryRecordsBuilder._builder``, ``._next_offset``, ``._closed``
- ``DefaultRecordBatchBuilder._buffer``, ``._first_timestamp``, ``._max_timestamp``, ``._last_offset``,
  ``._num_records``

Why: the public API takes one record per call.
Without it: ``send`` takes 30 to 40 µs for a forecast and its state, and limits a forecaster's throughput.
Tested with: kafka-python >=3.0.12,<3.1, by comparison of its bytes with those of ``send``.
Goes when: the client appends many records in one call.
"""

import time
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from kafka import KafkaProducer, TopicPartition
from kafka.errors import IllegalStateError
from kafka.producer.future import FutureRecordMetadata
from kafka.producer.producer_batch import ProducerBatch
from kafka.record.memory_records import MemoryRecordsBuilder

from pipeline.errors import KafkaError
from pipeline.kafka.byte_strings import ByteStrings
from pipeline.kafka.compression import use_fast_lz4

# Largest number of bytes that a record with a batch of its own takes beside its key, value and headers: lengths,
# attributes, time and offset of the record, as the client reserves them, and the header of the batch.
_RECORD_OVERHEAD_BYTES: Final = 21 + 61
_NULL: Final = b"\x01"  # the length -1
_RECORD_FORMAT: Final = 2

NO_HEADERS: Final = b"\x00"


def encode_varint(value: int) -> bytes:
    """A zigzag varint, as Kafka writes lengths, offsets and times."""
    rest = (value << 1) ^ (value >> 63)
    encoded = bytearray()
    while rest > 0x7F:
        encoded.append(0x80 | (rest & 0x7F))
        rest >>= 7
    encoded.append(rest)
    return bytes(encoded)


class Varints(dict[int, bytes]):
    """A cache of encoded lengths and offsets; a stream has few different ones."""

    def __missing__(self, value: int) -> bytes:
        encoded = self[value] = encode_varint(value)
        return encoded


def encode_headers(headers: Iterable[tuple[str, bytes | None]]) -> bytes:
    """The header block of a record for ``BatchAppender.append``; encode it once and use it for many records.

    Names may hold surrogate escapes for bytes that are not UTF-8.
    """
    encoded = [
        encode_varint(len(name)) + name + (_NULL if value is None else encode_varint(len(value)) + value)
        for name, value in ((name.encode(errors="surrogateescape"), value) for name, value in headers)
    ]
    return encode_varint(len(encoded)) + b"".join(encoded)


def check_delivered(futures: Iterable[FutureRecordMetadata]) -> None:
    """Raise the first failure among the futures of a flushed producer.

    Call it between flush and commit. A flush does not report failures, so the transaction would commit without the
    records of a batch that expired.

    Raises:
        kafka.errors.KafkaError: a batch failed, or is not acknowledged yet.
    """
    for future in futures:
        if not future.is_done:
            raise IllegalStateError("a record batch is not acknowledged after the flush")
        if future.failed():
            raise future.exception


class _Encoded(NamedTuple):
    """Records of one broker batch."""

    data: bytes | memoryview
    record_count: int
    largest: int  # bytes of the largest record


class _Records(Protocol):
    """The n records of one ``append``, at least one."""

    timestamp_ms: int

    def __len__(self) -> int:
        """The number of records."""

    def largest(self) -> tuple[int, int]:
        """The place of a record with the most bytes of key, value and headers, and these bytes."""

    def key(self, place: int) -> bytes | None:
        """The key of a record."""

    def encode(self, start: int, first_offset: int, since_first_ms: int, room: int, at_least_one: bool) -> _Encoded:
        """The bytes of the records from ``start`` on that fit into ``room``."""


class _ListedRecords:
    """Records in sequences of the same length, or with one header block for all.

    Args:
        varints: a cache.
    """

    def __init__(
        self,
        keys: Sequence[bytes | None],
        values: Sequence[bytes | None],
        headers: Sequence[bytes] | bytes,
        timestamp_ms: int,
        varints: Varints,
    ) -> None:
        self._keys, self._values, self._headers = keys, values, headers
        self.timestamp_ms = timestamp_ms
        self._varints = varints

    def __len__(self) -> int:
        return len(self._keys)

    def largest(self) -> tuple[int, int]:
        sizes = [
            len(key or b"") + len(value or b"") + len(block)
            for key, value, block in zip(self._keys, self._values, self._blocks(0), strict=False)
        ]
        size = max(sizes)
        return sizes.index(size), size

    def key(self, place: int) -> bytes | None:
        return self._keys[place]

    def encode(self, start: int, first_offset: int, since_first_ms: int, room: int, at_least_one: bool) -> _Encoded:
        varints = self._varints
        prefix = b"\x00" + encode_varint(since_first_ms)  # no attributes
        prefix_size = len(prefix)
        pieces: list[bytes] = []
        size = largest = 0
        offset = first_offset
        for key, value, block in zip(self._keys[start:], self._values[start:], self._blocks(start), strict=False):
            at = varints[offset]
            if key is None:
                key, key_length = b"", _NULL
            else:
                key_length = varints[len(key)]
            if value is None:
                value, value_length = b"", _NULL
            else:
                value_length = varints[len(value)]
            length = prefix_size + len(at) + len(key_length) + len(key) + len(value_length) + len(value) + len(block)
            record_length = varints[length]
            length += len(record_length)
            if size + length > room and not (at_least_one and offset == first_offset):
                break
            pieces += (record_length, prefix, at, key_length, key, value_length, value, block)
            size += length
            if length > largest:
                largest = length
            offset += 1
        return _Encoded(b"".join(pieces), offset - first_offset, largest)

    def _blocks(self, start: int) -> Iterable[bytes]:
        return repeat(self._headers) if isinstance(self._headers, bytes) else self._headers[start:]


class _ColumnRecords:
    """Records in columns; compiled code writes them.

    Args:
        batch_bytes: largest broker batch of more than one record.
    """

    def __init__(
        self, keys: ByteStrings, values: ByteStrings, headers: ByteStrings, timestamp_ms: int, batch_bytes: int
    ) -> None:
        from pipeline.kafka.framing_kernel import frame_records  # numba loads slowly, and `publish` does without

        self._keys = keys
        self._frame: Any = frame_records
        self._columns = [part for each in (keys, values, headers) for part in (each.data, each.starts, each.ends)]
        self.timestamp_ms = timestamp_ms
        sizes = keys.sizes + values.sizes + headers.sizes
        place = int(sizes.argmax())
        self._largest = place, int(sizes[place])
        most_bytes = self._largest[1] + _RECORD_OVERHEAD_BYTES  # of a record
        self._out = np.empty(min(len(sizes) * most_bytes, max(batch_bytes, most_bytes)), np.uint8)

    def __len__(self) -> int:
        return len(self._keys)

    def largest(self) -> tuple[int, int]:
        return self._largest

    def key(self, place: int) -> bytes:
        return self._keys[place]

    def encode(self, start: int, first_offset: int, since_first_ms: int, room: int, at_least_one: bool) -> _Encoded:
        size, count, largest = self._frame(
            *self._columns, start, first_offset, since_first_ms, room, at_least_one, self._out
        )
        return _Encoded(self._out[:size].data, count, largest)


class BatchAppender:
    """Appends many records at once to the batches that a producer sends next.

    One per producer. Safe to call from several threads, as ``send`` is. With a transactional producer, call it between
    ``begin_transaction`` and ``commit_transaction``; then flush, ``check_delivered``, and only then commit.
    """

    def __init__(self, producer: KafkaProducer) -> None:
        self._producer = producer
        self._accumulator = producer._accumulator
        self._sender = producer._sender
        self._transactions = producer._transaction_manager
        self._is_transactional = self._transactions is not None and self._transactions.is_transactional()
        self._partitions: dict[str, frozenset[int]] = {}
        self._varints = Varints()
        # The client splits a batch that is too large for the broker, and moves each record's future to its half. Our
        # one future cannot follow both halves, so such a batch fails instead.
        self._sender._can_split = lambda batch, error: False

    def append(
        self,
        topic: str,
        partition: int,
        keys: Sequence[bytes | None],
        values: Sequence[bytes | None],
        headers: Sequence[bytes] | bytes = NO_HEADERS,
        timestamp_ms: int | None = None,
        *,
        wake: bool = True,
    ) -> list[FutureRecordMetadata]:
        """Append records in their order, and return one future per broker batch that received any of them.

        Args:
            topic: must exist; the first use fetches its metadata.
            partition: must exist.
            keys: None is a null key. Columns are written by compiled code if the values are columns, too.
            values: one per key; None is a tombstone.
            headers: from ``encode_headers``: one block for all records, or one per key, in columns if the keys are.
            timestamp_ms: of all records; by default now.
            wake: whether the producer's thread sends the records at once. If not, they wait for the next flush, so that
                the appends of a transaction share requests.

        Raises:
            KafkaError: a record exceeds the producer's size limit; no record was appended.
            kafka.errors.KafkaError: as ``send`` raises it.
        """
        if len(values) != len(keys) or (not isinstance(headers, bytes) and len(headers) != len(keys)):
            raise ValueError(f"{len(keys)} keys, {len(values)} values and their headers differ in number")
        if self._producer._closed:
            raise IllegalStateError("the producer is closed")
        if not keys:
            return []
        now_ms = int(time.time() * 1_000) if timestamp_ms is None else timestamp_ms
        records = self._records(keys, values, headers, now_ms)
        where = TopicPartition(topic, partition)
        self._check_partition(where)
        self._check_sizes(where, records)
        if self._is_transactional:
            self._transactions.maybe_add_partition_to_transaction(where)
        # The count makes a forced close of the producer wait for this append before it fails the queued batches.
        self._accumulator._appends_in_progress.increment()
        try:
            with self._accumulator._tp_lock(where):
                if self._accumulator._closed:
                    raise IllegalStateError("the producer is closed")
                futures = self._append_locked(where, records)
        finally:
            self._accumulator._appends_in_progress.decrement()
        if wake:
            self._sender.wakeup()
        return futures

    def _records(
        self,
        keys: Sequence[bytes | None],
        values: Sequence[bytes | None],
        headers: Sequence[bytes] | bytes,
        timestamp_ms: int,
    ) -> _Records:
        if isinstance(keys, ByteStrings) and isinstance(values, ByteStrings):
            if isinstance(headers, bytes):
                headers = ByteStrings.repeated(headers, len(keys))
            if isinstance(headers, ByteStrings):
                batch_bytes = self._accumulator.config["batch_size"]
                return _ColumnRecords(keys, values, headers, timestamp_ms, batch_bytes)
        return _ListedRecords(keys, values, headers, timestamp_ms, self._varints)

    def _append_locked(self, where: TopicPartition, records: _Records) -> list[FutureRecordMetadata]:
        """Fill the open batch, then new ones. The caller holds the partition's lock."""
        queue, config = self._accumulator._batches[where], self._accumulator.config
        futures = []
        start = 0
        batch = queue[-1] if queue and not queue[-1].records._closed else None
        while start < len(records):
            if batch is None:
                builder = MemoryRecordsBuilder(_RECORD_FORMAT, config["compression_attrs"], config["batch_size"])
                if self._is_transactional:
                    use_fast_lz4(builder)
                batch = ProducerBatch(where, builder, now=time.monotonic())
            count = self._fill(batch, records, start)
            if count:
                if batch.records.next_offset() == count:  # a new batch, not queued yet
                    queue.append(batch)
                    self._accumulator._incomplete.add(batch)
                index = batch.records.next_offset() - count
                futures.append(
                    FutureRecordMetadata(batch.produce_future, index, records.timestamp_ms, None, -1, -1, -1)
                )
            start += count
            batch = None
        return futures

    def _fill(self, batch: ProducerBatch, records: _Records, start: int) -> int:
        """Write records from ``start`` on until the batch is full; return their number, at least 1 if it was empty."""
        memory = batch.records
        builder = memory._builder
        first = builder._num_records == 0
        if first:
            builder._first_timestamp = builder._max_timestamp = records.timestamp_ms
        encoded, count, largest = records.encode(
            start,
            first_offset=memory._next_offset,
            since_first_ms=records.timestamp_ms - builder._first_timestamp,
            room=self._accumulator.config["batch_size"] - len(builder._buffer),
            at_least_one=first,
        )
        if count:
            builder._buffer += encoded
            builder._max_timestamp = max(builder._max_timestamp, records.timestamp_ms)
            builder._num_records += count
            memory._next_offset += count
            builder._last_offset = memory._next_offset - 1
            batch.max_record_size = max(batch.max_record_size, largest)
            batch.last_append = time.monotonic()
        return count

    def _check_partition(self, where: TopicPartition) -> None:
        """Raise if the partition does not exist: the accumulator accepts it, and a flush would wait for ever."""
        topic, partition = where
        known = self._partitions.get(topic)
        if known is None or partition not in known:
            known = self._partitions[topic] = frozenset(self._producer.partitions_for(topic))
        if partition not in known:
            raise ValueError(f"topic {topic} has no partition {partition}")

    def _check_sizes(self, where: TopicPartition, records: _Records) -> None:
        limit = self._producer.config["max_request_size"] - _RECORD_OVERHEAD_BYTES
        place, size = records.largest()
        if size > limit:
            raise KafkaError(
                f"a record of {size:,} bytes for topic {where.topic}, partition {where.partition}, exceeds the "
                f"producer's limit of {limit:,} bytes; its key is {(records.key(place) or b'')[:80]!r}"
            )
