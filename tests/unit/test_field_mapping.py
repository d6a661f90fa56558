"""``[readings]`` maps messages of other systems: settings and a record go in, a reading or a reason comes out."""

import json
import math
import struct
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.forecaster.readings import decode_records
from pipeline.kafka.batch_consumer import FetchedRecord
from pipeline.messages import (
    EARLIEST_TIMESTAMP_US,
    LARGEST_READING_BYTES,
    LATEST_TIMESTAMP_US,
    OWN_FORM_HEADER,
    Headers,
    Reading,
    ReadingDecoder,
    Rejected,
    encode_reading,
    microseconds,
)
from pipeline.readings_format.decoder import MappedDecoder, OwnFormDecoder, RecordDecoder, make_decoder
from pipeline.readings_format.field_mapping import Message
from pipeline.settings import Settings
from pipeline.settings.field_paths import parse_path, parse_source, parse_template, write_path

NOON = "2026-03-01T12:00:00Z"
NOON_US = microseconds(datetime(2026, 3, 1, 12, tzinfo=UTC))
NOON_S, NOON_MS = NOON_US // 1_000_000, NOON_US // 1_000
NAN = float("nan")


def settings_of(features: tuple[str, ...] = ("value",), **readings: Any) -> Settings:
    return Settings(features=features, targets=features[:1], readings=readings)


def decoder_of(features: tuple[str, ...] = ("value",), **readings: Any) -> RecordDecoder:
    return make_decoder(settings_of(features, **readings))


def decoded(
    decoder: RecordDecoder, value: object, key: bytes | None = None, headers: Headers = (), sent_ms: int | None = None
) -> tuple[str, int, list[float]]:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    reading = decoder.decode(key, raw, headers, sent_ms)
    return reading.sensor_id, reading.timestamp_us, list(reading.values)


def rejection(
    decoder: RecordDecoder, value: object, key: bytes | None = None, headers: Headers = (), sent_ms: int | None = None
) -> Rejected:
    with pytest.raises(Rejected) as caught:
        decoded(decoder, value, key, headers, sent_ms)
    return caught.value


# --- the messages of well-known systems: (name, features, settings, record, sensor, values) ---------------------------

