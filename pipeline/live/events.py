"""Cuts records into live events, each with the id from which a client continues after it.

Live events and a replay come from the same ``EventCursor``, so a client cannot tell them apart. A model swap travels in
the event of the forecast that shows it: two events could be separated by a lost connection.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.dead_letter_form import DeadLetter
from pipeline.live.event_ids import EventId
from pipeline.live.forecast_head import ForecastHead

MOST_TOGETHER: Final = 200  # forecasts of one event, about 50 KB


@dataclass(frozen=True)
class Swap:
    """The first forecast of another model version in a partition."""

    at_ms: int  # Kafka timestamp of the forecast
    partition: int
    offset: int
    from_version: int
    to_version: int


@dataclass(frozen=True)
class ForecastsEvent:
    """Forecasts in offset order per partition, with the swaps that they show."""

    id: EventId
    heads: Sequence[ForecastHead]
    swaps: tuple[Swap, ...]


@dataclass(frozen=True)
class LetterEvent:
    """A dead letter."""

    id: EventId
    letter: DeadLetter


Event = ForecastsEvent | LetterEvent


class EventCursor:
    """The offsets up to which records were cut into events."""

    def __init__(self, start: EventId) -> None:
        self._mark = start.mark
        self._forecasts = list(start.forecasts)
        self._models = list(start.models)
        self._letters = list(start.letters)

    @property
    def id(self) -> EventId:
        """The id of the last event."""
        return EventId(self._mark, tuple(self._forecasts), tuple(self._models), tuple(self._letters))

    def forecast_events(self, heads: Sequence[ForecastHead]) -> list[ForecastsEvent]:
        """The events of forecasts in offset order per partition; earlier forecasts than the cursor's are left out."""
        heads = [head for head in heads if head.offset >= self._forecasts[head.partition]]
        return [self._forecasts_event(heads[at : at + MOST_TOGETHER]) for at in range(0, len(heads), MOST_TOGETHER)]

    def letter_events(self, letters: Sequence[DeadLetter]) -> list[LetterEvent]:
        """The events of dead letters, one each."""
        events = []
        for letter in letters:
            if letter.at_offset >= self._letters[letter.at_partition]:
                self._letters[letter.at_partition] = letter.at_offset + 1
                events.append(LetterEvent(self.id, letter))
        return events

    def _forecasts_event(self, heads: Sequence[ForecastHead]) -> ForecastsEvent:
        swaps = []
        for head in heads:
            before = self._models[head.partition]
            if before not in (0, head.model):
                swaps.append(Swap(head.sent_ms, head.partition, head.offset, before, head.model))
            self._models[head.partition] = head.model
            self._forecasts[head.partition] = head.offset + 1
        return ForecastsEvent(self.id, heads, tuple(swaps))
