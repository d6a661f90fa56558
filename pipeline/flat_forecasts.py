"""Flat forecasts: one record per sensor, target and step, for databases and dashboards that do not read nested JSON.

The columns are those of ``flat_columns``, in a flat record on Kafka and in an exported table alike. The forecaster
writes flat records if ``kafka.topics.flat_forecasts`` names a topic, in the transaction of the forecasts themselves.
With ``forecaster.flat_format = "connect"`` each record carries the schema that Kafka Connect's ``JsonConverter`` reads.
"""

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any, Final, Literal

import msgspec
import numpy as np

from pipeline.messages import ModelId
from pipeline.settings import Settings
from pipeline.text.json_columns import float_texts, integer_texts, time_texts

# Upper limits of the bytes of a flat record besides the sensor id, for the size of a transaction.
FLAT_RECORD_BYTES: Final = 400
CONNECT_RECORD_BYTES: Final = 2_000

# column -> type of Kafka Connect; the quantile columns follow "forecast_for"
_BEFORE_QUANTILES: Final = {
    "sensor_id": "string",
    "target": "string",
    "step": "int32",
    "issued_at": "timestamp",
    "forecast_for": "timestamp",
}
_AFTER_QUANTILES: Final = {
    "model_version": "int32",
    "settings": "string",
    "input_partition": "int32",
    "input_offset": "int64",
}
_CONNECT_TIMESTAMP: Final = {
    "type": "int64",
    "name": "org.apache.kafka.connect.data.Timestamp",
    "version": 1,
    "optional": False,
}


def quantile_column(level: float) -> str:
    """The column of a quantile level: ``q50`` for 0.5, ``q2_5`` for 0.025. Databases accept it without quotes."""
    percent = np.format_float_positional(level * 100, precision=10, trim="-")
    return "q" + percent.replace(".", "_")


def flat_columns(quantiles: Sequence[float]) -> dict[str, str]:
    """Column -> type of Kafka Connect, in the order of a flat record; times have the type ``timestamp``."""
    levels = dict.fromkeys(map(quantile_column, quantiles), "double")
    return _BEFORE_QUANTILES | levels | _AFTER_QUANTILES


def connect_schema(quantiles: Sequence[float]) -> dict[str, Any]:
    """The schema of a flat record in the form of Kafka Connect's ``JsonConverter``."""
    fields = [
        {"field": name, **(_CONNECT_TIMESTAMP if kind == "timestamp" else {"type": kind, "optional": False})}
        for name, kind in flat_columns(quantiles).items()
    ]
    return {"type": "struct", "name": "streamgru.forecast.flat.v1", "optional": False, "fields": fields}


def flat_json_schema(quantiles: Sequence[float], flat_format: Literal["json", "connect"]) -> dict[str, Any]:
    """JSON Schema (draft 7) of a flat record's value."""
    times = {"type": "integer"} if flat_format == "connect" else {"type": "string", "format": "date-time"}
    types = {"string": {"type": "string"}, "double": {"type": "number"}, "timestamp": times}
    columns = flat_columns(quantiles)
    row = {
        "type": "object",
        "properties": {name: types.get(kind, {"type": "integer"}) for name, kind in columns.items()},
        "required": list(columns),
    }
    if flat_format == "json":
        return row
    return {
        "type": "object",
        "properties": {"schema": {"const": connect_schema(quantiles)}, "payload": row},
        "required": ["schema", "payload"],
    }


class FlatForecastEncoder:
    """Encodes the flat records of one model version under one set of settings."""

    def __init__(self, settings: Settings, model: ModelId, targets: Sequence[str], quantiles: Sequence[float]) -> None:
        self._cadence_us = settings.cadence_us
        self._format: Literal["json", "connect"] = settings.forecaster.flat_format
        names = [quantile_column(level) for level in quantiles]
        self._openings = [b',"' + name.encode() + b'":' for name in names]
        prefix, self._end = b"", b"}"
        if self._format == "connect":
            prefix = b'{"schema":' + msgspec.json.encode(connect_schema(quantiles)) + b',"payload":'
            self._end = b"}}"
        self._start = prefix + b'{"sensor_id":'
        self._targets = [b',"target":' + msgspec.json.encode(target) + b',"step":' for target in targets]
        self._model = b',"model_version":%d,"settings":' % model.version + msgspec.json.encode(settings.fingerprint)

    def encode(
        self,
        partitions: Sequence[int],
        sensor_ids: Sequence[str],
        timestamp_us: np.ndarray,
        offsets: np.ndarray,
        quantiles: np.ndarray,
    ) -> list[bytes]:
        """Values of the flat records of n forecasts: n * K * h, ordered by forecast, target and step.

        Args:
            partitions: n, the readings' partitions.
            sensor_ids: n, the readings' sensors.
            timestamp_us: (n,) int64, the readings' timestamps.
            offsets: (n,) int64, the readings' offsets.
            quantiles: (n, K, Q, h), rounded as in the forecasts themselves (``encoding.round_to_scale``).
        """
        count, targets, levels, horizon = quantiles.shape
        if not count:
            return []
        steps = np.arange(1, horizon + 1)
        ahead = timestamp_us[:, None] + steps * self._cadence_us  # (n, h)
        per_forecast = targets * horizon
        before = [
            self._start + msgspec.json.encode(sensor_id) + target
            for sensor_id in sensor_ids
            for target in self._targets
            for _ in range(horizon)
        ]
        after = [
            self._model + b',"input_partition":%d,"input_offset":%d' % (partition, offset) + self._end
            for partition, offset in zip(partitions, offsets.tolist(), strict=True)
            for _ in range(per_forecast)
        ]
        columns: list[Iterable[bytes]] = [
            before,
            [b"%d" % step for step in steps.tolist()] * (count * targets),
            repeat(b',"issued_at":'),
            [text for text in self._times(timestamp_us) for _ in range(per_forecast)],
            repeat(b',"forecast_for":'),
            self._times(np.repeat(ahead[:, None], targets, axis=1).reshape(-1)),
        ]
        for level in range(levels):
            columns += [repeat(self._openings[level]), float_texts(quantiles[:, :, level])]
        columns.append(after)
        return list(map(b"".join, zip(*columns, strict=False)))

    def _times(self, timestamp_us: np.ndarray) -> list[bytes]:
        """Each time as JSON: ISO 8601 in UTC, or milliseconds for Kafka Connect."""
        if self._format == "connect":
            return integer_texts(timestamp_us // 1_000)
        return [b'"' + text + b'"' for text in time_texts(timestamp_us)]