SYSTEMS: list[tuple[str, tuple[str, ...], dict[str, Any], dict[str, Any], str, list[float]]] = [
    (
        "flat JSON",
        ("temperature", "humidity"),
        {"sensor": "device", "time": "ts", "values": "."},
        {"value": {"device": "roof", "ts": NOON_MS, "temperature": 21.5, "humidity": None, "firmware": "1.2"}},
        "roof",
        [21.5, NAN],
    ),
    (
        "nested and renamed JSON, epoch seconds with a fraction",
        ("temperature", "humidity"),
        {
            "sensor": "{site.name}/{device}",
            "time": "at",
            "time_unit": "s",
            "fields": {"temperature": "measures.t.celsius", "humidity": 'measures."r.h"'},
        },
        {
            "value": {
                "site": {"name": "north"},
                "device": 7,
                "at": float(NOON_S),
                "measures": {"t": {"celsius": 21.5}, "r.h": 40},
            }
        },
        "north/7",
        [21.5, 40.0],
    ),
    (
        "Telegraf's JSON",
        ("usage_idle", "usage_user"),
        {"sensor": "tags.host", "time": "timestamp", "time_unit": "s", "values": "fields"},
        {
            "value": {
                "fields": {"usage_idle": 91.5, "usage_user": 3, "note": "text"},
                "name": "cpu",
                "tags": {"host": "raynor", "cpu": "cpu0"},
                "timestamp": NOON_S,
            }
        },
        "raynor",
        [91.5, 3.0],
    ),
    (
        "Telegraf's batch with one metric",
        ("usage_idle",),
        {
            "sensor": "metrics.0.tags.host",
            "time": "metrics.0.timestamp",
            "time_unit": "s",
            "values": "metrics.0.fields",
        },
        {"value": {"metrics": [{"fields": {"usage_idle": 91.5}, "tags": {"host": "raynor"}, "timestamp": NOON_S}]}},
        "raynor",
        [91.5],
    ),
    (
        "InfluxDB rows as JSON, one field per message, nanoseconds",
        ("value",),
        {"sensor": "{tags.room}/{field}", "time": "time", "time_unit": "ns", "fields": {"value": "value"}},
        {
            "value": {
                "measurement": "home",
                "field": "temp",
                "value": 21.5,
                "tags": {"room": "Kitchen"},
                "time": NOON_US * 1_000,
            }
        },
        "Kitchen/temp",
        [21.5],
    ),
    (
        "Home Assistant's Kafka integration",
        ("value",),
        {
            "sensor": "entity_id",
            "time": "last_updated",
            "fields": {"value": "state"},
            "text_numbers": True,
            "missing": ["unavailable", "unknown"],
        },
        {
            "value": {
                "entity_id": "sensor.roof",
                "state": "21.5",
                "attributes": {"unit_of_measurement": "°C"},
                "last_updated": "2026-03-01T12:00:00+00:00",
            }
        },
        "sensor.roof",
        [21.5],
    ),
    (
        "Home Assistant's statestream over an MQTT bridge: a bare text, topic as key",
        ("value",),
        {"format": "text", "sensor": "@key", "time": "@record_timestamp", "fields": {"value": "."}},
        {"value": b"21.5", "key": b"homeassistant/sensor/roof/state", "sent_ms": NOON_MS},
        "homeassistant/sensor/roof/state",
        [21.5],
    ),
    (
        "ThingsBoard telemetry",
        ("temperature", "humidity"),
        {"sensor": "@key", "time": "ts", "values": "values", "text_numbers": True},
        {"value": {"ts": NOON_MS, "values": {"temperature": "21.5", "humidity": 40}}, "key": b"roof"},
        "roof",
        [21.5, 40.0],
    ),
    (
        "ThingsBoard's rule engine: device and time in headers",
        ("temperature",),
        {"sensor": "@header.tb_msg_md_deviceName", "time": "@header.tb_msg_md_ts", "time_unit": "ms", "values": "."},
        {
            "value": {"temperature": 21.5},
            "headers": [("tb_msg_md_deviceName", b"roof"), ("tb_msg_md_ts", str(NOON_MS).encode())],
        },
        "roof",
        [21.5],
    ),
    (
        "Kafka Connect's schema and payload, JSON key",
        ("temperature",),
        {"sensor": "@key.payload", "time": "payload.ts", "values": "payload"},
        {
            "value": {"schema": {"type": "struct"}, "payload": {"ts": NOON_MS, "temperature": 21.5}},
            "key": b'{"schema": {"type": "string"}, "payload": "roof"}',
        },
        "roof",
        [21.5],
    ),
    (
        "Debezium change event",
        ("temperature",),
        {"sensor": "payload.after.device", "time": "payload.after.at", "time_unit": "us", "values": "payload.after"},
        {
            "value": {
                "payload": {
                    "before": None,
                    "after": {"id": 1, "device": "roof", "at": NOON_US, "temperature": 21.5},
                    "source": {"table": "readings"},
                    "op": "c",
                    "ts_ms": 1,
                }
            }
        },
        "roof",
        [21.5],
    ),
    (
        "Sparkplug-like JSON: a list of metrics with names",
        ("Temp", "RH"),
        {"sensor": "node", "time": "timestamp", "values": "metrics", "name": "name", "value": "value"},
        {
            "value": {
                "node": "edge1",
                "timestamp": NOON_MS,
                "metrics": [
                    {"name": "Temp", "value": 21.5},
                    {"name": "RH", "value": 40},
                    {"name": "Firmware", "value": "1.2"},
                ],
            }
        },
        "edge1",
        [21.5, 40.0],
    ),
    (
        "OPC UA PubSub: one object per feature",
        ("Temp",),
        {
            "sensor": "PublisherId",
            "time": "Messages.0.Timestamp",
            "values": "Messages.0.Payload",
            "value": "Value",
        },
        {
            "value": {
                "PublisherId": "line1",
                "Messages": [{"Timestamp": NOON, "Payload": {"Temp": {"Value": 21.5, "SourceTimestamp": NOON}}}],
            }
        },
        "line1",
        [21.5],
    ),
    (
        "SenML pack with one record",
        ("value",),
        {"sensor": "n", "time": "t", "time_unit": "s", "fields": {"value": "v"}},
        {"value": [{"n": "urn:dev:mac:01", "u": "Cel", "v": 21.5, "t": NOON_S}]},
        "urn:dev:mac:01",
        [21.5],
    ),
    (
        "CloudEvent in structured mode",
        ("temperature",),
        {"sensor": "subject", "time": "time", "values": "data"},
        {"value": {"specversion": "1.0", "subject": "roof", "time": NOON, "data": {"temperature": 21.5}}},
        "roof",
        [21.5],
    ),
    (
        "Logstash: a field with an at sign",
        ("temperature",),
        {"sensor": "host.name", "time": '"@timestamp"', "values": "."},
        {"value": {"@timestamp": "2026-03-01T12:00:00.000Z", "host": {"name": "roof"}, "temperature": 21.5}},
        "roof",
        [21.5],
    ),
    (
        "a feature's name in the message",
        ("temperature", "humidity"),
        {"sensor": "device", "time": "ts", "name": "metric", "value": "reading"},
        {"value": {"device": "roof", "ts": NOON_MS, "metric": "humidity", "reading": 40}},
        "roof",
        [NAN, 40.0],
    ),
    (
        "local time in a pattern, binary long as key",
        ("t",),
        {
            "sensor": "plc-{@key}",
            "key_format": "long",
            "time": "when",
            "time_format": "%d.%m.%Y %H:%M",
            "timezone": "Europe/Berlin",
            "values": ".",
        },
        {"value": {"when": "01.03.2026 13:00", "t": 21.5}, "key": struct.pack(">q", 42)},
        "plc-42",
        [21.5],
    ),
    (
        "switches as numbers",
        ("door", "fan"),
        {"sensor": "id", "time": "ts", "values": ".", "words": {"on": 1, "off": 0, "true": 1, "false": 0}},
        {"value": {"id": "roof", "ts": NOON_MS, "door": "off", "fan": True}},
        "roof",
        [0.0, 1.0],
    ),
    (
        "own form with keys of another kind",
        ("value",),
        {"sensor": "sensor_id"},
        {"value": {"sensor_id": "roof", "timestamp": NOON, "values": {"value": 21.5}}, "key": None},
        "roof",
        [21.5],
    ),
]


