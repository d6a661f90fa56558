"""Reads whole topics into columns: the readings and the forecasts.

Readings are decoded and classified by the rules of the stream (``make_decoder``, ``pipeline.reading_times``,
``delivery.classify_log``).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from model.experts import experts_of
from pipeline.audit.delivery import REJECTED, ForecastLog, ReadingLog, classify_log
from pipeline.audit.expert_weights import published_weights
from pipeline.audit.outlook_log import LoggedOutlook, are_implausible
from pipeline.dead_letter_form import IMPLAUSIBLE
from pipeline.errors import KafkaError
from pipeline.kafka.time_rule_log import read_time_rules
from pipeline.kafka.topic_reader import read_topic
from pipeline.messages import Rejected, decode_forecast, microseconds, quantile_key
from pipeline.outlook_messages import Outlook, decode_outlook, make_outlook_decoder
from pipeline.reading_times import NAMED_SENSORS, TimeRules, find_implausible
from pipeline.readings_format.decoder import make_decoder
from pipeline.settings import Settings


def read_readings(settings: Settings) -> ReadingLog:
    """The classified readings of the topic from its beginning to its present end.

    Raises:
        KafkaError: no broker answers, the topic is missing, or the records stop coming.
    """
    decoder, outlook_decoder = make_decoder(settings), make_outlook_decoder(settings)
    rules_of = read_time_rules(settings)
    sensors: dict[str, int] = {}
    reasons: dict[str, int] = {}
    columns: list[tuple[int, ...]] = []  # partition, offset, sensor, timestamp_us, sent_ms, records
    values: list[tuple[float, ...]] = []
    outlooks: list[LoggedOutlook] = []
    missing = (np.nan,) * len(settings.features)
    for record in read_topic(settings, settings.kafka.topics.readings, {}, None):
        try:
            reading = decoder.decode(record.key, record.value, record.headers, record.timestamp)
        except Rejected as rejected:
            found = decode_outlook(outlook_decoder, record, rejected)
            if isinstance(found, Outlook):
                outlooks.append(LoggedOutlook(record.partition, record.offset, record.timestamp, found))
                continue
            reasons[found.reason] = reasons.get(found.reason, 0) + found.records
            columns.append((record.partition, record.offset, -1, 0, record.timestamp, found.records))
            values.append(missing)
        else:
            code = sensors.setdefault(reading.sensor_id, len(sensors))
            columns.append((record.partition, record.offset, code, reading.timestamp_us, record.timestamp, 1))
            values.append(reading.values)
    bad_outlooks = are_implausible(outlooks, rules_of)
    for each in compress(outlooks, bad_outlooks):
        columns.append((each.partition, each.offset, -1, 0, each.sent_ms, 1))
        values.append(missing)
    table, order = _in_order(columns, 6)
    implausible = _find_implausible(table, rules_of)
    names = tuple(sensors)
    counts = Counter(names[code] for code in table[implausible, 2].tolist())
    counts.update(each.outlook.name for each in compress(outlooks, bad_outlooks))
    if counts:
        reasons[IMPLAUSIBLE] = counts.total()
    table[implausible, 2] = -1
    partition, offset, sensor, timestamp_us, sent_ms, records = table.T
    measured = np.array(values, dtype=np.float64).reshape(-1, len(settings.features))[order]
    verdict = np.full(len(table), REJECTED, np.int8)
    log = ReadingLog(
        tuple(sensors),
        partition.astype(np.int32),
        offset,
        sensor,
        timestamp_us,
        measured,
        sent_ms,
        verdict,
        reasons,
        records,
        dict(counts.most_common(NAMED_SENSORS)),
        tuple(each for each, is_bad in zip(outlooks, bad_outlooks, strict=True) if not is_bad),
    )
    ends = {number: last + 1 for number, last in table[:, :2].tolist()}
    return replace(log, verdict=classify_log(log, settings.grace, ends))


def _find_implausible(table: NDArray[np.int64], rules_of: Mapping[int, TimeRules]) -> NDArray[np.bool_]:
    """(n,) which rows of the columns in ``read_readings`` are readings with an implausible time."""
    partition, offset, sensor, timestamp_us, sent_ms = table.T[:5]
    implausible = np.zeros(len(table), np.bool_)
    for number, rules in rules_of.items():
        rows = np.flatnonzero((partition == number) & (sensor >= 0))
        implausible[rows] = find_implausible(timestamp_us[rows], sent_ms[rows], offset[rows], rules)
    return implausible


def read_forecasts(settings: Settings, *, numbers: bool) -> ForecastLog:
    """The committed forecasts from the topic's beginning to its present end.

    Forecasts made under other settings may have other targets, levels or horizons. They form the ``foreign`` log.

    Args:
        numbers: whether to read quantiles and weights.

    Raises:
        KafkaError: no broker answers, the topic is missing, the records stop coming, or one is not a forecast.
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
    for record in read_topic(settings, settings.kafka.topics.forecasts, {}, None):
        try:
            forecast = decode_forecast(record.value or b"")
            is_ours = forecast.settings == present
            if numbers and is_ours:
                by_target = [[forecast.quantiles[target][level] for level in levels] for target in settings.targets]
                quantiles.append(np.array(by_target, dtype=np.float32).reshape(shape))
                weights.append(published_weights(forecast, settings.targets, experts))
        except (ValueError, KeyError, TypeError) as error:
            raise KafkaError(
                f"the record at offset {record.offset} of {record.topic}, partition {record.partition}, is not a "
                f"forecast of these settings: {error}. Does another program write to this topic?"
            ) from error
        if not is_ours:
            fingerprints[forecast.settings] = fingerprints.get(forecast.settings, 0) + 1
        (columns if is_ours else foreign).append(
            (  # in the order of the fields of ForecastLog
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
    log, order = _forecast_log(columns, sensors)
    return replace(
        log,
        quantiles=np.array(quantiles, dtype=np.float32).reshape(-1, *shape)[order] if numbers else None,
        weights=np.array(weights).reshape(-1, len(settings.targets), len(experts))[order] if numbers else None,
        foreign=replace(_forecast_log(foreign, sensors)[0], fingerprints=fingerprints),
    )


def _forecast_log(rows: list[tuple[int, ...]], sensors: Iterable[str]) -> tuple[ForecastLog, NDArray[np.int64]]:
    table, order = _in_order(rows, 11)
    log = ForecastLog(tuple(sensors), *table.T)
    partition, input_partition = log.partition.astype(np.int32), log.input_partition.astype(np.int32)
    return replace(log, partition=partition, input_partition=input_partition, warm=log.warm.astype(np.bool_)), order


def _in_order(rows: Sequence[tuple[int, ...]], width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(n, width) the rows sorted by their first two columns, partition and offset; and the permutation."""
    table = np.array(rows, dtype=np.int64).reshape(-1, width)
    order = np.lexsort((table[:, 1], table[:, 0]))
    return table[order], order
