"""Watches a forecaster from beside its loop: is it getting on, idle, or stuck; are the brokers there, and the topics?

A thread with clients of its own looks every few seconds, so it sees what the loop cannot see of itself. It only tells:
what makes going on impossible is raised by the loop (``Lookout.failure``), and only where the loop does not come to it
does the thread end the process.
"""

import logging
import math
import threading
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import kafka.errors as client_errors
from kafka import TopicPartition

from pipeline.errors import BrokerUnreachable, KafkaError, StreamgruError, TopicError
from pipeline.forecaster.watchdog import end_process
from pipeline.kafka.clients import make_admin, make_consumer, translated
from pipeline.kafka.patches import leaderless
from pipeline.kafka.topics import check_topics
from pipeline.settings import Settings

logger = logging.getLogger("streamgru.lookout")

LOOK_S: Final = 2.0
# A broker that has just come back may not know all topics yet: only so many looks in a row that miss one count.
TOPIC_LOOKS: Final = 3
# Looks further apart than this, and than work may wait, are of a process that was stopped in between.
STOOD_STILL_S: Final = 5.0
# A look takes some 20 s at the most, with new clients for it: what is older says nothing of now.
RECENT_S: Final = 30.0
# How long the loop, which looks for a failure several times a second, may take to find it.
GRACE_S: Final = 10.0


class State(StrEnum):
    """What a forecaster is doing."""

    STARTING = "starting"  # up to its place in the group: the first champion may be waited for
    RESTORING = "restoring"  # some of its partitions wait for their states
    SERVING = "serving"  # also where there is nothing to do
    STUCK = "stuck"  # there is work, and for too long none was committed
    WAITING = "waiting for broker"


@dataclass
class Pulse:
    """What the loop did last. Written by its thread, read by others: attributes are replaced, never changed in place.

    Times are of the monotonic clock, which no change of the wall clock moves.
    """

    progressed: float = field(default_factory=time.monotonic)  # a commit, or a state restored
    polled: float | None = None
    committed: float | None = None
    positions: Mapping[int, int] = field(default_factory=dict)  # of the partitions served: where reading goes on
    is_restoring: bool = False
    sensors: int = 0


class Judge:
    """Tells the idle from the stuck, look by look.

    Stuck is who had work before it at two looks in a row or more, and for ``limit_s`` of that time neither committed
    nor restored anything; or who has not polled for ``poll_interval_s``, after which the group has given it up. One
    look would not do: a reading that has just arrived is work, too. Time in which no broker answers does not count: a
    commit under way waits for them.
    """

    def __init__(self, limit_s: float, poll_interval_s: float) -> None:
        self._limit_s = limit_s
        self._poll_interval_s = poll_interval_s
        self._since: float | None = None  # the first of the looks in a row that found work
        self._looked: float | None = None
        self._waited = -math.inf  # the last look that found no broker

    def state(self, pulse: Pulse, ends: Mapping[int, int] | None, now: float) -> State:
        """What a look found. ``ends`` are those of the partitions' logs; none: no broker answered."""
        before, self._looked = self._looked, now
        if pulse.polled is None:
            return State.STARTING
        if ends is None:
            self._since = None  # waiting is right, for as long as it takes
            self._waited = now
            return State.WAITING
        if before is not None and now - before > max(self._limit_s, STOOD_STILL_S):
            self._since = None  # the whole process stood still: the loop has had no time to do anything, either
            return State.RESTORING if pulse.is_restoring else State.SERVING
        if now - max(pulse.polled, self._waited) > self._poll_interval_s:
            return State.STUCK
        if not pulse.is_restoring and not any(lag_of(pulse, ends).values()):
            self._since = None
            return State.SERVING
        if self._since is None:
            self._since = now
        elif now - max(self._since, pulse.progressed) >= self._limit_s:
            return State.STUCK
        return State.RESTORING if pulse.is_restoring else State.SERVING


def lag_of(pulse: Pulse, ends: Mapping[int, int]) -> dict[int, int]:
    """Offsets from where reading goes on to the end of the log, by partition served whose end is known."""
    return {
        number: max(0, ends[number] - position)
        for number, position in sorted(pulse.positions.items())
        if number in ends
    }


