"""The AsyncAPI document of the topics: names from the settings, schemas from the message types, no credentials.

The document describes streamgru: *send* means that streamgru writes the topic. Schemas use the keywords of JSON Schema
draft 7, which AsyncAPI 3.1 takes without a ``schemaFormat``.
"""

from importlib.metadata import version
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import msgspec

from pipeline.dead_letter_form import REASONS, DeadLetterHeaders
from pipeline.event_headers import ForecastHeaders, ReadingHeaders
from pipeline.flat_forecasts import flat_json_schema
from pipeline.forecaster.positions import POSITION_KEY, PositionRecord
from pipeline.kafka.clients import bootstrap_addresses
from pipeline.kafka.topics import TopicPlan, plan_topics
from pipeline.messages import (
    LONGEST_SENSOR_ID_BYTES,
    OWN_FORM_HEADER,
    STATE_SCHEMA_VERSION,
    Forecast,
    ReadingMessage,
    quantile_key,
)
from pipeline.outlook_messages import OutlookMessage
from pipeline.settings import Settings

ASYNCAPI_VERSION: Final = "3.1.0"
KAFKA_BINDING_VERSION: Final = "0.5.0"

_Json = dict[str, Any]
_TYPES: Final = (ReadingMessage, ReadingHeaders, Forecast, ForecastHeaders, DeadLetterHeaders, PositionRecord)
_OUTLOOK_TYPES: Final = (OutlookMessage,)
_BYTES: Final = {"type": "string", "format": "binary"}
_MEDIA_TYPES: Final = {  # by `readings.format`
    "json": "application/json",
    "text": "text/plain",
    "avro": "application/vnd.apache.avro",
    "protobuf": "application/x-protobuf",
    "json_schema": "application/json",
}
_FRAMED: Final = ("avro", "protobuf", "json_schema")
_SECURITY: Final = {  # by `kafka.sasl_mechanism`
    "PLAIN": {"type": "plain"},
    "SCRAM-SHA-256": {"type": "scramSha256"},
    "SCRAM-SHA-512": {"type": "scramSha512"},
    "GSSAPI": {"type": "gssapi"},
    "OAUTHBEARER": {"type": "http", "scheme": "bearer"},
}


