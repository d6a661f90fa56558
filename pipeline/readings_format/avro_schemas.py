"""Reads Avro records by their writer's schema.

A schema from a registry is someone else's: one that could make a small record take unbounded memory or time is refused.
Each level of a recursive type, and each item of a list, must cost at least one byte of the record.
"""

import json
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any, Final

from pipeline.errors import SettingsError
from pipeline.messages import Rejected
from pipeline.readings_format.schema_registry import NEEDS_EXTRA, Schema

_DEEPEST: Final = 100  # types inside types
_INVALID: Final = (ValueError, KeyError, TypeError, AttributeError, RecursionError)

Reader = Callable[[bytes], Any]


class UnusableSchema(ValueError):
    """A schema that cannot be used for readings."""


def make_avro_reader(schema: Schema) -> Reader:
    """A function from the bytes of an Avro record to Python values; it raises ``Rejected``.

    Raises:
        UnusableSchema: the schema is invalid, recursive, or has list items of no bytes.
    """
    try:
        import fastavro
    except ImportError as error:
        raise SettingsError(f'readings.format = "avro" needs fastavro ({error}): {NEEDS_EXTRA}') from error
    named: dict[str, Any] = {}
    try:
        for reference in schema.references:
            fastavro.parse_schema(json.loads(reference.text), named_schemas=named)
        parsed = fastavro.parse_schema(json.loads(schema.text), named_schemas=named)
        _least_bytes(parsed, named, ())
    except UnusableSchema:
        raise
    except (*_INVALID, fastavro.schema.SchemaParseException) as error:
        raise UnusableSchema(f"{type(error).__name__}: {error}") from error

    def read(data: bytes) -> Any:
        stream = BytesIO(data)
        try:
            found = fastavro.schemaless_reader(stream, parsed, None)
        except (*_INVALID, ArithmeticError, IndexError, EOFError, MemoryError) as error:
            raise _damaged(str(error) or "the record ends early") from None
        if stream.tell() != len(data):
            raise _damaged(f"{len(data) - stream.tell()} bytes are left over")
        return found

    return read


def _damaged(why: str) -> Rejected:
    return Rejected("malformed", f"the Avro record does not follow its schema: {why}")


def _least_bytes(schema: Any, named: Mapping[str, Any], inside: tuple[str, ...], depth: int = 0) -> int:
    """The least bytes of a value. Refuses recursion, and items of lists and maps without bytes."""
    if depth > _DEEPEST:
        raise UnusableSchema(f"its types are nested more than {_DEEPEST} levels deep")
    if isinstance(schema, list):
        return 1 + min((_least_bytes(each, named, inside, depth + 1) for each in schema), default=0)
    if isinstance(schema, str):
        if schema in named:
            return _least_bytes(named[schema], named, inside, depth + 1)
        return {"null": 0, "float": 4, "double": 8}.get(schema, 1)
    kind = schema["type"]
    if kind in ("record", "error"):
        name = schema["name"]
        if name in inside:
            raise UnusableSchema(f"its type {name} contains itself")
        return sum(_least_bytes(field["type"], named, (*inside, name), depth + 1) for field in schema["fields"])
    if kind == "array":
        if _least_bytes(schema["items"], named, inside, depth + 1) == 0:
            raise UnusableSchema("a list has items of no bytes, so a small record could hold any number of them")
        return 1
    if kind == "map":
        _least_bytes(schema["values"], named, inside, depth + 1)
        return 1
    if kind == "fixed":
        return int(schema["size"])
    if kind == "enum":
        return 1
    return _least_bytes(kind, named, inside, depth + 1)
