"""Positions in the readings topic: committed by the group, recorded in the changelog, and the position to resume from.

Every transaction writes the position of a partition twice:

1. The group's committed offset, by which brokers fence, and which tools use for the lag. If readings are buffered
   (``model.reorder_buffer``), it is the offset of the first of them. A successor reads them again from there, so no
   copy of the buffer is stored. The offset's metadata has the offset of the next reading.
2. A record in the changelog, under a key that no state has.

Brokers may lose one of the two. A restarted broker may leave out the commit marker of a partition without a leader, a
power cut may destroy the newest records, and the offsets of a group expire (7 days after its last member by default).
``resume_position`` compares the two and chooses the position at which a forecaster continues.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

import msgspec

from pipeline.errors import OffsetsLost, StateError
from pipeline.kafka.group_positions import CommittedPosition as CommittedPosition  # part of this module's interface
from pipeline.kafka.group_positions import Position as Position  # part of this module's interface
from pipeline.kafka.time_rule_log import POSITION_KEY as POSITION_KEY  # part of this module's interface
from pipeline.kafka.time_rule_log import position_owner as position_owner  # part of this module's interface
from pipeline.reading_times import TimeRules
from pipeline.settings import Settings

logger = logging.getLogger("streamgru.positions")


class PositionRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """The changelog's record of a position. Releases without time rules ignore the field and write none."""

    position: Position
    owner: str  # see ``position_owner``
    time_rules: TimeRules = ()  # of the partition's readings, see ``pipeline.reading_times``

    def encode(self) -> bytes:
        """The value of the record."""
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, value: bytes | None) -> "PositionRecord":
        """The record with the given value.

        Raises:
            StateError: the value is not a position.
        """
        try:
            found = msgspec.json.decode(value or b"", type=cls)
        except msgspec.DecodeError as error:
            raise StateError(f"not a position: {error}") from error
        if not 0 <= found.position.read_from <= found.position.next:
            raise StateError(f"not a position: {found.position}")
        return found


# --- where to resume --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PartitionLog:
    """The first and the end offset of a partition of the readings topic, and the group's position."""

    partition: int
    start: int
    end: int
    committed: CommittedPosition | None

    @property
    def floor(self) -> int:
        """A lower bound for the position that ``resume_position`` returns."""
        committed = self.committed
        return self.start if committed is None or committed.position.next > self.end else committed.position.next


def position_from_group(settings: Settings, log: PartitionLog, *, accept_loss: bool) -> Position:
    """The position to continue from, by the group's committed offset.

    Raises:
        OffsetsLost: the committed offset lies outside the log, and ``accept_loss`` is not set.
    """
    committed = log.committed
    if committed is None:
        return Position(log.start if settings.forecaster.start == "earliest" else log.end)
    reached = committed.position.next
    if reached > log.end:
        cause = "the topic was deleted and recreated, or the brokers lost its newest readings"
    elif reached < log.start:
        cause = f"{log.start - reached} readings were deleted by retention before they were forecast"
    else:
        return committed.position
    message = (
        f"group {settings.forecaster.group_id} is at offset {reached} of {settings.kafka.topics.readings}, partition "
        f"{log.partition}, and the log has offsets {log.start} to {log.end}: {cause}"
    )
    if not accept_loss:
        raise OffsetsLost(f"{message}. To continue from offset {log.start}, start the forecaster with --accept-loss")
    logger.error("%s; continuing from offset %d", message, log.start)
    return Position(log.start)


def resume_position(settings: Settings, log: PartitionLog, recorded: Position | None, *, accept_loss: bool) -> Position:
    """The position to continue from, by the group's committed offset and the changelog's position.

    Args:
        recorded: the changelog's position; None if the changelog has none.

    Raises:
        OffsetsLost: see ``position_from_group``.
    """
    committed = log.committed
    if recorded is None or (committed is not None and not committed.is_ours):
        return position_from_group(settings, log, accept_loss=accept_loss)
    group = settings.forecaster.group_id
    if committed is None:
        logger.warning(
            "group %s has no offset for partition %d: brokers delete the offsets of a group without members after some "
            "days. Continuing at the changelog's offset %d. To start from scratch, reset the group's offsets; deleting "
            "them has no effect",
            group,
            log.partition,
            recorded.next,
        )
        committed = CommittedPosition(recorded)
    elif recorded.next > log.end:
        logger.error(
            "the changelog of partition %d is at offset %d, and the log of readings ends at %d: the brokers lost "
            "readings that had been forecast; continuing at the offset of group %s, %d",
            log.partition,
            recorded.next,
            log.end,
            group,
            committed.position.next,
        )
    elif committed.position.next < recorded.next:
        logger.error(
            "group %s is at offset %d of partition %d, and the changelog is at %d: the brokers lost an offset that was "
            "committed; continuing at the changelog's offset, because all earlier readings have been forecast",
            group,
            committed.position.next,
            log.partition,
            recorded.next,
        )
        committed = CommittedPosition(recorded)
    return position_from_group(settings, replace(log, committed=committed), accept_loss=accept_loss)


def describe_lost_readings(
    topic: str, lost_from: Mapping[int, int | None], reached: Mapping[int, int], *, accept_loss: bool
) -> str:
    """A message about readings that the brokers lost after this forecaster read them.

    If none of them had been forecast, a restore repairs everything. Only the forecaster that read them can see the
    loss: a forecaster that starts later sees a shorter log.

    Args:
        lost_from: partition -> first lost offset; None if the brokers do not know it.
        reached: partition -> offset up to which readings were forecast.

    Raises:
        OffsetsLost: some of the readings had been forecast, and ``accept_loss`` is not set.
    """
    places = ", ".join(
        f"{number} (from an unknown offset on)" if offset is None else f"{number} (from offset {offset} on)"
        for number, offset in lost_from.items()
    )
    message = f"the brokers lost readings of {topic} that this forecaster had read: partition {places}"
    were_forecast = any(offset is None or offset < reached.get(number, 0) for number, offset in lost_from.items())
    if were_forecast and not accept_loss:
        raise OffsetsLost(
            f"{message}. These readings had been forecast, and other readings may have taken their offsets. To "
            "continue, start the forecaster with --accept-loss; a partition whose log now ends before its committed "
            "offset continues from the start of its log"
        )
    return message


def lost_buffered_offsets(settings: Settings, partition: int, position: Position, start: int) -> int:
    """The number of offsets that retention deleted from the first buffered reading on; logs an error if there are any.

    The forecaster continues, because one silent sensor can keep a reading buffered for longer than retention lasts.
    """
    if position.held_from is None or position.held_from >= start:
        return 0
    logger.error(
        "partition %d: retention has deleted offsets %d to %d of %s. The first reading there was buffered, and more "
        "may have been; they get no forecast. To keep buffered readings, set a longer kafka.retention_s",
        partition,
        position.held_from,
        start - 1,
        settings.kafka.topics.readings,
    )
    return start - position.held_from
