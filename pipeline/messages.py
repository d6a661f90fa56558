"""The message contracts: readings, forecasts, dead letters and state records, byte for byte.

Changing anything here is a new version of the product. The JSON Schema of readings and forecasts is derived from these
types by ``json_schemas()``; ``streamgru schema`` prints it.

A reading is *accepted* if it decodes (``ReadingDecoder``) and is newer than every reading of its sensor accepted before
it, in offset order within the partition. A reading with the timestamp of the last accepted one is a duplicate, an older
one is late. ``model.acceptance`` applies this rule to arrays.
"""

import struct
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import msgspec

from pipeline.errors import StateError
from pipeline.foreign_keys import describe_key
from pipeline.foreign_payloads import describe_absence, describe_number, describe_time, describe_value
from pipeline.iso_times import iso_microseconds
from pipeline.time_units import describe_outside
from pipeline.unreadable_batch import BATCH_REASONS, UnreadableBatch

# Microseconds. A timestamp outside this range is a clock fault. If accepted, it could make all later readings late.
EARLIEST_TIMESTAMP_US: Final = -2_208_988_800_000_000  # 1900-01-01T00:00:00Z
LATEST_TIMESTAMP_US: Final = 7_258_118_400_000_000  # 2200-01-01T00:00:00Z
# Sums of squares must fit into float64, and a value into float32; no sensor measures more.
LARGEST_VALUE: Final = 1e30
# A compressed record may be far larger than the topic's limit, and JSON takes twenty times its bytes once decoded.
LARGEST_READING_BYTES: Final = 16 * 1024 * 1024
# Kafka allows longer keys. A longer sensor id is a mistake, and every forecast and state would repeat it.
LONGEST_SENSOR_ID_BYTES: Final = 1_024

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAN = float("nan")

Headers = Sequence[tuple[str, bytes | None]]

# `streamgru publish` marks its readings with this header if the settings map the topic's other records to readings.
OWN_FORM_HEADER: Final = ("streamgru-form", b"reading")


# --- readings ---------------------------------------------------------------------------------------------------------


class ReadingMessage(msgspec.Struct, frozen=True):
    """The value of a record on the readings topic; its key is the sensor id in UTF-8."""

    sensor_id: Annotated[str, msgspec.Meta(min_length=1, description="the record's key, once more")]
    timestamp: Annotated[
        Annotated[datetime, msgspec.Meta(tz=True)] | int,
        msgspec.Meta(description="ISO 8601 with a zone, or epoch milliseconds"),
    ]
    values: Annotated[dict[str, float | None], msgspec.Meta(description="value by feature; absent or null is missing")]


class Reading(msgspec.Struct, frozen=True, gc=False):
    """A decoded reading: ``values`` follow the settings' features, NaN where missing."""

    sensor_id: str
    timestamp_us: int
    values: tuple[float, ...]
    ignored: int = 0  # features in the message that the settings do not name


class Rejected(Exception):
    """A record that is not a valid reading; ``reason`` goes into the dead letter and the counts.

    ``records`` is above 1 if the record stands for a batch that cannot be read.
    """

    def __init__(self, reason: str, detail: str = "", records: int = 1) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
        self.records = records


def refusal(value: bytes, largest_bytes: int) -> Rejected:
    """The rejection of a value that is not decoded: a batch that cannot be read, or too many bytes."""
    if isinstance(value, UnreadableBatch):
        return Rejected(value.reason, value.detail, value.records)
    return Rejected("malformed", f"the value has {len(value):,} bytes, and the largest reading {largest_bytes:,}")


class _LooseMessage(msgspec.Struct, frozen=True):
    """``ReadingMessage`` with values of any JSON type, and any text as timestamp."""

    sensor_id: Annotated[str, msgspec.Meta(min_length=1)]
    timestamp: str | int
    values: dict[str, msgspec.Raw]