class Lookout:
    """The thread that looks.

    Args:
        limit_s: how long work may wait without a commit.
        is_fatal: whether being stuck ends the forecaster.
    """

    def __init__(
        self, settings: Settings, pulse: Pulse, limit_s: float, *, is_fatal: bool, interval_s: float = LOOK_S
    ) -> None:
        self.state = State.STARTING
        self.trouble = ""  # why no broker could be asked, or what is wrong with the topics
        self.lag: Mapping[int, int] = {}
        self.failure: StreamgruError | None = None
        self._settings = settings
        self._pulse = pulse
        self._limit_s = limit_s
        self._is_fatal = is_fatal
        self._interval_s = min(interval_s, limit_s)
        self._judge = Judge(limit_s, settings.forecaster.poll_interval_s)
        self._topic_looks = 0
        self._seen_at = 0.0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lookout", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def close(self) -> None:
        """Stop looking; a look under way is left to end by itself."""
        self._closed.set()

    @property
    def waits_for_brokers(self) -> bool:
        """Whether the last look, a recent one, found no broker."""
        return self.state is State.WAITING and time.monotonic() - self._seen_at < RECENT_S

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                with (
                    closing(make_admin(self._settings, request_timeout_ms=self._request_timeout_ms)) as admin,
                    closing(make_consumer(self._settings, client_id="streamgru-lookout")) as consumer,
                ):
                    while not self._closed.is_set() and self.failure is None:
                        self._look(admin, consumer)
                        self._closed.wait(self._interval_s)
            except (KafkaError, client_errors.KafkaError) as error:
                self._see(None, str(error))
                self._closed.wait(self._interval_s)
            except Exception as error:  # what watches must not die, or all would seem well for ever
                logger.debug("looking failed", exc_info=error)
                # Not as if no broker had answered: nothing is excused by it, and the loop's own signs still count.
                self._see({}, f"looking after the forecaster failed by {type(error).__name__}: {error}")
                self._closed.wait(self._interval_s)
            if self.failure is not None and not self._closed.wait(GRACE_S):
                end_process(str(self.failure))

    @property
    def _request_timeout_ms(self) -> int:
        return round(self._settings.forecaster.request_timeout_s * 1_000)

    def _look(self, admin: Any, consumer: Any) -> None:
        topic = self._settings.kafka.topics.readings
        where = [TopicPartition(topic, number) for number in self._pulse.positions]
        try:
            check_topics(self._settings, admin)
            self._topic_looks = 0
            with translated(f"looking up the ends of {topic}", self._settings):
                headless = leaderless(consumer, where)
                asked = [at for at in where if at not in headless]
                ends = consumer.end_offsets(asked, timeout_ms=self._request_timeout_ms) if asked else {}
        except TopicError as error:
            self._miss_topics(error)
            return
        except BrokerUnreachable as error:
            self._see(None, str(error))
            return
        except KafkaError as error:  # they answer, and do not tell: nothing is excused by that
            self._see({}, str(error))
            return
        numbers = ", ".join(str(at.partition) for at in headless)
        trouble = f"no broker leads partition {numbers} of {topic} at present" if headless else ""
        self._see({tp.partition: end for tp, end in ends.items()}, trouble)

    def _miss_topics(self, error: TopicError) -> None:
        self._topic_looks += 1
        self.trouble = str(error)
        if self._topic_looks == TOPIC_LOOKS:
            self.failure = TopicError(
                f"the topics have changed under this forecaster: {error}. It ends, since nothing it could do would be "
                "right; what was committed is"
            )

    def _see(self, ends: Mapping[int, int] | None, trouble: str) -> None:
        if trouble and (not self.trouble or (ends is None) != (self.state is State.WAITING)):
            logger.error("%s%s", trouble, "; waiting for it" if ends is None else "")
        elif self.trouble and not trouble:
            was_away = self.state is State.WAITING
            logger.warning("the brokers can be reached again" if was_away else "all can be seen again")
        self.trouble = trouble
        self.lag = {} if ends is None else lag_of(self._pulse, ends)
        self._seen_at = time.monotonic()
        self.state = self._judge.state(self._pulse, ends, self._seen_at)
        if self.state is State.STUCK and self._is_fatal:
            self.failure = StreamgruError(
                f"no transaction for {self._limit_s:g} s (--max-idle) though there is work: lag by partition "
                f"{dict(self.lag)}, restoring: {'yes' if self._pulse.is_restoring else 'no'}. This process ends so "
                "that another can take over. Nothing is lost; the log says what it was waiting for"
            )
