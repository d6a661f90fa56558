"""Reads values and keys in Confluent's framing: a magic byte, the schema's id, and the data."""

from typing import Any, Final

import msgspec

from pipeline.foreign_payloads import CONFLUENT_HEADER_BYTES, confluent_schema_id, describe_value
from pipeline.messages import Rejected
from pipeline.readings_format.avro_schemas import Reader, UnusableSchema, make_avro_reader
from pipeline.readings_format.protobuf_schemas import make_protobuf_reader
from pipeline.readings_format.schema_registry import Schema, SchemaStore

KINDS: Final = {"avro": "AVRO", "protobuf": "PROTOBUF", "json_schema": "JSON"}  # format -> schema type in a registry
_FORMATS: Final = {kind: name for name, kind in KINDS.items()}

_decode_json = msgspec.json.Decoder().decode


class FramedReader:
    """Reads data of one format; keeps one reader per schema id.

    Args:
        schemas: None reads JSON without looking its schemas up.
    """

    def __init__(self, format_: str, schemas: SchemaStore | None) -> None:
        self._format = format_
        self._schemas = schemas
        self._readers: dict[bytes, Reader] = {}  # the framing's first 5 bytes -> reader
        self._unusable: dict[bytes, str] = {}  # the same -> detail of the dead letter

    def read(self, data: bytes) -> Any:
        """The content of framed data.

        Raises:
            Rejected: the framing is missing, the schema does not exist or is of another type, or the data are damaged.
            SchemaRegistryError: the schema cannot be looked up now.
        """
        if self._schemas is None:  # ids of unknown schemas would be kept without limit
            return _read_json(self._body(data))
        head = data[:CONFLUENT_HEADER_BYTES]
        reader = self._readers.get(head)
        if reader is None:
            reader = self._readers[head] = self._make_reader(self._schemas, data, head)
        return reader(data[CONFLUENT_HEADER_BYTES:])

    def _body(self, data: bytes) -> bytes:
        if confluent_schema_id(data) is None:
            lacks = f'the data lack Confluent\'s framing, which format "{self._format}" needs'
            raise Rejected("malformed", f"{lacks}; {describe_value(data, 'the value is plain JSON', ())}")
        return data[CONFLUENT_HEADER_BYTES:]

    def _make_reader(self, schemas: SchemaStore, data: bytes, head: bytes) -> Reader:
        self._body(data)
        if head in self._unusable:
            raise Rejected("malformed", self._unusable[head])
        schema_id = int.from_bytes(head[1:], "big")
        schema = schemas.schema(schema_id)
        try:
            return self._reader_of(schema)
        except UnusableSchema as error:
            detail = self._unusable[head] = f"schema id {schema_id} cannot be used for readings: {error}"
            raise Rejected("malformed", detail) from None

    def _reader_of(self, schema: Schema) -> Reader:
        if schema.kind != KINDS[self._format]:
            fitting = _FORMATS.get(schema.kind)
            hint = f'; set readings.format = "{fitting}"' if fitting else ""
            raise UnusableSchema(f"it is of type {schema.kind}, and the settings expect {KINDS[self._format]}{hint}")
        if self._format == "avro":
            return make_avro_reader(schema)
        if self._format == "protobuf":
            return make_protobuf_reader(schema)
        return _read_json


def _read_json(data: bytes) -> Any:
    try:
        return _decode_json(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise Rejected("malformed", describe_value(data, str(error), ())) from None
