"""The sequences that a model is trained and scored on, from the history table or any frame of readings.

The history is never in memory as one frame: the columns that order the readings are read first, then one feature at a
time. Readings are not resampled and windows are not copied; a window is a range of steps.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from model.acceptance import ACCEPTED, LATE, classify
from model.reorder_buffer import GracePeriod, reorder
from model.sequences import Sequences, build_sequences
from pipeline.errors import HistoryError
from pipeline.files.outlook_table import OutlookRecord, rows_behind
from pipeline.files.reading_table import ReadingTable
from pipeline.history.columns import column_of
from pipeline.history.outlook_join import HistoryOutlooks, StepPositions, join_outlooks
from pipeline.history.outlook_rows import outlook_rows
from pipeline.history.table import History
from pipeline.reading_times import implausible_rows
from pipeline.settings import Settings

logger = logging.getLogger("streamgru.windows")

Scalar = TypeVar("Scalar", bound=np.generic)

USUAL_FACTOR: Final = 1.25  # largest ratio of the median interval to the cadence, or its inverse, without a warning


def load_sequences(history: History, settings: Settings, version: int | None = None) -> Sequences:
    """The steps that the stream takes for the readings in the history at a version (by default the newest).

    Sensors are sorted by id. Readings are accepted in offset order, as in the stream. If a sensor has moved to another
    partition, its readings in the earlier partition come first.

    Raises:
        HistoryError: the table is missing, damaged, empty, or lacks a feature of the settings.
    """
    return load_training(history, settings, version).stream


@dataclass(frozen=True)
class TrainingReadings:
    """The readings of a history, as the stream accepts them and as training uses them."""

    stream: Sequences  # the readings that the stream accepts
    trained: Sequences  # with ``training.late = "train"`` all readings in order of time; otherwise the same object
    late: Mapping[str, int]  # sensor -> late readings, which the stream does not accept


def load_training(history: History, settings: Settings, version: int | None = None) -> TrainingReadings:
    """The readings in the history at a version (by default the newest), for training and for scores.

    Raises:
        HistoryError: see ``load_sequences``.
    """
    version = history.version if version is None else version
    found = history.columns(version)
    missing = [name for name in settings.features if name not in found]
    if missing:
        raise HistoryError(
            f"the history table {history.path} has no feature {', '.join(missing)} (its features: "
            f"{', '.join(found) or 'none'}); ingest readings with it first, or remove it from the settings"
        )
    config = settings.outlook_config
    readings, outlook_rows = history.scan(version), None if config is None else history.scan_outlooks(version)
    if history.has_record_timestamps(version):
        is_plausible = ~implausible_rows(history.time_rules(settings.kafka.topics.readings, version))
        readings = readings.filter(is_plausible)
        outlook_rows = None if outlook_rows is None else outlook_rows.filter(is_plausible)
    late: Counter[str] = Counter()
    features, grace, max_gap_steps = settings.features, settings.grace, settings.max_gap_steps
    with history.reading(version):
        outlooks = None
        if config is not None and outlook_rows is not None:
            outlooks = HistoryOutlooks(outlook_rows.collect(), config)
        if settings.forecaster.max_sensors_per_partition is not None:
            readings = _within_sensor_limit(readings, settings.forecaster.max_sensors_per_partition)
        stream = sequences_from_readings(
            readings, features, grace=grace, max_gap_steps=max_gap_steps, late=late, outlooks=outlooks
        )
        trained = stream
        if late and settings.training.late == "train":
            trained = sequences_from_readings(
                readings, features, grace=grace, max_gap_steps=max_gap_steps, by_time=True, outlooks=outlooks
            )
    if not len(stream):
        raise HistoryError(f"the history table {history.path} holds no readings yet; run `streamgru ingest`")
    return TrainingReadings(stream, trained, late)


def _within_sensor_limit(readings: pl.LazyFrame, limit: int) -> pl.LazyFrame:
    """The readings that the stream does not refuse because of too many sensors in their partition.

    Of each partition these are the readings of its first ``limit`` sensors, in the order of offsets.
    """
    first = readings.group_by("partition", "sensor_id").agg(pl.col("offset").min()).collect(engine="streaming")
    for (partition,), sensors in first.sort("offset").group_by("partition"):
        if len(sensors) > limit:
            logger.warning(
                "partition %s of the history has %d sensors, and forecaster.max_sensors_per_partition is %d: readings "
                "of the sensors after the first %d are left out",
                partition,
                len(sensors),
                limit,
                limit,
            )
            known = sensors.sort("offset")["sensor_id"].head(limit)
            readings = readings.filter((pl.col("partition") != partition) | pl.col("sensor_id").is_in(known.implode()))
    return readings


def sequences_from_table(table: ReadingTable, settings: Settings, outlooks: Sequence[OutlookRecord] = ()) -> Sequences:
    """The steps that the stream would take if these readings and outlooks were published together.

    A feature of the settings that the table lacks is missing in every step.

    Args:
        outlooks: in the order of their issue. With any, the readings are in the order of their times.
    """
    # A feature may have any name, also "offset" or "timestamp": within the frame it has a number.
    names = [f"value {i}" for i in range(len(settings.features))]
    missing = np.full(len(table), np.nan)
    values = [table.values.get(feature, missing) for feature in settings.features]
    sensors = pl.Series("sensor_id", table.sensors, pl.String).gather(pl.Series(table.sensor_codes))
    frame = pl.DataFrame([sensors, pl.Series("timestamp", table.timestamp_us), *map(pl.Series, names, values)])
    sequences = sequences_from_readings(
        frame.lazy(),
        names,
        grace=settings.grace,
        max_gap_steps=settings.max_gap_steps,
        outlooks=_outlooks_between(table, outlooks, settings),
    )
    return replace(sequences, features=settings.features)


def _outlooks_between(
    table: ReadingTable, outlooks: Sequence[OutlookRecord], settings: Settings
) -> HistoryOutlooks | None:
    """The outlooks as rows of a history whose only partition has the readings of the table; None without the section.

    The offset of an outlook is that of the reading before it, which it follows.
    """
    config = settings.outlook_config
    if config is None:
        return None
    rows = rows_behind(table, outlooks).tolist()
    found = [(0, row - 1, record.outlook) for row, record in zip(rows, outlooks, strict=True)]
    sent_us = [record.outlook.issued_us for record in outlooks]
    return HistoryOutlooks(outlook_rows(found, config.covariates, sent_us), config)


def usual_interval_us(table: ReadingTable) -> int | None:
    """The median time between consecutive readings of a sensor, over all sensors; None if no sensor has two."""
    order = np.lexsort((table.timestamp_us, table.sensor_codes))
    interval = np.diff(table.timestamp_us[order])[np.diff(table.sensor_codes[order]) == 0]
    interval = interval[interval > 0]  # 0 between duplicates
    return int(np.median(interval)) if len(interval) else None


def odd_interval_us(sequences: Sequences) -> int | None:
    """The median time between readings of the sensor with the most readings; None if it is near the cadence."""
    sensor = int(np.argmax(np.diff(sequences.starts)))
    lo, hi = sequences.span(sensor)
    interval = np.diff(sequences.timestamp_us[lo:hi][sequences.observed[lo:hi]])
    usual_us = int(np.median(interval)) if len(interval) else sequences.cadence_us
    return None if 1 / USUAL_FACTOR <= usual_us / sequences.cadence_us <= USUAL_FACTOR else usual_us


def cadence_warning(sequences: Sequences) -> str | None:
    """A warning if readings do not come about once per cadence, otherwise None."""
    odd_us = odd_interval_us(sequences)
    if odd_us is None:
        return None
    return (
        f"readings usually come {odd_us / 1e6:g} s apart, but the cadence is {sequences.cadence_us / 1e6:g} s. "
        "Forecast steps are one cadence each; set cadence_s near the time between readings for the best forecasts"
    )


def sequences_from_readings(
    readings: pl.LazyFrame,
    features: Sequence[str],
    *,
    grace: GracePeriod,
    max_gap_steps: int,
    by_time: bool = False,
    late: Counter[str] | None = None,
    outlooks: HistoryOutlooks | None = None,
) -> Sequences:
    """The steps for readings in a frame with the history's columns (``column_of``), in any order of rows.

    Readings that are buffered at the end are not stepped. Without an ``offset`` column (a file), row numbers are the
    offsets of one partition. The frame is scanned several times and must return its rows in the same order each time,
    as files do.

    Args:
        by_time: step all readings of a sensor in order of time, without the rules of acceptance. Of readings with the
            same time, the first in offset order is stepped.
        late: counts the late readings of each sensor.
        outlooks: joined to the steps, for a model with outlooks.
    """
    readings = readings.select(
        pl.col("sensor_id"),
        pl.col("timestamp").cast(pl.Datetime("us", "UTC")).to_physical(),
        *_position(readings),
        *(pl.col(column_of(name)).cast(pl.Float64) for name in features),
    )
    ids = readings.select(pl.col("sensor_id").unique()).collect(engine="streaming")["sensor_id"].sort()
    sensor_codes = _column(readings, pl.col("sensor_id").cast(pl.Enum(ids)).to_physical(), np.uint32)
    timestamp_us = _column(readings, pl.col("timestamp"), np.int64)
    order = _offset_order(readings, sensor_codes, timestamp_us)
    codes = sensor_codes[order]
    timestamp_us = timestamp_us[order]
    accepted: NDArray[Any]  # a mask or indices of rows: the readings to step, by sensor
    released: NDArray[np.int64] | None = None  # offsets of the records that made them accepted; None: their own
    if by_time:
        accepted = _time_order(codes, timestamp_us)
    elif grace.is_on:
        reordering = reorder(codes, timestamp_us, _column(readings, pl.col("offset"), np.int64)[order], grace)
        accepted, verdicts, released = reordering.order, reordering.verdicts, reordering.as_of
    else:
        verdicts = classify(codes, timestamp_us)
        accepted = verdicts == ACCEPTED
    if late is not None and not by_time:
        counts = np.bincount(codes[verdicts == LATE], minlength=len(ids))
        late.update({sensor: count for sensor, count in zip(ids.to_list(), counts.tolist(), strict=True) if count})
    codes = codes[accepted]
    starts = np.searchsorted(codes, np.arange(len(ids) + 1)).astype(np.int64)
    order = order[accepted]
    timestamp_us = timestamp_us[accepted]
    del sensor_codes, accepted
    offsets = _column(readings, pl.col("offset"), np.int64)[order]

    # The layout comes first and has no features, so that each value is copied only once, to its step.
    layout = build_sequences(
        ids.to_list(),
        starts,
        timestamp_us,
        np.empty((len(order), 0)),
        offsets,
        features=(),
        cadence_us=grace.cadence_us,
        max_gap_steps=max_gap_steps,
    )
    if outlooks is not None:
        partition = _column(readings, pl.col("partition"), np.int32)[order]
        positions = StepPositions(codes, partition, offsets if released is None else released)
        layout = join_outlooks(layout, positions.in_order() if by_time else positions, outlooks)
    del timestamp_us, starts, codes, offsets, released
    values = np.full((len(layout), len(features)), np.nan)
    place = np.flatnonzero(layout.observed)
    for number, name in enumerate(features):
        values[place, number] = _column(readings, pl.col(column_of(name)), np.float64)[order]
    return replace(layout, values=values, features=tuple(features))


def _time_order(codes: NDArray[np.uint32], timestamp_us: NDArray[np.int64]) -> NDArray[np.intp]:
    """The places of the readings by sensor and time, without those that repeat a time of their sensor."""
    order = np.lexsort((timestamp_us, codes))  # stable: of equal times the first comes first
    codes, timestamp_us = codes[order], timestamp_us[order]
    is_first = np.ones(len(order), np.bool_)
    is_first[1:] = (codes[1:] != codes[:-1]) | (timestamp_us[1:] != timestamp_us[:-1])
    return order[is_first]


def _position(readings: pl.LazyFrame) -> list[pl.Expr]:
    if "offset" in readings.collect_schema():
        return [pl.col("partition"), pl.col("offset")]
    return [pl.lit(0, pl.Int32).alias("partition"), pl.row_index("offset").cast(pl.Int64)]


def _offset_order(
    readings: pl.LazyFrame, sensor_codes: NDArray[np.uint32], timestamp_us: NDArray[np.int64]
) -> NDArray[np.intp]:
    """Row numbers by sensor, partition and offset; a sensor's partitions by the time of their middle reading."""
    partition = _column(readings, pl.col("partition"), np.int32)
    offset = _column(readings, pl.col("offset"), np.int64)
    order = np.lexsort((offset, partition, sensor_codes))
    del offset
    codes = sensor_codes[order]
    is_next_sensor = np.diff(codes) != 0
    is_next_partition = ~is_next_sensor & (np.diff(partition[order]) != 0)
    if not is_next_partition.any():
        return order  # every sensor is in one partition
    firsts = np.flatnonzero(np.append(True, is_next_sensor | is_next_partition))
    rank = np.empty(len(firsts), np.intp)
    ends = np.append(firsts[1:], len(order))
    middle_us = timestamp_us[order[(firsts + ends) // 2]]  # the middle reading: one wrong clock does not move it
    rank[np.lexsort((middle_us, codes[firsts]))] = np.arange(len(firsts))
    return order[np.argsort(np.repeat(rank, ends - firsts), kind="stable")]


def _column(readings: pl.LazyFrame, expression: pl.Expr, dtype: type[Scalar]) -> NDArray[Scalar]:
    """One column as an array; nulls in a float column become NaN."""
    column = readings.select(expression.alias("column")).collect(engine="streaming")["column"]
    array: NDArray[Scalar] = column.to_numpy().astype(dtype, copy=False)
    return array
