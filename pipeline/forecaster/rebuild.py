"""Rebuilds sensors' states by stepping their recent readings of the input topic through a model once more.

Used where a state is of another model version, damaged, or gone, and to warm up a new model while the old one serves.
A replay must begin with a reading that was accepted, or late ones would be taken for news, and where gaps are waited
for, with one that all stepped after it came behind (``model.reorder_buffer``). Where an earlier state of the sensor is
known, its anchors say such offsets. Where nothing is known, a first pass over the readings learns them: from the start
of the log all is known; else the first half of the pass only learns each sensor's latest timestamp.

All functions are generators that yield after every poll, so that the caller can go on polling its own consumer.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from kafka import KafkaConsumer, TopicPartition
from numpy.typing import NDArray

from model.acceptance import NEVER_US
from model.reorder_buffer import ReorderBuffer
from model.state import replay_start
from pipeline.forecaster.readings import Readings, Record, decode_records
from pipeline.forecaster.state_store import ServedModel
from pipeline.messages import ReadingDecoder, Rejected
from pipeline.settings import Settings

POLL_MS: Final = 100
POLL_RECORDS: Final = 5_000
_NOWHERE: Final = np.iinfo(np.int64).max

RebuildJob = Generator[None, None, "RebuildReport"]


@dataclass(frozen=True)
class SensorAnchors:
    """What is known of a sensor's past: enough to find where to replay from, and to go on judging its readings.

    ``anchors`` are offsets of readings that a replay may begin with, ascending, the best one first; empty: none known.
    """

    anchors: tuple[int, ...]
    last_us: int


@dataclass
class RebuildReport:
    """What a replay did, for the log and the counters."""

    sensors: int = 0
    readings: int = 0
    cold: list[str] = field(default_factory=list)  # no reading to start from was left: they start at their next one
    # Taken to have had their first reading on arrival; had it been held, what it came behind being gone, it has been
    # passed over. The other way round, most would be forecast twice.
    maybe_skipped: list[str] = field(default_factory=list)

    def __add__(self, other: "RebuildReport") -> "RebuildReport":
        return RebuildReport(
            self.sensors + other.sensors,
            self.readings + other.readings,
            self.cold + other.cold,
            self.maybe_skipped + other.maybe_skipped,
        )


def anchors_of_state(state: np.void, settings: Settings) -> SensorAnchors:
    """What a state, of whatever model version, says of its sensor's past."""
    best = int(replay_start(state, settings.rewarm_steps, settings.adaptation.anchor_spacing))
    later = sorted(int(anchor) for anchor in state["anchors"] if anchor > best)
    return SensorAnchors((best, *later) if best >= 0 else (), int(state["last_us"]))


def read_range(reader: KafkaConsumer, topic: str, partition: int, start: int, end: int) -> Iterator[list[Record]]:
    """The records of [start, end), in runs, an empty one where a poll brought none."""
    where = TopicPartition(topic, partition)
    reader.assign([where])
    reader.seek(where, start)
    while (reader.position(where) or 0) < end:
        polled = reader.poll(timeout_ms=POLL_MS, max_records=POLL_RECORDS).get(where, [])
        while polled and polled[-1].offset >= end:
            polled.pop()
        yield polled


