"""Topics with other people's messages on real servers: JSON by field paths, and Avro, Protobuf and JSON Schema."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from confluent_kafka.schema_registry import Schema, SchemaReference, SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.schema_registry.json_schema import JSONSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from pipeline.audit.verify import verify
from pipeline.history.ingest import ingest
from pipeline.history.table import History
from pipeline.kafka.topics import ensure_topics
from pipeline.messages import Rejected
from pipeline.readings_format.decoder import make_decoder
from pipeline.readings_format.protobuf_schemas import _compile
from pipeline.readings_format.schema_registry import Schema as StoredSchema
from pipeline.settings import Settings
from tests.conftest import SettingsFactory
from tests.integration.schema_registry import reachable_at, running_registry
from tests.integration.stream_rig import (
    FolderChampion,
    Message,
    partition_of,
    publish,
    read_all,
    running,
    small_forecaster,
)
from tests.ports import free_ports
from tests.waiting import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("schema_registry"), pytest.mark.long(40)]

START = datetime(2026, 3, 1, tzinfo=UTC)
SENSORS = ("roof", "cellar", "garden")


@pytest.fixture(scope="module")
def registry(stack_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of Confluent's interface of a real registry."""
    with running_registry(stack_settings.stack.cache_path, tmp_path_factory.mktemp("registry")) as url:
        yield url


@pytest.fixture
def settings(broker: Settings, fresh_settings: SettingsFactory) -> SettingsFactory:
    def make(**readings: Any) -> Settings:
        made = fresh_settings(
            features=["a", "b"],
            targets=["a"],
            horizon_steps=2,
            max_gap_steps=4,
            forecaster={"poll_alias_s": 0.1, "max_batch_readings": 20, "rewarm_steps": 10},
            readings=readings,
        )
        ensure_topics(made)
        return made

    return make


def champion_of(settings: Settings, folder: Path) -> FolderChampion:
    source = FolderChampion(folder / "champion", settings)
    source.promote(1, small_forecaster(settings))
    return source


def at(step: int) -> datetime:
    return START + timedelta(hours=step)


# --- JSON by field paths ----------------------------------------------------------------------------------------------

TELEGRAF = {"sensor": "tags.host", "time": "timestamp", "time_unit": "s", "values": "fields", "missing": ["n/a"]}


def telegraf(settings: Settings, sensor: str, step: int, **fields: object) -> Message:
    content = {
        "fields": fields or {"a": step % 7 + 0.5, "b": None if step % 5 else -step, "note": "text"},
        "name": "plant",
        "tags": {"host": sensor},
        "timestamp": int(at(step).timestamp()),
    }
    return Message(None, json.dumps(content).encode(), partition_of(settings, sensor))


def test_a_mapped_topic_is_forecast_ingested_and_verified_without_differences(
    settings: SettingsFactory, tmp_path: Path
) -> None:
    made = settings(**TELEGRAF)
    source = champion_of(made, tmp_path)
    first = [telegraf(made, sensor, step) for step in range(25) for sensor in SENSORS]
    first += [
        *first[5:9],
        telegraf(made, "roof", 2),
        Message(b"k", b"not JSON", 0),
        telegraf(made, "roof", 30, a="n/a"),
    ]
    later = [telegraf(made, sensor, step) for step in range(26, 40) for sensor in SENSORS]
    publish(made, first)
    with running(made, source) as forecaster:
        wait_until(lambda: forecaster.counters.readings == len(first), 30, "the first readings were processed")
        source.promote(2, small_forecaster(made, seed=2))  # its states are rebuilt from the mapped records
        wait_until(lambda: forecaster.counters.model_version == 2, 30, "version 2 serves")
    publish(made, later)
    with running(made, source, "successor") as forecaster:
        wait_until(lambda: forecaster.counters.readings == len(later), 30, "all readings were processed")
    accepted = len(SENSORS) * 39
    verdict = verify(made, source.load)
    assert verdict.faults == {}
    assert (verdict.audit.accepted, verdict.audit.forecasts, verdict.recomputed) == (accepted,) * 3
    letters = read_all(made, made.kafka.topics.dead_letters)
    reasons = [dict(letter.headers)["streamgru-reason"] for letter in letters]
    assert sorted(reasons) == [b"malformed", b"no-feature"]
    assert {letter.key for letter in letters} == {b"k", None}
    report = ingest(made)
    assert report.rejected == {"malformed": 1, "no-feature": 1}
    history = History(made.history_path, made.features).scan().collect()
    assert set(history["sensor_id"]) == set(SENSORS)
    assert len(history) == accepted + 5  # duplicates and late readings are recognised when the history is read


# --- schemas from a registry ------------------------------------------------------------------------------------------

