"""A record is an outlook only if it is not a reading; an invalid outlook is rejected with its reason and a remedy."""

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dead_letter_form import REASONS
from pipeline.messages import OWN_FORM_HEADER, Rejected, encode_reading
from pipeline.outlook_messages import (
    BAD_OUTLOOK,
    MOST_ENTRIES,
    Outlook,
    OutlookDecoder,
    OutlookMessage,
    all_json_schemas,
    encode_outlook,
    make_outlook_decoder,
)
from pipeline.readings_format.decoder import make_decoder
from pipeline.settings import Settings

WEATHER: dict[str, Any] = {"covariates": ["TEMP", "WSPM"], "groups": {"city": ["roof", "harbour"]}}
SETTINGS = Settings(features=("value",), targets=("value",), outlooks=WEATHER)  # type: ignore[arg-type]
HOUR_US = 3_600_000_000


def decode(settings: Settings, key: bytes | None, value: bytes | None, headers: Any = ()) -> Outlook | str:
    """The outlook in a record, or why the record is a dead letter."""
    outlooks = make_outlook_decoder(settings)
    try:
        make_decoder(settings).decode(key, value, headers)
    except Rejected as rejected:
        if outlooks is None:
            return rejected.reason
        try:
            found = outlooks.decode(key, value, headers, rejected)
        except Rejected as invalid:
            return f"{invalid.reason}: {invalid.detail}"
        return rejected.reason if found is None else found
    return "a reading"


def outlook_json(**changes: Any) -> bytes:
    times = ["2016-03-01T07:00:00Z", "2016-03-01T09:00:00+01:00", 1_456_822_800_000]
    message = {
        "sensor_id": "roof",
        "issued_at": "2016-03-01T06:00:00Z",
        "outlook": {"timestamps": times, "values": {"WSPM": [2, None, 1.5], "other": "text"}},
    }
    content = {name: value for name, value in {**message, **changes}.items() if value is not ...}
    return msgspec.json.encode(content)


def values_json(values: dict[str, Any], timestamps: list[Any] | None = None) -> bytes:
    times = ["2016-03-01T07:00:00Z"] if timestamps is None else timestamps
    return outlook_json(outlook={"timestamps": times, "values": values})


def test_an_outlook_has_the_declared_covariates_in_the_order_of_the_settings() -> None:
    found = decode(SETTINGS, b"roof", outlook_json())
    assert isinstance(found, Outlook)
    assert (found.name, found.is_group, found.sensors, found.ignored) == ("roof", False, ("roof",), 1)
    assert found.issued_us == 1_456_812_000_000_000
    assert ((found.timestamp_us - found.issued_us) // HOUR_US).tolist() == [1, 2, 3]
    expected = np.array([[np.nan, 2.0], [np.nan, np.nan], [np.nan, 1.5]], np.float32)
    np.testing.assert_array_equal(found.values, expected)


def test_an_outlook_of_a_group_is_for_its_sensors() -> None:
    found = decode(SETTINGS, b"city", outlook_json(sensor_id=..., group="city"))
    assert isinstance(found, Outlook)
    assert (found.name, found.is_group, found.sensors) == ("city", True, ("roof", "harbour"))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        (b"roof", outlook_json(outlook=[1]), "malformed: the field outlook is an object with the fields timestamps"),
        (
            b"roof",
            outlook_json(outlook={"timestamps": [0]}),
            "malformed: the field outlook is an object with the fields",
        ),
        (
            b"roof",
            outlook_json(outlook={"timestamps": 1, "values": {}}),
            "malformed: the outlook's field outlook.timest",
        ),
        (b"roof", outlook_json(issued_at=...), "malformed: the record has an outlook and no field issued_at: add"),
        (b"roof", outlook_json(issued_at=1.5), "malformed: the outlook's field issued_at has another type: Expected"),
        (
            b"sea",
            outlook_json(sensor_id=..., group="city"),
            "bad-key: the key 'sea' is not the name of the group 'city': let the producer send it as UTF-8 text",
        ),
        (b"roof", outlook_json(sensor_id=...), "malformed: an outlook has either the field sensor_id or the field"),
        (b"roof", outlook_json(group="city"), "malformed: an outlook has either the field sensor_id or the field"),
        (b"roof", outlook_json(issued_at="yesterday"), "malformed: the timestamp is 'yesterday'"),
        (b"roof", outlook_json(issued_at=10**15), "bad-timestamp: "),
        (None, outlook_json(), "bad-key: the key is null"),
        (b"harbour", outlook_json(), "bad-key: "),
        (b"", outlook_json(sensor_id=""), "bad-key: the key is empty"),
        (b"sea", outlook_json(sensor_id=..., group="sea"), "bad-outlook: the group 'sea' is not in the settings"),
        (b"roof", values_json({"TEMP": []}, []), "bad-outlook: outlook.timestamps is empty"),
        (b"roof", values_json({"temp": [1.0]}), "bad-outlook: the outlook has none of the covariates"),
        (b"roof", values_json({}), "bad-outlook: the outlook has none of the covariates"),
        (b"roof", values_json({"TEMP": [1.0, 2.0]}), "bad-outlook: 'TEMP' has 2 values for 1 timestamps"),
        (b"roof", values_json({"TEMP": 1.0}), "malformed: the value of 'TEMP'"),
        (b"roof", values_json({"TEMP": ["1"]}), "malformed: the value of 'TEMP'"),
        (b"roof", values_json({"TEMP": [1e31]}), "bad-value: TEMP is beyond"),
        (b"roof", values_json({"TEMP": [1.0]}, ["2016-03-01"]), "malformed: the timestamp is"),
        (b"roof", values_json({"TEMP": [1.0]}, [10**15]), "bad-timestamp: "),
        (
            b"roof",
            values_json({"TEMP": [1.0]}, [0] * (MOST_ENTRIES + 1)),
            "bad-outlook: the outlook has 100,001 timest",
        ),
    ],
)
def test_an_invalid_outlook_is_rejected_with_the_reason_and_the_remedy(
    key: bytes | None, value: bytes, expected: str
) -> None:
    found = decode(SETTINGS, key, value)
    assert isinstance(found, str)
    assert found.startswith(expected)
    assert found.partition(":")[0] in OutlookDecoder.REASONS


