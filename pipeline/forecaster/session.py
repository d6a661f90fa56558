"""The connected parts of a forecaster: its clients, the threads that watch it, and its partitions."""

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import kafka.errors as client_errors
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor

from pipeline.errors import BrokerUnreachable, OffsetsLost
from pipeline.forecaster.hanging_transactions import resolve_hanging, was_committed
from pipeline.forecaster.partitions import Partitions, Polled
from pipeline.forecaster.positions import describe_lost_readings
from pipeline.forecaster.restore import Restorer, RestoreReport
from pipeline.forecaster.states.store import ServedModel
from pipeline.forecaster.stuck_detection import HealthMonitor, Heartbeat, Watchdog
from pipeline.forecaster.transaction import Committer, KafkaTransport, TransactionAborted, TransactionContent, Transport
from pipeline.kafka.batch_consumer import fetch_late, read_fast
from pipeline.kafka.clients import (
    look_up_topics,
    make_admin,
    make_consumer,
    make_producer,
    partition_count,
    translate_errors,
)
from pipeline.kafka.instance import Instance
from pipeline.kafka.patches import next_offset, request_rejoin
from pipeline.kafka.rebalances import GenerationTracker, RebalanceListener
from pipeline.settings import Settings

logger = logging.getLogger("streamgru.forecaster")

TYPICAL_READING_BYTES: Final = 96  # size of a reading with a few features on the wire
SMALLEST_FETCH_BYTES: Final = 16 * 1024  # per partition
LARGEST_FETCH_BYTES: Final = 1024 * 1024  # per partition
# bytes of one fetch of a restore, all partitions together. Fetched records take up to three times as much memory, and
# larger fetches are not faster.
RESTORE_FETCH_BYTES: Final = 2 * 1024 * 1024

PUBLISH_INTERVAL_S: Final = 0.5  # seconds between two updates of the progress that other threads see
FIRST_RETRY_S: Final = 0.1  # seconds from a first failure to the next restore; each further failure doubles the wait
LONGEST_RETRY_S: Final = 5.0
# transactions aborted in a row, each after a restore. Then this forecaster rejoins its group, and stuck detection does
# not count restores as progress until a transaction commits.
MOST_ABORTS: Final = 3


@dataclass(frozen=True)
class Options:
    """The command line's additions to the settings.

    ``reached`` is called with the name of each fault point that the loop passes; tests end the process there.
    """

    accept_loss: bool = False
    max_idle_s: float | None = None
    stats: Path | None = None
    health_port: int | None = None
    reached: Callable[[str], None] = lambda point: None


class StartOver(Exception):
    """The states in memory may differ from the durable ones: discard them, and restore as after a restart."""


