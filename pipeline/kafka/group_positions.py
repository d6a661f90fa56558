"""Positions that the forecasters' group has committed in the readings topic. Reads them; joins no group.

The committed offset is that of the first buffered reading, if readings are buffered (``model.reorder_buffer``), and the
offset's metadata has the offset of the next reading. ``pipeline.forecaster.positions`` compares these positions with
those of the changelog.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import kafka.errors as client_errors
from kafka.structs import OffsetAndMetadata

from pipeline.kafka.clients import make_admin, translate_errors
from pipeline.settings import Settings

_REACHED: Final = "reached="


@dataclass(frozen=True)
class Position:
    """A place in a partition of the readings topic."""

    next: int  # offset of the next reading
    held_from: int | None = None  # offset of the first buffered reading; None if none is buffered

    @property
    def read_from(self) -> int:
        """The offset from which a successor must read."""
        return self.next if self.held_from is None else self.held_from

    def to_commit(self) -> OffsetAndMetadata:
        """The offset and the metadata that the group commits."""
        return OffsetAndMetadata(self.read_from, f"{_REACHED}{self.next}", -1)


@dataclass(frozen=True)
class CommittedPosition:
    """The group's committed position of a partition.

    ``is_ours``: a forecaster committed it. Otherwise a user reset the offset, and the changelog does not override it.
    """

    position: Position
    is_ours: bool = True

    @classmethod
    def of(cls, committed: OffsetAndMetadata) -> "CommittedPosition":
        """The position in a committed offset and its metadata; without our metadata the offset alone counts."""
        metadata = str(committed.metadata or "")
        reached = metadata.removeprefix(_REACHED)
        if reached != metadata and reached.isdecimal() and int(reached) >= committed.offset:
            is_buffering = committed.offset < int(reached)
            return cls(Position(int(reached), committed.offset if is_buffering else None))
        return cls(Position(committed.offset), is_ours=False)


_NO_COORDINATOR_YET: Final = (
    client_errors.CoordinatorNotAvailableError,
    client_errors.CoordinatorLoadInProgressError,
    client_errors.NotCoordinatorError,
)


def committed_offsets(settings: Settings, admin: Any = None) -> dict[int, int]:
    """The committed offset of each partition of the readings topic; partitions without one are absent.

    Buffered readings lie before it. Empty while a starting broker has no group coordinator yet.

    Args:
        settings: the group's and the topic's.
        admin: a client to ask with; by default a new one.

    Raises:
        KafkaError: no broker answers.
    """
    group, topic = settings.forecaster.group_id, settings.kafka.topics.readings
    with translate_errors(f"looking up the offsets of group {group}", settings), ExitStack() as opened:
        asked = admin or opened.enter_context(make_admin(settings))
        try:
            found = asked.list_group_offsets([group])[group]
        except _NO_COORDINATOR_YET:
            return {}
    return {
        tp.partition: CommittedPosition.of(at).position.next
        for tp, at in found.items()
        if tp.topic == topic and at.offset >= 0
    }
