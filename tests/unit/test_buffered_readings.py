"""Buffered readings survive a crash or a model swap at any moment, from the committed offsets alone."""

import math
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from kafka import TopicPartition

from model.reorder_buffer import MAX_BUFFERED_OFFSETS, reorder
from pipeline.audit.delivery import REJECTED, ForecastLog, ReadingLog
from pipeline.audit.state_audit import LastState
from pipeline.audit.verify import Evidence, audit_evidence
from pipeline.forecaster import state_store
from pipeline.forecaster.micro_batch import MicroBatchBuilder
from pipeline.forecaster.positions import CommittedPosition, Position
from pipeline.forecaster.readings import Readings
from pipeline.forecaster.rebuild import RebuildReport, SensorAnchors, StateRebuilder, anchors_of_states
from pipeline.forecaster.state_store import ServedModel
from pipeline.kafka.record_batch import FetchedRecord
from pipeline.messages import ReadingDecoder, Rejected, decode_forecast, encode_reading, microseconds
from pipeline.settings import Settings
from tests.integration.stream_rig import HOUR_US, START_US, small_forecaster

SETTINGS = Settings(
    horizon_steps=1,
    max_gap_steps=5,
    grace_steps=3,
    forecaster={"adaptation": "off", "calibration": False, "rewarm_steps": 20},
)
MODELS = {version: small_forecaster(SETTINGS, seed=version, hidden_size=4) for version in (1, 2)}
WHERE = TopicPartition(SETTINGS.kafka.topics.readings, 0)
SENSORS = ("a", "b", "c")


class PartitionLog:
    """The records of one partition, with the methods of a consumer that a rebuild calls."""

    def __init__(self, records: list[FetchedRecord], start: int = 0) -> None:
        self._records = records
        self._start = start
        self._at = start

    def assign(self, partitions: list[TopicPartition]) -> None:
        assert partitions == [WHERE]

    def seek(self, where: TopicPartition, offset: int) -> None:
        assert offset >= self._start
        self._at = offset

    def position(self, where: TopicPartition) -> int:
        return self._at

    def beginning_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, self._start)

    def poll(self, timeout_ms: int, max_records: int) -> dict[TopicPartition, list[FetchedRecord]]:
        polled = self._records[self._at : self._at + 7]
        self._at += len(polled)
        return {WHERE: polled} if polled else {}


def stream(seed: int, steps: int) -> list[FetchedRecord]:
    """Readings delayed within grace or beyond, missing, repeated or off the grid, and poison records."""
    chance = random.Random(seed)
    sent: list[tuple[float, bytes, bytes]] = []
    for sensor in SENSORS:
        moment, left_out = 0.0, 0
        for step in range(steps):
            moment += chance.choice([1.0, 1.0, 1.0, 1.0, 0.4, 1.3])
            left_out = chance.randint(1, 8) if chance.random() < 0.05 else left_out - 1
            if left_out > 0 and step:
                continue
            timestamp_us = START_US + round(moment * HOUR_US)
            key, value = encode_reading(sensor, timestamp_us, {"value": math.sin(step / 4) + chance.random()})
            delay = chance.choice([0, 0, chance.uniform(0, 3), chance.uniform(0, 6)]) if step else 0
            sent.append((moment + delay, key, value))
            if chance.random() < 0.05:
                sent.append((moment + chance.uniform(0, 6), key, value))
            if chance.random() < 0.03:
                sent.append((moment + delay, key, b"rubbish"))
    return [FetchedRecord(key, value, offset, []) for offset, (_, key, value) in enumerate(sorted(sent))]


def exhausted(generator: Any) -> Any:
    try:
        while True:
            next(generator)
    except StopIteration as done:
        return done.value


