"""A forecaster without Kafka: its records, its committed and its present state, with crashes and model swaps."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import NoneType
from typing import Any, Final

import numpy as np
from kafka import TopicPartition

from model.forecaster import Forecaster
from pipeline.audit.delivery import REJECTED, ForecastLog, ReadingLog, classify_log
from pipeline.audit.outlook_log import LoggedOutlook
from pipeline.audit.state_audit import LastState
from pipeline.audit.verify import Evidence
from pipeline.forecaster.counters import Counters
from pipeline.forecaster.micro_batch import MicroBatchBuilder
from pipeline.forecaster.positions import CommittedPosition, Position
from pipeline.forecaster.readings import Readings
from pipeline.forecaster.rebuild import RebuildReport, StateRebuilder, anchors_of_states
from pipeline.forecaster.states.store import ServedModel
from pipeline.kafka.record_batch import FetchedRecord
from pipeline.messages import ReadingDecoder, Rejected, decode_forecast, microseconds, quantile_key
from pipeline.outlook_messages import Outlook, decode_outlook, make_outlook_decoder
from pipeline.settings import Settings
from tests.columns import in_columns

WHERE: Final = TopicPartition(Settings().kafka.topics.readings, 0)


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

    def poll(self, timeout_ms: int, max_records: int) -> dict[TopicPartition, Sequence[FetchedRecord]]:
        polled = self._records[self._at : self._at + 7]
        self._at += len(polled)
        return {WHERE: as_fetched(polled)} if polled else {}


def as_fetched(records: list[FetchedRecord]) -> Sequence[FetchedRecord]:
    """The records in columns, as a consumer returns them; as objects if one has headers or is an unreadable batch."""
    is_plain = all(type(part) in (bytes, NoneType) for record in records for part in (record.key, record.value))
    return in_columns(records) if is_plain and not any(record.headers for record in records) else records


def exhausted(generator: Any) -> Any:
    try:
        while True:
            next(generator)
    except StopIteration as done:
        return done.value


@dataclass
class Stream:
    """A forecaster of partition 0, with two versions of its model."""

    records: list[FetchedRecord]
    settings: Settings
    models: Mapping[int, Forecaster]
    log_start: int = 0
    version: int = 1
    committed: Position = field(default_factory=lambda: Position(0))
    states: dict[str, bytes] = field(default_factory=dict)
    state_versions: dict[str, int] = field(default_factory=dict)
    forecasts: list[Any] = field(default_factory=list)
    letters: list[int] = field(default_factory=list)
    buffered: dict[int, Readings] = field(default_factory=dict)
    counts: Counters = field(default_factory=Counters)

    def __post_init__(self) -> None:
        self.serving = self._serving_of(1)

    def _serving_of(self, version: int) -> ServedModel:
        serving = ServedModel(version, self.models[version], self.settings)
        serving.table.add_partition(0)
        return serving

    def take(self, count: int) -> None:
        start = self.committed.next
        polled = self.records[start : start + count]
        if not polled:
            return
        batch = MicroBatchBuilder(self.settings, self.serving, "").build(
            {WHERE: as_fetched(polled)}, buffered=self.buffered
        )
        for records in batch.records:
            if records.topic == self.settings.kafka.topics.forecasts:
                self.forecasts += [decode_forecast(value) for value in records.values if value is not None]
            if records.topic == self.settings.kafka.topics.dead_letters:
                self.letters += records.values
        self.counts.add(batch.counts)
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


def swapped_through(
    records: list[FetchedRecord], settings: Settings, models: Mapping[int, Forecaster], seed: int
) -> Stream:
    """A stream after all records, whose model was swapped after each 1 to 40 of them."""
    live = Stream(records, settings, models)
    chance = random.Random(seed)
    while live.committed.next < len(records):
        live.take(chance.randint(1, 40))
        live.swap()
    return live


def by_sensor(forecasts: list[Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for forecast in forecasts:
        found.setdefault(forecast.sensor_id, []).append(forecast)
    return found


def evidence(live: Stream) -> Evidence:
    """The topics after the stream, for an audit; the settings have one feature and no experts."""
    settings = live.settings
    decoder, outlook_decoder = ReadingDecoder(settings.features), make_outlook_decoder(settings)
    code: dict[str, int] = {}
    rows: list[tuple[int, int, int, float]] = []  # offset, sensor, time, value
    outlooks: list[LoggedOutlook] = []
    for record in live.records:
        try:
            one = decoder.decode(record.key, record.value)
            number = code.setdefault(one.sensor_id, len(code))
            rows.append((record.offset, number, one.timestamp_us, one.values[0]))
        except Rejected as rejected:
            found = decode_outlook(outlook_decoder, record, rejected)
            if isinstance(found, Outlook):
                outlooks.append(LoggedOutlook(0, record.offset, record.timestamp, found))
            else:
                rows.append((record.offset, -1, 0, np.nan))
    offset, sensor, timestamp_us, value = zip(*rows, strict=True)
    n, m = len(rows), len(live.forecasts)
    readings = ReadingLog(
        sensors=tuple(code),
        partition=np.zeros(n, np.int32),
        offset=np.array(offset),
        sensor=np.array(sensor),
        timestamp_us=np.array(timestamp_us),
        values=np.array(value)[:, None],
        sent_ms=np.zeros(n, np.int64),
        verdict=np.full(n, REJECTED, np.int8),
        outlooks=tuple(outlooks),
    )
    readings = replace(readings, verdict=classify_log(readings, settings.grace, {0: live.committed.next}))
    made = live.forecasts
    forecasts = ForecastLog(
        sensors=tuple(code),
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
            [[[one.quantiles["value"][quantile_key(level)] for level in settings.quantiles]] for one in made], "f4"
        ),
    )
    states = {(0, name): LastState(live.state_versions[name], state) for name, state in live.states.items()}
    letters = {(0, row[0]): 1 for row in rows if row[1] < 0}
    return Evidence(readings, forecasts, states, letters, {}, {0: live.committed.next})
