"""Maps a decoded message to a reading, by the field paths of ``[readings]`` in the settings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pipeline.field_paths import ABSENT, Path, SeveralReadings, Source, follow, parse_path, parse_source, parse_template
from pipeline.foreign_keys import describe_key
from pipeline.foreign_payloads import quote, strip_padding
from pipeline.messages import LONGEST_SENSOR_ID_BYTES, Headers, Reading, Rejected, pick_values
from pipeline.readings_format.times import in_range, make_time_reader
from pipeline.readings_format.values import make_value_reader
from pipeline.readings_settings import ReadingsSettings

_SPLIT: Final = "send each reading as a record of its own, because every offset stands for one reading"
_OWN_SENSOR: Final = "sensor_id"
_OWN_VALUES: Final = "values"

KeyReader = Callable[[bytes], Any]
_Values = dict[str, float | None]


@dataclass(frozen=True)
class Message:
    """A decoded value, and the rest of its record."""

    content: Any
    key: bytes | None
    headers: Headers
    sent_ms: int | None  # the record's timestamp; None or negative if it has none


class FieldMapping:
    """Makes readings of messages.

    Args:
        read_key: decodes a key; raises ``Rejected`` for keys that it cannot decode.
    """

    def __init__(self, settings: ReadingsSettings, features: Sequence[str], read_key: KeyReader) -> None:
        self._features = tuple(features)
        self._read_key = read_key
        self._key_must_match = settings.sensor is None
        self._sensor = parse_template(settings.sensor or _OWN_SENSOR)
        self._time = parse_source(settings.time)
        self._read_time = make_time_reader(settings)
        self._read_value = make_value_reader(settings)
        self._fields = {feature: parse_path(path) for feature, path in settings.fields.items()}
        self._name = None if settings.name is None else parse_path(settings.name)
        self._value = None if settings.value is None else parse_path(settings.value)
        self._container: Path | None = None
        if settings.values is not None:
            self._container = parse_path(settings.values)
        elif not self._fields and self._name is None:
            self._container = parse_path(_OWN_VALUES)
        # The message itself is the list of values, and not a list of readings.
        self._lists_values = self._container == () and self._name is not None
        # Fields of a flat message that are not features, and not counted as ignored.
        self._used = frozenset(
            source.path[0]
            for source in (*self._sensor, self._time)
            if isinstance(source, Source) and source.part == "value" and source.path
        )

    def reading(self, message: Message) -> Reading:
        """The reading in a message.

        Raises:
            Rejected: with one of ``ReadingDecoder.REASONS``.
        """
        try:
            content = message.content
            if type(content) is list and not self._lists_values:
                message = Message(_only(content), message.key, message.headers, message.sent_ms)
            sensor_id = self._sensor_id(message)
            timestamp_us = self._timestamp_us(message)
            values, ignored = self._values(message.content)
        except SeveralReadings as error:
            raise Rejected("malformed", f"{error}: {_SPLIT}") from None
        reading = pick_values(self._features, sensor_id, timestamp_us, values)
        return reading if not ignored else Reading(sensor_id, timestamp_us, reading.values, reading.ignored + ignored)

    def _sensor_id(self, message: Message) -> str:
        parts = self._sensor
        if len(parts) == 1:
            sensor_id = self._id_part(parts[0], message)
        else:
            sensor_id = "".join(part if type(part) is str else self._id_part(part, message) for part in parts)
        try:
            encoded = sensor_id.encode()
        except UnicodeEncodeError:
            raise Rejected("bad-key", f"the sensor id {quote(sensor_id)} is not Unicode text") from None
        if len(encoded) > LONGEST_SENSOR_ID_BYTES:
            raise Rejected("bad-key", f"the sensor id is longer than {LONGEST_SENSOR_ID_BYTES} bytes")
        if self._key_must_match and message.key != encoded:
            raise Rejected("bad-key", describe_key(message.key, sensor_id))
        return sensor_id

    def _id_part(self, source: Any, message: Message) -> str:
        found = self._look_up(source, message)
        if type(found) is str:
            text = found if found.isalnum() else strip_padding(found)
        elif type(found) is int:
            text = str(found) if -(10**30) < found < 10**30 else ""
        elif source.part == "key" and message.key is None:
            raise Rejected("bad-key", describe_key(None, None))
        else:
            raise Rejected("bad-key", f"{source}, which names the sensor, is {_describe(found)}")
        if not text:
            raise Rejected("bad-key", f"{source}, which names the sensor, is empty")
        return text

    def _timestamp_us(self, message: Message) -> int:
        source = self._time
        found = self._look_up(source, message)
        if source.part == "record_timestamp":
            if found is None or found < 0:
                raise Rejected("bad-timestamp", "the record has no timestamp, and readings.time names it")
            return in_range(found * 1_000, found)
        if found is ABSENT or found is None:
            raise Rejected("malformed", f"{source}, which holds the time, is {_describe(found)}")
        return self._read_time(found)

    def _look_up(self, source: Source, message: Message) -> Any:
        if source.part == "value":
            return follow(message.content, source.path)
        if source.part == "key":
            return ABSENT if message.key is None else follow(self._read_key(message.key), source.path)
        if source.part == "record_timestamp":
            return message.sent_ms
        found = next((value for name, value in reversed(message.headers) if name == source.header), None)
        if found is None:
            return ABSENT
        try:
            return found.decode()
        except UnicodeDecodeError:
            raise Rejected("malformed", f"{source} is not UTF-8 text") from None

    def _values(self, content: Any) -> tuple[_Values, int]:
        """Values by feature, and the number of ignored ones among those that are not in the dict."""
        read = self._read_value
        values: _Values = {}
        ignored = 0
        if self._container is not None:
            values, ignored = self._contained(follow(content, self._container))
        elif self._name is not None:
            values = dict([self._item(content)])
        for feature, path in self._fields.items():
            found = follow(content, path)
            values[feature] = None if found is ABSENT else read(feature, found)
        return values, ignored

    def _contained(self, container: Any) -> tuple[_Values, int]:
        """The values in the object or the list that ``readings.values`` names."""
        if type(container) is list and self._name is not None:
            items = [self._item(item) for item in container]
            values = dict(items)
            if len(values) < len(items):
                twice = next(name for place, (name, _) in enumerate(items) if name in dict(items[:place]))
                raise Rejected("malformed", f"the list of values has {quote(twice)} twice: {_SPLIT}")
            return values, 0
        if type(container) is not dict:
            if self._fields and (container is ABSENT or container is None):
                return {}, 0
            wanted = "a list of objects" if self._name is not None else "an object with one value per feature"
            where = "the value" if self._container == () else "the field of readings.values"
            raise Rejected("malformed", f"{where} is {_describe(container)}, not {wanted}")
        read, inner = self._read_value, self._value
        values = {}
        for feature in self._features:
            found = container.get(feature, ABSENT)
            if inner is not None and found is not ABSENT:
                found = follow(found, inner)
            if found is not ABSENT:
                values[feature] = read(feature, found)
        named = sum(map(container.__contains__, self._used)) if self._container == () else 0
        return values, max(0, len(container) - len(values) - named)

    def _item(self, item: Any) -> tuple[str, float | None]:
        """Name and value of an object that names its feature; the value of an unnamed feature may be anything."""
        assert self._name is not None
        assert self._value is not None
        name = follow(item, self._name)
        if type(name) is not str:
            raise Rejected("malformed", f"the field of readings.name is {_describe(name)}, not a text")
        name = strip_padding(name)
        if name not in self._features:
            return name, None
        found = follow(item, self._value)
        return name, None if found is ABSENT else self._read_value(name, found)


def _only(content: list[Any]) -> Any:
    if len(content) != 1:
        raise SeveralReadings(f"the value is a JSON array of length {len(content)}")
    return content[0]


def _describe(found: Any) -> str:
    if found is ABSENT:
        return "absent"
    if found is None:
        return "null"
    if isinstance(found, (dict, list)):
        return "an object" if isinstance(found, dict) else f"a list of length {len(found)}"
    return quote(str(found)[:200])
