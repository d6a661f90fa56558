"""The state store: the states of all sensors (``table``) with the model version that steps them.

``ServedModel`` classifies readings and steps them with their outlooks. The durable copy is the changelog, see
``restore``.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model import acceptance_kernel
from model.acceptance import ACCEPTED, DUPLICATE, LATE, NEVER_US
from model.forecaster import Forecaster
from model.outlooks import ACCEPTED as OUTLOOK_ACCEPTED
from model.outlooks import Arrivals
from model.reorder_buffer import BUFFERED, can_release, reorder
from model.state import blank_states, non_finite
from model.stepper import Forecasts, Stepper
from pipeline.flat_forecasts import CONNECT_RECORD_BYTES, FLAT_RECORD_BYTES
from pipeline.forecaster.outlook_arrivals import OutlookCounts, RowOutlooks
from pipeline.forecaster.readings import JoinedReadings, Readings
from pipeline.forecaster.states.table import Rows, States, StateTable
from pipeline.messages import StateTag
from pipeline.reading_times import TimeRules
from pipeline.settings import Settings

logger = logging.getLogger("streamgru.state_store")

NUMBER_BYTES: Final = 12  # bytes of a quantile and its comma in a forecast's JSON


@dataclass(frozen=True)
class Classification:
    """The outcome of the acceptance rules for readings of one partition."""

    accepted: Readings  # in the order of their steps, with the outlooks of the new readings' records
    buffered: Readings | None  # the reorder buffer afterwards, in offset order; None if empty
    duplicates: int
    late: int
    refused: Readings | None = None  # of new sensors beyond the limit, in offset order; None if empty


@dataclass(frozen=True)
class StepResult:
    """The states after some accepted readings, not yet in the table, and their forecasts."""

    readings: JoinedReadings
    rows: Rows  # (B,) distinct rows of the table, of sensors with an accepted reading or outlook
    states: States  # (B,) after the readings
    forecasts: Forecasts  # n, one after each reading
    non_finite: Rows  # the rows with a non-finite state or forecast, which must not be committed
    outlooks: OutlookCounts = field(default_factory=OutlookCounts)
    outlook_states: int = 0  # rows of sensors without an accepted reading: an outlook alone changed the state


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
        """``classify`` for several distinct partitions."""
        if self._max_sensors is None:
            found = self._classify_admitted(parts, buffered, ends)
        else:
            split = [self._split_by_limit(part, self._max_sensors) for part in parts]
            found = self._classify_admitted([admitted for admitted, _ in split], buffered, ends)
            found = [replace(each, refused=refused) for each, (_, refused) in zip(found, split, strict=True)]
        for place, part in enumerate(parts):
            if part.outlooks:
                found[place] = replace(found[place], accepted=replace(found[place].accepted, outlooks=part.outlooks))
        return found

    def only_known(self, readings: Readings) -> Readings:
        """The readings of sensors that have a state; with a limit of sensors, the other readings were refused."""
        if self._max_sensors is None:
            return readings
        unknown = set(self.table.unknown(readings.partition, readings.names))
        return readings.take(~readings.are_of(unknown))

    def _split_by_limit(self, readings: Readings, limit: int) -> tuple[Readings, Readings | None]:
        """The readings of known sensors and of new ones within the limit; and the refused readings, or None."""
        partition, table = readings.partition, self.table
        room = max(0, limit - table.count(partition))
        if len(table.unknown(partition, readings.names)) <= room:
            return readings, None
        unknown = table.unknown(partition, readings.sensors)  # in the order of their first readings
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
        refused = readings.are_of(set(unknown[room:]))
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
        return [self._classify_in_order(part) for part in parts]

    def _classify_in_order(self, readings: Readings) -> Classification:
        """``classify`` without a reorder buffer."""
        last_us = self.table.field("last_us", self.table.rows(readings.partition, readings.names))
        verdicts = np.empty(len(readings), np.int8)
        duplicates, late = acceptance_kernel.classify(readings.codes, readings.timestamp_us, last_us, verdicts)
        if duplicates or late:
            readings = readings.pick(np.flatnonzero(verdicts == ACCEPTED))
        return Classification(readings, None, duplicates, late)

    def _classify_reordered(self, new: Readings, buffered: Readings | None, end: int | None) -> Classification:
        """``classify`` with a reorder buffer; readings already buffered come first."""
        readings, still = new, None
        if buffered is not None:
            can_release = self._can_release(buffered, new, end)
            readings, still = buffered.take(can_release).followed_by(new), buffered.take(~can_release)
        if not len(readings):
            return Classification(readings, buffered, 0, 0)
        last_us = self.table.field("last_us", self.table.rows(readings.partition, readings.names))
        codes = readings.codes
        reordering = reorder(codes, readings.timestamp_us, readings.offsets, self._grace, last_us, end)
        waiting = readings.pick(np.flatnonzero(reordering.verdicts == BUFFERED))
        still = waiting if still is None else still.merged_with(waiting)
        accepted = readings.pick(reordering.order)
        accepted = replace(accepted, may_anchor=reordering.may_anchor, as_of=reordering.as_of)
        duplicates, late = (int(np.count_nonzero(reordering.verdicts == verdict)) for verdict in (DUPLICATE, LATE))
        return Classification(accepted, still if len(still) else None, duplicates, late)

    def _can_release(self, buffered: Readings, new: Readings, end: int | None) -> NDArray[np.bool_]:
        """(n,) whether to reorder each buffered reading again: its sensor has a new or a releasable reading.

        Other buffered readings stay untouched, because the buffer may be very large after an outage.
        """
        rows = self.table.rows(buffered.partition, buffered.names)
        last_us = self.table.field("last_us", rows)
        come = can_release(buffered.codes, buffered.timestamp_us, buffered.offsets, self._grace, last_us, end)
        moving: NDArray[np.bool_] = come | np.isin(rows, self.table.rows(new.partition, new.names))
        return moving[buffered.codes]

    def step(self, accepted: Sequence[Readings]) -> StepResult:
        """Step accepted readings of distinct partitions, and outlooks, into copies of their sensors' states.

        Readings of a sensor come in the order of time. The order of sensors does not change the result.
        """
        table, readings = self.table, JoinedReadings.of(accepted)
        rows = np.concatenate([table.rows(part.partition, part.names) for part in accepted])
        order = rows.argsort()
        distinct, rank = rows[order], np.empty(len(rows), np.int64)
        rank[order] = np.arange(len(rows))
        slots = rank[readings.codes]
        came = None if self.config.outlook is None else RowOutlooks.of(self.config, table, accepted)
        if came is not None:
            of_readings = distinct
            distinct = np.union1d(of_readings, came.rows)
            slots = np.searchsorted(distinct, of_readings)[slots]
            addressed = np.searchsorted(distinct, came.rows)
        states = table.gather(distinct)
        # A reset state has no previous reading, hence no gap before this one; its row keeps `last_us` for classify.
        states["last_us"][states["accepted"] == 0] = NEVER_US
        arrivals = None
        if came is not None:
            known_at = readings.offsets if readings.as_of is None else readings.as_of
            arrivals = Arrivals(addressed, came.offset, came.which, came.outlooks, known_at)
        forecasts = self._stepper.step(
            states,
            table.sensors_at(distinct.tolist()),
            slots,
            readings.timestamp_us,
            readings.values,
            readings.offsets,
            readings.may_anchor,
            arrivals,
        )
        bad = non_finite(states)
        finite = np.isfinite(forecasts.quantiles)
        if not finite.all():
            bad[slots[~finite.all(axis=(1, 2, 3))]] = True
        outlook_states = 0
        counts = OutlookCounts(unused=sum(len(part.outlooks) for part in accepted))
        if came is not None:
            counts = came.count(forecasts.outlook_verdict)
            has_reading = np.zeros(len(distinct), bool)
            has_reading[slots] = True
            changed = has_reading.copy()
            changed[addressed[forecasts.outlook_verdict == OUTLOOK_ACCEPTED]] = True
            outlook_states = int(np.count_nonzero(changed & ~has_reading))
            distinct, states, bad = distinct[changed], states[changed], bad[changed]
        return StepResult(readings, distinct, states, forecasts, distinct[bad], counts, outlook_states)

    def reset(self, partition: int, sensors: Sequence[str]) -> None:
        """Reset the states of sensors to blank; readings up to a sensor's last timestamp remain late or duplicates."""
        rows = self.table.rows(partition, sensors)
        states = self.table.blank(len(rows))
        states["last_us"] = self.table.field("last_us", rows)
        self.table.scatter(rows, states)

    def replay(self, accepted: Sequence[Readings]) -> None:
        """Step accepted readings straight into the table, without their forecasts; non-finite states are reset."""
        present = [part for part in accepted if len(part) or part.outlooks]
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
