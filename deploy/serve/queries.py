"""The query parameters of the routes. A value outside its limits is refused with a ``Problem``."""

from typing import Annotated, Literal

import msgspec

_Sensor = Annotated[str, msgspec.Meta(min_length=1, description="id of the sensor")]
_Count = Annotated[int, msgspec.Meta(ge=1, le=200)]
_Offset = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class NoQuery(msgspec.Struct):
    """No parameters."""


class SensorQuery(msgspec.Struct):
    """One sensor."""

    sensor: _Sensor


class ListPage(msgspec.Struct):
    """A page of the sensor list."""

    search: Annotated[str, msgspec.Meta(max_length=1_024, description="part of the id; ASCII in either case")] = ""
    sort: Literal["surprise", "name", "latest", "error"] = "surprise"
    order: Annotated[
        Literal["desc", "asc", ""], msgspec.Meta(description="by default asc for name, otherwise desc")
    ] = ""
    offset: _Offset = 0
    limit: _Count = 50


class ForecastQuery(msgspec.Struct):
    """A sensor's latest forecast, or an earlier one."""

    sensor: _Sensor
    back: Annotated[int, msgspec.Meta(ge=0, le=10_000, description="cadences before the latest forecast")] = 0


class PlaceQuery(msgspec.Struct):
    """A record of the forecasts topic."""

    partition: Annotated[int, msgspec.Meta(ge=0, le=100_000)]
    offset: _Offset


class HistoryQuery(msgspec.Struct):
    """The latest readings of a sensor."""

    sensor: _Sensor
    count: _Count = 48
    steps: Annotated[str, msgspec.Meta(max_length=100, description="up to 8 numbers with commas: steps before")] = ""
    forecasts: Annotated[int, msgspec.Meta(ge=0, le=200, description="number of whole forecasts")] = 0


class ScoresQuery(msgspec.Struct):
    """The latest forecasts of a sensor."""

    sensor: _Sensor
    count: _Count = 200


class EventsQuery(msgspec.Struct):
    """Which events."""

    sensor: Annotated[str, msgspec.Meta(description="only forecasts of this sensor")] = ""
    kinds: Annotated[str, msgspec.Meta(max_length=100, description="forecasts, dead_letter, status; with commas")] = ""
    last_event_id: Annotated[str, msgspec.Meta(description="as the header Last-Event-ID, which wins")] = ""
