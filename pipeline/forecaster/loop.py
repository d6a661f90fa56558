"""The forecaster's loop: poll, step the model, commit.

One thread changes the states, in the order of the numbered steps in ``Loop._turn``. Each turn begins and ends at a
transaction boundary. There the state table equals the states that the last transaction made durable. Rebalances and
model swaps are applied only there. A restore takes one slice of time per turn, so other partitions keep running.
"""

import logging
import time
from contextlib import ExitStack, closing
from typing import Any, Final

import torch

from pipeline.errors import SchemaRegistryError
from pipeline.forecaster.champion import ChampionSource, ChampionWatcher
from pipeline.forecaster.counters import Reporter
from pipeline.forecaster.group_limit import GroupLimit
from pipeline.forecaster.health import Statistics, answering_probes
from pipeline.forecaster.micro_batch import BatchSize, MicroBatch, MicroBatchBuilder
from pipeline.forecaster.model_swap import ModelSwap
from pipeline.forecaster.partitions import Polled, listed
from pipeline.forecaster.positions import position_owner
from pipeline.forecaster.quarantine import Quarantine
from pipeline.forecaster.session import Options as Options  # part of this module's interface
from pipeline.forecaster.session import Session, StartOver
from pipeline.forecaster.states.store import ServedModel
from pipeline.forecaster.stuck_detection import HealthMonitor
from pipeline.forecaster.transaction import TransactionContent
from pipeline.forecaster.unit_changes import log_unit_changes
from pipeline.kafka.instance import Instance
from pipeline.kafka.rebalances import is_member
from pipeline.kafka.topics import check_topics, find_topic_id
from pipeline.reading_times import TimeAlarms
from pipeline.settings import Settings

logger = logging.getLogger("streamgru.forecaster")

POLL_MS: Final = 200  # milliseconds that a poll waits for readings; SIGTERM is noticed after that
BUSY_POLL_MS: Final = 10  # milliseconds that a poll waits while a restore or a full write is due


class StreamForecaster:
    """Forecasts the readings topic until it is stopped.

    Every accepted reading is stepped into its sensor's state exactly once and gets exactly one visible forecast. This
    also holds if the process is killed at any moment and started again.

    Args:
        source: source of the champion.
        instance: this forecaster's name, the same after a restart.
    """

    def __init__(
        self, settings: Settings, source: ChampionSource, instance: Instance, options: Options | None = None
    ) -> None:
        self._statistics = Statistics()
        self.counters = self._statistics.counters
        self._settings = settings
        self._source = source
        self._instance = instance
        self._options = options or Options()
        self._reporter = Reporter(self.counters, self._options.stats)
        self._loop: Loop | None = None
        self._is_stopping = False

    def stop(self) -> None:
        """End ``run`` at the next transaction boundary. May be called from a signal handler."""
        self._is_stopping = True

    def run(self) -> None:
        """Forecast until ``stop``.

        Raises:
            Fenced: another process has taken over this forecaster's name.
            OffsetsLost: the next readings were deleted or lost.
            StreamgruError: any other reason to end; no error loses readings or forecasts.
        """
        torch.set_num_threads(1)  # more threads do not speed up batches of this size; forecasters scale by partition
        settings, group_id = self._settings, self._settings.forecaster.group_id
        with ExitStack() as opened:
            opened.enter_context(
                answering_probes(settings, self._options.health_port, self._statistics, lambda: self._monitor)
            )
            check_topics(settings)
            owner = position_owner(group_id, find_topic_id(settings, settings.kafka.topics.readings))
            opened.callback(logger.info, "stopped")
            opened.callback(self._reporter.report)
            watcher = opened.enter_context(closing(ChampionWatcher(self._source, settings.forecaster.poll_alias_s)))
            champion = watcher.first(lambda: self._is_stopping)
            if champion is None:
                return
            serving = ServedModel(champion.version, champion.forecaster, settings)
            session = Session(settings, self._instance, self._options, owner, self._statistics.heartbeat)
            opened.callback(session.close)
            swap = ModelSwap(settings, watcher)
            opened.callback(swap.cancel)
            self._loop = loop = Loop(session, self._source, serving, swap, self._statistics)
            logger.info("forecaster %s: version %d, group %s", self._instance.name, champion.version, group_id)
            while not self._is_stopping:
                loop.turn()
                self._reporter.report_if_due()

    @property
    def _monitor(self) -> HealthMonitor | None:
        return None if self._loop is None else self._loop.session.monitor


