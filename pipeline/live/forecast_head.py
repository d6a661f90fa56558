"""Reads the part of a forecast that the live index keeps: its identity, and three quantiles of step 1."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

import msgspec

from pipeline.messages import InputPosition, microseconds, quantile_key
from pipeline.settings import Settings

# Targets that the index scores: 16 bytes a sensor each, so that a sensor stays below 200 bytes.
MOST_TARGETS: Final = 4
_NAN: Final = float("nan")


class _Model(msgspec.Struct):
    version: int


class _State(msgspec.Struct):
    warm: bool


class _Forecast(msgspec.Struct):
    """``messages.Forecast`` with the numbers as text: most of them are not read."""

    sensor_id: str
    issued_at: datetime
    quantiles: dict[str, dict[str, msgspec.Raw]]
    model: _Model
    input: InputPosition
    state: _State


class ForecastHead(NamedTuple):
    """A committed forecast, without the numbers beyond step 1."""

    sensor: bytes
    partition: int
    offset: int
    sent_ms: int  # Kafka timestamp of the forecast's record
    issued_at_us: int
    model: int  # version
    warm: bool
    reading_partition: int
    reading_offset: int
    first_step: Sequence[float]  # low, median, high of each scored target in turn; NaN if missing


class HeadReader:
    """Reads the heads of forecasts for the scored targets of the settings."""

    def __init__(self, settings: Settings) -> None:
        self.targets = settings.targets[:MOST_TARGETS]
        self._levels = tuple(map(quantile_key, (settings.quantiles[0], 0.5, settings.quantiles[-1])))
        self._decode = msgspec.json.Decoder(_Forecast).decode

    def read(self, partition: int, record: Any) -> ForecastHead | None:
        """The head of the forecast in a fetched record; None if the record is not a forecast."""
        try:
            found = self._decode(record.value or b"")
            return ForecastHead(
                found.sensor_id.encode(),
                partition,
                record.offset,
                record.timestamp,
                microseconds(found.issued_at),
                found.model.version,
                found.state.warm,
                found.input.partition,
                found.input.offset,
                self._first_step(found.quantiles),
            )
        except (msgspec.MsgspecError, ValueError, TypeError):
            return None

    def _first_step(self, quantiles: dict[str, dict[str, msgspec.Raw]]) -> list[float]:
        found = []
        for target in self.targets:
            of_target = quantiles.get(target, {})
            for level in self._levels:
                raw = of_target.get(level)
                # The text of an array: "[61.2,58.9]".
                found.append(_NAN if raw is None else float(bytes(raw)[1:].split(b",", 1)[0].rstrip(b"] ")))
        return found
