"""Any bytes decode to a reading or are rejected with a reason; every message survives encoding and decoding."""

import math
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from deploy.commands.topics import schema
from pipeline.dead_letter_form import DeadLetterRecord, dead_letter
from pipeline.errors import StateError
from pipeline.event_headers import ForecastHeaders, forecast_headers
from pipeline.forecaster.states.records import encode_states
from pipeline.kafka.batch_producer import encode_headers, encode_varint
from pipeline.messages import (
    EARLIEST_TIMESTAMP_US,
    LARGEST_VALUE,
    LATEST_TIMESTAMP_US,
    LONGEST_SENSOR_ID_BYTES,
    Forecast,
    Headers,
    InputPosition,
    ModelId,
    Reading,
    ReadingDecoder,
    Rejected,
    StateAge,
    StateTag,
    decode_forecast,
    decode_state,
    encode_reading,
    iso_timestamp,
    json_schemas,
    microseconds,
    quantile_key,
)
from pipeline.outlook_messages import OUTLOOK_SCHEMA_URI, all_json_schemas
from pipeline.readings_format.decoder import make_decoder
from pipeline.settings import Settings

FEATURES = ("PM2.5", "TEMP")
DECODER = ReadingDecoder(FEATURES)

timestamps = st.integers(EARLIEST_TIMESTAMP_US, LATEST_TIMESTAMP_US - 1)
sensor_ids = st.text(st.characters(codec="utf-8"), min_size=1, max_size=50)
measurements = st.one_of(st.none(), st.floats(-LARGEST_VALUE, LARGEST_VALUE))


def outcome(key: bytes | None, value: bytes | None) -> Reading | str:
    """The reading, or the reason of its rejection."""
    try:
        return DECODER.decode(key, value)
    except Rejected as rejected:
        return rejected.reason


def reading_json(**changes: Any) -> bytes:
    fields: dict[str, Any] = {"sensor_id": "a", "timestamp": "2013-03-01T00:00:00Z", "values": {"TEMP": 1.5}}
    return msgspec.json.encode(fields | changes)


@given(key=st.one_of(st.none(), st.binary()), value=st.one_of(st.none(), st.binary()))
def test_decoding_any_bytes_raises_only_rejected(key: bytes | None, value: bytes | None) -> None:
    result = outcome(key, value)
    assert isinstance(result, Reading) or result in ReadingDecoder.REASONS


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)


@given(
    fields=st.fixed_dictionaries(
        {},
        optional={
            "sensor_id": st.one_of(json_values, sensor_ids),
            "timestamp": st.one_of(json_values, st.datetimes().map(lambda moment: moment.isoformat() + "Z")),
            "values": st.one_of(json_values, st.dictionaries(st.sampled_from([*FEATURES, "x"]), json_values)),
            "more": json_values,
        },
    ),
    cut=st.integers(0, 3),
)
def test_decoding_any_json_raises_only_rejected(fields: dict[str, Any], cut: int) -> None:
    value = msgspec.json.encode(fields)
    sensor_id = fields.get("sensor_id")
    key = sensor_id.encode() if isinstance(sensor_id, str) else b"a"
    result = outcome(key, value[: len(value) - cut])
    assert isinstance(result, Reading) or result in ReadingDecoder.REASONS


def test_deeply_nested_json_is_rejected() -> None:
    assert outcome(b"a", b'{"sensor_id":' + b"[" * 200_000) == "malformed"


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        (b"a", None, "no-value"),
        (b"a", b"", "malformed"),
        (b"a", b"not json", "malformed"),
        (b"a", b'{"sensor_id": "a"}', "malformed"),
        (b"a", reading_json().replace(b"1.5", b"NaN"), "malformed"),
        (b"a", reading_json(values={"TEMP": "1.5"}), "malformed"),
        (b"a", reading_json(values={"TEMP": True}), "malformed"),
        (b"a", reading_json(sensor_id=5), "malformed"),
        (b"", reading_json(sensor_id=""), "malformed"),
        (b"a", reading_json(timestamp="2013-03-01T00:00:00"), "malformed"),
        (b"a", reading_json(timestamp="yesterday"), "malformed"),
        (b"a", reading_json(timestamp=1.5), "malformed"),
        (None, reading_json(), "bad-key"),
        (b"b", reading_json(), "bad-key"),
        (b"\xff", reading_json(), "bad-key"),
        (b"a" * (LONGEST_SENSOR_ID_BYTES + 1), reading_json(sensor_id="a" * (LONGEST_SENSOR_ID_BYTES + 1)), "bad-key"),
        (b"a", reading_json(timestamp="1899-12-31T23:59:59Z"), "bad-timestamp"),
        (b"a", reading_json(timestamp=LATEST_TIMESTAMP_US // 1_000), "bad-timestamp"),
        (b"a", reading_json(timestamp=10**18), "bad-timestamp"),
        (b"a", reading_json(values={"TEMP": 1.1e30}), "bad-value"),
        (b"a", reading_json(values={"TEMP": 1.0, "PM2.5": -1e300}), "bad-value"),
        (b"a", reading_json(values={}), "no-feature"),
        (b"a", reading_json(values={"TEMP": None, "PRES": 1.0}), "no-feature"),
    ],
)
def test_an_invalid_reading_is_rejected_with_its_reason(key: bytes | None, value: bytes | None, reason: str) -> None:
    assert outcome(key, value) == reason


