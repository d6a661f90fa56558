"""Counts what a forecaster did: was there exactly one forecast, in order, for every accepted reading?

``read_readings`` and ``read_forecasts`` take the two topics into columns with a reader of their own (read_committed, no
consumer group: auditing never moves anybody's offsets); ``audit`` is a pure function of the two. The readings are
decoded and accepted by the rules that the stream itself uses (``ReadingDecoder``, ``model.rules.classify``).
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

import kafka.errors as client_errors
import numpy as np
from kafka import TopicPartition
from numpy.typing import NDArray

from model.rules import classify
from pipeline.errors import BrokerUnreachable, KafkaError
from pipeline.kafka import make_admin, make_consumer, partition_count, translated
from pipeline.messages import ReadingDecoder, Rejected, decode_forecast, microseconds, quantile_key
from pipeline.settings import Settings

ACCEPTED: Final = 0
DUPLICATE: Final = 1
LATE: Final = 2
REJECTED: Final = 3

_EXAMPLES: Final = 5  # positions named per kind of fault: enough to look at, few enough to print
_STALLED_S: Final = 30.0  # a broker that has the records delivers some within this time
_POLL_RECORDS: Final = 10_000

_NO_COORDINATOR_YET: Final = (
    client_errors.CoordinatorNotAvailableError,
    client_errors.CoordinatorLoadInProgressError,
    client_errors.NotCoordinatorError,
)

Offsets = Mapping[int, int]  # partition -> offset


@dataclass(frozen=True)
class ReadingLog:
    """The readings topic in (partition, offset) order; ``sensor`` indexes ``sensors`` and is -1 where rejected."""

    sensors: tuple[str, ...]
    partition: NDArray[np.int32]
    offset: NDArray[np.int64]
    sensor: NDArray[np.int64]
    timestamp_us: NDArray[np.int64]
    values: NDArray[np.float64]  # (n, features), NaN where missing
    sent_ms: NDArray[np.int64]  # the record's timestamp: when it was sent
    verdict: NDArray[np.int8]  # ACCEPTED, DUPLICATE, LATE or REJECTED
    reasons: dict[str, int] = field(default_factory=dict)  # rejected readings by reason

    def __len__(self) -> int:
        return len(self.offset)

    def take(self, mask: NDArray[np.bool_]) -> "ReadingLog":
        """The rows where ``mask`` is true; ``reasons`` stay those of all."""
        return _rows_of(self, mask)


@dataclass(frozen=True)
class ForecastLog:
    """The forecasts topic in (partition, offset) order."""

    sensors: tuple[str, ...]
    partition: NDArray[np.int32]
    offset: NDArray[np.int64]
    sensor: NDArray[np.int64]
    issued_us: NDArray[np.int64]
    input_offset: NDArray[np.int64]
    input_partition: NDArray[np.int32]
    version: NDArray[np.int64]
    warm: NDArray[np.bool_]
    sent_ms: NDArray[np.int64]
    origin: NDArray[np.int64] | None = None  # of the state behind it, and its steps; where they were read
    steps: NDArray[np.int64] | None = None
    quantiles: NDArray[np.float32] | None = None  # (n, targets, levels, horizon), where asked for

    def __len__(self) -> int:
        return len(self.offset)

    def take(self, mask: NDArray[np.bool_]) -> "ForecastLog":
        """The rows where ``mask`` is true."""
        return _rows_of(self, mask)


_Log = TypeVar("_Log", ReadingLog, ForecastLog)


def _rows_of(log: _Log, mask: NDArray[np.bool_]) -> _Log:
    columns: dict[str, Any] = {
        name: column[mask] for name, column in vars(log).items() if isinstance(column, np.ndarray)
    }
    return replace(log, **columns)


@dataclass(frozen=True)
class Audit:
    """The outcome: ``lost`` and ``twice`` must be 0, and so must ``out_of_order`` and ``unexpected``."""

    readings: int
    accepted: int
    duplicates: int
    late: int
    rejected: int
    forecasts: int
    lost: int
    twice: int
    out_of_order: int
    unexpected: int  # follow no accepted reading of that sensor and time
    examples: dict[str, list[str]]  # kind of fault -> some positions on the readings topic

    @property
    def exactly_once(self) -> bool:
        """Whether every accepted reading has exactly one forecast, in order, and there are no others."""
        return self.lost == self.twice == self.out_of_order == self.unexpected == 0


def audit(readings: ReadingLog, forecasts: ForecastLog, starts: Offsets) -> Audit:
    """What became of the readings from ``starts`` on (by partition; 0 where not named).

    ``readings`` must reach back to the beginning of the topic, or acceptance (later than every earlier reading of the
    sensor) could not be told; readings before ``starts`` are not counted, nor are forecasts that follow them.
    """
    due = _at_or_after(readings.partition, readings.offset, starts)
    accepted = readings.verdict == ACCEPTED
    counted = _at_or_after(forecasts.input_partition, forecasts.input_offset, starts)

    row, found = find(readings, forecasts.input_partition, forecasts.input_offset)
    translate = translation(forecasts.sensors, readings.sensors)
    fits = found.copy()
    fits[found] = (
        accepted[row[found]]
        & (readings.sensor[row[found]] == translate[forecasts.sensor[found]])
        & (readings.timestamp_us[row[found]] == forecasts.issued_us[found])
        & (readings.partition[row[found]] == forecasts.partition[found])
    )
    times = np.bincount(row[fits & counted], minlength=len(readings))
    lost = due & accepted & (times == 0)
    repeated = times > 1
    disordered = _out_of_order(forecasts) & fits & counted
    unexpected = ~fits & counted
    return Audit(
        readings=int(due.sum()),
        accepted=int((due & accepted).sum()),
        duplicates=int((due & (readings.verdict == DUPLICATE)).sum()),
        late=int((due & (readings.verdict == LATE)).sum()),
        rejected=int((due & (readings.verdict == REJECTED)).sum()),
        forecasts=int(counted.sum()),
        lost=int(lost.sum()),
        twice=int((times[repeated] - 1).sum()),
        out_of_order=int(disordered.sum()),
        unexpected=int(unexpected.sum()),
        examples={
            kind: positions
            for kind, positions in {
                "lost": _name(readings.partition[lost], readings.offset[lost]),
                "twice": _name(readings.partition[repeated], readings.offset[repeated]),
                "out of order": _name(forecasts.input_partition[disordered], forecasts.input_offset[disordered]),
                "unexpected": _name(forecasts.input_partition[unexpected], forecasts.input_offset[unexpected]),
            }.items()
            if positions
        },
    )


def _at_or_after(partition: NDArray[np.int32], offset: NDArray[np.int64], starts: Offsets) -> NDArray[np.bool_]:
    first = np.zeros(max([int(partition.max(initial=0)), *starts]) + 1, dtype=np.int64)
    for number, start in starts.items():
        first[number] = start
    return np.asarray(offset >= first[partition])


def find(
    readings: ReadingLog, partition: NDArray[np.int32], offset: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The row of the reading at each position, and whether there is one."""
    if not len(readings):
        return np.zeros(len(offset), dtype=np.int64), np.zeros(len(offset), dtype=np.bool_)
    known = _position(readings.partition, readings.offset)
    wanted = _position(partition, offset)
    row = np.searchsorted(known, wanted).clip(max=len(known) - 1)
    return row, known[row] == wanted


