"""The fuzz target of ``[readings]``: any record under any mapping is a reading, or rejected with a reason."""

import io
import json
import random
import struct
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import fastavro
from pydantic import ValidationError

from pipeline.dead_letter_form import dead_letter
from pipeline.errors import SchemaRegistryUnreachable
from pipeline.foreign_payloads import CONFLUENT_HEADER_BYTES
from pipeline.messages import (
    EARLIEST_TIMESTAMP_US,
    LARGEST_VALUE,
    LATEST_TIMESTAMP_US,
    LONGEST_SENSOR_ID_BYTES,
    OWN_FORM_HEADER,
    Headers,
    InputPosition,
    Reading,
    ReadingDecoder,
    Rejected,
)
from pipeline.readings_format.avro_schemas import UnusableSchema, make_avro_reader
from pipeline.readings_format.decoder import MappedDecoder, RecordDecoder, make_decoder
from pipeline.readings_format.schema_registry import Schema, SchemaStore
from pipeline.settings import Settings
from tests.fuzz.mutation import mutate

FEATURES: Final = ("temperature", "a.b", "é")
LETTER_LIMIT: Final = 2_000
SLOWEST_S: Final = 5.0  # CPU time of a case; usual cases take less than a millisecond
_FOLDER = tempfile.TemporaryDirectory(prefix="streamgru-fuzz-")
_REGISTRY: Final = "http://127.0.0.1:9/apis"  # nothing answers; every schema is kept in the folder

# --- settings ---------------------------------------------------------------------------------------------------------

_OPTIONS: Final[dict[str, tuple[Any, ...]]] = {
    "sensor": ("device", "{site}/{device}", "@key", "@key.id", "@header.device", "tags.host", "a.0.id", "{@key}-{.}"),
    "time": ("at", "ts", "@record_timestamp", "@header.at", "a.0.at", "."),
    "time_unit": ("s", "ms", "us", "ns"),
    "time_format": ("%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M:%S%z", "%d/%m/%y", "%s", "%"),
    "timezone": ("UTC", "Europe/Berlin", "Mars"),
    "values": (".", "fields", "a", "a.0", "payload.fields"),
    "fields": ({"temperature": "t"}, {"temperature": "a.0.value", "é": '"a.b"'}, {"é": "."}),
    "name": ("name", "a.0.name"),
    "value": ("value", "a.0.value", "."),
    "text_numbers": (True,),
    "words": ({"on": 1.0, "true": 1.0, "off": 0.0}, {"": 1.0}),
    "missing": (("unavailable", -999.0, 0.0), ("",)),
    "key_format": ("text", "json", "int", "long", "avro", "json_schema"),
    "format": ("json", "json", "json", "text", "json_schema"),
}
_USUAL: Final[tuple[dict[str, Any], ...]] = (
    {"sensor": "device", "time": "at", "values": "."},
    {"sensor": "tags.host", "time": "ts", "time_unit": "s", "values": "fields", "text_numbers": True},
    {"sensor": "{site}/{device}", "time": "at", "name": "name", "value": "value", "timezone": "UTC"},
    {"sensor": "@key", "time": "@record_timestamp", "values": "a", "name": "name", "value": "value"},
    {"format": "text", "sensor": "@key", "time": "@record_timestamp", "fields": {"temperature": "."}},
)


def _make_settings(readings: dict[str, Any]) -> Settings:
    return Settings(home=Path(_FOLDER.name), features=FEATURES, targets=FEATURES[:1], readings=readings)


# --- schemas ----------------------------------------------------------------------------------------------------------

