"""How many readings to take at once, so that a batch never takes longer than a poll may, nor more bytes than a commit.

What a reading costs depends on the stream: many sensors are stepped together, one sensor's backlog is stepped one after
the other. A batch that outlasts the poll interval is lost, as the group has given its forecaster up by then, and would
be tried again for ever; so would be a transaction that is too large for its timeouts.
"""

from typing import Final

FIRST: Final = 1_000  # nothing is known yet
SMALLEST: Final = 50
BUDGET_S: Final = 2.0
MOST_BYTES: Final = 64_000_000  # of states and forecasts; a broker takes that many in a second or two
_SHARE_OF_POLL_INTERVAL: Final = 0.1


class BatchSize:
    """Follows what batches take.

    Args:
        most: readings of a batch at most.
        poll_interval_s: how long a forecaster may go without a poll.
    """

    def __init__(self, most: int, poll_interval_s: float) -> None:
        self._asked = self._most = most
        self._budget_s = min(BUDGET_S, poll_interval_s * _SHARE_OF_POLL_INTERVAL)
        self.readings = min(FIRST, most)

    def note(self, readings: int, seconds: float) -> None:
        """A batch of so many readings took so long: the next one is to keep to the budget."""
        if seconds > self._budget_s:
            fitting = int(readings * self._budget_s / seconds)
            self.readings = min(self._most, max(min(SMALLEST, self._most), fitting))
        elif readings >= self.readings and seconds < self._budget_s / 2:
            self.readings = min(self._most, 2 * self.readings)

    def fit(self, bytes_per_reading: int) -> None:
        """A reading leads to so many bytes at most, its sensor's state and its forecast."""
        self._most = min(self._asked, max(SMALLEST, MOST_BYTES // bytes_per_reading))
        self.readings = min(self.readings, self._most)

    def shrink(self) -> None:
        """A transaction failed: should its size have been the reason, the next is smaller."""
        self.readings = min(self._most, max(min(SMALLEST, self._most), self.readings // 2))
