"""One transaction: forecasts, states, dead letters and the offsets of their readings become visible together.

The steps, numbered as in ``Committer.commit``:

1. Refuse group metadata that is not a member's: the broker accepts it although another member may own the partitions.
2. Begin.
3. Append all records. Each record must arrive within the delivery timeout, so flush and check between ``FLUSH_BYTES``.
4. Flush.
5. Check the result of every send: a transaction can commit without a batch that expired.
6. Add the offsets, with the group metadata of the poll that fetched the readings. The broker fences by this metadata.
7. Commit.

After a failure the transaction is aborted. The caller discards its states, opens a new producer and restores. The new
states replace the old ones only after step 7 has returned.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, Protocol

import kafka.errors as client_errors
import numpy as np
from kafka import KafkaProducer, TopicPartition
from numpy.typing import NDArray

from pipeline.errors import Fenced, KafkaError
from pipeline.forecaster.positions import Position
from pipeline.forecaster.stuck_detection import Watchdog
from pipeline.kafka import framing_kernel
from pipeline.kafka.batch_producer import NO_HEADERS, BatchAppender, check_delivered
from pipeline.kafka.byte_strings import ByteStrings
from pipeline.kafka.clients import close_producer
from pipeline.kafka.patches import abort_transaction
from pipeline.kafka.rebalances import is_member

logger = logging.getLogger("streamgru.transaction")

# seconds; after that the next producer with the same id aborts the open transaction
ABORT_TIMEOUT_S: Final = 3.0

# bytes of values between two flushes; a slow broker takes some tenths of a second for them
FLUSH_BYTES: Final = 16_000_000

_FENCING: Final = (
    client_errors.ProducerFencedError,
    client_errors.InvalidProducerEpochError,
    client_errors.FencedInstanceIdError,
)


@dataclass(frozen=True)
class Records:
    """Records for one partition of one topic; forecasts and states are in columns (``ByteStrings``)."""

    topic: str
    partition: int
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]
    headers: Sequence[bytes] | bytes = NO_HEADERS

    @property
    def size(self) -> int:
        """Bytes of keys and values."""
        return _total_size(self.keys) + _total_size(self.values)

    def pieces(self, most_bytes: int) -> Iterator[tuple["Records", int]]:
        """The records in pieces, each with its bytes of values: at most ``most_bytes``, unless one record is larger."""
        sizes = _sizes(self.values)
        if (total := int(sizes.sum())) <= most_bytes:
            yield self, total
            return
        ends = np.cumsum(sizes)  # bytes of the values up to and including each record
        start = before = 0
        while start < len(ends):
            fitting = int(np.searchsorted(ends, before + most_bytes, side="right"))
            end = max(start + 1, fitting)
            size = int(ends[end - 1]) - before
            yield self._slice(start, end), size
            start, before = end, before + size

    def _slice(self, start: int, end: int) -> "Records":
        headers = self.headers if isinstance(self.headers, bytes) else self.headers[start:end]
        return Records(self.topic, self.partition, self.keys[start:end], self.values[start:end], headers)


def _total_size(strings: Sequence[bytes | None]) -> int:
    if isinstance(strings, ByteStrings):
        return int(strings.sizes.sum())
    return sum(len(each) for each in strings if each is not None)


def _sizes(strings: Sequence[bytes | None]) -> NDArray[np.int64]:
    """The bytes of each string; 0 for a null."""
    if isinstance(strings, ByteStrings):
        return strings.sizes
    return np.array([0 if each is None else len(each) for each in strings], np.int64)


@dataclass(frozen=True)
class TransactionContent:
    """The content of one transaction. Every transaction has offsets, because brokers fence a forecaster by them."""

    records: Sequence[Records]
    offsets: Mapping[int, Position]  # partition of the readings topic -> position
    group_metadata: Any  # kafka.structs.ConsumerGroupMetadata, of the poll that fetched the readings


class TransactionAborted(Exception):
    """A transaction was aborted, or its outcome is unknown because the reply to the commit was lost.

    The next producer with the same id ends an open transaction. The restore then finds the positions that hold.
    """


class Transport(Protocol):
    """The producer of one transaction after another; every method may raise kafka-python's errors."""

    def begin(self) -> None:
        """Begin a transaction."""

    def append(self, records: Records) -> None:
        """Add records to the transaction."""

    def flush(self) -> None:
        """Return when every record has arrived or failed."""

    def check(self) -> None:
        """Raise the first failure among the records."""

    def send_offsets(self, offsets: Mapping[int, Position], group_metadata: Any) -> None:
        """Add offsets of the readings topic."""

    def commit(self) -> None:
        """Make the records and the offsets visible."""

    def abort(self) -> None:
        """Discard the records and the offsets; give up after ``ABORT_TIMEOUT_S``."""

    def close(self) -> None:
        """Close the connection without waiting."""


