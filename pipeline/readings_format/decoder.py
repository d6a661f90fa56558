"""The decoder of the readings topic that the settings ask for: one for the stream, the ingest and every audit."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from pipeline.foreign_keys import describe_key
from pipeline.foreign_payloads import describe_value
from pipeline.messages import (
    LARGEST_READING_BYTES,
    OWN_FORM_HEADER,
    Headers,
    Reading,
    ReadingDecoder,
    Rejected,
    refusal,
)
from pipeline.readings_format.field_mapping import FieldMapping, KeyReader, Message
from pipeline.readings_format.framed import KINDS, FramedReader
from pipeline.readings_format.schema_registry import SchemaStore
from pipeline.settings import Settings
from pipeline.unreadable_batch import UnreadableBatch

if TYPE_CHECKING:
    from pipeline.readings_format.reading_columns import DecodedColumns, Numbers


class RecordDecoder(Protocol):
    """Turns records of the readings topic into readings."""

    @property
    def is_keyed_by_sensor(self) -> bool:
        """Whether the key of every accepted record is its sensor id."""

    def decode(
        self, key: bytes | None, value: bytes | None, headers: Headers = (), sent_ms: int | None = None
    ) -> Reading:
        """The reading in a record.

        Args:
            sent_ms: the record's timestamp, milliseconds since 1970.

        Raises:
            Rejected: with one of ``ReadingDecoder.REASONS``.
            SchemaRegistryError: the record's schema cannot be looked up now; the record may be good.
        """


def make_decoder(settings: Settings) -> RecordDecoder:
    """The decoder for the settings' features and the form of the readings topic."""
    if not settings.readings.is_mapped:
        return OwnFormDecoder(settings.features, _largest_bytes(settings))
    return MappedDecoder(settings)


class OwnFormDecoder(ReadingDecoder):
    """``ReadingDecoder`` that also decodes many usual readings at once, in compiled code.

    One thread at a time may use ``decode_columns``.
    """

    def __init__(self, features: Sequence[str], largest_bytes: int = LARGEST_READING_BYTES) -> None:
        super().__init__(features, largest_bytes)
        self._options = features, largest_bytes

    @cached_property
    def decode_columns(self) -> "Callable[[bytes, Numbers], DecodedColumns]":
        """``ColumnDecoder.decode`` for the features."""
        from pipeline.readings_format.reading_columns import ColumnDecoder  # only here: most commands need no numba

        return ColumnDecoder(*self._options).decode


def _largest_bytes(settings: Settings) -> int:
    """The largest value that is decoded: well above a reading that the topic takes uncompressed."""
    return max(LARGEST_READING_BYTES, 2 * settings.kafka.max_reading_bytes)


class MappedDecoder:
    """Decodes records of another form than streamgru's own."""

    is_keyed_by_sensor: Final = False

    def __init__(self, settings: Settings) -> None:
        readings = settings.readings
        self._largest_bytes = _largest_bytes(settings)
        self._own = ReadingDecoder(settings.features, self._largest_bytes)
        schemas = None if readings.registry_url is None else SchemaStore(settings)
        self._read_value = _value_reader(readings.format, schemas)
        key_format = readings.key_format or ("json" if "@key." in (readings.sensor or "") else "text")
        self._mapping = FieldMapping(readings, settings.features, _key_reader(key_format, schemas))
        self._read_plain = self._mapping.read_plain

    def decode(
        self, key: bytes | None, value: bytes | None, headers: Headers = (), sent_ms: int | None = None
    ) -> Reading:
        """See ``RecordDecoder.decode``."""
        if value is None:
            raise Rejected("no-value", "the record has no value")
        if type(value) is UnreadableBatch or len(value) > self._largest_bytes:
            raise refusal(value, self._largest_bytes)
        if headers and OWN_FORM_HEADER in headers:
            return self._own.decode(key, value)
        content = self._read_value(value)
        if self._read_plain is not None:
            reading = self._read_plain(content)
            if reading is not None:
                return reading
        return self._mapping.reading(Message(content, key, headers, sent_ms))


def _value_reader(format_: str, schemas: SchemaStore | None) -> Callable[[bytes], Any]:
    if format_ in KINDS:
        return FramedReader(format_, schemas).read
    return _read_text if format_ == "text" else _read_json


_decode_json = msgspec.json.Decoder().decode


def _read_json(value: bytes) -> Any:
    try:
        return _decode_json(value)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise Rejected("malformed", describe_value(value, str(error), ())) from None


def _read_text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise Rejected("malformed", describe_value(value, "the value is not UTF-8 text", ())) from None


def _key_reader(key_format: str, schemas: SchemaStore | None) -> KeyReader:
    if key_format in KINDS:
        framed = FramedReader(key_format, schemas)

        def read(key: bytes) -> Any:
            try:
                return framed.read(key)
            except Rejected as rejected:
                raise Rejected("bad-key", f"the key: {rejected.detail}") from None

        return read
    return {"text": _text_key, "json": _json_key, "int": _int_key, "long": _long_key}[key_format]


def _text_key(key: bytes) -> Any:
    try:
        return key.decode()
    except UnicodeDecodeError:
        raise Rejected("bad-key", describe_key(key, None)) from None


def _json_key(key: bytes) -> Any:
    try:
        return _decode_json(key)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise Rejected("bad-key", f"the key is not JSON: {error}; {describe_key(key, None)}") from None


def _int_key(key: bytes) -> int:
    return _binary_key(key, 4)


def _long_key(key: bytes) -> int:
    return _binary_key(key, 8)


def _binary_key(key: bytes, width: int) -> int:
    if len(key) != width:
        raise Rejected("bad-key", f"the key has {len(key)} bytes, not the {width} of readings.key_format")
    return int.from_bytes(key, "big", signed=True)