@pytest.mark.parametrize(
    ("features", "readings", "record", "sensor", "values"), [case[1:] for case in SYSTEMS], ids=[c[0] for c in SYSTEMS]
)
def test_a_record_of_a_named_system_becomes_a_reading(
    features: tuple[str, ...], readings: dict[str, Any], record: dict[str, Any], sensor: str, values: list[float]
) -> None:
    found_sensor, timestamp_us, found = decoded(decoder_of(features, **readings), **record)
    assert (found_sensor, timestamp_us) == (sensor, NOON_US)
    assert [None if math.isnan(value) else value for value in found] == [
        None if math.isnan(value) else value for value in values
    ]


# --- rejected records: (name, settings, record, reason, words in the detail) ------------------------------------------

FLAT: dict[str, Any] = {"sensor": "id", "time": "ts", "values": "."}
ROOF: dict[str, Any] = {"id": "roof", "ts": NOON_MS, "value": 21.5}

REJECTED: list[tuple[str, dict[str, Any], dict[str, Any], str, str]] = [
    ("several readings", FLAT, {"value": [ROOF, ROOF]}, "malformed", "array of length 2: send each reading as"),
    (
        "a batch of several",
        {"sensor": "metrics.0.id", "time": "metrics.0.ts", "values": "metrics.0"},
        {"value": {"metrics": [ROOF, ROOF]}},
        "malformed",
        "holds 2 objects: send each reading",
    ),
    (
        "one name twice",
        {"sensor": "id", "time": "ts", "values": "m", "name": "n", "value": "v"},
        {"value": ROOF | {"m": [{"n": "value", "v": 1}, {"n": "value", "v": 2}]}},
        "malformed",
        "'value' twice",
    ),
    ("text value", FLAT, {"value": ROOF | {"value": "21.5"}}, "malformed", "set readings.text_numbers"),
    ("a word", FLAT | {"text_numbers": True}, {"value": ROOF | {"value": "off"}}, "malformed", "readings.words"),
    ("nan as text", FLAT | {"text_numbers": True}, {"value": ROOF | {"value": "nan"}}, "malformed", "not a number"),
    ("underscore", FLAT | {"text_numbers": True}, {"value": ROOF | {"value": "1_0"}}, "malformed", "not a number"),
    ("a boolean", FLAT, {"value": ROOF | {"value": True}}, "malformed", "true"),
    ("an object", FLAT, {"value": ROOF | {"value": {"v": 1}}}, "malformed", "name the field inside it"),
    ("a list", FLAT, {"value": ROOF | {"value": [1, 2]}}, "malformed", "list of length 2"),
    ("too large", FLAT, {"value": ROOF | {"value": 10**400}}, "bad-value", "too large"),
    ("too large a float", FLAT, {"value": ROOF | {"value": 1e31}}, "bad-value", "beyond"),
    (
        "a missing word",
        FLAT | {"missing": ["n/a"]},
        {"value": ROOF | {"value": "n/a"}},
        "no-feature",
        "null or missing",
    ),
    ("no feature", FLAT, {"value": {"id": "a", "ts": NOON_MS, "temp": 1}}, "no-feature", "none of the features"),
    (
        "no sensor",
        FLAT,
        {"value": {"ts": NOON_MS, "value": 1}},
        "bad-key",
        "field 'id', which names the sensor, is absent",
    ),
    ("a null sensor", FLAT, {"value": ROOF | {"id": None}}, "bad-key", "is null"),
    ("an empty sensor", FLAT, {"value": ROOF | {"id": " \xa0"}}, "bad-key", "is empty"),
    ("a float as sensor", FLAT, {"value": ROOF | {"id": 1.5}}, "bad-key", "1.5"),
    ("a surrogate as sensor", FLAT, {"value": b'{"id": "\\ud800", "ts": 1, "value": 1}'}, "", ""),
    ("a long sensor", FLAT, {"value": ROOF | {"id": "a" * 1_025}}, "bad-key", "longer than 1024"),
    ("a null key", FLAT | {"sensor": "@key"}, {"value": ROOF}, "bad-key", "the key is null"),
    ("a binary key", FLAT | {"sensor": "@key"}, {"value": ROOF, "key": b"\xff" * 8}, "bad-key", "binary number"),
    (
        "a key without the field",
        FLAT | {"sensor": "@key.id"},
        {"value": ROOF, "key": b"{}"},
        "bad-key",
        "'id' of the key",
    ),
    ("a text key for JSON", FLAT | {"sensor": "@key.id"}, {"value": ROOF, "key": b"roof"}, "bad-key", "not JSON"),
    (
        "a short key",
        FLAT | {"sensor": "@key", "key_format": "long"},
        {"value": ROOF, "key": b"roof"},
        "bad-key",
        "4 bytes, not the 8",
    ),
    ("no header", FLAT | {"sensor": "@header.device"}, {"value": ROOF}, "bad-key", "header 'device'"),
    ("no time", FLAT, {"value": {"id": "a", "value": 1}}, "malformed", "field 'ts', which holds the time, is absent"),
    (
        "seconds as milliseconds",
        FLAT | {"time_unit": "us"},
        {"value": ROOF | {"ts": -(10**17)}},
        "bad-timestamp",
        "outside",
    ),
    ("milliseconds as seconds", FLAT | {"time_unit": "s"}, {"value": ROOF}, "bad-timestamp", 'time_unit = "ms"'),
    ("nanoseconds as ms", FLAT, {"value": ROOF | {"ts": NOON_US * 1_000}}, "bad-timestamp", 'time_unit = "ns"'),
    ("a fraction", FLAT, {"value": ROOF | {"ts": NOON_MS + 0.5}}, "bad-timestamp", "set readings.time_unit"),
    ("a text without a zone", FLAT, {"value": ROOF | {"ts": NOON[:-1]}}, "bad-timestamp", "set readings.timezone"),
    ("digits in a text", FLAT, {"value": ROOF | {"ts": "20260301120000"}}, "bad-timestamp", "time_format"),
    ("a date alone", FLAT, {"value": ROOF | {"ts": "2026-03-01"}}, "bad-timestamp", "date and time"),
    ("an absurd number", FLAT, {"value": ROOF | {"ts": 10**300}}, "bad-timestamp", "too large"),
    ("a boolean as time", FLAT, {"value": ROOF | {"ts": True}}, "bad-timestamp", "neither a number nor a text"),
    (
        "a repeated local time",
        FLAT | {"timezone": "Europe/Berlin"},
        {"value": ROOF | {"ts": "2025-10-26T02:30:00"}},
        "bad-timestamp",
        "occurs twice in Europe/Berlin",
    ),
    (
        "a skipped local time",
        FLAT | {"timezone": "Europe/Berlin"},
        {"value": ROOF | {"ts": "2026-03-29T02:30:00"}},
        "bad-timestamp",
        "occurs never in Europe/Berlin",
    ),
    (
        "another pattern",
        FLAT | {"time_format": "%d.%m.%Y", "timezone": "UTC"},
        {"value": ROOF | {"ts": "3/1/2026"}},
        "bad-timestamp",
        "does not match",
    ),
    ("no record timestamp", FLAT | {"time": "@record_timestamp"}, {"value": ROOF}, "bad-timestamp", "no timestamp"),
    (
        "a record timestamp of 2300",
        FLAT | {"time": "@record_timestamp"},
        {"value": ROOF, "sent_ms": 10**13 + 1},
        "bad-timestamp",
        "outside",
    ),
    (
        "a deleted row",
        {"sensor": "after.id", "time": "after.ts", "values": "after"},
        {"value": {"after": None}},
        "bad-key",
        "",
    ),
    ("no container", {"sensor": "id", "time": "ts", "values": "data"}, {"value": ROOF}, "malformed", "absent"),
    ("not JSON", FLAT, {"value": b"t=1"}, "malformed", "not JSON"),
    ("framed", FLAT, {"value": b"\x00\x00\x00\x00\x07\x02"}, "malformed", "schema id 7"),
    (
        "a text without fields",
        {"format": "text", **FLAT, "sensor": "@key"},
        {"value": b"21", "key": b"a"},
        "malformed",
        "",
    ),
    ("deep nesting", FLAT, {"value": b"[" * 200_000}, "malformed", ""),
]


