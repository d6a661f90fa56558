"""Waiting in tests: for a condition, up to a deadline.

Limits are for an idle machine. A machine with slow or busy cores gets ``PATIENCE`` times as long.
"""

import time
from collections.abc import Callable
from typing import TypeVar

POLL_S = 0.05
PATIENCE = 3.0
LONGEST_S = 250.0  # of a limit with patience; pytest ends a test after 300 s without the message of the condition

T = TypeVar("T")


def wait_until(predicate: Callable[[], T], timeout_s: float, message: str, *, patience: float = PATIENCE) -> T:
    """The first true value of ``predicate``; the test fails with ``message`` after ``patience`` times ``timeout_s``."""
    limit_s = max(timeout_s, min(patience * timeout_s, LONGEST_S))
    deadline = time.monotonic() + limit_s
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {limit_s:g} s: {message} (last seen: {value!r})")
        time.sleep(POLL_S)
