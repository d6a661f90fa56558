"""Reads the records that a client has missed from Kafka again, as the same events."""

from collections.abc import Generator, Iterator, Sequence
from itertools import islice

from pipeline.kafka.topic_reader import LoggedRecord, read_topic, topic_starts
from pipeline.live.event_ids import BadEventId, EventId
from pipeline.live.events import MOST_TOGETHER, Event, EventCursor
from pipeline.live.forecast_head import HeadReader
from pipeline.live.letter_head import read_letter
from pipeline.live.replay import Ranges, Reset, plan_replay
from pipeline.settings import Settings


def parse_event_id(text: str) -> EventId | Reset:
    """The id that a client sent, or why it is of no use."""
    try:
        return EventId.decode(text)
    except BadEventId as error:
        return Reset("unknown-id", str(error))


def replay(settings: Settings, since: EventId, until: EventId) -> Generator[Event | Reset, None, None]:
    """The events between two ids; a single reset if they cannot be sent.

    Raises:
        KafkaError: no broker answers. The events so far hold; continue with the id of the last one.
    """
    topics = settings.kafka.topics
    forecasts_from, letters_from = (_starts(settings, topic) for topic in (topics.forecasts, topics.dead_letters))
    planned = plan_replay(since, until, forecasts_from, letters_from, settings.serve.replay_records)
    if isinstance(planned, Reset):
        yield planned
        return
    cursor = EventCursor(_start(since, planned))
    reader = HeadReader(settings)
    for records in _batches(settings, topics.forecasts, planned.forecasts):
        heads = [head for record in records if (head := reader.read(record.partition, record)) is not None]
        yield from cursor.forecast_events(heads)
    for records in _batches(settings, topics.dead_letters, planned.letters):
        letters = [letter for record in records if (letter := read_letter(record)) is not None]
        yield from cursor.letter_events(letters)


def _starts(settings: Settings, topic: str) -> list[int]:
    return [start for _, start in sorted(topic_starts(settings, topic).items())]


def _start(since: EventId, planned: Ranges) -> EventId:
    """The id before the first missed record, with the partitions that were added to the topics."""
    models = (*since.models, *(0,) * (len(planned.forecasts) - len(since.models)))
    forecasts, letters = (tuple(start for start, _ in ranges) for ranges in (planned.forecasts, planned.letters))
    return EventId(since.mark, forecasts, models, letters)


def _batches(settings: Settings, topic: str, ranges: Sequence[tuple[int, int]]) -> Iterator[list[LoggedRecord]]:
    """The records of the ranges, some together."""
    missed = {number: bounds for number, bounds in enumerate(ranges) if bounds[0] < bounds[1]}
    if not missed:
        return
    starts = {number: start for number, (start, _) in missed.items()}
    records = read_topic(settings, topic, starts, {number: end for number, (_, end) in missed.items()})
    while batch := list(islice(records, MOST_TOGETHER)):
        yield batch
