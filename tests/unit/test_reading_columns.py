"""Readings that are decoded in columns are those that ``ReadingDecoder`` makes of each record."""

import json
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka.record.default_records import DefaultRecordBatch

from pipeline import messages
from pipeline.forecaster.readings import decode_records
from pipeline.kafka.record_batch import FetchedRecord, read_batch
from pipeline.kafka.record_kernel import read_columns
from pipeline.messages import OWN_FORM_HEADER, encode_reading
from pipeline.reading_times import TimeRule
from pipeline.readings_format import reading_kernel
from pipeline.readings_format.decoder import OwnFormDecoder
from tests.columns import content, in_columns
from tests.unit.test_batch_consumer import encoded
from tests.unit.test_loading import output_of

FEATURES = ("PM2.5", "TEMP", "é", "a")
DECODER = OwnFormDecoder(FEATURES, 4_000)
RULES = (TimeRule(0, 3_600_000_000, messages.EARLIEST_TIMESTAMP_US),)
MOMENT_MS = 1_362_096_000_000


def is_in_columns(record: FetchedRecord) -> bool:
    """Whether the kernel decodes a record."""
    columns = in_columns([record])
    return DECODER.decode_columns(columns.data, columns.table).decoded == 1


def check(messages_: list[tuple[bytes | None, bytes | None]]) -> None:
    """Both paths give the same readings, rejections and counts."""
    records = [FetchedRecord(key, value, number, [], MOMENT_MS) for number, (key, value) in enumerate(messages_)]
    for rules in ((), RULES):
        one_by_one = decode_records(DECODER, len(FEATURES), 0, records, rules)
        assert content(decode_records(DECODER, len(FEATURES), 0, in_columns(records), rules)) == content(one_by_one)


def reading(values: str = '"a":1', sensor: str = "s", time: str = '"2013-03-01T00:00:00Z"') -> bytes:
    return f'{{"sensor_id":"{sensor}","timestamp":{time},"values":{{{values}}}}}'.encode()


USUAL = [
    (b"aotizhongxin", reading('"PM2.5":4.0,"TEMP":-0.7,"\u00e9":null,"a":1e3', "aotizhongxin")),
    ("é".encode(), reading('"\u00e9":-0.0, "stranger":1 , "other":2.5E-3,"TEMP":0', "é", str(MOMENT_MS))),
    (b"s", b' {"values": {"TEMP": 12.25}, "timestamp": "2013-03-01T00:00:00.123456+05:30", "sensor_id": "s"}\n'),
]


def test_usual_readings_need_no_object_each() -> None:
    check(USUAL)
    assert all(is_in_columns(FetchedRecord(key, value, 0, [])) for key, value in USUAL)


def test_the_limits_of_the_kernel_are_those_of_the_messages() -> None:
    for name in ("LARGEST_VALUE", "LONGEST_SENSOR_ID_BYTES", "EARLIEST_TIMESTAMP_US", "LATEST_TIMESTAMP_US"):
        assert getattr(reading_kernel, name) == getattr(messages, name)


@pytest.mark.parametrize("which", range(len(USUAL)))
def test_every_changed_byte_gives_the_same_outcome(which: int) -> None:
    key, value = USUAL[which]
    changed = [(key, value[:at]) for at in range(len(value))]
    for at in range(len(value)):
        for byte in {value[at] ^ 1 << bit for bit in range(8)} | set(b'\x00\t "\\09-+.eE,:{}[]nZ/\x7f\x80\xed\xff'):
            changed.append((key, value[:at] + bytes([byte]) + value[at + 1 :]))
            changed.append((key, value[:at] + bytes([byte]) + value[at:]))
        changed.append((key, value[:at] + value[at + 1 :]))
    check(changed)


def test_every_changed_byte_of_a_key_gives_the_same_outcome() -> None:
    for key, value in USUAL:
        keys = [key[:at] + bytes([key[at] ^ 1 << bit]) + key[at + 1 :] for at in range(len(key)) for bit in range(8)]
        check([(each, value) for each in (*keys, None, b"", key[:-1], key + b"x")])


