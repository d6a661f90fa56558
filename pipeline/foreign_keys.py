"""Says how the key of a rejected record differs from its sensor id, and what to do about it."""

import json
from unicodedata import normalize
from uuid import UUID

from pipeline.foreign_payloads import (
    CONFLUENT_HEADER_BYTES,
    confluent_schema_id,
    is_json_object,
    quote,
    strip_padding,
    wide_encoding,
)


def describe_outlook_key(key: bytes | None, name: str, *, is_group: bool) -> str:
    """How the key of an outlook differs from the name of its sensor or group, and what to do."""
    return _describe(key, name, f"the {'name of the group' if is_group else 'sensor id'} {quote(name)}", "")


def describe_key(key: bytes | None, sensor_id: str | None) -> str:
    """How a record's key differs from the sensor id, and what to do. Ids are compared byte for byte.

    Args:
        sensor_id: the id in the value; None if the key itself has to name the sensor.
    """
    wanted = f"the sensor id {quote(sensor_id)}" if sensor_id is not None else "a sensor id"
    return _describe(key, sensor_id, wanted, ", or name the sensor's field with readings.sensor")


def _describe(key: bytes | None, sensor_id: str | None, wanted: str, mapping: str) -> str:
    """How a key differs from an id.

    Args:
        wanted: the id in words.
        mapping: the end of the remedy, if the settings can name another field; otherwise empty.
    """
    if key is None:
        return f"the key is null: set it to {wanted}{mapping}"
    if not key:
        return f"the key is empty: set it to {wanted}{mapping}"
    advice = f"let the producer send {'the id' if mapping else 'it'} as UTF-8 text{mapping}"
    binary = _describe_binary_key(key)
    if binary is not None:
        return f"the key is {binary}, not {wanted}: {advice}"
    text = key.decode()
    if sensor_id is not None:
        if text.strip("\"'") == sensor_id or _json_string(text) == sensor_id:
            return f"the key {quote(text)} is {wanted} in quotes: {advice} (in Java: StringSerializer)"
        if strip_padding(text) == strip_padding(sensor_id):
            return (
                f"the key {quote(text)} and {wanted} differ in white space or invisible characters at the ends: ids "
                "are compared byte for byte; let the producer send the same text in both"
            )
        if normalize("NFC", text) == normalize("NFC", sensor_id):
            return f"the key {quote(text)} and {wanted} differ in their Unicode normalization: send the same in both"
        if text.casefold() == sensor_id.casefold():
            return f"the key {quote(text)} and {wanted} differ in upper and lower case: send the same in both"
    if text[:1] in "{[" and (_json_string(text) is not None or is_json_object(text)):
        example = ', for example readings.sensor = "@key.id"' if mapping else ""
        return (
            f"the key is JSON, it begins with {quote(text)}: {advice}{example} (in Kafka Connect: key.converter = "
            "StringConverter)"
        )
    return f"the key {quote(text)} is not {wanted}: {advice}"


def _describe_binary_key(key: bytes) -> str | None:
    """The name of a binary key; None if the key is text without control characters at its start."""
    schema_id = confluent_schema_id(key)
    is_text = _is_text(key)
    if schema_id and len(key) > CONFLUENT_HEADER_BYTES and not (is_text and key[0] != 0):
        return f"in Confluent's framing with schema id {schema_id}"
    if key.startswith(b"\xef\xbb\xbf"):
        return "text after a UTF-8 byte order mark"
    if wide_encoding(key) is not None:
        return "text in UTF-16 or UTF-32"
    if is_text:
        return None
    if len(key) in (4, 8):
        return f"perhaps the binary number {int.from_bytes(key, 'big', signed=True)} ({key.hex(' ')})"
    if len(key) == 16:
        return f"perhaps the binary UUID {UUID(bytes=key)}"
    return f"binary data (it begins with the bytes {key[:8].hex(' ')})"


def _is_text(data: bytes) -> bool:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return False
    return not any(letter < " " and letter not in "\t\r\n" for letter in text)


def _json_string(text: str) -> str | None:
    """The string in a JSON string, or in a Connect envelope around one; None otherwise."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(content, dict):
        content = content.get("payload")
    return content if isinstance(content, str) else None
