"""The steps that readings become: those of the readings, and of the skipped cadence points before them.

Letters: A sensors with readings, n readings, M steps, F features.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .acceptance import bridge_gaps, timestamps_before
from .normaliser import Floats
from .state import States

Indexes = NDArray[np.int64]


@dataclass(frozen=True)
class StepPlan:
    """The M steps to take, sensor by sensor, the sensors with most steps first."""

    slots: Indexes  # (A,) index in ``states`` of each sensor with readings
    starts: Indexes  # (A,) first step of each sensor
    lengths: Indexes  # (A,) steps of each sensor
    sensor: Indexes  # (M,) the step's sensor, as an index in ``slots``
    number: Indexes  # (M,) new steps that the sensor takes before this one
    timestamp_us: Indexes  # (M,)
    elapsed: NDArray[np.float32]  # (M,)
    reset: NDArray[np.bool_]  # (M,)
    sizes: list[int]  # sensors in each round
    rounds: Indexes  # (M,) the steps, round by round
    turn: Indexes  # (M,) the index of each step in ``rounds``
    order: Indexes  # (n,) the readings, sensor by sensor like the steps
    step: Indexes  # (n,) the step of each reading, in the order of the readings

    @classmethod
    def build(
        cls, states: States, slots: Indexes, timestamp_us: Indexes, cadence_us: int, max_gap_steps: int
    ) -> "StepPlan":
        """The steps of accepted readings, and of the skipped cadence points before them."""
        active, sensor = np.unique(slots, return_inverse=True)
        previous_us = timestamps_before(sensor, timestamp_us, states["last_us"][active])
        gaps = bridge_gaps(timestamp_us, previous_us, cadence_us, max_gap_steps)
        lengths = np.bincount(sensor, weights=gaps.missing + 1).astype(np.int64)
        longest_first = np.argsort(-lengths, kind="stable")
        rank = np.empty_like(longest_first)
        rank[longest_first] = np.arange(len(active))
        lengths = lengths[longest_first]
        starts = np.cumsum(lengths) - lengths
        order = np.argsort(rank[sensor], kind="stable")
        missing = gaps.missing[order]
        place = np.cumsum(missing + 1) - 1  # the index of each reading's step
        owner = np.repeat(order, missing + 1)  # the reading of each step; for a missing step the next reading
        back = np.repeat(place, missing + 1) - np.arange(len(owner))  # number of steps from each step to that reading
        skipped_us = previous_us[owner] + (gaps.missing[owner] - back + 1) * cadence_us
        step = np.empty_like(place)
        step[order] = place
        whose = np.repeat(np.arange(len(active)), lengths)
        number = np.arange(len(owner)) - starts[whose]
        sizes = len(active) - np.searchsorted(lengths[::-1], np.arange(lengths[0]), side="right")
        turn = (np.cumsum(sizes) - sizes)[number] + whose
        rounds = np.empty_like(turn)
        rounds[turn] = np.arange(len(turn))
        return cls(
            slots=active[longest_first],
            starts=starts,
            lengths=lengths,
            sensor=whose,
            number=number,
            timestamp_us=np.where(back == 0, timestamp_us[owner], skipped_us),
            elapsed=np.where(back == 0, gaps.elapsed[owner], np.float32(1.0)),
            reset=gaps.reset[owner] & (back == 0),
            sizes=sizes.tolist(),
            rounds=rounds,
            turn=turn,
            order=order,
            step=step,
        )

    def spread(self, values: Floats) -> Floats:
        """(M, F) the readings' values (n, F) by step; NaN in a missing step."""
        out = np.full((len(self.turn), values.shape[1]), np.nan)
        out[self.step] = values
        return out