@pytest.mark.parametrize(
    ("readings", "record", "reason", "said"), [case[1:] for case in REJECTED], ids=[case[0] for case in REJECTED]
)
def test_a_record_that_does_not_fit_the_mapping_is_rejected(
    readings: dict[str, Any], record: dict[str, Any], reason: str, said: str
) -> None:
    rejected = rejection(decoder_of(**readings), **record)
    assert rejected.reason in ReadingDecoder.REASONS
    assert not reason or rejected.reason == reason
    assert said in rejected.detail
    assert len(rejected.detail.encode()) < 500


# --- rules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "time"),
    [
        ({}, NOON_MS),
        ({}, NOON),
        ({}, "2026-03-01 13:00:00+01:00"),
        ({}, "2026-03-01T12:00Z"),
        ({}, "2026-03-01T12:00:00+00"),
        ({}, "2026-03-01T12:00:00.0000004Z"),
        ({"time_unit": "s"}, NOON_S),
        ({"time_unit": "s"}, f"{NOON_S}.000"),
        ({"time_unit": "ms"}, str(NOON_MS)),
        ({"time_unit": "us"}, NOON_US),
        ({"time_unit": "ns"}, NOON_US * 1_000 + 999),
        ({"time_unit": "ns"}, NOON),
        ({"timezone": "Europe/Berlin"}, "2026-03-01T13:00:00"),
        ({"timezone": "Europe/Berlin"}, NOON),
        ({"time_format": "%Y%m%d%H%M%S", "timezone": "UTC"}, "20260301120000"),
        ({"time_format": "%m/%d/%Y %I:%M %p %z"}, "03/01/2026 01:00 PM +0100"),
    ],
)
def test_one_moment_in_many_spellings_is_one_timestamp(options: dict[str, Any], time: object) -> None:
    assert decoded(decoder_of(**FLAT, **options), ROOF | {"ts": time})[1] == NOON_US


