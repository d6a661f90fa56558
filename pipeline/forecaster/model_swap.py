"""The model swap: warms up a new champion in the background, then lets it replace the serving model.

1. ``ModelSwap.update`` notices a new champion and starts a ``WarmUp``, which has a thread of its own.
2. For each partition the thread rebuilds the new model's states from the readings before the loop's position.
3. The thread also steps the readings of every transaction that the loop commits in the meantime.
4. When few readings are left, ``ModelSwap.swap_if_ready`` steps them while the stream waits, and returns the new model
   with states as of the last transaction.

The loop gives its commands to the thread through one queue. The thread executes them in order, so an empty queue means
that the new states are as of the last transaction.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final

from kafka import KafkaConsumer
from kafka.errors import KafkaError as ClientError

from pipeline.errors import StreamgruError
from pipeline.forecaster.champion import Candidate, ChampionWatcher
from pipeline.forecaster.readings import Readings
from pipeline.forecaster.rebuild import RebuildReport, SensorAnchors, StateRebuilder, anchors_of_states
from pipeline.forecaster.states.store import ServedModel
from pipeline.kafka.batch_consumer import read_fast
from pipeline.kafka.clients import make_consumer
from pipeline.reading_times import TimeRules
from pipeline.settings import Settings

logger = logging.getLogger("streamgru.model_swap")


class WarmUp:
    """The warm-up of one model version, in a thread of its own. The loop's thread calls the public methods."""

    def __init__(self, settings: Settings, candidate: Candidate) -> None:
        self.version = candidate.version
        self.rebuilt = RebuildReport()
        self.failure: BaseException | None = None  # the error that ended the thread
        self._settings = settings
        self._serving = ServedModel(candidate.version, candidate.forecaster, settings)
        # The functions that the thread calls, in order; None ends it.
        self._commands: queue.SimpleQueue[Callable[[StateRebuilder], None] | None] = queue.SimpleQueue()
        self._partitions: set[int] = set()
        self._pending_partitions = 0  # partitions whose states are not rebuilt yet
        self._unstepped = 0  # committed readings that are not stepped yet
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=f"warm-up-{candidate.version}", daemon=True)
        self._thread.start()

    def add_partition(
        self, partition: int, known: Mapping[str, SensorAnchors | None], end: int, time_rules: TimeRules = ()
    ) -> None:
        """Rebuild the states of a partition, as of the transaction whose position is ``end``."""
        with self._lock:
            self._partitions.add(partition)
            self._pending_partitions += 1
        self._commands.put(lambda rebuilder: self._rebuild(rebuilder, partition, known, end, time_rules))

    def drop_partition(self, partition: int) -> None:
        """Discard the states of a partition."""
        with self._lock:
            self._partitions.discard(partition)
        self._commands.put(lambda _: self._serving.table.drop_partition(partition))

    def add_readings(self, accepted: Sequence[Readings]) -> None:
        """Step the readings of a committed transaction."""
        with self._lock:
            self._unstepped += sum(map(len, accepted))
        self._commands.put(lambda _: self._step(accepted))

    def backlog(self) -> int | None:
        """The number of committed readings that are not stepped yet; None until all partitions are rebuilt."""
        with self._lock:
            return None if self._pending_partitions else self._unstepped

    def finish(self) -> ServedModel | None:
        """The new model with states as of the last transaction, after the remaining readings; None after a failure."""
        self._commands.put(None)
        self._thread.join()
        if self.failure is not None:
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
                "version %d: %d sensors start cold, because their recent readings are too far back or deleted: %s",
                self.version,
                len(self.rebuilt.cold),
                ", ".join(self.rebuilt.cold[:5]),
            )
        return self._serving

    def cancel(self) -> None:
        """End the thread after its current poll or command; its states are not used."""
        self._cancelled.set()
        self._commands.put(None)

    def _run(self) -> None:
        reader: KafkaConsumer | None = None
        try:
            # If retention deletes readings meanwhile, the reader fails and does not skip them.
            made = make_consumer(self._settings, client_id="streamgru-rewarm", auto_offset_reset="none")
            reader = read_fast(made, self._settings.kafka, in_columns=True)
            rebuilder = StateRebuilder(self._settings, reader, self._serving, alive=self._is_wanted)
            while (command := self._commands.get()) is not None and not self._cancelled.is_set():
                command(rebuilder)
        except BaseException as error:  # after any error the states are incomplete and must not be served
            self.failure = error
            if not isinstance(error, (StreamgruError, ClientError, ValueError)):
                logger.exception("warming up version %d failed unexpectedly", self.version)
        finally:
            if reader is not None:
                with suppress(ClientError):
                    reader.close()

    def _rebuild(
        self,
        rebuilder: StateRebuilder,
        partition: int,
        known: Mapping[str, SensorAnchors | None],
        end: int,
        time_rules: TimeRules,
    ) -> None:
        self._serving.table.add_partition(partition)
        self._serving.time_rules[partition] = time_rules
        rebuilding = rebuilder.rebuild(partition, known, end)
        while True:
            try:
                next(rebuilding)
            except StopIteration as done:
                self.rebuilt += done.value
                break
        with self._lock:
            self._pending_partitions -= 1

    def _step(self, accepted: Sequence[Readings]) -> None:
        # A transaction may contain readings of partitions that were revoked after it.
        partitions = self._serving.table.partitions
        self._serving.replay([readings for readings in accepted if readings.partition in partitions])
        with self._lock:
            self._unstepped -= sum(map(len, accepted))

    def _is_wanted(self, partition: int) -> bool:
        return partition in self._partitions and not self._cancelled.is_set()