class KafkaTransport:
    """A transactional kafka-python producer. Opening it aborts the open transaction of its predecessor.

    Args:
        resolve_hanging: called with the producer before the first transaction.
    """

    def __init__(
        self,
        producer: KafkaProducer,
        readings_topic: str,
        resolve_hanging: Callable[[KafkaProducer], None] = lambda _: None,
    ) -> None:
        self._producer = producer
        self._readings_topic = readings_topic
        framing_kernel.prepare()  # otherwise the first transaction would wait for it
        self._appender = BatchAppender(producer)
        self._futures: list[Any] = []
        try:
            producer.init_transactions()
            resolve_hanging(producer)
        except BaseException:
            self.close()
            raise

    def begin(self) -> None:
        self._futures = []
        self._producer.begin_transaction()

    def append(self, records: Records) -> None:
        self._futures += self._appender.append(
            records.topic, records.partition, records.keys, records.values, records.headers, wake=False
        )

    def flush(self) -> None:
        self._producer.flush()

    def check(self) -> None:
        check_delivered(self._futures)

    def send_offsets(self, offsets: Mapping[int, Position], group_metadata: Any) -> None:
        topic = self._readings_topic
        to_commit = {TopicPartition(topic, number): position.to_commit() for number, position in offsets.items()}
        self._producer.send_offsets_to_transaction(to_commit, group_metadata)

    def commit(self) -> None:
        self._producer.commit_transaction()

    def abort(self) -> None:
        abort_transaction(self._producer, ABORT_TIMEOUT_S)

    def close(self) -> None:
        close_producer(self._producer)


class Committer:
    """Runs transactions one after another.

    Args:
        open_transport: opens a producer; called by ``open``.
        watchdog: ends the process if a call hangs.
        exclusive: no other process has this transactional id, so a fenced transaction has timed out.
        reached: called with the name of each fault point; tests end the process there.
    """

    def __init__(
        self,
        open_transport: Callable[[], Transport],
        watchdog: Watchdog,
        *,
        exclusive: bool = False,
        reached: Callable[[str], None] = lambda point: None,
    ) -> None:
        self._open_transport = open_transport
        self._watchdog = watchdog
        self._exclusive = exclusive
        self._reached = reached
        self._transport: Transport | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is a producer to commit with."""
        return self._transport is not None

    def open(self) -> None:
        """Open a producer; this aborts the open transaction of a predecessor with the same id.

        Raises:
            kafka.errors.KafkaError: the producer could not be opened.
        """
        self.close()
        with self._watchdog.watching("initialising transactions"):
            self._transport = self._open_transport()

    def close(self) -> None:
        """Close the producer, if one is open."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()

    def commit(self, content: TransactionContent) -> None:
        """Make ``content`` durable and visible, completely or not at all.

        After an error the producer is closed: call ``open`` before the next commit.

        Raises:
            TransactionAborted: the transaction was aborted, or its outcome is unknown.
            Fenced: a successor has taken over; this process must stop. If brokers were unreachable during the commit,
                TransactionAborted is raised instead: a real successor fences the next commit.
        """
        transport = self._transport
        assert transport is not None, "commit before open"
        if not is_member(content.group_metadata):  # 1
            self.close()
            raise TransactionAborted("this forecaster is no longer a member of its consumer group")
        try:
            with self._watchdog.watching("a commit") as call:
                transport.begin()  # 2
                self._append(transport, content.records)  # 3
                self._reached("before-flush")
                transport.flush()  # 4
                transport.check()  # 5
                self._reached("flushed")
                transport.send_offsets(content.offsets, content.group_metadata)  # 6
                self._reached("offsets-sent")
                transport.commit()  # 7
        except (client_errors.KafkaError, KafkaError) as error:
            self._abort(transport)
            # Brokers also fence a producer that could not reach them for longer than the transaction timeout.
            if _is_fencing(error) and not self._exclusive and not call.excused_s:
                raise Fenced(
                    "another process has taken over this forecaster's transactional id, or the transaction timed out "
                    "while this process was stalled; the last batch was aborted. Give each forecaster its own name "
                    "(--instance). Start this forecaster again if no other one has its name"
                ) from error
            raise TransactionAborted(f"{type(error).__name__}: {error}") from error
        except BaseException:
            self._abort(transport)
            raise
        self._reached("committed")

    def _append(self, transport: Transport, records: Sequence[Records]) -> None:
        unflushed = 0
        for piece, size in chain.from_iterable(each.pieces(FLUSH_BYTES) for each in records):
            if unflushed and unflushed + size > FLUSH_BYTES:
                transport.flush()
                transport.check()
                unflushed = 0
            transport.append(piece)
            unflushed += size

    def _abort(self, transport: Transport) -> None:
        """Abort if a broker can be reached, and close the producer: a producer that failed is not used again."""
        try:
            transport.abort()
        except client_errors.KafkaError as error:
            logger.debug("the abort failed: %s", error)  # fenced, never begun, or no broker answers
        self.close()


def _is_fencing(error: BaseException) -> bool:
    """Whether an error is a fencing error, or wraps one in its arguments, as the client does."""
    return isinstance(error, _FENCING) or any(isinstance(argument, _FENCING) for argument in error.args)
