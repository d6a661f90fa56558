"""Records of a real forecaster agree with the AsyncAPI document, and forecasts are CloudEvents to a library."""

import json
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any, Literal

import jsonschema
import pytest
from cloudevents.core.bindings.kafka import KafkaMessage, from_binary_event

from pipeline.asyncapi import asyncapi_document
from pipeline.event_headers import FORECAST_TYPE
from pipeline.kafka.topics import ensure_topics
from pipeline.messages import SCHEMA_URIS
from pipeline.settings import Settings
from tests.conftest import SettingsFactory
from tests.integration.stream_rig import (
    START_US,
    FolderChampion,
    Message,
    partition_of,
    publish,
    read_all,
    reading,
    rounds,
    running,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

SENSORS = ["roof", "süd-1", "温度 🌡", "tab\tbed"]
TRACED = (("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),)


@pytest.fixture(params=["json", "connect"])
def settings(request: pytest.FixtureRequest, broker: Settings, fresh_settings: SettingsFactory) -> Settings:
    flat_format: Literal["json", "connect"] = request.param
    made = fresh_settings(horizon_steps=2, forecaster={"flat_format": flat_format})
    topics = made.kafka.topics.model_copy(update={"flat_forecasts": f"{made.kafka.topics.forecasts}-flat"})
    made = made.model_copy(update={"kafka": made.kafka.model_copy(update={"topics": topics})})
    ensure_topics(made)
    return made


def test_records_agree_with_the_document_and_forecasts_are_cloudevents(
    settings: Settings, champion: FolderChampion
) -> None:
    traced = reading(settings, "roof", 9)
    messages = [
        *rounds(settings, SENSORS, range(3)),
        Message(traced.key, traced.value, traced.partition, TRACED),
        Message(b"roof", b"not json", partition_of(settings, "roof"), TRACED),
    ]
    publish(settings, messages)
    with running(settings, champion) as forecaster:
        wait_until(lambda: forecaster.counters.readings == len(messages), 30, "all records were processed")
    document = asyncapi_document(settings)
    counts = {name: check_records(settings, document, name) for name in document["channels"]}
    forecasts = len(messages) - 1
    assert counts["readings"] == len(messages)
    assert (counts["forecasts"], counts["deadLetters"], counts["flatForecasts"]) == (forecasts, 1, 2 * forecasts)
    for record in read_all(settings, settings.kafka.topics.forecasts):
        check_event(settings, record)


def check_records(settings: Settings, document: dict[str, Any], channel: str) -> int:
    """Validate the headers, the value and the key of each record of a channel; return the number of records."""
    records = read_all(settings, document["channels"][channel]["address"])
    for record in records:
        name = next(iter(document["channels"][channel]["messages"]))
        if channel == "state" and record.key == b"\xffposition":
            name = "position"
        message = document["components"]["messages"][name]
        if "headers" in message:
            passed_on = {"traceparent"} if name == "deadLetter" else set()
            headers = {header: value.decode() for header, value in record.headers}
            check_object(document, message["headers"], headers, passed_on)
        else:
            assert not record.headers
        if message["contentType"] == "application/json" and record.value != b"not json":
            check_object(document, message["payload"], json.loads(record.value))
        key = message["bindings"]["kafka"]["key"]
        if "format" not in key:  # otherwise it is binary
            jsonschema.validate(record.key.decode(), key)
    return len(records)


def check_object(
    document: dict[str, Any], reference: dict[str, str], content: dict[str, Any], others: Collection[str] = ()
) -> None:
    """Validate an object; the document names each of its fields, but for ``others``."""
    components = document["components"]
    jsonschema.validate(content, {**reference, "components": components}, jsonschema.Draft7Validator)
    described = components["schemas"][reference["$ref"].rpartition("/")[2]]["properties"]
    assert [name for name in content if name not in described and name not in others] == []


def check_event(settings: Settings, record: Any) -> None:
    headers = dict(record.headers)
    event = from_binary_event(KafkaMessage(headers=headers, key=record.key, value=record.value))
    sensor = record.key.decode()
    forecast: Any = event.get_data()
    assert forecast["sensor_id"] == sensor
    assert event.get_subject() == (None if "\t" in sensor else sensor)
    assert event.get_dataschema() == SCHEMA_URIS["forecast"]
    assert event.get_datacontenttype() == "application/json"
    assert event.get_type() == FORECAST_TYPE
    assert event.get_source() == f"/streamgru/{settings.model_name}"
    assert event.get_id() == f"{settings.kafka.topics.readings}-{record.partition}-{forecast['input']['offset']}-1"
    assert event.get_time() == datetime.fromisoformat(forecast["issued_at"])
    assert event.get_time() >= datetime.fromtimestamp(START_US / 1e6, UTC)
    assert event.get_extension("traceparent") is None  # a plain Kafka header, by which tracing libraries find it
