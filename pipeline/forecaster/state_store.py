"""The state store: the committed states of all sensors in memory, and the model version that steps them.

``StateTable`` is one structured array with a row per sensor. It holds committed states only: a step works on copies
(``gather``), and the loop writes these back (``scatter``) after the commit. ``ServedModel`` joins the table with a
model version: it classifies readings and steps them. The durable copy is the changelog, see ``restore``.
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
from pipeline.flat_forecasts import CONNECT_RECORD_BYTES, FLAT_RECORD_BYTES
from pipeline.forecaster.readings import Readings
from pipeline.messages import StateTag
from pipeline.reading_times import TimeRules
from pipeline.settings import Settings

logger = logging.getLogger("streamgru.state_store")

States = NDArray[np.void]  # (B,) states of model.state.state_dtype
Rows = NDArray[np.intp]

_SMALLEST_CAPACITY: Final = 64
# Capacity factor. Small steps waste little memory, and Linux grows a large array by remapping its pages, not by a copy.
_GROWTH: Final = 1.0625


class StateTable:
    """States by partition and sensor.

    A sensor id in two partitions is two sensors. ``rows`` gives an unknown sensor a blank row. Not thread-safe.

    Args:
        blank: (1,) the state of a sensor without readings; its dtype is the table's.
    """

    def __init__(self, blank: States) -> None:
        self._blank = blank.copy()
        self._states = np.empty(0, blank.dtype)
        self._sensors: list[str] = []  # sensor of each row; a free row keeps its old one
        self._partitions = np.empty(0, np.int32)  # partition of each row
        self._index: dict[int, dict[str, int]] = {}
        self._free: list[int] = []

    def __len__(self) -> int:
        return sum(len(index) for index in self._index.values())

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of a state."""
        return self._states.dtype

    @property
    def partitions(self) -> frozenset[int]:
        """The partitions in the table, including those without a sensor."""
        return frozenset(self._index)

    @property
    def nbytes(self) -> int:
        """Bytes of the array of states."""
        return self._states.nbytes + self._partitions.nbytes

    def add_partition(self, partition: int) -> None:
        """Add an empty partition; states that the table had for it are deleted."""
        self.drop_partition(partition)
        self._index[partition] = {}

    def drop_partition(self, partition: int) -> None:
        """Delete a partition; its rows become free."""
        self._free += self._index.pop(partition, {}).values()

    def rows(self, partition: int, sensors: Sequence[str]) -> Rows:
        """(n,) the row of each sensor; sensors may repeat, unknown ones get blank rows."""
        index = self._index[partition]
        try:
            return np.fromiter(map(index.__getitem__, sensors), np.intp, len(sensors))
        except KeyError:
            self._allocate(partition, [sensor for sensor in dict.fromkeys(sensors) if sensor not in index])
        return np.fromiter(map(index.__getitem__, sensors), np.intp, len(sensors))

    def unknown(self, partition: int, sensors: Iterable[str]) -> list[str]:
        """The sensors without a row, in order and each once."""
        index = self._index[partition]
        return list(dict.fromkeys(sensor for sensor in sensors if sensor not in index))

    def count(self, partition: int) -> int:
        """The number of sensors of a partition."""
        return len(self._index[partition])

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
        """Write states to ``rows``, which are distinct."""
        self._states[rows] = states

    def blank(self, count: int) -> States:
        """(count,) states of sensors without readings."""
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
        # refcheck=False is safe: every method returns copies, so nothing refers to the old memory.
        self._states.resize(capacity, refcheck=False)
        self._partitions.resize(capacity, refcheck=False)
        self._sensors += [""] * (capacity - before)
        self._free += range(capacity - 1, before - 1, -1)  # pop() hands out the lowest row first


# --- the states with their model version ------------------------------------------------------------------------------


NUMBER_BYTES: Final = 12  # bytes of a quantile and its comma in a forecast's JSON


@dataclass(frozen=True)
class Classification:
    """The outcome of the acceptance rules for readings of one partition."""

    accepted: Readings  # in the order of their steps
    buffered: Readings | None  # the reorder buffer afterwards, in offset order; None if empty
    duplicates: int
    late: int
    refused: Readings | None = None  # of new sensors beyond the limit, in offset order; None if empty


@dataclass(frozen=True)
class StepResult:
    """The states after some accepted readings, not yet in the table, and their forecasts."""

    rows: Rows  # (B,) distinct rows of the table
    states: States  # (B,) after the readings
    forecasts: Forecasts  # n, in the order of the readings
    non_finite: Rows  # the rows with a non-finite state or forecast, which must not be committed