def test_fractions_of_a_unit_keep_their_microseconds() -> None:
    decoder = decoder_of(**FLAT, time_unit="s")
    assert decoded(decoder, ROOF | {"ts": 1_772_366_400.123456})[1] == 1_772_366_400_123_456
    assert decoded(decoder, ROOF | {"ts": "1772366400.123456"})[1] == 1_772_366_400_123_456


def test_ids_and_names_in_messages_lose_white_space_and_invisible_characters_at_their_ends() -> None:
    assert decoded(decoder_of(**FLAT), ROOF | {"id": "\ufeff roof\xa0"})[0] == "roof"
    assert decoded(decoder_of(**FLAT | {"sensor": "@key"}), ROOF, b"roof ")[0] == "roof"
    named = decoder_of(sensor="id", time="ts", name="n", value="v")
    assert decoded(named, {"id": "a", "ts": NOON_MS, "n": "value ", "v": 1})[2] == [1.0]


def test_missing_values_are_words_and_numbers() -> None:
    decoder = decoder_of(("a", "b", "c"), **FLAT, text_numbers=True, missing=["unavailable", -999])
    sent = {"id": "roof", "ts": NOON_MS, "a": " unavailable ", "b": -999.0, "c": "1e2"}
    values = decoded(decoder, sent)[2]
    assert [None if math.isnan(value) else value for value in values] == [None, None, 100.0]


