"""The state store: the states of all sensors, with the model version that steps them.

All sensors' states in memory: one structured array, one row per sensor, rows found by partition and sensor.

The table holds only what has been committed: whoever steps states takes copies (``gather``) and puts them back
(``scatter``) once their transaction is durable. The durable copy is the changelog (``pipeline.forecaster.restore``).

One model version with all the states it has made: what the stream is served with until another takes its place.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model.acceptance import ACCEPTED, DUPLICATE, LATE, NEVER_US, classify
from model.forecaster import Forecaster
from model.reorder_buffer import BUFFERED, can_release, reorder
from model.state import blank_states, non_finite
from model.stepper import Forecasts, Stepper
from pipeline.forecaster.readings import Readings
from pipeline.messages import StateTag
from pipeline.settings import Settings

logger = logging.getLogger("streamgru.state_store")

States = NDArray[np.void]  # (B,) of model.state.state_dtype
Rows = NDArray[np.intp]

_SMALLEST_CAPACITY: Final = 64
# In steps this small the memory stays near what is needed. Growing hardly costs: the system moves the pages of a large
# array instead of copying them (Linux), so it is never there twice.
_GROWTH: Final = 1.0625


class StateTable:
    """States by partition and sensor.

    A sensor id is a sensor of its own in each partition it appears in. A sensor that was never seen gets a blank row
    when it is asked for. Not safe for use by several threads.

    Args:
        blank: (1,) the state of a sensor without readings; its dtype is the table's.
    """

    def __init__(self, blank: States) -> None:
        self._blank = blank.copy()
        self._states = np.empty(0, blank.dtype)
        self._sensors: list[str] = []  # by row; of a free row: whatever was there
        self._partitions = np.empty(0, np.int32)  # by row
        self._index: dict[int, dict[str, int]] = {}
        self._free: list[int] = []

    def __len__(self) -> int:
        return sum(len(index) for index in self._index.values())

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of a state."""
        return self._states.dtype

    @property
    def partitions(self) -> frozenset[int]:
        """The partitions that the table holds, also those without a sensor."""
        return frozenset(self._index)

    @property
    def nbytes(self) -> int:
        """Bytes of the array of states."""
        return self._states.nbytes + self._partitions.nbytes

    def add_partition(self, partition: int) -> None:
        """Begin to hold a partition; what the table held of it is gone."""
        self.drop_partition(partition)
        self._index[partition] = {}

    def drop_partition(self, partition: int) -> None:
        """Forget a partition; its rows are free for other sensors."""
        self._free += self._index.pop(partition, {}).values()

    def rows(self, partition: int, sensors: Sequence[str]) -> Rows:
        """(n,) the row of each sensor, which may repeat; sensors not seen before get blank rows."""
        index = self._index[partition]
        try:
            return np.fromiter(map(index.__getitem__, sensors), np.intp, len(sensors))
        except KeyError:
            self._allocate(partition, [sensor for sensor in dict.fromkeys(sensors) if sensor not in index])
        return np.fromiter(map(index.__getitem__, sensors), np.intp, len(sensors))

    def partition_rows(self, partition: int) -> tuple[list[str], Rows]:
        """All sensors of a partition and their rows."""
        index = self._index[partition]
        return list(index), np.fromiter(index.values(), np.intp, len(index))

    def sensors_at(self, rows: Iterable[int]) -> list[str]:
        """The sensor of each row."""
        return [self._sensors[row] for row in rows]

    def partitions_at(self, rows: Rows) -> NDArray[np.int32]:
        """The partition of each row."""
        return self._partitions[rows]

    def sensors_by_partition(self, rows: Rows) -> dict[int, list[str]]:
        """The sensors at ``rows``, by partition."""
        found: dict[int, list[str]] = {}
        for partition, sensor in zip(self.partitions_at(rows).tolist(), self.sensors_at(rows.tolist()), strict=True):
            found.setdefault(partition, []).append(sensor)
        return found

    def field(self, name: str, rows: Rows) -> NDArray[Any]:
        """One field of the states at ``rows``."""
        return self._states[name][rows]

    def gather(self, rows: Rows) -> States:
        """A copy of the states at ``rows``."""
        return self._states[rows]

    def scatter(self, rows: Rows, states: States) -> None:
        """Put states into ``rows``, each of which is named once."""
        self._states[rows] = states

    def blank(self, count: int) -> States:
        """As many states of sensors without readings."""
        return np.repeat(self._blank, count)

    def _allocate(self, partition: int, sensors: Sequence[str]) -> None:
        if len(sensors) > len(self._free):
            self._grow(len(sensors) - len(self._free))
        rows = [self._free.pop() for _ in sensors]
        self._states[rows] = self._blank
        self._partitions[rows] = partition
        for row, sensor in zip(rows, sensors, strict=True):
            self._sensors[row] = sensor
        self._index[partition].update(zip(sensors, rows, strict=True))

    def _grow(self, by: int) -> None:
        before = len(self._states)
        capacity = max(_SMALLEST_CAPACITY, int(before * _GROWTH), before + by)
        # Nobody else holds these arrays: what leaves this class is a copy.
        self._states.resize(capacity, refcheck=False)
        self._partitions.resize(capacity, refcheck=False)
        self._sensors += [""] * (capacity - before)
        self._free += range(capacity - 1, before - 1, -1)  # the lowest row is taken first


