"""Where to go on in a partition of the readings topic: by its log, the group's offset and the changelog."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

from pipeline.errors import OffsetsLost
from pipeline.forecaster.position import Committed, Position
from pipeline.settings import Settings

logger = logging.getLogger("streamgru.changelog")


@dataclass(frozen=True)
class Log:
    """Where a partition of the readings topic begins and ends, and where the group goes on."""

    partition: int
    start: int
    end: int
    committed: Committed | None

    @property
    def floor(self) -> int:
        """The lowest offset that the next reading may turn out to have."""
        committed = self.committed
        return self.start if committed is None or committed.position.next > self.end else committed.position.next


def first_position(settings: Settings, log: Log, *, accept_loss: bool) -> Position:
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


def settle_position(settings: Settings, log: Log, noted: Position | None, *, accept_loss: bool) -> Position:
    """Where to go on, by what the group says and what the changelog does.

    Raises:
        OffsetsLost: see ``first_position``.
    """
    committed = log.committed
    if noted is None:
        pass
    elif committed is None:
        logger.warning(
            "group %s has no offset in partition %d, and the changelog says %d: brokers forget a group that is away "
            "for long; going on from there. To begin anew, reset the group's offsets, since deleting them does not",
            settings.forecaster.group_id,
            log.partition,
            noted.next,
        )
        committed = Committed(noted)
    elif committed.is_ours and noted.next > log.end:
        logger.error(
            "the changelog says offset %d of partition %d, where the log of readings ends at %d: the brokers have lost "
            "readings that had been forecast; going on from the group's offset %d",
            noted.next,
            log.partition,
            log.end,
            committed.position.next,
        )
    elif committed.is_ours and committed.position.next < noted.next:
        logger.error(
            "group %s is at offset %d of partition %d, and the changelog at %d: the brokers have lost an offset that "
            "was committed; going on where the changelog is, since all before has been forecast",
            settings.forecaster.group_id,
            committed.position.next,
            log.partition,
            noted.next,
        )
        committed = Committed(noted)
    return first_position(settings, replace(log, committed=committed), accept_loss=accept_loss)


def what_was_lost(
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


def held_lost(settings: Settings, partition: int, position: Position, start: int) -> int:
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
