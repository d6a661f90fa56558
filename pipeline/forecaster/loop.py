"""The forecaster's loop: poll, step the model, commit; and, between two batches, follow the group and the champion.

One thread does everything that touches states, so there is an order of things: at a transaction boundary the table
holds exactly what the last transaction made durable. There, and only there, partitions come and go, restoring goes on
a little (``pipeline.forecaster.changelog``, in slices, so that other partitions keep flowing), and a new champion takes
over.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import kafka.errors as client_errors
import torch
from kafka import KafkaConsumer, TopicPartition
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor

from pipeline.errors import BrokerUnreachable, ModelUnfit, OffsetsLost
from pipeline.forecaster.batch_size import BatchSize
from pipeline.forecaster.champion import Candidate, ChampionSource, ChampionWatcher
from pipeline.forecaster.changelog import Changelog
from pipeline.forecaster.commit import Aborted, Committer, KafkaTransport, Transport, Work
from pipeline.forecaster.counters import Counters
from pipeline.forecaster.health import HealthServer, describe
from pipeline.forecaster.instance import Instance
from pipeline.forecaster.lookout import Lookout, Pulse
from pipeline.forecaster.membership import Rebalances, Standing, is_member
from pipeline.forecaster.micro_batch import MicroBatch, MicroBatchMaker
from pipeline.forecaster.partitions import Partitions, listed
from pipeline.forecaster.position import owner_of_positions
from pipeline.forecaster.quarantine import Quarantine, Sensors
from pipeline.forecaster.readings import Record
from pipeline.forecaster.resume_point import what_was_lost
from pipeline.forecaster.serving import Serving
from pipeline.forecaster.succession import Succession
from pipeline.forecaster.undecided import decide, was_committed
from pipeline.forecaster.watchdog import Watchdog
from pipeline.kafka.batch_consumer import fetch_late, read_fast
from pipeline.kafka.clients import make_admin, make_consumer, make_producer, partition_count, translated
from pipeline.kafka.patches import next_offset, request_rejoin
from pipeline.kafka.topics import check_topics, find_topic_id
from pipeline.settings import Settings

logger = logging.getLogger("streamgru.forecaster")

POLL_MS: Final = 200  # how long an idle loop waits for readings before it looks around: also the delay of a SIGTERM
BUSY_POLL_MS: Final = 10  # likewise while there is other work
REPORT_INTERVAL_S: Final = 10.0
SHOW_INTERVAL_S: Final = 0.5  # how old what others see of the loop may be
CHAMPION_WAIT_S: Final = 0.2
# After a failure the loop waits this long before it connects again, doubled up to the limit with each further one.
FIRST_RETRY_S: Final = 0.1
LONGEST_RETRY_S: Final = 5.0
# So many transactions aborted in a row, each with a restore behind it, lead nowhere.
ABORTS_IN_A_CIRCLE: Final = 3
_MOST_DOUBLINGS: Final = 16  # long past the limit, and far from what a float cannot hold
# States written in one transaction after a swap or a rebuild: far below what a broker takes.
MOST_UNSAVED_BYTES: Final = 20_000_000


TYPICAL_READING_BYTES: Final = 96  # on the wire, with one or a few features
SMALLEST_FETCH_BYTES: Final = 16 * 1024
LARGEST_FETCH_BYTES: Final = 1024 * 1024
# Of all partitions together while states are restored. What is fetched is in memory beside the states, some three times
# over, and larger fetches are no faster.
RESTORE_FETCH_BYTES: Final = 2 * 1024 * 1024


Polled = Mapping[TopicPartition, Sequence[Record]]


@dataclass(frozen=True)
class Options:
    """What the command line adds to the settings.

    ``reached`` is told the name of each fault point as the loop passes it; tests end the process there.
    """

    accept_loss: bool = False
    max_idle_s: float | None = None
    stats: Path | None = None
    health_port: int | None = None
    reached: Callable[[str], None] = lambda point: None


class StreamForecaster:
    """Forecasts the readings topic until it is stopped.

    Every accepted reading is stepped into its sensor's state exactly once and gets exactly one visible forecast, also
    when this process is killed at any moment and started again.

    Args:
        source: where the champion comes from.
        instance: this forecaster's name, the same after a restart.
    """

    def __init__(
        self, settings: Settings, source: ChampionSource, instance: Instance, options: Options | None = None
    ) -> None:
        self.counters = Counters()
        self._settings = settings
        self._source = source
        self._instance = instance
        self._options = options or Options()
        self._readings_topic = settings.kafka.topics.readings
        self._failures = 0
        self._aborts_in_a_row = 0
        self._retry_at = 0.0
        self._swap_began: float | None = None
        self._pulse = Pulse()
        self._lookout: Lookout | None = None
        self._quarantine = Quarantine()
        self._batch_size = BatchSize(settings.forecaster.max_batch_readings, settings.forecaster.poll_interval_s)
        self._started = self._reported = self._shown = time.monotonic()
        self._stopping = False
        self._stats_are_written = True
        self._restored_up_to: dict[TopicPartition, int | None] = {}
        self._opened = ExitStack()

    def stop(self) -> None:
        """End ``run`` at the next transaction boundary. May be called from a signal handler."""
        self._stopping = True

    def run(self) -> None:
        """Forecast until ``stop``.

        Raises:
            Fenced: another process goes on with this forecaster's name.
            OffsetsLost: the readings to go on with are gone.
            StreamgruError: whatever else makes going on impossible; nothing is lost by any of them.
        """
        torch.set_num_threads(1)  # at these sizes more threads only take turns; forecasters scale by partitions
        with ExitStack() as health:
            self._answer_probes(health)
            self._run()

    def _run(self) -> None:
        check_topics(self._settings)
        topic_id = find_topic_id(self._settings, self._readings_topic)
        self._owner = owner_of_positions(self._settings.forecaster.group_id, topic_id)
        watcher = ChampionWatcher(self._source, self._settings.forecaster.poll_alias_s)
        try:
            champion = self._first_champion(watcher)
            if champion is None:
                return
            self._watcher = watcher
            self._succession = Succession(self._settings, watcher)
            self._serve(champion.version, Serving(champion.version, champion.forecaster, self._settings))
            try:
                self._connect()
                while not self._stopping:
                    self._turn()
            finally:
                self._disconnect()
        finally:
            watcher.close()
            self._report()
            logger.info("stopped")

    def _answer_probes(self, opened: ExitStack) -> None:
        forecaster = self._settings.forecaster
        port = self._options.health_port or forecaster.health_port
        if port is not None:
            server = HealthServer(
                forecaster.health_host, port, lambda: describe(self._pulse, self._lookout, self.counters)
            )
            opened.callback(server.close)
            logger.info("http://%s:%d/healthz and /readyz say how this forecaster is", forecaster.health_host, port)

    # --- start and end ------------------------------------------------------------------------------------------------

    def _first_champion(self, watcher: ChampionWatcher) -> Candidate | None:
        champion = self._source.remembered()
        watcher.start(champion)
        if champion is not None:
            logger.info("beginning with version %d, which served last; asking the registry", champion.version)
        while champion is None and not self._stopping:
            champion = watcher.wait(CHAMPION_WAIT_S)
        return champion

    def _connect(self) -> None:
        settings = self._settings
        self._watchdog = Watchdog(settings.forecaster.commit_timeout_s, is_excused=self._waits_for_broker)
        self._close_at_the_end(self._watchdog.close)
        limit_s = self._options.max_idle_s
        self._lookout = Lookout(
            settings, self._pulse, limit_s or settings.forecaster.stuck_after_s, is_fatal=limit_s is not None
        )
        self._reader = read_fast(
            make_consumer(
                settings,
                client_id="streamgru-restore",
                auto_offset_reset="none",
                fetch_max_bytes=RESTORE_FETCH_BYTES,
            )
        )
        self._close_at_the_end(self._reader.close)
        self._admin = make_admin(settings)
        self._close_at_the_end(self._admin.close)
        self._committer = Committer(
            self._open_transport, self._watchdog, exclusive=self._instance.exclusive, reached=self._options.reached
        )
        self._close_at_the_end(self._committer.close)
        consumer = make_consumer(
            settings,
            group_id=settings.forecaster.group_id,
            client_id=self._instance.client_id,
            group_instance_id=self._instance.name if settings.forecaster.static_membership else None,
            partition_assignment_strategy=(CooperativeStickyAssignor,),
            max_partition_fetch_bytes=_fetch_bytes(settings),
            auto_offset_reset="none",  # a position outside the log is an error with a stated policy, not a jump
        )
        self._consumer: KafkaConsumer = fetch_late(read_fast(consumer))
        self._close_at_the_end(self._consumer.close)
        self._rebalances = Rebalances(self._consumer)
        self._standing = Standing()
        self._partitions = Partitions(
            self._consumer,
            self._readings_topic,
            Changelog(settings, self._reader, self._admin, self._owner),
            accept_loss=self._options.accept_loss,
        )
        self._consumer.subscribe([self._readings_topic], listener=self._rebalances)
        # Known before the first join, or that one assigns nothing and another must follow.
        partition_count(self._consumer, self._readings_topic)
        self._lookout.start()
        self._close_at_the_end(self._lookout.close)
        logger.info(
            "forecaster %s: version %d on cpu, group %s",
            self._instance.name,
            self._serving.version,
            settings.forecaster.group_id,
        )

    def _open_transport(self) -> Transport:
        transactional_id = self._instance.transactional_id(self._settings)
        committed = was_committed(self._settings, transactional_id)
        topics = self._settings.kafka.topics
        written = (topics.forecasts, topics.state, topics.dead_letters)
        producer = make_producer(self._settings, transactional_id=transactional_id)
        return KafkaTransport(
            producer, self._readings_topic, lambda made: decide(made, self._admin, written, committed=committed)
        )

    def _waits_for_broker(self) -> bool:
        return self._lookout is not None and self._lookout.waits_for_brokers

    def _disconnect(self) -> None:
        """Close what was opened, the last first: the group is left at once, so that others take over meanwhile."""
        self._succession.give_up()
        self._opened.close()

    def _close_at_the_end(self, close: Callable[[], object]) -> None:
        def quietly() -> None:
            try:
                close()
            except client_errors.KafkaError as error:
                logger.debug("while closing: %s", error)

        self._opened.callback(quietly)

    def _serve(self, version: int, serving: Serving) -> None:
        self._serving = serving
        self._maker = MicroBatchMaker(self._settings, serving, self._owner)
        self._batch_size.fit(serving.bytes_per_reading)
        self.counters.model_version = version
        self._source.remember(version)

    # --- one turn -----------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        polled = self._poll()
        # At once: a moment later it may be another generation's, and this one's readings would pass as that one's.
        membership = self._consumer.group_metadata()
        self._pulse.polled = time.monotonic()
        self._options.reached("polled")
        self._follow_group()
        self._mind_gaps(membership)
        # Before restoring: what was polled does not belong to a partition whose position is set only then.
        served = self._served(polled)
        self._restore()
        self._follow_champion()
        served = self._served(served)
        if served or (self._partitions.unsaved and is_member(membership)):
            self._process(served, membership)
        self._look_around()

    def _served(self, polled: Polled) -> Polled:
        positions = self._partitions.positions
        return {where: records for where, records in polled.items() if where.partition in positions}

    def _poll(self) -> Polled:
        busy = self._partitions.unsaved or not self._partitions.are_served
        try:
            polled: Polled = self._consumer.poll(
                timeout_ms=BUSY_POLL_MS if busy else POLL_MS,
                max_records=self._batch_size.readings,
            )
            return polled
        except client_errors.OffsetOutOfRangeError as error:
            if not self._options.accept_loss:
                raise OffsetsLost(
                    f"readings of {self._readings_topic} were deleted by retention before they were forecast: {error}. "
                    "To go on from the start of the log, start the forecaster with --accept-loss"
                ) from error
            self._start_over(f"readings were deleted before they were forecast: {error}")
        except client_errors.LogTruncationError as error:
            lost = {where.partition: end and end.offset for where, end in error.divergent_offsets.items()}
            reached = self._partitions.last_positions | self._partitions.positions
            self._start_over(what_was_lost(self._readings_topic, lost, reached, accept_loss=self._options.accept_loss))
        except client_errors.RetriableError as error:
            logger.warning("polling failed, trying again: %s", error)
        except client_errors.KafkaError as error:
            with translated(f"polling {self._readings_topic}", self._settings):
                raise error
        return {}

    def _process(self, polled: Polled, membership: Any) -> None:
        """One micro-batch, from records to durable states."""
        unsaved = self._next_unsaved()
        began = time.monotonic()
        batch = self._maker.make(polled, unsaved, self._partitions.held)
        readings, seconds = sum(map(len, polled.values())), time.monotonic() - began
        if batch.unsound:
            self._treat(batch.unsound)
            polled = self._served(polled)
            if polled:
                self._process(polled, membership)
            return
        try:
            self._committer.commit(Work(batch.records, batch.reached, membership))
        except Aborted as aborted:
            self._batch_size.failed(readings, seconds)
            self._aborts_in_a_row += 1
            if self._aborts_in_a_row == ABORTS_IN_A_CIRCLE:
                request_rejoin(self._consumer)  # in case the group knows nothing of this member any more
            self._start_over(f"the last batch is not known to be committed: {aborted}")
            return
        self._batch_size.committed(readings, seconds)
        # Only now is the new state the state.
        if batch.stepped is not None:
            self._serving.table.scatter(batch.stepped.rows, batch.stepped.states)
        self._partitions.positions.update((partition, position.next) for partition, position in batch.reached.items())
        self._partitions.held = dict(batch.held)
        self._partitions.saved(unsaved)
        # Not for what only saved rebuilt states: the readings in question are still to come.
        self._quarantine.clear(where.partition for where in polled)
        self._succession.follow(batch.accepted)
        self._count(batch)

    def _treat(self, unsound: Sensors) -> None:
        """Do the next thing about sensors whose new states are no finite numbers; nothing of these is kept.

        Raises:
            ModelUnfit: there is nothing left to do. The next start does not begin with this version by itself.
        """
        remedies = self._quarantine.next_remedies(unsound)
        for partition, sensors in unsound.items():
            self.counters.quarantined_states += len(sensors)
            logger.error(
                "version %d leads the states of %d sensors of partition %d to numbers that are not finite; they are in "
                "quarantine: %s",
                self._serving.version,
                len(sensors),
                partition,
                ", ".join(sensors[:5]),
            )
        if remedies.hopeless:
            self._source.forget()
            partition, sensors = next(iter(remedies.hopeless.items()))
            raise ModelUnfit(
                f"version {self._serving.version} of {self._settings.model_name} forecasts no finite number for sensor "
                f"{sensors[0]}, partition {partition}, not even from a state that begins anew; promote another version "
                "(`streamgru models` lists them) and start the forecaster again: it goes on where it was"
            )
        for partition, sensors in remedies.begin_anew.items():
            logger.error("rebuilt from their readings they are so again; these begin anew: %s", ", ".join(sensors[:5]))
            self._serving.begin_anew(partition, sensors)
        self._succession.drop(remedies.rebuild)
        self._partitions.rebuild(remedies.rebuild, self._serving)

    def _next_unsaved(self) -> dict[int, int]:
        """Unsaved partitions whose states go into this transaction, with their positions: not too much for one."""
        chosen: dict[int, int] = {}
        size = 0
        for partition in sorted(self._partitions.unsaved):
            table = self._serving.table
            size += len(table.partition_rows(partition)[0]) * table.dtype.itemsize
            if chosen and size > MOST_UNSAVED_BYTES:
                break
            chosen[partition] = self._partitions.positions[partition]
        return chosen

    def _count(self, batch: MicroBatch) -> None:
        if batch.counts.forecasts and not self.counters.forecasts:
            logger.info("first forecasts %.1f s after the start", time.monotonic() - self._started)
        self.counters.add(batch.counts)
        self._failures = self._aborts_in_a_row = 0
        self._pulse.progressed = self._pulse.committed = time.monotonic()
        if self._swap_began is not None:
            self.counters.swap_pause_s = time.monotonic() - self._swap_began
            logger.info(
                "version %d serves; forecasts paused for %.3f s", self._serving.version, self.counters.swap_pause_s
            )
            self._swap_began = None

    # --- between two batches ------------------------------------------------------------------------------------------

    def _follow_group(self) -> None:
        for what, partitions in self._rebalances.drain():
            if what == "assigned":
                self._partitions.arrive(partitions)
                continue
            self._options.reached("revoked")
            self._partitions.leave(partitions, self._serving)
            self._succession.drop(partitions)
            logger.info("partitions revoked: %s", listed(partitions))
        if not self._partitions.has_any:
            self._aborts_in_a_row = 0

    def _mind_gaps(self, membership: Any) -> None:
        """Trust nothing of before a generation that passed without this forecaster: another has gone on since."""
        if self._standing.is_unbroken(membership) or not self._partitions.has_any:
            return
        logger.warning("this forecaster was out of its group for a while; restoring all its partitions")
        self._succession.give_up()
        self._partitions.start_over(self._serving)

    def _restore(self) -> None:
        """Restore partitions that arrived, a slice at a time, until they are served."""
        if self._partitions.are_served or time.monotonic() < self._retry_at:
            return
        try:
            if not self._committer.is_open:
                # First, since it ends what a predecessor of this name left open, which the offsets would wait for.
                self._committer.open()
            restored = self._partitions.restore(self._serving)
        except (client_errors.KafkaError, BrokerUnreachable) as error:
            self._start_over(f"restoring failed: {error}")
            return
        if restored is None:
            self._options.reached("restoring")
            self._mind_restoring()
            return
        self._watcher.let_look()
        for partition in restored.positions.keys() & self._partitions.positions.keys():
            self._succession.take(partition, self._serving, self._partitions.positions[partition])
        self.counters.count_restored(restored.sensors, restored.rebuilt, restored.held_lost, restored.seconds)
        self._get_on()

    def _mind_restoring(self) -> None:
        read = _positions(self._reader)
        if read != self._restored_up_to:
            self._restored_up_to = read
            self._get_on()

    def _get_on(self) -> None:
        """A restore gets on. It may take longer than work may wait, so that is progress, but not to go in a circle."""
        if self._aborts_in_a_row < ABORTS_IN_A_CIRCLE:
            self._pulse.progressed = time.monotonic()

    def _follow_champion(self) -> None:
        self._succession.advance(self._serving, self._partitions.positions)
        if not self._partitions.are_served:
            return  # what is being restored is restored for the model that serves
        began = time.monotonic()
        serving = self._succession.hand_over()
        if serving is None:
            return
        self._options.reached("swapping")
        self._swap_began = began
        # Noted before the states are written: a restart in between replays them for this version, and never goes back.
        self._serve(serving.version, serving)
        self._partitions.unsaved |= self._partitions.positions.keys()
        self.counters.swaps += 1

    def _start_over(self, why: str) -> None:
        """Forget everything that is not durable: states are restored and positions looked up as after a restart."""
        self._failures += 1
        self.counters.aborted += 1
        self._retry_at = time.monotonic() + retry_wait_s(self._failures)
        logger.error("%s; starting over from the last transaction", why)
        self._quarantine.clear()
        self._committer.close()
        self._succession.give_up()
        self._partitions.start_over(self._serving)

    def _look_around(self) -> None:
        """Show what was done, report, and raise what the lookout found to make going on impossible."""
        now = time.monotonic()
        # Here, not when a batch is committed: it changes when partitions come and go, too.
        self.counters.held = sum(map(len, self._partitions.held.values()))
        if now - self._shown > SHOW_INTERVAL_S:
            self._pulse.positions = self._partitions.read_up_to()
            self._pulse.is_restoring = not self._partitions.are_served
            self._pulse.sensors = len(self._serving.table)
            self._shown = now
        if now - self._reported > REPORT_INTERVAL_S:
            self._report()
            self._reported = now
        if self._lookout is not None and self._lookout.failure is not None:
            raise self._lookout.failure

    def _report(self) -> None:
        logger.info("counts: %s", self.counters.line())
        if self._options.stats is not None:
            try:
                self.counters.write(self._options.stats)
            except OSError as error:
                # Nothing depends on the file: the stream goes on, and so do the counts in the log.
                if self._stats_are_written:
                    logger.warning("cannot write the counts to %s: %s", self._options.stats, error.strerror)
                self._stats_are_written = False
            else:
                self._stats_are_written = True


def retry_wait_s(failures: int) -> float:
    """How long to wait after so many failures in a row, at least one."""
    return min(LONGEST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(failures - 1, _MOST_DOUBLINGS))


def _positions(reader: KafkaConsumer) -> dict[TopicPartition, int | None]:
    return {where: next_offset(reader, where) for where in reader.assignment()}


def _fetch_bytes(settings: Settings) -> int:
    """What to fetch of one partition at a time, so that one batch takes a share of each.

    The client hands out one partition's fetched records after the other: with large fetches a batch would hold many
    readings of few sensors, and the model is several times faster on few readings of many.
    """
    share = settings.forecaster.max_batch_readings // settings.kafka.partitions
    return min(LARGEST_FETCH_BYTES, max(SMALLEST_FETCH_BYTES, share * TYPICAL_READING_BYTES))
