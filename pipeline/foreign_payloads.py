"""Says what the value of a rejected record holds instead of a reading, and what to do about it.

The functions only word the detail of a dead letter. They never decide whether a record is a reading.
"""

import base64
import binascii
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, Literal
from unicodedata import category
from uuid import UUID

import msgspec

LONGEST_QUOTE: Final = 60  # characters of the record that a detail repeats; a dead letter's detail has 500 bytes
LARGEST_PARSED_BYTES: Final = 100_000  # a longer value is described by its first bytes, to bound the cost
CONFLUENT_HEADER_BYTES: Final = 5  # magic byte 0 and the schema id, 4 bytes, big endian

_SPLIT: Final = "send each reading as a record of its own, because every offset stands for one reading"
_MAP: Final = "map its fields under [readings] in the settings"
_PRODUCER_COMPRESSION: Final = "leave compression to the Kafka client (compression.type)"

_SIGNATURES: Final[Sequence[tuple[bytes, str]]] = (
    (b"\x1f\x8b", f"gzip data: {_PRODUCER_COMPRESSION}"),
    (b"\x28\xb5\x2f\xfd", f"zstd data: {_PRODUCER_COMPRESSION}"),
    (b"\x04\x22\x4d\x18", f"lz4 data: {_PRODUCER_COMPRESSION}"),
    (b"\xff\x06\x00\x00sNaPpY", f"snappy data: {_PRODUCER_COMPRESSION}"),
    (b"\x82SNAPPY\x00", f"snappy data: {_PRODUCER_COMPRESSION}"),
    (b"\x78\x01", f"zlib data: {_PRODUCER_COMPRESSION}"),
    (b"\x78\x9c", f"zlib data: {_PRODUCER_COMPRESSION}"),
    (b"\x78\xda", f"zlib data: {_PRODUCER_COMPRESSION}"),
    (b"BZh", f"bzip2 data: {_PRODUCER_COMPRESSION}"),
    (b"\xfd7zXZ\x00", f"xz data: {_PRODUCER_COMPRESSION}"),
    (b"PK\x03\x04", "a zip archive: publish its files with `streamgru publish`"),
    (b"PAR1", "a Parquet file: publish it with `streamgru publish`"),
    (b"Obj\x01", "an Avro file (object container): send single Avro records in Confluent's framing"),
    (b"\xac\xed\x00\x05", "a serialized Java object: send JSON"),
    (b"\x80\x02", "a Python pickle: send JSON"),
    (b"\x80\x03", "a Python pickle: send JSON"),
    (b"\x80\x04\x95", "a Python pickle: send JSON"),
    (b"\x80\x05\x95", "a Python pickle: send JSON"),
)

# Fields that identify a system's messages -> their name and the remedy.
_SYSTEMS: Final[Sequence[tuple[frozenset[str], str]]] = (
    (
        frozenset({"schema", "payload"}),
        (
            "Kafka Connect's envelope of schema and payload: set value.converter.schemas.enable = false in the "
            'connector, or name fields such as "payload.temperature" under [readings]'
        ),
    ),
    (
        frozenset({"before", "after", "op"}),
        (
            'a Debezium change event: name fields such as "after.temperature" under [readings], or unwrap it in the '
            "connector with ExtractNewRecordState"
        ),
    ),
    (frozenset({"fields", "tags", "timestamp"}), f'Telegraf\'s JSON: {_MAP} (values = "fields", sensor = "tags.host")'),
    (
        frozenset({"entity_id", "state"}),
        f'a Home Assistant state: {_MAP} (sensor = "entity_id", fields.value = "state")',
    ),
    (frozenset({"ts", "values"}), f'ThingsBoard telemetry: {_MAP} (time = "ts", values = "values", sensor = "@key")'),
    (
        frozenset({"specversion", "type", "source"}),
        f'a CloudEvent in structured mode: {_MAP} (fields such as "data.temperature", time = "time")',
    ),
    (
        frozenset({"issued_at", "outlook"}),
        "an outlook, and the settings name no covariates: name them under [outlooks]",
    ),
    (frozenset({"records"}), "a request body of Kafka's REST proxy: send it to the proxy, not to the topic"),
    (frozenset({"resourceMetrics"}), f"OpenTelemetry metrics: {_SPLIT}"),
    (frozenset({"Messages"}), f'an OPC UA PubSub message: {_MAP} (fields such as "Messages.0.Payload.Temp.Value")'),
    (frozenset({"metrics"}), f"a message with a list of metrics, as Sparkplug and Telegraf send it: {_MAP}"),
)

