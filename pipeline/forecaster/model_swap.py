"""The swap of the model: warm up a new champion in the background, then let it take over.

Warms up a new model in the background: recent readings are stepped through it while the old one serves.

One queue of orders, worked off strictly in order, makes it right: "take partition p, as of offset e" replays p's
readings before e from Kafka, and the batches that the loop has committed since follow behind it. So when the queue is
empty the new states are as of the last transaction, and the loop can hand over.

Swaps the model: warms up a new champion's states beside the serving model's, then hands the stream over to it.
"""

import logging
import queue
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from kafka import KafkaConsumer
from kafka.errors import KafkaError as ClientError

from pipeline.errors import StreamgruError
from pipeline.forecaster.champion import Candidate, ChampionWatcher
from pipeline.forecaster.readings import Readings
from pipeline.forecaster.rebuild import RebuildReport, SensorAnchors, StateRebuilder, anchors_of_states
from pipeline.forecaster.state_store import ServedModel
from pipeline.kafka.batch_consumer import read_fast
from pipeline.kafka.clients import make_consumer
from pipeline.settings import Settings

logger = logging.getLogger("streamgru.model_swap")


@dataclass(frozen=True)
class _AddPartition:
    partition: int
    known: Mapping[str, SensorAnchors | None]
    end: int


@dataclass(frozen=True)
class _DropPartition:
    partition: int


_Command = _AddPartition | _DropPartition | Sequence[Readings] | None  # None: everything there is has been ordered


class WarmUp:
    """A model version being warmed up. All methods are the loop's; the work is done by a thread of its own."""

    def __init__(self, settings: Settings, candidate: Candidate) -> None:
        self.version = candidate.version
        self.rebuilt = RebuildReport()
        self._settings = settings
        self._serving = ServedModel(candidate.version, candidate.forecaster, settings)
        self._commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._partitions: set[int] = set()
        self._pending_partitions = 0  # partitions ordered and not yet replayed
        self._backlog = 0  # readings ordered and not yet stepped
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        self._failure: BaseException | None = None
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=f"warm-up-{candidate.version}", daemon=True)
        self._thread.start()

    def add_partition(self, partition: int, known: Mapping[str, SensorAnchors | None], end: int) -> None:
        """Include a partition, as of the transaction whose next offset is ``end``."""
        with self._lock:
            self._partitions.add(partition)
            self._pending_partitions += 1
        self._commands.put(_AddPartition(partition, known, end))

    def drop_partition(self, partition: int) -> None:
        """Leave a partition out again."""
        with self._lock:
            self._partitions.discard(partition)
        self._commands.put(_DropPartition(partition))

    def add_readings(self, accepted: Sequence[Readings]) -> None:
        """Readings that a transaction has just made state."""
        with self._lock:
            self._backlog += sum(map(len, accepted))
        self._commands.put(accepted)

    @property
    def failure(self) -> BaseException | None:
        """What went wrong; none as long as nothing did."""
        return self._failure

    def has_replayed(self) -> bool:
        """Whether all partitions taken are replayed, and only batches are left to step."""
        with self._lock:
            return not self._pending_partitions

    def is_nearly_caught_up(self, readings: int) -> bool:
        """Whether all partitions are replayed and at most so many readings are left to step."""
        with self._lock:
            return not self._pending_partitions and self._backlog <= readings

    def finish(self) -> ServedModel | None:
        """The new model with its states, as of the last transaction; steps what is left. None: see ``failure``."""
        self._commands.put(None)
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
        self._commands.put(None)

    def _run(self) -> None:
        reader: KafkaConsumer | None = None
        try:
            # Readings that retention deletes meanwhile are a failure, not a jump.
            reader = read_fast(make_consumer(self._settings, client_id="streamgru-rewarm", auto_offset_reset="none"))
            rebuilder = StateRebuilder(self._settings, reader, self._serving, alive=self._is_wanted)
            while not self._cancelled.is_set():
                command = self._commands.get()
                if command is None:
                    return
                self._execute(command, rebuilder)
        except BaseException as error:  # whatever ends this thread early, what it leaves must not be served
            self._failure = error
            if not isinstance(error, (StreamgruError, ClientError, ValueError)):
                logger.exception("warming up version %d failed unexpectedly", self.version)
        finally:
            if reader is not None:
                with suppress(ClientError):
                    reader.close()

    def _execute(self, command: _AddPartition | _DropPartition | Sequence[Readings], rebuilder: StateRebuilder) -> None:
        table = self._serving.table
        if isinstance(command, _AddPartition):
            table.add_partition(command.partition)
            replay = rebuilder.rebuild(command.partition, command.known, command.end)
            while True:
                try:
                    next(replay)
                except StopIteration as done:
                    self.rebuilt += done.value
                    break
            with self._lock:
                self._pending_partitions -= 1
        elif isinstance(command, _DropPartition):
            table.drop_partition(command.partition)
        else:
            # Partitions that were revoked since are still in the batches of before.
            held = table.partitions
            self._serving.replay([readings for readings in command if readings.partition in held])
            with self._lock:
                self._backlog -= sum(map(len, command))

    def _is_wanted(self, partition: int) -> bool:
        return partition in self._partitions and not self._cancelled.is_set()


