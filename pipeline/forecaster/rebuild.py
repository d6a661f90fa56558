"""Rebuilds the states of sensors by stepping their recent readings through a model again.

A restore rebuilds states that are missing, damaged, or of another model version. A model swap rebuilds all states for
the new model while the old one serves. A replay of a sensor must begin with one of its accepted readings: before that
reading, late ones look new. With a reorder buffer, all readings that are stepped later must also have higher offsets
(``model.reorder_buffer``). The offsets of these readings are the sensor's anchors. An earlier state of the sensor
contains its anchors. Without one, a first pass over the readings finds them. If that pass does not begin at the start
of the log, its first half only learns each sensor's latest timestamp.

The functions are generators that yield after every poll, so that the caller can poll its own consumer in between.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Final

import numpy as np
from kafka import KafkaConsumer, TopicPartition
from numpy.typing import NDArray

from model.acceptance import NEVER_US
from model.reorder_buffer import ReorderBuffer
from model.state import replay_start
from pipeline.forecaster.group_limit import GroupLimit
from pipeline.forecaster.readings import Readings, Record, decode_records
from pipeline.forecaster.states.store import ServedModel
from pipeline.kafka.record_columns import RecordColumns
from pipeline.outlook_messages import make_outlook_decoder
from pipeline.readings_format.decoder import make_decoder
from pipeline.settings import Settings

POLL_MS: Final = 100  # milliseconds that a poll waits for records
POLL_RECORDS: Final = 5_000  # records of one poll


@dataclass(frozen=True)
class SensorAnchors:
    """The offsets from which a sensor's readings can be replayed, and the time of its latest accepted reading.

    ``anchors`` are ascending. The first is the newest from which a replay warms the state up, or the oldest known.
    """

    anchors: tuple[int, ...]
    last_us: int


@dataclass
class RebuildReport:
    """The result of a rebuild, for the log and the counters."""

    sensors: int = 0  # sensors that are rebuilt from at least one reading
    readings: int = 0  # readings stepped
    cold: list[str] = field(default_factory=list)  # sensors without an anchor in the log: they start from scratch
    # Sensors without a reading before the first buffered one. Their first remaining reading counts as forecast, because
    # otherwise most of these readings would be forecast twice. If it was buffered, it gets no forecast.
    maybe_skipped: list[str] = field(default_factory=list)

    def __add__(self, other: "RebuildReport") -> "RebuildReport":
        return RebuildReport(
            self.sensors + other.sensors,
            self.readings + other.readings,
            self.cold + other.cold,
            self.maybe_skipped + other.maybe_skipped,
        )


def anchors_of_state(state: np.void, settings: Settings) -> SensorAnchors:
    """The anchors in a state of any model version."""
    best = int(replay_start(state, settings.rewarm_steps, settings.adaptation.anchor_spacing))
    later = sorted(int(anchor) for anchor in state["anchors"] if anchor > best)
    return SensorAnchors((best, *later) if best >= 0 else (), int(state["last_us"]))


def anchors_of_states(sensors: Sequence[str], states: NDArray[np.void], settings: Settings) -> dict[str, SensorAnchors]:
    """``anchors_of_state`` for several sensors."""
    return {sensor: anchors_of_state(state, settings) for sensor, state in zip(sensors, states, strict=True)}


def read_range(reader: KafkaConsumer, topic: str, partition: int, start: int, end: int) -> Iterator[Sequence[Record]]:
    """The records of [start, end), one sequence per poll; it is empty if the poll returned no record."""
    where = TopicPartition(topic, partition)
    reader.assign([where])
    reader.seek(where, start)
    while (reader.position(where) or 0) < end:
        polled = reader.poll(timeout_ms=POLL_MS, max_records=POLL_RECORDS).get(where, [])
        yield polled[: bisect_left(polled, end, key=attrgetter("offset"))]


class StateRebuilder:
    """Rebuilds states of one model version from the readings topic.

    Args:
        reader: a consumer without a group.
        alive: whether a partition is still wanted; a rebuild asks after every poll, and ends early if not.
    """

    def __init__(
        self,
        settings: Settings,
        reader: KafkaConsumer,
        serving: ServedModel,
        alive: Callable[[int], bool] = lambda _: True,
    ) -> None:
        self._settings = settings
        self._topic = settings.kafka.topics.readings
        self._reader = reader
        self._serving = serving
        self._alive = alive
        self._decoder = make_decoder(settings)
        self._outlook_decoder = make_outlook_decoder(settings)
        self._group_limit = GroupLimit(settings)

    def rebuild(
        self,
        partition: int,
        known: Mapping[str, SensorAnchors | None] | None,
        end: int,
        held_from: int | None = None,
        admitted: Collection[str] = (),
    ) -> Generator[None, None, RebuildReport]:
        """Rebuild the states of the given sensors as of ``end``, the offset of the next reading to process.

        Args:
            known: sensor -> anchors, or None if they are unknown; None instead of a mapping: all sensors.
            held_from: offset of the first reading that is buffered as of ``end``; None if none is buffered. The states
                must be warm at this offset already, because ``read_buffered`` classifies later readings by them.
            admitted: sensors within the limit of sensors; further ones follow in the order of their first readings in
                the whole log, also of readings that are too far back for a replay.
        """
        where = TopicPartition(self._topic, partition)
        log_start = self._reader.beginning_offsets([where])[where]
        warm_at = end if held_from is None else held_from
        floor = max(log_start, warm_at - self._settings.forecaster.rewarm_max_readings)
        unknown = None if known is None else {sensor for sensor, anchors in known.items() if anchors is None}
        past = {sensor: anchors for sensor, anchors in (known or {}).items() if anchors is not None}
        maybe_skipped: list[str] = []
        if unknown is None or unknown:
            finder = _AnchorFinder(self._settings, 0 if floor == log_start else floor + (end - floor) // 2, held_from)
            limit = self._settings.forecaster.max_sensors_per_partition if known is None else None
            within = {*admitted, *self._serving.table.partition_rows(partition)[0]}
            older: dict[str, int] = {}
            if limit is not None:
                older = yield from self._admit_older(partition, log_start, floor, within, limit)
            yield from self._find_anchors(partition, unknown, floor, end, finder, within, limit)
            if not self._alive(partition):
                return RebuildReport()
            past.update(finder.found())
            for sensor, last_us in older.items():
                found = past.get(sensor, SensorAnchors((), NEVER_US))
                past[sensor] = replace(found, last_us=max(found.last_us, last_us))
            maybe_skipped = finder.maybe_skipped if floor else []  # there are no readings before offset 0
            past.update({sensor: SensorAnchors((), NEVER_US) for sensor in (unknown or ()) if sensor not in past})
        starts = {
            sensor: next((anchor for anchor in known_past.anchors if anchor >= floor), None)
            for sensor, known_past in past.items()
        }
        table = self._serving.table
        table.scatter(table.rows(partition, list(past)), table.blank(len(past)))
        first: dict[bytes | None, int] = {
            sensor.encode(): start for sensor, start in starts.items() if start is not None
        }
        replayed = 0
        if first:
            replayed = yield from self.catch_up(partition, min(first.values()), end, first)
        if not self._alive(partition):
            return RebuildReport()
        self.keep_timestamps(partition, past)
        cold = [sensor for sensor, start in starts.items() if start is None]
        return RebuildReport(len(first), replayed, cold, maybe_skipped)

    def catch_up(
        self, partition: int, start: int, end: int, first: Mapping[bytes | None, int] | None = None
    ) -> Generator[None, None, int]:
        """Step the readings of [start, end), and return the number of readings stepped.

        A reading that its sensor's state already contains is not stepped again.

        Args:
            first: key -> the first offset to step; a sensor without one is skipped. None: all readings of all sensors.
        """
        stepped = 0
        buffered: Readings | None = None
        for run in read_range(self._reader, self._topic, partition, start, end):
            for piece in self._group_limit.pieces(run, self._serving.table.count(partition)):
                if not self._alive(partition):
                    return stepped
                due = self._decode(partition, piece, first)
                if len(due) or due.outlooks:
                    classified = self._serving.classify(due, buffered)
                    buffered = classified.buffered
                    self._serving.replay([classified.accepted])
                    stepped += len(classified.accepted)
                yield
        # A buffered reading is released if enough offsets lie between it and the end.
        if buffered is not None and self._alive(partition):
            classified = self._serving.classify(buffered, end=end)
            self._serving.replay([classified.accepted])
            stepped += len(classified.accepted)
        return stepped

    def read_buffered(self, partition: int, start: int, end: int) -> Generator[None, None, Readings]:
        """The readings of [start, end) that are buffered as of ``end``, by ascending offset.

        The states must be as of ``end``. By these states, each reading that was stepped, late or a duplicate is late or
        a duplicate again. All other readings are buffered.
        """
        buffered = self._decode(partition, [])
        for run in read_range(self._reader, self._topic, partition, start, end):
            if not self._alive(partition):
                break
            if run:
                readings = self._serving.only_known(self._decode(partition, run))
                classified = self._serving.classify(readings, buffered)
                # Only a state that was lost and reset accepts a reading here. The reading stays buffered, and the next
                # batch steps it and makes its forecast.
                accepted = replace(classified.accepted, may_anchor=None)
                buffered = accepted if classified.buffered is None else classified.buffered.followed_by(accepted)
                buffered = buffered.pick(np.argsort(buffered.offsets))
            yield
        return buffered

    def keep_timestamps(self, partition: int, past: Mapping[str, SensorAnchors]) -> None:
        """Move no sensor's time back: a reading that was late before the rebuild is late after it."""
        table = self._serving.table
        rows = table.rows(partition, list(past))
        states = table.gather(rows)
        latest = np.fromiter((anchors.last_us for anchors in past.values()), np.int64, len(past))
        states["last_us"] = np.maximum(states["last_us"], latest)
        table.scatter(rows, states)

    def _decode(
        self, partition: int, records: Sequence[Record], first: Mapping[bytes | None, int] | None = None
    ) -> Readings:
        """The readings and outlooks in the records; with ``first`` only readings from their sensor's offset in it on.

        Outlooks need no such limit: one that comes before the first reading of a state does not count.
        """
        outlooks = self._outlook_decoder
        # Skipped records need not be decoded, but in columns they are decoded faster than skipped.
        if first is not None and self._decoder.is_keyed_by_sensor and not isinstance(records, RecordColumns):
            groups = frozenset[bytes]() if outlooks is None else outlooks.group_keys
            records = [
                record
                for record in records
                if first.get(record.key, record.offset + 1) <= record.offset or record.key in groups
            ]
        rules, features = self._serving.time_rules.get(partition, ()), len(self._settings.features)
        found = decode_records(self._decoder, features, partition, records, rules, outlooks).readings
        if first is None or not len(found):
            return found
        never = np.iinfo(np.int64).max
        begins = np.array([first.get(name.encode(), never) for name in found.names], np.int64)
        return replace(found.take(found.offsets >= begins[found.codes]), outlooks=found.outlooks)

    def _admit_older(
        self, partition: int, start: int, end: int, admitted: set[str], limit: int
    ) -> Generator[None, None, dict[str, int]]:
        """The latest timestamp in [start, end) of each sensor within the limit; adds new sensors to ``admitted``."""
        latest: dict[str, int] = {}
        if start >= end:
            return latest
        for run in read_range(self._reader, self._topic, partition, start, end):
            if not self._alive(partition):
                break
            readings = self._decode(partition, run)
            for sensor, timestamp_us in zip(readings.sensors, readings.timestamp_us.tolist(), strict=True):
                if _admits(sensor, admitted, limit):
                    latest[sensor] = max(timestamp_us, latest.get(sensor, NEVER_US))
            yield
        return latest

    def _find_anchors(
        self,
        partition: int,
        wanted: set[str] | None,
        floor: int,
        end: int,
        finder: "_AnchorFinder",
        admitted: set[str],
        limit: int | None,
    ) -> Generator[None, None, None]:
        """Pass all readings of [floor, end) of the wanted sensors to the finder; None: of all sensors.

        With a limit of sensors, "all" are those in ``admitted``, and further ones in the order of their first readings.
        """
        for run in read_range(self._reader, self._topic, partition, floor, end):
            if not self._alive(partition):
                break
            readings = self._decode(partition, run)
            moments = zip(readings.sensors, readings.timestamp_us.tolist(), readings.offsets.tolist(), strict=True)
            for sensor, timestamp_us, offset in moments:
                if limit is not None and not _admits(sensor, admitted, limit):
                    continue
                if wanted is None or sensor in wanted:
                    finder.add(sensor, timestamp_us, offset)
            yield


