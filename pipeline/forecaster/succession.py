"""When a new champion takes over: its states are warmed up beside the old model's, then it is handed the stream."""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from pipeline.forecaster.champion import Candidate, ChampionWatcher
from pipeline.forecaster.readings import Readings
from pipeline.forecaster.replay import known_of_states
from pipeline.forecaster.rewarm import Rewarm
from pipeline.forecaster.serving import Serving
from pipeline.settings import Settings

logger = logging.getLogger("streamgru.succession")

# A warm-up that failed (the broker was away, say) is tried again after this long.
RETRY_S: Final = 10.0
# The readings that the hand-over may have to catch up with while the stream waits double this often, so that it comes
# about even where readings arrive faster than the background keeps up with.
PATIENCE_S: Final = 2.0


class Succession:
    """Warms up the watcher's candidate whenever it is not what serves. All methods are the loop's."""

    def __init__(self, settings: Settings, watcher: ChampionWatcher) -> None:
        self._settings = settings
        self._watcher = watcher
        self._rewarm: Rewarm | None = None
        self._caught_up: float | None = None  # when all partitions had been replayed
        self._retry_at = 0.0

    def advance(self, serving: Serving, positions: Mapping[int, int]) -> None:
        """Begin to warm up a candidate that is not serving, or give up one that is not the candidate any more."""
        candidate = self._watcher.candidate()
        if candidate is None:
            return
        rewarm = self._rewarm
        if rewarm is not None and rewarm.failure is not None:
            logger.error("version %d could not be warmed up: %s; trying again", rewarm.version, rewarm.failure)
            self._retry_at = time.monotonic() + RETRY_S
            self.give_up()
        elif rewarm is not None and rewarm.version != candidate.version:
            logger.warning("version %d is not the champion any more; its warm-up ends", rewarm.version)
            self.give_up()
        if self._rewarm is None and candidate.version != serving.version and time.monotonic() >= self._retry_at:
            self._begin(candidate, serving, positions)

    def hand_over(self) -> Serving | None:
        """The new model with its states as of the last transaction, once it has nearly caught up; else none."""
        rewarm = self._rewarm
        if rewarm is None or not rewarm.is_near(self._allowed_backlog()):
            return None
        serving = rewarm.finish()
        if serving is not None:
            self._rewarm = None
        return serving

    def take(self, partition: int, serving: Serving, position: int) -> None:
        """A partition is being served, from ``position`` on."""
        if self._rewarm is not None:
            self._caught_up = None
            sensors, rows = serving.table.partition_rows(partition)
            states = serving.table.gather(rows)
            known = known_of_states(sensors, states, self._settings)
            self._rewarm.take(partition, known, position)

    def drop(self, partitions: Iterable[int]) -> None:
        """Partitions are not served any more."""
        if self._rewarm is not None:
            for partition in partitions:
                self._rewarm.drop(partition)

    def follow(self, accepted: Sequence[Readings]) -> None:
        """Readings that a transaction has just made state."""
        if self._rewarm is not None and accepted:
            self._rewarm.follow(accepted)

    def give_up(self) -> None:
        """End a warm-up; the next ``advance`` begins it anew."""
        if self._rewarm is not None:
            self._rewarm.cancel()
            self._rewarm = None

    def _begin(self, candidate: Candidate, serving: Serving, positions: Mapping[int, int]) -> None:
        logger.info("version %d is champion; warming it up while version %d serves", candidate.version, serving.version)
        self._rewarm = Rewarm(self._settings, candidate)
        self._caught_up = None
        for partition, position in positions.items():
            self.take(partition, serving, position)

    def _allowed_backlog(self) -> int:
        assert self._rewarm is not None
        batch = self._settings.forecaster.max_batch_readings
        if self._caught_up is None:
            if self._rewarm.has_replayed():
                self._caught_up = time.monotonic()
            return batch
        doublings = min(20.0, (time.monotonic() - self._caught_up) / PATIENCE_S)
        return int(batch * 2.0**doublings)