texts = st.text(max_size=8) | st.sampled_from(["a", "TEMP", "PM2.5", "sensor_id", "\ud800", "\U0001f321", '"', "\\"])
numbers = (
    st.floats().map(repr)
    | st.integers().map(str)
    | st.from_regex(r"-?[0-9]{1,25}(\.[0-9]{1,25})?([eE][-+]?[0-9]{1,4})?", fullmatch=True)
    | st.sampled_from(["null", "true", "1.", ".5", "+1", "01", "-0", "-0.0", "0e0", '"1"', "[1]", "1e400", "1e30"])
)
times = (
    st.from_regex(
        r'"[0-9]{4}-[01][0-9]-[0-3][0-9][Tt ][0-2][0-9]:[0-6][0-9]:[0-6][0-9]([.,][0-9]{0,9})?'
        r'(Z|z|[-+][0-9]{2}:?[0-9]{2})?"',
        fullmatch=True,
    )
    | st.datetimes().map(lambda moment: f'"{moment.isoformat()}Z"')
    | st.datetimes().map(lambda moment: f'"{moment.isoformat()}-05:45"')
    | st.integers(-(10**16), 10**16).map(str)
    | numbers
)
spaces = st.sampled_from(["", "", "", " ", "\n", "\t ", "\x0b", "\u00a0"])


@st.composite
def written(draw: st.DrawFn) -> tuple[bytes | None, bytes | None]:
    """A key, and a value written field by field: mostly a reading."""

    def name(text: str) -> str:
        return json.dumps(text, ensure_ascii=draw(st.booleans()))

    def object_of(pairs: list[tuple[str, str]]) -> str:
        space = draw(spaces)
        inside = f"{space},{space}".join(f"{name(key)}{space}:{draw(spaces)}{value}" for key, value in pairs)
        return f"{{{space}{inside}{space}}}"

    sensor = draw(texts)
    values = object_of(draw(st.lists(st.tuples(st.sampled_from(FEATURES) | texts, numbers), max_size=6)))
    fields = [("sensor_id", name(sensor)), ("timestamp", draw(times)), ("values", values)]
    fields = draw(st.permutations(fields))
    if draw(st.integers(0, 9)) == 0:
        fields.insert(draw(st.integers(0, 3)), (draw(texts), draw(numbers)))
    value = object_of(fields).encode(errors="surrogatepass") + draw(st.sampled_from([b"", b"", b"\n", b"}", b"\x00"]))
    return draw(st.just(sensor.encode(errors="surrogatepass")) | st.none() | st.binary(max_size=4)), value


@settings(max_examples=1_000)
@given(st.lists(written(), min_size=1, max_size=5))
def test_any_fields_give_the_same_outcome(messages_: list[tuple[bytes | None, bytes | None]]) -> None:
    check(messages_)


@settings(max_examples=1_000)
@given(st.lists(numbers, min_size=1, max_size=20))
def test_numbers_are_those_of_the_exact_path(values: list[str]) -> None:
    check([(b"s", reading(f'"a":{value},"TEMP":1')) for value in values])


@pytest.mark.parametrize("sign", ["", "-"])
def test_a_number_whose_digits_pass_64_bits_is_that_of_the_exact_path(sign: str) -> None:
    digits = [str(multiple * 2**64 + more) for multiple in (1, 2, 5) for more in (-1, 0, 1)]
    written = [
        form
        for text in digits
        for form in (text, f"{text[:1]}.{text[1:]}", f"0.{text}e3", f"0.000{text}", f"{text[:1]}.{text[1:]}000")
    ]
    check([(b"s", reading(f'"a":{sign}{number}')) for number in written])
    record = FetchedRecord(b"s", reading('"a":18446744073709551616'), 0, [])
    assert decode_records(DECODER, len(FEATURES), 0, in_columns([record])).readings.values[0, 3] == 2.0**64


@settings(max_examples=1_000)
@given(st.floats(-1e30, 1e30, allow_nan=False))
def test_a_number_is_read_back_as_it_was_written(value: float) -> None:
    record = FetchedRecord(*encode_reading("s", 0, {"a": value}), 0, [])
    found = decode_records(DECODER, len(FEATURES), 0, in_columns([record])).readings.values[0, 3]
    assert struct.pack("d", found) == struct.pack("d", value)
    if value == 0 or abs(value) > 1e-40:
        assert is_in_columns(record) or repr(value) == "-0"


@given(st.lists(times, min_size=1, max_size=20))
def test_times_are_those_of_the_exact_path(found: list[str]) -> None:
    check([(b"s", reading(time=time)) for time in found])


@pytest.mark.parametrize("time", ["2000-02-29", "1900-02-28", "2100-02-28", "2199-12-31", "1900-01-01", "2012-12-31"])
def test_usual_times_are_decoded_in_columns(time: str) -> None:
    for clock in ("00:00:00Z", "23:59:59.999999Z", "12:30:00.5+00:00", "05:45:01-05:45"):
        record = FetchedRecord(b"s", reading(time=f'"{time}T{clock}"'), 0, [])
        check([(record.key, record.value)])
        assert is_in_columns(record) or time[:4] in ("1900", "2199")


