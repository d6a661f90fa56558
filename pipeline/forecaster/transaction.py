"""One transaction: forecasts, states and dead letters become visible together with the offsets they came from, or not.

The steps, numbered as in ``Committer.commit``:

1. refuse group metadata that is not a member's: the broker would take it, over a successor's head
2. begin
3. append all records; where these are many megabytes, flush and check now and then, since what is appended must arrive
   within the delivery timeout
4. flush
5. check every future: a batch that expired does not keep a transaction from committing without it
6. add the offsets, with the group metadata of the poll that fetched the readings: this is what fences a zombie
7. commit

Any failure: abort, and the caller forgets what it computed, opens a new producer and rebuilds its states. Only after
step 7 has returned is the new state the state.

``Transport`` is the seam: the one real implementation drives kafka-python, a fake in the tests fails at each step.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, Protocol

import kafka.errors as client_errors
from kafka import KafkaProducer, TopicPartition

from pipeline.errors import Fenced, KafkaError
from pipeline.forecaster.group import is_member
from pipeline.forecaster.positions import Position
from pipeline.forecaster.stuck_detection import Watchdog
from pipeline.kafka.batch_producer import NO_HEADERS, BatchAppender, check_delivered
from pipeline.kafka.clients import close_producer
from pipeline.kafka.patches import abort_transaction

logger = logging.getLogger("streamgru.transaction")

# An abort that takes longer is left to the broker: the next producer of the same id ends the open transaction at once.
ABORT_TIMEOUT_S: Final = 3.0

# Appended at once: takes a slow broker some tenths of a second.
FLUSH_BYTES: Final = 16_000_000

_FENCING: Final = (
    client_errors.ProducerFencedError,
    client_errors.InvalidProducerEpochError,
    client_errors.FencedInstanceIdError,
)


@dataclass(frozen=True)
class Records:
    """Records for one partition of one topic."""

    topic: str
    partition: int
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]
    headers: Sequence[bytes] | bytes = NO_HEADERS

    def pieces(self, most_bytes: int) -> Iterator[tuple["Records", int]]:
        """The same records in pieces of so many bytes of values at most (or one larger), with what each measures."""
        sizes = [0 if value is None else len(value) for value in self.values]
        if sum(sizes) <= most_bytes:
            yield self, sum(sizes)
            return
        start = size = 0
        for end, more in enumerate([*sizes, most_bytes + 1]):
            if end > start and size + more > most_bytes:
                yield self._slice(start, end), size
                start, size = end, 0
            size += more

    def _slice(self, start: int, end: int) -> "Records":
        headers = self.headers if isinstance(self.headers, bytes) else self.headers[start:end]
        return Records(self.topic, self.partition, self.keys[start:end], self.values[start:end], headers)


@dataclass(frozen=True)
class TransactionContent:
    """What one transaction makes durable. Every transaction carries offsets: they are what the broker fences by."""

    records: Sequence[Records]
    offsets: Mapping[int, Position]  # of the readings topic, by partition
    group_metadata: Any  # kafka.structs.ConsumerGroupMetadata, of the poll that fetched the readings


class TransactionAborted(Exception):
    """Not known to be committed: nothing of it is visible, but where the answer to the commit itself was lost.

    What holds is found at the next start over: opening a producer settles whatever was open before.
    """


class Transport(Protocol):
    """What a transaction needs of a producer; every method may raise kafka-python's errors."""

    def begin(self) -> None:
        """Begin a transaction."""

    def append(self, records: Records) -> None:
        """Take records into it."""

    def flush(self) -> None:
        """Return when every record has arrived or failed."""

    def check(self) -> None:
        """Raise the first failure among the records."""

    def send_offsets(self, offsets: Mapping[int, Position], group_metadata: Any) -> None:
        """Add offsets of the readings topic."""

    def commit(self) -> None:
        """Make it all visible."""

    def abort(self) -> None:
        """Make it all void; gives up after a while."""

    def close(self) -> None:
        """Let go of the connection, at once."""