@dataclass
class Stream:
    """A forecaster without Kafka: its committed state and its state in memory."""

    records: list[FetchedRecord]
    settings: Settings = SETTINGS
    log_start: int = 0
    version: int = 1
    committed: Position = field(default_factory=lambda: Position(0))
    states: dict[str, bytes] = field(default_factory=dict)
    state_versions: dict[str, int] = field(default_factory=dict)
    forecasts: list[Any] = field(default_factory=list)
    letters: list[int] = field(default_factory=list)
    buffered: dict[int, Readings] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.serving = self._serving_of(1)

    def _serving_of(self, version: int) -> ServedModel:
        serving = ServedModel(version, MODELS[version], self.settings)
        serving.table.add_partition(0)
        return serving

    def take(self, count: int) -> None:
        start = self.committed.next
        polled = self.records[start : start + count]
        if not polled:
            return
        batch = MicroBatchBuilder(self.settings, self.serving, "").build({WHERE: polled}, buffered=self.buffered)
        for records in batch.records:
            if records.topic == SETTINGS.kafka.topics.forecasts:
                self.forecasts += [decode_forecast(value) for value in records.values if value is not None]
            if records.topic == SETTINGS.kafka.topics.dead_letters:
                self.letters += records.values
        if batch.stepped is not None:
            self.serving.table.scatter(batch.stepped.rows, batch.stepped.states)
        self.buffered = dict(batch.buffered)
        self.committed = CommittedPosition.of(batch.positions[0].to_commit()).position
        sensors, rows = self.serving.table.partition_rows(0)
        self.states = {
            sensor: state.tobytes()
            for sensor, state in zip(sensors, self.serving.table.gather(rows), strict=True)
            if state["accepted"]
        }
        self.state_versions = dict.fromkeys(self.states, self.version)

    def crash(self) -> None:
        self.serving = self._serving_of(self.version)
        table = self.serving.table
        for sensor, state in self.states.items():
            table.scatter(table.rows(0, [sensor]), np.frombuffer(state, table.dtype))
        self._restore_buffered()

    def lose_changelog(self) -> RebuildReport:
        self.serving = self._serving_of(self.version)
        rebuilt: RebuildReport = exhausted(
            self.rebuilder().rebuild(0, None, self.committed.next, self.committed.held_from)
        )
        self._restore_buffered()
        return rebuilt

    def _restore_buffered(self) -> None:
        self.buffered = {}
        if self.committed.held_from is not None:
            buffered = exhausted(self.rebuilder().read_buffered(0, self.committed.held_from, self.committed.next))
            self.buffered = {0: buffered} if len(buffered) else {}

    def swap(self) -> None:
        self.version = 3 - self.version
        sensors, rows = self.serving.table.partition_rows(0)
        known = anchors_of_states(sensors, self.serving.table.gather(rows), self.settings)
        self.serving = self._serving_of(self.version)
        exhausted(self.rebuilder().rebuild(0, known, self.committed.next))

    def rebuilder(self) -> StateRebuilder:
        log: Any = PartitionLog(self.records, self.log_start)
        return StateRebuilder(self.settings, log, self.serving)


