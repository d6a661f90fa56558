"""Readings in Confluent's framing are read by their writer's schema; a hostile schema or record is a dead letter."""

import io
import json
import logging
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import fastavro
import msgspec
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

from pipeline.errors import SchemaRegistryError, SchemaRegistryUnreachable
from pipeline.messages import Rejected, microseconds
from pipeline.readings_format.decoder import RecordDecoder, make_decoder
from pipeline.readings_format.protobuf_schemas import _compile
from pipeline.readings_format.schema_registry import Schema, SchemaStore
from pipeline.settings import Settings
from tests.ports import free_ports

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOON_US = microseconds(NOON)
FLAT: dict[str, Any] = {"sensor": "device", "time": "at", "values": "."}
AVRO = {
    "type": "record",
    "name": "Measurement",
    "fields": [
        {"name": "device", "type": "string"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "temperature", "type": ["null", "double"]},
    ],
}
PROTO = """
syntax = "proto3";
package plant;
import "google/protobuf/timestamp.proto";
import "google/protobuf/wrappers.proto";
message Other { string x = 1; }
message Measurement {
  message Inner { double celsius = 1; repeated Inner more = 2; }
  string device = 1;
  google.protobuf.Timestamp at = 2;
  optional double temperature = 3;
  Inner inner = 4;
  map<string, double> by_name = 5;
  google.protobuf.DoubleValue wrapped = 6;
  int64 epoch = 7;
}
"""


class Registry:
    """Schemas in the folder of a store, as an earlier look-up leaves them; nothing answers at the address."""

    def __init__(self, home: Path, url: str = "http://127.0.0.1:9/apis") -> None:
        self.home, self.url = home, url

    def settings(self, features: tuple[str, ...] = ("temperature",), **readings: Any) -> Settings:
        options = {"registry_options": {"max.retries": "0"}, "registry_url": self.url, **readings}
        return Settings(home=self.home, features=features, targets=features[:1], readings=options)

    def decoder(self, features: tuple[str, ...] = ("temperature",), **readings: Any) -> RecordDecoder:
        return make_decoder(self.settings(features, **readings))

    def add(self, schema_id: int, kind: str, text: str, **references: str) -> None:
        store = SchemaStore(self.settings(format="avro"))
        named = tuple({"name": name, "text": content} for name, content in references.items())
        store.keep(schema_id, msgspec.convert({"kind": kind, "text": text, "references": named}, Schema))

    def add_avro(self, schema_id: int, schema: object) -> None:
        self.add(schema_id, "AVRO", json.dumps(schema))


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path)


def framed(schema_id: int, body: bytes) -> bytes:
    return b"\x00" + struct.pack(">I", schema_id) + body


def avro(schema: Any, record: object) -> bytes:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(schema), record)
    return stream.getvalue()


def rejection(decoder: RecordDecoder, value: bytes, key: bytes | None = None) -> Rejected:
    with pytest.raises(Rejected) as caught:
        decoder.decode(key, value)
    assert len(caught.value.detail.encode()) < 800
    return caught.value


# --- Avro -------------------------------------------------------------------------------------------------------------


def test_an_avro_record_is_read_by_its_writers_schema(registry: Registry) -> None:
    registry.add_avro(7, AVRO)
    decoder = registry.decoder(**FLAT, format="avro")
    reading = decoder.decode(None, framed(7, avro(AVRO, {"device": "roof", "at": NOON, "temperature": 21.5})))
    assert (reading.sensor_id, reading.timestamp_us, reading.values) == ("roof", NOON_US, (21.5,))
    missing = framed(7, avro(AVRO, {"device": "roof", "at": NOON, "temperature": None}))
    assert rejection(decoder, missing).reason == "no-feature"


def test_fields_are_found_by_name_after_the_schema_has_evolved(registry: Registry) -> None:
    first, added, *others = AVRO["fields"]
    evolved = AVRO | {"fields": [{"name": "site", "type": "string"}, added, first, *others]}
    registry.add_avro(7, AVRO)
    registry.add_avro(8, evolved)
    decoder = registry.decoder(**FLAT, format="avro")
    old = {"device": "roof", "at": NOON, "temperature": 21.5}
    for schema_id, schema, record in ((7, AVRO, old), (8, evolved, old | {"site": "north"}), (7, AVRO, old)):
        assert decoder.decode(None, framed(schema_id, avro(schema, record))).values == (21.5,)


