"""Detects a forecaster that is stuck: in a call that never returns, or without progress though there is work.

Ends the process when a call that cannot be interrupted takes too long.

kafka-python waits without limit for a commit, an abort and the offsets of a transaction. A forecaster that hangs there
would keep its partitions (heartbeats go on) and forecast nothing; ended, a successor takes over within seconds.
While no broker answers nothing could return: such time is not counted.

Watches a forecaster from beside its loop: is it getting on, idle, or stuck; are the brokers there, and the topics?

A thread with clients of its own looks every few seconds, so it sees what the loop cannot see of itself. It only tells:
what makes going on impossible is raised by the loop (``HealthMonitor.failure``), and only where the loop does not come
to it does the thread end the process.
"""

import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import kafka.errors as client_errors
from kafka import TopicPartition

from pipeline.errors import BrokerUnreachable, KafkaError, StreamgruError, TopicError
from pipeline.kafka.clients import make_admin, make_consumer, translate_errors
from pipeline.kafka.patches import leaderless
from pipeline.kafka.topics import check_topics
from pipeline.settings import Settings

logger = logging.getLogger("streamgru.stuck_detection")

EXIT_CODE: Final = 70  # EX_SOFTWARE in sysexits.h
CHECK_INTERVAL_S: Final = 0.5
# A process that was stopped and goes on finds its deadline in the past though the call had no time to finish: only a
# call that is found overdue twice in a row, one interval apart, ends the process.
_OVERDUE_CHECKS: Final = 2


def end_process(message: str) -> None:
    """Print the message and exit with ``EXIT_CODE``, from whichever thread and whatever the others do."""
    sys.stderr.write(f"error: {message}\n")
    sys.stderr.flush()
    os._exit(EXIT_CODE)  # an exception would never reach the thread that hangs


@dataclass
class Call:
    """A watched call under way."""

    what: str
    began: float  # of the monotonic clock
    excused_s: float = 0.0  # of its time so far


class Watchdog:
    """Watches one call at a time, made by one thread.

    Args:
        limit_s: how long a watched call may take, not counting the time in which it is excused.
        end: what to do with the message when it took longer; by default print it and exit with ``EXIT_CODE``.
        is_excused: whether no call could return now; asked at every check, and so not to wait for anything.
    """

    def __init__(
        self,
        limit_s: float,
        end: Callable[[str], None] = end_process,
        check_interval_s: float = CHECK_INTERVAL_S,
        is_excused: Callable[[], bool] = lambda: False,
    ) -> None:
        self._limit_s = limit_s
        self._is_excused = is_excused
        self._end = end
        self._interval_s = check_interval_s
        self._watched: Call | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    @contextmanager
    def watching(self, what: str) -> Iterator[Call]:
        """Let the body take ``limit_s`` at most. ``what`` completes the sentence "… has not returned"."""
        self._watched = call = Call(what, time.monotonic())
        try:
            yield call
        finally:
            self._watched = None

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        overdue: Call | None = None
        checks = 0
        before = time.monotonic()
        while not self._closed.wait(self._interval_s):
            now, watched = time.monotonic(), self._watched
            if watched is not None and self._is_excused():
                watched.excused_s += now - max(before, watched.began)
            before = now
            if watched is None or now - watched.began - watched.excused_s < self._limit_s:
                overdue = None
                continue
            checks = checks + 1 if watched is overdue else 1
            overdue = watched
            if checks >= _OVERDUE_CHECKS:
                self._end(
                    f"{watched.what} has not returned for {self._limit_s:g} s (forecaster.commit_timeout_s); this "
                    "process ends so that another can take over. Nothing is lost: start it again, it goes on where the "
                    "last transaction ended. Check that the brokers answer"
                )
                return


# --- a forecaster without progress ------------------------------------------------------------------------------------