# --- the swap ---------------------------------------------------------------------------------------------------------


RETRY_S: Final = 10.0  # seconds from a failed warm-up to the next one; a broker may be unreachable, for example
# seconds. The stream waits while the swap steps the remaining readings, so their number is limited. The limit doubles
# every BACKLOG_DOUBLES_S, so that the swap happens even if readings arrive faster than the thread steps them.
BACKLOG_DOUBLES_S: Final = 2.0


class ModelSwap:
    """Warms up the watcher's candidate if another version serves. The loop's thread calls every method."""

    def __init__(self, settings: Settings, watcher: ChampionWatcher) -> None:
        self._settings = settings
        self._watcher = watcher
        self._warm_up: WarmUp | None = None
        self._caught_up: float | None = None  # monotonic time at which the last partition was rebuilt
        self._retry_at = 0.0  # monotonic time of the next warm-up at the earliest

    def update(self, serving: ServedModel, positions: Mapping[int, int]) -> None:
        """Start the candidate's warm-up if another version serves; cancel one that failed or is out of date."""
        candidate = self._watcher.candidate()
        if candidate is None:
            return
        warm_up = self._warm_up
        if warm_up is not None and warm_up.failure is not None:
            logger.error("warming up version %d failed, trying again: %s", warm_up.version, warm_up.failure)
            self._retry_at = time.monotonic() + RETRY_S
            self.cancel()
        elif warm_up is not None and warm_up.version != candidate.version:
            logger.warning("version %d is no longer the champion; its warm-up is cancelled", warm_up.version)
            self.cancel()
        if self._warm_up is None and candidate.version != serving.version and time.monotonic() >= self._retry_at:
            logger.info("warming up champion version %d while version %d serves", candidate.version, serving.version)
            self._warm_up, self._caught_up = WarmUp(self._settings, candidate), None
            self._add_partitions(positions, serving, positions)

    def swap_if_ready(self) -> ServedModel | None:
        """The new model with its states as of the last transaction; None until few readings are left to step."""
        backlog = None if self._warm_up is None else self._warm_up.backlog()
        if self._warm_up is None or backlog is None:
            return None
        now = time.monotonic()
        if self._caught_up is None:
            self._caught_up = now
        doublings = min(20.0, (now - self._caught_up) / BACKLOG_DOUBLES_S)
        if backlog > int(self._settings.forecaster.max_batch_readings * 2.0**doublings):
            return None
        serving = self._warm_up.finish()
        if serving is not None:
            self._warm_up = None
        return serving

    def include(self, partitions: Iterable[int], serving: ServedModel, positions: Mapping[int, int]) -> None:
        """Warm up restored partitions too, and let the watcher poll: a poll no longer delays a restore."""
        self._watcher.allow_polls()
        self._add_partitions(partitions, serving, positions)

    def drop_partitions(self, partitions: Iterable[int]) -> None:
        """Leave out partitions that were revoked or are restored again."""
        if self._warm_up is not None:
            for partition in partitions:
                self._warm_up.drop_partition(partition)

    def add_readings(self, accepted: Sequence[Readings]) -> None:
        """Step the readings of a transaction that was just committed."""
        if self._warm_up is not None and accepted:
            self._warm_up.add_readings(accepted)

    def cancel(self) -> None:
        """Cancel the warm-up; the next ``update`` may start another one."""
        if self._warm_up is not None:
            self._warm_up.cancel()
            self._warm_up = None

    def _add_partitions(self, partitions: Iterable[int], serving: ServedModel, positions: Mapping[int, int]) -> None:
        """Warm up partitions that are RUNNING or WRITING, from their positions on."""
        if self._warm_up is None:
            return
        for partition in partitions:
            self._caught_up = None
            sensors, rows = serving.table.partition_rows(partition)
            known = anchors_of_states(sensors, serving.table.gather(rows), self._settings)
            rules = serving.time_rules.get(partition, ())
            self._warm_up.add_partition(partition, known, positions[partition], rules)
