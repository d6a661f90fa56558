"""Forecasts of one commit as flat rows: one per target and step, with the columns of ``pipeline.flat_forecasts``."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np
import polars as pl

from pipeline.flat_forecasts import quantile_column
from pipeline.messages import Forecast, decode_forecast, microseconds
from pipeline.unreadable_batch import UnreadableBatch

_LATEST_US: Final = 253_402_300_800_000_000  # the end of the year 9999


class ForecastChunk:
    """Decodes records of the forecasts topic into rows, one commit after another.

    ``left_out`` counts records that are not forecasts, over all commits: another producer wrote them.
    """

    def __init__(self) -> None:
        self.left_out: Counter[str] = Counter()
        self._rows = 0
        self._forecasts: list[tuple[int, int, Forecast]] = []  # (partition, offset, forecast)

    def __len__(self) -> int:
        return self._rows

    def add(self, partition: int, records: Sequence[Any]) -> int:
        """Decode a partition's next records, and return the number of rows in the chunk."""
        for record in records:
            try:
                forecast = decode_forecast(record.value or b"")
            except (msgspec.MsgspecError, UnicodeError, RecursionError):
                batch = record.value
                if isinstance(batch, UnreadableBatch):
                    self.left_out[batch.reason] += batch.records
                else:
                    self.left_out["not a forecast"] += 1
                continue
            if not _has_rows(forecast):
                self.left_out["not a forecast"] += 1
                continue
            self._forecasts.append((partition, record.offset, forecast))
            self._rows += sum(len(next(iter(levels.values()))) for levels in forecast.quantiles.values())
        return self._rows

    def take(self) -> pl.DataFrame:
        """The rows, with ``partition`` and ``offset`` of the forecast's own record; the chunk is empty afterwards."""
        of_shape: dict[tuple[Any, ...], list[tuple[int, int, Forecast]]] = {}
        for entry in self._forecasts:
            quantiles = entry[2].quantiles
            shape = tuple(
                (target, tuple((level, len(numbers)) for level, numbers in levels.items()))
                for target, levels in quantiles.items()
            )
            of_shape.setdefault(shape, []).append(entry)
        self._forecasts, self._rows = [], 0
        frames = [
            _rows_of_target(entries, target, [level for level, _ in levels], max(length for _, length in levels))
            for shape, entries in of_shape.items()
            for target, levels in shape
        ]
        if not frames:
            return _rows_of_target([], "", [], 1)
        return pl.concat(frames, how="diagonal").sort("partition", "offset", "target", "step")


def _has_rows(forecast: Forecast) -> bool:
    """Whether a forecast fits the table; records of other producers may have the form of a forecast only."""
    for levels in forecast.quantiles.values():
        try:
            columns = {quantile_column(float(level)) for level in levels if 0.0 < float(level) < 1.0}
        except ValueError:
            return False
        lengths = {len(numbers) for numbers in levels.values()}
        if len(columns) != len(levels) or len(lengths) != 1 or 0 in lengths:
            return False
        end_us = microseconds(forecast.issued_at) + max(lengths) * forecast.cadence_s * 1e6
        if not forecast.cadence_s > 0.0 or not end_us < _LATEST_US:
            return False
    source = forecast.input
    return all(0 <= number < 2**31 for number in (forecast.model.version, source.partition)) and (
        0 <= source.offset < 2**63
    )


def _rows_of_target(
    entries: Sequence[tuple[int, int, Forecast]], target: str, levels: Sequence[str], horizon: int
) -> pl.DataFrame:
    count = len(entries)
    forecasts = [forecast for _, _, forecast in entries]
    issued = np.array([microseconds(forecast.issued_at) for forecast in forecasts], dtype=np.int64)
    cadence = np.array([round(forecast.cadence_s * 1_000_000) for forecast in forecasts], dtype=np.int64)
    steps = np.tile(np.arange(1, horizon + 1, dtype=np.int32), count)

    def per_step(values: Sequence[Any], kind: Any) -> pl.Series:
        return pl.Series(values, dtype=kind).gather(np.repeat(np.arange(count), horizon))

    numbers = {
        quantile_column(float(level)): np.array(
            [forecast.quantiles[target][level] for forecast in forecasts], dtype=np.float64
        ).reshape(-1)
        for level in levels
    }
    ahead = np.repeat(issued, horizon) + steps * np.repeat(cadence, horizon)
    return pl.DataFrame(
        {
            "sensor_id": per_step([forecast.sensor_id for forecast in forecasts], pl.String),
            "target": pl.Series([target], dtype=pl.String).new_from_index(0, count * horizon),
            "step": steps,
            "issued_at": pl.Series(np.repeat(issued, horizon)).cast(pl.Datetime("us", "UTC")),
            "forecast_for": pl.Series(ahead).cast(pl.Datetime("us", "UTC")),
            **numbers,
            "model_version": per_step([forecast.model.version for forecast in forecasts], pl.Int32),
            "settings": per_step([forecast.settings for forecast in forecasts], pl.String),
            "input_partition": per_step([forecast.input.partition for forecast in forecasts], pl.Int32),
            "input_offset": per_step([forecast.input.offset for forecast in forecasts], pl.Int64),
            "partition": per_step([partition for partition, _, _ in entries], pl.Int32),
            "offset": per_step([offset for _, offset, _ in entries], pl.Int64),
        }
    )
