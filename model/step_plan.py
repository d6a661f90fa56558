"""The plan of the steps that readings need: one for each reading, and one for each cadence point skipped before it.

The compiled function and its constants are in this file: numba compiles a cached function again if its own file
changes, and would miss a change in another file.

Letters: B states, A sensors with steps, n readings, M steps, F features.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .kernel import allocating
from .normaliser import Floats
from .sequences import Sequences

Indexes = NDArray[np.int64]

NEVER_US: Final = -(2**63)  # repeated from ``acceptance`` as a Python number; a test compares them


class StepPlan(NamedTuple):
    """The M steps to take, sensor by sensor, the sensors with most steps first."""

    slots: Indexes  # (A,) index of each sensor's state
    starts: Indexes  # (A+1,) first step of each sensor, and M
    timestamp_us: Indexes  # (M,)
    elapsed: NDArray[np.float32]  # (M,)
    reset: NDArray[np.bool_]  # (M,)
    values: Floats  # (M, F), NaN where missing
    reading: Indexes  # (M,) the step's reading; -1 for a missing step
    step: Indexes  # (n,) the step of each reading, in the order of the readings

    @classmethod
    def of_readings(
        cls,
        last_us: Indexes,
        slots: Indexes,
        timestamp_us: Indexes,
        values: Floats,
        cadence_us: int,
        max_gap_steps: int,
    ) -> "StepPlan":
        """The steps of n accepted readings, by the rule of ``acceptance.bridge_gaps``.

        Args:
            last_us: (B,) timestamp of each state's last reading; ``NEVER_US`` in a blank state. It is set to the
                timestamp of each state's last reading after the steps.
            slots: (n,) the state of each reading. Each sensor's readings are in order of time.
            timestamp_us: (n,); values: (n, F).

        Raises:
            ValueError: a slot is not an index of a state.
        """
        return cls(*_plan(last_us, slots, timestamp_us, values, cadence_us, max_gap_steps))

    @classmethod
    def of_sequences(cls, parts: Sequence[tuple[Sequences, int, int]]) -> "StepPlan":
        """A part of the steps of each sensor, where the steps are known already.

        Args:
            parts: for each sensor its steps, the index of the first one to take, and the index after the last one. The
                sensors with most steps to take come first.
        """
        lengths = np.array([end - first for _, first, end in parts], np.int64)
        starts = np.append(0, np.cumsum(lengths))

        def joined(name: str, kind: type[np.generic]) -> NDArray[Any]:
            """(M, ...) of a field of the steps."""
            return np.concatenate([getattr(steps, name)[first:end] for steps, first, end in parts], dtype=kind)

        step = np.flatnonzero(joined("observed", np.bool_))
        reading = np.full(starts[-1], -1)
        reading[step] = np.arange(len(step))
        return cls(
            slots=np.arange(len(parts)),
            starts=starts,
            timestamp_us=joined("timestamp_us", np.int64),
            elapsed=joined("elapsed", np.float32),
            reset=joined("reset", np.bool_),
            values=joined("values", np.float64),
            reading=reading,
            step=step,
        )


@allocating
def _plan(
    last_us: Indexes, slots: Indexes, timestamp_us: Indexes, values: Floats, cadence_us: int, max_gap_steps: int
) -> tuple[Any, ...]:
    """The fields of ``StepPlan.of_readings``."""
    n, B, F = len(slots), len(last_us), values.shape[1]
    for slot in slots:
        if not 0 <= slot < B:
            raise ValueError("the slot of a reading is not an index of a state")
    missing, is_reset = np.empty(n, np.int64), np.empty(n, np.bool_)
    elapsed_at = np.empty(n, np.float32)
    lengths, before_us = np.zeros(B, np.int64), last_us.copy()
    for i in range(n):
        slot = slots[i]
        fresh = before_us[slot] == NEVER_US
        elapsed_us = 0 if fresh else timestamp_us[i] - before_us[slot]
        cadences, rest = elapsed_us // cadence_us, elapsed_us % cadence_us
        skipped = max(cadences + (1 if rest > cadence_us - rest else 0) - 1, 0)
        is_reset[i] = fresh or skipped > max_gap_steps
        missing[i] = 0 if is_reset[i] else skipped
        remaining_us = 0 if is_reset[i] else elapsed_us - skipped * cadence_us
        elapsed_at[i] = remaining_us / cadence_us
        lengths[slot] += missing[i] + 1
        before_us[slot] = timestamp_us[i]
    longest = 0
    for slot in range(B):
        longest = max(longest, lengths[slot])
    sizes = np.zeros(longest + 1, np.int64)
    for slot in range(B):
        if lengths[slot]:
            sizes[lengths[slot] - 1] += 1
    for r in range(longest - 1, -1, -1):
        sizes[r] += sizes[r + 1]
    # A counting sort puts the sensors with most steps first; sensors with as many steps keep the order of their states.
    A, M, free = sizes[0], lengths.sum(), sizes.copy()
    active, starts, rank = np.empty(A, np.int64), np.zeros(A + 1, np.int64), np.empty(B, np.int64)
    for slot in range(B):
        if lengths[slot]:
            rank[slot] = free[lengths[slot]]
            free[lengths[slot]] += 1
            active[rank[slot]] = slot
    for a in range(A):
        starts[a + 1] = starts[a] + lengths[active[a]]
    time, elapsed = np.empty(M, np.int64), np.ones(M, np.float32)
    reset, reading = np.zeros(M, np.bool_), np.full(M, -1)
    spread, step = np.full((M, F), np.nan), np.empty(n, np.int64)
    lengths[:] = 0  # steps laid out so far
    for i in range(n):
        slot = slots[i]
        for skipped in range(missing[i] + 1):
            number = lengths[slot]
            m = starts[rank[slot]] + number
            time[m] = last_us[slot] + (skipped + 1) * cadence_us
            lengths[slot] = number + 1
        time[m], elapsed[m], reset[m], reading[m], step[i] = timestamp_us[i], elapsed_at[i], is_reset[i], i, m
        spread[m] = values[i]
        last_us[slot] = timestamp_us[i]
    return active, starts, time, elapsed, reset, spread, reading, step
