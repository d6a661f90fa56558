"""Reads the part of a forecast that the live index keeps: its identity, and three quantiles of step 1."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final, NamedTuple

import msgspec

from pipeline.messages import LONGEST_SENSOR_ID_BYTES, microseconds, quantile_key
from pipeline.settings import Settings

# Targets that the index scores: 16 bytes a sensor each, so that a sensor stays below 200 bytes.
MOST_TARGETS: Final = 4
_NAN: Final = float("nan")


# The index keeps these numbers in 4 and 8 bytes, and event ids and JSON answers repeat them.
_Version = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
_Offset = Annotated[int, msgspec.Meta(ge=0, lt=2**62)]


class _Model(msgspec.Struct):
    version: _Version


class _Input(msgspec.Struct):
    partition: int
    offset: _Offset


class _State(msgspec.Struct):
    warm: bool


class _Forecast(msgspec.Struct):
    """``messages.Forecast`` with the numbers as text: most of them are not read."""

    sensor_id: str
    issued_at: datetime
    quantiles: dict[str, dict[str, msgspec.Raw]]
    model: _Model
    input: _Input
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
    reading_partition: int  # the same number as ``partition``
    reading_offset: int
    first_step: Sequence[float]  # low, median, high of each scored target in turn; NaN if missing


class HeadReader:
    """Reads the heads of forecasts for the scored targets of the settings."""

    def __init__(self, settings: Settings) -> None:
        self.targets = settings.targets[:MOST_TARGETS]
        self._levels = tuple(map(quantile_key, (settings.quantiles[0], 0.5, settings.quantiles[-1])))
        self._decode = msgspec.json.Decoder(_Forecast).decode

    def read(self, partition: int, record: Any) -> ForecastHead | None:
        """The head of the forecast in a fetched record; None if the record is not a forecast.

        Any byte string is accepted. A forecast that follows a reading of another partition is not one of this program:
        its events would not come in offset order.
        """
        try:
            found = self._decode(record.value or b"")
            sensor = found.sensor_id.encode()
            if found.input.partition != partition or not 0 < len(sensor) <= LONGEST_SENSOR_ID_BYTES:
                return None
            return ForecastHead(
                sensor,
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
        except (msgspec.MsgspecError, ValueError, TypeError, RecursionError):
            return None

    def _first_step(self, quantiles: dict[str, dict[str, msgspec.Raw]]) -> list[float]:
        found = []
        for target in self.targets:
            of_target = quantiles.get(target, {})
            for level in self._levels:
                raw = of_target.get(level)
                found.append(_NAN if raw is None else _first_number(bytes(raw)))
        return found


def _first_number(array: bytes) -> float:
    """The first number of an array's text: 61.2 for ``[61.2,58.9]``.

    Raises:
        ValueError: the text is not an array that begins with a number.
    """
    if not array.startswith(b"["):
        raise ValueError("not an array")
    return float(array[1:].split(b",", 1)[0].rstrip(b"] \t\r\n"))