def test_fields_add_to_the_object_of_values_and_win() -> None:
    decoder = decoder_of(("a", "b"), sensor="id", time="ts", values="data", fields={"b": "other.b"})
    assert decoded(decoder, {"id": "s", "ts": NOON_MS, "data": {"a": 1, "b": 2}, "other": {"b": 3}})[2] == [1.0, 3.0]


def test_other_values_of_the_object_are_counted_as_ignored() -> None:
    decoder = decoder_of(**FLAT)
    assert decoder.decode(None, json.dumps(ROOF | {"x": "text", "y": [1]}).encode()).ignored == 2
    assert decoder.decode(None, json.dumps(ROOF).encode()).ignored == 0


def test_the_last_of_several_headers_of_one_name_counts() -> None:
    decoder = decoder_of(**FLAT | {"sensor": "@header.d"})
    assert decoded(decoder, ROOF, None, [("d", b"first"), ("d", b"last")])[0] == "last"


def test_the_default_settings_keep_the_own_decoder_and_the_fingerprint() -> None:
    assert type(make_decoder(Settings())) is OwnFormDecoder
    assert type(make_decoder(settings_of(registry_url="http://registry"))) is OwnFormDecoder
    assert settings_of(registry_url="http://registry").fingerprint == Settings().fingerprint


def test_a_mapping_changes_the_fingerprint() -> None:
    prints = {settings_of(**each).fingerprint for each in ({}, FLAT, FLAT | {"missing": [1]}, {"sensor": "sensor_id"})}
    assert len(prints) == 4


def test_published_files_are_readings_on_a_mapped_topic() -> None:
    decoder = decoder_of(**FLAT)
    key, value = encode_reading("roof", NOON_US, {"value": 21.5})
    assert decoded(decoder, value, key, [OWN_FORM_HEADER]) == ("roof", NOON_US, [21.5])
    assert rejection(decoder, value, key).reason == "bad-key"


def test_a_published_reading_on_a_mapped_topic_may_be_as_large_as_the_settings_say() -> None:
    settings = Settings(
        features=("value",), targets=("value",), readings=FLAT, kafka={"max_reading_bytes": LARGEST_READING_BYTES}
    )
    key, value = encode_reading("roof", NOON_US, {"value": 21.5})
    padded = value + b" " * LARGEST_READING_BYTES
    assert decoded(make_decoder(settings), padded, key, [OWN_FORM_HEADER]) == ("roof", NOON_US, [21.5])


def test_a_repeated_name_at_the_end_of_a_long_list_is_found_in_one_pass() -> None:
    items = [{"n": f"name-{number}", "v": number} for number in range(40_000)]
    value = json.dumps(ROOF | {"m": [*items, items[-1]]}).encode()
    decoder = decoder_of(sensor="id", time="ts", values="m", name="n", value="v")
    began = time.process_time()
    assert "'name-39999' twice" in rejection(decoder, value).detail
    assert time.process_time() - began < 3  # one pass takes 0.1 s; a pass per item takes half a minute


def test_columns_of_a_mapped_topic_have_the_sensor_ids_as_keys() -> None:
    record = FetchedRecord(None, json.dumps(ROOF).encode(), 5, [], NOON_MS)
    readings = decode_records(decoder_of(**FLAT), 1, 0, [record]).readings
    assert readings.sensors == ["roof"]


