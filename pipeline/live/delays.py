"""Delays in logarithmic buckets: quantiles of the last minutes in a fixed amount of memory."""

from typing import Final

import numpy as np
from numpy.typing import ArrayLike

_LEAST_MS: Final = 1.0
_RATIO: Final = 1.05  # of neighbouring bounds: a quantile is at most 5 % too large
_BUCKETS: Final = 400  # up to 1.05**399 ms, three and a half days
_BOUNDS_MS: Final = _LEAST_MS * _RATIO ** np.arange(_BUCKETS)  # upper bounds


class DelayCounts:
    """Numbers of delays per bucket; add them up with ``+=``."""

    def __init__(self) -> None:
        self._counts = np.zeros(_BUCKETS, np.int64)

    def add(self, delays_ms: ArrayLike) -> None:
        """Count delays; NaN is left out."""
        given = np.asarray(delays_ms, np.float64)
        bucket = np.searchsorted(_BOUNDS_MS, given[~np.isnan(given)]).clip(max=_BUCKETS - 1)
        self._counts += np.bincount(bucket, minlength=_BUCKETS)

    def __iadd__(self, other: "DelayCounts") -> "DelayCounts":
        self._counts += other._counts
        return self

    def quantile_ms(self, level: float) -> float | None:
        """The upper bound of the bucket with this quantile; None without delays."""
        total = int(self._counts.sum())
        if not total:
            return None
        place = int(np.searchsorted(np.cumsum(self._counts), level * total))
        return float(_BOUNDS_MS[min(place, _BUCKETS - 1)])