class ReadingDecoder:
    """Decodes readings in streamgru's own form, for one list of features.

    ``decode`` returns a ``Reading`` or raises ``Rejected``, for any byte string. A sensor id is compared with the key
    byte for byte: white space, quotes and case count.
    """

    REASONS: Final = ("no-value", "malformed", "bad-key", "bad-timestamp", "bad-value", "no-feature", *BATCH_REASONS)
    is_keyed_by_sensor: Final = True  # the key of an accepted record is the sensor id

    def __init__(self, features: Sequence[str], largest_bytes: int = LARGEST_READING_BYTES) -> None:
        self._features = tuple(features)
        self._largest_bytes = largest_bytes
        self._decode = msgspec.json.Decoder(ReadingMessage).decode
        self._decode_loosely = msgspec.json.Decoder(_LooseMessage).decode
        self._decode_number = msgspec.json.Decoder(float | None).decode

    def decode(
        self, key: bytes | None, value: bytes | None, headers: Headers = (), sent_ms: int | None = None
    ) -> Reading:
        """The reading in a record; its headers and the time at which it was sent do not matter in this form.

        Raises:
            Rejected: with one of ``REASONS``.
        """
        if value is None:
            raise Rejected("no-value", "the record has no value")
        if type(value) is UnreadableBatch or len(value) > self._largest_bytes:
            raise refusal(value, self._largest_bytes)
        try:
            message = self._decode(value)
            sensor_id, timestamp, values = message.sensor_id, message.timestamp, message.values
            expected_key = sensor_id.encode()
            timestamp_us = timestamp * 1_000 if isinstance(timestamp, int) else microseconds(timestamp)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            sensor_id, timestamp_us, values = self._decode_leniently(value, error)
            expected_key = sensor_id.encode()
        if key is None or key != expected_key:
            raise Rejected("bad-key", describe_key(key, sensor_id))
        if len(key) > LONGEST_SENSOR_ID_BYTES:
            raise Rejected("bad-key", f"the sensor id is longer than {LONGEST_SENSOR_ID_BYTES} bytes")
        if not EARLIEST_TIMESTAMP_US <= timestamp_us < LATEST_TIMESTAMP_US:
            raise Rejected("bad-timestamp", describe_outside(timestamp_us))
        return pick_values(self._features, sensor_id, timestamp_us, values)

    def _decode_leniently(self, value: bytes, error: Exception) -> tuple[str, int, dict[str, float | None]]:
        """Sensor id, microseconds and values; ISO 8601 in rare spellings, and any JSON type for unnamed features.

        Raises:
            Rejected: the value is malformed in another way; ``error`` is the strict decoder's.
        """
        try:
            message = self._decode_loosely(value)
            message.sensor_id.encode()
            values: dict[str, float | None] = dict.fromkeys(message.values)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            raise Rejected("malformed", describe_value(value, str(error))) from None
        time = message.timestamp
        if (timestamp_us := time * 1_000 if isinstance(time, int) else iso_microseconds(time)) is None:
            raise Rejected("malformed", describe_time(str(time)))
        for feature in self._features:
            raw = message.values.get(feature)
            if raw is not None:
                try:
                    values[feature] = self._decode_number(raw)
                except (msgspec.MsgspecError, UnicodeError, RecursionError):
                    raise Rejected("malformed", describe_number(feature, bytes(raw))) from None
        return message.sensor_id, timestamp_us, values


def pick_values(
    features: Sequence[str],
    sensor_id: str,
    timestamp_us: int,
    found: dict[str, float | None],
    ignored: int | None = None,
) -> Reading:
    """The reading with the values of the features, in their order.

    Args:
        ignored: the number of ignored values; by default those in ``found``.

    Raises:
        Rejected: a value is too large, or each feature is missing.
    """
    values = []
    missing = 0
    for feature in features:
        value = found.get(feature)
        if value is None:
            missing += 1
            value = _NAN
        elif not -LARGEST_VALUE <= value <= LARGEST_VALUE:
            raise Rejected("bad-value", f"{feature} is beyond ±{LARGEST_VALUE:g}")
        values.append(value)
    if missing == len(values):
        raise Rejected("no-feature", describe_absence(features, found))
    if ignored is None:
        ignored = len(found) - len(values)
        if missing or ignored:  # a feature of the settings that is present but null is not ignored
            ignored = len(found) - sum(feature in found for feature in features)
    return Reading(sensor_id, timestamp_us, tuple(values), ignored)


def microseconds(moment: datetime) -> int:
    """Microseconds since the epoch, exactly."""
    since = moment - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def iso_timestamp(timestamp_us: int) -> str:
    """ISO 8601 in UTC, in seconds or, if needed, microseconds: ``2013-03-01T00:00:00Z``."""
    moment = _EPOCH + timedelta(microseconds=timestamp_us)
    return moment.isoformat(timespec="microseconds" if moment.microsecond else "seconds").replace("+00:00", "Z")


def encode_reading(sensor_id: str, timestamp_us: int, values: dict[str, float | None]) -> tuple[bytes, bytes]:
    """Key and value of a reading's record. NaN is written as null."""
    message = {
        "sensor_id": sensor_id,
        "timestamp": iso_timestamp(timestamp_us),
        "values": {name: None if value is None or value != value else value for name, value in values.items()},
    }
    return sensor_id.encode(), msgspec.json.encode(message)


# --- forecasts --------------------------------------------------------------------------------------------------------


class ModelId(msgspec.Struct, frozen=True):
    """A version in the model registry."""

    name: str
    version: int


class InputPosition(msgspec.Struct, frozen=True):
    """The reading that a forecast follows."""

    topic: str
    partition: int
    offset: int