@given(
    sensor_id=sensor_ids,
    timestamp_us=timestamps,
    values=st.tuples(measurements, measurements).filter(lambda pair: pair != (None, None)),
)
def test_a_decoded_reading_equals_the_encoded_one(
    sensor_id: str, timestamp_us: int, values: tuple[float | None, float | None]
) -> None:
    key, value = encode_reading(sensor_id, timestamp_us, dict(zip(FEATURES, values, strict=True)))
    reading = DECODER.decode(key, value)
    assert (reading.sensor_id, reading.timestamp_us, reading.ignored) == (sensor_id, timestamp_us, 0)
    assert [None if math.isnan(found) else found for found in reading.values] == list(values)


def test_missing_values_are_nan_and_unknown_features_are_counted() -> None:
    reading = DECODER.decode(b"a", reading_json(values={"TEMP": 2, "PRES": 1.0, "wd": None}))
    assert math.isnan(reading.values[0])
    assert reading.values[1] == 2.0
    assert reading.ignored == 2
    assert DECODER.decode(b"a", reading_json(values={"TEMP": 1.0, "PM2.5": None})).ignored == 0
    assert DECODER.decode(b"a", reading_json(values={"TEMP": 1.0, "PM2.5": 3.0, "PRES": 1.0})).ignored == 1