class Loop:
    """The turns of a connected forecaster. One thread calls it."""

    def __init__(
        self, session: Session, source: ChampionSource, serving: ServedModel, swap: ModelSwap, statistics: Statistics
    ) -> None:
        forecaster = session.settings.forecaster
        self.session = session
        self._partitions = session.partitions
        self._source = source
        self._swap = swap
        self._counters = statistics.counters
        self._timings = statistics.timings
        self._quarantine = Quarantine(session.settings.model_name, source)
        self._batch_size = BatchSize(forecaster.max_batch_readings, forecaster.poll_interval_s)
        self._group_limit = GroupLimit(session.settings)
        self._alarms = TimeAlarms()
        self._swap_began: float | None = None  # monotonic time; None after the new model's first commit
        self._batch_builder = self._serve(serving)

    @property
    def serving(self) -> ServedModel:
        """The model version that serves, with its states."""
        return self._batch_builder.serving

    def turn(self) -> None:
        """Run one turn; discard the states in memory and restore if it fails."""
        try:
            self._turn()
        except (StartOver, SchemaRegistryError) as why:  # a registry that does not answer is an outage like a broker's
            self._counters.aborted += 1
            self._quarantine.clear()
            self._swap.cancel()
            self.session.start_over(why, self.serving)
        # Every turn, because commits, restores and revocations all change it.
        self._counters.held = sum(map(len, self._partitions.buffered.values()))
        self.session.publish_progress(len(self.serving.table))

    def _turn(self) -> None:
        # 1. Poll, and snapshot the group metadata at once. A moment later the client may be in another generation. With
        #    that generation's metadata the broker accepts offsets of partitions that now belong to another member.
        is_busy = self._partitions.need_full_write or not self._partitions.are_restored
        polled = self.session.poll(BUSY_POLL_MS if is_busy else POLL_MS, self._batch_size.readings)
        group_metadata = self.session.snapshot_group_metadata()

        # 2. Apply rebalances. Then select the records of partitions that have a position. Step 3 may give further
        #    partitions a position, but their records from this poll do not begin at that position.
        self._apply_rebalances(group_metadata)
        polled, later = self._group_limit.cut(self._partitions.select(polled), self.serving.table)
        self._partitions.read_again(later)

        # 3. Restore a slice of the partitions that were assigned.
        restored = self.session.restore(self.serving)
        if restored is not None:
            positions = self._partitions.positions
            self._swap.include(restored.positions.keys() & positions.keys(), self.serving, positions)
            self._counters.count_restored(restored.sensors, restored.rebuilt, restored.buffered_lost, restored.seconds)

        # 4. Swap the model if the next one is ready, but not during a restore, which fills the serving model's table.
        self._swap.update(self.serving, self._partitions.positions)
        if self._partitions.are_restored:
            self._swap_model()

        # 5. Step. A WRITING partition has no polled records, so a batch may consist of full writes alone. A forecaster
        #    that is not a member must not build such a batch: the commit would fail, the next restore would end in
        #    WRITING again, and so on.
        batch = self._step(polled, is_member(group_metadata))
        if batch is None:
            return

        # 6. Commit, with the metadata of step 1.
        self._commit(batch, group_metadata)

        # 7. Apply: only now do the new states replace the old ones.
        self._apply(batch)

    def _apply_rebalances(self, group_metadata: Any) -> None:
        for event, numbers in self.session.rebalances.drain():
            if event == "assigned":
                self._partitions.assign(numbers, self.serving)
                continue
            self.session.options.reached("revoked")
            self._partitions.revoke(numbers, self.serving)
            self._swap.drop_partitions(numbers)
            logger.info("partitions revoked: %s", listed(numbers))
        if self.session.has_missed_generation(group_metadata):
            logger.warning("this forecaster missed a generation of its consumer group; restoring all its partitions")
            self._swap.cancel()
            self._partitions.miss_generation(self.serving)

    def _swap_model(self) -> None:
        began = time.monotonic()
        serving = self._swap.swap_if_ready()
        if serving is not None:
            self.session.options.reached("swapping")
            self._swap_began = began
            self._batch_builder = self._serve(serving)
            self._partitions.request_full_write()
            self._counters.swaps += 1

    def _serve(self, serving: ServedModel) -> MicroBatchBuilder:
        self._batch_size.set_bytes_per_reading(serving.bytes_per_reading)
        self._counters.model_version = serving.version
        # Save the version before its states are written in full: after a crash in between, this forecaster restarts
        # with it.
        self._source.save_last_served(serving.version)
        return MicroBatchBuilder(self.session.settings, serving, self.session.owner)

    def _step(self, polled: Polled, may_commit: bool) -> MicroBatch | None:
        """The next transaction; None if there is nothing to commit."""
        while polled or (self._partitions.need_full_write and may_commit):
            full_writes = self._partitions.next_full_writes(self.serving.table)
            batch = self._batch_builder.build(polled, full_writes, self._partitions.buffered)
            if not batch.non_finite:
                return batch
            self._counters.quarantined_states += sum(map(len, batch.non_finite.values()))
            rebuild = self._quarantine.recover(batch.non_finite, self.serving)
            self._swap.drop_partitions(rebuild)
            self._partitions.rebuild(rebuild, self.serving)
            polled = self._partitions.select(polled)
        return None

    def _commit(self, batch: MicroBatch, group_metadata: Any) -> None:
        began = time.monotonic()
        try:
            self.session.commit(TransactionContent(batch.records, batch.positions, group_metadata))
        except StartOver:
            self._batch_size.failed(batch.record_count, batch.step_s, batch.outlook_states)
            raise
        self._timings.add_batch(batch.step_s, time.monotonic() - began, batch.sent_ms, time.time())
        self._batch_size.committed(batch.record_count, batch.step_s, batch.outlook_states)

    def _apply(self, batch: MicroBatch) -> None:
        if batch.stepped is not None:
            self.serving.table.scatter(batch.stepped.rows, batch.stepped.states)
        self._partitions.commit(batch.positions, batch.buffered, batch.needs_full_write)
        # A full write alone has no polled partition. It clears nothing, because the readings that led to a non-finite
        # state come later.
        self._quarantine.clear(batch.polled)
        self._swap.add_readings(batch.accepted)
        now = time.monotonic()
        if batch.counts.forecasts and not self._counters.forecasts:
            logger.info("first forecasts %.1f s after the start", now - self._counters.started)
        self._counters.add(batch.counts)
        if batch.implausible:
            self._alarms.add(batch.implausible)
            self._counters.implausible_times = self._alarms.most()
        log_unit_changes(batch.unit_changes)
        if self._swap_began is not None:
            self._counters.swap_pause_s = pause_s = now - self._swap_began
            self._swap_began = None
            logger.info("version %d serves; forecasts paused for %.3f s", self.serving.version, pause_s)