class StateAge(msgspec.Struct, frozen=True):
    """Origin and age of the state behind a forecast."""

    origin: Annotated[int, msgspec.Meta(description="offset of the first reading stepped into it")]
    steps: Annotated[int, msgspec.Meta(description="steps since then, missing ones included")]
    warm: Annotated[bool, msgspec.Meta(description="whether steps reach the model's warm-up length")]


class Forecast(msgspec.Struct, frozen=True):
    """The value of a record on the forecasts topic: forecast k (from 1) is for ``issued_at + k * cadence_s``."""

    sensor_id: str
    issued_at: Annotated[datetime, msgspec.Meta(tz=True, description="the reading's timestamp")]
    cadence_s: float
    quantiles: Annotated[
        dict[str, dict[str, list[float]]],
        msgspec.Meta(description="by target, then by quantile level: one value per step of the horizon, sensor units"),
    ]
    model: ModelId
    settings: Annotated[str, msgspec.Meta(description="fingerprint of the settings that shape a forecast")]
    input: InputPosition
    state: StateAge
    weights: Annotated[
        dict[str, dict[str, float]] | msgspec.UnsetType,
        msgspec.Meta(
            description="by target: the share of each expert in the forecast; absent if forecasts do not adapt"
        ),
    ] = msgspec.UNSET


def quantile_key(level: float) -> str:
    """The name of a quantile level in a forecast: ``"0.1"``."""
    return repr(float(level))


decode_forecast = msgspec.json.Decoder(Forecast).decode


# --- state records ----------------------------------------------------------------------------------------------------

STATE_SCHEMA_VERSION: Final = 2
# magic, schema version, model version, settings fingerprint, CRC-32 of the row; one row of model.state's dtype follows
_STATE_HEADER = struct.Struct("<4sHI12sI")
_STATE_MAGIC = b"SGRU"
CHECKSUM_BYTES: Final = 4  # the last field of the header


class StateTag(msgspec.Struct, frozen=True):
    """The model version and settings fingerprint of a state record; a model only takes states with its own tag."""

    model_version: int
    settings: str

    def encode(self, row: bytes) -> bytes:
        """The value of a state record with one sensor's row of ``model.state``."""
        return self._header(zlib.crc32(row)) + row

    def unpack_rows(self, values: Sequence[bytes | None], row_bytes: int) -> tuple[list[int], bytes]:
        """The indices of the values that are intact states with this tag, and their rows, concatenated.

        It accepts the same values as ``decode_state`` at a fraction of the cost; a restore reads a value per sensor.
        """
        start = _STATE_HEADER.size
        head, size = self._header(0)[:-CHECKSUM_BYTES], start + row_bytes
        places: list[int] = []
        rows: list[memoryview] = []
        for place, value in enumerate(values):
            if value is None or len(value) != size or not value.startswith(head):
                continue
            row = memoryview(value)[start:]
            if zlib.crc32(row) == int.from_bytes(value[start - CHECKSUM_BYTES : start], "little"):
                places.append(place)
                rows.append(row)
        return places, b"".join(rows)

    def _header(self, checksum: int) -> bytes:
        return _STATE_HEADER.pack(
            _STATE_MAGIC, STATE_SCHEMA_VERSION, self.model_version, self.settings.encode(), checksum
        )


def decode_state(value: bytes) -> tuple[StateTag, bytes]:
    """The tag and the row of a state record.

    Raises:
        StateError: the value is not a state record, has another schema, or is damaged.
    """
    if len(value) < _STATE_HEADER.size or not value.startswith(_STATE_MAGIC):
        raise StateError("not a state record")
    _, schema, version, settings, checksum = _STATE_HEADER.unpack_from(value)
    if schema != STATE_SCHEMA_VERSION:
        raise StateError(f"the state record has schema {schema}, but this program reads schema {STATE_SCHEMA_VERSION}")
    row = value[_STATE_HEADER.size :]
    if not row:  # the checksum of no bytes is 0 and could match
        raise StateError("the state record is damaged: it ends after its header")
    if zlib.crc32(row) != checksum:
        raise StateError("the state record is damaged: its checksum does not match")
    try:
        return StateTag(version, settings.decode("ascii")), row
    except UnicodeDecodeError:
        raise StateError("the state record is damaged: its settings fingerprint is not text") from None


# --- schema -----------------------------------------------------------------------------------------------------------


# `ce_dataschema` and `streamgru schema` identify a form by these names. An incompatible change raises the number.
SCHEMA_URIS: Final = {"reading": "urn:streamgru:schema:reading:1", "forecast": "urn:streamgru:schema:forecast:1"}


def json_schemas() -> dict[str, Any]:
    """JSON Schema (2020-12) of a reading's and a forecast's value."""
    (reading, forecast), definitions = msgspec.json.schema_components((ReadingMessage, Forecast))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "reading": reading,
        "forecast": forecast,
        "$defs": definitions,
    }