_LINE_PROTOCOL: Final = re.compile(r"[^\s,={}<>]+(,[^\s,=]+=[^\s,]+)* [^\s,=]+=[^\s,]+(,[^\s,=]+=[^\s,]+)*( -?\d+)?")
_INVISIBLE: Final = frozenset({"Cc", "Cf", "Zs", "Zl", "Zp"})


def quote(text: str) -> str:
    """The text in quotes, cut to ``LONGEST_QUOTE`` characters, with control characters escaped."""
    return ascii_quote(text[:LONGEST_QUOTE]) + ("…" if len(text) > LONGEST_QUOTE else "")


def ascii_quote(text: str) -> str:
    """``repr`` of the text that also shows invisible characters such as a no-break space."""
    return "".join(
        letter
        if letter.isprintable() and (letter == " " or category(letter) not in _INVISIBLE)
        else ascii(letter)[1:-1]
        for letter in repr(text)
    )


def strip_padding(text: str) -> str:
    """The text without white space and invisible characters at its ends: spaces, no-break spaces, marks, controls."""
    start, end = 0, len(text)
    while start < end and category(text[start]) in _INVISIBLE:
        start += 1
    while end > start and category(text[end - 1]) in _INVISIBLE:
        end -= 1
    return text[start:end]


# --- values -----------------------------------------------------------------------------------------------------------


def describe_value(value: bytes, error: str, expected: Sequence[str] = ("sensor_id", "timestamp", "values")) -> str:
    """The content of a rejected record's value in words, and the remedy.

    Args:
        error: the decoder's own words; used if the value looks like JSON of the right form.
        expected: names of the fields that the decoder needs.
    """
    found = _describe_binary(value)
    if found is not None:
        return f"the value is {found}"
    text = value[:LARGEST_PARSED_BYTES].decode("utf-8", errors="replace")
    if len(value) > LARGEST_PARSED_BYTES:
        return f"{error}; the value has {len(value):,} bytes and begins with {quote(text)}"
    try:
        content = json.loads(text, parse_constant=_Constant)
    except (ValueError, RecursionError):
        return _describe_text(text, error)
    return _describe_json(content, error, expected)


def describe_number(feature: str, value: bytes) -> str:
    """Why the JSON value of a feature is not a number."""
    shown = quote(value[:1_000].decode(errors="replace"))
    return f"the value of {quote(feature)} is {shown[1:-1]}; a value is a number or null"


def describe_time(text: str) -> str:
    """Why a text is not the timestamp of a reading."""
    return (
        f"the timestamp is {quote(text[:200])}, but a timestamp is ISO 8601 with a timezone (Z or +01:00), or epoch "
        "milliseconds as a whole number"
    )


def confluent_schema_id(data: bytes) -> int | None:
    """The schema id in Confluent's framing; None without such framing."""
    if len(data) < CONFLUENT_HEADER_BYTES or data[0] != 0:
        return None
    return int.from_bytes(data[1:CONFLUENT_HEADER_BYTES], "big")


def _describe_binary(value: bytes) -> str | None:
    """The name of a binary form, with the remedy; None if the value is UTF-8 text."""
    if not value:
        return "empty: a reading is a JSON object"
    if (encoding := wide_encoding(value)) is not None:
        return f"text in {encoding}: send UTF-8"
    if value.startswith(b"\xef\xbb\xbf"):
        return "text after a UTF-8 byte order mark: send it without the mark"
    for signature, name in _SIGNATURES:
        if value.startswith(signature):
            return name
    framed = _describe_framing(value)
    if framed is not None:
        return framed
    if len(value) >= 5 and int.from_bytes(value[:4], "little") == len(value) and value[-1] == 0:
        return "BSON: send JSON"
    try:
        value.decode("utf-8")
    except UnicodeDecodeError as error:
        return _describe_bytes(value, error)
    if b"\x00" in value or value[:1] < b"\x09":
        return f"binary data (it begins with the bytes {value[:8].hex(' ')}): send JSON, or set readings.format"
    return None