def _position(partition: NDArray[np.int32], offset: NDArray[np.int64]) -> NDArray[np.int64]:
    """One sortable number per (partition, offset): offsets stay below 2**48."""
    return (partition.astype(np.int64) << 48) | offset


def translation(names: Sequence[str], into: Sequence[str]) -> NDArray[np.int64]:
    """The index in ``into`` of each name, -2 (equal to no sensor's index, nor to a rejected one's -1) where absent."""
    index = {name: number for number, name in enumerate(into)}
    return np.array([index.get(name, -2) for name in names], dtype=np.int64)


def _out_of_order(forecasts: ForecastLog) -> NDArray[np.bool_]:
    """Which forecasts follow, within their sensor and partition, one of a later reading."""
    order = np.lexsort((forecasts.offset, forecasts.partition, forecasts.sensor))
    sensor, partition = forecasts.sensor[order], forecasts.partition[order]
    begins = np.flatnonzero((np.diff(sensor, prepend=-1) != 0) | (np.diff(partition, prepend=-1) != 0))
    disordered = np.zeros(len(forecasts), dtype=np.bool_)
    for rows in np.split(order, begins):
        inputs = forecasts.input_offset[rows]
        disordered[rows] = inputs < np.maximum.accumulate(inputs)
    return disordered


def _name(partition: NDArray[np.int32], offset: NDArray[np.int64]) -> list[str]:
    return [f"partition {p} offset {o}" for p, o in zip(partition[:_EXAMPLES], offset[:_EXAMPLES], strict=True)]


