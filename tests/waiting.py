"""Waiting in tests: for a condition, up to a deadline."""

import time
from collections.abc import Callable
from typing import TypeVar

POLL_S = 0.05

T = TypeVar("T")


def wait_until(predicate: Callable[[], T], timeout_s: float, message: str) -> T:
    """The first true value of ``predicate``; the test fails with ``message`` after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {message} (last seen: {value!r})")
        time.sleep(POLL_S)
