"""A dead letter's detail names the foreign form of a record and the remedy."""

import base64
import gzip
import json
import re
import struct
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.foreign_keys import describe_key
from pipeline.foreign_payloads import describe_value, strip_padding
from pipeline.messages import ReadingDecoder, Rejected

DECODER = ReadingDecoder(("temperature",))
GOOD: dict[str, Any] = {"sensor_id": "roof", "timestamp": "2026-03-01T12:00:00Z", "values": {"temperature": 1.5}}
TEXT = json.dumps(GOOD)


def rejection(key: bytes | None, value: bytes | None) -> Rejected:
    with pytest.raises(Rejected) as caught:
        DECODER.decode(key, value)
    return caught.value


VALUES: list[tuple[str, bytes, str]] = [
    ("empty", b"", "empty"),
    ("white space", b" \n", "white space"),
    (
        "Avro framed",
        b"\x00" + struct.pack(">I", 17) + b"\x08roof\x02",
        'schema id 17.*looks like Avro.*format = "avro"',
    ),
    ("Protobuf framed", b"\x00" + struct.pack(">I", 18) + b"\x00\x0a\x04roof", "schema id 18.*looks like Protobuf"),
    ("JSON Schema framed", b"\x00" + struct.pack(">I", 19) + TEXT.encode(), 'schema id 19.*format = "json_schema"'),
    ("8-byte framed", b"\x00" + struct.pack(">Q", 5) + b"\x08roof", r"8-byte id \(5\).*Apicurio"),
    ("Glue framed", b"\x03\x00" + UUID(int=7).bytes + b"\x08roof", "AWS Glue"),
    ("gzip", gzip.compress(TEXT.encode()), r"gzip.*compression\.type"),
    ("zstd", b"\x28\xb5\x2f\xfd1234", "zstd"),
    ("Avro file", b"Obj\x01\x04", "Avro file"),
    ("Parquet", b"PAR1....", "Parquet"),
    ("Java object", b"\xac\xed\x00\x05sr", "Java object"),
    ("pickle", b"\x80\x04\x95\x00", "pickle"),
    ("MessagePack", msgspec.msgpack.encode({**GOOD, "n": "\xe9" * 40, "b": b"\xff"}), "MessagePack"),
    ("CBOR", b"\xa3\x69sensor_id\x64roof\xff", "CBOR"),
    ("UTF-16 with mark", TEXT.encode("utf-16"), "UTF-16: send UTF-8"),
    ("UTF-16 big endian", TEXT.encode("utf-16-be"), "UTF-16"),
    ("UTF-32", TEXT.encode("utf-32"), "UTF-32"),
    ("UTF-8 with mark", b"\xef\xbb\xbf" + TEXT.encode(), "byte order mark"),
    ("Latin-1", '{"sensor_id": "Süd"}'.encode("latin-1"), "byte 16 is 0xfc.*Latin-1"),
    ("bare Protobuf", b"\x0a\x04roof\x11\xff\xfe\x00\x00", "binary data"),
    ("array", json.dumps([GOOD, GOOD]).encode(), "array of 2 objects.*record of its own"),
    ("NDJSON", f"{TEXT}\n{TEXT}\n".encode(), "2 lines.*NDJSON.*record of its own"),
    ("objects in a row", (TEXT + TEXT).encode(), "several JSON objects in a row"),
    ("encoded twice", json.dumps(TEXT).encode(), "encodes it twice"),
    ("JSON string", b'"unavailable"', "JSON string 'unavailable'"),
    ("number", b"21.5", 'JSON value 21.5.*readings.format = "text"'),
    ("null", b"null", "JSON value null"),
    ("Connect", json.dumps({"schema": {}, "payload": GOOD}).encode(), "schemas.enable = false"),
    ("Debezium", b'{"before": null, "after": {"t": 1}, "op": "c"}', "Debezium.*after.temperature"),
    ("Debezium in Connect", b'{"schema": {}, "payload": {"before": null, "after": {}, "op": "c"}}', "Debezium"),
    ("Telegraf", b'{"fields": {"t": 1}, "name": "x", "tags": {}, "timestamp": 1}', "Telegraf"),
    ("Home Assistant", b'{"entity_id": "sensor.x", "state": "21.5"}', "Home Assistant"),
    ("ThingsBoard", b'{"ts": 1, "values": {"t": 1}}', "ThingsBoard"),
    ("CloudEvent", b'{"specversion": "1.0", "type": "a", "source": "b", "data": {}}', "CloudEvent"),
    ("flat object", b'{"device": "roof", "temperature": 1}', r"lacks sensor_id and timestamp and values.*'device'"),
    ("list of readings inside", b'{"readings": [{}, {}]}', "'readings' holds several readings"),
    ("NaN", TEXT.replace("1.5", "NaN").encode(), r"'values.temperature' is NaN.*send null"),
    ("cut", TEXT[:-5].encode(), "cut off or damaged"),
    ("Python dict", str(GOOD).encode(), r"str\(\).*json.dumps"),
    ("XML", b"<reading><t>1</t></reading>", "XML"),
    ("line protocol", b"weather,location=us temperature=82 1465839830100400200", "InfluxDB line protocol"),
    ("CSV", b"roof;2026-03-01 12:00;21,5", "CSV"),
    ("key before JSON", f"roof\t{TEXT}".encode(), "parse.key=true"),
    ("Base64", base64.b64encode(TEXT.encode()), "Base64"),
    ("a word", b"unavailable", "the text 'unavailable'.*readings.missing"),
    ("text in a named feature", TEXT.replace("1.5", '"1.5"').encode(), "'temperature' is \"1.5\".*number or null"),
    ("time without a zone", TEXT.replace("12:00:00Z", "12:00:00").encode(), "timezone"),
]