def wide_encoding(value: bytes) -> str | None:
    """UTF-16 or UTF-32, if the value begins with a byte order mark or with a wide ``{`` or ``[``."""
    orders: tuple[Literal["little", "big"], ...] = ("little", "big")
    for name, width, order in ((f"UTF-{8 * width}", width, order) for width in (4, 2) for order in orders):
        mark, brackets = (0xFEFF).to_bytes(width, order), [ord(each).to_bytes(width, order) for each in '{["']
        if value.startswith(mark) or (value[:width] in brackets and value[width : 2 * width].count(0) == width - 1):
            return name
    return None


def _describe_framing(value: bytes) -> str | None:
    schema_id = confluent_schema_id(value)
    if schema_id == 0 and len(value) > 9:
        return (
            f"framed with an 8-byte id ({int.from_bytes(value[1:9], 'big')}), as Apicurio's own serializers do: let "
            "them write 4-byte ids (Legacy4ByteIdHandler), then set readings.format and readings.registry_url"
        )
    if schema_id is not None:
        body = value[CONFLUENT_HEADER_BYTES:]
        if body[:1] in (b"{", b"["):
            looks, name = "JSON Schema", '"json_schema"'
        elif body[:1] == b"\x00":
            looks, name = "Protobuf", '"protobuf" (or "avro")'
        else:
            looks, name = "Avro", '"avro" (or "protobuf")'
        return (
            f"in Confluent's framing with schema id {schema_id}, and its content looks like {looks}: set "
            f"readings.format = {name} and readings.registry_url"
        )
    if len(value) > 18 and value[0] == 3 and value[1] in (0, 5):
        return (
            f"in the framing of the AWS Glue Schema Registry (schema version {UUID(bytes=value[2:18])}): let the "
            "producer send plain JSON, or use Confluent's framing"
        )
    if len(value) > 17 and value[0] == 1:
        return (
            f"perhaps in Confluent's framing with a schema GUID ({UUID(bytes=value[1:17])}): let the producer write "
            "schema ids instead"
        )
    return None


def _describe_bytes(value: bytes, error: UnicodeDecodeError) -> str:
    try:
        if isinstance(msgspec.msgpack.decode(value), (dict, list)):
            return "MessagePack: send JSON"
    except (msgspec.MsgspecError, ValueError, RecursionError):
        pass
    if 0xA1 <= value[0] <= 0xBF and len(value) > 1 and 0x60 <= value[1] <= 0x7B:
        return "CBOR: send JSON"
    if value.lstrip()[:1] in (b"{", b"["):
        return (
            f"not UTF-8: byte {error.start} is 0x{value[error.start]:02x}. The text may be in Latin-1 or "
            "Windows-1252, or damaged; send UTF-8"
        )
    return (
        f"binary data (it begins with the bytes {value[:8].hex(' ')}), perhaps Avro or Protobuf without framing: "
        "send JSON, or Confluent's framing with readings.format"
    )


class _Constant(str):
    """NaN or Infinity, which Python reads in JSON."""


def _describe_json(content: Any, error: str, expected: Sequence[str]) -> str:
    if isinstance(content, list):
        count = len(content)
        if count > 1 and all(isinstance(item, dict) for item in content):
            return f"the value is a JSON array of {count} objects: {_SPLIT}"
        return f"the value is a JSON array of length {count}, not an object"
    if isinstance(content, _Constant):
        return f"the value is {content}, not a JSON object"
    if isinstance(content, str):
        if content.lstrip()[:1] in ("{", "["):
            return "the value is JSON inside a JSON string: the producer encodes it twice; encode it once"
        return f"the value is the JSON string {quote(content)}, not an object: {_single_value_hint(content)}"
    if not isinstance(content, dict):
        shown = quote(json.dumps(content))
        return f"the value is the JSON value {shown[1:-1]}, not an object: {_single_value_hint('')}"
    constant = _path_of(content, lambda found: isinstance(found, _Constant))
    if constant is not None:
        return f"{constant} is NaN or infinite, which JSON does not have: send null for a missing value"
    absent = [name for name in expected if name not in content]
    if absent:
        return _describe_object(content, absent, error)
    return error


def _single_value_hint(text: str) -> str:
    if text:
        return 'set readings.format = "text" and name missing values in readings.missing'
    return 'set readings.format = "text" and name the sensor with readings.sensor, for example "@key"'


