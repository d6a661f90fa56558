"""Plans a replay for a client that comes back: ranges of offsets, or a reset if the records cannot be sent."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.live.event_ids import EventId


@dataclass(frozen=True)
class Reset:
    """Why events between two ids will not come."""

    reason: Literal["deleted", "too-far", "unknown-id", "recreated"]
    detail: str


@dataclass(frozen=True)
class Ranges:
    """The missed records: by partition the first offset and the offset after the last one."""

    forecasts: tuple[tuple[int, int], ...]
    letters: tuple[tuple[int, int], ...]

    @property
    def records(self) -> int:
        """An upper bound of the number of records."""
        return sum(end - start for start, end in (*self.forecasts, *self.letters))


def plan_replay(
    since: EventId, until: EventId, forecasts_from: Sequence[int], letters_from: Sequence[int], most_records: int
) -> Ranges | Reset:
    """The ranges from one id to a later one.

    Args:
        since: the last id that the client has.
        until: the id from which the client gets live events.
        forecasts_from: first offset of each partition that is not deleted.
        letters_from: as ``forecasts_from``, of the dead letter topic.
        most_records: a longer replay is a reset.
    """
    if since.mark != until.mark:
        return Reset("recreated", "the topics were created from scratch since that event")
    pairs = ((since.forecasts, until.forecasts), (since.letters, until.letters))
    if any(len(earlier) > len(later) for earlier, later in pairs):
        return Reset("unknown-id", "the event id has more partitions than the topics")
    if any(start > end for earlier, later in pairs for start, end in zip(earlier, later, strict=False)):
        return Reset("unknown-id", "the event id lies behind the present end of a topic")
    # A partition that the id lacks was added to the topic since.
    forecasts, letters = (
        tuple(zip((*earlier, *(0,) * (len(later) - len(earlier))), later, strict=True)) for earlier, later in pairs
    )
    for ranges, firsts, topic in ((forecasts, forecasts_from, "forecasts"), (letters, letters_from, "dead letters")):
        for partition, ((start, end), first) in enumerate(zip(ranges, firsts, strict=True)):
            if start < min(first, end):
                return Reset(
                    "deleted",
                    f"retention has deleted {topic} {start} to {min(first, end) - 1} of partition {partition}",
                )
    planned = Ranges(forecasts, letters)
    if planned.records > most_records:
        return Reset("too-far", f"{planned.records:,} records were missed, and at most {most_records:,} are sent again")
    return planned