class KafkaTransport:
    """A transactional kafka-python producer, initialised: its predecessor's open transaction has been aborted.

    Args:
        resolve_hanging: called with it then, before anything is written.
    """

    def __init__(
        self,
        producer: KafkaProducer,
        readings_topic: str,
        resolve_hanging: Callable[[KafkaProducer], None] = lambda _: None,
    ) -> None:
        self._producer = producer
        self._readings_topic = readings_topic
        self._appender = BatchAppender(producer)
        self._futures: list[Any] = []
        try:
            producer.init_transactions()
            resolve_hanging(producer)
        except BaseException:
            self.close()
            raise

    def begin(self) -> None:
        """Begin a transaction."""
        self._futures = []
        self._producer.begin_transaction()

    def append(self, records: Records) -> None:
        """Take records into it."""
        self._futures += self._appender.append(
            records.topic, records.partition, records.keys, records.values, records.headers
        )

    def flush(self) -> None:
        """Return when every record has arrived or failed."""
        self._producer.flush()

    def check(self) -> None:
        """Raise the first failure among the records."""
        check_delivered(self._futures)

    def send_offsets(self, offsets: Mapping[int, Position], group_metadata: Any) -> None:
        """Add offsets of the readings topic."""
        self._producer.send_offsets_to_transaction(
            {
                TopicPartition(self._readings_topic, partition): position.to_commit()
                for partition, position in offsets.items()
            },
            group_metadata,
        )

    def commit(self) -> None:
        """Make it all visible."""
        self._producer.commit_transaction()

    def abort(self) -> None:
        """Make it all void, and wait no longer than ``ABORT_TIMEOUT_S``."""
        abort_transaction(self._producer, ABORT_TIMEOUT_S)

    def close(self) -> None:
        """Let go of the connection, at once."""
        close_producer(self._producer)


class Committer:
    """Runs transactions one after another.

    Args:
        open_transport: makes an initialised transport; called at ``open``.
        watchdog: watches the calls that wait without limit.
        exclusive: no other living process has this transactional id, so fenced means timed out.
        reached: told the name of each fault point as it is passed; tests end the process there.
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
        """Make a producer; what a predecessor of the same id left open is aborted by that.

        Raises:
            kafka.errors.KafkaError: it could not be made.
        """
        self.close()
        with self._watchdog.watching("initialising transactions"):
            self._transport = self._open_transport()

    def close(self) -> None:
        """Let go of the producer, if there is one."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()

    def commit(self, content: TransactionContent) -> None:
        """Make ``content`` durable and visible, all of it or nothing.

        Raises:
            TransactionAborted: see there. The producer is closed: ``open`` before the next commit.
            Fenced: likewise, and a successor has taken over: this process must stop. Not where the brokers were away
                during the commit: who really has a successor is fenced again at the next.
        """
        transport = self._transport
        assert transport is not None, "commit before open"
        if not is_member(content.group_metadata):  # 1
            self.close()
            raise TransactionAborted("this forecaster is not a member of its consumer group any more")
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
            # The brokers themselves fence whoever was cut off from them for longer than the transaction timeout.
            if _is_fencing(error) and not self._exclusive and not call.excused_s:
                raise Fenced(
                    "another process has taken over this forecaster's transactional id (or its transaction timed out "
                    "while it was stalled); nothing of the last batch was committed. Give each forecaster a name of "
                    "its own (--instance), and start this one again if no other has its name"
                ) from error
            raise TransactionAborted(f"{type(error).__name__}: {error}") from error
        except BaseException:
            self._abort(transport)
            raise
        self._reached("committed")

    def _append(self, transport: Transport, records: Sequence[Records]) -> None:
        waiting = 0
        for piece, size in chain.from_iterable(each.pieces(FLUSH_BYTES) for each in records):
            if waiting and waiting + size > FLUSH_BYTES:
                transport.flush()
                transport.check()
                waiting = 0
            transport.append(piece)
            waiting += size

    def _abort(self, transport: Transport) -> None:
        """Abort as far as the broker can be reached, and drop the producer: one that failed is not used again."""
        try:
            transport.abort()
        except client_errors.KafkaError as error:
            logger.debug("the abort failed: %s", error)  # fenced, never begun, or left to the broker
        self.close()


def _is_fencing(error: BaseException) -> bool:
    """Whether an error, or one that it wraps as the client does, says that another has taken over."""
    return isinstance(error, _FENCING) or any(isinstance(argument, _FENCING) for argument in error.args)
