"""The rate of the decoders: streamgru's own form against the same readings in other forms, in one run.

All decoders take turns in short rounds and are timed by their CPU time, so a busy machine slows each down alike.
"""

import io
import json
import statistics
import struct
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastavro
import msgspec

from pipeline.messages import ReadingMessage, encode_reading
from pipeline.readings_format.decoder import RecordDecoder, make_decoder
from pipeline.readings_format.schema_registry import Schema, SchemaStore
from pipeline.settings import Settings
from tests.benchmarks.page import Figure, Section

FEATURES = ("PM2.5", "PM10", "TEMP", "RAIN")
READINGS = 2_000
ROUNDS = 41
LEAST_SHARE = 0.8  # of the rate of the decoder alone, for the own form through the factory
START_MS = 1_767_225_600_000
AVRO_ID, PROTOBUF_ID, JSON_ID = 1, 2, 3  # of schemas
AVRO: dict[str, Any] = {
    "type": "record",
    "name": "Measurement",
    "fields": [
        {"name": "device", "type": "string"},
        {"name": "at", "type": "long"},
        *({"name": name.replace(".", "_"), "type": ["null", "double"]} for name in FEATURES),
    ],
}

PROTOBUF = "".join(
    (
        'syntax = "proto3"; message Measurement { string device = 1; int64 at = 2; ',
        *(f"optional double {name.replace('.', '_')} = {number};" for number, name in enumerate(FEATURES, start=3)),
        " }",
    )
)

Record = tuple[bytes, bytes]


@dataclass(frozen=True)
class _Form:
    name: str
    decoder: RecordDecoder
    records: Sequence[Record]


def measure(settings: Settings) -> Section:
    """The section of the page."""
    with tempfile.TemporaryDirectory(prefix="streamgru-decoding-") as home:
        forms = _forms(Path(home))
        bare = msgspec.json.Decoder(ReadingMessage).decode
        own = forms[0].records
        seconds: dict[str, list[float]] = {form.name: [] for form in forms}
        parsing: list[float] = []
        for _ in range(ROUNDS):
            for form in forms:
                decode = form.decoder.decode
                began = time.thread_time()
                for key, value in form.records:
                    decode(key, value)
                seconds[form.name].append(time.thread_time() - began)
            began = time.thread_time()
            for _, value in own:
                bare(value)
            parsing.append(time.thread_time() - began)
    base = seconds[forms[0].name]
    figures = [Figure("own form", f"{_each_us(base):.2f} µs a reading")]
    figures.append(Figure("msgspec alone, without any check", f"{_each_us(parsing):.2f} µs a reading"))
    for form in forms[1:]:
        share = statistics.median(own / other for own, other in zip(base, seconds[form.name], strict=True))
        asked, is_met = ("for the record", True)
        if form.name == USUAL_MAPPING:
            asked, is_met = f"≥ {LEAST_SHARE}", share >= LEAST_SHARE
        figures.append(Figure(f"rate of {form.name}, relative to the own form", f"{share:.2f}", asked, is_met))
    return Section(
        "decoding",
        "Decoding readings",
        figures,
        f"{READINGS:,} readings with {len(FEATURES)} features, decoded one by one in {ROUNDS} rounds. All forms take "
        "turns in a round; medians. The forms are set under [readings].",
    )


def _each_us(rounds: Sequence[float]) -> float:
    """Microseconds per reading in the median round."""
    return statistics.median(rounds) / READINGS * 1e6


USUAL_MAPPING = "flat JSON with milliseconds"


def _forms(home: Path) -> list[_Form]:
    contents = [_content(number) for number in range(READINGS)]
    own = [encode_reading(f"sensor-{n % 50}", (START_MS + n) * 1_000, values) for n, values in enumerate(contents)]
    with_text = [(key, value.replace(b"}}", b',"wd":"NW"}}')) for key, value in own]
    flat = [_json(n, {"device": f"sensor-{n % 50}", "at": START_MS + n, **values}) for n, values in enumerate(contents)]
    nested = [
        _json(
            n,
            {"tags": {"host": f"sensor-{n % 50}"}, "timestamp": (START_MS + n) // 1_000, "fields": values, "name": "x"},
        )
        for n, values in enumerate(contents)
    ]
    mapping = {"sensor": "device", "time": "at", "values": "."}
    telegraf = {"sensor": "tags.host", "time": "timestamp", "time_unit": "s", "values": "fields"}
    fields = {name: name.replace(".", "_") for name in FEATURES}
    registry = {"sensor": "device", "time": "at", "registry_url": "http://127.0.0.1:9"}
    avro = _settings(home, {**registry, "fields": fields, "format": "avro"})
    protobuf = _settings(home, {**registry, "fields": fields, "format": "protobuf"})
    framed_json = _settings(home, {**registry, "values": ".", "format": "json_schema"})
    store = SchemaStore(avro)
    store.keep(AVRO_ID, Schema("AVRO", json.dumps(AVRO)))
    store.keep(PROTOBUF_ID, Schema("PROTOBUF", PROTOBUF))
    store.keep(JSON_ID, Schema("JSON", "{}"))
    return [
        _Form("the own form", make_decoder(_settings(home, {})), own),
        _Form("the own form with a text that is ignored", make_decoder(_settings(home, {})), with_text),
        _Form(USUAL_MAPPING, make_decoder(_settings(home, mapping)), flat),
        _Form("Telegraf's JSON", make_decoder(_settings(home, telegraf)), nested),
        _Form("Avro", make_decoder(avro), [_avro(n, values) for n, values in enumerate(contents)]),
        _Form("Protobuf", make_decoder(protobuf), [_protobuf(n, values) for n, values in enumerate(contents)]),
        _Form("framed JSON", make_decoder(framed_json), [(key, _framed(JSON_ID, value)) for key, value in flat]),
    ]


def _settings(home: Path, readings: dict[str, Any]) -> Settings:
    return Settings(home=home, features=FEATURES, targets=FEATURES[:1], readings=readings)


def _content(number: int) -> dict[str, float | None]:
    return {"PM2.5": number % 90 + 0.5, "PM10": number % 130 + 0.25, "TEMP": number % 31 - 7.3, "RAIN": None}


def _json(number: int, content: dict[str, Any]) -> Record:
    return f"sensor-{number % 50}".encode(), json.dumps(content).encode()


def _avro(number: int, values: dict[str, float | None]) -> Record:
    stream = io.BytesIO()
    record = {name.replace(".", "_"): value for name, value in values.items()}
    fastavro.schemaless_writer(stream, AVRO, {**record, "device": f"sensor-{number % 50}", "at": START_MS + number})
    return b"", _framed(AVRO_ID, stream.getvalue())


def _protobuf(number: int, values: dict[str, float | None]) -> Record:
    device = f"sensor-{number % 50}".encode()
    parts = [b"\x0a", _varint(len(device)), device, b"\x10", _varint(START_MS + number)]
    for field, value in enumerate(values.values(), start=3):
        if value is not None:
            parts += [bytes([field << 3 | 1]), struct.pack("<d", value)]
    return b"", _framed(PROTOBUF_ID, b"\x00" + b"".join(parts))


def _varint(number: int) -> bytes:
    """A Protobuf varint."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def _framed(schema_id: int, body: bytes) -> bytes:
    return b"\x00" + struct.pack(">I", schema_id) + body
