"""Ends the process when a call that cannot be interrupted takes too long.

kafka-python waits without limit for a commit, an abort and the offsets of a transaction. A forecaster that hangs there
would keep its partitions (heartbeats go on) and forecast nothing; ended, a successor takes over within seconds.
While no broker answers nothing could return: such time is not counted.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

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
