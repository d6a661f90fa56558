"""Outlooks on the readings topic: the form of the messages, and the decoder. Changing the form is a new version.

An outlook tells values of covariates for times ahead, as they were known when it was issued. It is a record on the
partition of its sensors, so the order of offsets says what was known when. A record is an outlook only if it is not a
reading, so outlooks do not slow the decoding of readings down.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final, Generic, Protocol, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.foreign_keys import describe_outlook_key
from pipeline.foreign_payloads import describe_number, describe_time, quote
from pipeline.iso_times import iso_microseconds
from pipeline.messages import (
    EARLIEST_TIMESTAMP_US,
    LARGEST_READING_BYTES,
    LARGEST_VALUE,
    LATEST_TIMESTAMP_US,
    LONGEST_SENSOR_ID_BYTES,
    OWN_FORM_HEADER,
    SCHEMA_URIS,
    Headers,
    Rejected,
    iso_timestamp,
    json_schemas,
    microseconds,
)
from pipeline.settings import Settings
from pipeline.time_units import describe_outside

BAD_OUTLOOK: Final = "bad-outlook"
OUTLOOK_SCHEMA_URI: Final = "urn:streamgru:schema:outlook:1"
ALL_SCHEMA_URIS: Final = {**SCHEMA_URIS, "outlook": OUTLOOK_SCHEMA_URI}  # the $id of each of `all_json_schemas`
MOST_ENTRIES: Final = 100_000  # times of one outlook; a state keeps far fewer

_Time = Annotated[datetime, msgspec.Meta(tz=True)] | int
Time = TypeVar("Time")


class OutlookValues(msgspec.Struct, frozen=True):
    """Values of covariates at some times, in any order of the times."""

    timestamps: Annotated[
        list[_Time], msgspec.Meta(min_length=1, description="each ISO 8601 with a zone, or epoch milliseconds")
    ]
    values: Annotated[
        dict[str, list[float | None]],
        msgspec.Meta(description="by covariate: one value for each of the timestamps; null is missing"),
    ]


class OutlookMessage(msgspec.Struct, frozen=True):
    """The value of a record with an outlook; its key is the sensor id or the name of the group in UTF-8."""

    issued_at: Annotated[
        _Time, msgspec.Meta(description="when the outlook was made: ISO 8601 with a zone, or epoch milliseconds")
    ]
    outlook: OutlookValues
    sensor_id: Annotated[
        str | msgspec.UnsetType, msgspec.Meta(description="the record's key, once more; absent in a group's outlook")
    ] = msgspec.UNSET
    group: Annotated[
        str | msgspec.UnsetType,
        msgspec.Meta(description="a group of the settings instead of a sensor; the record is on every partition"),
    ] = msgspec.UNSET


@dataclass(frozen=True)
class Outlook:
    """A decoded outlook of C covariates, those of the settings in their order, at n times."""

    name: str  # of the sensor or group
    is_group: bool
    sensors: tuple[str, ...]  # the sensor, or the sensors of the group
    issued_us: int
    timestamp_us: NDArray[np.int64]  # (n,)
    values: NDArray[np.float32]  # (n, C), NaN where missing
    ignored: int = 0  # covariates in the message that the settings do not name


class _RawValues(msgspec.Struct, Generic[Time], frozen=True):
    timestamps: list[Time]
    values: dict[str, msgspec.Raw]


class _RawMessage(msgspec.Struct, Generic[Time], frozen=True):
    """``OutlookMessage`` with values of any JSON type."""

    issued_at: Time
    outlook: _RawValues[Time]
    sensor_id: str | msgspec.UnsetType = msgspec.UNSET
    group: str | msgspec.UnsetType = msgspec.UNSET


class _Probe(msgspec.Struct, frozen=True):
    """Any JSON object."""

    outlook: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class OutlookDecoder:
    """Decodes outlooks of some covariates and groups.

    Args:
        own_form_only: whether only records with ``OWN_FORM_HEADER`` may be outlooks; the other ones are foreign.
    """

    REASONS: Final = ("malformed", "bad-key", "bad-timestamp", "bad-value", BAD_OUTLOOK)

    def __init__(
        self,
        covariates: Sequence[str],
        groups: Mapping[str, Sequence[str]],
        largest_bytes: int = LARGEST_READING_BYTES,
        *,
        own_form_only: bool = False,
    ) -> None:
        self._covariates = tuple(covariates)
        self._groups = {name: tuple(sensors) for name, sensors in groups.items()}
        self.group_keys: Final = frozenset(name.encode() for name in groups)
        self._largest_bytes = largest_bytes
        self._own_form_only = own_form_only
        self._probe = msgspec.json.Decoder(_Probe).decode
        self._decode = msgspec.json.Decoder(_RawMessage[_Time]).decode
        self._decode_loosely = msgspec.json.Decoder(_RawMessage[str | int]).decode  # also rare spellings of times
        self._decode_numbers = msgspec.json.Decoder(list[float | None]).decode

    def decode(
        self, key: bytes | None, value: bytes | None, headers: Headers | None, rejected: Rejected
    ) -> Outlook | None:
        """The outlook in a record that is not a reading; None if the record holds no outlook either.

        Args:
            rejected: why it is not a reading.

        Raises:
            Rejected: the record holds an outlook that is invalid; the reason is one of ``REASONS``.
        """
        if rejected.reason != "malformed" or value is None or len(value) > self._largest_bytes:
            return None
        if self._own_form_only and OWN_FORM_HEADER not in (headers or ()):
            return None
        try:
            if self._probe(value).outlook is msgspec.UNSET:
                return None
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return None
        message = self._message(value)
        name, sensors = self._addressed(key, message)
        is_group = message.group is not msgspec.UNSET
        issued_us = _time_us(message.issued_at)
        given = message.outlook
        if not given.timestamps:
            raise Rejected(BAD_OUTLOOK, "outlook.timestamps is empty; give the times that the values are for")
        if len(given.timestamps) > MOST_ENTRIES:
            raise Rejected(
                BAD_OUTLOOK, f"the outlook has {len(given.timestamps):,} timestamps, and at most {MOST_ENTRIES:,} fit"
            )
        timestamp_us = np.array([_time_us(time) for time in given.timestamps], np.int64)
        values = np.full((len(timestamp_us), len(self._covariates)), np.nan, np.float32)
        for place, covariate in enumerate(self._covariates):
            if (raw := given.values.get(covariate)) is not None:
                values[:, place] = self._numbers(covariate, raw, len(timestamp_us))
        known = sum(covariate in given.values for covariate in self._covariates)
        if not known:
            raise Rejected(BAD_OUTLOOK, _describe_strangers(self._covariates, tuple(given.values)))
        return Outlook(name, is_group, sensors, issued_us, timestamp_us, values, len(given.values) - known)

    def _message(self, value: bytes) -> _RawMessage[Any]:
        """The message; times in rare spellings are texts."""
        try:
            return self._decode(value)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            pass
        try:
            return self._decode_loosely(value)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise Rejected("malformed", _describe_form(value, str(error))) from None

    def _addressed(self, key: bytes | None, message: _RawMessage[Any]) -> tuple[str, tuple[str, ...]]:
        """The name of the sensor or group, and the sensors."""
        sensor, group = message.sensor_id, message.group
        if (sensor is msgspec.UNSET) == (group is msgspec.UNSET):
            raise Rejected("malformed", "an outlook has either the field sensor_id or the field group")
        name = group if isinstance(group, str) else sensor
        assert isinstance(name, str)
        try:
            expected = name.encode()
        except UnicodeError:
            raise Rejected("malformed", "the name of the sensor or group is not valid text") from None
        if not expected or key != expected:
            raise Rejected("bad-key", describe_outlook_key(key, name, is_group=isinstance(group, str)))
        if len(expected) > LONGEST_SENSOR_ID_BYTES:
            raise Rejected("bad-key", f"the name is longer than {LONGEST_SENSOR_ID_BYTES} bytes")
        if not isinstance(group, str):
            return name, (name,)
        if group not in self._groups:
            known = ", ".join(map(quote, self._groups)) or "none"
            raise Rejected(
                BAD_OUTLOOK,
                f"the group {quote(group)} is not in the settings (their groups: {known}); name its sensors under "
                "[outlooks.groups]",
            )
        return name, self._groups[group]

    def _numbers(self, covariate: str, raw: msgspec.Raw, count: int) -> NDArray[np.float32]:
        try:
            numbers = self._decode_numbers(raw)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            raise Rejected("malformed", f"{describe_number(covariate, bytes(raw))}, in a list") from None
        if len(numbers) != count:
            raise Rejected(
                BAD_OUTLOOK,
                f"{quote(covariate)} has {len(numbers):,} values for {count:,} timestamps; give one for each, or null",
            )
        found = np.array([np.nan if number is None else number for number in numbers], np.float64)
        if (np.abs(found[~np.isnan(found)]) > LARGEST_VALUE).any():
            raise Rejected("bad-value", f"{covariate} is beyond ±{LARGEST_VALUE:g}")
        return found.astype(np.float32)


class _Keyed(Protocol):
    """A record or a dead letter."""

    @property
    def key(self) -> bytes | None: ...

    @property
    def value(self) -> bytes | None: ...

    @property
    def headers(self) -> Headers | None: ...


def decode_outlook(decoder: OutlookDecoder | None, record: _Keyed, rejected: Rejected) -> Outlook | Rejected:
    """The outlook in a record that is not a reading, or why the record is rejected.

    Args:
        decoder: None if the settings name no covariates; then no record holds an outlook.
        rejected: why the record is not a reading.
    """
    if decoder is None:
        return rejected
    try:
        found = decoder.decode(record.key, record.value, record.headers, rejected)
    except Rejected as invalid:
        return invalid
    return rejected if found is None else found


def make_outlook_decoder(settings: Settings) -> OutlookDecoder | None:
    """The decoder for the settings' covariates and groups; None if the settings name no covariates."""
    outlooks = settings.outlooks
    if not outlooks.are_on:
        return None
    largest = max(LARGEST_READING_BYTES, 2 * settings.kafka.max_reading_bytes)
    return OutlookDecoder(outlooks.covariates, outlooks.groups, largest, own_form_only=settings.readings.is_mapped)