def _admits(sensor: str, admitted: set[str], limit: int) -> bool:
    """Whether a sensor is within the limit; adds it to ``admitted`` if it is a new one."""
    if sensor not in admitted:
        if len(admitted) >= limit:
            return False
        admitted.add(sensor)
    return True


@dataclass
class _SensorPast:
    """The readings of one sensor, as far as the finder has read them."""

    anchors: deque[int]
    last_us: int = NEVER_US  # time of the latest accepted reading
    accepted: int = 0  # accepted readings from ``trusted_from`` on
    is_anchor_due: bool = False


class _AnchorFinder:
    """Finds the anchors of every sensor in its readings.

    Args:
        trusted_from: offset of the first possible anchor; from earlier readings only the latest timestamps are learned.
        held_from: offset of the first reading that is buffered at the end; None if none is buffered.
    """

    def __init__(self, settings: Settings, trusted_from: int, held_from: int | None) -> None:
        self._trusted_from = trusted_from
        self._held_from = held_from
        # sensor -> time of the first buffered reading, if the readings before it were deleted: it looks like the
        # sensor's first. No reading with this time or a later one has been stepped. Readings with earlier times have
        # higher offsets and are stepped before it, so they are not anchors.
        self._cutoff_us: dict[str, int] = {}
        self.maybe_skipped: list[str] = []  # sensors without a reading before the first buffered one
        self._grace = settings.grace
        self._spacing = settings.adaptation.anchor_spacing
        self._anchors_kept = -(-settings.rewarm_steps // self._spacing) + 1
        self._seen: dict[str, _SensorPast] = {}
        self._buffers: dict[str, ReorderBuffer] = {}

    def add(self, sensor: str, timestamp_us: int, offset: int) -> None:
        if not self._grace.is_on:
            self._add_accepted(sensor, timestamp_us, offset)
            return
        if offset == self._held_from and sensor not in self._buffers:
            self._cutoff_us[sensor] = timestamp_us
        cut_off_us = self._cutoff_us.get(sensor)
        if cut_off_us is not None and timestamp_us >= cut_off_us:
            return
        buffer = self._buffers.get(sensor)
        if buffer is None:
            buffer = self._buffers[sensor] = ReorderBuffer(self._grace)
            if self._held_from is not None and offset > self._held_from:
                self.maybe_skipped.append(sensor)
        for released in buffer.add(timestamp_us, offset, offset)[1]:
            may_anchor = released.may_anchor and cut_off_us is None
            self._add_accepted(sensor, released.timestamp_us, released.name, may_anchor=may_anchor)

    def _add_accepted(self, sensor: str, timestamp_us: int, offset: int, *, may_anchor: bool = True) -> None:
        seen = self._seen.get(sensor)
        if seen is None:
            seen = self._seen[sensor] = _SensorPast(deque(maxlen=self._anchors_kept))
        if timestamp_us <= seen.last_us:
            return
        seen.last_us = timestamp_us
        if offset >= self._trusted_from:
            seen.is_anchor_due |= seen.accepted % self._spacing == 0
            if seen.is_anchor_due and may_anchor:
                seen.anchors.append(offset)
                seen.is_anchor_due = False
            seen.accepted += 1

    def found(self) -> dict[str, SensorAnchors]:
        return {sensor: SensorAnchors(tuple(seen.anchors), seen.last_us) for sensor, seen in self._seen.items()}
