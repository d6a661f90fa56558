"""The rules that stream and batch share, on arrays: which readings are accepted, and which steps a gap takes.

A reading is *accepted* when its timestamp is later than that of every reading of its sensor accepted before it, in
offset order. Where more than 1.5 cadences passed between two accepted readings, the skipped cadence points are stepped
as missing; where they are more than ``max_gap_steps``, the state is reset instead.

Letters: n readings, S sensors.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

ACCEPTED: Final = 0
DUPLICATE: Final = 1
LATE: Final = 2

# Stands for "no reading of this sensor has been accepted yet".
NEVER_US: Final = np.iinfo(np.int64).min


def classify(
    sensor_codes: NDArray[np.integer], timestamp_us: NDArray[np.int64], last_us: NDArray[np.int64] | None = None
) -> NDArray[np.int8]:
    """``ACCEPTED``, ``DUPLICATE`` (as late as the sensor's last accepted reading) or ``LATE`` (earlier), per reading.

    Args:
        sensor_codes: (n,) the sensor of each reading, in the order of offsets; sensors may interleave.
        timestamp_us: (n,) when it was taken.
        last_us: (S,) by sensor code, the timestamp accepted last before these readings; ``NEVER_US`` for none.
    """
    verdicts = np.empty(len(timestamp_us), np.int8)
    if not len(timestamp_us):
        return verdicts
    order = np.argsort(sensor_codes, kind="stable")
    codes, moments = sensor_codes[order], timestamp_us[order]
    first = np.ones(len(codes), bool)
    first[1:] = codes[1:] != codes[:-1]
    # What was accepted last is also the latest timestamp seen: whatever is later than all before it is accepted.
    before = np.empty_like(moments)
    before[1:] = _running_maximum(np.cumsum(first) - 1, moments)[:-1]
    before[first] = NEVER_US
    if last_us is not None:
        np.maximum(before, last_us[codes], out=before)
    # int8 arithmetic on the two comparisons: 0 where later, 1 where equal, 2 where earlier
    verdicts[order] = (moments <= before).astype(np.int8) + (moments < before)
    return verdicts


def accepted_mask(
    sensor_codes: NDArray[np.integer], timestamp_us: NDArray[np.int64], last_us: NDArray[np.int64] | None = None
) -> NDArray[np.bool_]:
    """Whether each reading is accepted: a strict record high of its sensor's timestamps. Arguments as ``classify``."""
    accepted: NDArray[np.bool_] = classify(sensor_codes, timestamp_us, last_us) == ACCEPTED
    return accepted


def _running_maximum(groups: NDArray[np.intp], moments: NDArray[np.int64]) -> NDArray[np.int64]:
    """The largest of ``moments`` so far within each group; ``groups`` ascend from 0 without holes."""
    lowest = moments.min()
    span = int(moments.max()) - int(lowest) + 1
    if (int(groups[-1]) + 1) * span <= np.iinfo(np.int64).max:
        floor = groups * span - lowest  # lifts each group above the one before it, so one pass serves all
        highest: NDArray[np.int64] = np.maximum.accumulate(moments + floor) - floor
        return highest
    distinct, ranks = np.unique(moments, return_inverse=True)
    floor = groups * len(distinct)
    return distinct[np.maximum.accumulate(ranks + floor) - floor]


def missing_steps(elapsed_us: NDArray[np.int64], cadence_us: int) -> NDArray[np.int64]:
    """How many cadence points were skipped between two accepted readings that lie ``elapsed_us`` apart.

    None up to 1.5 cadences; beyond that as many as leave the later reading more than 0.5 and at most 1.5 cadences after
    the last of them (2 cadences: 1, 2.5: 1, a microsecond more: 2). The limit ``max_gap_steps`` is not applied here.
    """
    cadences, rest = np.divmod(elapsed_us, cadence_us)
    nearest = cadences + (rest > cadence_us - rest)  # rounded, halves down: integers only, so exact at every size
    skipped: NDArray[np.int64] = np.maximum(nearest - 1, 0)
    return skipped


@dataclass(frozen=True)
class Gaps:
    """What lies between accepted readings and their predecessors; every array is (n,)."""

    missing: NDArray[np.int64]  # steps to insert before the reading
    reset: NDArray[np.bool_]  # whether the state begins anew with the reading
    elapsed: NDArray[np.float32]  # cadences since the step before (an inserted one counts); 0 at a reset


def bridge_gaps(
    timestamp_us: NDArray[np.int64], previous_us: NDArray[np.int64], cadence_us: int, max_gap_steps: int
) -> Gaps:
    """The gap rule, for stream and batch alike.

    Args:
        timestamp_us: (n,) of accepted readings.
        previous_us: (n,) of the reading accepted before each, same sensor; ``NEVER_US`` where there is none.
    """
    fresh = previous_us == NEVER_US
    elapsed_us = np.where(fresh, 0, timestamp_us - np.where(fresh, 0, previous_us))
    missing = missing_steps(elapsed_us, cadence_us)
    reset = fresh | (missing > max_gap_steps)
    missing[reset] = 0
    remaining_us = np.where(reset, 0, elapsed_us - missing * cadence_us)
    return Gaps(missing, reset, (remaining_us / cadence_us).astype(np.float32))