def _time_us(time: datetime | str | int) -> int:
    timestamp_us: int | None
    if isinstance(time, datetime):
        timestamp_us = microseconds(time)
    else:
        timestamp_us = time * 1_000 if isinstance(time, int) else iso_microseconds(time)
    if timestamp_us is None:
        raise Rejected("malformed", describe_time(str(time)))
    if not EARLIEST_TIMESTAMP_US <= timestamp_us < LATEST_TIMESTAMP_US:
        raise Rejected("bad-timestamp", describe_outside(timestamp_us))
    return timestamp_us


def _describe_form(value: bytes, error: str) -> str:
    """Why an object with the field ``outlook`` has not the form of ``OutlookMessage``.

    Args:
        error: the decoder's words, which end with the path of the field.
    """
    try:
        content = msgspec.json.decode(value)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return f"the outlook cannot be decoded: {error}"
    if "issued_at" not in content:
        return (
            "the record has an outlook and no field issued_at: add the time at which the outlook was made, in ISO 8601 "
            "with a zone or in epoch milliseconds"
        )
    outlook = content["outlook"]
    if not isinstance(outlook, dict) or not {"timestamps", "values"} <= outlook.keys():
        return "the field outlook is an object with the fields timestamps and values; at least one of them is missing"
    what, _, path = error.partition(" - at ")
    field = path.strip("`").removeprefix("$.")
    return f"the outlook's field {field} has another type: {what}" if field else f"the outlook has another form: {what}"