class Session:
    """The connected parts of a forecaster, opened in ``__init__`` and closed in the reverse order by ``close``.

    Args:
        instance: the forecaster's name.
        owner: owner of the positions in the changelog, see ``positions.position_owner``.
        heartbeat: the loop's progress, which stuck detection reads.

    Raises:
        StreamgruError: a part could not be opened; the parts opened before it were closed.
    """

    def __init__(
        self, settings: Settings, instance: Instance, options: Options, owner: str, heartbeat: Heartbeat
    ) -> None:
        self.settings = settings
        self.options = options
        self.owner = owner
        self.heartbeat = heartbeat
        self._instance = instance
        self._failures = 0  # number of failures in a row
        self._aborts = 0  # number of aborted transactions in a row
        self._retry_at = 0.0  # monotonic time of the next restore at the earliest
        self._restore_read: Mapping[TopicPartition, int | None] = {}  # partition -> the restore reader's last position
        self._published = time.monotonic()
        forecaster = settings.forecaster
        topic = settings.kafka.topics.readings
        with ExitStack() as opened:
            is_fatal, limit_s = options.max_idle_s is not None, options.max_idle_s or forecaster.stuck_after_s
            self.monitor = monitor = HealthMonitor(settings, heartbeat, limit_s, is_fatal=is_fatal)
            watchdog = Watchdog(forecaster.commit_timeout_s, is_excused=lambda: monitor.waits_for_brokers)
            opened.callback(watchdog.close)
            reader = make_consumer(
                settings, client_id="streamgru-restore", auto_offset_reset="none", fetch_max_bytes=RESTORE_FETCH_BYTES
            )
            self._reader = read_fast(reader, settings.kafka, in_columns=True)
            opened.callback(_close, self._reader)
            self._admin = make_admin(settings)
            opened.callback(_close, self._admin)
            self.committer = Committer(
                self._open_transport, watchdog, exclusive=instance.exclusive, reached=options.reached
            )
            opened.callback(_close, self.committer)
            consumer = make_consumer(
                settings,
                group_id=forecaster.group_id,
                client_id=instance.client_id,
                group_instance_id=instance.name if forecaster.static_membership else None,
                partition_assignment_strategy=(CooperativeStickyAssignor,),
                max_partition_fetch_bytes=_fetch_bytes(settings),
                auto_offset_reset="none",  # a position outside the log raises in ``poll``, and is not moved
            )
            self.consumer: KafkaConsumer = fetch_late(read_fast(consumer, settings.kafka, in_columns=True))
            opened.callback(_close, self.consumer)  # closing leaves the group: other members take over at once
            self.rebalances = RebalanceListener(self.consumer)
            self._generations = GenerationTracker()
            restorer = Restorer(settings, self._reader, self._admin, owner)
            self.partitions = Partitions(self.consumer, topic, restorer, accept_loss=options.accept_loss)
            self.consumer.subscribe([topic], listener=self.rebalances)
            # Look the partitions up before the first join. Otherwise that join assigns none, and a second one follows.
            partition_count(self.consumer, topic)
            monitor.start()
            opened.callback(monitor.close)
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Close everything, the last opened first."""
        self._opened.close()

    def poll(self, timeout_ms: int, max_records: int) -> Polled:
        """The next records of the readings topic; no records if the poll failed and can be repeated.

        Raises:
            OffsetsLost: readings were deleted or lost, and the user must agree to continue without them.
            StartOver: readings were deleted or lost; a restore finds the position to continue from.
        """
        topic = self.settings.kafka.topics.readings
        accept_loss = self.options.accept_loss
        try:
            polled: Polled = self.consumer.poll(timeout_ms=timeout_ms, max_records=max_records)
            return polled
        except client_errors.OffsetOutOfRangeError as error:
            if not accept_loss:
                raise OffsetsLost(
                    f"readings of {topic} were deleted by retention before they were forecast: {error}. "
                    "To continue from the start of the log, start the forecaster with --accept-loss"
                ) from error
            raise StartOver(f"readings of {topic} were deleted before they were forecast: {error}") from error
        except client_errors.LogTruncationError as error:
            lost = {where.partition: end and end.offset for where, end in error.divergent_offsets.items()}
            message = describe_lost_readings(topic, lost, self.partitions.last_positions, accept_loss=accept_loss)
            raise StartOver(message) from error
        except client_errors.RetriableError as error:
            logger.warning("polling %s failed, trying again: %s", topic, error)
        except client_errors.KafkaError as error:
            with translate_errors(f"polling {topic}", self.settings):
                raise error
        return {}

    def snapshot_group_metadata(self) -> Any:
        """The group metadata; call it right after ``poll``."""
        group_metadata = self.consumer.group_metadata()
        self.heartbeat.polled = time.monotonic()
        self.options.reached("polled")
        return group_metadata

    def has_missed_generation(self, group_metadata: Any) -> bool:
        """Whether another member may have had this forecaster's partitions since the last call; call it every turn."""
        is_continuous = self._generations.is_continuous(group_metadata)
        if not self.partitions.has_any:
            self._aborts = 0
            return False
        return not is_continuous

    def restore(self, serving: ServedModel) -> RestoreReport | None:
        """One slice of ``Partitions.restore``.

        Raises:
            OffsetsLost: see ``positions.position_from_group``.
            StartOver: the restore failed.
        """
        if self.partitions.are_restored or time.monotonic() < self._retry_at:
            return None
        try:
            if not self.committer.is_open:
                # First, because opening ends the open transaction of a predecessor with the same name, and the
                # restore's offset fetches wait for open transactions.
                self.committer.open()
            restored = self.partitions.restore(serving)
        except (client_errors.KafkaError, BrokerUnreachable) as error:
            raise StartOver(f"restoring failed: {error}") from error
        if restored is None:
            self.options.reached("restoring")
        # A restore may take longer than stuck detection allows, so each read counts as progress. With MOST_ABORTS
        # aborts reads do not count: a loop of restores and aborted transactions is stuck.
        if (restored is not None or self._has_read_on()) and self._aborts < MOST_ABORTS:
            self.heartbeat.progressed = time.monotonic()
        return restored

    def commit(self, content: TransactionContent) -> None:
        """Commit a transaction.

        Raises:
            StartOver: it was aborted, or its outcome is unknown.
            Fenced: see ``Committer.commit``.
        """
        try:
            self.committer.commit(content)
        except TransactionAborted as aborted:
            self._aborts += 1
            if self._aborts == MOST_ABORTS:
                # The group may have removed this member without telling the client.
                request_rejoin(self.consumer)
            raise StartOver(f"the last transaction was aborted, or its outcome is unknown: {aborted}") from aborted
        self._failures = self._aborts = 0
        self.heartbeat.progressed = self.heartbeat.committed = time.monotonic()

    def start_over(self, why: Exception, serving: ServedModel) -> None:
        """Discard all states in memory; the restore begins after a wait that grows with each failure."""
        self._failures += 1
        self._retry_at = time.monotonic() + retry_wait_s(self._failures)
        logger.error("%s; starting over from the last transaction", why)
        self.committer.close()
        self.partitions.start_over(serving)

    def publish_progress(self, sensors: int) -> None:
        """Show the other threads the partitions' positions.

        Raises:
            StreamgruError: stuck detection found that this forecaster must end.
        """
        if time.monotonic() - self._published > PUBLISH_INTERVAL_S:
            self.heartbeat.positions = self.partitions.read_up_to()
            self.heartbeat.is_restoring = not self.partitions.are_restored
            self.heartbeat.sensors = sensors
            self._published = time.monotonic()
        if self.monitor.failure is not None:
            raise self.monitor.failure

    def _has_read_on(self) -> bool:
        before = self._restore_read
        self._restore_read = {where: next_offset(self._reader, where) for where in self._reader.assignment()}
        return self._restore_read != before

    def _open_transport(self) -> Transport:
        transactional_id = self._instance.transactional_id(self.settings)
        committed = was_committed(self.settings, transactional_id)
        topics = self.settings.kafka.topics
        written = [topics.forecasts, topics.state, topics.dead_letters]
        if topics.flat_forecasts is not None:
            written.append(topics.flat_forecasts)
        producer = make_producer(self.settings, transactional_id=transactional_id)
        look_up_topics(producer, written)
        group_id = self.settings.forecaster.group_id

        def resolve(made: KafkaProducer) -> None:
            resolve_hanging(made, self._admin, written, group_id, committed=committed)

        return KafkaTransport(producer, topics.readings, resolve)


def _close(client: KafkaConsumer | Committer) -> None:
    try:
        client.close()
    except client_errors.KafkaError as error:
        logger.debug("while closing: %s", error)


def _fetch_bytes(settings: Settings) -> int:
    """The bytes to fetch of one partition at a time, so that one batch takes a share of each partition.

    The client returns the fetched records of one partition after those of another. After large fetches a batch has
    many readings of few sensors. The model is several times faster on few readings of many sensors.
    """
    share = settings.forecaster.max_batch_readings // settings.kafka.partitions
    return min(LARGEST_FETCH_BYTES, max(SMALLEST_FETCH_BYTES, share * TYPICAL_READING_BYTES))


def retry_wait_s(failures: int) -> float:
    """Seconds to wait after the given number of failures in a row, at least 1."""
    return min(LONGEST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(failures - 1, 16))  # a larger power can overflow