def test_nested_unions_enums_uuids_and_references_are_mapped(registry: Registry) -> None:
    place = {
        "type": "record",
        "name": "Place",
        "fields": [{"name": "id", "type": {"type": "string", "logicalType": "uuid"}}],
    }
    schema = {
        "type": "record",
        "name": "M",
        "fields": [
            {"name": "place", "type": ["null", "Place"]},
            {"name": "unit", "type": {"type": "enum", "name": "U", "symbols": ["C", "F"]}},
            {"name": "at", "type": {"type": "long", "logicalType": "local-timestamp-micros"}},
            {"name": "measures", "type": {"type": "map", "values": ["float", "string"]}},
        ],
    }
    registry.add(7, "AVRO", json.dumps(schema), Place=json.dumps(place))
    whole = json.loads(json.dumps(schema).replace('"Place"', json.dumps(place), 1))
    record = {
        "place": {"id": UUID(int=7)},
        "unit": "C",
        "at": datetime(2026, 3, 1, 13),  # noqa: DTZ001 - a local time
        "measures": {"temperature": 21.5, "note": "x"},
    }
    readings = {"sensor": "{place.id}-{unit}", "time": "at", "timezone": "Europe/Berlin", "values": "measures"}
    reading = registry.decoder(**readings, format="avro").decode(None, framed(7, avro(whole, record)))
    assert (reading.sensor_id, reading.timestamp_us) == (f"{UUID(int=7)}-C", NOON_US)
    assert (reading.values, reading.ignored) == ((21.5,), 1)


def test_keys_are_read_by_their_own_format(registry: Registry) -> None:
    registry.add_avro(7, AVRO)
    registry.add_avro(9, {"type": "record", "name": "K", "fields": [{"name": "id", "type": "long"}]})
    decoder = registry.decoder(**FLAT | {"sensor": "@key.id"}, format="avro", key_format="avro")
    value = framed(7, avro(AVRO, {"device": "roof", "at": NOON, "temperature": 21.5}))
    assert decoder.decode(framed(9, b"\x54"), value).sensor_id == "42"
    assert rejection(decoder, value, b"roof").reason == "bad-key"


NAN_AND_HUGE = [(float("nan"), "no-feature"), (float("inf"), "bad-value"), (1e31, "bad-value")]


@pytest.mark.parametrize(("value", "reason"), NAN_AND_HUGE)
def test_numbers_that_json_lacks_are_missing_or_too_large(registry: Registry, value: float, reason: str) -> None:
    registry.add_avro(7, AVRO)
    record = framed(7, avro(AVRO, {"device": "roof", "at": NOON, "temperature": value}))
    assert rejection(registry.decoder(**FLAT, format="avro"), record).reason == reason


def test_damaged_avro_records_are_malformed(registry: Registry) -> None:
    registry.add_avro(7, AVRO)
    decoder = registry.decoder(**FLAT, format="avro")
    whole = avro(AVRO, {"device": "roof", "at": NOON, "temperature": 21.5})
    for body in (whole[:-1], whole + b"\x00", b"", b"\xff" * 40, b"\x08roof" + b"\xff" * 9 + b"\x01"):
        assert rejection(decoder, framed(7, body)).reason == "malformed"
    assert "left over" in rejection(decoder, framed(7, whole + b"\x00")).detail


HOSTILE: list[tuple[object, str]] = [
    ({"type": "record", "name": "A", "fields": [{"name": "a", "type": "A"}]}, "contains itself"),
    ({"type": "record", "name": "A", "fields": [{"name": "a", "type": ["null", "A"]}]}, "contains itself"),
    (
        {"type": "record", "name": "A", "fields": [{"name": "a", "type": {"type": "array", "items": "null"}}]},
        "no bytes",
    ),
    ({"type": "array", "items": {"type": "record", "name": "E", "fields": []}}, "no bytes"),
    ({"type": "array", "items": {"type": "fixed", "name": "F", "size": 0}}, "no bytes"),
    ({"type": "record", "name": "A", "fields": [{"name": "a", "type": "Unknown"}]}, "Unknown"),
    ({"type": "record"}, "cannot be used"),
    ({"type": "fixed", "name": "F", "size": float("inf")}, "cannot be used"),
    ([], "malformed"),
    (5, "cannot be used"),
]