class StateRebuilder:
    """Rebuilds states of one serving from the readings topic.

    Args:
        reader: a consumer of its own, without a group.
        alive: asked between polls; a replay whose partition is wanted no more ends early.
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
        self._decoder = ReadingDecoder(settings.features)

    def rebuild(
        self, partition: int, known: Mapping[str, SensorAnchors | None] | None, end: int, held_from: int | None = None
    ) -> RebuildJob:
        """States as of ``end`` (the offset of the next reading to be served) for the sensors given.

        Args:
            known: by sensor, None where nothing is known of one; None in all: whatever sensors there are.
            held_from: of the first reading that is held as of ``end``; none is: None. What lies behind it is judged
                once more by these states (``read_buffered``), so they are learned from as far before it as else before
                ``end``.
        """
        where = TopicPartition(self._topic, partition)
        log_start = self._reader.beginning_offsets([where])[where]
        judged_from = end if held_from is None else held_from
        floor = max(log_start, judged_from - self._settings.forecaster.rewarm_max_readings)
        unknown = None if known is None else {sensor for sensor, what in known.items() if what is None}
        past: dict[str, SensorAnchors] = {sensor: what for sensor, what in (known or {}).items() if what is not None}
        maybe_skipped: list[str] = []
        if unknown is None or unknown:
            finder = _AnchorFinder(self._settings, 0 if floor == log_start else floor + (end - floor) // 2, held_from)
            yield from self._find_anchors(partition, unknown, floor, end, finder)
            if not self._alive(partition):
                return RebuildReport()
            past.update(finder.found())
            maybe_skipped = finder.maybe_skipped if floor else []  # from the first offset on, there was nothing before
            past.update({sensor: SensorAnchors((), NEVER_US) for sensor in (unknown or ()) if sensor not in past})
        starts = {
            sensor: next((anchor for anchor in what.anchors if anchor >= floor), None) for sensor, what in past.items()
        }
        warm = {sensor: start for sensor, start in starts.items() if start is not None}
        self._reset(partition, past)
        replayed = yield from self._step_from(partition, warm, end)
        if not self._alive(partition):
            return RebuildReport()
        self.keep_timestamps(partition, past)
        cold = [sensor for sensor, start in starts.items() if start is None]
        return RebuildReport(len(warm), replayed, cold, maybe_skipped)

    def _reset(self, partition: int, past: Mapping[str, SensorAnchors]) -> None:
        table = self._serving.table
        sensors = list(past)
        table.scatter(table.rows(partition, sensors), table.blank(len(sensors)))

    def catch_up(self, partition: int, start: int, end: int) -> Generator[None, None, None]:
        """Step all readings of [start, end) into states that are as of an offset in between; none twice."""
        yield from self._step(partition, start, end, lambda run: run)

    def _step_from(self, partition: int, starts: Mapping[str, int], end: int) -> Generator[None, None, int]:
        """Step each sensor's readings from its start on."""
        if not starts:
            return 0
        first: dict[bytes | None, int] = {sensor.encode(): start for sensor, start in starts.items()}

        def due(run: list[Record]) -> list[Record]:
            return [record for record in run if first.get(record.key, _NOWHERE) <= record.offset]

        stepped = yield from self._step(partition, min(starts.values()), end, due)
        return stepped

    def _step(
        self, partition: int, start: int, end: int, choose: Callable[[list[Record]], list[Record]]
    ) -> Generator[None, None, int]:
        features = len(self._settings.features)
        stepped = 0
        buffered: Readings | None = None
        for run in read_range(self._reader, self._topic, partition, start, end):
            if not self._alive(partition):
                break
            due = choose(run)
            if due:
                readings = decode_records(self._decoder, features, partition, due).readings
                classified = self._serving.classify(readings, buffered)
                buffered = classified.buffered
                self._serving.replay([classified.accepted])
                stepped += len(classified.accepted)
            yield
        # Whose turn comes at the end, since it has been held for so many offsets.
        if buffered is not None and self._alive(partition):
            classified = self._serving.classify(buffered, end=end)
            self._serving.replay([classified.accepted])
            stepped += len(classified.accepted)
        return stepped

    def read_buffered(self, partition: int, start: int, end: int) -> Generator[None, None, Readings]:
        """The readings of [start, end) that wait for earlier ones, in the order of their offsets, by states as of end.

        What was stepped, late or a duplicate is not later than its sensor's state, or is so again.
        """
        features = len(self._settings.features)
        buffered = decode_records(self._decoder, features, partition, []).readings
        for run in read_range(self._reader, self._topic, partition, start, end):
            if not self._alive(partition):
                break
            if run:
                classified = self._serving.classify(
                    decode_records(self._decoder, features, partition, run).readings, buffered
                )
                # What is accepted here belongs to a state that was lost: it gets its forecast with the next batch.
                accepted = replace(classified.accepted, may_anchor=None)
                buffered = accepted if classified.buffered is None else classified.buffered.followed_by(accepted)
                buffered = buffered.pick(np.argsort(buffered.offsets))
            yield
        return buffered

    def keep_timestamps(self, partition: int, past: Mapping[str, SensorAnchors]) -> None:
        """Whatever was or was not replayed, a reading that came too late before is too late now."""
        table = self._serving.table
        rows = table.rows(partition, list(past))
        states = table.gather(rows)
        latest = np.fromiter((what.last_us for what in past.values()), np.int64, len(past))
        states["last_us"] = np.maximum(states["last_us"], latest)
        table.scatter(rows, states)

    def _find_anchors(
        self, partition: int, wanted: set[str] | None, floor: int, end: int, finder: "_AnchorFinder"
    ) -> Generator[None, None, None]:
        """Show the finder all readings since ``floor`` of the sensors wanted."""
        for run in read_range(self._reader, self._topic, partition, floor, end):
            if not self._alive(partition):
                break
            self._collect_anchors(run, wanted, finder)
            yield

    def _collect_anchors(self, run: Sequence[Record], wanted: set[str] | None, finder: "_AnchorFinder") -> None:
        for record in run:
            try:
                reading = self._decoder.decode(record.key, record.value)
            except Rejected:
                continue
            if wanted is None or reading.sensor_id in wanted:
                finder.add(reading.sensor_id, reading.timestamp_us, record.offset)


class _AnchorFinder:
    """Anchors of every sensor, from its readings one by one.

    Args:
        trusted_from: the offset from which on readings count; from those before only the latest timestamps are learned.
        held_from: of the first reading that is held at the end; none is: None.
    """

    def __init__(self, settings: Settings, trusted_from: int, held_from: int | None) -> None:
        self._trusted_from = trusted_from
        self._held_from = held_from
        # The first reading held, where what it came behind is not there any more: it would pass for its sensor's first.
        # Nothing as late has been stepped, and a replay cannot begin before it.
        self._cutoff_us: dict[str, int] = {}  # sensor -> time
        self.maybe_skipped: list[str] = []  # sensors without a reading from before the first one held
        self._grace = settings.grace
        self._spacing = settings.adaptation.anchor_spacing
        self._anchors_kept = -(-settings.rewarm_steps // self._spacing) + 1
        # Latest timestamp, accepted readings that count, anchors, and whether one is due.
        self._seen: dict[str, list[Any]] = {}
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
            seen = self._seen[sensor] = [NEVER_US, 0, deque(maxlen=self._anchors_kept), False]
        if timestamp_us <= seen[0]:
            return
        seen[0] = timestamp_us
        if offset >= self._trusted_from:
            seen[3] |= seen[1] % self._spacing == 0
            if seen[3] and may_anchor:
                seen[2].append(offset)
                seen[3] = False
            seen[1] += 1

    def found(self) -> dict[str, SensorAnchors]:
        return {
            sensor: SensorAnchors(tuple(anchors), last_us) for sensor, (last_us, _, anchors, _) in self._seen.items()
        }


def anchors_of_states(sensors: Sequence[str], states: NDArray[np.void], settings: Settings) -> dict[str, SensorAnchors]:
    """``anchors_of_state`` for several sensors."""
    return {sensor: anchors_of_state(state, settings) for sensor, state in zip(sensors, states, strict=True)}
