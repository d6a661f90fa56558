"""The readings of the demo: the history as measured, and a live year with the faults of real sensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from model.acceptance import accepted_mask
from pipeline.files.reading_table import ReadingTable

BUNDLED: Final = Path(__file__).parents[1] / "data" / "beijing.parquet"
BUNDLED_ZONE: Final = "Asia/Shanghai"
SENSOR_COLUMN: Final = "sensor_id"  # column of the sensor ids in the demo's files
LIVE_FROM: Final = datetime(2016, 3, 1, tzinfo=UTC)
OLDER_PART: Final = 0.5  # share of the history for the first model; the second model gets all, and live readings

# Shares of the live readings: enough to show in the counts, too few to change the forecasts' errors.
_LATE_FRACTION: Final = 0.003
_TWICE_FRACTION: Final = 0.003
_LATE_BY_READINGS: Final = (2, 6)  # number of the sensor's newer readings that arrive before a late one
_OUTAGES: Final = 4
_OUTAGE_HOURS: Final = (24, 72)
_LONG_OUTAGE_HOURS: Final = 9 * 24  # longer than max_gap_steps: the state begins from scratch


@dataclass(frozen=True)
class Amounts:
    """How much of the bundled data to use; None is all of it."""

    sensors: int | None = None
    history_days: int | None = None  # days before the live year
    live_days: int | None = None
    seed: int = 1  # seed of the faults


@dataclass(frozen=True)
class LiveReadings:
    """Readings in the order of sending, and the faults among them."""

    frame: pl.DataFrame  # sensor_id, timestamp, one column per feature
    left_out: int
    sent_late: int
    sent_twice: int
    outages: tuple[tuple[str, datetime, datetime], ...]  # sensor, from, until


@dataclass(frozen=True)
class DemoData:
    """The readings to send: the history as two files, the older part first, and the live ones as a table."""

    history: tuple[Path, Path]
    history_readings: tuple[int, int]  # number of readings in each file
    sensors: int
    live: LiveReadings
    table: ReadingTable  # the live readings in sending order
    accepted: int  # live readings that will be accepted


def read_bundled(features: Sequence[str]) -> pl.DataFrame:
    """The bundled readings that have a value: ``sensor_id``, ``timestamp`` (UTC) and the features."""
    values = [pl.col(feature).cast(pl.Float64) for feature in features]
    return (
        pl.scan_parquet(BUNDLED)
        .select(
            pl.col("station").alias("sensor_id"),
            pl.col("timestamp").dt.replace_time_zone(BUNDLED_ZONE).dt.convert_time_zone("UTC"),
            *values,
        )
        .filter(pl.any_horizontal(pl.col(feature).is_not_null() for feature in features))
        .collect()
    )


def prepare(frame: pl.DataFrame, amounts: Amounts, features: Sequence[str], folder: Path) -> DemoData:
    """Cut readings (``sensor_id``, ``timestamp``, ``features``) into a history and live readings with faults."""
    sensors = frame["sensor_id"].unique().sort().head(amounts.sensors or len(frame))
    frame = frame.filter(pl.col("sensor_id").is_in(sensors.implode())).sort("timestamp", "sensor_id")
    history = frame.filter(pl.col("timestamp") < LIVE_FROM)
    if amounts.history_days is not None:
        history = history.filter(pl.col("timestamp") >= LIVE_FROM - timedelta(days=amounts.history_days))
    measured = frame.filter(pl.col("timestamp") >= LIVE_FROM)
    if amounts.live_days is not None:
        measured = measured.filter(pl.col("timestamp") < LIVE_FROM + timedelta(days=amounts.live_days))
    live = disturb(measured, amounts.seed)
    names = live.frame["sensor_id"].unique().sort()
    table = ReadingTable(
        sensors=tuple(names),
        sensor_codes=live.frame["sensor_id"].rank("dense").cast(pl.Int64).to_numpy() - 1,
        timestamp_us=live.frame["timestamp"].dt.timestamp("us").to_numpy(),
        values={name: live.frame[name].fill_null(float("nan")).to_numpy() for name in features},
        notes=(),
    )
    older = round(len(history) * OLDER_PART)
    files = (folder / "history-1.parquet", folder / "history-2.parquet")
    history[:older].write_parquet(files[0])
    history[older:].write_parquet(files[1])
    return DemoData(
        history=files,
        history_readings=(older, len(history) - older),
        sensors=len(sensors),
        live=live,
        table=table,
        accepted=int(accepted_mask(table.sensor_codes, table.timestamp_us).sum()),
    )


def disturb(frame: pl.DataFrame, seed: int) -> LiveReadings:
    """The readings with some left out, some sent late and some sent twice; equal for equal seeds.

    ``frame`` is in order of time. A late reading follows later ones of its sensor; a copy follows its original.
    """
    random = np.random.default_rng(seed)
    sensors = frame["sensor_id"].unique().sort().to_list()
    outages = _outages(frame, sensors, random)
    off = [
        (pl.col("sensor_id") == sensor) & pl.col("timestamp").is_between(since, until, closed="left")
        for sensor, since, until in outages
    ]
    kept = frame.filter(~pl.any_horizontal(off)) if off else frame
    fate = random.random(len(kept))
    late, twice = fate < _LATE_FRACTION, fate > 1 - _TWICE_FRACTION
    # A reading's place in the sending order is its row, and an hour has one row per sensor.
    place = np.arange(len(kept), dtype=np.float64)
    place[late] += len(sensors) * random.integers(*_LATE_BY_READINGS, size=int(late.sum())) + 0.25
    sent = kept.with_columns(pl.Series("place", place))
    again = sent.filter(pl.Series(twice)).with_columns(pl.col("place") + 0.5)
    return LiveReadings(
        frame=pl.concat([sent, again]).sort("place", maintain_order=True).drop("place"),
        left_out=len(frame) - len(kept),
        sent_late=int(late.sum()),
        sent_twice=int(twice.sum()),
        outages=outages,
    )


def _outages(
    frame: pl.DataFrame, sensors: list[str], random: np.random.Generator
) -> tuple[tuple[str, datetime, datetime], ...]:
    """One long outage and some short ones, of sensors and at times drawn at random, within the frame's span."""
    moments = frame["timestamp"].unique().sort()
    found = []
    hours = [_LONG_OUTAGE_HOURS, *random.integers(*_OUTAGE_HOURS, size=_OUTAGES - 1).tolist()]
    for sensor, length in zip(random.permutation(sensors)[: len(hours)].tolist(), hours, strict=False):
        if len(moments) > 3 * length:  # a short run of the demo has no long outages
            first = int(random.integers(length, len(moments) - 2 * length))
            found.append((sensor, moments[first], moments[first + length]))
    return tuple(found)
