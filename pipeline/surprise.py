"""Surprise: how far outside its forecast interval a reading fell, in widths of the interval. The only definition."""

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

# The least width, relative to the interval's numbers: float32 cannot tell narrower intervals from a point.
_RELATIVE_WIDTH: Final = float(np.finfo(np.float32).eps)
# The least width of an interval at zero: the smallest normal number of float32.
_ABSOLUTE_WIDTH: Final = float(np.finfo(np.float32).tiny)
LARGEST_SURPRISE: Final = 1e6  # keeps the surprise finite, so that it can be sorted, averaged and written as JSON


def surprise(values: ArrayLike, low: ArrayLike, high: ArrayLike) -> NDArray[np.float64]:
    """The distance of each value to its interval, divided by the interval's width.

    0 for a value in the interval, 1 for a value that lies one width outside it, at most ``LARGEST_SURPRISE``. NaN if
    one of the three numbers is missing. The arguments broadcast.
    """
    value, lower, upper = (np.asarray(given, np.float64) for given in (values, low, high))
    outside = np.maximum(np.maximum(lower - value, value - upper), 0.0)
    least = np.maximum(np.maximum(np.abs(lower), np.abs(upper)) * _RELATIVE_WIDTH, _ABSOLUTE_WIDTH)
    with np.errstate(over="ignore"):
        found = outside / np.maximum(upper - lower, least)
    return np.asarray(np.minimum(found, LARGEST_SURPRISE))


def largest_surprise(surprises: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """(n,) the largest surprise in each row of (n, K) targets, and its target's index; NaN and 0 for rows of NaN."""
    known = np.where(np.isnan(surprises), -1.0, surprises)
    target = known.argmax(axis=1)
    found = np.take_along_axis(surprises, target[:, None], axis=1)[:, 0]
    return found, target