def asyncapi_document(settings: Settings) -> _Json:
    """The AsyncAPI document of the topics that the settings name.

    Raises:
        KafkaError: ``kafka.bootstrap_servers`` has an address that is not host:port.
    """
    security = _security(settings)
    messages = _messages(settings)
    channels = _channels(settings)
    components: _Json = {"messages": messages, "schemas": _schemas(settings)}
    if security is not None:
        components["securitySchemes"] = {"login": security}
    return {
        "asyncapi": ASYNCAPI_VERSION,
        "info": {
            "title": "streamgru",
            "version": version("streamgru"),
            "description": "Forecasts of sensor readings, one for each accepted reading. *send* means that streamgru "
            "writes the topic, *receive* that it reads it. The topics have the same number of partitions, and a "
            "sensor's records are on the same partition number of each. streamgru writes in transactions: read its "
            "topics with the isolation level `read_committed`.",
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": _servers(settings, has_login=security is not None),
        "channels": channels,
        "operations": _operations(settings, channels),
        "components": components,
    }


# --- servers ----------------------------------------------------------------------------------------------------------


def _servers(settings: Settings, *, has_login: bool) -> _Json:
    kafka = settings.kafka
    server: _Json = {"protocol": "kafka-secure" if kafka.security_protocol.endswith("SSL") else "kafka"}
    if has_login:
        server["security"] = [_ref("components", "securitySchemes", "login")]
    if settings.readings.registry_url is not None:
        registry = _without_login(settings.readings.registry_url.partition(",")[0])
        server["bindings"] = _kafka(schemaRegistryUrl=registry)
    addresses = [address.rpartition("://")[2].rpartition("@")[2] for address in bootstrap_addresses(kafka)]
    return {f"broker{number}": {"host": address, **server} for number, address in enumerate(addresses, 1)}


def _without_login(url: str) -> str:
    parts = urlsplit(url.strip())
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _security(settings: Settings) -> _Json | None:
    kafka = settings.kafka
    if kafka.security_protocol.startswith("SASL"):
        return dict(_SECURITY.get((kafka.sasl_mechanism or "").upper(), {"type": "userPassword"}))
    return {"type": "X509"} if kafka.security_protocol == "SSL" and kafka.ssl_certfile is not None else None


# --- channels ---------------------------------------------------------------------------------------------------------


def _channels(settings: Settings) -> _Json:
    topics, readings = settings.kafka.topics, settings.readings
    features: _Json = {"x-features": list(settings.features)}
    horizon: _Json = {
        "x-targets": list(settings.targets),
        "x-quantiles": [quantile_key(level) for level in settings.quantiles],
        "x-horizon-steps": settings.horizon_steps,
        "x-cadence-s": settings.cadence_s,
    }
    of_readings = ["foreignReading", "reading"] if readings.is_mapped else ["reading"]
    if settings.outlooks.are_on:
        of_readings.append("outlook")
        features |= {"x-covariates": list(settings.outlooks.covariates)}
    by_topic: dict[str | None, tuple[str, list[str], _Json]] = {
        topics.readings: ("readings", of_readings, features),
        topics.forecasts: ("forecasts", ["forecast"], horizon),
        topics.state: ("state", ["state", "position"], {}),
        topics.dead_letters: ("deadLetters", ["deadLetter"], {}),
        topics.flat_forecasts: ("flatForecasts", ["flatForecast"], horizon),
    }
    channels = {}
    for plan in plan_topics(settings):
        name, messages, more = by_topic[plan.name]
        channels[name] = {
            "address": plan.name,
            "title": plan.purpose,
            "messages": {message: _ref("components", "messages", message) for message in messages},
            "bindings": _kafka(
                topic=plan.name,
                partitions=settings.kafka.partitions,
                replicas=settings.kafka.replication_factor,
                topicConfiguration=_configuration(plan),
            ),
            **more,
        }
    return channels


def _configuration(plan: TopicPlan) -> _Json:
    def value(text: str) -> int | float:
        return float(text) if "." in text else int(text)

    return {
        setting.name: [setting.value] if setting.name == "cleanup.policy" else value(setting.value)
        for setting in plan.settings
    }


# --- operations -------------------------------------------------------------------------------------------------------


_OPERATIONS: Final = (  # action, channel, summary
    ("receive", "readings", "The forecasters read readings, as one group; ingest, export, verify and watch do too."),
    ("send", "readings", "`streamgru publish` writes readings; `streamgru dlq republish` writes rejected ones again."),
    ("send", "forecasts", "The forecasters write one forecast for each accepted reading."),
    ("receive", "forecasts", "The commands watch, export, verify and explain read forecasts."),
    ("send", "state", "The forecasters write each changed state, and the position of each partition."),
    ("receive", "state", "The forecasters restore states; verify and explain audit them."),
    ("send", "deadLetters", "The forecasters write each rejected record."),
    ("receive", "deadLetters", "`streamgru dlq` shows and republishes dead letters; verify counts them."),
    ("send", "flatForecasts", "The forecasters write one record for each sensor, target and step."),
)


def _operations(settings: Settings, channels: _Json) -> _Json:
    operations: _Json = {}
    for action, channel, summary in _OPERATIONS:
        if channel in channels:
            operations[f"{action}{channel[0].upper()}{channel[1:]}"] = {
                "action": action,
                "channel": _ref("channels", channel),
                "summary": summary,
                "messages": [_ref("channels", channel, "messages", name) for name in channels[channel]["messages"]],
            }
    group = {"type": "string", "const": settings.forecaster.group_id}
    operations["receiveReadings"]["bindings"] = _kafka(groupId=group)
    return operations


# --- messages ---------------------------------------------------------------------------------------------------------


# Kafka keys are written out, not referenced: AsyncAPI's JSON Schema takes a reference there for a schema as well.
_SENSOR_KEY: Final = {
    "type": "string",
    "minLength": 1,
    "description": f"the sensor id in UTF-8, at most {LONGEST_SENSOR_ID_BYTES:,} bytes",
}
_POSITION_KEY: Final = {**_BYTES, "description": f"the bytes {POSITION_KEY.hex(' ')} in hexadecimal"}


def _messages(settings: Settings) -> _Json:
    readings = settings.readings
    messages: _Json = {
        "reading": _message("One reading of a sensor", "ReadingMessage", _SENSOR_KEY, headers="ReadingHeaders"),
        "forecast": _message("The forecast after a reading", "Forecast", _SENSOR_KEY, headers="ForecastHeaders"),
        "state": _message("The state of a sensor", "State", _SENSOR_KEY, content_type="application/octet-stream"),
        "position": _message("The position of a partition", "PositionRecord", _POSITION_KEY),
        "deadLetter": _message(
            "A rejected record, unchanged, with headers behind its own",
            "RejectedValue",
            {**_BYTES, "description": "the key of the rejected record: any bytes, or null"},
            headers="DeadLetterHeaders",
            content_type="application/octet-stream",
        ),
    }
    if settings.kafka.topics.flat_forecasts is not None:
        messages["flatForecast"] = _message("The forecast of one step", "FlatForecast", _SENSOR_KEY)
    if settings.outlooks.are_on:
        messages["outlook"] = _message(
            "Values of covariates for times ahead, as they were known at the time of issue",
            "OutlookMessage",
            {**_SENSOR_KEY, "description": "the sensor id, or the name of the group, in UTF-8"},
        )
    if readings.is_mapped:
        for own in messages.keys() & {"reading", "outlook"}:
            messages[own]["headers"] = _schema("OwnFormHeaders")
        messages["foreignReading"] = {
            **_message(
                "A message of another system, which the settings map to a reading",
                "ForeignReading",
                {"description": "the key of the other system"},
                headers="ReadingHeaders",
                content_type=_MEDIA_TYPES[readings.format],
            ),
            "x-mapping": readings.shaping,
        }
        if readings.format in _FRAMED:
            messages["foreignReading"]["bindings"]["kafka"] |= {
                "schemaIdLocation": "payload",
                "schemaIdPayloadEncoding": "confluent",
            }
    return messages


def _message(
    title: str, payload: str, key: _Json, *, headers: str | None = None, content_type: str = "application/json"
) -> _Json:
    message: _Json = {"title": title, "contentType": content_type, "payload": _schema(payload)}
    if headers is not None:
        message["headers"] = _schema(headers)
    return {**message, "bindings": _kafka(key=key)}


def _schemas(settings: Settings) -> _Json:
    """The schemas by name; those of the message types are the ones that ``messages.json_schemas`` gives."""
    types = (*_TYPES, *_OUTLOOK_TYPES) if settings.outlooks.are_on else _TYPES
    _, made = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    schemas: _Json = msgspec.json.decode(msgspec.json.encode(made))  # JSON alone: a default may be a tuple
    reasons = list(REASONS)
    schemas["DeadLetterHeaders"]["properties"]["streamgru-reason"]["enum"] = reasons
    schemas["State"] = {
        **_BYTES,
        "description": f"the state record of schema {STATE_SCHEMA_VERSION}: for streamgru alone, and may change",
    }
    schemas["RejectedValue"] = {**_BYTES, "description": "the value of the rejected record: any bytes, or null"}
    topics, flat_format = settings.kafka.topics, settings.forecaster.flat_format
    if topics.flat_forecasts is not None:
        schemas["FlatForecast"] = flat_json_schema(settings.quantiles, flat_format)
    if settings.readings.is_mapped:
        name, value = OWN_FORM_HEADER
        schemas["ForeignReading"] = {"description": "the form of the other system; `x-mapping` has the paths"}
        schemas["OwnFormHeaders"] = {
            "type": "object",
            "properties": {name: {"type": "string", "const": value.decode()}},
            "required": [name],
        }
    return schemas


def _schema(name: str) -> _Json:
    return _ref("components", "schemas", name)


def _ref(*path: str) -> _Json:
    return {"$ref": "#/" + "/".join(path)}


def _kafka(**binding: Any) -> _Json:
    return {"kafka": {**binding, "bindingVersion": KAFKA_BINDING_VERSION}}
