"""Ends the process when a call that cannot be interrupted takes too long.

kafka-python waits without limit for a commit, an abort and the offsets of a transaction. A forecaster that hangs there
would keep its partitions (heartbeats go on) and forecast nothing; ended, a successor takes over within seconds.
While no broker answers there is nobody to take over, nor anything to take: such time is not counted.
"""

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
        self._watched: tuple[str, float] | None = None  # what, and when it began
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    @contextmanager
    def watching(self, what: str) -> Iterator[None]:
        """Let the body take ``limit_s`` at most. ``what`` completes the sentence "… has not returned"."""
        self._watched = (what, time.monotonic())
        try:
            yield
        finally:
            self._watched = None

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        overdue: tuple[str, float] | None = None
        checks = 0
        excused = -math.inf  # until then
        while not self._closed.wait(self._interval_s):
            if self._is_excused():
                excused = time.monotonic()
            watched = self._watched
            if watched is None or time.monotonic() - max(watched[1], excused) < self._limit_s:
                overdue = None
                continue
            checks = checks + 1 if watched is overdue else 1
            overdue = watched
            if checks >= _OVERDUE_CHECKS:
                self._end(
                    f"{watched[0]} has not returned for {self._limit_s:g} s (forecaster.commit_timeout_s); this "
                    "process ends so that another can take over. Nothing is lost: start it again, it goes on where the "
                    "last transaction ended. Check that the brokers answer"
                )
                return
