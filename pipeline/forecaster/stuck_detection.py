"""Stuck detection: notices a call that never returns, and a forecaster without progress although there is work.

kafka-python waits for a commit or an abort without limit, and its heartbeats keep the partitions assigned meanwhile.
``Watchdog`` ends the process if such a call takes too long, so another forecaster takes over within seconds. Time in
which no broker answers does not count. ``HealthMonitor``, a thread with clients of its own, checks the brokers, the
topics and the loop's ``Heartbeat`` every few seconds. It stores a fatal error in ``failure``, which the loop raises; if
the loop does not raise it in time, the thread ends the process.
"""

import logging
import math
import os
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
from pipeline.observability.log_format import write_final_line
from pipeline.settings import Settings

logger = logging.getLogger("streamgru.stuck_detection")

EXIT_CODE: Final = 70  # EX_SOFTWARE in sysexits.h
CHECK_INTERVAL_S: Final = 0.5
# Checks in a row that must find a call overdue before the process ends. The first check after SIGSTOP and SIGCONT finds
# the deadline passed, although the call had no time to finish.
_OVERDUE_CHECKS: Final = 2


def end_process(message: str) -> None:
    """Print the message and exit with ``EXIT_CODE``, from any thread, regardless of the other threads."""
    write_final_line(message, logger.name)
    os._exit(EXIT_CODE)  # an exception would not end a main thread that hangs in a call


@dataclass
class Call:
    """A watched call that has not returned yet."""

    what: str
    began: float  # monotonic seconds
    excused_s: float = 0.0  # excused time within the call, in seconds