_PLACE: Final = {"type": "record", "name": "Place", "fields": [{"name": "id", "type": "string"}]}
_NUMBER: Final = ["null", "double", "string", {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}]
_AVRO: Final[tuple[dict[str, Any], ...]] = (
    {
        "type": "record",
        "name": "M",
        "fields": [
            {"name": "device", "type": "string"},
            {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
            {"name": "temperature", "type": ["null", "double"]},
        ],
    },
    {
        "type": "record",
        "name": "M",
        "fields": [
            {"name": "device", "type": ["null", _PLACE, {"type": "string", "logicalType": "uuid"}]},
            {"name": "at", "type": ["int", {"type": "long", "logicalType": "local-timestamp-micros"}, "string"]},
            {"name": "temperature", "type": _NUMBER},
            {"name": "fields", "type": {"type": "map", "values": _NUMBER}},
            {"name": "a", "type": {"type": "array", "items": ["Place", "float", "boolean"]}},
        ],
    },
)
_AVRO_CONTENT: Final[tuple[dict[str, Any], ...]] = (
    {"device": "roof", "at": 1_772_366_400_000, "temperature": 21.5},
    {
        "device": {"id": "roof"},
        "at": 1_772_366_400_000_000,
        "temperature": "21.5",
        "fields": {"temperature": 1.5, "é": None},
        "a": [{"id": "x"}, 1.0, True],
    },
)
_PROTO: Final = """
syntax = "proto3";
import "google/protobuf/timestamp.proto";
import "google/protobuf/wrappers.proto";
message M {
  message Inner { double value = 1; string name = 2; repeated Inner more = 3; }
  enum Unit { C = 0; F = 1; }
  string device = 1;
  google.protobuf.Timestamp at = 2;
  optional double temperature = 3;
  repeated Inner a = 4;
  map<string, double> fields = 5;
  google.protobuf.FloatValue t = 6;
  oneof x { int64 ts = 7; bytes raw = 8; }
  Unit site = 9;
}
"""
_PROTO_BODIES: Final = (
    b"\x0a\x04roof\x12\x06\x08\x80\xd1\x8f\xcd\x06\x19\x00\x00\x00\x00\x00\x80\x35\x40",
    (
        b"\x0a\x04roof\x38\x80\xf0\xd4\xdc\xca\x33\x22\x0b\x09\x00\x00\x00\x00\x00\x80\x35\x40\x1a\x00\x48\x01"
        b"\x2a\x16\x0a\x0btemperature\x11\x00\x00\x00\x00\x00\x80\x35\x40"
    ),
)


def _avro(schema: Any, content: object) -> bytes:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(schema), content)
    return stream.getvalue()


def _framed(schema_id: int, body: bytes) -> bytes:
    return b"\x00" + struct.pack(">I", schema_id) + body


def _framed_decoders() -> dict[str, list[RecordDecoder]]:
    """Decoders of each format, with the schemas 1 and 2 for Avro, 3 for Protobuf and 4 for JSON."""
    store = SchemaStore(_make_settings({**_USUAL[0], "format": "avro", "registry_url": _REGISTRY}))
    for number, schema in enumerate(_AVRO, start=1):
        store.keep(number, Schema("AVRO", json.dumps(schema)))
    store.keep(3, Schema("PROTOBUF", _PROTO))
    store.keep(4, Schema("JSON", "{}"))
    options = {"registry_url": _REGISTRY, "registry_options": {"max.retries": "0"}}
    mappings = (
        {"sensor": "device", "time": "at", "values": "."},
        {"sensor": "device.id", "time": "at", "time_unit": "us", "values": "fields", "timezone": "Europe/Berlin"},
        {"sensor": "@key", "time": "ts", "fields": {"temperature": "t", "é": "a.0.value"}, "text_numbers": True},
        {"sensor": "@key", "key_format": "avro", "time": "@record_timestamp", "values": ".", "words": {"C": 1.0}},
    )
    return {
        format_: [make_decoder(_make_settings({**mapping, **options, "format": format_})) for mapping in mappings]
        for format_ in ("avro", "protobuf", "json_schema")
    }


_FRAMED = _framed_decoders()
_AVRO_BODIES = [_framed(n + 1, _avro(_AVRO[n], _AVRO_CONTENT[n])) for n in range(len(_AVRO))]
_SEEDS: Final[dict[str, list[bytes]]] = {
    "avro": _AVRO_BODIES,
    "protobuf": [_framed(3, indexes + body) for body in _PROTO_BODIES for indexes in (b"\x00", b"\x02\x00")],
}

# --- values -----------------------------------------------------------------------------------------------------------