# --- the swap ---------------------------------------------------------------------------------------------------------


# The wait before the next warm-up after one that failed, because the broker was away, say.
RETRY_S: Final = 10.0
# While the hand-over steps the backlog, the stream waits. The allowed backlog doubles after each such time, so that the
# hand-over happens even if readings arrive faster than the background steps them.
BACKLOG_DOUBLES_S: Final = 2.0


class ModelSwap:
    """Warms up the watcher's candidate if another version serves. The loop's thread calls every method."""

    def __init__(self, settings: Settings, watcher: ChampionWatcher) -> None:
        self._settings = settings
        self._watcher = watcher
        self._warm_up: WarmUp | None = None
        self._caught_up: float | None = None  # when all partitions were replayed; monotonic clock
        self._retry_at = 0.0

    def update(self, serving: ServedModel, positions: Mapping[int, int]) -> None:
        """Begin the candidate's warm-up if another version serves; end the warm-up of a version that was replaced."""
        candidate = self._watcher.candidate()
        if candidate is None:
            return
        warm_up = self._warm_up
        if warm_up is not None and warm_up.failure is not None:
            logger.error("version %d could not be warmed up: %s; trying again", warm_up.version, warm_up.failure)
            self._retry_at = time.monotonic() + RETRY_S
            self.cancel()
        elif warm_up is not None and warm_up.version != candidate.version:
            logger.warning("version %d is not the champion any more; its warm-up ends", warm_up.version)
            self.cancel()
        if self._warm_up is None and candidate.version != serving.version and time.monotonic() >= self._retry_at:
            self._begin(candidate, serving, positions)

    def swap_if_ready(self) -> ServedModel | None:
        """The new model with its states as of the last transaction; None until it has nearly caught up."""
        warm_up = self._warm_up
        if warm_up is None or not warm_up.is_nearly_caught_up(self._allowed_backlog()):
            return None
        serving = warm_up.finish()
        if serving is not None:
            self._warm_up = None
        return serving

    def include(self, partitions: Iterable[int], serving: ServedModel, positions: Mapping[int, int]) -> None:
        """Warm up restored partitions too. From now on, looking up the champion does not delay a restore."""
        self._watcher.allow_polls()
        for partition in partitions:
            self.add_partition(partition, serving, positions[partition])

    def add_partition(self, partition: int, serving: ServedModel, position: int) -> None:
        """Warm up a partition that is RUNNING or WRITING, from ``position`` on."""
        if self._warm_up is not None:
            self._caught_up = None
            sensors, rows = serving.table.partition_rows(partition)
            states = serving.table.gather(rows)
            known = anchors_of_states(sensors, states, self._settings)
            self._warm_up.add_partition(partition, known, position)

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
        """End the warm-up; the next ``update`` begins another one."""
        if self._warm_up is not None:
            self._warm_up.cancel()
            self._warm_up = None

    def _begin(self, candidate: Candidate, serving: ServedModel, positions: Mapping[int, int]) -> None:
        logger.info("version %d is champion; warming it up while version %d serves", candidate.version, serving.version)
        self._warm_up = WarmUp(self._settings, candidate)
        self._caught_up = None
        for partition, position in positions.items():
            self.add_partition(partition, serving, position)

    def _allowed_backlog(self) -> int:
        assert self._warm_up is not None
        batch = self._settings.forecaster.max_batch_readings
        if self._caught_up is None:
            if self._warm_up.has_replayed():
                self._caught_up = time.monotonic()
            return batch
        doublings = min(20.0, (time.monotonic() - self._caught_up) / BACKLOG_DOUBLES_S)
        return int(batch * 2.0**doublings)
