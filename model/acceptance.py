"""The rules that stream and batch share: which readings are accepted, and which steps a gap takes.

A reading is *accepted* if its timestamp is later than that of every reading of its sensor accepted before it, in
offset order. If more than 1.5 cadences passed between two accepted readings, the skipped cadence points are stepped as
missing. If there are more than ``max_gap_steps`` of them, the state is reset instead.

Letters: n readings, S sensors.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

ACCEPTED: Final = 0
DUPLICATE: Final = 1
LATE: Final = 2

# The timestamp that stands for "no reading of this sensor has been accepted yet".
NEVER_US: Final = np.iinfo(np.int64).min


def classify(
    sensor_codes: NDArray[np.integer], timestamp_us: NDArray[np.int64], last_us: NDArray[np.int64] | None = None
) -> NDArray[np.int8]:
    """(n,) ``ACCEPTED``, ``DUPLICATE`` or ``LATE``, by reading.

    A duplicate has the timestamp of its sensor's last accepted reading, a late reading an earlier one.

    Args:
        sensor_codes: (n,) the sensor of each reading, in the order of offsets; sensors may interleave.
        timestamp_us: (n,) of the readings.
        last_us: (S,) timestamp that each sensor accepted last before these readings; ``NEVER_US`` before its first.
    """
    verdicts = np.empty(len(timestamp_us), np.int8)
    if not len(timestamp_us):
        return verdicts
    order = np.argsort(sensor_codes, kind="stable")
    codes, moments = sensor_codes[order], timestamp_us[order]
    first = np.ones(len(codes), bool)
    first[1:] = codes[1:] != codes[:-1]
    # A sensor's last accepted timestamp is also its latest: compare each reading with the running maximum.
    before = np.empty_like(moments)
    before[1:] = running_maximum(np.cumsum(first) - 1, moments)[:-1]
    before[first] = NEVER_US
    if last_us is not None:
        np.maximum(before, last_us[codes], out=before)
    # The sum of two comparisons: 0 for a later timestamp, 1 for an equal one, 2 for an earlier one.
    verdicts[order] = (moments <= before).astype(np.int8) + (moments < before)
    return verdicts


def accepted_mask(sensor_codes: NDArray[np.integer], timestamp_us: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(n,) whether each reading is accepted. Arguments as for ``classify``."""
    accepted: NDArray[np.bool_] = classify(sensor_codes, timestamp_us) == ACCEPTED
    return accepted


def running_maximum(groups: NDArray[np.intp], moments: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) the largest of ``moments`` so far within each group; ``groups`` ascend from 0 without holes."""
    if not len(moments):
        return moments
    lowest = moments.min()
    span = int(moments.max()) - int(lowest) + 1
    if (int(groups[-1]) + 1) * span <= np.iinfo(np.int64).max:
        floor = groups * span - lowest  # raises each group above the previous group, so that one pass serves all groups
        highest: NDArray[np.int64] = np.maximum.accumulate(moments + floor) - floor
        return highest
    distinct, ranks = np.unique(moments, return_inverse=True)
    floor = groups * len(distinct)
    return distinct[np.maximum.accumulate(ranks + floor) - floor]


def lowest_from_here(groups: NDArray[np.intp], moments: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) the smallest of ``moments`` from each place to its group's end; arguments as for ``running_maximum``."""
    return -running_maximum(groups.max(initial=0) - groups[::-1], -moments[::-1])[::-1]


def timestamps_before(
    sensor_codes: NDArray[np.integer], timestamp_us: NDArray[np.int64], last_us: NDArray[np.int64] | None
) -> NDArray[np.int64]:
    """(n,) timestamp of the same sensor's previous reading; ``last_us`` for a sensor's first reading.

    Arguments as for ``classify``.
    """
    by_sensor = np.argsort(sensor_codes, kind="stable")
    grouped = sensor_codes[by_sensor]
    before = np.empty_like(timestamp_us)
    before[1:] = timestamp_us[by_sensor][:-1]
    first = np.ones(len(grouped), bool)
    first[1:] = grouped[1:] != grouped[:-1]
    before[first] = NEVER_US if last_us is None else last_us[grouped[first]]
    unsorted = np.empty_like(before)
    unsorted[by_sensor] = before
    return unsorted


def missing_steps(elapsed_us: NDArray[np.int64], cadence_us: int) -> NDArray[np.int64]:
    """(n,) cadence points that were skipped between two accepted readings ``elapsed_us`` (n,) apart.

    0 up to 1.5 cadences, 1 up to 2.5 cadences, 2 up to 3.5, and so on. The limit ``max_gap_steps`` is not applied.
    """
    cadences, rest = np.divmod(elapsed_us, cadence_us)
    nearest = cadences + (rest > cadence_us - rest)  # rounded, halves down; integers are exact at every size
    skipped: NDArray[np.int64] = np.maximum(nearest - 1, 0)
    return skipped


@dataclass(frozen=True)
class Gaps:
    """The gaps between accepted readings and their predecessors; every array is (n,)."""

    missing: NDArray[np.int64]  # steps to insert before the reading
    reset: NDArray[np.bool_]  # whether the state is reset before the reading
    elapsed: NDArray[np.float32]  # cadences since the step before (an inserted one counts); 0 at a reset


def bridge_gaps(
    timestamp_us: NDArray[np.int64], previous_us: NDArray[np.int64], cadence_us: int, max_gap_steps: int
) -> Gaps:
    """The gaps before accepted readings; stream and batch both call this.

    Args:
        timestamp_us: (n,) of accepted readings.
        previous_us: (n,) of the same sensor's reading accepted before each; ``NEVER_US`` for a sensor's first.
    """
    fresh = previous_us == NEVER_US
    elapsed_us = np.where(fresh, 0, timestamp_us - np.where(fresh, 0, previous_us))
    missing = missing_steps(elapsed_us, cadence_us)
    reset = fresh | (missing > max_gap_steps)
    missing[reset] = 0
    remaining_us = np.where(reset, 0, elapsed_us - missing * cadence_us)
    return Gaps(missing, reset, (remaining_us / cadence_us).astype(np.float32))
