"""The reorder buffer: readings after a gap wait for it to be filled, and are stepped in order of time.

Each sensor has its own buffer, and its readings enter in offset order. A reading is *buffered* while a cadence point
between its sensor's last step and it is missing; readings in order, and a sensor's first reading, never wait. Buffered
readings are released in order of time. The first is released as soon as the gap before it is filled. It is also
released when the sensor's newest reading is ``wait_us`` later, or when the partition is ``offsets`` offsets past a
buffered reading. A gap longer than ``max_gap_steps`` is waited for like any other.

A reading is late if it is older than the last step, or lies between two buffered readings that miss no cadence point
between them. A reading with the timestamp of the last step, or of a buffered reading, is a duplicate.

Recovery rests on two consequences:

1. The last step and the readings alone determine the buffer: buffered readings that enter again, in offset order, are
   buffered again.
2. Readings later than an accepted one are treated the same, regardless of the readings before it. So a rebuild may
   begin with any reading, if every reading stepped after it has a higher offset.

Letters: n readings, m of them accepted, S sensors.
"""

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .acceptance import ACCEPTED, DUPLICATE, LATE, NEVER_US, classify, missing_steps, timestamps_before

BUFFERED: Final = 3  # a verdict in addition to the three of ``model.acceptance``

# A reading stays buffered until its partition is this many offsets further: without a limit, the readings of a sensor
# that falls silent after a gap would wait for ever. The limit bounds the memory and the readings that a restart reads
# again (some seconds). A partition of 100,000 sensors still waits for five readings of each.
MAX_BUFFERED_OFFSETS: Final = 500_000


@dataclass(frozen=True)
class GracePeriod:
    """How long readings wait for a gap before them to be filled; with ``wait_us`` 0 they do not wait."""

    cadence_us: int
    wait_us: int
    offsets: int = MAX_BUFFERED_OFFSETS
    # Whether outlooks come between the readings. A state counts them from the record on that made its first reading
    # accepted, so a rebuild may then begin only with a reading that did not wait.
    has_outlooks: bool = False

    @property
    def is_on(self) -> bool:
        """Whether readings wait for a gap to be filled."""
        return self.wait_us > 0

    def leaves_gap(self, elapsed_us: int) -> bool:
        """Whether ``missing_steps`` is positive for two readings ``elapsed_us`` apart."""
        return 2 * elapsed_us > 3 * self.cadence_us


class ReleasedReading(NamedTuple):
    """A reading that is stepped now."""

    name: int  # the caller's name of the reading, see ``ReorderBuffer.add``
    timestamp_us: int
    may_anchor: bool  # whether a rebuild may begin with it: all readings stepped after it have higher offsets
    # Offset of the record that released it; its own if it did not wait. It does not depend on where the stream is cut:
    # a reading that is released for its age has the offset at which it reached that age.
    as_of: int


class _BufferedReading(NamedTuple):
    timestamp_us: int
    offset: int
    name: int


class ReorderBuffer:
    """The buffered readings of one sensor, and the timestamp of its last step."""

    def __init__(self, grace: GracePeriod, last_us: int = NEVER_US) -> None:
        self._grace = grace
        self._last_us = last_us
        self._buffered: list[_BufferedReading] = []  # in order of time
        # In order of arrival. The first is still buffered; later readings may be released already.
        self._by_offset: deque[_BufferedReading] = deque()

    def passes_through(self, timestamp_us: int) -> bool:
        """Whether a reading may be stepped at once: the buffer is empty, and no gap lies before it.

        If so, the reading counts as stepped.
        """
        last_us = self._last_us
        if self._buffered or timestamp_us <= last_us:
            return False
        if last_us != NEVER_US and self._grace.leaves_gap(timestamp_us - last_us):
            return False
        self._last_us = timestamp_us
        return True

    def add(self, timestamp_us: int, offset: int, name: int) -> tuple[int, list[ReleasedReading]]:
        """``BUFFERED``, ``DUPLICATE`` or ``LATE``; and the readings released now, in order of time.

        A reading that is ``BUFFERED`` may be among the released ones.
        """
        released = self.release(offset)
        verdict = self._insert(_BufferedReading(timestamp_us, offset, name))
        if verdict == BUFFERED:
            released += self._release(offset, offset)
        return verdict, released

    def release(self, offset: int) -> list[ReleasedReading]:
        """The readings released as of an offset, in order of time."""
        return self._release(offset, 0)

    def _release(self, offset: int, as_of: int) -> list[ReleasedReading]:
        """``release``; ``as_of`` is the offset of a reading that just came, 0 for none."""
        buffered, by_offset = self._buffered, self._by_offset
        released: list[ReleasedReading] = []
        for first in buffered:
            if not self._is_next(first):
                if self._is_too_old(offset):
                    as_of = max(as_of, by_offset[0].offset + self._grace.offsets)
                elif not self._is_far_behind(first):
                    break
            as_of = max(as_of, first.offset)
            self._last_us = first.timestamp_us
            while by_offset and by_offset[0].timestamp_us <= self._last_us:  # drop the released readings
                by_offset.popleft()
            may_anchor = not by_offset or by_offset[0].offset > first.offset
            may_anchor &= not self._grace.has_outlooks or as_of == first.offset
            released.append(ReleasedReading(first.name, first.timestamp_us, may_anchor, as_of))
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

    def _is_far_behind(self, first: _BufferedReading) -> bool:
        """Whether ``first``, the earliest buffered reading, has waited until its sensor's readings are much later."""
        return self._buffered[-1].timestamp_us - first.timestamp_us >= self._grace.wait_us

    def _is_too_old(self, offset: int) -> bool:
        """Whether the partition is far past the first of the buffered readings."""
        return offset - self._by_offset[0].offset >= self._grace.offsets


