"""Follows the committed records of readings, forecasts and dead letters, and feeds them to a ``LiveView``.

One thread runs ``Follower.run``. It joins no group and commits nothing, so the forecasters do not notice it. After an
outage it continues at its own offsets. A forecast is added after its reading: both may arrive in one poll, in either
order, and with several brokers the forecast may come first.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Final

import kafka.errors as client_errors
import numpy as np
from kafka import KafkaConsumer, TopicPartition

from pipeline.dead_letter_form import DeadLetter
from pipeline.errors import StreamgruError
from pipeline.kafka.batch_consumer import read_fast
from pipeline.kafka.clients import make_consumer, translate_errors
from pipeline.kafka.look_back import LookBack, look_back
from pipeline.kafka.topic_reader import LoggedRecord
from pipeline.kafka.topics import find_topic_id
from pipeline.live.event_ids import EventId, topics_mark
from pipeline.live.events import Event, EventCursor
from pipeline.live.forecast_head import ForecastHead, HeadReader
from pipeline.live.index import Indexed
from pipeline.live.letter_head import read_letter
from pipeline.live.replay import Reset
from pipeline.live.view import FOLLOWER, LiveView
from pipeline.messages import Rejected
from pipeline.readings_format.decoder import make_decoder
from pipeline.settings import Settings
from pipeline.text.plural import counted

logger = logging.getLogger("streamgru.live")

_POLL_MS: Final = 250
_POLL_RECORDS: Final = 2_000
_RETRY_S: Final = 0.5
_BACKLOG: Final = 5_000  # readings of lag from which on the forecasters have the processors first
_BACKLOG_SHARE: Final = 0.1  # of a processor that this thread takes meanwhile
_LONGEST_WAIT_S: Final = 1.0
# The longest time that a forecast waits for its reading. Then it is shown without the reading's value.
_WAIT_FOR_READING_S: Final = 2.0


@dataclass
class _Waiting:
    """A forecast whose reading has not arrived."""

    head: ForecastHead
    until_s: float  # monotonic


@dataclass
class _Positions:
    """Where each partition is read next, and how far the readings may run ahead."""

    next: dict[Any, int] = field(default_factory=dict)  # partition of any followed topic -> next offset
    forecast_of: dict[int, int] = field(default_factory=dict)  # readings partition -> offset after the last forecast
    paused: set[Any] = field(default_factory=set)


@dataclass(frozen=True)
class Published:
    """An event with the index's numbers for its forecasts."""

    event: Event | Reset
    id: EventId
    indexed: Indexed | None = None
    begin: int = 0  # place of the event's first forecast in ``indexed``


