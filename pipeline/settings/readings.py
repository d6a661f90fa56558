"""The section ``[readings]`` of the settings: how records of the readings topic become readings.

The defaults describe streamgru's own form. Every other value describes other people's messages by the paths of their
fields (``pipeline.settings.field_paths``).
"""

import re
from datetime import datetime
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pipeline.settings.field_paths import parse_path, parse_source, parse_template
from pipeline.settings.zone import ZoneName

_CONNECTION: Final = "registry_"  # these fields say where schemas come from, and shape no reading


class ReadingsSettings(BaseModel):
    """The form of the records on the readings topic."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format: Literal["json", "text", "avro", "protobuf", "json_schema"] = Field(
        default="json",
        description="encoding of the values: JSON, one bare text per record, or Avro, Protobuf and JSON Schema in "
        "Confluent's framing",
    )
    sensor: str | None = Field(
        default=None,
        description="the sensor id: a path, or a template such as {device}/{name}; by default sensor_id, which must "
        "equal the key",
    )
    time: str = Field(default="timestamp", description="path of the timestamp, or @record_timestamp")
    time_unit: Literal["s", "ms", "us", "ns"] | None = Field(
        default=None, description="unit of numeric times; by default whole milliseconds"
    )
    time_format: str | None = Field(default=None, description="strptime pattern of times that are text; by default ISO")
    timezone: ZoneName = Field(
        default=None, description="zone of times without one, such as Europe/Berlin; by default these are refused"
    )
    values: str | None = Field(
        default=None,
        description="path of the object that holds one value per feature, or of a list of objects; by default values",
    )
    fields: dict[str, str] = Field(default={}, description="feature -> path of its value in the message")
    name: str | None = Field(default=None, description="path of the feature's name, if a message or list item has one")
    value: str | None = Field(default=None, description="path of the value beside the name")
    text_numbers: bool = Field(default=False, description='read texts such as "21.5" as numbers')
    words: dict[str, float] = Field(
        default={}, description="texts that stand for numbers, such as on = 1; true and false are spelled like this"
    )
    missing: tuple[str | float, ...] = Field(
        default=(), description='texts and numbers that stand for a missing value, such as "unavailable" or -999'
    )
    key_format: Literal["text", "json", "int", "long", "avro", "protobuf", "json_schema"] | None = Field(
        default=None, description="encoding of the keys; by default text, or JSON if sensor names a field of the key"
    )
    registry_url: str | None = Field(default=None, description="address of the schema registry")
    registry_username: str | None = None
    registry_password: str | None = Field(default=None, repr=False)
    registry_cafile: str | None = None
    registry_options: dict[str, str] = Field(
        default={},
        repr=False,
        description="more options of Confluent's SchemaRegistryClient, such as bearer.auth.token",
    )

    @field_validator("values", "name", "value")
    @classmethod
    def _is_path(cls, text: str | None) -> str | None:
        if text is not None:
            parse_path(text)
        return text

    @field_validator("fields")
    @classmethod
    def _are_paths(cls, paths: dict[str, str]) -> dict[str, str]:
        for path in paths.values():
            parse_path(path)
        return paths

    @field_validator("sensor")
    @classmethod
    def _is_template(cls, text: str | None) -> str | None:
        if text is not None and not any(not isinstance(part, str) for part in parse_template(text)):
            raise ValueError("a sensor id needs at least one path")
        return text

    @field_validator("time")
    @classmethod
    def _is_source(cls, text: str) -> str:
        parse_source(text)
        return text

    @field_validator("time_format")
    @classmethod
    def _is_pattern(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                datetime.strptime("", pattern)  # noqa: DTZ007 - only the pattern matters
            except (ValueError, re.error) as error:
                if not str(error).startswith("time data"):
                    raise ValueError(f"time_format is not a strptime pattern: {error}") from None
        return pattern

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        if self.time_format is not None and self.time_unit is not None:
            raise ValueError("time_unit is for numbers and time_format for texts: set one of them")
        if self.time_format is not None and "%z" not in self.time_format and self.timezone is None:
            raise ValueError("time_format has no zone (%z): set timezone, for example to UTC")
        if self.name is not None and self.value is None:
            raise ValueError("name needs value: the path of the value beside the name")
        if self.value is not None and self.name is None and self.values is None:
            raise ValueError("value needs name, or values with the object that holds one object per feature")
        if self.name is not None and self.fields:
            raise ValueError("fields and name exclude each other: messages that name their feature need no fields")
        if self.sensor is None and self.key_format is not None:
            raise ValueError('key_format needs sensor, for example "@key"')
        if self.needs_registry and self.registry_url is None:
            raise ValueError("Avro and Protobuf need registry_url, the address of the schema registry")
        return self

    @property
    def is_mapped(self) -> bool:
        """Whether records have another form than streamgru's own."""
        return self.shaping != {}

    @property
    def needs_registry(self) -> bool:
        """Whether records cannot be decoded without a schema."""
        return bool({self.format, self.key_format} & {"avro", "protobuf"})

    @property
    def shaping(self) -> dict[str, Any]:
        """The values that differ from the defaults and decide how a record is read, as JSON."""
        return {
            name: value
            for name, value in self.model_dump(mode="json", exclude_defaults=True).items()
            if not name.startswith(_CONNECTION)
        }
