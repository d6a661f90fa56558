"""Sends live events to browsers, as server-sent events.

The hub lives on the event loop. A stream has a bounded queue; a browser that is too slow loses its connection, and
continues with the id of the last event that it received. The missed records are read from Kafka again.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from deploy.serve import answers, reports
from pipeline.errors import BrokerUnreachable, KafkaError
from pipeline.live.event_ids import EventId
from pipeline.live.events import Event, ForecastsEvent, LetterEvent
from pipeline.live.follower import Published
from pipeline.live.index import Indexed
from pipeline.live.replay import Reset
from pipeline.live.replayer import replay
from pipeline.live.view import LiveView
from pipeline.settings import Settings

KINDS: Final = ("forecasts", "dead_letter", "status")
# After which a browser connects again. All browsers lose their connections at the same time if this process ends.
RETRY_MS: Final = (500, 1_500)
_MOST_REPLAYS: Final = (
    4  # at the same time; each takes a thread, which other answers need, and two connections to Kafka
)
_TICK_S: Final = 1.0
_MOST_EVENTS: Final = 256  # in a stream's queue
_MOST_BYTES: Final = 4 * 1024 * 1024
_TOGETHER_BYTES: Final = 256 * 1024  # of one write


class _Interrupted(Exception):
    """No broker answers; ``since`` is the id of the last event that was sent."""

    def __init__(self, since: EventId) -> None:
        super().__init__(since)
        self.since = since


class TooManyStreams(Exception):
    """All streams of ``serve.most_streams`` are in use."""


@dataclass(eq=False)
class EventStream:
    """One browser's connection."""

    kinds: frozenset[str]
    sensor: bytes | None  # only forecasts of this sensor; None: all
    since: EventId | None  # the last event that the browser has
    queue: deque[bytes] = field(default_factory=deque)
    queued_bytes: int = 0
    filled: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    until: EventId | None = None  # events after it are in the queue; None: the look back is not read yet

    @property
    def is_closed(self) -> bool:
        """Whether the stream ends."""
        return self.closed.is_set()

    def put(self, text: bytes) -> None:
        """Queue an event; close the stream if it is full."""
        if self.is_closed:
            return
        self.queue.append(text)
        self.queued_bytes += len(text)
        if len(self.queue) > _MOST_EVENTS or self.queued_bytes > _MOST_BYTES:
            self.close()
        self.filled.set()

    def take(self) -> bytes:
        """The next events, joined; empty if none is queued."""
        taken, size = [], 0
        while self.queue and size < _TOGETHER_BYTES:
            taken.append(self.queue.popleft())
            size += len(taken[-1])
        self.queued_bytes -= size
        if not self.queue:
            self.filled.clear()
        return b"".join(taken)

    def close(self) -> None:
        """Discard the queue; the stream ends."""
        self.closed.set()
        self.queue.clear()
        self.queued_bytes = 0
        self.filled.set()


