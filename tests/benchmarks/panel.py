"""A panel: readings of several sensors at the same times, a cadence apart; and states that are stepped through them.

States and stepper are the stream's (``model.stepper``), so the results hold for served forecasts.

Letters: S sensors, B states, N or n readings, m forecasts kept, F features, K targets, h horizon steps.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.sequences import Sequences
from model.state import States, blank_states
from model.stepper import Stepper

Floats = NDArray[np.float64]
Indexes = NDArray[np.int64]

# Numbers in the forecasts of one call of the stepper: 64 MB, of which a call holds a few copies.
_NUMBERS: Final = 8_000_000


@dataclass(frozen=True)
class Panel:
    """Readings of S sensors at N common times; single values may be missing."""

    sensors: tuple[str, ...]
    timestamp_us: Indexes  # (N,) timestamps, a cadence apart
    values: Floats  # (S, N, F), NaN where missing

    @classmethod
    def of(cls, sequences: Sequences) -> "Panel":
        """The panel of a data set.

        Raises:
            ValueError: the sensors' readings are not at the same times, or not a cadence apart.
        """
        S = len(sequences.sensors)
        lengths = np.diff(sequences.starts)
        if (lengths != lengths[0]).any() or not sequences.observed.all():
            raise ValueError("the sensors' readings are not at the same times")
        times = sequences.timestamp_us.reshape(S, -1)
        if (times != times[0]).any() or (np.diff(times[0]) != sequences.cadence_us).any():
            raise ValueError("the sensors' readings are not a cadence apart, or not at the same times")
        return cls(sequences.sensors, times[0], sequences.values.reshape(S, len(times[0]), -1))

    def __len__(self) -> int:
        """The number of readings per sensor, N."""
        return len(self.timestamp_us)

    def labels(self, moments: Sequence[int] | Indexes, targets: Sequence[int], horizon_steps: int) -> Floats:
        """(S, m, K, h) labels of the forecasts issued at these readings."""
        ahead = np.asarray(moments)[:, None] + np.arange(1, horizon_steps + 1)
        found: Floats = self.values[:, ahead][..., list(targets)].transpose(0, 1, 3, 2)
        return found


@dataclass
class Walk:
    """B states that are stepped together. ``go`` updates ``states``."""

    stepper: Stepper
    sensors: Sequence[str]  # one per state; the same sensor may occur several times
    states: States

    @classmethod
    def blank(cls, stepper: Stepper, sensors: Sequence[str]) -> "Walk":
        """A walk that begins with blank states."""
        return cls(stepper, sensors, blank_states(stepper.config, len(sensors), stepper.adaptation))

    def go(self, timestamp_us: Indexes, values: Floats, kept: Sequence[int] | Indexes) -> Floats:
        """Step n readings into each state; return the (B, m, K, h) medians issued at m of them.

        Args:
            timestamp_us: (n,), or (B, n) if the times differ.
            values: (B, n, F).
            kept: (m,) indices among the n readings, ascending.
        """
        config = self.stepper.config
        kept = np.asarray(kept, np.int64)
        found = np.empty((len(self.sensors), len(kept), config.target_count, config.horizon_steps))
        for lo, hi, medians in self._blocks(np.broadcast_to(timestamp_us, values.shape[:2]), values):
            here = (kept >= lo) & (kept < hi)
            found[:, here] = medians[:, kept[here] - lo]
        return found

    def _blocks(self, timestamp_us: Indexes, values: Floats) -> Iterator[tuple[int, int, Floats]]:
        """Step in blocks: lo, hi, and the medians (B, hi-lo, K, h) issued at readings [lo, hi)."""
        config = self.stepper.config
        B, n, F = values.shape
        numbers = config.target_count * len(config.quantiles) * config.horizon_steps
        length = max(1, _NUMBERS // (numbers * B))
        for lo in range(0, n, length):
            hi = min(lo + length, n)
            forecasts = self.stepper.step(
                self.states,
                self.sensors,
                np.tile(np.arange(B), hi - lo),
                timestamp_us[:, lo:hi].T.ravel(),
                values[:, lo:hi].transpose(1, 0, 2).reshape(-1, F),
                np.arange(lo * B, hi * B),
            )
            medians = forecasts.quantiles[:, :, config.median_index].reshape(hi - lo, B, config.target_count, -1)
            yield lo, hi, medians.transpose(1, 0, 2, 3)