# --- with the model that steps them -----------------------------------------------------------------------------------


NUMBER_BYTES: Final = 12  # of a quantile in a forecast's JSON, with its comma


@dataclass(frozen=True)
class Classification:
    """What becomes of readings of one partition, by the states and the readings before each."""

    accepted: Readings  # in the order in which they are stepped
    buffered: Readings | None  # those that wait for earlier ones, in the order of their offsets
    duplicates: int
    late: int


@dataclass(frozen=True)
class StepResult:
    """What accepted readings made of their sensors' states, not yet in the table."""

    rows: Rows  # (B,) of the table, each once
    states: States  # (B,) as they are after the readings
    forecasts: Forecasts  # n, in the order of the readings
    non_finite: Rows  # those of ``rows`` whose state or forecast is no finite number: not to be kept


class ServedModel:
    """A model version and its states. For one thread at a time."""

    def __init__(self, version: int, forecaster: Forecaster, settings: Settings) -> None:
        self.version = version
        self.config = forecaster.config
        self.tag = StateTag(version, settings.fingerprint)
        self.table = StateTable(blank_states(forecaster.config, 1, settings.adaptation))
        self._stepper = Stepper(forecaster, settings.adaptation)
        self._grace = settings.grace
        config = forecaster.config
        numbers = len(config.targets) * len(config.quantiles) * config.horizon_steps
        self.bytes_per_reading = self.table.dtype.itemsize + numbers * NUMBER_BYTES  # that are written, at most

    def classify(self, readings: Readings, buffered: Readings | None = None, end: int | None = None) -> Classification:
        """Which readings are accepted (``model.acceptance``, ``model.reorder_buffer``); nothing is stepped.

        Args:
            readings: of one partition, in the order of their offsets.
            buffered: what is held of it so far.
            end: the offset up to which the partition was read.
        """
        partition = readings.partition
        [classified] = self.classify_all(
            [readings], {} if buffered is None else {partition: buffered}, {} if end is None else {partition: end}
        )
        return classified

    def classify_all(
        self,
        parts: Sequence[Readings],
        buffered: Mapping[int, Readings] = MappingProxyType({}),
        ends: Mapping[int, int] = MappingProxyType({}),
    ) -> list[Classification]:
        """``classify`` of readings of several partitions at once, each partition named once: several times as fast."""
        if self._grace.is_on:
            return [
                self._classify_reordered(part, buffered.get(part.partition), ends.get(part.partition)) for part in parts
            ]
        if buffered:
            parts = [
                buffered[part.partition].followed_by(part) if part.partition in buffered else part for part in parts
            ]
        if not sum(map(len, parts)):
            return [Classification(part, None, 0, 0) for part in parts]
        rows = np.concatenate([self.table.rows(part.partition, part.sensors) for part in parts])
        distinct, codes = np.unique(rows, return_inverse=True)
        timestamp_us = np.concatenate([part.timestamp_us for part in parts])
        verdicts = classify(codes, timestamp_us, self.table.field("last_us", distinct))
        split = np.split(verdicts, np.cumsum([len(part) for part in parts[:-1]], dtype=np.intp))
        return [
            _classification(part.take(mine == ACCEPTED), None, mine) for part, mine in zip(parts, split, strict=True)
        ]

    def _classify_reordered(self, new: Readings, buffered: Readings | None, end: int | None) -> Classification:
        """``classify`` where gaps are waited for; what was held so far comes first."""
        readings, still = new, None
        if buffered is not None:
            can_release = self._can_release(buffered, new, end)
            readings, still = buffered.take(can_release).followed_by(new), buffered.take(~can_release)
        if not len(readings):
            return Classification(readings, buffered, 0, 0)
        distinct, codes = np.unique(self.table.rows(readings.partition, readings.sensors), return_inverse=True)
        last_us = self.table.field("last_us", distinct)
        reordering = reorder(codes, readings.timestamp_us, readings.offsets, self._grace, last_us, end)
        waiting = readings.pick(np.flatnonzero(reordering.verdicts == BUFFERED))
        still = waiting if still is None else still.merged_with(waiting)
        accepted = replace(readings.pick(reordering.order), may_anchor=reordering.may_anchor)
        return _classification(accepted, still if len(still) else None, reordering.verdicts)

    def _can_release(self, buffered: Readings, new: Readings, end: int | None) -> NDArray[np.bool_]:
        """(n,) of what is held, all of the sensors that have a new reading, or one whose turn has come without it.

        The others are not looked at one by one: after an outage there may be very many.
        """
        distinct, codes = np.unique(self.table.rows(buffered.partition, buffered.sensors), return_inverse=True)
        last_us = self.table.field("last_us", distinct)
        come = can_release(codes, buffered.timestamp_us, buffered.offsets, self._grace, last_us, end)
        moving: NDArray[np.bool_] = come | np.isin(distinct, self.table.rows(new.partition, new.sensors))
        return moving[codes]

    def step(self, accepted: Sequence[Readings]) -> StepResult:
        """Step accepted readings of several partitions, each partition named once, into copies of their states.

        Each sensor's are in order of time; across sensors any order gives the same.
        """
        table = self.table
        rows = np.concatenate([table.rows(part.partition, part.sensors) for part in accepted])
        distinct, slots = np.unique(rows, return_inverse=True)
        states = table.gather(distinct)
        # A state that was lost begins anew, though it keeps the time that its sensor's readings must be later than.
        states["last_us"][states["accepted"] == 0] = NEVER_US
        forecasts = self._stepper.step(
            states,
            table.sensors_at(distinct.tolist()),
            slots.astype(np.int64, copy=False),
            np.concatenate([part.timestamp_us for part in accepted]),
            np.concatenate([part.values for part in accepted]),
            np.concatenate([part.offsets for part in accepted]),
            _may_anchor(accepted),
        )
        bad = non_finite(states)
        broken = ~np.isfinite(forecasts.quantiles).reshape(len(slots), -1).all(axis=1)
        bad[slots[broken]] = True
        return StepResult(distinct, states, forecasts, distinct[bad])

    def reset(self, partition: int, sensors: Sequence[str]) -> None:
        """Lose the states of sensors: the next reading of each begins one, and must be as late as it had to be."""
        rows = self.table.rows(partition, sensors)
        states = self.table.blank(len(rows))
        states["last_us"] = self.table.field("last_us", rows)
        self.table.scatter(rows, states)

    def replay(self, accepted: Sequence[Readings]) -> None:
        """Step accepted readings whose forecasts nobody wants, straight into the table."""
        present = [part for part in accepted if len(part)]
        if present:
            stepped = self.step(present)
            self.table.scatter(stepped.rows, stepped.states)
            for partition, sensors in self.table.sensors_by_partition(stepped.non_finite).items():
                logger.error(
                    "replaying readings led the states of sensors %s, partition %d, to numbers that are not finite; "
                    "they begin anew",
                    ", ".join(sensors[:5]),
                    partition,
                )
                self.reset(partition, sensors)


def _classification(accepted: Readings, buffered: Readings | None, verdicts: NDArray[np.int8]) -> Classification:
    duplicates, late = (int(np.count_nonzero(verdicts == verdict)) for verdict in (DUPLICATE, LATE))
    return Classification(accepted, buffered, duplicates, late)


def _may_anchor(accepted: Sequence[Readings]) -> NDArray[np.bool_] | None:
    parts = [part.may_anchor for part in accepted if part.may_anchor is not None]
    assert len(parts) in (0, len(accepted)), "gaps are waited for in all partitions or in none"
    return np.concatenate(parts) if parts else None
