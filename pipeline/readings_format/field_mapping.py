"""Maps a decoded message to a reading, by the field paths of ``[readings]`` in the settings."""

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

from pipeline.foreign_keys import describe_key
from pipeline.foreign_payloads import quote, strip_padding
from pipeline.messages import (
    EARLIEST_TIMESTAMP_US,
    LARGEST_VALUE,
    LATEST_TIMESTAMP_US,
    LONGEST_SENSOR_ID_BYTES,
    Headers,
    Reading,
    Rejected,
    pick_values,
)
from pipeline.readings_format.times import in_range, make_time_reader, whole_factor
from pipeline.readings_format.values import make_value_reader
from pipeline.settings.field_paths import (
    ABSENT,
    Path,
    SeveralReadings,
    Source,
    follow,
    parse_path,
    parse_source,
    parse_template,
)
from pipeline.settings.readings import ReadingsSettings

_SPLIT: Final = "send each reading as a record of its own, because every offset stands for one reading"
_OWN_SENSOR: Final = "sensor_id"
_OWN_VALUES: Final = "values"
_NAN: Final = float("nan")

KeyReader = Callable[[bytes], Any]
_Values = dict[str, float | None]


class Message(NamedTuple):
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
        self._time_unit = settings.time_unit
        self._read_value = make_value_reader(settings)
        self._takes_floats = settings.format == "json" and not settings.missing  # JSON has no NaN
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

        self.read_plain = self._make_plain() if self._takes_floats else None

    def reading(self, message: Message) -> Reading:
        """The reading in a message.

        Raises:
            Rejected: with one of ``ReadingDecoder.REASONS``.
        """
        content = message.content
        try:
            if type(content) is list and not self._lists_values:
                content = _only(content)
                message = message._replace(content=content)
            sensor_id = self._sensor_id(message)
            timestamp_us = self._timestamp_us(message)
            values, ignored = self._values(content)
        except SeveralReadings as error:
            raise Rejected("malformed", f"{error}: {_SPLIT}") from None
        return pick_values(self._features, sensor_id, timestamp_us, values, ignored)

    def _make_plain(self) -> Callable[[Any], Reading | None] | None:
        """A fast path of ``reading`` for an object whose id is a clean text and whose values are JSON numbers or null.

        It returns None for all other messages, also for those that are rejected. None without a path for such messages.
        """
        sensor, time, container_path = self._sensor[0], self._time, self._container
        if len(self._sensor) != 1 or self._key_must_match or container_path is None:
            return None
        if not isinstance(sensor, Source) or (sensor.part, time.part) != ("value", "value"):
            return None
        if self._value is not None or self._name is not None or self._fields:
            return None
        sensor_path, time_path, features, read_time = sensor.path, time.path, self._features, self._read_time
        factor = whole_factor(self._time_unit)
        used = tuple(self._used) if container_path == () else ()

        def plain(content: Any) -> Reading | None:
            try:
                sensor_id = moment = container = content
                for name in sensor_path:
                    sensor_id = sensor_id[name]
                for name in time_path:
                    moment = moment[name]
                for name in container_path:
                    container = container[name]
                absent = missing = 0
                values = []
                for feature in features:
                    found = container.get(feature, ABSENT)
                    if type(found) is float and -LARGEST_VALUE <= found <= LARGEST_VALUE:
                        values.append(found)
                    elif found is None or found is ABSENT:
                        missing += 1
                        absent += found is ABSENT
                        values.append(_NAN)
                    else:
                        return None
                if not sensor_id.isascii() or not sensor_id.isprintable() or len(sensor_id) > LONGEST_SENSOR_ID_BYTES:
                    return None
                if not sensor_id or sensor_id[0] == " " or sensor_id[-1] == " ":
                    return None
            except (KeyError, TypeError, AttributeError):
                return None
            if missing == len(values) or moment is None:
                return None
            timestamp_us = moment * factor if type(moment) is int and factor is not None else read_time(moment)
            if not EARLIEST_TIMESTAMP_US <= timestamp_us < LATEST_TIMESTAMP_US:
                return None
            ignored = len(container) - len(values) + absent
            for name in used:
                ignored -= name in container
            return Reading(sensor_id, timestamp_us, tuple(values), max(0, ignored))

        return plain

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
            text = found if found.isascii() and found.isprintable() and found == found.strip() else strip_padding(found)
        elif type(found) is int:
            text = str(found) if -(10**30) < found < 10**30 else ""
        elif isinstance(found, UUID):
            text = str(found)
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
            content, path = message.content, source.path
            if len(path) == 1 and type(content) is dict:
                return content.get(path[0], ABSENT)
            return follow(content, path)
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
        """Values by name, and the number of values in the message that belong to none of the features."""
        read = self._read_value
        values: _Values = {}
        ignored = 0
        if self._container is not None:
            values, ignored = self._contained(follow(content, self._container))
        elif self._name is not None:
            name, value = self._item(content)
            values, ignored = {name: value}, int(name not in self._features)
        for feature, path in self._fields.items():
            found = follow(content, path)
            values[feature] = None if found is ABSENT else read(feature, found)
        return values, ignored

    def _contained(self, container: Any) -> tuple[_Values, int]:
        """The values in the object or the list that ``readings.values`` names."""
        if type(container) is list and self._name is not None:
            values: _Values = {}
            for item in container:
                name, value = self._item(item)
                if name in values:
                    raise Rejected("malformed", f"the list of values has {quote(name)} twice: {_SPLIT}")
                values[name] = value
            return values, sum(name not in self._features for name in values)
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
            if found is None:
                values[feature] = None
            elif found is not ABSENT:
                values[feature] = found if self._takes_floats and type(found) is float else read(feature, found)
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
