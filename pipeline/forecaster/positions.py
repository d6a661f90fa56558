"""Positions in the readings topic: committed by the group, recorded in the changelog, and where to resume.

How far the readings of a partition are dealt with, as two records of every transaction say it.

The group's committed offset is what the brokers fence by, and what lag is measured by. While readings are held
(``model.reorder_buffer``), it is that of the first of them: a successor reads on from there, so what is held needs no
copy. How far all others are dealt with stands beside it, as the offset's metadata.

The same position stands in the changelog, under a key of its own among the states. One transaction writes both, yet
brokers may lose either alone: a marker that is left out for a partition without a leader, the newest records of a
machine that lost its power, the offsets of a group that was away for longer than these are kept (7 days by default).
What the two say together tells which (``pipeline.forecaster.restore``).

Where to go on in a partition of the readings topic: by its log, the group's offset and the changelog.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import msgspec
from kafka.structs import OffsetAndMetadata

from pipeline.errors import OffsetsLost, StateError
from pipeline.settings import Settings

logger = logging.getLogger("streamgru.positions")

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


class PositionRecord(msgspec.Struct, frozen=True):
    """The changelog's record of a position."""

    position: Position
    owner: str  # see ``position_owner``

    def encode(self) -> bytes:
        """The value of the record."""
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, value: bytes | None) -> "PositionRecord":
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


def position_owner(group_id: str, topic_id: str) -> str:
    """What positions belong to: another group begins anew, and so does a topic that was deleted and made anew."""
    return f"{group_id} in {topic_id}"


@dataclass(frozen=True)
class CommittedPosition:
    """What the group has committed for a partition.

    ``is_ours``: a forecaster did, and no hand that reset the offset, which is obeyed whatever the changelog says.
    """

    position: Position
    is_ours: bool = True

    @classmethod
    def of(cls, committed: OffsetAndMetadata) -> "CommittedPosition":
        """Metadata that is not ours says nothing."""
        metadata = str(committed.metadata or "")
        reached = metadata.removeprefix(_REACHED)
        if reached != metadata and reached.isdecimal() and int(reached) >= committed.offset:
            behind = committed.offset < int(reached)
            return cls(Position(int(reached), committed.offset if behind else None))
        return cls(Position(committed.offset), is_ours=False)


# --- where to resume --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PartitionLog:
    """Where a partition of the readings topic begins and ends, and where the group goes on."""

    partition: int
    start: int
    end: int
    committed: CommittedPosition | None

    @property
    def floor(self) -> int:
        """The lowest offset that the next reading may turn out to have."""
        committed = self.committed
        return self.start if committed is None or committed.position.next > self.end else committed.position.next


def position_from_group(settings: Settings, log: PartitionLog, *, accept_loss: bool) -> Position:
    """Where to go on in a partition.

    Raises:
        OffsetsLost: the committed offset lies outside the log, and ``accept_loss`` does not allow for that.
    """
    topic = settings.kafka.topics.readings
    committed = log.committed
    if committed is None:
        return Position(log.start if settings.forecaster.start == "earliest" else log.end)
    reached = committed.position.next
    if reached > log.end:
        lost = "the topic was deleted and made anew, or the brokers have lost its newest readings"
    elif reached < log.start:
        lost = f"{log.start - reached} readings were deleted by retention before they were forecast"
    else:
        return committed.position
    message = (
        f"group {settings.forecaster.group_id} is to go on at offset {reached} of {topic}, partition {log.partition} "
        f"and the log has offsets {log.start} to {log.end}: {lost}"
    )
    if not accept_loss:
        raise OffsetsLost(f"{message}. To go on from offset {log.start}, start the forecaster with --accept-loss")
    logger.error("%s; going on from offset %d", message, log.start)
    return Position(log.start)


def resume_position(settings: Settings, log: PartitionLog, recorded: Position | None, *, accept_loss: bool) -> Position:
    """Where to go on, by what the group says and what the changelog does.

    Raises:
        OffsetsLost: see ``position_from_group``.
    """
    committed = log.committed
    if recorded is None:
        pass
    elif committed is None:
        logger.warning(
            "group %s has no offset in partition %d, and the changelog says %d: brokers forget a group that is away "
            "for long; going on from there. To begin anew, reset the group's offsets, since deleting them does not",
            settings.forecaster.group_id,
            log.partition,
            recorded.next,
        )
        committed = CommittedPosition(recorded)
    elif committed.is_ours and recorded.next > log.end:
        logger.error(
            "the changelog says offset %d of partition %d, where the log of readings ends at %d: the brokers have lost "
            "readings that had been forecast; going on from the group's offset %d",
            recorded.next,
            log.partition,
            log.end,
            committed.position.next,
        )
    elif committed.is_ours and committed.position.next < recorded.next:
        logger.error(
            "group %s is at offset %d of partition %d, and the changelog at %d: the brokers have lost an offset that "
            "was committed; going on where the changelog is, since all before has been forecast",
            settings.forecaster.group_id,
            committed.position.next,
            log.partition,
            recorded.next,
        )
        committed = CommittedPosition(recorded)
    return position_from_group(settings, replace(log, committed=committed), accept_loss=accept_loss)


def describe_lost_readings(
    topic: str, lost_from: Mapping[int, int | None], reached: Mapping[int, int], *, accept_loss: bool
) -> str:
    """What to say of readings that the brokers lost after they were read: going back to the last transaction will do.

    Unless they had been forecast. Only who had read them can see it: a forecaster that starts later sees no more than
    where its log ends.

    Args:
        lost_from: by partition, the first offset that is lost; none where the brokers do not know.
        reached: by partition, the offset up to which readings were forecast.

    Raises:
        OffsetsLost: they had been forecast, and ``accept_loss`` does not allow for that.
    """
    named = ", ".join(
        f"{number} (from offset {'unknown' if offset is None else offset} on)" for number, offset in lost_from.items()
    )
    what = f"the brokers have lost readings of {topic} that were read: partition {named}"
    were_forecast = any(offset is None or offset < reached.get(number, 0) for number, offset in lost_from.items())
    if were_forecast and not accept_loss:
        raise OffsetsLost(
            f"{what}; they were forecast already, and others may be in their place. To go on all the same, from the "
            "start of a log that ends before its offset now, start the forecaster with --accept-loss"
        )
    return what


def lost_buffered_offsets(settings: Settings, partition: int, position: Position, start: int) -> int:
    """How many offsets retention has taken from the first held reading on; what was held there gets no forecast.

    It is logged and no reason to stop: one sensor that fell silent may hold a reading for longer than retention lasts.
    """
    if position.held_from is None or position.held_from >= start:
        return 0
    lost = start - position.held_from
    logger.error(
        "partition %d: retention has deleted offsets %d to %d of %s, of which the first and maybe more were readings "
        "held behind a gap; they get no forecast, and the stream goes on. To keep such readings, set a longer "
        "kafka.retention_s",
        partition,
        position.held_from,
        start - 1,
        settings.kafka.topics.readings,
    )
    return lost
