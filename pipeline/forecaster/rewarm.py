"""Warms up a new model in the background: recent readings are stepped through it while the old one serves.

One queue of orders, worked off strictly in order, makes it right: "take partition p, as of offset e" replays p's
readings before e from Kafka, and the batches that the loop has committed since follow behind it. So when the queue is
empty the new states are as of the last transaction, and the loop can hand over.
"""

import logging
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from kafka import KafkaConsumer
from kafka.errors import KafkaError as ClientError

from pipeline.errors import StreamgruError
from pipeline.forecaster.champion import Candidate
from pipeline.forecaster.readings import Readings
from pipeline.forecaster.replay import Known, Rebuilt, Replayer
from pipeline.forecaster.serving import Serving
from pipeline.kafka.batch_consumer import read_fast
from pipeline.kafka.clients import make_consumer
from pipeline.settings import Settings

logger = logging.getLogger("streamgru.rewarm")


@dataclass(frozen=True)
class _Take:
    partition: int
    known: Mapping[str, Known | None]
    end: int


@dataclass(frozen=True)
class _Drop:
    partition: int


_Order = _Take | _Drop | Sequence[Readings] | None  # None: everything there is has been ordered


class Rewarm:
    """A model version being warmed up. All methods are the loop's; the work is done by a thread of its own."""

    def __init__(self, settings: Settings, candidate: Candidate) -> None:
        self.version = candidate.version
        self.rebuilt = Rebuilt()
        self._settings = settings
        self._serving = Serving(candidate.version, candidate.forecaster, settings)
        self._orders: queue.SimpleQueue[_Order] = queue.SimpleQueue()
        self._partitions: set[int] = set()
        self._takes = 0  # partitions ordered and not yet replayed
        self._backlog = 0  # readings ordered and not yet stepped
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        self._failure: BaseException | None = None
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=f"rewarm-{candidate.version}", daemon=True)
        self._thread.start()

    def take(self, partition: int, known: Mapping[str, Known | None], end: int) -> None:
        """Include a partition, as of the transaction whose next offset is ``end``."""
        with self._lock:
            self._partitions.add(partition)
            self._takes += 1
        self._orders.put(_Take(partition, known, end))

    def drop(self, partition: int) -> None:
        """Leave a partition out again."""
        with self._lock:
            self._partitions.discard(partition)
        self._orders.put(_Drop(partition))

    def follow(self, accepted: Sequence[Readings]) -> None:
        """Readings that a transaction has just made state."""
        with self._lock:
            self._backlog += sum(map(len, accepted))
        self._orders.put(accepted)

    @property
    def failure(self) -> BaseException | None:
        """What went wrong; none as long as nothing did."""
        return self._failure

    def has_replayed(self) -> bool:
        """Whether all partitions taken are replayed, and only batches are left to step."""
        with self._lock:
            return not self._takes

    def is_near(self, readings: int) -> bool:
        """Whether all partitions are replayed and at most so many readings are left to step."""
        with self._lock:
            return not self._takes and self._backlog <= readings

    def finish(self) -> Serving | None:
        """The new model with its states, as of the last transaction; steps what is left. None: see ``failure``."""
        self._orders.put(None)
        self._thread.join()
        if self._failure is not None:
            return None
        logger.info(
            "version %d is warm: %d sensors, %d readings replayed in %.1f s",
            self.version,
            self.rebuilt.sensors,
            self.rebuilt.readings,
            time.monotonic() - self._began,
        )
        if self.rebuilt.cold:
            logger.warning(
                "version %d: %d sensors start cold, their recent readings lie too far back or are gone: %s",
                self.version,
                len(self.rebuilt.cold),
                ", ".join(self.rebuilt.cold[:5]),
            )
        return self._serving

    def cancel(self) -> None:
        """Give up; the thread ends at its next look."""
        self._cancelled.set()
        self._orders.put(None)

    def _run(self) -> None:
        reader: KafkaConsumer | None = None
        try:
            # Readings that retention deletes meanwhile are a failure, not a jump.
            reader = read_fast(make_consumer(self._settings, client_id="streamgru-rewarm", auto_offset_reset="none"))
            replayer = Replayer(self._settings, reader, self._serving, alive=self._is_wanted)
            while not self._cancelled.is_set():
                order = self._orders.get()
                if order is None:
                    return
                self._obey(order, replayer)
        except BaseException as error:  # whatever ends this thread early, what it leaves must not be served
            self._failure = error
            if not isinstance(error, (StreamgruError, ClientError, ValueError)):
                logger.exception("warming up version %d failed unexpectedly", self.version)
        finally:
            if reader is not None:
                with suppress(ClientError):
                    reader.close()

    def _obey(self, order: _Take | _Drop | Sequence[Readings], replayer: Replayer) -> None:
        table = self._serving.table
        if isinstance(order, _Take):
            table.add_partition(order.partition)
            replay = replayer.rebuild(order.partition, order.known, order.end)
            while True:
                try:
                    next(replay)
                except StopIteration as done:
                    self.rebuilt += done.value
                    break
            with self._lock:
                self._takes -= 1
        elif isinstance(order, _Drop):
            table.drop_partition(order.partition)
        else:
            # Partitions that were revoked since are still in the batches of before.
            held = table.partitions
            self._serving.replay([readings for readings in order if readings.partition in held])
            with self._lock:
                self._backlog -= sum(map(len, order))

    def _is_wanted(self, partition: int) -> bool:
        return partition in self._partitions and not self._cancelled.is_set()
