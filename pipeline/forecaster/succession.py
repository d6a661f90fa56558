"""Swaps the model: warms up a new champion's states beside the serving model's, then hands the stream over to it."""

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

# The wait before the next warm-up after one that failed, because the broker was away, say.
RETRY_S: Final = 10.0
# While the hand-over steps the backlog, the stream waits. The allowed backlog doubles after each such time, so that the
# hand-over happens even if readings arrive faster than the background steps them.
PATIENCE_S: Final = 2.0


class Succession:
    """Warms up the watcher's candidate if another version serves. The loop's thread calls every method."""

    def __init__(self, settings: Settings, watcher: ChampionWatcher) -> None:
        self._settings = settings
        self._watcher = watcher
        self._rewarm: Rewarm | None = None
        self._caught_up: float | None = None  # when all partitions were replayed; monotonic clock
        self._retry_at = 0.0

    def advance(self, serving: Serving, positions: Mapping[int, int]) -> None:
        """Begin the candidate's warm-up if another version serves; end the warm-up of a version that was replaced."""
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
        """The new model with its states as of the last transaction; None until it has nearly caught up."""
        rewarm = self._rewarm
        if rewarm is None or not rewarm.is_near(self._allowed_backlog()):
            return None
        serving = rewarm.finish()
        if serving is not None:
            self._rewarm = None
        return serving

    def include(self, partitions: Iterable[int], serving: Serving, positions: Mapping[int, int]) -> None:
        """Warm up restored partitions too. From now on, looking up the champion does not delay a restore."""
        self._watcher.let_look()
        for partition in partitions:
            self.take(partition, serving, positions[partition])

    def take(self, partition: int, serving: Serving, position: int) -> None:
        """Warm up a partition that is RUNNING or WRITING, from ``position`` on."""
        if self._rewarm is not None:
            self._caught_up = None
            sensors, rows = serving.table.partition_rows(partition)
            states = serving.table.gather(rows)
            known = known_of_states(sensors, states, self._settings)
            self._rewarm.take(partition, known, position)

    def drop(self, partitions: Iterable[int]) -> None:
        """Leave out partitions that were revoked or are restored again."""
        if self._rewarm is not None:
            for partition in partitions:
                self._rewarm.drop(partition)

    def follow(self, accepted: Sequence[Readings]) -> None:
        """Step the readings of a transaction that was just committed."""
        if self._rewarm is not None and accepted:
            self._rewarm.follow(accepted)

    def give_up(self) -> None:
        """End the warm-up; the next ``advance`` begins another one."""
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
