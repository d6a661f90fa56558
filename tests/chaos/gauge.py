"""Numbers that a forecaster shares with the harness through a mapped file, which survives a SIGKILL of either."""

import time
from pathlib import Path
from typing import Final

import numpy as np

# The fault points of ``pipeline.forecaster``, named by its calls of ``reached``.
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
    """One forecaster's numbers. The harness arms a fault point; the forecaster counts its passes and signals itself."""

    def __init__(self, path: Path, partitions: int) -> None:
        size = _COMMITS + partitions
        if not path.exists():
            np.zeros(size, np.int64).tofile(path)
        self._numbers = np.memmap(path, np.int64, mode="r+", shape=(size,))

    def arm(self, point: str, action: int, countdown: int = 1) -> None:
        """Make the forecaster kill or stop itself when it passes a point for the ``countdown``-th time from now."""
        self._numbers[_FIRED] = 0
        self._numbers[_ACTION] = action
        self._numbers[_COUNTDOWN] = countdown
        self._numbers[_ARMED] = POINTS.index(point) + 1

    def disarm(self) -> None:
        """Disarm the point, and clear ``has_fired``."""
        self._numbers[_ARMED] = 0
        self._numbers[_FIRED] = 0

    @property
    def has_fired(self) -> bool:
        """Whether the forecaster killed or stopped itself since a point was last armed."""
        return bool(self._numbers[_FIRED])

    @property
    def fired_at(self) -> str | None:
        """The point where the forecaster killed or stopped itself; None if it has not."""
        return POINTS[int(self._numbers[_FIRED]) - 1] if self.has_fired else None

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open, or was open when the forecaster died."""
        return bool(self._numbers[_IN_TRANSACTION])

    @in_transaction.setter
    def in_transaction(self, value: bool) -> None:
        self._numbers[_IN_TRANSACTION] = value

    def passed(self, point: str) -> int:
        """Count a pass; return the signal that the forecaster must send itself: 0 (none), ``KILL`` or ``STOP``."""
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
        """How often each point was passed, by all processes that used this gauge."""
        return dict(zip(POINTS, self._numbers[_PASSINGS:_COMMITS].tolist(), strict=True))

    def note_commit(self, partition: int) -> None:
        """Record that a transaction with this partition's offset was committed now."""
        self._numbers[_COMMITS + partition] = time.time_ns()

    def commits(self) -> list[int]:
        """The time of each partition's last commit, in nanoseconds since the epoch; 0 if it was never committed."""
        found: list[int] = self._numbers[_COMMITS:].tolist()
        return found
