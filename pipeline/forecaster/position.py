"""How far the readings of a partition are dealt with, as the group's committed offset says it.

While readings are held (``model.grace``), the offset committed is that of the first of them: a successor reads on from
there, so what is held needs no copy. How far all others are dealt with stands beside it, as the offset's metadata.
"""

from dataclasses import dataclass
from typing import Final

from kafka.structs import OffsetAndMetadata

_REACHED: Final = "reached="


@dataclass(frozen=True)
class Position:
    """A place in a partition of the readings topic."""

    next: int  # the offset of the next reading
    held_from: int | None = None  # the offset of the first one that is held; none is: None

    def to_commit(self) -> OffsetAndMetadata:
        """What the group commits."""
        if self.held_from is None:
            return OffsetAndMetadata(self.next, "", -1)
        return OffsetAndMetadata(self.held_from, f"{_REACHED}{self.next}", -1)

    @classmethod
    def of(cls, committed: OffsetAndMetadata) -> "Position":
        """The position that the group has committed; metadata that is not ours says nothing."""
        reached = str(committed.metadata or "").removeprefix(_REACHED)
        if reached != committed.metadata and reached.isdecimal() and int(reached) > committed.offset:
            return cls(int(reached), committed.offset)
        return cls(committed.offset)