@pytest.mark.parametrize(
    ("readings", "said"),
    [
        ({"sensor": "a..b"}, "not a path"),
        ({"sensor": "{a"}, "brace"),
        ({"sensor": "{a}/}"}, "brace"),
        ({"sensor": "@timestamp"}, "quotes"),
        ({"sensor": "@header."}, "no part of a record"),
        ({"time": "@now"}, "no part of a record"),
        ({"fields": {"temperature": "t"}}, "must name features"),
        ({"fields": {"value": ""}}, "not a path"),
        ({"timezone": "Berlin"}, "not a time zone"),
        ({"time_format": "%Y-%m-%d"}, "no zone"),
        ({"time_format": "%Q", "timezone": "UTC"}, "time_format"),
        ({"time_format": "%Y%z", "time_unit": "s"}, "one of them"),
        ({"name": "n"}, "name needs value"),
        ({"value": "v"}, "value needs name"),
        ({"name": "n", "value": "v", "fields": {"value": "v"}}, "exclude"),
        ({"key_format": "json"}, "key_format needs sensor"),
        ({"format": "avro"}, "registry_url"),
        ({"format": "xml"}, "json"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(readings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        settings_of(**readings)


@pytest.mark.parametrize("text", ["a", "a.b.0", 'a."b.c"', '"@timestamp".x', "Outdoor Temp.°C", '"{x}"', "."])
def test_paths_are_written_as_they_are_read(text: str) -> None:
    assert write_path(parse_path(text)) == text


def test_templates_hold_texts_and_places() -> None:
    assert parse_template("{site}/{@key}") == (parse_source("site"), "/", parse_source("@key"))
    assert parse_template('{"a}b"}x') == (parse_source('"a}b"'), "x")


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["id", "ts", "value", "m", "n", "v", "x"]), inner, max_size=5),
    ),
    max_leaves=10,
)
DECODERS = [
    decoder_of(**FLAT),
    decoder_of(**FLAT, text_numbers=True, timezone="Europe/Berlin", time_unit="s", words={"true": 1}),
    decoder_of(sensor="{m.0.id}-{@key.x}", time="m.0.ts", values="m", name="n", value="v"),
    decoder_of(format="text", sensor="@key", time="@record_timestamp", fields={"value": "."}),
    decoder_of(sensor="id", time="ts", time_format="%Y%m%d%z", values="m", value="v"),
]


def outcome(decoder: RecordDecoder, key: bytes | None, value: bytes, sent_ms: int | None) -> Reading | Rejected:
    try:
        return decoder.decode(key, value, [], sent_ms)
    except Rejected as rejected:
        return rejected


@given(
    message=st.one_of(json_values, st.fixed_dictionaries({"id": json_values, "ts": json_values, "value": json_values})),
    key=st.none() | st.binary(max_size=9) | json_values.map(lambda each: json.dumps(each).encode()),
    sent_ms=st.none() | st.integers(-1, 2**62),
    decoder=st.sampled_from(DECODERS),
)
def test_any_message_is_a_reading_within_the_limits_or_rejected(
    message: object, key: bytes | None, sent_ms: int | None, decoder: RecordDecoder
) -> None:
    assert isinstance(decoder, MappedDecoder)
    reading = outcome(decoder, key, json.dumps(message).encode(), sent_ms)
    if isinstance(reading, Rejected):
        assert reading.reason in ReadingDecoder.REASONS
        assert len(reading.detail.encode()) < 500
        return
    assert reading.sensor_id
    assert EARLIEST_TIMESTAMP_US <= reading.timestamp_us < LATEST_TIMESTAMP_US
    assert any(value == value for value in reading.values)


@given(
    fields=st.fixed_dictionaries(
        {
            "id": st.sampled_from(["roof", " roof", "ü", "", 5, None]),
            "ts": st.sampled_from([NOON_MS, NOON, None, -1, 1e3]),
        },
        optional={"value": st.none() | st.floats(-1e31, 1e31) | st.integers(), "x": json_values},
    )
)
def test_the_fast_path_gives_the_same_readings(fields: dict[str, Any]) -> None:
    decoder = DECODERS[0]
    assert isinstance(decoder, MappedDecoder)
    assert decoder._read_plain is not None
    fast = None
    with suppress(Rejected):
        fast = decoder._read_plain(fields)
    if fast is not None:
        slow = decoder._mapping.reading(Message(fields, None, [], None))
        assert (fast.sensor_id, fast.timestamp_us, fast.ignored) == (slow.sensor_id, slow.timestamp_us, slow.ignored)
        assert all(
            one == other or (one != one and other != other) for one, other in zip(fast.values, slow.values, strict=True)
        )