def test_other_records_keep_their_verdicts() -> None:
    reading = encode_reading("roof", 0, {"value": 1.0})
    assert decode(SETTINGS, *reading) == "a reading"
    assert decode(SETTINGS, b"roof", None) == "no-value"
    for value in (b"{}", b"[]", b"\xff", b'{"outlook"', b"", b"1", b"\x00" * 9):
        assert decode(SETTINGS, b"roof", value) == "malformed"
    assert decode(SETTINGS, *encode_reading("roof", 0, {"other": 1.0})) == "no-feature"


def test_without_the_section_an_outlook_is_malformed_and_the_detail_names_the_section() -> None:
    plain = Settings(features=("value",), targets=("value",))
    assert make_outlook_decoder(plain) is None
    with pytest.raises(Rejected, match=r"malformed: .*under \[outlooks\]"):
        make_decoder(plain).decode(b"roof", outlook_json())


def test_on_a_mapped_topic_only_records_in_the_own_form_are_outlooks() -> None:
    mapped = SETTINGS.model_copy(
        update={"readings": Settings(readings={"sensor": "device", "time": "ts", "values": "."}).readings}  # type: ignore[arg-type]
    )
    assert decode(mapped, b"roof", outlook_json()) == "bad-key"
    assert isinstance(decode(mapped, b"roof", outlook_json(), [OWN_FORM_HEADER]), Outlook)


@given(
    st.lists(st.integers(0, 10_000), min_size=1, max_size=20),
    st.lists(st.one_of(st.just(np.nan), st.floats(-(2.0**99), 2.0**99, width=32)), min_size=1, max_size=40),
    st.booleans(),
)
def test_every_outlook_survives_encoding_and_decoding(hours: list[int], numbers: list[float], is_group: bool) -> None:
    times = np.array(hours, np.int64) * HOUR_US + 7
    column = np.resize(np.array(numbers, np.float64), len(times))
    name = "city" if is_group else "roof"
    found = decode(SETTINGS, *encode_outlook(name, 5 * HOUR_US, times, {"TEMP": column}, is_group=is_group))
    assert isinstance(found, Outlook)
    assert (found.name, found.is_group, found.issued_us) == (name, is_group, 5 * HOUR_US)
    np.testing.assert_array_equal(found.timestamp_us, times)
    np.testing.assert_array_equal(found.values[:, 0], column.astype(np.float32))
    assert np.isnan(found.values[:, 1]).all()


@given(st.binary(max_size=200))
def test_any_bytes_are_a_reading_an_outlook_or_rejected(value: bytes) -> None:
    decode(SETTINGS, b"roof", value)
    decode(SETTINGS, b"roof", b'{"outlook":' + value)


def test_the_reason_is_one_of_the_dead_letters() -> None:
    assert set(OutlookDecoder.REASONS) <= set(REASONS)
    assert BAD_OUTLOOK in REASONS


def test_the_json_schema_describes_the_encoded_outlook() -> None:
    schemas = all_json_schemas()
    assert schemas["outlook"] == {"$ref": "#/$defs/OutlookMessage"}
    assert set(schemas["$defs"]["OutlookMessage"]["required"]) == {"issued_at", "outlook"}
    key, value = encode_outlook("roof", 0, np.array([HOUR_US]), {"TEMP": np.array([np.nan])})
    message = msgspec.json.decode(value, type=OutlookMessage)
    assert (key, message.sensor_id) == (b"roof", "roof")
    assert message.outlook.values == {"TEMP": [None]}
