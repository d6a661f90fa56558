"""The reorder buffer: which readings are accepted, and in which order they are stepped, where gaps are waited for.

By offset order, per sensor. A reading is *held* while a cadence point between its sensor's last step and it is missing:
a stream in order is never delayed, and neither is a sensor's first reading. Held readings are released in order of
time, each as soon as the gap before it is filled or has been waited for: until the sensor's newest reading is
``wait_us`` later than the one behind the gap, or a held one has ``offsets`` offsets behind it. What is no later than
the last step, or falls between two readings without a missing cadence point, is late; what has the time of another, a
duplicate. A gap too long to be bridged is waited for as any other.

Two things follow that recovery rests on. Held readings judged once more, in the order of their offsets, are held again:
the buffer's content is known from the last step and the readings alone. And what becomes of readings later than one
that was accepted depends on none before it: so a replay may begin with any reading, if all that are stepped after it
have higher offsets.

Letters: n readings, m of them accepted, S sensors.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .acceptance import ACCEPTED, DUPLICATE, LATE, NEVER_US, classify, missing_steps

BUFFERED: Final = 3  # a verdict beside those of ``model.acceptance``

# A sensor that falls silent behind a gap would be waited for without end. This bounds what is in memory and what a
# restart reads again (seconds), and a partition of 100,000 sensors still waits for five readings of each.
MAX_BUFFERED_OFFSETS: Final = 500_000


@dataclass(frozen=True)
class GracePeriod:
    """How long a gap is waited for; not at all where ``wait_us`` is 0."""

    cadence_us: int
    wait_us: int
    offsets: int = MAX_BUFFERED_OFFSETS

    @property
    def is_on(self) -> bool:
        """Whether gaps are waited for."""
        return self.wait_us > 0

    def leaves_gap(self, elapsed_us: int) -> bool:
        """``missing_steps(...) > 0`` for one number."""
        return 2 * elapsed_us > 3 * self.cadence_us


class ReleasedReading(NamedTuple):
    """A reading whose turn has come."""

    name: int
    timestamp_us: int
    may_anchor: bool  # whether a replay may begin with it: all that are stepped after it have higher offsets


class _BufferedReading(NamedTuple):
    timestamp_us: int
    offset: int
    name: int


class ReorderBuffer:
    """The readings of one sensor that wait, and the last that was stepped."""

    def __init__(self, grace: GracePeriod, last_us: int = NEVER_US) -> None:
        self._grace = grace
        self._last_us = last_us
        self._buffered: list[_BufferedReading] = []  # in order of time
        self._by_offset: deque[_BufferedReading] = deque()  # by arrival; the first is held, later ones may be released

    def passes_through(self, timestamp_us: int) -> bool:
        """Whether a reading is stepped as it arrives, since none is held and it leaves no gap; most are."""
        last_us = self._last_us
        if self._buffered or timestamp_us <= last_us:
            return False
        if last_us != NEVER_US and self._grace.leaves_gap(timestamp_us - last_us):
            return False
        self._last_us = timestamp_us
        return True

    def add(self, timestamp_us: int, offset: int, name: int) -> tuple[int, list[ReleasedReading]]:
        """``BUFFERED`` (if only for a moment), ``DUPLICATE`` or ``LATE``; and whose turn has come, in order of time."""
        released = self.release(offset)
        verdict = self._insert(_BufferedReading(timestamp_us, offset, name))
        if verdict == BUFFERED:
            released += self.release(offset)
        return verdict, released

    def release(self, offset: int) -> list[ReleasedReading]:
        """Whose turn has come as of an offset, in order of time."""
        buffered, by_offset = self._buffered, self._by_offset
        released: list[ReleasedReading] = []
        for first in buffered:
            if not (self._is_next(first) or self._is_overdue(first, offset)):
                break
            self._last_us = first.timestamp_us
            while by_offset and by_offset[0].timestamp_us <= self._last_us:  # released, this one or others before it
                by_offset.popleft()
            may_anchor = not by_offset or by_offset[0].offset > first.offset
            released.append(ReleasedReading(first.name, first.timestamp_us, may_anchor))
        del buffered[: len(released)]
        return released

    def _insert(self, reading: _BufferedReading) -> int:
        if reading.timestamp_us <= self._last_us:
            return DUPLICATE if reading.timestamp_us == self._last_us else LATE
        buffered = self._buffered
        at = bisect_left(buffered, (reading.timestamp_us,))
        if at < len(buffered):
            later_us = buffered[at].timestamp_us
            if later_us == reading.timestamp_us:
                return DUPLICATE
            earlier_us = buffered[at - 1].timestamp_us if at else self._last_us
            if not self._grace.leaves_gap(later_us - earlier_us):
                return LATE
        buffered.insert(at, reading)
        self._by_offset.append(reading)
        return BUFFERED

    def _is_next(self, reading: _BufferedReading) -> bool:
        return self._last_us == NEVER_US or not self._grace.leaves_gap(reading.timestamp_us - self._last_us)

    def _is_overdue(self, first: _BufferedReading, offset: int) -> bool:
        """Whether the first of those held in order of time, none of them released so far, is waited for no longer."""
        return (
            self._buffered[-1].timestamp_us - first.timestamp_us >= self._grace.wait_us
            or offset - self._by_offset[0].offset >= self._grace.offsets
        )


@dataclass(frozen=True)
class Reordering:
    """What becomes of n readings."""

    verdicts: NDArray[np.int8]  # (n,) accepted, duplicate, late or held
    order: NDArray[np.intp]  # (m,) the accepted ones as they are stepped: each sensor's in order of time
    may_anchor: NDArray[np.bool_]  # (m,) see ``ReleasedReading``


def reorder(
    sensor_codes: NDArray[np.integer],
    timestamp_us: NDArray[np.int64],
    offsets: NDArray[np.int64],
    grace: GracePeriod,
    last_us: NDArray[np.int64] | None = None,
    end: int | None = None,
) -> Reordering:
    """``model.acceptance.classify`` where gaps are waited for.

    A stream may be cut anywhere: the readings held so far, in the order of their offsets, come before the new ones.

    Args:
        sensor_codes: (n,) the sensor of each reading, in the order of offsets; sensors may interleave.
        timestamp_us: (n,) when it was taken; offsets: (n,) ascending for each sensor.
        last_us: (S,) by sensor code, the timestamp stepped last before these readings; ``NEVER_US`` for none.
        end: the offset up to which the partition was read; not given, no reading is released by its age at the end.
    """
    verdicts = classify(sensor_codes, timestamp_us, last_us)
    accepted = np.flatnonzero(verdicts == ACCEPTED)
    disordered = _sensors_with_gaps(sensor_codes[accepted], timestamp_us[accepted], grace.cadence_us, last_us)
    if not len(disordered):  # without a gap nothing is held, and the rule is that of ``classify``
        return Reordering(verdicts, accepted, np.ones(len(accepted), bool))
    slow = np.flatnonzero(np.isin(sensor_codes, disordered))
    waiting = {
        code: ReorderBuffer(grace, NEVER_US if last_us is None else int(last_us[code])) for code in disordered.tolist()
    }
    turns: list[tuple[int, ReleasedReading]] = []  # by the place of the reading that released it
    found = np.full(len(slow), ACCEPTED, np.int8)
    arrivals: Iterable[tuple[int, int, int, int]] = zip(
        slow.tolist(),
        sensor_codes[slow].tolist(),
        timestamp_us[slow].tolist(),
        offsets[slow].tolist(),
        strict=True,
    )
    for number, (place, code, moment_us, offset) in enumerate(arrivals):
        queue = waiting[code]
        if not queue.passes_through(moment_us):
            found[number], released = queue.add(moment_us, offset, place)
            turns += [(place, one) for one in released]
    if end is not None:
        turns += [(len(verdicts), one) for queue in waiting.values() for one in queue.release(end)]
    verdicts[slow] = found
    quick = np.flatnonzero(verdicts == ACCEPTED)  # each in its own turn
    names = np.fromiter((one.name for _, one in turns), np.intp, len(turns))
    verdicts[names] = ACCEPTED
    turn = np.concatenate([quick, np.fromiter((place for place, _ in turns), np.intp, len(turns))])
    by_turn = np.argsort(turn, kind="stable")
    may_anchor = np.fromiter((one.may_anchor for _, one in turns), bool, len(turns))
    return Reordering(
        verdicts,
        np.concatenate([quick, names])[by_turn],
        np.concatenate([np.ones(len(quick), bool), may_anchor])[by_turn],
    )


def can_release(
    sensor_codes: NDArray[np.integer],
    timestamp_us: NDArray[np.int64],
    offsets: NDArray[np.int64],
    grace: GracePeriod,
    last_us: NDArray[np.int64],
    end: int | None = None,
) -> NDArray[np.bool_]:
    """(S,) whether ``reorder`` would release any of the readings held of a sensor, though no new one has come of it.

    Of other sensors nothing needs to be settled, however many readings of them are held.

    Args:
        sensor_codes: (n,) the sensor of each reading that is held; each code below S occurs.
        timestamp_us, offsets, last_us, end: see ``reorder``.
    """
    earliest_us = np.full(len(last_us), np.iinfo(np.int64).max)
    np.minimum.at(earliest_us, sensor_codes, timestamp_us)
    newest_us = np.full(len(last_us), NEVER_US)
    np.maximum.at(newest_us, sensor_codes, timestamp_us)
    behind_gap = _leave_gaps(earliest_us, last_us, grace.cadence_us)
    come: NDArray[np.bool_] = ~behind_gap | (newest_us - earliest_us >= grace.wait_us)
    if end is not None:
        come[sensor_codes[end - offsets >= grace.offsets]] = True
    return come


def _sensors_with_gaps(
    codes: NDArray[np.integer], timestamp_us: NDArray[np.int64], cadence_us: int, last_us: NDArray[np.int64] | None
) -> NDArray[np.integer]:
    """The sensors among whose readings, each later than the one before it, a cadence point is missing."""
    by_sensor = np.argsort(codes, kind="stable")
    grouped, moments = codes[by_sensor], timestamp_us[by_sensor]
    first = np.ones(len(grouped), bool)
    first[1:] = grouped[1:] != grouped[:-1]
    before = np.empty_like(moments)
    before[1:] = moments[:-1]
    before[first] = NEVER_US if last_us is None else last_us[grouped[first]]
    return np.unique(grouped[_leave_gaps(moments, before, cadence_us)])


def _leave_gaps(timestamp_us: NDArray[np.int64], before_us: NDArray[np.int64], cadence_us: int) -> NDArray[np.bool_]:
    """Whether a cadence point is missing between each reading and the one before it; not where there is none."""
    known = before_us != NEVER_US
    gaps: NDArray[np.bool_] = known & (
        missing_steps(timestamp_us - np.where(known, before_us, timestamp_us), cadence_us) > 0
    )
    return gaps