_LEAVES: Final[tuple[Any, ...]] = (
    *(21.5, -0.0, 1e308, 1e31, 5e-324, 0, -999, 10**25, 10**400, True, None, "", " roof ", "é" * 700, "\u200b", "\x00"),
    *("21.5", "1e5", "1" * 500, "NaN", "unavailable", "on", "roof", [], {}, [1.5, 2.5], "2026-03-01 12:00"),
    *(1_772_366_400, 1_772_366_400_000, 1_772_366_400.5, "2026-03-01T12:00:00Z", "2026-03-29T02:30", "1772366400.25"),
    *("9999-12-31T23:59:59Z", "0001-01-01T00:00", -(2**63), 2**64, 1e300, "20260301", "2026-02-30T12:00:00+23:59"),
)
_NAMES: Final = ("device", "site", "at", "ts", "tags", "host", "fields", "a", "name", "value", "id", "t", *FEATURES)
_MESSAGES: Final[tuple[Any, ...]] = (
    {"device": "roof", "site": "n", "at": 1_772_366_400_000, "temperature": 21.5, "a.b": None, "é": 1},
    {"tags": {"host": "roof"}, "ts": 1_772_366_400, "fields": {"temperature": "21.5", "note": "x"}},
    {"site": 7, "device": "roof", "at": "2026-03-01T12:00:00", "name": "temperature", "value": 21.5},
    {"a": [{"name": "temperature", "value": 1.5, "id": "x", "at": 1}, {"name": "é", "value": None}]},
    21.5,
    [{"device": "roof", "at": "2026-03-01T12:00:00Z", "temperature": 2}],
)
_TEXTS: Final = [json.dumps(message, ensure_ascii=False).encode() for message in _MESSAGES]
_SEEDS["json_schema"] = [_framed(4, text) for text in _TEXTS]
_KEYS: Final = (None, b"", b"roof", b" roof\xc2\xa0", b'{"id": "roof"}', b'{"id": 7}', b"\x00\x00\x00\x07", b"\xff" * 8)
_HEADERS: Final[tuple[Headers, ...]] = (
    (),
    [("device", b"roof"), ("at", b"1772366400000")],
    [("device", b"\xff"), ("at", b"")],
    [OWN_FORM_HEADER],
)


def _altered(chance: random.Random, content: Any) -> Any:
    """The content with some of its leaves, names and levels replaced."""
    if chance.random() < 0.05:
        return chance.choice(_LEAVES)
    if isinstance(content, dict):
        made = {name: _altered(chance, inner) for name, inner in content.items() if chance.random() > 0.04}
        if chance.random() < 0.1:
            made[chance.choice(_NAMES)] = chance.choice((*_LEAVES, *_MESSAGES))
        return made
    if isinstance(content, list):
        return [_altered(chance, inner) for inner in content] * chance.choice((1, 1, 1, 0, 2))
    return content


def mapped(chance: random.Random) -> None:
    """Any bytes under any mapping give a reading within the limits, or a dead letter, in bounded time."""
    began = time.thread_time()
    kind = chance.random()
    if kind < 0.1:
        _read_any_avro_schema(chance)
    elif kind < 0.6:
        place = chance.randrange(len(_USUAL))
        decoder = _mapping(chance, _USUAL[place])
        if decoder is not None:
            message = chance.choice((_MESSAGES[place], _MESSAGES[place], chance.choice(_MESSAGES)))
            _decode(chance, decoder, _json_value(chance, message))
    else:
        format_ = chance.choice(tuple(_FRAMED))
        _decode(chance, chance.choice(_FRAMED[format_]), _framed_value(chance, format_))
    assert time.thread_time() - began < SLOWEST_S


def _mapping(chance: random.Random, usual: dict[str, Any]) -> RecordDecoder | None:
    """The decoder of a mapping with some options changed; None if the settings refuse it."""
    readings = dict(usual)
    for name in _OPTIONS:
        if chance.random() < 0.06:
            readings[name] = chance.choice(_OPTIONS[name])
        elif chance.random() < 0.02:
            readings.pop(name, None)
    if readings.get("key_format") == "avro":
        readings["registry_url"] = _REGISTRY
    try:
        settings = _make_settings(readings)
    except ValidationError:
        return None
    return make_decoder(settings)


def _decode(chance: random.Random, decoder: RecordDecoder, value: bytes | None) -> None:
    key = chance.choice((b"roof", chance.choice((*_KEYS, _AVRO_BODIES[0]))))
    headers = chance.choice(_HEADERS)
    if chance.random() < 0.2:
        key = mutate(key or b"roof", _TEXTS, chance)
    sent_ms = chance.choice((1_772_366_400_000, 1_772_366_400_000, None, -1, 0, 2**62))
    found = _result(decoder, key, value, headers, sent_ms)
    if isinstance(found, Rejected):
        _check_rejected(found, key, value, headers)
    elif found is not None:
        _check_reading(found)
    if isinstance(decoder, MappedDecoder) and decoder._read_plain is not None:
        plain, decoder._read_plain = decoder._read_plain, None
        slow = _result(decoder, key, value, headers, sent_ms)
        decoder._read_plain = plain
        assert str(slow) == str(found), "the fast path of plain messages gives another result"


def _result(
    decoder: RecordDecoder, key: bytes | None, value: bytes | None, headers: Headers, sent_ms: int | None
) -> Reading | Rejected | None:
    """The reading or the rejection; None if an unknown schema has to be looked up."""
    try:
        return decoder.decode(key, value, headers, sent_ms)
    except Rejected as rejected:
        return rejected
    except SchemaRegistryUnreachable:
        return None