@pytest.mark.parametrize(("value", "said"), [case[1:] for case in VALUES], ids=[case[0] for case in VALUES])
def test_a_foreign_value_is_named_with_its_remedy(value: bytes, said: str) -> None:
    rejected = rejection(b"roof", value)
    assert rejected.reason == "malformed"
    assert len(rejected.detail.encode()) < 500  # a dead letter cuts longer details
    assert re.search(said, rejected.detail, re.DOTALL), rejected.detail


KEYS: list[tuple[str, bytes | None, str]] = [
    ("null", None, "key is null: set it to the sensor id 'roof', or name .* readings.sensor"),
    ("empty", b"", "key is empty"),
    ("trailing space", b"roof ", "differ in white space"),
    ("no-break space", "roof\xa0".encode(), r"'roof\\xa0' and .* differ in white space"),
    ("quotes", b'"roof"', "in quotes.*StringSerializer"),
    ("Connect's envelope", b'{"schema": {"type": "string"}, "payload": "roof"}', "in quotes|JSON"),
    ("JSON object", b'{"id": "roof"}', "@key.id"),
    ("case", b"Roof", "upper and lower case"),
    ("long", struct.pack(">q", 42), "binary number 42"),
    ("UUID", b"\xff" * 16, "binary UUID"),
    ("Avro", b"\x00\x00\x00\x00\x11\x08roof", "Confluent's framing with schema id 17"),
    ("UTF-16", "roof".encode("utf-16"), "UTF-16"),
    ("mark", b"\xef\xbb\xbfroof", "byte order mark"),
    ("another id", b"cellar", "'cellar' is not the sensor id 'roof'"),
]


@pytest.mark.parametrize(("key", "said"), [case[1:] for case in KEYS], ids=[case[0] for case in KEYS])
def test_a_foreign_key_is_named_with_its_remedy(key: bytes | None, said: str) -> None:
    rejected = rejection(key, TEXT.encode())
    assert rejected.reason == "bad-key"
    assert re.search(said, rejected.detail), rejected.detail


def test_a_key_in_another_unicode_normalization_is_named() -> None:
    assert "normalization" in describe_key("Su\u0308d".encode(), "Süd")


def test_padding_is_all_white_space_and_invisible_characters_at_the_ends() -> None:
    assert strip_padding("\ufeff\xa0 a b\u200b\t ") == "a b"


@given(value=st.binary(max_size=200), key=st.none() | st.binary(max_size=40))
def test_any_bytes_are_described(value: bytes, key: bytes | None) -> None:
    assert describe_value(value, "error")
    assert describe_key(key, "roof")
    assert describe_key(key, None)


@pytest.mark.parametrize("depth", [1_000, 30_000])
def test_deeply_nested_values_are_described(depth: int) -> None:
    assert describe_value(b"[" * depth + b"]" * depth, "error")
    assert describe_value(b'{"a":' * depth + b"1" + b"}" * depth, "error")


def test_a_detail_is_short_for_a_large_value() -> None:
    assert len(describe_value(b'{"a": "' + b"x" * 1_000_000, "error")) < 300


# --- values of features that the settings do not name -----------------------------------------------------------------


@pytest.mark.parametrize("stranger", ["NW", True, [1, 2], {"a": {"b": None}}, None, 5])
def test_an_unnamed_feature_of_any_type_is_ignored_and_counted(stranger: object) -> None:
    value = json.dumps(GOOD | {"values": {"temperature": 1.5, "wd": stranger}}).encode()
    reading = DECODER.decode(b"roof", value)
    assert (reading.values, reading.ignored) == ((1.5,), 1)


@pytest.mark.parametrize("wrong", ["1.5", True, [1.5], {"a": 1}, "", "NaN"])
def test_a_named_feature_is_a_number_or_null(wrong: object) -> None:
    value = json.dumps(GOOD | {"values": {"temperature": wrong, "wd": "NW"}}).encode()
    assert rejection(b"roof", value).reason == "malformed"


def test_the_detail_of_a_reading_without_features_names_the_values_it_has() -> None:
    value = json.dumps(GOOD | {"values": {"temp": 1.5}}).encode()
    assert rejection(b"roof", value).detail.endswith("('temperature'): it has 'temp'")
    value = json.dumps(GOOD | {"values": {"Temperature ": 1.5}}).encode()
    assert "'Temperature ' instead of 'temperature'" in rejection(b"roof", value).detail