@pytest.mark.parametrize(("schema", "said"), HOSTILE)
def test_a_hostile_or_invalid_avro_schema_makes_dead_letters(registry: Registry, schema: object, said: str) -> None:
    registry.add_avro(7, schema)
    decoder = registry.decoder(**FLAT, format="avro")
    for _ in range(2):
        rejected = rejection(decoder, framed(7, b"\xfe\xff\xff\xff\xff\xff\xff\x7f" * 3))
        assert rejected.reason == "malformed"
        assert said in (rejected.detail + rejected.reason)


def test_a_deeply_nested_avro_schema_makes_dead_letters(registry: Registry) -> None:
    schema: object = "double"
    for _ in range(150):
        schema = {"type": "array", "items": schema}
    registry.add_avro(7, schema)
    assert "cannot be used" in rejection(registry.decoder(**FLAT, format="avro"), framed(7, b"\x00")).detail


def doubling(leaf: list[dict[str, object]], types: int) -> dict[str, Any]:
    """A record type that uses the type before it twice, and so on: 2 ** types records at the end."""
    schema: dict[str, Any] = {"type": "record", "name": "A0", "fields": leaf}
    for number in range(1, types):
        again = {"name": "b", "type": f"A{number - 1}"}
        schema = {"type": "record", "name": f"A{number}", "fields": [{"name": "a", "type": schema}, again]}
    return schema


@pytest.mark.parametrize(
    ("leaf", "said"),
    [([], "no bytes"), ([{"name": "a", "type": "null"}], "no bytes"), ([{"name": "a", "type": "double"}], "follow")],
)
def test_an_avro_schema_that_doubles_with_each_named_type_makes_dead_letters(
    registry: Registry, leaf: list[dict[str, object]], said: str
) -> None:
    schema = doubling(leaf, 40)
    assert len(json.dumps(schema)) < 5_000
    registry.add_avro(7, schema)
    decoder = registry.decoder(**FLAT, format="avro")
    for body in (b"", b"\x00" * 1_000):
        rejected = rejection(decoder, framed(7, body))
        assert rejected.reason == "malformed"
        assert said in rejected.detail


@pytest.mark.parametrize("kind", ["array", "map"])
def test_an_avro_list_of_items_with_many_values_a_byte_makes_dead_letters(registry: Registry, kind: str) -> None:
    nulls = [{"name": f"n{number}", "type": "null"} for number in range(500)]
    item = ["null", {"type": "record", "name": "Item", "fields": nulls}]
    registry.add_avro(7, {"type": kind, "items" if kind == "array" else "values": item})
    assert "values a byte" in rejection(registry.decoder(**FLAT, format="avro"), framed(7, b"\x00")).detail


def test_an_avro_type_that_is_used_often_is_read(registry: Registry) -> None:
    """Each use takes bytes of the record, so no bound applies."""
    quality = {"type": "record", "name": "Q", "fields": [{"name": f"q{n}", "type": "boolean"} for n in range(20)]}
    uses = [{"name": f"u{number}", "type": "Q" if number else quality} for number in range(600)]
    schema = AVRO | {"fields": [*AVRO["fields"], *uses]}
    registry.add_avro(7, schema)
    body = avro(AVRO, {"device": "roof", "at": NOON, "temperature": 21.5}) + b"\x00" * 12_000
    assert registry.decoder(**FLAT, format="avro").decode(None, framed(7, body)).values == (21.5,)