class EventHub:
    """All streams. Every method runs on the event loop, except ``publish_from_thread``."""

    def __init__(self, settings: Settings, view: LiveView) -> None:
        self._settings = settings
        self._view = view
        self._id: EventId | None = None  # of the last published event; None until the look back is read
        self._streams: set[EventStream] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_closed = False
        self._replays = asyncio.Semaphore(_MOST_REPLAYS)

    @property
    def clients(self) -> int:
        """The number of streams."""
        return len(self._streams)

    async def run(self) -> None:
        """Send a status every second, until ``close``."""
        self._loop = asyncio.get_running_loop()
        while not self._is_closed:
            await asyncio.sleep(_TICK_S)
            if self._streams:
                self._send_status(self._streams)

    def publish_from_thread(self, last: EventId, events: Sequence[Published]) -> None:
        """Publish events from another thread; ``last`` is the id after them."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.publish, last, events)

    def publish(self, last: EventId, events: Sequence[Published]) -> None:
        """Queue events for all streams."""
        if self._id is None:  # the first look back is read
            for stream in self._streams:
                stream.until = last
        self._id = last
        if self._streams:
            for published in events:
                whole = _Lazy(lambda published=published: self._text(published, None))  # type: ignore[misc]
                for stream in self._streams:
                    text = whole() if stream.sensor is None else self._text(published, stream.sensor)
                    if text and _kind(published.event) in (*stream.kinds, "reset"):
                        stream.put(text)

    def open(self, kinds: frozenset[str], sensor: bytes | None, since: EventId | Reset | None) -> EventStream:
        """A new stream; with an id it begins after that event.

        Raises:
            TooManyStreams: close another one first.
        """
        if len(self._streams) >= self._settings.serve.most_streams or self._is_closed:
            raise TooManyStreams
        stream = EventStream(kinds, sensor, since if isinstance(since, EventId) else None, until=self._id)
        if isinstance(since, Reset):
            stream.put(_reset(since, self._id))
        self._streams.add(stream)
        if stream.since is None:
            self._send_status([stream])
        return stream

    def close(self) -> None:
        """End all streams, and refuse new ones."""
        self._is_closed = True
        for stream in self._streams:
            stream.close()

    def forget(self, stream: EventStream) -> None:
        """Remove a stream whose connection has ended."""
        stream.close()
        self._streams.discard(stream)

    async def send(self, stream: EventStream, write: Callable[[bytes], Any]) -> None:
        """Send the missed events, then live events, until the stream is closed."""
        await write(b"retry: %d\n\n" % random.randint(*RETRY_MS))
        if stream.since is not None:
            await self._send_missed(stream, stream.since, write)
        while not stream.is_closed:
            if text := stream.take():
                await write(text)
            else:
                await stream.filled.wait()

    async def _send_missed(self, stream: EventStream, since: EventId, write: Callable[[bytes], Any]) -> None:
        """Replay the events up to the id at which the queue begins, and the status every second.

        If no broker answers, it tries again.
        """
        while (until := stream.until) is None and not stream.is_closed:
            await stream.filled.wait()
            await write(stream.take())
        if until is None or since == until:
            return
        replaying = asyncio.create_task(self._replay(stream, since, until, write))
        try:
            while not (await asyncio.wait({replaying}, timeout=_TICK_S))[0]:
                # Without an id: the replay has not come to it.
                await write(self._status_text(None) if "status" in stream.kinds else b":\n\n")
            replaying.result()
        finally:
            replaying.cancel()
            await asyncio.gather(replaying, return_exceptions=True)

    async def _replay(self, stream: EventStream, since: EventId, until: EventId, write: Callable[[bytes], Any]) -> None:
        while not stream.is_closed:
            async with self._replays:
                try:
                    await self._replay_part(stream, since, until, write)
                    return
                except _Interrupted as interrupted:
                    since = interrupted.since
            await asyncio.sleep(_TICK_S)

    async def _replay_part(
        self, stream: EventStream, since: EventId, until: EventId, write: Callable[[bytes], Any]
    ) -> None:
        """Replay as far as the brokers answer.

        Raises:
            _Interrupted: with the id of the last event that was sent.
        """
        events = replay(self._settings, since, until)
        try:
            while (event := await run_in_threadpool(next, events, None)) is not None:
                if isinstance(event, Reset):
                    await write(_reset(event, until))
                    return
                since = event.id
                text = self._text(Published(event, event.id), stream.sensor)
                if _kind(event) not in stream.kinds or not text:
                    text = _event("", event.id, b"")  # a browser that comes back begins here
                await write(text)
        except BrokerUnreachable as error:
            raise _Interrupted(since) from error
        except KafkaError as error:  # for example a damaged batch, which stays damaged
            await write(_reset(Reset("deleted", str(error)), until))
        finally:
            await run_in_threadpool(events.close)

    def _send_status(self, streams: Any) -> None:
        text, bare = self._status_text(self._id), _event("", self._id, b"")
        for stream in list(streams):
            if "status" in stream.kinds:
                stream.put(text)
            elif bare:
                stream.put(bare)

    def _status_text(self, id_: EventId | None) -> bytes:
        return _event("status", id_, answers.encode(reports.status(self._view, self.clients)))

    def _text(self, published: Published, sensor: bytes | None) -> bytes:
        """An event as text; empty if it holds nothing for the sensor."""
        event = published.event
        if isinstance(event, Reset):
            return _reset(event, published.id)
        if isinstance(event, LetterEvent):
            return _event("dead_letter", event.id, answers.encode(reports.letter(event.letter)))
        return self._forecasts_text(event, published.indexed, published.begin, sensor)

    def _forecasts_text(
        self, event: ForecastsEvent, indexed: Indexed | None, begin: int, sensor: bytes | None
    ) -> bytes:
        rows = [
            reports.event_row(self._view, head, indexed, begin + at)
            for at, head in enumerate(event.heads)
            if sensor is None or head.sensor == sensor
        ]
        if not rows and not event.swaps:
            return b""
        data = answers.ForecastsData(rows, list(map(reports.swap, event.swaps)))
        return _event("forecasts", event.id, answers.encode(data))


class EventStreamResponse:
    """An ASGI answer that sends a stream until the browser leaves, is too slow, or the process stops."""

    def __init__(self, hub: EventHub, stream: EventStream) -> None:
        self._hub = hub
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""

        async def write(text: bytes) -> None:
            await send({"type": "http.response.body", "body": text, "more_body": True})

        async def wait_until_gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        async def wait_until_closed() -> None:
            await self._stream.closed.wait()

        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"x-accel-buffering", b"no"),  # a proxy must not collect events
        ]
        tasks: set[asyncio.Task[None]] = set()
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            sending = asyncio.create_task(self._hub.send(self._stream, write))
            tasks = {sending, asyncio.create_task(wait_until_gone()), asyncio.create_task(wait_until_closed())}
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            # A stream that is closed ends at once, unless its browser has stopped reading.
            await asyncio.wait({sending}, timeout=0.2 if self._stream.is_closed else 0)
            if sending.done():
                sending.result()
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._hub.forget(self._stream)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class _Lazy:
    """A text that is made when it is first needed."""

    def __init__(self, make: Callable[[], bytes]) -> None:
        self._make = make
        self._text: bytes | None = None

    def __call__(self) -> bytes:
        if self._text is None:
            self._text = self._make()
        return self._text


def _kind(event: Event | Reset) -> str:
    if isinstance(event, Reset):
        return "reset"
    return "dead_letter" if isinstance(event, LetterEvent) else "forecasts"


def _reset(reset: Reset, id_: EventId | None) -> bytes:
    return _event("reset", id_, answers.encode(answers.ResetData(reset.reason, reset.detail)))


def _event(name: str, id_: EventId | None, data: bytes) -> bytes:
    """The text of an event; without a name and data, a browser only notes the id."""
    parts = []
    if id_ is not None:
        parts.append(b"id: " + id_.encode().encode())
    if name:
        parts += [b"event: " + name.encode(), b"data: " + data]
    return b"\n".join(parts) + b"\n\n" if parts else b""