MONITOR_INTERVAL_S: Final = 2.0
# A broker that has just come back may not know all topics yet: only so many looks in a row that miss one count.
MISSING_TOPIC_CHECKS: Final = 3
# Looks further apart than this, and than work may wait, are of a process that was stopped in between.
PROCESS_STOPPED_S: Final = 5.0
# A look takes some 20 s at the most, with new clients for it: what is older says nothing of now.
STALE_AFTER_S: Final = 30.0
# How long the loop, which looks for a failure several times a second, may take to find it.
RAISE_WITHIN_S: Final = 10.0


class ForecasterState(StrEnum):
    """What a forecaster is doing."""

    STARTING = "starting"  # up to its place in the group: the first champion may be waited for
    RESTORING = "restoring"  # some of its partitions wait for their states
    SERVING = "serving"  # also where there is nothing to do
    STUCK = "stuck"  # there is work, and for too long none was committed
    WAITING = "waiting for broker"


@dataclass
class Heartbeat:
    """What the loop did last. Written by its thread, read by others: attributes are replaced, never changed in place.

    Times are of the monotonic clock, which no change of the wall clock moves.
    """

    progressed: float = field(default_factory=time.monotonic)  # a commit, or a state restored
    polled: float | None = None
    committed: float | None = None
    positions: Mapping[int, int] = field(default_factory=dict)  # of the partitions served: where reading goes on
    is_restoring: bool = False
    sensors: int = 0


class StuckDetector:
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
        self._last_check: float | None = None
        self._waited = -math.inf  # the last look that found no broker

    def state(self, heartbeat: Heartbeat, ends: Mapping[int, int] | None, now: float) -> ForecasterState:
        """What a look found. ``ends`` are those of the partitions' logs; none: no broker answered."""
        before, self._last_check = self._last_check, now
        if heartbeat.polled is None:
            return ForecasterState.STARTING
        if ends is None:
            self._since = None  # waiting is right, for as long as it takes
            self._waited = now
            return ForecasterState.WAITING
        if before is not None and now - before > max(self._limit_s, PROCESS_STOPPED_S):
            self._since = None  # the whole process stood still: the loop has had no time to do anything, either
            return ForecasterState.RESTORING if heartbeat.is_restoring else ForecasterState.SERVING
        if now - max(heartbeat.polled, self._waited) > self._poll_interval_s:
            return ForecasterState.STUCK
        if not heartbeat.is_restoring and not any(lag_of(heartbeat, ends).values()):
            self._since = None
            return ForecasterState.SERVING
        if self._since is None:
            self._since = now
        elif now - max(self._since, heartbeat.progressed) >= self._limit_s:
            return ForecasterState.STUCK
        return ForecasterState.RESTORING if heartbeat.is_restoring else ForecasterState.SERVING


def lag_of(heartbeat: Heartbeat, ends: Mapping[int, int]) -> dict[int, int]:
    """Offsets from where reading goes on to the end of the log, by partition served whose end is known."""
    return {
        number: max(0, ends[number] - position)
        for number, position in sorted(heartbeat.positions.items())
        if number in ends
    }


