"""The CloudEvents headers of a forecast's record: binary content mode of the Kafka binding, version 1.0.2.

Changing anything here is a new version of the product. ``forecast_encoding`` writes the same bytes for a whole
micro-batch. Records of version 0.1.0 lack ``ce_dataschema`` and ``ce_subject``; no part of streamgru reads
these headers.
"""

import re
from typing import Annotated, Final

import msgspec

from pipeline.messages import SCHEMA_URIS, Forecast, iso_timestamp, microseconds

FORECAST_TYPE: Final = "streamgru.forecast.v1"
_SPEC_VERSION: Final = "1.0"
_CONTENT_TYPE: Final = "application/json"

# Control characters and noncharacters, which CloudEvents forbids in text.
_PLANE_ENDS: Final = "".join(chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
_NOT_IN_EVENTS: Final = re.compile(f"[\x00-\x1f\x7f-\x9f\ufdd0-\ufdef{_PLANE_ENDS}]")


def _constant(value: str, description: str) -> msgspec.Meta:
    return msgspec.Meta(description=description, extra_json_schema={"const": value})


class ReadingHeaders(msgspec.Struct, frozen=True):
    """The headers of a reading that matter to streamgru."""

    traceparent: Annotated[
        str | msgspec.UnsetType, msgspec.Meta(description="W3C trace context; passed on to the forecast")
    ] = msgspec.UNSET


class ForecastHeaders(msgspec.Struct, frozen=True, rename={"content_type": "content-type"}):
    """The headers of a forecast, in their order; each value is text in UTF-8."""

    ce_specversion: Annotated[str, _constant(_SPEC_VERSION, "version of CloudEvents")]
    ce_type: Annotated[str, _constant(FORECAST_TYPE, "form of the event")]
    ce_source: Annotated[str, msgspec.Meta(description="/streamgru/ and the name of the model")]
    ce_dataschema: Annotated[str, _constant(SCHEMA_URIS["forecast"], "name and version of the value's JSON Schema")]
    content_type: Annotated[str, _constant(_CONTENT_TYPE, "media type of the value")]
    ce_id: Annotated[
        str,
        msgspec.Meta(description="topic, partition and offset of the reading, and the model's version, with dashes"),
    ]
    ce_time: Annotated[
        str, msgspec.Meta(description="the reading's timestamp", extra_json_schema={"format": "date-time"})
    ]
    ce_subject: Annotated[
        str | msgspec.UnsetType,
        msgspec.Meta(description="the sensor id; absent if it has control characters, which CloudEvents forbids"),
    ] = msgspec.UNSET
    traceparent: Annotated[
        str | msgspec.UnsetType, msgspec.Meta(description="W3C trace context of the reading, if it had one")
    ] = msgspec.UNSET


def constant_headers(model_name: str) -> list[tuple[str, bytes]]:
    """The headers that are the same for all forecasts of a model; they come first."""
    return [
        ("ce_specversion", _SPEC_VERSION.encode()),
        ("ce_type", FORECAST_TYPE.encode()),
        ("ce_source", f"/streamgru/{model_name}".encode()),
        ("ce_dataschema", SCHEMA_URIS["forecast"].encode()),
        ("content-type", _CONTENT_TYPE.encode()),
    ]


def forecast_headers(forecast: Forecast, traceparent: bytes | None = None) -> list[tuple[str, bytes]]:
    """The headers of a forecast's record."""
    source = forecast.input
    identity = f"{source.topic}-{source.partition}-{source.offset}-{forecast.model.version}"
    headers = [
        *constant_headers(forecast.model.name),
        ("ce_id", identity.encode()),
        ("ce_time", iso_timestamp(microseconds(forecast.issued_at)).encode()),
    ]
    if (subject := event_subject(forecast.sensor_id)) is not None:
        headers.append(("ce_subject", subject))
    if traceparent is not None:
        headers.append(("traceparent", traceparent))
    return headers


def event_subject(sensor_id: str) -> bytes | None:
    """The value of ``ce_subject``; None if the sensor id has characters that CloudEvents forbids in text."""
    return None if _NOT_IN_EVENTS.search(sensor_id) else sensor_id.encode()
