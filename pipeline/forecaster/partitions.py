"""The partitions of one forecaster: each has arrived, is being restored, or is served."""

import logging
import time
from collections.abc import Collection, Generator, Iterable, Mapping
from contextlib import suppress
from typing import Final

from kafka import KafkaConsumer, TopicPartition

from pipeline.forecaster.changelog import Changelog, Restored
from pipeline.forecaster.position import Committed
from pipeline.forecaster.readings import Readings
from pipeline.forecaster.serving import Serving
from pipeline.kafka.patches import next_offset

logger = logging.getLogger("streamgru.partitions")

# How long an offset is waited for that another forecaster's open transaction may still change; then others get a turn.
COMMITTED_TIMEOUT_MS: Final = 200
# How long one call restores: the other partitions wait so long for their turn, and each turn costs a poll that finds
# nothing (``loop.BUSY_POLL_MS``).
SLICE_S: Final = 0.1
# What the client raises of a partition that its own thread has just given up; the note about that is read next turn.
_NOT_ASSIGNED: Final = (ValueError, KeyError)


class Partitions:
    """Takes partitions from their assignment to being served. All methods are the loop's.

    A partition that is not served is paused, so ``poll`` brings nothing of it.

    Args:
        consumer: of the group; ``pipeline.forecaster.membership`` pauses what is assigned to it.
        topic: of the readings.
    """

    def __init__(self, consumer: KafkaConsumer, topic: str, changelog: Changelog, *, accept_loss: bool) -> None:
        self.positions: dict[int, int] = {}  # of those served: the offset of the next reading
        self.held: dict[int, Readings] = {}  # of those served, where any are: the readings that wait for earlier ones
        # Of those served: all states of these must be written once. Of those that arrived so, nothing is polled before.
        self.unsaved: set[int] = set()
        self._consumer = consumer
        self._topic = topic
        self._changelog = changelog
        self._accept_loss = accept_loss
        self.last_positions: dict[int, int] = {}  # likewise, of those also that are to be restored again
        self._arrived: set[int] = set()
        self._restoring: set[int] = set()
        self._unanswered: set[int] = set()  # whose committed offset this job asked for, without an answer so far
        self._outdated: set[int] = set()  # likewise an earlier job: the next answer may be of before a successor
        self._distrusted: dict[int, set[str]] = {}  # sensors whose states in the changelog are not to be used
        self._job: Generator[None, None, Restored] | None = None

    @property
    def are_served(self) -> bool:
        """Whether there is none that waits for its states."""
        return self._job is None and not self._arrived

    @property
    def has_any(self) -> bool:
        """Whether any partition is this forecaster's, served or not."""
        return bool(self._arrived or self._restoring or self.positions)

    def arrive(self, partitions: Iterable[int]) -> None:
        """These were assigned."""
        self._arrived.update(partitions)

    def leave(self, partitions: Iterable[int], serving: Serving) -> None:
        """These were revoked: their rows go."""
        for partition in partitions:
            self._arrived.discard(partition)
            self._distrusted.pop(partition, None)
            self._restoring.discard(partition)
            self.positions.pop(partition, None)
            self.last_positions.pop(partition, None)
            self.held.pop(partition, None)
            self.unsaved.discard(partition)
            serving.table.drop_partition(partition)

    def restore(self, serving: Serving) -> Restored | None:
        """Restore what has arrived, for a moment; once that is done, what was restored: it is served from now on.

        The first call of a restore only begins it.

        Raises:
            OffsetsLost: see ``resume_point.first_position``.
            kafka.errors.KafkaError: ``start_over`` before the next call.
        """
        if self._job is None:
            if not self._arrived:
                return None
            logger.info("partitions assigned: %s; restoring their states", listed(self._arrived))
            self._restoring, self._arrived = self._arrived, set()
            self._outdated |= self._unanswered
            self._unanswered.clear()
            self._job = self._changelog.restore(
                serving,
                self._restoring,
                self._committed,
                accept_loss=self._accept_loss,
                distrusted=self._distrusted,
            )
            until = 0.0
        else:
            until = time.monotonic() + SLICE_S
        try:
            while True:
                next(self._job)
                if time.monotonic() >= until:
                    return None
        except StopIteration as done:
            self._job = None
            restored: Restored = done.value
            self._serve(restored)
            return restored

    def read_up_to(self) -> dict[int, int]:
        """Of those served: where the client reads on, behind markers of transactions that it never hands out."""
        found = dict(self.positions)
        for partition in self.positions:
            position = next_offset(self._consumer, TopicPartition(self._topic, partition))
            found[partition] = max(found[partition], position or 0)
        return found

    def start_over(self, serving: Serving) -> None:
        """Forget all states; every partition is to be restored again."""
        self._job = None
        mine = self._arrived | self._restoring | self.positions.keys()
        for partition in mine:
            self._stop_serving(partition, serving)
        self._arrived, self._restoring = mine, set()

    def saved(self, partitions: Iterable[int]) -> None:
        """All states of these are in the changelog."""
        for partition in partitions:
            self.unsaved.discard(partition)
            with suppress(*_NOT_ASSIGNED):
                self._consumer.resume(TopicPartition(self._topic, partition))

    def rebuild(self, unsound: Mapping[int, Iterable[str]], serving: Serving) -> None:
        """Restore partitions again, the named sensors of each not from the changelog; others are served meanwhile."""
        for partition, sensors in unsound.items():
            self._stop_serving(partition, serving)
            self._distrusted.setdefault(partition, set()).update(sensors)
            self._arrived.add(partition)

    def _stop_serving(self, partition: int, serving: Serving) -> None:
        with suppress(*_NOT_ASSIGNED):
            self._consumer.pause(TopicPartition(self._topic, partition))
        serving.table.drop_partition(partition)
        if partition in self.positions:
            self.last_positions[partition] = self.positions.pop(partition)
        self.held.pop(partition, None)
        self.unsaved.discard(partition)

    def _committed(self, partition: int) -> Committed | None:
        """What the group has committed, as of a question that this job asked.

        kafka-python 3.0.12 keeps a question that timed out, also while the partition is another member's, and gives its
        answer to whoever asks next. What an earlier job left is therefore waited for and thrown away.
        """
        if partition in self._outdated:
            self._ask(partition)
            self._outdated.discard(partition)
        self._unanswered.add(partition)
        committed = self._ask(partition)
        self._unanswered.discard(partition)
        return committed

    def _ask(self, partition: int) -> Committed | None:
        where = TopicPartition(self._topic, partition)
        committed = self._consumer.committed(where, metadata=True, timeout_ms=COMMITTED_TIMEOUT_MS)
        return None if committed is None else Committed.of(committed)

    def _serve(self, restored: Restored) -> None:
        self._restoring = set()
        for partition, position in restored.positions.items():
            where = TopicPartition(self._topic, partition)
            with suppress(*_NOT_ASSIGNED):
                self._consumer.seek(where, position)
                # Else the position in the changelog would pass states there that are behind it.
                if partition not in restored.unsaved:
                    self._consumer.resume(where)
                self.positions[partition] = position
                if partition in restored.held:
                    self.held[partition] = restored.held[partition]
            self._distrusted.pop(partition, None)
        self.unsaved |= restored.unsaved & self.positions.keys()
        logger.info(
            "partitions %s are served: %d states restored, %d rebuilt from readings, %d cold, in %.2f s",
            listed(restored.positions),
            restored.sensors,
            restored.rebuilt.sensors,
            len(restored.rebuilt.cold),
            restored.seconds,
        )


def listed(partitions: Collection[int]) -> str:
    """Partitions for a message."""
    return ", ".join(map(str, sorted(partitions))) or "none"
