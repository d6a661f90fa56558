"""Live scores: interval coverage, and the error of the median beside persistence, over all sensors and time.

Persistence forecasts that the value stays as it was when the forecast was issued. Both errors are counted over the same
readings: those whose value, forecast and value before are known.
"""

from collections import deque
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

BUCKETS: Final = 120  # length of the series


@dataclass(frozen=True)
class Judged:
    """Values beside the forecasts for them, all (n, K); NaN where a number is missing."""

    value: NDArray[np.float32]
    low: NDArray[np.float32]
    median: NDArray[np.float32]
    high: NDArray[np.float32]
    persistence: NDArray[np.float32]  # the value when the forecast was issued


class ScoreSums:
    """Sums from which the scores of K targets follow."""

    def __init__(self, targets: int) -> None:
        self.judged = np.zeros(targets, np.int64)  # values with an interval
        self.covered = np.zeros(targets, np.int64)  # values in their intervals
        self.compared = np.zeros(targets, np.int64)  # values with both errors
        self.error = np.zeros(targets)  # sum of absolute errors of the median
        self.persistence_error = np.zeros(targets)

    def add(self, judged: Judged) -> None:
        """Count the values of (n, K) columns."""
        is_judged = ~(np.isnan(judged.value) | np.isnan(judged.low) | np.isnan(judged.high))
        is_covered = is_judged & (judged.low <= judged.value) & (judged.value <= judged.high)
        error = np.abs(judged.value - judged.median, dtype=np.float64)
        persistence_error = np.abs(judged.value - judged.persistence, dtype=np.float64)
        is_compared = ~(np.isnan(error) | np.isnan(persistence_error))
        self.judged += is_judged.sum(axis=0)
        self.covered += is_covered.sum(axis=0)
        self.compared += is_compared.sum(axis=0)
        self.error += np.where(is_compared, error, 0.0).sum(axis=0)
        self.persistence_error += np.where(is_compared, persistence_error, 0.0).sum(axis=0)

    def coverage(self, target: int) -> float | None:
        """The share of values in their intervals."""
        return _ratio(self.covered[target], self.judged[target])

    def mae(self, target: int) -> float | None:
        """The mean absolute error of the median."""
        return _ratio(self.error[target], self.compared[target])

    def persistence_mae(self, target: int) -> float | None:
        """The mean absolute error of persistence on the same values."""
        return _ratio(self.persistence_error[target], self.compared[target])


class ScoreSeries:
    """The sums since the start, and those of the last ``BUCKETS`` stretches of arrival time. Not thread-safe."""

    def __init__(self, targets: int, bucket_s: float) -> None:
        self.total = ScoreSums(targets)
        self.buckets: deque[tuple[float, ScoreSums]] = deque(maxlen=BUCKETS)  # begin in seconds -> sums
        self._targets = targets
        self._bucket_s = bucket_s

    def add(self, now_s: float, judged: Judged) -> None:
        """Count values that arrived now."""
        begin = now_s // self._bucket_s * self._bucket_s
        if not self.buckets or self.buckets[-1][0] < begin:
            self.buckets.append((begin, ScoreSums(self._targets)))
        self.total.add(judged)
        self.buckets[-1][1].add(judged)


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None