class ServedModel:
    """A model version and its states. Not thread-safe."""

    def __init__(self, version: int, forecaster: Forecaster, settings: Settings) -> None:
        self.version = version
        self.config = config = forecaster.config
        self.tag = StateTag(version, settings.fingerprint)
        self.table = StateTable(blank_states(config, 1, settings.adaptation))
        self.time_rules: dict[int, TimeRules] = {}  # partition -> rules of its readings; a restore sets them
        self._stepper = Stepper(forecaster, settings.adaptation)
        self._grace = settings.grace
        self._max_sensors = settings.forecaster.max_sensors_per_partition
        self._full: set[int] = set()  # partitions whose limit of sensors was logged as reached
        numbers = config.target_count * len(config.quantiles) * config.horizon_steps
        # upper limit of a state, a forecast, and its flat forecasts if they are written
        self.bytes_per_reading = self.table.dtype.itemsize + numbers * NUMBER_BYTES
        if settings.kafka.topics.flat_forecasts is not None:
            flat = CONNECT_RECORD_BYTES if settings.forecaster.flat_format == "connect" else FLAT_RECORD_BYTES
            self.bytes_per_reading += config.target_count * config.horizon_steps * flat

    def classify(self, readings: Readings, buffered: Readings | None = None, end: int | None = None) -> Classification:
        """Classify readings of one partition (``model.acceptance``, ``model.reorder_buffer``); no state is stepped.

        Args:
            readings: readings in offset order.
            buffered: the partition's reorder buffer.
            end: offset up to which the partition was read; it decides which old buffered readings are released.
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
        """``classify`` for several distinct partitions in one call, which is several times as fast."""
        if self._max_sensors is None:
            return self._classify_admitted(parts, buffered, ends)
        split = [self._split_by_limit(part, self._max_sensors) for part in parts]
        classified = self._classify_admitted([admitted for admitted, _ in split], buffered, ends)
        return [replace(each, refused=refused) for each, (_, refused) in zip(classified, split, strict=True)]

    def only_known(self, readings: Readings) -> Readings:
        """The readings of sensors that have a state; with a limit of sensors, the other readings were refused."""
        if self._max_sensors is None:
            return readings
        unknown = set(self.table.unknown(readings.partition, readings.sensors))
        return readings.take(np.array([sensor not in unknown for sensor in readings.sensors], bool))

    def _split_by_limit(self, readings: Readings, limit: int) -> tuple[Readings, Readings | None]:
        """The readings of known sensors and of new ones within the limit; and the refused readings, or None."""
        partition, table = readings.partition, self.table
        unknown = table.unknown(partition, readings.sensors)
        room = max(0, limit - table.count(partition))
        if len(unknown) <= room:
            return readings, None
        if partition not in self._full:
            self._full.add(partition)
            logger.error(
                "partition %d has %d sensors, and forecaster.max_sensors_per_partition is %d: readings of further "
                "sensors become dead letters, from sensor %r on",
                partition,
                table.count(partition) + room,
                limit,
                unknown[room],
            )
        beyond = set(unknown[room:])
        refused = np.array([sensor in beyond for sensor in readings.sensors], bool)
        return readings.take(~refused), readings.take(refused)

    def _classify_admitted(
        self, parts: Sequence[Readings], buffered: Mapping[int, Readings], ends: Mapping[int, int]
    ) -> list[Classification]:
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
        """``classify`` with a reorder buffer; readings already buffered come first."""
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
        """(n,) whether to reorder each buffered reading again: its sensor has a new or a releasable reading.

        Other buffered readings stay untouched, because the buffer may be very large after an outage.
        """
        distinct, codes = np.unique(self.table.rows(buffered.partition, buffered.sensors), return_inverse=True)
        last_us = self.table.field("last_us", distinct)
        come = can_release(codes, buffered.timestamp_us, buffered.offsets, self._grace, last_us, end)
        moving: NDArray[np.bool_] = come | np.isin(distinct, self.table.rows(new.partition, new.sensors))
        return moving[codes]

    def step(self, accepted: Sequence[Readings]) -> StepResult:
        """Step accepted readings of distinct partitions into copies of their sensors' states.

        Readings of a sensor come in the order of time. The order of sensors does not change the result.
        """
        table = self.table
        rows = np.concatenate([table.rows(part.partition, part.sensors) for part in accepted])
        distinct, slots = np.unique(rows, return_inverse=True)
        states = table.gather(distinct)
        # A reset state has no previous reading, hence no gap before this one; its row keeps `last_us` for classify.
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
        """Reset the states of sensors to blank; readings up to a sensor's last timestamp remain late or duplicates."""
        rows = self.table.rows(partition, sensors)
        states = self.table.blank(len(rows))
        states["last_us"] = self.table.field("last_us", rows)
        self.table.scatter(rows, states)

    def replay(self, accepted: Sequence[Readings]) -> None:
        """Step accepted readings straight into the table, without their forecasts; non-finite states are reset."""
        present = [part for part in accepted if len(part)]
        if present:
            stepped = self.step(present)
            self.table.scatter(stepped.rows, stepped.states)
            for partition, sensors in self.table.sensors_by_partition(stepped.non_finite).items():
                logger.error(
                    "partition %d: replayed readings made %d states non-finite; resetting sensors: %s",
                    partition,
                    len(sensors),
                    ", ".join(sensors[:5]),
                )
                self.reset(partition, sensors)


def _classification(accepted: Readings, buffered: Readings | None, verdicts: NDArray[np.int8]) -> Classification:
    duplicates, late = (int(np.count_nonzero(verdicts == verdict)) for verdict in (DUPLICATE, LATE))
    return Classification(accepted, buffered, duplicates, late)


def _may_anchor(accepted: Sequence[Readings]) -> NDArray[np.bool_] | None:
    parts = [part.may_anchor for part in accepted if part.may_anchor is not None]
    assert len(parts) in (0, len(accepted)), "the reorder buffer is on for all partitions or for none"
    return np.concatenate(parts) if parts else None
