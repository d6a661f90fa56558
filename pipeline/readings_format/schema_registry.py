"""Schemas by id, from a registry with Confluent's interface: in memory, in a folder, then over HTTP.

A schema never changes under its id, so a schema in the folder is good for ever, and a restart needs no registry.
"""

import hashlib
import json
import logging
import re
import time
from typing import Any, Final

import msgspec

from pipeline.errors import SchemaRegistryError, SchemaRegistryUnreachable, SettingsError
from pipeline.messages import Rejected
from pipeline.settings import Settings

logger = logging.getLogger("streamgru.schemas")

_TIMEOUT_S: Final = 5.0  # of one request
_RETRIES: Final = 2  # within one look-up; the forecaster then starts over, which retries for ever
_RETRY_WAIT_MS: Final = 200
_NO_SCHEMA_CODE: Final = 40403
_HTTP_REFUSED: Final = (401, 403)
# Seconds in which an id that the registry does not have is not looked up again: a flood of them costs few requests.
_MISSING_FOR_S: Final = 30.0
_MOST_MISSING: Final = 10_000  # such ids kept in memory
MOST_REFERENCES: Final = 100
NEEDS_EXTRA: Final = "install it with: pip install 'streamgru[schema-registry]', or everything with `make setup`"


class ReferencedSchema(msgspec.Struct, frozen=True):
    """A schema that another one names in an import or a type."""

    name: str
    text: str


class Schema(msgspec.Struct, frozen=True):
    """A schema with all schemas that it refers to; each follows those that it refers to itself."""

    kind: str  # AVRO, PROTOBUF or JSON
    text: str
    references: tuple[ReferencedSchema, ...] = ()


class SchemaStore:
    """Looks schemas up by id, each once."""

    def __init__(self, settings: Settings) -> None:
        readings = settings.readings
        if readings.registry_url is None:
            raise SettingsError("readings.registry_url is missing: the address of the schema registry")
        self._url = re.sub(r"//[^/@,]*@", "//", readings.registry_url)  # without a login
        self._folder = settings.home / "schemas" / hashlib.sha256(self._url.encode()).hexdigest()[:12]
        self._client = _make_client(settings)
        self._schemas: dict[int, Schema] = {}
        self._missing: dict[int, float] = {}  # id that the registry does not have -> monotonic time of the look-up

    def schema(self, schema_id: int) -> Schema:
        """The schema with an id.

        Raises:
            Rejected: the registry says that the id does not exist.
            SchemaRegistryError: the registry does not answer, or refuses the login; the id may be good.
        """
        found = self._schemas.get(schema_id)
        if found is None:
            found = self._read(schema_id)
            if found is None:
                found = self._look_up(schema_id)
                self.keep(schema_id, found)
            self._schemas[schema_id] = found
        return found

    def _look_up(self, schema_id: int) -> Schema:
        looked_up = self._missing.get(schema_id)
        if looked_up is None or time.monotonic() - looked_up > _MISSING_FOR_S:
            schema = self._request(schema_id)
            if schema is not None:
                self._missing.pop(schema_id, None)
                return schema
            if len(self._missing) >= _MOST_MISSING:
                self._missing.clear()
            self._missing[schema_id] = time.monotonic()
        raise Rejected("malformed", f"the schema registry at {self._url} has no schema with id {schema_id}")

    def _request(self, schema_id: int) -> Schema | None:
        """The schema; None if the registry says that the id does not exist."""
        from confluent_kafka.schema_registry.error import SchemaRegistryError as ClientError

        try:
            found = self._client.get_schema(schema_id)
            references: dict[str, str] = {}
            self._add_references(found, references, set())
        except ClientError as error:
            if error.error_code == _NO_SCHEMA_CODE:
                return None
            if error.http_status_code in _HTTP_REFUSED:
                raise SchemaRegistryError(
                    f"the schema registry at {self._url} refuses the login ({error}): check readings.registry_username "
                    "and readings.registry_password"
                ) from error
            raise self._unreachable(schema_id, error) from error
        except Exception as error:  # the client passes on the errors of its HTTP library
            raise self._unreachable(schema_id, error) from error
        kind = str(found.schema_type or "AVRO").upper()
        named = tuple(ReferencedSchema(name, text) for name, text in references.items())
        return Schema(kind, str(found.schema_str or ""), named)

    def _unreachable(self, schema_id: int, error: Exception) -> SchemaRegistryUnreachable:
        why = f"{type(error).__name__}: {error}"
        return SchemaRegistryUnreachable(
            f"the schema registry at {self._url} cannot look up schema id {schema_id}: {why}. "
            "Readings with this id wait until it does. Check that it is up, and readings.registry_url"
        )

    def _add_references(self, schema: Any, found: dict[str, str], seen: set[str]) -> None:
        """Add the schemas that a schema refers to, each after those that it refers to itself."""
        for reference in schema.references or ():
            if reference.name in seen or len(seen) >= MOST_REFERENCES:
                continue
            seen.add(reference.name)
            referenced = self._client.get_version(reference.subject, reference.version).schema
            self._add_references(referenced, found, seen)
            found[str(reference.name)] = str(referenced.schema_str)

    def _read(self, schema_id: int) -> Schema | None:
        try:
            return msgspec.json.decode((self._folder / f"{schema_id}.json").read_bytes(), type=Schema)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            logger.warning("the kept schema %d cannot be read, and is looked up again: %s", schema_id, error)
            return None

    def keep(self, schema_id: int, schema: Schema) -> None:
        """Keep a schema in the folder, for a restart."""
        path = self._folder / f"{schema_id}.json"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f".{time.monotonic_ns()}.part")
            partial.write_bytes(msgspec.json.encode(schema))
            partial.replace(path)
        except OSError as error:
            logger.warning("schema %d cannot be kept in %s (%s); a restart needs the registry", schema_id, path, error)


def _make_client(settings: Settings) -> Any:
    try:
        from confluent_kafka.schema_registry import SchemaRegistryClient
    except ImportError as error:
        raise SettingsError(f"readings.registry_url needs Confluent's client ({error}): {NEEDS_EXTRA}") from error
    readings = settings.readings
    options: dict[str, Any] = {
        "url": readings.registry_url,
        "timeout": _TIMEOUT_S,
        "max.retries": _RETRIES,
        "retries.wait.ms": _RETRY_WAIT_MS,
        **{name: json.loads(text) if text.isdecimal() else text for name, text in readings.registry_options.items()},
    }
    if readings.registry_username is not None:
        options["basic.auth.user.info"] = f"{readings.registry_username}:{readings.registry_password or ''}"
    if readings.registry_cafile is not None:
        options["ssl.ca.location"] = readings.registry_cafile
    try:
        return SchemaRegistryClient(options)
    except (ValueError, TypeError, OSError) as error:
        raise SettingsError(f"the connection to the schema registry under [readings] is invalid: {error}") from error
