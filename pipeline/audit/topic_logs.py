"""Reads whole topics into columns, with a reader of its own: read_committed and no group, so nobody's offsets move.

Readings are decoded and judged by the rules that the stream itself uses (``ReadingDecoder``, ``findings.judged``).
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Final, NamedTuple

import kafka.errors as client_errors
import numpy as np
from kafka import TopicPartition
from numpy.typing import NDArray

from model.experts import experts_of
from pipeline.audit.findings import REJECTED, ForecastLog, Offsets, ReadingLog, judged
from pipeline.audit.weights import published_weights
from pipeline.errors import BrokerUnreachable, KafkaError
from pipeline.forecaster.position import Committed
from pipeline.kafka.batch_consumer import Headers, read_fast
from pipeline.kafka.clients import make_admin, make_consumer, partition_count, translated
from pipeline.messages import ReadingDecoder, Rejected, decode_forecast, microseconds, quantile_key
from pipeline.settings import Settings

_STALLED_S: Final = 30.0  # a broker that has the records delivers some within this time
_POLL_RECORDS: Final = 10_000
_NO_COORDINATOR_YET: Final = (
    client_errors.CoordinatorNotAvailableError,
    client_errors.CoordinatorLoadInProgressError,
    client_errors.NotCoordinatorError,
)


class LoggedRecord(NamedTuple):
    """A record with its place, behind which stands what ``FetchedRecord`` has."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    offset: int
    headers: Headers
    timestamp: int  # ms since the epoch


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
    """The next offset of each partition of the readings topic, as committed; partitions without one are absent.

    What is held lies before. While the broker prepares to look after groups, which is after its start, there are none.

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
    return {
        tp.partition: Committed.of(at).position.next for tp, at in found.items() if tp.topic == topic and at.offset >= 0
    }


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
    log = ReadingLog(
        sensors=tuple(sensors),
        partition=table[:, 0].astype(np.int32),
        offset=table[:, 1],
        sensor=table[:, 2],
        timestamp_us=table[:, 3],
        values=measured,
        sent_ms=table[:, 4],
        verdict=np.full(len(table), REJECTED, np.int8),
        reasons=reasons,
    )
    limits = ends if ends is not None else {partition: offset + 1 for partition, offset in table[:, :2].tolist()}
    return replace(log, verdict=judged(log, settings.grace, limits))


def read_forecasts(settings: Settings, ends: Offsets | None = None, *, numbers: bool = False) -> ForecastLog:
    """The committed forecasts from the topic's beginning to ``ends``, on request with their quantiles and weights.

    Those made under other settings have other targets, levels and horizons: they are kept apart, in ``foreign``.

    Raises:
        KafkaError: no broker answers, the topic is missing, the records stop coming, or one is no forecast.
    """
    sensors: dict[str, int] = {}
    columns: list[tuple[int, ...]] = []
    foreign: list[tuple[int, ...]] = []
    fingerprints: dict[str, int] = {}
    quantiles: list[NDArray[np.float32]] = []
    weights: list[NDArray[np.float64]] = []
    experts = experts_of(settings.adaptation.level)
    levels = [quantile_key(level) for level in settings.quantiles]
    shape = (len(settings.targets), len(levels), settings.horizon_steps)
    present = settings.fingerprint
    for record in read_range(settings, settings.kafka.topics.forecasts, {}, ends):
        try:
            forecast = decode_forecast(record.value or b"")
            is_ours = forecast.settings == present
            if numbers and is_ours:
                by_target = [[forecast.quantiles[target][level] for level in levels] for target in settings.targets]
                quantiles.append(np.array(by_target, dtype=np.float32).reshape(shape))
                weights.append(published_weights(forecast, settings.targets, experts))
        except (ValueError, KeyError, TypeError) as error:
            raise KafkaError(
                f"the record at offset {record.offset} of {record.topic}, partition {record.partition}, is no forecast "
                f"for these settings: {error}. Does another program write to this topic?"
            ) from error
        if not is_ours:
            fingerprints[forecast.settings] = fingerprints.get(forecast.settings, 0) + 1
        (columns if is_ours else foreign).append(
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
    log, order = _in_order(columns, sensors)
    return replace(
        log,
        quantiles=np.array(quantiles, dtype=np.float32).reshape(-1, *shape)[order] if numbers else None,
        weights=np.array(weights).reshape(-1, len(settings.targets), len(experts))[order] if numbers else None,
        foreign=replace(_in_order(foreign, sensors)[0], fingerprints=fingerprints),
    )


def _in_order(columns: list[tuple[int, ...]], sensors: Iterable[str]) -> tuple[ForecastLog, NDArray[np.int64]]:
    """Forecasts in (partition, offset) order, and the order that makes it."""
    table = np.array(columns, dtype=np.int64).reshape(-1, 11)
    order = np.lexsort((table[:, 1], table[:, 0]))
    table = table[order]
    log = ForecastLog(
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
    )
    return log, order


def read_range(settings: Settings, topic: str, starts: Offsets, ends: Offsets | None) -> Iterator[LoggedRecord]:
    """The records of a topic from ``starts`` (a partition's beginning where not named) to ``ends`` (now, likewise).

    Records of one partition come in offset order, partitions in any order.

    Raises:
        KafkaError: no broker answers, the topic is missing, or the records stop coming.
    """
    with translated(f"reading topic {topic}", settings):
        consumer = read_fast(make_consumer(settings, max_poll_records=_POLL_RECORDS))
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


def _poll_until(consumer: Any, limits: dict[Any, int]) -> Iterator[LoggedRecord]:
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
            yield from (LoggedRecord(*tp, *record) for record in records if record.offset < limits[tp])


def _partitions(consumer: Any, topic: str) -> list[Any]:
    return [TopicPartition(topic, number) for number in range(partition_count(consumer, topic))]
