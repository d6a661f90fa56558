"""Reads Protobuf messages by the .proto file that the registry holds, compiled by protoc."""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Any, Final

from pipeline.errors import SettingsError
from pipeline.messages import Rejected
from pipeline.readings_format.avro_schemas import Reader, UnusableSchema
from pipeline.readings_format.schema_registry import NEEDS_EXTRA, Schema

_MAIN_FILE: Final = "streamgru_schema.proto"
_COMPILE_TIMEOUT_S: Final = 30.0
_MOST_INDEXES: Final = 64  # of a message inside messages, in Confluent's framing
# Fields that are not in a message have values too, so a list of empty messages could fill the memory.
_MOST_VALUES: Final = 100_000  # of a message, and further values for its bytes:
_MORE_VALUES_PER_BYTE: Final = 2
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_WRAPPERS: Final = frozenset(
    f"google.protobuf.{name}Value"
    for name in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
)


def make_protobuf_reader(schema: Schema) -> Reader:
    """A function from message indexes and bytes of a Protobuf message to Python values; it raises ``Rejected``.

    A field without presence has its default value, such as 0. A field with presence that is not set is None.

    Raises:
        UnusableSchema: protoc refuses the schema.
    """
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory
    except ImportError as error:
        raise SettingsError(f'readings.format = "protobuf" needs protobuf ({error}): {NEEDS_EXTRA}') from error
    files = descriptor_pb2.FileDescriptorSet.FromString(_compile(schema)).file
    pool = descriptor_pool.DescriptorPool()
    try:
        for file in files:  # a file follows those that it imports
            pool.Add(file)
        root = pool.FindFileByName(_MAIN_FILE)
    except (TypeError, KeyError, ValueError) as error:
        raise UnusableSchema(str(error)) from error
    types = list(root.message_types_by_name.values())
    classes: dict[tuple[int, ...], Any] = {}

    def message_class(indexes: tuple[int, ...]) -> Any:
        found = classes.get(indexes)
        if found is None:
            level: Sequence[Any] = types
            descriptor = None
            for index in indexes:
                if not 0 <= index < len(level):
                    raise Rejected("malformed", f"the Protobuf schema has no message at index {list(indexes)}")
                descriptor = level[index]
                level = descriptor.nested_types
            found = classes[indexes] = message_factory.GetMessageClass(descriptor)
        return found

    def read(data: bytes) -> Any:
        indexes, start = _read_indexes(data)
        try:
            found = message_class(indexes).FromString(data[start:])
            return _Conversion(_MOST_VALUES + _MORE_VALUES_PER_BYTE * len(data)).content(found)
        except (message.DecodeError, RecursionError, ValueError) as error:
            raise Rejected("malformed", f"the Protobuf message does not follow its schema: {error}") from None

    return read


def _compile(schema: Schema) -> bytes:
    """The serialized descriptors of a .proto file and all files that it imports."""
    with tempfile.TemporaryDirectory(prefix="streamgru-proto-") as folder:
        root = Path(folder)
        for name, text in (*((each.name, each.text) for each in schema.references), (_MAIN_FILE, schema.text)):
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:
                raise UnusableSchema(f"it imports {name!r}, which is not a relative path")
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text, encoding="utf-8")
        output = root / "descriptors"
        command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{folder}", f"-I{_well_known_protos()}"]
        command += ["--include_imports", f"--descriptor_set_out={output}", _MAIN_FILE]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            raise UnusableSchema(f"protoc takes more than {_COMPILE_TIMEOUT_S:g} s for it") from None
        if done.returncode != 0:
            raise UnusableSchema(f"protoc refuses it: {done.stderr.strip()[-300:]}")
        return output.read_bytes()


def _well_known_protos() -> Path:
    try:
        import grpc_tools
    except ImportError as error:
        raise SettingsError(f'readings.format = "protobuf" needs grpcio-tools ({error}): {NEEDS_EXTRA}') from error
    return Path(grpc_tools.__path__[0]) / "_proto"


def _read_indexes(data: bytes) -> tuple[tuple[int, ...], int]:
    """The message indexes that precede a message in Confluent's framing, and the position of the message."""
    count, position = _varint(data, 0)
    if count == 0:  # short for the first message
        return (0,), position
    if not 0 < count <= _MOST_INDEXES:
        raise Rejected("malformed", "the message indexes of the Protobuf framing are damaged")
    indexes = []
    for _ in range(count):
        index, position = _varint(data, position)
        indexes.append(index)
    return tuple(indexes), position


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(data) and shift < 35:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), position
    raise Rejected("malformed", "the message indexes of the Protobuf framing are damaged")


class _Conversion:
    """Turns one message into Python values.

    Args:
        most_values: number of values after which it raises ``Rejected``.
    """

    def __init__(self, most_values: int) -> None:
        self._most_values = self._left = most_values

    def content(self, found: Any) -> Any:
        """A message as a dict of its fields; times and wrapped values as plain values."""
        descriptor = found.DESCRIPTOR
        if descriptor.full_name == "google.protobuf.Timestamp":
            try:
                return _EPOCH + timedelta(seconds=found.seconds, microseconds=found.nanos // 1_000)
            except OverflowError:
                raise ValueError(f"the timestamp of {found.seconds} seconds is out of range") from None
        if descriptor.full_name in _WRAPPERS:
            return found.value
        self._count(len(descriptor.fields))
        return {field.name: self._field(found, field) for field in descriptor.fields}

    def _field(self, found: Any, field: Any) -> Any:
        value = getattr(found, field.name)
        plain = self._plain_of(field)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            plain_value = self._plain_of(field.message_type.fields_by_name["value"])
            self._count(len(value))
            return {str(name): plain_value(value[name]) for name in value}
        if field.is_repeated:
            self._count(len(value))
            return [plain(item) for item in value]
        if field.has_presence and not found.HasField(field.name):
            return None
        return plain(value)

    def _plain_of(self, field: Any) -> Callable[[Any], Any]:
        if field.message_type is not None:
            return self.content
        if field.enum_type is not None:
            names = field.enum_type.values_by_number
            return lambda number: names[number].name if number in names else number
        return _itself

    def _count(self, values: int) -> None:
        self._left -= values
        if self._left < 0:
            raise Rejected("malformed", f"the Protobuf message holds more than {self._most_values:,} values")


def _itself(value: Any) -> Any:
    return value