def _describe_strangers(covariates: Sequence[str], found: Sequence[str]) -> str:
    has = ", ".join(map(quote, found[:4])) or "no values"
    return (
        f"the outlook has none of the covariates in the settings ({', '.join(map(quote, covariates[:4]))}); it has "
        f"{has}. Name its covariates under [outlooks]"
    )


def encode_outlook(
    name: str,
    issued_us: int,
    timestamp_us: NDArray[np.int64],
    values: Mapping[str, NDArray[np.floating[Any]]],
    *,
    is_group: bool = False,
) -> tuple[bytes, bytes]:
    """Key and value of the record of an outlook. NaN is written as null.

    Args:
        values: covariate -> (n,) its values at the n times.
    """
    columns = {
        covariate: [None if number != number else number for number in column.tolist()]
        for covariate, column in values.items()
    }
    message = {
        "group" if is_group else "sensor_id": name,
        "issued_at": iso_timestamp(issued_us),
        "outlook": {
            "timestamps": [iso_timestamp(time) for time in timestamp_us.tolist()],
            "values": columns,
        },
    }
    return name.encode(), msgspec.json.encode(message)


def all_json_schemas() -> dict[str, Any]:
    """JSON Schema (2020-12) of the values of readings, forecasts and outlooks."""
    schemas = json_schemas()
    (outlook,), definitions = msgspec.json.schema_components((OutlookMessage,))
    return {**schemas, "outlook": outlook, "$defs": schemas["$defs"] | definitions}