@given(
    timestamp_us=timestamps.map(lambda us: us // 1_000 * 1_000),
    minutes=st.integers(-14 * 60, 14 * 60),
)
def test_one_moment_in_any_spelling_is_one_timestamp(timestamp_us: int, minutes: int) -> None:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=timestamp_us)
    spellings = [timestamp_us // 1_000, iso_timestamp(timestamp_us)]
    if moment.year > 1900:
        spellings.append(moment.astimezone(timezone(timedelta(minutes=minutes))).isoformat())
    decoded = {DECODER.decode(b"a", reading_json(timestamp=spelling)).timestamp_us for spelling in spellings}
    assert decoded == {timestamp_us}
    assert microseconds(moment) == timestamp_us


def a_forecast() -> Forecast:
    return Forecast(
        sensor_id="a",
        issued_at=datetime(2013, 3, 1, tzinfo=UTC),
        cadence_s=3600.0,
        quantiles={"TEMP": {quantile_key(0.1): [1.0], quantile_key(0.5): [2.5]}},
        model=ModelId("streamgru", 3),
        settings="0123456789ab",
        input=InputPosition("readings", 4, 17),
        state=StateAge(1, 16, True),
    )


def test_a_forecast_is_written_as_the_documented_json() -> None:
    encoded = msgspec.json.encode(a_forecast())
    assert encoded == (
        b'{"sensor_id":"a","issued_at":"2013-03-01T00:00:00Z","cadence_s":3600.0,'
        b'"quantiles":{"TEMP":{"0.1":[1.0],"0.5":[2.5]}},"model":{"name":"streamgru","version":3},'
        b'"settings":"0123456789ab","input":{"topic":"readings","partition":4,"offset":17},'
        b'"state":{"origin":1,"steps":16,"warm":true}}'
    )
    assert decode_forecast(encoded) == a_forecast()


def test_forecast_headers_are_cloudevents_and_pass_the_trace_on() -> None:
    headers = dict(forecast_headers(a_forecast(), b"00-trace"))
    assert headers == {
        "ce_specversion": b"1.0",
        "ce_type": b"streamgru.forecast.v1",
        "ce_source": b"/streamgru/streamgru",
        "ce_dataschema": b"urn:streamgru:schema:forecast:1",
        "content-type": b"application/json",
        "ce_id": b"readings-4-17-3",
        "ce_time": b"2013-03-01T00:00:00Z",
        "ce_subject": b"a",
        "traceparent": b"00-trace",
    }
    assert "traceparent" not in dict(forecast_headers(a_forecast()))
    assert list(headers) == [field.encode_name for field in msgspec.structs.fields(ForecastHeaders)]


@pytest.mark.parametrize(
    ("sensor_id", "subject"),
    [
        ("süd-1", "süd-1".encode()),
        ("温度 🌡", "温度 🌡".encode()),
        (" a b ", b" a b "),
        ("a\tb", None),
        ("a\x7f", None),
        ("a\x85", None),
        ("a\ufdd0", None),
        ("a\U0010ffff", None),
    ],
)
def test_the_subject_is_the_sensor_id_in_utf8_unless_cloudevents_forbids_a_character(
    sensor_id: str, subject: bytes | None
) -> None:
    headers = dict(forecast_headers(msgspec.structs.replace(a_forecast(), sensor_id=sensor_id)))
    assert headers.get("ce_subject") == subject


def a_letter(
    key: bytes | None, value: bytes | None, headers: Headers = (), limit_bytes: int = 1_000
) -> DeadLetterRecord:
    rejected = Rejected("malformed", "é" * 600)
    return dead_letter(key, value, headers, rejected, InputPosition("readings", 2, 9), limit_bytes)


def test_dead_letters_append_reason_and_source_to_the_original_headers() -> None:
    letter = a_letter(b"s", b"{", [("mine", b"1"), ("none", None)])
    assert (letter.key, letter.value) == (b"s", b"{")
    assert letter.headers[:2] == [("mine", b"1"), ("none", None)]
    found = dict(letter.headers[2:])
    assert found["streamgru-reason"] == b"malformed"
    assert len(found["streamgru-detail"] or b"") == 500
    assert (found["streamgru-topic"], found["streamgru-partition"], found["streamgru-offset"]) == (
        b"readings",
        b"2",
        b"9",
    )
    assert "streamgru-truncated" not in found


def test_a_dead_letter_over_the_size_limit_is_cut_and_marked_as_truncated() -> None:
    assert a_letter(b"k" * 10, b"v" * 990).value == b"v" * 990
    letter = a_letter(b"k" * 10, b"v" * 5_000, [("mine", b"1")])
    assert (letter.key, letter.value) == (
        b"k" * 10,
        b"v" * (990 - 7),
    )  # the header takes 7 bytes: name, value and the length of each
    assert letter.headers[:2] == [("mine", b"1"), ("streamgru-truncated", b"5017")]

    letter = a_letter(b"k" * 10, b"v" * 500, [("mine", b"1" * 2_000)])
    assert (letter.key, letter.value) == (b"k" * 10, b"v" * 500)
    assert letter.headers[0] == ("streamgru-truncated", b"2517")

    letter = a_letter(b"k" * 5_000, b"v" * 500)
    assert (letter.key, letter.value) == (b"k" * 1_000, b"")
    assert a_letter(b"k" * 5_000, None).value is None
    assert a_letter(None, b"v" * 5_000).key is None


@given(
    key=st.none() | st.binary(max_size=300),
    value=st.none() | st.binary(max_size=300),
    headers=st.lists(st.tuples(st.text(max_size=80), st.none() | st.binary(max_size=200)), max_size=3),
    limit=st.integers(1, 400),
)
def test_key_value_and_headers_of_a_dead_letter_keep_to_the_size_limit(
    key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes | None]], limit: int
) -> None:
    letter = a_letter(key, value, headers, limit)
    kept = [header for header in letter.headers[:-5] if header[0] != "streamgru-truncated"]
    size = len(letter.key or b"") + len(letter.value or b"") + len(encode_headers(kept)) - len(encode_varint(len(kept)))
    assert size <= limit
    if len(kept) == len(letter.headers) - 5:
        assert (letter.key, letter.value, kept) == (key, value, headers)


tags = st.builds(StateTag, st.integers(0, 2**32 - 1), st.text("0123456789abcdef", min_size=12, max_size=12))


@given(tag=tags, row=st.binary(min_size=1, max_size=200))
def test_a_decoded_state_equals_the_encoded_one(tag: StateTag, row: bytes) -> None:
    assert decode_state(tag.encode(row)) == (tag, row)


@given(tag=tags, row=st.binary(min_size=1, max_size=60), data=st.data())
def test_a_damaged_state_is_refused_unless_only_its_tag_differs(tag: StateTag, row: bytes, data: Any) -> None:
    value = bytearray(tag.encode(row))
    at = data.draw(st.integers(0, len(value) - 1))
    value[at] ^= data.draw(st.integers(1, 255))
    try:
        found_tag, found_row = decode_state(bytes(value))
    except StateError:
        return
    # The checksum does not cover the tag: the reader compares its model version and settings anyway.
    assert found_row == row
    assert found_tag != tag