@pytest.mark.parametrize("year", [1900, 2000, 2013, 2016, 2100])
def test_only_days_of_the_calendar_are_times(year: int) -> None:
    days = [f"{year}-{month:02}-{day:02}" for month in range(14) for day in range(33)]
    check([(b"s", reading(time=f'"{day}T12:00:00Z"')) for day in days])


def test_a_feature_that_comes_twice_has_its_last_value() -> None:
    check([(b"s", reading(values)) for values in ('"a":1,"a":2', '"a":1,"TEMP":3,"a":null', '"a":null,"a":2')])


@pytest.mark.parametrize(
    "character", [b"\xed\xa0\x80", b"\xc0\xaf", b"\xe0\x80\xaf", b"\xf4\x90\x80\x80", b"\xf0\x82\x82\xac"]
)
def test_a_text_that_is_not_utf_8_is_rejected_alike(character: bytes) -> None:
    for text in (character, character[:-1], character + b"x", b"\xf0\x9f\x8c\xa1", b"\xef\xbf\xbf", b"\xed\x9f\xbf"):
        check([(text, b'{"sensor_id":"' + text + b'","timestamp":0,"values":{"a":1}}')])
        check([(b"s", reading('"a":1,"?":2').replace(b"?", text))])


def test_many_unknown_features_are_counted_and_repeated_ones_once() -> None:
    for count in (63, 64, 65, 200):
        strangers = ",".join(f'"stranger {number}":{number}' for number in range(count))
        check([(b"s", reading(f'"a":1,{strangers}')), (b"s", reading(f'"a":1,{strangers},"stranger 0":null'))])


def test_many_features_in_any_order_give_the_same_outcome() -> None:
    for count in (3, 20, 200):
        features = [f"feature {number}" for number in range(count)]
        decoder = OwnFormDecoder(features, 100_000)
        for order, is_fast in ((features, True), (features[1:] + features[:1], True), (features[::-1], count < 200)):
            values = ",".join(f'"{name}":{number}' for number, name in enumerate(order))
            records = [FetchedRecord(b"s", reading(values), 0, [])]
            columns = in_columns(records)
            assert decoder.decode_columns(columns.data, columns.table).decoded == is_fast
            found = decode_records(decoder, count, 0, columns)
            assert content(found) == content(decode_records(decoder, count, 0, records))


def test_large_values_and_long_sensor_ids_are_rejected_alike() -> None:
    for size in (1_023, 1_024, 1_025):
        check([(b"s" * size, reading(sensor="s" * size))])
    for size in (3_800, 4_000, 4_200):
        check([(b"s", reading().ljust(size))])
    check([(b"s", None), (None, None), (None, b""), (b"s", b"")])


def test_many_sensors_in_one_batch_keep_their_readings() -> None:
    sensors = [f"sensor-{number % 3_001}" for number in range(9_000)]
    records = [(sensor.encode(), reading(sensor=sensor)) for sensor in sensors]
    records[100] = (records[100][0], records[100][1].replace(b"sensor-", b"\\u0073ensor-"))
    check(records)
    decoded = decode_records(DECODER, len(FEATURES), 0, in_columns([FetchedRecord(*each, 0, []) for each in records]))
    assert decoded.readings.sensors == sensors


def test_headers_of_records_in_columns_are_read_when_asked_for() -> None:
    parent = ("traceparent", b"00-1-2-01")
    batch = encoded([(b"s", reading(), headers, MOMENT_MS) for headers in ([], [parent], [OWN_FORM_HEADER], [parent])])
    records = read_batch(DefaultRecordBatch(batch), 1 << 30, read_columns).records
    found = decode_records(DECODER, len(FEATURES), 0, records)
    assert found.readings.traceparents == [None, parent[1], None, parent[1]]
    assert content(found) == content(decode_records(DECODER, len(FEATURES), 0, list(records)))


def test_reading_records_one_by_one_loads_no_compiler() -> None:
    output_of("""
import sys
import pipeline.kafka.batch_consumer, pipeline.kafka.topic_reader, pipeline.readings_format.decoder
from pipeline.settings import Settings
decoder = pipeline.readings_format.decoder.make_decoder(Settings())
decoder.decode(b"s", b'{"sensor_id":"s","timestamp":0,"values":{"value":1}}')
assert "numba" not in sys.modules
""")