def test_a_long_avro_decimal_makes_a_dead_letter(registry: Registry) -> None:
    decimal = {"logicalType": "decimal", "precision": 10_000_000, "scale": 1}
    schema = AVRO | {"fields": [*AVRO["fields"][:2], {"name": "temperature", "type": {"type": "bytes", **decimal}}]}
    registry.add_avro(7, schema)
    registry.add_avro(8, {"type": "fixed", "name": "F", "size": 1_000_000, **decimal, "precision": 10})
    decoder = registry.decoder(**FLAT, format="avro")
    head = b"\x08roof" + avro("long", NOON_US // 1_000)
    assert decoder.decode(None, framed(7, head + avro("bytes", b"\x00\xd7"))).values == (21.5,)
    assert "1,000,000 bytes" in rejection(decoder, framed(7, head + avro("bytes", b"\x7f" * 1_000_000))).detail
    assert "1,000,000 bytes" in rejection(decoder, framed(8, b"\x7f" * 1_000_000)).detail


# --- Protobuf ---------------------------------------------------------------------------------------------------------


def protobuf_message(name: str, content: dict[str, Any]) -> bytes:
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(_compile(Schema("PROTOBUF", PROTO))).file:
        pool.Add(file)
    message = message_factory.GetMessageClass(pool.FindMessageTypeByName(name))()
    return bytes(json_format.ParseDict(content, message).SerializeToString())


def test_a_protobuf_message_is_read_by_its_schema(registry: Registry) -> None:
    registry.add(7, "PROTOBUF", PROTO)
    content = {
        "device": "roof",
        "at": "2026-03-01T12:00:00Z",
        "temperature": 21.5,
        "inner": {"celsius": 20.5},
        "byName": {"outside": 3.0},
        "wrapped": 4.0,
        "epoch": str(NOON_US),
    }
    record = framed(7, b"\x02\x02" + protobuf_message("plant.Measurement", content))  # one index: message 1 of the file
    fields = {
        "temperature": "temperature",
        "inner": "inner.celsius",
        "map": "by_name.outside",
        "wrapped": "wrapped",
        "absent": "inner.more.0.celsius",
    }
    features = tuple(fields)
    readings = {"sensor": "device", "time": "at", "fields": fields}
    reading = registry.decoder(features, **readings, format="protobuf").decode(None, record)
    assert (reading.sensor_id, reading.timestamp_us, reading.values[:4]) == ("roof", NOON_US, (21.5, 20.5, 3.0, 4.0))
    assert reading.values[4] != reading.values[4]
    epoch = registry.decoder(features, **readings | {"time": "epoch"}, time_unit="us", format="protobuf")
    assert epoch.decode(None, record).timestamp_us == NOON_US


def test_a_protobuf_field_that_is_not_set_is_missing_if_it_has_presence(registry: Registry) -> None:
    registry.add(7, "PROTOBUF", PROTO)
    record = framed(
        7, b"\x02\x02" + protobuf_message("plant.Measurement", {"device": "a", "at": "2026-03-01T12:00:00Z"})
    )
    decoder = registry.decoder(**FLAT, format="protobuf")
    assert rejection(decoder, record).reason == "no-feature"


def test_a_protobuf_schema_that_doubles_with_each_message_type_is_read(registry: Registry) -> None:
    types = [f"message M{number} {{ M{number - 1} a = 1; M{number - 1} b = 2; }}" for number in range(1, 60)]
    registry.add(7, "PROTOBUF", f'syntax = "proto3"; message M0 {{ double a = 1; }} {" ".join(types)}')
    decoder = registry.decoder(**FLAT | {"sensor": "@key", "time": "@record_timestamp"}, format="protobuf")
    with pytest.raises(Rejected) as caught:
        decoder.decode(b"roof", framed(7, b"\x02\x76"), (), NOON_US // 1_000)
    assert caught.value.reason == "no-feature"


def test_a_protobuf_list_of_empty_messages_with_many_fields_makes_a_dead_letter(registry: Registry) -> None:
    fields = " ".join(f"int32 f{number} = {number};" for number in range(1, 1_001))
    registry.add(7, "PROTOBUF", f'syntax = "proto3"; message M {{ repeated I a = 1; }} message I {{ {fields} }}')
    record = framed(7, b"\x00" + b"\x0a\x00" * 100_000)
    assert "more than 500,002 values" in rejection(registry.decoder(**FLAT, format="protobuf"), record).detail


@pytest.mark.parametrize(
    "body", [b"", b"\x02", b"\x02\x08\x0a", b"\x01", b"\xff" * 6, b"\x02\x02\xff\xff", b"\x04\x02\x10x"]
)
def test_damaged_protobuf_messages_are_malformed(registry: Registry, body: bytes) -> None:
    registry.add(7, "PROTOBUF", PROTO)
    assert rejection(registry.decoder(**FLAT, format="protobuf"), framed(7, body)).reason in ("malformed", "bad-key")


@pytest.mark.parametrize(
    "text", ["message {", 'import "../../etc/x.proto";', "", 'syntax = "proto3"; import "a.proto";']
)
def test_an_invalid_protobuf_schema_makes_dead_letters(registry: Registry, text: str) -> None:
    registry.add(7, "PROTOBUF", text)
    assert rejection(registry.decoder(**FLAT, format="protobuf"), framed(7, b"\x00")).reason == "malformed"


def test_a_reference_outside_the_folder_is_refused(registry: Registry) -> None:
    registry.add(7, "PROTOBUF", PROTO, **{"../evil.proto": "x"})
    detail = rejection(registry.decoder(**FLAT, format="protobuf"), framed(7, b"\x00")).detail
    assert "not a relative path" in detail


# --- JSON Schema and framing ------------------------------------------------------------------------------------------

JSON = json.dumps({"device": "roof", "at": NOON_US // 1_000, "temperature": 21.5}).encode()


def test_framed_json_is_read_with_and_without_a_registry(registry: Registry) -> None:
    registry.add(7, "JSON", '{"type": "object"}')
    for decoder in (
        registry.decoder(**FLAT, format="json_schema"),
        registry.decoder(**FLAT, format="json_schema", registry_url=None),
    ):
        assert decoder.decode(None, framed(7, JSON)).values == (21.5,)
        assert "lack Confluent's framing" in rejection(decoder, JSON).detail


def test_a_schema_of_another_type_names_the_right_format(registry: Registry) -> None:
    registry.add(7, "PROTOBUF", PROTO)
    assert (
        'readings.format = "protobuf"' in rejection(registry.decoder(**FLAT, format="avro"), framed(7, b"\x00")).detail
    )


# --- the registry -----------------------------------------------------------------------------------------------------


@contextmanager
def answering(status: int, body: object) -> Iterator[str]:
    """The address of a server that gives one answer to every request."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_a_registry_that_does_not_answer_is_an_outage_and_not_a_dead_letter(tmp_path: Path) -> None:
    registry = Registry(tmp_path, f"http://user:secret@127.0.0.1:{free_ports(1)[0]}")
    with pytest.raises(SchemaRegistryUnreachable, match="schema id 7") as caught:
        registry.decoder(**FLAT, format="avro").decode(None, framed(7, b"\x00"))
    assert "secret" not in str(caught.value)


OUTAGES: list[tuple[int, object, type[Exception]]] = [
    (500, {"error_code": 50001, "message": "store"}, SchemaRegistryUnreachable),
    (401, {"error_code": 401, "message": "Unauthorized"}, SchemaRegistryError),
    (404, {"error_code": 404, "message": "HTTP 404 Not Found"}, SchemaRegistryUnreachable),  # a wrong path
    (200, "not a schema", SchemaRegistryUnreachable),
    (404, {"error_code": 40403, "message": "Schema not found"}, Rejected),
]


@pytest.mark.parametrize(("status", "body", "error"), OUTAGES)
def test_only_an_id_that_the_registry_denies_is_a_dead_letter(
    tmp_path: Path, status: int, body: object, error: type[Exception]
) -> None:
    with answering(status, body) as url, pytest.raises(error):
        Registry(tmp_path, url).decoder(**FLAT, format="avro").decode(None, framed(7, b"\x00"))


def test_a_schema_is_looked_up_once_and_kept_for_a_restart(tmp_path: Path) -> None:
    record = framed(7, avro(AVRO, {"device": "roof", "at": NOON, "temperature": 21.5}))
    with answering(200, {"schema": json.dumps(AVRO)}) as url:
        registry = Registry(tmp_path, url)
        assert registry.decoder(**FLAT, format="avro").decode(None, record).values == (21.5,)
    assert registry.decoder(**FLAT, format="avro").decode(None, record).values == (21.5,)


def test_a_damaged_kept_schema_is_looked_up_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = framed(7, avro(AVRO, {"device": "roof", "at": NOON, "temperature": 21.5}))
    with answering(200, {"schema": json.dumps(AVRO)}) as url:
        registry = Registry(tmp_path, url)
        registry.add_avro(7, AVRO)
        next(tmp_path.glob("schemas/*/7.json")).write_text("{")
        with caplog.at_level(logging.WARNING, "streamgru.schemas"):
            assert registry.decoder(**FLAT, format="avro").decode(None, record).values == (21.5,)
    assert "looked up again" in caplog.text