def test_a_state_record_without_a_row_is_refused() -> None:
    """The checksum of a missing row is correct: the checksum of no bytes is 0."""
    with pytest.raises(StateError, match="ends after its header"):
        decode_state(StateTag(1, "0123456789ab").encode(b""))


@given(tag=tags, rows=st.lists(st.binary(min_size=5, max_size=5), max_size=8))
def test_encoding_many_states_equals_encoding_each(tag: StateTag, rows: list[bytes]) -> None:
    states = np.frombuffer(b"".join(rows), np.dtype([("count", "i1"), ("last", "<u4")]))
    assert encode_states(tag, states) == [tag.encode(row) for row in rows]


@given(value=st.binary(max_size=60))
def test_random_bytes_are_refused_as_a_state(value: bytes) -> None:
    with pytest.raises(StateError):
        decode_state(value)


@given(
    tag=tags,
    others=st.lists(tags, max_size=2),
    rows=st.lists(st.binary(min_size=3, max_size=5), max_size=8),
    data=st.data(),
)
def test_unpacking_many_states_equals_decoding_each(
    tag: StateTag, others: list[StateTag], rows: list[bytes], data: Any
) -> None:
    values: list[bytes | None] = []
    for row in rows:
        value = bytearray(data.draw(st.sampled_from([tag, tag, *others])).encode(row))
        if data.draw(st.integers(0, 3)) == 0:
            value[data.draw(st.integers(0, len(value) - 1))] ^= data.draw(st.integers(0, 255))
        values += [None, bytes(value)]
    expected = []
    for place, value in enumerate(values):
        with suppress(StateError):
            if value is not None:
                found, row = decode_state(value)
                if found == tag and len(row) == 4:
                    expected.append((place, row))
    places, packed = tag.unpack_rows(values, 4)
    assert list(zip(places, [packed[at : at + 4] for at in range(0, len(packed), 4)], strict=True)) == expected


def test_the_schema_names_the_fields_of_a_reading_and_a_forecast() -> None:
    schemas = json_schemas()
    definitions = schemas["$defs"]
    reading = definitions[schemas["reading"]["$ref"].removeprefix("#/$defs/")]
    forecast = definitions[schemas["forecast"]["$ref"].removeprefix("#/$defs/")]
    assert reading["required"] == ["sensor_id", "timestamp", "values"]
    assert {"type": "integer"} in reading["properties"]["timestamp"]["anyOf"]
    assert reading["properties"]["values"]["additionalProperties"] == {"anyOf": [{"type": "number"}, {"type": "null"}]}
    adapted = msgspec.structs.replace(a_forecast(), weights={"PM2.5": {"persistence": 1.0}})
    assert list(forecast["properties"]) == list(msgspec.to_builtins(adapted))
    assert "weights" not in forecast["required"]
    assert msgspec.json.decode(msgspec.json.encode(schemas)) == schemas


def test_the_schema_command_prints_all_schemas_or_one() -> None:
    def printed(*arguments: str) -> Any:
        result = CliRunner().invoke(schema, arguments)
        assert result.exit_code == 0, result.output
        return msgspec.json.decode(result.output)

    assert printed() == all_json_schemas()
    assert printed("outlook")["$id"] == OUTLOOK_SCHEMA_URI
    assert printed("reading")["$ref"] == json_schemas()["reading"]["$ref"]
    assert printed("forecast")["$id"] == dict(forecast_headers(a_forecast()))["ce_dataschema"].decode()
    assert CliRunner().invoke(schema, ["letters"]).exit_code == 2


def test_a_value_of_absurd_size_is_rejected_before_it_is_decoded() -> None:
    value = b'{"sensor_id": "s", "timestamp": 0, "values": {"a": 1}}'
    assert ReadingDecoder(("a",), len(value)).decode(b"s", value).values == (1.0,)
    with pytest.raises(Rejected, match="malformed: the value has 55 bytes, and the largest reading 54"):
        ReadingDecoder(("a",), len(value)).decode(b"s", value + b" ")
    mapped = make_decoder(Settings(features=("a",), targets=("a",), readings={"sensor": "id"}))
    with pytest.raises(Rejected, match="malformed: the value has 17,000,000 bytes"):
        mapped.decode(b"s", bytes(17_000_000))