class Follower:
    """Feeds a view until ``stop``.

    Args:
        settings: of the topics.
        view: receives the records.
        publish: receives live events, on the thread of ``run``. The first call, with an empty sequence, says the id
            at which live events begin.
        forget: called before a look back: records at the same offsets may be other ones.
    """

    def __init__(
        self,
        settings: Settings,
        view: LiveView,
        publish: Callable[[EventId, Sequence[Published]], None],
        forget: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._view = view
        self._publish = publish
        self._forget = forget
        self._reader = HeadReader(settings)
        self._decoder = make_decoder(settings)
        self._positions = _Positions()
        self._waiting: dict[int, deque[_Waiting]] = {}  # readings partition -> forecasts
        self._live_from = np.zeros(0, np.int64)
        self._cursor: EventCursor | None = None  # None: the look back is not finished
        self._reset: Reset | None = None  # to be published after the next look back
        self._models: list[int] = []  # by partition: version of the last forecast in the look back, 0 if unknown
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End ``run`` within a poll."""
        self._stopped.set()

    def run(self) -> None:
        """Follow the topics; wait for brokers that do not answer."""
        while not self._stopped.is_set():
            try:
                with closing(self._connect()) as consumer:
                    self._follow(consumer)
            except (StreamgruError, client_errors.KafkaError) as error:
                self._view.broker_failed(FOLLOWER, str(error))
                logger.warning("cannot read the topics, trying again: %s", error)
                self._stopped.wait(_RETRY_S)

    def _connect(self) -> KafkaConsumer:
        consumer = make_consumer(
            self._settings, client_id="streamgru-serve", auto_offset_reset="none", max_poll_records=_POLL_RECORDS
        )
        return read_fast(consumer, self._settings.kafka)

    def _follow(self, consumer: KafkaConsumer) -> None:
        with translate_errors("following the topics", self._settings):
            if self._cursor is None:
                self._look_back(consumer)
            self._assign(consumer, self._positions.next)
            self._view.broker_answered(FOLLOWER)
            while not self._stopped.is_set():
                if self._are_topics_new():
                    self._start_over()
                    return
                try:
                    polled = consumer.poll(timeout_ms=_POLL_MS)
                except client_errors.OffsetOutOfRangeError as error:
                    if self._mark() == self._cursor_mark:
                        self._begin_at_ends(consumer, error)
                        continue
                    self._start_over()
                    return
                began_s = time.thread_time()
                self._take(polled)
                self._limit_readings(consumer)
                self._yield_to_forecasters(time.thread_time() - began_s)

    def _assign(self, consumer: KafkaConsumer, positions: Mapping[Any, int]) -> None:
        consumer.assign(list(positions))
        for tp, offset in positions.items():
            consumer.seek(tp, offset)
        self._positions.paused = set()

    # --- the look back ------------------------------------------------------------------------------------------------

    def _look_back(self, consumer: KafkaConsumer) -> None:
        """Read the latest records, the readings first; then the next records are live."""
        topics, records = self._settings.kafka.topics, self._settings.serve.look_back_records
        self._waiting.clear()  # of a look back that failed
        readings = look_back(consumer, topics.readings, 0)
        forecasts = look_back(consumer, topics.forecasts, records)
        letters = look_back(consumer, topics.dead_letters, records)
        self._view.begin(len(readings.ends))
        self._forget()
        self._view.broker_answered(FOLLOWER)
        kept = self._view.index.readings.per_partition // 2
        # Readings that wait for their forecasts lie behind the readings of the look back.
        readings = look_back(consumer, topics.readings, min(records + self._most_lag(), kept))
        self._live_from = np.array([forecasts.ends[tp] for tp in sorted(forecasts.ends)], np.int64)
        self._models = [0] * len(forecasts.ends)
        mark = self._mark()
        self._announce(sum(ends.ends[tp] - ends.starts[tp] for ends in (readings, forecasts) for tp in ends.ends))
        self._positions = _Positions({**readings.starts, **forecasts.starts, **letters.starts})
        self._read_until(consumer, readings)
        self._read_until(consumer, forecasts)
        self._read_until(consumer, letters)
        if self._stopped.is_set():
            return
        self._release(wait=False)
        # The polls may have read beyond the ends that were looked up.
        begins = {topic: self._begins(topic) for topic in (topics.forecasts, topics.dead_letters)}
        self._cursor = EventCursor(
            EventId(mark, begins[topics.forecasts], tuple(self._models), begins[topics.dead_letters])
        )
        with self._view.locked() as view:
            view.catch_up = None
        read = counted(self._view.forecasts, "forecast"), counted(len(self._view.index.rows), "sensor")
        logger.info("read the latest %s of %s", *read)
        missed = [] if self._reset is None else [Published(self._reset, self._cursor.id)]
        self._reset = None
        self._publish(self._cursor.id, missed)

    def _mark(self) -> int:
        topics = self._settings.kafka.topics
        return topics_mark([find_topic_id(self._settings, topic) for topic in (topics.forecasts, topics.dead_letters)])

    @property
    def _cursor_mark(self) -> int:
        assert self._cursor is not None
        return self._cursor.id.mark

    def _begins(self, topic: str) -> tuple[int, ...]:
        """The next offset to read of each partition of a topic."""
        return tuple(self._positions.next[tp] for tp in sorted(self._positions.next) if tp.topic == topic)

    def _most_lag(self) -> int:
        with self._view.locked() as view:
            return max(view.log.lag.values(), default=0)

    def _announce(self, total: int) -> None:
        with self._view.locked() as view:
            if view.catch_up is not None:
                view.catch_up.done, view.catch_up.total = 0, total

    def _read_until(self, consumer: KafkaConsumer, part: LookBack) -> None:
        self._assign(consumer, {tp: self._positions.next[tp] for tp in part.ends})
        pending = {tp for tp, end in part.ends.items() if self._positions.next[tp] < end}
        while pending and not self._stopped.is_set():
            polled = consumer.poll(timeout_ms=_POLL_MS)
            self._take(polled)
            # Only positions show the end: transaction markers have offsets too, and are never delivered.
            for tp in part.ends:
                self._positions.next[tp] = max(self._positions.next[tp], consumer.position(tp))
            pending = {tp for tp in pending if self._positions.next[tp] < part.ends[tp]}
            with self._view.locked() as view:
                if view.catch_up is not None:
                    view.catch_up.done += sum(map(len, polled.values()))

    # --- records ------------------------------------------------------------------------------------------------------

    def _take(self, polled: Mapping[Any, Sequence[Any]]) -> None:
        topics = self._settings.kafka.topics
        if polled:
            self._view.broker_answered(FOLLOWER)
        letters: list[DeadLetter] = []
        for tp in sorted(polled, key=lambda tp: tp.topic != topics.readings):
            records = polled[tp]
            if tp.topic == topics.readings:
                self._take_readings(tp.partition, records)
            elif tp.topic == topics.forecasts:
                self._take_forecasts(tp.partition, records)
            else:
                found = (read_letter(LoggedRecord(*tp, *record)) for record in records)
                letters += [letter for letter in found if letter is not None]
            if records:
                self._positions.next[tp] = max(self._positions.next[tp], records[-1].next_offset)
        events = self._release(wait=True)
        if letters:
            self._view.add_letters(letters)
            if self._cursor is not None:
                events += [Published(event, event.id) for event in self._cursor.letter_events(letters)]
        if events and self._cursor is not None:
            self._publish(self._cursor.id, events)

    def _take_readings(self, partition: int, records: Sequence[Any]) -> None:
        for record in records:
            try:
                reading = self._decoder.decode(record.key, record.value, record.headers, record.timestamp)
            except Rejected:
                continue  # an outlook, or the forecaster writes a dead letter
            self._view.add_reading(partition, record.offset, record.timestamp, reading.values)

    def _take_forecasts(self, partition: int, records: Sequence[Any]) -> None:
        until_s = time.monotonic() + _WAIT_FOR_READING_S
        for record in records:
            head = self._reader.read(partition, record)
            if head is None or partition >= self._view.partitions:
                self._view.unreadable_forecasts += 1
                continue
            self._waiting.setdefault(head.reading_partition, deque()).append(_Waiting(head, until_s))

    def _release(self, *, wait: bool) -> list[Published]:
        """Add the waiting forecasts whose readings have arrived, and return their events."""
        now_s, heads = time.monotonic(), []
        for partition, waiting in self._waiting.items():
            reached = self._positions.next.get(TopicPartition(self._settings.kafka.topics.readings, partition), 0)
            while waiting and (not wait or waiting[0].head.reading_offset < reached or waiting[0].until_s < now_s):
                heads.append(waiting.popleft().head)
        if not heads:
            return []
        indexed = self._view.add_forecasts(heads, self._live_from)
        for head in heads:
            before = self._positions.forecast_of.get(head.reading_partition, 0)
            self._positions.forecast_of[head.reading_partition] = max(before, head.reading_offset + 1)
        if self._cursor is None:
            self._note_models(heads)
            return []
        return list(self._events(heads, indexed))

    def _note_models(self, heads: Sequence[ForecastHead]) -> None:
        """Find the swaps of the look back. The page shows them, and no event tells them."""
        start = EventId(0, (0,) * len(self._models), tuple(self._models), ())
        cursor = EventCursor(start)
        for event in cursor.forecast_events(heads):
            self._view.add_swaps(event.swaps)
        self._models = list(cursor.id.models)

    def _events(self, heads: Sequence[ForecastHead], indexed: Indexed) -> Iterable[Published]:
        assert self._cursor is not None
        begin = 0
        for event in self._cursor.forecast_events(heads):
            self._view.add_swaps(event.swaps)
            yield Published(event, event.id, indexed, begin)
            begin += len(event.heads)

    # --- limits -------------------------------------------------------------------------------------------------------

    def _limit_readings(self, consumer: KafkaConsumer) -> None:
        """Let the readings of a backlog wait in Kafka: here, newer ones would replace them before their forecasts."""
        most = self._view.index.readings.per_partition // 2
        with self._view.locked() as view:
            committed = dict(view.log.committed)
        for tp, position in self._positions.next.items():
            if tp.topic != self._settings.kafka.topics.readings:
                continue
            done = max(self._positions.forecast_of.get(tp.partition, 0), committed.get(tp.partition, 0))
            if tp not in self._positions.paused and position - done > most:
                consumer.pause(tp)
                self._positions.paused.add(tp)
            elif tp in self._positions.paused and position - done <= most // 2:
                consumer.resume(tp)
                self._positions.paused.remove(tp)

    def _yield_to_forecasters(self, spent_s: float) -> None:
        """Wait after a poll's work while the forecasters have a backlog: they come first on a shared machine."""
        with self._view.locked() as view:
            lag = sum(view.log.lag.values())
        if lag > _BACKLOG:
            self._stopped.wait(min(_LONGEST_WAIT_S, spent_s * (1 / _BACKLOG_SHARE - 1)))

    # --- new topics, deleted records --------------------------------------------------------------------------------

    def _are_topics_new(self) -> bool:
        """Whether partitions were added, or a topic was deleted and created from scratch."""
        with self._view.locked() as view:
            readings, forecasts = (max(ends, default=-1) for ends in (view.log.readings_end, view.log.forecasts_end))
            has_shrunk = view.has_shrunk
        if readings >= self._view.partitions or forecasts >= len(self._live_from):
            return True
        if not has_shrunk:
            return False
        is_new = self._mark() != self._cursor_mark  # the brokers may lose records, too
        with self._view.locked() as view:
            view.has_shrunk = False
        return is_new

    def _start_over(self) -> None:
        """Let the next connection begin with a look back, and tell the clients to load everything again."""
        logger.warning("the topics have new partitions, or were created from scratch: reading them from scratch")
        self._cursor = None
        self._reset = Reset("recreated", "the topics have new partitions, or were created from scratch")

    def _begin_at_ends(self, consumer: KafkaConsumer, error: Exception) -> None:
        """Continue at the ends of the topics, and tell the clients that events are missing."""
        logger.warning("retention has deleted records that were not read, continuing at the ends: %s", error)
        topics = self._settings.kafka.topics
        parts = [look_back(consumer, topic, 0) for topic in (topics.readings, topics.forecasts, topics.dead_letters)]
        _, forecasts, letters = parts
        self._positions = _Positions({tp: end for part in parts for tp, end in part.ends.items()})
        self._waiting.clear()
        self._live_from = np.array([forecasts.ends[tp] for tp in sorted(forecasts.ends)], np.int64)
        assert self._cursor is not None
        ends = tuple(letters.ends[tp] for tp in sorted(letters.ends))
        before = self._cursor.id.models
        models = tuple(before[number] if number < len(before) else 0 for number in range(len(self._live_from)))
        start = EventId(self._cursor_mark, tuple(self._live_from.tolist()), models, ends)
        self._cursor = EventCursor(start)
        self._assign(consumer, self._positions.next)
        reset = Reset("deleted", "retention has deleted records before they were read here")
        self._publish(start, [Published(reset, start)])