AVRO = {
    "type": "record",
    "name": "Measurement",
    "namespace": "plant",
    "fields": [
        {"name": "device", "type": "string"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "a", "type": ["null", "double"]},
    ],
}
PROTO = """
syntax = "proto3";
package plant;
import "google/protobuf/timestamp.proto";
message Ignored { string x = 1; }
message Measurement { string device = 1; google.protobuf.Timestamp at = 2; optional double a = 3; }
"""
JSON_SCHEMA = {"title": "Measurement", "type": "object", "properties": {"a": {"type": "number"}}}
FRAMED = {"sensor": "device", "time": "at", "values": "."}


def serialized(serializer: Any, content: object, topic: str = "measurements") -> bytes:
    data = serializer(content, SerializationContext(topic, MessageField.VALUE))
    assert isinstance(data, bytes)
    return data


def test_records_of_confluents_serializers_become_readings(registry: str, tmp_path: Path) -> None:
    client = SchemaRegistryClient({"url": registry})
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(_compile(StoredSchema("PROTOBUF", PROTO))).file:
        pool.Add(file)
    message_class = message_factory.GetMessageClass(pool.FindMessageTypeByName("plant.Measurement"))
    proto = message_class(device="roof", a=21.5)
    proto.at.FromDatetime(START)
    as_json = {"device": "roof", "at": START.isoformat(), "a": 21.5}
    proto_id = client.register_schema("proto-value", Schema(PROTO, "PROTOBUF"))  # message 1 of the file follows
    proto_header = b"\x00" + proto_id.to_bytes(4, "big") + b"\x02\x02"
    records = {
        "avro": serialized(
            AvroSerializer(client, json.dumps(AVRO)), {"device": "roof", "at": START, "a": 21.5}, "avro"
        ),
        "protobuf": proto_header + proto.SerializeToString(),
        "json_schema": serialized(JSONSerializer(json.dumps(JSON_SCHEMA), client), as_json, "json"),
    }
    for format_, value in records.items():
        mapped = Settings(
            home=tmp_path,
            features=("a",),
            targets=("a",),
            readings={**FRAMED, "format": format_, "registry_url": registry},
        )
        decoder = make_decoder(mapped)
        reading = decoder.decode(None, value)
        assert (reading.sensor_id, reading.values) == ("roof", (21.5,)), format_
        assert reading.timestamp_us == int(START.timestamp()) * 1_000_000
        with pytest.raises(Rejected, match="no schema with id 999999"):
            decoder.decode(None, b"\x00\x00\x0f\x42\x3f" + value[5:])


def test_an_evolved_schema_and_its_reference_are_looked_up(registry: str, tmp_path: Path) -> None:
    client = SchemaRegistryClient({"url": registry})
    place = {"type": "record", "name": "Place", "namespace": "plant", "fields": [{"name": "id", "type": "string"}]}
    client.register_schema("place", Schema(json.dumps(place), "AVRO"))
    evolved = {**AVRO, "fields": [{"name": "place", "type": "plant.Place"}, *reversed(AVRO["fields"])]}
    reference = SchemaReference("plant.Place", "place", 1)
    schema_id = client.register_schema("evolved-value", Schema(json.dumps(evolved), "AVRO", [reference]))
    mapped = Settings(
        home=tmp_path,
        features=("a",),
        targets=("a",),
        readings={**FRAMED, "sensor": "{place.id}/{device}", "format": "avro", "registry_url": registry},
    )
    body = b"\x0anorth" + b"\x02" + b"\x00\x00\x00\x00\x00\x80\x35\x40" + b"\x00" + b"\x08roof"
    reading = make_decoder(mapped).decode(None, b"\x00" + schema_id.to_bytes(4, "big") + body)
    assert (reading.sensor_id, reading.timestamp_us, reading.values) == ("north/roof", 0, (21.5,))


def test_readings_wait_while_the_registry_is_down_and_are_forecast_once_it_answers(
    registry: str, settings: SettingsFactory, tmp_path: Path
) -> None:
    port = free_ports(1)[0]
    url = f"http://127.0.0.1:{port}{urlsplit(registry).path}"
    made = settings(**FRAMED, format="avro", registry_url=url, registry_options={"max.retries": "0"})
    source = champion_of(made, tmp_path)
    serializer = AvroSerializer(SchemaRegistryClient({"url": registry}), json.dumps(AVRO))
    sent = [
        Message(
            None, serialized(serializer, {"device": sensor, "at": at(step), "a": step / 2}), partition_of(made, sensor)
        )
        for step in range(10)
        for sensor in SENSORS
    ]
    publish(made, sent)
    with running(made, source) as forecaster:
        wait_until(lambda: forecaster.counters.aborted >= 2, 30, "the forecaster started over again")
        assert forecaster.counters.readings == 0
        with reachable_at(port, registry):
            wait_until(lambda: forecaster.counters.readings == len(sent), 30, "all readings were processed")
    verdict = verify(made, source.load)  # the schema is kept on disk by now
    assert verdict.faults == {}
    assert (verdict.audit.accepted, verdict.audit.forecasts) == (len(sent), len(sent))
    assert read_all(made, made.kafka.topics.dead_letters) == []