@dataclass(frozen=True)
class Reordering:
    """The verdicts on n readings, and the order in which the accepted ones are stepped."""

    verdicts: NDArray[np.int8]  # (n,) ``ACCEPTED``, ``DUPLICATE``, ``LATE`` or ``BUFFERED``
    order: NDArray[np.intp]  # (m,) indexes of the accepted readings as they are stepped: each sensor's in order of time
    may_anchor: NDArray[np.bool_]  # (m,) see ``ReleasedReading``
    as_of: NDArray[np.int64]  # (m,) see ``ReleasedReading``


def reorder(
    sensor_codes: NDArray[np.integer],
    timestamp_us: NDArray[np.int64],
    offsets: NDArray[np.int64],
    grace: GracePeriod,
    last_us: NDArray[np.int64] | None = None,
    end: int | None = None,
) -> Reordering:
    """Verdicts like those of ``model.acceptance.classify``, but with a reorder buffer, and step order.

    The result does not depend on where the stream is cut: pass the readings buffered so far, in offset order, before
    the new ones.

    Args:
        sensor_codes: (n,) the sensor of each reading, in the order of offsets; sensors may interleave.
        timestamp_us: (n,) of the readings; offsets: (n,) ascending for each sensor.
        last_us: (S,) timestamp that each sensor stepped last before these readings; ``NEVER_US`` before its first.
        end: the offset up to which the partition was read; by default no reading is released for its age at the end.
    """
    verdicts = classify(sensor_codes, timestamp_us, last_us)
    accepted = np.flatnonzero(verdicts == ACCEPTED)
    codes, moments = sensor_codes[accepted], timestamp_us[accepted]
    disordered = np.unique(codes[_leave_gaps(moments, timestamps_before(codes, moments, last_us), grace.cadence_us)])
    if not len(disordered):  # without a gap no reading waits, and the rule is that of ``classify``
        return Reordering(verdicts, accepted, np.ones(len(accepted), bool), offsets[accepted])
    slow = np.flatnonzero(np.isin(sensor_codes, disordered))
    buffers = {
        code: ReorderBuffer(grace, NEVER_US if last_us is None else int(last_us[code])) for code in disordered.tolist()
    }
    releases: list[tuple[int, ReleasedReading]] = []  # (index of the reading that released it, reading)
    found = np.full(len(slow), ACCEPTED, np.int8)
    columns: list[list[int]] = [array[slow].tolist() for array in (sensor_codes, timestamp_us, offsets)]
    for number, (place, code, moment_us, offset) in enumerate(zip(slow.tolist(), *columns, strict=True)):
        buffer = buffers[code]
        if not buffer.passes_through(moment_us):
            found[number], released = buffer.add(moment_us, offset, place)
            releases += [(place, one) for one in released]
    if end is not None:
        releases += [(len(verdicts), one) for buffer in buffers.values() for one in buffer.release(end)]
    verdicts[slow] = found
    quick = np.flatnonzero(verdicts == ACCEPTED)  # readings stepped at once
    names = np.fromiter((one.name for _, one in releases), np.intp, len(releases))
    verdicts[names] = ACCEPTED
    turn = np.concatenate([quick, np.fromiter((place for place, _ in releases), np.intp, len(releases))])
    by_turn = np.argsort(turn, kind="stable")
    may_anchor = np.fromiter((one.may_anchor for _, one in releases), bool, len(releases))
    as_of = np.fromiter((one.as_of for _, one in releases), np.int64, len(releases))
    return Reordering(
        verdicts,
        np.concatenate([quick, names])[by_turn],
        np.concatenate([np.ones(len(quick), bool), may_anchor])[by_turn],
        np.concatenate([offsets[quick], as_of])[by_turn],
    )


def can_release(
    sensor_codes: NDArray[np.integer],
    timestamp_us: NDArray[np.int64],
    offsets: NDArray[np.int64],
    grace: GracePeriod,
    last_us: NDArray[np.int64],
    end: int | None,
) -> NDArray[np.bool_]:
    """(S,) whether ``reorder`` would release a sensor's buffered readings without a new reading of it.

    So the caller need not pass the other sensors' buffered readings to ``reorder``.

    Args:
        sensor_codes: (n,) the sensor of each buffered reading; each code below S occurs.
        timestamp_us, offsets, last_us, end: see ``reorder``.
    """
    earliest_us = np.full(len(last_us), np.iinfo(np.int64).max)
    np.minimum.at(earliest_us, sensor_codes, timestamp_us)
    newest_us = np.full(len(last_us), NEVER_US)
    np.maximum.at(newest_us, sensor_codes, timestamp_us)
    behind_gap = _leave_gaps(earliest_us, last_us, grace.cadence_us)
    due: NDArray[np.bool_] = ~behind_gap | (newest_us - earliest_us >= grace.wait_us)
    if end is not None:
        due[sensor_codes[end - offsets >= grace.offsets]] = True
    return due


def _leave_gaps(timestamp_us: NDArray[np.int64], before_us: NDArray[np.int64], cadence_us: int) -> NDArray[np.bool_]:
    """(n,) whether a cadence point is missing before a reading; False for a sensor's first reading."""
    known = before_us != NEVER_US
    gaps: NDArray[np.bool_] = known & (
        missing_steps(timestamp_us - np.where(known, before_us, timestamp_us), cadence_us) > 0
    )
    return gaps
