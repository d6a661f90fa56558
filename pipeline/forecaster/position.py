"""How far the readings of a partition are dealt with, as two records of every transaction say it.

The group's committed offset is what the brokers fence by, and what lag is measured by. While readings are held
(``model.grace``), it is that of the first of them: a successor reads on from there, so what is held needs no copy. How
far all others are dealt with stands beside it, as the offset's metadata.

The same position stands in the changelog, under a key of its own among the states. One transaction writes both, yet
brokers may lose either alone: a marker that is left out for a partition without a leader, the newest records of a
machine that lost its power, the offsets of a group that was away for longer than these are kept (7 days by default).
What the two say together tells which (``pipeline.forecaster.changelog``).
"""

from dataclasses import dataclass
from typing import Final

import msgspec
from kafka.structs import OffsetAndMetadata

from pipeline.errors import StateError

# Of the record in the changelog. It is no sensor's: their ids are UTF-8.
POSITION_KEY: Final = b"\xffposition"
_REACHED: Final = "reached="


@dataclass(frozen=True)
class Position:
    """A place in a partition of the readings topic."""

    next: int  # the offset of the next reading
    held_from: int | None = None  # the offset of the first one that is held; none is: None

    @property
    def read_from(self) -> int:
        """The offset from which a successor must read."""
        return self.next if self.held_from is None else self.held_from

    def to_commit(self) -> OffsetAndMetadata:
        """What the group commits."""
        return OffsetAndMetadata(self.read_from, f"{_REACHED}{self.next}", -1)


class Noted(msgspec.Struct, frozen=True):
    """The changelog's record of a position."""

    position: Position
    owner: str  # see ``owner_of_positions``

    def encode(self) -> bytes:
        """The value of the record."""
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, value: bytes | None) -> "Noted":
        """What ``encode`` made.

        Raises:
            StateError: it made nothing like it.
        """
        try:
            found = msgspec.json.decode(value or b"", type=cls)
        except msgspec.DecodeError as error:
            raise StateError(f"not a position: {error}") from error
        if not 0 <= found.position.read_from <= found.position.next:
            raise StateError(f"not a position: {found.position}")
        return found


def owner_of_positions(group_id: str, topic_id: str) -> str:
    """What positions belong to: another group begins anew, and so does a topic that was deleted and made anew."""
    return f"{group_id} in {topic_id}"


@dataclass(frozen=True)
class Committed:
    """What the group has committed for a partition.

    ``is_ours``: a forecaster did, and no hand that reset the offset, which is obeyed whatever the changelog says.
    """

    position: Position
    is_ours: bool = True

    @classmethod
    def of(cls, committed: OffsetAndMetadata) -> "Committed":
        """Metadata that is not ours says nothing."""
        metadata = str(committed.metadata or "")
        reached = metadata.removeprefix(_REACHED)
        if reached != metadata and reached.isdecimal() and int(reached) >= committed.offset:
            behind = committed.offset < int(reached)
            return cls(Position(int(reached), committed.offset if behind else None))
        return cls(Position(committed.offset), is_ours=False)