class Watchdog:
    """Ends the process if a watched call takes too long. One thread makes the calls, one at a time.

    Args:
        limit_s: longest duration of a call, in seconds, without the excused time.
        end: receives the message; by default prints it and exits with ``EXIT_CODE``.
        is_excused: whether time is excused at this moment; must return at once.
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
        """Let the body take at most ``limit_s``. ``what`` names it in the message, such as "a commit"."""
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
                    f"{watched.what} has not returned for {self._limit_s:g} s (forecaster.commit_timeout_s). This "
                    "process ends, so that another forecaster can take over. Nothing is lost. Check that the brokers "
                    "answer, then start the forecaster again: it continues after the last transaction"
                )
                return


# --- a forecaster without progress ------------------------------------------------------------------------------------


MONITOR_INTERVAL_S: Final = 2.0
MISSING_TOPIC_CHECKS: Final = 3  # checks in a row that miss a topic; a restarted broker may not know all topics at once
PROCESS_STOPPED_S: Final = 5.0  # seconds; a longer time between two checks means that the whole process was stopped
STALE_AFTER_S: Final = 30.0  # seconds; a check with new clients takes up to 20 s, so an older result is out of date
RAISE_WITHIN_S: Final = 10.0  # seconds until the loop must have raised a failure, which it looks for in every turn


class ForecasterState(StrEnum):
    """The state of a forecaster, as /healthz names it."""

    STARTING = "starting"  # before its first poll; it may wait for a first champion
    RESTORING = "restoring"  # some of its partitions have no states yet
    SERVING = "serving"  # including an idle forecaster
    STUCK = "stuck"  # work waits, and no transaction was committed for too long
    WAITING = "waiting for broker"


@dataclass
class Heartbeat:
    """The last actions of the loop, in monotonic seconds.

    The loop's thread writes it and other threads read it, so attributes are replaced, never changed in place.
    """

    progressed: float = field(default_factory=time.monotonic)  # last commit or restored state
    polled: float | None = None
    committed: float | None = None
    positions: Mapping[int, int] = field(default_factory=dict)  # running partition -> next offset to read
    is_restoring: bool = False
    sensors: int = 0


class StuckDetector:
    """Decides from a series of checks whether a forecaster is stuck.

    A forecaster is stuck if checks find work for ``limit_s``, at least two in a row, and it neither commits nor
    restores. It is also stuck if it has not polled for ``poll_interval_s``: the group has then dropped it. Time in
    which no broker answers does not count.
    """

    def __init__(self, limit_s: float, poll_interval_s: float) -> None:
        self._limit_s = limit_s
        self._poll_interval_s = poll_interval_s
        self._work_since: float | None = None  # first of the checks in a row that found work
        self._last_check: float | None = None
        self._unreachable_at = -math.inf  # last check that reached no broker

    def state(self, heartbeat: Heartbeat, ends: Mapping[int, int] | None, now: float) -> ForecasterState:
        """The state as of a check. ``ends`` maps partitions to their ends in the log; None: no broker answered."""
        before, self._last_check = self._last_check, now
        if heartbeat.polled is None:
            return ForecasterState.STARTING
        if ends is None:
            self._work_since = None
            self._unreachable_at = now
            return ForecasterState.WAITING
        active = ForecasterState.RESTORING if heartbeat.is_restoring else ForecasterState.SERVING
        if before is not None and now - before > max(self._limit_s, PROCESS_STOPPED_S):
            self._work_since = None  # the whole process was stopped, so the loop had no time to work
            return active
        if now - max(heartbeat.polled, self._unreachable_at) > self._poll_interval_s:
            return ForecasterState.STUCK
        if not heartbeat.is_restoring and not any(lag_of(heartbeat, ends).values()):
            self._work_since = None
        elif self._work_since is None:
            self._work_since = now
        elif now - max(self._work_since, heartbeat.progressed) >= self._limit_s:
            return ForecasterState.STUCK
        return active


def lag_of(heartbeat: Heartbeat, ends: Mapping[int, int]) -> dict[int, int]:
    """The lag of each running partition, in offsets; partitions of unknown end are left out."""
    return {p: max(0, ends[p] - position) for p, position in sorted(heartbeat.positions.items()) if p in ends}


class HealthMonitor:
    """A thread that checks brokers, topics and the loop's heartbeat.

    Args:
        limit_s: seconds that work may wait without a commit.
        is_fatal: whether a stuck forecaster ends.
    """

    def __init__(self, settings: Settings, heartbeat: Heartbeat, limit_s: float, *, is_fatal: bool) -> None:
        self.state = ForecasterState.STARTING
        self.trouble = ""  # message of the last check, about brokers or topics; empty if it succeeded
        self.lag: Mapping[int, int] = {}
        self.failure: StreamgruError | None = None
        self._settings = settings
        self._heartbeat = heartbeat
        self._limit_s = limit_s
        self._is_fatal = is_fatal
        self._interval_s = min(MONITOR_INTERVAL_S, limit_s)
        self._request_timeout_ms = round(settings.forecaster.request_timeout_s * 1_000)
        self._detector = StuckDetector(limit_s, settings.forecaster.poll_interval_s)
        self._missing_topic_checks = 0
        self._checked_at = 0.0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="health-monitor", daemon=True)

    def start(self) -> None:
        """Start the checks."""
        self._thread.start()

    def close(self) -> None:
        """Stop the checks, without waiting for one in progress."""
        self._closed.set()

    @property
    def waits_for_brokers(self) -> bool:
        """Whether the last check is recent and reached no broker."""
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
            except Exception as error:  # without this thread a stuck forecaster would count as healthy for ever
                logger.debug("the check for a stuck forecaster failed", exc_info=error)
                # {} instead of None, which would mean that no broker answers: this time must count.
                self._update({}, f"the health check failed with {type(error).__name__}: {error}")
            if self.failure is None:
                self._closed.wait(self._interval_s)
            elif not self._closed.wait(RAISE_WITHIN_S):
                end_process(str(self.failure))

    def _check(self, admin: Any, consumer: Any) -> None:
        topic = self._settings.kafka.topics.readings
        partitions = [TopicPartition(topic, number) for number in self._heartbeat.positions]
        try:
            check_topics(self._settings, admin)
            self._missing_topic_checks = 0
            with translate_errors(f"looking up the ends of {topic}", self._settings):
                without_leader = leaderless(consumer, partitions)
                asked = [tp for tp in partitions if tp not in without_leader]
                ends = consumer.end_offsets(asked, timeout_ms=self._request_timeout_ms) if asked else {}
        except TopicError as error:
            self._count_missing_topics(error)
            return
        except KafkaError as error:  # only the time without a broker is excused, not an error that a broker returns
            self._update(None if isinstance(error, BrokerUnreachable) else {}, str(error))
            return
        numbers = ", ".join(str(tp.partition) for tp in without_leader)
        trouble = f"no broker leads partition {numbers} of topic {topic} at the moment" if numbers else ""
        self._update({tp.partition: end for tp, end in ends.items()}, trouble)

    def _count_missing_topics(self, error: TopicError) -> None:
        self._missing_topic_checks += 1
        self.trouble = str(error)
        if self._missing_topic_checks == MISSING_TOPIC_CHECKS:
            self.failure = TopicError(
                f"the topics changed while this forecaster was running: {error}. The forecaster ends without another "
                "commit. Correct the topics, then start it again"
            )

    def _update(self, ends: Mapping[int, int] | None, trouble: str) -> None:
        if trouble and (not self.trouble or (ends is None) != (self.state is ForecasterState.WAITING)):
            logger.error("waiting for the brokers: %s" if ends is None else "%s", trouble)
        elif self.trouble and not trouble:
            if self.state is ForecasterState.WAITING:
                logger.warning("the brokers can be reached again")
            else:
                logger.warning("resolved: %s", self.trouble)
        self.trouble = trouble
        self.lag = {} if ends is None else lag_of(self._heartbeat, ends)
        self._checked_at = time.monotonic()
        self.state = self._detector.state(self._heartbeat, ends, self._checked_at)
        if self.state is ForecasterState.STUCK and self._is_fatal:
            self.failure = StreamgruError(
                f"no transaction for {self._limit_s:g} s (--max-idle) although there is work: lag by partition "
                f"{dict(self.lag)}, restoring: {'yes' if self._heartbeat.is_restoring else 'no'}. This process ends, "
                "so that another forecaster can take over. Nothing is lost; its log shows the last steps"
            )


def state_of(monitor: HealthMonitor | None) -> ForecasterState:
    """The forecaster's state; ``monitor`` is None until the forecaster has connected."""
    return ForecasterState.STARTING if monitor is None else monitor.state