def by_sensor(forecasts: list[Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for forecast in forecasts:
        found.setdefault(forecast.sensor_id, []).append(forecast)
    return found


@pytest.mark.parametrize("seed", range(6))
def test_a_stream_in_random_batches_with_crashes_gives_the_same_forecasts_as_one_batch(seed: int) -> None:
    records = stream(seed, 60)
    whole, broken = Stream(records), Stream(records)
    whole.take(len(records))
    chance = random.Random(seed)
    crashes_with_buffered = 0
    while broken.committed.next < len(records):
        broken.take(chance.randint(1, 12))
        before = {number: buffered.offsets.tolist() for number, buffered in broken.buffered.items()}
        crashes_with_buffered += bool(before)
        chance.choice([broken.crash, broken.crash, broken.lose_changelog])()
        assert {number: buffered.offsets.tolist() for number, buffered in broken.buffered.items()} == before
    assert crashes_with_buffered > 3
    assert by_sensor(broken.forecasts) == by_sensor(whole.forecasts)
    assert broken.letters == whole.letters
    assert broken.states == whole.states
    assert broken.committed == whole.committed


@pytest.mark.parametrize("seed", range(6))
def test_a_model_swap_while_readings_are_buffered_continues_from_the_same_steps(seed: int) -> None:
    """The audit traces every forecast and every state to its origin, and recomputes it from there."""
    records = stream(seed, 150)
    live = Stream(records)
    chance = random.Random(seed)
    while live.committed.next < len(records):
        live.take(chance.randint(1, 40))
        live.swap()
    verdict = audit_evidence(evidence(live), SETTINGS, MODELS.__getitem__)
    assert verdict.faults == {}, verdict.examples
    assert verdict.recomputed == len(live.forecasts)
    assert set(verdict.versions) == {1, 2}


def test_buffered_readings_of_sensors_without_a_new_reading_are_not_classified_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After an outage all sensors may have buffered readings, while a batch holds readings of few sensors."""
    handed: list[list[int]] = []

    def counting(codes: Any, timestamp_us: Any, offsets: Any, *rest: Any) -> Any:
        handed.append(offsets.tolist())
        return reorder(codes, timestamp_us, offsets, *rest)

    monkeypatch.setattr(state_store, "reorder", counting)
    serving = ServedModel(1, MODELS[1], SETTINGS)
    serving.table.add_partition(0)
    names = [f"s{number}" for number in range(1_000)]

    def readings(sensors: list[str], step: int, first: int) -> Readings:
        moments = np.full(len(sensors), START_US + step * HOUR_US)
        keys = [name.encode() for name in sensors]
        return Readings(0, keys, sensors, moments, np.zeros((len(keys), 1)), np.arange(first, first + len(keys)))

    serving.replay([serving.classify(readings(names, 0, 0), end=1_000).accepted])
    buffered = serving.classify(readings(names, 2, 1_000), end=2_000).buffered
    assert buffered is not None
    assert len(buffered) == 1_000
    handed.clear()
    classification = serving.classify(readings(names[500:550], 3, 2_000), buffered, 2_050)
    assert handed == [[*range(1_500, 1_550), *range(2_000, 2_050)]]
    assert classification.buffered is not None
    assert classification.buffered.offsets.tolist() == list(range(1_000, 2_050))
    handed.clear()
    nothing_new = readings([], 0, 0)
    waiting = serving.classify(nothing_new, classification.buffered, 2_051).buffered
    assert waiting is not None
    assert (handed, waiting.offsets.tolist()) == ([], list(range(1_000, 2_050)))
    aged = serving.classify(nothing_new, classification.buffered, 1_502 + MAX_BUFFERED_OFFSETS)
    assert sorted(aged.accepted.offsets.tolist()) == [*range(1_000, 1_503), *range(2_000, 2_003)]
    assert handed == [[*range(1_000, 1_503), *range(2_000, 2_003)]]


def sent(sensor: str, step: float, offset: int) -> FetchedRecord:
    key, value = encode_reading(sensor, START_US + round(step * HOUR_US), {"value": step})
    return FetchedRecord(key, value, offset, [])


def test_a_rebuild_reads_states_from_before_the_buffered_readings_despite_its_limit() -> None:
    """If the rebuild began later, the last readings of ``b`` would count as its first, and be forecast again."""
    few = SETTINGS.model_copy(update={"forecaster": SETTINGS.forecaster.model_copy(update={"rewarm_max_readings": 30})})
    steps = [("b", 0), ("a", 0), ("c", 0), ("c", 2), ("b", 1), ("b", 2), *(("a", step) for step in range(1, 60))]
    live = Stream([sent(sensor, step, offset) for offset, (sensor, step) in enumerate(steps)], few)
    live.take(50)
    assert live.committed == Position(50, 3)
    live.lose_changelog()
    assert {number: buffered.offsets.tolist() for number, buffered in live.buffered.items()} == {0: [3]}
    live.take(50)
    assert sorted(one.input.offset for one in live.forecasts) == [offset for offset in range(len(steps)) if offset != 3]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([("a", 0), ("a", 2)], []),
        ([("a", 0), ("a", 2)], [("a", 1)]),
        ([("a", 0), ("a", 5), ("a", 1), ("a", 6)], [("a", 3), ("a", 2), ("a", 4)]),
        ([("a", 0), ("a", 5), ("a", 6)], [("a", 9)]),
    ],
)
def test_a_buffered_reading_is_forecast_though_the_state_and_earlier_readings_are_lost(
    before: list[tuple[str, int]], after: list[tuple[str, int]]
) -> None:
    """The sensor's state and earlier readings are lost, so the buffered reading looks like the sensor's first."""
    steps = [*before, *(("b", step) for step in range(25)), *after, *(("b", step) for step in range(25, 50))]
    live = Stream([sent(sensor, step, offset) for offset, (sensor, step) in enumerate(steps)])
    live.take(len(before) + 25)
    assert live.committed == Position(len(before) + 25, 1)
    buffered = live.buffered[0].offsets.tolist()
    live.log_start = 1
    live.lose_changelog()
    assert live.buffered[0].offsets.tolist() == buffered
    live.take(len(steps))
    forecast = [one.input.offset for one in live.forecasts]
    assert len(forecast) == len(set(forecast))
    assert set(buffered) <= set(forecast)


def test_a_rebuild_names_the_sensors_whose_first_reading_may_have_been_buffered() -> None:
    steps = [("a", 0), ("a", 2), ("b", 0), ("c", 0), ("b", 1), ("b", 2)]
    live = Stream([sent(sensor, step, offset) for offset, (sensor, step) in enumerate(steps)])
    live.take(6)
    for start, maybe_skipped in ((0, []), (1, ["b", "c"])):
        live.log_start = start
        assert live.lose_changelog().maybe_skipped == maybe_skipped
        assert live.buffered[0].offsets.tolist() == [1], "the readings of the other sensors have their forecasts"


@pytest.mark.parametrize("grace_steps", [0.0, 3.0])
def test_a_rebuild_begins_at_a_later_anchor_if_its_limit_does_not_reach_the_best_one(grace_steps: float) -> None:
    """A state with a shorter warm-up is better than a cold one."""
    forecaster = SETTINGS.forecaster.model_copy(update={"rewarm_max_readings": 30})
    settings = SETTINGS.model_copy(update={"grace_steps": grace_steps, "forecaster": forecaster})
    live = Stream([sent("a", step, step) for step in range(50)], settings)
    last_us = START_US + 49 * HOUR_US
    for anchors, origin in (((5, 40), 40), ((20, 40), 20), ((5, 19), -1)):
        rebuilt = exhausted(live.rebuilder().rebuild(0, {"a": SensorAnchors(anchors, last_us)}, 50))
        assert (rebuilt.sensors, rebuilt.cold) == ((0, ["a"]) if origin < 0 else (1, []))
        state = live.serving.table.gather(live.serving.table.rows(0, ["a"]))[0]
        assert (state["origin"], state["last_us"]) == (origin, last_us)


def evidence(live: Stream) -> Evidence:
    decoder = ReadingDecoder(SETTINGS.features)
    code = {name: number for number, name in enumerate(SENSORS)}
    rows: list[tuple[int, int, float]] = []
    for record in live.records:
        try:
            one = decoder.decode(record.key, record.value)
            rows.append((code[one.sensor_id], one.timestamp_us, one.values[0]))
        except Rejected:
            rows.append((-1, 0, np.nan))
    sensor, timestamp_us, value = zip(*rows, strict=True)
    n, m = len(rows), len(live.forecasts)
    readings = ReadingLog(
        sensors=SENSORS,
        partition=np.zeros(n, np.int32),
        offset=np.arange(n),
        sensor=np.array(sensor),
        timestamp_us=np.array(timestamp_us),
        values=np.array(value)[:, None],
        sent_ms=np.zeros(n, np.int64),
        verdict=np.full(n, REJECTED, np.int8),
    )
    made = live.forecasts
    forecasts = ForecastLog(
        sensors=SENSORS,
        partition=np.zeros(m, np.int32),
        offset=np.arange(m),
        sensor=np.array([code[one.sensor_id] for one in made]),
        issued_us=np.array([microseconds(one.issued_at) for one in made]),
        input_offset=np.array([one.input.offset for one in made]),
        input_partition=np.zeros(m, np.int32),
        version=np.array([one.model.version for one in made]),
        warm=np.array([one.state.warm for one in made]),
        sent_ms=np.zeros(m, np.int64),
        origin=np.array([one.state.origin for one in made]),
        steps=np.array([one.state.steps for one in made]),
        weights=np.full((m, 1, 1), np.nan),  # no experts, so no weights
        quantiles=np.array(
            [[[one.quantiles["value"][level] for level in ("0.1", "0.5", "0.9")]] for one in made], "f4"
        ),
    )
    states = {(0, name): LastState(live.state_versions[name], state) for name, state in live.states.items()}
    letters = {(0, row): 1 for row in range(n) if rows[row][0] < 0}
    return Evidence(readings, forecasts, states, letters, {}, {0: live.committed.next})
