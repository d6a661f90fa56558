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
SMALL_BYTES: Final = 4_000_000  # a transaction of no more does not fail by its size
_SHARE_OF_POLL_INTERVAL: Final = 0.1
_REGROWTH: Final = 1.02  # of what is tried again behind a failed transaction, with each full batch that is committed


class BatchSize:
    """Follows what batches take.

    Args:
        most: readings of a batch at most.
        poll_interval_s: how long a forecaster may go without a poll.
    """

    def __init__(self, most: int, poll_interval_s: float) -> None:
        self._asked = self._most = most
        self._tried = float(most)  # what is tried since a transaction failed
        self._bytes_per_reading = 1
        self._budget_s = min(BUDGET_S, poll_interval_s * _SHARE_OF_POLL_INTERVAL)
        self.readings = min(FIRST, most)

    def fit(self, bytes_per_reading: int) -> None:
        """A reading leads to so many bytes at most, its sensor's state and its forecast."""
        self._bytes_per_reading = bytes_per_reading
        self._most = min(self._asked, max(SMALLEST, MOST_BYTES // bytes_per_reading))
        self._tried = self._most
        self._set(self.readings)

    def committed(self, readings: int, seconds: float) -> None:
        """A batch of so many readings, made in so many seconds, was committed: the next is to keep to the budget."""
        is_full = readings >= self.readings
        if is_full:
            self._tried = min(self._most, self._tried * _REGROWTH)
        if not self._keep_to_budget(readings, seconds) and is_full and seconds < self._budget_s / 2:
            self._set(2 * self.readings)

    def failed(self, readings: int, seconds: float) -> None:
        """The transaction of such a batch failed: should its size have been the reason, the next is smaller."""
        if readings * self._bytes_per_reading > SMALL_BYTES:
            self._tried = max(SMALLEST, min(self._tried, readings / 2))
        self._keep_to_budget(readings, seconds)
        self._set(self.readings)

    def _keep_to_budget(self, readings: int, seconds: float) -> bool:
        """Whether it took too long, so that the next is smaller; where only states were written, that says nothing."""
        if seconds <= self._budget_s or not readings:
            return False
        self._set(int(readings * self._budget_s / seconds))
        return True

    def _set(self, readings: int) -> None:
        self.readings = min(self._most, max(SMALLEST, min(readings, int(self._tried))))
