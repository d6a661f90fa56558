"""Reads Avro records by their writer's schema.

A schema from a registry is someone else's: one that could make a small record take unbounded memory or time is refused.
Types must not contain themselves. The values of a record, and above all the items of its lists, must take bytes.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from io import BytesIO
from typing import Any, Final, NamedTuple

from pipeline.errors import SettingsError
from pipeline.messages import Rejected
from pipeline.readings_format.schema_registry import NEEDS_EXTRA, Schema

_DEEPEST: Final = 100  # types inside types
_VALUES_PER_BYTE: Final = 4  # values that a byte of a record may stand for, on average over a list
_MOST_VALUES_WITHOUT_BYTES: Final = 10_000  # further values of a record: nulls, and records that contain nothing
_MOST_DECIMAL_BYTES: Final = 1_000  # 2,400 digits; the time to read a decimal grows with the square of its length
_INVALID: Final = (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError)

Reader = Callable[[bytes], Any]


class UnusableSchema(ValueError):
    """A schema that cannot be used for readings."""


def make_avro_reader(schema: Schema) -> Reader:
    """A function from the bytes of an Avro record to Python values; it raises ``Rejected``.

    Raises:
        UnusableSchema: the schema is invalid or recursive, or a short record of it could hold any number of values.
    """
    try:
        import fastavro
    except ImportError as error:
        raise SettingsError(f'readings.format = "avro" needs fastavro ({error}): {NEEDS_EXTRA}') from error
    _limit_decimals(fastavro.read.LOGICAL_READERS)
    named: dict[str, Any] = {}
    try:
        for reference in schema.references:
            fastavro.parse_schema(json.loads(reference.text), named_schemas=named)
        parsed = fastavro.parse_schema(json.loads(schema.text), named_schemas=named)
        _Planner(named).check(parsed)
    except UnusableSchema:
        raise
    except (*_INVALID, fastavro.schema.SchemaParseException) as error:
        raise UnusableSchema(f"{type(error).__name__}: {error}") from error

    def read(data: bytes) -> Any:
        stream = BytesIO(data)
        try:
            found = fastavro.schemaless_reader(stream, parsed, None)
        except (*_INVALID, IndexError, EOFError, MemoryError) as error:
            raise _damaged(str(error) or "the record ends early") from None
        if stream.tell() != len(data):
            raise _damaged(f"{len(data) - stream.tell()} bytes are left over")
        return found

    return read


def _damaged(why: str) -> Rejected:
    return Rejected("malformed", f"the Avro record does not follow its schema: {why}")


def _limit_decimals(logical_readers: dict[str, Any]) -> None:
    """Let fastavro refuse long decimals; decimals of a fixed size are refused with their schema."""
    read_decimal = logical_readers["fixed-decimal"]

    def read(data: bytes, writer_schema: Any = None, reader_schema: Any = None) -> Any:
        if len(data) > _MOST_DECIMAL_BYTES:
            raise ValueError(f"a decimal of {len(data):,} bytes is longer than {_MOST_DECIMAL_BYTES:,}")
        return read_decimal(data, writer_schema, reader_schema)

    logical_readers["bytes-decimal"] = read


class _Cost(NamedTuple):
    """The cost of reading a value of a type."""

    levels: int  # types inside types
    # The most values beyond ``_VALUES_PER_BYTE`` for each byte. Negative for types that pay for their values.
    excess: int


class _Planner:
    """Finds the most values that a type can hold per byte, once for each named type.

    A schema of a few kB can name a type any number of times.
    """

    def __init__(self, named: Mapping[str, Any]) -> None:
        self._named = named
        self._known: dict[str, _Cost] = {}
        self._open: set[str] = set()  # names of the types around the present one

    def check(self, schema: Any) -> None:
        """Refuse a schema whose records can hold far more values than bytes."""
        if self._cost(schema).excess > _MOST_VALUES_WITHOUT_BYTES:
            raise UnusableSchema(
                f"its records can hold more than {_MOST_VALUES_WITHOUT_BYTES:,} values that take no bytes, for example "
                "because types that contain nothing are used again and again"
            )

    def _cost(self, schema: Any) -> _Cost:
        """The cost of a type. Refuses recursion, deep nesting, and costly items of lists and maps."""
        if isinstance(schema, list):
            return self._around((self._cost(each) for each in schema), least_bytes=1, worst=max)
        if isinstance(schema, str):
            if schema in self._named:
                return self._cost_of_named(schema, self._named[schema])
            return _plain({"null": 0, "float": 4, "double": 8}.get(schema, 1))
        kind = schema["type"]
        if kind in ("record", "error"):
            return self._cost_of_named(schema["name"], schema)
        if kind in ("array", "map"):
            return self._cost_of_items(schema["items" if kind == "array" else "values"], int(kind == "map"))
        if kind == "fixed":
            if schema.get("logicalType") == "decimal" and schema["size"] > _MOST_DECIMAL_BYTES:
                raise UnusableSchema(f"a decimal of {schema['size']:,} bytes is longer than {_MOST_DECIMAL_BYTES:,}")
            return _plain(int(schema["size"]))
        if kind == "enum":
            return _plain(1)
        return self._cost(kind)

    def _cost_of_named(self, name: str, schema: Any) -> _Cost:
        if schema["type"] not in ("record", "error"):
            return self._cost(schema)
        if name in self._open:
            raise UnusableSchema(f"its type {name} contains itself")
        if name not in self._known:
            self._open.add(name)
            fields = [self._cost(field["type"]) for field in schema["fields"]]
            self._open.remove(name)
            cost = self._around(fields, least_bytes=0, worst=sum)
            self._known[name] = cost._replace(excess=cost.excess + 1)  # the record itself
        return self._known[name]

    def _cost_of_items(self, schema: Any, key_bytes: int) -> _Cost:
        item = self._cost(schema)
        if item.excess > key_bytes * _VALUES_PER_BYTE:
            raise UnusableSchema(
                f"a list or map has items of no bytes, or of more than {_VALUES_PER_BYTE} values a byte, so a small "
                "record could fill the memory"
            )
        return self._around([], least_bytes=1, worst=sum, levels=item.levels)

    @staticmethod
    def _around(inner: Iterable[_Cost], least_bytes: int, worst: Callable[[list[int]], int], levels: int = 0) -> _Cost:
        costs = list(inner)
        deepest = max([levels, *(cost.levels for cost in costs)]) + 1
        if deepest > _DEEPEST:
            raise UnusableSchema(f"its types are nested more than {_DEEPEST} levels deep")
        excess = worst([cost.excess for cost in costs] or [0])
        return _Cost(deepest, excess - least_bytes * _VALUES_PER_BYTE)


def _plain(least_bytes: int) -> _Cost:
    """The cost of a type without other types in it."""
    return _Cost(0, 1 - least_bytes * _VALUES_PER_BYTE)