# --- reading the topics -----------------------------------------------------------------------------------------------


def topic_ends(settings: Settings, topic: str) -> dict[int, int]:
    """The end of each partition now, as a read_committed reader sees it.

    Raises:
        KafkaError: no broker answers, or there is no such topic.
    """
    with translated(f"looking up the ends of topic {topic}", settings):
        consumer = make_consumer(settings)
        try:
            return {tp.partition: end for tp, end in consumer.end_offsets(_partitions(consumer, topic)).items()}
        finally:
            consumer.close()


def topic_starts(settings: Settings, topic: str) -> dict[int, int]:
    """The first offset that each partition still has.

    Raises:
        KafkaError: no broker answers, or there is no such topic.
    """
    with translated(f"looking up the beginnings of topic {topic}", settings):
        consumer = make_consumer(settings)
        try:
            found = consumer.beginning_offsets(_partitions(consumer, topic))
            return {tp.partition: start for tp, start in found.items()}
        finally:
            consumer.close()


def offsets_at(settings: Settings, topic: str, moment_us: int) -> dict[int, int]:
    """In each partition the offset of the first record sent at that time or later; the end where there is none.

    Raises:
        KafkaError: no broker answers, or there is no such topic.
    """
    with translated(f"looking up offsets of topic {topic} by time", settings):
        consumer = make_consumer(settings)
        try:
            partitions = _partitions(consumer, topic)
            ends = consumer.end_offsets(partitions)
            found = consumer.offsets_for_times(dict.fromkeys(partitions, max(0, moment_us // 1_000)))
            return {tp.partition: ends[tp] if found.get(tp) is None else found[tp].offset for tp in partitions}
        finally:
            consumer.close()


def committed_offsets(settings: Settings) -> dict[int, int]:
    """The forecasters' committed offset of each partition of the readings topic; partitions without one are absent.

    While the broker prepares to look after groups, which is after its start, there are none.

    Raises:
        KafkaError: no broker answers.
    """
    group, topic = settings.forecaster.group_id, settings.kafka.topics.readings
    with translated(f"looking up the offsets of group {group}", settings):
        admin = make_admin(settings)
        try:
            found = admin.list_group_offsets([group])[group]
        except _NO_COORDINATOR_YET:
            return {}
        finally:
            admin.close()
    return {tp.partition: at.offset for tp, at in found.items() if tp.topic == topic and at.offset >= 0}


def read_readings(settings: Settings, ends: Offsets | None = None) -> ReadingLog:
    """The readings topic from its beginning to ``ends`` (now, where not given), each reading judged.

    Raises:
        KafkaError: no broker answers, the topic is missing, or the records stop coming.
    """
    decoder = ReadingDecoder(settings.features)
    sensors: dict[str, int] = {}
    reasons: dict[str, int] = {}
    nothing = (float("nan"),) * len(settings.features)
    columns: list[tuple[int, int, int, int, int]] = []  # partition, offset, sensor, timestamp_us, sent_ms
    values: list[tuple[float, ...]] = []
    for record in read_range(settings, settings.kafka.topics.readings, {}, ends):
        try:
            reading = decoder.decode(record.key, record.value)
        except Rejected as rejected:
            reasons[rejected.reason] = reasons.get(rejected.reason, 0) + 1
            columns.append((record.partition, record.offset, -1, 0, record.timestamp))
            values.append(nothing)
        else:
            sensor = sensors.setdefault(reading.sensor_id, len(sensors))
            columns.append((record.partition, record.offset, sensor, reading.timestamp_us, record.timestamp))
            values.append(reading.values)
    table = np.array(columns, dtype=np.int64).reshape(-1, 5)
    measured = np.array(values, dtype=np.float64).reshape(-1, len(settings.features))
    order = np.lexsort((table[:, 1], table[:, 0]))
    table, measured = table[order], measured[order]
    return ReadingLog(
        sensors=tuple(sensors),
        partition=table[:, 0].astype(np.int32),
        offset=table[:, 1],
        sensor=table[:, 2],
        timestamp_us=table[:, 3],
        values=measured,
        sent_ms=table[:, 4],
        verdict=_verdicts(table[:, 2], table[:, 3]),
        reasons=reasons,
    )


def _verdicts(sensor: NDArray[np.int64], timestamp_us: NDArray[np.int64]) -> NDArray[np.int8]:
    verdict = np.full(len(sensor), REJECTED, dtype=np.int8)
    decoded = sensor >= 0
    verdict[decoded] = classify(sensor[decoded], timestamp_us[decoded])
    return verdict


def read_forecasts(settings: Settings, ends: Offsets | None = None, *, quantiles: bool = False) -> ForecastLog:
    """The committed forecasts from the topic's beginning to ``ends``, on request with their quantiles.

    Raises:
        KafkaError: no broker answers, the topic is missing, the records stop coming, or one is no forecast.
    """
    sensors: dict[str, int] = {}
    columns: list[tuple[int, ...]] = []
    found: list[NDArray[np.float32]] = []
    levels = [quantile_key(level) for level in settings.quantiles]
    for record in read_range(settings, settings.kafka.topics.forecasts, {}, ends):
        try:
            forecast = decode_forecast(record.value)
            if quantiles:
                by_target = [[forecast.quantiles[target][level] for level in levels] for target in settings.targets]
                found.append(np.array(by_target, dtype=np.float32))
        except (ValueError, KeyError, TypeError) as error:
            raise KafkaError(
                f"the record at offset {record.offset} of {record.topic}, partition {record.partition}, is no forecast "
                f"for these settings: {error}. Does another program write to this topic?"
            ) from error
        columns.append(
            (
                record.partition,
                record.offset,
                sensors.setdefault(forecast.sensor_id, len(sensors)),
                microseconds(forecast.issued_at),
                forecast.input.offset,
                forecast.input.partition,
                forecast.model.version,
                forecast.state.warm,
                record.timestamp,
                forecast.state.origin,
                forecast.state.steps,
            )
        )
    table = np.array(columns, dtype=np.int64).reshape(-1, 11)
    order = np.lexsort((table[:, 1], table[:, 0]))
    table = table[order]
    shape = (len(settings.targets), len(levels), settings.horizon_steps)
    return ForecastLog(
        sensors=tuple(sensors),
        partition=table[:, 0].astype(np.int32),
        offset=table[:, 1],
        sensor=table[:, 2],
        issued_us=table[:, 3],
        input_offset=table[:, 4],
        input_partition=table[:, 5].astype(np.int32),
        version=table[:, 6],
        warm=table[:, 7].astype(np.bool_),
        sent_ms=table[:, 8],
        origin=table[:, 9],
        steps=table[:, 10],
        quantiles=np.array(found, dtype=np.float32).reshape(-1, *shape)[order] if quantiles else None,
    )


def read_range(settings: Settings, topic: str, starts: Offsets, ends: Offsets | None) -> Iterator[Any]:
    """The records of a topic from ``starts`` (a partition's beginning where not named) to ``ends`` (now, likewise).

    Records of one partition come in offset order, partitions in any order.

    Raises:
        KafkaError: no broker answers, the topic is missing, or the records stop coming.
    """
    with translated(f"reading topic {topic}", settings):
        consumer = make_consumer(settings, max_poll_records=_POLL_RECORDS)
        try:
            partitions = _partitions(consumer, topic)
            now = consumer.end_offsets(partitions)
            limits = now if ends is None else {tp: ends.get(tp.partition, 0) for tp in partitions}
            consumer.assign(partitions)
            consumer.seek_to_beginning(*partitions)
            for tp in partitions:
                if tp.partition in starts:
                    consumer.seek(tp, starts[tp.partition])
            yield from _poll_until(consumer, limits)
        finally:
            consumer.close()


def _poll_until(consumer: Any, limits: dict[Any, int]) -> Iterator[Any]:
    pending = set(limits)
    deadline = time.monotonic() + _STALLED_S
    while True:
        # Only positions tell the end: markers of transactions take offsets too, and are never delivered.
        done = {tp for tp in pending if consumer.position(tp) >= limits[tp]}
        if done:
            pending -= done
            consumer.pause(*done)
        if not pending:
            return
        batches = consumer.poll(timeout_ms=500)
        if batches:
            deadline = time.monotonic() + _STALLED_S
        elif time.monotonic() > deadline:
            where = ", ".join(f"{tp.topic}-{tp.partition} at {consumer.position(tp)}" for tp in sorted(pending))
            raise BrokerUnreachable(f"the broker delivered nothing for {_STALLED_S:g} s: {where}. Is it up?")
        for tp, records in batches.items():
            yield from (record for record in records if record.offset < limits[tp])


def _partitions(consumer: Any, topic: str) -> list[Any]:
    return [TopicPartition(topic, number) for number in range(partition_count(consumer, topic))]