def _describe_object(content: Mapping[str, Any], absent: Sequence[str], error: str) -> str:
    where = [content, *(content[name] for name in ("payload",) if isinstance(content.get(name), dict))]
    for inside in reversed(where):
        for fields, name in _SYSTEMS:
            if fields <= inside.keys():
                return f"the value is {name}"
    names = ", ".join(quote(name) for name in list(content)[:6])
    more = ", …" if len(content) > 6 else ""
    lacks = f"the object lacks {' and '.join(absent)}" + (f"; it has {names}{more}" if names else "; it is empty")
    lists = [name for name, inner in content.items() if isinstance(inner, list) and len(inner) > 1]
    hint = f"; if {quote(lists[0])} holds several readings, {_SPLIT}" if lists else f"; {_MAP}"
    return lacks + hint


def describe_absence(features: Sequence[str], found: Collection[str]) -> str:
    """Why a reading has no value: the features are null, spelled differently, or absent.

    Args:
        found: names of all values in the reading, null or not.
    """
    lacks = "the reading has none of the features in the settings"
    null = [name for name in features if name in found]
    if null:
        return f"{lacks}: {quote(null[0])} is null or missing"
    spelled = {strip_padding(name).casefold(): name for name in found}
    near = [(name, spelled[folded]) for name in features if (folded := strip_padding(name).casefold()) in spelled]
    if near:
        wanted, sent = near[0]
        return f"{lacks}: it has {quote(sent)} instead of {quote(wanted)}, and names are compared exactly"
    names = ", ".join(quote(name) for name in list(found)[:4]) or "no values"
    return f"{lacks} ({', '.join(quote(name) for name in features[:4])}): it has {names}"


def _describe_text(text: str, error: str) -> str:
    """The name of a text that is not JSON, with the remedy."""
    stripped = text.strip()
    if not stripped:
        return "the value is white space: a reading is a JSON object"
    lines = [line for line in stripped.splitlines() if line.strip()]
    if len(lines) > 1 and all(is_json_object(line) for line in lines):
        return f"the value is {len(lines)} lines with a JSON object each (NDJSON): {_SPLIT}"
    if stripped[0] in "{[":
        if stripped[1:2] == "'":
            return "the value is a Python dict written by str(): write it with json.dumps"
        if _is_first_of_several(stripped):
            return f"the value is several JSON objects in a row: {_SPLIT}"
        return f"the value begins like JSON, but is cut off or damaged: {error}"
    if stripped[0] == "<":
        return f"the value is XML or HTML, it begins with {quote(stripped)}: send JSON"
    if _LINE_PROTOCOL.fullmatch(lines[0]):
        several = f", {len(lines)} lines" if len(lines) > 1 else ""
        return (
            f"the value is InfluxDB line protocol{several}: let the producer write JSON (in Telegraf: data_format = "
            f'"json", use_batch_format = false), and {_MAP}'
        )
    if "{" in stripped and is_json_object(stripped[stripped.index("{") :]):
        before = stripped[: stripped.index("{")]
        return (
            f"the value is JSON after the text {quote(before)}: if that text is the key, let the producer send it as "
            "the key (kafka-console-producer: parse.key=true)"
        )
    if _is_base64_json(stripped):
        return "the value is JSON in Base64: send the JSON itself"
    if any(separator in lines[0] for separator in ",;\t|"):
        return (
            f"the value is separated text such as CSV, it begins with {quote(lines[0])}: send JSON, or publish a file "
            "with `streamgru publish`"
        )
    if "=" in lines[0] and "&" in lines[0]:
        return "the value is a form (name=value&…): send JSON"
    return f"the value is the text {quote(stripped)}, not JSON: {_single_value_hint(stripped)}"


def is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _is_first_of_several(text: str) -> bool:
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return text[end:].lstrip(" \t\r\n,")[:1] in ("{", "[")


def _is_base64_json(text: str) -> bool:
    try:
        return base64.b64decode(text, validate=True).lstrip()[:1] in (b"{", b"[")
    except (binascii.Error, ValueError):
        return False


def _path_of(content: Any, matches: Callable[[Any], bool]) -> str | None:
    """The dotted path of the first leaf that matches, depth first; None if no leaf matches."""
    pending: list[tuple[str, Any]] = [("", content)]
    while pending:
        path, inner = pending.pop()
        if isinstance(inner, dict):
            pending += [(f"{path}.{name}" if path else name, each) for name, each in reversed(inner.items())]
        elif isinstance(inner, list):
            pending += [(f"{path}.{index}", each) for index, each in reversed(list(enumerate(inner)))]
        elif matches(inner):
            return quote(path)
    return None
