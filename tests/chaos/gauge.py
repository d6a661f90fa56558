"""A few numbers that a forecaster shares with the harness through a file: they outlive a SIGKILL of either."""

import time
from pathlib import Path
from typing import Final

import numpy as np

# The fault points of ``pipeline.forecaster``: loop, session and commit.
POINTS: Final = (
    "polled",
    "before-flush",
    "flushed",
    "offsets-sent",
    "committed",
    "restoring",
    "swapping",
    "revoked",
)
KILL: Final = 1
STOP: Final = 2

_ARMED, _ACTION, _COUNTDOWN, _FIRED, _IN_TRANSACTION, _PASSINGS = 0, 1, 2, 3, 4, 8
_COMMITS = _PASSINGS + len(POINTS)


class Gauge:
    """One forecaster's numbers. The harness arms a fault point; the forecaster counts what it passes, and obeys."""

    def __init__(self, path: Path, partitions: int) -> None:
        size = _COMMITS + partitions
        if not path.exists():
            np.zeros(size, np.int64).tofile(path)
        self._numbers = np.memmap(path, np.int64, mode="r+", shape=(size,))

    def arm(self, point: str, action: int, countdown: int = 1) -> None:
        """Let the forecaster kill or stop itself when it has passed a point so many times."""
        self._numbers[_FIRED] = 0
        self._numbers[_ACTION] = action
        self._numbers[_COUNTDOWN] = countdown
        self._numbers[_ARMED] = POINTS.index(point) + 1

    def disarm(self) -> None:
        """Take the order back, and forget that one was carried out."""
        self._numbers[_ARMED] = 0
        self._numbers[_FIRED] = 0

    @property
    def has_fired(self) -> bool:
        """Whether the last order was carried out."""
        return bool(self._numbers[_FIRED])

    @property
    def fired_at(self) -> str | None:
        """The point at which it was; none: not yet."""
        return POINTS[int(self._numbers[_FIRED]) - 1] if self.has_fired else None

    @property
    def in_transaction(self) -> bool:
        """Whether the forecaster has, or had when it died, a transaction begun and neither committed nor aborted."""
        return bool(self._numbers[_IN_TRANSACTION])

    @in_transaction.setter
    def in_transaction(self, value: bool) -> None:
        self._numbers[_IN_TRANSACTION] = value

    def passed(self, point: str) -> int:
        """Count a point, for the forecaster; what to do now: nothing (0), ``KILL`` or ``STOP``."""
        index = POINTS.index(point)
        numbers = self._numbers
        numbers[_PASSINGS + index] += 1
        if numbers[_ARMED] != index + 1:
            return 0
        numbers[_COUNTDOWN] -= 1
        if numbers[_COUNTDOWN] > 0:
            return 0
        numbers[_ARMED] = 0
        numbers[_FIRED] = index + 1
        return int(numbers[_ACTION])

    def passings(self) -> dict[str, int]:
        """How often each point was passed, by all processes that had this gauge."""
        return dict(zip(POINTS, self._numbers[_PASSINGS:_COMMITS].tolist(), strict=True))

    def note_commit(self, partition: int) -> None:
        """A transaction with this partition's offset was committed now."""
        self._numbers[_COMMITS + partition] = time.time_ns()

    def commits(self) -> list[int]:
        """By partition, when it was last committed, in nanoseconds since the epoch; 0: never."""
        found: list[int] = self._numbers[_COMMITS:].tolist()
        return found