class HealthMonitor:
    """The thread that looks.

    Args:
        limit_s: how long work may wait without a commit.
        is_fatal: whether being stuck ends the forecaster.
    """

    def __init__(
        self,
        settings: Settings,
        heartbeat: Heartbeat,
        limit_s: float,
        *,
        is_fatal: bool,
        interval_s: float = MONITOR_INTERVAL_S,
    ) -> None:
        self.state = ForecasterState.STARTING
        self.trouble = ""  # why no broker could be asked, or what is wrong with the topics
        self.lag: Mapping[int, int] = {}
        self.failure: StreamgruError | None = None
        self._settings = settings
        self._heartbeat = heartbeat
        self._limit_s = limit_s
        self._is_fatal = is_fatal
        self._interval_s = min(interval_s, limit_s)
        self._detector = StuckDetector(limit_s, settings.forecaster.poll_interval_s)
        self._missing_topic_checks = 0
        self._checked_at = 0.0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="health-monitor", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def close(self) -> None:
        """Stop looking; a look under way is left to end by itself."""
        self._closed.set()

    @property
    def waits_for_brokers(self) -> bool:
        """Whether the last look, a recent one, found no broker."""
        return self.state is ForecasterState.WAITING and time.monotonic() - self._checked_at < STALE_AFTER_S

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                with (
                    closing(make_admin(self._settings, request_timeout_ms=self._request_timeout_ms)) as admin,
                    closing(make_consumer(self._settings, client_id="streamgru-lookout")) as consumer,
                ):
                    while not self._closed.is_set() and self.failure is None:
                        self._check(admin, consumer)
                        self._closed.wait(self._interval_s)
            except (KafkaError, client_errors.KafkaError) as error:
                self._update(None, str(error))
                self._closed.wait(self._interval_s)
            except Exception as error:  # what watches must not die, or all would seem well for ever
                logger.debug("looking failed", exc_info=error)
                # Not as if no broker had answered: nothing is excused by it, and the loop's own signs still count.
                self._update({}, f"looking after the forecaster failed by {type(error).__name__}: {error}")
                self._closed.wait(self._interval_s)
            if self.failure is not None and not self._closed.wait(RAISE_WITHIN_S):
                end_process(str(self.failure))

    @property
    def _request_timeout_ms(self) -> int:
        return round(self._settings.forecaster.request_timeout_s * 1_000)

    def _check(self, admin: Any, consumer: Any) -> None:
        topic = self._settings.kafka.topics.readings
        where = [TopicPartition(topic, number) for number in self._heartbeat.positions]
        try:
            check_topics(self._settings, admin)
            self._missing_topic_checks = 0
            with translate_errors(f"looking up the ends of {topic}", self._settings):
                headless = leaderless(consumer, where)
                asked = [at for at in where if at not in headless]
                ends = consumer.end_offsets(asked, timeout_ms=self._request_timeout_ms) if asked else {}
        except TopicError as error:
            self._count_missing_topics(error)
            return
        except BrokerUnreachable as error:
            self._update(None, str(error))
            return
        except KafkaError as error:  # they answer, and do not tell: nothing is excused by that
            self._update({}, str(error))
            return
        numbers = ", ".join(str(at.partition) for at in headless)
        trouble = f"no broker leads partition {numbers} of {topic} at present" if headless else ""
        self._update({tp.partition: end for tp, end in ends.items()}, trouble)

    def _count_missing_topics(self, error: TopicError) -> None:
        self._missing_topic_checks += 1
        self.trouble = str(error)
        if self._missing_topic_checks == MISSING_TOPIC_CHECKS:
            self.failure = TopicError(
                f"the topics have changed under this forecaster: {error}. It ends, since nothing it could do would be "
                "right; what was committed is"
            )

    def _update(self, ends: Mapping[int, int] | None, trouble: str) -> None:
        if trouble and (not self.trouble or (ends is None) != (self.state is ForecasterState.WAITING)):
            logger.error("%s%s", trouble, "; waiting for it" if ends is None else "")
        elif self.trouble and not trouble:
            was_away = self.state is ForecasterState.WAITING
            logger.warning("the brokers can be reached again" if was_away else "all can be seen again")
        self.trouble = trouble
        self.lag = {} if ends is None else lag_of(self._heartbeat, ends)
        self._checked_at = time.monotonic()
        self.state = self._detector.state(self._heartbeat, ends, self._checked_at)
        if self.state is ForecasterState.STUCK and self._is_fatal:
            self.failure = StreamgruError(
                f"no transaction for {self._limit_s:g} s (--max-idle) though there is work: lag by partition "
                f"{dict(self.lag)}, restoring: {'yes' if self._heartbeat.is_restoring else 'no'}. This process ends so "
                "that another can take over. Nothing is lost; the log says what it was waiting for"
            )