def _json_value(chance: random.Random, message: Any) -> bytes | None:
    match chance.randrange(12):
        case 0:
            return mutate(chance.choice(_TEXTS), _TEXTS, chance)
        case 1:
            return chance.choice((None, b"", b"21.5", b"on", b" unavailable ", b"\xff", _AVRO_BODIES[0], b"1e999"))
        case _:
            altered = _altered(chance, message)
            return json.dumps(altered, ensure_ascii=chance.random() < 0.5).encode(errors="surrogatepass")


def _framed_value(chance: random.Random, format_: str) -> bytes:
    seeds = _SEEDS[format_]
    value = chance.choice(seeds)
    head = value[:CONFLUENT_HEADER_BYTES]
    match chance.randrange(8):
        case 0:
            return mutate(value, [seed for each in _SEEDS.values() for seed in each], chance)
        case 1 | 2 | 3:
            return head + mutate(value[len(head) :], [seed[len(head) :] for seed in seeds], chance)
        case 4 | 5 if format_ == "avro":  # the structure stays intact
            number = head[-1] - 1
            try:
                return head + _avro(_AVRO[number], _altered(chance, _AVRO_CONTENT[number]))
            except (ValueError, TypeError, KeyError, AttributeError, OverflowError, struct.error):
                return value  # the schema does not take the altered content
        case 4 | 5 if format_ == "json_schema":
            return head + json.dumps(_altered(chance, chance.choice(_MESSAGES))).encode()
        case _:
            return value


# --- any schema -------------------------------------------------------------------------------------------------------

_TYPES: Final = ("null", "boolean", "int", "long", "float", "double", "bytes", "string", "T0", "T1", "T2", "T3")


def _read_any_avro_schema(chance: random.Random) -> None:
    """A schema of any types is refused, or reads any short record without much time or memory."""
    text = json.dumps(_type(chance, 0, []))
    if chance.random() < 0.3:
        text = mutate(text.encode(), [text.encode()], chance).decode(errors="replace")
    try:
        read = make_avro_reader(Schema("AVRO", text))
    except UnusableSchema:
        return
    for body in (b"", b"\x00" * 200, b"\x02" * 200, chance.randbytes(60)):
        with suppress(Rejected):
            read(body)


def _type(chance: random.Random, depth: int, named: list[str]) -> Any:
    kind = chance.randrange(9) if depth < 12 else 0
    if kind < 2 and named and chance.random() < 0.7:
        return chance.choice(named)
    match kind:
        case 2 | 3 | 4:
            fields = [
                {"name": f"f{number}", "type": _type(chance, depth + 1, named)}
                for number in range(chance.choice((0, 1, 2, 2, 3)))
            ]
            named.append(f"T{len(named)}")
            return {"type": "record", "name": named[-1], "fields": fields}
        case 5:
            return [_type(chance, depth + 1, named) for _ in range(chance.choice((0, 1, 2)))]
        case 6:
            return {"type": "array", "items": _type(chance, depth + 1, named)}
        case 7:
            return {"type": "map", "values": _type(chance, depth + 1, named)}
        case 8:
            named.append(f"T{len(named)}")
            size = chance.choice((0, 1, 4, 2**31, -1))
            logical = chance.choice(({}, {"logicalType": "decimal", "precision": 4}, {"logicalType": "uuid"}))
            return {"type": "fixed", "name": named[-1], "size": size, **logical}
        case _:
            return chance.choice(_TYPES)


# --- results ----------------------------------------------------------------------------------------------------------


def _check_rejected(rejected: Rejected, key: bytes | None, value: bytes | None, headers: Headers) -> None:
    assert rejected.reason in ReadingDecoder.REASONS
    assert rejected.detail
    letter = dead_letter(key, value, list(headers), rejected, InputPosition("readings", 0, 7), LETTER_LIMIT)
    assert len(letter.key or b"") + len(letter.value or b"") <= LETTER_LIMIT
    assert (dict(letter.headers)["streamgru-detail"] or b"").decode()


def _check_reading(reading: Reading) -> None:
    assert 0 < len(reading.sensor_id.encode()) <= LONGEST_SENSOR_ID_BYTES
    assert type(reading.timestamp_us) is int
    assert EARLIEST_TIMESTAMP_US <= reading.timestamp_us < LATEST_TIMESTAMP_US
    assert len(reading.values) == len(FEATURES)
    known = [value for value in reading.values if value == value]
    assert known
    assert all(type(value) is float and -LARGEST_VALUE <= value <= LARGEST_VALUE for value in known)
    assert reading.ignored >= 0
